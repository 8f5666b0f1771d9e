/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shape 2: a hash keyed by socket and process. Every process that shares a socket gets its own row, but
 * at a socket's end nothing tells which rows were its own: a row is folded into its flow when the
 * socket's memory comes back with other ports, and user space must sweep the rest.
 */

struct use_key {
    u64 sk;
    u64 tgid;
};

struct use_val {
    struct flow_key key;
    u32 ports;
    u64 tx;
    u64 rx;
};

/* uses: socket and process -> bytes. Inserted and added to here, read and swept by user space. */
BPF_TABLE("hash", struct use_key, struct use_val, uses, 131072);

static __always_inline int add_to_use(u64 sk, u64 tx, u64 rx)
{
    const int direct = 1;
    u16 family = READ(u16, sk, OFF_SOCK_FAMILY);

    if (family != AF_INET && family != AF_INET6)
        return 0;
    u32 ports = READ(u16, sk, OFF_SOCK_DPORT) << 16 | READ(u16, sk, OFF_SOCK_NUM);
    struct use_key at = {.sk = sk, .tgid = bpf_get_current_pid_tgid() >> 32};
    struct use_val *value = uses.lookup(&at);
    if (value && value->ports == ports) {
        if (tx)
            __sync_fetch_and_add(&value->tx, tx);
        if (rx)
            __sync_fetch_and_add(&value->rx, rx);
        return 0;
    }
    if (value) {
        struct flow_key gone = value->key;
        add_to_flow(&gone, value->tx, value->rx);
        uses.delete(&at);
    }
    u16 proto = READ(u16, sk, OFF_SOCK_PROTOCOL);
    u8 role = proto == IPPROTO_UDP ? ROLE_CLIENT : guess_role(sk, read_netns(sk, direct), direct);
    struct use_val fresh = {.ports = ports, .tx = tx, .rx = rx};
    read_peer(sk, &fresh.key, role, proto, direct);
    own(&fresh.key, direct);
    uses.insert(&at, &fresh);
    return 0;
}

int use__send(u64 *ctx)
{
    return (int)ctx[1] > 0 ? add_to_use(ctx[0], (int)ctx[1], 0) : 0;
}

int use__recv(u64 *ctx)
{
    return (int)ctx[1] > 0 && !(ctx[2] & RECV_NOT_COUNTED) ? add_to_use(ctx[0], 0, (int)ctx[1]) : 0;
}

/* Who listens where, for the role of a socket. */
int use__state(u64 *ctx)
{
    if ((int)ctx[2] == TCP_LISTEN)
        on_listen(ctx[0], 1, 1);
    else if ((int)ctx[1] == TCP_LISTEN)
        on_listen(ctx[0], -1, 1);
    return 0;
}

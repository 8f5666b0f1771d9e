/* SPDX-License-Identifier: GPL-2.0-only */
/* Shape 3: a hash keyed by flow (process, peer, role), found anew at each event. No state per socket. */

static __always_inline int add_each(u64 sk, u64 tx, u64 rx)
{
    const int direct = 1;
    u16 family = READ(u16, sk, OFF_SOCK_FAMILY);
    struct flow_key key;

    if (family != AF_INET && family != AF_INET6)
        return 0;
    u16 proto = READ(u16, sk, OFF_SOCK_PROTOCOL);
    u8 role = proto == IPPROTO_UDP ? ROLE_CLIENT : guess_role(sk, read_netns(sk, direct), direct);
    read_peer(sk, &key, role, proto, direct);
    own(&key, direct);
    add_to_flow(&key, tx, rx);
    return 0;
}

int flow__send(u64 *ctx)
{
    return (int)ctx[1] > 0 ? add_each(ctx[0], (int)ctx[1], 0) : 0;
}

int flow__recv(u64 *ctx)
{
    return (int)ctx[1] > 0 && !(ctx[2] & RECV_NOT_COUNTED) ? add_each(ctx[0], 0, (int)ctx[1]) : 0;
}

/* Who listens where, for the role of a socket. */
int flow__state(u64 *ctx)
{
    if ((int)ctx[2] == TCP_LISTEN)
        on_listen(ctx[0], 1, 1);
    else if ((int)ctx[1] == TCP_LISTEN)
        on_listen(ctx[0], -1, 1);
    return 0;
}

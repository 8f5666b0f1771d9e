/* SPDX-License-Identifier: GPL-2.0-only */
/* Shape 1: one hash keyed by process. The cheapest there is; knows no destination. */

struct bytes {
    u64 tx;
    u64 rx;
};

/* by_pid: tgid -> bytes. Inserted and added to here, read by user space. */
BPF_TABLE("hash", u32, struct bytes, by_pid, 131072);

static __always_inline int add_to_pid(u64 sk, u64 tx, u64 rx)
{
    const int direct = 1;
    u16 family = READ(u16, sk, OFF_SOCK_FAMILY);
    u32 tgid = bpf_get_current_pid_tgid() >> 32;

    if (family != AF_INET && family != AF_INET6)
        return 0;
    struct bytes *value = by_pid.lookup(&tgid);
    if (!value) {
        struct bytes fresh = {.tx = tx, .rx = rx};
        by_pid.insert(&tgid, &fresh);
        return 0;
    }
    if (tx)
        __sync_fetch_and_add(&value->tx, tx);
    if (rx)
        __sync_fetch_and_add(&value->rx, rx);
    return 0;
}

int pid__send(u64 *ctx)
{
    return (int)ctx[1] > 0 ? add_to_pid(ctx[0], (int)ctx[1], 0) : 0;
}

int pid__recv(u64 *ctx)
{
    return (int)ctx[1] > 0 && !(ctx[2] & RECV_NOT_COUNTED) ? add_to_pid(ctx[0], 0, (int)ctx[1]) : 0;
}

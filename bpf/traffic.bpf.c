/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bytes sent and received per process and peer, TCP and UDP, IPv4 and IPv6.
 *
 * Hooks, best first (kernob/probes/traffic.py tries them in this order):
 *   send    sock_send_length (tp_btf, raw tracepoint; Linux 6.3), inet_sendmsg + inet6_sendmsg
 *           (fexit 5.5, kretprobe), and inet_sendpage where the kernel still has it
 *   recv    sock_recv_length (6.3), inet_recvmsg + inet6_recvmsg (fexit, kretprobe)
 *   splice  tcp_splice_read (fexit, kretprobe); without either, tcp_rcv_space_adjust (raw
 *           tracepoint 4.16) counts all received TCP by the advance of copied_seq instead
 *   state   inet_sock_set_state (raw tracepoint 4.16): who opened the connection
 *   destroy tcp_destroy_sock (raw tracepoint 4.16): a closed socket's bytes move to its flow
 *
 * All byte hooks run in the caller's context. A TCP socket's bytes are kept with the socket, for the
 * first process that used it (its owner): one lookup and one addition an event. Other processes that
 * share it add straight to their flow, as UDP does. Cost: see benchmarks/README.md.
 *
 * Blind spots: TCP_ZEROCOPY_RECEIVE unless counted by copied_seq; under copied_seq, the first splice
 * out of a socket that was open before the agent, and kTLS records with their framing; a socket used
 * both before and after an exec by one process stays with the image before; the peer of unconnected
 * UDP; traffic of the kernel itself (NFS, Ceph) has no process.
 */

/* Not the application's data: MSG_PEEK leaves it in the queue, MSG_ERRQUEUE returns our own. */
#define RECV_NOT_COUNTED (0x2 | 0x2000)
#define MSG_DONTWAIT     0x40

static __always_inline void count_owned(struct sock_val *value, u64 tx, u64 rx)
{
    if (tx)
        __sync_fetch_and_add(&value->tx, tx);
    if (rx)
        __sync_fetch_and_add(&value->rx, rx);
}

/*
 * All but the common case, which is a socket used by its owner. `value`: the socket's state, or NULL.
 *
 * A socket that was accepted has no owner until a process uses it. The first to raise `claims` to 1
 * takes it; callers that arrive together both read more than 1, and then nobody ever owns it: all
 * add to their own flows. So no byte is charged to another process, without a compare-and-swap,
 * which programs before Linux 5.12 lack.
 *
 * A TCP socket without state was open before the agent, or the map was full. UDP never has any, since
 * no hook tells when such a socket goes away. An MPTCP socket's state knows its role until it is claimed;
 * the peer is read then, because the addresses are set after the state hook ran.
 */
static __always_inline void count_slowly(u64 sk, struct sock_val *value, u16 proto, u64 tx, u64 rx,
                                         const int direct)
{
    struct sock_val fresh = {.claims = 1, .tx = tx, .rx = rx};
    int claimed = 0;

    if (!value && is_raw(sk, direct))
        return;
    if (value && !value->key.tgid) {
        __sync_fetch_and_add(&value->claims, 1);
        claimed = *(volatile u32 *)&value->claims == 1;
    }
    if (value && proto == IPPROTO_TCP) {
        fresh.key = value->key;
    } else {
        u8 role = ROLE_CLIENT;
        if (value)
            role = value->key.role;
        else if (proto != IPPROTO_UDP)
            role = guess_role(sk, read_netns(sk, direct), direct);
        read_peer(sk, &fresh.key, role, proto == IPPROTO_UDP ? IPPROTO_UDP : IPPROTO_TCP, direct);
    }
    own(&fresh.key, direct);
    if (proto == IPPROTO_UDP && tx && fresh.key.port == DNS_PORT && fresh.key.role == ROLE_CLIENT)
        note_asker(sk, fresh.key.tgid, fresh.key.start);
    if (claimed) {
        u32 tgid = fresh.key.tgid;

        fresh.key.tgid = 0;
        value->key = fresh.key;
        *(volatile u32 *)&value->key.tgid = tgid; /* last: it says the rest is there */
        value->user.tgid = 0;
        count_owned(value, tx, rx);
        if (proto == IPPROTO_TCP)
            count_accepted(sk, value);
        return;
    }
    if (value) {
        value->user.start = fresh.key.start;
        value->user.exec = fresh.key.exec;
        value->user.tgid = fresh.key.tgid;
    }
    if (!value && proto == IPPROTO_TCP) {
        u64 address = sk;

        follow(sk, &fresh, direct);
        note_first(sk, &fresh, tx);
        if (!socks.insert(&address, &fresh))
            return;
        if (!socks.lookup(&address)) /* full; otherwise another thread was first */
            lose(LOSS_SOCKS_FULL, 1);
    }
    add_to_flow(&fresh.key, tx, rx, 0, 0);
}

static __always_inline void count(u64 sk, struct sock_val *value, u16 proto, u64 tx, u64 rx, const int direct)
{
    if (value && value->key.tgid == bpf_get_current_pid_tgid() >> 32) {
        count_owned(value, tx, rx);
        if (value->user.tgid)
            value->user.tgid = 0;
    } else {
        count_slowly(sk, value, proto, tx, rx, direct);
    }
    if (value)
        note_use(sk, value, tx, rx);
}

static __always_inline struct sock_val *lookup_tcp(u64 sk, const int direct)
{
    u64 address = sk;

    return READ(u16, sk, OFF_SOCK_PROTOCOL) == IPPROTO_TCP ? socks.lookup(&address) : NULL;
}

/* Nothing could be sent. Once until something could: what keeps the process from it is the peer's window. */
static __always_inline int on_send_blocked(u64 sk)
{
    const int direct = 0;
    struct fact fact = {.kind = FATE_STALL, .count = 1, .error = EAGAIN};
    struct sock_val *value = lookup_tcp(sk, direct);

    if (!value || value->flags & SOCK_STALLED || READ(u32, sk, OFF_TCP_SND_WND))
        return 0;
    value->flags |= SOCK_STALLED;
    fact.time_ns = bpf_ktime_get_ns();
    count_and_tell(sk, value, &fact);
    return 0;
}

/* A receive met the connection's end, or a send failed for it. */
static __always_inline int on_end_met(u64 sk, const int receive)
{
    const int direct = 0;
    struct sock_val *value = lookup_tcp(sk, direct);

    if (!value)
        return 0;
    if (receive)
        judge_cut(sk, value);
    if (receive || ((value->ended == ENDED_BY_RST || value->ended == ENDED_EARLY_RST) && has_answered(value)))
        judge_end_met(sk, value);
    return 0;
}

/* A call was told that the network gave the connection up: tell_missed_timeout() asks. */
static __always_inline int on_given_up(u64 sk, u32 error)
{
    const int direct = 0;
    struct sock_val *value = lookup_tcp(sk, direct);

    if (value)
        value->told = error;
    return 0;
}

/* Nothing was received: the connection's end, or the wait that SO_RCVTIMEO allows has run out. */
static __always_inline int on_recv_nothing(u64 sk, long received, u32 flags)
{
    const int direct = 0;

    if (!received || received == -ECONNRESET)
        return on_end_met(sk, 1);
    if (received != -EAGAIN)
        return is_given_up(-received) ? on_given_up(sk, -received) : 0;
    if (flags & MSG_DONTWAIT)
        return 0;
    struct sock_val *value = lookup_tcp(sk, direct);
    if (!value || value->key.role != ROLE_CLIENT)
        return 0;
    if (value->waits_out < 255)
        value->waits_out++;
    if (value->phase == PHASE_ASKED)
        note_silent_wait(value);
    return 0;
}

/* `by_seq`: received TCP is counted by on_space_adjust, not here. */
static __always_inline int on_bytes(u64 sk, u64 tx, u64 rx, const int by_seq, const int direct)
{
    u16 family = READ(u16, sk, OFF_SOCK_FAMILY);

    if (family != AF_INET && family != AF_INET6)
        return 0;
    u16 proto = READ(u16, sk, OFF_SOCK_PROTOCOL);
    struct sock_val *value = NULL;
    if (proto == IPPROTO_TCP || proto == IPPROTO_MPTCP) {
        u64 address = sk;

        value = socks.lookup(&address);
        if (rx && value && proto == IPPROTO_TCP && value->http >= HTTP_ASKED)
            http_note_answer(value, rx, read_copied_seq(sk, direct));
        if (value && by_seq && proto == IPPROTO_TCP) {
            if (value->copied_known)
                return 0;
            follow(sk, value, direct);
        }
    } else if (proto != IPPROTO_UDP) {
        return 0;
    }
    count(sk, value, proto, tx, rx, direct);
    return 0;
}

static __always_inline int on_send(u64 sk, long sent, const int direct)
{
    if (sent > 0)
        return on_bytes(sk, sent, 0, 0, direct);
    if (sent == -EAGAIN)
        return on_send_blocked(sk);
    if (sent == -ECONNRESET || sent == -EPIPE)
        return on_end_met(sk, 0);
    return is_given_up(-sent) ? on_given_up(sk, -sent) : 0;
}

static __always_inline int on_recv(u64 sk, long received, u32 flags, const int by_seq, const int direct)
{
    if (flags & RECV_NOT_COUNTED)
        return 0;
    return received > 0 ? on_bytes(sk, 0, received, by_seq, direct) : on_recv_nothing(sk, received, flags);
}

/* Under the socket's lock, in the context of whoever took data out of the receive queue. */
static __always_inline int on_space_adjust(u64 sk, const int direct)
{
    u64 address = sk;
    struct sock_val *value = socks.lookup(&address);

    if (!value || !value->copied_known)
        return 0;
    u32 copied = read_copied_seq(sk, direct);
    s32 advance = copied - value->copied;
    if (advance <= 0)
        return 0;
    value->copied = copied;
    count(sk, value, IPPROTO_TCP, 0, advance, direct);
    return 0;
}

/*
 * Tracepoints: typed (tp_btf) and untyped (raw_tp). ctx holds the tracepoint's arguments. One program a
 * use of the macro: BCC 0.18 marks programs where the macro is used, so of several there it finds only one.
 */

#define PROGRAM(name, body)                                                                                  \
    int name(u64 *ctx)                                                                                       \
    {                                                                                                        \
        return body;                                                                                         \
    }

PROGRAM(tp_btf__send, on_send(ctx[0], (int)ctx[1], 1))
PROGRAM(raw_tp__send, on_send(ctx[0], (int)ctx[1], 0))
PROGRAM(tp_btf__recv, on_recv(ctx[0], (int)ctx[1], ctx[2], 0, 1))
PROGRAM(raw_tp__recv, on_recv(ctx[0], (int)ctx[1], ctx[2], 0, 0))
PROGRAM(tp_btf__recv_by_seq, on_recv(ctx[0], (int)ctx[1], ctx[2], 1, 1))
PROGRAM(raw_tp__recv_by_seq, on_recv(ctx[0], (int)ctx[1], ctx[2], 1, 0))
PROGRAM(tp_btf__set_state, on_set_state(ctx[0], ctx[1], ctx[2], 1))
PROGRAM(raw_tp__set_state, on_set_state(ctx[0], ctx[1], ctx[2], 0))
PROGRAM(tp_btf__space_adjust, on_space_adjust(ctx[0], 1))
PROGRAM(raw_tp__space_adjust, on_space_adjust(ctx[0], 0))
PROGRAM(tp_btf__destroy, on_destroy(ctx[0], 1))
PROGRAM(raw_tp__destroy, on_destroy(ctx[0], 0))

/* Functions, at their return (fexit): ctx holds the arguments, then the result. */

static __always_inline u64 sock_of(u64 socket, const int direct)
{
    return READ(u64, socket, OFF_SOCKET_SK);
}

int fexit__sendmsg(u64 *ctx)
{
    return on_send(sock_of(ctx[0], 1), (int)ctx[3], 1);
}

int fexit__sendpage(u64 *ctx)
{
    return on_send(sock_of(ctx[0], 1), (long)ctx[5], 1);
}

int fexit__recvmsg(u64 *ctx)
{
    return on_recv(sock_of(ctx[0], 1), (int)ctx[4], ctx[3], 0, 1);
}

int fexit__recvmsg_by_seq(u64 *ctx)
{
    return on_recv(sock_of(ctx[0], 1), (int)ctx[4], ctx[3], 1, 1);
}

int fexit__splice_read(u64 *ctx)
{
    return on_recv(sock_of(ctx[0], 1), (long)ctx[5], 0, 0, 1);
}

/*
 * Functions, by kprobe and kretprobe: the return probe no longer sees the arguments.
 * calls: thread -> socket and flags of the call it is in. Inserted at entry, deleted at return. When full,
 * LOSS_CALLS_FULL.
 */
struct call {
    u64 sk;
    u64 flags;
};
BPF_TABLE("hash", u64, struct call, calls, 16384);

static __always_inline int enter_call(struct pt_regs *ctx, u64 flags)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct call call = {.sk = sock_of(PT_REGS_PARM1(ctx), 0), .flags = flags};

    if (calls.update(&thread, &call))
        lose(LOSS_CALLS_FULL, 1);
    return 0;
}

static __always_inline int leave_call(struct pt_regs *ctx, const int receive, const int by_seq)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct call *found = calls.lookup(&thread);

    if (!found)
        return 0;
    struct call call = *found;
    calls.delete(&thread);
    if (receive)
        return on_recv(call.sk, (int)PT_REGS_RC(ctx), call.flags, by_seq, 0);
    return on_send(call.sk, (int)PT_REGS_RC(ctx), 0);
}

int kp__sendmsg(struct pt_regs *ctx)
{
    return enter_call(ctx, 0);
}

int krp__sendmsg(struct pt_regs *ctx)
{
    return leave_call(ctx, 0, 0);
}

int kp__recvmsg(struct pt_regs *ctx)
{
    return enter_call(ctx, PT_REGS_PARM4(ctx));
}

int krp__recvmsg(struct pt_regs *ctx)
{
    return leave_call(ctx, 1, 0);
}

int krp__recvmsg_by_seq(struct pt_regs *ctx)
{
    return leave_call(ctx, 1, 1);
}

int kp__splice_read(struct pt_regs *ctx)
{
    return enter_call(ctx, 0);
}

int krp__splice_read(struct pt_regs *ctx)
{
    return leave_call(ctx, 1, 0);
}

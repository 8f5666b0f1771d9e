/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What else becomes of connections: segments sent again, RSTs sent, who accepted, attempts that failed before
 * they began, and who owns the sockets that were open before us.
 *
 * Hooks, best first (kernob/probes/tcp.py tries them in this order). Each may be missing: what it tells is
 * then absent, the rest stays right. retransmit  tcp_retransmit_skb (tp_btf, raw tracepoint; Linux 4.16)
 *   synack      tcp_retransmit_synack (tp_btf, raw tracepoint; 4.16)
 *   reset       tcp_send_reset (tp_btf, raw tracepoint; 4.16; for closed ports only since 6.10)
 *   accept      inet_csk_accept (fexit 5.5, kretprobe), sys_exit_accept + sys_exit_accept4 (tracepoints)
 *   connect     tcp_v4_connect + tcp_v6_connect (fexit, kretprobe), sys_exit_connect (5.15), with
 *               sys_enter_connect
 *   seed        every open file of every process, once (bpf_iter, 5.8)
 * Everything else about a connection is learned by the hooks of traffic.bpf.c: see state.h, exchange.h,
 * endings.h.
 *
 * Any one of the syscall tracepoints costs all system calls some 10 ns, which is why they come last.
 */

static __always_inline int on_retransmit(u64 sk)
{
    const int direct = 0;
    u64 address = sk;
    struct sock_val *value = socks.lookup(&address);

    if (!value)
        return 0;
    if (READ(u8, sk, OFF_SOCK_STATE) == TCP_SYN_SENT && value->syn_retransmits < 255)
        value->syn_retransmits++;
    count_retransmits(sk, value, direct);
    return 0;
}

/* A SYN-ACK: there is no socket yet but the listener's, and `request`, which begins like one. */
static __always_inline int on_retransmit_synack(u64 request)
{
    const int direct = 0;
    struct fact fact = {.kind = FATE_RETRANSMIT, .count = 1};
    struct flow_key flow;

    read_peer(request, &flow, ROLE_SERVER, IPPROTO_TCP, direct);
    charge_listener(request, &flow);
    fact.time_ns = fact.first_ns = bpf_ktime_get_ns();
    count_fact(&flow, &fact);
    tell(request, &flow, NULL, &fact);
    return 0;
}

/* `sk` may be 0 (a segment for a closed port), a connection's remains, or one that is not complete yet. */
static __always_inline int on_send_reset(u64 sk, u64 segment)
{
    const int direct = 0;
    struct fact fact = {.kind = FATE_RESET, .side = DIRECTION_SENT, .count = 1};
    struct sock_val *value = NULL;

    if (sk) {
        u64 address = sk;
        value = socks.lookup(&address);
    }
    if (!value) {
        struct flow_key nobody = {.family = AF_INET, .proto = IPPROTO_TCP};

        if (sk) {
            nobody.netns = read_netns(sk, direct);
        } else if (segment) {
            u64 device = READ(u64, segment, OFF_SKB_DEV);
            u64 net = READ(u64, device, OFF_DEVICE_NET);
            nobody.netns = READ(u32, net, OFF_NET_INUM);
        }
        fact.idle = 1;
        count_fact(&nobody, &fact);
        return 0;
    }
    fact.time_ns = bpf_ktime_get_ns();
    fact.gap_ns = silence_ns(sk);
    fact.idle = !is_open(sk, value, fact.time_ns);
    count_and_tell(sk, value, &fact);
    return 0;
}

PROGRAM(tp_btf__retransmit, on_retransmit(ctx[0]))
PROGRAM(raw_tp__retransmit, on_retransmit(ctx[0]))
PROGRAM(tp_btf__synack, on_retransmit_synack(ctx[1]))
PROGRAM(raw_tp__synack, on_retransmit_synack(ctx[1]))
PROGRAM(tp_btf__reset, on_send_reset(ctx[0], ctx[1]))
PROGRAM(raw_tp__reset, on_send_reset(ctx[0], ctx[1]))

/* The socket that an open file is; 0 if it is none. */
static __always_inline u64 sock_of_file(u64 file)
{
    const int direct = 0;

    if (!file)
        return 0;
    u64 inode = READ(u64, file, OFF_FILE_INODE);
    if ((READ(u16, inode, OFF_INODE_MODE) & 0170000) != 0140000)
        return 0;
    u64 socket = READ(u64, file, OFF_FILE_PRIVATE);
    return READ(u64, socket, OFF_SOCKET_SK);
}

/*
 * The descriptors of the current process. Found once, before a loop through several: each read through a
 * typed pointer costs the verifier a search of the kernel's whole BTF.
 */
struct open_files {
    u64 files; /* struct file *[count]; 0 where it is not known */
    u32 count;
};

static __always_inline struct open_files open_files(void)
{
    const int direct = TYPED_TASK;
    u64 files = READ(u64, current_task(direct), OFF_TASK_FILES);
    u64 table = READ(u64, files, OFF_FILES_FDT);

    return (struct open_files){READ(u64, table, OFF_FDTABLE_FD), READ(u32, table, OFF_FDTABLE_MAX)};
}

static __always_inline u64 file_at(struct open_files open, u32 fd)
{
    const int direct = 0;
    s64 left = (s64)open.count - fd;

    asm volatile("" : "+r"(left)); /* else each turn of a loop would teach the verifier another least count */
    return left > 0 ? READ(u64, open.files, 8 * (u64)fd) : 0;
}

static __always_inline u64 file_of(u32 fd)
{
    return file_at(open_files(), fd);
}

/* In the context of accept(): the connection is the caller's until another process uses it. */
static __always_inline int on_accept(u64 sk)
{
    u64 address = sk;
    struct sock_val *value = sk ? socks.lookup(&address) : NULL;

    if (!value || value->key.role != ROLE_SERVER || value->flags & (SOCK_COUNTED | SOCK_MPTCP))
        return 0;
    if (!value->key.tgid) {
        struct flow_key flow = {.netns = value->key.netns};

        own(&flow, TYPED_TASK);
        value->user.start = flow.start;
        value->user.exec = flow.exec;
        value->user.tgid = flow.tgid;
    }
    count_accepted(sk, value);
    return 0;
}

/* inet_csk_accept has four arguments up to Linux 6.9, two since. */
PROGRAM(fexit__accept_of_four, on_accept(ctx[4]))
PROGRAM(fexit__accept_of_two, on_accept(ctx[2]))

int krp__accept(struct pt_regs *ctx)
{
    return on_accept(PT_REGS_RC(ctx));
}

/* What accept() returned is a socket; should another thread have closed it since, no socket of ours is found.
 */
int tp__accept(u64 *ctx)
{
    const int direct = 0;
    long fd = ctx[2];

    if (fd < 0)
        return 0;
    u64 socket = READ(u64, file_of(fd), OFF_FILE_PRIVATE);
    return on_accept(READ(u64, socket, OFF_SOCKET_SK));
}

/*
 * attempts: thread -> the connect() it is in. Inserted at entry, deleted at return; beyond its size failures
 * that never reach a TCP state are not seen, and LOSS_CALLS_FULL counts the calls.
 */
struct attempt {
    u64 sk;
    u64 entered_ns;
    u32 address[4];
    u16 family;
    u16 port;
    u32 pad;
};
BPF_TABLE("hash", u64, struct attempt, attempts, 16384);

/* struct sockaddr_in and sockaddr_in6 */
static __always_inline void read_target(struct attempt *attempt, u64 target, const int user)
{
    u8 raw[24] = {};

    if (user)
        bpf_probe_read_user(raw, sizeof(raw), (void *)target);
    else
        bpf_probe_read_kernel(raw, sizeof(raw), (void *)target);
    attempt->family = *(u16 *)raw;
    attempt->port = (u16)raw[2] << 8 | raw[3];
    if (attempt->family == AF_INET) {
        attempt->address[0] = *(u32 *)(raw + 4);
        return;
    }
    __builtin_memcpy(attempt->address, raw + 8, 16);
    if (!attempt->address[0] && !attempt->address[1] && attempt->address[2] == __builtin_bswap32(0xffff)) {
        attempt->family = AF_INET;
        attempt->address[0] = attempt->address[3];
        attempt->address[2] = attempt->address[3] = 0;
    }
}

/* Errors that say nothing of the destination: still on its way, called wrongly, interrupted. */
static __always_inline int is_no_attempt(long result)
{
    return result >= 0 || result < -200 || result == -EINPROGRESS || result == -EALREADY ||
           result == -EISCONN || result == -EAFNOSUPPORT || result == -EINTR || result == -EFAULT ||
           result == -EBADF;
}

/*
 * connect() failed. `once`: the first failure of a socket that came as far as a SYN is that SYN's own, which
 * was counted when it failed; else that shows by when the call began.
 */
static __always_inline int on_connect_return(struct attempt *attempt, long result, const int once)
{
    u64 sk = attempt->sk;
    u64 address = sk;
    u32 error = -result;
    struct fact fact = {.kind = FATE_CONNECTION, .count = 1, .error = error};
    struct flow_key flow = {.role = ROLE_CLIENT, .proto = IPPROTO_TCP, .port = attempt->port};

    if (is_no_attempt(result))
        return 0;
    struct sock_val *value = socks.lookup(&address);
    u8 returned = value ? value->returned : 1;
    if (value)
        value->returned = 1;
    if (value && value->flags & SOCK_ATTEMPT && value->state == TCP_CLOSE) {
        count_outcome(sk, value, outcome_of(error), error);
        return 0;
    }
    if (once ? !returned : value && value->opened_ns >= attempt->entered_ns)
        return 0; /* it came as far as a SYN: counted when that failed */
    if (attempt->family != AF_INET && attempt->family != AF_INET6)
        return 0;
    flow.family = attempt->family;
    flow.netns = read_netns(sk, 0);
    __builtin_memcpy(flow.peer, attempt->address, 16);
    own(&flow, 0);
    fact.reason = outcome_of(error);
    fact.time_ns = bpf_ktime_get_ns();
    count_fact(&flow, &fact);
    tell(sk, &flow, NULL, &fact);
    return 0;
}

/* `length`: shorter addresses are refused without an attempt. `family`: v6 hands mapped addresses to v4. */
static __always_inline int on_transport_connect(u64 sk, u64 target, u64 length, u16 family, long result)
{
    struct attempt attempt = {.sk = sk, .entered_ns = ~0ULL};

    if (is_no_attempt(result) || length < (family == AF_INET ? 16 : 24))
        return 0;
    read_target(&attempt, target, 0);
    return attempt.family == family ? on_connect_return(&attempt, result, 0) : 0;
}

PROGRAM(fexit__connect4, on_transport_connect(ctx[0], ctx[1], (u32)ctx[2], AF_INET, (int)ctx[3]))
PROGRAM(fexit__connect6, on_transport_connect(ctx[0], ctx[1], (u32)ctx[2], AF_INET6, (int)ctx[3]))

static __always_inline int leave_connect(long result)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct attempt *found = attempts.lookup(&thread);

    if (!found)
        return 0;
    struct attempt attempt = *found;
    attempts.delete(&thread);
    return on_connect_return(&attempt, result, 0);
}

/* tcp_v6_connect calls tcp_v4_connect for mapped addresses: then v4 sees it first and takes the entry away.
 */
int kp__connect(struct pt_regs *ctx)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct attempt attempt = {.sk = PT_REGS_PARM1(ctx), .entered_ns = ~0ULL};

    if ((u32)PT_REGS_PARM3(ctx) < 16)
        return 0;
    read_target(&attempt, PT_REGS_PARM2(ctx), 0);
    if (attempts.update(&thread, &attempt))
        lose(LOSS_CALLS_FULL, 1);
    return 0;
}

int krp__connect(struct pt_regs *ctx)
{
    return leave_connect((int)PT_REGS_RC(ctx));
}

/* Arguments of a syscall tracepoint begin at ctx[2], behind the common fields and the number. */
int tp__connect_enter(u64 *ctx)
{
    const int direct = 0;
    u64 thread = bpf_get_current_pid_tgid();
    u32 fd = ctx[2];
    u64 target = ctx[3], length = ctx[4];
    u64 file = file_of(fd);
    u64 sk = sock_of_file(file);

    if (!sk || length < 16 || READ(u16, sk, OFF_SOCK_PROTOCOL) != IPPROTO_TCP || is_raw(sk, direct))
        return 0;
    u64 socket = READ(u64, file, OFF_FILE_PRIVATE);
    if (READ(u32, socket, OFF_SOCKET_STATE) != SS_UNCONNECTED)
        return 0; /* asks how an earlier attempt goes */
    struct attempt attempt = {.sk = sk, .entered_ns = bpf_ktime_get_ns()};
    read_target(&attempt, target, 1);
    if (attempts.update(&thread, &attempt))
        lose(LOSS_CALLS_FULL, 1);
    return 0;
}

int tp__connect_exit(u64 *ctx)
{
    return leave_connect(ctx[2]);
}

/* The same without a look at the call's beginning: whoever is connected pays nothing. */
int tp__connect_failed(u64 *ctx)
{
    const int direct = 0;
    struct attempt attempt = {};

    if (is_no_attempt(ctx[2]))
        return 0;
    attempt.sk = sock_of_file(file_of(read_argument(OFF_REGS_ARG1)));
    if (!attempt.sk || read_argument(OFF_REGS_ARG3) < 16 ||
        READ(u16, attempt.sk, OFF_SOCK_PROTOCOL) != IPPROTO_TCP || is_raw(attempt.sk, direct))
        return 0;
    read_target(&attempt, read_argument(OFF_REGS_ARG2), 1);
    return on_connect_return(&attempt, ctx[2], 1);
}

/*
 * Once for every open file of every process, at start: owners of the sockets that are older than we are. The
 * file is held meanwhile, so its socket cannot be destroyed before the entry is there.
 */
static __always_inline int on_file(u64 task, u64 file)
{
    const int direct = 0;
    u64 sk = sock_of_file(file);
    u64 address = sk;
    struct sock_val fresh = {.claims = 1};
    struct proc_key process;

    if (!sk || READ(u16, sk, OFF_SOCK_PROTOCOL) != IPPROTO_TCP || is_raw(sk, direct))
        return 0;
    u16 family = READ(u16, sk, OFF_SOCK_FAMILY);
    u8 state = READ(u8, sk, OFF_SOCK_STATE);
    if ((family != AF_INET && family != AF_INET6) || state == TCP_CLOSE)
        return 0;
    identify(task, &process, direct);
    if (state == TCP_LISTEN) {
        u64 port = listener_key(sk, read_netns(sk, direct), direct);
        struct listener_val *listener = listeners.lookup(&port);

        if (listener && !listener->owner.tgid)
            listener->owner = process;
        return 0;
    }
    if (state == TCP_SYN_SENT)
        return 0;
    read_peer(sk, &fresh.key, guess_role(sk, read_netns(sk, direct), direct), IPPROTO_TCP, direct);
    fresh.key.tgid = process.tgid;
    fresh.key.start = process.start;
    fresh.key.exec = process.exec;
    follow(sk, &fresh, direct);
    note_first(sk, &fresh, 0);
    socks.insert(&address, &fresh);
    return 0;
}

int iter__file(u64 *ctx)
{
    u64 task = ctx[1], file = ctx[3];

    return task && file ? on_file(task, file) : 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Waits that ran their full timeout while a connection's answer was due: epoll, poll, select. (Receive calls
 * with SO_RCVTIMEO are seen by traffic.bpf.c.) What such a wait means is judged when the exchange ends:
 * endings.h.
 *
 * Hooks (kprobes or trampolines would spare all other system calls their 10 ns, but not every kernel has
 * them): epoll        sys_exit_epoll_wait, sys_exit_epoll_pwait   (tracepoints; the helper needs Linux 5.15)
 *   epoll_pwait2 sys_exit_epoll_pwait2                       (5.11)
 *   poll         sys_exit_poll
 *   ppoll        sys_enter_ppoll, sys_exit_ppoll             (the kernel overwrites the timeout, so it is
 * timed) select       sys_enter_x, sys_exit_x of select, pselect6 (likewise; and the set of descriptors) Only
 * an exit with result 0, which means that nothing came in time, goes any further: the sockets behind the
 * descriptors that were waited on for input are looked up, at most 96 (select: 256). Cost: see
 * benchmarks/README.md.
 *
 * Blind spots: the 97th (257th) descriptor and later; epoll within epoll; io_uring's own timeouts; 32-bit
 * programs.
 */

#define WAIT_LEAST_NS    10000000ULL /* shorter ones only look whether something is there */
#define WAIT_DESCRIPTORS 96
#define EPOLL_DEPTH      16                          /* a red-black tree of 96 nodes is at most 13 deep */
#define WAIT_IN          (0x1 | 0x2 | 0x40 | 0x2000) /* POLLIN, POLLPRI, POLLRDNORM, POLLRDHUP; as in epoll */
#define SELECT_WORDS     16                          /* FD_SETSIZE: 1024 descriptors */
#define SELECT_STEPS     (SELECT_WORDS + 256)        /* to the next word, or the next descriptor in it */

#if defined(__TARGET_ARCH_arm64) || defined(KERNOB_ARCH_ARM64)
#define CALL_SELECT ~0U /* there is none */
#else
#define CALL_SELECT 23 /* its timeout is in microseconds, that of pselect6 in nanoseconds */
#endif

/*
 * timed_waits: thread -> the select or ppoll it is in. Inserted at entry where there is a timeout, deleted at
 * exit; beyond its size such waits are not seen, and LOSS_CALLS_FULL counts them.
 */
struct timed_wait {
    u64 began_ns;
    u64 read[SELECT_WORDS];
};
BPF_TABLE("hash", u64, struct timed_wait, timed_waits, 4096);

/*
 * walks: where the walk through a wait's descriptors is: one per CPU, too large for the stack. Written and
 * read within one run of one program. What stands here may be any number to the verifier, which would follow
 * each on its own.
 */
struct walk {
    u64 word; /* of a select's set */
    u64 node; /* of an epoll's tree */
    u64 depth;
    u64 later[EPOLL_DEPTH];
    struct timed_wait wait;
};
BPF_PERCPU_ARRAY(walks, struct walk, 1);

/* The wait began before `until_ns` and nothing came: counts on those that had asked by then. */
static __always_inline void charge_wait(u64 file, u64 until_ns)
{
    u64 sk = sock_of_file(file);
    u64 address = sk;
    struct sock_val *value = sk ? socks.lookup(&address) : NULL;

    if (!value || value->key.role != ROLE_CLIENT || value->phase != PHASE_ASKED || value->sent_ns > until_ns)
        return;
    note_silent_wait(value);
}

/* In the order of a pre-order walk; what is to the right waits in `later`. */
static __always_inline void charge_epoll(u32 epoll, u64 until_ns)
{
    const int direct = 0;
    int zero = 0;
    struct walk *walk = walks.lookup(&zero);
    u64 file = file_of(epoll);

    if (!walk || !file)
        return;
    u64 eventpoll = READ(u64, file, OFF_FILE_PRIVATE);
    walk->node = READ(u64, eventpoll, OFF_EVENTPOLL_RBR);
    walk->depth = 0;
    for (int i = 0; i < WAIT_DESCRIPTORS; i++) {
        u64 node = walk->node;

        if (!node) {
            u64 depth = walk->depth - 1;

            if (depth >= EPOLL_DEPTH)
                break;
            walk->depth = depth;
            node = walk->later[depth];
        }
        u64 item = node - OFF_EPITEM_RBN;
        if (READ(u32, item, OFF_EPITEM_EVENTS) & WAIT_IN)
            charge_wait(READ(u64, item, OFF_EPITEM_FILE), until_ns);
        u64 right = READ(u64, node, OFF_RB_RIGHT);
        u64 depth = walk->depth;
        if (right && depth < EPOLL_DEPTH) {
            walk->later[depth] = right;
            walk->depth = depth + 1;
        }
        walk->node = READ(u64, node, OFF_RB_LEFT);
    }
}

/* struct pollfd: descriptor, events asked for, events that came. */
static __always_inline void charge_poll(u64 polled, u64 count, u64 until_ns)
{
    struct open_files open = open_files();

    for (int i = 0; i < WAIT_DESCRIPTORS; i++) {
        struct {
            s32 fd;
            u16 events;
            u16 came;
        } entry = {};

        if (i >= count || bpf_probe_read_user(&entry, sizeof(entry), (void *)(polled + 8 * i)))
            break;
        if (entry.fd >= 0 && entry.events & WAIT_IN)
            charge_wait(file_at(open, entry.fd), until_ns);
    }
}

/* Milliseconds as epoll_wait and poll take them; below 0 for ever. */
static __always_inline u64 whole_timeout_ns(u64 argument)
{
    s32 timeout_ms = argument;

    return timeout_ms > 0 ? (u64)timeout_ms * 1000000 : 0;
}

/* By a tracepoint's arguments: ctx[2] is the first of a call, or its result. A result of 0: it ran out. */

int tp__epoll_exit(u64 *ctx)
{
    if (ctx[2])
        return 0;
    u64 timeout_ns = whole_timeout_ns(read_argument(OFF_REGS_ARG4));
    if (timeout_ns >= WAIT_LEAST_NS)
        charge_epoll(read_argument(OFF_REGS_ARG1), bpf_ktime_get_ns() - timeout_ns);
    return 0;
}

int tp__epoll_pwait2_exit(u64 *ctx)
{
    u64 timeout[2] = {}; /* struct __kernel_timespec */

    if (ctx[2] || bpf_probe_read_user(timeout, sizeof(timeout), (void *)read_argument(OFF_REGS_ARG4)))
        return 0;
    u64 timeout_ns = timeout[0] * SECOND_NS + timeout[1];
    if (timeout_ns >= WAIT_LEAST_NS)
        charge_epoll(read_argument(OFF_REGS_ARG1), bpf_ktime_get_ns() - timeout_ns);
    return 0;
}

int tp__poll_exit(u64 *ctx)
{
    if (ctx[2])
        return 0;
    u64 timeout_ns = whole_timeout_ns(read_argument(OFF_REGS_ARG3));
    if (timeout_ns >= WAIT_LEAST_NS)
        charge_poll(read_argument(OFF_REGS_ARG1), read_argument(OFF_REGS_ARG2),
                    bpf_ktime_get_ns() - timeout_ns);
    return 0;
}

/* `timeout`: seconds and `unit` ns; shorter ones than a wait are not looked at, however long they take. */
static __always_inline int begin_timed(u64 timeout, u64 unit, u64 set, u64 count)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct timed_wait wait = {.began_ns = bpf_ktime_get_ns()};

    u64 limit[2] = {};

    if (!timeout || bpf_probe_read_user(limit, sizeof(limit), (void *)timeout) ||
        limit[0] * SECOND_NS + limit[1] * unit < WAIT_LEAST_NS)
        return 0;
    for (u32 word = 0; word < SELECT_WORDS; word++) { /* the kernel reads whole words, too */
        if (!set || 64 * word >= count)
            break;
        bpf_probe_read_user(&wait.read[word], 8, (void *)(set + 8 * word));
    }
    if (timed_waits.update(&thread, &wait))
        lose(LOSS_CALLS_FULL, 1);
    return 0;
}

/* Whether the wait of this thread ran out, after a while; what is known of it. */
static __always_inline int end_timed(u64 result, struct timed_wait *wait)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct timed_wait *found = timed_waits.lookup(&thread);

    if (!found)
        return 0;
    *wait = *found;
    timed_waits.delete(&thread);
    return !result && bpf_ktime_get_ns() - wait->began_ns >= WAIT_LEAST_NS;
}

int tp__ppoll_enter(u64 *ctx)
{
    return begin_timed(ctx[4], 1, 0, 0);
}

int tp__ppoll_exit(u64 *ctx)
{
    struct timed_wait wait;

    if (end_timed(ctx[2], &wait))
        charge_poll(read_argument(OFF_REGS_ARG1), read_argument(OFF_REGS_ARG2), wait.began_ns);
    return 0;
}

int tp__select_enter(u64 *ctx)
{
    u64 unit = (u32)ctx[1] == CALL_SELECT ? 1000 : 1;

    return begin_timed(ctx[6], unit, ctx[3], (s32)ctx[2] > 0 ? (s32)ctx[2] : 0);
}

/* The number of its lowest bit: how many ones there are below. */
static __always_inline u64 lowest_bit(u64 word)
{
    u64 below = (word & -word) - 1;

    /* else LLVM 19 sees what this is, and looks it up in a table, which no map holds */
    asm volatile("" : "+r"(below));
    below -= (below >> 1) & 0x5555555555555555;
    below = (below & 0x3333333333333333) + ((below >> 2) & 0x3333333333333333);
    below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return below * 0x0101010101010101 >> 56;
}

int tp__select_exit(u64 *ctx)
{
    int zero = 0;
    struct walk *walk = walks.lookup(&zero);

    if (!walk || !end_timed(ctx[2], &walk->wait))
        return 0;
    struct open_files open = open_files();
    walk->word = 0;
    for (int i = 0; i < SELECT_STEPS; i++) {
        u64 at = *(volatile u64 *)&walk->word;

        if (at >= SELECT_WORDS)
            break;
        u64 word = walk->wait.read[at];
        if (!word) {
            walk->word = at + 1;
            continue;
        }
        walk->wait.read[at] = word & (word - 1);
        charge_wait(file_at(open, 64 * at + lowest_bit(word)), walk->wait.began_ns);
    }
    return 0;
}

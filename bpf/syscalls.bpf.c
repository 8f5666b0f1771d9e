/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long system calls take, and which threads are in one now.
 *
 * Hooks: either the tracepoints of single calls (syscalls:sys_enter_x, sys_exit_x) or those of all
 * (sys_enter, sys_exit); probes/syscalls.py chooses by how many calls are watched. Besides, the end of each
 * thread and each exec, which take away what is known of a thread. Cost: see benchmarks/README.md.
 * Blind spots: calls that began before the agent; those of 32-bit programs (compat), which have numbers of
 * their own; what io_uring does for a program; the rest of a call that a stop signal cut in two
 * (restart_syscall).
 */

#define SYSCALLS_MAX  512
#define NAME_AFTER_NS 1000000000ULL

#if defined(__TARGET_ARCH_arm64) || defined(KERNOB_ARCH_ARM64)
#define OFF_REGS_SYSCALL 280       /* pt_regs.syscallno */
#define COMPAT_TASK      (1 << 22) /* TIF_32BIT in thread_info.flags */
#else
#define OFF_REGS_SYSCALL 120      /* pt_regs.orig_ax */
#define COMPAT_TASK      (1 << 1) /* TS_COMPAT in thread_info.status */
#endif

/* wanted_calls: number of a call -> 1 where it is watched. Written by user space before anything attaches. */
BPF_ARRAY(wanted_calls, u32, SYSCALLS_MAX);

/*
 * thread_slots: thread id modulo their number -> the watched call that the slot's thread is in. An array,
 * because that is found in 3 ns where a hash takes 35, twice a call. Taken at a thread's first watched call,
 * changed in place by each, given back at the thread's end and at exec; read by user space, for what is
 * blocked. Only the thread in `tid` writes to it (0: free), so no other one's numbers ever get in.
 */
BPF_ARRAY(thread_slots, struct thread_val, THREAD_SLOTS);

/*
 * slot_owners: slot -> its thread, so that of two threads that want one only one gets it. Inserted and
 * deleted with it, read by nobody. When full, LOSS_THREADS_FULL counts the calls that were not measured.
 */
BPF_TABLE("hash", u32, u32, slot_owners, 1024);

/*
 * threads: the same as thread_slots for threads whose slot was another's at their first watched call, by
 * thread id. When full, LOSS_THREADS_FULL, too.
 */
BPF_TABLE("hash", u32, struct thread_val, threads, 1024);

/*
 * syscalls: histograms by process and call, swapped and drained by user space like flows. When full, a call
 * goes to others_calls, without its process, and LOSS_SYSCALLS_FULL counts it.
 */
BPF_TABLE("hash", struct syscall_key, struct syscall_val, syscalls_idle, 1024);
BPF_ARRAY_OF_MAPS(syscalls, "syscalls_idle", 1);

/* others_calls: number of a call -> histogram, cumulative; read by user space, never reset. */
BPF_ARRAY(others_calls, struct duration_val, SYSCALLS_MAX);

/* blank_syscall: all zero, never written: too large for the stack to begin a histogram with. */
BPF_ARRAY(blank_syscall, struct syscall_val, 1);

static __always_inline int is_wanted(u32 number)
{
    u32 *wanted = wanted_calls.lookup(&number);

    return wanted && *wanted;
}

/* 32-bit calls have other numbers; the tracepoints of single calls leave them out by themselves. */
static __always_inline int is_compat(const int direct)
{
    u64 task = current_task(direct);

    return READ(u32, task, OFF_TASK_COMPAT) & COMPAT_TASK;
}

static __always_inline struct thread_val *slot_of(u32 tid)
{
    u32 slot = tid % THREAD_SLOTS;

    return thread_slots.lookup(&slot);
}

/* What is known of a thread; 0 where it made no watched call yet. */
static __always_inline struct thread_val *find_thread(u32 tid)
{
    struct thread_val *slot = slot_of(tid);

    return slot && slot->tid == tid ? slot : threads.lookup(&tid);
}

/* A thread's first watched call: who it is, once, since reading that is most of the cost. */
static __always_inline struct thread_val *begin_thread(u32 tid, u64 now)
{
    struct proc_key process;
    struct thread_val fresh = {.tid = tid};
    struct thread_val *slot = slot_of(tid);
    u32 number = tid % THREAD_SLOTS;

    identify(bpf_get_current_task(), &process, 0);
    fresh.key.tgid = process.tgid;
    fresh.key.start = process.start;
    fresh.key.exec = process.exec;
    fresh.name_ns = now + NAME_AFTER_NS;
    long refused = slot_owners.insert(&number, &tid);
    if (!refused && slot) {
        *slot = fresh;
        return slot;
    }
    if (refused != -EEXIST)
        return 0;
    threads.update(&tid, &fresh);
    return threads.lookup(&tid);
}

static __always_inline int on_enter(u32 number)
{
    u32 tid = bpf_get_current_pid_tgid();
    u64 now = bpf_ktime_get_ns();
    struct thread_val *thread = find_thread(tid);

    if (!thread)
        thread = begin_thread(tid, now);
    if (!thread) {
        lose(LOSS_THREADS_FULL, 1);
        return 0;
    }
    thread->key.number = number;
    thread->entered_ns = now;
    return 0;
}

/* A process that has lived for a second is remembered, so that it has a name should it end before the tick.
 */
static __always_inline void name_process(struct thread_val *thread)
{
    const int direct = 0;
    struct proc_key process = {
        .tgid = thread->key.tgid, .start = thread->key.start, .exec = thread->key.exec};
    u64 task = bpf_get_current_task();

    thread->name_ns = ~0ULL;
    u64 spaces = READ(u64, task, OFF_TASK_NSPROXY);
    u64 net = READ(u64, spaces, OFF_NSPROXY_NET);
    remember_process(&process, READ(u32, net, OFF_NET_INUM));
}

static __always_inline struct syscall_val *begin_histogram(void *map, const struct syscall_key *key)
{
    const int direct = 0;
    int zero = 0;
    struct syscall_val *blank = blank_syscall.lookup(&zero);

    if (blank)
        bpf_map_update_elem(map, key, blank, BPF_NOEXIST);
    struct syscall_val *value = bpf_map_lookup_elem(map, key);
    if (value) {
        u64 task = bpf_get_current_task();
        u64 leader = READ(u64, task, OFF_TASK_GROUP_LEADER);
        u32 tgid = key->tgid;
        struct life *life = lives.lookup(&tgid);
        value->image = life ? life->image : 0;
        bpf_probe_read_kernel_str(value->comm, sizeof(value->comm), (void *)(leader + OFF_TASK_COMM));
    }
    return value;
}

static __always_inline int on_exit_call(void)
{
    u32 tid = bpf_get_current_pid_tgid();
    struct thread_val *thread = find_thread(tid);

    if (!thread || !thread->entered_ns)
        return 0;
    u64 now = bpf_ktime_get_ns(), ns = now - thread->entered_ns;
    thread->entered_ns = 0;
    struct syscall_key key = thread->key;
    int zero = 0;
    void *map = syscalls.lookup(&zero);
    if (!map)
        return 0;
    struct syscall_val *value = bpf_map_lookup_elem(map, &key);
    if (!value)
        value = begin_histogram(map, &key);
    if (value) {
        observe(&value->durations, ns);
        if (now >= thread->name_ns)
            name_process(thread);
        return 0;
    }
    lose(LOSS_SYSCALLS_FULL, 1);
    u32 number = key.number;
    struct duration_val *others = others_calls.lookup(&number);
    if (others)
        observe(others, ns);
    return 0;
}

/* Tracepoints of single calls: after the common fields, the call's number. */

int tp__call_enter(u64 *ctx)
{
    return on_enter(ctx[1]);
}

int tp__call_exit(u64 *ctx)
{
    return on_exit_call();
}

/* Tracepoints of all calls: (registers, number), then (registers, result). */

static __always_inline int on_any_enter(u64 number, const int direct)
{
    return number < SYSCALLS_MAX && is_wanted(number) && !is_compat(direct) ? on_enter(number) : 0;
}

static __always_inline int on_any_exit(u64 registers, const int direct)
{
    u64 number = READ(u64, registers, OFF_REGS_SYSCALL);

    return number < SYSCALLS_MAX && is_wanted(number) ? on_exit_call() : 0;
}

PROGRAM(tp_btf__any_enter, on_any_enter(ctx[1], 1))
PROGRAM(raw_tp__any_enter, on_any_enter(ctx[1], 0))
PROGRAM(tp_btf__any_exit, on_any_exit(ctx[0], 1))
PROGRAM(raw_tp__any_exit, on_any_exit(ctx[0], 0))

/* In the thread that ends, or that begins another program (whose thread it was before comes as old_pid). */

static __always_inline int forget_thread(u32 tid)
{
    u32 number = tid % THREAD_SLOTS;
    struct thread_val *slot = slot_of(tid);

    if (slot && slot->tid == tid) {
        slot->entered_ns = 0;
        slot->tid = 0;
        slot_owners.delete(&number); /* last: from here on it is another's */
    } else {
        threads.delete(&tid);
    }
    return 0;
}

int raw_tp__thread_exit(u64 *ctx)
{
    return forget_thread(bpf_get_current_pid_tgid());
}

int raw_tp__thread_exec(u64 *ctx)
{
    forget_thread(ctx[1]);
    return forget_thread(bpf_get_current_pid_tgid());
}

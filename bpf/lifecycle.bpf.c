/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who came and went: every fork, exec and exit of processes, counted by program and way of ending.
 *
 * Hooks (tp_btf 5.5, raw tracepoint 4.17), all in the context of the process itself, a fork's in its
 * parent's: sched_process_fork, sched_process_exec, sched_process_exit.
 *
 * Threads are no processes: a fork with pid != tgid is left out, and a process ends with its last thread
 * (signal->live is 0), with the code that its parent is told. Counts are exact. Events are only told where
 * the end means failure, or where user space asks for more, and never more than a CPU's budget of them.
 * Cost: see benchmarks/README.md.
 *
 * Blind spots: kernel threads; the command line beyond ARGS_LEN bytes, and of a process whose first page of
 * arguments is not resident; a process older than the agent is known as /proc had it when the agent started.
 */

#define PF_FORKNOEXEC     0x00000040
#define PF_KTHREAD        0x00200000
#define SIGNAL_GROUP_EXIT 0x00000004
#define UPID_SIZE         16 /* struct upid: int nr, struct pid_namespace *ns */
#define SETTLED_NS        1000000000ULL

/* turns: how often what happened. Swapped and drained by user space like flows. When full, LOSS_TURNS_FULL.
 */
BPF_TABLE("hash", struct turn_key, u64, turns_idle, 1024);
BPF_ARRAY_OF_MAPS(turns, "turns_idle", 1);

/* turn_totals: enum turn_total -> count. Added to here, read by user space, never reset. */
BPF_ARRAY(turn_totals, u64, TOTAL_MAX);

/*
 * settled: tgid -> its fork_ns, of processes that have lived a second without exec and were counted as
 * started for it. Inserted by user space, deleted at exec or exit, or by user space where it came too late.
 */
BPF_TABLE("hash", u32, u64, settled, 1024);

/*
 * crashes: command lines that have failed, by parent. Inserted at the first failure, read by user space; the
 * least recently used goes when it is full: one that fails again and again is not it.
 */
BPF_TABLE("lru_hash", struct crash_key, struct crash_val, crashes, 1024);

/* broods: tgid and start of a parent -> how many of its children have ended; the least recently used goes. */
BPF_TABLE("lru_hash", u64, u64, broods, 1024);

/*
 * ended: tgid and start of processes that ended with several threads. Of threads that end at the same time
 * each may see that no other one runs: whoever inserts counts the end. Read by nobody else; the least
 * recently used goes.
 */
BPF_TABLE("lru_hash", u64, u8, ended, 1024);

/* life_events: a ring buffer of struct life_event. When full, LOSS_LIFE_EVENTS_FULL. See `events`. */
#ifdef HAVE_RINGBUF
struct life_events_table_t {
    int key;
    struct life_event leaf;
    void *(*ringbuf_reserve)(u64);
    void (*ringbuf_submit)(void *, u64);
    u32 max_entries;
};
__attribute__((section("maps/ringbuf"))) struct life_events_table_t life_events = {.max_entries = 1 << 19};
#endif

static __always_inline void add_total(int which)
{
    u64 *value = turn_totals.lookup(&which);

    if (value)
        __sync_fetch_and_add(value, 1);
}

static __always_inline void count_turn(u64 image, u32 kind, u32 code)
{
    struct turn_key key = {.image = image, .kind = kind, .code = code};
    int zero = 0;
    void *map = turns.lookup(&zero);

    if (!map)
        return;
    u64 *value = bpf_map_lookup_elem(map, &key);
    if (!value) {
        u64 none = 0;

        bpf_map_update_elem(map, &key, &none, BPF_NOEXIST);
        value = bpf_map_lookup_elem(map, &key);
    }
    if (value)
        __sync_fetch_and_add(value, 1);
    else
        lose(LOSS_TURNS_FULL, 1);
}

static __always_inline void note_parent(struct life *life, u64 task, const int direct)
{
    u64 parent = READ(u64, task, OFF_TASK_REAL_PARENT);
    u64 leader = READ(u64, parent, OFF_TASK_GROUP_LEADER);

    life->parent = READ(u32, parent, OFF_TASK_TGID);
    life->parent_start = READ(u64, leader, OFF_TASK_START_BOOTTIME) / TICK_NS;
}

static __always_inline int wants(int option)
{
    u32 *value = options.lookup(&option);

    return value && *value;
}

/* `task` is the process, `life` what is known of it. */
static __always_inline void tell_life(u64 task, const struct life *life, u32 kind, u32 code, u32 forked,
                                      u64 now, const int direct)
{
#ifdef HAVE_RINGBUF
    struct life_event *event = life_events.ringbuf_reserve(sizeof(*event));

    if (!event) {
        lose(LOSS_LIFE_EVENTS_FULL, 1);
        return;
    }
    u64 leader = READ(u64, task, OFF_TASK_GROUP_LEADER);
    u64 parent = READ(u64, leader, OFF_TASK_REAL_PARENT);
    event->time_ns = now;
    event->start_ns = READ(u64, leader, OFF_TASK_START_TIME);
    event->image = life->image;
    event->tgid = READ(u32, task, OFF_TASK_TGID);
    event->start = READ(u64, leader, OFF_TASK_START_BOOTTIME) / TICK_NS;
    event->parent = READ(u32, parent, OFF_TASK_TGID);
    event->kind = kind;
    event->code = code;
    event->forked = forked;
    event->args_len = life->args_len;
    event->pad = 0;
    __builtin_memcpy(event->comm, life->comm, sizeof(event->comm));
    __builtin_memcpy(event->exe, life->exe, sizeof(event->exe));
    __builtin_memcpy(event->args, life->args, sizeof(event->args));
    bpf_probe_read_kernel_str(event->parent_comm, sizeof(event->parent_comm),
                              (void *)(READ(u64, parent, OFF_TASK_GROUP_LEADER) + OFF_TASK_COMM));
    life_events.ringbuf_submit(event, 0);
#endif
}

static __always_inline void tell_if_asked(int option, u64 task, const struct life *life, u32 kind, u64 now,
                                          const int direct)
{
    if (wants(option) && afford(BUDGET_OTHERS, now, 10000000, 200))
        tell_life(task, life, kind, 0, kind == TURN_FORK, now, direct);
}

static __always_inline int on_fork(u64 child, const int direct)
{
    int zero = 0;
    u32 tgid = READ(u32, child, OFF_TASK_TGID);
    u32 caller = bpf_get_current_pid_tgid() >> 32;

    if (READ(u32, child, OFF_TASK_PID) != tgid || READ(u32, child, OFF_TASK_FLAGS) & PF_KTHREAD)
        return 0;
    struct life *life = life_draft.lookup(&zero);
    if (!life)
        return 0;
    u64 now = bpf_ktime_get_ns();
    add_total(TOTAL_FORKS);
    struct life *known = lives.lookup(&caller);
    if (known)
        *life = *known;
    else
        learn_program(life, now);
    life->start_ns = READ(u64, child, OFF_TASK_START_TIME);
    life->forked = FORKED;
    note_parent(life, child, direct);
    if (lives.update(&tgid, life))
        lose(LOSS_LIVES_FULL, 1);
    tell_if_asked(OPTION_FORK_EVENTS, child, life, TURN_FORK, now, direct);
    return 0;
}

static __always_inline int on_exec(u64 task, const int direct)
{
    int zero = 0;
    u32 tgid = READ(u32, task, OFF_TASK_TGID);
    struct life *life = life_draft.lookup(&zero);

    if (!life)
        return 0;
    u64 now = bpf_ktime_get_ns();
    add_total(TOTAL_EXECS);
    learn_program(life, now);
    life->start_ns = READ(u64, task, OFF_TASK_START_TIME);
    life->forked = FORKED_NOT;
    note_parent(life, task, direct);
    if (lives.update(&tgid, life))
        lose(LOSS_LIVES_FULL, 1);
    if (now - life->start_ns >= SETTLED_NS)
        settled.delete(&tgid);
    count_turn(life->image, TURN_EXEC, 0);
    tell_if_asked(OPTION_EXEC_EVENTS, task, life, TURN_EXEC, now, direct);
    return 0;
}

/*
 * Whether an end means that something went wrong. As for systemd, SIGHUP, SIGINT, SIGPIPE and SIGTERM are a
 * way of being asked to end; a program that ends by itself for them says so by 128 + the signal.
 */
static __always_inline int has_failed(u32 code)
{
    u32 signal = code & 0x7f, value = code >> 8 & 0xff;

    if (!signal && value > 128)
        signal = value - 128;
    return code && signal != 1 && signal != 2 && signal != 13 && signal != 15;
}

/* Whether it is the first process of its PID namespace, below the host's. */
static __always_inline int begins_namespace(u64 leader)
{
    const int direct = 0;
    u64 pid = READ(u64, leader, OFF_TASK_THREAD_PID);
    u32 level = READ(u32, pid, OFF_PID_LEVEL);

    return level && READ(u32, pid, OFF_PID_NUMBERS + UPID_SIZE * (u64)level) == 1;
}

/* A container is another control group each time it starts, under another parent: its name stays. */
static __always_inline u64 hash_of_container(u64 task)
{
    const int direct = 0;
    int zero = 0;
    u32 is_v1;
    struct proc_val *value = image_draft.lookup(&zero);

    if (!value)
        return 0;
    u64 node = cgroup_node(task, &is_v1);
    __builtin_memset(value->cgroup0, 0, sizeof(value->cgroup0));
    bpf_probe_read_kernel_str(value->cgroup0, sizeof(value->cgroup0),
                              (void *)READ(u64, node, OFF_KERNFS_NODE_NAME));
    return value->cgroup0[0] ? mix_text(3, value->cgroup0, sizeof(value->cgroup0)) : 0;
}

static __always_inline u64 count_sibling(u32 parent, u32 parent_start)
{
    u64 key = (u64)parent << 32 | parent_start, one = 1;
    u64 *value = broods.lookup(&key);

    if (value) {
        __sync_fetch_and_add(value, 1); /* its result needs Linux 5.12 and LLVM 12 */
        return *(volatile u64 *)value;
    }
    broods.update(&key, &one);
    return 1;
}

static __always_inline void note_code(struct crash_val *value, u32 code)
{
#pragma unroll
    for (int i = 0; i < CRASH_CODES; i++) {
        if (value->counts[i] && value->codes[i] != code)
            continue;
        value->codes[i] = code;
        value->counts[i]++;
        return;
    }
}

/* Notes an end that may be part of a crash loop; whether it is, user space judges. */
static __always_inline void note_end(u64 leader, u32 tgid, const struct life *life, u32 code, u32 forked,
                                     u64 now)
{
    const int direct = 0;
    struct crash_key key = {.line = life->line, .parent = life->parent, .parent_start = life->parent_start};
    u64 siblings = count_sibling(key.parent, key.parent_start);
    u64 container = begins_namespace(leader) ? hash_of_container(leader) : 0;

    if (container) {
        key.line = container;
        key.parent = key.parent_start = 0;
    } else if (READ(u32, READ(u64, leader, OFF_TASK_REAL_PARENT), OFF_TASK_TGID) != life->parent) {
        return; /* nobody is there who could start it again */
    }
    struct crash_val *value = crashes.lookup(&key);
    if (!has_failed(code)) {
        if (value)
            __sync_fetch_and_add(&value->successes, 1);
        return;
    }
    if (!value) {
        struct crash_val fresh = {.image = life->image, .siblings_before = siblings - 1};

        crashes.insert(&key, &fresh);
        value = crashes.lookup(&key);
        if (!value)
            return;
    }
    if (value->last_ns && life->start_ns >= value->last_ns)
        __sync_fetch_and_add(&value->restarts, 1);
    __sync_fetch_and_add(&value->failures, 1);
    __sync_fetch_and_add(&value->life_ns, now - life->start_ns);
    value->image = life->image;
    value->last_ns = now;
    value->siblings = siblings;
    value->tgid = tgid;
    value->forked = forked;
    note_code(value, code);
}

/* How a process ended: what its parent is told, and whether memory ran out. */
static __always_inline u32 exit_code(u64 leader, u64 signal, const int direct)
{
    u32 code = READ(u32, signal, OFF_SIGNAL_FLAGS) & SIGNAL_GROUP_EXIT
                   ? READ(u32, signal, OFF_SIGNAL_GROUP_EXIT_CODE)
                   : READ(u32, leader, OFF_TASK_EXIT_CODE);

    code &= 0xffff;
    if ((code & 0x7f) == 9 && READ(u64, signal, OFF_SIGNAL_OOM_MM))
        code |= EXIT_OOM;
    return code;
}

/* Whether another thread, which ended at the same time, has counted the end already. */
static __always_inline int has_ended(u64 leader, u32 tgid, const int direct)
{
    u64 key = (u64)tgid << 32 | (u32)(READ(u64, leader, OFF_TASK_START_BOOTTIME) / TICK_NS);
    u8 one = 1;

    return ended.insert(&key, &one) == -EEXIST;
}

static __always_inline int on_end(u64 task, const int direct)
{
    int zero = 0;
    u64 signal = READ(u64, task, OFF_TASK_SIGNAL);
    u64 leader = READ(u64, task, OFF_TASK_GROUP_LEADER);
    u32 tgid = READ(u32, task, OFF_TASK_TGID), flags = READ(u32, leader, OFF_TASK_FLAGS);

    if (READ(u32, signal, OFF_SIGNAL_LIVE) || flags & PF_KTHREAD)
        return 0;
    struct life *life = lives.lookup(&tgid);
    if ((!life || READ(u32, signal, OFF_SIGNAL_NR_THREADS) > 1) && has_ended(leader, tgid, direct))
        return 0;
    u64 now = bpf_ktime_get_ns();
    u32 code = exit_code(leader, signal, direct), forked = !!(flags & PF_FORKNOEXEC);
    add_total(TOTAL_EXITS);
    if (!life) { /* its beginning was before our time, or not kept */
        life = life_draft.lookup(&zero);
        if (!life)
            return 0;
        learn_program(life, now);
        life->start_ns = 0;
    }
    count_turn(life->image, TURN_EXIT, code);
    if (life->start_ns) {
        if (forked) /* whoever settles it from now on finds that it ends (kernob/probes/lifecycle.py) */
            life->forked = FORKED_ENDS;
        barrier(); /* and its age is asked after that */
        if (forked && (bpf_ktime_get_ns() - life->start_ns < SETTLED_NS || settled.delete(&tgid)))
            count_turn(life->image, TURN_FORK, 0);
        note_end(leader, tgid, life, code, forked, now);
    }
    if (has_failed(code) ? afford(BUDGET_FAILURES, now, 10000000, 500)
                         : wants(OPTION_EXIT_EVENTS) && afford(BUDGET_OTHERS, now, 10000000, 200))
        tell_life(task, life, TURN_EXIT, code, forked, now, direct);
    else if (has_failed(code))
        lose(LOSS_ENDS_UNTOLD, 1);
    lives.delete(&tgid);
    return 0;
}

PROGRAM(tp_btf__life_fork, on_fork(ctx[1], 1))
PROGRAM(raw_tp__life_fork, on_fork(ctx[1], 0))
PROGRAM(tp_btf__life_exec, on_exec(ctx[0], 1))
PROGRAM(raw_tp__life_exec, on_exec(ctx[0], 0))
PROGRAM(tp_btf__life_exit, on_end(ctx[0], 1))
PROGRAM(raw_tp__life_exit, on_end(ctx[0], 0))

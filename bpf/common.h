/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading kernel memory, naming the current process, adding to a flow: what every probe shares.
 *
 * Struct fields are read at byte offsets that user space takes from BTF and passes as -D OFF_*.
 * `direct` is a compile-time constant of each program: 1 where the verifier knows the pointer's
 * type (tp_btf, fentry, fexit) and lets a plain load through, 0 where bpf_probe_read_kernel must do.
 */

#define READ(type, base, off)                                                                                \
    ({                                                                                                       \
        type value_ = 0;                                                                                     \
        if (direct)                                                                                          \
            value_ = *(volatile type *)((base) + (off));                                                     \
        else                                                                                                 \
            read_kernel(&value_, sizeof(value_), (void *)((base) + (off)));                                  \
        value_;                                                                                              \
    })

/* Memory is written in the order of the text across it. */
#define barrier()     asm volatile("" ::: "memory")

#define AF_INET       2
#define AF_INET6      10
#define IPPROTO_TCP   6
#define IPPROTO_UDP   17
#define IPPROTO_MPTCP 262
#define SOCK_DONE     (1 << 1)    /* bit of enum sock_flags */
#define TICK_NS       10000000ULL /* unit of /proc/PID/stat's start time */
#define EEXIST        17

#if defined(__TARGET_ARCH_arm64) || defined(KERNOB_ARCH_ARM64)
#define OFF_REGS_ARG1 272 /* pt_regs.orig_x0 */
#define OFF_REGS_ARG2 8
#define OFF_REGS_ARG3 16
#define OFF_REGS_ARG4 24
#else
#define OFF_REGS_ARG1 112 /* pt_regs.di, si, dx, r10 */
#define OFF_REGS_ARG2 104
#define OFF_REGS_ARG3 96
#define OFF_REGS_ARG4 56
#endif

/* Helpers 137, 158 and 175, absent from the oldest compiler frontends' own list. */
static u64 (*skc_to_tcp_sock)(u64 sk) = (void *)137;
static u64 (*current_task_btf)(void) = (void *)158;
/*
 * bpf_probe_read_kernel under a name of ours: without CAP_SYSLOG, which shows /proc/kallsyms, BCC takes the
 * kernel for an old one and calls bpf_probe_read in its place, which programs on packets may not.
 */
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static u64 (*task_pt_regs)(u64 task) = (void *)175;

/*
 * procs: who is behind a tgid. Inserted at a process's first network call, marked by process.bpf.c
 * at its end, read and deleted by user space. When full, the process is known by PID only.
 */
BPF_TABLE("hash", struct proc_key, struct proc_val, procs, 1024);

/*
 * flows: bytes that no live socket holds any more (closed TCP, UDP, callers that share a socket).
 * flows[0] is the map in use; user space swaps it for the idle one, which waits for every running
 * program, then drains it at leisure: no update is lost and none is read twice. When full, the
 * bytes are counted in losses.
 */
BPF_TABLE("hash", struct flow_key, struct flow_val, flows_idle, 1024);
BPF_ARRAY_OF_MAPS(flows, "flows_idle", 1);

/* losses: enum loss -> count. Added to here, read by user space, never reset. */
BPF_ARRAY(losses, u64, LOSS_MAX);

/*
 * latest: processes that each CPU remembered last, in slots by tgid; spares most lookups in procs. User space
 * removes a process from procs only after its end, so a match is never stale.
 */
#define LATEST 8
BPF_PERCPU_ARRAY(latest, struct proc_key, LATEST);

/* scratch: one proc_val per CPU; it is too large for the stack. */
BPF_PERCPU_ARRAY(scratch, struct proc_val, 1);

static __always_inline void lose(int index, u64 count)
{
    if (!count) /* adding a constant 0 becomes an instruction that LLVM before 12 cannot emit for BPF */
        return;
    u64 *value = losses.lookup(&index);
    if (value)
        __sync_fetch_and_add(value, count);
}

/*
 * How far the application has read: tcp_sock.copied_seq, less the FIN, which takes a number too. It has
 * been read once everything in order was (copied_seq == rcv_nxt) and tcp_fin() has set SOCK_DONE.
 */
static __always_inline u32 read_copied_seq(u64 sk, const int direct)
{
    u64 tcp = direct ? skc_to_tcp_sock(sk) : sk;
    if (!tcp)
        return 0;
    u32 copied = READ(u32, tcp, OFF_TCP_COPIED_SEQ);
    u64 flags = READ(u64, sk, OFF_SOCK_FLAGS);
    if (flags & SOCK_DONE && copied == READ(u32, tcp, OFF_TCP_RCV_NXT))
        copied--;
    return copied;
}

static __always_inline u64 current_task(const int direct)
{
    return direct ? current_task_btf() : bpf_get_current_task();
}

/* Whether any program may ask for the current task with its type (Linux 5.11). */
#ifdef HAVE_TYPED_TASK
#define TYPED_TASK 1
#else
#define TYPED_TASK 0
#endif

/* An argument of the system call that the current task is in (Linux 5.15). */
static __always_inline u64 read_argument(int offset)
{
    const int direct = 0;

    return READ(u64, task_pt_regs(current_task_btf()), offset);
}

/* Names the program image `task` runs: see struct proc_key. */
static __always_inline void identify(u64 task, struct proc_key *key, const int direct)
{
    u64 leader = READ(u64, task, OFF_TASK_GROUP_LEADER);

    key->tgid = READ(u32, task, OFF_TASK_TGID);
    key->start = READ(u64, leader, OFF_TASK_START_BOOTTIME) / TICK_NS;
    key->exec = READ(u16, task, OFF_TASK_SELF_EXEC_ID);
    key->pad = 0;
}

/* Copies one control group's name; returns its parent, or 0 behind the root. */
static __always_inline u64 capture_node(u64 node, char *name)
{
    const int direct = 0;

    name[0] = 0;
    if (!node)
        return 0;
    bpf_probe_read_kernel_str(name, CGROUP_LEN, (void *)READ(u64, node, OFF_KERNFS_NODE_NAME));
    return READ(u64, node, OFF_KERNFS_NODE_PARENT);
}

/*
 * A task's control group, as kernfs_node. The root's name is empty, so a process in the root of the unified
 * hierarchy is looked up in a v1 controller's instead.
 */
static __always_inline u64 cgroup_node(u64 task, u32 *is_v1)
{
    const int direct = 0;
    u64 set = READ(u64, task, OFF_TASK_CGROUPS);
    u64 node = READ(u64, READ(u64, set, OFF_CSS_SET_DFL_CGRP), OFF_CGROUP_KN);

    *is_v1 = 0;
#ifdef CGROUP_V1_SUBSYS
    if (!READ(u64, node, OFF_KERNFS_NODE_PARENT)) {
        u64 css = READ(u64, set, OFF_CSS_SET_SUBSYS + 8 * CGROUP_V1_SUBSYS);
        u64 legacy = READ(u64, READ(u64, css, OFF_CSS_CGROUP), OFF_CGROUP_KN);

        if (legacy && READ(u64, legacy, OFF_KERNFS_NODE_PARENT)) {
            node = legacy;
            *is_v1 = 1;
        }
    }
#endif
    return node;
}

/* Control group names from the leaf upwards. */
static __always_inline void capture_cgroup(u64 task, struct proc_val *value)
{
    const int direct = 0;
    u64 node = cgroup_node(task, &value->cgroup_v1);

    value->cgroup_id = READ(u64, node, OFF_KERNFS_NODE_ID);
    node = capture_node(node, value->cgroup0);
    node = capture_node(node, value->cgroup1);
    node = capture_node(node, value->cgroup2);
    capture_node(node, value->cgroup3);
}

static __always_inline void capture_program(u64 task, struct proc_val *value)
{
    const int direct = 0;
    u64 leader = READ(u64, task, OFF_TASK_GROUP_LEADER);
    u64 mm = READ(u64, task, OFF_TASK_MM);

    bpf_probe_read_kernel_str(value->comm, sizeof(value->comm), (void *)(leader + OFF_TASK_COMM));
    value->exe[0] = 0;
    value->args_len = 0;
    if (!mm) /* kernel thread */
        return;
    u64 file = READ(u64, mm, OFF_MM_EXE_FILE);
    u64 dentry = READ(u64, file, OFF_FILE_DENTRY);
    bpf_probe_read_kernel_str(value->exe, EXE_LEN, (void *)READ(u64, dentry, OFF_DENTRY_NAME));

    u64 start = READ(u64, mm, OFF_MM_ARG_START);
    u64 length = READ(u64, mm, OFF_MM_ARG_END) - start;
    u32 wanted = length > ARGS_LEN ? ARGS_LEN : length;
    /* fails, and leaves no arguments, where that page is not resident */
    if (wanted && !bpf_probe_read_user(value->args, wanted, (void *)start))
        value->args_len = wanted;
}

/* Remembers who the current process is, once, in its own context. */
static __always_inline void remember_process(struct proc_key *key, u32 netns)
{
    const int direct = 0;
    int zero = 0, slot = key->tgid % LATEST;

    struct proc_key *last = latest.lookup(&slot);
    if (last && last->tgid == key->tgid && last->start == key->start && last->exec == key->exec)
        return;
    if (last)
        *last = *key;
    if (procs.lookup(key))
        return;
    struct proc_val *value = scratch.lookup(&zero);
    if (!value)
        return;
    u64 task = bpf_get_current_task();
    value->exit_ns = 0;
    value->netns = netns;
    value->ppid = READ(u32, READ(u64, task, OFF_TASK_REAL_PARENT), OFF_TASK_TGID);
    capture_program(task, value);
    capture_cgroup(task, value);
    if (procs.insert(key, value) && !procs.lookup(key)) /* a sibling thread may have been first */
        lose(LOSS_PROCS_FULL, 1);
}

/* `answers` and `segments` are those of a socket that goes away, else 0. */
static __always_inline void add_to_flow(struct flow_key *key, u64 tx, u64 rx, u64 answers, u64 segments)
{
    int zero = 0;
    void *map = flows.lookup(&zero);
    if (!map)
        return;
    struct flow_val *value = bpf_map_lookup_elem(map, key);
    if (!value) {
        struct flow_val fresh = {};
        bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST);
        value = bpf_map_lookup_elem(map, key);
    }
    if (!value) {
        lose(LOSS_FLOWS_FULL, 1);
        lose(LOSS_TX_BYTES, tx);
        lose(LOSS_RX_BYTES, rx);
        return;
    }
    if (tx)
        __sync_fetch_and_add(&value->tx, tx);
    if (rx)
        __sync_fetch_and_add(&value->rx, rx);
    if (answers)
        __sync_fetch_and_add(&value->answers, answers);
    if (segments)
        __sync_fetch_and_add(&value->segments, segments);
}

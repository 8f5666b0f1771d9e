/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Marks the end of the processes that traffic.bpf.c has seen, so that user space need not ask /proc.
 *
 * Hook: sched_process_exit (raw tracepoint, every supported kernel), once per thread; the work is
 * done for the last one. Cost: see benchmarks/README.md.
 * Blind spots: a process that did network I/O, then exec'ed and did none is known by its newer
 * image only; user space finds such a leftover by /proc.
 */

static __always_inline int on_exit(u64 task, const int direct)
{
    u64 signal = READ(u64, task, OFF_TASK_SIGNAL);
    struct proc_key key;

    /* threads that still run; the leader may end long before its process does */
    if (READ(u32, signal, OFF_SIGNAL_LIVE))
        return 0;
    identify(task, &key, direct);
    struct proc_val *value = procs.lookup(&key);
    if (value)
        value->exit_ns = bpf_ktime_get_ns();
    return 0;
}

int tp_btf__exit(u64 *ctx)
{
    return on_exit(ctx[0], 1);
}

int raw_tp__exit(u64 *ctx)
{
    return on_exit(ctx[0], 0);
}

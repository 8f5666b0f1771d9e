/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every key and value that crosses from the kernel to Kernob, once. User space derives its record
 * types from what the compiler reports of these; it never declares them again.
 * Padded by hand; sizes asserted below.
 */

/* One program image of one process: survives PID reuse (start) and exec (exec). */
struct proc_key {
    u32 tgid;
    u32 start; /* group leader's start since boot, 10 ms units, modulo 2^32 */
    u16 exec;  /* low bits of task_struct.self_exec_id */
    u16 pad;
};

/*
 * A process and one peer. For role client, port is the peer's and local stays zero; for role server,
 * port and local are our own and peer is the client's address without its port.
 */
struct flow_key {
    u32 tgid;
    u32 start;
    u16 exec;
    u16 port;  /* host byte order */
    u8 family; /* 2 or 10; v4-mapped addresses are 2 */
    u8 role;   /* enum role */
    u8 proto;  /* 6 or 17; MPTCP (262) counts as 6 */
    u8 pad;
    u32 netns; /* inode number */
    u8 peer[16];
    u8 local[16];
};

struct flow_val {
    u64 tx;
    u64 rx;
};

/* One TCP socket and the process that owns its byte counters. */
struct sock_val {
    struct flow_key key; /* key.tgid 0: not claimed yet */
    u32 claims;          /* how many times an owner was sought, see claim() */
    u32 copied;          /* tcp_sock.copied_seq up to which received bytes were counted */
    u32 copied_known;    /* whether `copied` means anything yet */
    u64 tx;
    u64 rx;
};

#define EXE_LEN    64
#define CGROUP_LEN 96
#define ARGS_LEN   192

/* Who a process is, captured at its first network call, in its own context. */
struct proc_val {
    u64 exit_ns; /* CLOCK_MONOTONIC of its end, 0 while it lives */
    u64 cgroup_id;
    u32 ppid;
    u32 netns;
    u32 args_len;
    u32 cgroup_v1; /* 1: the names below are from a cgroup v1 hierarchy */
    char comm[16];
    char exe[EXE_LEN];
    char cgroup0[CGROUP_LEN]; /* the leaf, then its parents */
    char cgroup1[CGROUP_LEN];
    char cgroup2[CGROUP_LEN];
    char cgroup3[CGROUP_LEN];
    char args[ARGS_LEN];
};

enum role { ROLE_UNKNOWN, ROLE_CLIENT, ROLE_SERVER };

/* Indices of the losses array: events, then bytes each way that no map had room for. */
enum loss {
    LOSS_SOCKS_FULL, /* socket state not kept: bytes still counted, straight into flows */
    LOSS_FLOWS_FULL,
    LOSS_PROCS_FULL, /* process known by PID only */
    LOSS_TX_BYTES,
    LOSS_RX_BYTES,
    LOSS_MAX
};

_Static_assert(sizeof(struct proc_key) == 12, "proc_key");
_Static_assert(sizeof(struct flow_key) == 52, "flow_key");
_Static_assert(sizeof(struct flow_val) == 16, "flow_val");
_Static_assert(sizeof(struct sock_val) == 80, "sock_val");
_Static_assert(sizeof(struct proc_val) == 688, "proc_val");

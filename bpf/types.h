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
 * A process and one peer. For role client, port is the peer's; for role server,
 * port and local are our own and peer is the client's address without its port.
 * A client's local has, in its first 8 bytes, the id of the hostname that the process had for the peer when
 * it connected (names.bpf.c), else 0.
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
    u64 answers;  /* as in sock_val, of sockets that were closed */
    u64 segments; /* likewise */
};

/* Where the current exchange of a connection stands. Only the side that connected asks. */
enum phase { PHASE_IDLE, PHASE_ASKED, PHASE_ANSWERED };

/* Bits of sock_val.flags. */
enum sock_flag {
    SOCK_ATTEMPT = 1,   /* connecting: its outcome is not counted yet */
    SOCK_COUNTED = 2,   /* its connection has been counted */
    SOCK_OLDER = 4,     /* open before our time, it may have had answers */
    SOCK_STALLED = 8,   /* the last send met a closed window */
    SOCK_HEARD = 16,    /* it received bytes once */
    SOCK_THREADED = 32, /* one thread sends, another receives: their hooks may come in the wrong order */
    SOCK_MPTCP = 64     /* the connection above subflows: no TCP socket */
};

/*
 * How the peer closed while an exchange was open, until a call meets that end. Early: nothing had been asked
 * as far as was known, but a send had not returned.
 */
enum ended { ENDED_NOT, ENDED_BY_FIN, ENDED_BY_RST, ENDED_EARLY_FIN, ENDED_EARLY_RST };

/* One TCP socket and the process that owns its byte counters. */
struct sock_val {
    struct flow_key key; /* key.tgid 0: not claimed yet */
    u32 claims;          /* how many times an owner was sought, see count_slowly() */
    u32 copied;          /* tcp_sock.copied_seq up to which received bytes were counted */
    u8 copied_known;     /* whether `copied` means anything yet */
    u8 state;            /* TCP state: ESTABLISHED 1, SYN_SENT 2, CLOSE_WAIT 8 ...; 0 unknown */
    u8 phase;            /* enum phase */
    u8 flags;            /* enum sock_flag */
    u64 tx;
    u64 rx;
    u64 asked_ns;         /* first send of the exchange */
    u64 sent_ns;          /* last send while asked */
    u64 opened_ns;        /* client: its SYN; server: established; 0 before our time */
    u64 rtt_ns;           /* when the round trip time was last sampled */
    u32 asked;            /* bytes asked in the exchange, as far as send calls have returned */
    u32 answers;          /* exchanges answered so far */
    struct proc_key user; /* last user if not the owner; before the first use, who accepted or listens */
    u16 sport;            /* ours; both known from ESTABLISHED on */
    u16 dport;            /* the peer's */
    u8 local[16];         /* our address, family as in key */
    u8 syn_retransmits;   /* of an attempt that still waits */
    u8 waits_out;         /* receive calls that ran their full SO_RCVTIMEO since the last byte */
    u8 silent_waits;      /* waits of any kind that ran their full timeout since the exchange was asked */
    u8 ended;             /* enum ended; no flag, since softirqs write it while a call may write flags */
    u32 receiver;         /* thread that received last */
    u32 retrans_seen;     /* tcp_sock.total_retrans as charged so far */
    u32 retransmits;      /* segments since we know it */
    u32 window_count;     /* segments that no event has told yet */
    u32 segments_seen;    /* tcp_sock.data_segs_out as counted so far */
    u64 window_first_ns;  /* of those */
    u64 window_last_ns;
    u64 window_told_ns; /* when an event last told */
    u64 ended_ns;       /* when the peer closed */
    u32 heard;          /* jiffies of the last receive, modulo 2^32 */
    u32 asked_seq;      /* sequence number of the exchange's first byte; `asked` behind it what comes next */
    u64 segments;       /* data segments sent since we know it; kept for the side that connected */
    u32 http_end;       /* see http.h, for these three */
    u8 http;
    u8 http_seen;
    u8 returned; /* 1: a connect() has said that it failed, what the next one says is news */
    u8 told;     /* error of a connection that the network gave up, as a call was told it; 0: none was */
};

/* Listening sockets of one port, and who listens: the last process that began to. */
struct listener_val {
    u64 count;
    struct proc_key owner; /* tgid 0: unknown */
    u32 pad;
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
    LOSS_FATES_FULL,       /* facts about connections not counted */
    LOSS_DURATIONS_FULL,   /* durations not counted */
    LOSS_EVENTS_FULL,      /* what `events` had no room for: counted in fates all the same */
    LOSS_SYSCALLS_FULL,    /* calls counted without their process */
    LOSS_THREADS_FULL,     /* calls not measured */
    LOSS_LOOKUPS_FULL,     /* answers of resolvers the ring had no room for */
    LOSS_LIVES_FULL,       /* processes whose beginning was not kept: their end is charged to nobody */
    LOSS_IMAGES_FULL,      /* programs whose name was not kept: their turns are charged to nobody */
    LOSS_TURNS_FULL,       /* starts and exits not counted */
    LOSS_ENDS_UNTOLD,      /* ends beyond what is told one by one: counted in turns all the same */
    LOSS_CALLS_FULL,       /* calls that were not followed to their return */
    LOSS_LIFE_EVENTS_FULL, /* what `life_events` had no room for: counted in turns all the same */
    LOSS_MAX
};

/* What happened to connections: enum fate, and for some what exactly (fate_key.reason). */
enum fate {
    FATE_CONNECTION,
    FATE_RETRANSMIT,
    FATE_RESET,
    FATE_DROP,
    FATE_STALL,
    FATE_TIMEOUT,
    FATE_SILENCE, /* exchanges that stayed unanswered while the process waited its full time */
    FATE_WAIT     /* those waits */
};
enum outcome {
    OUTCOME_OK,
    OUTCOME_REFUSED,
    OUTCOME_TIMED_OUT,
    OUTCOME_RESET,
    OUTCOME_HOST_UNREACHABLE,
    OUTCOME_NET_UNREACHABLE,
    OUTCOME_CANCELLED,
    OUTCOME_OTHER
};
enum drop { DROP_UNANSWERED, DROP_RESET_MID_RESPONSE, DROP_EOF_MID_RESPONSE, DROP_STALLED_MID_RESPONSE };
enum closed_by { CLOSED_BY_PEER, CLOSED_BY_SELF, CLOSED_BY_NETWORK };
enum direction { DIRECTION_SENT, DIRECTION_RECEIVED };
/* FATE_TIMEOUT: data that was never acknowledged, or probes of an idle connection that were not. */
enum timeout { TIMEOUT_UNACKNOWLEDGED, TIMEOUT_KEEPALIVE };
/* FATE_RETRANSMIT: data of an established connection, or what opens and closes one. */
enum resent { RESENT_DATA, RESENT_OTHER };

/*
 * A count about connections of one flow. key.tgid is that of the latest user; 0 where no process has to do
 * with it (a RST for a closed port: then everything but netns, family and proto is 0, too).
 */
struct fate_key {
    struct flow_key flow;
    u8 kind;   /* enum fate */
    u8 reason; /* CONNECTION: enum outcome; DROP: enum drop; TIMEOUT: enum timeout; RETRANSMIT: enum resent */
    u8 side;   /* RESET: enum direction; DROP: enum closed_by */
    u8 idle;   /* RESET: 1 when no exchange was open */
};

enum duration { DURATION_CONNECT, DURATION_RESPONSE, DURATION_RTT };
struct duration_key {
    struct flow_key flow;
    u8 kind; /* enum duration */
    u8 pad[3];
};

/*
 * Bucket i counts durations in (2^((i-1)/4 - 20), 2^(i/4 - 20)] seconds: four an octave, bounds as in OTLP's
 * histograms of scale 2 (kernob/state/buckets.py). Bucket 0 has all that is shorter, the last one all longer.
 */
#define DURATION_BUCKETS 112
struct duration_val {
    u64 sum_ns;
    u64 count;
    u32 buckets[DURATION_BUCKETS];
};

/* One watched system call of one process; the first three as in proc_key. */
struct syscall_key {
    u32 tgid;
    u32 start;
    u16 exec;
    u16 number;
};
struct syscall_val {
    struct duration_val durations;
    u64 image;     /* its program: key of images, 0: unknown. Both for one that is gone when this is read */
    char comm[16]; /* the process's name */
};

/* A thread that made a watched call: which one it made last, and whether it is in it still. */
#define THREAD_SLOTS 32768
struct thread_val {
    u64 entered_ns; /* CLOCK_MONOTONIC; 0 between calls */
    u64 name_ns;    /* when its process is to be remembered: a second from its first call */
    struct syscall_key key;
    u32 tid; /* 0: none, the slot is free */
};

/* What happened to one connection, when. */
struct tcp_event {
    u64 time_ns; /* CLOCK_MONOTONIC */
    u64 sk;      /* the connection's identity while it lives */
    struct flow_key flow;
    u16 sport; /* ours, then the peer's */
    u16 dport;
    u8 kind; /* these four as in fate_key; CONNECTION with OK: side 0 opened, 1 closed */
    u8 reason;
    u8 side;
    u8 idle;
    u32 count; /* RETRANSMIT: segments */
    u32 error; /* errno, 0 none */
    u32 pad;
    u64 tx; /* bytes of the connection so far, as its owner moved them */
    u64 rx;
    u64 age_ns;   /* since it was opened (its SYN, where we connected); 0 unknown */
    u64 gap_ns;   /* RESET, DROP: since the last byte was received */
    u64 first_ns; /* RETRANSMIT: the first of `count`, time_ns being the last */
};

/*
 * An address as one process knows it; v4 in the first 4 bytes. start as in proc_key: exec changes nothing.
 * tgid 0: as it is known in a network namespace, whose inode number is in start.
 */
struct name_key {
    u32 tgid;
    u32 start;
    u8 address[16];
};

struct name_val {
    u64 id;      /* of the hostname: FNV-1a of its bytes, as the process wrote it */
    u64 told_ns; /* when user space was last told */
    u64 wire_id; /* CALL: of the name that the wire last had for it, and when that was told */
    u64 wire_told_ns;
    u32 kind; /* enum lookup_kind */
    u32 pad;
};

#define LOOKUP_DATA 1536

/*
 * Something that tells hostnames, for user space to read. `data` has, of LOOKUP_CALL, the name that was asked
 * for (NAME_LEN bytes, ended by 0), then `count` addresses (struct lookup_address); of LOOKUP_WIRE a DNS
 * message, of LOOKUP_HELLO the first bytes that a client sent, `length` bytes of them. A record is as long as
 * what it has, in steps of LOOKUP_STEP.
 */
#define NAME_LEN         256
#define LOOKUP_ADDRESSES 16
#define LOOKUP_STEP      256
enum lookup_kind { LOOKUP_CALL, LOOKUP_WIRE, LOOKUP_HELLO };
struct lookup_address {
    u32 family;
    u8 address[16];
};
struct lookup {
    u64 time_ns; /* CLOCK_MONOTONIC */
    u64 id;      /* CALL: of the name, see struct name_val */
    u32 tgid;    /* whose it is; 0 unknown */
    u32 start;
    u32 netns;
    u8 kind; /* enum lookup_kind */
    u8 count;
    u16 length;  /* WIRE, HELLO */
    u8 family;   /* HELLO: of the peer */
    u8 pad;      /* WIRE: 1 when the message came by TCP */
    u16 port;    /* HELLO: the peer's */
    u8 peer[16]; /* HELLO */
    u32 place;   /* for the programs' own use */
    u8 data[LOOKUP_DATA];
};

enum forked { FORKED_NOT, FORKED, FORKED_ENDS }; /* it has called exec; it has not; it has not, and ends */

/*
 * One process, from its fork or from our start on. The program is the one it runs now: its parent's until it
 * calls exec.
 */
struct life {
    u64 start_ns; /* CLOCK_MONOTONIC of its fork; 0: older than we are */
    u64 image;    /* its program, service included: key of images; 0: unknown */
    u64 line;     /* hash of its program and its whole command line */
    u32 parent;   /* who forked it, or had it when it called exec; tgid and, as in proc_key, start */
    u32 parent_start;
    u32 args_len;
    u32 forked; /* enum forked */
    char comm[16];
    char exe[EXE_LEN];
    char args[ARGS_LEN];
};

/* What processes do, counted by program. An exec is a start; so is a fork without one (TERMS: Starts). */
enum turn { TURN_EXEC, TURN_FORK, TURN_EXIT };
struct turn_key {
    u64 image;
    u32 kind; /* enum turn */
    u32 code; /* EXIT: as wait(2) has it, and EXIT_OOM */
};
#define EXIT_OOM (1 << 16) /* killed by the out-of-memory killer */

/* Indices of the turn_totals array: all that happened, whatever could be told of it. */
enum turn_total { TOTAL_FORKS, TOTAL_EXECS, TOTAL_EXITS, TOTAL_MAX };

/* A command line under one parent; or the first process of a container, by the container's name alone. */
struct crash_key {
    u64 line;
    u32 parent; /* 0: a container's first process */
    u32 parent_start;
};

#define CRASH_CODES 4
struct crash_val {
    u64 image;
    u64 restarts;        /* failed lives that began after another one had failed */
    u64 failures;        /* ends with a code or by a signal that means failure */
    u64 successes;       /* other ends */
    u64 last_ns;         /* of failures */
    u64 life_ns;         /* sum over failures */
    u64 siblings;        /* children of the parent that ended since it is known, by last_ns, this one too */
    u64 siblings_before; /* by the first failure, this one not */
    u32 tgid;            /* the last one */
    u32 forked;          /* 1: it never called exec */
    u32 codes[CRASH_CODES]; /* as in turn_key, the first few that were seen */
    u32 counts[CRASH_CODES];
};

/* What one process did, when. */
struct life_event {
    u64 time_ns;  /* CLOCK_MONOTONIC */
    u64 start_ns; /* of its fork */
    u64 image;
    u32 tgid;
    u32 start; /* as in proc_key */
    u32 parent;
    u32 kind;   /* enum turn; FORK: every one, not only those that are starts */
    u32 code;   /* as in turn_key */
    u32 forked; /* 1: it never called exec */
    u32 args_len;
    u32 pad;
    char comm[16];
    char parent_comm[16];
    char exe[EXE_LEN];
    char args[ARGS_LEN];
};

/* Indices of the options array: what user space may switch on. */
enum option {
    OPTION_CONNECTION_EVENTS,
    OPTION_FORK_EVENTS,
    OPTION_EXEC_EVENTS,
    OPTION_EXIT_EVENTS,
    OPTION_MAX
};

_Static_assert(sizeof(struct proc_key) == 12, "proc_key");
_Static_assert(sizeof(struct flow_key) == 52, "flow_key");
_Static_assert(sizeof(struct flow_val) == 32, "flow_val");
_Static_assert(sizeof(struct sock_val) == 232, "sock_val");
_Static_assert(sizeof(struct proc_val) == 688, "proc_val");
_Static_assert(sizeof(struct fate_key) == 56, "fate_key");
_Static_assert(sizeof(struct duration_key) == 56, "duration_key");
_Static_assert(sizeof(struct duration_val) == 464, "duration_val");
_Static_assert(sizeof(struct syscall_key) == 12, "syscall_key");
_Static_assert(sizeof(struct syscall_val) == 488, "syscall_val");
_Static_assert(sizeof(struct thread_val) == 32, "thread_val");
_Static_assert(sizeof(struct tcp_event) == 128, "tcp_event");
_Static_assert(sizeof(struct name_key) == 24, "name_key");
_Static_assert(sizeof(struct name_val) == 40, "name_val");
_Static_assert(sizeof(struct lookup) == 56 + LOOKUP_DATA, "lookup");
_Static_assert(sizeof(struct life) == 312, "life");
_Static_assert(sizeof(struct turn_key) == 16, "turn_key");
_Static_assert(sizeof(struct crash_key) == 16, "crash_key");
_Static_assert(sizeof(struct crash_val) == 104, "crash_val");
_Static_assert(sizeof(struct life_event) == 344, "life_event");

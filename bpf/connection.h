/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Facts about one connection: to whom they are charged, how they are counted and told.
 *
 * All of this runs rarely, in any context, so kernel memory is read by bpf_probe_read_kernel.
 */

#define EINTR          4
#define EBADF          9
#define EFAULT         14
#define EAFNOSUPPORT   97
#define EISCONN        106
#define EALREADY       114
#define EINPROGRESS    115

#define SS_UNCONNECTED 1 /* of enum socket_state */
#define ECONNABORTED   103
#define ECONNRESET     104
#define ETIMEDOUT      110
#define ECONNREFUSED   111
#define EHOSTUNREACH   113
#define ENETUNREACH    101
#define EPIPE          32
#define EAGAIN         11

#define RCV_SHUTDOWN   1 /* bits of sock.sk_shutdown */
#define SEND_SHUTDOWN  2

#define SECOND_NS      1000000000ULL
#define SECOND_JIFFIES ((u32)(SECOND_NS / JIFFY_NS))

static u64 (*jiffies64)(void) = (void *)118;

/* One fact, to be counted in fates and told as an event. */
struct fact {
    u8 kind;
    u8 reason;
    u8 side;
    u8 idle;
    u32 count;
    u32 error;
    u64 time_ns;
    u64 first_ns;
    u64 gap_ns;
};

/* The process that facts of this socket belong to: its latest user, see TERMS in docs/. */
static __always_inline void charge(struct flow_key *flow, const struct sock_val *value)
{
    *flow = value->key;
    if (value->user.tgid) {
        flow->tgid = value->user.tgid;
        flow->start = value->user.start;
        flow->exec = value->user.exec;
    }
}

/* Without a socket of its own: who listens there. */
static __always_inline void charge_listener(u64 sk, struct flow_key *flow)
{
    const int direct = 0;
    u64 port = listener_key(sk, flow->netns, direct);
    struct listener_val *listener = listeners.lookup(&port);

    if (!listener)
        return;
    flow->tgid = listener->owner.tgid;
    flow->start = listener->owner.start;
    flow->exec = listener->owner.exec;
}

/* Openings and closes of sound connections are told only on request. */
static __always_inline int are_connections_told(void)
{
    u32 option = OPTION_CONNECTION_EVENTS;
    u32 *wanted = options.lookup(&option);

    return wanted && *wanted;
}

static __always_inline void tell(u64 sk, const struct flow_key *flow, const struct sock_val *value,
                                 const struct fact *fact)
{
#ifdef HAVE_RINGBUF
    if (fact->kind == FATE_CONNECTION && fact->reason == OUTCOME_OK && !are_connections_told())
        return;
    struct tcp_event *event = events.ringbuf_reserve(sizeof(struct tcp_event));

    if (!event) {
        lose(LOSS_EVENTS_FULL, 1);
        return;
    }
    event->time_ns = fact->time_ns;
    event->sk = sk;
    event->flow = *flow;
    event->kind = fact->kind;
    event->reason = fact->reason;
    event->side = fact->side;
    event->idle = fact->idle;
    event->count = fact->count;
    event->error = fact->error;
    event->pad = 0;
    event->gap_ns = fact->gap_ns;
    event->first_ns = fact->first_ns;
    event->sport = value ? value->sport : 0;
    event->dport = value ? value->dport : flow->role == ROLE_CLIENT ? flow->port : 0;
    event->tx = value ? value->tx : 0;
    event->rx = value ? value->rx : 0;
    event->age_ns = value && value->opened_ns ? fact->time_ns - value->opened_ns : 0;
    events.ringbuf_submit(event, 0);
#endif
}

static __always_inline void count_fact(const struct flow_key *flow, const struct fact *fact)
{
    struct fate_key key = {
        .flow = *flow, .kind = fact->kind, .reason = fact->reason, .side = fact->side, .idle = fact->idle};

    add_fate(&key, fact->count);
}

static __always_inline void count_and_tell(u64 sk, const struct sock_val *value, const struct fact *fact)
{
    struct flow_key flow;

    charge(&flow, value);
    count_fact(&flow, fact);
    tell(sk, &flow, value, fact);
}

static __always_inline void read_ends(u64 sk, struct sock_val *value, const int direct)
{
    u32 local[4];

    value->sport = READ(u16, sk, OFF_SOCK_NUM);
    value->dport = __builtin_bswap16(READ(u16, sk, OFF_SOCK_DPORT));
    read_address(sk, local, OFF_SOCK_RCV_SADDR, OFF_SOCK_V6_RCV_SADDR, direct);
    __builtin_memcpy(value->local, local, 16);
}

/* Time since the last byte arrived. Good to one tick of the kernel's timer. */
static __always_inline u64 silence_ns(u64 sk)
{
    const int direct = 0;

    return (u64)((u32)jiffies64() - READ(u32, sk, OFF_ICSK_LRCVTIME)) * JIFFY_NS;
}

/* Bytes that wait to be read; `ended`: the peer's FIN has arrived and takes a number, too. */
static __always_inline u32 unread_bytes(u64 sk, int ended)
{
    const int direct = 0;
    s32 unread = READ(u32, sk, OFF_TCP_RCV_NXT) - READ(u32, sk, OFF_TCP_COPIED_SEQ) - (ended ? 1 : 0);

    return unread > 0 ? unread : 0;
}

/* Whether the peer has acknowledged all that was handed to send(). */
static __always_inline int all_acknowledged(u64 sk)
{
    const int direct = 0;

    return READ(u32, sk, OFF_TCP_WRITE_SEQ) == READ(u32, sk, OFF_TCP_SND_UNA);
}

static __always_inline u32 read_total_retrans(u64 tcp, const int direct)
{
    return READ(u32, tcp, OFF_TCP_TOTAL_RETRANS);
}

/* The smoothed round trip time, once a second at most but for the last one. */
static __always_inline void sample_rtt(u64 tcp, struct sock_val *value, const int direct)
{
    struct flow_key flow;
    u32 srtt_us = READ(u32, tcp, OFF_TCP_SRTT_US) >> 3;

    if (!srtt_us)
        return;
    charge(&flow, value);
    add_duration(&flow, DURATION_RTT, srtt_us * 1000ULL);
}

/* An accepted connection, counted as soon as its process is known, or at its end. */
static __always_inline void count_accepted(u64 sk, struct sock_val *value)
{
    struct fact fact = {.kind = FATE_CONNECTION, .reason = OUTCOME_OK, .count = 1};

    if (value->flags & (SOCK_COUNTED | SOCK_MPTCP) || value->key.role != ROLE_SERVER || !value->opened_ns)
        return;
    value->flags |= SOCK_COUNTED;
    fact.time_ns = value->opened_ns;
    count_and_tell(sk, value, &fact);
}

/* Segments sent again and told by no event yet. */
static __always_inline void tell_retransmits(u64 sk, struct sock_val *value)
{
    struct fact fact = {.kind = FATE_RETRANSMIT,
                        .count = value->window_count,
                        .first_ns = value->window_first_ns,
                        .time_ns = value->window_last_ns};
    struct flow_key flow;

    value->window_count = 0;
    charge(&flow, value);
    tell(sk, &flow, value, &fact);
}

/* Brings `segments` up to date: once a second at most, and where retransmits are counted or the socket ends.
 */
static __always_inline void count_segments(u64 tcp, struct sock_val *value, const int direct)
{
    if (value->key.role != ROLE_CLIENT || value->flags & SOCK_MPTCP)
        return;
    u32 total = READ(u32, tcp, OFF_TCP_DATA_SEGS_OUT);
    u32 grown = total - value->segments_seen;

    if ((s32)grown <= 0)
        return;
    value->segments_seen = total;
    value->segments += grown;
}

/*
 * Segments are counted by the growth of total_retrans: the tracepoint comes once a buffer, which may hold
 * many segments, and not at all where sending failed.
 */
static __always_inline void count_retransmits(u64 tcp, struct sock_val *value, const int direct)
{
    u32 total = read_total_retrans(tcp, direct);
    struct fate_key key = {.kind = FATE_RETRANSMIT, .reason = RESENT_OTHER};
    u32 grown = total - value->retrans_seen;

    if (value->state == TCP_ESTABLISHED || value->state == TCP_CLOSE_WAIT)
        key.reason = RESENT_DATA;
    if ((s32)grown <= 0)
        return;
    u64 now = bpf_ktime_get_ns();
    value->retrans_seen = total;
    value->retransmits += grown;
    charge(&key.flow, value);
    add_fate(&key, grown);
    count_segments(tcp, value, direct);
    if (value->window_count && now - value->window_first_ns >= SECOND_NS) {
        tell_retransmits(tcp, value);
        value->window_told_ns = 0;
    }
    if (!value->window_count)
        value->window_first_ns = now;
    value->window_last_ns = now;
    value->window_count += grown;
    if (now - value->window_told_ns >= SECOND_NS) {
        tell_retransmits(tcp, value);
        value->window_told_ns = now;
    }
}

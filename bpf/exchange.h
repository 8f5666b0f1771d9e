/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Exchanges of the side that connected: asked, answered, or dropped. docs/decisions/004 gives the reasons.
 *
 * What is noted on each send and receive is a phase and, for sends, a time. All judgement is made when a
 * connection ends or a wait runs out, which is rare.
 */

#define FAREWELL_BYTES 32 /* QUIT, close_notify, heartbeats and acknowledgements are no larger */
#define PUSH_NS        (60 * SECOND_NS)

static __always_inline int has_answered(const struct sock_val *value)
{
    return value->answers || value->flags & SOCK_OLDER;
}

/* A small message on a connection that has had answers: it may want none. */
static __always_inline int is_farewell(const struct sock_val *value)
{
    return value->asked <= FAREWELL_BYTES && has_answered(value);
}

/* The peer has acknowledged some of what was asked: what it sends since may be an answer. */
static __always_inline int has_arrived(u64 sk, const struct sock_val *value)
{
    const int direct = 0;

    return value->flags & SOCK_MPTCP || (s32)(READ(u32, sk, OFF_TCP_SND_UNA) - value->asked_seq) > 0;
}

/* The first byte after asking. Not counted after a minute: that was no answer but a push. */
static __always_inline void note_answer(struct sock_val *value)
{
    struct flow_key flow;
    u64 waited = bpf_ktime_get_ns() - value->sent_ns;

    value->phase = is_farewell(value) && waited > SECOND_NS ? PHASE_IDLE : PHASE_ANSWERED;
    value->answers++;
    if (value->silent_waits) /* a timer fired while the answer was under way */
        value->silent_waits = 0;
    if (waited > PUSH_NS)
        return;
    charge(&flow, value);
    add_duration(&flow, DURATION_RESPONSE, waited);
}

/* 0 if `then` is later: another processor's clock was read meanwhile. */
static __always_inline u64 elapsed_ns(u64 then, u64 now)
{
    return now > then ? now - then : 0;
}

/*
 * A send has returned. On another processor the peer's end may come in at any moment (judge_fin,
 * judge_reset): what it is judged by is there before the phase says so.
 */
static __always_inline void note_ask(u64 sk, struct sock_val *value, u64 bytes)
{
    const int direct = 0;
    u64 now = bpf_ktime_get_ns();

    if (value->phase != PHASE_ASKED) {
        value->asked_ns = value->sent_ns = now;
        http_note_ask(value, bytes);
        barrier();
        value->phase = PHASE_ASKED;
        barrier();
        value->asked = bytes;
        value->asked_seq = READ(u32, sk, OFF_TCP_WRITE_SEQ) - bytes;
        if (has_answered(value) && value->receiver != (u32)bpf_get_current_pid_tgid())
            value->flags |= SOCK_THREADED;
    } else {
        value->asked += bytes;
        value->sent_ns = now;
    }
    if (now - value->rtt_ns > SECOND_NS && !(value->flags & SOCK_MPTCP)) {
        value->rtt_ns = now;
        sample_rtt(sk, value, direct);
        count_segments(sk, value, direct);
    }
}

/*
 * The peer's end is about to be judged, and more was handed to send() than calls have returned from: the peer
 * was faster than the caller, or the call blocks until all is in the queue. It asks already. Not where other
 * bytes than the process's are in the stream (TLS of the kernel, subflows of MPTCP: both have an upper
 * layer), nor where nothing was sent for a second: that was no call but something that no hook sees.
 */
static __always_inline void note_under_way(u64 sk, struct sock_val *value, u64 now)
{
    const int direct = 0;

    if (value->key.role != ROLE_CLIENT || value->phase == PHASE_ASKED)
        return;
    u32 next = value->asked_seq + value->asked;
    u32 bytes = READ(u32, sk, OFF_TCP_WRITE_SEQ) - next;
    if ((s32)bytes <= 0 || READ(u64, sk, OFF_ICSK_ULP_OPS) ||
        (u32)jiffies64() - READ(u32, sk, OFF_TCP_LSNDTIME) > SECOND_JIFFIES)
        return;
    value->asked_ns = value->sent_ns = now;
    value->asked = bytes;
    value->asked_seq = next;
    value->phase = PHASE_ASKED;
    if (value->http > HTTP_NONE)
        value->http = HTTP_UNDECIDED;
}

/* On every send and receive of a socket we know. */
static __always_inline void note_use(u64 sk, struct sock_val *value, u64 tx, u64 rx)
{
    if (tx) {
        if (value->flags & SOCK_STALLED)
            value->flags &= ~SOCK_STALLED;
        if (value->key.role == ROLE_CLIENT)
            note_ask(sk, value, tx);
    } else if (value->key.role == ROLE_CLIENT) {
        u32 now = jiffies64();

        if (value->waits_out)
            value->waits_out = 0;
        if (value->phase == PHASE_ASKED && !has_arrived(sk, value))
            return; /* it came before the question */
        if (value->phase == PHASE_ASKED)
            note_answer(value);
        else if (value->phase == PHASE_ANSWERED && now - value->heard > SECOND_JIFFIES)
            value->phase = PHASE_IDLE; /* what comes after a pause is a push */
        value->heard = now;
        value->receiver = bpf_get_current_pid_tgid();
        if (!(value->flags & SOCK_HEARD))
            value->flags |= SOCK_HEARD;
    }
}

/* A socket that was open before our time. */
static __always_inline void note_first(u64 sk, struct sock_val *fresh, u64 tx)
{
    const int direct = 0;

    fresh->state = READ(u8, sk, OFF_SOCK_STATE);
    fresh->retrans_seen = READ(u32, sk, OFF_TCP_TOTAL_RETRANS);
    fresh->segments_seen = READ(u32, sk, OFF_TCP_DATA_SEGS_OUT);
    fresh->flags = SOCK_COUNTED | SOCK_HEARD | SOCK_OLDER;
    fresh->asked = tx;
    fresh->asked_seq = READ(u32, sk, OFF_TCP_WRITE_SEQ) - tx;
    read_ends(sk, fresh, direct);
    if (tx && fresh->key.role == ROLE_CLIENT) {
        fresh->phase = PHASE_ASKED;
        fresh->asked_ns = fresh->sent_ns = bpf_ktime_get_ns();
    }
}

static __always_inline void drop(u64 sk, const struct sock_val *value, u8 reason, u8 by, u32 error,
                                 u64 time_ns)
{
    struct fact fact = {.kind = FATE_DROP,
                        .reason = reason,
                        .side = by,
                        .count = 1,
                        .error = error,
                        .time_ns = time_ns,
                        .gap_ns = value->flags & SOCK_HEARD ? silence_ns(sk) : 0};

    count_and_tell(sk, value, &fact);
}

/*
 * The hooks of two threads may come in the wrong order: the answer's receive before the request's send has
 * returned. Then the phase says asked, and the times at which data went in and out decide.
 */
static __always_inline int was_answered(u64 sk, const struct sock_val *value)
{
    const int direct = 0;

    if (!(value->flags & SOCK_THREADED))
        return 0;
    return (s32)(READ(u32, sk, OFF_ICSK_LRCVTIME) - READ(u32, sk, OFF_TCP_LSNDTIME)) >= 0;
}

/* Sending for over a second, never answered: it does not ask at all. */
static __always_inline int only_sends(const struct sock_val *value)
{
    return !(value->flags & SOCK_HEARD) && value->sent_ns - value->asked_ns > SECOND_NS;
}

/*
 * The peer's FIN while an answer is due. Whether somebody waited for that answer shows when a receive call
 * meets the end (judge_end_met). No drop: a request the peer had not acknowledged when it closed (it was
 * closing an idle connection at that moment), a farewell, a push stream, a sender whom nobody ever answers.
 */
static __always_inline void judge_fin(u64 sk, struct sock_val *value)
{
    if (value->key.role != ROLE_CLIENT)
        return;
    u64 now = bpf_ktime_get_ns();
    int has_more = unread_bytes(sk, 1);
    if (!has_more)
        note_under_way(sk, value, now);
    if (value->phase != PHASE_ASKED && value->http < HTTP_LENGTH)
        return;
    value->ended_ns = now;
    if (value->phase != PHASE_ASKED || elapsed_ns(value->sent_ns, now) > PUSH_NS || is_farewell(value))
        return;
    if (only_sends(value))
        return;
    if (has_more || !all_acknowledged(sk) || was_answered(sk, value))
        return;
    value->ended = ENDED_BY_FIN;
}

/* A receive call met the peer's FIN with a response incomplete: HTTP says so. One that asks for no byte meets
 * nothing. */
static __always_inline void judge_cut(u64 sk, struct sock_val *value)
{
    const int direct = 0;

    if (!http_is_cut(sk, value) || !(READ(u64, sk, OFF_SOCK_FLAGS) & SOCK_DONE) || unread_bytes(sk, 1))
        return;
    drop(sk, value, DROP_EOF_MID_RESPONSE, CLOSED_BY_PEER, 0,
         value->ended_ns ? value->ended_ns : bpf_ktime_get_ns());
    value->http = HTTP_UNDECIDED;
    value->phase = PHASE_IDLE;
}

/* A receive call met the peer's close: the process waited for more. */
static __always_inline void judge_end_met(u64 sk, struct sock_val *value)
{
    if (!value->ended)
        return;
    int reset = value->ended == ENDED_BY_RST;
    value->ended = ENDED_NOT;
    if (value->phase == PHASE_ASKED)
        drop(sk, value, DROP_UNANSWERED, CLOSED_BY_PEER, reset ? ECONNRESET : 0, value->ended_ns);
    else if (reset)
        drop(sk, value, DROP_RESET_MID_RESPONSE, CLOSED_BY_PEER, ECONNRESET, value->ended_ns);
    value->phase = PHASE_IDLE;
}

static __always_inline int is_answered(u64 sk, const struct sock_val *value)
{
    return value->phase == PHASE_ANSWERED || was_answered(sk, value) ||
           (unread_bytes(sk, 0) && has_arrived(sk, value));
}

/* A request on a connection that had been idle, which the peer closed before it can have seen it. */
static __always_inline int is_late_reuse(u64 sk, const struct sock_val *value, u64 now)
{
    u64 heard_ns = (u64)((u32)jiffies64() - value->heard) * JIFFY_NS;

    return has_answered(value) && !has_arrived(sk, value) &&
           heard_ns > elapsed_ns(value->asked_ns, now) + SECOND_NS;
}

/*
 * What waits to be read came after a pause, and no faster than heartbeats do. Whoever asked and has read
 * nothing since (a publisher, busy with other things) was not waiting for it: a caller reads at once.
 */
static __always_inline int is_trickle(u64 sk, const struct sock_val *value, u64 now)
{
    u64 paused = value->phase == PHASE_ASKED ? elapsed_ns(value->sent_ns, now)
                                             : (u64)((u32)jiffies64() - value->heard) * JIFFY_NS;

    u32 unread = unread_bytes(sk, 0);

    return paused > SECOND_NS && unread && unread <= FAREWELL_BYTES * (1 + paused / SECOND_NS);
}

/*
 * Whether an exchange is open when a RST is sent or arrives. The side that was connected to has none by our
 * rules; a RST is idle to it when nothing moved for a second and the last to speak was itself.
 */
static __always_inline int is_open(u64 sk, const struct sock_val *value, u64 now)
{
    const int direct = 0;
    u64 silence = silence_ns(sk);

    if (value->key.role != ROLE_CLIENT) {
        u32 received = READ(u32, sk, OFF_ICSK_LRCVTIME), sent = READ(u32, sk, OFF_TCP_LSNDTIME);
        u64 since_sent = (u64)((u32)jiffies64() - sent) * JIFFY_NS;

        return silence < SECOND_NS || since_sent < SECOND_NS || (s32)(received - sent) > 0;
    }
    if (value->http >= HTTP_LENGTH)
        return !http_is_whole(sk, value);
    if (value->phase == PHASE_IDLE)
        return 0;
    u64 age = elapsed_ns(value->sent_ns, now);
    if (value->phase == PHASE_ASKED && is_farewell(value) && age > SECOND_NS)
        return 0;
    if (is_answered(sk, value))
        return silence < SECOND_NS && !is_trickle(sk, value, now);
    return age <= PUSH_NS;
}

/* What the end of a connection means: one fact, and the exchange that was dropped with it. */
struct ending {
    struct fact fact; /* count 0: nothing to tell */
    u8 dropped;       /* 1 + enum drop, 0: none */
    u8 by;            /* enum closed_by */
};

/*
 * A RST arrived within an open exchange. No drop: the process had closed by itself, or used a connection that
 * the peer had closed before. Else it is one once a call meets it: who only sends, to wake a thread of its
 * own for example, misses nothing. A send meets it, too, where answers are the custom.
 */
static __always_inline void judge_reset(u64 sk, struct sock_val *value, u8 before, u64 now)
{
    const int direct = 0;

    if (value->key.role != ROLE_CLIENT || before == TCP_CLOSE_WAIT ||
        READ(u8, sk, OFF_SOCK_SHUTDOWN) & RCV_SHUTDOWN)
        return;
    if (is_answered(sk, value))
        value->phase = PHASE_ANSWERED;
    else if (only_sends(value) || is_late_reuse(sk, value, now))
        return;
    value->ended_ns = now;
    value->ended = ENDED_BY_RST;
}

/* What a connection ends with that the network gave up (tcp_write_err: what ICMP said, else ETIMEDOUT). */
static __always_inline int is_given_up(u32 error)
{
    return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH;
}

/*
 * The network gave up: data was never acknowledged, or keepalive probes were not. `shut`: its process had
 * said that it reads no more.
 */
static __always_inline void judge_timeout(u64 sk, struct sock_val *value, struct ending *ending, int shut)
{
    ending->fact.kind = FATE_TIMEOUT;
    ending->fact.reason = all_acknowledged(sk) ? TIMEOUT_KEEPALIVE : TIMEOUT_UNACKNOWLEDGED;
    if (value->key.role != ROLE_CLIENT || shut)
        return;
    ending->by = CLOSED_BY_NETWORK;
    if (value->phase == PHASE_ANSWERED && value->waits_out)
        ending->dropped = 1 + DROP_STALLED_MID_RESPONSE;
    if (value->phase == PHASE_ASKED && !was_answered(sk, value) &&
        (ending->fact.reason == TIMEOUT_UNACKNOWLEDGED || !is_farewell(value)))
        ending->dropped = 1 + DROP_UNANSWERED;
}

/*
 * The process closes. If its one wait for the rest of an answer had run out, that is why. More than one means
 * that it polls by such waits.
 */
static __always_inline void judge_close(u64 sk, const struct sock_val *value, struct ending *ending)
{
    if (value->key.role != ROLE_CLIENT || value->phase != PHASE_ANSWERED || value->waits_out != 1)
        return;
    if (http_is_whole(sk, value))
        return;
    ending->dropped = 1 + DROP_STALLED_MID_RESPONSE;
    ending->by = CLOSED_BY_SELF;
    ending->fact.time_ns = bpf_ktime_get_ns();
}

/* The process waited its full time, at least once, with the exchange unanswered: see waits.bpf.c. */
static __always_inline void note_silent_wait(struct sock_val *value)
{
    if (value->silent_waits < 255)
        value->silent_waits++;
}

/*
 * An exchange ends. It was silent if a wait had run out on it and nothing ever came. Live ones are judged by
 * user space, by the same rules (kernob/state/dependencies.py).
 */
static __always_inline void judge_silence(u64 sk, struct sock_val *value)
{
    struct fact fact = {.kind = FATE_SILENCE, .count = 1};
    struct flow_key flow;
    u8 waits = value->silent_waits;

    if (!waits)
        return;
    value->silent_waits = 0;
    if (value->phase != PHASE_ASKED || is_farewell(value) || only_sends(value) || is_answered(sk, value))
        return;
    charge(&flow, value);
    count_fact(&flow, &fact);
    fact.kind = FATE_WAIT;
    fact.count = waits;
    count_fact(&flow, &fact);
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How exchanges end: dropped, and by whom, or not. docs/decisions/004 gives the reasons.
 *
 * Judged when a connection changes state or a call meets its end; exchange.h notes what it is judged by.
 */

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
 * The peer's FIN while an answer is due. Whether somebody waited for that answer shows when a receive call
 * meets the end (judge_end_met). No drop: a request the peer had not acknowledged when it closed (it was
 * closing an idle connection at that moment), a farewell, a push stream, a sender whom nobody ever answers.
 */
static __always_inline void judge_fin(u64 sk, struct sock_val *value)
{
    if (value->key.role != ROLE_CLIENT)
        return;
    if (!unread_bytes(sk, 1) && all_acknowledged(sk) && has_unreturned(sk, value)) {
        value->ended_ns = bpf_ktime_get_ns();
        value->ended = ENDED_EARLY_FIN;
        barrier();
        if (has_unreturned(sk, value))
            return;
        value->ended = ENDED_NOT; /* it has returned meanwhile */
    }
    if (value->phase != PHASE_ASKED && value->http < HTTP_LENGTH)
        return;
    u64 now = bpf_ktime_get_ns();
    value->ended_ns = now;
    if (value->phase != PHASE_ASKED || elapsed_ns(value->sent_ns, now) > PUSH_NS || is_farewell(value))
        return;
    if (only_sends(value))
        return;
    if (unread_bytes(sk, 1) || !all_acknowledged(sk) || was_answered(sk, value))
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
    if (value->ended >= ENDED_EARLY_FIN && value->phase == PHASE_ASKED)
        judge_early_end(sk, value, bpf_ktime_get_ns());
    if (!value->ended || value->ended >= ENDED_EARLY_FIN)
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
 * A RST arrives, and a send that has not returned asks: a call is in the socket (over loopback the RST comes
 * within send() itself), or its hook is about to run. In the latter case something must have been sent
 * lately, and not been followed by bytes of the peer: there may be bytes that no hook ever sees.
 */
static __always_inline int is_asking(u64 sk, const struct sock_val *value)
{
    const int direct = 0;

    if (!has_unreturned(sk, value))
        return 0;
    if (READ(u32, sk, OFF_SOCK_LOCK_OWNED) || READ(u32, sk, OFF_SOCK_WRITE_PENDING))
        return 1;
    return (u32)jiffies64() - READ(u32, sk, OFF_TCP_LSNDTIME) <= SECOND_JIFFIES &&
           !heard_since_sent(sk, value);
}

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

/* A RST arrived. Whether an exchange was open, and with it dropped, is left to a send that has not returned.
 */
static __always_inline void on_reset(u64 sk, struct sock_val *value, u8 before, struct fact *fact)
{
    const int direct = 0;

    fact->kind = FATE_RESET;
    fact->side = DIRECTION_RECEIVED;
    if (before == TCP_ESTABLISHED && is_asking(sk, value) &&
        !(READ(u8, sk, OFF_SOCK_SHUTDOWN) & RCV_SHUTDOWN)) {
        value->ended_ns = fact->time_ns;
        value->ended = ENDED_EARLY_RST;
        return;
    }
    fact->idle = !is_open(sk, value, fact->time_ns);
    if (!fact->idle)
        judge_reset(sk, value, before, fact->time_ns);
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

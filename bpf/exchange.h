/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Exchanges of the side that connected: asked and answered. docs/decisions/004 gives the reasons.
 *
 * What is noted on each send and receive is a phase and, for sends, a time. All judgement is made when a
 * connection ends or a wait runs out, which is rare: endings.h.
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

/* Sending for over a second, never answered: it does not ask at all. */
static __always_inline int only_sends_until(const struct sock_val *value, u64 sent_ns)
{
    return !(value->flags & SOCK_HEARD) && sent_ns - value->asked_ns > SECOND_NS;
}

static __always_inline int only_sends(const struct sock_val *value)
{
    return only_sends_until(value, value->sent_ns);
}

/* A request on a connection that had been idle, which the peer closed before it can have seen it. */
static __always_inline int is_late_reuse(u64 sk, const struct sock_val *value, u64 now)
{
    u64 heard_ns = (u64)((u32)jiffies64() - value->heard) * JIFFY_NS;

    return has_answered(value) && !has_arrived(sk, value) &&
           heard_ns > elapsed_ns(value->asked_ns, now) + SECOND_NS;
}

/* The sequence number behind all that was handed to send(). No typed pointer to a socket reaches so far. */
static __always_inline u32 write_seq(u64 sk)
{
    const int direct = 0;

    return READ(u32, sk, OFF_TCP_WRITE_SEQ);
}

/*
 * More was handed to send() than calls have returned from, as far as their hooks told. Not known under an
 * upper layer, whose own bytes are in the stream, too: TLS of the kernel, subflows of MPTCP.
 */
static __always_inline int has_unreturned(u64 sk, const struct sock_val *value)
{
    const int direct = 0;

    if (value->key.role != ROLE_CLIENT || value->flags & SOCK_ATTEMPT)
        return 0;
    return (s32)(write_seq(sk) - value->asked_seq - value->asked) > 0 && !READ(u64, sk, OFF_ICSK_ULP_OPS);
}

/* What came last came after what was sent last. Within one tick of the kernel's timer it is taken for that.
 */
static __always_inline int heard_since_sent(u64 sk, const struct sock_val *value)
{
    const int direct = 0;

    return value->flags & SOCK_HEARD &&
           (s32)(READ(u32, sk, OFF_ICSK_LRCVTIME) - READ(u32, sk, OFF_TCP_LSNDTIME)) >= 0;
}

/*
 * The hooks of two threads may come in the wrong order: the answer's receive before the request's send has
 * returned. Then the phase says asked, and the times at which data went in and out decide.
 */
static __always_inline int was_answered(u64 sk, const struct sock_val *value)
{
    return value->flags & SOCK_THREADED && heard_since_sent(sk, value);
}

/* The peer's end came before this request was known of, and may have been meant for it. */
static __always_inline void judge_early_end(u64 sk, struct sock_val *value, u64 now)
{
    u8 early = value->ended;
    u64 sent_ns = value->sent_ns;

    value->ended = ENDED_NOT;
    if (elapsed_ns(sent_ns, value->ended_ns) > PUSH_NS)
        return;
    /* what had not returned when the FIN came was acknowledged by then */
    if (early == ENDED_EARLY_FIN && sent_ns < value->ended_ns)
        sent_ns = value->ended_ns;
    if (only_sends_until(value, sent_ns))
        return;
    if (early == ENDED_EARLY_RST) {
        if (was_answered(sk, value))
            value->phase = PHASE_ANSWERED;
        else if (is_late_reuse(sk, value, now))
            return;
        value->ended = ENDED_BY_RST;
        return;
    }
    if (!is_farewell(value) && (value->sent_ns < value->ended_ns || all_acknowledged(sk)) &&
        !was_answered(sk, value))
        value->ended = ENDED_BY_FIN;
}

/*
 * A send has returned. On another processor the peer's end may come in at any moment: it is judged by whoever
 * is later. As long as these stores are not all to be seen there, has_unreturned() holds, and it is left to
 * us (judge_fin, on_reset); what we just miss is judged when a call meets the end (judge_end_met).
 */
static __always_inline void note_ask(u64 sk, struct sock_val *value, u64 bytes)
{
    const int direct = 0;
    u64 now = bpf_ktime_get_ns();

    if (value->phase != PHASE_ASKED) {
        value->asked_ns = value->sent_ns = now;
        http_note_ask(value, bytes);
        if (value->flags & SOCK_HEARD && value->receiver != (u32)bpf_get_current_pid_tgid())
            value->flags |= SOCK_THREADED;
        u32 asked_seq = write_seq(sk) - bytes;
        barrier();
        value->phase = PHASE_ASKED;
        barrier();
        value->asked = bytes;
        value->asked_seq = asked_seq;
    } else {
        if (value->ended < ENDED_EARLY_FIN) /* else it is judged by when the sends before that end were */
            value->sent_ns = now;
        value->asked += bytes;
    }
    barrier();
    if (value->ended >= ENDED_EARLY_FIN)
        judge_early_end(sk, value, now);
    if (now - value->rtt_ns > SECOND_NS && !(value->flags & SOCK_MPTCP)) {
        value->rtt_ns = now;
        sample_rtt(sk, value, direct);
        count_segments(sk, value, direct);
    }
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
    fresh->asked_seq = write_seq(sk) - tx;
    read_ends(sk, fresh, direct);
    if (tx && fresh->key.role == ROLE_CLIENT) {
        fresh->phase = PHASE_ASKED;
        fresh->asked_ns = fresh->sent_ns = bpf_ktime_get_ns();
    }
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A connection's way from its SYN to its end, by inet_sock_set_state and tcp_destroy_sock.
 *
 * Connecting happens in the context of connect(); everything later in any, mostly softirq, where the current
 * process is anyone.
 */

static __always_inline u8 outcome_of(u32 error)
{
    /* no switch: the compiler may make a table of it, which BCC cannot load */
    if (error == ECONNREFUSED)
        return OUTCOME_REFUSED;
    if (error == ETIMEDOUT)
        return OUTCOME_TIMED_OUT;
    if (error == ECONNRESET)
        return OUTCOME_RESET;
    if (error == EHOSTUNREACH)
        return OUTCOME_HOST_UNREACHABLE;
    if (error == ENETUNREACH)
        return OUTCOME_NET_UNREACHABLE;
    return OUTCOME_OTHER;
}

static __always_inline void count_outcome(u64 sk, struct sock_val *value, u8 outcome, u32 error)
{
    struct fact fact = {.kind = FATE_CONNECTION, .reason = outcome, .count = 1, .error = error};
    struct flow_key flow;

    value->flags = (value->flags & ~SOCK_ATTEMPT) | SOCK_COUNTED;
    charge(&flow, value);
    count_fact(&flow, &fact);
    fact.time_ns = bpf_ktime_get_ns();
    tell(sk, &flow, value, &fact);
}

/* What a socket counted that goes away, or whose memory is used anew. */
static __always_inline void move_bytes(const struct sock_val *value)
{
    struct flow_key key = value->key;

    if (value->tx || value->rx)
        add_to_flow(&key, value->tx, value->rx, value->answers, value->segments);
}

static __always_inline void tell_closed(u64 sk, const struct sock_val *value)
{
    struct fact closed = {.kind = FATE_CONNECTION, .side = 1, .count = 1, .time_ns = bpf_ktime_get_ns()};
    struct flow_key flow;

    charge(&flow, value);
    tell(sk, &flow, value, &closed);
}

static __always_inline void tell_ending(u64 sk, const struct sock_val *value, const struct ending *ending)
{
    const struct fact *fact = &ending->fact;

    if (fact->count)
        count_and_tell(sk, value, fact);
    if (ending->dropped)
        drop(sk, value, ending->dropped - 1, ending->by, fact->error, fact->time_ns);
}

/*
 * A connection that we still take for open is destroyed: inet_sock_set_state ran no program for its end. A
 * kernel was seen to run none while some threads of its init are current, nor in the softirqs that interrupt
 * them, where timers end connections. The error is what a call was told, or what the next one would have
 * been.
 */
static __always_inline void tell_missed_timeout(u64 sk, struct sock_val *value)
{
    const int direct = 0;
    struct ending ending = {.fact = {.count = 1, .error = READ(u32, sk, OFF_SOCK_ERR)}};

    if (!ending.fact.error)
        ending.fact.error = value->told;
    if (!is_given_up(ending.fact.error))
        return;
    ending.fact.time_ns = bpf_ktime_get_ns();
    ending.fact.gap_ns = silence_ns(sk);
    judge_timeout(sk, value, &ending, 0);
    tell_ending(sk, value, &ending);
}

/* Whatever was not counted before is counted now. */
static __always_inline int on_destroy(u64 sk, const int direct)
{
    u64 address = sk;
    struct sock_val *value = socks.lookup(&address);
    u64 tcp = direct ? skc_to_tcp_sock(sk) : sk;

    if (!value)
        return 0;
    if (tcp)
        count_segments(tcp, value, direct);
    move_bytes(value);
    if (value->flags & SOCK_ATTEMPT)
        count_outcome(sk, value, value->syn_retransmits ? OUTCOME_TIMED_OUT : OUTCOME_OTHER, 0);
    else
        count_accepted(sk, value);
    if (tcp)
        count_retransmits(tcp, value, direct);
    judge_silence(sk, value);
    if (value->state == TCP_ESTABLISHED || value->state == TCP_CLOSE_WAIT)
        tell_missed_timeout(sk, value);
    if (value->window_count)
        tell_retransmits(sk, value);
    if (tcp && (!value->rtt_ns || value->rtt_ns == value->opened_ns ||
                bpf_ktime_get_ns() - value->rtt_ns > SECOND_NS))
        sample_rtt(tcp, value, direct);
    if (are_connections_told())
        tell_closed(sk, value);
    socks.delete(&address);
    return 0;
}

/* The handshake is over, for the side that connected. */
static __always_inline void on_connected(u64 sk, struct sock_val *value, struct fact *fact, const int direct)
{
    struct flow_key flow;
    u64 now = bpf_ktime_get_ns();

    follow(sk, value, direct);
    read_ends(sk, value, direct);
    if (!value->asked) /* else it asked with its SYN */
        value->asked_seq = write_seq(sk);
    charge(&flow, value);
    add_duration(&flow, DURATION_CONNECT, now - value->opened_ns);
    value->flags = (value->flags & ~SOCK_ATTEMPT) | SOCK_COUNTED;
    fact->kind = FATE_CONNECTION;
    fact->reason = OUTCOME_OK;
    fact->count = 1;
    fact->time_ns = now;
}

/*
 * What an ICMP message said that waits to be read, 0 without one. Where it came while connect() held the
 * socket (a firewall of this host rejects the SYN on its way out), the socket stays in SYN_SENT, and only the
 * process hears of it, by SO_ERROR, which also takes sk_err_soft away (tcp_v4_err; Linux 5.8).
 */
static __always_inline u32 icmp_error(u64 sk)
{
    const int direct = 0;
    u64 queue = sk + OFF_SOCK_ERROR_QUEUE;
    u64 first = READ(u64, sk, OFF_SOCK_ERROR_QUEUE); /* struct sk_buff_head begins with next */

    return first && first != queue ? READ(u32, first, OFF_SKB_CB + OFF_EXTERR_ERRNO) : 0;
}

/*
 * An attempt ends. Without an error the process gave up (close, SIGKILL, another address answered first): it
 * timed out if it had to send its SYN again, else it was cancelled. connect() may also fail by itself before
 * the socket ever waits; then the connect hook knows why.
 */
static __always_inline void on_attempt_failed(u64 sk, struct sock_val *value, u32 error, struct fact *fact)
{
    const int direct = 0;

    fact->kind = FATE_CONNECTION;
    fact->reason = outcome_of(error);
    if (!error) {
        if (!(READ(u8, sk, OFF_SOCK_SHUTDOWN) & SEND_SHUTDOWN))
            return;
        int again = value->syn_retransmits || READ(u8, sk, OFF_ICSK_RETRANSMITS);
        u32 told = icmp_error(sk);

        fact->reason = again ? OUTCOME_TIMED_OUT : OUTCOME_CANCELLED;
        if (told && outcome_of(told) != OUTCOME_OTHER) { /* there may be other messages: time stamps */
            fact->reason = outcome_of(told);
            fact->error = told;
        }
    }
    value->flags = (value->flags & ~SOCK_ATTEMPT) | SOCK_COUNTED;
    fact->count = 1;
    fact->time_ns = bpf_ktime_get_ns();
}

static __always_inline void on_closed(u64 sk, struct sock_val *value, u8 before, struct ending *ending)
{
    const int direct = 0;
    u32 error = READ(u32, sk, OFF_SOCK_ERR);
    struct fact *fact = &ending->fact;

    fact->error = error;
    if (value->flags & SOCK_ATTEMPT) {
        count_retransmits(sk, value, direct); /* before connect() wipes total_retrans (tcp_disconnect) */
        on_attempt_failed(sk, value, error, fact);
        return;
    }
    if (!error || error == ECONNABORTED) {
        value->returned = 1; /* it may be connected anew */
        if (before == TCP_ESTABLISHED)
            judge_close(sk, value, ending);
        return;
    }
    /* closed by its process already: what comes now is the kernel's, which calls late data a reset, too */
    if (before != TCP_ESTABLISHED && before != TCP_CLOSE_WAIT &&
        READ(u8, sk, OFF_SOCK_SHUTDOWN) & RCV_SHUTDOWN)
        return;
    fact->count = 1;
    fact->time_ns = bpf_ktime_get_ns();
    fact->gap_ns = silence_ns(sk);
    if (error == ECONNRESET || error == EPIPE)
        on_reset(sk, value, before, fact);
    else
        judge_timeout(sk, value, ending, READ(u8, sk, OFF_SOCK_SHUTDOWN) & RCV_SHUTDOWN);
}

static __always_inline void on_change(u64 sk, struct sock_val *value, u8 before, u8 after, const int direct)
{
    struct ending ending = {}; /* the clock is read where there is something to tell */

    if (after != TCP_CLOSE_WAIT)
        judge_silence(sk, value);
    value->state = after;
    if (after == TCP_CLOSE || (after == TCP_FIN_WAIT1 && value->flags & SOCK_ATTEMPT))
        on_closed(sk, value, before, &ending);
    else if (after == TCP_ESTABLISHED && value->flags & SOCK_ATTEMPT)
        on_connected(sk, value, &ending.fact, direct);
    else if (after == TCP_CLOSE_WAIT)
        judge_fin(sk, value);
    else if (before == TCP_ESTABLISHED) /* FIN_WAIT1 */
        judge_close(sk, value, &ending);
    tell_ending(sk, value, &ending);
}

/* blank_sock: all zero, never written: too large for the stack to begin a socket's state with. */
BPF_ARRAY(blank_sock, struct sock_val, 1);

/*
 * A connection begins: in the context of connect(), or as a listener's child, which waits for the first
 * process that uses it. `value` is blank.
 */
static __always_inline void on_opened(u64 sk, struct sock_val *value, u8 role, const int direct)
{
    struct flow_key key;

    read_peer(sk, &key, role, IPPROTO_TCP, direct);
    value->opened_ns = bpf_ktime_get_ns();
    if (role == ROLE_CLIENT) {
        own(&key, direct);
        name_flow(&key);
        value->rtt_ns = value->opened_ns; /* sampled after a second, or at the end */
        value->flags = SOCK_ATTEMPT;
        value->claims = 1;
        value->state = TCP_SYN_SENT;
        value->key = key;
        return;
    }
    value->key = key;
    u64 port = listener_key(sk, key.netns, direct);
    struct listener_val *listener = listeners.lookup(&port);

    if (listener)
        value->user = listener->owner;
    value->state = TCP_ESTABLISHED;
    value->retrans_seen = read_total_retrans(sk, 0);
    follow(sk, value, direct);
    read_ends(sk, value, direct);
}

/* In the context of listen(). A port that the kernel is still to choose is not known yet. */
static __always_inline void on_listen(u64 sk, const int direct)
{
    struct listener_val none = {};
    u64 key = listener_key(sk, read_netns(sk, direct), direct);
    struct flow_key flow = {.netns = key >> 16};

    if (!(u16)key)
        return;
    struct listener_val *listener = listeners.lookup_or_try_init(&key, &none);
    if (!listener) {
        lose(LOSS_SOCKS_FULL, 1);
        return;
    }
    own(&flow, direct);
    listener->owner.tgid = flow.tgid;
    listener->owner.start = flow.start;
    listener->owner.exec = flow.exec;
    __sync_fetch_and_add(&listener->count, 1);
}

/* Of a port that the kernel chose only inet_sport is left by now. */
static __always_inline void on_listen_end(u64 sk)
{
    const int direct = 0;
    u64 key = (u64)read_netns(sk, direct) << 16 | __builtin_bswap16(READ(u16, sk, OFF_INET_SPORT));
    struct listener_val *listener = listeners.lookup(&key);

    if (!listener)
        return;
    if (listener->count > 1)
        __sync_fetch_and_add(&listener->count, -1);
    else
        listeners.delete(&key);
}

/* The connection above the subflows. It has no tcp_destroy_sock; CLOSE is its end. */
static __always_inline int on_mptcp_state(u64 sk, int before, int after)
{
    u64 address = sk;
    int zero = 0;
    struct sock_val *value = socks.lookup(&address), *blank = blank_sock.lookup(&zero);
    u8 role = ROLE_CLIENT;

    if (after == TCP_CLOSE) {
        if (value)
            move_bytes(value);
        socks.delete(&address);
        return 0;
    }
    if (before == TCP_LISTEN || before == TCP_SYN_RECV) /* it is cloned from the listener, state and all */
        role = ROLE_SERVER;
    else if (after != TCP_SYN_SENT)
        return 0;
    if (value || !blank)
        return 0;
    socks.insert(&address, blank);
    value = socks.lookup(&address);
    if (!value) {
        lose(LOSS_SOCKS_FULL, 1);
        return 0;
    }
    value->flags = SOCK_MPTCP;
    value->key.role = role;
    return 0;
}

static __always_inline int on_set_state(u64 sk, int before, int after, const int direct)
{
    u16 proto = READ(u16, sk, OFF_SOCK_PROTOCOL);
    u64 address = sk;

    if (proto == IPPROTO_MPTCP)
        return on_mptcp_state(sk, before, after);
    if (proto != IPPROTO_TCP || after == before || after == TCP_SYN_RECV)
        return 0;
    if (after == TCP_LISTEN || before == TCP_LISTEN) {
        if (after == TCP_LISTEN)
            on_listen(sk, direct);
        else if (after == TCP_CLOSE) /* others are connections: clones of the listener */
            on_listen_end(sk);
        return 0;
    }
    /* its process has closed: nothing more to learn but an error */
    if (before >= TCP_FIN_WAIT1 && before != TCP_CLOSE_WAIT && after != TCP_SYN_SENT &&
        (after != TCP_CLOSE || !READ(u32, sk, OFF_SOCK_ERR)))
        return 0;
    int zero = 0, opens = after == TCP_SYN_SENT || (before == TCP_SYN_RECV && after == TCP_ESTABLISHED);
    struct sock_val *blank = blank_sock.lookup(&zero);
    if (!blank)
        return 0;
    int is_new = opens && !socks.insert(&address, blank);
    struct sock_val *value = socks.lookup(&address);
    if (!value) {
        if (opens)
            lose(LOSS_SOCKS_FULL, 1);
        return 0;
    }
    /* both ends connected at once: still the one opened by connect() */
    if (!is_new && opens && after == TCP_ESTABLISHED && value->flags & SOCK_ATTEMPT &&
        value->key.port == __builtin_bswap16(READ(u16, sk, OFF_SOCK_DPORT)))
        opens = 0;
    if (!is_new && opens) { /* who used this memory before was connected anew, or its end was missed */
        move_bytes(value);
        *value = *blank;
    }
    if (opens)
        on_opened(sk, value, after == TCP_SYN_SENT ? ROLE_CLIENT : ROLE_SERVER, direct);
    else
        on_change(sk, value, before, after, direct);
    return 0;
}

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
    if (outcome == OUTCOME_OK) {
        u32 option = OPTION_CONNECTION_EVENTS;
        u32 *wanted = options.lookup(&option);
        if (!wanted || !*wanted)
            return;
    }
    fact.time_ns = bpf_ktime_get_ns();
    tell(sk, &flow, value, &fact);
}

static __always_inline void on_connected(u64 sk, struct sock_val *value, const int direct)
{
    struct flow_key flow;

    value->state = TCP_ESTABLISHED;
    if (!(value->flags & SOCK_ATTEMPT))
        return;
    read_ends(sk, value, direct);
    charge(&flow, value);
    add_duration(&flow, DURATION_CONNECT, bpf_ktime_get_ns() - value->opened_ns);
    count_outcome(sk, value, OUTCOME_OK, 0);
}

/*
 * An attempt ends. Without an error the process gave up (close, SIGKILL, another address answered first): it
 * timed out if it had to send its SYN again, else it was cancelled. connect() may also fail by itself before
 * the socket ever waits; then the connect hook knows why.
 */
static __always_inline void on_attempt_failed(u64 sk, struct sock_val *value)
{
    const int direct = 0;
    u32 error = READ(u32, sk, OFF_SOCK_ERR);
    u8 outcome = outcome_of(error);

    if (!error) {
        if (!(READ(u8, sk, OFF_SOCK_SHUTDOWN) & SEND_SHUTDOWN))
            return;
        outcome = value->syn_retransmits || READ(u8, sk, OFF_ICSK_RETRANSMITS) ? OUTCOME_TIMED_OUT
                                                                               : OUTCOME_CANCELLED;
    }
    count_outcome(sk, value, outcome, error);
}

static __always_inline void on_closed(u64 sk, struct sock_val *value, u8 before)
{
    const int direct = 0;
    u32 error = READ(u32, sk, OFF_SOCK_ERR);

    value->state = TCP_CLOSE;
    if (value->flags & SOCK_ATTEMPT) {
        on_attempt_failed(sk, value);
        return;
    }
    if (!error || error == ECONNABORTED) {
        if (before == TCP_ESTABLISHED)
            judge_close(sk, value);
        return;
    }
    /* closed by its process already: what comes now is the kernel's, which calls late data a reset, too */
    if (before != TCP_ESTABLISHED && before != TCP_CLOSE_WAIT &&
        READ(u8, sk, OFF_SOCK_SHUTDOWN) & RCV_SHUTDOWN)
        return;
    u64 now = bpf_ktime_get_ns();
    if (error == ECONNRESET || error == EPIPE) {
        struct fact fact = {.kind = FATE_RESET, .side = DIRECTION_RECEIVED, .count = 1, .error = error};

        fact.time_ns = now;
        fact.idle = !is_open(sk, value, now);
        fact.gap_ns = silence_ns(sk);
        count_and_tell(sk, value, &fact);
        if (!fact.idle)
            judge_reset(sk, value, before, error, now);
        return;
    }
    struct fact fact = {.kind = FATE_TIMEOUT, .count = 1, .error = error, .time_ns = now};
    int unacknowledged = !all_acknowledged(sk);

    fact.reason = unacknowledged ? TIMEOUT_UNACKNOWLEDGED : TIMEOUT_KEEPALIVE;
    fact.gap_ns = silence_ns(sk);
    judge_timeout(sk, value, error, unacknowledged, now);
    count_and_tell(sk, value, &fact);
}

/* Whatever was not counted before is counted now, and its bytes move to its flow. `tcp`: sk is a TCP socket.
 */
static __always_inline void forget(u64 sk, struct sock_val *value, const int tcp)
{
    const int direct = 0;
    u64 address = sk;

    if (value->tx || value->rx) {
        struct flow_key key = value->key;
        add_to_flow(&key, value->tx, value->rx);
    }
    if (tcp) {
        if (value->flags & SOCK_ATTEMPT)
            count_outcome(sk, value, OUTCOME_OTHER, 0);
        else
            count_accepted(sk, value);
        count_retransmits(sk, value);
        if (value->window_count)
            tell_retransmits(sk, value);
        sample_rtt(sk, value);
        u32 option = OPTION_CONNECTION_EVENTS;
        u32 *wanted = options.lookup(&option);
        if (wanted && *wanted) {
            struct fact fact = {.kind = FATE_CONNECTION, .side = 1, .count = 1};
            struct flow_key flow;

            fact.time_ns = bpf_ktime_get_ns();
            charge(&flow, value);
            tell(sk, &flow, value, &fact);
        }
    }
    socks.delete(&address);
}

static __always_inline int on_destroy(u64 sk)
{
    u64 address = sk;
    struct sock_val *value = socks.lookup(&address);

    if (value)
        forget(sk, value, 1);
    return 0;
}

/* blank_sock: all zero, never written: too large for the stack to begin a socket's state with. */
BPF_ARRAY(blank_sock, struct sock_val, 1);

/* A new entry for `sk`; NULL when the map is full. Whatever stood there is folded first. */
static __always_inline struct sock_val *remember(u64 sk)
{
    u64 address = sk;
    int zero = 0;
    struct sock_val *blank = blank_sock.lookup(&zero);

    if (!blank)
        return NULL;
    if (socks.insert(&address, blank)) {
        struct sock_val *value = socks.lookup(&address);

        if (!value) {
            lose(LOSS_SOCKS_FULL, 1);
            return NULL;
        }
        /* connected anew after a disconnect, or the end of this memory's last socket was missed */
        forget(sk, value, 1);
        socks.insert(&address, blank);
    }
    return socks.lookup(&address);
}

/* In the context of connect(). */
static __always_inline void on_connect(u64 sk, const int direct)
{
    struct sock_val *value = remember(sk);
    struct flow_key key;

    if (!value)
        return;
    read_peer(sk, &key, ROLE_CLIENT, IPPROTO_TCP, direct);
    own(&key, direct);
    value->opened_ns = bpf_ktime_get_ns();
    value->flags = SOCK_ATTEMPT;
    value->claims = 1;
    value->state = TCP_SYN_SENT;
    value->key = key;
}

/* A connection came to a listener; it waits for the first process that uses it. */
static __always_inline void on_incoming(u64 sk, const int direct)
{
    u64 address = sk;
    struct sock_val *value = socks.lookup(&address);
    struct flow_key key;

    if (value && value->flags & SOCK_ATTEMPT &&
        value->key.port == __builtin_bswap16(READ(u16, sk, OFF_SOCK_DPORT))) {
        follow(sk, value, direct); /* both ends connected at once: it is the one opened by connect() */
        on_connected(sk, value, direct);
        return;
    }
    value = remember(sk);
    if (!value)
        return;
    read_peer(sk, &key, ROLE_SERVER, IPPROTO_TCP, direct);
    value->key = key;
    u64 port = listener_key(sk, key.netns, direct);
    struct listener_val *listener = listeners.lookup(&port);

    if (listener)
        value->user = listener->owner;
    value->opened_ns = bpf_ktime_get_ns();
    value->state = TCP_ESTABLISHED;
    value->retrans_seen = read_total_retrans(sk);
    follow(sk, value, direct);
    read_ends(sk, value, direct);
}

static __always_inline void on_listen(u64 sk, u64 change, const int direct)
{
    struct listener_val none = {};
    u64 key = listener_key(sk, read_netns(sk, direct), direct);
    struct listener_val *listener = listeners.lookup_or_try_init(&key, &none);

    if (!listener)
        return;
    if (change == 1) { /* in the context of listen() */
        struct flow_key flow = {.netns = key >> 16};

        own(&flow, direct);
        listener->owner.tgid = flow.tgid;
        listener->owner.start = flow.start;
        listener->owner.exec = flow.exec;
    }
    if (change == 1 || listener->count)
        __sync_fetch_and_add(&listener->count, change);
}

/* The connection above the subflows. It has no tcp_destroy_sock; CLOSE is its end. */
/* The connection above the subflows. It has no tcp_destroy_sock; CLOSE is its end. */
static __always_inline int on_mptcp_state(u64 sk, int before, int after)
{
    u64 address = sk;
    struct sock_val *value;
    u8 role = ROLE_CLIENT;

    if (after == TCP_CLOSE) {
        value = socks.lookup(&address);
        if (value)
            forget(sk, value, 0);
        return 0;
    }
    if (before == TCP_LISTEN || before == TCP_SYN_RECV) /* it is cloned from the listener, state and all */
        role = ROLE_SERVER;
    else if (after != TCP_SYN_SENT)
        return 0;
    value = socks.lookup(&address);
    if (value)
        return 0;
    value = remember(sk);
    if (value) {
        value->flags = SOCK_MPTCP;
        value->key.role = role;
    }
    return 0;
}

static __always_inline void on_change(u64 sk, u8 before, u8 after, const int by_seq, const int direct)
{
    u64 address = sk;
    struct sock_val *value = socks.lookup(&address);

    if (!value)
        return;
    if (after == TCP_CLOSE) {
        on_closed(sk, value, before);
        return;
    }
    value->state = after;
    if (after == TCP_ESTABLISHED) {
        if (by_seq)
            follow(sk, value, direct);
        on_connected(sk, value, direct);
    } else if (after == TCP_CLOSE_WAIT) {
        judge_fin(sk, value);
    } else if (before == TCP_ESTABLISHED) { /* FIN_WAIT1 */
        judge_close(sk, value);
    }
}

static __always_inline int on_set_state(u64 sk, int before, int after, const int by_seq, const int direct)
{
    u16 proto = READ(u16, sk, OFF_SOCK_PROTOCOL);

    if (proto == IPPROTO_MPTCP)
        return on_mptcp_state(sk, before, after);
    if (proto != IPPROTO_TCP)
        return 0;
    if (after == TCP_SYN_SENT) {
        on_connect(sk, direct);
    } else if (after == TCP_LISTEN) {
        on_listen(sk, 1, direct);
    } else if (before == TCP_LISTEN) {
        if (after == TCP_CLOSE) /* a new connection leaves LISTEN too: it is the listener's clone */
            on_listen(sk, -1, direct);
    } else if (before == TCP_SYN_RECV && after == TCP_ESTABLISHED) {
        on_incoming(sk, direct);
    } else if (after != TCP_SYN_RECV && after != before &&
               (before < TCP_FIN_WAIT1 || before == TCP_CLOSE_WAIT || after == TCP_CLOSE)) {
        on_change(sk, before, after, by_seq, direct);
    }
    return 0;
}

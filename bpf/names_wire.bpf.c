/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hostnames off the wire: DNS answers, who asked, and the first bytes of TLS clients. Hooks and blind spots:
 * see names.bpf.c, which comes before this file and has the ring that both write to.
 */

/*
 * A place in a message, as one number among all that are possible: by way of memory, so that the verifier
 * does not follow each way through a loop on its own.
 */
static __always_inline u64 any_place(struct lookup *lookup, u64 at)
{
    *(volatile u32 *)&lookup->place = at;
    at = *(volatile u32 *)&lookup->place;
    asm volatile("%0 &= 2047" : "+r"(at));
    return at;
}

/*
 * Of a DNS message in lookup->data: the question's name, hashed as it stands there, in lower case. Lengths of
 * labels are below 64, so they are no letters. Returns the place behind the question, 0 where it makes no
 * sense.
 */
static __always_inline u64 hash_question(struct lookup *lookup)
{
    u64 hash = FNV_OFFSET;

#pragma clang loop unroll(disable)
    for (u32 i = 12; i < 12 + NAME_LEN; i++) {
        u8 c = lookup->data[i];

        if (!c) {
            lookup->id = i > 12 ? hash : 0;
            return i + 5; /* behind type and class */
        }
        if (c >= 'A' && c <= 'Z')
            c += 'a' - 'A';
        hash = (hash ^ c) * FNV_PRIME;
    }
    return 0;
}

/* Behind the name of a record; 0 where there is none. */
static __always_inline u64 skip_name(struct lookup *lookup, u64 at)
{
#pragma clang loop unroll(disable)
    for (int i = 0; i < 32; i++) {
        at = any_place(lookup, at);
        if (at >= LOOKUP_DATA)
            return 0;
        u64 c = lookup->data[at];
        if (c >= 0xc0)
            return at + 2;
        at += 1 + c;
        if (!c)
            return at;
    }
    return 0;
}

/* The wire does not rename what a process asked its library for: that said `db`, this may say an alias. */
static __always_inline int note_address(struct name_key *key, const struct lookup *lookup)
{
    struct name_val fresh = {.id = lookup->id, .told_ns = lookup->time_ns, .kind = LOOKUP_WIRE};
    struct name_val *known = names_at.lookup(key);

    if (known && known->kind == LOOKUP_CALL) {
        if (known->wire_id == fresh.id && fresh.told_ns - known->wire_told_ns < TELL_AGAIN_NS)
            return 0;
        known->wire_id = fresh.id;
        known->wire_told_ns = fresh.told_ns;
        return 1;
    }
    if (known && known->id == fresh.id && fresh.told_ns - known->told_ns < TELL_AGAIN_NS)
        return 0;
    names_at.update(key, &fresh);
    return 1;
}

/* Puts the addresses of a DNS answer under the question's name; whether user space has to hear of it. */
static __always_inline int note_answers(struct lookup *lookup)
{
    struct name_key key = {.tgid = lookup->tgid, .start = lookup->tgid ? lookup->start : lookup->netns};
    u64 at = any_place(lookup, hash_question(lookup));
    u32 told = 0;

    if (!at || !lookup->id)
        return 0;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < LOOKUP_ADDRESSES; i++) {
        if (i >= lookup->count)
            break;
        at = any_place(lookup, skip_name(lookup, at));
        if (!at || at + 10 > lookup->length)
            break;
        /* by itself and last: joined with another one it bounds another number (verifier of Linux 6.1) */
        asm volatile("" : "+r"(at));
        if (at > LOOKUP_DATA - 26)
            break;
        const u8 *record = lookup->data + at;
        u64 size = record[8] << 8 | record[9];
        u32 type = record[0] << 8 | record[1];
        if (type == 1 && size == 4) {
            __builtin_memset(key.address, 0, 16);
            __builtin_memcpy(key.address, record + 10, 4);
            told |= note_address(&key, lookup);
        } else if (type == 28 && size == 16) {
            __builtin_memcpy(key.address, record + 10, 16);
            told |= note_address(&key, lookup);
        }
        at += 10 + size;
    }
    return told;
}

/*
 * Who asked: a UDP socket's last sender, a TCP connection's owner; in any case the socket's network
 * namespace. Returns 0 for a socket that asked nobody: anyone may send from port 53 to an open port.
 */
static __always_inline int find_asker(struct lookup *lookup, u64 sk, u8 proto)
{
    const int direct = 0;

    lookup->netns = read_netns(sk, direct);
    if (proto == IPPROTO_UDP) {
        struct asker *asker = askers.lookup(&sk);

        if (!asker || asker->port != READ(u16, sk, OFF_SOCK_NUM))
            return 0;
        lookup->tgid = asker->tgid;
        lookup->start = asker->start;
        return 1;
    }
    struct sock_val *value = socks.lookup(&sk);
    if (!value || value->key.role != ROLE_CLIENT)
        return 0;
    lookup->tgid = value->key.tgid;
    lookup->start = value->key.start;
    return 1;
}

/* The address of a packet's socket, 0 without one: through memory, so that it is a number. */
static __always_inline u64 socket_address(struct __sk_buff *skb, struct lookup *lookup)
{
    struct bpf_sock *sock = skb->sk;

    if (!sock)
        return 0;
    lookup->id = (u64)sock;
    return *(volatile u64 *)&lookup->id;
}

/*
 * Takes a packet's bytes from `at` on into lookup->data; returns how many, 0 for fewer than any answer or
 * greeting has. Two comparisons, each on what is then used: the verifier follows no other way.
 */
static __always_inline u64 load_data(struct __sk_buff *skb, u32 at, u64 size, struct lookup *lookup)
{
    if (size > LOOKUP_DATA)
        size = LOOKUP_DATA;
    asm volatile("" : "+r"(size));
    if (size > LOOKUP_DATA)
        return 0;
    asm volatile("" : "+r"(size));
    if (size < 17)
        return 0;
    return bpf_skb_load_bytes(skb, at, lookup->data, size) ? 0 : size;
}

/* A packet from port 53 whose DNS message begins at `at`. */
static __always_inline void on_dns_answer(struct __sk_buff *skb, u32 at, u8 proto)
{
    int place = PLACE_IN;
    struct lookup *lookup = lookup_scratch.lookup(&place);
    u64 size = (u64)skb->len - at;

    if (!lookup || skb->len <= at)
        return;
    if (proto == IPPROTO_TCP) {
        u16 announced = 0;

        if (bpf_skb_load_bytes(skb, at, &announced, 2) || __builtin_bswap16(announced) != size - 2)
            return;
        at += 2;
        size -= 2;
    }
    size = load_data(skb, at, size, lookup);
    if (!size)
        return;
    /* a response without error, to one question, with answers */
    if (!(lookup->data[2] & 0x80) || lookup->data[3] & 15 || lookup->data[4] || lookup->data[5] != 1)
        return;
    u32 answers = lookup->data[6] << 8 | lookup->data[7];
    u64 sk = socket_address(skb, lookup);
    if (!answers || !sk || !find_asker(lookup, sk, proto))
        return;
    lookup->id = 0;
    lookup->kind = LOOKUP_WIRE;
    lookup->count = answers > LOOKUP_ADDRESSES ? LOOKUP_ADDRESSES : answers;
    lookup->length = size;
    lookup->pad = proto == IPPROTO_TCP;
    lookup->time_ns = bpf_ktime_get_ns();
    if (note_answers(lookup))
        tell_lookup(lookup, size);
}

/* Where the header behind IP's begins, 0 for what is neither UDP nor TCP. */
static __always_inline u32 find_header(struct __sk_buff *skb, u8 *proto)
{
    u8 *packet = (u8 *)(long)skb->data, *end = (u8 *)(long)skb->data_end;
    u32 at = 40;

    if (packet + 40 > end)
        return 0;
    if (packet[0] >> 4 == 4) {
        at = (packet[0] & 15) * 4;
        *proto = packet[9];
    } else {
        *proto = packet[6];
    }
    return *proto == IPPROTO_UDP || *proto == IPPROTO_TCP ? at : 0;
}

/* Returns 1 always: 0 would drop the packet. */
int skb__answers(struct __sk_buff *skb)
{
    u8 proto = 0;
    u32 at = find_header(skb, &proto);
    u8 *header = (u8 *)(long)skb->data + at, *end = (u8 *)(long)skb->data_end;

    if (!at || header + 14 > end || header[0] || header[1] != DNS_PORT)
        return 1;
    on_dns_answer(skb, at + (proto == IPPROTO_UDP ? 8 : (header[12] >> 4) * 4), proto);
    return 1;
}

/* In the context of whoever sends a question, from a socket that need not be connected. */
static __always_inline void on_dns_question(struct __sk_buff *skb)
{
    const int direct = 0;
    int place = PLACE_OUT;
    struct lookup *lookup = lookup_scratch.lookup(&place);
    struct proc_key process;

    if (!lookup)
        return;
    u64 sk = socket_address(skb, lookup);
    identify(bpf_get_current_task(), &process, direct);
    if (sk && process.tgid)
        note_asker(sk, process.tgid, process.start);
}

/* The first bytes of a TLS connection, where the process has no name for whom it connected to. */
static __always_inline void on_client_hello(struct __sk_buff *skb, u32 at)
{
    int place = PLACE_OUT;
    struct lookup *lookup = lookup_scratch.lookup(&place);
    u64 size = (u64)skb->len - at;

    if (!lookup || skb->len <= at)
        return;
    u64 sk = socket_address(skb, lookup);
    struct sock_val *value = sk ? socks.lookup(&sk) : NULL;
    if (!value || value->key.role != ROLE_CLIENT || *(u32 *)value->key.local ||
        *(u32 *)(value->key.local + 4))
        return;
    size = load_data(skb, at, size, lookup);
    if (!size)
        return;
    lookup->time_ns = bpf_ktime_get_ns();
    lookup->id = 0;
    lookup->tgid = value->key.tgid;
    lookup->start = value->key.start;
    lookup->netns = value->key.netns;
    lookup->kind = LOOKUP_HELLO;
    lookup->count = 0;
    lookup->length = size;
    lookup->family = value->key.family;
    lookup->port = value->key.port;
    __builtin_memcpy(lookup->peer, value->key.peer, 16);
    tell_lookup(lookup, size);
}

/* A handshake record (22) of SSL 3 to TLS 1.3 that begins with a client's hello (1). */
int skb__asks(struct __sk_buff *skb)
{
    u8 proto = 0, first[6];
    u32 at = find_header(skb, &proto);
    u8 *header = (u8 *)(long)skb->data + at, *end = (u8 *)(long)skb->data_end;

    if (!at || header + 14 > end)
        return 1;
    if (proto == IPPROTO_UDP) {
        if (!header[2] && header[3] == DNS_PORT)
            on_dns_question(skb);
        return 1;
    }
    at += (header[12] >> 4) * 4;
    if (skb->len < at + 43 || bpf_skb_load_bytes(skb, at, first, 6))
        return 1;
    if (first[0] == 22 && first[1] == 3 && first[5] == 1)
        on_client_hello(skb, at);
    return 1;
}

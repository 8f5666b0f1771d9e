/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hostnames: what resolvers answered, to whom.
 *
 * Hooks (kernob/probes/names.py; each may be missing):
 *   calls  uprobe and uretprobe on getaddrinfo and the gethostbyname family, in every C library that a
 *          process has mapped (user space attaches to each inode as it appears; Linux 4.17)
 *   wire   cgroup_skb ingress at the root of cgroup2 (5.7): packets from port 53, UDP, and TCP where an
 *          answer is one segment; once a packet of any kind, see benchmarks/README.md
 *   hello  cgroup_skb egress there: who sends to port 53, and the first bytes of TLS connections to addresses
 *          that have no name; once a packet of any kind
 *
 * Nothing here runs per packet or per byte of the application's own traffic, except what a hook's line says.
 * A call's answer is put into names_at at once, so that a connection that begins right after it carries the
 * name; user space hears of an answer when it is new, and again once a minute.
 *
 * Blind spots: resolvers inside programs that do not ask on the wire in a form we read (DNS over TLS or
 * HTTPS); answers with more than 16 addresses: the first 16.
 */

#ifdef HAVE_RINGBUF
struct lookups_table_t {
    int key;
    struct lookup leaf;
    void *(*ringbuf_reserve)(u64);
    void (*ringbuf_submit)(void *, u64);
    void (*ringbuf_discard)(void *, u64);
    int (*ringbuf_output)(void *, u64, u64);
    u64 (*ringbuf_query)(u64);
    u32 max_entries;
};
/* lookups: struct lookup, each cut to its length. Written here, read by user space; full: counted in losses.
 */
__attribute__((section("maps/ringbuf"))) struct lookups_table_t lookups = {.max_entries = 1 << 20};
#endif

/* lookup_scratch: one record per CPU; it is too large for the stack. */
BPF_PERCPU_ARRAY(lookup_scratch, struct lookup, 1);

#define TELL_AGAIN_NS (60 * SECOND_NS)
#define FNV_OFFSET    0xcbf29ce484222325ULL
#define FNV_PRIME     0x100000001b3ULL

/* resolving: thread -> the call it is in. Inserted at entry, deleted at return; a lost one makes room. */
struct resolving_val {
    u64 name;
    u64 result; /* where the call puts a pointer to its answer; 0: it returns it */
    u64 is_host;
};
BPF_TABLE("lru_hash", u64, struct resolving_val, resolving, 4096);

static __always_inline void tell_lookup(struct lookup *lookup, u64 length)
{
#ifdef HAVE_RINGBUF
    u64 size = 56 + ((length + LOOKUP_STEP - 1) & ~(LOOKUP_STEP - 1));

    asm volatile("" : "+r"(size)); /* the verifier believes only a comparison of what is used */
    if (size > sizeof(*lookup))
        return;
    if (lookups.ringbuf_output(lookup, size, 0))
        lose(LOSS_LOOKUPS_FULL, 1);
#endif
}

/*
 * FNV-1a of a string; 0 for what is no name but an address: it has a colon, or nothing but digits and dots.
 * User space has the same function (kernob/state/hostname_text.py).
 */
static __always_inline u64 hash_name(const u8 *name)
{
    u64 hash = FNV_OFFSET;
    u32 letters = 0;

#pragma clang loop unroll(disable)
    for (int i = 0; i < NAME_LEN - 1; i++) {
        u8 c = name[i];

        if (!c)
            break;
        if (c == ':')
            return 0;
        if (c != '.' && (c < '0' || c > '9'))
            letters = 1;
        hash = (hash ^ c) * FNV_PRIME;
    }
    return letters ? hash : 0;
}

static __always_inline int enter_resolver(struct pt_regs *ctx, u64 result, u64 is_host)
{
    u64 thread = bpf_get_current_pid_tgid();
    struct resolving_val call = {.name = PT_REGS_PARM1(ctx), .result = result, .is_host = is_host};

    if (call.name)
        resolving.update(&thread, &call);
    return 0;
}

int up__getaddrinfo(struct pt_regs *ctx)
{
    return enter_resolver(ctx, PT_REGS_PARM4(ctx), 0);
}

int up__gethostbyname(struct pt_regs *ctx)
{
    return enter_resolver(ctx, 0, 1);
}

/* gethostbyname_r(name, ret, buf, buflen, result, h_errnop) */
int up__gethostbyname_r(struct pt_regs *ctx)
{
    return enter_resolver(ctx, PT_REGS_PARM5(ctx), 1);
}

/* gethostbyname2_r(name, af, ret, buf, buflen, result, h_errnop) */
int up__gethostbyname2_r(struct pt_regs *ctx)
{
    return enter_resolver(ctx, PT_REGS_PARM6(ctx), 1);
}

/* One more address of an answer; the same one comes once for each socket type. */
static __always_inline void add_address(struct lookup *lookup, u16 family, u64 at)
{
    struct lookup_address found = {.family = family};
    u32 count = lookup->count;

    if (family == AF_INET)
        bpf_probe_read_user(found.address, 4, (void *)at);
    else if (family == AF_INET6)
        bpf_probe_read_user(found.address, 16, (void *)at);
    else
        return;
    u32 *words = (u32 *)found.address;
    if (family == AF_INET6 && !words[0] && !words[1] && words[2] == __builtin_bswap32(0xffff)) {
        words[0] = words[3];
        words[2] = words[3] = 0;
        found.family = AF_INET;
    }
    if (count >= LOOKUP_ADDRESSES)
        return;
    if (count) {
        u32 last = count - 1;

        asm volatile("" : "+r"(last));
        if (last >= LOOKUP_ADDRESSES)
            return;
        u32 *before = (u32 *)(lookup->data + NAME_LEN + last * sizeof(found) + 4);
        if (before[0] == words[0] && before[1] == words[1] && before[2] == words[2] && before[3] == words[3])
            return;
    }
    asm volatile("" : "+r"(count));
    if (count >= LOOKUP_ADDRESSES)
        return;
    __builtin_memcpy(lookup->data + NAME_LEN + count * sizeof(found), &found, sizeof(found));
    lookup->count = count + 1;
}

/* struct addrinfo of glibc and musl: ai_addr at 24, ai_next at 40. */
static __always_inline void read_addrinfo(struct lookup *lookup, u64 node)
{
#pragma clang loop unroll(disable)
    for (int i = 0; i < 3 * LOOKUP_ADDRESSES; i++) {
        u64 address = 0;
        u16 family = 0;

        if (!node)
            break;
        bpf_probe_read_user(&address, sizeof(address), (void *)(node + 24));
        bpf_probe_read_user(&family, sizeof(family), (void *)address);
        add_address(lookup, family, address + (family == AF_INET ? 4 : 8));
        if (bpf_probe_read_user(&node, sizeof(node), (void *)(node + 40)))
            break;
    }
}

/* struct hostent: h_addrtype at 16, h_addr_list at 24. */
static __always_inline void read_hostent(struct lookup *lookup, u64 host)
{
    u64 list = 0, at = 0;
    u32 family = 0;

    bpf_probe_read_user(&family, sizeof(family), (void *)(host + 16));
    bpf_probe_read_user(&list, sizeof(list), (void *)(host + 24));
#pragma clang loop unroll(disable)
    for (int i = 0; i < LOOKUP_ADDRESSES; i++) {
        if (bpf_probe_read_user(&at, sizeof(at), (void *)(list + 8 * i)) || !at)
            break;
        add_address(lookup, family, at);
    }
}

/* Puts an answer's addresses under its name; whether user space has to hear of it. */
static __always_inline int note_addresses(struct lookup *lookup)
{
    struct name_key key = {.tgid = lookup->tgid, .start = lookup->start};
    struct name_val fresh = {.id = lookup->id, .told_ns = lookup->time_ns, .kind = LOOKUP_CALL};
    u32 told = 0;

#pragma clang loop unroll(disable)
    for (u32 i = 0; i < LOOKUP_ADDRESSES; i++) {
        if (i >= lookup->count)
            break;
        __builtin_memcpy(key.address, lookup->data + NAME_LEN + i * sizeof(struct lookup_address) + 4, 16);
        struct name_val *known = names_at.lookup(&key);
        if (known && known->id == fresh.id && fresh.told_ns - known->told_ns < TELL_AGAIN_NS)
            continue;
        names_at.update(&key, &fresh);
        told = 1;
    }
    return told;
}

int urp__resolver(struct pt_regs *ctx)
{
    const int direct = 0;
    u64 thread = bpf_get_current_pid_tgid();
    struct resolving_val *found = resolving.lookup(&thread);
    int zero = 0;

    if (!found)
        return 0;
    struct resolving_val call = *found;
    resolving.delete(&thread);
    struct lookup *lookup = lookup_scratch.lookup(&zero);
    u64 answer = call.result ? 0 : PT_REGS_RC(ctx);
    if (!lookup)
        return 0;
    if (call.result && (int)PT_REGS_RC(ctx) == 0)
        bpf_probe_read_user(&answer, sizeof(answer), (void *)call.result);
    if (!answer)
        return 0;
    lookup->count = 0;
    lookup->kind = LOOKUP_CALL;
    if (bpf_probe_read_user_str(lookup->data, NAME_LEN, (void *)call.name) <= 1)
        return 0;
    lookup->id = hash_name(lookup->data);
    if (!lookup->id)
        return 0;
    if (call.is_host)
        read_hostent(lookup, answer);
    else
        read_addrinfo(lookup, answer);
    u64 task = bpf_get_current_task();
    struct proc_key process;

    identify(task, &process, direct);
    lookup->tgid = process.tgid;
    lookup->start = process.start;
    lookup->netns = READ(u32, READ(u64, READ(u64, task, OFF_TASK_NSPROXY), OFF_NSPROXY_NET), OFF_NET_INUM);
    lookup->time_ns = bpf_ktime_get_ns();
    lookup->length = 0;
    if (note_addresses(lookup))
        tell_lookup(lookup, NAME_LEN + LOOKUP_ADDRESSES * sizeof(struct lookup_address));
    return 0;
}

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

    if (known && known->kind == LOOKUP_CALL)
        return 1;
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

/* Who asked: a UDP socket's last sender, a TCP socket's owner; in any case the socket's network namespace. */
static __always_inline void find_asker(struct lookup *lookup, u64 sk, u8 proto)
{
    const int direct = 0;

    lookup->tgid = lookup->start = 0;
    lookup->netns = read_netns(sk, direct);
    if (proto == IPPROTO_UDP) {
        struct proc_key *asker = askers.lookup(&sk);

        if (asker) {
            lookup->tgid = asker->tgid;
            lookup->start = asker->start;
        }
        return;
    }
    struct sock_val *value = socks.lookup(&sk);
    if (value) {
        lookup->tgid = value->key.tgid;
        lookup->start = value->key.start;
    }
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

/* A packet from port 53 whose DNS message begins at `at`. */
static __always_inline void on_dns_answer(struct __sk_buff *skb, u32 at, u8 proto)
{
    int zero = 0;
    struct lookup *lookup = lookup_scratch.lookup(&zero);
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
    if (size > LOOKUP_DATA)
        size = LOOKUP_DATA;
    /* two comparisons, each on what is then used: the verifier follows no other way */
    asm volatile("" : "+r"(size));
    if (size > LOOKUP_DATA)
        return;
    asm volatile("" : "+r"(size));
    if (size < 17)
        return;
    if (bpf_skb_load_bytes(skb, at, lookup->data, size))
        return;
    /* a response without error, to one question, with answers */
    if (!(lookup->data[2] & 0x80) || lookup->data[3] & 15 || lookup->data[4] || lookup->data[5] != 1)
        return;
    u32 answers = lookup->data[6] << 8 | lookup->data[7];
    u64 sk = socket_address(skb, lookup);
    if (!answers || !sk)
        return;
    find_asker(lookup, sk, proto);
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
    int zero = 0;
    struct lookup *lookup = lookup_scratch.lookup(&zero);
    struct proc_key process;

    if (!lookup)
        return;
    u64 sk = socket_address(skb, lookup);
    identify(bpf_get_current_task(), &process, direct);
    if (sk && process.tgid)
        askers.update(&sk, &process);
}

/* The first bytes of a TLS connection, where the process has no name for whom it connected to. */
static __always_inline void on_client_hello(struct __sk_buff *skb, u32 at)
{
    int zero = 0;
    struct lookup *lookup = lookup_scratch.lookup(&zero);
    u64 size = (u64)skb->len - at;

    if (!lookup || skb->len <= at)
        return;
    u64 sk = socket_address(skb, lookup);
    struct sock_val *value = sk ? socks.lookup(&sk) : NULL;
    if (!value || value->key.role != ROLE_CLIENT || *(u32 *)value->key.local ||
        *(u32 *)(value->key.local + 4))
        return;
    if (size > LOOKUP_DATA)
        size = LOOKUP_DATA;
    asm volatile("" : "+r"(size));
    if (size > LOOKUP_DATA)
        return;
    asm volatile("" : "+r"(size));
    if (size < 17)
        return;
    if (bpf_skb_load_bytes(skb, at, lookup->data, size))
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

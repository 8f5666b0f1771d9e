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

/*
 * lookup_scratch: records in the making, per CPU; too large for the stack. One for each place where they are
 * made, for a packet comes in (softirq) while a call's return or a packet going out is being looked at.
 */
enum lookup_place { PLACE_CALL, PLACE_IN, PLACE_OUT, PLACE_MAX };
BPF_PERCPU_ARRAY(lookup_scratch, struct lookup, PLACE_MAX);

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
    int place = PLACE_CALL;

    if (!found)
        return 0;
    struct resolving_val call = *found;
    resolving.delete(&thread);
    struct lookup *lookup = lookup_scratch.lookup(&place);
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

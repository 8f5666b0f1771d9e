/* SPDX-License-Identifier: GPL-2.0-only */
/* Where facts about connections go: counts, durations, and events with their exact time. */

/*
 * fates: what happened to connections, by flow. Added to by every program that learns of something,
 * swapped and drained by user space like flows. When full, LOSS_FATES_FULL counts what did not fit.
 */
BPF_TABLE("hash", struct fate_key, u64, fates_idle, 1024);
BPF_ARRAY_OF_MAPS(fates, "fates_idle", 1);

/* durations: histograms by flow and kind, swapped and drained likewise; LOSS_DURATIONS_FULL. */
BPF_TABLE("hash", struct duration_key, struct duration_val, durations_idle, 1024);
BPF_ARRAY_OF_MAPS(durations, "durations_idle", 1);

/* blank_duration: all zero, never written: too large for the stack to begin a histogram with. */
BPF_ARRAY(blank_duration, struct duration_val, 1);

/* options: enum option -> 1 where user space wants it. Written before anything attaches. */
BPF_ARRAY(options, u32, OPTION_MAX);

/*
 * events: a ring buffer of struct tcp_event, read by user space. When full, the event is counted in
 * LOSS_EVENTS_FULL; the fact itself stands in fates. Declared by hand, because BCC's own macro would not
 * report the record's type.
 */
#ifdef HAVE_RINGBUF
struct events_table_t {
    int key;
    struct tcp_event leaf;
    void *(*ringbuf_reserve)(u64);
    void (*ringbuf_submit)(void *, u64);
    u32 max_entries;
};
__attribute__((section("maps/ringbuf"))) struct events_table_t events = {.max_entries = 1 << 20};
#endif

/* floor(2^63 * 2^(k/4)) */
#define ROOT_1 10968499650544839023ULL
#define ROOT_2 13043817825332782212ULL
#define ROOT_3 15511800964685064948ULL

/* See DURATION_BUCKETS in types.h. */
static __always_inline u32 bucket_of(u64 ns)
{
    u32 top = 63, bucket;

    if (ns <= 1024)
        return 0;
    /* the leading bit moves to bit 63 */
#define SHIFT(bits)                                                                                          \
    if (!(ns >> (64 - (bits)))) {                                                                            \
        ns <<= (bits);                                                                                       \
        top -= (bits);                                                                                       \
    }
    SHIFT(32)
    SHIFT(16)
    SHIFT(8)
    SHIFT(4)
    SHIFT(2)
    SHIFT(1)
#undef SHIFT
    bucket = 4 * (top - 10) + (ns > 1ULL << 63) + (ns > ROOT_1) + (ns > ROOT_2) + (ns > ROOT_3);
    return bucket < DURATION_BUCKETS ? bucket : DURATION_BUCKETS - 1;
}

static __always_inline void observe(struct duration_val *value, u64 ns)
{
    __sync_fetch_and_add(&value->sum_ns, ns);
    __sync_fetch_and_add(&value->count, 1);
    /* OTLP's bounds are powers of two of a second: 2^50 / 10^9, then units of 2^-30 s */
    u32 bucket = bucket_of((ns < 1ULL << 42 ? ns : 1ULL << 42) * 1125900 >> 20);
    asm volatile("" : "+r"(bucket)); /* or the compiler drops the check that the verifier wants to see */
    if (bucket < DURATION_BUCKETS)
        __sync_fetch_and_add(&value->buckets[bucket], 1);
}

static __always_inline void add_duration(const struct flow_key *flow, u8 kind, u64 ns)
{
    struct duration_key key = {.flow = *flow, .kind = kind};
    int zero = 0;
    void *map = durations.lookup(&zero);
    if (!map)
        return;
    struct duration_val *value = bpf_map_lookup_elem(map, &key);
    if (!value) {
        struct duration_val *blank = blank_duration.lookup(&zero);
        if (blank)
            bpf_map_update_elem(map, &key, blank, BPF_NOEXIST);
        value = bpf_map_lookup_elem(map, &key);
    }
    if (value)
        observe(value, ns);
    else
        lose(LOSS_DURATIONS_FULL, 1);
}

static __always_inline void add_fate(const struct fate_key *key, u64 count)
{
    int zero = 0;
    void *map = fates.lookup(&zero);
    if (!map)
        return;
    u64 *value = bpf_map_lookup_elem(map, key);
    if (!value) {
        u64 none = 0;
        bpf_map_update_elem(map, key, &none, BPF_NOEXIST);
        value = bpf_map_lookup_elem(map, key);
    }
    if (value)
        __sync_fetch_and_add(value, count);
    else
        lose(LOSS_FATES_FULL, count);
}

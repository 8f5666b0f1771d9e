/* SPDX-License-Identifier: GPL-2.0-only */
/* Which hostname a process had for an address when it connected there. Filled by names.bpf.c. */

#define DNS_PORT 53

/*
 * names_at: process and address -> id of the hostname that the process last got this address for. Inserted
 * when a resolver's answer comes, by names.bpf.c; read when a connection begins. The least recently used
 * entry goes when it is full: such a connection is named by user space, as one without an id.
 */
BPF_TABLE("lru_hash", struct name_key, struct name_val, names_at, 16384);

/* Puts into a client's key the id of the name that its process has for the peer. */
static __always_inline void name_flow(struct flow_key *flow)
{
    struct name_key key = {.tgid = flow->tgid, .start = flow->start};

    __builtin_memcpy(key.address, flow->peer, 16);
    struct name_val *known = names_at.lookup(&key);
    if (!known) {
        key.tgid = 0;
        key.start = flow->netns;
        known = names_at.lookup(&key);
    }
    if (known)
        __builtin_memcpy(flow->local, &known->id, 8);
}

/*
 * askers: UDP socket that asked a DNS server -> the process that last asked there, and from which port, for
 * the socket's memory may be another's by now. Inserted when it sends, read when the answer comes; a full map
 * makes room by itself.
 */
struct asker {
    u32 tgid;
    u32 start;
    u32 port;
};
BPF_TABLE("lru_hash", u64, struct asker, askers, 2048);

/* In the context of a send by UDP. */
static __always_inline void note_asker(u64 sk, u32 tgid, u32 start)
{
    const int direct = 0;
    struct asker asker = {.tgid = tgid, .start = start, .port = READ(u16, sk, OFF_SOCK_NUM)};

    askers.update(&sk, &asker);
}

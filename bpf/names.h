/* SPDX-License-Identifier: GPL-2.0-only */
/* Which hostname a process had for an address when it connected there. Filled by names.bpf.c. */

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
    if (known)
        __builtin_memcpy(flow->local, &known->id, 8);
}

/* SPDX-License-Identifier: GPL-2.0-only */
/* Reading a socket: its network namespace, its peer, and which side opened the connection. */

/*
 * listeners: (network namespace << 16 | port) -> number of listening sockets, and who listens. Seeded from
 * /proc, then kept by set_state, deleted with the last one; tells the role of sockets that were open before
 * the agent. When full, LOSS_SOCKS_FULL.
 */
BPF_TABLE("hash", u64, struct listener_val, listeners, 4096);

/*
 * socks: live TCP sockets by address of struct sock. Inserted when a connection is opened,
 * established or first used, deleted when the socket is destroyed, read by user space. When full,
 * bytes go straight to flows (slower, still exact), and facts about the connection are lost.
 */
BPF_TABLE("hash", u64, struct sock_val, socks, 1024);

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT    2
#define TCP_SYN_RECV    3
#define TCP_FIN_WAIT1   4
#define TCP_CLOSE       7
#define TCP_CLOSE_WAIT  8
#define TCP_LAST_ACK    9
#define TCP_LISTEN      10

static __always_inline void own(struct flow_key *key, const int direct)
{
    struct proc_key process;

    identify(current_task(direct), &process, direct);
    remember_process(&process, key->netns);
    key->start = process.start;
    key->exec = process.exec;
    key->tgid = process.tgid;
}

/* Counts by copied_seq from here on. Before the handshake's end there is nothing to go by. */
static __always_inline void follow(u64 sk, struct sock_val *value, const int direct)
{
    value->copied = read_copied_seq(sk, direct);
    value->copied_known = 1;
}

/* Raw sockets have TCP's or UDP's number, but what they get are copies of others' packets. */
static __always_inline int is_raw(u64 sk, const int direct)
{
    return READ(u16, sk, OFF_SOCK_TYPE) == 3; /* SOCK_RAW */
}

static __always_inline u32 read_netns(u64 sk, const int direct)
{
    return READ(u32, READ(u64, sk, OFF_SOCK_NET), OFF_NET_INUM);
}

static __always_inline u64 listener_key(u64 sk, u32 netns, const int direct)
{
    return (u64)netns << 16 | READ(u16, sk, OFF_SOCK_NUM);
}

/* 16-byte address at `field` (v6) or `field4` (v4) of the socket; v4-mapped becomes v4. */
static __always_inline u8 read_address(u64 sk, u32 *address, int field4, int field6, const int direct)
{
    u16 family = READ(u16, sk, OFF_SOCK_FAMILY);

    address[0] = address[1] = address[2] = address[3] = 0;
    if (family == AF_INET6) {
        u32 word2 = READ(u32, sk, field6 + 8);
        u32 word3 = READ(u32, sk, field6 + 12);
        u32 word0 = READ(u32, sk, field6);
        u32 word1 = READ(u32, sk, field6 + 4);

        if (!word0 && !word1 && word2 == __builtin_bswap32(0xffff)) {
            address[0] = word3;
            return AF_INET;
        }
        address[0] = word0;
        address[1] = word1;
        address[2] = word2;
        address[3] = word3;
        return AF_INET6;
    }
    address[0] = READ(u32, sk, field4);
    return AF_INET;
}

/* Fills everything of a key but the process. */
static __always_inline void read_peer(u64 sk, struct flow_key *key, u8 role, u8 proto, const int direct)
{
    u32 peer[4], local[4];
    u16 port = __builtin_bswap16(READ(u16, sk, OFF_SOCK_DPORT));

    __builtin_memset(key, 0, sizeof(*key));
    key->proto = proto;
    key->netns = read_netns(sk, direct);
    if (proto == IPPROTO_UDP && !port) { /* unconnected: the peer is in the message, not here */
        key->family = READ(u16, sk, OFF_SOCK_FAMILY);
        return;
    }
    key->role = role;
    key->family = read_address(sk, peer, OFF_SOCK_DADDR, OFF_SOCK_V6_DADDR, direct);
    __builtin_memcpy(key->peer, peer, 16);
    key->port = port;
    if (role == ROLE_SERVER) {
        key->port = READ(u16, sk, OFF_SOCK_NUM);
        read_address(sk, local, OFF_SOCK_RCV_SADDR, OFF_SOCK_V6_RCV_SADDR, direct);
        __builtin_memcpy(key->local, local, 16);
    }
}

/*
 * Who opened a connection whose opening nobody saw. A local port with a listener: the peer. Else the bind
 * bucket tells: connect() chose the port itself when fastreuse is -1 (__inet_hash_connect); a port that
 * was bound by name is a listener's, which has closed since (or a client's that insists on its port).
 */
static __always_inline u8 guess_role(u64 sk, u32 netns, const int direct_sock)
{
    const int direct = 0;
    u64 key = listener_key(sk, netns, direct_sock);
    struct listener_val *listener = listeners.lookup(&key);

    if (listener && listener->count)
        return ROLE_SERVER;
    u64 bucket = READ(u64, sk, OFF_ICSK_BIND_HASH);
    return !bucket || READ(s8, bucket, OFF_BIND_BUCKET_FASTREUSE) == -1 ? ROLE_CLIENT : ROLE_SERVER;
}

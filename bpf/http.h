/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * HTTP/1 in plain text, as far as needed to tell a whole response from one that was cut short by an orderly
 * close (eof_mid_response), which look the same to TCP.
 *
 * Where it looks: the memory of the call that has just sent or received (bpf_task_pt_regs, Linux 5.15; the
 * system calls below), so the first bytes of a request and the head of its response are read where and when
 * they are in the cache, by sockets that ask in HTTP only. Of a response with Content-Length then only its
 * last sequence number is kept; of a chunked one how much of its final bytes has come.
 *
 * Undecided, and so never a drop: TLS, HTTP/2, io_uring, recvmmsg, preadv, a head that did not come in one
 * call or is longer than HTTP_HEAD, a response received in one call with a 1xx head before it, chunks read by
 * splice or scattered over many buffers, trailers, lengths of a GiB and more. Measured: benchmarks/README.md.
 */

enum http {
    HTTP_NEW,       /* nothing was sent yet */
    HTTP_NONE,      /* something else; not looked at again */
    HTTP_UNDECIDED, /* HTTP, but nothing can be said of this exchange */
    HTTP_ASKED,
    HTTP_ASKED_HEAD, /* whose response has no body */
    HTTP_LENGTH,     /* the response ends at http_end */
    HTTP_CHUNKED     /* http_seen bytes of its end have come; everything up to http_end was looked at */
};

#ifdef HTTP_EVIDENCE

#define HTTP_HEAD     1024
#define HTTP_STATUS   12 /* length of "HTTP/1.1 200" */
#define HTTP_FARTHEST (1 << 30)
#define HTTP_LAST     5 /* bytes of "0\r\n\r\n" */
#define HTTP_BUFFERS  4
#define LOWER         0x2020202020202020ULL
/* eight characters as memory holds them */
#define EIGHT(a, b, c, d, e, f, g, h)                                                                        \
    ((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 | (u64)(f) << 40 |          \
     (u64)(g) << 48 | (u64)(h) << 56)
#define FOUR(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)
#define AT(type, offset) (*(volatile type *)(head->text + (offset)))

struct buffer {
    u64 start;
    u64 length;
};

/*
 * heads: the current call's buffers, the beginning of a response and where in it what stands, one per CPU.
 * Some room behind the text for the search to look ahead. All of it in the map and read anew, since the
 * verifier follows each value of what the stack holds through the rest of the program.
 */
struct http_head {
    struct buffer buffers[HTTP_BUFFERS];
    u32 known; /* buffers that may be used */
    u32 body;  /* offsets, 0 where there is none */
    u32 length_at;
    u32 coding_at;
    u32 trailer_at;
    u32 count; /* of the text */
    u32 pad[2];
    char text[HTTP_HEAD + 32];
};
BPF_PERCPU_ARRAY(heads, struct http_head, 1);

#if defined(__x86_64__)
#define CALL_READ     0
#define CALL_WRITE    1
#define CALL_READV    19
#define CALL_WRITEV   20
#define CALL_SENDTO   44
#define CALL_RECVFROM 45
#define CALL_SENDMSG  46
#define CALL_RECVMSG  47
#define SECOND_OFFSET 0
#else
#define CALL_READ     63
#define CALL_WRITE    64
#define CALL_READV    65
#define CALL_WRITEV   66
#define CALL_SENDTO   206
#define CALL_RECVFROM 207
#define CALL_SENDMSG  211
#define CALL_RECVMSG  212
#define SECOND_OFFSET 8
#endif

/*
 * The buffers of the current system call, which has moved `length` bytes; none where they are not known.
 * Others than the first are read only if `several`.
 */
static __always_inline void call_buffers(struct http_head *head, u64 length, const int several)
{
    const int direct = 1;
    struct buffer *buffers = head->buffers;
    u64 regs = task_pt_regs(current_task_btf());

    head->known = 0;
    if (!regs)
        return;
    u64 call = READ(u64, regs, OFF_REGS_CALL), second = READ(u64, regs, OFF_REGS_SECOND + SECOND_OFFSET);
    if (call == CALL_READ || call == CALL_RECVFROM || call == CALL_WRITE || call == CALL_SENDTO) {
        buffers[0].start = second;
        buffers[0].length = length;
        head->known = 1;
        return;
    }
    if (call == CALL_RECVMSG || call == CALL_SENDMSG) {
        /* struct user_msghdr: msg_iov */
        if (bpf_probe_read_user(&second, sizeof(second), (void *)(second + 16)))
            return;
    } else if (call != CALL_READV && call != CALL_WRITEV) {
        return;
    }
    if (bpf_probe_read_user(buffers, sizeof(*buffers), (void *)second))
        return;
    head->known = 1;
    /* behind the last one there may be no memory */
    if (several && buffers[0].length < length &&
        !bpf_probe_read_user(buffers + 1, (HTTP_BUFFERS - 1) * sizeof(*buffers), (void *)(second + 16)))
        head->known = HTTP_BUFFERS;
}

/* A request begins, or its next part after an answer to the first. */
static __always_inline void http_note_ask(struct sock_val *value, u64 bytes)
{
    int zero = 0;
    u32 word = 0;

    if (value->http == HTTP_NONE || value->flags & SOCK_MPTCP)
        return;
    int other = value->http == HTTP_NEW ? HTTP_NONE : HTTP_UNDECIDED;
    struct http_head *head = heads.lookup(&zero);
    if (!head)
        return;
    call_buffers(head, bytes, 0);
    if (head->known && bytes >= sizeof(word) && head->buffers[0].length >= sizeof(word))
        bpf_probe_read_user(&word, sizeof(word), (void *)head->buffers[0].start);
    if (word == FOUR('H', 'E', 'A', 'D'))
        value->http = HTTP_ASKED_HEAD;
    else if (word == FOUR('G', 'E', 'T', ' ') || word == FOUR('P', 'O', 'S', 'T') ||
             word == FOUR('P', 'U', 'T', ' ') || word == FOUR('D', 'E', 'L', 'E') ||
             word == FOUR('P', 'A', 'T', 'C') || word == FOUR('O', 'P', 'T', 'I'))
        value->http = HTTP_ASKED;
    else
        value->http = other;
}

/* The first line feed in eight bytes: its index, or 8. */
static __always_inline u32 http_line_feed(u64 word)
{
    u64 zeros = word ^ EIGHT('\n', '\n', '\n', '\n', '\n', '\n', '\n', '\n');

    zeros = (zeros - 0x0101010101010101ULL) & ~zeros & 0x8080808080808080ULL;
    if (!zeros)
        return 8;
    return (((zeros & -zeros) >> 7) * 0x0001020304050607ULL) >> 56;
}

/* Eight bytes at a time; of two line feeds in eight bytes the second is overlooked: no known field is so
 * short. */
static __always_inline void http_search(struct http_head *head)
{
    volatile u32 *count = &head->count;

    head->body = head->length_at = head->coding_at = head->trailer_at = 0;
#pragma clang loop unroll(disable)
    for (u32 i = 8; i < HTTP_HEAD; i += 8) {
        if (i >= *count)
            return;
        u32 at = http_line_feed(AT(u64, i));
        if (at >= 8)
            continue;
        at += i + 1;
        asm volatile("" : "+r"(at)); /* or the verifier is shown each place by itself */
        at &= HTTP_HEAD - 1;
        u64 word = AT(u64, at) | LOWER, next = AT(u64, at + 8) | LOWER;
        if (word == EIGHT('c', 'o', 'n', 't', 'e', 'n', 't', '-')) {
            if (next << 8 == EIGHT(0, 'l', 'e', 'n', 'g', 't', 'h', ':'))
                head->length_at = at + 15;
        } else if (word == EIGHT('t', 'r', 'a', 'n', 's', 'f', 'e', 'r')) {
            if (next == EIGHT('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n'))
                head->coding_at = at + 18;
        } else if (word == EIGHT('t', 'r', 'a', 'i', 'l', 'e', 'r', ':')) {
            head->trailer_at = at;
        } else if (head->text[at] == '\r') {
            head->body = at + 2;
            return;
        }
    }
}

/* The number in the text, up to HTTP_FARTHEST. */
static __always_inline u32 http_number(struct http_head *head)
{
    u64 number = 0;
    u32 at = head->length_at & (HTTP_HEAD - 1);

    if (head->text[at] == ' ')
        at++;
    for (u32 i = 0; i < 11; i++) {
        u8 digit = head->text[at + i] - '0';

        if (digit > 9)
            break;
        number = number * 10 + digit;
    }
    return number < HTTP_FARTHEST ? number : HTTP_FARTHEST;
}

/* Where in the process's memory the last `wanted` of `received` bytes are; 0 if not in one piece. */
static __always_inline u64 http_tail(const struct http_head *head, u64 received, u64 wanted)
{
    const struct buffer *buffers = head->buffers;
    u64 left = received, at = 0;

#pragma unroll
    for (u32 i = 0; i < HTTP_BUFFERS; i++) {
        if (at || i >= head->known)
            continue;
        if (left > buffers[i].length)
            left -= buffers[i].length;
        else if (left >= wanted)
            at = buffers[i].start + left - wanted;
    }
    return at;
}

/* Follows how much of the last chunk has come. `body`: bytes of it in what was received, `end` as below. */
static __always_inline void http_note_chunks(struct sock_val *value, const struct http_head *head,
                                             u64 received, u64 body, u32 end)
{
    char last[8] = {};
    u64 wanted = body < HTTP_LAST ? body : HTTP_LAST;
    u64 at = http_tail(head, received, wanted);
    u8 seen = body < HTTP_LAST ? value->http_seen : 0;

    value->http = HTTP_UNDECIDED;
    asm volatile("" : "+r"(wanted));
    if (wanted > HTTP_LAST || !at || bpf_probe_read_user(last, wanted, (void *)at))
        return;
#pragma unroll
    for (u32 i = 0; i < HTTP_LAST; i++) {
        if (i >= wanted)
            continue;
        char next = seen == 0 ? '0' : seen == 1 || seen == 3 ? '\r' : seen == 2 || seen == 4 ? '\n' : 0;
        seen = last[i] == next ? seen + 1 : last[i] == '0';
    }
    value->http_seen = seen;
    value->http_end = end;
    value->http = HTTP_CHUNKED;
}

/* The head of a response: how it will end. Returns how many bytes of a chunked body are behind it. */
static __always_inline u64 http_note_head(struct sock_val *value, struct http_head *head, u64 received,
                                          u32 end)
{
    u8 asked = value->http;
    u64 count = head->buffers[0].length < received ? head->buffers[0].length : received;

    value->http = HTTP_UNDECIDED;
    if (!head->known || count <= HTTP_STATUS)
        return 0;
    if (count > HTTP_HEAD)
        count = HTTP_HEAD;
    asm volatile("" : "+r"(count));
    if (count > HTTP_HEAD || bpf_probe_read_user(head->text, count, (void *)head->buffers[0].start))
        return 0;
    if (AT(u64, 0) << 8 != EIGHT(0, 'H', 'T', 'T', 'P', '/', '1', '.'))
        return 0;
    u32 status = AT(u32, 9) & 0xffffff, length = 0;
    if (head->text[9] == '1') { /* the response proper is still to come, or it is the last of HTTP */
        value->http = status == FOUR('1', '0', '1', 0) ? HTTP_NONE : asked;
        return 0;
    }
    head->count = count;
    http_search(head);
    if (!head->body || head->body > head->count)
        return 0;
    if (asked != HTTP_ASKED_HEAD && status != FOUR('2', '0', '4', 0) && status != FOUR('3', '0', '4', 0)) {
        if (head->coding_at) {
            u64 coding = AT(u64, head->coding_at & (HTTP_HEAD - 1)) | LOWER;

            if (coding != EIGHT(' ', 'c', 'h', 'u', 'n', 'k', 'e', 'd') || head->trailer_at)
                return 0;
            value->http_seen = 0;
            value->http_end = end;
            value->http = HTTP_CHUNKED;
            return received - head->body;
        }
        length = http_number(head);
        if (!head->length_at || length == HTTP_FARTHEST)
            return 0;
    }
    value->http_end = end - (u32)received + head->body + length;
    value->http = HTTP_LENGTH;
    return 0;
}

/* Some of a response was received. `end`: the sequence number behind it. */
static __always_inline void http_note_answer(struct sock_val *value, u64 received, u32 end)
{
    int zero = 0;
    u64 body = received;

    if (value->http != HTTP_ASKED && value->http != HTTP_ASKED_HEAD && value->http != HTTP_CHUNKED)
        return;
    struct http_head *head = heads.lookup(&zero);
    if (!head)
        return;
    call_buffers(head, received, 1);
    if (value->http != HTTP_CHUNKED)
        body = http_note_head(value, head, received, end);
    else if (value->http_end != end - (u32)received)
        head->known = 0; /* something was received that was not seen here, as by splice */
    if (value->http == HTTP_CHUNKED && body)
        http_note_chunks(value, head, received, body, end);
}

/* All was read that there is, and it is not a whole response. */
static __always_inline int http_is_cut(u64 sk, const struct sock_val *value)
{
    if (value->http < HTTP_LENGTH)
        return 0;
    s32 missing = value->http_end - read_copied_seq(sk, 0);
    if (value->http == HTTP_LENGTH)
        return missing > 0;
    return !missing && value->http_seen < HTTP_LAST;
}

/* The whole response has arrived. */
static __always_inline int http_is_whole(u64 sk, const struct sock_val *value)
{
    if (value->http < HTTP_LENGTH)
        return 0;
    s32 missing = value->http_end - read_copied_seq(sk, 0) - unread_bytes(sk, 0);
    return missing <= 0 && (value->http == HTTP_LENGTH || value->http_seen == HTTP_LAST);
}
#else
#define http_note_ask(value, bytes)
#define http_note_answer(value, received, end)
#define http_is_cut(sk, value)   0
#define http_is_whole(sk, value) 0
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the workload programs share. Each takes numbers as arguments, does a known count of
 * operations on this host only, and prints "<operations> <nanoseconds>" for the timed part.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(expression)                                                                                    \
    ({                                                                                                       \
        long result_ = (expression);                                                                         \
        if (result_ < 0) {                                                                                   \
            fprintf(stderr, "%s: %s\n", #expression, strerror(errno));                                       \
            exit(1);                                                                                         \
        }                                                                                                    \
        result_;                                                                                             \
    })

static inline long number(int argc, char **argv, int i, long otherwise)
{
    return i < argc ? atol(argv[i]) : otherwise;
}

/* Keeps the process on one CPU; -1 leaves it free. */
static inline void pin(long cpu)
{
    cpu_set_t set;

    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    CHECK(sched_setaffinity(0, sizeof(set), &set));
}

static inline long long now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline void report(long operations, long long started_ns)
{
    printf("%ld %lld\n", operations, now_ns() - started_ns);
    fflush(stdout);
}

/* 127.x.y.z, another address for every i below 2^24 - 2^16. */
static inline struct sockaddr_in loopback(long i, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

    address.sin_addr.s_addr = htonl(0x7f010001 + i % 0xfe0000);
    return address;
}

/* A socket bound to all addresses and a free port; `*port` is which. */
static inline int serve(int type, int *port)
{
    struct sockaddr_in any = {.sin_family = AF_INET};
    socklen_t length = sizeof(any);
    int fd = CHECK(socket(AF_INET, type, 0));

    CHECK(bind(fd, (struct sockaddr *)&any, sizeof(any)));
    if (type == SOCK_STREAM)
        CHECK(listen(fd, 4096));
    CHECK(getsockname(fd, (struct sockaddr *)&any, &length));
    *port = ntohs(any.sin_port);
    return fd;
}

static inline int dial(int type, long i, int port)
{
    struct sockaddr_in peer = loopback(i, port);
    int fd = CHECK(socket(AF_INET, type, 0));

    CHECK(connect(fd, (struct sockaddr *)&peer, sizeof(peer)));
    return fd;
}

static inline void no_delay(int fd)
{
    int on = 1;

    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)));
}

/* Forks a child that does not outlive this process. Returns 0 in the child. */
static inline pid_t fork_tied(void)
{
    pid_t parent = getpid(), child = CHECK(fork());

    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            exit(1);
    }
    return child;
}

static inline void echo_until_closed(int fd)
{
    char byte;

    while (recv(fd, &byte, 1, 0) == 1)
        CHECK(send(fd, &byte, 1, 0));
}

static inline void round_trips(int fd, long count)
{
    char byte = 'x';

    for (long i = 0; i < count; i++) {
        CHECK(send(fd, &byte, 1, 0));
        CHECK(recv(fd, &byte, 1, 0));
    }
}

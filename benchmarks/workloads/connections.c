/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connections COUNT PERIOD_MS: holds COUNT TCP connections to as many addresses of this host, both
 * ends here, until its standard input is closed. Each carries 100 bytes one way when it is opened, and
 * again every PERIOD_MS; PERIOD_MS 0 leaves them idle. Prints its usual line when all are open. For
 * every 8000 connections there is one process, which keeps below common limits on open files.
 */
#include "common.h"
#include <poll.h>

#define MESSAGE     100
#define PER_PROCESS 8000

static char data[MESSAGE];

static void carry(int from, int to)
{
    CHECK(send(from, data, MESSAGE, 0));
    CHECK(recv(to, data, MESSAGE, MSG_WAITALL));
}

/* Opens connections first..last-1, says so through `ready`, then lives until standard input ends. */
static void hold(long first, long last, long period_ms, int ready)
{
    static int near[PER_PROCESS], far[PER_PROCESS];
    struct pollfd stop = {.fd = 0, .events = POLLIN};
    int port, listener = serve(SOCK_STREAM, &port);
    long count = last - first;

    for (long i = 0; i < count; i++) {
        near[i] = dial(SOCK_STREAM, first + i, port);
        far[i] = CHECK(accept(listener, NULL, NULL));
        carry(near[i], far[i]);
    }
    CHECK(write(ready, "x", 1));
    while (!poll(&stop, 1, period_ms ? period_ms : -1))
        for (long i = 0; i < count; i++)
            carry(near[i], far[i]);
    exit(0);
}

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 1000), period_ms = number(argc, argv, 2, 0), processes = 0;
    long long started = now_ns();
    struct rlimit files;
    int ready[2];
    char byte;

    CHECK(getrlimit(RLIMIT_NOFILE, &files));
    files.rlim_cur = files.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &files));
    CHECK(pipe(ready));
    for (long first = 0; first < count; first += PER_PROCESS, processes++)
        if (!fork_tied())
            hold(first, first + PER_PROCESS < count ? first + PER_PROCESS : count, period_ms, ready[1]);
    close(ready[1]);
    for (long i = 0; i < processes; i++)
        if (read(ready[0], &byte, 1) != 1)
            return 1;
    report(count, started);
    for (long i = 0; i < processes; i++)
        wait(NULL);
    return 0;
}

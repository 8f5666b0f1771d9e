/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_shared COUNT [CPU CPU]: 1-byte round trips over a connection that other processes used first:
 * at both ends the parent moves one byte, then a forked child does all the rest.
 */
#include "common.h"

static void serve_one(int listener, long cpu)
{
    char byte;
    int fd = CHECK(accept(listener, NULL, NULL));

    no_delay(fd);
    CHECK(recv(fd, &byte, 1, 0));
    CHECK(send(fd, &byte, 1, 0));
    if (!fork_tied()) {
        pin(cpu);
        echo_until_closed(fd);
        exit(0);
    }
    wait(NULL);
}

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 100000);
    int port, listener = serve(SOCK_STREAM, &port);

    if (!fork_tied()) {
        serve_one(listener, number(argc, argv, 3, -1));
        return 0;
    }
    int fd = dial(SOCK_STREAM, 0, port);
    no_delay(fd);
    round_trips(fd, 1);
    if (!fork_tied()) {
        pin(number(argc, argv, 2, -1));
        round_trips(fd, 1000);
        long long started = now_ns();
        round_trips(fd, count);
        report(count, started);
        CHECK(shutdown(fd, SHUT_RDWR));
        return 0;
    }
    wait(NULL);
    wait(NULL);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_many COUNT CONNECTIONS [CPU]: COUNT times, one byte is sent on the next of CONNECTIONS connections
 * and received at its other end, by the same process.
 */
#include "common.h"

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 100000), connections = number(argc, argv, 2, 1000);
    struct rlimit files;
    int port, listener = serve(SOCK_STREAM, &port);
    char byte = 'x';

    CHECK(getrlimit(RLIMIT_NOFILE, &files));
    files.rlim_cur = files.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &files));
    pin(number(argc, argv, 3, -1));
    int *near = calloc(connections, sizeof(int)), *far = calloc(connections, sizeof(int));
    for (long i = 0; i < connections; i++) {
        near[i] = dial(SOCK_STREAM, i, port);
        no_delay(near[i]);
        far[i] = CHECK(accept(listener, NULL, NULL));
    }
    long long started = now_ns();
    for (long i = 0; i < count; i++) {
        CHECK(send(near[i % connections], &byte, 1, 0));
        CHECK(recv(far[i % connections], &byte, 1, 0));
    }
    report(count, started);
    return 0;
}

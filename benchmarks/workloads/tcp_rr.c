/* SPDX-License-Identifier: Apache-2.0 */
/* tcp_rr COUNT [CPU CPU]: 1-byte round trips between two processes over one connection. */
#include "common.h"

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 100000);
    int port, listener = serve(SOCK_STREAM, &port);

    if (!fork_tied()) {
        pin(number(argc, argv, 3, -1));
        int fd = CHECK(accept(listener, NULL, NULL));
        no_delay(fd);
        echo_until_closed(fd);
        return 0;
    }
    pin(number(argc, argv, 2, -1));
    int fd = dial(SOCK_STREAM, 0, port);
    no_delay(fd);
    round_trips(fd, 1000);
    long long started = now_ns();
    round_trips(fd, count);
    report(count, started);
    close(fd);
    wait(NULL);
    return 0;
}

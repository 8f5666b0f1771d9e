/* SPDX-License-Identifier: Apache-2.0 */
/* unix_rr COUNT [CPU CPU]: 1-byte round trips over a UNIX stream socket pair. */
#include "common.h"

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 100000);
    int ends[2];

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    if (!fork_tied()) {
        pin(number(argc, argv, 3, -1));
        close(ends[0]);
        echo_until_closed(ends[1]);
        return 0;
    }
    close(ends[1]);
    pin(number(argc, argv, 2, -1));
    round_trips(ends[0], 1000);
    long long started = now_ns();
    round_trips(ends[0], count);
    report(count, started);
    close(ends[0]);
    wait(NULL);
    return 0;
}

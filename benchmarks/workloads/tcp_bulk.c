/* SPDX-License-Identifier: Apache-2.0 */
/* tcp_bulk COUNT [CPU CPU]: COUNT sends of 64 KiB to a process that reads as much at a time. */
#include "common.h"

#define BLOCK 65536

static char data[BLOCK];

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 50000);
    int port, listener = serve(SOCK_STREAM, &port);

    if (!fork_tied()) {
        pin(number(argc, argv, 3, -1));
        int fd = CHECK(accept(listener, NULL, NULL));
        while (recv(fd, data, BLOCK, 0) > 0)
            continue;
        return 0;
    }
    pin(number(argc, argv, 2, -1));
    int fd = dial(SOCK_STREAM, 0, port);
    long long started = now_ns();
    for (long i = 0; i < count; i++)
        for (long sent = 0; sent < BLOCK;)
            sent += CHECK(send(fd, data + sent, BLOCK - sent, 0));
    close(fd);
    wait(NULL);
    report(count, started);
    return 0;
}

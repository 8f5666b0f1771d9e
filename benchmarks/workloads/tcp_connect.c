/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_connect COUNT DESTINATIONS SALT [CPU CPU]: connect, 100 bytes each way, close, COUNT times, in
 * turn to DESTINATIONS addresses of this host. SALT moves the addresses, so that ports which wait
 * after an earlier run (TIME_WAIT) do not run out.
 */
#include "common.h"

#define MESSAGE 100

static void answer(int listener)
{
    char data[MESSAGE];

    for (;;) {
        int fd = CHECK(accept(listener, NULL, NULL));
        CHECK(recv(fd, data, MESSAGE, MSG_WAITALL));
        CHECK(send(fd, data, MESSAGE, 0));
        close(fd);
    }
}

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 10000), destinations = number(argc, argv, 2, 1);
    long salt = number(argc, argv, 3, 0);
    int port, listener = serve(SOCK_STREAM, &port);
    char data[MESSAGE] = "";

    pid_t server = fork_tied();
    if (!server) {
        pin(number(argc, argv, 5, -1));
        answer(listener);
    }
    close(listener);
    pin(number(argc, argv, 4, -1));
    long long started = now_ns();
    for (long i = 0; i < count; i++) {
        int fd = dial(SOCK_STREAM, salt + i % destinations, port);
        CHECK(send(fd, data, MESSAGE, 0));
        CHECK(recv(fd, data, MESSAGE, MSG_WAITALL));
        close(fd);
    }
    report(count, started);
    kill(server, SIGKILL);
    wait(NULL);
    return 0;
}

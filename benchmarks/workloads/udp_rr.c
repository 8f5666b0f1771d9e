/* SPDX-License-Identifier: Apache-2.0 */
/* udp_rr COUNT [CPU CPU]: 1-byte round trips; the client's socket is connected, the server's is not. */
#include "common.h"

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 100000);
    int port, server = serve(SOCK_DGRAM, &port);

    pid_t child = fork_tied();
    if (!child) {
        pin(number(argc, argv, 3, -1));
        for (;;) {
            struct sockaddr_in peer;
            socklen_t length = sizeof(peer);
            char byte;
            CHECK(recvfrom(server, &byte, 1, 0, (struct sockaddr *)&peer, &length));
            CHECK(sendto(server, &byte, 1, 0, (struct sockaddr *)&peer, length));
        }
    }
    close(server);
    pin(number(argc, argv, 2, -1));
    /* 127.0.0.1, as answers come from there whatever address was asked */
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};
    peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = CHECK(socket(AF_INET, SOCK_DGRAM, 0));
    CHECK(connect(fd, (struct sockaddr *)&peer, sizeof(peer)));
    round_trips(fd, 1000);
    long long started = now_ns();
    round_trips(fd, count);
    report(count, started);
    kill(child, SIGKILL);
    wait(NULL);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* As name_client.py, to be linked statically. Arguments: rounds, pause in seconds, port, hosts. */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int talk(const char *host, const char *port, size_t size)
{
    static char buffer[65536];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    size_t received = 0;
    ssize_t part;

    if (getaddrinfo(host, port, &hints, &found))
        return 1;
    int fd = socket(found->ai_family, SOCK_STREAM, 0);
    if (connect(fd, found->ai_addr, found->ai_addrlen) || write(fd, buffer, size) != (ssize_t)size)
        return 1;
    shutdown(fd, SHUT_WR);
    while ((part = read(fd, buffer, sizeof(buffer))) > 0)
        received += part;
    close(fd);
    freeaddrinfo(found);
    return received != size;
}

int main(int argc, char **argv)
{
    int rounds = atoi(argv[1]), hosts = argc - 4;
    long bytes[16] = {0};

    for (int turn = 0; turn < rounds; turn++) {
        for (int i = 0; i < hosts; i++) {
            if (talk(argv[4 + i], argv[3], 1000 + 10 * turn + i)) {
                perror(argv[4 + i]);
                return 1;
            }
            bytes[i] += 1000 + 10 * turn + i;
        }
        usleep(atof(argv[2]) * 1e6);
    }
    printf("{\"pid\": %d, \"hosts\": {", getpid());
    for (int i = 0; i < hosts; i++)
        printf("%s\"%s\": [%d, %ld]", i ? ", " : "", argv[4 + i], rounds, bytes[i]);
    printf("}}\n");
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* getppid COUNT [CPU]: the cheapest system call there is. */
#include "common.h"
#include <sys/syscall.h>

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 1000000);

    pin(number(argc, argv, 2, -1));
    long long started = now_ns();
    for (long i = 0; i < count; i++)
        syscall(SYS_getppid);
    report(count, started);
    return 0;
}

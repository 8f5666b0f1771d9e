/* SPDX-License-Identifier: Apache-2.0 */
/* pipe COUNT [CPU]: one byte written to a pipe and read again by the same process. */
#include "common.h"

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 500000);
    char byte = 'x';
    int ends[2];

    pin(number(argc, argv, 2, -1));
    CHECK(pipe(ends));
    long long started = now_ns();
    for (long i = 0; i < count; i++) {
        CHECK(write(ends[1], &byte, 1));
        CHECK(read(ends[0], &byte, 1));
    }
    report(count, started);
    return 0;
}

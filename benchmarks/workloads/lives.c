/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lives COUNT PARENTS CODE PROGRAMS: so many processes, by so many parents at once, that run `ends` (beside
 * this file) and end with CODE; under PROGRAMS names.
 */
#include "common.h"
#include <limits.h>
#include <spawn.h>

static void live(const char *directory, long count, long code, long programs, long seed)
{
    char *arguments[] = {"ends", code ? "1" : NULL, NULL}, *nothing[] = {NULL}, path[PATH_MAX];

    for (long i = 0; i < count; i++) {
        pid_t child;

        snprintf(path, sizeof(path), programs > 1 ? "%s/ends%ld" : "%s/ends", directory,
                 (i + seed) % programs);
        int error = posix_spawn(&child, path, NULL, NULL, arguments, nothing);
        if (error) {
            fprintf(stderr, "%s: %s\n", path, strerror(error));
            exit(1);
        }
        CHECK(waitpid(child, NULL, 0));
    }
}

int main(int argc, char **argv)
{
    long count = number(argc, argv, 1, 10000), parents = number(argc, argv, 2, 1);
    long code = number(argc, argv, 3, 0), programs = number(argc, argv, 4, 1);
    char *directory = argv[0], path[PATH_MAX], other[PATH_MAX];

    *strrchr(directory, '/') = 0;
    snprintf(path, sizeof(path), "%s/ends", directory);
    for (long i = 0; programs > 1 && i < programs; i++) {
        snprintf(other, sizeof(other), "%s/ends%ld", directory, i);
        if (link(path, other) && errno != EEXIST)
            CHECK(-1);
    }
    long long started = now_ns();
    for (long i = 0; i < parents; i++) {
        if (!fork_tied()) {
            live(directory, count / parents, code, programs, i * programs / parents);
            exit(0);
        }
    }
    for (long i = 0; i < parents; i++) {
        int status;

        CHECK(wait(&status));
        if (status)
            return 1;
    }
    report(count / parents * parents, started);
    return 0;
}

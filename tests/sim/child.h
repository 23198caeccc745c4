/* The end of a forked child: at once, without what the parent has registered for its own end; but
 * with its share of the coverage, where that is measured (tools/coverage). */
#pragma once

#include <unistd.h>

#ifdef FILMROOM_COVERAGE
void __gcov_dump(void); /* libgcov's */
#endif

static inline __attribute__((noreturn)) void child_exit(int status)
{
#ifdef FILMROOM_COVERAGE
    __gcov_dump();
#endif
    _exit(status);
}

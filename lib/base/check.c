/* Where failed checks end: one line on stderr, then abort. */
#include "lib/base/check.h"

#include <stdio.h>
#include <stdlib.h>

void check_fail(const char *file, int line, const char *expr)
{
    fprintf(stderr, "filmroom: check failed at %s:%d: %s\n", file, line, expr);
    fflush(stderr);
    abort();
}

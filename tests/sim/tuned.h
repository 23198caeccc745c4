/* Memory for programs that start thousands of short children. Most of their time went to page
 * faults: simulated drives are large, and processes short. So memory is to come in large pages,
 * which glibc can only be told before a program starts, many at a time, and symbols are looked up
 * once and not in each child.
 */
#pragma once

#include <stdlib.h>
#include <unistd.h>

/* First thing in main(): starts the program anew if it was not started so. */
static inline void tuned_start(char **argv)
{
    if (getenv("GLIBC_TUNABLES"))
        return;
    (void)setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=67108864", 1);
    (void)setenv("LD_BIND_NOW", "1", 1);
    (void)execv("/proc/self/exe", argv); /* else it goes on as it is, slower */
}

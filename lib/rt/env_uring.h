/* The real env: io_uring for files and sockets, an eventfd for other threads, thread pools as
 * lanes. */
#pragma once

#include "lib/rt/env.h"

struct env_uring_options {
    unsigned cpu_threads; /* 0: number of online cores */
    unsigned kv_threads;  /* 0: 2 */
    unsigned queue_depth; /* 0: 1024 operations in flight */
    bool keep_signals; /* for tools: SIGTERM and SIGINT end the program as ever, and env_wait_stop
                          waits for ever. Without it the env takes them over */
};

/* ERR_UNSUPPORTED when the kernel has no usable io_uring (5.15 and newer are fine: 5.11 has
 * what the ring needs, 5.15 the bound on workers that drives which hang need). */
int env_uring_new(const struct env_uring_options *options, struct env **ret_env);

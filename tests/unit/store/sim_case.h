/* A small stage for unit tests of the engine: one simulated process after another over the same
 * media, and a hook on every file operation, for faults that must hit one certain write.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/rt/env_sim.h"

struct sim_case {
    struct sim *sim;
    struct env *env; /* of the process that runs now */
    /* Asked before each operation on a file that the process opens; an error is its result, and
     * nothing happens on the medium. NULL: none. */
    int (*hook)(void *arg, const char *path, const struct env_io *io);
    void *hook_arg;
    uint64_t cache; /* env_file_cache of every file, as if all lay on one device */
    bool running;   /* or left in the middle by a failed assertion */
};

void sim_case_init(struct sim_case *c, uint64_t seed);
void sim_case_free(struct sim_case *c);

/* Runs fn(arg) as a process until it has ended, with all its fibers; stops the test where it does
 * not end, or leaves memory behind. */
void sim_case_run(struct sim_case *c, fiber_fn fn, void *arg);

/* As sim_case_run, for a process that will not end by itself: it calls sim_pause when it has come
 * far enough, and is killed. */
void sim_case_run_and_kill(struct sim_case *c, fiber_fn fn, void *arg, bool power);

/* Repeatable bytes that differ by seed. */
void sim_case_bytes(uint64_t seed, void *out, size_t n);

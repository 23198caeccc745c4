/* The contract of lib/kv/kv.h as cases that every store must pass.
 *
 * A case runs in a fiber of `env`, begins with an empty store and leaves it closed. Failures are
 * CHECKs: they stop the test program with file and line, also from a fiber's stack.
 */
#pragma once

#include <stdbool.h>

#include "lib/kv/kv.h"

struct suite {
    struct env *env;
    bool reopens; /* the store outlives its handle */
    int (*open)(struct suite *s, struct kv **ret_kv);
    void *owner;
    uint64_t seed;
};

struct suite_case {
    const char *name;
    void (*run)(struct suite *s);
};

extern const struct suite_case suite_cases[];
extern const size_t suite_case_count;

/* ---- Helpers for the programs too ----------------------------------------------------------- */

struct kv_slice suite_text(const char *text);

/* splitmix64 over *state. */
uint64_t suite_random(uint64_t *state);

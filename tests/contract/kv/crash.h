/* The crash half of the contract: after a kill the store is, in all tables together, exactly what
 * it was after some batch, and that batch is not before the last completed flush.
 *
 * Batch n sets the counter to n, rewrites row n mod 64 of every other table, deletes a row of one
 * and adds a row to another. So the whole state is a function of n, and a verifier that reads the
 * counter knows every row that must and must not be there.
 */
#pragma once

#include "lib/kv/kv.h"

struct env;

/* Shared between the one who is killed and the one who checks. */
struct crash_progress {
    uint64_t written; /* the last batch whose write was begun */
    uint64_t flushed; /* the last batch known to be durable */
};

/* Checks the state and returns its batch number; it must lie within `p`. */
uint64_t crash_verify(struct kv *kv, const struct crash_progress *p);

/* Writes batches from `first` on, with flushes by other fibers meanwhile, until `count` are written
 * (then waits for the flushes) or something kills it. `value_len` sizes the rows. */
void crash_workload(struct env *env, struct kv *kv, struct crash_progress *p, uint64_t first,
                    uint64_t count, size_t value_len, uint64_t seed);

/* A recording key-value store: keeps every batch that was written since the last flush, so that
 * each state in which a crash could leave the tables can be made.
 *
 * kv.h promises that a crash takes the tables back to a batch border at or after the last completed
 * flush. So the states are numbers: how many batches are in.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/list.h"
#include "lib/kv/kv.h"

struct crash_meta {
    struct kv_mem_image *durable; /* as of the last flush */
    struct kv_mem_image *scratch; /* under the store that is open */
    struct list batches;          /* written since */
    uint64_t written, flushed;    /* batches ever written; of these in `durable` */
    /* Called just before a flush completes, as crash_disks' on_durable. */
    bool (*on_durable)(void *arg);
    void *arg;
};

void crash_meta_init(struct crash_meta *m);
void crash_meta_free(struct crash_meta *m);

/* A store with what is durable. */
int crash_meta_open(struct crash_meta *m, struct env *env, struct kv **ret_kv);

/* A crash, after which exactly the first `border` batches are in; flushed <= border <= written. */
void crash_meta_cut(struct crash_meta *m, uint64_t border);

/* All of it is gone. */
void crash_meta_lose(struct crash_meta *m);

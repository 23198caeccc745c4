/* A partition of the node: where it lies, its metadata, and the loop it lives on.
 *
 * The first partition lives on the node's first loop, where the front doors are; each other one has
 * a loop of its own on a thread of its own. Nothing of a partition is touched from another loop:
 * who wants something of it goes there with node_part_call.
 */
#pragma once

#include <stdbool.h>

#include "daemon/config.h"
#include "daemon/partition.h"
#include "daemon/place.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"

struct node_part {
    const char *name;            /* "" for the first */
    struct env *first, *env;     /* the node's first loop, and the partition's */
    struct config settings;      /* with this partition's store */
    const struct config *config; /* settings */
    struct place place;
    struct kv *kv;
    struct partition *partition;
    struct fiber_mutex paths_lock;  /* for who writes the list of drives' paths */
    struct fiber_mutex orders_lock; /* orders about drives come one after the other */
    const char *adding;             /* the path of a drive about to be added; NULL: none */
    int rc;                         /* of the last call */

    /* Of a loop of its own. */
    struct fiber_cond stop, ended;
    bool stopping, over;
};

/* Starts the loop, makes the store on first start and opens it. `index` is as in
 * config_for_partition; `config` outlives the partition. Failures are logged with what to do about
 * them; node_part_stop then still has to be called. From a fiber of `first`. Suspends. */
int node_part_start(struct env *first, const struct config *config, unsigned index,
                    struct node_part *p);

/* partition_end_soon. Fine for one that is zeroed. Suspends. */
void node_part_end_soon(struct node_part *p);

/* Closes the store and ends the loop. Fine for one that is zeroed. Suspends. */
int node_part_stop(struct node_part *p);

/* Writes the list of where the partition's drives are, with the one that is about to be added
 * (place.h). On the partition's loop. Suspends. */
int node_part_save_paths(struct node_part *p);

/* Runs fn(arg) in a fiber of the partition's loop, from one of the first loop's. Suspends. */
int node_part_call(struct node_part *p, fiber_fn fn, void *arg);

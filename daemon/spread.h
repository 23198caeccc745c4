/* One block store made of several: the volumes of a node's partitions, each on a loop of its own,
 * as front doors see them on the node's first loop.
 *
 * A volume lies in one partition, all of it, with its snapshots and clones. Which one is settled
 * when it is made and remembered here, by name, in a table that is read from the partitions at the
 * start; since every creation and deletion passes through, it stays right. Names are the node's,
 * not the partition's. Calls for a volume are carried to its loop (env_remote) and back; calls for
 * the partition on the first loop go straight through.
 */
#pragma once

#include "lib/api/block.h"

struct env;
struct spread;

#define SPREAD_PARTS_MAX 8u

struct spread_part {
    struct env *env; /* the loop it lives on */
    struct block_store *store;
    const char *name; /* outlives the spread */
};

/* `env` is the loop that calls come from. `choose` picks the part for a new volume: an index into
 * `parts` (which are copied); it may suspend. ERR_EXIST when two parts have volumes of one name:
 * `clash` (BLOCK_NAME_MAX + 1 bytes) then has it. Suspends. */
int spread_new(struct env *env, const struct spread_part *parts, unsigned count,
               unsigned (*choose)(void *arg), void *arg, char *clash, struct spread **ret_spread);
void spread_free(struct spread *s); /* no volume may be open; NULL is fine */

/* The store. Beyond what block.h says: block_snapshot of volumes in different partitions is
 * ERR_SPREAD, and of an open volume's info all but name, id, size, durability and readonly are as
 * of its opening. */
struct block_store *spread_blocks(struct spread *s);

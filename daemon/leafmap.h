/* The volume map: for each block the chunk, and the block within it, that holds its content.
 *
 * The map is kept in leaf pages of 64 entries (256 KiB of volume), rows of KV_MAP under (volume,
 * leaf number). Leaves are cached with a bound; the cache is the newest truth and follows the rule
 * of the chunk table's (dedup/chunktable.c): what changed during a load is not evicted before its
 * end, nor before its row is in the KV store. Leaves change only while records are applied.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/hmap.h"
#include "lib/base/list.h"
#include "lib/kv/kv.h"

/* Small enough that a random write costs the KV store half a kilobyte. */
#define LEAF_BLOCKS 64u

/* An entry: 0 says nothing (a hole, or what the map below says, daemon/volume_snap.c), LEAF_HOLE is
 * a hole whatever lies below, else chunk id << 8 | block within the chunk; chunk ids begin at 1. */
#define LEAF_ENTRY(id, sub) ((uint64_t)(id) << 8 | (uint64_t)(sub))
#define LEAF_HOLE           1u
#define LEAF_CHUNK(entry)   ((entry) >> 8) /* 0 of a hole */
#define LEAF_SUB(entry)     ((uint32_t)((entry)&0xff))

struct leaf {
    struct hmap_node node;
    struct list lru;       /* off the list while pinned */
    struct list unwritten; /* on the map's list while the KV store may lack its row */
    uint64_t volume, index;
    uint64_t changed;
    uint32_t pins, used; /* entries that are not 0 */
    bool dirty;
    uint64_t entries[LEAF_BLOCKS];
};

struct leafmap {
    struct kv *kv;
    struct hmap map;
    struct list lru, loads, unwritten;
    uint64_t load_tick;
    uint64_t writing; /* the tick of the oldest change that the KV store may lack; 0: none */
    size_t count, max;
};

void leafmap_init(struct leafmap *lm, struct kv *kv, size_t max_leaves);
void leafmap_free(struct leafmap *lm);

/* The leaf, pinned; made (all holes) when there is none. Suspends when it is not cached. */
int leafmap_get(struct leafmap *lm, uint64_t volume, uint64_t index, struct leaf **ret_leaf);
/* As leafmap_get, from the cache alone; NULL when it is not there. Does not suspend. */
struct leaf *leafmap_peek(struct leafmap *lm, uint64_t volume, uint64_t index);
void leafmap_put(struct leafmap *lm, struct leaf *leaf); /* unpins; NULL is fine */

/* Changes an entry of a pinned leaf; the leaf is then dirty until leafmap_flush. */
void leafmap_set(struct leafmap *lm, struct leaf *leaf, unsigned at, uint64_t entry);
/* Puts a dirty leaf's row into the batch (or deletes it when nothing is left in the leaf). */
void leafmap_flush(struct leafmap *lm, struct leaf *leaf, struct kv_batch *batch);

/* The batches given to leafmap_flush are in the KV store: changed leaves may leave the cache. */
void leafmap_written(struct leafmap *lm);

/* The lowest leaf numbers >= from that have something mapped, or may have, in order: up to `max` (>
 * 0) into `indexes`, and *ret_count of how many; none when there are none. Suspends. */
int leafmap_list(struct leafmap *lm, uint64_t volume, uint64_t from, uint64_t *indexes, size_t max,
                 size_t *ret_count);
/* The lowest one; ERR_NOENT. Suspends. */
int leafmap_next(struct leafmap *lm, uint64_t volume, uint64_t from, uint64_t *ret_index);

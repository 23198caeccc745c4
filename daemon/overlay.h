/* The overlay: volume blocks that are durable in the journal and not drained into segments yet.
 *
 * A block written again takes the place of its older version: overwrites cost no drain. Entries are
 * listed in LSN order, so that the oldest tells how far the journal may be trimmed. Changed only
 * while applying records, in their order, and thus rebuilt exactly by replay.
 */
#pragma once

#include <stdint.h>

#include "lib/api/block.h"
#include "lib/base/hmap.h"
#include "lib/base/list.h"

/* One version of a block; shared with readers and the drainer by counting. */
struct overlay_data {
    uint32_t refs;
    uint8_t bytes[BLOCK_SIZE];
};

struct overlay_entry {
    struct hmap_node node;
    struct list by_lsn;
    uint64_t volume, block, lsn; /* volume: the id of the map that it will be drained into */
    uint64_t *count;             /* entries of that map, kept for its owner; may be NULL */
    struct overlay_data *data;
};

struct overlay {
    struct hmap map;
    struct list by_lsn;
    uint64_t count;
};

void overlay_init(struct overlay *o);
void overlay_free(struct overlay *o);

/* The newest version of a block, or NULL. Valid until the caller suspends. */
struct overlay_entry *overlay_find(const struct overlay *o, uint64_t volume, uint64_t block);

/* Takes a copy of a block written by record lsn, which is the newest. *count (NULL is fine) is the
 * number of the volume's entries; it stays where it is until they are gone. */
void overlay_put(struct overlay *o, uint64_t volume, uint64_t block, uint64_t lsn,
                 const uint8_t *bytes, uint64_t *count);

void overlay_remove(struct overlay *o, struct overlay_entry *e);

/* Removes every block of a volume in [first, first + count). */
void overlay_remove_range(struct overlay *o, uint64_t volume, uint64_t first, uint64_t count);

/* LSN of the oldest entry; UINT64_MAX when empty. */
uint64_t overlay_oldest(const struct overlay *o);

struct overlay_data *overlay_data_ref(struct overlay_data *d);
void overlay_data_unref(struct overlay_data *d);

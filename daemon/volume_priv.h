/* What the volumes' parts share: table and admin calls (volume.c), reads and writes (volume_io.c),
 * records (volume_apply.c), the drainer (volume_drain.c). */
#pragma once

#include "daemon/leafmap.h"
#include "daemon/overlay.h"
#include "daemon/partition_priv.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"

#define VOLUME_ZERO_BLOCKS 8192u /* blocks that one ZERO record may cover: whole leaves */

struct volume {
    struct hmap_node node; /* by id */
    struct list link;
    struct volumes *owner;
    struct block_info info;
    bool deleting; /* gone for users; what it maps is being freed */
    bool closed;   /* a delete is on its way: no more openers */
    uint64_t
        size_limit; /* writes and reads beyond it are refused: the size, or less while shrinking */
    struct list ranges; /* writes in flight */
    struct fiber_cond range_freed;
};

/* An open volume, as front doors hold it. */
struct volume_handle {
    struct block_volume face; /* first */
    struct volume *volume;
};

/* What is timed. */
enum volume_op { VOLUME_READ, VOLUME_WRITE, VOLUME_FLUSH, VOLUME_ZERO, VOLUME_OPS };

struct volumes {
    struct block_store face; /* first */
    struct partition *p;
    struct hmap by_id;
    struct list all;
    uint64_t count, mapped, next_id;
    struct overlay overlay;
    uint64_t overlay_max;      /* blocks */
    uint64_t overlay_incoming; /* blocks of records on their way */
    struct fiber_cond overlay_room;
    struct leafmap leaves;
    struct fiber_cond drain_work, drained, reap_work;
    struct fiber_group fibers;
    uint64_t hurry_lsn; /* writes up to here are drained without waiting for company */
    bool stopping;
    int drain_error;
    struct metric_hist op_time[VOLUME_OPS], overlay_wait, drain_time;
    struct metric_counter drained_blocks;
};

struct volume *volume_find(const struct volumes *vs, uint64_t id);
struct volume *volume_find_name(const struct volumes *vs, const char *name);

/* A write's range of blocks; writes that touch part of a block exclude others of that block. */
struct volume_range {
    struct list link;
    uint64_t first, last; /* blocks, inclusive */
    bool exclusive;
};
void volume_range_lock(struct volume *v, struct volume_range *r); /* suspends */
void volume_range_unlock(struct volume *v, struct volume_range *r);

/* One mapping in RECORD_VOLUME_MAP. */
struct volume_mapping {
    uint64_t volume, block;
    uint64_t src_lsn; /* drained from the overlay entry of this LSN; 0: newer than the overlay's */
    uint64_t entry;   /* LEAF_ENTRY, 0 for a hole */
};
#define VOLUME_MAPPING_SIZE 32u
#define VOLUME_MAPPINGS_MAX 4096u

/* Journals the mappings with the batch's new chunks (batch may be NULL). Suspends. */
int volume_submit_map(struct volumes *vs, const struct chunk_batch *batch,
                      const struct volume_mapping *mappings, size_t n, unsigned flags);

/* Block operations on an open volume (volume_io.c). */
int volume_read(struct block_volume *h, uint64_t off, void *buf, size_t len);
int volume_write(struct block_volume *h, uint64_t off, const void *buf, size_t len, unsigned flags);
int volume_flush(struct block_volume *h);
int volume_zero(struct block_volume *h, uint64_t off, uint64_t len, unsigned flags);
int volume_extents(struct block_volume *h, uint64_t off, uint64_t len, struct block_extent *extents,
                   size_t max, size_t *ret_count);

/* Makes whole blocks holes. Suspends. */
int volume_zero_blocks(struct volume *v, uint64_t first, uint64_t count, unsigned flags);

void volume_drainer(void *arg);
void volume_reaper(void *arg);

/* What the volumes' parts share: table and admin calls (volume.c), reads and writes (volume_io.c),
 * records (volume_apply.c), the drainer (volume_drain.c), maps (volume_map.c), snapshots
 * (volume_snap.c). */
#pragma once

#include "daemon/leafmap.h"
#include "daemon/overlay.h"
#include "daemon/partition_priv.h"
#include "daemon/volume_row.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"

#define VOLUME_ZERO_BLOCKS 8192u /* blocks that one ZERO record may cover: whole leaves */

struct volume;
struct volumes;

/* Who owns leaves in KV_MAP, and entries in the overlay; see volume_snap.c. */
struct volume_map {
    struct hmap_node node; /* by id */
    struct list link;
    uint64_t id;
    struct volume_map *parent; /* what is looked at where this one says nothing; NULL */
    uint32_t children;         /* maps whose parent this is */
    struct volume *holder;     /* the volume or snapshot that is this; NULL: hidden, to be reaped */
    /* What `volume` wrote with since < LSN <= until went here: by that, replay finds the map. */
    uint64_t volume, since, until;
    uint64_t parent_id;     /* while loading */
    uint64_t mapped, holes; /* entries that are blocks of chunks, that are LEAF_HOLE */
    uint64_t overlay;       /* blocks in the overlay */
};

/* A volume, or a snapshot, which is a volume that never changes. */
struct volume {
    struct hmap_node node; /* by id */
    struct list link;
    struct volumes *owner;
    struct volume_map *map;
    uint64_t map_id; /* while loading */
    uint64_t of;     /* a snapshot's volume; 0: this is a volume */
    struct block_info info;
    bool closed; /* a delete or rollback is on its way: no more openers */
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
    struct hmap maps;
    struct list all_maps;
    uint64_t generation; /* changes whenever maps come, go, or hand entries over */
    uint64_t count, mapped;
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
    struct metric_counter drained_blocks, read_bytes, written_bytes;
};

struct volume *volume_find(const struct volumes *vs, uint64_t id);
struct volume *volume_find_name(const struct volumes *vs, const char *name); /* snapshots too */
bool volume_name_valid(const char *name);
int volume_list_where(struct volumes *vs, bool (*want)(const struct volume *v, uint64_t arg),
                      uint64_t arg, struct block_info **ret_infos, size_t *ret_count);
void volume_get_info(const struct volume *v, struct block_info *ret_info);
/* Submits a record of two numbers. Suspends. */
int volume_submit_id(struct volumes *vs, enum record_type type, uint64_t id, uint64_t value,
                     unsigned flags);

/* The table and its rows (volume_apply.c). */
struct volume *volume_add(struct volumes *vs, uint64_t id);
void volume_put_row(const struct volume *v, struct kv_batch *batch);
void volume_drop(struct volumes *vs, struct volume *v, struct kv_batch *batch);

/* ---- Maps (volume_map.c) ---- */

struct volume_map *volume_map_find(const struct volumes *vs, uint64_t id);
struct volume_map *volume_map_add(struct volumes *vs, uint64_t id);
void volume_map_put_row(const struct volume_map *m, struct kv_batch *batch);
void volume_map_load(struct volumes *vs, const struct volume_map_row *r);
int volume_map_load_row(struct volumes *vs, const struct kv_row *row);
/* Joins maps with their parents and holders once all rows are loaded. ERR_FORMAT. */
int volume_maps_link(struct volumes *vs);
void volume_map_drop(struct volumes *vs, struct volume_map *m, struct kv_batch *batch);
void volume_map_set_parent(struct volume_map *m, struct volume_map *parent);
/* The map that took what the volume wrote with this LSN; NULL when it is gone. */
struct volume_map *volume_map_at(const struct volumes *vs, uint64_t volume, uint64_t lsn);
/* Changes an entry of the map's pinned leaf, and its counts. */
void volume_map_set(struct volumes *vs, struct volume_map *m, struct leaf *l, unsigned at,
                    uint64_t entry);
unsigned volume_map_depth(const struct volume_map *m); /* maps from here to the last parent */

/* A volume's maps at one leaf, as far down as was needed; for looking at its blocks one after the
 * other. */
struct map_view {
    const struct volume *v;
    uint64_t index, generation;
    struct leaf **leaves; /* of the topmost `count` maps, pinned; NULL for those not needed yet */
    size_t count, room;
};
#define MAP_VIEW(volume) ((struct map_view){.v = (volume), .index = UINT64_MAX})
/* What the block is at this moment: an overlay entry, or (NULL) a map entry, 0 for a hole. Both
 * hold until the caller suspends. Suspends when leaves are not cached. */
int map_view_block(struct map_view *w, uint64_t block, const struct overlay_entry **ret_overlay,
                   uint64_t *ret_entry);
void map_view_drop(struct map_view *w);

/* Passing over what is not used, from the front to the back. */
struct volume_walk {
    const struct volume *v;
    uint64_t *overlay; /* blocks that were in the overlay when it began, in order */
    size_t count, at;
    bool gathered;
    uint64_t *next; /* by depth of the map: the leaf that comes next, and 1; 0: not known */
    uint64_t generation;
};
#define VOLUME_WALK(volume) ((struct volume_walk){.v = (volume)})
/* The first block >= from that may be other than a hole, not counting what was written since the
 * walk began; UINT64_MAX when there is none. `from` never decreases. Suspends. */
int volume_walk_next(struct volume_walk *w, uint64_t from, uint64_t *ret_block);
void volume_walk_end(struct volume_walk *w);

/* ---- Snapshots (volume_snap.c) ---- */

#define VOLUME_DEPTH_MAX 1024u /* maps one upon the other */

int volume_snapshot(struct block_store *bs, const char *const *names, size_t count,
                    const char *snapshot);
int volume_snapshots(struct block_store *bs, const char *name, struct block_info **ret_infos,
                     size_t *ret_count);
int volume_snapshot_remove(struct block_store *bs, const char *name, const char *snapshot);
int volume_clone(struct block_store *bs, const char *name, const char *snapshot,
                 const char *new_name);
int volume_rollback(struct block_store *bs, const char *name, const char *snapshot);
bool volume_has_snapshots(const struct volumes *vs, uint64_t volume);
int volume_snap_apply(struct volumes *vs, uint16_t type, const struct apply *a);
/* The map is nobody's any more: what waits in the overlay is dropped. */
void volume_map_abandon(struct volumes *vs, struct volume_map *m, const struct apply *a);

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
    uint64_t volume; /* drained: the map; else the volume, whose map is settled in applying */
    uint64_t block;
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

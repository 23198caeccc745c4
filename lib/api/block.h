/* What block front doors (NBD, iSCSI) and the admin API may call: volumes.
 *
 * The daemon implements it (daemon/volume.c); tests implement it in memory. All calls are made from
 * fibers of the partition's loop and may suspend, except where said.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLOCK_NAME_MAX 200 /* bytes of a volume's name, without the NUL */
#define BLOCK_SIZE                                                       \
    4096u /* the unit of mapping; any byte range may be read or written, \
             aligned ones are faster */
#define BLOCK_IO_MAX     (32u << 20)  /* longest single read or write, bytes */
#define BLOCK_VOLUME_MAX (1ull << 50) /* largest volume, bytes */

#define BLOCK_GROUP_MAX 64u /* volumes in one snapshot of a group */

struct block_store;  /* all volumes of the node */
struct block_volume; /* one open volume; counted, bound to the front door's connection */

enum block_durability {
    BLOCK_EVERY_WRITE, /* an acknowledged write is durable */
    BLOCK_ON_FLUSH,    /* durable after a flush or with FUA: a volatile cache, to be announced */
};

struct block_info {
    char name[BLOCK_NAME_MAX + 1]; /* of a snapshot: VOLUME@SNAPSHOT */
    uint64_t id;
    uint64_t size;   /* bytes, a multiple of BLOCK_SIZE */
    uint64_t mapped; /* bytes of blocks that are not holes; approximate while writes are drained.
                        What is inherited from snapshots counts, a block written again since a
                        snapshot counts once per version, and the size is the most */
    uint64_t created_ns; /* wall clock */
    enum block_durability durability;
    bool readonly;
    uint32_t openers;
    const char *partition; /* where the node has several: its name, "" for the first; else NULL.
                              Lives as long as the store */
};

enum block_write_flags {
    BLOCK_FUA = 1,     /* durable before return, whatever the volume's durability */
    BLOCK_NO_HOLE = 2, /* write-zeroes: keep the range allocated; we are thin and may ignore it */
};

struct block_extent {
    uint64_t length; /* bytes */
    bool hole;       /* reads as zeroes and takes no space */
};

struct block_ops {
    int (*create)(struct block_store *bs, const char *name, uint64_t size,
                  enum block_durability durability);
    int (*list)(struct block_store *bs, struct block_info **ret_infos, size_t *ret_count);
    int (*stat)(struct block_store *bs, const char *name, struct block_info *ret_info);
    int (*resize)(struct block_store *bs, const char *name, uint64_t size);
    int (*remove)(struct block_store *bs, const char *name);
    int (*open)(struct block_store *bs, const char *name, struct block_volume **ret_volume);
    int (*snapshot)(struct block_store *bs, const char *const *names, size_t count,
                    const char *snapshot);
    int (*snapshots)(struct block_store *bs, const char *name, struct block_info **ret_infos,
                     size_t *ret_count);
    int (*snapshot_remove)(struct block_store *bs, const char *name, const char *snapshot);
    int (*clone)(struct block_store *bs, const char *name, const char *snapshot,
                 const char *new_name);
    int (*rollback)(struct block_store *bs, const char *name, const char *snapshot);

    void (*close)(struct block_volume *v);
    void (*info)(struct block_volume *v, struct block_info *ret_info);
    int (*read)(struct block_volume *v, uint64_t off, void *buf, size_t len);
    int (*write)(struct block_volume *v, uint64_t off, const void *buf, size_t len, unsigned flags);
    int (*flush)(struct block_volume *v);
    int (*discard)(struct block_volume *v, uint64_t off, uint64_t len, unsigned flags);
    int (*zero)(struct block_volume *v, uint64_t off, uint64_t len, unsigned flags);
    int (*extents)(struct block_volume *v, uint64_t off, uint64_t len, struct block_extent *extents,
                   size_t max, size_t *ret_count);
};

struct block_store {
    const struct block_ops *ops;
};
struct block_volume {
    const struct block_ops *ops;
};

/* Creates a thin volume, durable on return. ERR_NAME, ERR_EXIST, ERR_RANGE (size 0, over
 * BLOCK_VOLUME_MAX, or not a multiple of BLOCK_SIZE). */
static inline int block_create(struct block_store *bs, const char *name, uint64_t size,
                               enum block_durability durability)
{
    return bs->ops->create(bs, name, size, durability);
}

/* All volumes in name order, an array from mem_alloc that the caller frees. */
static inline int block_list(struct block_store *bs, struct block_info **ret_infos,
                             size_t *ret_count)
{
    return bs->ops->list(bs, ret_infos, ret_count);
}

static inline int block_stat(struct block_store *bs, const char *name, struct block_info *ret_info)
{
    return bs->ops->stat(bs, name, ret_info);
}

/* Grows or shrinks; what lies beyond the new size is gone. Open handles see the new size. */
static inline int block_resize(struct block_store *bs, const char *name, uint64_t size)
{
    return bs->ops->resize(bs, name, size);
}

/* Deletes the volume and its data; space comes back in the background. ERR_BUSY while open,
 * ERR_SNAPSHOTS while it has snapshots. */
static inline int block_remove(struct block_store *bs, const char *name)
{
    return bs->ops->remove(bs, name);
}

/* A volume, or a snapshot (VOLUME@SNAPSHOT, read-only). ERR_NOENT. Several handles on one volume
 * share its state. */
static inline int block_open(struct block_store *bs, const char *name,
                             struct block_volume **ret_volume)
{
    return bs->ops->open(bs, name, ret_volume);
}

/* Takes a snapshot of each of `count` volumes (1 to BLOCK_GROUP_MAX, all different) at one moment:
 * all or none. It holds every write that returned before the call and none that began after it;
 * volumes may be open and written meanwhile. Durable on return. ERR_NOENT, ERR_NAME (also when
 * VOLUME@SNAPSHOT is longer than BLOCK_NAME_MAX), ERR_EXIST, ERR_INVAL, ERR_DEPTH. */
static inline int block_snapshot(struct block_store *bs, const char *const *names, size_t count,
                                 const char *snapshot)
{
    return bs->ops->snapshot(bs, names, count, snapshot);
}

/* The snapshots of a volume, oldest first, or (NULL) all there are in name order. An array from
 * mem_alloc that the caller frees. ERR_NOENT. */
static inline int block_snapshots(struct block_store *bs, const char *name,
                                  struct block_info **ret_infos, size_t *ret_count)
{
    return bs->ops->snapshots(bs, name, ret_infos, ret_count);
}

/* Deletes a snapshot, in any order; space comes back in the background. ERR_NOENT, ERR_BUSY. */
static inline int block_snapshot_remove(struct block_store *bs, const char *name,
                                        const char *snapshot)
{
    return bs->ops->snapshot_remove(bs, name, snapshot);
}

/* Makes a volume that begins with what the snapshot holds, and shares it. The snapshot may be
 * deleted later. ERR_NOENT, ERR_NAME, ERR_EXIST, ERR_DEPTH. */
static inline int block_clone(struct block_store *bs, const char *name, const char *snapshot,
                              const char *new_name)
{
    return bs->ops->clone(bs, name, snapshot, new_name);
}

/* The volume becomes what the snapshot holds, its size included; what was written since is gone
 * (other snapshots stay). ERR_NOENT, ERR_BUSY while the volume is open, ERR_DEPTH. */
static inline int block_rollback(struct block_store *bs, const char *name, const char *snapshot)
{
    return bs->ops->rollback(bs, name, snapshot);
}

/* NULL is fine. No call may be in flight on the handle. */
static inline void block_close(struct block_volume *v)
{
    if (v)
        v->ops->close(v);
}

/* Does not suspend. */
static inline void block_get_info(struct block_volume *v, struct block_info *ret_info)
{
    v->ops->info(v, ret_info);
}

/* Reads len bytes (at most BLOCK_IO_MAX). ERR_RANGE, ERR_LOST, ERR_IO; never wrong bytes. */
static inline int block_read(struct block_volume *v, uint64_t off, void *buf, size_t len)
{
    return v->ops->read(v, off, buf, len);
}

/* Writes len bytes (at most BLOCK_IO_MAX). On return without error the bytes are visible, and
 * durable as the volume's durability and `flags` say. ERR_RANGE, ERR_NOSPC, ERR_READONLY. The
 * buffer is not needed after return. */
static inline int block_write(struct block_volume *v, uint64_t off, const void *buf, size_t len,
                              unsigned flags)
{
    return v->ops->write(v, off, buf, len, flags);
}

/* Makes every write that returned before this call durable. */
static inline int block_flush(struct block_volume *v)
{
    return v->ops->flush(v);
}

/* The range reads as zeroes afterwards and its space is freed (edges off the 4 KiB grid are written
 * as zeroes). Any length within the volume. */
static inline int block_discard(struct block_volume *v, uint64_t off, uint64_t len, unsigned flags)
{
    return v->ops->discard(v, off, len, flags);
}

static inline int block_zero(struct block_volume *v, uint64_t off, uint64_t len, unsigned flags)
{
    return v->ops->zero(v, off, len, flags);
}

/* The allocation of [off, off+len): up to `max` extents that follow each other from off; adjacent
 * ones differ. They may end before off+len when max is reached. */
static inline int block_extents(struct block_volume *v, uint64_t off, uint64_t len,
                                struct block_extent *extents, size_t max, size_t *ret_count)
{
    return v->ops->extents(v, off, len, extents, max, ret_count);
}

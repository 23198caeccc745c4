/* Ordered key-value tables with atomic batches.
 *
 * All mutable metadata of a partition lives here, changed only by applying journal records: one
 * batch per record, so the store needs no log of its own. What was written is visible at once, and
 * durable after kv_flush; a crash takes the tables back, together, to some batch border at or after
 * the last completed flush (never to a mix). That is the contract that kv_rocks and kv_mem share
 * and tests/contract/kv holds them to.
 *
 * Keys are compared as byte strings (memcmp, shorter first). Keys have 1 to KV_KEY_MAX bytes,
 * values up to KV_VALUE_MAX; what bounds a scan may be one byte longer, so that it can begin behind
 * any key. All calls come from fibers of the env it was opened on.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"

struct env;
struct kv;
struct kv_batch;

#define KV_KEY_MAX   1100u
#define KV_VALUE_MAX (16u << 20)

/* The tables. Their keys and values are described where they are encoded. The numbers are part of
 * the keys on the medium: append only. */
enum kv_table {
    KV_META,    /* singletons: applied LSN, format, counters */
    KV_VOLUME,  /* volumes */
    KV_MAP,     /* volume map leaves */
    KV_CHUNK,   /* chunk table */
    KV_FPRINT,  /* fingerprint index */
    KV_SEGMENT, /* segments */
    KV_CATALOG, /* patients, studies, series, instances */
    KV_RECIPE,  /* recipes of instances and objects */
    KV_INDEX,   /* secondary indexes and work lists */
    KV_BUCKET,  /* buckets and objects */
    KV_IMAGE,   /* the copy of the metadata on the drives (daemon/image.c) */
    KV_TABLE_COUNT
};

struct kv_slice {
    const void *data;
    size_t len;
};

/* Value of a key, copied: *ret_value from mem_alloc, the caller frees. ERR_NOENT. May suspend. */
int kv_get(struct kv *kv, enum kv_table t, struct kv_slice key, void **ret_value, size_t *ret_len);

/* Several at once: values[i] is NULL where the key is missing. Each is the caller's. On failure
 * none is given, and each values[i] is NULL or as it was. Keys in ascending order that lie close
 * together cost much less. The values need not be of one state when a write runs meanwhile. May
 * suspend. */
int kv_multi_get(struct kv *kv, enum kv_table t, const struct kv_slice *keys, size_t n,
                 void **values, size_t *lens);

/* A page of rows in key order. */
struct kv_rows {
    size_t count;
    struct kv_row {
        struct kv_slice key, value;
    } * rows; /* one allocation with its bytes */
};

/* Rows with from <= key < to (an empty `to`: to the table's end), at most max_rows and about
 * max_bytes, from one consistent state. Fewer than exist: continue after the last key. `reverse`
 * walks downwards from below `to`. kv_rows_free the result. May suspend. */
int kv_scan(struct kv *kv, enum kv_table t, struct kv_slice from, struct kv_slice to,
            size_t max_rows, size_t max_bytes, int reverse, struct kv_rows **ret_rows);
void kv_rows_free(struct kv_rows *rows); /* NULL is fine */

/* ---- Walking (kv_walk.c) ---- */

/* All rows with from <= key < to (an empty `to`: to the table's end) in key order, fetched page by
 * page as they are asked for: each page is of one state, and what is written behind the page at
 * hand meanwhile is seen.
 *
 *     KV_WALK_AUTO struct kv_walk w;
 *
 *     kv_walk_init(&w, kv, KV_SEGMENT, from, to, 256, 1 << 20);
 *     while ((rc = kv_walk_next(&w, &row)) > 0)
 *         ...
 */
struct kv_walk {
    struct kv *kv;
    enum kv_table table;
    size_t page_rows, page_bytes;
    struct strbuf from, to; /* of the next page */
    struct kv_rows *page;   /* NULL before the first */
    size_t next;            /* in it */
};

/* Begins; the keys are copied. A page has at most page_rows rows (> 0) and about page_bytes. */
void kv_walk_init(struct kv_walk *w, struct kv *kv, enum kv_table t, struct kv_slice from,
                  struct kv_slice to, size_t page_rows, size_t page_bytes);
/* Frees what the walk holds, wherever it is. */
void kv_walk_end(struct kv_walk *w);
#define KV_WALK_AUTO __attribute__((cleanup(kv_walk_end)))

/* 1 and the next row, good until the next call; 0 when there is none; or an error, after which the
 * same call may be tried again. May suspend. */
int kv_walk_next(struct kv_walk *w, const struct kv_row **ret_row);

/* ---- Batches ---- */

/* Batches: puts and deletes apply in order, keys and values are copied. */
struct kv_batch *kv_batch_new(void);
void kv_batch_put(struct kv_batch *b, enum kv_table t, struct kv_slice key, struct kv_slice value);
void kv_batch_delete(struct kv_batch *b, enum kv_table t, struct kv_slice key);
size_t kv_batch_count(const struct kv_batch *b);
void kv_batch_clear(struct kv_batch *b);
void kv_batch_free(struct kv_batch *b); /* NULL is fine */

/* Applies the batch, atomically, visible to every read started afterwards. Batches apply in the
 * order of the calls. May suspend (a full memory table waits for its flush). ERR_NOSPC: nothing was
 * applied, the same batch may be written again later. */
int kv_write(struct kv *kv, struct kv_batch *b);

/* Makes everything written before the call durable. Suspends. Writes go on meanwhile. ERR_NOSPC:
 * some of it may not be; another flush may be tried later. */
int kv_flush(struct kv *kv);

struct kv_stats {
    uint64_t memory_bytes, disk_bytes;
};
int kv_get_stats(struct kv *kv, struct kv_stats *ret_stats);

/* Flushes and closes. No other call may be under way. Does not wait for space (ERR_NOSPC).
 * Suspends. NULL is fine. */
int kv_close(struct kv *kv);

/* ---- Changed rows (kv_changes.c) ---- */

/* The rows that batches changed, each with the value that it had last, or as deleted. Rows of some
 * tables can be left out: bit t of `but` leaves out table t. Nothing here suspends. */
struct kv_changes;
struct kv_changes *kv_changes_new(unsigned but);
void kv_changes_free(struct kv_changes *c); /* NULL is fine */
void kv_changes_add(struct kv_changes *c, const struct kv_batch *b);
/* One row; `value` NULL: it is deleted. */
void kv_changes_set(struct kv_changes *c, enum kv_table t, struct kv_slice key,
                    const struct kv_slice *value);
/* Adds what is in `newer`, in the place of what `c` has of the same rows. */
void kv_changes_add_newer(struct kv_changes *c, const struct kv_changes *newer);
size_t kv_changes_bytes(const struct kv_changes *c); /* of memory */
size_t kv_changes_count(const struct kv_changes *c);
/* The rows in the order of their tables and keys: *ret_rows has kv_changes_count of them, the
 * caller frees it; good until `c` changes. May run on a lane. */
struct kv_change {
    enum kv_table table;
    bool gone;
    struct kv_slice key, value;
};
void kv_changes_sorted(const struct kv_changes *c, struct kv_change **ret_rows);
/* Calls `fn` with the table and key of each row that a batch changes, in order. */
void kv_batch_keys(const struct kv_batch *b,
                   void (*fn)(void *arg, enum kv_table t, struct kv_slice key), void *arg);

/* ---- Write-behind (kv_front.c) ---- */

/* A store in front of `store`, which it owns from now on: what is written stays in memory, in at
 * most two sets of `limit` bytes and a batch (0: 8 MiB), and goes to `store` in large batches. Same
 * contract, much cheaper small writes. A failure to write behind is returned by the next kv_write
 * or kv_flush and by all after it; but ERR_NOSPC is not one: then it is tried again, and kv_write
 * waits for space where it finds both sets full. */
struct kv *kv_front_new(struct env *env, struct kv *store, size_t limit);

/* The end is near: no write waits for space any more. Where there is none it fails with ERR_NOSPC,
 * and so does all after it; what is missing then is in the journal. Before those are waited for who
 * may be waiting for a write. Does not suspend. */
void kv_front_end_soon(struct kv *kv);

/* Registers the metrics of a store that kv_front_new made, and has its slow calls told to `slow`
 * (NULL: nobody). */
struct metrics;
struct slow_log;
void kv_front_observe(struct kv *kv, struct metrics *m, struct slow_log *slow);

/* ---- The two stores (kv_rocks.c, kv_mem.c) ---- */

struct kv_rocks_options {
    size_t cache_bytes;  /* block cache; 0: 64 MiB */
    size_t buffer_bytes; /* memory tables, all together; 0: 64 MiB */
};

/* RocksDB in the directory `path`, made if missing. May suspend. */
int kv_rocks_open(struct env *env, const char *path, const struct kv_rocks_options *options,
                  struct kv **ret_kv);

/* In memory. `image` holds the durable state between processes: NULL gives a store that lives and
 * dies with the handle; otherwise as made by kv_mem_image_new, owned by the simulator's side.
 * Flushes take simulated time, and now and then the store makes more durable than was asked, as
 * RocksDB does when a memory table is full. */
struct kv_mem_image;
struct kv_mem_image *kv_mem_image_new(void);
void kv_mem_image_free(struct kv_mem_image *image);
int kv_mem_open(struct env *env, struct kv_mem_image *image, struct kv **ret_kv);

/* What the parts of buckets share: bucket.c (life, the table, reading), bucket_put.c (storing),
 * bucket_apply.c (records, the reaper), bucket_list.c (lists), bucket_dicom.c (instances as
 * objects), bucket_row.c (bytes). */
#pragma once

#include "daemon/bucket_row.h"
#include "daemon/content.h"

struct bucket {
    struct list link;
    uint64_t id;
    struct bucket_row row; /* as it is in the KV store */
    /* Of one that is going: no object has this name or a lower one. What was deleted lies in the KV
     * store's way for a while, and there may be many. NULL: not known. */
    char *emptied;
};

struct buckets {
    struct bucket_store face; /* first */
    struct partition *p;
    struct list all; /* those that are going too */
    unsigned count;
    struct fiber_cond reap_work;
    struct fiber_group fibers;
    bool stopping;
    struct metric_hist put_time, read_time, list_time;
    struct metric_counter put_bytes, read_bytes;
};

extern const struct bucket_ops bucket_ops;

/* ---- bucket.c ---- */
struct bucket *bucket_find(const struct buckets *bs, uint64_t id);
void bucket_free(struct bucket *b);
/* One that is not going; NULL. */
struct bucket *bucket_find_name(const struct buckets *bs, const char *name);
void bucket_add(struct buckets *bs, uint64_t id, const struct bucket_row *row);
/* The row of an object. `ret_value` holds the bytes it points into (mem_free). ERR_NOENT. Suspends.
 */
int bucket_object_load(struct buckets *bs, uint64_t bucket, const char *name,
                       struct bucket_object_row *ret_row, void **ret_value);
void bucket_entry_of(const struct bucket_object_row *row, struct bucket_entry *ret_entry);

/* ---- bucket_put.c ---- */
int bucket_store_put_begin(struct bucket_store *bs, const struct bucket_put_info *info,
                           struct bucket_put **ret_put);
int bucket_store_put_append(struct bucket_put *bp, const void *data, size_t len);
int bucket_store_put_commit(struct bucket_put *bp, struct bucket_put_result *ret_result);
void bucket_store_put_abort(struct bucket_put *bp);

/* ---- bucket_apply.c ---- */
/* Context of a submitted PUT: what applying it found. */
struct bucket_applied {
    bool replaced;
};
void bucket_reaper(void *arg);
/* Brings what applying a record will read that removes or replaces this object into the caches.
 * Only an error of the KV store is one. Suspends. */
int bucket_object_warm(struct buckets *bs, uint64_t bucket, const char *name);

/* ---- bucket_list.c ---- */
int bucket_store_page(struct bucket_store *bs, const struct bucket_query *q,
                      struct bucket_page **ret_page);

/* ---- bucket_dicom.c: the reserved bucket ---- */
static inline bool bucket_is_dicom(const char *name)
{
    return strcmp(name, BUCKET_DICOM) == 0;
}
void bucket_dicom_info(struct buckets *bs, struct bucket_info *ret_info);
int bucket_dicom_open(struct buckets *bs, const char *name, struct bucket_object **ret_object);
int bucket_dicom_remove(struct buckets *bs, const char *name);
/* An instance's row of KV_CATALOG as that of an object. ERR_FORMAT. */
int bucket_dicom_row(struct kv_slice value, struct bucket_object_row *ret_row);

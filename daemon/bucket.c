/* Buckets: the table in memory, making and deleting, opening and reading objects. See
 * lib/api/bucket.h for what they are, bucket_row.h for how they are kept.
 *
 * All buckets are in memory (BUCKETS_MAX of them), objects are not. A bucket's totals change with
 * every record about its objects, in its row.
 *
 * Deleting a bucket with objects marks it as going: its name is free at once, nothing can be put
 * any more, and the reaper gives back its objects, some with each record (bucket_apply.c).
 */
#include "daemon/bucket_priv.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"

#define BUCKET_PAGE       256u
#define BUCKET_LOOK_TRIES 32u
#define BUCKET_LOOK_PAUSE (100 * 1000ull) /* ns; grows with every look */

/* ---- The table ---- */

struct bucket *bucket_find(const struct buckets *bs, uint64_t id)
{
    list_for_each (it, &bs->all) {
        struct bucket *b = LIST_ENTRY(it, struct bucket, link);

        if (b->id == id)
            return b;
    }
    return NULL;
}

struct bucket *bucket_find_name(const struct buckets *bs, const char *name)
{
    list_for_each (it, &bs->all) {
        struct bucket *b = LIST_ENTRY(it, struct bucket, link);

        if (!b->row.going && strcmp(b->row.name, name) == 0)
            return b;
    }
    return NULL;
}

void bucket_add(struct buckets *bs, uint64_t id, const struct bucket_row *row)
{
    struct bucket *b = mem_zalloc(sizeof(*b));

    b->id = id;
    b->row = *row;
    list_push_back(&bs->all, &b->link);
    bs->count++;
}

/* ---- Making and deleting ---- */

static int bucket_store_create(struct bucket_store *face, const char *name)
{
    struct buckets *bs = (struct buckets *)face;
    uint8_t created[8];
    struct iovec iov[] = {{created, sizeof(created)}, {(void *)(uintptr_t)name, strlen(name)}};

    if (!bucket_name_valid(name))
        return ERR_NAME;
    if (bucket_is_dicom(name) || bucket_find_name(bs, name))
        return ERR_EXIST;
    if (bs->count >= BUCKETS_MAX)
        return ERR_OVERLOAD;
    codec_put_le64(created, env_wallclock(bs->p->env));
    return record_submit(&bs->p->log, RECORD_BUCKET_CREATE, iov, 2, JOURNAL_INTERNAL, NULL);
}

static int bucket_store_remove(struct bucket_store *face, const char *name, bool with_objects)
{
    struct buckets *bs = (struct buckets *)face;
    struct bucket *b = bucket_find_name(bs, name);
    uint8_t body[9];
    struct iovec iov = {body, sizeof(body)};

    if (bucket_is_dicom(name))
        return ERR_READONLY;
    if (!b)
        return ERR_NOENT;
    if (b->row.objects && !with_objects)
        return ERR_NOTEMPTY;
    codec_put_le64(body, b->id);
    body[8] = with_objects;
    return record_submit(&bs->p->log, RECORD_BUCKET_DELETE, &iov, 1, JOURNAL_INTERNAL, NULL);
}

static void bucket_get_info(const struct bucket *b, struct bucket_info *ret_info)
{
    *ret_info = (struct bucket_info){
        .created_ns = b->row.created_ns, .objects = b->row.objects, .bytes = b->row.bytes};
    memcpy(ret_info->name, b->row.name, sizeof(ret_info->name));
}

static int info_compare(const void *a, const void *b)
{
    return strcmp(((const struct bucket_info *)a)->name, ((const struct bucket_info *)b)->name);
}

static int bucket_store_list(struct bucket_store *face, struct bucket_info **ret_infos,
                             size_t *ret_count)
{
    struct buckets *bs = (struct buckets *)face;
    struct bucket_info *infos = mem_calloc(bs->count + 1, sizeof(*infos));
    size_t n = 0;

    bucket_dicom_info(bs, &infos[n++]);
    list_for_each (it, &bs->all) {
        struct bucket *b = LIST_ENTRY(it, struct bucket, link);

        if (!b->row.going)
            bucket_get_info(b, &infos[n++]);
    }
    qsort(infos, n, sizeof(*infos), info_compare);
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}

static int bucket_store_stat(struct bucket_store *face, const char *name,
                             struct bucket_info *ret_info)
{
    struct buckets *bs = (struct buckets *)face;
    struct bucket *b = bucket_find_name(bs, name);

    if (bucket_is_dicom(name))
        bucket_dicom_info(bs, ret_info);
    else if (b)
        bucket_get_info(b, ret_info);
    else
        return ERR_NOENT;
    return 0;
}

/* ---- Opening and reading ---- */

struct stored_object {
    struct bucket_object face; /* first */
    struct buckets *bs;
    struct content content;
    char name[BUCKET_KEY_MAX + 1];
    struct bucket_object_row row;
    struct bucket_entry entry;
    void *value; /* the bytes that the row points into */
};

int bucket_object_load(struct buckets *bs, uint64_t bucket, const char *name,
                       struct bucket_object_row *ret_row, void **ret_value)
{
    struct bucket_key k;
    void *value;
    size_t len;
    int rc;

    bucket_key_make(&k, 'O', bucket, name);
    rc = kv_get(bs->p->kv, KV_BUCKET, bucket_key_slice(&k), &value, &len);
    if (rc < 0)
        return rc;
    rc = bucket_object_decode((struct kv_slice){value, len}, ret_row);
    if (rc == 0)
        *ret_value = value;
    else
        mem_free(value);
    return rc;
}

void bucket_entry_of(const struct bucket_object_row *row, struct bucket_entry *ret_entry)
{
    ret_entry->size = row->size;
    ret_entry->stored_ns = row->stored_ns;
    memcpy(ret_entry->etag, row->etag, BUCKET_ETAG);
    ret_entry->type = row->type;
    ret_entry->pair_count = row->pair_count;
    ret_entry->pairs = row->pairs;
}

static void stored_close(struct bucket_object *face)
{
    struct stored_object *o = (struct stored_object *)face;

    content_close(&o->content);
    mem_free(o->value);
    mem_free(o);
}

/* The row leads to a recipe that is its own: where that is gone, or chunks of it are, the object
 * was replaced or deleted between the look-ups. ERR_AGAIN then. */
static int object_open_recipe(struct stored_object *o)
{
    MEM_AUTO void *value = NULL;
    char owner[BUCKET_KEY_MAX + 1];
    struct bucket_key k;
    uint64_t bucket;
    size_t len, used;
    int rc;

    bucket_key_make(&k, 'C', o->row.content, NULL);
    rc = kv_get(o->bs->p->kv, KV_RECIPE, bucket_key_slice(&k), &value, &len);
    if (rc == 0)
        rc = bucket_owner_decode((struct kv_slice){value, len}, &bucket, owner, &used);
    if (rc == 0)
        rc = content_open(o->bs->p, (const uint8_t *)value + used, len - used, &o->content);
    if (rc == 0 && o->content.recipe.size != o->row.size)
        rc = ERR_FORMAT;
    return rc == ERR_NOENT ? ERR_AGAIN : rc;
}

static int object_open_once(struct buckets *bs, uint64_t bucket, const char *name,
                            struct bucket_object **ret_object)
{
    struct stored_object *o = mem_zalloc(sizeof(*o));
    int rc;

    o->face.ops = &bucket_ops;
    o->bs = bs;
    memcpy(o->name, name, strlen(name) + 1);
    rc = bucket_object_load(bs, bucket, name, &o->row, &o->value);
    if (rc == 0)
        rc = object_open_recipe(o);
    if (rc < 0) {
        stored_close(&o->face);
        return rc;
    }
    o->entry.name = o->name;
    bucket_entry_of(&o->row, &o->entry);
    *ret_object = &o->face;
    return 0;
}

static int bucket_store_open(struct bucket_store *face, const char *bucket, const char *name,
                             struct bucket_object **ret_object)
{
    struct buckets *bs = (struct buckets *)face;
    struct bucket *b = bucket_find_name(bs, bucket);
    uint64_t id = b ? b->id : 0;
    int rc = ERR_AGAIN;

    if (bucket_is_dicom(bucket))
        return bucket_dicom_open(bs, name, ret_object);
    if (!b || !bucket_key_valid(name))
        return ERR_NOENT;
    for (unsigned i = 0; rc == ERR_AGAIN && i < BUCKET_LOOK_TRIES; i++) {
        if (i)
            env_sleep(bs->p->env, i * BUCKET_LOOK_PAUSE);
        rc = object_open_once(bs, id, name, ret_object);
    }
    return rc;
}

static int stored_read(struct bucket_object *face, uint64_t off, void *buf, size_t len,
                       size_t *ret_len)
{
    struct stored_object *o = (struct stored_object *)face;
    struct buckets *bs = o->bs;
    uint64_t start = env_now(bs->p->env), took;
    int rc = content_read(&o->content, off, buf, len, ret_len);

    took = env_now(bs->p->env) - start;
    metric_record(&bs->read_time, took);
    if (rc == 0)
        metric_add(&bs->read_bytes, *ret_len);
    if (slow_is(bs->p->slow, took))
        slow_note(bs->p->slow, start + took, "bucket.read", took,
                  "offset=%llu length=%zu result=%s", (unsigned long long)off, len,
                  rc < 0 ? err_name(rc) : "ok");
    return rc;
}

static const struct bucket_entry *stored_entry(struct bucket_object *face)
{
    return &((struct stored_object *)face)->entry;
}

static int bucket_store_object_remove(struct bucket_store *face, const char *bucket,
                                      const char *name)
{
    struct buckets *bs = (struct buckets *)face;
    struct bucket *b = bucket_find_name(bs, bucket);
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct iovec iov;
    int rc;

    if (bucket_is_dicom(bucket))
        return bucket_dicom_remove(bs, name);
    if (!b || !bucket_key_valid(name))
        return ERR_NOENT;
    bucket_owner_encode(b->id, name, &body);
    rc = bucket_object_warm(bs, b->id, name);
    if (rc < 0)
        return rc;
    iov = (struct iovec){body.data, body.len};
    return record_submit(&bs->p->log, RECORD_BUCKET_REMOVE, &iov, 1, JOURNAL_INTERNAL, NULL);
}

const struct bucket_ops bucket_ops = {
    .create = bucket_store_create,
    .list = bucket_store_list,
    .stat = bucket_store_stat,
    .remove = bucket_store_remove,
    .put_begin = bucket_store_put_begin,
    .put_append = bucket_store_put_append,
    .put_commit = bucket_store_put_commit,
    .put_abort = bucket_store_put_abort,
    .open = bucket_store_open,
    .read = stored_read,
    .entry = stored_entry,
    .close = stored_close,
    .page = bucket_store_page,
    .object_remove = bucket_store_object_remove,
};

/* ---- Life ---- */

int buckets_new(struct partition *p, struct buckets **ret_buckets)
{
    struct buckets *bs = mem_zalloc(sizeof(*bs));

    bs->face.ops = &bucket_ops;
    bs->p = p;
    list_init(&bs->all);
    fiber_cond_init(&bs->reap_work);
    fiber_group_init(&bs->fibers);
    metric_hist_init(&bs->put_time, METRIC_TIME);
    metric_hist_init(&bs->read_time, METRIC_TIME);
    metric_hist_init(&bs->list_time, METRIC_TIME);
    *ret_buckets = bs;
    return 0;
}

int buckets_load(struct buckets *bs)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *at;
    struct bucket_row row;
    int rc;

    kv_walk_init(&w, bs->p->kv, KV_BUCKET, (struct kv_slice){"B", 1}, (struct kv_slice){"C", 1},
                 BUCKET_PAGE, 1u << 20);
    while ((rc = kv_walk_next(&w, &at)) > 0) {
        rc = at->key.len == 9 ? bucket_row_decode(at->value, &row) : ERR_FORMAT;
        if (rc < 0)
            return rc;
        bucket_add(bs, codec_get_be64((const uint8_t *)at->key.data + 1), &row);
    }
    return rc;
}

void buckets_start(struct buckets *bs)
{
    fiber_group_add(&bs->fibers, 1);
    fiber_spawn(bs->p->env, "bucket reaper", bucket_reaper, bs);
}

void buckets_stop(struct buckets *bs)
{
    bs->stopping = true;
    fiber_cond_broadcast(&bs->reap_work);
    fiber_group_wait(&bs->fibers);
}

void bucket_free(struct bucket *b)
{
    mem_free(b->emptied);
    mem_free(b);
}

void buckets_free(struct buckets *bs)
{
    if (!bs)
        return;
    for (struct list *it = list_pop_front(&bs->all); it; it = list_pop_front(&bs->all))
        bucket_free(LIST_ENTRY(it, struct bucket, link));
    mem_free(bs);
}

struct bucket_store *buckets_store(struct buckets *bs)
{
    return &bs->face;
}

void buckets_get_counts(const struct buckets *bs, struct partition_bucket_counts *ret_counts)
{
    struct partition_bucket_counts c = {.put_bytes = metric_get(&bs->put_bytes)};

    list_for_each (it, &bs->all) {
        const struct bucket *b = LIST_ENTRY(it, struct bucket, link);

        c.buckets += !b->row.going;
        c.objects += b->row.objects;
        c.bytes += b->row.bytes;
    }
    *ret_counts = c;
}

void buckets_observe(struct buckets *bs, struct metrics *m)
{
    metrics_add_hist(m, "filmroom_bucket_put_seconds",
                     "Time from an object's last byte until it is durable and visible, or refused",
                     NULL, &bs->put_time);
    metrics_add_hist(m, "filmroom_bucket_read_seconds", "Time to read a piece of an object", NULL,
                     &bs->read_time);
    metrics_add_hist(m, "filmroom_bucket_list_seconds", "Time of a page of a bucket's list", NULL,
                     &bs->list_time);
    metrics_add_counter(m, "filmroom_bucket_put_bytes_total", "Bytes of objects taken", NULL,
                        &bs->put_bytes);
    metrics_add_counter(m, "filmroom_bucket_read_bytes_total", "Bytes of objects read", NULL,
                        &bs->read_bytes);
}

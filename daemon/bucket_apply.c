/* Buckets: applying their records, and the reaper that empties deleted ones. Bodies are described
 * in bucket_row.h.
 *
 * What a record does is a function of it and of the tables: a condition, the bucket being there,
 * and its being empty are looked at here, whatever whoever submitted it had seen. A record of the
 * reaper names only the bucket: which objects it takes follows from the table.
 */
#include <string.h>

#include "daemon/bucket_priv.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

/* What a record of the reaper takes at most; bounded by objects, and by chunks behind the first. */
#define REAP_OBJECTS 32u
#define REAP_CHUNKS  4096u
#define REAP_RETRY   (100 * ENV_NS_PER_MS)

/* ---- Rows ---- */

static void row_put(const struct bucket *b, struct kv_batch *batch)
{
    STRBUF_AUTO struct strbuf value = STRBUF_INIT;
    struct bucket_key k;

    bucket_key_make(&k, 'B', b->id, NULL);
    bucket_row_encode(&b->row, &value);
    kv_batch_put(batch, KV_BUCKET, bucket_key_slice(&k), (struct kv_slice){value.data, value.len});
}

static void row_delete(struct buckets *bs, struct bucket *b, struct kv_batch *batch)
{
    struct bucket_key k;

    bucket_key_make(&k, 'B', b->id, NULL);
    kv_batch_delete(batch, KV_BUCKET, bucket_key_slice(&k));
    list_del(&b->link);
    bs->count--;
    bucket_free(b);
}

/* An object that is to go, by DELETE, REAP or replacement. */
struct old_object {
    struct bucket_object_row row;
    void *value; /* the bytes that the row points into */
    struct recipe recipe;
};

static void old_free(struct old_object *old)
{
    recipe_free(&old->recipe);
    mem_free(old->value);
    mem_free(old);
}

/* Its recipe; tells the transaction of the chunks. Suspends. */
static int old_load_recipe(struct buckets *bs, const char *name, struct chunk_txn *txn,
                           struct old_object *old)
{
    struct bucket_key k;

    bucket_key_make(&k, 'C', old->row.content, NULL);
    return content_load_old(bs->p->kv, bucket_key_slice(&k), bucket_owner_length(name), txn,
                            &old->recipe);
}

/* Takes it out of the tables; its chunks have been let go. */
static void old_remove(struct bucket *b, const char *name, const struct old_object *old,
                       struct kv_batch *batch)
{
    struct bucket_key k;

    bucket_key_make(&k, 'O', b->id, name);
    kv_batch_delete(batch, KV_BUCKET, bucket_key_slice(&k));
    bucket_key_make(&k, 'C', old->row.content, NULL);
    kv_batch_delete(batch, KV_RECIPE, bucket_key_slice(&k));
    /* Where metadata was lost the totals may not know of it. */
    b->row.objects -= b->row.objects > 0;
    b->row.bytes -= old->row.size < b->row.bytes ? old->row.size : b->row.bytes;
}

/* ---- CREATE, DELETE ---- */

static int apply_create(struct buckets *bs, const struct apply *a)
{
    struct bucket_row row = {0};

    if (a->length < 9 || a->length - 8 > BUCKET_NAME_MAX)
        return ERR_FORMAT;
    row.created_ns = codec_get_le64(a->body);
    memcpy(row.name, a->body + 8, a->length - 8);
    if (!bucket_name_valid(row.name))
        return ERR_FORMAT;
    if (bucket_find_name(bs, row.name))
        return ERR_EXIST; /* another record was first */
    bucket_add(bs, a->lsn, &row);
    row_put(bucket_find(bs, a->lsn), a->kv);
    return 0;
}

static int apply_delete(struct buckets *bs, const struct apply *a)
{
    struct bucket *b;
    bool with_objects;

    if (a->length != 9)
        return ERR_FORMAT;
    with_objects = a->body[8];
    b = bucket_find(bs, codec_get_le64(a->body));
    if (!b || b->row.going)
        return ERR_NOENT;
    if (b->row.objects && !with_objects && !PLANTED(BUCKET_DELETED_FULL))
        return ERR_NOTEMPTY; /* a put was applied before */
    if (b->row.objects && with_objects) {
        b->row.going = true;
        row_put(b, a->kv);
        fiber_cond_signal(&bs->reap_work);
    } else {
        row_delete(bs, b, a->kv);
    }
    return 0;
}

/* ---- PUT ---- */

static void object_put(struct bucket *b, const struct bucket_put_record *rec, const struct apply *a)
{
    STRBUF_AUTO struct strbuf value = STRBUF_INIT;
    struct bucket_key k;

    bucket_object_encode(&rec->row, &value);
    bucket_key_make(&k, 'O', b->id, rec->name);
    kv_batch_put(a->kv, KV_BUCKET, bucket_key_slice(&k), (struct kv_slice){value.data, value.len});
    strbuf_reset(&value);
    bucket_owner_encode(b->id, rec->name, &value);
    strbuf_add(&value, rec->recipe.data, rec->recipe.len);
    bucket_key_make(&k, 'C', rec->row.content, NULL);
    kv_batch_put(a->kv, KV_RECIPE, bucket_key_slice(&k), (struct kv_slice){value.data, value.len});
    b->row.objects++;
    b->row.bytes += rec->row.size;
}

/* Loads what changes, then changes it; takes the transaction. `old` NULL: nothing is replaced. */
static int put_change(struct buckets *bs, struct bucket *b, const struct bucket_put_record *rec,
                      const struct apply *a, struct chunk_txn *txn, struct old_object *old)
{
    struct recipe recipe = {0};
    int rc = recipe_decode(rec->recipe.data, rec->recipe.len, &recipe);

    if (rc == 0 && recipe.size != rec->row.size)
        rc = ERR_FORMAT;
    if (rc == 0 && old)
        rc = old_load_recipe(bs, rec->name, txn, old);
    if (rc == 0) {
        content_require(txn, &recipe);
        rc = chunk_txn_load(txn);
    }
    if (rc == 0) {
        content_ref(txn, &recipe, 1);
        if (old) {
            content_ref(txn, &old->recipe, PLANTED(OBJECT_KEEPS_CHUNKS) ? 0 : -1);
            old_remove(b, rec->name, old, a->kv);
        }
        chunk_txn_commit(txn, a->kv);
        object_put(b, rec, a);
        row_put(b, a->kv);
    } else {
        chunk_txn_abort(txn);
    }
    recipe_free(&recipe);
    return rc;
}

static int put_decide(struct buckets *bs, const struct bucket_put_record *rec,
                      const struct apply *a, struct chunk_txn *txn)
{
    struct old_object *old = mem_zalloc(sizeof(*old));
    struct bucket *b = bucket_find(bs, rec->bucket);
    struct bucket_applied *applied = a->context;
    bool there;
    int rc = ERR_NOENT;

    if (b && !b->row.going) {
        rc = bucket_object_load(bs, b->id, rec->name, &old->row, &old->value);
        there = rc == 0;
        if (rc == ERR_NOENT)
            rc = 0;
        if (rc == 0 && !bucket_condition_holds(rec->condition, rec->etag, there ? &old->row : NULL))
            rc = ERR_CONDITION;
        if (rc == 0) {
            rc = put_change(bs, b, rec, a, txn, there ? old : NULL);
            txn = NULL;
        }
        if (rc == 0 && applied)
            applied->replaced = there;
    }
    chunk_txn_abort(txn); /* nothing was stored: its new chunks never come to be */
    old_free(old);
    return rc;
}

static int apply_put(struct buckets *bs, const struct apply *a)
{
    struct bucket_put_record *rec = mem_zalloc(sizeof(*rec));
    struct chunk_txn *txn = chunk_txn_begin(bs->p->chunks);
    size_t used = 0;
    int rc = chunk_txn_take(txn, a->body, a->length, &used);

    if (rc == 0)
        rc = bucket_put_decode((struct kv_slice){a->body + used, a->length - used}, rec);
    rec->row.content = a->lsn;
    if (rc == 0)
        rc = put_decide(bs, rec, a, txn);
    else
        chunk_txn_abort(txn);
    mem_free(rec);
    return rc;
}

/* ---- REMOVE ---- */

static int remove_change(struct buckets *bs, struct bucket *b, const char *name,
                         const struct apply *a, struct old_object *old)
{
    struct chunk_txn *txn = chunk_txn_begin(bs->p->chunks);
    int rc = old_load_recipe(bs, name, txn, old);

    if (rc == 0)
        rc = chunk_txn_load(txn);
    if (rc < 0) {
        chunk_txn_abort(txn);
        return rc;
    }
    content_ref(txn, &old->recipe, -1);
    chunk_txn_commit(txn, a->kv);
    old_remove(b, name, old, a->kv);
    row_put(b, a->kv);
    return 0;
}

static int apply_remove(struct buckets *bs, const struct apply *a)
{
    struct old_object *old = mem_zalloc(sizeof(*old));
    char name[BUCKET_KEY_MAX + 1];
    struct bucket *b = NULL;
    uint64_t id;
    size_t used;
    int rc = bucket_owner_decode((struct kv_slice){a->body, a->length}, &id, name, &used);

    if (rc == 0 && used != a->length)
        rc = ERR_FORMAT;
    if (rc == 0) {
        b = bucket_find(bs, id);
        rc = b && !b->row.going ? 0 : ERR_NOENT;
    }
    if (rc == 0)
        rc = bucket_object_load(bs, id, name, &old->row, &old->value);
    if (rc == 0)
        rc = remove_change(bs, b, name, a, old);
    old_free(old);
    return rc;
}

/* What is there or not may have changed when the record is applied, which finds out. Rows that
 * cannot be read would stop applying for good: nothing is to be submitted then. */
int bucket_object_warm(struct buckets *bs, uint64_t bucket, const char *name)
{
    struct old_object *old = mem_zalloc(sizeof(*old));
    struct chunk_txn *txn = chunk_txn_begin(bs->p->chunks);
    int rc = bucket_object_load(bs, bucket, name, &old->row, &old->value);

    if (rc == 0)
        rc = old_load_recipe(bs, name, txn, old);
    if (rc == 0)
        rc = chunk_txn_load(txn);
    chunk_txn_abort(txn);
    old_free(old);
    return rc == ERR_KV || rc == ERR_FORMAT ? rc : 0;
}

/* ---- REAP ---- */

/* The objects that the next record takes. */
struct reap {
    struct chunk_txn *txn;
    size_t count;
    uint64_t chunks;
    struct old_object *old[REAP_OBJECTS];
    char names[REAP_OBJECTS][BUCKET_KEY_MAX + 1];
};

static void reap_free(struct reap *r)
{
    for (size_t i = 0; i < r->count; i++)
        old_free(r->old[i]);
    chunk_txn_abort(r->txn);
    mem_free(r);
}

static int reap_add(struct buckets *bs, struct reap *r, const struct kv_row *row)
{
    struct old_object *old = mem_zalloc(sizeof(*old));
    size_t n = row->key.len - 9;
    char *name = r->names[r->count];
    int rc;

    r->old[r->count++] = old;
    if (n > BUCKET_KEY_MAX)
        return ERR_FORMAT;
    memcpy(name, (const char *)row->key.data + 9, n);
    name[n] = 0;
    old->value = mem_memdup(row->value.data, row->value.len);
    rc = bucket_object_decode((struct kv_slice){old->value, row->value.len}, &old->row);
    if (rc == 0)
        rc = old_load_recipe(bs, name, r->txn, old);
    r->chunks += old->recipe.chunk_count;
    return rc;
}

/* Finds them, and what is needed to take them. Suspends: `b` may be gone then. */
static int reap_find(struct buckets *bs, const struct bucket *b, struct reap **ret_reap)
{
    struct reap *r = mem_zalloc(sizeof(*r));
    struct bucket_key from, to;
    struct kv_rows *rows;
    int rc;

    r->txn = chunk_txn_begin(bs->p->chunks);
    bucket_key_make(&from, 'O', b->id, b->emptied);
    if (b->emptied)
        from.bytes[from.len++] = 0; /* behind it */
    bucket_key_make(&to, 'O', b->id + 1, NULL);
    rc = kv_scan(bs->p->kv, KV_BUCKET, bucket_key_slice(&from), bucket_key_slice(&to), REAP_OBJECTS,
                 1u << 20, 0, &rows);
    if (rc == 0) {
        for (size_t i = 0; rc == 0 && i < rows->count && r->chunks < REAP_CHUNKS; i++)
            rc = reap_add(bs, r, &rows->rows[i]);
        kv_rows_free(rows);
    }
    if (rc == 0)
        rc = chunk_txn_load(r->txn);
    if (rc < 0)
        reap_free(r);
    else
        *ret_reap = r;
    return rc;
}

static int apply_reap(struct buckets *bs, const struct apply *a)
{
    struct bucket *b;
    struct reap *r;
    int rc;

    if (a->length != 8)
        return ERR_FORMAT;
    b = bucket_find(bs, codec_get_le64(a->body));
    if (!b || !b->row.going)
        return ERR_NOENT;
    rc = reap_find(bs, b, &r);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < r->count; i++) {
        content_ref(r->txn, &r->old[i]->recipe, -1);
        old_remove(b, r->names[i], r->old[i], a->kv);
    }
    chunk_txn_commit(r->txn, a->kv);
    r->txn = NULL;
    if (r->count) {
        mem_free(b->emptied);
        b->emptied = mem_strdup(r->names[r->count - 1]);
        row_put(b, a->kv);
    } else {
        row_delete(bs, b, a->kv);
    }
    reap_free(r);
    return 0;
}

int buckets_apply(struct buckets *bs, uint16_t type, const struct apply *a)
{
    switch ((enum record_type)type) {
    case RECORD_BUCKET_CREATE:
        return apply_create(bs, a);
    case RECORD_BUCKET_DELETE:
        return apply_delete(bs, a);
    case RECORD_BUCKET_PUT:
        return apply_put(bs, a);
    case RECORD_BUCKET_REMOVE:
        return apply_remove(bs, a);
    case RECORD_BUCKET_REAP:
        return apply_reap(bs, a);
    default:
        return ERR_FORMAT;
    }
}

/* ---- The reaper ---- */

/* Of those behind the one that failed last if there are any: one that cannot be emptied keeps none
 * of the others. */
static struct bucket *reap_next(const struct buckets *bs, uint64_t failed)
{
    struct bucket *first = NULL;
    bool behind = false;

    list_for_each (it, &bs->all) {
        struct bucket *b = LIST_ENTRY(it, struct bucket, link);

        if (!b->row.going)
            continue;
        if (behind || failed == 0)
            return b;
        if (!first)
            first = b;
        behind = b->id == failed;
    }
    return first;
}

/* A step: loads what applying will load, so that it need not wait for the KV store and others with
 * it, and submits the record. */
static int reap_step(struct buckets *bs, const struct bucket *b)
{
    uint8_t body[8];
    struct iovec iov = {body, sizeof(body)};
    struct reap *r;
    int rc;

    codec_put_le64(body, b->id);
    rc = reap_find(bs, b, &r);
    if (rc < 0)
        return rc;
    reap_free(r);
    return record_submit(&bs->p->log, RECORD_BUCKET_REAP, &iov, 1, JOURNAL_INTERNAL, NULL);
}

void bucket_reaper(void *arg)
{
    struct buckets *bs = arg;
    uint64_t failed = 0;

    while (!bs->stopping) {
        struct bucket *b = bs->p->broken ? NULL : reap_next(bs, failed);
        uint64_t id = b ? b->id : 0;
        int rc;

        if (!b) {
            fiber_cond_wait(&bs->reap_work);
            continue;
        }
        rc = reap_step(bs, b);
        if (rc < 0 && !bs->p->broken) {
            failed = id;
            if (rc != ERR_SHUTDOWN)
                log_warn("buckets", "a deleted bucket is not emptied yet, will try again error=%s",
                         err_name(rc));
            (void)fiber_cond_wait_until(bs->p->env, &bs->reap_work,
                                        env_now(bs->p->env) + REAP_RETRY);
        }
    }
    fiber_group_done(&bs->fibers);
}

/* Storing an object: its bytes become content while they arrive, its row and recipe are journaled
 * at the end.
 *
 * A stream that begins as DICOM Part 10 is cut as instances are (study_cut.c), any other into full
 * chunks. Both are functions of the bytes alone, and so is the etag, the content's digest.
 *
 * A condition is looked at twice: at the beginning, so that nobody sends gigabytes in vain, and
 * when the record is applied, which is what counts.
 */
#include <string.h>

#include "daemon/bucket_priv.h"
#include "daemon/study_cut.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

struct object_put_state {
    struct bucket_put face; /* first */
    struct buckets *bs;
    int error;
    struct content_put *content;
    struct study_cut cut;
    bool plain;    /* it is no Part 10 */
    int64_t chunk; /* being filled, where it is plain; -1: none */
    struct bucket_put_record record;
    struct strbuf row; /* the bytes that the record's row points into */
};

/* Type and metadata are copied by encoding the row, which then points into its own bytes. */
static int take_metadata(struct object_put_state *s, const struct bucket_put_info *info)
{
    struct bucket_object_row row = {.type = info->type ? info->type : "",
                                    .pair_count = info->pair_count};
    int rc = bucket_metadata_check(info->type, info->pairs, info->pair_count);

    if (rc < 0)
        return rc;
    if (info->pair_count)
        memcpy(row.pairs, info->pairs, info->pair_count * sizeof(row.pairs[0]));
    bucket_object_encode(&row, &s->row);
    return bucket_object_decode((struct kv_slice){s->row.data, s->row.len}, &s->record.row);
}

static int check_condition(struct buckets *bs, uint64_t bucket, const struct bucket_put_info *info)
{
    struct bucket_object_row row;
    void *value = NULL;
    bool holds;
    int rc;

    if (info->condition == BUCKET_ALWAYS)
        return 0;
    rc = bucket_object_load(bs, bucket, info->name, &row, &value);
    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    holds = bucket_condition_holds(info->condition, info->etag, rc == 0 ? &row : NULL);
    mem_free(value);
    return holds ? 0 : ERR_CONDITION;
}

int bucket_store_put_begin(struct bucket_store *face, const struct bucket_put_info *info,
                           struct bucket_put **ret_put)
{
    struct buckets *bs = (struct buckets *)face;
    struct bucket *b = bucket_find_name(bs, info->bucket);
    struct object_put_state *s;
    int rc;

    if (bucket_is_dicom(info->bucket))
        return ERR_READONLY;
    if (!b)
        return ERR_NOENT;
    if (!bucket_key_valid(info->name))
        return ERR_INVAL;
    if (info->size_hint > BUCKET_OBJECT_MAX)
        return ERR_TOOBIG;
    s = mem_zalloc(sizeof(*s));
    s->face.ops = face->ops;
    s->bs = bs;
    s->chunk = -1;
    s->record.bucket = b->id;
    s->record.condition = info->condition;
    memcpy(s->record.etag, info->etag, BUCKET_ETAG);
    memcpy(s->record.name, info->name, strlen(info->name) + 1);
    rc = take_metadata(s, info);
    if (rc == 0)
        rc = check_condition(bs, s->record.bucket, info);
    if (rc == 0)
        rc = content_put_begin(bs->p->contents, info->size_hint, &s->content);
    if (rc < 0) {
        bucket_store_put_abort(&s->face);
        return rc;
    }
    study_cut_init(&s->cut, s->content, false, BUCKET_OBJECT_MAX);
    *ret_put = &s->face;
    return 0;
}

/* It is no Part 10 after all: what was kept to see that goes first. */
static int turn_plain(struct object_put_state *s)
{
    s->plain = true;
    return content_put_bytes(s->content, &s->chunk, 0, s->cut.start.data, s->cut.start.len);
}

static int put_bytes(struct object_put_state *s, const void *data, size_t len)
{
    int rc;

    if (s->plain)
        return content_put_bytes(s->content, &s->chunk, 0, data, len);
    rc = study_cut_append(&s->cut, data, len);
    return rc < 0 && !s->cut.headed ? turn_plain(s) : rc;
}

int bucket_store_put_append(struct bucket_put *bp, const void *data, size_t len)
{
    struct object_put_state *s = (struct object_put_state *)bp;

    if (s->error == 0)
        s->error = content_put_room(s->content, len, BUCKET_OBJECT_MAX);
    if (s->error == 0 && len)
        s->error = put_bytes(s, data, len);
    return s->error;
}

static int put_journal(struct object_put_state *s, struct bucket_put_result *result)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct bucket_applied applied = {0};
    struct iovec iov;
    int rc;

    s->record.row.size = result->size = content_put_size(s->content);
    s->record.row.stored_ns = env_wallclock(s->bs->p->env);
    content_put_digest(s->content, s->record.row.etag);
    memcpy(result->etag, s->record.row.etag, BUCKET_ETAG);
    content_put_list(s->content, &body);
    bucket_put_encode(&s->record, &body);
    content_put_recipe(s->content, &body);
    rc = bucket_object_warm(s->bs, s->record.bucket, s->record.name);
    if (rc < 0)
        return rc;
    iov = (struct iovec){body.data, body.len};
    rc = record_submit(&s->bs->p->log, RECORD_BUCKET_PUT, &iov, 1, 0, &applied);
    result->replaced = applied.replaced;
    return rc;
}

/* As with instances, not timed from the put's begin: how fast bytes come is the client's doing. */
static void put_measure(const struct object_put_state *s, uint64_t start, uint64_t stored, int rc)
{
    struct buckets *bs = s->bs;
    uint64_t now = env_now(bs->p->env), size = content_put_size(s->content);

    metric_record(&bs->put_time, now - start);
    if (rc == 0)
        metric_add(&bs->put_bytes, size);
    if (slow_is(bs->p->slow, now - start))
        slow_note(bs->p->slow, now, "bucket.put", now - start,
                  "bytes=%llu chunks=%u chunks_us=%llu commit_us=%llu result=%s",
                  (unsigned long long)size, content_put_chunks(s->content),
                  (unsigned long long)((stored - start) / 1000),
                  (unsigned long long)((now - stored) / 1000), rc < 0 ? err_name(rc) : "ok");
}

int bucket_store_put_commit(struct bucket_put *bp, struct bucket_put_result *ret_result)
{
    struct object_put_state *s = (struct object_put_state *)bp;
    struct bucket_put_result result = {0};
    uint64_t start = env_now(s->bs->p->env), stored = start;
    int rc = s->error;

    if (rc == 0 && !s->plain && !s->cut.headed)
        rc = turn_plain(s); /* too short to tell */
    if (rc == 0) {
        study_cut_end(&s->cut);
        content_put_end_chunk(s->content, &s->chunk);
        rc = content_put_finish(s->content);
        stored = env_now(s->bs->p->env);
    }
    if (rc == 0)
        rc = put_journal(s, &result);
    put_measure(s, start, stored, rc);
    bucket_store_put_abort(bp); /* frees; what was journaled stays */
    if (rc == 0)
        *ret_result = result;
    return rc;
}

void bucket_store_put_abort(struct bucket_put *bp)
{
    struct object_put_state *s = (struct object_put_state *)bp;

    content_put_free(s->content);
    study_cut_free(&s->cut);
    strbuf_free(&s->row);
    mem_free(s);
}

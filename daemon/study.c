/* Studies: the object store's life, opening and reading instances, deleting. */
#include <string.h>

#include "daemon/study_priv.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define STUDY_LOOK_TRIES  32u /* looks at an instance that is replaced again and again */
#define STUDY_REMOVE_PAGE 256u
#define STUDY_LOOK_PAUSE  (100 * 1000ull) /* ns; grows with every look */

static const struct kv_slice study_totals_key = {CATALOG_TOTALS_KEY,
                                                 sizeof(CATALOG_TOTALS_KEY) - 1};

/* ---- Opening and reading ---- */

struct study_object {
    struct object face; /* first */
    struct studies *ss;
    struct content content;
    struct object_rows *row;
};

/* ERR_AGAIN where it moved to another study or series between the two look-ups. */
static int study_find_once(struct studies *ss, const char *instance_uid,
                           struct catalog_uids *ret_uids, struct catalog_instance *ret_instance,
                           void **ret_value)
{
    MEM_AUTO void *home = NULL;
    void *value = NULL;
    struct catalog_key k;
    size_t len;
    int rc;

    catalog_key_make(&k, 'U', instance_uid, NULL, NULL);
    rc = kv_get(ss->p->kv, KV_INDEX, catalog_key_slice(&k), &home, &len);
    if (rc == 0)
        rc = catalog_uids_split((struct kv_slice){home, len}, 2, ret_uids);
    if (rc < 0)
        return rc;
    catalog_key_make(&k, 'I', ret_uids->part[0], ret_uids->part[1], instance_uid);
    rc = kv_get(ss->p->kv, KV_CATALOG, catalog_key_slice(&k), &value, &len);
    if (rc == ERR_NOENT)
        return ERR_AGAIN;
    if (rc == 0)
        rc = catalog_instance_decode((struct kv_slice){value, len}, ret_instance);
    if (rc < 0) {
        mem_free(value);
        return rc;
    }
    *ret_value = value;
    return 0;
}

int study_find(struct studies *ss, const char *instance_uid, struct catalog_uids *ret_uids,
               struct catalog_instance *ret_instance, void **ret_value)
{
    int rc = ERR_AGAIN;

    for (unsigned i = 0; rc == ERR_AGAIN && i < STUDY_LOOK_TRIES; i++)
        rc = study_find_once(ss, instance_uid, ret_uids, ret_instance, ret_value);
    return rc == ERR_AGAIN ? ERR_LOST : rc; /* an index without its row is damage */
}

static void study_close(struct object *o)
{
    struct study_object *so = (struct study_object *)o;

    content_close(&so->content);
    mem_free(so->row);
    mem_free(so);
}

static int study_load_recipe(struct study_object *so, const char *instance_uid)
{
    MEM_AUTO void *value = NULL;
    struct catalog_key k;
    size_t len;
    int rc;

    catalog_key_make(&k, 'R', instance_uid, NULL, NULL);
    rc = kv_get(so->ss->p->kv, KV_RECIPE, catalog_key_slice(&k), &value, &len);
    return rc == 0 ? content_open(so->ss->p, value, len, &so->content) : rc;
}

/* The cutter keeps the Part 10 head and the header up to Pixel Data as one piece each; where that
 * is not so, the hint is wrong and no harm done. */
static uint64_t study_header_hint(const struct recipe *r)
{
    return r->piece_count > 2 ? (uint64_t)r->pieces[0].len + r->pieces[1].len : 0;
}

/* An instance's row as it was at one moment, and where it lives. */
struct study_look {
    struct catalog_uids home;
    struct catalog_instance row;
    void *value; /* the bytes that the row points into */
};

static int study_look_new(struct studies *ss, const char *instance_uid,
                          struct study_look **ret_look)
{
    struct study_look *l = mem_zalloc(sizeof(*l));
    int rc = study_find(ss, instance_uid, &l->home, &l->row, &l->value);

    if (rc < 0) {
        mem_free(l);
        return rc;
    }
    *ret_look = l;
    return 0;
}

static void study_look_free(struct study_look *l)
{
    if (l)
        mem_free(l->value);
    mem_free(l);
}

/* Is the instance still what it was? */
static bool study_look_holds(struct studies *ss, const char *instance_uid,
                             const struct study_look *was)
{
    struct study_look *now = NULL;
    bool same = study_look_new(ss, instance_uid, &now) == 0 &&
                now->row.stored_ns == was->row.stored_ns && now->row.bytes == was->row.bytes &&
                memcmp(now->row.digest, was->row.digest, CATALOG_DIGEST) == 0;

    study_look_free(now);
    return same;
}

/* Recipe, pins and row, each by a look-up of its own: an instance may be replaced or deleted
 * between them. So it is looked at again in the end, and where it has changed they are not of one
 * instance, or not all there: ERR_AGAIN. (Chunks go a moment before the KV store shows it.) Once
 * the chunks are pinned nothing can happen any more. */
static int study_open_look(struct study_object *so, const char *instance_uid,
                           const struct study_look *look)
{
    int rc = study_load_recipe(so, instance_uid);

    if (rc == 0)
        rc = study_instance_row(so->ss, look->home.part[0], look->home.part[1], instance_uid,
                                &so->row);
    if (rc == ERR_NOENT || (rc == 0 && !study_look_holds(so->ss, instance_uid, look)))
        return ERR_AGAIN;
    return rc == 0 && so->row->rows[0].bytes != so->content.recipe.size ? ERR_FORMAT : rc;
}

static int study_open_once(struct object_store *os, const char *study_uid, const char *series_uid,
                           const char *instance_uid, struct object **ret_object)
{
    struct studies *ss = (struct studies *)os;
    struct study_object *so;
    struct study_look *look;
    int rc = study_look_new(ss, instance_uid, &look);

    if (rc < 0)
        return rc;
    if ((study_uid && strcmp(study_uid, look->home.part[0]) != 0) ||
        (series_uid && strcmp(series_uid, look->home.part[1]) != 0)) {
        study_look_free(look);
        return ERR_NOENT;
    }
    so = mem_zalloc(sizeof(*so));
    so->face.ops = os->ops;
    so->ss = ss;
    rc = study_open_look(so, instance_uid, look);
    study_look_free(look);
    if (rc < 0) {
        study_close(&so->face);
        return rc;
    }
    so->row->rows[0].header_hint = study_header_hint(&so->content.recipe);
    *ret_object = &so->face;
    return 0;
}

static int study_open(struct object_store *os, const char *study_uid, const char *series_uid,
                      const char *instance_uid, struct object **ret_object)
{
    struct studies *ss = (struct studies *)os;
    int rc = ERR_AGAIN;

    if (strlen(instance_uid) > OBJECT_UID_MAX)
        return ERR_NOENT;
    for (unsigned i = 0; rc == ERR_AGAIN && i < STUDY_LOOK_TRIES; i++) {
        if (i)
            env_sleep(ss->p->env, i * STUDY_LOOK_PAUSE);
        rc = study_open_once(os, study_uid, series_uid, instance_uid, ret_object);
    }
    return rc;
}

static void study_read_measure(const struct study_object *so, uint64_t start, uint64_t off,
                               size_t len, int rc)
{
    struct studies *ss = so->ss;
    uint64_t now = env_now(ss->p->env);

    metric_record(&ss->read_time, now - start);
    if (rc == 0)
        metric_add(&ss->read_bytes, len);
    if (slow_is(ss->p->slow, now - start))
        slow_note(ss->p->slow, now, "object.read", now - start, "offset=%llu length=%zu result=%s",
                  (unsigned long long)off, len, rc < 0 ? err_name(rc) : "ok");
}

static int study_read(struct object *o, uint64_t off, void *buf, size_t len, size_t *ret_len)
{
    struct study_object *so = (struct study_object *)o;
    uint64_t start = env_now(so->ss->p->env);
    size_t done = 0;
    int rc = content_read(&so->content, off, buf, len, &done);

    study_read_measure(so, start, off, done, rc);
    if (rc < 0)
        return rc;
    *ret_len = done;
    return 0;
}

static const struct object_row *study_row(struct object *o)
{
    return &((struct study_object *)o)->row->rows[0];
}

/* ---- Deleting ---- */

static int study_delete_one(struct studies *ss, const struct catalog_uids *uids,
                            struct object_delete_result *result)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct study_apply_result applied = {0};
    struct iovec iov;
    int rc;

    for (unsigned i = 0; i < 3; i++) {
        strbuf_addc(&body, (char)strlen(uids->part[i]));
        strbuf_adds(&body, uids->part[i]);
    }
    rc = study_warm_delete(ss, uids);
    if (rc < 0)
        return rc;
    iov = (struct iovec){body.data, body.len};
    rc = record_submit(&ss->p->log, RECORD_OBJECT_DELETE, &iov, 1, JOURNAL_INTERNAL, &applied);
    if (rc == ERR_NOENT)
        return 0; /* somebody else deleted it meanwhile */
    if (rc == 0) {
        result->instances++;
        result->bytes += applied.bytes;
    }
    return rc;
}

/* The keys of the instances that are to go. */
struct study_removal {
    struct catalog_key from, to;
    struct object_delete_result result;
};

static int study_remove_rows(struct studies *ss, struct study_removal *r,
                             const struct kv_rows *rows)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < rows->count; i++) {
        struct kv_slice key = rows->rows[i].key;
        struct catalog_uids uids;

        if (ss->p->ending)
            return ERR_SHUTDOWN;
        rc = catalog_uids_split((struct kv_slice){(const char *)key.data + 1, key.len - 1}, 3,
                                &uids);
        for (unsigned k = 0; rc == 0 && k < 3; k++)
            if (strlen(uids.part[k]) > OBJECT_UID_MAX)
                rc = ERR_FORMAT;
        if (rc == 0)
            rc = study_delete_one(ss, &uids, &r->result);
    }
    return rc;
}

/* Page by page, each from the beginning: what comes meanwhile goes too. Instances are found by
 * their keys alone, since rows above them, which a query joins, may have been lost. */
static int study_remove_all(struct studies *ss, struct study_removal *r)
{
    size_t n = 1;
    int rc = 0;

    while (rc == 0 && n) {
        struct kv_rows *rows;

        rc = kv_scan(ss->p->kv, KV_CATALOG, catalog_key_slice(&r->from), catalog_key_slice(&r->to),
                     STUDY_REMOVE_PAGE, 1u << 20, 0, &rows);
        if (rc < 0)
            break;
        n = rows->count;
        rc = study_remove_rows(ss, r, rows);
        kv_rows_free(rows);
    }
    return rc;
}

static int study_remove(struct object_store *os, const char *study_uid, const char *series_uid,
                        const char *instance_uid, struct object_delete_result *ret_result)
{
    const char *uids[] = {study_uid, series_uid, instance_uid};
    struct study_removal r = {0};
    int rc;

    for (unsigned i = 0; i < 3; i++)
        if (uids[i] && strlen(uids[i]) > OBJECT_UID_MAX)
            return ERR_NOENT;
    catalog_key_make(&r.from, 'I', study_uid, series_uid, instance_uid);
    r.to = r.from;
    if (instance_uid)
        r.to.bytes[r.to.len++] = 0; /* this key and no longer one */
    else
        catalog_key_after(&r.to);
    rc = study_remove_all((struct studies *)os, &r);
    if (rc < 0)
        return rc;
    if (r.result.instances == 0)
        return ERR_NOENT;
    *ret_result = r.result;
    return 0;
}

/* ---- Life ---- */

static const struct object_ops study_ops = {
    .put_begin = study_put_begin,
    .put_append = study_put_append,
    .put_commit = study_put_commit,
    .put_abort = study_put_abort,
    .open = study_open,
    .read = study_read,
    .row = study_row,
    .close = study_close,
    .query = study_query,
    .remove = study_remove,
};

int studies_new(struct partition *p, struct studies **ret_studies)
{
    struct studies *ss = mem_zalloc(sizeof(*ss));

    ss->face.ops = &study_ops;
    ss->p = p;
    metric_hist_init(&ss->put_time, METRIC_TIME);
    metric_hist_init(&ss->read_time, METRIC_TIME);
    metric_hist_init(&ss->query_time, METRIC_TIME);
    *ret_studies = ss;
    return 0;
}

int studies_load(struct studies *ss)
{
    MEM_AUTO void *value = NULL;
    struct catalog_totals t;
    size_t len;
    int rc = kv_get(ss->p->kv, KV_META, study_totals_key, &value, &len);

    if (rc == ERR_NOENT)
        return 0;
    if (rc == 0)
        rc = catalog_totals_decode((struct kv_slice){value, len}, &t);
    if (rc < 0)
        return rc;
    ss->studies = t.studies;
    ss->instances = t.instances;
    ss->bytes = t.bytes;
    return 0;
}

void studies_put_totals(const struct studies *ss, struct kv_batch *batch)
{
    struct catalog_totals t = {ss->studies, ss->instances, ss->bytes};
    uint8_t bytes[CATALOG_TOTALS_SIZE];

    catalog_totals_encode(&t, bytes);
    kv_batch_put(batch, KV_META, study_totals_key, (struct kv_slice){bytes, sizeof(bytes)});
}

void studies_free(struct studies *ss)
{
    mem_free(ss);
}

struct object_store *studies_objects(struct studies *ss)
{
    return &ss->face;
}

void studies_observe(struct studies *ss, struct metrics *m)
{
    static const char outcome[] = "Instances sent, by what became of them";

    metrics_add_hist(
        m, "filmroom_object_put_seconds",
        "Time from an instance's last byte until it is durable and visible, or refused", NULL,
        &ss->put_time);
    metrics_add_hist(m, "filmroom_object_read_seconds", "Time to read a piece of an instance", NULL,
                     &ss->read_time);
    metrics_add_hist(m, "filmroom_object_query_seconds",
                     "Time of a look into the catalogue, be it for a client or to open an instance",
                     NULL, &ss->query_time);
    metrics_add_counter(m, "filmroom_object_put_bytes_total", "Part 10 bytes of instances taken",
                        NULL, &ss->put_bytes);
    metrics_add_counter(m, "filmroom_object_read_bytes_total", "Part 10 bytes read", NULL,
                        &ss->read_bytes);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_instances_total", outcome,
                      METRIC_LABELS("outcome", "stored"), &ss->stored);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_instances_total", outcome,
                      METRIC_LABELS("outcome", "identical"), &ss->identical);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_instances_total", outcome,
                      METRIC_LABELS("outcome", "replaced"), &ss->replaced);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_instances_total", outcome,
                      METRIC_LABELS("outcome", "conflict"), &ss->refused);
}

void studies_get_counts(const struct studies *ss, struct partition_study_counts *ret_counts)
{
    *ret_counts = (struct partition_study_counts){.studies = ss->studies,
                                                  .instances = ss->instances,
                                                  .bytes = ss->bytes,
                                                  .put_bytes = metric_get(&ss->put_bytes),
                                                  .stored = ss->stored,
                                                  .replaced = ss->replaced,
                                                  .identical = ss->identical,
                                                  .refused = ss->refused};
}

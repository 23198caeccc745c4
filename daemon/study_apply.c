/* Studies: the records that change the catalogue, and applying these.
 *
 *   PUT:     its chunks (chunk_batch_encode); enum study_replace u8; study, series and instance UID
 *            (u8 length and text each); instance row length u32; instance row; attributes of the
 *            study, of the series; recipe
 *
 *   DELETE:  study, series and instance UID
 *
 * Rows of a study and a series are made by the first instance and go with the last one. They keep
 * the attributes that the first instance had. A patient's row is made by the first study and goes
 * with the last one (study_patient.c): only where a study comes or goes it is looked at.
 */
#include <string.h>

#include "daemon/study_priv.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define WARM_FEW 8u /* instances of a study; see patient_warm */

/* ---- Encoding ---- */

static void put_uid(struct strbuf *out, const char *uid)
{
    size_t n = strlen(uid);

    CHECK(n <= OBJECT_UID_MAX);
    strbuf_addc(out, (char)n);
    strbuf_add(out, uid, n);
}

static int get_uid(struct codec_reader *r, char uid[OBJECT_UID_MAX + 1])
{
    uint8_t n = codec_read_u8(r);
    const uint8_t *p = codec_read_bytes(r, n);

    if (!p || n == 0 || n > OBJECT_UID_MAX)
        return ERR_FORMAT;
    memcpy(uid, p, n);
    uid[n] = 0;
    return 0;
}

void study_put_encode(const struct study_put_record *rec, struct strbuf *out)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    uint8_t len[4];

    catalog_instance_encode(&rec->instance, &row);
    strbuf_addc(out, (char)rec->replace);
    put_uid(out, rec->study_uid);
    put_uid(out, rec->series_uid);
    put_uid(out, rec->instance_uid);
    CHECK(row.len <= UINT32_MAX);
    codec_put_le32(len, (uint32_t)row.len);
    strbuf_add(out, len, 4);
    strbuf_add(out, row.data, row.len);
    catalog_attrs_encode(rec->study.attrs, rec->study.count, out);
    catalog_attrs_encode(rec->series.attrs, rec->series.count, out);
}

/* A record being applied: what it says, and the rows it changes. */
struct put_apply {
    struct studies *ss;
    const struct apply *a;
    char study_uid[OBJECT_UID_MAX + 1], series_uid[OBJECT_UID_MAX + 1];
    char instance_uid[OBJECT_UID_MAX + 1];
    uint8_t replace;
    struct kv_slice row, recipe_bytes; /* in the body */
    struct catalog_instance instance;
    struct catalog_attrs study_attrs, series_attrs;
    struct study_patient patient; /* loaded where a study comes */
    struct recipe recipe;
    struct chunk_txn *txn;
};

/* Rows of the levels above an instance, loaded, changed, written back. */
struct upper {
    bool study_exists, series_exists;
    struct catalog_study study;
    struct catalog_series series;
    void *study_value, *series_value; /* bytes that the rows point into */
};

static int put_decode(struct put_apply *p, size_t chunks_len)
{
    struct codec_reader r = codec_reader_on(p->a->body + chunks_len, p->a->length - chunks_len);
    uint32_t n;
    int rc;

    p->replace = codec_read_u8(&r);
    if (p->replace > (STUDY_REPLACE_OTHER | STUDY_REPLACE_SAME) || get_uid(&r, p->study_uid) < 0 ||
        get_uid(&r, p->series_uid) < 0 || get_uid(&r, p->instance_uid) < 0)
        return ERR_FORMAT;
    n = codec_read_le32(&r);
    p->row = (struct kv_slice){codec_read_bytes(&r, n), n};
    if (!p->row.data)
        return ERR_FORMAT;
    rc = catalog_instance_decode(p->row, &p->instance);
    if (rc == 0)
        rc = catalog_attrs_decode(&r, &p->study_attrs);
    if (rc == 0)
        rc = catalog_attrs_decode(&r, &p->series_attrs);
    if (rc < 0 || !codec_reader_ok(&r))
        return ERR_FORMAT;
    p->recipe_bytes = (struct kv_slice){r.p, codec_left(&r)};
    return recipe_decode(r.p, codec_left(&r), &p->recipe);
}

/* ---- Rows above ---- */

static int upper_load(struct studies *ss, const char *study, const char *series, struct upper *u)
{
    struct catalog_key k;
    size_t len;
    int rc;

    catalog_key_make(&k, 'T', study, NULL, NULL);
    rc = kv_get(ss->p->kv, KV_CATALOG, catalog_key_slice(&k), &u->study_value, &len);
    if (rc == 0)
        rc = catalog_study_decode((struct kv_slice){u->study_value, len}, &u->study);
    u->study_exists = rc == 0;
    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    catalog_key_make(&k, 'S', study, series, NULL);
    rc = kv_get(ss->p->kv, KV_CATALOG, catalog_key_slice(&k), &u->series_value, &len);
    if (rc == 0)
        rc = catalog_series_decode((struct kv_slice){u->series_value, len}, &u->series);
    u->series_exists = rc == 0;
    return rc < 0 && rc != ERR_NOENT ? rc : 0;
}

static void upper_free(struct upper *u)
{
    mem_free(u->study_value);
    mem_free(u->series_value);
    mem_free(u);
}

static void upper_add(struct upper *u, const struct put_apply *p)
{
    if (!u->study_exists) {
        memset(&u->study, 0, sizeof(u->study));
        u->study.attrs = p->study_attrs;
        u->study_exists = true;
        p->ss->studies++;
    }
    if (!u->series_exists) {
        memset(&u->series, 0, sizeof(u->series));
        u->series.attrs = p->series_attrs;
        u->series_exists = true;
        u->study.series++;
        catalog_modality_count(&u->study, &u->series, 1);
    }
    u->study.instances++;
    u->series.instances++;
    u->study.bytes += p->instance.bytes;
    u->series.bytes += p->instance.bytes;
    u->study.stored_ns = u->series.stored_ns = p->instance.stored_ns;
}

/* Metadata that was lost may have taken rows with it, or changes of them: what is not counted
 * cannot be taken out of a count. */
static uint64_t upper_less(uint64_t count, uint64_t part)
{
    return count > part ? count - part : 0;
}

static void upper_remove(struct studies *ss, struct upper *u, uint64_t bytes)
{
    u->study.instances = upper_less(u->study.instances, 1);
    u->series.instances = upper_less(u->series.instances, 1);
    u->study.bytes = upper_less(u->study.bytes, bytes);
    u->series.bytes = upper_less(u->series.bytes, bytes);
    if (u->series_exists && u->series.instances == 0) {
        catalog_modality_count(&u->study, &u->series, -1);
        u->study.series = upper_less(u->study.series, 1);
    }
    if (u->study_exists && u->study.instances == 0)
        ss->studies = upper_less(ss->studies, 1);
}

static void upper_put(struct upper *u, const char *study, const char *series,
                      struct kv_batch *batch)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct catalog_key k;

    catalog_key_make(&k, 'T', study, NULL, NULL);
    if (u->study.instances == 0) {
        kv_batch_delete(batch, KV_CATALOG, catalog_key_slice(&k));
    } else {
        catalog_study_encode(&u->study, &row);
        kv_batch_put(batch, KV_CATALOG, catalog_key_slice(&k),
                     (struct kv_slice){row.data, row.len});
    }
    strbuf_reset(&row);
    catalog_key_make(&k, 'S', study, series, NULL);
    if (u->series.instances == 0) {
        kv_batch_delete(batch, KV_CATALOG, catalog_key_slice(&k));
    } else {
        catalog_series_encode(&u->series, &row);
        kv_batch_put(batch, KV_CATALOG, catalog_key_slice(&k),
                     (struct kv_slice){row.data, row.len});
    }
}

/* ---- Removing an instance: within DELETE, or before a replacement ---- */

/* Loads the recipe of a stored instance and tells the transaction of its chunks. Suspends. */
static int old_recipe(struct studies *ss, const char *instance, struct chunk_txn *txn,
                      struct recipe *ret_recipe)
{
    struct catalog_key k;

    catalog_key_make(&k, 'R', instance, NULL, NULL);
    return content_load_old(ss->p->kv, catalog_key_slice(&k), 0, txn, ret_recipe);
}

static void row_delete(struct studies *ss, const struct catalog_uids *home, const char *instance,
                       uint64_t bytes, struct kv_batch *batch)
{
    struct catalog_key k;

    catalog_key_make(&k, 'I', home->part[0], home->part[1], instance);
    kv_batch_delete(batch, KV_CATALOG, catalog_key_slice(&k));
    ss->instances = upper_less(ss->instances, 1);
    ss->bytes = upper_less(ss->bytes, bytes);
}

static void content_delete(const char *instance, struct kv_batch *batch)
{
    struct catalog_key k;

    catalog_key_make(&k, 'R', instance, NULL, NULL);
    kv_batch_delete(batch, KV_RECIPE, catalog_key_slice(&k));
    catalog_key_make(&k, 'U', instance, NULL, NULL);
    kv_batch_delete(batch, KV_INDEX, catalog_key_slice(&k));
}

/* An instance that is to be removed. */
struct old_instance {
    struct catalog_uids home; /* study, series */
    bool stray; /* a row that the index does not lead to: recipe and index are another one's */
    struct catalog_instance row;
    struct recipe recipe;
    struct upper upper;
    struct study_patient patient; /* loaded where the study goes */
};

static void old_free(struct old_instance *old)
{
    recipe_free(&old->recipe);
    mem_free(old->upper.study_value);
    mem_free(old->upper.series_value);
    mem_free(old->patient.value);
    mem_free(old);
}

/* Will the study go with this instance? */
static bool old_is_last(const struct old_instance *old)
{
    return old->upper.study_exists && old->upper.study.instances <= 1;
}

static bool old_was_last(const struct old_instance *old)
{
    return old->upper.study_exists && old->upper.study.instances == 0;
}

/* Its rows in the levels above, and its recipe; see old_recipe. */
static int old_load(struct studies *ss, const char *instance, struct chunk_txn *txn,
                    struct old_instance *old)
{
    int rc = upper_load(ss, old->home.part[0], old->home.part[1], &old->upper);

    if (rc == 0 && old_is_last(old))
        rc = study_patient_load(ss, &old->upper.study.attrs, &old->patient);
    return rc < 0 || old->stray ? rc : old_recipe(ss, instance, txn, &old->recipe);
}

/* Takes the instance out of all rows. */
static void old_remove(struct studies *ss, const char *instance, struct old_instance *old,
                       struct kv_batch *batch)
{
    upper_remove(ss, &old->upper, old->row.bytes);
    upper_put(&old->upper, old->home.part[0], old->home.part[1], batch);
    if (old_was_last(old))
        study_patient_remove(&old->patient, &old->upper.study.attrs, old->home.part[0], batch);
    row_delete(ss, &old->home, instance, old->row.bytes, batch);
    if (!old->stray)
        content_delete(instance, batch);
}

/* ---- PUT ---- */

static void rows_put(struct put_apply *p, struct upper *u)
{
    struct kv_batch *batch = p->a->kv;
    struct catalog_key k;
    uint8_t home[2 * OBJECT_UID_MAX + 1];
    size_t n = strlen(p->study_uid) + 1, m = strlen(p->series_uid);

    if (!u->study_exists)
        study_patient_add(&p->patient, &p->study_attrs, p->study_uid, batch);
    upper_add(u, p);
    upper_put(u, p->study_uid, p->series_uid, batch);
    catalog_key_make(&k, 'I', p->study_uid, p->series_uid, p->instance_uid);
    kv_batch_put(batch, KV_CATALOG, catalog_key_slice(&k), p->row);
    catalog_key_make(&k, 'R', p->instance_uid, NULL, NULL);
    kv_batch_put(batch, KV_RECIPE, catalog_key_slice(&k), p->recipe_bytes);
    memcpy(home, p->study_uid, n);
    memcpy(home + n, p->series_uid, m);
    catalog_key_make(&k, 'U', p->instance_uid, NULL, NULL);
    kv_batch_put(batch, KV_INDEX, catalog_key_slice(&k), (struct kv_slice){home, n + m});
    p->ss->instances++;
    p->ss->bytes += p->instance.bytes;
}

/* The old instance leaves first, in the rows in memory; where the new one has the same study or
 * series or patient it goes on from there. Its rows come later in the batch and win. */
static void rows_replace(struct put_apply *p, struct upper *u, struct old_instance *old)
{
    bool same_study = strcmp(old->home.part[0], p->study_uid) == 0;
    bool same_series = same_study && strcmp(old->home.part[1], p->series_uid) == 0;

    old_remove(p->ss, p->instance_uid, old, p->a->kv);
    study_patient_follow(&p->patient, &old->patient);
    if (same_study) {
        u->study = old->upper.study;
        u->study_exists = u->study.instances > 0;
    }
    if (same_series) {
        u->series = old->upper.series;
        u->series_exists = u->series.instances > 0;
    }
    rows_put(p, u);
}

/* Loads what changes, then changes it. `old` NULL: nothing is replaced. */
static int put_change(struct put_apply *p, struct old_instance *old)
{
    struct upper *u = mem_zalloc(sizeof(*u));
    int rc = upper_load(p->ss, p->study_uid, p->series_uid, u);

    if (rc == 0 && old)
        rc = old_load(p->ss, p->instance_uid, p->txn, old);
    if (rc == 0 && (!u->study_exists || (old && old_is_last(old)))) /* a study may come */
        rc = study_patient_load(p->ss, &p->study_attrs, &p->patient);
    content_require(p->txn, &p->recipe);
    if (rc == 0)
        rc = chunk_txn_load(p->txn);
    if (rc == 0) {
        content_ref(p->txn, &p->recipe, 1);
        if (old) {
            content_ref(p->txn, &old->recipe, PLANTED(REPLACED_KEEPS_CHUNKS) ? 0 : -1);
            rows_replace(p, u, old);
        } else {
            rows_put(p, u);
        }
        chunk_txn_commit(p->txn, p->a->kv);
        p->txn = NULL;
    }
    upper_free(u);
    return rc;
}

/* Looks whether the UID is taken, and acts by the record's policy. */
static int put_decide(struct put_apply *p)
{
    struct study_apply_result *result = p->a->context;
    struct old_instance *old = mem_zalloc(sizeof(*old));
    enum object_put_outcome outcome = OBJECT_STORED;
    void *value = NULL;
    int rc = study_find(p->ss, p->instance_uid, &old->home, &old->row, &value);

    if (rc == ERR_NOENT || rc == ERR_LOST) {
        rc = put_change(p, NULL);
    } else if (rc == 0) {
        /* The same: another sender was first, or what is stored cannot be read. */
        bool same = memcmp(old->row.digest, p->instance.digest, CATALOG_DIGEST) == 0;

        outcome = same ? OBJECT_IDENTICAL : OBJECT_REPLACED;
        if (p->replace & (same ? STUDY_REPLACE_SAME : STUDY_REPLACE_OTHER))
            rc = put_change(p, old);
        else if (!same)
            rc = ERR_CONFLICT;
    }
    if (rc == 0 && result)
        result->outcome = outcome;
    old_free(old);
    mem_free(value);
    return rc;
}

static int apply_put(struct studies *ss, const struct apply *a)
{
    struct put_apply *p = mem_zalloc(sizeof(*p));
    size_t used = 0;
    int rc;

    p->ss = ss;
    p->a = a;
    p->txn = chunk_txn_begin(ss->p->chunks);
    rc = chunk_txn_take(p->txn, a->body, a->length, &used);
    if (rc == 0)
        rc = put_decode(p, used);
    if (rc == 0)
        rc = put_decide(p);
    chunk_txn_abort(p->txn); /* where nothing was stored: its new chunks never come to be */
    recipe_free(&p->recipe);
    mem_free(p->patient.value);
    mem_free(p);
    return rc;
}

/* ---- Before submitting ----
 *
 * Records are applied one at a time: what applying reads is read beforehand, so that it is at hand
 * then. What is there or not may have changed by then; applying finds out. Rows that cannot be read
 * stay so, and would stop applying for good: they are refused here.
 */
static int warm_result(int rc)
{
    return rc == ERR_KV || rc == ERR_FORMAT ? rc : 0;
}

/* The patient's row is read where a study comes or goes. One of few instances may go by records
 * that are on their way. */
static int patient_warm(struct studies *ss, const struct upper *u,
                        const struct catalog_attrs *attrs)
{
    struct study_patient patient = {0};
    int rc;

    if (u->study_exists && u->study.instances > WARM_FEW)
        return 0;
    rc = study_patient_load(ss, attrs, &patient);
    mem_free(patient.value);
    return rc;
}

int study_warm_upper(struct studies *ss, const struct study_put_record *rec)
{
    struct upper *u = mem_zalloc(sizeof(*u));
    int rc = upper_load(ss, rec->study_uid, rec->series_uid, u);

    if (rc == 0)
        rc = patient_warm(ss, u, &rec->study);
    upper_free(u);
    return warm_result(rc);
}

/* Reads what goes with an instance that was found (`rc`). */
static int old_warm(struct studies *ss, const char *instance, struct old_instance *old, int rc)
{
    struct chunk_txn *txn = chunk_txn_begin(ss->p->chunks);

    if (rc == 0)
        rc = old_load(ss, instance, txn, old);
    if (rc == 0 && old->upper.study_exists)
        rc = patient_warm(ss, &old->upper, &old->upper.study.attrs);
    if (rc == 0)
        rc = chunk_txn_load(txn);
    chunk_txn_abort(txn);
    return warm_result(rc);
}

int study_warm(struct studies *ss, const char *instance)
{
    struct old_instance *old = mem_zalloc(sizeof(*old));
    void *value = NULL;
    int rc = study_find(ss, instance, &old->home, &old->row, &value);

    rc = old_warm(ss, instance, old, rc);
    old_free(old);
    mem_free(value);
    return rc;
}

/* Finds the instance that a record or a row says is there. Where the index leads elsewhere or
 * nowhere it has gone or moved; or its row is still there, which is damage, and goes too: it could
 * be got rid of in no other way. ERR_NOENT. Suspends. */
static int old_find(struct studies *ss, const char *study, const char *series, const char *instance,
                    struct old_instance *old, void **ret_value)
{
    int rc = study_find(ss, instance, &old->home, &old->row, ret_value);
    bool known = rc == 0;
    struct catalog_key k;
    size_t len;

    if (known && strcmp(old->home.part[0], study) == 0 && strcmp(old->home.part[1], series) == 0)
        return 0;
    if (rc < 0 && rc != ERR_NOENT && rc != ERR_LOST)
        return rc;
    mem_free(*ret_value);
    *ret_value = NULL;
    catalog_key_make(&k, 'I', study, series, instance);
    rc = kv_get(ss->p->kv, KV_CATALOG, catalog_key_slice(&k), ret_value, &len);
    if (rc == 0)
        rc = catalog_instance_decode((struct kv_slice){*ret_value, len}, &old->row);
    if (rc == 0)
        rc = catalog_uids_split((struct kv_slice){k.bytes + 1, k.len - 1}, 3, &old->home);
    old->stray = known;
    return rc;
}

int study_warm_delete(struct studies *ss, const struct catalog_uids *uids)
{
    struct old_instance *old = mem_zalloc(sizeof(*old));
    void *value = NULL;
    int rc = old_find(ss, uids->part[0], uids->part[1], uids->part[2], old, &value);

    rc = old_warm(ss, uids->part[2], old, rc);
    old_free(old);
    mem_free(value);
    return rc;
}

int study_look_for_lost(struct studies *ss, const struct catalog_uids *home, const char *instance)
{
    struct chunk_txn *txn = chunk_txn_begin(ss->p->chunks);
    struct upper *u = mem_zalloc(sizeof(*u));
    struct recipe recipe = {0};
    int rc = upper_load(ss, home->part[0], home->part[1], u);

    if (rc == 0 && !(u->study_exists && u->series_exists))
        rc = ERR_LOST;
    if (rc == 0)
        rc = old_recipe(ss, instance, txn, &recipe);
    if (rc == 0) /* a recipe that is lost was left clear */
        rc = recipe.chunk_count ? content_look_for_lost(ss->p, &recipe) : ERR_LOST;
    chunk_txn_abort(txn);
    recipe_free(&recipe);
    upper_free(u);
    return rc;
}

/* ---- DELETE ---- */

static int delete_change(struct studies *ss, const struct apply *a, struct old_instance *old,
                         const char *instance)
{
    struct chunk_txn *txn = chunk_txn_begin(ss->p->chunks);
    int rc = old_load(ss, instance, txn, old);

    if (rc == 0)
        rc = chunk_txn_load(txn);
    if (rc < 0) {
        chunk_txn_abort(txn);
        return rc;
    }
    content_ref(txn, &old->recipe, -1);
    chunk_txn_commit(txn, a->kv);
    old_remove(ss, instance, old, a->kv);
    return 0;
}

static int apply_delete(struct studies *ss, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    struct study_apply_result *result = a->context;
    struct old_instance *old = mem_zalloc(sizeof(*old));
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1], instance[OBJECT_UID_MAX + 1];
    void *value = NULL;
    int rc = ERR_FORMAT;

    if (get_uid(&r, study) == 0 && get_uid(&r, series) == 0 && get_uid(&r, instance) == 0)
        rc = old_find(ss, study, series, instance, old, &value);
    if (rc == 0)
        rc = delete_change(ss, a, old, instance);
    if (rc == 0 && result)
        result->bytes = old->row.bytes;
    old_free(old);
    mem_free(value);
    return rc;
}

int studies_apply(struct studies *ss, uint16_t type, const struct apply *a)
{
    int rc = type == RECORD_OBJECT_PUT ? apply_put(ss, a) : apply_delete(ss, a);

    if (rc == 0)
        studies_put_totals(ss, a->kv);
    return rc;
}

/* The catalogue's queries: walk the rows of a level in key order, keep those that match.
 *
 * Rows are read page by page; with UIDs given only their part of the table is walked. An exact
 * Patient ID (and no study) goes by the index: that patient's studies in the order of their UIDs,
 * which is the order of the whole walk, and under each of them its part of the table. The index
 * only leads there: a study that changed meanwhile, or that shares the beginning of an overlong ID,
 * is dropped by the matching, which asks about the Patient ID like about anything else. A series or
 * instance row is joined with the rows above it, which come once per study and series because keys
 * sort that way. Results are gathered in one growing block with offsets, turned into pointers at
 * the end.
 */
#include <string.h>
#include <strings.h>

#include "daemon/study_priv.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define QUERY_PAGE       256u
#define QUERY_PAGE_BYTES (1u << 20)
#define QUERY_LIMIT_MAX  10000u

#define TAG_MODALITIES       0x00080061u
#define TAG_TRANSFER_SYNTAX  0x00083002u
#define TAG_PATIENT_STUDIES  0x00201200u
#define TAG_STUDY_SERIES     0x00201206u
#define TAG_STUDY_INSTANCES  0x00201208u
#define TAG_SERIES_INSTANCES 0x00201209u

/* ---- Matching (PS3.4 section C.2.2.2) ---- */

/* A Patient ID is compared as one whatever a sender took it for: the index knows no other way. */
static bool is_person(const struct object_attr *a)
{
    return strcmp(a->vr, "PN") == 0 && a->tag != CATALOG_TAG_PATIENT_ID;
}

/* '*' and '?' against one value; the classic two-pointer walk, linear for a bounded pattern. */
static bool wildcard(const char *p, const char *s, size_t n, bool fold)
{
    const char *end = s + n, *star = NULL, *mark = NULL;

    while (s < end) {
        bool same = *p == *s || (fold && *p && strncasecmp(p, s, 1) == 0);

        if (*p == '*') {
            star = p++;
            mark = s;
        } else if (*p && (*p == '?' || same)) {
            p++;
            s++;
        } else if (star) {
            p = star + 1;
            s = ++mark;
        } else {
            return false;
        }
    }
    while (*p == '*')
        p++;
    return *p == 0;
}

static bool exact(const char *want, const char *s, size_t n, bool fold)
{
    return strlen(want) == n && (fold ? strncasecmp(want, s, n) : strncmp(want, s, n)) == 0;
}

/* Digits of a date, time or date-time, as many as both have, compare as text. */
static int compare_moment(const char *a, size_t an, const char *b, size_t bn)
{
    size_t n = an < bn ? an : bn;

    return strncmp(a, b, n);
}

static bool range(const char *want, const char *s, size_t n)
{
    const char *dash = strchr(want, '-');

    if (n == 0)
        return false;
    if (!dash)
        return compare_moment(s, n, want, strlen(want)) == 0;
    return (dash == want || compare_moment(s, n, want, (size_t)(dash - want)) >= 0) &&
           (dash[1] == 0 || compare_moment(s, n, dash + 1, strlen(dash + 1)) <= 0);
}

static bool in_list(const char *want, const char *s, size_t n)
{
    for (;;) {
        size_t m = strcspn(want, "\\");

        if (m == n && strncmp(want, s, n) == 0)
            return true;
        if (!want[m])
            return false;
        want += m + 1;
    }
}

static bool match_value(const struct object_match *m, const struct object_attr *a, const char *s,
                        size_t n)
{
    switch (m->kind) {
    case OBJECT_MATCH_EXACT:
        return exact(m->value, s, n, is_person(a));
    case OBJECT_MATCH_WILDCARD:
        return wildcard(m->value, s, n, is_person(a));
    case OBJECT_MATCH_RANGE:
        return range(m->value, s, n);
    case OBJECT_MATCH_LIST:
        return in_list(m->value, s, n);
    }
    return false;
}

/* Any value of the attribute may match; of a person's name also any of its '=' groups. */
static bool match_attr(const struct object_match *m, const struct object_attr *a)
{
    const char *s = a->value;

    if (strcmp(a->vr, "SQ") == 0)
        return false;
    for (;;) {
        size_t n = strcspn(s, "\\");

        if (match_value(m, a, s, n))
            return true;
        if (is_person(a)) {
            for (size_t at = 0; at < n;) {
                size_t g = strcspn(s + at, "=\\");

                if (match_value(m, a, s + at, g))
                    return true;
                at += g + 1;
            }
        }
        if (!s[n])
            return false;
        s += n + 1;
    }
}

/* ---- The result under construction ---- */

struct found_attr {
    struct object_attr attr; /* value: offset into text, as a number */
    size_t value;
};

struct found_row {
    struct object_row row;
    size_t uids[5]; /* offsets into text */
    size_t first_attr;
};

struct found {
    struct found_row *rows;
    struct found_attr *attrs;
    size_t row_count, row_room, attr_count, attr_room;
    struct strbuf text;
};

static size_t found_text(struct found *f, const char *s, size_t n)
{
    size_t at = f->text.len;

    strbuf_add(&f->text, s, n);
    strbuf_addc(&f->text, 0);
    return at;
}

static void found_attr(struct found *f, const struct object_attr *a)
{
    if (f->attr_count == f->attr_room) {
        f->attr_room = f->attr_room ? f->attr_room * 2 : 256;
        f->attrs = mem_realloc(f->attrs, f->attr_room * sizeof(*f->attrs));
    }
    f->attrs[f->attr_count++] =
        (struct found_attr){.attr = *a, .value = found_text(f, a->value, a->len)};
}

static void found_free(struct found *f)
{
    mem_free(f->rows);
    mem_free(f->attrs);
    strbuf_free(&f->text);
}

/* Everything into one allocation, offsets turned into pointers. */
static struct object_rows *found_finish(struct found *f, bool more)
{
    size_t rows_size = sizeof(struct object_rows) + f->row_count * sizeof(struct object_row);
    size_t attrs_size = f->attr_count * sizeof(struct object_attr);
    struct object_rows *out = mem_zalloc(rows_size + attrs_size + f->text.len + 1);
    struct object_attr *attrs = (struct object_attr *)(void *)((char *)out + rows_size);
    char *text = (char *)attrs + attrs_size;

    if (f->text.len)
        memcpy(text, f->text.data, f->text.len);
    for (size_t i = 0; i < f->attr_count; i++) {
        attrs[i] = f->attrs[i].attr;
        attrs[i].value = text + f->attrs[i].value;
    }
    out->count = f->row_count;
    out->more = more;
    for (size_t i = 0; i < f->row_count; i++) {
        const struct found_row *r = &f->rows[i];
        struct object_row *o = &out->rows[i];

        *o = r->row;
        o->study_uid = text + r->uids[0];
        o->series_uid = text + r->uids[1];
        o->instance_uid = text + r->uids[2];
        o->sop_class_uid = text + r->uids[3];
        o->transfer_syntax_uid = text + r->uids[4];
        o->attrs = attrs + r->first_attr;
    }
    return out;
}

/* ---- Joining the levels ---- */

#define JOIN_ATTRS_MAX (3 * CATALOG_ATTRS_MAX + 8)

struct join {
    struct studies *ss;
    const struct object_query *q;
    struct catalog_uids uids;         /* of the present row */
    void *study_value, *series_value; /* bytes of the rows above, as loaded last */
    char study_uid[OBJECT_UID_MAX + 1], series_uid[OBJECT_UID_MAX + 1]; /* which those are */
    struct catalog_patient patient;
    struct catalog_study study;
    struct catalog_series series;
    struct catalog_instance instance;
    struct object_attr attrs[JOIN_ATTRS_MAX]; /* joined, in tag order */
    size_t attr_count;
    struct strbuf computed; /* texts of computed attributes */
    struct found found;
    uint64_t limit, skipped;
    bool full;
};

static void join_attr(struct join *j, const struct object_attr *a)
{
    size_t i = j->attr_count;

    if (i == JOIN_ATTRS_MAX)
        return;
    while (i > 0 && j->attrs[i - 1].tag > a->tag) {
        j->attrs[i] = j->attrs[i - 1];
        i--;
    }
    j->attrs[i] = *a;
    j->attr_count++;
}

static void join_attrs(struct join *j, const struct catalog_attrs *attrs)
{
    for (size_t i = 0; i < attrs->count; i++)
        join_attr(j, &attrs->attrs[i]);
}

/* A computed attribute. `computed` was given room before, so that texts do not move. */
static void join_text(struct join *j, uint32_t tag, const char *vr, const char *text)
{
    size_t n = strlen(text);
    char *at = strbuf_room(&j->computed, n + 1);
    struct object_attr a = {.tag = tag, .len = (uint32_t)n};

    CHECK(at != NULL);
    memcpy(at, text, n + 1);
    memcpy(a.vr, vr, 3);
    a.value = at;
    join_attr(j, &a);
}

static void join_number(struct join *j, uint32_t tag, uint64_t n)
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;

    strbuf_addf(&text, "%llu", (unsigned long long)n);
    join_text(j, tag, "IS", text.data);
}

static void join_study(struct join *j)
{
    STRBUF_AUTO struct strbuf modalities = STRBUF_INIT;

    strbuf_adds(&modalities, "");
    for (uint32_t i = 0; i < j->study.modality_count; i++) {
        if (i)
            strbuf_addc(&modalities, '\\');
        strbuf_adds(&modalities, j->study.modalities[i].name);
    }
    join_attrs(j, &j->study.attrs);
    join_text(j, TAG_MODALITIES, "CS", modalities.data);
    join_number(j, TAG_STUDY_SERIES, j->study.series);
    join_number(j, TAG_STUDY_INSTANCES, j->study.instances);
}

static void join_build(struct join *j)
{
    enum object_level level = j->q->level;

    j->attr_count = 0;
    strbuf_reset(&j->computed);
    (void)strbuf_room(&j->computed, 2048); /* more than all computed texts together */
    j->computed.len = 0;
    if (level == OBJECT_PATIENT) {
        join_attrs(j, &j->patient.attrs);
        join_number(j, TAG_PATIENT_STUDIES, j->patient.studies);
        return;
    }
    join_study(j);
    if (level >= OBJECT_SERIES) {
        join_attrs(j, &j->series.attrs);
        join_number(j, TAG_SERIES_INSTANCES, j->series.instances);
    }
    if (level == OBJECT_INSTANCE) {
        join_attrs(j, &j->instance.attrs);
        join_text(j, TAG_TRANSFER_SYNTAX, "UI", j->instance.transfer_syntax);
    }
}

static bool join_matches(const struct join *j)
{
    for (size_t i = 0; i < j->q->match_count; i++) {
        const struct object_match *m = &j->q->matches[i];
        bool hit = m->value[0] == 0 || strcmp(m->value, "*") == 0; /* universal matching */

        for (size_t k = 0; !hit && k < j->attr_count; k++)
            hit = j->attrs[k].tag == m->tag && match_attr(m, &j->attrs[k]);
        if (!hit)
            return false;
    }
    return true;
}

static void join_emit(struct join *j)
{
    struct found *f = &j->found;
    enum object_level level = j->q->level;
    struct found_row *r;
    const char *texts[5] = {level >= OBJECT_STUDY ? j->uids.part[0] : "",
                            level >= OBJECT_SERIES ? j->uids.part[1] : "",
                            level == OBJECT_INSTANCE ? j->uids.part[2] : "",
                            level == OBJECT_INSTANCE ? j->instance.sop_class : "",
                            level == OBJECT_INSTANCE ? j->instance.transfer_syntax : ""};

    if (f->row_count == f->row_room) {
        f->row_room = f->row_room ? f->row_room * 2 : 32;
        f->rows = mem_realloc(f->rows, f->row_room * sizeof(*f->rows));
    }
    r = &f->rows[f->row_count++];
    *r = (struct found_row){.row = {.level = level, .attr_count = j->attr_count},
                            .first_attr = f->attr_count};
    r->row.bytes = level == OBJECT_STUDY      ? j->study.bytes
                   : level == OBJECT_SERIES   ? j->series.bytes
                   : level == OBJECT_INSTANCE ? j->instance.bytes
                                              : 0;
    r->row.stored_ns = level == OBJECT_STUDY      ? j->study.stored_ns
                       : level == OBJECT_SERIES   ? j->series.stored_ns
                       : level == OBJECT_INSTANCE ? j->instance.stored_ns
                                                  : 0;
    r->row.dataset_off = level == OBJECT_INSTANCE ? j->instance.dataset_off : 0;
    if (level == OBJECT_INSTANCE)
        memcpy(r->row.digest, j->instance.digest, OBJECT_DIGEST);
    for (unsigned i = 0; i < 5; i++)
        r->uids[i] = found_text(f, texts[i], strlen(texts[i]));
    for (size_t i = 0; i < j->attr_count; i++)
        found_attr(f, &j->attrs[i]);
}

/* Loads a row above, unless it is the one at hand. */
static int load_study(struct join *j, const char *uid)
{
    struct catalog_key k;
    size_t len;
    int rc;

    if (j->study_value && strcmp(j->study_uid, uid) == 0)
        return 0;
    mem_free(j->study_value);
    mem_free(j->series_value); /* a series is known by its study and itself */
    j->study_value = j->series_value = NULL;
    catalog_key_make(&k, 'T', uid, NULL, NULL);
    rc = kv_get(j->ss->p->kv, KV_CATALOG, catalog_key_slice(&k), &j->study_value, &len);
    if (rc == 0)
        rc = catalog_study_decode((struct kv_slice){j->study_value, len}, &j->study);
    study_copy_uid(j->study_uid, uid);
    return rc;
}

static int load_series(struct join *j, const char *study, const char *uid)
{
    struct catalog_key k;
    size_t len;
    int rc;

    if (j->series_value && strcmp(j->series_uid, uid) == 0)
        return 0;
    mem_free(j->series_value);
    j->series_value = NULL;
    catalog_key_make(&k, 'S', study, uid, NULL);
    rc = kv_get(j->ss->p->kv, KV_CATALOG, catalog_key_slice(&k), &j->series_value, &len);
    if (rc == 0)
        rc = catalog_series_decode((struct kv_slice){j->series_value, len}, &j->series);
    study_copy_uid(j->series_uid, uid);
    return rc;
}

/* Decodes a row of the level and what is above it. ERR_NOENT when that went meanwhile. */
static int join_row(struct join *j, const struct kv_row *row)
{
    struct kv_slice uids = {(const uint8_t *)row->key.data + 1, row->key.len - 1};
    int rc;

    if (j->q->level == OBJECT_PATIENT)
        return catalog_patient_decode(row->value, &j->patient);
    rc = catalog_uids_split(uids, (unsigned)j->q->level + 1, &j->uids);
    if (rc < 0)
        return rc;
    if (j->q->level == OBJECT_STUDY)
        return catalog_study_decode(row->value, &j->study);
    rc = load_study(j, j->uids.part[0]);
    if (rc < 0)
        return rc;
    if (j->q->level == OBJECT_SERIES)
        return catalog_series_decode(row->value, &j->series);
    rc = load_series(j, j->uids.part[0], j->uids.part[1]);
    return rc < 0 ? rc : catalog_instance_decode(row->value, &j->instance);
}

/* Does the row lie under the UIDs of the query that its key prefix could not express? */
static bool join_wanted(const struct join *j)
{
    const struct object_query *q = j->q;

    if (q->level == OBJECT_PATIENT)
        return true;
    return (!q->study_uid || strcmp(q->study_uid, j->uids.part[0]) == 0) &&
           (!q->series_uid || q->level < OBJECT_SERIES ||
            strcmp(q->series_uid, j->uids.part[1]) == 0) &&
           (!q->instance_uid || q->level < OBJECT_INSTANCE ||
            strcmp(q->instance_uid, j->uids.part[2]) == 0);
}

static int join_take(struct join *j, const struct kv_row *row)
{
    int rc = join_row(j, row);

    if (rc == ERR_NOENT)
        return 0;
    if (rc < 0)
        return rc;
    if (!join_wanted(j))
        return 0;
    join_build(j);
    if (!join_matches(j))
        return 0;
    if (j->skipped < j->q->offset)
        j->skipped++;
    else if (j->found.row_count == j->limit)
        j->full = true; /* there is one more */
    else
        join_emit(j);
    return 0;
}

/* ---- Walking ---- */

/* The value of a match for one exact Patient ID; NULL when the query has none. */
static const char *query_patient(const struct object_query *q)
{
    for (size_t i = 0; i < q->match_count; i++) {
        const struct object_match *m = &q->matches[i];

        if (m->tag == CATALOG_TAG_PATIENT_ID && m->kind == OBJECT_MATCH_EXACT && m->value[0] &&
            strcmp(m->value, "*") != 0) /* "*" is universal, whatever it is called */
            return m->value;
    }
    return NULL;
}

/* The part of the table that the query's UIDs or patient point to; `study` is the query's own or
 * one that the index led to. */
static void query_bounds(const struct object_query *q, const char *study, struct catalog_key *from,
                         struct catalog_key *to)
{
    static const char levels[] = {'T', 'S', 'I'};
    const char *series = study ? q->series_uid : NULL;
    const char *instance = series ? q->instance_uid : NULL;
    const char *id = query_patient(q);

    if (q->level == OBJECT_PATIENT && id)
        catalog_id_key(from, id, strlen(id), NULL);
    else if (q->level == OBJECT_PATIENT)
        catalog_key_make(from, 'P', NULL, NULL, NULL);
    else
        catalog_key_make(from, levels[q->level], study, q->level >= OBJECT_SERIES ? series : NULL,
                         q->level == OBJECT_INSTANCE ? instance : NULL);
    *to = *from;
    catalog_key_after(to);
}

/* The walk goes on behind this row. */
static int walk_behind(struct catalog_key *from, const struct kv_row *last)
{
    if (last->key.len + 1 > sizeof(from->bytes))
        return ERR_FORMAT;
    memcpy(from->bytes, last->key.data, last->key.len);
    from->bytes[last->key.len] = 0;
    from->len = last->key.len + 1;
    return 0;
}

/* Hands the rows from `from` on (which it moves) to take_page, until it fails or the result is
 * full. */
static int walk_pages(struct join *j, enum kv_table t, struct catalog_key *from,
                      const struct catalog_key *to,
                      int (*take_page)(struct join *j, const struct kv_rows *rows))
{
    bool end = false;
    int rc = 0;

    while (rc == 0 && !end && !j->full) {
        struct kv_rows *rows;

        rc = kv_scan(j->ss->p->kv, t, catalog_key_slice(from), catalog_key_slice(to), QUERY_PAGE,
                     QUERY_PAGE_BYTES, 0, &rows);
        if (rc < 0)
            break;
        end = rows->count == 0;
        if (!end) {
            rc = take_page(j, rows);
            if (rc == 0)
                rc = walk_behind(from, &rows->rows[rows->count - 1]);
        }
        kv_rows_free(rows);
    }
    return rc;
}

static int take_rows(struct join *j, const struct kv_rows *rows)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < rows->count && !j->full; i++)
        rc = join_take(j, &rows->rows[i]);
    return rc;
}

static int query_walk(struct join *j, const char *study)
{
    struct catalog_key from, to;

    query_bounds(j->q, study, &from, &to);
    return walk_pages(j, KV_CATALOG, &from, &to, take_rows);
}

/* The study that a row of the index is about: what stands behind its last NUL. */
static int indexed_study(const struct kv_row *row, char ret_uid[OBJECT_UID_MAX + 1])
{
    const uint8_t *key = row->key.data;
    size_t at = row->key.len;

    while (at > 0 && key[at - 1] != 0)
        at--;
    if (at == 0 || row->key.len - at > OBJECT_UID_MAX)
        return ERR_FORMAT;
    memcpy(ret_uid, key + at, row->key.len - at);
    ret_uid[row->key.len - at] = 0;
    return 0;
}

/* A page of the index, its studies in one go. */
static int take_indexed_studies(struct join *j, const struct kv_rows *index)
{
    struct catalog_key *keys = mem_calloc(index->count, sizeof(*keys));
    struct kv_slice *slices = mem_calloc(index->count, sizeof(*slices));
    void **values = mem_calloc(index->count, sizeof(*values));
    size_t *lens = mem_calloc(index->count, sizeof(*lens));
    char uid[OBJECT_UID_MAX + 1];
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < index->count; i++) {
        rc = indexed_study(&index->rows[i], uid);
        if (rc == 0)
            catalog_key_make(&keys[i], 'T', uid, NULL, NULL);
        slices[i] = catalog_key_slice(&keys[i]);
    }
    if (rc == 0)
        rc = kv_multi_get(j->ss->p->kv, KV_CATALOG, slices, index->count, values, lens);
    for (size_t i = 0; rc == 0 && i < index->count && !j->full; i++)
        if (values[i]) /* else it went meanwhile */
            rc = join_take(j, &(struct kv_row){slices[i], {values[i], lens[i]}});
    for (size_t i = 0; i < index->count; i++)
        mem_free(values[i]);
    mem_free(values);
    mem_free(lens);
    mem_free(slices);
    mem_free(keys);
    return rc;
}

/* A page of the index, what lies under its studies. */
static int take_indexed(struct join *j, const struct kv_rows *index)
{
    char uid[OBJECT_UID_MAX + 1];
    int rc = 0;

    if (j->q->level == OBJECT_STUDY)
        return take_indexed_studies(j, index);
    for (size_t i = 0; rc == 0 && i < index->count && !j->full; i++) {
        rc = indexed_study(&index->rows[i], uid);
        if (rc == 0)
            rc = query_walk(j, uid);
    }
    return rc;
}

static int query_run(struct join *j)
{
    const char *id = query_patient(j->q);
    struct catalog_key from, to;

    if (!id || j->q->study_uid || j->q->level == OBJECT_PATIENT)
        return query_walk(j, j->q->study_uid);
    catalog_id_key(&from, id, strlen(id), NULL);
    to = from;
    catalog_key_after(&to);
    return walk_pages(j, KV_INDEX, &from, &to, take_indexed);
}

static bool uid_fits(const char *uid)
{
    return !uid || strlen(uid) <= OBJECT_UID_MAX;
}

static void query_measure(struct studies *ss, const struct object_query *q, uint64_t start,
                          size_t rows)
{
    uint64_t now = env_now(ss->p->env);

    metric_record(&ss->query_time, now - start);
    if (slow_is(ss->p->slow, now - start))
        slow_note(ss->p->slow, now, "object.query", now - start, "level=%d matches=%zu rows=%zu",
                  (int)q->level, q->match_count, rows);
}

int study_query(struct object_store *os, const struct object_query *q,
                struct object_rows **ret_rows)
{
    struct studies *ss = (struct studies *)os;
    uint64_t start = env_now(ss->p->env);
    struct join *j;
    int rc;

    if (q->level < OBJECT_PATIENT || q->level > OBJECT_INSTANCE ||
        (q->level == OBJECT_PATIENT && (q->study_uid || q->series_uid || q->instance_uid)))
        return ERR_INVAL;
    j = mem_zalloc(sizeof(*j));
    j->ss = ss;
    j->q = q;
    j->limit = q->limit && q->limit < QUERY_LIMIT_MAX ? q->limit : QUERY_LIMIT_MAX;
    rc = uid_fits(q->study_uid) && uid_fits(q->series_uid) && uid_fits(q->instance_uid)
             ? query_run(j)
             : 0; /* such a UID cannot be stored */
    if (rc == 0)
        *ret_rows = found_finish(&j->found, j->full);
    query_measure(ss, q, start, rc == 0 ? (*ret_rows)->count : 0);
    found_free(&j->found);
    strbuf_free(&j->computed);
    mem_free(j->study_value);
    mem_free(j->series_value);
    mem_free(j);
    return rc;
}

int study_instance_row(struct studies *ss, const char *study, const char *series,
                       const char *instance, struct object_rows **ret_rows)
{
    struct object_query q = {.level = OBJECT_INSTANCE,
                             .study_uid = study,
                             .series_uid = series,
                             .instance_uid = instance,
                             .limit = 1};
    struct object_rows *rows;
    int rc = study_query(&ss->face, &q, &rows);

    if (rc < 0)
        return rc;
    if (rows->count == 0) {
        mem_free(rows);
        return ERR_NOENT;
    }
    *ret_rows = rows;
    return 0;
}

/* An object store in memory; see mem_object.h. */
#include "tests/unit/dimse/mem_object.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "lib/dicom/dcm.h"
#include "lib/rt/env.h"

#define MEM_TAG_SYNTAX     0x00083002u
#define MEM_TAG_MODALITY   0x00080060u
#define MEM_TAG_MODALITIES 0x00080061u
#define MEM_TAG_CLASS      0x00080016u
#define MEM_TAG_INSTANCE   0x00080018u
#define MEM_TAG_STUDY      0x0020000du
#define MEM_TAG_SERIES     0x0020000eu

struct mem_instance {
    struct strbuf bytes;
    struct dcm_head head;
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1];
    char instance[OBJECT_UID_MAX + 1], sop_class[OBJECT_UID_MAX + 1];
    struct object_attr *attrs[3]; /* by level */
    size_t attr_count[3];
    uint64_t stored_ns;
    unsigned refs;
};

struct mem_store {
    struct object_store os;
    struct env *env;
    struct mem_object_faults faults;
    struct mem_instance **all;
    size_t count, cap;
};

struct mem_put {
    struct object_put put;
    struct mem_store *store;
    struct mem_instance *in;
    char *expect_class, *expect_instance, *expect_study;
    int rc; /* of the parse */
};

struct mem_handle {
    struct object object;
    struct mem_instance *in;
    struct object_rows *rows;
};

static void mem_instance_unref(struct mem_instance *in)
{
    if (!in || --in->refs > 0)
        return;
    for (int i = 0; i < 3; i++)
        mem_free(in->attrs[i]);
    strbuf_free(&in->bytes);
    mem_free(in);
}

/* ---- Storing ---------------------------------------------------------------------------- */

static void mem_put_free(struct mem_put *p)
{
    mem_instance_unref(p->in);
    mem_free(p->expect_class);
    mem_free(p->expect_instance);
    mem_free(p->expect_study);
    mem_free(p);
}

static int mem_put_begin(struct object_store *os, const struct object_put_info *info,
                         struct object_put **ret_put)
{
    struct mem_store *ms = (struct mem_store *)os;
    struct mem_put *p;

    if (ms->faults.begin)
        return ms->faults.begin;
    p = mem_zalloc(sizeof(*p));
    p->put.ops = os->ops;
    p->store = ms;
    p->in = mem_zalloc(sizeof(*p->in));
    p->in->refs = 1;
    p->expect_class = info->expect_sop_class ? mem_strdup(info->expect_sop_class) : NULL;
    p->expect_instance = info->expect_sop_instance ? mem_strdup(info->expect_sop_instance) : NULL;
    p->expect_study = info->expect_study ? mem_strdup(info->expect_study) : NULL;
    *ret_put = &p->put;
    return 0;
}

static int mem_put_append(struct object_put *put, const void *data, size_t len)
{
    struct mem_put *p = (struct mem_put *)put;

    if (p->store->faults.append)
        return p->store->faults.append;
    strbuf_add(&p->in->bytes, data, len);
    return p->in->bytes.overflow ? ERR_TOOBIG : 0;
}

static int mem_uid_get(const struct dcm_header *h, uint32_t tag, char out[OBJECT_UID_MAX + 1])
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    char vr[3];

    if (!dcm_header_get(h, tag, &text, vr) || text.len == 0)
        return ERR_DICOM_NO_UID;
    if (!dcm_uid_valid(text.data))
        return ERR_DICOM_UID;
    snprintf(out, OBJECT_UID_MAX + 1, "%s", text.data);
    return 0;
}

static int mem_describe(struct mem_instance *in)
{
    struct dcm_header *h;
    int rc = dcm_head_parse(in->bytes.data, in->bytes.len, &in->head);

    if (rc < 0)
        return ERR_DICOM;
    rc = dcm_header_parse(in->bytes.data + in->head.dataset_off,
                          in->bytes.len - in->head.dataset_off, in->head.transfer_syntax, &h);
    if (rc < 0)
        return rc;
    if ((rc = mem_uid_get(h, MEM_TAG_STUDY, in->study)) == 0 &&
        (rc = mem_uid_get(h, MEM_TAG_SERIES, in->series)) == 0 &&
        (rc = mem_uid_get(h, MEM_TAG_INSTANCE, in->instance)) == 0 &&
        (rc = mem_uid_get(h, MEM_TAG_CLASS, in->sop_class)) == 0) {
        for (int i = 0; i < 3 && rc == 0; i++)
            rc = dcm_header_catalog(h, (enum object_level)i, &in->attrs[i], &in->attr_count[i]);
    }
    dcm_header_free(h);
    return rc;
}

static void mem_parse(void *arg)
{
    struct mem_put *p = arg;

    strbuf_room(&p->in->bytes, 0);
    p->rc = mem_describe(p->in);
    if (p->rc == 0 && ((p->expect_class && strcmp(p->expect_class, p->in->sop_class) != 0) ||
                       (p->expect_instance && strcmp(p->expect_instance, p->in->instance) != 0) ||
                       (p->expect_study && strcmp(p->expect_study, p->in->study) != 0)))
        p->rc = ERR_DICOM_MISMATCH;
}

static struct mem_instance *mem_find(struct mem_store *ms, const char *uid)
{
    for (size_t i = 0; i < ms->count; i++) {
        if (strcmp(ms->all[i]->instance, uid) == 0)
            return ms->all[i];
    }
    return NULL;
}

static bool mem_same_data(const struct mem_instance *a, const struct mem_instance *b)
{
    size_t n = a->bytes.len - a->head.dataset_off;

    return n == b->bytes.len - b->head.dataset_off &&
           strcmp(a->head.transfer_syntax, b->head.transfer_syntax) == 0 &&
           memcmp(a->bytes.data + a->head.dataset_off, b->bytes.data + b->head.dataset_off, n) == 0;
}

static int mem_insert(struct mem_put *p, struct object_put_result *ret_result)
{
    struct mem_store *ms = p->store;
    const struct mem_instance *old = mem_find(ms, p->in->instance);
    struct object_put_result r = {.outcome = old ? OBJECT_IDENTICAL : OBJECT_STORED};

    if (old && !mem_same_data(old, p->in))
        return ERR_CONFLICT;
    memcpy(r.study_uid, p->in->study, sizeof(r.study_uid));
    memcpy(r.series_uid, p->in->series, sizeof(r.series_uid));
    memcpy(r.instance_uid, p->in->instance, sizeof(r.instance_uid));
    memcpy(r.sop_class_uid, p->in->sop_class, sizeof(r.sop_class_uid));
    if (!old) {
        if (ms->count == ms->cap) {
            ms->cap = ms->cap ? 2 * ms->cap : 64;
            ms->all = mem_realloc(ms->all, ms->cap * sizeof(ms->all[0]));
        }
        p->in->stored_ns = ms->env ? env_wallclock(ms->env) : ms->count;
        p->in->refs++;
        ms->all[ms->count++] = p->in;
    }
    *ret_result = r;
    return 0;
}

static int mem_put_commit(struct object_put *put, struct object_put_result *ret_result)
{
    struct mem_put *p = (struct mem_put *)put;
    int rc = p->store->faults.commit;

    if (rc == 0) {
        if (p->store->env)
            env_offload(p->store->env, ENV_LANE_CPU, mem_parse, p);
        else
            mem_parse(p);
        rc = p->rc;
    }
    if (rc == 0)
        rc = mem_insert(p, ret_result);
    mem_put_free(p);
    return rc;
}

static void mem_put_abort(struct object_put *put)
{
    mem_put_free((struct mem_put *)put);
}

/* ---- Rows ------------------------------------------------------------------------------- */

/* Rows under construction: value pointers are offsets in `text` until mem_rows_finish. */
struct mem_rows {
    struct strbuf text, attrs, rows;
};

static const char *mem_rows_text(struct mem_rows *b, const char *s, size_t n)
{
    size_t off = b->text.len;

    strbuf_add(&b->text, s, n);
    strbuf_addc(&b->text, 0);
    return (const char *)off;
}

static void mem_rows_attr(struct mem_rows *b, struct object_row *row, uint32_t tag, const char *vr,
                          const char *value, size_t len)
{
    struct object_attr a = {.tag = tag, .len = (uint32_t)len};

    memcpy(a.vr, vr, 3);
    a.value = mem_rows_text(b, value, len);
    strbuf_add(&b->attrs, &a, sizeof(a));
    row->attr_count++;
}

static int mem_attr_compare(const void *pa, const void *pb)
{
    const struct object_attr *a = pa, *b = pb;

    return a->tag < b->tag ? -1 : a->tag > b->tag;
}

static bool mem_in_scope(const struct mem_instance *in, const struct mem_instance *first,
                         enum object_level level)
{
    return strcmp(in->study, first->study) == 0 &&
           (level == OBJECT_STUDY || strcmp(in->series, first->series) == 0) &&
           (level != OBJECT_INSTANCE || in == first);
}

/* The value of an attribute of an instance; NULL when it has none. */
static const struct object_attr *mem_attr(const struct mem_instance *in, uint32_t tag)
{
    for (int l = 0; l < 3; l++) {
        for (size_t i = 0; i < in->attr_count[l]; i++) {
            if (in->attrs[l][i].tag == tag)
                return &in->attrs[l][i];
        }
    }
    return NULL;
}

static bool mem_list_has(const char *list, const char *item)
{
    size_t n = strlen(item);

    for (const char *at = list; at && *at; at = strchr(at, '\\') ? strchr(at, '\\') + 1 : NULL) {
        if (strncmp(at, item, n) == 0 && (at[n] == 0 || at[n] == '\\'))
            return true;
    }
    return false;
}

static void mem_rows_number(struct mem_rows *b, struct object_row *row, uint32_t tag, size_t n)
{
    char text[24];

    snprintf(text, sizeof(text), "%zu", n);
    mem_rows_attr(b, row, tag, "IS", text, strlen(text));
}

/* What is computed over the instances of the row. */
static void mem_rows_computed(const struct mem_store *ms, struct mem_rows *b,
                              struct object_row *row, const struct mem_instance *first)
{
    size_t in_study = 0, in_series = 0, series = 0;
    STRBUF_AUTO struct strbuf modalities = STRBUF_INIT;

    strbuf_room(&modalities, 0);
    for (size_t i = 0; i < ms->count; i++) {
        const struct mem_instance *in = ms->all[i];
        const struct object_attr *m = mem_attr(in, MEM_TAG_MODALITY);
        bool seen = false;

        if (mem_in_scope(in, first, row->level)) {
            row->bytes += in->bytes.len;
            row->stored_ns = in->stored_ns > row->stored_ns ? in->stored_ns : row->stored_ns;
        }
        if (strcmp(in->study, first->study) != 0)
            continue;
        in_study++;
        in_series += strcmp(in->series, first->series) == 0;
        for (size_t j = 0; j < i && !seen; j++)
            seen = strcmp(ms->all[j]->series, in->series) == 0;
        series += !seen;
        if (m && m->len && !mem_list_has(modalities.data, m->value))
            strbuf_addf(&modalities, "%s%s", modalities.len ? "\\" : "", m->value);
    }
    mem_rows_attr(b, row, MEM_TAG_MODALITIES, "CS", modalities.data, modalities.len);
    mem_rows_number(b, row, 0x00201206, series);
    mem_rows_number(b, row, 0x00201208, in_study);
    if (row->level != OBJECT_STUDY)
        mem_rows_number(b, row, 0x00201209, in_series);
    if (row->level == OBJECT_INSTANCE)
        mem_rows_attr(b, row, MEM_TAG_SYNTAX, "UI", first->head.transfer_syntax,
                      strlen(first->head.transfer_syntax));
}

static void mem_rows_add(const struct mem_store *ms, struct mem_rows *b, enum object_level level,
                         const struct mem_instance *in)
{
    struct object_row row = {.level = level};
    size_t first_attr = b->attrs.len;
    const char *series = level >= OBJECT_SERIES ? in->series : "";
    const char *instance = level == OBJECT_INSTANCE ? in->instance : "";
    const char *sop_class = level == OBJECT_INSTANCE ? in->sop_class : "";
    const char *syntax = level == OBJECT_INSTANCE ? in->head.transfer_syntax : "";

    row.study_uid = mem_rows_text(b, in->study, strlen(in->study));
    row.series_uid = mem_rows_text(b, series, strlen(series));
    row.instance_uid = mem_rows_text(b, instance, strlen(instance));
    row.sop_class_uid = mem_rows_text(b, sop_class, strlen(sop_class));
    row.transfer_syntax_uid = mem_rows_text(b, syntax, strlen(syntax));
    row.dataset_off = level == OBJECT_INSTANCE ? in->head.dataset_off : 0;
    for (unsigned l = 0; l <= (unsigned)level; l++) {
        for (size_t i = 0; i < in->attr_count[l]; i++) {
            const struct object_attr *a = &in->attrs[l][i];

            mem_rows_attr(b, &row, a->tag, a->vr, a->value, a->len);
        }
    }
    mem_rows_computed(ms, b, &row, in);
    qsort(b->attrs.data + first_attr, row.attr_count, sizeof(struct object_attr), mem_attr_compare);
    row.attrs = (const struct object_attr *)first_attr;
    strbuf_add(&b->rows, &row, sizeof(row));
}

static struct object_rows *mem_rows_finish(struct mem_rows *b, bool more)
{
    size_t head = sizeof(struct object_rows) + b->rows.len;
    struct object_rows *out = mem_alloc(head + b->attrs.len + b->text.len + 1);
    char *attrs = (char *)out + head, *text = attrs + b->attrs.len;

    out->count = b->rows.len / sizeof(struct object_row);
    out->more = more;
    memcpy(out->rows, b->rows.data ? b->rows.data : "", b->rows.len);
    memcpy(attrs, b->attrs.data ? b->attrs.data : "", b->attrs.len);
    memcpy(text, b->text.data ? b->text.data : "", b->text.len);
    for (size_t i = 0; i < out->count; i++) {
        struct object_row *r = &out->rows[i];
        struct object_attr *a = (struct object_attr *)(void *)(attrs + (size_t)r->attrs);

        r->attrs = a;
        for (size_t j = 0; j < r->attr_count; j++)
            a[j].value = text + (size_t)a[j].value;
        r->study_uid = text + (size_t)r->study_uid;
        r->series_uid = text + (size_t)r->series_uid;
        r->instance_uid = text + (size_t)r->instance_uid;
        r->sop_class_uid = text + (size_t)r->sop_class_uid;
        r->transfer_syntax_uid = text + (size_t)r->transfer_syntax_uid;
    }
    strbuf_free(&b->text);
    strbuf_free(&b->attrs);
    strbuf_free(&b->rows);
    return out;
}

/* ---- Query ------------------------------------------------------------------------------ */

static bool mem_match_one(const struct object_match *m, const char *vr, const char *value)
{
    const char *dash;
    char low[64], high[64];

    switch (m->kind) {
    case OBJECT_MATCH_EXACT:
        return strcmp(vr, "PN") == 0 ? strcasecmp(m->value, value) == 0
                                     : strcmp(m->value, value) == 0;
    case OBJECT_MATCH_WILDCARD:
        return fnmatch(m->value, value, strcmp(vr, "PN") == 0 ? FNM_CASEFOLD : 0) == 0;
    case OBJECT_MATCH_LIST:
        return mem_list_has(m->value, value);
    default:
        dash = strchr(m->value, '-');
        if (!dash)
            return strcmp(m->value, value) == 0;
        snprintf(low, sizeof(low), "%.*s", (int)(dash - m->value), m->value);
        snprintf(high, sizeof(high), "%s", dash + 1);
        return strcmp(value, low) >= 0 && (!high[0] || strncmp(value, high, strlen(high)) <= 0);
    }
}

static bool mem_match_values(const struct object_match *m, const char *vr, const char *values,
                             size_t len)
{
    STRBUF_AUTO struct strbuf copy = STRBUF_INIT;
    char *at;

    strbuf_add(&copy, values, len);
    for (at = copy.data; at;) {
        char *sep = strchr(at, '\\');

        if (sep)
            *sep = 0;
        if (mem_match_one(m, vr, at))
            return true;
        at = sep ? sep + 1 : NULL;
    }
    return false;
}

static bool mem_matches(const struct mem_store *ms, const struct mem_instance *in,
                        const struct object_query *q)
{
    if ((q->study_uid && strcmp(q->study_uid, in->study) != 0) ||
        (q->series_uid && strcmp(q->series_uid, in->series) != 0) ||
        (q->instance_uid && strcmp(q->instance_uid, in->instance) != 0))
        return false;
    for (size_t i = 0; i < q->match_count; i++) {
        const struct object_match *m = &q->matches[i];
        bool any = false;

        if (m->tag == MEM_TAG_MODALITIES) {
            for (size_t j = 0; j < ms->count && !any; j++) {
                const struct object_attr *a = mem_attr(ms->all[j], MEM_TAG_MODALITY);

                any = strcmp(ms->all[j]->study, in->study) == 0 && a &&
                      mem_match_values(m, a->vr, a->value, a->len);
            }
        } else {
            const struct object_attr *a = mem_attr(in, m->tag);

            any = a && mem_match_values(m, a->vr, a->value, a->len);
        }
        if (!any)
            return false;
    }
    return true;
}

/* Is the instance the first that matches of its row? Rows come in that order. */
static bool mem_is_first(const struct mem_store *ms, const struct object_query *q, size_t at)
{
    for (size_t i = 0; i < at; i++) {
        if (mem_in_scope(ms->all[i], ms->all[at], q->level) && mem_matches(ms, ms->all[i], q))
            return false;
    }
    return true;
}

static int mem_query(struct object_store *os, const struct object_query *q,
                     struct object_rows **ret_rows)
{
    const struct mem_store *ms = (const struct mem_store *)os;
    struct mem_rows b = {0};
    uint64_t limit = q->limit ? q->limit : 10000, seen = 0;
    bool more = false;

    for (size_t i = 0; i < ms->count && !more; i++) {
        if (!mem_matches(ms, ms->all[i], q) || !mem_is_first(ms, q, i))
            continue;
        if (seen >= q->offset + limit)
            more = true;
        else if (seen++ >= q->offset)
            mem_rows_add(ms, &b, q->level, ms->all[i]);
    }
    *ret_rows = mem_rows_finish(&b, more);
    return 0;
}

/* ---- Reading and deleting --------------------------------------------------------------- */

static int mem_open(struct object_store *os, const char *study_uid, const char *series_uid,
                    const char *instance_uid, struct object **ret_object)
{
    struct mem_store *ms = (struct mem_store *)os;
    struct mem_instance *in = mem_find(ms, instance_uid);
    struct mem_rows b = {0};
    struct mem_handle *h;

    if (!in || (study_uid && strcmp(study_uid, in->study) != 0) ||
        (series_uid && strcmp(series_uid, in->series) != 0))
        return ERR_NOENT;
    h = mem_zalloc(sizeof(*h));
    h->object.ops = os->ops;
    h->in = in;
    in->refs++;
    mem_rows_add(ms, &b, OBJECT_INSTANCE, in);
    h->rows = mem_rows_finish(&b, false);
    *ret_object = &h->object;
    return 0;
}

static int mem_read(struct object *o, uint64_t off, void *buf, size_t len, size_t *ret_len)
{
    const struct strbuf *bytes = &((struct mem_handle *)o)->in->bytes;
    size_t n = off < bytes->len ? bytes->len - (size_t)off : 0;

    if (n > len)
        n = len;
    if (n)
        memcpy(buf, bytes->data + off, n);
    *ret_len = n;
    return 0;
}

static const struct object_row *mem_row(struct object *o)
{
    return &((struct mem_handle *)o)->rows->rows[0];
}

static void mem_close(struct object *o)
{
    struct mem_handle *h = (struct mem_handle *)o;

    mem_instance_unref(h->in);
    mem_free(h->rows);
    mem_free(h);
}

static int mem_remove(struct object_store *os, const char *study_uid, const char *series_uid,
                      const char *instance_uid, struct object_delete_result *ret_result)
{
    struct mem_store *ms = (struct mem_store *)os;
    struct object_delete_result r = {0};
    size_t kept = 0;

    for (size_t i = 0; i < ms->count; i++) {
        struct mem_instance *in = ms->all[i];

        if (strcmp(in->study, study_uid) == 0 &&
            (!series_uid || strcmp(in->series, series_uid) == 0) &&
            (!instance_uid || strcmp(in->instance, instance_uid) == 0)) {
            r.instances++;
            r.bytes += in->bytes.len;
            mem_instance_unref(in);
        } else {
            ms->all[kept++] = in;
        }
    }
    ms->count = kept;
    if (!r.instances)
        return ERR_NOENT;
    *ret_result = r;
    return 0;
}

static const struct object_ops mem_ops = {
    .put_begin = mem_put_begin,
    .put_append = mem_put_append,
    .put_commit = mem_put_commit,
    .put_abort = mem_put_abort,
    .open = mem_open,
    .read = mem_read,
    .row = mem_row,
    .close = mem_close,
    .query = mem_query,
    .remove = mem_remove,
};

struct object_store *mem_object_new(struct env *env)
{
    struct mem_store *ms = mem_zalloc(sizeof(*ms));

    ms->os.ops = &mem_ops;
    ms->env = env;
    return &ms->os;
}

void mem_object_free(struct object_store *os)
{
    struct mem_store *ms = (struct mem_store *)os;

    for (size_t i = 0; i < ms->count; i++) {
        CHECK(ms->all[i]->refs == 1);
        mem_instance_unref(ms->all[i]);
    }
    mem_free(ms->all);
    mem_free(ms);
}

size_t mem_object_count(const struct object_store *os)
{
    return ((const struct mem_store *)os)->count;
}

void mem_object_set_faults(struct object_store *os, const struct mem_object_faults *faults)
{
    ((struct mem_store *)os)->faults = *faults;
}

const void *mem_object_bytes(const struct object_store *os, size_t i, size_t *ret_len,
                             const char **ret_instance_uid)
{
    const struct mem_store *ms = (const struct mem_store *)os;

    if (i >= ms->count)
        return NULL;
    *ret_len = ms->all[i]->bytes.len;
    *ret_instance_uid = ms->all[i]->instance;
    return ms->all[i]->bytes.data;
}

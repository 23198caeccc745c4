/* QIDO-RS arguments and rows.
 *
 * What cannot be done is refused, not ignored: a match that is dropped gives more rows than were
 * asked for, and what a script does with them (delete, say) is then done to the wrong ones. Only
 * where the standard has a Warning for it (fuzzy matching, section 8.3.4.2) does the search go on
 * without.
 */
#include "proto/dicomweb/qido.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"

#define VALUE_MAX 4096 /* bytes of a match value */

#define TAG_CHARSET      0x00080005u
#define TAG_AVAILABILITY 0x00080056u
#define TAG_MODALITY     0x00080060u
#define TAG_MODALITIES   0x00080061u
#define TAG_RETRIEVE_URL 0x00081190u
#define TAG_SYNTAX       0x00083002u
#define TAG_STUDY_UID    0x0020000du
#define TAG_SERIES_UID   0x0020000eu
#define TAG_INSTANCE_UID 0x00080018u
#define TAG_CLASS_UID    0x00080016u

/* What a row of a level answers without being asked (PS3.18 tables 10.6.3-3 to 10.6.3-5). `always`:
 * with an empty value where the instance has none. */
static const struct required {
    enum object_level level;
    bool always;
    uint32_t tag;
    char vr[3];
} required[] = {
    {OBJECT_STUDY, false, 0x00080005, "CS"},     {OBJECT_STUDY, true, 0x00080020, "DA"},
    {OBJECT_STUDY, true, 0x00080030, "TM"},      {OBJECT_STUDY, true, 0x00080050, "SH"},
    {OBJECT_STUDY, false, TAG_MODALITIES, "CS"}, {OBJECT_STUDY, true, 0x00080090, "PN"},
    {OBJECT_STUDY, false, 0x00080201, "SH"},     {OBJECT_STUDY, false, 0x00081030, "LO"},
    {OBJECT_STUDY, true, 0x00100010, "PN"},      {OBJECT_STUDY, true, 0x00100020, "LO"},
    {OBJECT_STUDY, true, 0x00100030, "DA"},      {OBJECT_STUDY, true, 0x00100040, "CS"},
    {OBJECT_STUDY, true, 0x00200010, "SH"},      {OBJECT_STUDY, false, 0x00201206, "IS"},
    {OBJECT_STUDY, false, 0x00201208, "IS"},     {OBJECT_SERIES, false, 0x00080005, "CS"},
    {OBJECT_SERIES, true, TAG_MODALITY, "CS"},   {OBJECT_SERIES, false, 0x00080201, "SH"},
    {OBJECT_SERIES, false, 0x0008103e, "LO"},    {OBJECT_SERIES, true, 0x00200011, "IS"},
    {OBJECT_SERIES, false, 0x00201209, "IS"},    {OBJECT_SERIES, false, 0x00400244, "DA"},
    {OBJECT_SERIES, false, 0x00400245, "TM"},    {OBJECT_SERIES, false, 0x00400275, "SQ"},
    {OBJECT_INSTANCE, false, 0x00080005, "CS"},  {OBJECT_INSTANCE, false, 0x00080201, "SH"},
    {OBJECT_INSTANCE, true, 0x00200013, "IS"},   {OBJECT_INSTANCE, false, 0x00280008, "IS"},
    {OBJECT_INSTANCE, false, 0x00280010, "US"},  {OBJECT_INSTANCE, false, 0x00280011, "US"},
    {OBJECT_INSTANCE, false, 0x00280100, "US"},  {OBJECT_INSTANCE, false, TAG_SYNTAX, "UI"},
};
#define REQUIRED_COUNT (sizeof(required) / sizeof(required[0]))

/* ---- Arguments ------------------------------------------------------------------------------- */

static int refuse(struct qido *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int refuse(struct qido *q, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(q->error, sizeof(q->error), fmt, ap);
    va_end(ap);
    return ERR_INVAL;
}

static int parse_number(struct qido *q, const struct qido_arg *a, uint64_t *ret)
{
    uint64_t v = 0;

    if (!a->value[0] || strlen(a->value) > 15)
        return refuse(q, "%s must be a number.", a->name);
    for (const char *p = a->value; *p; p++) {
        if (*p < '0' || *p > '9')
            return refuse(q, "%s must be a number.", a->name);
        v = v * 10 + (uint64_t)(*p - '0');
    }
    *ret = v;
    return 0;
}

static int parse_bool(struct qido *q, const struct qido_arg *a, const char *warning)
{
    if (strcmp(a->value, "true") == 0)
        q->warning = warning;
    else if (strcmp(a->value, "false") != 0)
        return refuse(q, "%s must be true or false.", a->name);
    return 0;
}

static bool vr_in(const char vr[3], const char *list)
{
    for (; *list; list += 2)
        if (vr[0] == list[0] && vr[1] == list[1])
            return true;
    return false;
}

static bool in_catalog(enum object_level level, uint32_t tag)
{
    static const uint32_t computed[] = {TAG_MODALITIES, 0x00201206, 0x00201208};

    if (tag == TAG_STUDY_UID || (level >= OBJECT_SERIES && tag == TAG_SERIES_UID) ||
        (level == OBJECT_INSTANCE && (tag == TAG_INSTANCE_UID || tag == TAG_CLASS_UID)))
        return true;
    for (size_t i = 0; i < sizeof(computed) / sizeof(computed[0]); i++)
        if (computed[i] == tag)
            return true;
    if ((level == OBJECT_INSTANCE && tag == TAG_SYNTAX) ||
        (level >= OBJECT_SERIES && tag == 0x00201209))
        return true;
    for (int l = OBJECT_STUDY; l <= (int)level; l++)
        for (const uint32_t *t = dcm_catalog_tags((enum object_level)l); *t; t++)
            if (*t == tag)
                return true;
    return false;
}

static int lookup(struct qido *q, const char *name, size_t n, uint32_t *ret_tag, char vr[3])
{
    char key[80];

    if (n == 0 || n >= sizeof(key))
        return refuse(q, "An attribute name is empty or too long.");
    memcpy(key, name, n);
    key[n] = 0;
    if (memchr(key, '.', n))
        return refuse(q, "Attributes inside sequences cannot be searched or included: %s.", key);
    if (!dcm_tag_lookup(key, ret_tag, vr))
        return refuse(q, "There is no attribute %s: use a keyword or 8 hexadecimal digits.", key);
    return 0;
}

static int add_include(struct qido *q, uint32_t tag)
{
    for (size_t i = 0; i < q->include_count; i++)
        if (q->includes[i] == tag)
            return 0;
    if (q->include_count == QIDO_INCLUDES_MAX)
        return refuse(q, "More than %d attributes are asked for.", QIDO_INCLUDES_MAX);
    q->includes[q->include_count++] = tag;
    return 0;
}

/* "all", or attributes joined by commas. */
static int parse_include(struct qido *q, const char *value)
{
    for (;;) {
        size_t n = strcspn(value, ",");
        uint32_t tag;
        char vr[3];
        int r;

        if (n == 3 && memcmp(value, "all", 3) == 0) {
            q->include_all = true;
        } else if (n > 0) {
            r = lookup(q, value, n, &tag, vr);
            if (r == 0)
                r = add_include(q, tag);
            if (r < 0)
                return r;
        }
        if (!value[n])
            return 0;
        value += n + 1;
    }
}

/* ---- Matches --------------------------------------------------------------------------------- */

static size_t digits(const char *s)
{
    return strspn(s, "0123456789");
}

/* One end of a range, or the whole value: DA is 8 digits; TM is 2, 4 or 6 digits with a fraction
 * after 6; DT is a DA and a TM, cut anywhere, with an offset from UTC (PS3.5 section 6.2). */
static bool moment_ok(const char *vr, const char *s, size_t n)
{
    size_t d = digits(s), zone = 0;

    if (n > 5 && (s[n - 5] == '+' || s[n - 5] == '-') && vr[0] == 'D' && vr[1] == 'T' &&
        digits(s + n - 4) >= 4)
        zone = 5;
    if (d > n - zone)
        d = n - zone;
    if (vr[1] == 'A')
        return d == 8 && n == 8;
    if (d < n - zone) {
        size_t f;

        if (s[d] != '.' || d != (vr[0] == 'T' ? 6u : 14u))
            return false;
        f = digits(s + d + 1);
        if (f > n - zone - d - 1)
            f = n - zone - d - 1;
        return f >= 1 && f <= 6 && d + 1 + f == n - zone;
    }
    return vr[0] == 'T' ? (d == 2 || d == 4 || d == 6)
                        : (d == 4 || d == 6 || d == 8 || d == 10 || d == 12 || d == 14);
}

/* Where a range's '-' stands, or NULL. In DT a '-' may also open an offset: the range's is the one
 * with a moment (or nothing) on both sides. */
static const char *range_dash(const char *vr, const char *s)
{
    for (const char *dash = strchr(s, '-'); dash; dash = strchr(dash + 1, '-')) {
        size_t left = (size_t)(dash - s), right = strlen(dash + 1);

        if ((left == 0 || moment_ok(vr, s, left)) &&
            (right == 0 || moment_ok(vr, dash + 1, right)) && left + right > 0)
            return dash;
    }
    return NULL;
}

static int moment_match(struct qido *q, const char *name, const char *vr, struct object_match *m)
{
    const char *dash = range_dash(vr, m->value);
    bool single = moment_ok(vr, m->value, strlen(m->value));

    /* "20200101-0500" is a moment with an offset, not a range of a day and a year. */
    if (single)
        m->kind = OBJECT_MATCH_EXACT;
    else if (dash)
        m->kind = OBJECT_MATCH_RANGE;
    else
        return refuse(q, "%s must be a date or time, or a range of them.", name);
    return 0;
}

/* UIDs joined by ',' or '\'; left joined by '\'. */
static int uid_match(struct qido *q, const char *name, char *value, struct object_match *m)
{
    bool list = false;
    char one[OBJECT_UID_MAX + 1];

    for (const char *p = value;;) {
        size_t n = strcspn(p, ",\\");

        if (n == 0 || n > OBJECT_UID_MAX)
            return refuse(q, "%s must be a UID or a list of UIDs.", name);
        memcpy(one, p, n);
        one[n] = 0;
        if (!dcm_uid_valid(one))
            return refuse(q, "%s must be a UID or a list of UIDs.", name);
        if (!p[n])
            break;
        value[p + n - value] = '\\';
        list = true;
        p += n + 1;
    }
    m->kind = list ? OBJECT_MATCH_LIST : OBJECT_MATCH_EXACT;
    return 0;
}

/* Modalities joined by ',' or '\': any of them. Viewers send it so. */
static void modality_match(char *value, struct object_match *m)
{
    m->kind = OBJECT_MATCH_EXACT;
    for (char *p = value; *p; p++)
        if (*p == ',' || *p == '\\') {
            *p = '\\';
            m->kind = OBJECT_MATCH_LIST;
        }
}

static bool utf8_ok(const char *s)
{
    const unsigned char *p = (const unsigned char *)s;

    while (*p) {
        int more = *p < 0x80 ? 0 : *p >= 0xc2 && *p < 0xe0 ? 1 : (*p & 0xf0) == 0xe0 ? 2 : 3;

        if (*p >= 0xf5 || (*p >= 0x80 && *p < 0xc2) || *p < 0x20)
            return false;
        if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] >= 0xa0) ||
            (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] >= 0x90))
            return false;
        p++;
        while (more-- > 0)
            if ((*p++ & 0xc0) != 0x80)
                return false;
    }
    return true;
}

static int fill_match(struct qido *q, const char *name, const char vr[3], char *value,
                      struct object_match *m)
{
    if (vr_in(vr, "UI"))
        return uid_match(q, name, value, m);
    if (vr_in(vr, "DATMDT"))
        return moment_match(q, name, vr, m);
    if (m->tag == TAG_MODALITIES || m->tag == TAG_MODALITY)
        modality_match(value, m);
    else
        m->kind = OBJECT_MATCH_EXACT;
    if (m->kind == OBJECT_MATCH_EXACT && vr_in(vr, "AECSLOLTPNSHSTUCURUT") && strpbrk(value, "*?"))
        m->kind = OBJECT_MATCH_WILDCARD;
    return 0;
}

static int parse_match(struct qido *q, const struct qido_arg *a)
{
    struct object_match *m = &q->matches[q->match_count];
    uint32_t tag;
    char vr[3], *value;
    int r = lookup(q, a->name, strlen(a->name), &tag, vr);

    if (r == 0 && (vr_in(vr, "SQOBOWODOFOLOVUN") || !in_catalog(q->level, tag)))
        return refuse(q, "This search cannot match on %.60s.", a->name);
    if (r == 0)
        r = add_include(q, tag);
    if (r < 0)
        return r;
    /* An empty value, and "*" alone, match all and ask for the attribute (PS3.4 C.2.2.2.3). */
    if (strspn(a->value, "*") == strlen(a->value))
        return 0;
    if (strlen(a->value) > VALUE_MAX || !utf8_ok(a->value))
        return refuse(q, "The value of %.60s is too long or not UTF-8 text.", a->name);
    if (q->match_count == QIDO_MATCHES_MAX)
        return refuse(q, "More than %d attributes are matched on.", QIDO_MATCHES_MAX);
    value = mem_strdup(a->value);
    *m = (struct object_match){.tag = tag, .value = value};
    q->match_count++;
    return fill_match(q, a->name, vr, value, m);
}

static int parse_arg(struct qido *q, const struct qido_arg *a)
{
    int r;

    if (strcmp(a->name, "limit") == 0) {
        r = parse_number(q, a, &q->limit);
        q->limited = true;
        return r;
    }
    if (strcmp(a->name, "offset") == 0)
        return parse_number(q, a, &q->offset);
    if (strcmp(a->name, "includefield") == 0)
        return parse_include(q, a->value);
    if (strcmp(a->name, "fuzzymatching") == 0)
        return parse_bool(q, a,
                          "299 filmroom \"The fuzzymatching parameter is not supported. Only "
                          "literal matching has been performed.\"");
    if (strcmp(a->name, "emptyvaluematching") == 0 || strcmp(a->name, "multiplevaluematching") == 0)
        return parse_bool(q, a, "299 filmroom \"A matching parameter is not supported.\"");
    return parse_match(q, a);
}

int qido_parse(enum object_level level, bool study, bool series, const struct qido_arg *args,
               size_t count, const char *skip, struct qido *ret_qido)
{
    struct qido *q = ret_qido;

    memset(q, 0, sizeof(*q));
    q->level = level;
    q->all_studies = !study;
    q->all_series = !series;
    for (size_t i = 0; i < count; i++) {
        int r;

        if (skip && strcmp(args[i].name, skip) == 0)
            continue;
        r = parse_arg(q, &args[i]);
        if (r < 0)
            return r;
    }
    if (!q->limited || q->limit > QIDO_LIMIT_MAX) {
        q->limit = QIDO_LIMIT_MAX;
        q->limited = false;
    }
    return 0;
}

void qido_free(struct qido *q)
{
    for (size_t i = 0; i < q->match_count; i++)
        mem_free((void *)(uintptr_t)q->matches[i].value);
    q->match_count = 0;
}

/* The one value that the attribute must have; NULL: there may be others. */
static const char *only_value(const struct qido *q, uint32_t tag)
{
    for (size_t i = 0; i < q->match_count; i++)
        if (q->matches[i].tag == tag && q->matches[i].kind == OBJECT_MATCH_EXACT)
            return q->matches[i].value;
    return NULL;
}

void qido_restrict(const struct qido *q, struct object_query *query)
{
    if (!query->study_uid)
        query->study_uid = only_value(q, TAG_STUDY_UID);
    if (!query->series_uid && q->level >= OBJECT_SERIES)
        query->series_uid = only_value(q, TAG_SERIES_UID);
    if (!query->instance_uid && q->level == OBJECT_INSTANCE)
        query->instance_uid = only_value(q, TAG_INSTANCE_UID);
}

/* ---- Rows ------------------------------------------------------------------------------------ */

static void add_uid(struct strbuf *out, const char *kind, const char *uid)
{
    strbuf_addf(out, "/%s/", kind);
    for (; *uid; uid++)
        if ((*uid >= '0' && *uid <= '9') || *uid == '.')
            strbuf_addc(out, *uid);
        else /* stored before it was checked: keep the URL a URL */
            strbuf_addf(out, "%%%02X", (unsigned char)*uid);
}

void qido_url(struct strbuf *out, const char *base, const char *study, const char *series,
              const char *instance)
{
    strbuf_adds(out, base);
    add_uid(out, "studies", study);
    if (series[0])
        add_uid(out, "series", series);
    if (instance[0])
        add_uid(out, "instances", instance);
}

/* Does a row of this query show the attribute: by the tables, by includefield, by having been
 * matched? */
static bool wanted(const struct qido *q, uint32_t tag)
{
    if (q->include_all)
        return true;
    for (size_t i = 0; i < q->include_count; i++)
        if (q->includes[i] == tag)
            return true;
    for (size_t i = 0; i < REQUIRED_COUNT; i++) {
        bool shown =
            required[i].level == q->level ||
            (required[i].level == OBJECT_STUDY && q->all_studies) ||
            (required[i].level == OBJECT_SERIES && q->all_series && q->level == OBJECT_INSTANCE);

        if (shown && required[i].tag == tag)
            return true;
    }
    return false;
}

/* What is answered beside the row's own attributes. */
struct extra {
    struct object_attr attr;
    bool used;
};

#define EXTRAS_MAX (REQUIRED_COUNT + 8)

static void add_extra(struct extra *extras, size_t *count, uint32_t tag, const char *vr,
                      const char *value)
{
    struct object_attr *a = &extras[*count].attr;

    *a = (struct object_attr){.tag = tag, .len = (uint32_t)strlen(value), .value = value};
    memcpy(a->vr, vr, 2);
    (*count)++;
}

static size_t make_extras(const struct qido *q, const struct object_row *row, const char *url,
                          struct extra *extras)
{
    size_t n = 0;

    add_extra(extras, &n, TAG_AVAILABILITY, "CS", "ONLINE");
    add_extra(extras, &n, TAG_RETRIEVE_URL, "UR", url);
    add_extra(extras, &n, TAG_STUDY_UID, "UI", row->study_uid);
    if (q->level >= OBJECT_SERIES)
        add_extra(extras, &n, TAG_SERIES_UID, "UI", row->series_uid);
    if (q->level == OBJECT_INSTANCE) {
        add_extra(extras, &n, TAG_CLASS_UID, "UI", row->sop_class_uid);
        add_extra(extras, &n, TAG_INSTANCE_UID, "UI", row->instance_uid);
        if (row->transfer_syntax_uid[0])
            add_extra(extras, &n, TAG_SYNTAX, "UI", row->transfer_syntax_uid);
    }
    for (size_t i = 0; i < REQUIRED_COUNT; i++)
        if (required[i].always && required[i].level <= q->level && wanted(q, required[i].tag))
            add_extra(extras, &n, required[i].tag, required[i].vr, "");
    return n;
}

/* The extra with the lowest tag below `limit` that was not used. */
static struct extra *next_extra(struct extra *extras, size_t count, uint64_t limit)
{
    struct extra *best = NULL;

    for (size_t i = 0; i < count; i++)
        if (!extras[i].used && extras[i].attr.tag < limit &&
            (!best || extras[i].attr.tag < best->attr.tag))
            best = &extras[i];
    if (best)
        best->used = true;
    return best;
}

static void drop_extras(struct extra *extras, size_t count, uint32_t tag)
{
    for (size_t i = 0; i < count; i++)
        if (extras[i].attr.tag == tag)
            extras[i].used = true;
}

/* Values are UTF-8, whatever the instance was written in (PS3.18 section F.2.1). */
static const struct object_attr utf8_attr = {
    .tag = TAG_CHARSET, .vr = "CS", .len = 10, .value = "ISO_IR 192"};

static void emit_attr(struct strbuf *out, bool *first, const struct object_attr *a)
{
    if (a->tag == TAG_CHARSET)
        a = &utf8_attr;
    if (!*first)
        strbuf_addc(out, ',');
    *first = false;
    dcm_attr_json(a, out);
}

void qido_row_json(const struct qido *q, const struct object_row *row, const char *base,
                   struct strbuf *out)
{
    STRBUF_AUTO struct strbuf url = STRBUF_INIT;
    struct extra extras[EXTRAS_MAX] = {0}, *e;
    bool first = true;
    size_t count;

    qido_url(&url, base, row->study_uid, q->level >= OBJECT_SERIES ? row->series_uid : "",
             q->level == OBJECT_INSTANCE ? row->instance_uid : "");
    count = make_extras(q, row, url.data, extras);
    strbuf_addc(out, '{');
    for (size_t i = 0; i < row->attr_count; i++) {
        const struct object_attr *a = &row->attrs[i];
        bool mine = false;

        while ((e = next_extra(extras, count, a->tag)) != NULL)
            emit_attr(out, &first, &e->attr);
        for (size_t k = 0; k < count; k++)
            mine |= extras[k].attr.tag == a->tag;
        if (!mine && !wanted(q, a->tag))
            continue;
        emit_attr(out, &first, a);
        drop_extras(extras, count, a->tag);
    }
    while ((e = next_extra(extras, count, UINT64_MAX)) != NULL)
        emit_attr(out, &first, &e->attr);
    strbuf_addc(out, '}');
}

/* The catalogue's rows as bytes; see catalog.h. */
#include "daemon/catalog.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"

#define CATALOG_VERSION   1u
#define CATALOG_VALUE_MAX (64u * 1024)

/* ---- Small parts ---- */

static void put_u32(struct strbuf *out, uint32_t v)
{
    uint8_t b[4];

    codec_put_le32(b, v);
    strbuf_add(out, b, 4);
}

static void put_u64(struct strbuf *out, uint64_t v)
{
    uint8_t b[8];

    codec_put_le64(b, v);
    strbuf_add(out, b, 8);
}

static void put_text(struct strbuf *out, const char *s)
{
    size_t n = strlen(s);

    CHECK(n <= UINT32_MAX);
    put_u32(out, (uint32_t)n);
    strbuf_add(out, s, n);
}

/* A text of at most size - 1 bytes into a fixed array. */
static int get_text(struct codec_reader *r, char *text, size_t size)
{
    uint32_t n = codec_read_le32(r);
    const uint8_t *p = codec_read_bytes(r, n);

    if (!p || n >= size)
        return ERR_FORMAT;
    memcpy(text, p, n);
    text[n] = 0;
    return 0;
}

void catalog_attrs_encode(const struct object_attr *attrs, size_t n, struct strbuf *out)
{
    CHECK(n <= CATALOG_ATTRS_MAX);
    put_u32(out, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        put_u32(out, attrs[i].tag);
        strbuf_add(out, attrs[i].vr, 2);
        put_u32(out, attrs[i].len);
        strbuf_add(out, attrs[i].value, attrs[i].len);
        strbuf_addc(out, 0); /* values are used as C strings, where they lie */
    }
}

int catalog_attrs_decode(struct codec_reader *r, struct catalog_attrs *ret_attrs)
{
    uint32_t n = codec_read_le32(r);

    if (n > CATALOG_ATTRS_MAX)
        return ERR_FORMAT;
    for (uint32_t i = 0; i < n; i++) {
        struct object_attr *a = &ret_attrs->attrs[i];
        const uint8_t *vr, *value;

        a->tag = codec_read_le32(r);
        vr = codec_read_bytes(r, 2);
        a->len = codec_read_le32(r);
        if (a->len > CATALOG_VALUE_MAX)
            return ERR_FORMAT;
        value = codec_read_bytes(r, a->len + 1u);
        if (!value || value[a->len] != 0)
            return ERR_FORMAT;
        memcpy(a->vr, vr, 2);
        a->vr[2] = 0;
        a->value = (const char *)value;
    }
    ret_attrs->count = n;
    return 0;
}

const char *catalog_attr_text(const struct catalog_attrs *a, uint32_t tag)
{
    for (size_t i = 0; i < a->count; i++)
        if (a->attrs[i].tag == tag)
            return a->attrs[i].value;
    return NULL;
}

static struct codec_reader row_begin(struct kv_slice value)
{
    struct codec_reader r = codec_reader_on(value.data, value.len);

    if (codec_read_u8(&r) != CATALOG_VERSION)
        r.bad = true;
    return r;
}

static int row_end(struct codec_reader *r, struct catalog_attrs *attrs)
{
    int rc = codec_reader_ok(r) ? catalog_attrs_decode(r, attrs) : ERR_FORMAT;

    return rc == 0 && codec_reader_ok(r) ? 0 : ERR_FORMAT;
}

/* ---- Rows ---- */

void catalog_patient_encode(const struct catalog_patient *p, struct strbuf *out)
{
    strbuf_addc(out, CATALOG_VERSION);
    put_u64(out, p->studies);
    catalog_attrs_encode(p->attrs.attrs, p->attrs.count, out);
}

int catalog_patient_decode(struct kv_slice value, struct catalog_patient *ret_patient)
{
    struct codec_reader r = row_begin(value);

    ret_patient->studies = codec_read_le64(&r);
    return row_end(&r, &ret_patient->attrs);
}

void catalog_study_encode(const struct catalog_study *s, struct strbuf *out)
{
    strbuf_addc(out, CATALOG_VERSION);
    put_u64(out, s->series);
    put_u64(out, s->instances);
    put_u64(out, s->bytes);
    put_u64(out, s->stored_ns);
    put_u32(out, s->modality_count);
    for (uint32_t i = 0; i < s->modality_count; i++) {
        put_text(out, s->modalities[i].name);
        put_u32(out, s->modalities[i].series);
    }
    catalog_attrs_encode(s->attrs.attrs, s->attrs.count, out);
}

int catalog_study_decode(struct kv_slice value, struct catalog_study *ret_study)
{
    struct codec_reader r = row_begin(value);
    struct catalog_study *s = ret_study;

    s->series = codec_read_le64(&r);
    s->instances = codec_read_le64(&r);
    s->bytes = codec_read_le64(&r);
    s->stored_ns = codec_read_le64(&r);
    s->modality_count = codec_read_le32(&r);
    if (s->modality_count > CATALOG_MODALITIES_MAX)
        return ERR_FORMAT;
    for (uint32_t i = 0; i < s->modality_count; i++) {
        if (get_text(&r, s->modalities[i].name, sizeof(s->modalities[i].name)) < 0)
            return ERR_FORMAT;
        s->modalities[i].series = codec_read_le32(&r);
    }
    return row_end(&r, &s->attrs);
}

void catalog_series_encode(const struct catalog_series *s, struct strbuf *out)
{
    strbuf_addc(out, CATALOG_VERSION);
    put_u64(out, s->instances);
    put_u64(out, s->bytes);
    put_u64(out, s->stored_ns);
    catalog_attrs_encode(s->attrs.attrs, s->attrs.count, out);
}

int catalog_series_decode(struct kv_slice value, struct catalog_series *ret_series)
{
    struct codec_reader r = row_begin(value);

    ret_series->instances = codec_read_le64(&r);
    ret_series->bytes = codec_read_le64(&r);
    ret_series->stored_ns = codec_read_le64(&r);
    return row_end(&r, &ret_series->attrs);
}

void catalog_instance_encode(const struct catalog_instance *i, struct strbuf *out)
{
    strbuf_addc(out, CATALOG_VERSION);
    put_u64(out, i->bytes);
    put_u64(out, i->dataset_off);
    put_u64(out, i->stored_ns);
    strbuf_add(out, i->digest, CATALOG_DIGEST);
    put_text(out, i->sop_class);
    put_text(out, i->transfer_syntax);
    catalog_attrs_encode(i->attrs.attrs, i->attrs.count, out);
}

int catalog_instance_decode(struct kv_slice value, struct catalog_instance *ret_instance)
{
    struct codec_reader r = row_begin(value);
    struct catalog_instance *i = ret_instance;
    const uint8_t *digest;

    i->bytes = codec_read_le64(&r);
    i->dataset_off = codec_read_le64(&r);
    i->stored_ns = codec_read_le64(&r);
    digest = codec_read_bytes(&r, CATALOG_DIGEST);
    if (!digest)
        return ERR_FORMAT;
    memcpy(i->digest, digest, CATALOG_DIGEST);
    if (get_text(&r, i->sop_class, sizeof(i->sop_class)) < 0 ||
        get_text(&r, i->transfer_syntax, sizeof(i->transfer_syntax)) < 0)
        return ERR_FORMAT;
    return row_end(&r, &i->attrs);
}

/* ---- Totals ---- */

void catalog_totals_encode(const struct catalog_totals *t, uint8_t out[CATALOG_TOTALS_SIZE])
{
    codec_put_le64(out, t->studies);
    codec_put_le64(out + 8, t->instances);
    codec_put_le64(out + 16, t->bytes);
}

int catalog_totals_decode(struct kv_slice value, struct catalog_totals *ret_totals)
{
    const uint8_t *b = value.data;

    if (value.len != CATALOG_TOTALS_SIZE)
        return ERR_FORMAT;
    *ret_totals =
        (struct catalog_totals){codec_get_le64(b), codec_get_le64(b + 8), codec_get_le64(b + 16)};
    return 0;
}

#define TAG_MODALITY 0x00080060u

void catalog_modality_count(struct catalog_study *s, const struct catalog_series *series, int delta)
{
    const char *name = catalog_attr_text(&series->attrs, TAG_MODALITY);
    uint32_t i = 0;

    if (!name || !*name || strlen(name) >= sizeof(s->modalities[0].name))
        return;
    while (i < s->modality_count && strcmp(s->modalities[i].name, name) != 0)
        i++;
    if (i == s->modality_count) {
        if (delta < 0 || i == CATALOG_MODALITIES_MAX)
            return;
        memcpy(s->modalities[i].name, name, strlen(name) + 1);
        s->modalities[i].series = 0;
        s->modality_count++;
    }
    s->modalities[i].series += (uint32_t)delta;
    if (s->modalities[i].series == 0)
        s->modalities[i] = s->modalities[--s->modality_count];
}

/* ---- Keys ---- */

static void key_add(struct catalog_key *k, const char *s)
{
    size_t n = strlen(s);

    CHECK(n <= OBJECT_UID_MAX);
    memcpy(k->bytes + k->len, s, n);
    k->len += n;
}

void catalog_key_make(struct catalog_key *k, char level, const char *study, const char *series,
                      const char *instance)
{
    k->bytes[0] = (uint8_t)level;
    k->len = 1;
    if (!study)
        return;
    key_add(k, study);
    if (level == 'S' || level == 'I')
        k->bytes[k->len++] = 0;
    if (!series)
        return;
    key_add(k, series);
    if (level == 'I')
        k->bytes[k->len++] = 0;
    if (instance)
        key_add(k, instance);
}

void catalog_key_after(struct catalog_key *k)
{
    while (k->len && k->bytes[k->len - 1] == 0xff)
        k->len--;
    if (k->len)
        k->bytes[k->len - 1]++;
}

/* ---- Patients ---- */

#define TAG_ISSUER 0x00100021u

/* A sequence under a tag that is text elsewhere matches nothing, so it says nothing here. */
static const char *text_or_empty(const struct catalog_attrs *a, uint32_t tag)
{
    for (size_t i = 0; i < a->count; i++)
        if (a->attrs[i].tag == tag)
            return strcmp(a->attrs[i].vr, "SQ") == 0 ? "" : a->attrs[i].value;
    return "";
}

const char *catalog_patient_id(const struct catalog_attrs *study)
{
    return text_or_empty(study, CATALOG_TAG_PATIENT_ID);
}

const char *catalog_id_next(const char *at, size_t *ret_len)
{
    at += strspn(at, "\\");
    *ret_len = strcspn(at, "\\");
    return *at ? at : NULL;
}

void catalog_id_key(struct catalog_key *k, const char *id, size_t len, const char *study)
{
    if (len > CATALOG_ID_MAX)
        len = CATALOG_ID_MAX;
    k->bytes[0] = 'P';
    memcpy(k->bytes + 1, id, len);
    k->len = 1 + len;
    k->bytes[k->len++] = 0;
    if (study)
        key_add(k, study);
}

static bool is_of_patient(uint32_t tag)
{
    return tag == 0x00100010u ||                                  /* PatientName */
           tag == CATALOG_TAG_PATIENT_ID || tag == 0x00100021u || /* IssuerOfPatientID */
           tag == 0x00100030u || tag == 0x00100040u;              /* PatientBirthDate, PatientSex */
}

void catalog_patient_begin(struct catalog_patient *p, const struct catalog_attrs *study)
{
    p->studies = 0;
    p->attrs.count = 0;
    for (size_t i = 0; i < study->count; i++)
        if (is_of_patient(study->attrs[i].tag))
            p->attrs.attrs[p->attrs.count++] = study->attrs[i];
}

bool catalog_patient_key(struct catalog_key *k, const struct catalog_attrs *study)
{
    const char *id = catalog_patient_id(study), *issuer = text_or_empty(study, TAG_ISSUER);
    size_t len = strlen(id), n = strnlen(issuer, CATALOG_ID_MAX);

    if (len == 0 || len > CATALOG_ID_MAX || strchr(id, '\\'))
        return false;
    catalog_id_key(k, id, len, NULL);
    memcpy(k->bytes + k->len, issuer, n);
    k->len += n;
    return true;
}

int catalog_uids_split(struct kv_slice bytes, unsigned n, struct catalog_uids *ret_uids)
{
    char *at = ret_uids->store;
    const char *end;

    if (bytes.len >= sizeof(ret_uids->store))
        return ERR_FORMAT;
    memcpy(at, bytes.data, bytes.len);
    end = at + bytes.len;
    at[bytes.len] = 0;
    for (unsigned i = 0; i < n; i++) {
        if (at > end)
            return ERR_FORMAT;
        ret_uids->part[i] = at;
        at += strlen(at) + 1;
    }
    return at == end + 1 ? 0 : ERR_FORMAT;
}

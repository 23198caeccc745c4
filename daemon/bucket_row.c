/* Rows and records of buckets as bytes; see bucket_row.h. */
#include "daemon/bucket_row.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"

#define BUCKET_ROW_VERSION 1u

void bucket_key_make(struct bucket_key *k, char kind, uint64_t id, const char *name)
{
    size_t n = name ? strlen(name) : 0;

    CHECK(n <= BUCKET_KEY_MAX);
    k->bytes[0] = (uint8_t)kind;
    codec_put_be64(k->bytes + 1, id);
    memcpy(k->bytes + 9, name ? name : "", n + 1);
    k->len = 9 + n;
}

/* ---- What users may say ---- */

static bool in_set(const char *text, const char *set, size_t max)
{
    size_t n = strlen(text);

    return n > 0 && n <= max && strspn(text, set) == n;
}

bool bucket_name_valid(const char *name)
{
    return name[0] != '.' && name[0] != '-' &&
           in_set(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-",
                  BUCKET_NAME_MAX);
}

/* Length of the UTF-8 sequence at p, shortest form only (RFC 3629 section 4); 0: it is none. */
static unsigned utf8_length(const uint8_t *p)
{
    unsigned n = p[0] < 0x80                   ? 1
                 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
                 : (p[0] & 0xf0) == 0xe0       ? 3
                 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                               : 0;

    for (unsigned i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] >= 0x90))
        return 0;
    return n;
}

/* UTF-8 without control characters, C1 (U+0080 to U+009F) included. */
static bool text_valid(const char *text)
{
    const uint8_t *p = (const uint8_t *)text;

    while (*p) {
        unsigned n = utf8_length(p);

        if (n == 0 || *p < 0x20 || *p == 0x7f || (*p == 0xc2 && p[1] < 0xa0))
            return false;
        p += n;
    }
    return true;
}

bool bucket_key_valid(const char *name)
{
    size_t n = strlen(name);

    return n > 0 && n <= BUCKET_KEY_MAX && text_valid(name);
}

int bucket_metadata_check(const char *type, const struct bucket_pair *pairs, size_t count)
{
    size_t bytes = 0;

    if (count > BUCKET_PAIRS_MAX)
        return ERR_TOOBIG;
    for (const char *p = type ? type : ""; *p; p++)
        if (*p < 0x20 || *p > 0x7e)
            return ERR_INVAL;
    if (type && strlen(type) > BUCKET_TYPE_MAX)
        return ERR_TOOBIG;
    for (size_t i = 0; i < count; i++) {
        if (!in_set(pairs[i].name, "abcdefghijklmnopqrstuvwxyz0123456789._-",
                    BUCKET_PAIR_NAME_MAX) ||
            !text_valid(pairs[i].value))
            return ERR_INVAL;
        for (size_t j = 0; j < i; j++)
            if (strcmp(pairs[i].name, pairs[j].name) == 0)
                return ERR_INVAL;
        bytes += strlen(pairs[i].name) + strlen(pairs[i].value);
    }
    return bytes > BUCKET_METADATA_MAX ? ERR_TOOBIG : 0;
}

bool bucket_condition_holds(enum bucket_condition condition, const uint8_t etag[BUCKET_ETAG],
                            const struct bucket_object_row *there)
{
    switch (condition) {
    case BUCKET_ALWAYS:
        return true;
    case BUCKET_IF_ABSENT:
        return !there;
    case BUCKET_IF_ETAG:
        return there && memcmp(there->etag, etag, BUCKET_ETAG) == 0;
    }
    return false;
}

/* ---- Texts: length u16, bytes, NUL (so that decoded rows can point at them) ---- */

static void add_u64(struct strbuf *out, uint64_t v)
{
    uint8_t b[8];

    codec_put_le64(b, v);
    strbuf_add(out, b, 8);
}

static void add_text(struct strbuf *out, const char *text)
{
    size_t n = strlen(text);
    uint8_t b[2];

    CHECK(n <= UINT16_MAX);
    codec_put_le16(b, (uint16_t)n);
    strbuf_add(out, b, 2);
    strbuf_add(out, text, n + 1);
}

/* NULL: it is none. */
static const char *read_text(struct codec_reader *r)
{
    uint16_t n = codec_read_le16(r);
    const char *p = (const char *)codec_read_bytes(r, (size_t)n + 1);

    return p && strnlen(p, (size_t)n + 1) == n ? p : NULL;
}

/* An object's name into memory of one's own. */
static int read_key(struct codec_reader *r, char ret_name[BUCKET_KEY_MAX + 1])
{
    const char *name = read_text(r);

    if (!name || !bucket_key_valid(name))
        return ERR_FORMAT;
    memcpy(ret_name, name, strlen(name) + 1);
    return 0;
}

/* ---- Rows ---- */

void bucket_row_encode(const struct bucket_row *r, struct strbuf *out)
{
    strbuf_addc(out, BUCKET_ROW_VERSION);
    strbuf_addc(out, r->going);
    add_u64(out, r->created_ns);
    add_u64(out, r->objects);
    add_u64(out, r->bytes);
    add_text(out, r->name);
}

int bucket_row_decode(struct kv_slice value, struct bucket_row *ret_row)
{
    struct codec_reader rd = codec_reader_on(value.data, value.len);
    uint8_t version = codec_read_u8(&rd), going = codec_read_u8(&rd);
    struct bucket_row r = {.going = going == 1};
    const char *name;

    r.created_ns = codec_read_le64(&rd);
    r.objects = codec_read_le64(&rd);
    r.bytes = codec_read_le64(&rd);
    name = read_text(&rd);
    if (version != BUCKET_ROW_VERSION || going > 1 || !name || codec_left(&rd) ||
        !bucket_name_valid(name))
        return ERR_FORMAT;
    memcpy(r.name, name, strlen(name) + 1);
    *ret_row = r;
    return 0;
}

void bucket_object_encode(const struct bucket_object_row *r, struct strbuf *out)
{
    strbuf_addc(out, BUCKET_ROW_VERSION);
    strbuf_addc(out, (char)r->pair_count);
    add_u64(out, r->content);
    add_u64(out, r->size);
    add_u64(out, r->stored_ns);
    strbuf_add(out, r->etag, BUCKET_ETAG);
    add_text(out, r->type);
    for (size_t i = 0; i < r->pair_count; i++) {
        add_text(out, r->pairs[i].name);
        add_text(out, r->pairs[i].value);
    }
}

int bucket_object_decode(struct kv_slice value, struct bucket_object_row *ret_row)
{
    struct codec_reader rd = codec_reader_on(value.data, value.len);
    uint8_t version = codec_read_u8(&rd);
    struct bucket_object_row r = {.pair_count = codec_read_u8(&rd)};
    const uint8_t *etag;

    r.content = codec_read_le64(&rd);
    r.size = codec_read_le64(&rd);
    r.stored_ns = codec_read_le64(&rd);
    etag = codec_read_bytes(&rd, BUCKET_ETAG);
    r.type = read_text(&rd);
    if (version != BUCKET_ROW_VERSION || r.pair_count > BUCKET_PAIRS_MAX || !etag || !r.type)
        return ERR_FORMAT;
    memcpy(r.etag, etag, BUCKET_ETAG);
    for (size_t i = 0; i < r.pair_count; i++) {
        r.pairs[i].name = read_text(&rd);
        r.pairs[i].value = read_text(&rd);
        if (!r.pairs[i].name || !r.pairs[i].value)
            return ERR_FORMAT;
    }
    if (codec_left(&rd) || bucket_metadata_check(r.type, r.pairs, r.pair_count) < 0)
        return ERR_FORMAT;
    *ret_row = r;
    return 0;
}

/* ---- A bucket and a name ---- */

void bucket_owner_encode(uint64_t bucket, const char *name, struct strbuf *out)
{
    add_u64(out, bucket);
    add_text(out, name);
}

size_t bucket_owner_length(const char *name)
{
    return 8 + 2 + strlen(name) + 1;
}

int bucket_owner_decode(struct kv_slice value, uint64_t *ret_bucket,
                        char ret_name[BUCKET_KEY_MAX + 1], size_t *ret_used)
{
    struct codec_reader rd = codec_reader_on(value.data, value.len);
    uint64_t bucket = codec_read_le64(&rd);

    if (read_key(&rd, ret_name) < 0)
        return ERR_FORMAT;
    *ret_bucket = bucket;
    *ret_used = value.len - codec_left(&rd);
    return 0;
}

/* ---- PUT ---- */

void bucket_put_encode(const struct bucket_put_record *r, struct strbuf *out)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    uint8_t len[4];

    bucket_object_encode(&r->row, &row);
    strbuf_addc(out, (char)r->condition);
    strbuf_add(out, r->etag, BUCKET_ETAG);
    bucket_owner_encode(r->bucket, r->name, out);
    codec_put_le32(len, (uint32_t)row.len);
    strbuf_add(out, len, 4);
    strbuf_add(out, row.data, row.len);
}

int bucket_put_decode(struct kv_slice body, struct bucket_put_record *ret_record)
{
    struct codec_reader rd = codec_reader_on(body.data, body.len);
    uint8_t condition = codec_read_u8(&rd);
    const uint8_t *etag = codec_read_bytes(&rd, BUCKET_ETAG), *row;
    uint64_t bucket = codec_read_le64(&rd);
    uint32_t n;

    if (condition > BUCKET_IF_ETAG || !etag || read_key(&rd, ret_record->name) < 0)
        return ERR_FORMAT;
    n = codec_read_le32(&rd);
    row = codec_read_bytes(&rd, n);
    if (!row || bucket_object_decode((struct kv_slice){row, n}, &ret_record->row) < 0)
        return ERR_FORMAT;
    ret_record->condition = (enum bucket_condition)condition;
    memcpy(ret_record->etag, etag, BUCKET_ETAG);
    ret_record->bucket = bucket;
    ret_record->recipe = (struct kv_slice){rd.p, codec_left(&rd)};
    return 0;
}

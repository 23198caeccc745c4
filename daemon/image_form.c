/* The encoding of the metadata's copy; see image_form.h. */
#include "daemon/image_form.h"

#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define FORM_HEAD     40u
#define FORM_RUN      21u
#define FORM_RUNS_MAX 4096u
#define ROW_HEAD      8u
#define ROW_KEY_MAX   1024u
#define ROW_VALUE_MAX (16u << 20)

void image_form_encode(const struct image_form *f, struct strbuf *out)
{
    uint8_t *p = strbuf_room(out, FORM_HEAD);

    codec_put_le64(p, f->lsn);
    codec_put_le64(p + 8, f->settled);
    codec_put_le64(p + 16, f->upto);
    codec_put_le64(p + 24, f->time);
    codec_put_le32(p + 32, f->count);
    codec_put_le32(p + 36, 0);
    for (uint32_t i = 0; i < f->count; i++) {
        const struct image_run *r = &f->runs[i];

        p = strbuf_room(out, FORM_RUN + 8 * (size_t)r->count);
        codec_put_le64(p, r->order);
        p[8] = r->base;
        codec_put_le64(p + 9, r->bytes);
        codec_put_le32(p + 17, r->count);
        for (uint32_t j = 0; j < r->count; j++)
            codec_put_le64(p + FORM_RUN + 8 * (size_t)j, r->ids[j]);
    }
}

static int run_decode(struct codec_reader *r, struct image_run *run)
{
    run->order = codec_read_le64(r);
    run->base = codec_read_u8(r) != 0;
    run->bytes = codec_read_le64(r);
    run->count = codec_read_le32(r);
    if (!codec_reader_ok(r) || codec_left(r) / 8 < run->count) {
        run->count = 0;
        return ERR_FORMAT;
    }
    run->ids = mem_calloc(run->count, sizeof(*run->ids));
    for (uint32_t i = 0; i < run->count; i++)
        run->ids[i] = codec_read_le64(r);
    return 0;
}

int image_form_decode(const void *p, size_t n, struct image_form *ret_form, size_t *ret_used)
{
    struct codec_reader r = codec_reader_on(p, n);
    struct image_form f = {.lsn = codec_read_le64(&r)};
    uint32_t count;
    int rc = 0;

    f.settled = codec_read_le64(&r);
    f.upto = codec_read_le64(&r);
    f.time = codec_read_le64(&r);
    count = codec_read_le32(&r);
    (void)codec_read_le32(&r);
    if (!codec_reader_ok(&r) || count > FORM_RUNS_MAX)
        return ERR_FORMAT;
    f.runs = mem_calloc(count, sizeof(*f.runs));
    while (rc == 0 && f.count < count)
        rc = run_decode(&r, &f.runs[f.count++]);
    if (rc < 0) {
        image_form_free(&f);
        return rc;
    }
    *ret_used = n - codec_left(&r);
    *ret_form = f;
    return 0;
}

void image_form_free(struct image_form *f)
{
    for (uint32_t i = 0; i < f->count; i++)
        mem_free(f->runs[i].ids);
    mem_free(f->runs);
    *f = (struct image_form){0};
}

uint64_t *image_form_ids(const struct image_form *f, size_t *ret_count)
{
    size_t n = 0;
    uint64_t *ids;

    for (uint32_t i = 0; i < f->count; i++)
        n += f->runs[i].count;
    ids = mem_calloc(n, sizeof(*ids));
    n = 0;
    for (uint32_t i = 0; i < f->count; i++)
        for (uint32_t j = 0; j < f->runs[i].count; j++)
            ids[n++] = f->runs[i].ids[j];
    *ret_count = n;
    return ids;
}

void image_row_encode(struct strbuf *out, enum kv_table t, struct kv_slice key,
                      const struct kv_slice *value)
{
    size_t len = value ? value->len : 0;
    uint8_t *p = strbuf_room(out, ROW_HEAD + key.len + len);

    p[0] = (uint8_t)t;
    p[1] = !value;
    codec_put_le16(p + 2, (uint16_t)key.len);
    codec_put_le32(p + 4, (uint32_t)len);
    if (key.len)
        memcpy(p + ROW_HEAD, key.data, key.len);
    if (len)
        memcpy(p + ROW_HEAD + key.len, value->data, len);
}

int image_row_decode(const void *p, size_t n, struct kv_change *ret_row, size_t *ret_used)
{
    struct codec_reader r = codec_reader_on(p, n);
    struct kv_change row = {.table = (enum kv_table)codec_read_u8(&r)};

    row.gone = codec_read_u8(&r) != 0;
    row.key.len = codec_read_le16(&r);
    row.value.len = codec_read_le32(&r);
    if (!codec_reader_ok(&r))
        return ERR_TRUNCATED;
    if ((unsigned)row.table >= KV_TABLE_COUNT || row.key.len == 0 || row.key.len > ROW_KEY_MAX ||
        row.value.len > ROW_VALUE_MAX || (row.gone && row.value.len))
        return ERR_FORMAT;
    if (codec_left(&r) < row.key.len + row.value.len)
        return ERR_TRUNCATED;
    row.key.data = codec_read_bytes(&r, row.key.len);
    row.value.data = codec_read_bytes(&r, row.value.len);
    *ret_row = row;
    *ret_used = ROW_HEAD + row.key.len + row.value.len;
    return 0;
}

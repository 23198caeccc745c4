/* The encoding of the metadata's copy; see image_form.h. */
#include "daemon/image_form.h"

#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define FORM_HEAD    40u
#define FORM_RUN     41u
#define FORM_VERSION 2u
#define ROW_HEAD     8u

/* ---- The form ---- */

void image_chunk_encode(struct strbuf *out, const struct image_chunk *c)
{
    uint8_t *p = strbuf_room(out, IMAGE_CHUNK_SIZE);

    codec_put_le64(p, c->id);
    memcpy(p + 8, c->fingerprint, FINGERPRINT_SIZE);
}

void image_chunk_decode(const uint8_t *p, struct image_chunk *ret_chunk)
{
    ret_chunk->id = codec_get_le64(p);
    memcpy(ret_chunk->fingerprint, p + 8, FINGERPRINT_SIZE);
}

void image_form_encode(const struct image_form *f, struct strbuf *out)
{
    uint8_t *p = strbuf_room(out, FORM_HEAD);

    codec_put_le64(p, f->lsn);
    codec_put_le64(p + 8, f->settled);
    codec_put_le64(p + 16, f->upto);
    codec_put_le64(p + 24, f->time);
    codec_put_le32(p + 32, f->count);
    codec_put_le32(p + 36, FORM_VERSION);
    for (uint32_t i = 0; i < f->count; i++) {
        const struct image_run *r = &f->runs[i];

        p = strbuf_room(out, FORM_RUN);
        codec_put_le64(p, r->number);
        codec_put_le64(p + 8, r->order);
        p[16] = r->base;
        codec_put_le64(p + 17, r->bytes);
        codec_put_le64(p + 25, r->chunks);
        codec_put_le32(p + 33, r->pieces);
        codec_put_le32(p + 37, r->count);
        for (uint32_t j = 0; j < r->count; j++)
            image_chunk_encode(out, &r->index[j]);
    }
}

static int run_decode(struct codec_reader *r, struct image_run *run)
{
    run->number = codec_read_le64(r);
    run->order = codec_read_le64(r);
    run->base = codec_read_u8(r) != 0;
    run->bytes = codec_read_le64(r);
    run->chunks = codec_read_le64(r);
    run->pieces = codec_read_le32(r);
    run->count = codec_read_le32(r);
    if (!codec_reader_ok(r) || codec_left(r) / IMAGE_CHUNK_SIZE < run->count) {
        run->count = 0;
        return ERR_FORMAT;
    }
    run->index = mem_calloc(run->count, sizeof(*run->index));
    for (uint32_t i = 0; i < run->count; i++)
        image_chunk_decode(codec_read_bytes(r, IMAGE_CHUNK_SIZE), &run->index[i]);
    return 0;
}

int image_form_decode(const void *p, size_t n, struct image_form *ret_form)
{
    struct codec_reader r = codec_reader_on(p, n);
    struct image_form f = {.lsn = codec_read_le64(&r)};
    uint32_t count, version;
    int rc = 0;

    f.settled = codec_read_le64(&r);
    f.upto = codec_read_le64(&r);
    f.time = codec_read_le64(&r);
    count = codec_read_le32(&r);
    version = codec_read_le32(&r);
    if (!codec_reader_ok(&r) || count > IMAGE_FORM_RUNS || version != FORM_VERSION)
        return ERR_FORMAT;
    f.runs = mem_calloc(count, sizeof(*f.runs));
    while (rc == 0 && f.count < count)
        rc = run_decode(&r, &f.runs[f.count++]);
    if (rc == 0 && codec_left(&r))
        rc = ERR_FORMAT;
    if (rc < 0) {
        image_form_free(&f);
        return rc;
    }
    *ret_form = f;
    return 0;
}

void image_form_free(struct image_form *f)
{
    for (uint32_t i = 0; i < f->count; i++)
        mem_free(f->runs[i].index);
    mem_free(f->runs);
    *f = (struct image_form){0};
}

struct image_run *image_form_find(const struct image_form *f, uint64_t number)
{
    for (uint32_t i = 0; i < f->count; i++)
        if (f->runs[i].number == number)
            return &f->runs[i];
    return NULL;
}

/* ---- Pieces ---- */

void image_piece_encode(const struct image_piece *p, struct strbuf *out)
{
    uint8_t *at = strbuf_room(out, 16 + 8 * (size_t)p->count);

    codec_put_le64(at, p->number);
    codec_put_le32(at + 8, p->piece);
    codec_put_le32(at + 12, p->count);
    for (uint32_t i = 0; i < p->count; i++)
        codec_put_le64(at + 16 + 8 * (size_t)i, p->ids[i]);
}

int image_piece_decode(const void *p, size_t n, struct image_piece *ret_piece)
{
    struct codec_reader r = codec_reader_on(p, n);
    struct image_piece piece = {.number = codec_read_le64(&r)};

    piece.piece = codec_read_le32(&r);
    piece.count = codec_read_le32(&r);
    if (!codec_reader_ok(&r) || piece.count == 0 || piece.count > IMAGE_PIECE_MAX ||
        codec_left(&r) != 8 * (size_t)piece.count)
        return ERR_FORMAT;
    piece.ids = mem_calloc(piece.count, sizeof(*piece.ids));
    for (uint32_t i = 0; i < piece.count; i++)
        piece.ids[i] = codec_read_le64(&r);
    *ret_piece = piece;
    return 0;
}

void image_piece_key(uint64_t number, uint32_t piece, uint8_t key[IMAGE_PIECE_LEN])
{
    memcpy(key, IMAGE_PIECE_KEY, sizeof(IMAGE_PIECE_KEY) - 1);
    codec_put_be64(key + 6, number);
    codec_put_be32(key + 14, piece);
}

bool image_piece_is(struct kv_slice key, uint64_t *ret_number, uint32_t *ret_piece)
{
    const uint8_t *p = key.data;

    if (key.len != IMAGE_PIECE_LEN || memcmp(p, IMAGE_PIECE_KEY, sizeof(IMAGE_PIECE_KEY) - 1) != 0)
        return false;
    *ret_number = codec_get_be64(p + 6);
    *ret_piece = codec_get_be32(p + 14);
    return true;
}

int image_piece_from_row(const struct kv_row *row, struct image_piece *ret_piece)
{
    struct image_piece piece = {.count = (uint32_t)(row->value.len / 8)};
    const uint8_t *p = row->value.data;

    if (!image_piece_is(row->key, &piece.number, &piece.piece) || row->value.len % 8 ||
        row->value.len / 8 > IMAGE_PIECE_MAX)
        return ERR_FORMAT;
    piece.ids = mem_calloc(piece.count, sizeof(*piece.ids));
    for (uint32_t i = 0; i < piece.count; i++)
        piece.ids[i] = codec_get_le64(p + 8 * (size_t)i);
    *ret_piece = piece;
    return 0;
}

void image_sum_encode(const struct image_sum *s, uint8_t out[IMAGE_SUM_SIZE])
{
    codec_put_le64(out, s->chunks);
    codec_put_le64(out + 8, s->raw);
    codec_put_le64(out + 16, s->stored);
    codec_put_le64(out + 24, s->referenced);
}

int image_sum_decode(struct kv_slice value, struct image_sum *ret_sum)
{
    const uint8_t *p = value.data;

    if (value.len != IMAGE_SUM_SIZE)
        return ERR_FORMAT;
    *ret_sum = (struct image_sum){.chunks = codec_get_le64(p),
                                  .raw = codec_get_le64(p + 8),
                                  .stored = codec_get_le64(p + 16),
                                  .referenced = codec_get_le64(p + 24)};
    return 0;
}

/* ---- Rows ---- */

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
    if ((unsigned)row.table >= KV_TABLE_COUNT || row.key.len == 0 || row.key.len > KV_KEY_MAX ||
        row.value.len > KV_VALUE_MAX || (row.gone && row.value.len))
        return ERR_FORMAT;
    if (codec_left(&r) < row.key.len + row.value.len)
        return ERR_TRUNCATED;
    row.key.data = codec_read_bytes(&r, row.key.len);
    row.value.data = codec_read_bytes(&r, row.value.len);
    *ret_row = row;
    *ret_used = ROW_HEAD + row.key.len + row.value.len;
    return 0;
}

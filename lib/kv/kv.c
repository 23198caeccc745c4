/* The face of the key-value stores: checks what callers pass, encodes batches, packs pages of rows,
 * and hands on to the store behind the handle. See kv.h for the contract, impl.h for the inside.
 *
 * Sizes of keys and values are the engine's own doing (bad input from clients was refused long
 * before), so exceeding a limit is a broken invariant, not an error.
 */
#include "lib/kv/impl.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define KV_OP_HEAD  9u /* u8 kind, u32, u32 */
#define KV_ROW_HEAD 8u

int kv_slice_cmp(struct kv_slice a, struct kv_slice b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n ? memcmp(a.data, b.data, n) : 0;

    if (c != 0)
        return c;
    return a.len < b.len ? -1 : a.len > b.len;
}

static void kv_full_key_set(struct kv_full_key *k, enum kv_table t, struct kv_slice key)
{
    CHECK((unsigned)t < KV_TABLE_COUNT);
    CHECK(1 + key.len <= sizeof(k->bytes));
    k->bytes[0] = (uint8_t)t;
    if (key.len)
        memcpy(k->bytes + 1, key.data, key.len);
    k->len = 1 + key.len;
}

/* ---- Reading -------------------------------------------------------------------------------- */

int kv_get(struct kv *kv, enum kv_table t, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    struct kv_full_key full;

    CHECK(key.len > 0 && key.len <= KV_KEY_MAX);
    kv_full_key_set(&full, t, key);
    return kv->ops->get(kv, kv_full_slice(&full), ret_value, ret_len);
}

/* All full keys of one call in one allocation: slices first, then their bytes. */
static struct kv_slice *kv_full_keys_new(enum kv_table t, const struct kv_slice *keys, size_t n)
{
    size_t bytes = n * sizeof(struct kv_slice);
    struct kv_slice *full;
    uint8_t *p;

    for (size_t i = 0; i < n; i++) {
        CHECK(keys[i].len > 0 && keys[i].len <= KV_KEY_MAX);
        bytes += 1 + keys[i].len;
    }
    full = mem_alloc(bytes);
    p = (uint8_t *)(full + n);
    for (size_t i = 0; i < n; i++) {
        full[i] = (struct kv_slice){p, 1 + keys[i].len};
        *p++ = (uint8_t)t;
        memcpy(p, keys[i].data, keys[i].len);
        p += keys[i].len;
    }
    return full;
}

int kv_multi_get(struct kv *kv, enum kv_table t, const struct kv_slice *keys, size_t n,
                 void **values, size_t *lens)
{
    struct kv_slice *full;
    int r;

    CHECK((unsigned)t < KV_TABLE_COUNT);
    CHECK(n < (size_t)1 << 24);
    if (n == 0)
        return 0;
    full = kv_full_keys_new(t, keys, n);
    r = kv->ops->multi_get(kv, full, n, values, lens);
    mem_free(full);
    return r;
}

int kv_scan(struct kv *kv, enum kv_table t, struct kv_slice from, struct kv_slice to,
            size_t max_rows, size_t max_bytes, int reverse, struct kv_rows **ret_rows)
{
    struct kv_full_key low, high;

    CHECK(max_rows > 0);
    kv_full_key_set(&low, t, from);
    kv_full_key_set(&high, t, to);
    if (to.len == 0)
        high.bytes[0]++; /* the first key of the next table */
    return kv->ops->scan(kv, kv_full_slice(&low), kv_full_slice(&high), max_rows, max_bytes,
                         reverse, ret_rows);
}

void kv_rows_free(struct kv_rows *rows)
{
    mem_free(rows);
}

/* ---- Pages ---------------------------------------------------------------------------------- */

void kv_page_init(struct kv_page *p, size_t max_rows, size_t max_bytes)
{
    *p = (struct kv_page){.max_rows = max_rows, .max_bytes = max_bytes};
}

bool kv_page_full(const struct kv_page *p)
{
    return p->count >= p->max_rows || (p->count > 0 && p->bytes.len >= p->max_bytes);
}

size_t kv_page_row_bytes(struct kv_slice key, struct kv_slice value)
{
    return KV_ROW_HEAD + key.len + value.len;
}

void kv_page_add(struct kv_page *p, struct kv_slice key, struct kv_slice value)
{
    uint8_t head[KV_ROW_HEAD];

    codec_put_le32(head, (uint32_t)key.len);
    codec_put_le32(head + 4, (uint32_t)value.len);
    strbuf_add(&p->bytes, head, sizeof(head));
    strbuf_add(&p->bytes, key.data, key.len);
    strbuf_add(&p->bytes, value.data, value.len);
    CHECK(!p->bytes.overflow);
    p->count++;
}

struct kv_rows *kv_page_pack(struct kv_page *p)
{
    size_t rows_size = p->count * sizeof(struct kv_row);
    struct kv_rows *rows = mem_alloc(sizeof(*rows) + rows_size + p->bytes.len);
    const uint8_t *at;

    rows->count = p->count;
    rows->rows = (struct kv_row *)(rows + 1);
    at = (const uint8_t *)(rows->rows + p->count);
    if (p->bytes.len)
        memcpy((void *)(rows->rows + p->count), p->bytes.data, p->bytes.len);
    for (size_t i = 0; i < p->count; i++) {
        size_t key_len = codec_get_le32(at), value_len = codec_get_le32(at + 4);

        at += KV_ROW_HEAD;
        rows->rows[i].key = (struct kv_slice){at, key_len};
        rows->rows[i].value = (struct kv_slice){at + key_len, value_len};
        at += key_len + value_len;
    }
    kv_page_free(p);
    return rows;
}

void kv_page_free(struct kv_page *p)
{
    strbuf_free(&p->bytes);
    p->count = 0;
}

/* ---- Batches -------------------------------------------------------------------------------- */

struct kv_batch *kv_batch_new(void)
{
    struct kv_batch *b = mem_zalloc(sizeof(*b));

    b->ops.max = KV_BATCH_MAX;
    return b;
}

static void kv_batch_add(struct kv_batch *b, bool is_put, enum kv_table t, struct kv_slice key,
                         struct kv_slice value)
{
    uint8_t head[KV_OP_HEAD + 1];

    CHECK((unsigned)t < KV_TABLE_COUNT);
    CHECK(key.len > 0 && key.len <= KV_KEY_MAX);
    CHECK(value.len <= KV_VALUE_MAX);
    head[0] = is_put;
    codec_put_le32(head + 1, (uint32_t)(1 + key.len));
    codec_put_le32(head + 5, (uint32_t)value.len);
    head[KV_OP_HEAD] = (uint8_t)t;
    strbuf_add(&b->ops, head, sizeof(head));
    strbuf_add(&b->ops, key.data, key.len);
    if (value.len)
        strbuf_add(&b->ops, value.data, value.len);
    CHECK(!b->ops.overflow);
    b->count++;
}

void kv_batch_put(struct kv_batch *b, enum kv_table t, struct kv_slice key, struct kv_slice value)
{
    kv_batch_add(b, true, t, key, value);
}

void kv_batch_delete(struct kv_batch *b, enum kv_table t, struct kv_slice key)
{
    kv_batch_add(b, false, t, key, (struct kv_slice){NULL, 0});
}

bool kv_batch_next(const struct kv_batch *b, size_t *pos, struct kv_batch_op *ret_op)
{
    const uint8_t *p;

    if (*pos == b->ops.len)
        return false;
    CHECK(b->ops.len - *pos > KV_OP_HEAD);
    p = (const uint8_t *)b->ops.data + *pos;
    ret_op->is_put = p[0] != 0;
    ret_op->key = (struct kv_slice){p + KV_OP_HEAD, codec_get_le32(p + 1)};
    ret_op->value = (struct kv_slice){p + KV_OP_HEAD + ret_op->key.len, codec_get_le32(p + 5)};
    *pos += KV_OP_HEAD + ret_op->key.len + ret_op->value.len;
    CHECK(*pos <= b->ops.len);
    return true;
}

size_t kv_batch_count(const struct kv_batch *b)
{
    return b->count;
}

void kv_batch_clear(struct kv_batch *b)
{
    strbuf_reset(&b->ops);
    b->count = 0;
}

void kv_batch_free(struct kv_batch *b)
{
    if (!b)
        return;
    strbuf_free(&b->ops);
    mem_free(b);
}

/* ---- The rest ------------------------------------------------------------------------------- */

int kv_write(struct kv *kv, struct kv_batch *b)
{
    if (b->count == 0)
        return 0;
    return kv->ops->write(kv, b);
}

int kv_flush(struct kv *kv)
{
    return kv->ops->flush(kv);
}

int kv_get_stats(struct kv *kv, struct kv_stats *ret_stats)
{
    return kv->ops->get_stats(kv, ret_stats);
}

int kv_close(struct kv *kv)
{
    return kv ? kv->ops->close(kv) : 0;
}

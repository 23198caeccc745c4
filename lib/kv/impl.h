/* What the key-value stores share: the table of calls behind kv.h, the encoding of a batch, and the
 * builder of a page of rows. Internal to lib/kv.
 *
 * In every store a row's full key is the table's byte (its number) followed by the caller's key, so
 * that one ordered space holds all tables: a batch is then atomic and a flush covers every table
 * because there is only one thing to write and to flush.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/strbuf.h"
#include "lib/kv/kv.h"

#define KV_BATCH_MAX (1u << 30) /* encoded bytes of one batch */

struct kv_ops {
    int (*get)(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len);
    int (*multi_get)(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                     size_t *lens);
    int (*write)(struct kv *kv, const struct kv_batch *b);
    int (*flush)(struct kv *kv);
    int (*get_stats)(struct kv *kv, struct kv_stats *ret_stats);
    int (*close)(struct kv *kv); /* frees kv, whatever it returns */

    /* Rows with from <= key < to. The keys here are full keys and `to` is never empty. */
    int (*scan)(struct kv *kv, struct kv_slice from, struct kv_slice to, size_t max_rows,
                size_t max_bytes, int reverse, struct kv_rows **ret_rows);
};

/* Embedded as the first member of each store. */
struct kv {
    const struct kv_ops *ops;
};

/* ---- Keys ----------------------------------------------------------------------------------- */

/* A full key on the stack, or what comes right behind it. */
struct kv_full_key {
    size_t len;
    uint8_t bytes[1 + KV_KEY_MAX + 1];
};

static inline struct kv_slice kv_full_slice(const struct kv_full_key *k)
{
    return (struct kv_slice){k->bytes, k->len};
}

/* memcmp order, shorter first. */
int kv_slice_cmp(struct kv_slice a, struct kv_slice b);

/* ---- Batches -------------------------------------------------------------------------------- */

struct kv_batch {
    size_t count;
    struct strbuf ops; /* per operation: u8 is_put, u32 full key length, u32 value length, bytes */
};

struct kv_batch_op {
    bool is_put;
    struct kv_slice key, value; /* the full key; into the batch */
};

/* Steps through a batch: *pos starts at 0. False at the end. */
bool kv_batch_next(const struct kv_batch *b, size_t *pos, struct kv_batch_op *ret_op);

/* ---- Pages of rows -------------------------------------------------------------------------- */

/* Collects rows until a limit is reached, then packs them in one allocation. */
struct kv_page {
    size_t max_rows, max_bytes, count;
    struct strbuf bytes; /* per row: u32 key length, u32 value length, key, value */
};

void kv_page_init(struct kv_page *p, size_t max_rows, size_t max_bytes);
bool kv_page_full(const struct kv_page *p);
/* The key as kv_scan gives it: without the table's byte. */
void kv_page_add(struct kv_page *p, struct kv_slice key, struct kv_slice value);
/* What a row counts towards max_bytes. */
size_t kv_page_row_bytes(struct kv_slice key, struct kv_slice value);
static inline struct kv_slice kv_key_of_full(struct kv_slice full)
{
    return (struct kv_slice){(const uint8_t *)full.data + 1, full.len - 1};
}
struct kv_rows *kv_page_pack(struct kv_page *p); /* frees the page's memory */
void kv_page_free(struct kv_page *p);

/* ---- kv_mem's durable image, for those who decide themselves what a crash leaves ---- */

struct kv_mem_image;
/* Applies a batch to the image, as if it had become durable. Does not suspend. */
void kv_mem_image_apply(struct kv_mem_image *image, const struct kv_batch *b);
/* An image with the same rows. */
struct kv_mem_image *kv_mem_image_copy(const struct kv_mem_image *image);

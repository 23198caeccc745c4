/* How the metadata's copy on the drives is encoded: shared by who writes it (image.c), who brings
 * it back (rebuild.c), and who looks at it (audit, dump). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"
#include "lib/kv/kv.h"

/* The row of KV_META that says what the copy consists of, as the last RECORD_IMAGE left it. */
#define IMAGE_META_KEY "image"

/* Rows of KV_IMAGE, which are not in the copy: lists of the keys that a record changed (the byte
 * 'd' and its LSN, u64 BE), and a mark that rows were changed without a record (by
 * filmroom-fsck --repair), so that the next copy must begin anew. */
#define IMAGE_CHANGED_KEY 'd'
#define IMAGE_MENDED_KEY  "x"

/* Rows in the order of their keys, in chunks. */
struct image_run {
    uint64_t order; /* an increment's: its last LSN; a base's: all changes after this are in later
                       increments */
    bool base;
    uint64_t bytes; /* before compression */
    uint32_t count;
    uint64_t *ids;
};

struct image_form {
    uint64_t lsn;           /* of the record that named it; 0: none did */
    uint64_t settled;       /* it is the state after this record ... */
    uint64_t upto;          /* ... and with all records from here on in order, the exact state */
    uint64_t time;          /* when, ns since the Unix epoch */
    struct image_run *runs; /* in the order in which they are to be loaded */
    uint32_t count;
};

/*   lsn u64, settled u64, upto u64, time u64, runs u32, reserved u32, then for each
 *   order u64, base u8, bytes u64, chunks u32, chunks x id u64 */
void image_form_encode(const struct image_form *f, struct strbuf *out);
/* ERR_FORMAT. *ret_used: how long it is. */
int image_form_decode(const void *p, size_t n, struct image_form *ret_form, size_t *ret_used);
void image_form_free(struct image_form *f); /* empty again */
/* All chunks of all runs, as often as they are in them; the caller frees. */
uint64_t *image_form_ids(const struct image_form *f, size_t *ret_count);

/* A row in a run: table u8, gone u8, key length u16, value length u32, key, value. `value` NULL: it
 * is deleted. Chunks cut the rows' bytes anywhere. */
void image_row_encode(struct strbuf *out, enum kv_table t, struct kv_slice key,
                      const struct kv_slice *value);
/* The row at the front of n bytes and its length. ERR_TRUNCATED: only its beginning is there.
 * ERR_FORMAT. */
int image_row_decode(const void *p, size_t n, struct kv_change *ret_row, size_t *ret_used);

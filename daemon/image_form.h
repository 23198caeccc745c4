/* How the metadata's copy on the drives is encoded: shared by who writes it (image.c), who brings
 * it back (rebuild.c), and who looks at it (audit, dump). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dedup/fingerprint.h"
#include "lib/base/strbuf.h"
#include "lib/kv/kv.h"

/* Rows of KV_META. "image" says what the copy consists of, as the last RECORD_IMAGE left it;
 * "image-sum" what all runs take (image_sum); and for each piece of each run there is a row with
 * the chunks that it refers to: the prefix, the run's number u64 BE, the piece u32 BE; ids u64 LE.
 */
#define IMAGE_META_KEY    "image"
#define IMAGE_SUM_KEY     "image-sum"
#define IMAGE_PIECE_KEY   "image/"
#define IMAGE_PIECE_END   "image0" /* '0' is behind '/': no key from here on is a piece's */
#define IMAGE_PIECE_LEN   18u
#define IMAGE_PIECE_MAX   1024u /* ids in one */
#define IMAGE_INDEX_BYTES 64000u

/* Rows of KV_IMAGE, which are not in the copy: lists of the keys that a record changed (the byte
 * 'd' and its LSN, u64 BE), and a mark that the copy lacks changes that no list has (rows were
 * changed by filmroom-fsck --repair; or they were too many), so that the next must begin anew. */
#define IMAGE_CHANGED_KEY 'd'
#define IMAGE_MENDED_KEY  "x"

/* A chunk of the copy. An id stands for one content for ever; the fingerprint proves it. On media:
 * id u64 LE, fingerprint. */
#define IMAGE_CHUNK_SIZE 40u
_Static_assert(IMAGE_CHUNK_SIZE == 8 + FINGERPRINT_SIZE, "on media");
_Static_assert(IMAGE_INDEX_BYTES % IMAGE_CHUNK_SIZE == 0, "chunks of an index end with an entry");

struct image_chunk {
    uint64_t id;
    uint8_t fingerprint[FINGERPRINT_SIZE];
};

void image_chunk_encode(struct strbuf *out, const struct image_chunk *c);
void image_chunk_decode(const uint8_t *p, struct image_chunk *ret_chunk); /* IMAGE_CHUNK_SIZE */

/* Rows in the order of their keys, in chunks; the chunks are listed in the run's index, which is
 * chunks again. */
struct image_run {
    uint64_t number; /* no other run ever had it */
    uint64_t order;  /* an increment's: its last LSN; a base's: all changes after this are in later
                        increments */
    bool base;
    uint64_t bytes;  /* of rows, before compression */
    uint64_t chunks; /* with rows: what the index lists */
    uint32_t pieces; /* rows of KV_META */
    uint32_t count;  /* chunks of the index */
    struct image_chunk *index;
};

struct image_form {
    uint64_t lsn;           /* of the record that named it; 0: none did */
    uint64_t settled;       /* it is the state after this record ... */
    uint64_t upto;          /* ... and with all records from here on in order, the exact state */
    uint64_t time;          /* when, ns since the Unix epoch */
    struct image_run *runs; /* in the order in which they are to be loaded */
    uint32_t count;
};

/* The body of RECORD_IMAGE, and with the LSN filled in the row.
 *   lsn u64, settled u64, upto u64, time u64, runs u32, version u32, then for each
 *   number u64, order u64, base u8, bytes u64, chunks u64, pieces u32, index u32, index x chunk */
void image_form_encode(const struct image_form *f, struct strbuf *out);
int image_form_decode(const void *p, size_t n, struct image_form *ret_form); /* ERR_FORMAT */
void image_form_free(struct image_form *f);                                  /* empty again */
/* The run of that number, or NULL. */
struct image_run *image_form_find(const struct image_form *f, uint64_t number);
/* How many runs a record may name. */
#define IMAGE_FORM_RUNS 4096u

/* What RECORD_IMAGE_PIECE (behind its list of chunks) and RECORD_IMAGE_DROP say: a piece of a run,
 * referred to from now on, or no more. number u64, piece u32, count u32, ids u64 LE. */
struct image_piece {
    uint64_t number;
    uint32_t piece, count;
    uint64_t *ids;
};
void image_piece_encode(const struct image_piece *p, struct strbuf *out);
/* ERR_FORMAT. *ret_piece's ids from mem_alloc. */
int image_piece_decode(const void *p, size_t n, struct image_piece *ret_piece);
void image_piece_key(uint64_t number, uint32_t piece, uint8_t key[IMAGE_PIECE_LEN]);
/* Is this the key of a piece, and of which? */
bool image_piece_is(struct kv_slice key, uint64_t *ret_number, uint32_t *ret_piece);
/* The piece that a row of KV_META has. ERR_FORMAT. *ret_piece's ids from mem_alloc. */
int image_piece_from_row(const struct kv_row *row, struct image_piece *ret_piece);
/* The range of these rows. */
static inline struct kv_slice image_pieces_from(void)
{
    return (struct kv_slice){IMAGE_PIECE_KEY, sizeof(IMAGE_PIECE_KEY) - 1};
}
static inline struct kv_slice image_pieces_to(void)
{
    return (struct kv_slice){IMAGE_PIECE_END, sizeof(IMAGE_PIECE_END) - 1};
}

/* What the chunks of all runs take, those that nobody else refers to. On media: u64 LE each. */
struct image_sum {
    uint64_t chunks, raw, stored, referenced;
};
#define IMAGE_SUM_SIZE 32u
void image_sum_encode(const struct image_sum *s, uint8_t out[IMAGE_SUM_SIZE]);
int image_sum_decode(struct kv_slice value, struct image_sum *ret_sum); /* ERR_FORMAT */

/* A row in a run: table u8, gone u8, key length u16, value length u32, key, value. `value` NULL: it
 * is deleted. Chunks cut the rows' bytes anywhere. */
void image_row_encode(struct strbuf *out, enum kv_table t, struct kv_slice key,
                      const struct kv_slice *value);
/* The row at the front of n bytes and its length. ERR_TRUNCATED: only its beginning is there.
 * ERR_FORMAT. */
int image_row_decode(const void *p, size_t n, struct kv_change *ret_row, size_t *ret_used);

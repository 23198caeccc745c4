/* Content: a stream of bytes kept as chunks and a recipe. Instances (study*.c) and objects in
 * buckets (bucket*.c) are two kinds of it: what they share is here.
 *
 *   in     struct content_put: bytes become chunks, chunks become stripes while the stream still
 *          arrives, and in the end there are a list of chunks and a recipe for a record
 *   apply  content_require, content_ref: a recipe's references within a record's transaction
 *   out    struct content: a recipe opened, its chunks pinned, ranges of it read
 *
 * Where chunks begin and end is the caller's choice: whoever knows the format of a stream cuts it
 * so that what is alike is found again (study_cut.c). What all this is called and filed under is
 * the caller's too.
 *
 * Memory of a put is bounded: CONTENT_IN_FLIGHT bytes of chunks being worked on, one stripe that is
 * being gathered, and some 150 bytes for each chunk. All puts of a partition share one budget.
 */
#pragma once

#include "daemon/partition_priv.h"
#include "daemon/recipe.h"

#define CONTENT_DIGEST FINGERPRINT_SIZE

struct contents; /* one for each partition: the budget */
struct content_put;

int contents_new(struct partition *p, struct contents **ret_contents);
void contents_free(struct contents *cs); /* NULL is fine */
void contents_observe(struct contents *cs, struct metrics *m);

/* ---- In ---- */

/* Begins a stream of about `size_hint` bytes (0: unknown). Waits while the budget is taken: small
 * streams take little of it if their size is told. ERR_NOSPC when the store is full, or could never
 * take so much; ERR_OVERLOAD after half a minute, or past the limit of waiters. Suspends. */
int content_put_begin(struct contents *cs, uint64_t size_hint, struct content_put **ret_put);
/* Keeps room for the next `len` bytes of the stream, and counts them: before they are put.
 * ERR_TOOBIG past `max` bytes in all, ERR_NOSPC; ERR_OVERLOAD when they are more than was announced
 * and the budget is taken. Suspends. */
int content_put_room(struct content_put *cp, size_t len, uint64_t max);

enum content_flags {
    CONTENT_OPAQUE = 1,     /* compressed already: do not try */
    CONTENT_UNDIGESTED = 2, /* not part of the digest */
};
/* Appends bytes to the chunk *chunk, which is begun if that is -1, with the flags of its first
 * bytes; full ones are sent on their way. Waits while too much is in flight. ERR_TOOBIG when the
 * recipe would become too long. Suspends. */
int content_put_bytes(struct content_put *cp, int64_t *chunk, unsigned flags, const void *p,
                      size_t n);
/* Nothing more is to come for this chunk (-1: there is none). */
void content_put_end_chunk(struct content_put *cp, int64_t *chunk);
/* All chunks were ended: waits until all is durable. Any error of the stream's work. Suspends. */
int content_put_finish(struct content_put *cp);

/* Digest of chunks' fingerprints and of how the stream is made of them: the same for the same bytes
 * cut in the same places. After content_put_finish. */
void content_put_digest(const struct content_put *cp, uint8_t ret_digest[CONTENT_DIGEST]);
/* Appends the list of chunks that a record begins with. After content_put_finish. */
void content_put_list(const struct content_put *cp, struct strbuf *out);
/* Appends the recipe. */
void content_put_recipe(const struct content_put *cp, struct strbuf *out);
uint64_t content_put_size(const struct content_put *cp);
uint32_t content_put_chunks(const struct content_put *cp);
uint32_t content_put_pieces_left(const struct content_put *cp); /* of a recipe's length */
/* After the record was applied, or instead. Suspends. NULL is fine. */
void content_put_free(struct content_put *cp);

/* ---- Applying ---- */

/* Loads and decodes the recipe of content that is to go, from under a key of KV_RECIPE, and tells
 * the transaction of its chunks. The recipe begins `skip` bytes into the row. Where there is none
 * *ret_recipe stays clear: what is lost already can be deleted or replaced, and nobody refers to
 * chunks on its behalf. ERR_FORMAT when it is there and cannot be read. Suspends. */
int content_load_old(struct kv *kv, struct kv_slice key, size_t skip, struct chunk_txn *txn,
                     struct recipe *ret_recipe);
/* Tells the transaction of the chunks of a recipe that comes. */
void content_require(struct chunk_txn *txn, const struct recipe *r);
void content_ref(struct chunk_txn *txn, const struct recipe *r, int64_t delta);

/* ---- Out ---- */

struct content {
    struct recipe recipe;
    struct chunk_pins *pins;
};

/* Opens content by its encoded recipe: from now on it is readable, whatever becomes of it. Clear
 * *c before. ERR_NOENT when a chunk is gone: the recipe is not current any more; ERR_FORMAT.
 * Suspends. */
int content_open(struct partition *p, const void *recipe, size_t len, struct content *c);
/* ERR_LOST when a chunk of the recipe is known to be lost. Suspends. */
int content_look_for_lost(struct partition *p, const struct recipe *r);
/* Up to len bytes at off; fewer only at the end. Verified. ERR_LOST, ERR_IO. Suspends. */
int content_read(struct content *c, uint64_t off, void *buf, size_t len, size_t *ret_len);
void content_close(struct content *c); /* a clear or failed one is fine */

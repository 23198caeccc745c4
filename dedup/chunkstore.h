/* The chunk store: the face of deduplication.
 *
 * Bytes go in as chunks: fingerprinted, found again or compressed and written in stripes. What comes
 * out is a chunk id. A chunk is described by its row in the chunk table: where its bytes lie, their
 * CRC, the fingerprint, and how many references volume maps and recipes hold. Ids never come back.
 *
 * Changes of state are made by the records of those who use chunks. A record carries the list of the
 * new chunks it brings (chunk_batch_encode); applying it registers them and moves reference counts
 * within a chunk_txn. A chunk without references stays until the collector removes it by a record of
 * its own, and meanwhile may be found and referenced again. What a batch in flight has found or
 * written is pinned in memory, and the collector leaves it alone: so a record never refers to a chunk
 * that is gone.
 *
 * All calls are made on the loop; those that suspend say so.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dedup/fingerprint.h"
#include "lib/kv/kv.h"
#include "lib/store/segment.h"

#define CHUNK_MAX (256u * 1024) /* raw bytes of a chunk: bounds an I/O and what one core compresses */

struct chunkstore;
struct chunk_batch;

struct chunkstore_options {
    size_t cache_rows;  /* chunk rows kept in memory; 0: 256 Ki (about 45 MB) */
    uint64_t space_kept; /* bytes of segments that only internal writes may use */
};

int chunkstore_new(struct env *env, struct kv *kv, struct segments *segments,
                   struct record_log *log, const struct chunkstore_options *options,
                   struct chunkstore **ret_store);
void chunkstore_free(struct chunkstore *cs); /* no batch or txn alive; NULL is fine */

/* Loads counters at start, before replay. Suspends. */
int chunkstore_load(struct chunkstore *cs);

/* ---- Ingest ---- */

/* One chunk to store. */
struct chunk_item {
    const uint8_t *data; /* at most CHUNK_MAX bytes; see chunk_batch_add for how long they stay */
    size_t len;
    bool opaque;         /* compressed already: do not try */
    uint64_t id;         /* out */
    uint8_t fingerprint[FINGERPRINT_SIZE]; /* out */
};

/* A batch of chunks that one record will name. */
struct chunk_batch *chunk_batch_new(struct chunkstore *cs, enum segment_stream stream);

/* Starts work on n items and returns; `done(owner)` is called when the items' data is no longer needed
 * (ids are set by then, or the batch has failed). Items and data stay put until then. Groups of a batch
 * are worked on in parallel on the cpu lane. Does not suspend. */
void chunk_batch_add(struct chunk_batch *b, struct chunk_item *items, size_t n,
                     void (*done)(void *owner), void *owner);

/* As chunk_batch_add, in suitable pieces, and waits. Returns the batch's error. Suspends. */
int chunk_batch_add_wait(struct chunk_batch *b, struct chunk_item *items, size_t n);

/* Waits for all groups and writes what is left in memory: afterwards every new chunk is durable. An
 * error of any step is returned (ERR_NOSPC, ERR_IO, ...) and the batch is good for nothing but
 * freeing. Suspends. */
int chunk_batch_finish(struct chunk_batch *b);

/* Appends the list of the batch's new chunks, for a record's body. */
void chunk_batch_encode(const struct chunk_batch *b, struct strbuf *out);

/* After the record was applied, or the batch given up: drops pins. Suspends when groups are still at
 * work. NULL is fine. */
void chunk_batch_free(struct chunk_batch *b);

/* Bytes given, found again, and stored after compression: for the one who asks what it cost. */
struct chunk_batch_stats {
    uint64_t bytes, found_bytes, stored_bytes, new_chunks;
};
void chunk_batch_get_stats(const struct chunk_batch *b, struct chunk_batch_stats *ret_stats);

/* ---- Reading ---- */

struct chunk_read {
    uint64_t id;
    uint32_t off, len; /* within the raw chunk */
    uint8_t *dst;
    int result; /* out: ERR_NOENT when the chunk is gone (the map it came from is stale) */
};

/* Reads ranges of chunks, verified; neighbours are merged. Each gets its result; returns 0 or the first
 * error. Suspends. */
int chunkstore_read(struct chunkstore *cs, struct chunk_read *reads, size_t n);

/* Keeps chunks readable, whatever happens to their references, until unpinned. ERR_NOENT when one is
 * gone already. Suspends. */
struct chunk_pins;
int chunkstore_pin(struct chunkstore *cs, const uint64_t *ids, size_t n,
                   struct chunk_pins **ret_pins);
void chunkstore_unpin(struct chunk_pins *pins); /* NULL is fine; does not suspend */

/* ---- Applying records ---- */

struct chunk_txn;

/* A transaction for one record. First the needs are told, then loaded, then everything changes at once
 * without suspension, then the changed rows go into the KV batch. */
struct chunk_txn *chunk_txn_begin(struct chunkstore *cs);
/* Takes the list of new chunks at the front of a record's body; sets *ret_used to its length. Their
 * rows appear at chunk_txn_commit. ERR_FORMAT. Does not suspend. */
int chunk_txn_take_new(struct chunk_txn *t, const uint8_t *body, size_t len, size_t *ret_used);
/* Only the length of that list: for records whose chunks are in the table already (replay). ERR_FORMAT. */
int chunk_new_length(const uint8_t *body, size_t len, size_t *ret_used);
/* The row of this id will be changed. Does not suspend. */
void chunk_txn_need(struct chunk_txn *t, uint64_t id);
/* Loads what is needed. ERR_FORMAT when a row does not exist. Suspends. */
int chunk_txn_load(struct chunk_txn *t);
/* Changes the references of a needed or new chunk. Does not suspend. */
void chunk_txn_ref(struct chunk_txn *t, uint64_t id, int64_t delta);
/* Puts all changes into the batch and ends the transaction. Does not suspend. */
void chunk_txn_commit(struct chunk_txn *t, struct kv_batch *batch);
void chunk_txn_abort(struct chunk_txn *t); /* before any chunk_txn_ref; NULL is fine */

/* Applies RECORD_CHUNK_FREE. Suspends. */
int chunkstore_apply_free(struct chunkstore *cs, const uint8_t *body, size_t len,
                          struct kv_batch *batch);

/* ---- Space ---- */

/* Removes up to a bounded number of chunks without references; returns how many. Suspends. */
int chunkstore_collect(struct chunkstore *cs, size_t *ret_freed);
bool chunkstore_collect_due(const struct chunkstore *cs);

/* ERR_NOSPC when a user's write of `bytes` may not be accepted any more. Does not suspend. */
int chunkstore_admit(const struct chunkstore *cs, uint64_t bytes);

struct chunkstore_stats {
    uint64_t chunks, raw_bytes, stored_bytes; /* in the table */
    uint64_t referenced_bytes; /* raw bytes times references: what users see */
    uint64_t cache_rows, found, missed; /* fingerprint look-ups since start */
};
void chunkstore_get_stats(const struct chunkstore *cs, struct chunkstore_stats *ret_stats);

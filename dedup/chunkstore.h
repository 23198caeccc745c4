/* The chunk store: the face of deduplication.
 *
 * Bytes go in as chunks: fingerprinted, found again or compressed and written in stripes. What
 * comes out is a chunk id. A chunk is described by its row in the chunk table: where its bytes lie,
 * their CRC, the fingerprint, and how many references volume maps and recipes hold. Ids never come
 * back.
 *
 * Changes of state are made by the records of those who use chunks. A record carries the list of
 * the chunks it relies on (chunk_batch_encode), new ones and found ones; applying it registers them
 * and moves reference counts within a chunk_txn. A chunk leaves the table with its last reference,
 * at once. A record in flight may rely on a chunk that an earlier record frees before it is
 * applied: then it brings the chunk back from its own list. The bytes are still there, for whoever
 * pins a chunk (a batch, a reader) holds its segment.
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

#define CHUNK_MAX \
    (256u * 1024) /* raw bytes of a chunk: bounds an I/O and what one core compresses */

struct chunkstore;
struct metrics;
struct chunk_batch;

struct chunkstore_options {
    size_t cache_rows;   /* chunk rows kept in memory; 0: 256 Ki (about 45 MB) */
    uint64_t space_kept; /* bytes of segments that only internal writes may use */
};

int chunkstore_new(struct env *env, struct kv *kv, struct segments *segments,
                   struct record_log *log, const struct chunkstore_options *options,
                   struct chunkstore **ret_store);
/* Other drives, other space: sets what only internal writes may use. Does not suspend. */
void chunkstore_set_kept(struct chunkstore *cs, uint64_t space_kept);
/* All that users may not take: this, and what chunkstore_keep keeps. */
uint64_t chunkstore_kept(const struct chunkstore *cs);
void chunkstore_free(struct chunkstore *cs); /* no batch or txn alive; NULL is fine */

/* Loads counters at start, before replay. Suspends. */
int chunkstore_load(struct chunkstore *cs);

/* ---- Ingest ---- */

/* One chunk to store. */
struct chunk_item {
    const uint8_t *data; /* at most CHUNK_MAX bytes; see chunk_batch_add for how long they stay */
    size_t len;
    bool opaque;                           /* compressed already: do not try */
    uint64_t id;                           /* out */
    uint8_t fingerprint[FINGERPRINT_SIZE]; /* out */
};

/* A batch of chunks that one record will name. */
struct chunk_batch *chunk_batch_new(struct chunkstore *cs, enum segment_stream stream);

/* Starts work on n items and returns; `done(owner)` is called when the items' data is no longer
 * needed (ids are set by then, or the batch has failed). Items and data stay put until then. Groups
 * of a batch are worked on in parallel on the cpu lane. Does not suspend. */
void chunk_batch_add(struct chunk_batch *b, struct chunk_item *items, size_t n,
                     void (*done)(void *owner), void *owner);

/* As chunk_batch_add, in suitable pieces, and waits. Returns the batch's error. Suspends. */
int chunk_batch_add_wait(struct chunk_batch *b, struct chunk_item *items, size_t n);

/* Waits for all groups and writes what is left in memory: afterwards every new chunk is durable. An
 * error of any step is returned (ERR_NOSPC, ERR_IO, ...) and the batch is good for nothing but
 * freeing. Suspends. */
int chunk_batch_finish(struct chunk_batch *b);

/* Appends the list of the batch's chunks, new and found, for a record's body. */
void chunk_batch_encode(const struct chunk_batch *b, struct strbuf *out);

/* After the record was applied, or the batch given up: drops pins. Suspends when groups are still
 * at work. NULL is fine. */
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

/* Reads ranges of chunks, verified; neighbours are merged. Each gets its result; returns 0 or the
 * first error. Suspends. */
int chunkstore_read(struct chunkstore *cs, struct chunk_read *reads, size_t n);

/* Brings the rows of these chunks into the cache: for who will soon submit a record that changes
 * them, so that applying it need not wait for the KV store, and others with it. Ids that are not
 * there are no error. Suspends. */
int chunkstore_warm(struct chunkstore *cs, const uint64_t *ids, size_t n);

/* Lost chunks (lost.c, renew.c). Whoever finds out that a chunk can be had from no columns, where
 * it lies now, says so, and whoever finds that it can be had. Neither suspends. */
void chunkstore_note_lost(struct chunkstore *cs, uint64_t id);
void chunkstore_note_back(struct chunkstore *cs, uint64_t id);
/* Is there something to be journaled of them? Then this journals some of it; errors of that, and of
 * the KV store. Suspends. */
bool chunkstore_lost_news(const struct chunkstore *cs);
int chunkstore_tell_lost(struct chunkstore *cs);
/* Applies RECORD_CHUNK_LOST. Suspends when rows are not cached. */
int chunkstore_apply_lost(struct chunkstore *cs, const uint8_t *body, size_t len, bool replay,
                          struct kv_batch *batch);
/* The row of KV_META that says that a chunk is lost: they lie between those of ids 0 and
 * UINT64_MAX.
 */
#define CHUNK_LOST_KEY 12u
void chunk_lost_key(uint64_t id, uint8_t key[CHUNK_LOST_KEY]);
bool chunk_lost_id(struct kv_slice key, uint64_t *ret_id); /* false: it is no such key */
/* ERR_LOST when one of these is known to be lost, or is not in the table. Reads rows only.
 * Suspends. */
int chunkstore_look_for_lost(struct chunkstore *cs, const uint64_t *ids, size_t n);

/* Keeps chunks readable (by chunkstore_read_pinned), whatever happens to their references, until
 * unpinned. ERR_NOENT when one is gone already. Suspends. */
struct chunk_pins;
int chunkstore_pin(struct chunkstore *cs, const uint64_t *ids, size_t n,
                   struct chunk_pins **ret_pins);
void chunkstore_unpin(struct chunk_pins *pins); /* NULL is fine; does not suspend */
/* As chunkstore_read, with `id` an index into the pins. Suspends. */
int chunkstore_read_pinned(struct chunk_pins *pins, struct chunk_read *reads, size_t n);

/* ---- Applying records ---- */

struct chunk_txn;

/* A transaction for one record. First the needs are told, then loaded, then everything changes at
 * once without suspension, then the changed rows go into the KV batch. */
struct chunk_txn *chunk_txn_begin(struct chunkstore *cs);
/* Takes the list of chunks at the front of a record's body; sets *ret_used to its length.
 * ERR_FORMAT. Does not suspend. */
int chunk_txn_take(struct chunk_txn *t, const uint8_t *body, size_t len, size_t *ret_used);
/* Only the length of that list. ERR_FORMAT. */
int chunk_list_length(const uint8_t *body, size_t len, size_t *ret_used);
/* The row of this id will be changed: references to it go. Does not suspend. */
void chunk_txn_need(struct chunk_txn *t, uint64_t id);
/* References to it come, so there must be one. Does not suspend. */
void chunk_txn_require(struct chunk_txn *t, uint64_t id);
/* Loads what is needed. ERR_FORMAT when a required chunk neither exists nor is listed. Suspends. */
int chunk_txn_load(struct chunk_txn *t);
/* Changes the references of a needed or listed chunk. A reference to what is not in the table, or
 * one more than its row knows of, goes without a trace: metadata was lost, and who refers to it can
 * be deleted or overwritten all the same. Does not suspend. */
void chunk_txn_ref(struct chunk_txn *t, uint64_t id, int64_t delta);
/* Puts all changes into the batch and ends the transaction: chunks without references are gone,
 * listed ones that got none never came to be. Does not suspend. */
void chunk_txn_commit(struct chunk_txn *t, struct kv_batch *batch);
/* The batches given to chunk_txn_commit are in the KV store: changed rows may leave the cache. Does
 * not suspend. */
void chunkstore_written(struct chunkstore *cs);
void chunk_txn_abort(struct chunk_txn *t); /* before any chunk_txn_ref; NULL is fine */

/* ---- Compaction (compact.c) ---- */

/* Segments with fewer sixteenths alive than this are compacted: when nobody needs the space, when
 * it becomes scarce, and when writes wait for it. */
#define COMPACT_FILL_IDLE 8u
#define COMPACT_FILL_SOON 12u
#define COMPACT_FILL_MAX  15u

/* Is there a reason to compact, and how urgent is it? */
enum compact_need { COMPACT_NOTHING, COMPACT_IDLE, COMPACT_SOON, COMPACT_NOW };
enum compact_need chunkstore_compact_need(const struct chunkstore *cs);

/* May compaction move what takes more room than it gives: begin with a segment, or go on (`begun`)
 * with one, within a part of what is kept? Does not suspend. */
bool chunkstore_moves_have_room(const struct chunkstore *cs, bool begun);
/* Are there segments to be moved for lack of parity, or from drives that leave, and no room for it?
 * Does not suspend. */
bool chunkstore_moves_wait(const struct chunkstore *cs);

/* Moves what is alive out of one segment, so that it can be freed. `pause`, if not NULL, is called
 * between steps with the time the step took and may suspend; when it returns false the work ends
 * early. ERR_NOENT: there is no segment worth it. Suspends. */
int chunkstore_compact(struct chunkstore *cs, enum compact_need need,
                       bool (*pause)(void *arg, uint64_t took_ns), void *arg);

/* Applies RECORD_CHUNK_MOVE. Suspends when rows are not cached. */
int chunkstore_apply_move(struct chunkstore *cs, const uint8_t *body, size_t len,
                          struct kv_batch *batch);

/* Does any write wait for room? */
bool chunkstore_room_wanted(const struct chunkstore *cs);
/* Who waits for room looks again; when nothing was `gained`, it gives up. */
void chunkstore_room_changed(struct chunkstore *cs, bool gained);
/* Waits until somebody wants room, or until the deadline. */
void chunkstore_wait_wanted(struct chunkstore *cs, uint64_t deadline);
/* Nobody may wait for room any more. */
void chunkstore_stop(struct chunkstore *cs);

/* ---- Scrub (gather.c) ---- */

/* A chunk, and where it lies. */
struct chunk_place {
    uint64_t id;
    struct segment_loc loc;
};

/* What is alive in a segment, in the order in which it lies; *ret_places from mem_alloc. The caller
 * holds the segment. What dies or moves meanwhile may be there or not. It may take minutes: `go_on`
 * is asked now and then, and ends it with ERR_CANCELED by returning false. ERR_KV, ERR_FORMAT.
 * Suspends. */
int chunkstore_gather(struct chunkstore *cs, uint64_t segment, bool (*go_on)(void *arg), void *arg,
                      struct chunk_place **ret_places, size_t *ret_count);
/* Is the chunk still in the table, and there? False too where that cannot be found out. Suspends.
 */
bool chunkstore_lies_at(struct chunkstore *cs, const struct chunk_place *place);

/* ---- Space ---- */

/* ERR_NOSPC when a user's write of `bytes` may not be accepted any more. Does not suspend. */
int chunkstore_admit(const struct chunkstore *cs, uint64_t bytes);

/* ERR_NOSPC when there would be no room for `bytes` even if all that is dead were gained: for what
 * is announced long before it comes, and must not make others wait. Does not suspend. */
int chunkstore_admit_ever(const struct chunkstore *cs, uint64_t bytes);

/* As chunkstore_admit, but when there is no room and compaction can make some, waits for it. */
int chunkstore_await_room(struct chunkstore *cs, uint64_t bytes);

/* Admits a write and keeps its room from others that are admitted meanwhile, until given back when
 * the write has ended. Without it, many writes admitted at once could eat what is kept for the
 * internal ones. Waits as chunkstore_await_room. ERR_NOSPC. */
int chunkstore_reserve(struct chunkstore *cs, uint64_t bytes);
void chunkstore_unreserve(struct chunkstore *cs, uint64_t bytes);

struct chunkstore_stats {
    uint64_t chunks, raw_bytes, stored_bytes; /* in the table */
    uint64_t referenced_bytes;                /* raw bytes times references: what users see */
    uint64_t cache_rows, found, missed;       /* fingerprint look-ups since start */
    uint64_t compacted, moved_bytes;          /* segments emptied, bytes moved, since start */
    uint64_t renewed;                         /* chunks that were lost, and came again */
    uint64_t lost;                            /* that are known to be; no more are remembered */
    uint64_t rehomed_bytes; /* of these, to restore parity, to empty drives, to make them even */
    uint64_t stray_refs;    /* that went without a trace, since start: metadata was lost */
};
/* Keeps so many bytes from users, beside the options' space_kept. */
void chunkstore_keep(struct chunkstore *cs, uint64_t bytes);

/* Registers the metrics of ingest and compaction. */
void chunkstore_observe(struct chunkstore *cs, struct metrics *m);
void chunkstore_get_stats(const struct chunkstore *cs, struct chunkstore_stats *ret_stats);

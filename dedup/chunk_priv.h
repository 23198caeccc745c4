/* The chunk store's state, shared by chunktable.c (rows, cache, transactions), chunkbatch.c
 * (ingest) and chunkread.c. */
#pragma once

#include "dedup/chunkstore.h"
#include "dedup/compress.h"
#include "lib/base/hmap.h"
#include "lib/base/list.h"
#include "lib/base/metric.h"
#include "lib/rt/sync.h"

/* The fingerprint index knows a chunk by so many bytes of its fingerprint: enough to find it, and
 * the chunk's row has the whole to make sure. Of chunks that agree in them, which will hardly ever
 * happen, one is not found again, and is stored twice if it comes twice. */
#define CHUNK_FP_KEY 8u

/* A row of the chunk table in memory. */
struct chunk_row {
    struct hmap_node by_id, by_fp;
    struct list lru; /* in the cache's order of use; off the list while pinned */
    uint64_t id;
    struct segment_loc loc;
    uint32_t raw;
    uint8_t codec, fp_algorithm;
    bool registered; /* in the chunk table (a new chunk is not, until its record is applied) */
    bool gone;       /* was in it: stays for those who pin it, and for loads that bring old news */
    bool holding;    /* holds its segment, while pinned: unless that is not there (damage) */
    /* Where it lay before it was moved, held too while pinned: whoever pinned it then may have
     * written the old place into a record that is on its way. */
    struct chunk_former *former;
    uint32_t pins;
    uint64_t changed; /* the load tick at its last change: see chunk_rows_get */
    uint64_t refs;
    uint8_t fp[FINGERPRINT_SIZE];
};

struct chunk_former {
    struct chunk_former *next;
    uint64_t segment;
};

struct chunkstore {
    struct env *env;
    struct kv *kv;
    struct segments *segments;
    struct record_log *log;
    struct chunkstore_options options;
    struct hmap by_id, by_fp; /* cached rows; by_fp only registered ones that may be found */
    struct list lru;
    size_t rows;
    struct list loads; /* loads from the KV store under way, oldest first */
    uint64_t load_tick;
    uint64_t writing; /* the tick of the oldest change that the KV store may lack; 0: none */
    uint64_t next_id;
    uint64_t reserved; /* bytes of user writes under way */
    uint64_t kept;     /* chunkstore_keep */
    struct fiber_mutex compacting;
    struct hmap lost;            /* by id: see lost.c */
    bool lost_changed;           /* there is something to be journaled of them */
    struct fiber_mutex renewing; /* one at a time */
    bool closing;
    uint64_t room_joined, room_left; /* bytes that ever began and ended to wait for room */
    unsigned room_waiters;   /* of them, those who came or looked again since it last changed */
    uint64_t room_failures;  /* times compaction had nothing to give them */
    struct fiber_mutex pace; /* whose turn it is: see room.c */
    unsigned paced;          /* writes that wait for their turn */
    uint64_t pace_credit;    /* bytes that the next may take at once */
    struct fiber_cond room_changed; /* segments were freed, or there is nothing to be gained */
    struct fiber_cond room_wanted;
    struct chunkstore_stats stats;
    struct metric_hist hash_time, look_up_time, compress_time, move_time;
    struct metric_counter moved_chunks;
};

/* Cached row of an id, or NULL. Does not suspend. */
struct chunk_row *chunk_row_cached(struct chunkstore *cs, uint64_t id);
/* One that can be read or, with `lost_too`, renewed. */
struct chunk_row *chunk_row_by_fp(struct chunkstore *cs, const uint8_t fp[FINGERPRINT_SIZE],
                                  bool lost_too);
/* Loads and pins rows; NULL where there is none, and everywhere on failure. A row that lies in a
 * segment that is not there is as good as none: nobody can read it, and nobody may find it in place
 * of the same bytes stored anew. Suspends when one is not cached. */
int chunk_rows_get(struct chunkstore *cs, const uint64_t *ids, size_t n, struct chunk_row **rows);
/* These too: for records, which count references to it as to any, so that it goes with the last. */
int chunk_rows_all(struct chunkstore *cs, const uint64_t *ids, size_t n, struct chunk_row **rows);
void chunk_row_pin(struct chunkstore *cs, struct chunk_row *r);
void chunk_row_unpin(struct chunkstore *cs, struct chunk_row *r); /* NULL is fine */
/* Is it a chunk, and there? */
bool chunk_row_lies_at(const struct chunk_row *r, const struct segment_loc *loc);
/* A new, pinned, unregistered row under a fresh id. */
struct chunk_row *chunk_row_new(struct chunkstore *cs);

static inline uint64_t chunk_fp_hash(const uint8_t *fp)
{
    uint64_t h;

    __builtin_memcpy(&h, fp, sizeof(h)); /* a fingerprint is its own hash */
    return h;
}

/* Bytes as they are stored. */
struct chunk_form {
    uint8_t *bytes; /* from mem_alloc, the caller's */
    uint8_t codec;
    uint32_t stored, crc;
};
/* Packs an item. On the lane or anywhere; does not suspend. */
void chunk_pack(const struct chunk_item *item, struct chunk_form *ret_form);

/* renew.c. Can the bytes of a row not be had? A hopeless one is not to be found any more. */
bool chunk_is_lost(const struct chunkstore *cs, const struct chunk_row *r);
bool chunk_is_hopeless(const struct chunkstore *cs, uint64_t id);
/* The bytes of a pinned row that is lost have come: makes it readable again, or hopeless. Errors of
 * writing; ERR_LOST when neither is possible. Suspends. */
int chunk_renew(struct chunkstore *cs, struct chunk_row *r, const struct chunk_item *item);

/* lost.c. Is the chunk known to be lost? */
bool chunk_lost_known(const struct chunkstore *cs, uint64_t id);
/* Its bytes came, in a form other than its own: it is hopeless. False: it cannot be remembered. */
bool chunk_lost_give_up(struct chunkstore *cs, uint64_t id);
/* It goes, or could be moved: what is known of it goes too, with its row. */
void chunk_lost_drop(struct chunkstore *cs, uint64_t id, struct kv_batch *batch);
int chunk_lost_load(struct chunkstore *cs); /* at start; suspends */
void chunk_lost_free(struct chunkstore *cs);
/* compact.c: writes the stored bytes of a pinned row once more, and has them be there. Suspends. */
int chunk_rewrite(struct chunkstore *cs, struct chunk_row *r, const uint8_t *stored);

/* A row's stored bytes, as they are to be written: the same wherever they lie. */
struct segment_chunk chunk_row_stored(const struct chunk_row *r, const uint8_t *stored);
/* A registered, pinned row's bytes are at `loc` from now on (same stored bytes). */
void chunk_row_relocate(struct chunkstore *cs, struct chunk_row *r, const struct segment_loc *loc);
/* Puts a row that changed into the batch; it stays in the cache until that is written. */
void chunk_row_put(struct chunkstore *cs, struct chunk_row *r, struct kv_batch *batch);
/* Called before a record's changes are put: see chunk_txn_commit. */
void chunk_rows_writing(struct chunkstore *cs);

#define CHUNK_ROW_SIZE 82u

/* Encodes / decodes the row as stored in KV_CHUNK. */
void chunk_row_encode(const struct chunk_row *r, uint8_t out[CHUNK_ROW_SIZE]);
int chunk_row_decode(const void *p, size_t n, struct chunk_row *r);

/* The table's totals: the row "chunks" of KV_META. */
#define CHUNK_TOTALS_KEY  "chunks"
#define CHUNK_TOTALS_SIZE 40u

struct chunk_totals {
    uint64_t next_id; /* above every id in the table */
    uint64_t chunks, raw, stored;
    uint64_t referenced; /* raw bytes times references */
};

void chunk_totals_encode(const struct chunk_totals *t, uint8_t out[CHUNK_TOTALS_SIZE]);
int chunk_totals_decode(const void *p, size_t n, struct chunk_totals *ret_totals);

/* A chunk in a record's list. */
#define CHUNK_LISTED_SIZE 78u
#define CHUNK_LISTED_NEW  1u /* flag: it cannot be in the table yet */
void chunk_listed_encode(const struct chunk_row *r, uint32_t flags, uint8_t out[CHUNK_LISTED_SIZE]);

/* Segments: write-once logs of erasure-coded stripes, one fragment per drive.
 *
 * A segment has a geometry (k+m) and one slot on each of k+m drives. Stripes are appended to it; a
 * stripe is durable on all its drives or does not count (F5), so fragments are never incomplete:
 * when a drive fails under a stripe, the drive is put out, the segment is sealed, and the stripe is
 * written to a new segment on the drives that are left. With fewer drives than the profile wants
 * new segments keep m and shrink k, so that new data stays as safe as the profile promises for as
 * long as the number of drives allows. A drive that comes back is therefore whole for all segments
 * it is in.
 *
 * Reads are verified against the CRC that the chunk table holds. What fails, or lies on a drive
 * that is gone, is decoded from the other columns: combinations of k columns are tried until the
 * CRC fits, so that silent corruption of up to m columns is found out and never served.
 *
 * Drives may come and go while the store runs (member.h): what has a column on a drive that leaves,
 * or on one that has more than its fair share, is emptied by compaction like what is mostly dead.
 *
 * The table of segments is in memory, loaded from the KV store at start (a row is about 100 bytes
 * for 16 MiB of data). Slots taken are derived from it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/buf.h"
#include "lib/base/hmap.h"
#include "lib/base/list.h"
#include "lib/base/strbuf.h"
#include "lib/store/drive.h"
#include "lib/store/record.h"

struct segments;
struct metrics;

/* Data that dies together lies together: each stream has an open segment of its own. What outlived
 * a segment goes on in a stream of survivors, which will live longer still. On media. */
enum segment_stream {
    SEGMENT_VOLUMES,
    SEGMENT_STUDIES,
    SEGMENT_VOLUMES_KEPT,
    SEGMENT_STUDIES_KEPT,
    SEGMENT_IMAGE, /* of the metadata; what outlived a segment stays in this stream */
    SEGMENT_STREAMS
};

enum segment_state { SEGMENT_OPEN, SEGMENT_SEALED };

struct segment {
    uint64_t id;
    enum segment_state state;
    enum segment_stream stream;
    uint8_t k, m;
    uint32_t drive[FORMAT_COLS_MAX], slot[FORMAT_COLS_MAX];
    uint32_t used;   /* units of each column up to the end of the last stripe applied */
    uint64_t live;   /* stored bytes of chunks in the chunk table */
    uint64_t chunks; /* their number */
    /* In memory only: */
    uint32_t next;    /* units reserved; >= used */
    uint32_t readers; /* reads in flight */
    uint32_t holds;   /* of stripes whose record is not applied yet, and of pinned chunks */
    bool freeing;     /* a record that frees it is on its way */
    bool ailing;      /* what is alive in it is to be written again: see segment_ails */
    bool dirty;       /* its row changed in the record being applied */
    uint8_t tries;    /* of compaction that left something: see segment_compact_failed */
    struct hmap_node node;
    struct list link, dirty_link;
    struct segment_filed { /* a place on a list, and which; NULL: none */
        struct list link, *list;
    } fill, parity, leaves;
};

/* Where a stripe lies. */
struct segment_stripe {
    uint64_t segment;
    uint32_t offset, width; /* units in each column */
};

/* A stored chunk: its bytes within the data of a stripe. */
struct segment_loc {
    struct segment_stripe stripe;
    uint32_t position, stored; /* bytes */
    uint32_t crc;
};

/* Largest stored size of one chunk, and how much of them one stripe may take. */
#define SEGMENT_CHUNK_MAX  (1u << 20)
#define SEGMENT_STRIPE_MAX (2u << 20)

/* Stored bytes from which a stripe is worth writing; it should not have many more. */
size_t segment_stripe_good(const struct segments *ss);

int segments_new(struct driveset *ds, struct record_log *log, struct segments **ret_segments);
void segments_free(struct segments *ss); /* NULL is fine */

/* ---- Writing ---- */

struct segment_chunk {
    const uint8_t *data; /* stored bytes */
    uint64_t id;
    uint32_t stored, raw, crc;
    uint8_t codec, fingerprint_algorithm;
    uint8_t fingerprint[32];
    uint32_t position; /* out */
};

/* Writes one stripe with the n chunks (together at most SEGMENT_STRIPE_MAX), durable on return;
 * sets their positions. The stripe's segment is held (not freed) until segment_release, to be
 * called when the record that names the chunks was applied or given up. ERR_NOSPC, ERR_IO.
 * Suspends. */
int segment_write(struct segments *ss, enum segment_stream stream, struct segment_chunk *chunks,
                  size_t n, struct segment_stripe *ret_stripe);
/* As segment_write, for what compaction moves. The last segment that there is room for is opened
 * only for what makes room: for volumes (the overlay is drained there), and here where a move
 * `gains`. */
int segment_write_moved(struct segments *ss, enum segment_stream stream, bool gains,
                        struct segment_chunk *chunks, size_t n, struct segment_stripe *ret_stripe);
/* Keeps a segment from being freed, until as many segment_release. Does not suspend. */
void segment_hold(struct segments *ss, uint64_t segment);
/* As segment_hold, for who only has a row's word that it is there. False: it is not, or not any
 * more, and nothing is held. */
bool segment_try_hold(struct segments *ss, uint64_t segment);
void segment_release(struct segments *ss, uint64_t segment);

/* ---- Reading ---- */

struct segment_read {
    struct segment_loc loc;
    struct buf *buf;     /* out: the caller drops it (NULL on error) */
    const uint8_t *data; /* out: stored bytes, within buf */
    int result;          /* out */
};

/* Reads and verifies chunks, merging neighbours. Each gets its own result; returns 0 or the first
 * error. The segments are protected from being freed from the call on. Suspends. */
int segment_read(struct segments *ss, struct segment_read *reads, size_t n);

/* Are fewer of a segment's drives there than it takes to read it? Not counting as gone those that
 * are only late. Does not suspend. */
bool segment_is_out_of_reach(const struct segments *ss, uint64_t segment);

/* What a stripe says of itself: one entry per chunk that was written into it. */
struct segment_entry {
    uint64_t id;
    struct segment_loc loc;
    uint32_t raw;
    uint8_t codec, fingerprint_algorithm;
    uint8_t fingerprint[32];
};

/* Reads the directory of the next stripe at or behind *offset (units; 0 to begin) and moves *offset
 * behind it. What does not read as a stripe is stepped over: it may be one that no record
 * ever named. *ret_entries from mem_alloc. ERR_NOENT at the end. The caller holds the segment.
 * Suspends. */
int segment_next_stripe(struct segments *ss, uint64_t segment, uint32_t *offset,
                        struct segment_entry **ret_entries, size_t *ret_count);

/* Calls `fn` with the directory of each stripe that k columns of the segment, whichever, say begins
 * at this unit. Where drives lie there can be several: one may show what a stripe was that was
 * never named, and was written over since, as long as another has the stripe that is there. Data
 * may look like one. The caller holds the segment. Suspends. */
int segment_stripes_at(struct segments *ss, uint64_t segment, uint32_t offset,
                       void (*fn)(void *arg, const struct segment_entry *entries, size_t n),
                       void *arg);

/* ---- State: called in the order of the journal, without suspending ---- */

/* Opening a segment of a stream seals the one before it. `context` is what the submitter gave. */
int segment_apply_open(struct segments *ss, const uint8_t *body, size_t len, void *context);
int segment_apply_free(struct segments *ss, const uint8_t *body, size_t len,
                       void (*gone)(void *arg, uint64_t segment), void *arg);

/* A chunk of `stored` bytes at `loc` appeared in or left the chunk table. Of a segment whose row is
 * lost there is nothing to count. */
void segment_account(struct segments *ss, const struct segment_loc *loc, bool add);

/* Walks the rows that changed since the last call, for the KV batch. */
void segment_take_dirty(struct segments *ss,
                        void (*row)(void *arg, uint64_t segment, const struct strbuf *value),
                        void *arg);
/* Takes a row as segment_take_dirty gave it, at start. */
int segment_load(struct segments *ss, uint64_t segment, const void *value, size_t len);
/* New segments get numbers from `next` on: those before may be what rows of lost segments' chunks
 * refer to. */
void segment_skip_ids(struct segments *ss, uint64_t next);

/* The row of a segment as KV_SEGMENT has it, and back; decoding fills the part that is not only in
 * memory. ERR_FORMAT. */
void segment_row_encode(const struct segment *s, struct strbuf *out);
int segment_row_decode(const void *value, size_t len, struct segment *ret_segment);

/* ---- Looking ---- */

/* Valid until the caller suspends, or as long as it holds the segment. NULL: there is none. */
const struct segment *segment_get(const struct segments *ss, uint64_t segment);
/* The ids of from <= id <= to in order; *ret_ids from mem_alloc. */
size_t segments_list(const struct segments *ss, uint64_t from, uint64_t to, uint64_t **ret_ids);
/* Bytes of all columns that were written; 0 where nothing is alive. */
uint64_t segment_columns_bytes(const struct segment *s);
/* Their sum over the segments of from <= id <= to. Walks the table. */
uint64_t segments_columns_bytes(const struct segments *ss, uint64_t from, uint64_t to);

/* ---- Verifying (segment_verify.c) ---- */

/* What is on the drives of one stripe. */
struct segment_verdict {
    uint32_t bad;    /* bit per column: read, and other than what the rest of the stripe says */
    uint32_t absent; /* bit per column: could not be read */
    bool torn;       /* no k columns agree on the stripe as a whole */
    bool doubtful;   /* columns do not fit each other, and which ones are right cannot be told */
    uint32_t mended; /* bit per column: bad, and right again (segment_mend) */
};

/* Reads all columns of a stripe and compares them with each other and with the n chunks in it (loc
 * of each; the same stripe). lost[i] is set where a chunk cannot be had from any columns. Suspends.
 * ERR_FORMAT when a loc lies outside its segment; ERR_TIMEDOUT when a drive that may have what is
 * missing does not answer. */
int segment_verify(struct segments *ss, const struct segment_loc *locs, size_t n, bool *lost,
                   struct segment_verdict *ret_verdict);

/* Looks at the fragment headers of a segment: bits of the columns whose header is not its own, and
 * of those that could not be read. Suspends. */
int segment_verify_headers(struct segments *ss, uint64_t segment, uint32_t *ret_bad,
                           uint32_t *ret_absent);

/* ---- Mending (segment_mend.c) ---- */

/* As segment_verify; and columns that are bad or could not be read, on drives that count, are
 * computed from the good ones, written in place, durable, and read back. In the verdict these are
 * `bad`, and `mended` where they are right now. Counts for the drives (struct drive_scrub). Where
 * damage cannot be mended in place, the segment ails (segment_ails). The caller holds the segment.
 * ERR_LOST when no drive is left that counts. Suspends. */
int segment_mend(struct segments *ss, const struct segment_loc *locs, size_t n, bool *lost,
                 struct segment_verdict *ret_verdict);
/* The same for the fragment headers; only bits are set in the verdict. */
int segment_mend_headers(struct segments *ss, uint64_t segment,
                         struct segment_verdict *ret_verdict);
/* Has compaction write again what is alive in it, since its columns do not fit each other. */
void segment_ails(struct segments *ss, uint64_t segment);

/* Takes a segment as one of its fragments describes it, sealed and written to its end, into a table
 * that serves only to look: for walking it without the KV store. Several may claim the same slots.
 * ERR_FORMAT: it cannot be, or its number is there. */
int segment_adopt(struct segments *ss, const struct format_fragment *f);
/* Calls `fn` for the fragment header at the front of each slot of each drive that can be read,
 * where it is whole, of this store, and in its own place. Suspends. */
void segment_walk_fragments(struct driveset *ds,
                            void (*fn)(void *arg, const struct format_fragment *f), void *arg);
/* Is this unit a whole fragment header? */
bool segment_fragment_valid(const struct format_fragment *f);

/* ---- Drives that come and go (segment_balance.c) ---- */

/* Makes room in the tables for a drive that was added; all its slots are free. */
void segment_take_drive(struct segments *ss, unsigned drive);
/* The place of a drive on which nothing was is given up. */
void segment_forget_drive(struct segments *ss, unsigned drive);
bool segment_drive_empty(const struct segments *ss, unsigned drive);
/* Drives given up and not back (bit per drive). */
uint64_t segment_given_up(const struct segments *ss);

/* Bytes of chunks that new segments could hold, all told, with these drives (bit per drive) and
 * `extra_slots` of one more, at the profile's geometry; 0 when they are too few for it. */
uint64_t segment_capacity_with(const struct segments *ss, uint64_t drives, uint64_t extra_slots);

/* Settles whether drives are to be made even. A drive's fair share is what it would hold, had all
 * that is taken been put on the drives there are now. It begins when a drive is further from its
 * share than 5 % of its slots (and 3), and ends when none is further than 2 % (and 2), when no
 * segment can be moved that would help, or when twice as many were moved as should have been
 * needed; then it rests until other drives take. To be called now and then. Does not suspend. */
void segment_watch_even(struct segments *ss);

/* Stored bytes that are to be written anew, by the reason. Walks the table. */
struct segment_moves {
    uint64_t rebuild;                     /* lack parity, with the drives that are not given up */
    uint64_t leaving;                     /* on drives that leave, and not of the above */
    uint64_t uneven;                      /* about what evenness takes */
    uint64_t on_drive[FORMAT_DRIVES_MAX]; /* of a drive that leaves: all that has a column there */
    uint64_t stuck; /* segments of the first two that cannot be moved before the next start */
};
void segment_get_moves(const struct segments *ss, struct segment_moves *ret_moves);

/* ---- Compaction ---- */

/* Segments are told apart by how much of what emptying them gives back is taken again for what is
 * alive in them, in sixteenths: slots of drives that take new data, at the geometry of new
 * segments.
 */
#define SEGMENT_FILLS 16u
/* Chunks that compaction writes in one stripe, at most. */
#define SEGMENT_MOVE_MAX 1024u

/* The sealed segment with least alive, among those of less than `below` sixteenths that have
 * something alive; false when there is none. */
bool segment_pick_sparse(const struct segments *ss, unsigned below, uint64_t *ret_segment);
/* A drive is not waited for any more: what has a column on it is to be written again. */
void segment_give_up(struct segments *ss, unsigned drive);
/* Of the sealed segments with something alive and less parity than a new one would get, the one
 * with least: written while drives were missing, or with columns on a drive given up. False when
 * there is none. */
bool segment_pick_thin(const struct segments *ss, uint64_t *ret_segment);
/* The drives that are leaving, and those that take new segments (bit per drive). */
uint64_t segment_leaving_drives(const struct segments *ss);
uint64_t segment_taking_drives(const struct segments *ss);
/* How many segments with something in them, or about to come, have less parity than the profile
 * wants, all drives that do not count considered. Walks the table. */
uint64_t segment_count_thin(const struct segments *ss);
/* Opens a new segment in place of an open one with less parity than a new one gets. Suspends. */
int segment_renew_thin(struct segments *ss);
bool segment_renew_due(const struct segments *ss); /* is there such a one? */
/* Is there one, one that is only waiting to be freed, or one that stands in the way of drives being
 * filled evenly? */
bool segment_can_gain(const struct segments *ss, unsigned below);
/* A sealed segment with something alive and a column on a drive that is leaving. Whatever drives
 * have come, gone or are missing since the last call is known to all of these only then. */
bool segment_pick_leaving(struct segments *ss, uint64_t *ret_segment);
/* A sealed segment with something alive and a column on the drive that has most over its fair
 * share, and none on the one that lacks most, which gives as many slots as it takes; false unless
 * drives are being made even. */
bool segment_pick_uneven(const struct segments *ss, uint64_t *ret_segment);
/* Is there no less room for new segments once what is alive in this one was moved, and its slots
 * are free? So it is when those that it lacks are on a drive that is emptier than the others. */
bool segment_move_keeps_free(const struct segments *ss, uint64_t segment);
/* Bytes of chunks that the stream's open segment still takes; 0 where the next stripe will open
 * another. */
uint64_t segment_open_rest(const struct segments *ss, enum segment_stream stream);
/* Does all that is alive in this one go into what the stream's open segment has left? */
bool segment_move_opens_none(const struct segments *ss, uint64_t segment,
                             enum segment_stream stream);
/* A segment was moved for evenness; `stuck`: it cannot go on. */
void segment_moved_uneven(struct segments *ss, bool stuck);
/* A run left something alive in it; after a few of these, or when `lost`, it is not picked again
 * before the next start. */
void segment_compact_failed(struct segments *ss, uint64_t segment, bool lost);

/* Registers the metrics of stripes and reads. */
void segments_observe(struct segments *ss, struct metrics *m);

/* ---- Space ---- */

struct segment_space {
    uint64_t total, free; /* bytes of chunks: in all slots, in slots not taken */
    uint64_t physical;    /* bytes of slots taken, with parity */
    uint64_t live;        /* stored bytes of live chunks */
    uint64_t dead;        /* room in slots taken that holds nothing alive, nor directories of what
                             is, and can be had again */
    uint64_t freed;       /* bytes of chunks that segments freed since the start had room for */
    uint64_t survivors;   /* those opened since then for what outlives others, and for the copy */
    uint64_t segments;
    uint64_t segment; /* bytes of chunks that a new one could hold */
    unsigned k, m;    /* the geometry that a new segment would get; k = 0: none possible */
};
void segment_get_space(const struct segments *ss, struct segment_space *ret_space);

uint64_t segment_drive_used(const struct segments *ss, unsigned drive); /* bytes of slots taken */

/* Frees every sealed segment with nothing alive and nobody at it; returns how many. Suspends. */
int segment_sweep(struct segments *ss, unsigned *ret_freed);
/* Is there anything for segment_sweep to do? */
bool segment_sweep_due(const struct segments *ss);

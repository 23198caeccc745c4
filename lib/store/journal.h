/* The journal: the partition's write-ahead log, a ring mirrored over m + 1 drives.
 *
 * Appended records gather in a pending batch while the batch before them is being written: group
 * commit without timers. A batch is one aligned write per mirror, and its records are durable when
 * every mirror has it; only then is it handed on, in order, to `on_durable`. One batch is in flight
 * at a time (F3), which is what lets replay prove where the journal ends.
 *
 * A mirror that fails is put out, another drive takes its place: it gets a copy of all live
 * batches, then the new membership is committed, then the batch counts as durable. A mirror that is
 * leaving, or less fast than a drive that is none, is replaced in the same way, without haste. The
 * ring's area is written once before first use, so that a sync never waits for a file system to
 * allocate.
 *
 * Space: batches stay until journal_trim; user appends wait while the ring is nearly full, internal
 * ones have a reserve. More of that is for what whoever trims submits (the metadata's copy,
 * segments that are opened): clients can have internal records written as fast as they like,
 * deletions say, and if these filled the ring nothing could ever be trimmed again. The very last,
 * as long as the longest batch, is for draining alone, which is what makes trimming possible: the
 * others do not wait for it, and are refused (ERR_NOSPC). A ring that is full to the end would stay
 * so for ever.
 *
 * Who waits for room may wait for long, where nothing can be drained. Whoever knows of a reason not
 * to wait says so: journal_refuse.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/base/buf.h"
#include "lib/base/list.h"
#include "lib/store/drive.h"

struct journal;
struct metrics;
struct slow_log;

struct journal_record {
    uint64_t lsn;
    uint16_t type, version;
    const uint8_t *body;
    size_t length;
};

/* A durable batch on its way to being applied. */
struct journal_batch {
    struct list link; /* the receiver's */
    struct buf *buf;
    size_t length;
    uint32_t records;
    uint64_t first_lsn;
    struct journal *journal_;
};

struct journal_ops {
    /* The next batch is durable. Called in LSN order from the journal's fiber; must not suspend.
     * The receiver owns the batch: journal_batch_free. */
    void (*on_durable)(void *arg, struct journal_batch *batch);
    /* The journal cannot be written any more; nothing later will become durable. Once. */
    void (*on_broken)(void *arg, int error);
};

/* A journal on an open drive set. Call journal_replay next. */
int journal_open(struct driveset *ds, const struct journal_ops *ops, void *arg,
                 struct journal **ret_journal);

struct journal_replay_stats {
    uint64_t batches, records, bytes, ns;
    unsigned mirrors_repaired;
};

/* Reads every batch from the replay point to the end and calls `apply` (which may suspend) for each
 * record in order. Batches that a mirror lacks are written to it. The end is proven: ERR_JOURNAL
 * when a later batch exists behind a hole, or when no mirror is left and the journal was not empty;
 * ERR_IO when no mirror can be read where the journal seems to end.
 * On success the head is set and the first LSN to come is known. Suspends. */
int journal_replay(struct journal *j, int (*apply)(void *arg, const struct journal_record *r),
                   void *arg, struct journal_replay_stats *ret_stats);

/* Chooses the mirrors among the drives that count, brings them level, commits the membership with
 * the journal marked in use, and starts the writer. Suspends. */
int journal_start(struct journal *j);

enum journal_append_flags {
    JOURNAL_INTERNAL = 1, /* may use some of the reserve: for what frees space, and small orders */
    JOURNAL_LAST = 3,     /* may use most of it: for those that checkpoints submit */
    JOURNAL_DRAIN = 7,    /* may use all of it: for those without which nothing can be drained */
};

/* Adds a record made of the n parts of iov. It has an LSN and its place in the order on return but
 * is not durable yet. Suspends while the ring or the pending batch is full. ERR_TOOBIG over
 * journal_record_max, ERR_SHUTDOWN, ERR_NOSPC (JOURNAL_LAST: too little is left), what
 * journal_refuse said, the error that broke the journal. */
int journal_append(struct journal *j, uint16_t type, uint16_t version, const struct iovec *iov,
                   unsigned n, unsigned flags, uint64_t *ret_lsn);

/* Longest body of a record. */
size_t journal_record_max(const struct journal *j);

/* Gives up every batch whose records are all below lsn: replay will not want them. Suspends. */
int journal_trim(struct journal *j, uint64_t lsn);

/* Looks at the mirrors soon, also while nothing is appended: whether one is out, is leaving, or
 * another drive would be better (of class nvme). Does not suspend. */
void journal_level(struct journal *j);
/* Is this drive a mirror, on its way to be one, or was it when superblocks were last written? */
bool journal_on_drive(const struct journal *j, unsigned drive);
/* A clean stop leaves the records from lsn on for the next start to read, as trimming would. */
void journal_keep(struct journal *j, uint64_t lsn);

/* The LSN that the next append gets. */
uint64_t journal_next_lsn(const struct journal *j);

/* Waits for the pending batch, stops the writer. With `clean` (all state is in the KV store and
 * flushed) the superblocks say that there is nothing to replay. Suspends. */
int journal_stop(struct journal *j, bool clean);
void journal_free(struct journal *j); /* stopped or never started; NULL is fine */

/* Walks the records of a batch: start with *pos = 0; false at the end. */
bool journal_batch_next(const struct journal_batch *b, size_t *pos,
                        struct journal_record *ret_record);
void journal_batch_free(struct journal_batch *b);

/* ---- Looking (journal_survey.c) ---- */

/* A whole batch somewhere in the ring. */
struct journal_seen {
    uint64_t seq, epoch, first_lsn, off; /* off: in the area */
    uint32_t length, records;
    uint64_t mirrors; /* bit per drive that has it there */
};

/* Every whole batch that any mirror has, in order, live ones and older ones that nothing has
 * overwritten yet. Only reads. *ret_seen from mem_alloc. ERR_LOST when no mirror can be read.
 * Suspends. */
int journal_survey(struct journal *j, struct journal_seen **ret_seen, size_t *ret_count);
/* The batch itself, for journal_batch_next. Suspends. */
int journal_survey_read(struct journal *j, const struct journal_seen *seen,
                        struct journal_batch **ret_batch);

struct journal_stats {
    uint64_t size, used;              /* bytes of the ring */
    uint64_t batches, records, bytes; /* written since start */
    uint64_t next_lsn;
    unsigned mirrors, mirrors_wanted;
};
void journal_get_stats(const struct journal *j, struct journal_stats *ret_stats);

/* Registers the journal's metrics, and has slow batches told to `slow` (NULL: nobody). */
void journal_observe(struct journal *j, struct metrics *m, struct slow_log *slow);

/* Would a record with a body of so many bytes be taken now, without waiting for room? */
bool journal_has_room_for(const struct journal *j, size_t body, unsigned flags);

/* Is so little left that nothing but JOURNAL_DRAIN is taken? */
bool journal_is_tight(const struct journal *j);

/* From now on appends with these flags (0, JOURNAL_INTERNAL) get `error` where the ring has no room
 * for them, also those that wait for it already; 0: they wait. Does not suspend. */
void journal_refuse(struct journal *j, unsigned flags, int error);
/* Nothing that becomes durable will be applied: all who wait for room, of whatever kind, get the
 * error. What is pending is still written if there is room for it. Does not suspend. */
void journal_give_up(struct journal *j, int error);

/* The share of the ring that is used, 0..100: when to checkpoint. */
unsigned journal_pressure(const struct journal *j);

/* The share of the ring that journal_trim(j, lsn) would let go of, 0..100: whether to. */
unsigned journal_trimmable(const struct journal *j, uint64_t lsn);

/* The journal's state, shared by its writer (journal.c) and its recovery (journal_replay.c). */
#pragma once

#include "lib/base/metric.h"
#include "lib/base/slow.h"
#include "lib/store/journal.h"

#define JOURNAL_SPARE_BUFS 4u

/* A live batch's place in the ring. */
struct journal_extent {
    struct list link;
    uint64_t seq, first_lsn, off;
    size_t span; /* bytes on the medium */
};

struct journal {
    struct driveset *ds;
    const struct journal_ops *ops;
    void *arg;
    uint64_t cap, batch_max;
    size_t batch_soft; /* a pending batch takes records up to this */
    uint64_t mirrors;  /* bit per drive */
    uint64_t stay;     /* mirrors that would be better and could not be made; 0: none */
    uint64_t making;   /* the one that is being made */
    uint64_t cramped;  /* bit per drive: had no space when it was to become a mirror, this time */
    bool level;        /* the writer is to look at the mirrors */

    struct list extents;         /* live batches, oldest first */
    uint64_t head_off, head_seq; /* where and what the next batch is */
    uint64_t head_lsn;           /* first LSN that is in no live or trimmed batch */
    uint64_t next_lsn;
    uint64_t keep_lsn; /* journal_keep */

    struct buf *pending; /* being filled; NULL when empty */
    size_t pending_len;
    uint32_t pending_records;
    uint64_t pending_first;
    size_t writing_len; /* of the batch in flight */

    struct fiber_cond work, space;
    struct fiber_mutex trim_lock;
    struct fiber_group writer;
    bool running, stopping;
    int broken;
    int refused[2]; /* of those without flags, and of internal ones: see journal_refuse */
    int given_up;
    struct buf *spare[JOURNAL_SPARE_BUFS];

    uint64_t stat_batches, stat_records, stat_bytes;
    uint64_t pending_since; /* when the pending batch got its first record */
    struct metric_hist commit_time, write_time, batch_records, batch_bytes;
    struct slow_log *slow;
};

/* Where a batch of `span` bytes goes: behind its predecessor, or at 0 (F4). False: no room now. */
bool journal_place(const struct journal *j, size_t span, uint64_t *ret_off);
void journal_push_extent(struct journal *j, uint64_t first_lsn, uint32_t records, uint64_t off,
                         size_t span);
uint64_t journal_used(const struct journal *j);
static inline size_t journal_span(size_t length)
{
    return (length + FORMAT_UNIT - 1) & ~(size_t)(FORMAT_UNIT - 1);
}
uint64_t journal_store_id(const struct journal *j);
/* Is this the header of a batch that may count (F7)? */
bool journal_head_valid(const struct journal *j, const uint8_t *p, struct format_batch *ret_head);
/* Are these `span` bytes the batch `seq` of this store, whole? */
bool journal_batch_whole(const struct journal *j, const uint8_t *p, size_t span, uint64_t seq);

/* Makes the mirror set whole again: as many of the drives that count as the profile wants, the best
 * of them, each with all live batches, committed. `extra` is a batch in flight at extra_off that
 * new mirrors need too (NULL: none). */
int journal_remirror(struct journal *j, struct buf *extra, size_t extra_span, uint64_t extra_off);

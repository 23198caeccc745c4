/* The partition: one journal, one metadata state, one dedup domain, and the machine that moves the
 * state.
 *
 * State changes only by applying journal records, in the order of their LSNs, one at a time:
 *
 *   submit -> journal (durable on all mirrors) -> apply -> the submitter goes on
 *
 * Applying a record changes what is in memory and writes one KV batch that carries the record's
 * LSN; so after a crash each record takes effect exactly once, however often it is replayed. What
 * lives only in memory (the overlay of volume writes) is rebuilt by replay from the journal's trim
 * point, which never passes a write that is not drained. Applying is a function of state and record
 * alone: what a submitter knows (pins, waiters) must not decide what is applied.
 *
 * A checkpoint flushes the KV store and then trims the journal. Background work (drain,
 * sweep, checkpoints) runs in fibers of the partition.
 */
#pragma once

#include "dedup/chunkstore.h"
#include "lib/api/block.h"
#include "lib/api/bucket.h"
#include "lib/api/object.h"
#include "lib/kv/kv.h"
#include "lib/store/drive.h"
#include "lib/store/journal.h"
#include "lib/store/record.h"
#include "lib/store/segment.h"

struct metrics;
struct partition;
struct slow_log;
struct volumes;
struct studies;
struct buckets;

/* The row of KV_META that says from which number on segments get theirs, where one is written. */
#define PARTITION_SEGMENTS_KEY "segments"

enum partition_conflict { PARTITION_REFUSE, PARTITION_REPLACE };

struct partition_options {
    size_t cache_bytes;        /* for chunk rows and map leaves together; 0: 96 MiB */
    uint64_t overlay_bytes;    /* volume writes kept in memory until drained; 0: 48 MiB */
    uint64_t ingest_bytes;     /* instance bytes in flight; 0: 128 MiB */
    uint64_t copy_at_once;     /* up to so many chunks a first copy of the metadata is made at the
                                  next checkpoint, or when closed; above it in the background; 0:
                                  100,000 */
    uint64_t rebuild_delay_ns; /* a drive that is out for so long is given up; 0: ten minutes */
    uint64_t scrub_rate;       /* bytes per second that scrub may verify; 0: as fast as it can */
    uint64_t
        scrub_every_ns; /* from the start of one pass of scrub to the next; 0: only on demand */
    uint64_t scrub_settle_ns;            /* before scrub begins after a start; 0: ten seconds */
    enum partition_conflict on_conflict; /* same SOP Instance UID, other content */
    /* Called when the set of drives has changed by itself: one has left. May suspend. NULL: no. */
    void (*drives_changed)(void *arg);
    void *drives_arg;
};

struct partition_start {
    struct journal_replay_stats replay;
    uint64_t total_ns;
};

/* Makes a store: formats the drives and marks the (empty) KV store as its. With `overwrite` drives
 * that hold superblocks are formatted too. ERR_EXIST where a store is. Suspends. */
int partition_format(struct env *env, struct kv *kv, const struct driveset_params *params);

/* Is there a finished store in the KV store? Suspends. */
int partition_exists(struct kv *kv, bool *ret_exists);

/* Marks a KV store that was made anew as these drives', which needs the journal from `upto` on, and
 * makes all of it durable. Suspends. */
int partition_mark(struct kv *kv, struct driveset *ds, uint64_t upto);

/* Is the KV store these drives', and does it lack nothing that their journal no longer has? ERR_KV
 * otherwise. For looking at a store at rest. Suspends. */
int partition_match(struct kv *kv, struct driveset *ds);

/* Opens the partition: drives, state, replay, background work. The KV store stays the caller's and
 * outlives the partition. ERR_JOURNAL, ERR_LOST, ERR_KV (the KV store is another's, or older than
 * the journal reaches back), ERR_LOCKED. Suspends. */
int partition_open(struct env *env, struct kv *kv, const char *const *drive_paths, unsigned drives,
                   const struct partition_options *options, struct partition_start *ret_start,
                   struct partition **ret_partition);

/* The end is near: requests that do many things one after the other end with ERR_SHUTDOWN after the
 * one they are at. Before the front doors are stopped, which wait for them. Does not suspend. */
void partition_end_soon(struct partition *p);
/* Drains, checkpoints, marks the store clean, frees. No front door may be in a call. NULL is fine.
 * Returns the first error met; the partition is gone in any case. Suspends. */
int partition_close(struct partition *p);

struct block_store *partition_blocks(struct partition *p);
struct object_store *partition_objects(struct partition *p);
struct bucket_store *partition_buckets(struct partition *p);

struct partition_study_counts {
    uint64_t studies, instances, bytes;            /* in the catalogue */
    uint64_t stored, replaced, identical, refused; /* puts by outcome, since start */
    uint64_t put_bytes;                            /* taken, since start */
};

struct partition_bucket_counts {
    uint64_t buckets;
    uint64_t objects, bytes; /* in them; and in deleted ones that are not given back yet */
    uint64_t put_bytes;      /* of objects taken, since start */
};

/* What is being written anew because of drives that came, go or are gone; in this order. */
struct partition_work {
    uint64_t bytes; /* stored bytes to go; 0: nothing to do */
    uint64_t eta_s; /* until it is done, with what comes before it; 0: not known */
};
struct partition_moves {
    struct partition_work rebuild, leaving, rebalance;
    struct partition_work drives[FORMAT_DRIVES_MAX]; /* of those that leave */
    uint64_t rate;                                   /* bytes a second, of late */
    uint64_t moved;                                  /* bytes, since start */
    uint64_t stuck;    /* segments that cannot be read, and so stay where they are */
    bool waits;        /* rebuild, or what is on drives that leave, waits for room */
    uint64_t given_up; /* drives that are not waited for any more (bit per drive) */
};

struct partition_status {
    int broken;              /* 0, or the error that stopped all writes */
    uint64_t capacity, free; /* bytes for chunks: all, and what users may still write */
    uint64_t logical;        /* bytes that volumes map and instances and objects have */
    uint64_t unique;         /* raw bytes of chunks: after deduplication */
    uint64_t stored;         /* after compression */
    uint64_t physical;       /* slots taken, with parity */
    uint64_t reclaimable;    /* room in slots taken that holds nothing alive, before parity */
    uint64_t volumes;
    struct partition_study_counts studies;
    struct partition_bucket_counts buckets;
    uint64_t overlay_bytes;
    unsigned k, m; /* the profile; new segments get at present ... */
    unsigned current_k, current_m;
    uint64_t thin_segments; /* with less parity than the profile wants */
    uint64_t client_bytes;  /* that clients had written, since start ... */
    uint64_t drive_bytes;   /* ... and bytes written to drives, for them and in the background */
    struct partition_start start;
    struct partition_moves moves;
    /* The metadata's copy on the drives (daemon/image.h), which `chunks` does not count. */
    uint64_t copy_bytes;    /* stored */
    uint64_t copy_lsn;      /* the state after this record; 0: there is no copy */
    uint64_t copy_failures; /* checkpoints without one, since start */
    struct journal_stats journal;
    struct chunkstore_stats chunks;
};
void partition_get_status(struct partition *p, struct partition_status *ret_status);
/* Registers the metrics of the partition and of all its parts, and has slow operations told to
 * `slow` (NULL: nobody). `m` goes before the partition does. */
void partition_observe(struct partition *p, struct metrics *m, struct slow_log *slow);
struct driveset *partition_drives(struct partition *p);
uint64_t partition_drive_used(const struct partition *p, unsigned drive); /* bytes of slots taken */

/* Compacts every segment from which anything can be gained, without regard for others. Suspends. */
int partition_compact(struct partition *p);

/* Drains all volume writes, compacts what is mostly dead, and checkpoints: afterwards the journal
 * holds nothing. For tests and clean stops. Suspends. */
int partition_settle(struct partition *p);

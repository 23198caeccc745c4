/* What the partition's parts share: the state machine (partition.c), volumes (volume*.c, overlay.c)
 * and studies (study*.c). */
#pragma once

#include "daemon/drive_watch.h"
#include "daemon/membership.h"
#include "daemon/partition.h"
#include "daemon/scrubber.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"
#include "lib/rt/sync.h"

struct partition {
    struct record_log log; /* first: the door for submitters */
    struct env *env;
    struct kv *kv;
    struct driveset *ds;
    struct journal *journal;
    struct segments *segments;
    struct chunkstore *chunks;
    struct volumes *volumes;
    struct contents *contents;
    struct studies *studies;
    struct buckets *buckets;
    struct scrubber *scrubber;
    struct image *image;
    struct partition_options options;

    uint64_t applied_lsn;   /* last record in the KV store */
    uint64_t processed_lsn; /* last record seen */
    uint64_t applying_lsn;  /* the record that is being applied; 0: none */
    uint64_t trim_lsn;      /* at start: the KV store needs no record before this one */
    uint64_t out_since[FORMAT_DRIVES_MAX]; /* when a drive was first seen out; 0: it is not */
    uint64_t checkpoint_again;             /* one failed: not before then */
    uint64_t made_up_at; /* when it was last looked whether they are made up for */
    struct drive_watch drive_watch;
    struct membership membership;
    uint64_t segments_freed; /* since start */
    uint64_t compactor_lsn;  /* last record when compaction last looked */
    unsigned compactor_vain; /* rounds for nothing that waiting writes were not told of */
    int broken;

    struct list apply_queue; /* durable batches */
    struct hmap waiters;     /* submitters by LSN */
    struct fiber_cond apply_work, maintain_work;
    struct fiber_group fibers;
    struct fiber_mutex checkpoint_lock;
    struct fiber_mutex applying; /* held while a record is applied */
    bool ending, stopping, apply_stop;

    struct partition_start start; /* how the last start went */
    struct slow_log *slow;        /* NULL: none */
    struct metric_hist apply_time, checkpoint_time;
};

/* Applying, as a module sees it. Where `kv` is NULL the record is in the KV store already and only
 * what lives in memory is to be done (replay). */
struct apply {
    struct partition *p;
    uint64_t lsn;
    const uint8_t *body;
    size_t length;
    void *context; /* the submitter's; NULL in replay */
    struct kv_batch *kv;
};

/* ---- partition.c ---- */
/* Makes the state durable and lets go of the journal before it. Suspends. */
int partition_checkpoint(struct partition *p);
/* Stops all writes, for whoever finds that no record about something could be applied any more:
 * better than to let it be journaled, or to try for ever while others wait. Does not suspend. */
void partition_break(struct partition *p, int error);
/* Fits the overlay and the space kept for internal writes to the drives there are. */
void partition_fit_space(struct partition *p);

/* Gives back segments until there are none to give. Suspends. */
int partition_reclaim(struct partition *p);

/* ---- compactor.c ---- */
void compactor_main(void *arg); /* a fiber; `arg` is the partition */
/* Compacts what can be gained at leisure; room that there was not may come by what is freed.
 * Suspends. */
int compactor_settle(struct partition *p);

/* ---- volume.c, volume_apply.c ---- */
void volumes_set_overlay(struct volumes *vs, uint64_t bytes); /* how much may be in memory */
int volumes_new(struct partition *p, struct volumes **ret_volumes);
int volumes_load(struct volumes *vs);  /* at start, before replay; suspends */
int volumes_start(struct volumes *vs); /* background fibers */
void volumes_stop(struct volumes *vs); /* waits for them; suspends */
void volumes_free(struct volumes *vs);
struct block_store *volumes_blocks(struct volumes *vs);
int volumes_apply(struct volumes *vs, uint16_t type, const struct apply *a);
/* What the applied record changed is in the KV store. */
void volumes_written(struct volumes *vs);
/* The oldest LSN whose write is not drained; UINT64_MAX when there is none. */
uint64_t volumes_oldest_lsn(const struct volumes *vs);
/* Asks for the writes up to an LSN to be drained without delay. */
void volumes_hurry(struct volumes *vs, uint64_t lsn);
/* Drains everything and waits for it. */
int volumes_drain_all(struct volumes *vs);
void volumes_get_counts(const struct volumes *vs, uint64_t *ret_volumes, uint64_t *ret_mapped,
                        uint64_t *ret_overlay, uint64_t *ret_written);
void volumes_observe(struct volumes *vs, struct metrics *m);

/* ---- study.c, study_apply.c ---- */
int studies_new(struct partition *p, struct studies **ret_studies);
int studies_load(struct studies *ss);
void studies_free(struct studies *ss);
struct object_store *studies_objects(struct studies *ss);
int studies_apply(struct studies *ss, uint16_t type, const struct apply *a);
void studies_get_counts(const struct studies *ss, struct partition_study_counts *ret_counts);
void studies_observe(struct studies *ss, struct metrics *m);

/* ---- bucket.c, bucket_apply.c ---- */
int buckets_new(struct partition *p, struct buckets **ret_buckets);
int buckets_load(struct buckets *bs);   /* at start, before replay; suspends */
void buckets_start(struct buckets *bs); /* the reaper */
void buckets_stop(struct buckets *bs);  /* waits for it; suspends */
void buckets_free(struct buckets *bs);
struct bucket_store *buckets_store(struct buckets *bs);
int buckets_apply(struct buckets *bs, uint16_t type, const struct apply *a);
void buckets_get_counts(const struct buckets *bs, struct partition_bucket_counts *ret_counts);
void buckets_observe(struct buckets *bs, struct metrics *m);

/* The copy of the metadata that is kept on the drives, as safe as data: what is in the KV store can
 * be made anew from the drives alone (rebuild.h). See image.c for how and why. */
#pragma once

#include "daemon/partition_priv.h"

struct image;

void image_new(struct partition *p, struct image **ret_image);
void image_free(struct image *im); /* NULL is fine */
/* At start, before replay: what the copy lacks of what is in the KV store. Suspends. */
int image_load(struct image *im);
/* After replay: counts what the copy takes in the chunk table, and keeps room for the next from
 * users. Suspends. */
int image_count(struct image *im);

/* ---- Applying ---- */

/* Before the batch of a record is written: adds the list of what it changes. */
void image_note(struct image *im, struct kv_batch *batch, uint64_t lsn);
/* When it was written, in the same step as its LSN becomes the last one. Does not suspend. */
void image_take(struct image *im, const struct kv_batch *batch);
/* RECORD_IMAGE. Suspends when rows are not cached. */
int image_apply(struct image *im, const struct apply *a);

/* ---- At a checkpoint, in this order; the checkpoints' lock is held ---- */

/* Writes a base where there is none. Suspends, for long. */
void image_prepare(struct image *im);
/* What is applied by now is what the copy will be of. Does not suspend. */
void image_freeze(struct image *im);
/* Writes what changed since the last one and names it: the state after `settled`, which is whole
 * with the journal from `upto` on. An error leaves the copy as it was, and nothing forgotten.
 * Suspends. */
int image_write(struct image *im, uint64_t settled, uint64_t upto);
/* After the journal was trimmed: tidies up, writes a new base when it is time. Suspends. */
void image_tidy(struct image *im);

/* Has so much changed that a checkpoint is due, or is there no copy of a store that needs one? */
bool image_due(const struct image *im);
/* The copy as it is wants the journal from here on; UINT64_MAX: there is none. */
uint64_t image_upto(const struct image *im);

struct image_stats {
    uint64_t settled, time;  /* the copy is of the state after this record, at this time; or 0 */
    uint64_t chunks, stored; /* of the copy in the chunk table */
    uint64_t raw, referenced;
    uint64_t written;  /* bytes of rows written since start, before compression */
    uint64_t failures; /* checkpoints that had to do without, since start */
};
void image_get_stats(const struct image *im, struct image_stats *ret_stats);
void image_observe(struct image *im, struct metrics *m);

/* The copy of the metadata that is kept on the drives, as safe as data: what is in the KV store can
 * be made anew from the drives alone (rebuild.h). See image.c for how and why. */
#pragma once

#include "daemon/partition_priv.h"

struct image;

void image_new(struct partition *p, struct image **ret_image);
void image_free(struct image *im); /* NULL is fine */
/* At start, before replay: what the copy lacks of what is in the KV store. Suspends. */
int image_load(struct image *im);
/* After replay: looks for what earlier runs have left behind, keeps room for the copy from users.
 * Suspends. */
int image_begin(struct image *im);
/* Writes bases and drops old runs until the partition is stopping; its fiber's whole life. */
void image_run(struct image *im);
void image_stop(struct image *im); /* tells it to look; does not suspend */

/* ---- Applying ---- */

/* Before the batch of a record is written: adds the list of what it changes. */
void image_note(struct image *im, struct kv_batch *batch, uint64_t lsn);
/* When it was written, in the same step as its LSN becomes the last one. Does not suspend. */
void image_take(struct image *im, const struct kv_batch *batch);
/* RECORD_IMAGE, RECORD_IMAGE_PIECE, RECORD_IMAGE_DROP. Suspends when rows are not cached. */
int image_apply(struct image *im, uint16_t type, const struct apply *a);

/* ---- At a checkpoint, in this order; the checkpoints' lock is held ---- */

/* Writes a base where there is none and it is not much work. Suspends. */
void image_prepare(struct image *im);
/* What is applied by now is what the copy will be of. Does not suspend. */
void image_freeze(struct image *im);
/* Writes what changed since the last one and names it: the state after `settled`, which is whole
 * with the journal from `upto` on. An error leaves the copy as it was, and nothing forgotten;
 * ERR_AGAIN: there is no base yet, or the last try was not long ago. Suspends. */
int image_write(struct image *im, uint64_t settled, uint64_t upto);
/* After the journal was trimmed: tidies up. Suspends. */
void image_tidy(struct image *im);

/* Has so much changed, or is a first base ready, that a checkpoint is due? */
bool image_due(const struct image *im);
/* The copy as it is wants the journal from here on; UINT64_MAX: there is none. */
uint64_t image_upto(const struct image *im);

struct image_stats {
    uint64_t settled, time;  /* the copy is of the state after this record, at this time; or 0 */
    uint64_t chunks, stored; /* of all runs in the chunk table */
    uint64_t raw, referenced;
    uint64_t written;  /* bytes of rows written since start, before compression */
    uint64_t failures; /* checkpoints that had to do without, since start */
};
void image_get_stats(const struct image *im, struct image_stats *ret_stats);
void image_observe(struct image *im, struct metrics *m);

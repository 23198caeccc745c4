/* What the parts of the metadata's copy share; see image.c. */
#pragma once

#include "daemon/image.h"
#include "daemon/image_form.h"

#define IMAGE_SET_MAX  (32u << 20) /* bytes of changed rows at which a checkpoint is due */
#define IMAGE_SET_MOST (4 * IMAGE_SET_MAX)

/* What is not gathered: it is derived, or belongs to the copy's own housekeeping. */
#define IMAGE_TABLES_OUT (1u << KV_FPRINT | 1u << KV_IMAGE)

struct image {
    struct partition *p;
    struct image_form named;
    struct image_sum sum;
    bool lost;                 /* there is no base to build upon */
    bool unmarked;             /* ... and the KV store does not know of it */
    bool replaying;            /* not begun yet: what is replayed may be the end of that */
    struct kv_changes *active; /* since the last freeze */
    struct kv_changes *frozen; /* being written, or NULL */
    uint64_t frozen_at;        /* the last record applied at the last freeze */

    /* Runs that no record names yet. */
    struct image_run base; /* good if base_ready */
    bool base_ready, building, naming;
    bool base_settled;         /* it was ready at the last freeze: what changed after is frozen */
    bool spoilt;               /* the base being written, or replayed, lacks changes by now */
    struct image_run *waiting; /* increments, in order */
    uint32_t waiting_count;
    uint64_t unnamed; /* bytes of rows in all these, also of those being written */

    uint64_t *leaving; /* numbers of runs to be dropped */
    uint32_t leaving_count;

    double shrink;                 /* what is stored of a byte, about */
    uint64_t retry_at, retry_wait; /* something failed: not before this, and then for so long */
    struct fiber_mutex base_lock;  /* one base at a time */
    bool base_hurry;               /* a checkpoint waits for the one that is being written */
    struct fiber_cond work;
    struct image_stats stats;
};

extern const struct kv_slice image_meta_key, image_mended_key, image_sum_key;

/* ---- image.c ---- */
/* Calls `row` for the rows from <= key < to; `row` may suspend. */
int image_walk(struct image *im, enum kv_table t, struct kv_slice from, struct kv_slice to,
               int (*row)(void *arg, enum kv_table t, const struct kv_row *row), void *arg);
/* KV_META has some rows that belong to one KV store, and are not in the copy. */
bool image_meta_is_local(struct kv_slice key);
/* The copy cannot be continued: the next begins with a new base. Does not suspend. */
void image_lose(struct image *im);
/* Not so soon again. */
void image_put_off(struct image *im);
void image_keep(struct image *im); /* room for the copy, from users */
/* Bytes of rows in the base and the increments that are named. */
void image_sizes(const struct image *im, uint64_t *ret_base, uint64_t *ret_rest);

/* ---- image_write.c ---- */
/* Writes a base: all rows, as they are when they are read. `haste`: its records may take the
 * journal's reserve, and it does not rest. Suspends, for long. */
void image_write_base(struct image *im, bool haste);
/* Writes what is frozen as an increment; *ret_run is the caller's. Suspends. */
int image_write_increment(struct image *im, struct image_run *ret_run);

/* ---- image_drop.c ---- */
/* The run is no part of the copy (any more): it is to be dropped. Empties *run. */
void image_leave(struct image *im, struct image_run *run);
/* At start: finds the runs that nothing names. Suspends. */
int image_find_left(struct image *im);
/* Drops what is to be dropped, piece by piece. Suspends. */
int image_drop_left(struct image *im);

/* The metadata made anew from the drives alone; see image.c for what there is to make it from. */
#pragma once

#include "lib/kv/kv.h"
#include "lib/rt/env.h"

struct rebuild_result {
    uint64_t settled; /* the copy's state: after this record ... */
    uint64_t time;    /* ... at this time, ns since the Unix epoch; the journal has what followed */
    uint64_t rows;
    uint64_t chunks, chunks_lost; /* of the copy: read; not to be had any more */
};

/* Fills an empty KV store, or one that an earlier rebuild left unfinished, such that opening the
 * partition replays the journal and has the exact state. Drives are not written, but for what
 * replaying a journal mends in it.
 *
 * ERR_EXIST: the KV store has a store. ERR_NOENT: the journal names no copy, or one that it does
 * not go on from any more. ERR_LOST: parts of the copy cannot be read from any drive (ret_result
 * tells how many); with `partial` what can be had is loaded all the same. ERR_JOURNAL, ERR_LOST,
 * ERR_CONFIG, ERR_LOCKED as partition_open. Suspends.
 */
int rebuild_metadata(struct env *env, struct kv *kv, const char *const *drive_paths,
                     unsigned drives, bool partial, struct rebuild_result *ret_result);

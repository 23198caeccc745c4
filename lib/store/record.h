/* The journal's record types, and the door through which modules submit records.
 *
 * A record is a change of state. Each module encodes and applies its own bodies; this table only
 * keeps their numbers apart. Numbers are on media: never reused.
 */
#pragma once

#include <stdint.h>
#include <sys/uio.h>

enum record_type {
    RECORD_SEGMENT_OPEN = 1, /* lib/store/segment.c */
    RECORD_SEGMENT_FREE = 2,
    RECORD_SCRUB = 3,          /* daemon/scrubber.c */
    RECORD_CHUNK_MOVE = 10,    /* dedup/compact.c */
    RECORD_CHUNK_LOST = 11,    /* dedup/lost.c */
    RECORD_VOLUME_CREATE = 20, /* daemon/volume*.c */
    RECORD_VOLUME_RESIZE = 21,
    RECORD_VOLUME_DELETE = 22,
    RECORD_VOLUME_REAP = 23,
    RECORD_VOLUME_WRITE = 24,
    RECORD_VOLUME_MAP = 25,
    RECORD_VOLUME_ZERO = 26,
    RECORD_VOLUME_SNAPSHOT = 27, /* daemon/volume_snap.c */
    RECORD_VOLUME_SNAPSHOT_DELETE = 28,
    RECORD_VOLUME_CLONE = 29,
    RECORD_VOLUME_ROLLBACK = 30,
    RECORD_VOLUME_MERGE = 31,
    RECORD_OBJECT_PUT = 40, /* daemon/study*.c */
    RECORD_OBJECT_DELETE = 41,
    RECORD_BUCKET_CREATE = 50, /* daemon/bucket*.c */
    RECORD_BUCKET_DELETE = 51,
    RECORD_BUCKET_PUT = 52,
    RECORD_BUCKET_REMOVE = 53,
    RECORD_BUCKET_REAP = 54,
    RECORD_IMAGE = 60, /* daemon/image.c */
    RECORD_IMAGE_PIECE = 61,
    RECORD_IMAGE_DROP = 62,
};

/* Implemented by the partition. */
struct record_log {
    /* Journals a record and suspends until it is durable and applied; returns what applying it
     * returned, or why it could not be journaled. `flags` are journal_append_flags; `context` is
     * handed to the apply function (NULL in replay). */
    int (*submit)(struct record_log *log, enum record_type type, const struct iovec *iov,
                  unsigned n, unsigned flags, void *context);
};

static inline int record_submit(struct record_log *log, enum record_type type,
                                const struct iovec *iov, unsigned n, unsigned flags, void *context)
{
    return log->submit(log, type, iov, n, flags, context);
}

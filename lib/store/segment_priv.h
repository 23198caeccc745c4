/* The segment table's state, shared by segment.c (table, slots), segment_write.c and
 * segment_read.c. */
#pragma once

#include "lib/base/metric.h"
#include "lib/rt/sync.h"
#include "lib/store/ec.h"
#include "lib/store/segment.h"

struct drive_io;
#define SEGMENT_TRIES 8u /* of compaction, before a segment is left alone */

struct segments {
    struct driveset *ds;
    struct record_log *log;
    struct hmap by_id;
    struct list all, dirty;
    uint64_t next_id;
    uint8_t *slots[FORMAT_DRIVES_MAX]; /* bitmap of slots taken, per drive */
    uint64_t slots_free[FORMAT_DRIVES_MAX];
    uint64_t slots_taken;
    uint64_t live, chunks; /* of all segments */
    struct segment *open[SEGMENT_STREAMS];
    struct fiber_mutex stream_lock[SEGMENT_STREAMS];
    struct ec *codes[FORMAT_COLS_MAX + 1][FORMAT_COLS_MAX + 1]; /* [k][m], made when first used */
    /* Sealed segments, as segment_file keeps them. Compaction looks for the next one at each of its
     * steps, and there may be a hundred thousand. */
    struct list emptied;                       /* nothing alive: candidates of the sweep */
    struct list fills[SEGMENT_FILLS];          /* something alive, by how much */
    struct list parities[FORMAT_COLS_MAX + 1]; /* of these by the parity left; without those that
                                                  compaction leaves alone, as in `leaving` */
    struct list leaving;                       /* with a column on one of leaving_drives */
    uint64_t given_up, leaving_drives, taking_drives; /* bit per drive; as the lists know them */
    unsigned new_k, new_m; /* what new segments get, as the lists know it */
    bool evening;          /* drives are being made even: segment_watch_even */
    uint64_t even_left;    /* segments that may yet be moved for it */
    uint64_t even_rest;    /* the drives among which no more can be done; 0: none */
    uint64_t room;         /* bytes of chunks that all segments could hold */
    uint64_t freed;        /* the same of those freed since the start */
    uint64_t survivors;    /* and of those opened since, but for users' writes */
    struct metric_hist stripe_time, direct_time, careful_time;
};

struct segment *segment_find(const struct segments *ss, uint64_t id);
struct ec *segment_code(struct segments *ss, unsigned k, unsigned m);

/* The geometry for new segments: m as the profile says, k as the drives that count allow. */
void segment_geometry(const struct segments *ss, unsigned *ret_k, unsigned *ret_m);

/* Parity columns that are left when the drives of `gone` (bit per drive) are. */
unsigned segment_parity(const struct segment *s, uint64_t gone);
/* Has it a column on one of these drives? */
bool segment_on(const struct segment *s, uint64_t drives);

/* Others are given up, or leave (bit per drive); their segments are filed anew where that is so. */
void segment_file_drives(struct segments *ss, uint64_t given_up, uint64_t leaving);

/* Bytes of chunks that it could hold; bytes that so many chunks take in directories. */
uint64_t segment_room(const struct segments *ss, const struct segment *s);
uint64_t segment_directory(uint64_t chunks);

/* What so many bytes of a segment take when they are moved, as a part of what its slots then give
 * back, in `parts`: more than that where it does not pay. */
uint64_t segment_cost(const struct segments *ss, const struct segment *s, uint64_t bytes,
                      unsigned parts);

/* How many segments of n columns so many slots of each drive allow: the largest t with
 * sum(min(slots_i, t)) >= n t. */
uint64_t segment_count_possible(const uint64_t *slots, unsigned drives, unsigned n);

/* Opens a new segment for the stream: slots, fragment headers, record. `last`: even where there is
 * room for this one only. Suspends. */
int segment_open_new(struct segments *ss, enum segment_stream stream, bool last,
                     struct segment **ret_segment);

/* Looks at the results of writes to columns of a segment, io i being to column i: counts them, puts
 * out the drives that failed. Returns 0; ERR_IO when a drive was put out; ERR_NOSPC when none was,
 * and the file system under one is full: that is no fault of the drive, and to put out all drives
 * that share the file system would take the store down. */
int segment_columns_written(struct segments *ss, const struct segment *s,
                            const struct drive_io *ios);

/* Reads loc->stored bytes by trying combinations of k columns until `fits` says so; ERR_LOST when
 * none does. The caller keeps the segment. Suspends. */
int segment_read_careful(struct segments *ss, struct segment *s, const struct segment_loc *loc,
                         bool (*fits)(const struct segment_loc *loc, const uint8_t *bytes),
                         struct buf **ret_buf);

/* Does the chunk lie within its segment? */
bool segment_loc_sane(const struct segments *ss, const struct segment *s,
                      const struct segment_loc *l);
/* Steps to the next combination of k out of n, in lexicographic order; false after the last. */
bool segment_next_combination(unsigned *pick, unsigned k, unsigned n);

/* Is this the header and directory (loc->stored bytes in all) of a stripe at loc's place? */
bool segment_directory_fits(const struct segment_loc *loc, const uint8_t *bytes);

/* The first unit of a column's slot, as it is to be. */
void segment_fragment_header(const struct segments *ss, const struct segment *s, unsigned column,
                             struct buf *b);

/* What was found of a stripe, until segment_exam_free. */
struct segment_exam {
    struct segments *ss;
    struct segment segment; /* a copy: a lane reads it */
    struct ec *code;
    const struct segment_loc *locs;
    size_t count;
    size_t column; /* bytes */
    /* The columns one behind the other: as read (those in `have`; a drive that is late may write to
     * the others any time); as k of them say. */
    struct buf *read_buf, *made_buf;
    uint8_t *read, *made; /* in them */
    uint8_t have[FORMAT_COLS_MAX];
    unsigned have_count;
    struct segment_verdict verdict;
    bool proved; /* `made` is what every column has to be */
};

/* As segment_verify, keeping what was computed. Suspends. */
int segment_examine(struct segments *ss, const struct segment_loc *locs, size_t n, bool *lost,
                    struct segment_exam *ret_exam);
void segment_exam_free(struct segment_exam *e);

static inline uint64_t segment_column_off(const struct segments *ss, const struct segment *s,
                                          unsigned column)
{
    return drive_slot_off(ss->ds, s->slot[column]);
}

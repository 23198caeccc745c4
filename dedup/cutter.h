/* Cuts a DICOM Part 10 stream into chunks: the header and what follows Pixel Data on one side,
 * frames and fragments on the other, so that the same pixels under another header are found again.
 *
 * Pure: bytes in, cuts out. The cutter never holds bytes; it says of the bytes it is shown, in
 * order, what they are. Whatever the input, the pieces it names cover the stream exactly once: a
 * wrong idea of where frames lie costs deduplication, never content.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/dicom/dcm.h"

enum cutter_kind {
    CUTTER_HEADER, /* goes with the header: preamble, meta, elements, item heads, what follows */
    CUTTER_FRAME,  /* pixel bytes */
};

struct cutter {
    struct dcm_scan scan;
    bool opaque;          /* pixel bytes are compressed already */
    int state;            /* private from here on */
    uint64_t left;        /* bytes of the frame, fragment or glue being passed */
    uint64_t frame_bytes; /* size of a native frame; 0: unknown */
    uint64_t pixel_left;  /* native pixel bytes still to come */
    uint64_t piece_left;  /* until the next cut within a frame */
    uint64_t frames_cut;
    uint8_t item[8];
    unsigned item_len;
    uint32_t piece_max;
    bool boundary; /* the next frame byte begins a new chunk */
};

/* Starts on the data set, with its transfer syntax; the Part 10 head before it is header. piece_max
 * bounds a chunk. */
void cutter_init(struct cutter *c, const char *transfer_syntax, uint32_t piece_max);

struct cut {
    enum cutter_kind kind;
    size_t len;  /* of the bytes shown, this many are of that kind */
    bool begins; /* FRAME: a new chunk begins with these bytes */
};

/* Classifies a prefix of the n > 0 bytes that come next; ret_cut->len is at least 1. */
void cutter_next(struct cutter *c, const uint8_t *p, size_t n, struct cut *ret_cut);

/* Where the frames of an instance's Pixel Data lie: by arithmetic when native, by the Basic Offset
 * Table or by counting fragments when encapsulated (PS3.5 section A.4). Pure: bytes come by a
 * callback.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAMES_SEGMENTS_MAX (1u << 20) /* fragments of one Pixel Data */

struct frame_segment {
    uint64_t off, len; /* in the Part 10 stream */
    uint32_t frame;    /* 1 .. */
    uint32_t part;     /* 0 ..: which of the wanted frames it belongs to */
};

struct frame_list {
    size_t count, cap;
    struct frame_segment *segments; /* in the order of the frames asked for */
};

struct frame_source {
    /* Reads all of len bytes at off of the Part 10 stream, or fails. May suspend. */
    int (*read)(void *arg, uint64_t off, void *buf, size_t len);
    void *arg;
    uint64_t bytes;     /* of the Part 10 stream */
    uint64_t pixel_off; /* of Pixel Data's value */
    uint64_t pixel_len; /* native only */
    bool encapsulated;
    uint32_t rows, columns, samples, bits_allocated, frames;
};

void frame_list_free(struct frame_list *l);

/* The segments of the frames wanted (numbers from 1; count 0: all). ERR_NOENT: there is no such
 * frame; ERR_FORMAT: Pixel Data is broken; ERR_UNSUPPORTED: frames cannot be told apart (several
 * fragments per frame and no offset table, or frames that do not begin at a byte). */
int frames_find(const struct frame_source *src, const uint32_t *wanted, size_t count,
                struct frame_list *ret_list);

/* The media type of frames of a transfer syntax as they are stored (PS3.18 table 8.7.3-5):
 * "application/octet-stream" for native ones and for what has no type of its own. */
const char *frames_media_type(const char *transfer_syntax);

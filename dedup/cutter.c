/* The DICOM cutter; see cutter.h.
 *
 * Native pixels are cut into frames of rows x columns x samples x bits / 8 bytes, if the header
 * says so and it fits the value's length; encapsulated ones at their fragments (PS3.5 section A.4),
 * whose 8-byte item heads count as header. Frames longer than piece_max are cut at multiples of it
 * from their own start, the same wherever the frame stands. Small frames are put together, at least
 * CUTTER_SMALL bytes to a chunk, so that recipes stay short. After Pixel Data all is header.
 */
#include "dedup/cutter.h"

#include <string.h>

#include "lib/base/codec.h"

#define CUTTER_SMALL (32u * 1024)
#define CUTTER_ITEM  0xe000fffeu /* (FFFE,E000) read as little-endian u32 */

enum { CUTTER_SCANNING, CUTTER_NATIVE, CUTTER_ITEM_HEAD, CUTTER_FRAGMENT, CUTTER_REST };

void cutter_init(struct cutter *c, const char *transfer_syntax, uint32_t piece_max)
{
    memset(c, 0, sizeof(*c));
    dcm_scan_init(&c->scan, transfer_syntax);
    c->piece_max = piece_max;
    c->state = CUTTER_SCANNING;
    c->boundary = true;
    /* Deflated data is one compressed stream: no header to tell apart. It is cut like pixels. */
    if (c->scan.deflated) {
        c->state = CUTTER_NATIVE;
        c->pixel_left = UINT64_MAX;
        c->opaque = true;
    }
}

static uint64_t cutter_frame_size(const struct dcm_scan *s)
{
    uint64_t bits = (uint64_t)s->rows * s->columns;
    uint64_t samples = s->samples ? s->samples : 1;

    if (bits == 0 || s->bits_allocated == 0 || s->bits_allocated > 64 || samples > 16)
        return 0;
    bits *= samples * s->bits_allocated; /* 2^32 x 16 x 64 at most: fits */
    return bits % 8 ? 0 : bits / 8;
}

static void cutter_found(struct cutter *c)
{
    const struct dcm_scan *s = &c->scan;

    if (s->encapsulated || s->pixel_len == UINT64_MAX) {
        c->state = CUTTER_ITEM_HEAD;
        c->opaque = true;
        return;
    }
    c->state = CUTTER_NATIVE;
    c->pixel_left = s->pixel_len;
    c->frame_bytes = cutter_frame_size(s);
    if (c->frame_bytes > s->pixel_len)
        c->frame_bytes = 0;
    /* Several small frames make one chunk. */
    if (c->frame_bytes && c->frame_bytes < CUTTER_SMALL)
        c->frame_bytes *= (CUTTER_SMALL + c->frame_bytes - 1) / c->frame_bytes;
}

/* Passes pixel bytes: of a native frame or a fragment with `left` bytes to go. */
static void cutter_pixels(struct cutter *c, size_t n, uint64_t left, struct cut *ret_cut)
{
    if (c->boundary)
        c->piece_left = c->piece_max;
    if (n > left)
        n = (size_t)left;
    if (n > c->piece_left)
        n = (size_t)c->piece_left;
    *ret_cut = (struct cut){CUTTER_FRAME, n, c->boundary};
    c->piece_left -= n;
    c->boundary = c->piece_left == 0;
}

static void cutter_native(struct cutter *c, size_t n, struct cut *ret_cut)
{
    if (c->left == 0) {
        c->left = c->frame_bytes && c->frame_bytes < c->pixel_left ? c->frame_bytes : c->pixel_left;
        c->boundary = true;
    }
    cutter_pixels(c, n, c->left, ret_cut);
    c->left -= ret_cut->len;
    if (c->pixel_left != UINT64_MAX) {
        c->pixel_left -= ret_cut->len;
        if (c->pixel_left == 0)
            c->state = CUTTER_REST;
    }
}

/* An item head: tag and length. Anything but an item with a length ends the fragments. */
static void cutter_item_head(struct cutter *c, const uint8_t *p, size_t n, struct cut *ret_cut)
{
    size_t take = 8 - c->item_len;
    uint32_t len;

    if (take > n)
        take = n;
    memcpy(c->item + c->item_len, p, take);
    c->item_len += (unsigned)take;
    *ret_cut = (struct cut){CUTTER_HEADER, take, false};
    if (c->item_len < 8)
        return;
    c->item_len = 0;
    len = codec_get_le32(c->item + 4);
    if (codec_get_le32(c->item) != CUTTER_ITEM || len == UINT32_MAX) {
        c->state = CUTTER_REST;
    } else if (len > 0) {
        c->state = CUTTER_FRAGMENT;
        c->left = len;
        c->boundary = true;
    }
}

static void cutter_fragment(struct cutter *c, size_t n, struct cut *ret_cut)
{
    cutter_pixels(c, n, c->left, ret_cut);
    c->left -= ret_cut->len;
    if (c->left == 0)
        c->state = CUTTER_ITEM_HEAD;
}

static void cutter_scan(struct cutter *c, const uint8_t *p, size_t n, struct cut *ret_cut)
{
    size_t used = dcm_scan_push(&c->scan, p, n);

    if (c->scan.found) {
        cutter_found(c);
    } else if (c->scan.end_of_use) {
        c->state = CUTTER_REST;
        used = n;
    }
    *ret_cut = (struct cut){CUTTER_HEADER, used, false};
}

void cutter_next(struct cutter *c, const uint8_t *p, size_t n, struct cut *ret_cut)
{
    ret_cut->len = 0;
    if (c->state == CUTTER_SCANNING)
        cutter_scan(c, p, n, ret_cut);
    if (ret_cut->len)
        return;
    /* Not scanning, or Pixel Data began right here. */
    switch (c->state) {
    case CUTTER_NATIVE:
        if (c->pixel_left == 0)
            c->state = CUTTER_REST; /* an empty value */
        else {
            cutter_native(c, n, ret_cut);
            return;
        }
        break;
    case CUTTER_ITEM_HEAD:
        cutter_item_head(c, p, n, ret_cut);
        return;
    case CUTTER_FRAGMENT:
        cutter_fragment(c, n, ret_cut);
        return;
    default:
        break;
    }
    *ret_cut = (struct cut){CUTTER_HEADER, n, false};
}

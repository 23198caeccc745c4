/* Frames in Pixel Data.
 *
 * With a Basic Offset Table only the wanted frames' fragments are visited. Without one, fragments
 * are counted: one each is the usual case, a single frame takes them all, and anything else is
 * refused rather than guessed.
 */
#include "proto/dicomweb/frames.h"

#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define ITEM_TAG      0xe000fffeu /* as read in little endian */
#define DELIMITER_TAG 0xe0ddfffeu

void frame_list_free(struct frame_list *l)
{
    mem_free(l->segments);
    *l = (struct frame_list){0};
}

static int add_segment(struct frame_list *l, uint64_t off, uint64_t len, uint32_t frame,
                       size_t part)
{
    if (l->count == FRAMES_SEGMENTS_MAX)
        return ERR_TOOBIG;
    if (l->count == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 16;
        l->segments = mem_realloc(l->segments, l->cap * sizeof(l->segments[0]));
    }
    l->segments[l->count++] = (struct frame_segment){off, len, frame, (uint32_t)part};
    return 0;
}

/* ---- Native ---------------------------------------------------------------------------------- */

static int native_length(const struct frame_source *src, uint64_t *ret_len)
{
    uint64_t pixels = (uint64_t)src->rows * src->columns, len, all;

    if (src->samples > 16 || src->bits_allocated > 64 || pixels == 0 || src->bits_allocated == 0 ||
        src->samples == 0)
        return ERR_FORMAT;
    if (pixels * src->samples * src->bits_allocated % 8 && src->frames > 1)
        return ERR_UNSUPPORTED; /* bits run on from frame to frame */
    len = (pixels * src->samples * src->bits_allocated + 7) / 8;
    all = src->pixel_len;
    if (all / src->frames < len && src->samples == 3 && src->bits_allocated == 8 &&
        all / src->frames / 2 == pixels)
        len = pixels * 2; /* YBR_FULL_422: two pixels share their colour */
    if (len > all || all / len < src->frames)
        return ERR_FORMAT;
    *ret_len = len;
    return 0;
}

static int find_native(const struct frame_source *src, const uint32_t *wanted, size_t count,
                       struct frame_list *l)
{
    uint64_t len;
    int r;

    if (src->pixel_off > src->bytes || src->pixel_len > src->bytes - src->pixel_off)
        return ERR_FORMAT;
    r = native_length(src, &len);
    for (size_t i = 0; i < count && r == 0; i++)
        r = add_segment(l, src->pixel_off + (wanted[i] - 1) * len, len, wanted[i], i);
    return r;
}

/* ---- Encapsulated ---------------------------------------------------------------------------- */

struct item {
    bool end;     /* the sequence delimiter */
    uint64_t off; /* of the value */
    uint32_t len;
};

static int read_item(const struct frame_source *src, uint64_t off, struct item *ret)
{
    uint8_t head[8];
    uint32_t tag;
    int r;

    if (off > src->bytes || src->bytes - off < sizeof(head))
        return ERR_FORMAT;
    r = src->read(src->arg, off, head, sizeof(head));
    if (r < 0)
        return r;
    tag = codec_get_le32(head);
    ret->end = tag == DELIMITER_TAG;
    ret->off = off + sizeof(head);
    ret->len = codec_get_le32(head + 4);
    if (ret->end)
        return 0;
    if (tag != ITEM_TAG || ret->len > src->bytes - ret->off)
        return ERR_FORMAT;
    return 0;
}

/* The fragments from off up to `until` (UINT64_MAX: the delimiter), all of frame `frame`, or
 * numbered from 1 when that is 0. */
static int walk(const struct frame_source *src, uint64_t off, uint64_t until, uint32_t frame,
                size_t part, struct frame_list *l)
{
    struct item it;
    uint32_t number = 0;

    while (off < until) {
        int r = read_item(src, off, &it);

        if (r == 0 && it.end)
            return until == UINT64_MAX ? 0 : ERR_FORMAT;
        if (r == 0)
            r = add_segment(l, it.off, it.len, frame ? frame : ++number, part);
        if (r < 0)
            return r;
        off = it.off + it.len;
    }
    return off == until ? 0 : ERR_FORMAT;
}

/* Does a fragment begin with SOI of JPEG and JPEG-LS, or with SOC and SIZ of JPEG 2000? */
static int starts_frame(const struct frame_source *src, const struct frame_segment *s)
{
    uint8_t p[4];
    int r;

    if (s->len < sizeof(p))
        return 0;
    r = src->read(src->arg, s->off, p, sizeof(p));
    if (r < 0)
        return r;
    return p[0] == 0xff &&
           ((p[1] == 0xd8 && p[2] == 0xff) || (p[1] == 0x4f && p[2] == 0xff && p[3] == 0x51));
}

/* Numbers fragments, of which there are more than frames, by their frames. */
static int number_by_marker(const struct frame_source *src, struct frame_list *all)
{
    uint32_t frame = 0;

    for (size_t i = 0; i < all->count; i++) {
        int r = starts_frame(src, &all->segments[i]);

        if (r < 0)
            return r;
        frame += (uint32_t)r;
        if (frame == 0 || frame > src->frames)
            return ERR_UNSUPPORTED;
        all->segments[i].frame = frame;
    }
    return frame == src->frames ? 0 : ERR_UNSUPPORTED;
}

/* The frames wanted out of a list that is in the order of frames. */
static int pick(const struct frame_list *all, const uint32_t *wanted, size_t count,
                struct frame_list *l)
{
    int r = 0;

    for (size_t i = 0; i < count; i++) {
        size_t low = 0, high = all->count;

        while (low < high) {
            size_t mid = (low + high) / 2;

            if (all->segments[mid].frame < wanted[i])
                low = mid + 1;
            else
                high = mid;
        }
        for (; low < all->count && all->segments[low].frame == wanted[i] && r == 0; low++)
            r = add_segment(l, all->segments[low].off, all->segments[low].len, wanted[i], i);
    }
    return r;
}

static int find_by_count(const struct frame_source *src, uint64_t first, const uint32_t *wanted,
                         size_t count, struct frame_list *l)
{
    struct frame_list all = {0};
    int r = 0;

    if (src->frames == 1) {
        for (size_t i = 0; i < count && r == 0; i++)
            r = walk(src, first, UINT64_MAX, 1, i, l);
        return r;
    }
    r = walk(src, first, UINT64_MAX, 0, 0, &all);
    if (r == 0 && all.count < src->frames)
        r = ERR_FORMAT;
    if (r == 0 && all.count > src->frames)
        r = number_by_marker(src, &all);
    if (r == 0)
        r = pick(&all, wanted, count, l);
    frame_list_free(&all);
    return r;
}

static int find_by_table(const struct frame_source *src, uint64_t first, const uint8_t *table,
                         const uint32_t *wanted, size_t count, struct frame_list *l)
{
    int r = 0;

    for (size_t i = 0; i < count && r == 0; i++) {
        uint32_t k = wanted[i] - 1;
        uint64_t from = first + codec_get_le32(table + 4 * (size_t)k), until = UINT64_MAX;

        if (k + 1 < src->frames)
            until = first + codec_get_le32(table + 4 * ((size_t)k + 1));
        r = until > from ? walk(src, from, until, wanted[i], i, l) : ERR_FORMAT;
    }
    return r;
}

static int find_encapsulated(const struct frame_source *src, const uint32_t *wanted, size_t count,
                             struct frame_list *l)
{
    struct item table;
    uint64_t first;
    uint8_t *bytes;
    int r = read_item(src, src->pixel_off, &table);

    if (r < 0)
        return r;
    if (table.end)
        return ERR_FORMAT;
    first = table.off + table.len;
    /* An offset table that has not one entry a frame says nothing. */
    if (table.len != (uint64_t)src->frames * 4 || table.len > FRAMES_SEGMENTS_MAX * 4)
        return find_by_count(src, first, wanted, count, l);
    bytes = mem_alloc(table.len);
    r = src->read(src->arg, table.off, bytes, table.len);
    if (r == 0)
        r = find_by_table(src, first, bytes, wanted, count, l);
    mem_free(bytes);
    return r;
}

int frames_find(const struct frame_source *src, const uint32_t *wanted, size_t count,
                struct frame_list *ret_list)
{
    struct frame_source s = *src;
    struct frame_list l = {0};
    uint32_t *all = NULL;
    int r = 0;

    if (s.frames == 0)
        s.frames = 1;
    if (count == 0) {
        if (s.frames > FRAMES_SEGMENTS_MAX)
            return ERR_TOOBIG;
        count = s.frames;
        wanted = all = mem_calloc(count, sizeof(all[0]));
        for (uint32_t i = 0; i < s.frames; i++)
            all[i] = i + 1;
    }
    for (size_t i = 0; i < count; i++)
        if (wanted[i] == 0 || wanted[i] > s.frames)
            r = ERR_NOENT;
    if (r == 0)
        r = s.encapsulated ? find_encapsulated(&s, wanted, count, &l)
                           : find_native(&s, wanted, count, &l);
    mem_free(all);
    if (r < 0)
        frame_list_free(&l);
    else
        *ret_list = l;
    return r;
}

const char *frames_media_type(const char *transfer_syntax)
{
    static const char prefix[] = "1.2.840.10008.1.2.";
    static const struct {
        const char *suffix, *type;
    } types[] = {
        {"4.50", "image/jpeg"},   {"4.51", "image/jpeg"},   {"4.53", "image/jpeg"},
        {"4.55", "image/jpeg"},   {"4.57", "image/jpeg"},   {"4.70", "image/jpeg"},
        {"4.80", "image/jls"},    {"4.81", "image/jls"},    {"4.90", "image/jp2"},
        {"4.91", "image/jp2"},    {"4.92", "image/jpx"},    {"4.93", "image/jpx"},
        {"4.100", "video/mpeg2"}, {"4.101", "video/mpeg2"}, {"4.102", "video/mp4"},
        {"4.103", "video/mp4"},   {"4.104", "video/mp4"},   {"4.105", "video/mp4"},
        {"4.106", "video/mp4"},   {"4.107", "video/H265"},  {"4.108", "video/H265"},
        {"4.110", "image/jxl"},   {"4.111", "image/jxl"},   {"4.112", "image/jxl"},
        {"4.201", "image/jphc"},  {"4.202", "image/jphc"},  {"4.203", "image/jphc"},
        {"5", "image/dicom-rle"},
    };

    if (strncmp(transfer_syntax, prefix, sizeof(prefix) - 1) == 0)
        for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
            if (strcmp(transfer_syntax + sizeof(prefix) - 1, types[i].suffix) == 0)
                return types[i].type;
    return "application/octet-stream";
}

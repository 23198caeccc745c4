/* Walking a segment by what it says of itself: for compaction, for checks, and for making the
 * tables anew from the drives alone.
 *
 * A stripe begins with a header and a directory under one CRC. Its width is not known before the
 * header is read, so that is read first, a unit of column 0 (or decoded from the same row of the
 * others), and then the directory in full. A stripe that was written and never named by a record
 * may have been torn: then its width is unknown, and the walk goes on unit by unit. Data that looks
 * like a header does no harm: whoever walks compares what is listed with the chunk table.
 *
 * The walk takes the first header that fits. A drive that lost a write can show an older one: of a
 * stripe that was never named, in the same place, before a crash. Who has no table to fall back
 * upon looks closer (segment_stripes_at).
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/segment.h"
#include "lib/store/segment_priv.h"

static size_t directory_bytes(const struct format_stripe *h)
{
    return sizeof(*h) + (size_t)h->entries * sizeof(struct format_stripe_entry);
}

/* Is this the header of a stripe at loc's place? (Of one whose directory may follow elsewhere.) */
static bool header_fits(const struct segment_loc *loc, const uint8_t *bytes)
{
    struct format_stripe h;

    memcpy(&h, bytes, sizeof(h));
    return h.magic == FORMAT_STRIPE_MAGIC && h.version == FORMAT_VERSION &&
           h.segment == loc->stripe.segment && h.offset == loc->stripe.offset && h.width > 0 &&
           h.entries > 0 && h.entries <= SEGMENT_STRIPE_MAX / sizeof(struct format_stripe_entry);
}

bool segment_directory_fits(const struct segment_loc *loc, const uint8_t *bytes)
{
    struct format_stripe h;
    uint32_t crc;

    memcpy(&h, bytes, sizeof(h));
    if (!header_fits(loc, bytes) || directory_bytes(&h) != loc->stored)
        return false;
    crc = h.crc;
    h.crc = 0;
    return crc32c(crc32c(0, &h, sizeof(h)), bytes + sizeof(h), loc->stored - sizeof(h)) == crc;
}

/* Where the whole directory is that the header announces; false when that cannot be. */
static bool directory_place(const struct segments *ss, const struct segment *s,
                            const struct format_stripe *h, struct segment_loc *loc)
{
    loc->stripe.width = h->width;
    loc->stored = (uint32_t)directory_bytes(h);
    return (uint64_t)h->offset + h->width <= ss->ds->super.slot_size / FORMAT_UNIT &&
           loc->stored <= (uint64_t)h->width * FORMAT_UNIT * s->k;
}

/* Reads the whole directory of the stripe at `offset`; ERR_NOENT when there is none. Suspends. */
static int directory_read(struct segments *ss, struct segment *s, uint32_t offset,
                          struct buf **ret_buf, struct format_stripe *ret_header)
{
    struct segment_loc loc = {.stripe = {s->id, offset, 1}, .stored = FORMAT_UNIT};
    struct buf *first;
    struct format_stripe h;
    int rc = segment_read_careful(ss, s, &loc, header_fits, &first);

    if (rc < 0)
        return rc == ERR_LOST ? ERR_NOENT : rc;
    memcpy(&h, first->data, sizeof(h));
    buf_unref(first);
    if (!directory_place(ss, s, &h, &loc))
        return ERR_NOENT;
    rc = segment_read_careful(ss, s, &loc, segment_directory_fits, ret_buf);
    if (rc < 0)
        return rc == ERR_LOST ? ERR_NOENT : rc;
    *ret_header = h;
    return 0;
}

static struct segment_entry *directory_decode(const struct format_stripe *h, const uint8_t *bytes)
{
    struct segment_entry *entries = mem_calloc(h->entries, sizeof(*entries));

    for (uint32_t i = 0; i < h->entries; i++) {
        struct format_stripe_entry e;

        memcpy(&e, bytes + sizeof(*h) + i * sizeof(e), sizeof(e));
        entries[i] = (struct segment_entry){
            .id = e.chunk,
            .loc = {.stripe = {h->segment, h->offset, h->width},
                    .position = e.position,
                    .stored = e.stored,
                    .crc = e.crc},
            .raw = e.raw,
            .codec = e.codec,
            .fingerprint_algorithm = e.fingerprint_algorithm,
        };
        memcpy(entries[i].fingerprint, e.fingerprint, sizeof(e.fingerprint));
    }
    return entries;
}

int segment_next_stripe(struct segments *ss, uint64_t segment, uint32_t *offset,
                        struct segment_entry **ret_entries, size_t *ret_count)
{
    struct segment *s = segment_find(ss, segment);

    CHECK(s && s->holds > 0);
    if (*offset == 0)
        *offset = 1; /* behind the fragment header */
    for (; *offset < s->used; ++*offset) {
        struct format_stripe h;
        struct buf *b;
        int rc = directory_read(ss, s, *offset, &b, &h);

        if (rc == ERR_NOENT)
            continue;
        if (rc < 0)
            return rc;
        *ret_entries = directory_decode(&h, b->data);
        *ret_count = h.entries;
        *offset += h.width;
        buf_unref(b);
        return 0;
    }
    return ERR_NOENT;
}

/* ---- All that may begin at a place ---- */

#define VERSIONS_MAX 8u /* of one place; each takes lies or a crash of its own */

struct versions {
    struct segment_loc loc;      /* first: that is what the predicates are given */
    uint32_t seen[VERSIONS_MAX]; /* by their CRC */
    unsigned count;
};

static uint32_t header_crc(const uint8_t *bytes)
{
    struct format_stripe h;

    memcpy(&h, bytes, sizeof(h));
    return h.crc;
}

static bool header_is_new(const struct segment_loc *loc, const uint8_t *bytes)
{
    const struct versions *v = (const struct versions *)loc;
    uint32_t crc = header_crc(bytes);

    for (unsigned i = 0; i < v->count; i++)
        if (v->seen[i] == crc)
            return false;
    return header_fits(loc, bytes);
}

/* The directory that belongs to the header seen last. */
static bool directory_is_last(const struct segment_loc *loc, const uint8_t *bytes)
{
    const struct versions *v = (const struct versions *)loc;

    return header_crc(bytes) == v->seen[v->count - 1] && segment_directory_fits(loc, bytes);
}

int segment_stripes_at(struct segments *ss, uint64_t segment, uint32_t offset,
                       void (*fn)(void *arg, const struct segment_entry *entries, size_t n),
                       void *arg)
{
    struct segment *s = segment_find(ss, segment);
    struct versions v = {.count = 0};

    CHECK(s && s->holds > 0 && offset > 0 && offset < s->used);
    while (v.count < VERSIONS_MAX) {
        struct segment_entry *entries;
        struct format_stripe h;
        struct buf *b;
        int rc;

        v.loc = (struct segment_loc){.stripe = {segment, offset, 1}, .stored = FORMAT_UNIT};
        rc = segment_read_careful(ss, s, &v.loc, header_is_new, &b);
        if (rc < 0)
            return rc == ERR_LOST ? 0 : rc;
        memcpy(&h, b->data, sizeof(h));
        buf_unref(b);
        v.seen[v.count++] = h.crc;
        if (!directory_place(ss, s, &h, &v.loc))
            continue;
        rc = segment_read_careful(ss, s, &v.loc, directory_is_last, &b);
        if (rc == ERR_LOST)
            continue;
        if (rc < 0)
            return rc;
        entries = directory_decode(&h, b->data);
        buf_unref(b);
        fn(arg, entries, h.entries);
        mem_free(entries);
    }
    return 0;
}

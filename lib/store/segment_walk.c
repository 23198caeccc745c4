/* Walking a segment by what it says of itself: for compaction, for checks, and for making the
 * tables anew from the drives alone.
 *
 * A stripe begins with a header and a directory under one CRC. Its width is not known before the
 * header is read, so that is read first, a unit of column 0 (or decoded from the same row of the
 * others), and then the directory in full, which proves both: if it does not, other columns are
 * asked for another header. A stripe that was written and never named by a record
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

/* What was taken for the header of a stripe at a place so far. A header by itself is not proved,
 * only together with its directory, which may be longer than a unit: the first that looks like one
 * can be of a column that rots, or lies, and another be right. */
#define VERSIONS_MAX 8u

struct versions {
    struct segment_loc loc; /* first: that is what the predicates are given */
    struct format_stripe seen[VERSIONS_MAX];
    unsigned count;
};

static bool header_is_new(const struct segment_loc *loc, const uint8_t *bytes)
{
    const struct versions *v = (const struct versions *)loc;

    for (unsigned i = 0; i < v->count; i++)
        if (memcmp(&v->seen[i], bytes, sizeof(v->seen[i])) == 0)
            return false;
    return header_fits(loc, bytes);
}

/* The directory that belongs to the header seen last. */
static bool directory_is_last(const struct segment_loc *loc, const uint8_t *bytes)
{
    const struct versions *v = (const struct versions *)loc;

    return memcmp(&v->seen[v->count - 1], bytes, sizeof(v->seen[0])) == 0 &&
           segment_directory_fits(loc, bytes);
}

/* Reads the next directory at `offset`, header and all, that some k columns have and that was not
 * seen; ERR_NOENT when there is none. Suspends. */
static int directory_read(struct segments *ss, struct segment *s, uint32_t offset,
                          struct versions *v, struct buf **ret_buf)
{
    while (v->count < VERSIONS_MAX) {
        struct format_stripe *h = &v->seen[v->count];
        struct buf *first;
        int rc;

        v->loc = (struct segment_loc){.stripe = {s->id, offset, 1}, .stored = FORMAT_UNIT};
        rc = segment_read_careful(ss, s, &v->loc, header_is_new, &first);
        if (rc < 0)
            return rc == ERR_LOST ? ERR_NOENT : rc;
        memcpy(h, first->data, sizeof(*h));
        buf_unref(first);
        v->count++;
        if (!directory_place(ss, s, h, &v->loc))
            continue;
        rc = segment_read_careful(ss, s, &v->loc, directory_is_last, ret_buf);
        if (rc != ERR_LOST)
            return rc;
    }
    return ERR_NOENT;
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
        struct versions v = {.count = 0};
        struct format_stripe h;
        struct buf *b;
        int rc = directory_read(ss, s, *offset, &v, &b);

        if (rc == ERR_NOENT)
            continue;
        if (rc < 0)
            return rc;
        h = v.seen[v.count - 1];
        *ret_entries = directory_decode(&h, b->data);
        *ret_count = h.entries;
        *offset += h.width;
        buf_unref(b);
        return 0;
    }
    return ERR_NOENT;
}

int segment_stripes_at(struct segments *ss, uint64_t segment, uint32_t offset,
                       void (*fn)(void *arg, const struct segment_entry *entries, size_t n),
                       void *arg)
{
    struct segment *s = segment_find(ss, segment);
    struct versions v = {.count = 0};
    struct buf *b;
    int rc;

    CHECK(s && s->holds > 0 && offset > 0 && offset < s->used);
    while ((rc = directory_read(ss, s, offset, &v, &b)) == 0) {
        const struct format_stripe *h = &v.seen[v.count - 1];
        struct segment_entry *entries = directory_decode(h, b->data);

        buf_unref(b);
        fn(arg, entries, h->entries);
        mem_free(entries);
    }
    return rc == ERR_NOENT ? 0 : rc;
}

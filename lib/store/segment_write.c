/* Writing stripes: packing chunks, encoding, and what happens when a drive fails under it.
 *
 * Packing: the stripe header and directory come first, so that a stripe explains itself. Chunks
 * whose stored size is a multiple of 4 KiB (raw volume blocks) follow, aligned, so that reading one
 * is one unit; the others are packed behind. A small chunk never crosses a column's border: reading
 * it touches one drive.
 */
#include "lib/store/segment.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/drive_io.h"
#include "lib/store/segment_priv.h"

#define SEGMENT_SMALL (64u * 1024)  /* chunks up to this stay within one column */
#define SEGMENT_LARGE (256u * 1024) /* stripes from this on are made on a lane */

static size_t align_unit(size_t n)
{
    return (n + FORMAT_UNIT - 1) & ~(size_t)(FORMAT_UNIT - 1);
}

static size_t directory_size(size_t n)
{
    return sizeof(struct format_stripe) + n * sizeof(struct format_stripe_entry);
}

/* Position for a chunk of `stored` bytes at or behind `at`, in columns of `column` bytes. */
static size_t place_chunk(size_t at, size_t stored, size_t column)
{
    if (stored % FORMAT_UNIT == 0)
        at = align_unit(at);
    if (stored <= SEGMENT_SMALL && stored <= column && at / column != (at + stored - 1) / column)
        at = (at / column + 1) * column;
    return at;
}

/* Sets all positions for columns of `column` bytes; returns where the data ends. */
static size_t place_all(struct segment_chunk *chunks, size_t n, size_t column)
{
    size_t at = directory_size(n);

    for (int aligned = 1; aligned >= 0; aligned--) {
        for (size_t i = 0; i < n; i++) {
            if ((chunks[i].stored % FORMAT_UNIT == 0) != aligned)
                continue;
            at = place_chunk(at, chunks[i].stored, column);
            CHECK(at <= UINT32_MAX);
            chunks[i].position = (uint32_t)at;
            at += chunks[i].stored;
        }
    }
    return at;
}

/* The narrowest column width, in units, into which the chunks fit. */
static uint32_t stripe_width(struct segment_chunk *chunks, size_t n, unsigned k)
{
    size_t total = directory_size(n), column;

    for (size_t i = 0; i < n; i++)
        total += chunks[i].stored;
    column = align_unit((total + k - 1) / k);
    while (place_all(chunks, n, column) > column * k)
        column += FORMAT_UNIT;
    return (uint32_t)(column / FORMAT_UNIT);
}

/* Fills the data columns: directory, chunks, zeroes between and behind. */
static void stripe_fill(uint8_t *data, size_t size, const struct segment_stripe *where,
                        const struct segment_chunk *chunks, size_t n)
{
    struct format_stripe h = {.magic = FORMAT_STRIPE_MAGIC,
                              .version = FORMAT_VERSION,
                              .entries = (uint32_t)n,
                              .segment = where->segment,
                              .offset = where->offset,
                              .width = where->width};

    memset(data, 0, size);
    for (size_t i = 0; i < n; i++) {
        const struct segment_chunk *c = &chunks[i];
        struct format_stripe_entry e = {.chunk = c->id,
                                        .position = c->position,
                                        .stored = c->stored,
                                        .raw = c->raw,
                                        .crc = c->crc,
                                        .codec = c->codec,
                                        .fingerprint_algorithm = c->fingerprint_algorithm};

        memcpy(e.fingerprint, c->fingerprint, 32);
        memcpy(data + sizeof(h) + i * sizeof(e), &e, sizeof(e));
        memcpy(data + c->position, c->data, c->stored);
    }
    h.crc =
        crc32c(crc32c(0, &h, sizeof(h)), data + sizeof(h), n * sizeof(struct format_stripe_entry));
    memcpy(data, &h, sizeof(h));
}

/* Can the stream's open segment take `width` more units, with all its drives counting and the
 * geometry that a new one would get? */
static bool segment_fits(const struct segments *ss, const struct segment *s, uint32_t width)
{
    unsigned k, m;

    if (!s || s->next + width > ss->ds->super.slot_size / FORMAT_UNIT)
        return false;
    for (unsigned i = 0; i < s->k + s->m; i++)
        if (!drive_takes(&ss->ds->drives[s->drive[i]]))
            return false;
    segment_geometry(ss, &k, &m);
    return s->k == k && s->m == m;
}

uint64_t segment_open_rest(const struct segments *ss, enum segment_stream stream)
{
    const struct segment *s = ss->open[stream];

    if (!segment_fits(ss, s, 0))
        return 0;
    return (ss->ds->super.slot_size / FORMAT_UNIT - s->next) * s->k * FORMAT_UNIT;
}

/* Reserves room for the chunks in an open segment of the stream. Suspends. */
static int stripe_reserve(struct segments *ss, enum segment_stream stream, bool last,
                          struct segment_chunk *chunks, size_t n, struct segment **ret_segment,
                          struct segment_stripe *ret_stripe)
{
    struct segment *s;
    uint32_t width = 0;
    int rc = 0;

    fiber_mutex_lock(&ss->stream_lock[stream]);
    s = ss->open[stream];
    if (s)
        width = stripe_width(chunks, n, s->k);
    if (!segment_fits(ss, s, width)) {
        rc = segment_open_new(ss, stream, last, &s);
        if (rc == 0)
            width = stripe_width(chunks, n, s->k);
    }
    if (rc == 0 && !segment_fits(ss, s, width))
        rc = ERR_IO; /* a drive failed in between: the caller tries again */
    if (rc == 0) {
        *ret_segment = s;
        *ret_stripe = (struct segment_stripe){s->id, s->next, width};
        s->next += width;
        s->holds++;
    }
    fiber_mutex_unlock(&ss->stream_lock[stream]);
    return rc;
}

int segment_columns_written(struct segments *ss, const struct segment *s,
                            const struct drive_io *ios)
{
    int rc = 0;

    for (unsigned i = 0; i < s->k + s->m; i++) {
        if (ios[i].result >= 0)
            continue;
        if (ios[i].result == ERR_NOSPC && !PLANTED(FULL_PUTS_OUT)) {
            rc = rc ? rc : ERR_NOSPC;
            continue;
        }
        driveset_put_out(ss->ds, s->drive[i], "segment write failed");
        rc = ERR_IO;
    }
    return rc;
}

/* Writes all columns; puts out the drives that fail. */
static int stripe_write_columns(struct segments *ss, const struct segment *s,
                                const struct segment_stripe *where, struct buf *b)
{
    struct drive_io ios[FORMAT_COLS_MAX];
    unsigned n = s->k + s->m;
    size_t column = (size_t)where->width * FORMAT_UNIT;

    for (unsigned i = 0; i < n; i++) {
        struct drive *d = &ss->ds->drives[s->drive[i]];

        if (!drive_usable(d))
            return ERR_IO;
        drive_io_prepare(d, &ios[i], ENV_WRITE, b, b->data + i * column, column,
                         segment_column_off(ss, s, i) + (uint64_t)where->offset * FORMAT_UNIT);
        ios[i].dsync = !PLANTED(STRIPE_NOT_SYNCED) &&
                       !(PLANTED(COMPACT_NOT_SYNCED) && (s->stream == SEGMENT_VOLUMES_KEPT ||
                                                         s->stream == SEGMENT_STUDIES_KEPT)) &&
                       !(PLANTED(IMAGE_NOT_SYNCED) && s->stream == SEGMENT_IMAGE);
    }
    drive_io_run(ios, n);
    return segment_columns_written(ss, s, ios);
}

/* A stripe to be made: all that the computation needs, since it may run on another thread. */
struct stripe_making {
    const struct ec *code;
    const struct segment_stripe *where;
    const struct segment_chunk *chunks;
    size_t n, column;
    unsigned k, m;
    uint8_t *bytes;
};

static void stripe_make(void *arg)
{
    struct stripe_making *w = arg;
    uint8_t *columns[FORMAT_COLS_MAX];

    stripe_fill(w->bytes, w->column * w->k, w->where, w->chunks, w->n);
    for (unsigned i = 0; i < w->k + w->m; i++)
        columns[i] = w->bytes + i * w->column;
    ec_encode(w->code, w->column, columns, columns + w->k);
}

/* Making 2 MiB takes about a millisecond, in which the loop could do other things; for a small
 * stripe handing it over costs more than it saves. */
static int stripe_write(struct segments *ss, const struct segment *s,
                        const struct segment_stripe *where, const struct segment_chunk *chunks,
                        size_t n)
{
    size_t column = (size_t)where->width * FORMAT_UNIT, size = column * (s->k + s->m);
    struct buf *b = buf_new(size);
    struct stripe_making work = {.code = segment_code(ss, s->k, s->m),
                                 .where = where,
                                 .chunks = chunks,
                                 .n = n,
                                 .column = column,
                                 .k = s->k,
                                 .m = s->m,
                                 .bytes = b->data};
    uint64_t start = env_now(ss->ds->env);
    int rc;

    if (size >= SEGMENT_LARGE)
        env_offload(ss->ds->env, ENV_LANE_CPU, stripe_make, &work);
    else
        stripe_make(&work);
    rc = stripe_write_columns(ss, s, where, b);
    metric_record(&ss->stripe_time, env_now(ss->ds->env) - start);
    buf_unref(b);
    return rc;
}

/* Gives the room of a stripe back that was not written for want of space: all I/O has ended, and
 * nothing names it. What is tried again and again would else use up one segment after the other,
 * and the journal with records of them. */
static void stripe_unreserve(struct segments *ss, struct segment *s,
                             const struct segment_stripe *where)
{
    if (ss->open[s->stream] == s && s->next == where->offset + where->width)
        s->next = where->offset;
}

int segment_write(struct segments *ss, enum segment_stream stream, struct segment_chunk *chunks,
                  size_t n, struct segment_stripe *ret_stripe)
{
    return segment_write_moved(ss, stream, stream == SEGMENT_VOLUMES, chunks, n, ret_stripe);
}

int segment_write_moved(struct segments *ss, enum segment_stream stream, bool gains,
                        struct segment_chunk *chunks, size_t n, struct segment_stripe *ret_stripe)
{
    CHECK(n > 0);
    /* Every failed try takes a drive out, so the tries are bounded by the drives. */
    for (unsigned i = 0; i <= ss->ds->count; i++) {
        struct segment_stripe where;
        struct segment *s;
        int rc = stripe_reserve(ss, stream, gains, chunks, n, &s, &where);

        if (rc == 0) {
            rc = stripe_write(ss, s, &where, chunks, n);
            if (rc == 0) {
                *ret_stripe = where;
                return 0;
            }
            if (rc == ERR_NOSPC)
                stripe_unreserve(ss, s, &where);
            segment_release(ss, where.segment);
        }
        if (rc != ERR_IO)
            return rc;
        rc = driveset_tell(ss->ds);
        if (rc < 0)
            return rc;
    }
    return ERR_IO;
}

void segment_hold(struct segments *ss, uint64_t segment)
{
    struct segment *s = segment_find(ss, segment);

    CHECK(s != NULL);
    s->holds++;
}

bool segment_try_hold(struct segments *ss, uint64_t segment)
{
    struct segment *s = segment_find(ss, segment);

    if (s)
        s->holds++;
    return s != NULL;
}

void segment_release(struct segments *ss, uint64_t segment)
{
    struct segment *s = segment_find(ss, segment);

    CHECK(s && s->holds > 0);
    s->holds--;
}

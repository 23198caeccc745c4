/* Reading chunks: neighbours in one go, every chunk checked, decoding where a column is bad or
 * gone.
 *
 * The direct way reads only the columns that hold the chunks, of drives that count. A chunk whose
 * bytes cannot be had that way, or do not match their CRC, goes the careful way: the same rows of
 * every column that can be read, then every combination of k columns, until one yields bytes that
 * fit the CRC. With at most m columns bad one combination must fit; when none does, the data is
 * lost and the reader is told so.
 */
#include "lib/store/segment.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/segment_priv.h"

#define READ_EXTENT_MAX (1u << 20)   /* bytes read in one go, at most (one chunk may be more) */
#define READ_GAP_MAX    (16u * 1024) /* unwanted bytes between neighbours that are read along */
#define READ_WAVE_IOS   64u          /* I/Os in flight for one call */

/* A contiguous part of a stripe's data that is read at once, for reads [first, first + count). */
struct read_extent {
    struct segment *segment;
    size_t first, count;
    uint32_t from, to; /* positions in the stripe, whole units */
    struct buf *buf;
    unsigned first_io, ios;
    bool failed;
};

static uint32_t unit_down(uint32_t n)
{
    return n & ~(FORMAT_UNIT - 1);
}

static uint32_t unit_up(uint32_t n)
{
    return (n + FORMAT_UNIT - 1) & ~(FORMAT_UNIT - 1);
}

static bool same_stripe(const struct segment_loc *a, const struct segment_loc *b)
{
    return a->stripe.segment == b->stripe.segment && a->stripe.offset == b->stripe.offset;
}

bool segment_loc_sane(const struct segments *ss, const struct segment *s,
                      const struct segment_loc *l)
{
    uint64_t column = (uint64_t)l->stripe.width * FORMAT_UNIT;

    return l->stored > 0 && l->stored <= SEGMENT_CHUNK_MAX + FORMAT_UNIT &&
           (uint64_t)l->stripe.offset + l->stripe.width <= ss->ds->super.slot_size / FORMAT_UNIT &&
           (uint64_t)l->position + l->stored <= column * s->k;
}

/* Takes as many of the reads from `at` on as lie together into one extent. */
static void extent_plan(struct segment_read *reads, size_t n, size_t at, struct read_extent *e)
{
    const struct segment_loc *l = &reads[at].loc;

    e->first = at;
    e->count = 1;
    e->from = unit_down(l->position);
    e->to = unit_up(l->position + l->stored);
    while (at + e->count < n) {
        const struct segment_loc *next = &reads[at + e->count].loc;
        uint32_t end = unit_up(next->position + next->stored);

        if (!same_stripe(l, next) || next->position < e->from ||
            next->position > e->to + READ_GAP_MAX || end - e->from > READ_EXTENT_MAX)
            break;
        if (end > e->to)
            e->to = end;
        e->count++;
    }
}

/* Prepares the extent's I/Os, one per column touched. None and `failed` when a drive is out. */
static unsigned extent_prepare(struct segments *ss, const struct segment_read *reads,
                               struct read_extent *e, struct env_io *ios)
{
    const struct segment_stripe *st = &reads[e->first].loc.stripe;
    uint32_t column = st->width * FORMAT_UNIT;
    unsigned n = 0;

    for (uint32_t at = e->from; at < e->to;) {
        uint32_t c = at / column, inner = at % column;
        uint32_t len = e->to - at < column - inner ? e->to - at : column - inner;
        struct drive *d = &ss->ds->drives[e->segment->drive[c]];

        if (!drive_usable(d)) {
            e->failed = true;
            return 0;
        }
        drive_io_prepare(d, &ios[n++], ENV_READ, e->buf->data + (at - e->from), len,
                         segment_column_off(ss, e->segment, c) +
                             (uint64_t)st->offset * FORMAT_UNIT + inner);
        at += len;
    }
    return n;
}

/* The drive that an I/O of an extent went to, by its column. */
static struct drive *extent_drive(struct segments *ss, const struct segment_read *reads,
                                  const struct read_extent *e, unsigned io)
{
    uint32_t column = reads[e->first].loc.stripe.width * FORMAT_UNIT;

    return &ss->ds->drives[e->segment->drive[e->from / column + io]];
}

/* ---- The careful way ---- */

struct careful {
    struct segments *ss;
    struct segment *segment;
    const struct segment_loc *loc;
    bool (*fits)(const struct segment_loc *loc, const uint8_t *bytes);
    uint32_t row, rows;                   /* bytes of each column that are looked at */
    struct buf *columns[FORMAT_COLS_MAX]; /* NULL where it cannot be read */
    uint8_t have[FORMAT_COLS_MAX];        /* indices of those that could */
    unsigned have_count;
};

/* Which rows of the columns hold the chunk: its own when it lies in one column, else all. */
static void careful_rows(struct careful *c)
{
    uint32_t column = c->loc->stripe.width * FORMAT_UNIT;
    uint32_t first = c->loc->position / column;
    uint32_t last = (c->loc->position + c->loc->stored - 1) / column;

    if (first == last) {
        c->row = unit_down(c->loc->position % column);
        c->rows = unit_up(c->loc->position % column + c->loc->stored) - c->row;
    } else {
        c->row = 0;
        c->rows = column;
    }
}

/* Reads the rows of every column that has a file, drives that count first in `have`. */
static void careful_fetch(struct careful *c)
{
    const struct segment *s = c->segment;
    struct env_io ios[FORMAT_COLS_MAX];
    uint8_t at[FORMAT_COLS_MAX];
    unsigned n = 0;

    for (int usable = 1; usable >= 0; usable--) {
        for (unsigned i = 0; i < s->k + s->m; i++) {
            struct drive *d = &c->ss->ds->drives[s->drive[i]];

            if (!drive_readable(d) || drive_usable(d) != usable)
                continue;
            c->columns[i] = buf_new(c->rows);
            drive_io_prepare(d, &ios[n], ENV_READ, c->columns[i]->data, c->rows,
                             segment_column_off(c->ss, s, i) +
                                 (uint64_t)c->loc->stripe.offset * FORMAT_UNIT + c->row);
            at[n++] = (uint8_t)i;
        }
    }
    if (n)
        (void)env_io_run(ios, n); /* each result is looked at */
    for (unsigned j = 0; j < n; j++) {
        drive_io_done(&c->ss->ds->drives[s->drive[at[j]]], &ios[j]);
        if (ios[j].result == (int64_t)c->rows)
            c->have[c->have_count++] = at[j];
    }
}

/* Assembles the bytes from the k columns `pick` (indices into have); true when they fit. */
static bool careful_try(struct careful *c, const unsigned *pick, uint8_t *out, struct buf *scratch)
{
    const struct segment *s = c->segment;
    const struct segment_loc *l = c->loc;
    uint32_t column = l->stripe.width * FORMAT_UNIT;
    const uint8_t *have[FORMAT_COLS_MAX];
    uint8_t index[FORMAT_COLS_MAX];

    for (unsigned i = 0; i < s->k; i++) {
        index[i] = c->have[pick[i]];
        have[i] = c->columns[index[i]]->data;
    }
    for (uint32_t at = l->position, end = l->position + l->stored; at < end;) {
        uint32_t want = at / column, inner = at % column - c->row;
        uint32_t len = end - at < column - at % column ? end - at : column - at % column;
        const uint8_t *src = NULL;

        for (unsigned i = 0; i < s->k; i++)
            if (index[i] == want)
                src = have[i];
        if (!src) {
            ec_reconstruct(segment_code(c->ss, s->k, s->m), c->rows, have, index, want,
                           scratch->data);
            src = scratch->data;
        }
        memcpy(out + (at - l->position), src + inner, len);
        at += len;
    }
    return c->fits(l, out);
}

bool segment_next_combination(unsigned *pick, unsigned k, unsigned n)
{
    unsigned i = k;

    while (i > 0 && pick[i - 1] == n - k + i - 1)
        i--;
    if (i == 0)
        return false;
    pick[i - 1]++;
    for (; i < k; i++)
        pick[i] = pick[i - 1] + 1;
    return true;
}

/* A data column that a combination had to do without, though it was read, held wrong bytes. */
static void careful_blame(struct careful *c, const unsigned *pick)
{
    uint32_t column = c->loc->stripe.width * FORMAT_UNIT;
    uint32_t first = c->loc->position / column;
    uint32_t last = (c->loc->position + c->loc->stored - 1) / column;

    for (unsigned i = 0; i < c->have_count; i++) {
        bool used = false;

        for (unsigned j = 0; j < c->segment->k; j++)
            used |= pick[j] == i;
        if (!used && c->have[i] >= first && c->have[i] <= last)
            c->ss->ds->drives[c->segment->drive[c->have[i]]].corruptions++;
    }
}

static bool crc_fits(const struct segment_loc *loc, const uint8_t *bytes)
{
    return crc32c(0, bytes, loc->stored) == loc->crc;
}

int segment_read_careful(struct segments *ss, struct segment *s, const struct segment_loc *loc,
                         bool (*fits)(const struct segment_loc *loc, const uint8_t *bytes),
                         struct buf **ret_buf)
{
    struct careful c = {.ss = ss, .segment = s, .loc = loc, .fits = fits};
    unsigned pick[FORMAT_COLS_MAX];
    struct buf *out, *scratch;
    int rc = ERR_LOST;

    careful_rows(&c);
    careful_fetch(&c);
    out = buf_new(loc->stored);
    scratch = buf_new(c.rows);
    for (unsigned i = 0; i < s->k; i++)
        pick[i] = i;
    if (c.have_count >= s->k) {
        do {
            if (careful_try(&c, pick, out->data, scratch)) {
                careful_blame(&c, pick);
                rc = 0;
                break;
            }
        } while (segment_next_combination(pick, s->k, c.have_count));
    }
    for (unsigned i = 0; i < s->k + s->m; i++)
        buf_unref(c.columns[i]);
    buf_unref(scratch);
    if (rc < 0) {
        buf_unref(out);
        return rc;
    }
    *ret_buf = out;
    return 0;
}

static int careful_read(struct segments *ss, struct segment *s, struct segment_read *r)
{
    uint64_t start = env_now(ss->ds->env);
    int rc = segment_read_careful(ss, s, &r->loc, crc_fits, &r->buf);

    metric_record(&ss->careful_time, env_now(ss->ds->env) - start);
    if (rc == 0)
        r->data = r->buf->data;
    return rc;
}

/* ---- The direct way ---- */

/* Gives every chunk of a finished extent its bytes, or leaves it to the careful way. */
static void extent_deliver(struct segments *ss, struct segment_read *reads, struct read_extent *e)
{
    for (size_t i = e->first; i < e->first + e->count; i++) {
        struct segment_read *r = &reads[i];
        const uint8_t *p = e->buf->data + (r->loc.position - e->from);

        if (!e->failed && (PLANTED(READ_UNVERIFIED) || crc32c(0, p, r->loc.stored) == r->loc.crc)) {
            r->buf = buf_ref(e->buf);
            r->data = p;
            r->result = 0;
        } else {
            r->result = careful_read(ss, e->segment, r);
        }
    }
    buf_unref(e->buf);
}

/* Plans and reads a wave of extents from reads[at] on; returns the number of reads served. */
static size_t read_wave(struct segments *ss, struct segment_read *reads, size_t n, size_t at)
{
    struct read_extent extents[READ_WAVE_IOS];
    struct env_io ios[READ_WAVE_IOS + FORMAT_COLS_MAX];
    unsigned extent_count = 0, io_count = 0;
    size_t next = at;

    while (next < n && io_count < READ_WAVE_IOS && extent_count < READ_WAVE_IOS) {
        struct read_extent *e = &extents[extent_count++];

        *e = (struct read_extent){.segment = segment_find(ss, reads[next].loc.stripe.segment)};
        extent_plan(reads, n, next, e);
        e->buf = buf_new(e->to - e->from);
        e->first_io = io_count;
        e->ios = extent_prepare(ss, reads, e, &ios[io_count]);
        io_count += e->ios;
        next += e->count;
    }
    if (io_count) {
        uint64_t start = env_now(ss->ds->env);

        (void)env_io_run(ios, io_count); /* each result is looked at */
        metric_record(&ss->direct_time, env_now(ss->ds->env) - start);
    }
    for (unsigned i = 0; i < extent_count; i++) {
        struct read_extent *e = &extents[i];

        for (unsigned j = 0; j < e->ios; j++) {
            const struct env_io *io = &ios[e->first_io + j];

            drive_io_done(extent_drive(ss, reads, e, j), io);
            e->failed |= io->result != (int64_t)io->len;
        }
        extent_deliver(ss, reads, e);
    }
    return next - at;
}

int segment_read(struct segments *ss, struct segment_read *reads, size_t n)
{
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        struct segment *s = segment_find(ss, reads[i].loc.stripe.segment);

        reads[i].buf = NULL;
        reads[i].data = NULL;
        reads[i].result = s && segment_loc_sane(ss, s, &reads[i].loc) ? 0 : ERR_FORMAT;
        if (reads[i].result < 0)
            rc = ERR_FORMAT;
    }
    if (rc < 0) {
        /* Damaged rows: whoever asks for them together with others gets nothing. */
        for (size_t i = 0; i < n; i++)
            reads[i].result = rc;
        return rc;
    }
    for (size_t i = 0; i < n; i++)
        segment_find(ss, reads[i].loc.stripe.segment)->readers++;
    for (size_t at = 0; at < n;)
        at += read_wave(ss, reads, n, at);
    for (size_t i = 0; i < n; i++) {
        segment_find(ss, reads[i].loc.stripe.segment)->readers--;
        if (reads[i].result < 0 && rc == 0)
            rc = reads[i].result;
    }
    return rc;
}

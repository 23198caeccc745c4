/* Reading chunks: neighbours in one go, every chunk checked, decoding where a column is bad or
 * gone.
 *
 * The direct way reads only the columns that hold the chunks, of drives that count. A chunk whose
 * bytes cannot be had that way, or do not match their CRC, goes the careful way: the same rows of
 * every column that can be read, then every combination of k columns, until one yields bytes that
 * fit the CRC. With at most m columns bad one combination must fit; when none does, the data is
 * lost and the reader is told so.
 *
 * A drive that is slow need not be waited for. Drives that are suspect are not asked where others
 * can serve. A direct read that has not been answered after a while (driveset.hedge_delay) is
 * hedged: the careful way begins beside it, without the drives that are late, and whichever has the
 * right bytes first serves. What is late then is left to the drive (drive_io.h). The careful way
 * itself waits for all that it has asked for as long as that takes no longer than usual, since only
 * then it learns who lied; after that, for as many columns as do.
 *
 * Hedging costs k reads for one and must not become the load that makes drives slow: it lives on a
 * twentieth of all reads, with some saved up; without credit a read waits on, at most until the
 * drive is suspect, which is for free.
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

#define READ_EXTENT_MAX (1u << 20)   /* bytes read in one go, at most (one chunk may be more) */
#define READ_GAP_MAX    (16u * 1024) /* unwanted bytes between neighbours that are read along */
#define READ_WAVE_IOS   64u          /* I/Os in flight for one call */
#define READ_HEDGE_POLL (10 * ENV_NS_PER_MS)
#define READ_DIRECT     1   /* the direct read has been answered first */
#define READ_TRIES      16u /* combinations tried on the loop; more of them go to a lane */

/* A contiguous part of a stripe's data that is read at once, for reads [first, first + count). */
struct read_extent {
    struct segment *segment;
    size_t first, count;
    uint32_t from, to; /* positions in the stripe, whole units */
    struct buf *buf;
    struct drive_io *ios;
    unsigned io_count; /* one for each column touched */
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
    return a->stripe.segment == b->stripe.segment && a->stripe.offset == b->stripe.offset &&
           a->stripe.width == b->stripe.width; /* of damaged rows each is read by its own */
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

/* Can k columns be had from drives that nothing speaks against? */
static bool segment_sure(const struct segments *ss, const struct segment *s)
{
    unsigned sure = 0;

    for (unsigned i = 0; i < s->k + s->m; i++)
        sure += !drive_doubtful(&ss->ds->drives[s->drive[i]]);
    return sure >= s->k;
}

/* Prepares the extent's I/Os, one per column touched. Those of drives that are out, or better not
 * asked, have failed already. */
static unsigned extent_prepare(struct segments *ss, const struct segment_read *reads,
                               struct read_extent *e, struct drive_io *ios)
{
    const struct segment_stripe *st = &reads[e->first].loc.stripe;
    uint32_t column = st->width * FORMAT_UNIT;
    unsigned n = 0;

    for (uint32_t at = e->from; at < e->to;) {
        uint32_t c = at / column, inner = at % column;
        uint32_t len = e->to - at < column - inner ? e->to - at : column - inner;
        struct drive *d = &ss->ds->drives[e->segment->drive[c]];

        if (!drive_usable(d) || (drive_doubtful(d) && segment_sure(ss, e->segment)))
            ios[n++] = (struct drive_io){.drive = d, .len = len, .done = true, .result = ERR_IO};
        else
            drive_io_prepare(d, &ios[n++], ENV_READ, e->buf, e->buf->data + (at - e->from), len,
                             segment_column_off(ss, e->segment, c) +
                                 (uint64_t)st->offset * FORMAT_UNIT + inner);
        at += len;
    }
    return n;
}

/* Is it known whether this chunk's bytes could be read into the extent? If so, *ret_read tells. */
static bool extent_knows(const struct read_extent *e, const struct segment_loc *l, bool *ret_read)
{
    uint64_t at = e->from;

    *ret_read = true;
    for (unsigned i = 0; i < e->io_count; at += e->ios[i++].len) {
        const struct drive_io *io = &e->ios[i];

        if (at + io->len <= l->position || at >= (uint64_t)l->position + l->stored)
            continue;
        if (!io->done)
            return false;
        *ret_read &= io->result == (int64_t)io->len;
    }
    return true;
}

/* ---- The careful way ---- */

struct careful {
    struct segments *ss;
    struct segment *segment;
    const struct segment_loc *loc;
    bool (*fits)(const struct segment_loc *loc, const uint8_t *bytes);
    struct read_extent *direct; /* the direct read that it runs beside, or NULL */
    struct drive_wait *wait;
    bool doubted; /* the direct read was answered and wrong: one of its columns is */
    const struct ec *code;
    uint32_t row, rows; /* bytes of each column that are looked at */
    /* In the order asked: columns of sure drives first. */
    struct drive_io ios[FORMAT_COLS_MAX];
    uint8_t at[FORMAT_COLS_MAX]; /* which column it is */
    unsigned asked;
    bool asked_all;
    struct buf *columns[FORMAT_COLS_MAX]; /* NULL where it was not asked for */
    uint8_t have[FORMAT_COLS_MAX];        /* indices of those that came */
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

/* Is this drive late with the direct read? */
static bool careful_late(const struct careful *c, const struct drive *d)
{
    for (unsigned i = 0; c->direct && i < c->direct->io_count; i++)
        if (c->direct->ios[i].drive == d && !c->direct->ios[i].done)
            return true;
    return false;
}

/* Asks for the rows of the columns on sure drives, or of all others that can be read. */
static void careful_ask(struct careful *c, bool sure)
{
    const struct segment *s = c->segment;
    unsigned first = c->asked;

    for (unsigned i = 0; i < s->k + s->m; i++) {
        struct drive *d = &c->ss->ds->drives[s->drive[i]];

        if (c->columns[i] || !drive_readable(d) ||
            (sure && (drive_doubtful(d) || careful_late(c, d))))
            continue;
        c->columns[i] = buf_new(c->rows);
        drive_io_prepare(d, &c->ios[c->asked], ENV_READ, c->columns[i], c->columns[i]->data,
                         c->rows,
                         segment_column_off(c->ss, s, i) +
                             (uint64_t)c->loc->stripe.offset * FORMAT_UNIT + c->row);
        c->at[c->asked++] = (uint8_t)i;
    }
    c->asked_all = !sure;
    drive_io_start(c->wait, c->ios + first, c->asked - first);
}

/* Is this one of the columns that hold the chunk? */
static bool careful_touches(const struct careful *c, unsigned column)
{
    uint32_t size = c->loc->stripe.width * FORMAT_UNIT;

    return column >= c->loc->position / size &&
           column <= (c->loc->position + c->loc->stored - 1) / size;
}

/* Which of two columns is rather used: not one of those that gave wrong bytes just now, nor one of
 * a drive that did so more often. */
static bool careful_before(const struct careful *c, unsigned a, unsigned b)
{
    const struct drive *drives = c->ss->ds->drives;

    if (careful_touches(c, a) != careful_touches(c, b))
        return careful_touches(c, b);
    return drives[c->segment->drive[a]].corruptions < drives[c->segment->drive[b]].corruptions;
}

/* Takes what has come, in the order asked, or the better ones first where it is known that some are
 * wrong; returns how much is still to come. */
static unsigned careful_collect(struct careful *c)
{
    unsigned open = 0;

    c->have_count = 0;
    for (unsigned i = 0; i < c->asked; i++) {
        unsigned at = c->have_count;

        open += !c->ios[i].done;
        if (!c->ios[i].done || c->ios[i].result != (int64_t)c->rows)
            continue;
        for (; c->doubted && at > 0 && careful_before(c, c->at[i], c->have[at - 1]); at--)
            c->have[at] = c->have[at - 1];
        c->have[at] = c->at[i];
        c->have_count++;
    }
    return open;
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
            ec_reconstruct(c->code, c->rows, have, index, want, scratch->data);
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

static bool crc_fits(const struct segment_loc *loc, const uint8_t *bytes)
{
    return crc32c(0, bytes, loc->stored) == loc->crc;
}

/* Columns that came and hold something else than what was found to be right gave wrong bytes. Where
 * not every byte was proved, that is said only of those that nothing fitted with: columns before
 * `tried`. */
static void careful_blame(struct careful *c, const uint8_t *out, unsigned tried)
{
    uint32_t column = c->loc->stripe.width * FORMAT_UNIT, begin = c->loc->position;
    uint32_t end = begin + c->loc->stored;

    for (unsigned i = 0; i < (c->fits == crc_fits ? c->have_count : tried); i++) {
        uint32_t from = c->have[i] * column, to = from + column;

        if (!careful_touches(c, c->have[i]))
            continue;
        from = from > begin ? from : begin;
        to = to < end ? to : end;
        if (memcmp(out + (from - begin), c->columns[c->have[i]]->data + from % column - c->row,
                   to - from) != 0)
            drive_corrupt(&c->ss->ds->drives[c->segment->drive[c->have[i]]]);
    }
}

/* Combinations that are tried one after the other, from `pick` on. */
struct careful_search {
    struct careful *c;
    uint8_t *out;
    struct buf *scratch;
    unsigned pick[FORMAT_COLS_MAX];
    unsigned most; /* so many of them; 0: all that are left */
    bool fits, more;
};

static void careful_search(void *arg)
{
    struct careful_search *s = arg;
    unsigned k = s->c->segment->k, n = 0;

    do {
        s->fits = careful_try(s->c, s->pick, s->out, s->scratch);
        s->more = !s->fits && segment_next_combination(s->pick, k, s->c->have_count);
    } while (s->more && ++n != s->most);
}

/* Tries all combinations of what has come. Suspends where they are many. */
static bool careful_fit(struct careful *c, uint8_t *out, struct buf *scratch)
{
    struct careful_search s = {.c = c, .out = out, .scratch = scratch, .most = READ_TRIES};

    if (c->have_count < c->segment->k)
        return false;
    for (unsigned i = 0; i < c->segment->k; i++)
        s.pick[i] = i;
    careful_search(&s);
    s.most = 0;
    if (s.more)
        env_offload(c->ss->ds->env, ENV_LANE_CPU, careful_search, &s);
    if (s.fits)
        careful_blame(c, out, s.pick[c->segment->k - 1]);
    return s.fits;
}

/* Is there a column that may be had, once its drive answers again? */
static bool careful_silent(const struct careful *c)
{
    const struct segment *s = c->segment;

    for (unsigned i = 0; i < s->k + s->m; i++)
        if (c->ss->ds->drives[s->drive[i]].hung)
            return true;
    return false;
}

/* Asks and tries until the bytes are there, or nobody is left to ask; READ_DIRECT when the direct
 * read has come to an end first. */
static int careful_work(struct careful *c, uint8_t *out, struct buf *scratch)
{
    struct env *env = c->ss->ds->env;
    uint64_t patience = env_now(env) + (c->direct ? 0 : c->ss->ds->hedge_delay);
    bool read;

    careful_ask(c, true);
    if (c->asked < c->segment->k)
        careful_ask(c, false);
    (void)drive_wait_all(c->wait, patience);
    for (unsigned tried = 0;;) {
        unsigned open = careful_collect(c);

        if (c->have_count > tried && careful_fit(c, out, scratch))
            return 0;
        tried = c->have_count;
        if (c->direct && extent_knows(c->direct, c->loc, &read))
            return READ_DIRECT;
        if (open == 0 && c->asked_all && !c->direct)
            return ERR_LOST;
        if (!c->asked_all && (open == 0 || (!c->direct && env_now(env) >= patience))) {
            careful_ask(c, false);
            continue;
        }
        (void)drive_wait_some(c->wait, ENV_FOREVER);
    }
}

/* The careful way, beside a direct read that is waited for by `wait`, or alone. */
static int careful_run(struct careful *c, struct buf **ret_buf)
{
    struct drive_wait alone;
    struct buf *out, *scratch;
    int rc;

    if (!c->wait) {
        drive_wait_init(&alone, c->ss->ds);
        c->wait = &alone;
    }
    careful_rows(c);
    c->code = segment_code(c->ss, c->segment->k, c->segment->m);
    out = buf_new(c->loc->stored);
    scratch = buf_new(c->rows);
    rc = careful_work(c, out->data, scratch);
    drive_io_leave(c->ios, c->asked);
    for (unsigned i = 0; i < c->segment->k + c->segment->m; i++)
        buf_unref(c->columns[i]);
    buf_unref(scratch);
    if (rc != 0) {
        buf_unref(out);
        return rc;
    }
    *ret_buf = out;
    return 0;
}

bool segment_is_out_of_reach(const struct segments *ss, uint64_t segment)
{
    const struct segment *s = segment_get(ss, segment);
    unsigned there = 0;

    for (unsigned i = 0; s && i < s->k + s->m; i++)
        there += ss->ds->drives[s->drive[i]].file != NULL;
    return s && there < s->k;
}

int segment_read_careful(struct segments *ss, struct segment *s, const struct segment_loc *loc,
                         bool (*fits)(const struct segment_loc *loc, const uint8_t *bytes),
                         struct buf **ret_buf)
{
    struct careful c = {.ss = ss, .segment = s, .loc = loc, .fits = fits};

    return careful_run(&c, ret_buf);
}

/* A chunk the careful way: alone, or (with `wait`) beside the direct read of its extent. */
static int careful_read(struct segments *ss, struct read_extent *e, struct segment_read *r,
                        struct drive_wait *wait)
{
    bool read = false;
    struct careful c = {.ss = ss,
                        .segment = e->segment,
                        .loc = &r->loc,
                        .fits = crc_fits,
                        .direct = wait ? e : NULL,
                        .wait = wait,
                        .doubted = extent_knows(e, &r->loc, &read) && read};
    uint64_t start = env_now(ss->ds->env);
    int rc = careful_run(&c, &r->buf);

    metric_record(&ss->careful_time, env_now(ss->ds->env) - start);
    if (rc == 0)
        r->data = r->buf->data;
    return rc == ERR_LOST && careful_silent(&c) ? ERR_TIMEDOUT : rc;
}

/* ---- The direct way ---- */

/* Gives a chunk its bytes as they were read; false when that failed or they are not right. */
static bool extent_serve(struct read_extent *e, struct segment_read *r)
{
    const uint8_t *p = e->buf->data + (r->loc.position - e->from);
    bool read;

    if (!extent_knows(e, &r->loc, &read) || !read ||
        (!PLANTED(READ_UNVERIFIED) && crc32c(0, p, r->loc.stored) != r->loc.crc))
        return false;
    r->buf = buf_ref(e->buf);
    r->data = p;
    r->result = 0;
    return true;
}

/* Gives every chunk of an extent its bytes, as they come or the careful way. */
static void extent_deliver(struct segments *ss, struct segment_read *reads, struct read_extent *e,
                           struct drive_wait *wait)
{
    for (size_t i = e->first; i < e->first + e->count; i++) {
        struct segment_read *r = &reads[i];
        int rc = READ_DIRECT;
        bool read;

        if (!extent_knows(e, &r->loc, &read)) {
            ss->ds->hedged++;
            rc = careful_read(ss, e, r, wait);
            ss->ds->hedges_won += rc == 0;
        }
        if (rc == READ_DIRECT)
            rc = extent_serve(e, r) ? 0 : careful_read(ss, e, r, NULL);
        r->result = rc;
    }
    buf_unref(e->buf);
}

/* ---- Hedging ---- */

/* May the reads that are late be hedged? If so it is noted with their drives; but when most drives
 * are late none of them is the slow one. */
static bool hedge_allowed(struct driveset *ds, const struct drive_io *ios, unsigned n)
{
    uint64_t late = 0, cost = 0;
    unsigned sure = 0;

    for (unsigned i = 0; i < ds->count; i++)
        sure += !drive_doubtful(&ds->drives[i]);
    for (unsigned i = 0; i < n; i++) {
        bool others = drive_doubtful(ios[i].drive) && sure >= ds->super.data_columns;

        if (ios[i].done)
            continue;
        late |= 1ull << ios[i].drive->index;
        cost += others ? 0 : DRIVE_HEDGE_SHARE;
    }
    if (cost > ds->hedge_credit)
        return false;
    ds->hedge_credit -= cost;
    for (unsigned i = 0; i < ds->count; i++)
        if (late >> i & 1 && __builtin_popcountll(late) <= ds->super.parity_columns)
            drive_hedged(&ds->drives[i]);
    return true;
}

/* Waits for the direct reads until all are answered, or what is late may be hedged. */
static void wave_wait(struct driveset *ds, struct drive_wait *wait, const struct drive_io *ios,
                      unsigned n)
{
    uint64_t until = env_now(ds->env) + ds->hedge_delay;

    ds->hedge_credit += n;
    if (ds->hedge_credit > DRIVE_HEDGE_CREDIT)
        ds->hedge_credit = DRIVE_HEDGE_CREDIT;
    while (!drive_wait_all(wait, until) && !hedge_allowed(ds, ios, n))
        until = env_now(ds->env) + READ_HEDGE_POLL;
}

/* Plans and reads a wave of extents from reads[at] on; returns the number of reads served. */
static size_t read_wave(struct segments *ss, struct segment_read *reads, size_t n, size_t at)
{
    struct read_extent extents[READ_WAVE_IOS];
    struct drive_io ios[READ_WAVE_IOS + FORMAT_COLS_MAX];
    struct drive_wait wait;
    unsigned extent_count = 0, io_count = 0;
    size_t next = at;

    while (next < n && io_count < READ_WAVE_IOS && extent_count < READ_WAVE_IOS) {
        struct read_extent *e = &extents[extent_count++];

        *e = (struct read_extent){.segment = segment_find(ss, reads[next].loc.stripe.segment)};
        extent_plan(reads, n, next, e);
        e->buf = buf_new(e->to - e->from);
        e->ios = &ios[io_count];
        e->io_count = extent_prepare(ss, reads, e, e->ios);
        io_count += e->io_count;
        next += e->count;
    }
    drive_wait_init(&wait, ss->ds);
    if (io_count) {
        uint64_t start = env_now(ss->ds->env);

        drive_io_start(&wait, ios, io_count);
        wave_wait(ss->ds, &wait, ios, io_count);
        metric_record(&ss->direct_time, env_now(ss->ds->env) - start);
    }
    for (unsigned i = 0; i < extent_count; i++)
        extent_deliver(ss, reads, &extents[i], &wait);
    drive_io_leave(ios, io_count);
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

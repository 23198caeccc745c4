/* Verifying what drives hold of a segment, column by column: for checks of a store at rest, and for
 * scrub.
 *
 * Reading proves only the columns that it uses. Here all columns of a stripe are read: in the good
 * case the data columns give all chunks, and encoding them gives the parity columns, byte by byte.
 * Otherwise k columns are sought that are whole, and every column that differs from what these say
 * is bad.
 *
 * Whole means: every chunk given fits its CRC (they are alive, and the chunk table is what says so;
 * it tells a stripe from an older one at its place, which a drive that lost a write still has), and
 * the stripe's directory fits the CRC of its header, every chunk listed there its own, and there
 * are zeroes between. That covers every byte: whatever these columns say is what once was written.
 * Two stripes can have been written at one place, one of them never named, with the same chunk in
 * both; drives that went back in time still have the other, or as much of it as differs. So where
 * there are two such wholes the stripe is in doubt, however many columns have which: what is alive
 * is the same in both, and is to be written elsewhere. Else which columns are bad is proved.
 *
 * Where there is no whole, what is dead in the stripe may be damaged in too many columns: then the
 * directory and the chunks given must fit, and of several choices the one counts from which
 * the fewest columns differ. Two that are as good and blame different columns leave it in doubt: no
 * drive is blamed. Where no k columns fit for the stripe as a whole, damage lies in different
 * places of different columns: then each chunk is tried by itself, as a reader would.
 *
 * Trying is computing only, of megabytes and many times where there is damage, so it is done on a
 * lane.
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/drive_io.h"
#include "lib/store/segment.h"
#include "lib/store/segment_priv.h"

/* ---- Reading ---- */

static void exam_read(struct segment_exam *e)
{
    const struct segment *s = &e->segment;
    struct drive_io ios[FORMAT_COLS_MAX];
    uint8_t at[FORMAT_COLS_MAX];
    unsigned n = 0;

    for (unsigned i = 0; i < s->k + s->m; i++) {
        struct drive *d = &e->ss->ds->drives[s->drive[i]];

        if (!drive_readable(d)) {
            e->verdict.absent |= 1u << i;
            continue;
        }
        drive_io_prepare(d, &ios[n], ENV_READ, e->read_buf, e->read + i * e->column, e->column,
                         segment_column_off(e->ss, s, i) +
                             (uint64_t)e->locs[0].stripe.offset * FORMAT_UNIT);
        at[n++] = (uint8_t)i;
    }
    drive_io_run(ios, n);
    for (unsigned j = 0; j < n; j++) {
        if (ios[j].result == (int64_t)e->column)
            e->have[e->have_count++] = at[j];
        else
            e->verdict.absent |= 1u << at[j];
    }
}

/* ---- Judging: on a lane ---- */

static bool all_zero(const uint8_t *p, size_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

/* The stripe's own directory, which its first bytes say the length of. */
static bool directory_whole(const struct segment_exam *e)
{
    struct segment_loc loc = {.stripe = e->locs[0].stripe};
    struct format_stripe h;
    uint64_t bytes;

    memcpy(&h, e->made, sizeof(h));
    bytes = sizeof(h) + (uint64_t)h.entries * sizeof(struct format_stripe_entry);
    if (bytes > e->column * e->segment.k)
        return false;
    loc.stored = (uint32_t)bytes;
    return h.width == loc.stripe.width && segment_directory_fits(&loc, e->made);
}

/* Every byte behind the directory: chunks in the order in which they were placed (those of whole
 * units first, see segment_write.c), zeroes between and behind. The directory is whole. */
static bool rest_whole(const struct segment_exam *e)
{
    struct format_stripe h;
    size_t at, size = e->column * e->segment.k;

    memcpy(&h, e->made, sizeof(h));
    at = sizeof(h) + h.entries * sizeof(struct format_stripe_entry);
    for (unsigned aligned = 2; aligned-- > 0;) {
        for (uint32_t i = 0; i < h.entries; i++) {
            struct format_stripe_entry c;

            memcpy(&c, e->made + sizeof(h) + i * sizeof(c), sizeof(c));
            if ((c.stored % FORMAT_UNIT == 0) != aligned)
                continue;
            if (c.position < at || c.position > size || c.stored > size - c.position ||
                !all_zero(e->made + at, c.position - at) ||
                crc32c(0, e->made + c.position, c.stored) != c.crc)
                return false;
            at = (size_t)c.position + c.stored;
        }
    }
    return all_zero(e->made + at, size - at);
}

static bool alive_whole(const struct segment_exam *e)
{
    for (size_t i = 0; i < e->count; i++)
        if (crc32c(0, e->made + e->locs[i].position, e->locs[i].stored) != e->locs[i].crc)
            return false;
    return true;
}

/* Makes all columns from the k ones `pick` (indices into have). */
static void make_columns(struct segment_exam *e, const unsigned *pick)
{
    const struct segment *s = &e->segment;
    const uint8_t *from[FORMAT_COLS_MAX];
    uint8_t index[FORMAT_COLS_MAX];
    uint32_t given = 0;

    for (unsigned i = 0; i < s->k; i++) {
        index[i] = e->have[pick[i]];
        from[i] = e->read + index[i] * e->column;
        given |= 1u << index[i];
    }
    for (unsigned c = 0; c < s->k + s->m; c++) {
        uint8_t *to = e->made + c * e->column;

        if (given >> c & 1)
            memcpy(to, e->read + c * e->column, e->column);
        else
            ec_reconstruct(e->code, e->column, from, index, c, to);
    }
}

static uint32_t columns_differing(const struct segment_exam *e)
{
    uint32_t bad = 0;

    for (unsigned i = 0; i < e->have_count; i++) {
        size_t at = e->have[i] * e->column;

        if (memcmp(e->read + at, e->made + at, e->column) != 0)
            bad |= 1u << e->have[i];
    }
    return bad;
}

/* Tries combinations of k columns, for the one from which every byte fits, or (not `whole`) the
 * best from which the directory and what is alive do; false when none fits. It stays in `made`. */
static bool exam_combine(struct segment_exam *e, bool whole)
{
    unsigned pick[FORMAT_COLS_MAX], from[FORMAT_COLS_MAX] = {0};
    unsigned k = e->segment.k, best = FORMAT_COLS_MAX + 1;
    uint32_t bad;

    e->verdict.doubtful = false;
    for (unsigned i = 0; i < k; i++)
        pick[i] = i;
    do {
        unsigned n;

        make_columns(e, pick);
        if (!PLANTED(SCRUB_TRUSTS_DATA) &&
            (!directory_whole(e) || !alive_whole(e) || (whole && !rest_whole(e))))
            continue;
        bad = columns_differing(e);
        n = (unsigned)__builtin_popcount(bad);
        if (best <= FORMAT_COLS_MAX && bad != e->verdict.bad && (whole || n == best))
            e->verdict.doubtful = true;
        if (n >= best)
            continue;
        best = n;
        memcpy(from, pick, sizeof(from));
        e->verdict.bad = bad;
        e->verdict.doubtful &= whole;
        /* Nothing else comes as near: two codewords differ in more than n - k columns. */
        if (best == 0 || (!whole && 2 * best <= e->have_count - k) || PLANTED(SCRUB_TRUSTS_DATA))
            return true;
    } while (segment_next_combination(pick, k, e->have_count));
    if (e->verdict.doubtful)
        e->verdict.bad = 0;
    if (best > FORMAT_COLS_MAX)
        return false;
    make_columns(e, from);
    return true;
}

static void exam_judge(void *arg)
{
    struct segment_exam *e = arg;

    e->proved = e->have_count >= e->segment.k && exam_combine(e, true) && !e->verdict.doubtful;
    if (!e->proved && !e->verdict.doubtful)
        e->verdict.torn = e->have_count < e->segment.k || !exam_combine(e, false);
}

/* One by one, as a reader would: drives are blamed by what reading finds wrong on them. Where a
 * drive is waited for that may have what is wanted, nothing is known. */
static int exam_chunks(struct segment_exam *e, bool *lost)
{
    const struct segment *s = &e->segment;
    uint64_t before[FORMAT_COLS_MAX];
    int rc = 0;

    for (unsigned c = 0; c < s->k + s->m; c++)
        before[c] = e->ss->ds->drives[s->drive[c]].corruptions;
    for (size_t i = 0; i < e->count; i++) {
        struct segment_read r = {.loc = e->locs[i]};

        (void)segment_read(e->ss, &r, 1);
        buf_unref(r.buf);
        lost[i] = r.result == ERR_LOST;
        if (r.result < 0 && !lost[i])
            rc = r.result;
    }
    for (unsigned c = 0; c < s->k + s->m; c++)
        if (e->ss->ds->drives[s->drive[c]].corruptions > before[c])
            e->verdict.bad |= 1u << c;
    return rc;
}

void segment_exam_free(struct segment_exam *e)
{
    buf_unref(e->read_buf);
    buf_unref(e->made_buf);
}

int segment_examine(struct segments *ss, const struct segment_loc *locs, size_t n, bool *lost,
                    struct segment_exam *ret_exam)
{
    struct segment_exam e = {.ss = ss, .locs = locs, .count = n};
    struct segment *s = segment_find(ss, locs[0].stripe.segment);
    int rc = 0;

    CHECK(n > 0);
    if (!s)
        return ERR_FORMAT;
    for (size_t i = 0; i < n; i++)
        if (locs[i].stripe.segment != s->id || locs[i].stripe.offset != locs[0].stripe.offset ||
            locs[i].stripe.width != locs[0].stripe.width || !segment_loc_sane(ss, s, &locs[i]))
            return ERR_FORMAT;
    e.segment = *s;
    e.code = segment_code(ss, s->k, s->m);
    e.column = (size_t)locs[0].stripe.width * FORMAT_UNIT;
    e.read_buf = buf_new(e.column * (s->k + s->m));
    e.made_buf = buf_new(e.column * (s->k + s->m));
    e.read = e.read_buf->data;
    e.made = e.made_buf->data;
    memset(lost, 0, n * sizeof(*lost));
    exam_read(&e);
    env_offload(ss->ds->env, ENV_LANE_CPU, exam_judge, &e);
    if (e.verdict.torn)
        rc = exam_chunks(&e, lost);
    if (rc < 0)
        segment_exam_free(&e);
    else
        *ret_exam = e;
    return rc;
}

int segment_verify(struct segments *ss, const struct segment_loc *locs, size_t n, bool *lost,
                   struct segment_verdict *ret_verdict)
{
    struct segment_exam e;
    int rc = segment_examine(ss, locs, n, lost, &e);

    if (rc < 0)
        return rc;
    *ret_verdict = e.verdict;
    segment_exam_free(&e);
    return 0;
}

/* ---- Fragment headers ---- */

bool segment_fragment_valid(const struct format_fragment *f)
{
    struct format_fragment copy = *f;

    copy.crc = 0;
    return f->magic == FORMAT_FRAGMENT_MAGIC && f->version == FORMAT_VERSION &&
           crc32c(0, &copy, sizeof(copy)) == f->crc && f->data_columns >= 1 &&
           f->data_columns + f->parity_columns <= FORMAT_COLS_MAX &&
           f->column < f->data_columns + f->parity_columns;
}

static bool header_is_of(const struct segments *ss, const struct segment *s, unsigned column,
                         const struct format_fragment *f)
{
    bool fits = segment_fragment_valid(f) && f->segment == s->id && f->column == column &&
                f->data_columns == s->k && f->parity_columns == s->m &&
                memcmp(f->store_uuid, ss->ds->super.store_uuid, 16) == 0;

    for (unsigned i = 0; fits && i < s->k + s->m; i++)
        fits = f->columns[i].drive == s->drive[i] && f->columns[i].slot == s->slot[i];
    return fits;
}

int segment_verify_headers(struct segments *ss, uint64_t segment, uint32_t *ret_bad,
                           uint32_t *ret_absent)
{
    const struct segment *s = segment_find(ss, segment);
    struct buf *b;
    uint32_t bad = 0, absent = 0;

    if (!s)
        return ERR_NOENT;
    b = buf_new(FORMAT_UNIT);
    for (unsigned i = 0; i < s->k + s->m; i++) {
        struct drive *d = &ss->ds->drives[s->drive[i]];
        struct format_fragment f;

        if (!drive_readable(d) ||
            drive_pread(d, &b, FORMAT_UNIT, segment_column_off(ss, s, i)) < 0) {
            absent |= 1u << i;
            continue;
        }
        memcpy(&f, b->data, sizeof(f));
        if (!header_is_of(ss, s, i, &f))
            bad |= 1u << i;
    }
    buf_unref(b);
    *ret_bad = bad;
    *ret_absent = absent;
    return 0;
}

void segment_walk_fragments(struct driveset *ds,
                            void (*fn)(void *arg, const struct format_fragment *f), void *arg)
{
    struct buf *b = buf_new(FORMAT_UNIT);

    for (unsigned i = 0; i < ds->count; i++) {
        if (!drive_readable(&ds->drives[i]))
            continue;
        for (uint64_t slot = 0; slot < ds->drives[i].slot_count; slot++) {
            struct format_fragment f;

            if (drive_pread(&ds->drives[i], &b, FORMAT_UNIT, drive_slot_off(ds, (uint32_t)slot)) <
                0)
                continue;
            memcpy(&f, b->data, sizeof(f));
            if (segment_fragment_valid(&f) && memcmp(f.store_uuid, ds->super.store_uuid, 16) == 0 &&
                f.columns[f.column].drive == i && f.columns[f.column].slot == slot)
                fn(arg, &f);
        }
    }
    buf_unref(b);
}

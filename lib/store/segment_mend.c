/* Mending what scrub finds wrong on drives: columns of stripes and fragment headers, in place.
 *
 * This is the one exception to "stripes are never rewritten". It is safe because:
 * - A column's bytes are a function of any k others, and what is written was proved: the k columns
 *   it was made from give a stripe whose every byte fits a CRC (segment_verify.c). Readers thus
 *   find what the chunk table promises, before and after.
 * - Only columns are written that were bad. While it is being written a column is as it was, as it
 *   is to be, or torn: bad in any case but one. So a crash in the middle leaves no fewer good
 *   columns than there were, and the next pass finds what is left to do. (One that could not be
 *   read, and then could, may be torn too: it was as good as bad.) The k columns that the truth was
 *   made from are never touched.
 * - The place is still the segment's: who calls holds it, so its slots are given to no other (F6),
 *   and only stripes are mended that hold something alive, which are never written anew (F5).
 * - A drive that does not count is not written: whoever put it out will come to its data later.
 *
 * What was written is read back; a drive that says it wrote and did not, stays bad. Reading past
 * the drive's own cache cannot be forced, so this proves less than the next pass does.
 *
 * Where no k columns give a whole stripe, damage lies in different places of different columns (or
 * in what is dead), and a reader may yet find all that is alive, chunk by chunk. There is nothing
 * to write in place then; compaction reads what is alive and writes it elsewhere.
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/segment.h"
#include "lib/store/segment_priv.h"

/* Bits of the columns that lie on drives that count and answer. What a drive looks for and does not
 * find soon enough is left to a later pass: a write would fail at once, and the drive be put out
 * for a spot that is slow to read. */
static uint32_t columns_answering(const struct segments *ss, const struct segment *s)
{
    uint32_t bits = 0;

    for (unsigned i = 0; i < s->k + s->m; i++)
        if (drive_usable(&ss->ds->drives[s->drive[i]]) &&
            drive_readable(&ss->ds->drives[s->drive[i]]))
            bits |= 1u << i;
    return bits;
}

/* Writes `bytes` over a bad piece of column i, `at` bytes into its slot. */
static bool column_mend(struct segments *ss, const struct segment *s, unsigned i, uint64_t at,
                        struct buf *b, uint8_t *bytes, size_t len)
{
    unsigned to = PLANTED(SCRUB_WRONG_COLUMN) ? (i + 1) % (s->k + s->m) : i;
    struct drive *d = &ss->ds->drives[s->drive[to]];

    if (drive_usable(d))
        return drive_mend(ss->ds, d, segment_column_off(ss, s, to) + at, b, bytes, len);
    d->scrub.bad++;
    d->scrub.unmended++;
    return false;
}

/* A drive was put out by a failed write: the others are told. */
static int tell_if_out(struct segments *ss, unsigned counted)
{
    return driveset_healthy(ss->ds) < counted ? driveset_tell(ss->ds) : 0;
}

static void exam_count(struct segments *ss, const struct segment_exam *e)
{
    for (unsigned j = 0; j < e->have_count; j++)
        ss->ds->drives[e->segment.drive[e->have[j]]].scrub.bytes += e->column;
    for (unsigned i = 0; i < e->segment.k + e->segment.m && !e->proved; i++) {
        struct drive *d = &ss->ds->drives[e->segment.drive[i]];

        d->scrub.bad += e->verdict.bad >> i & 1;
        d->scrub.unmended += e->verdict.bad >> i & 1;
    }
}

int segment_mend(struct segments *ss, const struct segment_loc *locs, size_t n, bool *lost,
                 struct segment_verdict *ret_verdict)
{
    unsigned counted = driveset_healthy(ss->ds);
    struct segment_exam e;
    uint32_t todo;
    int rc = segment_examine(ss, locs, n, lost, &e);

    if (rc < 0)
        return rc;
    todo = e.verdict.absent & columns_answering(ss, &e.segment);
    e.verdict.bad |= todo;
    e.verdict.absent &= ~todo;
    exam_count(ss, &e);
    for (unsigned i = 0; i < e.segment.k + e.segment.m && e.proved; i++)
        if (e.verdict.bad >> i & 1 &&
            column_mend(ss, &e.segment, i, (uint64_t)locs[0].stripe.offset * FORMAT_UNIT,
                        e.made_buf, e.made + i * e.column, e.column))
            e.verdict.mended |= 1u << i;
    if (!e.proved)
        segment_ails(ss, e.segment.id);
    *ret_verdict = e.verdict;
    segment_exam_free(&e);
    return tell_if_out(ss, counted);
}

int segment_mend_headers(struct segments *ss, uint64_t segment, struct segment_verdict *ret_verdict)
{
    unsigned counted = driveset_healthy(ss->ds);
    struct segment_verdict v = {0};
    struct segment s;
    struct buf *b;
    uint32_t todo;
    int rc = segment_verify_headers(ss, segment, &v.bad, &v.absent);

    if (rc < 0)
        return rc;
    s = *segment_find(ss, segment); /* it is held */
    todo = v.absent & columns_answering(ss, &s);
    v.bad |= todo;
    v.absent &= ~todo;
    for (unsigned i = 0; i < s.k + s.m; i++) {
        struct drive *d = &ss->ds->drives[s.drive[i]];

        d->scrub.bytes += v.absent >> i & 1 ? 0 : FORMAT_UNIT;
        if (!(v.bad >> i & 1))
            continue;
        b = buf_new(FORMAT_UNIT); /* a new one: a drive that is late keeps its own */
        segment_fragment_header(ss, &s, i, b);
        if (column_mend(ss, &s, i, 0, b, b->data, FORMAT_UNIT))
            v.mended |= 1u << i;
        buf_unref(b);
    }
    *ret_verdict = v;
    return tell_if_out(ss, counted);
}

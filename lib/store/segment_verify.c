/* Verifying what drives hold of a segment, column by column: for checks of a store at rest.
 *
 * Reading proves only the columns that it uses. Here all columns of a stripe are read: in the good
 * case the data columns give all chunks, and encoding them gives the parity columns, byte by byte.
 * Otherwise the k columns are sought from which everything fits (the directory and every chunk by
 * its CRC) and from which the fewest of the others differ; those that differ are bad. Where no k
 * columns fit for the stripe as a whole, damage lies in different places of different columns: then
 * each chunk is tried by itself, as a reader would.
 *
 * Parity m = 1 without any chunk or directory to tell by, or damage in bytes that nothing covers
 * (padding, chunks that are gone), can leave columns that do not fit each other with no proof which
 * is right: that is said too, and no drive is blamed.
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/segment.h"
#include "lib/store/segment_priv.h"

struct verify {
    struct segments *ss;
    const struct segment *segment;
    const struct segment_loc *locs;
    size_t count;
    size_t column;                  /* bytes */
    uint8_t *cols[FORMAT_COLS_MAX]; /* as read */
    uint8_t *made[FORMAT_COLS_MAX]; /* as the columns in use say */
    uint8_t have[FORMAT_COLS_MAX];
    unsigned have_count;
    uint32_t absent;
};

const struct segment *segment_get(const struct segments *ss, uint64_t segment)
{
    return segment_find(ss, segment);
}

/* ---- Reading ---- */

static void verify_read(struct verify *v)
{
    const struct segment *s = v->segment;
    struct env_io ios[FORMAT_COLS_MAX];
    uint8_t at[FORMAT_COLS_MAX];
    unsigned n = 0;

    for (unsigned i = 0; i < s->k + s->m; i++) {
        struct drive *d = &v->ss->ds->drives[s->drive[i]];

        v->cols[i] = mem_alloc_aligned(FORMAT_UNIT, v->column);
        v->made[i] = mem_alloc_aligned(FORMAT_UNIT, v->column);
        if (!drive_readable(d)) {
            v->absent |= 1u << i;
            continue;
        }
        drive_io_prepare(d, &ios[n], ENV_READ, v->cols[i], v->column,
                         segment_column_off(v->ss, s, i) +
                             (uint64_t)v->locs[0].stripe.offset * FORMAT_UNIT);
        at[n++] = (uint8_t)i;
    }
    if (n)
        (void)env_io_run(ios, n); /* each result is looked at */
    for (unsigned j = 0; j < n; j++) {
        drive_io_done(&v->ss->ds->drives[s->drive[at[j]]], &ios[j]);
        if (ios[j].result == (int64_t)v->column)
            v->have[v->have_count++] = at[j];
        else
            v->absent |= 1u << at[j];
    }
}

static void verify_free(struct verify *v)
{
    for (unsigned i = 0; i < v->segment->k + v->segment->m; i++) {
        mem_free(v->cols[i]);
        mem_free(v->made[i]);
    }
}

/* ---- Judging ---- */

/* CRC of a range of the stripe's data, which runs through the columns. */
static uint32_t data_crc(const struct verify *v, uint32_t crc, size_t at, size_t len)
{
    while (len) {
        size_t inner = at % v->column, n = v->column - inner < len ? v->column - inner : len;

        crc = crc32c(crc, v->made[at / v->column] + inner, n);
        at += n;
        len -= n;
    }
    return crc;
}

/* The stripe's own directory: its header is in column 0, and what follows it may run on. */
static bool directory_whole(const struct verify *v)
{
    struct format_stripe h;
    uint64_t bytes;
    uint32_t crc;

    memcpy(&h, v->made[0], sizeof(h));
    bytes = (uint64_t)h.entries * sizeof(struct format_stripe_entry);
    if (h.magic != FORMAT_STRIPE_MAGIC || h.segment != v->segment->id ||
        h.offset != v->locs[0].stripe.offset || h.width != v->locs[0].stripe.width ||
        bytes > v->column * v->segment->k - sizeof(h))
        return false;
    crc = h.crc;
    h.crc = 0;
    return data_crc(v, crc32c(0, &h, sizeof(h)), sizeof(h), bytes) == crc;
}

static bool all_fits(const struct verify *v)
{
    if (!directory_whole(v))
        return false;
    for (size_t i = 0; i < v->count; i++)
        if (data_crc(v, 0, v->locs[i].position, v->locs[i].stored) != v->locs[i].crc)
            return false;
    return true;
}

/* Makes all columns from the k ones `pick` (indices into have). */
static void make_columns(struct verify *v, const unsigned *pick)
{
    const struct segment *s = v->segment;
    const uint8_t *from[FORMAT_COLS_MAX];
    uint8_t index[FORMAT_COLS_MAX];
    uint32_t given = 0;

    for (unsigned i = 0; i < s->k; i++) {
        index[i] = v->have[pick[i]];
        from[i] = v->cols[index[i]];
        given |= 1u << index[i];
    }
    for (unsigned c = 0; c < s->k + s->m; c++) {
        if (given >> c & 1)
            memcpy(v->made[c], v->cols[c], v->column);
        else
            ec_reconstruct(segment_code(v->ss, s->k, s->m), v->column, from, index, c, v->made[c]);
    }
}

static uint32_t columns_differing(const struct verify *v)
{
    uint32_t bad = 0;

    for (unsigned i = 0; i < v->have_count; i++)
        if (memcmp(v->cols[v->have[i]], v->made[v->have[i]], v->column) != 0)
            bad |= 1u << v->have[i];
    return bad;
}

/* Tries combinations of k columns; false when none fits. `same` is set when another choice with as
 * few differences blames other columns. */
static bool verify_combine(struct verify *v, uint32_t *ret_bad, bool *ret_same)
{
    unsigned pick[FORMAT_COLS_MAX], k = v->segment->k, best = FORMAT_COLS_MAX + 1;

    *ret_same = false;
    if (v->have_count < k)
        return false;
    for (unsigned i = 0; i < k; i++)
        pick[i] = i;
    do {
        uint32_t bad;
        unsigned n;

        make_columns(v, pick);
        if (!all_fits(v))
            continue;
        bad = columns_differing(v);
        n = (unsigned)__builtin_popcount(bad);
        if (n == best && bad != *ret_bad)
            *ret_same = true;
        if (n >= best)
            continue;
        best = n;
        *ret_bad = bad;
        *ret_same = false;
        /* Nothing else comes as near: two codewords differ in more than n - k columns. */
    } while (2 * best > v->have_count - k && segment_next_combination(pick, k, v->have_count));
    return best <= FORMAT_COLS_MAX;
}

/* One by one, as a reader would: drives are blamed by what reading finds wrong on them. */
static void verify_chunks(struct verify *v, bool *lost, struct segment_verdict *verdict)
{
    const struct segment *s = v->segment;
    uint64_t before[FORMAT_COLS_MAX];

    for (unsigned c = 0; c < s->k + s->m; c++)
        before[c] = v->ss->ds->drives[s->drive[c]].corruptions;
    for (size_t i = 0; i < v->count; i++) {
        struct segment_read r = {.loc = v->locs[i]};

        lost[i] = segment_read(v->ss, &r, 1) < 0;
        buf_unref(r.buf);
    }
    for (unsigned c = 0; c < s->k + s->m; c++)
        if (v->ss->ds->drives[s->drive[c]].corruptions > before[c])
            verdict->bad |= 1u << c;
    verdict->torn = true;
}

int segment_verify(struct segments *ss, const struct segment_loc *locs, size_t n, bool *lost,
                   struct segment_verdict *ret_verdict)
{
    struct verify v = {.ss = ss, .locs = locs, .count = n};
    struct segment_verdict verdict = {0};

    CHECK(n > 0);
    v.segment = segment_find(ss, locs[0].stripe.segment);
    if (!v.segment)
        return ERR_FORMAT;
    for (size_t i = 0; i < n; i++)
        if (locs[i].stripe.offset != locs[0].stripe.offset ||
            locs[i].stripe.width != locs[0].stripe.width ||
            !segment_loc_sane(ss, v.segment, &locs[i]))
            return ERR_FORMAT;
    v.column = (size_t)locs[0].stripe.width * FORMAT_UNIT;
    memset(lost, 0, n * sizeof(*lost));
    verify_read(&v);
    if (!verify_combine(&v, &verdict.bad, &verdict.doubtful))
        verify_chunks(&v, lost, &verdict);
    if (verdict.doubtful)
        verdict.bad = 0;
    verdict.absent = v.absent;
    verify_free(&v);
    *ret_verdict = verdict;
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
            env_pread(d->file, b->data, FORMAT_UNIT, segment_column_off(ss, s, i)) < 0) {
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

int segment_adopt(struct segments *ss, const struct format_fragment *f)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct segment s = {.id = f->segment, .state = SEGMENT_SEALED};

    if (!segment_fragment_valid(f))
        return ERR_FORMAT;
    s.k = f->data_columns;
    s.m = f->parity_columns;
    s.used = (uint32_t)(ss->ds->super.slot_size / FORMAT_UNIT);
    for (unsigned i = 0; i < s.k + s.m; i++) {
        s.drive[i] = f->columns[i].drive;
        s.slot[i] = f->columns[i].slot;
    }
    segment_row_encode(&s, &row);
    return segment_load(ss, s.id, row.data, row.len);
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

            if (env_pread(ds->drives[i].file, b->data, FORMAT_UNIT,
                          drive_slot_off(ds, (uint32_t)slot)) < 0)
                continue;
            memcpy(&f, b->data, sizeof(f));
            if (segment_fragment_valid(&f) && memcmp(f.store_uuid, ds->super.store_uuid, 16) == 0 &&
                f.columns[f.column].drive == i && f.columns[f.column].slot == slot)
                fn(arg, &f);
        }
    }
    buf_unref(b);
}

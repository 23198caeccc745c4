/* lib/store/segment: what was written in stripes is read back exactly, from whichever columns are
 * left; and the table of segments, its rows and its slots follow the records that change them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/sync.h"
#include "lib/store/journal.h"
#include "lib/store/segment_priv.h"
#include "tests/unit/store/store_case.h"

#define CHUNKS_MAX 4096u
#define ROWS_MAX   256u
#define UNIT       FORMAT_UNIT
#define SLOT_UNITS (FORMAT_SLOT_SIZE / FORMAT_UNIT)

static struct sim_case c;

struct stored {
    uint64_t seed;
    struct segment_loc loc;
};

struct row {
    uint64_t segment;
    uint8_t bytes[512];
    size_t len;
};

/* The engine around the segments: a log that applies what it is given, after a while, and keeps the
 * rows that came of it. */
static struct {
    struct record_log log; /* first */
    struct driveset *ds;
    struct segments *ss;
    struct stored stored[CHUNKS_MAX];
    size_t count;
    uint64_t next_seed;
    struct row rows[ROWS_MAX];
    size_t row_count;
    unsigned gone;
    int log_error;      /* records are refused with it */
    int rows_error;     /* the record is applied, and its rows cannot be written */
    unsigned log_holds; /* records wait while it is not 0 */
    unsigned drives, opens, frees;
} t;

/* ---- The log ---- */

static void take_row(void *arg, uint64_t segment, const struct strbuf *value)
{
    struct row *r = NULL;

    (void)arg;
    for (size_t i = 0; i < t.row_count; i++)
        if (t.rows[i].segment == segment)
            r = &t.rows[i];
    if (!r) {
        assert_true(t.row_count < ROWS_MAX);
        r = &t.rows[t.row_count++];
    }
    assert_true(value->len <= sizeof(r->bytes));
    r->segment = segment;
    r->len = value->len;
    memcpy(r->bytes, value->data, value->len);
}

static void drop_row(void *arg, uint64_t segment)
{
    (void)arg;
    for (size_t i = 0; i < t.row_count; i++)
        if (t.rows[i].segment == segment)
            t.rows[i--] = t.rows[--t.row_count];
    t.gone++;
}

static int submit(struct record_log *log, enum record_type type, const struct iovec *iov,
                  unsigned n, unsigned flags, void *context)
{
    int rc;

    (void)log;
    assert_int_equal(n, 1);
    assert_true(flags == JOURNAL_LAST || flags == JOURNAL_DRAIN);
    do
        env_sleep(c.env, ENV_NS_PER_MS);
    while (t.log_holds);
    if (t.log_error)
        return t.log_error;
    if (type == RECORD_SEGMENT_OPEN) {
        t.opens++;
        rc = segment_apply_open(t.ss, iov->iov_base, iov->iov_len, context);
    } else {
        assert_int_equal(type, RECORD_SEGMENT_FREE);
        t.frees++;
        rc = segment_apply_free(t.ss, iov->iov_base, iov->iov_len, drop_row, NULL);
    }
    segment_take_dirty(t.ss, take_row, NULL);
    return t.rows_error ? t.rows_error : rc;
}

/* ---- Life ---- */

static int setup(void **state)
{
    (void)state;
    sim_case_init(&c, 1);
    memset(&t, 0, sizeof(t));
    t.log.submit = submit;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sim_case_free(&c);
    return 0;
}

static void open_store(void)
{
    t.ds = store_case_open(&c, t.drives);
    assert_int_equal(segments_new(t.ds, &t.log, &t.ss), 0);
    for (size_t i = 0; i < t.row_count; i++)
        assert_int_equal(segment_load(t.ss, t.rows[i].segment, t.rows[i].bytes, t.rows[i].len), 0);
}

static void make_store(unsigned drives, unsigned k, unsigned m, uint64_t slots)
{
    t.drives = drives;
    assert_int_equal(store_case_format(&c, drives, k, m, slots, FORMAT_JOURNAL_MIN), 0);
    open_store();
}

static void close_store(void)
{
    segments_free(t.ss);
    driveset_close(t.ds);
}

static void reopen_store(void)
{
    close_store();
    open_store();
}

/* ---- Chunks ---- */

static uint8_t *chunk_bytes(uint64_t seed, size_t n)
{
    uint8_t *p = malloc(n);

    sim_case_bytes(seed, p, n);
    return p;
}

/* Writes a stripe of chunks of these sizes, and does what applying a record that names them does.
 */
static int put(enum segment_stream stream, const uint32_t *sizes, size_t n)
{
    struct segment_chunk *chunks = mem_calloc(n, sizeof(*chunks));
    struct segment_stripe where;
    int rc;

    for (size_t i = 0; i < n; i++) {
        uint64_t seed = t.next_seed++;
        uint8_t *p = chunk_bytes(seed, sizes[i]);

        chunks[i] = (struct segment_chunk){.data = p,
                                           .id = seed,
                                           .stored = sizes[i],
                                           .raw = sizes[i] + 7,
                                           .crc = crc32c(0, p, sizes[i]),
                                           .codec = 1,
                                           .fingerprint_algorithm = 1};
        memset(chunks[i].fingerprint, (int)seed, 32);
    }
    rc = segment_write(t.ss, stream, chunks, n, &where);
    for (size_t i = 0; i < n; i++) {
        if (rc == 0) {
            struct stored *s = &t.stored[t.count++];

            assert_true(t.count < CHUNKS_MAX);
            *s = (struct stored){chunks[i].id,
                                 {where, chunks[i].position, chunks[i].stored, chunks[i].crc}};
            segment_account(t.ss, &s->loc, true);
        }
        free((void *)(uintptr_t)chunks[i].data);
    }
    mem_free(chunks);
    if (rc == 0) {
        segment_take_dirty(t.ss, take_row, NULL);
        segment_release(t.ss, where.segment);
    }
    return rc;
}

static void put_ok(enum segment_stream stream, const uint32_t *sizes, size_t n)
{
    assert_int_equal(put(stream, sizes, n), 0);
}

/* Chunks of one stripe, of sizes as the engine makes them: raw blocks, packed ones, large ones. */
static size_t mixed_sizes(uint32_t *sizes, size_t max)
{
    size_t n = 0, total = 0;

    while (n < max) {
        uint32_t size = 0;

        switch (sim_random(c.sim, 4)) {
        case 0:
            size = UNIT;
            break;
        case 1:
            size = 1 + (uint32_t)sim_random(c.sim, UNIT);
            break;
        case 2:
            size = 1 + (uint32_t)sim_random(c.sim, 70000);
            break;
        default:
            size = 1 + (uint32_t)sim_random(c.sim, 300000);
            break;
        }
        if (total + size > SEGMENT_STRIPE_MAX)
            break;
        total += size;
        sizes[n++] = size;
    }
    return n;
}

static void put_mixed(unsigned stripes)
{
    uint32_t sizes[64];

    for (unsigned i = 0; i < stripes; i++) {
        size_t n = mixed_sizes(sizes, 1 + sim_random(c.sim, 40));

        put_ok((enum segment_stream)(i % SEGMENT_STREAMS), sizes, n);
    }
}

static void check_read(const struct segment_read *r, const struct stored *s)
{
    uint8_t *want = chunk_bytes(s->seed, s->loc.stored);

    assert_int_equal(r->result, 0);
    assert_non_null(r->buf);
    assert_memory_equal(r->data, want, s->loc.stored);
    free(want);
}

/* Reads the chunks numbered pick[0..n) at once. */
static int read_picked(const size_t *pick, size_t n)
{
    struct segment_read *reads = mem_calloc(n, sizeof(*reads));
    int rc;

    for (size_t i = 0; i < n; i++)
        reads[i].loc = t.stored[pick[i]].loc;
    rc = segment_read(t.ss, reads, n);
    for (size_t i = 0; i < n; i++) {
        if (rc == 0)
            check_read(&reads[i], &t.stored[pick[i]]);
        buf_unref(reads[i].buf);
    }
    mem_free(reads);
    return rc;
}

static int read_all(void)
{
    size_t *pick = mem_calloc(t.count, sizeof(*pick));
    int rc;

    for (size_t i = 0; i < t.count; i++)
        pick[i] = i;
    rc = read_picked(pick, t.count);
    mem_free(pick);
    return rc;
}

static int read_one(size_t i)
{
    return read_picked(&i, 1);
}

/* ---- Round trips ---- */

static void round_trip_main(void *arg)
{
    const unsigned *geometry = arg;
    size_t pick[50];

    make_store(geometry[0] + geometry[1], geometry[0], geometry[1], 8);
    put_mixed(12);
    assert_int_equal(read_all(), 0);
    for (size_t i = 0; i < t.count; i++)
        assert_int_equal(read_one(i), 0);
    for (unsigned round = 0; round < 20; round++) {
        size_t n = 1 + sim_random(c.sim, 50);

        for (size_t i = 0; i < n; i++)
            pick[i] = sim_random(c.sim, t.count);
        assert_int_equal(read_picked(pick, n), 0);
    }
    reopen_store();
    assert_int_equal(read_all(), 0);
    assert_int_equal(read_picked(NULL, 0), 0);
    for (unsigned i = 0; i < t.drives; i++)
        assert_int_equal(t.ds->drives[i].corruptions, 0);
    close_store();
}

static void test_round_trip(void **state)
{
    static unsigned geometries[][2] = {{1, 0}, {1, 1}, {2, 1}, {2, 2}, {4, 2}};

    for (unsigned i = 0; i < 5; i++) {
        teardown(state);
        setup(state);
        sim_case_run(&c, round_trip_main, geometries[i]);
    }
}

/* The largest chunks and the fullest stripes that are allowed. */
static void limits_main(void *arg)
{
    uint32_t sizes[2] = {SEGMENT_CHUNK_MAX, SEGMENT_CHUNK_MAX}, one = 1;
    uint32_t *tiny = malloc(1024 * sizeof(*tiny));

    (void)arg;
    make_store(1, 1, 0, 8);
    put_ok(SEGMENT_STUDIES, sizes, 2);
    put_ok(SEGMENT_STUDIES, &one, 1);
    for (unsigned i = 0; i < 1024; i++)
        tiny[i] = 1 + i % 3;
    put_ok(SEGMENT_STUDIES, tiny, 1024);
    put_ok(SEGMENT_STUDIES, sizes, 1);
    free(tiny);
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_limits(void **state)
{
    (void)state;
    sim_case_run(&c, limits_main, NULL);
}

/* ---- Where things lie ---- */

static void column_read(const struct segment_stripe *st, const uint8_t *row, unsigned column,
                        uint64_t off, void *out, size_t n)
{
    /* Rows: version u8, state u8, used u32, live u64, chunks u64, segment u64, 4 x u8, slots. */
    uint32_t drive = codec_get_le32(row + 34 + 8 * column);
    uint32_t slot = codec_get_le32(row + 38 + 8 * column);

    assert_int_equal(sim_file_read(c.sim, store_case_paths(8)[drive], out, n,
                                   drive_slot_off(t.ds, slot) + (uint64_t)st->offset * UNIT + off),
                     0);
}

static const struct row *row_of(uint64_t segment)
{
    for (size_t i = 0; i < t.row_count; i++)
        if (t.rows[i].segment == segment)
            return &t.rows[i];
    fail_msg("no row");
    return NULL;
}

static void check_placed(size_t first, size_t n, unsigned k)
{
    size_t directory = sizeof(struct format_stripe) + n * sizeof(struct format_stripe_entry);
    size_t column = (size_t)t.stored[first].loc.stripe.width * UNIT, end = 0;

    for (size_t i = first; i < first + n; i++) {
        const struct segment_loc *l = &t.stored[i].loc;

        assert_true(l->position >= directory);
        assert_true(l->position + l->stored <= column * k);
        if (l->stored % UNIT == 0)
            assert_int_equal(l->position % UNIT, 0);
        if (l->stored <= 64 * 1024 && l->stored <= column)
            assert_int_equal(l->position / column, (l->position + l->stored - 1) / column);
        for (size_t j = first; j < i; j++) {
            const struct segment_loc *o = &t.stored[j].loc;

            assert_true(l->position + l->stored <= o->position ||
                        o->position + o->stored <= l->position);
        }
        if (l->position + l->stored > end)
            end = l->position + l->stored;
    }
    /* No wider than needed: one column less would have to hold what is placed, more or less. */
    assert_true(column * k < end + (size_t)k * (UNIT + 64 * 1024) + directory);
}

/* The stripe on the media tells the same story as its chunks' rows. */
static void check_described(size_t first, size_t n)
{
    const struct segment_stripe *st = &t.stored[first].loc.stripe;
    size_t directory = sizeof(struct format_stripe) + n * sizeof(struct format_stripe_entry);
    size_t column = (size_t)st->width * UNIT, size = (directory + column) / column * column;
    uint8_t *data = malloc(size);
    const uint8_t *row = row_of(st->segment)->bytes;
    struct format_stripe h;
    uint32_t crc;

    for (unsigned i = 0; i < size / column; i++)
        column_read(st, row, i, 0, data + i * column, column);
    memcpy(&h, data, sizeof(h));
    assert_int_equal(h.magic, FORMAT_STRIPE_MAGIC);
    assert_int_equal(h.entries, n);
    assert_int_equal(h.segment, st->segment);
    assert_int_equal(h.offset, st->offset);
    assert_int_equal(h.width, st->width);
    crc = h.crc;
    h.crc = 0;
    memcpy(data, &h, sizeof(h));
    assert_int_equal(crc32c(0, data, directory), crc);
    for (size_t i = 0; i < n; i++) {
        const struct stored *s = &t.stored[first + i];
        struct format_stripe_entry e;

        memcpy(&e, data + sizeof(h) + i * sizeof(e), sizeof(e));
        assert_int_equal(e.chunk, s->seed);
        assert_int_equal(e.position, s->loc.position);
        assert_int_equal(e.stored, s->loc.stored);
        assert_int_equal(e.raw, s->loc.stored + 7);
        assert_int_equal(e.crc, s->loc.crc);
        assert_int_equal(e.fingerprint[31], (uint8_t)s->seed);
    }
    free(data);
}

static void check_fragment(uint64_t segment, unsigned column)
{
    const struct segment_stripe front = {segment, 0, 1};
    const uint8_t *row = row_of(segment)->bytes;
    struct format_fragment f;
    uint32_t crc;

    column_read(&front, row, column, 0, &f, sizeof(f));
    assert_int_equal(f.magic, FORMAT_FRAGMENT_MAGIC);
    assert_int_equal(f.segment, segment);
    assert_int_equal(f.column, column);
    assert_int_equal(f.data_columns, row[31]);
    assert_int_equal(f.parity_columns, row[32]);
    assert_memory_equal(f.store_uuid, t.ds->super.store_uuid, 16);
    assert_int_equal(f.columns[column].drive, codec_get_le32(row + 34 + 8 * column));
    assert_int_equal(f.columns[column].slot, codec_get_le32(row + 38 + 8 * column));
    crc = f.crc;
    f.crc = 0;
    assert_int_equal(crc32c(0, &f, sizeof(f)), crc);
}

static void placement_main(void *arg)
{
    const unsigned *geometry = arg;
    unsigned k = geometry[0], m = geometry[1];
    uint32_t sizes[200];

    make_store(k + m, k, m, 30);
    for (unsigned round = 0; round < 30; round++) {
        size_t n = mixed_sizes(sizes, 1 + sim_random(c.sim, 60)), first = t.count;

        put_ok(SEGMENT_VOLUMES, sizes, n);
        check_placed(first, n, k);
        check_described(first, n);
    }
    for (size_t i = 0; i < 200; i++)
        sizes[i] = i % 2 ? UNIT : 3000; /* aligned ones come first, all of them together */
    put_ok(SEGMENT_VOLUMES, sizes, 200);
    check_placed(t.count - 200, 200, k);
    check_described(t.count - 200, 200);
    assert_true(t.stored[t.count - 1].loc.position < t.stored[t.count - 2].loc.position);
    for (size_t i = 0; i < t.row_count; i++)
        for (unsigned column = 0; column < k + m; column++)
            check_fragment(t.rows[i].segment, column);
    close_store();
}

static void test_placement(void **state)
{
    static unsigned geometries[][2] = {{1, 0}, {2, 1}, {4, 2}};

    for (unsigned i = 0; i < 3; i++) {
        teardown(state);
        setup(state);
        sim_case_run(&c, placement_main, geometries[i]);
    }
}

/* Stripes of a segment lie one behind the other, segments fill their slots. */
static void packing_main(void *arg)
{
    uint32_t sizes[4] = {200000, 200000, 200000, 200000};
    struct segment_stripe last = {0};

    (void)arg;
    make_store(3, 2, 1, 8);
    for (unsigned i = 0; i < 40; i++) {
        const struct segment_stripe *st;

        put_ok(SEGMENT_STUDIES, sizes, 4);
        st = &t.stored[t.count - 1].loc.stripe;
        if (st->segment == last.segment) {
            assert_int_equal(st->offset, last.offset + last.width);
        } else {
            assert_int_equal(st->offset, 1);
            assert_true(last.segment == 0 || last.offset + last.width + st->width > SLOT_UNITS);
        }
        assert_true(st->offset + st->width <= SLOT_UNITS);
        last = *st;
    }
    assert_int_equal(t.opens, 4);
    close_store();
}

static void test_packing(void **state)
{
    (void)state;
    sim_case_run(&c, packing_main, NULL);
}

static void streams_main(void *arg)
{
    uint32_t size = 5000;

    (void)arg;
    make_store(3, 2, 1, 8);
    for (unsigned i = 0; i < 4; i++)
        put_ok((enum segment_stream)(i % 2), &size, 1);
    assert_int_equal(t.stored[0].loc.stripe.segment, t.stored[2].loc.stripe.segment);
    assert_int_equal(t.stored[1].loc.stripe.segment, t.stored[3].loc.stripe.segment);
    assert_int_not_equal(t.stored[0].loc.stripe.segment, t.stored[1].loc.stripe.segment);
    close_store();
}

static void test_streams(void **state)
{
    (void)state;
    sim_case_run(&c, streams_main, NULL);
}

/* Many at once: every stripe has its own place. */
static struct fiber_group writers;

static void writer_fiber(void *arg)
{
    uint32_t sizes[8];

    (void)arg;
    for (unsigned i = 0; i < 5; i++) {
        size_t n = mixed_sizes(sizes, 8);

        put_ok(SEGMENT_VOLUMES, sizes, n);
        if (i % 2)
            assert_int_equal(read_one(sim_random(c.sim, t.count)), 0);
    }
    fiber_group_done(&writers);
}

static void concurrent_main(void *arg)
{
    (void)arg;
    make_store(3, 2, 1, 12);
    fiber_group_init(&writers);
    fiber_group_add(&writers, 8);
    for (unsigned i = 0; i < 8; i++)
        fiber_spawn(c.env, "writer", writer_fiber, NULL);
    fiber_group_wait(&writers);
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_concurrent_writers(void **state)
{
    (void)state;
    sim_case_run(&c, concurrent_main, NULL);
}

/* ---- Damage ---- */

static unsigned unreadable, unwritable; /* bits per drive */
static unsigned write_failures;

static int hook_drives(void *arg, const char *path, const struct env_io *io)
{
    unsigned d = store_case_drive(path);

    (void)arg;
    if (io->kind == ENV_READ && (unreadable >> d & 1))
        return ERR_IO;
    if (io->kind == ENV_WRITE && (unwritable >> d & 1)) {
        write_failures++;
        return ERR_IO;
    }
    return 0;
}

enum harm { HARM_NOISE, HARM_UNREADABLE, HARM_PUT_OUT, HARM_GONE, HARM_KINDS };

static uint8_t *saved[8];
static size_t saved_size;

/* Columns go to drives in some order; a harm to each set of drives is a harm to each set of
 * columns. */
static void harm(unsigned drive, enum harm kind)
{
    const char *path = store_case_paths(8)[drive];

    switch (kind) {
    case HARM_NOISE:
        sim_file_corrupt(c.sim, path, t.ds->super.slots_off, saved_size);
        break;
    case HARM_UNREADABLE:
        unreadable |= 1u << drive;
        break;
    case HARM_PUT_OUT:
        t.ds->drives[drive].state = DRIVE_FAILED;
        break;
    default:
        t.ds->drives[drive].state = DRIVE_FAILED;
        unreadable |= 1u << drive;
        break;
    }
}

static void mend(unsigned drive, enum harm kind)
{
    struct env_file *f = t.ds->drives[drive].file;

    if (kind == HARM_NOISE) {
        uint8_t *p = mem_alloc_aligned(4096, saved_size);

        memcpy(p, saved[drive], saved_size);
        assert_int_equal(env_pwrite(f, p, saved_size, t.ds->super.slots_off, false), 0);
        mem_free(p);
    }
    unreadable = 0;
    t.ds->drives[drive].state = DRIVE_OK;
}

static uint64_t corruptions(void)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < t.drives; i++)
        n += t.ds->drives[i].corruptions;
    return n;
}

static void damage_start(void)
{
    uint32_t sizes[] = {UNIT, 100, 60000, 200000, UNIT, 70000, 3000, 5, 150000, UNIT};

    make_store(6, 4, 2, 2);
    put_ok(SEGMENT_VOLUMES, sizes, 10);
    put_ok(SEGMENT_VOLUMES, sizes + 3, 1);
    saved_size = 80 * UNIT;
    for (unsigned i = 0; i < 6; i++) {
        saved[i] = malloc(saved_size);
        sim_file_read(c.sim, store_case_paths(8)[i], saved[i], saved_size, t.ds->super.slots_off);
    }
    unreadable = unwritable = 0;
    c.hook = hook_drives;
}

static void damage_end(void)
{
    for (unsigned i = 0; i < 6; i++)
        free(saved[i]);
    c.hook = NULL;
    close_store();
}

static void double_main(void *arg)
{
    (void)arg;
    damage_start();
    for (unsigned a = 0; a < 6; a++)
        for (unsigned b = a; b < 6; b++)
            for (unsigned kinds = 0; kinds < HARM_KINDS * HARM_KINDS; kinds++) {
                enum harm ka = kinds % HARM_KINDS, kb = kinds / HARM_KINDS;

                if (a == b && ka != kb)
                    continue;
                harm(a, ka);
                if (b != a)
                    harm(b, kb);
                assert_int_equal(read_all(), 0);
                mend(a, ka);
                mend(b, kb);
            }
    assert_int_equal(read_all(), 0);
    assert_true(corruptions() > 0);
    damage_end();
}

static void test_one_or_two_columns(void **state)
{
    (void)state;
    sim_case_run(&c, double_main, NULL);
}

/* Three are too many: an error for what cannot be had, never other bytes. What lies in columns that
 * are whole is still served. */
static void triple_main(void *arg)
{
    (void)arg;
    damage_start();
    for (unsigned set = 0; set < 64; set++) {
        enum harm kind = (enum harm)(set % HARM_KINDS);
        unsigned lost = 0;

        if (__builtin_popcount(set) != 3)
            continue;
        for (unsigned i = 0; i < 6; i++)
            if (set >> i & 1)
                harm(i, kind);
        for (size_t i = 0; i < t.count; i++) {
            int rc = read_one(i); /* looks at the bytes on success */

            assert_true(rc == 0 || rc == ERR_LOST);
            lost += rc == ERR_LOST;
        }
        /* Drives that were merely put out can still be read: what is on them is verified anyway. */
        assert_int_equal(lost > 0, kind != HARM_PUT_OUT);
        assert_int_equal(read_all(), kind == HARM_PUT_OUT ? 0 : ERR_LOST);
        for (unsigned i = 0; i < 6; i++)
            if (set >> i & 1)
                mend(i, kind);
    }
    assert_int_equal(read_all(), 0);
    damage_end();
}

static void test_three_columns(void **state)
{
    (void)state;
    sim_case_run(&c, triple_main, NULL);
}

/* Half of many columns are wrong: all is found, and the right drives are blamed. */
static uint64_t blamed;

static void wide_main(void *arg)
{
    unsigned bad = *(unsigned *)arg;
    uint32_t sizes[] = {UNIT, 100, 60000, 300000, 5};

    make_store(8, 4, 4, 2);
    put_ok(SEGMENT_VOLUMES, sizes, 5);
    for (unsigned i = 0; i < 8; i++)
        if (bad >> i & 1)
            sim_file_corrupt(c.sim, store_case_paths(8)[i], t.ds->super.slots_off, 200 * UNIT);
    for (size_t i = 0; i < t.count; i++)
        assert_int_equal(read_one(i), 0);
    blamed += corruptions();
    for (unsigned i = 0; i < 8; i++)
        if (!(bad >> i & 1))
            assert_int_equal(t.ds->drives[i].corruptions, 0);
    close_store();
}

static void test_wide(void **state)
{
    static unsigned sets[] = {0x0f, 0x33, 0x5a, 0xa5, 0xc3, 0xf0};

    for (unsigned i = 0; i < 6; i++) {
        teardown(state);
        setup(state);
        sim_case_run(&c, wide_main, &sets[i]);
    }
    assert_true(blamed > 0);
}

/* ---- A stripe that was there before ---- */

static unsigned versions;
static uint64_t version_ids[4];

static void version_found(void *arg, const struct segment_entry *entries, size_t n)
{
    (void)arg;
    assert_int_equal(n, 1);
    assert_true(versions < 4);
    version_ids[versions++] = entries[0].id;
}

/* A stripe of one chunk that no record ever names. */
static void put_unnamed(uint64_t id, struct segment_stripe *ret_where)
{
    uint8_t *p = chunk_bytes(id, 3 * UNIT);
    struct segment_chunk chunk = {.data = p,
                                  .id = id,
                                  .stored = 3 * UNIT,
                                  .raw = 3 * UNIT,
                                  .crc = crc32c(0, p, 3 * UNIT),
                                  .fingerprint_algorithm = 1};

    assert_int_equal(segment_write(t.ss, SEGMENT_VOLUMES, &chunk, 1, ret_where), 0);
    segment_release(t.ss, ret_where->segment);
    free(p);
}

/* A crash, another stripe in its place, and a drive that lost the write and shows the old one: the
 * walk may believe it, a close look finds both. */
static void older_main(void *arg)
{
    uint32_t size = 6 * UNIT;
    struct segment_entry *entries;
    struct segment_stripe old;
    const struct segment *s;
    uint32_t at;
    uint8_t *was;
    size_t n;

    (void)arg;
    make_store(2, 1, 1, 2);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    put_unnamed(1000, &old);
    was = mem_alloc_aligned(4096, UNIT * (size_t)old.width);
    column_read(&old, row_of(old.segment)->bytes, 0, 0, was, UNIT * (size_t)old.width);
    reopen_store();
    put_ok(SEGMENT_VOLUMES, &size, 1);
    assert_int_equal(t.stored[1].loc.stripe.offset, old.offset);
    s = segment_get(t.ss, old.segment);
    assert_int_equal(env_pwrite(t.ds->drives[s->drive[0]].file, was, UNIT * (size_t)old.width,
                                drive_slot_off(t.ds, s->slot[0]) + (uint64_t)old.offset * UNIT,
                                true),
                     0);
    mem_free(was);
    segment_hold(t.ss, old.segment);
    at = old.offset;
    assert_int_equal(segment_next_stripe(t.ss, old.segment, &at, &entries, &n), 0);
    assert_int_equal(entries[0].id, 1000);
    mem_free(entries);
    versions = 0;
    assert_int_equal(segment_stripes_at(t.ss, old.segment, old.offset, version_found, NULL), 0);
    assert_int_equal(versions, 2);
    assert_int_equal(version_ids[0], 1000);
    assert_int_equal(version_ids[1], t.stored[1].seed);
    assert_int_equal(segment_stripes_at(t.ss, old.segment, old.offset + 1, version_found, NULL), 0);
    assert_int_equal(versions, 2);
    segment_release(t.ss, old.segment);
    close_store();
}

/* A stripe of another chunk and of 2000, which is what is returned. */
static struct segment_loc put_pair(uint64_t other)
{
    const uint64_t ids[2] = {other, 2000};
    struct segment_chunk chunks[2];
    struct segment_stripe where;
    uint8_t *bytes[2];

    for (unsigned i = 0; i < 2; i++) {
        bytes[i] = chunk_bytes(ids[i], 3 * UNIT);
        chunks[i] = (struct segment_chunk){.data = bytes[i],
                                           .id = ids[i],
                                           .stored = 3 * UNIT,
                                           .raw = 3 * UNIT,
                                           .crc = crc32c(0, bytes[i], 3 * UNIT),
                                           .fingerprint_algorithm = 1};
    }
    assert_int_equal(segment_write(t.ss, SEGMENT_VOLUMES, chunks, 2, &where), 0);
    segment_release(t.ss, where.segment);
    for (unsigned i = 0; i < 2; i++)
        free(bytes[i]);
    return (struct segment_loc){where, chunks[1].position, chunks[1].stored, chunks[1].crc};
}

/* As before, but what is alive now was in the old stripe too, and both are whole: from one column,
 * or from two of which one differs and another which does not. Nobody is blamed, and nothing
 * written in place, since what is dead may be wanted again. */
struct both_whole {
    unsigned k, m, old; /* old: bit per column */
};

static void both_whole_main(void *arg)
{
    const struct both_whole *how = arg;
    uint32_t size = 6 * UNIT;
    struct segment_verdict v;
    struct segment_loc old, now;
    const struct segment *s;
    uint8_t *was[4];
    size_t column;
    bool lost;

    make_store(how->k + how->m, how->k, how->m, 2);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    old = put_pair(1000);
    column = UNIT * (size_t)old.stripe.width;
    for (unsigned i = 0; i < how->k + how->m; i++) {
        was[i] = mem_alloc_aligned(4096, column);
        column_read(&old.stripe, row_of(old.stripe.segment)->bytes, i, 0, was[i], column);
    }
    reopen_store();
    now = put_pair(3000);
    assert_int_equal(now.stripe.offset, old.stripe.offset);
    assert_int_equal(now.position, old.position);
    segment_account(t.ss, &now, true);
    s = segment_get(t.ss, now.stripe.segment);
    for (unsigned i = 0; i < how->k + how->m; i++) {
        uint64_t off = drive_slot_off(t.ds, s->slot[i]) + (uint64_t)old.stripe.offset * UNIT;

        if (how->old >> i & 1)
            assert_int_equal(env_pwrite(t.ds->drives[s->drive[i]].file, was[i], column, off, true),
                             0);
        mem_free(was[i]);
    }
    segment_hold(t.ss, s->id);
    assert_int_equal(segment_verify(t.ss, &now, 1, &lost, &v), 0);
    assert_true(v.doubtful && !v.bad && !v.torn && !lost);
    assert_false(s->ailing);
    assert_int_equal(segment_mend(t.ss, &now, 1, &lost, &v), 0);
    assert_true(v.doubtful && !v.bad && !v.mended && !lost);
    assert_true(s->ailing);
    segment_release(t.ss, s->id);
    close_store();
}

static void test_both_whole(void **state)
{
    static struct both_whole hows[] = {{1, 1, 0x1}, {2, 2, 0x9}};

    for (size_t i = 0; i < sizeof(hows) / sizeof(hows[0]); i++) {
        teardown(state);
        setup(state);
        sim_case_run(&c, both_whole_main, &hows[i]);
    }
}

/* A header that looks like one, of a column that rots: its directory proves it wrong, and what the
 * other columns have is asked for. */
static void rotten_header_main(void *arg)
{
    static const size_t places[] = {offsetof(struct format_stripe, width),
                                    offsetof(struct format_stripe, entries),
                                    offsetof(struct format_stripe, crc)};
    uint32_t size = 6 * UNIT, at;
    struct segment_entry *entries;
    const struct segment *s;
    struct segment_stripe where;
    uint64_t off;
    uint8_t *unit = mem_alloc_aligned(4096, UNIT);
    size_t n;

    (void)arg;
    make_store(3, 2, 1, 2);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    where = t.stored[0].loc.stripe;
    s = segment_get(t.ss, where.segment);
    off = drive_slot_off(t.ds, s->slot[0]) + (uint64_t)where.offset * UNIT;
    segment_hold(t.ss, where.segment);
    for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct env_file *f = t.ds->drives[s->drive[0]].file;

        column_read(&where, row_of(where.segment)->bytes, 0, 0, unit, UNIT);
        unit[places[i]] ^= 2;
        assert_int_equal(env_pwrite(f, unit, UNIT, off, true), 0);
        at = where.offset;
        assert_int_equal(segment_next_stripe(t.ss, where.segment, &at, &entries, &n), 0);
        assert_int_equal(at, where.offset + where.width);
        assert_int_equal(entries[0].id, t.stored[0].seed);
        mem_free(entries);
        versions = 0;
        assert_int_equal(segment_stripes_at(t.ss, where.segment, where.offset, version_found, NULL),
                         0);
        assert_int_equal(versions, 1);
        unit[places[i]] ^= 2;
        assert_int_equal(env_pwrite(f, unit, UNIT, off, true), 0);
    }
    segment_release(t.ss, where.segment);
    mem_free(unit);
    close_store();
}

static void test_rotten_header(void **state)
{
    (void)state;
    sim_case_run(&c, rotten_header_main, NULL);
}

static void test_older(void **state)
{
    (void)state;
    sim_case_run(&c, older_main, NULL);
}

/* Each read of several has its own result. */
static void own_result_main(void *arg)
{
    struct segment_read reads[3] = {0};
    uint32_t size = 50000;

    (void)arg;
    make_store(1, 1, 0, 4);
    for (unsigned i = 0; i < 3; i++) {
        put_ok(SEGMENT_VOLUMES, &size, 1);
        reads[i].loc = t.stored[i].loc;
    }
    reads[1].loc.crc ^= 1;
    assert_int_equal(segment_read(t.ss, reads, 3), ERR_LOST);
    check_read(&reads[0], &t.stored[0]);
    check_read(&reads[2], &t.stored[2]);
    assert_int_equal(reads[1].result, ERR_LOST);
    assert_null(reads[1].buf);
    buf_unref(reads[0].buf);
    buf_unref(reads[2].buf);
    close_store();
}

static void test_own_result(void **state)
{
    (void)state;
    sim_case_run(&c, own_result_main, NULL);
}

/* Locations that cannot be are refused as damage of the tables, and nothing is left to crash on. */
static void insane_main(void *arg)
{
    uint32_t size = 5000;
    struct segment_loc good, bad;
    struct segment_read reads[2];

    (void)arg;
    make_store(3, 2, 1, 4);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    good = t.stored[0].loc;
    for (unsigned i = 0; i < 8; i++) {
        bad = good;
        switch (i) {
        case 0:
            bad.stripe.segment++;
            break;
        case 1:
            bad.stored = 0;
            break;
        case 2:
            bad.stored = UINT32_MAX;
            break;
        case 3:
            bad.position = UINT32_MAX;
            break;
        case 4:
            bad.stripe.offset = UINT32_MAX;
            break;
        case 5:
            bad.stripe.width = UINT32_MAX;
            break;
        case 6:
            bad.stripe.width = 0;
            break;
        default:
            bad.stripe.offset = SLOT_UNITS;
            break;
        }
        for (unsigned j = 0; j < 2; j++) {
            reads[j] = (struct segment_read){.loc = good};
            reads[1 - j] = (struct segment_read){.loc = bad};
            assert_int_equal(segment_read(t.ss, reads, 2), ERR_FORMAT);
            assert_int_equal(reads[0].result, ERR_FORMAT);
            assert_int_equal(reads[1].result, ERR_FORMAT);
            assert_null(reads[0].buf);
        }
    }
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_insane_locations(void **state)
{
    (void)state;
    sim_case_run(&c, insane_main, NULL);
}

/* Rows that name one stripe and are not of one mind about how wide it is. */
static void two_widths_main(void *arg)
{
    struct segment_read reads[2] = {0};
    uint32_t sizes[] = {5000, 900000};

    (void)arg;
    make_store(3, 2, 1, 4);
    put_ok(SEGMENT_VOLUMES, sizes, 2);
    for (unsigned i = 0; i < 2; i++)
        reads[i].loc = t.stored[i].loc;
    assert_true(reads[0].loc.position < reads[1].loc.position);
    reads[0].loc.stripe.width = 2; /* that many columns more than there are for the other one */
    assert_int_equal(segment_read(t.ss, reads, 2), 0);
    check_read(&reads[0], &t.stored[0]);
    check_read(&reads[1], &t.stored[1]);
    buf_unref(reads[0].buf);
    buf_unref(reads[1].buf);
    close_store();
}

static void test_two_widths(void **state)
{
    (void)state;
    sim_case_run(&c, two_widths_main, NULL);
}

/* Bits that flip on the medium as it is read: found and answered from elsewhere, every time. */
static void bit_flip_main(void *arg)
{
    struct sim_faults faults = {.bit_flip = 20000};

    (void)arg;
    make_store(6, 4, 2, 4);
    put_mixed(3);
    sim_set_faults(c.sim, &faults);
    for (unsigned round = 0; round < 10; round++)
        for (size_t i = 0; i < t.count; i++) {
            int rc = read_one(i);

            assert_true(rc == 0 || rc == ERR_LOST);
        }
    assert_true(corruptions() > 0);
    close_store();
}

static void test_bit_flips(void **state)
{
    (void)state;
    sim_case_run(&c, bit_flip_main, NULL);
}

/* ---- Drives failing under a write ---- */

static void expect_geometry(unsigned k, unsigned m)
{
    const struct row *row = row_of(t.stored[t.count - 1].loc.stripe.segment);
    struct segment_space sp;

    assert_int_equal(row->bytes[31], k);
    assert_int_equal(row->bytes[32], m);
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.k, k);
    assert_int_equal(sp.m, m);
}

/* The drives go one by one, each under a stripe being written. m is kept as long as can be. */
static void failing_main(void *arg)
{
    static const unsigned geometry[][2] = {{4, 2}, {3, 2}, {2, 2}, {1, 2}, {1, 1}, {1, 0}};
    uint32_t sizes[] = {UNIT, 100, 60000, 200000};
    uint64_t epoch;

    (void)arg;
    make_store(6, 4, 2, 8);
    c.hook = hook_drives;
    unreadable = unwritable = write_failures = 0;
    put_ok(SEGMENT_VOLUMES, sizes, 4);
    expect_geometry(4, 2);
    for (unsigned gone = 1; gone < 6; gone++) {
        uint64_t before = t.stored[t.count - 1].loc.stripe.segment;
        size_t k = geometry[gone][0];
        unsigned failed = write_failures;

        epoch = t.ds->super.epoch;
        unwritable |= 1u << (gone * 5 % 6);
        put_ok(SEGMENT_VOLUMES, sizes, 4);
        expect_geometry((unsigned)k, geometry[gone][1]);
        assert_int_equal(row_of(before)->bytes[1], SEGMENT_SEALED);
        assert_int_equal(write_failures, failed + 1); /* and is never asked again */
        assert_int_equal(driveset_healthy(t.ds), 6 - gone);
        assert_true(t.ds->super.epoch > epoch); /* everybody knows before it counts */
        assert_int_equal(read_all(), 0);
    }
    unwritable = 63;
    assert_int_equal(put(SEGMENT_VOLUMES, sizes, 4), ERR_LOST);
    assert_int_equal(read_all(), 0); /* reads go on */
    unwritable = 0;
    c.hook = NULL;
    reopen_store();
    assert_int_equal(driveset_healthy(t.ds), 6);
    assert_int_equal(read_all(), 0);
    put_ok(SEGMENT_VOLUMES, sizes, 4); /* all are back: the full width again */
    expect_geometry(4, 2);
    close_store();
}

static void test_failing_drives(void **state)
{
    (void)state;
    sim_case_run(&c, failing_main, NULL);
}

/* The drive fails at the fragment's header, before any stripe. */
static void failing_header_main(void *arg)
{
    uint32_t size = 5000;

    (void)arg;
    make_store(3, 2, 1, 4);
    c.hook = hook_drives;
    unreadable = write_failures = 0;
    unwritable = 4;
    put_ok(SEGMENT_VOLUMES, &size, 1);
    expect_geometry(1, 1);
    assert_int_equal(segment_drive_used(t.ss, 2), 0); /* its slot was given back */
    c.hook = NULL;
    close_store();
}

static unsigned late_writes;

/* d2 is put out by somebody else while space is reserved on it. */
static int hook_out_under_reserve(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    if (store_case_drive(path) != 2)
        return 0;
    if (io->kind == ENV_RESERVE)
        driveset_put_out(t.ds, 2, "for the test");
    late_writes += io->kind == ENV_WRITE;
    return 0;
}

static void out_under_reserve_main(void *arg)
{
    uint32_t size = 5000;

    (void)arg;
    make_store(3, 2, 1, 4);
    late_writes = 0;
    c.hook = hook_out_under_reserve;
    put_ok(SEGMENT_VOLUMES, &size, 1);
    assert_int_equal(late_writes, 0);
    expect_geometry(1, 1);
    c.hook = NULL;
    close_store();
}

static void test_out_under_reserve(void **state)
{
    (void)state;
    sim_case_run(&c, out_under_reserve_main, NULL);
}

static void test_failing_header(void **state)
{
    (void)state;
    sim_case_run(&c, failing_header_main, NULL);
}

/* A record that does not get through: the slots are free again, a later try succeeds. */
static void log_fails_main(void *arg)
{
    uint32_t size = 5000;
    struct segment_space before, after;

    (void)arg;
    make_store(3, 2, 1, 4);
    segment_get_space(t.ss, &before);
    t.log_error = ERR_SHUTDOWN;
    assert_int_equal(put(SEGMENT_VOLUMES, &size, 1), ERR_SHUTDOWN);
    segment_get_space(t.ss, &after);
    assert_memory_equal(&before, &after, sizeof(before));
    t.log_error = 0;
    put_ok(SEGMENT_VOLUMES, &size, 1);
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_log_fails(void **state)
{
    (void)state;
    sim_case_run(&c, log_fails_main, NULL);
}

/* ---- Space ---- */

static void unaccount(size_t i)
{
    segment_account(t.ss, &t.stored[i].loc, false);
    t.stored[i] = t.stored[--t.count];
    segment_take_dirty(t.ss, take_row, NULL);
}

static void space_main(void *arg)
{
    uint32_t sizes[] = {200000, 100000};
    struct segment_space sp;
    uint64_t column = FORMAT_SLOT_SIZE - UNIT;
    unsigned freed = 99;

    (void)arg;
    make_store(3, 2, 1, 5);
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.total, 5 * 2 * column);
    assert_int_equal(sp.free, sp.total);
    assert_int_equal(sp.physical + sp.live + sp.segments, 0);
    put_ok(SEGMENT_VOLUMES, sizes, 2);
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.total, 5 * 2 * column);
    assert_int_equal(sp.free, 4 * 2 * column);
    assert_int_equal(sp.physical, 3 * FORMAT_SLOT_SIZE);
    assert_int_equal(sp.live, 300000);
    assert_int_equal(sp.segments, 1);
    assert_int_equal(segment_drive_used(t.ss, 1), FORMAT_SLOT_SIZE);
    unaccount(0);
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.live, 100000);
    assert_int_equal(sp.physical, 3 * FORMAT_SLOT_SIZE);

    /* A drive that is out takes its slots with it; what is left makes narrower segments. */
    driveset_put_out(t.ds, 0, "for the test");
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.k, 1);
    assert_int_equal(sp.m, 1);
    assert_int_equal(sp.total, 5 * column);
    assert_int_equal(sp.free, 4 * column);
    t.ds->drives[0].state = DRIVE_OK;

    /* The open segment stays, even with nothing alive in it. */
    unaccount(0);
    assert_false(segment_sweep_due(t.ss));
    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    assert_int_equal(freed, 0);
    assert_int_equal(t.frees, 0);
    put_ok(SEGMENT_VOLUMES, sizes, 2);
    assert_int_equal(t.stored[0].loc.stripe.segment, 1);
    close_store();
}

static void test_space(void **state)
{
    (void)state;
    sim_case_run(&c, space_main, NULL);
}

/* Fills the store with stripes of 1 MiB; returns how many there were. */
static unsigned fill(void)
{
    uint32_t size = SEGMENT_CHUNK_MAX;
    unsigned n = 0;
    int rc;

    while ((rc = put(SEGMENT_VOLUMES, &size, 1)) == 0)
        n++;
    assert_int_equal(rc, ERR_NOSPC);
    return n;
}

static void free_segment(uint64_t segment)
{
    for (size_t i = t.count; i > 0; i--)
        if (t.stored[i - 1].loc.stripe.segment == segment)
            unaccount(i - 1);
}

static void full_main(void *arg)
{
    struct segment_space sp;
    uint64_t first;
    unsigned n, freed;

    (void)arg;
    make_store(3, 2, 1, 4);
    n = fill();
    assert_true(n >= 4 * 6);
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.free, 0);
    assert_int_equal(sp.segments, 4);
    assert_int_equal(read_all(), 0);
    first = t.stored[0].loc.stripe.segment;
    free_segment(first);
    assert_true(segment_sweep_due(t.ss));
    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    assert_int_equal(freed, 1);
    assert_int_equal(t.gone, 1);
    assert_false(segment_sweep_due(t.ss));
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.segments, 3);
    assert_true(fill() > 0);
    assert_int_equal(read_all(), 0);
    reopen_store();
    assert_int_equal(read_all(), 0);
    assert_int_equal(fill(), 0);
    close_store();
}

static void test_full(void **state)
{
    (void)state;
    sim_case_run(&c, full_main, NULL);
}

/* F6: while the record that frees a slot is on its way the slot is nobody's to write. */
static void sweep_fiber(void *arg)
{
    unsigned *freed = arg;

    assert_int_equal(segment_sweep(t.ss, freed), 0);
}

static void reuse_main(void *arg)
{
    uint32_t size = SEGMENT_CHUNK_MAX;
    unsigned freed = 0, again = 9;

    (void)arg;
    make_store(3, 2, 1, 3);
    fill();
    free_segment(t.stored[0].loc.stripe.segment);
    t.log_holds = 1;
    fiber_spawn(c.env, "sweep", sweep_fiber, &freed);
    env_sleep(c.env, ENV_NS_PER_S);
    assert_int_equal(put(SEGMENT_VOLUMES, &size, 1), ERR_NOSPC);
    assert_int_equal(segment_sweep(t.ss, &again), 0); /* not twice */
    assert_int_equal(again, 0);
    t.log_holds = 0;
    env_sleep(c.env, ENV_NS_PER_S);
    assert_int_equal(freed, 1);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    assert_int_equal(read_all(), 0);
    /* A free that fails leaves the segment for the next round. */
    free_segment(t.stored[0].loc.stripe.segment);
    t.log_error = ERR_AGAIN;
    assert_int_equal(segment_sweep(t.ss, &freed), ERR_AGAIN);
    assert_true(segment_sweep_due(t.ss));
    t.log_error = 0;
    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    assert_int_equal(freed, 1);
    close_store();
}

static void test_slot_reuse(void **state)
{
    (void)state;
    sim_case_run(&c, reuse_main, NULL);
}

/* Where a record is applied and its rows cannot be written, what it did is done: the store has
 * stopped, and reads go on. */
static void unwritten_main(void *arg)
{
    uint32_t size = SEGMENT_CHUNK_MAX;
    unsigned freed;
    size_t all;

    (void)arg;
    make_store(3, 2, 1, 8);
    while (t.ss->by_id.count < 2)
        put_ok(SEGMENT_VOLUMES, &size, 1);
    free_segment(t.stored[0].loc.stripe.segment);
    all = t.ss->by_id.count;
    t.rows_error = ERR_NOSPC;
    assert_int_equal(segment_sweep(t.ss, &freed), ERR_NOSPC);
    assert_int_equal(t.ss->by_id.count, all - 1);
    assert_int_equal(put(SEGMENT_STUDIES, &size, 1), ERR_NOSPC);
    assert_int_equal(t.ss->by_id.count, all);
    list_for_each (it, &t.ss->all) {
        const struct segment *s = LIST_ENTRY(it, struct segment, link);

        for (unsigned i = 0; i < s->k + s->m; i++)
            assert_true(t.ss->slots[s->drive[i]][s->slot[i] / 8] >> s->slot[i] % 8 & 1);
    }
    t.rows_error = 0;
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_rows_unwritten(void **state)
{
    (void)state;
    sim_case_run(&c, unwritten_main, NULL);
}

/* Nobody pulls a segment from under a reader, a stripe whose record is still to come, or a pin. */
static int slow_result;

static void reader_fiber(void *arg)
{
    struct segment_read r = {.loc = *(struct segment_loc *)arg};

    slow_result = segment_read(t.ss, &r, 1);
    buf_unref(r.buf);
}

static void held_main(void *arg)
{
    struct sim_faults slow = {.io_min_ns = ENV_NS_PER_S, .io_max_ns = ENV_NS_PER_S};
    struct segment_loc loc;
    uint64_t segment;
    unsigned freed = 9;

    (void)arg;
    make_store(3, 2, 1, 3);
    fill();
    loc = t.stored[0].loc;
    segment = loc.stripe.segment;
    sim_set_faults(c.sim, &slow);
    slow_result = 1;
    fiber_spawn(c.env, "reader", reader_fiber, &loc);
    fiber_yield();
    free_segment(segment);
    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    assert_int_equal(freed, 0);
    env_sleep(c.env, 3 * ENV_NS_PER_S);
    assert_int_equal(slow_result, 0);
    segment_hold(t.ss, segment);
    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    assert_int_equal(freed, 0);
    segment_release(t.ss, segment);
    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    assert_int_equal(freed, 1);
    close_store();
}

static void test_held_segments(void **state)
{
    (void)state;
    sim_case_run(&c, held_main, NULL);
}

/* ---- Choosing ---- */

enum { MANY = 20000 };

/* A sealed segment on three drives from `drive` on. */
static void load_sealed(uint64_t id, unsigned drive, uint64_t chunks)
{
    struct segment s = {.id = id,
                        .state = SEGMENT_SEALED,
                        .k = 2,
                        .m = 1,
                        .used = SLOT_UNITS,
                        .live = chunks * 2 * (SLOT_UNITS - 1) * UNIT,
                        .chunks = chunks};
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;

    for (unsigned i = 0; i < 3; i++) {
        s.drive[i] = drive + i;
        s.slot[i] = (uint32_t)id;
    }
    segment_row_encode(&s, &row);
    assert_int_equal(segment_load(t.ss, id, row.data, row.len), 0);
}

static void expect_thin(uint64_t want)
{
    uint64_t id = 0;

    assert_int_equal(segment_pick_thin(t.ss, &id), want != 0);
    assert_int_equal(id, want);
}

static void expect_leaving(uint64_t want)
{
    uint64_t id = 0;

    assert_int_equal(segment_pick_leaving(t.ss, &id), want != 0);
    assert_int_equal(id, want);
}

/* Compaction asks at each of its steps what is next: that must not take a walk over the table,
 * which with so many questions would be seconds. */
static void ask_often(uint64_t thin, uint64_t leaving)
{
    clock_t start = clock();

    for (unsigned i = 0; i < MANY; i++) {
        unsigned freed = 9;

        expect_thin(thin);
        expect_leaving(leaving);
        assert_int_equal(segment_sweep(t.ss, &freed), 0);
        assert_int_equal(freed, 0);
    }
    assert_true(clock() - start < CLOCKS_PER_SEC);
}

static void many_main(void *arg)
{
    unsigned freed;

    (void)arg;
    make_store(5, 2, 1, MANY + 8);
    for (uint64_t id = 1; id <= MANY; id++)
        load_sealed(id, 0, 1);
    load_sealed(MANY + 1, 1, 1);
    load_sealed(MANY + 2, 2, 1);
    load_sealed(MANY + 3, 2, 0);
    segment_hold(t.ss, MANY + 3);
    ask_often(0, 0);
    segment_give_up(t.ss, 4);
    t.ds->drives[3].leaving = true;
    ask_often(MANY + 2, MANY + 1);
    segment_compact_failed(t.ss, MANY + 2, true); /* left alone */
    segment_ails(t.ss, 7);
    ask_often(7, MANY + 1);
    segment_compact_failed(t.ss, MANY + 1, true);
    expect_leaving(0);
    t.ds->drives[2].leaving = true;
    expect_leaving(1);
    t.ds->drives[2].leaving = false;
    segment_release(t.ss, MANY + 3);
    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    assert_int_equal(freed, 1);
    assert_false(segment_sweep_due(t.ss));
    close_store();
}

static void test_many(void **state)
{
    (void)state;
    sim_case_run(&c, many_main, NULL);
}

/* What was written while drives were missing is thin once they are back, even if nothing was when
 * last asked. */
static void thin_later_main(void *arg)
{
    uint32_t size = 100000;

    (void)arg;
    make_store(3, 1, 2, 8);
    driveset_put_out(t.ds, 2, "for the test");
    put_ok(SEGMENT_VOLUMES, &size, 1);
    expect_thin(0);
    t.ds->drives[2].state = DRIVE_OK;
    put_ok(SEGMENT_VOLUMES, &size, 1); /* in another segment: the first one is sealed */
    expect_thin(1);
    driveset_put_out(t.ds, 2, "for the test");
    expect_thin(0);
    t.ds->drives[2].state = DRIVE_OK;
    expect_thin(1);
    unaccount(0);
    expect_thin(0);
    close_store();
}

static void test_thin_later(void **state)
{
    (void)state;
    sim_case_run(&c, thin_later_main, NULL);
}

/* ---- Rows and records ---- */

static void rows_main(void *arg)
{
    struct segment_space before, after;
    uint32_t size = 30000;

    (void)arg;
    make_store(3, 2, 1, 6);
    put_mixed(12);
    for (size_t i = 0; i < t.count; i += 3)
        unaccount(i);
    segment_get_space(t.ss, &before);
    before.survivors = 0; /* counted from the start */
    reopen_store();
    segment_get_space(t.ss, &after);
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(read_all(), 0);
    put_ok(SEGMENT_VOLUMES, &size, 1); /* goes on behind what is there */
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_rows(void **state)
{
    (void)state;
    sim_case_run(&c, rows_main, NULL);
}

static void refuse_row(const struct row *r, size_t at, uint8_t value, size_t len)
{
    uint8_t bytes[512];

    memcpy(bytes, r->bytes, r->len);
    if (at < r->len)
        bytes[at] = value;
    assert_int_equal(segment_load(t.ss, r->segment, bytes, len), ERR_FORMAT);
}

static void bad_rows_main(void *arg)
{
    uint32_t size = 30000;
    struct segment_space sp;
    struct row r;

    (void)arg;
    make_store(3, 2, 1, 6);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    r = t.rows[0];
    t.row_count = 0;
    reopen_store();
    for (size_t len = 0; len < r.len; len++)
        refuse_row(&r, r.len, 0, len);
    refuse_row(&r, 0, 2, r.len);                /* version */
    refuse_row(&r, 1, 2, r.len);                /* state */
    refuse_row(&r, 3, 0xff, r.len);             /* used beyond the slot */
    refuse_row(&r, 22, 9, r.len);               /* another id than the key's */
    refuse_row(&r, 30, SEGMENT_STREAMS, r.len); /* stream */
    refuse_row(&r, 31, 0, r.len);               /* k */
    refuse_row(&r, 31, 24, r.len);              /* k + m */
    refuse_row(&r, 34, 3, r.len);               /* no such drive */
    refuse_row(&r, 38, 6, r.len);               /* no such slot */
    refuse_row(&r, 42, r.bytes[34], r.len);     /* two columns on one drive: a lie about safety */
    segment_get_space(t.ss, &sp);
    assert_int_equal(sp.physical + sp.segments, 0); /* nothing stuck */
    assert_int_equal(segment_load(t.ss, r.segment, r.bytes, r.len), 0);
    assert_int_equal(segment_load(t.ss, r.segment, r.bytes, r.len), ERR_FORMAT);
    r.bytes[22]++;
    r.segment++;
    refuse_row(&r, r.len, 0, r.len); /* its slots are taken */
    close_store();
}

static void test_bad_rows(void **state)
{
    (void)state;
    sim_case_run(&c, bad_rows_main, NULL);
}

static void bad_records_main(void *arg)
{
    uint8_t body[64] = {0};
    uint32_t size = 30000;

    (void)arg;
    make_store(3, 2, 1, 6);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    assert_int_equal(segment_apply_open(t.ss, body, sizeof(body), NULL), ERR_FORMAT);
    assert_int_equal(segment_apply_open(t.ss, t.rows[0].bytes + 22, t.rows[0].len - 22, NULL),
                     ERR_FORMAT); /* exists */
    assert_int_equal(segment_apply_open(t.ss, t.rows[0].bytes + 22, 20, NULL), ERR_FORMAT);
    codec_put_le32(body, 1);
    codec_put_le64(body + 4, 1); /* open, and alive */
    assert_int_equal(segment_apply_free(t.ss, body, 12, drop_row, NULL), ERR_FORMAT);
    codec_put_le64(body + 4, 77); /* one whose row was lost */
    assert_int_equal(segment_apply_free(t.ss, body, 12, drop_row, NULL), 0);
    assert_int_equal(segment_apply_free(t.ss, body, 11, drop_row, NULL), ERR_FORMAT);
    codec_put_le32(body, UINT32_MAX);
    assert_int_equal(segment_apply_free(t.ss, body, sizeof(body), drop_row, NULL), ERR_FORMAT);
    assert_int_equal(t.gone, 0);
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_bad_records(void **state)
{
    (void)state;
    sim_case_run(&c, bad_records_main, NULL);
}

/* What a stripe without a record took is written again after a restart (F5). */
static void unnamed_main(void *arg)
{
    uint32_t size = 30000;
    struct segment_stripe where, named;
    uint8_t *p = chunk_bytes(1, size);
    struct segment_chunk ch = {
        .data = p, .id = 1, .stored = size, .raw = size, .crc = crc32c(0, p, size)};

    (void)arg;
    make_store(3, 2, 1, 6);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    named = t.stored[0].loc.stripe;
    assert_int_equal(segment_write(t.ss, SEGMENT_VOLUMES, &ch, 1, &where), 0);
    assert_int_equal(where.offset, named.offset + named.width);
    segment_release(t.ss, where.segment);
    free(p);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    assert_int_equal(t.stored[1].loc.stripe.offset, where.offset + where.width);
    ch = (struct segment_chunk){.data = (const uint8_t *)"x", .stored = 1, .raw = 1};
    assert_int_equal(segment_write(t.ss, SEGMENT_VOLUMES, &ch, 1, &where), 0);
    segment_release(t.ss, where.segment);
    reopen_store();
    put_ok(SEGMENT_VOLUMES, &size, 1);
    assert_int_equal(t.stored[2].loc.stripe.offset, where.offset);
    assert_int_equal(read_all(), 0);
    close_store();
}

static void test_unnamed_stripes(void **state)
{
    (void)state;
    sim_case_run(&c, unnamed_main, NULL);
}

/* ---- Mending ---- */

/* A drive that is long in finding a block is not waited for and not written, and stays. */
static void slow_spot_main(void *arg)
{
    static const struct sim_faults hangs = {.hang = true};
    uint64_t bad = 0, mended = 0;
    struct segment_verdict v;
    uint32_t size = 50000;
    bool lost, failed = false;

    (void)arg;
    make_store(3, 2, 1, 4);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    sim_set_file_faults(c.sim, "d0", &hangs);
    for (unsigned i = 0; i < 2; i++) {
        if (i == 0)
            assert_int_equal(segment_mend(t.ss, &t.stored[0].loc, 1, &lost, &v), 0);
        else
            assert_int_equal(segment_mend_headers(t.ss, t.stored[0].loc.stripe.segment, &v), 0);
        assert_true(t.ds->drives[0].hung);
        assert_int_equal(t.ds->drives[0].state, DRIVE_OK);
        assert_int_equal(v.bad | v.mended, 0);
        assert_int_equal(__builtin_popcount(v.absent), 1);
    }
    driveset_mend_supers(t.ds, &bad, &mended, &failed);
    assert_int_equal(bad, 0);
    assert_int_equal(t.ds->drives[0].state, DRIVE_OK);
    sim_set_file_faults(c.sim, "d0", NULL);
    env_sleep(c.env, ENV_NS_PER_S);
    assert_int_equal(segment_mend(t.ss, &t.stored[0].loc, 1, &lost, &v), 0);
    assert_int_equal(v.bad | v.absent, 0);
    close_store();
}

static void test_slow_spot(void **state)
{
    (void)state;
    sim_case_run(&c, slow_spot_main, NULL);
}

/* The last segment is opened for what makes room, and for nothing else. */
static void last_main(void *arg)
{
    uint32_t size = 100000;
    struct segment_stripe where;
    uint8_t *bytes = chunk_bytes(1, size);
    struct segment_chunk chunk = {.data = bytes, .id = 77, .stored = size};

    (void)arg;
    make_store(3, 2, 1, 3);
    put_ok(SEGMENT_VOLUMES, &size, 1);
    put_ok(SEGMENT_STUDIES, &size, 1);
    assert_int_equal(put(SEGMENT_IMAGE, &size, 1), ERR_NOSPC);
    assert_int_equal(segment_write_moved(t.ss, SEGMENT_VOLUMES_KEPT, false, &chunk, 1, &where),
                     ERR_NOSPC);
    put_ok(SEGMENT_STUDIES, &size, 1); /* it is open */
    assert_int_equal(segment_write_moved(t.ss, SEGMENT_VOLUMES_KEPT, true, &chunk, 1, &where), 0);
    segment_release(t.ss, where.segment);
    free(bytes);
    close_store();
}

static void test_last(void **state)
{
    (void)state;
    sim_case_run(&c, last_main, NULL);
}

/* What a segment gives back is counted in slots that new segments can have, and what it takes at
 * the geometry that they get. */
static void gain_main(void *arg)
{
    uint64_t id, room = 2ull * (SLOT_UNITS - 1) * UNIT;

    (void)arg;
    make_store(3, 2, 1, 8);
    load_sealed(1, 0, 1);
    segment_account(t.ss, &(struct segment_loc){{1, 1, 1}, 0, 0, 0}, true);
    segment_account(t.ss, &(struct segment_loc){{1, 1, 1}, 0, (uint32_t)(room * 6 / 10), 0}, false);
    assert_true(segment_pick_sparse(t.ss, 8, &id)); /* 4 of 10 parts are alive */
    assert_true(segment_move_keeps_free(t.ss, 1));
    driveset_put_out(t.ds, 0, "for the test");
    segment_give_up(t.ss, 0);
    expect_thin(1);
    assert_false(segment_pick_sparse(t.ss, 8, &id)); /* two slots of three, and it takes 1.6 */
    assert_true(segment_pick_sparse(t.ss, 15, &id));
    segment_account(t.ss, &(struct segment_loc){{1, 1, 1}, 0, (uint32_t)(room * 8 / 100), 0}, true);
    assert_false(segment_pick_sparse(t.ss, 15, &id)); /* 1.92 */
    assert_true(segment_move_keeps_free(t.ss, 1));
    segment_account(t.ss, &(struct segment_loc){{1, 1, 1}, 0, (uint32_t)(room / 10), 0}, true);
    assert_false(segment_move_keeps_free(t.ss, 1));
    close_store();
}

static void test_gain(void **state)
{
    (void)state;
    sim_case_run(&c, gain_main, NULL);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_round_trip),
        CASE(test_limits),
        CASE(test_placement),
        CASE(test_packing),
        CASE(test_streams),
        CASE(test_concurrent_writers),
        CASE(test_one_or_two_columns),
        CASE(test_three_columns),
        CASE(test_wide),
        CASE(test_own_result),
        CASE(test_older),
        CASE(test_both_whole),
        CASE(test_rotten_header),
        CASE(test_insane_locations),
        CASE(test_two_widths),
        CASE(test_bit_flips),
        CASE(test_failing_drives),
        CASE(test_failing_header),
        CASE(test_out_under_reserve),
        CASE(test_log_fails),
        CASE(test_space),
        CASE(test_full),
        CASE(test_last),
        CASE(test_gain),
        CASE(test_slot_reuse),
        CASE(test_rows_unwritten),
        CASE(test_held_segments),
        CASE(test_many),
        CASE(test_thin_later),
        CASE(test_rows),
        CASE(test_bad_rows),
        CASE(test_bad_records),
        CASE(test_unnamed_stripes),
        CASE(test_slow_spot),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

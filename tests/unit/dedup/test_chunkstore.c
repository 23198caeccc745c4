/* dedup/chunkstore: equal content is stored once, chunks live as long as something refers to them
 * or pins them, and what a record relies on is there when it is applied. The records are the tests'
 * own: a batch's list of chunks and changes of references. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/unit/dedup/chunk_case.h"

/* ---- Ingest ---- */

static void within_main(void *arg)
{
    struct chunk_item items[40];
    struct change changes[40];
    struct chunk_batch_stats bs;
    struct chunk_batch *b;

    (void)arg;
    make_store(3, 2, 1, 8);
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    for (unsigned i = 0; i < 40; i++)
        items[i] = item(i % 10, 30000 + i % 10);
    assert_int_equal(chunk_batch_add_wait(b, items, 40), 0); /* several groups, at the same time */
    assert_int_equal(chunk_batch_finish(b), 0);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(items[i].id, items[i % 10].id);
        for (unsigned j = 0; j < i % 10; j++)
            assert_int_not_equal(items[i].id, items[j].id);
        changes[i] = (struct change){items[i].id, 1};
    }
    chunk_batch_get_stats(b, &bs);
    assert_int_equal(bs.new_chunks, 10);
    assert_int_equal(bs.bytes, 40 * 30000 + 4 * 45);
    assert_int_equal(bs.found_bytes, 30 * 30000 + 3 * 45);
    assert_true(bs.stored_bytes < 10 * 30009 * 2 / 3 && bs.stored_bytes > 5 * 30000);
    assert_int_equal(read_chunk(items[0].id, 0, 30000), ERR_NOENT); /* not before its record */
    assert_int_equal(apply_batch(b, changes, 40), 0);
    chunk_batch_free(b);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(read_chunk(items[i].id, i, 30000 + i), 0);
    assert_int_equal(stats().chunks, 10);
    assert_int_equal(stats().raw_bytes, 10 * 30000 + 45);
    assert_int_equal(stats().stored_bytes, bs.stored_bytes);
    assert_int_equal(stats().referenced_bytes, bs.bytes);
    assert_int_equal(space().live, bs.stored_bytes);
    assert_int_equal(kv_count(KV_CHUNK), 10);
    assert_int_equal(kv_count(KV_FPRINT), 10);
    free_items(items, 40);
    close_store();
}

static void test_within_batch(void **state)
{
    (void)state;
    sim_case_run(&c, within_main, NULL);
}

/* Found in the cache, and, after a restart, by the index in the KV store. */
static void across_main(void *arg)
{
    uint64_t id, again;

    (void)arg;
    make_store(3, 2, 1, 8);
    id = store_one(1, 5000);
    again = store_one(1, 5000);
    assert_int_equal(again, id);
    assert_int_equal(stats().found, 1);
    reopen_store();
    assert_int_equal(stats().chunks, 1);
    again = store_one(1, 5000);
    assert_int_equal(again, id);
    assert_int_equal(stats().referenced_bytes, 15000);
    assert_int_not_equal(store_one(1, 4999), id);
    assert_int_equal(read_chunk(id, 1, 5000), 0);
    ref(id, -3);
    assert_int_equal(read_chunk(id, 1, 5000), ERR_NOENT);
    close_store();
}

static void test_across_batches(void **state)
{
    (void)state;
    sim_case_run(&c, across_main, NULL);
}

/* Two batches in flight do not know of each other; afterwards one of the twins is found. */
static void twins_main(void *arg)
{
    struct chunk_batch *a, *b;
    struct chunk_item ia, ib;
    uint64_t id;

    (void)arg;
    make_store(3, 2, 1, 8);
    a = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    b = chunk_batch_new(t.cs, SEGMENT_VOLUMES);
    ia = item(4, 9000);
    ib = item(4, 9000);
    assert_int_equal(chunk_batch_add_wait(a, &ia, 1), 0);
    assert_int_equal(chunk_batch_add_wait(b, &ib, 1), 0);
    assert_int_equal(chunk_batch_finish(a), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    assert_int_not_equal(ia.id, ib.id);
    assert_int_equal(apply_batch(b, &(struct change){ib.id, 1}, 1), 0);
    assert_int_equal(apply_batch(a, &(struct change){ia.id, 1}, 1), 0);
    chunk_batch_free(a);
    chunk_batch_free(b);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(read_chunk(ia.id, 4, 9000), 0);
        assert_int_equal(read_chunk(ib.id, 4, 9000), 0);
        id = store_one(4, 9000);
        assert_true(id == ia.id || id == ib.id);
        ref(id, -1);
        reopen_store();
    }
    ref(ia.id, -1);
    assert_int_equal(read_chunk(ia.id, 4, 9000), ERR_NOENT);
    assert_int_equal(read_chunk(ib.id, 4, 9000), 0);
    ref(ib.id, -1);
    assert_int_equal(stats().chunks, 0);
    assert_int_equal(space().live, 0);
    assert_int_equal(kv_count(KV_CHUNK), 0);
    assert_int_equal(kv_count(KV_FPRINT), 0);
    free_items(&ia, 1);
    free_items(&ib, 1);
    close_store();
}

static void test_twins(void **state)
{
    (void)state;
    sim_case_run(&c, twins_main, NULL);
}

/* A batch that is given up leaves nothing behind that could be found. */
static void given_up_main(void *arg)
{
    struct chunk_batch *b;
    struct chunk_item it;
    uint64_t id;

    (void)arg;
    make_store(3, 2, 1, 8);
    chunk_batch_free(NULL);
    chunk_batch_free(chunk_batch_new(t.cs, SEGMENT_STUDIES)); /* nothing added */
    for (unsigned finish = 0; finish < 2; finish++) {
        b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
        it = item(3, 7000);
        chunk_batch_add(b, &it, 1, NULL, NULL);
        if (finish)
            assert_int_equal(chunk_batch_finish(b), 0);
        chunk_batch_free(b); /* waits for what is at work */
        free_items(&it, 1);
    }
    id = it.id;
    assert_int_equal(stats().chunks, 0);
    assert_int_equal(stats().cache_rows, 0);
    assert_int_equal(read_chunk(id, 3, 7000), ERR_NOENT);
    assert_int_not_equal(store_one(3, 7000), id);
    /* A record that names a chunk and refers to none: it never came to be. */
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    it = item(5, 7000);
    assert_int_equal(chunk_batch_add_wait(b, &it, 1), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    assert_int_equal(apply_batch(b, NULL, 0), 0);
    chunk_batch_free(b);
    free_items(&it, 1);
    assert_int_equal(stats().chunks, 1);
    assert_int_equal(kv_count(KV_CHUNK), 1);
    close_store();
}

static void test_given_up(void **state)
{
    (void)state;
    sim_case_run(&c, given_up_main, NULL);
}

static void opaque_main(void *arg)
{
    struct chunk_batch *b;
    struct chunk_item items[2];
    struct chunk_batch_stats bs;

    (void)arg;
    make_store(1, 1, 0, 8);
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    items[0] = item(2, 40000);
    items[1] = item(8, 40000);
    items[0].opaque = true;
    assert_int_equal(chunk_batch_add_wait(b, items, 2), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    chunk_batch_get_stats(b, &bs);
    assert_true(bs.stored_bytes > 40000 && bs.stored_bytes < 70000);
    assert_int_equal(apply_batch(b, (struct change[]){{items[0].id, 1}, {items[1].id, 1}}, 2), 0);
    chunk_batch_free(b);
    assert_int_equal(read_chunk(items[0].id, 2, 40000), 0);
    assert_int_equal(read_chunk(items[1].id, 8, 40000), 0);
    free_items(items, 2);
    close_store();
}

static void test_opaque(void **state)
{
    (void)state;
    sim_case_run(&c, opaque_main, NULL);
}

/* Many groups, more than a stripe holds; `done` comes once for each, with the ids set. */
static unsigned done_calls;

static void on_done(void *owner)
{
    struct chunk_item *it = owner;

    assert_true(it->id != 0);
    memset((void *)(uintptr_t)it->data, 0xee, it->len); /* it is ours again */
    done_calls++;
}

static void many_main(void *arg)
{
    enum { N = 60 };
    struct chunk_item *items = malloc(N * sizeof(*items));
    struct change changes[N];
    struct chunk_batch *b;

    (void)arg;
    done_calls = 0;
    make_store(6, 4, 2, 4);
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    for (unsigned i = 0; i < N; i++) {
        items[i] = item(i, i % 5 == 0 ? CHUNK_MAX : 1 + i * 977);
        chunk_batch_add(b, &items[i], 1, on_done, &items[i]);
    }
    assert_int_equal(chunk_batch_finish(b), 0);
    assert_int_equal(done_calls, N);
    for (unsigned i = 0; i < N; i++)
        changes[i] = (struct change){items[i].id, 1};
    assert_int_equal(apply_batch(b, changes, N), 0);
    chunk_batch_free(b);
    reopen_store();
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(read_chunk(items[i].id, i, items[i].len), 0);
    free_items(items, N);
    free(items);
    close_store();
}

static void test_many_groups(void **state)
{
    (void)state;
    sim_case_run(&c, many_main, NULL);
}

/* ---- Errors of ingest ---- */

static unsigned broken_drives;

static int hook_broken(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    return io->kind == ENV_WRITE && (broken_drives >> store_case_drive(path) & 1) ? ERR_IO : 0;
}

static void errors_main(void *arg)
{
    struct segment_space sp;

    (void)arg;
    make_store(3, 2, 1, 3);
    c.hook = hook_broken;
    broken_drives = 2;
    assert_int_equal(store_many(1, 20, 50000), 0); /* one drive less is nobody's business */
    broken_drives = 7;
    assert_int_equal(store_many(1001, 20, 50000), ERR_LOST);
    assert_int_equal(stats().chunks, 20);
    broken_drives = 0;
    c.hook = NULL;
    reopen_store();
    sp = space();
    assert_int_equal(store_many(3001, 700, 50000), ERR_NOSPC);
    assert_int_equal(stats().chunks, 20);
    chunkstore_set_kept(t.cs, sp.segment); /* the last one is for what makes room */
    assert_int_equal(chunkstore_admit(t.cs, 1), ERR_NOSPC);
    reopen_store(); /* what was written in vain is free again, up to whole segments */
    assert_true(sp.free > 0);
    close_store();
}

static void test_errors(void **state)
{
    (void)state;
    sim_case_run(&c, errors_main, NULL);
}

static void admit_main(void *arg)
{
    uint64_t room;

    (void)arg;
    make_store(3, 2, 1, 4);
    room = space().free - (1u << 20);
    assert_int_equal(chunkstore_admit(t.cs, 0), 0);
    assert_int_equal(chunkstore_admit(t.cs, room), 0);
    assert_int_equal(chunkstore_admit(t.cs, room + 1), ERR_NOSPC);
    close_store();
}

static void test_admit(void **state)
{
    (void)state;
    sim_case_run(&c, admit_main, NULL);
}

/* ---- References ---- */

static void refs_main(void *arg)
{
    uint64_t id;
    struct change twice[2];

    (void)arg;
    make_store(3, 2, 1, 8);
    id = store_one(6, 20000);
    ref(id, 1);
    assert_int_equal(stats().referenced_bytes, 40000);
    ref(id, -1);
    reopen_store();
    assert_int_equal(stats().referenced_bytes, 20000);
    assert_int_equal(read_chunk(id, 6, 20000), 0);
    twice[0] = (struct change){id, -1};
    twice[1] = (struct change){id, 1};
    assert_int_equal(apply(NULL, twice, 2), 0); /* within a record it may go through zero */
    assert_int_equal(read_chunk(id, 6, 20000), 0);
    ref(id, -1);
    assert_int_equal(read_chunk(id, 6, 20000), ERR_NOENT);
    assert_int_equal(stats().chunks + stats().referenced_bytes + stats().stored_bytes, 0);
    assert_int_equal(space().live, 0);
    assert_int_equal(apply(NULL, twice, 2), ERR_FORMAT); /* a record that refers to nothing */
    assert_int_not_equal(store_one(6, 20000), id);       /* ids do not come back */
    close_store();
}

static void test_refs(void **state)
{
    (void)state;
    sim_case_run(&c, refs_main, NULL);
}

/* A pin keeps the bytes, though nothing refers to the chunk any more. */
static void pins_main(void *arg)
{
    uint64_t ids[2], gone;
    uint8_t *got = mem_alloc(30000), *want = content(2, 30000);
    struct chunk_read r = {.id = 1, .off = 100, .len = 20000, .dst = got};
    struct chunk_pins *pins, *none;

    (void)arg;
    make_store(3, 2, 1, 8);
    ids[0] = store_one(1, 30000);
    ids[1] = store_one(2, 30000);
    assert_int_equal(chunkstore_pin(t.cs, ids, 2, &pins), 0);
    ref(ids[0], -1);
    ref(ids[1], -1);
    assert_int_equal(chunkstore_pin(t.cs, ids, 2, &none), ERR_NOENT);
    assert_int_equal(read_chunk(ids[1], 2, 30000), ERR_NOENT);
    assert_int_equal(chunkstore_read_pinned(pins, &r, 1), 0);
    assert_memory_equal(got, want + 100, 20000);
    gone = store_one(2, 30000); /* not found again */
    assert_int_not_equal(gone, ids[1]);
    ref(gone, -1);
    seal();
    memset(got, 0, 30000);
    assert_int_equal(chunkstore_read_pinned(pins, &r, 1), 0);
    assert_memory_equal(got, want + 100, 20000);
    chunkstore_unpin(pins);
    chunkstore_unpin(NULL);
    mem_free(got);
    free(want);
    close_store();
}

static void test_pins(void **state)
{
    (void)state;
    sim_case_run(&c, pins_main, NULL);
}

/* The segment under a pin stays when nothing is alive in it; then it goes. */
static void pinned_segment_main(void *arg)
{
    uint64_t ids[40], id;
    struct chunk_pins *pins;
    unsigned n = 0;

    (void)arg;
    make_store(3, 2, 1, 8);
    id = store_one(1, 30000);
    while (space().segments < 2) {
        ids[n] = store_one(200001 + 2 * n, CHUNK_MAX);
        n++;
    }
    assert_int_equal(chunkstore_pin(t.cs, &id, 1, &pins), 0);
    ref(id, -1);
    for (unsigned i = 0; i < n; i++)
        ref(ids[i], -1);
    assert_int_equal(space().live, 0);
    assert_true(segment_sweep_due(t.ss));
    assert_int_equal(sweep(), 0);
    chunkstore_unpin(pins);
    assert_int_equal(sweep(), 1);
    assert_int_equal(kv_count(KV_SEGMENT), 1);
    close_store();
}

static void test_pinned_segment(void **state)
{
    (void)state;
    sim_case_run(&c, pinned_segment_main, NULL);
}

/* A batch has found a chunk; before its record comes the last reference goes. The record brings the
 * chunk back, now and when both records are replayed. */
static void revived_main(void *arg)
{
    bool replay = *(bool *)arg;
    STRBUF_AUTO struct strbuf list = STRBUF_INIT;
    struct chunk_item it = item(4, 20000);
    struct chunk_batch *b;
    struct change plus;
    uint64_t id;

    make_store(3, 2, 1, 8);
    id = store_one(4, 20000);
    assert_int_equal(kv_flush(t.kv), 0);
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    assert_int_equal(chunk_batch_add_wait(b, &it, 1), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    assert_int_equal(it.id, id);
    chunk_batch_encode(b, &list);
    plus = (struct change){id, 2};
    if (replay) {
        chunk_batch_free(b);
        b = NULL;
        reopen_store();
    }
    ref(id, -1);
    assert_int_equal(stats().chunks, 0);
    assert_int_equal(read_chunk(id, 4, 20000), ERR_NOENT);
    assert_int_equal(apply(&list, &plus, 1), 0);
    chunk_batch_free(b);
    assert_int_equal(read_chunk(id, 4, 20000), 0);
    assert_int_equal(stats().chunks, 1);
    assert_int_equal(stats().referenced_bytes, 40000);
    assert_int_equal(store_one(4, 20000), id); /* and it is found again */
    reopen_store();
    assert_int_equal(read_chunk(id, 4, 20000), 0);
    ref(id, -3);
    assert_int_equal(space().live, 0);
    free_items(&it, 1);
    close_store();
}

static void test_revived(void **state)
{
    for (int i = 0; i < 2; i++) {
        bool replay = i;

        teardown(state);
        setup(state);
        sim_case_run(&c, revived_main, &replay);
    }
}

/* Ids handed out and never journaled are not handed out again after a crash. */
static void ids_main(void *arg)
{
    struct chunk_batch *b;
    struct chunk_item it = item(9, 100);
    uint64_t id;

    (void)arg;
    make_store(1, 1, 0, 8);
    (void)store_one(1, 100);
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    assert_int_equal(chunk_batch_add_wait(b, &it, 1), 0);
    chunk_batch_free(b);
    reopen_store();
    id = store_one(11, 100);
    assert_true(id > it.id);
    free_items(&it, 1);
    close_store();
}

static void test_ids(void **state)
{
    (void)state;
    sim_case_run(&c, ids_main, NULL);
}

/* ---- Reading ---- */

static void ranges_main(void *arg)
{
    enum { N = 6, READS = 40 };
    static const uint32_t sizes[N] = {4096, 1, 100000, CHUNK_MAX, 5000, 4096};
    struct chunk_read reads[READS];
    uint64_t ids[N];
    uint8_t *want[N];

    (void)arg;
    make_store(3, 2, 1, 8);
    for (unsigned i = 0; i < N; i++) {
        ids[i] = store_one(i + 2, sizes[i]);
        want[i] = content(i + 2, sizes[i]);
    }
    for (unsigned round = 0; round < 60; round++) {
        unsigned n = 1 + (unsigned)sim_random(c.sim, READS), which[READS];
        bool sorted = sim_random(c.sim, 2);

        for (unsigned i = 0; i < n; i++) {
            unsigned w = which[i] = sorted ? i * N / READS : (unsigned)sim_random(c.sim, N);
            uint32_t off = (uint32_t)sim_random(c.sim, sizes[w]);
            uint32_t len = 1 + (uint32_t)sim_random(c.sim, sizes[w] - off);

            if (sim_random(c.sim, 4) == 0) {
                off = 0;
                len = sizes[w];
            }
            reads[i] = (struct chunk_read){ids[w], off, len, mem_alloc(len), 7};
        }
        assert_int_equal(chunkstore_read(t.cs, reads, n), 0);
        for (unsigned i = 0; i < n; i++) {
            assert_int_equal(reads[i].result, 0);
            assert_memory_equal(reads[i].dst, want[which[i]] + reads[i].off, reads[i].len);
            mem_free(reads[i].dst);
        }
    }
    for (unsigned i = 0; i < N; i++)
        free(want[i]);
    close_store();
}

static void test_ranges(void **state)
{
    (void)state;
    sim_case_run(&c, ranges_main, NULL);
}

static void bad_reads_main(void *arg)
{
    uint8_t got[3][100];
    struct chunk_read reads[3] = {
        {0, 0, 100, got[0], 7}, {999, 0, 100, got[1], 7}, {0, 0, 100, got[2], 7}};
    uint8_t *want;

    (void)arg;
    make_store(1, 1, 0, 8);
    for (uint64_t seed = 2; seed < 4; seed++) { /* compressed, and raw */
        reads[0].id = reads[2].id = store_one(seed, 5000);
        want = content(seed, 5000);
        assert_int_equal(chunkstore_read(t.cs, reads, 3), ERR_NOENT);
        assert_int_equal(reads[0].result, 0);
        assert_int_equal(reads[1].result, ERR_NOENT);
        assert_int_equal(reads[2].result, 0);
        assert_memory_equal(got[0], want, 100);
        assert_memory_equal(got[2], want, 100);
        reads[0].off = 4901; /* past the chunk's end */
        assert_int_equal(chunkstore_read(t.cs, reads, 1), ERR_FORMAT);
        reads[0].off = UINT32_MAX;
        assert_int_equal(chunkstore_read(t.cs, reads, 1), ERR_FORMAT);
        reads[0].off = 0;
        free(want);
    }
    assert_int_equal(chunkstore_read(t.cs, NULL, 0), 0);
    /* No redundancy: damage is told, for that chunk alone. */
    sim_file_corrupt(c.sim, "d0", t.ds->super.slots_off + FORMAT_UNIT + 200, 1000);
    reads[0].id = store_one(21, 3000);
    reads[1].id = store_one(2, 5000);
    assert_int_equal(chunkstore_read(t.cs, reads, 2), ERR_LOST);
    assert_int_equal(reads[0].result, 0);
    assert_int_equal(reads[1].result, ERR_LOST);
    close_store();
}

static void test_bad_reads(void **state)
{
    (void)state;
    sim_case_run(&c, bad_reads_main, NULL);
}

/* What is lost is not found when it comes again: it is renewed where it can be, for all who have
 * it. */
static void lost_main(void *arg)
{
    uint64_t ids[3], again;

    (void)arg;
    make_store(1, 1, 0, 8);
    for (unsigned i = 0; i < 3; i++)
        ids[i] = store_one(2 + i, 5000);
    sim_file_corrupt(c.sim, "d0", t.ds->super.slots_off + FORMAT_UNIT, 10 * FORMAT_UNIT);
    assert_int_equal(store_one(2, 5000), ids[0]); /* nobody knows yet */
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(read_chunk(ids[i], 2 + i, 5000), ERR_LOST);
    assert_int_equal(chunkstore_look_for_lost(t.cs, ids, 3), ERR_LOST);
    assert_int_equal(store_one(2, 5000), ids[0]);
    assert_int_equal(read_chunk(ids[0], 2, 5000), 0);
    assert_int_equal(chunkstore_look_for_lost(t.cs, ids, 1), 0);
    assert_int_equal(read_chunk(ids[1], 3, 5000), ERR_LOST);
    assert_int_equal(stats().renewed, 1);
    /* Stored in another form: that cannot be made again, so it is another chunk from now on. */
    chunk_row_cached(t.cs, ids[1])->loc.crc ^= 1;
    again = store_one(3, 5000);
    assert_int_not_equal(again, ids[1]);
    assert_int_equal(read_chunk(again, 3, 5000), 0);
    assert_int_equal(store_one(3, 5000), again);
    assert_int_equal(read_chunk(ids[1], 3, 5000), ERR_LOST);
    /* Scrub tells, too; what turns out to be there is not lost. */
    chunkstore_note_lost(t.cs, ids[0]);
    assert_int_equal(chunkstore_look_for_lost(t.cs, ids, 1), ERR_LOST);
    assert_int_equal(read_chunk(ids[0], 2, 5000), 0);
    assert_int_equal(chunkstore_look_for_lost(t.cs, ids, 1), 0);
    ref(ids[1], -1); /* it goes, and what is known of it */
    ref(ids[2], -1);
    assert_int_equal(t.cs->lost.count, 0);
    close_store();
}

/* It goes while who sends it again waits for its renewal: they get another that can be read. */
static void sent_again_fiber(void *arg)
{
    uint64_t *id = arg;

    *id = store_one(2, 5000);
}

static void goes_in_renewal_main(void *arg)
{
    uint64_t id, again = 0;

    (void)arg;
    make_store(1, 1, 0, 8);
    id = store_one(2, 5000);
    sim_file_corrupt(c.sim, "d0", t.ds->super.slots_off + FORMAT_UNIT, 10 * FORMAT_UNIT);
    assert_int_equal(read_chunk(id, 2, 5000), ERR_LOST);
    fiber_mutex_lock(&t.cs->renewing);
    fiber_spawn(c.env, "again", sent_again_fiber, &again);
    env_sleep(c.env, ENV_NS_PER_S);
    ref(id, -1);
    fiber_mutex_unlock(&t.cs->renewing);
    while (!again)
        env_sleep(c.env, ENV_NS_PER_MS);
    assert_int_not_equal(again, id);
    assert_int_equal(read_chunk(again, 2, 5000), 0);
    assert_int_equal(t.cs->lost.count, 0);
    close_store();
}

static void test_goes_in_renewal(void **state)
{
    (void)state;
    sim_case_run(&c, goes_in_renewal_main, NULL);
}

static size_t lost_rows(void)
{
    uint8_t from[CHUNK_LOST_KEY], to[CHUNK_LOST_KEY];
    struct kv_rows *rows;
    size_t n;

    chunk_lost_key(0, from);
    chunk_lost_key(UINT64_MAX, to);
    assert_int_equal(kv_scan(t.kv, KV_META, (struct kv_slice){from, sizeof(from)},
                             (struct kv_slice){to, sizeof(to)}, 1000, 1 << 20, 0, &rows),
                     0);
    n = rows->count;
    kv_rows_free(rows);
    return n;
}

static void tell_lost(size_t lost)
{
    while (chunkstore_lost_news(t.cs))
        assert_int_equal(chunkstore_tell_lost(t.cs), 0);
    assert_int_equal(stats().lost, lost);
    assert_int_equal(lost_rows(), lost);
}

/* What is lost is known after a restart; what is readable again, went, or was renewed is not. */
static void remembered_main(void *arg)
{
    enum { N = 300 };
    uint64_t ids[N];

    (void)arg;
    make_store(1, 1, 0, 8);
    for (unsigned i = 0; i < N; i++)
        ids[i] = store_one(2 + i, 5000);
    for (unsigned i = 0; i < N; i++)
        chunkstore_note_lost(t.cs, ids[i]);
    chunkstore_note_lost(t.cs, 1u << 30); /* it went before it was noted */
    tell_lost(N);
    reopen_store();
    assert_int_equal(stats().lost, N);
    assert_false(chunkstore_lost_news(t.cs));
    assert_int_equal(chunkstore_look_for_lost(t.cs, &ids[N - 1], 1), ERR_LOST);
    assert_int_equal(read_chunk(ids[0], 2, 5000), 0);
    assert_int_equal(stats().lost, N - 1);
    assert_int_equal(lost_rows(), N); /* not yet */
    tell_lost(N - 1);
    ref(ids[1], -1);
    tell_lost(N - 2);
    assert_int_equal(store_one(4, 5000), ids[2]);
    assert_int_equal(stats().renewed, 1);
    tell_lost(N - 3);
    assert_int_equal(read_chunk(ids[3], 5, 5000), 0);
    chunkstore_note_lost(t.cs, ids[3]); /* and lost again, before that was told */
    tell_lost(N - 3);
    reopen_store();
    assert_int_equal(stats().lost, N - 3);
    assert_int_equal(chunkstore_look_for_lost(t.cs, ids, 1), 0);
    assert_int_equal(chunkstore_look_for_lost(t.cs, &ids[2], 1), 0);
    for (unsigned i = 0; i < N; i++)
        if (i != 1)
            ref(ids[i], i == 2 ? -2 : -1);
    tell_lost(0);
    close_store();
}

/* A damaged table: rows between the others that are of none, too short and too long. */
static void foreign_main(void *arg)
{
    static const char *const foreign[] = {"lost!", "lost~~~~~~~~ and more"};
    uint64_t id;

    (void)arg;
    make_store(1, 1, 0, 8);
    id = store_one(2, 5000);
    chunkstore_note_lost(t.cs, id);
    tell_lost(1);
    for (size_t i = 0; i < 2; i++) {
        struct kv_batch *batch = kv_batch_new();

        kv_batch_put(batch, KV_META, (struct kv_slice){foreign[i], strlen(foreign[i])},
                     (struct kv_slice){"", 1});
        assert_int_equal(kv_write(t.kv, batch), 0);
        kv_batch_free(batch);
        assert_int_equal(kv_flush(t.kv), 0);
        reopen_store();
        assert_int_equal(stats().lost, 1);
        assert_int_equal(lost_rows(), 2 + i);
    }
    ref(id, -1);
    close_store();
}

static void test_foreign_rows(void **state)
{
    (void)state;
    sim_case_run(&c, foreign_main, NULL);
}

static void test_remembered(void **state)
{
    (void)state;
    sim_case_run(&c, remembered_main, NULL);
}

static void test_lost(void **state)
{
    (void)state;
    sim_case_run(&c, lost_main, NULL);
}

/* Not enough drives are there for a segment: it is known without having been read. */
static void unreachable_main(void *arg)
{
    struct env_file *file, *other;
    uint64_t id;

    (void)arg;
    make_store(3, 2, 1, 8);
    id = store_one(2, 5000);
    file = t.ds->drives[0].file;
    t.ds->drives[0].file = NULL;
    assert_int_equal(chunkstore_look_for_lost(t.cs, &id, 1), 0); /* parity makes up for it */
    other = t.ds->drives[1].file;
    t.ds->drives[1].file = NULL;
    assert_int_equal(chunkstore_look_for_lost(t.cs, &id, 1), ERR_LOST);
    t.ds->drives[0].file = file;
    t.ds->drives[1].file = other;
    close_store();
}

static void test_unreachable(void **state)
{
    (void)state;
    sim_case_run(&c, unreachable_main, NULL);
}

/* ---- A cache far smaller than the table ---- */

#define TABLE 120u

static struct {
    uint64_t id;
    unsigned refs;
} table[TABLE];
static unsigned busy;

static void table_store(unsigned i)
{
    table[i].id = store_one(1000 + i, 3000 + i);
    table[i].refs++;
}

/* Records one after the other, each on a few chunks; readers of anything in between. */
static void writer_fiber(void *arg)
{
    (void)arg;
    for (unsigned round = 0; round < 60; round++) {
        struct change changes[5];
        unsigned n = 1 + (unsigned)sim_random(c.sim, 5);

        for (unsigned k = 0; k < n; k++) {
            unsigned i = (unsigned)sim_random(c.sim, TABLE);

            changes[k] = (struct change){table[i].id, 1};
            if (table[i].refs > 1 && sim_random(c.sim, 2))
                changes[k].delta = -1;
            table[i].refs += (unsigned)changes[k].delta;
        }
        assert_int_equal(apply(NULL, changes, n), 0);
    }
    busy--;
}

static void reader_fiber(void *arg)
{
    (void)arg;
    while (busy) {
        unsigned i = (unsigned)sim_random(c.sim, TABLE);

        assert_int_equal(read_chunk(table[i].id, 1000 + i, 3000 + i), 0);
    }
}

static void check_table(void)
{
    uint64_t referenced = 0;

    for (unsigned i = 0; i < TABLE; i++) {
        struct chunk_row *row;

        assert_int_equal(chunk_rows_get(t.cs, &table[i].id, 1, &row), 0);
        assert_non_null(row);
        assert_int_equal(row->refs, table[i].refs);
        assert_int_equal(row->raw, 3000 + i);
        chunk_row_unpin(t.cs, row);
        referenced += (uint64_t)table[i].refs * (3000 + i);
    }
    assert_int_equal(stats().referenced_bytes, referenced);
}

static void small_cache_main(void *arg)
{
    t.lag_ns = *(uint64_t *)arg;
    t.cache_rows = 4;
    memset(table, 0, sizeof(table));
    make_store(3, 2, 1, 8);
    for (unsigned i = 0; i < TABLE; i++)
        table_store(i);
    assert_true(stats().cache_rows <= 4);
    check_table();
    busy = 1;
    for (unsigned i = 0; i < 6; i++)
        fiber_spawn(c.env, "reader", reader_fiber, NULL);
    fiber_spawn(c.env, "writer", writer_fiber, NULL);
    while (busy)
        env_sleep(c.env, ENV_NS_PER_MS);
    env_sleep(c.env, ENV_NS_PER_S);
    assert_true(stats().cache_rows <= 4);
    check_table();
    reopen_store();
    check_table();
    for (unsigned i = 0; i < TABLE; i += 7)
        table_store(i); /* found, by the index */
    check_table();
    close_store();
}

static void test_small_cache(void **state)
{
    static const uint64_t lags[] = {0, 50000, 2000000};

    for (uint64_t i = 0; i < 6; i++) {
        uint64_t lag = lags[i % 3];

        teardown(state);
        setup(state);
        sim_case_free(&c);
        sim_case_init(&c, i);
        sim_case_run(&c, small_cache_main, &lag);
    }
}

/* A change and its eviction, then a reader, all before the KV store has the change. */
static void stale_reader_fiber(void *arg)
{
    (void)arg;
    env_sleep(c.env, 10 * ENV_NS_PER_MS);
    for (unsigned i = 0; i < 20; i++) /* pushes all else out of the cache, the row itself last */
        assert_int_equal(read_chunk(table[i].id, 1000 + i, 3000 + i), 0);
    assert_int_equal(read_chunk(table[20].id, 1020, 3020), 0);
}

static void slow_write_main(void *arg)
{
    (void)arg;
    t.cache_rows = 2;
    memset(table, 0, sizeof(table));
    make_store(3, 2, 1, 8);
    for (unsigned i = 0; i < TABLE; i++)
        table_store(i);
    t.lag_ns = ENV_NS_PER_S;
    fiber_spawn(c.env, "reader", stale_reader_fiber, NULL);
    ref(table[20].id, 1);
    table[20].refs++;
    t.lag_ns = 0;
    ref(table[20].id, 1);
    table[20].refs++;
    check_table();
    close_store();
}

static void test_slow_kv_write(void **state)
{
    (void)state;
    sim_case_run(&c, slow_write_main, NULL);
}

/* ---- Bytes of rows and records ---- */

static struct chunk_row sample_row(void)
{
    struct chunk_row r = {
        .id = 77, .raw = 5000, .codec = COMPRESS_ZSTD, .fp_algorithm = 1, .refs = 3};

    r.loc = (struct segment_loc){{9, 8, 7}, 6, 4000, 0xabcdef01};
    sim_case_bytes(1, r.fp, sizeof(r.fp));
    return r;
}

static void test_row_bytes(void **state)
{
    uint8_t bytes[CHUNK_ROW_SIZE];
    struct chunk_row r = sample_row(), got = {0}, bad;

    (void)state;
    chunk_row_encode(&r, bytes);
    assert_int_equal(chunk_row_decode(bytes, sizeof(bytes), &got), 0);
    assert_memory_equal(&got.loc, &r.loc, sizeof(r.loc));
    assert_int_equal(got.raw, r.raw);
    assert_int_equal(got.refs, r.refs);
    assert_int_equal(got.codec, r.codec);
    assert_int_equal(got.fp_algorithm, r.fp_algorithm);
    assert_memory_equal(got.fp, r.fp, sizeof(r.fp));
    for (size_t n = 0; n < 76; n++) /* the reserved bytes at the end may be missing */
        assert_int_equal(chunk_row_decode(bytes, n, &got), ERR_FORMAT);
    bytes[0] = 2;
    assert_int_equal(chunk_row_decode(bytes, sizeof(bytes), &got), ERR_FORMAT);
    for (unsigned i = 0; i < 6; i++) {
        bad = r;
        bad.raw = i == 0 ? 0 : i == 1 ? CHUNK_MAX + 1 : bad.raw;
        bad.loc.stored = i == 2 ? 0 : i == 3 ? 5001 : bad.loc.stored;
        bad.codec = (uint8_t)(i == 4 ? COMPRESS_RAW : i == 5 ? COMPRESS_CODECS : bad.codec);
        chunk_row_encode(&bad, bytes);
        assert_int_equal(chunk_row_decode(bytes, sizeof(bytes), &got), ERR_FORMAT);
    }
}

static int take(const uint8_t *body, size_t n)
{
    struct chunk_txn *txn = chunk_txn_begin(t.cs);
    size_t used = 0;
    int rc = chunk_txn_take(txn, body, n, &used);

    if (rc == 0)
        assert_true(used >= 4 && used <= n);
    chunk_txn_abort(txn);
    return rc;
}

static void lists_main(void *arg)
{
    uint8_t body[4 + 2 * CHUNK_LISTED_SIZE + 10] = {0};
    struct chunk_row r = sample_row(), bad = r;
    size_t used;

    (void)arg;
    make_store(1, 1, 0, 8);
    assert_int_equal(take(body, 4), 0);
    assert_int_equal(take(body, 3), ERR_FORMAT);
    codec_put_le32(body, 2);
    chunk_listed_encode(&r, CHUNK_LISTED_NEW, body + 4);
    r.id++;
    chunk_listed_encode(&r, 0, body + 4 + CHUNK_LISTED_SIZE);
    assert_int_equal(take(body, sizeof(body)), 0);
    assert_int_equal(chunk_list_length(body, sizeof(body), &used), 0);
    assert_int_equal(used, sizeof(body) - 10);
    for (size_t n = 0; n < used; n++) {
        assert_int_equal(take(body, n), ERR_FORMAT);
        assert_int_equal(chunk_list_length(body, n, &used), ERR_FORMAT);
        used = sizeof(body) - 10;
    }
    chunk_listed_encode(&bad, 0, body + 4 + CHUNK_LISTED_SIZE);
    assert_int_equal(take(body, sizeof(body)), ERR_FORMAT); /* twice the same */
    bad.id = 0;
    chunk_listed_encode(&bad, 0, body + 4 + CHUNK_LISTED_SIZE);
    assert_int_equal(take(body, sizeof(body)), ERR_FORMAT);
    bad.id = 99;
    bad.raw = 1;
    chunk_listed_encode(&bad, 0, body + 4 + CHUNK_LISTED_SIZE);
    assert_int_equal(take(body, sizeof(body)), ERR_FORMAT);
    codec_put_le32(body, UINT32_MAX);
    assert_int_equal(take(body, sizeof(body)), ERR_FORMAT);
    chunk_txn_abort(NULL);
    assert_int_equal(stats().chunks, 0);
    close_store();
}

static void test_lists(void **state)
{
    (void)state;
    sim_case_run(&c, lists_main, NULL);
}

/* A damaged row is told as damage to whoever needs it. */
static void damaged_row_main(void *arg)
{
    struct kv_batch *b = kv_batch_new();
    uint8_t key[8];
    uint64_t id;

    (void)arg;
    make_store(1, 1, 0, 8);
    id = store_one(1, 100);
    codec_put_be64(key, id);
    kv_batch_put(b, KV_CHUNK, (struct kv_slice){key, 8}, (struct kv_slice){"damaged", 7});
    assert_int_equal(kv_write(t.kv, b), 0);
    kv_batch_free(b);
    reopen_store();
    {
        uint8_t got[100];
        struct chunk_read r = {.id = id, .len = 100, .dst = got};

        assert_int_equal(chunkstore_read(t.cs, &r, 1), ERR_FORMAT);
        assert_int_equal(apply(NULL, &(struct change){id, 1}, 1), ERR_FORMAT);
    }
    close_store();
}

static void test_damaged_row(void **state)
{
    (void)state;
    sim_case_run(&c, damaged_row_main, NULL);
}

/* The metadata cannot be read, but for rows that are in memory, before and behind them in one
 * request: what asks gets the error, and nothing else comes of it. */
static void kv_error_main(void *arg)
{
    enum { HALF = 20, LENGTH = 3000 };
    uint64_t ids[2 * HALF];

    (void)arg;
    t.cache_rows = 4;
    t.front = true;
    make_store(3, 2, 1, 8);
    for (unsigned i = 0; i < HALF; i++)
        ids[2 * i] = store_one(1 + 2 * (2 * i), LENGTH);
    reopen_store();
    for (unsigned i = 0; i < HALF; i++)
        ids[2 * i + 1] = store_one(1 + 2 * (2 * i + 1), LENGTH);
    lag_kv_fail_reads(t.lag, ERR_KV);
    assert_int_equal(chunkstore_warm(t.cs, ids, 2 * (size_t)HALF), ERR_KV);
    assert_int_equal(store_many(1, 2 * HALF, LENGTH), ERR_KV);
    lag_kv_fail_reads(t.lag, 0);
    assert_int_equal(store_many(1, 2 * HALF, LENGTH), 0);
    assert_int_equal(stats().chunks, 2 * HALF);
    for (unsigned i = 0; i < 2 * HALF; i++)
        assert_int_equal(read_chunk(ids[i], 1 + 2 * i, LENGTH), 0);
    close_store();
}

static void test_kv_error(void **state)
{
    (void)state;
    sim_case_run(&c, kv_error_main, NULL);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_within_batch),
        CASE(test_across_batches),
        CASE(test_twins),
        CASE(test_given_up),
        CASE(test_opaque),
        CASE(test_many_groups),
        CASE(test_errors),
        CASE(test_admit),
        CASE(test_refs),
        CASE(test_pins),
        CASE(test_pinned_segment),
        CASE(test_revived),
        CASE(test_ids),
        CASE(test_ranges),
        CASE(test_bad_reads),
        CASE(test_lost),
        CASE(test_goes_in_renewal),
        CASE(test_unreachable),
        CASE(test_remembered),
        CASE(test_foreign_rows),
        CASE(test_small_cache),
        CASE(test_slow_kv_write),
        cmocka_unit_test(test_row_bytes),
        CASE(test_lists),
        CASE(test_damaged_row),
        CASE(test_kv_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

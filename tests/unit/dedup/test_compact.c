/* dedup/compact: what is alive moves out of segments with much that is dead, nobody who knows the
 * old place is let down, and who waits for room gets it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/dedup/chunk_case.h"

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/segment_priv.h"

enum { CHUNKS = 60, LEN = 30000 };

/* Fills the open segment with what is freed at once, until it is sealed. */
static void seal_with_dead(void)
{
    uint64_t first = space().segments;

    for (uint64_t seed = 300001; space().segments == first; seed += 2)
        ref(store_one(seed, CHUNK_MAX), -1);
}

/* A sealed segment of CHUNKS chunks of the given first seed, of which every third stays. */
static void sparse_segment(uint64_t seed, uint64_t *ids)
{
    for (unsigned i = 0; i < CHUNKS; i++)
        ids[i] = store_one(seed + 2 * i, LEN);
    seal_with_dead();
    for (unsigned i = 0; i < CHUNKS; i++)
        if (i % 3)
            ref(ids[i], -1);
}

static void expect_sparse(uint64_t seed, const uint64_t *ids)
{
    for (unsigned i = 0; i < CHUNKS; i++)
        assert_int_equal(read_chunk(ids[i], seed + 2 * i, LEN), i % 3 ? ERR_NOENT : 0);
}

static void moves_main(void *arg)
{
    uint64_t ids[CHUNKS], live;

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_segment(1, ids);
    live = space().live;
    assert_int_equal(chunkstore_compact_need(t.cs), COMPACT_IDLE);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), ERR_NOENT);
    assert_int_equal(space().live, live);
    assert_int_equal(stats().compacted, 1);
    assert_int_equal(stats().moved_bytes, CHUNKS / 3 * LEN);
    assert_int_equal(sweep(), 1);
    assert_int_equal(space().freed, space().survivors); /* its room, and that of the new one */
    expect_sparse(1, ids);
    reopen_store();
    expect_sparse(1, ids);
    assert_int_equal(space().live, live);
    close_store();
}

static void test_moves(void **state)
{
    (void)state;
    sim_case_run(&c, moves_main, NULL);
}

/* A batch has found a chunk and written its place into a record; then the chunk is moved, and
 * freed. The record brings it back where it was: the segment has to be there. */
static void listed_main(void *arg)
{
    STRBUF_AUTO struct strbuf list = STRBUF_INIT;
    struct chunk_item it = item(1, LEN);
    uint64_t ids[CHUNKS];
    struct chunk_batch *b;

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_segment(1, ids);
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    assert_int_equal(chunk_batch_add_wait(b, &it, 1), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    assert_int_equal(it.id, ids[0]);
    chunk_batch_encode(b, &list);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    ref(ids[0], -1);
    assert_int_equal(sweep(), 0); /* empty, and held */
    assert_int_equal(apply(&list, &(struct change){it.id, 1}, 1), 0);
    chunk_batch_free(b);
    free_items(&it, 1);
    expect_sparse(1, ids);
    assert_int_equal(sweep(), 0); /* it is in use again */
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(sweep(), 1);
    expect_sparse(1, ids);
    close_store();
}

static void test_listed(void **state)
{
    (void)state;
    sim_case_run(&c, listed_main, NULL);
}

/* A pin taken before the move reads on. */
static void pinned_main(void *arg)
{
    uint64_t ids[CHUNKS];
    uint8_t *got = mem_alloc(LEN), *want = content(1, LEN);
    struct chunk_read r = {.len = LEN, .dst = got};
    struct chunk_pins *pins;

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_segment(1, ids);
    assert_int_equal(chunkstore_pin(t.cs, ids, 1, &pins), 0);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(sweep(), 0);
    ref(ids[0], -1);
    assert_int_equal(chunkstore_read_pinned(pins, &r, 1), 0);
    assert_memory_equal(got, want, LEN);
    chunkstore_unpin(pins);
    assert_int_equal(sweep(), 1);
    mem_free(got);
    free(want);
    close_store();
}

static void test_pinned(void **state)
{
    (void)state;
    sim_case_run(&c, pinned_main, NULL);
}

/* ---- Between the steps ---- */

static struct {
    uint64_t id;
    unsigned calls, stop_after;
} pause_arg;

static bool on_pause(void *arg, uint64_t took_ns)
{
    (void)arg;
    (void)took_ns;
    if (pause_arg.id) {
        ref(pause_arg.id, -1);
        pause_arg.id = 0;
    }
    return ++pause_arg.calls != pause_arg.stop_after;
}

/* A chunk is freed while others of its segment are moved. */
static void freed_main(void *arg)
{
    enum { BIG = 40 };
    uint64_t ids[BIG];

    (void)arg;
    make_store(3, 2, 1, 12);
    for (unsigned i = 0; i < BIG; i++)
        ids[i] = store_one(1 + 2 * i, 200000);
    seal();
    for (unsigned i = 0; i < BIG; i++)
        if (i % 4 == 3)
            ref(ids[i], -1);
    pause_arg.id = ids[BIG - 2]; /* not moved yet at the first pause */
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_NOW, on_pause, NULL), 0);
    assert_true(pause_arg.calls > 1);
    assert_true(sweep() > 0);
    for (unsigned i = 0; i < BIG - 2; i++)
        assert_int_equal(read_chunk(ids[i], 1 + 2 * i, 200000), i % 4 == 3 ? ERR_NOENT : 0);
    assert_int_equal(read_chunk(ids[BIG - 2], 1 + 2 * (BIG - 2), 200000), ERR_NOENT);
    close_store();
}

static void test_freed(void **state)
{
    (void)state;
    memset(&pause_arg, 0, sizeof(pause_arg));
    sim_case_run(&c, freed_main, NULL);
}

/* Told to stop, it stops, and another run does the rest. */
static void stopped_main(void *arg)
{
    enum { BIG = 40 };
    uint64_t ids[BIG];

    (void)arg;
    make_store(3, 2, 1, 12);
    for (unsigned i = 0; i < BIG; i++)
        ids[i] = store_one(1 + 2 * i, 200000);
    seal();
    for (unsigned i = 0; i < BIG; i++)
        if (i % 4 == 3)
            ref(ids[i], -1);
    pause_arg.stop_after = 1;
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_NOW, on_pause, NULL), 0);
    assert_int_equal(pause_arg.calls, 1);
    assert_int_equal(sweep(), 0);
    while (chunkstore_compact(t.cs, COMPACT_NOW, NULL, NULL) == 0 && stats().compacted < 100)
        (void)sweep();
    assert_true(stats().compacted > 0 && stats().compacted < 100);
    for (unsigned i = 0; i < BIG; i++)
        assert_int_equal(read_chunk(ids[i], 1 + 2 * i, 200000), i % 4 == 3 ? ERR_NOENT : 0);
    close_store();
}

static void test_stopped(void **state)
{
    (void)state;
    memset(&pause_arg, 0, sizeof(pause_arg));
    sim_case_run(&c, stopped_main, NULL);
}

/* ---- Faults ---- */

static unsigned broken_reads;

static int hook_reads(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    return io->kind == ENV_READ && (broken_reads >> store_case_drive(path) & 1) ? ERR_IO : 0;
}

/* With a drive less the move decodes; with two less nothing is moved, nothing lost, and the segment
 * is left alone. */
static void unreadable_main(void *arg)
{
    uint64_t ids[CHUNKS];

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_segment(1, ids);
    c.hook = hook_reads;
    broken_reads = 3;
    (void)chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL);
    for (unsigned i = 0; i < 20; i++) /* it gives up in the end */
        if (chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL) == ERR_NOENT)
            break;
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), ERR_NOENT);
    assert_int_equal(stats().compacted, 0);
    broken_reads = 0;
    expect_sparse(1, ids);
    reopen_store();
    broken_reads = 2;
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(stats().compacted, 1);
    broken_reads = 0;
    c.hook = NULL;
    expect_sparse(1, ids);
    close_store();
}

static void test_unreadable(void **state)
{
    (void)state;
    sim_case_run(&c, unreadable_main, NULL);
}

/* What column 0 of a segment's first named stripe is, or was. */
static void column_io(const struct segment *s, uint8_t *bytes, size_t len, bool put)
{
    struct env_file *f = t.ds->drives[s->drive[0]].file;
    uint64_t off = drive_slot_off(t.ds, s->slot[0]) + FORMAT_UNIT;

    assert_int_equal(put ? env_pwrite(f, bytes, len, off, true) : env_pread(f, bytes, len, off), 0);
}

/* A crash, other stripes in the place of one that was never named, and a drive that lost the writes
 * and shows the old one: its directory hides what is there, which is moved all the same. */
static void older_main(void *arg)
{
    size_t len = FORMAT_UNIT;
    uint8_t *was = mem_alloc_aligned(FORMAT_UNIT, len);
    struct chunk_batch *b;
    struct chunk_item it;
    uint64_t ids[CHUNKS];

    (void)arg;
    make_store(3, 2, 1, 12);
    b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    it = item(900001, CHUNK_MAX);
    assert_int_equal(chunk_batch_add_wait(b, &it, 1), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    chunk_batch_free(b);
    free_items(&it, 1);
    column_io(segment_get(t.ss, 1), was, len, false);
    reopen_store();
    sparse_segment(1, ids);
    column_io(segment_get(t.ss, 1), was, len, true);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(stats().compacted, 0);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(stats().compacted, 1);
    assert_int_equal(segment_get(t.ss, 1)->chunks, 0);
    expect_sparse(1, ids);
    mem_free(was);
    close_store();
}

static void test_older(void **state)
{
    (void)state;
    sim_case_run(&c, older_main, NULL);
}

static bool go_on(void *arg)
{
    unsigned *left = arg;

    return *left > 0 && (*left)--;
}

/* What is alive in a segment, by its directories, and with these unreadable by the table; told to
 * stop, it does. */
static void gather_main(void *arg)
{
    uint64_t ids[CHUNKS], segment;
    struct chunk_place *places;
    struct chunk_row *row;
    unsigned left, asked[2];
    size_t n;

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_segment(1, ids);
    assert_int_equal(chunk_rows_get(t.cs, ids, 1, &row), 0);
    segment = row->loc.stripe.segment;
    chunk_row_unpin(t.cs, row);
    segment_hold(t.ss, segment);
    c.hook = hook_reads;
    for (unsigned i = 0; i < 2; i++) {
        broken_reads = i ? 7 : 0;
        left = 1000;
        assert_int_equal(chunkstore_gather(t.cs, segment, go_on, &left, &places, &n), 0);
        assert_int_equal(n, CHUNKS / 3);
        assert_int_equal(places[1].id, ids[3]);
        mem_free(places);
        asked[i] = 1000 - left;
        for (left = 0; left < asked[i]; left++) {
            unsigned few = left;

            assert_int_equal(chunkstore_gather(t.cs, segment, go_on, &few, &places, &n),
                             ERR_CANCELED);
        }
    }
    assert_true(asked[0] > 1 && asked[1] > 1);
    broken_reads = 0;
    c.hook = NULL;
    segment_release(t.ss, segment);
    close_store();
}

static void test_gather(void **state)
{
    (void)state;
    sim_case_run(&c, gather_main, NULL);
}

/* Two of three drives put what they are given somewhere else: the copy is not what was meant, and
 * nothing is switched to it. */
static void lying_main(void *arg)
{
    struct sim_faults faults = {.misdirected_write = 1000000}, none = {0};
    uint64_t ids[CHUNKS];

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_segment(1, ids);
    sim_set_file_faults(c.sim, t.ds->drives[0].path, &faults);
    sim_set_file_faults(c.sim, t.ds->drives[1].path, &faults);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), ERR_LOST);
    sim_set_file_faults(c.sim, t.ds->drives[0].path, &none);
    sim_set_file_faults(c.sim, t.ds->drives[1].path, &none);
    assert_int_equal(stats().moved_bytes, 0);
    for (unsigned i = 0; i < CHUNKS; i++) { /* what the stray writes hit is not our matter here */
        int rc = read_chunk(ids[i], 1 + 2 * i, LEN);

        assert_true(rc == (i % 3 ? ERR_NOENT : 0) || rc == ERR_LOST);
    }
    close_store();
}

static void test_lying(void **state)
{
    (void)state;
    sim_case_run(&c, lying_main, NULL);
}

/* A sealed segment of CHUNKS chunks in one record, of which every third stays. */
static void sparse_stripes(uint64_t seed, uint64_t *ids)
{
    struct chunk_batch *b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    struct chunk_item items[CHUNKS];
    struct change changes[CHUNKS];

    for (unsigned i = 0; i < CHUNKS; i++)
        items[i] = item(seed + 2 * i, LEN);
    assert_int_equal(chunk_batch_add_wait(b, items, CHUNKS), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    for (unsigned i = 0; i < CHUNKS; i++)
        changes[i] = (struct change){ids[i] = items[i].id, 1};
    assert_int_equal(apply_batch(b, changes, CHUNKS), 0);
    chunk_batch_free(b);
    free_items(items, CHUNKS);
    seal_with_dead();
    for (unsigned i = 0; i < CHUNKS; i++)
        if (i % 3)
            ref(ids[i], -1);
}

/* Of a stripe's rows some are in memory, the others cannot be read: the error is all that comes of
 * it. */
static void kv_error_main(void *arg)
{
    uint64_t ids[CHUNKS];

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_stripes(1, ids);
    reopen_store();
    for (unsigned i = 0; i < CHUNKS; i += 6)
        assert_int_equal(read_chunk(ids[i], 1 + 2 * i, LEN), 0);
    lag_kv_fail_reads(t.lag, ERR_KV);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), ERR_KV);
    lag_kv_fail_reads(t.lag, 0);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(sweep(), 1);
    for (unsigned i = 0; i < CHUNKS; i += 3)
        assert_int_equal(read_chunk(ids[i], 1 + 2 * i, LEN), 0);
    close_store();
}

static void test_kv_error(void **state)
{
    (void)state;
    sim_case_run(&c, kv_error_main, NULL);
}

static void damage_row(uint64_t id)
{
    struct kv_batch *b = kv_batch_new();
    uint8_t key[8];

    codec_put_be64(key, id);
    kv_batch_put(b, KV_CHUNK, (struct kv_slice){key, 8}, (struct kv_slice){"?", 1});
    assert_int_equal(kv_write(t.kv, b), 0);
    kv_batch_free(b);
}

/* The row of one segment's chunk cannot be read: after some tries the next has its turn. */
static void sick_segment_main(void *arg)
{
    uint64_t ids[CHUNKS], more[CHUNKS];
    unsigned tries = 0;
    int rc;

    (void)arg;
    make_store(3, 2, 1, 12);
    sparse_segment(1, ids);
    sparse_segment(1001, more);
    damage_row(ids[0]);
    reopen_store();
    while ((rc = chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL)) == ERR_FORMAT && tries < 50)
        tries++;
    assert_true(tries > 1 && tries < 50);
    assert_int_equal(rc, 0);
    assert_int_equal(stats().compacted, 1);
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), ERR_NOENT);
    assert_int_equal(read_chunk(ids[3], 1 + 2 * 3, LEN), 0);
    expect_sparse(1001, more);
    close_store();
}

static void test_sick_segment(void **state)
{
    (void)state;
    sim_case_run(&c, sick_segment_main, NULL);
}

static void bad_records_main(void *arg)
{
    uint8_t body[24 + 32] = {0};
    struct kv_batch *b = kv_batch_new();

    (void)arg;
    make_store(3, 2, 1, 8);
    body[16] = 1; /* one chunk, of an id that is not there: nothing happens */
    body[24] = 77;
    assert_int_equal(chunkstore_apply_move(t.cs, body, sizeof(body), b), 0);
    for (size_t n = 0; n < sizeof(body); n++)
        assert_int_equal(chunkstore_apply_move(t.cs, body, n, b), ERR_FORMAT);
    body[16] = 2;
    assert_int_equal(chunkstore_apply_move(t.cs, body, sizeof(body), b), ERR_FORMAT);
    codec_put_le32(body + 16, UINT32_MAX);
    assert_int_equal(chunkstore_apply_move(t.cs, body, sizeof(body), b), ERR_FORMAT);
    assert_int_equal(kv_batch_count(b), 0);
    kv_batch_free(b);
    close_store();
}

static void test_bad_records(void **state)
{
    (void)state;
    sim_case_run(&c, bad_records_main, NULL);
}

/* ---- Room ---- */

static struct {
    int result;
    bool ended;
} waiter;

static void waiter_fiber(void *arg)
{
    waiter.result = chunkstore_reserve(t.cs, *(uint64_t *)arg);
    if (waiter.result == 0)
        chunkstore_unreserve(t.cs, *(uint64_t *)arg);
    waiter.ended = true;
}

static void expect_rest(void)
{
    for (enum compact_need need = COMPACT_IDLE; need <= COMPACT_NOW; need++)
        assert_int_equal(chunkstore_compact(t.cs, need, NULL, NULL), ERR_NOENT);
    assert_false(segment_can_gain(t.ss, COMPACT_FILL_MAX));
}

/* Of tiny chunks the directories are the most of what is written, and the ends of compaction's
 * stripes are the most of the rest. While all are alive nothing of that can be had by moving. */
static void tiny_main(void *arg)
{
    enum { TINY = 40, BATCH = 4000 };
    uint64_t segment;

    (void)arg;
    make_store(3, 2, 1, 12);
    segment = space().total / 12;
    for (uint64_t seed = 1; space().segments < 2; seed += 2 * BATCH)
        assert_int_equal(store_many(seed, BATCH, TINY), 0);
    expect_rest();
    assert_true(space().dead < segment + segment / 8); /* one is still open */
    segment_ails(t.ss, 1);                             /* all of it is to be moved */
    assert_int_equal(chunkstore_compact(t.cs, COMPACT_IDLE, NULL, NULL), 0);
    assert_int_equal(sweep(), 1);
    assert_int_equal(space().segments, 3); /* it fills one, and goes on in another */
    expect_rest();
    close_store();
}

static void test_tiny(void **state)
{
    (void)state;
    sim_case_run(&c, tiny_main, NULL);
}

/* A write that finds the store full waits for compaction, and is refused when that has nothing more
 * to give. */
static void room_main(void *arg)
{
    uint64_t ids[CHUNKS], more[CHUNKS], want;

    (void)arg;
    make_store(3, 2, 1, 6);
    sparse_segment(1, ids);
    sparse_segment(1001, more); /* two are emptied into one */
    want = space().free - (1u << 20) + 1;
    assert_int_equal(chunkstore_admit(t.cs, want), ERR_NOSPC);
    fiber_spawn(c.env, "waiter", waiter_fiber, &want);
    env_sleep(c.env, ENV_NS_PER_MS);
    assert_false(waiter.ended);
    assert_int_equal(chunkstore_compact_need(t.cs), COMPACT_NOW);
    while (chunkstore_compact(t.cs, COMPACT_NOW, NULL, NULL) == 0)
        (void)sweep();
    chunkstore_room_changed(t.cs, true);
    env_sleep(c.env, ENV_NS_PER_MS);
    assert_true(waiter.ended);
    assert_int_equal(waiter.result, 0);

    want = space().free + space().dead - chunkstore_kept(t.cs);
    assert_int_equal(chunkstore_admit_ever(t.cs, want), 0);
    assert_int_equal(chunkstore_admit_ever(t.cs, want + 1), ERR_NOSPC);
    want = space().total; /* never */
    waiter.ended = false;
    fiber_spawn(c.env, "waiter", waiter_fiber, &want);
    env_sleep(c.env, ENV_NS_PER_MS);
    if (!waiter.ended)
        chunkstore_room_changed(t.cs, false);
    env_sleep(c.env, ENV_NS_PER_MS);
    assert_true(waiter.ended);
    assert_int_equal(waiter.result, ERR_NOSPC);
    close_store();
}

static void test_room(void **state)
{
    (void)state;
    waiter.ended = false;
    sim_case_run(&c, room_main, NULL);
}

static struct {
    unsigned ended;
    unsigned turn[3]; /* when it got its room, from 1; 0: not yet */
    int result[3];
} queue;

static uint64_t queue_bytes[3];

static void queue_fiber(void *arg)
{
    size_t i = (size_t)((uint64_t *)arg - queue_bytes);

    queue.result[i] = chunkstore_reserve(t.cs, queue_bytes[i]);
    queue.turn[i] = ++queue.ended;
}

/* A large write waits; a small one for which there would be room does not go before it, and who
 * asks is told that there is no room. Both get theirs when there is enough, and without another
 * round. */
static void queue_main(void *arg)
{
    uint64_t ids[CHUNKS], more[CHUNKS], room;

    (void)arg;
    make_store(3, 2, 1, 6);
    sparse_segment(1, ids);
    sparse_segment(1001, more);
    room = space().free - chunkstore_kept(t.cs);
    queue_bytes[0] = room + (64u << 10);
    queue_bytes[1] = queue_bytes[2] = 4096;
    assert_int_equal(chunkstore_admit(t.cs, 4096), 0);
    for (unsigned i = 0; i < 3; i++) {
        fiber_spawn(c.env, "queue", queue_fiber, &queue_bytes[i]);
        env_sleep(c.env, ENV_NS_PER_MS);
    }
    assert_int_equal(queue.ended, 0);
    assert_true(chunkstore_room_wanted(t.cs));
    assert_int_equal(chunkstore_admit(t.cs, 4096), ERR_NOSPC);
    while (chunkstore_compact(t.cs, COMPACT_NOW, NULL, NULL) == 0)
        (void)sweep();
    chunkstore_room_changed(t.cs, true);
    env_sleep(c.env, ENV_NS_PER_MS);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(queue.turn[i], i + 1);
        assert_int_equal(queue.result[i], 0);
        chunkstore_unreserve(t.cs, queue_bytes[i]);
    }
    assert_false(chunkstore_room_wanted(t.cs));
    assert_int_equal(chunkstore_admit(t.cs, 4096), 0);
    close_store();
}

static void test_queue(void **state)
{
    (void)state;
    memset(&queue, 0, sizeof(queue));
    sim_case_run(&c, queue_main, NULL);
}

/* Segments that others fill as fast as compaction frees them: the balance grows, and nobody is
 * refused for that. When only what compaction moves comes free, waiting ends by itself. */
static void balance_main(void *arg)
{
    uint64_t ids[CHUNKS], want;

    (void)arg;
    make_store(3, 2, 1, 6);
    sparse_segment(1, ids);
    want = space().total;
    fiber_spawn(c.env, "waiter", waiter_fiber, &want);
    env_sleep(c.env, ENV_NS_PER_MS);
    for (unsigned i = 0; i < 100; i++) {
        t.ss->freed += 1; /* and as much was taken by somebody else */
        chunkstore_room_changed(t.cs, true);
        env_sleep(c.env, ENV_NS_PER_MS);
        assert_false(waiter.ended);
    }
    for (unsigned i = 0; i < 100 && !waiter.ended; i++) {
        t.ss->freed += 1;
        t.ss->survivors += 1;
        chunkstore_room_changed(t.cs, true);
        env_sleep(c.env, ENV_NS_PER_MS);
    }
    assert_true(waiter.ended);
    assert_int_equal(waiter.result, ERR_NOSPC);
    close_store();
}

static void test_balance(void **state)
{
    (void)state;
    waiter.ended = false;
    sim_case_run(&c, balance_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_moves, setup, teardown),
        cmocka_unit_test_setup_teardown(test_listed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pinned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_freed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stopped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unreadable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_older, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gather, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lying, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kv_error, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sick_segment, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_records, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tiny, setup, teardown),
        cmocka_unit_test_setup_teardown(test_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queue, setup, teardown),
        cmocka_unit_test_setup_teardown(test_balance, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

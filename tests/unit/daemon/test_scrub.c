/* daemon/scrubber.c and lib/store/segment_mend.c: damage of every kind is found, repaired in place
 * where parity can, told where it cannot; nothing else is touched; a pass goes on where it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/partition_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/rt/sync.h"
#include "lib/store/segment_priv.h"
#include "tests/unit/daemon/partition_case.h"

#define MIB    (1u << 20)
#define DRIVES 6u

static struct partition_case pc;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    pc.drives = DRIVES;
    pc.m = 2;
    pc.slots = 40;
    pc.slot_size = FORMAT_SLOT_MIN;
    pc.options.scrub_settle_ns = ENV_NS_PER_MS;
    log_set_level((enum log_level)(LOG_ERROR + 1));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    log_set_level(LOG_ERROR);
    return 0;
}

/* ---- A store with something in it ---- */

static void volume_bytes(const char *name, uint64_t seed, size_t len, bool write)
{
    uint8_t *want = malloc(len), *got = malloc(len);
    struct block_volume *v;

    sim_case_bytes(seed, want, len);
    assert_int_equal(block_open(pc.bs, name, &v), 0);
    for (size_t at = 0; at < len; at += MIB) {
        if (write) {
            assert_int_equal(block_write(v, at, want + at, MIB, 0), 0);
        } else {
            assert_int_equal(block_read(v, at, got, MIB), 0);
            assert_memory_equal(got, want + at, MIB);
        }
    }
    block_close(v);
    free(want);
    free(got);
}

static void fill(const char *name, uint64_t seed, size_t len)
{
    assert_int_equal(block_create(pc.bs, name, 64 * MIB, BLOCK_EVERY_WRITE), 0);
    volume_bytes(name, seed, len, true);
}

static struct scrub_status status(void)
{
    struct scrub_status st;

    partition_scrub_status(pc.p, &st);
    return st;
}

static struct scrub_pass scrub(void)
{
    assert_int_equal(partition_scrub_start(pc.p), 0);
    partition_scrub_wait(pc.p);
    assert_int_equal(status().state.phase, SCRUB_IDLE);
    return status().state.last;
}

/* A segment with something alive: the `nth`. */
static const struct segment *some_segment(unsigned nth)
{
    uint64_t *ids;
    size_t n = segments_list(pc.p->segments, 0, UINT64_MAX, &ids);
    const struct segment *s = NULL;

    for (size_t i = 0; i < n; i++) {
        s = segment_get(pc.p->segments, ids[i]);
        if (s->chunks && nth-- == 0)
            break;
    }
    mem_free(ids);
    assert_true(s && s->chunks);
    return s;
}

static void spoil(unsigned drive, uint64_t off, size_t len)
{
    assert_int_equal(sim_file_corrupt(pc.c.sim, store_case_paths(DRIVES)[drive], off, len), 0);
}

/* Noise in a column of a segment, `at` units into its slot: 0 is the header, 1 the first stripe. */
static void spoil_column(const struct segment *s, unsigned column, uint32_t at)
{
    spoil(s->drive[column],
          segment_column_off(pc.p->segments, s, column) + (uint64_t)at * FORMAT_UNIT, 100);
}

static void expect_clean(void)
{
    struct scrub_pass pass = scrub();

    assert_int_equal(pass.found, 0);
    assert_int_equal(pass.lost, 0);
    assert_int_equal(pass.skipped, 0);
}

static void expect_mended(unsigned places)
{
    struct scrub_pass pass = scrub();

    assert_int_equal(pass.found, places);
    assert_int_equal(pass.mended, places);
    assert_int_equal(pass.lost, 0);
    expect_clean();
}

/* ---- Damage ---- */

static bool any_time(void *arg)
{
    (void)arg;
    return true;
}

/* The id of the nth chunk of a segment. */
static uint64_t some_chunk(const struct segment *s, size_t nth)
{
    struct chunk_place *places;
    uint64_t id;
    size_t n;

    segment_hold(pc.p->segments, s->id);
    assert_int_equal(chunkstore_gather(pc.p->chunks, s->id, any_time, NULL, &places, &n), 0);
    segment_release(pc.p->segments, s->id);
    assert_true(nth < n);
    id = places[nth].id;
    mem_free(places);
    return id;
}

static void kinds_main(void *arg)
{
    const struct segment *s;

    (void)arg;
    partition_case_open(&pc);
    fill("v", 1, 9 * MIB);
    expect_clean();
    assert_true(status().state.last.bytes > 9 * MIB * 3 / 2);
    s = some_segment(0);
    assert_int_equal(s->k, 4);
    spoil_column(s, 0, 1); /* with the stripe's directory */
    expect_mended(1);
    spoil_column(s, 3, 20);
    expect_mended(1);
    spoil_column(s, 4, 7); /* parity */
    expect_mended(1);
    spoil_column(s, 5, 0); /* a header */
    spoil_column(s, 1, 0);
    expect_mended(2);
    spoil_column(s, 0, 2); /* two columns of one stripe, at different places */
    spoil_column(s, 5, 3);
    expect_mended(2);
    spoil(2, FORMAT_SUPER_OFF_A, 50);
    spoil(4, FORMAT_SUPER_OFF_B, 4096);
    spoil(5, FORMAT_SUPER_OFF_A, 50);
    spoil(5, FORMAT_SUPER_OFF_B, 50);
    expect_mended(4);
    volume_bytes("v", 1, 9 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_kinds(void **state)
{
    (void)state;
    sim_case_run(&pc.c, kinds_main, NULL);
}

/* What was repaired bears the loss of two other drives. */
static void others_lost_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    fill("v", 2, 9 * MIB);
    for (unsigned d = 0; d < 2; d++)
        spoil(d, pc.p->ds->super.slots_off, 40 * (size_t)FORMAT_SLOT_MIN);
    assert_true(scrub().mended > 10);
    expect_clean();
    for (unsigned d = 0; d < DRIVES; d++) {
        const struct drive *dr = &pc.p->ds->drives[d];

        assert_int_equal(dr->scrub.bad > 0, d < 2);
        assert_int_equal(dr->scrub.bad, dr->scrub.mended);
        assert_true(dr->scrub.bytes > 2 * MIB);
    }
    for (unsigned d = 2; d < 4; d++)
        spoil(d, pc.p->ds->super.slots_off, 40 * (size_t)FORMAT_SLOT_MIN);
    volume_bytes("v", 2, 9 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_others_lost(void **state)
{
    (void)state;
    sim_case_run(&pc.c, others_lost_main, NULL);
}

/* What was noted in a time when drives were missing is not lost where it can be read again. */
static void found_again_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    fill("v", 21, 3 * MIB);
    for (size_t i = 0; i < 3; i++)
        chunkstore_note_lost(pc.p->chunks, some_chunk(some_segment(0), i));
    env_sleep(pc.c.env, 60 * ENV_NS_PER_S);
    assert_int_equal(status().known_lost, 3);
    expect_clean();
    assert_int_equal(status().known_lost, 0);
    env_sleep(pc.c.env, 60 * ENV_NS_PER_S); /* that is journaled in the background */
    assert_int_equal(partition_case_close(&pc), 0);
    partition_case_open(&pc); /* nor after a start */
    assert_int_equal(status().known_lost, 0);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_found_again(void **state)
{
    (void)state;
    sim_case_run(&pc.c, found_again_main, NULL);
}

/* A row of a chunk that cannot be read: its segment is skipped, all others are looked at. */
static void bad_row_main(void *arg)
{
    struct kv_batch *batch = kv_batch_new();
    struct scrub_pass pass;
    uint8_t key[8];

    (void)arg;
    partition_case_open(&pc);
    fill("v", 22, 9 * MIB);
    codec_put_be64(key, some_chunk(some_segment(0), 5));
    assert_int_equal(partition_settle(pc.p), 0);
    kv_batch_put(batch, KV_CHUNK, (struct kv_slice){key, sizeof(key)}, (struct kv_slice){"?", 1});
    assert_int_equal(kv_write(pc.kv, batch), 0);
    kv_batch_free(batch);
    assert_int_equal(partition_case_close(&pc), 0);
    partition_case_open(&pc);
    spoil_column(some_segment(1), 0, 1);
    pass = scrub();
    assert_int_equal(pass.skipped, 1);
    assert_int_equal(pass.found, 1);
    assert_int_equal(pass.mended, 1);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_bad_row(void **state)
{
    (void)state;
    sim_case_run(&pc.c, bad_row_main, NULL);
}

/* Mirrors: one of two columns is right, and what is dead in a stripe, and its padding, tell which
 * as well as what is alive does. */
static void mirror_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    fill("v", 14, 3 * MIB);
    volume_bytes("v", 15, 2 * MIB, true);
    assert_int_equal(partition_settle(pc.p), 0);
    spoil(0, pc.p->ds->super.slots_off, 40 * (size_t)FORMAT_SLOT_MIN);
    assert_true(scrub().mended > 2);
    expect_clean();
    spoil(1, pc.p->ds->super.slots_off, 40 * (size_t)FORMAT_SLOT_MIN);
    /* Not read before: a drive that gives readers so much that is wrong is put out. */
    assert_true(scrub().mended > 2);
    assert_int_equal(pc.p->ds->drives[1].scrub.mended, pc.p->ds->drives[1].scrub.bad);
    volume_bytes("v", 15, 2 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_mirror(void **state)
{
    (void)state;
    pc.drives = 2;
    pc.m = 1;
    sim_case_run(&pc.c, mirror_main, NULL);
}

static void lost_main(void *arg)
{
    const struct segment *s;
    struct scrub_pass pass;

    (void)arg;
    partition_case_open(&pc);
    fill("v", 3, 3 * MIB);
    fill("w", 4, 1 * MIB);
    s = some_segment(0);
    for (unsigned i = 0; i < 3; i++)
        spoil_column(s, i, 1); /* the directory in columns 0, 4 and 5 is not listed any more */
    spoil_column(s, 4, 1);
    pass = scrub();
    assert_true(pass.lost > 0);
    assert_true(pass.found >= pass.mended);
    assert_int_equal(status().lost, pass.lost);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(partition_case_close(&pc), 0);
    partition_case_open(&pc); /* it is known afterwards, too */
    assert_int_equal(partition_case_status(&pc).chunks.lost, pass.lost);
    assert_int_equal(block_remove(pc.bs, "v"), 0);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(partition_settle(pc.p), 0);
    pass = scrub();
    assert_int_equal(pass.lost, 0);
    assert_int_equal(status().lost, 0);
    assert_int_equal(partition_case_status(&pc).chunks.lost, 0);
    volume_bytes("w", 4, 1 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_lost(void **state)
{
    (void)state;
    sim_case_run(&pc.c, lost_main, NULL);
}

/* Three columns are bad, each in another place: no column can be told to be right as a whole, but
 * every chunk can be read. It is written again elsewhere, and all is well. */
static void scattered_main(void *arg)
{
    const struct segment *s;
    struct scrub_pass pass;

    (void)arg;
    partition_case_open(&pc);
    fill("v", 5, 9 * MIB);
    s = some_segment(0);
    spoil_column(s, 1, 5);
    spoil_column(s, 2, 9);
    spoil_column(s, 3, 13);
    pass = scrub();
    assert_true(pass.found > 0);
    assert_int_equal(pass.lost, 0);
    env_sleep(pc.c.env, 10 * ENV_NS_PER_S);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(partition_case_status(&pc).thin_segments, 0);
    assert_int_equal(partition_case_status(&pc).chunks.compacted, 1);
    expect_clean();
    volume_bytes("v", 5, 9 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_scattered(void **state)
{
    (void)state;
    sim_case_run(&pc.c, scattered_main, NULL);
}

/* ---- Drives ---- */

static void out_fill_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    fill("v", 6, 6 * MIB);
    assert_int_equal(partition_case_close(&pc), 0);
}

static int writes_to_5(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    if (store_case_drive(path) == 5 && io->kind == ENV_WRITE)
        fail_msg("a drive that does not count is written");
    return 0;
}

static void out_main(void *arg)
{
    const struct segment *s;

    (void)arg;
    partition_case_open(&pc);
    driveset_put_out(pc.p->ds, 5, "by the test");
    assert_int_equal(driveset_commit(pc.p->ds, true, NULL, NULL), 0);
    pc.c.hook = writes_to_5;
    s = some_segment(0);
    for (unsigned i = 0; i < 6; i++)
        if (s->drive[i] == 5 || s->drive[i] == 1)
            spoil_column(s, i, 3);
    spoil(5, FORMAT_SUPER_OFF_A, 50);
    assert_int_equal(scrub().mended, 1);
    assert_int_equal(pc.p->ds->drives[5].scrub.unmended, 1);
    assert_int_equal(pc.p->ds->drives[1].scrub.mended, 1);
    volume_bytes("v", 6, 6 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
    pc.c.hook = NULL;
}

static void test_out(void **state)
{
    (void)state;
    sim_case_run(&pc.c, out_fill_main, NULL);
    sim_case_run(&pc.c, out_main, NULL);
}

static unsigned failing, failures;

static int failing_writes(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    if (store_case_drive(path) != failing || io->kind != ENV_WRITE)
        return 0;
    failures++;
    return ERR_IO;
}

static int failing_read(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    if (store_case_drive(path) != failing || io->kind != ENV_READ || failures ||
        io->len < 64u << 10) /* a whole column */
        return 0;
    failures++;
    return ERR_IO;
}

static void errors_main(void *arg)
{
    const struct segment *s;

    (void)arg;
    partition_case_open(&pc);
    fill("v", 7, 6 * MIB);
    s = some_segment(0);
    failing = s->drive[2];
    failures = 0;
    pc.c.hook = failing_read; /* a column that cannot be read is written again */
    assert_int_equal(scrub().mended, 1);
    assert_int_equal(failures, 1);
    spoil_column(s, 2, 3);
    pc.c.hook = failing_writes; /* a drive that takes no repair is put out, and that is told */
    failures = 0;
    assert_int_equal(scrub().mended, 0);
    assert_true(failures > 0);
    pc.c.hook = NULL;
    assert_false(drive_usable(&pc.p->ds->drives[failing]));
    assert_int_equal(pc.p->ds->super.members[failing].state, FORMAT_DRIVE_OUT);
    volume_bytes("v", 7, 6 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_errors(void **state)
{
    (void)state;
    sim_case_run(&pc.c, errors_main, NULL);
}

/* A segment is held while it is looked at, through all pauses; when all in it has died it is let
 * go, and the pass goes on with the next. */
static void held_main(void *arg)
{
    const struct segment *s;
    uint64_t id;

    (void)arg;
    partition_case_open(&pc);
    fill("v", 13, 6 * MIB);
    assert_int_equal(partition_settle(pc.p), 0);
    s = some_segment(0);
    id = s->id;
    assert_int_equal(partition_scrub_start(pc.p), 0);
    env_sleep(pc.c.env, 500 * ENV_NS_PER_MS); /* it pauses behind one of the first stripes */
    assert_int_equal(status().state.next, 0);
    assert_true(s->chunks > 0 && s->holds == 1);
    assert_int_equal(block_remove(pc.bs, "v"), 0);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_null(segment_get(pc.p->segments, id));
    partition_scrub_wait(pc.p);
    assert_int_equal(status().lost, 0);
    assert_int_equal(partition_case_status(&pc).stored, 0);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_held(void **state)
{
    (void)state;
    pc.options.scrub_rate = 100u << 10;
    sim_case_run(&pc.c, held_main, NULL);
}

/* Writes to a new volume until there is no room; how many megabytes there was room for. */
static unsigned fill_up(const char *name)
{
    uint8_t *p = malloc(MIB);
    struct block_volume *v;
    unsigned n = 0;
    int rc;

    assert_int_equal(block_create(pc.bs, name, 1000 * (uint64_t)MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, name, &v), 0);
    do {
        sim_case_bytes(n + (uint64_t)(uint8_t)name[0] * 1000, p, MIB);
        rc = block_write(v, n * (uint64_t)MIB, p, MIB, 0);
    } while (rc == 0 && ++n < 1000);
    assert_int_equal(rc, ERR_NOSPC);
    block_close(v);
    free(p);
    return n;
}

/* Writes want the room of all segments that were emptied; scrub is at one of these. */
static void room_main(void *arg)
{
    const struct segment *s;
    unsigned first;
    uint64_t id;
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    first = fill_up("a");
    assert_int_equal(partition_settle(pc.p), 0);
    s = some_segment(0);
    id = s->id;
    assert_int_equal(partition_scrub_start(pc.p), 0);
    env_sleep(pc.c.env, 500 * ENV_NS_PER_MS);
    assert_int_equal(s->holds, 1);
    assert_int_equal(block_open(pc.bs, "a", &v), 0);
    assert_int_equal(block_zero(v, 0, first * (uint64_t)MIB, 0), 0);
    block_close(v);
    (void)fill_up("b");
    assert_int_equal(status().state.phase, SCRUB_RUNNING);
    assert_null(segment_get(pc.p->segments, id));
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_room(void **state)
{
    (void)state;
    pc.options.scrub_rate = 5000;
    pc.slots = 24;
    sim_case_run(&pc.c, room_main, NULL);
}

/* ---- Going on ---- */

static void kill_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    fill("v", 8, 50 * MIB);
    for (unsigned i = 0; i < 20; i++)
        spoil_column(some_segment(i), i % 6, 1);
    assert_int_equal(partition_scrub_start(pc.p), 0);
    while (status().state.next < 18)
        env_sleep(pc.c.env, ENV_NS_PER_MS);
    assert_int_equal(status().state.phase, SCRUB_RUNNING);
    sim_pause(pc.c.sim);
    env_sleep(pc.c.env, ENV_NS_PER_S);
}

static void after_kill_main(void *arg)
{
    struct scrub_pass pass;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(status().state.phase, SCRUB_RUNNING);
    assert_true(status().state.next >= 16 && status().state.now.mended >= 14);
    partition_scrub_wait(pc.p);
    pass = status().state.last;
    assert_true(pass.mended <= 20 && pass.bytes >= 50 * MIB && pass.bytes < 100 * MIB);
    assert_true(pass.start_ns > 0 && pass.end_ns > pass.start_ns && pass.took_ns > 0);
    expect_clean();
    volume_bytes("v", 8, 50 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_kill(void **state)
{
    (void)state;
    pc.options.scrub_rate = 64 * MIB;
    sim_case_run_and_kill(&pc.c, kill_main, NULL, true);
    sim_case_run(&pc.c, after_kill_main, NULL);
}

static void stop_main(void *arg)
{
    struct scrub_status st;

    (void)arg;
    partition_case_open(&pc);
    fill("v", 9, 20 * MIB);
    assert_int_equal(partition_scrub_stop(pc.p), 0); /* there is none */
    assert_int_equal(partition_scrub_start(pc.p), 0);
    assert_int_equal(partition_scrub_start(pc.p), 0); /* it runs */
    env_sleep(pc.c.env, 2 * ENV_NS_PER_S);
    st = status();
    assert_true(st.rate > 3 * MIB && st.rate <= 4 * MIB + MIB / 2); /* the budget */
    assert_true(st.left > 10 * MIB && st.eta_ns > 2 * ENV_NS_PER_S);
    assert_int_equal(partition_scrub_stop(pc.p), 0);
    assert_int_equal(partition_case_close(&pc), 0);
    partition_case_open(&pc);
    assert_int_equal(status().state.phase, SCRUB_STOPPED);
    assert_true(status().state.now.bytes >= st.state.now.bytes && status().state.next > 1);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(status().state.phase, SCRUB_STOPPED);
    assert_int_equal(partition_scrub_start(pc.p), 0);
    assert_true(status().state.next > 1);
    partition_scrub_wait(pc.p);
    assert_true(status().state.last.bytes >= 20 * MIB * 3 / 2);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_stop(void **state)
{
    (void)state;
    pc.options.scrub_rate = 4 * MIB;
    sim_case_run(&pc.c, stop_main, NULL);
}

/* ---- The schedule ---- */

static void due_main(void *arg)
{
    struct scrub_status st;
    uint64_t first;

    (void)arg;
    partition_case_open(&pc);
    fill("v", 10, MIB);
    env_sleep(pc.c.env, 59 * 60 * ENV_NS_PER_S);
    assert_int_equal(status().state.last.start_ns, 0);
    env_sleep(pc.c.env, 120 * ENV_NS_PER_S);
    first = status().state.last.start_ns; /* after the first hour */
    assert_true(first > 0);
    env_sleep(pc.c.env, 23 * 3600 * ENV_NS_PER_S);
    assert_int_equal(status().state.last.start_ns, first);
    assert_int_equal(partition_case_close(&pc), 0);
    partition_case_open(&pc); /* a restart does not begin to count anew */
    st = status();
    assert_true(st.due_ns > env_wallclock(pc.c.env) + 1800 * ENV_NS_PER_S);
    assert_true(st.due_ns <= first + 86400 * ENV_NS_PER_S + ENV_NS_PER_S);
    env_sleep(pc.c.env, 3600 * ENV_NS_PER_S);
    assert_true(status().state.last.start_ns > first);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_due(void **state)
{
    (void)state;
    pc.options.scrub_every_ns = 86400 * ENV_NS_PER_S;
    sim_case_run(&pc.c, due_main, NULL);
}

/* A pass that seems to have begun in the future: the clock was wrong, then or now. */
static void clock_main(void *arg)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct scrub_state st = {.last = {.start_ns = 1ull << 62, .end_ns = 1ull << 62}};
    struct kv_batch *b = kv_batch_new();

    (void)arg;
    partition_case_open(&pc);
    fill("v", 11, MIB);
    assert_int_equal(partition_case_close(&pc), 0);
    scrub_state_encode(&st, &row);
    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &pc.kv), 0);
    kv_batch_put(b, KV_META, (struct kv_slice){SCRUB_KEY, 5}, (struct kv_slice){row.data, row.len});
    assert_int_equal(kv_write(pc.kv, b), 0);
    kv_batch_free(b);
    assert_int_equal(kv_close(pc.kv), 0);
    partition_case_open(&pc);
    env_sleep(pc.c.env, 86300 * ENV_NS_PER_S);
    assert_true(status().state.last.start_ns == 1ull << 62);
    env_sleep(pc.c.env, 200 * ENV_NS_PER_S);
    assert_true(status().state.last.start_ns != 1ull << 62);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_clock(void **state)
{
    (void)state;
    pc.options.scrub_every_ns = 86400 * ENV_NS_PER_S;
    sim_case_run(&pc.c, clock_main, NULL);
}

/* ---- In the midst of it all ---- */

static struct fiber_group busy;
static uint64_t busy_seed;

/* Writes over a volume of its own, again and again: frees, new segments, compaction. */
static void busy_main(void *arg)
{
    static const char *const names[] = {"b0", "b1", "b2"};
    const char *name = names[*(unsigned *)arg];

    fill(name, 100, 2 * MIB);
    for (unsigned i = 0; i < 12; i++) {
        uint64_t seed = 1000 + busy_seed++;

        volume_bytes(name, seed, 2 * MIB, true);
        env_sleep(pc.c.env, 3 * ENV_NS_PER_MS);
        volume_bytes(name, seed, 2 * MIB, false);
        if (i % 4 == 3)
            assert_int_equal(partition_compact(pc.p), 0);
    }
    fiber_group_done(&busy);
}

static void midst_main(void *arg)
{
    static unsigned number[] = {0, 1, 2};

    (void)arg;
    partition_case_open(&pc);
    fill("v", 12, 6 * MIB);
    fiber_group_init(&busy);
    fiber_group_add(&busy, 3);
    for (unsigned i = 0; i < 3; i++)
        fiber_spawn(pc.c.env, "busy", busy_main, &number[i]);
    while (busy.pending) {
        for (unsigned d = 1; d < 5; d += 3) /* two drives, anywhere */
            for (unsigned i = 0; i < 40; i++)
                spoil(d, pc.p->ds->super.slots_off + sim_random(pc.c.sim, 20 * FORMAT_SLOT_MIN),
                      200);
        assert_int_equal(scrub().lost, 0);
    }
    (void)scrub();
    expect_clean();
    volume_bytes("v", 12, 6 * MIB, false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_midst(void **state)
{
    (void)state;
    sim_case_run(&pc.c, midst_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_kinds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_others_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_found_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_row, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mirror, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_scattered, setup, teardown),
        cmocka_unit_test_setup_teardown(test_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kill, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_due, setup, teardown),
        cmocka_unit_test_setup_teardown(test_clock, setup, teardown),
        cmocka_unit_test_setup_teardown(test_midst, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

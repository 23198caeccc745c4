/* Many snapshots, and what they cost those who look at the volume: of the rows that are not in
 * memory they wait for those that tell what they asked, and for no others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "tests/unit/daemon/partition_case.h"
#include "tests/unit/dedup/lag_kv.h"

#define MIB       (1u << 20)
#define SNAPSHOTS 20u
#define LAG       ENV_NS_PER_S

static struct partition_case pc;
static uint64_t no_lag; /* of writes */
static uint8_t *bytes;

static struct kv *wrap(struct env *env, struct kv *kv)
{
    return lag_kv_new(env, kv, &no_lag);
}

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    pc.wrap = wrap;
    bytes = mem_alloc(MIB);
    sim_case_bytes(1, bytes, MIB);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    mem_free(bytes);
    return 0;
}

static struct block_volume *volume(void)
{
    struct block_volume *v;

    CHECK_OK(block_open(pc.bs, "v", &v));
    return v;
}

static void write_block(uint64_t block)
{
    struct block_volume *v = volume();

    CHECK_OK(block_write(v, block * BLOCK_SIZE, bytes + block * BLOCK_SIZE, BLOCK_SIZE, 0));
    block_close(v);
}

/* Reads and compares; returns how many rows were waited for. */
static unsigned read_blocks(uint64_t block, unsigned n)
{
    struct block_volume *v = volume();
    uint8_t *got = mem_alloc(n * (size_t)BLOCK_SIZE);
    uint64_t at = env_now(pc.c.env), took;

    assert_int_equal(block_read(v, block * BLOCK_SIZE, got, n * BLOCK_SIZE), 0);
    took = env_now(pc.c.env) - at;
    assert_memory_equal(got, bytes + block * BLOCK_SIZE, n * BLOCK_SIZE);
    mem_free(got);
    block_close(v);
    return (unsigned)(took / LAG);
}

/* Block i is older than snapshot i, and block SNAPSHOTS is newer than all of them; in one leaf. */
static void fill_main(void *arg)
{
    const char *name = "v";

    (void)arg;
    partition_case_open(&pc);
    CHECK_OK(block_create(pc.bs, name, MIB, BLOCK_EVERY_WRITE));
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        char snapshot[16];

        snprintf(snapshot, sizeof(snapshot), "s%u", i);
        write_block(i);
        CHECK_OK(block_snapshot(pc.bs, &name, 1, snapshot));
    }
    write_block(SNAPSHOTS);
    CHECK_OK(partition_settle(pc.p));
    CHECK_OK(partition_case_close(&pc));
}

static void newest_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    lag_kv_slow_reads(pc.kv, LAG);
    assert_int_equal(read_blocks(SNAPSHOTS, 1), 2);     /* its leaf, its chunk */
    assert_int_equal(read_blocks(SNAPSHOTS - 1, 1), 2); /* of the next map as well */
    assert_int_equal(read_blocks(SNAPSHOTS - 1, 2), 0);
    write_block(SNAPSHOTS + 1);
    assert_int_equal(read_blocks(SNAPSHOTS + 1, 1), 0);                 /* it is in the overlay */
    assert_int_equal(read_blocks(0, SNAPSHOTS + 2), SNAPSHOTS - 1 + 1); /* leaves, all chunks */
    CHECK_OK(partition_case_close(&pc));
}

static void test_newest(void **state)
{
    (void)state;
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, newest_main, NULL);
}

/* ---- A disk of many small pieces ---- */

enum { PIECES = 600 };

static unsigned spacing; /* of pieces of a block, in blocks: 64 are a leaf */

static struct {
    bool stop, stopped;
    unsigned turns;
} other;

static void other_fiber(void *arg)
{
    (void)arg;
    for (; !other.stop; other.turns++)
        fiber_yield();
    other.stopped = true;
}

static void make_pieces(void)
{
    struct block_volume *v;

    CHECK_OK(block_create(pc.bs, "v", (uint64_t)PIECES * spacing * BLOCK_SIZE, BLOCK_EVERY_WRITE));
    v = volume();
    for (uint64_t i = 0; i < PIECES; i++)
        CHECK_OK(block_write(v, i * spacing * BLOCK_SIZE, bytes, BLOCK_SIZE, 0));
    block_close(v);
}

static void expect_pieces(void)
{
    struct block_extent *e = mem_calloc(2 * PIECES + 1, sizeof(*e));
    struct block_volume *v = volume();
    size_t n;

    assert_int_equal(
        block_extents(v, 0, (uint64_t)PIECES * spacing * BLOCK_SIZE, e, 2 * PIECES + 1, &n), 0);
    assert_int_equal(n, 2 * PIECES);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(e[i].hole, i % 2);
        assert_int_equal(e[i].length, (i % 2 ? spacing - 1 : 1u) * BLOCK_SIZE);
    }
    mem_free(e);
    block_close(v);
}

static void sparse_main(void *arg)
{
    const char *name = "v";

    (void)arg;
    partition_case_open(&pc);
    make_pieces();
    expect_pieces(); /* most is in the overlay */
    CHECK_OK(partition_settle(pc.p));
    expect_pieces();
    CHECK_OK(block_snapshot(pc.bs, &name, 1, "s"));
    expect_pieces();
    CHECK_OK(partition_case_close(&pc));
}

static void test_sparse(void **state)
{
    (void)state;
    spacing = 128;
    sim_case_run(&pc.c, sparse_main, NULL);
}

/* All of it is in memory; looking at it takes no longer than others can wait. */
static void turns_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    make_pieces();
    CHECK_OK(partition_settle(pc.p));
    expect_pieces();
    memset(&other, 0, sizeof(other));
    fiber_spawn(pc.c.env, "other", other_fiber, NULL);
    expect_pieces();
    other.stop = true;
    assert_true(other.turns >= PIECES / 8);
    while (!other.stopped)
        fiber_yield();
    CHECK_OK(partition_case_close(&pc));
}

static void test_turns(void **state)
{
    (void)state;
    spacing = 64;
    pc.options.cache_bytes = 8 * MIB;
    sim_case_run(&pc.c, turns_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_newest, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sparse, setup, teardown),
        cmocka_unit_test_setup_teardown(test_turns, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

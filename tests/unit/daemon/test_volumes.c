/* daemon/volume*: a volume is an array of bytes, whatever is written, zeroed, resized, drained,
 * closed or killed in between; and space comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"
#include "lib/rt/sync.h"
#include "tests/unit/daemon/partition_case.h"

#define MIB (1u << 20)

static struct partition_case pc;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

static void close_ok(void)
{
    assert_int_equal(partition_case_close(&pc), 0);
}

static struct block_volume *make(const char *name, uint64_t size)
{
    struct block_volume *v;

    assert_int_equal(block_create(pc.bs, name, size, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, name, &v), 0);
    return v;
}

static struct block_info info_of(struct block_volume *v)
{
    struct block_info i;

    block_get_info(v, &i);
    return i;
}

static void write_seed(struct block_volume *v, uint64_t off, size_t len, uint64_t seed)
{
    uint8_t *p = malloc(len + 8);

    sim_case_bytes(seed, p, len);
    assert_int_equal(block_write(v, off, p, len, 0), 0);
    free(p);
}

static void expect_seed(struct block_volume *v, uint64_t off, size_t len, uint64_t seed)
{
    uint8_t *want = malloc(len + 8), *got = malloc(len);

    sim_case_bytes(seed, want, len);
    assert_int_equal(block_read(v, off, got, len), 0);
    assert_memory_equal(got, want, len);
    free(want);
    free(got);
}

static void expect_zero(struct block_volume *v, uint64_t off, size_t len)
{
    uint8_t *want = calloc(1, len), *got = malloc(len);

    assert_int_equal(block_read(v, off, got, len), 0);
    assert_memory_equal(got, want, len);
    free(want);
    free(got);
}

/* ---- What is measured ---- */

static void observe_main(void *arg)
{
    struct metrics *m = metrics_new();
    struct slow_log slow = {.threshold_ns = 1};
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    static uint8_t bytes[BLOCK_SIZE];
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    partition_observe(pc.p, m, &slow);
    v = make("v", MIB);
    for (uint64_t i = 0; i < 10; i++)
        write_seed(v, i * BLOCK_SIZE, BLOCK_SIZE, i);
    write_seed(v, 100, 10, 3); /* a write is one, though it reads and writes blocks within */
    assert_int_equal(block_read(v, 0, bytes, BLOCK_SIZE), 0);
    assert_int_equal(block_read(v, MIB, bytes, BLOCK_SIZE), ERR_RANGE);
    assert_int_equal(block_flush(v), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    metrics_text(m, &text);
    assert_non_null(strstr(text.data, "\nfilmroom_block_seconds_count{op=\"write\"} 11\n"));
    assert_non_null(strstr(text.data, "\nfilmroom_block_seconds_count{op=\"flush\"} 1\n"));
    assert_non_null(strstr(text.data, "\nfilmroom_drain_blocks_total 10\n"));
    assert_non_null(strstr(text.data, "\nfilmroom_checkpoint_seconds_count 1\n"));
    assert_true(slow.total >= 11); /* simulated drives take their time */
    metrics_free(m);
    block_close(v);
    close_ok();
}

static void test_observe(void **state)
{
    (void)state;
    sim_case_run(&pc.c, observe_main, NULL);
}

/* ---- Administration ---- */

static void admin_main(void *arg)
{
    char longest[BLOCK_NAME_MAX + 2] = {0};
    struct block_info info, *infos;
    struct block_volume *v;
    size_t n;

    (void)arg;
    partition_case_open(&pc);
    memset(longest, 'n', BLOCK_NAME_MAX + 1);
    assert_int_equal(block_create(pc.bs, longest, MIB, BLOCK_ON_FLUSH), ERR_NAME);
    longest[BLOCK_NAME_MAX] = 0;
    assert_int_equal(block_create(pc.bs, longest, MIB, BLOCK_ON_FLUSH), 0);
    assert_int_equal(block_create(pc.bs, "", MIB, 0), ERR_NAME);
    assert_int_equal(block_create(pc.bs, "../etc", MIB, 0), ERR_NAME);
    assert_int_equal(block_create(pc.bs, ".a", MIB, 0), ERR_NAME);
    assert_int_equal(block_create(pc.bs, "-a", MIB, 0), ERR_NAME);
    assert_int_equal(block_create(pc.bs, "a b", MIB, 0), ERR_NAME);
    assert_int_equal(block_create(pc.bs, "a", 0, 0), ERR_RANGE);
    assert_int_equal(block_create(pc.bs, "a", 4095, 0), ERR_RANGE);
    assert_int_equal(block_create(pc.bs, "a", BLOCK_VOLUME_MAX + BLOCK_SIZE, 0), ERR_RANGE);
    assert_int_equal(block_create(pc.bs, "a", BLOCK_VOLUME_MAX, 0), 0); /* thin */
    assert_int_equal(block_create(pc.bs, "a", MIB, 0), ERR_EXIST);
    assert_int_equal(block_create(pc.bs, "B", MIB, 0), 0);
    assert_int_equal(block_list(pc.bs, &infos, &n), 0);
    assert_int_equal(n, 3);
    assert_string_equal(infos[0].name, "B");
    assert_string_equal(infos[1].name, "a");
    assert_string_equal(infos[2].name, longest);
    assert_int_equal(infos[2].durability, BLOCK_ON_FLUSH);
    mem_free(infos);
    assert_int_equal(block_stat(pc.bs, "none", &info), ERR_NOENT);
    assert_int_equal(block_stat(pc.bs, "B", &info), 0);
    assert_int_equal(info.size, MIB);
    assert_int_equal(info.openers + info.mapped, 0);
    assert_true(info.created_ns > 0);
    assert_int_equal(block_open(pc.bs, "none", &v), ERR_NOENT);
    assert_int_equal(block_open(pc.bs, "B", &v), 0);
    assert_int_equal(info_of(v).openers, 1);
    assert_int_equal(block_remove(pc.bs, "B"), ERR_BUSY);
    block_close(v);
    block_close(NULL);
    assert_int_equal(block_remove(pc.bs, "none"), ERR_NOENT);
    assert_int_equal(block_remove(pc.bs, "B"), 0);
    assert_int_equal(block_remove(pc.bs, "B"), ERR_NOENT);
    assert_int_equal(block_resize(pc.bs, "B", MIB), ERR_NOENT);
    assert_int_equal(block_resize(pc.bs, "a", 5), ERR_RANGE);
    assert_int_equal(block_create(pc.bs, "B", 2 * MIB, 0), 0);
    close_ok();
    partition_case_open(&pc);
    assert_int_equal(block_stat(pc.bs, "B", &info), 0);
    assert_int_equal(info.size, 2 * MIB);
    assert_int_equal(partition_case_status(&pc).volumes, 3);
    close_ok();
}

static void test_admin(void **state)
{
    (void)state;
    sim_case_run(&pc.c, admin_main, NULL);
}

/* Two of the same name at the same time: one comes first. */
static int created[2];

static void create_fiber(void *arg)
{
    *(int *)arg = block_create(pc.bs, "same", MIB, BLOCK_EVERY_WRITE);
}

static void create_race_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    for (unsigned i = 0; i < 2; i++) {
        created[i] = 1;
        fiber_spawn(pc.c.env, "create", create_fiber, &created[i]);
    }
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(created[0], 0);
    assert_int_equal(created[1], ERR_EXIST);
    assert_int_equal(partition_case_status(&pc).volumes, 1);
    close_ok();
}

static void test_create_race(void **state)
{
    (void)state;
    sim_case_run(&pc.c, create_race_main, NULL);
}

/* ---- Reading and writing ---- */

static void bounds_main(void *arg)
{
    struct block_volume *v;
    struct block_extent e[4];
    size_t n;
    uint8_t *big = calloc(1, BLOCK_IO_MAX + 1);

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 64 * MIB);
    assert_int_equal(block_write(v, 0, big, BLOCK_IO_MAX + 1, 0), ERR_TOOBIG);
    assert_int_equal(block_read(v, 0, big, BLOCK_IO_MAX + 1), ERR_TOOBIG);
    assert_int_equal(block_read(v, 64 * MIB, big, 1), ERR_RANGE);
    assert_int_equal(block_write(v, 64 * MIB - 1, big, 2, 0), ERR_RANGE);
    assert_int_equal(block_read(v, UINT64_MAX, big, 2), ERR_RANGE);
    assert_int_equal(block_write(v, UINT64_MAX - 1, big, 2, 0), ERR_RANGE);
    assert_int_equal(block_zero(v, 1, UINT64_MAX, 0), ERR_RANGE);
    assert_int_equal(block_discard(v, 64 * MIB, 1, 0), ERR_RANGE);
    assert_int_equal(block_extents(v, 64 * MIB, 1, e, 4, &n), ERR_RANGE);
    assert_int_equal(block_read(v, 64 * MIB, big, 0), 0);
    assert_int_equal(block_write(v, 64 * MIB, big, 0, 0), 0);
    assert_int_equal(block_zero(v, 0, 0, 0), 0);
    assert_int_equal(block_write(v, 64 * MIB - 1, "x", 1, BLOCK_FUA), 0);
    assert_int_equal(block_read(v, 64 * MIB - 2, big, 2), 0);
    assert_memory_equal(big, "\0x", 2);
    assert_int_equal(block_flush(v), 0);
    write_seed(v, 0, BLOCK_IO_MAX, 5);
    expect_seed(v, 0, BLOCK_IO_MAX, 5);
    free(big);
    block_close(v);
    close_ok();
}

static void test_bounds(void **state)
{
    (void)state;
    pc.slots = 30;
    sim_case_run(&pc.c, bounds_main, NULL);
}

/* A model: the bytes as they should be. */
#define MODEL (6 * MIB)
static uint8_t *model;

static void model_check(struct block_volume *v, uint64_t off, size_t len)
{
    uint8_t *got = malloc(len + 1);

    assert_int_equal(block_read(v, off, got, len), 0);
    assert_memory_equal(got, model + off, len);
    free(got);
}

static bool model_zero(uint64_t off, uint64_t len)
{
    while (len--)
        if (model[off++])
            return false;
    return true;
}

/* Holes are zeroes; the extents follow each other and alternate. */
static void model_extents(struct block_volume *v, uint64_t off, uint64_t len)
{
    struct block_extent e[8];
    size_t n = 0;
    uint64_t at = off;

    assert_int_equal(block_extents(v, off, len, e, 8, &n), 0);
    assert_true(n >= 1);
    for (size_t i = 0; i < n; i++) {
        assert_true(e[i].length > 0 && at + e[i].length <= off + len);
        assert_true(i == 0 || e[i].hole != e[i - 1].hole);
        if (e[i].hole)
            assert_true(model_zero(at, e[i].length));
        at += e[i].length;
    }
    assert_true(n == 8 || at == off + len);
}

/* Off and length of an operation: often of whole blocks, sometimes large. */
static void pick_range(uint64_t *off, uint64_t *len)
{
    struct sim *sim = pc.c.sim;
    uint64_t max = sim_random(sim, 4) ? 20000 : sim_random(sim, 2) ? 200000 : 1500000;

    *off = sim_random(sim, MODEL - 1);
    *len = 1 + sim_random(sim, max);
    if (sim_random(sim, 2)) {
        *off &= ~4095ull;
        *len = (*len + 4095) & ~4095ull;
    }
    if (*len > MODEL - *off)
        *len = MODEL - *off;
}

static void model_step(struct block_volume *v)
{
    struct sim *sim = pc.c.sim;
    uint64_t off, len, what = sim_random(sim, 20);

    pick_range(&off, &len);
    if (what < 10) {
        /* Few different contents, so that blocks are found again; some of zeroes. */
        uint64_t seed = sim_random(sim, 12);
        uint8_t *p = malloc(len + 8);

        sim_case_bytes(seed, p, len);
        if (seed == 0)
            memset(p, 0, len);
        assert_int_equal(block_write(v, off, p, len, 0), 0);
        memcpy(model + off, p, len);
        free(p);
    } else if (what < 12) {
        assert_int_equal(what == 10 ? block_zero(v, off, len, 0) : block_discard(v, off, len, 0),
                         0);
        memset(model + off, 0, len);
    } else if (what < 18) {
        model_check(v, off, len);
    } else if (what == 18) {
        model_extents(v, off, len);
    } else if (sim_random(sim, 6) == 0) {
        assert_int_equal(partition_settle(pc.p), 0);
    } else {
        env_sleep(pc.c.env, sim_random(sim, ENV_NS_PER_S));
    }
}

static void model_all(struct block_volume *v)
{
    model_check(v, 0, MODEL);
    model_extents(v, 0, MODEL);
}

struct life {
    unsigned steps;
    bool first, kill;
};

static void model_main(void *arg)
{
    const struct life *life = arg;
    struct block_volume *v;

    partition_case_open(&pc);
    if (life->first)
        v = make("v", MODEL);
    else
        assert_int_equal(block_open(pc.bs, "v", &v), 0);
    model_all(v);
    for (unsigned i = 0; i < life->steps; i++)
        model_step(v);
    if (life->kill) {
        sim_pause(pc.c.sim); /* every write so far was acknowledged */
        env_sleep(pc.c.env, ENV_NS_PER_S);
    }
    model_all(v);
    assert_int_equal(partition_settle(pc.p), 0);
    model_all(v);
    block_close(v);
    close_ok();
}

static void run_model(uint64_t seed, unsigned lives, int kills)
{
    model = calloc(1, MODEL);
    for (unsigned i = 0; i <= lives; i++) {
        struct life life = {i == lives ? 0 : 120, i == 0, kills && i < lives};

        if (life.kill)
            sim_case_run_and_kill(&pc.c, model_main, &life, (seed + i) % 2);
        else
            sim_case_run(&pc.c, model_main, &life);
    }
    free(model);
}

static void test_model(void **state)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        teardown(state);
        partition_case_init(&pc, seed);
        run_model(seed, 3, seed % 3 != 0);
    }
}

/* The same on the smallest media: everything is full, wraps and is swept all the time. */
static void test_model_small(void **state)
{
    for (uint64_t seed = 20; seed <= 26; seed++) {
        teardown(state);
        partition_case_init(&pc, seed);
        pc.journal = FORMAT_JOURNAL_MIN + seed % 3 * FORMAT_UNIT;
        pc.slot_size = FORMAT_SLOT_MIN;
        pc.slots = 60;
        pc.drives = seed % 2 ? 1 : 3;
        pc.m = pc.drives - 1 > 1;
        pc.options.cache_bytes = 20000;
        run_model(seed, 2, seed % 3 != 0);
    }
}

/* Parts of one block written at the same time: none gets lost. */
static struct fiber_group parts;

static void part_fiber(void *arg)
{
    uint64_t i = (uint64_t)(uintptr_t)arg;
    struct block_volume *v;

    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned round = 0; round < 4; round++)
        write_seed(v, i * 700, 700, i + 100 * round);
    block_close(v);
    fiber_group_done(&parts);
}

static void parts_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", MIB);
    fiber_group_init(&parts);
    fiber_group_add(&parts, 20);
    for (uintptr_t i = 0; i < 20; i++)
        fiber_spawn(pc.c.env, "part", part_fiber, (void *)i);
    fiber_group_wait(&parts);
    for (uint64_t i = 0; i < 20; i++)
        expect_seed(v, i * 700, 700, i + 300);
    expect_zero(v, 14000, 4000);
    block_close(v);
    close_ok();
}

static void test_parts(void **state)
{
    (void)state;
    sim_case_run(&pc.c, parts_main, NULL);
}

/* Blocks written again while their older version is being drained: the newer one stays. */
static bool draining;

static void drain_fiber(void *arg)
{
    (void)arg;
    while (draining)
        assert_int_equal(partition_settle(pc.p), 0);
    fiber_group_done(&parts);
}

static void overwrite_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", MIB);
    draining = true;
    fiber_group_init(&parts);
    fiber_group_add(&parts, 1);
    fiber_spawn(pc.c.env, "drain", drain_fiber, NULL);
    for (uint64_t i = 0; i < 400; i++) {
        write_seed(v, i % 3 * 4096, 4096, i);
        if (i > 0)
            expect_seed(v, (i - 1) % 3 * 4096, 4096, i - 1);
    }
    draining = false;
    fiber_group_wait(&parts);
    for (uint64_t i = 397; i < 400; i++)
        expect_seed(v, i % 3 * 4096, 4096, i);
    assert_int_equal(partition_settle(pc.p), 0);
    for (uint64_t i = 397; i < 400; i++)
        expect_seed(v, i % 3 * 4096, 4096, i);
    block_close(v);
    close_ok();
}

static void test_overwrite_under_drain(void **state)
{
    (void)state;
    sim_case_run(&pc.c, overwrite_main, NULL);
}

/* ---- Holes ---- */

static void expect_extents(struct block_volume *v, uint64_t off, uint64_t len,
                           const struct block_extent *want, size_t n)
{
    struct block_extent got[16];
    size_t count = 0;

    assert_int_equal(block_extents(v, off, len, got, 16, &count), 0);
    assert_int_equal(count, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(got[i].length, want[i].length);
        assert_int_equal(got[i].hole, want[i].hole);
    }
}

static void extents_main(void *arg)
{
    struct block_extent want[] = {
        {MIB, true}, {8192, false}, {4096, true}, {300000 / 4096 * 4096 + 4096, false}};
    struct block_volume *v;
    struct block_extent got[3];
    uint64_t size = 1ull << 40;
    size_t n;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", size);
    expect_extents(v, 0, size, &(struct block_extent){size, true}, 1);
    expect_extents(v, 100, 1, &(struct block_extent){1, true}, 1);
    write_seed(v, MIB, 8192, 1);
    write_seed(v, MIB + 12288, 300000, 2);
    /* The same in the overlay and in the map. */
    for (unsigned settled = 0; settled < 2; settled++) {
        expect_extents(v, 0, MIB + 12288 + 303104, want, 4);
        expect_extents(v, MIB - 10, 20, (struct block_extent[]){{10, true}, {10, false}}, 2);
        expect_extents(v, MIB + 8000, 4500,
                       (struct block_extent[]){{192, false}, {4096, true}, {212, false}}, 3);
        expect_extents(v, MIB, 8192, &(struct block_extent){8192, false}, 1);
        assert_int_equal(block_extents(v, 0, size, got, 3, &n), 0);
        assert_int_equal(n, 3);
        assert_int_equal(got[2].length, 4096);
        assert_int_equal(block_extents(v, 0, size, got, 0, &n), 0);
        assert_int_equal(n, 0);
        assert_int_equal(partition_settle(pc.p), 0);
    }
    assert_int_equal(info_of(v).mapped, 8192 + 303104);
    write_seed(v, size - 4096, 4096, 3); /* far away: what lies between is passed over */
    assert_int_equal(block_extents(v, MIB + MIB / 2, size - MIB - MIB / 2, got, 3, &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(got[1].length, 4096);
    block_close(v);
    close_ok();
}

static void test_extents(void **state)
{
    (void)state;
    sim_case_run(&pc.c, extents_main, NULL);
}

/* Zeroes take no space, however they came. */
static void zeroes_main(void *arg)
{
    uint8_t *zero = calloc(1, MIB);
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 8 * MIB);
    assert_int_equal(block_write(v, 0, zero, 8192, 0), 0);
    assert_int_equal(block_write(v, MIB, zero, MIB, 0), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(info_of(v).mapped, 0);
    assert_int_equal(partition_case_status(&pc).stored, 0);
    write_seed(v, 0, 2 * MIB, 1);
    write_seed(v, 4 * MIB, 4096, 2);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(info_of(v).mapped, 2 * MIB + 4096);
    assert_int_equal(block_write(v, 4 * MIB, zero, 4096, 0), 0);
    assert_int_equal(block_zero(v, 1000, 2000, 0), 0);  /* within a block */
    assert_int_equal(block_zero(v, 5000, 10000, 0), 0); /* edges, and a block between */
    assert_int_equal(block_discard(v, MIB, 7 * MIB, 0), 0);
    expect_zero(v, 1000, 2000);
    expect_zero(v, 5000, 10000);
    expect_zero(v, MIB, 7 * MIB);
    expect_seed(v, 0, 1000, 1);
    assert_int_equal(partition_settle(pc.p), 0);
    expect_zero(v, 1000, 2000);
    expect_zero(v, 5000, 10000);
    expect_zero(v, MIB, 7 * MIB);
    assert_int_equal(info_of(v).mapped, MIB - 4096);
    assert_int_equal(block_discard(v, 0, 8 * MIB, 0), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(info_of(v).mapped, 0);
    assert_int_equal(partition_case_status(&pc).stored, 0);
    free(zero);
    block_close(v);
    close_ok();
}

static void test_zeroes(void **state)
{
    (void)state;
    sim_case_run(&pc.c, zeroes_main, NULL);
}

/* ---- Size ---- */

static void resize_main(void *arg)
{
    bool settle = *(bool *)arg;
    struct block_volume *v;

    partition_case_open(&pc);
    v = make("v", 4 * MIB);
    write_seed(v, 0, 4 * MIB, 1);
    write_seed(v, 3 * MIB + 4096, 4096, 2);
    if (settle)
        assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(block_resize(pc.bs, "v", 2 * MIB + 4096), 0);
    assert_int_equal(info_of(v).size, 2 * MIB + 4096);
    assert_int_equal(block_write(v, 2 * MIB, "xx", 2, 0), 0);
    assert_int_equal(block_write(v, 2 * MIB + 4095, "xx", 2, 0), ERR_RANGE);
    expect_seed(v, 0, 2 * MIB, 1);
    assert_int_equal(block_resize(pc.bs, "v", 6 * MIB), 0);
    expect_zero(v, 2 * MIB + 4096, 4 * MIB - 4096); /* never the old bytes */
    write_seed(v, 5 * MIB, 100000, 3);
    if (settle)
        assert_int_equal(partition_settle(pc.p), 0);
    block_close(v);
    close_ok();
    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    assert_int_equal(info_of(v).size, 6 * MIB);
    expect_seed(v, 0, 2 * MIB, 1);
    expect_zero(v, 2 * MIB + 4096, 3 * MIB - 4096);
    expect_seed(v, 5 * MIB, 100000, 3);
    block_close(v);
    close_ok();
}

static void test_resize(void **state)
{
    for (int i = 0; i < 2; i++) {
        bool settle = i;

        teardown(state);
        setup(state);
        sim_case_run(&pc.c, resize_main, &settle);
    }
}

/* Writers at work while the volume shrinks: each write is before it, or refused. */
static unsigned refused;

static void shrink_writer(void *arg)
{
    struct block_volume *v;
    uint8_t *p = calloc(1, 100000);

    (void)arg;
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t off = sim_random(pc.c.sim, 4 * MIB - 100000);
        int rc;

        memset(p, 7, 100000);
        rc = block_write(v, off, p, 1 + sim_random(pc.c.sim, 100000), 0);
        assert_true(rc == 0 || rc == ERR_RANGE);
        refused += rc == ERR_RANGE;
    }
    free(p);
    block_close(v);
    fiber_group_done(&parts);
}

static void shrink_race_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    refused = 0;
    partition_case_open(&pc);
    v = make("v", 4 * MIB);
    fiber_group_init(&parts);
    fiber_group_add(&parts, 3);
    for (unsigned i = 0; i < 3; i++)
        fiber_spawn(pc.c.env, "writer", shrink_writer, NULL);
    env_sleep(pc.c.env, 5 * ENV_NS_PER_MS);
    assert_int_equal(block_resize(pc.bs, "v", MIB), 0);
    fiber_group_wait(&parts);
    assert_true(refused > 0);
    assert_int_equal(block_resize(pc.bs, "v", 4 * MIB), 0);
    expect_zero(v, MIB, 3 * MIB);
    assert_int_equal(partition_settle(pc.p), 0);
    expect_zero(v, MIB, 3 * MIB);
    block_close(v);
    close_ok();
}

static void test_shrink_race(void **state)
{
    (void)state;
    sim_case_run(&pc.c, shrink_race_main, NULL);
}

/* ---- Space ---- */

static void wait_reaped(void)
{
    struct partition_status s;

    for (unsigned i = 0; i < 600; i++) {
        s = partition_case_status(&pc);
        if (s.stored == 0 && s.logical == 0 && s.overlay_bytes == 0)
            return;
        env_sleep(pc.c.env, 100 * ENV_NS_PER_MS);
    }
    fail_msg("space did not come back");
}

static void delete_main(void *arg)
{
    struct block_volume *v;
    struct partition_status s;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 16 * MIB);
    for (unsigned i = 0; i < 12; i++)
        write_seed(v, (uint64_t)i * MIB, MIB, i + 1);
    write_seed(v, 15 * MIB, 5000, 99); /* in the overlay still */
    s = partition_case_status(&pc);
    assert_true(s.logical >= 12 * MIB && s.stored >= 12 * MIB && s.physical > 0);
    block_close(v);
    assert_int_equal(block_remove(pc.bs, "v"), 0);
    v = make("v", 16 * MIB); /* at once: another volume */
    expect_zero(v, 0, 16 * MIB);
    wait_reaped();
    block_close(v);
    assert_int_equal(partition_case_status(&pc).volumes, 1);
    assert_int_equal(partition_settle(pc.p), 0);
    /* Sealed segments went; the metadata's copy has got one. */
    assert_true(partition_case_status(&pc).physical < s.physical + pc.drives * FORMAT_SLOT_SIZE);
    close_ok();
    partition_case_open(&pc);
    assert_int_equal(partition_case_status(&pc).volumes, 1);
    assert_int_equal(partition_case_status(&pc).stored, 0);
    close_ok();
}

static void test_delete(void **state)
{
    (void)state;
    sim_case_run(&pc.c, delete_main, NULL);
}

/* Killed right after a delete was acknowledged: it stays deleted, and the space comes back later.
 */
static void delete_kill_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 16 * MIB);
    for (unsigned i = 0; i < 12; i++)
        write_seed(v, (uint64_t)i * MIB, MIB, i + 1);
    block_close(v);
    assert_int_equal(block_remove(pc.bs, "v"), 0);
    sim_pause(pc.c.sim);
    env_sleep(pc.c.env, ENV_NS_PER_S);
}

static void after_delete_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "v", &v), ERR_NOENT);
    wait_reaped();
    close_ok();
}

static void test_delete_and_kill(void **state)
{
    (void)state;
    sim_case_run_and_kill(&pc.c, delete_kill_main, NULL, true);
    sim_case_run(&pc.c, after_delete_main, NULL);
}

/* The same content, stored once. */
static void dedup_main(void *arg)
{
    struct block_volume *a, *b;
    struct partition_status s;

    (void)arg;
    partition_case_open(&pc);
    a = make("a", 4 * MIB);
    b = make("b", 4 * MIB);
    write_seed(a, 0, 2 * MIB, 1);
    write_seed(b, MIB, 2 * MIB, 1);
    write_seed(a, 2 * MIB, 40960, 1); /* through the journal and the drainer */
    assert_int_equal(partition_settle(pc.p), 0);
    s = partition_case_status(&pc);
    assert_int_equal(s.logical, 4 * MIB + 40960);
    assert_int_equal(s.unique, 2 * MIB);
    assert_int_equal(s.chunks.chunks, 512);
    expect_seed(b, MIB, 2 * MIB, 1);
    assert_int_equal(block_discard(a, 0, 4 * MIB, 0), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    expect_seed(b, MIB, 2 * MIB, 1);
    assert_int_equal(partition_case_status(&pc).unique, 2 * MIB);
    block_close(a);
    block_close(b);
    close_ok();
}

static void test_dedup(void **state)
{
    (void)state;
    sim_case_run(&pc.c, dedup_main, NULL);
}

/* Full: writes are refused, reads and discards go on, and then writes do again. */
static void full_main(void *arg)
{
    struct block_volume *v;
    uint8_t *p = malloc(MIB + 8);
    unsigned n = 0, again = 0;
    int rc;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 1024 * (uint64_t)MIB);
    for (;; n++) {
        sim_case_bytes(n + 1, p, MIB);
        rc = block_write(v, (uint64_t)n * MIB, p, MIB, 0);
        if (rc < 0)
            break;
    }
    assert_int_equal(rc, ERR_NOSPC);
    assert_true(n > 20);
    assert_int_equal(block_write(v, 900 * (uint64_t)MIB, "x", 1, 0), ERR_NOSPC);
    assert_int_equal(partition_case_status(&pc).free, 0);
    for (unsigned i = 0; i < n; i++)
        expect_seed(v, (uint64_t)i * MIB, MIB, i + 1);
    assert_int_equal(block_discard(v, 0, (uint64_t)n * MIB, 0), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_true(partition_case_status(&pc).free > 0);
    for (; again < n / 2; again++) {
        sim_case_bytes(again + 1000, p, MIB);
        assert_int_equal(block_write(v, (uint64_t)again * MIB, p, MIB, 0), 0);
    }
    for (unsigned i = 0; i < again; i++)
        expect_seed(v, (uint64_t)i * MIB, MIB, i + 1000);
    free(p);
    block_close(v);
    close_ok();
}

static void test_full(void **state)
{
    (void)state;
    pc.slots = 9;
    sim_case_run(&pc.c, full_main, NULL);
}

/* More small writes at once than the overlay holds: they wait, and all are there. */
static void overlay_fiber(void *arg)
{
    uint64_t i = (uint64_t)(uintptr_t)arg;
    struct block_volume *v;

    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (unsigned k = 0; k < 12; k++)
        write_seed(v, (i * 12 + k) * 32768, 32768, i * 12 + k + 1);
    block_close(v);
    fiber_group_done(&parts);
}

static void overlay_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 16 * MIB);
    fiber_group_init(&parts);
    fiber_group_add(&parts, 16);
    for (uintptr_t i = 0; i < 16; i++)
        fiber_spawn(pc.c.env, "writer", overlay_fiber, (void *)i);
    while (parts.pending) {
        assert_true(partition_case_status(&pc).overlay_bytes <= pc.options.overlay_bytes);
        env_sleep(pc.c.env, ENV_NS_PER_MS);
    }
    for (unsigned i = 0; i < 16 * 12; i++)
        expect_seed(v, i * 32768ull, 32768, i + 1);
    block_close(v);
    close_ok();
}

static void test_overlay_bound(void **state)
{
    (void)state;
    sim_case_run(&pc.c, overlay_main, NULL);
}

/* ---- Drives ---- */

static unsigned dead;

static int hook_dead(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    (void)io;
    return dead >> store_case_drive(path) & 1 ? ERR_IO : 0;
}

static void drive_dies_main(void *arg)
{
    struct block_volume *v;
    struct partition_status s;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 16 * MIB);
    write_seed(v, 0, 4 * MIB, 1);
    write_seed(v, 8 * MIB, 4096, 2);
    dead = 2;
    expect_seed(v, 0, 4 * MIB, 1); /* from the other two */
    write_seed(v, 4 * MIB, 2 * MIB, 3);
    write_seed(v, 9 * MIB, 4096, 4);
    assert_int_equal(partition_settle(pc.p), 0);
    expect_seed(v, 0, 4 * MIB, 1);
    expect_seed(v, 4 * MIB, 2 * MIB, 3);
    expect_seed(v, 8 * MIB, 4096, 2);
    expect_seed(v, 9 * MIB, 4096, 4);
    s = partition_case_status(&pc);
    assert_int_equal(s.broken, 0);
    assert_int_equal(s.current_k, 1);
    assert_int_equal(s.current_m, 1);
    assert_int_equal(partition_drives(pc.p)->drives[1].state, DRIVE_FAILED);
    block_close(v);
    close_ok();
}

static void drive_back_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    expect_seed(v, 0, 4 * MIB, 1);
    expect_seed(v, 4 * MIB, 2 * MIB, 3);
    expect_seed(v, 9 * MIB, 4096, 4);
    block_close(v);
    close_ok();
}

static void test_drive_dies(void **state)
{
    (void)state;
    pc.c.hook = hook_dead;
    dead = 0;
    sim_case_run(&pc.c, drive_dies_main, NULL);
    sim_case_run(&pc.c, drive_back_main, NULL); /* without it */
    dead = 0;
    sim_case_run(&pc.c, drive_back_main, NULL); /* and with it */
}

/* All gone: writes are told so, at once and for good; nothing hangs. */
static void all_die_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 16 * MIB);
    write_seed(v, 0, 8192, 1);
    dead = 7;
    assert_int_equal(block_write(v, 0, "x", 1, 0), ERR_LOST);
    assert_true(block_write(v, 0, "x", 1, 0) < 0);
    assert_int_equal(block_flush(v), ERR_LOST);
    assert_true(block_create(pc.bs, "w", MIB, 0) < 0);
    assert_true(partition_settle(pc.p) < 0);
    expect_seed(v, 0, 8192, 1); /* in memory */
    assert_int_equal(partition_case_status(&pc).broken, ERR_LOST);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), ERR_LOST);
}

static void after_all_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    expect_seed(v, 0, 8192, 1);
    block_close(v);
    close_ok();
}

static void test_all_drives_die(void **state)
{
    (void)state;
    pc.c.hook = hook_dead;
    dead = 0;
    sim_case_run(&pc.c, all_die_main, NULL);
    dead = 0;
    sim_case_run(&pc.c, after_all_main, NULL);
}

/* ---- Opening ---- */

static void refused_main(void *arg)
{
    struct driveset_params params = {.count = 3,
                                     .paths = store_case_paths(3),
                                     .k = 2,
                                     .m = 1,
                                     .slot_count = 12,
                                     .journal_len = 4u << 20};
    struct partition *second;
    struct partition_start start;
    struct kv *other;
    bool exists = true;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(partition_format(pc.c.env, pc.kv, &params), ERR_EXIST);
    assert_int_equal(partition_open(pc.c.env, pc.kv, params.paths, 3, &pc.options, &start, &second),
                     ERR_LOCKED);
    close_ok();
    /* A KV store that is not these drives': an empty one, or another's. */
    assert_int_equal(kv_mem_open(pc.c.env, NULL, &other), 0);
    assert_int_equal(partition_exists(other, &exists), 0);
    assert_false(exists);
    assert_int_equal(partition_open(pc.c.env, other, params.paths, 3, &pc.options, &start, &second),
                     ERR_KV);
    assert_int_equal(partition_format(pc.c.env, other, &params), ERR_EXIST);
    for (unsigned i = 0; i < 3; i++)
        sim_file_corrupt(pc.c.sim, params.paths[i], 0, FORMAT_JOURNAL_OFF);
    assert_int_equal(partition_format(pc.c.env, other, &params), 0);
    assert_int_equal(kv_close(other), 0);
    assert_int_equal(partition_case_try_open(&pc), ERR_KV);
    assert_int_equal(partition_close(NULL), 0);
}

static void test_refused(void **state)
{
    (void)state;
    sim_case_run(&pc.c, refused_main, NULL);
}

/* The KV store went back to an older state than the journal reaches (a restored backup). */
static void old_kv_main(void *arg)
{
    struct kv_mem_image *image = pc.image;
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 16 * MIB);
    for (unsigned i = 0; i < 8; i++)
        write_seed(v, (uint64_t)i * 4096, 4096, i + 1);
    block_close(v);
    close_ok();
    /* Marked as this store's, and empty otherwise. */
    pc.image = kv_mem_image_new();
    {
        struct driveset *ds = store_case_open(&pc.c, 3);
        struct kv_batch *b = kv_batch_new();
        struct kv *kv;

        assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
        kv_batch_put(b, KV_META, (struct kv_slice){"store", 5},
                     (struct kv_slice){ds->super.store_uuid, 16});
        assert_int_equal(kv_write(kv, b), 0);
        kv_batch_free(b);
        assert_int_equal(kv_close(kv), 0);
        driveset_close(ds);
    }
    assert_int_equal(partition_case_try_open(&pc), ERR_KV);
    {
        void *saved;

        sim_outside_enter(&saved);
        kv_mem_image_free(pc.image);
        sim_outside_leave(saved);
    }
    pc.image = image;
    partition_case_open(&pc);
    close_ok();
}

static void test_old_kv(void **state)
{
    (void)state;
    sim_case_run(&pc.c, old_kv_main, NULL);
}

/* The journal lost what the KV store knows of. */
static void lost_journal_main(void *arg)
{
    (void)arg;
    assert_int_equal(partition_case_try_open(&pc), ERR_JOURNAL);
}

static void fill_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    v = make("v", 16 * MIB);
    for (unsigned i = 0; i < 8; i++)
        write_seed(v, (uint64_t)i * 4096, 4096, i + 1);
    assert_int_equal(kv_flush(pc.kv), 0);
    sim_pause(pc.c.sim);
    env_sleep(pc.c.env, ENV_NS_PER_S);
}

static void test_lost_journal(void **state)
{
    (void)state;
    sim_case_run_and_kill(&pc.c, fill_main, NULL, false);
    sim_file_corrupt(pc.c.sim, "d0", FORMAT_JOURNAL_OFF, pc.journal);
    sim_file_corrupt(pc.c.sim, "d1", FORMAT_JOURNAL_OFF, pc.journal);
    sim_case_run(&pc.c, lost_journal_main, NULL);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_observe),        CASE(test_admin),
        CASE(test_create_race),    CASE(test_bounds),
        CASE(test_model),          CASE(test_model_small),
        CASE(test_parts),          CASE(test_overwrite_under_drain),
        CASE(test_extents),        CASE(test_zeroes),
        CASE(test_resize),         CASE(test_shrink_race),
        CASE(test_delete),         CASE(test_delete_and_kill),
        CASE(test_dedup),          CASE(test_full),
        CASE(test_overlay_bound),  CASE(test_drive_dies),
        CASE(test_all_drives_die), CASE(test_refused),
        CASE(test_old_kv),         CASE(test_lost_journal),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

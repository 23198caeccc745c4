/* The file system under file-backed drives is full: users are told so and do not wait, no drive is
 * put out for it, what was acknowledged stays, and all goes on once there is space again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "daemon/partition_priv.h"
#include "tests/unit/daemon/partition_case.h"

#define MIB (1u << 20)

static struct partition_case pc;
static bool no_reserve; /* the file system cannot tell beforehand */

static void host_full(bool full)
{
    struct sim_faults f = {.nospc = full ? 1000000 : 0, .no_reserve = full && no_reserve};

    sim_set_faults(pc.c.sim, &f);
}

static int write_at(struct block_volume *v, uint64_t off, size_t len, uint64_t seed)
{
    uint8_t *p = malloc(len + 8);
    int rc;

    sim_case_bytes(seed, p, len);
    rc = block_write(v, off, p, len, 0);
    free(p);
    return rc;
}

static void expect_at(struct block_volume *v, uint64_t off, size_t len, uint64_t seed)
{
    uint8_t *want = malloc(len + 8), *got = malloc(len);

    sim_case_bytes(seed, want, len);
    assert_int_equal(block_read(v, off, got, len), 0);
    assert_memory_equal(got, want, len);
    free(want);
    free(got);
}

/* Opens the partition and a new volume in it. */
static struct block_volume *open_new(void)
{
    struct block_volume *v;

    partition_case_open(&pc);
    assert_int_equal(block_create(pc.bs, "v", 32 * MIB, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    return v;
}

/* In a partition with the smallest journal. */
static void run_small(void (*main)(void *arg), uint64_t overlay_bytes)
{
    no_reserve = false;
    partition_case_init(&pc, 1);
    pc.journal = FORMAT_JOURNAL_MIN;
    if (overlay_bytes)
        pc.options.overlay_bytes = overlay_bytes;
    log_set_level((enum log_level)(LOG_ERROR + 1)); /* each drain that fails is logged */
    sim_case_run(&pc.c, main, NULL);
    partition_case_free(&pc);
}

/* Small writes go to the overlay until that is full, and it cannot be drained. */
static uint64_t write_until_refused(struct block_volume *v)
{
    uint64_t n = 0;
    int rc;

    while ((rc = write_at(v, MIB + n * BLOCK_SIZE, BLOCK_SIZE, 100 + n)) == 0)
        assert_true(++n < 4096);
    assert_int_equal(rc, ERR_NOSPC);
    return n;
}

static void full_main(void *arg)
{
    struct block_volume *v;
    uint64_t n;

    (void)arg;
    v = open_new();
    host_full(true);
    assert_int_equal(write_at(v, 0, 256 * 1024, 1), ERR_NOSPC);
    n = write_until_refused(v);
    assert_true(n > 0);
    assert_int_equal(partition_settle(pc.p), ERR_NOSPC);
    assert_int_equal(driveset_healthy(partition_drives(pc.p)), pc.drives);
    host_full(false);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(write_at(v, 0, 256 * 1024, 2), 0);
    assert_int_equal(partition_case_status(&pc).thin_segments, 0);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);

    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    expect_at(v, 0, 256 * 1024, 2);
    for (uint64_t i = 0; i < n; i++)
        expect_at(v, MIB + i * BLOCK_SIZE, BLOCK_SIZE, 100 + i);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void full(bool without_reserve)
{
    no_reserve = without_reserve;
    partition_case_init(&pc, 1);
    pc.options.overlay_bytes = 64 * BLOCK_SIZE;
    log_set_level((enum log_level)(LOG_ERROR + 1)); /* each drain that fails is logged */
    sim_case_run(&pc.c, full_main, NULL);
    partition_case_free(&pc);
}

static void test_full(void **state)
{
    (void)state;
    full(false);
}

static void test_full_without_reserve(void **state)
{
    (void)state;
    full(true);
}

/* The metadata's copy finds room in segments that are there already, draining does not: checkpoints
 * that let nothing go would fill the journal, and draining could not go on any more. */
static void long_main(void *arg)
{
    struct block_volume *v;
    struct journal_stats before, after;
    uint64_t n = 32;

    (void)arg;
    v = open_new();
    assert_int_equal(partition_checkpoint(pc.p), 0);
    host_full(true);
    for (uint64_t i = 0; i < n; i++)
        assert_int_equal(write_at(v, i * BLOCK_SIZE, BLOCK_SIZE, i), 0);
    journal_get_stats(pc.p->journal, &before);
    env_sleep(pc.c.env, 600 * ENV_NS_PER_S);
    journal_get_stats(pc.p->journal, &after);
    assert_true(after.used <= before.used + 16 * FORMAT_UNIT);
    for (unsigned i = 0; i < 60; i++) { /* as membership does, while a drive is leaving */
        assert_int_equal(partition_checkpoint(pc.p), 0);
        env_sleep(pc.c.env, 5 * ENV_NS_PER_S);
    }
    journal_get_stats(pc.p->journal, &after);
    assert_true(after.used > after.size / 8 * 6);
    assert_true(after.used <= after.size / 8 * 7 + 2 * FORMAT_UNIT);
    host_full(false);
    assert_int_equal(partition_settle(pc.p), 0);
    env_sleep(pc.c.env, 10 * ENV_NS_PER_S);
    journal_get_stats(pc.p->journal, &after);
    assert_true(after.used < before.used);
    for (uint64_t i = 0; i < n; i++)
        expect_at(v, i * BLOCK_SIZE, BLOCK_SIZE, i);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_full_for_long(void **state)
{
    (void)state;
    run_small(long_main, 0);
}

/* The journal is full before the overlay is: small writes are refused then too, and a stop ends,
 * though a pass of scrub is to note where it is. */
static void journal_first_main(void *arg)
{
    struct block_volume *v;
    struct journal_stats journal;
    uint64_t n;

    (void)arg;
    v = open_new();
    host_full(true);
    n = write_until_refused(v);
    journal_get_stats(pc.p->journal, &journal);
    assert_true(journal.used > journal.size / 2);
    assert_true(n > 16 && n < pc.options.overlay_bytes / BLOCK_SIZE);
    (void)partition_scrub_start(pc.p);
    env_sleep(pc.c.env, 100 * ENV_NS_PER_S);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), ERR_NOSPC);
    host_full(false);

    partition_case_open(&pc);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    for (uint64_t i = 0; i < n; i++)
        expect_at(v, MIB + i * BLOCK_SIZE, BLOCK_SIZE, 100 + i);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_journal_first(void **state)
{
    (void)state;
    run_small(journal_first_main, 16 * MIB);
}

/* No stripe can be written, but headers of segments can: trying again and again takes no journal,
 * and no segments. */
static bool no_stripes;

static int deny_stripes(void *arg, const char *path, const struct env_io *io)
{
    const struct format_super *super = &pc.p->ds->super;

    (void)arg;
    (void)path;
    if (!no_stripes || io->kind != ENV_WRITE || io->off < super->slots_off)
        return 0;
    return (io->off - super->slots_off) % super->slot_size ? ERR_NOSPC : 0;
}

static void no_stripes_main(void *arg)
{
    struct block_volume *v;
    struct journal_stats before, after;

    (void)arg;
    v = open_new();
    pc.c.hook = deny_stripes;
    no_stripes = true;
    for (uint64_t i = 0; i < 16; i++)
        assert_int_equal(write_at(v, i * BLOCK_SIZE, BLOCK_SIZE, i), 0);
    env_sleep(pc.c.env, 100 * ENV_NS_PER_S);
    journal_get_stats(pc.p->journal, &before);
    env_sleep(pc.c.env, 3 * 3600 * ENV_NS_PER_S);
    journal_get_stats(pc.p->journal, &after);
    assert_true(after.used <= before.used + 16 * FORMAT_UNIT);
    no_stripes = false;
    assert_int_equal(partition_settle(pc.p), 0);
    for (uint64_t i = 0; i < 16; i++)
        expect_at(v, i * BLOCK_SIZE, BLOCK_SIZE, i);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
    pc.c.hook = NULL;
}

static void test_no_stripes(void **state)
{
    (void)state;
    run_small(no_stripes_main, 0);
}

/* The partition breaks while writes wait for room in the journal: they are told, and a stop ends.
 */
static struct block_volume *broken_v;
static unsigned broken_told;

static void broken_writer(void *arg)
{
    assert_int_equal(write_at(broken_v, (uint64_t)(uintptr_t)arg * BLOCK_SIZE, BLOCK_SIZE, 1),
                     ERR_KV);
    broken_told++;
}

static void broken_main(void *arg)
{
    const uintptr_t writers = 100;

    (void)arg;
    broken_told = 0;
    broken_v = open_new();
    fiber_mutex_lock(&pc.p->applying); /* what is durable cannot be applied */
    for (uintptr_t i = 0; i < writers; i++)
        fiber_spawn(pc.c.env, "writer", broken_writer, (void *)i);
    env_sleep(pc.c.env, 10 * ENV_NS_PER_S);
    assert_int_equal(broken_told, 0);
    assert_false(journal_has_room_for(pc.p->journal, BLOCK_SIZE, 0));
    partition_break(pc.p, ERR_KV);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(broken_told, writers - 1);
    fiber_mutex_unlock(&pc.p->applying); /* the last one's record was about to be applied */
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(broken_told, writers);
    block_close(broken_v);
    assert_int_equal(partition_case_close(&pc), ERR_KV);
}

static void test_broken(void **state)
{
    (void)state;
    run_small(broken_main, 0);
}

/* One that is full as a store is made. */
static void format_main(void *arg)
{
    struct driveset_params params = {.count = 3,
                                     .paths = store_case_paths(3),
                                     .k = 2,
                                     .m = 1,
                                     .slot_count = 8,
                                     .journal_len = FORMAT_JOURNAL_MIN};

    (void)arg;
    host_full(true);
    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &pc.kv), 0);
    assert_int_equal(partition_format(pc.c.env, pc.kv, &params), ERR_NOSPC);
    assert_int_equal(kv_close(pc.kv), 0);
    host_full(false);
}

static void test_format(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    sim_case_run(&pc.c, format_main, NULL);
    partition_case_free(&pc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full),          cmocka_unit_test(test_full_without_reserve),
        cmocka_unit_test(test_full_for_long), cmocka_unit_test(test_journal_first),
        cmocka_unit_test(test_no_stripes),    cmocka_unit_test(test_broken),
        cmocka_unit_test(test_format),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

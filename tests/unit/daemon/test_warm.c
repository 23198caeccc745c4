/* Records that need rows which are not in memory: who submits one waits for the KV store, and
 * nobody else does. Where rows cannot be read at all, nobody waits for ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/sim/instances.h"
#include "tests/unit/daemon/partition_case.h"
#include "tests/unit/dedup/lag_kv.h"

#define MIB       (1u << 20)
#define LENGTH    (2u * MIB)
#define READ_LAG  ENV_NS_PER_S
#define WRITE_GAP ENV_NS_PER_MS
#define LEAF      (256u * 1024)
#define LEAVES    160u /* more than two records merge */

static struct partition_case pc;
static uint64_t no_lag, lag; /* of writes, of reads of rows that are not at hand */
static uint8_t *bytes;

static struct kv *wrap(struct env *env, struct kv *kv)
{
    return lag_kv_new(env, kv, &no_lag);
}

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    pc.slots = 40;
    pc.options.on_conflict = PARTITION_REPLACE;
    pc.options.cache_bytes = MIB; /* what one record needs has its place */
    pc.wrap = wrap;
    lag = READ_LAG;
    bytes = mem_alloc(2 * (size_t)LENGTH);
    sim_case_bytes(1, bytes, 2 * (size_t)LENGTH);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    mem_free(bytes);
    return 0;
}

static struct block_volume *volume(const char *name)
{
    struct block_volume *v;

    CHECK_OK(block_open(pc.bs, name, &v));
    return v;
}

/* ---- The acts ---- */

static void put_object(const uint8_t *p)
{
    struct bucket_put_info info = {.bucket = "b", .name = "o"};
    struct bucket_put_result result;
    struct bucket_put *put;

    assert_int_equal(bucket_put_begin(partition_buckets(pc.p), &info, &put), 0);
    assert_int_equal(bucket_put_append(put, p, LENGTH), 0);
    assert_int_equal(bucket_put_commit(put, &result), 0);
}

static void put_instance(int content, enum object_put_outcome outcome)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    struct object_put_info info = {0};
    struct object_put_result result;
    struct object_put *put;

    instance_make(0, content, &s);
    assert_int_equal(object_put_begin(pc.os, &info, &put), 0);
    assert_int_equal(object_put_append(put, s.data, s.len), 0);
    assert_int_equal(object_put_commit(put, &result), 0);
    assert_int_equal(result.outcome, outcome);
}

/* A block in each of LEAVES leaves, once for a snapshot and once since. */
static void fill_snapshot(void)
{
    const char *name = "s";
    struct block_volume *v;

    CHECK_OK(block_create(pc.bs, name, 2 * (uint64_t)LEAVES * LEAF, BLOCK_EVERY_WRITE));
    v = volume(name);
    for (unsigned i = 0; i < LEAVES; i++)
        CHECK_OK(block_write(v, (uint64_t)i * LEAF, bytes + i * 4096ull, 4096, 0));
    CHECK_OK(block_snapshot(pc.bs, &name, 1, "old"));
    for (unsigned i = 0; i < LEAVES; i++)
        CHECK_OK(block_write(v, (uint64_t)i * LEAF, bytes + LENGTH + i * 4096ull, 4096, 0));
    block_close(v);
}

static void act_merge(void)
{
    struct block_info info;

    assert_int_equal(block_snapshot_remove(pc.bs, "s", "old"), 0);
    do {
        env_sleep(pc.c.env, lag / 100);
        CHECK_OK(block_stat(pc.bs, "s", &info));
    } while (info.mapped > (uint64_t)LEAVES * 4096);
}

static void act_zero(void)
{
    struct block_volume *v = volume("z");

    assert_int_equal(block_zero(v, 0, LENGTH, 0), 0);
    block_close(v);
}

static void act_remove(void)
{
    assert_int_equal(bucket_object_remove(partition_buckets(pc.p), "b", "o"), 0);
}

static void act_replace(void)
{
    put_object(bytes + LENGTH);
}

static void act_delete(void)
{
    char study[OBJECT_UID_MAX + 1];
    struct object_delete_result result;

    instance_study_uid(0, study);
    assert_int_equal(object_remove(pc.os, study, NULL, NULL, &result), 0);
    assert_int_equal(result.instances, 1);
}

static void act_supersede(void)
{
    put_instance(1 + INSTANCE_HEADS, OBJECT_REPLACED);
}

/* ---- */

static struct {
    bool stop, stopped;
    uint64_t count, slowest;
} writer;

static void writer_fiber(void *arg)
{
    struct block_volume *v = volume("w");

    (void)arg;
    for (; !writer.stop; writer.count++) {
        uint64_t at = env_now(pc.c.env), took;

        assert_int_equal(block_write(v, writer.count % 16 * 4096, bytes, 4096, 0), 0);
        took = env_now(pc.c.env) - at;
        if (took > writer.slowest)
            writer.slowest = took;
        env_sleep(pc.c.env, WRITE_GAP);
    }
    block_close(v);
    writer.stopped = true;
}

static void fill_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    CHECK_OK(block_create(pc.bs, "z", 2 * (uint64_t)LENGTH, BLOCK_EVERY_WRITE));
    CHECK_OK(block_create(pc.bs, "w", MIB, BLOCK_EVERY_WRITE));
    CHECK_OK(bucket_create(partition_buckets(pc.p), "b"));
    v = volume("z");
    CHECK_OK(block_write(v, 0, bytes, LENGTH, 0));
    block_close(v);
    v = volume("w");
    CHECK_OK(block_write(v, 0, bytes + LENGTH, 16 * 4096, 0));
    block_close(v);
    put_object(bytes);
    put_instance(1, OBJECT_STORED);
    fill_snapshot();
    CHECK_OK(partition_settle(pc.p));
    CHECK_OK(partition_case_close(&pc));
}

static uint64_t took; /* by the act */

static void act_main(void *arg)
{
    void (*act)(void) = *(void (**)(void))arg;
    uint64_t at;

    partition_case_open(&pc);
    memset(&writer, 0, sizeof(writer));
    fiber_spawn(pc.c.env, "writer", writer_fiber, NULL);
    env_sleep(pc.c.env, ENV_NS_PER_S); /* its own rows are at hand */
    lag_kv_slow_reads(pc.kv, lag);
    writer.slowest = 0;
    at = env_now(pc.c.env);
    act();
    took = env_now(pc.c.env) - at;
    assert_true(took >= lag); /* the rows were not */
    writer.stop = true;
    lag_kv_slow_reads(pc.kv, 0);
    while (!writer.stopped)
        env_sleep(pc.c.env, WRITE_GAP);
    assert_true(writer.slowest < lag / 2);
    CHECK_OK(partition_case_close(&pc));
}

static void run(void (*act)(void))
{
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, act_main, &act);
}

static void test_zero(void **state)
{
    (void)state;
    run(act_zero);
}

static void test_remove(void **state)
{
    (void)state;
    run(act_remove);
}

static void test_replace(void **state)
{
    (void)state;
    run(act_replace);
}

static void test_delete(void **state)
{
    (void)state;
    run(act_delete);
}

static void test_supersede(void **state)
{
    (void)state;
    run(act_supersede);
}

static void test_merge(void **state)
{
    (void)state;
    lag = READ_LAG / 10; /* of many rows */
    run(act_merge);
}

/* With nobody about there is nobody to rest for. */
static void alone_main(void *arg)
{
    uint64_t at;

    (void)arg;
    partition_case_open(&pc);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    lag_kv_slow_reads(pc.kv, lag);
    at = env_now(pc.c.env);
    act_merge();
    took = env_now(pc.c.env) - at;
    CHECK_OK(partition_case_close(&pc));
}

static void test_reaper_rests(void **state)
{
    uint64_t alone;

    (void)state;
    lag = READ_LAG / 10;
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, alone_main, NULL);
    alone = took;
    assert_int_equal(teardown(state), 0);
    assert_int_equal(setup(state), 0);
    lag = READ_LAG / 10;
    run(act_merge);
    assert_true(took > alone * 3 / 2 && took < alone * 5 / 2);
}

/* ---- Rows that cannot be read ---- */

static void unreadable_main(void *arg)
{
    struct block_volume *v;
    uint64_t *written = arg;
    int rc = 0;

    partition_case_open(&pc);
    v = volume("w");
    lag_kv_fail_reads(pc.kv, ERR_KV);
    for (*written = 0; rc == 0; *written += rc == 0) {
        codec_put_le64(bytes, *written + 1); /* each is new */
        rc = block_write(v, *written % (MIB / 4096) * 4096, bytes, 4096, 0);
    }
    assert_int_equal(rc, ERR_KV);
    assert_int_equal(partition_case_status(&pc).broken, ERR_KV);
    block_close(v);
    lag_kv_fail_reads(pc.kv, 0);
    assert_int_equal(partition_case_close(&pc), ERR_KV);
}

static void readable_main(void *arg)
{
    uint64_t last = *(uint64_t *)arg;
    struct block_volume *v;

    assert_true(last > 0);
    partition_case_open(&pc);
    v = volume("w");
    assert_int_equal(block_read(v, (last - 1) % (MIB / 4096) * 4096, bytes, 4096), 0);
    assert_int_equal(codec_get_le64(bytes), last);
    block_close(v);
    CHECK_OK(partition_case_close(&pc));
}

static void test_unreadable(void **state)
{
    uint64_t written;

    (void)state;
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, unreadable_main, &written);
    sim_case_run(&pc.c, readable_main, &written);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(test_remove, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replace, setup, teardown),
        cmocka_unit_test_setup_teardown(test_delete, setup, teardown),
        cmocka_unit_test_setup_teardown(test_supersede, setup, teardown),
        cmocka_unit_test_setup_teardown(test_merge, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reaper_rests, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unreadable, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

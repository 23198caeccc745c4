/* A store that has lost rows of its metadata: whatever they were, fsck mends what follows from
 * others, and what refers to them can be deleted, overwritten or sent again. Nothing of it stops
 * the store, neither at once nor when its records are replayed, and afterwards no trace of the
 * damage is left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/audit.h"
#include "daemon/catalog.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/sim/instances.h"
#include "tests/unit/daemon/partition_case.h"

#define LENGTH    (512u << 10)
#define BLOCK     4096u
#define COUNT     4u /* instances, of two studies */
#define ROWS_DROP 4096u

static struct partition_case pc;
static uint8_t *bytes;

/* ---- What is in the store ---- */

static void put_object(const char *name, const uint8_t *p)
{
    struct bucket_put_info info = {.bucket = "b", .name = name};
    struct bucket_put_result result;
    struct bucket_put *put;

    assert_int_equal(bucket_put_begin(partition_buckets(pc.p), &info, &put), 0);
    assert_int_equal(bucket_put_append(put, p, LENGTH), 0);
    assert_int_equal(bucket_put_commit(put, &result), 0);
}

static void put_instance(unsigned index, int content)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    MEM_AUTO uint8_t *got = NULL;
    struct object_put_info info = {0};
    struct object_put_result result;
    struct object_put *put;
    struct object *o;
    size_t n = 0;

    instance_make(index, content, &s);
    assert_int_equal(object_put_begin(pc.os, &info, &put), 0);
    assert_int_equal(object_put_append(put, s.data, s.len), 0);
    assert_int_equal(object_put_commit(put, &result), 0);
    /* Whatever was lost of it: what is acknowledged can be read. */
    got = mem_alloc(s.len);
    assert_int_equal(object_open(pc.os, NULL, NULL, result.instance_uid, &o), 0);
    assert_int_equal(object_read(o, 0, got, s.len, &n), 0);
    assert_int_equal(n, s.len);
    object_close(o);
}

static void fill_main(void *arg)
{
    static const char *const name = "v";
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    CHECK_OK(block_create(pc.bs, "v", 2 * (uint64_t)LENGTH, BLOCK_EVERY_WRITE));
    CHECK_OK(bucket_create(partition_buckets(pc.p), "b"));
    CHECK_OK(bucket_create(partition_buckets(pc.p), "going"));
    CHECK_OK(block_open(pc.bs, "v", &v));
    CHECK_OK(block_write(v, 0, bytes, LENGTH, 0));
    CHECK_OK(block_snapshot(pc.bs, &name, 1, "s"));
    CHECK_OK(block_write(v, 0, bytes + LENGTH, LENGTH / 2, 0));
    block_close(v);
    put_object("deleted", bytes + BLOCK / 2);
    put_object("replaced", bytes + BLOCK / 4);
    for (unsigned i = 0; i < COUNT; i++)
        put_instance(i, 1);
    CHECK_OK(partition_settle(pc.p));
    CHECK_OK(partition_case_close(&pc));
}

/* ---- Losing rows, and what fsck makes of it ---- */

static struct loss {
    enum kv_table table;
    char level; /* the first byte of the keys that are lost; 0: all */
} losses[] = {
    {KV_CHUNK, 0},     {KV_SEGMENT, 0},   {KV_RECIPE, 0},    {KV_RECIPE, 'R'},
    {KV_RECIPE, 'C'},  {KV_CATALOG, 'T'}, {KV_CATALOG, 'S'}, {KV_CATALOG, 'P'},
    {KV_CATALOG, 'I'}, {KV_INDEX, 0},     {KV_MAP, 0},
};

static void lose(struct kv *kv, const struct loss *l)
{
    struct kv_batch *batch = kv_batch_new();
    struct kv_rows *rows;

    assert_int_equal(kv_scan(kv, l->table, (struct kv_slice){"", 1}, (struct kv_slice){"", 0},
                             ROWS_DROP, 8u << 20, 0, &rows),
                     0);
    for (size_t i = 0; i < rows->count; i++)
        if (!l->level || *(const char *)rows->rows[i].key.data == l->level)
            kv_batch_delete(batch, l->table, rows->rows[i].key);
    assert_true(kv_batch_count(batch) > 0);
    assert_int_equal(kv_write(kv, batch), 0);
    kv_batch_free(batch);
    kv_rows_free(rows);
}

static void on_found(void *arg, const struct audit_finding *f)
{
    if (arg)
        fail_msg("loss %zu: %s: %s", (size_t)((struct loss *)arg - losses), f->kind, f->text);
}

/* `clean`: nothing may be found. */
static void audit(struct kv *kv, bool repair, struct loss *clean)
{
    struct audit_params params = {.kv = kv, .repair = repair, .found = on_found, .arg = clean};
    struct audit_result result;

    assert_int_equal(audit_run(&params, &result), 0);
}

static void lose_main(void *arg)
{
    struct kv *kv;

    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    lose(kv, arg);
    audit(kv, true, NULL);
    assert_int_equal(kv_flush(kv), 0);
    assert_int_equal(kv_close(kv), 0);
}

/* ---- Getting rid of what is damaged ---- */

static void act_volume(void)
{
    struct block_volume *v;

    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    (void)block_read(v, 0, bytes + 2 * (size_t)LENGTH, LENGTH); /* what comes of it, comes of it */
    assert_int_equal(block_write(v, 0, bytes + BLOCK, LENGTH / 4, 0), 0);
    for (uint64_t at = LENGTH / 4; at < LENGTH / 2; at += BLOCK)
        assert_int_equal(block_write(v, at, bytes + at, BLOCK, 0), 0);
    assert_int_equal(block_zero(v, LENGTH / 2, LENGTH / 2, 0), 0);
    block_close(v);
    assert_int_equal(block_snapshot_remove(pc.bs, "v", "s"), 0);
    assert_int_equal(partition_settle(pc.p), 0);
}

static void act_objects(void)
{
    struct bucket_store *bs = partition_buckets(pc.p);
    int rc = bucket_object_remove(bs, "b", "deleted");

    assert_true(rc == 0 || rc == ERR_NOENT);
    put_object("replaced", bytes);
    assert_int_equal(bucket_remove(bs, "going", true), 0);
}

/* All are sent again, one with other content, and then deleted. */
static void act_instances(void)
{
    for (unsigned i = 0; i < COUNT; i++)
        put_instance(i, 1);
    put_instance(1, 1 + INSTANCE_HEADS);
    for (unsigned i = 0; i < INSTANCE_STUDIES; i++) {
        char study[OBJECT_UID_MAX + 1];
        struct object_delete_result result;
        int rc;

        instance_study_uid(i, study);
        rc = object_remove(pc.os, study, NULL, NULL, &result);
        assert_true(rc == 0 || rc == ERR_NOENT);
    }
}

static void act_all(void)
{
    act_instances();
    act_objects();
    act_volume();
}

static void check_volume(void)
{
    uint8_t *got = mem_alloc(LENGTH), *want = mem_zalloc(LENGTH);
    struct block_volume *v;

    memcpy(want, bytes, LENGTH / 2);
    memcpy(want, bytes + BLOCK, LENGTH / 4);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    assert_int_equal(block_read(v, 0, got, LENGTH), 0);
    assert_memory_equal(got, want, LENGTH);
    block_close(v);
    mem_free(got);
    mem_free(want);
}

static void act_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    act_all();
    check_volume();
    assert_int_equal(partition_case_close(&pc), 0);
}

static void act_fiber(void *arg)
{
    (void)arg;
    act_all();
    sim_pause(pc.c.sim);
}

static void act_kill_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    fiber_spawn(pc.c.env, "acts", act_fiber, NULL);
}

/* It opens, is whole, and stays so. */
static void after_main(void *arg)
{
    partition_case_open(&pc);
    assert_int_equal(partition_case_status(&pc).broken, 0);
    check_volume();
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(partition_close(pc.p), 0);
    audit(pc.kv, true, NULL); /* counts, and what was referred to by who was lost */
    audit(pc.kv, true, NULL);
    audit(pc.kv, false, arg);
    assert_int_equal(kv_close(pc.kv), 0);
    partition_case_open(&pc);
    check_volume();
    assert_int_equal(partition_case_close(&pc), 0);
}

static void run(bool kill)
{
    for (size_t i = 0; i < sizeof(losses) / sizeof(losses[0]); i++) {
        partition_case_init(&pc, i + 1);
        pc.slots = 30;
        pc.options.on_conflict = PARTITION_REPLACE;
        sim_case_run(&pc.c, fill_main, NULL);
        sim_case_run(&pc.c, lose_main, &losses[i]);
        if (kill)
            sim_case_run_and_kill(&pc.c, act_kill_main, NULL, true);
        else
            sim_case_run(&pc.c, act_main, NULL);
        sim_case_run(&pc.c, after_main, &losses[i]);
        partition_case_free(&pc);
    }
}

static void test_close(void **state)
{
    (void)state;
    run(false);
}

static void test_kill(void **state)
{
    (void)state;
    run(true);
}

/* ---- A patient's row that cannot be read ---- */

static int try_instance(unsigned index, int content)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    struct object_put_info info = {0};
    struct object_put_result result;
    struct object_put *put;

    instance_make(index, content, &s);
    assert_int_equal(object_put_begin(pc.os, &info, &put), 0);
    assert_int_equal(object_put_append(put, s.data, s.len), 0);
    return object_put_commit(put, &result);
}

static void patient_fill_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    for (unsigned i = 0; i < 2; i++) /* of one study */
        put_instance(i * INSTANCE_STUDIES, 1);
    CHECK_OK(partition_case_close(&pc));
}

static void patient_cut_main(void *arg)
{
    struct kv_batch *batch = kv_batch_new();
    struct kv_rows *rows;
    struct kv *kv;

    (void)arg;
    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    assert_int_equal(kv_scan(kv, KV_CATALOG, (struct kv_slice){"P", 1}, (struct kv_slice){"Q", 1},
                             2, 1u << 20, 0, &rows),
                     0);
    assert_int_equal(rows->count, 1);
    kv_batch_put(batch, KV_CATALOG, rows->rows[0].key, (struct kv_slice){"?", 1});
    assert_int_equal(kv_write(kv, batch), 0);
    kv_batch_free(batch);
    kv_rows_free(rows);
    assert_int_equal(kv_flush(kv), 0);
    assert_int_equal(kv_close(kv), 0);
}

static int removed[2];

static void remove_fiber(void *arg)
{
    int *rc = arg;
    struct object_delete_result result;
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1], instance[OBJECT_UID_MAX + 1];
    unsigned index = (unsigned)(rc - removed) * INSTANCE_STUDIES;

    instance_study_uid(0, study);
    instance_series_uid(0, instance_series_of(index), series);
    instance_uid(index, instance);
    *rc = object_remove(pc.os, study, series, instance, &result);
}

/* What would change the row is refused before it is journaled, also where that shows late: nothing
 * stops the store. */
static void patient_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(try_instance(1, 1 + 2 * INSTANCE_HEADS), ERR_FORMAT); /* a study of theirs */
    fiber_spawn(pc.c.env, "remove", remove_fiber, &removed[0]);
    fiber_spawn(pc.c.env, "remove", remove_fiber, &removed[1]);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(removed[0], ERR_FORMAT);
    assert_int_equal(removed[1], ERR_FORMAT);
    assert_int_equal(partition_case_status(&pc).broken, 0);
    assert_int_equal(try_instance(1, 1), 0); /* somebody else's */
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_patient(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    sim_case_run(&pc.c, patient_fill_main, NULL);
    sim_case_run(&pc.c, patient_cut_main, NULL);
    sim_case_run(&pc.c, patient_main, NULL);
    sim_case_run(&pc.c, patient_fill_main, NULL); /* it starts again */
    partition_case_free(&pc);
}

/* ---- What cannot be given back ---- */

static void put_to(const char *bucket)
{
    struct bucket_put_info info = {.bucket = bucket, .name = "o"};
    struct bucket_put_result result;
    struct bucket_put *put;

    CHECK_OK(bucket_create(partition_buckets(pc.p), bucket));
    assert_int_equal(bucket_put_begin(partition_buckets(pc.p), &info, &put), 0);
    assert_int_equal(bucket_put_append(put, bytes, LENGTH), 0);
    assert_int_equal(bucket_put_commit(put, &result), 0);
}

static void two_of_each_main(void *arg)
{
    static const char *const names[] = {"first", "second"};

    (void)arg;
    partition_case_open(&pc);
    for (unsigned i = 0; i < 2; i++) {
        struct block_volume *v;

        CHECK_OK(block_create(pc.bs, names[i], LENGTH, BLOCK_EVERY_WRITE));
        CHECK_OK(block_open(pc.bs, names[i], &v));
        CHECK_OK(block_write(v, 0, bytes, LENGTH, 0));
        block_close(v);
        put_to(names[i]);
    }
    CHECK_OK(partition_case_close(&pc));
}

/* Rows of the table; the one with this number is cut. */
static size_t look_at(enum kv_table t, size_t cut)
{
    struct kv_rows *rows;
    struct kv *kv;
    size_t n;

    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    assert_int_equal(kv_scan(kv, t, (struct kv_slice){"", 1}, (struct kv_slice){"", 0}, ROWS_DROP,
                             8u << 20, 0, &rows),
                     0);
    n = rows->count;
    if (cut < n) {
        struct kv_batch *batch = kv_batch_new();

        kv_batch_put(batch, t, rows->rows[cut].key, (struct kv_slice){"?", 1});
        assert_int_equal(kv_write(kv, batch), 0);
        assert_int_equal(kv_flush(kv), 0);
        kv_batch_free(batch);
    }
    kv_rows_free(rows);
    assert_int_equal(kv_close(kv), 0);
    return n;
}

struct reap_case {
    size_t cut; /* which row of the first volume's map */
    size_t leaves, recipes;
};

static void cut_main(void *arg)
{
    struct reap_case *r = arg;

    r->leaves = look_at(KV_MAP, r->cut);
    r->recipes = look_at(KV_RECIPE, 0);
    assert_int_equal(r->leaves, 4);
}

static void remove_both_main(void *arg)
{
    struct bucket_store *bs;

    (void)arg;
    partition_case_open(&pc);
    bs = partition_buckets(pc.p);
    assert_int_equal(bucket_remove(bs, "first", true), 0);
    assert_int_equal(bucket_remove(bs, "second", true), 0);
    assert_int_equal(block_remove(pc.bs, "first"), 0);
    assert_int_equal(block_remove(pc.bs, "second"), 0);
    env_sleep(pc.c.env, 5 * ENV_NS_PER_S);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void half_is_gone_main(void *arg)
{
    const struct reap_case *r = arg;

    assert_int_equal(look_at(KV_MAP, SIZE_MAX), r->leaves / 2);
    assert_int_equal(look_at(KV_RECIPE, SIZE_MAX), r->recipes / 2);
}

/* A row of one volume's map and one of a bucket cannot be read: others that were deleted are given
 * back. */
static void test_reapers(void **state)
{
    (void)state;
    for (size_t cut = 0; cut < 2; cut++) {
        struct reap_case r = {.cut = cut};

        partition_case_init(&pc, 1);
        sim_case_run(&pc.c, two_of_each_main, NULL);
        sim_case_run(&pc.c, cut_main, &r);
        sim_case_run(&pc.c, remove_both_main, NULL);
        sim_case_run(&pc.c, half_is_gone_main, &r);
        partition_case_free(&pc);
    }
}

/* ---- One instance in two series ---- */

static void twice_main(void *arg)
{
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1], uid[OBJECT_UID_MAX + 1];
    struct kv_batch *batch = kv_batch_new();
    struct catalog_key k;
    struct kv *kv;
    void *value;
    size_t len;

    (void)arg;
    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    instance_study_uid(0, study);
    instance_series_uid(0, instance_series_of(0), series);
    instance_uid(0, uid);
    catalog_key_make(&k, 'I', study, series, uid);
    assert_int_equal(kv_get(kv, KV_CATALOG, catalog_key_slice(&k), &value, &len), 0);
    catalog_key_make(&k, 'I', study, "1.2.3", uid);
    kv_batch_put(batch, KV_CATALOG, catalog_key_slice(&k), (struct kv_slice){value, len});
    assert_int_equal(kv_write(kv, batch), 0);
    assert_int_equal(kv_flush(kv), 0);
    kv_batch_free(batch);
    mem_free(value);
    assert_int_equal(kv_close(kv), 0);
}

/* Both go, in whatever order, and nothing is left of them. */
static void remove_twice_main(void *arg)
{
    struct object_delete_result result;
    char study[OBJECT_UID_MAX + 1];

    partition_case_open(&pc);
    instance_study_uid(0, study);
    assert_int_equal(object_remove(pc.os, study, arg ? "1.2.3" : NULL, NULL, &result), 0);
    assert_int_equal(result.instances, arg ? 1 : COUNT / INSTANCE_STUDIES + 1);
    if (arg)
        assert_int_equal(object_remove(pc.os, study, NULL, NULL, &result), 0);
    assert_int_equal(partition_close(pc.p), 0);
    audit(pc.kv, true, NULL); /* the twin was in no count */
    audit(pc.kv, false, &losses[0]);
    assert_int_equal(kv_close(pc.kv), 0);
}

static void test_twice(void **state)
{
    for (unsigned apart = 0; apart < 2; apart++) {
        partition_case_init(&pc, 1);
        pc.slots = 30;
        sim_case_run(&pc.c, fill_main, NULL);
        sim_case_run(&pc.c, twice_main, NULL);
        sim_case_run(&pc.c, remove_twice_main, apart ? state : NULL);
        partition_case_free(&pc);
    }
}

static int setup(void **state)
{
    (void)state;
    bytes = mem_alloc(3 * (size_t)LENGTH);
    sim_case_bytes(1, bytes, 3 * (size_t)LENGTH);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mem_free(bytes);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_close),   cmocka_unit_test(test_kill),
        cmocka_unit_test(test_patient), cmocka_unit_test(test_reapers),
        cmocka_unit_test(test_twice),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

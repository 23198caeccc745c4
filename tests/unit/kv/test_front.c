/* What the write-behind does while the store behind it fails: without space it waits and goes on,
 * after any other error it stays stopped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/kv/impl.h"
#include "lib/rt/env.h"
#include "tests/unit/store/sim_case.h"

#define LIMIT 4096u
#define ROWS  500u /* more than two sets hold */
#define VALUE 100u

/* ---- A store that fails when it is told to ---- */

struct failing_kv {
    struct kv base;
    struct kv *under;
    int error;      /* of writes and flushes; 0: none */
    unsigned tries; /* writes refused */
};

static struct failing_kv *failing(struct kv *kv)
{
    return (struct failing_kv *)kv;
}

static int failing_get(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    return failing(kv)->under->ops->get(failing(kv)->under, key, ret_value, ret_len);
}

static int failing_multi_get(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                             size_t *lens)
{
    return failing(kv)->under->ops->multi_get(failing(kv)->under, keys, n, values, lens);
}

static int failing_write(struct kv *kv, const struct kv_batch *b)
{
    struct failing_kv *f = failing(kv);

    if (f->error) {
        f->tries++;
        return f->error;
    }
    return f->under->ops->write(f->under, b);
}

static int failing_flush(struct kv *kv)
{
    struct failing_kv *f = failing(kv);

    return f->error ? f->error : f->under->ops->flush(f->under);
}

static int failing_get_stats(struct kv *kv, struct kv_stats *ret_stats)
{
    return failing(kv)->under->ops->get_stats(failing(kv)->under, ret_stats);
}

static int failing_close(struct kv *kv)
{
    int error = failing(kv)->error, rc = kv_close(failing(kv)->under);

    mem_free(kv);
    return error ? error : rc;
}

static int failing_scan(struct kv *kv, struct kv_slice from, struct kv_slice to, size_t max_rows,
                        size_t max_bytes, int reverse, struct kv_rows **ret_rows)
{
    return failing(kv)->under->ops->scan(failing(kv)->under, from, to, max_rows, max_bytes, reverse,
                                         ret_rows);
}

static const struct kv_ops failing_ops = {
    .get = failing_get,
    .multi_get = failing_multi_get,
    .write = failing_write,
    .flush = failing_flush,
    .get_stats = failing_get_stats,
    .close = failing_close,
    .scan = failing_scan,
};

/* ---- The stage ---- */

static struct sim_case c;

static struct {
    struct kv_mem_image *image;
    struct failing_kv *store;
    struct kv *kv;
    uint32_t written; /* rows whose write has returned */
    bool ended;
} t;

static void stage_open(void)
{
    struct failing_kv *f = mem_zalloc(sizeof(*f));

    f->base.ops = &failing_ops;
    CHECK_OK(kv_mem_open(c.env, t.image, &f->under));
    t.store = f;
    t.kv = kv_front_new(c.env, &f->base, LIMIT);
    t.ended = false;
}

static struct kv_slice stage_key(uint32_t n, uint8_t key[4])
{
    codec_put_be32(key, n);
    return (struct kv_slice){key, 4};
}

static int stage_put(uint32_t n)
{
    struct kv_batch *b = kv_batch_new();
    uint8_t key[4], value[VALUE];
    int rc;

    memset(value, (int)(n % 251), sizeof(value));
    kv_batch_put(b, KV_CHUNK, stage_key(n, key), (struct kv_slice){value, sizeof(value)});
    rc = kv_write(t.kv, b);
    kv_batch_free(b);
    return rc;
}

static void stage_writer(void *arg)
{
    (void)arg;
    while (t.written < ROWS) {
        CHECK_OK(stage_put(t.written));
        t.written++;
    }
    t.ended = true;
}

/* All rows written, and no more than these and the one that waits. */
static void stage_check(uint32_t least, uint32_t most)
{
    struct kv_slice none = {NULL, 0};
    struct kv_rows *rows;

    CHECK_OK(kv_scan(t.kv, KV_CHUNK, none, none, ROWS + 1, 1u << 20, 0, &rows));
    assert_in_range(rows->count, least, most);
    for (uint32_t n = 0; n < rows->count; n++) {
        uint8_t key[4];

        assert_memory_equal(rows->rows[n].key.data, stage_key(n, key).data, 4);
        assert_int_equal(rows->rows[n].value.len, VALUE);
        assert_int_equal(*(const uint8_t *)rows->rows[n].value.data, n % 251);
    }
    kv_rows_free(rows);
}

static void stage_run(fiber_fn fn)
{
    memset(&t, 0, sizeof(t));
    sim_case_init(&c, 11);
    t.image = kv_mem_image_new();
    sim_case_run(&c, fn, NULL);
    kv_mem_image_free(t.image);
    sim_case_free(&c);
}

/* ---- No space for a while ---- */

static void waits_main(void *arg)
{
    uint64_t start = env_now(c.env), asked;
    struct kv_stats stats;
    uint32_t stuck;

    (void)arg;
    stage_open();
    t.store->error = ERR_NOSPC;
    fiber_spawn(c.env, "writer", stage_writer, NULL);
    env_sleep(c.env, 20 * ENV_NS_PER_S);
    stuck = t.written;
    assert_in_range(stuck, 2 * LIMIT / (2 * VALUE), ROWS - 1);
    assert_in_range(t.store->tries, 10, 25); /* about once a second */
    CHECK_OK(kv_get_stats(t.kv, &stats));
    assert_in_range(stats.memory_bytes, 1, 3 * LIMIT);
    stage_check(stuck, stuck); /* readers wait for nobody */
    asked = env_now(c.env);
    assert_int_equal(kv_flush(t.kv), ERR_NOSPC);
    assert_in_range(env_now(c.env) - asked, 0, ENV_NS_PER_MS);
    assert_false(t.ended);
    t.store->error = 0;
    while (!t.ended)
        env_sleep(c.env, ENV_NS_PER_MS);
    assert_in_range(env_now(c.env) - start, 0, 25 * ENV_NS_PER_S);
    CHECK_OK(kv_flush(t.kv));
    stage_check(ROWS, ROWS);
    CHECK_OK(kv_close(t.kv));
    stage_open();
    stage_check(ROWS, ROWS); /* nothing was lost */
    CHECK_OK(kv_close(t.kv));
}

static void test_waits(void **state)
{
    (void)state;
    stage_run(waits_main);
}

/* A flush that comes before anybody knows, and waits with a writer, is told too. */
static int flushed;

static void flusher(void *arg)
{
    (void)arg;
    flushed = kv_flush(t.kv);
}

static void told_main(void *arg)
{
    (void)arg;
    stage_open();
    t.store->error = ERR_NOSPC;
    flushed = 0;
    fiber_spawn(c.env, "writer", stage_writer, NULL);
    fiber_yield();
    fiber_spawn(c.env, "flusher", flusher, NULL);
    env_sleep(c.env, ENV_NS_PER_S / 2);
    assert_int_equal(flushed, ERR_NOSPC);
    t.store->error = 0;
    while (!t.ended)
        env_sleep(c.env, ENV_NS_PER_MS);
    CHECK_OK(kv_close(t.kv));
}

static void test_told(void **state)
{
    (void)state;
    stage_run(told_main);
}

/* ---- The end without space ---- */

static void close_full(bool freed)
{
    uint64_t start;

    stage_open();
    for (uint32_t n = 0; n < 3 * LIMIT / (4 * VALUE); n++)
        CHECK_OK(stage_put(n));
    t.store->error = ERR_NOSPC;
    assert_int_equal(kv_flush(t.kv), ERR_NOSPC);
    CHECK_OK(stage_put(ROWS)); /* the other set has room */
    env_sleep(c.env, 3 * ENV_NS_PER_S + ENV_NS_PER_S / 3);
    t.store->error = freed ? 0 : ERR_NOSPC;
    start = env_now(c.env);
    assert_int_equal(kv_close(t.kv), freed ? 0 : ERR_NOSPC);
    assert_in_range(env_now(c.env) - start, 0, ENV_NS_PER_S / 10); /* nor for the next try */
}

static void close_main(void *arg)
{
    (void)arg;
    close_full(false);
    close_full(true);
}

static void test_close(void **state)
{
    (void)state;
    stage_run(close_main);
}

/* Who waits for space when the end is near is told that there is none. */
static void stage_last_writer(void *arg)
{
    int *rc = arg;

    for (uint32_t n = 0; *rc == 0; n++)
        *rc = stage_put(n);
    t.ended = true;
}

static void end_soon_main(void *arg)
{
    int rc = 0;

    (void)arg;
    stage_open();
    t.store->error = ERR_NOSPC;
    fiber_spawn(c.env, "writer", stage_last_writer, &rc);
    env_sleep(c.env, 5 * ENV_NS_PER_S);
    assert_false(t.ended);
    kv_front_end_soon(t.kv);
    env_sleep(c.env, ENV_NS_PER_S / 10);
    assert_true(t.ended);
    assert_int_equal(rc, ERR_NOSPC);
    assert_int_equal(kv_close(t.kv), ERR_NOSPC);
}

static void test_end_soon(void **state)
{
    (void)state;
    stage_run(end_soon_main);
}

/* ---- Any other error ---- */

static void stays_main(void *arg)
{
    (void)arg;
    stage_open();
    CHECK_OK(stage_put(0));
    t.store->error = ERR_KV;
    assert_int_equal(kv_flush(t.kv), ERR_KV);
    t.store->error = 0;
    assert_int_equal(stage_put(1), ERR_KV);
    assert_int_equal(kv_flush(t.kv), ERR_KV);
    assert_int_equal(kv_close(t.kv), ERR_KV);
}

static void test_stays(void **state)
{
    (void)state;
    stage_run(stays_main);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waits),    cmocka_unit_test(test_told),  cmocka_unit_test(test_close),
        cmocka_unit_test(test_end_soon), cmocka_unit_test(test_stays),
    };

    return cmocka_run_group_tests_name("kv_front", tests, NULL, NULL);
}

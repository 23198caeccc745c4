/* The contract of the key-value store, held against RocksDB on the real env: the common suite, and
 * kills of a child process at random moments. Also what is RocksDB's own: errors at open. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"
#include "lib/rt/env_uring.h"
#include "tests/contract/kv/crash.h"
#include "tests/contract/kv/suite.h"

#define TEST_BUFFER_BYTES (768u << 10) /* small memory tables: writes must wait now and then */
#define TEST_CACHE_BYTES  (256u << 10)

static char test_dir[64];

static struct kv *test_open(struct env *env)
{
    struct kv_rocks_options options = {TEST_CACHE_BYTES, TEST_BUFFER_BYTES};
    struct kv *kv;

    CHECK_OK(kv_rocks_open(env, test_dir, &options, &kv));
    return kv;
}

static struct env *test_env(void)
{
    struct env_uring_options options = {1, 2, 64};
    struct env *env;

    CHECK_OK(env_uring_new(&options, &env));
    return env;
}

static void test_run(struct env *env, fiber_fn fn, void *arg)
{
    env_run(env, fn, arg);
    env_free(env);
}

static int test_setup(void **state)
{
    (void)state;
    snprintf(test_dir, sizeof(test_dir), "/tmp/filmroom-kv-XXXXXX");
    return mkdtemp(test_dir) ? 0 : -1;
}

static int test_teardown(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", test_dir);
    return system(command);
}

/* ---- The suite ------------------------------------------------------------------------------ */

struct test_case {
    struct suite suite;
    const struct suite_case *which;
};

static int test_suite_open(struct suite *s, struct kv **ret_kv)
{
    *ret_kv = test_open(s->env);
    return 0;
}

static void test_suite_main(void *arg)
{
    struct test_case *c = arg;

    c->which->run(&c->suite);
}

static void test_suite(void **state)
{
    struct test_case c = {.which = *state};

    c.suite =
        (struct suite){.env = test_env(), .reopens = true, .open = test_suite_open, .seed = 7};
    test_run(c.suite.env, test_suite_main, &c);
}

static int test_suite_setup(void **state)
{
    return test_setup(state);
}

/* ---- Kills ---------------------------------------------------------------------------------- */

struct test_kill {
    struct env *env;
    struct crash_progress *progress; /* shared memory */
    uint64_t first, count, seed;
};

static void test_kill_work(void *arg)
{
    struct test_kill *k = arg;
    struct kv *kv = test_open(k->env);

    crash_workload(k->env, kv, k->progress, k->first, 1u << 30, 3000, k->seed);
}

static void test_kill_watch(void *arg)
{
    struct test_kill *k = arg;

    while (k->progress->written < k->first + k->count)
        env_sleep(k->env, 10000);
    _exit(0); /* as kill -9 would: nothing is unwound, and flushes may be under way */
}

static void test_kill_child_main(void *arg)
{
    struct test_kill *k = arg;

    fiber_spawn(k->env, "watch", test_kill_watch, k);
    test_kill_work(k);
}

static void test_kill_check(void *arg)
{
    struct test_kill *k = arg;
    struct kv *kv = test_open(k->env);

    k->progress->written = crash_verify(kv, k->progress);
    k->progress->flushed = k->progress->written;
    CHECK_OK(kv_close(kv));
}

/* Runs main in a child process, which must end with status 0. RocksDB's thread pool does not live
 * through a fork, so this process itself must not have used RocksDB before: the kills come first,
 * and the checks between them run in children too. */
static void test_in_child(struct test_kill *k, fiber_fn fn)
{
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        alarm(60); /* a child that hangs must not outlive the test */
        k->env = test_env();
        test_run(k->env, fn, k);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_kills(void **state)
{
    struct test_kill k = {.first = 1};
    uint64_t random = 4711, lost = 0;

    (void)state;
    k.progress =
        mmap(NULL, sizeof(*k.progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(k.progress != MAP_FAILED);
    for (int round = 0; round < 12; round++) {
        uint64_t written;

        k.seed = suite_random(&random);
        k.count = suite_random(&random) % 400;
        test_in_child(&k, test_kill_child_main);
        written = k.progress->written;
        test_in_child(&k, test_kill_check);
        k.first = k.progress->written + 1;
        lost += written - k.progress->written;
    }
    printf("kills: %llu batches kept, %llu lost after the last flush\n",
           (unsigned long long)(k.first - 1), (unsigned long long)lost);
    assert_true(k.first > 100 && lost > 0); /* else nothing was put to the test */
    munmap(k.progress, sizeof(*k.progress));
}

/* ---- Several at once, partly in the cache ---------------------------------------------------- */

#define COLD_ROWS  20000u
#define COLD_BATCH 64u
#define COLD_BYTES 82u

static void test_cold_row(uint32_t i, uint8_t key[8], uint8_t value[COLD_BYTES])
{
    codec_put_be64(key, i);
    memset(value, (int)(i & 0xff), COLD_BYTES);
    codec_put_le32(value, i);
}

static void test_cold_ask(struct kv *kv, uint64_t *random)
{
    uint8_t keys[COLD_BATCH][8], want[COLD_BYTES];
    struct kv_slice slices[COLD_BATCH];
    void *values[COLD_BATCH];
    size_t lens[COLD_BATCH];
    uint32_t which[COLD_BATCH];

    for (unsigned i = 0; i < COLD_BATCH; i++) {
        which[i] = (uint32_t)(suite_random(random) % COLD_ROWS);
        codec_put_be64(keys[i], which[i]);
        slices[i] = (struct kv_slice){keys[i], 8};
    }
    CHECK_OK(kv_multi_get(kv, KV_CHUNK, slices, COLD_BATCH, values, lens));
    for (unsigned i = 0; i < COLD_BATCH; i++) {
        test_cold_row(which[i], keys[i], want);
        CHECK(values[i] && lens[i] == COLD_BYTES && memcmp(values[i], want, COLD_BYTES) == 0);
        mem_free(values[i]);
    }
}

static void test_cold_put(struct kv *kv, uint32_t i)
{
    struct kv_batch *b = kv_batch_new();
    uint8_t key[8], value[COLD_BYTES];

    test_cold_row(i, key, value);
    kv_batch_put(b, KV_CHUNK, (struct kv_slice){key, 8}, (struct kv_slice){value, COLD_BYTES});
    CHECK_OK(kv_write(kv, b));
    kv_batch_free(b);
}

/* With a cache far smaller than the data, and table files that come and go, every call finds some
 * rows in memory and others not: none may be taken for an empty value. */
static void test_cold_main(void *arg)
{
    struct env *env = arg;
    struct kv *kv = test_open(env);
    uint64_t random = 99;

    for (uint32_t i = 0; i < COLD_ROWS; i++)
        test_cold_put(kv, i);
    CHECK_OK(kv_close(kv));
    for (unsigned reopen = 0; reopen < 5; reopen++) {
        kv = test_open(env);
        for (unsigned round = 0; round < 300; round++) {
            test_cold_ask(kv, &random);
            for (unsigned i = 0; i < 20; i++)
                test_cold_put(kv, (uint32_t)(suite_random(&random) % COLD_ROWS));
            if (round % 10 == 0)
                CHECK_OK(kv_flush(kv));
        }
        CHECK_OK(kv_close(kv));
    }
}

static void test_cold_multi_get(void **state)
{
    struct env *env = test_env();

    (void)state;
    test_run(env, test_cold_main, env);
}

/* ---- Opening -------------------------------------------------------------------------------- */

static void test_open_errors_main(void *arg)
{
    struct env *env = arg;
    struct kv *kv = test_open(env), *second = NULL;
    char path[128];

    CHECK(kv_rocks_open(env, test_dir, NULL, &second) == ERR_LOCKED);
    CHECK(second == NULL);
    CHECK_OK(kv_close(kv));
    snprintf(path, sizeof(path), "%s/no/such", test_dir);
    CHECK(kv_rocks_open(env, path, NULL, &second) < 0);
    snprintf(path, sizeof(path), "%s/CURRENT", test_dir);
    CHECK_OK(truncate(path, 3));
    CHECK(kv_rocks_open(env, test_dir, NULL, &second) == ERR_KV);
    CHECK(second == NULL);
}

static void test_open_errors(void **state)
{
    struct env *env = test_env();

    (void)state;
    test_run(env, test_open_errors_main, env);
}

int main(void)
{
    struct CMUnitTest tests[32] = {
        cmocka_unit_test_setup_teardown(test_kills, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_open_errors, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_cold_multi_get, test_setup, test_teardown),
    };
    size_t n = 3;

    for (size_t i = 0; i < suite_case_count; i++)
        tests[n++] = (struct CMUnitTest){suite_cases[i].name, test_suite, test_suite_setup,
                                         test_teardown, (void *)(uintptr_t)&suite_cases[i]};
    return _cmocka_run_group_tests("kv_rocks", tests, n, NULL, NULL);
}

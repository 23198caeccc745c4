/* The contract of the key-value store, held against RocksDB on the real env: the common suite, and
 * kills of a child process at random moments. Also what is RocksDB's own: errors at open, and what
 * it does while its file system is full. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
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

/* ---- A full file system ---------------------------------------------------------------------- */

#define FULL_ROW     (32u << 10)
#define FULL_LIMIT   (256u << 10) /* of kv_front's sets */
#define FULL_MANY    300u         /* rows that no memory holds */
#define FULL_FLUSHES 40u
#define FULL_STARVES (6 << 20)

struct test_full {
    struct test_kill base; /* first: test_in_child takes it */
    struct kv *kv;
    uint64_t upto; /* the writer ends with this row */
    unsigned flushes;
    bool ended, flusher_ends, flusher_ended;
};

static void test_full_value(uint64_t n, uint8_t value[FULL_ROW])
{
    for (size_t i = 0; i < FULL_ROW; i += 8)
        codec_put_le64(value + i, suite_random(&n)); /* does not compress */
}

static void test_full_put(struct test_full *f, uint64_t n)
{
    struct kv_batch *b = kv_batch_new();
    uint8_t key[8], *value = mem_alloc(FULL_ROW);

    codec_put_be64(key, n);
    test_full_value(n, value);
    kv_batch_put(b, KV_CHUNK, (struct kv_slice){key, 8}, (struct kv_slice){value, FULL_ROW});
    CHECK_OK(kv_write(f->kv, b));
    f->base.progress->written = n;
    mem_free(value);
    kv_batch_free(b);
}

static void test_full_writer(void *arg)
{
    struct test_full *f = arg;

    while (f->base.progress->written < f->upto)
        test_full_put(f, f->base.progress->written + 1);
    f->ended = true;
}

static void test_full_filler(char path[80])
{
    snprintf(path, 80, "%s/filler", test_dir);
}

/* Takes all space that is left, but for so much. */
static void test_full_fill(off_t left)
{
    static const uint8_t block[4096];
    char path[80];
    int fd;

    test_full_filler(path);
    fd = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    while (write(fd, block, sizeof(block)) == (ssize_t)sizeof(block))
        ;
    CHECK(lseek(fd, 0, SEEK_END) > left);
    CHECK_OK(ftruncate(fd, lseek(fd, 0, SEEK_END) - left));
    close(fd);
}

static void test_full_free(void)
{
    char path[80];

    test_full_filler(path);
    CHECK_OK(unlink(path));
}

static void test_full_open(struct test_full *f)
{
    f->kv = kv_front_new(f->base.env, test_open(f->base.env), FULL_LIMIT);
}

static void test_full_flush(struct test_full *f)
{
    uint64_t n = f->base.progress->written;

    CHECK_OK(kv_flush(f->kv));
    f->base.progress->flushed = n;
}

/* Space goes away under a writer and comes again: he waits, and goes on. Every flush from then on
 * keeps its word too: the process ends in the moment in which the last one has returned. */
static void test_full_waits(void *arg)
{
    struct test_full *f = arg;
    struct env *env = f->base.env;
    uint64_t stuck;

    test_full_open(f);
    test_full_fill(0);
    f->upto = FULL_MANY;
    fiber_spawn(env, "writer", test_full_writer, f);
    env_sleep(env, 2 * ENV_NS_PER_S);
    stuck = f->base.progress->written;
    CHECK(stuck > 0 && stuck < FULL_MANY);
    CHECK(kv_flush(f->kv) == ERR_NOSPC);
    env_sleep(env, 2 * ENV_NS_PER_S);
    CHECK(f->base.progress->written == stuck && !f->ended);
    test_full_free();
    while (!f->ended)
        env_sleep(env, 10 * ENV_NS_PER_MS);
    for (unsigned i = 0; i < FULL_FLUSHES; i++) {
        f->upto += 4;
        test_full_writer(f);
        test_full_flush(f);
    }
    _exit(0);
}

/* The end does not wait for space, and says that something is missing. */
static void test_full_ends(void *arg)
{
    struct test_full *f = arg;
    unsigned rounds = 0;
    int rc;

    test_full_open(f);
    do { /* a compaction may end meanwhile and make room */
        test_full_fill(0);
        f->upto = f->base.progress->written + 2;
        test_full_writer(f);
        rc = kv_flush(f->kv);
    } while (rc == 0 && ++rounds < 20);
    CHECK(rc == ERR_NOSPC);
    CHECK(kv_close(f->kv) == ERR_NOSPC);
    test_full_free();
}

static void test_full_flusher(void *arg)
{
    struct test_full *f = arg;

    while (!f->flusher_ends) {
        int rc;

        f->upto = f->base.progress->written + 2;
        test_full_writer(f);
        rc = kv_flush(f->kv);
        CHECK(rc == 0 || rc == ERR_NOSPC);
        f->flushes++;
        env_sleep(f->base.env, 20 * ENV_NS_PER_MS);
    }
    f->flusher_ended = true;
}

/* There is space for flushes, and not for compactions, which take it and give it back. */
static void test_full_starves(void *arg)
{
    struct test_full *f = arg;
    struct env *env = f->base.env;

    test_full_open(f);
    test_full_fill(FULL_STARVES);
    fiber_spawn(env, "flusher", test_full_flusher, f);
    env_sleep(env, 7 * ENV_NS_PER_S);
    CHECK(f->flushes > 0);
    test_full_free();
    f->flusher_ends = true;
    while (!f->flusher_ended)
        env_sleep(env, 10 * ENV_NS_PER_MS);
    while (kv_flush(f->kv) == ERR_NOSPC)
        env_sleep(env, 100 * ENV_NS_PER_MS);
    CHECK_OK(kv_close(f->kv));
}

static void test_full_check(void *arg)
{
    struct test_full *f = arg;
    struct crash_progress *p = f->base.progress;
    uint8_t *want = mem_alloc(FULL_ROW);
    uint64_t n = 1;

    test_full_open(f);
    for (;; n++) {
        uint8_t key[8];
        void *value;
        size_t len;

        codec_put_be64(key, n);
        if (kv_get(f->kv, KV_CHUNK, (struct kv_slice){key, 8}, &value, &len) == ERR_NOENT)
            break;
        test_full_value(n, want);
        CHECK(len == FULL_ROW && memcmp(value, want, len) == 0);
        mem_free(value);
    }
    CHECK(n - 1 >= p->flushed && n - 1 <= p->written);
    p->written = p->flushed = n - 1;
    mem_free(want);
    CHECK_OK(kv_close(f->kv));
}

static void test_full(void **state)
{
    struct test_full f = {.ended = false};

    (void)state;
    if (mount("tmpfs", test_dir, "tmpfs", 0, "size=64m") < 0) {
        print_message("skipped: a tmpfs cannot be mounted here\n");
        skip();
    }
    f.base.progress = mmap(NULL, sizeof(*f.base.progress), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(f.base.progress != MAP_FAILED);
    test_in_child(&f.base, test_full_waits);
    test_in_child(&f.base, test_full_check);
    assert_true(f.base.progress->flushed >= FULL_MANY + 4 * FULL_FLUSHES);
    test_in_child(&f.base, test_full_ends);
    test_in_child(&f.base, test_full_check);
    test_in_child(&f.base, test_full_starves);
    test_in_child(&f.base, test_full_check);
    munmap(f.base.progress, sizeof(*f.base.progress));
}

static int test_full_teardown(void **state)
{
    (void)umount2(test_dir, MNT_DETACH); /* not mounted: it could not be */
    return test_teardown(state);
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
        cmocka_unit_test_setup_teardown(test_full, test_setup, test_full_teardown),
        cmocka_unit_test_setup_teardown(test_open_errors, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_cold_multi_get, test_setup, test_teardown),
    };
    size_t n = 4;

    for (size_t i = 0; i < suite_case_count; i++)
        tests[n++] = (struct CMUnitTest){suite_cases[i].name, test_suite, test_suite_setup,
                                         test_teardown, (void *)(uintptr_t)&suite_cases[i]};
    return _cmocka_run_group_tests("kv_rocks", tests, n, NULL, NULL);
}

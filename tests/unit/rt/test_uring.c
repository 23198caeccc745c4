/* lib/rt: the io_uring env. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env_uring.h"
#include "lib/rt/sync.h"

static struct env *env;
static char dir[64];

static void run(fiber_fn fn, void *arg)
{
    const struct env_uring_options o = {.queue_depth = 8};

    assert_int_equal(env_uring_new(&o, &env), 0);
    env_run(env, fn, arg);
    env_free(env);
}

static const char *path(const char *name)
{
    static char buf[4][160];
    static unsigned i;
    char *p = buf[i++ % 4];

    snprintf(p, sizeof(buf[0]), "%s/%s", dir, name);
    return p;
}

static void files_main(void *arg)
{
    struct env_file *f;
    char *buf = mem_alloc_aligned(4096, 8192);

    (void)arg;
    assert_int_equal(env_open(env, path("missing"), 0, &f), ERR_NOENT);
    assert_int_equal(
        env_open(env, path("f"), ENV_OPEN_CREATE | ENV_OPEN_EXCL | ENV_OPEN_DIRECT, &f), 0);
    memset(buf, 7, 8192);
    assert_int_equal(env_pwrite(f, buf, 8192, 4096, true), 0);
    assert_int_equal(env_sync(f), 0);
    memset(buf, 0, 8192);
    assert_int_equal(env_pread(f, buf, 8192, 4096), 0);
    assert_int_equal(buf[0], 7);
    assert_int_equal(buf[8191], 7);
    env_close(f);
    mem_free(buf);
}

static void test_files(void **state)
{
    (void)state;
    run(files_main, NULL);
}

static void double_it(void *arg)
{
    *(int *)arg *= 2;
}

static void thread_call(void *arg)
{
    env_sleep(env, ENV_NS_PER_MS);
    ++*(int *)arg;
}

static void thread_main(void *arg)
{
    assert_int_equal(env_call(env, "call", thread_call, arg), 0);
}

static void others_main(void *arg)
{
    int *n = arg;

    env_offload(env, ENV_LANE_CPU, double_it, n);
    assert_int_equal(*n, 42);
    assert_int_equal(env_thread(env, "t", thread_main, n), 0);
}

static void test_others(void **state)
{
    int n = 21;

    (void)state;
    run(others_main, &n);
    assert_int_equal(n, 43);
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/filmroom-rt-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[128];

    (void)state;
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_others),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

/* lib/store/drive_io on the real env: when this process stands still no drive is blamed for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "lib/base/buf.h"
#include "lib/rt/env_uring.h"
#include "lib/rt/sync.h"
#include "lib/store/drive_io.h"

#define DRIVES 3u
#define STALL  1500000u /* us */

static char dir[64];
static char paths[DRIVES][96];

struct write {
    struct driveset *ds;
    struct buf *b;
    struct fiber_group done;
};

static void write_fiber(void *arg)
{
    struct write *w = arg;

    assert_int_equal(
        drive_pwrite(&w->ds->drives[0], w->b, FORMAT_UNIT, w->ds->super.journal_off, true), 0);
    fiber_group_done(&w->done);
}

static void expect_good(const struct driveset *ds)
{
    assert_int_equal(ds->drives[0].state, DRIVE_OK);
    assert_false(ds->drives[0].hung);
    assert_int_equal(ds->drives[0].health.state, HEALTH_OK);
}

/* A write is on its way when everything stops: it has been handed to the system, or not yet. */
static void stall_main(void *arg)
{
    struct env *env = *(struct env **)arg;
    const char *list[DRIVES] = {paths[0], paths[1], paths[2]};
    struct driveset_params p = {.count = DRIVES,
                                .paths = list,
                                .k = 2,
                                .m = 1,
                                .slot_count = 2,
                                .journal_len = FORMAT_JOURNAL_MIN};
    struct buf *b = buf_new(FORMAT_UNIT);
    struct drive_wait wait;
    struct driveset *ds;
    struct drive_io io;
    struct write w;

    assert_int_equal(driveset_format(env, &p), 0);
    assert_int_equal(driveset_open(env, list, DRIVES, &ds), 0);
    w = (struct write){.ds = ds, .b = b};
    fiber_group_init(&w.done);
    fiber_group_add(&w.done, 1);
    fiber_spawn(env, "write", write_fiber, &w);
    env_sleep(env, 1);
    usleep(STALL);
    fiber_group_wait(&w.done);
    expect_good(ds);

    drive_wait_init(&wait, ds);
    drive_io_prepare(&ds->drives[0], &io, ENV_WRITE, b, b->data, FORMAT_UNIT,
                     ds->super.journal_off);
    drive_io_start(&wait, &io, 1);
    usleep(STALL);
    assert_true(drive_wait_all(&wait, ENV_FOREVER));
    assert_int_equal(io.result, FORMAT_UNIT);
    expect_good(ds);
    buf_unref(b);
    driveset_close(ds);
}

static void test_stall(void **state)
{
    const struct env_uring_options o = {.queue_depth = 64, .keep_signals = true};
    const char *base = getenv("TMPDIR");
    struct env *env;

    (void)state;
    (void)snprintf(dir, sizeof(dir), "%s/filmroom-stall-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(dir));
    for (unsigned i = 0; i < DRIVES; i++)
        (void)snprintf(paths[i], sizeof(paths[i]), "%s/d%u", dir, i);
    assert_int_equal(env_uring_new(&o, &env), 0);
    env_run(env, stall_main, &env);
    env_free(env);
    for (unsigned i = 0; i < DRIVES; i++)
        (void)unlink(paths[i]);
    (void)rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stall)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

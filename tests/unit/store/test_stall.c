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
#include "lib/store/drive_io.h"

#define DRIVES 3u
#define STALL  1500000u /* us */

static char dir[64];
static char paths[DRIVES][96];

/* Writes that are on their way when everything stops: once before they are handed to the system,
 * once after. */
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
    struct driveset *ds;

    assert_int_equal(driveset_format(env, &p), 0);
    assert_int_equal(driveset_open(env, list, DRIVES, &ds), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct drive_wait w;
        struct drive_io io;

        drive_wait_init(&w, ds);
        drive_io_prepare(&ds->drives[0], &io, ENV_WRITE, b, b->data, FORMAT_UNIT,
                         ds->super.journal_off);
        drive_io_start(&w, &io, 1);
        if (i == 1)
            (void)drive_wait_all(&w, env_now(env) + ENV_NS_PER_MS / 10);
        usleep(STALL);
        assert_true(drive_wait_all(&w, ENV_FOREVER));
        assert_int_equal(io.result, FORMAT_UNIT);
        assert_int_equal(ds->drives[0].state, DRIVE_OK);
        assert_false(ds->drives[0].hung);
        assert_int_equal(ds->drives[0].health.state, HEALTH_OK);
    }
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

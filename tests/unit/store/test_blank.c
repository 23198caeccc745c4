/* lib/store/blank: a disk that is to become a drive must not be somebody's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/buf.h"
#include "lib/base/err.h"
#include "lib/store/blank.h"
#include "tests/unit/store/store_case.h"

static struct sim_case c;

static int setup(void **state)
{
    (void)state;
    sim_case_init(&c, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sim_case_free(&c);
    return 0;
}

/* A file with these bytes at one place. */
static void make(const char *path, uint64_t size, uint64_t at, const char *bytes)
{
    struct buf *b = buf_new(4096);
    struct env_file *f;

    memset(b->data, 0, 4096);
    memcpy(b->data + at % 4096, bytes, strlen(bytes));
    assert_int_equal(env_open(c.env, path, ENV_OPEN_CREATE, &f), 0);
    assert_int_equal(env_resize(f, size), 0);
    if (size)
        assert_int_equal(env_pwrite(f, b->data, 4096, at / 4096 * 4096, true), 0);
    env_close(f);
    buf_unref(b);
}

static void look_main(void *arg)
{
    const char *what = NULL;

    (void)arg;
    assert_int_equal(blank_look(c.env, "new", NULL, &what), 0);
    assert_int_equal(blank_look(c.env, "/dev/new", NULL, &what), ERR_NOENT);
    make("empty", 0, 0, "");
    assert_int_equal(blank_look(c.env, "empty", NULL, &what), 0);
    make("zeroes", 4 << 20, 0, "");
    assert_int_equal(blank_look(c.env, "zeroes", NULL, &what), 0);
    assert_null(what);
    make("middle", 4 << 20, 2 << 20, "nobody looks here");
    assert_int_equal(blank_look(c.env, "middle", NULL, &what), 0);
    make("ext", 4 << 20, 0x438, "\x53\xef");
    assert_int_equal(blank_look(c.env, "ext", NULL, &what), ERR_NOTEMPTY);
    assert_string_equal(what, "an ext file system");
    make("end", 4 << 20, (4 << 20) - 1, "x");
    assert_int_equal(blank_look(c.env, "end", NULL, &what), ERR_NOTEMPTY);
    make("short", 8192, 4096, "text");
    assert_int_equal(blank_look(c.env, "short", NULL, &what), ERR_NOTEMPTY);
    assert_string_equal(what, "a small file");
    assert_int_equal(blank_look(c.env, "d0", NULL, &what), ERR_EXIST);
}

static void format_main(void *arg)
{
    (void)arg;
    assert_int_equal(store_case_format(&c, 1, 1, 0, 4, STORE_JOURNAL), 0);
}

static void test_look(void **state)
{
    (void)state;
    sim_case_run(&c, format_main, NULL);
    sim_case_run(&c, look_main, NULL);
}

/* ---- A format that is cut short, anywhere ---- */

static const uint8_t ours[16] = {1}, other[16] = {2};

static int begin(void)
{
    struct driveset_params p = {.count = 3,
                                .paths = store_case_paths(3),
                                .k = 2,
                                .m = 1,
                                .slot_count = 4,
                                .journal_len = FORMAT_JOURNAL_MIN,
                                .uuid = ours};

    return driveset_format(c.env, &p);
}

static unsigned ios, cut_at; /* operations of the process; the one that it ends with */

static int hook_cut(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    (void)path;
    (void)io;
    if (++ios == cut_at)
        sim_pause(c.sim);
    return 0;
}

static void cut_main(void *arg)
{
    (void)arg;
    assert_int_equal(begin(), 0);
    sim_pause(c.sim); /* it has come to its end before */
    for (;;)
        fiber_suspend("the power is cut");
}

/* Drives are blank or known by the UUID; who was given another one finds them blank or refuses. */
static void cut_look_main(void *arg)
{
    const char *what = NULL;
    struct driveset *ds;

    (void)arg;
    for (unsigned i = 0; i < 3; i++) {
        const char *path = store_case_paths(3)[i];

        if (blank_look(c.env, path, ours, &what) != 0)
            fail_msg("cut at %u: %s holds %s", cut_at, path, what ? what : "a drive");
        if (blank_look(c.env, path, other, &what) == ERR_NOTEMPTY)
            fail_msg("cut at %u: %s seems to hold %s", cut_at, path, what);
    }
    if (driveset_open(c.env, store_case_paths(3), 3, &ds) ==
        0) { /* if it is a store, it is whole */
        assert_int_equal(driveset_members(ds), 3);
        driveset_close(ds);
    }
}

static void cut_again_main(void *arg)
{
    const char *what = NULL;
    struct driveset *ds;

    (void)arg;
    assert_int_equal(begin(), 0);
    ds = store_case_open(&c, 3);
    assert_int_equal(driveset_healthy(ds), 3);
    assert_memory_equal(ds->super.store_uuid, ours, 16);
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    driveset_close(ds);
    assert_int_equal(blank_look(c.env, "d0", ours, &what), ERR_EXIST); /* somebody uses it now */
}

/* Cut short twice, as much of what was under way being there as chance will have it. */
static bool cut_case(uint64_t seed, unsigned first, unsigned second)
{
    bool over;

    sim_case_init(&c, seed);
    for (unsigned i = 0; i < 2; i++) {
        ios = 0;
        cut_at = i ? second : first;
        c.hook = hook_cut;
        sim_case_run_and_kill(&c, cut_main, NULL, true);
        over = ios < cut_at;
        c.hook = NULL;
        sim_case_run(&c, cut_look_main, NULL);
    }
    sim_case_run(&c, cut_again_main, NULL);
    sim_case_free(&c);
    return over;
}

static void test_cut_short(void **state)
{
    (void)state;
    for (unsigned at = 1;; at++) {
        bool over = false;

        for (uint64_t seed = 1; seed <= 4; seed++)
            over |= cut_case(seed, at, seed % 2 ? at : at / 2 + 1);
        if (over)
            break;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_look, setup, teardown),
        cmocka_unit_test(test_cut_short),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

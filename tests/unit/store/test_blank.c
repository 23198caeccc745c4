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
    assert_int_equal(blank_look(c.env, "new", &what), 0);
    assert_int_equal(blank_look(c.env, "/dev/new", &what), ERR_NOENT);
    make("empty", 0, 0, "");
    assert_int_equal(blank_look(c.env, "empty", &what), 0);
    make("zeroes", 4 << 20, 0, "");
    assert_int_equal(blank_look(c.env, "zeroes", &what), 0);
    assert_null(what);
    make("middle", 4 << 20, 2 << 20, "nobody looks here");
    assert_int_equal(blank_look(c.env, "middle", &what), 0);
    make("ext", 4 << 20, 0x438, "\x53\xef");
    assert_int_equal(blank_look(c.env, "ext", &what), ERR_NOTEMPTY);
    assert_string_equal(what, "an ext file system");
    make("end", 4 << 20, (4 << 20) - 1, "x");
    assert_int_equal(blank_look(c.env, "end", &what), ERR_NOTEMPTY);
    make("short", 8192, 4096, "text");
    assert_int_equal(blank_look(c.env, "short", &what), ERR_NOTEMPTY);
    assert_string_equal(what, "a small file");
    assert_int_equal(blank_look(c.env, "d0", &what), ERR_EXIST);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_look, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

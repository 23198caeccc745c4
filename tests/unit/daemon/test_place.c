/* daemon/place: the list of where drives are, over boots that give disks other names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/place.h"
#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "tests/unit/store/sim_case.h"

static struct sim_case c;
static struct config config;

static int setup(void **state)
{
    (void)state;
    sim_case_init(&c, 1);
    config_defaults(&config);
    (void)snprintf(config.store.data, sizeof(config.store.data), "/data");
    config.store.drives = 2; /* the two others were added later */
    config.store.paths = mem_calloc(2, sizeof(*config.store.paths));
    (void)snprintf(config.store.paths[0], CONFIG_PATH_MAX, "/sda");
    (void)snprintf(config.store.paths[1], CONFIG_PATH_MAX, "/sdb");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    config_free(&config);
    sim_case_free(&c);
    return 0;
}

/* ---- One boot ---- */

static struct driveset *boot(void)
{
    struct driveset *ds = NULL;
    struct place p;

    place_init(&p, &config);
    place_load_paths(c.env, &config, &p);
    CHECK_OK(driveset_open(c.env, (const char *const *)p.drives, p.count, &ds));
    place_free(&p);
    CHECK_OK(place_save_paths(c.env, &config, ds, NULL));
    return ds;
}

/* The list without its comments must be this. */
static void expect_list(const char *want)
{
    char *text = place_text(c.env, &config, "drive-paths");
    const char *p = text;

    assert_non_null(text);
    while (*p == '#')
        p = strchr(p, '\n') + 1;
    assert_string_equal(p, want);
    mem_free(text);
}

static void make(unsigned drives, const char *const *paths)
{
    struct driveset_params params = {.count = drives,
                                     .paths = paths,
                                     .k = drives > 1 ? drives - 1 : 1,
                                     .m = drives > 1,
                                     .slot_count = 4,
                                     .journal_len = FORMAT_JOURNAL_MIN};

    assert_int_equal(driveset_format(c.env, &params), 0);
}

static void begin(void)
{
    static const char *const paths[] = {"/sda", "/sdb", "/sdc", "/sdd"};
    struct driveset *ds = NULL;

    make(4, paths);
    assert_int_equal(driveset_open(c.env, paths, 4, &ds), 0);
    assert_int_equal(place_save_paths(c.env, &config, ds, NULL), 0);
    driveset_close(ds);
    expect_list("0 /sda\n1 /sdb\n2 /sdc\n3 /sdd\n");
}

static void move(const char *from, const char *to)
{
    assert_int_equal(env_rename(c.env, from, to), 0);
}

/* sdc is away, and its name is the next one's. */
static void shift(void)
{
    struct driveset *ds;

    move("/sdc", "/away");
    move("/sdd", "/sdc");
    ds = boot();
    assert_int_equal(driveset_healthy(ds), 3);
    assert_int_equal(ds->drives[2].state, DRIVE_MISSING);
    assert_string_equal(ds->drives[3].path, "/sdc");
    driveset_close(ds);
    expect_list("0 /sda\n1 /sdb\n3 /sdc\n3 /sdd\n");
}

static void shift_back(void)
{
    move("/sdc", "/sdd");
    move("/away", "/sdc");
}

/* ---- Cases ---- */

static void back_main(void *arg)
{
    struct driveset *ds;

    (void)arg;
    begin();
    shift();
    driveset_close(boot()); /* once more changes nothing */
    expect_list("0 /sda\n1 /sdb\n3 /sdc\n3 /sdd\n");
    shift_back();
    ds = boot();
    assert_int_equal(driveset_healthy(ds), 4);
    driveset_close(ds);
    expect_list("0 /sda\n1 /sdb\n2 /sdc\n3 /sdd\n");
}

static void test_back(void **state)
{
    (void)state;
    sim_case_run(&c, back_main, NULL);
}

static void leaves_main(void *arg)
{
    struct driveset *ds;

    (void)arg;
    begin();
    shift();
    ds = boot();
    ds->drives[3].state = DRIVE_NONE;
    ds->drives[3].path[0] = 0;
    assert_int_equal(place_save_paths(c.env, &config, ds, "/sde"), 0);
    driveset_close(ds);
    expect_list("0 /sda\n1 /sdb\n32 /sde\n");
}

/* Nobody looks any more where a drive was that is not one of the store's. */
static void test_leaves(void **state)
{
    (void)state;
    sim_case_run(&c, leaves_main, NULL);
}

static void many_main(void *arg)
{
    char at[32] = "/sda", to[32];
    struct place p;

    (void)arg;
    begin();
    for (unsigned i = 0; i < DRIVESET_PATHS_MAX; i++) {
        struct driveset *ds = boot();

        (void)snprintf(to, sizeof(to), "/disk-%u", i);
        mem_free(ds->drives[0].path);
        ds->drives[0].path = mem_strdup(to);
        assert_int_equal(place_save_paths(c.env, &config, ds, NULL), 0);
        driveset_close(ds);
        move(at, to);
        (void)snprintf(at, sizeof(at), "%s", to);
    }
    place_init(&p, &config);
    place_load_paths(c.env, &config, &p);
    assert_int_equal(p.count, DRIVESET_PATHS_MAX);
    assert_string_equal(p.drives[0], "/disk-63");
    assert_string_equal(p.drives[FORMAT_DRIVES_MAX + 1], "/disk-62");
    assert_string_equal(p.drives[DRIVESET_PATHS_MAX - 1], "/disk-32");
    place_free(&p);
}

/* The latest are kept, as many as there is room for. */
static void test_many(void **state)
{
    (void)state;
    sim_case_run(&c, many_main, NULL);
}

static void other_main(void *arg)
{
    static const char *const others[] = {"/x0", "/x1", "/x2", "/x3", "/x4"};
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    struct driveset *ds;

    (void)arg;
    begin();
    make(5, others);
    strbuf_adds(&text, "0 /sda\n1 /sdb\n2 /sdc\n3 /none\n");
    for (unsigned i = 0; i < 5; i++)
        strbuf_addf(&text, "3 %s\n", others[i]);
    strbuf_adds(&text, "3 /sdd\n");
    assert_int_equal(place_save_text(c.env, "/data/drive-paths", &text), 0);
    ds = boot();
    assert_int_equal(driveset_healthy(ds), 4);
    assert_string_equal(ds->drives[3].path, "/sdd");
    driveset_close(ds);
}

/* Drives of another store under former paths do not outvote ours. */
static void test_other_store(void **state)
{
    (void)state;
    sim_case_run(&c, other_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leaves, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_store, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

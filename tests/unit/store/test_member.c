/* lib/store/member: drives join and leave a set; what a crash in the middle leaves; what is
 * refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/store/drive_io.h"
#include "lib/store/member.h"
#include "tests/unit/store/store_case.h"

#define SLOTS 8u

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

static void format3(void *arg)
{
    (void)arg;
    assert_int_equal(store_case_format(&c, 3, 2, 1, SLOTS, STORE_JOURNAL), 0);
}

static uint64_t size_of(unsigned slots)
{
    return FORMAT_JOURNAL_OFF + STORE_JOURNAL + slots * (uint64_t)FORMAT_SLOT_SIZE;
}

static int add(struct driveset *ds, const char *path, uint64_t size, bool force, const char *why)
{
    struct member_add a = {
        .path = path, .size = size, .force = force, .class_ = 1, .replaces = MEMBER_NOBODY};
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    uint32_t index = 99;
    int rc = member_add(ds, &a, &text, &index);

    if (rc < 0) {
        assert_int_equal(index, 99);
        assert_non_null(strstr(text.len ? text.data : "", why));
        return rc;
    }
    member_joined(ds, index);
    return (int)index;
}

static struct driveset *reopen(struct driveset *ds)
{
    driveset_close(ds);
    return store_case_open(&c, 8);
}

/* ---- Joining ---- */

static void add_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);

    (void)arg;
    assert_int_equal(add(ds, "d5", size_of(9), false, ""), 3);
    assert_int_equal(sim_file_size(c.sim, "d5"), size_of(9));
    assert_int_equal(ds->super.epoch, 2);
    ds = reopen(ds);
    assert_int_equal(ds->count, 4);
    assert_int_equal(driveset_healthy(ds), 4);
    assert_string_equal(ds->drives[3].path, "d5");
    assert_int_equal(ds->drives[3].slot_count, 9);
    assert_int_equal(ds->drives[3].class_, 1);
    assert_int_equal(ds->super.version, FORMAT_VERSION_MEMBERS);
    assert_true(drive_takes(&ds->drives[3]));
    /* Without it the others know that it is missing. */
    driveset_close(ds);
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->count, 4);
    assert_int_equal(ds->drives[3].state, DRIVE_MISSING);
    driveset_close(ds);
}

static void test_add(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, add_main, NULL);
}

static void put(const char *path, uint64_t size, uint64_t at, const char *text)
{
    struct env_file *f;

    assert_int_equal(env_open(c.env, path, ENV_OPEN_CREATE, &f), 0);
    assert_int_equal(env_resize(f, size), 0);
    assert_int_equal(env_pwrite(f, text, strlen(text), at, true), 0);
    env_close(f);
}

static void refuse_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    uint64_t size = size_of(SLOTS), epoch = ds->super.epoch;
    char byte = 0;

    (void)arg;
    assert_int_equal(add(ds, "d4", 0, false, "give --size"), ERR_NOENT);
    assert_int_equal(add(ds, "/dev/nothing", size, false, "no such device"), ERR_NOENT);
    assert_int_equal(add(ds, "d4", size_of(7), false, "too small"), ERR_RANGE);
    assert_int_equal(sim_file_size(c.sim, "d4"), 0); /* and it was not left behind */
    put("d4", size, 0x438, "\x53\xef");
    assert_int_equal(add(ds, "d4", 0, false, "an ext file system"), ERR_EXIST);
    put("d5", size, size - 1, "x");
    assert_int_equal(add(ds, "d5", 0, false, "something"), ERR_EXIST);
    assert_int_equal(sim_file_read(c.sim, "d5", &byte, 1, size - 1), 0);
    assert_int_equal(byte, 'x');
    put("d6", 10, 0, "x");
    assert_int_equal(add(ds, "d6", size, false, "something in it"), ERR_EXIST);
    assert_int_equal(add(ds, "d1", 0, true, "in use"), ERR_LOCKED);
    assert_int_equal(ds->count, 3);
    assert_int_equal(ds->super.epoch, epoch);
    assert_int_equal(add(ds, "d4", 0, true, ""), 3);
    assert_int_equal(add(ds, "d5", 0, true, ""), 4);
    ds = reopen(ds);
    assert_int_equal(driveset_healthy(ds), 5);
    driveset_close(ds);
}

static void test_refused(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, refuse_main, NULL);
}

/* The new drive has its superblock before any other drive hears of it. */
struct watch {
    unsigned writes;
    bool new_first;
};

static int hook_order(void *arg, const char *path, const struct env_io *io)
{
    struct watch *w = arg;

    if (io->kind == ENV_WRITE && io->off <= FORMAT_SUPER_OFF_B && w->writes++ < 2)
        w->new_first = w->new_first && strcmp(path, "d3") == 0;
    return 0;
}

static int hook_new_fails(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    return io->kind == ENV_WRITE && strcmp(path, "d3") == 0 ? ERR_IO : 0;
}

static void order_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    struct watch w = {.new_first = true};

    (void)arg;
    c.hook = hook_new_fails;
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), ERR_IO);
    assert_int_equal(ds->count, 3);
    assert_int_equal(driveset_healthy(ds), 3);
    assert_int_equal(sim_file_size(c.sim, "d3"), 0);
    c.hook = hook_order;
    c.hook_arg = &w;
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), 3);
    assert_true(w.new_first);
    assert_int_equal(w.writes, 10);
    c.hook = NULL;
    driveset_close(ds);
}

static void test_new_one_first(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, order_main, NULL);
}

/* ---- Drives that do not answer ---- */

/* The n-th operation on a drive, and all after it, are not answered. */
struct hush {
    const char *path;
    unsigned left;
};

static void hang(const char *path, bool on)
{
    static const struct sim_faults hangs = {.hang = true};

    sim_set_file_faults(c.sim, path, on ? &hangs : NULL);
}

static int hook_hush(void *arg, const char *path, const struct env_io *io)
{
    struct hush *h = arg;

    (void)io;
    if (strcmp(path, h->path) == 0 && h->left && --h->left == 0)
        hang(path, true);
    return 0;
}

static bool commits_stop;
static uint64_t commits, slowest;

/* What the journal's trimming does all the time. */
static void commits_fiber(void *arg)
{
    struct driveset *ds = arg;

    while (!commits_stop) {
        uint64_t began = sim_now(c.sim);

        assert_int_equal(driveset_commit(ds, false, NULL, NULL), 0);
        slowest = sim_now(c.sim) - began > slowest ? sim_now(c.sim) - began : slowest;
        commits++;
        env_sleep(c.env, 100 * ENV_NS_PER_MS);
    }
}

/* Two superblocks and both ends are read, the size is set, space reserved, the superblocks written,
 * all of it made durable; then it gets those that all get. */
#define ADD_OPS    9
#define COMMIT_OPS 2

struct silence {
    unsigned op;
    bool spared; /* all drives that the profile bears are out already */
};

static void silent_main(void *arg)
{
    const struct silence *s = arg;
    struct driveset *ds = store_case_open(&c, 3);
    struct hush h = {.path = "d3", .left = s->op};
    unsigned healthy = s->spared ? 2 : 3;
    uint64_t epoch;

    put("d3", size_of(SLOTS - 1), 0, "");
    if (s->spared)
        driveset_put_out(ds, 2, "for the test");
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    epoch = ds->super.epoch;
    c.hook = hook_hush;
    c.hook_arg = &h;
    commits_stop = false;
    commits = slowest = 0;
    fiber_spawn(c.env, "commits", commits_fiber, ds);
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), ERR_TIMEDOUT);
    env_sleep(c.env, 20 * ENV_NS_PER_S);
    assert_true(commits > 100 && slowest < 2 * ENV_NS_PER_S);
    assert_int_equal(driveset_members(ds), 3);
    assert_int_equal(driveset_healthy(ds), healthy);
    if (s->op <= ADD_OPS)
        assert_int_equal(ds->super.epoch, epoch);
    /* It is left alone until it has answered, and may then be added. */
    assert_int_equal(add(ds, "d3", size_of(SLOTS), true, "in use"), ERR_LOCKED);
    commits_stop = true;
    c.hook = NULL;
    hang("d3", false);
    env_sleep(c.env, ENV_NS_PER_S);
    assert_int_equal(add(ds, "d3", size_of(SLOTS), true, ""), 3);
    assert_int_equal(driveset_healthy(ds), healthy + 1);
    ds = reopen(ds);
    assert_int_equal(driveset_members(ds), 4);
    assert_int_equal(driveset_healthy(ds), 4); /* the one that was put out is well */
    driveset_close(ds);
}

static void test_silent(void **state)
{
    for (unsigned op = 1; op <= ADD_OPS + COMMIT_OPS; op++) {
        for (unsigned spared = 0; spared < 2; spared++) {
            struct silence s = {op, spared};

            teardown(state);
            sim_case_init(&c, op);
            sim_case_run(&c, format3, NULL);
            sim_case_run(&c, silent_main, &s);
        }
    }
}

static void silent_goes_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    uint64_t began = sim_now(c.sim);
    struct hush h = {.path = "d2"};

    (void)arg;
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), 3);
    assert_int_equal(member_leave(ds, 2, true), 0);
    h.left = 1; /* its superblock is nobody's business any more: this is the wiping */
    c.hook = hook_hush;
    c.hook_arg = &h;
    assert_int_equal(member_let_go(ds, 2), 0);
    assert_true(sim_now(c.sim) - began < 5 * ENV_NS_PER_S);
    assert_int_equal(h.left, 0);
    c.hook = NULL;
    assert_int_equal(ds->drives[2].state, DRIVE_NONE);
    hang("d2", false);
    env_sleep(c.env, ENV_NS_PER_S);
    assert_int_equal(add(ds, "d2", 0, false, ""), 2);
    driveset_close(ds);
}

static void test_silent_goes(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, silent_goes_main, NULL);
}

/* ---- A new drive that fails half signed ---- */

static int hook_second_fails(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    return io->kind == ENV_WRITE && io->off == FORMAT_SUPER_OFF_B && strcmp(path, "d3") == 0
               ? ERR_IO
               : 0;
}

static void set_replay(struct format_super *super, void *arg)
{
    super->replay_seq = *(uint64_t *)arg;
}

/* What is on it says nothing about the store, neither then nor later. */
static void half_signed_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    uint64_t seq = 42;

    (void)arg;
    put("d3", size_of(SLOTS), 0, "");
    c.hook = hook_second_fails;
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), ERR_IO);
    c.hook = NULL;
    assert_int_equal(driveset_commit(ds, false, set_replay, &seq), 0);
    ds = reopen(ds);
    assert_int_equal(ds->super.replay_seq, 42);
    assert_int_equal(ds->count, 3);
    assert_int_equal(driveset_healthy(ds), 3);
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), 3);
    ds = reopen(ds);
    assert_int_equal(driveset_healthy(ds), 4);
    driveset_close(ds);
}

static void test_half_signed(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, half_signed_main, NULL);
}

/* ---- Leaving ---- */

static void leave_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    uint8_t uuid[16];

    (void)arg;
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), 3);
    assert_int_equal(member_leave(ds, 2, true), 0);
    ds = reopen(ds);
    assert_true(ds->drives[2].leaving);
    assert_false(drive_takes(&ds->drives[2]));
    assert_true(drive_usable(&ds->drives[2]));
    assert_int_equal(member_leave(ds, 2, false), 0);
    ds = reopen(ds);
    assert_true(drive_takes(&ds->drives[2]));
    memcpy(uuid, ds->drives[2].uuid, 16);
    assert_int_equal(member_leave(ds, 2, true), 0);
    assert_int_equal(member_let_go(ds, 2), 0);
    assert_int_equal(ds->drives[2].state, DRIVE_NONE);
    ds = reopen(ds);
    assert_int_equal(ds->count, 4);
    assert_int_equal(ds->drives[2].state, DRIVE_NONE);
    assert_int_equal(ds->super.members[2].state, FORMAT_DRIVE_NONE);
    assert_int_equal(driveset_healthy(ds), 3);
    /* It is blank, and what comes next has its place. */
    assert_int_equal(add(ds, "d2", 0, false, ""), 2);
    ds = reopen(ds);
    assert_int_equal(driveset_healthy(ds), 4);
    assert_memory_not_equal(uuid, ds->drives[2].uuid, 16);
    driveset_close(ds);
}

static void test_leave(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, leave_main, NULL);
}

/* A drive that left while it was away comes back: it does not count, and may be added again. */
static void stranger_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);

    (void)arg;
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), 3);
    driveset_put_out(ds, 2, "for the test");
    assert_int_equal(member_leave(ds, 2, true), 0);
    assert_int_equal(member_let_go(ds, 2), 0);
    ds = reopen(ds);
    assert_int_equal(driveset_healthy(ds), 3);
    assert_int_equal(ds->drives[2].state, DRIVE_NONE);
    assert_int_equal(add(ds, "d2", 0, false, ""), 2);
    assert_int_equal(driveset_healthy(ds), 4);
    driveset_close(ds);
}

static void test_stranger(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, stranger_main, NULL);
}

static void read_fiber(void *arg)
{
    struct buf *b = buf_new(FORMAT_UNIT);

    (void)drive_pread(arg, &b, FORMAT_UNIT, 0);
    buf_unref(b);
}

/* An empty disk under the path of a dead one is open already, as what may be left of that. */
static void swap_main(void *arg)
{
    struct driveset *ds;

    (void)arg;
    sim_file_delete(c.sim, "d1");
    put("d1", size_of(SLOTS), 0, "");
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->drives[1].state, DRIVE_MISSING);
    assert_non_null(ds->drives[1].file);
    /* Not while somebody may still read from it as that. */
    hang("d1", true);
    fiber_spawn(c.env, "read", read_fiber, &ds->drives[1]);
    fiber_yield();
    assert_int_equal(add(ds, "d1", 0, false, "has not answered"), ERR_BUSY);
    assert_int_equal(ds->count, 3);
    hang("d1", false);
    assert_int_equal(add(ds, "d1", 0, false, ""), 3);
    assert_null(ds->drives[1].file);
    assert_int_equal(driveset_healthy(ds), 3);
    ds = reopen(ds);
    assert_string_equal(ds->drives[3].path, "d1");
    assert_int_equal(ds->drives[1].state, DRIVE_MISSING);
    driveset_close(ds);
}

static void test_swap(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, swap_main, NULL);
}

/* ---- Power cuts ---- */

enum order { ADD, LET_GO, LEAVE, KEEP, REPLACE, SET_CLASS, ORDERS };

struct cut {
    enum order order;
    unsigned writes, at;
    bool done; /* the order had returned */
};

static int hook_cut(void *arg, const char *path, const struct env_io *io)
{
    struct cut *cut = arg;

    (void)path;
    if (io->kind == ENV_WRITE && ++cut->writes == cut->at)
        sim_pause(c.sim);
    return 0;
}

/* What the order needs: four drives of which one is leaving, or three. */
static bool wants_four(enum order order)
{
    return order == LET_GO || order == KEEP;
}

static void prepare_main(void *arg)
{
    const struct cut *cut = arg;
    struct driveset *ds;

    format3(NULL);
    if (!wants_four(cut->order))
        return;
    ds = store_case_open(&c, 3);
    assert_int_equal(add(ds, "d3", size_of(SLOTS), false, ""), 3);
    assert_int_equal(member_leave(ds, 2, true), 0);
    driveset_close(ds);
}

static void give_order(struct driveset *ds, enum order order)
{
    struct member_add a = {
        .path = "d3", .size = size_of(SLOTS), .force = true, .class_ = 1, .replaces = 2};
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    uint32_t index = 99;

    if (order == ADD) /* forced: a first try may have left half a superblock */
        assert_int_equal(add(ds, "d3", size_of(SLOTS), true, ""), 3);
    else if (order == LET_GO)
        assert_int_equal(member_let_go(ds, 2), 0);
    else if (order == LEAVE || order == KEEP)
        assert_int_equal(member_leave(ds, 2, order == LEAVE), 0);
    else if (order == SET_CLASS)
        assert_int_equal(member_set_class(ds, 1, 1), 0);
    else
        assert_int_equal(member_add(ds, &a, &why, &index), 0);
    if (order == REPLACE) {
        assert_int_equal(index, 3);
        member_joined(ds, index);
    }
}

static void cut_main(void *arg)
{
    struct cut *cut = arg;
    struct driveset *ds = store_case_open(&c, 8);

    c.hook = hook_cut;
    c.hook_arg = arg;
    give_order(ds, cut->order);
    cut->done = true;
    sim_pause(c.sim);
    env_sleep(c.env, ENV_NS_PER_S);
}

/* Has the order been carried out? It has wholly, or not at all. */
static bool is_after(const struct driveset *ds, enum order order)
{
    unsigned n = driveset_healthy(ds);

    switch (order) {
    case ADD:
        assert_int_equal(n, ds->count);
        return n == 4;
    case LET_GO:
        assert_int_equal(n, ds->drives[2].state == DRIVE_NONE ? 3 : 4);
        assert_int_equal(ds->drives[2].leaving, n == 4);
        return n == 3;
    case LEAVE:
        return ds->drives[2].leaving;
    case KEEP:
        return !ds->drives[2].leaving;
    case REPLACE:
        assert_int_equal(n, ds->count);
        assert_int_equal(ds->drives[2].leaving, n == 4);
        return n == 4;
    default:
        assert_int_equal(ds->drives[0].class_, 0);
        return ds->drives[1].class_ == 1;
    }
}

/* Before or after, whole; after when the order had returned; and it can be given again. */
static void after_main(void *arg)
{
    const struct cut *cut = arg;
    struct driveset *ds = store_case_open(&c, 8);
    bool after = is_after(ds, cut->order);

    assert_true(after || !cut->done);
    if (!after)
        give_order(ds, cut->order);
    ds = reopen(ds);
    assert_true(is_after(ds, cut->order));
    if (cut->order == LET_GO) {
        int rc = add(ds, "d2", 0, false, "");

        if (rc == ERR_EXIST && !cut->done) /* cut in the wipe: half a superblock, of nobody */
            rc = add(ds, "d2", 0, true, "");
        assert_int_equal(rc, 2);
        ds = reopen(ds);
        assert_int_equal(driveset_healthy(ds), 4);
    }
    driveset_close(ds);
}

/* At each write of each order. */
static void test_power_cuts(void **state)
{
    for (unsigned order = 0; order < ORDERS; order++) {
        unsigned done = 0;

        for (unsigned i = 0; i < 36; i++) {
            struct cut cut = {.order = (enum order)order, .at = 1 + i / 3};

            teardown(state);
            sim_case_init(&c, i + 1);
            sim_case_run(&c, prepare_main, &cut);
            sim_case_run_and_kill(&c, cut_main, &cut, true);
            c.hook = NULL;
            sim_case_run(&c, after_main, &cut);
            done += cut.done;
        }
        assert_in_range(done, 1, 35);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_add, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_new_one_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_silent, setup, teardown),
        cmocka_unit_test_setup_teardown(test_silent_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_half_signed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leave, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stranger, setup, teardown),
        cmocka_unit_test_setup_teardown(test_swap, setup, teardown),
        cmocka_unit_test_setup_teardown(test_power_cuts, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

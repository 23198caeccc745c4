/* lib/store/drive: making and opening a store, and which drives count after what has happened to
 * them. Each test is a process, or a few one after the other, over simulated media. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/drive_io.h"
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

static void format3(void *arg)
{
    (void)arg;
    assert_int_equal(store_case_format(&c, 3, 2, 1, 4, STORE_JOURNAL), 0);
}

/* ---- Making ---- */

static void profile_case(unsigned n, unsigned want_k, unsigned want_m)
{
    unsigned k, m;

    driveset_profile(n, &k, &m);
    assert_int_equal(k, want_k);
    assert_int_equal(m, want_m);
}

static void test_profiles(void **state)
{
    (void)state;
    profile_case(1, 1, 0);
    profile_case(2, 1, 1);
    profile_case(3, 2, 1);
    profile_case(4, 2, 2);
    profile_case(5, 2, 2);
    profile_case(6, 4, 2);
    profile_case(32, 4, 2);
}

static void format_main(void *arg)
{
    struct driveset *ds;

    format3(arg);
    ds = store_case_open(&c, 3);
    assert_int_equal(driveset_healthy(ds), 3);
    assert_int_equal(ds->super.data_columns, 2);
    assert_int_equal(ds->super.parity_columns, 1);
    assert_int_equal(ds->super.clean, 1);
    assert_int_equal(ds->super.epoch, 1);
    assert_int_equal(ds->super.journal_mirrors, 3); /* m + 1 of them, the first */
    assert_int_equal(ds->super.slots_off, FORMAT_JOURNAL_OFF + STORE_JOURNAL);
    assert_int_equal(drive_slot_off(ds, 2), ds->super.slots_off + 2 * FORMAT_SLOT_SIZE);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(ds->drives[i].slot_count, 4);
        assert_string_equal(ds->drives[i].reason, "");
        assert_int_equal(sim_file_size(c.sim, ds->drives[i].path), drive_slot_off(ds, 4));
    }
    assert_memory_not_equal(ds->drives[0].uuid, ds->drives[1].uuid, 16);
    driveset_close(ds);
}

static void test_format(void **state)
{
    (void)state;
    sim_case_run(&c, format_main, NULL);
}

static void params_main(void *arg)
{
    struct driveset *ds;

    (void)arg;
    assert_int_equal(store_case_format(&c, 2, 2, 1, 4, STORE_JOURNAL), ERR_INVAL);
    assert_int_equal(store_case_format(&c, 2, 0, 1, 4, STORE_JOURNAL), ERR_INVAL);
    assert_int_equal(store_case_format(&c, 2, 1, 1, 0, STORE_JOURNAL), ERR_INVAL);
    assert_int_equal(store_case_format(&c, 2, 1, 1, 1ull << 40, STORE_JOURNAL), ERR_INVAL);
    assert_int_equal(store_case_format(&c, 2, 1, 1, 4, STORE_JOURNAL + 1), ERR_INVAL);
    assert_int_equal(store_case_format(&c, 2, 1, 1, 4, FORMAT_JOURNAL_MIN - FORMAT_UNIT),
                     ERR_INVAL);
    assert_int_equal(driveset_open(c.env, store_case_paths(3), 0, &ds), ERR_INVAL);
    assert_int_equal(driveset_open(c.env, store_case_paths(3), 3, &ds), ERR_LOST);
}

static void test_params(void **state)
{
    (void)state;
    sim_case_run(&c, params_main, NULL);
}

static void again_main(void *arg)
{
    struct driveset_params p = {.count = 3,
                                .paths = store_case_paths(3),
                                .k = 2,
                                .m = 1,
                                .slot_count = 4,
                                .journal_len = STORE_JOURNAL};
    static const uint8_t other[16] = {7};
    struct driveset *ds;
    uint8_t uuid[16];

    format3(arg);
    ds = store_case_open(&c, 3);
    memcpy(uuid, ds->super.store_uuid, 16);
    p.uuid = uuid;
    assert_int_equal(driveset_format(c.env, &p), ERR_LOCKED);
    driveset_close(ds);
    p.uuid = NULL;
    assert_int_equal(driveset_format(c.env, &p), ERR_EXIST);
    p.uuid = other;
    assert_int_equal(driveset_format(c.env, &p), ERR_EXIST);
    p.uuid = uuid;
    assert_int_equal(driveset_format(c.env, &p), 0);
    ds = store_case_open(&c, 3);
    assert_memory_equal(uuid, ds->super.store_uuid, 16);
    assert_int_equal(driveset_healthy(ds), 3);
    assert_int_equal(driveset_commit(ds, false, NULL, NULL), 0); /* as a start does */
    driveset_close(ds);
    assert_int_equal(driveset_format(c.env, &p), ERR_EXIST);
}

static void test_format_again(void **state)
{
    (void)state;
    sim_case_run(&c, again_main, NULL);
}

/* A block device does not grow: what it says to that is what the format says. */
static int hook_fixed_size(void *arg, const char *path, const struct env_io *io)
{
    (void)arg;
    (void)path;
    return io->kind == ENV_RESIZE ? ERR_UNSUPPORTED : 0;
}

static void too_small_main(void *arg)
{
    (void)arg;
    c.hook = hook_fixed_size;
    assert_int_equal(store_case_format(&c, 3, 2, 1, 4, STORE_JOURNAL), ERR_UNSUPPORTED);
    c.hook = NULL;
}

static void shrunk_main(void *arg)
{
    struct driveset *ds;
    struct env_file *f;
    uint64_t size = sim_file_size(c.sim, "d1");

    (void)arg;
    assert_int_equal(env_open(c.env, "d1", 0, &f), 0);
    assert_int_equal(env_resize(f, size - FORMAT_UNIT), 0);
    ds = store_case_open(&c, 3);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_string_equal(ds->drives[1].reason, "is smaller than it was");
    assert_true(drive_readable(&ds->drives[1]));
    driveset_close(ds);
    assert_int_equal(env_resize(f, size), 0);
    env_close(f);
    ds = store_case_open(&c, 3);
    assert_int_equal(driveset_healthy(ds), 3);
    driveset_close(ds);
}

static void test_too_small(void **state)
{
    (void)state;
    sim_case_run(&c, too_small_main, NULL);
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, shrunk_main, NULL);
}

/* ---- Superblocks ---- */

static void expect_healthy(unsigned healthy)
{
    struct driveset *ds = store_case_open(&c, 3);

    assert_int_equal(driveset_healthy(ds), healthy);
    driveset_close(ds);
}

static void damage_main(void *arg)
{
    struct driveset *ds;

    (void)arg;
    sim_file_corrupt(c.sim, "d0", FORMAT_SUPER_OFF_A + 200, 1);
    expect_healthy(3);
    sim_file_corrupt(c.sim, "d1", FORMAT_SUPER_OFF_B, FORMAT_UNIT);
    expect_healthy(3);
    sim_file_corrupt(c.sim, "d0", FORMAT_SUPER_OFF_B + 4000, 64);
    ds = store_case_open(&c, 3);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_int_equal(ds->drives[0].state, DRIVE_MISSING);
    assert_string_equal(ds->drives[0].reason, "its superblock is damaged or not Filmroom's");
    assert_true(drive_readable(&ds->drives[0])); /* fragments on it may still serve */
    /* The next commit mends the copies of those that count. */
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    driveset_close(ds);
    sim_file_corrupt(c.sim, "d1", FORMAT_SUPER_OFF_A, FORMAT_UNIT);
    expect_healthy(2);
    sim_file_corrupt(c.sim, "d1", FORMAT_SUPER_OFF_B, FORMAT_UNIT);
    sim_file_corrupt(c.sim, "d2", FORMAT_SUPER_OFF_A, FORMAT_UNIT);
    sim_file_corrupt(c.sim, "d2", FORMAT_SUPER_OFF_B, FORMAT_UNIT);
    assert_int_equal(driveset_open(c.env, store_case_paths(3), 3, &ds), ERR_LOST);
}

static void test_damaged_superblocks(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, damage_main, NULL);
}

/* Every byte counts: no flipped bit of a superblock goes unnoticed. */
static void every_byte_main(void *arg)
{
    struct driveset *ds;

    (void)arg;
    for (unsigned at = 0; at < FORMAT_UNIT; at += 61) {
        ds = store_case_open(&c, 3);
        assert_int_equal(driveset_commit(ds, false, NULL, NULL), 0);
        driveset_close(ds);
        sim_file_corrupt(c.sim, "d0", FORMAT_SUPER_OFF_A + at, 1);
        sim_file_corrupt(c.sim, "d0", FORMAT_SUPER_OFF_B + at, 1);
        expect_healthy(2);
        ds = store_case_open(&c, 3);
        ds->drives[0].state = DRIVE_OK; /* mend it */
        assert_int_equal(driveset_commit(ds, false, NULL, NULL), 0);
        driveset_close(ds);
    }
}

static void test_every_byte(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, every_byte_main, NULL);
}

/* A superblock with sound CRCs and senseless fields is no superblock. */
static void put_super(unsigned drive, const struct format_super *s)
{
    struct format_super copy = *s;
    struct env_file *f;

    copy.crc = 0;
    copy.crc = crc32c(0, &copy, sizeof(copy));
    assert_int_equal(env_open(c.env, store_case_paths(3)[drive], 0, &f), 0);
    assert_int_equal(env_pwrite(f, &copy, sizeof(copy), FORMAT_SUPER_OFF_A, true), 0);
    assert_int_equal(env_pwrite(f, &copy, sizeof(copy), FORMAT_SUPER_OFF_B, true), 0);
    env_close(f);
}

static void get_super(unsigned drive, struct format_super *s)
{
    assert_int_equal(sim_file_read(c.sim, store_case_paths(3)[drive], s, sizeof(*s), 0), 0);
}

#define REFUSED(field, value)           \
    do {                                \
        struct format_super bad = good; \
        bad.field = (value);            \
        put_super(0, &bad);             \
        expect_healthy(2);              \
    } while (0)

static void senseless_main(void *arg)
{
    struct format_super good;

    (void)arg;
    get_super(0, &good);
    put_super(0, &good);
    expect_healthy(3);
    REFUSED(magic, 7);
    REFUSED(version, 3);
    REFUSED(drive_count, 0);
    REFUSED(drive_count, 33);
    REFUSED(drive_index, 3);
    REFUSED(data_columns, 0);
    REFUSED(data_columns, 255);
    REFUSED(data_columns, 3); /* 3+1 columns on three drives */
    REFUSED(parity_columns, 255);
    REFUSED(slot_size, 4096);
    REFUSED(journal_off, 0);
    REFUSED(journal_len, FORMAT_UNIT);
    REFUSED(journal_len, UINT64_MAX & ~(uint64_t)(FORMAT_UNIT - 1));
    REFUSED(slots_off, 4096);
    REFUSED(slots_off, UINT64_MAX & ~(uint64_t)(FORMAT_UNIT - 1));
    REFUSED(replay_off, 1);
    REFUSED(replay_off, good.journal_len + FORMAT_UNIT);
    REFUSED(clean_off, 1);
    REFUSED(clean_off, good.journal_len + FORMAT_UNIT);
    REFUSED(members[1].slot_count, 0);
    REFUSED(members[1].slot_count, UINT64_MAX);
    good.replay_off = good.journal_len; /* behind a batch that ends with the area */
    put_super(0, &good);
    expect_healthy(3);
}

static void test_senseless_superblocks(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, senseless_main, NULL);
}

/* ---- Membership ---- */

static void missing_main(void *arg)
{
    struct driveset *ds;
    uint64_t epoch;

    (void)arg;
    sim_file_delete(c.sim, "d2");
    ds = store_case_open(&c, 3);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_int_equal(ds->drives[2].state, DRIVE_MISSING);
    assert_string_equal(ds->drives[2].reason, "no such file or device");
    assert_false(drive_readable(&ds->drives[2]));
    assert_int_equal(ds->drives[2].slot_count, 4); /* known from the others */
    epoch = ds->super.epoch;
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    assert_int_equal(ds->super.epoch, epoch + 1);
    assert_int_equal(ds->super.members[2].state, FORMAT_DRIVE_OUT);
    assert_int_equal(ds->super.members[0].state, FORMAT_DRIVE_OK);
    driveset_close(ds);
}

static void test_missing_drive(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, missing_main, NULL);
}

/* A drive put out keeps its old superblock; the others' higher epoch counts, wherever it stands. */
static void stale_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    struct format_super s;

    (void)arg;
    driveset_put_out(ds, 0, "for the test");
    driveset_put_out(ds, 0, "twice is fine");
    assert_string_equal(ds->drives[0].reason, "for the test");
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(driveset_commit(ds, i % 2 == 0, NULL, NULL), 0);
    driveset_close(ds);
    get_super(0, &s);
    assert_int_equal(s.epoch, 1);
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->super.epoch, 4);
    assert_int_equal(driveset_healthy(ds), 3);                      /* back, and whole */
    assert_int_equal(ds->super.members[0].state, FORMAT_DRIVE_OUT); /* until the next commit */
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    driveset_close(ds);
    get_super(0, &s);
    assert_int_equal(s.epoch, 5);
    assert_int_equal(s.members[0].state, FORMAT_DRIVE_OK);
}

static void test_stale_drive(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, stale_main, NULL);
}

/* Epochs decide before generations: many superblocks of an old epoch do not outvote a new one. */
static void epoch_main(void *arg)
{
    struct format_super s;
    struct driveset *ds;

    (void)arg;
    get_super(1, &s);
    s.generation += 100;
    s.clean = 0;
    put_super(1, &s);
    get_super(2, &s);
    s.epoch++;
    s.replay_seq = 77;
    put_super(2, &s);
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->super.replay_seq, 77);
    driveset_close(ds);
}

static void test_epoch_first(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, epoch_main, NULL);
}

/* A drive of another store is left alone, even if it has seen far more epochs than ours. */
static void foreign_main(void *arg)
{
    struct format_super s, before;
    struct driveset *ds;

    (void)arg;
    get_super(1, &s);
    s.store_uuid[3] ^= 1;
    s.epoch = 1000;
    s.generation = 100000;
    put_super(1, &s);
    get_super(1, &before);
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->super.epoch, 1);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_int_equal(ds->drives[1].state, DRIVE_MISSING);
    assert_string_equal(ds->drives[1].reason, "belongs to another store or place");
    assert_false(drive_readable(&ds->drives[1]));
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    driveset_close(ds);
    get_super(1, &s);
    assert_memory_equal(&s, &before, sizeof(s));
}

static void test_foreign_drive(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, foreign_main, NULL);
}

/* One drive of each of two stores: nobody can say which one is meant. */
static void tie_main(void *arg)
{
    struct format_super s;
    struct driveset *ds;

    (void)arg;
    assert_int_equal(store_case_format(&c, 2, 1, 1, 4, STORE_JOURNAL), 0);
    get_super(1, &s);
    s.store_uuid[0] ^= 1;
    put_super(1, &s);
    assert_int_equal(driveset_open(c.env, store_case_paths(2), 2, &ds), ERR_CONFIG);
}

static void test_two_stores(void **state)
{
    (void)state;
    sim_case_run(&c, tie_main, NULL);
}

/* A drive is known by its superblock: where it is found does not matter, nor in which order. */
static void places_main(void *arg)
{
    const char *const swapped[] = {"nowhere", "d2", "d1", "d0"}, *const twice[] = {"d0", "d0",
                                                                                   "d2"};
    struct driveset *ds;

    (void)arg;
    assert_int_equal(driveset_open(c.env, swapped, 4, &ds), 0);
    assert_int_equal(driveset_healthy(ds), 3);
    assert_string_equal(ds->drives[0].path, "d0");
    assert_string_equal(ds->drives[1].path, "d1");
    driveset_close(ds);
    assert_int_equal(driveset_open(c.env, twice, 3, &ds), 0);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_int_equal(ds->drives[1].state, DRIVE_MISSING);
    driveset_close(ds);
    assert_int_equal(driveset_open(c.env, store_case_paths(2), 2, &ds), 0);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_int_equal(ds->count, 3);
    assert_string_equal(ds->drives[2].path, "");
    assert_string_equal(ds->drives[2].reason, "not found under any path known");
    driveset_close(ds);
}

static void test_places(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, places_main, NULL);
}

static void lock_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3), *second;

    (void)arg;
    assert_int_equal(driveset_open(c.env, store_case_paths(3), 3, &second), ERR_LOCKED);
    driveset_close(ds);
    driveset_close(store_case_open(&c, 3));
    driveset_close(NULL);
}

static void test_lock(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, lock_main, NULL);
}

/* A drive that is out may be busy yet with a write of a process that is gone: the others can do
 * without it. Not so one that counts. */
static void lock_out_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    bool leaving = arg != NULL;
    struct env_file *busy;
    uint64_t epoch;

    driveset_put_out(ds, 2, "test");
    epoch = ds->super.epoch;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(driveset_tell(ds), 0); /* as often as they like */
    assert_int_equal(ds->super.epoch, epoch + 1);
    ds->drives[2].leaving = leaving;
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    driveset_close(ds);
    assert_int_equal(env_open(c.env, "d2", ENV_OPEN_LOCK, &busy), 0);
    ds = store_case_open(&c, 3);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_int_equal(ds->drives[2].state, DRIVE_MISSING);
    assert_int_equal(ds->drives[2].leaving, leaving);
    assert_non_null(strstr(ds->drives[2].reason, "busy"));
    driveset_close(ds);
    env_close(busy);
    /* One that counts is somebody else's as long as it is locked, also where it is leaving. */
    ds = store_case_open(&c, 3);
    ds->drives[1].leaving = leaving;
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    driveset_close(ds);
    assert_int_equal(env_open(c.env, "d1", ENV_OPEN_LOCK, &busy), 0);
    assert_int_equal(driveset_open(c.env, store_case_paths(3), 3, &ds), ERR_LOCKED);
    env_close(busy);
}

static void test_lock_out(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, lock_out_main, NULL);
    sim_case_run(&c, lock_out_main, &c);
}

static int hook_first_super(void *arg, const char *path, const struct env_io *io)
{
    unsigned *left = arg;

    if (strcmp(path, "d0") != 0 || io->kind != ENV_READ || *left == 0)
        return 0;
    --*left;
    return ERR_IO;
}

/* A path listed twice, and the first reads of what is there fail: nobody else has it. */
static void twice_main(void *arg)
{
    const char *const paths[] = {"d0", "d0", "d1", "d2"};
    struct driveset *ds;
    unsigned left = 2; /* copies of the superblock */

    (void)arg;
    c.hook = hook_first_super;
    c.hook_arg = &left;
    assert_int_equal(driveset_open(c.env, paths, 4, &ds), 0);
    c.hook = NULL;
    assert_int_equal(left, 0);
    assert_int_equal(driveset_healthy(ds), 2);
    assert_int_equal(ds->drives[0].state, DRIVE_MISSING);
    driveset_close(ds);
}

static void test_twice(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, twice_main, NULL);
}

/* ---- Commit with drives failing ---- */

struct fail {
    unsigned drives; /* bit per drive */
    uint64_t off;    /* writes at this offset fail; UINT64_MAX: all */
};

static int hook_fail(void *arg, const char *path, const struct env_io *io)
{
    const struct fail *f = arg;

    if (io->kind != ENV_WRITE || !(f->drives >> store_case_drive(path) & 1) ||
        (f->off != UINT64_MAX && io->off != f->off))
        return 0;
    return ERR_IO;
}

static void set_replay(struct format_super *super, void *arg)
{
    super->replay_seq = *(uint64_t *)arg;
}

static void commit_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    struct fail f = {.drives = 2, .off = *(uint64_t *)arg};
    struct format_super s;
    uint64_t seq = 42;

    c.hook = hook_fail;
    c.hook_arg = &f;
    /* Only a note is to be committed, but the loss of a drive is told as well. */
    assert_int_equal(driveset_commit(ds, false, set_replay, &seq), 0);
    assert_int_equal(ds->drives[1].state, DRIVE_FAILED);
    assert_string_equal(ds->drives[1].reason, "superblock write failed");
    assert_int_equal(ds->drives[1].write_errors, 1);
    assert_int_equal(ds->super.epoch, 2);
    c.hook = NULL;
    driveset_close(ds);
    get_super(0, &s);
    assert_int_equal(s.replay_seq, 42);
    assert_int_equal(s.members[1].state, FORMAT_DRIVE_OUT);
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->super.replay_seq, 42);
    driveset_close(ds);
}

static void test_commit_failing_drive(void **state)
{
    static const uint64_t offs[] = {FORMAT_SUPER_OFF_A, FORMAT_SUPER_OFF_B, UINT64_MAX};

    for (unsigned i = 0; i < 3; i++) {
        uint64_t off = offs[i];

        if (i) {
            teardown(state);
            setup(state);
        }
        sim_case_run(&c, format3, NULL);
        sim_case_run(&c, commit_main, &off);
    }
}

static void all_fail_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    struct fail f = {.drives = 7, .off = FORMAT_SUPER_OFF_B};
    uint64_t seq = 42;

    (void)arg;
    c.hook = hook_fail;
    c.hook_arg = &f;
    assert_int_equal(driveset_commit(ds, false, set_replay, &seq), ERR_LOST);
    assert_int_equal(driveset_healthy(ds), 0);
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), ERR_LOST);
    c.hook = NULL;
    driveset_close(ds);
    /* Copy A is whole and newer: it counts, as after a crash between the two. */
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->super.replay_seq, 42);
    assert_int_equal(driveset_healthy(ds), 3);
    driveset_close(ds);
    sim_file_corrupt(c.sim, "d0", FORMAT_SUPER_OFF_A, FORMAT_UNIT);
    sim_file_corrupt(c.sim, "d1", FORMAT_SUPER_OFF_A, FORMAT_UNIT);
    sim_file_corrupt(c.sim, "d2", FORMAT_SUPER_OFF_A, FORMAT_UNIT);
    ds = store_case_open(&c, 3);
    assert_int_equal(ds->super.replay_seq, 1);
    assert_int_equal(driveset_healthy(ds), 3);
    driveset_close(ds);
}

static void test_commit_all_failing(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, all_fail_main, NULL);
}

/* A power cut in the middle of a commit leaves the state before or after it, whole. */
struct cut {
    unsigned writes, at;
};

static int hook_cut(void *arg, const char *path, const struct env_io *io)
{
    struct cut *cut = arg;

    (void)path;
    if (io->kind == ENV_WRITE && ++cut->writes == cut->at)
        sim_pause(c.sim);
    return 0;
}

static void cut_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    uint64_t seq = 42;

    c.hook = hook_cut;
    c.hook_arg = arg;
    assert_int_equal(driveset_commit(ds, true, set_replay, &seq), 0);
    sim_pause(c.sim);
    env_sleep(c.env, ENV_NS_PER_S);
}

static void after_cut_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);

    assert_int_equal(driveset_healthy(ds), 3);
    assert_true(ds->super.replay_seq == 1 || ds->super.replay_seq == 42);
    if (*(bool *)arg)
        assert_int_equal(ds->super.replay_seq, 42);
    driveset_close(ds);
}

static void test_commit_power_cut(void **state)
{
    for (unsigned at = 1; at <= 7; at++) {
        struct cut cut = {.at = at};
        bool done = at == 7; /* six writes: then it had returned */

        teardown(state);
        sim_case_init(&c, at);
        sim_case_run(&c, format3, NULL);
        sim_case_run_and_kill(&c, cut_main, &cut, true);
        c.hook = NULL;
        sim_case_run(&c, after_cut_main, &done);
    }
}

/* ---- Silence ---- */

static void format2(void *arg)
{
    (void)arg;
    assert_int_equal(store_case_format(&c, 2, 1, 1, 4, STORE_JOURNAL), 0);
}

static void answers_later(void *arg)
{
    (void)arg;
    env_sleep(c.env, 20 * ENV_NS_PER_S);
    sim_set_file_faults(c.sim, "d0", NULL);
}

/* A drive that is not waited for is the last one all of a sudden: it is waited for again. */
static void last_main(void *arg)
{
    static const struct sim_faults hangs = {.hang = true};
    struct driveset *ds = store_case_open(&c, 2);
    struct buf *b = buf_new(FORMAT_UNIT);
    uint64_t began = sim_now(c.sim);

    (void)arg;
    sim_set_file_faults(c.sim, "d0", &hangs);
    assert_int_equal(drive_pread(&ds->drives[0], &b, FORMAT_UNIT, 0), ERR_TIMEDOUT);
    assert_true(ds->drives[0].hung);
    fiber_spawn(c.env, "answers", answers_later, NULL);
    driveset_put_out(ds, 1, "for the test");
    assert_int_equal(driveset_commit(ds, true, NULL, NULL), 0);
    assert_true(sim_now(c.sim) - began > 20 * ENV_NS_PER_S);
    assert_int_equal(ds->drives[0].state, DRIVE_OK);
    env_sleep(c.env, ENV_NS_PER_S);
    assert_int_equal(drive_pread(&ds->drives[0], &b, FORMAT_UNIT, 0), 0);
    buf_unref(b);
    driveset_close(ds);
}

static void test_last_one(void **state)
{
    (void)state;
    sim_case_run(&c, format2, NULL);
    sim_case_run(&c, last_main, NULL);
}

static int hook_hang_on_write(void *arg, const char *path, const struct env_io *io)
{
    static const struct sim_faults hangs = {.hang = true};

    (void)arg;
    if (io->kind == ENV_WRITE && strcmp(path, "d0") == 0)
        sim_set_file_faults(c.sim, path, &hangs);
    return 0;
}

/* A drive falls silent while its superblock is mended, and writes that later: it has to be its own,
 * though others were read meanwhile. */
static void mend_hangs_main(void *arg)
{
    struct driveset *ds = store_case_open(&c, 3);
    uint64_t bad = 0, mended = 0;
    bool failed = false;
    struct buf *b = buf_new(FORMAT_UNIT);
    struct format_super s;

    (void)arg;
    sim_file_corrupt(c.sim, "d0", FORMAT_SUPER_OFF_A, FORMAT_UNIT);
    c.hook = hook_hang_on_write;
    driveset_mend_supers(ds, &bad, &mended, &failed);
    c.hook = NULL;
    assert_int_equal(bad, 1);
    assert_int_equal(mended, 0);
    assert_true(failed);
    sim_set_file_faults(c.sim, "d0", NULL);
    env_sleep(c.env, ENV_NS_PER_S);
    assert_int_equal(env_pread(ds->drives[0].file, b->data, FORMAT_UNIT, FORMAT_SUPER_OFF_A), 0);
    memcpy(&s, b->data, sizeof(s));
    assert_int_equal(s.magic, FORMAT_SUPER_MAGIC);
    assert_memory_equal(s.drive_uuid, ds->drives[0].uuid, 16);
    buf_unref(b);
    driveset_close(ds);
}

static void test_mend_hangs(void **state)
{
    (void)state;
    sim_case_run(&c, format3, NULL);
    sim_case_run(&c, mend_hangs_main, NULL);
}

/* A drive with much to do: one write takes long, and others are answered meanwhile. */
struct busy {
    struct driveset *ds;
    int rc;
    bool done;
};

static void busy_fiber(void *arg)
{
    struct busy *s = arg;
    struct buf *b = buf_new(FORMAT_UNIT);

    memset(b->data, 0, FORMAT_UNIT);
    s->rc = drive_pwrite(&s->ds->drives[0], b, FORMAT_UNIT, FORMAT_JOURNAL_OFF, true);
    s->done = true;
    buf_unref(b);
}

static void busy_main(void *arg)
{
    uint64_t takes = *(unsigned *)arg * ENV_NS_PER_S, began;
    const struct sim_faults slow = {.io_min_ns = takes, .io_max_ns = takes};
    struct busy s = {.ds = store_case_open(&c, 2)};
    struct buf *b = buf_new(FORMAT_UNIT);

    sim_set_file_faults(c.sim, "d0", &slow);
    fiber_spawn(c.env, "busy", busy_fiber, &s);
    env_sleep(c.env, ENV_NS_PER_MS);
    sim_set_file_faults(c.sim, "d0", NULL);
    for (began = sim_now(c.sim); !s.done; env_sleep(c.env, 300 * ENV_NS_PER_MS))
        (void)drive_pread(&s.ds->drives[0], &b, FORMAT_UNIT, 0);
    assert_int_equal(s.rc, takes < HEALTH_OWED ? 0 : ERR_TIMEDOUT);
    assert_int_equal(s.ds->drives[0].state, takes < HEALTH_OWED ? DRIVE_OK : DRIVE_FAILED);
    if (takes < HEALTH_OWED)
        assert_int_equal(s.ds->drives[0].health.state, HEALTH_OK);
    else
        assert_true(sim_now(c.sim) - began < HEALTH_OWED + ENV_NS_PER_S);
    buf_unref(b);
    driveset_close(s.ds);
}

static void test_busy(void **state)
{
    static unsigned seconds[] = {4, 20};

    for (unsigned i = 0; i < 2; i++) {
        teardown(state);
        setup(state);
        sim_case_run(&c, format2, NULL);
        sim_case_run(&c, busy_main, &seconds[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_profiles),
        cmocka_unit_test_setup_teardown(test_format, setup, teardown),
        cmocka_unit_test_setup_teardown(test_params, setup, teardown),
        cmocka_unit_test_setup_teardown(test_format_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_small, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_superblocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(test_senseless_superblocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_missing_drive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stale_drive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_epoch_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_drive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_stores, setup, teardown),
        cmocka_unit_test_setup_teardown(test_places, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_twice, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commit_failing_drive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commit_all_failing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commit_power_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(test_last_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mend_hangs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_busy, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* daemon/volume_snap.c: a snapshot stays what the volume was, whatever becomes of the volume, of
 * other snapshots and of the process; and space comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/sync.h"
#include "tests/unit/daemon/partition_case.h"

#define MIB (1u << 20)

static struct partition_case pc;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

static struct block_volume *open_ok(const char *name)
{
    struct block_volume *v;

    assert_int_equal(block_open(pc.bs, name, &v), 0);
    return v;
}

static void make(const char *name, uint64_t size)
{
    assert_int_equal(block_create(pc.bs, name, size, BLOCK_EVERY_WRITE), 0);
}

static void write_fill(const char *name, uint64_t off, size_t len, int byte)
{
    struct block_volume *v = open_ok(name);
    uint8_t *p = malloc(len);

    memset(p, byte, len);
    for (size_t at = 0; byte && at < len; at += BLOCK_SIZE)
        p[at] = (uint8_t)(at / BLOCK_SIZE); /* blocks that differ */
    if (byte)
        assert_int_equal(block_write(v, off, p, len, 0), 0);
    else
        assert_int_equal(block_discard(v, off, len, 0), 0);
    free(p);
    block_close(v);
}

static void expect_fill(const char *name, uint64_t off, size_t len, int byte)
{
    struct block_volume *v = open_ok(name);
    uint8_t *p = malloc(len);

    assert_int_equal(block_read(v, off, p, len), 0);
    for (size_t at = 0; at < len; at++)
        if (p[at] != (byte && at % BLOCK_SIZE == 0 ? (uint8_t)(at / BLOCK_SIZE) : byte))
            fail_msg("%s at %zu: %d, not %d", name, (size_t)off + at, p[at], byte);
    free(p);
    block_close(v);
}

static int snapshot(const char *name, const char *snap)
{
    return block_snapshot(pc.bs, &name, 1, snap);
}

static void wait_empty(void)
{
    for (unsigned i = 0; i < 600; i++) {
        struct partition_status s = partition_case_status(&pc);

        if (s.stored == 0 && s.logical == 0 && s.overlay_bytes == 0)
            return;
        env_sleep(pc.c.env, 100 * ENV_NS_PER_MS);
    }
    fail_msg("space did not come back");
}

static void reopen(void)
{
    assert_int_equal(partition_case_close(&pc), 0);
    partition_case_open(&pc);
}

/* ---- What is answered ---- */

static void admin_main(void *arg)
{
    const char *both[] = {"a", "b"}, *twice[] = {"a", "a"}, *gone[] = {"a", "none"};
    char longest[BLOCK_NAME_MAX + 1] = {0};
    struct block_info *infos, info;
    struct block_volume *v;
    size_t n;

    (void)arg;
    partition_case_open(&pc);
    make("a", MIB);
    make("b", 2 * MIB);
    memset(longest, 'n', BLOCK_NAME_MAX - 2);
    assert_int_equal(snapshot("a", longest), 0);
    longest[BLOCK_NAME_MAX - 2] = 'n';
    assert_int_equal(snapshot("a", longest), ERR_NAME);
    assert_int_equal(snapshot("a", ""), ERR_NAME);
    assert_int_equal(snapshot("a", "x@y"), ERR_NAME);
    assert_int_equal(snapshot("none", "s"), ERR_NOENT);
    assert_int_equal(block_snapshot(pc.bs, both, 0, "s"), ERR_INVAL);
    assert_int_equal(block_snapshot(pc.bs, twice, 2, "s"), ERR_INVAL);
    assert_int_equal(block_snapshot(pc.bs, gone, 2, "s"), ERR_NOENT);
    assert_int_equal(block_stat(pc.bs, "a@s", &info), ERR_NOENT); /* none, then */
    assert_int_equal(snapshot("b", "s"), 0);
    assert_int_equal(block_snapshot(pc.bs, both, 2, "s"), ERR_EXIST);
    assert_int_equal(block_stat(pc.bs, "a@s", &info), ERR_NOENT);
    assert_int_equal(block_snapshot(pc.bs, both, 2, "r"), 0);
    reopen();
    assert_int_equal(block_stat(pc.bs, "b@r", &info), 0);
    assert_true(info.readonly && info.size == 2 * MIB && info.created_ns > 0);
    assert_int_equal(block_list(pc.bs, &infos, &n), 0);
    assert_int_equal(n, 2); /* snapshots are not among the volumes */
    mem_free(infos);
    assert_int_equal(block_snapshots(pc.bs, "b", &infos, &n), 0);
    assert_int_equal(n, 2);
    assert_string_equal(infos[0].name, "b@s"); /* the older one */
    assert_string_equal(infos[1].name, "b@r");
    mem_free(infos);
    assert_int_equal(block_snapshots(pc.bs, NULL, &infos, &n), 0);
    assert_int_equal(n, 4);
    mem_free(infos);
    assert_int_equal(block_snapshots(pc.bs, "none", &infos, &n), ERR_NOENT);
    assert_int_equal(block_snapshots(pc.bs, "b@r", &infos, &n), ERR_NOENT);
    assert_int_equal(snapshot("b@r", "t"), ERR_NOENT); /* none of a snapshot */

    v = open_ok("b@r");
    assert_int_equal(block_write(v, 0, longest, 5, 0), ERR_READONLY);
    assert_int_equal(block_zero(v, 0, MIB, 0), ERR_READONLY);
    assert_int_equal(block_discard(v, 0, MIB, 0), ERR_READONLY);
    assert_int_equal(block_snapshot_remove(pc.bs, "b", "r"), ERR_BUSY);
    block_close(v);
    assert_int_equal(block_resize(pc.bs, "b@r", MIB), ERR_READONLY);
    assert_int_equal(block_remove(pc.bs, "b@r"), ERR_READONLY);
    assert_int_equal(block_remove(pc.bs, "b"), ERR_SNAPSHOTS);
    assert_int_equal(block_clone(pc.bs, "b", "none", "c"), ERR_NOENT);
    assert_int_equal(block_clone(pc.bs, "b", "r", "a"), ERR_EXIST);
    assert_int_equal(block_clone(pc.bs, "b", "r", "c@d"), ERR_NAME);
    assert_int_equal(block_clone(pc.bs, "b", "r", "c"), 0);
    assert_int_equal(block_rollback(pc.bs, "a", "none"), ERR_NOENT);
    v = open_ok("a");
    assert_int_equal(block_rollback(pc.bs, "a", "r"), ERR_BUSY);
    block_close(v);
    assert_int_equal(block_snapshot_remove(pc.bs, "b", "none"), ERR_NOENT);
    assert_int_equal(block_snapshot_remove(pc.bs, "b", "r"), 0);
    assert_int_equal(block_snapshot_remove(pc.bs, "b", "s"), 0);
    assert_int_equal(block_snapshot_remove(pc.bs, "b", "s"), ERR_NOENT);
    assert_int_equal(block_remove(pc.bs, "b"), 0); /* its clone stays */
    assert_int_equal(block_stat(pc.bs, "c", &info), 0);
    assert_true(!info.readonly && info.size == 2 * MIB);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_admin(void **state)
{
    (void)state;
    sim_case_run(&pc.c, admin_main, NULL);
}

/* ---- Each way to change a volume, upon a snapshot ---- */

static void life_check(int below)
{
    expect_fill("v@s", 0, MIB, 1);
    expect_fill("v@s", MIB, 8 * BLOCK_SIZE, 2);
    expect_fill("v@s", MIB + 8 * BLOCK_SIZE, MIB - 8 * BLOCK_SIZE, 0);
    expect_fill("v", 0, 4 * BLOCK_SIZE, 3);
    expect_fill("v", 128 * 1024, 128 * 1024, 4);
    expect_fill("v", 512 * 1024, 64 * 1024, 0);
    expect_fill("v", MIB, 4 * BLOCK_SIZE, below);
    expect_fill("v", MIB + 4 * BLOCK_SIZE, 4 * BLOCK_SIZE, 0);
}

static void life_main(void *arg)
{
    struct block_info info;

    (void)arg;
    partition_case_open(&pc);
    make("v", 2 * MIB);
    write_fill("v", 0, MIB, 1);
    write_fill("v", MIB, 8 * BLOCK_SIZE, 2); /* in the overlay when the snapshot is taken */
    assert_int_equal(snapshot("v", "s"), 0);
    assert_int_equal(block_stat(pc.bs, "v", &info), 0);
    assert_int_equal(info.mapped, MIB);
    write_fill("v", 0, 4 * BLOCK_SIZE, 3);
    write_fill("v", 128 * 1024, 128 * 1024, 4);
    write_fill("v", 512 * 1024, 64 * 1024, 0);
    write_fill("v", MIB + 4 * BLOCK_SIZE, 4 * BLOCK_SIZE, 0);
    expect_fill("v", MIB, 4 * BLOCK_SIZE, 2);
    life_check(2);
    assert_int_equal(partition_settle(pc.p), 0); /* drained, each to its own map */
    life_check(2);
    reopen();
    life_check(2);
    assert_int_equal(block_resize(pc.bs, "v", MIB), 0);
    assert_int_equal(block_resize(pc.bs, "v", 2 * MIB), 0);
    life_check(0);
    expect_fill("v", MIB, MIB, 0); /* and not what the snapshot has there */
    assert_int_equal(block_snapshot_remove(pc.bs, "v", "s"), 0);
    for (unsigned i = 0; i < 3; i++) {
        expect_fill("v", 0, 4 * BLOCK_SIZE, 3);
        expect_fill("v", 512 * 1024, 64 * 1024, 0);
        expect_fill("v", MIB, MIB, 0);
        assert_int_equal(partition_settle(pc.p), 0);
        env_sleep(pc.c.env, ENV_NS_PER_S);
    }
    assert_int_equal(partition_case_status(&pc).logical, MIB - 64 * 1024);
    assert_int_equal(block_remove(pc.bs, "v"), 0);
    wait_empty();
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_life(void **state)
{
    (void)state;
    sim_case_run(&pc.c, life_main, NULL);
}

/* ---- Any order ---- */

#define BLOCKS 200u /* some leaves, the last not whole */

struct copy {
    char name[40];
    bool there, is_snapshot;
    unsigned of;
    uint8_t bytes[BLOCKS];
};

static struct copy copies[16];

static void copy_check(const struct copy *c)
{
    static uint8_t buf[BLOCKS * BLOCK_SIZE];
    struct block_volume *v = open_ok(c->name);

    assert_int_equal(block_read(v, 0, buf, sizeof(buf)), 0);
    for (unsigned b = 0; b < BLOCKS; b++)
        if (buf[b * BLOCK_SIZE + 7] != c->bytes[b] || buf[(b + 1) * BLOCK_SIZE - 1] != c->bytes[b])
            fail_msg("%s block %u: %d, not %d", c->name, b, buf[b * BLOCK_SIZE + 7], c->bytes[b]);
    block_close(v);
}

static void copy_change(struct copy *c)
{
    unsigned first = (unsigned)sim_random(pc.c.sim, BLOCKS);
    unsigned n = 1 + (unsigned)sim_random(pc.c.sim, sim_random(pc.c.sim, 3) ? 8 : 80);
    int byte = sim_random(pc.c.sim, 4) ? 1 + (int)sim_random(pc.c.sim, 250) : 0;

    n = n < BLOCKS - first ? n : BLOCKS - first;
    write_fill(c->name, (uint64_t)first * BLOCK_SIZE, (size_t)n * BLOCK_SIZE, byte);
    memset(c->bytes + first, byte, n);
}

static void copy_step(void)
{
    struct copy *c = &copies[sim_random(pc.c.sim, 16)], *s = &copies[sim_random(pc.c.sim, 16)];
    unsigned index = (unsigned)(c - copies);
    const char *of = copies[s->of].name, *snap = s->name + strlen(of) + 1;

    if (!c->there && s->there && s->is_snapshot && sim_random(pc.c.sim, 3) == 0) {
        snprintf(c->name, sizeof(c->name), "v%u", index);
        assert_int_equal(block_clone(pc.bs, of, snap, c->name), 0);
        memcpy(c->bytes, s->bytes, BLOCKS);
        c->there = true;
        c->is_snapshot = false;
    } else if (!c->there && s->there && !s->is_snapshot) {
        char number[8], base[sizeof(s->name) - sizeof(number)];

        snprintf(base, sizeof(base), "%s", s->name);

        snprintf(number, sizeof(number), "s%u", index);
        snprintf(c->name, sizeof(c->name), "%s@%s", base, number);
        assert_int_equal(snapshot(base, number), 0);
        memcpy(c->bytes, s->bytes, BLOCKS);
        c->there = c->is_snapshot = true;
        c->of = (unsigned)(s - copies);
    } else if (s->there && s->is_snapshot && sim_random(pc.c.sim, 4) == 0) {
        assert_int_equal(block_rollback(pc.bs, of, snap), 0);
        memcpy(copies[s->of].bytes, s->bytes, BLOCKS);
    } else if (s->there && s->is_snapshot && sim_random(pc.c.sim, 3) == 0) {
        assert_int_equal(block_snapshot_remove(pc.bs, of, snap), 0);
        s->there = s->is_snapshot = false;
    } else if (c->there && !c->is_snapshot && index && sim_random(pc.c.sim, 6) == 0) {
        int rc = block_remove(pc.bs, c->name);

        assert_true(rc == 0 || rc == ERR_SNAPSHOTS);
        c->there = rc != 0;
    }
    for (unsigned i = 0; i < 16; i++)
        if (copies[i].there && !copies[i].is_snapshot && sim_random(pc.c.sim, 3))
            copy_change(&copies[i]);
}

static void order_main(void *arg)
{
    (void)arg;
    memset(copies, 0, sizeof(copies));
    strcpy(copies[0].name, "v0");
    copies[0].there = true;
    partition_case_open(&pc);
    make("v0", (uint64_t)BLOCKS * BLOCK_SIZE);
    for (unsigned i = 0; i < 300; i++) {
        copy_step();
        if (sim_random(pc.c.sim, 10) == 0)
            env_sleep(pc.c.env, ENV_NS_PER_S); /* drained and merged */
        if (sim_random(pc.c.sim, 40) == 0)
            reopen();
        for (unsigned k = 0; k < 16; k++)
            if (copies[k].there)
                copy_check(&copies[k]);
    }
    for (unsigned k = 0; k < 16; k++)
        if (copies[k].there && copies[k].is_snapshot)
            assert_int_equal(block_snapshot_remove(pc.bs, copies[copies[k].of].name,
                                                   strchr(copies[k].name, '@') + 1),
                             0);
    for (unsigned k = 0; k < 16; k++)
        if (copies[k].there && !copies[k].is_snapshot)
            assert_int_equal(block_remove(pc.bs, copies[k].name), 0);
    wait_empty();
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_order(void **state)
{
    (void)state;
    sim_case_run(&pc.c, order_main, NULL);
}

/* ---- One moment ---- */

static struct fiber_group group;
static bool stop;

static void count_write(struct block_volume *v, uint64_t n, size_t len)
{
    static uint64_t p[64 * BLOCK_SIZE / 8];

    for (size_t i = 0; i < len / 8; i++)
        p[i] = n; /* the store takes a copy before others have their turn, or writes it itself */
    assert_int_equal(block_write(v, 0, p, len, 0), 0);
}

#define COUNTERS 8u
static const char *const counters[COUNTERS] = {"h", "g", "f", "e", "d", "c", "b", "a"};

/* Counts in a, then in b, and so on: at no moment has a later one more than one before it, nor any
 * two of them counts more than one apart. Small writes and bulk ones take turns. */
static void counter_main(void *arg)
{
    struct block_volume *v[COUNTERS];

    (void)arg;
    for (unsigned i = 0; i < COUNTERS; i++)
        v[i] = open_ok(counters[COUNTERS - 1 - i]);
    for (uint64_t n = 1; !stop; n++)
        for (unsigned i = 0; i < COUNTERS; i++)
            count_write(v[i], n, (n + i) % 3 ? BLOCK_SIZE : 64 * BLOCK_SIZE);
    for (unsigned i = 0; i < COUNTERS; i++)
        block_close(v[i]);
    fiber_group_done(&group);
}

static uint64_t count_of(const char *name)
{
    struct block_volume *v = open_ok(name);
    uint64_t n;

    assert_int_equal(block_read(v, 0, &n, sizeof(n)), 0);
    block_close(v);
    return n;
}

/* What the counters had in a snapshot, checked to have been so at one moment. */
static void counts_of(unsigned snap, uint64_t counts[COUNTERS])
{
    char name[24];

    for (unsigned i = 0; i < COUNTERS; i++) {
        snprintf(name, sizeof(name), "%s@s%u", counters[i], snap);
        counts[i] = count_of(name);
        assert_true(i == 0 || counts[i] >= counts[i - 1]);
        assert_true(counts[i] <= counts[0] + 1);
    }
}

static void moment_main(void *arg)
{
    uint64_t taken[60][COUNTERS], now[COUNTERS];
    char snap[16];

    (void)arg;
    stop = false;
    partition_case_open(&pc);
    for (unsigned i = 0; i < COUNTERS; i++)
        make(counters[i], MIB);
    fiber_group_init(&group);
    fiber_group_add(&group, 1);
    fiber_spawn(pc.c.env, "counter", counter_main, NULL);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t before;

        env_sleep(pc.c.env, sim_random(pc.c.sim, 5 * ENV_NS_PER_MS));
        before = count_of("h");
        snprintf(snap, sizeof(snap), "s%u", i);
        assert_int_equal(block_snapshot(pc.bs, counters, COUNTERS, snap), 0);
        counts_of(i, taken[i]);
        assert_true(taken[i][0] >= before);
    }
    stop = true;
    fiber_group_wait(&group);
    assert_true(taken[59][0] > 20);
    assert_int_equal(partition_settle(pc.p), 0);
    reopen();
    for (unsigned i = 0; i < 60; i++) {
        counts_of(i, now);
        assert_memory_equal(now, taken[i], sizeof(now));
    }
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_moment(void **state)
{
    (void)state;
    sim_case_run(&pc.c, moment_main, NULL);
}

/* ---- Many ---- */

static void many_main(void *arg)
{
    char snap[16];
    unsigned n = 0;
    int rc;

    (void)arg;
    partition_case_open(&pc);
    make("v", MIB);
    do {
        if (n % 100 == 0)
            write_fill("v", n / 100 * 4ull * BLOCK_SIZE, 8 * BLOCK_SIZE, 1 + (int)n / 100);
        snprintf(snap, sizeof(snap), "s%u", n++);
        rc = snapshot("v", snap);
    } while (rc == 0);
    assert_int_equal(rc, ERR_DEPTH);
    assert_int_equal(n, 1024); /* 1023 were taken */
    reopen();
    expect_fill("v@s0", 0, 8 * BLOCK_SIZE, 1);
    expect_fill("v@s999", 0, 4 * BLOCK_SIZE, 1);
    expect_fill("v", 40 * BLOCK_SIZE, 8 * BLOCK_SIZE, 11);
    for (unsigned i = 0; i < 1023; i += i % 3 ? 1 : 2)
        if (i != 999) {
            snprintf(snap, sizeof(snap), "s%u", i);
            assert_int_equal(block_snapshot_remove(pc.bs, "v", snap), 0);
        }
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(partition_settle(pc.p), 0);
        env_sleep(pc.c.env, ENV_NS_PER_S);
    }
    assert_int_equal(snapshot("v", "again"), 0);
    expect_fill("v", 40 * BLOCK_SIZE, 8 * BLOCK_SIZE, 11);
    expect_fill("v@s999", 36 * BLOCK_SIZE, 8 * BLOCK_SIZE, 10);
    expect_fill("v@s999", 0, 4 * BLOCK_SIZE, 1);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_many(void **state)
{
    (void)state;
    sim_case_run(&pc.c, many_main, NULL);
}

/* ---- Killed ---- */

static void kill_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    make("v", MIB);
    write_fill("v", 0, 8 * BLOCK_SIZE, 1);
    assert_int_equal(snapshot("v", "s"), 0);
    write_fill("v", 4 * BLOCK_SIZE, 8 * BLOCK_SIZE, 2);
    assert_int_equal(snapshot("v", "t"), 0);
    write_fill("v", 8 * BLOCK_SIZE, 8 * BLOCK_SIZE, 3);
    assert_int_equal(block_snapshot_remove(pc.bs, "v", "s"), 0);
    sim_pause(pc.c.sim);
    env_sleep(pc.c.env, ENV_NS_PER_S);
}

static void after_kill_main(void *arg)
{
    struct block_info info;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_stat(pc.bs, "v@s", &info), ERR_NOENT);
    for (unsigned i = 0; i < 3; i++) {
        expect_fill("v", 0, 4 * BLOCK_SIZE, 1);
        expect_fill("v", 4 * BLOCK_SIZE, 4 * BLOCK_SIZE, 2);
        expect_fill("v", 8 * BLOCK_SIZE, 8 * BLOCK_SIZE, 3);
        expect_fill("v@t", 0, 4 * BLOCK_SIZE, 1);
        expect_fill("v@t", 4 * BLOCK_SIZE, 8 * BLOCK_SIZE, 2);
        assert_int_equal(partition_settle(pc.p), 0);
        env_sleep(pc.c.env, ENV_NS_PER_S);
    }
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_kill(void **state)
{
    (void)state;
    sim_case_run_and_kill(&pc.c, kill_main, NULL, true);
    sim_case_run(&pc.c, after_kill_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_admin, setup, teardown),
        cmocka_unit_test_setup_teardown(test_life, setup, teardown),
        cmocka_unit_test_setup_teardown(test_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_moment, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kill, setup, teardown),
    };

    return cmocka_run_group_tests_name("snapshots", tests, NULL, NULL);
}

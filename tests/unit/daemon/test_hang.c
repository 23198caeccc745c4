/* Drives that hang under the whole engine: no client waits for more than two seconds, nothing that
 * was acknowledged is lost, a start and an end do not wait for long; and where more drives hang
 * than the profile bears, everybody waits and no drive is put out for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/membership.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "lib/store/drive_io.h"
#include "tests/sim/instances.h"
#include "tests/unit/daemon/partition_case.h"

#define MIB   (1u << 20)
#define STALL (2 * ENV_NS_PER_S)

enum act { ACT_READ, ACT_SMALL, ACT_BULK, ACT_PUT, ACT_SETTLE, ACT_CREATE, ACT_COUNT };

static struct partition_case pc;
static unsigned hanging; /* bit per drive: what this run hangs */
static enum act act;
static unsigned lost;                 /* drives that are gone when it is checked */
static unsigned runs;                 /* acts done */
static uint64_t given_up, hedges_won; /* over all runs */

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    pc.slots = 24;
    pc.drives = 6;
    pc.m = 2;
    hanging = lost = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

static void hang(unsigned mask, bool on)
{
    static const struct sim_faults hangs = {.hang = true};

    for (unsigned i = 0; i < pc.drives; i++)
        if (mask >> i & 1)
            sim_set_file_faults(pc.c.sim, store_case_paths(pc.drives)[i], on ? &hangs : NULL);
}

static uint64_t now(void)
{
    return sim_now(pc.c.sim);
}

static unsigned drives_ok(void)
{
    return driveset_healthy(partition_drives(pc.p));
}

/* ---- Contents: what block `i` of the volume holds tells by its seed ---- */

static struct block_volume *volume(void)
{
    struct block_volume *v;

    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    return v;
}

static void write_seed(struct block_volume *v, uint64_t off, size_t len, uint64_t seed)
{
    uint8_t *p = mem_alloc(len);

    sim_case_bytes(seed, p, len);
    assert_int_equal(block_write(v, off, p, len, 0), 0);
    mem_free(p);
}

static void expect_seed(struct block_volume *v, uint64_t off, size_t len, uint64_t seed)
{
    uint8_t *want = mem_alloc(len), *got = mem_alloc(len);

    sim_case_bytes(seed, want, len);
    assert_int_equal(block_read(v, off, got, len), 0);
    assert_memory_equal(got, want, len);
    mem_free(want);
    mem_free(got);
}

static void put_instance(unsigned index)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    struct object_put_info info = {0};
    struct object_put_result result;
    struct object_put *put;

    instance_make(index, 1, &s);
    assert_int_equal(object_put_begin(pc.os, &info, &put), 0);
    assert_int_equal(object_put_append(put, s.data, s.len), 0);
    assert_int_equal(object_put_commit(put, &result), 0);
    assert_int_equal(result.outcome, OBJECT_STORED);
}

static void expect_instance(unsigned index)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    char uid[OBJECT_UID_MAX + 1];
    struct object *o;
    uint8_t *got;
    size_t n;

    instance_make(index, 1, &s);
    instance_uid(index, uid);
    assert_int_equal(object_open(pc.os, NULL, NULL, uid, &o), 0);
    got = mem_alloc(s.len);
    for (size_t at = 0; at < s.len; at += n) {
        assert_int_equal(object_read(o, at, got + at, s.len - at, &n), 0);
        assert_true(n > 0);
    }
    assert_memory_equal(got, s.data, s.len);
    mem_free(got);
    object_close(o);
}

/* ---- One operation at a time ---- */

static void do_act(struct block_volume *v, unsigned round)
{
    switch (act) {
    case ACT_READ:
        expect_seed(v, 0, MIB, 1);
        break;
    case ACT_SMALL:
        write_seed(v, (2 + round) * MIB, BLOCK_SIZE, 10 + round);
        break;
    case ACT_BULK:
        write_seed(v, (2 + round) * MIB, MIB, 10 + round);
        break;
    case ACT_PUT:
        put_instance(1 + round);
        break;
    case ACT_SETTLE:
        write_seed(v, (2 + round) * MIB, 3 * BLOCK_SIZE, 10 + round);
        assert_int_equal(partition_settle(pc.p), 0);
        break;
    case ACT_CREATE:
        assert_int_equal(block_create(pc.bs, round ? "w1" : "w0", MIB, BLOCK_EVERY_WRITE), 0);
        break;
    case ACT_COUNT:
        break;
    }
    runs++;
}

static void expect_act(struct block_volume *v, unsigned round)
{
    struct block_info info;

    expect_seed(v, 0, MIB, 1);
    expect_instance(0);
    if (act == ACT_SMALL)
        expect_seed(v, (2 + round) * MIB, BLOCK_SIZE, 10 + round);
    else if (act == ACT_BULK)
        expect_seed(v, (2 + round) * MIB, MIB, 10 + round);
    else if (act == ACT_PUT)
        expect_instance(1 + round);
    else if (act == ACT_SETTLE)
        expect_seed(v, (2 + round) * MIB, 3 * BLOCK_SIZE, 10 + round);
    else if (act == ACT_CREATE)
        assert_int_equal(block_stat(pc.bs, round ? "w1" : "w0", &info), 0);
}

static struct block_volume *start(void)
{
    struct block_volume *v;

    partition_case_open(&pc);
    assert_int_equal(block_create(pc.bs, "v", 8 * MIB, BLOCK_EVERY_WRITE), 0);
    v = volume();
    write_seed(v, 0, MIB, 1);
    put_instance(0);
    assert_int_equal(partition_settle(pc.p), 0);
    return v;
}

static void count(void)
{
    const struct driveset *ds = partition_drives(pc.p);

    hedges_won += ds->hedges_won;
    for (unsigned i = 0; i < ds->count; i++)
        given_up += ds->drives[i].timeouts;
}

/* Two operations while drives hang: the first may wait for them, the second need not. */
static void acts_main(void *arg)
{
    struct block_volume *v = start();
    uint64_t began;

    (void)arg;
    hang(hanging, true);
    began = now();
    do_act(v, 0);
    assert_true(now() - began <= STALL);
    env_sleep(pc.c.env, 2 * ENV_NS_PER_S); /* time for all of them to be found out */
    began = now();
    do_act(v, 1);
    assert_true(now() - began <= ENV_NS_PER_S / 5);
    expect_act(v, 0);
    expect_act(v, 1);
    count();
    block_close(v);
    if (act == ACT_BULK) { /* late writes land while it goes on */
        hang(hanging, false);
        env_sleep(pc.c.env, ENV_NS_PER_S);
    }
    if (act == ACT_PUT) {
        sim_pause(pc.c.sim);
        env_sleep(pc.c.env, ENV_NS_PER_S);
        return;
    }
    began = now();
    assert_int_equal(partition_case_close(&pc), 0);
    assert_true(now() - began <= STALL + ENV_NS_PER_S);
}

static void check_main(void *arg)
{
    struct block_volume *v;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(drives_ok(), pc.drives - lost); /* those that hung count again */
    v = volume();
    expect_act(v, 0);
    expect_act(v, 1);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void run_acts(unsigned mask, enum act a)
{
    void *state = NULL;

    setup(&state);
    hanging = mask;
    act = a;
    if (a == ACT_PUT)
        sim_case_run_and_kill(&pc.c, acts_main, NULL, true);
    else
        sim_case_run(&pc.c, acts_main, NULL);
    hang(mask, false);
    /* What was acknowledged has all of its redundancy without the drives that hung. */
    for (unsigned i = 0; a == ACT_PUT && i < 6 && lost < 2; i++)
        if (!(mask >> i & 1) && ++lost)
            assert_int_equal(sim_file_delete(pc.c.sim, store_case_paths(6)[i]), 0);
    sim_case_run(&pc.c, check_main, NULL);
    teardown(&state);
}

static void test_one_hangs(void **state)
{
    (void)state;
    runs = 0;
    for (unsigned a = 0; a < ACT_COUNT; a++)
        for (unsigned d = 0; d < 6; d++)
            run_acts(1u << d, (enum act)a);
    assert_int_equal(runs, 2 * 6 * ACT_COUNT);
    assert_true(given_up > 2 * ACT_COUNT && hedges_won > 0);
}

static void test_two_hang(void **state)
{
    (void)state;
    for (unsigned a = 0; a < ACT_COUNT; a++) {
        run_acts(0x3, (enum act)a);  /* both mirrors of the journal */
        run_acts(0xc, (enum act)a);  /* a mirror, and who would take its place */
        run_acts(0x24, (enum act)a); /* a mirror, and another drive */
    }
}

/* ---- Starting with drives that hang ---- */

static void start_main(void *arg)
{
    (void)arg;
    block_close(start());
    assert_int_equal(partition_case_close(&pc), 0);
}

static void start_hung_main(void *arg)
{
    uint64_t began = now();
    struct block_volume *v;
    struct driveset *ds;

    (void)arg;
    partition_case_open(&pc);
    assert_in_range(now() - began, 3 * ENV_NS_PER_S, 4 * ENV_NS_PER_S);
    ds = partition_drives(pc.p);
    assert_int_equal(drives_ok(), 4);
    assert_int_equal(ds->drives[1].state, DRIVE_MISSING);
    assert_string_equal(ds->drives[1].reason, "does not answer");
    began = now();
    v = volume();
    expect_act(v, 0);
    write_seed(v, MIB, MIB, 2);
    assert_true(now() - began <= ENV_NS_PER_S / 5);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_start(void **state)
{
    (void)state;
    act = ACT_READ;
    sim_case_run(&pc.c, start_main, NULL);
    hang(0x12, true);
    sim_case_run(&pc.c, start_hung_main, NULL);
    hang(0x12, false);
    sim_case_run(&pc.c, check_main, NULL);
}

/* Drives that take their time to start, all of them, are waited for. */
static void start_slowly_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(drives_ok(), 6);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void wake_main(void *arg)
{
    struct env **env = arg;

    env_sleep(*env, 8 * ENV_NS_PER_S);
    hang(0x1f, false);
    env_sleep(*env, 2 * ENV_NS_PER_S);
    hang(0x20, false);
}

static void test_slow_start(void **state)
{
    struct env *waker;

    (void)state;
    sim_case_run(&pc.c, start_main, NULL);
    hang(0x3f, true);
    waker = sim_process(pc.c.sim, "waker", wake_main, &waker);
    sim_case_run(&pc.c, start_slowly_main, NULL);
    sim_kill(waker, false);
}

/* ---- More than the profile bears ---- */

static void let_go(void *arg)
{
    (void)arg;
    env_sleep(pc.c.env, 7 * ENV_NS_PER_S);
    hang(hanging, false);
}

/* A drive that would be out, if the store could spare it, says so. */
static void kept_main(void *arg)
{
    const struct drive *d = &partition_drives(pc.p)->drives[0];

    (void)arg;
    env_sleep(pc.c.env, 3 * ENV_NS_PER_S);
    assert_int_equal(d->state, DRIVE_OK);
    assert_int_equal(d->health.state, HEALTH_SUSPECT);
    assert_true(d->health.kept);
    assert_string_equal(d->health.reason, "does not answer");
}

static void too_many_main(void *arg)
{
    struct block_volume *v = start();
    uint64_t began;

    (void)arg;
    hang(hanging, true);
    fiber_spawn(pc.c.env, "let go", let_go, NULL);
    fiber_spawn(pc.c.env, "kept", kept_main, NULL);
    began = now();
    act = ACT_BULK;
    do_act(v, 0);
    assert_in_range(now() - began, 6 * ENV_NS_PER_S, 8 * ENV_NS_PER_S);
    assert_int_equal(drives_ok(), pc.drives);
    expect_act(v, 0);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_too_many(void **state)
{
    (void)state;
    hanging = 0x7;
    sim_case_run(&pc.c, too_many_main, NULL);
}

static void test_all_pause(void **state)
{
    (void)state;
    hanging = 0x3f;
    sim_case_run(&pc.c, too_many_main, NULL);
}

/* Files on one device: what one of them waits for is the device's. */
static void test_one_device(void **state)
{
    (void)state;
    pc.c.cache = 7;
    hanging = 0x1;
    sim_case_run(&pc.c, too_many_main, NULL);
}

/* One drive, no redundancy: a pause is a pause. */
static void test_only_drive(void **state)
{
    (void)state;
    pc.drives = 1;
    pc.m = 0;
    pc.slots = 40;
    hanging = 0x1;
    sim_case_run(&pc.c, too_many_main, NULL);
}

/* ---- Drives that are slow, or lie ---- */

static void set_slow(unsigned mask, uint32_t times)
{
    struct sim_faults slow = {.slow = times};

    for (unsigned i = 0; i < pc.drives; i++)
        if (mask >> i & 1)
            sim_set_file_faults(pc.c.sim, store_case_paths(pc.drives)[i], &slow);
}

/* A drive that holds a part of the volume's data: one that is read. */
static struct drive *data_drive(struct block_volume *v)
{
    struct driveset *ds = partition_drives(pc.p);
    uint64_t before[6];

    for (unsigned i = 0; i < 6; i++)
        before[i] = ds->drives[i].reads;
    expect_seed(v, 0, MIB, 1);
    for (unsigned i = 0; i < 6; i++)
        if (ds->drives[i].reads > before[i])
            return &ds->drives[i];
    return NULL;
}

static void slow_main(void *arg)
{
    struct block_volume *v = start();
    struct drive *d = data_drive(v);
    uint64_t began, reads;

    (void)arg;
    for (unsigned i = 0; i < 100; i++) /* it is learnt how long reads take */
        expect_seed(v, 0, MIB, 1);
    set_slow(1u << d->index, 10000); /* 0.2 to 2 s */
    for (unsigned i = 0; i < 10; i++) {
        began = now();
        expect_seed(v, 0, MIB, 1);
        assert_true(now() - began <= ENV_NS_PER_S / 20);
    }
    assert_int_equal(d->state, DRIVE_OK);
    assert_int_equal(d->health.state, HEALTH_SUSPECT);
    assert_true(partition_drives(pc.p)->hedges_won >= 8);
    reads = d->reads;
    began = now();
    expect_seed(v, 0, MIB, 1); /* it is not asked any more */
    assert_true(now() - began <= 15 * ENV_NS_PER_MS);
    env_sleep(pc.c.env, 3 * ENV_NS_PER_S); /* what was asked before has been answered */
    assert_true(d->reads - reads <= 11 * 16);
    reads = d->reads;
    expect_seed(v, 0, MIB, 1);
    assert_int_equal(d->reads, reads);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_slow_drive(void **state)
{
    (void)state;
    sim_case_run(&pc.c, slow_main, NULL);
}

/* Hedging does not help when all drives are slow, and is not done much then. */
static void all_slow_main(void *arg)
{
    struct block_volume *v = start();
    struct driveset *ds = partition_drives(pc.p);
    uint64_t reads = 0;

    (void)arg;
    for (unsigned i = 0; i < 100; i++)
        expect_seed(v, 0, MIB, 1);
    set_slow(0x3f, 3000); /* 60 to 600 ms */
    for (unsigned i = 0; i < 6; i++)
        reads -= ds->drives[i].reads;
    for (unsigned i = 0; i < 100; i++)
        expect_seed(v, 0, MIB, 1);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(ds->drives[i].state, DRIVE_OK);
        reads += ds->drives[i].reads;
    }
    assert_true(ds->hedged > 0);
    assert_true(ds->hedged * DRIVE_HEDGE_SHARE <= reads + DRIVE_HEDGE_CREDIT);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_all_slow(void **state)
{
    (void)state;
    sim_case_run(&pc.c, all_slow_main, NULL);
}

static void liar_main(void *arg)
{
    static const struct sim_faults lies = {.bit_flip = 1000000};
    struct block_volume *v = start();
    struct driveset *ds = partition_drives(pc.p);
    struct drive *d = data_drive(v);
    uint64_t reads;

    (void)arg;
    sim_set_file_faults(pc.c.sim, d->path, &lies);
    for (unsigned i = 0; i < 8 && d->health.state == HEALTH_OK; i++)
        expect_seed(v, 0, MIB, 1);
    assert_int_equal(d->health.state, HEALTH_SUSPECT);
    assert_true(d->corruptions >= HEALTH_FAULTS_SUSPECT);
    reads = d->reads;
    expect_seed(v, 0, MIB, 1);
    assert_int_equal(d->reads, reads);
    for (unsigned i = 0; i < HEALTH_FAULTS_OUT; i++)
        drive_corrupt(d);
    assert_int_equal(d->state, DRIVE_FAILED);
    env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_false(ds->uncommitted); /* the other drives know */
    /* One more can be spared, a third one cannot. */
    for (unsigned n = 1; n <= 2; n++) {
        struct drive *o = &ds->drives[(d->index + n) % 6];

        for (unsigned i = 0; i < HEALTH_FAULTS_OUT; i++)
            drive_corrupt(o);
        assert_int_equal(o->state, n == 1 ? DRIVE_FAILED : DRIVE_OK);
        assert_int_equal(o->health.kept, n == 2);
    }
    write_seed(v, MIB, MIB, 2);
    expect_seed(v, MIB, MIB, 2);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_liar(void **state)
{
    (void)state;
    sim_case_run(&pc.c, liar_main, NULL);
}

/* A third drive hangs, and the store does without it. */
static void expect_spared(struct block_volume *v, uint64_t seed)
{
    hang(0x4, true);
    write_seed(v, MIB, MIB, seed);
    expect_seed(v, MIB, MIB, seed);
    assert_int_equal(partition_drives(pc.p)->drives[2].state, DRIVE_FAILED);
    hang(0x4, false);
}

/* When what a lost drive had has been written anew, one more can be spared. */
static void made_up_main(void *arg)
{
    struct block_volume *v = start();
    struct driveset *ds = partition_drives(pc.p);

    (void)arg;
    for (unsigned i = 0; i < 2; i++)
        driveset_put_out(ds, i, "test");
    env_sleep(pc.c.env, 60 * ENV_NS_PER_S);
    assert_int_equal(partition_case_status(&pc).thin_segments, 0);
    assert_int_equal(ds->made_up, 3);
    expect_spared(v, 2);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

/* After a start that is known at once, and not when drives would be given up. */
static void made_up_before_main(void *arg)
{
    struct block_volume *v;
    struct driveset *ds;

    (void)arg;
    partition_case_open(&pc);
    v = volume();
    ds = partition_drives(pc.p);
    assert_int_equal(driveset_healthy(ds), 4);
    env_sleep(pc.c.env, 20 * ENV_NS_PER_S);
    assert_int_equal(ds->made_up, 3);
    expect_spared(v, 3);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_made_up(void **state)
{
    (void)state;
    pc.options.rebuild_delay_ns = 3600 * ENV_NS_PER_S; /* what failed is not waited for */
    pc.slots = 60;
    sim_case_run(&pc.c, made_up_main, NULL);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(sim_file_delete(pc.c.sim, store_case_paths(pc.drives)[i]), 0);
    sim_case_run(&pc.c, made_up_before_main, NULL);
}

/* When the lost drive has been replaced and is let go, no more can be spared than ever. */
static void replaced_main(void *arg)
{
    struct member_add a = {.path = "d6", .replaces = 0};
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    struct block_volume *v = start();
    struct driveset *ds = partition_drives(pc.p);
    uint32_t index;

    (void)arg;
    a.size = drive_slot_off(ds, (uint32_t)pc.slots);
    driveset_put_out(ds, 0, "test");
    env_sleep(pc.c.env, 60 * ENV_NS_PER_S);
    assert_int_equal(ds->made_up, 1);
    assert_int_equal(partition_drive_replace(pc.p, &a, &why, &index), 0);
    for (unsigned i = 0; i < 100 && ds->drives[0].state != DRIVE_NONE; i++)
        env_sleep(pc.c.env, ENV_NS_PER_S);
    assert_int_equal(ds->drives[0].state, DRIVE_NONE);
    for (unsigned n = 1; n <= 3; n++) {
        for (unsigned i = 0; i < HEALTH_FAULTS_OUT; i++)
            drive_corrupt(&ds->drives[n]);
        assert_int_equal(ds->drives[n].state, n <= 2 ? DRIVE_FAILED : DRIVE_OK);
    }
    expect_seed(v, 0, MIB, 1);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_replaced(void **state)
{
    (void)state;
    pc.options.rebuild_delay_ns = ENV_NS_PER_S;
    pc.slots = 60;
    sim_case_run(&pc.c, replaced_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_hangs),
        cmocka_unit_test(test_two_hang),
        cmocka_unit_test_setup_teardown(test_start, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_start, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_pause, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_device, setup, teardown),
        cmocka_unit_test_setup_teardown(test_only_drive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_drive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_slow, setup, teardown),
        cmocka_unit_test_setup_teardown(test_liar, setup, teardown),
        cmocka_unit_test_setup_teardown(test_made_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replaced, setup, teardown),
    };

    return dcm_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}

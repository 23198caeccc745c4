/* lib/rt: files of the simulator that hang or are slow, and files that are forsaken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env_sim.h"

#define UNIT 4096u

static const struct sim_faults hangs = {.hang = true};
static struct sim *sim;
static struct env *proc;
static uint64_t took;
static int64_t results[2];
static unsigned answered;

/* An operation that nobody waits for: it frees itself. */
struct loose {
    struct env_io io;
    uint8_t bytes[UNIT];
};

static void loose_done(struct env_io *io)
{
    struct loose *l = (struct loose *)io;

    results[answered++ % 2] = io->result;
    mem_free(l);
}

static void loose_start(struct env_file *f, enum env_io_kind kind, uint64_t off)
{
    struct loose *l = mem_zalloc(sizeof(*l));

    memset(l->bytes, 7, UNIT);
    l->io = (struct env_io){.kind = kind,
                            .dsync = true,
                            .file = f,
                            .buf = l->bytes,
                            .len = UNIT,
                            .off = off,
                            .done = loose_done};
    env_io_start(&l->io, 1);
}

static struct env_file *open_file(const char *path)
{
    struct env_file *f = NULL;

    assert_int_equal(env_open(proc, path, ENV_OPEN_CREATE | ENV_OPEN_LOCK, &f), 0);
    return f;
}

static void run(fiber_fn fn)
{
    sim = sim_new(3);
    answered = 0;
    proc = sim_process(sim, "p", fn, NULL);
    assert_true(sim_run(sim, ENV_FOREVER));
    assert_true(sim_process_ended(proc));
    assert_int_equal(sim_process_memory(proc), 0);
    sim_kill(proc, false);
}

static unsigned written(const char *path, uint64_t off)
{
    uint8_t b[UNIT];
    unsigned n = 0;

    if (sim_file_read(sim, path, b, UNIT, off) < 0)
        return 0;
    for (unsigned i = 0; i < UNIT; i++)
        n += b[i] == 7;
    return n;
}

/* ---- Hanging ---- */

static void hang_main(void *arg)
{
    struct env_file *f = open_file("disk"), *other = open_file("other");
    uint8_t b[UNIT];

    (void)arg;
    loose_start(f, ENV_WRITE, 0);
    sim_set_file_faults(sim, "disk", &hangs); /* it was in flight */
    loose_start(f, ENV_WRITE, UNIT);
    env_sleep(proc, 100 * ENV_NS_PER_S);
    assert_int_equal(answered, 0);
    assert_int_equal(written("disk", 0) + written("disk", UNIT), 0);
    assert_int_equal(env_pwrite(other, b, UNIT, 0, true), 0); /* only that file */
    sim_set_file_faults(sim, "disk", NULL);
    env_sleep(proc, ENV_NS_PER_S);
    assert_int_equal(answered, 2);
    assert_int_equal(results[0], UNIT);
    assert_int_equal(results[1], UNIT);
    assert_int_equal(written("disk", 0), UNIT);
    assert_int_equal(written("disk", UNIT), UNIT);
    env_close(f);
    env_close(other);
}

static void test_hang(void **state)
{
    (void)state;
    run(hang_main);
    sim_free(sim);
}

/* A kill takes what is held: it may have happened, in part or not at all. */
static void hang_for_ever_main(void *arg)
{
    struct env_file *f = open_file("disk");

    (void)arg;
    sim_set_file_faults(sim, "disk", &hangs);
    loose_start(f, ENV_WRITE, 0);
    env_sleep(proc, ENV_NS_PER_S);
    sim_pause(sim);
    env_sleep(proc, ENV_NS_PER_S);
}

static void test_hang_killed(void **state)
{
    unsigned all = 0, none = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        unsigned n;

        sim = sim_new(seed);
        proc = sim_process(sim, "p", hang_for_ever_main, NULL);
        assert_false(sim_run(sim, ENV_FOREVER));
        sim_kill(proc, false);
        sim_set_file_faults(sim, "disk", NULL);
        n = written("disk", 0);
        all += n == UNIT;
        none += n == 0;
        sim_free(sim);
    }
    assert_true(all > 0 && none > 0);
}

/* ---- Slow ---- */

static void slow_main(void *arg)
{
    struct env_file *f = open_file("disk");
    uint8_t b[UNIT] = {0};

    (void)arg;
    sim_set_file_faults(sim, "disk", &(struct sim_faults){.slow = 1000});
    took = env_now(proc);
    assert_int_equal(env_pwrite(f, b, UNIT, 0, true), 0);
    took = env_now(proc) - took;
    env_close(f);
}

static void test_slow(void **state)
{
    (void)state;
    run(slow_main);
    assert_in_range(took, 20 * ENV_NS_PER_MS, 200 * ENV_NS_PER_MS);
    sim_free(sim);
}

/* ---- Forsaken ---- */

static void forsake_main(void *arg)
{
    struct env_file *f = open_file("disk"), *idle = open_file("idle"), *again = NULL;

    (void)arg;
    env_forsake(idle); /* nothing in flight: closed */
    idle = open_file("idle");
    env_close(idle);
    sim_set_file_faults(sim, "disk", &hangs);
    loose_start(f, ENV_WRITE, 0);
    loose_start(f, ENV_READ, 0);
    env_forsake(f);
    env_sleep(proc, ENV_NS_PER_S);
    assert_int_equal(env_open(proc, "disk", ENV_OPEN_LOCK, &again), ERR_LOCKED);
}

static void answered_late_main(void *arg)
{
    struct env_file *again = NULL;

    forsake_main(arg);
    sim_set_file_faults(sim, "disk", NULL);
    env_sleep(proc, ENV_NS_PER_S);
    assert_int_equal(answered, 2);
    assert_int_equal(env_open(proc, "disk", ENV_OPEN_LOCK, &again), 0); /* it was closed */
    env_close(again);
}

static void test_forsake(void **state)
{
    (void)state;
    run(forsake_main); /* ends, and leaves no memory behind */
    assert_int_equal(answered, 2);
    assert_int_equal(results[0], ERR_CANCELED);
    assert_int_equal(results[1], ERR_CANCELED);
    sim_free(sim);
    run(answered_late_main);
    assert_int_equal(written("disk", 0), UNIT);
    sim_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hang),
        cmocka_unit_test(test_hang_killed),
        cmocka_unit_test(test_slow),
        cmocka_unit_test(test_forsake),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The contract of the key-value store, held against the one in memory: the common suite without an
 * image on the real env and with one in the simulator, and simulated kills at random moments. All
 * of it twice: by itself, and behind kv_front with sets so small that they change over all the
 * time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/rt/env.h"
#include "lib/rt/env_sim.h"
#include "lib/rt/env_uring.h"
#include "tests/contract/kv/crash.h"
#include "tests/contract/kv/suite.h"

struct test_case {
    struct suite suite;
    const struct suite_case *which;
    struct kv_mem_image *image;
    bool front;
};

/* One of the suite's cases in one shape. */
struct test_shape {
    const struct suite_case *which;
    bool front;
};

static int test_open(struct env *env, struct kv_mem_image *image, bool front, struct kv **ret_kv)
{
    uint64_t dice;
    struct kv *kv = NULL;

    env_random(env, &dice, sizeof(dice));
    CHECK_OK(kv_mem_open(env, image, &kv));
    *ret_kv = front ? kv_front_new(env, kv, (size_t)64 << dice % 9) : kv;
    return 0;
}

static int test_suite_open(struct suite *s, struct kv **ret_kv)
{
    struct test_case *c = s->owner;

    return test_open(s->env, c->image, c->front, ret_kv);
}

static void test_suite_main(void *arg)
{
    struct test_case *c = arg;

    c->which->run(&c->suite);
}

static void test_suite_real(void **state)
{
    struct env_uring_options options = {1, 1, 16};
    const struct test_shape *shape = *state;
    struct test_case c = {.which = shape->which, .front = shape->front};

    c.suite = (struct suite){.open = test_suite_open, .owner = &c, .seed = 7};
    assert_int_equal(env_uring_new(&options, &c.suite.env), 0);
    env_run(c.suite.env, test_suite_main, &c);
    env_free(c.suite.env);
}

static void test_suite_sim(void **state)
{
    const struct test_shape *shape = *state;

    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct sim *sim = sim_new(seed);
        struct test_case c = {
            .which = shape->which, .image = kv_mem_image_new(), .front = shape->front};

        c.suite =
            (struct suite){.reopens = true, .open = test_suite_open, .owner = &c, .seed = seed};
        c.suite.env = sim_process(sim, "suite", test_suite_main, &c);
        assert_true(sim_run(sim, ENV_FOREVER));
        assert_true(sim_process_ended(c.suite.env));
        sim_kill(c.suite.env, false); /* an ended process: checks that no memory is left */
        kv_mem_image_free(c.image);
        sim_free(sim);
    }
}

/* ---- Kills ---------------------------------------------------------------------------------- */

struct test_kill {
    struct env *env;
    struct kv_mem_image *image;
    struct crash_progress progress;
    uint64_t reached, count, seed; /* reached: what the last verification found */
    bool front;
};

static void test_kill_main(void *arg)
{
    struct test_kill *k = arg;
    struct kv *kv;

    CHECK_OK(test_open(k->env, k->image, k->front, &kv));
    k->reached = crash_verify(kv, &k->progress);
    k->progress.flushed = k->progress.written = k->reached;
    crash_workload(k->env, kv, &k->progress, k->reached + 1, k->count, 16, k->seed);
    CHECK_OK(kv_close(kv));
    k->progress.flushed = k->progress.written;
}

struct test_tally {
    uint64_t lost, spared; /* batches lost; batches kept that no flush had covered */
};

static void test_kill_run(uint64_t seed, bool front, struct test_tally *tally)
{
    struct sim *sim = sim_new(seed);
    struct test_kill k = {.image = kv_mem_image_new(), .front = front};

    for (int round = 0; round < 10; round++) {
        struct crash_progress before;

        k.seed = sim_random(sim, UINT64_MAX);
        k.count = 1 + sim_random(sim, 300);
        k.env = sim_process(sim, "writer", test_kill_main, &k);
        sim_run(sim, sim_now(sim) + sim_random(sim, 60 * ENV_NS_PER_MS));
        before = k.progress;
        sim_kill(k.env, true);
        k.count = 0;
        k.env = sim_process(sim, "reader", test_kill_main, &k);
        assert_true(sim_run(sim, ENV_FOREVER));
        sim_kill(k.env, false);
        tally->lost += before.written - k.reached;
        tally->spared += k.reached - before.flushed;
    }
    kv_mem_image_free(k.image);
    sim_free(sim);
}

static void test_kill_many(bool front)
{
    struct test_tally tally = {0, 0};

    for (uint64_t seed = 1; seed <= 100; seed++)
        test_kill_run(seed, front, &tally);
    printf("kills: %llu batches lost, %llu kept without a flush\n", (unsigned long long)tally.lost,
           (unsigned long long)tally.spared);
    assert_true(tally.lost > 1000);   /* else kills came too late, */
    assert_true(tally.spared > 1000); /* or nothing was ever made durable unasked */
}

static void test_kills(void **state)
{
    (void)state;
    test_kill_many(false);
}

static void test_kills_front(void **state)
{
    (void)state;
    test_kill_many(true);
}

int main(void)
{
    static struct CMUnitTest tests[80] = {cmocka_unit_test(test_kills),
                                          cmocka_unit_test(test_kills_front)};
    static struct test_shape shapes[2][40];
    static char names[80][48];
    size_t n = 2;

    CHECK(n + 4 * suite_case_count <= 80 && suite_case_count <= 40);
    for (size_t i = 0; i < suite_case_count; i++)
        for (int kind = 0; kind < 4; kind++, n++) {
            bool sim = kind & 1, front = kind & 2;

            shapes[front][i] = (struct test_shape){&suite_cases[i], front};
            snprintf(names[n], sizeof(names[n]), "%s%s%s", suite_cases[i].name,
                     front ? "_front" : "", sim ? "_sim" : "");
            tests[n] = (struct CMUnitTest){names[n], sim ? test_suite_sim : test_suite_real, NULL,
                                           NULL, &shapes[front][i]};
        }
    return _cmocka_run_group_tests("kv_mem", tests, n, NULL, NULL);
}

/* The policy of drives' health: what makes a drive suspect, what puts it out, what is forgotten. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "lib/store/health.h"

#define MS HEALTH_MS_
#define S  HEALTH_S_

static const struct health_silence none;

static enum health_state judged(struct health *h, uint64_t now, uint64_t silent, bool writing)
{
    struct health_silence s = {silent, writing};

    health_judge(h, now, &s, true);
    return h->state;
}

static void note(struct health *h, uint64_t now, enum health_event event, unsigned n)
{
    while (n--)
        health_note(h, now, event);
}

static void test_faults(void **state)
{
    struct health h;

    (void)state;
    health_init(&h);
    assert_int_equal(judged(&h, S, 0, false), HEALTH_OK);
    assert_string_equal(h.reason, "");
    note(&h, S, HEALTH_READ_ERROR, 2);
    note(&h, S, HEALTH_CORRUPTION, 1);
    assert_int_equal(judged(&h, S, 0, false), HEALTH_OK);
    note(&h, S, HEALTH_CORRUPTION, 1); /* they are counted together */
    assert_int_equal(judged(&h, S, 0, false), HEALTH_SUSPECT);
    assert_string_equal(h.reason, "read errors or wrong bytes");
    note(&h, S, HEALTH_READ_ERROR, HEALTH_FAULTS_OUT - 5);
    assert_int_equal(judged(&h, S, 0, false), HEALTH_SUSPECT);
    note(&h, S, HEALTH_READ_ERROR, 1);
    assert_int_equal(judged(&h, S, 0, false), HEALTH_OUT);
    assert_string_equal(h.reason, "too many read errors or wrong bytes");
    assert_int_equal(judged(&h, 1000000 * S, 0, false), HEALTH_OUT); /* for ever */
}

/* A drive with an error now and then is never out; a bad spell is forgotten. */
static void test_faults_fade(void **state)
{
    struct health h;
    uint64_t now = S;

    (void)state;
    health_init(&h);
    for (unsigned i = 0; i < 1000; i++, now += HEALTH_FAULTS_HALF_LIFE)
        note(&h, now, HEALTH_READ_ERROR, 1);
    assert_int_equal(judged(&h, now, 0, false), HEALTH_OK);
    note(&h, now, HEALTH_READ_ERROR, 4);
    assert_int_equal(judged(&h, now, 0, false), HEALTH_SUSPECT);
    /* Five have become two and a half, and then less than two. */
    assert_int_equal(judged(&h, now + HEALTH_FAULTS_HALF_LIFE, 0, false), HEALTH_SUSPECT);
    assert_int_equal(judged(&h, now + 2 * HEALTH_FAULTS_HALF_LIFE, 0, false), HEALTH_OK);
    note(&h, now, HEALTH_READ_ERROR, 20);
    assert_int_equal(judged(&h, now + 100 * HEALTH_FAULTS_HALF_LIFE, 0, false), HEALTH_OK);
}

static void test_silence(void **state)
{
    struct health h;

    (void)state;
    health_init(&h);
    assert_int_equal(judged(&h, 100 * S, 749 * MS, true), HEALTH_OK);
    assert_int_equal(judged(&h, 100 * S, 750 * MS, true), HEALTH_SUSPECT);
    assert_string_equal(h.reason, "does not answer");
    /* It has answered: nothing is sent to it for a while, where others can serve. */
    assert_int_equal(judged(&h, 101 * S, 0, false), HEALTH_SUSPECT);
    assert_string_equal(h.reason, "did not answer for a while");
    assert_int_equal(judged(&h, 129 * S, 0, false), HEALTH_SUSPECT);
    assert_int_equal(judged(&h, 130 * S, 0, false), HEALTH_OK);
    /* A disk may take its time to read; who writes cannot wait for that. */
    assert_int_equal(judged(&h, 200 * S, 9999 * MS, false), HEALTH_SUSPECT);
    assert_int_equal(judged(&h, 200 * S, 999 * MS, true), HEALTH_SUSPECT);
    assert_int_equal(judged(&h, 200 * S, 1000 * MS, true), HEALTH_OUT);
    health_init(&h);
    assert_int_equal(judged(&h, 200 * S, 10 * S, false), HEALTH_OUT);
    assert_string_equal(h.reason, "does not answer");
}

/* What the store cannot spare stays in, and it is said. */
static void test_kept(void **state)
{
    struct health_silence silent = {5 * S, true};
    struct health h;

    (void)state;
    health_init(&h);
    health_judge(&h, 100 * S, &silent, false);
    assert_int_equal(h.state, HEALTH_SUSPECT);
    assert_true(h.kept);
    note(&h, 100 * S, HEALTH_CORRUPTION, HEALTH_FAULTS_OUT);
    health_judge(&h, 100 * S, &none, false);
    assert_int_equal(h.state, HEALTH_SUSPECT);
    assert_true(h.kept);
    health_judge(&h, 100 * S, &none, true); /* now it can be spared */
    assert_int_equal(h.state, HEALTH_OUT);
    assert_false(h.kept);
}

static void test_slow(void **state)
{
    struct health h;

    (void)state;
    health_init(&h);
    note(&h, S, HEALTH_HEDGED, 7);
    assert_int_equal(judged(&h, S, 0, false), HEALTH_OK);
    note(&h, S, HEALTH_HEDGED, 1);
    assert_int_equal(judged(&h, S, 0, false), HEALTH_SUSPECT);
    assert_string_equal(h.reason, "is slower than the others");
    note(&h, S, HEALTH_HEDGED, 5000);
    assert_int_equal(judged(&h, S, 0, false), HEALTH_SUSPECT); /* never out */
    assert_int_equal(judged(&h, S + 20 * HEALTH_SLOW_HALF_LIFE, 0, false), HEALTH_OK);
}

/* The estimate finds the slowest hundredth, and follows when reads get slower or faster. */
static void test_p99(void **state)
{
    struct health h;

    (void)state;
    health_init(&h);
    for (unsigned i = 0; i < 20000; i++)
        health_took(&h, (1 + i * 7919 % 1000) * 1000);
    assert_in_range(h.read_p99, 900000, 1100000);
    for (unsigned i = 0; i < 20000; i++)
        health_took(&h, (1 + i * 7919 % 1000) * 100);
    assert_in_range(h.read_p99, 90000, 110000);
    for (unsigned i = 0; i < 2000; i++)
        health_took(&h, 50 * MS);
    assert_in_range(h.read_p99, 45 * MS, 56 * MS);
}

static void test_hedge_delay(void **state)
{
    uint64_t unknown[] = {0, 0}, fast[] = {MS, 2 * MS, 100000, 0}, usual[] = {9 * MS, 8 * MS, S},
             slow[] = {S, UINT64_MAX}, even[] = {20 * MS, S};

    (void)state;
    assert_int_equal(health_hedge_delay(unknown, 2), HEALTH_HEDGE_MAX);
    assert_int_equal(health_hedge_delay(fast, 4), HEALTH_HEDGE_MIN);
    assert_int_equal(health_hedge_delay(usual, 3), 27 * MS); /* one slow drive does not count */
    assert_int_equal(health_hedge_delay(slow, 2), HEALTH_HEDGE_MAX);
    assert_int_equal(health_hedge_delay(even, 2), 60 * MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults),      cmocka_unit_test(test_faults_fade),
        cmocka_unit_test(test_silence),     cmocka_unit_test(test_kept),
        cmocka_unit_test(test_slow),        cmocka_unit_test(test_p99),
        cmocka_unit_test(test_hedge_delay),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

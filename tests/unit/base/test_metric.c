/* Metrics: the arithmetic of histograms, Prometheus' text, and the limit of the slow log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/log.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"

static uint64_t seed = 88172645463325252ull;

/* xorshift64: the same numbers every time. */
static uint64_t next_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* ---- Histograms ---- */

/* Buckets follow each other without gap or overlap, and every value is where it belongs. */
static void test_buckets(void **state)
{
    struct metric_hist h;

    (void)state;
    for (int unit = METRIC_COUNT; unit <= METRIC_TIME; unit++) {
        uint64_t from = 0;

        metric_hist_init(&h, (enum metric_unit)unit);
        for (unsigned i = 0; i < METRIC_BUCKETS; i++) {
            uint64_t top = metric_bucket_top(&h, i);

            assert_true(top >= from);
            assert_int_equal(metric_bucket(&h, from), i);
            assert_int_equal(metric_bucket(&h, top), i);
            /* no wider than a sixteenth of what is in it, or one unit */
            assert_true(top - from <= from / METRIC_SUB || top - from < 1ull << h.shift);
            from = top + 1;
        }
        assert_int_equal(metric_bucket(&h, from), METRIC_BUCKETS - 1); /* clamped */
        assert_int_equal(metric_bucket(&h, UINT64_MAX), METRIC_BUCKETS - 1);
        if (unit == METRIC_TIME)
            assert_true(from > 3600ull * 1000000000); /* an hour can be told */
    }
}

/* Powers of two end buckets: what the text shows is exact. */
static void test_bucket_borders(void **state)
{
    struct metric_hist h;

    (void)state;
    metric_hist_init(&h, METRIC_TIME);
    for (unsigned power = 6; power < 42; power++) {
        uint64_t top = (1ull << power) - 1;

        assert_int_equal(metric_bucket_top(&h, metric_bucket(&h, top)), top);
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Against the exact percentile of the same values: never below, at most 1/16 (or a unit) above. */
static void check_percentiles(const uint64_t *sorted, size_t n, const struct metric_hist *h)
{
    static const unsigned points[] = {0, 1, 10, 250, 500, 900, 990, 999, 1000};

    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
        size_t rank = (n * points[i] + 999) / 1000;
        uint64_t exact = sorted[rank ? rank - 1 : 0], got = metric_hist_percentile(h, points[i]);

        assert_true(got >= exact);
        assert_true(got - exact <= exact / METRIC_SUB + (1ull << h->shift));
        assert_true(got <= sorted[n - 1]);
    }
    assert_int_equal(metric_hist_percentile(h, 1000), sorted[n - 1]);
}

static void test_percentiles(void **state)
{
    static uint64_t values[5000];
    static struct metric_hist h;

    (void)state;
    for (int unit = METRIC_COUNT; unit <= METRIC_TIME; unit++) {
        for (unsigned bits = 1; bits <= 36; bits++) {
            size_t n = 1 + next_random() % 5000;
            uint64_t sum = 0;

            metric_hist_init(&h, (enum metric_unit)unit);
            for (size_t i = 0; i < n; i++) {
                /* spread over magnitudes, as latencies are */
                values[i] = (next_random() & ((1ull << bits) - 1)) >> next_random() % bits;
                metric_record(&h, values[i]);
                sum += values[i];
            }
            qsort(values, n, sizeof(values[0]), compare);
            assert_int_equal(metric_hist_count(&h), n);
            assert_int_equal(h.sum, sum);
            check_percentiles(values, n, &h);
        }
    }
}

static void test_extremes(void **state)
{
    struct metric_hist h;

    (void)state;
    metric_hist_init(&h, METRIC_TIME);
    for (unsigned p = 0; p <= 1000; p++)
        assert_int_equal(metric_hist_percentile(&h, p), 0); /* nothing recorded */
    metric_record(&h, 0);
    assert_int_equal(metric_hist_percentile(&h, 500), 0);
    assert_int_equal(metric_hist_count(&h), 1);
    metric_record(&h, UINT64_MAX / 4);
    assert_int_equal(metric_hist_count(&h), 2);
    assert_int_equal(metric_hist_percentile(&h, 1000), UINT64_MAX / 4); /* beyond all buckets */
    assert_int_equal(metric_hist_percentile(&h, 999), UINT64_MAX / 4);
    assert_true(metric_hist_percentile(&h, 500) < 64);

    metric_hist_init(&h, METRIC_TIME);
    metric_record(&h, 1000000);
    for (unsigned p = 0; p <= 1000; p++) /* one value is all percentiles, exactly */
        assert_int_equal(metric_hist_percentile(&h, p), 1000000);
}

static void test_merge(void **state)
{
    static struct metric_hist parts[2], all, merged;

    (void)state;
    metric_hist_init(&all, METRIC_TIME);
    metric_hist_init(&merged, METRIC_TIME);
    for (int i = 0; i < 2; i++)
        metric_hist_init(&parts[i], METRIC_TIME);
    for (int i = 0; i < 3000; i++) {
        uint64_t v = next_random() % (1ull << (10 + i % 30));

        metric_record(&all, v);
        metric_record(&parts[i % 3 == 0], v);
    }
    metric_hist_merge(&merged, &parts[0]);
    metric_hist_merge(&merged, &parts[1]);
    assert_int_equal(merged.sum, all.sum);
    assert_int_equal(merged.max, all.max);
    for (unsigned i = 0; i < METRIC_BUCKETS; i++)
        assert_int_equal(merged.buckets[i], all.buckets[i]);
    metric_hist_merge(&merged, &(struct metric_hist){.shift = METRIC_SHIFT});
    assert_int_equal(merged.max, all.max);
}

/* ---- The text ---- */

static void test_text(void **state)
{
    struct metrics *m = metrics_new();
    struct metric_counter writes = {0};
    uint64_t ns = 1500000000, plain = 7;
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;

    (void)state;
    metric_add(&writes, 41);
    metric_add(&writes, 1);
    metrics_add_counter(m, "a_total", "Back\\slash and\nline, \"quotes\" stay", NULL, &writes);
    metrics_add_plain(m, METRIC_GAUGE, METRIC_TIME, "up_seconds", "Up", NULL, &ns);
    metrics_add_plain(m, METRIC_GAUGE, METRIC_COUNT, "g", "G", METRIC_LABELS("x", "a\\b\"c\nd"),
                      &plain);
    /* comes later, is shown with its family */
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "a_total",
                      "Back\\slash and\nline, \"quotes\" stay",
                      METRIC_LABELS("op", "read", "drive", "\xc3\xa4"), &plain);
    metrics_text(m, &out);
    assert_string_equal(out.data, "# HELP a_total Back\\\\slash and\\nline, \"quotes\" stay\n"
                                  "# TYPE a_total counter\n"
                                  "a_total 42\n"
                                  "a_total{op=\"read\",drive=\"\xc3\xa4\"} 7\n"
                                  "# HELP up_seconds Up\n"
                                  "# TYPE up_seconds gauge\n"
                                  "up_seconds 1.500000000\n"
                                  "# HELP g G\n"
                                  "# TYPE g gauge\n"
                                  "g{x=\"a\\\\b\\\"c\\nd\"} 7\n");
    metrics_free(m);
}

static void expect_line(const struct strbuf *text, const char *line)
{
    if (!strstr(text->data, line))
        fail_msg("no \"%s\" in:\n%s", line, text->data);
}

static void test_text_histogram(void **state)
{
    static struct metric_hist times, sizes;
    struct metrics *m = metrics_new();
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;

    (void)state;
    metric_hist_init(&times, METRIC_TIME);
    metric_record(&times, 4095);                 /* the last of the first bucket */
    metric_record(&times, 4096);                 /* the first of the second */
    metric_record(&times, 100ull * 1000000000);  /* beyond all that are shown */
    metric_record(&times, 5000ull * 1000000000); /* beyond all that there are */
    metric_record(&sizes, 3);
    metrics_add_hist(m, "t_seconds", "T", METRIC_LABELS("op", "w"), &times);
    metrics_add_hist(m, "s_bytes", "S", NULL, &sizes);
    metrics_text(m, &out);
    expect_line(&out, "# TYPE t_seconds histogram\n");
    expect_line(&out, "\nt_seconds_bucket{op=\"w\",le=\"0.000004095\"} 1\n"
                      "t_seconds_bucket{op=\"w\",le=\"0.000008191\"} 2\n");
    expect_line(&out, "\nt_seconds_bucket{op=\"w\",le=\"68.719476735\"} 2\n"
                      "t_seconds_bucket{op=\"w\",le=\"+Inf\"} 4\n"
                      "t_seconds_sum{op=\"w\"} 5100.000008191\n"
                      "t_seconds_count{op=\"w\"} 4\n");
    expect_line(&out, "\ns_bytes_bucket{le=\"0\"} 0\n"
                      "s_bytes_bucket{le=\"1\"} 0\n"
                      "s_bytes_bucket{le=\"3\"} 1\n"
                      "s_bytes_bucket{le=\"7\"} 1\n");
    expect_line(&out, "\ns_bytes_bucket{le=\"+Inf\"} 1\ns_bytes_sum 3\ns_bytes_count 1\n");
    metrics_free(m);
}

static void test_owner(void **state)
{
    struct metrics *m = metrics_new();
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    uint64_t n = 5;

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        metrics_set_owner(m, "partition", i ? "two" : "");
        metrics_add_plain(m, METRIC_GAUGE, METRIC_COUNT, "g", "G", METRIC_LABELS("a", "b"), &n);
    }
    metrics_set_owner(m, NULL, NULL);
    metrics_add_plain(m, METRIC_GAUGE, METRIC_COUNT, "h", "H", NULL, &n);
    metrics_text(m, &out);
    expect_line(&out, "\ng{partition=\"\",a=\"b\"} 5\ng{partition=\"two\",a=\"b\"} 5\n");
    expect_line(&out, "\nh 5\n");
    metrics_free(m);
}

static void count_up(void *arg)
{
    ++*(uint64_t *)arg;
}

static void keep_last(void *arg, const struct metric_series *s)
{
    *(struct metric_series *)arg = *s;
}

static void test_visit(void **state)
{
    struct metrics *m = metrics_new();
    struct metric_series s = {0};
    uint64_t looks = 0;

    (void)state;
    metrics_on_look(m, count_up, &looks);
    metrics_add_plain(m, METRIC_GAUGE, METRIC_COUNT, "looks", "L", METRIC_LABELS("a", "b"), &looks);
    metrics_visit(m, keep_last, &s);
    metrics_visit(m, keep_last, &s);
    assert_int_equal(s.value, 2); /* refreshed before each look */
    assert_string_equal(s.name, "looks");
    assert_string_equal(s.labels[0], "a");
    assert_string_equal(s.labels[1], "b");
    assert_null(s.labels[2]);
    metrics_free(m);
    metrics_free(NULL);
}

/* ---- The slow log ---- */

static void test_slow(void **state)
{
    struct slow_log s = {.threshold_ns = 1000};
    struct slow_limit l = {0};
    uint64_t left_out = 99, now = 5;

    (void)state;
    assert_false(slow_is(NULL, UINT64_MAX));
    assert_false(slow_is(&s, 999));
    assert_true(slow_is(&s, 1000));
    for (unsigned i = 0; i < SLOW_LINES; i++) {
        assert_true(slow_admit(&l, now++, &left_out));
        assert_int_equal(left_out, 0);
    }
    for (unsigned i = 0; i < 7; i++)
        assert_false(slow_admit(&l, now++, &left_out));
    assert_false(slow_admit(&l, 5 + SLOW_WINDOW - 1, &left_out));
    assert_true(slow_admit(&l, 5 + SLOW_WINDOW, &left_out));
    assert_int_equal(left_out, 8); /* told once */
    assert_true(slow_admit(&l, 5 + SLOW_WINDOW + 1, &left_out));
    assert_int_equal(left_out, 0);
    assert_int_equal(l.total, SLOW_LINES + 10);
    s.threshold_ns = 0;
    assert_false(slow_is(&s, UINT64_MAX));
}

/* Each kind has its own limit; those for which there is no place share the last. */
static void test_slow_kinds(void **state)
{
    static char names[SLOW_KINDS + 3][8];
    struct slow_log s = {.threshold_ns = 1000};

    (void)state;
    log_set_level((enum log_level)(LOG_ERROR + 1));
    for (unsigned i = 0; i < 2 * SLOW_LINES; i++)
        slow_note(&s, 1, "often", 5000, "rows=%u", i);
    slow_note(&s, 1, "once", 5000, "volume=%s", "v");
    assert_int_equal(s.total, 2 * SLOW_LINES + 1);
    assert_int_equal(s.kinds[0].limit.left_out, SLOW_LINES);
    assert_string_equal(s.kinds[1].op, "once");
    assert_int_equal(s.kinds[1].limit.lines, 1);
    for (unsigned i = 0; i < SLOW_KINDS + 3; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "k%u", i);
        slow_note(&s, 1, names[i], 5000, "n=%u", i);
    }
    assert_int_equal(s.kinds[SLOW_KINDS - 2].limit.total, 1);
    assert_int_equal(s.kinds[SLOW_KINDS - 1].limit.total, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buckets),        cmocka_unit_test(test_bucket_borders),
        cmocka_unit_test(test_percentiles),    cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_merge),          cmocka_unit_test(test_text),
        cmocka_unit_test(test_text_histogram), cmocka_unit_test(test_owner),
        cmocka_unit_test(test_visit),          cmocka_unit_test(test_slow),
        cmocka_unit_test(test_slow_kinds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Metrics: what a running node counts and times, and how it is told to those who watch it.
 *
 * Values live where they are made: a counter or histogram is a field of the module's own struct,
 * zeroed (or metric_hist_init) with it, and is there whether anybody looks or not; so nothing on a
 * hot path asks whether metrics are on. A registry only refers to such fields, under a Prometheus
 * name, a help text and constant labels. It belongs to whoever assembles a process (daemon/node.c),
 * is handed to each module's ..._observe() function, and goes before the modules do. There is no
 * global state: the simulator runs many partitions in one process.
 *
 * Threads: nearly everything is recorded on the loop, but requests of HTTP end on their
 * connections' threads. Recording is therefore done with relaxed atomics, from any thread: two or
 * three uncontended read-modify-writes, some 10 ns. A histogram read meanwhile may lack what is
 * being recorded; its count is made by adding up its buckets, so it always agrees with them.
 * Registering and looking are for one thread at a time (the loop).
 *
 * Histograms are log-linear, as in HdrHistogram: sixteen buckets to each power of two, hence a
 * relative error of at most 1/16, in fixed memory of some 4 KiB. Times are recorded in nanoseconds,
 * told apart from about a microsecond, up to 73 minutes; longer ones count as the longest.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"

/* ---- Values --------------------------------------------------------------------------------- */

struct metric_counter {
    _Atomic uint64_t value;
};

static inline void metric_add(struct metric_counter *c, uint64_t n)
{
    atomic_fetch_add_explicit(&c->value, n, memory_order_relaxed);
}

static inline uint64_t metric_get(const struct metric_counter *c)
{
    return atomic_load_explicit(&c->value, memory_order_relaxed);
}

enum metric_unit {
    METRIC_COUNT, /* as it is; zeroed memory is a histogram of this unit */
    METRIC_TIME,  /* recorded in nanoseconds, shown in seconds */
};

#define METRIC_SUB     16u /* buckets to a power of two */
#define METRIC_POWERS  32u
#define METRIC_BUCKETS (METRIC_SUB * (METRIC_POWERS + 1))
#define METRIC_SHIFT   6u /* times are told apart in units of 64 ns: 16 of them are about a us */

struct metric_hist {
    uint8_t shift; /* by the unit */
    _Atomic uint64_t sum, max;
    _Atomic uint64_t buckets[METRIC_BUCKETS];
};

/* For a histogram of times; zeroed memory needs it not for METRIC_COUNT. */
void metric_hist_init(struct metric_hist *h, enum metric_unit unit);

/* The bucket of a value, and the greatest value that is in a bucket. */
static inline unsigned metric_bucket(const struct metric_hist *h, uint64_t value)
{
    uint64_t units = value >> h->shift;
    unsigned power, at;

    if (units < METRIC_SUB)
        return (unsigned)units;
    power = 63u - (unsigned)__builtin_clzll(units); /* at least 4 */
    at = (power - 3) * METRIC_SUB + (unsigned)(units >> (power - 4)) - METRIC_SUB;
    return at < METRIC_BUCKETS ? at : METRIC_BUCKETS - 1;
}
uint64_t metric_bucket_top(const struct metric_hist *h, unsigned bucket);

/* Records a value, from any thread. Does not suspend. */
static inline void metric_record(struct metric_hist *h, uint64_t value)
{
    uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);

    atomic_fetch_add_explicit(&h->buckets[metric_bucket(h, value)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum, value, memory_order_relaxed);
    while (value > max && !atomic_compare_exchange_weak_explicit(
                              &h->max, &max, value, memory_order_relaxed, memory_order_relaxed))
        ;
}

/* Records the time since `start` and returns `now`: stages that follow each other need one reading
 * of the clock each. */
static inline uint64_t metric_lap(struct metric_hist *h, uint64_t start, uint64_t now)
{
    metric_record(h, now - start);
    return now;
}

/* Adds what `from` has recorded; both are of one unit. */
void metric_hist_merge(struct metric_hist *into, const struct metric_hist *from);

uint64_t metric_hist_count(const struct metric_hist *h);

/* The value that `permille` of a thousand recorded ones do not exceed: at least the exact one, at
 * most 1/16 more (and 64 ns, for times), never more than the greatest recorded. 0 when empty. */
uint64_t metric_hist_percentile(const struct metric_hist *h, unsigned permille);

/* ---- The registry --------------------------------------------------------------------------- */

struct metrics;

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HIST };

struct metrics *metrics_new(void);
void metrics_free(struct metrics *m); /* NULL is fine; what it refers to is not touched */

/* Labels: names and values in turn, ended by NULL. METRIC_LABELS("op", "read"); NULL for none. The
 * texts are copied; values may be any UTF-8. */
#define METRIC_LABELS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Each adds a series. `name` and `help` are constant texts; counters end in _total, histograms of
 * times in _seconds. Series of one name have the same kind and help, and differ in their labels; a
 * name or label that is none, or a second series of the same labels, is a broken invariant. What is
 * referred to stays put until metrics_free. */
void metrics_add_counter(struct metrics *m, const char *name, const char *help,
                         const char *const *labels, const struct metric_counter *counter);
void metrics_add_hist(struct metrics *m, const char *name, const char *help,
                      const char *const *labels, const struct metric_hist *hist);
/* A plain number of a loop's, as a counter or gauge. Of another loop than the looker's it may be a
 * moment old. With unit METRIC_TIME it is in nanoseconds
 * and shown in seconds. */
void metrics_add_plain(struct metrics *m, enum metric_kind kind, enum metric_unit unit,
                       const char *name, const char *help, const char *const *labels,
                       const uint64_t *value);

/* Gives every series added from now on one label more, in front of its own: whose it is, where
 * several alike register in one registry. `name` is a constant text, `value` is copied; NULL ends
 * it. */
void metrics_set_owner(struct metrics *m, const char *name, const char *value);

/* Has `refresh` called each time before the values are looked at: for plain numbers that are
 * copies. It runs in the looker's fiber and may suspend. One only. */
void metrics_on_look(struct metrics *m, void (*refresh)(void *arg), void *arg);

/* A series as metrics_visit shows it; valid during the visit. */
struct metric_series {
    const char *name, *help;
    enum metric_kind kind;
    enum metric_unit unit;
    const char *const *labels; /* names and values in turn, ended by NULL */
    uint64_t value;            /* counters and gauges */
    const struct metric_hist *hist;
};

/* Shows every series, those of one name together, in the order in which they came. */
void metrics_visit(struct metrics *m, void (*visit)(void *arg, const struct metric_series *s),
                   void *arg);

/* All of it as Prometheus' text format 0.0.4. Histograms are shown with a bucket per power of two:
 * `le` is the greatest value in it, which is exact since what is recorded is whole nanoseconds.
 * The Content-Type that goes with it: */
#define METRICS_TEXT_TYPE "text/plain; version=0.0.4; charset=utf-8"
void metrics_text(struct metrics *m, struct strbuf *out);

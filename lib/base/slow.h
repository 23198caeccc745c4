/* The log of slow operations: one warn line for each operation that took longer than a threshold,
 * so that an administrator finds what was slow when somebody complains, with its stages.
 *
 * A node that is slow is slow for everyone: of each kind of operation at most SLOW_LINES lines in
 * SLOW_WINDOW, the rest is counted and the count told with the kind's next line. Each kind has its
 * own limit, for one that comes by the hundred (look-ups in the metadata) would else hide the one
 * that a user complains of. Like the metrics it belongs to whoever assembles a process, is handed
 * down, and may be missing. Used on the loop only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SLOW_LINES  10u
#define SLOW_WINDOW 10000000000ull /* ns */
#define SLOW_KINDS  32u            /* those after share a limit */

/* How many lines of a kind may be logged. Zeroes: none has been yet. */
struct slow_limit {
    uint64_t window_start;
    unsigned lines;    /* in this window */
    uint64_t left_out; /* since the last line */
    uint64_t total;    /* so far, logged or not */
};

struct slow_log {
    uint64_t threshold_ns; /* 0: nothing is slow */
    uint64_t total;        /* so far, logged or not */
    struct slow_kind {
        const char *op;
        struct slow_limit limit;
    } kinds[SLOW_KINDS]; /* in the order they were first slow */
};

/* Is it worth a line? For callers whose text costs something to make. No for a log that is NULL. */
static inline bool slow_is(const struct slow_log *s, uint64_t took_ns)
{
    return s && s->threshold_ns && took_ns >= s->threshold_ns;
}

/* Counts an operation that slow_is found slow and logs it, unless there are too many of its kind:
 * "slow operation op=OP us=N FIELDS left_out=N". `op` is kept, a literal; `now` is env_now's. */
void slow_note(struct slow_log *s, uint64_t now, const char *op, uint64_t took_ns, const char *fmt,
               ...) __attribute__((format(printf, 5, 6)));

/* The limit alone: may a line be logged now? Counts those that may not, and gives that count to the
 * next that may. */
bool slow_admit(struct slow_limit *l, uint64_t now, uint64_t *ret_left_out);

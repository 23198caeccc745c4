/* Drives that hang or are slow, and the promise that a hung drive stalls no client for long.
 *
 * A drive that hangs answers nothing until its faults are taken away; then everything it was asked
 * for happens, late. For the engine that is a drive that only ever returned errors ("passing" in
 * life.c): what counts on it is whole.
 *
 * In some runs hanging is all that drives do. There every step of every client is timed. One stall
 * may come from drives that hang when the step begins, however many (they are found together), and
 * one from each that begins to hang under it. Stores that are slow or full anyway are not timed:
 * there operations wait for other reasons. Where one kill follows the other soon drives do not
 * hang: opening the store with one takes longer than such a life.
 */
#include "tests/sim/hang.h"

#define HANG_STALL (2 * ENV_NS_PER_S)

void hang_choose(struct run *r)
{
    r->hangs_only = r->faults_on && !r->storm && run_chance(r, 25);
    if (r->hangs_only && run_chance(r, 75))
        r->churn = false, r->slow_io_ns = 0;
}

static void hang_start(struct run *r, unsigned drive)
{
    struct sim_faults f = {.hang = true};

    run_trace(r, "%s hangs", r->paths[drive]);
    sim_set_file_faults(r->sim, r->paths[drive], &f);
    r->hanging |= 1u << drive;
    r->hangs++;
}

static void slow_start(struct run *r, unsigned drive)
{
    struct sim_faults f = {.slow = 1u << run_random(r, 16)};

    run_trace(r, "%s is %u times as slow", r->paths[drive], f.slow);
    sim_set_file_faults(r->sim, r->paths[drive], &f);
}

bool hang_damage(struct run *r, unsigned drive)
{
    if (r->storm || (!r->hangs_only && !run_chance(r, 20)))
        return false;
    r->hanging &= ~(1u << drive);
    if (r->hangs_only || run_chance(r, 60))
        hang_start(r, drive);
    else
        slow_start(r, drive);
    return true;
}

void hang_over(struct run *r, unsigned drive)
{
    r->hanging &= ~(1u << drive);
}

uint64_t hang_time(struct run *r)
{
    return r->hanging && run_chance(r, 60) ? run_random(r, 8 * ENV_NS_PER_S) : 0;
}

void hang_timed(struct run *r, void (*step)(struct run *r))
{
    uint64_t start = sim_now(r->sim), hangs = r->hangs, took;

    step(r);
    took = sim_now(r->sim) - start;
    if (r->hangs_only && !r->churn && !r->slow_io_ns && took > HANG_STALL * (1 + r->hangs - hangs))
        run_fail(r, "an operation took %.3f ms while drives hang", (double)took / 1e6);
}

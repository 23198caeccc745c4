/* The policy of drives' health; see health.h. */
#include "lib/store/health.h"

#include <stdlib.h>
#include <string.h>

void health_init(struct health *h)
{
    memset(h, 0, sizeof(*h));
    h->reason = "";
}

/* ---- Counts that fade ---- */

/* Halves for each half-life that has passed, and goes down in a line within one. */
static uint64_t count_value(const struct health_count *c, uint64_t now, uint64_t half_life)
{
    uint64_t age = now - c->at, halves = age / half_life;
    uint64_t milli = halves < 64 ? c->milli >> halves : 0;

    /* In units of a millisecond: products stay far below 2^64. */
    return milli - milli * (age % half_life / HEALTH_MS_) / (2 * half_life / HEALTH_MS_);
}

static void count_add(struct health_count *c, uint64_t now, uint64_t half_life)
{
    /* Bounded, so that years of trouble are forgotten in an hour or two as well. */
    uint64_t most = 1000000, milli = count_value(c, now, half_life) + 1000;

    c->milli = milli < most ? milli : most;
    c->at = now;
}

void health_note(struct health *h, uint64_t now, enum health_event event)
{
    if (event == HEALTH_HEDGED)
        count_add(&h->slow, now, HEALTH_SLOW_HALF_LIFE);
    else
        count_add(&h->faults, now, HEALTH_FAULTS_HALF_LIFE);
}

/* ---- The verdict ---- */

/* Is the count over the limit? Who is suspect already must get under half of it. */
static bool count_over(uint64_t milli, uint64_t limit, bool already)
{
    return milli >= limit * (already ? 500 : 1000);
}

static void verdict(struct health *h, enum health_state state, const char *reason)
{
    h->state = state;
    h->reason = reason;
}

void health_judge(struct health *h, uint64_t now, const struct health_silence *silence, bool spare)
{
    uint64_t faults = count_value(&h->faults, now, HEALTH_FAULTS_HALF_LIFE);
    uint64_t slow = count_value(&h->slow, now, HEALTH_SLOW_HALF_LIFE);
    bool already = h->state == HEALTH_SUSPECT;
    bool silent_out = silence->ns >= (silence->writing ? HEALTH_GIVE_UP : HEALTH_SILENT_OUT);
    bool faults_out = faults >= HEALTH_FAULTS_OUT * 1000ull;

    if (h->state == HEALTH_OUT)
        return;
    h->kept = (silent_out || faults_out) && !spare;
    if (silence->ns >= HEALTH_SILENT)
        h->calm_at = now + HEALTH_CALM;
    if (silent_out)
        verdict(h, spare ? HEALTH_OUT : HEALTH_SUSPECT, "does not answer");
    else if (faults_out)
        verdict(h, spare ? HEALTH_OUT : HEALTH_SUSPECT, "too many read errors or wrong bytes");
    else if (silence->ns >= HEALTH_SILENT)
        verdict(h, HEALTH_SUSPECT, "does not answer");
    else if (count_over(faults, HEALTH_FAULTS_SUSPECT, already))
        verdict(h, HEALTH_SUSPECT, "read errors or wrong bytes");
    else if (now < h->calm_at)
        verdict(h, HEALTH_SUSPECT, "did not answer for a while");
    else if (count_over(slow, HEALTH_SLOW_SUSPECT, already))
        verdict(h, HEALTH_SUSPECT, "is slower than the others");
    else
        verdict(h, HEALTH_OK, "");
}

/* ---- Latency ---- */

/* A step up by a tenth for each read above the estimate, down by a thousandth for each below: it
 * rests where one of a hundred is above. No memory of reads is needed, and it follows in either
 * direction. */
void health_took(struct health *h, uint64_t ns)
{
    if (h->read_p99 == 0)
        h->read_p99 = ns + 1;
    else if (ns > h->read_p99)
        h->read_p99 += h->read_p99 / 10 + 1;
    else
        h->read_p99 -= h->read_p99 / 1000;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The drive in the middle, so that a slow one does not set the measure for itself. */
uint64_t health_hedge_delay(uint64_t *p99, unsigned n)
{
    unsigned known = 0;
    uint64_t delay;

    for (unsigned i = 0; i < n; i++)
        if (p99[i])
            p99[known++] = p99[i];
    if (known == 0)
        return HEALTH_HEDGE_MAX;
    qsort(p99, known, sizeof(*p99), compare);
    delay = p99[(known - 1) / 2];
    delay = delay < HEALTH_HEDGE_MAX ? 3 * delay : HEALTH_HEDGE_MAX;
    if (delay < HEALTH_HEDGE_MIN)
        return HEALTH_HEDGE_MIN;
    return delay < HEALTH_HEDGE_MAX ? delay : HEALTH_HEDGE_MAX;
}

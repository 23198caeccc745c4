/* The simulator: the clock, the dice, the events, and the life of simulated processes.
 *
 * One thread runs everything. Fibers of all processes run until none is ready, one process after
 * the other, one fiber at a time; then time jumps to the next event or timer. Nothing is decided by
 * an address or by the order of a hash table, so that the seed alone makes the run. Events happen
 * in the order of (time, seq), and before timers of the same time.
 */
#include "lib/rt/env_sim.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/rt/env_priv.h"

#define SIM_EPOCH       1735689600ull /* the wall clock starts at 2025-01-01 */
#define SIM_STEPS_MAX   20000000u     /* fiber turns without a tick of time: a livelock */
#define SIM_LANE_WIDTH  2u
#define SIM_LATENCY_MIN 20000ull
#define SIM_LATENCY_MAX 200000ull

/* ---- Dice (xoshiro256**, Blackman and Vigna; public domain algorithm)
 * ------------------------------ */

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

static uint64_t sim_next(struct sim *sim)
{
    uint64_t *s = sim->rng, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

uint64_t sim_random(struct sim *sim, uint64_t below)
{
    CHECK(below > 0);
    return (uint64_t)(((unsigned __int128)sim_next(sim) * below) >> 64);
}

uint64_t sim_between(struct sim *sim, uint64_t min, uint64_t max)
{
    return max > min ? min + sim_random(sim, max - min + 1) : min;
}

bool sim_chance(struct sim *sim, uint32_t per_million)
{
    return per_million && sim_random(sim, 1000000) < per_million;
}

/* ---- Events: a binary heap, the root at 1
 * --------------------------------------------------------- */

static bool event_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->time < b->time || (a->time == b->time && a->seq < b->seq);
}

static void event_up(struct sim *sim, size_t pos, struct sim_event *e)
{
    while (pos > 1 && event_before(e, sim->events[pos / 2])) {
        sim->events[pos] = sim->events[pos / 2];
        pos /= 2;
    }
    sim->events[pos] = e;
}

static void event_push(struct sim *sim, struct sim_event *e)
{
    if (sim->event_count + 1 >= sim->event_cap) {
        struct mem_domain *before = env_outside_enter();

        sim->event_cap = sim->event_cap ? 2 * sim->event_cap : 256;
        sim->events = mem_realloc(sim->events, sim->event_cap * sizeof(sim->events[0]));
        env_outside_leave(before);
    }
    event_up(sim, ++sim->event_count, e);
}

void sim_schedule(struct sim *sim, struct sim_event *e, uint64_t time)
{
    e->time = time < sim->now ? sim->now : time;
    e->seq = ++sim->seq;
    event_push(sim, e);
}

static struct sim_event *event_pop(struct sim *sim)
{
    struct sim_event *top = sim->events[1], *last = sim->events[sim->event_count--];
    size_t pos = 1;

    for (size_t child; (child = 2 * pos) <= sim->event_count; pos = child) {
        if (child < sim->event_count && event_before(sim->events[child + 1], sim->events[child]))
            child++;
        if (!event_before(sim->events[child], last))
            break;
        sim->events[pos] = sim->events[child];
    }
    sim->events[pos] = last;
    return top;
}

void sim_events_drop(struct sim *sim, bool (*match)(const struct sim_event *e, const void *arg),
                     const void *arg)
{
    size_t n = sim->event_count, dropped = 0;
    struct sim_event **drop = mem_calloc(n + 1, sizeof(drop[0]));

    sim->event_count = 0;
    for (size_t i = 1; i <= n; i++) {
        if (match(sim->events[i], arg))
            drop[dropped++] = sim->events[i];
        else
            event_up(sim, ++sim->event_count, sim->events[i]);
    }
    for (size_t i = 0; i < dropped; i++)
        drop[i]->drop(drop[i]);
    mem_free(drop);
}

static bool event_owned(const struct sim_event *e, const void *owner)
{
    return e->owner == owner;
}

static bool event_any(const struct sim_event *e, const void *arg)
{
    (void)e, (void)arg;
    return true;
}

/* ---- The env's vtable
 * ----------------------------------------------------------------------------- */

static uint64_t sim_env_now(struct env *env)
{
    return sim_env_of(env)->sim->now;
}

static uint64_t sim_env_wallclock(struct env *env)
{
    return SIM_EPOCH * ENV_NS_PER_S + sim_env_of(env)->sim->now;
}

static void sim_env_random(struct env *env, void *buf, size_t n)
{
    uint8_t *p = buf;

    while (n) {
        uint64_t x = sim_next(sim_env_of(env)->sim);
        size_t k = n < sizeof(x) ? n : sizeof(x);

        memcpy(p, &x, k);
        p += k;
        n -= k;
    }
}

struct sim_offload {
    struct sim_event event;
    struct env_task *task;
};

static void offload_happens(struct sim_event *e)
{
    struct sim_offload *o = (struct sim_offload *)e;
    struct env_task *task = o->task;

    mem_free(o);
    task->fn(task->arg);
    task->done(task->arg);
}

static void offload_dropped(struct sim_event *e)
{
    mem_free(e);
}

static void sim_env_offload(struct env *env, struct env_task *task)
{
    struct sim_env *p = sim_env_of(env);
    struct mem_domain *before = env_outside_enter();
    struct sim_offload *o = mem_zalloc(sizeof(*o));

    o->event = (struct sim_event){.owner = p, .fn = offload_happens, .drop = offload_dropped};
    o->task = task;
    sim_schedule(p->sim, &o->event, p->sim->now + sim_between(p->sim, 1000, 100000));
    env_outside_leave(before);
}

static unsigned sim_env_lane_width(struct env *env, enum env_lane lane)
{
    (void)env;
    CHECK(lane < ENV_LANE_COUNT);
    return SIM_LANE_WIDTH;
}

static int sim_env_post(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    if (sim_process_ended(env))
        return ERR_SHUTDOWN;
    fiber_spawn(env, name, fn, arg);
    return 0;
}

/* There is one thread only, so nobody can wait in a call, and no thread can be had. */
static int sim_env_call(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    (void)env, (void)name, (void)fn, (void)arg;
    return ERR_UNSUPPORTED;
}

static int sim_env_thread(struct env *env, const char *name, void (*fn)(void *arg), void *arg)
{
    (void)env, (void)name, (void)fn, (void)arg;
    return ERR_UNSUPPORTED;
}

static void sim_env_run(struct env *env, fiber_fn main, void *arg)
{
    (void)env, (void)main, (void)arg;
    check_fail(__FILE__, __LINE__, "a simulated process is run by sim_run");
}

static void sim_env_free(struct env *env)
{
    (void)env;
    check_fail(__FILE__, __LINE__, "a simulated process is disposed of by sim_kill");
}

static const struct env_ops sim_env_ops = {
    .now = sim_env_now,
    .wallclock = sim_env_wallclock,
    .random = sim_env_random,
    .open = sim_open,
    .mkdir = sim_mkdir,
    .unlink = sim_unlink,
    .rename = sim_rename,
    .listen = sim_listen,
    .connect = sim_connect,
    .offload = sim_env_offload,
    .lane_width = sim_env_lane_width,
    .post = sim_env_post,
    .call = sim_env_call,
    .thread = sim_env_thread,
    .run = sim_env_run,
    .free = sim_env_free,
};

/* ---- The sim
 * -------------------------------------------------------------------------------------- */

static void faults_default(struct sim_faults *f)
{
    if (!f->io_max_ns) {
        f->io_min_ns = SIM_LATENCY_MIN;
        f->io_max_ns = SIM_LATENCY_MAX;
    }
    if (!f->net_max_ns) {
        f->net_min_ns = SIM_LATENCY_MIN;
        f->net_max_ns = SIM_LATENCY_MAX;
    }
}

struct sim *sim_new(uint64_t seed)
{
    struct mem_domain *before = env_outside_enter();
    struct sim *sim = mem_zalloc(sizeof(*sim));

    for (int i = 0; i < 4; i++)
        sim->rng[i] = hmap_mix(seed += 0x9e3779b97f4a7c15u);
    sim->now = ENV_NS_PER_S; /* so that nobody takes 0 for "never" unpunished */
    list_init(&sim->processes);
    list_init(&sim->files);
    list_init(&sim->listeners);
    list_init(&sim->file_faults);
    sim->next_port = 40000;
    faults_default(&sim->faults);
    fiber_pool_init(&sim->pool);
    env_outside_leave(before);
    return sim;
}

void sim_free(struct sim *sim)
{
    if (!sim)
        return;
    CHECK(!sim->running);
    while (!list_empty(&sim->processes))
        sim_kill(&LIST_ENTRY(sim->processes.next, struct sim_env, link)->env, false);
    sim_events_drop(sim, event_any, NULL);
    sim_files_free(sim);
    fiber_pool_free(&sim->pool);
    mem_free(sim->events);
    mem_free(sim);
}

void sim_set_faults(struct sim *sim, const struct sim_faults *faults)
{
    sim->faults = *faults;
    faults_default(&sim->faults);
}

uint64_t sim_now(struct sim *sim)
{
    return sim->now;
}

uint64_t sim_digest(const struct sim *sim)
{
    return sim->digest;
}

void sim_digest_add(struct sim *sim, uint64_t value)
{
    sim->digest = hmap_mix(sim->digest * 31 + value + 1);
}

void sim_pause(struct sim *sim)
{
    sim->paused = true;
}

void sim_outside_enter(void **ret_saved)
{
    *ret_saved = env_outside_enter();
}

void sim_outside_leave(void *saved)
{
    env_outside_leave(saved);
}

/* ---- Running
 * -------------------------------------------------------------------------------------- */

/* One fiber of the process after the one that had the last turn. */
static bool sim_step_fiber(struct sim *sim)
{
    struct sim_env *first = NULL, *next = NULL;

    list_for_each (it, &sim->processes) { /* in the order of their ids */
        struct sim_env *p = LIST_ENTRY(it, struct sim_env, link);

        if (list_empty(&p->env.ready))
            continue;
        if (!first)
            first = p;
        if (p->id > sim->last_stepped) {
            next = p;
            break;
        }
    }
    if (!next)
        next = first;
    if (!next)
        return false;
    CHECK(++sim->steps < SIM_STEPS_MAX);
    sim->last_stepped = next->id;
    (void)fiber_step(&next->env); /* one is ready */
    if (next->env.fiber_count == 0)
        sim_files_end(next);
    return true;
}

static struct sim_env *sim_next_timer(struct sim *sim, uint64_t *ret_time)
{
    struct sim_env *best = NULL;

    *ret_time = ENV_FOREVER;
    list_for_each (it, &sim->processes) {
        struct sim_env *p = LIST_ENTRY(it, struct sim_env, link);

        if (env_timers_next(&p->env) < *ret_time) {
            best = p;
            *ret_time = env_timers_next(&p->env);
        }
    }
    return best;
}

static void sim_fire_event(struct sim *sim)
{
    struct sim_event *e = event_pop(sim);
    struct mem_domain *before = mem_domain_enter(e->owner ? e->owner->env.domain : NULL);

    sim_digest_add(sim, e->time);
    sim_digest_add(sim, e->seq << 16 | (e->owner ? e->owner->id : 0));
    e->fn(e);
    mem_domain_enter(before);
}

static void sim_pass_time(struct sim *sim, uint64_t time)
{
    if (time <= sim->now)
        return;
    sim->now = time;
    sim->steps = 0;
}

/* Jumps to what comes next; false when that is nothing, or after `until`. */
static bool sim_advance(struct sim *sim, uint64_t until, bool *ret_nothing_left)
{
    uint64_t timer_time, event_time;
    struct sim_env *p = sim_next_timer(sim, &timer_time);

    event_time = sim->event_count ? sim->events[1]->time : ENV_FOREVER;
    *ret_nothing_left = !p && !sim->event_count;
    if (*ret_nothing_left)
        return false;
    if ((event_time < timer_time ? event_time : timer_time) > until) {
        sim_pass_time(sim, until);
        return false;
    }
    if (event_time <= timer_time) {
        sim_pass_time(sim, event_time);
        sim_fire_event(sim);
    } else {
        sim_pass_time(sim, timer_time);
        sim_digest_add(sim, timer_time ^ p->id);
        env_timers_step(&p->env, sim->now);
    }
    return true;
}

bool sim_run(struct sim *sim, uint64_t until)
{
    bool nothing_left = false;

    CHECK(!sim->running && fiber_self() == NULL);
    sim->running = true;
    sim->paused = false;
    while (!sim->paused)
        if (!sim_step_fiber(sim) && !sim_advance(sim, until, &nothing_left))
            break;
    sim->running = false;
    return nothing_left;
}

/* ---- Processes
 * ------------------------------------------------------------------------------------ */

struct env *sim_process(struct sim *sim, const char *name, fiber_fn main, void *arg)
{
    struct mem_domain *before = env_outside_enter();
    struct sim_env *p = mem_zalloc(sizeof(*p));

    env_init(&p->env, &sim_env_ops, &sim->pool, mem_domain_new());
    p->sim = sim;
    p->name = name;
    p->id = ++sim->next_process;
    list_init(&p->handles);
    list_init(&p->socks);
    list_init(&p->listeners);
    list_push_back(&sim->processes, &p->link);
    p->env.main = fiber_make(&p->env, name, main, arg);
    env_outside_leave(before);
    return &p->env;
}

bool sim_process_ended(struct env *env)
{
    return env->fiber_count == 0;
}

size_t sim_process_memory(struct env *env)
{
    return mem_domain_bytes(env->domain);
}

void sim_stop(struct env *env)
{
    env_stop(env);
}

void sim_kill(struct env *env, bool power)
{
    struct sim_env *p = sim_env_of(env);
    struct sim *sim = p->sim;
    bool ended = sim_process_ended(env);
    struct mem_domain *before = env_outside_enter();

    CHECK(before !=
          env->domain); /* a process cannot end itself here: its fiber stands on a stack */
    sim_digest_add(sim, (uint64_t)p->id << 1 | power);
    if (ended)
        CHECK(mem_domain_count(env->domain) == 0); /* it leaked memory, or an open handle */
    sim_events_drop(sim, event_owned, p);
    sim_socks_kill(p, power);
    sim_files_kill(p, power);
    list_del(&p->link);
    if (!sim->litters) {
        fiber_drop_all(env);
        mem_domain_release(env->domain);
        env_fini(env);
        mem_free(p);
    }
    env_outside_leave(before);
}

void sim_litter(struct sim *sim)
{
    sim->litters = true;
}

/* The part of an env that is the same in production and in the simulator: timers, the stop, and
 * whose memory is current while code of the env runs.
 */
#include "lib/base/check.h"
#include "lib/rt/env_priv.h"

void env_init(struct env *env, const struct env_ops *ops, struct fiber_pool *pool,
              struct mem_domain *domain)
{
    *env = (struct env){.ops = ops, .pool = pool, .domain = domain};
    list_init(&env->ready);
    list_init(&env->fibers);
    fiber_cond_init(&env->stop);
}

void env_fini(struct env *env)
{
    CHECK(env->fiber_count == 0);
    mem_free(env->timers);
}

void env_set_watch(struct env *env, const struct env_watch *watch)
{
    CHECK(!watch || (watch->threshold_ns && watch->steps && watch->tell));
    env->watch = watch;
    env->watch_at = 0;
}

/* ---- Memory domains -----------------------------------------------------------------------------
 */

struct mem_domain *env_enter(struct env *env)
{
    return env->domain ? mem_domain_enter(env->domain) : NULL;
}

void env_leave(struct env *env, struct mem_domain *before)
{
    /* A fiber that suspends between sim_outside_enter and _leave would leak memory to the sim. */
    if (env->domain)
        CHECK(mem_domain_enter(before) == env->domain);
}

struct mem_domain *env_outside_enter(void)
{
    return mem_domain_enter(NULL);
}

void env_outside_leave(struct mem_domain *before)
{
    mem_domain_enter(before);
}

/* ---- Timers: a binary heap, the root at 1
 * --------------------------------------------------------- */

static void timer_put(struct env *env, size_t pos, struct env_timer *t)
{
    env->timers[pos] = t;
    t->heap_pos = pos;
}

static void timer_up(struct env *env, size_t pos, struct env_timer *t)
{
    while (pos > 1 && env->timers[pos / 2]->deadline > t->deadline) {
        timer_put(env, pos, env->timers[pos / 2]);
        pos /= 2;
    }
    timer_put(env, pos, t);
}

static void timer_down(struct env *env, size_t pos, struct env_timer *t)
{
    for (size_t child; (child = 2 * pos) <= env->timer_count; pos = child) {
        if (child < env->timer_count &&
            env->timers[child + 1]->deadline < env->timers[child]->deadline)
            child++;
        if (env->timers[child]->deadline >= t->deadline)
            break;
        timer_put(env, pos, env->timers[child]);
    }
    timer_put(env, pos, t);
}

static void timers_grow(struct env *env)
{
    struct mem_domain *before = env_outside_enter();

    env->timer_cap = env->timer_cap ? 2 * env->timer_cap : 64;
    env->timers = mem_realloc(env->timers, env->timer_cap * sizeof(env->timers[0]));
    env_outside_leave(before);
}

void env_timer_arm(struct env *env, struct env_timer *t, uint64_t deadline)
{
    env_timer_disarm(env, t);
    t->deadline = deadline;
    if (env->timer_count + 1 >= env->timer_cap)
        timers_grow(env);
    timer_up(env, ++env->timer_count, t);
}

void env_timer_disarm(struct env *env, struct env_timer *t)
{
    size_t pos = t->heap_pos;
    struct env_timer *last;

    if (!pos)
        return;
    CHECK(pos <= env->timer_count && env->timers[pos] == t);
    t->heap_pos = 0;
    last = env->timers[env->timer_count--];
    if (last == t)
        return;
    if (pos > 1 && env->timers[pos / 2]->deadline > last->deadline)
        timer_up(env, pos, last);
    else
        timer_down(env, pos, last);
}

uint64_t env_timers_next(const struct env *env)
{
    return env->timer_count ? env->timers[1]->deadline : ENV_FOREVER;
}

bool env_timers_step(struct env *env, uint64_t now)
{
    struct mem_domain *before;
    struct env_timer *t;

    if (!env->timer_count || env->timers[1]->deadline > now)
        return false;
    t = env->timers[1];
    env_timer_disarm(env, t);
    before = env_enter(env);
    t->fn(t->arg);
    env_leave(env, before);
    return true;
}

struct env_sleeper {
    struct fiber *fiber;
    bool done;
};

static void sleep_over(void *arg)
{
    struct env_sleeper *s = arg;

    s->done = true;
    fiber_wake(s->fiber);
}

void env_sleep(struct env *env, uint64_t ns)
{
    struct env_sleeper s = {.fiber = fiber_self()};
    struct env_timer t = {.fn = sleep_over, .arg = &s};
    uint64_t now = env_now(env);

    env_timer_arm(env, &t, ns > ENV_FOREVER - now ? ENV_FOREVER : now + ns);
    while (!s.done)
        fiber_suspend("sleep");
}

/* ---- The stop -----------------------------------------------------------------------------------
 */

void env_wait_stop(struct env *env)
{
    while (!env->stopping)
        fiber_cond_wait(&env->stop);
}

void env_stop(struct env *env)
{
    env->stopping = true;
    fiber_cond_broadcast(&env->stop);
}

/* lib/rt: fibers, timers and synchronisation, on the real loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/metric.h"
#include "lib/rt/env_uring.h"
#include "lib/rt/sync.h"

static struct env *env;
static char trace[256];
static size_t traced;

static void mark(char c)
{
    assert_true(traced + 1 < sizeof(trace));
    trace[traced++] = c;
    trace[traced] = '\0';
}

static void run(fiber_fn fn, void *arg)
{
    traced = 0;
    trace[0] = '\0';
    assert_int_equal(env_uring_new(NULL, &env), 0);
    env_run(env, fn, arg);
    env_free(env);
}

/* ---- Red zones ---- */

/* With ASan: what lies behind an array on a fiber's stack stays out of bounds when others have run
 * meanwhile. Without, there is nothing to see. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define OUT_OF_BOUNDS(p) (__asan_address_is_poisoned(p) != 0)
#else
#define OUT_OF_BOUNDS(p) ((void)(p), true)
#endif

static void guarded(void *arg)
{
    char bytes[40];

    (void)arg;
    memset(bytes, 1, sizeof(bytes));
    assert_true(OUT_OF_BOUNDS(bytes + sizeof(bytes)));
    fiber_yield();
    assert_true(OUT_OF_BOUNDS(bytes + sizeof(bytes)));
    assert_int_equal(bytes[39], 1);
}

static void test_red_zones(void **state)
{
    (void)state;
    run(guarded, NULL);
}

/* ---- The watch ---- */

/* What was told of one fiber: on a busy machine others may be held up as well. */
struct told {
    const char *fiber, *why;
    unsigned count;
    uint64_t took_ns;
};

static void tell(void *arg, const char *fiber, const char *why, uint64_t took_ns)
{
    struct told *t = arg;

    assert_null(fiber_self());
    if (strcmp(fiber, t->fiber) != 0)
        return;
    t->count++;
    t->took_ns = took_ns;
    t->why = why;
}

static void spin(uint64_t ns)
{
    for (uint64_t start = env_now(env); env_now(env) - start < ns;)
        ;
}

static void slow_sleeper(void *arg)
{
    (void)arg;
    spin(3 * ENV_NS_PER_MS);
    env_sleep(env, ENV_NS_PER_MS); /* time that passes while asleep is not the fiber's */
}

static void slow_ender(void *arg)
{
    (void)arg;
    spin(3 * ENV_NS_PER_MS);
}

/* Runs fn in a fiber and waits until it has given way. */
static void run_told(struct told *t, const char *name, fiber_fn fn)
{
    *t = (struct told){.fiber = name};
    fiber_spawn(env, name, fn, NULL);
    fiber_yield();
}

static void watch_main(void *arg)
{
    static struct metric_hist steps;
    struct told t = {.fiber = "nobody"};
    struct env_watch w = {
        .threshold_ns = 2 * ENV_NS_PER_MS, .steps = &steps, .tell = tell, .arg = &t};

    (void)arg;
    metric_hist_init(&steps, METRIC_TIME);
    env_set_watch(env, &w);
    run_told(&t, "slow sleeper", slow_sleeper);
    assert_int_equal(t.count, 1);
    assert_string_equal(t.why, "sleep");
    assert_true(t.took_ns >= 3 * ENV_NS_PER_MS);
    run_told(&t, "slow ender", slow_ender);
    assert_int_equal(t.count, 1);
    assert_string_equal(t.why, "ended");
    assert_true(steps.max >= 3 * ENV_NS_PER_MS);
    assert_true(metric_hist_count(&steps) >= 3);
    w.threshold_ns = 3600 * ENV_NS_PER_S;
    run_told(&t, "slow, but not over the threshold", slow_ender);
    assert_int_equal(t.count, 0);
    w.threshold_ns = 1;
    env_set_watch(env, NULL);
    run_told(&t, "unseen", slow_ender);
    assert_int_equal(t.count, 0);
}

static void test_watch(void **state)
{
    (void)state;
    run(watch_main, NULL);
}

/* ---- Fibers ---- */

static void yielder(void *arg)
{
    char c = *(const char *)arg;

    for (int i = 0; i < 3; i++) {
        mark(c);
        fiber_yield();
    }
}

static void yield_main(void *arg)
{
    (void)arg;
    fiber_spawn(env, "a", yielder, "a");
    fiber_spawn(env, "b", yielder, "b");
    mark('m');
    fiber_yield();
    mark('m');
}

static void test_yield_order(void **state)
{
    (void)state;
    run(yield_main, NULL);
    assert_string_equal(trace, "mabmabab");
}

static unsigned count;

static void counter(void *arg)
{
    char frame[4096];

    memset(frame, (int)(uintptr_t)arg, sizeof(frame));
    fiber_yield();
    assert_int_equal((unsigned char)frame[4095], (uintptr_t)arg & 255);
    count++;
}

static void many_main(void *arg)
{
    (void)arg;
    for (int round = 0; round < 2; round++) {
        for (uintptr_t i = 0; i < 10000; i++)
            fiber_spawn(env, "counter", counter, (void *)i);
        while (count < 10000u * (unsigned)(round + 1))
            fiber_yield();
    }
}

static void test_many(void **state)
{
    (void)state;
    count = 0;
    run(many_main, NULL);
    assert_int_equal(count, 20000);
}

static struct fiber *sleeper;
static bool flag;

static void suspender(void *arg)
{
    (void)arg;
    sleeper = fiber_self();
    fiber_yield(); /* the wake comes here */
    assert_true(flag);
    fiber_suspend("test"); /* returns at once */
    mark('1');
    flag = false;
    while (!flag)
        fiber_suspend("waiting for the flag");
    mark('2');
}

static void list_visit(void *arg, const char *name, const char *why)
{
    if (strcmp(name, "suspender") == 0 && strcmp(why, "waiting for the flag") == 0)
        (*(int *)arg)++;
}

static void wake_main(void *arg)
{
    int seen = 0;

    (void)arg;
    fiber_spawn(env, "suspender", suspender, NULL);
    fiber_yield();
    flag = true;
    fiber_wake(sleeper);
    fiber_yield();
    fiber_yield();
    fiber_list(env, list_visit, &seen);
    assert_int_equal(seen, 1);
    fiber_wake(sleeper); /* spurious */
    fiber_yield();
    flag = true;
    fiber_wake(sleeper);
    fiber_wake(sleeper);
}

static void test_wake(void **state)
{
    (void)state;
    flag = false;
    run(wake_main, NULL);
    assert_string_equal(trace, "12");
}

/* ---- Timers ---- */

static void timer_fired(void *arg)
{
    assert_null(fiber_self());
    mark(*(const char *)arg);
}

static void timers_main(void *arg)
{
    struct env_timer t[6] = {0};
    static const char names[] = "012345";
    static const unsigned order[] = {4, 1, 3, 0, 5, 2};
    uint64_t start = env_now(env);

    (void)arg;
    for (unsigned i = 0; i < 6; i++) {
        t[i].fn = timer_fired;
        t[i].arg = (void *)(uintptr_t)&names[i];
        env_timer_arm(env, &t[i], start + (2 + order[i]) * ENV_NS_PER_MS);
    }
    env_timer_disarm(env, &t[1]);
    env_timer_disarm(env, &t[1]);
    env_timer_arm(env, &t[3], start + 20 * ENV_NS_PER_MS); /* moves */
    env_sleep(env, 30 * ENV_NS_PER_MS);
    assert_true(env_now(env) - start >= 30 * ENV_NS_PER_MS);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(t[i].heap_pos, 0);
}

static void test_timers(void **state)
{
    (void)state;
    run(timers_main, NULL);
    assert_string_equal(trace, "52043");
}

static uint64_t last_deadline;

static void heap_fired(void *arg)
{
    const struct env_timer *t = arg;

    assert_true(t->deadline >= last_deadline);
    last_deadline = t->deadline;
    count++;
}

/* Random deadlines, a third disarmed again: the others fire, all and in order. */
static void heap_main(void *arg)
{
    enum { N = 3000 };
    struct env_timer *t = mem_calloc(N, sizeof(*t));
    uint64_t now = env_now(env), x = 12345;

    (void)arg;
    for (unsigned i = 0; i < N; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        t[i].fn = heap_fired;
        t[i].arg = &t[i];
        env_timer_arm(env, &t[i], now + 5 * ENV_NS_PER_MS + (x >> 40));
    }
    for (unsigned i = 0; i < N; i += 3)
        env_timer_disarm(env, &t[i]);
    env_sleep(env, 30 * ENV_NS_PER_MS);
    assert_int_equal(count, N - N / 3);
    mem_free(t);
}

static void test_timer_heap(void **state)
{
    (void)state;
    count = 0;
    last_deadline = 0;
    run(heap_main, NULL);
}

/* ---- Synchronisation ---- */

static struct fiber_mutex mutex;

static void locker(void *arg)
{
    fiber_mutex_lock(&mutex);
    mark(*(const char *)arg);
    fiber_yield();
    fiber_yield();
    mark(*(const char *)arg);
    fiber_mutex_unlock(&mutex);
}

static void mutex_main(void *arg)
{
    (void)arg;
    fiber_mutex_init(&mutex);
    fiber_spawn(env, "a", locker, "a");
    fiber_spawn(env, "b", locker, "b");
    fiber_spawn(env, "c", locker, "c");
    while (traced < 6)
        fiber_yield();
    fiber_mutex_lock(&mutex);
    fiber_mutex_unlock(&mutex);
}

static void test_mutex(void **state)
{
    (void)state;
    run(mutex_main, NULL);
    assert_string_equal(trace, "aabbcc");
}

static struct fiber_cond cond;

static void cond_waiter(void *arg)
{
    fiber_cond_wait(&cond);
    mark(*(const char *)arg);
}

static void cond_main(void *arg)
{
    uint64_t start = env_now(env);

    (void)arg;
    fiber_cond_init(&cond);
    assert_false(fiber_cond_wait_until(env, &cond, start + 5 * ENV_NS_PER_MS));
    assert_true(env_now(env) >= start + 5 * ENV_NS_PER_MS);
    fiber_spawn(env, "a", cond_waiter, "a");
    fiber_spawn(env, "b", cond_waiter, "b");
    fiber_spawn(env, "c", cond_waiter, "c");
    fiber_yield();
    fiber_cond_signal(&cond);
    fiber_yield();
    assert_string_equal(trace, "a");
    fiber_cond_broadcast(&cond);
    fiber_yield();
    assert_string_equal(trace, "abc");
}

static void cond_signaller(void *arg)
{
    (void)arg;
    fiber_cond_signal(&cond);
}

static void cond_in_time_main(void *arg)
{
    (void)arg;
    fiber_cond_init(&cond);
    fiber_spawn(env, "s", cond_signaller, NULL);
    assert_true(fiber_cond_wait_until(env, &cond, env_now(env) + 60 * ENV_NS_PER_S));
    fiber_spawn(env, "s", cond_signaller, NULL);
    assert_true(fiber_cond_wait_until(env, &cond, ENV_FOREVER));
}

static void test_cond(void **state)
{
    (void)state;
    run(cond_main, NULL);
    run(cond_in_time_main, NULL);
}

static struct fiber_sem sem;

struct taker {
    char c;
    uint64_t n;
};

static void taker(void *arg)
{
    const struct taker *t = arg;

    fiber_sem_take(&sem, t->n);
    mark(t->c);
}

static void sem_main(void *arg)
{
    static struct taker big = {'B', 4}, small = {'s', 1};

    (void)arg;
    fiber_sem_init(&sem, 4);
    fiber_sem_take(&sem, 3);
    fiber_spawn(env, "big", taker, &big);
    fiber_yield();
    fiber_spawn(env, "small", taker, &small); /* one is free, but the big one came first */
    fiber_yield();
    assert_string_equal(trace, "");
    assert_false(fiber_sem_try(&sem, 1));
    fiber_sem_give(&sem, 3);
    fiber_yield();
    assert_string_equal(trace, "B");
    fiber_sem_give(&sem, 4);
    fiber_yield();
    assert_string_equal(trace, "Bs");
    assert_true(fiber_sem_try(&sem, 3));
    assert_false(fiber_sem_try(&sem, 1));
    fiber_sem_give(&sem, 4);
}

static void test_sem(void **state)
{
    (void)state;
    run(sem_main, NULL);
}

static struct fiber_group group;

static void member(void *arg)
{
    env_sleep(env, (uint64_t)(uintptr_t)arg * ENV_NS_PER_MS);
    mark('m');
    fiber_group_done(&group);
}

static void group_main(void *arg)
{
    (void)arg;
    fiber_group_init(&group);
    fiber_group_wait(&group); /* nothing pending */
    fiber_group_add(&group, 3);
    for (uintptr_t i = 1; i <= 3; i++)
        fiber_spawn(env, "member", member, (void *)i);
    fiber_group_wait(&group);
    assert_string_equal(trace, "mmm");
}

static void test_group(void **state)
{
    (void)state;
    run(group_main, NULL);
}

static struct fiber_chan chan;

static void producer(void *arg)
{
    uintptr_t i = 1;

    (void)arg;
    for (; i <= 10; i++)
        assert_int_equal(fiber_chan_send(&chan, (void *)i), 0);
    fiber_chan_close(&chan);
    assert_int_equal(fiber_chan_send(&chan, (void *)i), ERR_CLOSED);
}

static void blocked_sender(void *arg)
{
    assert_int_equal(fiber_chan_send(&chan, arg), 0);
    assert_int_equal(fiber_chan_send(&chan, arg), ERR_CLOSED); /* closed while it waits */
    mark('s');
}

static void blocked_receiver(void *arg)
{
    void *p;

    (void)arg;
    assert_int_equal(fiber_chan_recv(&chan, &p), ERR_CLOSED);
    mark('r');
}

static void chan_main(void *arg)
{
    void *p;

    (void)arg;
    fiber_chan_init(&chan, 3);
    fiber_spawn(env, "producer", producer, NULL);
    for (uintptr_t i = 1; i <= 10; i++) {
        assert_int_equal(fiber_chan_recv(&chan, &p), 0);
        assert_int_equal((uintptr_t)p, i);
    }
    assert_int_equal(fiber_chan_recv(&chan, &p), ERR_CLOSED);
    fiber_chan_free(&chan);
    fiber_chan_init(&chan, 1);
    fiber_spawn(env, "receiver", blocked_receiver, NULL);
    fiber_yield();
    fiber_chan_close(&chan);
    fiber_yield();
    fiber_chan_free(&chan);
    fiber_chan_init(&chan, 1);
    fiber_spawn(env, "sender", blocked_sender, &chan);
    fiber_yield();
    fiber_chan_close(&chan);
    assert_int_equal(fiber_chan_recv(&chan, &p), 0); /* what is left */
    assert_int_equal(fiber_chan_recv(&chan, &p), ERR_CLOSED);
    fiber_yield();
    fiber_chan_free(&chan);
    assert_string_equal(trace, "rs");
}

static void test_chan(void **state)
{
    (void)state;
    run(chan_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watch),  cmocka_unit_test(test_yield_order),
        cmocka_unit_test(test_many),   cmocka_unit_test(test_wake),
        cmocka_unit_test(test_timers), cmocka_unit_test(test_timer_heap),
        cmocka_unit_test(test_mutex),  cmocka_unit_test(test_cond),
        cmocka_unit_test(test_sem),    cmocka_unit_test(test_group),
        cmocka_unit_test(test_chan),   cmocka_unit_test(test_red_zones),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

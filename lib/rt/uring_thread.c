/* Other threads: lanes that run offloaded work, the inbox by which any thread talks to the loop,
 * and threads for third-party code.
 *
 * The inbox is a stack with one pointer: pushed by compare-and-swap, taken whole by the loop, which
 * turns it round. When the loop ends it swaps the empty stack for a sentinel that refuses pushes;
 * a push therefore either is seen by the loop or fails. `posters` counts the threads inside
 * uring_push, so that the env does not go away between their push and their look at the bell.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/rt/env_priv.h"

static struct env_task uring_ended;

/* ---- The inbox ----------------------------------------------------------------------------------
 */

static int uring_push(struct uring *u, struct env_task *task)
{
    struct env_task *head;
    int r = 0;

    atomic_fetch_add(&u->posters, 1);
    head = atomic_load(&u->inbox);
    do {
        if (head == &uring_ended) {
            r = ERR_SHUTDOWN;
            break;
        }
        task->next = head;
    } while (!atomic_compare_exchange_weak(&u->inbox, &head, task));
    if (r == 0 && atomic_load(&u->asleep) && atomic_exchange(&u->asleep, false)) {
        uint64_t one = 1;

        while (write(u->bell, &one, sizeof(one)) < 0)
            CHECK(errno == EINTR);
    }
    atomic_fetch_sub(&u->posters, 1);
    return r;
}

bool uring_inbox_pending(struct uring *u)
{
    return atomic_load(&u->inbox) != NULL;
}

void uring_inbox_drain(struct uring *u)
{
    struct env_task *task, *next, *order = NULL;

    if (!atomic_load_explicit(&u->inbox, memory_order_relaxed))
        return;
    for (task = atomic_exchange(&u->inbox, NULL); task; task = next) {
        next = task->next;
        task->next = order;
        order = task;
    }
    for (task = order; task; task = next) {
        next = task->next;
        if (task->lane >= 0)
            u->tasks--;
        task->done(task->arg);
    }
}

bool uring_has_threads(struct uring *u)
{
    bool any;

    pthread_mutex_lock(&u->life);
    any = u->threads > 0;
    pthread_mutex_unlock(&u->life);
    return any;
}

bool uring_inbox_end(struct uring *u)
{
    struct env_task *empty = NULL;

    pthread_mutex_lock(&u->life);
    u->ended = u->threads == 0 && atomic_compare_exchange_strong(&u->inbox, &empty, &uring_ended);
    pthread_mutex_unlock(&u->life);
    return u->ended;
}

void uring_inbox_reopen(struct uring *u)
{
    struct env_task *ended = &uring_ended;

    pthread_mutex_lock(&u->life);
    u->ended = false;
    atomic_compare_exchange_strong(&u->inbox, &ended, NULL);
    pthread_mutex_unlock(&u->life);
}

/* ---- Threads ------------------------------------------------------------------------------------
 */

/* Signals are the loop's business. */
static int uring_thread_start(pthread_t *ret_thread, const char *name, void *(*fn)(void *),
                              void *arg)
{
    sigset_t all, before;
    char comm[16];
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(ret_thread, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r)
        return ERR_OVERLOAD;
    strncpy(comm, name, sizeof(comm) - 1);
    comm[sizeof(comm) - 1] = '\0';
    pthread_setname_np(*ret_thread, comm);
    return 0;
}

/* ---- Lanes --------------------------------------------------------------------------------------
 */

static struct env_task *lane_next(struct uring_lane *l)
{
    struct env_task *task;

    pthread_mutex_lock(&l->lock);
    while (!l->head && !l->ending) {
        l->idle++;
        pthread_cond_wait(&l->more, &l->lock);
        l->idle--;
    }
    task = l->head;
    if (task && (l->head = task->next) == NULL)
        l->tail = &l->head;
    pthread_mutex_unlock(&l->lock);
    return task;
}

static void *lane_main(void *arg)
{
    struct uring_lane *l = arg;
    struct env_task *task;

    while ((task = lane_next(l)) != NULL) {
        task->fn(task->arg);
        CHECK_OK(uring_push(l->uring, task)); /* the loop waits for its tasks before it ends */
    }
    return NULL;
}

static void lane_init(struct uring *u, struct uring_lane *l, unsigned width)
{
    l->uring = u;
    l->width = width;
    l->tail = &l->head;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->more, NULL);
}

void uring_lanes_init(struct uring *u, unsigned cpu, unsigned kv)
{
    lane_init(u, &u->lanes[ENV_LANE_CPU], cpu);
    lane_init(u, &u->lanes[ENV_LANE_KV], kv);
    lane_init(u, &u->lanes[URING_LANE_SYS], 2);
}

/* Threads start with the lane's first task: small programs need none. */
static void lane_start(struct uring_lane *l)
{
    static const char *const names[] = {"lane-cpu", "lane-kv", "lane-sys"};

    l->started = true;
    l->threads = mem_calloc(l->width, sizeof(l->threads[0]));
    for (unsigned i = 0; i < l->width; i++)
        CHECK_OK(uring_thread_start(&l->threads[i], names[l - l->uring->lanes], lane_main, l));
}

void uring_lanes_free(struct uring *u)
{
    for (int i = 0; i < URING_LANE_COUNT; i++) {
        struct uring_lane *l = &u->lanes[i];

        pthread_mutex_lock(&l->lock);
        l->ending = true;
        pthread_cond_broadcast(&l->more);
        pthread_mutex_unlock(&l->lock);
        for (unsigned k = 0; l->started && k < l->width; k++)
            pthread_join(l->threads[k], NULL);
        mem_free(l->threads);
        pthread_cond_destroy(&l->more);
        pthread_mutex_destroy(&l->lock);
    }
}

void uring_offload(struct env *env, struct env_task *task)
{
    struct uring *u = uring_of(env);
    struct uring_lane *l;

    CHECK(task->lane >= 0 && task->lane < URING_LANE_COUNT);
    l = &u->lanes[task->lane];
    if (!l->started)
        lane_start(l);
    u->tasks++;
    task->next = NULL;
    pthread_mutex_lock(&l->lock);
    *l->tail = task;
    l->tail = &task->next;
    if (l->idle)
        pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
}

/* ---- Posts and calls ----------------------------------------------------------------------------
 */

struct uring_posted {
    struct env_task task;
    struct env *env;
    const char *name;
    fiber_fn fn;
    void *arg;
};

static void posted_arrived(void *arg)
{
    struct uring_posted *p = arg;

    fiber_spawn(p->env, p->name, p->fn, p->arg);
    mem_free(p);
}

int uring_post(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    struct uring_posted *p = mem_alloc(sizeof(*p));
    int r;

    *p = (struct uring_posted){.env = env, .name = name, .fn = fn, .arg = arg};
    p->task = (struct env_task){.done = posted_arrived, .arg = p, .lane = -1};
    r = uring_push(uring_of(env), &p->task);
    if (r < 0)
        mem_free(p);
    return r;
}

struct uring_caller {
    struct env_task task;
    struct env *env;
    const char *name;
    fiber_fn fn;
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t over;
    bool done;
};

static void caller_fiber(void *arg)
{
    struct uring_caller *c = arg;

    c->fn(c->arg);
    pthread_mutex_lock(&c->lock);
    c->done = true;
    pthread_cond_signal(&c->over);
    pthread_mutex_unlock(&c->lock);
}

static void caller_arrived(void *arg)
{
    struct uring_caller *c = arg;

    fiber_spawn(c->env, c->name, caller_fiber, c);
}

int uring_call(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    struct uring_caller c = {.env = env,
                             .name = name,
                             .fn = fn,
                             .arg = arg,
                             .lock = PTHREAD_MUTEX_INITIALIZER,
                             .over = PTHREAD_COND_INITIALIZER};
    int r;

    CHECK(fiber_self() == NULL);
    c.task = (struct env_task){.done = caller_arrived, .arg = &c, .lane = -1};
    r = uring_push(uring_of(env), &c.task);
    if (r == 0) {
        pthread_mutex_lock(&c.lock);
        while (!c.done)
            pthread_cond_wait(&c.over, &c.lock);
        pthread_mutex_unlock(&c.lock);
    }
    pthread_cond_destroy(&c.over);
    pthread_mutex_destroy(&c.lock);
    return r;
}

/* ---- Threads of third-party code ----------------------------------------------------------------
 */

struct uring_foreign {
    struct env_task task;
    struct uring *uring;
    pthread_t thread;
    void (*fn)(void *arg);
    void *arg;
};

static void foreign_over(void *arg)
{
    struct uring_foreign *t = arg;

    pthread_mutex_lock(&t->uring->life); /* its maker has written t->thread before it let go */
    t->uring->threads--;
    pthread_mutex_unlock(&t->uring->life);
    pthread_join(t->thread, NULL);
    mem_free(t);
}

static void *foreign_main(void *arg)
{
    struct uring_foreign *t = arg;

    t->fn(t->arg);
    CHECK_OK(uring_push(t->uring, &t->task)); /* the loop waits for its threads before it ends */
    return NULL;
}

int uring_thread(struct env *env, const char *name, void (*fn)(void *arg), void *arg)
{
    struct uring *u = uring_of(env);
    struct uring_foreign *t = mem_zalloc(sizeof(*t));
    int r;

    t->uring = u;
    t->fn = fn;
    t->arg = arg;
    t->task = (struct env_task){.done = foreign_over, .arg = t, .lane = -1};
    pthread_mutex_lock(&u->life);
    r = u->ended ? ERR_SHUTDOWN : uring_thread_start(&t->thread, name, foreign_main, t);
    if (r == 0)
        u->threads++;
    pthread_mutex_unlock(&u->life);
    if (r < 0)
        mem_free(t);
    return r;
}

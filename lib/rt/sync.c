/* Synchronisation of fibers: every waiter is a node on its own stack, taken off the list by the one
 * who serves it. What was waited for is handed over with the wake (the lock, the units, the item),
 * so that nobody who comes later can snatch it in between: first come, first served.
 */
#include "lib/rt/sync.h"

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"

struct sync_waiter {
    struct list link;
    struct fiber *fiber;
    bool served;
    uint64_t n; /* semaphore: units wanted */
    void *p;    /* channel: the item, either way */
    int result;
};

/* Not inlined: GCC does not see that the server has taken the node off before its frame goes, and
 * warns of a dangling pointer. */
__attribute__((noinline)) static void sync_wait(struct list *waiters, struct sync_waiter *w,
                                                const char *why)
{
    w->fiber = fiber_self();
    w->served = false;
    list_push_back(waiters, &w->link);
    while (!w->served)
        fiber_suspend(why);
}

static void sync_serve(struct sync_waiter *w)
{
    list_del(&w->link);
    w->served = true;
    fiber_wake(w->fiber);
}

static struct sync_waiter *sync_first(struct list *waiters)
{
    return list_empty(waiters) ? NULL : LIST_ENTRY(waiters->next, struct sync_waiter, link);
}

/* ---- Mutex --------------------------------------------------------------------------------------
 */

void fiber_mutex_init(struct fiber_mutex *m)
{
    m->held = false;
    list_init(&m->waiters);
}

void fiber_mutex_lock(struct fiber_mutex *m)
{
    struct sync_waiter w = {0};

    if (m->held)
        sync_wait(&m->waiters, &w, "mutex");
    m->held = true;
}

bool fiber_mutex_try(struct fiber_mutex *m)
{
    if (m->held)
        return false;
    m->held = true;
    return true;
}

void fiber_mutex_unlock(struct fiber_mutex *m)
{
    struct sync_waiter *w = sync_first(&m->waiters);

    CHECK(m->held);
    if (w)
        sync_serve(w);
    else
        m->held = false;
}

/* ---- Condition ----------------------------------------------------------------------------------
 */

void fiber_cond_init(struct fiber_cond *c)
{
    list_init(&c->waiters);
}

void fiber_cond_wait(struct fiber_cond *c)
{
    struct sync_waiter w = {0};

    sync_wait(&c->waiters, &w, "condition");
}

static void cond_time_is_up(void *arg)
{
    struct sync_waiter *w = arg;

    w->result = ERR_TIMEDOUT;
    sync_serve(w);
}

bool fiber_cond_wait_until(struct env *env, struct fiber_cond *c, uint64_t deadline)
{
    struct sync_waiter w = {0};
    struct env_timer t = {.fn = cond_time_is_up, .arg = &w};

    if (deadline != ENV_FOREVER)
        env_timer_arm(env, &t, deadline);
    sync_wait(&c->waiters, &w, "condition");
    env_timer_disarm(env, &t);
    return w.result == 0;
}

void fiber_cond_signal(struct fiber_cond *c)
{
    struct sync_waiter *w = sync_first(&c->waiters);

    if (w)
        sync_serve(w);
}

void fiber_cond_broadcast(struct fiber_cond *c)
{
    struct sync_waiter *w;

    while ((w = sync_first(&c->waiters)) != NULL)
        sync_serve(w);
}

/* ---- Semaphore ----------------------------------------------------------------------------------
 */

void fiber_sem_init(struct fiber_sem *s, uint64_t total)
{
    s->free = s->total = total;
    list_init(&s->waiters);
}

void fiber_sem_take(struct fiber_sem *s, uint64_t n)
{
    struct sync_waiter w = {.n = n};

    CHECK(n <= s->total);
    if (!fiber_sem_try(s, n))
        sync_wait(&s->waiters, &w, "semaphore");
}

bool fiber_sem_try(struct fiber_sem *s, uint64_t n)
{
    if (!list_empty(&s->waiters) || s->free < n)
        return false;
    s->free -= n;
    return true;
}

static void sem_serve(struct fiber_sem *s)
{
    struct sync_waiter *w;

    while ((w = sync_first(&s->waiters)) != NULL && w->n <= s->free) {
        s->free -= w->n;
        sync_serve(w);
    }
}

void fiber_sem_give(struct fiber_sem *s, uint64_t n)
{
    CHECK(n <= s->total - s->free);
    s->free += n;
    sem_serve(s);
}

/* Who was served and did not run yet has what it waited for, late or not. */
static void sem_time_is_up(void *arg)
{
    struct sync_waiter *w = arg;

    if (w->served)
        return;
    w->result = ERR_TIMEDOUT;
    sync_serve(w);
}

bool fiber_sem_take_until(struct env *env, struct fiber_sem *s, uint64_t n, uint64_t deadline)
{
    struct sync_waiter w = {.n = n};
    struct env_timer t = {.fn = sem_time_is_up, .arg = &w};

    CHECK(n <= s->total);
    if (fiber_sem_try(s, n))
        return true;
    env_timer_arm(env, &t, deadline);
    sync_wait(&s->waiters, &w, "semaphore");
    env_timer_disarm(env, &t);
    if (w.result < 0)
        sem_serve(s); /* those behind may have waited for this one only */
    return w.result == 0;
}

/* ---- Group --------------------------------------------------------------------------------------
 */

void fiber_group_init(struct fiber_group *g)
{
    g->pending = 0;
    list_init(&g->waiters);
}

void fiber_group_add(struct fiber_group *g, uint64_t n)
{
    g->pending += n;
}

void fiber_group_done(struct fiber_group *g)
{
    struct sync_waiter *w;

    CHECK(g->pending > 0);
    if (--g->pending)
        return;
    while ((w = sync_first(&g->waiters)) != NULL)
        sync_serve(w);
}

void fiber_group_wait(struct fiber_group *g)
{
    struct sync_waiter w = {0};

    if (g->pending)
        sync_wait(&g->waiters, &w, "group");
}

/* ---- Channel ------------------------------------------------------------------------------------
 */

void fiber_chan_init(struct fiber_chan *c, size_t cap)
{
    CHECK(cap > 0);
    *c = (struct fiber_chan){.ring = mem_calloc(cap, sizeof(c->ring[0])), .cap = cap};
    list_init(&c->senders);
    list_init(&c->receivers);
}

void fiber_chan_free(struct fiber_chan *c)
{
    CHECK(c->count == 0 && list_empty(&c->senders) && list_empty(&c->receivers));
    mem_free(c->ring);
    c->ring = NULL;
}

static void chan_put(struct fiber_chan *c, void *p)
{
    c->ring[(c->head + c->count++) % c->cap] = p;
}

int fiber_chan_send(struct fiber_chan *c, void *p)
{
    struct sync_waiter *receiver, w = {.p = p};

    if (c->closed)
        return ERR_CLOSED;
    receiver = sync_first(&c->receivers);
    if (receiver) {
        receiver->p = p;
        sync_serve(receiver);
        return 0;
    }
    if (c->count < c->cap) {
        chan_put(c, p);
        return 0;
    }
    sync_wait(&c->senders, &w, "channel is full");
    return w.result;
}

int fiber_chan_recv(struct fiber_chan *c, void **ret_p)
{
    struct sync_waiter *sender, w = {0};

    if (c->count) {
        *ret_p = c->ring[c->head];
        c->head = (c->head + 1) % c->cap;
        c->count--;
        sender = sync_first(&c->senders);
        if (sender) {
            chan_put(c, sender->p);
            sync_serve(sender);
        }
        return 0;
    }
    if (c->closed)
        return ERR_CLOSED;
    sync_wait(&c->receivers, &w, "channel is empty");
    if (w.result == 0)
        *ret_p = w.p;
    return w.result;
}

void fiber_chan_close(struct fiber_chan *c)
{
    struct sync_waiter *w;

    c->closed = true;
    while ((w = sync_first(&c->receivers)) != NULL) {
        w->result = ERR_CLOSED;
        sync_serve(w);
    }
    while ((w = sync_first(&c->senders)) != NULL) {
        w->result = ERR_CLOSED;
        sync_serve(w);
    }
}

/* nbd_work: the fibers on which requests run.
 *
 * A request may suspend (drives, the journal), so each needs a fiber of its own, but not a fresh
 * one: workers stay for the next request, the one that ran last first, whose stack is warm. There
 * are at most WORKERS_MAX; what is beyond waits its turn in `todo`, whose length is bounded by what
 * the connections may have in flight.
 */
#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "lib/rt/fiber.h"
#include "proto/nbd/nbd_impl.h"

#define WORKERS_MAX      1024u
#define WORKERS_IDLE_MAX 64u

struct worker {
    struct list link; /* when idle */
    struct nbd_server *server;
    struct fiber *fiber;
    struct nbd_job *job;
};

/* The next job; NULL when the worker is to end. */
static struct nbd_job *worker_wait(struct worker *w)
{
    struct nbd_server *s = w->server;
    struct list *next = list_pop_front(&s->todo);

    if (next)
        return LIST_ENTRY(next, struct nbd_job, link);
    if (s->idle_count >= WORKERS_IDLE_MAX || s->workers_leave)
        return NULL;
    w->job = NULL;
    s->idle_count++;
    list_push_front(&s->idle_workers, &w->link);
    while (!w->job && !s->workers_leave)
        fiber_suspend("nbd request");
    return w->job;
}

static void worker_main(void *arg)
{
    struct worker *w = arg;
    struct nbd_server *s = w->server;

    w->fiber = fiber_self();
    for (struct nbd_job *job = w->job; job; job = worker_wait(w))
        nbd_job_run(job);
    s->worker_count--;
    mem_free(w);
    fiber_group_done(&s->alive);
}

static struct worker *take_idle(struct nbd_server *s)
{
    struct list *it = list_pop_front(&s->idle_workers);

    if (!it)
        return NULL;
    s->idle_count--;
    return LIST_ENTRY(it, struct worker, link);
}

void nbd_work_start(struct nbd_server *s, struct nbd_job *job)
{
    struct worker *w = take_idle(s);

    if (w) {
        w->job = job;
        fiber_wake(w->fiber);
        return;
    }
    if (s->worker_count == WORKERS_MAX) {
        list_push_back(&s->todo, &job->link);
        return;
    }
    w = mem_zalloc(sizeof(*w));
    list_init(&w->link);
    w->server = s;
    w->job = job;
    s->worker_count++;
    fiber_group_add(&s->alive, 1);
    fiber_spawn(s->env, "nbd worker", worker_main, w);
}

void nbd_work_stop(struct nbd_server *s)
{
    struct worker *w;

    CHECK(list_empty(&s->todo));
    s->workers_leave = true;
    while ((w = take_idle(s)) != NULL)
        fiber_wake(w->fiber);
}

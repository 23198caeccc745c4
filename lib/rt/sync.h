/* Synchronisation between fibers of one loop: no atomics, no threads involved.
 *
 * Waiters are served first come, first served. All "lock", "wait", "take" calls may suspend;
 * unlock, signal and post never do. Zero-initialised structs are not valid: use the init functions.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/list.h"

struct env;

struct fiber_mutex {
    bool held;
    struct list waiters;
};
void fiber_mutex_init(struct fiber_mutex *m);
void fiber_mutex_lock(struct fiber_mutex *m);
bool fiber_mutex_try(struct fiber_mutex *m);    /* false: somebody has it. Does not suspend */
void fiber_mutex_unlock(struct fiber_mutex *m); /* hands over to the first waiter */

/* A condition needs no mutex: state changes only while its fiber runs. Loop on the predicate. */
struct fiber_cond {
    struct list waiters;
};
void fiber_cond_init(struct fiber_cond *c);
void fiber_cond_wait(struct fiber_cond *c);
bool fiber_cond_wait_until(struct env *env, struct fiber_cond *c, uint64_t deadline); /* false: time
                                                                                        is up */
void fiber_cond_signal(struct fiber_cond *c); /* wakes one */
void fiber_cond_broadcast(struct fiber_cond *c);

/* A counted budget: take waits until n are free. n is at most the initial count. Large takers are
 * not starved: later small ones queue behind them. */
struct fiber_sem {
    uint64_t free, total;
    struct list waiters;
};
void fiber_sem_init(struct fiber_sem *s, uint64_t total);
void fiber_sem_take(struct fiber_sem *s, uint64_t n);
/* False: the time was up first, and nothing was taken. */
bool fiber_sem_take_until(struct env *env, struct fiber_sem *s, uint64_t n, uint64_t deadline);
bool fiber_sem_try(struct fiber_sem *s, uint64_t n);
void fiber_sem_give(struct fiber_sem *s, uint64_t n);

/* Waits for a number of fibers or callbacks: add before the start, done at their end. */
struct fiber_group {
    uint64_t pending;
    struct list waiters;
};
void fiber_group_init(struct fiber_group *g);
void fiber_group_add(struct fiber_group *g, uint64_t n);
void fiber_group_done(struct fiber_group *g);
void fiber_group_wait(struct fiber_group *g);

/* A bounded queue of pointers. send waits while full, recv while empty. After close, send gives
 * ERR_CLOSED and recv drains what is left, then gives ERR_CLOSED. */
struct fiber_chan {
    void **ring;
    size_t cap, head, count;
    bool closed;
    struct list senders, receivers;
};
void fiber_chan_init(struct fiber_chan *c, size_t cap);
void fiber_chan_free(struct fiber_chan *c); /* empty, nobody waiting */
int fiber_chan_send(struct fiber_chan *c, void *p);
int fiber_chan_recv(struct fiber_chan *c, void **ret_p);
void fiber_chan_close(struct fiber_chan *c);

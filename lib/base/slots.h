/* A few things kept for reuse by whichever thread comes next: expensive contexts of libraries.
 *
 * Thread-local contexts would die with their thread, unfreed; a lock would be one too many. Slots
 * are taken and given back with single atomic exchanges. When none is free the caller makes a new
 * thing; when all are full it destroys its own. At process end the slots still hold their things.
 */
#pragma once

#include <stddef.h>

#define SLOTS_COUNT 32

struct slots {
    void *slot[SLOTS_COUNT];
};

/* Something kept, or NULL. Any thread. */
static inline void *slots_take(struct slots *s)
{
    for (size_t i = 0; i < SLOTS_COUNT; i++) {
        void *p = __atomic_load_n(&s->slot[i], __ATOMIC_RELAXED);

        if (p && (p = __atomic_exchange_n(&s->slot[i], NULL, __ATOMIC_ACQUIRE)))
            return p;
    }
    return NULL;
}

/* Keeps p. Returns NULL, or p when there is no room: the caller destroys it. Any thread. */
static inline void *slots_put(struct slots *s, void *p)
{
    for (size_t i = 0; i < SLOTS_COUNT; i++) {
        void *empty = NULL;

        if (__atomic_compare_exchange_n(&s->slot[i], &empty, p, 0, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED))
            return NULL;
    }
    return p;
}

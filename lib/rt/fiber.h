/* Fibers: one request, one fiber, code that reads top to bottom.
 *
 * A fiber is a stack that runs on its env's loop thread and gives way only where it suspends;
 * between two suspension points it has all shared state of the loop to itself, so engine code takes
 * no locks. A fiber stays on its loop. Functions that may suspend say so in their headers.
 *
 * Stacks come from a pool, have a guard page below, and are made with makecontext; later switches
 * are sigsetjmp/siglongjmp without the signal mask, hence no system call. ASan is told of each
 * switch. A stack is two memory mappings, of which Linux allows a process 65530 by default: bound
 * the number of fibers well below 30000 (connections, requests).
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct env;
struct fiber;

typedef void (*fiber_fn)(void *arg);

/* Usable stack bytes of a fiber: keep frames small, put buffers on the heap. */
#define FIBER_STACK_SIZE (128u * 1024)

/* Makes a fiber that runs fn(arg) once, later, on env's loop. `name` is a constant string. Callable
 * from the loop's thread only (fiber or not). Does not suspend. */
void fiber_spawn(struct env *env, const char *name, fiber_fn fn, void *arg);

/* The running fiber; NULL outside of one. */
struct fiber *fiber_self(void);

/* Lets every other ready fiber run once, then goes on. Suspends. */
void fiber_yield(void);

/* Gives way until fiber_wake. `why` is a constant string for listings. A wake that comes first is
 * not lost: it makes the next suspend return at once. Callers loop on their condition. Suspends. */
void fiber_suspend(const char *why);

/* Makes a suspended fiber ready. From the fiber's own loop thread. Does not suspend. */
void fiber_wake(struct fiber *f);

/* Visits every live fiber of the env: for the watchdog's report and debuggers. */
void fiber_list(struct env *env, void (*visit)(void *arg, const char *name, const char *why),
                void *arg);

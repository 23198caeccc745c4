/* Allocation.
 *
 * Memory never runs out here: every size is bounded by a configured budget before it is asked for,
 * so a failed allocation is a broken invariant and stops the process. No caller checks for NULL.
 *
 * A mem_domain owns what was allocated while it was current on the thread. The simulator gives each
 * simulated process one: a simulated kill releases all of its memory at once (no fiber gets to
 * unwind, as in a real kill), and a clean stop must leave the domain empty, which finds leaks in
 * every simulated run. In production no domain is ever current and the cost is one branch.
 */
#pragma once

#include <stddef.h>

void *mem_alloc(size_t size);            /* uninitialised; size 0 gives a unique pointer */
void *mem_zalloc(size_t size);           /* zeroed */
void *mem_calloc(size_t n, size_t size); /* zeroed array; overflow stops the process */
void *mem_realloc(void *p, size_t size); /* p may be NULL */
void *mem_alloc_aligned(size_t align, size_t size); /* align: power of two, at most 4096 */
void mem_free(void *p); /* NULL is fine; takes what any of the above gave */
char *mem_strdup(const char *s);
void *mem_memdup(const void *p, size_t n);

struct mem_domain;

struct mem_domain *mem_domain_new(void);

/* Makes `d` (or none, for NULL) current on this thread; returns the one before. */
struct mem_domain *mem_domain_enter(struct mem_domain *d);

/* Bytes and allocations alive in the domain. */
size_t mem_domain_bytes(const struct mem_domain *d);
size_t mem_domain_count(const struct mem_domain *d);

/* Frees everything the domain owns, then the domain. It must not be current. */
void mem_domain_release(struct mem_domain *d);

/* Scope-owned memory: `MEM_AUTO char *s = mem_strdup(x);` is freed when s goes out of scope. */
static inline void mem_free_at_(void *pp)
{
    mem_free(*(void **)pp);
}
#define MEM_AUTO __attribute__((cleanup(mem_free_at_)))

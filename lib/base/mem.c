/* Allocation with an optional owner; see mem.h.
 *
 * Every block carries a 32-byte head in front (in front of the alignment padding for aligned ones):
 * the list links of its domain, its size and the distance back to what malloc returned.
 */
#include "lib/base/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/check.h"

struct mem_head {
    struct mem_head *prev, *next; /* in the domain's ring; NULL when no domain owns the block */
    struct mem_domain *domain;
    uint64_t size_off; /* size << 16 | distance from the malloc start to the user pointer */
};

_Static_assert(sizeof(struct mem_head) == 32, "the head keeps user pointers 16-aligned");

struct mem_domain {
    struct mem_head ring;
    size_t bytes, count;
};

static _Thread_local struct mem_domain *mem_current;

static struct mem_head *mem_head_of(void *p)
{
    return (struct mem_head *)p - 1;
}

static void mem_link(struct mem_head *h, struct mem_domain *d, size_t size)
{
    h->domain = d;
    h->prev = h->next = NULL;
    if (!d)
        return;
    h->next = d->ring.next;
    h->prev = &d->ring;
    h->next->prev = h;
    d->ring.next = h;
    d->bytes += size;
    d->count++;
}

static void mem_unlink(struct mem_head *h)
{
    struct mem_domain *d = h->domain;

    if (!d)
        return;
    h->prev->next = h->next;
    h->next->prev = h->prev;
    d->bytes -= (size_t)(h->size_off >> 16);
    d->count--;
    h->domain = NULL;
}

static void *mem_raw(size_t align, size_t size)
{
    size_t pad = align > 16 ? align : sizeof(struct mem_head);
    char *base;
    struct mem_head *h;

    CHECK(size < ((size_t)1 << 47));
    CHECK((align & (align - 1)) == 0 && align <= 4096);
    if (pad < sizeof(struct mem_head))
        pad = sizeof(struct mem_head);
    base = align > 16 ? aligned_alloc(align, (pad + size + align - 1) & ~(align - 1))
                      : malloc(pad + size);
    CHECK(base != NULL);
    h = mem_head_of(base + pad);
    h->size_off = (uint64_t)size << 16 | pad;
    mem_link(h, mem_current, size);
    return base + pad;
}

void *mem_alloc(size_t size)
{
    return mem_raw(16, size);
}

void *mem_zalloc(size_t size)
{
    return memset(mem_raw(16, size), 0, size);
}

void *mem_calloc(size_t n, size_t size)
{
    size_t total;

    CHECK(!__builtin_mul_overflow(n, size, &total));
    return mem_zalloc(total);
}

void *mem_alloc_aligned(size_t align, size_t size)
{
    return mem_raw(align, size);
}

void mem_free(void *p)
{
    struct mem_head *h;

    if (!p)
        return;
    h = mem_head_of(p);
    mem_unlink(h);
    free((char *)p - (h->size_off & 0xffff));
}

void *mem_realloc(void *p, size_t size)
{
    void *q;
    size_t old;

    if (!p)
        return mem_alloc(size);
    old = (size_t)(mem_head_of(p)->size_off >> 16);
    q = mem_alloc(size);
    memcpy(q, p, old < size ? old : size);
    mem_free(p);
    return q;
}

char *mem_strdup(const char *s)
{
    return mem_memdup(s, strlen(s) + 1);
}

void *mem_memdup(const void *p, size_t n)
{
    void *q = mem_alloc(n);

    if (n)
        memcpy(q, p, n);
    return q;
}

struct mem_domain *mem_domain_new(void)
{
    struct mem_domain *d = calloc(1, sizeof(*d));

    CHECK(d != NULL);
    d->ring.next = d->ring.prev = &d->ring;
    return d;
}

struct mem_domain *mem_domain_enter(struct mem_domain *d)
{
    struct mem_domain *before = mem_current;

    mem_current = d;
    return before;
}

size_t mem_domain_bytes(const struct mem_domain *d)
{
    return d->bytes;
}

size_t mem_domain_count(const struct mem_domain *d)
{
    return d->count;
}

void mem_domain_release(struct mem_domain *d)
{
    if (!d)
        return;
    CHECK(d != mem_current);
    while (d->ring.next != &d->ring)
        mem_free(d->ring.next + 1);
    free(d);
}

/* nbd_pool: the request buffers of the NBD server.
 *
 * Powers of two, so that a freed buffer fits the next request of that kind; a bounded amount is
 * kept for reuse, since fresh large allocations cost a page fault per 4 KiB. How much may be in use
 * is not decided here but by the budgets of the connection and the server, which count these sizes.
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "proto/nbd/nbd_impl.h"

#define CACHED_MAX (32u << 20)

_Static_assert((1u << NBD_CLASS_MIN_SHIFT) << (NBD_CLASS_COUNT - 1) == NBD_PAYLOAD_MAX,
               "the largest class holds the largest request");

static unsigned class_of(size_t size)
{
    unsigned c = (unsigned)__builtin_ctzll(size) - NBD_CLASS_MIN_SHIFT;

    CHECK(size == (size_t)1 << (c + NBD_CLASS_MIN_SHIFT) && c < NBD_CLASS_COUNT);
    return c;
}

size_t nbd_pool_size(size_t n)
{
    size_t size = (size_t)1 << NBD_CLASS_MIN_SHIFT;

    CHECK(n <= NBD_PAYLOAD_MAX);
    if (n == 0)
        return 0;
    while (size < n)
        size <<= 1;
    return size;
}

uint8_t *nbd_pool_get(struct nbd_pool *p, size_t size)
{
    void **chain, *buf;

    if (size == 0)
        return NULL;
    chain = &p->free[class_of(size)];
    buf = *chain;
    if (!buf)
        return mem_alloc_aligned(4096, size);
    memcpy(chain, buf, sizeof(*chain));
    p->cached -= size;
    return buf;
}

void nbd_pool_put(struct nbd_pool *p, uint8_t *buf, size_t size)
{
    void **chain;

    if (!buf)
        return;
    chain = &p->free[class_of(size)];
    if (p->cached + size > CACHED_MAX) {
        mem_free(buf);
        return;
    }
    memcpy(buf, chain, sizeof(*chain));
    *chain = buf;
    p->cached += size;
}

void nbd_pool_free(struct nbd_pool *p)
{
    for (unsigned c = 0; c < NBD_CLASS_COUNT; c++) {
        size_t size = (size_t)1 << (c + NBD_CLASS_MIN_SHIFT);

        while (p->free[c])
            mem_free(nbd_pool_get(p, size));
    }
    CHECK(p->cached == 0);
}

/* Reference-counted aligned buffers; see buf.h. */
#include "lib/base/buf.h"

#include "lib/base/check.h"
#include "lib/base/mem.h"

struct buf *buf_new(size_t size)
{
    struct buf *b = mem_alloc(sizeof(*b));

    b->data = mem_alloc_aligned(BUF_ALIGN, size);
    b->size = size;
    b->refs_ = 1;
    return b;
}

struct buf *buf_ref(struct buf *b)
{
    uint32_t before = __atomic_fetch_add(&b->refs_, 1, __ATOMIC_RELAXED);

    CHECK(before > 0 && before < UINT32_MAX);
    return b;
}

void buf_unref(struct buf *b)
{
    if (!b)
        return;
    if (__atomic_fetch_sub(&b->refs_, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    mem_free(b->data);
    mem_free(b);
}

/* The recording key-value store; see meta.h. It stands on kv_mem, which takes its time as RocksDB
 * does; what is durable is kept apart from kv_mem's own image. */
#include "tests/crash/meta.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "lib/kv/impl.h"
#include "lib/rt/env.h"
#include "lib/rt/env_sim.h"

struct meta_kv {
    struct kv base;
    struct crash_meta *meta;
    struct kv *under;
};

struct meta_batch {
    struct list link;
    uint64_t number;
    struct kv_batch *batch;
};

static struct meta_kv *meta_of(struct kv *kv)
{
    return (struct meta_kv *)kv;
}

static void batch_free(struct meta_batch *b)
{
    list_del(&b->link);
    kv_batch_free(b->batch);
    mem_free(b);
}

/* Makes durable what was written up to a batch. */
static void meta_settle(struct crash_meta *m, uint64_t upto)
{
    list_for_each_safe (it, &m->batches) {
        struct meta_batch *b = LIST_ENTRY(it, struct meta_batch, link);

        if (b->number > upto)
            break;
        kv_mem_image_apply(m->durable, b->batch);
        batch_free(b);
    }
    if (upto > m->flushed)
        m->flushed = upto;
}

static int meta_get(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    return meta_of(kv)->under->ops->get(meta_of(kv)->under, key, ret_value, ret_len);
}

static int meta_multi_get(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                          size_t *lens)
{
    return meta_of(kv)->under->ops->multi_get(meta_of(kv)->under, keys, n, values, lens);
}

static int meta_scan(struct kv *kv, struct kv_slice from, struct kv_slice to, size_t max_rows,
                     size_t max_bytes, int reverse, struct kv_rows **ret_rows)
{
    return meta_of(kv)->under->ops->scan(meta_of(kv)->under, from, to, max_rows, max_bytes, reverse,
                                         ret_rows);
}

/* Batches count in the order of the calls. */
static int meta_write(struct kv *kv, const struct kv_batch *b)
{
    struct crash_meta *m = meta_of(kv)->meta;
    struct meta_batch *copy;
    void *saved;

    sim_outside_enter(&saved);
    copy = mem_alloc(sizeof(*copy));
    copy->number = ++m->written;
    copy->batch = kv_batch_new();
    copy->batch->count = b->count;
    strbuf_add(&copy->batch->ops, b->ops.data, b->ops.len);
    list_push_back(&m->batches, &copy->link);
    sim_outside_leave(saved);
    return meta_of(kv)->under->ops->write(meta_of(kv)->under, b);
}

static int meta_flush(struct kv *kv)
{
    struct crash_meta *m = meta_of(kv)->meta;
    uint64_t upto = m->written;
    int rc = meta_of(kv)->under->ops->flush(meta_of(kv)->under);

    if (rc < 0)
        return rc;
    if (upto > m->flushed && m->on_durable && m->on_durable(m->arg))
        fiber_suspend("the power was cut");
    meta_settle(m, upto);
    return 0;
}

static int meta_get_stats(struct kv *kv, struct kv_stats *ret_stats)
{
    return meta_of(kv)->under->ops->get_stats(meta_of(kv)->under, ret_stats);
}

static int meta_close(struct kv *kv)
{
    struct meta_kv *k = meta_of(kv);
    int rc = meta_flush(kv), closed = k->under->ops->close(k->under);

    mem_free(k);
    return rc < 0 ? rc : closed;
}

static const struct kv_ops meta_ops = {
    .get = meta_get,
    .multi_get = meta_multi_get,
    .write = meta_write,
    .flush = meta_flush,
    .get_stats = meta_get_stats,
    .close = meta_close,
    .scan = meta_scan,
};

int crash_meta_open(struct crash_meta *m, struct env *env, struct kv **ret_kv)
{
    struct meta_kv *k = mem_zalloc(sizeof(*k));
    int rc;

    kv_mem_image_free(m->scratch);
    m->scratch = kv_mem_image_copy(m->durable);
    k->base.ops = &meta_ops;
    k->meta = m;
    rc = kv_mem_open(env, m->scratch, &k->under);
    if (rc < 0) {
        mem_free(k);
        return rc;
    }
    *ret_kv = &k->base;
    return 0;
}

void crash_meta_cut(struct crash_meta *m, uint64_t border)
{
    CHECK(border >= m->flushed && border <= m->written);
    meta_settle(m, border);
    while (!list_empty(&m->batches))
        batch_free(LIST_ENTRY(m->batches.next, struct meta_batch, link));
    m->written = m->flushed = border;
}

void crash_meta_lose(struct crash_meta *m)
{
    crash_meta_cut(m, m->flushed);
    kv_mem_image_free(m->durable);
    m->durable = kv_mem_image_new();
}

void crash_meta_init(struct crash_meta *m)
{
    memset(m, 0, sizeof(*m));
    m->durable = kv_mem_image_new();
    list_init(&m->batches);
}

void crash_meta_free(struct crash_meta *m)
{
    crash_meta_cut(m, m->flushed);
    kv_mem_image_free(m->durable);
    kv_mem_image_free(m->scratch);
}

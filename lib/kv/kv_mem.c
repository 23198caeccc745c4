/* The key-value store in memory: for the simulator, where it stands in for RocksDB with a durable
 * image, and for tests that want no disk.
 *
 * The image and how a crash works. What a process sees is `rows`, in the process's memory. What a
 * crash leaves is the image, a second tree in the simulator's memory. Between the two stands the
 * queue of batches that were written and are not durable: making something durable means to apply a
 * prefix of that queue to the image. So the two promises of kv.h (a crash goes back to a batch
 * border; never behind a completed flush) hold by construction: the image is changed by whole
 * batches only, in their order, and nothing suspends in the middle of it.
 *
 * What the simulated store does to its callers, because RocksDB does it to them too: a flush takes
 * time, with writes going on meanwhile, and a crash before its end may find none of it durable; a
 * write now and then makes everything up to it durable unasked (a memory table was full), or waits
 * for room before anyone sees it, with reads of the old rows going on meanwhile; and any call may
 * suspend, so that a caller who read, and acts on it without asking who else ran
 * meanwhile, is found out. Without an image calls never suspend.
 */
#include "lib/kv/impl.h"

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/list.h"
#include "lib/base/mem.h"
#include "lib/kv/skiplist.h"
#include "lib/rt/env.h"
#include "lib/rt/env_sim.h"
#include "lib/rt/sync.h"

#define KV_MEM_SPONTANEOUS  64u /* one write in so many makes all so far durable */
#define KV_MEM_YIELD        8u  /* one call in so many lets others run first */
#define KV_MEM_SLEEP        32u /* one call in so many takes longer */
#define KV_MEM_SLEEP_MAX_NS (200 * 1000ull)
#define KV_MEM_FLUSH_MAX_NS (5 * ENV_NS_PER_MS)

struct kv_mem_image {
    struct skiplist *rows;
};

struct kv_mem {
    struct kv base;
    struct env *env;
    struct kv_mem_image *image; /* NULL: nothing outlives the handle */
    struct skiplist *rows;
    struct list pending;        /* kv_mem_pending, oldest first: in rows, not in the image */
    struct fiber_mutex writing; /* keeps batches in the order of the calls */
    uint64_t written;           /* batches written by this handle: the number of the last one */
    size_t pending_bytes;
};

struct kv_mem_pending {
    struct list node;
    uint64_t number;
    struct kv_batch *batch;
};

static struct kv_mem *kv_mem_of(struct kv *kv)
{
    return (struct kv_mem *)kv;
}

static void kv_mem_apply(struct skiplist *rows, const struct kv_batch *b)
{
    struct kv_batch_op op;
    size_t pos = 0;

    while (kv_batch_next(b, &pos, &op))
        if (op.is_put)
            skiplist_put(rows, op.key, op.value);
        else
            skiplist_delete(rows, op.key);
}

/* ---- The durable image ---------------------------------------------------------------------- */

struct kv_mem_image *kv_mem_image_new(void)
{
    struct kv_mem_image *image;
    void *saved;

    sim_outside_enter(&saved);
    image = mem_alloc(sizeof(*image));
    image->rows = skiplist_new();
    sim_outside_leave(saved);
    return image;
}

void kv_mem_image_free(struct kv_mem_image *image)
{
    if (!image)
        return;
    skiplist_free(image->rows);
    mem_free(image);
}

void kv_mem_image_apply(struct kv_mem_image *image, const struct kv_batch *b)
{
    void *saved;

    sim_outside_enter(&saved);
    kv_mem_apply(image->rows, b);
    sim_outside_leave(saved);
}

struct kv_mem_image *kv_mem_image_copy(const struct kv_mem_image *image)
{
    struct kv_mem_image *copy = kv_mem_image_new();
    void *saved;

    sim_outside_enter(&saved);
    for (const struct skiplist_node *n = skiplist_first(image->rows); n; n = n->next[0])
        skiplist_put(copy->rows, n->key, n->value);
    sim_outside_leave(saved);
    return copy;
}

/* Makes every batch up to `number` durable. Does not suspend. */
static void kv_mem_make_durable(struct kv_mem *m, uint64_t number)
{
    while (!list_empty(&m->pending)) {
        struct kv_mem_pending *p = LIST_ENTRY(m->pending.next, struct kv_mem_pending, node);

        if (p->number > number)
            break;
        kv_mem_image_apply(m->image, p->batch);
        list_del(&p->node);
        m->pending_bytes -= p->batch->ops.len;
        kv_batch_free(p->batch);
        mem_free(p);
    }
}

static void kv_mem_remember(struct kv_mem *m, const struct kv_batch *b)
{
    struct kv_mem_pending *p = mem_alloc(sizeof(*p));

    p->number = m->written;
    p->batch = kv_batch_new();
    p->batch->count = b->count;
    strbuf_add(&p->batch->ops, b->ops.data, b->ops.len);
    m->pending_bytes += b->ops.len;
    list_push_back(&m->pending, &p->node);
}

/* ---- Simulated delays ----------------------------------------------------------------------- */

static uint64_t kv_mem_random(struct kv_mem *m, uint64_t below)
{
    uint64_t x;

    env_random(m->env, &x, sizeof(x));
    return x % below;
}

/* With an image, sometimes suspends. Reads do it on either side of looking: a result may be older
 * than the moment it is returned, as with a read on another thread. */
static void kv_mem_dawdle(struct kv_mem *m)
{
    uint64_t dice;

    if (!m->image)
        return;
    dice = kv_mem_random(m, KV_MEM_YIELD * KV_MEM_SLEEP);
    if (dice % KV_MEM_SLEEP == 0)
        env_sleep(m->env, kv_mem_random(m, KV_MEM_SLEEP_MAX_NS));
    else if (dice % KV_MEM_YIELD == 1)
        fiber_yield();
}

/* ---- Calls ---------------------------------------------------------------------------------- */

static int kv_mem_get(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    struct kv_mem *m = kv_mem_of(kv);
    const struct skiplist_node *n;
    void *value = NULL;
    size_t len = 0;

    kv_mem_dawdle(m);
    n = skiplist_find(m->rows, key);
    if (n) {
        value = mem_memdup(n->value.data, n->value.len);
        len = n->value.len;
    }
    kv_mem_dawdle(m);
    if (!value)
        return ERR_NOENT;
    *ret_value = value;
    *ret_len = len;
    return 0;
}

static int kv_mem_multi_get(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                            size_t *lens)
{
    struct kv_mem *m = kv_mem_of(kv);

    for (size_t i = 0; i < n; i++) {
        const struct skiplist_node *found;

        kv_mem_dawdle(m);
        found = skiplist_find(m->rows, keys[i]);
        values[i] = found ? mem_memdup(found->value.data, found->value.len) : NULL;
        lens[i] = found ? found->value.len : 0;
    }
    kv_mem_dawdle(m);
    return 0;
}

static int kv_mem_scan(struct kv *kv, struct kv_slice from, struct kv_slice to, size_t max_rows,
                       size_t max_bytes, int reverse, struct kv_rows **ret_rows)
{
    struct kv_mem *m = kv_mem_of(kv);
    const struct skiplist_node *n;
    struct kv_rows *rows;
    struct kv_page page;

    kv_mem_dawdle(m);
    kv_page_init(&page, max_rows, max_bytes);
    n = reverse ? skiplist_before(m->rows, to) : skiplist_at_or_after(m->rows, from);
    while (n && !kv_page_full(&page)) {
        if (reverse ? kv_slice_cmp(n->key, from) < 0 : kv_slice_cmp(n->key, to) >= 0)
            break;
        kv_page_add(&page, kv_key_of_full(n->key), n->value);
        n = reverse ? n->prev : n->next[0];
    }
    rows = kv_page_pack(&page);
    kv_mem_dawdle(m);
    *ret_rows = rows;
    return 0;
}

/* Applied at once, so that the order of the calls is the order of the batches; what dawdles is the
 * return. */
static int kv_mem_write(struct kv *kv, const struct kv_batch *b)
{
    struct kv_mem *m = kv_mem_of(kv);

    if (!m->image) {
        kv_mem_apply(m->rows, b);
        m->written++;
        return 0;
    }
    fiber_mutex_lock(&m->writing);
    kv_mem_dawdle(m);
    kv_mem_apply(m->rows, b);
    m->written++;
    kv_mem_remember(m, b);
    if (kv_mem_random(m, KV_MEM_SPONTANEOUS) == 0)
        kv_mem_make_durable(m, m->written);
    fiber_mutex_unlock(&m->writing);
    kv_mem_dawdle(m);
    return 0;
}

static int kv_mem_flush(struct kv *kv)
{
    struct kv_mem *m = kv_mem_of(kv);
    uint64_t upto = m->written;

    if (!m->image)
        return 0;
    env_sleep(m->env, kv_mem_random(m, KV_MEM_FLUSH_MAX_NS));
    kv_mem_make_durable(m, upto);
    return 0;
}

static int kv_mem_get_stats(struct kv *kv, struct kv_stats *ret_stats)
{
    struct kv_mem *m = kv_mem_of(kv);

    ret_stats->memory_bytes = skiplist_bytes(m->rows) + m->pending_bytes;
    ret_stats->disk_bytes = m->image ? skiplist_bytes(m->image->rows) : 0;
    return 0;
}

static int kv_mem_close(struct kv *kv)
{
    struct kv_mem *m = kv_mem_of(kv);
    int r = kv_mem_flush(kv);

    CHECK(list_empty(&m->pending));
    skiplist_free(m->rows);
    mem_free(m);
    return r;
}

static const struct kv_ops kv_mem_ops = {
    .get = kv_mem_get,
    .multi_get = kv_mem_multi_get,
    .write = kv_mem_write,
    .flush = kv_mem_flush,
    .get_stats = kv_mem_get_stats,
    .close = kv_mem_close,
    .scan = kv_mem_scan,
};

int kv_mem_open(struct env *env, struct kv_mem_image *image, struct kv **ret_kv)
{
    struct kv_mem *m = mem_zalloc(sizeof(*m));

    m->base.ops = &kv_mem_ops;
    m->env = env;
    m->image = image;
    m->rows = skiplist_new();
    fiber_mutex_init(&m->writing);
    list_init(&m->pending);
    if (image)
        for (const struct skiplist_node *n = skiplist_first(image->rows); n; n = n->next[0])
            skiplist_put(m->rows, n->key, n->value);
    *ret_kv = &m->base;
    return 0;
}

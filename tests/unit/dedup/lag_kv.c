/* The key-value store that lags; see lag_kv.h. */
#include "tests/unit/dedup/lag_kv.h"

#include "lib/base/hmap.h"
#include "lib/base/mem.h"
#include "lib/kv/impl.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"

struct lag_kv {
    struct kv base;
    struct env *env;
    struct kv *under;
    const uint64_t *lag_ns;
    struct fiber_mutex order;
    int read_error;
    uint64_t read_ns; /* of a row that is not known */
    struct hmap known;
};

static struct lag_kv *lag(struct kv *kv)
{
    return (struct lag_kv *)kv;
}

/* True: it was not known before. */
static bool lag_learn(struct lag_kv *l, struct kv_slice key)
{
    uint64_t hash = hmap_hash_bytes(key.data, key.len);
    struct hmap_node *n;

    if (hmap_first(&l->known, hash))
        return false;
    n = mem_zalloc(sizeof(*n));
    hmap_insert(&l->known, n, hash);
    return true;
}

static void lag_forget(struct lag_kv *l)
{
    struct hmap_node *n, *next;

    for (n = hmap_walk(&l->known, NULL); n; n = next) {
        next = hmap_walk(&l->known, n);
        hmap_remove(&l->known, n);
        mem_free(n);
    }
}

static int lag_get(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    struct lag_kv *l = lag(kv);
    int rc = l->under->ops->get(l->under, key, ret_value, ret_len);

    if (rc == 0 && l->read_ns && lag_learn(l, key))
        env_sleep(l->env, l->read_ns);
    return rc;
}

static int lag_multi_get(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                         size_t *lens)
{
    struct lag_kv *l = lag(kv);
    bool slow = false;
    int rc = l->read_error;

    if (rc == 0)
        rc = l->under->ops->multi_get(l->under, keys, n, values, lens);
    for (size_t i = 0; rc == 0 && l->read_ns && i < n; i++)
        slow |= values[i] && lag_learn(l, keys[i]);
    if (slow)
        env_sleep(l->env, l->read_ns);
    return rc;
}

static int lag_write(struct kv *kv, const struct kv_batch *b)
{
    struct lag_kv *l = lag(kv);
    struct kv_batch_op op;
    size_t pos = 0;
    int rc;

    while (l->read_ns && kv_batch_next(b, &pos, &op))
        (void)lag_learn(l, op.key);
    fiber_mutex_lock(&l->order);
    if (*l->lag_ns)
        env_sleep(l->env, *l->lag_ns);
    rc = l->under->ops->write(l->under, b);
    fiber_mutex_unlock(&l->order);
    return rc;
}

static int lag_flush(struct kv *kv)
{
    return lag(kv)->under->ops->flush(lag(kv)->under);
}

static int lag_get_stats(struct kv *kv, struct kv_stats *ret_stats)
{
    return lag(kv)->under->ops->get_stats(lag(kv)->under, ret_stats);
}

static int lag_close(struct kv *kv)
{
    int rc = kv_close(lag(kv)->under);

    lag_forget(lag(kv));
    hmap_free(&lag(kv)->known);
    mem_free(kv);
    return rc;
}

static int lag_scan(struct kv *kv, struct kv_slice from, struct kv_slice to, size_t max_rows,
                    size_t max_bytes, int reverse, struct kv_rows **ret_rows)
{
    return lag(kv)->under->ops->scan(lag(kv)->under, from, to, max_rows, max_bytes, reverse,
                                     ret_rows);
}

static const struct kv_ops lag_ops = {
    .get = lag_get,
    .multi_get = lag_multi_get,
    .write = lag_write,
    .flush = lag_flush,
    .get_stats = lag_get_stats,
    .close = lag_close,
    .scan = lag_scan,
};

struct kv *lag_kv_new(struct env *env, struct kv *under, const uint64_t *lag_ns)
{
    struct lag_kv *l = mem_zalloc(sizeof(*l));

    l->base.ops = &lag_ops;
    l->env = env;
    l->under = under;
    l->lag_ns = lag_ns;
    fiber_mutex_init(&l->order);
    hmap_init(&l->known);
    return &l->base;
}

void lag_kv_fail_reads(struct kv *kv, int error)
{
    lag(kv)->read_error = error;
}

void lag_kv_slow_reads(struct kv *kv, uint64_t ns)
{
    lag_forget(lag(kv));
    lag(kv)->read_ns = ns;
}

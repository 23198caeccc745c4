/* The key-value store that lags; see lag_kv.h. */
#include "tests/unit/dedup/lag_kv.h"

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
};

static struct lag_kv *lag(struct kv *kv)
{
    return (struct lag_kv *)kv;
}

static int lag_get(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    return lag(kv)->under->ops->get(lag(kv)->under, key, ret_value, ret_len);
}

static int lag_multi_get(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                         size_t *lens)
{
    if (lag(kv)->read_error < 0)
        return lag(kv)->read_error;
    return lag(kv)->under->ops->multi_get(lag(kv)->under, keys, n, values, lens);
}

static int lag_write(struct kv *kv, const struct kv_batch *b)
{
    struct lag_kv *l = lag(kv);
    int rc;

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
    return &l->base;
}

void lag_kv_fail_reads(struct kv *kv, int error)
{
    lag(kv)->read_error = error;
}

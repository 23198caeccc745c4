/* Volumes: the table, its rows, and what administrators do with them. */
#include <stdlib.h>
#include <string.h>

#include "daemon/volume_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define VOLUME_PAGE 256u

struct volume *volume_find(const struct volumes *vs, uint64_t id)
{
    struct hmap_node *n = hmap_first(&vs->by_id, hmap_mix(id)); /* the mix is one to one */

    return n ? HMAP_ENTRY(n, struct volume, node) : NULL;
}

struct volume *volume_find_name(const struct volumes *vs, const char *name)
{
    list_for_each (it, &vs->all) {
        struct volume *v = LIST_ENTRY(it, struct volume, link);

        if (strcmp(v->info.name, name) == 0)
            return v;
    }
    return NULL;
}

bool volume_name_valid(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > BLOCK_NAME_MAX || name[0] == '.' || name[0] == '-')
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n;
}

static int volume_size_check(uint64_t size)
{
    return size == 0 || size % BLOCK_SIZE || size > BLOCK_VOLUME_MAX ? ERR_RANGE : 0;
}

/* ---- block_ops: administration ---- */

static int volume_create(struct block_store *bs, const char *name, uint64_t size,
                         enum block_durability durability)
{
    struct volumes *vs = (struct volumes *)bs;
    uint8_t head[24];
    struct codec_writer w = codec_writer_on(head, sizeof(head));
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)(uintptr_t)name, strlen(name)}};

    if (!volume_name_valid(name))
        return ERR_NAME;
    if (volume_size_check(size) < 0)
        return ERR_RANGE;
    if (volume_find_name(vs, name))
        return ERR_EXIST;
    codec_write_le64(&w, size);
    codec_write_le64(&w, env_wallclock(vs->p->env));
    codec_write_le32(&w, (uint32_t)durability);
    codec_write_le32(&w, (uint32_t)strlen(name));
    CHECK(codec_writer_ok(&w));
    return record_submit(&vs->p->log, RECORD_VOLUME_CREATE, iov, 2, JOURNAL_INTERNAL, NULL);
}

static int info_compare(const void *a, const void *b)
{
    return strcmp(((const struct block_info *)a)->name, ((const struct block_info *)b)->name);
}

void volume_get_info(const struct volume *v, struct block_info *ret_info)
{
    uint64_t mapped = 0;

    *ret_info = v->info;
    for (const struct volume_map *m = v->map; m; m = m->parent)
        mapped += m->mapped * BLOCK_SIZE;
    ret_info->mapped = mapped < v->info.size ? mapped : v->info.size;
}

int volume_list_where(struct volumes *vs, bool (*want)(const struct volume *v, uint64_t arg),
                      uint64_t arg, struct block_info **ret_infos, size_t *ret_count)
{
    struct block_info *infos = mem_calloc(vs->count, sizeof(*infos));
    size_t n = 0;

    list_for_each (it, &vs->all) {
        struct volume *v = LIST_ENTRY(it, struct volume, link);

        if (want(v, arg))
            volume_get_info(v, &infos[n++]);
    }
    qsort(infos, n, sizeof(*infos), info_compare);
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}

static bool is_volume(const struct volume *v, uint64_t arg)
{
    (void)arg;
    return v->of == 0;
}

static int volume_list(struct block_store *bs, struct block_info **ret_infos, size_t *ret_count)
{
    return volume_list_where((struct volumes *)bs, is_volume, 0, ret_infos, ret_count);
}

static int volume_stat(struct block_store *bs, const char *name, struct block_info *ret_info)
{
    struct volume *v = volume_find_name((struct volumes *)bs, name);

    if (!v)
        return ERR_NOENT;
    volume_get_info(v, ret_info);
    return 0;
}

int volume_submit_id(struct volumes *vs, enum record_type type, uint64_t id, uint64_t value,
                     unsigned flags)
{
    uint8_t body[16];
    struct iovec iov = {body, sizeof(body)};

    codec_put_le64(body, id);
    codec_put_le64(body + 8, value);
    return record_submit(&vs->p->log, type, &iov, 1, flags, NULL);
}

/* Shrinking gives the tail back first, so that growing again shows zeroes. */
static int volume_shrink(struct volume *v, uint64_t size)
{
    struct volume_range all = {.first = size / BLOCK_SIZE, .last = UINT64_MAX, .exclusive = true};
    uint64_t blocks = (v->info.size - size) / BLOCK_SIZE;
    int rc;

    v->size_limit = size;
    volume_range_lock(v, &all); /* writes beyond the new size have ended */
    rc = PLANTED(SHRINK_KEEPS_TAIL)
             ? 0
             : volume_zero_blocks(v, size / BLOCK_SIZE, blocks, JOURNAL_INTERNAL);
    if (rc == 0)
        rc = volume_submit_id(v->owner, RECORD_VOLUME_RESIZE, v->info.id, size, JOURNAL_INTERNAL);
    v->size_limit = v->info.size;
    volume_range_unlock(v, &all);
    return rc;
}

static int volume_resize(struct block_store *bs, const char *name, uint64_t size)
{
    struct volumes *vs = (struct volumes *)bs;
    struct volume *v = volume_find_name(vs, name);
    int rc;

    if (!v)
        return ERR_NOENT;
    if (v->of)
        return ERR_READONLY;
    if (volume_size_check(size) < 0)
        return ERR_RANGE;
    if (v->size_limit != v->info.size || v->closed)
        return ERR_BUSY; /* another resize, or a delete, is under way */
    v->info.openers++;   /* it cannot be deleted meanwhile */
    if (size < v->info.size)
        rc = volume_shrink(v, size);
    else
        rc = volume_submit_id(vs, RECORD_VOLUME_RESIZE, v->info.id, size, JOURNAL_INTERNAL);
    v->info.openers--;
    return rc;
}

static int volume_remove(struct block_store *bs, const char *name)
{
    struct volumes *vs = (struct volumes *)bs;
    struct volume *v = volume_find_name(vs, name);
    uint64_t id;
    int rc;

    if (!v)
        return ERR_NOENT;
    if (v->of)
        return ERR_READONLY; /* snapshots have their own way to go */
    if (v->info.openers || v->closed)
        return ERR_BUSY;
    if (volume_has_snapshots(vs, v->info.id))
        return ERR_SNAPSHOTS;
    id = v->info.id;
    v->closed = true; /* applying the record must not depend on who opens it meanwhile */
    rc = volume_submit_id(vs, RECORD_VOLUME_DELETE, id, 0, JOURNAL_INTERNAL);
    v = volume_find(vs, id);
    if (rc < 0 && v)
        v->closed = false;
    return rc;
}

static const struct block_ops volume_ops;

static int volume_open(struct block_store *bs, const char *name, struct block_volume **ret_volume)
{
    struct volume *v = volume_find_name((struct volumes *)bs, name);
    struct volume_handle *h;

    if (!v)
        return ERR_NOENT;
    if (v->closed)
        return ERR_BUSY;
    h = mem_zalloc(sizeof(*h));
    h->face.ops = &volume_ops;
    h->volume = v;
    v->info.openers++;
    *ret_volume = &h->face;
    return 0;
}

static void volume_close(struct block_volume *bv)
{
    struct volume_handle *h = (struct volume_handle *)bv;

    h->volume->info.openers--;
    mem_free(h);
}

static void volume_info(struct block_volume *bv, struct block_info *ret_info)
{
    volume_get_info(((struct volume_handle *)bv)->volume, ret_info);
}

static const struct block_ops volume_ops = {
    .create = volume_create,
    .list = volume_list,
    .stat = volume_stat,
    .resize = volume_resize,
    .remove = volume_remove,
    .open = volume_open,
    .snapshot = volume_snapshot,
    .snapshots = volume_snapshots,
    .snapshot_remove = volume_snapshot_remove,
    .clone = volume_clone,
    .rollback = volume_rollback,
    .close = volume_close,
    .info = volume_info,
    .read = volume_read,
    .write = volume_write,
    .flush = volume_flush,
    .discard = volume_zero, /* both leave holes: a thin volume keeps no zeroes */
    .zero = volume_zero,
    .extents = volume_extents,
};

/* ---- Life ---- */

void volumes_set_overlay(struct volumes *vs, uint64_t bytes)
{
    vs->overlay_max = bytes / BLOCK_SIZE;
}

int volumes_new(struct partition *p, struct volumes **ret_volumes)
{
    struct volumes *vs = mem_zalloc(sizeof(*vs));

    vs->face.ops = &volume_ops;
    vs->p = p;
    vs->overlay_max = UINT64_MAX; /* until volumes_set_overlay */
    hmap_init(&vs->by_id);
    list_init(&vs->all);
    hmap_init(&vs->maps);
    list_init(&vs->all_maps);
    overlay_init(&vs->overlay);
    leafmap_init(&vs->leaves, p->kv, p->options.cache_bytes / 2 / sizeof(struct leaf));
    fiber_cond_init(&vs->overlay_room);
    fiber_cond_init(&vs->drain_work);
    fiber_cond_init(&vs->drained);
    fiber_cond_init(&vs->reap_work);
    fiber_group_init(&vs->fibers);
    for (unsigned i = 0; i < VOLUME_OPS; i++)
        metric_hist_init(&vs->op_time[i], METRIC_TIME);
    metric_hist_init(&vs->overlay_wait, METRIC_TIME);
    metric_hist_init(&vs->drain_time, METRIC_TIME);
    *ret_volumes = vs;
    return 0;
}

void volumes_free(struct volumes *vs)
{
    if (!vs)
        return;
    for (struct list *it = list_pop_front(&vs->all); it; it = list_pop_front(&vs->all))
        mem_free(LIST_ENTRY(it, struct volume, link));
    hmap_free(&vs->by_id);
    overlay_free(&vs->overlay); /* it counts in the maps */
    for (struct list *it = list_pop_front(&vs->all_maps); it; it = list_pop_front(&vs->all_maps))
        mem_free(LIST_ENTRY(it, struct volume_map, link));
    hmap_free(&vs->maps);
    leafmap_free(&vs->leaves);
    mem_free(vs);
}

int volumes_start(struct volumes *vs)
{
    fiber_group_add(&vs->fibers, 2);
    fiber_spawn(vs->p->env, "drainer", volume_drainer, vs);
    fiber_spawn(vs->p->env, "reaper", volume_reaper, vs);
    return 0;
}

void volumes_stop(struct volumes *vs)
{
    vs->stopping = true;
    fiber_cond_broadcast(&vs->drain_work);
    fiber_cond_broadcast(&vs->reap_work);
    fiber_cond_broadcast(&vs->overlay_room);
    fiber_group_wait(&vs->fibers);
}

struct block_store *volumes_blocks(struct volumes *vs)
{
    return &vs->face;
}

void volumes_written(struct volumes *vs)
{
    leafmap_written(&vs->leaves);
}

uint64_t volumes_oldest_lsn(const struct volumes *vs)
{
    return overlay_oldest(&vs->overlay);
}

void volumes_observe(struct volumes *vs, struct metrics *m)
{
    static const char *const ops[] = {"read", "write", "flush", "zero"};

    for (unsigned i = 0; i < VOLUME_OPS; i++)
        metrics_add_hist(m, "filmroom_block_seconds",
                         "Time of an operation on a volume; zero includes discards",
                         METRIC_LABELS("op", ops[i]), &vs->op_time[i]);
    metrics_add_hist(m, "filmroom_overlay_wait_seconds",
                     "Time that small writes waited because the overlay was full; those that did "
                     "not wait are not in it",
                     NULL, &vs->overlay_wait);
    metrics_add_hist(m, "filmroom_drain_seconds",
                     "Time of one round of moving small writes from the overlay into stripes", NULL,
                     &vs->drain_time);
    metrics_add_counter(m, "filmroom_block_read_bytes_total", "Bytes read from volumes", NULL,
                        &vs->read_bytes);
    metrics_add_counter(m, "filmroom_block_written_bytes_total", "Bytes written to volumes", NULL,
                        &vs->written_bytes);
    metrics_add_counter(m, "filmroom_drain_blocks_total", "Blocks moved out of the overlay", NULL,
                        &vs->drained_blocks);
}

void volumes_get_counts(const struct volumes *vs, uint64_t *ret_volumes, uint64_t *ret_mapped,
                        uint64_t *ret_overlay, uint64_t *ret_written)
{
    uint64_t n = 0;

    list_for_each (it, &vs->all)
        n += LIST_ENTRY(it, struct volume, link)->of == 0;
    *ret_volumes = n;
    *ret_mapped = vs->mapped * BLOCK_SIZE;
    *ret_overlay = vs->overlay.count * BLOCK_SIZE;
    *ret_written = metric_get(&vs->written_bytes);
}

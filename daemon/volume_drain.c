/* The drainer: takes the oldest blocks out of the overlay, stores them as chunks, journals the
 * mappings.
 *
 * It runs when enough is gathered to fill stripes, when the journal or the overlay fill up, or when
 * the oldest block has waited for a while; until then overwrites are absorbed. Applying the
 * mappings removes from the overlay what was not written again meanwhile.
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/volume_priv.h"
#include "dedup/compress.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

#define DRAIN_BLOCKS_MAX 2048u                 /* blocks of one round: 8 MiB */
#define DRAIN_BLOCKS_MIN 1024u                 /* gathered blocks that start a round */
#define DRAIN_WAIT       (500 * ENV_NS_PER_MS) /* longest that a block waits for company */
#define DRAIN_RETRY      ENV_NS_PER_S

struct drain_block {
    uint64_t volume, block, lsn;
    struct overlay_data *data;
};

static int drain_compare(const void *pa, const void *pb)
{
    const struct drain_block *a = pa, *b = pb;

    if (a->volume != b->volume)
        return a->volume < b->volume ? -1 : 1;
    return a->block < b->block ? -1 : a->block > b->block;
}

/* The oldest blocks, in volume order. Their data is held. */
static size_t drain_pick(struct volumes *vs, struct drain_block *blocks)
{
    size_t n = 0;

    list_for_each (it, &vs->overlay.by_lsn) {
        struct overlay_entry *e = LIST_ENTRY(it, struct overlay_entry, by_lsn);

        if (n == DRAIN_BLOCKS_MAX)
            break;
        blocks[n++] = (struct drain_block){e->volume, e->block, e->lsn, overlay_data_ref(e->data)};
    }
    qsort(blocks, n, sizeof(*blocks), drain_compare);
    return n;
}

static int drain_store(struct volumes *vs, const struct drain_block *blocks, size_t n,
                       struct chunk_item *items, struct volume_mapping *maps)
{
    struct chunk_batch *b = chunk_batch_new(vs->p->chunks, SEGMENT_VOLUMES);
    size_t count = 0;
    int rc = 0;

    for (size_t i = 0; i < n; i++)
        if (!compress_is_zero(blocks[i].data->bytes, BLOCK_SIZE))
            items[count++] = (struct chunk_item){.data = blocks[i].data->bytes, .len = BLOCK_SIZE};
    if (count)
        rc = chunk_batch_add_wait(b, items, count);
    if (rc == 0)
        rc = chunk_batch_finish(b);
    if (rc == 0) {
        size_t next = 0;

        for (size_t i = 0; i < n; i++) {
            maps[i] = (struct volume_mapping){blocks[i].volume, blocks[i].block, blocks[i].lsn, 0};
            if (next < count && items[next].data == blocks[i].data->bytes)
                maps[i].entry = LEAF_ENTRY(items[next++].id, 0);
        }
        rc = volume_submit_map(vs, b, maps, n, JOURNAL_DRAIN);
    }
    chunk_batch_free(b);
    return rc;
}

/* Drains one round. */
static int drain_round(struct volumes *vs)
{
    struct drain_block *blocks = mem_calloc(DRAIN_BLOCKS_MAX, sizeof(*blocks));
    struct chunk_item *items = mem_calloc(DRAIN_BLOCKS_MAX, sizeof(*items));
    struct volume_mapping *maps = mem_calloc(DRAIN_BLOCKS_MAX, sizeof(*maps));
    size_t n = drain_pick(vs, blocks);
    uint64_t start = env_now(vs->p->env), took;
    int rc = drain_store(vs, blocks, n, items, maps);

    took = env_now(vs->p->env) - start;
    metric_record(&vs->drain_time, took);
    if (rc == 0)
        metric_add(&vs->drained_blocks, n);

    log_debug("volumes", "drained blocks=%zu left=%llu us=%llu", n,
              (unsigned long long)vs->overlay.count, (unsigned long long)(took / 1000));
    for (size_t i = 0; i < n; i++)
        overlay_data_unref(blocks[i].data);
    mem_free(blocks);
    mem_free(items);
    mem_free(maps);
    return rc;
}

void volumes_hurry(struct volumes *vs, uint64_t lsn)
{
    if (lsn > vs->hurry_lsn)
        vs->hurry_lsn = lsn;
    fiber_cond_signal(&vs->drain_work);
}

/* Is anything that was written before record `upto` not drained, or not even in the overlay yet? */
static bool drain_owes(const struct volumes *vs, uint64_t upto)
{
    return overlay_oldest(&vs->overlay) < upto ||
           (vs->overlay_incoming > 0 && vs->p->processed_lsn + 1 < upto);
}

int volumes_drain_all(struct volumes *vs)
{
    uint64_t upto = journal_next_lsn(vs->p->journal);

    while (drain_owes(vs, upto) && !vs->p->broken) {
        vs->drain_error = 0;
        volumes_hurry(vs, upto - 1);
        fiber_cond_wait(&vs->drained);
        if (vs->drain_error)
            return vs->drain_error;
    }
    return vs->p->broken;
}

/* Is there enough, or is somebody waiting for it? */
static bool drain_due(const struct volumes *vs)
{
    uint64_t enough = vs->overlay_max / 2;

    if (enough > DRAIN_BLOCKS_MIN)
        enough = DRAIN_BLOCKS_MIN;
    return vs->overlay.count >= enough || overlay_oldest(&vs->overlay) <= vs->hurry_lsn;
}

/* Waits until there is reason to drain. */
static void drain_wait(struct volumes *vs)
{
    uint64_t deadline = 0;

    while (!vs->stopping && !vs->p->broken && !drain_due(vs)) {
        uint64_t now = env_now(vs->p->env);

        if (vs->overlay.count == 0) {
            /* Those who wait for what is on its way hear of it when it has come: told before, they
             * would ask again at once, and so on. */
            if (vs->overlay_incoming == 0)
                fiber_cond_broadcast(&vs->drained);
            deadline = 0;
            fiber_cond_wait(&vs->drain_work);
            continue;
        }
        if (deadline == 0)
            deadline = now + DRAIN_WAIT;
        if (now >= deadline)
            return;
        (void)fiber_cond_wait_until(vs->p->env, &vs->drain_work, deadline);
    }
}

/* Lack of space, or of drives, may pass. But metadata that cannot be read is in the way of the same
 * blocks each time, and those are the oldest: the overlay would fill up and all small writes hang,
 * without anybody being told. */
static void drain_failed(struct volumes *vs, int rc)
{
    if (vs->stopping || vs->p->broken)
        return;
    if (rc == ERR_KV || rc == ERR_FORMAT) {
        log_error("volumes", "metadata that draining writes needs cannot be read error=%s",
                  err_name(rc));
        partition_break(vs->p, rc);
        return;
    }
    log_error("volumes", "draining writes failed, will try again error=%s", err_name(rc));
    env_sleep(vs->p->env, DRAIN_RETRY);
}

void volume_drainer(void *arg)
{
    struct volumes *vs = arg;

    while (!vs->stopping) {
        int rc;

        drain_wait(vs);
        if (vs->stopping)
            break;
        if (vs->p->broken) {
            /* Nothing can be drained any more; those who wait are told by the partition. */
            fiber_cond_broadcast(&vs->drained);
            fiber_cond_broadcast(&vs->overlay_room);
            fiber_cond_wait(&vs->drain_work);
            continue;
        }
        rc = drain_round(vs);
        vs->drain_error = rc;
        if (!vs->p->ending) /* see overlay_await_room */
            journal_refuse(vs->p->journal, 0, rc == ERR_NOSPC ? ERR_NOSPC : 0);
        fiber_cond_broadcast(&vs->drained);
        if (rc < 0)
            fiber_cond_broadcast(&vs->overlay_room); /* who waits may want to give up */
        fiber_cond_broadcast(&vs->reap_work);        /* maps wait for the last of theirs */
        if (rc < 0)
            drain_failed(vs, rc);
    }
    fiber_group_done(&vs->fibers);
}

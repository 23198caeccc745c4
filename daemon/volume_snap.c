/* Volumes: snapshots, clones, rollback, and the reaper that gives maps back.
 *
 * Who owns leaves is a map (struct volume_map). A volume has one, a snapshot has one, and maps lie
 * upon each other: where a map says nothing of a block (entry 0), its parent is asked, and so on. A
 * map without a parent that says nothing means a hole; upon a parent, a hole is said by LEAF_HOLE.
 *
 *   snapshot   the volume's map becomes the snapshot's and never changes again but by draining; the
 *              volume goes on with a new, empty map upon it. A group is one record.
 *   clone      a new volume with an empty map upon the snapshot's
 *   rollback   the volume's map is left to the reaper; a new, empty one upon the snapshot's follows
 *
 * So all of these take the same time whatever the volume holds. Entries are inherited one by one,
 * not by leaf: were a parent's leaf copied with the first change of it, the copy would have to take
 * references on up to 64 chunks, and would miss what the parent's writes in the overlay map later.
 * As it is, every entry that is in a leaf has its one reference, and nothing else has any.
 *
 * Small writes in the overlay stay with the map they were written for and are drained into it. What
 * a snapshot holds is settled by the journal's order: a write goes to the map that the volume has
 * when the write's record is applied. Replay, which meets records that the KV store is ahead of,
 * finds the map of that moment by the range of LSNs that each map took (volume_map_at).
 *
 * A snapshot that is deleted leaves its map hidden, and so do volumes. The reaper takes hidden maps
 * with at most one child, once nothing of them is in the overlay. Each entry goes to the child, if
 * that says nothing of the block, else its reference is dropped (RECORD_VOLUME_MERGE, some leaves
 * per record; between any two of them, and after a crash, every block reads the same). The emptied
 * map goes with RECORD_VOLUME_REAP and the child lies upon its parent. A hidden map with several
 * children (clones) waits until one is left. Thus the maps that a read may have to ask are those of
 * snapshots that exist and of hidden forks, and at most VOLUME_DEPTH_MAX; maps without any entry
 * cost nothing.
 *
 * A volume with snapshots cannot be deleted: it is asked for one by one. Clones keep what they
 * need by themselves and hinder nothing.
 *
 *   SNAPSHOT:        created u64, count u32, name length u32, count x volume u64, name
 *   SNAPSHOT_DELETE: snapshot u64, 0 u64
 *   CLONE:           created u64, snapshot u64, durability u32, name length u32, name
 *   ROLLBACK:        volume u64, snapshot u64
 *   MERGE:           map u64, count u32, reserved u32, count x leaf u64
 *   REAP:            map u64, 0 u64
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/volume_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define MERGE_LEAVES 64u /* leaves of one MERGE record */
#define REAP_QUIET   8u  /* records while a step of the reaper runs that count as other work */

/* Ids that records make of their LSN, several each; those of volumes are LSNs, and smaller. They
 * are positive in signed numbers too, as JSON has them. */
#define SNAP_ID(lsn, i) (1ull << 62 | (lsn) << 8 | (uint64_t)(i))
_Static_assert(BLOCK_GROUP_MAX <= 256, "the ids of a group are different");

/* "volume@snapshot"; ERR_NAME when that is too long. */
static int snapshot_name(const char *volume, const char *snapshot, char name[BLOCK_NAME_MAX + 1])
{
    int n;

    if (!volume_name_valid(snapshot))
        return ERR_NAME;
    n = snprintf(name, BLOCK_NAME_MAX + 1, "%s@%s", volume, snapshot);
    return n < 0 || n > (int)BLOCK_NAME_MAX ? ERR_NAME : 0;
}

static struct volume *find_snapshot(const struct volumes *vs, const char *volume,
                                    const char *snapshot)
{
    char name[BLOCK_NAME_MAX + 1];

    return snapshot_name(volume, snapshot, name) < 0 ? NULL : volume_find_name(vs, name);
}

static struct volume *find_volume(const struct volumes *vs, const char *name)
{
    struct volume *v = volume_find_name(vs, name);

    return v && v->of == 0 ? v : NULL;
}

bool volume_has_snapshots(const struct volumes *vs, uint64_t volume)
{
    list_for_each (it, &vs->all)
        if (LIST_ENTRY(it, struct volume, link)->of == volume)
            return true;
    return false;
}

/* ---- Asking for them ---- */

int volume_snapshot(struct block_store *bs, const char *const *names, size_t count,
                    const char *snapshot)
{
    struct volumes *vs = (struct volumes *)bs;
    uint8_t head[16 + 8 * BLOCK_GROUP_MAX];
    struct codec_writer w = codec_writer_on(head, sizeof(head));
    char name[BLOCK_NAME_MAX + 1];
    struct iovec iov[2];

    if (count == 0 || count > BLOCK_GROUP_MAX)
        return ERR_INVAL;
    if (PLANTED(GROUP_APART) && count > 1) {
        int rc = volume_snapshot(bs, names, 1, snapshot);

        return rc < 0 ? rc : volume_snapshot(bs, names + 1, count - 1, snapshot);
    }
    codec_write_le64(&w, env_wallclock(vs->p->env));
    codec_write_le32(&w, (uint32_t)count);
    codec_write_le32(&w, (uint32_t)strlen(snapshot));
    for (size_t i = 0; i < count; i++) {
        const struct volume *v = find_volume(vs, names[i]);

        if (!v)
            return ERR_NOENT;
        if (snapshot_name(names[i], snapshot, name) < 0)
            return ERR_NAME;
        for (size_t j = 0; j < i; j++)
            if (strcmp(names[i], names[j]) == 0)
                return ERR_INVAL;
        codec_write_le64(&w, v->info.id);
    }
    CHECK(codec_writer_ok(&w));
    iov[0] = (struct iovec){head, codec_written(&w)};
    iov[1] = (struct iovec){(void *)(uintptr_t)snapshot, strlen(snapshot)};
    return record_submit(&vs->p->log, RECORD_VOLUME_SNAPSHOT, iov, 2, JOURNAL_INTERNAL, NULL);
}

static bool is_snapshot_of(const struct volume *v, uint64_t volume)
{
    return volume ? v->of == volume : v->of != 0;
}

static int older_first(const void *pa, const void *pb)
{
    const struct block_info *a = pa, *b = pb;

    return a->id < b->id ? -1 : a->id > b->id;
}

int volume_snapshots(struct block_store *bs, const char *name, struct block_info **ret_infos,
                     size_t *ret_count)
{
    struct volumes *vs = (struct volumes *)bs;
    const struct volume *v = name ? find_volume(vs, name) : NULL;
    int rc;

    if (name && !v)
        return ERR_NOENT;
    rc = volume_list_where(vs, is_snapshot_of, v ? v->info.id : 0, ret_infos, ret_count);
    if (rc == 0 && v)
        qsort(*ret_infos, *ret_count, sizeof(**ret_infos), older_first);
    return rc;
}

/* Submits what takes a map from a volume or snapshot that nobody may have open. Suspends. */
static int submit_closed(struct volumes *vs, struct volume *v, enum record_type type,
                         uint64_t value)
{
    uint64_t id = v->info.id;
    int rc;

    if (v->info.openers || v->closed)
        return ERR_BUSY;
    v->closed = true; /* applying the record must not depend on who opens it meanwhile */
    rc = volume_submit_id(vs, type, id, value, JOURNAL_INTERNAL);
    v = volume_find(vs, id);
    if (v)
        v->closed = false;
    return rc;
}

int volume_snapshot_remove(struct block_store *bs, const char *name, const char *snapshot)
{
    struct volumes *vs = (struct volumes *)bs;
    struct volume *s = find_snapshot(vs, name, snapshot);

    return s ? submit_closed(vs, s, RECORD_VOLUME_SNAPSHOT_DELETE, 0) : ERR_NOENT;
}

int volume_rollback(struct block_store *bs, const char *name, const char *snapshot)
{
    struct volumes *vs = (struct volumes *)bs;
    struct volume *v = find_volume(vs, name), *s = find_snapshot(vs, name, snapshot);

    return v && s ? submit_closed(vs, v, RECORD_VOLUME_ROLLBACK, s->info.id) : ERR_NOENT;
}

int volume_clone(struct block_store *bs, const char *name, const char *snapshot,
                 const char *new_name)
{
    struct volumes *vs = (struct volumes *)bs;
    const struct volume *s = find_snapshot(vs, name, snapshot);
    uint8_t head[24];
    struct codec_writer w = codec_writer_on(head, sizeof(head));
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)(uintptr_t)new_name, strlen(new_name)}};

    if (!volume_name_valid(new_name))
        return ERR_NAME;
    if (!s)
        return ERR_NOENT;
    if (volume_find_name(vs, new_name))
        return ERR_EXIST;
    codec_write_le64(&w, env_wallclock(vs->p->env));
    codec_write_le64(&w, s->info.id);
    codec_write_le32(&w, (uint32_t)s->info.durability);
    codec_write_le32(&w, (uint32_t)strlen(new_name));
    CHECK(codec_writer_ok(&w));
    return record_submit(&vs->p->log, RECORD_VOLUME_CLONE, iov, 2, JOURNAL_INTERNAL, NULL);
}

/* ---- Applying ---- */

/* A new, empty map for a volume, upon another. */
static void give_map(struct volumes *vs, struct volume *v, uint64_t id, struct volume_map *parent,
                     uint64_t lsn)
{
    struct volume_map *m = volume_map_add(vs, id);

    m->volume = v->info.id;
    m->since = lsn;
    m->holder = v;
    volume_map_set_parent(m, parent);
    v->map = m;
}

static void snapshot_one(struct volumes *vs, struct volume *v, uint64_t id, const char *snapshot,
                         uint64_t created, const struct apply *a)
{
    struct volume *s = volume_add(vs, id);

    CHECK(snapshot_name(v->info.name, snapshot, s->info.name) == 0);
    s->of = v->info.id;
    s->info.size = s->size_limit = v->info.size;
    s->info.created_ns = created;
    s->info.durability = v->info.durability;
    s->info.readonly = true;
    s->map = v->map;
    s->map->holder = s;
    s->map->until = a->lsn;
    give_map(vs, v, id, s->map, a->lsn);
    volume_put_row(s, a->kv);
    volume_put_row(v, a->kv);
}

/* All or none: nothing changes before everything was looked at. */
static int apply_snapshot(struct volumes *vs, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    struct volume *group[BLOCK_GROUP_MAX];
    uint64_t created = codec_read_le64(&r);
    uint32_t n = codec_read_le32(&r), len = codec_read_le32(&r);
    char snapshot[BLOCK_NAME_MAX + 1] = {0}, name[BLOCK_NAME_MAX + 1];

    if (n > BLOCK_GROUP_MAX || len > BLOCK_NAME_MAX || codec_left(&r) != n * 8ull + len)
        return ERR_FORMAT;
    if (!a->kv)
        return 0; /* the rows were loaded */
    memcpy(snapshot, a->body + a->length - len, len);
    for (uint32_t i = 0; i < n; i++) {
        group[i] = volume_find(vs, codec_read_le64(&r));
        if (!group[i])
            return ERR_NOENT;
        if (snapshot_name(group[i]->info.name, snapshot, name) < 0)
            return ERR_NAME;
        if (volume_find_name(vs, name))
            return ERR_EXIST;
        if (volume_map_depth(group[i]->map) >= VOLUME_DEPTH_MAX)
            return ERR_DEPTH;
    }
    for (uint32_t i = 0; i < n; i++)
        snapshot_one(vs, group[i], SNAP_ID(a->lsn, i), snapshot, created, a);
    return 0;
}

static int apply_snapshot_delete(struct volumes *vs, const struct apply *a, uint64_t id)
{
    struct volume *s = volume_find(vs, id);

    if (!a->kv)
        return 0;
    if (!s)
        return ERR_NOENT;
    s->map->holder = NULL;
    volume_drop(vs, s, a->kv);
    fiber_cond_broadcast(&vs->reap_work);
    return 0;
}

static int apply_clone(struct volumes *vs, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    uint64_t created = codec_read_le64(&r), id = codec_read_le64(&r);
    uint32_t durability = codec_read_le32(&r), n = codec_read_le32(&r);
    const uint8_t *name = codec_read_bytes(&r, n);
    char text[BLOCK_NAME_MAX + 1] = {0};
    struct volume *s = volume_find(vs, id), *v;

    if (!name || n > BLOCK_NAME_MAX)
        return ERR_FORMAT;
    if (!a->kv)
        return 0;
    memcpy(text, name, n);
    if (!s)
        return ERR_NOENT;
    if (volume_find_name(vs, text))
        return ERR_EXIST;
    if (volume_map_depth(s->map) >= VOLUME_DEPTH_MAX)
        return ERR_DEPTH;
    v = volume_add(vs, a->lsn);
    v->info.size = v->size_limit = s->info.size;
    v->info.created_ns = created;
    v->info.durability = (enum block_durability)durability;
    memcpy(v->info.name, text, sizeof(text));
    give_map(vs, v, a->lsn, s->map, a->lsn);
    s->map->children -= PLANTED(CLONE_UNCOUNTED);
    volume_put_row(v, a->kv);
    return 0;
}

void volume_map_abandon(struct volumes *vs, struct volume_map *m, const struct apply *a)
{
    if (!m || (!a->kv && m->until != a->lsn))
        return; /* it is gone long since, or the record had no effect */
    if (a->kv) {
        m->holder = NULL;
        m->until = a->lsn;
        volume_map_put_row(m, a->kv);
        vs->generation++;
    }
    overlay_remove_range(&vs->overlay, m->id, 0, UINT64_MAX);
    fiber_cond_broadcast(&vs->overlay_room);
    fiber_cond_broadcast(&vs->reap_work);
}

static int apply_rollback(struct volumes *vs, const struct apply *a, uint64_t id, uint64_t snapshot)
{
    struct volume *v = volume_find(vs, id), *s = volume_find(vs, snapshot);
    struct volume_map *old;

    if (!a->kv) {
        volume_map_abandon(vs, volume_map_at(vs, id, a->lsn), a);
        return 0;
    }
    if (!v || !s)
        return ERR_NOENT;
    if (volume_map_depth(s->map) >= VOLUME_DEPTH_MAX)
        return ERR_DEPTH;
    old = v->map;
    give_map(vs, v, SNAP_ID(a->lsn, 0), s->map, a->lsn);
    v->info.size = v->size_limit = s->info.size;
    volume_map_abandon(vs, old, a);
    volume_put_row(v, a->kv);
    return 0;
}

/* ---- Merging ---- */

static struct volume_map *only_child(const struct volumes *vs, const struct volume_map *m)
{
    list_for_each (it, &vs->all_maps) {
        struct volume_map *child = LIST_ENTRY(it, struct volume_map, link);

        if (child->parent == m)
            return child;
    }
    return NULL;
}

struct merge {
    struct volumes *vs;
    struct volume_map *from, *to; /* to: NULL when nobody inherits */
    struct leaf *src[MERGE_LEAVES], *dst[MERGE_LEAVES];
    uint32_t count;
};

/* Does the child say something of the block? */
static bool child_has(const struct merge *g, uint32_t i, unsigned at)
{
    return !g->to || (g->dst[i]->entries[at] != 0 && !PLANTED(MERGE_OVERRIDES));
}

/* The chunk that loses a reference when the entry is merged; 0: none. */
static uint64_t merge_loses(const struct merge *g, uint32_t i, unsigned at)
{
    uint64_t entry = g->src[i]->entries[at];

    if (entry == 0)
        return 0;
    return LEAF_CHUNK(child_has(g, i, at) ? entry : g->dst[i]->entries[at]);
}

static void merge_entry(struct merge *g, uint32_t i, unsigned at)
{
    uint64_t entry = g->src[i]->entries[at];
    /* What the child lies upon afterwards: where there is nothing, a hole need not be said. */
    bool last = !g->from->parent;

    if (entry == 0)
        return;
    volume_map_set(g->vs, g->from, g->src[i], at, 0);
    if (!child_has(g, i, at)) {
        volume_map_set(g->vs, g->to, g->dst[i], at, last && entry == LEAF_HOLE ? 0 : entry);
    } else if (g->to && last && g->dst[i]->entries[at] == LEAF_HOLE) {
        volume_map_set(g->vs, g->to, g->dst[i], at, 0);
    }
}

/* Pins a leaf, and what the child has there. Suspends. */
static int merge_pin(struct merge *g, uint64_t index)
{
    struct leaf *src, *dst = NULL;
    int rc = leafmap_get(&g->vs->leaves, g->from->id, index, &src);

    if (rc < 0)
        return rc;
    if (g->to)
        rc = leafmap_get(&g->vs->leaves, g->to->id, index, &dst);
    if (rc < 0) {
        leafmap_put(&g->vs->leaves, src);
        return rc;
    }
    g->src[g->count] = src;
    g->dst[g->count++] = dst;
    return 0;
}

static void merge_unpin(struct merge *g)
{
    for (uint32_t i = 0; i < g->count; i++) {
        leafmap_put(&g->vs->leaves, g->src[i]);
        leafmap_put(&g->vs->leaves, g->dst[i]);
    }
    g->count = 0;
}

/* Everything at once, then the rows. Does not suspend. */
static void merge_change(struct merge *g, struct chunk_txn *txn, struct kv_batch *batch)
{
    for (uint32_t i = 0; i < g->count; i++) {
        for (unsigned at = 0; at < LEAF_BLOCKS; at++) {
            uint64_t chunk = merge_loses(g, i, at);

            if (chunk)
                chunk_txn_ref(txn, chunk, -1);
            merge_entry(g, i, at);
        }
        leafmap_flush(&g->vs->leaves, g->src[i], batch);
        if (g->to)
            leafmap_flush(&g->vs->leaves, g->dst[i], batch);
    }
    chunk_txn_commit(txn, batch);
    volume_map_put_row(g->from, batch);
    if (g->to)
        volume_map_put_row(g->to, batch);
    g->vs->generation++;
}

static int apply_merge(struct volumes *vs, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    struct merge g = {.vs = vs, .from = volume_map_find(vs, codec_read_le64(&r))};
    uint32_t n = codec_read_le32(&r);
    struct chunk_txn *txn;
    int rc = 0;

    (void)codec_read_le32(&r);
    if (n > MERGE_LEAVES || codec_left(&r) != n * 8ull)
        return ERR_FORMAT;
    if (!a->kv)
        return 0;
    if (!g.from || g.from->holder || g.from->children > 1)
        return ERR_NOENT;
    g.to = only_child(vs, g.from);
    txn = chunk_txn_begin(vs->p->chunks);
    while (rc == 0 && g.count < n)
        rc = merge_pin(&g, codec_read_le64(&r));
    for (uint32_t i = 0; rc == 0 && i < g.count; i++)
        for (unsigned at = 0; at < LEAF_BLOCKS; at++) {
            uint64_t chunk = merge_loses(&g, i, at);

            if (chunk)
                chunk_txn_need(txn, chunk);
        }
    if (rc == 0)
        rc = chunk_txn_load(txn);
    if (rc == 0)
        merge_change(&g, txn, a->kv);
    else
        chunk_txn_abort(txn);
    merge_unpin(&g);
    return rc;
}

static int apply_reap(struct volumes *vs, const struct apply *a, uint64_t id)
{
    struct volume_map *m = volume_map_find(vs, id), *child;

    if (!a->kv)
        return 0;
    if (!m || m->holder || m->children > 1)
        return ERR_NOENT;
    if (m->mapped || m->holes || (m->overlay && !PLANTED(MERGE_UNDRAINED)))
        return ERR_AGAIN;
    child = only_child(vs, m);
    if (child) {
        volume_map_set_parent(child, m->parent);
        volume_map_put_row(child, a->kv);
    }
    volume_map_drop(vs, m, a->kv);
    fiber_cond_broadcast(&vs->reap_work); /* its parent may be the next */
    return 0;
}

int volume_snap_apply(struct volumes *vs, uint16_t type, const struct apply *a)
{
    struct codec_reader r = codec_reader_on(a->body, a->length);
    uint64_t id, value;

    if (type == RECORD_VOLUME_SNAPSHOT)
        return apply_snapshot(vs, a);
    if (type == RECORD_VOLUME_CLONE)
        return apply_clone(vs, a);
    if (type == RECORD_VOLUME_MERGE)
        return apply_merge(vs, a);
    id = codec_read_le64(&r);
    value = codec_read_le64(&r);
    if (!codec_reader_ok(&r))
        return ERR_FORMAT;
    if (type == RECORD_VOLUME_SNAPSHOT_DELETE)
        return apply_snapshot_delete(vs, a, id);
    if (type == RECORD_VOLUME_ROLLBACK)
        return apply_rollback(vs, a, id, value);
    return type == RECORD_VOLUME_REAP ? apply_reap(vs, a, id) : ERR_FORMAT;
}

/* ---- The reaper ----
 *
 * Its records leave the journal's reserve to the drainer, which makes room in the journal; merging
 * does not. */

/* Brings what applying will need into the caches, as for mappings: both leaves, and the chunks that
 * are not simply handed down. Suspends. */
static int merge_warm(struct merge *g, uint64_t index)
{
    uint64_t chunks[LEAF_BLOCKS];
    size_t n = 0;
    int rc = merge_pin(g, index);

    if (rc < 0)
        return rc;
    for (unsigned at = 0; at < LEAF_BLOCKS; at++) {
        uint64_t chunk = merge_loses(g, 0, at);

        if (chunk)
            chunks[n++] = chunk;
    }
    merge_unpin(g);
    return chunkstore_warm(g->vs->p->chunks, chunks, n);
}

/* Merges the leaves of a map from *from on, as many as one record takes. ERR_NOENT: there are no
 * more. */
static int merge_step(struct volumes *vs, uint64_t id, uint64_t *from)
{
    uint8_t body[16 + 8 * MERGE_LEAVES] = {0};
    struct iovec iov = {body, 0};
    struct merge g = {.vs = vs, .from = volume_map_find(vs, id)}; /* nobody else takes maps away */
    uint64_t indexes[MERGE_LEAVES];
    size_t n;
    int rc = leafmap_list(&vs->leaves, id, *from, indexes, MERGE_LEAVES, &n);

    g.to = only_child(vs, g.from);
    if (rc == 0 && n == 0)
        rc = ERR_NOENT;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        rc = merge_warm(&g, indexes[i]);
        codec_put_le64(body + 16 + 8 * i, indexes[i]);
        fiber_yield(); /* where all is in memory, nothing else lets others go on */
    }
    if (rc < 0)
        return rc;
    *from = indexes[n - 1] + 1;
    codec_put_le64(body, id);
    codec_put_le32(body + 8, (uint32_t)n);
    iov.iov_len = 16 + 8 * n;
    return record_submit(&vs->p->log, RECORD_VOLUME_MERGE, &iov, 1, 0, NULL);
}

/* Rests as long as the step took while others want to get on as well: what is deleted may be large,
 * and record after record of it would make all of theirs wait. Not when writes wait for the space.
 */
static void reap_rest(struct volumes *vs, uint64_t took)
{
    uint64_t until = env_now(vs->p->env) + took;

    while (!vs->stopping && !chunkstore_room_wanted(vs->p->chunks) && env_now(vs->p->env) < until)
        (void)fiber_cond_wait_until(vs->p->env, &vs->reap_work, until);
}

static int map_reap(struct volumes *vs, uint64_t id)
{
    uint64_t from = 0;
    int rc = 0;

    while (rc == 0 && !vs->stopping) {
        uint64_t start = env_now(vs->p->env), lsn = vs->p->processed_lsn;

        rc = merge_step(vs, id, &from);
        if (rc == 0 && vs->p->processed_lsn > lsn + REAP_QUIET)
            reap_rest(vs, env_now(vs->p->env) - start);
    }
    if (rc != ERR_NOENT)
        return rc;
    return volume_submit_id(vs, RECORD_VOLUME_REAP, id, 0, 0);
}

/* A map that can be reaped, of those behind the one that failed last if there are any: one that
 * cannot be read keeps none of the others. *ret_wait is set when some only have to be drained. */
static struct volume_map *reap_next(const struct volumes *vs, uint64_t failed, bool *ret_wait)
{
    struct volume_map *first = NULL;
    bool behind = false;

    *ret_wait = false;
    list_for_each (it, &vs->all_maps) {
        struct volume_map *m = LIST_ENTRY(it, struct volume_map, link);

        if (m->holder || m->children > 1)
            continue;
        if (m->overlay && !PLANTED(MERGE_UNDRAINED)) {
            *ret_wait = true;
            continue;
        }
        if (behind || failed == 0)
            return m;
        if (!first)
            first = m;
        behind = m->id == failed;
    }
    return first;
}

void volume_reaper(void *arg)
{
    struct volumes *vs = arg;
    uint64_t failed = 0;

    while (!vs->stopping) {
        bool wait;
        struct volume_map *m = reap_next(vs, failed, &wait);
        uint64_t id = m ? m->id : 0;
        int rc;

        if (!m) {
            if (wait)
                volumes_hurry(vs, vs->p->processed_lsn);
            fiber_cond_wait(&vs->reap_work);
            continue;
        }
        rc = map_reap(vs, id);
        if (rc < 0 && !vs->stopping) {
            failed = id;
            log_warn("volumes", "freeing what was deleted failed, will try again error=%s",
                     err_name(rc));
            (void)fiber_cond_wait_until(vs->p->env, &vs->reap_work,
                                        env_now(vs->p->env) + ENV_NS_PER_S);
        }
    }
    fiber_group_done(&vs->fibers);
}

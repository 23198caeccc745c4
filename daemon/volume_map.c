/* Volumes: the table of maps, its rows, and looking at a block down the maps. See volume_snap.c for
 * what maps are for. */
#include <stdlib.h>
#include <string.h>

#include "daemon/volume_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

/* ---- The table ---- */

struct volume_map *volume_map_find(const struct volumes *vs, uint64_t id)
{
    struct hmap_node *n = hmap_first(&vs->maps, hmap_mix(id)); /* the mix is one to one */

    return n ? HMAP_ENTRY(n, struct volume_map, node) : NULL;
}

struct volume_map *volume_map_add(struct volumes *vs, uint64_t id)
{
    struct volume_map *m = mem_zalloc(sizeof(*m));

    m->id = id;
    m->until = UINT64_MAX;
    hmap_insert(&vs->maps, &m->node, hmap_mix(id));
    list_push_back(&vs->all_maps, &m->link);
    vs->generation++;
    return m;
}

void volume_map_set_parent(struct volume_map *m, struct volume_map *parent)
{
    if (parent)
        parent->children++;
    if (m->parent)
        m->parent->children--;
    m->parent = parent;
}

static bool map_took(const struct volume_map *m, uint64_t volume, uint64_t lsn)
{
    return m->volume == volume && m->since < lsn && lsn <= m->until;
}

struct volume_map *volume_map_at(const struct volumes *vs, uint64_t volume, uint64_t lsn)
{
    struct volume *v = volume_find(vs, volume);

    if (v && map_took(v->map, volume, lsn))
        return v->map;
    list_for_each (it, &vs->all_maps) {
        struct volume_map *m = LIST_ENTRY(it, struct volume_map, link);

        if (map_took(m, volume, lsn))
            return m;
    }
    return NULL;
}

unsigned volume_map_depth(const struct volume_map *m)
{
    unsigned n = 0;

    for (; m; m = m->parent)
        n++;
    return n;
}

void volume_map_set(struct volumes *vs, struct volume_map *m, struct leaf *l, unsigned at,
                    uint64_t entry)
{
    uint64_t old = l->entries[at];

    m->mapped += (LEAF_CHUNK(entry) != 0) - (uint64_t)(LEAF_CHUNK(old) != 0);
    vs->mapped += (LEAF_CHUNK(entry) != 0) - (uint64_t)(LEAF_CHUNK(old) != 0);
    m->holes += (entry == LEAF_HOLE) - (uint64_t)(old == LEAF_HOLE);
    leafmap_set(&vs->leaves, l, at, entry);
}

/* ---- Rows ---- */

void volume_map_put_row(const struct volume_map *m, struct kv_batch *batch)
{
    struct volume_map_row r = {.id = m->id,
                               .parent = m->parent ? m->parent->id : 0,
                               .volume = m->volume,
                               .since = m->since,
                               .until = m->until,
                               .mapped = m->mapped,
                               .holes = m->holes};
    uint8_t key[VOLUME_MAP_KEY], row[VOLUME_MAP_ROW];

    volume_map_key(m->id, key);
    volume_map_row_encode(&r, row);
    kv_batch_put(batch, KV_VOLUME, (struct kv_slice){key, sizeof(key)},
                 (struct kv_slice){row, sizeof(row)});
}

void volume_map_load(struct volumes *vs, const struct volume_map_row *r)
{
    struct volume_map *m = volume_map_find(vs, r->id); /* an old row of a volume has told of it */

    if (!m)
        m = volume_map_add(vs, r->id);
    vs->mapped += r->mapped - m->mapped;
    m->parent_id = r->parent;
    m->volume = r->volume;
    m->since = r->since;
    m->until = r->until;
    m->mapped = r->mapped;
    m->holes = r->holes;
}

int volume_map_load_row(struct volumes *vs, const struct kv_row *row)
{
    struct volume_map_row r;
    int rc = volume_map_row_decode(row->key, row->value, &r);

    if (rc == 0)
        volume_map_load(vs, &r);
    return rc;
}

int volume_maps_link(struct volumes *vs)
{
    list_for_each (it, &vs->all_maps) {
        struct volume_map *m = LIST_ENTRY(it, struct volume_map, link);
        struct volume_map *parent = m->parent_id ? volume_map_find(vs, m->parent_id) : NULL;

        if (m->parent_id && !parent)
            return ERR_FORMAT;
        volume_map_set_parent(m, parent);
    }
    list_for_each (it, &vs->all) {
        struct volume *v = LIST_ENTRY(it, struct volume, link);

        v->map = volume_map_find(vs, v->map_id);
        if (!v->map || v->map->holder)
            return ERR_FORMAT;
        v->map->holder = v;
    }
    return 0;
}

void volume_map_drop(struct volumes *vs, struct volume_map *m, struct kv_batch *batch)
{
    uint8_t key[VOLUME_MAP_KEY];

    if (PLANTED(MERGE_UNDRAINED))
        overlay_remove_range(&vs->overlay, m->id, 0, UINT64_MAX);
    CHECK(m->children == 0 && !m->holder && m->overlay == 0);
    volume_map_set_parent(m, NULL);
    volume_map_key(m->id, key);
    kv_batch_delete(batch, KV_VOLUME, (struct kv_slice){key, sizeof(key)});
    if (!volume_find(vs, m->id)) /* a volume deleted by a former version left its row */
        kv_batch_delete(batch, KV_VOLUME, (struct kv_slice){key, 8});
    hmap_remove(&vs->maps, &m->node);
    list_del(&m->link);
    vs->generation++;
    mem_free(m);
}

/* ---- Looking down ----
 *
 * A view pins the leaves of the maps at one index, from the top as far down as it takes: what was
 * written last is mostly what is wanted, and below there may be a thousand maps. Leaves are the
 * newest truth, so as far as they are pinned they are looked through without suspending, and what
 * is found is the block at that one moment. Where one has to be loaded the look begins again at the
 * top, since the block may have been written meanwhile. While it is loaded the maps may change
 * under the view, too: entries move from a map that was not looked at yet to one that was. The
 * generation tells, and the view begins anew. */

void map_view_drop(struct map_view *w)
{
    for (size_t i = 0; i < w->count; i++)
        leafmap_put(&w->v->owner->leaves, w->leaves[i]);
    mem_free(w->leaves);
    w->leaves = NULL;
    w->count = w->room = 0;
    w->index = UINT64_MAX;
}

/* The leaf of the map that is the view's next one after `depth` others, pinned; NULL when it is not
 * in memory. Does not suspend. */
static const struct leaf *view_leaf(struct map_view *w, size_t depth, const struct volume_map *m)
{
    for (; w->count <= depth; w->count++) {
        if (w->count == w->room) {
            w->room = w->room ? 2 * w->room : 4;
            w->leaves = mem_realloc(w->leaves, w->room * sizeof(struct leaf *));
        }
        w->leaves[w->count] = NULL;
    }
    if (!w->leaves[depth])
        w->leaves[depth] = leafmap_peek(&w->v->owner->leaves, m->id, w->index);
    return w->leaves[depth];
}

/* What a look has come to: the block, or (`lacks`) the map whose leaf it takes. */
struct view_look {
    const struct overlay_entry *overlay;
    uint64_t entry;
    const struct volume_map *lacks;
    size_t depth; /* of that map */
};

/* Does not suspend. */
static struct view_look view_look(struct map_view *w, uint64_t block)
{
    const struct volumes *vs = w->v->owner;
    struct view_look k = {0};

    if (w->index != block / LEAF_BLOCKS || w->generation != vs->generation) {
        map_view_drop(w);
        w->index = block / LEAF_BLOCKS;
        w->generation = vs->generation;
    }
    for (const struct volume_map *m = w->v->map; m; m = m->parent, k.depth++) {
        const struct leaf *l;

        if (m->overlay)
            k.overlay = overlay_find(&vs->overlay, m->id, block);
        if (k.overlay)
            return k;
        if (!m->mapped && !m->holes)
            continue;
        l = view_leaf(w, k.depth, m);
        if (!l) {
            k.lacks = m;
            return k;
        }
        k.entry = l->entries[block % LEAF_BLOCKS];
        if (k.entry == 0)
            continue;
        if (k.entry == LEAF_HOLE)
            k.entry = 0;
        return k;
    }
    return k;
}

/* Loads what a look lacks. Suspends. */
static int view_load(struct map_view *w, const struct view_look *k)
{
    struct volumes *vs = w->v->owner;
    struct leaf *l;
    int rc = leafmap_get(&vs->leaves, k->lacks->id, w->index, &l);

    if (rc < 0)
        return rc;
    if (w->generation == vs->generation)
        w->leaves[k->depth] = l;
    else
        leafmap_put(&vs->leaves, l); /* the map may be gone */
    return 0;
}

int map_view_block(struct map_view *w, uint64_t block, const struct overlay_entry **ret_overlay,
                   uint64_t *ret_entry)
{
    struct view_look k = view_look(w, block);

    while (k.lacks) {
        int rc = view_load(w, &k);

        if (rc < 0)
            return rc;
        k = view_look(w, block);
    }
    *ret_overlay = k.overlay;
    *ret_entry = k.entry;
    return 0;
}

/* ---- What is used ----
 *
 * A walk asks the overlay once, at its beginning, and of each map remembers which leaf comes next:
 * on a disk of many small pieces there are thousands of questions. A block that is written
 * meanwhile may be missed, as it may by any walk. One that was in the overlay and is drained is in
 * what was gathered; one that is handed from map to map has the generation tell, and the maps are
 * asked anew. */

static int walk_order(const void *x, const void *y)
{
    const uint64_t *a = x, *b = y;

    return (*a > *b) - (*a < *b);
}

/* Takes down what the overlay has. Does not suspend. */
static void walk_gather(struct volume_walk *w, uint64_t from)
{
    const struct volumes *vs = w->v->owner;
    size_t most = 0;

    w->gathered = true;
    for (const struct volume_map *m = w->v->map; m; m = m->parent)
        most += m->overlay;
    if (most == 0)
        return;
    w->overlay = mem_calloc(most, sizeof(*w->overlay));
    for (const struct volume_map *m = w->v->map; m; m = m->parent) {
        if (m->overlay == 0)
            continue;
        list_for_each (it, &vs->overlay.by_lsn) {
            const struct overlay_entry *e = LIST_ENTRY(it, struct overlay_entry, by_lsn);

            if (e->volume == m->id && e->block >= from)
                w->overlay[w->count++] = e->block;
        }
    }
    CHECK(w->count <= most);
    qsort(w->overlay, w->count, sizeof(*w->overlay), walk_order);
}

static uint64_t walk_overlay(struct volume_walk *w, uint64_t from)
{
    while (w->at < w->count && w->overlay[w->at] < from)
        w->at++;
    return w->at < w->count ? w->overlay[w->at] : UINT64_MAX;
}

/* The first block >= from that is in a leaf of any of the maps, or UINT64_MAX; of no use when maps
 * have changed on the way. Suspends. */
static int walk_maps(struct volume_walk *w, uint64_t from, uint64_t *ret_block)
{
    struct volumes *vs = w->v->owner;
    uint64_t first = from / LEAF_BLOCKS, least = UINT64_MAX;
    size_t i = 0;

    for (const struct volume_map *m = w->v->map; m; m = m->parent, i++) {
        uint64_t index;
        int rc;

        if (!m->mapped && !m->holes)
            continue;
        if (w->next[i] <= first) {
            rc = leafmap_next(&vs->leaves, m->id, first, &index);
            if (rc < 0 && rc != ERR_NOENT)
                return rc;
            if (w->generation != vs->generation)
                return 0; /* m may be gone */
            w->next[i] = rc == 0 ? index + 1 : UINT64_MAX;
        }
        least = w->next[i] < least ? w->next[i] : least;
    }
    if (least != UINT64_MAX)
        least = (least - 1) * LEAF_BLOCKS > from ? (least - 1) * LEAF_BLOCKS : from;
    *ret_block = least;
    return 0;
}

int volume_walk_next(struct volume_walk *w, uint64_t from, uint64_t *ret_block)
{
    const struct volumes *vs = w->v->owner;
    uint64_t found = UINT64_MAX, waits;
    int rc = 0;

    if (!w->gathered)
        walk_gather(w, from);
    do {
        if (!w->next || w->generation != vs->generation) {
            mem_free(w->next);
            w->next = mem_calloc(volume_map_depth(w->v->map), sizeof(*w->next));
            w->generation = vs->generation;
        }
        rc = walk_maps(w, from, &found);
    } while (rc == 0 && w->generation != vs->generation);
    if (rc < 0)
        return rc;
    waits = walk_overlay(w, from);
    *ret_block = waits < found ? waits : found;
    return 0;
}

void volume_walk_end(struct volume_walk *w)
{
    mem_free(w->overlay);
    mem_free(w->next);
}

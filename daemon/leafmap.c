/* The volume map's leaves and their cache; see leafmap.h. */
#include "daemon/leafmap.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define LEAF_KEY   16u
#define LEAF_BYTES (LEAF_BLOCKS * 8u)

struct leaf_load {
    struct list link;
    uint64_t tick;
};

static uint64_t leaf_hash(uint64_t volume, uint64_t index)
{
    return hmap_mix(hmap_mix(volume) + index);
}

static void leaf_key(uint64_t volume, uint64_t index, uint8_t key[LEAF_KEY])
{
    codec_put_be64(key, volume);
    codec_put_be64(key + 8, index);
}

void leafmap_init(struct leafmap *lm, struct kv *kv, size_t max_leaves)
{
    memset(lm, 0, sizeof(*lm));
    lm->kv = kv;
    lm->max = max_leaves;
    hmap_init(&lm->map);
    list_init(&lm->lru);
    list_init(&lm->loads);
    list_init(&lm->unwritten);
}

static void leaf_forget(struct leafmap *lm, struct leaf *l)
{
    hmap_remove(&lm->map, &l->node);
    list_del(&l->lru);
    list_del(&l->unwritten);
    mem_free(l);
    lm->count--;
}

void leafmap_free(struct leafmap *lm)
{
    while (!list_empty(&lm->lru))
        leaf_forget(lm, LIST_ENTRY(lm->lru.next, struct leaf, lru));
    CHECK(lm->count == 0); /* nobody holds a pin */
    hmap_free(&lm->map);
}

static struct leaf *leaf_cached(struct leafmap *lm, uint64_t volume, uint64_t index)
{
    for (struct hmap_node *n = hmap_first(&lm->map, leaf_hash(volume, index)); n;
         n = hmap_next(n)) {
        struct leaf *l = HMAP_ENTRY(n, struct leaf, node);

        if (l->volume == volume && l->index == index)
            return l;
    }
    return NULL;
}

static void leafmap_trim(struct leafmap *lm)
{
    uint64_t oldest = UINT64_MAX;

    if (!list_empty(&lm->loads))
        oldest = LIST_ENTRY(lm->loads.next, struct leaf_load, link)->tick;
    if (lm->writing && lm->writing < oldest)
        oldest = lm->writing;
    while (lm->count > lm->max && !list_empty(&lm->lru)) {
        struct leaf *l = LIST_ENTRY(lm->lru.next, struct leaf, lru);

        if (l->changed >= oldest)
            break;
        leaf_forget(lm, l);
    }
}

static struct leaf *leaf_pin(struct leaf *l)
{
    if (l->pins++ == 0)
        list_del(&l->lru);
    return l;
}

struct leaf *leafmap_peek(struct leafmap *lm, uint64_t volume, uint64_t index)
{
    struct leaf *l = leaf_cached(lm, volume, index);

    return l ? leaf_pin(l) : NULL;
}

void leafmap_put(struct leafmap *lm, struct leaf *leaf)
{
    if (!leaf)
        return;
    CHECK(leaf->pins > 0 && (leaf->pins > 1 || !leaf->dirty));
    if (--leaf->pins > 0)
        return;
    list_push_back(&lm->lru, &leaf->lru);
    leafmap_trim(lm);
}

static int leaf_decode(const void *value, size_t len, struct leaf *l)
{
    const uint8_t *p = value;

    if (len != LEAF_BYTES)
        return ERR_FORMAT;
    for (unsigned i = 0; i < LEAF_BLOCKS; i++) {
        l->entries[i] = codec_get_le64(p + 8 * i);
        l->used += l->entries[i] != 0;
    }
    return 0;
}

int leafmap_get(struct leafmap *lm, uint64_t volume, uint64_t index, struct leaf **ret_leaf)
{
    struct leaf *l = leafmap_peek(lm, volume, index);
    struct leaf_load load;
    uint8_t key[LEAF_KEY];
    MEM_AUTO void *value = NULL;
    size_t len = 0;
    int rc;

    if (l) {
        *ret_leaf = l;
        return 0;
    }
    leaf_key(volume, index, key);
    load.tick = ++lm->load_tick;
    list_push_back(&lm->loads, &load.link);
    rc = kv_get(lm->kv, KV_MAP, (struct kv_slice){key, sizeof(key)}, &value, &len);
    list_del(&load.link);
    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    l = leafmap_peek(lm, volume, index);
    if (!l) {
        l = mem_zalloc(sizeof(*l));
        l->volume = volume;
        l->index = index;
        l->pins = 1;
        list_init(&l->lru);
        list_init(&l->unwritten);
        if (rc == 0 && leaf_decode(value, len, l) < 0) {
            mem_free(l);
            return ERR_FORMAT;
        }
        hmap_insert(&lm->map, &l->node, leaf_hash(volume, index));
        lm->count++;
    }
    *ret_leaf = l;
    return 0;
}

void leafmap_set(struct leafmap *lm, struct leaf *leaf, unsigned at, uint64_t entry)
{
    CHECK(at < LEAF_BLOCKS && leaf->pins > 0);
    leaf->used += (entry != 0) - (uint32_t)(leaf->entries[at] != 0);
    leaf->entries[at] = entry;
    leaf->dirty = true;
    leaf->changed = lm->load_tick;
}

void leafmap_flush(struct leafmap *lm, struct leaf *leaf, struct kv_batch *batch)
{
    uint8_t key[LEAF_KEY], bytes[LEAF_BYTES];

    if (!leaf->dirty)
        return;
    if (!lm->writing)
        lm->writing = ++lm->load_tick;
    leaf->changed = lm->load_tick;
    leaf->dirty = false;
    list_del(&leaf->unwritten);
    list_push_back(&lm->unwritten, &leaf->unwritten);
    leaf_key(leaf->volume, leaf->index, key);
    if (leaf->used == 0) {
        kv_batch_delete(batch, KV_MAP, (struct kv_slice){key, sizeof(key)});
        return;
    }
    for (unsigned i = 0; i < LEAF_BLOCKS; i++)
        codec_put_le64(bytes + 8 * i, leaf->entries[i]);
    kv_batch_put(batch, KV_MAP, (struct kv_slice){key, sizeof(key)},
                 (struct kv_slice){bytes, sizeof(bytes)});
}

void leafmap_written(struct leafmap *lm)
{
    lm->writing = 0;
    while (list_pop_front(&lm->unwritten))
        continue;
    leafmap_trim(lm);
}

/* Leaf numbers in order, the lowest `max` of those that were added. */
struct leaf_list {
    uint64_t *at;
    size_t count, max;
};

static void list_add(struct leaf_list *l, uint64_t index)
{
    size_t i = l->count;

    while (i && l->at[i - 1] > index)
        i--;
    if (i == l->max || (i && l->at[i - 1] == index))
        return;
    l->count += l->count < l->max;
    memmove(l->at + i + 1, l->at + i, (l->count - i - 1) * sizeof(l->at[0]));
    l->at[i] = index;
}

/* Leaves whose rows may not be in the KV store yet. */
static void list_add_unwritten(struct leaf_list *l, const struct leafmap *lm, uint64_t volume,
                               uint64_t from)
{
    list_for_each (it, &lm->unwritten) {
        const struct leaf *leaf = LIST_ENTRY(it, struct leaf, unwritten);

        if (leaf->volume == volume && leaf->used && leaf->index >= from)
            list_add(l, leaf->index);
    }
}

int leafmap_list(struct leafmap *lm, uint64_t volume, uint64_t from, uint64_t *indexes, size_t max,
                 size_t *ret_count)
{
    struct leaf_list l = {.at = indexes, .max = max};
    uint8_t key[LEAF_KEY], end[LEAF_KEY];
    struct kv_rows *rows;
    int rc;

    list_add_unwritten(&l, lm, volume, from); /* first: meanwhile they may be written */
    leaf_key(volume, from, key);
    leaf_key(volume + 1, 0, end);
    rc = kv_scan(lm->kv, KV_MAP, (struct kv_slice){key, sizeof(key)},
                 (struct kv_slice){end, sizeof(end)}, max, max * 2 * LEAF_BYTES, 0, &rows);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < rows->count; i++)
        if (rows->rows[i].key.len == LEAF_KEY)
            list_add(&l, codec_get_be64((const uint8_t *)rows->rows[i].key.data + 8));
    kv_rows_free(rows);
    *ret_count = l.count;
    return 0;
}

int leafmap_next(struct leafmap *lm, uint64_t volume, uint64_t from, uint64_t *ret_index)
{
    uint64_t index;
    size_t n;
    int rc = leafmap_list(lm, volume, from, &index, 1, &n);

    if (rc < 0 || n == 0)
        return rc < 0 ? rc : ERR_NOENT;
    *ret_index = index;
    return 0;
}

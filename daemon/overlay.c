/* The overlay of undrained blocks; see overlay.h. */
#include "daemon/overlay.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"

static uint64_t overlay_hash(uint64_t volume, uint64_t block)
{
    return hmap_mix(hmap_mix(volume) + block);
}

void overlay_init(struct overlay *o)
{
    hmap_init(&o->map);
    list_init(&o->by_lsn);
    o->count = 0;
}

void overlay_free(struct overlay *o)
{
    while (!list_empty(&o->by_lsn))
        overlay_remove(o, LIST_ENTRY(o->by_lsn.next, struct overlay_entry, by_lsn));
    hmap_free(&o->map);
}

struct overlay_data *overlay_data_ref(struct overlay_data *d)
{
    d->refs++;
    return d;
}

void overlay_data_unref(struct overlay_data *d)
{
    if (--d->refs == 0)
        mem_free(d);
}

struct overlay_entry *overlay_find(const struct overlay *o, uint64_t volume, uint64_t block)
{
    uint64_t hash = overlay_hash(volume, block);

    for (struct hmap_node *n = hmap_first(&o->map, hash); n; n = hmap_next(n)) {
        struct overlay_entry *e = HMAP_ENTRY(n, struct overlay_entry, node);

        if (e->volume == volume && e->block == block)
            return e;
    }
    return NULL;
}

void overlay_put(struct overlay *o, uint64_t volume, uint64_t block, uint64_t lsn,
                 const uint8_t *bytes, uint64_t *count)
{
    struct overlay_entry *e = overlay_find(o, volume, block);

    if (e) {
        CHECK(lsn >= e->lsn);
        overlay_data_unref(e->data);
        list_del(&e->by_lsn);
    } else {
        e = mem_alloc(sizeof(*e));
        e->volume = volume;
        e->block = block;
        e->count = count;
        if (count)
            (*count)++;
        hmap_insert(&o->map, &e->node, overlay_hash(volume, block));
        o->count++;
    }
    e->lsn = lsn;
    e->data = mem_alloc(sizeof(*e->data));
    e->data->refs = 1;
    memcpy(e->data->bytes, bytes, BLOCK_SIZE);
    list_push_back(&o->by_lsn, &e->by_lsn);
}

void overlay_remove(struct overlay *o, struct overlay_entry *e)
{
    hmap_remove(&o->map, &e->node);
    list_del(&e->by_lsn);
    overlay_data_unref(e->data);
    if (e->count)
        (*e->count)--;
    mem_free(e);
    o->count--;
}

void overlay_remove_range(struct overlay *o, uint64_t volume, uint64_t first, uint64_t count)
{
    if (count < o->count) {
        for (uint64_t b = first; b < first + count; b++) {
            struct overlay_entry *e = overlay_find(o, volume, b);

            if (e)
                overlay_remove(o, e);
        }
        return;
    }
    list_for_each_safe (it, &o->by_lsn) {
        struct overlay_entry *e = LIST_ENTRY(it, struct overlay_entry, by_lsn);

        if (e->volume == volume && e->block >= first && e->block - first < count)
            overlay_remove(o, e);
    }
}

uint64_t overlay_oldest(const struct overlay *o)
{
    if (list_empty(&o->by_lsn))
        return UINT64_MAX;
    return LIST_ENTRY(o->by_lsn.next, struct overlay_entry, by_lsn)->lsn;
}

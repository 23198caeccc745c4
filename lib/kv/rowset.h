/* A set of changed rows in memory: what kv_front keeps before the store behind it gets them.
 *
 * A hash table, because nearly every call is a look-up or a change of one row, with a list per
 * table for the rare caller who wants a range. Rows live in an arena that is given back as a whole:
 * a row's bytes are written a few times and never freed singly, which is most of the speed.
 *
 * A deleted row stays, marked, since it hides one in the store behind. Internal to lib/kv.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/hmap.h"
#include "lib/kv/kv.h"

struct rowset_row {
    struct hmap_node node;
    struct rowset_row *next; /* of the same table, newest first */
    bool gone;
    uint32_t key_len, value_len, value_room;
    uint8_t *value;
    uint8_t key[]; /* the full key */
};

struct rowset_block;

struct rowset {
    struct hmap rows;
    struct rowset_row *tables[KV_TABLE_COUNT];
    struct rowset_block *blocks; /* the arena, the one being filled first */
    size_t bytes;                /* taken from the arena, replaced values included */
};

void rowset_init(struct rowset *s);
void rowset_free(struct rowset *s);
void rowset_clear(struct rowset *s); /* empty again; keeps a little memory */

/* Keys are full keys; key and value are copied. */
void rowset_put(struct rowset *s, struct kv_slice key, struct kv_slice value);
void rowset_delete(struct rowset *s, struct kv_slice key);

/* NULL: the set knows nothing of the row. Valid until the row changes or the set is cleared. */
const struct rowset_row *rowset_find(const struct rowset *s, struct kv_slice key, uint64_t hash);
static inline uint64_t rowset_hash(struct kv_slice key)
{
    return hmap_hash_bytes(key.data, key.len);
}

static inline struct kv_slice rowset_key(const struct rowset_row *r)
{
    return (struct kv_slice){r->key, r->key_len};
}

static inline struct kv_slice rowset_value(const struct rowset_row *r)
{
    return (struct kv_slice){r->value, r->value_len};
}

static inline size_t rowset_count(const struct rowset *s)
{
    return s->rows.count;
}

/* Fills `refs`, rowset_count of them, in key order. Only reads the set, so it may run on a lane
 * while nobody changes the set. */
struct rowset_ref {
    uint64_t prefix; /* see rowset.c */
    const struct rowset_row *row;
};
void rowset_sort(const struct rowset *s, struct rowset_ref *refs);

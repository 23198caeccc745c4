/* An ordered map of byte strings: a skip list (Pugh, 1990) with back links on the lowest level.
 *
 * Chosen over a balanced tree because ordered paging in both directions is a walk along links, and
 * because there is no rebalancing to get wrong. Heights come from a generator inside the list, so
 * the same calls build the same list: the simulator needs that.
 *
 * Keys and values are copied. Not for several threads. Internal to lib/kv.
 */
#pragma once

#include "lib/kv/kv.h"

struct skiplist;

struct skiplist_node {
    struct kv_slice key, value; /* value has its own allocation */
    struct skiplist_node *prev; /* NULL at the first */
    unsigned height;
    struct skiplist_node *next[]; /* height links, then the key's bytes */
};

struct skiplist *skiplist_new(void);
void skiplist_free(struct skiplist *l); /* NULL is fine */

void skiplist_put(struct skiplist *l, struct kv_slice key, struct kv_slice value);
void skiplist_delete(struct skiplist *l, struct kv_slice key); /* a missing key is fine */

const struct skiplist_node *skiplist_find(const struct skiplist *l, struct kv_slice key);
/* The first node with a key >= `key`, and the last with a key < `key`; NULL when there is none. */
const struct skiplist_node *skiplist_at_or_after(const struct skiplist *l, struct kv_slice key);
const struct skiplist_node *skiplist_before(const struct skiplist *l, struct kv_slice key);
const struct skiplist_node *skiplist_first(const struct skiplist *l);

size_t skiplist_bytes(const struct skiplist *l); /* of keys and values */

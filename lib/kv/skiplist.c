/* The skip list of skiplist.h.
 *
 * A node of height h is linked on levels 0..h-1; level i skips about 4^i nodes. A search starts at
 * the highest level and goes down where the next key would be too far; the nodes where it went down
 * (the path) are those whose links an insert or a removal changes.
 */
#include "lib/kv/skiplist.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "lib/kv/impl.h"

#define SKIPLIST_LEVELS 12 /* 4^12 nodes, more than any test or simulation holds */

struct skiplist {
    uint64_t random;
    size_t bytes;
    struct skiplist_node *head[SKIPLIST_LEVELS]; /* the links of a node before the first */
};

struct skiplist *skiplist_new(void)
{
    struct skiplist *l = mem_zalloc(sizeof(*l));

    l->random = 0x9e3779b97f4a7c15u;
    return l;
}

static void skiplist_node_free(struct skiplist_node *n)
{
    mem_free((void *)(uintptr_t)n->value.data);
    mem_free(n);
}

void skiplist_free(struct skiplist *l)
{
    struct skiplist_node *n, *next;

    if (!l)
        return;
    for (n = l->head[0]; n; n = next) {
        next = n->next[0];
        skiplist_node_free(n);
    }
    mem_free(l);
}

/* xorshift64; one more level with probability 1/4. */
static unsigned skiplist_pick_height(struct skiplist *l)
{
    unsigned height = 1;
    uint64_t x = l->random;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    l->random = x;
    while (height < SKIPLIST_LEVELS && (x & 3) == 0) {
        height++;
        x >>= 2;
    }
    return height;
}

/* Fills path[level] with the array of links whose entry for that level leads to the first node with
 * a key >= `key`. Returns the last node before `key`, NULL when there is none. */
static struct skiplist_node *skiplist_search(const struct skiplist *l, struct kv_slice key,
                                             struct skiplist_node **path[SKIPLIST_LEVELS])
{
    struct skiplist_node **links = (struct skiplist_node **)(uintptr_t)l->head, *at = NULL;

    for (unsigned level = SKIPLIST_LEVELS; level-- > 0;) {
        while (links[level] && kv_slice_cmp(links[level]->key, key) < 0) {
            at = links[level];
            links = at->next;
        }
        path[level] = links;
    }
    return at;
}

static struct skiplist_node *skiplist_node_new(struct skiplist *l, struct kv_slice key)
{
    unsigned height = skiplist_pick_height(l);
    size_t links = height * sizeof(struct skiplist_node *);
    struct skiplist_node *n = mem_zalloc(sizeof(*n) + links + key.len);
    char *bytes = (char *)n->next + links;

    memcpy(bytes, key.data, key.len);
    n->key = (struct kv_slice){bytes, key.len};
    n->height = height;
    l->bytes += key.len;
    return n;
}

static void skiplist_set_value(struct skiplist *l, struct skiplist_node *n, struct kv_slice value)
{
    void *copy = mem_memdup(value.data, value.len);

    l->bytes += value.len;
    l->bytes -= n->value.len;
    mem_free((void *)(uintptr_t)n->value.data);
    n->value = (struct kv_slice){copy, value.len};
}

void skiplist_put(struct skiplist *l, struct kv_slice key, struct kv_slice value)
{
    struct skiplist_node **path[SKIPLIST_LEVELS];
    struct skiplist_node *before = skiplist_search(l, key, path), *n = path[0][0];

    if (n && kv_slice_cmp(n->key, key) == 0) {
        skiplist_set_value(l, n, value);
        return;
    }
    n = skiplist_node_new(l, key);
    skiplist_set_value(l, n, value);
    for (unsigned level = 0; level < n->height; level++) {
        n->next[level] = path[level][level];
        path[level][level] = n;
    }
    n->prev = before;
    if (n->next[0])
        n->next[0]->prev = n;
}

void skiplist_delete(struct skiplist *l, struct kv_slice key)
{
    struct skiplist_node **path[SKIPLIST_LEVELS], *n;

    (void)skiplist_search(l, key, path);
    n = path[0][0];
    if (!n || kv_slice_cmp(n->key, key) != 0)
        return;
    for (unsigned level = 0; level < n->height; level++) {
        CHECK(path[level][level] == n);
        path[level][level] = n->next[level];
    }
    if (n->next[0])
        n->next[0]->prev = n->prev;
    l->bytes -= n->key.len + n->value.len;
    skiplist_node_free(n);
}

const struct skiplist_node *skiplist_at_or_after(const struct skiplist *l, struct kv_slice key)
{
    struct skiplist_node **path[SKIPLIST_LEVELS];

    (void)skiplist_search(l, key, path);
    return path[0][0];
}

const struct skiplist_node *skiplist_before(const struct skiplist *l, struct kv_slice key)
{
    struct skiplist_node **path[SKIPLIST_LEVELS];

    return skiplist_search(l, key, path);
}

const struct skiplist_node *skiplist_find(const struct skiplist *l, struct kv_slice key)
{
    const struct skiplist_node *n = skiplist_at_or_after(l, key);

    return n && kv_slice_cmp(n->key, key) == 0 ? n : NULL;
}

const struct skiplist_node *skiplist_first(const struct skiplist *l)
{
    return l->head[0];
}

size_t skiplist_bytes(const struct skiplist *l)
{
    return l->bytes;
}

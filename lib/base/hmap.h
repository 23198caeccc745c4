/* Intrusive chained hash map on 64-bit hashes.
 *
 * The user embeds a struct hmap_node, gives the hash at insert and compares keys while walking
 * hmap_first/hmap_next (which yield every node of that hash). Grows by doubling; never shrinks, its
 * users are bounded caches and tables.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct hmap_node {
    struct hmap_node *next;
    uint64_t hash;
};

struct hmap {
    struct hmap_node **buckets;
    size_t mask, count;
};

#define HMAP_ENTRY(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

void hmap_init(struct hmap *m);
void hmap_free(struct hmap *m);  /* the table only; nodes belong to the user */
void hmap_clear(struct hmap *m); /* forgets all nodes, keeps the table's size */
void hmap_insert(struct hmap *m, struct hmap_node *n, uint64_t hash);
void hmap_remove(struct hmap *m, struct hmap_node *n);
struct hmap_node *hmap_first(const struct hmap *m, uint64_t hash);
struct hmap_node *hmap_next(const struct hmap_node *n);

/* Walks all nodes in table order: start with NULL, ends with NULL. No insert or remove meanwhile,
 * except removing the node just returned after having fetched its successor. */
struct hmap_node *hmap_walk(const struct hmap *m, const struct hmap_node *prev);

/* A good 64-bit mix of an integer key (splitmix64's finaliser), and a hash of bytes. Neither is
 * keyed: not for keys that an attacker chooses in a table without a bound. */
static inline uint64_t hmap_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
uint64_t hmap_hash_bytes(const void *p, size_t n);

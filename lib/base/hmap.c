/* Intrusive chained hash map; see hmap.h. */
#include "lib/base/hmap.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/mem.h"

#define HMAP_START 16u

void hmap_init(struct hmap *m)
{
    m->buckets = mem_calloc(HMAP_START, sizeof(*m->buckets));
    m->mask = HMAP_START - 1;
    m->count = 0;
}

void hmap_free(struct hmap *m)
{
    mem_free(m->buckets);
    m->buckets = NULL;
    m->count = 0;
}

void hmap_clear(struct hmap *m)
{
    memset(m->buckets, 0, (m->mask + 1) * sizeof(*m->buckets));
    m->count = 0;
}

static void hmap_grow(struct hmap *m)
{
    size_t n = (m->mask + 1) * 2;
    struct hmap_node **to = mem_calloc(n, sizeof(*to));

    for (size_t i = 0; i <= m->mask; i++) {
        struct hmap_node *it = m->buckets[i];

        while (it) {
            struct hmap_node *next = it->next;

            it->next = to[it->hash & (n - 1)];
            to[it->hash & (n - 1)] = it;
            it = next;
        }
    }
    mem_free(m->buckets);
    m->buckets = to;
    m->mask = n - 1;
}

void hmap_insert(struct hmap *m, struct hmap_node *n, uint64_t hash)
{
    struct hmap_node **slot;

    if (m->count > m->mask)
        hmap_grow(m);
    slot = &m->buckets[hash & m->mask];
    n->hash = hash;
    n->next = *slot;
    *slot = n;
    m->count++;
}

void hmap_remove(struct hmap *m, struct hmap_node *n)
{
    struct hmap_node **slot = &m->buckets[n->hash & m->mask];

    while (*slot != n) {
        CHECK(*slot != NULL);
        slot = &(*slot)->next;
    }
    *slot = n->next;
    m->count--;
}

struct hmap_node *hmap_first(const struct hmap *m, uint64_t hash)
{
    struct hmap_node *n = m->buckets[hash & m->mask];

    while (n && n->hash != hash)
        n = n->next;
    return n;
}

struct hmap_node *hmap_next(const struct hmap_node *n)
{
    uint64_t hash = n->hash;

    do
        n = n->next;
    while (n && n->hash != hash);
    return (struct hmap_node *)n;
}

struct hmap_node *hmap_walk(const struct hmap *m, const struct hmap_node *prev)
{
    size_t i = 0;

    if (prev) {
        if (prev->next)
            return prev->next;
        i = (prev->hash & m->mask) + 1;
    }
    for (; i <= m->mask; i++)
        if (m->buckets[i])
            return m->buckets[i];
    return NULL;
}

uint64_t hmap_hash_bytes(const void *p, size_t n)
{
    const uint8_t *b = p;
    uint64_t h = 0x9e3779b97f4a7c15u ^ n;

    for (; n >= 8; b += 8, n -= 8)
        h = hmap_mix(h ^ codec_get_le64(b)) * 0x9fb21c651e98df25u;
    for (; n; b++, n--)
        h = (h ^ *b) * 0x100000001b3u;
    return hmap_mix(h);
}

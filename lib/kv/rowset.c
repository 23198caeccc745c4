/* The set of changed rows; see rowset.h. */
#include "lib/kv/rowset.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/mem.h"
#include "lib/kv/impl.h"

#define ROWSET_BLOCK (64u << 10)

struct rowset_block {
    struct rowset_block *next;
    size_t size, used;
    uint8_t bytes[] __attribute__((aligned(16)));
};

void rowset_init(struct rowset *s)
{
    *s = (struct rowset){0};
    hmap_init(&s->rows);
}

static void rowset_free_blocks(struct rowset_block *b)
{
    while (b) {
        struct rowset_block *next = b->next;

        mem_free(b);
        b = next;
    }
}

void rowset_free(struct rowset *s)
{
    rowset_free_blocks(s->blocks);
    s->blocks = NULL;
    hmap_free(&s->rows);
}

void rowset_clear(struct rowset *s)
{
    rowset_free_blocks(s->blocks);
    s->blocks = NULL;
    s->bytes = 0;
    memset(s->tables, 0, sizeof(s->tables));
    hmap_clear(&s->rows);
}

static void *rowset_alloc(struct rowset *s, size_t size)
{
    struct rowset_block *b = s->blocks;
    void *p;

    size = (size + 15) & ~(size_t)15;
    if (!b || b->size - b->used < size) {
        size_t room = size > ROWSET_BLOCK / 4 ? size : ROWSET_BLOCK - sizeof(*b);

        b = mem_alloc(sizeof(*b) + room);
        b->size = room;
        b->used = 0;
        if (room == size && s->blocks) { /* filled by this alone: go on filling the other */
            b->next = s->blocks->next;
            s->blocks->next = b;
        } else {
            b->next = s->blocks;
            s->blocks = b;
        }
    }
    p = b->bytes + b->used;
    b->used += size;
    s->bytes += size;
    return p;
}

const struct rowset_row *rowset_find(const struct rowset *s, struct kv_slice key, uint64_t hash)
{
    for (struct hmap_node *n = hmap_first(&s->rows, hash); n; n = hmap_next(n)) {
        const struct rowset_row *r = HMAP_ENTRY(n, struct rowset_row, node);

        if (r->key_len == key.len && memcmp(r->key, key.data, key.len) == 0)
            return r;
    }
    return NULL;
}

/* The row of the key, made if the set has none; with room for a value of `room` bytes. */
static struct rowset_row *rowset_row(struct rowset *s, struct kv_slice key, size_t room)
{
    uint64_t hash = rowset_hash(key);
    struct rowset_row *r = (struct rowset_row *)rowset_find(s, key, hash);
    unsigned table = *(const uint8_t *)key.data;

    CHECK(table < KV_TABLE_COUNT);
    if (!r) {
        r = rowset_alloc(s, sizeof(*r) + key.len + room);
        r->key_len = (uint32_t)key.len;
        memcpy(r->key, key.data, key.len);
        r->value = r->key + key.len;
        r->value_room = (uint32_t)room;
        r->next = s->tables[table];
        s->tables[table] = r;
        hmap_insert(&s->rows, &r->node, hash);
    } else if (r->value_room < room) {
        r->value = rowset_alloc(s, room);
        r->value_room = (uint32_t)room;
    }
    return r;
}

void rowset_put(struct rowset *s, struct kv_slice key, struct kv_slice value)
{
    struct rowset_row *r = rowset_row(s, key, value.len);

    r->gone = false;
    r->value_len = (uint32_t)value.len;
    if (value.len)
        memcpy(r->value, value.data, value.len);
}

void rowset_delete(struct rowset *s, struct kv_slice key)
{
    struct rowset_row *r = rowset_row(s, key, 0);

    r->gone = true;
    r->value_len = 0;
}

/* The key's first bytes behind the table's, as a number: decides nearly every comparison of rows of
 * one table without touching the rows. */
static uint64_t rowset_prefix(const struct rowset_row *r)
{
    uint8_t bytes[8] = {0};
    size_t n = r->key_len - 1;

    memcpy(bytes, r->key + 1, n < sizeof(bytes) ? n : sizeof(bytes));
    return codec_get_be64(bytes);
}

static int rowset_compare(const void *a, const void *b)
{
    const struct rowset_ref *x = a, *y = b;

    if (x->prefix != y->prefix)
        return x->prefix < y->prefix ? -1 : 1;
    return kv_slice_cmp(rowset_key(x->row), rowset_key(y->row));
}

void rowset_sort(const struct rowset *s, struct rowset_ref *refs)
{
    size_t n = 0;

    for (size_t t = 0; t < KV_TABLE_COUNT; t++) {
        size_t from = n;

        for (const struct rowset_row *r = s->tables[t]; r; r = r->next)
            refs[n++] = (struct rowset_ref){rowset_prefix(r), r};
        qsort(refs + from, n - from, sizeof(refs[0]), rowset_compare);
    }
    CHECK(n == rowset_count(s));
}

/* Changed rows, gathered batch by batch: a face for the set of rows that the write-behind uses too
 * (rowset.h). See kv.h.
 */
#include "lib/base/mem.h"
#include "lib/kv/impl.h"
#include "lib/kv/rowset.h"

struct kv_changes {
    struct rowset rows;
    unsigned but; /* bit per table that is left out */
};

struct kv_changes *kv_changes_new(unsigned but)
{
    struct kv_changes *c = mem_zalloc(sizeof(*c));

    rowset_init(&c->rows);
    c->but = but;
    return c;
}

void kv_changes_free(struct kv_changes *c)
{
    if (c)
        rowset_free(&c->rows);
    mem_free(c);
}

static enum kv_table table_of(struct kv_slice full)
{
    return (enum kv_table) * (const uint8_t *)full.data;
}

void kv_changes_add(struct kv_changes *c, const struct kv_batch *b)
{
    struct kv_batch_op op;
    size_t pos = 0;

    while (kv_batch_next(b, &pos, &op)) {
        if (c->but >> table_of(op.key) & 1)
            continue;
        if (op.is_put)
            rowset_put(&c->rows, op.key, op.value);
        else
            rowset_delete(&c->rows, op.key);
    }
}

void kv_changes_set(struct kv_changes *c, enum kv_table t, struct kv_slice key,
                    const struct kv_slice *value)
{
    struct kv_batch *b = kv_batch_new();

    if (value)
        kv_batch_put(b, t, key, *value);
    else
        kv_batch_delete(b, t, key);
    kv_changes_add(c, b);
    kv_batch_free(b);
}

void kv_changes_add_newer(struct kv_changes *c, const struct kv_changes *newer)
{
    for (unsigned t = 0; t < KV_TABLE_COUNT; t++) {
        for (const struct rowset_row *r = newer->rows.tables[t]; r; r = r->next) {
            if (r->gone)
                rowset_delete(&c->rows, rowset_key(r));
            else
                rowset_put(&c->rows, rowset_key(r), rowset_value(r));
        }
    }
}

size_t kv_changes_bytes(const struct kv_changes *c)
{
    return c->rows.bytes;
}

size_t kv_changes_count(const struct kv_changes *c)
{
    return rowset_count(&c->rows);
}

void kv_changes_sorted(const struct kv_changes *c, struct kv_change **ret_rows)
{
    size_t n = rowset_count(&c->rows);
    struct rowset_ref *refs = mem_calloc(n, sizeof(*refs));
    struct kv_change *rows = mem_calloc(n, sizeof(*rows));

    rowset_sort(&c->rows, refs);
    for (size_t i = 0; i < n; i++) {
        const struct rowset_row *r = refs[i].row;

        rows[i] = (struct kv_change){table_of(rowset_key(r)), r->gone,
                                     kv_key_of_full(rowset_key(r)), rowset_value(r)};
    }
    mem_free(refs);
    *ret_rows = rows;
}

void kv_batch_keys(const struct kv_batch *b,
                   void (*fn)(void *arg, enum kv_table t, struct kv_slice key), void *arg)
{
    struct kv_batch_op op;
    size_t pos = 0;

    while (kv_batch_next(b, &pos, &op))
        fn(arg, table_of(op.key), kv_key_of_full(op.key));
}

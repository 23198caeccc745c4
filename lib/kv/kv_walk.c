/* All rows between two keys, page after page; see kv.h. */
#include "lib/kv/kv.h"

void kv_walk_init(struct kv_walk *w, struct kv *kv, enum kv_table t, struct kv_slice from,
                  struct kv_slice to, size_t page_rows, size_t page_bytes)
{
    *w = (struct kv_walk){.kv = kv,
                          .table = t,
                          .page_rows = page_rows,
                          .page_bytes = page_bytes,
                          .from = STRBUF_INIT,
                          .to = STRBUF_INIT};
    strbuf_add(&w->from, from.data, from.len);
    strbuf_add(&w->to, to.data, to.len);
}

void kv_walk_end(struct kv_walk *w)
{
    kv_rows_free(w->page);
    w->page = NULL;
    strbuf_free(&w->from);
    strbuf_free(&w->to);
}

/* The rows behind those that were given. */
static int walk_on(struct kv_walk *w)
{
    if (w->page && w->page->count) {
        const struct kv_slice *last = &w->page->rows[w->page->count - 1].key;

        strbuf_reset(&w->from);
        strbuf_add(&w->from, last->data, last->len);
        strbuf_addc(&w->from, 0); /* nothing lies between a key and this */
    }
    kv_rows_free(w->page);
    w->page = NULL;
    w->next = 0;
    return kv_scan(w->kv, w->table, (struct kv_slice){w->from.data, w->from.len},
                   (struct kv_slice){w->to.data, w->to.len}, w->page_rows, w->page_bytes, 0,
                   &w->page);
}

int kv_walk_next(struct kv_walk *w, const struct kv_row **ret_row)
{
    if (!w->page || w->next == w->page->count) {
        int rc = walk_on(w);

        if (rc < 0)
            return rc;
    }
    if (w->page->count == 0)
        return 0;
    *ret_row = &w->page->rows[w->next++];
    return 1;
}

/* Lists of a bucket's objects: pages, prefixes, folders.
 *
 * A list walks rows whose keys are a head and the name. So do the instances' rows, whose keys have
 * NUL where names in the reserved bucket have '/': names are turned into keys at the beginning, and
 * back at the end, and all between is the same. An order by keys is therefore one in which '/'
 * comes before all other bytes there.
 *
 * Where names have the delimiter behind the prefix, they are told as one entry, and the walk goes
 * on behind all of them: a page costs what it shows, not what lies below.
 */
#include <string.h>

#include "daemon/bucket_priv.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define LIST_ROWS  256u
#define LIST_BYTES (1u << 20)

/* A key of the table being walked: the head, and the name in its form there. */
struct list_key {
    uint8_t bytes[BUCKET_ROW_KEY_MAX + 1];
    size_t len;
};

struct list_found {
    char *name;
    bool prefix;
    struct strbuf row; /* of an object: encoded */
};

struct list_walk {
    struct buckets *bs;
    bool dicom;
    uint8_t head[9];
    size_t head_len, prefix_len;
    uint8_t delimiter; /* in keys' form */
    bool folders;      /* there is one */
    struct list_key from, to;
    size_t limit, count;
    struct list_found *found; /* one more than the limit */
};

static struct kv_slice key_slice(const struct list_key *k)
{
    return (struct kv_slice){k->bytes, k->len};
}

static uint8_t swap(const struct list_walk *w, uint8_t c, uint8_t from, uint8_t to)
{
    return w->dicom && c == from ? to : c;
}

static int key_of(const struct list_walk *w, const char *name, struct list_key *k)
{
    size_t n = strlen(name);

    if (n > BUCKET_KEY_MAX)
        return ERR_INVAL;
    memcpy(k->bytes, w->head, w->head_len);
    for (size_t i = 0; i < n; i++)
        k->bytes[w->head_len + i] = swap(w, (uint8_t)name[i], '/', 0);
    k->len = w->head_len + n;
    return 0;
}

/* The first key behind all that begin with k. There is one: heads do not consist of 0xff. */
static void key_after(struct list_key *k)
{
    while (k->bytes[k->len - 1] == 0xff)
        k->len--;
    k->bytes[k->len - 1]++;
}

static int key_compare(struct kv_slice a, struct kv_slice b)
{
    int c = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);

    return c ? c : (a.len > b.len) - (a.len < b.len);
}

/* Length of the key up to its delimiter behind the prefix, that included; 0: it has none. */
static size_t folder_length(const struct list_walk *w, struct kv_slice key)
{
    size_t skip = w->head_len + w->prefix_len;
    const uint8_t *p = key.data, *at;

    if (!w->folders || key.len <= skip)
        return 0;
    at = memchr(p + skip, w->delimiter, key.len - skip);
    return at ? (size_t)(at - p) + 1 : 0;
}

/* Where the walk begins: behind `after`, and behind the whole folder that it is in. */
static int walk_begin(struct list_walk *w, const struct bucket_query *q)
{
    const char *prefix = q->prefix ? q->prefix : "";
    struct list_key after;
    size_t folder;
    int rc = key_of(w, prefix, &w->from);

    w->prefix_len = strlen(prefix);
    w->to = w->from;
    key_after(&w->to);
    if (rc < 0 || !q->after)
        return rc;
    rc = key_of(w, q->after, &after);
    if (rc < 0)
        return rc;
    if (key_compare(key_slice(&after), key_slice(&w->from)) < 0)
        return 0;
    folder = memcmp(after.bytes, w->from.bytes, w->from.len) == 0 && after.len >= w->from.len
                 ? folder_length(w, key_slice(&after))
                 : 0;
    w->from = after;
    if (folder) {
        w->from.len = folder;
        key_after(&w->from);
    } else {
        w->from.bytes[w->from.len++] = 0;
    }
    return 0;
}

static char *name_of(const struct list_walk *w, struct kv_slice key, size_t len)
{
    char *name = mem_alloc(len - w->head_len + 1);

    for (size_t i = w->head_len; i < len; i++)
        name[i - w->head_len] = (char)swap(w, ((const uint8_t *)key.data)[i], 0, '/');
    name[len - w->head_len] = 0;
    return name;
}

static int walk_row(struct list_walk *w, const struct kv_row *row)
{
    struct list_found *f = &w->found[w->count];
    size_t folder = folder_length(w, row->key);
    struct bucket_object_row object;
    int rc;

    if (row->key.len > BUCKET_ROW_KEY_MAX)
        return ERR_FORMAT;
    memcpy(w->from.bytes, row->key.data, row->key.len);
    if (folder) {
        w->from.len = folder;
        key_after(&w->from);
        f->name = name_of(w, row->key, folder);
        f->prefix = true;
        w->count++;
        return 0;
    }
    w->from.len = row->key.len;
    w->from.bytes[w->from.len++] = 0;
    rc = w->dicom ? bucket_dicom_row(row->value, &object)
                  : bucket_object_decode(row->value, &object);
    if (rc < 0)
        return rc;
    f->name = name_of(w, row->key, row->key.len);
    bucket_object_encode(&object, &f->row);
    w->count++;
    return 0;
}

/* Finds up to one entry more than wanted. */
static int walk_run(struct list_walk *w)
{
    size_t n = 1;
    int rc = 0;

    while (rc == 0 && n && w->count <= w->limit &&
           key_compare(key_slice(&w->from), key_slice(&w->to)) < 0) {
        struct kv_rows *rows;

        rc = kv_scan(w->bs->p->kv, w->dicom ? KV_CATALOG : KV_BUCKET, key_slice(&w->from),
                     key_slice(&w->to), LIST_ROWS, LIST_BYTES, 0, &rows);
        if (rc < 0)
            return rc;
        n = rows->count;
        for (size_t i = 0; rc == 0 && i < n && w->count <= w->limit; i++)
            if (key_compare(rows->rows[i].key, key_slice(&w->from)) >= 0) /* else in a folder */
                rc = walk_row(w, &rows->rows[i]);
        kv_rows_free(rows);
    }
    return rc;
}

/* ---- The page ---- */

/* Bytes of an entry behind the entries themselves. */
static size_t found_size(const struct list_found *f)
{
    size_t n = strlen(f->name) + 1 + f->row.len;

    return (n + 7) / 8 * 8 + (f->prefix ? 0 : BUCKET_PAIRS_MAX * sizeof(struct bucket_pair));
}

/* Pairs first, for their alignment; then the row that they point into, and the name. */
static int fill_entry(const struct list_found *f, struct bucket_entry *e, uint8_t *room)
{
    struct bucket_object_row row;
    struct bucket_pair *pairs = (struct bucket_pair *)(void *)room;
    int rc;

    if (f->prefix) {
        memcpy(room, f->name, strlen(f->name) + 1);
        *e = (struct bucket_entry){.name = (char *)room, .prefix = true, .type = ""};
        return 0;
    }
    room += BUCKET_PAIRS_MAX * sizeof(*pairs);
    memcpy(room, f->row.data, f->row.len);
    rc = bucket_object_decode((struct kv_slice){room, f->row.len}, &row);
    if (rc < 0)
        return rc;
    memcpy(pairs, row.pairs, sizeof(row.pairs));
    bucket_entry_of(&row, e);
    e->pairs = pairs;
    room += f->row.len;
    memcpy(room, f->name, strlen(f->name) + 1);
    e->name = (char *)room;
    return 0;
}

static int make_page(const struct list_walk *w, struct bucket_page **ret_page)
{
    size_t count = w->count <= w->limit ? w->count : w->limit;
    size_t size = sizeof(struct bucket_page) + count * sizeof(struct bucket_entry);
    struct bucket_page *page;
    uint8_t *room;
    int rc = 0;

    for (size_t i = 0; i < count; i++)
        size += found_size(&w->found[i]);
    page = mem_zalloc(size);
    page->count = count;
    page->more = w->count > w->limit;
    room = (uint8_t *)&page->entries[count];
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = fill_entry(&w->found[i], &page->entries[i], room);
        room += found_size(&w->found[i]);
    }
    if (rc < 0)
        mem_free(page);
    else
        *ret_page = page;
    return rc;
}

static int walk_set_up(struct list_walk *w, const struct bucket_query *q)
{
    struct bucket *b = bucket_find_name(w->bs, q->bucket);
    struct bucket_key head;

    w->dicom = bucket_is_dicom(q->bucket);
    if (!b && !w->dicom)
        return ERR_NOENT;
    if (q->limit > BUCKET_PAGE_MAX || (q->delimiter && strlen(q->delimiter) != 1))
        return ERR_INVAL;
    w->limit = q->limit ? q->limit : BUCKET_PAGE_MAX;
    w->folders = q->delimiter != NULL;
    w->delimiter = w->folders ? swap(w, (uint8_t)*q->delimiter, '/', 0) : 0;
    bucket_key_make(&head, 'O', b ? b->id : 0, NULL);
    w->head_len = w->dicom ? 1 : head.len;
    memcpy(w->head, w->dicom ? (const uint8_t *)"I" : head.bytes, w->head_len);
    w->found = mem_calloc(w->limit + 1, sizeof(*w->found));
    return walk_begin(w, q);
}

int bucket_store_page(struct bucket_store *face, const struct bucket_query *q,
                      struct bucket_page **ret_page)
{
    struct buckets *bs = (struct buckets *)face;
    struct list_walk *w = mem_zalloc(sizeof(*w));
    uint64_t start = env_now(bs->p->env), took;
    int rc;

    w->bs = bs;
    rc = walk_set_up(w, q);
    if (rc == 0)
        rc = walk_run(w);
    if (rc == 0)
        rc = make_page(w, ret_page);
    for (size_t i = 0; i < w->count; i++) {
        mem_free(w->found[i].name);
        strbuf_free(&w->found[i].row);
    }
    took = env_now(bs->p->env) - start;
    metric_record(&bs->list_time, took);
    if (slow_is(bs->p->slow, took))
        slow_note(bs->p->slow, start + took, "bucket.list", took, "entries=%zu result=%s", w->count,
                  rc < 0 ? err_name(rc) : "ok");
    mem_free(w->found);
    mem_free(w);
    return rc;
}

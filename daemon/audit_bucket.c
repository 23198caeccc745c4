/* The audit of buckets: objects against their buckets' totals and against their recipes, each seen
 * from each.
 *
 * An object's row leads to a recipe row, which says whose it is. Totals of a bucket follow from its
 * objects and are mended; an object whose recipe is gone is lost, and a recipe without its object
 * says that a row is: neither is made up or taken away.
 */
#include <string.h>

#include "daemon/audit_priv.h"
#include "daemon/bucket_row.h"
#include "daemon/recipe.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

struct audit_bucket {
    struct hmap_node node;
    uint64_t id;
    struct bucket_row row;
    uint64_t objects, bytes; /* counted */
};

/* ---- Rows ---- */

static void row_bucket(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    struct audit_bucket *b = mem_zalloc(sizeof(*b));

    if (key.len != 9 || bucket_row_decode(value, &b->row) < 0) {
        audit_leave(a, "bucket-row", "a bucket's row is broken");
        a->buckets_doubtful = true;
        mem_free(b);
        return;
    }
    b->id = codec_get_be64((const uint8_t *)key.data + 1);
    a->r.buckets++;
    hmap_insert(&a->buckets, &b->node, hmap_mix(b->id));
}

/* "bucket NAME: object KEY", for people. */
static void object_words(struct audit *a, uint64_t bucket, const char *name, struct strbuf *out)
{
    const struct audit_bucket *b = audit_find(&a->buckets, bucket);

    if (b)
        strbuf_addf(out, "bucket %s: object %s", b->row.name, name);
    else
        strbuf_addf(out, "bucket number %llu: object %s", (unsigned long long)bucket, name);
}

/* What is wrong with the recipe that an object's row leads to; NULL: nothing. */
static const char *object_recipe(struct audit *a, uint64_t bucket, const char *name,
                                 const struct bucket_object_row *row)
{
    char owner[BUCKET_KEY_MAX + 1];
    MEM_AUTO void *value = NULL;
    struct bucket_key k;
    struct recipe recipe;
    uint64_t of;
    size_t len, used;
    bool fits;

    bucket_key_make(&k, 'C', row->content, NULL);
    value = audit_get(a, KV_RECIPE, bucket_key_slice(&k), &len);
    if (!value)
        return "it is lost: its recipe is not there";
    if (bucket_owner_decode((struct kv_slice){value, len}, &of, owner, &used) < 0 ||
        recipe_decode((const uint8_t *)value + used, len - used, &recipe) < 0)
        return NULL; /* the recipes' walk tells */
    fits = recipe.size == row->size;
    recipe_free(&recipe);
    if (of != bucket || strcmp(owner, name) != 0)
        return "its recipe is another object's";
    return fits ? NULL : "its recipe makes another number of bytes than its row says";
}

static void row_object(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    STRBUF_AUTO struct strbuf words = STRBUF_INIT;
    struct bucket_object_row row;
    char name[BUCKET_KEY_MAX + 1] = "";
    struct audit_bucket *b;
    const char *what;
    uint64_t id;

    if (key.len < 10 || key.len > BUCKET_ROW_KEY_MAX ||
        memchr((const char *)key.data + 9, 0, key.len - 9) ||
        bucket_object_decode(value, &row) < 0) {
        audit_leave(a, "object-row", "an object's row is broken");
        a->buckets_doubtful = true;
        return;
    }
    a->r.objects++;
    id = codec_get_be64((const uint8_t *)key.data + 1);
    memcpy(name, (const char *)key.data + 9, key.len - 9);
    object_words(a, id, name, &words);
    b = audit_find(&a->buckets, id);
    if (b) {
        b->objects++;
        b->bytes += row.size;
    } else {
        audit_leave(a, "object-orphan", "%s: the bucket is not there", words.data);
    }
    what = object_recipe(a, id, name, &row);
    if (what)
        audit_leave(a, "object-data", "%s: %s", words.data, what);
}

static void bucket_any(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    char kind = key.len ? *(const char *)key.data : 0;

    if (kind == 'B')
        row_bucket(a, key, value);
    else if (kind == 'O')
        row_object(a, key, value);
    else
        audit_leave(a, "bucket-row", "an unknown row among the buckets");
}

/* ---- Totals ---- */

static void bucket_sum(struct audit *a, const struct audit_bucket *b)
{
    STRBUF_AUTO struct strbuf value = STRBUF_INIT;
    struct bucket_row row = b->row;
    struct bucket_key k;

    if (row.objects == b->objects && row.bytes == b->bytes)
        return;
    if (a->buckets_doubtful) {
        audit_leave(a, "bucket-count", "bucket %s: its totals are not those of its objects",
                    row.name);
        return;
    }
    audit_mend(a, "bucket-count",
               "bucket %s: %llu objects of %llu bytes, its row says %llu of %llu", row.name,
               (unsigned long long)b->objects, (unsigned long long)b->bytes,
               (unsigned long long)row.objects, (unsigned long long)row.bytes);
    row.objects = b->objects;
    row.bytes = b->bytes;
    bucket_row_encode(&row, &value);
    bucket_key_make(&k, 'B', b->id, NULL);
    audit_put(a, KV_BUCKET, bucket_key_slice(&k), (struct kv_slice){value.data, value.len});
}

void audit_buckets(struct audit *a)
{
    /* Buckets come before objects: 'B' is before 'O'. */
    audit_walk(a, KV_BUCKET, "buckets", bucket_any);
    for (struct hmap_node *it = hmap_walk(&a->buckets, NULL); it; it = hmap_walk(&a->buckets, it))
        bucket_sum(a, HMAP_ENTRY(it, struct audit_bucket, node));
}

void audit_buckets_free(struct audit *a)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&a->buckets, NULL); it; it = next) {
        next = hmap_walk(&a->buckets, it);
        mem_free(HMAP_ENTRY(it, struct audit_bucket, node));
    }
    hmap_free(&a->buckets);
}

/* ---- From recipes ---- */

/* Does the object's row lead back to this content? */
static bool content_owned(struct audit *a, uint64_t content, uint64_t bucket, const char *name)
{
    MEM_AUTO void *value = NULL;
    struct bucket_object_row row;
    struct bucket_key k;
    size_t len;

    bucket_key_make(&k, 'O', bucket, name);
    value = audit_get(a, KV_BUCKET, bucket_key_slice(&k), &len);
    return value && (bucket_object_decode((struct kv_slice){value, len}, &row) < 0 ||
                     row.content == content);
}

void audit_object_recipe(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    STRBUF_AUTO struct strbuf words = STRBUF_INIT;
    uint64_t content = codec_get_be64((const uint8_t *)key.data + 1), bucket, chunk;
    char name[BUCKET_KEY_MAX + 1];
    struct recipe recipe;
    const char *what;
    size_t used;

    if (bucket_owner_decode(value, &bucket, name, &used) < 0 ||
        recipe_decode((const uint8_t *)value.data + used, value.len - used, &recipe) < 0) {
        audit_leave(a, "recipe-row", "an object's recipe is broken: it cannot be read");
        a->refs_doubtful = true;
        return;
    }
    object_words(a, bucket, name, &words);
    what = audit_refer(a, &recipe, &chunk);
    recipe_free(&recipe);
    if (what)
        audit_leave(a, "object-data", "%s: part of it is lost: chunk %llu %s", words.data,
                    (unsigned long long)chunk, what);
    if (!content_owned(a, content, bucket, name))
        audit_leave(a, "recipe-orphan", "%s: has a recipe, and is not in the bucket", words.data);
}

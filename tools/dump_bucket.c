/* Buckets and objects as they stand in the KV store, for filmroom-dump. */
#include <string.h>

#include "daemon/bucket_row.h"
#include "daemon/recipe.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tools/dump.h"

#define DUMP_BUCKETS (4 * BUCKETS_MAX) /* those that are going too */

static json_t *bucket_json(uint64_t id, const struct bucket_row *row)
{
    json_t *o = json_object();

    dump_set_text(o, "name", row->name, strlen(row->name));
    dump_set(o, "id", id);
    dump_set(o, "created_ns", row->created_ns);
    dump_set(o, "objects", row->objects);
    dump_set(o, "bytes", row->bytes);
    (void)json_object_set_new(o, "going", json_boolean(row->going));
    return o;
}

/* All rows of buckets; NULL after a failure. */
static struct kv_rows *bucket_rows(struct dump *d)
{
    struct kv_rows *rows;
    int rc = kv_scan(d->o.kv, KV_BUCKET, (struct kv_slice){"B", 1}, (struct kv_slice){"C", 1},
                     DUMP_BUCKETS, 4u << 20, 0, &rows);

    if (rc == 0)
        return rows;
    dump_fail(d, "the metadata cannot be read: %s", err_text(rc));
    return NULL;
}

void dump_buckets(struct dump *d)
{
    struct kv_rows *rows = bucket_rows(d);
    json_t *list = json_array();
    struct bucket_row row;

    d->out = json_object();
    (void)json_object_set_new(d->out, "buckets", list);
    if (!rows)
        return;
    for (size_t i = 0; i < rows->count; i++) {
        const struct kv_row *r = &rows->rows[i];

        if (r->key.len == 9 && bucket_row_decode(r->value, &row) == 0)
            (void)json_array_append_new(
                list, bucket_json(codec_get_be64((const uint8_t *)r->key.data + 1), &row));
        else
            dump_fail(d, "a bucket's row is broken: run filmroom-fsck");
    }
    kv_rows_free(rows);
}

/* Id of the bucket with this name; 0: there is none. */
static uint64_t bucket_id(struct dump *d, const char *name, size_t len)
{
    struct kv_rows *rows = bucket_rows(d);
    struct bucket_row row;
    uint64_t id = 0;

    for (size_t i = 0; rows && i < rows->count; i++)
        if (rows->rows[i].key.len == 9 && bucket_row_decode(rows->rows[i].value, &row) == 0 &&
            !row.going && strlen(row.name) == len && memcmp(row.name, name, len) == 0)
            id = codec_get_be64((const uint8_t *)rows->rows[i].key.data + 1);
    kv_rows_free(rows);
    return id;
}

static void object_pieces(struct dump *d, const struct bucket_object_row *row)
{
    char owner[BUCKET_KEY_MAX + 1];
    MEM_AUTO void *value = NULL;
    struct bucket_key k;
    struct recipe r;
    uint64_t bucket;
    size_t len, used;

    bucket_key_make(&k, 'C', row->content, NULL);
    value = dump_get(d, KV_RECIPE, bucket_key_slice(&k), &len);
    if (!value || bucket_owner_decode((struct kv_slice){value, len}, &bucket, owner, &used) < 0 ||
        recipe_decode((const uint8_t *)value + used, len - used, &r) < 0) {
        dump_fail(d, "object %s: its recipe is %s", d->args[0], value ? "broken" : "not there");
        return;
    }
    (void)json_object_set_new(d->out, "pieces", dump_pieces(&r));
    recipe_free(&r);
}

static void object_row(struct dump *d, const struct bucket_object_row *row)
{
    json_t *pairs = json_object();

    dump_set(d->out, "bytes", row->size);
    dump_set(d->out, "stored_ns", row->stored_ns);
    dump_set(d->out, "content", row->content);
    dump_set_hex(d->out, "etag", row->etag, BUCKET_ETAG);
    dump_set_text(d->out, "type", row->type, strlen(row->type));
    for (size_t i = 0; i < row->pair_count; i++)
        dump_set_text(pairs, row->pairs[i].name, row->pairs[i].value, strlen(row->pairs[i].value));
    (void)json_object_set_new(d->out, "metadata", pairs);
}

void dump_object(struct dump *d)
{
    const char *arg = d->args[0], *slash = strchr(arg, '/');
    MEM_AUTO void *value = NULL;
    struct bucket_object_row row;
    struct bucket_key k;
    uint64_t id;
    size_t len;

    if (!slash || !bucket_key_valid(slash + 1)) {
        dump_fail(d, "\"%s\" is not BUCKET/NAME", arg);
        return;
    }
    id = bucket_id(d, arg, (size_t)(slash - arg));
    if (id) {
        bucket_key_make(&k, 'O', id, slash + 1);
        value = dump_get(d, KV_BUCKET, bucket_key_slice(&k), &len);
    }
    if (!value || bucket_object_decode((struct kv_slice){value, len}, &row) < 0) {
        dump_fail(d, "object %s: %s", arg,
                  value ? "its row is broken"
                  : id  ? "no such object"
                        : "no such bucket");
        return;
    }
    d->out = json_object();
    dump_set_text(d->out, "object", arg, strlen(arg));
    dump_set(d->out, "bucket", id);
    object_row(d, &row);
    object_pieces(d, &row);
}

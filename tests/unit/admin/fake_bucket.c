/* A bucket store in memory; see fake_bucket.h. */
#include "tests/unit/admin/fake_bucket.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"

struct fake_put {
    struct bucket_put face;
    struct fake_buckets *f;
    struct fake_object object;
    bool full;
};

struct fake_open {
    struct bucket_object face;
    struct fake_object object; /* as it was */
    struct bucket_entry entry;
    struct bucket_pair pair;
};

static int find_bucket(const struct fake_buckets *f, const char *name)
{
    for (unsigned i = 0; i < FAKE_BUCKETS; i++)
        if (f->names[i][0] && strcmp(f->names[i], name) == 0)
            return (int)i;
    return ERR_NOENT;
}

static struct fake_object *find_object(struct fake_buckets *f, int bucket, const char *name)
{
    for (unsigned i = 0; bucket >= 0 && i < FAKE_OBJECTS; i++)
        if (f->objects[i].used && f->objects[i].bucket == (unsigned)bucket &&
            strcmp(f->objects[i].name, name) == 0)
            return &f->objects[i];
    return NULL;
}

static int fake_stat(struct bucket_store *bs, const char *name, struct bucket_info *ret_info)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;
    int b = find_bucket(f, name);

    if (b < 0)
        return b;
    *ret_info = (struct bucket_info){.readonly = strcmp(name, BUCKET_DICOM) == 0,
                                     .created_ns = 1700000000ull * 1000000000};
    memcpy(ret_info->name, name, strlen(name) + 1);
    for (unsigned i = 0; i < FAKE_OBJECTS; i++)
        if (f->objects[i].used && f->objects[i].bucket == (unsigned)b) {
            ret_info->objects++;
            ret_info->bytes += f->objects[i].size;
        }
    return 0;
}

static int fake_create(struct bucket_store *bs, const char *name)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;

    if (strchr(name, '/'))
        return ERR_NAME;
    if (find_bucket(f, name) >= 0)
        return ERR_EXIST;
    for (unsigned i = 0; i < FAKE_BUCKETS; i++)
        if (!f->names[i][0]) {
            memcpy(f->names[i], name, strlen(name) + 1);
            return 0;
        }
    return ERR_OVERLOAD;
}

static int fake_list(struct bucket_store *bs, struct bucket_info **ret_infos, size_t *ret_count)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;
    struct bucket_info *infos = mem_calloc(FAKE_BUCKETS, sizeof(*infos));
    size_t n = 0;

    for (unsigned i = 0; i < FAKE_BUCKETS; i++)
        if (f->names[i][0])
            (void)fake_stat(bs, f->names[i], &infos[n++]);
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}

static int fake_remove(struct bucket_store *bs, const char *name, bool with_objects)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;
    struct bucket_info info;
    int rc = fake_stat(bs, name, &info), b = find_bucket(f, name);

    if (rc < 0 || info.readonly)
        return rc < 0 ? rc : ERR_READONLY;
    if (info.objects && !with_objects)
        return ERR_NOTEMPTY;
    for (unsigned i = 0; i < FAKE_OBJECTS; i++)
        if (f->objects[i].bucket == (unsigned)b)
            f->objects[i].used = false;
    f->names[b][0] = 0;
    return 0;
}

/* ---- Storing ---- */

static int check_condition(struct fake_buckets *f, const struct bucket_put_info *info)
{
    const struct fake_object *o = find_object(f, find_bucket(f, info->bucket), info->name);

    if (info->condition == BUCKET_IF_ABSENT)
        return o ? ERR_CONDITION : 0;
    if (info->condition == BUCKET_IF_ETAG)
        return o && memcmp(o->etag, info->etag, BUCKET_ETAG) == 0 ? 0 : ERR_CONDITION;
    return 0;
}

static int fake_put_begin(struct bucket_store *bs, const struct bucket_put_info *info,
                          struct bucket_put **ret_put)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;
    int b = find_bucket(f, info->bucket), rc = check_condition(f, info);
    struct fake_put *p;

    if (b < 0)
        return b;
    if (strcmp(info->bucket, BUCKET_DICOM) == 0)
        return ERR_READONLY;
    if (strchr(info->name, '\n'))
        return ERR_INVAL;
    if (rc < 0)
        return rc;
    p = mem_zalloc(sizeof(*p));
    p->face.ops = bs->ops;
    p->f = f;
    p->full = strcmp(info->name, "full") == 0;
    p->object.used = true;
    p->object.bucket = (unsigned)b;
    memcpy(p->object.name, info->name, strlen(info->name) + 1);
    if (info->type)
        memcpy(p->object.type, info->type, strlen(info->type) + 1);
    if (info->pair_count) {
        memcpy(p->object.pair_name, info->pairs[0].name, strlen(info->pairs[0].name) + 1);
        memcpy(p->object.pair_value, info->pairs[0].value, strlen(info->pairs[0].value) + 1);
    }
    f->puts++;
    *ret_put = &p->face;
    return 0;
}

static int fake_put_append(struct bucket_put *bp, const void *data, size_t len)
{
    struct fake_put *p = (struct fake_put *)bp;

    if (p->full)
        return ERR_NOSPC;
    if (len > sizeof(p->object.bytes) - p->object.size)
        return ERR_TOOBIG;
    memcpy(p->object.bytes + p->object.size, data, len);
    p->object.size += len;
    return 0;
}

static void fake_put_abort(struct bucket_put *bp)
{
    struct fake_put *p = (struct fake_put *)bp;

    p->f->puts--;
    mem_free(p);
}

static int fake_put_commit(struct bucket_put *bp, struct bucket_put_result *ret_result)
{
    struct fake_put *p = (struct fake_put *)bp;
    struct fake_object *o = find_object(p->f, (int)p->object.bucket, p->object.name);

    ret_result->replaced = o != NULL;
    for (unsigned i = 0; !o && i < FAKE_OBJECTS; i++)
        if (!p->f->objects[i].used)
            o = &p->f->objects[i];
    memset(p->object.etag, p->object.bytes[0], BUCKET_ETAG);
    memcpy(ret_result->etag, p->object.etag, BUCKET_ETAG);
    ret_result->size = p->object.size;
    if (o)
        *o = p->object;
    fake_put_abort(bp);
    return o ? 0 : ERR_NOSPC;
}

/* ---- Reading ---- */

static void fill_entry(const struct fake_object *o, struct bucket_pair *pair,
                       struct bucket_entry *e)
{
    *pair = (struct bucket_pair){o->pair_name, o->pair_value};
    *e = (struct bucket_entry){.name = o->name,
                               .size = o->size,
                               .stored_ns = 1700000000ull * 1000000000,
                               .type = o->type,
                               .pair_count = o->pair_name[0] != 0,
                               .pairs = pair};
    memcpy(e->etag, o->etag, BUCKET_ETAG);
}

static int fake_open(struct bucket_store *bs, const char *bucket, const char *name,
                     struct bucket_object **ret_object)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;
    struct fake_object *o = find_object(f, find_bucket(f, bucket), name);
    struct fake_open *open;

    if (!o)
        return ERR_NOENT;
    open = mem_zalloc(sizeof(*open));
    open->face.ops = bs->ops;
    open->object = *o;
    fill_entry(&open->object, &open->pair, &open->entry);
    *ret_object = &open->face;
    return 0;
}

static int fake_read(struct bucket_object *bo, uint64_t off, void *buf, size_t len, size_t *ret_len)
{
    const struct fake_object *o = &((struct fake_open *)bo)->object;
    size_t n = off >= o->size ? 0 : o->size - (size_t)off;

    n = n < len ? n : len;
    memcpy(buf, o->bytes + (n ? off : 0), n);
    *ret_len = n;
    return 0;
}

static const struct bucket_entry *fake_entry(struct bucket_object *bo)
{
    return &((struct fake_open *)bo)->entry;
}

static void fake_close(struct bucket_object *bo)
{
    mem_free(bo);
}

/* In the order of the table; `prefix`, `after` and `limit` count, folders are not made. */
static int fake_page(struct bucket_store *bs, const struct bucket_query *q,
                     struct bucket_page **ret_page)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;
    int b = find_bucket(f, q->bucket);
    struct bucket_page *page;
    struct bucket_pair *pairs;

    if (b < 0)
        return b;
    page = mem_zalloc(sizeof(*page) + FAKE_OBJECTS * (sizeof(page->entries[0]) + sizeof(*pairs)));
    pairs = (struct bucket_pair *)(void *)&page->entries[FAKE_OBJECTS];
    for (unsigned i = 0; i < FAKE_OBJECTS; i++) {
        const struct fake_object *o = &f->objects[i];

        if (!o->used || o->bucket != (unsigned)b ||
            (q->prefix && strncmp(o->name, q->prefix, strlen(q->prefix)) != 0) ||
            (q->after && strcmp(o->name, q->after) <= 0))
            continue;
        if (page->count == q->limit) {
            page->more = true;
            break;
        }
        fill_entry(o, &pairs[page->count], &page->entries[page->count]);
        page->count++;
    }
    *ret_page = page;
    return 0;
}

static int fake_object_remove(struct bucket_store *bs, const char *bucket, const char *name)
{
    struct fake_buckets *f = (struct fake_buckets *)bs;
    struct fake_object *o = find_object(f, find_bucket(f, bucket), name);

    if (!o)
        return ERR_NOENT;
    o->used = false;
    return 0;
}

void fake_buckets_init(struct fake_buckets *f)
{
    static const struct bucket_ops ops = {
        .create = fake_create,
        .list = fake_list,
        .stat = fake_stat,
        .remove = fake_remove,
        .put_begin = fake_put_begin,
        .put_append = fake_put_append,
        .put_commit = fake_put_commit,
        .put_abort = fake_put_abort,
        .open = fake_open,
        .read = fake_read,
        .entry = fake_entry,
        .close = fake_close,
        .page = fake_page,
        .object_remove = fake_object_remove,
    };

    memset(f, 0, sizeof(*f));
    f->face.ops = &ops;
    memcpy(f->names[0], "b", 2);
    memcpy(f->names[1], BUCKET_DICOM, sizeof(BUCKET_DICOM));
}

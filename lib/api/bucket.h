/* What services that keep objects may call: buckets of named byte streams with metadata of their
 * users. Whatever is not a volume is an object; DICOM instances are one kind, with a door of their
 * own (object.h), and the reserved bucket "dicom" shows them here:
 *
 *   names     STUDY/SERIES/INSTANCE, listed by study, series and instance: '/' comes before all
 *             other bytes there
 *   etag      digest of the data set
 *   metadata  none; the type is application/dicom
 *   put       ERR_READONLY: instances come by C-STORE and STOW-RS; reading and deleting work
 *
 * An object is replaced as a whole: who has the old one open goes on reading it. Names are UTF-8
 * without control characters and mean nothing to the store; '/' makes folders only for who lists
 * with it as the delimiter.
 *
 * An etag changes when the bytes change, and objects of the same bytes have the same one, in
 * whichever bucket: a SHA-256 over the fingerprints of the pieces into which the stream is cut. It
 * is not the SHA-256 of the bytes; compare etags with each other only.
 *
 * The daemon implements it (daemon/bucket.c); tests implement it in memory. All calls are made from
 * fibers of the partition's loop and may suspend, except where said. Callers on other threads come
 * through env_call.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BUCKETS_MAX          1000u
#define BUCKET_NAME_MAX      200u         /* bytes; letters, digits, '.', '_', '-' */
#define BUCKET_OBJECT_MAX    (8ull << 30) /* bytes of one object */
#define BUCKET_KEY_MAX       1024u        /* bytes of an object's name */
#define BUCKET_TYPE_MAX      127u         /* bytes of a content type: printable ASCII */
#define BUCKET_PAIRS_MAX     32u          /* of metadata */
#define BUCKET_PAIR_NAME_MAX 64u          /* bytes; lower-case letters, digits, '.', '_', '-' */
#define BUCKET_METADATA_MAX  2048u        /* bytes of names and values together */
#define BUCKET_ETAG          32u
#define BUCKET_PAGE_MAX      1000u

#define BUCKET_DICOM "dicom" /* the reserved one */

struct bucket_store;
struct bucket_put;    /* one object on its way in */
struct bucket_object; /* one stored object, open for reading */

struct bucket_info {
    char name[BUCKET_NAME_MAX + 1];
    bool readonly;       /* the reserved one */
    uint64_t created_ns; /* wall clock; 0 for the reserved one */
    uint64_t objects, bytes;
};

/* A pair of metadata; values are UTF-8 without control characters. */
struct bucket_pair {
    const char *name, *value;
};

/* An object, or (in a list with a delimiter) what several names have in common. */
struct bucket_entry {
    const char *name;
    bool prefix; /* the latter: nothing below is said */
    uint64_t size;
    uint64_t stored_ns; /* wall clock */
    uint8_t etag[BUCKET_ETAG];
    const char *type; /* "" when none was given */
    size_t pair_count;
    const struct bucket_pair *pairs;
};

/* A page of a list, as one allocation; free with mem_free. */
struct bucket_page {
    size_t count;
    bool more; /* go on after the last entry's name */
    struct bucket_entry entries[];
};

struct bucket_query {
    const char *bucket;
    const char *prefix;    /* NULL: all */
    const char *delimiter; /* one byte, or NULL: names that have it behind the prefix are one entry
                              each, up to its first place there */
    const char *after;     /* NULL: from the start; else entries behind this name */
    size_t limit;          /* entries; 0: BUCKET_PAGE_MAX, which is the most */
};

enum bucket_condition {
    BUCKET_ALWAYS,
    BUCKET_IF_ABSENT, /* no object has the name */
    BUCKET_IF_ETAG,   /* one has, with this etag */
};

struct bucket_put_info {
    const char *bucket, *name;
    const char *type; /* NULL: none */
    const struct bucket_pair *pairs;
    size_t pair_count;
    uint64_t size_hint; /* bytes expected; 0: unknown */
    enum bucket_condition condition;
    uint8_t etag[BUCKET_ETAG]; /* of IF_ETAG */
};

struct bucket_put_result {
    bool replaced;
    uint64_t size;
    uint8_t etag[BUCKET_ETAG];
};

struct bucket_ops {
    int (*create)(struct bucket_store *bs, const char *name);
    int (*list)(struct bucket_store *bs, struct bucket_info **ret_infos, size_t *ret_count);
    int (*stat)(struct bucket_store *bs, const char *name, struct bucket_info *ret_info);
    int (*remove)(struct bucket_store *bs, const char *name, bool with_objects);

    int (*put_begin)(struct bucket_store *bs, const struct bucket_put_info *info,
                     struct bucket_put **ret_put);
    int (*put_append)(struct bucket_put *p, const void *data, size_t len);
    int (*put_commit)(struct bucket_put *p, struct bucket_put_result *ret_result);
    void (*put_abort)(struct bucket_put *p);

    int (*open)(struct bucket_store *bs, const char *bucket, const char *name,
                struct bucket_object **ret_object);
    int (*read)(struct bucket_object *o, uint64_t off, void *buf, size_t len, size_t *ret_len);
    const struct bucket_entry *(*entry)(struct bucket_object *o);
    void (*close)(struct bucket_object *o);

    int (*page)(struct bucket_store *bs, const struct bucket_query *q,
                struct bucket_page **ret_page);
    int (*object_remove)(struct bucket_store *bs, const char *bucket, const char *name);
};

struct bucket_store {
    const struct bucket_ops *ops;
};
struct bucket_put {
    const struct bucket_ops *ops;
};
struct bucket_object {
    const struct bucket_ops *ops;
};

/* ---- Buckets --------------------------------------------------------------------------------- */

/* Makes a bucket; durable on return. ERR_NAME, ERR_EXIST, ERR_OVERLOAD past BUCKETS_MAX. */
static inline int bucket_create(struct bucket_store *bs, const char *name)
{
    return bs->ops->create(bs, name);
}

/* All buckets by name, the reserved one too: an array from mem_alloc that the caller frees. */
static inline int bucket_list(struct bucket_store *bs, struct bucket_info **ret_infos,
                              size_t *ret_count)
{
    return bs->ops->list(bs, ret_infos, ret_count);
}

/* One bucket. ERR_NOENT. */
static inline int bucket_stat(struct bucket_store *bs, const char *name,
                              struct bucket_info *ret_info)
{
    return bs->ops->stat(bs, name, ret_info);
}

/* Deletes a bucket: an empty one, or any `with_objects`. It is gone on return, durably; space comes
 * back in the background. Puts into it that are under way fail with ERR_NOENT. ERR_NOENT,
 * ERR_NOTEMPTY, ERR_READONLY. */
static inline int bucket_remove(struct bucket_store *bs, const char *name, bool with_objects)
{
    return bs->ops->remove(bs, name, with_objects);
}

/* ---- Storing --------------------------------------------------------------------------------- */

/* Begins an object. `info` is borrowed for the call. Waits while the ingest budget is taken.
 * ERR_NOENT: no such bucket; ERR_INVAL: a name, type or metadata that will not do; ERR_TOOBIG;
 * ERR_CONDITION, as far as it can be said already; ERR_NOSPC; ERR_OVERLOAD; ERR_READONLY. */
static inline int bucket_put_begin(struct bucket_store *bs, const struct bucket_put_info *info,
                                   struct bucket_put **ret_put)
{
    return bs->ops->put_begin(bs, info, ret_put);
}

/* The next bytes, copied. An error ends the put (abort it). ERR_TOOBIG, ERR_NOSPC. */
static inline int bucket_put_append(struct bucket_put *p, const void *data, size_t len)
{
    return p->ops->put_append(p, data, len);
}

/* Ends the object: on return without error it is durable and visible, in place of one of the same
 * name. Frees the put, whatever it returns. ERR_NOENT: the bucket is gone; ERR_CONDITION: it does
 * not hold at the moment at which the object would come to be; ERR_NOSPC. */
static inline int bucket_put_commit(struct bucket_put *p, struct bucket_put_result *ret_result)
{
    return p->ops->put_commit(p, ret_result);
}

/* Drops the object; nothing of it was ever visible. NULL is fine. */
static inline void bucket_put_abort(struct bucket_put *p)
{
    if (p)
        p->ops->put_abort(p);
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* Opens an object; it stays readable while open, deleted or replaced meanwhile or not. ERR_NOENT
 * (bucket or object); ERR_AGAIN while it is replaced over and over. */
static inline int bucket_open(struct bucket_store *bs, const char *bucket, const char *name,
                              struct bucket_object **ret_object)
{
    return bs->ops->open(bs, bucket, name, ret_object);
}

/* Reads up to len bytes at off; fewer only at the end. Every byte was verified. ERR_LOST, ERR_IO.
 */
static inline int bucket_read(struct bucket_object *o, uint64_t off, void *buf, size_t len,
                              size_t *ret_len)
{
    return o->ops->read(o, off, buf, len, ret_len);
}

/* What the open object is; valid until close. Does not suspend. */
static inline const struct bucket_entry *bucket_get_entry(struct bucket_object *o)
{
    return o->ops->entry(o);
}

static inline void bucket_close(struct bucket_object *o)
{
    if (o)
        o->ops->close(o);
}

/* A page of a bucket's objects in the order of their names' bytes. ERR_NOENT: no such bucket;
 * ERR_INVAL: a prefix, delimiter or limit that makes no sense. */
static inline int bucket_objects(struct bucket_store *bs, const struct bucket_query *q,
                                 struct bucket_page **ret_page)
{
    return bs->ops->page(bs, q, ret_page);
}

/* Deletes an object; durable on return. ERR_NOENT (bucket or object). */
static inline int bucket_object_remove(struct bucket_store *bs, const char *bucket,
                                       const char *name)
{
    return bs->ops->object_remove(bs, bucket, name);
}

/* The reserved bucket "dicom": instances seen as objects (lib/api/bucket.h). What is done here, the
 * study store does; only names and rows are translated. */
#include <string.h>

#include "daemon/bucket_priv.h"
#include "daemon/catalog.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define DICOM_TYPE "application/dicom"

struct dicom_object {
    struct bucket_object face; /* first */
    struct object *object;
    char name[3 * (OBJECT_UID_MAX + 1)];
    struct bucket_entry entry;
};

static const struct bucket_ops dicom_ops;

void bucket_dicom_info(struct buckets *bs, struct bucket_info *ret_info)
{
    struct partition_study_counts counts;

    studies_get_counts(bs->p->studies, &counts);
    *ret_info = (struct bucket_info){
        .name = BUCKET_DICOM, .readonly = true, .objects = counts.instances, .bytes = counts.bytes};
}

/* STUDY/SERIES/INSTANCE; the UIDs point into `name`, which is cut up. ERR_NOENT: it is no such
 * name, so there is no such object. */
static int split_name(char *name, const char *uids[3])
{
    for (unsigned i = 0; i < 3; i++) {
        char *end = strchr(name, '/');

        if ((end == NULL) != (i == 2))
            return ERR_NOENT;
        if (end)
            *end = 0;
        if (strlen(name) == 0 || strlen(name) > OBJECT_UID_MAX)
            return ERR_NOENT;
        uids[i] = name;
        name = end ? end + 1 : name;
    }
    return 0;
}

int bucket_dicom_row(struct kv_slice value, struct bucket_object_row *ret_row)
{
    struct catalog_instance *in = mem_zalloc(sizeof(*in));
    int rc = catalog_instance_decode(value, in);

    if (rc == 0) {
        *ret_row = (struct bucket_object_row){
            .size = in->bytes, .stored_ns = in->stored_ns, .type = DICOM_TYPE};
        memcpy(ret_row->etag, in->digest, BUCKET_ETAG);
    }
    mem_free(in);
    return rc;
}

int bucket_dicom_open(struct buckets *bs, const char *name, struct bucket_object **ret_object)
{
    const struct object_row *row;
    struct dicom_object *d;
    const char *uids[3];
    int rc;

    if (strlen(name) >= sizeof(d->name))
        return ERR_NOENT;
    d = mem_zalloc(sizeof(*d));
    d->face.ops = &dicom_ops;
    memcpy(d->name, name, strlen(name) + 1);
    rc = split_name(d->name, uids);
    if (rc == 0)
        rc = object_open(studies_objects(bs->p->studies), uids[0], uids[1], uids[2], &d->object);
    if (rc < 0) {
        mem_free(d);
        return rc;
    }
    memcpy(d->name, name, strlen(name) + 1);
    row = object_get_row(d->object);
    d->entry = (struct bucket_entry){
        .name = d->name, .size = row->bytes, .stored_ns = row->stored_ns, .type = DICOM_TYPE};
    memcpy(d->entry.etag, row->digest, BUCKET_ETAG);
    *ret_object = &d->face;
    return 0;
}

static int dicom_read(struct bucket_object *o, uint64_t off, void *buf, size_t len, size_t *ret_len)
{
    return object_read(((struct dicom_object *)o)->object, off, buf, len, ret_len);
}

static const struct bucket_entry *dicom_entry(struct bucket_object *o)
{
    return &((struct dicom_object *)o)->entry;
}

static void dicom_close(struct bucket_object *o)
{
    object_close(((struct dicom_object *)o)->object);
    mem_free(o);
}

/* Of an open instance; what is done to a bucket goes through bucket_ops. */
static const struct bucket_ops dicom_ops = {
    .read = dicom_read,
    .entry = dicom_entry,
    .close = dicom_close,
};

int bucket_dicom_remove(struct buckets *bs, const char *name)
{
    char copy[3 * (OBJECT_UID_MAX + 1)];
    struct object_delete_result result;
    const char *uids[3];
    int rc;

    if (strlen(name) >= sizeof(copy))
        return ERR_NOENT;
    memcpy(copy, name, strlen(name) + 1);
    rc = split_name(copy, uids);
    return rc == 0
               ? object_remove(studies_objects(bs->p->studies), uids[0], uids[1], uids[2], &result)
               : rc;
}

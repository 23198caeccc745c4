/* What object front doors (C-STORE, DICOMweb) and the admin API may call: DICOM instances.
 *
 * An instance is a DICOM Part 10 stream (PS3.10 section 7): preamble, "DICM", file meta
 * information, data set. It is kept byte for byte. Who receives a bare data set (C-STORE) puts a
 * Part 10 head in front of it; `dataset_off` of a stored instance tells where the data set begins.
 *
 * The daemon implements it (daemon/study.c); tests implement it in memory. All calls are made from
 * fibers of the partition's loop and may suspend, except where said. Callers on other threads come
 * through env_call.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OBJECT_UID_MAX      64 /* PS3.5 section 9.1 */
#define OBJECT_DIGEST       32u
#define OBJECT_INSTANCE_MAX (64ull << 30) /* bytes of one instance */
#define OBJECT_HEADER_MAX   (64u << 20)   /* bytes before Pixel Data, kept in memory while parsed */

struct object_store;
struct object_put; /* one instance on its way in */
struct object;     /* one stored instance, open for reading */

/* ---- Catalogue rows -------------------------------------------------------------------------- */

/* One attribute: its values as UTF-8 text, several joined by '\' (numbers in decimal; PN with its
 * '=' groups). A sequence (VR "SQ") is the text of its DICOM JSON "Value" array. An attribute that
 * was present and empty has len 0. */
struct object_attr {
    uint32_t tag; /* group << 16 | element */
    char vr[3];
    uint32_t len;
    const char *value; /* NUL-terminated as well */
};

/* In the order in which one lies above another. The patient's level is the catalogue's alone:
 * objects are stored by study, series and instance, and these are counted from 0. */
enum object_level { OBJECT_PATIENT = -1, OBJECT_STUDY, OBJECT_SERIES, OBJECT_INSTANCE };

/* One patient, study, series or instance. Attributes are in tag order and include those of the
 * levels above (an instance row carries its series' and study's), and the computed ones:
 * ModalitiesInStudy (0008,0061), NumberOf...Related... (0020,1206/1208/1209), TransferSyntaxUID as
 * AvailableTransferSyntaxUID (0008,3002).
 *
 * A patient is who has one Patient ID of one issuer: name, IDs, birth date and sex as its first
 * study said them, and NumberOfPatientRelatedStudies (0020,1200); no bytes and no time. Studies
 * whose Patient ID is empty, missing, longer than 256 bytes or of several values belong to no
 * patient. */
struct object_row {
    enum object_level level;
    const char *study_uid, *series_uid, *instance_uid; /* "" below the level */
    const char *sop_class_uid, *transfer_syntax_uid;   /* instances only, else "" */
    uint64_t bytes;                /* Part 10 bytes, summed at the upper levels */
    uint64_t stored_ns;            /* wall clock of the last store in it */
    uint64_t dataset_off;          /* instances only */
    uint8_t digest[OBJECT_DIGEST]; /* instances only: tells different data sets apart */
    /* Of an open instance's row: bytes up to Pixel Data, which are read without touching pixels.
     * A hint, 0 where it is not known. */
    uint64_t header_hint;
    const struct object_attr *attrs;
    size_t attr_count;
};

/* Rows as one allocation; free with mem_free. */
struct object_rows {
    size_t count;
    bool more; /* there are rows beyond the limit */
    struct object_row rows[];
};

enum object_match_kind {
    OBJECT_MATCH_EXACT, /* single value; case-insensitive for PN; any value of a multi-valued one */
    OBJECT_MATCH_WILDCARD, /* '*' and '?', PS3.4 section C.2.2.2.4 */
    OBJECT_MATCH_RANGE,    /* "a-b", "a-", "-b" on DA, TM, DT, PS3.4 section C.2.2.2.5 */
    OBJECT_MATCH_LIST,     /* '\'-separated UIDs, PS3.4 section C.2.2.2.2 */
};

struct object_match {
    uint32_t tag;
    enum object_match_kind kind;
    const char *value; /* UTF-8 */
};

/* Matches are anded. study_uid and series_uid restrict where not NULL (patients have none: they
 * must be NULL there). Rows come in a stable order; offset and limit page through it (limit 0: the
 * store's own maximum of 10000). An exact Patient ID (0010,0020) is looked up, and what other
 * patients have is not walked. */
struct object_query {
    enum object_level level;
    const char *study_uid, *series_uid, *instance_uid;
    const struct object_match *matches;
    size_t match_count;
    uint64_t offset, limit;
};

/* ---- Storing --------------------------------------------------------------------------------- */

struct object_put_info {
    uint64_t size_hint; /* Part 10 bytes expected; 0: unknown */
    /* Where not NULL, commit refuses an instance that is another: ERR_DICOM_MISMATCH. */
    const char *expect_sop_class, *expect_sop_instance, *expect_study;
};

enum object_put_outcome {
    OBJECT_STORED,    /* new */
    OBJECT_IDENTICAL, /* the same data set was stored already: nothing to do */
    OBJECT_REPLACED,  /* other content under the same UID was replaced, as the policy says */
};

struct object_put_result {
    enum object_put_outcome outcome;
    char study_uid[OBJECT_UID_MAX + 1], series_uid[OBJECT_UID_MAX + 1];
    char instance_uid[OBJECT_UID_MAX + 1], sop_class_uid[OBJECT_UID_MAX + 1];
    const char *warning; /* constant text, or NULL */
};

struct object_delete_result {
    uint64_t instances, bytes;
};

struct object_ops {
    int (*put_begin)(struct object_store *os, const struct object_put_info *info,
                     struct object_put **ret_put);
    int (*put_append)(struct object_put *p, const void *data, size_t len);
    int (*put_commit)(struct object_put *p, struct object_put_result *ret_result);
    void (*put_abort)(struct object_put *p);

    int (*open)(struct object_store *os, const char *study_uid, const char *series_uid,
                const char *instance_uid, struct object **ret_object);
    int (*read)(struct object *o, uint64_t off, void *buf, size_t len, size_t *ret_len);
    const struct object_row *(*row)(struct object *o);
    void (*close)(struct object *o);

    int (*query)(struct object_store *os, const struct object_query *q,
                 struct object_rows **ret_rows);
    int (*remove)(struct object_store *os, const char *study_uid, const char *series_uid,
                  const char *instance_uid, struct object_delete_result *ret_result);
};

struct object_store {
    const struct object_ops *ops;
};
struct object_put {
    const struct object_ops *ops;
};
struct object {
    const struct object_ops *ops;
};

/* Begins an instance. Waits while the ingest budget is taken; ERR_NOSPC when the store is full,
 * ERR_OVERLOAD past the limit of waiters. */
static inline int object_put_begin(struct object_store *os, const struct object_put_info *info,
                                   struct object_put **ret_put)
{
    return os->ops->put_begin(os, info, ret_put);
}

/* The next bytes of the Part 10 stream, copied. An error ends the put (abort it). */
static inline int object_put_append(struct object_put *p, const void *data, size_t len)
{
    return p->ops->put_append(p, data, len);
}

/* Ends the stream and stores the instance: on return without error it is durable and visible. Frees
 * the put, whatever it returns. ERR_DICOM*, ERR_CONFLICT, ERR_NOSPC, ERR_TOOBIG. */
static inline int object_put_commit(struct object_put *p, struct object_put_result *ret_result)
{
    return p->ops->put_commit(p, ret_result);
}

/* Drops the instance; nothing of it was ever visible. NULL is fine. */
static inline void object_put_abort(struct object_put *p)
{
    if (p)
        p->ops->put_abort(p);
}

/* Opens an instance; study_uid and series_uid may be NULL, otherwise they must be the instance's.
 * ERR_NOENT; ERR_AGAIN while it is being replaced over and over. It stays readable while open,
 * deleted meanwhile or not. */
static inline int object_open(struct object_store *os, const char *study_uid,
                              const char *series_uid, const char *instance_uid,
                              struct object **ret_object)
{
    return os->ops->open(os, study_uid, series_uid, instance_uid, ret_object);
}

/* Reads up to len bytes at off of the Part 10 stream; fewer only at its end. Every byte returned
 * was verified. ERR_LOST, ERR_IO. */
static inline int object_read(struct object *o, uint64_t off, void *buf, size_t len,
                              size_t *ret_len)
{
    return o->ops->read(o, off, buf, len, ret_len);
}

/* The catalogue row of an open instance; valid until close. Does not suspend. */
static inline const struct object_row *object_get_row(struct object *o)
{
    return o->ops->row(o);
}

static inline void object_close(struct object *o)
{
    if (o)
        o->ops->close(o);
}

/* The rows that match. ERR_INVAL for a match or a level that makes no sense. Suspends. */
static inline int object_query(struct object_store *os, const struct object_query *q,
                               struct object_rows **ret_rows)
{
    return os->ops->query(os, q, ret_rows);
}

/* Deletes an instance, a series (instance_uid NULL) or a study (series_uid NULL too). Durable on
 * return; space comes back in the background. ERR_NOENT. */
static inline int object_remove(struct object_store *os, const char *study_uid,
                                const char *series_uid, const char *instance_uid,
                                struct object_delete_result *ret_result)
{
    return os->ops->remove(os, study_uid, series_uid, instance_uid, ret_result);
}

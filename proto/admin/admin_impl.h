/* A call of the admin API between its three stages; internal to proto/admin. */
#pragma once

#include <jansson.h>

#include "lib/base/metric.h"
#include "lib/base/strbuf.h"
#include "proto/admin/admin_core.h"

#define ADMIN_MATCH_MAX 8u
#define ADMIN_META      "X-Filmroom-Meta-" /* headers of an object's metadata */

enum admin_kind {
    ADMIN_BAD, /* answers with error and message */
    ADMIN_STATUS,
    ADMIN_DRIVES,
    ADMIN_SCRUB_SHOW,
    ADMIN_SCRUB_BEGIN,
    ADMIN_SCRUB_END,
    ADMIN_DRIVE_ORDER,
    ADMIN_VOLUME_LIST,
    ADMIN_VOLUME_CREATE,
    ADMIN_VOLUME_SHOW,
    ADMIN_VOLUME_RESIZE,
    ADMIN_VOLUME_DELETE,
    ADMIN_SNAPSHOT_CREATE,
    ADMIN_SNAPSHOT_LIST,
    ADMIN_SNAPSHOT_DELETE,
    ADMIN_SNAPSHOT_CLONE,
    ADMIN_SNAPSHOT_ROLLBACK,
    ADMIN_PATIENT_LIST,
    ADMIN_PATIENT_SHOW,
    ADMIN_STUDY_LIST,
    ADMIN_STUDY_SHOW,
    ADMIN_STUDY_DELETE,
    ADMIN_SERIES_DELETE,
    ADMIN_STATS,
    ADMIN_METRICS,
    ADMIN_BUCKET_LIST,
    ADMIN_BUCKET_CREATE,
    ADMIN_BUCKET_SHOW,
    ADMIN_BUCKET_DELETE,
    ADMIN_OBJECT_LIST,
    ADMIN_OBJECT_SHOW,
    ADMIN_OBJECT_DELETE,
    ADMIN_OBJECT_PUT, /* these two carry an object's bytes: admin_stream.c */
    ADMIN_OBJECT_GET,
};

enum admin_range { ADMIN_ALL, ADMIN_FROM, ADMIN_LAST };

/* What a call about buckets asks and hears (admin_bucket.c). */
struct admin_object {
    char bucket[BUCKET_NAME_MAX + 1];
    char name[BUCKET_KEY_MAX + 1]; /* "": it is about the bucket */
    bool with_objects;
    char *prefix, *delimiter, *after; /* of a list; NULL: none */
    char *type;
    size_t pair_count;
    struct bucket_pair pairs[BUCKET_PAIRS_MAX]; /* the texts are the call's own */
    enum bucket_condition condition;
    uint8_t etag[BUCKET_ETAG];
    enum admin_range range; /* FROM first to last, or the LAST so many bytes */
    uint64_t first, last;
    struct bucket_info *infos;
    struct bucket_page *page;
    json_t *shown;
    struct bucket_put_result put;
};

struct admin_call {
    enum admin_kind kind;
    int error;             /* 0, or the code the answer carries */
    unsigned http_status;  /* 0: what suits the error */
    struct strbuf allow;   /* with a 405 */
    struct strbuf message; /* empty: the error's own text */

    /* What was asked. */
    char name[BLOCK_NAME_MAX + 1];
    char snapshot[BLOCK_NAME_MAX + 1], clone[BLOCK_NAME_MAX + 1];
    char (*group)[BLOCK_NAME_MAX + 1]; /* the volumes to take snapshots of */
    size_t group_count;
    char study_uid[OBJECT_UID_MAX + 1], series_uid[OBJECT_UID_MAX + 1];
    uint64_t size, offset, limit;
    bool allow_shrink;
    enum block_durability durability;
    struct admin_drive_order *order;
    struct object_match matches[ADMIN_MATCH_MAX]; /* values are the call's own */
    size_t match_count;

    /* What the engine said. */
    struct admin_status *status;
    struct admin_drive *drives;
    struct admin_scrub *scrub;
    struct block_info *volumes;                  /* one for show, create, resize, clone, rollback */
    struct object_rows *rows, *series, *studies; /* below a study, of a patient */
    struct object_delete_result deleted;
    struct admin_object *object;  /* of calls about buckets */
    struct bucket_store *buckets; /* once it runs */
    size_t count;                 /* of drives, volumes or buckets */
    json_t *stats;                /* an array of series */
    struct strbuf text;           /* metrics as text */
    unsigned drive;               /* the one that an order was about */
};

/* Makes the call fail with a sentence that tells the user what to do. */
void admin_call_fail(struct admin_call *c, int error, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* A number from an argument, at most max. */
uint64_t admin_number(struct admin_call *c, const struct admin_arg *arg, uint64_t max);

/* ---- admin_bucket.c ---- */
void admin_take_object(struct admin_call *c, const struct admin_request *r); /* from the path */
void admin_parse_bucket_delete(struct admin_call *c, const struct admin_request *r);
void admin_parse_objects(struct admin_call *c, const struct admin_request *r);
void admin_parse_object_put(struct admin_call *c, const struct admin_request *r);
void admin_parse_object_get(struct admin_call *c, const struct admin_request *r);
void admin_object_free(struct admin_object *o); /* NULL is fine */
int admin_run_bucket(struct admin_call *c, struct bucket_store *bs);
/* Puts an engine's error into words; returns it. On the loop. */
int admin_object_said(struct admin_call *c, int r);
/* The bytes that are asked for of an object's `size`; false: there are none (416). */
bool admin_object_range(const struct admin_object *o, uint64_t size, uint64_t *ret_off,
                        uint64_t *ret_len);
void admin_etag_text(const uint8_t etag[BUCKET_ETAG], char text[2 * BUCKET_ETAG + 3]);
json_t *admin_json_of_bucket(const struct admin_call *c);
json_t *admin_json_entry(const struct bucket_entry *e);
json_t *admin_json_put(const struct admin_object *o);

/* ---- admin_json.c: setters that stop where jansson fails ---- */
void admin_set(json_t *object, const char *name, json_t *value);
void admin_set_number(json_t *object, const char *name, uint64_t value);
void admin_set_text(json_t *object, const char *name, const char *text); /* made UTF-8 */
void admin_set_time(json_t *object, const char *name, uint64_t ns);
void admin_append(json_t *array, json_t *value);
/* The request's body, an object; NULL after admin_call_fail. A new reference. */
json_t *admin_body(struct admin_call *c, const struct admin_request *r);
/* Fields are taken out as they are read: fails when some are left, as they are not known. */
void admin_refuse_rest(struct admin_call *c, json_t *body);

/* Orders about drives (admin_drive.c). */
void admin_parse_drive(struct admin_call *c, const struct admin_request *r);
int admin_run_drive(struct admin_call *c, struct admin_source *a); /* suspends */

/* The answer's JSON for a call without error. A new reference. */
json_t *admin_json(const struct admin_call *c);
/* A series of metrics. A new reference. */
json_t *admin_json_series_stats(const struct metric_series *s);
json_t *admin_json_error(const char *code, const char *message);

/* A call of the admin API between its three stages; internal to proto/admin. */
#pragma once

#include <jansson.h>

#include "lib/base/metric.h"
#include "lib/base/strbuf.h"
#include "proto/admin/admin_core.h"

#define ADMIN_MATCH_MAX 8u

enum admin_kind {
    ADMIN_BAD, /* answers with error and message */
    ADMIN_STATUS,
    ADMIN_DRIVES,
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
    struct block_info *volumes;                  /* one for show, create, resize, clone, rollback */
    struct object_rows *rows, *series, *studies; /* below a study, of a patient */
    struct object_delete_result deleted;
    size_t count;       /* of drives or volumes */
    unsigned drive;     /* the one that an order was about */
    json_t *stats;      /* an array of series */
    struct strbuf text; /* metrics as text */
};

/* Makes the call fail with a sentence that tells the user what to do. */
void admin_call_fail(struct admin_call *c, int error, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

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

/* What the study store's parts share: study.c (life, opening, reading), study_put.c (ingest),
 * study_apply.c (records), study_patient.c (patients'
 * rows), study_query.c (the catalogue). */
#pragma once

#include <string.h>

#include "daemon/catalog.h"
#include "daemon/content.h"
#include "daemon/partition_priv.h"

struct studies {
    struct object_store face; /* first */
    struct partition *p;
    uint64_t studies, instances, bytes;            /* in the catalogue */
    uint64_t stored, replaced, identical, refused; /* since start */
    struct metric_hist put_time, read_time, query_time;
    struct metric_counter put_bytes, read_bytes;
};

/* Copies a UID, cut at the longest that the standard allows. */
static inline void study_copy_uid(char to[OBJECT_UID_MAX + 1], const char *from)
{
    size_t n = strnlen(from, OBJECT_UID_MAX);

    memcpy(to, from, n);
    to[n] = 0;
}

/* The patient of a study that comes or goes (study_patient.c), loaded, changed, written back. */
struct study_patient {
    bool known, exists; /* known: there is to be a row; exists: there is one */
    struct catalog_key key;
    struct catalog_patient row;
    void *value; /* bytes that the row points into; mem_free */
};

/* Loads the patient that a study with these attributes belongs to. Suspends. */
int study_patient_load(struct studies *ss, const struct catalog_attrs *study,
                       struct study_patient *ret_patient);
/* A study comes into being, or ceases to be: the patient's row and the index follow in the batch.
 * The attributes must live as long as `sp` is used. */
void study_patient_add(struct study_patient *sp, const struct catalog_attrs *attrs,
                       const char *study, struct kv_batch *batch);
void study_patient_remove(struct study_patient *sp, const struct catalog_attrs *attrs,
                          const char *study, struct kv_batch *batch);
/* Both were loaded, `before` was changed since: where they are one patient, go on from there. */
void study_patient_follow(struct study_patient *sp, const struct study_patient *before);

/* What RECORD_OBJECT_PUT says of the instance (study_apply.c encodes and decodes); its recipe
 * follows in the body. */
/* What an instance takes the place of, in its record: of another content, by the policy; of the
 * same, when that cannot be read any more. */
enum study_replace { STUDY_REPLACE_OTHER = 1, STUDY_REPLACE_SAME = 2 };

struct study_put_record {
    uint8_t replace;                  /* what may be stored under the UID, as below */
    struct catalog_instance instance; /* with its attributes */
    struct catalog_attrs study, series;
    const char *study_uid, *series_uid, *instance_uid;
};
void study_put_encode(const struct study_put_record *r, struct strbuf *out);

/* Context of a submitted RECORD_OBJECT_PUT or DELETE: what applying it found. */
struct study_apply_result {
    enum object_put_outcome outcome;
    uint64_t bytes;
};

/* The row of an instance by its UID alone. `ret_value` holds the bytes the row points into
 * (mem_free). ERR_NOENT; ERR_LOST when the index knows of it and the row is gone. Suspends. */
int study_find(struct studies *ss, const char *instance_uid, struct catalog_uids *ret_uids,
               struct catalog_instance *ret_instance, void **ret_value);

/* ERR_LOST when it is known of a stored instance that it cannot be read, or not be found: rows of
 * its study or series, its recipe, or chunks are lost. Suspends. */
int study_look_for_lost(struct studies *ss, const struct catalog_uids *home, const char *instance);

/* Brings what applying a record that stores an instance there, or one that removes (or replaces)
 * this instance, will read into the caches. Only rows that cannot be read are an error (ERR_KV,
 * ERR_FORMAT): such a record must not be submitted. Suspends. */
int study_warm_upper(struct studies *ss, const struct study_put_record *rec);
int study_warm(struct studies *ss, const char *instance);
int study_warm_delete(struct studies *ss, const struct catalog_uids *uids);

/* The totals' row changes with every record that changes the catalogue. */
void studies_put_totals(const struct studies *ss, struct kv_batch *batch);

int study_put_begin(struct object_store *os, const struct object_put_info *info,
                    struct object_put **ret_put);
int study_put_append(struct object_put *op, const void *data, size_t len);
int study_put_commit(struct object_put *op, struct object_put_result *ret_result);
void study_put_abort(struct object_put *op);

int study_query(struct object_store *os, const struct object_query *q,
                struct object_rows **ret_rows);
/* The row of one instance with all its levels' attributes, as one allocation. ERR_NOENT. Suspends.
 */
int study_instance_row(struct studies *ss, const char *study, const char *series,
                       const char *instance, struct object_rows **ret_rows);

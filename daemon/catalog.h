/* The catalogue's rows: patients, studies, series and instances as they stand in the KV store.
 *
 * KV_CATALOG: 'P' Patient ID NUL its issuer -> struct catalog_patient
 *             'T' study            -> struct catalog_study
 *             'S' study NUL series -> struct catalog_series
 *             'I' study NUL series NUL instance -> struct catalog_instance
 * KV_INDEX:   'U' instance         -> study NUL series
 *             'P' Patient ID NUL study -> empty
 * KV_RECIPE:  instance             -> the recipe (recipe.h)
 *
 * Decoded rows point into the bytes they were decoded from.
 *
 * Who is a patient. PatientID tells patients apart, and where hospitals share a store their issuers
 * do; so the two together are the key, as the catalogue has them: UTF-8, without the padding, and
 * upper and lower case are different. An absent issuer is as good as an empty one. Studies without
 * a Patient ID have no patient: they have nothing in common but that nobody said whose they are.
 * The same goes for an ID that no standard allows, of several values or over CATALOG_ID_MAX bytes
 * (LO has 64 characters, of at most 4 bytes): better in no row than in a wrong one.
 *
 * The index is about finding studies by PatientID and knows no such doubts: a study has a row under
 * each value that a query could name, cut at CATALOG_ID_MAX bytes. Whoever finds a study there
 * matches it again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/api/object.h"
#include "lib/base/codec.h"
#include "lib/base/strbuf.h"
#include "lib/kv/kv.h"

#define CATALOG_ATTRS_MAX      128u
#define CATALOG_MODALITIES_MAX 32u
#define CATALOG_DIGEST         32u
#define CATALOG_ID_MAX         256u /* bytes of a Patient ID or its issuer in a key */

#define CATALOG_TAG_PATIENT_ID 0x00100020u

struct catalog_attrs {
    size_t count;
    struct object_attr attrs[CATALOG_ATTRS_MAX];
};

struct catalog_modality {
    char name[17];
    uint32_t series;
};

struct catalog_patient {
    uint64_t studies;
    struct catalog_attrs attrs; /* name, ID, issuer, birth date, sex: as the first study had them */
};

struct catalog_study {
    uint64_t series, instances, bytes, stored_ns;
    uint32_t modality_count;
    struct catalog_modality modalities[CATALOG_MODALITIES_MAX];
    struct catalog_attrs attrs;
};

struct catalog_series {
    uint64_t instances, bytes, stored_ns;
    struct catalog_attrs attrs;
};

struct catalog_instance {
    uint64_t bytes, dataset_off, stored_ns;
    uint8_t digest[CATALOG_DIGEST]; /* of the data set */
    char sop_class[OBJECT_UID_MAX + 1], transfer_syntax[OBJECT_UID_MAX + 1];
    struct catalog_attrs attrs;
};

/* The row "studies" of KV_META. */
#define CATALOG_TOTALS_KEY  "studies"
#define CATALOG_TOTALS_SIZE 24u

struct catalog_totals {
    uint64_t studies, instances, bytes;
};
void catalog_totals_encode(const struct catalog_totals *t, uint8_t out[CATALOG_TOTALS_SIZE]);
int catalog_totals_decode(struct kv_slice value, struct catalog_totals *ret_totals);

/* Encoding appends to `out`; decoding gives ERR_FORMAT. */
void catalog_attrs_encode(const struct object_attr *attrs, size_t n, struct strbuf *out);
int catalog_attrs_decode(struct codec_reader *r, struct catalog_attrs *ret_attrs);
void catalog_patient_encode(const struct catalog_patient *p, struct strbuf *out);
int catalog_patient_decode(struct kv_slice value, struct catalog_patient *ret_patient);
void catalog_study_encode(const struct catalog_study *s, struct strbuf *out);
int catalog_study_decode(struct kv_slice value, struct catalog_study *ret_study);
void catalog_series_encode(const struct catalog_series *s, struct strbuf *out);
int catalog_series_decode(struct kv_slice value, struct catalog_series *ret_series);
void catalog_instance_encode(const struct catalog_instance *i, struct strbuf *out);
int catalog_instance_decode(struct kv_slice value, struct catalog_instance *ret_instance);

#define CATALOG_KEY_MAX \
    (1u + 2u * (CATALOG_ID_MAX + 1u)) /* that of a patient, and a NUL behind it */

/* A key of KV_CATALOG; series and instance as the level has them. Cut at their first NULL. */
struct catalog_key {
    uint8_t bytes[CATALOG_KEY_MAX];
    size_t len;
};
void catalog_key_make(struct catalog_key *k, char level, const char *study, const char *series,
                      const char *instance);
/* The first key behind all that begin with k. */
void catalog_key_after(struct catalog_key *k);
static inline struct kv_slice catalog_key_slice(const struct catalog_key *k)
{
    return (struct kv_slice){k->bytes, k->len};
}

/* The patient that a study with these attributes belongs to; false: none, and *k is as it was. */
bool catalog_patient_key(struct catalog_key *k, const struct catalog_attrs *study);
/* Whatever has this Patient ID: the beginning of patients' keys in KV_CATALOG and, with a study
 * behind it (NULL: none), of those in KV_INDEX. The ID is cut at CATALOG_ID_MAX bytes. */
void catalog_id_key(struct catalog_key *k, const char *id, size_t len, const char *study);
/* The values of a study's PatientID, one by one: the first that is not empty at `at` or behind it,
 * of *ret_len bytes. NULL at the end. Begin with catalog_patient_id, go on behind the value. */
const char *catalog_id_next(const char *at, size_t *ret_len);
/* The attribute's text; "" when there is none that could match anything. */
const char *catalog_patient_id(const struct catalog_attrs *study);

/* The NUL-separated parts of a key behind its level byte (or of a 'U' value, with level false); `n`
 * parts expected. The texts point into `store`. ERR_FORMAT. */
struct catalog_uids {
    char store[3 * (OBJECT_UID_MAX + 1)];
    const char *part[3];
};
int catalog_uids_split(struct kv_slice bytes, unsigned n, struct catalog_uids *ret_uids);

/* Counts a series in or out of a study's modalities. */
void catalog_modality_count(struct catalog_study *s, const struct catalog_series *series,
                            int delta);
/* The row of a patient whose first study has these attributes; they must outlive it. */
void catalog_patient_begin(struct catalog_patient *p, const struct catalog_attrs *study);

/* Text of an attribute; NULL when absent. */
const char *catalog_attr_text(const struct catalog_attrs *a, uint32_t tag);

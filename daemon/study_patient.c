/* Patients: their rows and the index that finds their studies, kept while records are applied.
 *
 * Both change only where a study comes or goes, in the batch of the record that makes it so, and
 * from nothing but rows: the patient's own and the study's, whose attributes never change while it
 * lives. So a study that goes says itself which patient and which index rows were its. What the
 * first study said of the patient is kept for as long as any of them is there. Who is a patient at
 * all: catalog.h.
 */
#include "daemon/study_priv.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

int study_patient_load(struct studies *ss, const struct catalog_attrs *study,
                       struct study_patient *ret_patient)
{
    struct study_patient *sp = ret_patient;
    size_t len;
    int rc;

    sp->known = catalog_patient_key(&sp->key, study);
    sp->exists = false;
    if (!sp->known)
        return 0;
    rc = kv_get(ss->p->kv, KV_CATALOG, catalog_key_slice(&sp->key), &sp->value, &len);
    if (rc == ERR_NOENT)
        return 0;
    if (rc == 0)
        rc = catalog_patient_decode((struct kv_slice){sp->value, len}, &sp->row);
    sp->exists = rc == 0;
    return rc;
}

static void put_row(const struct study_patient *sp, struct kv_batch *batch)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;

    if (sp->row.studies == 0) {
        kv_batch_delete(batch, KV_CATALOG, catalog_key_slice(&sp->key));
        return;
    }
    catalog_patient_encode(&sp->row, &row);
    kv_batch_put(batch, KV_CATALOG, catalog_key_slice(&sp->key),
                 (struct kv_slice){row.data, row.len});
}

void study_patient_add(struct study_patient *sp, const struct catalog_attrs *attrs,
                       const char *study, struct kv_batch *batch)
{
    struct catalog_key k;
    size_t len;

    for (const char *id = catalog_patient_id(attrs); (id = catalog_id_next(id, &len)); id += len) {
        catalog_id_key(&k, id, len, study);
        kv_batch_put(batch, KV_INDEX, catalog_key_slice(&k), (struct kv_slice){"", 0});
    }
    if (!sp->known)
        return;
    if (!sp->exists) {
        catalog_patient_begin(&sp->row, attrs);
        sp->exists = true;
    }
    sp->row.studies++;
    put_row(sp, batch);
}

void study_patient_remove(struct study_patient *sp, const struct catalog_attrs *attrs,
                          const char *study, struct kv_batch *batch)
{
    struct catalog_key k;
    size_t len;

    for (const char *id = catalog_patient_id(attrs); (id = catalog_id_next(id, &len)); id += len) {
        catalog_id_key(&k, id, len, study);
        kv_batch_delete(batch, KV_INDEX, catalog_key_slice(&k));
    }
    if (!sp->exists || sp->row.studies == 0)
        return; /* it has none, or metadata was lost */
    sp->row.studies--;
    sp->exists = sp->row.studies > 0;
    put_row(sp, batch);
}

void study_patient_follow(struct study_patient *sp, const struct study_patient *before)
{
    if (!sp->known || !before->known || sp->key.len != before->key.len ||
        memcmp(sp->key.bytes, before->key.bytes, sp->key.len) != 0)
        return;
    sp->exists = before->exists;
    sp->row = before->row;
}

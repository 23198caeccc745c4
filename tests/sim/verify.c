/* The whole store against the model, while nothing else is at work. What a crash left open is
 * settled here: from now on it is as it was found. */
#include "tests/sim/run.h"

#include <string.h>

#include "daemon/partition_priv.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define VERIFY_PIECE (512u * 1024)

#define TAG_PATIENT_ID       0x00100020u
#define TAG_PATIENT_STUDIES  0x00201200u
#define TAG_STUDY_SERIES     0x00201206u
#define TAG_STUDY_INSTANCES  0x00201208u
#define TAG_SERIES_INSTANCES 0x00201209u

/* ---- Volumes ---- */

static void settle_volume(struct run *r, struct model_volume *v)
{
    struct block_info info;
    int rc = block_stat(partition_blocks(r->p), v->name, &info);

    if (rc == ERR_NOENT && v->exists != MODEL_PRESENT) {
        v->exists = MODEL_ABSENT;
        model_volume_cut(&r->model, v, 0);
        return;
    }
    if (rc < 0)
        run_fail(r, "%s is gone: %s", v->name, err_name(rc));
    if (v->exists == MODEL_ABSENT)
        run_fail(r, "%s is back", v->name);
    v->exists = MODEL_PRESENT;
    if (info.size != v->size && info.size != v->other_size)
        run_fail(r, "%s has the size %llu", v->name, (unsigned long long)info.size);
    v->size = v->other_size = info.size;
    if (info.size < MODEL_BLOCKS * (uint64_t)BLOCK_SIZE)
        model_volume_cut(&r->model, v, info.size);
}

static void verify_volume(struct run *r, struct model_volume *v)
{
    struct block_volume *handle;
    uint8_t *buf = mem_alloc(VERIFY_PIECE);
    char why[300];
    uint64_t at;
    int rc = block_open(partition_blocks(r->p), v->name, &handle);

    if (rc < 0)
        run_fail(r, "verify: open %s: %s", v->name, err_name(rc));
    for (uint64_t off = 0; off < v->size;) {
        uint64_t n = v->size - off < VERIFY_PIECE ? v->size - off : VERIFY_PIECE;

        model_read_begin(&r->model, v, off, n);
        rc = block_read(handle, off, buf, n);
        if (rc == 0 && !model_read_end(&r->model, v, off, n, buf, &at, why, sizeof(why)))
            run_fail(r, "verify: wrong bytes of %s at block %llu + %llu: %s", v->name,
                     (unsigned long long)(at / BLOCK_SIZE), (unsigned long long)(at % BLOCK_SIZE),
                     why);
        if (rc < 0)
            model_read_drop(&r->model, v, off, n);
        if (rc < 0 && !client_lost(r, rc))
            run_fail(r, "verify: read %s at %llu: %s", v->name, (unsigned long long)off,
                     err_name(rc));
        off += n;
    }
    block_close(handle);
    mem_free(buf);
}

/* ---- Instances ---- */

static void verify_instance(struct run *r, unsigned index)
{
    int content, rc;

    model_instance_read_begin(&r->instances[index]);
    rc = client_read_instance(r, index, &content);
    if (client_lost(r, rc)) {
        r->instances[index].readers--;
        return;
    }
    if (rc < 0)
        run_fail(r, "verify: read of instance %u: %s", index, err_name(rc));
    if (!model_instance_read_end(&r->instances[index], content))
        run_fail(r, "verify: instance %u has content %d", index, content);
}

static uint64_t row_number(struct run *r, const struct object_row *row, uint32_t tag)
{
    uint64_t n = 0;

    for (size_t i = 0; i < row->attr_count; i++)
        if (row->attrs[i].tag == tag) {
            for (const char *p = row->attrs[i].value; *p >= '0' && *p <= '9'; p++)
                n = n * 10 + (uint64_t)(*p - '0');
            return n;
        }
    run_fail(r, "verify: a row of %s lacks a count", row->study_uid);
}

/* Instances of the model in a study (and series, or -1 for all). */
static uint64_t count_instances(const struct run *r, unsigned study, int series)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < INSTANCES; i++)
        n += instance_study_of(i) == study &&
             (series < 0 || instance_series_of(i) == (unsigned)series) &&
             model_instance_surely_present(&r->instances[i]);
    return n;
}

static void verify_level(struct run *r, enum object_level level, uint64_t want)
{
    struct object_query q = {.level = level};
    struct object_rows *rows;
    int rc = object_query(partition_objects(r->p), &q, &rows);

    if (rc < 0)
        run_fail(r, "verify: query: %s", err_name(rc));
    if (rows->count != want)
        run_fail(r, "verify: %zu rows at level %d, not %llu", rows->count, (int)level,
                 (unsigned long long)want);
    for (size_t i = 0; i < rows->count; i++) {
        const struct object_row *row = &rows->rows[i];
        char uid[OBJECT_UID_MAX + 1];

        for (unsigned s = 0; s < INSTANCE_STUDIES; s++) {
            instance_study_uid(s, uid);
            if (strcmp(row->study_uid, uid) != 0)
                continue;
            if (level == OBJECT_STUDY &&
                row_number(r, row, TAG_STUDY_INSTANCES) != count_instances(r, s, -1))
                run_fail(r, "verify: study %u counts its instances wrongly", s);
            for (unsigned e = 0; level == OBJECT_SERIES && e < INSTANCE_SERIES; e++) {
                instance_series_uid(s, e, uid);
                if (strcmp(row->series_uid, uid) == 0 &&
                    row_number(r, row, TAG_SERIES_INSTANCES) != count_instances(r, s, (int)e))
                    run_fail(r, "verify: series %u of study %u counts its instances wrongly", e, s);
            }
        }
    }
    mem_free(rows);
}

/* Studies with this Patient ID; the rows have been counted, so here it is the index that answers.
 */
static uint64_t count_studies_of(struct run *r, const char *id)
{
    struct object_match m = {TAG_PATIENT_ID, OBJECT_MATCH_EXACT, id};
    struct object_query q = {.level = OBJECT_STUDY, .matches = &m, .match_count = 1};
    struct object_rows *rows;
    uint64_t n;
    int rc = object_query(partition_objects(r->p), &q, &rows);

    if (rc < 0)
        run_fail(r, "verify: query of patient %s: %s", id, err_name(rc));
    n = rows->count;
    mem_free(rows);
    return n;
}

/* Every study has a patient, and is found by its ID. */
static void verify_patients(struct run *r, uint64_t studies)
{
    struct object_query q = {.level = OBJECT_PATIENT};
    struct object_rows *rows;
    uint64_t counted = 0;
    int rc = object_query(partition_objects(r->p), &q, &rows);

    if (rc < 0)
        run_fail(r, "verify: query of patients: %s", err_name(rc));
    for (size_t i = 0; i < rows->count; i++) {
        uint64_t n = row_number(r, &rows->rows[i], TAG_PATIENT_STUDIES);

        if (n == 0)
            run_fail(r, "verify: a patient without studies");
        counted += n;
    }
    mem_free(rows);
    if (counted != studies || count_studies_of(r, "P-1") + count_studies_of(r, "P-2") != studies)
        run_fail(r, "verify: patients have %llu studies, and there are %llu",
                 (unsigned long long)counted, (unsigned long long)studies);
}

static void verify_catalogue(struct run *r)
{
    uint64_t studies = 0, series = 0, instances = 0;
    struct partition_status s;

    for (unsigned i = 0; i < INSTANCE_STUDIES; i++) {
        uint64_t n = count_instances(r, i, -1);

        instances += n;
        studies += n > 0;
        for (unsigned e = 0; e < INSTANCE_SERIES; e++)
            series += count_instances(r, i, (int)e) > 0;
    }
    verify_level(r, OBJECT_STUDY, studies);
    verify_level(r, OBJECT_SERIES, series);
    verify_level(r, OBJECT_INSTANCE, instances);
    verify_patients(r, studies);
    partition_get_status(r->p, &s);
    if (s.studies.studies != studies || s.studies.instances != instances)
        run_fail(r, "verify: the status counts %llu studies and %llu instances, not %llu and %llu",
                 (unsigned long long)s.studies.studies, (unsigned long long)s.studies.instances,
                 (unsigned long long)studies, (unsigned long long)instances);
}

/* ---- All ---- */

static size_t verify_snaps(struct run *r, unsigned volume)
{
    size_t n = 0;

    for (unsigned i = 0; i < MODEL_SNAPS; i++) {
        struct model_volume *s = &r->model.snaps[volume][i];

        settle_volume(r, s);
        if (s->exists == MODEL_PRESENT) {
            verify_volume(r, s);
            n++;
        }
    }
    return n;
}

/* Of a group all are there or none. */
static void verify_groups(struct run *r)
{
    struct model_volume *snaps = &r->model.snaps[0][0];

    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++)
        for (unsigned j = 0; j < i; j++)
            if (snaps[i].group && snaps[i].group == snaps[j].group &&
                snaps[i].exists != snaps[j].exists)
                run_fail(r, "verify: of a group of snapshots only some are there");
    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++)
        snaps[i].group = 0;
}

void verify_all(struct run *r)
{
    struct block_info *infos;
    size_t n, want = 0, snaps = 0;
    int rc;

    for (unsigned i = 0; i < MODEL_VOLUMES; i++) {
        settle_volume(r, &r->model.volumes[i]);
        if (r->model.volumes[i].exists == MODEL_PRESENT) {
            verify_volume(r, &r->model.volumes[i]);
            want++;
        }
        snaps += verify_snaps(r, i);
    }
    verify_groups(r);
    rc = block_snapshots(partition_blocks(r->p), NULL, &infos, &n);
    if (rc < 0 || n != snaps)
        run_fail(r, "verify: %zu snapshots, not %zu: %s", n, snaps, err_name(rc));
    mem_free(infos);
    rc = block_list(partition_blocks(r->p), &infos, &n);
    if (rc < 0 || n != want)
        run_fail(r, "verify: %zu volumes, not %zu: %s", n, want, err_name(rc));
    mem_free(infos);
    for (unsigned i = 0; i < INSTANCES; i++)
        verify_instance(r, i);
    objects_verify(r);
    if (!r->beyond)
        verify_catalogue(r);
}

/* A segment that is sealed is there for something alive: of what is deleted none stays. The open
 * ones, one for each stream, have not been written in for the last time. */
static void verify_segments(struct run *r)
{
    uint64_t *ids;
    size_t n = segments_list(r->p->segments, 0, UINT64_MAX, &ids);

    for (size_t i = 0; i < n; i++) {
        const struct segment *s = segment_get(r->p->segments, ids[i]);

        if (s->state == SEGMENT_SEALED && s->chunks == 0)
            run_fail(r, "everything was deleted, and segment %llu is there, with nothing alive",
                     (unsigned long long)s->id);
    }
    mem_free(ids);
}

void verify_empty(struct run *r)
{
    struct partition_status s;

    partition_get_status(r->p, &s);
    if (s.broken || s.chunks.chunks || s.chunks.stored_bytes || s.chunks.referenced_bytes ||
        s.logical || s.volumes || s.studies.instances || s.studies.bytes || s.buckets.objects ||
        s.buckets.bytes || s.overlay_bytes)
        run_fail(
            r,
            "everything was deleted, and left are %llu chunks, %llu bytes stored, %llu logical, "
            "%llu in the overlay",
            (unsigned long long)s.chunks.chunks, (unsigned long long)s.chunks.stored_bytes,
            (unsigned long long)s.logical, (unsigned long long)s.overlay_bytes);
    if (!r->beyond)
        verify_segments(r);
}

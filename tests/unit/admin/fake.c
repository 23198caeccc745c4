/* The tables of fake.h behind the interfaces of lib/api. */
#include "tests/unit/admin/fake.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"

#define FAKE_OF(ptr, member) ((struct fake *)(void *)((char *)(ptr)-offsetof(struct fake, member)))

/* ---- Status and drives ---------------------------------------------------------------------- */

/* What the first partition holds is all there is. */
static struct admin_capacity fake_capacity(uint64_t limit, uint64_t free)
{
    return (struct admin_capacity){.limit = limit,
                                   .logical = 10ull << 30,
                                   .deduped = 5ull << 30,
                                   .stored = 2ull << 30,
                                   .physical = 3ull << 30,
                                   .reclaimable = 1ull << 30,
                                   .free = free};
}

static int fake_status(struct admin_source *a, struct admin_status *ret_status)
{
    struct fake *f = FAKE_OF(a, admin);
    struct admin_status s = {
        .version = "9.8.7",
        .uptime_ns = 93784000000000ull,
        .state = ADMIN_DEGRADED,
        .reasons = {"drive 1 is missing: reattach or replace it"},
        .reason_count = 1,
        .data_columns = 4,
        .parity_columns = 2,
        .drives = 3,
        .drives_ok = 2,
        .listeners = {{"nbd", "tcp:127.0.0.1:10809", 10809},
                      {"dicom", "tcp:127.0.0.1:11112", 11112}},
        .listener_count = 2,
        .capacity = fake_capacity(64ull << 30, 50ull << 30),
        .partitions = {{"", fake_capacity(48ull << 30, 40ull << 30), 1000, 4500},
                       {"fast", {.limit = 16ull << 30, .free = 10ull << 30}, 0, 0}},
        .partition_count = 2,
        .leaving = {3ull << 30, 250},
        .rebalance = {1ull << 30, 0},
        .work_rate = 12ull << 20,
        .journal_size = 1u << 30,
        .journal_used = 1u << 28,
        .volumes = f->volume_count,
        .studies = f->study_count,
        .instances = 12,
        .stored_instances = 12,
        .refused_conflicts = 3,
        .client_bytes = 1000,
        .drive_bytes = 4500,
        .start_ns = 1500000000ull,
        .replayed_records = 77};

    if (f->fail)
        return -(int)f->fail;
    *ret_status = s;
    return 0;
}

static int fake_drives(struct admin_source *a, struct admin_drive **ret_drives, size_t *ret_count)
{
    struct fake *f = FAKE_OF(a, admin);
    struct admin_drive *d;

    if (f->fail)
        return -(int)f->fail;
    d = mem_calloc(3, sizeof(*d));
    for (unsigned i = 0; i < 3; i++) {
        d[i].index = i;
        snprintf(d[i].path, sizeof(d[i].path), "/data/drive%u", i);
        snprintf(d[i].media, sizeof(d[i].media), "nvme");
        d[i].state = i == 1 ? ADMIN_DRIVE_MISSING : i == 2 ? ADMIN_DRIVE_SUSPECT : ADMIN_DRIVE_OK;
        d[i].reason = i == 2 ? "does not answer" : "";
        d[i].timeouts = i == 2 ? 5 : 0;
        d[i].size = 20ull << 30;
        d[i].used = (uint64_t)i << 30;
        d[i].read_errors = i == 1 ? 7 : 0;
        d[i].scrub_bytes = 1u << 20;
        d[i].scrub_found = 4;
        d[i].scrub_repaired = 3;
        d[i].scrub_unrepaired = 1;
        d[i].leaving = i == 2;
        d[i].journal = i == 0;
        d[i].work = (struct admin_work){i == 2 ? 3ull << 30 : 0, i == 2 ? 250 : 0};
    }
    *ret_drives = d;
    *ret_count = 3;
    return 0;
}

static int fake_scrub(struct admin_source *a, enum admin_scrub_order order,
                      struct admin_scrub *ret_scrub)
{
    struct fake *f = FAKE_OF(a, admin);
    const uint64_t s = 1000000000u, then = 1700000000u * s;

    if (f->fail)
        return -(int)f->fail;
    if (order == ADMIN_SCRUB_START)
        f->scrub = ADMIN_SCRUB_RUNNING;
    if (order == ADMIN_SCRUB_STOP)
        f->scrub = ADMIN_SCRUB_STOPPED;
    *ret_scrub =
        (struct admin_scrub){.phase = f->scrub,
                             .now = {.start_ns = then, .took_ns = 75 * s, .bytes = 5u << 20},
                             .percent = 40,
                             .due_ns = then + 7 * 86400 * s};
    if (f->scrub == ADMIN_SCRUB_RUNNING) {
        ret_scrub->rate = 32u << 20;
        ret_scrub->eta_ns = 3700 * s;
    }
    if (f->scrub != ADMIN_SCRUB_IDLE)
        ret_scrub->last = (struct admin_scrub_pass){.start_ns = then - 86400 * s,
                                                    .end_ns = then,
                                                    .took_ns = 3600 * s,
                                                    .bytes = 9u << 20,
                                                    .found = 5,
                                                    .repaired = 3,
                                                    .lost = 2,
                                                    .skipped = 1};
    return 0;
}

/* Drive 1 is the only one that may be removed; the others are needed. */
static int fake_drive_order(struct admin_source *a, const struct admin_drive_order *order,
                            char why[ADMIN_WHY_MAX], unsigned *ret_index)
{
    struct fake *f = FAKE_OF(a, admin);

    f->order = *order;
    if (order->verb != ADMIN_DRIVE_ADD && order->index > 2)
        return ERR_NOENT;
    if (order->verb == ADMIN_DRIVE_REMOVE && order->index != 1) {
        snprintf(why, ADMIN_WHY_MAX, "2 drives would be left: add one first");
        return ERR_PERM;
    }
    *ret_index = order->path[0] ? 3 : order->index;
    return 0;
}

static const struct admin_ops fake_admin_ops = {fake_status, fake_drives, fake_scrub,
                                                fake_drive_order};

/* ---- Volumes -------------------------------------------------------------------------------- */

static struct block_info *fake_find(struct fake *f, const char *name)
{
    for (size_t i = 0; i < f->volume_count; i++)
        if (strcmp(f->volumes[i].info.name, name) == 0)
            return &f->volumes[i].info;
    return NULL;
}

static int fake_create(struct block_store *bs, const char *name, uint64_t size,
                       enum block_durability durability)
{
    struct fake *f = FAKE_OF(bs, blocks);
    struct block_info *v;

    if (f->fail)
        return -(int)f->fail;
    if (strpbrk(name, "/ "))
        return ERR_NAME;
    if (fake_find(f, name))
        return ERR_EXIST;
    if (f->volume_count == FAKE_MAX)
        return ERR_NOSPC;
    v = &f->volumes[f->volume_count++].info;
    *v = (struct block_info){.size = size,
                             .id = f->volume_count,
                             .created_ns = 1700000000ull * 1000000000ull,
                             .durability = durability};
    snprintf(v->name, sizeof(v->name), "%s", name);
    return 0;
}

/* Snapshots are kept among the volumes; an '@' in the name tells. */
static int fake_list_some(struct fake *f, const char *prefix, struct block_info **ret_infos,
                          size_t *ret_count)
{
    struct block_info *infos;
    size_t n = 0;

    if (f->fail)
        return -(int)f->fail;
    infos = mem_calloc(f->volume_count, sizeof(*infos));
    for (size_t i = 0; i < f->volume_count; i++) {
        const char *name = f->volumes[i].info.name;

        if (prefix ? strncmp(name, prefix, strlen(prefix)) == 0 : !strchr(name, '@'))
            infos[n++] = f->volumes[i].info;
    }
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}

static int fake_list(struct block_store *bs, struct block_info **ret_infos, size_t *ret_count)
{
    return fake_list_some(FAKE_OF(bs, blocks), NULL, ret_infos, ret_count);
}

static struct block_info *fake_find_snapshot(struct fake *f, const char *name, const char *snapshot,
                                             char full[BLOCK_NAME_MAX + 1])
{
    int n = snprintf(full, BLOCK_NAME_MAX + 1, "%s@%s", name, snapshot);

    return n > (int)BLOCK_NAME_MAX ? NULL : fake_find(f, full);
}

static int fake_snapshot(struct block_store *bs, const char *const *names, size_t count,
                         const char *snapshot)
{
    struct fake *f = FAKE_OF(bs, blocks);
    char full[BLOCK_NAME_MAX + 1];

    if (f->volume_count + count > FAKE_MAX)
        return ERR_NOSPC;
    for (size_t i = 0; i < count; i++) {
        if (!fake_find(f, names[i]))
            return ERR_NOENT;
        if (fake_find_snapshot(f, names[i], snapshot, full))
            return ERR_EXIST;
        for (size_t j = 0; j < i; j++)
            if (strcmp(names[i], names[j]) == 0)
                return ERR_INVAL;
    }
    for (size_t i = 0; i < count; i++) {
        struct block_info *s = &f->volumes[f->volume_count++].info;

        *s = *fake_find(f, names[i]);
        (void)fake_find_snapshot(f, names[i], snapshot, s->name);
        s->readonly = true;
    }
    return 0;
}

static int fake_snapshots(struct block_store *bs, const char *name, struct block_info **ret_infos,
                          size_t *ret_count)
{
    struct fake *f = FAKE_OF(bs, blocks);
    char prefix[BLOCK_NAME_MAX + 2];

    if (!fake_find(f, name))
        return ERR_NOENT;
    snprintf(prefix, sizeof(prefix), "%s@", name);
    return fake_list_some(f, prefix, ret_infos, ret_count);
}

static int fake_snapshot_remove(struct block_store *bs, const char *name, const char *snapshot)
{
    struct fake *f = FAKE_OF(bs, blocks);
    char full[BLOCK_NAME_MAX + 1];
    struct block_info *s = fake_find_snapshot(f, name, snapshot, full);

    if (!s)
        return ERR_NOENT;
    *s = f->volumes[--f->volume_count].info;
    return 0;
}

static int fake_clone(struct block_store *bs, const char *name, const char *snapshot,
                      const char *new_name)
{
    char full[BLOCK_NAME_MAX + 1];
    const struct block_info *s = fake_find_snapshot(FAKE_OF(bs, blocks), name, snapshot, full);

    return s ? block_create(bs, new_name, s->size, s->durability) : ERR_NOENT;
}

static int fake_rollback(struct block_store *bs, const char *name, const char *snapshot)
{
    struct fake *f = FAKE_OF(bs, blocks);
    char full[BLOCK_NAME_MAX + 1];
    const struct block_info *s = fake_find_snapshot(f, name, snapshot, full);
    struct block_info *v = fake_find(f, name);

    if (!s || !v)
        return ERR_NOENT;
    if (v->openers)
        return ERR_BUSY;
    v->size = s->size;
    return 0;
}

static int fake_stat(struct block_store *bs, const char *name, struct block_info *ret_info)
{
    struct fake *f = FAKE_OF(bs, blocks);
    struct block_info *v = fake_find(f, name);

    if (f->fail || !v)
        return f->fail ? -(int)f->fail : ERR_NOENT;
    *ret_info = *v;
    return 0;
}

static int fake_resize(struct block_store *bs, const char *name, uint64_t size)
{
    struct block_info *v = fake_find(FAKE_OF(bs, blocks), name);

    if (!v)
        return ERR_NOENT;
    v->size = size;
    return 0;
}

static int fake_remove(struct block_store *bs, const char *name)
{
    struct fake *f = FAKE_OF(bs, blocks);
    struct block_info *v = fake_find(f, name);

    if (!v)
        return ERR_NOENT;
    if (v->openers)
        return ERR_BUSY;
    for (size_t i = 0; i < f->volume_count; i++)
        if (strncmp(f->volumes[i].info.name, name, strlen(name)) == 0 &&
            f->volumes[i].info.name[strlen(name)] == '@')
            return ERR_SNAPSHOTS;
    *v = f->volumes[--f->volume_count].info;
    return 0;
}

static const struct block_ops fake_block_ops = {.create = fake_create,
                                                .list = fake_list,
                                                .stat = fake_stat,
                                                .resize = fake_resize,
                                                .remove = fake_remove,
                                                .snapshot = fake_snapshot,
                                                .snapshots = fake_snapshots,
                                                .snapshot_remove = fake_snapshot_remove,
                                                .clone = fake_clone,
                                                .rollback = fake_rollback};

/* ---- Studies -------------------------------------------------------------------------------- */

#define FAKE_ATTRS 8u

/* Rows, then their attributes and the texts of numbers, in one allocation, as the interface wants.
 */
struct fake_more {
    struct object_attr attrs[FAKE_MAX][FAKE_ATTRS];
    char numbers[FAKE_MAX][2][12];
};

static struct object_rows *fake_rows_new(struct fake_more **ret_more)
{
    size_t rows = sizeof(struct object_rows) + FAKE_MAX * sizeof(struct object_row);
    struct object_rows *r = mem_zalloc(rows + sizeof(struct fake_more));

    *ret_more = (struct fake_more *)(void *)((char *)r + rows);
    return r;
}

static void fake_attr(struct object_row *row, struct object_attr *attrs, uint32_t tag,
                      const char *value)
{
    attrs[row->attr_count++] = (struct object_attr){
        .tag = tag, .vr = "LO", .len = (uint32_t)strlen(value), .value = value};
    row->attrs = attrs;
}

static unsigned fake_count(const struct fake *f, const char *study, unsigned *ret_instances)
{
    unsigned series = 0;

    *ret_instances = 0;
    for (size_t i = 0; i < f->series_count; i++)
        if (strcmp(f->series[i].study, study) == 0) {
            series++;
            *ret_instances += f->series[i].instances;
        }
    return series;
}

static void fake_study_row(const struct fake *f, struct object_rows *r, struct fake_more *m,
                           const struct fake_study *s)
{
    size_t n = r->count++;
    struct object_row *row = &r->rows[n];
    unsigned instances, series = fake_count(f, s->uid, &instances);

    snprintf(m->numbers[n][0], 12, "%u", series);
    snprintf(m->numbers[n][1], 12, "%u", instances);
    row->study_uid = s->uid;
    row->bytes = instances * 1000000ull;
    row->stored_ns = 1700000000ull * 1000000000ull;
    fake_attr(row, m->attrs[n], 0x00080020, s->date);
    fake_attr(row, m->attrs[n], 0x00080061, "CT\\SR");
    fake_attr(row, m->attrs[n], 0x00081030, s->description);
    fake_attr(row, m->attrs[n], 0x00100010, s->patient_name);
    fake_attr(row, m->attrs[n], 0x00100020, s->patient_id);
    fake_attr(row, m->attrs[n], 0x00201206, m->numbers[n][0]);
    fake_attr(row, m->attrs[n], 0x00201208, m->numbers[n][1]);
}

/* A patient is who has a Patient ID; nothing where an earlier study has the same. */
static void fake_patient_row(const struct fake *f, struct object_rows *r, struct fake_more *m,
                             const struct fake_study *s)
{
    size_t n = r->count;
    unsigned studies = 0;

    for (size_t i = 0; i < f->study_count; i++) {
        if (strcmp(f->studies[i].patient_id, s->patient_id) != 0)
            continue;
        if (&f->studies[i] < s)
            return;
        studies++;
    }
    r->count++;
    snprintf(m->numbers[n][0], 12, "%u", studies);
    fake_attr(&r->rows[n], m->attrs[n], 0x00100010, s->patient_name);
    fake_attr(&r->rows[n], m->attrs[n], 0x00100020, s->patient_id);
    fake_attr(&r->rows[n], m->attrs[n], 0x00100021, "HOSPITAL");
    fake_attr(&r->rows[n], m->attrs[n], 0x00100030, "19700131");
    fake_attr(&r->rows[n], m->attrs[n], 0x00100040, "F");
    fake_attr(&r->rows[n], m->attrs[n], 0x00201200, m->numbers[n][0]);
}

static void fake_series_row(struct object_rows *r, struct fake_more *m, const struct fake_series *s)
{
    size_t n = r->count++;
    struct object_row *row = &r->rows[n];

    snprintf(m->numbers[n][0], 12, "%u", s->instances);
    row->study_uid = s->study;
    row->series_uid = s->uid;
    row->bytes = s->instances * 1000000ull;
    fake_attr(row, m->attrs[n], 0x00080060, s->modality);
    fake_attr(row, m->attrs[n], 0x0008103e, s->description);
    fake_attr(row, m->attrs[n], 0x00201209, m->numbers[n][0]);
}

static void fake_remember(struct fake *f, const struct object_query *q)
{
    f->last = *q;
    if (q->match_count == 0)
        return;
    f->last_match = q->matches[0];
    snprintf(f->last_value, sizeof(f->last_value), "%s", q->matches[0].value);
}

/* Conditions are remembered, and only an exact Patient ID is obeyed. */
static bool fake_wanted(const struct fake_study *s, const struct object_query *q)
{
    if (q->study_uid && strcmp(q->study_uid, s->uid) != 0)
        return false;
    for (size_t i = 0; i < q->match_count; i++)
        if (q->matches[i].tag == 0x00100020 && q->matches[i].kind == OBJECT_MATCH_EXACT &&
            strcmp(q->matches[i].value, s->patient_id) != 0)
            return false;
    return true;
}

static int fake_query(struct object_store *os, const struct object_query *q,
                      struct object_rows **ret_rows)
{
    struct fake *f = FAKE_OF(os, objects);
    struct fake_more *m;
    struct object_rows *r;
    uint64_t skip = q->offset;

    if (f->fail)
        return -(int)f->fail;
    r = fake_rows_new(&m);
    if (q->level <= OBJECT_STUDY) {
        fake_remember(f, q);
        for (size_t i = 0; i < f->study_count; i++) {
            if (!fake_wanted(&f->studies[i], q) || (skip > 0 && skip--))
                continue;
            if (q->limit && r->count == q->limit)
                r->more = true;
            else if (q->level == OBJECT_PATIENT)
                fake_patient_row(f, r, m, &f->studies[i]);
            else
                fake_study_row(f, r, m, &f->studies[i]);
        }
    } else {
        for (size_t i = 0; i < f->series_count; i++)
            if (strcmp(f->series[i].study, q->study_uid) == 0)
                fake_series_row(r, m, &f->series[i]);
    }
    *ret_rows = r;
    return 0;
}

static int fake_object_remove(struct object_store *os, const char *study_uid,
                              const char *series_uid, const char *instance_uid,
                              struct object_delete_result *ret_result)
{
    struct fake *f = FAKE_OF(os, objects);
    struct object_delete_result result = {0, 0};
    unsigned left;

    if (instance_uid)
        return ERR_UNSUPPORTED;
    for (size_t i = 0; i < f->series_count;) {
        struct fake_series *s = &f->series[i];

        if (strcmp(s->study, study_uid) != 0 || (series_uid && strcmp(s->uid, series_uid) != 0)) {
            i++;
            continue;
        }
        result.instances += s->instances;
        result.bytes += s->instances * 1000000ull;
        memmove(s, s + 1, (--f->series_count - i) * sizeof(*s));
    }
    if (result.instances == 0)
        return ERR_NOENT;
    if (fake_count(f, study_uid, &left) == 0) /* with its last series a study is gone */
        for (size_t i = 0; i < f->study_count; i++)
            if (strcmp(f->studies[i].uid, study_uid) == 0)
                f->studies[i] = f->studies[--f->study_count];
    *ret_result = result;
    return 0;
}

static const struct object_ops fake_object_ops = {.query = fake_query,
                                                  .remove = fake_object_remove};

/* ---- All together --------------------------------------------------------------------------- */

void fake_init(struct fake *f)
{
    *f = (struct fake){
        .admin = {&fake_admin_ops}, .blocks = {&fake_block_ops}, .objects = {&fake_object_ops}};
    fake_buckets_init(&f->buckets);
    fake_create(&f->blocks, "vm1", 10ull << 30, BLOCK_EVERY_WRITE);
    f->volumes[0].info.mapped = 3ull << 30;
    fake_create(&f->blocks, "busy", 1ull << 30, BLOCK_ON_FLUSH);
    f->volumes[1].info.openers = 1;
    f->studies[0] = (struct fake_study){"1.2.3", "P1", "Doe^Jane", "20240131", "CHEST CT"};
    /* ISO 8859-1 where UTF-8 is due, and a control sequence for the terminal */
    f->studies[1] = (struct fake_study){"1.2.4", "P2", "M\xfcller", "20240201", "\033[31mred"};
    f->study_count = 2;
    f->series[0] = (struct fake_series){"1.2.3.1", "1.2.3", "CT", "axial", 7};
    f->series[1] = (struct fake_series){"1.2.3.2", "1.2.3", "SR", "report", 1};
    f->series[2] = (struct fake_series){"1.2.4.1", "1.2.4", "MR", "t1", 4};
    f->series_count = 3;
}

struct admin_backend fake_backend(struct fake *f)
{
    return (struct admin_backend){&f->admin, &f->blocks, &f->objects, &f->buckets.face, f->metrics};
}

void fake_metrics(struct fake *f)
{
    f->metrics = metrics_new();
    metric_hist_init(&f->read_time, METRIC_TIME);
    for (unsigned i = 1; i <= 100; i++)
        metric_record(&f->read_time, i * 1000000); /* 1 to 100 ms */
    metric_record(&f->batch_bytes, 20480);
    metric_add(&f->sent, 5u << 20);
    metrics_add_hist(f->metrics, "filmroom_block_seconds", "Time", METRIC_LABELS("op", "read"),
                     &f->read_time);
    metrics_add_hist(f->metrics, "filmroom_batch_bytes", "Bytes", NULL, &f->batch_bytes);
    metrics_add_counter(f->metrics, "filmroom_sent_bytes_total", "Bytes",
                        METRIC_LABELS("drive", "3"), &f->sent);
}

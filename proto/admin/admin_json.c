/* The admin API's answers as JSON: one function per resource, so that the field names of the
 * protocol are all in this file.
 *
 * jansson reports failure (out of memory, text that is not UTF-8) by NULL, which its setters pass
 * on as an error that is easy to overlook. Everything therefore goes through the three admin_set_*
 * helpers, which stop on it; text from the catalogue is made UTF-8 first.
 */
#include <string.h>
#include <time.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "proto/admin/admin_impl.h"

void admin_set(json_t *object, const char *name, json_t *value)
{
    CHECK(json_object_set_new(object, name, value) == 0);
}

void admin_set_number(json_t *object, const char *name, uint64_t value)
{
    admin_set(object, name, json_integer((json_int_t)(value & INT64_MAX)));
}

/* Text that should be UTF-8, but comes from files of others: what is not ASCII is replaced when the
 * whole is not valid. */
static json_t *admin_text(const char *text)
{
    json_t *json = json_string(text);
    char *copy;

    if (json)
        return json;
    copy = mem_strdup(text);
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    json = json_string(copy);
    mem_free(copy);
    return json;
}

void admin_set_text(json_t *object, const char *name, const char *text)
{
    admin_set(object, name, admin_text(text));
}

void admin_append(json_t *array, json_t *value)
{
    CHECK(json_array_append_new(array, value) == 0);
}

void admin_set_time(json_t *object, const char *name, uint64_t ns)
{
    time_t seconds = (time_t)(ns / 1000000000u);
    struct tm tm;
    char text[40];

    if (ns == 0 || !gmtime_r(&seconds, &tm) || !strftime(text, sizeof(text), "%FT%TZ", &tm))
        admin_set(object, name, json_null());
    else
        admin_set_text(object, name, text);
}

json_t *admin_json_error(const char *code, const char *message)
{
    json_t *json = json_object(), *error = json_object();

    admin_set_text(error, "code", code);
    admin_set_text(error, "message", message);
    admin_set(json, "error", error);
    return json;
}

/* ---- Status and drives ---------------------------------------------------------------------- */

static const char *admin_state_name(enum admin_state s)
{
    static const char *const names[] = {"ok", "degraded", "readonly", "failed"};

    CHECK((unsigned)s < 4);
    return names[s];
}

static const char *admin_drive_state_name(enum admin_drive_state s)
{
    static const char *const names[] = {"ok", "missing", "failed", "suspect"};

    CHECK((unsigned)s < 4);
    return names[s];
}

static void admin_set_capacity(json_t *json, const struct admin_capacity *c)
{
    admin_set_number(json, "limit", c->limit);
    admin_set_number(json, "logical", c->logical);
    admin_set_number(json, "deduped", c->deduped);
    admin_set_number(json, "stored", c->stored);
    admin_set_number(json, "physical", c->physical);
    admin_set_number(json, "reclaimable", c->reclaimable);
    admin_set_number(json, "free", c->free);
}

static json_t *admin_json_listeners(const struct admin_status *s)
{
    json_t *array = json_array();

    CHECK(s->listener_count <= ADMIN_LISTENERS_MAX);
    for (size_t i = 0; i < s->listener_count; i++) {
        json_t *l = json_object();

        admin_set_text(l, "name", s->listeners[i].name);
        admin_set_text(l, "addr", s->listeners[i].addr);
        admin_set_number(l, "port", s->listeners[i].port);
        admin_append(array, l);
    }
    return array;
}

static json_t *admin_json_counters(const struct admin_status *s)
{
    json_t *json = json_object();

    admin_set_number(json, "stored_instances", s->stored_instances);
    admin_set_number(json, "identical_instances", s->identical_instances);
    admin_set_number(json, "replaced_instances", s->replaced_instances);
    admin_set_number(json, "refused_conflicts", s->refused_conflicts);
    admin_set_number(json, "repaired", s->repaired);
    admin_set_number(json, "client_bytes", s->client_bytes);
    admin_set_number(json, "drive_bytes", s->drive_bytes);
    return json;
}

static json_t *admin_json_start(const struct admin_status *s)
{
    json_t *json = json_object();

    admin_set_number(json, "milliseconds", s->start_ns / 1000000u);
    admin_set_number(json, "replayed_records", s->replayed_records);
    admin_set_number(json, "replayed_bytes", s->replayed_bytes);
    return json;
}

static json_t *admin_json_work(const struct admin_work *w)
{
    json_t *json = json_object();

    admin_set_number(json, "bytes", w->bytes);
    if (w->bytes && !w->eta_s)
        admin_set(json, "eta_seconds", json_null());
    else
        admin_set_number(json, "eta_seconds", w->eta_s);
    return json;
}

static json_t *admin_json_works(const struct admin_status *s)
{
    json_t *json = json_object();

    admin_set(json, "rebuild", admin_json_work(&s->rebuild));
    admin_set(json, "leaving", admin_json_work(&s->leaving));
    admin_set(json, "rebalance", admin_json_work(&s->rebalance));
    admin_set_number(json, "rate", s->work_rate);
    return json;
}

static json_t *admin_json_partitions(const struct admin_status *s)
{
    json_t *array = json_array();

    CHECK(s->partition_count <= ADMIN_PARTITIONS_MAX);
    for (size_t i = 0; i < s->partition_count; i++) {
        json_t *json = json_object();

        admin_set_text(json, "name", s->partitions[i].name);
        admin_set_capacity(json, &s->partitions[i].capacity);
        admin_set_number(json, "client_bytes", s->partitions[i].client_bytes);
        admin_set_number(json, "drive_bytes", s->partitions[i].drive_bytes);
        admin_append(array, json);
    }
    return array;
}

static json_t *admin_json_status(const struct admin_status *s)
{
    json_t *json = json_object(), *reasons = json_array(), *journal = json_object(),
           *capacity = json_object();
    struct strbuf profile = STRBUF_INIT;

    CHECK(s->reason_count <= ADMIN_REASONS_MAX);
    for (size_t i = 0; i < s->reason_count; i++)
        admin_append(reasons, admin_text(s->reasons[i]));
    strbuf_addf(&profile, "%u+%u", s->data_columns, s->parity_columns);
    admin_set_capacity(capacity, &s->capacity);
    admin_set_number(journal, "size", s->journal_size);
    admin_set_number(journal, "used", s->journal_used);
    admin_set_text(json, "version", s->version);
    admin_set_number(json, "uptime_seconds", s->uptime_ns / 1000000000u);
    admin_set(json, "start", admin_json_start(s));
    admin_set_text(json, "state", admin_state_name(s->state));
    admin_set(json, "reasons", reasons);
    admin_set_text(json, "profile", profile.data);
    admin_set_number(json, "drives", s->drives);
    admin_set_number(json, "drives_ok", s->drives_ok);
    admin_set(json, "listeners", admin_json_listeners(s));
    admin_set(json, "capacity", capacity);
    admin_set(json, "partitions", admin_json_partitions(s));
    admin_set(json, "journal", journal);
    admin_set(json, "work", admin_json_works(s));
    admin_set_number(json, "volumes", s->volumes);
    admin_set_number(json, "studies", s->studies);
    admin_set_number(json, "instances", s->instances);
    admin_set_number(json, "buckets", s->buckets);
    admin_set_number(json, "objects", s->objects);
    admin_set_number(json, "object_bytes", s->object_bytes);
    admin_set(json, "counters", admin_json_counters(s));
    strbuf_free(&profile);
    return json;
}

static json_t *admin_json_drive_scrub(const struct admin_drive *d)
{
    json_t *json = json_object();

    admin_set_number(json, "bytes", d->scrub_bytes);
    admin_set_number(json, "found", d->scrub_found);
    admin_set_number(json, "repaired", d->scrub_repaired);
    admin_set_number(json, "unrepaired", d->scrub_unrepaired);
    return json;
}

static json_t *admin_json_drives(const struct admin_drive *drives, size_t count)
{
    json_t *json = json_object(), *array = json_array();

    for (size_t i = 0; i < count; i++) {
        json_t *d = json_object();

        admin_set_text(d, "partition", drives[i].partition);
        admin_set_number(d, "index", drives[i].index);
        admin_set_text(d, "path", drives[i].path);
        admin_set_text(d, "class", drives[i].media);
        admin_set_text(d, "state", admin_drive_state_name(drives[i].state));
        admin_set_text(d, "reason", drives[i].reason ? drives[i].reason : "");
        admin_set_number(d, "size", drives[i].size);
        admin_set_number(d, "used", drives[i].used);
        admin_set_number(d, "read_errors", drives[i].read_errors);
        admin_set_number(d, "write_errors", drives[i].write_errors);
        admin_set_number(d, "timeouts", drives[i].timeouts);
        admin_set_number(d, "repaired", drives[i].repaired);
        admin_set(d, "scrub", admin_json_drive_scrub(&drives[i]));
        admin_set(d, "journal", json_boolean(drives[i].journal));
        admin_set(d, "given_up", json_boolean(drives[i].given_up));
        admin_set(d, "leaving", json_boolean(drives[i].leaving));
        if (drives[i].leaving)
            admin_set(d, "work", admin_json_work(&drives[i].work));
        admin_append(array, d);
    }
    admin_set(json, "drives", array);
    return json;
}

/* ---- Scrub ---------------------------------------------------------------------------------- */

static json_t *admin_json_scrub_pass(const struct admin_scrub_pass *p)
{
    json_t *json = json_object();

    admin_set_time(json, "started", p->start_ns);
    admin_set_time(json, "ended", p->end_ns);
    admin_set_number(json, "seconds", p->took_ns / 1000000000u);
    admin_set_number(json, "bytes", p->bytes);
    admin_set_number(json, "found", p->found);
    admin_set_number(json, "repaired", p->repaired);
    admin_set_number(json, "lost_chunks", p->lost);
    admin_set_number(json, "skipped_segments", p->skipped);
    return json;
}

static json_t *admin_json_scrub(const struct admin_scrub *s)
{
    static const char *const phases[] = {"idle", "running", "stopped"};
    json_t *json = json_object();
    bool passing = s->phase != ADMIN_SCRUB_IDLE;

    CHECK((unsigned)s->phase < 3);
    admin_set_text(json, "state", phases[s->phase]);
    admin_set(json, "pass", passing ? admin_json_scrub_pass(&s->now) : json_null());
    admin_set(json, "percent", passing ? json_integer(s->percent) : json_null());
    admin_set_number(json, "rate", s->rate);
    admin_set(json, "seconds_left",
              s->eta_ns ? json_integer((json_int_t)(s->eta_ns / 1000000000u)) : json_null());
    admin_set_time(json, "next", s->due_ns);
    admin_set(json, "last", s->last.start_ns ? admin_json_scrub_pass(&s->last) : json_null());
    return json;
}

/* ---- Volumes -------------------------------------------------------------------------------- */

static json_t *admin_json_volume(const struct block_info *v)
{
    json_t *json = json_object();

    admin_set_text(json, "name", v->name);
    admin_set_number(json, "id", v->id);
    admin_set_number(json, "size", v->size);
    admin_set_number(json, "mapped", v->mapped);
    admin_set_time(json, "created", v->created_ns);
    admin_set_text(json, "durability",
                   v->durability == BLOCK_ON_FLUSH ? "on-flush" : "every-write");
    admin_set(json, "readonly", json_boolean(v->readonly));
    admin_set_number(json, "openers", v->openers);
    if (v->partition)
        admin_set_text(json, "partition", v->partition);
    return json;
}

static json_t *admin_json_volumes(const char *what, const struct block_info *volumes, size_t count)
{
    json_t *json = json_object(), *array = json_array();

    for (size_t i = 0; i < count; i++)
        admin_append(array, admin_json_volume(&volumes[i]));
    admin_set(json, what, array);
    return json;
}

/* The names of the snapshots just taken. */
static json_t *admin_json_taken(const struct admin_call *c)
{
    json_t *json = json_object(), *array = json_array();
    char name[2 * BLOCK_NAME_MAX + 2];

    for (size_t i = 0; i < c->group_count; i++) {
        (void)snprintf(name, sizeof(name), "%s@%s", c->group[i], c->snapshot);
        admin_append(array, json_string(name));
    }
    admin_set(json, "snapshots", array);
    return json;
}

/* ---- Studies -------------------------------------------------------------------------------- */

static const char *admin_attr(const struct object_row *row, uint32_t tag)
{
    for (size_t i = 0; i < row->attr_count; i++)
        if (row->attrs[i].tag == tag)
            return row->attrs[i].len ? row->attrs[i].value : "";
    return "";
}

/* An attribute that is a count, as text in the row. */
static uint64_t admin_attr_number(const struct object_row *row, uint32_t tag)
{
    uint64_t n = 0;

    for (const char *p = admin_attr(row, tag); *p >= '0' && *p <= '9' && n < UINT32_MAX; p++)
        n = n * 10 + (uint64_t)(*p - '0');
    return n;
}

/* Several values, as an array. */
static json_t *admin_values(const char *text)
{
    json_t *array = json_array();
    char *copy = mem_strdup(text), *rest = copy, *value;

    while ((value = strsep(&rest, "\\")) != NULL)
        if (*value)
            admin_append(array, admin_text(value));
    mem_free(copy);
    return array;
}

static json_t *admin_json_study(const struct object_row *row)
{
    json_t *json = json_object();

    admin_set_text(json, "study_uid", row->study_uid);
    admin_set_text(json, "patient_id", admin_attr(row, 0x00100020));
    admin_set_text(json, "patient_name", admin_attr(row, 0x00100010));
    admin_set_text(json, "issuer", admin_attr(row, 0x00100021));
    admin_set_text(json, "date", admin_attr(row, 0x00080020));
    admin_set_text(json, "time", admin_attr(row, 0x00080030));
    admin_set_text(json, "accession", admin_attr(row, 0x00080050));
    admin_set_text(json, "description", admin_attr(row, 0x00081030));
    admin_set(json, "modalities", admin_values(admin_attr(row, 0x00080061)));
    admin_set_number(json, "series", admin_attr_number(row, 0x00201206));
    admin_set_number(json, "instances", admin_attr_number(row, 0x00201208));
    admin_set_number(json, "bytes", row->bytes);
    admin_set_time(json, "stored", row->stored_ns);
    return json;
}

static json_t *admin_json_series(const struct object_row *row)
{
    json_t *json = json_object();

    admin_set_text(json, "series_uid", row->series_uid);
    admin_set_text(json, "modality", admin_attr(row, 0x00080060));
    admin_set_text(json, "number", admin_attr(row, 0x00200011));
    admin_set_text(json, "description", admin_attr(row, 0x0008103e));
    admin_set_number(json, "instances", admin_attr_number(row, 0x00201209));
    admin_set_number(json, "bytes", row->bytes);
    admin_set_time(json, "stored", row->stored_ns);
    return json;
}

static json_t *admin_json_patient(const struct object_row *row)
{
    json_t *json = json_object();

    admin_set_text(json, "patient_id", admin_attr(row, 0x00100020));
    admin_set_text(json, "issuer", admin_attr(row, 0x00100021));
    admin_set_text(json, "patient_name", admin_attr(row, 0x00100010));
    admin_set_text(json, "birth_date", admin_attr(row, 0x00100030));
    admin_set_text(json, "sex", admin_attr(row, 0x00100040));
    admin_set_number(json, "studies", admin_attr_number(row, 0x00201200));
    return json;
}

static json_t *admin_json_rows(const struct object_rows *rows,
                               json_t *(*one)(const struct object_row *row))
{
    json_t *array = json_array();

    for (size_t i = 0; i < rows->count; i++)
        admin_append(array, one(&rows->rows[i]));
    return array;
}

/* Whoever has the ID: one patient, or one of each issuer; and all their studies. */
static json_t *admin_json_patient_show(const struct admin_call *c)
{
    json_t *json = json_object();

    admin_set(json, "patients", admin_json_rows(c->rows, admin_json_patient));
    admin_set(json, "studies", admin_json_rows(c->studies, admin_json_study));
    admin_set(json, "studies_more", json_boolean(c->studies->more));
    return json;
}

static json_t *admin_json_list(const struct admin_call *c)
{
    json_t *json = json_object();

    if (c->kind == ADMIN_PATIENT_LIST)
        admin_set(json, "patients", admin_json_rows(c->rows, admin_json_patient));
    else
        admin_set(json, "studies", admin_json_rows(c->rows, admin_json_study));
    admin_set_number(json, "offset", c->offset);
    admin_set(json, "more", json_boolean(c->rows->more));
    return json;
}

static json_t *admin_json_study_show(const struct admin_call *c)
{
    json_t *json = admin_json_study(&c->rows->rows[0]);

    admin_set(json, "series_list", admin_json_rows(c->series, admin_json_series));
    admin_set(json, "series_more", json_boolean(c->series->more));
    return json;
}

static json_t *admin_json_deleted(const struct admin_call *c)
{
    json_t *json = json_object(), *deleted = json_object();

    if (c->kind == ADMIN_VOLUME_DELETE || c->kind == ADMIN_SNAPSHOT_DELETE) {
        admin_set_text(deleted, "name", c->name);
        if (c->kind == ADMIN_SNAPSHOT_DELETE)
            admin_set_text(deleted, "snapshot", c->snapshot);
    } else {
        admin_set_text(deleted, "study_uid", c->study_uid);
        if (c->kind == ADMIN_SERIES_DELETE)
            admin_set_text(deleted, "series_uid", c->series_uid);
        admin_set_number(deleted, "instances", c->deleted.instances);
        admin_set_number(deleted, "bytes", c->deleted.bytes);
    }
    admin_set(json, "deleted", deleted);
    return json;
}

/* ---- Metrics ---- */

json_t *admin_json_series_stats(const struct metric_series *s)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    static const struct {
        const char *name;
        unsigned permille;
    } points[] = {{"p50", 500}, {"p90", 900}, {"p99", 990}, {"p999", 999}, {"max", 1000}};
    json_t *json = json_object(), *labels = json_object();

    admin_set_text(json, "name", s->name);
    for (size_t i = 0; s->labels[i]; i += 2)
        admin_set_text(labels, s->labels[i], s->labels[i + 1]);
    admin_set(json, "labels", labels);
    admin_set_text(json, "kind", kinds[s->kind]);
    admin_set_text(json, "unit", s->unit == METRIC_TIME ? "ns" : "");
    if (s->kind != METRIC_HIST) {
        admin_set_number(json, "value", s->value);
        return json;
    }
    admin_set_number(json, "count", metric_hist_count(s->hist));
    admin_set_number(json, "sum", atomic_load_explicit(&s->hist->sum, memory_order_relaxed));
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
        admin_set_number(json, points[i].name, metric_hist_percentile(s->hist, points[i].permille));
    return json;
}

static json_t *admin_json_stats(const struct admin_call *c)
{
    json_t *json = json_object();

    admin_set(json, "metrics", json_incref(c->stats));
    return json;
}

static json_t *admin_json_order(const struct admin_call *c)
{
    json_t *json = json_object();

    admin_set_number(json, "drive", c->drive);
    return json;
}

json_t *admin_json(const struct admin_call *c)
{
    switch (c->kind) {
    case ADMIN_STATUS:
        return admin_json_status(c->status);
    case ADMIN_DRIVES:
        return admin_json_drives(c->drives, c->count);
    case ADMIN_SCRUB_SHOW:
    case ADMIN_SCRUB_BEGIN:
    case ADMIN_SCRUB_END:
        return admin_json_scrub(c->scrub);
    case ADMIN_DRIVE_ORDER:
        return admin_json_order(c);
    case ADMIN_VOLUME_LIST:
        return admin_json_volumes("volumes", c->volumes, c->count);
    case ADMIN_SNAPSHOT_LIST:
        return admin_json_volumes("snapshots", c->volumes, c->count);
    case ADMIN_SNAPSHOT_CREATE:
        return admin_json_taken(c);
    case ADMIN_SNAPSHOT_CLONE:
    case ADMIN_SNAPSHOT_ROLLBACK:
    case ADMIN_VOLUME_CREATE:
    case ADMIN_VOLUME_SHOW:
    case ADMIN_VOLUME_RESIZE:
        return admin_json_volume(c->volumes);
    case ADMIN_PATIENT_LIST:
    case ADMIN_STUDY_LIST:
        return admin_json_list(c);
    case ADMIN_PATIENT_SHOW:
        return admin_json_patient_show(c);
    case ADMIN_STUDY_SHOW:
        return admin_json_study_show(c);
    case ADMIN_VOLUME_DELETE:
    case ADMIN_SNAPSHOT_DELETE:
    case ADMIN_STUDY_DELETE:
    case ADMIN_SERIES_DELETE:
        return admin_json_deleted(c);
    case ADMIN_STATS:
        return admin_json_stats(c);
    case ADMIN_BUCKET_LIST:
    case ADMIN_BUCKET_CREATE:
    case ADMIN_BUCKET_SHOW:
    case ADMIN_BUCKET_DELETE:
    case ADMIN_OBJECT_LIST:
    case ADMIN_OBJECT_SHOW:
    case ADMIN_OBJECT_DELETE:
    case ADMIN_OBJECT_PUT:
        return admin_json_of_bucket(c);
    case ADMIN_OBJECT_GET:
    case ADMIN_METRICS: /* are not JSON */
    case ADMIN_BAD:
        break;
    }
    return NULL;
}

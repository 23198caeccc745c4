/* The admin API's requests: which path and method mean what, their arguments and bodies, and the
 * calls on the engine. The answers' JSON is made in admin_json.c. See admin_core.h.
 */
#include "proto/admin/admin_core.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/net/httpd.h"
#include "proto/admin/admin_impl.h"

void admin_call_fail(struct admin_call *c, int error, const char *fmt, ...)
{
    va_list ap;

    c->error = error;
    strbuf_reset(&c->message);
    va_start(ap, fmt);
    strbuf_addvf(&c->message, fmt, ap);
    va_end(ap);
}

/* ---- Bodies --------------------------------------------------------------------------------- */

/* A whole number of bytes from a body's field, which is taken out of the object. */
static void admin_take_size(struct admin_call *c, json_t *body, const char *field)
{
    json_t *v = json_object_get(body, field);

    if (c->error)
        return;
    if (!v)
        admin_call_fail(c, ERR_INVAL, "the field \"%s\" is missing: a number of bytes", field);
    else if (!json_is_integer(v) || json_integer_value(v) <= 0)
        admin_call_fail(c, ERR_INVAL, "\"%s\" must be a whole number of bytes above 0", field);
    else
        c->size = (uint64_t)json_integer_value(v);
    json_object_del(body, field);
    if (!c->error && (c->size % BLOCK_SIZE != 0 || c->size > BLOCK_VOLUME_MAX))
        admin_call_fail(c, ERR_RANGE, "\"%s\" must be a multiple of %u bytes and at most %llu",
                        field, BLOCK_SIZE, (unsigned long long)BLOCK_VOLUME_MAX);
}

static void admin_take_name(struct admin_call *c, json_t *body)
{
    const char *name = json_string_value(json_object_get(body, "name"));

    if (c->error)
        return;
    if (!name)
        admin_call_fail(c, ERR_INVAL, "the field \"name\" is missing");
    else if (!*name || strlen(name) > BLOCK_NAME_MAX)
        c->error = ERR_NAME;
    else
        memcpy(c->name, name, strlen(name) + 1);
    json_object_del(body, "name");
}

static void admin_take_durability(struct admin_call *c, json_t *body)
{
    json_t *v = json_object_get(body, "durability");
    const char *text = json_string_value(v);

    if (c->error || !v)
        return;
    if (text && strcmp(text, "every-write") == 0)
        c->durability = BLOCK_EVERY_WRITE;
    else if (text && strcmp(text, "on-flush") == 0)
        c->durability = BLOCK_ON_FLUSH;
    else
        admin_call_fail(c, ERR_INVAL, "\"durability\" must be \"every-write\" or \"on-flush\"");
    json_object_del(body, "durability");
}

static void admin_take_allow_shrink(struct admin_call *c, json_t *body)
{
    json_t *v = json_object_get(body, "allow_shrink");

    if (c->error || !v)
        return;
    if (!json_is_boolean(v))
        admin_call_fail(c, ERR_INVAL, "\"allow_shrink\" must be true or false");
    c->allow_shrink = json_is_true(v);
    json_object_del(body, "allow_shrink");
}

/* Fields are taken out as they are read, so what is left is unknown. Refusing it catches the typing
 * error that would otherwise silently mean a default. */
void admin_refuse_rest(struct admin_call *c, json_t *body)
{
    void *it = json_object_iter(body);

    if (!c->error && it)
        admin_call_fail(c, ERR_INVAL, "the field \"%.100s\" is not known here",
                        json_object_iter_key(it));
}

json_t *admin_body(struct admin_call *c, const struct admin_request *r)
{
    json_error_t error;
    json_t *body = NULL;

    if (r->body_len > ADMIN_BODY_MAX)
        admin_call_fail(c, ERR_TOOBIG, "the body is longer than %u bytes", ADMIN_BODY_MAX);
    else
        body = json_loadb(r->body ? r->body : "", r->body_len, JSON_REJECT_DUPLICATES, &error);
    if (c->error)
        return NULL;
    if (!body)
        admin_call_fail(c, ERR_INVAL, "the body is not JSON: %s, line %d", error.text, error.line);
    else if (!json_is_object(body))
        admin_call_fail(c, ERR_INVAL, "the body must be a JSON object");
    if (c->error) {
        json_decref(body);
        return NULL;
    }
    return body;
}

static void admin_parse_create(struct admin_call *c, const struct admin_request *r)
{
    json_t *body = admin_body(c, r);

    if (!body)
        return;
    admin_take_name(c, body);
    admin_take_size(c, body, "size");
    admin_take_durability(c, body);
    admin_refuse_rest(c, body);
    json_decref(body);
}

static void admin_parse_resize(struct admin_call *c, const struct admin_request *r)
{
    json_t *body = admin_body(c, r);

    if (!body)
        return;
    admin_take_size(c, body, "size");
    admin_take_allow_shrink(c, body);
    admin_refuse_rest(c, body);
    json_decref(body);
}

static void admin_take_group(struct admin_call *c, json_t *body)
{
    json_t *volumes = json_object_get(body, "volumes"), *v;
    size_t n = json_array_size(volumes), i;

    if (c->error)
        return;
    if (n == 0 || n > BLOCK_GROUP_MAX) {
        admin_call_fail(c, ERR_INVAL, "\"volumes\" must be a list of 1 to %u names",
                        BLOCK_GROUP_MAX);
        return;
    }
    c->group = mem_calloc(n, sizeof(c->group[0]));
    json_array_foreach(volumes, i, v)
    {
        const char *name = json_string_value(v);

        if (!name || !*name || strlen(name) > BLOCK_NAME_MAX)
            c->error = ERR_NAME;
        else
            memcpy(c->group[c->group_count++], name, strlen(name) + 1);
    }
    json_object_del(body, "volumes");
}

static void admin_parse_snapshot(struct admin_call *c, const struct admin_request *r)
{
    json_t *body = admin_body(c, r);

    if (!body)
        return;
    admin_take_name(c, body);
    memcpy(c->snapshot, c->name, sizeof(c->snapshot));
    admin_take_group(c, body);
    admin_refuse_rest(c, body);
    json_decref(body);
}

static void admin_parse_clone(struct admin_call *c, const struct admin_request *r)
{
    char of[BLOCK_NAME_MAX + 1];
    json_t *body = admin_body(c, r);

    if (!body)
        return;
    memcpy(of, c->name, sizeof(of));
    admin_take_name(c, body);
    memcpy(c->clone, c->name, sizeof(c->clone));
    memcpy(c->name, of, sizeof(of));
    admin_refuse_rest(c, body);
    json_decref(body);
}

/* ---- Queries of studies and patients -------------------------------------------------------- */

#define ADMIN_TAG_PATIENT_ID 0x00100020u

static const struct admin_filter {
    const char *name;
    uint32_t tag;
    enum object_match_kind kind; /* EXACT turns into WILDCARD where the value has a '*' or '?' */
    bool of_patient;             /* patients have it as well */
} admin_filters[] = {
    {"patient", ADMIN_TAG_PATIENT_ID, OBJECT_MATCH_EXACT, true},
    {"name", 0x00100010, OBJECT_MATCH_EXACT, true},       /* Patient's Name */
    {"date", 0x00080020, OBJECT_MATCH_RANGE, false},      /* Study Date */
    {"modality", 0x00080061, OBJECT_MATCH_EXACT, false},  /* Modalities in Study */
    {"accession", 0x00080050, OBJECT_MATCH_EXACT, false}, /* Accession Number */
};

static bool admin_add_match(struct admin_call *c, const struct admin_arg *arg)
{
    for (size_t i = 0; i < sizeof(admin_filters) / sizeof(admin_filters[0]); i++) {
        const struct admin_filter *f = &admin_filters[i];
        struct object_match *m = &c->matches[c->match_count];

        if (strcmp(arg->name, f->name) != 0 || (c->kind == ADMIN_PATIENT_LIST && !f->of_patient))
            continue;
        if (c->match_count == ADMIN_MATCH_MAX) {
            admin_call_fail(c, ERR_INVAL, "too many conditions, at most %u", ADMIN_MATCH_MAX);
            return true;
        }
        m->tag = f->tag;
        m->kind = f->kind;
        if (m->kind == OBJECT_MATCH_EXACT && strpbrk(arg->value, "*?"))
            m->kind = OBJECT_MATCH_WILDCARD;
        if (m->kind == OBJECT_MATCH_RANGE && !strchr(arg->value, '-'))
            m->kind = OBJECT_MATCH_EXACT;
        m->value = mem_strdup(arg->value);
        c->match_count++;
        return true;
    }
    return false;
}

uint64_t admin_number(struct admin_call *c, const struct admin_arg *arg, uint64_t max)
{
    uint64_t n = 0;

    for (const char *p = arg->value; *p; p++) {
        if (*p < '0' || *p > '9' || n > max) {
            n = max + 1;
            break;
        }
        n = n * 10 + (uint64_t)(*p - '0');
    }
    if (!*arg->value || n > max)
        admin_call_fail(c, ERR_INVAL, "\"%s\" must be a number from 0 to %llu", arg->name,
                        (unsigned long long)max);
    return n;
}

static void admin_parse_list(struct admin_call *c, const struct admin_request *r)
{
    c->limit = ADMIN_STUDIES_DEFAULT;
    for (size_t i = 0; i < r->arg_count && !c->error; i++) {
        const struct admin_arg *arg = &r->args[i];

        if (strcmp(arg->name, "limit") == 0)
            c->limit = admin_number(c, arg, ADMIN_STUDIES_MAX);
        else if (strcmp(arg->name, "offset") == 0)
            c->offset = admin_number(c, arg, UINT32_MAX);
        else if (!admin_add_match(c, arg))
            admin_call_fail(c, ERR_INVAL, "the argument \"%.100s\" is not known here", arg->name);
    }
    if (!c->error && c->limit == 0)
        admin_call_fail(c, ERR_INVAL, "\"limit\" must be from 1 to %u", ADMIN_STUDIES_MAX);
}

/* The ID is taken as it stands: '*' and '?' may well be part of one. */
static void admin_parse_patient(struct admin_call *c, const struct admin_request *r)
{
    const char *id = r->segments[2];

    if (r->arg_count > 0)
        admin_call_fail(c, ERR_INVAL, "the argument \"%.100s\" is not known here", r->args[0].name);
    else if (!*id || strcmp(id, "*") == 0) /* as a match either would mean any patient */
        admin_call_fail(c, ERR_INVAL, "\"%s\" is not a Patient ID: see the list of patients", id);
    if (c->error)
        return;
    c->matches[c->match_count++] =
        (struct object_match){ADMIN_TAG_PATIENT_ID, OBJECT_MATCH_EXACT, mem_strdup(id)};
}

/* ---- Routes --------------------------------------------------------------------------------- */

static void admin_parse_bucket_create(struct admin_call *c, const struct admin_request *r)
{
    json_t *body = admin_body(c, r);

    if (!body)
        return;
    admin_take_name(c, body);
    c->object = mem_zalloc(sizeof(*c->object));
    memcpy(c->object->bucket, c->name, sizeof(c->object->bucket));
    admin_refuse_rest(c, body);
    json_decref(body);
}

static void admin_parse_buckets(struct admin_call *c, const struct admin_request *r)
{
    c->object = mem_zalloc(sizeof(*c->object));
    if (r->arg_count > 0)
        admin_call_fail(c, ERR_INVAL, "the argument \"%.100s\" is not known here", r->args[0].name);
}

/* A path pattern: "*" stands for a name that goes to `name`, `snapshot` or the UIDs, in order, "**"
 * at the end for one or more segments. */
static const struct admin_route {
    const char *path[6];
    const char *method;
    enum admin_kind kind;
    void (*parse)(struct admin_call *c, const struct admin_request *r);
} admin_routes[] = {
    {{"metrics"}, "GET", ADMIN_METRICS, NULL},
    {{"v1", "stats"}, "GET", ADMIN_STATS, NULL},
    {{"v1", "status"}, "GET", ADMIN_STATUS, NULL},
    {{"v1", "drives"}, "GET", ADMIN_DRIVES, NULL},
    {{"v1", "scrub"}, "GET", ADMIN_SCRUB_SHOW, NULL},
    {{"v1", "scrub", "start"}, "POST", ADMIN_SCRUB_BEGIN, NULL},
    {{"v1", "scrub", "stop"}, "POST", ADMIN_SCRUB_END, NULL},
    {{"v1", "drives"}, "POST", ADMIN_DRIVE_ORDER, admin_parse_drive},
    {{"v1", "drives", "*"}, "PATCH", ADMIN_DRIVE_ORDER, admin_parse_drive},
    {{"v1", "drives", "*", "*"}, "POST", ADMIN_DRIVE_ORDER, admin_parse_drive},
    {{"v1", "volumes"}, "GET", ADMIN_VOLUME_LIST, NULL},
    {{"v1", "volumes"}, "POST", ADMIN_VOLUME_CREATE, admin_parse_create},
    {{"v1", "volumes", "*"}, "GET", ADMIN_VOLUME_SHOW, NULL},
    {{"v1", "volumes", "*"}, "PATCH", ADMIN_VOLUME_RESIZE, admin_parse_resize},
    {{"v1", "volumes", "*"}, "DELETE", ADMIN_VOLUME_DELETE, NULL},
    {{"v1", "snapshots"}, "POST", ADMIN_SNAPSHOT_CREATE, admin_parse_snapshot},
    {{"v1", "volumes", "*", "snapshots"}, "GET", ADMIN_SNAPSHOT_LIST, NULL},
    {{"v1", "volumes", "*", "snapshots", "*"}, "DELETE", ADMIN_SNAPSHOT_DELETE, NULL},
    {{"v1", "volumes", "*", "snapshots", "*", "clone"},
     "POST",
     ADMIN_SNAPSHOT_CLONE,
     admin_parse_clone},
    {{"v1", "volumes", "*", "snapshots", "*", "rollback"}, "POST", ADMIN_SNAPSHOT_ROLLBACK, NULL},
    {{"v1", "patients"}, "GET", ADMIN_PATIENT_LIST, admin_parse_list},
    {{"v1", "patients", "*"}, "GET", ADMIN_PATIENT_SHOW, admin_parse_patient},
    {{"v1", "studies"}, "GET", ADMIN_STUDY_LIST, admin_parse_list},
    {{"v1", "studies", "*"}, "GET", ADMIN_STUDY_SHOW, NULL},
    {{"v1", "studies", "*"}, "DELETE", ADMIN_STUDY_DELETE, NULL},
    {{"v1", "studies", "*", "series", "*"}, "DELETE", ADMIN_SERIES_DELETE, NULL},
    {{"v1", "buckets"}, "GET", ADMIN_BUCKET_LIST, admin_parse_buckets},
    {{"v1", "buckets"}, "POST", ADMIN_BUCKET_CREATE, admin_parse_bucket_create},
    {{"v1", "buckets", "*"}, "GET", ADMIN_BUCKET_SHOW, NULL},
    {{"v1", "buckets", "*"}, "DELETE", ADMIN_BUCKET_DELETE, admin_parse_bucket_delete},
    {{"v1", "buckets", "*", "objects"}, "GET", ADMIN_OBJECT_LIST, admin_parse_objects},
    {{"v1", "buckets", "*", "objects", "**"}, "PUT", ADMIN_OBJECT_PUT, admin_parse_object_put},
    {{"v1", "buckets", "*", "objects", "**"}, "GET", ADMIN_OBJECT_GET, admin_parse_object_get},
    {{"v1", "buckets", "*", "objects", "**"}, "DELETE", ADMIN_OBJECT_DELETE, NULL},
};
#define ADMIN_ROUTES (sizeof(admin_routes) / sizeof(admin_routes[0]))

static bool admin_path_matches(const struct admin_route *route, const struct admin_request *r)
{
    size_t n = 0;

    for (; n < 6 && route->path[n]; n++) {
        if (strcmp(route->path[n], "**") == 0)
            return r->segment_count > n;
        if (n >= r->segment_count ||
            (route->path[n][0] != '*' && strcmp(route->path[n], r->segments[n]) != 0))
            return false;
    }
    return n == r->segment_count;
}

/* The methods of the path, joined; empty when there is no such path. */
static void admin_allow(struct admin_call *c, const struct admin_request *r)
{
    for (size_t i = 0; i < ADMIN_ROUTES; i++)
        if (admin_path_matches(&admin_routes[i], r)) {
            strbuf_adds(&c->allow, c->allow.len ? ", " : "");
            strbuf_adds(&c->allow, admin_routes[i].method);
        }
}

static void admin_take_uid(struct admin_call *c, const char *text, char uid[OBJECT_UID_MAX + 1])
{
    size_t n = strlen(text);

    if (n == 0 || n > OBJECT_UID_MAX || strspn(text, "0123456789.") != n) {
        admin_call_fail(c, ERR_INVAL, "\"%.80s\" is not a DICOM UID: digits and dots, at most %u",
                        text, OBJECT_UID_MAX);
        return;
    }
    memcpy(uid, text, n + 1);
}

static void admin_set_name(struct admin_call *c, char name[BLOCK_NAME_MAX + 1], const char *text)
{
    size_t n = strlen(text);

    if (n == 0 || n > BLOCK_NAME_MAX)
        c->error = ERR_NAME;
    else
        memcpy(name, text, n + 1);
}

static void admin_take_path(struct admin_call *c, const struct admin_request *r)
{
    if (r->segment_count >= 3 && strcmp(r->segments[1], "studies") == 0) {
        admin_take_uid(c, r->segments[2], c->study_uid);
        if (r->segment_count >= 5 && !c->error)
            admin_take_uid(c, r->segments[4], c->series_uid);
    } else if (r->segment_count >= 3 && strcmp(r->segments[1], "volumes") == 0) {
        admin_set_name(c, c->name, r->segments[2]);
        if (r->segment_count >= 5)
            admin_set_name(c, c->snapshot, r->segments[4]);
    } else if (r->segment_count >= 3 && strcmp(r->segments[1], "buckets") == 0) {
        admin_take_object(c, r);
    }
}

static void admin_no_route(struct admin_call *c, const struct admin_request *r)
{
    admin_allow(c, r);
    if (c->allow.len) {
        c->http_status = 405;
        admin_call_fail(c, ERR_UNSUPPORTED, "this resource has %s only", c->allow.data);
    } else {
        admin_call_fail(c, ERR_NOENT, "no such resource: the API begins at /v1/status");
    }
}

static void admin_parse(struct admin_call *c, const struct admin_request *r)
{
    const char *method = strcmp(r->method, "HEAD") == 0 ? "GET" : r->method;

    for (size_t i = 0; i < ADMIN_ROUTES; i++) {
        const struct admin_route *route = &admin_routes[i];

        if (strcmp(route->method, method) != 0 || !admin_path_matches(route, r))
            continue;
        c->kind = route->kind;
        admin_take_path(c, r);
        if (!c->error && route->parse)
            route->parse(c, r);
        else if (!c->error && r->arg_count > 0)
            admin_call_fail(c, ERR_INVAL, "the argument \"%.100s\" is not known here",
                            r->args[0].name);
        return;
    }
    admin_no_route(c, r);
}

struct admin_call *admin_call_new(const struct admin_request *request)
{
    struct admin_call *c = mem_zalloc(sizeof(*c));

    c->message.max = 1024;
    admin_parse(c, request);
    return c;
}

bool admin_call_streams(const struct admin_call *c)
{
    return c->kind == ADMIN_OBJECT_PUT || c->kind == ADMIN_OBJECT_GET;
}

void admin_call_free(struct admin_call *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->match_count; i++)
        mem_free((void *)(uintptr_t)c->matches[i].value);
    strbuf_free(&c->message);
    strbuf_free(&c->allow);
    strbuf_free(&c->text);
    json_decref(c->stats);
    mem_free(c->status);
    mem_free(c->drives);
    mem_free(c->scrub);
    mem_free(c->order);
    mem_free(c->volumes);
    mem_free(c->group);
    mem_free(c->rows);
    mem_free(c->series);
    mem_free(c->studies);
    admin_object_free(c->object);
    mem_free(c);
}

/* ---- Asking the engine ---------------------------------------------------------------------- */

static int admin_run_status(struct admin_call *c, struct admin_source *a)
{
    if (c->kind == ADMIN_DRIVES)
        return admin_get_drives(a, &c->drives, &c->count);
    c->status = mem_zalloc(sizeof(*c->status));
    return admin_get_status(a, c->status);
}

static int admin_run_scrub(struct admin_call *c, struct admin_source *a)
{
    c->scrub = mem_zalloc(sizeof(*c->scrub));
    return admin_scrub(a,
                       c->kind == ADMIN_SCRUB_BEGIN ? ADMIN_SCRUB_START
                       : c->kind == ADMIN_SCRUB_END ? ADMIN_SCRUB_STOP
                                                    : ADMIN_SCRUB_LOOK,
                       c->scrub);
}

static void admin_add_series(void *arg, const struct metric_series *s)
{
    CHECK(json_array_append_new(arg, admin_json_series_stats(s)) == 0);
}

/* Does not suspend, so that all numbers are of one moment. */
static int admin_run_metrics(struct admin_call *c, struct metrics *m)
{
    if (c->kind == ADMIN_METRICS) {
        metrics_text(m, &c->text);
    } else {
        c->stats = json_array();
        CHECK(c->stats != NULL);
        metrics_visit(m, admin_add_series, c->stats);
    }
    return 0;
}

static int admin_no_volume(struct admin_call *c, int r)
{
    if (r == ERR_NOENT)
        admin_call_fail(c, r, "no volume \"%.200s\"", c->name);
    return r;
}

/* The same where a snapshot may have been named, which is deleted as one and never changes. */
static int admin_no_snapshot(struct admin_call *c, int r)
{
    if (r == ERR_READONLY)
        admin_call_fail(c, r,
                        "\"%.200s\" is a snapshot: it keeps its size, and is deleted by filmroom "
                        "volume snapshot-delete NAME SNAP",
                        c->name);
    return admin_no_volume(c, r);
}

static int admin_run_show(struct admin_call *c, struct block_store *bs)
{
    c->volumes = mem_zalloc(sizeof(*c->volumes));
    c->count = 1;
    return admin_no_volume(c, block_stat(bs, c->name, c->volumes));
}

static int admin_run_create(struct admin_call *c, struct block_store *bs)
{
    int r = block_create(bs, c->name, c->size, c->durability);

    if (r == ERR_EXIST)
        admin_call_fail(c, r, "a volume \"%.200s\" exists already", c->name);
    return r < 0 ? r : admin_run_show(c, bs);
}

/* The size may change between the look and the resize, by another admin; then the one who comes
 * second has answered the question for a size that was true a moment ago. */
static int admin_run_resize(struct admin_call *c, struct block_store *bs)
{
    struct block_info before;
    int r = admin_no_volume(c, block_stat(bs, c->name, &before));

    if (r < 0)
        return r;
    if (c->size < before.size && !c->allow_shrink) {
        admin_call_fail(
            c, ERR_PERM,
            "the volume would shrink from %llu to %llu bytes and lose what lies beyond: "
            "allow it if that is meant (filmroom volume resize --shrink, \"allow_shrink\" in the "
            "API)",
            (unsigned long long)before.size, (unsigned long long)c->size);
        return c->error;
    }
    r = admin_no_snapshot(c, block_resize(bs, c->name, c->size));
    return r < 0 ? r : admin_run_show(c, bs);
}

static int admin_run_delete(struct admin_call *c, struct block_store *bs)
{
    int r = admin_no_snapshot(c, block_remove(bs, c->name));

    if (r == ERR_BUSY)
        admin_call_fail(c, r, "the volume \"%.200s\" is in use: disconnect its clients first",
                        c->name);
    if (r == ERR_SNAPSHOTS)
        admin_call_fail(c, r, "the volume \"%.200s\" has snapshots: delete them first", c->name);
    return r;
}

/* What the engine says of a snapshot, in words. */
static int admin_snapshot_said(struct admin_call *c, int r)
{
    if (r == ERR_NOENT)
        admin_call_fail(c, r, "no snapshot \"%.200s\" of a volume \"%.200s\"", c->snapshot,
                        c->name);
    return r;
}

/* Names the first volume of the group that is not there. */
static void admin_no_member(struct admin_call *c, struct block_store *bs)
{
    struct block_info info;

    for (size_t i = 0; i < c->group_count; i++)
        if (block_stat(bs, c->group[i], &info) == ERR_NOENT) {
            admin_call_fail(c, ERR_NOENT, "no volume \"%.200s\": no snapshot was taken",
                            c->group[i]);
            return;
        }
    admin_call_fail(c, ERR_NOENT, "not every one of these volumes existed: no snapshot was taken");
}

static int admin_run_snapshot_create(struct admin_call *c, struct block_store *bs)
{
    const char *names[BLOCK_GROUP_MAX];
    int r;

    for (size_t i = 0; i < c->group_count; i++)
        names[i] = c->group[i];
    r = block_snapshot(bs, names, c->group_count, c->snapshot);
    if (r == ERR_NOENT)
        admin_no_member(c, bs);
    if (r == ERR_EXIST)
        admin_call_fail(c, r, "a snapshot \"%.200s\" exists already%s", c->snapshot,
                        c->group_count > 1 ? ", of one of the volumes at least: none was taken"
                                           : "");
    if (r == ERR_INVAL)
        admin_call_fail(c, r, "a volume is named twice");
    return r;
}

static int admin_run_snapshot(struct admin_call *c, struct block_store *bs)
{
    int r;

    switch (c->kind) {
    case ADMIN_SNAPSHOT_CREATE:
        return admin_run_snapshot_create(c, bs);
    case ADMIN_SNAPSHOT_LIST:
        return admin_no_volume(c, block_snapshots(bs, c->name, &c->volumes, &c->count));
    case ADMIN_SNAPSHOT_CLONE:
        r = admin_snapshot_said(c, block_clone(bs, c->name, c->snapshot, c->clone));
        if (r == ERR_EXIST)
            admin_call_fail(c, r, "a volume \"%.200s\" exists already", c->clone);
        memcpy(c->name, c->clone, sizeof(c->name));
        return r < 0 ? r : admin_run_show(c, bs);
    case ADMIN_SNAPSHOT_ROLLBACK:
        r = admin_snapshot_said(c, block_rollback(bs, c->name, c->snapshot));
        if (r == ERR_BUSY)
            admin_call_fail(c, r, "the volume \"%.200s\" is in use: disconnect its clients first",
                            c->name);
        return r < 0 ? r : admin_run_show(c, bs);
    default:
        CHECK(c->kind == ADMIN_SNAPSHOT_DELETE);
        r = admin_snapshot_said(c, block_snapshot_remove(bs, c->name, c->snapshot));
        if (r == ERR_BUSY)
            admin_call_fail(c, r, "the snapshot is in use: disconnect its clients first");
        return r;
    }
}

static int admin_run_volume(struct admin_call *c, struct block_store *bs)
{
    switch (c->kind) {
    case ADMIN_VOLUME_LIST:
        return block_list(bs, &c->volumes, &c->count);
    case ADMIN_VOLUME_CREATE:
        return admin_run_create(c, bs);
    case ADMIN_VOLUME_SHOW:
        return admin_run_show(c, bs);
    case ADMIN_VOLUME_RESIZE:
        return admin_run_resize(c, bs);
    default:
        CHECK(c->kind == ADMIN_VOLUME_DELETE);
        return admin_run_delete(c, bs);
    }
}

static int admin_no_study(struct admin_call *c)
{
    admin_call_fail(c, ERR_NOENT, "no %s %s", c->series_uid[0] ? "series" : "study",
                    c->series_uid[0] ? c->series_uid : c->study_uid);
    return c->error;
}

static int admin_run_study_show(struct admin_call *c, struct object_store *os)
{
    struct object_query q = {.level = OBJECT_STUDY, .study_uid = c->study_uid, .limit = 1};
    int r = object_query(os, &q, &c->rows);

    if (r < 0)
        return r;
    if (c->rows->count == 0)
        return admin_no_study(c);
    q.level = OBJECT_SERIES;
    q.limit = 0;
    return object_query(os, &q, &c->series);
}

static int admin_run_patient_show(struct admin_call *c, struct object_store *os)
{
    struct object_query q = {
        .level = OBJECT_PATIENT, .matches = c->matches, .match_count = c->match_count};
    int r = object_query(os, &q, &c->rows);

    if (r < 0)
        return r;
    if (c->rows->count == 0) {
        admin_call_fail(c, ERR_NOENT, "no patient has the ID \"%.200s\": see the list of patients",
                        c->matches[0].value);
        return c->error;
    }
    q.level = OBJECT_STUDY;
    return object_query(os, &q, &c->studies);
}

static int admin_run_study(struct admin_call *c, struct object_store *os)
{
    struct object_query q = {.level = c->kind == ADMIN_PATIENT_LIST ? OBJECT_PATIENT : OBJECT_STUDY,
                             .matches = c->matches,
                             .match_count = c->match_count,
                             .offset = c->offset,
                             .limit = c->limit};
    int r;

    switch (c->kind) {
    case ADMIN_PATIENT_LIST:
    case ADMIN_STUDY_LIST:
        return object_query(os, &q, &c->rows);
    case ADMIN_PATIENT_SHOW:
        return admin_run_patient_show(c, os);
    case ADMIN_STUDY_SHOW:
        return admin_run_study_show(c, os);
    default:
        CHECK(c->kind == ADMIN_STUDY_DELETE || c->kind == ADMIN_SERIES_DELETE);
        r = object_remove(os, c->study_uid, c->kind == ADMIN_SERIES_DELETE ? c->series_uid : NULL,
                          NULL, &c->deleted);
        return r == ERR_NOENT ? admin_no_study(c) : r;
    }
}

void admin_call_run(struct admin_call *c, const struct admin_backend *backend)
{
    int r = ERR_NOENT;

    if (c->error)
        return;
    switch (c->kind) {
    case ADMIN_BAD:
        CHECK(c->error);
        break;
    case ADMIN_STATUS:
    case ADMIN_DRIVES:
        if (backend->admin)
            r = admin_run_status(c, backend->admin);
        break;
    case ADMIN_SCRUB_SHOW:
    case ADMIN_SCRUB_BEGIN:
    case ADMIN_SCRUB_END:
        if (backend->admin)
            r = admin_run_scrub(c, backend->admin);
        break;
    case ADMIN_DRIVE_ORDER:
        if (backend->admin)
            r = admin_run_drive(c, backend->admin);
        break;
    case ADMIN_STATS:
    case ADMIN_METRICS:
        if (backend->metrics)
            r = admin_run_metrics(c, backend->metrics);
        break;
    case ADMIN_VOLUME_LIST:
    case ADMIN_VOLUME_CREATE:
    case ADMIN_VOLUME_SHOW:
    case ADMIN_VOLUME_RESIZE:
    case ADMIN_VOLUME_DELETE:
        if (backend->blocks)
            r = admin_run_volume(c, backend->blocks);
        break;
    case ADMIN_SNAPSHOT_CREATE:
    case ADMIN_SNAPSHOT_LIST:
    case ADMIN_SNAPSHOT_DELETE:
    case ADMIN_SNAPSHOT_CLONE:
    case ADMIN_SNAPSHOT_ROLLBACK:
        if (backend->blocks)
            r = admin_run_snapshot(c, backend->blocks);
        break;
    case ADMIN_PATIENT_LIST:
    case ADMIN_PATIENT_SHOW:
    case ADMIN_STUDY_LIST:
    case ADMIN_STUDY_SHOW:
    case ADMIN_STUDY_DELETE:
    case ADMIN_SERIES_DELETE:
        if (backend->objects)
            r = admin_run_study(c, backend->objects);
        break;
    case ADMIN_BUCKET_LIST:
    case ADMIN_BUCKET_CREATE:
    case ADMIN_BUCKET_SHOW:
    case ADMIN_BUCKET_DELETE:
    case ADMIN_OBJECT_LIST:
    case ADMIN_OBJECT_SHOW:
    case ADMIN_OBJECT_DELETE:
    case ADMIN_OBJECT_PUT:
    case ADMIN_OBJECT_GET:
        if (backend->buckets)
            r = admin_run_bucket(c, backend->buckets);
        break;
    }
    if (r < 0)
        c->error = r;
}

/* ---- Answering ------------------------------------------------------------------------------ */

static int admin_dump_piece(const char *data, size_t n, void *arg)
{
    strbuf_add(arg, data, n);
    return 0;
}

/* Takes the reference. */
static char *admin_dump(json_t *json, size_t *ret_len)
{
    struct strbuf text = STRBUF_INIT;

    CHECK(json != NULL);
    CHECK(json_dump_callback(json, admin_dump_piece, &text, JSON_COMPACT) == 0);
    json_decref(json);
    strbuf_addc(&text, '\n');
    CHECK(!text.overflow);
    *ret_len = text.len;
    return strbuf_take(&text);
}

char *admin_error_body(const char *code, const char *message)
{
    size_t len;

    return admin_dump(admin_json_error(code, message), &len);
}

const char *admin_call_type(const struct admin_call *c)
{
    return c->kind == ADMIN_METRICS && !c->error ? METRICS_TEXT_TYPE : "application/json";
}

unsigned admin_call_answer(struct admin_call *c, char **ret_body, size_t *ret_len,
                           const char **ret_allow)
{
    const char *message = c->message.len ? c->message.data : err_text(c->error);

    *ret_allow = c->allow.len ? c->allow.data : NULL;
    if (c->error) {
        *ret_body = admin_dump(
            admin_json_error(c->http_status == 405 ? "METHOD" : err_name(c->error), message),
            ret_len);
        return c->http_status ? c->http_status : httpd_status_of(c->error);
    }
    if (c->kind == ADMIN_METRICS) {
        *ret_len = c->text.len;
        *ret_body = strbuf_take(&c->text);
        return 200;
    }
    *ret_body = admin_dump(admin_json(c), ret_len);
    if (c->kind == ADMIN_OBJECT_PUT)
        return c->object->put.replaced ? 200 : 201;
    return c->kind == ADMIN_VOLUME_CREATE || c->kind == ADMIN_BUCKET_CREATE ||
                   c->kind == ADMIN_SNAPSHOT_CREATE || c->kind == ADMIN_SNAPSHOT_CLONE ||
                   (c->kind == ADMIN_DRIVE_ORDER && c->order->path[0])
               ? 201
               : 200;
}

/* The admin API's buckets and objects: what requests about them ask, the calls on the engine, the
 * answers' JSON. The bytes of objects go another way, in admin_stream.c; what such a request asks
 * is found here too.
 *
 * An object's name is the rest of the path: "/" within it may stand as it is or as "%2F" (as it
 * must at the name's end). Metadata are the headers X-Filmroom-Meta-NAME.
 */
#include <string.h>
#include <strings.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "proto/admin/admin_impl.h"

#define ADMIN_OBJECT_SEGMENT 4u /* v1, buckets, NAME, objects */

/* ---- Parsing: paths ------------------------------------------------------------------------- */

void admin_take_object(struct admin_call *c, const struct admin_request *r)
{
    struct admin_object *o = c->object = mem_zalloc(sizeof(*o));
    size_t n = strlen(r->segments[2]), at = 0;

    if (n == 0 || n > BUCKET_NAME_MAX) {
        c->error = ERR_NAME;
        return;
    }
    memcpy(o->bucket, r->segments[2], n + 1);
    for (size_t i = ADMIN_OBJECT_SEGMENT; i < r->segment_count; i++) {
        size_t slash = i > ADMIN_OBJECT_SEGMENT;

        n = strlen(r->segments[i]);
        if (at + slash + n > BUCKET_KEY_MAX) {
            admin_call_fail(c, ERR_INVAL, "an object's name has at most %u bytes", BUCKET_KEY_MAX);
            return;
        }
        if (slash)
            o->name[at++] = '/';
        memcpy(o->name + at, r->segments[i], n);
        at += n;
    }
    if (r->segment_count > ADMIN_OBJECT_SEGMENT && at == 0)
        admin_call_fail(c, ERR_INVAL, "the object's name is missing");
}

/* ---- Parsing: arguments --------------------------------------------------------------------- */

static void unknown_arg(struct admin_call *c, const struct admin_arg *arg)
{
    admin_call_fail(c, ERR_INVAL, "the argument \"%.100s\" is not known here", arg->name);
}

void admin_parse_bucket_delete(struct admin_call *c, const struct admin_request *r)
{
    for (size_t i = 0; i < r->arg_count && !c->error; i++) {
        const struct admin_arg *arg = &r->args[i];

        if (strcmp(arg->name, "objects") != 0)
            unknown_arg(c, arg);
        else if (strcmp(arg->value, "true") == 0)
            c->object->with_objects = true;
        else if (strcmp(arg->value, "false") != 0)
            admin_call_fail(c, ERR_INVAL, "\"objects\" must be true or false");
    }
}

static void take_list_text(struct admin_call *c, char **to, const char *value)
{
    if (strlen(value) > BUCKET_KEY_MAX)
        admin_call_fail(c, ERR_INVAL, "an object's name has at most %u bytes", BUCKET_KEY_MAX);
    mem_free(*to);
    *to = mem_strdup(value);
}

void admin_parse_objects(struct admin_call *c, const struct admin_request *r)
{
    struct admin_object *o = c->object;

    c->limit = ADMIN_STUDIES_DEFAULT;
    for (size_t i = 0; i < r->arg_count && !c->error; i++) {
        const struct admin_arg *arg = &r->args[i];

        if (strcmp(arg->name, "prefix") == 0)
            take_list_text(c, &o->prefix, arg->value);
        else if (strcmp(arg->name, "after") == 0)
            take_list_text(c, &o->after, arg->value);
        else if (strcmp(arg->name, "delimiter") == 0)
            take_list_text(c, &o->delimiter, arg->value);
        else if (strcmp(arg->name, "limit") == 0)
            c->limit = admin_number(c, arg, BUCKET_PAGE_MAX);
        else
            unknown_arg(c, arg);
    }
    if (!c->error && o->delimiter && strlen(o->delimiter) != 1)
        admin_call_fail(c, ERR_INVAL, "\"delimiter\" must be one byte");
    if (!c->error && c->limit == 0)
        admin_call_fail(c, ERR_INVAL, "\"limit\" must be from 1 to %u", BUCKET_PAGE_MAX);
}

/* ---- Parsing: headers of PUT and GET -------------------------------------------------------- */

static const char *header_of(const struct admin_request *r, const char *name)
{
    for (size_t i = 0; i < r->header_count; i++)
        if (strcasecmp(r->headers[i].name, name) == 0)
            return r->headers[i].value;
    return NULL;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* An entity tag as answers give it: 64 hex digits in quotes (RFC 9110 section 8.8.3). */
static bool etag_parse(const char *text, uint8_t etag[BUCKET_ETAG])
{
    if (strlen(text) != 2 * BUCKET_ETAG + 2 || text[0] != '"' || text[2 * BUCKET_ETAG + 1] != '"')
        return false;
    for (unsigned i = 0; i < BUCKET_ETAG; i++) {
        int high = hex_digit(text[1 + 2 * i]), low = hex_digit(text[2 + 2 * i]);

        if (high < 0 || low < 0)
            return false;
        etag[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

void admin_etag_text(const uint8_t etag[BUCKET_ETAG], char text[2 * BUCKET_ETAG + 3])
{
    static const char digits[] = "0123456789abcdef";

    text[0] = '"';
    for (unsigned i = 0; i < BUCKET_ETAG; i++) {
        text[1 + 2 * i] = digits[etag[i] >> 4];
        text[2 + 2 * i] = digits[etag[i] & 15];
    }
    text[2 * BUCKET_ETAG + 1] = '"';
    text[2 * BUCKET_ETAG + 2] = 0;
}

static void take_condition(struct admin_call *c, const struct admin_request *r)
{
    const char *none = header_of(r, "If-None-Match"), *match = header_of(r, "If-Match");

    if (none && match)
        admin_call_fail(c, ERR_INVAL, "If-Match and If-None-Match do not go together");
    else if (none && strcmp(none, "*") != 0)
        admin_call_fail(c, ERR_INVAL, "If-None-Match must be * here: only if there is no object");
    else if (match && !etag_parse(match, c->object->etag))
        admin_call_fail(c, ERR_INVAL, "If-Match must be the ETag that a look at the object gave");
    c->object->condition = none ? BUCKET_IF_ABSENT : match ? BUCKET_IF_ETAG : BUCKET_ALWAYS;
}

static void take_pair(struct admin_call *c, const struct admin_arg *header)
{
    struct admin_object *o = c->object;
    char *name;

    if (strncasecmp(header->name, ADMIN_META, strlen(ADMIN_META)) != 0)
        return;
    if (o->pair_count == BUCKET_PAIRS_MAX) {
        admin_call_fail(c, ERR_TOOBIG, "an object has at most %u pairs of metadata",
                        BUCKET_PAIRS_MAX);
        return;
    }
    name = mem_strdup(header->name + strlen(ADMIN_META));
    for (char *p = name; *p; p++)
        if (*p >= 'A' && *p <= 'Z')
            *p = (char)(*p - 'A' + 'a'); /* headers' names have no case */
    o->pairs[o->pair_count++] = (struct bucket_pair){name, mem_strdup(header->value)};
}

/* The engine refuses these too, but cannot say which of them it is. */
static void check_lengths(struct admin_call *c)
{
    const struct admin_object *o = c->object;
    size_t bytes = 0;

    for (size_t i = 0; i < o->pair_count; i++) {
        bytes += strlen(o->pairs[i].name) + strlen(o->pairs[i].value);
        if (strlen(o->pairs[i].name) > BUCKET_PAIR_NAME_MAX)
            admin_call_fail(c, ERR_TOOBIG, "a name of metadata has at most %u bytes",
                            BUCKET_PAIR_NAME_MAX);
    }
    if (bytes > BUCKET_METADATA_MAX)
        admin_call_fail(c, ERR_TOOBIG,
                        "an object's metadata has %zu bytes, and at most %u, names and values "
                        "together",
                        bytes, BUCKET_METADATA_MAX);
    if (o->type && strlen(o->type) > BUCKET_TYPE_MAX)
        admin_call_fail(c, ERR_TOOBIG, "a content type has at most %u bytes", BUCKET_TYPE_MAX);
}

void admin_parse_object_put(struct admin_call *c, const struct admin_request *r)
{
    const char *type = header_of(r, "Content-Type");

    if (r->arg_count)
        unknown_arg(c, &r->args[0]);
    /* RFC 9110 section 14.5: who means a part must not have it taken for the whole. */
    if (header_of(r, "Content-Range"))
        admin_call_fail(c, ERR_INVAL,
                        "Content-Range: an object is stored as a whole, not in parts");
    if (type)
        c->object->type = mem_strdup(type);
    if (!c->error)
        take_condition(c, r);
    for (size_t i = 0; i < r->header_count && !c->error; i++)
        take_pair(c, &r->headers[i]);
    if (!c->error)
        check_lengths(c);
}

/* Digits at *p; false: none, or too many. */
static bool take_digits(const char **p, uint64_t *ret_n)
{
    const char *from = *p;
    uint64_t n = 0;

    for (; **p >= '0' && **p <= '9'; (*p)++) {
        if (n > UINT64_MAX / 16)
            return false;
        n = n * 10 + (uint64_t)(**p - '0');
    }
    *ret_n = n;
    return *p > from;
}

/* One range of bytes (RFC 9110 section 14.1.2). What is something else, several ranges too, is as
 * good as no Range header. */
static void take_range(struct admin_object *o, const char *text)
{
    uint64_t first = 0, last = UINT64_MAX;
    enum admin_range range = ADMIN_FROM;

    if (strncmp(text, "bytes=", 6) != 0)
        return;
    text += 6;
    if (*text == '-') {
        text++;
        range = ADMIN_LAST;
        if (!take_digits(&text, &last))
            return;
    } else if (!take_digits(&text, &first) || *text++ != '-' ||
               (*text && !take_digits(&text, &last))) {
        return;
    }
    if (*text || last < first)
        return;
    o->range = range;
    o->first = first;
    o->last = last;
}

bool admin_object_range(const struct admin_object *o, uint64_t size, uint64_t *ret_off,
                        uint64_t *ret_len)
{
    uint64_t n = size;

    *ret_off = 0;
    switch (o->range) {
    case ADMIN_ALL:
        break;
    case ADMIN_LAST:
        n = o->last < size ? o->last : size;
        *ret_off = size - n;
        break;
    case ADMIN_FROM:
        *ret_off = o->first;
        n = o->first >= size ? 0 : o->last < size ? o->last - o->first + 1 : size - o->first;
        break;
    }
    *ret_len = n;
    return n > 0 || o->range == ADMIN_ALL;
}

void admin_parse_object_get(struct admin_call *c, const struct admin_request *r)
{
    const char *range = header_of(r, "Range");

    for (size_t i = 0; i < r->arg_count && !c->error; i++) {
        if (strcmp(r->args[i].name, "info") != 0 || strcmp(r->args[i].value, "true") != 0)
            unknown_arg(c, &r->args[i]);
        else
            c->kind = ADMIN_OBJECT_SHOW;
    }
    if (range)
        take_range(c->object, range);
}

void admin_object_free(struct admin_object *o)
{
    if (!o)
        return;
    for (size_t i = 0; i < o->pair_count; i++) {
        mem_free((void *)(uintptr_t)o->pairs[i].name);
        mem_free((void *)(uintptr_t)o->pairs[i].value);
    }
    mem_free(o->type);
    mem_free(o->prefix);
    mem_free(o->delimiter);
    mem_free(o->after);
    mem_free(o->infos);
    mem_free(o->page);
    json_decref(o->shown);
    mem_free(o);
}

/* ---- Asking the engine ---------------------------------------------------------------------- */

/* What the engine says of buckets and objects, in words. */
int admin_object_said(struct admin_call *c, int r)
{
    const struct admin_object *o = c->object;
    struct bucket_info info;

    switch (r) {
    case ERR_NOENT:
        if (o->name[0] && c->buckets && bucket_stat(c->buckets, o->bucket, &info) == 0)
            admin_call_fail(c, r, "no object \"%.700s\" in the bucket \"%s\"", o->name, o->bucket);
        else
            admin_call_fail(c, r, "no bucket \"%s\"", o->bucket);
        break;
    case ERR_NOTEMPTY:
        admin_call_fail(c, r,
                        "the bucket \"%s\" has objects: delete them first, or with it (filmroom "
                        "bucket delete --objects)",
                        o->bucket);
        break;
    case ERR_READONLY:
        if (o->name[0])
            admin_call_fail(
                c, r, "the bucket \"%s\" shows DICOM instances: send them by C-STORE or STOW-RS",
                o->bucket);
        else
            admin_call_fail(c, r,
                            "the bucket \"%s\" is always there, as it shows the DICOM instances: "
                            "delete these, or studies, instead",
                            o->bucket);
        break;
    case ERR_TOOBIG:
        admin_call_fail(c, r, "an object has at most %llu bytes (8 GiB)",
                        (unsigned long long)BUCKET_OBJECT_MAX);
        break;
    case ERR_CONDITION:
        admin_call_fail(c, r,
                        o->condition == BUCKET_IF_ABSENT
                            ? "an object \"%.700s\" is there already"
                            : "the object \"%.700s\" is another by now: look at it again",
                        o->name);
        break;
    case ERR_INVAL:
        admin_call_fail(c, r,
                        "the name, type or metadata will not do: names are UTF-8 of 1 to %u bytes "
                        "without control characters, names of metadata lower-case letters, digits, "
                        "'.', '_' and '-', each once",
                        BUCKET_KEY_MAX);
        break;
    default:
        break;
    }
    return r;
}

static int run_create(struct admin_call *c)
{
    struct admin_object *o = c->object;
    int r = bucket_create(c->buckets, o->bucket);

    if (r == ERR_EXIST)
        admin_call_fail(c, r, "a bucket \"%s\" exists already", o->bucket);
    if (r == ERR_OVERLOAD)
        admin_call_fail(c, r, "there are %u buckets, which is the most: delete some", BUCKETS_MAX);
    if (r < 0)
        return r;
    o->infos = mem_zalloc(sizeof(*o->infos));
    return admin_object_said(c, bucket_stat(c->buckets, o->bucket, o->infos));
}

static int run_show(struct admin_call *c)
{
    struct bucket_object *object;
    int r = bucket_open(c->buckets, c->object->bucket, c->object->name, &object);

    if (r < 0)
        return admin_object_said(c, r);
    c->object->shown = admin_json_entry(bucket_get_entry(object));
    bucket_close(object);
    return 0;
}

int admin_run_bucket(struct admin_call *c, struct bucket_store *bs)
{
    struct admin_object *o = c->object;
    struct bucket_query q = {.limit = c->limit};

    c->buckets = bs;
    switch (c->kind) {
    case ADMIN_BUCKET_LIST:
        return bucket_list(bs, &o->infos, &c->count);
    case ADMIN_BUCKET_CREATE:
        return run_create(c);
    case ADMIN_BUCKET_SHOW:
        o->infos = mem_zalloc(sizeof(*o->infos));
        return admin_object_said(c, bucket_stat(bs, o->bucket, o->infos));
    case ADMIN_BUCKET_DELETE:
        return admin_object_said(c, bucket_remove(bs, o->bucket, o->with_objects));
    case ADMIN_OBJECT_LIST:
        q.bucket = o->bucket;
        q.prefix = o->prefix;
        q.delimiter = o->delimiter;
        q.after = o->after;
        return admin_object_said(c, bucket_objects(bs, &q, &o->page));
    case ADMIN_OBJECT_SHOW:
        return run_show(c);
    case ADMIN_OBJECT_DELETE:
        return admin_object_said(c, bucket_object_remove(bs, o->bucket, o->name));
    default:
        return ERR_UNSUPPORTED; /* the bytes of objects go through admin_stream.c */
    }
}

/* ---- Answers -------------------------------------------------------------------------------- */

static json_t *json_bucket(const struct bucket_info *info)
{
    json_t *json = json_object();

    admin_set_text(json, "name", info->name);
    admin_set_number(json, "objects", info->objects);
    admin_set_number(json, "bytes", info->bytes);
    admin_set_time(json, "created", info->created_ns);
    admin_set(json, "readonly", json_boolean(info->readonly));
    return json;
}

static json_t *json_buckets(const struct admin_call *c)
{
    json_t *json = json_object(), *array = json_array();

    for (size_t i = 0; i < c->count; i++)
        admin_append(array, json_bucket(&c->object->infos[i]));
    admin_set(json, "buckets", array);
    return json;
}

/* Without the quotes that belong to HTTP. */
static void set_etag(json_t *json, const uint8_t etag[BUCKET_ETAG])
{
    char text[2 * BUCKET_ETAG + 3];

    admin_etag_text(etag, text);
    text[2 * BUCKET_ETAG + 1] = 0;
    admin_set_text(json, "etag", text + 1);
}

json_t *admin_json_entry(const struct bucket_entry *e)
{
    json_t *json = json_object(), *metadata = json_object();

    admin_set_text(json, "name", e->name);
    if (e->prefix) {
        json_decref(metadata);
        admin_set(json, "prefix", json_true());
        return json;
    }
    admin_set_number(json, "size", e->size);
    admin_set_time(json, "stored", e->stored_ns);
    set_etag(json, e->etag);
    admin_set_text(json, "type", e->type);
    for (size_t i = 0; i < e->pair_count; i++)
        admin_set_text(metadata, e->pairs[i].name, e->pairs[i].value);
    admin_set(json, "metadata", metadata);
    return json;
}

static json_t *json_page(const struct admin_object *o)
{
    json_t *json = json_object(), *array = json_array();

    for (size_t i = 0; i < o->page->count; i++)
        admin_append(array, admin_json_entry(&o->page->entries[i]));
    admin_set_text(json, "bucket", o->bucket);
    admin_set(json, "objects", array);
    admin_set(json, "more", json_boolean(o->page->more));
    return json;
}

static json_t *json_deleted(const struct admin_object *o)
{
    json_t *json = json_object(), *deleted = json_object();

    admin_set_text(deleted, "bucket", o->bucket);
    if (o->name[0])
        admin_set_text(deleted, "object", o->name);
    admin_set(json, "deleted", deleted);
    return json;
}

json_t *admin_json_put(const struct admin_object *o)
{
    json_t *json = json_object();

    admin_set_text(json, "bucket", o->bucket);
    admin_set_text(json, "name", o->name);
    admin_set_number(json, "size", o->put.size);
    set_etag(json, o->put.etag);
    admin_set(json, "replaced", json_boolean(o->put.replaced));
    return json;
}

json_t *admin_json_of_bucket(const struct admin_call *c)
{
    switch (c->kind) {
    case ADMIN_BUCKET_LIST:
        return json_buckets(c);
    case ADMIN_BUCKET_CREATE:
    case ADMIN_BUCKET_SHOW:
        return json_bucket(c->object->infos);
    case ADMIN_OBJECT_LIST:
        return json_page(c->object);
    case ADMIN_OBJECT_SHOW:
        return json_incref(c->object->shown);
    case ADMIN_OBJECT_PUT:
        return admin_json_put(c->object);
    default:
        CHECK(c->kind == ADMIN_BUCKET_DELETE || c->kind == ADMIN_OBJECT_DELETE);
        return json_deleted(c->object);
    }
}

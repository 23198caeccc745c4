/* Orders about drives in the admin API: which path, method and body mean what. */
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "proto/admin/admin_impl.h"

static void take_path(struct admin_call *c, json_t *body)
{
    const char *path = json_string_value(json_object_get(body, "path"));

    if (c->error)
        return;
    if (!path || path[0] != '/' || strlen(path) >= ADMIN_PATH_MAX || strchr(path, '\n'))
        admin_call_fail(c, ERR_INVAL,
                        "\"path\" must be the absolute path of the new drive, a block device or "
                        "a file");
    else
        memcpy(c->order->path, path, strlen(path) + 1);
    json_object_del(body, "path");
}

static void take_class(struct admin_call *c, json_t *body, bool needed)
{
    json_t *v = json_object_get(body, "class");
    const char *text = json_string_value(v);

    if (c->error || (!v && !needed))
        return;
    if (text && strcmp(text, "nvme") == 0)
        c->order->nvme = true;
    else if (!text || strcmp(text, "disk") != 0)
        admin_call_fail(c, ERR_INVAL, "\"class\" must be \"nvme\" or \"disk\"");
    json_object_del(body, "class");
}

static void take_size(struct admin_call *c, json_t *body)
{
    json_t *v = json_object_get(body, "size");

    if (c->error || !v)
        return;
    if (!json_is_integer(v) || json_integer_value(v) <= 0 || json_integer_value(v) % BLOCK_SIZE)
        admin_call_fail(c, ERR_INVAL, "\"size\" must be a multiple of %u bytes, above 0",
                        BLOCK_SIZE);
    else
        c->order->size = (uint64_t)json_integer_value(v);
    json_object_del(body, "size");
}

static void take_force(struct admin_call *c, json_t *body)
{
    json_t *v = json_object_get(body, "force");

    if (c->error || !v)
        return;
    if (!json_is_boolean(v))
        admin_call_fail(c, ERR_INVAL, "\"force\" must be true or false");
    c->order->force = json_is_true(v);
    json_object_del(body, "force");
}

static void take_partition(struct admin_call *c, const char *name, size_t len)
{
    if (len >= ADMIN_PARTITION_MAX)
        admin_call_fail(c, ERR_NOENT, "there is no partition \"%.40s\"", name);
    else
        memcpy(c->order->partition, name, len);
}

static void take_partition_field(struct admin_call *c, json_t *body)
{
    const char *name = json_string_value(json_object_get(body, "partition"));

    if (!c->error && name)
        take_partition(c, name, strlen(name));
    if (name)
        json_object_del(body, "partition");
}

static void parse_fields(struct admin_call *c, const struct admin_request *r)
{
    json_t *body = admin_body(c, r);

    if (!body)
        return;
    if (c->order->verb != ADMIN_DRIVE_SET_CLASS) {
        take_path(c, body);
        if (c->order->verb == ADMIN_DRIVE_ADD)
            take_partition_field(c, body);
        take_size(c, body);
        take_force(c, body);
    }
    take_class(c, body, c->order->verb == ADMIN_DRIVE_SET_CLASS);
    admin_refuse_rest(c, body);
    json_decref(body);
}

/* N, or PARTITION:N. */
static void take_index(struct admin_call *c, const char *text)
{
    const char *colon = strchr(text, ':');

    if (colon)
        take_partition(c, text, (size_t)(colon - text));
    text = colon ? colon + 1 : text;
    unsigned n = 0;
    size_t len = strlen(text);

    for (const char *p = text; *p >= '0' && *p <= '9' && len < 8; p++)
        n = n * 10 + (unsigned)(*p - '0');
    if (len == 0 || len >= 8 || strspn(text, "0123456789") != len)
        admin_call_fail(c, ERR_INVAL, "\"%.80s\" is not the number of a drive: see /v1/drives",
                        text);
    c->order->index = n;
}

static void take_verb(struct admin_call *c, const char *text)
{
    static const struct {
        const char *name;
        enum admin_drive_verb verb;
    } verbs[] = {{"remove", ADMIN_DRIVE_REMOVE},
                 {"keep", ADMIN_DRIVE_KEEP},
                 {"rebuild", ADMIN_DRIVE_REBUILD},
                 {"replace", ADMIN_DRIVE_REPLACE}};

    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (strcmp(verbs[i].name, text) == 0) {
            c->order->verb = verbs[i].verb;
            return;
        }
    admin_call_fail(c, ERR_NOENT, "a drive has remove, keep, rebuild and replace only");
}

void admin_parse_drive(struct admin_call *c, const struct admin_request *r)
{
    c->order = mem_zalloc(sizeof(*c->order));
    c->order->verb = r->segment_count == 3 ? ADMIN_DRIVE_SET_CLASS : ADMIN_DRIVE_ADD;
    if (r->arg_count > 0)
        admin_call_fail(c, ERR_INVAL, "the argument \"%.100s\" is not known here", r->args[0].name);
    if (!c->error && r->segment_count >= 3)
        take_index(c, r->segments[2]);
    if (!c->error && r->segment_count == 4)
        take_verb(c, r->segments[3]);
    if (c->error)
        return;
    switch (c->order->verb) {
    case ADMIN_DRIVE_ADD:
    case ADMIN_DRIVE_REPLACE:
    case ADMIN_DRIVE_SET_CLASS:
        parse_fields(c, r);
        break;
    case ADMIN_DRIVE_REMOVE:
    case ADMIN_DRIVE_KEEP:
    case ADMIN_DRIVE_REBUILD:
        break;
    }
}

int admin_run_drive(struct admin_call *c, struct admin_source *a)
{
    char why[ADMIN_WHY_MAX] = "";
    int rc = admin_order_drive(a, c->order, why, &c->drive);

    if (rc < 0 && why[0])
        admin_call_fail(c, rc, "%s", why);
    return rc;
}

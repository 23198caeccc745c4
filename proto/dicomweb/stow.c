/* STOW-RS: parts of a request body to instances of the store, as they arrive.
 *
 * A part's bytes are gathered up to GATHER and handed to the loop in one env_call; the first call
 * also begins the put, the last one commits it. A failed instance does not end the request: the
 * rest of its part is skipped, its reason goes into the report, and the next part is taken up. What
 * the client is told to be stored was committed before the answer was made.
 *
 * A body that ends early or breaks the multipart syntax: what was committed stays and is reported;
 * the part in progress cannot be known to be whole and is dropped.
 */
#include "proto/dicomweb/web.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "proto/dicomweb/multipart.h"
#include "proto/dicomweb/report.h"

#define GATHER      (256u << 10)
#define DIRECT      (128u << 10) /* pieces of this size are not gathered first */
#define PARTS_MAX   50000        /* of one request: bounds the report */
#define REQUEST_MAX ((uint64_t)1 << 42)
#define UNSUPPORTED_415                                                           \
    "Send multipart/related; type=\"application/dicom\" with a boundary, or one " \
    "application/dicom."

struct stow {
    struct dicomweb *w;
    bool single;                    /* the body is one instance, not multipart */
    char study[OBJECT_UID_MAX + 1]; /* "": any */
    struct strbuf base;
    const char *type; /* of the answer */
    struct multipart *multipart;
    struct report report;
    size_t parts;
    int broken; /* the multipart syntax failed */

    /* The instance in progress. */
    struct object_put *put;
    int err; /* why it fails; what else comes of it is skipped */
    bool in_part, begun;
    uint64_t size_hint;
    uint8_t *gather;
    size_t gathered;
    char class_uid[OBJECT_UID_MAX + 1], instance_uid[OBJECT_UID_MAX + 1];
};

/* ---- On the loop ----------------------------------------------------------------------------- */

struct put_call {
    struct stow *s;
    const void *data;
    size_t len;
    bool commit, abort;
    struct object_put_result result;
};

static int put_step(struct put_call *c)
{
    struct stow *s = c->s;
    struct object_put_info info = {.size_hint = s->size_hint,
                                   .expect_study = s->study[0] ? s->study : NULL};
    struct object_put *p;
    int r;

    if (!s->put) {
        r = object_put_begin(s->w->os, &info, &s->put);
        if (r < 0)
            return r;
    }
    if (c->len) {
        r = object_put_append(s->put, c->data, c->len);
        if (r < 0)
            return r;
    }
    if (!c->commit)
        return 0;
    p = s->put;
    s->put = NULL; /* commit frees it, whatever it returns */
    return object_put_commit(p, &c->result);
}

static void put_fiber(void *arg)
{
    struct put_call *c = arg;
    struct stow *s = c->s;

    if (!c->abort)
        s->err = put_step(c);
    if (c->abort || s->err < 0) {
        object_put_abort(s->put);
        s->put = NULL;
    }
}

static void put_run(struct put_call *c)
{
    int r = env_call(c->s->w->env, "web-stow", put_fiber, c);

    if (r < 0 && c->s->err == 0)
        c->s->err = r;
}

/* ---- One instance ---------------------------------------------------------------------------- */

/* Who it is, for the report of a failure; from the first bytes of the Part 10 stream. */
static void note_uids(struct stow *s, const void *data, size_t len)
{
    struct dcm_head head;

    if (s->begun)
        return;
    s->begun = true;
    if (dcm_head_parse(data, len, &head) < 0)
        return;
    memcpy(s->class_uid, head.sop_class, sizeof(s->class_uid));
    memcpy(s->instance_uid, head.sop_instance, sizeof(s->instance_uid));
}

static void hand_over(struct stow *s, const void *data, size_t len)
{
    struct put_call c = {.s = s, .data = data, .len = len};

    if (s->err < 0 || len == 0)
        return;
    note_uids(s, data, len);
    put_run(&c);
}

static void part_begin(struct stow *s, uint64_t size_hint)
{
    s->in_part = true;
    s->begun = false;
    s->err = 0;
    s->gathered = 0;
    s->size_hint = size_hint <= OBJECT_INSTANCE_MAX ? size_hint : 0;
    s->class_uid[0] = s->instance_uid[0] = 0;
    if (!s->gather)
        s->gather = mem_alloc(GATHER);
}

static void part_data(struct stow *s, const uint8_t *p, size_t n)
{
    while (n > 0 && s->err == 0) {
        size_t room = GATHER - s->gathered, take = n < room ? n : room;

        if (s->gathered == 0 && n >= DIRECT) {
            hand_over(s, p, n);
            return;
        }
        memcpy(s->gather + s->gathered, p, take);
        s->gathered += take;
        p += take;
        n -= take;
        if (s->gathered == GATHER) {
            s->gathered = 0;
            hand_over(s, s->gather, GATHER);
        }
    }
}

static void part_failed(struct stow *s)
{
    log_warn("dicomweb", "instance not stored instance=%s error=%s text=%s", log_q(s->instance_uid),
             err_name(s->err), log_q(err_text(s->err)));
    report_failed(&s->report, s->class_uid, s->instance_uid, s->err);
}

static void part_end(struct stow *s)
{
    struct put_call c = {.s = s, .data = s->gather, .len = s->gathered, .commit = true};

    s->in_part = false;
    if (s->err == 0) {
        note_uids(s, c.data, c.len);
        put_run(&c);
    }
    if (s->err < 0)
        part_failed(s);
    else
        report_stored(&s->report, s->base.data, &c.result);
}

/* The instance in progress will not come to its end. */
static void part_drop(struct stow *s, int err)
{
    struct put_call c = {.s = s, .abort = true};

    if (!s->in_part)
        return;
    s->in_part = false;
    if (s->gathered)
        note_uids(s, s->gather, s->gathered);
    if (s->put)
        env_call(s->w->env, "web-stow", put_fiber, &c);
    if (s->err == 0)
        s->err = err;
    part_failed(s);
}

/* ---- Parts of a multipart body --------------------------------------------------------------- */

static int on_part(void *arg, const struct multipart_part *part)
{
    struct stow *s = arg;
    struct mime mime;

    if (++s->parts > PARTS_MAX)
        return ERR_TOOBIG;
    part_begin(s, part->content_length);
    /* A part without a type is what the request's type parameter says. */
    if (part->encoded || (part->content_type && (mime_parse(part->content_type, &mime) < 0 ||
                                                 strcmp(mime.type, "application/dicom") != 0)))
        s->err = ERR_UNSUPPORTED;
    return 0;
}

static int on_data(void *arg, const void *data, size_t len)
{
    part_data(arg, data, len);
    return 0;
}

static int on_part_end(void *arg)
{
    part_end(arg);
    return 0;
}

/* ---- The request ----------------------------------------------------------------------------- */

/* Sets up for the request's Content-Type; false: it is none that is taken. */
static bool take_type(struct stow *s, struct httpd_req *r)
{
    static const struct multipart_ops ops = {on_part, on_data, on_part_end};
    const char *text = httpd_header(r, "Content-Type"), *type, *boundary;
    struct mime m;

    if (!text || mime_parse(text, &m) < 0)
        return false;
    if (strcmp(m.type, "application/dicom") == 0) {
        s->single = true;
        return true;
    }
    type = mime_param(&m, "type");
    boundary = mime_param(&m, "boundary");
    if (strcmp(m.type, "multipart/related") != 0 || !boundary ||
        (type && strcasecmp(type, "application/dicom") != 0))
        return false;
    s->multipart = mem_alloc(sizeof(*s->multipart));
    return multipart_init(s->multipart, boundary, &ops, s) == 0;
}

void stow_begin(struct dicomweb *w, struct httpd_req *r, const struct route *route)
{
    struct stow *s;
    const char *type = web_choose_json(r);

    if (!type)
        return;
    s = mem_zalloc(sizeof(*s));
    s->w = w;
    s->type = type;
    if (route->study)
        memcpy(s->study, route->study, strlen(route->study) + 1); /* checked to be a UID */
    web_base(r, &s->base);
    httpd_set_state(r, s); /* on_close frees it */
    if (!take_type(s, r)) {
        httpd_reply_text(r, 415, UNSUPPORTED_415);
        return;
    }
    if (!httpd_set_body_max(r, s->single ? OBJECT_INSTANCE_MAX : REQUEST_MAX))
        return;
    if (s->single)
        part_begin(s, httpd_body_length(r));
}

void stow_body(struct dicomweb *w, struct httpd_req *r, const void *data, size_t len)
{
    struct stow *s = httpd_state(r);

    (void)w;
    if (s->single)
        part_data(s, data, len);
    else if (s->broken == 0)
        s->broken = multipart_push(s->multipart, data, len);
}

static void stow_reply(struct stow *s, struct httpd_req *r)
{
    unsigned status = report_status(&s->report);
    struct strbuf out = STRBUF_INIT;
    size_t len;

    if (status == 400 || (s->broken < 0 && s->report.stored_count == 0)) {
        httpd_reply_text(r, s->broken == ERR_TOOBIG ? 413 : 400,
                         s->broken < 0
                             ? "Nothing was stored: the multipart body is broken, cut short or has "
                               "too many or too large part headers."
                             : "Nothing was stored: the body holds no instance.");
        return;
    }
    report_json(&s->report, s->base.data, &out);
    if (status == 503)
        httpd_reply_header(r, "Retry-After", "5");
    if (s->report.warning) {
        STRBUF_AUTO struct strbuf warning = STRBUF_INIT;

        strbuf_addf(&warning, "299 filmroom \"%s\"", s->report.warning);
        httpd_reply_header(r, "Warning", warning.data);
    }
    len = out.len;
    httpd_reply(r, status, s->type, strbuf_take(&out), len);
}

void stow_end(struct dicomweb *w, struct httpd_req *r)
{
    struct stow *s = httpd_state(r);

    (void)w;
    if (s->single) {
        part_end(s);
    } else {
        if (s->broken == 0)
            s->broken = multipart_finish(s->multipart);
        if (s->broken < 0)
            part_drop(s, ERR_TRUNCATED);
    }
    stow_reply(s, r);
}

void stow_free(struct dicomweb *w, struct stow *s)
{
    (void)w;
    part_drop(s, ERR_CLOSED); /* the client went away in the middle of an instance */
    report_free(&s->report);
    strbuf_free(&s->base);
    mem_free(s->multipart);
    mem_free(s->gather);
    mem_free(s);
}

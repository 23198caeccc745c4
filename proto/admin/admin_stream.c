/* The bytes of objects, in and out, as they come: PUT and GET of an object. Everything else is
 * answered from memory in admin_server.c.
 *
 * A put is begun before the body is read: whoever waits for "100 Continue" hears of a missing
 * bucket, a condition that does not hold, or a full store before sending anything. Its bytes are
 * handed to the engine's loop GATHER at a time, the answer is sent when the object is durable. What
 * a client does not bring to its end never was.
 *
 * A get holds its object open until the last byte is sent, so that all bytes are of one version.
 *
 * Each holds its connection, and a buffer, for as long as it lasts: there are ADMIN_TRANSFERS_MAX
 * of them at most.
 */
#include <string.h>
#include <time.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/admin/admin_impl.h"
#include "proto/admin/admin_stream.h"

#define GATHER (256u << 10)

struct admin_stream {
    struct env *env;
    const struct admin_backend *backend;
    struct admin_call *call;
    atomic_uint *transfers; /* this one is counted there; NULL: it is not */
    /* PUT */
    struct bucket_put *put;
    uint64_t size_hint, taken; /* bytes announced; arrived */
    uint8_t *gather;
    size_t gathered;
    /* GET; outlives the request */
    struct bucket_object *object;
    uint64_t off, len;
};

/* ---- Storing, on the loop ------------------------------------------------------------------- */

enum put_step { PUT_BEGIN, PUT_APPEND, PUT_COMMIT, PUT_ABORT };

struct put_call {
    struct admin_stream *s;
    enum put_step step;
};

static int put_begin(struct admin_stream *s)
{
    const struct admin_object *o = s->call->object;
    struct bucket_put_info info = {.bucket = o->bucket,
                                   .name = o->name,
                                   .type = o->type,
                                   .pairs = o->pairs,
                                   .pair_count = o->pair_count,
                                   .size_hint = s->size_hint,
                                   .condition = o->condition};

    memcpy(info.etag, o->etag, BUCKET_ETAG);
    return bucket_put_begin(s->backend->buckets, &info, &s->put);
}

static int put_append(struct admin_stream *s)
{
    int r = s->gathered ? bucket_put_append(s->put, s->gather, s->gathered) : 0;

    s->gathered = 0;
    return r;
}

static int put_commit(struct admin_stream *s)
{
    int r = put_append(s);
    struct bucket_put *put = s->put;

    if (r < 0)
        return r;
    s->put = NULL; /* commit frees it, whatever it returns */
    return bucket_put_commit(put, &s->call->object->put);
}

static void put_fiber(void *arg)
{
    struct put_call *pc = arg;
    struct admin_stream *s = pc->s;
    struct admin_call *c = s->call;
    int r = 0;

    c->buckets = s->backend->buckets;
    switch (pc->step) {
    case PUT_BEGIN:
        r = put_begin(s);
        break;
    case PUT_APPEND:
        r = put_append(s);
        break;
    case PUT_COMMIT:
        r = put_commit(s);
        break;
    case PUT_ABORT:
        break;
    }
    if (r < 0) {
        c->error = r;
        if (r == ERR_NOENT) /* where a put fails so, it is for want of the bucket */
            admin_call_fail(c, r, "no bucket \"%s\"", c->object->bucket);
        else
            (void)admin_object_said(c, r);
    }
    if (r < 0 || pc->step == PUT_ABORT) {
        bucket_put_abort(s->put);
        s->put = NULL;
    }
}

static void put_run(struct admin_stream *s, enum put_step step)
{
    struct put_call pc = {s, step};

    if (env_call(s->env, "admin-put", put_fiber, &pc) < 0 && !s->call->error)
        s->call->error = ERR_SHUTDOWN;
}

/* ---- Storing -------------------------------------------------------------------------------- */

static void stream_answer(struct admin_stream *s, struct httpd_req *r)
{
    const char *allow;
    unsigned status;
    char *body;
    size_t len;

    status = admin_call_answer(s->call, &body, &len, &allow);
    if (status >= 500)
        log_error("admin", "request failed method=%s path=%s status=%u", log_q(httpd_method(r)),
                  log_q(httpd_raw_path(r)), status);
    httpd_reply(r, status, admin_call_type(s->call), body, len);
}

static void begin_put(struct admin_stream *s, struct httpd_req *r)
{
    uint64_t announced = httpd_body_length(r);

    (void)httpd_set_body_max(r, UINT64_MAX); /* we say it better than the server */
    if (announced != HTTPD_UNKNOWN && announced > BUCKET_OBJECT_MAX) {
        s->call->error = admin_object_said(s->call, ERR_TOOBIG);
        stream_answer(s, r);
        return;
    }
    s->size_hint = announced == HTTPD_UNKNOWN ? 0 : announced;
    s->gather = mem_alloc(GATHER);
    put_run(s, PUT_BEGIN);
    if (s->call->error)
        stream_answer(s, r);
}

/* Who sends hears of it when all is sent, or never, if that is too much to wait for: the log is the
 * place that surely has it. */
static void put_broken_off(struct admin_stream *s, const char *why)
{
    log_warn("admin",
             "an upload ended before its end, nothing was stored bucket=%s object=%s bytes=%llu "
             "reason=%s",
             log_q(s->call->object->bucket), log_q(s->call->object->name),
             (unsigned long long)s->taken, log_q(why));
}

void admin_stream_body(struct admin_stream *s, struct httpd_req *r, const void *data, size_t len)
{
    const uint8_t *p = data;

    s->taken += len;
    if (s->taken > BUCKET_OBJECT_MAX && !s->call->error)
        s->call->error = admin_object_said(s->call, ERR_TOOBIG);
    while (len && !s->call->error) {
        size_t room = GATHER - s->gathered, take = len < room ? len : room;

        memcpy(s->gather + s->gathered, p, take);
        s->gathered += take;
        p += take;
        len -= take;
        if (s->gathered == GATHER)
            put_run(s, PUT_APPEND);
    }
    if (s->call->error && !httpd_replied(r)) {
        if (httpd_status_of(s->call->error) < 500) /* others are logged with the answer */
            put_broken_off(s, err_name(s->call->error));
        stream_answer(s, r);
    }
}

void admin_stream_end(struct admin_stream *s, struct httpd_req *r)
{
    if (!s->call->error)
        put_run(s, PUT_COMMIT);
    stream_answer(s, r);
}

void admin_stream_free(struct admin_stream *s)
{
    if (!s)
        return;
    if (s->put && !s->call->error)
        put_broken_off(s, "the client went away, or sent nothing for 5 minutes");
    if (s->put)
        put_run(s, PUT_ABORT);
    if (s->transfers)
        atomic_fetch_sub(s->transfers, 1);
    admin_call_free(s->call);
    mem_free(s->gather);
    mem_free(s);
}

/* ---- Reading -------------------------------------------------------------------------------- */

static void open_fiber(void *arg)
{
    struct admin_stream *s = arg;
    const struct admin_object *o = s->call->object;
    int r;

    s->call->buckets = s->backend->buckets;
    r = bucket_open(s->backend->buckets, o->bucket, o->name, &s->object);
    if (r < 0)
        s->call->error = admin_object_said(s->call, r);
}

struct read_call {
    struct admin_stream *s;
    uint64_t off;
    void *buf;
    size_t len, got;
    int error;
};

static void read_fiber(void *arg)
{
    struct read_call *rc = arg;

    rc->error = bucket_read(rc->s->object, rc->off, rc->buf, rc->len, &rc->got);
}

static int64_t stream_read(void *arg, uint64_t off, void *buf, size_t len)
{
    struct admin_stream *s = arg;
    struct read_call rc = {.s = s, .off = s->off + off, .buf = buf, .len = len};
    int r = env_call(s->env, "admin-get", read_fiber, &rc);

    if (r == 0 && rc.error < 0) {
        r = rc.error;
        log_error("admin", "an object cannot be read bucket=%s error=%s",
                  log_q(s->call->object->bucket), err_name(r));
    }
    return r < 0 ? r : (int64_t)rc.got;
}

static void close_fiber(void *arg)
{
    struct admin_stream *s = arg;

    bucket_close(s->object);
}

static void stream_close(void *arg)
{
    struct admin_stream *s = arg;

    if (s->object)
        (void)env_call(s->env, "admin-get", close_fiber, s);
    s->object = NULL;
    admin_stream_free(s);
}

/* What an object is, as headers. */
static void entry_headers(struct httpd_req *r, const struct bucket_entry *e)
{
    time_t seconds = (time_t)(e->stored_ns / 1000000000u);
    char text[2 * BUCKET_ETAG + 3];
    struct tm tm;

    admin_etag_text(e->etag, text);
    httpd_reply_header(r, "ETag", text);
    httpd_reply_header(r, "Accept-Ranges", "bytes");
    if (gmtime_r(&seconds, &tm) && strftime(text, sizeof(text), "%a, %d %b %Y %T GMT", &tm))
        httpd_reply_header(r, "Last-Modified", text);
    for (size_t i = 0; i < e->pair_count; i++) {
        STRBUF_AUTO struct strbuf name = STRBUF_INIT;

        strbuf_addf(&name, ADMIN_META "%s", e->pairs[i].name);
        httpd_reply_header(r, name.data, e->pairs[i].value);
    }
}

static void get_reply(struct admin_stream *s, struct httpd_req *r)
{
    static const struct httpd_stream ops = {.read = stream_read, .close = stream_close};
    const struct bucket_entry *e = bucket_get_entry(s->object);
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    unsigned status = s->call->object->range == ADMIN_ALL ? 200 : 206;

    if (!admin_object_range(s->call->object, e->size, &s->off, &s->len)) {
        strbuf_addf(&text, "bytes */%llu", (unsigned long long)e->size);
        httpd_reply_header(r, "Content-Range", text.data);
        admin_call_fail(s->call, ERR_RANGE, "the object has %llu bytes",
                        (unsigned long long)e->size);
        s->call->http_status = 416;
        stream_answer(s, r);
        stream_close(s);
        return;
    }
    entry_headers(r, e);
    if (status == 206) {
        strbuf_addf(&text, "bytes %llu-%llu/%llu", (unsigned long long)s->off,
                    (unsigned long long)(s->off + s->len - 1), (unsigned long long)e->size);
        httpd_reply_header(r, "Content-Range", text.data);
    }
    httpd_reply_stream(r, status, *e->type ? e->type : "application/octet-stream", s->len, &ops, s);
}

static void run_get(struct admin_stream *s, struct httpd_req *r)
{
    if (env_call(s->env, "admin-get", open_fiber, s) < 0)
        s->call->error = ERR_SHUTDOWN;
    if (!s->call->error) {
        get_reply(s, r);
        return;
    }
    stream_answer(s, r);
    admin_stream_free(s);
}

/* ---- Either --------------------------------------------------------------------------------- */

/* Takes one of the places. Who gets none is not counted: he would keep others out. */
static void take_place(struct admin_stream *s, atomic_uint *transfers, struct httpd_req *r)
{
    if (atomic_fetch_add(transfers, 1) < ADMIN_TRANSFERS_MAX) {
        s->transfers = transfers;
        return;
    }
    atomic_fetch_sub(transfers, 1);
    httpd_reply_header(r, "Retry-After", "2");
    admin_call_fail(s->call, ERR_OVERLOAD,
                    "%u objects are being stored or read, which is the most at one time: try "
                    "again in a moment",
                    ADMIN_TRANSFERS_MAX);
}

struct admin_stream *admin_stream_begin(struct env *env, const struct admin_backend *backend,
                                        atomic_uint *transfers, struct admin_call *call,
                                        struct httpd_req *r)
{
    struct admin_stream *s = mem_zalloc(sizeof(*s));

    s->env = env;
    s->backend = backend;
    s->call = call;
    if (!backend->buckets)
        admin_call_fail(call, ERR_NOENT, "there are no buckets here");
    if (!call->error)
        take_place(s, transfers, r);
    if (call->error) {
        stream_answer(s, r);
    } else if (call->kind == ADMIN_OBJECT_GET) {
        run_get(s, r);
        return NULL;
    } else {
        begin_put(s, r);
    }
    return s;
}

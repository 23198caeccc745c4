/* httpd over libmicrohttpd: what the library calls, and how an answer gets out.
 *
 * The library calls on_access() once with the headers, then with each piece of body, then once more
 * at the end, always on the connection's thread. It takes an answer only at the first or at the
 * last of these calls. So an answer made in the middle is held, the rest of the body is read and
 * dropped, and the answer goes out at the end. The same is done with an early refusal when the body
 * is on its way already: closing a socket with unread bytes makes the kernel send a reset, and the
 * client would lose the answer that tells it why. Beyond DRAIN_MAX bytes the connection is cut
 * nevertheless.
 *
 * The raw request target is only shown to the URI callback, before the headers are parsed; it waits
 * in the connection's `struct conn` for the request to begin.
 *
 * The library resets connections over its limit. Ours is SPARE_CONNECTIONS lower, and the requests
 * of a connection over it are answered with 503: only a flood is reset.
 *
 * Stopping: no more accepts, new requests on kept connections are refused, running ones get
 * STOP_GRACE to finish, then their sockets are shut down. MHD_stop_daemon joins the threads, and
 * these may sit in env_call waiting for the loop: so it runs on a thread of its own, never on the
 * loop.
 */
#include "lib/net/httpd.h"

#include <limits.h>
#include <microhttpd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/metric.h"
#include "lib/base/strbuf.h"
#include "lib/net/httpd_impl.h"

#define POOL_SIZE           (256u << 10) /* per connection: headers, body pieces, chunked output */
#define POOL_INCREMENT      (64u << 10)
#define STREAM_BLOCK        (512u << 10) /* buffer of a streamed answer of known length */
#define THREAD_STACK        (2u << 20)
#define DRAIN_MAX           (8u << 20)
#define REPLY_HEADERS_MAX   48
#define STOP_GRACE_NS       (5 * ENV_NS_PER_S)
#define STOP_POLL_NS        (5 * ENV_NS_PER_MS)
#define DEFAULT_CONNECTIONS 128
#define SPARE_CONNECTIONS   32 /* beyond the cap, to be told so */
#define DEFAULT_TIMEOUT_S   60
#define DEFAULT_BODY_MAX    (1u << 20)

struct httpd {
    struct env *env;
    struct MHD_Daemon *mhd;
    const struct httpd_handler *h;
    void *ctx;
    const char *server;
    uint64_t body_max;
    struct env_addr addr;
    unsigned max_connections;
    atomic_uint connections;
    atomic_uint active; /* exchanges between on_access and on_completed */
    atomic_bool stopping;
    struct metric_counter received, sent; /* bytes of bodies */
};

/* One connection. */
struct conn {
    char *target;
    bool over; /* one too many: its requests are refused */
};

struct reply_header {
    char *name, *value;
};

struct httpd_req {
    struct httpd *s;
    struct MHD_Connection *mhd;
    char *method;
    struct httpd_uri uri;
    struct strbuf body;
    uint64_t body_length, body_seen, body_max, dropped;
    uint64_t started;
    bool began; /* on_request was called */
    bool queued;
    unsigned status; /* of the answer held in `resp`; 0: none yet */
    struct MHD_Response *resp;
    size_t header_count;
    struct reply_header headers[REPLY_HEADERS_MAX];
    void *state;
    char peer[80];
};

static struct conn *conn_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return info ? info->socket_context : NULL;
}

/* ---- The request ----------------------------------------------------------------------------- */

const char *httpd_method(const struct httpd_req *r)
{
    return r->method;
}

bool httpd_is(const struct httpd_req *r, const char *method)
{
    return strcmp(r->method, method) == 0 ||
           (strcmp(method, "GET") == 0 && strcmp(r->method, "HEAD") == 0);
}

size_t httpd_segment_count(const struct httpd_req *r)
{
    return r->uri.segment_count;
}

const char *httpd_segment(const struct httpd_req *r, size_t i)
{
    CHECK(i < r->uri.segment_count);
    return r->uri.segments[i];
}

const char *httpd_raw_path(const struct httpd_req *r)
{
    return r->uri.raw_path;
}

size_t httpd_arg_count(const struct httpd_req *r)
{
    return r->uri.arg_count;
}

const char *httpd_arg_name(const struct httpd_req *r, size_t i)
{
    CHECK(i < r->uri.arg_count);
    return r->uri.args[i].name;
}

const char *httpd_arg_value(const struct httpd_req *r, size_t i)
{
    CHECK(i < r->uri.arg_count);
    return r->uri.args[i].value;
}

const char *httpd_arg(const struct httpd_req *r, const char *name)
{
    for (size_t i = 0; i < r->uri.arg_count; i++)
        if (strcmp(r->uri.args[i].name, name) == 0)
            return r->uri.args[i].value;
    return NULL;
}

const char *httpd_header(const struct httpd_req *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

struct each {
    const char *name;
    void (*visit)(void *arg, const char *value);
    void *arg;
};

static enum MHD_Result each_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                   const char *value)
{
    struct each *e = cls;

    (void)kind;
    if (strcasecmp(key, e->name) == 0)
        e->visit(e->arg, value ? value : "");
    return MHD_YES;
}

void httpd_header_each(const struct httpd_req *r, const char *name,
                       void (*visit)(void *arg, const char *value), void *arg)
{
    struct each e = {name, visit, arg};

    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, each_header, &e);
}

struct all {
    void (*visit)(void *arg, const char *name, const char *value);
    void *arg;
};

static enum MHD_Result all_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                  const char *value)
{
    struct all *a = cls;

    (void)kind;
    a->visit(a->arg, key, value ? value : "");
    return MHD_YES;
}

void httpd_headers(const struct httpd_req *r,
                   void (*visit)(void *arg, const char *name, const char *value), void *arg)
{
    struct all a = {visit, arg};

    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, all_header, &a);
}

uint64_t httpd_body_length(const struct httpd_req *r)
{
    return r->body_length;
}

bool httpd_set_body_max(struct httpd_req *r, uint64_t max)
{
    r->body_max = max;
    if (r->body_length == HTTPD_UNKNOWN || r->body_length <= max)
        return true;
    if (!httpd_replied(r))
        httpd_reply_text(r, 413, "The request body is larger than the limit of %llu bytes.",
                         (unsigned long long)max);
    return false;
}

void httpd_gather(struct httpd_req *r, const void *data, size_t len)
{
    strbuf_add(&r->body, data, len);
}

const char *httpd_body(const struct httpd_req *r, size_t *ret_len)
{
    *ret_len = r->body.len;
    return r->body.data ? r->body.data : "";
}

const char *httpd_peer(const struct httpd_req *r)
{
    return r->peer;
}

uint64_t httpd_started(const struct httpd_req *r)
{
    return r->started;
}

unsigned httpd_status(const struct httpd_req *r)
{
    return r->status;
}

void httpd_set_state(struct httpd_req *r, void *state)
{
    r->state = state;
}

void *httpd_state(const struct httpd_req *r)
{
    return r->state;
}

/* ---- The answer ------------------------------------------------------------------------------ */

bool httpd_replied(const struct httpd_req *r)
{
    return r->status != 0;
}

static bool header_text_ok(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 0x7f)
            return false;
    return true;
}

void httpd_reply_header(struct httpd_req *r, const char *name, const char *value)
{
    CHECK(!httpd_replied(r) && r->header_count < REPLY_HEADERS_MAX);
    CHECK(header_text_ok(name) && header_text_ok(value));
    r->headers[r->header_count].name = mem_strdup(name);
    r->headers[r->header_count].value = mem_strdup(value);
    r->header_count++;
}

static void reply_with(struct httpd_req *r, unsigned status, const char *content_type,
                       struct MHD_Response *resp)
{
    CHECK(resp && !httpd_replied(r) && status >= 200 && status < 600);
    if (content_type)
        CHECK(MHD_add_response_header(resp, "Content-Type", content_type) == MHD_YES);
    if (r->s->server)
        CHECK(MHD_add_response_header(resp, "Server", r->s->server) == MHD_YES);
    if (atomic_load(&r->s->stopping) || conn_of(r->mhd)->over)
        CHECK(MHD_add_response_header(resp, "Connection", "close") == MHD_YES);
    for (size_t i = 0; i < r->header_count; i++)
        if (r->headers[i].value[0])
            CHECK(MHD_add_response_header(resp, r->headers[i].name, r->headers[i].value) ==
                  MHD_YES);
    r->status = status;
    r->resp = resp;
}

void httpd_reply(struct httpd_req *r, unsigned status, const char *content_type, char *body,
                 size_t len)
{
    struct MHD_Response *resp;

    if (body)
        resp = MHD_create_response_from_buffer_with_free_callback(len, body, mem_free);
    else
        resp = MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    reply_with(r, status, content_type, resp);
    if (strcmp(r->method, "HEAD") != 0)
        metric_add(&r->s->sent, len);
}

void httpd_reply_text(struct httpd_req *r, unsigned status, const char *fmt, ...)
{
    struct strbuf s = STRBUF_INIT;
    size_t len;
    va_list ap;

    va_start(ap, fmt);
    strbuf_addvf(&s, fmt, ap);
    va_end(ap);
    strbuf_addc(&s, '\n');
    len = s.len;
    httpd_reply(r, status, "text/plain; charset=utf-8", strbuf_take(&s), len);
}

/* A stream being sent. */
struct pull {
    struct httpd *s;
    const struct httpd_stream *st;
    void *arg;
    uint64_t len;
};

static ssize_t pull_read(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct pull *p = cls;
    int64_t n;

    if (p->len != HTTPD_UNKNOWN && max > p->len - pos)
        max = (size_t)(p->len - pos);
    n = p->st->read(p->arg, pos, buf, max);
    CHECK(n <= (int64_t)max);
    if (n > 0) {
        metric_add(&p->s->sent, (uint64_t)n);
        return (ssize_t)n;
    }
    /* An end before the announced length is as bad as an error. */
    if (n < 0 || (p->len != HTTPD_UNKNOWN && pos < p->len))
        return MHD_CONTENT_READER_END_WITH_ERROR;
    return MHD_CONTENT_READER_END_OF_STREAM;
}

static void pull_close(void *cls)
{
    struct pull *p = cls;

    if (p->st->close)
        p->st->close(p->arg);
    mem_free(p);
}

void httpd_reply_stream(struct httpd_req *r, unsigned status, const char *content_type,
                        uint64_t len, const struct httpd_stream *st, void *arg)
{
    struct pull *p = mem_zalloc(sizeof(*p));
    uint64_t size = len == HTTPD_UNKNOWN ? MHD_SIZE_UNKNOWN : len;
    size_t block = len < STREAM_BLOCK ? (size_t)len : STREAM_BLOCK;

    *p = (struct pull){r->s, st, arg, len};
    /* Chunked output is built in the connection's pool; the block would lie idle. */
    if (len == HTTPD_UNKNOWN || block == 0)
        block = 1024;
    reply_with(r, status, content_type,
               MHD_create_response_from_callback(size, block, pull_read, p, pull_close));
}

unsigned httpd_status_of(int err)
{
    switch (err) {
    case ERR_INVAL:
    case ERR_RANGE:
    case ERR_NAME:
    case ERR_PROTO:
    case ERR_TRUNCATED:
    case ERR_CONFIG:
    case ERR_DICOM:
    case ERR_DICOM_NO_UID:
    case ERR_DICOM_UID:
    case ERR_DICOM_MISMATCH:
        return 400;
    case ERR_PERM:
    case ERR_READONLY:
        return 403;
    case ERR_NOENT:
        return 404;
    case ERR_EXIST:
    case ERR_BUSY:
    case ERR_SNAPSHOTS:
    case ERR_DEPTH:
    case ERR_SPREAD:
    case ERR_CONFLICT:
    case ERR_LOCKED:
    case ERR_NOTEMPTY:
        return 409;
    case ERR_CONDITION:
        return 412;
    case ERR_TOOBIG:
        return 413;
    case ERR_UNSUPPORTED:
        return 501;
    case ERR_NOMEM:
    case ERR_AGAIN:
    case ERR_OVERLOAD:
    case ERR_SHUTDOWN:
        return 503;
    case ERR_TIMEDOUT:
        return 504;
    case ERR_NOSPC:
        return 507;
    default:
        return 500;
    }
}

void httpd_reply_error(struct httpd_req *r, int err)
{
    unsigned status = httpd_status_of(err);

    if (status == 503)
        httpd_reply_header(r, "Retry-After", "2");
    httpd_reply_text(r, status, "%s (%s)", err_text(err), err_name(err));
}

/* ---- One exchange ---------------------------------------------------------------------------- */

static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct conn *c = *socket_context;
    struct httpd *s = cls;

    (void)mhd;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *socket_context = c = mem_zalloc(sizeof(*c));
        c->over = atomic_fetch_add(&s->connections, 1) >= s->max_connections;
    } else if (c) {
        atomic_fetch_sub(&s->connections, 1);
        mem_free(c->target);
        mem_free(c);
        *socket_context = NULL;
    }
}

static void *on_target(void *cls, const char *target, struct MHD_Connection *mhd)
{
    struct conn *c = conn_of(mhd);

    (void)cls;
    mem_free(c->target);
    c->target = mem_strdup(target);
    return NULL;
}

/* Arguments are decoded by httpd_uri.c; the library shall leave its own copies alone. */
static size_t no_unescape(void *cls, struct MHD_Connection *mhd, char *s)
{
    (void)cls;
    (void)mhd;
    return strlen(s);
}

static uint64_t announced_length(struct httpd_req *r)
{
    const char *text = httpd_header(r, "Content-Length");

    if (httpd_header(r, "Transfer-Encoding"))
        return HTTPD_UNKNOWN;
    return text ? strtoull(text, NULL, 10) : 0; /* the library has checked its form */
}

static struct httpd_req *req_new(struct httpd *s, struct MHD_Connection *mhd, const char *method)
{
    struct httpd_req *r = mem_zalloc(sizeof(*r));
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);

    r->s = s;
    r->mhd = mhd;
    r->method = mem_strdup(method);
    r->body_max = s->body_max;
    r->body_length = announced_length(r);
    r->started = s->env ? env_now(s->env) : 0;
    httpd_sockaddr_text(info ? info->client_addr : NULL, r->peer, sizeof(r->peer));
    atomic_fetch_add(&s->active, 1);
    return r;
}

static void req_free(struct httpd_req *r)
{
    struct httpd *s = r->s;

    if (r->began && s->h->on_close)
        s->h->on_close(s->ctx, r);
    if (r->resp)
        MHD_destroy_response(r->resp);
    for (size_t i = 0; i < r->header_count; i++) {
        mem_free(r->headers[i].name);
        mem_free(r->headers[i].value);
    }
    httpd_uri_free(&r->uri);
    strbuf_free(&r->body);
    mem_free(r->method);
    mem_free(r);
    atomic_fetch_sub(&s->active, 1);
}

static enum MHD_Result queue_reply(struct httpd_req *r)
{
    enum MHD_Result ok;

    CHECK(r->resp && !r->queued);
    r->queued = true;
    ok = MHD_queue_response(r->mhd, r->status, r->resp);
    MHD_destroy_response(r->resp); /* the library holds its own reference */
    r->resp = NULL;
    return ok;
}

/* What no handler gets to see. */
static void refuse_malformed(struct httpd_req *r)
{
    struct conn *c = conn_of(r->mhd);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    int err = httpd_uri_parse(c->target ? c->target : "", &r->uri);

    if (err == ERR_TOOBIG)
        httpd_reply_text(r, 414, "The request target is longer than %d bytes.", HTTPD_URI_MAX);
    else if (info && info->header_size > HTTPD_HEADERS_MAX)
        httpd_reply_text(r, 431, "The request headers are longer than %d bytes.",
                         HTTPD_HEADERS_MAX);
    else if (err == ERR_NOENT)
        httpd_reply_text(r, 404, "There is no such resource: the path has too many segments.");
    else if (err < 0)
        httpd_reply_text(r, 400, "The request target is not a valid, percent-encoded URI.");
    else if (atomic_load(&r->s->stopping))
        httpd_reply_error(r, ERR_SHUTDOWN);
    else if (c->over)
        httpd_reply_error(r, ERR_OVERLOAD);
}

/* True when the body is on its way and can be dropped, so that the answer is read. */
static bool worth_draining(struct httpd_req *r)
{
    const char *expect = httpd_header(r, "Expect");

    if (r->body_length == 0 || (expect && strcasecmp(expect, "100-continue") == 0))
        return false;
    return r->body_length == HTTPD_UNKNOWN || r->body_length <= DRAIN_MAX;
}

static enum MHD_Result req_begin(struct httpd_req *r)
{
    struct httpd *s = r->s;

    refuse_malformed(r);
    if (!httpd_replied(r)) {
        r->began = true;
        s->h->on_request(s->ctx, r);
    }
    if (!httpd_replied(r))
        httpd_set_body_max(r, r->body_max);
    if (httpd_replied(r) && !worth_draining(r))
        return queue_reply(r);
    return MHD_YES;
}

static enum MHD_Result req_data(struct httpd_req *r, const char *data, size_t len)
{
    struct httpd *s = r->s;

    metric_add(&s->received, len);
    if (!httpd_replied(r)) {
        if (len > r->body_max - r->body_seen)
            httpd_reply_text(r, 413, "The request body is larger than the limit of %llu bytes.",
                             (unsigned long long)r->body_max);
        else if (s->h->on_body)
            s->h->on_body(s->ctx, r, data, len);
        else
            strbuf_add(&r->body, data, len);
        r->body_seen += len;
        return MHD_YES;
    }
    r->dropped += len;
    return r->dropped > DRAIN_MAX ? MHD_NO : MHD_YES;
}

static enum MHD_Result req_end(struct httpd_req *r)
{
    struct httpd *s = r->s;

    if (r->queued)
        return MHD_YES;
    if (!httpd_replied(r))
        s->h->on_end(s->ctx, r);
    if (!httpd_replied(r))
        httpd_reply_text(r, 500, "The request was not answered.");
    return queue_reply(r);
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *mhd, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *data_size, void **req_cls)
{
    struct httpd_req *r = *req_cls;
    size_t n = *data_size;

    (void)url;
    (void)version;
    if (!r) {
        r = *req_cls = req_new(cls, mhd, method);
        return req_begin(r);
    }
    if (n == 0)
        return req_end(r);
    *data_size = 0;
    return req_data(r, data, n);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **req_cls,
                         enum MHD_RequestTerminationCode code)
{
    (void)cls;
    (void)mhd;
    (void)code;
    if (*req_cls)
        req_free(*req_cls);
    *req_cls = NULL;
}

/* ---- The server ------------------------------------------------------------------------------ */

static void on_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_log(void *cls, const char *fmt, va_list ap)
{
    char text[256];

    (void)cls;
    vsnprintf(text, sizeof(text), fmt, ap);
    log_debug("httpd", "libmicrohttpd says text=%s", log_q(text));
}

static void on_panic(void *cls, const char *file, unsigned line, const char *reason)
{
    (void)cls;
    log_error("httpd", "libmicrohttpd panics reason=%s line=%u", log_q(reason), line);
    check_fail(file, (int)line, reason ? reason : "libmicrohttpd panicked");
}

static struct MHD_Daemon *start_mhd(struct httpd *s, const struct httpd_config *cfg, int fd)
{
    unsigned connections = s->max_connections + SPARE_CONNECTIONS;
    unsigned timeout = cfg->idle_timeout_s ? cfg->idle_timeout_s : DEFAULT_TIMEOUT_S;
    /* The logger comes first, for what is said about the others. */
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_EXTERNAL_LOGGER, (intptr_t)on_log, NULL},
        {MHD_OPTION_LISTEN_SOCKET, fd, NULL},
        {MHD_OPTION_CONNECTION_LIMIT, (intptr_t)connections, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, (intptr_t)timeout, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, POOL_SIZE, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_INCREMENT, POOL_INCREMENT, NULL},
        {MHD_OPTION_THREAD_STACK_SIZE, THREAD_STACK, NULL},
        {MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)on_completed, s},
        {MHD_OPTION_NOTIFY_CONNECTION, (intptr_t)on_connection, s},
        {MHD_OPTION_URI_LOG_CALLBACK, (intptr_t)on_target, s},
        {MHD_OPTION_UNESCAPE_CALLBACK, (intptr_t)no_unescape, s},
        {MHD_OPTION_END, 0, NULL},
    };

    MHD_set_panic_func(on_panic, NULL);
    return MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD |
                                MHD_USE_POLL | MHD_USE_ITC | MHD_USE_ERROR_LOG,
                            0, NULL, NULL, on_access, s, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
}

int httpd_start(struct env *env, const struct httpd_config *cfg, const struct httpd_handler *h,
                void *ctx, struct httpd **ret_httpd)
{
    struct httpd *s;
    struct env_addr addr;
    int fd, r;

    r = httpd_listen(&cfg->addr, &fd, &addr);
    if (r < 0)
        return r;
    s = mem_zalloc(sizeof(*s));
    s->env = env;
    s->h = h;
    s->ctx = ctx;
    s->server = cfg->server;
    s->max_connections = cfg->max_connections ? cfg->max_connections : DEFAULT_CONNECTIONS;
    s->body_max = cfg->body_max ? cfg->body_max : DEFAULT_BODY_MAX;
    s->addr = addr;
    s->mhd = start_mhd(s, cfg, fd);
    if (!s->mhd) {
        close(fd);
        mem_free(s);
        return ERR_IO;
    }
    *ret_httpd = s;
    return 0;
}

void httpd_addr(const struct httpd *s, struct env_addr *ret_addr)
{
    *ret_addr = s->addr;
}

void httpd_observe(const struct httpd *s, struct metrics *m, const char *door)
{
    metrics_add_counter(m, "filmroom_door_received_bytes_total",
                        "Bytes of content received from clients", METRIC_LABELS("door", door),
                        &s->received);
    metrics_add_counter(m, "filmroom_door_sent_bytes_total", "Bytes of content sent to clients",
                        METRIC_LABELS("door", door), &s->sent);
}

unsigned httpd_port(const struct httpd *s)
{
    const char *colon = strrchr(s->addr.text, ':');

    if (strncmp(s->addr.text, "tcp:", 4) != 0)
        return 0;
    return (unsigned)strtoul(colon + 1, NULL, 10);
}

/* Stopping, on its own thread: the struct is on the stack of the fiber that waits. */
struct stop {
    struct httpd *s;
    struct fiber *waiter;
    bool done;
};

static void stop_done(void *arg)
{
    struct stop *st = arg;

    st->done = true;
    fiber_wake(st->waiter);
}

static void stop_thread(void *arg)
{
    struct stop *st = arg;

    MHD_stop_daemon(st->s->mhd);
    CHECK_OK(env_post(st->s->env, "httpd-stopped", stop_done, st));
}

static void stop_in_fiber(struct httpd *s)
{
    struct stop st = {s, fiber_self(), false};

    for (uint64_t waited = 0; atomic_load(&s->active) > 0 && waited < STOP_GRACE_NS;
         waited += STOP_POLL_NS)
        env_sleep(s->env, STOP_POLL_NS);
    CHECK_OK(env_thread(s->env, "httpd-stop", stop_thread, &st));
    while (!st.done)
        fiber_suspend("httpd_stop");
}

void httpd_stop(struct httpd *s)
{
    int fd;

    if (!s)
        return;
    atomic_store(&s->stopping, true);
    fd = MHD_quiesce_daemon(s->mhd);
    if (s->env)
        stop_in_fiber(s);
    else
        MHD_stop_daemon(s->mhd);
    CHECK(atomic_load(&s->active) == 0);
    if (fd >= 0)
        close(fd);
    if (strncmp(s->addr.text, "unix:", 5) == 0)
        unlink(s->addr.text + 5);
    mem_free(s);
}

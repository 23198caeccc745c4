/* The thin server around admin_core: takes requests from httpd on connection threads, runs their
 * middle part in a fiber of the engine's loop, and answers. See admin_server.h.
 */
#include "proto/admin/admin_server.h"

#include <stdatomic.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/net/httpd.h"
#include "proto/admin/admin_stream.h"

/* Transfers of objects may last; the other connections are left to calls that end soon, so that a
 * daemon that is busy with objects can still be asked and told. */
#define ADMIN_CONNECTIONS 32u
#define HEADERS_MAX       128u
#define ADMIN_IDLE_S      300u /* longer than the longest call, a study's deletion */

struct admin_server {
    struct env *env;
    struct admin_backend backend;
    struct httpd *httpd;
    atomic_uint transfers; /* of objects, under way */
};

struct admin_job {
    struct admin_server *server;
    struct admin_call *call;
};

static void admin_job_fiber(void *arg)
{
    struct admin_job *job = arg;

    admin_call_run(job->call, &job->server->backend);
}

static void admin_reply_error(struct httpd_req *r, unsigned status, int error, const char *message)
{
    char *body = admin_error_body(err_name(error), message);

    httpd_reply(r, status, "application/json", body, strlen(body));
}

struct admin_headers {
    struct admin_arg rows[HEADERS_MAX];
    size_t count; /* beyond HEADERS_MAX: so many there were, and the request is refused */
};

static void admin_take_header(void *arg, const char *name, const char *value)
{
    struct admin_headers *h = arg;

    if (h->count < HEADERS_MAX)
        h->rows[h->count] = (struct admin_arg){name, value};
    h->count++;
}

/* NULL after an answer: the request has too many headers. */
static struct admin_call *admin_server_parse(struct httpd_req *r)
{
    struct admin_headers headers = {.count = 0};
    const char *segments[HTTPD_SEGMENTS_MAX];
    struct admin_arg args[HTTPD_ARGS_MAX];
    struct admin_request request = {.method = httpd_method(r), .segments = segments, .args = args};

    request.segment_count = httpd_segment_count(r);
    CHECK(request.segment_count <= HTTPD_SEGMENTS_MAX);
    for (size_t i = 0; i < request.segment_count; i++)
        segments[i] = httpd_segment(r, i);
    request.arg_count = httpd_arg_count(r);
    CHECK(request.arg_count <= HTTPD_ARGS_MAX);
    for (size_t i = 0; i < request.arg_count; i++)
        args[i] = (struct admin_arg){httpd_arg_name(r, i), httpd_arg_value(r, i)};
    httpd_headers(r, admin_take_header, &headers);
    if (headers.count > HEADERS_MAX) {
        admin_reply_error(r, 431, ERR_TOOBIG, "a request has at most 128 headers");
        return NULL;
    }
    request.headers = headers.rows;
    request.header_count = headers.count;
    request.body = httpd_body(r, &request.body_len);
    return admin_call_new(&request);
}

/* Requests that carry an object's bytes, or ask for them, are taken up before the body; the others
 * when it is there. Which they are, path and method say. */
static void admin_on_request(void *ctx, struct httpd_req *r)
{
    struct admin_server *s = ctx;
    struct admin_call *call = admin_server_parse(r);

    if (!call)
        return;
    if (admin_call_streams(call)) {
        httpd_set_state(r, admin_stream_begin(s->env, &s->backend, &s->transfers, call, r));
        return;
    }
    admin_call_free(call);
    (void)httpd_set_body_max(r, ADMIN_BODY_MAX);
}

static void admin_on_body(void *ctx, struct httpd_req *r, const void *data, size_t len)
{
    (void)ctx;
    if (httpd_state(r))
        admin_stream_body(httpd_state(r), r, data, len);
    else
        httpd_gather(r, data, len);
}

static void admin_on_close(void *ctx, struct httpd_req *r)
{
    (void)ctx;
    admin_stream_free(httpd_state(r));
}

static void admin_on_end(void *ctx, struct httpd_req *r)
{
    struct admin_server *s = ctx;
    struct admin_job job = {.server = s};
    const char *allow;
    char *body;
    size_t len;
    unsigned status;

    if (httpd_state(r)) {
        admin_stream_end(httpd_state(r), r);
        return;
    }
    job.call = admin_server_parse(r);
    CHECK(job.call != NULL); /* its headers were counted before */
    if (env_call(s->env, "admin", admin_job_fiber, &job) < 0) {
        admin_reply_error(r, 503, ERR_SHUTDOWN, err_text(ERR_SHUTDOWN));
        admin_call_free(job.call);
        return;
    }
    status = admin_call_answer(job.call, &body, &len, &allow);
    if (status >= 500)
        log_error("admin", "request failed method=%s path=%s status=%u", log_q(httpd_method(r)),
                  log_q(httpd_raw_path(r)), status);
    if (allow)
        httpd_reply_header(r, "Allow", allow);
    httpd_reply(r, status, admin_call_type(job.call), body, len);
    admin_call_free(job.call);
}

static const struct httpd_handler admin_handler = {
    .on_request = admin_on_request,
    .on_body = admin_on_body,
    .on_end = admin_on_end,
    .on_close = admin_on_close,
};

int admin_server_start(struct env *env, const struct env_addr *addr,
                       const struct admin_backend *backend, struct admin_server **ret_server)
{
    struct httpd_config config = {.addr = *addr,
                                  .max_connections = ADMIN_CONNECTIONS,
                                  .idle_timeout_s = ADMIN_IDLE_S,
                                  .body_max = ADMIN_BODY_MAX,
                                  .server = "filmroom/" FILMROOM_VERSION};
    struct admin_server *s = mem_zalloc(sizeof(*s));
    int r;

    s->env = env;
    s->backend = *backend;
    r = httpd_start(env, &config, &admin_handler, s, &s->httpd);
    if (r < 0) {
        mem_free(s);
        return r;
    }
    *ret_server = s;
    return 0;
}

void admin_server_stop(struct admin_server *s)
{
    if (!s)
        return;
    httpd_stop(s->httpd);
    mem_free(s);
}

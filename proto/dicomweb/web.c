/* The DICOMweb server: requests to services, errors to answers.
 *
 * All of this runs on connections' threads. The engine is reached by env_call only; what a service
 * keeps between calls belongs to its request.
 */
#include "proto/dicomweb/web.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

#define QUERIES_AT_ONCE 8          /* catalogue rows of queries that run: this many times 10000 */
#define WHOLE_AT_ONCE   4          /* searches' answers with all rows in memory, 10000 at most */
#define LARGE_AT_ONCE   4          /* headers over 1 MiB */
#define ITEMS_AHEAD     (1u << 20) /* JSON made before the answer begins */

/* ---- Helpers of the services ----------------------------------------------------------------- */

/* A host name or address, perhaps with a port, and nothing that could break out of a URL. */
static bool host_ok(const char *host)
{
    size_t n = strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]");

    return n > 0 && n <= 255 && host[n] == 0;
}

void web_base(const struct httpd_req *r, struct strbuf *out)
{
    const char *host = httpd_header(r, "Host"), *proto = httpd_header(r, "X-Forwarded-Proto");
    bool tls = proto && strcmp(proto, "https") == 0; /* said by the proxy that ends TLS for us */

    strbuf_addf(out, "%s://%s/" WEB_PREFIX, tls ? "https" : "http",
                host && host_ok(host) ? host : "localhost");
}

void web_fail(struct httpd_req *r, int err)
{
    if (httpd_status_of(err) >= 500 && err != ERR_OVERLOAD && err != ERR_SHUTDOWN)
        log_warn("dicomweb", "request failed method=%s path=%s peer=%s error=%s text=%s",
                 log_q(httpd_method(r)), log_q(httpd_raw_path(r)), log_q(httpd_peer(r)),
                 err_name(err), log_q(err_text(err)));
    httpd_reply_error(r, err);
}

struct gather {
    struct mime_accept accept;
    int err;
};

static void gather_accept(void *arg, const char *value)
{
    struct gather *g = arg;

    if (g->err == 0)
        g->err = mime_accept_add(&g->accept, value);
}

/* The accept= argument replaces the header: browsers' addresses cannot set one (PS3.18 section
 * 8.3.3.1). */
static int read_accept(struct httpd_req *r, struct gather *g)
{
    bool arg = false;

    for (size_t i = 0; i < httpd_arg_count(r) && g->err == 0; i++)
        if (strcmp(httpd_arg_name(r, i), "accept") == 0) {
            arg = true;
            g->err = mime_accept_add_arg(&g->accept, httpd_arg_value(r, i));
        }
    if (!arg)
        httpd_header_each(r, "Accept", gather_accept, g);
    return g->err;
}

static void list_offers(const struct mime_offer *offers, size_t count, struct strbuf *out)
{
    for (size_t i = 0; i < count; i++) {
        const struct mime_offer *o = &offers[i];

        strbuf_adds(out, i ? ", or " : "");
        if (o->multipart)
            strbuf_addf(out, "multipart/related; type=\"%s\"", o->type);
        else
            strbuf_adds(out, o->type);
        for (size_t k = 0; k < o->syntax_count; k++)
            strbuf_addf(out, "%s%s", k ? " and " : "; transfer-syntax=", o->syntaxes[k]);
    }
}

int web_choose(struct httpd_req *r, const struct mime_offer *offers, size_t count)
{
    struct gather *g = mem_zalloc(sizeof(*g));
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    int chosen = -1;

    if (read_accept(r, g) < 0) {
        httpd_reply_text(r, 400, "The Accept header or argument is not a list of media types.");
    } else {
        chosen = mime_choose(&g->accept, offers, count);
        if (chosen < 0) {
            list_offers(offers, count, &text);
            httpd_reply_text(r, 406, "None of the accepted media types fits. Available: %s.",
                             text.data ? text.data : "nothing");
        }
    }
    mem_free(g);
    return chosen;
}

const char *web_choose_json(struct httpd_req *r)
{
    static const struct mime_offer offers[] = {{.type = "application/dicom+json"},
                                               {.type = "application/json"}};
    int i = web_choose(r, offers, 2);

    return i < 0 ? NULL : offers[i].type;
}

/* ---- Arrays made item by item ---------------------------------------------------------------- */

struct items_stream {
    const struct web_items *items;
    void *arg;
    struct strbuf ahead; /* made, not yet given out */
    size_t given;
    bool any, end;
};

/* Makes at least one more item, or the end. */
static int items_more(struct items_stream *s)
{
    int r;

    strbuf_addc(&s->ahead, s->any ? ',' : '[');
    r = s->items->next(s->arg, &s->ahead);
    if (r > 0) {
        s->any = true;
    } else if (r == 0) {
        if (s->any)
            s->ahead.len--; /* the comma */
        strbuf_addc(&s->ahead, ']');
        s->end = true;
    }
    return s->ahead.overflow ? ERR_TOOBIG : r;
}

static int64_t items_read(void *arg, uint64_t off, void *buf, size_t len)
{
    struct items_stream *s = arg;
    int r;

    (void)off;
    if (s->given == s->ahead.len) {
        if (s->end)
            return 0;
        s->given = 0;
        strbuf_reset(&s->ahead);
        r = items_more(s);
        if (r < 0) {
            log_warn("dicomweb", "answer cut short error=%s text=%s", err_name(r),
                     log_q(err_text(r)));
            return r;
        }
    }
    if (len > s->ahead.len - s->given)
        len = s->ahead.len - s->given;
    memcpy(buf, s->ahead.data + s->given, len);
    s->given += len;
    return (int64_t)len;
}

static void items_close(void *arg)
{
    struct items_stream *s = arg;

    s->items->free(s->arg);
    strbuf_free(&s->ahead);
    mem_free(s);
}

void web_reply_items(struct httpd_req *r, const char *content_type, bool empty_204,
                     const struct web_items *items, void *arg)
{
    static const struct httpd_stream stream = {items_read, items_close};
    struct items_stream *s = mem_zalloc(sizeof(*s));
    int err = 0;

    s->items = items;
    s->arg = arg;
    while (!s->end && s->ahead.len < ITEMS_AHEAD && err >= 0)
        err = items_more(s);
    if (err >= 0 && !s->end) {
        httpd_reply_stream(r, 200, content_type, HTTPD_UNKNOWN, &stream, s);
        return;
    }
    if (err < 0) {
        web_fail(r, err);
    } else if (!s->any && empty_204) {
        httpd_reply(r, 204, NULL, NULL, 0);
    } else {
        size_t len = s->ahead.len;

        httpd_reply(r, 200, content_type, strbuf_take(&s->ahead), len);
    }
    items_close(s);
}

/* ---- Requests -------------------------------------------------------------------------------- */

/* The route; false when it has answered. */
static bool find_route(struct httpd_req *r, const char *segments[HTTPD_SEGMENTS_MAX],
                       struct route *ret_route)
{
    size_t n = httpd_segment_count(r);
    int err;

    for (size_t i = 0; i < n; i++)
        segments[i] = httpd_segment(r, i);
    if (n == 0 || strcmp(segments[0], WEB_PREFIX) != 0)
        err = ERR_NOENT;
    else
        err = route_parse(segments + 1, n - 1, ret_route);
    if (err == ERR_NOENT)
        httpd_reply_text(r, 404,
                         "There is no such resource. DICOMweb is under /" WEB_PREFIX
                         "/studies, /series and /instances.");
    else if (err < 0)
        httpd_reply_text(r, 400, "A UID in the path is not valid.");
    return err == 0;
}

static bool method_ok(struct httpd_req *r, const struct route *route)
{
    const char *methods = route_methods(route), *m = httpd_method(r);
    size_t n = strlen(m);

    for (const char *p = methods; *p; p += strspn(p, ", ")) {
        size_t len = strcspn(p, ",");

        if (len == n && memcmp(p, m, n) == 0)
            return true;
        p += len;
    }
    httpd_reply_header(r, "Allow", methods);
    httpd_reply_text(r, 405, "This resource knows %s only.", methods);
    return false;
}

static void on_request(void *ctx, struct httpd_req *r)
{
    const char *segments[HTTPD_SEGMENTS_MAX];
    struct route route;

    if (web_metrics_wanted(ctx, r)) {
        if (!httpd_is(r, "GET")) {
            httpd_reply_header(r, "Allow", "GET, HEAD");
            httpd_reply_text(r, 405, "This resource knows GET, HEAD only.");
        }
        return;
    }
    if (find_route(r, segments, &route) && method_ok(r, &route) && httpd_is(r, "POST"))
        stow_begin(ctx, r, &route);
}

static void on_body(void *ctx, struct httpd_req *r, const void *data, size_t len)
{
    if (httpd_state(r))
        stow_body(ctx, r, data, len);
}

static void on_end(void *ctx, struct httpd_req *r)
{
    const char *segments[HTTPD_SEGMENTS_MAX];
    struct dicomweb *w = ctx;
    struct route route;

    if (httpd_state(r)) {
        stow_end(w, r);
        return;
    }
    if (web_metrics_wanted(w, r)) {
        web_metrics_reply(w, r);
        return;
    }
    CHECK(find_route(r, segments, &route)); /* on_request has found it */
    if (httpd_is(r, "DELETE"))
        delete_reply(w, r, &route);
    else if (route.kind == ROUTE_RETRIEVE)
        retrieve_reply(w, r, &route);
    else if (route.kind == ROUTE_METADATA)
        metadata_reply(w, r, &route);
    else if (route.kind == ROUTE_FRAMES)
        frames_reply(w, r, &route);
    else if (route.kind == ROUTE_BULKDATA)
        bulkdata_reply(w, r, &route);
    else
        search_reply(w, r, &route);
}

static void on_close(void *ctx, struct httpd_req *r)
{
    web_measure(ctx, r);
    if (httpd_state(r))
        stow_free(ctx, httpd_state(r));
}

/* ---- Deletes --------------------------------------------------------------------------------- */

struct delete_call {
    struct dicomweb *w;
    const struct route *route;
    struct object_delete_result result;
    int err;
};

static void delete_fiber(void *arg)
{
    struct delete_call *c = arg;

    c->err =
        object_remove(c->w->os, c->route->study, c->route->series, c->route->instance, &c->result);
}

void delete_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route)
{
    struct delete_call c = {.w = w, .route = route};
    int err = env_call(w->env, "web-delete", delete_fiber, &c);

    if (err == 0)
        err = c.err;
    if (err < 0) {
        web_fail(r, err);
        return;
    }
    log_info("dicomweb", "deleted path=%s instances=%llu bytes=%llu peer=%s",
             log_q(httpd_raw_path(r)), (unsigned long long)c.result.instances,
             (unsigned long long)c.result.bytes, log_q(httpd_peer(r)));
    httpd_reply(r, 204, NULL, NULL, 0);
}

/* ---- Life ------------------------------------------------------------------------------------ */

int dicomweb_start(struct env *env, struct object_store *os, const struct dicomweb_config *cfg,
                   struct dicomweb **ret_dicomweb)
{
    static const struct httpd_handler handler = {on_request, on_body, on_end, on_close};
    struct httpd_config http = {
        .addr = cfg->addr,
        .max_connections = cfg->max_connections,
        .idle_timeout_s = cfg->idle_timeout_s,
        .body_max = 64u << 10, /* of requests that need none; STOW sets its own */
        .server = "Filmroom/" FILMROOM_VERSION,
    };
    struct dicomweb *w = mem_zalloc(sizeof(*w));
    int r;

    w->env = env;
    w->os = os;
    fiber_sem_init(&w->queries, QUERIES_AT_ONCE);
    fiber_sem_init(&w->whole_searches, WHOLE_AT_ONCE);
    fiber_sem_init(&w->large_heads, LARGE_AT_ONCE);
    web_metrics_init(w, cfg->metrics);
    r = httpd_start(env, &http, &handler, w, &w->httpd);
    if (r < 0) {
        mem_free(w);
        return r;
    }
    web_metrics_observe(w);
    *ret_dicomweb = w;
    return 0;
}

unsigned dicomweb_port(const struct dicomweb *w)
{
    return httpd_port(w->httpd);
}

void dicomweb_stop(struct dicomweb *w)
{
    if (!w)
        return;
    httpd_stop(w->httpd);
    mem_free(w);
}

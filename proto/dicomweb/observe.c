/* The DICOMweb server's metrics, and /metrics: all of the node's, in Prometheus' text format.
 *
 * Requests end on their connections' threads and are recorded there (lib/base/metric.h says why
 * that is right). The text is made on the loop, where the numbers live, and takes it about half a
 * millisecond.
 */
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "proto/dicomweb/web.h"

static const char *const class_names[WEB_CLASSES] = {"search",   "retrieve", "metadata", "frames",
                                                     "bulkdata", "store",    "delete",   "other"};

void web_metrics_init(struct dicomweb *w, struct metrics *m)
{
    w->metrics = m;
    for (unsigned i = 0; i < WEB_CLASSES; i++)
        metric_hist_init(&w->request_time[i], METRIC_TIME);
}

void web_metrics_observe(struct dicomweb *w)
{
    static const char *const answers[WEB_ANSWERS] = {"2xx", "3xx", "4xx", "5xx"};
    struct metrics *m = w->metrics;

    if (!m)
        return;
    httpd_observe(w->httpd, m, "http");
    for (unsigned i = 0; i < WEB_CLASSES; i++)
        metrics_add_hist(m, "filmroom_http_request_seconds",
                         "Time of an HTTP request from its headers until all of its answer is "
                         "sent, with the time that the client took",
                         METRIC_LABELS("route", class_names[i]), &w->request_time[i]);
    for (unsigned i = 0; i < WEB_ANSWERS; i++)
        metrics_add_counter(m, "filmroom_http_answers_total", "HTTP answers by status",
                            METRIC_LABELS("status", answers[i]), &w->answers[i]);
}

/* ---- Requests ---- */

static enum web_class class_of(const struct httpd_req *r)
{
    static const enum web_class classes[] = {
        [ROUTE_STUDIES] = WEB_SEARCH,    [ROUTE_SERIES] = WEB_SEARCH,
        [ROUTE_INSTANCES] = WEB_SEARCH,  [ROUTE_RETRIEVE] = WEB_RETRIEVE,
        [ROUTE_METADATA] = WEB_METADATA, [ROUTE_FRAMES] = WEB_FRAMES,
        [ROUTE_BULKDATA] = WEB_BULKDATA};
    const char *segments[HTTPD_SEGMENTS_MAX];
    size_t n = httpd_segment_count(r);
    struct route route;

    for (size_t i = 0; i < n; i++)
        segments[i] = httpd_segment(r, i);
    if (n == 0 || strcmp(segments[0], WEB_PREFIX) != 0 ||
        route_parse(segments + 1, n - 1, &route) < 0)
        return WEB_OTHER;
    if (httpd_is(r, "POST"))
        return WEB_STORE;
    return httpd_is(r, "DELETE") ? WEB_DELETE : classes[route.kind];
}

void web_measure(struct dicomweb *w, const struct httpd_req *r)
{
    unsigned status = httpd_status(r);

    metric_record(&w->request_time[class_of(r)], env_now(w->env) - httpd_started(r));
    if (status >= 200 && status < 600)
        metric_add(&w->answers[status / 100 - 2], 1);
}

/* ---- /metrics ---- */

struct metrics_call {
    struct metrics *metrics;
    struct strbuf text;
};

static void metrics_fiber(void *arg)
{
    struct metrics_call *c = arg;

    metrics_text(c->metrics, &c->text);
}

bool web_metrics_wanted(const struct dicomweb *w, const struct httpd_req *r)
{
    return w->metrics && httpd_segment_count(r) == 1 && strcmp(httpd_segment(r, 0), "metrics") == 0;
}

void web_metrics_reply(struct dicomweb *w, struct httpd_req *r)
{
    struct metrics_call c = {.metrics = w->metrics};
    int err = env_call(w->env, "web-metrics", metrics_fiber, &c);
    size_t len = c.text.len;

    if (err < 0)
        web_fail(r, err);
    else
        httpd_reply(r, 200, METRICS_TEXT_TYPE, strbuf_take(&c.text), len);
    strbuf_free(&c.text);
}

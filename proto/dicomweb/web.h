/* What the files of the DICOMweb server share. Not for other folders. */
#pragma once

#include "lib/base/metric.h"
#include "lib/base/strbuf.h"
#include "lib/net/httpd.h"
#include "lib/rt/sync.h"
#include "proto/dicomweb/dicomweb.h"
#include "proto/dicomweb/mime.h"
#include "proto/dicomweb/route.h"

#define WEB_PREFIX "dicom-web"

/* What is timed apart. */
enum web_class {
    WEB_SEARCH,
    WEB_RETRIEVE,
    WEB_METADATA,
    WEB_FRAMES,
    WEB_BULKDATA,
    WEB_STORE,
    WEB_DELETE,
    WEB_OTHER,
    WEB_CLASSES
};
#define WEB_ANSWERS 4u /* 2xx to 5xx */

struct dicomweb {
    struct env *env;
    struct object_store *os;
    struct httpd *httpd;
    /* On the loop: bounds the memory of catalogue rows and of large headers. */
    struct fiber_sem queries, whole_searches, large_heads;
    struct metrics *metrics; /* of the loop */
    struct metric_hist request_time[WEB_CLASSES];
    struct metric_counter answers[WEB_ANSWERS];
};

/* ---- web.c
 * ------------------------------------------------------------------------------------------- Each
 * reply function below answers, or has answered when it returns an error. */

/* "http://host:port/dicom-web" from the Host header. */
void web_base(const struct httpd_req *r, struct strbuf *out);

/* Answers an error of the engine, and logs those that are ours to mend. */
void web_fail(struct httpd_req *r, int err);

/* Chooses an offer by the accept= argument or the Accept header; -1 when it has answered 406 or
 * 400. */
int web_choose(struct httpd_req *r, const struct mime_offer *offers, size_t count);

/* As web_choose among application/dicom+json and application/json; NULL when it has answered. */
const char *web_choose_json(struct httpd_req *r);

/* A JSON array whose items are made one at a time, on the connection's thread. */
struct web_items {
    int (*next)(void *arg, struct strbuf *out); /* 1: appended one; 0: the end; or an error */
    void (*free)(void *arg);
};
/* Answers with the items; 204 when there are none and `empty_204`. Takes arg over. */
void web_reply_items(struct httpd_req *r, const char *content_type, bool empty_204,
                     const struct web_items *items, void *arg);

/* ---- observe.c ---- */

void web_metrics_init(struct dicomweb *w,
                      struct metrics *m);     /* before httpd_start; m may be NULL */
void web_metrics_observe(struct dicomweb *w); /* after it */
bool web_metrics_wanted(const struct dicomweb *w, const struct httpd_req *r);
void web_metrics_reply(struct dicomweb *w, struct httpd_req *r);
void web_measure(struct dicomweb *w, const struct httpd_req *r); /* the exchange is over */

/* ---- list.c ---------------------------------------------------------------------------------- */

#define WEB_LIST_MAX 100000 /* instances of one retrieve */

struct web_item {
    const char *study, *series, *instance, *syntax;
    uint64_t bytes;
};

/* The instances of a study, series or instance. */
struct web_list {
    size_t count;
    struct web_item *items;
    size_t syntax_count; /* distinct transfer syntaxes, in `syntaxes` */
    const char *syntaxes[MIME_OFFERS_MAX];
    char *text;
};

/* ERR_NOENT when there are none; ERR_TOOBIG past WEB_LIST_MAX. From a connection's thread. */
int web_list_get(struct dicomweb *w, const struct route *route, struct web_list *ret_list);
void web_list_free(struct web_list *l);

/* The bytes of one instance up to Pixel Data, parsed on demand. */
struct web_head {
    char *bytes;
    size_t len; /* bytes read */
    size_t dataset_off;
    size_t header_len; /* of the data set: up to Pixel Data's value, or all */
    bool has_pixels, encapsulated, deflated;
    uint64_t pixel_off, pixel_len; /* of the value, in the Part 10 stream */
    uint32_t rows, columns, samples, bits_allocated, frames;
    uint64_t bytes_total;
    char syntax[OBJECT_UID_MAX + 1];
    bool large; /* holds one of large_heads */
};
/* Called on the loop with the open instance and its head. On 0 it has taken the object over. */
typedef int (*web_head_then)(void *arg, struct object *o, const struct web_head *h);

/* The head of one instance; `then` (may be NULL) goes on with it in the same round trip. On an
 * error there is nothing to free. From a connection's thread. */
int web_head_get(struct dicomweb *w, const struct web_item *item, web_head_then then, void *arg,
                 struct web_head *ret_head);

/* The heads of n instances, read side by side; ret_errs tells of each. ERR_AGAIN: get it singly (a
 * large one: a batch that holds some of large_heads while it waits for more could wait for ever).
 */
#define WEB_HEADS_MAX 8
void web_heads_get(struct dicomweb *w, const struct web_item *items, size_t n,
                   struct web_head *ret_heads, int *ret_errs);

void web_head_free(struct dicomweb *w, struct web_head *h);

/* ---- The services: each answers -------------------------------------------------------------- */

struct stow; /* a store request on its way in; the request's state */
void stow_begin(struct dicomweb *w, struct httpd_req *r,
                const struct route *route); /* on_request */
void stow_body(struct dicomweb *w, struct httpd_req *r, const void *data, size_t len);
void stow_end(struct dicomweb *w, struct httpd_req *r);
void stow_free(struct dicomweb *w, struct stow *s);

void search_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route);
void retrieve_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route);
void metadata_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route);
void frames_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route);
void bulkdata_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route);
void delete_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route);

/* httpd: an HTTP/1.1 server over libmicrohttpd, for DICOMweb (TCP) and the admin API (unix socket).
 *
 * libmicrohttpd makes and owns the threads: one that accepts, and one per connection, capped.
 * Handlers run on the connection's thread, never on the loop: they reach the engine by env_call
 * (lib/rt/env.h), which runs a function in a fiber of the loop and blocks the calling thread. A
 * request is touched by its connection's thread only; what a handler shares between requests is its
 * own business (constant, atomic, or kept on the loop).
 *
 * One request goes:
 *
 *     on_request   request line and headers are in
 *     on_body ...  the body as it arrives; not called when there is none
 *     on_end       the body is complete
 *     on_close     the exchange is over: answered, or the client is gone
 *
 * and is answered once by a httpd_reply*() from on_request, on_body or on_end. An early answer ends
 * the calls but on_close; what is left of the body is read and dropped within bounds, so that the
 * client gets to read the answer. No answer by the end of on_end is a 500.
 *
 * Before a handler is called, requests are refused here that no handler wants to see: 400 for a
 * path or query that is not valid percent-encoding or holds a NUL, 413 for a body over the limit,
 * 414 and 431 for a request line or headers over the limit. HEAD is answered like GET, without the
 * body being produced. "Expect: 100-continue" is answered after on_request went on.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/rt/env.h"

struct httpd;     /* one server: one listening socket */
struct httpd_req; /* one exchange; lives from on_request until on_close returned */

#define HTTPD_SEGMENTS_MAX 80    /* path segments; more is a 404 */
#define HTTPD_ARGS_MAX     128   /* query arguments; more is a 400 */
#define HTTPD_URI_MAX      8192  /* bytes of path and query; more is a 414 */
#define HTTPD_HEADERS_MAX  32768 /* bytes of a header section; more is a 431 */
#define HTTPD_UNKNOWN      UINT64_MAX

struct httpd_handler {
    void (*on_request)(void *ctx, struct httpd_req *r);
    /* NULL: the body is gathered, for httpd_body() in on_end. */
    void (*on_body)(void *ctx, struct httpd_req *r, const void *data, size_t len);
    void (*on_end)(void *ctx, struct httpd_req *r);
    void (*on_close)(void *ctx, struct httpd_req *r); /* frees httpd_state(); may be NULL */
};

struct httpd_config {
    struct env_addr addr;     /* "tcp:HOST:PORT" (0: picks one) or "unix:/path" (mode 0600) */
    unsigned max_connections; /* 0: 128; requests on more are answered with 503 */
    unsigned idle_timeout_s;  /* 0: 60; of a connection on which nothing moves */
    uint64_t body_max;        /* bytes of a request body, until httpd_set_body_max; 0: 1 MiB */
    const char *server;       /* Server: header, constant text; NULL: none */
};

/* Listens and begins to serve. `h` and `ctx` stay valid until httpd_stop returned. Does not
 * suspend. ERR_ADDR when the address is taken (a stale unix socket is replaced), ERR_CONFIG when it
 * makes no sense, ERR_PERM, ERR_IO. Any thread. */
int httpd_start(struct env *env, const struct httpd_config *cfg, const struct httpd_handler *h,
                void *ctx, struct httpd **ret_httpd);

/* Registers the bytes of bodies received and sent, under the label door=`door`; they last until the
 * server is stopped. */
struct metrics;
void httpd_observe(const struct httpd *s, struct metrics *m, const char *door);

/* The address, with the port that was picked. */
void httpd_addr(const struct httpd *s, struct env_addr *ret_addr);

/* TCP port, 0 for a unix socket. */
unsigned httpd_port(const struct httpd *s);

/* Stops accepting, ends idle connections, waits for the handlers that run (a stream that is being
 * sent is cut), frees the server. NULL is fine. From a fiber of the env: suspends. When httpd_start
 * was given no env (tests), it blocks the calling thread. */
void httpd_stop(struct httpd *s);

/* ---- The request: all texts live until on_close returned ------------------------------------- */

const char *httpd_method(const struct httpd_req *r); /* as sent: methods are case-sensitive */
bool httpd_is(const struct httpd_req *r, const char *method); /* "GET" covers HEAD */

/* The path as decoded segments: "/a/b%20c" is {"a", "b c"}. One trailing '/' is ignored; an empty
 * segment elsewhere is "". A segment may hold any byte but NUL, '/' included. */
size_t httpd_segment_count(const struct httpd_req *r);
const char *httpd_segment(const struct httpd_req *r, size_t i);
const char *httpd_raw_path(const struct httpd_req *r); /* undecoded, without the query */

/* The query's arguments in order, repeated ones too, decoded ('+' is a space). Without a '=' the
 * value is "". */
size_t httpd_arg_count(const struct httpd_req *r);
const char *httpd_arg_name(const struct httpd_req *r, size_t i);
const char *httpd_arg_value(const struct httpd_req *r, size_t i);
const char *httpd_arg(const struct httpd_req *r, const char *name); /* the first one, or NULL */

/* A header's value by name, case-insensitive; the first one, or NULL. */
const char *httpd_header(const struct httpd_req *r, const char *name);
/* Calls visit for each header of that name (a list header may be sent in several lines). */
void httpd_header_each(const struct httpd_req *r, const char *name,
                       void (*visit)(void *arg, const char *value), void *arg);

/* Calls visit for all headers in turn; the texts live until on_close returned. */
void httpd_headers(const struct httpd_req *r,
                   void (*visit)(void *arg, const char *name, const char *value), void *arg);

/* Body bytes announced, HTTPD_UNKNOWN when chunked, 0 without a body. */
uint64_t httpd_body_length(const struct httpd_req *r);

/* In on_request: another limit for this body. A body announced to be longer is refused at once with
 * 413: returns false, and the answer is made. */
bool httpd_set_body_max(struct httpd_req *r, uint64_t max);

/* For handlers whose on_body takes some bodies in hand and wants others gathered. */
void httpd_gather(struct httpd_req *r, const void *data, size_t len);

/* The gathered body (handlers without on_body, or by httpd_gather), NUL-terminated beyond len. */
const char *httpd_body(const struct httpd_req *r, size_t *ret_len);

const char *httpd_peer(const struct httpd_req *r); /* "127.0.0.1:51234", "[::1]:51234" or "unix" */

/* When the request line and headers were in (env_now; 0 without an env). */
uint64_t httpd_started(const struct httpd_req *r);

/* The handler's own pointer for this request; NULL at first. */
void httpd_set_state(struct httpd_req *r, void *state);
void *httpd_state(const struct httpd_req *r);

/* ---- The answer ------------------------------------------------------------------------------ */

bool httpd_replied(const struct httpd_req *r);
unsigned httpd_status(const struct httpd_req *r); /* of the answer; 0: there is none */

/* Adds a header to the answer to come; copied. A value with control bytes is a broken invariant.
 * Content-Length, Date and Connection are made here. */
void httpd_reply_header(struct httpd_req *r, const char *name, const char *value);

/* Answers with `len` bytes of `body`, which is taken over (from mem_alloc; NULL with len 0). */
void httpd_reply(struct httpd_req *r, unsigned status, const char *content_type, char *body,
                 size_t len);

/* Answers with one sentence of text/plain made by fmt, and a newline. */
void httpd_reply_text(struct httpd_req *r, unsigned status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Answers with what a stream yields. It outlives the request: on_close may come first. */
struct httpd_stream {
    /* Up to len bytes at off, which only ever follows what was read before; any count above 0, 0 at
     * the end, or a negative error, which cuts the connection so that the client cannot take a part
     * for the whole. Runs on the connection's thread and may block in env_call. */
    int64_t (*read)(void *arg, uint64_t off, void *buf, size_t len);
    void (*close)(void *arg); /* last call, exactly once, whatever became of the answer */
};
/* `len` is the exact body length, or HTTPD_UNKNOWN: chunked. `st` is constant. */
void httpd_reply_stream(struct httpd_req *r, unsigned status, const char *content_type,
                        uint64_t len, const struct httpd_stream *st, void *arg);

/* The status that suits an error code of the table: 404 NOENT, 400 INVAL, 503 OVERLOAD ... 500. */
unsigned httpd_status_of(int err);

/* Answers with httpd_status_of(err) and err_text(err), and Retry-After where waiting helps. */
void httpd_reply_error(struct httpd_req *r, int err);

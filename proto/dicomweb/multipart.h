/* multipart/related bodies (RFC 2046 section 5.1, RFC 2387): a push parser and a writer's helpers.
 * Pure.
 *
 * The parser holds no body bytes: a part's data is handed on as slices of what was pushed. It is
 * fed any split of the stream and never needs to look back, because the only bytes it must keep for
 * later are a prefix of the delimiter, which it knows.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MULTIPART_BOUNDARY_MAX 70   /* RFC 2046 section 5.1.1 */
#define MULTIPART_HEADERS_MAX  8192 /* bytes of one part's header section */
#define MULTIPART_PADDING_MAX  64   /* spaces after a boundary */

/* Of a part's header section; texts are valid during on_part. */
struct multipart_part {
    const char *content_type;     /* NULL: none */
    const char *content_location; /* NULL: none */
    uint64_t content_length;      /* UINT64_MAX: none, or not a number */
    bool encoded;                 /* a Content-Transfer-Encoding that changes the bytes */
};

struct multipart_ops {
    /* Each returns 0, or an error that ends the parse and comes back from multipart_push. */
    int (*on_part)(void *arg, const struct multipart_part *part);
    int (*on_data)(void *arg, const void *data, size_t len);
    int (*on_part_end)(void *arg);
};

struct multipart {
    const struct multipart_ops *ops;
    void *arg;
    int state;
    int failed;             /* the error that ended it */
    size_t delim_len, held; /* held: bytes of delim that the stream's end matches */
    size_t ghost;           /* of them, those that were never in the stream */
    size_t pad_len, line_len, header_len;
    bool have_type, have_location, encoded;
    uint64_t content_length;
    char delim[MULTIPART_BOUNDARY_MAX + 5]; /* CR LF - - boundary */
    char pad[MULTIPART_PADDING_MAX + 2];
    char line[MULTIPART_HEADERS_MAX + 1];
    char type[512], location[1024];
};

/* ERR_INVAL: not a boundary (1 to 70 of its characters, no space at the end). */
int multipart_init(struct multipart *m, const char *boundary, const struct multipart_ops *ops,
                   void *arg);

/* The next bytes. ERR_PROTO: broken part headers; ERR_TOOBIG: over a limit; or a callback's error.
 */
int multipart_push(struct multipart *m, const void *data, size_t len);

/* The stream is over: ERR_TRUNCATED when the closing boundary has not been seen. */
int multipart_finish(const struct multipart *m);

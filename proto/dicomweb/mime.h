/* Media types: Content-Type, Accept, and what to answer with (RFC 9110 sections 8.3 and 12.5.1,
 * PS3.18 section 8.7). Pure.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/api/object.h"

#define MIME_TYPE_MAX   127
#define MIME_VALUE_MAX  255
#define MIME_PARAMS_MAX 8
#define MIME_ACCEPT_MAX 32 /* media ranges of one request */
#define MIME_OFFERS_MAX 16

struct mime_param {
    char name[32];                  /* lower case */
    char value[MIME_VALUE_MAX + 1]; /* unquoted */
};

struct mime {
    char type[MIME_TYPE_MAX + 1]; /* "type/subtype" in lower case */
    size_t param_count;
    struct mime_param params[MIME_PARAMS_MAX];
};

/* Parses one media type. ERR_INVAL when it is not one, or is over the limits above. */
int mime_parse(const char *text, struct mime *ret_mime);

/* A parameter by its lower-case name; NULL when it is not there. */
const char *mime_param(const struct mime *m, const char *name);

/* ---- Accept ---------------------------------------------------------------------------------- */

/* One media range of an Accept header. */
struct mime_range {
    char type[MIME_TYPE_MAX + 1]; /* lower case; "*" for either half */
    char
        related[MIME_TYPE_MAX + 1]; /* the type parameter of multipart/related, lower case; or "" */
    char syntax[OBJECT_UID_MAX + 1]; /* the transfer-syntax parameter; "" or "*": any */
    unsigned q;                      /* 0 .. 1000 */
};

struct mime_accept {
    size_t count;
    struct mime_range ranges[MIME_ACCEPT_MAX];
};

/* Adds the media ranges of a comma-separated list. ERR_INVAL when it cannot be understood,
 * ERR_TOOBIG past MIME_ACCEPT_MAX ranges. Transfer syntax values may be quoted or not. */
int mime_accept_add(struct mime_accept *a, const char *text);

/* As mime_accept_add for the accept= query argument, in which a decoded '+' has become a space. */
int mime_accept_add_arg(struct mime_accept *a, const char *text);

/* What a resource can be answered as. */
struct mime_offer {
    const char *type; /* "application/dicom" */
    bool multipart;   /* as multipart/related; type="..." */
    const char *const
        *syntaxes;        /* transfer syntaxes that occur in the answer; all must be accepted */
    size_t syntax_count;  /* 0: the type has none */
    bool only_any_syntax; /* suits a range that says transfer-syntax=* only (frames handed out as
                             they are stored under a type whose default is uncompressed) */
};

/* The offer that the client likes best: the highest q of the most specific range that matches it,
 * then the client's order, then ours. No ranges at all: the first offer. -1: none will do. */
int mime_choose(const struct mime_accept *a, const struct mime_offer *offers, size_t count);

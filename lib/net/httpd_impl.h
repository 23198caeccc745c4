/* What the parts of httpd share: request targets and listening sockets. Not for other folders. */
#pragma once

#include "lib/net/httpd.h"

/* ---- httpd_uri.c: pure ----------------------------------------------------------------------- */

struct httpd_uri_arg {
    const char *name, *value;
};

/* A request target taken apart; texts point into `text` or are constant. */
struct httpd_uri {
    char *raw_path; /* up to the '?' */
    char *text;
    size_t segment_count, arg_count;
    const char *segments[HTTPD_SEGMENTS_MAX];
    struct httpd_uri_arg args[HTTPD_ARGS_MAX];
};

/* Takes apart an origin-form or absolute-form target (RFC 9112 section 3.2). Always leaves
 * something for httpd_uri_free. ERR_TOOBIG: over HTTPD_URI_MAX; ERR_NOENT: too many segments;
 * ERR_INVAL: not a target, broken percent-encoding, a NUL or control byte, too many arguments. */
int httpd_uri_parse(const char *target, struct httpd_uri *ret_uri);
void httpd_uri_free(struct httpd_uri *u);

/* ---- httpd_listen.c -------------------------------------------------------------------------- */

/* A listening socket on the address, and the address with its port filled in. */
int httpd_listen(const struct env_addr *addr, int *ret_fd, struct env_addr *ret_addr);

/* "127.0.0.1:80", "[::1]:80" or "unix" for a peer's address. */
struct sockaddr;
void httpd_sockaddr_text(const struct sockaddr *sa, char *buf, size_t size);

/* The bytes of objects over the admin API, beside the calls that are answered from memory. On
 * connection threads. */
#pragma once

#include <stdatomic.h>

#include "lib/net/httpd.h"
#include "proto/admin/admin_core.h"

#define ADMIN_TRANSFERS_MAX 16u /* at one time; more are answered with 503 */

struct admin_stream;

/* Takes up a request for which admin_call_streams; the call is taken over. A get is answered at
 * once: NULL. Otherwise the stream of a put (or of an answer that was made already), which wants
 * the body, its end, and in any case to be freed. `transfers` counts the streams under way; it
 * stays valid until the last is freed. */
struct admin_stream *admin_stream_begin(struct env *env, const struct admin_backend *backend,
                                        atomic_uint *transfers, struct admin_call *call,
                                        struct httpd_req *r);
void admin_stream_body(struct admin_stream *s, struct httpd_req *r, const void *data, size_t len);
void admin_stream_end(struct admin_stream *s, struct httpd_req *r);
void admin_stream_free(struct admin_stream *s); /* NULL is fine */

/* The admin protocol: HTTP and JSON, for the CLI and for scripts. This is its pure core: requests
 * in, calls on the engine, answers out; no I/O.
 *
 *   GET    /metrics                       all metrics, Prometheus' text format
 *   GET    /v1/stats                      the same with percentiles, as JSON
 *   GET    /v1/status
 *   GET    /v1/drives
 *   GET    /v1/scrub
 *   POST   /v1/scrub/start                begins a pass, or goes on with one    how it is then
 *   POST   /v1/scrub/stop
 *   POST   /v1/drives                     {"path", "partition"?, "class"?, "size"?, "force"?}   201
 *   PATCH  /v1/drives/N                   {"class": "nvme" or "disk"}; of another
 *                                         partition than the first NAME:N
 *   POST   /v1/drives/N/remove            also keep, rebuild
 *   POST   /v1/drives/N/replace           as for a new drive                    201
 *   GET    /v1/volumes
 *   POST   /v1/volumes                    {"name", "size", "durability"?}       201
 *   GET    /v1/volumes/NAME
 *   PATCH  /v1/volumes/NAME               {"size", "allow_shrink"?}
 *   DELETE /v1/volumes/NAME
 *   POST   /v1/snapshots                  {"volumes": [NAME, ...], "name"}      201
 *   GET    /v1/volumes/NAME/snapshots     oldest first
 *   DELETE /v1/volumes/NAME/snapshots/SNAP
 *   POST   /v1/volumes/NAME/snapshots/SNAP/clone {"name"}                       201
 *   POST   /v1/volumes/NAME/snapshots/SNAP/rollback
 *   GET    /v1/patients?patient=&name=&offset=&limit=
 *   GET    /v1/patients/ID                whoever has the Patient ID, with the studies
 *   GET    /v1/studies?patient=&name=&date=&modality=&accession=&offset=&limit=
 *   GET    /v1/studies/UID                with its series
 *   DELETE /v1/studies/UID
 *   DELETE /v1/studies/UID/series/UID
 *   GET    /v1/buckets
 *   POST   /v1/buckets                    {"name"}                              201
 *   GET    /v1/buckets/NAME
 *   DELETE /v1/buckets/NAME?objects=true  without the argument: only an empty one
 *   GET    /v1/buckets/NAME/objects?prefix=&delimiter=&after=&limit=
 *   PUT    /v1/buckets/NAME/objects/KEY   the body is the object    201; 200 where it replaced one
 *   GET    /v1/buckets/NAME/objects/KEY   the object; HEAD and one Range as usual
 *   GET    /v1/buckets/NAME/objects/KEY?info=true   what is known of it
 *   DELETE /v1/buckets/NAME/objects/KEY
 *
 * A KEY is all that follows in the path; a '/' at its end must be written %2F. PUT takes
 * Content-Type, X-Filmroom-Meta-NAME: VALUE, If-None-Match: * and If-Match: "ETAG".
 * docs/OBJECTS.md tells users of buckets and objects.
 *
 * Sizes are in bytes, times are UTC as in RFC 3339. An error is {"error": {"code", "message"}} with
 * a fitting HTTP status; the codes are the names of lib/base/err.h, and METHOD for a method that a
 * resource does not have. Metrics are as in docs/METRICS.md; in JSON, times are in nanoseconds. A
 * volume only shrinks when `allow_shrink` is true, since what lies beyond the new end is lost.
 *
 * A request goes three ways, so that nothing slow runs on the engine's loop: admin_call_new parses
 * (any thread), admin_call_run asks the engine (in a fiber of its loop), admin_call_answer makes
 * the JSON (any thread).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/api/admin.h"
#include "lib/api/block.h"
#include "lib/api/bucket.h"
#include "lib/api/object.h"

#define ADMIN_BODY_MAX        65536u /* bytes of a request body */
#define ADMIN_STUDIES_DEFAULT 100u
#define ADMIN_STUDIES_MAX     10000u /* and so for patients */

struct metrics;

/* What the API is about. Any may be NULL: its resources are then not there (404). */
struct admin_backend {
    struct admin_source *admin;
    struct block_store *blocks;
    struct object_store *objects;
    struct bucket_store *buckets;
    struct metrics *metrics; /* of the loop */
};

struct admin_arg {
    const char *name, *value;
};

/* A request as the HTTP server has taken it apart. Everything is borrowed until admin_call_new
 * returns. */
struct admin_request {
    const char *method;
    const char *const *segments; /* of the path, decoded */
    size_t segment_count;
    const struct admin_arg *args;
    size_t arg_count;
    const struct admin_arg *headers; /* only looked at where an object's bytes are meant */
    size_t header_count;
    const char *body;
    size_t body_len;
};

struct admin_call;

/* Parses. Never fails: a bad request becomes a call that answers with the error. */
struct admin_call *admin_call_new(const struct admin_request *request);

/* Does the request carry an object's bytes, or ask for them? Then it goes to admin_stream.h. */
bool admin_call_streams(const struct admin_call *c);

/* Asks the engine. From a fiber; suspends. */
void admin_call_run(struct admin_call *c, const struct admin_backend *backend);

/* The answer: HTTP status and JSON text (the caller's, mem_free), with a newline at the end.
 * *ret_allow is the Allow header of a 405, or NULL; the call's. */
unsigned admin_call_answer(struct admin_call *c, char **ret_body, size_t *ret_len,
                           const char **ret_allow);

/* The Content-Type that goes with the answer; constant text. */
const char *admin_call_type(const struct admin_call *c);

void admin_call_free(struct admin_call *c); /* NULL is fine */

/* The body of an error that the HTTP side finds by itself. The caller's (mem_free). */
char *admin_error_body(const char *code, const char *message);

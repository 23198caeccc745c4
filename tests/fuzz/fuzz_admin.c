/* The admin API's core: requests as an HTTP server has taken them apart. Whatever comes, there is
 * an answer: JSON, or what the engine's metrics are; what is streamed names bytes that are there.
 * Input: method, path with query, header lines, each ended by a newline; an empty line; the body.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "proto/admin/admin_impl.h"
#include "tests/unit/admin/fake.h"

#define SEGMENTS 80u
#define ARGS     128u

struct input {
    char *text; /* cut up in place */
    struct admin_request r;
    const char *segments[SEGMENTS];
    struct admin_arg args[ARGS], headers[ARGS];
};

static void take_path(struct input *in, char *path)
{
    char *query = strchr(path, '?'), *piece;

    if (query)
        *query++ = 0;
    if (*path == '/')
        path++;
    while (in->r.segment_count < SEGMENTS && (piece = strsep(&path, "/")) != NULL)
        in->segments[in->r.segment_count++] = piece;
    while (in->r.arg_count < ARGS && query && (piece = strsep(&query, "&")) != NULL) {
        char *value = strchr(piece, '=');

        if (value)
            *value++ = 0;
        in->args[in->r.arg_count++] = (struct admin_arg){piece, value ? value : ""};
    }
}

static void take_headers(struct input *in, char **rest)
{
    char *line;

    while (in->r.header_count < ARGS && (line = strsep(rest, "\n")) != NULL && *line) {
        char *value = strstr(line, ": ");

        if (!value)
            continue;
        *value = 0;
        in->headers[in->r.header_count++] = (struct admin_arg){line, value + 2};
    }
}

static void check_stream(const struct admin_call *c)
{
    const struct admin_object *o = c->object;
    uint64_t off, len;

    CHECK(strlen(o->bucket) <= BUCKET_NAME_MAX && strlen(o->name) <= BUCKET_KEY_MAX);
    CHECK(o->pair_count <= BUCKET_PAIRS_MAX);
    for (uint64_t size = 0; size < 12; size++)
        if (admin_object_range(o, size, &off, &len))
            CHECK(off <= size && len <= size - off);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input *in = mem_zalloc(sizeof(*in));
    struct fake *fake = mem_zalloc(sizeof(*fake));
    struct admin_backend backend;
    struct admin_call *c;
    const char *allow;
    char *rest, *body, *path;
    size_t len;

    rest = in->text = mem_alloc(size + 1);
    memcpy(in->text, data, size);
    in->text[size] = 0;
    in->r.segments = in->segments;
    in->r.args = in->args;
    in->r.headers = in->headers;
    in->r.method = strsep(&rest, "\n");
    path = strsep(&rest, "\n");
    take_path(in, path ? path : (char[]){""});
    take_headers(in, &rest);
    in->r.body = rest ? rest : "";
    in->r.body_len = strlen(in->r.body);
    fake_init(fake);
    backend = fake_backend(fake);
    c = admin_call_new(&in->r);
    if (admin_call_streams(c) && !c->error) {
        check_stream(c);
    } else {
        admin_call_run(c, &backend);
        CHECK(admin_call_answer(c, &body, &len, &allow) >= 200);
        CHECK(len > 0 && body[len - 1] == '\n');
        mem_free(body);
    }
    admin_call_free(c);
    mem_free(in->text);
    mem_free(in);
    mem_free(fake);
    return 0;
}

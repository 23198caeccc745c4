/* Media types, the choice among offers, and request targets' paths and frame lists. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/net/httpd_impl.h"
#include "proto/dicomweb/mime.h"
#include "proto/dicomweb/route.h"

static const char *const syntaxes[] = {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"};
static const struct mime_offer offers[] = {
    {"application/dicom", false, syntaxes, 1, false},
    {"application/dicom", true, syntaxes, 2, false},
    {"image/jls", true, syntaxes + 1, 1, false},
    {"application/octet-stream", true, syntaxes, 1, true},
};

static void try_accept(const char *text)
{
    struct mime_accept *a = mem_zalloc(sizeof(*a));
    struct mime_accept *b = mem_zalloc(sizeof(*b));
    int r = mime_accept_add(a, text), i;

    if (r == 0) {
        i = mime_choose(a, offers, 4);
        CHECK(i >= -1 && i < 4);
        CHECK(a->count == 0 || i < 0 || i == mime_choose(a, offers, (size_t)i + 1));
    }
    mime_accept_add_arg(b, text);
    mem_free(a);
    mem_free(b);
}

static void try_target(const char *text)
{
    struct httpd_uri *u = mem_zalloc(sizeof(*u));
    uint32_t *frames = mem_calloc(ROUTE_FRAMES_MAX, sizeof(frames[0]));
    struct route route;
    size_t n;

    if (httpd_uri_parse(text, u) == 0) {
        for (size_t i = 0; i < u->arg_count; i++)
            CHECK(strlen(u->args[i].name) + strlen(u->args[i].value) <= strlen(text));
        if (route_parse(u->segments, u->segment_count, &route) == 0)
            CHECK(strlen(route_methods(&route)) > 0);
    }
    httpd_uri_free(u);
    if (route_frames(text, frames, &n) == 0)
        CHECK(n > 0 && n <= ROUTE_FRAMES_MAX);
    mem_free(frames);
    mem_free(u);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = mem_alloc(size + 1);
    struct mime m;

    memcpy(text, data, size);
    text[size] = 0;
    if (mime_parse(text, &m) == 0)
        CHECK(strchr(m.type, '/') != NULL && m.param_count <= MIME_PARAMS_MAX);
    try_accept(text);
    try_target(text);
    mem_free(text);
    return 0;
}

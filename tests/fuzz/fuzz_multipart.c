/* The multipart parser: whatever comes in whatever pieces, it must say the same as when it comes at
 * once, and give out no byte that did not go in. The first two bytes choose the boundary and the
 * pieces.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "proto/dicomweb/multipart.h"

struct seen {
    struct strbuf log;
    size_t data;
    bool in_part;
};

static int on_part(void *arg, const struct multipart_part *part)
{
    struct seen *s = arg;

    CHECK(!s->in_part);
    s->in_part = true;
    strbuf_adds(&s->log, "<");
    strbuf_adds(&s->log, part->content_type ? part->content_type : "-");
    strbuf_adds(&s->log, part->content_location ? part->content_location : "-");
    strbuf_addf(&s->log, "%d %llu>", part->encoded, (unsigned long long)part->content_length);
    return 0;
}

static int on_data(void *arg, const void *data, size_t len)
{
    struct seen *s = arg;

    CHECK(s->in_part && len > 0);
    s->data += len;
    strbuf_add(&s->log, data, len);
    return 0;
}

static int on_part_end(void *arg)
{
    struct seen *s = arg;

    CHECK(s->in_part);
    s->in_part = false;
    strbuf_adds(&s->log, "</>");
    return 0;
}

static const struct multipart_ops ops = {on_part, on_data, on_part_end};
static const char *const boundaries[] = {"b", "--", "-", "a b", "0123456789", "bb"};

static int parse(const char *boundary, const uint8_t *p, size_t n, size_t step, struct seen *s)
{
    struct multipart *m = mem_alloc(sizeof(*m));
    int r = multipart_init(m, boundary, &ops, s);

    CHECK(r == 0);
    for (size_t i = 0; i < n && r == 0; i += step)
        r = multipart_push(m, p + i, step < n - i ? step : n - i);
    if (r == 0)
        r = multipart_finish(m);
    CHECK(r != 0 || !s->in_part);
    mem_free(m);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct seen one = {0}, many = {0};
    const char *boundary;
    int a, b;

    if (size < 2)
        return 0;
    boundary = boundaries[data[0] % (sizeof(boundaries) / sizeof(boundaries[0]))];
    a = parse(boundary, data + 2, size - 2, size, &one);
    b = parse(boundary, data + 2, size - 2, (size_t)data[1] % 17 + 1, &many);
    CHECK(a == b && one.data <= size);
    /* After an error the pieces before it may differ, never the bytes of what was complete. */
    CHECK(a != 0 || (one.log.len == many.log.len &&
                     memcmp(one.log.data ? one.log.data : "", many.log.data ? many.log.data : "",
                            one.log.len) == 0));
    strbuf_free(&one.log);
    strbuf_free(&many.log);
    return 0;
}

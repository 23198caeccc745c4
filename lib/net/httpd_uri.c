/* Request targets: percent-encoding checked once, here, so that no handler sees a half-decoded
 * byte.
 *
 * Splitting comes before decoding (RFC 3986 section 2.4): "%2F" in a segment is data. Decoded texts
 * never outgrow the target, and every piece ends at a delimiter whose place the NUL can take, so
 * that one allocation of the target's length holds them all.
 */
#include "lib/net/httpd_impl.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Decodes [s, s+n) at *at and moves *at behind the NUL. */
static int decode(const char *s, size_t n, bool plus_is_space, char **at, const char **ret)
{
    char *out = *at, *start = out;

    for (size_t i = 0; i < n; i++) {
        char c = s[i];

        if (c == '%') {
            int hi = n - i >= 3 ? hex_digit(s[i + 1]) : -1;
            int lo = n - i >= 3 ? hex_digit(s[i + 2]) : -1;

            if (hi < 0 || lo < 0 || (hi == 0 && lo == 0))
                return ERR_INVAL;
            c = (char)(hi << 4 | lo);
            i += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        *out++ = c;
    }
    *out++ = 0;
    *at = out;
    *ret = start;
    return 0;
}

static int parse_path(const char *p, const char *end, char **at, struct httpd_uri *u)
{
    while (p < end) {
        const char *slash;
        int r;

        p++; /* the '/' before the segment */
        slash = memchr(p, '/', (size_t)(end - p));
        if (!slash)
            slash = end;
        if (p == end)
            break; /* a trailing '/' */
        if (u->segment_count == HTTPD_SEGMENTS_MAX)
            return ERR_NOENT;
        r = decode(p, (size_t)(slash - p), false, at, &u->segments[u->segment_count]);
        if (r < 0)
            return r;
        u->segment_count++;
        p = slash;
    }
    return 0;
}

static int parse_query(const char *p, const char *end, char **at, struct httpd_uri *u)
{
    while (p < end) {
        const char *amp = memchr(p, '&', (size_t)(end - p)), *eq;
        struct httpd_uri_arg *a = &u->args[u->arg_count];
        int r;

        if (!amp)
            amp = end;
        if (amp > p) {
            if (u->arg_count == HTTPD_ARGS_MAX)
                return ERR_INVAL;
            eq = memchr(p, '=', (size_t)(amp - p));
            r = decode(p, (size_t)((eq ? eq : amp) - p), true, at, &a->name);
            if (r < 0)
                return r;
            a->value = "";
            if (eq)
                r = decode(eq + 1, (size_t)(amp - eq - 1), true, at, &a->value);
            if (r < 0)
                return r;
            u->arg_count++;
        }
        p = amp < end ? amp + 1 : end;
    }
    return 0;
}

/* The path of an absolute-form target ("http://host/path"); NULL when it is not one. */
static const char *skip_authority(const char *target)
{
    const char *p = strstr(target, "://");

    if (!p || p - target > 5)
        return NULL;
    p += 3;
    return p + strcspn(p, "/?");
}

int httpd_uri_parse(const char *target, struct httpd_uri *ret_uri)
{
    struct httpd_uri *u = ret_uri;
    size_t len = strlen(target);
    const char *query;
    char *at;
    int r;

    u->segment_count = u->arg_count = 0;
    u->raw_path = mem_strdup("");
    u->text = NULL;
    if (len > HTTPD_URI_MAX)
        return ERR_TOOBIG;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)target[i] <= ' ' || target[i] == 0x7f || target[i] == '#')
            return ERR_INVAL;
    if (target[0] != '/')
        target = skip_authority(target);
    if (!target)
        return ERR_INVAL;
    query = target + strcspn(target, "?");
    mem_free(u->raw_path);
    u->raw_path = mem_alloc((size_t)(query - target) + 1);
    memcpy(u->raw_path, target, (size_t)(query - target));
    u->raw_path[query - target] = 0;
    at = u->text = mem_alloc(len + 2);
    r = parse_path(target, query, &at, u);
    if (r == 0 && *query)
        r = parse_query(query + 1, query + strlen(query), &at, u);
    return r;
}

void httpd_uri_free(struct httpd_uri *u)
{
    mem_free(u->raw_path);
    mem_free(u->text);
    u->raw_path = u->text = NULL;
    u->segment_count = u->arg_count = 0;
}

/* Media types and the choice among them.
 *
 * transfer-syntax is not a quality of its own here: stored bytes are handed out as they are, so an
 * explicit transfer syntax either is the stored one or the offer fails. Where a client names none,
 * the standard's default is explicit VR little endian (PS3.18 section 8.7.3.5.2); a server that
 * does not transcode answers with what it has rather than with 406, as clients without the
 * parameter expect.
 */
#include "proto/dicomweb/mime.h"

#include <string.h>
#include <strings.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"

/* ---- Tokens ---------------------------------------------------------------------------------- */

static bool is_token(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static void skip_space(const char **p)
{
    while (**p == ' ' || **p == '\t')
        (*p)++;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* Copies the token at *p in lower case; `extra` are more bytes to take. */
static int take_token(const char **p, const char *extra, char *out, size_t size)
{
    size_t n = 0;

    while (is_token(**p) || (**p && strchr(extra, **p))) {
        if (n + 1 >= size)
            return ERR_INVAL;
        out[n++] = lower(**p);
        (*p)++;
    }
    out[n] = 0;
    return n ? 0 : ERR_INVAL;
}

/* A parameter's value: quoted, or bare. Bare values may hold '/' and ':' : clients send
 * type=application/dicom without quotes. */
static int take_value(const char **p, char *out, size_t size)
{
    size_t n = 0;
    bool quoted = **p == '"';

    if (quoted)
        (*p)++;
    while (**p && (quoted ? **p != '"' : is_token(**p) || **p == '/' || **p == ':')) {
        if (quoted && **p == '\\' && (*p)[1])
            (*p)++;
        if ((unsigned char)**p < ' ' || n + 1 >= size)
            return ERR_INVAL;
        out[n++] = **p;
        (*p)++;
    }
    if (quoted) {
        if (**p != '"')
            return ERR_INVAL;
        (*p)++;
    }
    out[n] = 0;
    return 0;
}

/* "type/subtype" at *p. */
static int take_type(const char **p, char out[MIME_TYPE_MAX + 1])
{
    const char *slash;
    int r = take_token(p, "/", out, MIME_TYPE_MAX + 1);

    if (r < 0)
        return r;
    slash = strchr(out, '/');
    if (!slash || slash == out || !slash[1] || strchr(slash + 1, '/'))
        return ERR_INVAL;
    return 0;
}

/* The next ";name=value" at *p into ret; 0 when there is none. An empty parameter is skipped. */
static int take_param(const char **p, struct mime_param *ret)
{
    int r;

    for (;;) {
        skip_space(p);
        if (**p != ';')
            return 0;
        (*p)++;
        skip_space(p);
        if (**p && **p != ';' && **p != ',')
            break;
    }
    r = take_token(p, "", ret->name, sizeof(ret->name));
    if (r < 0)
        return r;
    skip_space(p);
    ret->value[0] = 0;
    if (**p == '=') {
        (*p)++;
        skip_space(p);
        r = take_value(p, ret->value, sizeof(ret->value));
        if (r < 0)
            return r;
    }
    return 1;
}

int mime_parse(const char *text, struct mime *ret_mime)
{
    struct mime m = {.param_count = 0};
    struct mime_param param;
    int r;

    skip_space(&text);
    r = take_type(&text, m.type);
    if (r < 0)
        return r;
    while ((r = take_param(&text, &param)) > 0) {
        if (m.param_count == MIME_PARAMS_MAX)
            return ERR_INVAL;
        m.params[m.param_count++] = param;
    }
    if (r < 0 || *text)
        return ERR_INVAL;
    *ret_mime = m;
    return 0;
}

const char *mime_param(const struct mime *m, const char *name)
{
    for (size_t i = 0; i < m->param_count; i++)
        if (strcmp(m->params[i].name, name) == 0)
            return m->params[i].value;
    return NULL;
}

/* ---- Accept ---------------------------------------------------------------------------------- */

/* "1", "0.5", "0.333": thousandths, or -1 (RFC 9110 section 12.4.2). */
static int parse_q(const char *s)
{
    int q, scale = 100;

    if (*s != '0' && *s != '1')
        return -1;
    q = *s++ == '1' ? 1000 : 0;
    if (*s == '.')
        s++;
    else if (*s)
        return -1;
    for (; *s; s++, scale /= 10) {
        if (*s < '0' || *s > '9' || scale == 0)
            return -1;
        q += (*s - '0') * scale;
    }
    return q > 1000 ? -1 : q;
}

static int range_param(struct mime_range *range, const struct mime_param *p)
{
    int q;

    if (strcmp(p->name, "q") == 0) {
        q = parse_q(p->value);
        if (q < 0)
            return ERR_INVAL;
        range->q = (unsigned)q;
    } else if (strcmp(p->name, "type") == 0) {
        if (strlen(p->value) >= sizeof(range->related))
            return ERR_INVAL;
        for (size_t i = 0; i <= strlen(p->value); i++)
            range->related[i] = lower(p->value[i]);
    } else if (strcmp(p->name, "transfer-syntax") == 0) {
        if (strlen(p->value) >= sizeof(range->syntax))
            return ERR_INVAL;
        memcpy(range->syntax, p->value, strlen(p->value) + 1);
    }
    return 0; /* charset, boundary and the like say nothing here */
}

static int take_range(const char **p, struct mime_range *ret)
{
    struct mime_range range = {.q = 1000};
    struct mime_param param;
    int r = take_type(p, range.type);

    if (r < 0)
        return r;
    while ((r = take_param(p, &param)) > 0) {
        r = range_param(&range, &param);
        if (r < 0)
            return r;
    }
    if (r == 0)
        *ret = range;
    return r;
}

int mime_accept_add(struct mime_accept *a, const char *text)
{
    int r;

    for (;;) {
        skip_space(&text);
        if (*text == ',') {
            text++;
            continue;
        }
        if (!*text)
            return 0;
        if (a->count == MIME_ACCEPT_MAX)
            return ERR_TOOBIG;
        r = take_range(&text, &a->ranges[a->count]);
        if (r < 0)
            return r;
        skip_space(&text);
        if (*text && *text != ',')
            return ERR_INVAL;
        a->count++;
    }
}

int mime_accept_add_arg(struct mime_accept *a, const char *text)
{
    MEM_AUTO char *copy = mem_strdup(text);

    for (char *p = copy; *p; p++)
        if (*p == ' ' && p > copy && is_token(p[-1]) && is_token(p[1]))
            *p = '+';
    return mime_accept_add(a, copy);
}

/* ---- The choice ------------------------------------------------------------------------------ */

static bool syntax_fits(const struct mime_range *range, const struct mime_offer *o)
{
    if (strcmp(range->syntax, "*") == 0)
        return true;
    if (range->syntax[0] == 0)
        return !o->only_any_syntax;
    for (size_t i = 0; i < o->syntax_count; i++)
        if (strcmp(range->syntax, o->syntaxes[i]) != 0)
            return false;
    return true;
}

/* How specifically a range names an offer; 0: not at all. */
static int range_match(const struct mime_range *range, const struct mime_offer *o)
{
    const char *slash = strchr(o->type, '/');
    size_t major = (size_t)(slash - o->type) + 1;
    int syntax = range->syntax[0] ? 1 : 0;

    if (!syntax_fits(range, o))
        return 0;
    if (strcmp(range->type, "*/*") == 0)
        return 1;
    if (o->multipart) {
        if (strcmp(range->type, "multipart/*") == 0)
            return 2;
        if (strcmp(range->type, "multipart/related") != 0)
            return 0;
        if (range->related[0] == 0 || strcmp(range->related, "*/*") == 0)
            return 4;
        return strcmp(range->related, o->type) == 0 ? 6 + syntax : 0;
    }
    if (strcmp(range->type, o->type) == 0)
        return 6 + syntax;
    if (strncmp(range->type, o->type, major) == 0 && strcmp(range->type + major, "*") == 0)
        return 2;
    return 0;
}

int mime_choose(const struct mime_accept *a, const struct mime_offer *offers, size_t count)
{
    int best = -1;
    unsigned best_q = 0;
    size_t best_pos = 0;

    if (a->count == 0)
        return count > 0 ? 0 : -1;
    for (size_t i = 0; i < count; i++) {
        int match = 0;
        size_t pos = 0;

        for (size_t k = 0; k < a->count; k++) {
            int m = range_match(&a->ranges[k], &offers[i]);

            if (m > match) {
                match = m;
                pos = k;
            }
        }
        if (match == 0 || a->ranges[pos].q == 0)
            continue;
        if (best < 0 || a->ranges[pos].q > best_q ||
            (a->ranges[pos].q == best_q && pos < best_pos)) {
            best = (int)i;
            best_q = a->ranges[pos].q;
            best_pos = pos;
        }
    }
    return best;
}

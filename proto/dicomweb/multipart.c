/* The multipart push parser.
 *
 * The delimiter is CR LF "--" boundary. A boundary holds no CR, so a partial match can restart only
 * at a new CR: matching needs no table, and what is held back is exactly a prefix of the delimiter,
 * which can be given out from there when the match fails.
 *
 * The first boundary may open the stream, and a boundary may follow a part's header section at once
 * (an empty part): there the CR LF belongs to what came before. These two bytes are then taken as
 * matched ("ghosts") and are left out when the match fails.
 *
 * After the delimiter come "--" (the end), or spaces and CR LF (a part). Anything else means that
 * the line only began like a boundary: it was data, and is given out as such.
 */
#include "proto/dicomweb/multipart.h"

#include <string.h>
#include <strings.h>

#include "lib/base/check.h"
#include "lib/base/err.h"

enum { AT_PREAMBLE, AT_BODY, AT_PADDING_PREAMBLE, AT_PADDING_BODY, AT_HEADERS, AT_EPILOGUE };

static bool boundary_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("'()+_,-./:=? ", c)) ||
           /* not in the RFC's list, but made by clients */
           (c && strchr("!#$%&*^`|~@;<>[]{}", c));
}

int multipart_init(struct multipart *m, const char *boundary, const struct multipart_ops *ops,
                   void *arg)
{
    size_t n = strlen(boundary);

    if (n == 0 || n > MULTIPART_BOUNDARY_MAX || boundary[n - 1] == ' ')
        return ERR_INVAL;
    for (size_t i = 0; i < n; i++)
        if (!boundary_char(boundary[i]))
            return ERR_INVAL;
    memset(m, 0, offsetof(struct multipart, line));
    m->ops = ops;
    m->arg = arg;
    memcpy(m->delim, "\r\n--", 4);
    memcpy(m->delim + 4, boundary, n);
    m->delim_len = n + 4;
    m->held = m->ghost = 2;
    return 0;
}

static int emit(struct multipart *m, const void *p, size_t n)
{
    if (n == 0 || m->state == AT_PREAMBLE || m->state == AT_PADDING_PREAMBLE)
        return 0;
    return m->ops->on_data(m->arg, p, n);
}

/* The held prefix was data after all. */
static int emit_held(struct multipart *m)
{
    size_t ghost = m->ghost, held = m->held;

    m->held = m->ghost = 0;
    return emit(m, m->delim + ghost, held - ghost);
}

static void enter_padding(struct multipart *m)
{
    m->state = m->state == AT_PREAMBLE ? AT_PADDING_PREAMBLE : AT_PADDING_BODY;
    m->pad_len = 0;
}

/* In preamble or body: gives out data up to a delimiter or the end; returns bytes consumed. */
static int64_t push_data(struct multipart *m, const char *p, size_t n)
{
    const char *start = p, *end = p + n, *found, *tail;
    int r;

    if (m->held > 0) {
        while (p < end && m->held < m->delim_len && *p == m->delim[m->held]) {
            p++;
            m->held++;
        }
        if (m->held == m->delim_len) {
            enter_padding(m);
            return p - start;
        }
        if (p == end)
            return p - start;
        r = emit_held(m);
        return r < 0 ? r : p - start;
    }
    found = memmem(p, (size_t)(end - p), m->delim, m->delim_len);
    if (found) {
        r = emit(m, p, (size_t)(found - p));
        m->held = m->delim_len;
        m->ghost = 0;
        if (r == 0)
            enter_padding(m);
        return r < 0 ? r : found + (ptrdiff_t)m->delim_len - start;
    }
    /* A delimiter may begin in the last bytes: at the first CR from which all matches. */
    tail = (size_t)(end - p) >= m->delim_len ? end - (ptrdiff_t)m->delim_len + 1 : p;
    while ((tail = memchr(tail, '\r', (size_t)(end - tail))) != NULL &&
           memcmp(tail, m->delim, (size_t)(end - tail)) != 0)
        tail++;
    r = emit(m, p, (size_t)((tail ? tail : end) - p));
    m->held = tail ? (size_t)(end - tail) : 0;
    return r < 0 ? r : (int64_t)n;
}

/* The boundary is a boundary: what was before it ends here. */
static int end_of_before(struct multipart *m)
{
    bool body = m->state == AT_PADDING_BODY;

    m->held = m->ghost = 0;
    return body ? m->ops->on_part_end(m->arg) : 0;
}

static int begin_headers(struct multipart *m)
{
    int r = end_of_before(m);

    m->state = AT_HEADERS;
    m->line_len = m->header_len = 0;
    m->have_type = m->have_location = m->encoded = false;
    m->content_length = UINT64_MAX;
    return r;
}

/* One byte after a delimiter. `again`: the byte is data and is to be looked at once more. */
static int push_padding(struct multipart *m, char c, bool *again)
{
    bool lone_cr = m->pad_len > 0 && m->pad[m->pad_len - 1] == '\r';
    bool dash = m->pad_len == 1 && m->pad[0] == '-';
    int r;

    if (dash && c == '-') {
        r = end_of_before(m);
        m->state = AT_EPILOGUE;
        return r;
    }
    if (lone_cr && c == '\n')
        return begin_headers(m);
    if (!lone_cr && !dash && m->pad_len < MULTIPART_PADDING_MAX &&
        (c == ' ' || c == '\t' || c == '\r' || (c == '-' && m->pad_len == 0))) {
        m->pad[m->pad_len++] = c;
        return 0;
    }
    /* Data that began like a boundary. A held CR may begin the true delimiter. */
    *again = true;
    r = emit_held(m);
    if (r == 0)
        r = emit(m, m->pad, m->pad_len - (lone_cr ? 1 : 0));
    m->state = m->state == AT_PADDING_PREAMBLE ? AT_PREAMBLE : AT_BODY;
    m->held = lone_cr ? 1 : 0;
    return r;
}

/* ---- Headers --------------------------------------------------------------------------------- */

static int copy_value(char *to, size_t size, const char *value, bool *seen)
{
    if (*seen)
        return ERR_PROTO;
    if (strlen(value) >= size)
        return ERR_TOOBIG;
    memcpy(to, value, strlen(value) + 1);
    *seen = true;
    return 0;
}

static uint64_t parse_length(const char *s)
{
    uint64_t v = 0;

    if (!*s)
        return UINT64_MAX;
    for (; *s; s++) {
        if (*s < '0' || *s > '9' || v > (UINT64_MAX - 9) / 10)
            return UINT64_MAX;
        v = v * 10 + (uint64_t)(*s - '0');
    }
    return v;
}

static int header_line(struct multipart *m)
{
    char *colon = strchr(m->line, ':'), *value, *end;

    if (!colon || colon == m->line || strlen(m->line) != m->line_len)
        return ERR_PROTO;
    *colon = 0;
    value = colon + 1 + strspn(colon + 1, " \t");
    end = m->line + m->line_len;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        *--end = 0;
    if (strcasecmp(m->line, "Content-Type") == 0)
        return copy_value(m->type, sizeof(m->type), value, &m->have_type);
    if (strcasecmp(m->line, "Content-Location") == 0)
        return copy_value(m->location, sizeof(m->location), value, &m->have_location);
    if (strcasecmp(m->line, "Content-Length") == 0)
        m->content_length = parse_length(value);
    if (strcasecmp(m->line, "Content-Transfer-Encoding") == 0)
        m->encoded = strcasecmp(value, "binary") != 0 && strcasecmp(value, "8bit") != 0 &&
                     strcasecmp(value, "7bit") != 0;
    return 0;
}

static int end_of_headers(struct multipart *m)
{
    struct multipart_part part = {
        .content_type = m->have_type ? m->type : NULL,
        .content_location = m->have_location ? m->location : NULL,
        .content_length = m->content_length,
        .encoded = m->encoded,
    };

    m->state = AT_BODY;
    m->held = m->ghost = 2;
    return m->ops->on_part(m->arg, &part);
}

/* In a header section; returns bytes consumed: at most up to the end of a line. */
static int64_t push_header(struct multipart *m, const char *p, size_t n)
{
    const char *lf = memchr(p, '\n', n);
    size_t take = lf ? (size_t)(lf - p) + 1 : n;
    int r;

    if (take > MULTIPART_HEADERS_MAX - m->header_len)
        return ERR_TOOBIG;
    memcpy(m->line + m->line_len, p, take);
    m->line_len += take;
    m->header_len += take;
    if (!lf)
        return (int64_t)take;
    if (m->line_len < 2 || m->line[m->line_len - 2] != '\r')
        return ERR_PROTO;
    m->line_len -= 2;
    m->line[m->line_len] = 0;
    r = m->line_len ? header_line(m) : end_of_headers(m);
    m->line_len = 0;
    return r < 0 ? r : (int64_t)take;
}

/* ---- The whole ------------------------------------------------------------------------------- */

static int64_t push_some(struct multipart *m, const char *p, size_t n)
{
    bool again = false;
    int r;

    switch (m->state) {
    case AT_PREAMBLE:
    case AT_BODY:
        return push_data(m, p, n);
    case AT_PADDING_PREAMBLE:
    case AT_PADDING_BODY:
        r = push_padding(m, *p, &again);
        return r < 0 ? r : again ? 0 : 1;
    case AT_HEADERS:
        return push_header(m, p, n);
    default:
        CHECK(m->state == AT_EPILOGUE);
        return (int64_t)n;
    }
}

int multipart_push(struct multipart *m, const void *data, size_t len)
{
    const char *p = data, *end = p + len;

    while (p < end && m->failed == 0) {
        int64_t n = push_some(m, p, (size_t)(end - p));

        if (n < 0)
            m->failed = (int)n;
        else
            p += n;
    }
    return m->failed;
}

int multipart_finish(const struct multipart *m)
{
    if (m->failed)
        return m->failed;
    return m->state == AT_EPILOGUE ? 0 : ERR_TRUNCATED;
}

/* A growing byte string with a bound; see strbuf.h. */
#include "lib/base/strbuf.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"

#define STRBUF_MAX_DEFAULT ((size_t)1 << 30)

static bool strbuf_grow(struct strbuf *s, size_t n)
{
    size_t max = s->max ? s->max : STRBUF_MAX_DEFAULT;
    size_t cap = s->cap ? s->cap : 64;

    if (s->overflow || n > max || s->len > max - n) {
        s->overflow = true;
        return false;
    }
    while (cap < s->len + n + 1)
        cap *= 2;
    if (cap != s->cap) {
        s->data = mem_realloc(s->data, cap);
        s->cap = cap;
        s->data[s->len] = 0;
    }
    return true;
}

void *strbuf_room(struct strbuf *s, size_t n)
{
    char *p;

    if (!strbuf_grow(s, n))
        return NULL;
    p = s->data + s->len;
    s->len += n;
    s->data[s->len] = 0;
    return p;
}

void strbuf_add(struct strbuf *s, const void *p, size_t n)
{
    void *room = strbuf_room(s, n);

    if (room && n)
        memcpy(room, p, n);
}

void strbuf_adds(struct strbuf *s, const char *text)
{
    strbuf_add(s, text, strlen(text));
}

void strbuf_addc(struct strbuf *s, char c)
{
    strbuf_add(s, &c, 1);
}

void strbuf_addvf(struct strbuf *s, const char *fmt, va_list ap)
{
    va_list again;
    int n;

    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, ap);
    CHECK(n >= 0);
    if (strbuf_grow(s, (size_t)n)) {
        CHECK(vsnprintf(s->data + s->len, s->cap - s->len, fmt, again) == n);
        s->len += (size_t)n;
    }
    va_end(again);
}

void strbuf_addf(struct strbuf *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    strbuf_addvf(s, fmt, ap);
    va_end(ap);
}

void strbuf_reset(struct strbuf *s)
{
    s->len = 0;
    s->overflow = false;
    if (s->data)
        s->data[0] = 0;
}

char *strbuf_take(struct strbuf *s)
{
    char *text;

    strbuf_room(s, 0);
    text = s->data;
    s->data = NULL;
    s->len = s->cap = 0;
    s->overflow = false;
    return text;
}

void strbuf_free(struct strbuf *s)
{
    mem_free(s->data);
    s->data = NULL;
    s->len = s->cap = 0;
    s->overflow = false;
}

/* A growing byte string with a bound: text for people and protocols, or encoded records.
 *
 * Always NUL-terminated (the NUL is not counted). Growth past `max` sets `overflow` and drops the
 * rest; the one who asked for a bound checks it once at the end.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

struct strbuf {
    char *data; /* never NULL after the first append */
    size_t len, cap;
    size_t max; /* 0: the default of 1 GiB */
    bool overflow;
};

#define STRBUF_INIT \
    {               \
        0           \
    }
#define STRBUF_AUTO __attribute__((cleanup(strbuf_free)))

void strbuf_add(struct strbuf *s, const void *p, size_t n);
void strbuf_adds(struct strbuf *s, const char *text);
void strbuf_addc(struct strbuf *s, char c);
void strbuf_addf(struct strbuf *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_addvf(struct strbuf *s, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));
/* Appends n bytes of room for the caller to fill; NULL on overflow. */
void *strbuf_room(struct strbuf *s, size_t n);
void strbuf_reset(struct strbuf *s); /* length 0, memory kept */
char *strbuf_take(struct strbuf *s); /* the caller owns the text (mem_free); s is empty again */
void strbuf_free(struct strbuf *s);  /* empty again */

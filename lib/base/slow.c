/* The log of slow operations; see slow.h. */
#include "lib/base/slow.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/strbuf.h"

#define SLOW_FIELDS_MAX 1024u

bool slow_admit(struct slow_limit *l, uint64_t now, uint64_t *ret_left_out)
{
    l->total++;
    if (l->lines == 0 || now - l->window_start >= SLOW_WINDOW) {
        l->window_start = now;
        l->lines = 0;
    }
    if (l->lines >= SLOW_LINES) {
        l->left_out++;
        return false;
    }
    l->lines++;
    *ret_left_out = l->left_out;
    l->left_out = 0;
    return true;
}

static struct slow_limit *slow_limit_of(struct slow_log *s, const char *op)
{
    unsigned i = 0;

    while (i < SLOW_KINDS - 1 && s->kinds[i].op && strcmp(s->kinds[i].op, op) != 0)
        i++;
    s->kinds[i].op = op;
    return &s->kinds[i].limit;
}

void slow_note(struct slow_log *s, uint64_t now, const char *op, uint64_t took_ns, const char *fmt,
               ...)
{
    struct strbuf fields = {.max = SLOW_FIELDS_MAX};
    uint64_t left_out;
    va_list ap;

    s->total++;
    if (!slow_admit(slow_limit_of(s, op), now, &left_out))
        return;
    va_start(ap, fmt);
    strbuf_addvf(&fields, fmt, ap);
    va_end(ap);
    log_warn("slow", "slow operation op=%s us=%" PRIu64 " %s left_out=%" PRIu64, op, took_ns / 1000,
             fields.data ? fields.data : "", left_out);
    strbuf_free(&fields);
}

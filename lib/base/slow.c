/* The log of slow operations; see slow.h. */
#include "lib/base/slow.h"

#include <inttypes.h>
#include <stdarg.h>

#include "lib/base/log.h"
#include "lib/base/strbuf.h"

#define SLOW_FIELDS_MAX 1024u

bool slow_admit(struct slow_log *s, uint64_t now, uint64_t *ret_left_out)
{
    s->total++;
    if (s->lines == 0 || now - s->window_start >= SLOW_WINDOW) {
        s->window_start = now;
        s->lines = 0;
    }
    if (s->lines >= SLOW_LINES) {
        s->left_out++;
        return false;
    }
    s->lines++;
    *ret_left_out = s->left_out;
    s->left_out = 0;
    return true;
}

void slow_note(struct slow_log *s, uint64_t now, const char *op, uint64_t took_ns, const char *fmt,
               ...)
{
    struct strbuf fields = {.max = SLOW_FIELDS_MAX};
    uint64_t left_out;
    va_list ap;

    if (!slow_admit(s, now, &left_out))
        return;
    va_start(ap, fmt);
    strbuf_addvf(&fields, fmt, ap);
    va_end(ap);
    log_warn("slow", "slow operation op=%s us=%" PRIu64 " %s left_out=%" PRIu64, op, took_ns / 1000,
             fields.data ? fields.data : "", left_out);
    strbuf_free(&fields);
}

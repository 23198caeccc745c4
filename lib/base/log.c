/* The log writer; see log.h. It reads the wall clock itself: a line's time is for people, nothing
 * in the engine depends on it. */
#include "lib/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/err.h"

static enum log_level log_threshold = LOG_INFO;
static const char *const log_names[] = {"debug", "info", "warn", "error"};

void log_set_level(enum log_level level)
{
    __atomic_store_n(&log_threshold, level, __ATOMIC_RELAXED);
}

int log_level_parse(const char *text, enum log_level *ret_level)
{
    for (int i = LOG_DEBUG; i <= LOG_ERROR; i++) {
        if (strcmp(text, log_names[i]) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    }
    return ERR_INVAL;
}

const char *log_q(const char *text)
{
    static _Thread_local char ring[8][220];
    static _Thread_local unsigned turn;
    char *out = ring[turn++ % 8];
    size_t n = 0;

    out[n++] = '"';
    for (; *text && n < 200; text++) {
        unsigned char c = (unsigned char)*text;

        if (c < 0x20 || c == 0x7f) {
            n += (size_t)snprintf(out + n, 5, "\\x%02x", c);
        } else {
            if (c == '"' || c == '\\')
                out[n++] = '\\';
            out[n++] = (char)c;
        }
    }
    out[n++] = '"';
    out[n] = 0;
    return out;
}

static size_t log_head(char *line, size_t size, enum log_level level, const char *module)
{
    struct timespec ts;
    struct tm tm;
    size_t n;

    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    n = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, size - n, ".%03ldZ %-5s %s: ", ts.tv_nsec / 1000000,
                          log_names[level], module);
    return n;
}

void log_write(enum log_level level, const char *module, const char *fmt, ...)
{
    char line[2048];
    size_t n;
    int m;
    va_list ap;

    if (level < __atomic_load_n(&log_threshold, __ATOMIC_RELAXED))
        return;
    n = log_head(line, sizeof(line), level, module);
    va_start(ap, fmt);
    m = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
    va_end(ap);
    if (m > 0)
        n += (size_t)m < sizeof(line) - n - 1 ? (size_t)m : sizeof(line) - n - 2;
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, n) < 0)
        return; /* nowhere left to say it */
}

/* The log writer; see log.h. It reads the wall clock itself: a line's time is for people, nothing
 * in the engine depends on it.
 *
 * Lines are written by the threads whose loops serve everybody, so a reader of the log that stands
 * still must not hold them. O_NONBLOCK on stderr would do, but that flag belongs to the open file,
 * which other processes may share. So a pipe is asked whether it has room first. It has when one of
 * its pages is free, and a line is shorter than a page: it goes in whole. Between the question and
 * the write no other thread may take that page; hence the turn. To a socket a line is sent without
 * waiting. Files and terminals are written as they are.
 */
#include "lib/base/log.h"

#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/err.h"

#define LOG_LINE  2048u
#define LOG_NOTE  256u   /* the line about dropped ones */
#define LOG_TRIES 10000u /* to get the turn: some milliseconds */

_Static_assert(LOG_LINE + LOG_NOTE <= PIPE_BUF, "what is written goes into a pipe whole");

static enum log_level log_threshold = LOG_INFO;
static uint64_t log_dropped; /* lines, since the last that got through */
static bool log_turn;        /* somebody is between asking a pipe and writing to it */
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

/* False: a thread that has the turn does not get on. Who has it never waits, so this does not
 * either; it only lets that thread run. */
static bool log_turn_take(void)
{
    for (unsigned i = 0; i < LOG_TRIES; i++) {
        if (!__atomic_test_and_set(&log_turn, __ATOMIC_ACQUIRE))
            return true;
        sched_yield();
    }
    return false;
}

static ssize_t log_put_pipe(const char *text, size_t n)
{
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    ssize_t r = -1;

    if (!log_turn_take())
        return -1;
    if (poll(&p, 1, 0) > 0 && (p.revents & POLLOUT))
        r = write(STDERR_FILENO, text, n);
    __atomic_clear(&log_turn, __ATOMIC_RELEASE);
    return r;
}

/* Does not wait for a reader. Negative: nothing was written. */
static ssize_t log_put(const char *text, size_t n)
{
    struct stat st;

    if (fstat(STDERR_FILENO, &st) < 0)
        return -1;
    if (S_ISFIFO(st.st_mode))
        return log_put_pipe(text, n);
    if (S_ISSOCK(st.st_mode))
        return send(STDERR_FILENO, text, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    return write(STDERR_FILENO, text, n);
}

/* The line that stands before the next one when some were dropped. */
static size_t log_note(char *text, uint64_t dropped)
{
    size_t n;

    if (dropped == 0)
        return 0;
    n = log_head(text, LOG_NOTE, LOG_WARN, "log");
    n += (size_t)snprintf(text + n, LOG_NOTE - n,
                          "lines were dropped, the log's reader did not take them count=%llu\n",
                          (unsigned long long)dropped);
    return n;
}

void log_write(enum log_level level, const char *module, const char *fmt, ...)
{
    char text[LOG_NOTE + LOG_LINE], *line;
    uint64_t dropped;
    size_t note, n;
    int m;
    va_list ap;

    if (level < __atomic_load_n(&log_threshold, __ATOMIC_RELAXED))
        return;
    dropped = __atomic_exchange_n(&log_dropped, 0, __ATOMIC_RELAXED);
    note = log_note(text, dropped);
    line = text + note;
    n = log_head(line, LOG_LINE, level, module);
    va_start(ap, fmt);
    m = vsnprintf(line + n, LOG_LINE - n - 1, fmt, ap);
    va_end(ap);
    if (m > 0)
        n += (size_t)m < LOG_LINE - n - 1 ? (size_t)m : LOG_LINE - n - 2;
    line[n++] = '\n';
    if (log_put(text, note + n) < 0)
        __atomic_add_fetch(&log_dropped, dropped + 1, __ATOMIC_RELAXED);
}

/* Structured log: one line per event, on stderr, `time level module message key=value ...`.
 *
 * The message is a constant; what varies is in the values, quoted where needed, so that no input
 * can forge a line. Library code does not log what it returns as an error; the program does.
 * Thread-safe: a line is one write.
 *
 * Writing a line never waits for who reads the log: where stderr is a pipe or a socket that takes
 * no more, the line is dropped and counted, and the next line that gets through has one before it
 * that tells the count. Files and terminals get every line.
 */
#pragma once

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

void log_set_level(enum log_level level);
int log_level_parse(const char *text, enum log_level *ret_level); /* ERR_INVAL */

/* `fmt` makes the whole of "message key=value ..."; use log_q() around text from outside. */
void log_write(enum log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Text made safe for a log line: quoted, control bytes and quotes escaped, at most 200 bytes. Up to
 * eight results are valid at a time on a thread. */
const char *log_q(const char *text);

#define log_debug(module, ...) log_write(LOG_DEBUG, module, __VA_ARGS__)
#define log_info(module, ...)  log_write(LOG_INFO, module, __VA_ARGS__)
#define log_warn(module, ...)  log_write(LOG_WARN, module, __VA_ARGS__)
#define log_error(module, ...) log_write(LOG_ERROR, module, __VA_ARGS__)

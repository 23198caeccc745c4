/* The log writer: lines come whole and in order, and a reader that stands still holds nobody. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "lib/base/log.h"

#define NOTE "lines were dropped, the log's reader did not take them count="

static int own_stderr;

/* The log goes to `fd`, which blocks as it did. A line that waits ends the test. */
static void log_to(int fd)
{
    fflush(stderr);
    own_stderr = dup(STDERR_FILENO);
    assert_return_code(dup2(fd, STDERR_FILENO), 0);
    alarm(20);
}

static void log_back(void)
{
    alarm(0);
    dup2(own_stderr, STDERR_FILENO);
    close(own_stderr);
}

static void set_nonblock(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);

    fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

static void fill(int fd, size_t piece)
{
    static const char junk[4096];

    set_nonblock(fd, true);
    while (write(fd, junk, piece) > 0)
        ;
    set_nonblock(fd, false);
}

/* What can be read without waiting, as text. */
static size_t drain(int fd, char *text, size_t size)
{
    ssize_t n;
    size_t len = 0;

    set_nonblock(fd, true);
    while ((n = read(fd, text + len, size - 1 - len)) > 0)
        len += (size_t)n;
    set_nonblock(fd, false);
    text[len] = 0;
    return len;
}

static size_t count_of(const char *text, const char *what)
{
    size_t n = 0;

    for (; (text = strstr(text, what)) != NULL; text += strlen(what))
        n++;
    return n;
}

static char *text;
#define TEXT_SIZE (1u << 20)

/* With `to` full: three lines return, the fourth tells of them, the fifth of nothing. */
static void stands_still(int to, int from, size_t piece)
{
    int flags = fcntl(to, F_GETFL);
    size_t before, five;

    fill(to, piece);
    log_to(to);
    log_info("test", "first");
    log_info("test", "second");
    log_debug("test", "below the level: not one of the lines");
    log_info("test", "third");
    before = drain(from, text, TEXT_SIZE);
    log_info("test", "fourth");
    log_info("test", "fifth");
    log_back();
    assert_true(before > 0);
    assert_int_equal(memchr(text, 't', before) ? 1 : 0, 0);
    five = drain(from, text, TEXT_SIZE);
    assert_true(five > 0 && text[five - 1] == '\n');
    assert_int_equal(count_of(text, "\n"), 3);
    assert_int_equal(count_of(text, " warn  log: " NOTE "3\n"), 1);
    assert_true(strstr(text, NOTE) < strstr(text, "info  test: fourth\n"));
    assert_true(strstr(text, "fourth\n") < strstr(text, "info  test: fifth\n"));
    assert_int_equal(fcntl(to, F_GETFL), flags);
}

static void test_pipe(void **state)
{
    int fd[2];

    (void)state;
    assert_return_code(pipe(fd), 0);
    stands_still(fd[1], fd[0], 4096);
    close(fd[0]);
    close(fd[1]);
}

static void test_socket(void **state)
{
    int fd[2];

    (void)state;
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    stands_still(fd[1], fd[0], 64);
    close(fd[0]);
    close(fd[1]);
}

/* The reader has gone: nothing is written, nobody dies of it, and the count is kept. */
static void test_gone(void **state)
{
    int fd[2];

    (void)state;
    assert_return_code(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    close(fd[0]);
    log_to(fd[1]);
    log_info("test", "to nobody");
    log_back();
    close(fd[1]);
    assert_return_code(pipe(fd), 0);
    log_to(fd[1]);
    log_info("test", "to somebody");
    log_back();
    drain(fd[0], text, TEXT_SIZE);
    assert_int_equal(count_of(text, NOTE "1\n"), 1);
    close(fd[0]);
    close(fd[1]);
}

#define THREADS 8
#define ROUNDS  1000

static pthread_barrier_t barrier;

static void *write_lines(void *arg)
{
    char pad[2000];

    (void)arg;
    memset(pad, 'x', sizeof(pad) - 1);
    pad[sizeof(pad) - 1] = 0;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_barrier_wait(&barrier);
        log_info("test", "%s.", pad);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static uint64_t told(const char *t)
{
    uint64_t sum = 0;

    for (; (t = strstr(t, NOTE)) != NULL; t += strlen(NOTE))
        sum += strtoull(t + strlen(NOTE), NULL, 10);
    return sum;
}

/* Threads write at the same moment to a pipe that has room for one: all get on without a reader,
 * and each line is there or counted. */
static void test_threads(void **state)
{
    pthread_t threads[THREADS];
    uint64_t lines = 0;
    int fd[2];

    (void)state;
    assert_return_code(pipe(fd), 0);
    assert_return_code(fcntl(fd[1], F_SETPIPE_SZ, 4096), 0);
    pthread_barrier_init(&barrier, NULL, THREADS + 1);
    log_to(fd[1]);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_lines, NULL), 0);
    for (int i = 0; i < ROUNDS; i++) {
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        drain(fd[0], text, TEXT_SIZE);
        lines += count_of(text, "x.\n") + told(text);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    log_info("test", "the last");
    log_back();
    drain(fd[0], text, TEXT_SIZE);
    assert_int_equal(lines + told(text), THREADS * ROUNDS);
    pthread_barrier_destroy(&barrier);
    close(fd[0]);
    close(fd[1]);
}

static void test_file(void **state)
{
    char path[] = "/tmp/filmroom-log-XXXXXX";
    int fd = mkstemp(path);

    (void)state;
    assert_return_code(fd, 0);
    unlink(path);
    log_to(fd);
    for (int i = 0; i < 100; i++)
        log_info("test", "line=%d", i);
    log_back();
    lseek(fd, 0, SEEK_SET);
    drain(fd, text, TEXT_SIZE);
    assert_int_equal(count_of(text, "\n"), 100);
    assert_int_equal(count_of(text, "info  test: line="), 100);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file), cmocka_unit_test(test_pipe),    cmocka_unit_test(test_socket),
        cmocka_unit_test(test_gone), cmocka_unit_test(test_threads),
    };
    int failed;

    text = malloc(TEXT_SIZE);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(text);
    return failed;
}

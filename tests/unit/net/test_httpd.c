/* httpd as clients see it: what reaches a handler, what is refused before, and that an answer
 * always gets out. Requests are raw bytes on a socket, so that broken ones can be sent too.
 */
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "lib/net/httpd_impl.h"
#include "lib/rt/env_uring.h"

/* ---- Targets --------------------------------------------------------------------------------- */

static void test_uri(void **state)
{
    struct httpd_uri u;

    (void)state;
    assert_int_equal(httpd_uri_parse("/a/b%20c/d%2Fe/?x=1&y=a+b&x=%C3%A4&z&=q&&", &u), 0);
    assert_int_equal(u.segment_count, 3);
    assert_string_equal(u.segments[1], "b c");
    assert_string_equal(u.segments[2], "d/e");
    assert_string_equal(u.raw_path, "/a/b%20c/d%2Fe/");
    assert_int_equal(u.arg_count, 5);
    assert_string_equal(u.args[1].value, "a b");
    assert_string_equal(u.args[2].name, "x");
    assert_string_equal(u.args[2].value, "\xc3\xa4");
    assert_string_equal(u.args[3].value, "");
    assert_string_equal(u.args[4].name, "");
    httpd_uri_free(&u);

    assert_int_equal(httpd_uri_parse("http://host:8042/p//q?", &u), 0);
    assert_int_equal(u.segment_count, 3);
    assert_string_equal(u.segments[1], "");
    httpd_uri_free(&u);
    assert_int_equal(httpd_uri_parse("/", &u), 0);
    assert_int_equal(u.segment_count, 0);
    httpd_uri_free(&u);
}

static void test_uri_refused(void **state)
{
    static const char *const bad[] = {"",      "*",      "x",      "/%",   "/%4",
                                      "/%4g",  "/a%00b", "/a b",   "/a#b", "/?a=%0",
                                      "/\x01", "/?%=1",  "/?a=%zz"};
    struct httpd_uri u;
    char big[HTTPD_URI_MAX + 8];
    struct strbuf args = STRBUF_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(httpd_uri_parse(bad[i], &u), ERR_INVAL);
        httpd_uri_free(&u);
    }
    memset(big, '/', sizeof(big));
    big[sizeof(big) - 1] = 0;
    assert_int_equal(httpd_uri_parse(big, &u), ERR_TOOBIG);
    httpd_uri_free(&u);
    big[HTTPD_SEGMENTS_MAX + 2] = 0;
    assert_int_equal(httpd_uri_parse(big, &u), ERR_NOENT);
    httpd_uri_free(&u);
    strbuf_adds(&args, "/?");
    for (int i = 0; i <= HTTPD_ARGS_MAX; i++)
        strbuf_adds(&args, "a=1&");
    assert_int_equal(httpd_uri_parse(args.data, &u), ERR_INVAL);
    strbuf_free(&args);
    httpd_uri_free(&u);
}

/* ---- A server that tells what it saw --------------------------------------------------------- */

static atomic_int open_states, open_streams;

static void echo_request(void *ctx, struct httpd_req *r)
{
    (void)ctx;
    atomic_fetch_add(&open_states, 1);
    httpd_set_state(r, mem_strdup("state"));
    if (httpd_segment_count(r) == 1 && strcmp(httpd_segment(r, 0), "early") == 0)
        httpd_reply_text(r, 405, "Early.");
    if (httpd_segment_count(r) == 1 && strcmp(httpd_segment(r, 0), "small") == 0)
        httpd_set_body_max(r, 10);
    if (httpd_segment_count(r) == 1 && strcmp(httpd_segment(r, 0), "large") == 0)
        httpd_set_body_max(r, 100u << 20);
}

static void echo_body(void *ctx, struct httpd_req *r, const void *data, size_t len)
{
    (void)ctx;
    assert_true(len > 0);
    if (memchr(data, '!', len))
        httpd_reply_text(r, 409, "No exclamation marks.");
    *(atomic_ullong *)ctx += len;
}

static int64_t count_read(void *arg, uint64_t off, void *buf, size_t len)
{
    uint64_t total = (uint64_t)(uintptr_t)arg;

    if (off >= total)
        return total == 666 ? ERR_LOST : 0;
    if (len > total - off)
        len = (size_t)(total - off);
    if (len > 1000)
        len = 1000;
    for (size_t i = 0; i < len; i++)
        ((char *)buf)[i] = (char)('a' + (off + i) % 26);
    return (int64_t)len;
}

static void count_close(void *arg)
{
    (void)arg;
    atomic_fetch_sub(&open_streams, 1);
}

static const struct httpd_stream count_stream = {count_read, count_close};

static void reply_count(struct httpd_req *r)
{
    const char *n = httpd_arg(r, "n"), *len = httpd_arg(r, "len");
    uint64_t total = n ? strtoull(n, NULL, 10) : 0;

    atomic_fetch_add(&open_streams, 1);
    httpd_reply_stream(r, 200, "application/octet-stream",
                       len ? strtoull(len, NULL, 10) : HTTPD_UNKNOWN, &count_stream,
                       (void *)(uintptr_t)total);
}

static void echo_end(void *ctx, struct httpd_req *r)
{
    struct strbuf s = STRBUF_INIT;
    size_t len;

    (void)ctx;
    if (httpd_segment_count(r) == 1 && strcmp(httpd_segment(r, 0), "count") == 0) {
        reply_count(r);
        return;
    }
    if (httpd_segment_count(r) == 1 && strcmp(httpd_segment(r, 0), "silent") == 0)
        return;
    if (httpd_segment_count(r) == 1 && strcmp(httpd_segment(r, 0), "slow") == 0)
        usleep(300000);
    strbuf_addf(&s, "%s %s", httpd_method(r), httpd_header(r, "Host") ? "host" : "nohost");
    for (size_t i = 0; i < httpd_segment_count(r); i++)
        strbuf_addf(&s, " [%s]", httpd_segment(r, i));
    for (size_t i = 0; i < httpd_arg_count(r); i++)
        strbuf_addf(&s, " %s=%s", httpd_arg_name(r, i), httpd_arg_value(r, i));
    httpd_body(r, &len);
    strbuf_addf(&s, " body=%zu", len);
    httpd_reply_header(r, "X-Test", "yes");
    len = s.len;
    httpd_reply(r, 200, "text/plain", strbuf_take(&s), len);
}

static void echo_close(void *ctx, struct httpd_req *r)
{
    (void)ctx;
    mem_free(httpd_state(r));
    atomic_fetch_sub(&open_states, 1);
}

static const struct httpd_handler echo = {echo_request, NULL, echo_end, echo_close};
static const struct httpd_handler push = {echo_request, echo_body, echo_end, echo_close};

static struct httpd *serve(const struct httpd_handler *h, void *ctx)
{
    struct httpd_config cfg = {.addr = {"tcp:127.0.0.1:0"}, .server = "test", .body_max = 1000};
    struct httpd *s;

    assert_int_equal(httpd_start(NULL, &cfg, h, ctx, &s), 0);
    assert_int_not_equal(httpd_port(s), 0);
    return s;
}

static void unserve(struct httpd *s)
{
    httpd_stop(s);
    assert_int_equal(atomic_load(&open_states), 0);
    assert_int_equal(atomic_load(&open_streams), 0);
}

/* ---- A client -------------------------------------------------------------------------------- */

static int dial(const struct httpd *s)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)httpd_port(s)),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval tv = {.tv_sec = 10};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

static void put(int fd, const void *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);

        if (k <= 0)
            return;
        p = (const char *)p + k;
        n -= (size_t)k;
    }
}

static void puts_to(int fd, const char *text)
{
    put(fd, text, strlen(text));
}

/* All that comes until the server closes. */
static struct strbuf drain(int fd)
{
    struct strbuf s = STRBUF_INIT;
    char buf[65536];
    ssize_t n;

    while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
        strbuf_add(&s, buf, (size_t)n);
    strbuf_adds(&s, "");
    if (!s.data)
        strbuf_addc(&s, 0);
    close(fd);
    return s;
}

static struct strbuf ask(const struct httpd *s, const char *request)
{
    int fd = dial(s);

    put(fd, request, strlen(request));
    return drain(fd);
}

static void expect_status(const struct httpd *s, const char *request, int status)
{
    struct strbuf a = ask(s, request);
    char want[16];

    snprintf(want, sizeof(want), "HTTP/1.1 %d", status);
    if (strncmp(a.data, want, 12) != 0)
        fail_msg("wanted %s, got: %.200s for: %.200s", want, a.data, request);
    strbuf_free(&a);
}

/* One path segment more than are allowed. */
#define TEN     "1/2/3/4/5/6/7/8/9/0/"
#define SLASHES TEN TEN TEN TEN TEN TEN TEN TEN "1"
#define CLOSE   "Host: x\r\nConnection: close\r\n\r\n"

static void test_echo(void **state)
{
    struct httpd *s = serve(&echo, NULL);
    struct strbuf a = ask(s, "GET /a/b%2fc?q=1&q=2 HTTP/1.1\r\n" CLOSE);

    (void)state;
    assert_non_null(strstr(a.data, "\r\n\r\nGET host [a] [b/c] q=1 q=2 body=0"));
    assert_non_null(strstr(a.data, "X-Test: yes\r\n"));
    assert_non_null(strstr(a.data, "Server: test\r\n"));
    assert_non_null(strstr(a.data, "Content-Length: 33\r\n"));
    strbuf_free(&a);
    a = ask(s, "HEAD /a HTTP/1.1\r\n" CLOSE);
    assert_non_null(strstr(a.data, "Content-Length: 20\r\n"));
    assert_null(strstr(a.data, "[a]"));
    strbuf_free(&a);
    a = ask(s, "POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
               "PUT /q HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
               "Host: x\r\nConnection: close\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
    assert_non_null(strstr(a.data, "POST host [p] body=5"));
    assert_non_null(strstr(a.data, "PUT host [q] body=7"));
    strbuf_free(&a);
    unserve(s);
}

static void test_refused(void **state)
{
    struct httpd *s = serve(&echo, NULL);
    struct strbuf big = STRBUF_INIT;

    (void)state;
    expect_status(s, "GET /%zz HTTP/1.1\r\n" CLOSE, 400);
    expect_status(s, "GET /a%00 HTTP/1.1\r\n" CLOSE, 400);
    expect_status(s, "GET /?%c HTTP/1.1\r\n" CLOSE, 400);
    expect_status(s, "GET /" SLASHES " HTTP/1.1\r\n" CLOSE, 404);
    expect_status(s, "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n" CLOSE,
                  413);
    expect_status(s, "POST /small HTTP/1.1\r\nContent-Length: 11\r\n" CLOSE "12345678901", 413);
    expect_status(s,
                  "POST /small HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" CLOSE
                  "b\r\n12345678901\r\n0\r\n\r\n",
                  413);
    expect_status(s, "POST /silent HTTP/1.1\r\n" CLOSE, 200 + 300);
    strbuf_adds(&big, "GET /");
    for (int i = 0; i < HTTPD_URI_MAX; i++)
        strbuf_addc(&big, 'a');
    strbuf_adds(&big, " HTTP/1.1\r\n" CLOSE);
    expect_status(s, big.data, 414);
    strbuf_reset(&big);
    strbuf_adds(&big, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < HTTPD_HEADERS_MAX / 10; i++)
        strbuf_addf(&big, "X-%05d: y\r\n", i);
    strbuf_adds(&big, CLOSE);
    expect_status(s, big.data, 431);
    strbuf_free(&big);
    unserve(s);
}

/* Whatever is thrown at it, the next client is served. */
static void test_garbage(void **state)
{
    static const char *const junk[] = {
        "\x16\x03\x01\x02\x00\x01",
        "GET\r\n\r\n",
        "\r\n\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        ("POST / HTTP/1.1\r\nHost: x\r\n"
         "Transfer-Encoding: chunked\r\n\r\nzzz\r\n"),
        "GET / HTTP/1.1\r\n: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x",
        "POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nab",
    };
    struct httpd *s = serve(&echo, NULL);

    (void)state;
    for (size_t i = 0; i < sizeof(junk) / sizeof(junk[0]); i++) {
        int fd = dial(s);
        struct strbuf a;

        put(fd, junk[i], strlen(junk[i]));
        shutdown(fd, SHUT_WR);
        a = drain(fd);
        assert_true(strncmp(a.data, "HTTP/1.1 2", 10) != 0 || strncmp(junk[i], "GET", 3) == 0);
        strbuf_free(&a);
        expect_status(s, "GET / HTTP/1.1\r\n" CLOSE, 200);
    }
    unserve(s);
}

/* An answer made while the body is on its way reaches a client that first sends it all. */
static void test_answer_before_end(void **state)
{
    atomic_ullong seen = 0;
    struct httpd *s = serve(&push, &seen);
    size_t size = 4u << 20;
    char *body = mem_alloc(size), head[200];
    struct strbuf a;
    int fd;

    (void)state;
    memset(body, 'x', size);
    for (int k = 0; k < 2; k++) {
        fd = dial(s);
        snprintf(head, sizeof(head), "POST /%s HTTP/1.1\r\nContent-Length: %zu\r\n" CLOSE,
                 k ? "early" : "large", size);
        body[1000] = k ? 'x' : '!';
        put(fd, head, strlen(head));
        put(fd, body, size);
        a = drain(fd);
        assert_memory_equal(a.data, k ? "HTTP/1.1 405" : "HTTP/1.1 409", 12);
        strbuf_free(&a);
    }
    assert_true(atomic_load(&seen) < size); /* nothing reached the handler after its answer */
    /* With Expect, the refusal comes at once and no body is asked for. */
    a = ask(s, "POST /early HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n" CLOSE);
    assert_memory_equal(a.data, "HTTP/1.1 405", 12);
    strbuf_free(&a);
    mem_free(body);
    unserve(s);
}

static void test_continue(void **state)
{
    atomic_ullong seen = 0;
    struct httpd *s = serve(&push, &seen);
    int fd = dial(s);
    char buf[200] = "";
    struct strbuf a;

    (void)state;
    puts_to(fd, "POST /large HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n" CLOSE);
    assert_true(recv(fd, buf, sizeof(buf) - 1, 0) > 0);
    assert_memory_equal(buf, "HTTP/1.1 100", 12);
    put(fd, "abc", 3);
    a = drain(fd);
    assert_memory_equal(a.data, "HTTP/1.1 200", 12);
    assert_int_equal(atomic_load(&seen), 3);
    strbuf_free(&a);
    unserve(s);
}

static const char *body_of(const struct strbuf *a)
{
    const char *p = strstr(a->data, "\r\n\r\n");

    assert_non_null(p);
    return p + 4;
}

static void test_streams(void **state)
{
    struct httpd *s = serve(&echo, NULL);
    struct strbuf a = ask(s, "GET /count?n=3000000&len=3000000 HTTP/1.1\r\n" CLOSE);
    size_t off = (size_t)(body_of(&a) - a.data);

    (void)state;
    assert_non_null(strstr(a.data, "Content-Length: 3000000\r\n"));
    assert_int_equal(a.len - off, 3000000);
    for (size_t i = 0; i < 3000000; i++)
        if (a.data[off + i] != (char)('a' + i % 26))
            fail_msg("byte %zu differs", i);
    strbuf_free(&a);
    a = ask(s, "GET /count?n=100000 HTTP/1.1\r\n" CLOSE);
    assert_non_null(strstr(a.data, "chunked"));
    assert_memory_equal(a.data + a.len - 5, "0\r\n\r\n", 5);
    strbuf_free(&a);
    /* An error must not look like an end: no last chunk. */
    a = ask(s, "GET /count?n=666 HTTP/1.1\r\n" CLOSE);
    assert_non_null(strstr(a.data, "200 OK"));
    assert_memory_not_equal(a.data + a.len - 5, "0\r\n\r\n", 5);
    strbuf_free(&a);
    a = ask(s, "GET /count?n=10&len=20 HTTP/1.1\r\n" CLOSE);
    assert_true(strlen(body_of(&a)) < 20);
    strbuf_free(&a);
    a = ask(s, "HEAD /count?n=10&len=10 HTTP/1.1\r\n" CLOSE);
    assert_non_null(strstr(a.data, "Content-Length: 10\r\n"));
    assert_int_equal(strlen(body_of(&a)), 0);
    strbuf_free(&a);
    a = ask(s, "GET /count?n=0&len=0 HTTP/1.1\r\n" CLOSE);
    assert_non_null(strstr(a.data, "Content-Length: 0\r\n"));
    strbuf_free(&a);
    unserve(s);
}

/* A client that goes away in the middle of either direction leaves nothing behind. */
static void test_gone(void **state)
{
    struct httpd *s = serve(&echo, NULL);
    int fd;

    (void)state;
    for (int i = 0; i < 20; i++) {
        fd = dial(s);
        if (i % 2)
            puts_to(fd, "GET /count?n=90000000&len=90000000 HTTP/1.1\r\n" CLOSE);
        else
            puts_to(fd, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab");
        usleep(1000);
        close(fd);
    }
    expect_status(s, "GET / HTTP/1.1\r\n" CLOSE, 200);
    unserve(s);
}

/* Past the cap, requests are refused in words; when a connection ends, the next is served. */
static void test_connection_cap(void **state)
{
    struct httpd_config cfg = {.addr = {"tcp:127.0.0.1:0"}, .max_connections = 4};
    struct httpd *s;
    struct strbuf a;
    int idle[4];

    (void)state;
    assert_int_equal(httpd_start(NULL, &cfg, &echo, NULL, &s), 0);
    for (int i = 0; i < 4; i++)
        idle[i] = dial(s);
    for (int i = 0; i < 50; i++) {
        a = ask(s, "GET /late HTTP/1.1\r\nHost: x\r\n\r\n"); /* closed after the answer */
        assert_memory_equal(a.data, "HTTP/1.1 503", 12);
        assert_non_null(strstr(a.data, "Retry-After: "));
        strbuf_free(&a);
    }
    close(idle[0]);
    usleep(100000);
    expect_status(s, "GET /late HTTP/1.1\r\n" CLOSE, 200);
    for (int i = 1; i < 4; i++)
        close(idle[i]);
    unserve(s);
}

static void test_unix(void **state)
{
    struct httpd_config cfg = {0};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct httpd *s, *s2;
    struct strbuf answer;
    struct stat st;
    char dir[] = "/tmp/httpd-XXXXXX";
    int fd;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(a.sun_path, 90, "%s/s", dir);
    snprintf(cfg.addr.text, sizeof(cfg.addr.text), "unix:%.90s", a.sun_path);
    /* A stale file is replaced, a live one is not. */
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    close(fd);
    assert_int_equal(httpd_start(NULL, &cfg, &echo, NULL, &s), 0);
    assert_int_equal(httpd_start(NULL, &cfg, &echo, NULL, &s2), ERR_ADDR);
    assert_int_equal(stat(a.sun_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    puts_to(fd, "GET /u HTTP/1.1\r\n" CLOSE);
    answer = drain(fd);
    assert_non_null(strstr(answer.data, "[u]"));
    strbuf_free(&answer);
    unserve(s);
    assert_int_equal(stat(a.sun_path, &st), -1);
    assert_int_equal(rmdir(dir), 0);
    snprintf(cfg.addr.text, sizeof(cfg.addr.text), "tcp:localhost:1");
    assert_int_equal(httpd_start(NULL, &cfg, &echo, NULL, &s), ERR_CONFIG);
}

/* ---- Stopping, on a real loop ---------------------------------------------------------------- */

static struct env *loop;
static struct httpd *loop_server;
static atomic_bool asked, answered;

static void call_fn(void *arg)
{
    env_sleep(loop, 200 * ENV_NS_PER_MS);
    *(int *)arg = 42;
}

static void call_end(void *ctx, struct httpd_req *r)
{
    int n = 0;

    (void)ctx;
    atomic_store(&asked, true);
    assert_int_equal(env_call(loop, "test-call", call_fn, &n), 0);
    httpd_reply_text(r, 200, "%d", n);
}

static void nothing(void *ctx, struct httpd_req *r)
{
    (void)ctx;
    (void)r;
}

static void *client(void *arg)
{
    struct strbuf a = ask(loop_server, "GET / HTTP/1.1\r\n" CLOSE);

    (void)arg;
    if (strstr(a.data, "\r\n\r\n42\n"))
        atomic_store(&answered, true);
    strbuf_free(&a);
    return NULL;
}

static void loop_main(void *arg)
{
    static const struct httpd_handler h = {nothing, NULL, call_end, NULL};
    struct httpd_config cfg = {.addr = {"tcp:127.0.0.1:0"}};
    pthread_t t;

    (void)arg;
    assert_int_equal(httpd_start(loop, &cfg, &h, NULL, &loop_server), 0);
    pthread_create(&t, NULL, client, NULL);
    while (!atomic_load(&asked))
        env_sleep(loop, ENV_NS_PER_MS);
    httpd_stop(loop_server); /* the handler is in env_call now: it must finish and answer */
    pthread_join(t, NULL);
}

static void test_stop_waits(void **state)
{
    struct env_uring_options cfg = {0};

    (void)state;
    assert_int_equal(env_uring_new(&cfg, &loop), 0);
    env_run(loop, loop_main, NULL);
    env_free(loop);
    assert_true(atomic_load(&answered));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uri),
        cmocka_unit_test(test_uri_refused),
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_answer_before_end),
        cmocka_unit_test(test_continue),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_gone),
        cmocka_unit_test(test_unix),
        cmocka_unit_test(test_connection_cap),
        cmocka_unit_test(test_stop_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

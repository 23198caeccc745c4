/* lib/net stream: reading across receives, gathered sending, deadlines, endings. In the simulator,
 * with a socket in between that counts calls and can be told to give little or nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/net/stream.h"
#include "lib/rt/env_ops.h"
#include "lib/rt/env_sim.h"

#define S ENV_NS_PER_S

/* ---- A socket that watches another ---------------------------------------------------------- */

struct spy {
    struct env_sock base;
    struct env_sock *under;
    unsigned sends, recvs;
    size_t recv_max, longest_recv; /* recv_max: gives at most that much at once; 0: no limit */
    size_t largest_send;
};

static struct spy *spy_of(struct env_sock *s)
{
    return (struct spy *)(void *)s;
}

static int64_t spy_recv(struct env_sock *s, void *buf, size_t len)
{
    struct spy *spy = spy_of(s);

    spy->recvs++;
    spy->longest_recv = len > spy->longest_recv ? len : spy->longest_recv;
    if (spy->recv_max && len > spy->recv_max)
        len = spy->recv_max;
    return env_recv(spy->under, buf, len);
}

static int spy_send(struct env_sock *s, struct iovec *iov, unsigned n)
{
    struct spy *spy = spy_of(s);
    size_t bytes = 0;

    for (unsigned i = 0; i < n; i++)
        bytes += iov[i].iov_len;
    spy->largest_send = bytes > spy->largest_send ? bytes : spy->largest_send;
    spy->sends++;
    return env_send(spy->under, iov, n);
}

static void spy_shutdown(struct env_sock *s)
{
    env_sock_shutdown(spy_of(s)->under);
}

static void spy_close(struct env_sock *s)
{
    env_sock_close(spy_of(s)->under);
}

static const struct env_sock_ops spy_ops = {
    .recv = spy_recv, .send = spy_send, .shutdown = spy_shutdown, .close = spy_close};

/* ---- The world ------------------------------------------------------------------------------ */

struct world {
    struct env *env;
    struct spy spy;       /* under the stream */
    struct env_sock *far; /* the other end */
    struct stream *stream;
    struct stream_options options;
    void (*test)(struct world *w);
};

static void world_main(void *arg)
{
    static const struct env_addr addr = {"unix:/stream"};
    struct world *w = arg;
    struct env_listener *l;

    CHECK_OK(env_listen(w->env, &addr, 4, &l));
    CHECK_OK(env_connect(w->env, &addr, &w->far));
    CHECK_OK(env_accept(l, &w->spy.under));
    env_listener_close(l);
    w->spy.base = (struct env_sock){&spy_ops, w->env};
    w->stream = stream_new(w->env, &w->spy.base, &w->options);
    w->test(w);
    stream_free(w->stream);
    env_sock_close(w->far);
}

static void run_world(struct world *w, void (*test)(struct world *w))
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct sim *sim = sim_new(seed);
        struct sim_faults calm = {.net_min_ns = 1000, .net_max_ns = 50000};

        sim_set_faults(sim, &calm);
        memset(&w->spy, 0, sizeof(w->spy));
        w->test = test;
        w->env = sim_process(sim, "stream", world_main, w);
        assert_true(sim_run(sim, 3600 * S));
        assert_true(sim_process_ended(w->env));
        sim_kill(w->env, false);
        sim_free(sim);
    }
}

#define WORLD_TEST(name, ...)                        \
    static void name##_in(struct world *w);          \
    static void name(void **state)                   \
    {                                                \
        struct world w = {.options = {__VA_ARGS__}}; \
        (void)state;                                 \
        run_world(&w, name##_in);                    \
    }                                                \
    static void name##_in(struct world *w)

static int far_send(struct world *w, const void *p, size_t n)
{
    struct iovec iov = {(void *)(uintptr_t)p, n};

    return env_send(w->far, &iov, 1);
}

static void far_hear(struct world *w, const char *text)
{
    char got[256];
    size_t n = strlen(text), at = 0;

    while (at < n) {
        int64_t r = env_recv(w->far, got + at, n - at);

        assert_true(r > 0);
        at += (size_t)r;
    }
    assert_memory_equal(got, text, n);
}

static uint8_t *pattern(size_t n)
{
    uint8_t *p = mem_alloc(n);

    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(i * 7 + i / 251);
    return p;
}

/* ---- Reading -------------------------------------------------------------------------------- */

/* Messages of all lengths in a buffer hardly larger than the longest. */
WORLD_TEST(test_fill, .buffer = 300)
{
    uint8_t *sent = pattern(32640);
    const uint8_t *at;
    size_t n, off = 0;

    CHECK_OK(far_send(w, sent, 32640));
    for (size_t len = 0; len < 256; len++) {
        assert_int_equal(stream_fill(w->stream, len), 0);
        at = stream_data(w->stream, &n);
        assert_true(n >= len && n <= 300);
        assert_memory_equal(at, sent + off, len);
        stream_consume(w->stream, len);
        off += len;
    }
    assert_int_equal(off, 32640);
    stream_data(w->stream, &n);
    assert_int_equal(n, 0);
    mem_free(sent);
}

/* Bodies: from the buffer, small rests through it, large ones past it. */
WORLD_TEST(test_read, .buffer = 1000)
{
    static const size_t lengths[] = {1, 0, 10, 499, 500, 501, 999, 1000, 1001, 5000, 100000, 3};
    uint8_t *sent = pattern(110000), *got = mem_alloc(100000);
    size_t off = 0;

    w->spy.recv_max = 700;
    CHECK_OK(far_send(w, sent, 110000));
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        assert_int_equal(stream_read(w->stream, got, lengths[i]), 0);
        assert_memory_equal(got, sent + off, lengths[i]);
        off += lengths[i];
    }
    assert_true(w->spy.longest_recv > 90000); /* not by way of the buffer */
    assert_int_equal(stream_fill(w->stream, 1), 0);
    assert_int_equal(*stream_data(w->stream, &off), sent[109514]);
    mem_free(sent);
    mem_free(got);
}

WORLD_TEST(test_end, .buffer = 100)
{
    uint8_t buf[8];

    CHECK_OK(far_send(w, "abcdef", 6));
    assert_int_equal(stream_read(w->stream, buf, 4), 0);
    env_sock_shutdown(w->far);
    assert_int_equal(stream_fill(w->stream, 3), ERR_TRUNCATED);
    assert_int_equal(stream_read(w->stream, buf, 2), 0);
    assert_memory_equal(buf, "ef", 2);
    assert_int_equal(stream_fill(w->stream, 1), ERR_CLOSED);
    assert_int_equal(stream_read(w->stream, buf, 1), ERR_TRUNCATED);
}

WORLD_TEST(test_deadline, .buffer = 100)
{
    uint64_t start = env_now(w->env);

    stream_set_deadline(w->stream, start + 5 * S);
    CHECK_OK(far_send(w, "abc", 3));
    assert_int_equal(stream_fill(w->stream, 3), 0);
    assert_int_equal(stream_fill(w->stream, 4), ERR_TIMEDOUT);
    assert_true(env_now(w->env) >= start + 5 * S && env_now(w->env) < start + 6 * S);
}

/* A stall counts within a body only. */
WORLD_TEST(test_stall, .buffer = 100, .stall_ns = 5 * S)
{
    uint8_t buf[8];
    uint64_t start = env_now(w->env);

    CHECK_OK(far_send(w, "abc", 3));
    assert_int_equal(stream_read(w->stream, buf, 4), ERR_TIMEDOUT);
    assert_true(env_now(w->env) >= start + 5 * S && env_now(w->env) < start + 6 * S);
}

static void late_sender(void *arg)
{
    struct world *w = arg;

    env_sleep(w->env, 20 * S);
    for (unsigned i = 0; i < 4; i++) {
        far_send(w, "x", 1);
        env_sleep(w->env, 3 * S);
    }
}

WORLD_TEST(test_slow_is_not_stalled, .buffer = 100, .stall_ns = 5 * S)
{
    uint8_t buf[8];

    fiber_spawn(w->env, "late", late_sender, w);
    assert_int_equal(stream_fill(w->stream, 1), 0);
    assert_int_equal(stream_read(w->stream, buf, 4), 0);
    env_sleep(w->env, 10 * S);
}

/* ---- Writing -------------------------------------------------------------------------------- */

struct piece {
    struct stream_out out;
    struct iovec iov[3];
    unsigned *order, seen; /* when it was done, counted from 1 */
    int err;
};

static void piece_done(struct stream_out *o, int err)
{
    struct piece *p = LIST_ENTRY(o, struct piece, out);

    p->seen = ++*p->order;
    p->err = err;
}

static void queue_piece(struct world *w, struct piece *p, unsigned *order, const char *a,
                        const char *b)
{
    memset(p, 0, sizeof(*p));
    p->order = order;
    p->iov[0] = (struct iovec){(void *)(uintptr_t)a, strlen(a)};
    p->iov[1] = (struct iovec){(void *)(uintptr_t)b, strlen(b)};
    p->out = (struct stream_out){.iov = p->iov, .iov_count = 2, .done = piece_done};
    stream_queue(w->stream, &p->out);
}

/* What is queued together leaves together; parts may be empty. */
WORLD_TEST(test_gather, .buffer = 100)
{
    struct piece p[4];
    unsigned order = 0;

    queue_piece(w, &p[0], &order, "one ", "two ");
    queue_piece(w, &p[1], &order, "", "three ");
    queue_piece(w, &p[2], &order, "", "");
    queue_piece(w, &p[3], &order, "four", "");
    assert_int_equal(stream_drain(w->stream), 0);
    for (unsigned i = 0; i < 4; i++)
        assert_true(p[i].seen == i + 1 && p[i].err == 0);
    assert_int_equal(w->spy.sends, 1);
    far_hear(w, "one two three four");
    assert_int_equal(stream_write(w->stream, "five", 4), 0);
    far_hear(w, "five");
}

static void far_reader(void *arg)
{
    struct world *w = arg;
    uint8_t *want = pattern(3500000), *got = mem_alloc(3500000);

    for (size_t at = 0; at < 3500000;) {
        int64_t n = env_recv(w->far, got + at, 3500000 - at);

        CHECK(n > 0);
        at += (size_t)n;
    }
    assert_memory_equal(got, want, 3500000);
    mem_free(want);
    mem_free(got);
}

/* Large parts go in pieces of a MiB, and their borders do not matter. */
WORLD_TEST(test_large, .buffer = 100)
{
    uint8_t *data = pattern(3500000);
    struct piece p = {0};
    unsigned order = 0;

    fiber_spawn(w->env, "far reader", far_reader, w);
    p.order = &order;
    p.iov[0] = (struct iovec){data, 10};
    p.iov[1] = (struct iovec){data + 10, 3400000};
    p.iov[2] = (struct iovec){data + 3400010, 99990};
    p.out = (struct stream_out){.iov = p.iov, .iov_count = 3, .done = piece_done};
    stream_queue(w->stream, &p.out);
    assert_int_equal(stream_drain(w->stream), 0);
    assert_int_equal(p.seen, 1);
    assert_int_equal(w->spy.largest_send, 1 << 20);
    assert_int_equal(w->spy.sends, 4);
    env_sleep(w->env, S);
    mem_free(data);
}

/* More parts than one send takes. */
WORLD_TEST(test_many_parts, .buffer = 100)
{
    struct piece *p = mem_calloc(1000, sizeof(*p));
    unsigned order = 0;
    char got[2000];

    for (unsigned i = 0; i < 1000; i++)
        queue_piece(w, &p[i], &order, "a", "b");
    assert_int_equal(stream_drain(w->stream), 0);
    assert_int_equal(order, 1000);
    assert_int_equal(w->spy.sends, 8);
    for (size_t at = 0; at < 2000;)
        at += (size_t)env_recv(w->far, got + at, 2000 - at);
    for (unsigned i = 0; i < 2000; i++)
        assert_int_equal(got[i], i % 2 ? 'b' : 'a');
    mem_free(p);
}

/* A peer that takes nothing: the stalled send fails, what is behind it too, the reader learns. */
WORLD_TEST(test_send_stall, .buffer = 100, .stall_ns = 5 * S)
{
    uint8_t *data = pattern(2 << 20);
    struct piece p = {0}, q;
    unsigned order = 0;
    uint64_t start = env_now(w->env);

    p.order = &order;
    p.iov[0] = (struct iovec){data, 2 << 20};
    p.out = (struct stream_out){.iov = p.iov, .iov_count = 1, .done = piece_done};
    stream_queue(w->stream, &p.out);
    queue_piece(w, &q, &order, "never", "");
    assert_int_equal(stream_drain(w->stream), ERR_TIMEDOUT);
    assert_int_equal(p.err, ERR_TIMEDOUT);
    assert_int_equal(q.err, ERR_TIMEDOUT);
    assert_true(env_now(w->env) < start + 6 * S);
    assert_int_equal(stream_fill(w->stream, 1), ERR_TIMEDOUT);
    assert_true(stream_write(w->stream, "x", 1) < 0);
    mem_free(data);
}

/* Freed with things queued: each is told. */
WORLD_TEST(test_free_queued, .buffer = 100)
{
    struct piece p[2];
    unsigned order = 0;

    queue_piece(w, &p[0], &order, "a", "b");
    queue_piece(w, &p[1], &order, "c", "d");
    stream_free(w->stream);
    w->stream = NULL;
    assert_int_equal(order, 2);
    assert_int_equal(p[1].err, ERR_CLOSED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fill),        cmocka_unit_test(test_read),
        cmocka_unit_test(test_end),         cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_stall),       cmocka_unit_test(test_slow_is_not_stalled),
        cmocka_unit_test(test_gather),      cmocka_unit_test(test_large),
        cmocka_unit_test(test_many_parts),  cmocka_unit_test(test_send_stall),
        cmocka_unit_test(test_free_queued),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

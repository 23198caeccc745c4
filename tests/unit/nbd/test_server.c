/* proto/nbd server in the simulator: concurrency, limits, timeouts, the stop, broken connections.
 *
 * Server and clients are one simulated process, so that its memory must be empty at the end. What
 * takes seconds of patience here takes none of real time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/rt/env_sim.h"
#include "lib/rt/sync.h"
#include "proto/nbd/nbd_server.h"
#include "tests/unit/nbd/mem_block.h"
#include "tests/unit/nbd/nbd_words.h"

#define HELLO   "d3 "
#define GO      "OPT d7 d10 d4 'disk' w0 "
#define SIZE    (128u << 20)
#define HELLO_R "'NBDMAGIC' 'IHAVEOPT' w3 "
#define GO_R    "REP d7 d3 d12 w0 q134217728 w0x96d REP d7 d1 d0 "
#define MS      ENV_NS_PER_MS

/* ---- The world of a test -------------------------------------------------------------------- */

struct world {
    struct sim *sim;
    struct env *env;
    struct mem_block *store;
    struct nbd_server *server;
    struct nbd_server_options options;
    void (*test)(struct world *w);
    uint64_t delay[256]; /* by operation: how long the store takes, ns */
    int error;           /* what it says then */
    unsigned running, most_running;
};

static const struct env_addr door = {"unix:/nbd.sock"};

static int before_io(void *arg, char op, uint64_t off, uint64_t len)
{
    struct world *w = arg;
    uint64_t ns = w->delay[(unsigned char)op];

    (void)len;
    if (op == 'r' && off == 0) /* the slow block */
        ns = w->delay['R'];
    w->running++;
    if (w->running > w->most_running)
        w->most_running = w->running;
    if (ns)
        env_sleep(w->env, ns);
    w->running--;
    return w->error;
}

static void world_main(void *arg)
{
    struct world *w = arg;
    struct mem_block_hooks hooks = {before_io, w};

    w->store = mem_block_new();
    mem_block_set_hooks(w->store, &hooks);
    CHECK_OK(block_create(mem_block_store(w->store), "disk", SIZE, BLOCK_ON_FLUSH));
    w->options.env = w->env;
    w->options.store = mem_block_store(w->store);
    w->options.listen = &door;
    w->options.listen_count = 1;
    CHECK_OK(nbd_server_start(&w->options, &w->server));
    w->test(w);
    nbd_server_stop(w->server);
    mem_block_free(w->store);
}

static void run_world(struct world *w, uint64_t seed, void (*test)(struct world *w))
{
    struct sim_faults calm = {.net_min_ns = 1000, .net_max_ns = 50000};

    w->sim = sim_new(seed);
    sim_set_faults(w->sim, &calm);
    w->test = test;
    w->env = sim_process(w->sim, "nbd", world_main, w);
    assert_true(sim_run(w->sim, 3600 * ENV_NS_PER_S));
    assert_true(sim_process_ended(w->env));
    sim_kill(w->env, false);
    sim_free(w->sim);
}

#define WORLD_TEST(name)                    \
    static void name##_in(struct world *w); \
    static void name(void **state)          \
    {                                       \
        struct world w = {0};               \
        (void)state;                        \
        run_world(&w, 1, name##_in);        \
    }                                       \
    static void name##_in(struct world *w)

/* ---- A client ------------------------------------------------------------------------------- */

static struct env_sock *dial(struct world *w)
{
    struct env_sock *s;

    CHECK_OK(env_connect(w->env, &door, &s));
    return s;
}

static int say_bytes(struct env_sock *s, void *bytes, size_t n)
{
    struct iovec iov = {bytes, n};

    return env_send(s, &iov, 1);
}

static void say(struct env_sock *s, const char *words)
{
    struct strbuf b = STRBUF_INIT;

    nbd_words_build(&b, words);
    CHECK_OK(say_bytes(s, b.data, b.len));
    strbuf_free(&b);
}

static int hear_bytes(struct env_sock *s, void *to, size_t n)
{
    uint8_t *p = to;

    while (n > 0) {
        int64_t got = env_recv(s, p, n);

        if (got <= 0)
            return got < 0 ? (int)got : ERR_CLOSED;
        p += got;
        n -= (size_t)got;
    }
    return 0;
}

/* Expects exactly these words (no ERR among them) next. */
static void hear(struct env_sock *s, const char *words)
{
    struct strbuf want = STRBUF_INIT;
    uint8_t *got;

    nbd_words_build(&want, words);
    got = mem_alloc(want.len);
    CHECK_OK(hear_bytes(s, got, want.len));
    assert_memory_equal(got, want.data, want.len);
    mem_free(got);
    strbuf_free(&want);
}

static void hear_end(struct env_sock *s)
{
    uint8_t byte;

    assert_true(hear_bytes(s, &byte, 1) < 0);
}

static struct env_sock *dial_in(struct world *w)
{
    struct env_sock *s = dial(w);

    say(s, HELLO GO);
    hear(s, HELLO_R GO_R);
    return s;
}

static void bye(struct env_sock *s)
{
    say(s, "REQ w0 w2 q0 q0 d0");
    hear_end(s);
    env_sock_close(s);
}

static void wait_gone(struct world *w)
{
    struct nbd_server_stats stats;

    do {
        env_sleep(w->env, MS);
        nbd_server_get_stats(w->server, &stats);
    } while (stats.connections);
}

/* ---- Tests ---------------------------------------------------------------------------------- */

WORLD_TEST(test_dialogue)
{
    struct env_sock *s = dial_in(w);
    struct nbd_server_stats stats;

    say(s, "REQ w0 w1 q1 q4096 d5 'hello' REQ w0 w0 q2 q4096 d6 REQ w0 w3 q3 q0 d0 REQ w0 w99 q4 "
           "q0 d0");
    /* Errors are made at once, all else by workers: any order is right, this one is ours. */
    hear(s, "BAD d22 q4 OK q1 OK q2 'hello' z:1 OK q3");
    assert_int_equal(block_remove(w->options.store, "disk"), ERR_BUSY);
    bye(s);
    wait_gone(w);
    nbd_server_get_stats(w->server, &stats);
    assert_int_equal(stats.requests, 4);
    assert_int_equal(stats.failed, 1);
    assert_int_equal(stats.written_bytes, 5);
    assert_int_equal(stats.read_bytes, 6);
    assert_int_equal(stats.protocol_errors, 0);
    assert_int_equal(block_remove(w->options.store, "disk"), 0);
}

/* A slow request does not hold up those behind it. */
WORLD_TEST(test_out_of_order)
{
    struct env_sock *s = dial_in(w);

    w->delay['R'] = 1000 * MS;
    say(s, "REQ w0 w0 q1 q0 d4 REQ w0 w0 q2 q4096 d4");
    hear(s, "OK q2 z:4");
    hear(s, "OK q1 z:4");
    bye(s);
}

/* A disconnect is carried out after what was asked before it. */
WORLD_TEST(test_disconnect_waits)
{
    struct env_sock *s = dial_in(w);

    w->delay['w'] = 1000 * MS;
    say(s, "REQ w0 w1 q1 q0 d4 'data' REQ w0 w2 q2 q0 d0");
    hear(s, "OK q1");
    hear_end(s);
    env_sock_close(s);
}

/* A client that vanishes with requests under way leaves nothing open. */
WORLD_TEST(test_vanish)
{
    struct env_sock *s = dial_in(w);

    w->delay['w'] = w->delay['R'] = 1000 * MS;
    say(s, "REQ w0 w1 q1 q0 d4 'data' REQ w0 w0 q2 q0 d4 REQ w0 w1 q3 q0 d4 'da'");
    env_sleep(w->env, 10 * MS);
    env_sock_close(s);
    assert_int_equal(block_remove(w->options.store, "disk"), ERR_BUSY);
    wait_gone(w);
    assert_int_equal(block_remove(w->options.store, "disk"), 0);
}

WORLD_TEST(test_requests_are_limited)
{
    struct env_sock *s = dial_in(w);
    struct strbuf b = STRBUF_INIT;
    uint8_t reply[16];

    w->delay['f'] = 10 * MS;
    for (unsigned i = 0; i < 500; i++)
        nbd_words_build(&b, "REQ w0 w3 q7 q0 d0");
    CHECK_OK(say_bytes(s, b.data, b.len));
    for (unsigned i = 0; i < 500; i++)
        CHECK_OK(hear_bytes(s, reply, sizeof(reply)));
    assert_int_equal(w->most_running, 128);
    strbuf_free(&b);
    bye(s);
}

static void limit_memory(struct world *w)
{
    w->options.max_bytes = w->options.max_connection_bytes = 32u << 20;
}

/* Large reads in flight are bounded by the budget, and all are answered. */
static void test_bytes_in(struct world *w)
{
    struct env_sock *s = dial_in(w);
    uint8_t *data = mem_alloc((8u << 20) + 16);
    size_t before = sim_process_memory(w->env);

    w->delay['r'] = w->delay['R'] = 10 * MS;
    for (unsigned i = 0; i < 12; i++)
        say(s, "REQ w0 w0 q1 q0 d8388608");
    for (unsigned i = 0; i < 12; i++) {
        CHECK_OK(hear_bytes(s, data, (8u << 20) + 16));
        assert_true(sim_process_memory(w->env) < before + (34u << 20));
    }
    assert_true(w->most_running >= 2 && w->most_running <= 4);
    mem_free(data);
    bye(s);
}

static void test_bytes(void **state)
{
    struct world w = {0};

    (void)state;
    limit_memory(&w);
    run_world(&w, 1, test_bytes_in);
}

/* One client stops in the middle of large writes and takes all of the common budget; another one's
 * small requests go on. The first is cut off after a while, and its budget comes back. */
static void test_stalled_writer_in(struct world *w)
{
    struct env_sock *bad = dial_in(w), *worse = dial_in(w), *good = dial_in(w);
    uint64_t start = env_now(w->env);

    say(bad,
        "REQ w0 w1 q1 q0 d33554432 'not all of it'"); /* all but 256 KiB of the common budget */
    env_sleep(w->env, 10 * MS);
    say(worse, "REQ w0 w1 q1 q0 d1048576 'nor of it'"); /* waits for more than is left */
    env_sleep(w->env, 10 * MS);
    say(good, "REQ w0 w1 q1 q0 d4 'data' REQ w0 w0 q2 q65536 d131072");
    hear(good, "OK q1 OK q2 z:131072");
    for (unsigned i = 0; i < 200; i++) { /* its reserve comes back each time */
        say(good, "REQ w0 w0 q4 q65536 d4096");
        hear(good, "OK q4 z:4096");
    }
    assert_true(env_now(w->env) < start + 1000 * MS);
    say(good, "REQ w0 w0 q3 q0 d8388608");
    hear(good, "OK q3 'data'");
    assert_true(env_now(w->env) >= start + 60 * ENV_NS_PER_S);
    hear_end(bad);
    env_sock_close(bad);
    env_sock_close(worse);
    env_sock_close(good);
}

static void test_stalled_writer(void **state)
{
    struct world w = {0};

    (void)state;
    limit_memory(&w);
    run_world(&w, 1, test_stalled_writer_in);
}

/* A client that takes no replies is cut off; it held no more than its share. */
WORLD_TEST(test_stalled_reader)
{
    struct env_sock *s = dial_in(w);
    uint64_t start = env_now(w->env);

    for (unsigned i = 0; i < 20; i++)
        say(s, "REQ w0 w0 q1 q0 d1048576");
    wait_gone(w);
    assert_true(env_now(w->env) >= start + 60 * ENV_NS_PER_S);
    assert_true(env_now(w->env) < start + 130 * ENV_NS_PER_S);
    env_sock_close(s);
}

/* Idle is not slow: after the negotiation a client may be silent for days. */
WORLD_TEST(test_idle)
{
    struct env_sock *s = dial_in(w);

    env_sleep(w->env, 1000 * ENV_NS_PER_S);
    say(s, "REQ w0 w0 q1 q0 d4");
    hear(s, "OK q1 z:4");
    bye(s);
}

WORLD_TEST(test_negotiation_timeout)
{
    struct env_sock *s = dial(w);
    uint64_t start = env_now(w->env);

    say(s, HELLO "OPT d7 d10 d4 'di'");
    hear(s, HELLO_R);
    hear_end(s);
    assert_true(env_now(w->env) >= start + 29 * ENV_NS_PER_S);
    assert_true(env_now(w->env) <= start + 31 * ENV_NS_PER_S);
    env_sock_close(s);
}

/* One too many is told so, and gets in when another has left. */
static void test_full_in(struct world *w)
{
    struct env_sock *a = dial_in(w), *b = dial_in(w), *c = dial(w);
    static const char text[] = "too many connections: close some, or raise the server's limit";
    struct nbd_server_stats stats;
    char words[200];

    say(c, HELLO GO);
    snprintf(words, sizeof(words), HELLO_R "REP d7 d0x80000002 d%zu", strlen(text));
    hear(c, words);
    env_sock_close(c);
    nbd_server_get_stats(w->server, &stats);
    assert_int_equal(stats.connections, 2);
    assert_int_equal(stats.refused, 1);
    bye(a);
    env_sleep(w->env, MS);
    c = dial_in(w);
    bye(b);
    bye(c);
}

static void test_full(void **state)
{
    struct world w = {.options = {.max_connections = 2}};

    (void)state;
    run_world(&w, 1, test_full_in);
}

struct stopper {
    struct world *world;
    bool done;
};

static void stop_main(void *arg)
{
    struct stopper *p = arg;

    nbd_server_stop(p->world->server);
    p->world->server = NULL;
    p->done = true;
}

/* The stop lets requests end; new ones are told; idle connections close at once. */
WORLD_TEST(test_stop)
{
    struct env_sock *busy = dial_in(w), *idle = dial_in(w), *young = dial(w);
    struct stopper p = {w, false};
    uint64_t start;

    w->delay['w'] = 2000 * MS;
    say(busy, "REQ w0 w1 q1 q0 d4 'data'");
    env_sleep(w->env, 10 * MS);
    fiber_spawn(w->env, "stop", stop_main, &p);
    env_sleep(w->env, 10 * MS);
    hear_end(idle);
    hear(young, HELLO_R);
    hear_end(young);
    say(busy, "REQ w0 w1 q2 q0 d4 'late' REQ w0 w0 q3 q0 d4");
    hear(busy, "BAD d108 q2 BAD d108 q3");
    assert_false(p.done);
    hear(busy, "OK q1");
    start = env_now(w->env);
    hear_end(busy);
    assert_true(env_now(w->env) < start + 100 * MS);
    env_sock_close(busy);
    env_sock_close(idle);
    env_sock_close(young);
    while (!p.done)
        env_sleep(w->env, MS);
}

/* A client that takes nothing does not hold up the stop for ever. */
WORLD_TEST(test_stop_late)
{
    struct env_sock *s = dial_in(w);
    uint64_t start = env_now(w->env);

    for (unsigned i = 0; i < 20; i++)
        say(s, "REQ w0 w0 q1 q0 d1048576");
    env_sleep(w->env, 100 * MS);
    nbd_server_stop(w->server);
    w->server = NULL;
    assert_true(env_now(w->env) < start + 11 * ENV_NS_PER_S);
    env_sock_close(s);
}

/* Noise closes the noisy connection and no other. */
WORLD_TEST(test_noise)
{
    struct env_sock *good = dial_in(w);
    struct nbd_server_stats stats;

    for (unsigned i = 0; i < 20; i++) {
        struct env_sock *s = i % 2 ? dial_in(w) : dial(w);
        uint8_t noise[512];

        env_random(w->env, noise, sizeof(noise));
        noise[0] = 0xff;
        say_bytes(s, noise, sizeof(noise));
        say(good, "REQ w0 w1 q1 q4096 d4 'good' REQ w0 w3 q2 q0 d0");
        hear(good, "OK q1 OK q2");
        while (hear_bytes(s, noise, 1) == 0)
            ;
        env_sock_close(s);
    }
    nbd_server_get_stats(w->server, &stats);
    assert_int_equal(stats.protocol_errors, 20);
    bye(good);
}

WORLD_TEST(test_store_errors)
{
    struct env_sock *s = dial_in(w);

    w->error = ERR_NOSPC;
    say(s, "REQ w0 w1 q1 q0 d4 'data'");
    hear(s, "BAD d28 q1");
    w->error = ERR_LOST;
    say(s, "REQ w0 w0 q2 q0 d4");
    hear(s, "BAD d5 q2");
    w->error = 0;
    say(s, "REQ w0 w0 q3 q0 d4");
    hear(s, "OK q3 z:4");
    bye(s);
}

static void test_bad_options(void **state)
{
    struct nbd_server_options o = {.listen = &door, .listen_count = 0};
    struct nbd_server *s = NULL;

    (void)state;
    assert_int_equal(nbd_server_start(&o, &s), ERR_CONFIG);
    o.listen_count = 1;
    o.max_bytes = 1 << 20;
    assert_int_equal(nbd_server_start(&o, &s), ERR_CONFIG);
    assert_null(s);
}

/* ---- Many clients on a bad network ---------------------------------------------------------- */

#define SWARM       8u
#define SWARM_BLOCK 8192u
#define SWARM_AREA  64u /* blocks of each client */

struct swarm {
    struct world *world;
    struct fiber_group left;
    unsigned rounds, cuts;
};

struct drone {
    struct swarm *swarm;
    unsigned id;
    /* What each block may hold: the last value replied to, and those sent after it. */
    uint8_t sure[SWARM_AREA], maybe[SWARM_AREA];
    bool open[SWARM_AREA]; /* a write was sent and not replied to */
};

static void put_request(struct strbuf *b, unsigned type, uint64_t cookie, uint64_t off,
                        uint32_t len)
{
    uint8_t *p = strbuf_room(b, 28);

    codec_put_be32(p, 0x25609513);
    codec_put_be16(p + 4, 0);
    codec_put_be16(p + 6, (uint16_t)type);
    codec_put_be64(p + 8, cookie);
    codec_put_be64(p + 16, off);
    codec_put_be32(p + 24, len);
}

static void drone_saw(struct drone *d, unsigned i, const uint8_t *data)
{
    uint8_t v = data[0];

    for (unsigned j = 1; j < SWARM_BLOCK; j++)
        assert_int_equal(data[j], v);
    assert_true(v == d->sure[i] || (d->open[i] && v == d->maybe[i]));
    d->sure[i] = v;
    d->open[i] = false;
}

/* A batch of requests to different blocks, then their replies in any order. */
static int drone_batch(struct drone *d, struct env_sock *s)
{
    struct sim *sim = d->swarm->world->sim;
    unsigned n = 1 + (unsigned)sim_random(sim, 16), first = (unsigned)sim_random(sim, SWARM_AREA);
    struct strbuf b = STRBUF_INIT;
    uint8_t type[16], reply[16], *data = mem_alloc(SWARM_BLOCK);
    int err;

    for (unsigned k = 0; k < n; k++) {
        unsigned i = (first + k) % SWARM_AREA;
        uint64_t off = ((uint64_t)d->id * SWARM_AREA + i) * SWARM_BLOCK;

        type[k] = d->open[i] ? 0 : (uint8_t)sim_random(sim, 2); /* first look what came of it */
        put_request(&b, type[k], k, off, SWARM_BLOCK);
        if (type[k] == 1) {
            d->maybe[i] = (uint8_t)(1 + sim_random(sim, 255));
            d->open[i] = true;
            memset(strbuf_room(&b, SWARM_BLOCK), d->maybe[i], SWARM_BLOCK);
        }
    }
    err = say_bytes(s, b.data, b.len);
    for (unsigned k = 0; k < n && err == 0; k++) {
        uint64_t cookie;
        unsigned i;

        err = hear_bytes(s, reply, 16);
        if (err < 0)
            break;
        assert_int_equal(codec_get_be32(reply), 0x67446698);
        assert_int_equal(codec_get_be32(reply + 4), 0);
        cookie = codec_get_be64(reply + 8);
        assert_true(cookie < n && type[cookie] != 9);
        i = (first + (unsigned)cookie) % SWARM_AREA;
        if (type[cookie] == 0) {
            err = hear_bytes(s, data, SWARM_BLOCK);
            if (err == 0)
                drone_saw(d, i, data);
        } else {
            d->sure[i] = d->maybe[i];
            d->open[i] = false;
        }
        type[cookie] = 9;
    }
    mem_free(data);
    strbuf_free(&b);
    return err;
}

/* Settles what is unsure: nothing of an older connection runs any more once the server let go. */
static void drone_main(void *arg)
{
    struct drone *d = arg;
    struct world *w = d->swarm->world;

    for (unsigned round = 0; round < d->swarm->rounds; round++) {
        struct env_sock *s;
        uint8_t hello[18 + 32 + 20];
        struct strbuf b = STRBUF_INIT;
        int err = env_connect(w->env, &door, &s);

        if (err < 0)
            continue;
        nbd_words_build(&b, HELLO GO);
        err = say_bytes(s, b.data, b.len);
        strbuf_free(&b);
        if (err == 0)
            err = hear_bytes(s, hello, sizeof(hello));
        for (unsigned i = 0; i < 20 && err == 0; i++)
            err = drone_batch(d, s);
        d->swarm->cuts += err < 0;
        env_sock_close(s);
        env_sleep(w->env, 5000 * MS); /* the old requests are over */
    }
    fiber_group_done(&d->swarm->left);
    mem_free(d);
}

static void test_swarm_in(struct world *w)
{
    struct sim_faults faults = {.net_min_ns = 1000, .net_max_ns = 300000, .sock_cut = 300};
    struct swarm swarm = {.world = w, .rounds = 15};

    w->delay['r'] = w->delay['R'] = 200000;
    w->delay['w'] = 100000;
    sim_set_faults(w->sim, &faults);
    fiber_group_init(&swarm.left);
    for (unsigned i = 0; i < SWARM; i++) {
        struct drone *d = mem_zalloc(sizeof(*d));

        d->swarm = &swarm;
        d->id = i;
        fiber_group_add(&swarm.left, 1);
        fiber_spawn(w->env, "drone", drone_main, d);
    }
    fiber_group_wait(&swarm.left);
    sim_set_faults(w->sim, &(struct sim_faults){0});
    wait_gone(w);
    print_message("  %u connections broke\n", swarm.cuts);
}

static void test_swarm(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct world w = {0};

        run_world(&w, seed, test_swarm_in);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dialogue),
        cmocka_unit_test(test_out_of_order),
        cmocka_unit_test(test_disconnect_waits),
        cmocka_unit_test(test_vanish),
        cmocka_unit_test(test_requests_are_limited),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_stalled_writer),
        cmocka_unit_test(test_stalled_reader),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_negotiation_timeout),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_late),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_store_errors),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_swarm),
    };

    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

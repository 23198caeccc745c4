/* lib/rt: the simulator. What it must show: the same seed gives the same run; only what was synced
 * survives a power cut, and all of that; every fault does happen; a kill leaves nothing behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env_ops.h"
#include "lib/rt/env_sim.h"
#include "lib/rt/sync.h"

#define UNIT 4096u

/* State of the test, outside of any process. */
static struct sim *sim;
static struct env *proc;
static unsigned count;
static int result;

/* ---- Files ---- */

static struct env_file *open_file(unsigned flags)
{
    struct env_file *f = NULL;

    assert_int_equal(env_open(proc, "disk", ENV_OPEN_CREATE | flags, &f), 0);
    return f;
}

static void write_unit(struct env_file *f, uint64_t unit, uint8_t value, bool dsync)
{
    uint8_t *buf = mem_alloc_aligned(4096, UNIT);

    memset(buf, value, UNIT);
    assert_int_equal(env_pwrite(f, buf, UNIT, unit * UNIT, dsync), 0);
    mem_free(buf);
}

static unsigned unit_bytes(uint64_t unit, uint8_t value)
{
    uint8_t buf[UNIT];
    unsigned n = 0;

    if (sim_file_read(sim, "disk", buf, UNIT, unit * UNIT) < 0)
        return 0;
    for (unsigned i = 0; i < UNIT; i++)
        n += buf[i] == value;
    return n;
}

static void basics_main(void *arg)
{
    struct env_file *f, *second;
    uint8_t *buf = mem_alloc_aligned(4096, 2 * UNIT);
    uint64_t size = 0;
    struct env_io io = {.kind = ENV_READ, .buf = buf, .len = UNIT, .off = 512};

    (void)arg;
    assert_int_equal(env_open(proc, "disk", 0, &f), ERR_NOENT);
    f = open_file(ENV_OPEN_EXCL | ENV_OPEN_DIRECT | ENV_OPEN_LOCK);
    assert_int_equal(env_open(proc, "disk", ENV_OPEN_CREATE | ENV_OPEN_EXCL, &second), ERR_EXIST);
    assert_int_equal(env_open(proc, "disk", ENV_OPEN_LOCK, &second), ERR_LOCKED);
    assert_int_equal(env_open(proc, "disk", ENV_OPEN_RDONLY, &second), 0);
    write_unit(f, 1, 7, false);
    assert_int_equal(env_file_size(second, &size), 0);
    assert_int_equal(size, 2 * UNIT);
    assert_int_equal(env_pread(second, buf, 2 * UNIT, 0), 0);
    assert_int_equal(buf[0], 0);
    assert_int_equal(buf[UNIT], 7);
    assert_int_equal(env_pread(second, buf, UNIT, 100), 0); /* not direct: any place will do */
    io.file = f;
    assert_int_equal(env_io_run(&io, 1), ERR_INVAL);
    io.file = second;
    io.off = 2 * UNIT - 10;
    assert_int_equal(env_io_run(&io, 1), ERR_TRUNCATED);
    assert_int_equal(io.result, 10);
    assert_int_equal(env_pwrite(second, buf, UNIT, 0, false), ERR_READONLY);
    assert_int_equal(env_trim(f, UNIT, 100 * UNIT), 0);
    assert_int_equal(env_pread(second, buf, UNIT, UNIT), 0);
    assert_int_equal(buf[5], 0);
    assert_int_equal(env_resize(f, UNIT), 0);
    assert_int_equal(env_pread(second, buf, UNIT, UNIT), ERR_TRUNCATED);
    assert_int_equal(env_resize(f, 1ull << 32), 0);
    assert_int_equal(env_pread(second, buf, UNIT, 1ull << 31), 0);
    assert_int_equal(env_sync(f), 0);
    assert_int_equal(env_unlink(proc, "disk"), 0);
    assert_int_equal(env_unlink(proc, "disk"), ERR_NOENT);
    write_unit(f, 0, 9, false); /* goes on without a name */
    env_close(second);
    env_close(f);
    mem_free(buf);
    count = 1;
}

static void test_file_basics(void **state)
{
    (void)state;
    sim = sim_new(1);
    count = 0;
    proc = sim_process(sim, "p", basics_main, NULL);
    assert_true(sim_run(sim, ENV_FOREVER));
    assert_true(sim_process_ended(proc));
    assert_int_equal(count, 1);
    assert_int_equal(sim_process_memory(proc), 0);
    sim_kill(proc, false);
    sim_free(sim);
}

/* Writes without sync, then hangs until it is killed. */
static void unsynced_main(void *arg)
{
    struct env_file *f = open_file(ENV_OPEN_DIRECT);

    (void)arg;
    for (unsigned i = 0; i < 4; i++)
        write_unit(f, i, 1, true);
    for (unsigned i = 0; i < 4; i++)
        write_unit(f, i, 2, false);
    env_wait_stop(proc);
}

static void test_power_cut_loses_and_tears(void **state)
{
    unsigned kept = 0, lost = 0, torn = 0, kept_after_lost = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        bool lost_one = false;

        sim = sim_new(seed);
        proc = sim_process(sim, "p", unsynced_main, NULL);
        sim_run(sim, ENV_FOREVER);
        assert_int_equal(unit_bytes(0, 2), UNIT); /* readers see the newest */
        sim_kill(proc, true);
        for (unsigned i = 0; i < 4; i++) {
            unsigned n = unit_bytes(i, 2);

            assert_int_equal(n + unit_bytes(i, 1), UNIT);
            assert_int_equal(n % 512, 0);
            kept += n == UNIT;
            lost += n == 0;
            torn += n > 0 && n < UNIT;
            kept_after_lost += n == UNIT && lost_one;
            lost_one = lost_one || n == 0;
        }
        sim_free(sim);
    }
    assert_true(kept > 50 && lost > 50 && torn > 50 && kept_after_lost > 10);
}

static void test_kill_keeps_written(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        sim = sim_new(seed);
        proc = sim_process(sim, "p", unsynced_main, NULL);
        sim_run(sim, ENV_FOREVER);
        sim_kill(proc, false);
        for (unsigned i = 0; i < 4; i++)
            assert_int_equal(unit_bytes(i, 2), UNIT);
        /* A later power cut of whoever opens it next still takes what was never synced. */
        proc = sim_process(sim, "p", unsynced_main, NULL);
        sim_run(sim, ENV_FOREVER);
        sim_kill(proc, true);
        sim_free(sim);
    }
}

static void synced_main(void *arg)
{
    struct env_file *f = open_file(0);

    for (unsigned i = 0; i < 4; i++)
        write_unit(f, i, 2, false);
    if (*(const char *)arg == 's')
        assert_int_equal(env_sync(f), 0);
    if (*(const char *)arg == 'd')
        for (unsigned i = 0; i < 4; i++)
            write_unit(f, i, 3, true); /* over pending writes, which must not come back */
    count = 1;
    env_wait_stop(proc);
}

static void test_sync_makes_durable(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++)
        for (int dsync = 0; dsync < 2; dsync++) {
            sim = sim_new(seed);
            count = 0;
            proc = sim_process(sim, "p", synced_main, dsync ? "d" : "s");
            while (!count)
                sim_run(sim, sim_now(sim) + 10000);
            sim_kill(proc, true);
            for (unsigned i = 0; i < 4; i++)
                assert_int_equal(unit_bytes(i, dsync ? 3 : 2), UNIT);
            sim_free(sim);
        }
}

/* The trap of the simulators: data that is durable when the sync is submitted. */
static void sync_in_flight_main(void *arg)
{
    struct env_file *f = open_file(0);

    (void)arg;
    write_unit(f, 0, 2, false);
    sim_pause(sim);
    assert_int_equal(env_sync(f), 0);
    count = 1;
}

static void test_sync_is_nothing_before_it_completes(void **state)
{
    unsigned lost = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        sim = sim_new(seed);
        count = 0;
        proc = sim_process(sim, "p", sync_in_flight_main, NULL);
        sim_run(sim, ENV_FOREVER);
        assert_false(sim_run(sim, sim_now(sim) + 19000)); /* the shortest sync takes longer */
        assert_int_equal(count, 0);
        sim_kill(proc, true);
        lost += unit_bytes(0, 2) != UNIT;
        sim_free(sim);
    }
    assert_true(lost > 20);
}

static void later_write_main(void *arg)
{
    struct env_file *f = open_file(0);
    uint8_t *buf = mem_alloc(UNIT);
    struct env_io ios[2] = {{.kind = ENV_SYNC, .file = f},
                            {.kind = ENV_WRITE, .file = f, .buf = buf, .len = UNIT}};

    (void)arg;
    memset(buf, 2, UNIT);
    /* Only what was done before the sync was started is its business. */
    assert_int_equal(env_io_run(ios, 2), 0);
    count = 1;
    env_wait_stop(proc);
}

static void test_sync_covers_what_was_done(void **state)
{
    unsigned lost = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        sim = sim_new(seed);
        proc = sim_process(sim, "p", later_write_main, NULL);
        sim_run(sim, ENV_FOREVER);
        sim_kill(proc, true);
        lost += unit_bytes(0, 2) != UNIT;
        sim_free(sim);
    }
    assert_true(lost > 20);
}

static void in_flight_main(void *arg)
{
    struct env_file *f = open_file(0);

    (void)arg;
    write_unit(f, 0, 1, true);
    sim_pause(sim);
    write_unit(f, 0, 2, true);
    count = 1;
}

static void test_write_in_flight_may_tear(void **state)
{
    unsigned none = 0, all = 0, part = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        unsigned n;

        sim = sim_new(seed);
        proc = sim_process(sim, "p", in_flight_main, NULL);
        sim_run(sim, ENV_FOREVER);
        sim_run(sim, sim_now(sim) + 19000);
        sim_kill(proc, seed % 2);
        n = unit_bytes(0, 2);
        none += n == 0;
        all += n == UNIT;
        part += n > 0 && n < UNIT;
        assert_int_equal(n + unit_bytes(0, 1), UNIT);
        sim_free(sim);
    }
    assert_true(none > 20 && all > 20 && part > 20);
}

static void resize_main(void *arg)
{
    struct env_file *f = open_file(0);

    write_unit(f, 0, 1, false);
    write_unit(f, 1, 1, false);
    assert_int_equal(env_sync(f), 0);
    assert_int_equal(env_resize(f, UNIT), 0);
    if (*(const char *)arg == 'w')
        write_unit(f, 2, 5, true); /* takes the resize before it along */
    env_wait_stop(proc);
}

static void test_resize(void **state)
{
    unsigned kept = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        sim = sim_new(seed);
        proc = sim_process(sim, "p", resize_main, "r");
        sim_run(sim, ENV_FOREVER);
        sim_kill(proc, true);
        kept += sim_file_size(sim, "disk") == UNIT;
        sim_free(sim);
        sim = sim_new(seed);
        proc = sim_process(sim, "p", resize_main, "w");
        sim_run(sim, ENV_FOREVER);
        sim_kill(proc, true);
        assert_int_equal(sim_file_size(sim, "disk"), 3 * UNIT);
        assert_int_equal(unit_bytes(1, 0), UNIT);
        assert_int_equal(unit_bytes(2, 5), UNIT);
        sim_free(sim);
    }
    assert_true(kept > 10 && kept < 50);
}

/* ---- Faults ---- */

static void faulty_main(void *arg)
{
    struct env_file *f = open_file(0);
    uint8_t buf[UNIT], want[UNIT];

    (void)arg;
    memset(want, 2, UNIT);
    for (unsigned i = 0; i < 200; i++) {
        int r = env_pwrite(f, want, UNIT, i * UNIT, true);

        if (r == 0)
            r = env_pread(f, buf, UNIT, i * UNIT);
        if (r < 0 || memcmp(buf, want, UNIT) != 0)
            count++;
        if (r < 0)
            result = r;
    }
    env_close(f);
}

static unsigned faulty_run(const struct sim_faults *faults, bool for_file)
{
    sim = sim_new(5);
    count = 0;
    result = 0;
    if (for_file)
        sim_set_file_faults(sim, "disk", faults);
    else
        sim_set_faults(sim, faults);
    proc = sim_process(sim, "p", faulty_main, NULL);
    assert_true(sim_run(sim, ENV_FOREVER));
    assert_true(sim_process_ended(proc));
    sim_kill(proc, false);
    sim_free(sim);
    return count;
}

static void test_faults(void **state)
{
    static const struct sim_faults none = {0}, read_eio = {.read_eio = 100000},
                                   write_eio = {.write_eio = 100000}, flip = {.bit_flip = 100000},
                                   lost = {.lost_write = 200000},
                                   astray = {.misdirected_write = 100000};

    (void)state;
    assert_int_equal(faulty_run(&none, false), 0);
    assert_in_range(faulty_run(&read_eio, false), 5, 50);
    assert_int_equal(result, ERR_IO);
    assert_in_range(faulty_run(&write_eio, true), 5, 50);
    assert_int_equal(result, ERR_IO);
    assert_in_range(faulty_run(&flip, false), 5, 50);
    assert_int_equal(result, 0);
    assert_in_range(faulty_run(&lost, true), 5, 50);
    assert_in_range(faulty_run(&astray, false), 5, 50);
}

static void lying_main(void *arg)
{
    struct env_file *f = open_file(0);

    (void)arg;
    for (unsigned i = 0; i < 8; i++)
        write_unit(f, i, 2, true);
    assert_int_equal(env_sync(f), 0);
    env_wait_stop(proc);
}

static void test_lying_drive(void **state)
{
    static const struct sim_faults faults = {.lost_write = 500000};
    unsigned seen = 0, left = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        sim = sim_new(seed);
        sim_set_faults(sim, &faults);
        proc = sim_process(sim, "p", lying_main, NULL);
        sim_run(sim, ENV_FOREVER);
        for (unsigned i = 0; i < 8; i++)
            seen += unit_bytes(i, 2) == UNIT;
        sim_kill(proc, true);
        for (unsigned i = 0; i < 8; i++)
            left += unit_bytes(i, 2) == UNIT;
        sim_free(sim);
    }
    assert_in_range(seen, 90, 150);
    assert_in_range(left, 50, 110);
}

static void test_corrupt(void **state)
{
    uint8_t a[UNIT], b[UNIT];

    (void)state;
    sim = sim_new(3);
    proc =
        sim_process(sim, "p", synced_main, "-"); /* unsynced: the rot is in what is pending too */
    sim_run(sim, ENV_FOREVER);
    assert_int_equal(sim_file_corrupt(sim, "disk", UNIT + 10, 100), 0);
    assert_int_equal(sim_file_corrupt(sim, "none", 0, 1), ERR_NOENT);
    assert_int_equal(sim_file_corrupt(sim, "disk", 4 * UNIT, 1), ERR_RANGE);
    assert_int_equal(unit_bytes(1, 2), UNIT - 100);
    assert_int_equal(sim_file_read(sim, "disk", a, UNIT, UNIT), 0);
    sim_kill(proc, false);
    assert_int_equal(sim_file_read(sim, "disk", b, UNIT, UNIT), 0);
    assert_memory_equal(a, b, UNIT);
    assert_int_equal(sim_file_delete(sim, "disk"), 0);
    assert_int_equal(sim_file_size(sim, "disk"), 0);
    assert_int_equal(sim_file_read(sim, "disk", b, 1, 0), ERR_NOENT);
    sim_free(sim);
}

/* ---- Wrapped files ---- */

struct counting_file {
    struct env_file base;
    struct env_file *under;
};

static void counting_start(struct env_file *f, struct env_io *io)
{
    struct counting_file *c = (struct counting_file *)f;

    count++;
    io->file = c->under;
    c->under->ops->start(c->under, io);
}

static int counting_size(struct env_file *f, uint64_t *ret_size)
{
    return env_file_size(((struct counting_file *)f)->under, ret_size);
}

static void counting_close(struct env_file *f)
{
    env_close(((struct counting_file *)f)->under);
    mem_free(f);
}

static const struct env_file_ops counting_ops = {
    .start = counting_start, .size = counting_size, .close = counting_close};

static struct env_file *counting_wrap(void *arg, const char *path, struct env_file *f)
{
    struct counting_file *c = mem_zalloc(sizeof(*c));

    (void)arg, (void)path;
    c->base = (struct env_file){.ops = &counting_ops, .env = f->env};
    c->under = f;
    return &c->base;
}

static void wrapped_main(void *arg)
{
    struct env_file *f;

    (void)arg;
    env_wrap_files(proc, counting_wrap, NULL);
    f = open_file(0);
    write_unit(f, 0, 1, false);
    assert_int_equal(env_sync(f), 0);
    env_close(f);
}

static void test_wrapped(void **state)
{
    (void)state;
    sim = sim_new(1);
    count = 0;
    proc = sim_process(sim, "p", wrapped_main, NULL);
    assert_true(sim_run(sim, ENV_FOREVER));
    assert_int_equal(count, 2);
    sim_kill(proc, false);
    sim_free(sim);
}

/* ---- Sockets ---- */

static const struct env_addr server_addr = {"tcp:127.0.0.1:11112"};

static void echo_fiber(void *arg)
{
    struct env_sock *s = arg;
    uint8_t buf[3000];
    int64_t n;

    while ((n = env_recv(s, buf, sizeof(buf))) > 0) {
        struct iovec iov = {buf, (size_t)n};

        if (env_send(s, &iov, 1) < 0)
            break;
    }
    env_sock_close(s);
}

static void server_main(void *arg)
{
    struct env *env = *(struct env **)arg;
    struct env_listener *l;
    struct env_sock *s;

    assert_int_equal(env_listen(env, &server_addr, 8, &l), 0);
    assert_int_equal(env_listen(env, &server_addr, 8, &l), ERR_ADDR);
    while (env_accept(l, &s) == 0)
        fiber_spawn(env, "echo", echo_fiber, s);
}

struct client {
    struct env *env;
    struct env_sock *sock;
    unsigned kib, received;
    bool right, ended;
    int error;
};

static void client_sender(void *arg)
{
    struct client *c = arg;
    uint8_t *buf = mem_alloc(1024);

    for (unsigned i = 0; i < c->kib; i++) {
        struct iovec iov[3] = {{buf, 100}, {buf, 0}, {buf + 100, 924}};

        memset(buf, (int)(i & 255), 1024);
        c->error = env_send(c->sock, iov, 3);
        if (c->error < 0)
            break;
    }
    mem_free(buf);
}

static void client_main(void *arg)
{
    struct client *c = arg;
    uint8_t buf[700];
    int64_t n;
    int r;

    env_sleep(c->env, ENV_NS_PER_MS);
    r = env_connect(c->env, &server_addr, &c->sock);
    if (r < 0) {
        c->error = r;
        c->ended = true;
        return;
    }
    c->right = true;
    fiber_spawn(c->env, "sender", client_sender, c);
    while (c->received < c->kib * 1024 && (n = env_recv(c->sock, buf, sizeof(buf))) != 0) {
        if (n < 0) {
            c->error = (int)n;
            break;
        }
        for (int64_t i = 0; i < n; i++)
            c->right = c->right && buf[i] == (((c->received + (unsigned)i) / 1024) & 255);
        c->received += (unsigned)n;
    }
    c->ended = true;
    fiber_yield();
    env_sleep(c->env, ENV_NS_PER_S); /* the sender learns of a break, too */
    env_sock_close(c->sock);
}

static void test_sockets(void **state)
{
    struct env *server;
    struct client c[2] = {{.kib = 2000}, {.kib = 1}};

    (void)state;
    sim = sim_new(9);
    server = sim_process(sim, "server", server_main, &server);
    for (int i = 0; i < 2; i++)
        c[i].env = sim_process(sim, "client", client_main, &c[i]);
    assert_true(sim_run(sim, ENV_FOREVER));
    for (int i = 0; i < 2; i++) {
        assert_true(c[i].right);
        assert_int_equal(c[i].received, c[i].kib * 1024);
        assert_true(sim_process_ended(c[i].env));
        sim_kill(c[i].env, false);
    }
    assert_false(sim_process_ended(server));
    sim_kill(server, false);
    sim_free(sim);
}

static void test_peer_killed(void **state)
{
    (void)state;
    for (int power = 0; power < 2; power++)
        for (uint64_t seed = 0; seed < 10; seed++) {
            struct env *server;
            struct client c = {.kib = 100000};

            sim = sim_new(seed);
            server = sim_process(sim, "server", server_main, &server);
            c.env = sim_process(sim, "client", client_main, &c);
            sim_run(sim, sim_now(sim) + 20 * ENV_NS_PER_MS);
            assert_true(c.received > 0 && !c.ended);
            sim_kill(server, power);
            assert_true(sim_run(sim, ENV_FOREVER));
            assert_true(c.ended && c.right);
            assert_true(c.received < c.kib * 1024);
            assert_true(sim_process_ended(c.env));
            sim_kill(c.env, false);
            /* Nobody listens any more. */
            c = (struct client){.kib = 1};
            c.env = sim_process(sim, "client", client_main, &c);
            assert_true(sim_run(sim, ENV_FOREVER));
            assert_int_equal(c.error, ERR_CLOSED);
            sim_free(sim);
        }
}

static void test_cut(void **state)
{
    static const struct sim_faults faults = {.sock_cut = 20000};
    unsigned broken = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct env *server;
        struct client c = {.kib = 200};

        sim = sim_new(seed);
        sim_set_faults(sim, &faults);
        server = sim_process(sim, "server", server_main, &server);
        c.env = sim_process(sim, "client", client_main, &c);
        assert_true(sim_run(sim, ENV_FOREVER));
        assert_true(c.ended && c.right && sim_process_ended(c.env));
        broken += c.error == ERR_CLOSED;
        sim_free(sim);
    }
    assert_in_range(broken, 10, 20);
}

static struct env_listener *closing;

static void accept_fiber(void *arg)
{
    struct env_sock *s;

    (void)arg;
    assert_int_equal(env_accept(closing, &s), ERR_CANCELED);
    count++;
}

static void close_main(void *arg)
{
    struct env_addr any = {"tcp:[::1]:0"}, bad = {"tcp:nowhere:1"}, got;
    struct env_sock *s;

    (void)arg;
    assert_int_equal(env_listen(proc, &bad, 1, &closing), ERR_INVAL);
    assert_int_equal(env_listen(proc, &any, 1, &closing), 0);
    assert_int_equal(env_listener_addr(closing, &got), 0);
    assert_string_not_equal(got.text, any.text);
    fiber_spawn(proc, "accept", accept_fiber, NULL);
    fiber_spawn(proc, "accept", accept_fiber, NULL);
    fiber_yield();
    env_listener_close(closing);
    env_sleep(proc, 1000);
    assert_int_equal(env_connect(proc, &got, &s), ERR_CLOSED);
    assert_int_equal(count, 2);
}

static void test_listener_close(void **state)
{
    (void)state;
    sim = sim_new(1);
    count = 0;
    proc = sim_process(sim, "p", close_main, NULL);
    assert_true(sim_run(sim, ENV_FOREVER));
    sim_kill(proc, false);
    sim_free(sim);
}

/* ---- Processes, time, offload ---- */

static void offload_fn(void *arg)
{
    assert_null(fiber_self());
    ++*(unsigned *)arg;
}

static void other_fiber(void *arg)
{
    ++*(unsigned *)arg;
}

static void offload_main(void *arg)
{
    unsigned ran = 0, other = 0;
    uint64_t before = env_now(proc);

    (void)arg;
    fiber_spawn(proc, "other", other_fiber, &other);
    env_offload(proc, ENV_LANE_CPU, offload_fn, &ran);
    assert_int_equal(ran, 1);
    assert_int_equal(other, 1); /* ran meanwhile */
    assert_true(env_now(proc) > before);
    env_offload_start(proc, ENV_LANE_KV, offload_fn, offload_fn, &count);
    assert_int_equal(count, 0);
    env_sleep(proc, ENV_NS_PER_MS);
    assert_int_equal(count, 2);
    assert_true(env_lane_width(proc, ENV_LANE_CPU) > 0);
    assert_int_equal(env_thread(proc, "t", offload_fn, &ran), ERR_UNSUPPORTED);
    assert_int_equal(env_post(proc, "post", other_fiber, &count), 0);
    assert_true(env_wallclock(proc) > 1700000000 * ENV_NS_PER_S);
}

static void test_offload(void **state)
{
    (void)state;
    sim = sim_new(1);
    count = 0;
    proc = sim_process(sim, "p", offload_main, NULL);
    assert_true(sim_run(sim, ENV_FOREVER));
    assert_int_equal(count, 3);
    assert_int_equal(env_post(proc, "late", other_fiber, &count), ERR_SHUTDOWN);
    sim_kill(proc, false);
    sim_free(sim);
}

static void stop_fiber(void *arg)
{
    (void)arg;
    env_wait_stop(proc);
    count++;
}

static void stop_main(void *arg)
{
    fiber_spawn(proc, "stop", stop_fiber, arg);
    stop_fiber(arg);
}

static void test_stop_and_until(void **state)
{
    uint64_t now;

    (void)state;
    sim = sim_new(1);
    count = 0;
    proc = sim_process(sim, "p", stop_main, NULL);
    now = sim_now(sim);
    assert_true(sim_run(sim, now + 5 * ENV_NS_PER_S));
    assert_false(sim_process_ended(proc));
    sim_stop(proc);
    assert_true(sim_run(sim, now + 5 * ENV_NS_PER_S));
    assert_true(sim_process_ended(proc));
    assert_int_equal(count, 2);
    sim_kill(proc, false);
    sim_free(sim);
}

static void sleeping_main(void *arg)
{
    (void)arg;
    env_sleep(proc, 10 * ENV_NS_PER_S);
    count = 1;
}

static void test_until(void **state)
{
    uint64_t start;

    (void)state;
    sim = sim_new(1);
    count = 0;
    start = sim_now(sim);
    proc = sim_process(sim, "p", sleeping_main, NULL);
    assert_false(sim_run(sim, start + 4 * ENV_NS_PER_S));
    assert_int_equal(sim_now(sim), start + 4 * ENV_NS_PER_S);
    assert_int_equal(count, 0);
    assert_true(sim_run(sim, ENV_FOREVER));
    assert_int_equal(sim_now(sim), start + 10 * ENV_NS_PER_S);
    assert_int_equal(count, 1);
    sim_free(sim);
}

/* Everything at once: files, sockets, offloads, randomness. */
static void busy_fiber(void *arg)
{
    struct env *env = *(struct env **)arg;
    struct env_file *f;
    char *leak = mem_alloc(1000);
    unsigned n = 0;
    uint64_t x;

    if (env_open(env, "shared", ENV_OPEN_CREATE, &f) < 0)
        return;
    for (;;) {
        env_random(env, &x, sizeof(x));
        memset(leak, (int)(x & 255), 1000);
        env_pwrite(f, leak, 1000, x % 100000, x % 3 == 0);
        if (x % 5 == 0)
            env_sync(f);
        env_pread(f, leak, 1000, x % 90000);
        env_offload(env, ENV_LANE_CPU, other_fiber, &n);
        env_sleep(env, x % 100000);
    }
}

static void busy_main(void *arg)
{
    for (int i = 0; i < 5; i++)
        fiber_spawn(*(struct env **)arg, "busy", busy_fiber, arg);
    busy_fiber(arg);
}

/* A process that kills another one. */
static struct env *victim;

static void killer_main(void *arg)
{
    struct env *self = *(struct env **)arg;

    for (int i = 0; i < 10; i++) {
        env_sleep(self, 7 * ENV_NS_PER_MS);
        assert_true(sim_process_memory(victim) > 0);
        sim_kill(victim, i % 2);
        victim = sim_process(sim, "victim", busy_main, &victim);
    }
}

static uint64_t busy_run(uint64_t seed)
{
    static const struct sim_faults faults = {.read_eio = 1000,
                                             .write_eio = 1000,
                                             .bit_flip = 1000,
                                             .lost_write = 1000,
                                             .misdirected_write = 1000,
                                             .sock_cut = 1000};
    struct env *server, *killer;
    struct client c = {.kib = 500};
    uint64_t digest;

    sim = sim_new(seed);
    sim_set_faults(sim, &faults);
    server = sim_process(sim, "server", server_main, &server);
    c.env = sim_process(sim, "client", client_main, &c);
    victim = sim_process(sim, "victim", busy_main, &victim);
    killer = sim_process(sim, "killer", killer_main, &killer);
    assert_false(sim_run(sim, sim_now(sim) + 100 * ENV_NS_PER_MS));
    assert_true(sim_process_ended(killer));
    digest = sim_digest(sim);
    sim_free(sim); /* kills what runs; the leak checker sees what stays */
    return digest;
}

static void test_determinism(void **state)
{
    uint64_t first = busy_run(1);

    (void)state;
    for (uint64_t seed = 1; seed < 8; seed++) {
        void *shift = mem_alloc(100 * seed); /* other addresses */
        uint64_t digest = busy_run(seed);

        assert_int_equal(digest, busy_run(seed));
        assert_true((digest == first) == (seed == 1));
        mem_free(shift);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_basics),
        cmocka_unit_test(test_power_cut_loses_and_tears),
        cmocka_unit_test(test_kill_keeps_written),
        cmocka_unit_test(test_sync_makes_durable),
        cmocka_unit_test(test_sync_is_nothing_before_it_completes),
        cmocka_unit_test(test_sync_covers_what_was_done),
        cmocka_unit_test(test_write_in_flight_may_tear),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_lying_drive),
        cmocka_unit_test(test_corrupt),
        cmocka_unit_test(test_wrapped),
        cmocka_unit_test(test_sockets),
        cmocka_unit_test(test_peer_killed),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_listener_close),
        cmocka_unit_test(test_offload),
        cmocka_unit_test(test_stop_and_until),
        cmocka_unit_test(test_until),
        cmocka_unit_test(test_determinism),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* lib/rt: the io_uring env. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env_uring.h"
#include "lib/rt/sync.h"

#define UNIT 4096u

static struct env *env;
static char dir[64];

static void run(fiber_fn fn, void *arg)
{
    const struct env_uring_options o = {.queue_depth = 8};

    assert_int_equal(env_uring_new(&o, &env), 0);
    env_run(env, fn, arg);
    env_free(env);
}

static const char *path(const char *name)
{
    static char buf[4][160];
    static unsigned i;
    char *p = buf[i++ % 4];

    snprintf(p, sizeof(buf[0]), "%s/%s", dir, name);
    return p;
}

/* ---- Files ---- */

static uint8_t *unit(uint8_t value)
{
    uint8_t *buf = mem_alloc_aligned(4096, UNIT);

    memset(buf, value, UNIT);
    return buf;
}

static bool all(const uint8_t *buf, size_t n, uint8_t value)
{
    for (size_t i = 0; i < n; i++)
        if (buf[i] != value)
            return false;
    return true;
}

static void files_main(void *arg)
{
    const char *dir_of_file = arg;
    struct env_file *f, *g;
    uint8_t *buf = unit(7);
    char name[200];
    uint64_t size = 0;
    struct env_io io = {.kind = ENV_READ, .buf = buf, .len = UNIT};

    snprintf(name, sizeof(name), "%s/f", dir_of_file);
    assert_int_equal(env_open(env, name, 0, &f), ERR_NOENT);
    assert_int_equal(env_open(env, name, ENV_OPEN_CREATE | ENV_OPEN_EXCL | ENV_OPEN_DIRECT, &f), 0);
    assert_int_equal(env_open(env, name, ENV_OPEN_CREATE | ENV_OPEN_EXCL, &g), ERR_EXIST);
    assert_int_equal(env_open(env, name, ENV_OPEN_RDONLY, &g), 0);
    assert_int_equal(env_pwrite(f, buf, UNIT, UNIT, true), 0);
    assert_int_equal(env_sync(f), 0);
    assert_int_equal(env_file_size(g, &size), 0);
    assert_int_equal(size, 2 * UNIT);
    memset(buf, 1, UNIT);
    assert_int_equal(env_pread(g, buf, UNIT, 0), 0);
    assert_true(all(buf, UNIT, 0));
    assert_int_equal(env_pread(f, buf, UNIT, UNIT), 0);
    assert_true(all(buf, UNIT, 7));
    assert_int_equal(env_pwrite(g, buf, UNIT, 0, false), ERR_READONLY);
    assert_int_equal(env_pread(f, buf, UNIT, 512), ERR_INVAL); /* direct */
    assert_int_equal(env_pread(f, buf, UNIT, UINT64_MAX - 4095), ERR_RANGE);
    /* Short reads, of both kinds. */
    io.file = g;
    io.off = 2 * UNIT - 10;
    assert_int_equal(env_io_run(&io, 1), ERR_TRUNCATED);
    assert_int_equal(io.result, 10);
    assert_int_equal(env_resize(f, UNIT + 700), 0);
    io.file = f;
    io.off = UNIT;
    assert_int_equal(env_io_run(&io, 1), ERR_TRUNCATED);
    assert_int_equal(io.result, 700);
    io.off = 8 * UNIT;
    assert_int_equal(env_io_run(&io, 1), ERR_TRUNCATED);
    assert_int_equal(io.result, 0);
    assert_int_equal(env_resize(f, 4 * UNIT), 0);
    memset(buf, 9, UNIT);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(env_pwrite(f, buf, UNIT, i * UNIT, false), 0);
    assert_int_equal(env_trim(f, UNIT, 2 * UNIT), 0);
    assert_int_equal(env_trim(f, UNIT, 0), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(env_pread(f, buf, UNIT, i * UNIT), 0);
        assert_true(all(buf, UNIT, i == 0 || i == 3 ? 9 : 0));
    }
    env_close(g);
    env_close(f);
    env_close(NULL);
    assert_int_equal(env_unlink(env, name), 0);
    assert_int_equal(env_unlink(env, name), ERR_NOENT);
    mem_free(buf);
}

static void test_files(void **state)
{
    (void)state;
    run(files_main, dir);
}

/* A block device made of a file; -1 where there may be none. */
static int loop_attach(int backing, char *ret_path, size_t len)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), loop = -1;
    int n = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);

    if (control >= 0)
        (void)close(control);
    if (n < 0)
        return -1;
    snprintf(ret_path, len, "/dev/loop%d", n);
    loop = open(ret_path, O_RDWR | O_CLOEXEC);
    if (loop < 0 || ioctl(loop, LOOP_SET_FD, backing) == 0)
        return loop;
    (void)close(loop);
    return -1;
}

/* The kernel makes a disk that was pulled out one of no bytes, which has "no space" for writes. */
static void pulled_out_main(void *arg)
{
    int *fds = arg; /* the loop device, and the file under it */
    struct env_file *f;
    uint8_t *buf = unit(7);

    assert_int_equal(env_open(env, path("disk"), ENV_OPEN_DIRECT, &f), 0);
    assert_int_equal(env_pwrite(f, buf, UNIT, UNIT, true), 0);
    assert_int_equal(ftruncate(fds[1], 0), 0);
    assert_int_equal(ioctl(fds[0], LOOP_SET_CAPACITY, 0), 0);
    assert_int_equal(env_pwrite(f, buf, UNIT, UNIT, true), ERR_IO);
    assert_int_equal(env_pread(f, buf, UNIT, UNIT), ERR_TRUNCATED);
    env_close(f);
    mem_free(buf);
}

static void test_pulled_out(void **state)
{
    char device[40];
    int fds[2];

    (void)state;
    fds[1] = open(path("backing"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fds[1] >= 0 && ftruncate(fds[1], 64 * UNIT) == 0);
    fds[0] = loop_attach(fds[1], device, sizeof(device));
    if (fds[0] < 0) {
        print_message("no loop device can be made: root and /dev/loop-control are needed\n");
        (void)close(fds[1]);
        (void)unlink(path("backing"));
        skip();
    }
    assert_int_equal(symlink(device, path("disk")), 0);
    run(pulled_out_main, fds);
    (void)ioctl(fds[0], LOOP_CLR_FD, 0);
    (void)close(fds[0]);
    (void)close(fds[1]);
    (void)unlink(path("disk"));
    (void)unlink(path("backing"));
}

/* tmpfs knows no direct I/O (until recently) and its files are the same all the same. */
static void test_files_tmpfs(void **state)
{
    char shm[] = "/dev/shm/filmroom-rt-XXXXXX";

    (void)state;
    if (!mkdtemp(shm))
        skip();
    run(files_main, shm);
    assert_int_equal(rmdir(shm), 0);
}

static void names_main(void *arg)
{
    struct env_file *f, *g;

    (void)arg;
    assert_int_equal(env_mkdir(env, path("d")), 0);
    assert_int_equal(env_mkdir(env, path("d")), 0);
    assert_int_equal(env_mkdir(env, path("no/d")), ERR_NOENT);
    assert_int_equal(env_open(env, path("d/f"), ENV_OPEN_CREATE | ENV_OPEN_LOCK, &f), 0);
    assert_int_equal(env_mkdir(env, path("d/f")), ERR_EXIST);
    assert_int_equal(env_open(env, path("d/f"), ENV_OPEN_LOCK, &g), ERR_LOCKED);
    assert_int_equal(env_open(env, path("d/f"), 0, &g), 0);
    env_close(g);
    env_close(f);
    assert_int_equal(env_open(env, path("d/f"), ENV_OPEN_LOCK, &f), 0);
    env_close(f);
}

static void test_names(void **state)
{
    (void)state;
    run(names_main, NULL);
}

/* Pages of the file that wait to be written; false where the kernel cannot tell (before 6.5). */
static bool dirty_pages(const char *name, uint64_t *ret_dirty)
{
    enum { SYS_CACHESTAT = 451 };
    uint64_t range[2] = {0, 0}, stat[5] = {0}; /* ret: cached, dirty, under writeback, ... */
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    long r;

    assert_true(fd >= 0);
    r = syscall(SYS_CACHESTAT, fd, range, stat, 0);
    close(fd);
    *ret_dirty = stat[1] + stat[2];
    return r == 0;
}

static void durable_main(void *arg)
{
    struct env_file *f;
    uint8_t *buf = unit(1);
    uint64_t dirty;
    bool *told = arg;

    assert_int_equal(env_open(env, path("durable"), ENV_OPEN_CREATE, &f), 0);
    assert_int_equal(env_pwrite(f, buf, UNIT, 0, false), 0);
    *told = dirty_pages(path("durable"), &dirty);
    if (*told) {
        assert_int_equal(dirty, 1);
        assert_int_equal(env_sync(f), 0);
        dirty_pages(path("durable"), &dirty);
        assert_int_equal(dirty, 0);
        assert_int_equal(env_pwrite(f, buf, UNIT, UNIT, true), 0);
        dirty_pages(path("durable"), &dirty);
        assert_int_equal(dirty, 0);
    }
    env_close(f);
    mem_free(buf);
}

static void test_durable(void **state)
{
    bool told = false;

    (void)state;
    run(durable_main, &told);
    if (!told)
        skip();
}

/* Many more operations than may be in flight, from fibers and from callbacks. */
enum { MANY = 3000, DEEP = 300 };
static unsigned completed;
static struct env_file *deep_file;

static void deep_done(struct env_io *io)
{
    assert_null(fiber_self());
    assert_int_equal(io->result, UNIT);
    completed++;
    if (io->kind == ENV_WRITE) { /* read it back from the callback */
        memset(io->buf, 0, UNIT);
        io->kind = ENV_READ;
        env_io_start(io, 1);
    }
}

static void deep_main(void *arg)
{
    struct env_io *ios = mem_calloc(DEEP, sizeof(*ios));
    uint8_t *buf = mem_alloc_aligned(4096, DEEP * UNIT);

    (void)arg;
    assert_int_equal(env_open(env, path("deep"), ENV_OPEN_CREATE | ENV_OPEN_DIRECT, &deep_file), 0);
    for (unsigned i = 0; i < DEEP; i++) {
        ios[i] = (struct env_io){.kind = ENV_WRITE,
                                 .file = deep_file,
                                 .buf = buf + i * UNIT,
                                 .len = UNIT,
                                 .off = (uint64_t)i * UNIT,
                                 .done = deep_done};
        memset(ios[i].buf, (int)(i & 255), UNIT);
    }
    env_io_start(ios, DEEP);
    while (completed < 2 * DEEP)
        fiber_yield();
    for (unsigned i = 0; i < DEEP; i++)
        assert_true(all(buf + i * UNIT, UNIT, (uint8_t)i));
    env_close(deep_file);
    mem_free(buf);
    mem_free(ios);
}

static void test_deep(void **state)
{
    (void)state;
    completed = 0;
    run(deep_main, NULL);
}

static void reader(void *arg)
{
    uint8_t *buf = unit(0);

    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(env_pread(arg, buf, UNIT, (i % 4) * UNIT), 0);
        completed++;
    }
    mem_free(buf);
}

static void readers_main(void *arg)
{
    struct env_file *f;
    uint8_t *buf = unit(1);

    (void)arg;
    assert_int_equal(env_open(env, path("readers"), ENV_OPEN_CREATE, &f), 0);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(env_pwrite(f, buf, UNIT, i * UNIT, false), 0);
    for (unsigned i = 0; i < MANY / 20; i++)
        fiber_spawn(env, "reader", reader, f);
    while (completed < MANY)
        env_sleep(env, ENV_NS_PER_MS);
    env_close(f);
    mem_free(buf);
}

static void test_readers(void **state)
{
    (void)state;
    completed = 0;
    run(readers_main, NULL);
}

/* ---- Sockets ---- */

static struct env_listener *listener;
static struct env_addr listen_addr;

static void echo_fiber(void *arg)
{
    struct env_sock *s = arg;
    uint8_t *buf = mem_alloc(50000);
    int64_t n;

    while ((n = env_recv(s, buf, 50000)) > 0) {
        struct iovec iov[3] = {{buf, 1}, {buf, 0}, {buf + 1, (size_t)n - 1}};

        assert_int_equal(env_send(s, iov, 3), 0);
    }
    assert_int_equal(n, 0);
    env_sock_close(s);
    mem_free(buf);
}

static void server_fiber(void *arg)
{
    struct env_sock *s;
    int r;

    (void)arg;
    while ((r = env_accept(listener, &s)) == 0)
        fiber_spawn(env, "echo", echo_fiber, s);
    assert_int_equal(r, ERR_CANCELED);
    completed++;
}

enum { STREAM = 3000000 };

static void stream_fiber(void *arg)
{
    enum { PARTS = 1500 }; /* more than one sendmsg takes */
    struct iovec *iov = mem_calloc(PARTS, sizeof(*iov));
    uint8_t *buf = mem_alloc(STREAM);

    for (unsigned i = 0; i < STREAM; i++)
        buf[i] = (uint8_t)(i % 251);
    for (unsigned i = 0; i < PARTS; i++)
        iov[i] = (struct iovec){buf + i * (STREAM / PARTS), STREAM / PARTS};
    assert_int_equal(env_send(arg, iov, PARTS), 0);
    mem_free(buf);
    mem_free(iov);
    completed++;
}

static void client_fiber(void *arg)
{
    struct env_sock *s;
    uint8_t *buf = mem_alloc(70000);
    unsigned got = 0;

    (void)arg;
    assert_int_equal(env_connect(env, &listen_addr, &s), 0);
    fiber_spawn(env, "stream", stream_fiber, s);
    while (got < STREAM) {
        int64_t n = env_recv(s, buf, 70000);

        assert_true(n > 0);
        for (int64_t i = 0; i < n; i++)
            assert_int_equal(buf[i], (got + (unsigned)i) % 251);
        got += (unsigned)n;
    }
    env_sock_close(s);
    mem_free(buf);
    completed++;
}

static void sockets_main(void *arg)
{
    struct env_listener *second;

    assert_int_equal(env_listen(env, arg, 16, &listener), 0);
    assert_int_equal(env_listener_addr(listener, &listen_addr), 0);
    assert_int_equal(env_listen(env, &listen_addr, 16, &second), ERR_ADDR);
    fiber_spawn(env, "server", server_fiber, NULL);
    for (int i = 0; i < 2; i++)
        fiber_spawn(env, "client", client_fiber, NULL);
    while (completed < 4)
        env_sleep(env, ENV_NS_PER_MS);
    env_listener_close(listener);
}

static void test_sockets(void **state)
{
    struct env_addr addrs[3] = {{"tcp:127.0.0.1:0"}, {"tcp:[::1]:0"}};

    (void)state;
    snprintf(addrs[2].text, sizeof(addrs[2].text), "unix:%s/s", dir);
    for (int i = 0; i < 3; i++) {
        completed = 0;
        run(sockets_main, &addrs[i]);
        assert_int_equal(completed, 5);
    }
    assert_int_not_equal(access(addrs[2].text + 5, F_OK), 0); /* taken away with the listener */
}

static void shut_reader(void *arg)
{
    char c;

    assert_int_equal(env_recv(arg, &c, 1), 0);
    completed++;
}

static void shut_writer(void *arg)
{
    uint8_t *buf = mem_zalloc(1 << 20);
    int r;

    do { /* nobody reads, so one of these waits */
        struct iovec iov = {buf, 1 << 20};

        r = env_send(arg, &iov, 1);
    } while (r == 0);
    assert_int_equal(r, ERR_CLOSED);
    mem_free(buf);
    completed++;
}

static void endings_main(void *arg)
{
    struct env_sock *a, *b;
    struct env_addr none;
    char c = 'x';
    struct iovec iov = {&c, 1};

    assert_int_equal(env_listen(env, arg, 16, &listener), 0);
    assert_int_equal(env_listener_addr(listener, &listen_addr), 0);
    assert_int_equal(env_connect(env, &listen_addr, &a), 0);
    assert_int_equal(env_accept(listener, &b), 0);
    assert_int_equal(env_sock_peer(a, &none), 0);
    if (strncmp(listen_addr.text, "tcp:", 4) == 0)
        assert_string_equal(none.text, listen_addr.text);
    else
        assert_non_null(strstr(none.text, "unix:pid="));
    fiber_spawn(env, "reader", shut_reader, a);
    fiber_spawn(env, "writer", shut_writer, a);
    env_sleep(env, 20 * ENV_NS_PER_MS);
    assert_int_equal(completed, 0);
    env_sock_shutdown(a);
    env_sleep(env, 20 * ENV_NS_PER_MS);
    assert_int_equal(completed, 2);
    env_sock_close(a);
    while (env_send(b, &iov, 1) == 0)
        env_sleep(env, ENV_NS_PER_MS); /* to one who has gone */
    env_sock_close(b);
    env_sock_close(NULL);
    none = listen_addr;
    env_listener_close(listener);
    assert_true(env_connect(env, &none, &a) < 0);
}

static void test_endings(void **state)
{
    struct env_addr addrs[2] = {{"tcp:127.0.0.1:0"}};

    (void)state;
    snprintf(addrs[1].text, sizeof(addrs[1].text), "unix:%s/s", dir);
    for (int i = 0; i < 2; i++) {
        completed = 0;
        run(endings_main, &addrs[i]);
        assert_int_equal(completed, 2);
    }
}

static void addrs_main(void *arg)
{
    static const struct env_addr bad[] = {
        {""},           {"tcp:"},          {"tcp:localhost:1"},   {"tcp:127.0.0.1"},
        {"unix:"},      {"tcp:1.2.3.4:"},  {"tcp:1.2.3.4:65536"}, {"tcp:1.2.3.4:-1"},
        {"tcp:[::1:1"}, {"udp:1.2.3.4:1"}, {"tcp:1.2.3.4:1x"},
    };
    struct env_listener *l;
    struct env_sock *s;
    struct env_addr stale, endless;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un un = {.sun_family = AF_UNIX};

    (void)arg;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(env_listen(env, &bad[i], 1, &l), ERR_INVAL);
        assert_int_equal(env_connect(env, &bad[i], &s), ERR_INVAL);
    }
    memset(&endless, 'a', sizeof(endless));
    memcpy(&endless, "unix:/", 6);
    assert_int_equal(env_listen(env, &endless, 1, &l), ERR_INVAL);
    /* A socket file of a daemon that was killed. */
    snprintf(un.sun_path, sizeof(un.sun_path), "%s/stale", dir);
    assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
    close(fd);
    snprintf(stale.text, sizeof(stale.text), "unix:%s/stale", dir);
    assert_int_equal(env_connect(env, &stale, &s), ERR_CLOSED);
    assert_int_equal(env_listen(env, &stale, 1, &l), 0);
    env_listener_close(l);
    assert_int_equal(env_connect(env, &stale, &s), ERR_NOENT);
}

static void test_addresses(void **state)
{
    (void)state;
    run(addrs_main, NULL);
}

/* ---- Other threads ---- */

static void double_it(void *arg)
{
    assert_null(fiber_self());
    *(int *)arg *= 2;
}

static void burn(void *arg)
{
    usleep(100 * (useconds_t)(uintptr_t)arg);
}

static void burnt(void *arg)
{
    (void)arg;
    assert_null(fiber_self());
    completed++;
}

static void offload_main(void *arg)
{
    int n = 21;

    (void)arg;
    env_offload(env, ENV_LANE_CPU, double_it, &n);
    assert_int_equal(n, 42);
    assert_int_equal(env_lane_width(env, ENV_LANE_KV), 2);
    for (uintptr_t i = 0; i < 100; i++)
        env_offload_start(env, i % 2 ? ENV_LANE_CPU : ENV_LANE_KV, burn, burnt, (void *)(i % 5));
    for (int i = 0; i < 1000; i++) {
        n = i;
        env_offload(env, ENV_LANE_CPU, double_it, &n);
        assert_int_equal(n, 2 * i);
    }
    /* The loop waits for what is still on its way. */
}

static void test_offload(void **state)
{
    (void)state;
    completed = 0;
    run(offload_main, NULL);
    assert_int_equal(completed, 100);
}

static void call_fn(void *arg)
{
    assert_non_null(fiber_self());
    env_sleep(env, 10000);
    ++*(unsigned *)arg;
}

static void thread_fn(void *arg)
{
    unsigned calls = 0;
    sigset_t blocked;

    (void)arg;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    if (!sigismember(&blocked, SIGTERM))
        return;
    for (unsigned i = 0; i < 50; i++)
        if (env_call(env, "call", call_fn, &calls) < 0)
            return;
    if (calls == 50)
        env_post(env, "post", call_fn, &completed);
}

static void threads_main(void *arg)
{
    (void)arg;
    for (int i = 0; i < 5; i++)
        assert_int_equal(env_thread(env, "foreign", thread_fn, NULL), 0);
    /* main ends before they do */
}

static void test_threads(void **state)
{
    const struct env_uring_options o = {0};

    (void)state;
    completed = 0;
    assert_int_equal(env_uring_new(&o, &env), 0);
    env_run(env, threads_main, NULL);
    assert_int_equal(completed, 5);
    assert_int_equal(env_post(env, "late", call_fn, &completed), ERR_SHUTDOWN);
    assert_int_equal(env_call(env, "late", call_fn, &completed), ERR_SHUTDOWN);
    assert_int_equal(env_thread(env, "late", thread_fn, NULL), ERR_SHUTDOWN);
    assert_int_equal(completed, 5);
    env_run(env, threads_main, NULL); /* and once more */
    assert_int_equal(completed, 10);
    env_free(env);
}

static void slow_thread_fn(void *arg)
{
    (void)arg;
    usleep(300000);
}

static void slow_threads_main(void *arg)
{
    assert_int_equal(env_thread(env, "slow", slow_thread_fn, arg), 0);
}

/* A loop that only waits for threads sleeps. */
static void test_end_sleeps(void **state)
{
    struct timespec before, after;

    (void)state;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    run(slow_threads_main, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    assert_true((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec <
                100000000);
}

/* An idle loop is woken by posts, however they fall. */
static void poster_fn(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < 2000; i++) {
        if (env_post(env, "post", call_fn, &completed) < 0)
            return;
        if (i % 64 == 0)
            usleep(200);
    }
}

static void posts_main(void *arg)
{
    for (int i = 0; i < 2; i++)
        assert_int_equal(env_thread(env, "poster", poster_fn, arg), 0);
}

static void test_posts(void **state)
{
    (void)state;
    completed = 0;
    run(posts_main, NULL);
    assert_int_equal(completed, 4000);
}

/* ---- The stop ---- */

static void stop_fiber(void *arg)
{
    (void)arg;
    env_wait_stop(env);
    completed++;
}

static void killer_fn(void *arg)
{
    usleep(20000);
    kill(getpid(), *(int *)arg);
}

static void stop_main(void *arg)
{
    for (int i = 0; i < 3; i++)
        fiber_spawn(env, "stop", stop_fiber, NULL);
    assert_int_equal(env_thread(env, "killer", killer_fn, arg), 0);
    env_wait_stop(env);
    env_wait_stop(env); /* returns at once */
}

static void test_stop(void **state)
{
    int signals[] = {SIGTERM, SIGINT};
    sigset_t blocked;

    (void)state;
    for (int i = 0; i < 2; i++) {
        completed = 0;
        run(stop_main, &signals[i]);
        assert_int_equal(completed, 3);
    }
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    assert_false(sigismember(&blocked, SIGTERM)); /* as it was */
}

static void test_keep_signals(void **state)
{
    const struct env_uring_options o = {.keep_signals = true};
    sigset_t blocked;

    (void)state;
    assert_int_equal(env_uring_new(&o, &env), 0);
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    assert_false(sigismember(&blocked, SIGTERM));
    env_free(env);
    assert_int_equal(env_uring_new(&(struct env_uring_options){.queue_depth = 1u << 20}, &env),
                     ERR_INVAL);
}

/* ---- What is never answered ---- */

#define NEVER 6u

static struct env_io never[2 * NEVER];
static uint8_t never_bytes[2 * NEVER][16];
static unsigned never_done;

static void never_answered(struct env_io *io)
{
    (void)io;
    never_done++;
}

/* Reads of a pipe that nobody writes to. */
static struct env_file *never_start(const char *name, unsigned first)
{
    struct env_file *f;

    assert_int_equal(mkfifo(path(name), 0600), 0);
    assert_int_equal(env_open(env, path(name), 0, &f), 0);
    for (unsigned i = first; i < first + NEVER; i++) {
        never[i] = (struct env_io){
            .kind = ENV_READ, .file = f, .buf = never_bytes[i], .len = 1, .done = never_answered};
        env_io_start(&never[i], 1);
    }
    return f;
}

static void forsake_main(void *arg)
{
    struct env_file *a = never_start("a", 0), *b = never_start("b", NEVER), *f;
    uint8_t *buf = unit(3);
    int fd = open(path("a"), O_RDWR | O_CLOEXEC);

    (void)arg;
    /* More than the ring takes is asked of these two: others still get through. */
    assert_int_equal(env_open(env, path("file"), ENV_OPEN_CREATE, &f), 0);
    assert_int_equal(env_pwrite(f, buf, UNIT, 0, true), 0);
    env_forsake(a);
    env_forsake(b);
    assert_int_equal(env_pread(f, buf, UNIT, 0), 0);
    env_sleep(env, 20 * ENV_NS_PER_MS);
    assert_int_equal(never_done, 0);
    assert_int_equal(write(fd, "123456", NEVER), NEVER); /* at last */
    while (never_done < NEVER)
        env_sleep(env, ENV_NS_PER_MS);
    env_close(f);
    close(fd);
    mem_free(buf);
}

/* The end waits for neither; that the file of the first was closed shows in the sanitizer's. */
static void test_forsake(void **state)
{
    (void)state;
    never_done = 0;
    run(forsake_main, NULL);
    assert_int_equal(never_done, NEVER);
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/filmroom-rt-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[128];

    (void)state;
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files),      cmocka_unit_test(test_files_tmpfs),
        cmocka_unit_test(test_names),      cmocka_unit_test(test_durable),
        cmocka_unit_test(test_deep),       cmocka_unit_test(test_readers),
        cmocka_unit_test(test_sockets),    cmocka_unit_test(test_endings),
        cmocka_unit_test(test_addresses),  cmocka_unit_test(test_offload),
        cmocka_unit_test(test_threads),    cmocka_unit_test(test_end_sleeps),
        cmocka_unit_test(test_pulled_out), cmocka_unit_test(test_posts),
        cmocka_unit_test(test_stop),       cmocka_unit_test(test_keep_signals),
        cmocka_unit_test(test_forsake),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

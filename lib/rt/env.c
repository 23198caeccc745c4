/* The public calls of env.h: most go straight to a vtable, some are built on another call. */
#include "lib/rt/env.h"

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/rt/env_priv.h"

uint64_t env_now(struct env *env)
{
    return env->ops->now(env);
}

uint64_t env_wallclock(struct env *env)
{
    return env->ops->wallclock(env);
}

void env_random(struct env *env, void *buf, size_t n)
{
    env->ops->random(env, buf, n);
}

/* ---- Files --------------------------------------------------------------------------------------
 */

int env_open(struct env *env, const char *path, unsigned flags, struct env_file **ret_file)
{
    struct env_file *f;
    int r = env->ops->open(env, path, flags, &f);

    if (r < 0)
        return r;
    *ret_file = env->wrap ? env->wrap(env->wrap_arg, path, f) : f;
    return 0;
}

void env_wrap_files(struct env *env,
                    struct env_file *(*wrap)(void *arg, const char *path, struct env_file *file),
                    void *arg)
{
    env->wrap = wrap;
    env->wrap_arg = arg;
}

void env_close(struct env_file *f)
{
    if (f)
        f->ops->close(f);
}

void env_forsake(struct env_file *f)
{
    CHECK(f->ops->forsake != NULL);
    f->ops->forsake(f);
}

int env_file_size(struct env_file *f, uint64_t *ret_size)
{
    return f->ops->size(f, ret_size);
}

uint64_t env_file_cache(struct env_file *f)
{
    return f->ops->cache ? f->ops->cache(f) : 0;
}

int env_mkdir(struct env *env, const char *path)
{
    return env->ops->mkdir(env, path);
}

int env_unlink(struct env *env, const char *path)
{
    return env->ops->unlink(env, path);
}

int env_rename(struct env *env, const char *from, const char *to)
{
    return env->ops->rename(env, from, to);
}

void env_io_start(struct env_io *ios, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        CHECK(ios[i].done != NULL && ios[i].len <= INT64_MAX);
        ios[i].file->ops->start(ios[i].file, &ios[i]);
    }
}

int env_io_check(const struct env_io *io, bool direct, bool readonly)
{
    uint64_t end;

    if (__builtin_add_overflow(io->off, io->len, &end) || end > INT64_MAX)
        return ERR_RANGE;
    if (readonly && io->kind != ENV_READ && io->kind != ENV_SYNC)
        return ERR_READONLY;
    if (direct && (io->kind == ENV_READ || io->kind == ENV_WRITE) &&
        ((io->off | io->len | (uintptr_t)io->buf) & 4095))
        return ERR_INVAL;
    return 0;
}

struct io_wait {
    struct fiber *fiber;
    unsigned pending;
};

static void io_one_done(struct env_io *io)
{
    struct io_wait *w = io->owner;

    if (--w->pending == 0)
        fiber_wake(w->fiber);
}

int env_io_run(struct env_io *ios, unsigned n)
{
    struct io_wait w = {.fiber = fiber_self(), .pending = n};

    for (unsigned i = 0; i < n; i++) {
        ios[i].done = io_one_done;
        ios[i].owner = &w;
    }
    env_io_start(ios, n);
    while (w.pending)
        fiber_suspend("file I/O");
    for (unsigned i = 0; i < n; i++) {
        if (ios[i].result < 0)
            return (int)ios[i].result;
        if (ios[i].kind == ENV_READ && (uint64_t)ios[i].result < ios[i].len)
            return ERR_TRUNCATED;
    }
    return 0;
}

int env_pread(struct env_file *f, void *buf, size_t len, uint64_t off)
{
    struct env_io io = {.kind = ENV_READ, .file = f, .buf = buf, .len = len, .off = off};

    return env_io_run(&io, 1);
}

int env_pwrite(struct env_file *f, const void *buf, size_t len, uint64_t off, bool dsync)
{
    struct env_io io = {.kind = ENV_WRITE,
                        .dsync = dsync,
                        .file = f,
                        .buf = (void *)(uintptr_t)buf,
                        .len = len,
                        .off = off};

    return env_io_run(&io, 1);
}

int env_sync(struct env_file *f)
{
    struct env_io io = {.kind = ENV_SYNC, .file = f};

    return env_io_run(&io, 1);
}

int env_trim(struct env_file *f, uint64_t off, uint64_t len)
{
    struct env_io io = {.kind = ENV_TRIM, .file = f, .off = off, .len = len};

    return env_io_run(&io, 1);
}

int env_reserve(struct env_file *f, uint64_t off, uint64_t len)
{
    struct env_io io = {.kind = ENV_RESERVE, .file = f, .off = off, .len = len};

    return env_io_run(&io, 1);
}

int env_resize(struct env_file *f, uint64_t size)
{
    struct env_io io = {.kind = ENV_RESIZE, .file = f, .off = size};

    return env_io_run(&io, 1);
}

/* ---- Sockets ------------------------------------------------------------------------------------
 */

int env_listen(struct env *env, const struct env_addr *addr, unsigned backlog,
               struct env_listener **ret_listener)
{
    return env->ops->listen(env, addr, backlog, ret_listener);
}

int env_listener_addr(struct env_listener *l, struct env_addr *ret_addr)
{
    return l->ops->addr(l, ret_addr);
}

int env_accept(struct env_listener *l, struct env_sock **ret_sock)
{
    return l->ops->accept(l, ret_sock);
}

void env_listener_close(struct env_listener *l)
{
    if (l)
        l->ops->close(l);
}

int env_connect(struct env *env, const struct env_addr *addr, struct env_sock **ret_sock)
{
    return env->ops->connect(env, addr, ret_sock);
}

int64_t env_recv(struct env_sock *s, void *buf, size_t len)
{
    CHECK(len > 0);
    return s->ops->recv(s, buf, len);
}

int env_send(struct env_sock *s, struct iovec *iov, unsigned n)
{
    return s->ops->send(s, iov, n);
}

void env_sock_shutdown(struct env_sock *s)
{
    s->ops->shutdown(s);
}

int env_sock_peer(struct env_sock *s, struct env_addr *ret_addr)
{
    return s->ops->peer ? s->ops->peer(s, ret_addr) : ERR_UNSUPPORTED;
}

void env_sock_close(struct env_sock *s)
{
    if (s)
        s->ops->close(s);
}

/* ---- Other threads ------------------------------------------------------------------------------
 */

struct offload_wait {
    struct env_task task;
    struct fiber *fiber;
    void (*fn)(void *arg);
    void *arg;
    bool done;
};

static void offload_fn(void *arg)
{
    struct offload_wait *w = arg;

    w->fn(w->arg);
}

static void offload_wake(void *arg)
{
    struct offload_wait *w = arg;

    w->done = true;
    fiber_wake(w->fiber);
}

void env_offload(struct env *env, enum env_lane lane, void (*fn)(void *arg), void *arg)
{
    struct offload_wait w = {
        .task = {.fn = offload_fn, .done = offload_wake, .arg = &w, .lane = (int)lane},
        .fiber = fiber_self(),
        .fn = fn,
        .arg = arg,
    };

    env->ops->offload(env, &w.task);
    while (!w.done)
        fiber_suspend("offload");
}

struct offload_free {
    struct env_task task;
    void (*fn)(void *arg);
    void (*done)(void *arg);
    void *arg;
};

static void offload_free_fn(void *arg)
{
    struct offload_free *o = arg;

    o->fn(o->arg);
}

static void offload_free_done(void *arg)
{
    struct offload_free *o = arg;
    void (*done)(void *) = o->done;
    void *done_arg = o->arg;

    mem_free(o);
    done(done_arg);
}

void env_offload_start(struct env *env, enum env_lane lane, void (*fn)(void *arg),
                       void (*done)(void *arg), void *arg)
{
    struct offload_free *o = mem_alloc(sizeof(*o));

    o->task = (struct env_task){
        .fn = offload_free_fn, .done = offload_free_done, .arg = o, .lane = (int)lane};
    o->fn = fn;
    o->done = done;
    o->arg = arg;
    env->ops->offload(env, &o->task);
}

unsigned env_lane_width(struct env *env, enum env_lane lane)
{
    return env->ops->lane_width(env, lane);
}

int env_post(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    return env->ops->post(env, name, fn, arg);
}

int env_call(struct env *env, const char *name, fiber_fn fn, void *arg)
{
    return env->ops->call(env, name, fn, arg);
}

struct remote_wait {
    struct env *here;
    struct fiber *fiber;
    fiber_fn fn;
    void *arg;
    bool done;
};

static void remote_done(void *arg)
{
    struct remote_wait *w = arg;

    w->done = true;
    fiber_wake(w->fiber);
}

static void remote_fiber(void *arg)
{
    struct remote_wait *w = arg;

    w->fn(w->arg);
    CHECK_OK(env_post(w->here, "remote-done", remote_done, w)); /* it has a fiber that waits */
}

int env_remote(struct env *here, struct env *there, const char *name, fiber_fn fn, void *arg)
{
    struct remote_wait w = {.here = here, .fiber = fiber_self(), .fn = fn, .arg = arg};
    int rc = 0;

    if (here == there)
        fn(arg);
    else
        rc = env_post(there, name, remote_fiber, &w);
    while (rc == 0 && here != there && !w.done)
        fiber_suspend("another loop");
    return rc;
}

int env_thread(struct env *env, const char *name, void (*fn)(void *arg), void *arg)
{
    return env->ops->thread(env, name, fn, arg);
}

/* ---- Life ---------------------------------------------------------------------------------------
 */

void env_run(struct env *env, fiber_fn main, void *arg)
{
    env->ops->run(env, main, arg);
}

void env_free(struct env *env)
{
    if (env)
        env->ops->free(env);
}

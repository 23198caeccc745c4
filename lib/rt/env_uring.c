/* The io_uring env: the ring, the loop that turns around it, and the life of both.
 *
 * One turn: run the fibers that were ready when it began, the timers that are due, submit what they
 * asked for and take what has completed, take messages of other threads. So all operations that one
 * turn starts cost one system call together, and a busy loop needs no other.
 *
 * The ring is made for one submitting thread that runs its completions itself (SINGLE_ISSUER,
 * DEFER_TASKRUN); where the kernel does not know these flags, without. It stays disabled until
 * env_run, whose thread it then belongs to.
 *
 * Sleep and wake: before it blocks, the loop sets `asleep` and looks at the inbox once more; who
 * adds a message looks at `asleep` afterwards. One of the two sees the other, so no message is
 * slept over, and the bell (an eventfd) is rung only for a loop that may sleep.
 */
#include "lib/rt/env_uring.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/rt/env_priv.h"

#define URING_DEPTH_DEFAULT 1024u
#define URING_DEPTH_MAX     16384u
#define URING_SHARE         4u /* of the depth, a file gets one part in so many */

/* ---- Time and randomness ------------------------------------------------------------------------
 */

static uint64_t uring_clock(clockid_t id)
{
    struct timespec ts;

    CHECK(clock_gettime(id, &ts) == 0);
    return (uint64_t)ts.tv_sec * ENV_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t uring_now(struct env *env)
{
    (void)env;
    return uring_clock(CLOCK_MONOTONIC);
}

static uint64_t uring_wallclock(struct env *env)
{
    (void)env;
    return uring_clock(CLOCK_REALTIME);
}

static void uring_random(struct env *env, void *buf, size_t n)
{
    char *p = buf;

    (void)env;
    while (n) {
        ssize_t got = getrandom(p, n, 0);

        CHECK(got > 0 || errno == EINTR);
        if (got > 0) {
            p += got;
            n -= (size_t)got;
        }
    }
}

/* ---- Operations ---------------------------------------------------------------------------------
 */

void uring_ops_init(struct uring_ops *ops)
{
    ops->head = NULL;
    ops->tail = &ops->head;
}

static void ops_push(struct uring_ops *ops, struct uring_op *op)
{
    op->next = NULL;
    *ops->tail = op;
    ops->tail = &op->next;
}

static struct uring_op *ops_pop(struct uring_ops *ops)
{
    struct uring_op *op = ops->head;

    if (op && (ops->head = op->next) == NULL)
        ops->tail = &ops->head;
    return op;
}

static struct io_uring_sqe *uring_sqe(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe && io_uring_submit(&u->ring) > 0)
        sqe = io_uring_get_sqe(&u->ring);
    return sqe;
}

static bool uring_try_submit(struct uring *u, struct uring_op *op)
{
    struct io_uring_sqe *sqe = uring_sqe(u);

    if (!sqe)
        return false;
    op->prep(op, sqe);
    io_uring_sqe_set_data(sqe, op);
    return true;
}

void uring_submit(struct uring *u, struct uring_op *op)
{
    if (u->deferred.head || !uring_try_submit(u, op))
        ops_push(&u->deferred, op);
}

/* Something has its place in the file's share: now for the ring's. */
static void uring_enter_ring(struct uring *u, struct uring_op *op)
{
    if (u->file_ops >= u->depth) {
        ops_push(&u->waiting, op);
        return;
    }
    u->file_ops++;
    uring_submit(u, op);
}

void uring_submit_file(struct uring *u, struct uring_share *share, struct uring_op *op)
{
    if (share->taken >= (u->depth + URING_SHARE - 1) / URING_SHARE) {
        ops_push(&share->waiting, op);
        return;
    }
    share->taken++;
    uring_enter_ring(u, op);
}

void uring_file_done(struct uring *u, struct uring_share *share)
{
    struct uring_op *op;

    u->file_ops--;
    op = ops_pop(&u->waiting);
    if (op)
        uring_enter_ring(u, op);
    share->taken--;
    op = ops_pop(&share->waiting);
    if (op)
        uring_submit_file(u, share, op);
}

static void uring_submit_deferred(struct uring *u)
{
    while (u->deferred.head && uring_try_submit(u, u->deferred.head))
        ops_pop(&u->deferred);
}

/* The operation itself completes as always, with -ECANCELED or what it had come to. */
void uring_cancel(struct uring *u, struct uring_op *op)
{
    struct io_uring_sqe *sqe = uring_sqe(u);

    CHECK(sqe != NULL);
    io_uring_prep_cancel(sqe, op, 0);
    io_uring_sqe_set_data(sqe, NULL);
}

/* ---- The bell and the signals -------------------------------------------------------------------
 */

static void bell_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct uring *u = LIST_ENTRY(op, struct uring, bell_op);

    io_uring_prep_read(sqe, u->bell, &u->bell_value, sizeof(u->bell_value), 0);
}

static void bell_rang(struct uring_op *op, int res)
{
    struct uring *u = LIST_ENTRY(op, struct uring, bell_op);

    CHECK(res == (int)sizeof(u->bell_value) || res == -EINTR || res == -EAGAIN);
    uring_submit(u, op);
}

static void signal_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct uring *u = LIST_ENTRY(op, struct uring, signal_op);

    io_uring_prep_read(sqe, u->signal_fd, u->signal_info, sizeof(*u->signal_info), 0);
}

static void signal_came(struct uring_op *op, int res)
{
    struct uring *u = LIST_ENTRY(op, struct uring, signal_op);

    if (res == (int)sizeof(*u->signal_info))
        env_stop(&u->env);
    uring_submit(u, op);
}

static int uring_signals_init(struct uring *u)
{
    sigset_t stop;

    signal(SIGPIPE, SIG_IGN);
    if (u->keep_signals)
        return 0;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    /* Blocked before any thread of ours starts: otherwise the kernel may choose that thread. */
    pthread_sigmask(SIG_BLOCK, &stop, &u->signals_before);
    u->signal_fd = signalfd(-1, &stop, SFD_CLOEXEC);
    u->signal_info = mem_zalloc(sizeof(*u->signal_info));
    return u->signal_fd < 0 ? err_from_errno(errno) : 0;
}

static void uring_arm_standing(struct uring *u)
{
    if (u->bell_armed)
        return;
    u->bell_armed = true;
    u->bell_op = (struct uring_op){.prep = bell_prep, .fn = bell_rang};
    uring_submit(u, &u->bell_op);
    if (u->keep_signals)
        return;
    u->signal_op = (struct uring_op){.prep = signal_prep, .fn = signal_came};
    uring_submit(u, &u->signal_op);
}

/* ---- The loop -----------------------------------------------------------------------------------
 */

/* Submits and lets completions come in, waiting for one at most `timeout`. Interruptions and a full
 * completion queue sort themselves out in the next turn. */
static void uring_enter(struct uring *u, uint64_t timeout)
{
    struct __kernel_timespec ts;
    struct io_uring_cqe *cqe;
    int r = 0;

    if (timeout && io_uring_cq_ready(&u->ring) == 0) {
        ts.tv_sec = (long long)(timeout / ENV_NS_PER_S);
        ts.tv_nsec = (long long)(timeout % ENV_NS_PER_S);
        r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, timeout == ENV_FOREVER ? NULL : &ts,
                                             NULL);
    } else if (io_uring_sq_ready(&u->ring)) {
        r = io_uring_submit_and_get_events(&u->ring);
    } else if (*u->ring.sq.kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) {
        r = io_uring_get_events(&u->ring);
    }
    CHECK(r >= 0 || r == -ETIME || r == -EINTR || r == -EAGAIN || r == -EBUSY);
}

static void uring_reap(struct uring *u)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        struct uring_op *op = io_uring_cqe_get_data(cqe);

        n++;
        if (op)
            op->fn(op, cqe->res);
    }
    io_uring_cq_advance(&u->ring, n);
}

static bool uring_idle(const struct uring *u)
{
    return u->env.fiber_count == 0 && u->asked == u->forsaken && u->tasks == 0;
}

static void uring_turn(struct uring *u)
{
    struct env *env = &u->env;
    uint64_t timeout = ENV_FOREVER;

    env->watch_at = 0;
    for (size_t n = env->ready_count; n; n--)
        fiber_step(env);
    if (env->timer_count) {
        uint64_t now = uring_now(env);

        while (env_timers_step(env, now))
            ;
        if (env->timer_count)
            timeout = env_timers_next(env) - now;
    }
    uring_submit_deferred(u);
    if (env->ready_count || u->deferred.head || (uring_idle(u) && !uring_has_threads(u)))
        timeout = 0; /* there is something to do, or this is the end */
    if (timeout) {
        atomic_store(&u->asleep, true);
        if (uring_inbox_pending(u))
            timeout = 0;
    }
    uring_enter(u, timeout);
    atomic_store_explicit(&u->asleep, false, memory_order_relaxed);
    uring_reap(u);
    uring_inbox_drain(u);
}

/* liburing 2.3 declares io_uring_enable_rings and does not export it. */
static void uring_enable(struct uring *u)
{
    if (u->ring_disabled)
        CHECK(syscall(SYS_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
                      0) == 0);
    u->ring_disabled = false;
}

/* What the kernel cannot start without blocking goes to threads of its own, by default four to a
 * core: a drive that hangs would keep them all, and with them everybody else. They are made only
 * when needed. Where that cannot be set it stays as it is. */
static void uring_widen(struct uring *u)
{
    unsigned most[2] = {(u->depth + 1) / 2, 0}; /* for files; for the rest: as it is */

    (void)io_uring_register_iowq_max_workers(&u->ring, most);
}

static void uring_run(struct env *env, fiber_fn main, void *arg)
{
    struct uring *u = uring_of(env);

    CHECK(!u->running && fiber_self() == NULL);
    u->running = true;
    u->loop_thread = pthread_self();
    uring_enable(u);
    uring_widen(u);
    uring_inbox_reopen(u);
    uring_arm_standing(u);
    env->main = fiber_make(env, "main", main, arg);
    for (;;) {
        uring_turn(u);
        if (uring_idle(u) && uring_inbox_end(u))
            break;
    }
    while (atomic_load(&u->posters)) /* on its way out of uring_push, which still looks at us */
        sched_yield();
    u->running = false;
}

/* ---- Life ---------------------------------------------------------------------------------------
 */

static int uring_ring_init(struct uring *u)
{
    static const unsigned tries[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    int r = -ENOSYS;

    for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
        struct io_uring_params p = {.flags = tries[i] | IORING_SETUP_CQSIZE,
                                    .cq_entries = 4 * u->depth};

        if (p.flags & IORING_SETUP_DEFER_TASKRUN)
            p.flags |= IORING_SETUP_TASKRUN_FLAG;
        r = io_uring_queue_init_params(u->depth, &u->ring, &p);
        if (r < 0)
            continue;
        if (!(p.features & IORING_FEAT_NODROP) || !(p.features & IORING_FEAT_EXT_ARG)) {
            io_uring_queue_exit(&u->ring);
            return ERR_UNSUPPORTED;
        }
        u->ring_disabled = p.flags & IORING_SETUP_R_DISABLED;
        return 0;
    }
    return r == -ENOMEM ? ERR_NOMEM : ERR_UNSUPPORTED;
}

static void uring_free(struct env *env)
{
    struct uring *u = uring_of(env);

    CHECK(!u->running);
    uring_lanes_free(u);
    if (u->ring.ring_fd > 0)
        io_uring_queue_exit(&u->ring);
    if (u->bell >= 0)
        close(u->bell);
    if (u->signal_fd >= 0) {
        close(u->signal_fd);
        pthread_sigmask(SIG_SETMASK, &u->signals_before, NULL);
    }
    mem_free(u->signal_info);
    pthread_mutex_destroy(&u->life);
    env_fini(env);
    fiber_pool_free(&u->pool);
    mem_free(u);
}

static unsigned uring_lane_width(struct env *env, enum env_lane lane)
{
    CHECK(lane < ENV_LANE_COUNT);
    return uring_of(env)->lanes[lane].width;
}

static const struct env_ops uring_ops = {
    .now = uring_now,
    .wallclock = uring_wallclock,
    .random = uring_random,
    .open = uring_open,
    .mkdir = uring_mkdir,
    .unlink = uring_unlink,
    .rename = uring_rename,
    .listen = uring_listen,
    .connect = uring_connect,
    .offload = uring_offload,
    .lane_width = uring_lane_width,
    .post = uring_post,
    .call = uring_call,
    .thread = uring_thread,
    .run = uring_run,
    .free = uring_free,
};

int env_uring_new(const struct env_uring_options *options, struct env **ret_env)
{
    struct env_uring_options o = options ? *options : (struct env_uring_options){0};
    struct uring *u;
    int r;

    if (o.queue_depth > URING_DEPTH_MAX || o.cpu_threads > 1024 || o.kv_threads > 1024)
        return ERR_INVAL;
    if (!o.cpu_threads) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);

        o.cpu_threads = cores > 0 ? (unsigned)cores : 1;
    }
    u = mem_zalloc(sizeof(*u));
    fiber_pool_init(&u->pool);
    env_init(&u->env, &uring_ops, &u->pool, NULL);
    uring_ops_init(&u->waiting);
    uring_ops_init(&u->deferred);
    pthread_mutex_init(&u->life, NULL);
    u->depth = o.queue_depth ? o.queue_depth : URING_DEPTH_DEFAULT;
    u->keep_signals = o.keep_signals;
    u->signal_fd = u->bell = -1;
    uring_lanes_init(u, o.cpu_threads, o.kv_threads ? o.kv_threads : 2);
    r = uring_ring_init(u);
    if (r == 0)
        r = uring_signals_init(u);
    if (r == 0 && (u->bell = eventfd(0, EFD_CLOEXEC)) < 0)
        r = err_from_errno(errno);
    if (r < 0) {
        uring_free(&u->env);
        return r;
    }
    *ret_env = &u->env;
    return 0;
}

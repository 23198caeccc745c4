/* env: the only door to time, randomness, files, sockets and work on other threads.
 *
 * Everything in the engine and the servers that touches the world does it through a struct env, so
 * that the same code runs on io_uring (env_uring.h) and in the simulator (env_sim.h). An env is one
 * loop on one thread: fibers (fiber.h) run on it and the calls below suspend the calling fiber, not
 * the thread. Unless said otherwise a call is made from a fiber of that env.
 *
 * The layer is a vtable per object (env, file, socket, listener): fault injectors and recorders are
 * stackable objects that wrap another.
 *
 * Errors are the table's (lib/base/err.h). Times are nanoseconds.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/rt/fiber.h"

struct env;
struct env_file;
struct env_sock;
struct env_listener;
struct metric_hist;

#define ENV_NS_PER_MS 1000000ull
#define ENV_NS_PER_S  1000000000ull
#define ENV_FOREVER   UINT64_MAX

/* ---- Time and randomness ------------------------------------------------------------------- */

uint64_t env_now(struct env *env);       /* monotonic; any thread; does not suspend */
uint64_t env_wallclock(struct env *env); /* since the Unix epoch; any thread; does not suspend */
void env_random(struct env *env, void *buf, size_t n); /* unpredictable bytes (seeded in the
                                                          simulator); does not suspend */

/* Suspends for at least ns. */
void env_sleep(struct env *env, uint64_t ns);

/* A one-shot timer: calls fn(arg) on the loop, outside any fiber; fn must not suspend. The struct
 * is the caller's and stays put while armed. */
struct env_timer {
    uint64_t deadline;
    void (*fn)(void *arg);
    void *arg;
    size_t heap_pos; /* 0 when not armed */
};
void env_timer_arm(struct env *env, struct env_timer *t, uint64_t deadline);
void env_timer_disarm(struct env *env, struct env_timer *t); /* not armed: no-op */

/* ---- Files (regular files and block devices) ------------------------------------------------ */

enum env_open_flags {
    ENV_OPEN_CREATE = 1, /* make it if missing (mode 0600), with its directory entry durable */
    ENV_OPEN_EXCL = 2,   /* with CREATE: ERR_EXIST if it exists */
    ENV_OPEN_DIRECT = 4, /* bypass the page cache: buffers, offsets, lengths in units of 4096 */
    ENV_OPEN_RDONLY = 8,
    ENV_OPEN_LOCK = 16, /* exclusive advisory lock held while open; ERR_LOCKED if taken */
};

int env_open(struct env *env, const char *path, unsigned flags, struct env_file **ret_file);
void env_close(struct env_file *f); /* NULL is fine; no operation may be in flight */
/* Closes a file with operations in flight that may never be answered: nobody can take a buffer back
 * that the system may still write to. `done` is called for those that are answered while the env
 * runs, and the last one closes the file. The env does not wait for the others: their structs and
 * buffers stay as they are until the process ends. (In the simulator the end of the process takes
 * them: done is called with ERR_CANCELED.) Does not suspend. */
void env_forsake(struct env_file *f);
int env_file_size(struct env_file *f, uint64_t *ret_size); /* of a block device too */
/* Files with the same id, if it is not 0, lie behind one write cache: a SYNC of one of them makes
 * the WRITEs done on the others durable as well, where they went to space that had been written and
 * synced before. Does not suspend. */
uint64_t env_file_cache(struct env_file *f);
int env_mkdir(struct env *env, const char *path);  /* mode 0700, durable; an existing one is fine */
int env_unlink(struct env *env, const char *path); /* durable. ERR_NOENT. Suspends */
/* Gives a file another name, durable, in place of what has it: one or the other is always there.
 * Both in one file system. Suspends. */
int env_rename(struct env *env, const char *from, const char *to);

enum env_io_kind { ENV_READ, ENV_WRITE, ENV_SYNC, ENV_TRIM, ENV_RESIZE, ENV_RESERVE };

/* One file operation. The struct and the buffer are the caller's and stay put until done is called.
 *
 *   READ   fills buf; a read past the end is short.
 *   WRITE  all of buf or an error; extends the file. With `dsync` it is durable when done, on the
 *          medium, as if a SYNC that covers it had completed.
 *   SYNC   every WRITE that was done before the SYNC was started is durable when it is done.
 *   TRIM   the range reads as zeroes afterwards and its space is given back where the file system
 *          can; not durable before a SYNC.
 *   RESERVE has the file system find the range's space now, so that writes to it later are cheap to
 *          make durable; content and size stay as they are. A no-op where there is nothing to find.
 *   RESIZE sets the file's size to `off` (sparse growth); not for devices.
 *
 * Without dsync or SYNC a write may be kept, lost or torn at 512-byte borders in any order at a
 * crash. `done` runs on the loop, outside any fiber, and must not suspend. */
struct env_io {
    enum env_io_kind kind;
    bool dsync;
    struct env_file *file;
    void *buf;
    size_t len;
    uint64_t off;
    int64_t result; /* bytes moved, or a negative error; set before done */
    void (*done)(struct env_io *io);
    void *owner; /* the caller's */
    uint64_t private_[6];
};

/* Starts the operations in order; they complete in any order. Does not suspend, but is called from
 * the loop's thread. At most a bounded number is in flight in the system; the rest waits inside. */
void env_io_start(struct env_io *ios, unsigned n);

/* Starts all and suspends until all are done (`done` and `owner` are taken). Returns 0 or the first
 * error found in any result. A short READ counts as ERR_TRUNCATED. */
int env_io_run(struct env_io *ios, unsigned n);

/* Single operations over env_io_run; each suspends. */
int env_pread(struct env_file *f, void *buf, size_t len, uint64_t off); /* all of len */
int env_pwrite(struct env_file *f, const void *buf, size_t len, uint64_t off, bool dsync);
int env_sync(struct env_file *f);
int env_trim(struct env_file *f, uint64_t off, uint64_t len);
int env_resize(struct env_file *f, uint64_t size);
int env_reserve(struct env_file *f, uint64_t off, uint64_t len); /* ERR_NOSPC: there is none */

/* ---- Sockets -------------------------------------------------------------------------------- */

struct env_addr {
    char text[120]; /* "unix:/path", "tcp:HOST:PORT" with a numeric host (IPv6 in brackets) */
};

/* Port 0 picks a free one; env_listener_addr tells. TCP sockets get TCP_NODELAY, here and on
 * accept. A stale unix socket file (nobody answers) is replaced. */
int env_listen(struct env *env, const struct env_addr *addr, unsigned backlog,
               struct env_listener **ret_listener);
int env_listener_addr(struct env_listener *l, struct env_addr *ret_addr);
int env_accept(struct env_listener *l, struct env_sock **ret_sock); /* suspends */
void env_listener_close(struct env_listener *l); /* a fiber in accept gets ERR_CANCELED */

int env_connect(struct env *env, const struct env_addr *addr, struct env_sock **ret_sock);
/* Bytes received, 0 at the peer's end of stream. One receiving fiber at a time. Suspends. */
int64_t env_recv(struct env_sock *s, void *buf, size_t len);
/* Sends all of iov (changed while it works), or an error. One sending fiber at a time; another may
 * receive meanwhile. Suspends. */
int env_send(struct env_sock *s, struct iovec *iov, unsigned n);
/* Ends both directions: suspended fibers get 0 or ERR_CLOSED. Does not suspend. */
void env_sock_shutdown(struct env_sock *s);
/* Who is at the other end, for logs: "tcp:HOST:PORT", or "unix:pid=N,uid=N" as of the connect.
 * ERR_UNSUPPORTED where it is not known (the simulator). Does not suspend. */
int env_sock_peer(struct env_sock *s, struct env_addr *ret_addr);
void env_sock_close(struct env_sock *s); /* NULL is fine; no fiber may be in a call on it */

/* ---- Other threads --------------------------------------------------------------------------- */

enum env_lane {
    ENV_LANE_CPU, /* hash, codec, large erasure coding: one thread per core */
    ENV_LANE_KV,  /* RocksDB */
    ENV_LANE_COUNT
};

/* Runs fn(arg) on a thread of the lane and suspends until it returned. In the simulator it runs
 * inline after a simulated delay. fn touches only what arg gives it. */
void env_offload(struct env *env, enum env_lane lane, void (*fn)(void *arg), void *arg);

/* As env_offload, without waiting: done(arg) is called on the loop, outside any fiber. For batches
 * that fill all threads of a lane. Called from the loop's thread. */
void env_offload_start(struct env *env, enum env_lane lane, void (*fn)(void *arg),
                       void (*done)(void *arg), void *arg);

/* Number of threads of a lane. */
unsigned env_lane_width(struct env *env, enum env_lane lane);

/* From any thread: spawns a fiber that runs fn(arg). ERR_SHUTDOWN after the loop has ended. */
int env_post(struct env *env, const char *name, fiber_fn fn, void *arg);

/* From a thread that is not the loop's: runs fn(arg) in a fiber of the loop and blocks the thread
 * until it returned. ERR_SHUTDOWN when the loop has ended (fn was not run). */
int env_call(struct env *env, const char *name, fiber_fn fn, void *arg);

/* From a fiber of `here`: runs fn(arg) in a fiber of the other loop `there` and suspends until it
 * returned; inline when both are one. What fn wrote is seen afterwards. ERR_SHUTDOWN when that loop
 * has ended (fn was not run). */
int env_remote(struct env *here, struct env *there, const char *name, fiber_fn fn, void *arg);

/* Starts a thread for third-party code that blocks (a DCMTK association, an HTTP server's own). The
 * caller bounds their number. The env waits for all of them before env_run returns. Any thread.
 * ERR_UNSUPPORTED in the simulator. */
int env_thread(struct env *env, const char *name, void (*fn)(void *arg), void *arg);

/* ---- Life ------------------------------------------------------------------------------------ */

/* Runs the loop on the calling thread with main(arg) as its first fiber; returns when that fiber
 * has returned, every env_thread has ended and every other fiber has ended. */
void env_run(struct env *env, fiber_fn main, void *arg);

/* Suspends until SIGTERM or SIGINT arrives (real env; in the simulator until env_sim says so). */
void env_wait_stop(struct env *env);

/* Watches the loop for fibers that keep it from the others: times every step of a fiber, from one
 * point where it gives way to the next. What runs on the loop outside of fibers is not seen. Two
 * readings of the clock a step, or one where steps follow each other; without a watch the cost is
 * one branch. */
struct env_watch {
    uint64_t threshold_ns;     /* steps that took longer are told; above 0 */
    struct metric_hist *steps; /* of METRIC_TIME: every step is recorded */
    /* Tells of a long step: the fiber's name, and why it gave way ("ended" when it has); constant
     * texts. On the loop, outside any fiber; must not suspend. */
    void (*tell)(void *arg, const char *fiber, const char *why, uint64_t took_ns);
    void *arg;
};

/* Begins to watch, or ends it (NULL). The struct is the caller's and stays put meanwhile. From the
 * loop's thread. In the simulator no time passes within a step: nothing is ever told. */
void env_set_watch(struct env *env, const struct env_watch *watch);

/* Frees the env; it must not be running. */
void env_free(struct env *env);

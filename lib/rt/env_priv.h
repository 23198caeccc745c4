/* What the files of lib/rt share: the scheduler's state, the vtable of an env, the structs of the
 * io_uring env and of the simulator.
 *
 * The scheduler (fiber.c, loop.c) is the same for both envs. It owns fibers, the ready list, timers
 * and those who wait for the stop; the vtable supplies everything that touches the world. An env's
 * own memory is never in a simulated process's domain: allocate between env_outside_enter and
 * env_outside_leave, except for the handles (files, sockets, listeners) that the process must
 * close.
 */
#pragma once

#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "lib/base/list.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"
#include "lib/rt/env_ops.h"
#include "lib/rt/env_sim.h"
#include "lib/rt/sync.h"

/* ---- Work for other threads, and messages back --------------------------------------------------
 */

/* fn(arg) runs on a lane; then done(arg) on the loop. Lane -1: a message, only done runs. */
struct env_task {
    struct env_task *next;
    void (*fn)(void *arg);
    void (*done)(void *arg);
    void *arg;
    int lane;
};

/* ---- The env ------------------------------------------------------------------------------------
 */

struct env_ops {
    uint64_t (*now)(struct env *env);
    uint64_t (*wallclock)(struct env *env);
    void (*random)(struct env *env, void *buf, size_t n);
    int (*open)(struct env *env, const char *path, unsigned flags, struct env_file **ret_file);
    int (*mkdir)(struct env *env, const char *path);
    int (*unlink)(struct env *env, const char *path);
    int (*rename)(struct env *env, const char *from, const char *to);
    int (*listen)(struct env *env, const struct env_addr *addr, unsigned backlog,
                  struct env_listener **ret_listener);
    int (*connect)(struct env *env, const struct env_addr *addr, struct env_sock **ret_sock);
    void (*offload)(struct env *env, struct env_task *task);
    unsigned (*lane_width)(struct env *env, enum env_lane lane);
    int (*post)(struct env *env, const char *name, fiber_fn fn, void *arg);
    int (*call)(struct env *env, const char *name, fiber_fn fn, void *arg);
    int (*thread)(struct env *env, const char *name, void (*fn)(void *arg), void *arg);
    void (*run)(struct env *env, fiber_fn main, void *arg);
    void (*free)(struct env *env);
};

/* Stacks (with the struct fiber on top) that wait for their next use. */
struct fiber_pool {
    struct list idle;
    size_t count;
};

void fiber_pool_init(struct fiber_pool *p);
void fiber_pool_free(struct fiber_pool *p);

struct env {
    const struct env_ops *ops;
    struct fiber_pool *pool;
    struct mem_domain *domain; /* NULL in production */

    struct list ready;
    size_t ready_count;
    struct list fibers; /* all that live */
    size_t fiber_count;
    struct fiber *main; /* NULL once it has returned */

    struct env_timer **timers; /* heap; [0] is not used */
    size_t timer_count, timer_cap;

    bool stopping;
    struct fiber_cond stop;

    const struct env_watch *watch; /* NULL: none */
    uint64_t watch_at; /* when the last step ended; 0: the loop did something else since */

    struct env_file *(*wrap)(void *arg, const char *path, struct env_file *file);
    void *wrap_arg;
};

void env_init(struct env *env, const struct env_ops *ops, struct fiber_pool *pool,
              struct mem_domain *domain);
void env_fini(struct env *env);
void env_stop(struct env *env); /* wakes all in env_wait_stop, now and later */

/* Whatever runs for the env, fiber or callback, runs between these. */
struct mem_domain *env_enter(struct env *env);
void env_leave(struct env *env, struct mem_domain *before);

struct mem_domain *env_outside_enter(void);
void env_outside_leave(struct mem_domain *before);

/* The next deadline, ENV_FOREVER when none. */
uint64_t env_timers_next(const struct env *env);
/* Calls the first timer that is due at `now`; false when none is. */
bool env_timers_step(struct env *env, uint64_t now);

/* As fiber_spawn; gives the fiber. */
struct fiber *fiber_make(struct env *env, const char *name, fiber_fn fn, void *arg);
/* Runs the first ready fiber until it gives way; false when none is ready. */
bool fiber_step(struct env *env);
/* Drops every fiber of the env where it stands (simulated kill). */
void fiber_drop_all(struct env *env);

/* Whether the shape of the request alone forbids it: ERR_RANGE, ERR_READONLY, ERR_INVAL (direct and
 * not in units of 4096). */
int env_io_check(const struct env_io *io, bool direct, bool readonly);

/* ---- Addresses ----------------------------------------------------------------------------------
 */

struct addr_parsed {
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } sa;
    socklen_t len;
};
int addr_parse(const struct env_addr *addr, struct addr_parsed *ret_parsed); /* ERR_INVAL */
int addr_format(const struct sockaddr *sa, struct env_addr *ret_addr);

/* ---- The io_uring env ---------------------------------------------------------------------------
 */

/* An operation in the ring: `prep` fills its sqe when there is room, `fn` gets the result. Lives
 * where its owner puts it: in the caller's struct env_io, or on the stack of the fiber that waits.
 */
struct uring_op {
    void (*prep)(struct uring_op *op, struct io_uring_sqe *sqe);
    void (*fn)(struct uring_op *op, int res);
    struct uring_op *next;
} __attribute__((may_alias));

struct uring_ops {
    struct uring_op *head, **tail;
};

/* A file's share of the ring: a drive that answers nothing must not fill all of it. */
struct uring_share {
    unsigned taken;
    struct uring_ops waiting;
};

struct uring_lane {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct env_task *head, **tail;
    struct uring *uring;
    pthread_t *threads;
    unsigned width, idle;
    bool started, ending;
};

/* The lane for system calls that block and that the ring does not do. */
#define URING_LANE_SYS   ENV_LANE_COUNT
#define URING_LANE_COUNT (ENV_LANE_COUNT + 1)

struct uring {
    struct env env;
    struct fiber_pool pool;
    struct io_uring ring;
    bool ring_disabled; /* until env_run, whose thread becomes the only one to submit */
    unsigned depth;
    unsigned file_ops;         /* in the ring, at most `depth` */
    unsigned asked;            /* operations started and not ended, in the ring or waiting */
    unsigned forsaken;         /* of these, on forsaken files: nobody waits for them */
    struct uring_ops waiting;  /* file operations beyond that */
    struct uring_ops deferred; /* found the submission queue full: they go first next turn */

    /* Messages from other threads: a stack that the loop takes whole. URING_ENDED refuses. */
    _Atomic(struct env_task *) inbox;
    atomic_bool asleep; /* the loop may be blocked: whoever adds a message rings the bell */
    atomic_uint posters;
    int bell;
    uint64_t bell_value;
    bool bell_armed;
    struct uring_op bell_op;

    bool keep_signals, signal_armed;
    int signal_fd;
    sigset_t signals_before;
    struct signalfd_siginfo *signal_info;
    struct uring_op signal_op;

    size_t tasks; /* given to lanes, not back yet */
    struct uring_lane lanes[URING_LANE_COUNT];

    pthread_mutex_t life;
    unsigned threads; /* under `life` */
    bool ended;       /* under `life` */
    pthread_t loop_thread;
    bool running;
};

static inline struct uring *uring_of(struct env *env)
{
    return LIST_ENTRY(env, struct uring, env);
}

/* A file operation: counted against the file's share and the depth, may wait for room. */
void uring_submit_file(struct uring *u, struct uring_share *share, struct uring_op *op);
/* One has completed: its place is free. */
void uring_file_done(struct uring *u, struct uring_share *share);
void uring_ops_init(struct uring_ops *ops);
/* Any other operation: enters the ring with the next submission. */
void uring_submit(struct uring *u, struct uring_op *op);
void uring_cancel(struct uring *u, struct uring_op *op);

int uring_open(struct env *env, const char *path, unsigned flags, struct env_file **ret_file);
int uring_mkdir(struct env *env, const char *path);
int uring_unlink(struct env *env, const char *path);
int uring_rename(struct env *env, const char *from, const char *to);
int uring_listen(struct env *env, const struct env_addr *addr, unsigned backlog,
                 struct env_listener **ret_listener);
int uring_connect(struct env *env, const struct env_addr *addr, struct env_sock **ret_sock);

void uring_lanes_init(struct uring *u, unsigned cpu, unsigned kv);
void uring_lanes_free(struct uring *u);
void uring_offload(struct env *env, struct env_task *task);
int uring_post(struct env *env, const char *name, fiber_fn fn, void *arg);
int uring_call(struct env *env, const char *name, fiber_fn fn, void *arg);
int uring_thread(struct env *env, const char *name, void (*fn)(void *arg), void *arg);
void uring_inbox_drain(struct uring *u);
bool uring_inbox_pending(struct uring *u);
bool uring_has_threads(struct uring *u);
bool uring_inbox_end(struct uring *u); /* refuses messages from now on, if none is left */
void uring_inbox_reopen(struct uring *u);

/* ---- The simulator ------------------------------------------------------------------------------
 */

struct sim_env;

/* Something that happens at a time. Embedded in what it is about; `fn` (it happens) or `drop` (its
 * process was killed before) frees that. */
struct sim_event {
    uint64_t time, seq;
    struct sim_env *owner; /* whose kill drops it and in whose memory it runs; may be NULL */
    void (*fn)(struct sim_event *e);
    void (*drop)(struct sim_event *e);
};

struct sim {
    uint64_t rng[4];
    uint64_t now, seq, digest;
    uint64_t steps; /* fibers run since time last passed */
    bool running, paused;
    bool litters;              /* sim_litter */
    struct sim_event **events; /* heap; [0] is not used */
    size_t event_count, event_cap;
    struct list processes;
    uint32_t next_process, last_stepped;
    struct list files, listeners;
    uint32_t next_file, next_conn;
    uint16_t next_port;
    struct sim_faults faults;
    struct list file_faults;
    struct fiber_pool pool;
};

struct sim_env {
    struct env env;
    struct sim *sim;
    struct list link;
    const char *name;
    uint32_t id;
    struct list handles, socks, listeners; /* open now; the nodes are in the process's memory */
    bool ended;                            /* cleanly: what it did not wait for is dropped */
};

static inline struct sim_env *sim_env_of(struct env *env)
{
    return LIST_ENTRY(env, struct sim_env, env);
}

void sim_schedule(struct sim *sim, struct sim_event *e, uint64_t time);
/* Takes out the events that match and has each dropped. */
void sim_events_drop(struct sim *sim, bool (*match)(const struct sim_event *e, const void *arg),
                     const void *arg);
uint64_t sim_between(struct sim *sim, uint64_t min, uint64_t max); /* both included */
bool sim_chance(struct sim *sim, uint32_t per_million);

/* sim_media.c: one file's bytes, as a reader sees them and as they are durable. */
struct sim_page;
struct sim_image {
    struct sim_page **pages;
    size_t page_count;
    uint64_t size;
};

struct sim_file {
    struct list link;
    struct list held; /* operations that are not answered while the file hangs, oldest first */
    struct sim *sim;
    char *path;
    uint32_t id;
    bool linked; /* has its name */
    bool locked;
    unsigned refs; /* open handles, and one for the name */
    struct sim_image now, durable, kept;
    bool has_kept;
    uint8_t *reserved; /* per page of the medium: RESERVE has found its space */
    size_t reserved_pages;
    struct list pending; /* what was done and is not durable, oldest first */
    size_t pending_count;
    uint64_t last_seq;
};

void sim_media_init(struct sim_file *f);
void sim_media_free(struct sim_file *f);
size_t sim_media_read(struct sim_file *f, void *buf, size_t len,
                      uint64_t off); /* short at the end */
/* Done, for readers. Durable too if `dsync`; never, whatever is synced, if `lie`. kind: WRITE, TRIM
 * (data NULL), RESIZE (off is the size). */
struct sim_change {
    enum env_io_kind kind;
    const void *data;
    uint64_t off, len;
    uint32_t process;
    bool dsync, lie;
};
void sim_media_change(struct sim_file *f, const struct sim_change *c);
/* A part of it, chosen at random, has happened; or all, or nothing. */
void sim_media_change_torn(struct sim_file *f, const struct sim_change *c);
void sim_media_sync(struct sim_file *f, uint64_t upto_seq);
void sim_media_sync_failed(struct sim_file *f, uint64_t upto_seq);
void sim_media_xor(struct sim_file *f, uint64_t off, uint8_t bits);   /* rot, on the medium */
void sim_media_noise(struct sim_file *f, uint64_t off, uint64_t len); /* no byte stays right */
bool sim_media_pending_of(const struct sim_file *f, uint32_t process);
void sim_media_power_cut(struct sim_file *f);
/* Has every byte of the range its space? And: gives it. */
bool sim_media_has_space(const struct sim_file *f, uint64_t off, uint64_t len);
void sim_media_reserve(struct sim_file *f, uint64_t off, uint64_t len);
void sim_media_keep(struct sim_file *f);
void sim_media_restore(struct sim_file *f);

/* sim_file.c */
int sim_open(struct env *env, const char *path, unsigned flags, struct env_file **ret_file);
int sim_mkdir(struct env *env, const char *path);
int sim_unlink(struct env *env, const char *path);
void sim_files_end(struct sim_env *p); /* its last fiber has ended: forsaken files go */
int sim_rename(struct env *env, const char *from, const char *to);
void sim_files_kill(struct sim_env *p, bool power);
void sim_files_free(struct sim *sim);

/* sim_sock.c */
int sim_listen(struct env *env, const struct env_addr *addr, unsigned backlog,
               struct env_listener **ret_listener);
int sim_connect(struct env *env, const struct env_addr *addr, struct env_sock **ret_sock);
void sim_socks_kill(struct sim_env *p, bool power);

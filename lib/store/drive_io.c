/* I/O on drives, its timer, and what it finds out about their health; see drive_io.h, health.h. */
#include "lib/store/drive_io.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define DRIVE_TICK_BUSY  (5 * ENV_NS_PER_MS)   /* while somebody waits */
#define DRIVE_TICK_IDLE  (50 * ENV_NS_PER_MS)  /* while something is not answered */
#define DRIVE_TICK_LATE  (100 * ENV_NS_PER_MS) /* then it is not the drives that are late */
#define DRIVE_PROBE_GAP  ENV_NS_PER_S          /* between two probes of a drive */
#define DRIVE_CLOSE_WAIT (500 * ENV_NS_PER_MS)
#define DRIVE_OPS_KEPT   256u /* operations kept for their next use */

/* The drive's side of an operation. */
struct drive_op {
    struct env_io io;
    struct drive *drive;     /* NULL: the set was closed */
    struct drive_io *caller; /* NULL: nobody waits */
    struct buf *buf;
    uint64_t started;
    bool stuck;       /* was given up */
    struct list link; /* of the drive's unanswered ones, or of those kept */
};

/* ---- Operations ---- */

static struct drive_op *op_take(struct driveset *ds)
{
    struct list *l = list_pop_front(&ds->ops_kept);

    if (!l)
        return mem_alloc(sizeof(struct drive_op));
    ds->ops_kept_count--;
    return LIST_ENTRY(l, struct drive_op, link);
}

static void op_free(struct driveset *ds, struct drive_op *op)
{
    buf_unref(op->buf);
    if (!ds || ds->ops_kept_count == DRIVE_OPS_KEPT) {
        mem_free(op);
        return;
    }
    list_push_front(&ds->ops_kept, &op->link);
    ds->ops_kept_count++;
}

/* Ends the operation for its caller. */
static void caller_done(struct drive_op *op, int64_t result)
{
    struct drive_io *io = op->caller;
    struct drive_wait *w;

    if (!io)
        return;
    w = io->wait_;
    op->caller = NULL;
    io->op_ = NULL;
    io->result = result;
    io->done = true;
    w->pending--;
    if (w->pending == 0 || w->each)
        fiber_cond_signal(&w->cond);
}

static void op_count(struct drive *d, const struct drive_op *op, uint64_t now)
{
    const struct env_io *io = &op->io;
    uint64_t took = now - op->started;

    if (io->kind == ENV_WRITE) {
        d->writes++;
        d->write_bytes += io->len;
        d->write_errors += io->result < 0;
        metric_record(&d->set->write_time, took);
    } else if (io->kind == ENV_SYNC) {
        metric_record(&d->set->sync_time, took);
    } else if (io->kind == ENV_READ) {
        d->reads++;
        d->read_bytes += io->len;
        metric_record(&d->set->read_time, took);
        health_took(&d->health, took);
        if (io->result == (int64_t)io->len)
            return;
        d->read_errors++;
        health_note(&d->health, now, HEALTH_READ_ERROR);
    }
}

static void drive_judge(struct drive *d, uint64_t now);

/* The system has answered. */
static void op_answered(struct env_io *io)
{
    struct drive_op *op = io->owner;
    struct drive *d = op->drive;
    uint64_t now, faults;

    if (!d) {
        op_free(NULL, op);
        return;
    }
    now = env_now(d->set->env);
    faults = d->read_errors;
    list_del(&op->link);
    d->answered_at = now;
    op_count(d, op, now);
    if (op->stuck && --d->stuck == 0)
        d->hung = false;
    caller_done(op, io->result);
    op_free(d->set, op);
    if (d->read_errors != faults)
        drive_judge(d, now);
}

static void set_arm(struct driveset *ds, uint64_t ns)
{
    ds->ticking = true;
    env_timer_arm(ds->env, &ds->tick, env_now(ds->env) + ns);
}

static void op_start(struct drive *d, struct drive_io *caller, const struct drive_io *io)
{
    struct drive_op *op = op_take(d->set);

    *op = (struct drive_op){.io = {.kind = io->kind,
                                   .dsync = io->dsync,
                                   .file = d->file,
                                   .buf = io->data,
                                   .len = io->len,
                                   .off = io->off,
                                   .done = op_answered,
                                   .owner = op},
                            .drive = d,
                            .caller = caller,
                            .buf = io->buf ? buf_ref(io->buf) : NULL,
                            .started = env_now(d->set->env)};
    list_push_back(&d->unanswered, &op->link);
    if (!d->set->ticking)
        set_arm(d->set, DRIVE_TICK_BUSY);
    if (caller)
        caller->op_ = op;
    env_io_start(&op->io, 1);
}

/* ---- Silence ---- */

uint64_t drive_silence(const struct drive *d)
{
    uint64_t now = env_now(d->set->env), quiet = now - d->answered_at, age;

    if (list_empty(&d->unanswered))
        return 0;
    age = now - LIST_ENTRY(d->unanswered.next, struct drive_op, link)->started;
    return quiet < age && quiet < HEALTH_QUIET && age < HEALTH_OWED ? quiet : age;
}

static bool drive_writing(const struct drive *d)
{
    list_for_each (it, &d->unanswered)
        if (LIST_ENTRY(it, struct drive_op, link)->io.kind != ENV_READ)
            return true;
    return false;
}

/* Can the store do without this drive, and without those that are late as well? What drives had
 * that are gone and has been written anew does not count against it (`made_up`). A drive that is
 * late takes with it those on the same device: a flush that one of them waits for is for all. On
 * one in transit there is nothing. */
static bool drive_spare(const struct drive *d, bool late)
{
    const struct driveset *ds = d->set;
    unsigned gone = 0, made_up = 0;

    if (d->transit)
        return driveset_healthy(ds) > 1;
    for (unsigned i = 0; i < ds->count; i++) {
        const struct drive *o = &ds->drives[i];

        if (o->state == DRIVE_NONE || o->transit)
            continue;
        gone += o == d || !drive_usable(o) || drive_silence(o) >= HEALTH_LATE ||
                (late && d->cache && o->cache == d->cache);
        made_up += !drive_usable(o) && (ds->made_up >> i & 1);
    }
    return gone < driveset_members(ds) && gone <= ds->super.parity_columns + made_up;
}

void drive_give_up(struct drive *d)
{
    d->hung = true;
    list_for_each (it, &d->unanswered) {
        struct drive_op *op = LIST_ENTRY(it, struct drive_op, link);

        if (op->stuck)
            continue;
        op->stuck = true;
        d->stuck++;
        d->timeouts++;
        if (PLANTED(STUCK_BUF_REUSED) && op->buf) {
            buf_unref(op->buf);
            op->buf = NULL;
        }
        caller_done(op, ERR_TIMEDOUT);
    }
}

/* It was given up when the store could spare it, and now it cannot: to fail what is asked of it
 * would put it out, and the store with it, though it may answer. */
static void drive_wait_again(struct drive *d)
{
    if (d->hung && drive_usable(d) && !drive_spare(d, drive_silence(d) >= HEALTH_LATE))
        d->hung = false;
}

static void later(uint64_t *t, uint64_t by, uint64_t now)
{
    *t = now - *t > by ? *t + by : now;
}

/* When the timer is late, so is everything: this process was stopped, or had no processor. What
 * drives have answered meanwhile has not been looked at, and what was asked of them may not even
 * have been handed over. So for operations that time has not passed. */
static void set_mind_stall(struct driveset *ds, uint64_t now)
{
    uint64_t late;

    if (!ds->ticking || now < ds->tick.deadline + DRIVE_TICK_LATE)
        return;
    late = now - ds->tick.deadline;
    for (unsigned i = 0; i < ds->count; i++) {
        later(&ds->drives[i].answered_at, late, now);
        list_for_each (it, &ds->drives[i].unanswered)
            later(&LIST_ENTRY(it, struct drive_op, link)->started, late, now);
    }
    env_timer_arm(ds->env, &ds->tick, now);
}

static void drive_judge(struct drive *d, uint64_t now)
{
    struct health_silence silence = {0};
    bool spare = true;

    set_mind_stall(d->set, now);
    silence.ns = drive_silence(d);
    if (silence.ns >= HEALTH_GIVE_UP)
        silence.writing = drive_writing(d);
    if (drive_usable(d) && !d->set->patient) {
        spare = drive_spare(d, silence.ns >= HEALTH_LATE);
        health_judge(&d->health, now, &silence, spare);
        if (d->health.state == HEALTH_OUT)
            driveset_put_out(d->set, d->index, d->health.reason);
    }
    if (silence.ns >= HEALTH_GIVE_UP && spare && !d->hung && !d->set->patient &&
        !PLANTED(HANG_WAITED))
        drive_give_up(d);
    drive_wait_again(d);
}

void driveset_wait_again(struct driveset *ds)
{
    for (unsigned i = 0; i < ds->count; i++)
        drive_wait_again(&ds->drives[i]);
}

void drive_corrupt(struct drive *d)
{
    uint64_t now = env_now(d->set->env);

    d->corruptions++;
    health_note(&d->health, now, HEALTH_CORRUPTION);
    drive_judge(d, now);
}

void drive_hedged(struct drive *d)
{
    uint64_t now = env_now(d->set->env);

    health_note(&d->health, now, HEALTH_HEDGED);
    drive_judge(d, now);
}

/* ---- The timer ---- */

/* Asks a drive for a block, for the answer's sake. */
static void drive_probe(struct drive *d, uint64_t now)
{
    struct drive_io io;

    if (!d->file || !list_empty(&d->unanswered) || now - d->probed_at < DRIVE_PROBE_GAP)
        return;
    d->probed_at = now;
    drive_io_prepare(d, &io, ENV_READ, buf_new(FORMAT_UNIT), NULL, FORMAT_UNIT, FORMAT_SUPER_OFF_A);
    io.data = io.buf->data;
    op_start(d, NULL, &io);
    buf_unref(io.buf); /* the operation's now */
}

static void set_look_at_drives(struct driveset *ds, uint64_t now)
{
    uint64_t p99[FORMAT_DRIVES_MAX];
    unsigned n = 0;
    bool silent = false;

    for (unsigned i = 0; i < ds->count; i++) {
        struct drive *d = &ds->drives[i];

        silent |= !d->hung && drive_silence(d) >= HEALTH_PROBE;
        if (drive_usable(d))
            p99[n++] = d->health.read_p99;
    }
    ds->hedge_delay = health_hedge_delay(p99, n);
    for (unsigned i = 0; i < ds->count; i++) {
        if (silent)
            drive_probe(&ds->drives[i], now);
        drive_judge(&ds->drives[i], now);
    }
}

static bool set_asks(const struct driveset *ds)
{
    for (unsigned i = 0; i < ds->count; i++)
        if (!list_empty(&ds->drives[i].unanswered))
            return true;
    return false;
}

/* Somebody will wait: the timer runs at its faster pace from now on. */
static void set_hurry(struct driveset *ds)
{
    if (ds->ticking && ds->tick.deadline <= env_now(ds->env) + DRIVE_TICK_BUSY)
        return;
    set_arm(ds, DRIVE_TICK_BUSY);
}

static void set_tick(void *arg)
{
    struct driveset *ds = arg;
    uint64_t now = env_now(ds->env);

    set_mind_stall(ds, now);
    set_look_at_drives(ds, now);
    list_for_each (it, &ds->waits) {
        struct drive_wait *w = LIST_ENTRY(it, struct drive_wait, link);

        if (w->deadline <= now)
            fiber_cond_signal(&w->cond);
    }
    env_timer_disarm(ds->env, &ds->tick);
    ds->ticking = false;
    if (!list_empty(&ds->waits))
        set_arm(ds, DRIVE_TICK_BUSY);
    else if (set_asks(ds))
        set_arm(ds, DRIVE_TICK_IDLE);
}

/* ---- Waiting ---- */

void drive_wait_init(struct drive_wait *w, struct driveset *ds)
{
    *w = (struct drive_wait){.ds = ds};
    fiber_cond_init(&w->cond);
}

void drive_io_prepare(struct drive *d, struct drive_io *io, enum env_io_kind kind, struct buf *b,
                      void *data, size_t len, uint64_t off)
{
    CHECK(len % FORMAT_UNIT == 0 && off % FORMAT_UNIT == 0);
    CHECK(d->file != NULL);
    *io = (struct drive_io){.drive = d,
                            .kind = kind,
                            .dsync = kind == ENV_WRITE,
                            .buf = b,
                            .data = data,
                            .len = len,
                            .off = off};
}

void drive_io_start(struct drive_wait *w, struct drive_io *ios, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct drive_io *io = &ios[i];

        if (io->done)
            continue;
        io->wait_ = w;
        io->done = io->drive->hung;
        io->result = ERR_TIMEDOUT;
        if (io->done)
            continue;
        w->pending++;
        op_start(io->drive, io, io);
    }
}

/* Until `pending` is at most `left`, or time is up. */
static bool wait_until(struct drive_wait *w, unsigned left, uint64_t deadline)
{
    struct driveset *ds = w->ds;
    bool in_time = deadline == ENV_FOREVER || env_now(ds->env) < deadline;

    if (w->pending <= left || !in_time)
        return w->pending <= left;
    w->deadline = deadline;
    w->each = left > 0;
    set_hurry(ds);
    list_push_back(&ds->waits, &w->link);
    while (w->pending > left && in_time) {
        fiber_cond_wait(&w->cond);
        in_time = deadline == ENV_FOREVER || env_now(ds->env) < deadline;
    }
    list_del(&w->link);
    return w->pending <= left;
}

bool drive_wait_all(struct drive_wait *w, uint64_t deadline)
{
    return wait_until(w, 0, deadline);
}

bool drive_wait_some(struct drive_wait *w, uint64_t deadline)
{
    return wait_until(w, w->pending ? w->pending - 1 : 0, deadline);
}

void drive_io_leave(struct drive_io *ios, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (ios[i].done)
            continue;
        ios[i].op_->caller = NULL;
        ios[i].op_ = NULL;
        ios[i].wait_->pending--;
    }
}

void drive_io_run(struct drive_io *ios, unsigned n)
{
    struct drive_wait w;

    if (n == 0)
        return;
    drive_wait_init(&w, ios[0].drive->set);
    drive_io_start(&w, ios, n);
    (void)drive_wait_all(&w, ENV_FOREVER);
}

int drive_pread(struct drive *d, struct buf **b, size_t len, uint64_t off)
{
    struct drive_io io;

    CHECK(len <= (*b)->size);
    drive_io_prepare(d, &io, ENV_READ, *b, (*b)->data, len, off);
    drive_io_run(&io, 1);
    if (io.result == ERR_TIMEDOUT) {
        size_t size = (*b)->size;

        buf_unref(*b);
        *b = buf_new(size);
    }
    if (io.result < 0)
        return (int)io.result;
    return (uint64_t)io.result < len ? ERR_TRUNCATED : 0;
}

int drive_pwrite(struct drive *d, struct buf *b, size_t len, uint64_t off, bool dsync)
{
    struct drive_io io;

    drive_io_prepare(d, &io, ENV_WRITE, b, b->data, len, off);
    io.dsync = dsync;
    drive_io_run(&io, 1);
    return io.result < 0 ? (int)io.result : 0;
}

int drive_sync(struct drive *d)
{
    struct drive_io io;

    drive_io_prepare(d, &io, ENV_SYNC, NULL, NULL, 0, 0);
    drive_io_run(&io, 1);
    return io.result < 0 ? (int)io.result : 0;
}

/* ---- Beginning and end ---- */

void driveset_io_init(struct driveset *ds)
{
    ds->tick = (struct env_timer){.fn = set_tick, .arg = ds};
    ds->hedge_delay = HEALTH_HEDGE_MAX;
    ds->hedge_credit = DRIVE_HEDGE_CREDIT;
    metric_hist_init(&ds->read_time, METRIC_TIME);
    metric_hist_init(&ds->write_time, METRIC_TIME);
    metric_hist_init(&ds->sync_time, METRIC_TIME);
    list_init(&ds->waits);
    list_init(&ds->ops_kept);
}

void drive_io_attach(struct driveset *ds, struct drive *d)
{
    list_init(&d->unanswered);
    health_init(&d->health);
    d->set = ds;
}

/* What is still not answered stays with the env, with its file and buffers. */
static void drive_forsake(struct drive *d)
{
    bool any = !list_empty(&d->unanswered);

    for (struct list *it = list_pop_front(&d->unanswered); it; it = list_pop_front(&d->unanswered))
        LIST_ENTRY(it, struct drive_op, link)->drive = NULL;
    if (any)
        env_forsake(d->file);
    else
        env_close(d->file);
    d->file = NULL;
}

struct env_file *drive_io_detach(struct drive *d)
{
    struct env_file *file = d->file;

    drive_give_up(d);
    if (!list_empty(&d->unanswered)) {
        drive_forsake(d);
        return NULL;
    }
    d->file = NULL;
    return file;
}

void driveset_io_close(struct driveset *ds)
{
    uint64_t until = env_now(ds->env) + DRIVE_CLOSE_WAIT;
    bool any = true;

    CHECK(list_empty(&ds->waits));
    while (any && env_now(ds->env) < until) {
        any = false;
        for (unsigned i = 0; i < ds->count; i++)
            any |= !ds->drives[i].hung && !list_empty(&ds->drives[i].unanswered);
        if (any)
            env_sleep(ds->env, ENV_NS_PER_MS);
    }
    env_timer_disarm(ds->env, &ds->tick);
    for (unsigned i = 0; i < ds->count; i++)
        drive_forsake(&ds->drives[i]);
    for (struct list *it = list_pop_front(&ds->ops_kept); it; it = list_pop_front(&ds->ops_kept))
        mem_free(LIST_ENTRY(it, struct drive_op, link));
}

/* Files of the simulator: names, handles, operations in flight, and what faults do to them.
 *
 * An operation happens when it completes: a read sees that moment, a write becomes visible at it,
 * and durable (dsync, SYNC) not before. What is in flight when its process is killed may have
 * happened, not, or in part. Writes whose buffer changed while in flight stop the run: on a real
 * drive either content may be on the medium, and a checksum taken before is wrong half of the time.
 *
 * A file that hangs holds what is due on it until it does not hang any more: then it happens, late.
 *
 * Names are flat and durable at once; directories exist as soon as somebody names them.
 */
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/rt/env_priv.h"
#include "lib/rt/env_sim.h"

struct sim_handle {
    struct env_file base;
    struct sim_file *file;
    struct list link;
    bool direct, readonly, lock;
    bool forsaken; /* its last operation closes it */
    unsigned in_flight;
};

struct sim_op {
    struct sim_event event;
    struct list held; /* on the file's list, while it hangs */
    struct env_io *io;
    uint64_t sync_upto;
    uint32_t crc; /* of what is to be written */
};

struct sim_path_faults {
    struct list link;
    char *path;
    struct sim_faults faults;
};

/* ---- Faults
 * --------------------------------------------------------------------------------------- */

static struct sim_path_faults *faults_find(struct sim *sim, const char *path)
{
    list_for_each (it, &sim->file_faults) {
        struct sim_path_faults *p = LIST_ENTRY(it, struct sim_path_faults, link);

        if (strcmp(p->path, path) == 0)
            return p;
    }
    return NULL;
}

static const struct sim_faults *faults_of(struct sim_file *f)
{
    const struct sim_path_faults *p = faults_find(f->sim, f->path);

    return p ? &p->faults : &f->sim->faults;
}

static void faults_free(struct sim_path_faults *p)
{
    list_del(&p->link);
    mem_free(p->path);
    mem_free(p);
}

/* What waited for the file to answer is done now, in any order. */
static void faults_release(struct sim *sim, const char *path)
{
    list_for_each (it, &sim->files) {
        struct sim_file *f = LIST_ENTRY(it, struct sim_file, link);
        const struct sim_faults *faults = faults_of(f);

        if (strcmp(f->path, path) != 0 || faults->hang)
            continue;
        for (struct list *op = list_pop_front(&f->held); op; op = list_pop_front(&f->held))
            sim_schedule(sim, &LIST_ENTRY(op, struct sim_op, held)->event,
                         sim->now + sim_between(sim, faults->io_min_ns, faults->io_max_ns));
    }
}

void sim_set_file_faults(struct sim *sim, const char *path, const struct sim_faults *faults)
{
    struct mem_domain *before = env_outside_enter();
    struct sim_path_faults *p = faults_find(sim, path);

    if (p)
        faults_free(p);
    if (faults) {
        p = mem_zalloc(sizeof(*p));
        p->path = mem_strdup(path);
        p->faults = *faults;
        if (!p->faults.io_max_ns) {
            p->faults.io_min_ns = sim->faults.io_min_ns;
            p->faults.io_max_ns = sim->faults.io_max_ns;
        }
        list_push_back(&sim->file_faults, &p->link);
    }
    faults_release(sim, path);
    env_outside_leave(before);
}

/* ---- Files and names
 * ------------------------------------------------------------------------------ */

static struct sim_file *file_find(struct sim *sim, const char *path)
{
    list_for_each (it, &sim->files) {
        struct sim_file *f = LIST_ENTRY(it, struct sim_file, link);

        if (f->linked && strcmp(f->path, path) == 0)
            return f;
    }
    return NULL;
}

static struct sim_file *file_new(struct sim *sim, const char *path)
{
    struct mem_domain *before = env_outside_enter();
    struct sim_file *f = mem_zalloc(sizeof(*f));

    f->sim = sim;
    f->path = mem_strdup(path);
    f->id = ++sim->next_file;
    f->linked = true;
    f->refs = 1;
    list_init(&f->held);
    sim_media_init(f);
    list_push_back(&sim->files, &f->link);
    env_outside_leave(before);
    return f;
}

static void file_unref(struct sim_file *f)
{
    if (--f->refs)
        return;
    list_del(&f->link);
    sim_media_free(f);
    mem_free(f->path);
    mem_free(f);
}

static void file_unlink(struct sim_file *f)
{
    f->linked = false;
    file_unref(f);
}

void sim_files_free(struct sim *sim)
{
    list_for_each_safe (it, &sim->files) {
        struct sim_file *f = LIST_ENTRY(it, struct sim_file, link);

        CHECK(f->linked && f->refs == 1);
        file_unlink(f);
    }
    while (!list_empty(&sim->file_faults))
        faults_free(LIST_ENTRY(sim->file_faults.next, struct sim_path_faults, link));
}

/* ---- Operations
 * ----------------------------------------------------------------------------------- */

static struct sim_handle *handle_of(const struct env_io *io)
{
    return (struct sim_handle *)io->file;
}

static struct sim_change op_change(const struct sim_op *op)
{
    const struct env_io *io = op->io;
    uint64_t size = handle_of(io)->file->now.size;
    struct sim_change c = {
        .kind = io->kind,
        .off = io->off,
        .process = sim_env_of(io->file->env)->id,
    };

    if (io->kind == ENV_WRITE) {
        CHECK(crc32c(0, io->buf, io->len) == op->crc); /* the buffer has to stay as it was */
        c.data = io->buf;
        c.len = io->len;
        c.dsync = io->dsync;
    } else if (io->kind == ENV_TRIM && io->off < size) { /* nothing to give back past the end */
        c.len = io->len < size - io->off ? io->len : size - io->off;
    }
    return c;
}

static int64_t op_read(struct sim_file *f, const struct env_io *io, const struct sim_faults *faults)
{
    size_t n;

    if (sim_chance(f->sim, faults->read_eio))
        return ERR_IO;
    n = (size_t)(io->off < f->now.size ? f->now.size - io->off : 0);
    if (n > io->len)
        n = io->len;
    if (n && sim_chance(f->sim, faults->bit_flip))
        sim_media_xor(f, io->off + sim_random(f->sim, n), (uint8_t)(1u << sim_random(f->sim, 8)));
    return (int64_t)sim_media_read(f, io->buf, n, io->off);
}

static int64_t op_write(struct sim_file *f, const struct sim_op *op,
                        const struct sim_faults *faults)
{
    struct sim_change c = op_change(op);

    if (faults->nospc && !sim_media_has_space(f, c.off, c.len) && sim_chance(f->sim, faults->nospc))
        return ERR_NOSPC;
    if (sim_chance(f->sim, faults->write_eio)) {
        sim_media_change_torn(f, &c);
        return ERR_IO;
    }
    if (sim_chance(f->sim, faults->lost_write)) {
        /* Either it vanishes at once, or the drive shows it until its power fails. */
        c.lie = true;
        if (sim_random(f->sim, 2))
            sim_media_change(f, &c);
        return (int64_t)op->io->len;
    }
    if (f->now.size >= 4096 && sim_chance(f->sim, faults->misdirected_write))
        c.off = sim_random(f->sim, f->now.size / 4096) * 4096;
    sim_media_change(f, &c);
    return (int64_t)op->io->len;
}

static int64_t op_sync(struct sim_file *f, const struct sim_op *op, const struct sim_faults *faults)
{
    if (sim_chance(f->sim, faults->write_eio)) {
        sim_media_sync_failed(f, op->sync_upto);
        return ERR_IO;
    }
    sim_media_sync(f, op->sync_upto);
    return 0;
}

static int64_t op_reserve(struct sim_file *f, const struct env_io *io,
                          const struct sim_faults *faults)
{
    if (faults->no_reserve)
        return ERR_UNSUPPORTED;
    if (faults->nospc && !sim_media_has_space(f, io->off, io->len) &&
        sim_chance(f->sim, faults->nospc))
        return ERR_NOSPC;
    sim_media_reserve(f, io->off, io->len);
    return 0;
}

static int64_t op_other(struct sim_file *f, const struct sim_op *op)
{
    struct sim_change c = op_change(op);

    sim_media_change(f, &c);
    return 0;
}

static int64_t op_result(struct sim_file *f, const struct sim_op *op)
{
    const struct sim_faults *faults = faults_of(f);
    const struct sim_handle *h = handle_of(op->io);
    int r = env_io_check(op->io, h->direct, h->readonly);

    if (r < 0)
        return r;
    switch (op->io->kind) {
    case ENV_READ:
        return op_read(f, op->io, faults);
    case ENV_WRITE:
        return op_write(f, op, faults);
    case ENV_SYNC:
        return op_sync(f, op, faults);
    case ENV_RESERVE:
        return op_reserve(f, op->io, faults);
    case ENV_TRIM:
    case ENV_RESIZE:
        break;
    }
    return op_other(f, op);
}

static void handle_detach(struct sim_handle *h)
{
    if (h->lock)
        h->file->locked = false;
    list_del(&h->link);
    file_unref(h->file);
}

/* The operation is answered; on a forsaken file the last one is the end of that. */
static void op_done(struct env_io *io)
{
    struct sim_handle *h = handle_of(io);
    bool last = --h->in_flight == 0 && h->forsaken;

    io->done(io);
    if (last) {
        handle_detach(h);
        mem_free(h);
    }
}

static void op_happens(struct sim_event *e)
{
    struct sim_op *op = (struct sim_op *)e;
    struct env_io *io = op->io;
    struct sim_file *f = handle_of(io)->file;
    struct mem_domain *before;

    if (faults_of(f)->hang) {
        list_push_back(&f->held, &op->held);
        return;
    }
    before = env_outside_enter();
    io->result = op_result(f, op);
    sim_digest_add(f->sim, (uint64_t)f->id << 8 | io->kind);
    sim_digest_add(f->sim, io->off ^ (uint64_t)io->result << 40);
    if (io->kind == ENV_READ && io->result > 0)
        sim_digest_add(f->sim, crc32c(0, io->buf, (size_t)io->result));
    else
        sim_digest_add(f->sim, op->crc);
    mem_free(op);
    env_outside_leave(before);
    op_done(io);
}

/* Ends as the process does: what it has left with us is its memory, and must be accounted for. */
static void op_forsaken(struct env_io *io)
{
    struct mem_domain *before = mem_domain_enter(io->file->env->domain);

    op_done(io);
    mem_domain_enter(before);
}

/* Its process goes, by a kill or after a clean end that did not wait for it. */
static void op_dropped(struct sim_event *e)
{
    struct sim_op *op = (struct sim_op *)e;
    struct sim_handle *h = handle_of(op->io);

    if (op->io->kind != ENV_READ && op->io->kind != ENV_SYNC &&
        env_io_check(op->io, h->direct, h->readonly) == 0) {
        struct sim_change c = op_change(op);

        sim_media_change_torn(h->file, &c);
    }
    op->io->result = ERR_CANCELED;
    if (sim_env_of(h->base.env)->ended)
        op_forsaken(op->io);
    mem_free(op);
}

static void handle_start(struct env_file *file, struct env_io *io)
{
    struct sim_handle *h = (struct sim_handle *)file;
    struct sim_file *f = h->file;
    const struct sim_faults *faults = faults_of(f);
    struct mem_domain *before = env_outside_enter();
    struct sim_op *op = mem_zalloc(sizeof(*op));

    op->event =
        (struct sim_event){.owner = sim_env_of(file->env), .fn = op_happens, .drop = op_dropped};
    op->io = io;
    op->sync_upto = f->last_seq;
    if (io->kind == ENV_WRITE)
        op->crc = crc32c(0, io->buf, io->len);
    list_init(&op->held);
    h->in_flight++;
    sim_schedule(f->sim, &op->event,
                 f->sim->now + sim_between(f->sim, faults->io_min_ns, faults->io_max_ns) *
                                   (faults->slow ? faults->slow : 1));
    env_outside_leave(before);
}

/* ---- Handles
 * -------------------------------------------------------------------------------------- */

static int handle_size(struct env_file *file, uint64_t *ret_size)
{
    *ret_size = ((struct sim_handle *)file)->file->now.size;
    return 0;
}

static void handle_close(struct env_file *file)
{
    struct sim_handle *h = (struct sim_handle *)file;

    CHECK(h->in_flight == 0);
    handle_detach(h);
    mem_free(h);
}

static void handle_forsake(struct env_file *file)
{
    struct sim_handle *h = (struct sim_handle *)file;

    if (h->in_flight == 0)
        handle_close(file);
    else
        h->forsaken = true;
}

static const struct env_file_ops handle_ops = {
    .start = handle_start, .size = handle_size, .close = handle_close, .forsake = handle_forsake};

static void file_delay(struct env *env)
{
    struct sim *sim = sim_env_of(env)->sim;

    env_sleep(env, sim_between(sim, sim->faults.io_min_ns, sim->faults.io_max_ns));
}

int sim_open(struct env *env, const char *path, unsigned flags, struct env_file **ret_file)
{
    struct sim *sim = sim_env_of(env)->sim;
    struct sim_handle *h;
    struct sim_file *f;

    file_delay(env);
    f = file_find(sim, path);
    if (f && (flags & ENV_OPEN_CREATE) && (flags & ENV_OPEN_EXCL))
        return ERR_EXIST;
    if (!f && !(flags & ENV_OPEN_CREATE))
        return ERR_NOENT;
    if (!f)
        f = file_new(sim, path);
    if ((flags & ENV_OPEN_LOCK) && f->locked)
        return ERR_LOCKED;
    h = mem_zalloc(sizeof(*h)); /* the process's: one that is never closed shows as a leak */
    h->base = (struct env_file){.ops = &handle_ops, .env = env};
    h->file = f;
    h->direct = flags & ENV_OPEN_DIRECT;
    h->readonly = flags & ENV_OPEN_RDONLY;
    h->lock = flags & ENV_OPEN_LOCK;
    if (h->lock)
        f->locked = true;
    f->refs++;
    list_push_back(&sim_env_of(env)->handles, &h->link);
    *ret_file = &h->base;
    return 0;
}

int sim_mkdir(struct env *env, const char *path)
{
    file_delay(env);
    return file_find(sim_env_of(env)->sim, path) ? ERR_EXIST : 0;
}

int sim_unlink(struct env *env, const char *path)
{
    struct sim_file *f;

    file_delay(env);
    f = file_find(sim_env_of(env)->sim, path);
    if (!f)
        return ERR_NOENT;
    file_unlink(f);
    return 0;
}

int sim_rename(struct env *env, const char *from, const char *to)
{
    struct mem_domain *before;
    struct sim_file *f, *over;
    char *name;

    file_delay(env);
    f = file_find(sim_env_of(env)->sim, from);
    over = file_find(sim_env_of(env)->sim, to);
    if (!f)
        return ERR_NOENT;
    if (f == over)
        return 0;
    if (over)
        file_unlink(over);
    name = f->path;
    before = env_outside_enter();
    f->path = mem_strdup(to);
    mem_free(name);
    env_outside_leave(before);
    return 0;
}

/* Files that the process has open, or has left with something unsynced. */
static void files_power_cut(struct sim_env *p)
{
    list_for_each (it, &p->sim->files) {
        struct sim_file *f = LIST_ENTRY(it, struct sim_file, link);
        bool cut = sim_media_pending_of(f, p->id);

        list_for_each (at, &p->handles)
            cut = cut || LIST_ENTRY(at, struct sim_handle, link)->file == f;
        if (cut)
            sim_media_power_cut(f);
    }
}

/* Drops what the process has in flight on files that hang; on forsaken ones only, if it ended. */
static void files_drop_held(struct sim_env *p)
{
    list_for_each_safe (it, &p->sim->files) {
        struct sim_file *f = LIST_ENTRY(it, struct sim_file, link);

        f->refs++; /* the last operation may close the last handle */
        list_for_each_safe (at, &f->held) {
            struct sim_op *op = LIST_ENTRY(at, struct sim_op, held);

            if (op->event.owner != p || (p->ended && !handle_of(op->io)->forsaken))
                continue;
            list_del(&op->held);
            op_dropped(&op->event);
        }
        file_unref(f);
    }
}

static bool op_is_forsaken(const struct sim_event *e, const void *owner)
{
    return e->owner == owner && e->fn == op_happens &&
           handle_of(((const struct sim_op *)e)->io)->forsaken;
}

/* As in a kill, each of them may have happened, not, or in part. */
void sim_files_end(struct sim_env *p)
{
    struct mem_domain *before = env_outside_enter();

    p->ended = true;
    sim_events_drop(p->sim, op_is_forsaken, p);
    files_drop_held(p);
    env_outside_leave(before);
}

void sim_files_kill(struct sim_env *p, bool power)
{
    p->ended = false;
    files_drop_held(p);
    if (power)
        files_power_cut(p);
    list_for_each_safe (it, &p->handles)
        handle_detach(
            LIST_ENTRY(it, struct sim_handle, link)); /* its memory goes with the domain */
}

/* ---- The medium, for tests
 * ------------------------------------------------------------------------ */

int sim_file_read(struct sim *sim, const char *path, void *buf, size_t len, uint64_t off)
{
    struct sim_file *f = file_find(sim, path);

    if (!f)
        return ERR_NOENT;
    if (off > f->now.size || len > f->now.size - off)
        return ERR_TRUNCATED;
    sim_media_read(f, buf, len, off);
    return 0;
}

int sim_file_corrupt(struct sim *sim, const char *path, uint64_t off, size_t len)
{
    struct sim_file *f = file_find(sim, path);
    struct mem_domain *before;

    if (!f)
        return ERR_NOENT;
    if (off > f->now.size || len > f->now.size - off)
        return ERR_RANGE;
    before = env_outside_enter();
    sim_media_noise(f, off, len);
    env_outside_leave(before);
    return 0;
}

int sim_file_delete(struct sim *sim, const char *path)
{
    struct sim_file *f = file_find(sim, path);

    if (!f)
        return ERR_NOENT;
    file_unlink(f);
    return 0;
}

uint64_t sim_file_size(struct sim *sim, const char *path)
{
    const struct sim_file *f = file_find(sim, path);

    return f ? f->now.size : 0;
}

/* The file, when nobody has it open. */
static struct sim_file *file_at_rest(struct sim *sim, const char *path)
{
    struct sim_file *f = file_find(sim, path);

    CHECK(!f || f->refs == 1);
    return f;
}

int sim_file_keep(struct sim *sim, const char *path)
{
    struct sim_file *f = file_at_rest(sim, path);
    struct mem_domain *before;

    if (!f)
        return ERR_NOENT;
    before = env_outside_enter();
    sim_media_keep(f);
    env_outside_leave(before);
    return 0;
}

int sim_file_restore(struct sim *sim, const char *path)
{
    struct sim_file *f = file_at_rest(sim, path);
    struct mem_domain *before;

    if (!f || !f->has_kept)
        return ERR_NOENT;
    before = env_outside_enter();
    sim_media_restore(f);
    env_outside_leave(before);
    return 0;
}

/* The clients: fibers that do random operations and tell the model of each before and after. */
#include "tests/sim/hang.h"
#include "tests/sim/run.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"

#define READ_MAX       (256u * 1024)
#define FLYING_MAX     (2u << 20) /* bytes that one client writes at once, at most */
#define TIGHT_SEGMENTS 2u         /* one may come free just after a write was refused */

/* ---- Data ---- */

static void fill_noise(uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i += 8) {
        size_t take = n - i < 8 ? n - i : 8;

        seed = seed * 6364136223846793005u + 1442695040888963407u;
        memcpy(p + i, &seed, take);
        p[i] ^= (uint8_t)(seed >> 56);
    }
}

static void fill_block(struct run *r, uint8_t *p, size_t n)
{
    uint64_t dice = run_random(r, 100), stamp;

    if (dice < 10) {
        memset(p, 0, n);
    } else if (dice < 35) {
        fill_noise(p, n, run_random(r, 8)); /* seen before: dedup */
    } else if (dice < 60) {
        stamp = run_random(r, UINT64_MAX);
        for (size_t i = 0; i < n; i += 8)
            memcpy(p + i, &stamp, n - i < 8 ? n - i : 8); /* compresses */
    } else {
        fill_noise(p, n, run_random(r, UINT64_MAX));
    }
}

static uint8_t *make_data(struct run *r, uint64_t len)
{
    uint8_t *p = mem_alloc((size_t)len);

    for (uint64_t at = 0; at < len; at += BLOCK_SIZE)
        fill_block(r, p + at, len - at < BLOCK_SIZE ? (size_t)(len - at) : BLOCK_SIZE);
    return p;
}

/* ---- Losses ---- */

bool client_lost(struct run *r, int rc)
{
    if (!r->beyond || (rc != ERR_LOST && rc != ERR_IO && rc != ERR_JOURNAL && rc != ERR_NOSPC))
        return false;
    r->ops_left = 0;
    r->errors++;
    return true;
}

/* ---- Space ---- */

/* What all volumes, snapshots, instances and objects have in them, at most: every block of which
 * the model knows that it was ever written since the volume was made, once for each that shows it.
 */
static uint64_t model_bytes(const struct run *r)
{
    uint64_t n = model_volume_blocks(&r->model) * BLOCK_SIZE;

    for (unsigned i = 0; i < INSTANCES; i++)
        n += model_instance_may_be(&r->instances[i]) * INSTANCE_SIZE_MAX;
    for (unsigned b = 0; b < OBJECT_BUCKETS; b++)
        for (unsigned i = 0; i < OBJECT_NAMES; i++)
            n += model_instance_may_be(&r->buckets[b].objects[i]) * OBJECT_SIZE_MAX;
    return n;
}

/* What clients may have in flight. */
static uint64_t flying_bytes(const struct run *r)
{
    return (uint64_t)r->clients * FLYING_MAX;
}

bool client_tight(struct run *r)
{
    struct partition_status s;

    partition_get_status(r->p, &s);
    return s.free < TIGHT_SEGMENTS * r->slot_size * r->k;
}

/* A store that is less than half full, by the model's account and not its own, has room for every
 * write: what is dead comes back while the write waits. Not counted is what each stream has open:
 * in a store of a few segments that is much of it. */
static bool mostly_empty(struct run *r, uint64_t bytes)
{
    uint64_t segment = r->slot_size * r->k;
    struct partition_status s;

    partition_get_status(r->p, &s);
    return 2 * (model_bytes(r) + flying_bytes(r) + bytes + TIGHT_SEGMENTS * segment) +
               SEGMENT_STREAMS * segment <=
           s.capacity;
}

bool client_full_enough(struct run *r, uint64_t bytes)
{
    uint64_t segment = r->slot_size * r->k;
    struct partition_status s;

    if (r->host_was_full)
        return true;
    partition_get_status(r->p, &s);
    return s.free <= bytes + flying_bytes(r) + TIGHT_SEGMENTS * segment && !mostly_empty(r, bytes);
}

bool client_space_failed(struct run *r, int rc)
{
    if (rc != ERR_NOSPC)
        return false;
    /* What is in the overlay can always be drained: room for it is kept. But drives that go, or are
     * put out, take theirs along. */
    return r->host_was_full || ((r->ever_damaged || r->drives_change) && client_tight(r));
}

/* ---- Volumes ---- */

static struct model_volume *pick_volume(struct run *r)
{
    return &r->model.volumes[run_random(r, MODEL_VOLUMES)];
}

static uint64_t pick_size(struct run *r)
{
    uint64_t blocks = 1 + run_random(r, r->block_span);

    return blocks * BLOCK_SIZE;
}

static void op_create(struct run *r)
{
    struct model_volume *v = pick_volume(r);
    uint64_t size = pick_size(r);
    int rc;

    if (v->admin)
        return;
    v->admin = true;
    if (v->exists == MODEL_ABSENT) {
        v->exists = MODEL_UNSURE;
        v->size = v->other_size = size;
        rc = block_create(partition_blocks(r->p), v->name, size,
                          run_chance(r, 50) ? BLOCK_EVERY_WRITE : BLOCK_ON_FLUSH);
        if (client_lost(r, rc))
            return;
        if (rc < 0)
            run_fail(r, "create %s: %s", v->name, err_name(rc));
        v->exists = MODEL_PRESENT;
        run_trace(r, "created %s size %llu", v->name, (unsigned long long)size);
    } else {
        rc = block_create(partition_blocks(r->p), v->name, size, BLOCK_EVERY_WRITE);
        if (rc != ERR_EXIST)
            run_fail(r, "create %s, which exists: %s", v->name, err_name(rc));
    }
    v->admin = false;
}

static bool has_snaps(const struct run *r, const struct model_volume *v)
{
    for (unsigned i = 0; i < MODEL_SNAPS; i++)
        if (r->model.snaps[v - r->model.volumes][i].exists == MODEL_PRESENT)
            return true;
    return false;
}

static void op_remove(struct run *r)
{
    struct model_volume *v = pick_volume(r);
    bool used = v->users > 0, has = has_snaps(r, v);
    int rc;

    if (v->admin || (!used && v->exists == MODEL_PRESENT && run_chance(r, 60)))
        return; /* not too often */
    v->admin = true;
    if (v->exists == MODEL_ABSENT || used || has) {
        rc = block_remove(partition_blocks(r->p), v->name);
        if (rc != (used ? ERR_BUSY : has ? ERR_SNAPSHOTS : ERR_NOENT))
            run_fail(r, "remove %s, %s: %s", v->name,
                     used  ? "open"
                     : has ? "with snapshots"
                           : "absent",
                     err_name(rc));
    } else {
        v->exists = MODEL_UNSURE;
        rc = block_remove(partition_blocks(r->p), v->name);
        if (client_lost(r, rc))
            return;
        if (rc < 0)
            run_fail(r, "remove %s: %s", v->name, err_name(rc));
        v->exists = MODEL_ABSENT;
        model_volume_cut(&r->model, v, 0);
        run_trace(r, "removed %s", v->name);
    }
    v->admin = false;
}

static void op_resize(struct run *r)
{
    struct model_volume *v = pick_volume(r);
    struct model_write *w = NULL;
    uint64_t size = pick_size(r);
    int rc;

    if (v->admin || v->exists != MODEL_PRESENT)
        return;
    if (size < v->size) {
        w = model_write_begin(&r->model, v, size, v->size - size, NULL);
        if (!w)
            return;
    }
    v->admin = true;
    v->users++;
    v->other_size = size;
    v->resizes++;
    rc = block_resize(partition_blocks(r->p), v->name, size);
    if (client_lost(r, rc))
        return;
    if (rc < 0)
        run_fail(r, "resize %s: %s", v->name, err_name(rc));
    v->size = size;
    v->resizes++;
    if (w)
        model_write_end(&r->model, w, MODEL_DONE);
    v->users--;
    v->admin = false;
    run_trace(r, "resized %s to %llu", v->name, (unsigned long long)size);
}

/* ---- Snapshots ----
 *
 * Whoever does something with a volume's snapshots is its administrator meanwhile; its users go on.
 */

static struct model_volume *pick_snap(struct run *r, const struct model_volume *v)
{
    return &r->model.snaps[v - r->model.volumes][run_random(r, MODEL_SNAPS)];
}

/* A snapshot that is there, of a volume whose administrator one may be; NULL. */
static struct model_volume *pick_present(struct run *r)
{
    struct model_volume *s = pick_snap(r, pick_volume(r));

    return s->exists == MODEL_PRESENT && !s->of->admin ? s : NULL;
}

static const char *snap_name(const struct model_volume *s)
{
    return strchr(s->name, '@') + 1;
}

/* The snapshots of one number, of a volume or a few, that can be taken now. */
static size_t pick_group(struct run *r, struct model_volume **group, const char **names)
{
    unsigned number = (unsigned)run_random(r, MODEL_SNAPS), first, most;
    size_t n = 0;

    first = (unsigned)run_random(r, MODEL_VOLUMES);
    most = run_chance(r, 50) ? 1 : 1 + (unsigned)run_random(r, MODEL_VOLUMES);
    for (unsigned i = 0; i < most; i++) {
        unsigned at = (first + i) % MODEL_VOLUMES;
        struct model_volume *s = &r->model.snaps[at][number];

        if (s->exists != MODEL_ABSENT || s->of->exists != MODEL_PRESENT || s->of->admin)
            continue;
        names[n] = s->of->name;
        group[n++] = s;
    }
    return n;
}

static void op_snapshot(struct run *r)
{
    struct model_volume *group[MODEL_VOLUMES];
    const char *names[MODEL_VOLUMES];
    size_t n = pick_group(r, group, names);
    int rc;

    if (n == 0)
        return;
    for (size_t i = 0; i < n; i++) {
        group[i]->of->admin = true;
        group[i]->exists = MODEL_UNSURE;
        group[i]->group = r->ops; /* a number of its own */
        model_snapshot_begin(&r->model, group[i]);
    }
    rc = block_snapshot(partition_blocks(r->p), names, n, snap_name(group[0]));
    if (client_lost(r, rc))
        return;
    if (rc < 0)
        run_fail(r, "snapshot of %s: %s", group[0]->name, err_name(rc));
    for (size_t i = 0; i < n; i++) {
        model_snapshot_end(&r->model, group[i]);
        group[i]->exists = MODEL_PRESENT;
        group[i]->group = 0;
    }
    run_trace(r, "snapshot %s and %zu more", group[0]->name, n - 1);
    rc = block_snapshot(partition_blocks(r->p), names, n, snap_name(group[0]));
    if (rc == 0)
        run_fail(r, "snapshot %s was taken twice", group[0]->name);
    for (size_t i = 0; i < n; i++)
        group[i]->of->admin = false;
}

static void op_snapshot_delete(struct run *r)
{
    struct model_volume *s = pick_present(r);
    bool used;
    int rc;

    if (!s)
        return;
    used = s->users > 0;
    s->of->admin = true;
    if (!used)
        s->exists = MODEL_UNSURE;
    rc = block_snapshot_remove(partition_blocks(r->p), s->of->name, snap_name(s));
    if (client_lost(r, rc))
        return;
    if (rc != (used ? ERR_BUSY : 0))
        run_fail(r, "delete snapshot %s%s: %s", s->name, used ? ", open" : "", err_name(rc));
    if (!used) {
        s->exists = MODEL_ABSENT;
        model_volume_cut(&r->model, s, 0);
        run_trace(r, "deleted %s", s->name);
    }
    s->of->admin = false;
}

static void op_clone(struct run *r)
{
    struct model_volume *s = pick_present(r), *v = pick_volume(r);
    int rc;

    if (!s || v == s->of || v->admin || v->exists != MODEL_ABSENT)
        return;
    s->of->admin = v->admin = true;
    v->exists = MODEL_UNSURE;
    v->size = v->other_size = s->size;
    model_volume_copy(&r->model, v, s, true);
    rc = block_clone(partition_blocks(r->p), s->of->name, snap_name(s), v->name);
    if (client_lost(r, rc))
        return;
    if (rc < 0)
        run_fail(r, "clone %s to %s: %s", s->name, v->name, err_name(rc));
    v->exists = MODEL_PRESENT;
    s->of->admin = v->admin = false;
    run_trace(r, "cloned %s to %s", s->name, v->name);
}

static void op_rollback(struct run *r)
{
    struct model_volume *s = pick_present(r), *v;
    int rc;

    if (!s)
        return;
    v = s->of;
    v->admin = true;
    if (v->users) {
        rc = block_rollback(partition_blocks(r->p), v->name, snap_name(s));
        if (rc != ERR_BUSY)
            run_fail(r, "roll back to %s, in use: %s", s->name, err_name(rc));
    } else {
        v->exists = MODEL_UNSURE; /* nobody opens it */
        v->other_size = s->size;
        model_volume_copy(&r->model, v, s, false);
        rc = block_rollback(partition_blocks(r->p), v->name, snap_name(s));
        if (client_lost(r, rc))
            return;
        if (rc < 0)
            run_fail(r, "roll back to %s: %s", s->name, err_name(rc));
        model_volume_copy(&r->model, v, s, true);
        v->size = s->size;
        v->exists = MODEL_PRESENT;
        run_trace(r, "rolled back to %s", s->name);
    }
    v->admin = false;
}

/* ---- Volume I/O ---- */

struct io {
    struct run *r;
    struct model_volume *v;
    struct block_volume *handle;
    uint64_t off, len, resizes;
    bool fits_not; /* it lies beyond the end, before or after */
    bool writes;
};

static uint64_t volume_low(const struct model_volume *v)
{
    return v->size < v->other_size ? v->size : v->other_size;
}

/* Opens a volume and picks a range of at most `max` bytes in units of `unit`. False: nothing to do.
 */
static bool io_begin_on(struct run *r, struct model_volume *v, struct io *io, uint64_t max,
                        uint64_t unit)
{
    uint64_t span;
    int rc;

    *io = (struct io){.r = r, .v = v};
    if (v->exists != MODEL_PRESENT)
        return false;
    rc = block_open(partition_blocks(r->p), v->name, &io->handle);
    if (client_lost(r, rc))
        return false;
    if (rc < 0)
        run_fail(r, "open %s: %s", v->name, err_name(rc));
    v->users++;
    span = v->size > v->other_size ? v->size : v->other_size;
    if (run_chance(r, 2))
        span += 64 * BLOCK_SIZE; /* beyond the end */
    if (span > MODEL_BLOCKS * (uint64_t)BLOCK_SIZE)
        span = MODEL_BLOCKS * (uint64_t)BLOCK_SIZE;
    io->off = run_random(r, span / unit) * unit;
    io->len = (1 + run_random(r, max / unit)) * unit;
    if (io->len > span - io->off)
        io->len = span - io->off;
    if (run_chance(r, 40) && io->len < span)
        io->off =
            run_random(r, (span - io->len) / unit + 1) * unit % (16 * BLOCK_SIZE); /* a hot spot */
    io->resizes = v->resizes;
    io->fits_not = io->off + io->len > volume_low(v);
    return true;
}

static bool io_begin(struct run *r, struct io *io, uint64_t max, uint64_t unit)
{
    bool begun = io_begin_on(r, pick_volume(r), io, max, unit);

    io->writes = true;
    return begun;
}

/* For who only reads: also of a snapshot. */
static bool io_begin_reading(struct run *r, struct io *io, uint64_t max, uint64_t unit)
{
    struct model_volume *v = pick_volume(r), *s = pick_snap(r, v);

    return io_begin_on(r, s->exists == MODEL_PRESENT && run_chance(r, 40) ? s : v, io, max, unit);
}

static void io_end(struct io *io)
{
    io->v->users--;
    block_close(io->handle);
}

/* Judges an I/O's result. True: it was done. */
static bool io_done(struct io *io, const char *what, int rc)
{
    struct run *r = io->r;
    bool resized = io->resizes != io->v->resizes;

    if (rc == ERR_RANGE && (io->fits_not || resized))
        return false;
    if (rc == 0 && !(io->fits_not && !resized && io->v->size == io->v->other_size))
        return true;
    if (rc == ERR_NOSPC && io->writes && client_full_enough(r, io->len)) {
        r->nospc++;
        return false;
    }
    if (client_lost(r, rc))
        return false;
    run_fail(r, "%s %s at %llu, %llu bytes: %s", what, io->v->name, (unsigned long long)io->off,
             (unsigned long long)io->len, err_name(rc));
}

static void op_write(struct run *r, uint64_t max, uint64_t unit)
{
    struct io io;
    struct model_write *w;
    uint8_t *data;
    int rc;

    if (!io_begin(r, &io, max, unit))
        return;
    data = make_data(r, io.len);
    w = model_write_begin(&r->model, io.v, io.off, io.len, data);
    if (w) {
        run_trace(r, "write %llu: %s at %llu, %llu bytes",
                  (unsigned long long)model_write_origin(w), io.v->name, (unsigned long long)io.off,
                  (unsigned long long)io.len);
        rc = block_write(io.handle, io.off, data, io.len, run_chance(r, 20) ? BLOCK_FUA : 0);
        run_trace(r, "write %llu: %s", (unsigned long long)model_write_origin(w), err_name(rc));
        model_write_end(&r->model, w,
                        io_done(&io, "write", rc) ? MODEL_DONE
                        : rc == ERR_RANGE         ? MODEL_NOT
                                                  : MODEL_MAYBE);
    }
    mem_free(data);
    io_end(&io);
}

static void op_zero(struct run *r)
{
    struct io io;
    struct model_write *w;
    int rc;

    if (!io_begin(r, &io, run_chance(r, 20) ? 8u << 20 : 96 * BLOCK_SIZE,
                  run_chance(r, 70) ? BLOCK_SIZE : 1))
        return;
    w = model_write_begin(&r->model, io.v, io.off, io.len, NULL);
    if (w) {
        run_trace(r, "zero %llu: %s at %llu, %llu bytes", (unsigned long long)model_write_origin(w),
                  io.v->name, (unsigned long long)io.off, (unsigned long long)io.len);
        rc = run_chance(r, 50) ? block_zero(io.handle, io.off, io.len, 0)
                               : block_discard(io.handle, io.off, io.len, 0);
        run_trace(r, "zero %llu: %s", (unsigned long long)model_write_origin(w), err_name(rc));
        model_write_end(&r->model, w,
                        io_done(&io, "zero", rc) ? MODEL_DONE
                        : rc == ERR_RANGE        ? MODEL_NOT
                                                 : MODEL_MAYBE);
    }
    io_end(&io);
}

static void op_read(struct run *r)
{
    struct io io;
    uint8_t *buf;
    char why[300];
    uint64_t at;
    int rc;

    if (!io_begin_reading(r, &io, READ_MAX, run_chance(r, 60) ? BLOCK_SIZE : 1))
        return;
    buf = mem_alloc((size_t)io.len);
    model_read_begin(&r->model, io.v, io.off, io.len);
    rc = block_read(io.handle, io.off, buf, io.len);
    if (!io_done(&io, "read", rc))
        model_read_drop(&r->model, io.v, io.off, io.len);
    else if (!model_read_end(&r->model, io.v, io.off, io.len, buf, &at, why, sizeof(why)))
        run_fail(r, "wrong bytes of %s at %llu: %s", io.v->name, (unsigned long long)at, why);
    mem_free(buf);
    io_end(&io);
}

/* Holes must not hide data. */
static void check_extents(struct io *io, const struct block_extent *e, size_t n)
{
    uint64_t at = io->off;

    for (size_t i = 0; i < n; i++) {
        if (e[i].length == 0 || e[i].length > io->off + io->len - at ||
            (i && e[i].hole == e[i - 1].hole))
            run_fail(io->r, "extents of %s at %llu make no sense", io->v->name,
                     (unsigned long long)at);
        for (uint64_t b = at; e[i].hole && b < at + e[i].length; b += BLOCK_SIZE)
            if (model_block_surely(&io->r->model, io->v, b / BLOCK_SIZE, false))
                run_fail(io->r, "extents say that block %llu of %s is a hole",
                         (unsigned long long)(b / BLOCK_SIZE), io->v->name);
        at += e[i].length;
    }
}

static void op_extents(struct run *r)
{
    struct block_extent extents[32];
    struct io io;
    size_t n = 0;
    int rc;

    if (!io_begin_reading(r, &io, 8u << 20, BLOCK_SIZE))
        return;
    model_read_begin(&r->model, io.v, io.off, io.len);
    rc = block_extents(io.handle, io.off, io.len, extents, 1 + run_random(r, 32), &n);
    if (io_done(&io, "extents", rc))
        check_extents(&io, extents, n);
    model_read_drop(&r->model, io.v, io.off, io.len);
    io_end(&io);
}

static void op_flush(struct run *r)
{
    struct io io;
    int rc;

    if (!io_begin(r, &io, BLOCK_SIZE, BLOCK_SIZE))
        return;
    rc = block_flush(io.handle);
    if (rc < 0 && !client_lost(r, rc))
        run_fail(r, "flush %s: %s", io.v->name, err_name(rc));
    io_end(&io);
}

static void op_list(struct run *r)
{
    struct block_info *infos;
    size_t n;
    unsigned sure = 0, may = 0;
    int rc = block_list(partition_blocks(r->p), &infos, &n);

    if (rc < 0)
        run_fail(r, "list: %s", err_name(rc));
    for (unsigned i = 0; i < MODEL_VOLUMES; i++) {
        sure += r->model.volumes[i].exists == MODEL_PRESENT;
        may += r->model.volumes[i].exists != MODEL_ABSENT;
    }
    if (n < sure || n > may)
        run_fail(r, "%zu volumes listed, %u to %u exist", n, sure, may);
    mem_free(infos);
}

/* ---- All ---- */

static void op_settle(struct run *r)
{
    int rc = partition_settle(r->p);

    if (rc < 0 && !client_space_failed(r, rc) && !client_lost(r, rc))
        run_fail(r, "settle: %s", err_name(rc));
}

static void op_compact(struct run *r)
{
    int rc = partition_compact(r->p);

    if (rc == ERR_NOSPC && (r->host_was_full || client_tight(r)))
        return; /* what is moved takes room until its place is free */
    if (rc < 0 && !(rc == ERR_IO && r->ever_damaged) && !client_lost(r, rc))
        run_fail(r, "compact: %s", err_name(rc));
}

static void step_snapshots(struct run *r, enum op_kind kind)
{
    switch (kind) {
    case OP_SNAPSHOT:
        op_snapshot(r);
        break;
    case OP_SNAPSHOT_DELETE:
        op_snapshot_delete(r);
        break;
    case OP_CLONE:
        op_clone(r);
        break;
    case OP_ROLLBACK:
        op_rollback(r);
        break;
    default:
        objects_step(r, kind);
        break;
    }
}

static void step_background(struct run *r, enum op_kind kind)
{
    switch (kind) {
    case OP_COMPACT:
        op_compact(r);
        break;
    case OP_SETTLE:
        op_settle(r);
        break;
    case OP_SCRUB:
        scrub_op(r);
        break;
    case OP_DRIVE:
        op_drive(r);
        break;
    default:
        step_snapshots(r, kind);
        break;
    }
}

static void client_step(struct run *r)
{
    uint64_t dice = run_random(r, r->weight_sum);
    unsigned kind = 0;

    while (dice >= r->weights[kind])
        dice -= r->weights[kind++];
    r->ops++;
    switch ((enum op_kind)kind) {
    case OP_CREATE:
        op_create(r);
        break;
    case OP_REMOVE:
        op_remove(r);
        break;
    case OP_RESIZE:
        op_resize(r);
        break;
    case OP_WRITE:
        op_write(r, 15 * BLOCK_SIZE, BLOCK_SIZE);
        break;
    case OP_WRITE_PART:
        op_write(r, run_chance(r, 90) ? 3 * BLOCK_SIZE : 200 * 1024, run_chance(r, 50) ? 512 : 1);
        break;
    case OP_WRITE_BULK:
        op_write(r, run_chance(r, 95) ? 64 * BLOCK_SIZE : 2u << 20, BLOCK_SIZE);
        break;
    case OP_ZERO:
        op_zero(r);
        break;
    case OP_READ:
        op_read(r);
        break;
    case OP_EXTENTS:
        op_extents(r);
        break;
    case OP_FLUSH:
        op_flush(r);
        break;
    case OP_LIST:
        op_list(r);
        break;
    default:
        if (!studies_step(r, (enum op_kind)kind))
            step_background(r, (enum op_kind)kind);
        break;
    }
}

void client_main(void *arg)
{
    struct run *r = arg;

    while (r->ops_left) {
        r->ops_left--;
        hang_timed(r, client_step);
        if (r->think_ns)
            env_sleep(r->env, run_random(r, r->think_ns));
    }
    fiber_group_done(&r->group);
}

bool clients_delete_all(struct run *r)
{
    char uid[OBJECT_UID_MAX + 1];
    int rc;

    for (unsigned i = 0; i < MODEL_VOLUMES * MODEL_SNAPS; i++) {
        unsigned at = (i * 5 + 3) % (MODEL_VOLUMES * MODEL_SNAPS); /* not in order */
        struct model_volume *s = &r->model.snaps[0][0] + at;

        rc = block_snapshot_remove(partition_blocks(r->p), s->of->name, snap_name(s));
        if (client_lost(r, rc))
            return false;
        if (rc != (s->exists == MODEL_PRESENT ? 0 : ERR_NOENT))
            run_fail(r, "delete snapshot %s at the end: %s", s->name, err_name(rc));
        s->exists = MODEL_ABSENT;
        model_volume_cut(&r->model, s, 0);
    }
    for (unsigned i = 0; i < MODEL_VOLUMES; i++) {
        struct model_volume *v = &r->model.volumes[i];

        rc = block_remove(partition_blocks(r->p), v->name);
        if (client_lost(r, rc))
            return false;
        if (rc != (v->exists == MODEL_PRESENT ? 0 : ERR_NOENT))
            run_fail(r, "remove %s at the end: %s", v->name, err_name(rc));
        v->exists = MODEL_ABSENT;
        model_volume_cut(&r->model, v, 0);
    }
    for (unsigned i = 0; i < INSTANCE_STUDIES; i++) {
        struct object_delete_result result;

        instance_study_uid(i, uid);
        rc = object_remove(partition_objects(r->p), uid, NULL, NULL, &result);
        if (client_lost(r, rc))
            return false;
        if (rc < 0 && rc != ERR_NOENT)
            run_fail(r, "delete of study %u at the end: %s", i, err_name(rc));
    }
    return objects_delete_all(r);
}

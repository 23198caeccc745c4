/* The workloads: short scripts that each bring the engine to one of the places where the order of
 * writes matters. All is told to the model before and after. */
#include <stdio.h>
#include <string.h>

#include "daemon/membership.h"
#include "daemon/scrubber.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/sync.h"
#include "tests/crash/crash.h"

/* ---- Steps ---- */

enum step_kind {
    WRITE,
    ZERO,
    FLUSH,
    PUT,
    DELETE,
    SETTLE,
    SNAP,
    SNAP_DELETE,
    BUCKET_PUT,
    BUCKET_DELETE
};

/* WRITE: `count` blocks at `at` of a volume, other bytes for each `seed`. PUT: content `seed` of
 * instance `at`. SNAP: number `at` of `count` volumes. BUCKET_PUT: content `seed` of object `at` of
 * a bucket. */
struct step {
    enum step_kind kind;
    unsigned volume, at, count, seed;
};

static struct model_volume *volume_at(struct crash *c, unsigned i)
{
    return &c->run.model.volumes[i];
}

static void must(struct crash *c, const char *what, int rc)
{
    if (rc < 0)
        run_fail(&c->run, "%s: %s", what, err_name(rc));
}

/* What is acknowledged, or in flight, is another thing from here on. */
static void acknowledged(struct crash *c)
{
    c->version++;
}

static void fill(uint8_t *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i += 8) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        memcpy(p + i, &seed, 8);
    }
}

static void create(struct crash *c, unsigned volume, unsigned blocks)
{
    struct model_volume *v = volume_at(c, volume);

    v->exists = MODEL_UNSURE;
    v->size = v->other_size = blocks * (uint64_t)BLOCK_SIZE;
    acknowledged(c);
    must(c, "create",
         block_create(partition_blocks(c->run.p), v->name, v->size, BLOCK_EVERY_WRITE));
    v->exists = MODEL_PRESENT;
    acknowledged(c);
}

static void remove_volume(struct crash *c, unsigned volume)
{
    struct model_volume *v = volume_at(c, volume);

    v->exists = MODEL_UNSURE;
    acknowledged(c);
    must(c, "remove", block_remove(partition_blocks(c->run.p), v->name));
    v->exists = MODEL_ABSENT;
    model_volume_cut(&c->run.model, v, 0);
    acknowledged(c);
}

static void step_write(struct crash *c, const struct step *s)
{
    struct model_volume *v = volume_at(c, s->volume);
    uint64_t off = s->at * (uint64_t)BLOCK_SIZE, len = s->count * (uint64_t)BLOCK_SIZE;
    uint8_t *data = s->kind == ZERO ? NULL : mem_alloc((size_t)len);
    struct block_volume *handle;
    struct model_write *w;

    if (data)
        fill(data, (size_t)len, s->seed);
    must(c, "open", block_open(partition_blocks(c->run.p), v->name, &handle));
    w = model_write_begin(&c->run.model, v, off, len, data);
    acknowledged(c);
    must(c, "write",
         data ? block_write(handle, off, data, (size_t)len, 0) : block_zero(handle, off, len, 0));
    model_write_end(&c->run.model, w, MODEL_DONE);
    acknowledged(c);
    run_trace(&c->run, "wrote %u blocks at %u of %s", s->count, s->at, v->name);
    block_close(handle);
    mem_free(data);
}

static void step_flush(struct crash *c, const struct step *s)
{
    struct block_volume *handle;

    must(c, "open", block_open(partition_blocks(c->run.p), volume_at(c, s->volume)->name, &handle));
    must(c, "flush", block_flush(handle));
    block_close(handle);
}

static void step_put(struct crash *c, const struct step *s)
{
    STRBUF_AUTO struct strbuf bytes = STRBUF_INIT;
    struct model_instance *in = &c->run.instances[s->at];
    struct object_put_info info = {.size_hint = 0};
    struct object_put_result result;
    struct object_put *put;
    int slot = model_instance_begin(in, (int)s->seed, &c->run.contents);

    acknowledged(c);
    instance_make(s->at, (int)s->seed, &bytes);
    must(c, "put", object_put_begin(partition_objects(c->run.p), &info, &put));
    must(c, "append", object_put_append(put, bytes.data, bytes.len));
    must(c, "commit", object_put_commit(put, &result));
    if (!model_instance_end(in, slot,
                            result.outcome == OBJECT_STORED     ? MODEL_PUT_STORED
                            : result.outcome == OBJECT_REPLACED ? MODEL_PUT_REPLACED
                                                                : MODEL_PUT_SAME,
                            MODEL_DONE))
        run_fail(&c->run, "the put's outcome is wrong");
    acknowledged(c);
}

static void step_delete(struct crash *c, const struct step *s)
{
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1], uid[OBJECT_UID_MAX + 1];
    struct model_instance *in = &c->run.instances[s->at];
    struct object_delete_result result;
    int slot = model_instance_begin(in, MODEL_INSTANCE_ABSENT, &c->run.contents);

    acknowledged(c);
    instance_study_uid(instance_study_of(s->at), study);
    instance_series_uid(instance_study_of(s->at), instance_series_of(s->at), series);
    instance_uid(s->at, uid);
    must(c, "delete", object_remove(partition_objects(c->run.p), study, series, uid, &result));
    if (!model_instance_end(in, slot, MODEL_DELETED, MODEL_DONE))
        run_fail(&c->run, "there was nothing to delete");
    acknowledged(c);
}

static struct model_volume *snap_of(struct crash *c, unsigned volume, unsigned number)
{
    return &c->run.model.snaps[volume][number];
}

static const char *snap_name(const struct model_volume *snap)
{
    return strchr(snap->name, '@') + 1;
}

static void step_snap(struct crash *c, const struct step *s)
{
    const char *names[MODEL_VOLUMES];

    for (unsigned i = 0; i < s->count; i++) {
        struct model_volume *snap = snap_of(c, s->volume + i, s->at);

        names[i] = snap->of->name;
        snap->exists = MODEL_UNSURE;
        snap->group = c->version + 1;
        model_snapshot_begin(&c->run.model, snap);
    }
    acknowledged(c);
    must(c, "snapshot",
         block_snapshot(partition_blocks(c->run.p), names, s->count,
                        snap_name(snap_of(c, s->volume, s->at))));
    for (unsigned i = 0; i < s->count; i++) {
        struct model_volume *snap = snap_of(c, s->volume + i, s->at);

        model_snapshot_end(&c->run.model, snap);
        snap->exists = MODEL_PRESENT;
        snap->group = 0;
    }
    acknowledged(c);
}

static void step_snap_delete(struct crash *c, const struct step *s)
{
    struct model_volume *snap = snap_of(c, s->volume, s->at);

    snap->exists = MODEL_UNSURE;
    acknowledged(c);
    must(c, "delete snapshot",
         block_snapshot_remove(partition_blocks(c->run.p), snap->of->name, snap_name(snap)));
    snap->exists = MODEL_ABSENT;
    model_volume_cut(&c->run.model, snap, 0);
    acknowledged(c);
}

static void resize(struct crash *c, unsigned volume, unsigned blocks)
{
    struct model_volume *v = volume_at(c, volume);
    uint64_t size = blocks * (uint64_t)BLOCK_SIZE;
    struct model_write *w = NULL;

    if (size < v->size)
        w = model_write_begin(&c->run.model, v, size, v->size - size, NULL);
    v->other_size = size;
    v->resizes++;
    acknowledged(c);
    must(c, "resize", block_resize(partition_blocks(c->run.p), v->name, size));
    v->size = size;
    v->resizes++;
    if (w)
        model_write_end(&c->run.model, w, MODEL_DONE);
    acknowledged(c);
}

/* ---- Buckets ---- */

static bool never_same(int a, int b)
{
    (void)a;
    (void)b;
    return false;
}

static const struct model_contents replacing = {.same = never_same, .replace = true};

static void bucket_make(struct crash *c, unsigned bucket)
{
    struct model_bucket *b = &c->run.buckets[bucket];

    b->exists = MODEL_UNSURE;
    acknowledged(c);
    must(c, "create bucket", bucket_create(partition_buckets(c->run.p), b->name));
    b->exists = MODEL_PRESENT;
    acknowledged(c);
}

/* With all that is in it. */
static void bucket_delete(struct crash *c, unsigned bucket)
{
    struct model_bucket *b = &c->run.buckets[bucket];
    int slots[OBJECT_NAMES];

    for (unsigned i = 0; i < OBJECT_NAMES; i++)
        slots[i] = model_instance_begin(&b->objects[i], MODEL_INSTANCE_ABSENT, &replacing);
    b->exists = MODEL_UNSURE;
    acknowledged(c);
    must(c, "delete bucket", bucket_remove(partition_buckets(c->run.p), b->name, true));
    b->exists = MODEL_ABSENT;
    for (unsigned i = 0; i < OBJECT_NAMES; i++)
        (void)model_instance_end(&b->objects[i], slots[i], MODEL_PUT_NONE, MODEL_DONE);
    acknowledged(c);
}

/* Some of the contents of tests/sim/objects.c, which knows them again. */
static void object_content(unsigned object, unsigned content, struct strbuf *out)
{
    uint64_t n = content == 5 ? 300000 : 5000 + object, words[2];

    if (content == 4)
        strbuf_addf(out, "object %u", object);
    if (content < 5)
        return;
    words[0] = content == 5 ? object / 4 : object;
    for (uint64_t i = 0; i < n; i += 8) {
        words[0] = words[0] * 6364136223846793005u + 1442695040888963407u;
        strbuf_add(out, words, n - i < 8 ? (size_t)(n - i) : 8);
    }
    if (content == 5)
        strbuf_addf(out, "%u", object);
}

/* An even one: those of odd numbers are put only where nobody is. */
static void object_name(unsigned object, char name[24])
{
    CHECK(object % 2 == 0);
    (void)snprintf(name, 24, "%s%u", object < 3 ? "" : object < 5 ? "a/" : "b/c/", object);
}

/* Content `seed` of object `at` of bucket `volume`. */
static void step_bucket_put(struct crash *c, const struct step *s)
{
    STRBUF_AUTO struct strbuf bytes = STRBUF_INIT;
    struct model_bucket *b = &c->run.buckets[s->volume];
    int slot = model_instance_begin(&b->objects[s->at], (int)s->seed, &replacing);
    struct bucket_put_info info = {.bucket = b->name};
    struct bucket_put_result result;
    struct bucket_put *put;
    struct object_labels labels;
    char name[24];

    acknowledged(c);
    object_name(s->at, name);
    object_labels_make(s->at, (int)s->seed, &labels);
    info.name = name;
    info.type = labels.type[0] ? labels.type : NULL;
    info.pairs = labels.pairs;
    info.pair_count = labels.count;
    object_content(s->at, s->seed, &bytes);
    must(c, "put", bucket_put_begin(partition_buckets(c->run.p), &info, &put));
    must(c, "append", bucket_put_append(put, bytes.data, bytes.len));
    must(c, "commit", bucket_put_commit(put, &result));
    if (!model_instance_end(&b->objects[s->at], slot,
                            result.replaced ? MODEL_PUT_REPLACED : MODEL_PUT_STORED, MODEL_DONE))
        run_fail(&c->run, "the put's outcome is wrong");
    acknowledged(c);
}

static void step_bucket_delete(struct crash *c, const struct step *s)
{
    struct model_bucket *b = &c->run.buckets[s->volume];
    int slot = model_instance_begin(&b->objects[s->at], MODEL_INSTANCE_ABSENT, &replacing);
    char name[24];

    acknowledged(c);
    object_name(s->at, name);
    must(c, "delete", bucket_object_remove(partition_buckets(c->run.p), b->name, name));
    if (!model_instance_end(&b->objects[s->at], slot, MODEL_DELETED, MODEL_DONE))
        run_fail(&c->run, "there was nothing to delete");
    acknowledged(c);
}

/* ---- Drives ---- */

/* The drive that a disk is. */
static unsigned drive_of(struct crash *c, unsigned disk)
{
    const struct driveset *ds = partition_drives(c->run.p);

    for (unsigned i = 0; i < ds->count; i++)
        if (ds->drives[i].state != DRIVE_NONE &&
            strcmp(ds->drives[i].path, crash_disk_path(disk)) == 0)
            return i;
    return MEMBER_NOBODY;
}

static void ordered(struct crash *c, const char *what, int rc, struct strbuf *why)
{
    if (rc < 0)
        run_fail(&c->run, "%s: %s: %s", what, err_name(rc), why->len ? why->data : "");
    acknowledged(c);
    run_trace(&c->run, "drive %s", what);
}

static void drive_begins_to_leave(struct crash *c, unsigned disk)
{
    c->members.joined &= ~(1u << disk);
    c->members.stay &= ~(1u << disk);
    acknowledged(c);
}

/* A spare disk becomes a drive; in place of `instead`, which begins to leave, unless that is none.
 */
static void drive_add(struct crash *c, unsigned disk, unsigned instead)
{
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    const struct driveset *ds = partition_drives(c->run.p);
    bool replaces = instead != MEMBER_NOBODY;
    struct member_add add = {
        .path = crash_disk_path(disk),
        .size = ds->super.slots_off + c->run.slot_count * ds->super.slot_size,
        .force = true,
        .replaces = replaces ? drive_of(c, instead) : MEMBER_NOBODY,
    };
    uint32_t index;
    int rc;

    if (replaces)
        drive_begins_to_leave(c, instead);
    rc = replaces ? partition_drive_replace(c->run.p, &add, &why, &index)
                  : partition_drive_add(c->run.p, &add, &why, &index);
    if (rc == 0) {
        c->members.joined |= 1u << disk;
        c->members.stay |= 1u << disk;
        c->members.class[0] |= 1u << disk;
        c->members.leave |= replaces ? 1u << instead : 0;
    }
    ordered(c, replaces ? "replace" : "add", rc, &why);
}

static void drive_remove(struct crash *c, unsigned disk)
{
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    int rc;

    drive_begins_to_leave(c, disk);
    rc = partition_drive_remove(c->run.p, drive_of(c, disk), &why);
    c->members.leave |= 1u << disk;
    ordered(c, "remove", rc, &why);
}

static void drive_keep(struct crash *c, unsigned disk)
{
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    int rc;

    c->members.leave &= ~(1u << disk);
    acknowledged(c);
    rc = partition_drive_keep(c->run.p, drive_of(c, disk), &why);
    c->members.joined |= 1u << disk;
    c->members.stay |= 1u << disk;
    ordered(c, "keep", rc, &why);
}

static void drive_class(struct crash *c, unsigned disk)
{
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    int rc;

    c->members.class[0] &= ~(1u << disk);
    acknowledged(c);
    rc = partition_drive_set_class(c->run.p, drive_of(c, disk), 1, &why);
    c->members.class[1] |= 1u << disk;
    ordered(c, "set-class", rc, &why);
}

/* It is empty, and no drive of the store any more. */
static void wait_gone(struct crash *c, unsigned disk)
{
    for (unsigned i = 0; drive_of(c, disk) != MEMBER_NOBODY; i++) {
        if (i == 600)
            run_fail(&c->run, "disk %u does not leave", disk);
        env_sleep(c->run.env, 100 * ENV_NS_PER_MS);
    }
}

static void do_step(struct crash *c, const struct step *s)
{
    static void (*const steps[])(struct crash *,
                                 const struct step *) = {[WRITE] = step_write,
                                                         [ZERO] = step_write,
                                                         [FLUSH] = step_flush,
                                                         [PUT] = step_put,
                                                         [DELETE] = step_delete,
                                                         [SNAP] = step_snap,
                                                         [SNAP_DELETE] = step_snap_delete,
                                                         [BUCKET_PUT] = step_bucket_put,
                                                         [BUCKET_DELETE] = step_bucket_delete};

    if (s->kind == SETTLE)
        must(c, "settle", partition_settle(c->run.p));
    else
        steps[s->kind](c, s);
}

/* One after the other. */
static void do_steps(struct crash *c, const struct step *steps, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        do_step(c, &steps[i]);
}
#define DO(c, ...)                                  \
    do_steps(c, (const struct step[]){__VA_ARGS__}, \
             sizeof((const struct step[]){__VA_ARGS__}) / sizeof(struct step))

struct together {
    struct crash *c;
    const struct step *step;
    struct fiber_group *group;
};

static void together_main(void *arg)
{
    struct together *t = arg;

    do_step(t->c, t->step);
    fiber_group_done(t->group);
}

/* All at once. */
static void do_together(struct crash *c, const struct step *steps, unsigned n)
{
    struct together t[8];
    struct fiber_group group;

    CHECK(n <= 8);
    fiber_group_init(&group);
    fiber_group_add(&group, n);
    for (unsigned i = 0; i < n; i++) {
        t[i] = (struct together){c, &steps[i], &group};
        fiber_spawn(c->run.env, "together", together_main, &t[i]);
    }
    fiber_group_wait(&group);
}
#define TOGETHER(c, ...)                               \
    do_together(c, (const struct step[]){__VA_ARGS__}, \
                sizeof((const struct step[]){__VA_ARGS__}) / sizeof(struct step))

/* ---- Scripts ---- */

static void some_content(struct crash *c)
{
    create(c, 0, 64);
    DO(c, {WRITE, 0, 0, 2, 1}, {WRITE, 0, 20, 20, 2}, {PUT, 0, 1, 0, 1});
}

static void small_writes(struct crash *c)
{
    create(c, 0, 64);
    crash_watch(c, true);
    DO(c, {WRITE, 0, 0, 1, 1}, {FLUSH, 0, 0, 0, 0});
    TOGETHER(c, {WRITE, 0, 1, 1, 2}, {WRITE, 0, 2, 2, 3}, {WRITE, 0, 0, 1, 4});
    DO(c, {FLUSH, 0, 0, 0, 0}, {ZERO, 0, 1, 2, 0}, {WRITE, 0, 2, 1, 5});
    crash_watch(c, false);
}

static void bulk_writes(struct crash *c)
{
    create(c, 0, 128);
    DO(c, {WRITE, 0, 0, 4, 1});
    crash_watch(c, true);
    DO(c, {WRITE, 0, 0, 20, 2});
    TOGETHER(c, {WRITE, 0, 20, 32, 3}, {WRITE, 0, 60, 18, 4}, {WRITE, 0, 2, 1, 5});
    crash_watch(c, false);
}

static void overwrite_drain(struct crash *c)
{
    create(c, 0, 64);
    DO(c, {WRITE, 0, 0, 3, 1}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, true);
    DO(c, {WRITE, 0, 0, 2, 2}, {WRITE, 0, 1, 2, 3}, {SETTLE, 0, 0, 0, 0});
    TOGETHER(c, {WRITE, 0, 0, 1, 4}, {SETTLE, 0, 0, 0, 0}, {WRITE, 0, 5, 1, 5});
    DO(c, {ZERO, 0, 0, 2, 0}, {WRITE, 0, 3, 1, 6}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

/* The journal is some 30 of these long. */
static void journal_wraps(struct crash *c)
{
    create(c, 0, 64);
    for (unsigned i = 0; i < 52; i++) {
        if (i == 26)
            crash_watch(c, true);
        DO(c, {WRITE, 0, i % 8 * 4, 3, i + 1});
    }
    crash_watch(c, false);
}

static void snapshots(struct crash *c)
{
    create(c, 0, 32);
    create(c, 1, 32);
    DO(c, {WRITE, 0, 0, 4, 1}, {WRITE, 1, 0, 17, 2}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, true);
    TOGETHER(c, {SNAP, 0, 0, 2, 0}, {WRITE, 0, 0, 1, 3}, {WRITE, 1, 3, 1, 4});
    DO(c, {WRITE, 0, 1, 2, 5}, {ZERO, 1, 0, 2, 0}, {SNAP, 0, 1, 1, 0}, {WRITE, 0, 2, 1, 6},
       {SNAP_DELETE, 0, 0, 0, 0}, {SETTLE, 0, 0, 0, 0}, {SNAP_DELETE, 0, 1, 0, 0},
       {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

static void clone_to(struct crash *c, unsigned volume, unsigned number, unsigned to)
{
    struct model_volume *s = snap_of(c, volume, number), *v = volume_at(c, to);

    v->exists = MODEL_UNSURE;
    v->size = v->other_size = s->size;
    model_volume_copy(&c->run.model, v, s, true);
    acknowledged(c);
    must(c, "clone", block_clone(partition_blocks(c->run.p), s->of->name, snap_name(s), v->name));
    v->exists = MODEL_PRESENT;
    acknowledged(c);
}

static void roll_back(struct crash *c, unsigned volume, unsigned number)
{
    struct model_volume *s = snap_of(c, volume, number), *v = s->of;

    model_volume_copy(&c->run.model, v, s, false);
    acknowledged(c);
    must(c, "roll back", block_rollback(partition_blocks(c->run.p), v->name, snap_name(s)));
    model_volume_copy(&c->run.model, v, s, true);
    acknowledged(c);
}

static void clones(struct crash *c)
{
    create(c, 0, 32);
    DO(c, {WRITE, 0, 0, 18, 1}, {SNAP, 0, 0, 1, 0}, {WRITE, 0, 2, 3, 2});
    crash_watch(c, true);
    clone_to(c, 0, 0, 1);
    DO(c, {WRITE, 1, 1, 2, 3}, {SETTLE, 0, 0, 0, 0});
    roll_back(c, 0, 0);
    DO(c, {WRITE, 0, 0, 1, 4}, {SNAP_DELETE, 0, 0, 0, 0}, {SETTLE, 0, 0, 0, 0});
    remove_volume(c, 1);
    DO(c, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

static void objects(struct crash *c)
{
    DO(c, {PUT, 0, 0, 0, 1});
    crash_watch(c, true);
    DO(c, {PUT, 0, 2, 0, 1}, {PUT, 0, 2, 0, 3});
    TOGETHER(c, {PUT, 0, 4, 0, 1}, {DELETE, 0, 0, 0, 0}, {PUT, 0, 1, 0, 1});
    DO(c, {DELETE, 0, 2, 0, 0}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

/* A script that does not come where it is to go proves nothing. */
static void must_have_moved(struct crash *c)
{
    struct partition_status s;

    partition_get_status(c->run.p, &s);
    if (!s.chunks.compacted || s.thin_segments)
        run_fail(&c->run, "nothing was moved, or %llu segments lack parity",
                 (unsigned long long)s.thin_segments);
}

static void compaction(struct crash *c)
{
    create(c, 0, 1024);
    for (unsigned i = 0; i < 16; i++)
        DO(c, {WRITE, 0, i * 32, 32, i + 1});
    for (unsigned i = 0; i < 16; i++)
        DO(c, {ZERO, 0, i * 32, 28, 0});
    crash_watch(c, true);
    must(c, "compact", partition_compact(c->run.p));
    must_have_moved(c);
    DO(c, {WRITE, 0, 0, 2, 99}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

/* Few slots: what is freed is soon written again. */
static void reuse(struct crash *c)
{
    create(c, 0, 512);
    DO(c, {WRITE, 0, 0, 64, 1}, {WRITE, 0, 64, 64, 2}, {WRITE, 0, 128, 64, 3});
    crash_watch(c, true);
    for (unsigned i = 0; i < 6; i++)
        DO(c, {WRITE, 0, i % 3 * 64, 64, 10 + i}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

static void drive_fails(struct crash *c)
{
    some_content(c);
    DO(c, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, true);
    c->disks.disk[0].failing = true;
    c->damaged = 1;
    DO(c, {WRITE, 0, 0, 2, 11}, {WRITE, 0, 24, 20, 12});
    env_sleep(c->run.env, 800 * ENV_NS_PER_MS); /* it is given up, and what it had is rebuilt */
    must_have_moved(c);
    DO(c, {WRITE, 0, 1, 2, 13}, {PUT, 0, 3, 0, 1});
    crash_watch(c, false);
}

static void write_then_killed(struct crash *c)
{
    some_content(c);
    DO(c, {WRITE, 0, 3, 2, 7}, {WRITE, 0, 40, 17, 8}, {WRITE, 0, 4, 1, 9});
}

/* What a reader has seen once must stay. */
static void write_more(struct crash *c)
{
    verify_all(&c->run);
    acknowledged(c);
    crash_watch(c, true);
    DO(c, {WRITE, 0, 5, 1, 21}, {WRITE, 0, 0, 1, 22});
    crash_watch(c, false);
}

static void writer(void *arg)
{
    struct together *t = arg;

    do_step(t->c, t->step);
}

/* The life ends in the middle of writes: while batches of the journal are on their way to one
 * mirror or the other, or have come to some. */
static void cut_while_writing(struct crash *c, uint64_t ns)
{
    static const struct step steps[] = {
        {WRITE, 0, 6, 1, 31}, {WRITE, 0, 8, 17, 32}, {WRITE, 0, 3, 1, 33}};
    struct together t[3];

    some_content(c);
    for (unsigned i = 0; i < 3; i++) {
        t[i] = (struct together){c, &steps[i], NULL};
        fiber_spawn(c->run.env, "writer", writer, &t[i]);
    }
    env_sleep(c->run.env, ns);
    crash_end_life(c);
}

static void cut_early(struct crash *c)
{
    cut_while_writing(c, 20000);
}

static void cut_midway(struct crash *c)
{
    cut_while_writing(c, 100000);
}

static void cut_late(struct crash *c)
{
    cut_while_writing(c, 200000);
}

static void resizes(struct crash *c)
{
    create(c, 0, 64);
    DO(c, {WRITE, 0, 0, 20, 1}, {WRITE, 0, 20, 2, 2}, {WRITE, 0, 40, 20, 3});
    crash_watch(c, true);
    resize(c, 0, 21);
    DO(c, {WRITE, 0, 20, 1, 4});
    resize(c, 0, 64);
    DO(c, {WRITE, 0, 41, 1, 5}, {SETTLE, 0, 0, 0, 0});
    resize(c, 0, 10);
    DO(c, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

static void buckets(struct crash *c)
{
    bucket_make(c, 0);
    DO(c, {BUCKET_PUT, 0, 0, 0, 5}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, true);
    bucket_make(c, 1);
    DO(c, {BUCKET_PUT, 1, 2, 0, 4}, {BUCKET_PUT, 0, 0, 0, 6});
    TOGETHER(c, {BUCKET_PUT, 0, 4, 0, 5}, {BUCKET_DELETE, 1, 2, 0, 0}, {BUCKET_PUT, 1, 6, 0, 3});
    DO(c, {BUCKET_DELETE, 0, 0, 0, 0}, {BUCKET_PUT, 0, 6, 0, 6});
    bucket_delete(c, 0);
    DO(c, {SETTLE, 0, 0, 0, 0});
    bucket_make(c, 0);
    DO(c, {BUCKET_PUT, 0, 4, 0, 4}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

static void drives_come_and_go(struct crash *c)
{
    unsigned spare = c->run.drives;

    some_content(c);
    DO(c, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, true);
    drive_add(c, spare, MEMBER_NOBODY);
    DO(c, {WRITE, 0, 0, 2, 11}, {WRITE, 0, 24, 20, 12});
    drive_class(c, spare);
    drive_remove(c, 0);
    drive_keep(c, 0);
    DO(c, {WRITE, 0, 1, 1, 13});
    drive_remove(c, 0);
    wait_gone(c, 0);
    DO(c, {WRITE, 0, 2, 2, 14}, {PUT, 0, 3, 0, 1});
    crash_watch(c, false);
}

static void drive_replaced(struct crash *c)
{
    some_content(c);
    DO(c, {SETTLE, 0, 0, 0, 0}, {WRITE, 0, 3, 2, 10});
    crash_watch(c, true);
    drive_add(c, c->run.drives, 0);
    DO(c, {WRITE, 0, 0, 2, 11}, {WRITE, 0, 24, 20, 12});
    wait_gone(c, 0);
    DO(c, {WRITE, 0, 2, 2, 13});
    crash_watch(c, false);
}

/* Each page of the slots of one drive has rotted: scrub writes all of it anew, in place. */
static void mends(struct crash *c)
{
    const struct driveset *ds = partition_drives(c->run.p);
    struct scrub_status st;

    some_content(c);
    DO(c, {SETTLE, 0, 0, 0, 0});
    crash_disk_spoil(&c->disks.disk[0], ds->super.slots_off, UINT64_MAX);
    c->damaged = 1;
    acknowledged(c);
    crash_watch(c, true);
    must(c, "scrub", partition_scrub_start(c->run.p));
    DO(c, {WRITE, 0, 2, 1, 11});
    partition_scrub_wait(c->run.p);
    partition_scrub_status(c->run.p, &st);
    if (!st.state.last.found || st.state.last.mended != st.state.last.found || st.state.last.lost)
        run_fail(&c->run, "scrub found %llu places, mended %llu",
                 (unsigned long long)st.state.last.found, (unsigned long long)st.state.last.mended);
    c->damaged = 0; /* from here on any other drive may go */
    acknowledged(c);
    DO(c, {WRITE, 0, 1, 1, 12}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

/* The metadata's copy begins, while others go on; the KV store is ahead of it when the power fails.
 */
static void copy_begins(struct crash *c)
{
    some_content(c);
    DO(c, {SETTLE, 0, 0, 0, 0}, {WRITE, 0, 2, 1, 4});
    crash_watch(c, true);
    TOGETHER(c, {SETTLE, 0, 0, 0, 0}, {WRITE, 0, 3, 2, 5}, {PUT, 0, 2, 0, 1}, {WRITE, 0, 40, 18, 6},
             {DELETE, 0, 1, 0, 0});
    crash_watch(c, false);
    DO(c, {WRITE, 0, 20, 18, 7}, {PUT, 0, 3, 0, 1});
}

static void copy_goes_on(struct crash *c)
{
    verify_all(&c->run);
    acknowledged(c);
    crash_watch(c, true);
    DO(c, {WRITE, 0, 5, 1, 21}, {SETTLE, 0, 0, 0, 0}, {DELETE, 0, 3, 0, 0}, {SETTLE, 0, 0, 0, 0});
    crash_watch(c, false);
}

#define REBUILD_DELAY (50 * ENV_NS_PER_MS)

const struct crash_workload crash_workloads[] = {
    {.name = "format", .text = "a store is made", .watch_format = true},
    {.name = "first-open",
     .text = "a new store is opened and closed",
     .lives = {{.watch_open = true, .watch_close = true}},
     .life_count = 1},
    {.name = "small",
     .text = "small writes, one by one and together, and flushes",
     .lives = {{.work = small_writes}},
     .life_count = 1},
    {.name = "bulk",
     .text = "large writes, over small ones and beside them",
     .lives = {{.work = bulk_writes}},
     .life_count = 1},
    {.name = "drain",
     .text = "writes, drains and checkpoints",
     .lives = {{.work = overwrite_drain}},
     .life_count = 1},
    {.name = "wrap",
     .text = "the journal wraps around, with checkpoints under pressure",
     .lives = {{.work = journal_wraps}},
     .life_count = 1,
     .overlay = 64 * BLOCK_SIZE},
    {.name = "snapshots",
     .text = "a group of snapshots beside writes, deleted and merged",
     .lives = {{.work = snapshots}},
     .life_count = 1},
    {.name = "clones",
     .text = "a clone, a rollback, and their snapshot goes",
     .lives = {{.work = clones}},
     .life_count = 1},
    {.name = "objects",
     .text = "instances stored, replaced and deleted",
     .lives = {{.work = objects}},
     .life_count = 1},
    {.name = "compaction",
     .text = "segments with little alive are emptied",
     .lives = {{.work = compaction}},
     .life_count = 1},
    {.name = "reuse",
     .text = "segments are freed and their slots used again",
     .lives = {{.work = reuse}},
     .life_count = 1,
     .slots = 12},
    {.name = "rebuild",
     .text = "a drive fails, is given up, and its data is written anew",
     .lives = {{.work = drive_fails}},
     .life_count = 1,
     .slots = 40,
     .rebuild_delay_ns = REBUILD_DELAY,
     .drives_min = 3},
    {.name = "resize",
     .text = "a volume shrinks and grows",
     .lives = {{.work = resizes}},
     .life_count = 1},
    {.name = "buckets",
     .text = "objects put, replaced and deleted, and a bucket with them",
     .lives = {{.work = buckets}},
     .life_count = 1},
    {.name = "members",
     .text = "a drive is added, one is removed, and leaves",
     .lives = {{.work = drives_come_and_go}},
     .life_count = 1,
     .spares = 1},
    {.name = "replace",
     .text = "a drive is replaced",
     .lives = {{.work = drive_replaced}},
     .life_count = 1,
     .spares = 1},
    {.name = "mend",
     .text = "a drive has rotted, and scrub mends it in place",
     .lives = {{.work = mends}},
     .life_count = 1,
     .drives_min = 2},
    {.name = "copy",
     .text = "the metadata is copied beside writes, a power cut, and copied again",
     .lives = {{.work = copy_begins, .end = CRASH_END_POWER}, {.work = copy_goes_on}},
     .life_count = 2},
    {.name = "reopen",
     .text = "a clean end and a new start",
     .lives = {{.work = some_content, .watch_close = true},
               {.work = write_more, .watch_open = true}},
     .life_count = 2},
    {.name = "killed",
     .text = "a kill in the middle of writes, a start, and more writes",
     .lives = {{.work = cut_early, .end = CRASH_END_KILL},
               {.work = write_more, .watch_open = true}},
     .life_count = 2},
    {.name = "killed-late",
     .text = "the same, a little later",
     .lives = {{.work = cut_late, .end = CRASH_END_KILL}, {.work = write_more, .watch_open = true}},
     .life_count = 2},
    {.name = "replay",
     .text = "a power cut, a replay, a kill, a replay, and more writes",
     .lives = {{.work = write_then_killed, .end = CRASH_END_POWER},
               {.work = write_more, .end = CRASH_END_KILL, .watch_open = true},
               {.work = write_more, .watch_open = true, .watch_close = true}},
     .life_count = 3},
    {.name = "torn",
     .text = "a power cut in the middle of writes, a start, and more writes",
     .lives = {{.work = cut_midway, .end = CRASH_END_POWER},
               {.work = write_more, .watch_open = true}},
     .life_count = 2},
};
const unsigned crash_workload_count = sizeof(crash_workloads) / sizeof(crash_workloads[0]);

/* Drives join and leave; see member.h. */
#include "lib/store/member.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "lib/store/blank.h"
#include "lib/store/drive_io.h"
#include "lib/store/drive_priv.h"
#include "lib/store/lone_io.h"

#define MEMBER_SLOTS_MAX (1u << 28)
#define MEMBER_PATIENCE  (30 * ENV_NS_PER_S) /* for a new drive's answer: it may have to spin up */
#define MEMBER_WIPE_WAIT (2 * ENV_NS_PER_S)  /* for that of one that goes */
#define MEMBER_LEND_WAIT (2 * ENV_NS_PER_S)

static uint64_t member_slots(const struct driveset *ds, uint64_t size)
{
    uint64_t n =
        size > ds->super.slots_off ? (size - ds->super.slots_off) / ds->super.slot_size : 0;

    return n < MEMBER_SLOTS_MAX ? n : MEMBER_SLOTS_MAX;
}

/* ---- What is on a drive ---- */

/* A drive that was this store's and is not any more holds nothing that anybody wants: it left when
 * it was empty, or its data was written anew elsewhere. */
static bool member_former(const struct driveset *ds, const struct format_super *s)
{
    if (memcmp(s->store_uuid, ds->super.store_uuid, 16) != 0)
        return false;
    for (unsigned i = 0; i < ds->count; i++)
        if (ds->drives[i].state != DRIVE_NONE && memcmp(ds->drives[i].uuid, s->drive_uuid, 16) == 0)
            return false;
    return true;
}

/* Its superblock, if it has one (magic 0: none). A drive that fails here fails again soon. */
static int member_super(struct lone_file *file, struct buf *b, struct format_super *ret_super)
{
    static const uint64_t offs[] = {FORMAT_SUPER_OFF_A, FORMAT_SUPER_OFF_B};
    struct format_super s = {0};

    for (unsigned i = 0; i < 2; i++)
        if (lone_io_run(file, ENV_READ, b, FORMAT_UNIT, offs[i]) == 0)
            drive_super_take(b->data, &s);
    *ret_super = s;
    return file->silent ? ERR_TIMEDOUT : 0;
}

static int member_look(struct driveset *ds, struct lone_file *file, uint64_t size,
                       struct strbuf *why)
{
    struct format_super found;
    struct buf *b = buf_new(BLANK_LOOK);
    const char *what = NULL;
    int rc = member_super(file, b, &found);

    if (rc == 0 && found.magic) {
        if (!member_former(ds, &found))
            what = memcmp(found.store_uuid, ds->super.store_uuid, 16) == 0
                       ? "a drive of this store"
                       : "a drive of another Filmroom store";
        rc = what ? ERR_EXIST : 0;
    } else {
        for (unsigned i = 0; rc == 0 && !what && i < 2; i++) {
            rc = lone_io_run(file, ENV_READ, b, BLANK_LOOK, i ? blank_last(size) : 0);
            if (rc == 0)
                what = blank_signature(b->data, BLANK_LOOK);
        }
        if (rc == 0 && what)
            rc = ERR_EXIST;
    }
    if (rc == ERR_EXIST)
        strbuf_addf(why, "it holds %s: nothing was changed; use --force to overwrite it", what);
    buf_unref(b);
    return rc;
}

/* ---- Joining ---- */

/* A drive on its way into the set. */
struct joiner {
    const struct member_add *add;
    struct lone_file file;
    bool made;          /* the file is new: it goes again on failure */
    struct drive *lent; /* the file was open as what a missing drive left under this path */
    uint64_t slot_count;
};

static int joiner_refuse(struct strbuf *why, int error, const char *text)
{
    strbuf_adds(why, text);
    return error;
}

/* An empty disk in place of a dead one, under its path, is open already. It is taken from there, so
 * that nothing else is asked of it; what was asked before has to be answered first, since it refers
 * to the file. */
static int joiner_borrow(struct driveset *ds, struct joiner *j, struct strbuf *why)
{
    uint64_t until = env_now(ds->env) + MEMBER_LEND_WAIT;

    for (unsigned i = 0; i < ds->count; i++) {
        struct drive *d = &ds->drives[i];

        if (d->state != DRIVE_MISSING || !d->file || strcmp(d->path, j->add->path) != 0)
            continue;
        while (!list_empty(&d->unanswered) && env_now(ds->env) < until)
            env_sleep(ds->env, ENV_NS_PER_MS);
        if (!list_empty(&d->unanswered))
            return joiner_refuse(why, ERR_BUSY, "it has not answered what it was asked before");
        j->lent = d;
        j->file.file = d->file;
        d->file = NULL;
        return 0;
    }
    return joiner_refuse(why, ERR_LOCKED, "it is in use, by this store or another one");
}

static int joiner_open(struct driveset *ds, struct joiner *j, struct strbuf *why)
{
    const char *path = j->add->path;
    int rc;

    j->file = (struct lone_file){.env = ds->env, .patience = MEMBER_PATIENCE};
    rc = env_open(ds->env, path, ENV_OPEN_DIRECT | ENV_OPEN_LOCK, &j->file.file);
    if (rc == ERR_LOCKED)
        return joiner_borrow(ds, j, why);
    if (rc != ERR_NOENT)
        return rc;
    if (strncmp(path, "/dev/", 5) == 0)
        return joiner_refuse(why, rc, "there is no such device");
    if (!j->add->size)
        return joiner_refuse(why, rc, "there is no such file: give --size to have one made");
    rc = env_open(ds->env, path, ENV_OPEN_CREATE | ENV_OPEN_EXCL | ENV_OPEN_DIRECT | ENV_OPEN_LOCK,
                  &j->file.file);
    j->made = rc == 0;
    return rc;
}

/* Settles the size, and that nothing is lost. */
static int joiner_measure(struct driveset *ds, struct joiner *j, struct strbuf *why)
{
    uint64_t have, size, least = ds->super.slots_off + MEMBER_SLOTS_MIN * ds->super.slot_size;
    int rc = env_file_size(j->file.file, &have);

    if (rc < 0)
        return rc;
    size = j->add->size ? j->add->size : have;
    if (size < least) {
        char text[SIZE_TEXT_MAX];

        strbuf_addf(why, "it is too small: %s is the least", size_format_exact(least, text));
        return ERR_RANGE;
    }
    if (!j->add->force && have >= BLANK_LOOK)
        rc = member_look(ds, &j->file, have, why);
    else if (!j->add->force && have > 0)
        rc = joiner_refuse(why, ERR_EXIST,
                           "it is a file with something in it: nothing was "
                           "changed; use --force to overwrite it");
    if (rc == 0 && have < size)
        rc = lone_io_run(&j->file, ENV_RESIZE, NULL, 0, size);
    /* It may have to mirror the journal one day, and then the file system under it may be full. */
    if (rc == 0 && lone_io_run(&j->file, ENV_RESERVE, NULL, ds->super.journal_len,
                               ds->super.journal_off) == ERR_NOSPC)
        rc = joiner_refuse(why, ERR_NOSPC, "there is no space for it in its file system");
    j->slot_count = member_slots(ds, size);
    return rc;
}

int member_measure(struct driveset *ds, const struct member_add *add, uint64_t *ret_slots)
{
    struct env_file *file;
    uint64_t size = add->size;
    int rc = 0;

    if (!size) {
        rc = env_open(ds->env, add->path, ENV_OPEN_RDONLY, &file);
        if (rc == 0) {
            rc = env_file_size(file, &size);
            env_close(file);
        }
    }
    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    *ret_slots = member_slots(ds, size);
    return 0;
}

static unsigned member_free_place(const struct driveset *ds)
{
    for (unsigned i = 0; i < ds->count; i++)
        if (ds->drives[i].state == DRIVE_NONE)
            return i;
    return ds->count;
}

/* Writes both superblocks of the new drive, and nobody else's. They name it and its place, and are
 * older than any other: this drive is nobody's before another one names it too, and what the store
 * has become meanwhile counts. */
static int joiner_sign(struct driveset *ds, struct joiner *j, unsigned index, const uint8_t *uuid)
{
    struct format_super *s = mem_alloc(sizeof(*s));
    struct buf *b = buf_new(FORMAT_UNIT);
    int rc;

    *s = ds->super;
    s->version = FORMAT_VERSION_MEMBERS;
    s->generation = 0;
    s->epoch = 0;
    if (index >= s->drive_count)
        s->drive_count = index + 1;
    s->members[index] = (struct format_member){
        .state = FORMAT_DRIVE_OK, .class_ = j->add->class_, .slot_count = j->slot_count};
    memcpy(s->members[index].uuid, uuid, 16);
    drive_super_sign(s, index, uuid, b);
    /* Its size first: a drive that is signed and too short would be missed. */
    rc = lone_io_run(&j->file, ENV_SYNC, NULL, 0, 0);
    if (rc == 0)
        rc = lone_io_run(&j->file, ENV_WRITE, b, FORMAT_UNIT, FORMAT_SUPER_OFF_A);
    if (rc == 0)
        rc = lone_io_run(&j->file, ENV_WRITE, b, FORMAT_UNIT, FORMAT_SUPER_OFF_B);
    buf_unref(b);
    mem_free(s);
    return rc;
}

/* From here on the drive is in the set. Does not suspend. */
static void joiner_install(struct driveset *ds, struct joiner *j, unsigned index,
                           const uint8_t *uuid)
{
    struct drive *d = &ds->drives[index];

    mem_free(d->path); /* NULL or that of an empty place */
    drive_init(ds, index);
    mem_free(d->path);
    d->path = mem_strdup(j->add->path);
    d->state = DRIVE_OK;
    d->transit = true;
    d->class_ = j->add->class_;
    d->file = j->file.file;
    d->slot_count = j->slot_count;
    d->cache = env_file_cache(d->file);
    memcpy(d->uuid, uuid, 16);
    if (index == ds->count)
        ds->count++;
    ds->super.version = FORMAT_VERSION_MEMBERS;
    if (j->add->replaces != MEMBER_NOBODY)
        ds->drives[j->add->replaces].leaving = true;
}

static void joiner_drop(struct driveset *ds, struct joiner *j)
{
    bool silent = j->file.silent;

    if (j->lent && !silent) {
        j->lent->file = j->file.file;
        return;
    }
    if (j->file.file)
        lone_io_close(&j->file);
    if (j->made && !silent)
        (void)env_unlink(ds->env, j->add->path); /* it is empty, and was not there before */
}

/* It failed as soon as it was in the set: all is as before. super_lock is held. */
static int joiner_undo(struct driveset *ds, const struct joiner *j, unsigned index)
{
    struct drive *d = &ds->drives[index];
    int error = d->hung ? ERR_TIMEDOUT : ERR_IO, rc;

    env_close(drive_io_detach(d));
    mem_free(d->path);
    drive_init(ds, index);
    if (j->add->replaces != MEMBER_NOBODY)
        ds->drives[j->add->replaces].leaving = false;
    rc = driveset_commit_locked(ds, true);
    return rc < 0 ? rc : error;
}

int member_add(struct driveset *ds, const struct member_add *add, struct strbuf *why,
               uint32_t *ret_index)
{
    struct joiner j = {.add = add};
    unsigned index = member_free_place(ds); /* it stays free: one change at a time */
    uint8_t uuid[16];
    int rc;

    env_random(ds->env, uuid, sizeof(uuid));
    rc = index < FORMAT_DRIVES_MAX
             ? joiner_open(ds, &j, why)
             : joiner_refuse(why, ERR_BUSY, "all places are taken: remove a drive first");
    if (rc == 0)
        rc = joiner_measure(ds, &j, why);
    if (rc == 0)
        rc = joiner_sign(ds, &j, index, uuid);
    if (rc < 0) {
        joiner_drop(ds, &j);
        return rc;
    }
    fiber_mutex_lock(&ds->super_lock);
    CHECK(member_free_place(ds) == index);
    joiner_install(ds, &j, index, uuid);
    rc = driveset_commit_locked(ds, true);
    if (rc == 0 && !drive_usable(&ds->drives[index]))
        rc = joiner_undo(ds, &j, index);
    fiber_mutex_unlock(&ds->super_lock);
    if (rc == 0)
        *ret_index = index;
    return rc;
}

void member_joined(struct driveset *ds, uint32_t index)
{
    ds->drives[index].transit = false;
}

/* ---- Leaving ---- */

int member_leave(struct driveset *ds, uint32_t index, bool leave)
{
    int rc;

    fiber_mutex_lock(&ds->super_lock);
    ds->drives[index].leaving = leave;
    ds->super.version = FORMAT_VERSION_MEMBERS;
    rc = driveset_commit_locked(ds, true);
    fiber_mutex_unlock(&ds->super_lock);
    return rc;
}

/* Makes the drive a blank one, as far as member_look asks, and closes it. What cannot be wiped, or
 * not soon, remains a stranger (member_former). */
static void member_wipe(struct env *env, struct env_file *file)
{
    struct lone_file f = {.env = env, .file = file, .patience = MEMBER_WIPE_WAIT};
    struct buf *b = buf_new(BLANK_LOOK);
    uint64_t size;

    memset(b->data, 0, BLANK_LOOK);
    if (env_file_size(file, &size) == 0 && size >= BLANK_LOOK)
        (void)lone_io_run(&f, ENV_WRITE, b, BLANK_LOOK, blank_last(size));
    (void)lone_io_run(&f, ENV_WRITE, b, BLANK_LOOK, 0);
    buf_unref(b);
    lone_io_close(&f);
}

int member_let_go(struct driveset *ds, uint32_t index)
{
    struct drive *d = &ds->drives[index];
    struct env_file *file;
    bool ours;
    int rc;

    d->transit = true;
    fiber_mutex_lock(&ds->super_lock);
    CHECK(d->leaving);
    if (ds->super.journal_mirrors >> index & 1) { /* it has become one while we waited */
        d->transit = false;
        fiber_mutex_unlock(&ds->super_lock);
        return ERR_BUSY;
    }
    ours = drive_usable(d); /* under a missing one's path there may be anything */
    file = drive_io_detach(d);
    mem_free(d->path);
    drive_init(ds, index);
    rc = driveset_commit_locked(ds, true);
    fiber_mutex_unlock(&ds->super_lock);
    if (rc == 0 && ours && file)
        member_wipe(ds->env, file); /* not under the lock: nobody needs it */
    else
        env_close(file);
    return rc;
}

int member_set_class(struct driveset *ds, uint32_t index, uint8_t class_)
{
    int rc;

    fiber_mutex_lock(&ds->super_lock);
    ds->drives[index].class_ = class_;
    ds->super.version = FORMAT_VERSION_MEMBERS;
    rc = driveset_commit_locked(ds, true);
    fiber_mutex_unlock(&ds->super_lock);
    return rc;
}

/* Drives come and go under the clients: orders about drives as operations of the swarm, and what
 * must have become of them in the end.
 *
 * A disk is a path; a drive is what the store makes of it. A disk that may be a drive counts for
 * how much damage the profile bears; one that has left does not count any more, since nothing is on
 * it. A dead disk that was replaced by an empty one under its path is spared until the drive that
 * it was has left: to lose both would be to lose two drives.
 *
 * What orders have made of each drive is remembered whenever none is under way, and must be found
 * so by the next life: a drive leaves or stays, in its class; only one that was leaving may have
 * left. Where an order was cut short by the life's end, or by an error, that is found out anew.
 */
#include "tests/sim/run.h"

#include <string.h>

#include "daemon/membership.h"
#include "lib/base/err.h"

#define CONVERGE_STEP (200 * ENV_NS_PER_MS)
#define CONVERGE_MAX  3000u /* steps */

/* ---- What is a drive ---- */

unsigned members_disk(const struct run *r, const char *path)
{
    for (unsigned i = 0; i < RUN_DRIVES_MAX; i++)
        if (strcmp(r->paths[i], path) == 0)
            return i;
    return RUN_DRIVES_MAX;
}

/* It counts for the profile until nothing lacks parity: a drive may leave before that. */
static void disk_forget(struct run *r, uint32_t disks)
{
    struct partition_status s;

    for (unsigned i = 0; i < RUN_DRIVES_MAX; i++)
        if (disks >> i & 1)
            sim_set_file_faults(r->sim, r->paths[i], NULL);
    r->owed |= disks;
    partition_get_status(r->p, &s);
    if (!s.thin_segments) {
        r->damaged &= ~r->owed;
        r->owed = 0;
    }
    r->deleted &= ~disks;
    r->passing &= ~disks;
    r->faulty &= ~disks;
}

/* Where the next life looks for them first, as the daemon's list of paths has it. */
static void members_order(struct run *r, const struct driveset *ds)
{
    uint32_t put = 0;
    unsigned n = 0;

    for (unsigned i = 0; i < ds->count; i++) {
        unsigned disk = members_disk(r, ds->drives[i].path);

        r->places[n++] = disk < RUN_DRIVES_MAX ? r->paths[disk] : "nowhere";
        if (disk < RUN_DRIVES_MAX)
            put |= 1u << disk;
    }
    for (unsigned i = 0; i < RUN_DRIVES_MAX; i++)
        if (!(put >> i & 1))
            r->places[n++] = r->paths[i];
    r->place_count = n;
}

/* Is this drive what is under the path now? A file that was deleted may be in use still, and
 * another one have its path. */
static bool disk_holds(const struct run *r, unsigned disk, const struct drive *d)
{
    static const uint64_t offs[] = {FORMAT_SUPER_OFF_A, FORMAT_SUPER_OFF_B};
    struct format_super s;

    for (unsigned i = 0; i < 2; i++)
        if (sim_file_read(r->sim, r->paths[disk], &s, sizeof(s), offs[i]) == 0 &&
            memcmp(s.drive_uuid, d->uuid, sizeof(d->uuid)) == 0)
            return true;
    return false;
}

void members_look(struct run *r)
{
    const struct driveset *ds = partition_drives(r->p);
    unsigned count[RUN_DRIVES_MAX] = {0};
    uint32_t seen = 0, whole = 0;
    bool unknown = false;

    for (unsigned i = 0; i < ds->count; i++) {
        const struct drive *d = &ds->drives[i];
        unsigned disk = members_disk(r, d->path);

        if (d->state == DRIVE_NONE)
            continue;
        if (disk == RUN_DRIVES_MAX) {
            unknown = true;
            continue;
        }
        seen |= 1u << disk;
        count[disk]++;
        if (drive_usable(d) && disk_holds(r, disk, d))
            whole |= 1u << disk;
    }
    if (unknown)
        seen |= r->member;
    disk_forget(r, r->member & ~seen);
    for (unsigned i = 0; i < RUN_DRIVES_MAX; i++)
        if ((r->spared >> i & 1) && !unknown && count[i] == 1 && (whole >> i & 1)) {
            disk_forget(r, 1u << i);
            r->spared &= ~(1u << i);
        }
    r->member = seen;
    members_order(r, ds);
}

static void members_remember(struct run *r)
{
    const struct driveset *ds = partition_drives(r->p);

    memset(r->ordered, 0, sizeof(r->ordered));
    for (unsigned i = 0; i < ds->count; i++) {
        const struct drive *d = &ds->drives[i];

        if (d->state == DRIVE_NONE)
            continue;
        r->ordered[i] =
            (struct run_member){.there = true, .leaving = d->leaving, .class_ = d->class_};
        memcpy(r->ordered[i].uuid, d->uuid, sizeof(d->uuid));
    }
    r->ordered_known = true;
}

static bool is_same(const struct run_member *m, const struct driveset *ds, unsigned i)
{
    return i < ds->count && ds->drives[i].state != DRIVE_NONE &&
           memcmp(m->uuid, ds->drives[i].uuid, sizeof(m->uuid)) == 0;
}

static void recall_one(struct run *r, const struct driveset *ds, unsigned i)
{
    const struct run_member *m = &r->ordered[i];
    const struct drive *d = &ds->drives[i];

    if (m->there && !is_same(m, ds, i)) {
        if (!m->leaving)
            run_fail(r, "drive %u was a drive, was not to leave, and is gone", i);
        return;
    }
    if (!m->there && i < ds->count && d->state != DRIVE_NONE)
        run_fail(r, "drive %u has left, or never was one, and is back", i);
    if (m->there && m->leaving != d->leaving)
        run_fail(r, "drive %u: it was forgotten that it %s", i, m->leaving ? "leaves" : "stays");
    if (m->there && m->class_ != d->class_)
        run_fail(r, "drive %u: its class was forgotten", i);
}

void members_recall(struct run *r)
{
    const struct driveset *ds = partition_drives(r->p);

    for (unsigned i = 0; r->ordered_known && !r->orders && !r->beyond && i < FORMAT_DRIVES_MAX; i++)
        recall_one(r, ds, i);
    r->orders = 0;
    members_remember(r);
}

/* ---- Orders ---- */

static unsigned random_index(struct run *r)
{
    return (unsigned)run_random(r, partition_drives(r->p)->count + 1);
}

/* A disk that is no drive, or a dead one to be swapped; RUN_DRIVES_MAX: none. */
static unsigned random_disk(struct run *r)
{
    unsigned disk = (unsigned)run_random(r, RUN_DRIVES_MAX);

    for (unsigned i = 0; i < RUN_DRIVES_MAX; i++, disk = (disk + 1) % RUN_DRIVES_MAX)
        if (!(r->member >> disk & 1) || (r->deleted & ~r->spared) >> disk & 1)
            return disk;
    return RUN_DRIVES_MAX;
}

static int order_add(struct run *r, struct strbuf *why, bool replace, uint32_t *ret_index)
{
    const struct driveset *ds = partition_drives(r->p);
    unsigned disk = random_disk(r);
    struct member_add add = {.replaces = MEMBER_NOBODY,
                             .class_ = run_chance(r, 30),
                             .force = run_chance(r, 50),
                             .size = ds->super.slots_off +
                                     (MEMBER_SLOTS_MIN + run_random(r, 2 * r->slot_count)) *
                                         ds->super.slot_size};
    int rc;

    if (disk == RUN_DRIVES_MAX)
        return ERR_NOENT;
    add.path = r->paths[disk];
    if (r->member >> disk & 1) {
        r->spared |= 1u << disk;
        r->spoilt |= 1u << disk; /* should it stay as it is: a file, but nothing of the old drive */
    }
    r->member |= 1u << disk;
    if (!replace)
        return partition_drive_add(r->p, &add, why, ret_index);
    add.replaces = random_index(r);
    if (r->spared >> disk & 1) /* the dead one itself, usually */
        for (unsigned i = 0; i < ds->count && run_chance(r, 90); i++)
            if (strcmp(ds->drives[i].path, add.path) == 0)
                add.replaces = i;
    rc = partition_drive_replace(r->p, &add, why, ret_index);
    return rc;
}

enum order { ORDER_ADD, ORDER_REMOVE, ORDER_KEEP, ORDER_REPLACE, ORDER_REBUILD, ORDER_CLASS };

static bool may_refuse(const struct run *r, enum order kind, int rc)
{
    bool add = kind == ORDER_ADD || kind == ORDER_REPLACE;
    bool remove = kind == ORDER_REMOVE || kind == ORDER_REPLACE;

    switch (rc) {
    case ERR_NOENT:
        return true;
    case ERR_EXIST: /* something is on it */
    case ERR_RANGE:
    case ERR_BUSY: /* all places are taken */
    case ERR_LOCKED:
        return add;
    case ERR_PERM:
        return remove;
    case ERR_NOSPC:
        return remove || (add && r->host_was_full);
    case ERR_INVAL:
        return kind == ORDER_KEEP || kind == ORDER_REPLACE || kind == ORDER_REBUILD;
    default:
        return false;
    }
}

/* It was obeyed, and no other order was given meanwhile. */
static void order_done(struct run *r, enum order kind, unsigned index, uint8_t class_)
{
    const struct driveset *ds = partition_drives(r->p);
    const struct drive *d = &ds->drives[index];
    bool there = index < ds->count && d->state != DRIVE_NONE;

    if (kind == ORDER_REMOVE && there && is_same(&r->ordered[index], ds, index) && !d->leaving)
        run_fail(r, "drive %u was removed, and is not leaving", index);
    if (kind == ORDER_KEEP && (!there || d->leaving))
        run_fail(r, "drive %u was kept, and is leaving", index);
    if ((kind == ORDER_ADD || kind == ORDER_REPLACE) && (!there || d->leaving))
        run_fail(r, "drive %u was added, and is none", index);
    if (kind == ORDER_CLASS && there && is_same(&r->ordered[index], ds, index) &&
        d->class_ != class_)
        run_fail(r, "drive %u has another class than it was given", index);
}

static int order_give(struct run *r, enum order kind, uint32_t *index, uint8_t class_,
                      struct strbuf *why)
{
    switch (kind) {
    case ORDER_ADD:
        return order_add(r, why, false, index);
    case ORDER_REMOVE:
        return partition_drive_remove(r->p, *index, why);
    case ORDER_KEEP:
        return partition_drive_keep(r->p, *index, why);
    case ORDER_REPLACE:
        return order_add(r, why, true, index);
    case ORDER_REBUILD:
        return partition_drive_rebuild(r->p, *index, why);
    case ORDER_CLASS:
        return partition_drive_set_class(r->p, *index, class_, why);
    }
    return 0;
}

void op_drive(struct run *r)
{
    static const char *const names[] = {"add", "remove", "keep", "replace", "rebuild", "set-class"};
    static const uint8_t kinds[] = {0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 5};
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    enum order kind = (enum order)kinds[run_random(r, sizeof(kinds))];
    uint32_t index = random_index(r);
    uint8_t class_ = kind == ORDER_CLASS && run_chance(r, 50);
    uint64_t begun = ++r->orders_begun;
    bool alone = r->orders++ == 0, refused;
    int rc;

    run_trace(r, "drive %s ...", names[kind]);
    rc = order_give(r, kind, &index, class_, &why);
    run_trace(r, "drive %s %u: %s %s", names[kind], index, err_name(rc), why.len ? why.data : "");
    refused = rc < 0 && may_refuse(r, kind, rc);
    /* Not in time: an empty disk may hang as well. */
    if (rc < 0 && !refused && !client_lost(r, rc) &&
        !((rc == ERR_IO || rc == ERR_JOURNAL || rc == ERR_LOST || rc == ERR_TIMEDOUT) &&
          r->ever_damaged))
        run_fail(r, "drive %s: %s", names[kind], err_name(rc));
    if (rc == 0 && alone && begun == r->orders_begun && !r->beyond)
        order_done(r, kind, index, class_);
    members_look(r);
    if (rc < 0 && !refused)
        return; /* how far it came will be seen by the next life */
    if (--r->orders == 0)
        members_remember(r);
}

/* ---- The end ---- */

/* Has all that follows from orders and losses been done? */
static const char *members_unsettled(struct run *r)
{
    const struct driveset *ds = partition_drives(r->p);
    struct partition_status s;
    unsigned taking = 0;

    partition_get_status(r->p, &s);
    for (unsigned i = 0; i < ds->count; i++)
        taking += drive_takes(&ds->drives[i]);
    /* Where others were lost since, the journal may need it yet. */
    for (unsigned i = 0; i < ds->count && taking > s.m; i++)
        if (ds->drives[i].leaving)
            return "a drive is leaving still";
    if (s.current_m == s.m && s.thin_segments)
        return "segments lack parity";
    return s.moves.rebalance.bytes ? "drives are being made even" : NULL;
}

void members_converge(struct run *r)
{
    const struct driveset *ds = partition_drives(r->p);
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    const char *left = "";

    for (unsigned i = 0; i < ds->count; i++)
        (void)partition_drive_rebuild(r->p, i, &why); /* those that are in service refuse */
    for (unsigned i = 0; i < CONVERGE_MAX && (left = members_unsettled(r)); i++)
        env_sleep(r->env, CONVERGE_STEP);
    if (left)
        run_fail(r, "drives do not come to rest: %s", left);
    members_look(r);
}

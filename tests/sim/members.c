/* Drives come and go under the clients: orders about drives as operations of the swarm, and what
 * must have become of them in the end.
 *
 * A disk is a path; a drive is what the store makes of it. A disk that may be a drive counts for
 * how much damage the profile bears; one that has left does not count any more, since nothing is on
 * it. A dead disk that was replaced by an empty one under its path is spared until the drive that
 * it was has left: to lose both would be to lose two drives.
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

static void disk_forget(struct run *r, uint32_t disks)
{
    for (unsigned i = 0; i < RUN_DRIVES_MAX; i++)
        if (disks >> i & 1)
            sim_set_file_faults(r->sim, r->paths[i], NULL);
    r->damaged &= ~disks;
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
        if (drive_usable(d) && sim_file_size(r->sim, r->paths[disk]) > 0)
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

static int order_add(struct run *r, struct strbuf *why, bool replace)
{
    const struct driveset *ds = partition_drives(r->p);
    unsigned disk = random_disk(r);
    struct member_add add = {.replaces = MEMBER_NOBODY,
                             .class_ = run_chance(r, 30),
                             .force = run_chance(r, 50),
                             .size = ds->super.slots_off +
                                     (MEMBER_SLOTS_MIN + run_random(r, 2 * r->slot_count)) *
                                         ds->super.slot_size};
    uint32_t index;
    int rc;

    if (disk == RUN_DRIVES_MAX)
        return ERR_NOENT;
    add.path = r->paths[disk];
    if (r->member >> disk & 1)
        r->spared |= 1u << disk;
    r->member |= 1u << disk;
    if (!replace)
        return partition_drive_add(r->p, &add, why, &index);
    add.replaces = random_index(r);
    if (r->spared >> disk & 1) /* the dead one itself, usually */
        for (unsigned i = 0; i < ds->count && run_chance(r, 90); i++)
            if (strcmp(ds->drives[i].path, add.path) == 0)
                add.replaces = i;
    rc = partition_drive_replace(r->p, &add, why, &index);
    return rc;
}

void op_drive(struct run *r)
{
    static const char *const names[] = {"add", "remove", "keep", "replace", "rebuild", "set-class"};
    static const uint8_t kinds[] = {0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 5};
    STRBUF_AUTO struct strbuf why = STRBUF_INIT;
    unsigned kind = kinds[run_random(r, sizeof(kinds))], index = random_index(r);
    int rc = 0;

    run_trace(r, "drive %s ...", names[kind]);
    switch (kind) {
    case 0:
        rc = order_add(r, &why, false);
        break;
    case 1:
        rc = partition_drive_remove(r->p, index, &why);
        break;
    case 2:
        rc = partition_drive_keep(r->p, index, &why);
        break;
    case 3:
        rc = order_add(r, &why, true);
        break;
    case 4:
        rc = partition_drive_rebuild(r->p, index, &why);
        break;
    default:
        rc = partition_drive_set_class(r->p, index, run_chance(r, 50), &why);
        break;
    }
    run_trace(r, "drive %s %u: %s %s", names[kind], index, err_name(rc), why.len ? why.data : "");
    if (rc == ERR_FORMAT || rc == ERR_KV || rc == ERR_CORRUPT)
        run_fail(r, "drive %s: %s", names[kind], err_name(rc));
    members_look(r);
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

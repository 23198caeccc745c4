/* The node's status for administrators; see node_status.h. */
#include "daemon/node_status.h"

#include <stdarg.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/node_drives.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

static void add_reason(struct admin_status *st, enum admin_state state, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void add_reason(struct admin_status *st, enum admin_state state, const char *fmt, ...)
{
    va_list ap;

    if (state > st->state)
        st->state = state;
    if (st->reason_count == ADMIN_REASONS_MAX)
        return;
    va_start(ap, fmt);
    (void)vsnprintf(st->reasons[st->reason_count++], ADMIN_REASON_MAX, fmt, ap);
    va_end(ap);
}

static void status_health(struct node_status *s, const struct partition_status *ps,
                          struct admin_status *st)
{
    const struct driveset *ds = partition_drives(s->partition);
    unsigned out = 0;

    for (unsigned i = 0; i < ds->count; i++) {
        const struct drive *d = &ds->drives[i];

        if (d->state == DRIVE_NONE)
            continue;
        st->drives++;
        st->drives_ok += drive_usable(d);
        st->repaired += d->corruptions;
        if (drive_usable(d))
            continue;
        /* One that is given up counts as lost for as long as something is only there. */
        out++;
        add_reason(st, ADMIN_DEGRADED, "drive %u is out: %s%s", i, d->reason,
                   d->leaving ? "; its removal is under way" : "");
    }
    if (out > ps->m && ps->thin_segments)
        add_reason(st, ADMIN_FAILED,
                   "%u drives are out, more than the profile's %u: bring drives back, some data "
                   "cannot be read",
                   out, ps->m);
    if (out && ps->current_m < ps->m)
        add_reason(st, ADMIN_DEGRADED, "new data is kept with %u parity columns only",
                   ps->current_m);
    if (ps->thin_segments)
        add_reason(st, ADMIN_DEGRADED,
                   "%" PRIu64 " segments have less parity than the profile wants%s",
                   ps->thin_segments,
                   out ? ": bring drives back; what can be is written again to the others"
                       : "; they are being written again");
    if (ps->moves.stuck)
        add_reason(st, ADMIN_DEGRADED,
                   "%" PRIu64 " segments cannot be read to be written again: bring drives back and "
                   "restart the daemon",
                   ps->moves.stuck);
    if (ps->m == 0)
        add_reason(st, ADMIN_DEGRADED,
                   "one drive, no redundancy: its loss is the loss of all data");
    if (ps->broken)
        add_reason(st, ADMIN_READONLY, "writes are stopped after an error (%s): restart the daemon",
                   err_text(ps->broken));
    else if (ps->free == 0)
        add_reason(st, ADMIN_DEGRADED, "no space left for new data: delete data");
}

static struct admin_work status_work(const struct partition_work *w)
{
    return (struct admin_work){w->bytes, w->eta_s};
}

static int status_get(struct admin_source *a, struct admin_status *ret_status)
{
    struct node_status *s = (struct node_status *)a;
    struct admin_status *st = ret_status;
    struct partition_status ps;

    partition_get_status(s->partition, &ps);
    memset(st, 0, sizeof(*st));
    (void)snprintf(st->version, sizeof(st->version), "%s", FILMROOM_VERSION);
    st->uptime_ns = env_now(s->env) - s->start_ns;
    st->data_columns = ps.k;
    st->parity_columns = ps.m;
    st->rebuild = status_work(&ps.moves.rebuild);
    st->leaving = status_work(&ps.moves.leaving);
    st->rebalance = status_work(&ps.moves.rebalance);
    st->work_rate = ps.moves.rate;
    memcpy(st->listeners, s->listeners, sizeof(s->listeners));
    st->listener_count = s->listener_count;
    st->capacity = (struct admin_capacity){.limit = ps.capacity,
                                           .logical = ps.logical,
                                           .deduped = ps.unique,
                                           .stored = ps.stored,
                                           .physical = ps.physical,
                                           .reclaimable = ps.reclaimable,
                                           .free = ps.free};
    st->journal_size = ps.journal.size;
    st->journal_used = ps.journal.used;
    st->volumes = ps.volumes;
    st->studies = ps.studies.studies;
    st->instances = ps.studies.instances;
    st->stored_instances = ps.studies.stored;
    st->identical_instances = ps.studies.identical;
    st->replaced_instances = ps.studies.replaced;
    st->refused_conflicts = ps.studies.refused;
    status_health(s, &ps, st);
    return 0;
}

static void status_drive(struct node_status *s, const struct drive *d,
                         const struct partition_moves *moves, struct admin_drive *o)
{
    const struct driveset *ds = partition_drives(s->partition);

    o->index = d->index;
    (void)snprintf(o->path, sizeof(o->path), "%s", d->path);
    (void)snprintf(o->media, sizeof(o->media), "%s", d->class_ ? "nvme" : "disk");
    o->state = d->state == DRIVE_OK        ? ADMIN_DRIVE_OK
               : d->state == DRIVE_MISSING ? ADMIN_DRIVE_MISSING
                                           : ADMIN_DRIVE_FAILED;
    o->size = drive_slot_off(ds, (uint32_t)d->slot_count);
    o->used = partition_drive_used(s->partition, d->index);
    o->read_errors = d->read_errors;
    o->write_errors = d->write_errors;
    o->repaired = d->corruptions;
    o->leaving = d->leaving;
    o->given_up = moves->given_up >> d->index & 1;
    o->journal = ds->super.journal_mirrors >> d->index & 1;
    o->work = status_work(&moves->drives[d->index]);
}

static int status_drives(struct admin_source *a, struct admin_drive **ret_drives, size_t *ret_count)
{
    struct node_status *s = (struct node_status *)a;
    const struct driveset *ds = partition_drives(s->partition);
    struct admin_drive *drives = mem_calloc(ds->count, sizeof(*drives));
    struct partition_status ps;
    size_t n = 0;

    partition_get_status(s->partition, &ps);
    for (unsigned i = 0; i < ds->count; i++)
        if (ds->drives[i].state != DRIVE_NONE)
            status_drive(s, &ds->drives[i], &ps.moves, &drives[n++]);
    *ret_drives = drives;
    *ret_count = n;
    return 0;
}

void node_status_init(struct node_status *s, struct env *env, const struct config *config,
                      struct partition *partition)
{
    static const struct admin_ops ops = {
        .status = status_get, .drives = status_drives, .drive_order = node_drive_order};

    s->face.ops = &ops;
    s->env = env;
    s->config = config;
    s->partition = partition;
    s->start_ns = env_now(env);
}

void node_status_listener(struct node_status *s, const char *name, const char *addr)
{
    struct admin_listener *l;
    const char *colon = strrchr(addr, ':');

    if (s->listener_count == ADMIN_LISTENERS_MAX)
        return;
    l = &s->listeners[s->listener_count++];
    (void)snprintf(l->name, sizeof(l->name), "%s", name);
    (void)snprintf(l->addr, sizeof(l->addr), "%s", addr);
    if (strncmp(addr, "tcp:", 4) == 0 && colon)
        l->port = (unsigned)strtoul(colon + 1, NULL, 10); /* our own text: digits */
}

void node_status_log(struct node_status *s)
{
    struct admin_status *st = mem_zalloc(sizeof(*st));

    (void)status_get(&s->face, st); /* cannot fail */
    for (size_t i = 0; i < st->reason_count; i++)
        log_warn("node", "not in full health: %s", st->reasons[i]);
    for (size_t i = 0; i < s->listener_count; i++)
        log_info("node", "listening service=%s addr=%s", s->listeners[i].name,
                 s->listeners[i].addr);
    mem_free(st);
}

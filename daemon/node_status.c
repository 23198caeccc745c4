/* The node's status for administrators; see node_status.h. */
#include "daemon/node_status.h"

#include <stdarg.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/drive_watch.h"
#include "daemon/node_drives.h"
#include "daemon/scrubber.h"

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

/* What is being put together, on the loop of one partition after the other. */
struct looking {
    struct node_part *part;
    struct admin_status *st;
    struct admin_drive *drives;
    size_t drive_count;
    enum admin_scrub_order order;
    struct admin_scrub *scrub;
    int rc;
};

static void add_reason(const struct looking *l, enum admin_state state, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void add_reason(const struct looking *l, enum admin_state state, const char *fmt, ...)
{
    struct admin_status *st = l->st;
    int n = 0;
    char *at;
    va_list ap;

    if (state > st->state)
        st->state = state;
    if (st->reason_count == ADMIN_REASONS_MAX)
        return;
    at = st->reasons[st->reason_count++];
    if (*l->part->name)
        n = snprintf(at, ADMIN_REASON_MAX, "partition %s: ", l->part->name);
    va_start(ap, fmt);
    (void)vsnprintf(at + n, ADMIN_REASON_MAX - (size_t)n, fmt, ap);
    va_end(ap);
}

static void status_health(const struct looking *l, const struct partition_status *ps)
{
    const struct driveset *ds = partition_drives(l->part->partition);
    struct admin_status *st = l->st;
    struct scrub_status scrub;
    unsigned out = 0;

    partition_scrub_status(l->part->partition, &scrub);
    for (unsigned i = 0; i < ds->count; i++) {
        const struct drive *d = &ds->drives[i];

        if (d->state == DRIVE_NONE)
            continue;
        st->drives++;
        st->drives_ok += drive_usable(d);
        st->repaired += d->corruptions;
        if (drive_watch_suspect(d))
            add_reason(l, ADMIN_DEGRADED,
                       d->health.kept
                           ? "drive %u would be put out, but the store cannot spare it: %s"
                           : "drive %u is suspect and read around: %s",
                       i, d->health.reason);
        if (drive_usable(d))
            continue;
        /* One that is given up counts as lost for as long as something is only there. */
        out++;
        add_reason(l, ADMIN_DEGRADED, "drive %u is out: %s%s", i, d->reason,
                   d->leaving ? "; its removal is under way" : "");
    }
    if (out > ps->m && ps->thin_segments)
        add_reason(l, ADMIN_FAILED,
                   "%u drives are out, more than the profile's %u: bring drives back, some data "
                   "cannot be read",
                   out, ps->m);
    if (out && ps->current_m < ps->m)
        add_reason(l, ADMIN_DEGRADED, "new data is kept with %u parity columns only",
                   ps->current_m);
    if (ps->thin_segments)
        add_reason(l, ADMIN_DEGRADED,
                   "%" PRIu64 " segments have less parity than the profile wants%s",
                   ps->thin_segments,
                   out ? ": bring drives back; what can be is written again to the others"
                       : "; they are being written again");
    if (scrub.known_lost)
        add_reason(l, ADMIN_FAILED,
                   "%" PRIu64 " chunks were found that no drives give any more: filmroom-fsck "
                   "--deep tells what they belong to",
                   scrub.known_lost);
    if (ps->moves.stuck)
        add_reason(l, ADMIN_DEGRADED, "%" PRIu64 " segments cannot be read to be written again: %s",
                   ps->moves.stuck,
                   out ? "bring drives back and restart the daemon"
                       : "filmroom-fsck --deep tells what is lost");
    if (ps->moves.waits)
        add_reason(l, ADMIN_DEGRADED,
                   ps->moves.rebuild.bytes
                       ? "not enough room to rebuild: add a drive or delete data"
                       : "not enough room to empty drives that leave: add a drive or delete data");
    if (ps->m == 0)
        add_reason(l, ADMIN_DEGRADED, "one drive, no redundancy: its loss is the loss of all data");
    if (ps->broken)
        add_reason(l, ADMIN_READONLY, "writes are stopped after an error (%s): restart the daemon",
                   err_text(ps->broken));
    else if (ps->free == 0)
        add_reason(l, ADMIN_DEGRADED, "no space left for new data: delete data");
}

static struct admin_work status_work(const struct partition_work *w)
{
    return (struct admin_work){w->bytes, w->eta_s};
}

/* Partitions work at the same time: the longest says how long it takes. */
static void status_work_add(struct admin_work *sum, const struct partition_work *w)
{
    sum->bytes += w->bytes;
    if (w->eta_s > sum->eta_s)
        sum->eta_s = w->eta_s;
}

_Static_assert(ADMIN_PARTITIONS_MAX >= CONFIG_PARTITIONS_MAX, "all partitions are told of");

static void status_capacity_add(struct admin_capacity *sum, const struct admin_capacity *c)
{
    sum->limit += c->limit;
    sum->logical += c->logical;
    sum->deduped += c->deduped;
    sum->stored += c->stored;
    sum->physical += c->physical;
    sum->reclaimable += c->reclaimable;
    sum->free += c->free;
}

static void status_partition(const struct looking *l, const struct partition_status *ps)
{
    struct admin_partition *p = &l->st->partitions[l->st->partition_count++];

    (void)snprintf(p->name, sizeof(p->name), "%s", l->part->name);
    p->capacity = (struct admin_capacity){
        .limit = ps->capacity,
        .logical = ps->logical,
        .deduped = ps->unique,
        .stored = ps->stored,
        .physical = ps->physical,
        .reclaimable = ps->reclaimable,
        .free = ps->free,
    };
    p->client_bytes = ps->client_bytes;
    p->drive_bytes = ps->drive_bytes;
    status_capacity_add(&l->st->capacity, &p->capacity);
    l->st->client_bytes += ps->client_bytes;
    l->st->drive_bytes += ps->drive_bytes;
}

/* Adds one partition to the sums. */
static void status_add(void *arg)
{
    const struct looking *l = arg;
    struct admin_status *st = l->st;
    struct partition_status ps;

    partition_get_status(l->part->partition, &ps);
    if (!*l->part->name) {
        st->data_columns = ps.k;
        st->parity_columns = ps.m;
    }
    status_work_add(&st->rebuild, &ps.moves.rebuild);
    status_work_add(&st->leaving, &ps.moves.leaving);
    status_work_add(&st->rebalance, &ps.moves.rebalance);
    st->work_rate += ps.moves.rate;
    st->journal_size += ps.journal.size;
    st->journal_used += ps.journal.used;
    st->volumes += ps.volumes;
    st->studies += ps.studies.studies;
    st->instances += ps.studies.instances;
    st->buckets += ps.buckets.buckets;
    st->objects += ps.buckets.objects;
    st->object_bytes += ps.buckets.bytes;
    st->stored_instances += ps.studies.stored;
    st->identical_instances += ps.studies.identical;
    st->replaced_instances += ps.studies.replaced;
    st->refused_conflicts += ps.studies.refused;
    st->start_ns += ps.start.total_ns; /* one after the other */
    st->replayed_records += ps.start.replay.records;
    st->replayed_bytes += ps.start.replay.bytes;
    status_partition(l, &ps);
    status_health(l, &ps);
}

/* Goes through all partitions. */
static int status_visit(struct node_status *s, struct looking *l, fiber_fn fn)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < s->part_count; i++) {
        l->part = &s->parts[i];
        rc = node_part_call(l->part, fn, l);
    }
    return rc;
}

static int status_get(struct admin_source *a, struct admin_status *ret_status)
{
    struct node_status *s = (struct node_status *)a;
    struct admin_status *st = ret_status;
    struct looking l = {.st = st};

    memset(st, 0, sizeof(*st));
    (void)snprintf(st->version, sizeof(st->version), "%s", FILMROOM_VERSION);
    st->uptime_ns = env_now(s->env) - s->start_ns;
    memcpy(st->listeners, s->listeners, sizeof(s->listeners));
    st->listener_count = s->listener_count;
    return status_visit(s, &l, status_add);
}

static void status_drive(const struct looking *l, const struct drive *d,
                         const struct partition_moves *moves, struct admin_drive *o)
{
    const struct driveset *ds = partition_drives(l->part->partition);

    o->index = d->index;
    (void)snprintf(o->partition, sizeof(o->partition), "%s", l->part->name);
    (void)snprintf(o->path, sizeof(o->path), "%s", d->path);
    (void)snprintf(o->media, sizeof(o->media), "%s", d->class_ ? "nvme" : "disk");
    o->state = drive_watch_suspect(d)      ? ADMIN_DRIVE_SUSPECT
               : d->state == DRIVE_OK      ? ADMIN_DRIVE_OK
               : d->state == DRIVE_MISSING ? ADMIN_DRIVE_MISSING
                                           : ADMIN_DRIVE_FAILED;
    o->reason = drive_watch_reason(d);
    o->timeouts = d->timeouts;
    o->size = drive_slot_off(ds, (uint32_t)d->slot_count);
    o->used = partition_drive_used(l->part->partition, d->index);
    o->read_errors = d->read_errors;
    o->write_errors = d->write_errors;
    o->repaired = d->corruptions;
    o->scrub_bytes = d->scrub.bytes;
    o->scrub_found = d->scrub.bad;
    o->scrub_repaired = d->scrub.mended;
    o->scrub_unrepaired = d->scrub.unmended;
    o->leaving = d->leaving;
    o->given_up = moves->given_up >> d->index & 1;
    o->journal = ds->super.journal_mirrors >> d->index & 1;
    o->work = status_work(&moves->drives[d->index]);
}

static void drives_add(void *arg)
{
    struct looking *l = arg;
    const struct driveset *ds = partition_drives(l->part->partition);
    struct partition_status ps;

    partition_get_status(l->part->partition, &ps);
    l->drives = mem_realloc(l->drives, (l->drive_count + ds->count) * sizeof(*l->drives));
    for (unsigned i = 0; i < ds->count; i++) {
        if (ds->drives[i].state == DRIVE_NONE)
            continue;
        memset(&l->drives[l->drive_count], 0, sizeof(*l->drives));
        status_drive(l, &ds->drives[i], &ps.moves, &l->drives[l->drive_count++]);
    }
}

static int status_drives(struct admin_source *a, struct admin_drive **ret_drives, size_t *ret_count)
{
    struct looking l = {0};
    int rc = status_visit((struct node_status *)a, &l, drives_add);

    if (rc < 0) {
        mem_free(l.drives);
        return rc;
    }
    *ret_drives = l.drives;
    *ret_count = l.drive_count;
    return 0;
}

static struct admin_scrub_pass scrub_pass_of(const struct scrub_pass *p)
{
    return (struct admin_scrub_pass){.start_ns = p->start_ns,
                                     .end_ns = p->end_ns,
                                     .took_ns = p->took_ns,
                                     .bytes = p->bytes,
                                     .found = p->found,
                                     .repaired = p->mended,
                                     .lost = p->lost,
                                     .skipped = p->skipped};
}

/* Partitions are scrubbed each by itself and at once. Together they began with the first of them
 * and have ended with the last; a pass that one has not ended is none. */
static void scrub_pass_add(struct admin_scrub_pass *sum, const struct admin_scrub_pass *p)
{
    if (p->start_ns && (!sum->start_ns || p->start_ns < sum->start_ns))
        sum->start_ns = p->start_ns;
    sum->end_ns = !p->end_ns || !sum->end_ns ? 0
                  : p->end_ns > sum->end_ns  ? p->end_ns
                                             : sum->end_ns;
    if (p->took_ns > sum->took_ns)
        sum->took_ns = p->took_ns;
    sum->bytes += p->bytes;
    sum->found += p->found;
    sum->repaired += p->repaired;
    sum->lost += p->lost;
    sum->skipped += p->skipped;
}

static void scrub_sum(struct admin_scrub *sum, const struct admin_scrub *s)
{
    if (s->phase != ADMIN_SCRUB_IDLE &&
        (sum->phase == ADMIN_SCRUB_IDLE || s->percent < sum->percent))
        sum->percent = s->percent;
    if (s->phase == ADMIN_SCRUB_RUNNING || sum->phase == ADMIN_SCRUB_IDLE)
        sum->phase = s->phase;
    if (s->phase != ADMIN_SCRUB_IDLE)
        scrub_pass_add(&sum->now, &s->now);
    scrub_pass_add(&sum->last, &s->last);
    sum->rate += s->rate;
    if (s->eta_ns > sum->eta_ns)
        sum->eta_ns = s->eta_ns;
    if (s->due_ns && (!sum->due_ns || s->due_ns < sum->due_ns))
        sum->due_ns = s->due_ns;
}

static void scrub_add(void *arg)
{
    static const enum admin_scrub_phase phases[] = {[SCRUB_IDLE] = ADMIN_SCRUB_IDLE,
                                                    [SCRUB_RUNNING] = ADMIN_SCRUB_RUNNING,
                                                    [SCRUB_STOPPED] = ADMIN_SCRUB_STOPPED};
    struct looking *l = arg;
    struct partition *p = l->part->partition;
    struct scrub_status st;
    struct admin_scrub one;
    int rc = 0;

    if (l->order == ADMIN_SCRUB_START)
        rc = partition_scrub_start(p);
    else if (l->order == ADMIN_SCRUB_STOP)
        rc = partition_scrub_stop(p);
    if (rc < 0) { /* the others are ordered all the same; the first error is told */
        l->rc = l->rc < 0 ? l->rc : rc;
        return;
    }
    partition_scrub_status(p, &st);
    one = (struct admin_scrub){.phase = phases[st.state.phase],
                               .now = scrub_pass_of(&st.state.now),
                               .last = scrub_pass_of(&st.state.last),
                               .rate = st.rate,
                               .eta_ns = st.eta_ns,
                               .due_ns = st.due_ns};
    if (st.state.walked)
        one.percent =
            (unsigned)(100.0 * (double)st.state.walked / (double)(st.state.walked + st.left));
    if (*l->part->name)
        scrub_sum(l->scrub, &one);
    else
        *l->scrub = one;
}

static int status_scrub(struct admin_source *a, enum admin_scrub_order order,
                        struct admin_scrub *ret_scrub)
{
    struct admin_scrub scrub = {.phase = ADMIN_SCRUB_IDLE};
    struct looking l = {.order = order, .scrub = &scrub};
    int rc = status_visit((struct node_status *)a, &l, scrub_add);

    if (rc == 0)
        rc = l.rc;
    if (rc == 0)
        *ret_scrub = scrub;
    return rc;
}

void node_status_init(struct node_status *s, struct env *env, struct node_part *parts,
                      unsigned part_count)
{
    static const struct admin_ops ops = {.status = status_get,
                                         .drives = status_drives,
                                         .scrub = status_scrub,
                                         .drive_order = node_drive_order};

    s->face.ops = &ops;
    s->env = env;
    s->parts = parts;
    s->part_count = part_count;
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

    (void)status_get(&s->face, st); /* all loops run */
    for (size_t i = 0; i < st->reason_count; i++)
        log_warn("node", "not in full health: %s", st->reasons[i]);
    for (size_t i = 0; i < s->listener_count; i++)
        log_info("node", "listening service=%s addr=%s", s->listeners[i].name,
                 s->listeners[i].addr);
    mem_free(st);
}

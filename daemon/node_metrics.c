/* The node's metrics; see node_metrics.h. */
#include "daemon/node_metrics.h"

#include <inttypes.h>
#include <stdio.h>

#include "daemon/drive_watch.h"
#include "daemon/scrubber.h"
#include "lib/base/log.h"

/* ---- Gauges of the whole ---- */

static void gauges_copy(void *arg)
{
    struct node_part_metrics *pm = arg;
    const struct driveset *ds = partition_drives(pm->part->partition);
    struct partition_status st;
    struct scrub_status scrub;

    partition_get_status(pm->part->partition, &st);
    partition_scrub_status(pm->part->partition, &scrub);
    pm->now = (struct node_gauges){.writes_stopped = st.broken != 0,
                                   .capacity = st.capacity,
                                   .logical = st.logical,
                                   .unique = st.unique,
                                   .stored = st.stored,
                                   .physical = st.physical,
                                   .reclaimable = st.reclaimable,
                                   .free = st.free,
                                   .journal_size = st.journal.size,
                                   .journal_used = st.journal.used,
                                   .overlay = st.overlay_bytes,
                                   .rebuild = st.moves.rebuild.bytes,
                                   .leaving = st.moves.leaving.bytes,
                                   .rebalance = st.moves.rebalance.bytes,
                                   .moved = st.moves.moved,
                                   .volumes = st.volumes,
                                   .studies = st.studies.studies,
                                   .instances = st.studies.instances,
                                   .buckets = st.buckets.buckets,
                                   .objects = st.buckets.objects,
                                   .object_bytes = st.buckets.bytes,
                                   .scrub_running = scrub.state.phase == SCRUB_RUNNING,
                                   .scrub_lost = scrub.lost,
                                   .lost = scrub.known_lost,
                                   .step_max =
                                       atomic_load_explicit(&pm->steps.max, memory_order_relaxed)};
    /* Those that left stay, as drives in service do: an empty place is nothing to be alarmed about.
     */
    for (unsigned i = 0; i < FORMAT_DRIVES_MAX; i++) {
        pm->now.drive_ok[i] =
            i >= ds->count || ds->drives[i].state == DRIVE_NONE || drive_usable(&ds->drives[i]);
        pm->now.drive_suspect[i] = i < ds->count && drive_watch_suspect(&ds->drives[i]);
    }
    pm->drives_now = ds->count;
}

/* Registers drives that were added since somebody last looked. Does not suspend. */
static void drives_register(struct node_metrics *nm, struct node_part_metrics *pm)
{
    const struct driveset *ds = partition_drives(pm->part->partition);

    if (nm->part_count > 1)
        metrics_set_owner(nm->registry, "partition", pm->part->name);
    for (; pm->drives < pm->drives_now; pm->drives++) {
        char index[12];

        (void)snprintf(index, sizeof(index), "%u", pm->drives);
        metrics_add_plain(nm->registry, METRIC_GAUGE, METRIC_COUNT, "filmroom_drive_ok",
                          "1 while the drive is in service", METRIC_LABELS("drive", index),
                          &pm->now.drive_ok[pm->drives]);
        metrics_add_plain(nm->registry, METRIC_GAUGE, METRIC_COUNT, "filmroom_drive_suspect",
                          "1 while the drive is in service and read around",
                          METRIC_LABELS("drive", index), &pm->now.drive_suspect[pm->drives]);
        if (pm->drives >= pm->drives_at_start) /* partition_observe has the others */
            drive_observe(&ds->drives[pm->drives], nm->registry);
    }
    metrics_set_owner(nm->registry, NULL, NULL);
}

static void gauges_refresh(void *arg)
{
    struct node_metrics *nm = arg;

    nm->uptime = env_now(nm->env) - nm->start_ns;
    for (unsigned i = 0; i < nm->part_count; i++) {
        (void)node_part_call(nm->parts[i].part, gauges_copy, &nm->parts[i]); /* its loop runs */
        drives_register(nm, &nm->parts[i]);
    }
}

static void gauges_register(struct metrics *m, const struct node_part_metrics *pm)
{
    const struct node_gauges *g = &pm->now;
    const struct {
        const char *name, *help;
        const uint64_t *value;
    } rows[] = {
        {"filmroom_writes_stopped", "1 after an error that stopped all writes", &g->writes_stopped},
        {"filmroom_capacity_bytes", "Bytes for users' chunks, before parity", &g->capacity},
        {"filmroom_logical_bytes", "Bytes that volumes map and instances and objects have",
         &g->logical},
        {"filmroom_unique_bytes", "Bytes of distinct chunks", &g->unique},
        {"filmroom_stored_bytes", "Bytes of distinct chunks, compressed", &g->stored},
        {"filmroom_physical_bytes", "Bytes of drives taken, with parity", &g->physical},
        {"filmroom_reclaimable_bytes", "Room in segments that holds nothing alive, before parity",
         &g->reclaimable},
        {"filmroom_free_bytes", "Bytes of it not taken; 0: writes wait or fail", &g->free},
        {"filmroom_journal_size_bytes", "Size of the journal", &g->journal_size},
        {"filmroom_journal_used_bytes", "Bytes of the journal in use", &g->journal_used},
        {"filmroom_overlay_bytes", "Small writes in memory, to be moved into stripes", &g->overlay},
        {"filmroom_rebuild_bytes", "Stored bytes that lack parity and are written anew",
         &g->rebuild},
        {"filmroom_leaving_bytes", "Stored bytes on drives that are leaving", &g->leaving},
        {"filmroom_rebalance_bytes", "Stored bytes to be moved to fill drives evenly, about",
         &g->rebalance},
        {"filmroom_volumes", "Volumes", &g->volumes},
        {"filmroom_studies", "Studies", &g->studies},
        {"filmroom_instances", "Instances", &g->instances},
        {"filmroom_buckets", "Buckets, but for the reserved one", &g->buckets},
        {"filmroom_objects", "Objects in buckets; instances are not among them", &g->objects},
        {"filmroom_object_bytes", "Bytes of objects in buckets", &g->object_bytes},
        {"filmroom_lost_chunks", "Chunks that readers or the last pass of scrub found lost",
         &g->lost},
        {"filmroom_scrub_running", "1 while scrub is at work", &g->scrub_running},
        {"filmroom_scrub_lost_chunks", "Chunks that scrub found lost when it last looked",
         &g->scrub_lost},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        metrics_add_plain(m, METRIC_GAUGE, METRIC_COUNT, rows[i].name, rows[i].help, NULL,
                          rows[i].value);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_rehomed_bytes_total",
                      "Stored bytes written anew to restore parity, empty drives, fill them evenly",
                      NULL, &g->moved);
}

/* ---- The watch on the loops ---- */

static void watch_tell(void *arg, const char *fiber, const char *why, uint64_t took_ns)
{
    struct node_part_metrics *pm = arg;
    uint64_t left_out;

    if (slow_admit(&pm->watch_limit, env_now(pm->part->env), &left_out))
        log_warn("watchdog",
                 "a fiber kept the loop from the others fiber=%s us=%" PRIu64
                 " then=%s left_out=%" PRIu64,
                 log_q(fiber), took_ns / 1000, log_q(why), left_out);
}

static void watch_register(struct metrics *m, struct node_part_metrics *pm)
{
    metric_hist_init(&pm->steps, METRIC_TIME);
    metrics_add_hist(m, "filmroom_loop_step_seconds",
                     "Time of a fiber's step on the loop; empty unless the watchdog is on", NULL,
                     &pm->steps);
    metrics_add_plain(m, METRIC_GAUGE, METRIC_TIME, "filmroom_loop_step_max_seconds",
                      "The longest step so far; 0 unless the watchdog is on", NULL,
                      &pm->now.step_max);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_loop_slow_steps_total",
                      "Steps over the watchdog's threshold", NULL, &pm->watch_limit.total);
}

static void watch_start(void *arg)
{
    struct node_part_metrics *pm = arg;

    env_set_watch(pm->part->env, &pm->watch);
}

static void watch_stop(void *arg)
{
    struct node_part_metrics *pm = arg;

    env_set_watch(pm->part->env, NULL);
}

/* ---- Life ---- */

struct observing {
    struct node_part_metrics *pm;
    struct metrics *m;
};

static void part_observe(void *arg)
{
    const struct observing *o = arg;

    kv_front_observe(o->pm->part->kv, o->m, &o->pm->slow);
    partition_observe(o->pm->part->partition, o->m, &o->pm->slow);
    o->pm->drives_at_start = partition_drives(o->pm->part->partition)->count;
}

static void part_start(struct node_metrics *nm, struct node_part_metrics *pm,
                       const struct config *config)
{
    struct metrics *m = nm->registry;
    struct observing o = {pm, m};

    pm->slow.threshold_ns = config->slow_ms * ENV_NS_PER_MS;
    gauges_register(m, pm);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_slow_operations_total",
                      "Operations over the threshold of slow ones", NULL, &pm->slow.total);
    (void)node_part_call(pm->part, part_observe, &o); /* its loop runs */
    watch_register(m, pm);
    if (!config->watchdog_ms)
        return;
    pm->watch = (struct env_watch){.threshold_ns = config->watchdog_ms * ENV_NS_PER_MS,
                                   .steps = &pm->steps,
                                   .tell = watch_tell,
                                   .arg = pm};
    (void)node_part_call(pm->part, watch_start, pm);
}

void node_metrics_start(struct node_metrics *nm, struct env *env, const struct config *config,
                        struct node_part *parts, unsigned part_count)
{
    nm->registry = metrics_new();
    nm->env = env;
    nm->start_ns = env_now(env);
    nm->part_count = part_count;
    metrics_on_look(nm->registry, gauges_refresh, nm);
    metrics_add_plain(nm->registry, METRIC_GAUGE, METRIC_TIME, "filmroom_uptime_seconds",
                      "Time since the store was opened", NULL, &nm->uptime);
    for (unsigned i = 0; i < part_count; i++) {
        nm->parts[i].part = &parts[i];
        if (part_count > 1)
            metrics_set_owner(nm->registry, "partition", parts[i].name);
        part_start(nm, &nm->parts[i], config);
    }
    metrics_set_owner(nm->registry, NULL, NULL);
}

void node_metrics_stop(struct node_metrics *nm)
{
    if (!nm->registry)
        return;
    for (unsigned i = 0; i < nm->part_count; i++)
        (void)node_part_call(nm->parts[i].part, watch_stop, &nm->parts[i]);
    metrics_free(nm->registry);
    nm->registry = NULL;
}

/* The node's metrics; see node_metrics.h. */
#include "daemon/node_metrics.h"

#include <inttypes.h>
#include <stdio.h>

#include "lib/base/log.h"

/* ---- Gauges of the whole ---- */

/* Drives that were added since somebody last looked. Those that left stay, as drives in service do:
 * an empty place is nothing to be alarmed about. */
static void drives_register(struct node_metrics *nm)
{
    const struct driveset *ds = partition_drives(nm->partition);

    for (; nm->drives < ds->count; nm->drives++) {
        char index[12];

        (void)snprintf(index, sizeof(index), "%u", nm->drives);
        metrics_add_plain(nm->registry, METRIC_GAUGE, METRIC_COUNT, "filmroom_drive_ok",
                          "1 while the drive is in service", METRIC_LABELS("drive", index),
                          &nm->now.drive_ok[nm->drives]);
        if (nm->drives >= nm->drives_at_start)
            drive_observe(&ds->drives[nm->drives], nm->registry);
    }
}

static void gauges_refresh(void *arg)
{
    struct node_metrics *nm = arg;
    const struct driveset *ds = partition_drives(nm->partition);
    struct partition_status st;

    drives_register(nm);
    partition_get_status(nm->partition, &st);
    nm->now = (struct node_gauges){.uptime = env_now(nm->env) - nm->start_ns,
                                   .writes_stopped = st.broken != 0,
                                   .capacity = st.capacity,
                                   .logical = st.logical,
                                   .unique = st.unique,
                                   .stored = st.stored,
                                   .physical = st.physical,
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
                                   .step_max =
                                       atomic_load_explicit(&nm->steps.max, memory_order_relaxed)};
    for (unsigned i = 0; i < FORMAT_DRIVES_MAX; i++)
        nm->now.drive_ok[i] =
            i >= ds->count || ds->drives[i].state == DRIVE_NONE || drive_usable(&ds->drives[i]);
}

static void gauges_register(struct node_metrics *nm)
{
    const struct node_gauges *g = &nm->now;
    const struct {
        const char *name, *help;
        const uint64_t *value;
    } rows[] = {
        {"filmroom_writes_stopped", "1 after an error that stopped all writes", &g->writes_stopped},
        {"filmroom_capacity_bytes", "Bytes that chunks may take, before parity", &g->capacity},
        {"filmroom_logical_bytes", "Bytes that volumes map and instances have", &g->logical},
        {"filmroom_unique_bytes", "Bytes of distinct chunks", &g->unique},
        {"filmroom_stored_bytes", "Bytes of distinct chunks, compressed", &g->stored},
        {"filmroom_physical_bytes", "Bytes of drives taken, with parity", &g->physical},
        {"filmroom_free_bytes", "Bytes left for new chunks; 0 when writes are refused", &g->free},
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
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        metrics_add_plain(nm->registry, METRIC_GAUGE, METRIC_COUNT, rows[i].name, rows[i].help,
                          NULL, rows[i].value);
    metrics_add_plain(nm->registry, METRIC_COUNTER, METRIC_COUNT, "filmroom_rehomed_bytes_total",
                      "Stored bytes written anew to restore parity, empty drives, fill them evenly",
                      NULL, &g->moved);
    metrics_add_plain(nm->registry, METRIC_GAUGE, METRIC_TIME, "filmroom_uptime_seconds",
                      "Time since the store was opened", NULL, &g->uptime);
    nm->drives_at_start = partition_drives(nm->partition)->count; /* partition_observe has them */
    drives_register(nm);
}

/* ---- The watch on the loop ---- */

static void watch_tell(void *arg, const char *fiber, const char *why, uint64_t took_ns)
{
    struct node_metrics *nm = arg;
    uint64_t left_out;

    if (slow_admit(&nm->watch_limit, env_now(nm->env), &left_out))
        log_warn("watchdog",
                 "a fiber kept the loop from the others fiber=%s us=%" PRIu64
                 " then=%s left_out=%" PRIu64,
                 log_q(fiber), took_ns / 1000, log_q(why), left_out);
}

static void watch_start(struct node_metrics *nm, unsigned threshold_ms)
{
    metric_hist_init(&nm->steps, METRIC_TIME);
    metrics_add_hist(nm->registry, "filmroom_loop_step_seconds",
                     "Time of a fiber's step on the loop; empty unless the watchdog is on", NULL,
                     &nm->steps);
    metrics_add_plain(nm->registry, METRIC_GAUGE, METRIC_TIME, "filmroom_loop_step_max_seconds",
                      "The longest step so far; 0 unless the watchdog is on", NULL,
                      &nm->now.step_max);
    metrics_add_plain(nm->registry, METRIC_COUNTER, METRIC_COUNT, "filmroom_loop_slow_steps_total",
                      "Steps over the watchdog's threshold", NULL, &nm->watch_limit.total);
    if (!threshold_ms)
        return;
    nm->watch = (struct env_watch){.threshold_ns = threshold_ms * ENV_NS_PER_MS,
                                   .steps = &nm->steps,
                                   .tell = watch_tell,
                                   .arg = nm};
    env_set_watch(nm->env, &nm->watch);
}

/* ---- Life ---- */

void node_metrics_start(struct node_metrics *nm, struct env *env, const struct config *config,
                        struct partition *partition, struct kv *kv)
{
    struct metrics *m = metrics_new();

    nm->registry = m;
    nm->env = env;
    nm->partition = partition;
    nm->start_ns = env_now(env);
    nm->slow.threshold_ns = config->slow_ms * ENV_NS_PER_MS;
    gauges_register(nm);
    metrics_on_look(m, gauges_refresh, nm);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_slow_operations_total",
                      "Operations over the threshold of slow ones", NULL, &nm->slow.total);
    kv_front_observe(kv, m, &nm->slow);
    partition_observe(partition, m, &nm->slow);
    watch_start(nm, config->watchdog_ms);
}

void node_metrics_stop(struct node_metrics *nm)
{
    if (!nm->registry)
        return;
    env_set_watch(nm->env, NULL);
    metrics_free(nm->registry);
    nm->registry = NULL;
}

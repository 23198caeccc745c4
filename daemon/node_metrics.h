/* The node's metrics: the registry that all parts register in, gauges of the whole, the log of slow
 * operations and the watch on the loop. docs/METRICS.md says what they mean to an administrator. */
#pragma once

#include "daemon/config.h"
#include "daemon/partition.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"
#include "lib/rt/env.h"

/* Copies of what is counted elsewhere, taken when somebody looks. */
struct node_gauges {
    uint64_t uptime, writes_stopped;
    uint64_t capacity, logical, unique, stored, physical, free;
    uint64_t journal_size, journal_used, overlay, volumes, studies, instances;
    uint64_t step_max;
    uint64_t drive_ok[FORMAT_DRIVES_MAX];
    uint64_t rebuild, leaving, rebalance, moved;
};

struct node_metrics {
    struct metrics *registry; /* NULL before start and after stop */
    struct env *env;
    struct partition *partition;
    uint64_t start_ns;
    unsigned drives, drives_at_start; /* registered */
    struct node_gauges now;
    struct slow_log slow;
    struct env_watch watch;
    struct slow_log watch_limit; /* of the watch's lines */
    struct metric_hist steps;
};

/* Makes the registry, registers the partition and `kv` (a kv_front) in it, and begins to watch the
 * loop if the settings say so. Does not suspend. */
void node_metrics_start(struct node_metrics *nm, struct env *env, const struct config *config,
                        struct partition *partition, struct kv *kv);

/* Nobody may look any more; slow operations are still told of until the partition is closed. Fine
 * before start. */
void node_metrics_stop(struct node_metrics *nm);

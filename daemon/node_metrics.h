/* The node's metrics: the registry that all parts register in, gauges of the whole, the log of slow
 * operations and the watch on the loop. docs/METRICS.md says what they mean to an administrator. */
#pragma once

#include "daemon/node_part.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"
#include "lib/rt/env.h"

/* Copies of what is counted elsewhere, taken when somebody looks. */
struct node_gauges {
    uint64_t writes_stopped;
    uint64_t capacity, logical, unique, stored, physical, reclaimable, free;
    uint64_t journal_size, journal_used, overlay, volumes, studies, instances, buckets, objects,
        object_bytes;
    uint64_t step_max, scrub_running, scrub_lost, lost;
    uint64_t rebuild, leaving, rebalance, moved;
    uint64_t drive_ok[FORMAT_DRIVES_MAX], drive_suspect[FORMAT_DRIVES_MAX];
};

/* What is kept for one partition. */
struct node_part_metrics {
    struct node_part *part;
    unsigned drives, drives_at_start, drives_now; /* registered; by the partition; there are */
    struct node_gauges now;
    struct slow_log slow;
    struct env_watch watch;
    struct slow_limit watch_limit; /* of the watch's lines */
    struct metric_hist steps;
};

struct node_metrics {
    struct metrics *registry; /* NULL before start and after stop */
    struct env *env;
    uint64_t start_ns, uptime;
    struct node_part_metrics parts[CONFIG_PARTITIONS_MAX];
    unsigned part_count;
};

/* Makes the registry, registers the partitions in it, and begins to watch their loops if the
 * settings say so. Where there are several partitions, what is of one has a label `partition` (""
 * for the first). `parts` outlive it. Suspends. */
void node_metrics_start(struct node_metrics *nm, struct env *env, const struct config *config,
                        struct node_part *parts, unsigned part_count);

/* Nobody may look any more; slow operations are still told of until the partitions are closed. Fine
 * before start. Suspends. */
void node_metrics_stop(struct node_metrics *nm);

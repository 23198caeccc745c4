/* A daemon's inside made of tables in memory: what the admin API's tests stand on. */
#pragma once

#include "lib/base/metric.h"
#include "proto/admin/admin_core.h"
#include "tests/unit/admin/fake_bucket.h"

#define FAKE_MAX 64u

struct fake_volume {
    struct block_info info;
};

struct fake_series {
    char uid[OBJECT_UID_MAX + 1], study[OBJECT_UID_MAX + 1];
    const char *modality, *description;
    unsigned instances;
};

struct fake_study {
    char uid[OBJECT_UID_MAX + 1];
    const char *patient_id, *patient_name, *date, *description;
};

struct fake {
    struct admin_source admin;
    struct admin_drive_order order; /* the last one about a drive */
    struct block_store blocks;
    struct object_store objects;
    struct fake_buckets buckets;
    struct fake_volume volumes[FAKE_MAX];
    size_t volume_count;
    struct fake_study studies[FAKE_MAX];
    size_t study_count;
    struct fake_series series[FAKE_MAX];
    size_t series_count;
    struct metrics *metrics; /* NULL: none */
    struct metric_hist read_time, batch_bytes;
    struct metric_counter sent;
    enum admin_scrub_phase scrub;
    unsigned fail;                  /* a code that every call returns, negated; 0 for none */
    struct object_query last;       /* the last query of studies or patients, */
    struct object_match last_match; /* its first condition, */
    char last_value[128];           /* and that one's value */
};

/* Two volumes ("busy" is open), three drives (one missing), two studies. */
void fake_init(struct fake *f);
struct admin_backend fake_backend(struct fake *f);

/* Makes f->metrics, with three series in it; metrics_free. */
void fake_metrics(struct fake *f);

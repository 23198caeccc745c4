/* What server.c (listening, life, counters) and association.c (one association) share. */
#pragma once

#include <stdatomic.h>

#include "lib/base/list.h"
#include "lib/base/metric.h"
#include "lib/dicom/scp.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"
#include "proto/dimse/dimse_server.h"

struct dimse_server {
    struct dimse_options o; /* with defaults filled in */
    char aet[SCP_AET_MAX + 1];
    struct scp_options scp;
    int listen_fd;
    uint16_t port;
    struct dimse_stats stats;
    struct metric_hist store_time; /* recorded by associations' threads */
    struct list associations;      /* struct dimse_association, of the loop */
    unsigned threads;              /* associations' and the acceptor's */
    struct fiber_cond ended;       /* a thread has ended */
    atomic_bool stopping;          /* written on the loop, read by all threads */
};

/* Bytes gathered before a hop to the loop: a CT slice makes three, a small instance one. */
#define DIMSE_GATHER (256u * 1024)

/* One connection. The thread's, save what `node` and the closures touch while the thread waits. */
struct dimse_association {
    struct list node; /* in server.associations */
    struct dimse_server *server;
    int fd;
    bool over_limit; /* rejected by the cap */
    char address[64];
    char calling_aet[SCP_AET_MAX + 1];
    uint64_t started_ns, stores, failures, bytes;
    /* The store in progress: */
    atomic_bool storing; /* read on the loop when the server stops */
    struct object_put *put;
    char sop_class[DCM_UID_MAX + 1], sop_instance[DCM_UID_MAX + 1];
    uint8_t *gather;
    size_t gathered;
    uint64_t store_bytes, store_start;
    int rc; /* first error of the store */
    struct object_put_result result;
};

/* The thread of an association: serves it to its end and frees it. */
void dimse_association_main(void *arg);

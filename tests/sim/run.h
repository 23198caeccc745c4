/* One run of the engine in the simulator: everything that follows from a seed. */
#pragma once

#include <stdarg.h>

#include "daemon/partition.h"
#include "lib/rt/env_sim.h"
#include "lib/rt/sync.h"
#include "tests/sim/instances.h"
#include "tests/sim/model.h"

#define RUN_DRIVES_MAX 6u

/* What clients do; each seed leaves some out and weighs the others. */
enum op_kind {
    OP_CREATE,
    OP_REMOVE,
    OP_RESIZE,
    OP_WRITE,
    OP_WRITE_PART,
    OP_WRITE_BULK,
    OP_ZERO,
    OP_READ,
    OP_EXTENTS,
    OP_FLUSH,
    OP_SNAPSHOT,
    OP_SNAPSHOT_DELETE,
    OP_CLONE,
    OP_ROLLBACK,
    OP_LIST,
    OP_PUT,
    OP_PUT_BAD,
    OP_PUT_ABORT,
    OP_OBJECT_READ,
    OP_DELETE,
    OP_QUERY,
    OP_SETTLE,
    OP_COMPACT,
    OP_COUNT
};

struct run_options {
    bool trace;
    bool lost; /* more drives go than the profile bears: errors are fine, wrong bytes are not */
};

struct run {
    uint64_t seed;
    struct run_options options;
    struct sim *sim;
    struct model model;
    struct model_instance instances[INSTANCES];
    struct model_contents contents;
    struct kv_mem_image *image;

    /* The store. */
    unsigned drives, k, m;
    uint64_t slot_count, slot_size, journal_len;
    const char *paths[RUN_DRIVES_MAX];
    struct partition_options partition;
    bool faults_on;            /* damage may be done to drives */
    uint32_t damaged, deleted; /* bit per drive */
    uint32_t passing;        /* of the damaged: only ever returned errors, so may be whole again */
    uint32_t faulty;         /* has faults now */
    uint32_t faulty_in_life; /* had some in this life */
    unsigned damage_max;     /* drives */
    uint64_t slow_io_ns;
    bool storm; /* one kill soon after the other */
    bool churn; /* much is written over, again and again */

    /* This life. */
    unsigned life;
    const char *phase;
    struct env *env;
    struct kv *kv;
    struct partition *p;
    unsigned clients, weights[OP_COUNT], weight_sum;
    uint64_t ops_left, think_ns, block_span;
    struct fiber_group group;
    bool opened, last;
    bool rebuilt; /* the KV store could be made anew */

    uint64_t ops, nospc, kills, compacted, moved; /* counts, for --trace */
    uint64_t rebuilds, rebuilds_missing;          /* KV stores lost; that no copy was found of */
};

/* Ends the test: prints what went wrong and how to see it again. */
void run_fail(struct run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
void run_trace(struct run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static inline uint64_t run_random(struct run *r, uint64_t below)
{
    return sim_random(r->sim, below);
}
static inline bool run_chance(struct run *r, unsigned percent)
{
    return sim_random(r->sim, 100) < percent;
}

/* clients.c: a client fiber works until r->ops_left is used up. */
void client_main(void *arg);
/* Reads a whole instance; which of its contents it is, ABSENT when there is none. */
int client_read_instance(struct run *r, unsigned index, int *ret_content);
/* Deletes every volume and instance. */
void clients_delete_all(struct run *r);

/* verify.c: everything that the store holds against the model; nothing else is at work. Settles
 * what the crash before left open. */
void verify_all(struct run *r);
/* After everything was deleted and settled: no space is in use. */
void verify_empty(struct run *r);

/* rebuild.c: makes r->image, which is empty, anew from the drives. */
void rebuild_main(void *arg);

/* recount.c: references, chunks, segments and indexes in the KV store, counted again from maps and
 * recipes; the partition is closed. */
void recount_all(struct run *r);

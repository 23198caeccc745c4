/* One run of the engine in the simulator: everything that follows from a seed. */
#pragma once

#include <stdarg.h>

#include "daemon/partition.h"
#include "lib/rt/env_sim.h"
#include "lib/rt/sync.h"
#include "tests/sim/instances.h"
#include "tests/sim/model.h"
#include "tests/sim/objects.h"

#define RUN_DRIVES_MAX 10u

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
    OP_BUCKET,
    OP_BUCKET_PUT,
    OP_BUCKET_READ,
    OP_BUCKET_REMOVE,
    OP_BUCKET_LIST,
    OP_SETTLE,
    OP_COMPACT,
    OP_SCRUB,
    OP_DRIVE,
    OP_COUNT
};

struct audit_finding;

struct run_options {
    bool trace;
    bool lost; /* more drives go than the profile bears: errors are fine, wrong bytes are not */
    bool *ret_beyond; /* set when they have, in a life that opened the store; or NULL */
};

struct run {
    uint64_t seed;
    struct run_options options;
    struct sim *sim;
    struct model model;
    struct model_instance instances[INSTANCES];
    struct model_contents contents;
    struct model_bucket buckets[OBJECT_BUCKETS];
    struct model_etag etags[OBJECT_NAMES][OBJECT_CONTENTS + 1];
    struct kv_mem_image *image;

    /* The store. */
    unsigned drives, k, m;
    uint64_t slot_count, slot_size, journal_len;
    const char *paths[RUN_DRIVES_MAX]; /* disks; the first `drives` of them at the start */
    const char *places[FORMAT_DRIVES_MAX + RUN_DRIVES_MAX]; /* where the next life looks for them */
    unsigned place_count;
    bool drives_change; /* they come and go */
    uint32_t member;    /* disks that are drives of the store, or may be */
    uint32_t spared;    /* disks that no harm is done to: see members.c */
    struct run_member {
        uint8_t uuid[16];
        bool there, leaving;
        uint8_t class_;
    } ordered[FORMAT_DRIVES_MAX]; /* by place: what orders have made of drives */
    bool ordered_known;
    unsigned orders; /* in flight */
    uint64_t orders_begun;
    struct partition_options partition;
    bool faults_on;            /* damage may be done to drives */
    uint32_t damaged, deleted; /* bit per drive */
    uint32_t owed;             /* of the damaged: has left, and what was written without it may lack
                                  parity yet */
    uint32_t passing;        /* of the damaged: only ever returned errors, so may be whole again */
    uint32_t faulty;         /* has faults now */
    uint32_t faulty_in_life; /* had some in this life */
    unsigned damage_max;     /* drives */
    bool beyond;             /* more are or were damaged than the profile bears */
    bool harms;              /* with `lost`: drives are harmed, see life.c, or deleted */
    uint32_t harmed;         /* ever */
    uint64_t slots_off;      /* where slots begin on drives; 0: not known yet */
    uint32_t spoilt;         /* may hold something wrong: lied, rotted, put back from a copy */
    bool host_fills;         /* file systems under drives run full now and then, ... */
    bool host_no_reserve;    /* ... and cannot reserve space */
    bool host_full, host_was_full; /* now; in this life */
    unsigned damages, damage_life; /* how often, and in which life last */
    uint32_t ever_damaged;         /* bit per drive: in this run */
    uint64_t slow_io_ns;
    bool storm;       /* one kill soon after the other */
    bool churn;       /* much is written over, again and again */
    bool hangs_only;  /* drives hang, and nothing else happens to them */
    uint32_t hanging; /* bit per drive: now */
    uint64_t hangs;   /* how many have begun */

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
    bool healing;  /* this life: no faults, and the store must become whole */
    bool is_whole; /* it did */
    bool converge; /* the life before the last: scrub has to make everything whole */
    bool rebuilt;  /* the KV store could be made anew */

    uint64_t ops, nospc, kills, compacted, moved; /* counts, for --trace */
    /* The metadata's copy: what was seen of it last. */
    uint64_t copy_lsn, copy_failures;
    bool copy_lacks; /* a checkpoint may have gone without one since, and the journal with it */
    bool tight;      /* there was hardly any room for it */

    uint64_t errors;                     /* that are fair because drives are lost */
    uint64_t rebuilds, rebuilds_missing; /* KV stores lost; that no copy was found of */
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
/* studies.c: an operation on instances; false when it is none. */
bool studies_step(struct run *r, enum op_kind kind);
/* Reads a whole instance; which of its contents it is, ABSENT when there is none. */
int client_read_instance(struct run *r, unsigned index, int *ret_content);
/* Is it fair to say that the store is full, or the file systems under it, for a client's write of
 * so many bytes? */
bool client_full_enough(struct run *r, uint64_t bytes);
/* Has it hardly any room, even for what it does by itself? */
bool client_tight(struct run *r);
/* Is `rc` a lack of space that is fair where nothing new is stored? */
bool client_space_failed(struct run *r, int rc);
/* Where more drives are lost than the profile bears: is this a fair answer? Then what was to be
 * done may have been done or not. It stays in flight for the model until the life ends, which is
 * soon: clients begin nothing new. */
bool client_lost(struct run *r, int rc);
/* Deletes every volume, instance and bucket; false when too many drives were lost for that. */
bool clients_delete_all(struct run *r);

/* heal.c: faults of what drives lie on. */
void host_set_full(struct run *r, bool full);
void host_check(struct run *r);
void stale_keep(struct run *r);                    /* copies some drives; between lives */
bool stale_restore(struct run *r, unsigned drive); /* false: there is no copy, or a life */
/* And healing: waits until the store is whole; reads all of it, once the partition is closed. */
void heal_work(struct run *r);
void heal_check(struct run *r);
/* members.c: an order about drives; what the store's drives are now; waits until all that follows
 * from drives that came, go or were lost has been done. */
void op_drive(struct run *r);
void members_look(struct run *r);
/* After the store was opened: nothing that was ordered may be forgotten. */
void members_recall(struct run *r);
void members_converge(struct run *r);
/* Which disk has this path; RUN_DRIVES_MAX when none has. */
unsigned members_disk(const struct run *r, const char *path);
/* Of a drive, and a set of disks (bit per disk): is it of them? One whose path is not known may be.
 */
static inline bool members_of(const struct run *r, const struct drive *d, uint32_t disks)
{
    unsigned disk = members_disk(r, d->path);

    return disk == RUN_DRIVES_MAX || (disks >> disk & 1);
}

/* verify.c: everything that the store holds against the model; nothing else is at work. Settles
 * what the crash before left open. */
void verify_all(struct run *r);
/* After everything was deleted and settled: no space is in use. */
void verify_empty(struct run *r);

/* scrub.c: its settings; something a client does; at the start of a life, which may make spoilt
 * drives whole; when there are no faults any more, two passes of which the second may find
 * nothing; and the deep audit after that, with the partition closed. */
void scrub_choose(struct run *r);
void scrub_op(struct run *r);
void scrub_heal(struct run *r);
void scrub_converge(struct run *r);
void scrub_audit(struct run *r);
/* May a deep audit tell of this? Of damage, and whoever asks looks at which drives have it; of
 * doubt where drives were spoilt. */
bool scrub_may_find(const struct run *r, const struct audit_finding *f);
/* rebuild.c: looks whether checkpoints had to go without the metadata's copy, while the engine runs
 * (copy_look) and when it does not any more; makes r->image, which is empty, anew from the drives.
 */
void copy_look(struct run *r);
void copy_life_over(struct run *r);
void rebuild_main(void *arg);

/* recount.c: references, chunks, segments and indexes in the KV store, counted again from maps and
 * recipes; the partition is closed. */
void recount_all(struct run *r);

/* Every crash point: a workload runs once on recording drives, and at each moment at which
 * something becomes durable every state is made in which a power cut could have left drives and
 * metadata.
 *
 * Why only these moments. As time goes on, starting a write, completing one that is not durable and
 * writing a KV batch only add to what a crash may leave; only something becoming durable takes
 * states away. So the states of all other moments are among those of the next such moment, and
 * those of the end of the watch.
 *
 * How a state is tried: the process that records forks. The child has the very model of what was
 * acknowledged and what was in flight at that moment; it kills the simulated engine, puts the
 * chosen parts of the changes on the media, and opens the engine again on what there is. So states
 * cost nothing to keep, and a failed check ends one child only.
 */
#pragma once

#include "tests/crash/disk.h"
#include "tests/crash/meta.h"
#include "tests/sim/run.h"

#define CRASH_LIVES_MAX 4u

/* What comes after the crash. */
enum crash_variant {
    CRASH_RECOVER, /* the store is opened with all drives, checked, closed, audited */
    CRASH_LESS,    /* with as many drives gone as the profile bears */
    CRASH_AGAIN,   /* opened and checked, then the power goes, and drives with it: opened again */
    CRASH_KV_LOST, /* the KV store is gone, every other time drives as well: it is made anew */
    CRASH_VARIANTS
};

enum crash_end {
    CRASH_END_CLOSE, /* the engine is closed */
    CRASH_END_KILL,  /* kill -9: what was written stays, durable or not */
    CRASH_END_POWER, /* a power cut that keeps every other one of the changes */
};

struct crash;

struct crash_workload {
    const char *name, *text;
    struct crash_life {
        void (*work)(struct crash *c); /* NULL: nothing */
        enum crash_end end;
        bool watch_open, watch_close; /* states of opening, closing are tried too */
    } lives[CRASH_LIVES_MAX];
    unsigned life_count;
    bool watch_format;
    unsigned slots;            /* per drive; 0: enough */
    uint64_t overlay, journal; /* bytes; 0: some */
    uint64_t rebuild_delay_ns; /* 0: never in the time of a workload */
    unsigned drives_min;       /* it makes no sense with fewer */
    unsigned spares;           /* disks beside the drives, that may become some */
};

extern const struct crash_workload crash_workloads[];
extern const unsigned crash_workload_count;

struct crash_settings {
    const char *program, *plant;
    bool full;        /* many more subsets and torn writes; all variants of each state */
    bool one_cache;   /* drives are files on one device */
    bool trace, stop; /* tell of each step; stop at the first failure */
    unsigned drives, jobs;
    unsigned share; /* one in so many states is recovered from */
    uint64_t only;  /* a state's number; 0: all */
};

struct crash_counts {
    uint64_t points, states, distinct, tried, failed;
};

/* A state: what a crash keeps. */
#define CRASH_PARTS_MAX 512u
struct crash_state {
    struct crash_part parts[CRASH_PARTS_MAX];
    size_t count;
    uint64_t border; /* of the KV store */
};

struct crash {
    struct run run; /* of the simulator's tests: model, clients' reads, verify, recount */
    struct crash_disks disks;
    struct crash_meta meta;
    const struct crash_workload *workload;
    const struct crash_settings *settings;
    struct crash_counts counts;
    uint64_t *seen; /* digests of states: an open hash table */
    size_t seen_count, seen_room;

    bool watching;
    bool formatted;   /* acknowledged */
    uint64_t version; /* of what is acknowledged and in flight */
    uint32_t damaged; /* drives that were made to fail, or spoilt: a bit each */
    /* What was ordered of disks and acknowledged, a bit each: a disk under order is in none. */
    struct crash_members {
        uint32_t joined, stay, leave; /* drives of the store; not leaving; leaving or gone */
        uint32_t class[2];
    } members;
    bool copied;       /* the metadata has a copy on the drives */
    unsigned children; /* at work */
    bool stop;

    /* In the child. */
    bool crashed, cut; /* the power was cut; and nobody has looked at it yet */
    uint64_t state;    /* its number */
    enum crash_variant variant;
    bool stay; /* the life ends by a power cut once all is verified */

    unsigned life; /* of the workload */
    bool over;     /* the life's end has come: it is not to be closed */
};

/* states.c: tries the states of this moment. True in a child: the power is cut now. */
bool crash_point(void *arg);
/* Waits until at most `most` children are at work. */
void crash_wait(struct crash *c, unsigned most);

/* workloads.c calls: states are tried from now on, or no more. */
void crash_watch(struct crash *c, bool on);
/* The life ends here, as its row says; does not return. */
void crash_end_life(struct crash *c) __attribute__((noreturn));

/* crash_engine.c: a disk, by number. */
const char *crash_disk_path(unsigned i);
/* Runs one workload. */
void crash_run(const struct crash_workload *w, const struct crash_settings *s,
               struct crash_counts *ret_counts);

/* What the admin API asks of the daemon beyond volumes (block.h), studies (object.h) and
 * buckets (bucket.h): how it is, and which drives it is to use.
 *
 * The daemon implements it; tests implement it in memory. The calls are made from fibers of the
 * partition's loop and may suspend. Figures are a picture of one moment, taken without stopping
 * anything: sums may be off by what moved meanwhile.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ADMIN_REASONS_MAX    16
#define ADMIN_REASON_MAX     200 /* bytes with the NUL */
#define ADMIN_LISTENERS_MAX  8
#define ADMIN_PARTITIONS_MAX 8
#define ADMIN_PATH_MAX       4096 /* bytes with the NUL */
#define ADMIN_PARTITION_MAX  33   /* bytes of a partition's name with the NUL */
#define ADMIN_WHY_MAX        1024 /* bytes with the NUL */

enum admin_state {
    ADMIN_OK,       /* full redundancy */
    ADMIN_DEGRADED, /* serving, with something to be done: see the reasons */
    ADMIN_READONLY, /* reads are served, writes are refused */
    ADMIN_FAILED,   /* some data cannot be read */
};

enum admin_drive_state {
    ADMIN_DRIVE_OK,
    ADMIN_DRIVE_MISSING, /* not there, or not ours, when it was looked for */
    ADMIN_DRIVE_FAILED,  /* taken out after errors, or because it did not answer */
    ADMIN_DRIVE_SUSPECT, /* in service, but read around where others can serve */
};

/* Data that is being written anew because of drives that came, go or are gone. */
struct admin_work {
    uint64_t bytes; /* to go, before parity; 0: nothing to do */
    uint64_t eta_s; /* until it is done, with what comes before it; 0: not known */
};

struct admin_drive {
    char partition[ADMIN_PARTITION_MAX]; /* "" for the first */
    unsigned index;                      /* in its partition */
    char path[ADMIN_PATH_MAX];
    char media[16]; /* the drive's class: "nvme" or "disk" */
    enum admin_drive_state state;
    uint64_t size, used; /* bytes */
    const char *reason;  /* constant text: why it is not OK; NULL or "" otherwise */
    uint64_t read_errors, write_errors;
    uint64_t timeouts; /* operations that were not answered in time and given up */
    uint64_t repaired; /* corruptions found on it and mended from redundancy */
    /* By scrub, since start: bytes verified; columns, headers and superblocks that were wrong, of
     * them those that are right again and those that are not. */
    uint64_t scrub_bytes, scrub_found, scrub_repaired, scrub_unrepaired;
    bool leaving;           /* takes nothing new, and goes once it is empty */
    bool given_up;          /* out, and not waited for: its data is written anew to others */
    bool journal;           /* mirrors the journal */
    struct admin_work work; /* of one that leaves: until it is empty */
};

/* An order about drives. */
enum admin_drive_verb {
    ADMIN_DRIVE_ADD,
    ADMIN_DRIVE_REMOVE,
    ADMIN_DRIVE_KEEP, /* takes a removal back */
    ADMIN_DRIVE_REPLACE,
    ADMIN_DRIVE_REBUILD, /* of one that is out: now */
    ADMIN_DRIVE_SET_CLASS,
};
struct admin_drive_order {
    enum admin_drive_verb verb;
    char partition[ADMIN_PARTITION_MAX]; /* "" for the first */
    unsigned index;                      /* all but ADD */
    char path[ADMIN_PATH_MAX];           /* ADD, REPLACE: of the new drive, absolute */
    uint64_t size;                       /* the same: bytes to use; 0: all there is */
    bool nvme;                           /* the same, and SET_CLASS: its class */
    bool force;                          /* ADD, REPLACE: also where something is on it */
};

enum admin_scrub_phase {
    ADMIN_SCRUB_IDLE,
    ADMIN_SCRUB_RUNNING,
    ADMIN_SCRUB_STOPPED, /* within a pass */
};

struct admin_scrub_pass {
    uint64_t start_ns, end_ns; /* wall clock; 0: never, not yet */
    uint64_t took_ns;
    uint64_t bytes;           /* verified on drives */
    uint64_t found, repaired; /* columns, headers and superblocks */
    uint64_t lost;            /* chunks */
    uint64_t skipped;         /* segments with too many drives out */
};

struct admin_scrub {
    enum admin_scrub_phase phase;
    struct admin_scrub_pass now, last; /* under way (unless idle); finished */
    unsigned percent;                  /* of the pass under way */
    uint64_t rate;                     /* bytes per second; 0: not known */
    uint64_t eta_ns;                   /* time left; 0: not known */
    uint64_t due_ns;                   /* wall clock: the next pass; 0: not by itself */
};

enum admin_scrub_order { ADMIN_SCRUB_LOOK, ADMIN_SCRUB_START, ADMIN_SCRUB_STOP };

struct admin_listener {
    char name[16];  /* "nbd", "dicom", "http" */
    char addr[112]; /* "tcp:HOST:PORT" with the actual port, or "unix:/path" */
    unsigned port;  /* 0 for a unix socket */
};

/* Bytes, from what clients see down to what drives hold. */
struct admin_capacity {
    uint64_t limit;       /* of stored bytes: the capacity */
    uint64_t logical;     /* as clients wrote them: mapped blocks, instances, objects */
    uint64_t deduped;     /* of distinct chunks */
    uint64_t stored;      /* after compression */
    uint64_t physical;    /* with parity */
    uint64_t reclaimable; /* of what is taken, before parity: holds nothing alive; compaction's */
    uint64_t free;        /* on the drives, before parity */
};

struct admin_partition {
    char name[ADMIN_PARTITION_MAX]; /* "" for the first */
    struct admin_capacity capacity;
    uint64_t client_bytes, drive_bytes; /* as in admin_status */
};

struct admin_status {
    char version[32];
    uint64_t uptime_ns;
    enum admin_state state;
    char reasons[ADMIN_REASONS_MAX][ADMIN_REASON_MAX]; /* sentences; none when the state is OK */
    size_t reason_count;
    unsigned data_columns, parity_columns; /* the first partition's profile, "4+2" */
    unsigned drives, drives_ok;
    struct admin_listener listeners[ADMIN_LISTENERS_MAX];
    size_t listener_count;
    struct admin_capacity capacity; /* of all partitions */
    struct admin_partition partitions[ADMIN_PARTITIONS_MAX];
    size_t partition_count;
    uint64_t journal_size, journal_used;           /* bytes */
    struct admin_work rebuild, leaving, rebalance; /* in this order */
    uint64_t work_rate;                            /* bytes a second, of late */
    uint64_t volumes, studies, instances;
    uint64_t buckets, objects, object_bytes; /* but for the reserved bucket */
    /* Since the start. */
    uint64_t stored_instances, identical_instances, replaced_instances;
    uint64_t refused_conflicts; /* other content under a stored SOP Instance UID */
    uint64_t repaired;          /* corruptions mended, all drives */
    uint64_t client_bytes;      /* written by clients ... */
    uint64_t drive_bytes;       /* ... and to drives, for them and in the background */
    /* How long the start took, and what of the journal it had to replay. */
    uint64_t start_ns, replayed_records, replayed_bytes;
};

struct admin_source;

struct admin_ops {
    int (*status)(struct admin_source *a, struct admin_status *ret_status);
    int (*drives)(struct admin_source *a, struct admin_drive **ret_drives, size_t *ret_count);
    int (*scrub)(struct admin_source *a, enum admin_scrub_order order,
                 struct admin_scrub *ret_scrub);
    int (*drive_order)(struct admin_source *a, const struct admin_drive_order *order,
                       char why[ADMIN_WHY_MAX], unsigned *ret_index);
};

struct admin_source {
    const struct admin_ops *ops;
};

/* Fills all of *ret_status. */
static inline int admin_get_status(struct admin_source *a, struct admin_status *ret_status)
{
    return a->ops->status(a, ret_status);
}

/* All drives by partition and index, missing ones too: an array from mem_alloc that the caller
 * frees. */
static inline int admin_get_drives(struct admin_source *a, struct admin_drive **ret_drives,
                                   size_t *ret_count)
{
    return a->ops->drives(a, ret_drives, ret_count);
}

/* Does what is ordered, and tells how scrub is then. Starting goes on with a pass that was stopped;
 * starting one that runs, and stopping none, is fine. */
static inline int admin_scrub(struct admin_source *a, enum admin_scrub_order order,
                              struct admin_scrub *ret_scrub)
{
    return a->ops->scrub(a, order, ret_scrub);
}

/* Carries out an order about drives: durable on return; what follows from it goes on by itself.
 * *ret_index is the drive's number. On an error `why` is a sentence, or empty where the error's own
 * text says enough. ERR_NOENT, ERR_EXIST (something is on the drive), ERR_PERM (too few drives
 * would be left), ERR_NOSPC, ERR_RANGE (the drive is too small), ERR_INVAL, ERR_BUSY, ERR_LOCKED,
 * ERR_IO. */
static inline int admin_order_drive(struct admin_source *a, const struct admin_drive_order *order,
                                    char why[ADMIN_WHY_MAX], unsigned *ret_index)
{
    return a->ops->drive_order(a, order, why, ret_index);
}

/* Drives: the set of block devices or files that a store lives on, and their superblocks.
 *
 * The set knows for each drive whether it counts (DRIVE_OK) or not, keeps that knowledge on all
 * drives that count (F1, F2 in format.h), and does all I/O on drives, with counters. What is on a
 * drive that does not count may still be read where its file opens: everything read is verified by
 * the caller.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/rt/env.h"
#include "lib/rt/sync.h"
#include "lib/store/format.h"

struct metrics;

enum drive_state {
    DRIVE_OK,
    DRIVE_MISSING, /* no such file or device, too small, or its superblock is not this store's */
    DRIVE_FAILED,  /* put out after an I/O error */
    DRIVE_NONE,    /* no drive has this place; path "" */
};

struct drive {
    unsigned index;
    char *path; /* where it is, or was looked for; "" where nothing is known */
    enum drive_state state;
    const char *reason;    /* constant text: why it is not OK; "" otherwise */
    bool leaving;          /* takes nothing new, and the journal only at need: see member.h */
    bool transit;          /* on its way in or out: takes nothing at all */
    uint8_t class_;        /* as in struct format_member */
    struct env_file *file; /* NULL when it cannot be opened */
    uint8_t uuid[16];
    uint64_t slot_count;
    uint64_t cache; /* env_file_cache of the file */
    /* Counters since start. */
    uint64_t reads, read_bytes, read_errors;
    uint64_t writes, write_bytes, write_errors;
    uint64_t corruptions; /* bytes read that failed their checksum, by event */
};

struct driveset {
    struct env *env;
    unsigned count; /* places, DRIVE_NONE ones too; grows */
    struct drive drives[FORMAT_DRIVES_MAX];
    struct format_super super; /* the store-wide part, as last written */
    struct fiber_mutex super_lock;
    unsigned cursor_; /* private */
};

struct driveset_params {
    unsigned count;           /* 1..FORMAT_DRIVES_MAX */
    const char *const *paths; /* one per drive, in index order */
    unsigned k, m;            /* k + m <= count */
    uint64_t slot_count;      /* per drive */
    uint64_t slot_size;       /* FORMAT_SLOT_MIN..MAX; 0: FORMAT_SLOT_SIZE */
    uint64_t journal_len;     /* multiple of FORMAT_UNIT, at least FORMAT_JOURNAL_MIN */
    bool overwrite;           /* also where a superblock is: an unfinished format */
};

/* The profile that goes with a number of drives (DESIGN: 1: 1+0, 2: 1+1, 3: 2+1, 4-5: 2+2, 6+:
 * 4+2). */
void driveset_profile(unsigned count, unsigned *ret_k, unsigned *ret_m);

/* Makes the drives of a new store: files are created (sparse) at their full size, superblocks and
 * the journal areas of its first mirrors written, all durable. ERR_EXIST where a drive holds a
 * Filmroom superblock already. Suspends. */
int driveset_format(struct env *env, const struct driveset_params *params);

#define DRIVESET_PATHS_MAX (2 * FORMAT_DRIVES_MAX)

/* Opens the drives of a store, whichever are there. Each is known by its superblock, whichever path
 * it is found under; the order of the paths says only where a drive that is not found was expected.
 * What is under the other paths is left alone. Drives that were put out and are back and whole
 * count again (every fragment on them was complete when they left; see segment.h). The set is
 * locked against other daemons drive by drive. ERR_LOST when no superblock can be read, ERR_CONFIG
 * when as many drives are of one store as of another, ERR_LOCKED. Membership changes found are in
 * memory until driveset_commit. Suspends. */
int driveset_open(struct env *env, const char *const *paths, unsigned count,
                  struct driveset **ret_set);

/* Closes; no I/O may be in flight. NULL is fine. */
void driveset_close(struct driveset *ds);

/* Takes a drive out, in memory: no more writes go to it. Idempotent. The caller then commits. Does
 * not suspend. */
void driveset_put_out(struct driveset *ds, unsigned index, const char *reason);

/* Writes the superblock to every drive that counts, both copies, durable; `change` (may be NULL) is
 * called with the lock held to set fields of `super` first. With `membership` the epoch grows and
 * the members' states are taken over. A drive that fails meanwhile is put out and the round
 * repeated. ERR_LOST when no drive is left. Suspends. */
int driveset_commit(struct driveset *ds, bool membership,
                    void (*change)(struct format_super *super, void *arg), void *arg);

/* Is this a superblock, whole and sane (F1)? */
bool drive_super_valid(const struct format_super *s);

/* Number of drives that count, and of those that do not. */
unsigned driveset_healthy(const struct driveset *ds);
bool drive_usable(const struct drive *d);   /* counts */
bool drive_takes(const struct drive *d);    /* counts, and new data may be put on it */
bool drive_readable(const struct drive *d); /* may be read: has an open file */

/* Prepares an I/O on a drive for env_io_run; drive_io_done counts its result afterwards. */
void drive_io_prepare(struct drive *d, struct env_io *io, enum env_io_kind kind, void *buf,
                      size_t len, uint64_t off);
void drive_io_done(struct drive *d, const struct env_io *io);

/* Fills the journal area of a drive with zeroes, durable, so that later writes allocate nothing.
 * Suspends. */
int drive_wipe_journal(struct driveset *ds, struct drive *d);

/* Registers the counters of one drive, or of every one there is. Its place stays put. */
void drive_observe(const struct drive *d, struct metrics *m);
void driveset_observe(const struct driveset *ds, struct metrics *m);

static inline uint64_t drive_slot_off(const struct driveset *ds, uint32_t slot)
{
    return ds->super.slots_off + (uint64_t)slot * ds->super.slot_size;
}

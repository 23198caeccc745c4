/* Drives: the set of block devices or files that a store lives on, and their superblocks.
 *
 * The set knows for each drive whether it counts (DRIVE_OK) or not, keeps that knowledge on all
 * drives that count (F1, F2 in format.h), and does all I/O on drives, with counters. What is on a
 * drive that does not count may still be read where its file opens: everything read is verified by
 * the caller. How drives are doing is judged in health.h; I/O on them, which may not be answered,
 * is in drive_io.h.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/metric.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"
#include "lib/store/format.h"
#include "lib/store/health.h"

struct buf;
struct metrics;

/* Hedged reads: a twentieth of all reads, 256 at once; see segment_read.c. */
#define DRIVE_HEDGE_CREDIT (256u * DRIVE_HEDGE_SHARE)
#define DRIVE_HEDGE_SHARE  20u

enum drive_state {
    DRIVE_OK,
    DRIVE_MISSING, /* no such file or device, too small, or its superblock is not this store's */
    DRIVE_FAILED,  /* put out after an I/O error */
    DRIVE_NONE,    /* no drive has this place; path "" */
};

/* What scrub found on a drive, since start: columns of stripes, fragment headers and superblocks.
 */
struct drive_scrub {
    uint64_t bytes;    /* verified, right or wrong */
    uint64_t bad;      /* wrong, or unreadable on a drive that counts */
    uint64_t mended;   /* of these, written again and right */
    uint64_t unmended; /* of these, still wrong */
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
    uint64_t cache;        /* env_file_cache of the file */
    uint64_t cramped_till; /* until then it is not tried again as a mirror: no space for that */
    /* Counters since start. */
    uint64_t reads, read_bytes, read_errors;
    uint64_t writes, write_bytes, write_errors;
    uint64_t corruptions; /* bytes read that failed their checksum, by event */
    struct drive_scrub scrub;
    uint64_t timeouts; /* operations that were given up */
    /* drive_io.c's: */
    struct driveset *set;
    struct health health;   /* what is held against it while it counts */
    struct list unanswered; /* operations, oldest first */
    uint64_t stuck;         /* of these: given up */
    bool hung;              /* it is not waited for: everything on it ends with ERR_TIMEDOUT */
    uint64_t probed_at, answered_at;
};

struct driveset {
    struct env *env;
    unsigned count; /* places, DRIVE_NONE ones too; grows */
    struct drive drives[FORMAT_DRIVES_MAX];
    struct format_super super; /* the store-wide part, as last written */
    struct fiber_mutex super_lock;
    bool uncommitted; /* a drive was put out, and no superblock says so yet */
    uint64_t made_up; /* bits of drives that are out: what they had has been written anew */
    /* drive_io.c's: */
    struct env_timer tick;
    bool ticking;
    bool patient; /* no drive is given up: what the store needs is not known yet */
    struct list waits, ops_kept;
    unsigned ops_kept_count;
    uint64_t hedge_delay;        /* ns, after which a read asks other drives as well */
    uint64_t hedge_credit;       /* one read is worth 1, a hedge costs DRIVE_HEDGE_SHARE */
    uint64_t hedged, hedges_won; /* since start */
    struct metric_hist read_time, write_time, sync_time; /* until a drive answered */
};

struct driveset_params {
    unsigned count;           /* 1..FORMAT_DRIVES_MAX */
    const char *const *paths; /* one per drive, in index order */
    unsigned k, m;            /* k + m <= count */
    uint64_t slot_count;      /* per drive */
    uint64_t slot_size;       /* FORMAT_SLOT_MIN..MAX; 0: FORMAT_SLOT_SIZE */
    uint64_t journal_len;     /* multiple of FORMAT_UNIT, at least FORMAT_JOURNAL_MIN */
    const uint8_t *uuid;      /* the store's, 16 bytes; NULL: chosen here */
};

/* The profile that goes with a number of drives (DESIGN: 1: 1+0, 2: 1+1, 3: 2+1, 4-5: 2+2, 6+:
 * 4+2). */
void driveset_profile(unsigned count, unsigned *ret_k, unsigned *ret_m);

/* Makes the drives of a new store: files are created (sparse) at their full size, superblocks and
 * the journal areas of its first mirrors written, all durable. ERR_EXIST where a drive holds a
 * Filmroom superblock already, but for what was left by a format that was given the same UUID and
 * cut short. Wherever that is, a drive that was blank is blank yet, or its superblock names that
 * UUID. Suspends. */
int driveset_format(struct env *env, const struct driveset_params *params);

#define DRIVESET_PATHS_MAX (2 * FORMAT_DRIVES_MAX)

/* Opens the drives of a store, whichever are there. Each is known by its superblock, whichever path
 * it is found under; the order of the paths says only where a drive that is not found was expected.
 * What is under the other paths is left alone. Those from FORMAT_DRIVES_MAX on are where a drive
 * may have been once: they say which store it is only if the others do not. Drives that were put
 * out and are back and whole count again (every fragment on them was complete when they left; see
 * segment.h). The set is locked against other daemons drive by drive. ERR_LOST when no superblock
 * can be read, ERR_CONFIG when as many drives are of one store as of another, ERR_LOCKED. A drive
 * that does not answer is just missing as well, once three seconds have passed and the others can
 * do without it; not one whose open() hangs in the system: that is waited for. Membership changes
 * found are in memory until driveset_commit. Suspends. */
int driveset_open(struct env *env, const char *const *paths, unsigned count,
                  struct driveset **ret_set);

/* Closes; nobody waits for I/O any more. NULL is fine. What drives have not answered is waited for
 * for half a second, then left to the env with its file. Suspends. */
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
/* Has the drives that count know of those that were put out, if they do not yet. Errors as above.
 * Suspends. */
int driveset_tell(struct driveset *ds);

/* Verifies both copies of the superblock on each drive that counts, and writes those again that are
 * not whole or not the last ones, if the drive answers. Adds to *ret_bad and *ret_mended, and to
 * the drives' counters. A drive that fails under a write is put out; the caller then commits
 * (*ret_failed is set). Suspends.
 */
void driveset_mend_supers(struct driveset *ds, uint64_t *ret_bad, uint64_t *ret_mended,
                          bool *ret_failed);

/* Is this a superblock, whole and sane (F1)? */
bool drive_super_valid(const struct format_super *s);

unsigned driveset_members(const struct driveset *ds); /* places with a drive, here or not */
unsigned driveset_healthy(const struct driveset *ds); /* of them, those that count */
bool drive_usable(const struct drive *d);             /* counts */
bool drive_readable(const struct drive *d); /* may be read: has an open file, and answers */
/* Is better not read while others serve: it is suspect, or does not count. */
bool drive_doubtful(const struct drive *d);
bool drive_takes(const struct drive *d); /* counts, and new data may be put on it */

/* Writes what a drive should hold at a place where it was found to be wrong, durable, and reads it
 * back: true when it is right now. A drive that fails under the write is put out; one that is not
 * waited for just now is not written. `bytes` lie in b, aligned as for direct I/O. Counts the
 * repair for the drive. Suspends. */
bool drive_mend(struct driveset *ds, struct drive *d, uint64_t off, struct buf *b, void *bytes,
                size_t len);

/* Fills the journal area of a drive with zeroes, durable, so that later writes allocate nothing.
 * Suspends. */
int drive_wipe_journal(struct driveset *ds, struct drive *d);

/* Registers the counters of one drive, or of every one there is. Its place stays put. */
void drive_observe(const struct drive *d, struct metrics *m);
void driveset_observe(struct driveset *ds, struct metrics *m);

static inline uint64_t drive_slot_off(const struct driveset *ds, uint32_t slot)
{
    return ds->super.slots_off + (uint64_t)slot * ds->super.slot_size;
}

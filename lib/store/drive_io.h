/* I/O on drives that may not answer.
 *
 * An operation cannot be taken back from the system once it is started: until it is answered the
 * system may read or write its buffer. So an operation here is two things. A struct drive_io is the
 * caller's, on its stack, for as long as it waits. Behind it the drive keeps an operation of its
 * own, which holds a reference to the buffer. A caller that does not wait any more leaves; what is
 * still not answered stays with the drive, and ends, with its buffer, when the system answers.
 *
 * Nobody waits for ever. One timer for the whole set (none per operation) looks at the oldest
 * operation of each drive while there are any, and how long the drive has been silent:
 *   - at HEALTH_PROBE the other drives that have nothing to do are asked for a block, so that it is
 *     known soon which of them answer, and whether it is this drive or the whole machine;
 *   - at HEALTH_GIVE_UP, if the store can spare the drive, it is `hung`: all its operations end for
 *     their callers with ERR_TIMEDOUT, and new ones end so at once.
 * So two drives that stop together cost little more than HEALTH_GIVE_UP, not twice that.
 * Time in which this process did not run is nobody's silence: the timer finds out that it is late
 * itself.
 *
 * A write that was given up may still reach the drive, at any time. It must never land on what
 * somebody else has written there since. In this process: the callers put out the drive of a failed
 * write, and a drive that is out is never written again before the next start, whichever part of it
 * (the journal's ring, slots that were freed and taken anew on other drives, superblocks).
 * Across processes: the file's lock belongs to the open file, and a request in the kernel keeps
 * that open; the next process gets the lock when the last late write has landed. What then lies on
 * the drive is what any failed write leaves: a column of a stripe that no record names, a journal
 * batch that the other mirrors have as well, a superblock of an epoch that others have outgrown.
 * And its buffer is never reused while it is in flight, so that what lands late is at least what
 * was meant.
 *
 * A drive that is hung and answers everything at last is not hung any more. It may be read again.
 * Nor is one that the store can no longer spare, because another one was put out: what is asked of
 * it from then on waits for it.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/store/drive.h"

/* One operation, the caller's: stays put until drive_io_run, or drive_io_leave, has returned. */
struct drive_io {
    struct drive *drive;
    enum env_io_kind kind;
    bool dsync;
    bool done;
    struct buf *buf; /* what `data` lies in; NULL where there is none. The caller's reference */
    void *data;
    size_t len;
    uint64_t off;
    int64_t result; /* when done: bytes moved, or an error; ERR_TIMEDOUT: given up */
    struct drive_op *op_;
    struct drive_wait *wait_;
};

/* Somebody who waits for operations, all of one set of drives. */
struct drive_wait {
    struct driveset *ds;
    unsigned pending; /* operations started, not done and not left */
    bool each;
    uint64_t deadline;
    struct list link;
    struct fiber_cond cond;
};

/* Prepares an operation; a WRITE with dsync, which the caller may change. The drive has a file.
 * Offsets and lengths are whole units. */
void drive_io_prepare(struct drive *d, struct drive_io *io, enum env_io_kind kind, struct buf *b,
                      void *data, size_t len, uint64_t off);

/* Runs n operations on drives of one set until each is answered or given up. What was given up for
 * writing leaves a drive that must be put out; what was given up for reading, a buffer that must
 * not be used: others may write to it any time. Suspends. */
void drive_io_run(struct drive_io *ios, unsigned n);

/* The same in steps. drive_wait_init; any number of drive_io_start; drive_wait_all (all are done)
 * or drive_wait_some (one more is, or none is left) until they return false since it is `deadline`;
 * drive_io_leave for everything that was started. What is `done` before it is started is not.
 * Waiting suspends. */
void drive_wait_init(struct drive_wait *w, struct driveset *ds);
void drive_io_start(struct drive_wait *w, struct drive_io *ios, unsigned n);
bool drive_wait_all(struct drive_wait *w, uint64_t deadline);
bool drive_wait_some(struct drive_wait *w, uint64_t deadline);
void drive_io_leave(struct drive_io *ios, unsigned n);

/* Single operations. Each suspends; 0 or an error, ERR_TRUNCATED for a short read. Reading takes
 * the buffer's place: where the drive does not answer, *b is replaced by a new one, since the old
 * one may be written to any time. */
int drive_pread(struct drive *d, struct buf **b, size_t len, uint64_t off);
int drive_pwrite(struct drive *d, struct buf *b, size_t len, uint64_t off, bool dsync);
int drive_sync(struct drive *d);

/* A drive gave wrong bytes. Counts it, judges the drive. */
void drive_corrupt(struct drive *d);
/* A read of this drive is being hedged. */
void drive_hedged(struct drive *d);

/* Nobody waits for this drive any more, until it has answered everything, or cannot be spared. */
void drive_give_up(struct drive *d);
/* A drive was put out: those that are hung and cannot be spared without it are waited for again. */
void driveset_wait_again(struct driveset *ds);

/* How long the drive owes an answer: since the oldest operation was started that it has not
 * answered; but a drive that has answered something lately is busy, not silent (health.h). 0: it
 * owes none. */
uint64_t drive_silence(const struct drive *d);

/* For driveset_open and driveset_close: sets up, and gives up waiting: waits a moment for what is
 * not answered, then leaves that to the env, with the file. Closing suspends. */
void driveset_io_init(struct driveset *ds);
void drive_io_attach(struct driveset *ds, struct drive *d); /* a place that was filled or emptied */
/* Ends what is in flight on a drive for its callers, and gives its file to the caller; NULL where
 * something is not answered, which then stays with the env. Does not suspend. */
struct env_file *drive_io_detach(struct drive *d);
void driveset_io_close(struct driveset *ds);

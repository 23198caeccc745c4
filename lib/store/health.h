/* The health of one drive: what has been seen of it, and what follows from that.
 *
 * Pure policy: no I/O, no clock of its own. drive_io.c tells it what happens and does what it says.
 *
 *   ok        counts, is read and written.
 *   suspect   counts and is written, but is read around wherever other drives can serve.
 *   out       does not count any more; it is read only where nothing else serves.
 *
 * What is held against a drive:
 *   - Errors on reading and wrong bytes. They are counted together and forgotten by halves, so that
 *     a drive with a bad spot is told from one that fails all the time. (An error on writing puts a
 *     drive out at once, without asking here: stripes are complete or do not count.)
 *   - Reads that had to be hedged: a slow drive is suspect, never out.
 *   - Silence: the age of the oldest operation that has not been answered, on a drive that answers
 *     nothing. One that goes on answering others has much to do, and what is asked of it may have
 *     waited for long in our own queue; it is silent only when an operation is older than any queue
 *     explains (HEALTH_OWED). At HEALTH_GIVE_UP nobody
 *     waits for the drive any more. If a write is among what is not answered, it is out at once,
 *     since whoever writes waits for every drive; if not, at HEALTH_SILENT_OUT: a disk may look
 *     for long for what it cannot read, and still be good.
 *
 * A drive is put out only while the store can spare it (`spare`): together with all drives that are
 * out, or late too, no more are gone than the profile bears. Beyond that everybody waits: when one
 * device under several drives pauses (drives on the same device count together), or the machine
 * does, putting drives out would turn a pause into an outage. Such a drive stays in, and its reason
 * says so.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define HEALTH_MS_ 1000000ull
#define HEALTH_S_  1000000000ull

/* Silence. No client is to wait for more than two seconds: one second is left for what follows when
 * a drive is given up, such as bringing another mirror of the journal level. */
#define HEALTH_PROBE      (200 * HEALTH_MS_)  /* other drives are asked whether they answer */
#define HEALTH_LATE       (400 * HEALTH_MS_)  /* counted as gone when others are to be spared */
#define HEALTH_SILENT     (750 * HEALTH_MS_)  /* suspect */
#define HEALTH_GIVE_UP    (1000 * HEALTH_MS_) /* not waited for; out when a write waits */
#define HEALTH_SILENT_OUT (10 * HEALTH_S_)    /* out */
#define HEALTH_QUIET      (500 * HEALTH_MS_)  /* without any answer: then age is silence */
#define HEALTH_OWED       (5 * HEALTH_S_)     /* an operation so old is silence in any case */
#define HEALTH_CALM       (30 * HEALTH_S_)    /* suspect for so long after it answered again */

/* Read errors and corruptions, forgotten by halves. */
#define HEALTH_FAULTS_HALF_LIFE (600 * HEALTH_S_)
#define HEALTH_FAULTS_SUSPECT   4u
#define HEALTH_FAULTS_OUT       32u

/* Hedged reads, likewise. */
#define HEALTH_SLOW_HALF_LIFE (60 * HEALTH_S_)
#define HEALTH_SLOW_SUSPECT   8u

/* How long a read waits for its drives before others are asked as well: three times what 99 of 100
 * reads take, on the drive in the middle. */
#define HEALTH_HEDGE_MIN (10 * HEALTH_MS_)
#define HEALTH_HEDGE_MAX (250 * HEALTH_MS_)

enum health_state { HEALTH_OK, HEALTH_SUSPECT, HEALTH_OUT };

enum health_event { HEALTH_READ_ERROR, HEALTH_CORRUPTION, HEALTH_HEDGED };

/* A count of events in thousandths, which halves in every half-life. */
struct health_count {
    uint64_t milli, at;
};

struct health {
    enum health_state state;
    const char *reason; /* constant text; "" when ok */
    bool kept;          /* would be out, if the store could spare it */
    struct health_count faults, slow;
    uint64_t calm_at;  /* suspect until then: it was silent */
    uint64_t read_p99; /* ns: an estimate of recent reads; 0 before the first */
};

/* How long the drive has been silent (0: it owes no answer), and whether what it owes is of any
 * kind that somebody who writes waits for. */
struct health_silence {
    uint64_t ns;
    bool writing;
};

void health_init(struct health *h);

/* Something happened at `now`. Judge afterwards. */
void health_note(struct health *h, uint64_t now, enum health_event event);

/* A read took `ns`. */
void health_took(struct health *h, uint64_t ns);

/* Sets state, reason and `kept`. Out is for ever. */
void health_judge(struct health *h, uint64_t now, const struct health_silence *silence, bool spare);

/* The delay of hedged reads from the estimates (read_p99) of n drives; sorts them. Drives without
 * one do not count. */
uint64_t health_hedge_delay(uint64_t *p99, unsigned n);

/* Scrub: everything that is alive on the drives is read and verified, on a schedule and on demand,
 * and what parity can is repaired. See scrubber.c.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"

struct apply;
struct metrics;
struct partition;
struct scrubber;

enum scrub_phase {
    SCRUB_IDLE,
    SCRUB_RUNNING,
    SCRUB_STOPPED, /* within a pass: goes on when told to, or when the next one is due */
};

/* One pass. Columns of stripes, fragment headers and superblock copies count as places. */
struct scrub_pass {
    uint64_t start_ns, end_ns; /* wall clock; end 0: not finished */
    uint64_t took_ns;          /* time that it ran, pauses for others included, stops not */
    uint64_t bytes;            /* read from drives and verified */
    uint64_t found, mended;    /* places that were wrong; of them, right again */
    uint64_t lost;             /* chunks that no columns give */
    uint64_t skipped;          /* segments with too many of their drives out to say anything */
};

/* What outlives a restart: the row "scrub" of KV_META, and the body of RECORD_SCRUB. */
struct scrub_state {
    enum scrub_phase phase;
    uint64_t next, end;     /* ids: of the segment to go on with, of the last one of this pass */
    uint64_t walked;        /* bytes of the segments that are done, dead ones included */
    struct scrub_pass now;  /* of the pass under way */
    struct scrub_pass last; /* the last one that was finished; start_ns 0: there was none */
};

#define SCRUB_KEY "scrub"

void scrub_state_encode(const struct scrub_state *st, struct strbuf *out);
int scrub_state_decode(const void *p, size_t len, struct scrub_state *ret_state); /* ERR_FORMAT */

/* ---- For administrators ---- */

struct scrub_status {
    struct scrub_state state;
    uint64_t left;   /* bytes of the segments that are still to be walked */
    uint64_t rate;   /* bytes per second, since it went on; 0: not running */
    uint64_t eta_ns; /* time that is left at this rate; 0: not known */
    uint64_t due_ns; /* wall clock: when the next pass is due; 0: never, or one is under way */
    uint64_t lost;   /* chunks that the pass under way or else the last one found lost */
    /* Chunks known to be lost: those, or all that readers and scrub found and that still are, if
     * that is more (the pass may have been before they came again, or went). */
    uint64_t known_lost;
};

/* Begins a pass, or goes on with one that was stopped; fine when one is running. Returns once that
 * is durable. ERR_SHUTDOWN; what stopped the partition. Suspends. */
int partition_scrub_start(struct partition *p);
/* Stops the pass under way; fine when there is none. Suspends. */
int partition_scrub_stop(struct partition *p);
/* Waits until the pass that is running, if one is, has ended or was stopped. Suspends. */
void partition_scrub_wait(struct partition *p);
/* Does not suspend. */
void partition_scrub_status(const struct partition *p, struct scrub_status *ret_status);

/* ---- For the partition ---- */

struct scrubber *scrubber_new(struct partition *p);
int scrubber_load(struct scrubber *s);   /* at start, before replay; suspends */
void scrubber_start(struct scrubber *s); /* its fiber */
/* Notes where it is and ends its fiber; NULL is fine. Suspends. */
void scrubber_stop(struct scrubber *s);
void scrubber_free(struct scrubber *s); /* NULL is fine */
int scrubber_apply(struct scrubber *s, const struct apply *a);
void scrubber_observe(struct scrubber *s, struct metrics *m);

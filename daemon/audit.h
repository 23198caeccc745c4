/* The audit: everything in the KV store that can be derived, derived again and compared.
 *
 * References of chunks are counted from volume maps and recipes of instances and objects, chunks
 * and bytes of segments from the chunk table, slots from segments, totals from rows; patients,
 * studies and series from instances, and the indexes from all of them. The audit trusts nothing
 * that it can count. It tells of everything that it finds, and with `repair` mends what follows
 * from other rows. It never makes up data, and never takes anything away that somebody could still
 * want: where rows that may hold references cannot be read, chunks that seem to have none are left
 * alone.
 *
 * The deep audit reads the drives too: every column of every stripe with something alive, and
 * compares them with each other and with the CRCs in the chunk table.
 *
 * It runs over a KV store that nothing else changes: the partition is closed. That the journal
 * still holds records that the store lacks does not matter, each state between two records is
 * whole.
 *
 * Memory: 24 bytes for each chunk, 40 more for each with `segments` (deep), twice that while the
 * tables grow; about 500 bytes for each segment, 300 for each volume, snapshot and bucket, 150 for
 * each map. Nothing for each instance and object.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/kv/kv.h"
#include "lib/store/segment.h"

enum audit_fate {
    AUDIT_MENDED,   /* wrong, and right now */
    AUDIT_MENDABLE, /* wrong; `repair` would mend it */
    AUDIT_LEFT,     /* wrong, and nothing here can mend it */
};

struct audit_finding {
    const char *kind; /* a constant word, for programs: see docs/man/filmroom-fsck.8 */
    const char *text; /* a sentence, for people; valid during the call */
    enum audit_fate fate;
};

/* Of one drive, from the deep audit. */
struct audit_drive {
    uint64_t bad_columns;    /* read, and wrong */
    uint64_t absent_columns; /* not readable */
    uint64_t bad_headers;    /* of fragments */
};

struct audit_result {
    uint64_t segments, chunks, volumes, instances, studies, patients; /* looked at */
    uint64_t buckets, objects;
    uint64_t known_lost;    /* chunks that readers or scrub found lost */
    uint64_t found, mended; /* findings: all, and those mended */
    uint64_t left;          /* findings that no repair mends */
    /* Deep: */
    uint64_t stripes, stripes_bad, stripes_thin; /* all; with bad columns; with some not readable */
    uint64_t lost_chunks;                        /* that no columns give any more */
    struct audit_drive drives[FORMAT_DRIVES_MAX];
};

struct audit_params {
    struct kv *kv;
    bool repair;
    struct driveset *drives; /* NULL: whether slots exist is not checked */
    bool deep;               /* needs `drives` open; read errors go to their counters */
    void (*found)(void *arg, const struct audit_finding *f);
    /* Now and then: what is being looked at, and how much of it was. May be NULL. */
    void (*progress)(void *arg, const char *what, uint64_t done);
    void *arg;
};

/* Runs the audit. Findings are no error: the result is only that of looking, ERR_KV and the like.
 * What was mended is in the KV store, and durable after kv_flush. Suspends. */
int audit_run(const struct audit_params *params, struct audit_result *ret_result);

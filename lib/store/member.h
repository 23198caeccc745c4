/* Membership: how drives join a store that is running, and leave it.
 *
 *   (none) --add--> in transit --known to all--> in service --leave--> leaving --empty--> (none)
 *                                                  ^------stay--------'
 *
 * Each arrow is a change of the superblocks under a new epoch (F2 in format.h), so that a crash
 * leaves the state before or after it, and a start goes on from there:
 *
 * - A drive that is added gets a superblock first, alone, and one that is older than all others: it
 *   is a stranger until the first of the others names it, and then it can be had. Nothing is put on
 *   it before all drives know of it (F9), so nothing is missing if they never do.
 * - A drive that leaves is read and gets superblocks as before, and nothing new. What is on it is
 *   written anew elsewhere by compaction. When nothing is left, its place is given up (F8), and
 * only then its own superblock is wiped: between the two it is a stranger that holds nothing.
 *
 * Changes are made one at a time: the caller sees to that. A new drive, or one that goes, may not
 * answer. That keeps only the change itself waiting, for a bounded time once the drive is open: no
 * other change of the superblocks waits for it.
 *
 * Functions take `why`: on failure a sentence for the user is appended where the error's own text
 * does not say enough.
 */
#pragma once

#include "lib/base/strbuf.h"
#include "lib/store/drive.h"

#define MEMBER_NOBODY    UINT32_MAX
#define MEMBER_SLOTS_MIN 8u /* a drive with fewer is not worth having */

struct member_add {
    const char *path;  /* absolute */
    uint64_t size;     /* bytes to use; a file is made or grown to this. 0: all that is there */
    uint8_t class_;    /* as in struct format_member */
    bool force;        /* also where something is on it */
    uint32_t replaces; /* this drive begins to leave in the same change; or MEMBER_NOBODY */
};

/* Adds a drive at a free place. It is in transit on return: it takes nothing before the caller has
 * made room for its slots in its tables and calls member_joined. ERR_EXIST where something is on
 * the drive, ERR_NOENT, ERR_RANGE (too small), ERR_BUSY (no place is free), ERR_LOCKED, ERR_IO,
 * ERR_TIMEDOUT (it does not answer). Suspends. */
int member_add(struct driveset *ds, const struct member_add *add, struct strbuf *why,
               uint32_t *ret_index);
void member_joined(struct driveset *ds, uint32_t index); /* does not suspend */

/* How many slots the drive would get, as far as can be told beforehand: 0 when nothing is there and
 * no size was given. Suspends. */
int member_measure(struct driveset *ds, const struct member_add *add, uint64_t *ret_slots);

/* The drive takes nothing new from now on, or does so again. Suspends. */
int member_leave(struct driveset *ds, uint32_t index, bool leave);

/* Gives up the place of a drive that is leaving and on which nothing is (F8), wipes its superblock
 * and closes it. Nobody reads or writes it any more: no segment is on it, and the journal takes no
 * drive in transit, which it is from the call on. ERR_BUSY when the drive mirrors the journal all
 * the same, and nothing was done. Suspends. */
int member_let_go(struct driveset *ds, uint32_t index);

/* Suspends. */
int member_set_class(struct driveset *ds, uint32_t index, uint8_t class_);

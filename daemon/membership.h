/* Drives that come and go while the partition runs: the orders of the administrator, and what
 * follows from them in the background. lib/store/member.h says how a change is made safe.
 *
 *   add      checks and formats the drive; new segments use it, and drives are made even
 *   remove   the drive takes nothing new; what is on it is written anew elsewhere; then it is let
 * go keep     takes a removal back replace  add and remove in one change rebuild  a drive that is
 * out is given up now and not after `rebuild_after`
 *
 * Every order returns when it is durable; the work then goes on by itself, over restarts as well:
 * it follows from the superblocks and the segment table alone. A drive that is out when its removal
 * is ordered is given up at once, and again by every start.
 *
 * A drive may be removed as long as the others can hold the data at the profile's parity. One that
 * is out may go also when they are fewer than the profile's columns: to keep its place would not
 * make anything safer. Where others are lost after that, so that m or fewer would be left, a drive
 * that leaves stays for as long as the journal needs it as a mirror.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/strbuf.h"
#include "lib/rt/sync.h"
#include "lib/store/format.h"
#include "lib/store/member.h"

struct partition;
struct partition_moves;

struct membership {
    struct fiber_mutex lock; /* one order, or one letting go, at a time */
    uint64_t go_at;          /* when drives may be let go: later, where that failed */
    /* The rate of moving, as an average of late. */
    uint64_t rate, moved_before, sampled_at;
};

/* Each: 0, or an error with a sentence about it in `why` where the error's text says too little.
 * ERR_NOENT when there is no such drive. Suspends. */
int partition_drive_add(struct partition *p, const struct member_add *add, struct strbuf *why,
                        uint32_t *ret_index);
int partition_drive_remove(struct partition *p, uint32_t index, struct strbuf *why);
int partition_drive_keep(struct partition *p, uint32_t index, struct strbuf *why);
/* As add; add->replaces is the drive that leaves. */
int partition_drive_replace(struct partition *p, const struct member_add *add, struct strbuf *why,
                            uint32_t *ret_index);
int partition_drive_rebuild(struct partition *p, uint32_t index, struct strbuf *why);
int partition_drive_set_class(struct partition *p, uint32_t index, uint8_t class_,
                              struct strbuf *why);

/* For the partition's background work, again and again: gives up drives that are out for long, lets
 * empty ones go, keeps the journal's mirrors where they belong. Suspends. */
void membership_watch(struct partition *p);
void membership_get_progress(struct partition *p, struct partition_moves *ret_moves);

/* What the drive set (drive.c, drive_probe.c) and changes of its membership (member.c) share. */
#pragma once

#include "lib/base/buf.h"
#include "lib/store/drive.h"

/* Takes the superblock in `data`, a unit, if it is valid and newer than what there is. */
void drive_super_take(const void *data, struct format_super *super);
/* The better of the two superblocks in a file; ERR_FORMAT when neither is valid. Suspends. */
int drive_super_read(struct env_file *file, struct format_super *ret_super);

/* Is it of a store of this UUID (NULL: of none) that was being made and that nobody has opened? */
bool drive_super_begun(const struct format_super *s, const uint8_t *uuid);

/* The same of many files, some of which may not answer: they are given three seconds, or twice as
 * long as those took that did answer, if the store can do without them, and a minute if not.
 * Suspends. */
struct drive_probe {
    struct env_file *file;     /* NULL: nothing to read */
    struct format_super super; /* out: magic 0 when there is none that is valid */
    bool silent;               /* out: did not answer; the file is to be forsaken, not closed */
};
void drive_probe(struct env *env, struct drive_probe *probes, unsigned n);

/* Makes an empty place of it, without giving back what was there. */
void drive_init(struct driveset *ds, unsigned index);

/* Fills b, of FORMAT_UNIT, with `super` as the drive of this place has it. */
void drive_super_sign(const struct format_super *super, unsigned index, const uint8_t *uuid,
                      struct buf *b);

/* Takes the members' states over into the superblock. */
void driveset_set_members(struct driveset *ds);

/* driveset_commit for who holds super_lock. Suspends. */
int driveset_commit_locked(struct driveset *ds, bool membership);

/* What the drive set (drive.c) and changes of its membership (member.c) share. */
#pragma once

#include "lib/base/buf.h"
#include "lib/store/drive.h"

/* The better of a drive's two superblocks; ERR_FORMAT when neither is valid. Suspends. */
int drive_super_read(struct env_file *file, struct format_super *ret_super);

/* Fills b, of FORMAT_UNIT, with `super` as the drive of this place has it. */
void drive_super_sign(const struct format_super *super, unsigned index, const uint8_t *uuid,
                      struct buf *b);

/* Takes the members' states over into the superblock. */
void driveset_set_members(struct driveset *ds);

/* driveset_commit for who holds super_lock. Suspends. */
int driveset_commit_locked(struct driveset *ds, bool membership);

/* Tells of what happens to drives: one line in the log for each change of a drive's standing, and
 * their standing in words for status. Policy is lib/store/health.h's. */
#pragma once

#include "lib/store/drive.h"

struct drive_watch {
    struct {
        enum drive_state state;
        enum health_state health;
        bool kept;
    } told[FORMAT_DRIVES_MAX];
};

/* What stood so at the start is told by the node. */
void drive_watch_init(struct drive_watch *w, const struct driveset *ds);
/* Logs what has changed. Does not suspend. */
void drive_watch_tell(struct drive_watch *w, const struct driveset *ds);

/* Counts, and something is held against it. */
bool drive_watch_suspect(const struct drive *d);
/* Why it does not count or is suspect; "" otherwise. Constant text. */
const char *drive_watch_reason(const struct drive *d);

/* Drives that hang or are slow in a run; see hang.c. */
#pragma once

#include "tests/sim/run.h"

/* Chooses, once for a run, whether hanging is all that happens to its drives: then every operation
 * is timed. */
void hang_choose(struct run *r);
/* Damages a drive in one of these ways, if the run's dice say so; false: another way is wanted. */
bool hang_damage(struct run *r, unsigned drive);
/* No faults on this drive any more. */
void hang_over(struct run *r, unsigned drive);
/* How much longer a life is to be, since opening with a drive that hangs takes its time. */
uint64_t hang_time(struct run *r);
/* Does one step of a client and sees that it does not take too long. */
void hang_timed(struct run *r, void (*step)(struct run *r));

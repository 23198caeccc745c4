/* Stores of simulated drives "d0", "d1", ... for the tests of lib/store. */
#pragma once

#include "lib/store/drive.h"
#include "tests/unit/store/sim_case.h"

#define STORE_JOURNAL (1u << 20)

/* The paths, count of them; valid for ever. */
const char *const *store_case_paths(unsigned count);

/* Formats `count` drives with the geometry k+m. To be called in the case's process. */
int store_case_format(struct sim_case *c, unsigned count, unsigned k, unsigned m, uint64_t slots,
                      uint64_t journal);

/* Opens them; stops the test on an error. */
struct driveset *store_case_open(struct sim_case *c, unsigned count);

/* Number of the drive that a path of ours names. */
unsigned store_case_drive(const char *path);

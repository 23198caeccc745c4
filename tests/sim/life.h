/* The runs, for the program that starts them. */
#pragma once

#include "tests/sim/run.h"

/* Runs a seed; ends the process with status 1 when something is wrong. Returns the run's digest. */
uint64_t run_seed(uint64_t seed, const struct run_options *options);

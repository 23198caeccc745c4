/* The planted bugs (lib/base/plant.h) by name, for the programs that switch them on; plants.c holds
 * plant_active. */
#pragma once

#include "lib/base/plant.h"

extern const char *const plant_names[PLANT_COUNT];

/* The bug of this name; PLANT_COUNT: there is none. */
enum plant plant_named(const char *name);

/* The names of the planted bugs, and the one that is on: see plants.h. */
#include <string.h>

#include "tests/sim/plants.h"

enum plant plant_active;

const char *const plant_names[PLANT_COUNT] = {"none",
#define PLANT_ROW_(name, text) #name,
                                              PLANT_TABLE(PLANT_ROW_)
#undef PLANT_ROW_
};

enum plant plant_named(const char *name)
{
    enum plant p = PLANT_NONE + 1;

    while (p < PLANT_COUNT && strcmp(plant_names[p], name) != 0)
        p++;
    return p;
}

/* Stores of simulated drives; see store_case.h. */
#include "tests/unit/store/store_case.h"

#include "lib/base/check.h"

const char *const *store_case_paths(unsigned count)
{
    static const char *const paths[] = {"d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7"};

    CHECK(count <= sizeof(paths) / sizeof(paths[0]));
    return paths;
}

int store_case_format(struct sim_case *c, unsigned count, unsigned k, unsigned m, uint64_t slots,
                      uint64_t journal)
{
    struct driveset_params p = {.count = count,
                                .paths = store_case_paths(count),
                                .k = k,
                                .m = m,
                                .slot_count = slots,
                                .journal_len = journal};

    return driveset_format(c->env, &p);
}

struct driveset *store_case_open(struct sim_case *c, unsigned count)
{
    struct driveset *ds = NULL;

    CHECK_OK(driveset_open(c->env, store_case_paths(count), count, &ds));
    return ds;
}

unsigned store_case_drive(const char *path)
{
    CHECK(path[0] == 'd' && path[1] >= '0' && path[1] <= '7' && path[2] == 0);
    return (unsigned)(path[1] - '0');
}

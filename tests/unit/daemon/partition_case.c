/* A partition for tests; see partition_case.h. */
#include "tests/unit/daemon/partition_case.h"

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"

void partition_case_init(struct partition_case *pc, uint64_t seed)
{
    *pc = (struct partition_case){.drives = 3, .m = 1, .slots = 14, .journal = 4u << 20};
    pc->options.cache_bytes = 100u << 10;
    pc->options.overlay_bytes = 1u << 20;
    pc->options.ingest_bytes = 32u << 20;
    sim_case_init(&pc->c, seed);
    pc->image = kv_mem_image_new();
    log_set_level(LOG_ERROR);
}

void partition_case_free(struct partition_case *pc)
{
    sim_case_free(&pc->c);
    kv_mem_image_free(pc->image);
}

int partition_case_try_open(struct partition_case *pc)
{
    struct driveset_params params = {.count = pc->drives,
                                     .paths = store_case_paths(pc->drives),
                                     .k = pc->drives - pc->m,
                                     .m = pc->m,
                                     .slot_count = pc->slots,
                                     .slot_size = pc->slot_size,
                                     .journal_len = pc->journal};
    bool exists;
    int rc;

    CHECK_OK(kv_mem_open(pc->c.env, pc->image, &pc->kv));
    if (pc->wrap)
        pc->kv = pc->wrap(pc->c.env, pc->kv);
    CHECK_OK(partition_exists(pc->kv, &exists));
    if (!exists)
        CHECK_OK(partition_format(pc->c.env, pc->kv, &params));
    rc = partition_open(pc->c.env, pc->kv, store_case_paths(pc->paths),
                        pc->paths ? pc->paths : pc->drives, &pc->options, &pc->start, &pc->p);
    if (rc < 0) {
        CHECK_OK(kv_close(pc->kv));
        return rc;
    }
    pc->bs = partition_blocks(pc->p);
    pc->os = partition_objects(pc->p);
    return 0;
}

void partition_case_open(struct partition_case *pc)
{
    CHECK_OK(partition_case_try_open(pc));
}

int partition_case_close(struct partition_case *pc)
{
    int rc = partition_close(pc->p);

    CHECK_OK(kv_close(pc->kv));
    return rc;
}

struct partition_status partition_case_status(struct partition_case *pc)
{
    struct partition_status s;

    partition_get_status(pc->p, &s);
    return s;
}

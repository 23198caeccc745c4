/* Orders about drives; see node_drives.h. */
#include "daemon/node_drives.h"

#include <stdio.h>

#include "daemon/membership.h"
#include "daemon/place.h"
#include "lib/base/err.h"
#include "lib/base/log.h"

static int save_paths(struct node_status *s, const char *extra)
{
    int rc;

    fiber_mutex_lock(&s->paths_lock);
    rc = place_save_paths(s->env, s->config, partition_drives(s->partition), extra);
    fiber_mutex_unlock(&s->paths_lock);
    return rc;
}

/* The path is in the list before the drive is in the store: were it the other way round, a crash
 * between the two would leave a drive that counts and that nobody finds. */
static int order_add(struct node_status *s, const struct admin_drive_order *o, struct strbuf *why,
                     uint32_t *index)
{
    struct member_add add = {.path = o->path,
                             .size = o->size,
                             .class_ = o->nvme,
                             .force = o->force,
                             .replaces = o->verb == ADMIN_DRIVE_REPLACE ? o->index : MEMBER_NOBODY};
    int rc = save_paths(s, o->path);

    if (rc < 0) {
        strbuf_adds(why, "the list of drives' paths in the data directory cannot be written");
        return rc;
    }
    rc = o->verb == ADMIN_DRIVE_REPLACE ? partition_drive_replace(s->partition, &add, why, index)
                                        : partition_drive_add(s->partition, &add, why, index);
    if (save_paths(s, NULL) < 0)
        log_warn("node", "cannot write the list of drives' paths");
    return rc;
}

static int order_run(struct node_status *s, const struct admin_drive_order *o, struct strbuf *why,
                     uint32_t *index)
{
    switch (o->verb) {
    case ADMIN_DRIVE_ADD:
    case ADMIN_DRIVE_REPLACE:
        return order_add(s, o, why, index);
    case ADMIN_DRIVE_REMOVE:
        return partition_drive_remove(s->partition, o->index, why);
    case ADMIN_DRIVE_KEEP:
        return partition_drive_keep(s->partition, o->index, why);
    case ADMIN_DRIVE_REBUILD:
        return partition_drive_rebuild(s->partition, o->index, why);
    case ADMIN_DRIVE_SET_CLASS:
        return partition_drive_set_class(s->partition, o->index, o->nvme, why);
    }
    return ERR_INVAL;
}

int node_drive_order(struct admin_source *a, const struct admin_drive_order *order,
                     char why[ADMIN_WHY_MAX], unsigned *ret_index)
{
    struct node_status *s = (struct node_status *)a;
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    uint32_t index = order->index;
    int rc = order_run(s, order, &text, &index);

    (void)snprintf(why, ADMIN_WHY_MAX, "%s", text.len ? text.data : "");
    if (rc == 0)
        *ret_index = index;
    return rc;
}

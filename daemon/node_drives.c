/* Orders about drives; see node_drives.h. */
#include "daemon/node_drives.h"

#include <stdio.h>
#include <string.h>

#include "daemon/membership.h"
#include "daemon/place.h"
#include "lib/base/err.h"
#include "lib/base/log.h"

/* The path is in the list before the drive is in the store: were it the other way round, a crash
 * between the two would leave a drive that counts and that nobody finds. And it stays there,
 * whoever writes the list meanwhile. */
static int order_add(struct node_part *p, const struct admin_drive_order *o, struct strbuf *why,
                     uint32_t *index)
{
    struct member_add add = {.path = o->path,
                             .size = o->size,
                             .class_ = o->nvme,
                             .force = o->force,
                             .replaces = o->verb == ADMIN_DRIVE_REPLACE ? o->index : MEMBER_NOBODY};
    int rc;

    p->adding = o->path;
    rc = node_part_save_paths(p);
    if (rc < 0)
        strbuf_adds(why, "the list of drives' paths in the data directory cannot be written");
    else if (o->verb == ADMIN_DRIVE_REPLACE)
        rc = partition_drive_replace(p->partition, &add, why, index);
    else
        rc = partition_drive_add(p->partition, &add, why, index);
    p->adding = NULL;
    if (node_part_save_paths(p) < 0)
        log_warn("node", "cannot write the list of drives' paths");
    return rc;
}

static int order_run(struct node_part *p, const struct admin_drive_order *o, struct strbuf *why,
                     uint32_t *index)
{
    switch (o->verb) {
    case ADMIN_DRIVE_ADD:
    case ADMIN_DRIVE_REPLACE:
        return order_add(p, o, why, index);
    case ADMIN_DRIVE_REMOVE:
        return partition_drive_remove(p->partition, o->index, why);
    case ADMIN_DRIVE_KEEP:
        return partition_drive_keep(p->partition, o->index, why);
    case ADMIN_DRIVE_REBUILD:
        return partition_drive_rebuild(p->partition, o->index, why);
    case ADMIN_DRIVE_SET_CLASS:
        return partition_drive_set_class(p->partition, o->index, o->nvme, why);
    }
    return ERR_INVAL;
}

/* Where what lies below has said nothing: it knows no more of a path than that it did not open. */
static void order_explain(const struct admin_drive_order *o, int rc, struct strbuf *why)
{
    bool takes_path = o->verb == ADMIN_DRIVE_ADD || o->verb == ADMIN_DRIVE_REPLACE;

    if (!takes_path || why->len)
        return;
    if (rc == ERR_NOENT)
        strbuf_addf(why, "the directory that %.500s is to lie in is not there", o->path);
    else if (rc == ERR_IO)
        strbuf_addf(why,
                    "%.500s cannot be opened, read or written: give a block device or a file, no "
                    "directory",
                    o->path);
}

struct ordering {
    struct node_part *part;
    const struct admin_drive_order *order;
    struct strbuf why;
    uint32_t index;
    int rc;
};

/* On the partition's loop. */
static void order_fiber(void *arg)
{
    struct ordering *o = arg;

    fiber_mutex_lock(&o->part->orders_lock);
    o->rc = order_run(o->part, o->order, &o->why, &o->index);
    order_explain(o->order, o->rc, &o->why);
    fiber_mutex_unlock(&o->part->orders_lock);
}

int node_drive_order(struct admin_source *a, const struct admin_drive_order *order,
                     char why[ADMIN_WHY_MAX], unsigned *ret_index)
{
    struct node_status *s = (struct node_status *)a;
    struct ordering o = {.order = order, .index = order->index};
    int rc;

    for (unsigned i = 0; i < s->part_count; i++)
        if (strcmp(s->parts[i].name, order->partition) == 0)
            o.part = &s->parts[i];
    if (!o.part) {
        (void)snprintf(why, ADMIN_WHY_MAX, "there is no partition \"%s\"", order->partition);
        return ERR_NOENT;
    }
    rc = node_part_call(o.part, order_fiber, &o);
    if (rc == 0)
        rc = o.rc;
    (void)snprintf(why, ADMIN_WHY_MAX, "%s", o.why.len ? o.why.data : "");
    strbuf_free(&o.why);
    if (rc == 0)
        *ret_index = o.index;
    return rc;
}

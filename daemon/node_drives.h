/* The administrator's orders about drives, as the node carries them out: the partition does the
 * work, the node keeps the list of paths (place.h) one step ahead of it. */
#pragma once

#include "daemon/node_status.h"

/* The drive_order of struct admin_ops. Suspends. */
int node_drive_order(struct admin_source *a, const struct admin_drive_order *order,
                     char why[ADMIN_WHY_MAX], unsigned *ret_index);

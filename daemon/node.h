/* The node: a partition and its front doors, assembled from an env and the settings. */
#pragma once

#include "daemon/config.h"
#include "lib/rt/env.h"

struct node;

/* Makes the store on first start, opens it, starts every front door. Failures are logged with what
 * to do about them. Suspends. */
int node_start(struct env *env, const struct config *config, struct node **ret_node);

/* Stops the front doors, then the store, with nothing lost. NULL is fine. Suspends. */
int node_stop(struct node *n);

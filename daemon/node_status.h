/* What the admin API is told about the node: status and drives (lib/api/admin.h). */
#pragma once

#include "daemon/config.h"
#include "daemon/partition.h"
#include "lib/api/admin.h"

struct node_status {
    struct admin_source face; /* first */
    struct env *env;
    const struct config *config;
    struct partition *partition;
    struct fiber_mutex paths_lock; /* for who writes the list of drives' paths */
    uint64_t start_ns;
    struct admin_listener listeners[ADMIN_LISTENERS_MAX];
    size_t listener_count;
};

void node_status_init(struct node_status *s, struct env *env, const struct config *config,
                      struct partition *partition);
/* Adds a listener by its real address. */
void node_status_listener(struct node_status *s, const char *name, const char *addr);
/* Logs every reason for not being in full health, once. */
void node_status_log(struct node_status *s);

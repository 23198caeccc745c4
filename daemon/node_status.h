/* What the admin API is told about the node: status and drives (lib/api/admin.h). */
#pragma once

#include "daemon/node_part.h"
#include "lib/api/admin.h"

struct node_status {
    struct admin_source face; /* first */
    struct env *env;
    struct node_part *parts;
    unsigned part_count;
    uint64_t start_ns;
    struct admin_listener listeners[ADMIN_LISTENERS_MAX];
    size_t listener_count;
};

/* `parts` outlive it. */
void node_status_init(struct node_status *s, struct env *env, struct node_part *parts,
                      unsigned part_count);
/* Adds a listener by its real address. */
void node_status_listener(struct node_status *s, const char *name, const char *addr);
/* Logs every reason for not being in full health, once. Suspends. */
void node_status_log(struct node_status *s);

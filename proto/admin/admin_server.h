/* The admin API's server, on a unix socket (DIR/admin.sock). Who can open the socket may do
 * everything: its mode is 0600 and there are no users. */
#pragma once

#include "lib/rt/env.h"
#include "proto/admin/admin_core.h"

struct admin_server;

/* Serves `backend` (copied; its objects stay valid until admin_server_stop returned) on `addr`,
 * with the engine on env's loop. Does not suspend. ERR_ADDR, ERR_CONFIG, ERR_PERM, ERR_IO. */
int admin_server_start(struct env *env, const struct env_addr *addr,
                       const struct admin_backend *backend, struct admin_server **ret_server);

/* Stops accepting, waits for calls that run, frees. From a fiber; suspends. NULL is fine. */
void admin_server_stop(struct admin_server *s);

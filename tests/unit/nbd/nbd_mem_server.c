/* nbd_mem_server: the NBD server over volumes in memory, for real clients and for measuring.
 *
 *     nbd_mem_server [--max-connections N] ADDR... NAME=BYTES...
 *
 * ADDR is "unix:/path" or "tcp:HOST:PORT" (port 0 picks one). Prints one line "listening ADDR" for
 * each and serves until SIGTERM. Exits 0 after a clean stop.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/rt/env_uring.h"
#include "proto/nbd/nbd_server.h"
#include "tests/unit/nbd/mem_block.h"

struct setup {
    struct env *env;
    struct mem_block *store;
    struct env_addr addrs[NBD_LISTEN_MAX];
    unsigned addr_count;
    unsigned max_connections;
    bool failed;
};

static void serve(void *arg)
{
    struct setup *u = arg;
    struct nbd_server_options options = {.env = u->env,
                                         .store = mem_block_store(u->store),
                                         .listen = u->addrs,
                                         .listen_count = u->addr_count,
                                         .max_connections = u->max_connections};
    struct nbd_server *s;
    int err = nbd_server_start(&options, &s);

    if (err < 0) {
        fprintf(stderr, "nbd_mem_server: %s\n", err_text(err));
        u->failed = true;
        return;
    }
    for (unsigned i = 0; i < u->addr_count; i++) {
        struct env_addr addr;

        if (nbd_server_addr(s, i, &addr) == 0)
            printf("listening %s\n", addr.text);
    }
    fflush(stdout);
    env_wait_stop(u->env);
    nbd_server_stop(s);
}

static bool add_volume(struct mem_block *m, const char *arg)
{
    const char *eq = strchr(arg, '=');
    char name[BLOCK_NAME_MAX + 1] = "";

    if (!eq || (size_t)(eq - arg) > BLOCK_NAME_MAX)
        return false;
    memcpy(name, arg, (size_t)(eq - arg));
    return block_create(mem_block_store(m), name, strtoull(eq + 1, NULL, 0), BLOCK_ON_FLUSH) == 0;
}

static bool parse(struct setup *u, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--max-connections") == 0 && i + 1 < argc) {
            u->max_connections = (unsigned)strtoul(argv[++i], NULL, 0);
        } else if (strcmp(argv[i], "--quiet") == 0) {
            log_set_level(LOG_ERROR);
        } else if (strncmp(argv[i], "unix:", 5) == 0 || strncmp(argv[i], "tcp:", 4) == 0) {
            if (u->addr_count == NBD_LISTEN_MAX)
                return false;
            snprintf(u->addrs[u->addr_count++].text, sizeof(u->addrs[0].text), "%s", argv[i]);
        } else if (!add_volume(u->store, argv[i])) {
            return false;
        }
    }
    return u->addr_count > 0;
}

int main(int argc, char **argv)
{
    struct setup u = {.store = mem_block_new()};

    if (!parse(&u, argc, argv)) {
        fprintf(stderr, "usage: nbd_mem_server [--max-connections N] [--quiet] ADDR... "
                        "NAME=BYTES...\n");
        return 2;
    }
    if (env_uring_new(NULL, &u.env) < 0) {
        fprintf(stderr, "nbd_mem_server: no io_uring\n");
        return 77;
    }
    env_run(u.env, serve, &u);
    env_free(u.env);
    mem_block_free(u.store);
    return u.failed;
}

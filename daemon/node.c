/* The node; see node.h. What lies in the data directory beside what place.h tells of:
 *
 *   DIR/admin.sock, DIR/nbd.sock
 *   DIR/partitions/NAME/   another partition, as DIR is the first
 *
 * Volumes are spread over all partitions (spread.h), studies and buckets are kept in the first one.
 */
#include "daemon/node.h"

#include <stdio.h>
#include <string.h>

#include "daemon/node_metrics.h"
#include "daemon/node_part.h"
#include "daemon/node_status.h"
#include "daemon/spread.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/admin/admin_server.h"
#include "proto/dicomweb/dicomweb.h"
#include "proto/dimse/dimse_server.h"
#include "proto/nbd/nbd_server.h"

struct node {
    struct env *env;
    const struct config *config;
    struct node_part parts[CONFIG_PARTITIONS_MAX];
    unsigned part_count;
    struct spread *spread;
    struct block_store *blocks;   /* of all partitions */
    struct object_store *objects; /* of the first */
    struct bucket_store *buckets;
    struct nbd_server *nbd;
    struct dimse_server *dimse;
    struct dicomweb *web;
    struct admin_server *admin;
    struct node_status status;
    struct node_metrics metrics;
};

/* ---- The partitions ---- */

struct node_room {
    struct node_part *part;
    int64_t bytes;
    int rc;
};

/* What is free and not promised: volumes are thin, and what they have not written yet they will. */
static void node_look_at_room(void *arg)
{
    struct node_room *r = arg;
    struct partition_status st;
    struct block_info *infos = NULL;
    size_t n = 0;

    r->rc = block_list(partition_blocks(r->part->partition), &infos, &n);
    partition_get_status(r->part->partition, &st);
    r->bytes = (int64_t)st.free;
    for (size_t i = 0; i < n; i++)
        r->bytes -= (int64_t)(infos[i].size - infos[i].mapped);
    mem_free(infos);
}

/* A new volume goes where there is most room. */
static unsigned node_choose_part(void *arg)
{
    struct node *n = arg;
    int64_t most = INT64_MIN;
    unsigned best = 0;

    for (unsigned i = 0; i < n->part_count; i++) {
        struct node_room room = {.part = &n->parts[i]};

        if (node_part_call(room.part, node_look_at_room, &room) == 0 && room.rc == 0 &&
            room.bytes > most) {
            most = room.bytes;
            best = i;
        }
    }
    return best;
}

static int node_spread_volumes(struct node *n)
{
    struct spread_part parts[SPREAD_PARTS_MAX];
    char clash[BLOCK_NAME_MAX + 1] = "";
    int rc;

    n->objects = partition_objects(n->parts[0].partition);
    n->buckets = partition_buckets(n->parts[0].partition);
    n->blocks = partition_blocks(n->parts[0].partition);
    if (n->part_count == 1)
        return 0;
    for (unsigned i = 0; i < n->part_count; i++)
        parts[i] = (struct spread_part){n->parts[i].env, partition_blocks(n->parts[i].partition),
                                        n->parts[i].name};
    rc = spread_new(n->env, parts, n->part_count, node_choose_part, n, clash, &n->spread);
    if (rc == 0)
        n->blocks = spread_blocks(n->spread);
    else
        log_error("node",
                  "two partitions have a volume of one name: start with one of them only, and "
                  "rename or delete there error=%s volume=%s",
                  err_name(rc), log_q(clash));
    return rc;
}

static int node_open_partitions(struct node *n)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i <= n->config->partition_count; i++) {
        n->part_count++;
        rc = node_part_start(n->env, n->config, i, &n->parts[i]);
    }
    return rc == 0 ? node_spread_volumes(n) : rc;
}

/* ---- The front doors ---- */

static void node_tcp(const struct config_listen *l, struct env_addr *ret_addr)
{
    const char *form = strchr(l->host, ':') ? "tcp:[%s]:%u" : "tcp:%s:%u";

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    (void)snprintf(ret_addr->text, sizeof(ret_addr->text), form, l->host, l->port);
#pragma GCC diagnostic pop
}

/* The kernel's limit, which paths in a data directory meet first. */
static int node_unix(const char *path, struct env_addr *ret_addr)
{
    if (strlen(path) > CONFIG_SOCKET_MAX) {
        log_error("node",
                  "the path of a unix socket is too long: give a data directory with a shorter "
                  "path, which may be a relative one path=%s most=%u",
                  log_q(path), CONFIG_SOCKET_MAX);
        return ERR_CONFIG;
    }
    (void)snprintf(ret_addr->text, sizeof(ret_addr->text), "unix:%s", path);
    return 0;
}

static int node_start_nbd(struct node *n)
{
    const struct config *c = n->config;
    MEM_AUTO char *path = place_path(n->config, "nbd.sock");
    struct env_addr addrs[2];
    struct nbd_server_options options = {.env = n->env,
                                         .store = n->blocks,
                                         .listen = addrs,
                                         .listen_count = 2,
                                         .max_connections = c->nbd.max_connections};
    int rc = node_unix(c->nbd.socket[0] ? c->nbd.socket : path, &addrs[1]);

    node_tcp(&c->nbd.listen, &addrs[0]);
    if (rc == 0)
        rc = nbd_server_start(&options, &n->nbd);
    if (rc == 0)
        nbd_server_observe(n->nbd, n->metrics.registry);
    for (unsigned i = 0; rc == 0 && i < options.listen_count; i++) {
        rc = nbd_server_addr(n->nbd, i, &addrs[i]);
        if (rc == 0)
            node_status_listener(&n->status, "nbd", addrs[i].text);
    }
    return rc;
}

_Static_assert(CONFIG_ASSOCIATIONS_MAX == DIMSE_ASSOCIATIONS_MAX, "the settings bound it");

static int node_start_dimse(struct node *n)
{
    const struct config *c = n->config;
    struct dimse_options options = {.env = n->env,
                                    .store = n->objects,
                                    .address = c->dicom.listen.host,
                                    .port = (uint16_t)c->dicom.listen.port,
                                    .aet = c->dicom.aet,
                                    .max_associations = c->dicom.max_associations,
                                    .max_pdu = c->dicom.max_pdu};
    struct config_listen at = c->dicom.listen;
    struct env_addr addr;
    int rc = dimse_server_start(&options, &n->dimse);

    if (rc == 0) {
        dimse_server_observe(n->dimse, n->metrics.registry);
        at.port = dimse_server_port(n->dimse);
        node_tcp(&at, &addr);
        node_status_listener(&n->status, "dicom", addr.text);
    }
    return rc;
}

static int node_start_web(struct node *n)
{
    const struct config *c = n->config;
    struct dicomweb_config options = {.max_connections = c->http.max_connections,
                                      .metrics = n->metrics.registry};
    struct config_listen at = c->http.listen;
    struct env_addr addr;
    int rc;

    node_tcp(&c->http.listen, &options.addr);
    rc = dicomweb_start(n->env, n->objects, &options, &n->web);
    if (rc == 0) {
        at.port = dicomweb_port(n->web);
        node_tcp(&at, &addr);
        node_status_listener(&n->status, "http", addr.text);
    }
    return rc;
}

static int node_start_admin(struct node *n)
{
    MEM_AUTO char *path = place_path(n->config, "admin.sock");
    struct admin_backend backend = {&n->status.face, n->blocks, n->objects, n->buckets,
                                    n->metrics.registry};
    struct env_addr addr;
    int rc = node_unix(path, &addr);

    return rc == 0 ? admin_server_start(n->env, &addr, &backend, &n->admin) : rc;
}

static int node_start_doors(struct node *n)
{
    static const struct {
        const char *name;
        int (*start)(struct node *n);
    } doors[] = {{"NBD", node_start_nbd},
                 {"DICOM", node_start_dimse},
                 {"HTTP", node_start_web},
                 {"admin", node_start_admin}};

    for (size_t i = 0; i < sizeof(doors) / sizeof(doors[0]); i++) {
        int rc = doors[i].start(n);

        if (rc < 0) {
            log_error("node", "cannot serve %s: %s error=%s", doors[i].name, err_text(rc),
                      err_name(rc));
            return rc;
        }
    }
    return 0;
}

/* ---- Life ---- */

int node_start(struct env *env, const struct config *config, struct node **ret_node)
{
    struct node *n = mem_zalloc(sizeof(*n));
    int rc;

    n->env = env;
    n->config = config;
    rc = node_open_partitions(n);
    if (rc == 0) {
        node_status_init(&n->status, env, n->parts, n->part_count);
        node_metrics_start(&n->metrics, env, config, n->parts, n->part_count);
        rc = node_start_doors(n);
    }
    if (rc < 0) {
        (void)node_stop(n); /* the first error is the one that counts */
        return rc;
    }
    node_status_log(&n->status);
    *ret_node = n;
    return 0;
}

int node_stop(struct node *n)
{
    int rc = 0, closed;

    if (!n)
        return 0;
    for (unsigned i = 0; i < n->part_count; i++)
        node_part_end_soon(&n->parts[i]);
    admin_server_stop(n->admin);
    dicomweb_stop(n->web);
    dimse_server_stop(n->dimse);
    nbd_server_stop(n->nbd);
    node_metrics_stop(&n->metrics);
    spread_free(n->spread);
    for (unsigned i = 0; i < n->part_count; i++) {
        closed = node_part_stop(&n->parts[i]);
        if (rc == 0)
            rc = closed;
    }
    mem_free(n);
    return rc;
}

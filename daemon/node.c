/* The node; see node.h. What lies in the data directory beside what place.h tells of:
 *
 *   DIR/admin.sock, DIR/nbd.sock
 *   DIR/formatting       only while the store is being made: a crash then starts over
 */
#include "daemon/node.h"

#include <stdio.h>
#include <string.h>

#include "daemon/node_metrics.h"
#include "daemon/node_status.h"
#include "daemon/partition.h"
#include "daemon/place.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "proto/admin/admin_server.h"
#include "proto/dicomweb/dicomweb.h"
#include "proto/dimse/dimse_server.h"
#include "proto/nbd/nbd_server.h"

/* Added to the capacity so that users get all of it: what internal writes keep for themselves. */
#define NODE_SPARE (144u << 20)

struct node {
    struct env *env;
    const struct config *config;
    struct place place;
    struct kv *kv;
    struct partition *partition;
    struct nbd_server *nbd;
    struct dimse_server *dimse;
    struct dicomweb *web;
    struct admin_server *admin;
    struct node_status status;
    struct node_metrics metrics;
};

/* ---- The store ---- */

/* Bytes of the smallest drive that exists already (a block device); 0 when all are to be made. */
static uint64_t node_smallest_drive(struct node *n)
{
    uint64_t least = UINT64_MAX;

    for (unsigned i = 0; i < n->place.count; i++) {
        struct env_file *f;
        uint64_t size;

        if (env_open(n->env, n->place.drives[i], ENV_OPEN_RDONLY, &f) < 0)
            continue;
        if (env_file_size(f, &size) == 0 && size > 0 && size < least)
            least = size;
        env_close(f);
    }
    return least == UINT64_MAX ? 0 : least;
}

static int node_plan(struct node *n, struct driveset_params *p)
{
    const struct config *c = n->config;
    uint64_t column = FORMAT_SLOT_SIZE - FORMAT_UNIT, least, segments;

    *p = (struct driveset_params){.count = c->store.drives,
                                  .paths = (const char *const *)n->place.drives,
                                  .journal_len =
                                      c->store.journal_size & ~(uint64_t)(FORMAT_UNIT - 1)};
    driveset_profile(p->count, &p->k, &p->m);
    if (c->store.data_columns) {
        p->k = c->store.data_columns;
        p->m = c->store.parity_columns;
    }
    segments = (c->store.capacity + NODE_SPARE + p->k * column - 1) / (p->k * column);
    p->slot_count = (segments * (p->k + p->m) + p->count - 1) / p->count;
    least = node_smallest_drive(n);
    if (least) {
        uint64_t head = FORMAT_JOURNAL_OFF + p->journal_len;

        if (least < head + 8 * (uint64_t)FORMAT_SLOT_SIZE)
            return ERR_NOSPC;
        if ((least - head) / FORMAT_SLOT_SIZE < p->slot_count)
            p->slot_count = (least - head) / FORMAT_SLOT_SIZE;
    }
    return 0;
}

/* Makes the store. A marker file tells an unfinished one, which nobody can have stored anything in.
 */
static int node_format(struct node *n)
{
    MEM_AUTO char *marker = place_path(n->config, "formatting");
    struct driveset_params params;
    struct env_file *f = NULL;
    int rc = env_open(n->env, marker, ENV_OPEN_RDONLY, &f);

    env_close(f);
    f = NULL;
    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    params.overwrite = false;
    bool unfinished = rc == 0;

    rc = node_plan(n, &params);
    params.overwrite = unfinished;
    if (rc == 0)
        rc = env_open(n->env, marker, ENV_OPEN_CREATE, &f);
    env_close(f);
    if (rc == 0)
        rc = partition_format(n->env, n->kv, &params);
    if (rc == 0)
        rc = env_unlink(n->env, marker);
    else if (rc == ERR_EXIST && !unfinished)
        (void)env_unlink(n->env, marker); /* the drives are somebody's: leave no licence behind */
    if (rc == 0)
        log_info("node", "made a new store drives=%u profile=%u+%u dir=%s", params.count, params.k,
                 params.m, log_q(n->config->store.data));
    return rc;
}

static int node_open_partition(struct node *n)
{
    struct partition_options options = {
        .cache_bytes = n->config->store.cache_size / 2,
        .rebuild_delay_ns = n->config->store.rebuild_after * ENV_NS_PER_S,
        .on_conflict =
            n->config->on_conflict == CONFIG_REPLACE ? PARTITION_REPLACE : PARTITION_REFUSE};
    struct partition_start start;
    int rc = ERR_LOCKED;

    for (unsigned i = 0; rc == ERR_LOCKED && i < PLACE_LOCK_TRIES; i++) {
        if (i)
            env_sleep(n->env, PLACE_LOCK_WAIT);
        rc = partition_open(n->env, n->kv, (const char *const *)n->place.drives,
                            n->config->store.drives, &options, &start, &n->partition);
    }
    if (rc == 0)
        log_info("node",
                 "store open ms=%llu replayed_records=%llu replayed_bytes=%llu replay_ms=%llu",
                 (unsigned long long)(start.total_ns / ENV_NS_PER_MS),
                 (unsigned long long)start.replay.records, (unsigned long long)start.replay.bytes,
                 (unsigned long long)(start.replay.ns / ENV_NS_PER_MS));
    return rc;
}

static int node_open_store(struct node *n)
{
    bool exists = false;
    int rc = place_open_kv(n->env, n->config, &n->place, PLACE_MAKE, &n->kv);

    if (rc == 0)
        rc = partition_exists(n->kv, &exists);
    if (rc == 0 && !exists)
        rc = node_format(n);
    if (rc == 0)
        rc = node_open_partition(n);
    if (rc < 0)
        log_error("node", "cannot open the store: %s error=%s dir=%s", place_advice(rc),
                  err_name(rc), log_q(n->config->store.data));
    return rc;
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

static int node_unix(const char *path, struct env_addr *ret_addr)
{
    int n = snprintf(ret_addr->text, sizeof(ret_addr->text), "unix:%s", path);

    return n < 0 || (size_t)n >= sizeof(ret_addr->text) ? ERR_CONFIG : 0;
}

static int node_start_nbd(struct node *n)
{
    const struct config *c = n->config;
    MEM_AUTO char *path = place_path(n->config, "nbd.sock");
    struct env_addr addrs[2];
    struct nbd_server_options options = {.env = n->env,
                                         .store = partition_blocks(n->partition),
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

static int node_start_dimse(struct node *n)
{
    const struct config *c = n->config;
    struct dimse_options options = {.env = n->env,
                                    .store = partition_objects(n->partition),
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
    rc = dicomweb_start(n->env, partition_objects(n->partition), &options, &n->web);
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
    struct admin_backend backend = {&n->status.face, partition_blocks(n->partition),
                                    partition_objects(n->partition), n->metrics.registry};
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
    place_init(&n->place, config);
    rc = node_open_store(n);
    if (rc == 0) {
        node_status_init(&n->status, env, config, n->partition);
        node_metrics_start(&n->metrics, env, config, n->partition, n->kv);
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
    int rc, closed;

    if (!n)
        return 0;
    admin_server_stop(n->admin);
    dicomweb_stop(n->web);
    dimse_server_stop(n->dimse);
    nbd_server_stop(n->nbd);
    node_metrics_stop(&n->metrics);
    rc = partition_close(n->partition);
    if (rc < 0)
        log_error("node", "the store was not closed cleanly, the next start will replay error=%s",
                  err_name(rc));
    closed = kv_close(n->kv);
    place_free(&n->place);
    mem_free(n);
    return rc < 0 ? rc : closed;
}

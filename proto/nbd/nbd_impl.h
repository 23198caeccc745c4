/* What the files of the NBD server share: server, connection, request; see nbd_server.h. */
#pragma once

#include "lib/base/list.h"
#include "lib/base/metric.h"
#include "lib/net/stream.h"
#include "lib/rt/sync.h"
#include "proto/nbd/nbd_answer.h"
#include "proto/nbd/nbd_server.h"

/* ---- Buffers (nbd_pool.c) ------------------------------------------------------------------- */

#define NBD_CLASS_MIN_SHIFT 12u /* buffers are powers of two from 4 KiB to 32 MiB */
#define NBD_CLASS_COUNT     14u

struct nbd_pool {
    void *free[NBD_CLASS_COUNT]; /* chained through their first bytes */
    size_t cached;               /* bytes in the chains */
};

/* The bytes that a buffer of n really takes: 0 for 0. */
size_t nbd_pool_size(size_t n);
uint8_t *nbd_pool_get(struct nbd_pool *p, size_t size); /* size from nbd_pool_size; NULL for 0 */
void nbd_pool_put(struct nbd_pool *p, uint8_t *buf, size_t size);
void nbd_pool_free(struct nbd_pool *p);

/* ---- The server ----------------------------------------------------------------------------- */

struct nbd_door { /* a listener and the fiber that accepts from it */
    struct nbd_server *server;
    struct env_listener *listener;
    struct env_addr addr;
};

/* What is timed apart. */
enum nbd_timed {
    NBD_TIMED_READ,
    NBD_TIMED_WRITE,
    NBD_TIMED_FLUSH,
    NBD_TIMED_TRIM,
    NBD_TIMED_ZEROES,
    NBD_TIMED_OTHER,
    NBD_TIMED
};

struct nbd_server {
    struct nbd_server_options options;
    struct env *env;
    struct block_store *store;
    struct nbd_door doors[NBD_LISTEN_MAX];
    unsigned door_count;
    bool stopping, full_logged;
    struct list conns;
    unsigned refusing; /* connections that are being told that we are full */
    uint64_t next_conn;
    struct fiber_group alive; /* doors, connections, workers */
    struct fiber_cond conn_ended;
    struct env_timer stop_timer;
    struct nbd_server_stats stats;
    struct metric_hist request_time[NBD_TIMED];
    /* memory */
    struct fiber_sem bytes;
    struct nbd_pool pool;
    struct list free_requests;
    unsigned free_request_count;
    /* workers */
    struct list idle_workers;
    struct list todo; /* requests that wait for a worker */
    unsigned worker_count, idle_count;
    bool workers_leave;
};

/* ---- Connections (nbd_conn.c) --------------------------------------------------------------- */

struct nbd_conn {
    struct list link;
    struct nbd_server *server;
    struct stream *stream;
    struct env_addr peer; /* for logs */
    uint64_t id;
    bool refused; /* one too many */
    struct nbd_core core;
    struct block_volume *volume; /* in transmission */
    char name[BLOCK_NAME_MAX + 1];
    /* requests in flight: from their receipt until the reply is sent */
    unsigned in_flight;
    struct fiber_cond idle;
    struct fiber_sem requests, bytes;
    size_t reserve;
    uint64_t served, failed;
};

struct nbd_job {
    struct list link;
    struct nbd_conn *conn;
    struct nbd_request request;
    uint64_t start; /* when all of it was here */
    uint8_t *buf;
    size_t size;   /* of buf, as the pool counts */
    size_t shared; /* the part of it taken from the server's budget */
    struct stream_out out;
    struct nbd_answer answer;
};

/* Serves the socket in a fiber of its own, which is a member of server->alive. */
void nbd_conn_start(struct nbd_server *s, struct env_sock *sock, const struct env_addr *via,
                    bool refused);

/* The server is stopping: an idle connection ends at once, others when their requests have. */
void nbd_conn_stop(struct nbd_conn *c);

/* ---- Workers (nbd_work.c) ------------------------------------------------------------------- */

/* Has the job done and answered by a worker. Does not suspend. */
void nbd_work_start(struct nbd_server *s, struct nbd_job *job);

/* Lets idle workers go; for the server's end. */
void nbd_work_stop(struct nbd_server *s);

/* Does the job and queues its reply (nbd_conn.c). May suspend. */
void nbd_job_run(struct nbd_job *job);

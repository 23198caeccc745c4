/* nbd_server: NBD over TCP and unix sockets, for the volumes of a block store.
 *
 * One fiber per connection receives; requests run concurrently on a pool of worker fibers; replies
 * leave in the order they are ready, gathered. All of it runs on the env's loop.
 *
 * Memory is bounded: request buffers come out of max_bytes for all connections together, after the
 * first NBD_RESERVE of each, so that slow clients cannot starve the others; a connection that is at
 * a limit is simply not read from until a request ends. Besides, a connection has a receive buffer
 * of 256 KiB, and up to 32 MiB of freed request buffers are kept for the next ones.
 */
#pragma once

#include <stdint.h>

#include "lib/api/block.h"
#include "lib/rt/env.h"

struct nbd_server;

#define NBD_RESERVE (256u << 10) /* bytes of requests that each connection may always have */

struct nbd_server_options {
    struct env *env;
    struct block_store *store; /* outlives the server */
    const struct env_addr *listen;
    unsigned listen_count;         /* at most NBD_LISTEN_MAX */
    unsigned max_connections;      /* 0: 256; further ones are told so and refused */
    unsigned max_requests;         /* in flight per connection; 0: 128 */
    uint64_t max_connection_bytes; /* of requests in flight; at least 32 MiB; 0: 64 MiB */
    uint64_t max_bytes;            /* the same for all together; at least 32 MiB; 0: 256 MiB */
    uint64_t handshake_ns;         /* longest negotiation; 0: 30 s */
    uint64_t stall_ns;             /* longest pause of a client that owes us bytes, or does not take
                                      ours; 0: 60 s. Idle clients stay as long as they like */
    uint64_t stop_ns;              /* how long stop waits for requests in flight; 0: 10 s */
};
#define NBD_LISTEN_MAX 8u

struct nbd_server_stats {
    unsigned connections;       /* now */
    uint64_t accepted, refused; /* connections so far; refused: because of max_connections */
    uint64_t protocol_errors;   /* connections that ended because the client broke the protocol */
    uint64_t requests, failed;  /* so far; failed: answered with an error */
    uint64_t read_bytes, written_bytes;
};

/* Listens and serves. ERR_ADDR and what env_listen gives, ERR_CONFIG for options out of range.
 * Called from a fiber of the env; does not suspend. */
int nbd_server_start(const struct nbd_server_options *options, struct nbd_server **ret_server);

/* The address of listener i, with the real port. */
int nbd_server_addr(struct nbd_server *s, unsigned i, struct env_addr *ret_addr);

void nbd_server_get_stats(const struct nbd_server *s, struct nbd_server_stats *ret_stats);

/* Registers the server's metrics; they last until the server is stopped. */
struct metrics;
void nbd_server_observe(struct nbd_server *s, struct metrics *m);

/* Stops accepting, lets requests in flight end and their replies go out, closes all connections and
 * frees the server. New requests are answered with ESHUTDOWN meanwhile. NULL is fine. Suspends. */
void nbd_server_stop(struct nbd_server *s);

/* stream: a byte stream over a socket: buffered reading, gathered writing.
 *
 * Reading is done by one fiber. It looks at what is buffered and consumes what it understood; one
 * receive may bring many messages, and large bodies go past the buffer into the caller's memory.
 *
 * Writing is a queue of what its owners want sent, and one sender fiber per stream. What is queued
 * while a send is under way leaves together in the next one, so that many small replies cost one
 * system call. Nothing is copied: the parts stay the owner's until `done`. The queue has no bound
 * of its own; owners bound what they have in flight.
 *
 * TLS and recorders are sockets stacked on a socket (lib/rt/env_ops.h); the stream takes any.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/base/list.h"
#include "lib/rt/env.h"

struct stream;

struct stream_options {
    size_t buffer;     /* bytes of the receive buffer; 0: 64 KiB */
    uint64_t stall_ns; /* longest time without progress in the middle of a message, either way; 0:
                          no limit. Progress in sending is counted by the MiB */
};

/* Takes over the socket and starts the sender. Does not suspend. */
struct stream *stream_new(struct env *env, struct env_sock *sock,
                          const struct stream_options *options);

/* Ends the connection, fails what is still queued with ERR_CLOSED, and frees the stream once the
 * sender has ended; no fiber may be in another call on it. NULL is fine. Suspends. */
void stream_free(struct stream *s);

/* Ends both directions at once: a reader gets ERR_CLOSED or ERR_TRUNCATED, queued parts fail. Does
 * not suspend. */
void stream_shutdown(struct stream *s);

/* ---- Reading -------------------------------------------------------------------------------- */

/* When reading must have come to its end: reads after that give ERR_TIMEDOUT and the connection is
 * shut down. ENV_FOREVER: no limit. Takes effect at the next receive. */
void stream_set_deadline(struct stream *s, uint64_t deadline);

/* What is buffered now; valid until the next fill or read. */
const uint8_t *stream_data(const struct stream *s, size_t *ret_n);

/* Receives until at least `want` bytes (at most the buffer's size) are buffered. ERR_CLOSED: the
 * peer ended the stream and nothing is buffered; ERR_TRUNCATED: it ended with less than `want`;
 * ERR_TIMEDOUT. May suspend. */
int stream_fill(struct stream *s, size_t want);

/* Drops n buffered bytes. */
void stream_consume(struct stream *s, size_t n);

/* Takes exactly n bytes, the body of a message: from the buffer, then from the socket.
 * ERR_TRUNCATED, ERR_TIMEDOUT (also when the peer stalls). May suspend. */
int stream_read(struct stream *s, void *buf, size_t n);

/* ---- Writing -------------------------------------------------------------------------------- */

struct stream_out {
    struct list link;
    struct iovec *iov; /* the owner's; changed while it is sent */
    unsigned iov_count;
    /* Called once by the sender, in order: all is handed to the system (0), or the connection
     * failed. Must not suspend. The owner may free the struct in it. */
    void (*done)(struct stream_out *o, int err);
};

/* Queues o. Does not suspend. */
void stream_queue(struct stream *s, struct stream_out *o);

/* Sends n bytes behind what is queued. Suspends until they are handed to the system. */
int stream_write(struct stream *s, const void *buf, size_t n);

/* Suspends until nothing is queued. Returns 0, or the error that broke the connection for sending.
 */
int stream_drain(struct stream *s);

/* nbd_answer: what the core's steps mean in terms of volumes (lib/api/block.h).
 *
 * The bridge between the protocol core and the block store, free of sockets, buffers' life and
 * concurrency, which are the server's. Functions that call the store may suspend.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lib/api/block.h"
#include "proto/nbd/nbd_core.h"

/* Answers a LIST step. `flush(arg)` is called whenever core->out has grown so far that it should be
 * sent and reset; an error from it ends the listing and is returned. */
int nbd_answer_list(struct nbd_core *c, struct block_store *store, int (*flush)(void *arg),
                    void *arg);

/* Answers a LOOKUP step. When it leads to transmission *ret_volume is the open volume, which the
 * caller closes at the connection's end; else it is untouched. Name "" is the only volume, if there
 * is just one. Returns 0, or the error with which the lookup was refused. */
int nbd_answer_lookup(struct nbd_core *c, struct block_store *store, const struct nbd_step *step,
                      struct block_volume **ret_volume);

/* Chunks of one read: more holes than fit are sent as zeroes. */
#define NBD_ANSWER_CHUNKS 16u

struct nbd_answer {
    struct iovec iov[2 * NBD_ANSWER_CHUNKS]; /* the reply, in order; points into heads and buf */
    unsigned iov_count;
    uint8_t heads[NBD_ANSWER_CHUNKS * NBD_DATA_HEAD_MAX];
};
_Static_assert(NBD_ANSWER_CHUNKS *NBD_DATA_HEAD_MAX >= NBD_HEAD_MAX, "an error fits");

/* Bytes of buffer the request needs: for a write the payload, else room for the answer; at most
 * NBD_PAYLOAD_MAX. 0 for requests that are refused. */
size_t nbd_answer_room(const struct nbd_request *r);

/* Does the request, or refuses it when r->error is set, and makes its reply. buf is of
 * nbd_answer_room() bytes, holds a write's payload, and stays until the reply is sent; so does the
 * answer itself. Returns what the store said, 0 or an error that is already in the reply. */
int nbd_answer_request(const struct nbd_core *c, struct block_volume *v,
                       const struct nbd_request *r, uint8_t *buf, struct nbd_answer *ret_answer);

/* nbd_play: one NBD connection without sockets: bytes of a client in, bytes of the server out.
 *
 * Drives the core and nbd_answer over a block store, one request at a time. The bytes of a client
 * may be given in pieces of any size. For table tests and for the fuzzer. */
#pragma once

#include <stdbool.h>

#include "lib/base/strbuf.h"
#include "proto/nbd/nbd_answer.h"

struct nbd_play {
    struct nbd_core core;
    struct block_store *store;
    struct block_volume *volume; /* in transmission */
    struct strbuf in, out;
    uint8_t *payload; /* of the write being taken; NULL when none is */
    size_t payload_have;
    struct nbd_step step;
    bool closed;
    const char *reason;
    unsigned requests, refused;
};

void nbd_play_init(struct nbd_play *p, struct block_store *store); /* the greeting is in p->out */
void nbd_play_feed(struct nbd_play *p, const void *bytes, size_t n);
void nbd_play_free(struct nbd_play *p);

/* The DICOMweb server (PS3.18 sections 8 and 10): STOW-RS, WADO-RS, QIDO-RS and DELETE under
 * /dicom-web, over an object store.
 *
 * Instances go in and out byte for byte: there is no transcoding, a retrieve that insists on a
 * transfer syntax other than the stored one is a 406. A stored instance is reported only when
 * object_put_commit said that it is durable. No instance is held in memory as a whole, except those
 * smaller than a buffer.
 */
#pragma once

#include <stdint.h>

#include "lib/api/object.h"
#include "lib/rt/env.h"

struct dicomweb;
struct metrics;

struct dicomweb_config {
    struct env_addr addr;     /* "tcp:127.0.0.1:8042"; port 0 picks one */
    unsigned max_connections; /* 0: 128 */
    unsigned idle_timeout_s;  /* 0: 60 */
    struct metrics *metrics;  /* served under /metrics, with the server's own; NULL: there is none.
                                 Outlives the server, belongs to the loop */
};

/* Listens and serves `os`, whose calls are made in fibers of env. dcm_init() has been called. Does
 * not suspend. ERR_ADDR, ERR_CONFIG, ERR_PERM, ERR_IO. */
int dicomweb_start(struct env *env, struct object_store *os, const struct dicomweb_config *cfg,
                   struct dicomweb **ret_dicomweb);

unsigned dicomweb_port(const struct dicomweb *w);

/* Refuses new requests, waits for those that run, frees the server. NULL is fine. From a fiber;
 * suspends. */
void dicomweb_stop(struct dicomweb *w);

/* The DICOM front door: C-ECHO and C-STORE (PS3.4 annexes A and B) over DICOM's upper layer
 * (PS3.8).
 *
 * Data sets are kept as they come off the wire: a Part 10 head is put in front, nothing is parsed
 * and written again. Success is answered after object_put_commit returned, hence after the instance
 * is durable.
 *
 * An association has a thread of its own (DCMTK blocks); what it wants of the store it asks on the
 * loop by env_call. All state of the server belongs to the loop.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/api/object.h"

struct env;
struct dimse_server;

#define DIMSE_ASSOCIATIONS_MAX 256u

/* A zero or NULL takes the default. */
struct dimse_options {
    struct env *env;            /* required; a real one */
    struct object_store *store; /* required */
    const char *address;        /* numeric IPv4 or IPv6; "127.0.0.1" */
    uint16_t port;              /* 0: a free one, which dimse_server_port tells */
    const char *aet;            /* our AE title, up to 16 characters; "FILMROOM" */
    unsigned max_associations;  /* at a time, at most DIMSE_ASSOCIATIONS_MAX; 32 */
    uint32_t max_pdu;           /* bytes to receive, 4096..131072; 131072 */
    unsigned acse_timeout_s;    /* for an association's handshake; 30 */
    unsigned dimse_timeout_s;   /* of silence within a message; 60 */
    unsigned idle_timeout_s;    /* of silence between messages; 600 */
    /* Associations for another called AE title are rejected. By default they are accepted: many a
     * modality is set up once with whatever title its archive had then, and a title is no
     * protection. */
    bool strict_aet;
    /* Only storage SOP classes of the standard are accepted. By default private ones and those
     * under unknown UIDs are as well (storescp's promiscuous mode); classes of the standard that
     * are not storage (query, print, ...) never. */
    bool strict_classes;
};

struct dimse_stats {
    uint64_t associations, rejected, broken; /* so far; broken: ended otherwise than by a release, a
                                                peer's abort or a rejection */
    uint64_t active;                         /* now */
    uint64_t echoes, stored, identical, replaced,
        failed;     /* messages; failed: answered with failure */
    uint64_t bytes; /* of data sets received */
};

/* Starts listening. dcm_init comes first. ERR_INVAL, ERR_ADDR, ERR_IO. Does not suspend. */
int dimse_server_start(const struct dimse_options *options, struct dimse_server **ret_server);

uint16_t dimse_server_port(const struct dimse_server *s);

/* From the loop. Does not suspend. */
void dimse_server_stats(const struct dimse_server *s, struct dimse_stats *ret_stats);

/* Registers the server's metrics; they last until the server is stopped. */
struct metrics;
void dimse_server_observe(struct dimse_server *s, struct metrics *m);

/* Stops accepting, ends idle associations, lets C-STOREs in progress end for a few seconds, aborts
 * the rest, waits for all threads and frees the server. NULL is fine. Suspends. */
void dimse_server_stop(struct dimse_server *s);

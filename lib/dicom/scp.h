/* The DICOM network's accepting side (PS3.8, PS3.7), by DCMTK, behind a C face.
 *
 * One association is one call of scp_serve on one thread, which blocks there until the association
 * has ended. What is decided about it (whom to accept, what becomes of a C-STORE) is asked from a
 * struct scp_handler on that same thread. Nothing here touches an env. dcm_init comes first.
 *
 * Sockets are plain descriptors, because DCMTK reads and writes them itself. Inputs are untrusted:
 * whatever a peer sends ends its own association at worst.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/dicom/dcm.h"

#define SCP_AET_MAX     16
#define SCP_PDU_MIN     4096u /* what DCMTK can do */
#define SCP_PDU_MAX     131072u
#define SCP_COMMENT_MAX 64 /* Error Comment (0000,0902) is an LO */

/* ---- Sockets ---------------------------------------------------------------------------- */

/* Listens on a numeric IPv4 or IPv6 address; port 0 takes a free one. ERR_INVAL, ERR_ADDR, ERR_IO.
 */
int scp_listen(const char *address, uint16_t port, int *ret_fd, uint16_t *ret_port);

/* The next connection, with TCP_NODELAY set, and the peer's numeric address. Blocks. ERR_CLOSED
 * after scp_wake; ERR_AGAIN when the system is out of descriptors: wait a little. */
int scp_accept(int listen_fd, int *ret_fd, char ret_peer[64]);

/* Wakes whoever blocks in reading or accepting on the socket; it stays open, and what is being sent
 * is still sent. Any thread. */
void scp_wake(int fd);

/* As scp_wake, and sending ends as well. */
void scp_cut(int fd);

void scp_close(int fd); /* negative: no-op */

/* ---- An association --------------------------------------------------------------------- */

struct scp_peer {
    char calling_aet[SCP_AET_MAX + 1], called_aet[SCP_AET_MAX + 1];
    char implementation[17]; /* the peer's implementation version name; may be "" */
};

enum scp_verdict {
    SCP_ACCEPT,
    SCP_REJECT_LIMIT,      /* transient, "local limit exceeded" */
    SCP_REJECT_CALLED_AET, /* permanent, "called AE title not recognised" */
};

/* A C-STORE request's announcements; valid until store_end. */
struct scp_store {
    const char *sop_class, *sop_instance;
    const char *transfer_syntax; /* of the data set that follows */
    const char *calling_aet;
};

/* The answer to a C-STORE (PS3.4 section B.2.3, PS3.7 annex C). */
struct scp_status {
    uint16_t code;                     /* 0x0000: success */
    char comment[SCP_COMMENT_MAX + 1]; /* "" for none */
};

enum scp_end {
    SCP_RELEASED,  /* in good order */
    SCP_ABORTED,   /* by the peer */
    SCP_REJECTED,  /* by the verdict, or for an application context that is not DICOM's */
    SCP_TIMED_OUT, /* the peer was silent for too long; aborted by us */
    SCP_STOPPED,   /* the handler's wish; aborted by us */
    SCP_BROKEN,    /* connection lost, or the peer broke the protocol */
};

/* All are called on scp_serve's thread. */
struct scp_handler {
    enum scp_verdict (*associate)(void *ctx, const struct scp_peer *peer);

    /* Chooses among the `count` transfer syntaxes that are proposed for an abstract syntax: the
     * index, or -1 when no syntax will do, or -2 when the abstract syntax will not. */
    int (*choose)(void *ctx, const char *abstract_syntax, const char *const *syntaxes,
                  unsigned count);

    void (*echo)(void *ctx);

    /* A C-STORE begins; its data set's bytes follow as they come off the wire, then its end.
     * `complete` is false when the association broke off on the way: there is no one to answer to.
     * An error is told at the end; until then the bytes of a store that failed are taken and
     * dropped. */
    void (*store_begin)(void *ctx, const struct scp_store *store);
    void (*store_data)(void *ctx, const void *p, size_t n);
    void (*store_end)(void *ctx, bool complete, struct scp_status *ret_status);

    /* Asked between messages: true ends the association with an abort. */
    bool (*stopping)(void *ctx);
};

struct scp_options {
    const char *aet;  /* ours, in the responses */
    uint32_t max_pdu; /* SCP_PDU_MIN..SCP_PDU_MAX, to receive */
    unsigned acse_s;  /* seconds for the association's handshake */
    unsigned dimse_s; /* ... of silence within a message */
    unsigned idle_s;  /* ... between messages */
};

/* Serves one association on fd; the caller closes it afterwards (and may scp_wake or scp_cut it
 * meanwhile). `ret_detail` gets a few words on what went
 * wrong, for a log line ("" otherwise). */
enum scp_end scp_serve(int fd, const struct scp_options *options, const struct scp_handler *handler,
                       void *ctx, char ret_detail[128]);

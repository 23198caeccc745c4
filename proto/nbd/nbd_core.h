/* nbd_core: the server side of the NBD protocol as a pure machine: bytes in, steps out.
 *
 * It follows proto.md of the NetworkBlockDevice project (sections are named below): fixed newstyle
 * negotiation, NOTLS mode, simple and structured replies, the base:allocation context. It does no
 * I/O, holds no buffers of requests and knows nothing of volumes: the driver feeds it the bytes of
 * one connection, does what each step asks for, and sends what it writes.
 *
 *     driver                                   core
 *     nbd_core_init  ------------------------> greeting in core->out
 *     nbd_core_feed(bytes) ------------------> step: LIST, LOOKUP, REQUEST, CLOSE or MORE
 *     nbd_core_list / _found / _refuse ------> answer in core->out
 *     nbd_reply_*  <-------------------------- heads of replies to requests
 *
 * During negotiation replies pile up in core->out, which the driver sends in order and resets. In
 * transmission replies may go out in any order, so their heads are made by the nbd_reply_*
 * functions in the driver's memory and core->out is not used.
 *
 * No function suspends.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"

/* Longest export name we look up; longer ones (legal up to 4096) cannot exist here. */
#define NBD_NAME_MAX 255u
/* Longest option data that is looked at; longer data is skipped and the option refused. */
#define NBD_OPTION_MAX (64u << 10)
/* Option data longer than this is no option but an attack or noise: the connection ends. */
#define NBD_OPTION_SKIP_MAX (64u << 20)
/* Options of one negotiation; a client that needs more is up to no good. */
#define NBD_OPTIONS_MAX 2048u
/* Bytes the driver must be able to offer in one piece: an option's header and data. */
#define NBD_NEED_MAX (16u + NBD_OPTION_MAX)

/* "Size constraints": what NBD_INFO_BLOCK_SIZE announces. */
#define NBD_BLOCK_MIN       1u
#define NBD_BLOCK_PREFERRED 4096u
#define NBD_PAYLOAD_MAX     (32u << 20)

enum nbd_command { /* "Request types" */
                   NBD_CMD_READ = 0,
                   NBD_CMD_WRITE = 1,
                   NBD_CMD_DISC = 2,
                   NBD_CMD_FLUSH = 3,
                   NBD_CMD_TRIM = 4,
                   NBD_CMD_CACHE = 5,
                   NBD_CMD_WRITE_ZEROES = 6,
                   NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flag { /* "Command flags" */
                        NBD_CMD_FLAG_FUA = 1 << 0,
                        NBD_CMD_FLAG_NO_HOLE = 1 << 1,
                        NBD_CMD_FLAG_DF = 1 << 2,
                        NBD_CMD_FLAG_REQ_ONE = 1 << 3,
                        NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum nbd_transmission_flag { /* "Transmission flags" */
                             NBD_FLAG_HAS_FLAGS = 1 << 0,
                             NBD_FLAG_READ_ONLY = 1 << 1,
                             NBD_FLAG_SEND_FLUSH = 1 << 2,
                             NBD_FLAG_SEND_FUA = 1 << 3,
                             NBD_FLAG_SEND_TRIM = 1 << 5,
                             NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
                             NBD_FLAG_SEND_DF = 1 << 7,
                             NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
                             NBD_FLAG_SEND_CACHE = 1 << 10,
                             NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_error { /* "Error values" */
                 NBD_EPERM = 1,
                 NBD_EIO = 5,
                 NBD_ENOMEM = 12,
                 NBD_EINVAL = 22,
                 NBD_ENOSPC = 28,
                 NBD_EOVERFLOW = 75,
                 NBD_ENOTSUP = 95,
                 NBD_ESHUTDOWN = 108,
};

enum nbd_rep { /* "Option reply types" */
               NBD_REP_ACK = 1,
               NBD_REP_SERVER = 2,
               NBD_REP_INFO = 3,
               NBD_REP_META_CONTEXT = 4,
               NBD_REP_ERR_UNSUP = 0x80000001,
               NBD_REP_ERR_POLICY = 0x80000002,
               NBD_REP_ERR_INVALID = 0x80000003,
               NBD_REP_ERR_UNKNOWN = 0x80000006,
               NBD_REP_ERR_SHUTDOWN = 0x80000007,
               NBD_REP_ERR_TOO_BIG = 0x80000009,
};

/* What a driver answers a LOOKUP with. Flush and FUA are always offered. */
struct nbd_export {
    char name[NBD_NAME_MAX + 1]; /* the canonical name, not empty */
    char description[256];       /* for people; may be empty */
    uint64_t size;
    bool readonly;
    bool multi_conn; /* a flush on one connection covers the writes replied to on all */
    bool fast_zero;  /* zeroing whole preferred blocks is cheaper than writing them */
    bool cache;      /* NBD_CMD_CACHE does something */
};

struct nbd_request {
    uint16_t flags; /* enum nbd_command_flag; only what is valid for the command */
    uint16_t type;  /* enum nbd_command when error is 0 */
    uint64_t cookie;
    uint64_t offset; /* offset and length lie within the export when error is 0 */
    uint32_t length;
    uint32_t error;      /* not 0 (enum nbd_error): nothing to do but to reply this */
    const char *message; /* with error: a constant text for the client's user */
};

enum nbd_step_kind {
    NBD_STEP_MORE,    /* feed again with at least nbd_core_need() bytes */
    NBD_STEP_LIST,    /* call nbd_core_list for each export, then nbd_core_list_end */
    NBD_STEP_LOOKUP,  /* find the export step.name; call nbd_core_found or nbd_core_refuse */
    NBD_STEP_REQUEST, /* handle step.request. The payload of a good WRITE (length > 0, error 0) is
                         next in the stream: the driver takes it, then calls
                         nbd_core_payload_taken */
    NBD_STEP_CLOSE,   /* send core->out, let what is in flight end, close. step.reason tells why */
};

struct nbd_step {
    enum nbd_step_kind kind;
    char name[NBD_NAME_MAX + 1]; /* LOOKUP: as the client said it; "" means the default export */
    bool start;                  /* LOOKUP: success starts transmission, so open the export */
    struct nbd_request request;
    const char *reason; /* CLOSE: NULL at a clean end, else what the peer did wrong (constant) */
};

enum nbd_state {
    NBD_STATE_FLAGS,   /* client flags expected */
    NBD_STATE_OPTION,  /* an option expected */
    NBD_STATE_SKIP,    /* skipping the data of an option that is too long */
    NBD_STATE_ASKED,   /* a LIST or LOOKUP waits for the driver */
    NBD_STATE_REQUEST, /* transmission: a request header expected */
    NBD_STATE_PAYLOAD, /* the driver is taking a write's payload */
    NBD_STATE_DRAIN,   /* dropping the payload of a refused write */
    NBD_STATE_CLOSED,
};

struct nbd_core {
    struct strbuf out; /* negotiation bytes for the client */
    enum nbd_state state;
    bool fixed, no_zeroes; /* client flags */
    bool structured;
    bool meta; /* base:allocation selected, for meta_export */
    char meta_export[NBD_NAME_MAX + 1];
    enum nbd_rep deny_reply; /* not 0: every option is refused with this reply */
    const char *deny_message;
    unsigned options; /* seen so far */
    uint32_t option;  /* being skipped, or waiting for the driver */
    unsigned infos;   /* its NBD_INFO_* requests, a bit each */
    bool meta_match;  /* one of its queries matches base:allocation */
    size_t need;
    uint64_t left;              /* bytes still to skip or drain */
    struct nbd_request drained; /* the refused write */
    const char *reason;         /* once closed */
    /* transmission */
    uint64_t size;
    unsigned flags; /* enum nbd_transmission_flag */
};

/* Starts a connection: the greeting is in core->out. */
void nbd_core_init(struct nbd_core *c);
void nbd_core_free(struct nbd_core *c);

/* From now on every option but ABORT is refused with `reply` (enum nbd_rep) and the constant text;
 * EXPORT_NAME, which has no error reply, closes. Does nothing in transmission. */
void nbd_core_deny(struct nbd_core *c, enum nbd_rep reply, const char *message);

/* Bytes that must be offered in one piece for progress; 1 to NBD_NEED_MAX. */
size_t nbd_core_need(const struct nbd_core *c);

/* Offers the n bytes that follow what was consumed so far. Returns the bytes consumed, which may be
 * 0, and fills *ret_step. Not to be called while LIST, LOOKUP or a payload is with the driver. */
size_t nbd_core_feed(struct nbd_core *c, const uint8_t *bytes, size_t n, struct nbd_step *ret_step);

/* Answers to LIST. The driver may send and reset core->out between the calls. */
void nbd_core_list(struct nbd_core *c, const char *name, const char *description);
void nbd_core_list_end(struct nbd_core *c);

/* Answers to LOOKUP. After found with step.start the connection is in transmission. After refuse of
 * an EXPORT_NAME the next feed gives CLOSE. `message` is for the client's user. */
void nbd_core_found(struct nbd_core *c, const struct nbd_export *e);
void nbd_core_refuse(struct nbd_core *c, enum nbd_rep reply, const char *message);

/* True when transmission has begun. */
bool nbd_core_in_transmission(const struct nbd_core *c);

/* The driver has taken all of a write's payload. */
void nbd_core_payload_taken(struct nbd_core *c);

/* ---- Replies ("Simple reply message", "Structured reply chunk message")
 * --------------------------
 *
 * Each writes the head of a reply or chunk at p and returns its length; the data, if any, follows
 * it on the wire. */
#define NBD_HEAD_MAX      280u /* room for any of them */
#define NBD_DATA_HEAD_MAX 32u  /* room for data, hole and end heads */

/* The whole reply of a request without payload, or of one that failed (`error` from enum nbd_error
 * with a text of which at most 250 bytes are sent). */
size_t nbd_reply_status(const struct nbd_core *c, const struct nbd_request *r, uint32_t error,
                        const char *message, uint8_t p[NBD_HEAD_MAX]);

/* True when a read may be answered in several chunks. */
bool nbd_reply_may_fragment(const struct nbd_core *c, const struct nbd_request *r);

/* `length` (> 0) bytes at `offset` of a read follow. Unless the read may be fragmented it is the
 * whole read. `last`: no further chunk. */
size_t nbd_reply_data(const struct nbd_core *c, const struct nbd_request *r, uint64_t offset,
                      uint32_t length, bool last, uint8_t p[NBD_DATA_HEAD_MAX]);

/* `length` (> 0) zero bytes at `offset`; only where the read may be fragmented. */
size_t nbd_reply_hole(const struct nbd_core *c, const struct nbd_request *r, uint64_t offset,
                      uint32_t length, bool last, uint8_t p[NBD_DATA_HEAD_MAX]);

/* Head of a BLOCK_STATUS reply; `count` (> 0) descriptors made by nbd_reply_extent follow. */
size_t nbd_reply_extents(const struct nbd_core *c, const struct nbd_request *r, uint32_t count,
                         uint8_t p[NBD_DATA_HEAD_MAX]);
#define NBD_EXTENT_SIZE 8u
void nbd_reply_extent(uint8_t p[NBD_EXTENT_SIZE], uint32_t length, bool hole);

/* The NBD error for what a command of that type ended with (ERR_* or 0): 0 or enum nbd_error. */
uint32_t nbd_error_of(enum nbd_command type, int err);

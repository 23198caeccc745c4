/* nbd_answer: requests and lookups of the NBD core, answered from a block store. See nbd_answer.h.
 *
 * What we announce and why it holds:
 *
 * CAN_MULTI_CONN ("Transmission flags"): effects of FLUSH and FUA must be visible across all
 *   connections. Nothing is cached per connection: a reply to a write is sent after block_write has
 *   returned, and block_flush makes durable every write that returned before, through whichever
 *   handle ("Several handles on one volume share its state"). So a flush on one connection covers
 *   the writes that were replied to on all.
 * SEND_FLUSH, SEND_FUA: block_flush and BLOCK_FUA are just that.
 * SEND_FAST_ZERO: zeroing whole blocks only changes the map, which a write does too, besides moving
 *   data. The core refuses FAST_ZERO off the block grid, where zeroes are written as data.
 * NO_HOLE is handed on; the store is thin and log-structured, where a kept block promises no space
 *   for overwriting it either. ENOSPC is possible on any write, and clients learn it by the error.
 *
 * base:allocation: a hole of the map is announced as HOLE|ZERO, all else as 0 (data of unknown
 * content, which is always allowed).
 *
 * Large reads of sparse areas: the extents are asked for first, and holes are sent as a few bytes
 * instead of being read. A write that runs at the same time as the read may then show in parts of
 * it, as with any unordered pair of requests.
 */
#include "proto/nbd/nbd_answer.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

/* Reads shorter than this are not worth a look at the extents. */
#define SPARSE_READ_MIN (64u << 10)

/* A BLOCK_STATUS reply has at most this many extents; clients ask again from where it ends. */
#define STATUS_EXTENTS_MAX 1024u

/* core->out is sent when it is this long. */
#define LIST_FLUSH (64u << 10)

_Static_assert(BLOCK_NAME_MAX <= NBD_NAME_MAX, "every volume can be named");
_Static_assert(BLOCK_IO_MAX >= NBD_PAYLOAD_MAX, "every request fits one call");
_Static_assert(BLOCK_SIZE == NBD_BLOCK_PREFERRED, "the grid FAST_ZERO is checked against");

static void describe(const struct block_info *info, char *text, size_t size)
{
    snprintf(text, size, "Filmroom volume of %llu bytes, %s%s", (unsigned long long)info->size,
             info->durability == BLOCK_EVERY_WRITE ? "every write durable" : "durable on flush",
             info->readonly ? ", read-only" : "");
}

static void export_of(const struct block_info *info, struct nbd_export *ret_export)
{
    memset(ret_export, 0, sizeof(*ret_export));
    memcpy(ret_export->name, info->name, sizeof(info->name));
    describe(info, ret_export->description, sizeof(ret_export->description));
    ret_export->size = info->size;
    ret_export->readonly = info->readonly;
    ret_export->multi_conn = true;
    ret_export->fast_zero = true;
}

/* ---- Steps of the negotiation --------------------------------------------------------------- */

static int list_infos(struct nbd_core *c, const struct block_info *infos, size_t count,
                      int (*flush)(void *arg), void *arg)
{
    char text[256];
    int err;

    for (size_t i = 0; i < count; i++) {
        describe(&infos[i], text, sizeof(text));
        nbd_core_list(c, infos[i].name, text);
        if (c->out.len >= LIST_FLUSH && (err = flush(arg)) < 0)
            return err;
    }
    return 0;
}

int nbd_answer_list(struct nbd_core *c, struct block_store *store, int (*flush)(void *arg),
                    void *arg)
{
    MEM_AUTO struct block_info *infos = NULL, *snapshots = NULL;
    size_t count = 0, snapshot_count = 0;
    int err = block_list(store, &infos, &count);

    if (err == 0)
        err = block_snapshots(store, NULL, &snapshots, &snapshot_count);
    if (err < 0) {
        nbd_core_refuse(c, NBD_REP_ERR_POLICY, err_text(err));
        return 0;
    }
    err = list_infos(c, infos, count, flush, arg);
    if (err == 0)
        err = list_infos(c, snapshots, snapshot_count, flush, arg);
    if (err < 0)
        return err;
    nbd_core_list_end(c);
    return 0;
}

/* The only volume's name; *ret_message tells why there is no default. */
static int default_name(struct block_store *store, char name[BLOCK_NAME_MAX + 1],
                        const char **ret_message)
{
    MEM_AUTO struct block_info *infos = NULL;
    size_t count = 0;
    int err = block_list(store, &infos, &count);

    if (err < 0) {
        *ret_message = err_text(err);
        return err;
    }
    if (count != 1) {
        *ret_message = count ? "there are several volumes: name one of them as the export"
                             : "there is no volume yet: create one first";
        return ERR_NOENT;
    }
    memcpy(name, infos[0].name, BLOCK_NAME_MAX + 1);
    return 0;
}

int nbd_answer_lookup(struct nbd_core *c, struct block_store *store, const struct nbd_step *step,
                      struct block_volume **ret_volume)
{
    char name[NBD_NAME_MAX + 1];
    struct block_volume *v = NULL;
    struct block_info info;
    struct nbd_export e;
    const char *message = NULL;
    int err = 0;

    memcpy(name, step->name, sizeof(name));
    if (!name[0])
        err = default_name(store, name, &message);
    if (err == 0 && step->start) {
        err = block_open(store, name, &v);
        if (err == 0)
            block_get_info(v, &info);
    } else if (err == 0) {
        err = block_stat(store, name, &info);
    }
    if (err < 0) {
        if (!message)
            message = err != ERR_NOENT && err != ERR_NAME ? err_text(err)
                      : strchr(name, '@')                 ? "there is no snapshot of that name"
                                                          : "there is no volume of that name";
        nbd_core_refuse(c, NBD_REP_ERR_UNKNOWN, message);
        return err;
    }
    export_of(&info, &e);
    nbd_core_found(c, &e);
    if (v)
        *ret_volume = v;
    return 0;
}

/* ---- Requests ------------------------------------------------------------------------------- */

size_t nbd_answer_room(const struct nbd_request *r)
{
    if (r->error)
        return 0;
    switch ((enum nbd_command)r->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return r->length;
    case NBD_CMD_BLOCK_STATUS:
        return STATUS_EXTENTS_MAX * (sizeof(struct block_extent) + NBD_EXTENT_SIZE);
    default:
        return 0;
    }
}

static void add_iov(struct nbd_answer *a, void *base, size_t len)
{
    CHECK(a->iov_count < sizeof(a->iov) / sizeof(a->iov[0]));
    a->iov[a->iov_count++] = (struct iovec){base, len};
}

/* A reply without data: success when `error` is 0. */
static void answer_status(const struct nbd_core *c, const struct nbd_request *r, uint32_t error,
                          const char *message, struct nbd_answer *a)
{
    a->iov_count = 0;
    add_iov(a, a->heads, nbd_reply_status(c, r, error, message, a->heads));
}

/* Makes the reply of what the store said, and returns it. */
static int answer_result(const struct nbd_core *c, const struct nbd_request *r, int err,
                         struct nbd_answer *a)
{
    answer_status(c, r, nbd_error_of((enum nbd_command)r->type, err),
                  err < 0 ? err_text(err) : NULL, a);
    return err;
}

static unsigned write_flags(const struct nbd_request *r)
{
    return (r->flags & NBD_CMD_FLAG_FUA ? BLOCK_FUA : 0u) |
           (r->flags & NBD_CMD_FLAG_NO_HOLE ? BLOCK_NO_HOLE : 0u);
}

/* Reads the whole range as one chunk. */
static int read_plain(const struct nbd_core *c, struct block_volume *v, const struct nbd_request *r,
                      uint8_t *buf, struct nbd_answer *a)
{
    int err = block_read(v, r->offset, buf, r->length);

    if (err < 0)
        return err;
    add_iov(a, a->heads, nbd_reply_data(c, r, r->offset, r->length, true, a->heads));
    add_iov(a, buf, r->length);
    return 0;
}

/* Reads the parts that are not holes, as chunks. What follows the last extent we have room for is
 * read as data. */
static int read_sparse(const struct nbd_core *c, struct block_volume *v,
                       const struct nbd_request *r, uint8_t *buf, struct nbd_answer *a)
{
    struct block_extent ext[NBD_ANSWER_CHUNKS - 1];
    size_t count = 0;
    uint32_t done = 0;
    int err = block_extents(v, r->offset, r->length, ext, NBD_ANSWER_CHUNKS - 1, &count);

    if (err < 0)
        return err;
    for (size_t i = 0; done < r->length; i++) {
        uint32_t left = r->length - done;
        uint64_t len = i < count && ext[i].length < left ? ext[i].length : left;
        uint64_t off = r->offset + done;
        uint8_t *head = a->heads + i * NBD_DATA_HEAD_MAX;
        bool last = len == left;

        CHECK(i < NBD_ANSWER_CHUNKS && len > 0);
        if (i < count && ext[i].hole) {
            add_iov(a, head, nbd_reply_hole(c, r, off, (uint32_t)len, last, head));
        } else {
            err = block_read(v, off, buf + done, len);
            if (err < 0)
                return err;
            add_iov(a, head, nbd_reply_data(c, r, off, (uint32_t)len, last, head));
            add_iov(a, buf + done, len);
        }
        done += (uint32_t)len;
    }
    return 0;
}

static int answer_read(const struct nbd_core *c, struct block_volume *v,
                       const struct nbd_request *r, uint8_t *buf, struct nbd_answer *a)
{
    int err;

    if (r->length == 0) {
        answer_status(c, r, 0, NULL, a);
        return 0;
    }
    if (r->length >= SPARSE_READ_MIN && nbd_reply_may_fragment(c, r))
        err = read_sparse(c, v, r, buf, a);
    else
        err = read_plain(c, v, r, buf, a);
    return err < 0 ? answer_result(c, r, err, a) : 0;
}

static int answer_extents(const struct nbd_core *c, struct block_volume *v,
                          const struct nbd_request *r, uint8_t *buf, struct nbd_answer *a)
{
    struct block_extent *ext = (struct block_extent *)(void *)buf;
    uint8_t *wire = buf + STATUS_EXTENTS_MAX * sizeof(*ext);
    size_t max = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_EXTENTS_MAX, count = 0;
    uint32_t left = r->length, n = 0;
    int err = block_extents(v, r->offset, r->length, ext, max, &count);

    if (err < 0)
        return answer_result(c, r, err, a);
    CHECK(count > 0 && count <= max);
    for (; n < count && left > 0; n++) {
        uint32_t len = ext[n].length < left ? (uint32_t)ext[n].length : left;

        nbd_reply_extent(wire + n * NBD_EXTENT_SIZE, len, ext[n].hole);
        left -= len;
    }
    add_iov(a, a->heads, nbd_reply_extents(c, r, n, a->heads));
    add_iov(a, wire, n * NBD_EXTENT_SIZE);
    return 0;
}

int nbd_answer_request(const struct nbd_core *c, struct block_volume *v,
                       const struct nbd_request *r, uint8_t *buf, struct nbd_answer *a)
{
    int err = 0;

    a->iov_count = 0;
    if (r->error) {
        answer_status(c, r, r->error, r->message, a);
        return 0;
    }
    switch ((enum nbd_command)r->type) {
    case NBD_CMD_READ:
        return answer_read(c, v, r, buf, a);
    case NBD_CMD_BLOCK_STATUS:
        return answer_extents(c, v, r, buf, a);
    case NBD_CMD_FLUSH:
        err = block_flush(v);
        break;
    case NBD_CMD_WRITE:
        err = r->length ? block_write(v, r->offset, buf, r->length, write_flags(r)) : 0;
        break;
    case NBD_CMD_TRIM:
        err = r->length ? block_discard(v, r->offset, r->length, write_flags(r)) : 0;
        break;
    case NBD_CMD_WRITE_ZEROES:
        err = r->length ? block_zero(v, r->offset, r->length, write_flags(r)) : 0;
        break;
    case NBD_CMD_CACHE: /* a hint; the volume's own caches decide */
    case NBD_CMD_DISC:
        break;
    }
    return answer_result(c, r, err, a);
}

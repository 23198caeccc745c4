/* nbd_core: negotiation and request parsing of an NBD server, without I/O. See nbd_core.h.
 *
 * Every state consumes whole messages (an option with its data, a request header), so there is no
 * half-parsed state: nbd_core_need() tells the driver how much to offer, at most NBD_NEED_MAX. Only
 * what is thrown away (data of overlong options, payload of refused writes) is taken in pieces.
 *
 * What a client may do wrong falls in two classes, as proto.md has it. What leaves the stream in
 * sync is answered with an error and the connection goes on. What does not (a wrong magic), what
 * the standard says must end the session (unknown client flags, an EXPORT_NAME that cannot be
 * served), and what only an attacker sends (endless options) closes it.
 */
#include "proto/nbd/nbd_core.h"

#include <errno.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"

#define MAGIC_INIT       0x4e42444d41474943ull /* "NBDMAGIC" */
#define MAGIC_OPTION     0x49484156454f5054ull /* "IHAVEOPT" */
#define MAGIC_REP        0x0003e889045565a9ull
#define MAGIC_REQUEST    0x25609513u
#define MAGIC_SIMPLE     0x67446698u
#define MAGIC_STRUCTURED 0x668e33efu

#define OPTION_HEADER  16u
#define REQUEST_HEADER 28u
#define NAME_WIRE_MAX  4096u /* "Conventions": longest string */
#define OUT_MAX        (1u << 20)
#define MESSAGE_MAX    250u

enum { CLIENT_FIXED_NEWSTYLE = 1, CLIENT_NO_ZEROES = 2 };
enum { HANDSHAKE_FIXED_NEWSTYLE = 1, HANDSHAKE_NO_ZEROES = 2 };

enum option_id { /* "Option types" */
                 OPT_EXPORT_NAME = 1,
                 OPT_ABORT = 2,
                 OPT_LIST = 3,
                 OPT_STARTTLS = 5,
                 OPT_INFO = 6,
                 OPT_GO = 7,
                 OPT_STRUCTURED_REPLY = 8,
                 OPT_LIST_META_CONTEXT = 9,
                 OPT_SET_META_CONTEXT = 10,
};

enum info_type { INFO_EXPORT = 0, INFO_NAME = 1, INFO_DESCRIPTION = 2, INFO_BLOCK_SIZE = 3 };

enum chunk_type { /* "Structured reply types" */
                  CHUNK_NONE = 0,
                  CHUNK_OFFSET_DATA = 1,
                  CHUNK_OFFSET_HOLE = 2,
                  CHUNK_BLOCK_STATUS = 5,
                  CHUNK_ERROR = (1 << 15) + 1,
};
enum { CHUNK_FLAG_DONE = 1 };
enum { STATE_HOLE = 1, STATE_ZERO = 2 };

static const char META_NAME[] = "base:allocation";
static const char META_NAMESPACE[] = "base:";
#define META_ID 1u

void nbd_core_init(struct nbd_core *c)
{
    uint8_t *p;

    memset(c, 0, sizeof(*c));
    c->out.max = OUT_MAX;
    c->state = NBD_STATE_FLAGS;
    c->need = 4;
    p = strbuf_room(&c->out, 18);
    codec_put_be64(p, MAGIC_INIT);
    codec_put_be64(p + 8, MAGIC_OPTION);
    codec_put_be16(p + 16, HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES);
}

void nbd_core_free(struct nbd_core *c)
{
    strbuf_free(&c->out);
}

void nbd_core_deny(struct nbd_core *c, enum nbd_rep reply, const char *message)
{
    c->deny_reply = reply;
    c->deny_message = message;
}

size_t nbd_core_need(const struct nbd_core *c)
{
    return c->need;
}

bool nbd_core_in_transmission(const struct nbd_core *c)
{
    return c->state == NBD_STATE_REQUEST || c->state == NBD_STATE_PAYLOAD ||
           c->state == NBD_STATE_DRAIN;
}

static void expect(struct nbd_core *c, enum nbd_state state, size_t need)
{
    c->state = state;
    c->need = need;
}

/* `reason` NULL: a clean end. */
static void close_with(struct nbd_core *c, const char *reason)
{
    expect(c, NBD_STATE_CLOSED, 1);
    c->reason = reason;
}

/* ---- Option replies ------------------------------------------------------------------------- */

/* Head of an option reply with room for n bytes of payload; NULL when core->out is full, which
 * ends the connection at the next feed. */
static uint8_t *rep_room(struct nbd_core *c, uint32_t option, enum nbd_rep type, size_t n)
{
    uint8_t *p = strbuf_room(&c->out, 20 + n);

    if (!p)
        return NULL;
    codec_put_be64(p, MAGIC_REP);
    codec_put_be32(p + 8, option);
    codec_put_be32(p + 12, (uint32_t)type);
    codec_put_be32(p + 16, (uint32_t)n);
    return p + 20;
}

static void rep(struct nbd_core *c, uint32_t option, enum nbd_rep type, const char *text)
{
    size_t n = text ? strnlen(text, NAME_WIRE_MAX) : 0;
    uint8_t *p = rep_room(c, option, type, n);

    if (p && n)
        memcpy(p, text, n);
}

static void rep_ack(struct nbd_core *c, uint32_t option)
{
    rep(c, option, NBD_REP_ACK, NULL);
}

static void rep_info_text(struct nbd_core *c, enum info_type type, const char *text)
{
    size_t n = strlen(text);
    uint8_t *p = rep_room(c, c->option, NBD_REP_INFO, 2 + n);

    if (!p)
        return;
    codec_put_be16(p, (uint16_t)type);
    memcpy(p + 2, text, n);
}

/* ---- Options -------------------------------------------------------------------------------- */

enum name_fate { NAME_GOOD, NAME_BAD, NAME_TOO_LONG };

/* Takes an export name of `len` bytes. NAME_TOO_LONG: legal, but no export of ours. */
static enum name_fate take_name(struct codec_reader *r, uint32_t len, char name[NBD_NAME_MAX + 1])
{
    const uint8_t *p = codec_read_bytes(r, len);

    if (!p || len > NAME_WIRE_MAX || memchr(p, 0, len))
        return NAME_BAD;
    if (len > NBD_NAME_MAX)
        return NAME_TOO_LONG;
    memcpy(name, p, len);
    name[len] = 0;
    return NAME_GOOD;
}

/* Hands the lookup to the driver, or answers it here when the name decides it. */
static void ask_lookup(struct nbd_core *c, enum name_fate fate, struct nbd_step *step)
{
    if (fate == NAME_BAD) {
        rep(c, c->option, NBD_REP_ERR_INVALID, "the export name is not valid");
    } else if (fate == NAME_TOO_LONG) {
        rep(c, c->option, NBD_REP_ERR_UNKNOWN, "no export has a name that long");
    } else {
        step->kind = NBD_STEP_LOOKUP;
        step->start = c->option == OPT_GO || c->option == OPT_EXPORT_NAME;
        c->state = NBD_STATE_ASKED;
    }
}

static void option_export_name(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step)
{
    enum name_fate fate = take_name(r, (uint32_t)codec_left(r), step->name);

    if (fate != NAME_GOOD)
        close_with(c, "EXPORT_NAME with a name that is not valid or too long");
    else
        ask_lookup(c, fate, step);
}

static void option_abort(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step)
{
    (void)r;
    (void)step;
    rep_ack(c, OPT_ABORT);
    close_with(c, NULL);
}

static void option_list(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step)
{
    if (codec_left(r) > 0) {
        rep(c, OPT_LIST, NBD_REP_ERR_INVALID, "LIST takes no data");
        return;
    }
    step->kind = NBD_STEP_LIST;
    c->state = NBD_STATE_ASKED;
}

/* INFO and GO: name, then the list of informations wanted. Unknown ones are ignored. */
static void option_go(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step)
{
    enum name_fate fate = take_name(r, codec_read_be32(r), step->name);
    uint16_t count = codec_read_be16(r);

    c->infos = 0;
    if (!codec_reader_ok(r) || codec_left(r) != 2u * count) {
        rep(c, c->option, NBD_REP_ERR_INVALID, "the option's lengths do not add up");
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        uint16_t info = codec_read_be16(r);

        if (info <= INFO_BLOCK_SIZE)
            c->infos |= 1u << info;
    }
    ask_lookup(c, fate, step);
}

static void option_structured(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step)
{
    (void)step;
    if (codec_left(r) > 0) {
        rep(c, OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
        return;
    }
    c->structured = true;
    rep_ack(c, OPT_STRUCTURED_REPLY);
}

static bool text_is(const uint8_t *p, size_t n, const char *text)
{
    return n == strlen(text) && memcmp(p, text, n) == 0;
}

/* "Metadata querying". LIST: no query or "base:" lists everything there is; SET: only exact names
 * select. Queries of other namespaces or unknown leaf names are ignored, as they must be. */
static void option_meta(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step)
{
    bool set = c->option == OPT_SET_META_CONTEXT;
    enum name_fate fate;
    uint32_t count;

    if (set)
        c->meta = false; /* whatever comes of this one, the former selection is gone */
    if (!c->structured) {
        rep(c, c->option, NBD_REP_ERR_INVALID, "negotiate structured replies first");
        return;
    }
    fate = take_name(r, codec_read_be32(r), step->name);
    count = codec_read_be32(r);
    c->meta_match = !set && count == 0;
    for (uint32_t i = 0; i < count && codec_reader_ok(r); i++) {
        uint32_t len = codec_read_be32(r);
        const uint8_t *p = codec_read_bytes(r, len);

        if (p && (text_is(p, len, META_NAME) || (!set && text_is(p, len, META_NAMESPACE))))
            c->meta_match = true;
    }
    if (!codec_reader_ok(r) || codec_left(r) > 0)
        rep(c, c->option, NBD_REP_ERR_INVALID, "the option's lengths do not add up");
    else
        ask_lookup(c, fate, step);
}

static const struct option_row {
    uint32_t id;
    void (*handle)(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step);
} option_rows[] = {
    {OPT_EXPORT_NAME, option_export_name},
    {OPT_ABORT, option_abort},
    {OPT_LIST, option_list},
    {OPT_INFO, option_go},
    {OPT_GO, option_go},
    {OPT_STRUCTURED_REPLY, option_structured},
    {OPT_LIST_META_CONTEXT, option_meta},
    {OPT_SET_META_CONTEXT, option_meta},
};

static void option_handle(struct nbd_core *c, struct codec_reader *r, struct nbd_step *step)
{
    if (!c->fixed && c->option != OPT_EXPORT_NAME) {
        close_with(c, "an option besides EXPORT_NAME without fixed newstyle");
        return;
    }
    if (c->deny_reply && c->option != OPT_ABORT) {
        if (c->option == OPT_EXPORT_NAME)
            close_with(c, NULL);
        else
            rep(c, c->option, c->deny_reply, c->deny_message);
        return;
    }
    for (size_t i = 0; i < sizeof(option_rows) / sizeof(option_rows[0]); i++) {
        if (option_rows[i].id == c->option) {
            option_rows[i].handle(c, r, step);
            return;
        }
    }
    /* STARTTLS too: we run in NOTLS mode. */
    rep(c, c->option, NBD_REP_ERR_UNSUP, "this option is not supported");
}

/* ---- Negotiation states --------------------------------------------------------------------- */

static size_t feed_flags(struct nbd_core *c, const uint8_t *bytes, size_t n)
{
    uint32_t flags;

    if (n < 4)
        return 0;
    flags = codec_get_be32(bytes);
    if (flags & ~(uint32_t)(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES)) {
        close_with(c, "unknown client flags");
        return 4;
    }
    c->fixed = flags & CLIENT_FIXED_NEWSTYLE;
    c->no_zeroes = flags & CLIENT_NO_ZEROES;
    expect(c, NBD_STATE_OPTION, OPTION_HEADER);
    return 4;
}

/* Data over NBD_OPTION_MAX: skip it, then refuse the option, so that the client may go on. */
static void begin_skip(struct nbd_core *c, uint32_t len)
{
    if (len > NBD_OPTION_SKIP_MAX || c->option == OPT_EXPORT_NAME || !c->fixed) {
        close_with(c, "an option with far too much data");
        return;
    }
    c->left = len;
    expect(c, NBD_STATE_SKIP, 1);
}

static size_t feed_option(struct nbd_core *c, const uint8_t *bytes, size_t n, struct nbd_step *step)
{
    struct codec_reader r = codec_reader_on(bytes, n);
    uint64_t magic;
    uint32_t len;

    if (n < OPTION_HEADER)
        return 0;
    magic = codec_read_be64(&r);
    c->option = codec_read_be32(&r);
    len = codec_read_be32(&r);
    if (magic != MAGIC_OPTION) {
        close_with(c, "wrong magic of an option");
        return OPTION_HEADER;
    }
    if (len > NBD_OPTION_MAX) {
        begin_skip(c, len);
    } else if (codec_left(&r) < len) {
        c->need = OPTION_HEADER + len;
        return 0;
    } else {
        expect(c, NBD_STATE_OPTION, OPTION_HEADER);
        r = codec_reader_on(bytes + OPTION_HEADER, len);
        option_handle(c, &r, step);
    }
    if (++c->options > NBD_OPTIONS_MAX)
        close_with(c, "too many options");
    return OPTION_HEADER + (len <= NBD_OPTION_MAX ? len : 0);
}

static size_t feed_skip(struct nbd_core *c, size_t n)
{
    size_t take = n < c->left ? n : (size_t)c->left;

    c->left -= take;
    if (c->left > 0)
        return take;
    expect(c, NBD_STATE_OPTION, OPTION_HEADER);
    if (c->option == OPT_ABORT)
        option_abort(c, NULL, NULL);
    else
        rep(c, c->option, NBD_REP_ERR_TOO_BIG, "the option's data is too long");
    if (c->option == OPT_SET_META_CONTEXT)
        c->meta = false;
    return take;
}

/* ---- The driver's answers ------------------------------------------------------------------- */

void nbd_core_list(struct nbd_core *c, const char *name, const char *description)
{
    size_t name_len = strlen(name), text_len = strlen(description);
    uint8_t *p;

    CHECK(c->state == NBD_STATE_ASKED && c->option == OPT_LIST);
    CHECK(name_len <= NBD_NAME_MAX && text_len <= NAME_WIRE_MAX);
    p = rep_room(c, OPT_LIST, NBD_REP_SERVER, 4 + name_len + text_len);
    if (!p)
        return;
    codec_put_be32(p, (uint32_t)name_len);
    memcpy(p + 4, name, name_len);
    memcpy(p + 4 + name_len, description, text_len);
}

void nbd_core_list_end(struct nbd_core *c)
{
    CHECK(c->state == NBD_STATE_ASKED && c->option == OPT_LIST);
    rep_ack(c, OPT_LIST);
    expect(c, NBD_STATE_OPTION, OPTION_HEADER);
}

static unsigned flags_of(const struct nbd_core *c, const struct nbd_export *e)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;

    if (e->readonly)
        flags |= NBD_FLAG_READ_ONLY;
    else
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                 (e->fast_zero ? NBD_FLAG_SEND_FAST_ZERO : 0u);
    if (e->multi_conn)
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    if (e->cache)
        flags |= NBD_FLAG_SEND_CACHE;
    if (c->structured)
        flags |= NBD_FLAG_SEND_DF;
    return flags;
}

static void start_transmission(struct nbd_core *c, const struct nbd_export *e)
{
    c->size = e->size;
    c->flags = flags_of(c, e);
    c->meta = c->meta && strcmp(c->meta_export, e->name) == 0;
    expect(c, NBD_STATE_REQUEST, REQUEST_HEADER);
}

/* "Newstyle negotiation": the one answer without a reply header. */
static void found_export_name(struct nbd_core *c, const struct nbd_export *e)
{
    uint8_t *p = strbuf_room(&c->out, c->no_zeroes ? 10 : 134);

    if (!p)
        return;
    memset(p, 0, c->no_zeroes ? 10 : 134);
    codec_put_be64(p, e->size);
    codec_put_be16(p + 8, (uint16_t)flags_of(c, e));
}

static void found_info(struct nbd_core *c, const struct nbd_export *e)
{
    uint8_t *p = rep_room(c, c->option, NBD_REP_INFO, 12);

    if (p) {
        codec_put_be16(p, INFO_EXPORT);
        codec_put_be64(p + 2, e->size);
        codec_put_be16(p + 10, (uint16_t)flags_of(c, e));
    }
    if (c->infos & 1u << INFO_NAME)
        rep_info_text(c, INFO_NAME, e->name);
    if (c->infos & 1u << INFO_DESCRIPTION)
        rep_info_text(c, INFO_DESCRIPTION, e->description);
    if (c->infos & 1u << INFO_BLOCK_SIZE) {
        p = rep_room(c, c->option, NBD_REP_INFO, 14);
        if (p) {
            codec_put_be16(p, INFO_BLOCK_SIZE);
            codec_put_be32(p + 2, NBD_BLOCK_MIN);
            codec_put_be32(p + 6, NBD_BLOCK_PREFERRED);
            codec_put_be32(p + 10, NBD_PAYLOAD_MAX);
        }
    }
    rep_ack(c, c->option);
}

static void found_meta(struct nbd_core *c, const struct nbd_export *e)
{
    bool set = c->option == OPT_SET_META_CONTEXT;

    if (c->meta_match) {
        uint8_t *p = rep_room(c, c->option, NBD_REP_META_CONTEXT, 4 + strlen(META_NAME));

        if (p) {
            codec_put_be32(p, set ? META_ID : 0);
            memcpy(p + 4, META_NAME, strlen(META_NAME));
        }
    }
    rep_ack(c, c->option);
    if (set) {
        c->meta = c->meta_match;
        memcpy(c->meta_export, e->name, sizeof(c->meta_export));
    }
}

void nbd_core_found(struct nbd_core *c, const struct nbd_export *e)
{
    CHECK(c->state == NBD_STATE_ASKED && c->option != OPT_LIST);
    CHECK(e->name[0] && memchr(e->name, 0, sizeof(e->name)));
    CHECK(memchr(e->description, 0, sizeof(e->description)));
    expect(c, NBD_STATE_OPTION, OPTION_HEADER);
    switch ((enum option_id)c->option) {
    case OPT_EXPORT_NAME:
        found_export_name(c, e);
        start_transmission(c, e);
        break;
    case OPT_GO:
        found_info(c, e);
        start_transmission(c, e);
        break;
    case OPT_INFO:
        found_info(c, e);
        break;
    default:
        found_meta(c, e);
    }
}

void nbd_core_refuse(struct nbd_core *c, enum nbd_rep reply, const char *message)
{
    CHECK(c->state == NBD_STATE_ASKED);
    if (c->option == OPT_EXPORT_NAME) {
        close_with(c, NULL); /* the only refusal there is */
        return;
    }
    rep(c, c->option, reply, message);
    expect(c, NBD_STATE_OPTION, OPTION_HEADER);
}

/* ---- Requests ------------------------------------------------------------------------------- */

static const struct command_row {
    bool known;
    bool range;      /* offset and length name a part of the export */
    bool writes;     /* refused on a read-only export */
    unsigned flags;  /* the command flags that are valid with it */
    unsigned needs;  /* the transmission flag that offers it */
    uint32_t beyond; /* the error past the end of the export ("Error values") */
} command_rows[] = {
    /* FUA is valid with every command ("Command flags"). */
    [NBD_CMD_READ] = {true, true, false, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, 0, NBD_EINVAL},
    [NBD_CMD_WRITE] = {true, true, true, NBD_CMD_FLAG_FUA, 0, NBD_ENOSPC},
    [NBD_CMD_FLUSH] = {true, false, false, NBD_CMD_FLAG_FUA, NBD_FLAG_SEND_FLUSH, 0},
    [NBD_CMD_TRIM] = {true, true, true, NBD_CMD_FLAG_FUA, NBD_FLAG_SEND_TRIM, NBD_EINVAL},
    [NBD_CMD_CACHE] = {true, true, false, NBD_CMD_FLAG_FUA, NBD_FLAG_SEND_CACHE, NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {true, true, true,
                              NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              NBD_FLAG_SEND_WRITE_ZEROES, NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {true, true, false, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE, 0,
                              NBD_EINVAL},
};

static void refuse(struct nbd_request *r, uint32_t error, const char *message)
{
    r->error = error;
    r->message = message;
}

/* What only single commands ask for. The range is known to be good. */
static void validate_special(const struct nbd_core *c, struct nbd_request *r)
{
    bool fast = r->flags & NBD_CMD_FLAG_FAST_ZERO;

    switch ((enum nbd_command)r->type) {
    case NBD_CMD_READ:
        if ((r->flags & NBD_CMD_FLAG_DF) && !(c->flags & NBD_FLAG_SEND_DF))
            refuse(r, NBD_EINVAL, "the DF flag was not negotiated");
        else if (r->length > NBD_PAYLOAD_MAX)
            refuse(r, c->structured ? NBD_EOVERFLOW : NBD_EINVAL,
                   "read at most 32 MiB in one request");
        break;
    case NBD_CMD_WRITE:
        if (r->length > NBD_PAYLOAD_MAX)
            refuse(r, NBD_EINVAL, "write at most 32 MiB in one request");
        break;
    case NBD_CMD_FLUSH:
        if (r->offset || r->length)
            refuse(r, NBD_EINVAL, "FLUSH takes no offset and no length");
        break;
    case NBD_CMD_WRITE_ZEROES:
        if (fast && !(c->flags & NBD_FLAG_SEND_FAST_ZERO))
            refuse(r, NBD_EINVAL, "the FAST_ZERO flag was not offered");
        else if (fast && (r->offset | r->length) % NBD_BLOCK_PREFERRED)
            refuse(r, NBD_ENOTSUP, "zeroing parts of blocks is not fast");
        break;
    case NBD_CMD_BLOCK_STATUS:
        if (!c->meta)
            refuse(r, NBD_EINVAL, "no metadata context was negotiated for this export");
        else if (r->length == 0)
            refuse(r, NBD_EINVAL, "a block status of no bytes");
        break;
    default:
        break;
    }
}

/* Sets r->error where the command must be refused. A read-only export comes first: it is what the
 * client's user must be told, even where the command was not offered because of it. */
static void validate(const struct nbd_core *c, struct nbd_request *r)
{
    const struct command_row *row;

    r->error = 0;
    r->message = NULL;
    if (r->type >= sizeof(command_rows) / sizeof(command_rows[0]) || !command_rows[r->type].known) {
        refuse(r, NBD_EINVAL, "unknown command");
        return;
    }
    row = &command_rows[r->type];
    if (row->writes && (c->flags & NBD_FLAG_READ_ONLY))
        refuse(r, NBD_EPERM, "the export is read-only");
    else if (r->flags & ~row->flags)
        refuse(r, NBD_EINVAL, "a flag that is not valid with this command");
    else if (row->needs & ~c->flags)
        refuse(r, NBD_EINVAL, "this command was not offered");
    else if (row->range && (r->offset > c->size || r->length > c->size - r->offset))
        refuse(r, row->beyond, "the range ends beyond the export");
    else
        validate_special(c, r);
}

/* "Request message". */
static size_t feed_request(struct nbd_core *c, const uint8_t *bytes, size_t n,
                           struct nbd_step *step)
{
    struct nbd_request *r = &step->request;
    struct codec_reader in = codec_reader_on(bytes, n);

    if (n < REQUEST_HEADER)
        return 0;
    if (codec_read_be32(&in) != MAGIC_REQUEST) {
        close_with(c, "wrong magic of a request");
        return REQUEST_HEADER;
    }
    r->flags = codec_read_be16(&in);
    r->type = codec_read_be16(&in);
    r->cookie = codec_read_be64(&in);
    r->offset = codec_read_be64(&in);
    r->length = codec_read_be32(&in);
    if (r->type == NBD_CMD_DISC) {
        close_with(c, NULL);
        return REQUEST_HEADER;
    }
    validate(c, r);
    if (r->type == NBD_CMD_WRITE && r->length > 0 && r->error) {
        c->drained = *r;
        c->left = r->length;
        expect(c, NBD_STATE_DRAIN, 1);
        return REQUEST_HEADER;
    }
    if (r->type == NBD_CMD_WRITE && r->length > 0)
        expect(c, NBD_STATE_PAYLOAD, REQUEST_HEADER);
    step->kind = NBD_STEP_REQUEST;
    return REQUEST_HEADER;
}

/* The refused write is handed out once its payload is gone: a client may not read replies before it
 * has sent its request. */
static size_t feed_drain(struct nbd_core *c, size_t n, struct nbd_step *step)
{
    size_t take = n < c->left ? n : (size_t)c->left;

    c->left -= take;
    if (c->left > 0)
        return take;
    expect(c, NBD_STATE_REQUEST, REQUEST_HEADER);
    step->kind = NBD_STEP_REQUEST;
    step->request = c->drained;
    return take;
}

void nbd_core_payload_taken(struct nbd_core *c)
{
    CHECK(c->state == NBD_STATE_PAYLOAD);
    expect(c, NBD_STATE_REQUEST, REQUEST_HEADER);
}

size_t nbd_core_feed(struct nbd_core *c, const uint8_t *bytes, size_t n, struct nbd_step *ret_step)
{
    size_t used = 0;

    CHECK(c->state != NBD_STATE_ASKED && c->state != NBD_STATE_PAYLOAD);
    ret_step->kind = NBD_STEP_MORE;
    ret_step->reason = NULL;
    if (c->out.overflow)
        close_with(c, "the replies to its options are too long");
    switch (c->state) {
    case NBD_STATE_FLAGS:
        used = feed_flags(c, bytes, n);
        break;
    case NBD_STATE_OPTION:
        used = feed_option(c, bytes, n, ret_step);
        break;
    case NBD_STATE_SKIP:
        used = feed_skip(c, n);
        break;
    case NBD_STATE_REQUEST:
        used = feed_request(c, bytes, n, ret_step);
        break;
    case NBD_STATE_DRAIN:
        used = feed_drain(c, n, ret_step);
        break;
    case NBD_STATE_ASKED:
    case NBD_STATE_PAYLOAD:
    case NBD_STATE_CLOSED:
        break;
    }
    if (c->state == NBD_STATE_CLOSED) {
        ret_step->kind = NBD_STEP_CLOSE;
        ret_step->reason = c->reason;
    }
    return used;
}

/* ---- Replies -------------------------------------------------------------------------------- */

static size_t put_simple(uint8_t *p, uint32_t error, uint64_t cookie)
{
    codec_put_be32(p, MAGIC_SIMPLE);
    codec_put_be32(p + 4, error);
    codec_put_be64(p + 8, cookie);
    return 16;
}

/* `length` counts the payload after these 20 bytes. */
static size_t put_chunk(uint8_t *p, bool done, enum chunk_type type, uint64_t cookie,
                        uint32_t length)
{
    codec_put_be32(p, MAGIC_STRUCTURED);
    codec_put_be16(p + 4, done ? CHUNK_FLAG_DONE : 0);
    codec_put_be16(p + 6, (uint16_t)type);
    codec_put_be64(p + 8, cookie);
    codec_put_be32(p + 16, length);
    return 20;
}

size_t nbd_reply_status(const struct nbd_core *c, const struct nbd_request *r, uint32_t error,
                        const char *message, uint8_t p[NBD_HEAD_MAX])
{
    size_t n = message ? strnlen(message, MESSAGE_MAX) : 0, head;

    /* Only reads must be answered with chunks, even at no bytes; errors are, for the text. */
    if (!c->structured || (!error && r->type != NBD_CMD_READ))
        return put_simple(p, error, r->cookie);
    if (!error)
        return put_chunk(p, true, CHUNK_NONE, r->cookie, 0);
    head = put_chunk(p, true, CHUNK_ERROR, r->cookie, (uint32_t)(6 + n));
    codec_put_be32(p + head, error);
    codec_put_be16(p + head + 4, (uint16_t)n);
    if (n)
        memcpy(p + head + 6, message, n);
    return head + 6 + n;
}

bool nbd_reply_may_fragment(const struct nbd_core *c, const struct nbd_request *r)
{
    return c->structured && !(r->flags & NBD_CMD_FLAG_DF);
}

size_t nbd_reply_data(const struct nbd_core *c, const struct nbd_request *r, uint64_t offset,
                      uint32_t length, bool last, uint8_t p[NBD_DATA_HEAD_MAX])
{
    size_t head;

    CHECK(length > 0 && length <= NBD_PAYLOAD_MAX);
    CHECK(nbd_reply_may_fragment(c, r) || (offset == r->offset && length == r->length && last));
    if (!c->structured)
        return put_simple(p, 0, r->cookie);
    head = put_chunk(p, last, CHUNK_OFFSET_DATA, r->cookie, 8 + length);
    codec_put_be64(p + head, offset);
    return head + 8;
}

size_t nbd_reply_hole(const struct nbd_core *c, const struct nbd_request *r, uint64_t offset,
                      uint32_t length, bool last, uint8_t p[NBD_DATA_HEAD_MAX])
{
    size_t head;

    CHECK(length > 0 && nbd_reply_may_fragment(c, r));
    head = put_chunk(p, last, CHUNK_OFFSET_HOLE, r->cookie, 12);
    codec_put_be64(p + head, offset);
    codec_put_be32(p + head + 8, length);
    return head + 12;
}

size_t nbd_reply_extents(const struct nbd_core *c, const struct nbd_request *r, uint32_t count,
                         uint8_t p[NBD_DATA_HEAD_MAX])
{
    size_t head;

    CHECK(c->structured && c->meta && count > 0 && count <= 1u << 20);
    head = put_chunk(p, true, CHUNK_BLOCK_STATUS, r->cookie, 4 + NBD_EXTENT_SIZE * count);
    codec_put_be32(p + head, META_ID);
    return head + 4;
}

void nbd_reply_extent(uint8_t p[NBD_EXTENT_SIZE], uint32_t length, bool hole)
{
    CHECK(length > 0);
    codec_put_be32(p, length);
    codec_put_be32(p + 4, hole ? STATE_HOLE | STATE_ZERO : 0);
}

uint32_t nbd_error_of(enum nbd_command type, int err)
{
    bool writes = type == NBD_CMD_WRITE || type == NBD_CMD_WRITE_ZEROES;

    if (err >= 0)
        return 0;
    if (err == ERR_RANGE && writes) /* the volume shrank after the export was offered */
        return NBD_ENOSPC;
    switch (err_errno(err)) {
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
    case ENOTSUP: /* kept for FAST_ZERO by the standard */
        return NBD_EINVAL;
    case ENOSPC:
        return NBD_ENOSPC;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

/* Fuzz target: one NBD connection against an in-memory export.
 *
 * The first byte chooses how the rest becomes the client's bytes: as they are, after a good
 * negotiation (simple or structured replies), or as a recipe of nearly valid options and requests,
 * which random bytes would hardly ever hit. The same bytes are fed in one piece and cut at
 * arbitrary borders into two stores. Checked: the answers are the same, they are a well-formed NBD
 * stream, and every request gets exactly one final reply with its own cookie.
 */
#include <stdint.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/strbuf.h"
#include "tests/unit/nbd/mem_block.h"
#include "tests/unit/nbd/nbd_play.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define VOLUME_SIZE (128u << 10)
#define SEND_MAX    (1u << 20)

#define HELLO  "\0\0\0\3"
#define STRUCT "IHAVEOPT\0\0\0\x8\0\0\0\0"
#define META                                                \
    "IHAVEOPT\0\0\0\xa\0\0\0\x1c\0\0\0\1a\0\0\0\1\0\0\0\xf" \
    "base:allocation"
#define GO "IHAVEOPT\0\0\0\7\0\0\0\7\0\0\0\1a\0\0"

/* ---- From fuzz bytes to a client's bytes ---------------------------------------------------- */

static void put(struct strbuf *s, uint64_t v, unsigned bytes)
{
    uint8_t raw[8];

    codec_put_be64(raw, v);
    strbuf_add(s, raw + 8 - bytes, bytes);
}

/* An option: id, with data that is fitting, or fuzz bytes. */
static void cook_option(struct strbuf *s, struct codec_reader *r)
{
    uint8_t id = codec_read_u8(r), shape = codec_read_u8(r);
    size_t n = shape % 32;
    const uint8_t *bytes = codec_read_bytes(r, n);

    if (!bytes)
        return;
    if (shape & 0x40) {
        strbuf_add(s, shape & 0x20 ? GO : META, shape & 0x20 ? sizeof(GO) - 1 : sizeof(META) - 1);
        return;
    }
    strbuf_adds(s, "IHAVEOPT");
    put(s, id % 13, 4);
    put(s, shape == 0xff ? n + 1 : n, 4);
    strbuf_add(s, bytes, n);
}

/* A request: fields near the interesting values. Payload follows writes, rarely of a wrong length.
 */
static void cook_request(struct strbuf *s, struct codec_reader *r, uint64_t cookie)
{
    uint8_t type = codec_read_u8(r), flags = codec_read_u8(r), where = codec_read_u8(r);
    uint32_t length = codec_read_le32(r) >> (where % 32);
    uint64_t offset = (uint64_t)codec_read_le16(r) << (where >> 5);

    if (type != 2) /* DISC ends the connection: seldom */
        type = (uint8_t)(type % 9 == 2 ? 0 : type % 9);
    put(s, flags == 77 ? 0x25609514 : 0x25609513, 4);
    put(s, flags & 0x80 ? flags & 0x1f : 0, 2);
    put(s, type, 2);
    put(s, cookie, 8);
    put(s, offset, 8);
    put(s, length, 4);
    if (type == NBD_CMD_WRITE && length < SEND_MAX - 64) {
        void *room = strbuf_room(s, length);

        if (room)
            memset(room, flags, length);
    }
}

static void cook(struct strbuf *s, const uint8_t *data, size_t size, uint8_t mode)
{
    struct codec_reader r = codec_reader_on(data, size);
    bool talking = mode & 4;

    strbuf_add(s, HELLO, 4);
    for (uint64_t i = 0; codec_left(&r) > 0 && codec_reader_ok(&r) && !s->overflow; i++) {
        if (!talking && codec_read_u8(&r) % 8 == 0) {
            strbuf_add(s, STRUCT, sizeof(STRUCT) - 1);
            strbuf_add(s, META, sizeof(META) - 1);
            strbuf_add(s, GO, sizeof(GO) - 1);
            talking = true;
        } else if (talking && i == 0) {
            strbuf_add(s, GO, sizeof(GO) - 1);
        } else if (talking) {
            cook_request(s, &r, i);
        } else {
            cook_option(s, &r);
        }
    }
}

/* ---- A client's view of the answers --------------------------------------------------------- */

/* Replies are matched with requests by order here: nbd_play answers one after the other. */
struct check {
    struct codec_reader in, out; /* the client's and the server's bytes */
    bool structured;
};

static void need(bool good)
{
    CHECK(good);
}

static void check_option_replies(struct check *k, uint32_t option, bool *ret_go)
{
    for (;;) {
        uint32_t type, len;

        if (codec_left(&k->out) == 0)
            return; /* refused by closing */
        need(codec_read_be64(&k->out) == 0x3e889045565a9);
        need(codec_read_be32(&k->out) == option);
        type = codec_read_be32(&k->out);
        len = codec_read_be32(&k->out);
        need(codec_read_bytes(&k->out, len) != NULL);
        need(type != NBD_REP_ACK || len == 0);
        if (type == NBD_REP_ACK && option == 8)
            k->structured = true;
        *ret_go = type == NBD_REP_ACK && option == 7;
        if (type == NBD_REP_ACK || type >= 0x80000000)
            return;
    }
}

/* Walks options until transmission; false when the answers end before. */
static bool check_negotiation(struct check *k)
{
    uint32_t flags;
    bool go = false;

    need(codec_read_bytes(&k->out, 18) != NULL);
    flags = codec_read_be32(&k->in);
    while (!go) {
        uint32_t option, len;
        uint64_t magic = codec_read_be64(&k->in);

        option = codec_read_be32(&k->in);
        len = codec_read_be32(&k->in);
        if (!codec_read_bytes(&k->in, len) || magic != 0x49484156454f5054)
            return false;
        if (option == 1) {
            if (codec_left(&k->out) == 0)
                return false;
            need(codec_read_bytes(&k->out, flags & 2 ? 10 : 134) != NULL);
            return true;
        }
        check_option_replies(k, option, &go);
    }
    return true;
}

static void check_reply(struct check *k, const struct nbd_request *r)
{
    uint32_t magic = codec_read_be32(&k->out), len;
    uint16_t flags, type;

    if (magic == 0x67446698) {
        uint32_t error = codec_read_be32(&k->out);

        need(codec_read_be64(&k->out) == r->cookie);
        need(!k->structured || (r->type != NBD_CMD_READ && error == 0));
        if (r->type == NBD_CMD_READ && error == 0)
            need(codec_read_bytes(&k->out, r->length) != NULL);
        return;
    }
    do {
        need(magic == 0x668e33ef && k->structured);
        flags = codec_read_be16(&k->out);
        type = codec_read_be16(&k->out);
        need(codec_read_be64(&k->out) == r->cookie);
        len = codec_read_be32(&k->out);
        need(codec_read_bytes(&k->out, len) != NULL);
        need(type == 0 || type == 1 || type == 2 || type == 5 || type == 0x8001);
        need(type == 0x8001 || type == 5 ? (flags & 1) : true);
        if (!(flags & 1))
            magic = codec_read_be32(&k->out);
    } while (!(flags & 1));
}

/* The server has said all it will: was it right to stop there? */
static void check_end(struct check *k, const struct nbd_play *p)
{
    bool whole = codec_left(&k->in) >= 28;
    uint32_t magic = codec_read_be32(&k->in), length;
    uint16_t type;

    codec_read_be16(&k->in);
    type = codec_read_be16(&k->in);
    codec_read_bytes(&k->in, 16);
    length = codec_read_be32(&k->in);
    if (!p->closed)
        need(!whole || (type == NBD_CMD_WRITE && codec_left(&k->in) < length));
    else if (p->reason)
        need(whole && magic != 0x25609513);
    else
        need(whole && type == NBD_CMD_DISC);
}

static void check_stream(const struct strbuf *sent, const struct nbd_play *p)
{
    struct check k = {codec_reader_on(sent->data, sent->len),
                      codec_reader_on(p->out.data, p->out.len), false};
    unsigned replies = 0;

    if (!check_negotiation(&k)) {
        need(p->requests == 0);
        return;
    }
    for (; codec_left(&k.out) > 0; replies++) {
        struct nbd_request r;

        need(codec_read_be32(&k.in) == 0x25609513);
        r.flags = codec_read_be16(&k.in);
        r.type = codec_read_be16(&k.in);
        r.cookie = codec_read_be64(&k.in);
        r.offset = codec_read_be64(&k.in);
        r.length = codec_read_be32(&k.in);
        if (r.type == NBD_CMD_WRITE)
            codec_read_bytes(&k.in, r.length);
        need(codec_reader_ok(&k.in));
        check_reply(&k, &r);
    }
    need(codec_reader_ok(&k.out));
    need(replies == p->requests);
    check_end(&k, p);
}

/* ---- The target ----------------------------------------------------------------------------- */

static void play(struct nbd_play *p, struct mem_block *m, const struct strbuf *send, uint32_t seed)
{
    size_t at = 0;

    nbd_play_init(p, mem_block_store(m));
    while (at < send->len && !p->closed) {
        size_t n = send->len - at;

        if (seed) {
            size_t piece;

            seed = seed * 1664525u + 1013904223u;
            piece = 1 + ((seed >> 8) % (seed >> 28 ? 4096 : 32));
            n = n < piece ? n : piece;
        }
        nbd_play_feed(p, send->data + at, n);
        at += n;
    }
}

static struct mem_block *new_store(uint8_t mode)
{
    struct mem_block *m = mem_block_new();

    CHECK(block_create(mem_block_store(m), "a", VOLUME_SIZE, BLOCK_EVERY_WRITE) == 0);
    mem_block_set_readonly(m, "a", (mode & 0xf0) == 0xf0);
    if (mode & 8)
        CHECK(block_create(mem_block_store(m), "b", 4096, BLOCK_ON_FLUSH) == 0);
    return m;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct strbuf send = {.max = SEND_MAX};
    struct nbd_play whole, cut;
    struct mem_block *m, *again;
    uint8_t mode;

    if (size < 5)
        return 0;
    mode = data[0];
    if ((mode & 3) == 1)
        strbuf_add(&send, HELLO GO, 4 + sizeof(GO) - 1);
    if ((mode & 3) == 2)
        strbuf_add(&send, HELLO STRUCT META GO,
                   4 + sizeof(STRUCT) - 1 + sizeof(META) - 1 + sizeof(GO) - 1);
    if ((mode & 3) == 3)
        cook(&send, data + 5, size - 5, mode);
    else
        strbuf_add(&send, data + 5, size - 5);
    m = new_store(mode);
    again = new_store(mode);
    play(&whole, m, &send, 0);
    play(&cut, again, &send, codec_get_le32(data + 1) | 1);
    check_stream(&send, &whole);
    need(whole.closed == cut.closed && whole.out.len == cut.out.len);
    need(memcmp(whole.out.data, cut.out.data, cut.out.len) == 0);
    nbd_play_free(&whole);
    nbd_play_free(&cut);
    mem_block_free(m);
    mem_block_free(again);
    strbuf_free(&send);
    return 0;
}

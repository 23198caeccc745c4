/* proto/nbd core: dialogues in bytes, each fed whole and byte by byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/unit/nbd/mem_block.h"
#include "tests/unit/nbd/nbd_play.h"
#include "tests/unit/nbd/nbd_words.h"

/* ---- Dialogues ------------------------------------------------------------------------------ */

#define HELLO  "d3 " /* client flags: fixed newstyle, no zeroes */
#define GREET  "'NBDMAGIC' 'IHAVEOPT' w3 "
#define SIZE   "1048576"
#define GO     "OPT d7 d10 d4 'disk' w0 "
#define STRUCT "OPT d8 d0 "
#define META   "OPT d10 d31 d4 'disk' d1 d15 'base:allocation' "
#define INFO7  "REP d7 d3 d12 w0 q" SIZE " "
#define ACK(o) "REP d" #o " d1 d0 "
/* A session in transmission, simple and structured, and what the server said so far. */
#define SIMPLE   HELLO GO
#define SIMPLE_R GREET INFO7 "w0x96d " ACK(7)
#define FANCY    HELLO STRUCT META GO
#define FANCY_R  GREET ACK(8) "REP d10 d4 d19 d1 'base:allocation' " ACK(10) INFO7 "w0x9ed " ACK(7)
#define RO       HELLO STRUCT "OPT d7 d8 d2 'ro' w0 "
#define RO_R     GREET ACK(8) "REP d7 d3 d12 w0 q8192 w0x18f " ACK(7)

enum fate { OPEN, CLOSED, BROKEN /* closed with a reason */ };

static const struct dialogue {
    const char *name, *send, *expect;
    enum fate fate;
} dialogues[] = {
    /* Newstyle negotiation. */
    {"silent client", "", GREET, OPEN},
    {"unknown client flags", "d4", GREET, BROKEN},
    {"export name", "d3 OPT d1 d4 'disk'", GREET "q" SIZE " w0x96d", OPEN},
    {"export name with zeroes", "d1 OPT d1 d4 'disk'", GREET "q" SIZE " w0x96d z:124", OPEN},
    {"export name, old client", "d0 OPT d1 d4 'disk'", GREET "q" SIZE " w0x96d z:124", OPEN},
    {"old client, other option", "d0 OPT d3 d0", GREET, BROKEN},
    {"export name unknown", "d3 OPT d1 d4 'nope'", GREET, CLOSED},
    {"export name with NUL", "d3 OPT d1 d4 'di' z:2", GREET, BROKEN},
    {"export name overlong", "d3 OPT d1 d5000 f:5000", GREET, BROKEN},
    {"export name far overlong", "d3 OPT d1 d70000", GREET, BROKEN},
    {"export name default, several", "d3 OPT d1 d0", GREET, CLOSED},
    {"bad option magic", HELLO "'IHAVEOPX' d3 d0", GREET, BROKEN},
    {"list", HELLO "OPT d3 d0",
     GREET
     "REP d3 d2 d61 d4 'disk' 'Filmroom volume of 1048576 bytes, every write durable' "
     "REP d3 d2 d64 d2 'ro' 'Filmroom volume of 8192 bytes, durable on flush, read-only' " ACK(3),
     OPEN},
    {"list with data", HELLO "OPT d3 d1 'x' " GO, GREET "ERR 3 3 " INFO7 "w0x96d " ACK(7), OPEN},
    {"abort", HELLO "OPT d2 d0", GREET ACK(2), CLOSED},
    {"abort with data", HELLO "OPT d2 d3 'bye'", GREET ACK(2), CLOSED},
    {"starttls", HELLO "OPT d5 d0 " GO, GREET "ERR 5 1 " INFO7 "w0x96d " ACK(7), OPEN},
    {"unknown option", HELLO "OPT d99 d4 'what' " GO, GREET "ERR 99 1 " INFO7 "w0x96d " ACK(7),
     OPEN},
    {"extended headers", HELLO "OPT d11 d0", GREET "ERR 11 1", OPEN},
    {"too big option", HELLO "OPT d3 d70000 z:70000 " GO, GREET "ERR 3 9 " INFO7 "w0x96d " ACK(7),
     OPEN},
    {"too big abort", HELLO "OPT d2 d70000 z:70000", GREET ACK(2), CLOSED},
    {"absurd option", HELLO "OPT d3 d0xffffffff", GREET, BROKEN},
    {"truncated option", HELLO "OPT d7 d10 d4 'dis'", GREET, OPEN},
    {"go unknown", HELLO "OPT d7 d10 d4 'nope' w0", GREET "ERR 7 6", OPEN},
    {"go default, several", HELLO "OPT d7 d6 d0 w0", GREET "ERR 7 6", OPEN},
    {"go overlong name", HELLO "OPT d7 d306 d300 f:300 w0", GREET "ERR 7 6", OPEN},
    {"go name past the end", HELLO "OPT d7 d10 d5 'disk' w0", GREET "ERR 7 3", OPEN},
    {"go name length huge", HELLO "OPT d7 d10 d0xffffffff 'disk' w0", GREET "ERR 7 3", OPEN},
    {"go infos missing", HELLO "OPT d7 d10 d4 'disk' w1", GREET "ERR 7 3", OPEN},
    {"go infos too many", HELLO "OPT d7 d12 d4 'disk' w0 w3", GREET "ERR 7 3", OPEN},
    {"go too short", HELLO "OPT d7 d2 w0", GREET "ERR 7 3", OPEN},
    {"go with NUL", HELLO "OPT d7 d10 d4 'dis' z:1 w0", GREET "ERR 7 3", OPEN},
    {"info", HELLO "OPT d6 d10 d4 'disk' w0", GREET "REP d6 d3 d12 w0 q" SIZE " w0x96d " ACK(6),
     OPEN},
    {"info, all and an unknown one", HELLO "OPT d6 d20 d4 'disk' w5 w0 w1 w2 w3 w77",
     GREET "REP d6 d3 d12 w0 q" SIZE " w0x96d REP d6 d3 d6 w1 'disk' "
           "REP d6 d3 d55 w2 'Filmroom volume of 1048576 bytes, every write durable' "
           "REP d6 d3 d14 w3 d1 d4096 d33554432 " ACK(6),
     OPEN},
    {"info, then go", HELLO "OPT d6 d10 d4 'disk' w0 " GO,
     GREET "REP d6 d3 d12 w0 q" SIZE " w0x96d " ACK(6) INFO7 "w0x96d " ACK(7), OPEN},
    /* Structured replies and metadata contexts. */
    {"structured", HELLO STRUCT STRUCT, GREET ACK(8) ACK(8), OPEN},
    {"structured with data", HELLO "OPT d8 d1 'x'", GREET "ERR 8 3", OPEN},
    {"meta without structured", HELLO META, GREET "ERR 10 3", OPEN},
    {"meta list, no query", HELLO STRUCT "OPT d9 d12 d4 'disk' d0",
     GREET ACK(8) "REP d9 d4 d19 d0 'base:allocation' " ACK(9), OPEN},
    {"meta list, namespace", HELLO STRUCT "OPT d9 d21 d4 'disk' d1 d5 'base:'",
     GREET ACK(8) "REP d9 d4 d19 d0 'base:allocation' " ACK(9), OPEN},
    {"meta list, others", HELLO STRUCT "OPT d9 d26 d4 'disk' d1 d10 'qemu:dirty'",
     GREET ACK(8) ACK(9), OPEN},
    {"meta set, namespace selects nothing", HELLO STRUCT "OPT d10 d21 d4 'disk' d1 d5 'base:'",
     GREET ACK(8) ACK(10), OPEN},
    {"meta set, no query", HELLO STRUCT "OPT d10 d12 d4 'disk' d0", GREET ACK(8) ACK(10), OPEN},
    {"meta set twice the same",
     HELLO STRUCT "OPT d10 d50 d4 'disk' d2 d15 'base:allocation' d15 'base:allocation'",
     GREET ACK(8) "REP d10 d4 d19 d1 'base:allocation' " ACK(10), OPEN},
    {"meta set, unknown export", HELLO STRUCT "OPT d10 d31 d4 'nope' d1 d15 'base:allocation'",
     GREET ACK(8) "ERR 10 6", OPEN},
    {"meta query past the end", HELLO STRUCT "OPT d10 d31 d4 'disk' d1 d16 'base:allocation'",
     GREET ACK(8) "ERR 10 3", OPEN},
    {"meta too many queries said", HELLO STRUCT "OPT d10 d12 d4 'disk' d0xffffffff",
     GREET ACK(8) "ERR 10 3", OPEN},
    {"meta trailing bytes", HELLO STRUCT "OPT d10 d13 d4 'disk' d0 'x'", GREET ACK(8) "ERR 10 3",
     OPEN},
    {"meta dropped by a later failure", HELLO STRUCT META "OPT d10 d0 " GO "REQ w0 w7 q1 q0 d4096",
     GREET ACK(8) "REP d10 d4 d19 d1 'base:allocation' " ACK(10) "ERR 10 3 " INFO7
                                                                 "w0x9ed " ACK(7) "ERRC 1 22",
     OPEN},
    {"meta of another export", HELLO STRUCT META "OPT d7 d8 d2 'ro' w0 REQ w0 w7 q1 q0 d4096",
     GREET ACK(8) "REP d10 d4 d19 d1 'base:allocation' " ACK(
         10) "REP d7 d3 d12 w0 q8192 w0x18f " ACK(7) "ERRC 1 22",
     OPEN},
    /* Transmission, simple replies. */
    {"disconnect", SIMPLE "REQ w0 w2 q9 q0 d0", SIMPLE_R, CLOSED},
    {"bad request magic", SIMPLE "d0x25609514 w0 w0 q9 q0 d16", SIMPLE_R, BROKEN},
    {"read zeroes", SIMPLE "REQ w0 w0 q7 q4096 d16", SIMPLE_R "OK q7 z:16", OPEN},
    {"write, read back, unaligned",
     SIMPLE "REQ w0 w1 q1 q4090 d12 'hello, world' "
            "REQ w0 w0 q2 q4088 d16",
     SIMPLE_R "OK q1 OK q2 z:2 'hello, world' z:2", OPEN},
    {"write fua, flush", SIMPLE "REQ w1 w1 q1 q0 d4 'data' REQ w0 w3 q2 q0 d0",
     SIMPLE_R "OK q1 OK q2", OPEN},
    {"fua on anything", SIMPLE "REQ w1 w0 q1 q0 d4 REQ w1 w3 q2 q0 d0", SIMPLE_R "OK q1 z:4 OK q2",
     OPEN},
    {"flush with offset", SIMPLE "REQ w0 w3 q2 q4096 d0", SIMPLE_R "BAD d22 q2", OPEN},
    {"last byte", SIMPLE "REQ w0 w0 q1 q1048575 d1", SIMPLE_R "OK q1 z:1", OPEN},
    {"read past the end", SIMPLE "REQ w0 w0 q1 q1048575 d2", SIMPLE_R "BAD d22 q1", OPEN},
    {"read far past the end", SIMPLE "REQ w0 w0 q1 q0xffffffffffffffff d2", SIMPLE_R "BAD d22 q1",
     OPEN},
    {"write past the end is drained", SIMPLE "REQ w0 w1 q1 q1048575 d2 'xy' REQ w0 w0 q2 q0 d1",
     SIMPLE_R "BAD d28 q1 OK q2 z:1", OPEN},
    {"write too long is drained", SIMPLE "REQ w0 w1 q1 q0 d33554433 z:33554433 REQ w0 w0 q2 q0 d1",
     SIMPLE_R "BAD d28 q1 OK q2 z:1", OPEN},
    {"write with a bad flag is drained", SIMPLE "REQ w4 w1 q1 q0 d2 'xy' REQ w0 w0 q2 q0 d1",
     SIMPLE_R "BAD d22 q1 OK q2 z:1", OPEN},
    {"read with df, simple", SIMPLE "REQ w4 w0 q1 q0 d2", SIMPLE_R "BAD d22 q1", OPEN},
    {"nothing to do",
     SIMPLE "REQ w0 w0 q1 q0 d0 REQ w0 w1 q2 q0 d0 REQ w0 w4 q3 q0 d0 "
            "REQ w0 w6 q4 q0 d0",
     SIMPLE_R "OK q1 OK q2 OK q3 OK q4", OPEN},
    {"unknown command", SIMPLE "REQ w0 w99 q1 q0 d2 REQ w0 w0 q2 q0 d1",
     SIMPLE_R "BAD d22 q1 OK q2 z:1", OPEN},
    {"resize is unknown", SIMPLE "REQ w0 w8 q1 q0 d2", SIMPLE_R "BAD d22 q1", OPEN},
    {"cache was not offered", SIMPLE "REQ w0 w5 q1 q0 d2", SIMPLE_R "BAD d22 q1", OPEN},
    {"block status without structured", SIMPLE "REQ w0 w7 q1 q0 d2", SIMPLE_R "BAD d22 q1", OPEN},
    {"trim",
     SIMPLE "REQ w0 w1 q1 q4096 d4096 f:4096 REQ w0 w4 q2 q4096 d4096 "
            "REQ w0 w0 q3 q4096 d4",
     SIMPLE_R "OK q1 OK q2 OK q3 z:4", OPEN},
    {"trim past the end", SIMPLE "REQ w0 w4 q2 q4096 d1048576", SIMPLE_R "BAD d22 q2", OPEN},
    {"write zeroes",
     SIMPLE "REQ w0 w1 q1 q4094 d4 'abcd' REQ w3 w6 q2 q4095 d2 "
            "REQ w0 w0 q3 q4094 d4",
     SIMPLE_R "OK q1 OK q2 OK q3 'a' z:2 'd'", OPEN},
    {"write zeroes past the end", SIMPLE "REQ w0 w6 q2 q4096 d1048576", SIMPLE_R "BAD d28 q2",
     OPEN},
    {"fast zero of blocks", SIMPLE "REQ w16 w6 q2 q4096 d8192", SIMPLE_R "OK q2", OPEN},
    {"fast zero off the grid", SIMPLE "REQ w16 w6 q2 q4096 d8191", SIMPLE_R "BAD d95 q2", OPEN},
    /* Transmission, structured replies. */
    {"structured read", FANCY "REQ w0 w0 q7 q4096 d16", FANCY_R "CHUNK w1 w1 q7 d24 q4096 z:16",
     OPEN},
    {"structured read of nothing", FANCY "REQ w0 w0 q7 q0 d0", FANCY_R "CHUNK w1 w0 q7 d0", OPEN},
    {"structured write", FANCY "REQ w0 w1 q7 q0 d2 'ab'", FANCY_R "OK q7", OPEN},
    {"structured error", FANCY "REQ w0 w0 q7 q1048576 d1", FANCY_R "ERRC 7 22", OPEN},
    {"structured write error", FANCY "REQ w0 w1 q7 q1048576 d1 'x'", FANCY_R "ERRC 7 28", OPEN},
    {"read of a hole", FANCY "REQ w0 w0 q7 q0 d1048576", FANCY_R "CHUNK w1 w2 q7 d12 q0 d1048576",
     OPEN},
    {"read of a hole, df", FANCY "REQ w4 w0 q7 q0 d65536",
     FANCY_R "CHUNK w1 w1 q7 d65544 q0 z:65536", OPEN},
    {"read of data in holes", FANCY "REQ w0 w1 q1 q8192 d4096 f:4096 REQ w0 w0 q7 q1 d65536",
     FANCY_R "OK q1 CHUNK w0 w2 q7 d12 q1 d8191 CHUNK w0 w1 q7 d4104 q8192 f:4096 "
             "CHUNK w1 w2 q7 d12 q12288 d53249",
     OPEN},
    {"read of a hole, simple", SIMPLE "REQ w0 w0 q7 q0 d65536", SIMPLE_R "OK q7 z:65536", OPEN},
    {"block status", FANCY "REQ w0 w1 q1 q8192 d4096 f:4096 REQ w0 w7 q7 q1 d65536",
     FANCY_R "OK q1 CHUNK w1 w5 q7 d28 d1 d8191 d3 d4096 d0 d53249 d3", OPEN},
    {"block status, one", FANCY "REQ w0 w1 q1 q8192 d4096 f:4096 REQ w8 w7 q7 q1 d65536",
     FANCY_R "OK q1 CHUNK w1 w5 q7 d12 d1 d8191 d3", OPEN},
    {"block status of nothing", FANCY "REQ w0 w7 q7 q0 d0", FANCY_R "ERRC 7 22", OPEN},
    {"block status past the end", FANCY "REQ w0 w7 q7 q1 d1048576", FANCY_R "ERRC 7 22", OPEN},
    /* Read-only. */
    {"read-only",
     RO "REQ w0 w1 q1 q0 d1 'x' REQ w0 w4 q2 q0 d1 REQ w0 w6 q3 q0 d1 REQ w0 w3 q4 q0 d0",
     RO_R "ERRC 1 1 ERRC 2 1 ERRC 3 1 OK q4", OPEN},
};

static struct mem_block *new_store(void)
{
    struct mem_block *m = mem_block_new();
    struct block_store *bs = mem_block_store(m);

    assert_int_equal(block_create(bs, "ro", 8192, BLOCK_ON_FLUSH), 0);
    assert_int_equal(block_create(bs, "disk", 1048576, BLOCK_EVERY_WRITE), 0);
    mem_block_set_readonly(m, "ro", true);
    return m;
}

static void check_fate(const struct nbd_play *p, enum fate fate)
{
    assert_int_equal(p->closed, fate != OPEN);
    assert_int_equal(p->reason != NULL, fate == BROKEN);
}

static void run_dialogue(const struct dialogue *d, size_t piece)
{
    struct mem_block *m = new_store();
    struct strbuf send = STRBUF_INIT;
    struct nbd_play p;

    nbd_words_build(&send, d->send);
    nbd_play_init(&p, mem_block_store(m));
    if (send.len > (1u << 20)) /* byte by byte would take too long */
        piece = piece == 1 ? 65521 : piece;
    for (size_t at = 0; at < send.len; at += piece)
        nbd_play_feed(&p, send.data + at, send.len - at < piece ? send.len - at : piece);
    nbd_words_match_all(&p.out, d->expect);
    check_fate(&p, d->fate);
    nbd_play_free(&p);
    strbuf_free(&send);
    mem_block_free(m);
}

static void test_dialogues(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(dialogues) / sizeof(dialogues[0]); i++) {
        print_message("  %s\n", dialogues[i].name);
        run_dialogue(&dialogues[i], SIZE_MAX);
        run_dialogue(&dialogues[i], 1);
        run_dialogue(&dialogues[i], 17);
    }
}

static void talk(struct nbd_play *p, const char *words, const char *expect)
{
    struct strbuf send = STRBUF_INIT;

    strbuf_reset(&p->out);
    nbd_words_build(&send, words);
    nbd_play_feed(p, send.data, send.len);
    nbd_words_match_all(&p->out, expect);
    strbuf_free(&send);
}

/* ---- What a table cannot say ---------------------------------------------------------------- */

static void test_default_export(void **state)
{
    struct mem_block *m = mem_block_new();
    struct block_store *bs = mem_block_store(m);
    struct nbd_play p;

    (void)state;
    nbd_play_init(&p, bs);
    talk(&p, HELLO "OPT d7 d6 d0 w0", "ERR 7 6");
    assert_int_equal(block_create(bs, "disk", 1048576, BLOCK_EVERY_WRITE), 0);
    talk(&p, "OPT d7 d8 d0 w1 w1", INFO7 "w0x96d REP d7 d3 d6 w1 'disk' " ACK(7));
    assert_int_equal(block_remove(bs, "disk"), ERR_BUSY); /* held open */
    nbd_play_free(&p);
    assert_int_equal(block_remove(bs, "disk"), 0);
    mem_block_free(m);
}

/* A context selected for "" is of the export that "" means. */
static void test_default_meta(void **state)
{
    struct mem_block *m = mem_block_new();
    struct nbd_play p;

    (void)state;
    assert_int_equal(block_create(mem_block_store(m), "disk", 1048576, BLOCK_EVERY_WRITE), 0);
    nbd_play_init(&p, mem_block_store(m));
    talk(&p, HELLO STRUCT "OPT d10 d27 d0 d1 d15 'base:allocation' " GO,
         ACK(8) "REP d10 d4 d19 d1 'base:allocation' " ACK(10) INFO7 "w0x9ed " ACK(7));
    talk(&p, "REQ w0 w7 q7 q0 d4096", "CHUNK w1 w5 q7 d12 d1 d4096 d3");
    nbd_play_free(&p);
    mem_block_free(m);
}

static void test_deny(void **state)
{
    struct mem_block *m = new_store();
    struct nbd_play p;

    (void)state;
    nbd_play_init(&p, mem_block_store(m));
    nbd_core_deny(&p.core, NBD_REP_ERR_SHUTDOWN, "stopping");
    talk(&p, HELLO GO "OPT d3 d0",
         "REP d7 d0x80000007 d8 'stopping' REP d3 d0x80000007 d8 'stopping'");
    talk(&p, "OPT d2 d0", ACK(2));
    check_fate(&p, CLOSED);
    nbd_play_free(&p);
    nbd_play_init(&p, mem_block_store(m));
    nbd_core_deny(&p.core, NBD_REP_ERR_POLICY, "full");
    talk(&p, HELLO "OPT d1 d4 'disk'", "");
    check_fate(&p, CLOSED);
    nbd_play_free(&p);
    mem_block_free(m);
}

static void test_endless_options(void **state)
{
    struct mem_block *m = new_store();
    struct nbd_play p;

    (void)state;
    nbd_play_init(&p, mem_block_store(m));
    talk(&p, HELLO, "");
    for (unsigned i = 0; i < NBD_OPTIONS_MAX; i++)
        talk(&p, "OPT d77 d0", "ERR 77 1");
    assert_false(p.closed);
    talk(&p, "OPT d77 d0", "ERR 77 1");
    check_fate(&p, BROKEN);
    nbd_play_free(&p);
    mem_block_free(m);
}

/* Many volumes: the list goes out in parts and none is missing. */
static void test_long_list(void **state)
{
    struct mem_block *m = mem_block_new();
    struct codec_reader r;
    struct nbd_play p;
    char name[32];
    unsigned n = 0;

    (void)state;
    for (unsigned i = 0; i < 5000; i++) {
        snprintf(name, sizeof(name), "volume-%05u", i);
        assert_int_equal(block_create(mem_block_store(m), name, 4096, BLOCK_EVERY_WRITE), 0);
    }
    nbd_play_init(&p, mem_block_store(m));
    strbuf_reset(&p.out);
    nbd_play_feed(&p, "\0\0\0\3IHAVEOPT\0\0\0\3\0\0\0\0", 20);
    r = codec_reader_on(p.out.data, p.out.len);
    for (;; n++) {
        codec_read_bytes(&r, 12);
        if (codec_read_be32(&r) != 2)
            break;
        codec_read_bytes(&r, codec_read_be32(&r));
    }
    assert_int_equal(n, 5000);
    assert_int_equal(codec_read_be32(&r), 0);
    assert_true(codec_reader_ok(&r) && codec_left(&r) == 0);
    nbd_play_free(&p);
    mem_block_free(m);
}

static int fail_with(void *arg, char op, uint64_t off, uint64_t len)
{
    (void)op;
    (void)off;
    (void)len;
    return *(int *)arg;
}

static void test_errors(void **state)
{
    struct mem_block *m = new_store();
    int err = ERR_LOST;
    struct mem_block_hooks hooks = {fail_with, &err};
    struct nbd_play p;

    (void)state;
    nbd_play_init(&p, mem_block_store(m));
    talk(&p, FANCY, &(FANCY_R)[sizeof(GREET) - 1]);
    mem_block_set_hooks(m, &hooks);
    talk(&p, "REQ w0 w0 q1 q0 d512", "ERRC 1 5");
    talk(&p, "REQ w0 w0 q1 q0 d1048576", "ERRC 1 5"); /* the extents fail */
    talk(&p, "REQ w0 w7 q1 q0 d512", "ERRC 1 5");
    err = ERR_NOSPC;
    talk(&p, "REQ w0 w1 q1 q0 d2 'ab'", "ERRC 1 28");
    err = ERR_RANGE; /* as after a shrink */
    talk(&p, "REQ w0 w1 q1 q0 d2 'ab'", "ERRC 1 28");
    talk(&p, "REQ w0 w0 q1 q0 d2", "ERRC 1 22");
    err = ERR_SHUTDOWN;
    talk(&p, "REQ w0 w3 q1 q0 d0", "ERRC 1 108");
    err = ERR_READONLY;
    talk(&p, "REQ w0 w4 q1 q0 d4096", "ERRC 1 1");
    for (err = -1; err > -(int)ERR_COUNT_; err--)
        assert_int_not_equal(nbd_error_of(NBD_CMD_READ, err), 0);
    assert_int_equal(nbd_error_of(NBD_CMD_READ, 0), 0);
    nbd_play_free(&p);
    mem_block_free(m);
}

static void test_flags_reach_the_store(void **state)
{
    struct mem_block *m = new_store();
    struct mem_block_counts n;
    struct nbd_play p;

    (void)state;
    nbd_play_init(&p, mem_block_store(m));
    talk(&p, SIMPLE, &(SIMPLE_R)[sizeof(GREET) - 1]);
    talk(&p, "REQ w1 w1 q1 q0 d1 'x' REQ w1 w6 q1 q0 d1 REQ w1 w4 q1 q0 d1 REQ w0 w1 q1 q0 d1 'x'",
         "OK q1 OK q1 OK q1 OK q1");
    n = mem_block_get_counts(m);
    assert_int_equal(n.fuas, 3);
    assert_int_equal(n.writes, 2);
    assert_int_equal(n.zeroes, 1);
    assert_int_equal(n.discards, 1);
    assert_int_equal(n.flushes, 0);
    talk(&p, "REQ w0 w3 q1 q0 d0", "OK q1");
    assert_int_equal(mem_block_get_counts(m).flushes, 1);
    nbd_play_free(&p);
    mem_block_free(m);
}

/* More extents than a reply holds: the reads fill up with data, the status stops early. */
static void test_many_extents(void **state)
{
    struct mem_block *m = mem_block_new();
    struct block_volume *v;
    struct nbd_play p;
    uint64_t at = 0;
    size_t chunks = 0;
    struct codec_reader r;

    (void)state;
    assert_int_equal(block_create(mem_block_store(m), "disk", 16 << 20, BLOCK_EVERY_WRITE), 0);
    assert_int_equal(block_open(mem_block_store(m), "disk", &v), 0);
    for (uint64_t i = 0; i < 4096; i += 2)
        assert_int_equal(block_write(v, i * 4096, "Z", 1, 0), 0);
    block_close(v);
    nbd_play_init(&p, mem_block_store(m));
    nbd_play_feed(&p, "\0\0\0\3IHAVEOPT\0\0\0\x8\0\0\0\0", 20);
    strbuf_reset(&p.out);
    talk(&p, META, "REP d10 d4 d19 d1 'base:allocation' " ACK(10));
    talk(&p, GO, "REP d7 d3 d12 w0 q16777216 w0x9ed " ACK(7));
    strbuf_reset(&p.out);
    nbd_play_feed(&p, "\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\1\0\0\0", 28);
    r = codec_reader_on(p.out.data, p.out.len);
    while (codec_left(&r)) {
        bool hole;
        uint32_t len;

        assert_int_equal(codec_read_be32(&r), 0x668e33ef);
        assert_int_equal(codec_read_be16(&r), ++chunks == NBD_ANSWER_CHUNKS);
        hole = codec_read_be16(&r) == 2;
        codec_read_be64(&r);
        len = codec_read_be32(&r) - 8;
        assert_true(codec_read_be64(&r) == at);
        at += hole ? codec_read_be32(&r) : len;
        if (!hole)
            assert_int_equal(*codec_read_bytes(&r, len), at - len < 15 * 4096 ? 'Z' : 0);
    }
    assert_int_equal(at, 16 << 20);
    assert_true(codec_reader_ok(&r));
    strbuf_reset(&p.out);
    nbd_play_feed(&p, "\x25\x60\x95\x13\0\0\0\7\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\1\0\0\0", 28);
    assert_int_equal(p.out.len, 20 + 4 + 8 * 1024);
    nbd_play_free(&p);
    mem_block_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dialogues),       cmocka_unit_test(test_default_export),
        cmocka_unit_test(test_default_meta),    cmocka_unit_test(test_deny),
        cmocka_unit_test(test_endless_options), cmocka_unit_test(test_long_list),
        cmocka_unit_test(test_errors),          cmocka_unit_test(test_flags_reach_the_store),
        cmocka_unit_test(test_many_extents),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

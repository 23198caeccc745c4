/* The DICOM front door in one process: server, store in memory and clients made of bytes on one
 * env. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "lib/rt/env.h"
#include "lib/rt/env_uring.h"
#include "lib/rt/sync.h"
#include "proto/dimse/core.h"
#include "proto/dimse/dimse_server.h"
#include "tests/unit/dimse/dul.h"
#include "tests/unit/dimse/mem_object.h"

#define EXPLICIT "1.2.840.10008.1.2.1"
#define IMPLICIT "1.2.840.10008.1.2"
#define STRANGE  "1.2.3.4.5.6" /* a transfer syntax that DCMTK never heard of */
#define QUERY    "1.2.840.10008.5.1.4.1.2.2.1"
#define PRIVATE  "1.2.276.0.99.1"

/* ---- The policy ------------------------------------------------------------------------- */

static void test_choose(void **state)
{
    static const char *const plain[] = {IMPLICIT, EXPLICIT};
    static const char *const jpeg[] = {"1.2.840.10008.1.2.4.90", EXPLICIT};
    static const char *const odd[] = {"not a uid", STRANGE};

    (void)state;
    assert_int_equal(dimse_choose(DUL_CT, plain, 2, true), 0);
    assert_int_equal(dimse_choose(DUL_CT, jpeg, 2, true), 0);
    assert_int_equal(dimse_choose(DUL_CT, odd, 2, true), 1);
    assert_int_equal(dimse_choose(DUL_CT, odd, 1, true), -1);
    assert_int_equal(dimse_choose(DUL_CT, odd, 0, true), -1);
    assert_int_equal(dimse_choose(DUL_VERIFICATION, plain, 2, true), 0);
    assert_int_equal(dimse_choose(DUL_VERIFICATION, jpeg, 2, true), 1);
    assert_int_equal(dimse_choose(QUERY, plain, 2, false), -2);
    assert_int_equal(dimse_choose("1.2.840.10008.5.1.1.9", plain, 2, false), -2);
    assert_int_equal(dimse_choose(PRIVATE, plain, 2, false), 0);
    assert_int_equal(dimse_choose(PRIVATE, plain, 2, true), -2);
    assert_int_equal(dimse_choose("", plain, 2, false), -2);
    assert_int_equal(dimse_choose("1.2.840.10008.5.1.4.34.7", plain, 2, true), 0);
}

static void test_status(void **state)
{
    static const struct {
        int rc;
        unsigned code;
    } cases[] = {{0, 0x0000},
                 {ERR_NOSPC, 0xa700},
                 {ERR_OVERLOAD, 0xa700},
                 {ERR_DICOM_MISMATCH, 0xa900},
                 {ERR_DICOM_NO_UID, 0xa900},
                 {ERR_CONFLICT, 0x0111},
                 {ERR_DICOM, 0xc000},
                 {ERR_IO, 0x0110},
                 {ERR_LOST, 0x0110}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct scp_status st = dimse_status(cases[i].rc);

        assert_int_equal(st.code, cases[i].code);
        assert_int_equal(st.comment[0] != 0, cases[i].rc < 0);
    }
    for (int code = -1; code > -(int)ERR_COUNT_; code--)
        assert_int_not_equal(dimse_status(code).code, 0);
    assert_true(dimse_same_aet(" FILMROOM ", "FILMROOM"));
    assert_false(dimse_same_aet("FILMROOM", "filmroom"));
}

/* ---- The server ------------------------------------------------------------------------- */

/* What each test runs in: a fiber of a fresh env, with a server. */
struct bench {
    struct dimse_options options;
    struct mem_object_faults faults;
    struct object_store *store;
    struct dimse_server *server;
    struct dul d;
    void (*run)(struct bench *b);
};

static void bench_main(void *arg)
{
    struct bench *b = arg;

    b->store = b->options.store = mem_object_new(b->options.env);
    mem_object_set_faults(b->store, &b->faults);
    assert_int_equal(dimse_server_start(&b->options, &b->server), 0);
    dul_init(&b->d, b->options.env);
    b->run(b);
    dul_close(&b->d);
    dimse_server_stop(b->server);
    mem_object_free(b->store);
}

static void bench_run(struct bench *b, void (*run)(struct bench *b))
{
    struct env_uring_options uring = {.cpu_threads = 1, .kv_threads = 1, .queue_depth = 64};

    b->run = run;
    assert_int_equal(env_uring_new(&uring, &b->options.env), 0);
    env_run(b->options.env, bench_main, b);
    env_free(b->options.env);
}

/* A small data set with the given UIDs (NULL: left out) and `pixels` bytes of Pixel Data. */
static void make_data_set(struct strbuf *out, const char *sop_class, const char *sop_instance,
                          const char *study, size_t pixels)
{
    const struct {
        uint32_t tag;
        const char *value;
    } rows[] = {{0x00080016, sop_class},
                {0x00080018, sop_instance},
                {0x0020000d, study},
                {0x0020000e, "1.2.3.200"}};
    uint8_t head[12];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        size_t n = rows[i].value ? strlen(rows[i].value) : 0;

        if (!rows[i].value)
            continue;
        codec_put_le16(head, (uint16_t)(rows[i].tag >> 16));
        codec_put_le16(head + 2, (uint16_t)rows[i].tag);
        memcpy(head + 4, "UI", 2);
        codec_put_le16(head + 6, (uint16_t)(n + (n & 1)));
        strbuf_add(out, head, 8);
        strbuf_add(out, rows[i].value, n);
        if (n & 1)
            strbuf_addc(out, 0);
    }
    memcpy(head, "\xe0\x7f\x10\x00OW\0", 8);
    codec_put_le32(head + 8, (uint32_t)pixels);
    strbuf_add(out, head, 12);
    for (size_t i = 0; i < pixels; i++)
        strbuf_addc(out, (char)(i * 7 + i / 251));
}

static const struct dul_context usual[] = {
    {DUL_VERIFICATION, {IMPLICIT}},                 /* 1 */
    {DUL_CT, {EXPLICIT, IMPLICIT}},                 /* 3 */
    {DUL_CT, {STRANGE}},                            /* 5 */
    {QUERY, {IMPLICIT}},                            /* 7 */
    {PRIVATE, {EXPLICIT}},                          /* 9 */
    {DUL_VERIFICATION, {"1.2.840.10008.1.2.4.90"}}, /* 11 */
};

static void open_usual(struct bench *b)
{
    assert_int_equal(dul_connect(&b->d, dimse_server_port(b->server)), 0);
    assert_int_equal(dul_associate(&b->d, usual, sizeof(usual) / sizeof(usual[0])), 2);
}

/* The stored stream is our head, then the very bytes that were sent. */
static void assert_stored(struct bench *b, size_t i, const char *syntax, const struct strbuf *ds)
{
    struct dcm_head head;
    const char *uid;
    size_t n;
    const char *bytes = mem_object_bytes(b->store, i, &n, &uid);

    assert_non_null(bytes);
    assert_int_equal(dcm_head_parse(bytes, n, &head), 0);
    assert_string_equal(head.transfer_syntax, syntax);
    assert_string_equal(head.sop_instance, uid);
    assert_int_equal(n - head.dataset_off, ds->len);
    assert_memory_equal(bytes + head.dataset_off, ds->data, ds->len);
}

static void run_store(struct bench *b)
{
    static const size_t sizes[] = {0, 10, 15990, 262144 - 500, 262144, 700000};
    struct dimse_stats st;

    open_usual(b);
    assert_int_equal(b->d.results[1], 0);
    assert_int_equal(b->d.results[3], 0);
    assert_string_equal(b->d.syntaxes[3], EXPLICIT);
    assert_int_equal(b->d.results[5], 0);
    assert_string_equal(b->d.syntaxes[5], STRANGE);
    assert_int_equal(b->d.results[7], 3);
    assert_int_equal(b->d.results[9], 0);
    assert_int_equal(b->d.results[11], 4);
    assert_int_equal(dul_echo(&b->d, 1), 0);
    assert_int_equal(b->d.status, 0);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        STRBUF_AUTO struct strbuf ds = STRBUF_INIT;
        char uid[32];

        snprintf(uid, sizeof(uid), "1.2.3.%zu", i + 1);
        make_data_set(&ds, DUL_CT, uid, "1.2.3.100", sizes[i]);
        b->d.status = 1;
        assert_int_equal(dul_store(&b->d, i & 1 ? 5 : 3, DUL_CT, uid, ds.data, ds.len), 0);
        assert_int_equal(b->d.status, 0);
        assert_int_equal(mem_object_count(b->store), i + 1);
        assert_stored(b, i, i & 1 ? STRANGE : EXPLICIT, &ds);
    }
    assert_int_equal(dul_release(&b->d), 0);
    dimse_server_stats(b->server, &st);
    assert_int_equal(st.stored, 6);
    assert_int_equal(st.echoes, 1);
    assert_int_equal(st.failed, 0);
}

static void test_store(void **state)
{
    struct bench b = {0};

    (void)state;
    bench_run(&b, run_store);
}

static void store_expect(struct bench *b, const char *sop_class, const char *uid,
                         const struct strbuf *ds, unsigned status)
{
    b->d.status = 1;
    assert_int_equal(dul_store(&b->d, 3, sop_class, uid, ds->data, ds->len), 0);
    assert_int_equal(b->d.status, status);
    assert_int_equal(b->d.comment[0] != 0, status != 0);
}

static void run_refusals(struct bench *b)
{
    STRBUF_AUTO struct strbuf good = STRBUF_INIT, other = STRBUF_INIT, lacking = STRBUF_INIT,
                              garbage = STRBUF_INIT;
    static const struct mem_object_faults begin = {.begin = ERR_OVERLOAD},
                                          append = {.append = ERR_TOOBIG},
                                          commit = {.commit = ERR_NOSPC}, none = {0};
    struct dimse_stats st;

    make_data_set(&good, DUL_CT, "1.2.3.1", "1.2.3.100", 600000);
    make_data_set(&other, DUL_CT, "1.2.3.1", "1.2.3.100", 600002);
    make_data_set(&lacking, DUL_CT, "1.2.3.2", NULL, 10);
    strbuf_adds(&garbage, "this is not a data set at all");
    open_usual(b);
    mem_object_set_faults(b->store, &begin);
    store_expect(b, DUL_CT, "1.2.3.1", &good, 0xa700);
    mem_object_set_faults(b->store, &append);
    store_expect(b, DUL_CT, "1.2.3.1", &good, 0xa700);
    mem_object_set_faults(b->store, &commit);
    store_expect(b, DUL_CT, "1.2.3.1", &good, 0xa700);
    mem_object_set_faults(b->store, &none);
    assert_int_equal(mem_object_count(b->store), 0);
    store_expect(b, DUL_CT, "1.2.3.1", &good, 0);
    store_expect(b, DUL_CT, "1.2.3.1", &good, 0); /* again: cheap success */
    store_expect(b, DUL_CT, "1.2.3.1", &other, 0x0111);
    store_expect(b, DUL_CT, "1.2.3.9", &good, 0xa900);
    store_expect(b, "1.2.840.10008.5.1.4.1.1.4", "1.2.3.1", &good, 0xa900);
    store_expect(b, DUL_CT, "1.2.3.2", &lacking, 0xa900);
    store_expect(b, DUL_CT, "1.2.3.3", &garbage, 0xc000);
    store_expect(b, DUL_CT, "not a uid", &good, 0xa900);
    assert_int_equal(mem_object_count(b->store), 1);
    assert_stored(b, 0, EXPLICIT, &good);
    assert_int_equal(dul_echo(&b->d, 1), 0);
    assert_int_equal(dul_release(&b->d), 0);
    dimse_server_stats(b->server, &st);
    assert_int_equal(st.stored, 1);
    assert_int_equal(st.identical, 1);
    assert_int_equal(st.failed, 9);
}

static void test_refusals(void **state)
{
    struct bench b = {0};

    (void)state;
    bench_run(&b, run_refusals);
}

/* Does the server still do its work, for someone else? */
static void assert_alive(struct bench *b)
{
    struct dul d;

    dul_init(&d, b->options.env);
    assert_int_equal(dul_connect(&d, dimse_server_port(b->server)), 0);
    assert_int_equal(dul_associate(&d, usual, 1), 2);
    assert_int_equal(dul_echo(&d, 1), 0);
    assert_int_equal(dul_release(&d), 0);
    dul_close(&d);
}

/* Waits until the server has seen the ends of all associations. */
static void settle(struct bench *b)
{
    struct dimse_stats st;

    for (int i = 0; i < 500; i++) {
        dimse_server_stats(b->server, &st);
        if (st.active == 0)
            return;
        env_sleep(b->options.env, 10 * ENV_NS_PER_MS);
    }
    fail_msg("associations do not end: %llu", (unsigned long long)st.active);
}

static void run_limit(struct bench *b)
{
    struct dul more;

    open_usual(b);
    dul_init(&more, b->options.env);
    assert_int_equal(dul_connect(&more, dimse_server_port(b->server)), 0);
    assert_int_equal(dul_associate(&more, usual, 1), 3);
    assert_memory_equal(more.pdu.data + 6, "\0\2\3\2", 4); /* transient, presentation, limit */
    dul_close(&more);
    assert_int_equal(dul_echo(&b->d, 1), 0);
    assert_int_equal(dul_release(&b->d), 0);
    dul_close(&b->d);
    settle(b);
    assert_alive(b);
}

static void test_limit(void **state)
{
    struct bench b = {.options = {.max_associations = 1}};

    (void)state;
    bench_run(&b, run_limit);
}

static void run_strict(struct bench *b)
{
    b->d.called_aet = "SOMEONE";
    assert_int_equal(dul_connect(&b->d, dimse_server_port(b->server)), 0);
    assert_int_equal(dul_associate(&b->d, usual, 1), 3);
    assert_memory_equal(b->d.pdu.data + 6, "\0\1\1\7", 4);
    dul_close(&b->d);
    assert_alive(b);
}

static void test_strict(void **state)
{
    struct bench b = {.options = {.strict_aet = true}};

    (void)state;
    bench_run(&b, run_strict);
}

/* Whatever comes instead of the next PDU, in three states: not associated, associated, in a store.
 */
static void run_garbage(struct bench *b)
{
    static const struct {
        const char *bytes;
        size_t n;
    } cases[] = {
        {"", 0},
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27},
        {"\1\0\xff\xff\xff\xff rest", 11},
        {"\1\0\0\0\0\4\0\1\0\0", 10},
        {"\4\0\0\0\0\6\0\0\0\2\1\3", 12},           /* an empty command */
        {"\4\0\0\0\0\6\0\0\xff\xff\1\3", 12},       /* a PDV longer than its PDU */
        {"\4\0\0\0\0\6\0\0\0\0\1\3", 12},           /* ... of length 0 */
        {"\4\0\0\0\0\12\0\0\0\6\1\3\1\2\3\4", 16},  /* a command of noise */
        {"\4\0\0\0\0\12\0\0\0\6\77\2\1\2\3\4", 16}, /* data in a context of no one's */
        {"\4\0\x7f\xff\xff\xff\0\0", 8},
        {"\7\0\0\0\0\4\0\0\0\0", 10}, /* an abort */
        {"\5\0\0\0\0\4\0\0\0\0", 10}, /* a release */
        {"\11\0\0\0\0\4\0\0\0\0", 10},
    };

    for (size_t i = 0; i < 3 * sizeof(cases) / sizeof(cases[0]); i++) {
        struct dul d;

        dul_init(&d, b->options.env);
        assert_int_equal(dul_connect(&d, dimse_server_port(b->server)), 0);
        if (i % 3 > 0)
            assert_int_equal(dul_associate(&d, usual, 4), 2);
        if (i % 3 > 1) {
            assert_int_equal(dul_store_command(&d, 3, DUL_CT, "1.2.3.1"), 0);
            assert_int_equal(dul_data(&d, 3, "some bytes", 10, false), 0);
        }
        (void)dul_send(&d, cases[i / 3].bytes, cases[i / 3].n);
        if (i & 1)
            env_sleep(b->options.env, 5 * ENV_NS_PER_MS);
        dul_close(&d);
        assert_alive(b);
    }
    settle(b);
    assert_int_equal(mem_object_count(b->store), 0);
}

static void test_garbage(void **state)
{
    struct bench b = {.options = {.acse_timeout_s = 2, .dimse_timeout_s = 2, .idle_timeout_s = 2}};

    (void)state;
    bench_run(&b, run_garbage);
}

/* The silent: before the association, after it, in a store. */
static void run_silence(struct bench *b)
{
    struct dul d[3];
    uint64_t start = env_now(b->options.env);

    for (int i = 0; i < 3; i++) {
        dul_init(&d[i], b->options.env);
        assert_int_equal(dul_connect(&d[i], dimse_server_port(b->server)), 0);
        if (i > 0)
            assert_int_equal(dul_associate(&d[i], usual, 2), 2);
        if (i > 1)
            assert_int_equal(dul_store_command(&d[i], 3, DUL_CT, "1.2.3.1"), 0);
    }
    assert_alive(b);
    for (int i = 0; i < 3; i++) {
        int type = dul_recv(&d[i]);

        assert_true(type == 7 || type == 0); /* an abort, or just the end */
        dul_close(&d[i]);
    }
    assert_true(env_now(b->options.env) - start < 10 * ENV_NS_PER_S);
    settle(b);
}

static void test_silence(void **state)
{
    struct bench b = {.options = {.acse_timeout_s = 1, .dimse_timeout_s = 1, .idle_timeout_s = 1}};

    (void)state;
    bench_run(&b, run_silence);
}

/* Many clients at once, each with its own instances. */
struct crowd {
    struct bench *b;
    struct fiber_group *group;
    unsigned number, rounds, failures;
};

static void crowd_client(void *arg)
{
    struct crowd *c = arg;
    struct dul d;

    dul_init(&d, c->b->options.env);
    c->failures =
        dul_connect(&d, dimse_server_port(c->b->server)) < 0 || dul_associate(&d, usual, 2) != 2;
    for (unsigned i = 0; i < c->rounds && !c->failures; i++) {
        STRBUF_AUTO struct strbuf ds = STRBUF_INIT;
        char uid[32];

        snprintf(uid, sizeof(uid), "1.2.9.%u.%u", c->number, i);
        make_data_set(&ds, DUL_CT, uid, "1.2.3.100", 1000 * i);
        d.status = 1;
        if (dul_store(&d, 3, DUL_CT, uid, ds.data, ds.len) < 0 || d.status != 0)
            c->failures++;
    }
    if (!c->failures && dul_release(&d) < 0)
        c->failures++;
    dul_close(&d);
    fiber_group_done(c->group);
}

static void run_crowd(struct bench *b)
{
    struct crowd crowd[24];
    struct fiber_group group;

    fiber_group_init(&group);
    for (unsigned i = 0; i < 24; i++) {
        crowd[i] = (struct crowd){.b = b, .group = &group, .number = i, .rounds = 10};
        fiber_group_add(&group, 1);
        fiber_spawn(b->options.env, "client", crowd_client, &crowd[i]);
    }
    fiber_group_wait(&group);
    for (unsigned i = 0; i < 24; i++)
        assert_int_equal(crowd[i].failures, 0);
    assert_int_equal(mem_object_count(b->store), 240);
    settle(b);
}

static void test_crowd(void **state)
{
    struct bench b = {.options = {.max_associations = 24}};

    (void)state;
    bench_run(&b, run_crowd);
}

/* Stop with one idle association and one in the middle of a store that goes on meanwhile. */
static void finish_store(void *arg)
{
    struct crowd *c = arg;
    STRBUF_AUTO struct strbuf ds = STRBUF_INIT;

    make_data_set(&ds, DUL_CT, "1.2.3.1", "1.2.3.100", 50000);
    env_sleep(c->b->options.env, 100 * ENV_NS_PER_MS);
    c->b->d.status = 1;
    if (dul_data(&c->b->d, 3, ds.data, ds.len, true) < 0 || dul_response(&c->b->d) < 0 ||
        c->b->d.status != 0)
        c->failures++;
    fiber_group_done(c->group);
}

static void run_stop(struct bench *b)
{
    struct fiber_group group;
    struct crowd c = {.b = b, .group = &group};
    struct dul idle;
    uint64_t start;

    dul_init(&idle, b->options.env);
    assert_int_equal(dul_connect(&idle, dimse_server_port(b->server)), 0);
    assert_int_equal(dul_associate(&idle, usual, 2), 2);
    open_usual(b);
    assert_int_equal(dul_store_command(&b->d, 3, DUL_CT, "1.2.3.1"), 0);
    env_sleep(b->options.env, 100 * ENV_NS_PER_MS);
    fiber_group_init(&group);
    fiber_group_add(&group, 1);
    fiber_spawn(b->options.env, "finish", finish_store, &c);
    start = env_now(b->options.env);
    dimse_server_stop(b->server);
    b->server = NULL;
    assert_true(env_now(b->options.env) - start < 4 * ENV_NS_PER_S);
    fiber_group_wait(&group);
    assert_int_equal(c.failures, 0);
    assert_int_equal(mem_object_count(b->store), 1);
    assert_int_equal(dul_recv(&idle), 7);
    dul_close(&idle);
}

static void test_stop(void **state)
{
    struct bench b = {0};

    (void)state;
    bench_run(&b, run_stop);
}

/* Stop with a store that never ends: it is cut after the grace. */
static void run_stop_stuck(struct bench *b)
{
    uint64_t start;

    open_usual(b);
    assert_int_equal(dul_store_command(&b->d, 3, DUL_CT, "1.2.3.1"), 0);
    env_sleep(b->options.env, 100 * ENV_NS_PER_MS);
    start = env_now(b->options.env);
    dimse_server_stop(b->server);
    b->server = NULL;
    assert_true(env_now(b->options.env) - start < 9 * ENV_NS_PER_S);
}

static void test_stop_stuck(void **state)
{
    struct bench b = {0};

    (void)state;
    bench_run(&b, run_stop_stuck);
}

static void run_options(struct bench *b)
{
    struct dimse_options o = b->options;
    struct dimse_server *s;

    o.port = dimse_server_port(b->server);
    assert_int_equal(dimse_server_start(&o, &s), ERR_ADDR);
    o = b->options;
    o.address = "no address";
    assert_int_equal(dimse_server_start(&o, &s), ERR_INVAL);
    o = b->options;
    o.max_pdu = 100;
    assert_int_equal(dimse_server_start(&o, &s), ERR_INVAL);
    o = b->options;
    o.aet = "a title that is too long";
    assert_int_equal(dimse_server_start(&o, &s), ERR_INVAL);
    o = b->options;
    o.address = "::1";
    assert_int_equal(dimse_server_start(&o, &s), 0);
    dimse_server_stop(s);
    dimse_server_stop(NULL);
}

static void test_options(void **state)
{
    struct bench b = {0};

    (void)state;
    bench_run(&b, run_options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choose),     cmocka_unit_test(test_status),
        cmocka_unit_test(test_store),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_limit),      cmocka_unit_test(test_strict),
        cmocka_unit_test(test_garbage),    cmocka_unit_test(test_silence),
        cmocka_unit_test(test_crowd),      cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_stuck), cmocka_unit_test(test_options),
    };

    log_set_level(LOG_ERROR);
    if (dcm_init() < 0) {
        fprintf(stderr, "no data dictionary at %s\n", dcm_dictionary_path());
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

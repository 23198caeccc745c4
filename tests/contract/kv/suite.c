/* The cases of suite.h: what every key-value store must do, from empty to many fibers at once. */
#include "tests/contract/kv/suite.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"

struct kv_slice suite_text(const char *text)
{
    return (struct kv_slice){text, strlen(text)};
}

uint64_t suite_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return hmap_mix(*state);
}

static bool suite_equal(struct kv_slice a, struct kv_slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static struct kv *suite_open(struct suite *s)
{
    struct kv *kv;

    CHECK_OK(s->open(s, &kv));
    return kv;
}

static void suite_put(struct kv *kv, enum kv_table t, struct kv_slice key, struct kv_slice value)
{
    struct kv_batch *b = kv_batch_new();

    kv_batch_put(b, t, key, value);
    CHECK_OK(kv_write(kv, b));
    kv_batch_free(b);
}

static void suite_delete(struct kv *kv, enum kv_table t, struct kv_slice key)
{
    struct kv_batch *b = kv_batch_new();

    kv_batch_delete(b, t, key);
    CHECK_OK(kv_write(kv, b));
    kv_batch_free(b);
}

static void suite_expect(struct kv *kv, enum kv_table t, struct kv_slice key, struct kv_slice value)
{
    void *got;
    size_t len;

    CHECK_OK(kv_get(kv, t, key, &got, &len));
    CHECK(suite_equal((struct kv_slice){got, len}, value));
    mem_free(got);
}

static void suite_expect_missing(struct kv *kv, enum kv_table t, struct kv_slice key)
{
    void *got = &got;
    size_t len = 77;

    CHECK(kv_get(kv, t, key, &got, &len) == ERR_NOENT);
    CHECK(got == &got && len == 77); /* out-parameters are untouched on failure */
}

/* ---- Nothing there -------------------------------------------------------------------------- */

static void suite_empty(struct suite *s)
{
    struct kv *kv = suite_open(s);
    struct kv_slice none = {NULL, 0}, keys[2] = {suite_text("a"), suite_text("b")};
    struct kv_batch *b = kv_batch_new();
    struct kv_rows *rows;
    void *values[2];
    size_t lens[2];

    suite_expect_missing(kv, KV_META, suite_text("a"));
    CHECK_OK(kv_multi_get(kv, KV_MAP, keys, 2, values, lens));
    CHECK(!values[0] && !values[1]);
    CHECK_OK(kv_multi_get(kv, KV_MAP, keys, 0, NULL, NULL));
    for (int reverse = 0; reverse < 2; reverse++) {
        CHECK_OK(kv_scan(kv, KV_INDEX, none, none, 10, 1000, reverse, &rows));
        CHECK(rows->count == 0);
        kv_rows_free(rows);
    }
    suite_delete(kv, KV_META, suite_text("a"));
    CHECK_OK(kv_write(kv, b)); /* an empty batch */
    CHECK_OK(kv_flush(kv));
    kv_batch_free(b);
    kv_batch_free(NULL);
    kv_rows_free(NULL);
    CHECK_OK(kv_close(kv));
    CHECK_OK(kv_close(NULL));
}

/* ---- Order and bounds ----------------------------------------------------------------------- */

/* In memcmp order, shorter first. */
static const struct kv_slice suite_ordered[] = {
    {"\0", 1}, {"\0\0", 2}, {"\0\xff", 2}, {"a", 1},    {"a\0", 2},
    {"aa", 2}, {"b", 1},    {"\x80", 1},   {"\xff", 1}, {"\xff\xff", 2},
};
#define SUITE_ORDERED (sizeof(suite_ordered) / sizeof(suite_ordered[0]))

static void suite_expect_rows(struct kv *kv, size_t from, size_t to, int reverse)
{
    struct kv_slice end = {NULL, 0};
    struct kv_rows *rows;

    CHECK_OK(kv_scan(kv, KV_CHUNK, suite_ordered[from],
                     to < SUITE_ORDERED ? suite_ordered[to] : end, 100, 10000, reverse, &rows));
    CHECK(rows->count == (to > from ? to - from : 0));
    for (size_t i = 0; i < rows->count; i++) {
        size_t at = reverse ? to - 1 - i : from + i;

        CHECK(suite_equal(rows->rows[i].key, suite_ordered[at]));
        CHECK(suite_equal(rows->rows[i].value, suite_ordered[at]));
    }
    kv_rows_free(rows);
}

static void suite_order(struct suite *s)
{
    struct kv *kv = suite_open(s);
    struct kv_slice one = suite_text("neighbour");

    for (size_t i = 0; i < SUITE_ORDERED; i++) { /* 7 is prime to 10: not in order */
        struct kv_slice key = suite_ordered[i * 7 % SUITE_ORDERED];

        suite_put(kv, KV_CHUNK, key, key);
        suite_put(kv, KV_CHUNK - 1, key, one);
        suite_put(kv, KV_CHUNK + 1, key, one);
    }
    for (size_t from = 0; from < SUITE_ORDERED; from++)
        for (size_t to = 0; to <= SUITE_ORDERED; to++) {
            suite_expect_rows(kv, from, to, 0);
            suite_expect_rows(kv, from, to, 1);
        }
    suite_delete(kv, KV_CHUNK - 1, suite_ordered[3]);
    suite_expect(kv, KV_CHUNK, suite_ordered[3], suite_ordered[3]);
    suite_expect_missing(kv, KV_CHUNK - 1, suite_ordered[3]);
    CHECK_OK(kv_close(kv));
}

/* The first and the last table have no neighbour on one side. */
static void suite_tables(struct suite *s)
{
    struct kv *kv = suite_open(s);
    struct kv_slice none = {NULL, 0}, key = {"\xff\xff\xff", 3};
    struct kv_rows *rows;

    for (unsigned t = 0; t < KV_TABLE_COUNT; t++) {
        char value[2] = {(char)('a' + t), 0};

        suite_put(kv, (enum kv_table)t, key, suite_text(value));
        suite_put(kv, (enum kv_table)t, suite_text("x"), suite_text(value));
    }
    for (unsigned t = 0; t < KV_TABLE_COUNT; t++)
        for (int reverse = 0; reverse < 2; reverse++) {
            CHECK_OK(kv_scan(kv, (enum kv_table)t, none, none, 10, 1000, reverse, &rows));
            CHECK(rows->count == 2);
            CHECK(suite_equal(rows->rows[reverse ? 0 : 1].key, key));
            CHECK(*(const char *)rows->rows[0].value.data == (char)('a' + t));
            CHECK(*(const char *)rows->rows[1].value.data == (char)('a' + t));
            kv_rows_free(rows);
        }
    CHECK_OK(kv_close(kv));
}

/* ---- Paging --------------------------------------------------------------------------------- */

#define SUITE_PAGED 300u

static void suite_number_key(char key[8], unsigned i)
{
    snprintf(key, 8, "%05u", i % 100000);
}

/* Reads the whole table page by page and checks that nothing is missed or seen twice. */
static void suite_walk(struct kv *kv, size_t max_rows, size_t max_bytes, int reverse)
{
    char last[8] = "", expected[8];
    unsigned seen = 0;

    for (;;) {
        struct kv_slice none = {NULL, 0}, from = none, to = none;
        char after[8 + 1];
        struct kv_rows *rows;

        /* Downwards `to` excludes the last key; upwards the successor of a key is the key and a
         * zero byte. */
        memcpy(after, last, sizeof(last));
        if (seen > 0 && reverse)
            to = suite_text(last);
        else if (seen > 0)
            from = (struct kv_slice){after, strlen(last) + 1};
        CHECK_OK(kv_scan(kv, KV_CATALOG, from, to, max_rows, max_bytes, reverse, &rows));
        CHECK(rows->count <= max_rows);
        for (size_t i = 0; i < rows->count; i++, seen++) {
            suite_number_key(expected, reverse ? SUITE_PAGED - 1 - seen : seen);
            CHECK(suite_equal(rows->rows[i].key, suite_text(expected)));
            CHECK(rows->rows[i].value.len == 100);
            memcpy(last, expected, sizeof(last));
        }
        if (max_bytes < 10000)
            CHECK(rows->count <= max_bytes / 100 + 1);
        if (rows->count == 0) {
            kv_rows_free(rows);
            break;
        }
        kv_rows_free(rows);
    }
    CHECK(seen == SUITE_PAGED);
}

static void suite_paging(struct suite *s)
{
    struct kv *kv = suite_open(s);
    struct kv_batch *b = kv_batch_new();
    char key[8], value[100];

    memset(value, 'v', sizeof(value));
    for (unsigned i = 0; i < SUITE_PAGED; i++) {
        suite_number_key(key, i);
        kv_batch_put(b, KV_CATALOG, suite_text(key), (struct kv_slice){value, sizeof(value)});
    }
    CHECK(kv_batch_count(b) == SUITE_PAGED);
    CHECK_OK(kv_write(kv, b));
    kv_batch_free(b);
    for (int reverse = 0; reverse < 2; reverse++) {
        suite_walk(kv, 1, 100000, reverse);
        suite_walk(kv, 7, 100000, reverse);
        suite_walk(kv, 1000, 100000, reverse);
        suite_walk(kv, 1000, 500, reverse);
        suite_walk(kv, 1000, 1, reverse); /* a page always moves on: at least one row */
    }
    CHECK_OK(kv_flush(kv));
    suite_walk(kv, 7, 100000, 0);
    suite_walk(kv, 7, 100000, 1);
    CHECK_OK(kv_close(kv));
}

/* A walk gives each row between its keys once, in order, whatever its pages hold, also behind a key
 * as long as keys get; rows behind the page at hand may come and go meanwhile. */
static void suite_walk_pages(struct kv *kv, size_t page_rows, size_t page_bytes)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *row;
    char key[8];
    int rc;

    kv_walk_init(&w, kv, KV_INDEX, suite_text("00003"), suite_text("00020"), page_rows, page_bytes);
    for (unsigned i = 3; i < 20; i++) {
        suite_number_key(key, i);
        CHECK(kv_walk_next(&w, &row) == 1);
        CHECK(suite_equal(row->key, suite_text(key)) && row->value.len == 100);
        if (i == 10) {
            CHECK(kv_walk_next(&w, &row) == 1);
            CHECK(row->key.len == 1100 && memcmp(row->key.data, key, 5) == 0);
        }
    }
    CHECK(kv_walk_next(&w, &row) == 0);
    CHECK(kv_walk_next(&w, &row) == 0);
    suite_put(kv, KV_INDEX, suite_text("000199"), suite_text("late"));
    rc = kv_walk_next(&w, &row);
    CHECK(rc == 1 && suite_equal(row->key, suite_text("000199")));
    suite_delete(kv, KV_INDEX, suite_text("000199"));
}

static void suite_walk_rows(struct suite *s)
{
    struct kv *kv = suite_open(s);
    struct kv_walk w;
    const struct kv_row *row;
    char key[8], value[100], longest[1100];
    unsigned n = 0;

    memset(value, 'v', sizeof(value));
    for (unsigned i = 0; i < 30; i++) {
        suite_number_key(key, i);
        suite_put(kv, KV_INDEX, suite_text(key), (struct kv_slice){value, sizeof(value)});
    }
    memset(longest, 0xff, sizeof(longest));
    memcpy(longest, "00010", 5);
    suite_put(kv, KV_INDEX, (struct kv_slice){longest, sizeof(longest)}, suite_text("long"));
    suite_walk_pages(kv, 1, 100000);
    suite_walk_pages(kv, 7, 100000);
    suite_walk_pages(kv, 9, 100000); /* the longest key is a page's last */
    suite_walk_pages(kv, 1000, 500);
    kv_walk_init(&w, kv, KV_INDEX, suite_text("00028"), (struct kv_slice){"", 0}, 1, 1);
    while (kv_walk_next(&w, &row) > 0)
        n++;
    CHECK(n == 2);
    kv_walk_end(&w);
    CHECK_OK(kv_close(kv));
}

/* ---- Several at once ------------------------------------------------------------------------ */

static void suite_multi_get(struct suite *s)
{
    enum { N = 500 };
    struct kv *kv = suite_open(s);
    struct kv_slice *keys = mem_calloc(N, sizeof(*keys));
    void **values = mem_calloc(N, sizeof(*values));
    size_t *lens = mem_calloc(N, sizeof(*lens));
    char(*names)[8] = mem_calloc(N, sizeof(*names));

    for (unsigned i = 0; i < N; i++) {
        suite_number_key(names[i], i / 2 * 2); /* pairs of equal keys */
        keys[i] = suite_text(names[i]);
        if (i % 4 == 0) /* half of the pairs exist */
            suite_put(kv, KV_FPRINT, keys[i], keys[i]);
        if (i == N / 2)
            CHECK_OK(kv_flush(kv));
    }
    CHECK_OK(kv_multi_get(kv, KV_FPRINT, keys, N, values, lens));
    for (unsigned i = 0; i < N; i++) {
        if (i % 4 < 2)
            CHECK(values[i] && suite_equal((struct kv_slice){values[i], lens[i]}, keys[i]));
        else
            CHECK(!values[i]);
        mem_free(values[i]);
    }
    mem_free(names);
    mem_free(lens);
    mem_free(values);
    mem_free(keys);
    CHECK_OK(kv_close(kv));
}

/* Keys that count up, with gaps and with deleted ones, in files and in memory: a store may fetch
 * these by a walk. */
static void suite_dense(struct suite *s)
{
    enum { N = 300 };
    struct kv *kv = suite_open(s);
    uint8_t(*numbers)[8] = mem_calloc(N, 8);
    struct kv_slice keys[N];
    void *values[N];
    size_t lens[N];

    for (unsigned i = 0; i < N; i++) {
        codec_put_be64(numbers[i], 1000 + i + i / 50); /* some numbers are not asked for */
        keys[i] = (struct kv_slice){numbers[i], 8};
        if (i % 3)
            suite_put(kv, KV_CHUNK, keys[i], keys[i]);
        if (i == N / 2)
            CHECK_OK(kv_flush(kv));
    }
    for (unsigned i = 1; i < N; i += 6)
        suite_delete(kv, KV_CHUNK, keys[i]);
    for (unsigned from = 0; from < N; from += 37) {
        size_t n = N - from;

        CHECK_OK(kv_multi_get(kv, KV_CHUNK, keys + from, n, values, lens));
        for (size_t i = 0; i < n; i++) {
            bool there = (from + i) % 3 && (from + i) % 6 != 1;

            CHECK(there == (values[i] != NULL));
            CHECK(!there || suite_equal((struct kv_slice){values[i], lens[i]}, keys[from + i]));
            mem_free(values[i]);
        }
    }
    mem_free(numbers);
    CHECK_OK(kv_close(kv));
}

/* ---- Batches -------------------------------------------------------------------------------- */

static void suite_batches(struct suite *s)
{
    struct kv *kv = suite_open(s);
    struct kv_slice k1 = suite_text("k1"), k2 = suite_text("k2"), v1 = suite_text("v1"),
                    v2 = suite_text("v2"), v3 = suite_text("v3");
    struct kv_batch *b = kv_batch_new();

    kv_batch_put(b, KV_RECIPE, k1, v1);
    kv_batch_delete(b, KV_RECIPE, k1);
    kv_batch_put(b, KV_RECIPE, k1, v2);
    kv_batch_put(b, KV_RECIPE, k2, v1);
    kv_batch_delete(b, KV_RECIPE, k2);
    CHECK(kv_batch_count(b) == 5);
    suite_expect_missing(kv, KV_RECIPE, k1); /* nothing before the write */
    CHECK_OK(kv_write(kv, b));
    suite_expect(kv, KV_RECIPE, k1, v2);
    suite_expect_missing(kv, KV_RECIPE, k2);

    suite_put(kv, KV_RECIPE, k1, v3);
    CHECK_OK(kv_write(kv, b)); /* a batch is not used up by its write */
    suite_expect(kv, KV_RECIPE, k1, v2);

    kv_batch_clear(b);
    CHECK(kv_batch_count(b) == 0);
    kv_batch_put(b, KV_RECIPE, k2, v3);
    CHECK_OK(kv_write(kv, b));
    suite_expect(kv, KV_RECIPE, k1, v2);
    suite_expect(kv, KV_RECIPE, k2, v3);
    kv_batch_free(b);
    CHECK_OK(kv_close(kv));
}

/* ---- Sizes ---------------------------------------------------------------------------------- */

static void suite_sizes(struct suite *s)
{
    struct kv *kv = suite_open(s);
    size_t big = 16u << 20;
    char *value = mem_alloc(big), key[1024];
    uint64_t state = s->seed;
    struct kv_stats stats;
    struct kv_slice empty = {"", 0}, whole = {value, big}, long_key = {key, sizeof(key)};

    memset(key, 0xff, sizeof(key));
    for (size_t i = 0; i < big; i += 8) {
        uint64_t x = suite_random(&state);

        memcpy(value + i, &x, 8);
    }
    suite_put(kv, KV_META, suite_text("empty"), empty);
    suite_put(kv, KV_META, suite_text("big"), whole);
    suite_put(kv, KV_META, long_key, suite_text("long key"));
    for (int round = 0; round < 2; round++) {
        suite_expect(kv, KV_META, suite_text("empty"), empty);
        suite_expect(kv, KV_META, suite_text("big"), whole);
        suite_expect(kv, KV_META, long_key, suite_text("long key"));
        CHECK_OK(kv_get_stats(kv, &stats));
        CHECK(stats.memory_bytes + stats.disk_bytes >= big);
        CHECK_OK(kv_flush(kv));
    }
    mem_free(value);
    CHECK_OK(kv_close(kv));
}

/* ---- Many fibers ---------------------------------------------------------------------------- */

/* Writers put their number, drawn in the order of their calls, under two keys; readers must see
 * both keys equal in one page and never going back. Values are large enough to fill RocksDB's
 * memory tables many times over, so that writes have to wait and the order is put to the test. */
struct suite_crowd {
    struct kv *kv;
    uint64_t next;
    unsigned writers_left;
    struct fiber_group group;
};

#define SUITE_CROWD_VALUE  20000u
#define SUITE_CROWD_WRITES 120u

static void suite_crowd_writer(void *arg)
{
    struct suite_crowd *c = arg;
    char *value = mem_zalloc(SUITE_CROWD_VALUE);
    struct kv_batch *b = kv_batch_new();

    for (unsigned i = 0; i < SUITE_CROWD_WRITES; i++) {
        uint64_t mine = ++c->next, got;
        void *seen;
        size_t len;

        memcpy(value, &mine, sizeof(mine));
        kv_batch_clear(b);
        kv_batch_put(b, KV_VOLUME, suite_text("left"), (struct kv_slice){value, SUITE_CROWD_VALUE});
        kv_batch_put(b, KV_VOLUME, suite_text("right"),
                     (struct kv_slice){value, SUITE_CROWD_VALUE});
        CHECK_OK(kv_write(c->kv, b));
        CHECK_OK(kv_get(c->kv, KV_VOLUME, suite_text("left"), &seen, &len));
        memcpy(&got, seen, sizeof(got));
        CHECK(len == SUITE_CROWD_VALUE && got >= mine && got <= c->next);
        mem_free(seen);
    }
    kv_batch_free(b);
    mem_free(value);
    c->writers_left--;
    fiber_group_done(&c->group);
}

static void suite_crowd_reader(void *arg)
{
    struct suite_crowd *c = arg;
    struct kv_slice none = {NULL, 0};
    uint64_t last = 0;

    while (c->writers_left > 0) {
        struct kv_rows *rows;
        uint64_t got;

        CHECK_OK(kv_scan(c->kv, KV_VOLUME, none, none, 10, 1u << 20, 0, &rows));
        if (rows->count > 0) {
            CHECK(rows->count == 2);
            CHECK(suite_equal(rows->rows[0].value, rows->rows[1].value));
            memcpy(&got, rows->rows[0].value.data, sizeof(got));
            CHECK(got >= last);
            last = got;
        }
        kv_rows_free(rows);
        fiber_yield();
    }
    fiber_group_done(&c->group);
}

static void suite_crowd_flusher(void *arg)
{
    struct suite_crowd *c = arg;

    while (c->writers_left > 0) {
        CHECK_OK(kv_flush(c->kv));
        fiber_yield();
    }
    fiber_group_done(&c->group);
}

static void suite_fibers(struct suite *s)
{
    enum { WRITERS = 6 };
    struct suite_crowd *c = mem_zalloc(sizeof(*c));
    void *seen;
    size_t len;

    c->kv = suite_open(s);
    c->writers_left = WRITERS;
    fiber_group_init(&c->group);
    fiber_group_add(&c->group, WRITERS + 2);
    for (int i = 0; i < WRITERS; i++)
        fiber_spawn(s->env, "writer", suite_crowd_writer, c);
    fiber_spawn(s->env, "reader", suite_crowd_reader, c);
    fiber_spawn(s->env, "flusher", suite_crowd_flusher, c);
    fiber_group_wait(&c->group);
    CHECK_OK(kv_get(c->kv, KV_VOLUME, suite_text("right"), &seen, &len));
    CHECK(memcmp(seen, &c->next, sizeof(c->next)) == 0); /* the last call won */
    mem_free(seen);
    CHECK_OK(kv_close(c->kv));
    mem_free(c);
}

/* ---- Pages of one state --------------------------------------------------------------------- */

/* A bank: every batch moves an amount between two accounts, an empty account has no row. However
 * the rows are spread over what the store keeps where, a page of all of them has the same sum. */
#define SUITE_BANK_ACCOUNTS 60u
#define SUITE_BANK_SUM      (SUITE_BANK_ACCOUNTS * 2u)
#define SUITE_BANK_MOVES    1500u

struct suite_bank {
    struct kv *kv;
    struct env *env;
    uint64_t seed;
    uint8_t accounts[SUITE_BANK_ACCOUNTS];
    unsigned moves_left;
    struct fiber_group group;
};

static void suite_bank_set(struct kv_batch *b, struct suite_bank *bank, uint8_t account)
{
    struct kv_slice key = {&account, 1}, value = {&bank->accounts[account], 1};

    if (bank->accounts[account])
        kv_batch_put(b, KV_CATALOG, key, value);
    else
        kv_batch_delete(b, KV_CATALOG, key);
}

static void suite_bank_mover(void *arg)
{
    struct suite_bank *bank = arg;
    struct kv_batch *b = kv_batch_new();

    for (; bank->moves_left; bank->moves_left--) {
        uint8_t from = (uint8_t)(suite_random(&bank->seed) % SUITE_BANK_ACCOUNTS);
        uint8_t to = (uint8_t)(suite_random(&bank->seed) % SUITE_BANK_ACCOUNTS);
        uint8_t amount = bank->accounts[from];

        if (amount > 3)
            amount = 3;
        bank->accounts[from] = (uint8_t)(bank->accounts[from] - amount);
        bank->accounts[to] = (uint8_t)(bank->accounts[to] + amount);
        kv_batch_clear(b);
        suite_bank_set(b, bank, from);
        suite_bank_set(b, bank, to);
        CHECK_OK(kv_write(bank->kv, b));
        fiber_yield();
    }
    kv_batch_free(b);
    fiber_group_done(&bank->group);
}

static void suite_bank_auditor(void *arg)
{
    struct suite_bank *bank = arg;
    struct kv_slice none = {NULL, 0};

    for (int reverse = 0; bank->moves_left; reverse = !reverse) {
        struct kv_rows *rows;
        unsigned sum = 0;

        CHECK_OK(kv_scan(bank->kv, KV_CATALOG, none, none, 1000, 1u << 20, reverse, &rows));
        for (size_t i = 0; i < rows->count; i++)
            sum += *(const uint8_t *)rows->rows[i].value.data;
        CHECK(sum == SUITE_BANK_SUM);
        kv_rows_free(rows);
        fiber_yield();
    }
    fiber_group_done(&bank->group);
}

static void suite_states(struct suite *s)
{
    enum { AUDITORS = 3 };
    struct suite_bank *bank = mem_zalloc(sizeof(*bank));
    struct kv_batch *b = kv_batch_new();

    *bank = (struct suite_bank){
        .kv = suite_open(s), .env = s->env, .seed = s->seed, .moves_left = SUITE_BANK_MOVES};
    for (uint8_t i = 0; i < SUITE_BANK_ACCOUNTS; i++) {
        bank->accounts[i] = SUITE_BANK_SUM / SUITE_BANK_ACCOUNTS;
        suite_bank_set(b, bank, i);
    }
    CHECK_OK(kv_write(bank->kv, b));
    kv_batch_free(b);
    fiber_group_init(&bank->group);
    fiber_group_add(&bank->group, AUDITORS + 1);
    fiber_spawn(s->env, "mover", suite_bank_mover, bank);
    for (int i = 0; i < AUDITORS; i++)
        fiber_spawn(s->env, "auditor", suite_bank_auditor, bank);
    fiber_group_wait(&bank->group);
    CHECK_OK(kv_close(bank->kv));
    mem_free(bank);
}

/* ---- Against a model ------------------------------------------------------------------------ */

/* Keys are two letters of a small alphabet, in two tables; the model is an array of versions, 0 for
 * a missing key. */
#define SUITE_MODEL_SIDE 16u
#define SUITE_MODEL_KEYS (SUITE_MODEL_SIDE * SUITE_MODEL_SIDE)

struct suite_model {
    struct kv *kv;
    uint64_t state;
    uint32_t next_version, versions[2][SUITE_MODEL_KEYS];
};

static enum kv_table suite_model_table(unsigned t)
{
    return t ? KV_SEGMENT : KV_INDEX;
}

static struct kv_slice suite_model_key(char text[2], unsigned i)
{
    text[0] = (char)('A' + i / SUITE_MODEL_SIDE);
    text[1] = (char)('A' + i % SUITE_MODEL_SIDE);
    return (struct kv_slice){text, 2};
}

/* A version's value: its number, repeated up to a length that depends on it. */
static struct kv_slice suite_model_value(uint32_t bytes[64], uint32_t version)
{
    for (unsigned i = 0; i < 64; i++)
        bytes[i] = version;
    return (struct kv_slice){bytes, 4 + hmap_mix(version) % 200};
}

static uint64_t suite_model_below(struct suite_model *m, uint64_t below)
{
    return suite_random(&m->state) % below;
}

static void suite_model_write(struct suite_model *m)
{
    struct kv_batch *b = kv_batch_new();
    unsigned ops = 1 + (unsigned)suite_model_below(m, 12);

    for (unsigned i = 0; i < ops; i++) {
        unsigned t = (unsigned)suite_model_below(m, 2);
        unsigned at = (unsigned)suite_model_below(m, SUITE_MODEL_KEYS);
        uint32_t bytes[64];
        char text[2];

        if (suite_model_below(m, 3) == 0) {
            kv_batch_delete(b, suite_model_table(t), suite_model_key(text, at));
            m->versions[t][at] = 0;
        } else {
            m->versions[t][at] = ++m->next_version;
            kv_batch_put(b, suite_model_table(t), suite_model_key(text, at),
                         suite_model_value(bytes, m->next_version));
        }
    }
    CHECK_OK(kv_write(m->kv, b));
    kv_batch_free(b);
}

static void suite_model_expect(uint32_t version, const void *value, size_t len)
{
    uint32_t bytes[64];

    CHECK((version != 0) == (value != NULL));
    if (version)
        CHECK(suite_equal(suite_model_value(bytes, version), (struct kv_slice){value, len}));
}

static void suite_model_get(struct suite_model *m)
{
    unsigned t = (unsigned)suite_model_below(m, 2);
    unsigned n = 1 + (unsigned)suite_model_below(m, 40), at[40];
    struct kv_slice keys[40];
    char texts[40][2];
    void *values[40];
    size_t lens[40];

    for (unsigned i = 0; i < n; i++) {
        at[i] = (unsigned)suite_model_below(m, SUITE_MODEL_KEYS);
        keys[i] = suite_model_key(texts[i], at[i]);
    }
    if (n == 1) {
        int r = kv_get(m->kv, suite_model_table(t), keys[0], &values[0], &lens[0]);

        CHECK(r == 0 || r == ERR_NOENT);
        if (r < 0)
            values[0] = NULL;
    } else {
        CHECK_OK(kv_multi_get(m->kv, suite_model_table(t), keys, n, values, lens));
    }
    for (unsigned i = 0; i < n; i++) {
        suite_model_expect(m->versions[t][at[i]], values[i], lens[i]);
        mem_free(values[i]);
    }
}

static void suite_model_scan(struct suite_model *m)
{
    unsigned t = (unsigned)suite_model_below(m, 2);
    unsigned from = (unsigned)suite_model_below(m, SUITE_MODEL_KEYS);
    unsigned to = (unsigned)suite_model_below(m, SUITE_MODEL_KEYS + 1);
    int reverse = (int)suite_model_below(m, 2);
    size_t max_rows = 1 + suite_model_below(m, 100), row = 0;
    char low[2], high[2];
    struct kv_slice end = {NULL, 0};
    struct kv_rows *rows;

    CHECK_OK(kv_scan(m->kv, suite_model_table(t), suite_model_key(low, from),
                     to < SUITE_MODEL_KEYS ? suite_model_key(high, to) : end, max_rows, 1u << 20,
                     reverse, &rows));
    for (unsigned i = 0; from + i < to && row < max_rows; i++) {
        unsigned at = reverse ? to - 1 - i : from + i;
        char text[2];

        if (!m->versions[t][at])
            continue;
        CHECK(row < rows->count);
        CHECK(suite_equal(rows->rows[row].key, suite_model_key(text, at)));
        suite_model_expect(m->versions[t][at], rows->rows[row].value.data,
                           rows->rows[row].value.len);
        row++;
    }
    CHECK(row == rows->count);
    kv_rows_free(rows);
}

static void suite_random_ops(struct suite *s)
{
    struct suite_model *m = mem_zalloc(sizeof(*m));

    m->kv = suite_open(s);
    m->state = s->seed;
    for (unsigned i = 0; i < 6000; i++) {
        uint64_t dice = suite_model_below(m, 1000);

        if (dice < 400)
            suite_model_write(m);
        else if (dice < 700)
            suite_model_get(m);
        else if (dice < 990)
            suite_model_scan(m);
        else if (dice < 998)
            CHECK_OK(kv_flush(m->kv));
        else if (s->reopens) {
            CHECK_OK(kv_close(m->kv));
            m->kv = suite_open(s);
        }
    }
    CHECK_OK(kv_close(m->kv));
    mem_free(m);
}

/* ---- After a close -------------------------------------------------------------------------- */

static void suite_reopen(struct suite *s)
{
    struct kv *kv = suite_open(s);

    if (!s->reopens) {
        CHECK_OK(kv_close(kv));
        return;
    }
    for (unsigned t = 0; t < KV_TABLE_COUNT; t++)
        suite_put(kv, (enum kv_table)t, suite_text("key"), suite_text("first"));
    CHECK_OK(kv_close(kv)); /* without a flush of ours */
    kv = suite_open(s);
    for (unsigned t = 0; t < KV_TABLE_COUNT; t++) {
        suite_expect(kv, (enum kv_table)t, suite_text("key"), suite_text("first"));
        suite_delete(kv, (enum kv_table)t, suite_text("key"));
    }
    CHECK_OK(kv_close(kv));
    kv = suite_open(s);
    for (unsigned t = 0; t < KV_TABLE_COUNT; t++)
        suite_expect_missing(kv, (enum kv_table)t, suite_text("key"));
    CHECK_OK(kv_close(kv));
}

const struct suite_case suite_cases[] = {
    {"empty", suite_empty},   {"order", suite_order},     {"tables", suite_tables},
    {"paging", suite_paging}, {"walk", suite_walk_rows},  {"multi_get", suite_multi_get},
    {"dense", suite_dense},   {"batches", suite_batches}, {"sizes", suite_sizes},
    {"fibers", suite_fibers}, {"states", suite_states},   {"random_ops", suite_random_ops},
    {"reopen", suite_reopen},
};
const size_t suite_case_count = sizeof(suite_cases) / sizeof(suite_cases[0]);

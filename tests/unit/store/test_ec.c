/* lib/store/ec: whichever columns are gone, up to m of them, the others give them back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/store/ec.h"
#include "lib/store/format.h"
#include "tests/unit/store/sim_case.h"

#define LEN 4096u

struct columns {
    unsigned k, m;
    struct ec *ec;
    uint8_t *col[FORMAT_COLS_MAX];
};

static void columns_make(struct columns *c, unsigned k, unsigned m)
{
    c->k = k;
    c->m = m;
    c->ec = ec_new(k, m);
    for (unsigned i = 0; i < k + m; i++) {
        c->col[i] = mem_alloc_aligned(64, LEN);
        sim_case_bytes(100 * k + 10 * m + i, c->col[i], LEN);
    }
    ec_encode(c->ec, LEN, c->col, c->col + k);
}

static void columns_free(struct columns *c)
{
    for (unsigned i = 0; i < c->k + c->m; i++)
        mem_free(c->col[i]);
    ec_free(c->ec);
}

/* Rebuilds every column of the set `gone` from the first k of the others. */
static void check_erasure(const struct columns *c, uint32_t gone)
{
    const uint8_t *have[FORMAT_COLS_MAX];
    uint8_t index[FORMAT_COLS_MAX], out[LEN];
    unsigned n = 0;

    for (unsigned i = 0; i < c->k + c->m && n < c->k; i++) {
        if (gone >> i & 1)
            continue;
        index[n] = (uint8_t)i;
        have[n++] = c->col[i];
    }
    assert_int_equal(n, c->k);
    for (unsigned i = 0; i < c->k + c->m; i++) {
        if (!(gone >> i & 1))
            continue;
        memset(out, 0xee, LEN);
        ec_reconstruct(c->ec, LEN, have, index, i, out);
        assert_memory_equal(out, c->col[i], LEN);
    }
}

static void test_every_erasure(void **state)
{
    static const uint8_t profiles[][2] = {{1, 1}, {1, 2}, {2, 1}, {2, 2}, {3, 2},
                                          {4, 1}, {4, 2}, {3, 3}, {8, 3}};

    (void)state;
    for (size_t p = 0; p < sizeof(profiles) / sizeof(profiles[0]); p++) {
        struct columns c;

        columns_make(&c, profiles[p][0], profiles[p][1]);
        for (uint32_t gone = 1; gone < 1u << (c.k + c.m); gone++)
            if ((unsigned)__builtin_popcount(gone) <= c.m)
                check_erasure(&c, gone);
        columns_free(&c);
    }
}

/* Wide codes have too many patterns: the worst, with all of m gone at both ends, must do. */
static void test_every_profile(void **state)
{
    (void)state;
    for (unsigned k = 1; k <= FORMAT_COLS_MAX; k++)
        for (unsigned m = 0; k + m <= FORMAT_COLS_MAX; m++) {
            struct columns c;

            columns_make(&c, k, m);
            if (m) {
                unsigned n = m < k ? m : k;

                check_erasure(&c, ((1u << n) - 1));
                check_erasure(&c, (uint32_t)((1ull << m) - 1) << k);
            }
            columns_free(&c);
        }
}

/* Any k of the columns will do, in any order: the decoder's combinations rely on it. */
static void test_any_order(void **state)
{
    struct columns c;
    uint8_t out[LEN];

    (void)state;
    columns_make(&c, 4, 2);
    const uint8_t *have[] = {c.col[5], c.col[0], c.col[4], c.col[3]};
    const uint8_t index[] = {5, 0, 4, 3};

    ec_reconstruct(c.ec, LEN, have, index, 1, out);
    assert_memory_equal(out, c.col[1], LEN);
    ec_reconstruct(c.ec, LEN, have, index, 2, out);
    assert_memory_equal(out, c.col[2], LEN);
    columns_free(&c);
}

/* One byte wrong in a column that is used shows in what is rebuilt: nothing is quietly ignored. */
static void test_damage_shows(void **state)
{
    struct columns c;
    uint8_t out[LEN];

    (void)state;
    columns_make(&c, 4, 2);
    for (unsigned bad = 1; bad < 5; bad++) {
        const uint8_t *have[] = {c.col[1], c.col[2], c.col[3], c.col[4]};
        const uint8_t index[] = {1, 2, 3, 4};

        c.col[bad][17] ^= 1;
        ec_reconstruct(c.ec, LEN, have, index, 0, out);
        assert_memory_not_equal(out, c.col[0], LEN);
        c.col[bad][17] ^= 1;
    }
    columns_free(&c);
}

/* A single data column: every parity column is the data times a constant, and gives it back. */
static void test_mirror(void **state)
{
    struct columns c;
    uint8_t out[LEN];

    (void)state;
    columns_make(&c, 1, 2);
    for (uint8_t from = 1; from < 3; from++) {
        const uint8_t *have[] = {c.col[from]};

        ec_reconstruct(c.ec, LEN, have, &from, 0, out);
        assert_memory_equal(out, c.col[0], LEN);
    }
    columns_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_erasure), cmocka_unit_test(test_every_profile),
        cmocka_unit_test(test_any_order),     cmocka_unit_test(test_damage_shows),
        cmocka_unit_test(test_mirror),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

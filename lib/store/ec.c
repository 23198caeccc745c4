/* Erasure code over ISA-L; see ec.h.
 *
 * The generator matrix is the identity over a Cauchy matrix, of which every k rows are invertible
 * (gf_gen_rs_matrix is not, for all sizes). Tables are allocated at 32 * k * rows bytes, which
 * every version of ISA-L accepts.
 */
#include "lib/store/ec.h"

#include <isa-l/erasure_code.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/format.h"

struct ec {
    unsigned k, m;
    uint8_t matrix[FORMAT_COLS_MAX * FORMAT_COLS_MAX]; /* (k + m) rows of k */
    uint8_t *encode_tables;
};

struct ec *ec_new(unsigned k, unsigned m)
{
    struct ec *ec = mem_zalloc(sizeof(*ec));

    CHECK(k >= 1 && k + m <= FORMAT_COLS_MAX);
    ec->k = k;
    ec->m = m;
    gf_gen_cauchy1_matrix(ec->matrix, (int)(k + m), (int)k);
    if (m) {
        ec->encode_tables = mem_alloc_aligned(64, (size_t)32 * k * m);
        ec_init_tables((int)k, (int)m, &ec->matrix[k * k], ec->encode_tables);
    }
    return ec;
}

void ec_free(struct ec *ec)
{
    if (!ec)
        return;
    mem_free(ec->encode_tables);
    mem_free(ec);
}

/* ISA-L's prototypes take plain pointers to pointers; it writes only to the coded columns. */
static void ec_code(size_t len, unsigned k, unsigned rows, const uint8_t *tables,
                    const uint8_t *const *in, uint8_t *const *out)
{
    uint8_t *src[FORMAT_COLS_MAX], *dst[FORMAT_COLS_MAX];

    for (unsigned i = 0; i < k; i++)
        src[i] = (uint8_t *)(uintptr_t)in[i];
    for (unsigned i = 0; i < rows; i++)
        dst[i] = out[i];
    ec_encode_data((int)len, (int)k, (int)rows, (uint8_t *)(uintptr_t)tables, src, dst);
}

void ec_encode(const struct ec *ec, size_t len, uint8_t *const *data, uint8_t *const *parity)
{
    CHECK(len % 64 == 0 && len < (1u << 30));
    const uint8_t *const *in = (const uint8_t *const *)data;
    const uint8_t *swapped[FORMAT_COLS_MAX];

    if (PLANTED(PARITY_SWAPPED) && ec->k > 1) {
        memcpy(swapped, data, ec->k * sizeof(swapped[0]));
        swapped[0] = data[1];
        swapped[1] = data[0];
        in = swapped;
    }
    if (ec->m)
        ec_code(len, ec->k, ec->m, ec->encode_tables, in, parity);
}

void ec_reconstruct(const struct ec *ec, size_t len, const uint8_t *const *have,
                    const uint8_t *have_index, unsigned want, uint8_t *out)
{
    unsigned k = ec->k;
    uint8_t sub[FORMAT_COLS_MAX * FORMAT_COLS_MAX], inverse[FORMAT_COLS_MAX * FORMAT_COLS_MAX];
    uint8_t row[FORMAT_COLS_MAX] = {0};
    uint8_t tables[32 * FORMAT_COLS_MAX];

    CHECK(len % 64 == 0 && len < (1u << 30) && want < k + ec->m);
    for (unsigned i = 0; i < k; i++)
        memcpy(&sub[i * k], &ec->matrix[have_index[i] * k], k);
    CHECK(gf_invert_matrix(sub, inverse, (int)k) == 0);
    /* want = matrix[want] * data, and data = inverse * have */
    for (unsigned c = 0; c < k; c++)
        for (unsigned i = 0; i < k; i++)
            row[c] ^= gf_mul(ec->matrix[want * k + i], inverse[i * k + c]);
    ec_init_tables((int)k, 1, row, tables);
    ec_code(len, k, 1, tables, have, &out);
}

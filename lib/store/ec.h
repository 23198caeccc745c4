/* Erasure code: k data and m parity columns, any k of which give the rest (Cauchy Reed-Solomon over
 * GF(2^8), by ISA-L). Pure computation: never suspends, thread-safe on distinct output.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct ec;

/* The code for k >= 1 and m >= 0 with k + m <= FORMAT_COLS_MAX. Free with ec_free. */
struct ec *ec_new(unsigned k, unsigned m);
void ec_free(struct ec *ec); /* NULL is fine */

/* Computes the m parity columns of len bytes each. len is a multiple of 64. */
void ec_encode(const struct ec *ec, size_t len, uint8_t *const *data, uint8_t *const *parity);

/* Computes column `want` (0..k-1 data, k.. parity) from the k columns `have`, whose indices are
 * `have_index`, none twice and none equal to want. */
void ec_reconstruct(const struct ec *ec, size_t len, const uint8_t *const *have,
                    const uint8_t *have_index, unsigned want, uint8_t *out);

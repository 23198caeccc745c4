/* Recipes: how an instance's byte stream is made of chunks.
 *
 * Stored form: version u8, chunks u32, pieces u32, then chunks times { id u64, raw u32 }, then
 * pieces times { chunk index u32, offset u32, length u32 }. Pieces follow each other in the stream.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "lib/base/strbuf.h"

#define RECIPE_PIECES_MAX 40000u /* keeps the record of an instance within the journal's limit */

struct recipe_chunk {
    uint64_t id;
    uint32_t raw;
};

struct recipe_piece {
    uint32_t chunk, off, len;
    uint64_t at; /* in the stream; derived */
};

struct recipe {
    struct recipe_chunk *chunks;
    struct recipe_piece *pieces;
    uint32_t chunk_count, piece_count;
    uint64_t size; /* of the stream; derived */
};

void recipe_encode(const struct recipe *r, struct strbuf *out);
/* A copy in memory of its own; free with recipe_free. ERR_FORMAT where pieces and chunks do not
 * fit. */
int recipe_decode(const void *p, size_t n, struct recipe *ret_recipe);
void recipe_free(struct recipe *r); /* the arrays */

/* Index of the piece that holds stream offset `at` (< size). */
uint32_t recipe_find(const struct recipe *r, uint64_t at);

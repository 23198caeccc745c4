/* The cutter, shown a stream whole and in pieces: the same cuts, every byte exactly once, chunks
 * within their bound. Input: a byte for the transfer syntax, a byte for the size of the pieces, the
 * data set. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dedup/cutter.h"
#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "tests/fuzz/fuzz_dcm_syntax.h"

#define PIECE_MAX 700u /* small, so that small inputs meet it */

enum { HEADER, FRAME, BEGIN };

/* The kind of each byte. */
static uint8_t *cut_all(const char *syntax, const uint8_t *data, size_t size, size_t step)
{
    uint8_t *kinds = mem_alloc(size + 1);
    struct cutter c;
    size_t shown = 0, done = 0;

    cutter_init(&c, syntax, PIECE_MAX);
    while (done < size) {
        struct cut cut;

        if (shown == done)
            shown += step < size - done ? step : size - done;
        cutter_next(&c, data + done, shown - done, &cut);
        CHECK(cut.len >= 1 && cut.len <= shown - done);
        memset(kinds + done, cut.kind == CUTTER_FRAME ? FRAME : HEADER, cut.len);
        if (cut.kind == CUTTER_FRAME && cut.begins)
            kinds[done] = BEGIN;
        done += cut.len;
    }
    return kinds;
}

static void check_chunks(const uint8_t *kinds, size_t size)
{
    size_t len = PIECE_MAX; /* the first pixel byte must begin a chunk */

    for (size_t i = 0; i < size; i++) {
        if (kinds[i] == BEGIN)
            len = 0;
        if (kinds[i] != HEADER)
            CHECK(++len <= PIECE_MAX);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *syntax;
    uint8_t *whole, *pieces;

    if (size < 3)
        return 0;
    syntax = fuzz_dcm_syntax(data[0]);
    whole = cut_all(syntax, data + 2, size - 2, size);
    pieces = cut_all(syntax, data + 2, size - 2, data[1] % 24u + 1);
    CHECK(memcmp(whole, pieces, size - 2) == 0);
    check_chunks(whole, size - 2);
    mem_free(whole);
    mem_free(pieces);
    return 0;
}

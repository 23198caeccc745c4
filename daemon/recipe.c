/* Recipes as bytes and as arrays; see recipe.h. */
#include "daemon/recipe.h"

#include <stdbool.h>

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define RECIPE_VERSION 1u
#define RECIPE_ENTRY   12u

void recipe_encode(const struct recipe *r, struct strbuf *out)
{
    uint8_t b[RECIPE_ENTRY];

    b[0] = RECIPE_VERSION;
    codec_put_le32(b + 1, r->chunk_count);
    codec_put_le32(b + 5, r->piece_count);
    strbuf_add(out, b, 9);
    for (uint32_t i = 0; i < r->chunk_count; i++) {
        codec_put_le64(b, r->chunks[i].id);
        codec_put_le32(b + 8, r->chunks[i].raw);
        strbuf_add(out, b, RECIPE_ENTRY);
    }
    for (uint32_t i = 0; i < r->piece_count; i++) {
        codec_put_le32(b, r->pieces[i].chunk);
        codec_put_le32(b + 4, r->pieces[i].off);
        codec_put_le32(b + 8, r->pieces[i].len);
        strbuf_add(out, b, RECIPE_ENTRY);
    }
}

static bool piece_fits(const struct recipe *r, const struct recipe_piece *p)
{
    return p->chunk < r->chunk_count && p->len > 0 && p->off <= r->chunks[p->chunk].raw &&
           p->len <= r->chunks[p->chunk].raw - p->off;
}

int recipe_decode(const void *p, size_t n, struct recipe *ret_recipe)
{
    struct codec_reader rd = codec_reader_on(p, n);
    uint8_t version = codec_read_u8(&rd);
    struct recipe r = {0};

    r.chunk_count = codec_read_le32(&rd);
    r.piece_count = codec_read_le32(&rd);
    if (!codec_reader_ok(&rd) || version != RECIPE_VERSION ||
        codec_left(&rd) != ((uint64_t)r.chunk_count + r.piece_count) * RECIPE_ENTRY)
        return ERR_FORMAT;
    r.chunks = mem_calloc(r.chunk_count, sizeof(*r.chunks));
    r.pieces = mem_calloc(r.piece_count, sizeof(*r.pieces));
    for (uint32_t i = 0; i < r.chunk_count; i++) {
        r.chunks[i].id = codec_read_le64(&rd);
        r.chunks[i].raw = codec_read_le32(&rd);
    }
    for (uint32_t i = 0; i < r.piece_count; i++) {
        struct recipe_piece *pc = &r.pieces[i];

        pc->chunk = codec_read_le32(&rd);
        pc->off = codec_read_le32(&rd);
        pc->len = codec_read_le32(&rd);
        pc->at = r.size;
        r.size += pc->len;
        if (!piece_fits(&r, pc)) {
            recipe_free(&r);
            return ERR_FORMAT;
        }
    }
    *ret_recipe = r;
    return 0;
}

void recipe_free(struct recipe *r)
{
    mem_free(r->chunks);
    mem_free(r->pieces);
    r->chunks = NULL;
    r->pieces = NULL;
}

uint32_t recipe_find(const struct recipe *r, uint64_t at)
{
    uint32_t low = 0, high = r->piece_count - 1;

    CHECK(r->piece_count && at < r->size);
    while (low < high) {
        uint32_t mid = low + (high - low + 1) / 2;

        if (r->pieces[mid].at <= at)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

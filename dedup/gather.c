/* What is alive in one segment, for scrub.
 *
 * The chunk table is in the order of ids, so a segment's chunks are found by what its stripes say
 * of themselves (segment_walk.c), and the table says what of it is alive. The segment knows how
 * many chunks that are. When fewer are found, directories of stripes are damaged beyond repair, or
 * an older stripe was read in the place of one: then the whole table is walked, which is the last
 * word, and takes time: whoever wants it is asked on the way whether they still do. It happens
 * where data is damaged on more drives than the profile bears.
 */
#include <stdlib.h>
#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"

#define GATHER_PAGE  4096u               /* rows of the table at a time */
#define GATHER_PAUSE (2 * ENV_NS_PER_MS) /* between two pages, for others */

struct gather {
    struct chunkstore *cs;
    uint64_t segment;
    bool (*go_on)(void *arg);
    void *arg;
    struct chunk_place *places;
    size_t count, room;
};

static void gather_add(struct gather *g, uint64_t id, const struct segment_loc *loc)
{
    if (g->count == g->room) {
        g->room = g->room ? 2 * g->room : 256;
        g->places = mem_realloc(g->places, g->room * sizeof(*g->places));
    }
    g->places[g->count++] = (struct chunk_place){id, *loc};
}

/* ---- By directories ---- */

static int gather_stripe(struct gather *g, const struct segment_entry *entries, size_t n)
{
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    uint64_t *ids = mem_calloc(n, sizeof(*ids));
    int rc;

    for (size_t i = 0; i < n; i++)
        ids[i] = entries[i].id;
    rc = chunk_rows_get(g->cs, ids, n, rows);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (rows[i] && chunk_row_lies_at(rows[i], &entries[i].loc))
            gather_add(g, ids[i], &rows[i]->loc);
        chunk_row_unpin(g->cs, rows[i]);
    }
    mem_free(rows);
    mem_free(ids);
    return rc;
}

static int gather_walk(struct gather *g)
{
    uint32_t offset = 0;
    int rc = 0;

    while (rc == 0) {
        struct segment_entry *entries;
        size_t n;

        if (!g->go_on(g->arg))
            return ERR_CANCELED;
        rc = segment_next_stripe(g->cs->segments, g->segment, &offset, &entries, &n);
        if (rc < 0)
            break;
        rc = gather_stripe(g, entries, n);
        mem_free(entries);
    }
    return rc == ERR_NOENT ? 0 : rc;
}

/* ---- By the table ---- */

static int gather_row(struct gather *g, const struct kv_row *kv)
{
    struct chunk_row row = {0};

    if (kv->key.len != 8 || chunk_row_decode(kv->value.data, kv->value.len, &row) < 0)
        return ERR_FORMAT;
    if (row.loc.stripe.segment == g->segment)
        gather_add(g, codec_get_be64(kv->key.data), &row.loc);
    return 0;
}

static int gather_table(struct gather *g)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *row;
    size_t n = 0;
    int rc;

    g->count = 0;
    kv_walk_init(&w, g->cs->kv, KV_CHUNK, (struct kv_slice){"", 1}, (struct kv_slice){"", 0},
                 GATHER_PAGE, GATHER_PAGE * 256);
    while ((rc = kv_walk_next(&w, &row)) > 0) {
        if (n++ % GATHER_PAGE == 0) {
            if (!g->go_on(g->arg))
                return ERR_CANCELED;
            env_sleep(g->cs->env, GATHER_PAUSE);
        }
        rc = gather_row(g, row);
        if (rc < 0)
            return rc;
    }
    return rc;
}

/* ---- All ---- */

static int place_compare(const void *x, const void *y)
{
    const struct chunk_place *a = x, *b = y;

    if (a->loc.stripe.offset != b->loc.stripe.offset)
        return a->loc.stripe.offset < b->loc.stripe.offset ? -1 : 1;
    if (a->loc.stripe.width != b->loc.stripe.width)
        return a->loc.stripe.width < b->loc.stripe.width ? -1 : 1;
    return (a->loc.position > b->loc.position) - (a->loc.position < b->loc.position);
}

int chunkstore_gather(struct chunkstore *cs, uint64_t segment, bool (*go_on)(void *arg), void *arg,
                      struct chunk_place **ret_places, size_t *ret_count)
{
    struct gather g = {.cs = cs, .segment = segment, .go_on = go_on, .arg = arg};
    const struct segment *s = segment_get(cs->segments, segment);
    uint64_t before = s->chunks;
    int rc = gather_walk(&g);

    if (rc == 0 && g.count < before && g.count < s->chunks)
        rc = gather_table(&g);
    if (rc < 0) {
        mem_free(g.places);
        return rc;
    }
    if (g.count)
        qsort(g.places, g.count, sizeof(*g.places), place_compare);
    *ret_places = g.places;
    *ret_count = g.count;
    return 0;
}

bool chunkstore_lies_at(struct chunkstore *cs, const struct chunk_place *place)
{
    struct chunk_row *row = NULL;
    bool there;

    if (chunk_rows_get(cs, &place->id, 1, &row) < 0)
        return false;
    there = row && chunk_row_lies_at(row, &place->loc);
    chunk_row_unpin(cs, row);
    return there;
}

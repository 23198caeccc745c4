/* Chunks that are lost, and come again.
 *
 * A chunk whose bytes cannot be had any more keeps its row: maps and recipes lead to it, and a
 * drive may come back. But it must not be found: who sends a study again since the store has lost
 * it would be told that all is there, by the fingerprints, and nothing would be stored.
 *
 * So when bytes come of which the chunk is lost, they are written, and the chunk is moved there, as
 * compaction would: everybody who refers to it can read it again. That needs the very bytes that
 * are written in its row: stored form and CRC. Where packing gives others (by another version of
 * the library), the old chunk is hopeless, is not found any more, and a new one is made. So it is,
 * too, for those who must not wait for the record that a move takes: see batch_renews.
 *
 * What is lost: a chunk in a segment of which not enough drives are there, and one that a reader
 * or scrub could not get from any columns (lost.c).
 */
#include "dedup/chunkstore.h"

#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

bool chunk_is_lost(const struct chunkstore *cs, const struct chunk_row *r)
{
    return r->registered && (chunk_lost_known(cs, r->id) ||
                             segment_is_out_of_reach(cs->segments, r->loc.stripe.segment));
}

struct renewal {
    const struct chunk_item *item;
    struct chunk_form form;
};

static void renewal_pack(void *arg)
{
    struct renewal *n = arg;

    chunk_pack(n->item, &n->form);
}

static bool same_form(const struct chunk_form *f, const struct chunk_row *r)
{
    return f->codec == r->codec && f->stored == r->loc.stored && f->crc == r->loc.crc;
}

static int renew(struct chunkstore *cs, struct chunk_row *r, const struct chunk_item *item)
{
    struct renewal n = {.item = item};
    int rc = ERR_LOST;

    env_offload(cs->env, ENV_LANE_CPU, renewal_pack, &n);
    if (same_form(&n.form, r)) {
        rc = chunk_rewrite(cs, r, n.form.bytes);
        cs->stats.renewed += rc == 0;
    } else if (chunk_lost_give_up(cs, r->id)) {
        rc = 0;
    }
    mem_free(n.form.bytes);
    return rc;
}

int chunk_renew(struct chunkstore *cs, struct chunk_row *r, const struct chunk_item *item)
{
    int rc = 0;

    fiber_mutex_lock(&cs->renewing);
    if (chunk_is_lost(cs, r) && !chunk_is_hopeless(cs, r->id))
        rc = renew(cs, r, item); /* nobody did it meanwhile */
    fiber_mutex_unlock(&cs->renewing);
    return rc;
}

int chunkstore_look_for_lost(struct chunkstore *cs, const uint64_t *ids, size_t n)
{
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    int rc = chunk_rows_get(cs, ids, n, rows);
    bool lost = false;

    for (size_t i = 0; rc == 0 && i < n; i++) {
        lost |= !rows[i] || chunk_is_lost(cs, rows[i]);
        chunk_row_unpin(cs, rows[i]);
    }
    mem_free(rows);
    return rc == 0 && lost ? ERR_LOST : rc;
}

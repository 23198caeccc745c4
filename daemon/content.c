/* Content, as it is referred to and read; see content.h. */
#include "daemon/content.h"

#include "lib/base/err.h"
#include "lib/base/mem.h"

#define READ_PIECES 64u /* pieces of a recipe that one read of chunks takes on */

/* ---- Applying ---- */

void content_require(struct chunk_txn *txn, const struct recipe *r)
{
    for (uint32_t i = 0; i < r->chunk_count; i++)
        chunk_txn_require(txn, r->chunks[i].id);
}

void content_ref(struct chunk_txn *txn, const struct recipe *r, int64_t delta)
{
    for (uint32_t i = 0; i < r->chunk_count; i++)
        chunk_txn_ref(txn, r->chunks[i].id, delta);
}

int content_load_old(struct kv *kv, struct kv_slice key, size_t skip, struct chunk_txn *txn,
                     struct recipe *ret_recipe)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    int rc = kv_get(kv, KV_RECIPE, key, &value, &len);

    if (rc == ERR_NOENT)
        return 0;
    if (rc == 0 && len < skip)
        return ERR_FORMAT;
    if (rc == 0)
        rc = recipe_decode((const uint8_t *)value + skip, len - skip, ret_recipe);
    for (uint32_t i = 0; rc == 0 && i < ret_recipe->chunk_count; i++)
        chunk_txn_need(txn, ret_recipe->chunks[i].id);
    return rc;
}

/* ---- Out ---- */

static uint64_t *content_ids(const struct recipe *r)
{
    uint64_t *ids = mem_calloc(r->chunk_count, sizeof(*ids));

    for (uint32_t i = 0; i < r->chunk_count; i++)
        ids[i] = r->chunks[i].id;
    return ids;
}

int content_look_for_lost(struct partition *p, const struct recipe *r)
{
    MEM_AUTO uint64_t *ids = content_ids(r);

    return chunkstore_look_for_lost(p->chunks, ids, r->chunk_count);
}

int content_open(struct partition *p, const void *recipe, size_t len, struct content *c)
{
    MEM_AUTO uint64_t *ids = NULL;
    int rc = recipe_decode(recipe, len, &c->recipe);

    if (rc < 0)
        return rc;
    ids = content_ids(&c->recipe);
    return chunkstore_pin(p->chunks, ids, c->recipe.chunk_count, &c->pins);
}

int content_read(struct content *c, uint64_t off, void *buf, size_t len, size_t *ret_len)
{
    struct chunk_read reads[READ_PIECES];
    size_t done = 0;
    int rc = 0;

    if (off >= c->recipe.size)
        len = 0;
    else if (len > c->recipe.size - off)
        len = (size_t)(c->recipe.size - off);
    while (rc == 0 && done < len) {
        uint32_t i = recipe_find(&c->recipe, off + done);
        size_t n = 0;

        for (; n < READ_PIECES && done < len; n++, i++) {
            const struct recipe_piece *pc = &c->recipe.pieces[i];
            uint32_t skip = (uint32_t)(off + done - pc->at), take = pc->len - skip;

            if (take > len - done)
                take = (uint32_t)(len - done);
            reads[n] = (struct chunk_read){
                .id = pc->chunk, .off = pc->off + skip, .len = take, .dst = (uint8_t *)buf + done};
            done += take;
        }
        rc = chunkstore_read_pinned(c->pins, reads, n);
    }
    if (rc == 0)
        *ret_len = len;
    return rc;
}

void content_close(struct content *c)
{
    chunkstore_unpin(c->pins);
    c->pins = NULL;
    recipe_free(&c->recipe);
}

/* Ingest: groups of chunks are fingerprinted on the cpu lane, looked up, the unknown ones
 * compressed on the lane and gathered; a stripe is written whenever enough is gathered, the rest at
 * the end.
 *
 * Each group has a fiber. Within a batch a fingerprint is stored once: the first group to come
 * across it owns the chunk, later ones take its id. Between batches in flight the same content may
 * be stored twice; the second to be registered is then the one that is found from there on.
 */
#include "dedup/chunkstore.h"

#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define BATCH_PIECE_BYTES (256u * 1024) /* raw bytes that one job of the lane takes */

/* A chunk that this batch has found or made. */
struct batch_chunk {
    struct hmap_node node;
    struct list link;      /* in gathered, written, or found */
    struct chunk_row *row; /* pinned */
    uint8_t *stored;       /* until it is in a stripe */
    uint64_t order;        /* position in the input: stripes follow it */
};

struct chunk_batch {
    struct chunkstore *cs;
    enum segment_stream stream;
    struct fiber_group groups;
    struct fiber_mutex writing;
    struct hmap chunks; /* by fingerprint */
    struct list gathered, written, found;
    size_t gathered_bytes;
    uint64_t *held; /* segments to be released, one entry per stripe */
    size_t held_count;
    uint64_t next_order;
    int error;
    struct chunk_batch_stats stats;
};

struct group {
    struct chunk_batch *batch;
    struct chunk_item *items;
    size_t count;
    uint64_t order;
    void (*done)(void *owner);
    void *owner;
    struct batch_chunk **fresh; /* per item: the chunk to be compressed, or NULL */
};

struct chunk_batch *chunk_batch_new(struct chunkstore *cs, enum segment_stream stream)
{
    struct chunk_batch *b = mem_zalloc(sizeof(*b));

    b->cs = cs;
    b->stream = stream;
    fiber_group_init(&b->groups);
    fiber_mutex_init(&b->writing);
    hmap_init(&b->chunks);
    list_init(&b->gathered);
    list_init(&b->written);
    list_init(&b->found);
    return b;
}

/* ---- On the lane ---- */

static void group_hash(void *arg)
{
    struct group *g = arg;

    for (size_t i = 0; i < g->count; i++)
        fingerprint_make(g->items[i].data, g->items[i].len, g->items[i].fingerprint);
}

void chunk_pack(const struct chunk_item *it, struct chunk_form *ret_form)
{
    struct chunk_form f = {.bytes = mem_alloc(it->len)};
    enum compress_codec codec = COMPRESS_RAW;
    size_t stored = it->len;

    if (!it->opaque)
        stored = compress_pack(it->data, it->len, f.bytes, &codec);
    if (codec == COMPRESS_RAW)
        memcpy(f.bytes, it->data, it->len);
    f.codec = (uint8_t)codec;
    f.stored = (uint32_t)stored;
    f.crc = crc32c(0, f.bytes, stored);
    *ret_form = f;
}

static void group_compress(void *arg)
{
    struct group *g = arg;

    for (size_t i = 0; i < g->count; i++) {
        struct batch_chunk *c = g->fresh[i];
        struct chunk_form form;

        if (!c)
            continue;
        chunk_pack(&g->items[i], &form);
        c->stored = form.bytes;
        c->row->codec = form.codec;
        c->row->loc.stored = form.stored;
        c->row->loc.crc = form.crc;
    }
}

/* ---- On the loop ---- */

/* Renewing what is lost takes a record, and room in the journal. Draining must not wait for that:
 * it is what makes room. Nor should the metadata's copy. They store such chunks anew. */
static bool batch_renews(const struct chunk_batch *b)
{
    return b->stream == SEGMENT_STUDIES;
}

/* A row that is not to be found. What went meanwhile is brought back by who has found it before
 * (chunk_touch_bring), but is given to nobody else: it may have gone as one that is lost. */
static bool batch_shuns(const struct chunk_batch *b, const struct chunk_row *r)
{
    if (r->gone)
        return true;
    return chunk_is_lost(b->cs, r) && (!batch_renews(b) || chunk_is_hopeless(b->cs, r->id));
}

static struct batch_chunk *batch_find(struct chunk_batch *b, const uint8_t *fp)
{
    for (struct hmap_node *n = hmap_first(&b->chunks, chunk_fp_hash(fp)); n; n = hmap_next(n)) {
        struct batch_chunk *c = HMAP_ENTRY(n, struct batch_chunk, node);

        if (memcmp(c->row->fp, fp, FINGERPRINT_SIZE) == 0 && !batch_shuns(b, c->row))
            return c;
    }
    return NULL;
}

static struct batch_chunk *batch_add_chunk(struct chunk_batch *b, struct chunk_row *pinned,
                                           struct list *where)
{
    struct batch_chunk *c = mem_zalloc(sizeof(*c));

    c->row = pinned;
    hmap_insert(&b->chunks, &c->node, chunk_fp_hash(pinned->fp));
    list_init(&c->link);
    if (where)
        list_push_back(where, &c->link);
    return c;
}

/* Asks the fingerprint index for the items that neither batch nor cache know; pins what is found.
 */
static int group_look_up(struct group *g, const size_t *ask, size_t n)
{
    struct chunkstore *cs = g->batch->cs;
    struct kv_slice *keys = mem_calloc(n, sizeof(*keys));
    void **values = mem_calloc(n, sizeof(*values));
    size_t *lens = mem_calloc(n, sizeof(*lens)), count = 0;
    uint64_t *ids = mem_calloc(n, sizeof(*ids));
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    int rc;

    for (size_t i = 0; i < n; i++)
        keys[i] = (struct kv_slice){g->items[ask[i]].fingerprint, CHUNK_FP_KEY};
    rc = kv_multi_get(cs->kv, KV_FPRINT, keys, n, values, lens);
    for (size_t i = 0; i < n; i++) {
        if (rc == 0 && values[i] && lens[i] == 8)
            ids[count++] = codec_get_be64(values[i]);
        mem_free(values[i]);
    }
    if (rc == 0 && count)
        rc = chunk_rows_get(cs, ids, count, rows);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        /* Found rows are in the cache now; which item wanted which is settled by fingerprint. */
        if (rows[i] && (batch_shuns(g->batch, rows[i]) || batch_find(g->batch, rows[i]->fp)))
            chunk_row_unpin(cs, rows[i]);
        else if (rows[i])
            batch_add_chunk(g->batch, rows[i], &g->batch->found);
    }
    mem_free(keys);
    mem_free(values);
    mem_free(lens);
    mem_free(ids);
    mem_free(rows);
    return rc;
}

/* The chunk of item i's fingerprint if the batch or the cache has one; else NULL. */
static struct batch_chunk *group_known(struct group *g, size_t i)
{
    struct chunk_batch *b = g->batch;
    struct batch_chunk *c = batch_find(b, g->items[i].fingerprint);
    struct chunk_row *r;

    if (c)
        return c;
    r = chunk_row_by_fp(b->cs, g->items[i].fingerprint, batch_renews(b));
    if (!r)
        return NULL;
    chunk_row_pin(b->cs, r);
    return batch_add_chunk(b, r, &b->found);
}

/* Gives item i the chunk of its fingerprint if there is one that can be read. One that is lost is
 * renewed: this is what it was. Suspends when it is. */
static int group_take_known(struct group *g, size_t i, bool *ret_taken)
{
    struct chunk_batch *b = g->batch;
    struct batch_chunk *c;

    while ((c = group_known(g, i)) != NULL && chunk_is_lost(b->cs, c->row)) {
        int rc = chunk_renew(b->cs, c->row, &g->items[i]);

        if (rc < 0)
            return rc;
    }
    *ret_taken = c != NULL;
    if (!c)
        return 0;
    g->items[i].id = c->row->id;
    b->stats.found_bytes += g->items[i].len;
    b->cs->stats.found++;
    return 0;
}

static void group_make_new(struct group *g, size_t i)
{
    struct chunk_batch *b = g->batch;
    struct chunk_row *r = chunk_row_new(b->cs);

    memcpy(r->fp, g->items[i].fingerprint, FINGERPRINT_SIZE);
    r->fp_algorithm = FINGERPRINT_SHA256;
    r->raw = (uint32_t)g->items[i].len;
    g->fresh[i] = batch_add_chunk(b, r, NULL);
    g->fresh[i]->order = g->order + i;
    g->items[i].id = r->id;
    b->stats.new_chunks++;
    b->cs->stats.missed++;
}

/* Settles for every item whether it is known; the others become new chunks. Suspends. */
static int group_resolve(struct group *g)
{
    size_t *ask = mem_calloc(g->count, sizeof(*ask)), n = 0;
    bool taken;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < g->count; i++) {
        rc = group_take_known(g, i, &taken);
        if (rc == 0 && !taken)
            ask[n++] = i;
    }
    if (rc == 0 && n)
        rc = group_look_up(g, ask, n);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        rc = group_take_known(g, ask[i], &taken);
        if (rc == 0 && !taken)
            group_make_new(g, ask[i]);
    }
    mem_free(ask);
    return rc;
}

static void group_gather(struct group *g)
{
    struct chunk_batch *b = g->batch;

    for (size_t i = 0; i < g->count; i++) {
        struct batch_chunk *c = g->fresh[i];

        if (!c)
            continue;
        list_push_back(&b->gathered, &c->link);
        b->gathered_bytes += c->row->loc.stored;
        b->stats.stored_bytes += c->row->loc.stored;
    }
}

/* ---- Stripes ---- */

/* Takes chunks for one stripe off the gathered list, in input order. */
static size_t stripe_pick(struct chunk_batch *b, struct batch_chunk **picked, size_t max)
{
    size_t n = 0, bytes = 0;

    while (n < max && !list_empty(&b->gathered)) {
        struct batch_chunk *first = LIST_ENTRY(b->gathered.next, struct batch_chunk, link);

        list_for_each (it, &b->gathered) {
            struct batch_chunk *c = LIST_ENTRY(it, struct batch_chunk, link);

            if (c->order < first->order)
                first = c;
            else if (c->order == first->order + 1)
                break; /* groups are in order within: what follows is later still */
        }
        if (bytes && bytes + first->row->loc.stored > segment_stripe_good(b->cs->segments))
            break;
        bytes += first->row->loc.stored;
        list_del(&first->link);
        picked[n++] = first;
    }
    b->gathered_bytes -= bytes;
    return n;
}

static void stripe_done(struct chunk_batch *b, const struct segment_stripe *where,
                        struct segment_chunk *chunks, struct batch_chunk **picked, size_t n)
{
    b->held = mem_realloc(b->held, (b->held_count + 1) * sizeof(*b->held));
    b->held[b->held_count++] = where->segment;
    for (size_t i = 0; i < n; i++) {
        picked[i]->row->loc.stripe = *where;
        picked[i]->row->loc.position = chunks[i].position;
    }
}

/* Writes one stripe from what is gathered. Suspends. */
static int batch_write_stripe(struct chunk_batch *b)
{
    size_t max = 1024;
    struct batch_chunk **picked = mem_calloc(max, sizeof(struct batch_chunk *));
    size_t n = stripe_pick(b, picked, max);
    struct segment_chunk *chunks = mem_calloc(n, sizeof(*chunks));
    struct segment_stripe where;
    int rc;

    for (size_t i = 0; i < n; i++)
        chunks[i] = chunk_row_stored(picked[i]->row, picked[i]->stored);
    rc = segment_write(b->cs->segments, b->stream, chunks, n, &where);
    if (rc == 0)
        stripe_done(b, &where, chunks, picked, n);
    for (size_t i = 0; i < n; i++) {
        mem_free(picked[i]->stored);
        picked[i]->stored = NULL;
        list_push_back(&b->written, &picked[i]->link);
    }
    mem_free(chunks);
    mem_free(picked);
    return rc;
}

static int batch_write(struct chunk_batch *b, size_t down_to)
{
    int rc = 0;

    fiber_mutex_lock(&b->writing);
    while (rc == 0 && !b->error && b->gathered_bytes > down_to)
        rc = batch_write_stripe(b);
    fiber_mutex_unlock(&b->writing);
    return rc;
}

/* ---- Groups ---- */

static void group_run(void *arg)
{
    struct group *g = arg;
    struct chunk_batch *b = g->batch;
    struct chunkstore *cs = b->cs;
    uint64_t at = env_now(cs->env); /* a group's stages follow each other: a lap for each */
    int rc = 0;

    g->fresh = mem_calloc(g->count, sizeof(struct batch_chunk *));
    if (!b->error) {
        env_offload(cs->env, ENV_LANE_CPU, group_hash, g);
        at = metric_lap(&cs->hash_time, at, env_now(cs->env));
        rc = group_resolve(g);
        at = metric_lap(&cs->look_up_time, at, env_now(cs->env));
    }
    if (rc == 0 && !b->error) {
        env_offload(cs->env, ENV_LANE_CPU, group_compress, g);
        metric_record(&cs->compress_time, env_now(cs->env) - at);
        group_gather(g);
    }
    if (g->done)
        g->done(g->owner);
    if (rc == 0 && !b->error)
        rc = batch_write(b, segment_stripe_good(b->cs->segments) - 1);
    if (rc < 0 && !b->error)
        b->error = rc;
    mem_free(g->fresh);
    fiber_group_done(&b->groups);
    mem_free(g);
}

void chunk_batch_add(struct chunk_batch *b, struct chunk_item *items, size_t n,
                     void (*done)(void *owner), void *owner)
{
    struct group *g = mem_zalloc(sizeof(*g));

    *g = (struct group){.batch = b,
                        .items = items,
                        .count = n,
                        .order = b->next_order,
                        .done = done,
                        .owner = owner};
    for (size_t i = 0; i < n; i++) {
        CHECK(items[i].len > 0 && items[i].len <= CHUNK_MAX);
        b->stats.bytes += items[i].len;
    }
    b->next_order += n;
    fiber_group_add(&b->groups, 1);
    fiber_spawn(b->cs->env, "chunks", group_run, g);
}

int chunk_batch_add_wait(struct chunk_batch *b, struct chunk_item *items, size_t n)
{
    size_t from = 0, bytes = 0;

    for (size_t i = 0; i < n; i++) {
        bytes += items[i].len;
        if (bytes < BATCH_PIECE_BYTES && i + 1 < n)
            continue;
        chunk_batch_add(b, items + from, i + 1 - from, NULL, NULL);
        from = i + 1;
        bytes = 0;
    }
    fiber_group_wait(&b->groups);
    return b->error;
}

int chunk_batch_finish(struct chunk_batch *b)
{
    int rc;

    fiber_group_wait(&b->groups);
    rc = batch_write(b, 0);
    if (rc < 0 && !b->error)
        b->error = rc;
    return b->error;
}

static void batch_encode_list(const struct list *chunks, uint32_t flags, struct strbuf *out)
{
    uint8_t bytes[CHUNK_LISTED_SIZE];

    list_for_each (it, chunks) {
        chunk_listed_encode(LIST_ENTRY(it, struct batch_chunk, link)->row, flags, bytes);
        strbuf_add(out, bytes, sizeof(bytes));
    }
}

void chunk_batch_encode(const struct chunk_batch *b, struct strbuf *out)
{
    uint8_t count[4];
    uint32_t n = 0;

    CHECK(list_empty(&b->gathered) && !b->error);
    list_for_each (it, &b->written)
        n++;
    list_for_each (it, &b->found)
        n += !PLANTED(FOUND_NOT_LISTED);
    codec_put_le32(count, n);
    strbuf_add(out, count, sizeof(count));
    batch_encode_list(&b->written, CHUNK_LISTED_NEW, out);
    if (!PLANTED(FOUND_NOT_LISTED))
        batch_encode_list(&b->found, 0, out);
}

void chunk_batch_free(struct chunk_batch *b)
{
    struct hmap_node *it, *next;

    if (!b)
        return;
    fiber_group_wait(&b->groups);
    for (it = hmap_walk(&b->chunks, NULL); it; it = next) {
        struct batch_chunk *c = HMAP_ENTRY(it, struct batch_chunk, node);

        next = hmap_walk(&b->chunks, it);
        chunk_row_unpin(b->cs, c->row);
        mem_free(c->stored);
        mem_free(c);
    }
    for (size_t i = 0; i < b->held_count; i++)
        segment_release(b->cs->segments, b->held[i]);
    mem_free(b->held);
    hmap_free(&b->chunks);
    mem_free(b);
}

void chunk_batch_get_stats(const struct chunk_batch *b, struct chunk_batch_stats *ret_stats)
{
    *ret_stats = b->stats;
}

/* Content on its way in: bytes to chunks to a recipe; see content.h. */
#include <string.h>

#include "daemon/content.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define CONTENT_BUDGET      (8u << 20)  /* a put takes as much of the budget of all at most */
#define CONTENT_LEAST       (64u << 10) /* and no less */
#define CONTENT_PATIENCE    (30 * ENV_NS_PER_S)
#define CONTENT_IN_FLIGHT   (4u << 20)
#define CONTENT_WAITERS     256u
#define CONTENT_FIRST_PIECE 4096u

struct contents {
    struct partition *p;
    struct fiber_sem budget; /* bytes of streams in flight */
    uint64_t waiting;        /* puts that wait for it */
    struct metric_hist wait;
};

/* A chunk of the stream, from its first byte until the put ends. */
struct put_chunk {
    struct content_put *put;
    struct chunk_item item;
    uint8_t *data; /* gone once stored */
    size_t cap;
    bool undigested;
};

struct content_put {
    struct contents *cs;
    struct chunk_batch *batch;
    struct put_chunk **chunks;
    uint32_t chunk_count, chunk_room;
    struct recipe_piece *pieces;
    uint32_t piece_count, piece_room;
    uint64_t size, in_flight, reserved;
    uint64_t claim; /* its share of the budget */
    struct fiber_cond landed;
};

/* ---- The budget ---- */

int contents_new(struct partition *p, struct contents **ret_contents)
{
    struct contents *cs = mem_zalloc(sizeof(*cs));

    cs->p = p;
    fiber_sem_init(&cs->budget, p->options.ingest_bytes);
    metric_hist_init(&cs->wait, METRIC_TIME);
    *ret_contents = cs;
    return 0;
}

void contents_free(struct contents *cs)
{
    mem_free(cs);
}

void contents_observe(struct contents *cs, struct metrics *m)
{
    metrics_add_hist(m, "filmroom_object_put_wait_seconds",
                     "Time that an instance or object waited for its share of the ingest budget",
                     NULL, &cs->wait);
}

/* What a stream of so many bytes may have in memory: all of it, up to a limit. */
static uint64_t content_share(uint64_t size_hint)
{
    if (size_hint == 0 || size_hint > CONTENT_BUDGET)
        return CONTENT_BUDGET;
    return size_hint < CONTENT_LEAST ? CONTENT_LEAST : size_hint;
}

/* How long others keep their shares is up to their clients, and slow ones may keep all of them. So
 * nobody waits for longer than a sender bears: it is told to come back, and does. */
static int content_claim(struct contents *cs, uint64_t bytes)
{
    uint64_t start = env_now(cs->p->env);
    bool taken;

    if (cs->waiting >= CONTENT_WAITERS)
        return ERR_OVERLOAD;
    cs->waiting++;
    taken = fiber_sem_take_until(cs->p->env, &cs->budget, bytes, start + CONTENT_PATIENCE);
    cs->waiting--;
    metric_record(&cs->wait, env_now(cs->p->env) - start);
    return taken ? 0 : ERR_OVERLOAD;
}

/* More comes than was announced. The rest of a full share is claimed at once; those who wait for it
 * hold a part each, and that they wait for each other ends when the first one's time is up. */
static int content_claim_rest(struct content_put *cp)
{
    int rc = content_claim(cp->cs, CONTENT_BUDGET - cp->claim);

    if (rc == 0)
        cp->claim = CONTENT_BUDGET;
    return rc;
}

int content_put_begin(struct contents *cs, uint64_t size_hint, struct content_put **ret_put)
{
    uint64_t claim = content_share(size_hint);
    struct content_put *cp;
    int rc = cs->p->broken;

    if (rc == 0)
        rc = chunkstore_admit_ever(cs->p->chunks, size_hint);
    if (rc == 0)
        rc = content_claim(cs, claim);
    if (rc < 0)
        return rc;
    /* Not for all that is announced: writes that come later wait behind it, and it may be long in
     * coming, or a part of it stored already. content_put_room sees to the rest. */
    rc = chunkstore_await_room(cs->p->chunks,
                               size_hint < CONTENT_BUDGET ? size_hint : CONTENT_BUDGET);
    if (rc < 0) {
        fiber_sem_give(&cs->budget, claim);
        return rc;
    }
    cp = mem_zalloc(sizeof(*cp));
    cp->cs = cs;
    cp->claim = claim;
    cp->batch = chunk_batch_new(cs->p->chunks, SEGMENT_STUDIES);
    fiber_cond_init(&cp->landed);
    *ret_put = cp;
    return 0;
}

/* All of a small stream is reserved, and of a large one as much as may be in flight; what comes
 * beyond that is admitted, and paced, as it comes. */
int content_put_room(struct content_put *cp, size_t len, uint64_t max)
{
    struct chunkstore *chunks = cp->cs->p->chunks;
    uint64_t want;
    int rc = 0;

    if (len > max || cp->size > max - len)
        return ERR_TOOBIG;
    if (cp->size + len > cp->claim && cp->claim < CONTENT_BUDGET)
        rc = content_claim_rest(cp);
    if (rc < 0)
        return rc;
    want = cp->size + len < CONTENT_BUDGET ? cp->size + len : CONTENT_BUDGET;
    rc = want > cp->reserved ? chunkstore_reserve(chunks, want - cp->reserved)
                             : chunkstore_await_room(chunks, len);
    if (rc < 0)
        return rc;
    cp->reserved = want;
    cp->size += len;
    return 0;
}

/* ---- Chunks and pieces ---- */

static void put_chunk_done(void *owner)
{
    struct put_chunk *c = owner;

    c->put->in_flight -= c->item.len;
    mem_free(c->data);
    c->data = NULL;
    fiber_cond_broadcast(&c->put->landed);
}

void content_put_end_chunk(struct content_put *cp, int64_t *chunk)
{
    struct put_chunk *c;

    if (*chunk < 0)
        return;
    c = cp->chunks[*chunk];
    *chunk = -1;
    c->item.data = c->data;
    cp->in_flight += c->item.len;
    chunk_batch_add(cp->batch, &c->item, 1, put_chunk_done, c);
}

static int put_new_chunk(struct content_put *cp, unsigned flags, int64_t *ret_chunk)
{
    struct put_chunk *c;

    if (cp->chunk_count == RECIPE_PIECES_MAX)
        return ERR_TOOBIG;
    if (cp->chunk_count == cp->chunk_room) {
        cp->chunk_room = cp->chunk_room ? cp->chunk_room * 2 : 16;
        cp->chunks = mem_realloc(cp->chunks, cp->chunk_room * sizeof(struct put_chunk *));
    }
    c = mem_zalloc(sizeof(*c));
    c->put = cp;
    c->item.opaque = flags & CONTENT_OPAQUE;
    c->undigested = flags & CONTENT_UNDIGESTED;
    *ret_chunk = cp->chunk_count;
    cp->chunks[cp->chunk_count++] = c;
    return 0;
}

static void put_chunk_grow(struct put_chunk *c, size_t need)
{
    if (c->cap >= need)
        return;
    c->cap = c->cap ? c->cap : CONTENT_FIRST_PIECE;
    while (c->cap < need)
        c->cap *= 2;
    if (c->cap > CHUNK_MAX)
        c->cap = CHUNK_MAX;
    c->data = mem_realloc(c->data, c->cap);
}

/* Notes that `len` bytes at `off` of a chunk come next in the stream. */
static int put_piece(struct content_put *cp, uint32_t chunk, uint32_t off, uint32_t len)
{
    struct recipe_piece *last = cp->piece_count ? &cp->pieces[cp->piece_count - 1] : NULL;

    if (last && last->chunk == chunk && last->off + last->len == off) {
        last->len += len;
        return 0;
    }
    if (cp->piece_count == RECIPE_PIECES_MAX)
        return ERR_TOOBIG;
    if (cp->piece_count == cp->piece_room) {
        cp->piece_room = cp->piece_room ? cp->piece_room * 2 : 16;
        cp->pieces = mem_realloc(cp->pieces, cp->piece_room * sizeof(*cp->pieces));
    }
    cp->pieces[cp->piece_count++] = (struct recipe_piece){.chunk = chunk, .off = off, .len = len};
    return 0;
}

int content_put_bytes(struct content_put *cp, int64_t *chunk, unsigned flags, const void *p,
                      size_t n)
{
    const uint8_t *from = p;
    int rc = 0;

    while (rc == 0 && n) {
        struct put_chunk *c;
        size_t take;

        while (cp->in_flight > CONTENT_IN_FLIGHT)
            fiber_cond_wait(&cp->landed);
        if (*chunk < 0)
            rc = put_new_chunk(cp, flags, chunk);
        if (rc < 0)
            break;
        c = cp->chunks[*chunk];
        take = CHUNK_MAX - c->item.len < n ? CHUNK_MAX - c->item.len : n;
        put_chunk_grow(c, c->item.len + take);
        memcpy(c->data + c->item.len, from, take);
        rc = put_piece(cp, (uint32_t)*chunk, (uint32_t)c->item.len, (uint32_t)take);
        c->item.len += take;
        from += take;
        n -= take;
        if (c->item.len == CHUNK_MAX)
            content_put_end_chunk(cp, chunk);
    }
    return rc;
}

int content_put_finish(struct content_put *cp)
{
    return chunk_batch_finish(cp->batch);
}

/* ---- What became of it ---- */

void content_put_digest(const struct content_put *cp, uint8_t ret_digest[CONTENT_DIGEST])
{
    struct fingerprint_stream *f = fingerprint_stream_new();

    for (uint32_t i = 0; i < cp->piece_count; i++) {
        const struct recipe_piece *pc = &cp->pieces[i];
        const struct put_chunk *c = cp->chunks[pc->chunk];
        uint8_t layout[8];

        if (c->undigested)
            continue;
        codec_put_le32(layout, pc->off);
        codec_put_le32(layout + 4, pc->len);
        fingerprint_stream_add(f, layout, sizeof(layout));
        fingerprint_stream_add(f, c->item.fingerprint, FINGERPRINT_SIZE);
    }
    fingerprint_stream_end(f, ret_digest);
}

void content_put_list(const struct content_put *cp, struct strbuf *out)
{
    chunk_batch_encode(cp->batch, out);
}

void content_put_recipe(const struct content_put *cp, struct strbuf *out)
{
    MEM_AUTO struct recipe_chunk *chunks = mem_calloc(cp->chunk_count, sizeof(*chunks));
    struct recipe r = {chunks, cp->pieces, cp->chunk_count, cp->piece_count, cp->size};

    for (uint32_t i = 0; i < cp->chunk_count; i++)
        chunks[i] =
            (struct recipe_chunk){cp->chunks[i]->item.id, (uint32_t)cp->chunks[i]->item.len};
    recipe_encode(&r, out);
}

uint64_t content_put_size(const struct content_put *cp)
{
    return cp->size;
}

uint32_t content_put_chunks(const struct content_put *cp)
{
    return cp->chunk_count;
}

uint32_t content_put_pieces_left(const struct content_put *cp)
{
    return RECIPE_PIECES_MAX - cp->piece_count;
}

void content_put_free(struct content_put *cp)
{
    if (!cp)
        return;
    chunk_batch_free(cp->batch); /* waits for what is being worked on */
    for (uint32_t i = 0; i < cp->chunk_count; i++) {
        mem_free(cp->chunks[i]->data);
        mem_free(cp->chunks[i]);
    }
    mem_free(cp->chunks);
    mem_free(cp->pieces);
    chunkstore_unreserve(cp->cs->p->chunks, cp->reserved);
    fiber_sem_give(&cp->cs->budget, cp->claim);
    mem_free(cp);
}

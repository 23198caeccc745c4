/* Writing the runs of the metadata's copy; see image.c.
 *
 * A run is written in pieces, so that what is in memory, in a record, and in a row is bounded
 * whatever the size of the store. Rows gather; when there are enough they go to the chunk store in
 * chunks, all of a piece at once, so that all cores have work; when these are durable a record
 * brings them into the table. The index gathers as well, and goes along with a piece when it fills
 * a chunk, or at the end.
 */
#include <string.h>

#include "daemon/image_priv.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define RUN_CHUNK       (96u * 1024) /* chunks of runs are so long, more or less */
#define RUN_PIECE       (4u << 20)   /* bytes */
#define RUN_PIECE_ITEMS 256u
#define RUN_INDEX_MAX   8u /* chunks of the index in one piece */

struct run_writer {
    struct image *im;
    struct image_run run;
    unsigned flags;      /* of its records */
    size_t piece_max;    /* bytes; small journals want small records */
    struct strbuf bytes; /* rows of this piece */
    size_t *cuts;        /* ends of chunks in them */
    size_t cut_count, cut_room;
    struct strbuf index; /* of chunks that no chunk of the index has yet */
    uint64_t ids[IMAGE_PIECE_MAX];
    uint32_t id_count; /* of this piece */
};

static struct run_writer *run_begin(struct image *im, uint64_t order, bool base, unsigned flags)
{
    struct run_writer *w = mem_zalloc(sizeof(*w));

    w->im = im;
    w->flags = flags;
    /* Two runs may begin at the same record: one of each kind. */
    w->run.number = 2 * journal_next_lsn(im->p->journal) + base;
    w->run.order = order;
    w->run.base = base;
    w->piece_max = journal_record_max(im->p->journal);
    if (w->piece_max > RUN_PIECE)
        w->piece_max = RUN_PIECE;
    return w;
}

/* ---- A piece ---- */

/* Hands chunks to the chunk store and takes their ids down. Suspends. */
static int piece_add(struct run_writer *w, struct chunk_batch *b, struct chunk_item *items,
                     size_t n)
{
    int rc = chunk_batch_add_wait(b, items, n);

    CHECK(w->id_count + n <= IMAGE_PIECE_MAX);
    for (size_t i = 0; rc == 0 && i < n; i++)
        w->ids[w->id_count++] = items[i].id;
    return rc;
}

static int piece_add_rows(struct run_writer *w, struct chunk_batch *b)
{
    struct chunk_item *items = mem_calloc(w->cut_count, sizeof(*items));
    size_t at = 0;
    int rc;

    for (size_t i = 0; i < w->cut_count; i++) {
        items[i].data = (const uint8_t *)w->bytes.data + at;
        items[i].len = w->cuts[i] - at;
        at = w->cuts[i];
    }
    rc = piece_add(w, b, items, w->cut_count);
    for (size_t i = 0; rc == 0 && i < w->cut_count; i++) {
        struct image_chunk c = {.id = items[i].id};

        w->run.chunks++;
        if (PLANTED(IMAGE_PIECE_FORGOTTEN) && w->run.pieces == 1)
            continue;
        memcpy(c.fingerprint, items[i].fingerprint, sizeof(c.fingerprint));
        image_chunk_encode(&w->index, &c);
    }
    mem_free(items);
    return rc;
}

/* Writes the index as far as it fills chunks, or to its end. */
static int piece_add_index(struct run_writer *w, struct chunk_batch *b, bool all)
{
    size_t at = 0;
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < RUN_INDEX_MAX && at < w->index.len; i++) {
        size_t left = w->index.len - at;
        struct chunk_item item = {.data = (const uint8_t *)w->index.data + at,
                                  .len = left < IMAGE_INDEX_BYTES ? left : IMAGE_INDEX_BYTES};
        struct image_chunk *c;

        if (left < IMAGE_INDEX_BYTES && !all)
            break;
        rc = piece_add(w, b, &item, 1);
        if (rc < 0)
            break;
        w->run.index = mem_realloc(w->run.index, (w->run.count + 1) * sizeof(*w->run.index));
        c = &w->run.index[w->run.count++];
        c->id = item.id;
        memcpy(c->fingerprint, item.fingerprint, sizeof(c->fingerprint));
        at += item.len;
    }
    if (rc == 0 && at) {
        memmove(w->index.data, w->index.data + at, w->index.len - at);
        w->index.len -= at;
    }
    return rc;
}

/* Waits until the journal takes so long a record. Not within the journal: a checkpoint that needs
 * this run gives it what is kept for checkpoints, or both would wait for each other. But not the
 * very last of that, which is for draining: ERR_AGAIN. Suspends. */
static int piece_await_room(const struct run_writer *w, size_t body, unsigned *ret_flags)
{
    const struct image *im = w->im;
    unsigned flags;

    while (w->flags != JOURNAL_LAST && !im->base_hurry && !im->p->stopping && !im->p->broken &&
           !journal_has_room_for(im->p->journal, body, w->flags))
        env_sleep(im->p->env, ENV_NS_PER_MS);
    flags = im->base_hurry && w->run.base ? JOURNAL_LAST : w->flags;
    if (flags == JOURNAL_LAST && journal_is_tight(im->p->journal))
        return ERR_AGAIN;
    *ret_flags = flags;
    return 0;
}

static int piece_submit(struct run_writer *w, const struct chunk_batch *b)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct image_piece piece = {
        .number = w->run.number, .piece = w->run.pieces, .count = w->id_count, .ids = w->ids};
    struct iovec iov;
    unsigned flags;
    int rc;

    chunk_batch_encode(b, &body);
    image_piece_encode(&piece, &body);
    iov = (struct iovec){body.data, body.len};
    rc = piece_await_room(w, body.len, &flags);
    if (rc == 0)
        rc = record_submit(&w->im->p->log, RECORD_IMAGE_PIECE, &iov, 1, flags, NULL);
    w->run.pieces += rc == 0;
    return rc;
}

/* Writes what has gathered, with the last of the index at the `end`. Suspends. */
static int piece_write(struct run_writer *w, bool end)
{
    struct chunk_batch *b = chunk_batch_new(w->im->p->chunks, SEGMENT_IMAGE);
    int rc;

    w->id_count = 0;
    rc = w->cut_count ? piece_add_rows(w, b) : 0;
    if (rc == 0)
        rc = piece_add_index(w, b, end);
    if (rc == 0)
        rc = chunk_batch_finish(b);
    if (rc == 0 && w->id_count)
        rc = piece_submit(w, b);
    chunk_batch_free(b);
    w->run.bytes += w->bytes.len;
    w->im->unnamed += w->bytes.len;
    w->im->stats.written += w->bytes.len;
    image_keep(w->im);
    strbuf_reset(&w->bytes);
    w->cut_count = 0;
    return rc;
}

/* ---- A run ---- */

static void run_cut(struct run_writer *w)
{
    size_t last = w->cut_count ? w->cuts[w->cut_count - 1] : 0;

    while (last < w->bytes.len) {
        if (w->cut_count == w->cut_room) {
            w->cut_room = w->cut_room ? 2 * w->cut_room : 64;
            w->cuts = mem_realloc(w->cuts, w->cut_room * sizeof(*w->cuts));
        }
        last = w->bytes.len - last > CHUNK_MAX ? last + CHUNK_MAX : w->bytes.len;
        w->cuts[w->cut_count++] = last;
    }
}

/* Adds a row, and cuts behind it if its key says so: the longer the row the likelier. Suspends. */
static int run_add(struct run_writer *w, enum kv_table t, struct kv_slice key,
                   const struct kv_slice *value)
{
    size_t last = w->cut_count ? w->cuts[w->cut_count - 1] : 0, before = w->bytes.len;
    uint64_t dice = hmap_hash_bytes(key.data, key.len) % RUN_CHUNK;

    image_row_encode(&w->bytes, t, key, value);
    if (dice < w->bytes.len - before || w->bytes.len - last >= CHUNK_MAX)
        run_cut(w);
    if (w->cut_count < RUN_PIECE_ITEMS && w->bytes.len < w->piece_max)
        return 0;
    run_cut(w);
    return piece_write(w, false);
}

/* Ends the run; *ret_run is the caller's, also on failure. Suspends. */
static int run_end(struct run_writer *w, int rc, struct image_run *ret_run)
{
    run_cut(w);
    while (rc == 0 && (w->cut_count || w->index.len))
        rc = piece_write(w, true);
    strbuf_free(&w->bytes);
    strbuf_free(&w->index);
    mem_free(w->cuts);
    *ret_run = w->run;
    mem_free(w);
    return rc;
}

struct sorting {
    const struct kv_changes *changes;
    struct kv_change *rows;
};

static void sort_run(void *arg)
{
    struct sorting *s = arg;

    kv_changes_sorted(s->changes, &s->rows);
}

int image_write_increment(struct image *im, struct image_run *ret_run)
{
    struct run_writer *w = run_begin(im, im->frozen_at, false, JOURNAL_LAST);
    struct sorting s = {.changes = im->frozen};
    int rc = 0;

    env_offload(im->p->env, ENV_LANE_CPU, sort_run, &s);
    for (size_t i = 0; rc == 0 && i < kv_changes_count(im->frozen); i++) {
        const struct kv_change *c = &s.rows[i];

        if (c->gone && PLANTED(IMAGE_KEEPS_DELETED))
            continue;
        rc = run_add(w, c->table, c->key, c->gone ? NULL : &c->value);
    }
    mem_free(s.rows);
    return run_end(w, rc, ret_run);
}

/* ---- A base ---- */

struct base_walk {
    struct run_writer *w;
    bool haste;
};

static int base_row(void *arg, enum kv_table t, const struct kv_row *row)
{
    struct base_walk *b = arg;
    struct image *im = b->w->im;
    uint32_t pieces = b->w->run.pieces;
    uint64_t start = env_now(im->p->env);
    int rc;

    if (t == KV_META && image_meta_is_local(row->key))
        return 0;
    if (im->spoilt || (im->p->stopping && !b->haste))
        return ERR_SHUTDOWN;
    rc = run_add(b->w, t, row->key, &row->value);
    if (rc == 0 && b->w->run.pieces > pieces && !b->haste && !im->base_hurry)
        env_sleep(im->p->env, env_now(im->p->env) - start); /* others want to get on as well */
    return rc;
}

static int base_walk(struct image *im, bool haste)
{
    unsigned flags = haste ? JOURNAL_LAST : 0;
    struct base_walk b = {run_begin(im, im->frozen_at, true, flags), haste};
    int rc = 0;

    for (unsigned t = 0; rc == 0 && t < KV_TABLE_COUNT; t++)
        if (!(IMAGE_TABLES_OUT >> t & 1))
            rc = image_walk(im, (enum kv_table)t, (struct kv_slice){"", 1},
                            (struct kv_slice){"", 0}, base_row, &b);
    return run_end(b.w, rc, &im->base);
}

void image_write_base(struct image *im, bool haste)
{
    int rc;

    if (im->lost) { /* whatever changed until now, the base will have it */
        kv_changes_free(im->active);
        im->active = kv_changes_new(IMAGE_TABLES_OUT);
        im->frozen_at = im->p->processed_lsn;
    }
    im->spoilt = false;
    im->building = true;
    rc = base_walk(im, haste);
    im->building = false;
    if (rc == 0 && im->spoilt)
        rc = ERR_SHUTDOWN;
    if (PLANTED(IMAGE_BASE_TORN)) {
        kv_changes_free(im->active);
        im->active = kv_changes_new(IMAGE_TABLES_OUT);
    }
    im->base_ready = rc == 0;
    if (rc == 0)
        return;
    image_leave(im, &im->base);
    if (im->lost)
        image_lose(im); /* with all that was written to go with it */
    image_keep(im);
    if (rc == ERR_SHUTDOWN)
        return;
    image_put_off(im);
    log_warn("image", "the metadata cannot be copied to the drives, will try again error=%s",
             err_name(rc));
}

/* Volumes: reading and writing.
 *
 * Writes below VOLUME_BULK go as data into the journal, one record each. Larger ones are stored as
 * chunks at once and only their mappings are journaled. Either way the write is durable when it
 * returns, so flush and FUA have nothing to add, whatever durability the volume announces.
 *
 * The unit is the 4 KiB block. A write that covers part of a block reads it, merges and writes it
 * whole; it has those blocks for itself meanwhile (volume_range). Writes of whole blocks may
 * overlap each other freely: the journal's order decides.
 *
 * Reads look into the overlay first, then into the map, and so on down the maps (volume_snap.c). A
 * chunk may be gone by the time it is read, when its block was written again meanwhile: the read
 * then starts over with the newer state.
 */
#include <string.h>

#include "daemon/volume_priv.h"
#include "dedup/compress.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define VOLUME_BULK          (64u * 1024) /* bytes from which a write is stored as chunks at once */
#define VOLUME_PIECE         (1u << 20)   /* bytes of a read or bulk write handled at a time */
#define VOLUME_PIECE_BLOCKS  (VOLUME_PIECE / BLOCK_SIZE)
#define VOLUME_READ_TRIES    100u
#define VOLUME_ZERO_SHARED   (16 * LEAF_BLOCKS)
#define VOLUME_EXTENT_LEAVES 4096u /* leaves one extents call looks at ... */
#define VOLUME_EXTENT_TURN   4u    /* ... and after how many others have their turn */

static struct volume *handle_volume(struct block_volume *h)
{
    return ((struct volume_handle *)h)->volume;
}

static int range_check(const struct volume *v, uint64_t off, uint64_t len)
{
    return off > v->size_limit || len > v->size_limit - off ? ERR_RANGE : 0;
}

/* ---- Measuring ---- */

/* An operation under way: when it began, and how long it was held up. A stage is looked at only
 * where it had to wait, so that a write that nothing holds up costs two readings of the clock. */
struct io_watch {
    uint64_t start, range_ns, room_ns, chunk_ns;
};

static struct io_watch io_begin(const struct volume *v)
{
    return (struct io_watch){.start = env_now(v->owner->p->env)};
}

static void io_end(struct volume *v, enum volume_op op, const struct io_watch *w, uint64_t off,
                   uint64_t len, int rc)
{
    static const char *const names[] = {"block.read", "block.write", "block.flush", "block.zero"};
    struct volumes *vs = v->owner;
    uint64_t now = env_now(vs->p->env), took = now - w->start;

    metric_record(&vs->op_time[op], took);
    if (rc == 0 && op == VOLUME_WRITE)
        metric_add(&vs->written_bytes, len);
    if (rc == 0 && op == VOLUME_READ)
        metric_add(&vs->read_bytes, len);
    if (slow_is(vs->p->slow, took))
        slow_note(vs->p->slow, now, names[op], took,
                  "volume=%s offset=%llu length=%llu range_us=%llu room_us=%llu chunks_us=%llu "
                  "result=%s",
                  log_q(v->info.name), (unsigned long long)off, (unsigned long long)len,
                  (unsigned long long)(w->range_ns / 1000), (unsigned long long)(w->room_ns / 1000),
                  (unsigned long long)(w->chunk_ns / 1000), rc < 0 ? err_name(rc) : "ok");
}

/* ---- Ranges of writes in flight ---- */

static bool ranges_clash(const struct volume_range *a, const struct volume_range *b)
{
    return (a->exclusive || b->exclusive) && !PLANTED(PARTIAL_WRITES_RACE) && a->first <= b->last &&
           b->first <= a->last;
}

static bool range_free(const struct volume *v, const struct volume_range *r)
{
    list_for_each (it, &v->ranges) {
        if (ranges_clash(LIST_ENTRY(it, struct volume_range, link), r))
            return false;
    }
    return true;
}

/* As volume_range_lock, for an operation that is watched. */
static void range_lock_watched(struct volume *v, struct volume_range *r, struct io_watch *w)
{
    bool waits = !range_free(v, r);

    volume_range_lock(v, r);
    if (waits)
        w->range_ns = env_now(v->owner->p->env) - w->start;
}

void volume_range_lock(struct volume *v, struct volume_range *r)
{
    while (!range_free(v, r))
        fiber_cond_wait(&v->range_freed);
    list_push_back(&v->ranges, &r->link);
}

void volume_range_unlock(struct volume *v, struct volume_range *r)
{
    list_del(&r->link);
    fiber_cond_broadcast(&v->range_freed);
}

/* ---- Reading ---- */

struct read_plan {
    struct volume *v;
    uint64_t off;
    size_t len;
    uint8_t *dst;
    struct chunk_read *reads; /* room for VOLUME_PIECE_BLOCKS + 1 */
    size_t count;
    struct map_view view; /* neighbours share leaves */
};

/* Serves one block's share from overlay or hole, or plans the chunk read. Suspends for a leaf. */
static int plan_block(struct read_plan *pl, uint64_t block, uint32_t inner, uint32_t n,
                      uint8_t *dst)
{
    const struct overlay_entry *e;
    uint64_t entry;
    int rc = map_view_block(&pl->view, block, &e, &entry);

    if (rc < 0)
        return rc;
    if (e)
        memcpy(dst, e->data->bytes + inner, n);
    else if (entry)
        pl->reads[pl->count++] = (struct chunk_read){.id = LEAF_CHUNK(entry),
                                                     .off = LEAF_SUB(entry) * BLOCK_SIZE + inner,
                                                     .len = n,
                                                     .dst = dst};
    else
        memset(dst, 0, n);
    return 0;
}

static int read_piece_once(struct read_plan *pl)
{
    int rc = 0;

    pl->count = 0;
    pl->view = MAP_VIEW(pl->v);
    for (size_t done = 0; rc == 0 && done < pl->len;) {
        uint64_t at = pl->off + done;
        uint32_t inner = (uint32_t)(at % BLOCK_SIZE), n = BLOCK_SIZE - inner;

        if (n > pl->len - done)
            n = (uint32_t)(pl->len - done);
        rc = plan_block(pl, at / BLOCK_SIZE, inner, n, pl->dst + done);
        done += n;
    }
    map_view_drop(&pl->view);
    if (rc == 0 && pl->count)
        rc = chunkstore_read(pl->v->owner->p->chunks, pl->reads, pl->count);
    return rc;
}

/* Reads up to VOLUME_PIECE bytes; starts over where a chunk went away under it. */
static int read_piece(struct volume *v, uint64_t off, uint8_t *dst, size_t len)
{
    struct read_plan pl = {.v = v, .off = off, .len = len, .dst = dst};
    int rc = ERR_NOENT;

    pl.reads = mem_calloc(len / BLOCK_SIZE + 2, sizeof(*pl.reads));
    for (unsigned i = 0; rc == ERR_NOENT && i < VOLUME_READ_TRIES; i++)
        rc = read_piece_once(&pl);
    mem_free(pl.reads);
    return rc == ERR_NOENT ? ERR_LOST : rc; /* a map entry without a chunk: damage */
}

int volume_read(struct block_volume *h, uint64_t off, void *buf, size_t len)
{
    struct volume *v = handle_volume(h);
    struct io_watch w = io_begin(v);
    int rc = range_check(v, off, len);

    if (len > BLOCK_IO_MAX)
        return ERR_TOOBIG;
    for (size_t done = 0; rc == 0 && done < len;) {
        size_t n = len - done < VOLUME_PIECE ? len - done : VOLUME_PIECE;

        rc = read_piece(v, off + done, (uint8_t *)buf + done, n);
        done += n;
    }
    io_end(v, VOLUME_READ, &w, off, len, rc);
    return rc;
}

/* ---- Writing ---- */

static bool overlay_is_full(const struct volumes *vs, uint32_t blocks)
{
    return vs->overlay.count + vs->overlay_incoming + blocks > vs->overlay_max;
}

/* Waits until the overlay has room for more blocks. ERR_NOSPC when it cannot be drained for lack of
 * space: not the store's, which keeps some for that, but that of the file systems which file-backed
 * drives are on. Their space may come back in an hour or never; nobody is to wait for it, here or
 * where the journal is full first, which cannot be trimmed then (volume_drainer). */
static int overlay_await_room(struct volumes *vs, uint32_t blocks, struct io_watch *w)
{
    uint64_t start = 0, took;

    while (overlay_is_full(vs, blocks) && vs->drain_error != ERR_NOSPC && !vs->stopping &&
           !vs->p->broken) {
        if (!start)
            start = env_now(vs->p->env);
        fiber_cond_wait(&vs->overlay_room);
    }
    if (start) {
        took = env_now(vs->p->env) - start;
        metric_record(&vs->overlay_wait, took);
        w->room_ns += took;
    }
    return overlay_is_full(vs, blocks) && vs->drain_error == ERR_NOSPC ? ERR_NOSPC : 0;
}

/* Small: the blocks go into the journal and the overlay. */
static int write_small(struct volume *v, uint64_t first, const uint8_t *bytes, uint32_t blocks,
                       struct io_watch *w)
{
    struct volumes *vs = v->owner;
    uint8_t head[24] = {0};
    struct iovec iov[] = {{head, sizeof(head)},
                          {(void *)(uintptr_t)bytes, (size_t)blocks * BLOCK_SIZE}};
    uint64_t start = env_now(vs->p->env);
    int rc = chunkstore_await_room(vs->p->chunks, (uint64_t)blocks * BLOCK_SIZE);

    w->room_ns += env_now(vs->p->env) - start;
    if (rc == 0)
        rc = overlay_await_room(vs, blocks, w);
    if (rc < 0)
        return rc;
    if (vs->stopping)
        return ERR_SHUTDOWN;
    codec_put_le64(head, v->info.id);
    codec_put_le64(head + 8, first);
    codec_put_le32(head + 16, blocks);
    vs->overlay_incoming += blocks;
    rc = record_submit(&vs->p->log, RECORD_VOLUME_WRITE, iov, 2, 0, vs);
    if (rc < 0) {
        vs->overlay_incoming -= blocks; /* it was not applied */
        fiber_cond_signal(&vs->drain_work);
        fiber_cond_broadcast(&vs->overlay_room);
    }
    return rc;
}

/* Bulk: chunks now, mappings in the journal. */
static int write_bulk(struct volume *v, uint64_t first, const uint8_t *bytes, uint32_t blocks,
                      struct io_watch *w)
{
    struct volumes *vs = v->owner;
    struct chunk_item *items = mem_calloc(blocks, sizeof(*items));
    struct volume_mapping *maps = mem_calloc(blocks, sizeof(*maps));
    struct chunk_batch *b = chunk_batch_new(vs->p->chunks, SEGMENT_VOLUMES);
    size_t n = 0;
    uint64_t room = (uint64_t)blocks * BLOCK_SIZE, start = env_now(vs->p->env);
    bool reserved;
    int rc = chunkstore_reserve(vs->p->chunks, room);

    reserved = rc == 0;
    for (uint32_t i = 0; i < blocks; i++) {
        const uint8_t *p = bytes + (size_t)i * BLOCK_SIZE;

        maps[i] = (struct volume_mapping){.volume = v->info.id, .block = first + i};
        if (!compress_is_zero(p, BLOCK_SIZE))
            items[n++] = (struct chunk_item){.data = p, .len = BLOCK_SIZE};
    }
    if (rc == 0 && n)
        rc = chunk_batch_add_wait(b, items, n);
    if (rc == 0)
        rc = chunk_batch_finish(b);
    w->chunk_ns += env_now(vs->p->env) - start;
    if (rc == 0) {
        size_t next = 0;

        for (uint32_t i = 0; i < blocks && next < n; i++)
            if (items[next].data == bytes + (size_t)i * BLOCK_SIZE)
                maps[i].entry = LEAF_ENTRY(items[next++].id, 0);
        rc = volume_submit_map(vs, b, maps, blocks, 0);
    }
    chunk_batch_free(b);
    if (reserved)
        chunkstore_unreserve(vs->p->chunks, room);
    mem_free(items);
    mem_free(maps);
    return rc;
}

/* Whole blocks of any number. */
static int write_blocks(struct volume *v, uint64_t first, const uint8_t *bytes, uint64_t blocks,
                        struct io_watch *w)
{
    int rc = 0;

    while (rc == 0 && blocks) {
        uint32_t n = blocks < VOLUME_PIECE_BLOCKS ? (uint32_t)blocks : VOLUME_PIECE_BLOCKS;

        rc = n * BLOCK_SIZE >= VOLUME_BULK ? write_bulk(v, first, bytes, n, w)
                                           : write_small(v, first, bytes, n, w);
        first += n;
        bytes += (size_t)n * BLOCK_SIZE;
        blocks -= n;
    }
    return rc;
}

/* A range that begins or ends within a block: the blocks are read, merged and written whole.
 * `bytes` NULL stands for zeroes. The caller holds them exclusively. */
static int write_merged(struct volume *v, uint64_t off, const uint8_t *bytes, size_t len,
                        struct io_watch *w)
{
    uint64_t first = off / BLOCK_SIZE, last = (off + len - 1) / BLOCK_SIZE;
    size_t blocks = (size_t)(last - first + 1), inner = (size_t)(off % BLOCK_SIZE);
    uint8_t *merged = mem_alloc(blocks * BLOCK_SIZE);
    int rc = read_piece(v, first * BLOCK_SIZE, merged, BLOCK_SIZE);

    if (rc == 0 && blocks > 1)
        rc = read_piece(v, last * BLOCK_SIZE, merged + (blocks - 1) * BLOCK_SIZE, BLOCK_SIZE);
    if (rc == 0) {
        if (bytes)
            memcpy(merged + inner, bytes, len);
        else
            memset(merged + inner, 0, len);
        rc = write_blocks(v, first, merged, blocks, w);
    }
    mem_free(merged);
    return rc;
}

int volume_write(struct block_volume *h, uint64_t off, const void *buf, size_t len, unsigned flags)
{
    struct volume *v = handle_volume(h);
    struct volume_range r = {.first = off / BLOCK_SIZE,
                             .last = (off + len - 1) / BLOCK_SIZE,
                             .exclusive = off % BLOCK_SIZE || len % BLOCK_SIZE};
    struct io_watch w = io_begin(v);
    int rc;

    (void)flags; /* every write is durable */
    if (len > BLOCK_IO_MAX)
        return ERR_TOOBIG;
    if (v->info.readonly)
        return ERR_READONLY;
    if (range_check(v, off, len) < 0)
        return ERR_RANGE;
    if (len == 0)
        return 0;
    range_lock_watched(v, &r, &w);
    rc = range_check(v, off, len); /* it may have shrunk while we waited */
    if (rc == 0)
        rc = r.exclusive ? write_merged(v, off, buf, len, &w)
                         : write_blocks(v, r.first, buf, len / BLOCK_SIZE, &w);
    volume_range_unlock(v, &r);
    io_end(v, VOLUME_WRITE, &w, off, len, rc);
    return rc;
}

int volume_flush(struct block_volume *h)
{
    struct volume *v = handle_volume(h);
    struct io_watch w = io_begin(v);

    /* Writes are durable when they return; a broken journal is all there is to tell. */
    io_end(v, VOLUME_FLUSH, &w, 0, 0, v->owner->p->broken);
    return v->owner->p->broken;
}

/* ---- Holes ---- */

static int zero_record(struct volume *v, uint64_t first, uint32_t count, unsigned flags)
{
    uint8_t body[24] = {0};
    struct iovec iov = {body, sizeof(body)};

    codec_put_le64(body, v->info.id);
    codec_put_le64(body + 8, first);
    codec_put_le32(body + 16, count);
    return record_submit(&v->owner->p->log, RECORD_VOLUME_ZERO, &iov, 1, flags, NULL);
}

/* Brings what applying will need into the caches, as for mappings (volume_apply.c). Suspends. */
static int zero_warm(struct volume *v, uint64_t first, uint32_t count)
{
    struct volumes *vs = v->owner;
    uint64_t *ids = mem_calloc(count, sizeof(*ids)), block = first;
    size_t n = 0;
    int rc = 0;

    while (rc == 0 && block < first + count) {
        uint64_t stop = (block / LEAF_BLOCKS + 1) * LEAF_BLOCKS;
        struct leaf *l = NULL;

        rc = leafmap_get(&vs->leaves, v->map->id, block / LEAF_BLOCKS, &l);
        for (; rc == 0 && block < stop && block < first + count; block++) {
            uint64_t id = LEAF_CHUNK(l->entries[block % LEAF_BLOCKS]);

            if (id && (n == 0 || ids[n - 1] != id))
                ids[n++] = id;
        }
        leafmap_put(&vs->leaves, l);
    }
    if (rc == 0)
        rc = chunkstore_warm(vs->p->chunks, ids, n);
    mem_free(ids);
    return rc;
}

int volume_zero_blocks(struct volume *v, uint64_t first, uint64_t count, unsigned flags)
{
    struct volume_walk walk = VOLUME_WALK(v);
    uint64_t end = first + count;
    int rc = 0;

    while (rc == 0 && first < end) {
        /* Small ranges are simply zeroed; in large ones the unmapped parts are passed over. */
        if (end - first > LEAF_BLOCKS) {
            rc = volume_walk_next(&walk, first, &first);
            if (rc < 0 || first >= end)
                break;
        }
        /* Upon a parent every block zeroed takes an entry: not too many for nothing. */
        uint32_t most = v->map->parent ? VOLUME_ZERO_SHARED : VOLUME_ZERO_BLOCKS;
        uint32_t n = end - first < most ? (uint32_t)(end - first) : most;

        rc = zero_warm(v, first, n);
        if (rc == 0)
            rc = zero_record(v, first, n, flags);
        first += n;
    }
    volume_walk_end(&walk);
    return rc;
}

int volume_zero(struct block_volume *h, uint64_t off, uint64_t len, unsigned flags)
{
    struct volume *v = handle_volume(h);
    struct volume_range r = {.first = off / BLOCK_SIZE, .exclusive = true};
    struct io_watch w = io_begin(v);
    uint64_t end = off + len, head, tail;
    int rc = 0;

    (void)flags;
    if (v->info.readonly)
        return ERR_READONLY;
    if (range_check(v, off, len) < 0)
        return ERR_RANGE;
    if (len == 0)
        return 0;
    r.last = (end - 1) / BLOCK_SIZE;
    head = (off + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE; /* whole blocks are [head, tail) */
    tail = end / BLOCK_SIZE * BLOCK_SIZE;
    r.exclusive = head != off || tail != end;
    range_lock_watched(v, &r, &w);
    if (head > tail) {
        rc = write_merged(v, off, NULL, len, &w); /* within one block */
    } else {
        if (off < head)
            rc = write_merged(v, off, NULL, head - off, &w);
        if (rc == 0 && tail > head)
            rc = volume_zero_blocks(v, head / BLOCK_SIZE, (tail - head) / BLOCK_SIZE,
                                    JOURNAL_INTERNAL);
        if (rc == 0 && end > tail)
            rc = write_merged(v, tail, NULL, end - tail, &w);
    }
    volume_range_unlock(v, &r);
    io_end(v, VOLUME_ZERO, &w, off, len, rc);
    return rc;
}

/* ---- Extents ---- */

struct extent_list {
    struct block_extent *extents;
    size_t count, max;
    uint64_t left; /* bytes still to be described */
};

/* Adds n bytes of a kind; false when the list is full. */
static bool extent_add(struct extent_list *l, uint64_t n, bool hole)
{
    if (n > l->left)
        n = l->left;
    if (n == 0)
        return true;
    if (l->count && l->extents[l->count - 1].hole == hole) {
        l->extents[l->count - 1].length += n;
    } else {
        if (l->count == l->max)
            return false;
        l->extents[l->count++] = (struct block_extent){n, hole};
    }
    l->left -= n;
    return l->left > 0;
}

/* Describes the blocks of one leaf from `block` on; *ret_used tells whether any is not a hole. */
static int extents_leaf(struct volume *v, uint64_t off, uint64_t block, struct extent_list *l,
                        bool *ret_more, bool *ret_used)
{
    struct map_view view = MAP_VIEW(v);
    int rc;

    *ret_used = false;
    do {
        uint64_t start = block * BLOCK_SIZE < off ? off : block * BLOCK_SIZE, entry;
        const struct overlay_entry *e;

        rc = map_view_block(&view, block, &e, &entry);
        if (rc < 0)
            break;
        *ret_used |= e || entry;
        *ret_more = extent_add(l, (block + 1) * BLOCK_SIZE - start, !e && !entry);
        block++;
    } while (*ret_more && block % LEAF_BLOCKS);
    map_view_drop(&view);
    return rc;
}

int volume_extents(struct block_volume *h, uint64_t off, uint64_t len, struct block_extent *extents,
                   size_t max, size_t *ret_count)
{
    struct volume *v = handle_volume(h);
    struct extent_list l = {extents, 0, max, len};
    struct volume_walk walk = VOLUME_WALK(v);
    uint64_t block = off / BLOCK_SIZE, next;
    bool more = len > 0 && max > 0, used;
    int rc = range_check(v, off, len);

    if (rc < 0)
        return rc;
    for (unsigned leaves = 1; more && leaves <= VOLUME_EXTENT_LEAVES; leaves++) {
        rc = extents_leaf(v, off, block, &l, &more, &used);
        if (rc < 0)
            break;
        if (leaves % VOLUME_EXTENT_TURN == 0)
            fiber_yield(); /* what is in memory is looked at without suspending */
        block = (block / LEAF_BLOCKS + 1) * LEAF_BLOCKS;
        if (!more || used)
            continue;
        /* A leaf without anything: there may be many, they are passed over at once. */
        rc = volume_walk_next(&walk, block, &next);
        if (rc < 0)
            break;
        if (next == UINT64_MAX)
            more = (extent_add(&l, UINT64_MAX, true), false);
        else if (next > block)
            more = extent_add(&l, (next - block) * BLOCK_SIZE, true);
        block = next;
    }
    volume_walk_end(&walk);
    if (rc < 0)
        return rc;
    *ret_count = l.count;
    return 0;
}

/* Which chunks are known to be lost: those that a reader or scrub could not get from any columns.
 *
 * They are kept in memory, and as rows "lost" + id of KV_META: a chunk that is lost must not be
 * found by its fingerprint (renew.c), after a restart neither, and an administrator wants to hear
 * of it. What was found out, and what turned out to be readable again, is journaled in the
 * background, so many at a time:
 *
 *   RECORD_CHUNK_LOST: count u32, reserved u32, then
 *   count x (id u64, segment u64, offset u32, back u32: 0 lost, 1 readable again)
 *
 * The place tells whether the record still means the chunk that is there: one that went meanwhile
 * has no row, one that was moved could be read for that, and its row of KV_META went with the move.
 *
 * It is a list of what to beware of, no part of what is stored: one too many costs writing a chunk
 * again, one too few is found out when it is read. So it may be bounded, a crash may take what was
 * not journaled yet, and replay need not come to the very same.
 */
#include <string.h>

#include "dedup/chunk_priv.h"
#include "dedup/chunkstore.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"

#define LOST_MAX        65536u /* that are remembered */
#define LOST_AT_ONCE    128u   /* in one record */
#define LOST_PAGE       4096u  /* rows loaded at a time */
#define LOST_PREFIX     "lost"
#define LOST_PREFIX_LEN 4u
#define LOST_HEAD       8u
#define LOST_ENTRY      24u
#define LOST_VALUE      1u /* of a row: its version */

struct lost_chunk {
    struct hmap_node node;
    uint64_t id;
    bool noted;    /* there is a row of it */
    bool back;     /* it was read since */
    bool hopeless; /* renew.c */
};

/* ---- In memory ---- */

static struct lost_chunk *lost_find(const struct chunkstore *cs, uint64_t id)
{
    /* The mix is one to one. */
    struct hmap_node *n = cs->lost.count ? hmap_first(&cs->lost, hmap_mix(id)) : NULL;

    return n ? HMAP_ENTRY(n, struct lost_chunk, node) : NULL;
}

static void lost_remove(struct chunkstore *cs, struct lost_chunk *l)
{
    cs->stats.lost -= !l->back;
    hmap_remove(&cs->lost, &l->node);
    mem_free(l);
}

static struct lost_chunk *lost_add(struct chunkstore *cs, uint64_t id)
{
    struct lost_chunk *l = lost_find(cs, id);

    if (!l) {
        if (cs->lost.count >= LOST_MAX)
            return NULL;
        l = mem_zalloc(sizeof(*l));
        l->id = id;
        hmap_insert(&cs->lost, &l->node, hmap_mix(id));
        cs->stats.lost++;
    } else if (l->back) {
        l->back = false;
        cs->stats.lost++;
    }
    return l;
}

void chunkstore_note_lost(struct chunkstore *cs, uint64_t id)
{
    const struct lost_chunk *l = lost_add(cs, id);

    cs->lost_changed |= l && !l->noted;
}

void chunkstore_note_back(struct chunkstore *cs, uint64_t id)
{
    struct lost_chunk *l = lost_find(cs, id);

    if (!l || l->back)
        return;
    if (!l->noted) {
        lost_remove(cs, l);
        return;
    }
    l->back = true;
    cs->stats.lost--;
    cs->lost_changed = true;
}

bool chunk_lost_known(const struct chunkstore *cs, uint64_t id)
{
    const struct lost_chunk *l = lost_find(cs, id);

    return l && !l->back;
}

bool chunk_is_hopeless(const struct chunkstore *cs, uint64_t id)
{
    const struct lost_chunk *l = lost_find(cs, id);

    return l && !l->back && l->hopeless;
}

bool chunk_lost_give_up(struct chunkstore *cs, uint64_t id)
{
    struct lost_chunk *l = lost_add(cs, id);

    if (l)
        l->hopeless = true;
    return l != NULL;
}

void chunk_lost_free(struct chunkstore *cs)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&cs->lost, NULL); it; it = next) {
        next = hmap_walk(&cs->lost, it);
        mem_free(HMAP_ENTRY(it, struct lost_chunk, node));
    }
    hmap_free(&cs->lost);
}

/* ---- Rows ---- */

void chunk_lost_key(uint64_t id, uint8_t key[CHUNK_LOST_KEY])
{
    memcpy(key, LOST_PREFIX, LOST_PREFIX_LEN);
    codec_put_be64(key + LOST_PREFIX_LEN, id);
}

bool chunk_lost_id(struct kv_slice key, uint64_t *ret_id)
{
    if (key.len != CHUNK_LOST_KEY || memcmp(key.data, LOST_PREFIX, LOST_PREFIX_LEN) != 0)
        return false;
    *ret_id = codec_get_be64((const uint8_t *)key.data + LOST_PREFIX_LEN);
    return true;
}

static void lost_put(struct chunkstore *cs, uint64_t id, struct kv_batch *batch)
{
    static const uint8_t value = LOST_VALUE;
    uint8_t key[CHUNK_LOST_KEY];
    struct lost_chunk *l = lost_add(cs, id);

    if (!l)
        return;
    l->noted = true;
    chunk_lost_key(id, key);
    kv_batch_put(batch, KV_META, (struct kv_slice){key, sizeof(key)}, (struct kv_slice){&value, 1});
}

void chunk_lost_drop(struct chunkstore *cs, uint64_t id, struct kv_batch *batch)
{
    struct lost_chunk *l = lost_find(cs, id);
    uint8_t key[CHUNK_LOST_KEY];

    if (!l)
        return;
    if (l->noted) {
        chunk_lost_key(id, key);
        kv_batch_delete(batch, KV_META, (struct kv_slice){key, sizeof(key)});
    }
    lost_remove(cs, l);
}

int chunk_lost_load(struct chunkstore *cs)
{
    KV_WALK_AUTO struct kv_walk w;
    uint8_t from[CHUNK_LOST_KEY], to[CHUNK_LOST_KEY];
    const struct kv_row *row;
    int rc = 0;

    chunk_lost_key(0, from);
    chunk_lost_key(UINT64_MAX, to);
    kv_walk_init(&w, cs->kv, KV_META, (struct kv_slice){from, sizeof(from)},
                 (struct kv_slice){to, sizeof(to)}, LOST_PAGE, LOST_PAGE * 64);
    while (cs->lost.count < LOST_MAX && (rc = kv_walk_next(&w, &row)) > 0) {
        uint64_t id;
        struct lost_chunk *l = chunk_lost_id(row->key, &id) ? lost_add(cs, id) : NULL;

        if (l)
            l->noted = true;
    }
    return rc < 0 ? rc : 0;
}

/* ---- The record ---- */

static bool lost_news(const struct lost_chunk *l)
{
    return l->noted == l->back;
}

/* Some of what is to be journaled; false when that is all. */
static bool lost_gather(struct chunkstore *cs, uint64_t *ids, size_t *ret_count)
{
    size_t n = 0;

    for (struct hmap_node *it = hmap_walk(&cs->lost, NULL); it; it = hmap_walk(&cs->lost, it)) {
        const struct lost_chunk *l = HMAP_ENTRY(it, struct lost_chunk, node);

        if (!lost_news(l))
            continue;
        if (n == LOST_AT_ONCE) {
            *ret_count = n;
            return true;
        }
        ids[n++] = l->id;
    }
    *ret_count = n;
    return false;
}

/* Of those that are news still. What is no chunk any more was noted too late. */
static void lost_encode(struct chunkstore *cs, const uint64_t *ids, struct chunk_row **rows,
                        size_t n, struct strbuf *body)
{
    uint8_t *p = strbuf_room(body, LOST_HEAD + n * LOST_ENTRY);
    uint32_t count = 0;
    uint8_t *at = p + LOST_HEAD;

    for (size_t i = 0; i < n; i++) {
        struct lost_chunk *l = lost_find(cs, ids[i]);

        if (l && !rows[i] && !l->noted)
            lost_remove(cs, l);
        if (!l || !rows[i] || !lost_news(l))
            continue;
        codec_put_le64(at, l->id);
        codec_put_le64(at + 8, rows[i]->loc.stripe.segment);
        codec_put_le32(at + 16, rows[i]->loc.stripe.offset);
        codec_put_le32(at + 20, l->back);
        at += LOST_ENTRY;
        count++;
    }
    codec_put_le32(p, count);
    codec_put_le32(p + 4, 0);
    body->len = LOST_HEAD + count * LOST_ENTRY;
}

bool chunkstore_lost_news(const struct chunkstore *cs)
{
    return cs->lost_changed;
}

int chunkstore_tell_lost(struct chunkstore *cs)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    uint64_t ids[LOST_AT_ONCE];
    struct chunk_row *rows[LOST_AT_ONCE];
    struct iovec iov;
    size_t n;
    bool more;
    int rc;

    cs->lost_changed = false;
    more = lost_gather(cs, ids, &n);
    rc = chunk_rows_all(cs, ids, n, rows);
    if (rc == 0) {
        lost_encode(cs, ids, rows, n, &body);
        for (size_t i = 0; i < n; i++)
            chunk_row_unpin(cs, rows[i]);
        iov = (struct iovec){body.data, body.len};
        if (body.len > LOST_HEAD)
            rc = record_submit(cs->log, RECORD_CHUNK_LOST, &iov, 1, 0, cs);
    }
    cs->lost_changed |= more || rc < 0;
    return rc;
}

struct lost_entry {
    uint64_t segment;
    uint32_t offset;
    bool back;
};

static int lost_decode(const uint8_t *body, size_t len, uint64_t *ids, struct lost_entry *entries,
                       size_t *ret_count)
{
    struct codec_reader r = codec_reader_on(body, len);
    uint32_t n = codec_read_le32(&r);

    (void)codec_read_le32(&r);
    if (!codec_reader_ok(&r) || n > LOST_AT_ONCE || codec_left(&r) != n * LOST_ENTRY)
        return ERR_FORMAT;
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = codec_read_le64(&r);
        entries[i].segment = codec_read_le64(&r);
        entries[i].offset = codec_read_le32(&r);
        entries[i].back = codec_read_le32(&r) != 0;
    }
    *ret_count = n;
    return 0;
}

static void lost_apply(struct chunkstore *cs, const struct chunk_row *r, const struct lost_entry *e,
                       bool replay, struct kv_batch *batch)
{
    const struct lost_chunk *l;

    if (!r || r->loc.stripe.segment != e->segment || r->loc.stripe.offset != e->offset)
        return;
    if (!e->back) {
        lost_put(cs, r->id, batch);
        return;
    }
    l = lost_find(cs, r->id);
    if (l && (replay || l->back)) /* not lost again since */
        chunk_lost_drop(cs, r->id, batch);
}

int chunkstore_apply_lost(struct chunkstore *cs, const uint8_t *body, size_t len, bool replay,
                          struct kv_batch *batch)
{
    uint64_t ids[LOST_AT_ONCE] = {0};
    struct lost_entry entries[LOST_AT_ONCE];
    struct chunk_row *rows[LOST_AT_ONCE];
    size_t n;
    int rc = lost_decode(body, len, ids, entries, &n);

    if (rc == 0)
        rc = chunk_rows_all(cs, ids, n, rows);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        lost_apply(cs, rows[i], &entries[i], replay, batch);
        chunk_row_unpin(cs, rows[i]);
    }
    return 0;
}

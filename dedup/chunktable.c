/* The chunk table: rows in the KV store, a bounded cache of them, and the transactions by which records
 * change them.
 *
 * The cache is the newest truth: a transaction changes rows in it, and the KV batch follows. A load from
 * the KV store may overtake such a change: it began before, and would bring the old row back. So a row
 * changed (or removed) while a load is under way is not evicted before that load has ended; the load
 * then finds it in the cache and takes that.
 */
#include "dedup/chunkstore.h"

#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define CHUNK_CACHE_DEFAULT (256u * 1024)
#define CHUNK_ID_GAP        (1u << 20) /* ids skipped at start: those handed out but never journaled */
#define CHUNK_NEW_SIZE      78u        /* one new chunk in a record */
#define CHUNK_NEW_MAX       65536u     /* new chunks in one record */

static const struct kv_slice chunk_stats_key = {"chunks", 6};

struct chunk_load {
    struct list link;
    uint64_t tick;
};

int chunkstore_new(struct env *env, struct kv *kv, struct segments *segments,
                   struct record_log *log, const struct chunkstore_options *options,
                   struct chunkstore **ret_store)
{
    struct chunkstore *cs = mem_zalloc(sizeof(*cs));

    cs->env = env;
    cs->kv = kv;
    cs->segments = segments;
    cs->log = log;
    cs->options = *options;
    if (!cs->options.cache_rows)
        cs->options.cache_rows = CHUNK_CACHE_DEFAULT;
    cs->next_id = 1;
    hmap_init(&cs->by_id);
    hmap_init(&cs->by_fp);
    list_init(&cs->lru);
    list_init(&cs->loads);
    *ret_store = cs;
    return 0;
}

void chunkstore_free(struct chunkstore *cs)
{
    struct hmap_node *n, *next;

    if (!cs)
        return;
    for (n = hmap_walk(&cs->by_id, NULL); n; n = next) {
        next = hmap_walk(&cs->by_id, n);
        mem_free(HMAP_ENTRY(n, struct chunk_row, by_id));
    }
    hmap_free(&cs->by_id);
    hmap_free(&cs->by_fp);
    mem_free(cs);
}

/* ---- Rows as bytes ---- */

void chunk_row_encode(const struct chunk_row *r, uint8_t out[CHUNK_ROW_SIZE])
{
    struct codec_writer w = codec_writer_on(out, CHUNK_ROW_SIZE);

    codec_write_u8(&w, 1); /* version */
    codec_write_u8(&w, r->codec);
    codec_write_u8(&w, r->fp_algorithm);
    codec_write_u8(&w, 0);
    codec_write_le64(&w, r->loc.stripe.segment);
    codec_write_le32(&w, r->loc.stripe.offset);
    codec_write_le32(&w, r->loc.stripe.width);
    codec_write_le32(&w, r->loc.position);
    codec_write_le32(&w, r->loc.stored);
    codec_write_le32(&w, r->loc.crc);
    codec_write_le32(&w, r->raw);
    codec_write_le64(&w, r->refs);
    codec_write_bytes(&w, r->fp, FINGERPRINT_SIZE);
    codec_write_le16(&w, 0);
    codec_write_le32(&w, 0);
    CHECK(codec_writer_ok(&w) && codec_written(&w) == CHUNK_ROW_SIZE);
}

int chunk_row_decode(const void *p, size_t n, struct chunk_row *r)
{
    struct codec_reader rd = codec_reader_on(p, n);
    const uint8_t *fp;

    if (codec_read_u8(&rd) != 1)
        return ERR_FORMAT;
    r->codec = codec_read_u8(&rd);
    r->fp_algorithm = codec_read_u8(&rd);
    (void)codec_read_u8(&rd);
    r->loc.stripe.segment = codec_read_le64(&rd);
    r->loc.stripe.offset = codec_read_le32(&rd);
    r->loc.stripe.width = codec_read_le32(&rd);
    r->loc.position = codec_read_le32(&rd);
    r->loc.stored = codec_read_le32(&rd);
    r->loc.crc = codec_read_le32(&rd);
    r->raw = codec_read_le32(&rd);
    r->refs = codec_read_le64(&rd);
    fp = codec_read_bytes(&rd, FINGERPRINT_SIZE);
    if (!codec_reader_ok(&rd) || r->raw == 0 || r->raw > CHUNK_MAX)
        return ERR_FORMAT;
    memcpy(r->fp, fp, FINGERPRINT_SIZE);
    return 0;
}

void chunk_zero_key(uint64_t id, uint8_t key[CHUNK_ZERO_KEY])
{
    key[0] = 'Z';
    codec_put_be64(key + 1, id);
}

/* ---- The cache ---- */

struct chunk_row *chunk_row_cached(struct chunkstore *cs, uint64_t id)
{
    for (struct hmap_node *n = hmap_first(&cs->by_id, hmap_mix(id)); n; n = hmap_next(n)) {
        struct chunk_row *r = HMAP_ENTRY(n, struct chunk_row, by_id);

        if (r->id == id)
            return r;
    }
    return NULL;
}

struct chunk_row *chunk_row_by_fp(struct chunkstore *cs, const uint8_t fp[FINGERPRINT_SIZE])
{
    for (struct hmap_node *n = hmap_first(&cs->by_fp, chunk_fp_hash(fp)); n; n = hmap_next(n)) {
        struct chunk_row *r = HMAP_ENTRY(n, struct chunk_row, by_fp);

        if (!r->dying && memcmp(r->fp, fp, FINGERPRINT_SIZE) == 0)
            return r;
    }
    return NULL;
}

static void chunk_row_forget(struct chunkstore *cs, struct chunk_row *r)
{
    list_del(&r->lru);
    hmap_remove(&cs->by_id, &r->by_id);
    if (r->registered && !r->gone)
        hmap_remove(&cs->by_fp, &r->by_fp);
    cs->rows--;
    mem_free(r);
}

static void chunk_cache_trim(struct chunkstore *cs)
{
    uint64_t oldest = UINT64_MAX;

    if (!list_empty(&cs->loads))
        oldest = LIST_ENTRY(cs->loads.next, struct chunk_load, link)->tick;
    while (cs->rows > cs->options.cache_rows && !list_empty(&cs->lru)) {
        struct chunk_row *r = LIST_ENTRY(cs->lru.next, struct chunk_row, lru);

        if (r->changed >= oldest)
            break;
        chunk_row_forget(cs, r);
    }
}

void chunk_row_pin(struct chunkstore *cs, struct chunk_row *r)
{
    (void)cs;
    if (r->pins++ == 0)
        list_del(&r->lru);
}

void chunk_row_unpin(struct chunkstore *cs, struct chunk_row *r)
{
    if (!r)
        return;
    CHECK(r->pins > 0);
    if (--r->pins > 0)
        return;
    list_push_back(&cs->lru, &r->lru);
    if (!r->registered)
        chunk_row_forget(cs, r); /* its record never came: nobody can ask for it */
    else
        chunk_cache_trim(cs);
}

static struct chunk_row *chunk_row_insert(struct chunkstore *cs, uint64_t id)
{
    struct chunk_row *r = mem_zalloc(sizeof(*r));

    r->id = id;
    r->pins = 1;
    list_init(&r->lru);
    hmap_insert(&cs->by_id, &r->by_id, hmap_mix(id));
    cs->rows++;
    return r;
}

struct chunk_row *chunk_row_new(struct chunkstore *cs)
{
    return chunk_row_insert(cs, cs->next_id++);
}

static void chunk_row_register(struct chunkstore *cs, struct chunk_row *r)
{
    r->registered = true;
    hmap_insert(&cs->by_fp, &r->by_fp, chunk_fp_hash(r->fp));
}

void chunk_row_remove(struct chunkstore *cs, struct chunk_row *r)
{
    hmap_remove(&cs->by_fp, &r->by_fp);
    r->gone = true;
    r->changed = cs->load_tick;
}

/* Takes a row that a load has read, unless the cache knows better by now. Pinned. */
static int chunk_row_take(struct chunkstore *cs, uint64_t id, const void *value, size_t len,
                          struct chunk_row **ret_row)
{
    struct chunk_row *r = chunk_row_cached(cs, id);

    if (r) {
        *ret_row = r->gone || !r->registered ? NULL : r;
        if (*ret_row)
            chunk_row_pin(cs, r);
        return 0;
    }
    if (!value) {
        *ret_row = NULL;
        return 0;
    }
    r = chunk_row_insert(cs, id);
    if (chunk_row_decode(value, len, r) < 0) {
        r->pins = 0;
        chunk_row_forget(cs, r);
        return ERR_FORMAT;
    }
    chunk_row_register(cs, r);
    *ret_row = r;
    return 0;
}

/* Loads the rows at the positions `missing` of ids. */
static int chunk_rows_load(struct chunkstore *cs, const uint64_t *ids, const size_t *missing,
                           size_t n, struct chunk_row **rows)
{
    uint8_t(*keys)[8] = mem_calloc(n, 8);
    struct kv_slice *slices = mem_calloc(n, sizeof(*slices));
    void **values = mem_calloc(n, sizeof(*values));
    size_t *lens = mem_calloc(n, sizeof(*lens));
    struct chunk_load load = {.tick = ++cs->load_tick};
    int rc;

    for (size_t i = 0; i < n; i++) {
        codec_put_be64(keys[i], ids[missing[i]]);
        slices[i] = (struct kv_slice){keys[i], 8};
    }
    list_push_back(&cs->loads, &load.link);
    rc = kv_multi_get(cs->kv, KV_CHUNK, slices, n, values, lens);
    list_del(&load.link);
    for (size_t i = 0; i < n; i++) {
        if (rc == 0)
            rc = chunk_row_take(cs, ids[missing[i]], values[i], lens[i], &rows[missing[i]]);
        mem_free(values[i]);
    }
    mem_free(keys);
    mem_free(slices);
    mem_free(values);
    mem_free(lens);
    return rc;
}

int chunk_rows_get(struct chunkstore *cs, const uint64_t *ids, size_t n, struct chunk_row **rows)
{
    size_t *missing = mem_calloc(n, sizeof(*missing)), count = 0;
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        struct chunk_row *r = chunk_row_cached(cs, ids[i]);

        rows[i] = NULL;
        if (!r)
            missing[count++] = i;
        else if (!r->gone && r->registered) {
            chunk_row_pin(cs, r);
            rows[i] = r;
        }
    }
    if (count)
        rc = chunk_rows_load(cs, ids, missing, count, rows);
    mem_free(missing);
    if (rc < 0)
        for (size_t i = 0; i < n; i++)
            chunk_row_unpin(cs, rows[i]);
    return rc;
}

/* ---- Counters ---- */

void chunk_stats_put(struct chunkstore *cs, struct kv_batch *batch)
{
    uint8_t bytes[48];

    codec_put_le64(bytes, cs->next_id);
    codec_put_le64(bytes + 8, cs->stats.chunks);
    codec_put_le64(bytes + 16, cs->stats.raw_bytes);
    codec_put_le64(bytes + 24, cs->stats.stored_bytes);
    codec_put_le64(bytes + 32, cs->stats.referenced_bytes);
    codec_put_le64(bytes + 40, cs->unreferenced);
    kv_batch_put(batch, KV_META, chunk_stats_key, (struct kv_slice){bytes, sizeof(bytes)});
}

int chunkstore_load(struct chunkstore *cs)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    struct codec_reader r;
    int rc = kv_get(cs->kv, KV_META, chunk_stats_key, &value, &len);

    if (rc == ERR_NOENT)
        return 0;
    if (rc < 0)
        return rc;
    r = codec_reader_on(value, len);
    cs->next_id = codec_read_le64(&r) + CHUNK_ID_GAP;
    cs->stats.chunks = codec_read_le64(&r);
    cs->stats.raw_bytes = codec_read_le64(&r);
    cs->stats.stored_bytes = codec_read_le64(&r);
    cs->stats.referenced_bytes = codec_read_le64(&r);
    cs->unreferenced = codec_read_le64(&r);
    return codec_reader_ok(&r) ? 0 : ERR_FORMAT;
}

void chunkstore_get_stats(const struct chunkstore *cs, struct chunkstore_stats *ret_stats)
{
    *ret_stats = cs->stats;
    ret_stats->cache_rows = cs->rows;
}

/* ---- Transactions ---- */

struct chunk_touch {
    struct hmap_node node;
    struct chunk_row *row; /* pinned; NULL until loaded */
    uint64_t id;
    uint64_t refs_before;
    bool fresh; /* brought by this record */
};

struct chunk_txn {
    struct chunkstore *cs;
    struct hmap touched;
    struct chunk_row *fresh; /* new chunks as the record describes them */
    size_t fresh_count;
};

struct chunk_txn *chunk_txn_begin(struct chunkstore *cs)
{
    struct chunk_txn *t = mem_zalloc(sizeof(*t));

    t->cs = cs;
    hmap_init(&t->touched);
    return t;
}

static struct chunk_touch *chunk_txn_find(struct chunk_txn *t, uint64_t id)
{
    struct hmap_node *n = hmap_first(&t->touched, hmap_mix(id)); /* the mix is one to one */

    return n ? HMAP_ENTRY(n, struct chunk_touch, node) : NULL;
}

static struct chunk_touch *chunk_txn_touch(struct chunk_txn *t, uint64_t id)
{
    struct chunk_touch *c = chunk_txn_find(t, id);

    if (c)
        return c;
    c = mem_zalloc(sizeof(*c));
    c->id = id;
    hmap_insert(&t->touched, &c->node, hmap_mix(id));
    return c;
}

void chunk_txn_need(struct chunk_txn *t, uint64_t id)
{
    (void)chunk_txn_touch(t, id);
}

static bool chunk_new_decode(struct codec_reader *r, struct chunk_row *row)
{
    const uint8_t *fp;

    row->id = codec_read_le64(r);
    row->loc.stripe.segment = codec_read_le64(r);
    row->loc.stripe.offset = codec_read_le32(r);
    row->loc.stripe.width = codec_read_le32(r);
    row->loc.position = codec_read_le32(r);
    row->loc.stored = codec_read_le32(r);
    row->loc.crc = codec_read_le32(r);
    row->raw = codec_read_le32(r);
    row->codec = codec_read_u8(r);
    row->fp_algorithm = codec_read_u8(r);
    fp = codec_read_bytes(r, FINGERPRINT_SIZE);
    (void)codec_read_le32(r);
    if (!codec_reader_ok(r) || row->raw == 0 || row->raw > CHUNK_MAX || row->id == 0)
        return false;
    memcpy(row->fp, fp, FINGERPRINT_SIZE);
    return true;
}

int chunk_new_length(const uint8_t *body, size_t len, size_t *ret_used)
{
    struct codec_reader r = codec_reader_on(body, len);
    uint32_t n = codec_read_le32(&r);

    if (!codec_reader_ok(&r) || n > CHUNK_NEW_MAX || codec_left(&r) / CHUNK_NEW_SIZE < n)
        return ERR_FORMAT;
    *ret_used = 4 + (size_t)n * CHUNK_NEW_SIZE;
    return 0;
}

int chunk_txn_take_new(struct chunk_txn *t, const uint8_t *body, size_t len, size_t *ret_used)
{
    struct codec_reader r = codec_reader_on(body, len);
    uint32_t n = codec_read_le32(&r);
    int rc = chunk_new_length(body, len, ret_used);

    if (rc < 0)
        return rc;
    t->fresh = mem_calloc(n, sizeof(*t->fresh));
    for (; t->fresh_count < n; t->fresh_count++) {
        struct chunk_row *row = &t->fresh[t->fresh_count];
        struct chunk_touch *c;

        if (!chunk_new_decode(&r, row))
            return ERR_FORMAT;
        c = chunk_txn_touch(t, row->id);
        if (c->fresh)
            return ERR_FORMAT;
        c->fresh = true;
    }
    return 0;
}

int chunk_txn_load(struct chunk_txn *t)
{
    size_t n = t->touched.count, count = 0;
    uint64_t *ids = mem_calloc(n, sizeof(*ids));
    struct chunk_touch **touches = mem_calloc(n, sizeof(struct chunk_touch *));
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    int rc = 0;

    for (struct hmap_node *it = hmap_walk(&t->touched, NULL); it; it = hmap_walk(&t->touched, it)) {
        struct chunk_touch *c = HMAP_ENTRY(it, struct chunk_touch, node);

        if (c->fresh || c->row)
            continue;
        ids[count] = c->id;
        touches[count++] = c;
    }
    if (count)
        rc = chunk_rows_get(t->cs, ids, count, rows);
    for (size_t i = 0; rc >= 0 && i < count; i++) {
        touches[i]->row = rows[i];
        if (rows[i])
            touches[i]->refs_before = rows[i]->refs;
        else
            rc = ERR_FORMAT;
    }
    mem_free(ids);
    mem_free(touches);
    mem_free(rows);
    return rc;
}

/* The row of a new chunk: the one its batch has made, or in replay one made here. */
static struct chunk_row *chunk_fresh_row(struct chunkstore *cs, const struct chunk_row *desc)
{
    struct chunk_row *r = chunk_row_cached(cs, desc->id);

    if (r) {
        CHECK(!r->registered);
        chunk_row_pin(cs, r);
    } else {
        r = chunk_row_insert(cs, desc->id);
    }
    r->loc = desc->loc;
    r->raw = desc->raw;
    r->codec = desc->codec;
    r->fp_algorithm = desc->fp_algorithm;
    memcpy(r->fp, desc->fp, FINGERPRINT_SIZE);
    if (desc->id >= cs->next_id)
        cs->next_id = desc->id + 1;
    return r;
}

/* Brings the new chunks into the table, unless that was done. */
static void chunk_txn_register(struct chunk_txn *t)
{
    struct chunkstore *cs = t->cs;

    for (size_t i = 0; i < t->fresh_count; i++) {
        struct chunk_touch *c = chunk_txn_find(t, t->fresh[i].id);
        struct chunk_row *r;

        if (c->row)
            return;
        c->row = r = chunk_fresh_row(cs, &t->fresh[i]);
        chunk_row_register(cs, r);
        segment_account(cs->segments, &r->loc, true);
        cs->stats.chunks++;
        cs->stats.raw_bytes += r->raw;
        cs->stats.stored_bytes += r->loc.stored;
        cs->unreferenced++;
    }
}

void chunk_txn_ref(struct chunk_txn *t, uint64_t id, int64_t delta)
{
    struct chunk_touch *c = chunk_txn_find(t, id);
    struct chunk_row *r;
    uint64_t before;

    CHECK(c != NULL);
    if (!c->row)
        chunk_txn_register(t);
    r = c->row;
    CHECK(r && !r->gone);
    before = r->refs;
    CHECK(delta >= 0 || r->refs >= (uint64_t)-delta);
    r->refs += (uint64_t)delta;
    t->cs->stats.referenced_bytes += (uint64_t)delta * r->raw;
    t->cs->unreferenced += (r->refs == 0) - (uint64_t)(before == 0);
}

static void chunk_touch_put(struct chunkstore *cs, struct chunk_touch *c, struct kv_batch *batch)
{
    struct chunk_row *r = c->row;
    uint8_t row[CHUNK_ROW_SIZE], key[8], zero[CHUNK_ZERO_KEY];

    codec_put_be64(key, r->id);
    chunk_row_encode(r, row);
    kv_batch_put(batch, KV_CHUNK, (struct kv_slice){key, 8}, (struct kv_slice){row, sizeof(row)});
    if (c->fresh)
        kv_batch_put(batch, KV_FPRINT, (struct kv_slice){r->fp, FINGERPRINT_SIZE},
                     (struct kv_slice){key, 8});
    chunk_zero_key(r->id, zero);
    if (r->refs == 0)
        kv_batch_put(batch, KV_INDEX, (struct kv_slice){zero, sizeof(zero)},
                     (struct kv_slice){"", 0});
    else if (!c->fresh && c->refs_before == 0)
        kv_batch_delete(batch, KV_INDEX, (struct kv_slice){zero, sizeof(zero)});
    r->changed = cs->load_tick;
}

static void chunk_txn_end(struct chunk_txn *t)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&t->touched, NULL); it; it = next) {
        struct chunk_touch *c = HMAP_ENTRY(it, struct chunk_touch, node);

        next = hmap_walk(&t->touched, it);
        chunk_row_unpin(t->cs, c->row);
        mem_free(c);
    }
    hmap_free(&t->touched);
    mem_free(t->fresh);
    mem_free(t);
}

void chunk_txn_commit(struct chunk_txn *t, struct kv_batch *batch)
{
    chunk_txn_register(t);
    for (struct hmap_node *it = hmap_walk(&t->touched, NULL); it; it = hmap_walk(&t->touched, it)) {
        struct chunk_touch *c = HMAP_ENTRY(it, struct chunk_touch, node);

        if (c->fresh || c->row->refs != c->refs_before)
            chunk_touch_put(t->cs, c, batch);
    }
    chunk_stats_put(t->cs, batch);
    chunk_txn_end(t);
}

void chunk_txn_abort(struct chunk_txn *t)
{
    if (t)
        chunk_txn_end(t);
}

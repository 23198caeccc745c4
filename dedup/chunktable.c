/* The chunk table: rows in the KV store, a bounded cache of them, and the transactions by which
 * records change them.
 *
 * The cache is the newest truth: a transaction changes rows in it, and the KV batch follows. A load
 * from the KV store may overtake such a change: it began before, and would bring the old row back.
 * So a row changed (or removed) while a load is under way is not evicted before that load has
 * ended; the load then finds it in the cache and takes that. Nor is it evicted before its batch is
 * in the KV store: who asked for it meanwhile would be given the old row to keep.
 */
#include "dedup/chunkstore.h"

#include <stdlib.h>
#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define CHUNK_CACHE_DEFAULT (256u * 1024)
#define CHUNK_ID_GAP        (1u << 20) /* skipped at start: ids given out but never journaled */
#define CHUNK_LISTED_MAX    65536u     /* chunks in one record */

static const struct kv_slice chunk_stats_key = {CHUNK_TOTALS_KEY, sizeof(CHUNK_TOTALS_KEY) - 1};

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
    hmap_init(&cs->lost);
    list_init(&cs->lru);
    list_init(&cs->loads);
    fiber_mutex_init(&cs->compacting);
    fiber_mutex_init(&cs->renewing);
    fiber_mutex_init(&cs->pace);
    fiber_cond_init(&cs->room_changed);
    fiber_cond_init(&cs->room_wanted);
    metric_hist_init(&cs->hash_time, METRIC_TIME);
    metric_hist_init(&cs->look_up_time, METRIC_TIME);
    metric_hist_init(&cs->compress_time, METRIC_TIME);
    metric_hist_init(&cs->move_time, METRIC_TIME);
    *ret_store = cs;
    return 0;
}

void chunkstore_observe(struct chunkstore *cs, struct metrics *m)
{
    static const char stage[] =
        "Time of a group of chunks in a stage of its way in, waiting for a thread included";

    metrics_add_hist(m, "filmroom_chunk_stage_seconds", stage, METRIC_LABELS("stage", "hash"),
                     &cs->hash_time);
    metrics_add_hist(m, "filmroom_chunk_stage_seconds", stage, METRIC_LABELS("stage", "look_up"),
                     &cs->look_up_time);
    metrics_add_hist(m, "filmroom_chunk_stage_seconds", stage, METRIC_LABELS("stage", "compress"),
                     &cs->compress_time);
    metrics_add_hist(m, "filmroom_compaction_step_seconds",
                     "Time of one step of compaction: read, write, verify, switch", NULL,
                     &cs->move_time);
    metrics_add_counter(m, "filmroom_compaction_moved_chunks_total",
                        "Chunks moved out of segments with much that is dead", NULL,
                        &cs->moved_chunks);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_compaction_moved_bytes_total",
                      "Stored bytes moved out of segments with much that is dead", NULL,
                      &cs->stats.moved_bytes);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_compaction_segments_total",
                      "Segments emptied by compaction", NULL, &cs->stats.compacted);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_chunks_found_total",
                      "Chunks that were stored already when they came", NULL, &cs->stats.found);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_chunks_new_total",
                      "Chunks that were new when they came", NULL, &cs->stats.missed);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_chunks_renewed_total",
                      "Chunks that were lost, and readable again since their bytes came once more",
                      NULL, &cs->stats.renewed);
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
    chunk_lost_free(cs);
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

struct segment_chunk chunk_row_stored(const struct chunk_row *r, const uint8_t *stored)
{
    struct segment_chunk c = {.data = stored,
                              .id = r->id,
                              .stored = r->loc.stored,
                              .raw = r->raw,
                              .crc = r->loc.crc,
                              .codec = r->codec,
                              .fingerprint_algorithm = r->fp_algorithm};

    memcpy(c.fingerprint, r->fp, FINGERPRINT_SIZE);
    return c;
}

/* Do the lengths of a row from a medium go together? Unpacking relies on it. */
static bool chunk_row_sane(const struct chunk_row *r)
{
    if (r->raw == 0 || r->raw > CHUNK_MAX || r->loc.stored == 0 || r->loc.stored > r->raw)
        return false;
    return r->codec == COMPRESS_RAW ? r->loc.stored == r->raw : r->codec < COMPRESS_CODECS;
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
    if (!codec_reader_ok(&rd) || !chunk_row_sane(r))
        return ERR_FORMAT;
    memcpy(r->fp, fp, FINGERPRINT_SIZE);
    return 0;
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

struct chunk_row *chunk_row_by_fp(struct chunkstore *cs, const uint8_t fp[FINGERPRINT_SIZE],
                                  bool lost_too)
{
    for (struct hmap_node *n = hmap_first(&cs->by_fp, chunk_fp_hash(fp)); n; n = hmap_next(n)) {
        struct chunk_row *r = HMAP_ENTRY(n, struct chunk_row, by_fp);

        if (memcmp(r->fp, fp, FINGERPRINT_SIZE) == 0 &&
            segment_get(cs->segments, r->loc.stripe.segment) &&
            (lost_too ? !chunk_is_hopeless(cs, r->id) : !chunk_is_lost(cs, r)))
            return r;
    }
    return NULL;
}

static void chunk_row_forget(struct chunkstore *cs, struct chunk_row *r)
{
    list_del(&r->lru);
    hmap_remove(&cs->by_id, &r->by_id);
    if (r->registered)
        hmap_remove(&cs->by_fp, &r->by_fp);
    cs->rows--;
    mem_free(r);
}

static void chunk_cache_trim(struct chunkstore *cs)
{
    uint64_t oldest = UINT64_MAX;

    if (!list_empty(&cs->loads))
        oldest = LIST_ENTRY(cs->loads.next, struct chunk_load, link)->tick;
    if (cs->writing && cs->writing < oldest)
        oldest = cs->writing;
    while (cs->rows > cs->options.cache_rows && !list_empty(&cs->lru)) {
        struct chunk_row *r = LIST_ENTRY(cs->lru.next, struct chunk_row, lru);

        if (r->changed >= oldest)
            break;
        chunk_row_forget(cs, r);
    }
}

/* A pinned row keeps its segment: the bytes stay where it says. */
static void chunk_row_hold(struct chunkstore *cs, struct chunk_row *r)
{
    if (r->holding || !r->registered || r->pins == 0)
        return;
    r->holding = segment_try_hold(cs->segments, r->loc.stripe.segment);
}

void chunk_row_pin(struct chunkstore *cs, struct chunk_row *r)
{
    if (r->pins++ == 0)
        list_del(&r->lru);
    chunk_row_hold(cs, r);
}

bool chunk_row_lies_at(const struct chunk_row *r, const struct segment_loc *loc)
{
    const struct segment_loc *at = &r->loc;

    return r->registered && at->stripe.segment == loc->stripe.segment &&
           at->stripe.offset == loc->stripe.offset && at->stripe.width == loc->stripe.width &&
           at->position == loc->position && at->stored == loc->stored && at->crc == loc->crc;
}

void chunk_row_unpin(struct chunkstore *cs, struct chunk_row *r)
{
    if (!r)
        return;
    CHECK(r->pins > 0);
    if (--r->pins > 0)
        return;
    if (r->holding) {
        r->holding = false;
        segment_release(cs->segments, r->loc.stripe.segment);
    }
    while (r->former) {
        struct chunk_former *f = r->former;

        r->former = f->next;
        segment_release(cs->segments, f->segment);
        mem_free(f);
    }
    list_push_back(&cs->lru, &r->lru);
    if (!r->registered && !r->gone)
        chunk_row_forget(cs, r); /* its record never came: nobody can ask for it */
    else
        chunk_cache_trim(cs);
}

void chunk_row_relocate(struct chunkstore *cs, struct chunk_row *r, const struct segment_loc *loc)
{
    if (r->holding && loc->stripe.segment != r->loc.stripe.segment) {
        struct chunk_former *f = mem_alloc(sizeof(*f));

        *f = (struct chunk_former){r->former, r->loc.stripe.segment};
        r->former = f;
        r->holding = segment_try_hold(cs->segments, loc->stripe.segment);
    }
    /* Only what differs: a lane may be unpacking by this row. */
    r->loc.stripe = loc->stripe;
    r->loc.position = loc->position;
    chunk_row_hold(cs, r);
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
    r->gone = false;
    hmap_insert(&cs->by_fp, &r->by_fp, chunk_fp_hash(r->fp));
    chunk_row_hold(cs, r);
}

/* Out of the table: from now on it cannot be looked up. */
static void chunk_row_unregister(struct chunkstore *cs, struct chunk_row *r)
{
    hmap_remove(&cs->by_fp, &r->by_fp);
    r->registered = false;
    r->gone = true;
    r->changed = cs->load_tick;
}

/* Takes a row that a load has read, unless the cache knows better by now. Pinned. */
static int chunk_row_take(struct chunkstore *cs, uint64_t id, const void *value, size_t len,
                          struct chunk_row **ret_row)
{
    struct chunk_row *r = chunk_row_cached(cs, id);

    if (r) {
        *ret_row = r->registered ? r : NULL;
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

/* A row that is wanted, and where in the caller's array. */
struct chunk_want {
    uint64_t id;
    size_t at;
};

static int chunk_want_compare(const void *a, const void *b)
{
    const struct chunk_want *x = a, *y = b;

    return x->id < y->id ? -1 : x->id > y->id;
}

/* Loads the rows wanted, in the order of ids: what was written together lies together. */
static int chunk_rows_load(struct chunkstore *cs, struct chunk_want *want, size_t n,
                           struct chunk_row **rows)
{
    struct chunk_load load = {.tick = ++cs->load_tick};
    uint8_t(*keys)[8] = mem_calloc(n, 8);
    struct kv_slice *slices = mem_calloc(n, sizeof(*slices));
    void **values = mem_calloc(n, sizeof(*values));
    size_t *lens = mem_calloc(n, sizeof(*lens));
    int rc;

    qsort(want, n, sizeof(*want), chunk_want_compare);
    for (size_t i = 0; i < n; i++) {
        codec_put_be64(keys[i], want[i].id);
        slices[i] = (struct kv_slice){keys[i], 8};
    }
    list_push_back(&cs->loads, &load.link);
    rc = kv_multi_get(cs->kv, KV_CHUNK, slices, n, values, lens);
    for (size_t i = 0; i < n; i++) {
        if (rc == 0)
            rc = chunk_row_take(cs, want[i].id, values[i], lens[i], &rows[want[i].at]);
        mem_free(values[i]);
    }
    list_del(&load.link);
    mem_free(keys);
    mem_free(slices);
    mem_free(values);
    mem_free(lens);
    return rc;
}

int chunk_rows_all(struct chunkstore *cs, const uint64_t *ids, size_t n, struct chunk_row **rows)
{
    struct chunk_want *want = mem_calloc(n, sizeof(*want));
    size_t count = 0;
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        struct chunk_row *r = chunk_row_cached(cs, ids[i]);

        rows[i] = NULL;
        if (!r)
            want[count++] = (struct chunk_want){ids[i], i};
        else if (r->registered) {
            chunk_row_pin(cs, r);
            rows[i] = r;
        }
    }
    if (count)
        rc = chunk_rows_load(cs, want, count, rows);
    mem_free(want);
    for (size_t i = 0; rc < 0 && i < n; i++) {
        chunk_row_unpin(cs, rows[i]);
        rows[i] = NULL;
    }
    return rc;
}

int chunk_rows_get(struct chunkstore *cs, const uint64_t *ids, size_t n, struct chunk_row **rows)
{
    int rc = chunk_rows_all(cs, ids, n, rows);

    for (size_t i = 0; i < n; i++) {
        if (!rows[i] || rows[i]->holding)
            continue;
        chunk_row_unpin(cs, rows[i]);
        rows[i] = NULL;
    }
    return rc;
}

int chunkstore_warm(struct chunkstore *cs, const uint64_t *ids, size_t n)
{
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    int rc = chunk_rows_get(cs, ids, n, rows);

    for (size_t i = 0; rc == 0 && i < n; i++)
        chunk_row_unpin(cs, rows[i]);
    mem_free(rows);
    return rc;
}

/* ---- Counters ---- */

void chunk_totals_encode(const struct chunk_totals *t, uint8_t out[CHUNK_TOTALS_SIZE])
{
    codec_put_le64(out, t->next_id);
    codec_put_le64(out + 8, t->chunks);
    codec_put_le64(out + 16, t->raw);
    codec_put_le64(out + 24, t->stored);
    codec_put_le64(out + 32, t->referenced);
}

int chunk_totals_decode(const void *p, size_t n, struct chunk_totals *ret_totals)
{
    const uint8_t *b = p;

    if (n < CHUNK_TOTALS_SIZE)
        return ERR_FORMAT;
    *ret_totals =
        (struct chunk_totals){codec_get_le64(b), codec_get_le64(b + 8), codec_get_le64(b + 16),
                              codec_get_le64(b + 24), codec_get_le64(b + 32)};
    return 0;
}

static void chunk_stats_put(struct chunkstore *cs, struct kv_batch *batch)
{
    struct chunk_totals t = {cs->next_id, cs->stats.chunks, cs->stats.raw_bytes,
                             cs->stats.stored_bytes, cs->stats.referenced_bytes};
    uint8_t bytes[CHUNK_TOTALS_SIZE];

    chunk_totals_encode(&t, bytes);
    kv_batch_put(batch, KV_META, chunk_stats_key, (struct kv_slice){bytes, sizeof(bytes)});
}

int chunkstore_load(struct chunkstore *cs)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    struct chunk_totals t;
    int rc = kv_get(cs->kv, KV_META, chunk_stats_key, &value, &len);

    if (rc == ERR_NOENT)
        return 0;
    if (rc == 0)
        rc = chunk_totals_decode(value, len, &t);
    if (rc == 0)
        rc = chunk_lost_load(cs);
    if (rc < 0)
        return rc;
    cs->next_id = t.next_id + CHUNK_ID_GAP;
    cs->stats.chunks = t.chunks;
    cs->stats.raw_bytes = t.raw;
    cs->stats.stored_bytes = t.stored;
    cs->stats.referenced_bytes = t.referenced;
    return 0;
}

void chunkstore_get_stats(const struct chunkstore *cs, struct chunkstore_stats *ret_stats)
{
    *ret_stats = cs->stats;
    ret_stats->cache_rows = cs->rows;
}

/* ---- Transactions ---- */

struct chunk_touch {
    struct hmap_node node;
    struct chunk_row *row;          /* pinned; NULL until loaded or brought in */
    const struct chunk_row *listed; /* as the record's list describes it; NULL: not listed */
    uint64_t id;
    uint64_t refs_before;
    bool is_new, brought; /* listed as new; brought into the table by this record */
    bool required;
};

struct chunk_txn {
    struct chunkstore *cs;
    struct hmap touched;
    struct chunk_row *listed;
    size_t listed_count;
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

void chunk_txn_require(struct chunk_txn *t, uint64_t id)
{
    chunk_txn_touch(t, id)->required = true;
}

void chunk_listed_encode(const struct chunk_row *r, uint32_t flags, uint8_t out[CHUNK_LISTED_SIZE])
{
    struct codec_writer w = codec_writer_on(out, CHUNK_LISTED_SIZE);

    codec_write_le64(&w, r->id);
    codec_write_le64(&w, r->loc.stripe.segment);
    codec_write_le32(&w, r->loc.stripe.offset);
    codec_write_le32(&w, r->loc.stripe.width);
    codec_write_le32(&w, r->loc.position);
    codec_write_le32(&w, r->loc.stored);
    codec_write_le32(&w, r->loc.crc);
    codec_write_le32(&w, r->raw);
    codec_write_u8(&w, r->codec);
    codec_write_u8(&w, r->fp_algorithm);
    codec_write_bytes(&w, r->fp, FINGERPRINT_SIZE);
    codec_write_le32(&w, flags);
    CHECK(codec_writer_ok(&w) && codec_written(&w) == CHUNK_LISTED_SIZE);
}

static bool chunk_listed_decode(struct codec_reader *r, struct chunk_row *row, uint32_t *ret_flags)
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
    *ret_flags = codec_read_le32(r);
    if (!codec_reader_ok(r) || !chunk_row_sane(row) || row->id == 0)
        return false;
    memcpy(row->fp, fp, FINGERPRINT_SIZE);
    return true;
}

int chunk_list_length(const uint8_t *body, size_t len, size_t *ret_used)
{
    struct codec_reader r = codec_reader_on(body, len);
    uint32_t n = codec_read_le32(&r);

    if (!codec_reader_ok(&r) || n > CHUNK_LISTED_MAX || codec_left(&r) / CHUNK_LISTED_SIZE < n)
        return ERR_FORMAT;
    *ret_used = 4 + (size_t)n * CHUNK_LISTED_SIZE;
    return 0;
}

int chunk_txn_take(struct chunk_txn *t, const uint8_t *body, size_t len, size_t *ret_used)
{
    struct codec_reader r = codec_reader_on(body, len);
    uint32_t n = codec_read_le32(&r), flags;
    int rc = chunk_list_length(body, len, ret_used);

    if (rc < 0)
        return rc;
    t->listed = mem_calloc(n, sizeof(*t->listed));
    for (; t->listed_count < n; t->listed_count++) {
        struct chunk_row *row = &t->listed[t->listed_count];
        struct chunk_touch *c;

        if (!chunk_listed_decode(&r, row, &flags))
            return ERR_FORMAT;
        c = chunk_txn_touch(t, row->id);
        if (c->listed)
            return ERR_FORMAT;
        c->listed = row;
        c->is_new = flags & CHUNK_LISTED_NEW;
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

        if (c->is_new || c->row)
            continue;
        ids[count] = c->id;
        touches[count++] = c;
    }
    if (count)
        rc = chunk_rows_all(t->cs, ids, count, rows);
    for (size_t i = 0; rc >= 0 && i < count; i++) {
        touches[i]->row = rows[i];
        if (rows[i])
            touches[i]->refs_before = rows[i]->refs;
    }
    for (size_t i = 0; rc >= 0 && i < count; i++)
        if (touches[i]->required && !touches[i]->row && !touches[i]->listed)
            rc = ERR_FORMAT;
    mem_free(ids);
    mem_free(touches);
    mem_free(rows);
    return rc;
}

/* Brings a listed chunk into the table: the row that its batch has pinned, or in replay one made
 * here. */
static void chunk_touch_bring(struct chunkstore *cs, struct chunk_touch *c)
{
    struct chunk_row *r = chunk_row_cached(cs, c->id);

    if (r) {
        CHECK(!r->registered);
        chunk_row_pin(cs, r);
        if (r->holding)
            chunk_row_relocate(cs, r, &c->listed->loc); /* it was moved after it was listed */
    } else {
        r = chunk_row_insert(cs, c->id);
    }
    if (!r->holding)
        r->loc = c->listed->loc;
    r->raw = c->listed->raw;
    r->codec = c->listed->codec;
    r->fp_algorithm = c->listed->fp_algorithm;
    r->refs = 0;
    memcpy(r->fp, c->listed->fp, FINGERPRINT_SIZE);
    if (c->id >= cs->next_id)
        cs->next_id = c->id + 1;
    c->row = r;
    c->brought = true;
    chunk_row_register(cs, r);
    segment_account(cs->segments, &r->loc, true);
    cs->stats.chunks++;
    cs->stats.raw_bytes += r->raw;
    cs->stats.stored_bytes += r->loc.stored;
}

static void chunk_ref_stray(struct chunkstore *cs, uint64_t id)
{
    if (cs->stats.stray_refs++ == 0)
        log_warn("chunks",
                 "something was deleted or overwritten of which metadata had been lost: "
                 "filmroom-fsck tells what else was lost chunk=%llu",
                 (unsigned long long)id);
}

void chunk_txn_ref(struct chunk_txn *t, uint64_t id, int64_t delta)
{
    struct chunk_touch *c = chunk_txn_find(t, id);

    CHECK(c != NULL);
    if (delta < 0 && (!c->row || c->row->refs < (uint64_t)-delta)) {
        chunk_ref_stray(t->cs, id);
        return;
    }
    CHECK(c->row || c->listed);
    if (!c->row)
        chunk_touch_bring(t->cs, c);
    c->row->refs += (uint64_t)delta;
    t->cs->stats.referenced_bytes += (uint64_t)delta * c->row->raw;
}

/* Without references: it leaves the table. Of chunks of equal content stored at the same time one
 * is in the fingerprint index; if another takes its entry along, that one is merely not found
 * again. */
static void chunk_touch_drop(struct chunkstore *cs, struct chunk_touch *c, struct kv_batch *batch)
{
    struct chunk_row *r = c->row;
    uint8_t key[8];

    if (!c->brought) {
        codec_put_be64(key, r->id);
        kv_batch_delete(batch, KV_CHUNK, (struct kv_slice){key, 8});
        kv_batch_delete(batch, KV_FPRINT, (struct kv_slice){r->fp, CHUNK_FP_KEY});
    }
    chunk_lost_drop(cs, r->id, batch);
    segment_account(cs->segments, &r->loc, false);
    cs->stats.chunks--;
    cs->stats.raw_bytes -= r->raw;
    cs->stats.stored_bytes -= r->loc.stored;
    chunk_row_unregister(cs, r);
}

void chunk_row_put(struct chunkstore *cs, struct chunk_row *r, struct kv_batch *batch)
{
    uint8_t row[CHUNK_ROW_SIZE], key[8];

    codec_put_be64(key, r->id);
    chunk_row_encode(r, row);
    kv_batch_put(batch, KV_CHUNK, (struct kv_slice){key, 8}, (struct kv_slice){row, sizeof(row)});
    r->changed = cs->load_tick;
}

static void chunk_touch_put(struct chunkstore *cs, struct chunk_touch *c, struct kv_batch *batch)
{
    uint8_t key[8];

    chunk_row_put(cs, c->row, batch);
    if (!c->brought)
        return;
    codec_put_be64(key, c->row->id);
    kv_batch_put(batch, KV_FPRINT, (struct kv_slice){c->row->fp, CHUNK_FP_KEY},
                 (struct kv_slice){key, 8});
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
    mem_free(t->listed);
    mem_free(t);
}

void chunk_rows_writing(struct chunkstore *cs)
{
    if (!cs->writing)
        cs->writing = ++cs->load_tick;
}

void chunk_txn_commit(struct chunk_txn *t, struct kv_batch *batch)
{
    chunk_rows_writing(t->cs);
    for (struct hmap_node *it = hmap_walk(&t->touched, NULL); it; it = hmap_walk(&t->touched, it)) {
        struct chunk_touch *c = HMAP_ENTRY(it, struct chunk_touch, node);

        if (!c->row)
            continue;
        if (c->row->refs <= (unsigned)PLANTED(CHUNK_FREED_REFERENCED))
            chunk_touch_drop(t->cs, c, batch);
        else if (c->brought || c->row->refs != c->refs_before)
            chunk_touch_put(t->cs, c, batch);
    }
    chunk_stats_put(t->cs, batch);
    chunk_txn_end(t);
}

void chunkstore_written(struct chunkstore *cs)
{
    cs->writing = 0;
    chunk_cache_trim(cs);
}

void chunk_txn_abort(struct chunk_txn *t)
{
    if (t)
        chunk_txn_end(t);
}

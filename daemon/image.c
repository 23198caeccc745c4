/* The copy of the metadata on the drives.
 *
 * All mutable metadata is in the KV store, which is on one file system. Here a copy of it is kept
 * in stripes like any data, so that the loss of the KV store costs time and nothing else:
 *
 *   the copy  +  the journal from `upto` on  =  the exact state
 *
 * Runs. The copy is a base and increments. An increment has every row that changed between two
 * checkpoints, with the value that it had at the second one, deletions too: changed rows are
 * gathered in memory as records are applied, and at a checkpoint the set is frozen, in the same
 * step in which its LSN (`settled`) and `upto` are settled. So an increment is of one moment
 * though others go on while it is written. A base has all rows, read from the KV store while
 * others write: each is as old as the start of the reading, or newer. What changed meanwhile is in
 * later increments, so base and later increments together are exact again. That needs no snapshot
 * of the KV store, and no merging of runs: when increments outgrow the base, a new base takes the
 * place of all of them. Runs are cut into chunks where keys say so, not sizes; what did not change
 * is found again by the chunk store, and a new base costs hardly more writes than its changes.
 *
 * Chunks of runs are chunks like all others, with one reference for each place in a run, from the
 * row "image" of KV_META. Compaction, rebuilding of lost drives, and the audit need to know no
 * more.
 *
 * The root. RECORD_IMAGE names all runs and where their chunks lie. It is journaled after they are
 * durable, its LSN is above `settled`, and the journal is trimmed up to `upto` <= `settled` + 1
 * only after it is durable: so the journal always has the record of the newest copy, and the moves
 * of its chunks after that. A clean stop leaves it there too (journal_keep). Nothing needs to be
 * searched for, and no leftovers can be taken for the copy: stripes that no such record names do
 * not count, whatever a crash left of them.
 *
 *   RECORD_IMAGE: list of chunks, new ones and found ones (chunk_batch_encode), form
 * (image_form.h), list of the chunks of the runs that stay (as the first)
 *
 * After a start. The KV store is ahead of the copy; the sets that were in memory are gone. So each
 * batch in the KV store carries a list of the keys that it changes (KV_IMAGE); at start the rows of
 * all lists are gathered anew. Rows too many do no harm: a row that did not change since has the
 * same value in the copy. The lists up to `settled` are deleted after each checkpoint.
 *
 * Derived rows are not in the copy: the fingerprint index, the lists, and of KV_META what belongs
 * to one KV store ("store", "trim").
 *
 * Room. A base, increments as large, and a new base that has all of both: at most the copy takes
 * four times its base. What it does not take yet of that is kept from users (image_keep), so that
 * it is the same for them whether a copy has just been written or is about to be. Should one fail
 * to be written in spite of that, the checkpoint goes on without: serving comes before the second
 * copy, and a journal that cannot be trimmed would stop everything. Nothing is forgotten then, the
 * next copy takes it in; until then a lost KV store cannot be made anew, and that is logged and in
 * the metrics.
 */
#include "daemon/image.h"

#include <string.h>

#include "daemon/image_form.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define IMAGE_SET_MAX    (32u << 20)  /* bytes of changed rows at which a checkpoint is due */
#define IMAGE_PIECE      (96u * 1024) /* chunks of runs are so long, more or less */
#define IMAGE_GROW_MIN   (256u * 1024)
#define IMAGE_RUNS_MAX   48u
#define IMAGE_PAGE       1024u
#define IMAGE_PAGE_BYTES (512u * 1024)
#define IMAGE_RETRY      (10 * ENV_NS_PER_S)

/* What is not gathered: it is derived, or belongs to the copy's own housekeeping. */
#define IMAGE_TABLES_OUT (1u << KV_FPRINT | 1u << KV_IMAGE)

static const struct kv_slice image_meta_key = {IMAGE_META_KEY, sizeof(IMAGE_META_KEY) - 1};
static const struct kv_slice image_mended_key = {IMAGE_MENDED_KEY, sizeof(IMAGE_MENDED_KEY) - 1};

struct image {
    struct partition *p;
    struct image_form named;
    bool lost;                 /* there is no base to build upon */
    struct kv_changes *active; /* since the last freeze */
    struct kv_changes *frozen; /* being written, or NULL */
    struct chunk_batch *batch; /* of runs that no record names yet, or NULL */
    struct image_run base;     /* written into the batch and not yet named */
    bool base_ready;
    uint64_t unnamed;   /* bytes written into the batch */
    double shrink;      /* what is stored of a byte, about */
    uint64_t frozen_at; /* the last record applied at the last freeze */
    uint64_t retry_at;  /* a base failed: not before this */
    struct image_stats stats;
};

void image_new(struct partition *p, struct image **ret_image)
{
    struct image *im = mem_zalloc(sizeof(*im));

    im->p = p;
    im->lost = true;
    im->active = kv_changes_new(IMAGE_TABLES_OUT);
    *ret_image = im;
}

/* Bytes of the runs that are named. */
static void image_sizes(const struct image *im, uint64_t *ret_base, uint64_t *ret_rest)
{
    uint64_t base = 0, rest = 0;

    for (uint32_t i = 0; i < im->named.count; i++)
        *(im->named.runs[i].base ? &base : &rest) += im->named.runs[i].bytes;
    *ret_base = base;
    *ret_rest = rest;
}

/* Keeps room for what is yet to be written of the copy at its largest. */
static void image_keep(struct image *im)
{
    uint64_t base, rest, most, taken;

    image_sizes(im, &base, &rest);
    most = rest < base ? 4 * base : 2 * (base + rest);
    taken = base + rest + im->unnamed;
    chunkstore_keep(im->p->chunks,
                    most > taken ? (uint64_t)((double)(most - taken) * im->shrink) : 0);
}

static void image_drop_batch(struct image *im)
{
    chunk_batch_free(im->batch);
    im->batch = NULL;
    mem_free(im->base.ids);
    im->base = (struct image_run){0};
    im->base_ready = false;
    im->unnamed = 0;
}

void image_free(struct image *im)
{
    if (!im)
        return;
    image_drop_batch(im);
    kv_changes_free(im->active);
    kv_changes_free(im->frozen);
    image_form_free(&im->named);
    mem_free(im);
}

/* ---- What changes ---- */

static void note_key(void *arg, enum kv_table t, struct kv_slice key)
{
    /* The few rows of KV_META are always taken along. */
    if (!(IMAGE_TABLES_OUT >> t & 1) && t != KV_META)
        image_row_encode(arg, t, key, NULL);
}

static void changed_key(uint64_t lsn, uint8_t key[9])
{
    key[0] = IMAGE_CHANGED_KEY;
    codec_put_be64(key + 1, lsn);
}

void image_note(struct image *im, struct kv_batch *batch, uint64_t lsn)
{
    STRBUF_AUTO struct strbuf keys = STRBUF_INIT;
    uint8_t key[9];

    (void)im;
    kv_batch_keys(batch, note_key, &keys);
    changed_key(lsn, key);
    if (keys.len)
        kv_batch_put(batch, KV_IMAGE, (struct kv_slice){key, sizeof(key)},
                     (struct kv_slice){keys.data, keys.len});
}

void image_take(struct image *im, const struct kv_batch *batch)
{
    kv_changes_add(im->active, batch);
}

bool image_due(const struct image *im)
{
    bool begin = im->lost && im->p->ds->super.replay_lsn > 1 && env_now(im->p->env) >= im->retry_at;

    return begin || kv_changes_bytes(im->active) > IMAGE_SET_MAX;
}

uint64_t image_upto(const struct image *im)
{
    return im->named.lsn ? im->named.upto : UINT64_MAX;
}

/* ---- At start ---- */

/* Calls `row` for the rows from <= key < to; `row` may suspend. */
static int image_walk(struct image *im, enum kv_table t, struct kv_slice from, struct kv_slice to,
                      int (*row)(void *arg, enum kv_table t, const struct kv_row *row), void *arg)
{
    STRBUF_AUTO struct strbuf at = STRBUF_INIT;
    size_t n = 1;
    int rc = 0;

    strbuf_add(&at, from.data, from.len);
    while (rc == 0 && n) {
        struct kv_rows *rows;

        rc = kv_scan(im->p->kv, t, (struct kv_slice){at.data, at.len}, to, IMAGE_PAGE,
                     IMAGE_PAGE_BYTES, 0, &rows);
        if (rc < 0)
            return rc;
        n = rows->count;
        for (size_t i = 0; rc == 0 && i < n; i++)
            rc = row(arg, t, &rows->rows[i]);
        if (n) {
            struct kv_slice last = rows->rows[n - 1].key;

            strbuf_reset(&at);
            strbuf_add(&at, last.data, last.len);
            strbuf_addc(&at, 0);
        }
        kv_rows_free(rows);
    }
    return rc;
}

/* Takes a row as it is now. */
static int take_now(struct image *im, enum kv_table t, struct kv_slice key)
{
    MEM_AUTO void *value = NULL;
    struct kv_slice now;
    size_t len;
    int rc = kv_get(im->p->kv, t, key, &value, &len);

    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    now = (struct kv_slice){value, len};
    kv_changes_set(im->active, t, key, rc == 0 ? &now : NULL);
    return 0;
}

static int take_list(void *arg, enum kv_table t, const struct kv_row *row)
{
    const uint8_t *p = row->value.data;
    size_t left = row->value.len, used;
    struct kv_change change;
    int rc = 0;

    (void)t;
    while (rc == 0 && left) {
        rc = image_row_decode(p, left, &change, &used);
        if (rc < 0)
            return ERR_FORMAT;
        rc = take_now(arg, change.table, change.key);
        p += used;
        left -= used;
    }
    return rc;
}

static bool meta_is_local(struct kv_slice key)
{
    return (key.len == 5 && memcmp(key.data, "store", 5) == 0) ||
           (key.len == 4 && memcmp(key.data, "trim", 4) == 0);
}

static int take_meta(void *arg, enum kv_table t, const struct kv_row *row)
{
    struct image *im = arg;

    if (!meta_is_local(row->key))
        kv_changes_set(im->active, t, row->key, &row->value);
    return 0;
}

int image_count(struct image *im)
{
    size_t n;
    uint64_t *ids = image_form_ids(&im->named, &n);
    struct chunkstore_stats sum;
    int rc = chunkstore_sum(im->p->chunks, ids, n, &sum);
    uint64_t base, rest;

    if (rc == 0) {
        image_sizes(im, &base, &rest);
        im->shrink = base + rest ? (double)sum.stored_bytes / (double)(base + rest) : 0;
        im->stats.chunks = sum.chunks;
        im->stats.raw = sum.raw_bytes;
        im->stats.stored = sum.stored_bytes;
        im->stats.referenced = sum.referenced_bytes;
        image_keep(im);
    }
    mem_free(ids);
    return rc;
}

static int load_form(struct image *im)
{
    MEM_AUTO void *value = NULL;
    size_t len, used;
    int rc = kv_get(im->p->kv, KV_META, image_meta_key, &value, &len);

    if (rc < 0)
        return rc == ERR_NOENT ? 0 : rc;
    rc = image_form_decode(value, len, &im->named, &used);
    if (rc < 0)
        return rc;
    mem_free(value);
    value = NULL;
    rc = kv_get(im->p->kv, KV_IMAGE, image_mended_key, &value, &len);
    im->lost = rc == 0;
    return rc == ERR_NOENT ? 0 : rc;
}

int image_load(struct image *im)
{
    static const uint8_t end[] = {IMAGE_CHANGED_KEY + 1};
    uint8_t from[9];
    int rc = load_form(im);

    if (rc < 0 || PLANTED(IMAGE_FORGETS))
        return rc;
    /* Also where no record names a copy yet: one that does may be about to be replayed. */
    changed_key(im->named.settled + 1, from);
    rc = image_walk(im, KV_IMAGE, (struct kv_slice){from, sizeof(from)}, (struct kv_slice){end, 1},
                    take_list, im);
    if (rc == 0)
        rc = image_walk(im, KV_META, (struct kv_slice){"", 1}, (struct kv_slice){"", 0}, take_meta,
                        im);
    return rc;
}

/* ---- Writing runs ---- */

struct run_writer {
    struct image *im;
    struct image_run run;
    uint32_t room;
    struct strbuf bytes;
};

/* Hands the gathered bytes to the chunk store. Suspends. */
static int run_cut(struct run_writer *w)
{
    size_t n = (w->bytes.len + CHUNK_MAX - 1) / CHUNK_MAX;
    struct chunk_item *items = mem_calloc(n, sizeof(*items));
    int rc;

    for (size_t i = 0; i < n; i++) {
        items[i].data = (const uint8_t *)w->bytes.data + i * CHUNK_MAX;
        items[i].len = i + 1 < n ? CHUNK_MAX : w->bytes.len - i * CHUNK_MAX;
    }
    rc = n ? chunk_batch_add_wait(w->im->batch, items, n) : 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (w->run.count == w->room) {
            w->room = w->room ? 2 * w->room : 16;
            w->run.ids = mem_realloc(w->run.ids, w->room * sizeof(*w->run.ids));
        }
        w->run.ids[w->run.count++] = items[i].id;
    }
    mem_free(items);
    w->run.bytes += w->bytes.len;
    w->im->stats.written += w->bytes.len;
    w->im->unnamed += w->bytes.len;
    image_keep(w->im);
    strbuf_reset(&w->bytes);
    return rc;
}

/* Adds a row, and cuts behind it if its key says so: the longer the row the likelier. Suspends. */
static int run_add(struct run_writer *w, enum kv_table t, struct kv_slice key,
                   const struct kv_slice *value)
{
    size_t before = w->bytes.len;
    uint64_t dice = hmap_hash_bytes(key.data, key.len) % IMAGE_PIECE;

    image_row_encode(&w->bytes, t, key, value);
    return dice < w->bytes.len - before || w->bytes.len >= CHUNK_MAX ? run_cut(w) : 0;
}

/* Ends the run; *ret_run is the caller's, also on failure. Suspends. */
static int run_end(struct run_writer *w, int rc, struct image_run *ret_run)
{
    if (rc == 0)
        rc = run_cut(w);
    strbuf_free(&w->bytes);
    *ret_run = w->run;
    return rc;
}

static struct run_writer run_begin(struct image *im, uint64_t order, bool base)
{
    if (!im->batch)
        im->batch = chunk_batch_new(im->p->chunks, SEGMENT_IMAGE);
    return (struct run_writer){.im = im, .run = {.order = order, .base = base}};
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

static int write_increment(struct image *im, struct image_run *ret_run)
{
    struct run_writer w = run_begin(im, im->frozen_at, false);
    struct sorting s = {.changes = im->frozen};
    int rc = 0;

    env_offload(im->p->env, ENV_LANE_CPU, sort_run, &s);
    for (size_t i = 0; rc == 0 && i < kv_changes_count(im->frozen); i++) {
        const struct kv_change *c = &s.rows[i];

        if (c->gone && PLANTED(IMAGE_KEEPS_DELETED))
            continue;
        rc = run_add(&w, c->table, c->key, c->gone ? NULL : &c->value);
    }
    mem_free(s.rows);
    return run_end(&w, rc, ret_run);
}

static int base_row(void *arg, enum kv_table t, const struct kv_row *row)
{
    struct run_writer *w = arg;

    if (t == KV_META && meta_is_local(row->key))
        return 0;
    /* At a stop only the first base is worth the wait. */
    return w->im->p->stopping && !w->im->lost ? ERR_SHUTDOWN : run_add(w, t, row->key, &row->value);
}

/* Writes a base of what was frozen last, or is newer. Suspends, for long. */
static void write_base(struct image *im)
{
    struct run_writer w;
    int rc = 0;

    if (env_now(im->p->env) < im->retry_at)
        return;
    image_drop_batch(im);
    w = run_begin(im, im->frozen_at, true);
    for (unsigned t = 0; rc == 0 && t < KV_TABLE_COUNT; t++)
        if (!(IMAGE_TABLES_OUT >> t & 1))
            rc = image_walk(im, (enum kv_table)t, (struct kv_slice){"", 1},
                            (struct kv_slice){"", 0}, base_row, &w);
    rc = run_end(&w, rc, &im->base);
    if (PLANTED(IMAGE_BASE_TORN)) {
        kv_changes_free(im->active);
        im->active = kv_changes_new(IMAGE_TABLES_OUT);
    }
    im->base_ready = rc == 0;
    if (rc == 0)
        return;
    image_drop_batch(im);
    image_keep(im);
    im->retry_at = env_now(im->p->env) + IMAGE_RETRY;
    if (rc != ERR_SHUTDOWN)
        log_warn("image", "the metadata cannot be copied to the drives, will try again error=%s",
                 err_name(rc));
}

/* ---- At a checkpoint ---- */

void image_freeze(struct image *im)
{
    CHECK(!im->frozen);
    im->frozen = im->active;
    im->active = kv_changes_new(IMAGE_TABLES_OUT);
    im->frozen_at = im->p->processed_lsn;
}

void image_prepare(struct image *im)
{
    if (!im->lost || im->base_ready)
        return;
    /* Whatever changed until now, the base will have it. */
    image_freeze(im);
    kv_changes_free(im->frozen);
    im->frozen = NULL;
    write_base(im);
}

/* The runs that the next record names: shallow copies, but for the list itself. */
static struct image_form form_next(const struct image *im, const struct image_run *increment)
{
    struct image_form f = {.runs = mem_calloc(im->named.count + 2, sizeof(*f.runs))};

    if (im->base_ready)
        f.runs[f.count++] = im->base;
    for (uint32_t i = 0; i < im->named.count; i++) {
        const struct image_run *r = &im->named.runs[i];

        if (!im->base_ready || (!r->base && r->order > im->base.order))
            f.runs[f.count++] = *r;
    }
    if (increment->count)
        f.runs[f.count++] = *increment;
    return f;
}

static bool form_has(const struct image_form *f, const struct image_run *run)
{
    for (uint32_t i = 0; i < f->count; i++)
        if (f->runs[i].order == run->order && f->runs[i].base == run->base)
            return true;
    return false;
}

/* The list of the chunks of runs that stay. Suspends. */
static int list_staying(struct image *im, const struct image_form *next, struct strbuf *out)
{
    struct image_form stay = {.runs = mem_calloc(next->count, sizeof(*stay.runs))};
    uint64_t *ids;
    size_t n;
    int rc;

    for (uint32_t i = 0; i < next->count; i++)
        if (form_has(&im->named, &next->runs[i]))
            stay.runs[stay.count++] = next->runs[i];
    ids = image_form_ids(&stay, &n);
    rc = chunkstore_list(im->p->chunks, ids, n, out);
    mem_free(ids);
    mem_free(stay.runs);
    return rc;
}

/* The rows that applying will change, so that it need not wait for them. Suspends. */
static int warm_leaving(struct image *im)
{
    size_t n;
    uint64_t *ids = image_form_ids(&im->named, &n);
    int rc = im->base_ready ? chunkstore_warm(im->p->chunks, ids, n) : 0;

    mem_free(ids);
    return rc;
}

static int image_name(struct image *im, uint64_t settled, uint64_t upto,
                      const struct image_run *increment)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct image_form next = form_next(im, increment);
    struct iovec iov;
    int rc = chunk_batch_finish(im->batch);

    next.settled = settled;
    next.upto = upto;
    next.time = env_wallclock(im->p->env);
    if (rc == 0)
        rc = warm_leaving(im);
    if (rc == 0) {
        chunk_batch_encode(im->batch, &body);
        image_form_encode(&next, &body);
        rc = list_staying(im, &next, &body);
    }
    /* The reserve of the journal is for many: a record that wants much of it must wait its turn,
     * and that would be for the checkpoint that it is part of. */
    if (rc == 0 && body.len > journal_record_max(im->p->journal) / 2)
        rc = ERR_TOOBIG;
    iov = (struct iovec){body.data, body.len};
    if (rc == 0)
        rc = record_submit(&im->p->log, RECORD_IMAGE, &iov, 1, JOURNAL_INTERNAL, NULL);
    mem_free(next.runs);
    return rc;
}

int image_write(struct image *im, uint64_t settled, uint64_t upto)
{
    struct image_run increment = {0};
    struct kv_changes *newer;
    int rc = (im->lost && !im->base_ready) || PLANTED(IMAGE_SKIPPED) ? ERR_AGAIN : 0;

    if (rc == 0)
        rc = write_increment(im, &increment);
    if (rc == 0)
        rc = image_name(im, settled, upto, &increment);
    mem_free(increment.ids);
    image_drop_batch(im);
    if (rc < 0) {
        image_keep(im);
        im->retry_at = env_now(im->p->env) + IMAGE_RETRY;
        newer = im->active;
        kv_changes_add_older(newer, im->frozen);
        im->stats.failures += rc != ERR_SHUTDOWN && !PLANTED(IMAGE_SKIPPED);
        if (im->lost || kv_changes_bytes(newer) > 4 * IMAGE_SET_MAX) {
            kv_changes_free(newer); /* too much to remember: the next copy begins anew */
            im->active = kv_changes_new(IMAGE_TABLES_OUT);
            im->lost = true;
        }
    }
    kv_changes_free(im->frozen);
    im->frozen = NULL;
    return rc == 0 ? image_count(im) : rc;
}

static int drop_list(void *arg, enum kv_table t, const struct kv_row *row)
{
    kv_batch_delete(arg, t, row->key);
    return 0;
}

/* Deletes the lists of what is in the copy. Suspends. */
static int drop_lists(struct image *im)
{
    struct kv_batch *batch = kv_batch_new();
    uint8_t from[9], to[9];
    int rc;

    changed_key(0, from);
    changed_key(im->named.settled + 1, to);
    rc = image_walk(im, KV_IMAGE, (struct kv_slice){from, sizeof(from)},
                    (struct kv_slice){to, sizeof(to)}, drop_list, batch);
    if (rc == 0 && kv_batch_count(batch))
        rc = kv_write(im->p->kv, batch);
    kv_batch_free(batch);
    return rc;
}

void image_tidy(struct image *im)
{
    uint64_t base, rest;

    if (im->lost || im->p->stopping || im->p->broken)
        return;
    image_sizes(im, &base, &rest);
    /* An error of the KV store will be met by who writes next. */
    if (drop_lists(im) == 0 && (rest > base + IMAGE_GROW_MIN || im->named.count > IMAGE_RUNS_MAX))
        write_base(im);
}

/* ---- Applying ---- */

/* Calls `fn` for the chunks of the runs in `a` that are not in `b`. */
static void runs_differ(struct chunk_txn *t, const struct image_form *a, const struct image_form *b,
                        void (*fn)(struct chunk_txn *t, uint64_t id))
{
    for (uint32_t i = 0; i < a->count; i++)
        for (uint32_t j = 0; j < a->runs[i].count && !form_has(b, &a->runs[i]); j++)
            fn(t, a->runs[i].ids[j]);
}

static void ref_add(struct chunk_txn *t, uint64_t id)
{
    chunk_txn_ref(t, id, 1);
}

static void ref_drop(struct chunk_txn *t, uint64_t id)
{
    chunk_txn_ref(t, id, -1);
}

/* The record is applied: what it names is the copy. */
static void form_take(struct image *im, struct image_form *next, struct kv_batch *batch)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;

    if (next->count && !form_has(&im->named, &next->runs[0])) { /* a new base */
        im->lost = false;
        kv_batch_delete(batch, KV_IMAGE, image_mended_key);
    }
    image_form_encode(next, &row);
    kv_batch_put(batch, KV_META, image_meta_key, (struct kv_slice){row.data, row.len});
    image_form_free(&im->named);
    im->named = *next;
}

int image_apply(struct image *im, const struct apply *a)
{
    struct image_form next;
    struct chunk_txn *t;
    size_t used, form_used;
    int rc;

    if (!a->kv)
        return 0;
    t = chunk_txn_begin(im->p->chunks);
    rc = chunk_txn_take(t, a->body, a->length, &used);
    if (rc == 0)
        rc = image_form_decode(a->body + used, a->length - used, &next, &form_used);
    if (rc < 0) {
        chunk_txn_abort(t);
        return rc;
    }
    next.lsn = a->lsn;
    runs_differ(t, &next, &im->named, chunk_txn_need);
    runs_differ(t, &im->named, &next, chunk_txn_need);
    rc = chunk_txn_load(t);
    if (rc < 0) {
        chunk_txn_abort(t);
        image_form_free(&next);
        return rc;
    }
    runs_differ(t, &next, &im->named, ref_add);
    runs_differ(t, &im->named, &next, ref_drop);
    form_take(im, &next, a->kv);
    chunk_txn_commit(t, a->kv);
    return 0;
}

/* ---- Looking ---- */

void image_get_stats(const struct image *im, struct image_stats *ret_stats)
{
    *ret_stats = im->stats;
    ret_stats->settled = im->named.lsn ? im->named.settled : 0;
    ret_stats->time = im->named.lsn ? im->named.time : 0;
}

void image_observe(struct image *im, struct metrics *m)
{
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_metadata_copy_written_bytes_total",
                      "Rows written to the metadata's copy on the drives, before compression", NULL,
                      &im->stats.written);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_metadata_copy_failures_total",
                      "Checkpoints that had to go without the metadata's copy", NULL,
                      &im->stats.failures);
}

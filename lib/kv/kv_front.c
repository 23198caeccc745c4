/* Write-behind: keeps what was written lately in memory, and hands it to the store behind in large
 * sorted batches.
 *
 * Why. A partition writes one small batch per journal record, and a change is in many rows: a
 * write of 4 KiB makes a chunk, a fingerprint and a map leaf. Putting each row where it belongs in
 * an ordered table of tens of megabytes costs microseconds, on the one thread that must not be
 * slow. Here it is one insertion into a hash table. The ordered insertions are made later, on a
 * lane, in key order, which is cheaper again, and rows that changed many times meanwhile (leaves
 * of a sequential write, counters) are written once.
 *
 * Why it may. The contract of kv.h asks for durability at kv_flush only, and that a crash goes back
 * to some batch border. What is handed on is a union of whole batches in one batch of the
 * store behind, so a crash finds whole batches there.
 *
 * Two sets of rows: `active` takes the writes; when it has `limit` bytes it becomes `sealed`, which
 * nobody changes any more, a fiber writes it to the store behind, and forgets it after that. A
 * writer who finds the active set full while the sealed one is still being written waits: memory is
 * bounded by two sets. A reader asks active, sealed, store, in this order.
 *
 * Without space. The file system under the store behind may be full for a while (ERR_NOSPC). That
 * is no failure: nobody changes the sealed set and the journal has its records, so it is kept, and
 * tried again every second. Writes go on until the active set is full too, and wait then. A flush
 * does not wait: it has the time, and tells. Nor does the end: what is in the sets then is lost to
 * the store and replayed from the journal at the next start.
 *
 * Ranges come from three places at once and must be of one state. The rows of the two sets are
 * copied first; nothing may then reach the store behind that was not among them, so a push does not
 * begin while a scan is under way. One that has begun may go on: all it brings was copied. A scan
 * that comes while a push waits lets it go first, else busy readers could stop the writers.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/metric.h"
#include "lib/base/slow.h"
#include "lib/kv/impl.h"
#include "lib/kv/rowset.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"

#define KV_FRONT_DEFAULT_BYTES (8u << 20)
#define KV_FRONT_PAUSE         ENV_NS_PER_S /* before a store without space is tried again */

/* What is timed. Reads only when they go to the store behind, writes only when they find the active
 * set full: what is done in the sets costs hardly more than a look at the clock, and is part of
 * what the caller times. */
enum front_op { FRONT_GET, FRONT_SCAN, FRONT_WRITE, FRONT_BEHIND, FRONT_FLUSH, FRONT_OPS };
static const char *const front_op_names[] = {"kv.get", "kv.scan", "kv.write", "kv.write_behind",
                                             "kv.flush"};

struct kv_front {
    struct kv base;
    struct env *env;
    struct kv *store; /* behind */
    size_t limit;
    struct rowset sets[2];
    struct rowset *active, *sealed; /* sealed: NULL when there is none */
    uint64_t seals, pushes;         /* how often a set was sealed, and written behind */
    int error;                      /* of a push, for good: sealed stays, and so do its rows */
    bool no_space;                  /* a push is tried again and again */
    unsigned scans;                 /* under way */
    bool push_waits;
    bool ending;
    struct fiber_mutex writing; /* keeps batches in the order of the calls */
    struct fiber_cond changed;  /* any of the above, but for ending */
    struct fiber_cond ends;     /* ending */
    struct metric_hist op_time[FRONT_OPS];
    struct metric_counter hits; /* rows found in the sets */
    struct slow_log *slow;
};

static struct kv_front *kv_front_of(struct kv *kv)
{
    return (struct kv_front *)kv;
}

/* An operation that began at `start` is over. */
static void front_measure(struct kv_front *f, enum front_op op, uint64_t start, size_t rows)
{
    uint64_t now = env_now(f->env);

    metric_record(&f->op_time[op], now - start);
    if (slow_is(f->slow, now - start))
        slow_note(f->slow, now, front_op_names[op], now - start, "rows=%zu", rows);
}

/* ---- Handing on ----------------------------------------------------------------------------- */

struct front_encoding {
    const struct rowset *rows;
    struct rowset_ref *refs;
    struct kv_batch *batch;
};

static void front_encode(void *arg)
{
    struct front_encoding *e = arg;

    rowset_sort(e->rows, e->refs);
    for (size_t i = 0; i < rowset_count(e->rows); i++) {
        const struct rowset_row *r = e->refs[i].row;
        enum kv_table t = (enum kv_table)r->key[0];

        if (r->gone)
            kv_batch_delete(e->batch, t, kv_key_of_full(rowset_key(r)));
        else
            kv_batch_put(e->batch, t, kv_key_of_full(rowset_key(r)), rowset_value(r));
    }
}

/* The sealed set as a batch. Suspends. */
static struct kv_batch *front_sealed_batch(struct kv_front *f)
{
    struct front_encoding e = {.rows = f->sealed, .batch = kv_batch_new()};

    e.refs = mem_calloc(rowset_count(f->sealed), sizeof(e.refs[0]));
    env_offload(f->env, ENV_LANE_KV, front_encode, &e);
    mem_free(e.refs);
    return e.batch;
}

/* Writes it to the store behind, however long that has no space, unless the end comes.
 *
 * The scans that begin meanwhile need not be waited for before it is tried again: they have copied
 * the sealed set. */
static int front_write_behind(struct kv_front *f, struct kv_batch *b)
{
    int rc = kv_write(f->store, b);

    while (rc == ERR_NOSPC && !f->ending) {
        if (!f->no_space)
            log_error("kv", "no space for the metadata, writes will wait for it: make room where "
                            "the store's kv folder lies");
        f->no_space = true;
        fiber_cond_broadcast(&f->changed); /* flushes do not wait */
        (void)fiber_cond_wait_until(f->env, &f->ends, env_now(f->env) + KV_FRONT_PAUSE);
        rc = kv_write(f->store, b);
    }
    if (f->no_space && rc == 0)
        log_info("kv", "there is space for the metadata again");
    f->no_space = false;
    return rc;
}

static void front_push(void *arg)
{
    struct kv_front *f = arg;
    size_t rows = rowset_count(f->sealed);
    struct kv_batch *batch;
    uint64_t start;

    f->push_waits = true;
    while (f->scans)
        fiber_cond_wait(&f->changed);
    f->push_waits = false;
    fiber_cond_broadcast(&f->changed);
    start = env_now(f->env);
    batch = front_sealed_batch(f);
    f->error = front_write_behind(f, batch);
    kv_batch_free(batch);
    front_measure(f, FRONT_BEHIND, start, rows);
    if (f->error == 0) {
        rowset_clear(f->sealed);
        f->sealed = NULL;
    }
    f->pushes++;
    fiber_cond_broadcast(&f->changed);
}

/* There is no sealed set. Does not suspend. */
static void front_seal(struct kv_front *f)
{
    CHECK(!f->sealed);
    f->sealed = f->active;
    f->active = f->sealed == &f->sets[0] ? &f->sets[1] : &f->sets[0];
    f->seals++;
    fiber_spawn(f->env, "kv write-behind", front_push, f);
}

/* Waits until the active set takes another batch. Suspends. */
static int front_make_room(struct kv_front *f)
{
    while (f->error == 0 && f->active->bytes >= f->limit)
        if (f->sealed)
            fiber_cond_wait(&f->changed);
        else
            front_seal(f);
    return f->error;
}

/* Waits until all that is in the sets now is in the store behind. ERR_NOSPC as soon as that has no
 * space. Does not take `writing`, which a writer may hold for as long as there is none: sets are
 * sealed between two batches all the same, since a batch is put into one without suspending. */
static int front_hand_on(struct kv_front *f)
{
    uint64_t upto = f->seals + (rowset_count(f->active) > 0);

    while (f->error == 0 && f->pushes < upto) {
        if (f->no_space && !f->ending)
            return ERR_NOSPC;
        if (f->seals < upto && !f->sealed)
            front_seal(f);
        else
            fiber_cond_wait(&f->changed);
    }
    return f->error;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static int kv_front_write(struct kv *kv, const struct kv_batch *b)
{
    struct kv_front *f = kv_front_of(kv);
    struct kv_batch_op op;
    bool waits = f->active->bytes >= f->limit;
    uint64_t start = waits ? env_now(f->env) : 0;
    size_t pos = 0;
    int rc;

    fiber_mutex_lock(&f->writing);
    rc = front_make_room(f);
    while (rc == 0 && kv_batch_next(b, &pos, &op))
        if (op.is_put)
            rowset_put(f->active, op.key, op.value);
        else
            rowset_delete(f->active, op.key);
    fiber_mutex_unlock(&f->writing);
    if (waits)
        front_measure(f, FRONT_WRITE, start, kv_batch_count(b));
    return rc;
}

static int kv_front_flush(struct kv *kv)
{
    struct kv_front *f = kv_front_of(kv);
    uint64_t start = env_now(f->env);
    int rc = front_hand_on(f);

    if (rc == 0)
        rc = kv_flush(f->store);
    front_measure(f, FRONT_FLUSH, start, 0);
    return rc;
}

/* ---- Reading rows --------------------------------------------------------------------------- */

static const struct rowset_row *front_find(const struct kv_front *f, struct kv_slice key)
{
    uint64_t hash = rowset_hash(key);
    const struct rowset_row *r = rowset_find(f->active, key, hash);

    return r || !f->sealed ? r : rowset_find(f->sealed, key, hash);
}

static void front_copy(const struct rowset_row *r, void **ret_value, size_t *ret_len)
{
    *ret_value = r->gone ? NULL : mem_memdup(r->value, r->value_len);
    *ret_len = r->value_len;
}

static int kv_front_get(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    struct kv_front *f = kv_front_of(kv);
    const struct rowset_row *r = front_find(f, key);

    if (!r) {
        uint64_t start = env_now(f->env);
        int rc = f->store->ops->get(f->store, key, ret_value, ret_len);

        front_measure(f, FRONT_GET, start, 1);
        return rc;
    }
    metric_add(&f->hits, 1);
    if (r->gone)
        return ERR_NOENT;
    front_copy(r, ret_value, ret_len);
    return 0;
}

/* The keys that no set knows, and where their values belong. */
struct front_rest {
    size_t count;
    struct kv_slice *keys;
    void **values;
    size_t *lens, *where;
};

static void front_rest_init(struct front_rest *rest, size_t n)
{
    rest->count = 0;
    rest->keys = mem_calloc(n, sizeof(*rest->keys));
    rest->values = mem_calloc(n, sizeof(*rest->values));
    rest->lens = mem_calloc(n, 2 * sizeof(*rest->lens));
    rest->where = rest->lens + n;
}

static void front_rest_free(struct front_rest *rest)
{
    mem_free(rest->keys);
    mem_free(rest->values);
    mem_free(rest->lens);
}

static int kv_front_multi_get(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                              size_t *lens)
{
    struct kv_front *f = kv_front_of(kv);
    struct front_rest rest;
    int rc = 0;

    front_rest_init(&rest, n);
    for (size_t i = 0; i < n; i++) {
        const struct rowset_row *r = front_find(f, keys[i]);

        if (r) {
            front_copy(r, &values[i], &lens[i]);
        } else {
            values[i] = NULL;
            rest.keys[rest.count] = keys[i];
            rest.where[rest.count++] = i;
        }
    }
    metric_add(&f->hits, n - rest.count);
    if (rest.count) {
        uint64_t start = env_now(f->env);

        rc = f->store->ops->multi_get(f->store, rest.keys, rest.count, rest.values, rest.lens);
        front_measure(f, FRONT_GET, start, rest.count);
    }
    for (size_t i = 0; rc == 0 && i < rest.count; i++) {
        values[rest.where[i]] = rest.values[i];
        lens[rest.where[i]] = rest.lens[i];
    }
    for (size_t i = 0; rc < 0 && i < n; i++) {
        mem_free(values[i]);
        values[i] = NULL;
    }
    front_rest_free(&rest);
    return rc;
}

/* ---- Reading ranges ------------------------------------------------------------------------- */

/* The rows of the two sets in a range, copied. When there are enough for a page, the rest is left
 * out and the range cut there: then the last row here bounds what the store is asked for. */
struct front_view {
    struct kv_slice from, to;
    bool reverse;
    size_t count, at; /* at: the next to be merged */
    struct front_view_row {
        struct kv_slice key, value;
        bool gone;
    } * rows;
    uint8_t *bytes;
};

static int view_compare(const void *a, const void *b)
{
    const struct front_view_row *x = a, *y = b;

    return kv_slice_cmp(x->key, y->key);
}

static int view_compare_down(const void *a, const void *b)
{
    return -view_compare(a, b);
}

/* Collects rows of a set in the range, not copied yet; leaves out what `newer` has too. */
static void view_collect(struct front_view *v, const struct rowset *s, const struct rowset *newer)
{
    size_t table = *(const uint8_t *)v->from.data;

    for (const struct rowset_row *r = s->tables[table]; r; r = r->next) {
        struct kv_slice key = rowset_key(r);

        if (kv_slice_cmp(key, v->from) < 0 || kv_slice_cmp(key, v->to) >= 0 ||
            (newer && rowset_find(newer, key, r->node.hash)))
            continue;
        if ((v->count & (v->count - 1)) == 0)
            v->rows = mem_realloc(v->rows, (v->count ? 2 * v->count : 1) * sizeof(v->rows[0]));
        v->rows[v->count++] = (struct front_view_row){key, rowset_value(r), r->gone};
    }
}

/* Keeps as many rows as a page can need and gives them bytes of their own. */
static void view_keep(struct front_view *v, size_t max_rows, size_t max_bytes)
{
    size_t n = 0, puts = 0, put_bytes = 0, bytes = 0;
    uint8_t *p;

    for (; n < v->count && puts < max_rows && (puts == 0 || put_bytes < max_bytes); n++) {
        const struct front_view_row *r = &v->rows[n];

        bytes += r->key.len + r->value.len;
        puts += !r->gone;
        put_bytes += r->gone ? 0 : kv_page_row_bytes(kv_key_of_full(r->key), r->value);
    }
    v->bytes = p = mem_alloc(bytes);
    for (size_t i = 0; i < n; i++) {
        struct front_view_row *r = &v->rows[i];

        memcpy(p, r->key.data, r->key.len);
        r->key.data = p;
        p += r->key.len;
        if (r->value.len)
            memcpy(p, r->value.data, r->value.len);
        r->value.data = p;
        p += r->value.len;
    }
    if (n < v->count) {
        /* The last row kept answers for its own key, in either direction. */
        if (v->reverse)
            v->from = v->rows[n - 1].key;
        else
            v->to = v->rows[n - 1].key;
    }
    v->count = n;
}

static void view_init(struct front_view *v, const struct kv_front *f, size_t max_rows,
                      size_t max_bytes)
{
    view_collect(v, f->active, NULL);
    if (f->sealed)
        view_collect(v, f->sealed, f->active);
    if (v->count) {
        qsort(v->rows, v->count, sizeof(v->rows[0]), v->reverse ? view_compare_down : view_compare);
        view_keep(v, max_rows, max_bytes);
    }
}

static void view_free(struct front_view *v)
{
    mem_free(v->rows);
    mem_free(v->bytes);
}

/* Moves the view's rows before `key` to the page, or all; true when one has the very key. */
static bool view_merge(struct front_view *v, struct kv_page *page, const struct kv_slice *key)
{
    for (; v->at < v->count && !kv_page_full(page); v->at++) {
        const struct front_view_row *r = &v->rows[v->at];
        int c = key ? kv_slice_cmp(kv_key_of_full(r->key), *key) : -1;

        if (key && (v->reverse ? c < 0 : c > 0))
            return false;
        if (!r->gone)
            kv_page_add(page, kv_key_of_full(r->key), r->value);
        if (key && c == 0) {
            v->at++;
            return true;
        }
    }
    return false;
}

/* Merges one page of the store with the view. *ret_end: the store has no more in the range. */
static int front_scan_step(struct kv_front *f, struct front_view *v, struct kv_page *page,
                           struct kv_slice from, struct kv_slice to, struct kv_full_key *last,
                           bool *ret_end)
{
    size_t max_rows = page->max_rows - page->count, bytes = 0;
    size_t max_bytes = page->max_bytes > page->bytes.len ? page->max_bytes - page->bytes.len : 1;
    struct kv_rows *rows;
    int rc = f->store->ops->scan(f->store, from, to, max_rows, max_bytes, v->reverse, &rows);

    if (rc < 0)
        return rc;
    for (size_t i = 0; i < rows->count; i++) {
        const struct kv_row *r = &rows->rows[i];

        bytes += kv_page_row_bytes(r->key, r->value);
        if (!view_merge(v, page, &r->key) && !kv_page_full(page))
            kv_page_add(page, r->key, r->value);
    }
    *ret_end = rows->count < max_rows && bytes < max_bytes;
    if (rows->count) {
        struct kv_slice key = rows->rows[rows->count - 1].key;

        last->bytes[0] = *(const uint8_t *)v->from.data;
        memcpy(last->bytes + 1, key.data, key.len);
        last->len = 1 + key.len;
    }
    kv_rows_free(rows);
    return 0;
}

/* Fills a page from the store and the view. */
static int front_scan_merge(struct kv_front *f, struct front_view *v, struct kv_page *page)
{
    struct kv_slice from = v->from, to = v->to;
    struct kv_full_key last = {0};
    bool end = kv_slice_cmp(from, to) >= 0;
    int rc = 0;

    while (rc == 0 && !end && !kv_page_full(page)) {
        rc = front_scan_step(f, v, page, from, to, &last, &end);
        if (v->reverse) {
            to = kv_full_slice(&last);
        } else {
            last.bytes[last.len++] = 0; /* the next key there can be */
            from = kv_full_slice(&last);
        }
    }
    if (rc == 0)
        (void)view_merge(v, page, NULL);
    return rc;
}

static int kv_front_scan(struct kv *kv, struct kv_slice from, struct kv_slice to, size_t max_rows,
                         size_t max_bytes, int reverse, struct kv_rows **ret_rows)
{
    struct kv_front *f = kv_front_of(kv);
    struct front_view v = {.from = from, .to = to, .reverse = reverse != 0};
    struct kv_page page;
    uint64_t start = env_now(f->env);
    int rc;

    while (f->push_waits)
        fiber_cond_wait(&f->changed);
    f->scans++;
    view_init(&v, f, max_rows, max_bytes);
    if (v.count == 0) {
        rc = f->store->ops->scan(f->store, from, to, max_rows, max_bytes, reverse, ret_rows);
    } else {
        kv_page_init(&page, max_rows, max_bytes);
        rc = front_scan_merge(f, &v, &page);
        if (rc == 0)
            *ret_rows = kv_page_pack(&page);
        else
            kv_page_free(&page);
    }
    view_free(&v);
    front_measure(f, FRONT_SCAN, start, rc == 0 ? (*ret_rows)->count : 0);
    if (--f->scans == 0)
        fiber_cond_broadcast(&f->changed);
    return rc;
}

/* ---- The rest ------------------------------------------------------------------------------- */

static int kv_front_get_stats(struct kv *kv, struct kv_stats *ret_stats)
{
    struct kv_front *f = kv_front_of(kv);
    struct kv_stats stats;
    int rc = kv_get_stats(f->store, &stats);

    if (rc < 0)
        return rc;
    stats.memory_bytes += f->active->bytes + (f->sealed ? f->sealed->bytes : 0);
    *ret_stats = stats;
    return 0;
}

static int kv_front_close(struct kv *kv)
{
    struct kv_front *f = kv_front_of(kv);
    int rc, closed;

    kv_front_end_soon(kv);
    while (f->pushes < f->seals)
        fiber_cond_wait(&f->changed);
    rc = kv_front_flush(kv);
    closed = kv_close(f->store);
    rowset_free(&f->sets[0]);
    rowset_free(&f->sets[1]);
    mem_free(f);
    return rc < 0 ? rc : closed;
}

static const struct kv_ops kv_front_ops = {
    .get = kv_front_get,
    .multi_get = kv_front_multi_get,
    .write = kv_front_write,
    .flush = kv_front_flush,
    .get_stats = kv_front_get_stats,
    .close = kv_front_close,
    .scan = kv_front_scan,
};

struct kv *kv_front_new(struct env *env, struct kv *store, size_t limit)
{
    struct kv_front *f = mem_zalloc(sizeof(*f));

    f->base.ops = &kv_front_ops;
    f->env = env;
    f->store = store;
    f->limit = limit ? limit : KV_FRONT_DEFAULT_BYTES;
    rowset_init(&f->sets[0]);
    rowset_init(&f->sets[1]);
    f->active = &f->sets[0];
    fiber_mutex_init(&f->writing);
    fiber_cond_init(&f->changed);
    fiber_cond_init(&f->ends);
    for (unsigned i = 0; i < FRONT_OPS; i++)
        metric_hist_init(&f->op_time[i], METRIC_TIME);
    return &f->base;
}

void kv_front_end_soon(struct kv *kv)
{
    struct kv_front *f = kv_front_of(kv);

    CHECK(kv->ops == &kv_front_ops);
    f->ending = true;
    fiber_cond_broadcast(&f->ends);
}

void kv_front_observe(struct kv *kv, struct metrics *m, struct slow_log *slow)
{
    struct kv_front *f = kv_front_of(kv);

    CHECK(kv->ops == &kv_front_ops);
    f->slow = slow;
    for (unsigned i = 0; i < FRONT_OPS; i++)
        metrics_add_hist(
            m, "filmroom_kv_seconds",
            "Time of calls on the metadata that were more than a look into memory: get "
            "and scan, writes that found memory full, batches written behind to "
            "RocksDB, flushes",
            METRIC_LABELS("op", front_op_names[i] + strlen("kv.")), &f->op_time[i]);
    metrics_add_counter(m, "filmroom_kv_hits_total",
                        "Rows of metadata found among those not yet written behind", NULL,
                        &f->hits);
}

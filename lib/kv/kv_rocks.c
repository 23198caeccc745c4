/* The key-value store on RocksDB 7.8, through its C API.
 *
 * One key space. The tables are not column families but ranges of one family, told apart by the
 * first byte of the key. The promise that a crash takes all tables back together, to a batch
 * border, then follows from RocksDB's plainest property: memory tables of one family are written
 * out in order and change over between write batches. With a family per table it would rest on
 * atomic_flush, and the C API of 7.8 can flush only one family by hand: such a flush leaves the
 * others behind even with atomic_flush on (tried: batch over two families, flush of one, kill: half
 * of the batch was gone). It also means one file per flush in place of ten.
 *
 * The write-ahead log is off: the partition's journal is the log. What was written after the last
 * completed flush may be lost in a crash, and replay brings it back.
 *
 * Inline or on a lane. A call that RocksDB can serve from memory takes a microsecond or two, a hop
 * to the lane's thread fifty. So reads and small scans are first tried on the loop, limited to the
 * block cache and the memory tables (read tier); writes with no_slowdown. "Result incomplete" means
 * that it would have blocked, and the same call is made on the lane.
 *
 * Order of writes. A write that waits on the lane must not be overtaken, so every write holds
 * write_lock, which is fair, from its first try to its end.
 *
 * Errors. The C API gives a text only; kv_rocks_error knows the parts that matter. The text itself
 * goes to the log here, since it would be lost otherwise.
 *
 * Without space. A flush or compaction of RocksDB's own that finds none stops all writes, which
 * return the error, but nothing is lost: memory tables stay, reads go on, and RocksDB looks for
 * space every five seconds and goes on by itself when there is room for a memory table (its default
 * SstFileManager; the C API has no way to ask for it). Writes and flushes then only have to be
 * tried again. Whatever else stops it, it stays stopped until it is opened again, which would lose
 * the memory tables: ERR_KV. Too many open files is of that kind.
 *
 * Flushes after that. RocksDB 7.8 never takes back the mark that it was stopped: from then on its
 * flush returns success at once, with the work still under way (is_db_stopped_ in its
 * db/error_handler.cc). The journal would be trimmed of what is nowhere else. So once there were
 * errors in the background, a flush is done only when no memory table holds anything. (The mark
 * also has writes stop for what they would not stop for otherwise, a compaction without space.)
 *
 * Compactions without space. These RocksDB takes lightly: writes go on, but where table files that
 * were not compacted are many, it would hold back flushes until there is space again, checkpoints
 * and the end with them, and a thread of the lane. So it is told not to count these files, and
 * flushes wait for compactions here instead, as long as they work (kv_rocks_await_compaction).
 *
 * RocksDB's own log lies beside the tables. Debian's build aborts at the second line that finds no
 * space there (an assertion of its writable_file_writer.h). What matters of it comes as the text of
 * an error too, so after its head, at the start, it gets nothing.
 */
#include "lib/kv/impl.h"

#include <limits.h>
#include <rocksdb/c.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/rt/env.h"
#include "lib/rt/sync.h"

#define KV_ROCKS_DEFAULT_BYTES   (64u << 20)
#define KV_ROCKS_MEMTABLES       3    /* one being filled, two being written out */
#define KV_ROCKS_BLOCK_SIZE      8192 /* between point reads of 4 KiB map leaves and scans */
#define KV_ROCKS_BLOOM_BITS      10   /* about 1% of false positives */
#define KV_ROCKS_PREFIX          9    /* bytes of key that the memory tables' filter sees */
#define KV_ROCKS_L0_FILES        8    /* every checkpoint makes one: merge them by more at a time */
#define KV_ROCKS_L0_MANY         20   /* from these on a flush waits for compaction */
#define KV_ROCKS_L0_NEVER        (1 << 20) /* RocksDB itself does not */
#define KV_ROCKS_OPEN_FILES      256
#define KV_ROCKS_BACKGROUND_JOBS 2
#define KV_ROCKS_FILE_BYTES      (32u << 20)
#define KV_ROCKS_LOG_BYTES       (1u << 20)
#define KV_ROCKS_LOG_FILES       2
#define KV_ROCKS_MANIFEST_BYTES  (16u << 20)
#define KV_ROCKS_INLINE_ROWS     64u /* a larger scan goes straight to the lane */
#define KV_ROCKS_INLINE_KEYS     32u /* and several keys, more than these */
#define KV_ROCKS_DENSE_MIN       16u /* keys from which a walk is considered for several at once */
#define KV_ROCKS_DENSE_SPAN      3u  /* and the rows it may pass, per key wanted */
#define KV_ROCKS_INLINE_SKIPS    1024u        /* and so does one that meets many deleted rows */
#define KV_ROCKS_INLINE_BYTES    (256u << 10) /* and a larger write */
#define KV_ROCKS_FLUSH_LOOK      (2 * ENV_NS_PER_MS) /* between looks whether it is done */
#define KV_ROCKS_COMPACT_LOOK    (20 * ENV_NS_PER_MS)
#define KV_ROCKS_COMPACT_WAIT    (10 * ENV_NS_PER_S) /* a flush's, at most */
#define KV_ROCKS_FORMAT          "1"

/* Values of RocksDB's enums that its C header does not name. */
enum { KV_ROCKS_TIER_ALL = 0, KV_ROCKS_TIER_MEMORY = 1 };
enum { KV_ROCKS_LOG_FATAL = 4 };

struct kv_rocks {
    struct kv base;
    struct env *env;
    char *path;
    struct fiber_mutex write_lock;
    rocksdb_t *db;
    rocksdb_column_family_handle_t *family;
    rocksdb_cache_t *cache;
    rocksdb_options_t *options;
    rocksdb_readoptions_t *read_memory, *read_all;
    rocksdb_writeoptions_t *write_inline, *write_waiting;
    rocksdb_flushoptions_t *flush;
    atomic_bool no_space; /* has been told; whoever waits for space asks again and again */
};

static struct kv_rocks *kv_rocks_of(struct kv *kv)
{
    return (struct kv_rocks *)kv;
}

/* ---- Errors --------------------------------------------------------------------------------- */

static bool kv_rocks_incomplete(const char *text)
{
    return strncmp(text, "Result incomplete", 17) == 0;
}

/* The code for RocksDB's text, which is freed; 0 for NULL. Any thread. */
static int kv_rocks_error(struct kv_rocks *k, const char *what, char *text)
{
    int r;

    if (!text)
        return 0;
    if (strstr(text, "No space left on device"))
        r = ERR_NOSPC; /* before the next: a write that waits for a compaction can get both */
    else if (kv_rocks_incomplete(text))
        r = ERR_AGAIN;
    else if (strncmp(text, "IO error: lock", 14) == 0 || strstr(text, "While lock file"))
        r = ERR_LOCKED;
    else
        r = ERR_KV;
    if (r == ERR_LOCKED) /* whoever opens it tries again, and tells in the end */
        log_debug("kv", "locked path=%s text=%s", log_q(k->path), log_q(text));
    else if (r != ERR_AGAIN && !(r == ERR_NOSPC && atomic_exchange(&k->no_space, true)))
        log_error("kv", "rocksdb failed path=%s op=%s text=%s", log_q(k->path), what, log_q(text));
    rocksdb_free(text);
    return r;
}

/* ---- Reading -------------------------------------------------------------------------------- */

/* A read limited to memory that meets a table file it would have to open marks the key as "may
 * exist", which comes out as found with no bytes (seen with multi-get; the code of the plain get
 * has the same branch). So an empty value is believed only when it was allowed to be read. */
static bool kv_rocks_doubtful(const struct kv_rocks *k, const rocksdb_readoptions_t *how,
                              size_t len)
{
    return how == k->read_memory && len == 0;
}

struct kv_rocks_get {
    struct kv_rocks *k;
    const rocksdb_readoptions_t *how;
    struct kv_slice key;
    void *value;
    size_t len;
    int result;
};

static void kv_rocks_get_run(void *arg)
{
    struct kv_rocks_get *g = arg;
    char *error = NULL;
    rocksdb_pinnableslice_t *pin =
        rocksdb_get_pinned_cf(g->k->db, g->how, g->k->family, g->key.data, g->key.len, &error);
    const char *bytes;

    g->result = kv_rocks_error(g->k, "get", error);
    if (g->result == 0 && !pin)
        g->result = ERR_NOENT;
    if (!pin)
        return;
    bytes = rocksdb_pinnableslice_value(pin, &g->len);
    if (kv_rocks_doubtful(g->k, g->how, g->len))
        g->result = ERR_AGAIN;
    else
        g->value = mem_memdup(bytes, g->len);
    rocksdb_pinnableslice_destroy(pin);
}

static int kv_rocks_get(struct kv *kv, struct kv_slice key, void **ret_value, size_t *ret_len)
{
    struct kv_rocks *k = kv_rocks_of(kv);
    struct kv_rocks_get g = {.k = k, .how = k->read_memory, .key = key};

    kv_rocks_get_run(&g);
    if (g.result == ERR_AGAIN) {
        g.how = k->read_all;
        env_offload(k->env, ENV_LANE_KV, kv_rocks_get_run, &g);
    }
    if (g.result < 0)
        return g.result;
    *ret_value = g.value;
    *ret_len = g.len;
    return 0;
}

/* A multi-get works on parallel arrays. After the pass over memory only the keys that were not
 * decided by it remain, moved to the front. */
struct kv_rocks_multi {
    struct kv_rocks *k;
    const rocksdb_readoptions_t *how;
    size_t n, left;
    const char **keys;
    size_t *key_lens, *index; /* index: where the key's result belongs */
    rocksdb_pinnableslice_t **pins;
    char **errors;
    void **values;
    size_t *lens;
    int result;
};

static void kv_rocks_multi_init(struct kv_rocks_multi *g, const struct kv_slice *keys, size_t n)
{
    char *p = mem_alloc(n * 5 * sizeof(void *));

    _Static_assert(sizeof(size_t) == sizeof(void *), "one allocation for arrays of both");
    g->n = n;
    g->keys = (const char **)(void *)p;
    g->key_lens = (size_t *)(void *)(p + n * sizeof(void *));
    g->index = (size_t *)(void *)(p + 2 * n * sizeof(void *));
    g->pins = (rocksdb_pinnableslice_t **)(void *)(p + 3 * n * sizeof(void *));
    g->errors = (char **)(void *)(p + 4 * n * sizeof(void *));
    for (size_t i = 0; i < n; i++) {
        g->keys[i] = keys[i].data;
        g->key_lens[i] = keys[i].len;
        g->index[i] = i;
        g->values[i] = NULL;
        g->lens[i] = 0;
    }
    g->left = n;
}

/* In memory one by one: RocksDB's multi-get (7.8), told not to read, now and then answers "found,
 * empty" where it should say that the result is incomplete (kv_rocks_doubtful). */
static void kv_rocks_multi_ask(struct kv_rocks_multi *g)
{
    if (g->how != g->k->read_memory) {
        rocksdb_batched_multi_get_cf(g->k->db, g->how, g->k->family, g->left, g->keys, g->key_lens,
                                     g->pins, g->errors, false);
        return;
    }
    for (size_t i = 0; i < g->left; i++) {
        g->errors[i] = NULL;
        g->pins[i] = rocksdb_get_pinned_cf(g->k->db, g->how, g->k->family, g->keys[i],
                                           g->key_lens[i], &g->errors[i]);
    }
}

static void kv_rocks_multi_run(void *arg)
{
    struct kv_rocks_multi *g = arg;
    size_t n = g->left, left = 0;

    kv_rocks_multi_ask(g);
    for (size_t i = 0; i < n; i++) {
        int r = kv_rocks_error(g->k, "multi_get", g->errors[i]);
        size_t at = g->index[i], len = 0;
        const char *bytes = g->pins[i] ? rocksdb_pinnableslice_value(g->pins[i], &len) : NULL;

        if (bytes && kv_rocks_doubtful(g->k, g->how, len))
            r = ERR_AGAIN;
        if (r == ERR_AGAIN) {
            g->keys[left] = g->keys[i];
            g->key_lens[left] = g->key_lens[i];
            g->index[left++] = at;
        } else if (r < 0) {
            g->result = r;
        } else if (bytes) {
            g->values[at] = mem_memdup(bytes, len);
            g->lens[at] = len;
        }
        rocksdb_pinnableslice_destroy(g->pins[i]);
    }
    g->left = left;
}

/* ---- Scans ---------------------------------------------------------------------------------- */

struct kv_rocks_scan {
    struct kv_rocks *k;
    struct kv_slice from, to;
    size_t max_rows, max_bytes;
    bool reverse, memory_only;
    struct kv_rows *rows;
    int result;
};

/* The options hold the bounds, hence a set per scan. */
static rocksdb_readoptions_t *kv_rocks_scan_options(const struct kv_rocks_scan *s)
{
    rocksdb_readoptions_t *o = rocksdb_readoptions_create();

    rocksdb_readoptions_set_total_order_seek(o, 1); /* scans cross prefixes */
    rocksdb_readoptions_set_iterate_lower_bound(o, s->from.data, s->from.len);
    rocksdb_readoptions_set_iterate_upper_bound(o, s->to.data, s->to.len);
    if (s->memory_only) {
        rocksdb_readoptions_set_read_tier(o, KV_ROCKS_TIER_MEMORY);
        rocksdb_readoptions_set_max_skippable_internal_keys(o, KV_ROCKS_INLINE_SKIPS);
    } else if (s->max_rows > KV_ROCKS_INLINE_ROWS && s->max_rows < SIZE_MAX) {
        rocksdb_readoptions_set_fill_cache(o, 0); /* a long walk must not wash out the cache */
    }
    return o;
}

/* An iterator sees the state at its creation: that is the page's one consistent state. */
static void kv_rocks_scan_run(void *arg)
{
    struct kv_rocks_scan *s = arg;
    rocksdb_readoptions_t *o = kv_rocks_scan_options(s);
    rocksdb_iterator_t *it = rocksdb_create_iterator_cf(s->k->db, o, s->k->family);
    struct kv_page page;
    char *error = NULL;

    kv_page_init(&page, s->max_rows, s->max_bytes);
    if (s->reverse)
        rocksdb_iter_seek_to_last(it);
    else
        rocksdb_iter_seek_to_first(it);
    while (rocksdb_iter_valid(it) && !kv_page_full(&page)) {
        struct kv_slice key, value;

        key.data = rocksdb_iter_key(it, &key.len);
        value.data = rocksdb_iter_value(it, &value.len);
        kv_page_add(&page, kv_key_of_full(key), value);
        if (kv_page_full(&page))
            break;
        if (s->reverse)
            rocksdb_iter_prev(it);
        else
            rocksdb_iter_next(it);
    }
    rocksdb_iter_get_error(it, &error);
    s->result = kv_rocks_error(s->k, "scan", error);
    if (s->result == 0)
        s->rows = kv_page_pack(&page);
    kv_page_free(&page);
    rocksdb_iter_destroy(it);
    rocksdb_readoptions_destroy(o);
}

/* Scans in place where that can be short and finds all in memory, else on the lane. Suspends. */
static int kv_rocks_scan_try(struct kv_rocks_scan *s, bool in_place)
{
    s->result = ERR_AGAIN;
    s->memory_only = true;
    if (in_place)
        kv_rocks_scan_run(s);
    if (s->result == ERR_AGAIN) {
        s->memory_only = false;
        env_offload(s->k->env, ENV_LANE_KV, kv_rocks_scan_run, s);
    }
    return s->result;
}

static int kv_rocks_scan(struct kv *kv, struct kv_slice from, struct kv_slice to, size_t max_rows,
                         size_t max_bytes, int reverse, struct kv_rows **ret_rows)
{
    struct kv_rocks_scan s = {.k = kv_rocks_of(kv),
                              .from = from,
                              .to = to,
                              .max_rows = max_rows,
                              .max_bytes = max_bytes,
                              .reverse = reverse != 0};
    int rc;

    /* RocksDB takes bounds that cross for a broken invariant of its own. */
    if (kv_slice_cmp(from, to) >= 0) {
        struct kv_page page;

        kv_page_init(&page, max_rows, max_bytes);
        *ret_rows = kv_page_pack(&page);
        return 0;
    }
    rc = kv_rocks_scan_try(&s, max_rows <= KV_ROCKS_INLINE_ROWS);
    if (rc == 0)
        *ret_rows = s.rows;
    return rc;
}

/* ---- Several keys at once ------------------------------------------------------------------- */

/* Do the keys count up, in order and with few gaps, in their last eight bytes? */
static bool kv_rocks_dense(const struct kv_slice *keys, size_t n)
{
    size_t len = keys[0].len, head = len - 8;
    uint64_t first, last;

    if (n < KV_ROCKS_DENSE_MIN || len < 9)
        return false;
    for (size_t i = 1; i < n; i++)
        if (keys[i].len != len || kv_slice_cmp(keys[i - 1], keys[i]) >= 0)
            return false;
    if (memcmp(keys[0].data, keys[n - 1].data, head) != 0)
        return false;
    first = codec_get_be64((const uint8_t *)keys[0].data + head);
    last = codec_get_be64((const uint8_t *)keys[n - 1].data + head);
    return last - first < KV_ROCKS_DENSE_SPAN * n;
}

/* One walk over the range costs a tenth of asking for each of its keys. */
static int kv_rocks_multi_walk(struct kv_rocks *k, const struct kv_slice *keys, size_t n,
                               void **values, size_t *lens)
{
    struct kv_slice last = keys[n - 1];
    struct kv_full_key to = {.len = last.len + 1};
    struct kv_rocks_scan s = {.k = k,
                              .from = keys[0],
                              .to = kv_full_slice(&to),
                              .max_rows = SIZE_MAX,
                              .max_bytes = SIZE_MAX};
    size_t at = 0;
    int rc;

    memcpy(to.bytes, last.data, last.len); /* and a zero: the next key there can be */
    rc = kv_rocks_scan_try(&s, n <= KV_ROCKS_INLINE_ROWS);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        struct kv_slice key = kv_key_of_full(keys[i]);

        while (at < s.rows->count && kv_slice_cmp(s.rows->rows[at].key, key) < 0)
            at++;
        values[i] = NULL;
        lens[i] = 0;
        if (at < s.rows->count && kv_slice_cmp(s.rows->rows[at].key, key) == 0) {
            lens[i] = s.rows->rows[at].value.len;
            values[i] = mem_memdup(s.rows->rows[at].value.data, lens[i]);
        }
    }
    kv_rows_free(s.rows);
    return 0;
}

static int kv_rocks_multi_ask_all(struct kv_rocks *k, const struct kv_slice *keys, size_t n,
                                  void **values, size_t *lens)
{
    struct kv_rocks_multi g = {.k = k, .how = k->read_memory};

    g.values = mem_calloc(n, sizeof(*values));
    g.lens = mem_calloc(n, sizeof(*lens));
    kv_rocks_multi_init(&g, keys, n);
    if (n <= KV_ROCKS_INLINE_KEYS)
        kv_rocks_multi_run(&g);
    if (g.result == 0 && g.left > 0) {
        g.how = k->read_all;
        env_offload(k->env, ENV_LANE_KV, kv_rocks_multi_run, &g);
    }
    if (g.result == 0) {
        CHECK(g.left == 0);
        memcpy(values, g.values, n * sizeof(*values));
        memcpy(lens, g.lens, n * sizeof(*lens));
    } else {
        for (size_t i = 0; i < n; i++)
            mem_free(g.values[i]);
    }
    mem_free(g.keys);
    mem_free(g.values);
    mem_free(g.lens);
    return g.result;
}

static int kv_rocks_multi_get(struct kv *kv, const struct kv_slice *keys, size_t n, void **values,
                              size_t *lens)
{
    struct kv_rocks *k = kv_rocks_of(kv);

    return kv_rocks_dense(keys, n) ? kv_rocks_multi_walk(k, keys, n, values, lens)
                                   : kv_rocks_multi_ask_all(k, keys, n, values, lens);
}

/* ---- Writing -------------------------------------------------------------------------------- */

struct kv_rocks_write {
    struct kv_rocks *k;
    const rocksdb_writeoptions_t *how;
    const struct kv_batch *batch;
    rocksdb_writebatch_t *encoded; /* made by the first try */
    int result;
};

static rocksdb_writebatch_t *kv_rocks_batch(const struct kv_batch *b)
{
    rocksdb_writebatch_t *w = rocksdb_writebatch_create();
    struct kv_batch_op op;
    size_t pos = 0;

    while (kv_batch_next(b, &pos, &op))
        if (op.is_put)
            rocksdb_writebatch_put(w, op.key.data, op.key.len, op.value.data, op.value.len);
        else
            rocksdb_writebatch_delete(w, op.key.data, op.key.len);
    return w;
}

static void kv_rocks_write_run(void *arg)
{
    struct kv_rocks_write *w = arg;
    char *error = NULL;

    if (!w->encoded)
        w->encoded = kv_rocks_batch(w->batch);
    rocksdb_write(w->k->db, w->how, w->encoded, &error);
    w->result = kv_rocks_error(w->k, "write", error);
}

static int kv_rocks_write(struct kv *kv, const struct kv_batch *b)
{
    struct kv_rocks *k = kv_rocks_of(kv);
    struct kv_rocks_write w = {k, k->write_inline, b, NULL, ERR_AGAIN};

    fiber_mutex_lock(&k->write_lock);
    if (b->ops.len <= KV_ROCKS_INLINE_BYTES)
        kv_rocks_write_run(&w);
    if (w.result == ERR_AGAIN) {
        w.how = k->write_waiting;
        env_offload(k->env, ENV_LANE_KV, kv_rocks_write_run, &w);
    }
    fiber_mutex_unlock(&k->write_lock);
    rocksdb_writebatch_destroy(w.encoded);
    return w.result;
}

/* ---- Flush, figures ------------------------------------------------------------------------- */

static uint64_t kv_rocks_property(struct kv_rocks *k, const char *name)
{
    uint64_t value = 0;

    return rocksdb_property_int_cf(k->db, k->family, name, &value) == 0 ? value : 0;
}

/* Does a property say that there is nothing? One that cannot be read does not. */
static bool kv_rocks_none(struct kv_rocks *k, const char *name)
{
    uint64_t value = 1;

    return rocksdb_property_int_cf(k->db, k->family, name, &value) == 0 && value == 0;
}

/* Are the memory tables empty, and what was in them durable? */
static bool kv_rocks_flushed(struct kv_rocks *k)
{
    return kv_rocks_none(k, "rocksdb.num-immutable-mem-table") &&
           kv_rocks_none(k, "rocksdb.num-entries-active-mem-table");
}

struct kv_rocks_flush {
    struct kv_rocks *k;
    int result;
};

/* ERR_AGAIN: RocksDB says that it is done, and it may not be. The count of errors is looked at
 * after the flush, since one may have come meanwhile. */
static void kv_rocks_flush_run(void *arg)
{
    struct kv_rocks_flush *f = arg;
    char *error = NULL;

    rocksdb_flush_cf(f->k->db, f->k->flush, f->k->family, &error);
    f->result = kv_rocks_error(f->k, "flush", error);
    if (f->result == 0 && !kv_rocks_none(f->k, "rocksdb.background-errors") &&
        !kv_rocks_flushed(f->k))
        f->result = ERR_AGAIN;
    if (f->result == 0)
        atomic_store(&f->k->no_space, false);
}

/* How many table files no compaction has taken yet. */
static unsigned long kv_rocks_loose(struct kv_rocks *k)
{
    char *text = rocksdb_property_value_cf(k->db, k->family, "rocksdb.num-files-at-level0");
    unsigned long n = text ? strtoul(text, NULL, 10) : 0;

    rocksdb_free(text);
    return n;
}

/* Readers look into each of these files. While compactions fail, waiting does not help; where they
 * are not even begun, RocksDB has stopped, and a flush tells. */
static void kv_rocks_await_compaction(struct kv_rocks *k)
{
    uint64_t errors = kv_rocks_property(k, "rocksdb.background-errors");
    uint64_t end = env_now(k->env) + KV_ROCKS_COMPACT_WAIT;

    while (kv_rocks_loose(k) >= KV_ROCKS_L0_MANY && env_now(k->env) < end &&
           kv_rocks_property(k, "rocksdb.background-errors") == errors)
        env_sleep(k->env, KV_ROCKS_COMPACT_LOOK);
}

static int kv_rocks_flush(struct kv *kv)
{
    struct kv_rocks *k = kv_rocks_of(kv);
    struct kv_rocks_flush f = {k, 0};

    kv_rocks_await_compaction(k);
    env_offload(k->env, ENV_LANE_KV, kv_rocks_flush_run, &f);
    if (f.result != ERR_AGAIN)
        return f.result;
    fiber_mutex_lock(&k->write_lock); /* else there might always be something in memory */
    do {
        env_sleep(k->env, KV_ROCKS_FLUSH_LOOK);
        env_offload(k->env, ENV_LANE_KV, kv_rocks_flush_run, &f);
    } while (f.result == ERR_AGAIN);
    fiber_mutex_unlock(&k->write_lock);
    return f.result;
}

static int kv_rocks_get_stats(struct kv *kv, struct kv_stats *ret_stats)
{
    struct kv_rocks *k = kv_rocks_of(kv);

    ret_stats->memory_bytes = kv_rocks_property(k, "rocksdb.size-all-mem-tables") +
                              kv_rocks_property(k, "rocksdb.estimate-table-readers-mem") +
                              rocksdb_cache_get_usage(k->cache);
    ret_stats->disk_bytes = kv_rocks_property(k, "rocksdb.total-sst-files-size");
    return 0;
}

/* ---- Opening and closing -------------------------------------------------------------------- */

static rocksdb_block_based_table_options_t *kv_rocks_table_options(rocksdb_cache_t *cache)
{
    rocksdb_block_based_table_options_t *t = rocksdb_block_based_options_create();

    rocksdb_block_based_options_set_block_cache(t, cache);
    rocksdb_block_based_options_set_block_size(t, KV_ROCKS_BLOCK_SIZE);
    rocksdb_block_based_options_set_format_version(t, 5);
    /* Index and filter blocks count against the cache, so that memory has one bound. */
    rocksdb_block_based_options_set_cache_index_and_filter_blocks(t, 1);
    rocksdb_block_based_options_set_cache_index_and_filter_blocks_with_high_priority(t, 1);
    rocksdb_block_based_options_set_pin_l0_filter_and_index_blocks_in_cache(t, 1);
    rocksdb_block_based_options_set_filter_policy(
        t, rocksdb_filterpolicy_create_bloom_full(KV_ROCKS_BLOOM_BITS)); /* now t's */
    rocksdb_block_based_options_set_whole_key_filtering(t, 1);
    return t;
}

static rocksdb_options_t *kv_rocks_options_new(rocksdb_cache_t *cache, size_t buffer_bytes)
{
    rocksdb_block_based_table_options_t *t = kv_rocks_table_options(cache);
    rocksdb_options_t *o = rocksdb_options_create();

    rocksdb_options_set_block_based_table_factory(o, t);
    rocksdb_block_based_options_destroy(t);
    rocksdb_options_set_create_if_missing(o, 1);
    rocksdb_options_set_paranoid_checks(o, 1);
    rocksdb_options_set_write_buffer_size(o, buffer_bytes / KV_ROCKS_MEMTABLES);
    rocksdb_options_set_max_write_buffer_number(o, KV_ROCKS_MEMTABLES);
    rocksdb_options_set_max_write_buffer_size_to_maintain(o, 0);
    rocksdb_options_set_compression(o, rocksdb_lz4_compression);
    rocksdb_options_set_level_compaction_dynamic_level_bytes(o, 1);
    rocksdb_options_set_target_file_size_base(o, KV_ROCKS_FILE_BYTES);
    rocksdb_options_set_max_background_jobs(o, KV_ROCKS_BACKGROUND_JOBS);
    rocksdb_options_set_max_open_files(o, KV_ROCKS_OPEN_FILES);
    rocksdb_options_set_max_file_opening_threads(o, 1);
    rocksdb_options_set_max_manifest_file_size(o, KV_ROCKS_MANIFEST_BYTES);
    rocksdb_options_set_manifest_preallocation_size(o, 64 << 10);
    rocksdb_options_set_info_log_level(o, KV_ROCKS_LOG_FATAL); /* see the head comment */
    rocksdb_options_set_max_log_file_size(o, KV_ROCKS_LOG_BYTES);
    rocksdb_options_set_keep_log_file_num(o, KV_ROCKS_LOG_FILES);
    /* Most point reads ask for what is not there (new fingerprints). A filter by key prefix spares
     * them the search of the memory tables; the prefix covers the table and 8 bytes. */
    rocksdb_options_set_prefix_extractor(
        o, rocksdb_slicetransform_create_fixed_prefix(KV_ROCKS_PREFIX));
    rocksdb_options_set_memtable_prefix_bloom_size_ratio(o, 0.05);
    rocksdb_options_set_level0_file_num_compaction_trigger(o, KV_ROCKS_L0_FILES);
    rocksdb_options_set_level0_slowdown_writes_trigger(o, KV_ROCKS_L0_NEVER);
    rocksdb_options_set_level0_stop_writes_trigger(o, KV_ROCKS_L0_NEVER);
    rocksdb_options_set_stats_dump_period_sec(o, 0);
    rocksdb_options_set_stats_persist_period_sec(o, 0);
    return o;
}

static struct kv_rocks *kv_rocks_new(struct env *env, const char *path,
                                     const struct kv_rocks_options *options)
{
    struct kv_rocks *k = mem_zalloc(sizeof(*k));
    size_t cache = options && options->cache_bytes ? options->cache_bytes : KV_ROCKS_DEFAULT_BYTES;
    size_t buffer =
        options && options->buffer_bytes ? options->buffer_bytes : KV_ROCKS_DEFAULT_BYTES;

    k->env = env;
    k->path = mem_strdup(path);
    fiber_mutex_init(&k->write_lock);
    k->cache = rocksdb_cache_create_lru(cache);
    k->options = kv_rocks_options_new(k->cache, buffer);
    k->read_memory = rocksdb_readoptions_create();
    rocksdb_readoptions_set_read_tier(k->read_memory, KV_ROCKS_TIER_MEMORY);
    k->read_all = rocksdb_readoptions_create();
    k->write_inline = rocksdb_writeoptions_create();
    rocksdb_writeoptions_disable_WAL(k->write_inline, 1);
    rocksdb_writeoptions_set_no_slowdown(k->write_inline, 1);
    k->write_waiting = rocksdb_writeoptions_create();
    rocksdb_writeoptions_disable_WAL(k->write_waiting, 1);
    k->flush = rocksdb_flushoptions_create();
    rocksdb_flushoptions_set_wait(k->flush, 1);
    return k;
}

static void kv_rocks_free(struct kv_rocks *k)
{
    rocksdb_flushoptions_destroy(k->flush);
    rocksdb_writeoptions_destroy(k->write_waiting);
    rocksdb_writeoptions_destroy(k->write_inline);
    rocksdb_readoptions_destroy(k->read_all);
    rocksdb_readoptions_destroy(k->read_memory);
    rocksdb_options_destroy(k->options);
    rocksdb_cache_destroy(k->cache);
    mem_free(k->path);
    mem_free(k);
}

struct kv_rocks_life {
    struct kv_rocks *k;
    int result;
};

/* The row that says how keys are made, outside every table. A store without one is new: nothing
 * can have been made durable before it. */
static int kv_rocks_check_format(struct kv_rocks *k)
{
    static const char key[] = "\xff"
                              "format";
    char *error = NULL, *value;
    size_t len = 0;
    int r;

    value = rocksdb_get(k->db, k->read_all, key, sizeof(key) - 1, &len, &error);
    r = kv_rocks_error(k, "open", error);
    if (r < 0)
        return r;
    if (!value) {
        rocksdb_put(k->db, k->write_waiting, key, sizeof(key) - 1, KV_ROCKS_FORMAT,
                    strlen(KV_ROCKS_FORMAT), &error);
        return kv_rocks_error(k, "open", error);
    }
    if (len != strlen(KV_ROCKS_FORMAT) || memcmp(value, KV_ROCKS_FORMAT, len) != 0)
        r = ERR_FORMAT;
    rocksdb_free(value);
    return r;
}

/* Debian's build aborts when a handle is alive at the close of the database, and background work
 * that is cut off in the middle would be begun again at the next start: so wait, then handles, then
 * the database. */
static void kv_rocks_shut(struct kv_rocks *k)
{
    rocksdb_cancel_all_background_work(k->db, 1);
    rocksdb_column_family_handle_destroy(k->family);
    rocksdb_close(k->db);
}

static void kv_rocks_open_run(void *arg)
{
    struct kv_rocks_life *life = arg;
    struct kv_rocks *k = life->k;
    const char *const names[] = {"default"};
    const rocksdb_options_t *const options[] = {k->options};
    char *error = NULL;

    k->db =
        rocksdb_open_column_families(k->options, k->path, 1, names, options, &k->family, &error);
    life->result = kv_rocks_error(k, "open", error);
    if (life->result < 0)
        return;
    life->result = kv_rocks_check_format(k);
    if (life->result < 0)
        kv_rocks_shut(k);
}

static void kv_rocks_close_run(void *arg)
{
    struct kv_rocks *k = arg;

    kv_rocks_shut(k);
}

static int kv_rocks_close(struct kv *kv)
{
    struct kv_rocks *k = kv_rocks_of(kv);
    int rc = kv_rocks_flush(kv);

    env_offload(k->env, ENV_LANE_KV, kv_rocks_close_run, k);
    kv_rocks_free(k);
    return rc;
}

static const struct kv_ops kv_rocks_ops = {
    .get = kv_rocks_get,
    .multi_get = kv_rocks_multi_get,
    .write = kv_rocks_write,
    .flush = kv_rocks_flush,
    .get_stats = kv_rocks_get_stats,
    .close = kv_rocks_close,
    .scan = kv_rocks_scan,
};

int kv_rocks_open(struct env *env, const char *path, const struct kv_rocks_options *options,
                  struct kv **ret_kv)
{
    struct kv_rocks_life life = {NULL, 0};
    int r = env_mkdir(env, path); /* RocksDB would make it too, but not sync its parent */

    if (r < 0)
        return r;
    life.k = kv_rocks_new(env, path, options);
    life.k->base.ops = &kv_rocks_ops;
    env_offload(env, ENV_LANE_KV, kv_rocks_open_run, &life);
    if (life.result < 0) {
        kv_rocks_free(life.k);
        return life.result;
    }
    *ret_kv = &life.k->base;
    return 0;
}

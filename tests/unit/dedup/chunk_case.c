/* The chunk store of the tests; see chunk_case.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/dedup/chunk_case.h"

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

struct sim_case c;

struct chunk_case t;

/* ---- Records and their application ---- */

static void put_row(void *arg, uint64_t segment, const struct strbuf *value)
{
    uint8_t key[8];

    codec_put_be64(key, segment);
    kv_batch_put(arg, KV_SEGMENT, (struct kv_slice){key, 8},
                 (struct kv_slice){value->data, value->len});
}

static void drop_row(void *arg, uint64_t segment)
{
    uint8_t key[8];

    codec_put_be64(key, segment);
    kv_batch_delete(arg, KV_SEGMENT, (struct kv_slice){key, 8});
    t.freed++;
}

static int write_batch(struct kv_batch *b)
{
    int rc;

    segment_take_dirty(t.ss, put_row, b);
    rc = kv_write(t.kv, b);
    chunkstore_written(t.cs);
    kv_batch_free(b);
    return rc;
}

static int submit(struct record_log *log, enum record_type type, const struct iovec *iov,
                  unsigned n, unsigned flags, void *context)
{
    struct kv_batch *b = kv_batch_new();
    int rc;

    (void)log;
    (void)flags;
    assert_int_equal(n, 1);
    fiber_mutex_lock(&t.applying);
    env_sleep(c.env, ENV_NS_PER_MS / 10);
    if (type == RECORD_SEGMENT_OPEN)
        rc = segment_apply_open(t.ss, iov->iov_base, iov->iov_len, context);
    else if (type == RECORD_CHUNK_MOVE)
        rc = chunkstore_apply_move(t.cs, iov->iov_base, iov->iov_len, b);
    else if (type == RECORD_CHUNK_LOST)
        rc = chunkstore_apply_lost(t.cs, iov->iov_base, iov->iov_len, !context, b);
    else
        rc = segment_apply_free(t.ss, iov->iov_base, iov->iov_len, drop_row, b);
    assert_int_equal(write_batch(b), 0);
    fiber_mutex_unlock(&t.applying);
    return rc;
}

/* Applies a record: its list of chunks (may be NULL) and the changes. */
int apply(const struct strbuf *list, const struct change *changes, size_t n)
{
    struct kv_batch *b = kv_batch_new();
    struct chunk_txn *txn;
    size_t used = 0;
    int rc = 0;

    fiber_mutex_lock(&t.applying);
    txn = chunk_txn_begin(t.cs);
    if (list)
        rc = chunk_txn_take(txn, (const uint8_t *)list->data, list->len, &used);
    for (size_t i = 0; i < n; i++)
        (changes[i].delta > 0 ? chunk_txn_require : chunk_txn_need)(txn, changes[i].id);
    if (rc == 0)
        rc = chunk_txn_load(txn);
    if (rc == 0) {
        for (size_t i = 0; i < n; i++)
            chunk_txn_ref(txn, changes[i].id, changes[i].delta);
        chunk_txn_commit(txn, b);
        rc = write_batch(b);
    } else {
        chunk_txn_abort(txn);
        kv_batch_free(b);
    }
    fiber_mutex_unlock(&t.applying);
    return rc;
}

int apply_batch(const struct chunk_batch *cb, const struct change *changes, size_t n)
{
    STRBUF_AUTO struct strbuf list = STRBUF_INIT;

    chunk_batch_encode(cb, &list);
    return apply(&list, changes, n);
}

void ref(uint64_t id, int64_t delta)
{
    assert_int_equal(apply(NULL, &(struct change){id, delta}, 1), 0);
}

/* ---- Life ---- */

int setup(void **state)
{
    (void)state;
    sim_case_init(&c, 1);
    memset(&t, 0, sizeof(t));
    t.log.submit = submit;
    t.image = kv_mem_image_new();
    return 0;
}

int teardown(void **state)
{
    (void)state;
    sim_case_free(&c);
    kv_mem_image_free(t.image);
    return 0;
}

void open_store(void)
{
    struct chunkstore_options options = {.cache_rows = t.cache_rows, .space_kept = 1u << 20};
    struct kv_rows *rows;
    struct kv *kv;

    fiber_mutex_init(&t.applying);
    assert_int_equal(kv_mem_open(c.env, t.image, &kv), 0);
    t.lag = lag_kv_new(c.env, kv, &t.lag_ns);
    t.kv = t.front ? kv_front_new(c.env, t.lag, 0) : t.lag;
    t.ds = store_case_open(&c, t.drives);
    assert_int_equal(segments_new(t.ds, &t.log, &t.ss), 0);
    assert_int_equal(kv_scan(t.kv, KV_SEGMENT, (struct kv_slice){"\0", 1}, (struct kv_slice){"", 0},
                             1000, 1u << 20, 0, &rows),
                     0);
    for (size_t i = 0; i < rows->count; i++)
        assert_int_equal(segment_load(t.ss, codec_get_be64(rows->rows[i].key.data),
                                      rows->rows[i].value.data, rows->rows[i].value.len),
                         0);
    kv_rows_free(rows);
    assert_int_equal(chunkstore_new(c.env, t.kv, t.ss, &t.log, &options, &t.cs), 0);
    assert_int_equal(chunkstore_load(t.cs), 0);
}

void make_store(unsigned drives, unsigned k, unsigned m, uint64_t slots)
{
    t.drives = drives;
    assert_int_equal(store_case_format(&c, drives, k, m, slots, FORMAT_JOURNAL_MIN), 0);
    open_store();
}

void close_store(void)
{
    chunkstore_free(t.cs);
    segments_free(t.ss);
    driveset_close(t.ds);
    assert_int_equal(kv_close(t.kv), 0);
}

void reopen_store(void)
{
    close_store();
    open_store();
}

/* ---- Content ---- */

/* Content of a seed; even seeds compress. */
uint8_t *content(uint64_t seed, size_t n)
{
    uint8_t *p = malloc(n + 8);

    sim_case_bytes(seed, p, n);
    if (seed % 2 == 0)
        for (size_t i = 0; i < n; i++)
            p[i] = i % 8 < 6 ? 0 : p[i];
    return p;
}

struct chunk_item item(uint64_t seed, size_t n)
{
    return (struct chunk_item){.data = content(seed, n), .len = n};
}

void free_items(struct chunk_item *items, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free((void *)(uintptr_t)items[i].data);
}

int read_chunk(uint64_t id, uint64_t seed, size_t n)
{
    uint8_t *want = content(seed, n), *got = mem_alloc(n);
    struct chunk_read r = {.id = id, .len = (uint32_t)n, .dst = got};
    int rc = chunkstore_read(t.cs, &r, 1);

    assert_int_equal(rc, r.result);
    if (rc == 0)
        assert_memory_equal(got, want, n);
    free(want);
    mem_free(got);
    return rc;
}

/* Stores the content of one seed with one reference; returns its id. */
uint64_t store_one(uint64_t seed, size_t n)
{
    struct chunk_batch *b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    struct chunk_item it = item(seed, n);

    assert_int_equal(chunk_batch_add_wait(b, &it, 1), 0);
    assert_int_equal(chunk_batch_finish(b), 0);
    assert_int_equal(apply_batch(b, &(struct change){it.id, 1}, 1), 0);
    chunk_batch_free(b);
    free_items(&it, 1);
    return it.id;
}

struct chunkstore_stats stats(void)
{
    struct chunkstore_stats s;

    chunkstore_get_stats(t.cs, &s);
    return s;
}

struct segment_space space(void)
{
    struct segment_space sp;

    segment_get_space(t.ss, &sp);
    return sp;
}

size_t kv_count(enum kv_table table)
{
    struct kv_rows *rows;
    size_t n;

    assert_int_equal(kv_scan(t.kv, table, (struct kv_slice){"\0", 1}, (struct kv_slice){"", 0},
                             100000, 16u << 20, 0, &rows),
                     0);
    n = rows->count;
    kv_rows_free(rows);
    return n;
}

int store_many(uint64_t seed, unsigned n, size_t len)
{
    struct chunk_item *items = malloc(n * sizeof(*items));
    struct chunk_batch *b = chunk_batch_new(t.cs, SEGMENT_STUDIES);
    int rc;

    for (unsigned i = 0; i < n; i++)
        items[i] = item(seed + 2 * i, len);
    rc = chunk_batch_add_wait(b, items, n);
    assert_true(chunk_batch_finish(b) == rc || rc == 0);
    rc = chunk_batch_finish(b);
    if (rc == 0) {
        struct change *changes = malloc(n * sizeof(*changes));

        for (unsigned i = 0; i < n; i++)
            changes[i] = (struct change){items[i].id, 1};
        rc = apply_batch(b, changes, n);
        free(changes);
    }
    chunk_batch_free(b);
    free_items(items, n);
    free(items);
    return rc;
}

/* Fills up the open segment, so that the one before is sealed. */
void seal(void)
{
    uint64_t first = space().segments;

    for (uint64_t seed = 100001; space().segments == first; seed += 2)
        ref(store_one(seed, CHUNK_MAX), 0);
}

unsigned sweep(void)
{
    unsigned freed = 0;

    assert_int_equal(segment_sweep(t.ss, &freed), 0);
    return freed;
}

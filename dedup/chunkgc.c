/* The collector: chunks without references leave the table, and with them the space of segments.
 *
 * A chunk whose last reference went stays in the table and in a list (KV_INDEX, 'Z' and the id), from
 * which the collector takes it in rounds. Rows that someone pins (a reader, a batch that has found the
 * chunk again) are passed over. The others are marked dying, so that nobody finds them any more, and
 * named in a record; applying it removes those that still have no reference. Whether a row is
 * removed depends only on state that the journal made, so replay does the same.
 */
#include "dedup/chunkstore.h"

#include <string.h>

#include "dedup/chunk_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/journal.h"

#define COLLECT_MAX 1024u /* chunks freed by one record */

/* The body of RECORD_CHUNK_FREE: count u32, then as often id u64. */

/* The next ids of the list, from where the last round ended; wraps at the end. Suspends. */
static int collect_scan(struct chunkstore *cs, uint64_t *ids, size_t *ret_n)
{
    uint8_t from[CHUNK_ZERO_KEY];
    struct kv_rows *rows;
    size_t n = 0;
    int rc;

    chunk_zero_key(cs->collect_from, from);
    rc = kv_scan(cs->kv, KV_INDEX, (struct kv_slice){from, sizeof(from)},
                 (struct kv_slice){"[", 1}, /* the byte after 'Z' */
                 COLLECT_MAX, COLLECT_MAX * 32, 0, &rows);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < rows->count; i++)
        if (rows->rows[i].key.len == CHUNK_ZERO_KEY)
            ids[n++] = codec_get_be64((const uint8_t *)rows->rows[i].key.data + 1);
    cs->collect_from = n == COLLECT_MAX ? ids[n - 1] + 1 : 0;
    kv_rows_free(rows);
    *ret_n = n;
    return 0;
}

/* Marks as dying what nobody else pins; puts their ids to the front and returns how many. */
static size_t collect_mark(struct chunkstore *cs, uint64_t *ids, struct chunk_row **rows, size_t n)
{
    size_t picked = 0;

    for (size_t i = 0; i < n; i++) {
        struct chunk_row *r = rows[i];

        if (!r || r->pins > 1 || r->refs > 0 || r->dying) {
            chunk_row_unpin(cs, r);
            continue;
        }
        r->dying = true;
        ids[picked] = r->id;
        rows[picked++] = r; /* stays pinned until the record is applied */
    }
    return picked;
}

int chunkstore_collect(struct chunkstore *cs, size_t *ret_freed)
{
    uint64_t *ids = mem_calloc(COLLECT_MAX, sizeof(*ids));
    struct chunk_row **rows = mem_calloc(COLLECT_MAX, sizeof(struct chunk_row *));
    uint8_t *body = mem_alloc(4 + 8 * COLLECT_MAX);
    size_t n = 0, picked = 0;
    int rc = collect_scan(cs, ids, &n);

    if (rc == 0 && n)
        rc = chunk_rows_get(cs, ids, n, rows);
    if (rc == 0)
        picked = collect_mark(cs, ids, rows, n);
    if (picked) {
        struct iovec iov = {body, 4 + 8 * picked};

        codec_put_le32(body, (uint32_t)picked);
        for (size_t i = 0; i < picked; i++)
            codec_put_le64(body + 4 + 8 * i, ids[i]);
        rc = record_submit(cs->log, RECORD_CHUNK_FREE, &iov, 1, JOURNAL_INTERNAL, NULL);
        for (size_t i = 0; i < picked; i++) {
            rows[i]->dying = false;
            chunk_row_unpin(cs, rows[i]);
        }
    }
    mem_free(ids);
    mem_free(rows);
    mem_free(body);
    if (rc < 0)
        return rc;
    *ret_freed = picked;
    return 0;
}

bool chunkstore_collect_due(const struct chunkstore *cs)
{
    return cs->unreferenced > 0;
}

/* ---- Applying ---- */

static int free_decode(const uint8_t *body, size_t len, uint64_t *ids, size_t *ret_n)
{
    struct codec_reader r = codec_reader_on(body, len);
    uint32_t n = codec_read_le32(&r);

    if (n > COLLECT_MAX)
        return ERR_FORMAT;
    for (uint32_t i = 0; i < n; i++)
        ids[i] = codec_read_le64(&r);
    if (!codec_reader_ok(&r))
        return ERR_FORMAT;
    *ret_n = n;
    return 0;
}

static void free_one(struct chunkstore *cs, struct chunk_row *r, bool indexed,
                     struct kv_batch *batch)
{
    uint8_t key[8], zero[CHUNK_ZERO_KEY];

    codec_put_be64(key, r->id);
    kv_batch_delete(batch, KV_CHUNK, (struct kv_slice){key, 8});
    if (indexed)
        kv_batch_delete(batch, KV_FPRINT, (struct kv_slice){r->fp, FINGERPRINT_SIZE});
    chunk_zero_key(r->id, zero);
    kv_batch_delete(batch, KV_INDEX, (struct kv_slice){zero, sizeof(zero)});
    segment_account(cs->segments, &r->loc, false);
    cs->stats.chunks--;
    cs->stats.raw_bytes -= r->raw;
    cs->stats.stored_bytes -= r->loc.stored;
    CHECK(cs->unreferenced > 0);
    cs->unreferenced--;
    chunk_row_remove(cs, r);
}

/* Does the fingerprint index still name this chunk? A younger one of the same content may have taken
 * its place. Suspends. */
static int free_indexed(struct chunkstore *cs, struct chunk_row **rows, size_t n, bool *indexed)
{
    struct kv_slice *keys = mem_calloc(n, sizeof(*keys));
    void **values = mem_calloc(n, sizeof(*values));
    size_t *lens = mem_calloc(n, sizeof(*lens));
    int rc;

    for (size_t i = 0; i < n; i++)
        keys[i] = (struct kv_slice){rows[i] ? (const void *)rows[i]->fp : "", rows[i] ? FINGERPRINT_SIZE : 1};
    rc = kv_multi_get(cs->kv, KV_FPRINT, keys, n, values, lens);
    for (size_t i = 0; i < n; i++) {
        if (rc == 0 && rows[i])
            indexed[i] = values[i] && lens[i] == 8 && codec_get_be64(values[i]) == rows[i]->id;
        mem_free(values[i]);
    }
    mem_free(keys);
    mem_free(values);
    mem_free(lens);
    return rc;
}

int chunkstore_apply_free(struct chunkstore *cs, const uint8_t *body, size_t len,
                          struct kv_batch *batch)
{
    uint64_t *ids = mem_calloc(COLLECT_MAX, sizeof(*ids));
    struct chunk_row **rows = mem_calloc(COLLECT_MAX, sizeof(struct chunk_row *));
    bool *indexed = mem_calloc(COLLECT_MAX, sizeof(*indexed));
    size_t n = 0;
    int rc = free_decode(body, len, ids, &n);

    if (rc == 0)
        rc = chunk_rows_get(cs, ids, n, rows);
    if (rc == 0) {
        rc = free_indexed(cs, rows, n, indexed);
        for (size_t i = 0; i < n; i++) {
            if (rc == 0 && rows[i] && rows[i]->refs == 0)
                free_one(cs, rows[i], indexed[i], batch);
            chunk_row_unpin(cs, rows[i]);
        }
        chunk_stats_put(cs, batch);
    }
    mem_free(ids);
    mem_free(rows);
    mem_free(indexed);
    return rc;
}

/* ---- Admission ---- */

int chunkstore_admit(const struct chunkstore *cs, uint64_t bytes)
{
    struct segment_space sp;

    segment_get_space(cs->segments, &sp);
    return sp.free < cs->options.space_kept || sp.free - cs->options.space_kept < bytes ? ERR_NOSPC
                                                                                        : 0;
}

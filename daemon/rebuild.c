/* Making the metadata anew.
 *
 * The last RECORD_IMAGE in the journal is the root: it names the runs of the copy, and where each
 * chunk lay when the record was made. Chunks may have been moved since; the moves are in the
 * journal, which is why it is read twice. A chunk is looked for where it was moved to last, then
 * where it was before that: a move may have been overtaken by a record that freed the chunk and
 * brought it back (compact.c), and what is read is verified by CRC and fingerprint anyway.
 *
 * A young store has no copy, but all of its journal: then there is nothing to load.
 *
 * Where segments lie is said by the fragment headers in the slots. A segment's number can have been
 * tried twice, when the first try was never journaled: headers that contradict each other are kept
 * apart, and each variant is tried. Headers and stripes of freed segments do no harm: they are not
 * asked for, or do not fit the CRC.
 *
 * Runs are loaded in order, base first, later rows over earlier ones. Then the fingerprint index is
 * derived, and the identity of the store is written last: a KV store without it is unfinished,
 * counts as none, and is emptied when the work is begun again.
 */
#include "daemon/rebuild.h"

#include <string.h>

#include "daemon/image_form.h"
#include "daemon/partition.h"
#include "dedup/chunk_priv.h"
#include "dedup/chunkstore.h"
#include "dedup/compress.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/hmap.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/drive.h"
#include "lib/store/journal.h"

#define REBUILD_VARIANTS    4u /* of one segment's place that are told apart */
#define REBUILD_BATCH_BYTES (4u << 20)
#define REBUILD_PAGE        1024u

/* A chunk of the copy and the places where it may lie, the likeliest last. */
struct copy_chunk {
    struct hmap_node node;
    struct segment_entry entry; /* as the record lists it */
    struct segment_loc *places;
    size_t count;
};

struct rebuild {
    struct env *env;
    struct kv *kv;
    struct driveset *ds;
    bool partial;
    struct strbuf root; /* the body of the last RECORD_IMAGE; empty: none */
    struct image_form form;
    struct hmap chunks, wanted; /* wanted: segments, bare nodes */
    struct segments *variants[REBUILD_VARIANTS];
    struct kv_batch *batch;
    size_t batch_bytes;
    struct strbuf rows; /* of a run, not decoded yet */
    struct rebuild_result r;
};

/* ---- The root and the moves ---- */

static int scan_journal(struct rebuild *b, int (*fn)(void *arg, const struct journal_record *r))
{
    struct journal_replay_stats stats;
    struct journal *j;
    int rc = journal_open(b->ds, NULL, NULL, &j);

    if (rc < 0)
        return rc;
    rc = journal_replay(j, fn, b, &stats);
    journal_free(j);
    return rc;
}

static int find_root(void *arg, const struct journal_record *r)
{
    struct rebuild *b = arg;

    if (r->type != RECORD_IMAGE)
        return 0;
    strbuf_reset(&b->root);
    strbuf_add(&b->root, r->body, r->length);
    return 0;
}

static struct copy_chunk *copy_find(struct rebuild *b, uint64_t id)
{
    struct hmap_node *n = hmap_first(&b->chunks, hmap_mix(id)); /* the mix is one to one */

    return n ? HMAP_ENTRY(n, struct copy_chunk, node) : NULL;
}

static void copy_place(struct rebuild *b, struct copy_chunk *c, const struct segment_loc *loc)
{
    uint64_t hash = hmap_mix(loc->stripe.segment);

    if (!hmap_first(&b->wanted, hash))
        hmap_insert(&b->wanted, mem_zalloc(sizeof(struct hmap_node)), hash);
    c->places = mem_realloc(c->places, (c->count + 1) * sizeof(*c->places));
    c->places[c->count++] = *loc;
}

static void copy_listed(void *arg, const struct segment_entry *e)
{
    struct rebuild *b = arg;
    struct copy_chunk *c = copy_find(b, e->id);

    if (!c) {
        c = mem_zalloc(sizeof(*c));
        c->entry = *e;
        hmap_insert(&b->chunks, &c->node, hmap_mix(e->id));
    }
    copy_place(b, c, &e->loc);
}

static void copy_moved(void *arg, uint64_t id, const struct segment_loc *from,
                       const struct segment_loc *to)
{
    struct rebuild *b = arg;
    struct copy_chunk *c = copy_find(b, id);
    struct segment_loc loc = *to;

    if (!c || PLANTED(IMAGE_NOT_FOLLOWED))
        return;
    loc.stored = c->entry.loc.stored;
    loc.crc = c->entry.loc.crc;
    for (size_t i = 0; i < c->count; i++) {
        if (!chunk_same_place(&c->places[i], from))
            continue;
        copy_place(b, c, &loc);
        return;
    }
}

static int follow_moves(void *arg, const struct journal_record *r)
{
    return r->type == RECORD_CHUNK_MOVE ? chunk_move_walk(r->body, r->length, copy_moved, arg) : 0;
}

static int read_root(struct rebuild *b)
{
    const uint8_t *p;
    size_t left, used = 0, more = 0;
    int rc = scan_journal(b, find_root);

    if (rc == 0 && b->root.len == 0) {
        b->form.upto = 1;
        return b->ds->super.replay_lsn == 1 ? 0 : ERR_NOENT;
    }
    p = (const uint8_t *)b->root.data;
    left = b->root.len;
    if (rc == 0)
        rc = chunk_list_walk(p, left, copy_listed, b);
    if (rc == 0)
        rc = chunk_list_length(p, left, &used);
    if (rc == 0)
        rc = image_form_decode(p + used, left - used, &b->form, &more);
    if (rc == 0)
        rc = chunk_list_walk(p + used + more, left - used - more, copy_listed, b);
    return rc == 0 ? scan_journal(b, follow_moves) : rc;
}

/* ---- Where segments lie ---- */

static bool variant_is(const struct segment *s, const struct format_fragment *f)
{
    if (s->k != f->data_columns || s->m != f->parity_columns)
        return false;
    for (unsigned i = 0; i < s->k + s->m; i++)
        if (s->drive[i] != f->columns[i].drive || s->slot[i] != f->columns[i].slot)
            return false;
    return true;
}

/* Is there a chunk that may lie in it? */
static bool is_wanted(const struct rebuild *b, uint64_t segment)
{
    return hmap_first(&b->wanted, hmap_mix(segment)) != NULL; /* the mix is one to one */
}

static void take_fragment(void *arg, const struct format_fragment *f)
{
    struct rebuild *b = arg;

    if (!is_wanted(b, f->segment))
        return;
    for (unsigned i = 0; i < REBUILD_VARIANTS; i++) {
        const struct segment *s = segment_get(b->variants[i], f->segment);

        if (s ? variant_is(s, f) : segment_adopt(b->variants[i], f) == 0)
            return;
    }
}

static int find_segments(struct rebuild *b)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < REBUILD_VARIANTS; i++)
        rc = segments_new(b->ds, NULL, &b->variants[i]);
    if (rc == 0)
        segment_walk_fragments(b->ds, take_fragment, b);
    return rc;
}

/* ---- Reading the copy ---- */

static int unpack(const struct segment_entry *e, const struct segment_read *r, uint8_t *raw)
{
    uint8_t fp[FINGERPRINT_SIZE];
    int rc = 0;

    if (e->codec == COMPRESS_RAW && e->loc.stored == e->raw)
        memcpy(raw, r->data, e->raw);
    else
        rc = compress_unpack((enum compress_codec)e->codec, r->data, e->loc.stored, raw, e->raw);
    if (rc == 0) {
        fingerprint_make(raw, e->raw, fp);
        rc = memcmp(fp, e->fingerprint, sizeof(fp)) == 0 ? 0 : ERR_LOST;
    }
    return rc;
}

/* The chunk's bytes, appended to the rows. Suspends. */
static int copy_read(struct rebuild *b, const struct copy_chunk *c)
{
    MEM_AUTO uint8_t *raw = mem_alloc(c->entry.raw);
    int rc = ERR_LOST;

    for (size_t i = c->count; rc < 0 && i > 0; i--) {
        for (unsigned v = 0; rc < 0 && v < REBUILD_VARIANTS; v++) {
            struct segment_read r = {.loc = c->places[i - 1]};

            if (!segment_get(b->variants[v], r.loc.stripe.segment))
                break;
            rc = segment_read(b->variants[v], &r, 1);
            if (rc == 0)
                rc = unpack(&c->entry, &r, raw);
            buf_unref(r.buf);
        }
    }
    if (rc == 0)
        strbuf_add(&b->rows, raw, c->entry.raw);
    return rc == 0 ? 0 : ERR_LOST;
}

/* ---- Loading rows ---- */

static int batch_write(struct rebuild *b)
{
    int rc = kv_batch_count(b->batch) ? kv_write(b->kv, b->batch) : 0;

    kv_batch_clear(b->batch);
    b->batch_bytes = 0;
    return rc;
}

/* Takes the whole rows at the front of what was read. Suspends. */
static int load_rows(struct rebuild *b)
{
    size_t at = 0, used;
    struct kv_change row;
    int rc = 0;

    while (rc == 0 && at < b->rows.len) {
        rc = image_row_decode(b->rows.data + at, b->rows.len - at, &row, &used);
        if (rc < 0)
            break;
        if (row.gone)
            kv_batch_delete(b->batch, row.table, row.key);
        else
            kv_batch_put(b->batch, row.table, row.key, row.value);
        b->r.rows++;
        b->batch_bytes += used;
        at += used;
        if (b->batch_bytes >= REBUILD_BATCH_BYTES)
            rc = batch_write(b);
    }
    if (at) {
        memmove(b->rows.data, b->rows.data + at, b->rows.len - at);
        b->rows.len -= at;
    }
    return rc == ERR_TRUNCATED ? 0 : rc;
}

/* Loads one run. Behind a chunk that is lost it cannot be told where the next row begins, so the
 * rest of the run is lost as well. Suspends. */
static int load_run(struct rebuild *b, const struct image_run *run)
{
    int rc = 0;

    strbuf_reset(&b->rows);
    for (uint32_t i = 0; rc == 0 && i < run->count; i++) {
        const struct copy_chunk *c = copy_find(b, run->ids[i]);

        rc = c ? copy_read(b, c) : ERR_LOST;
        if (rc == 0)
            rc = load_rows(b);
        b->r.chunks += rc == 0;
        if (rc == ERR_LOST)
            b->r.chunks_lost += run->count - i;
    }
    if (rc == 0 && b->rows.len)
        rc = ERR_FORMAT;
    return rc == ERR_LOST && b->partial ? 0 : rc;
}

/* Calls `row` for all rows of a table. Suspends. */
static int each_row(struct rebuild *b, enum kv_table t,
                    int (*row)(struct rebuild *b, enum kv_table t, const struct kv_row *row))
{
    STRBUF_AUTO struct strbuf at = STRBUF_INIT;
    size_t n = 1;
    int rc = 0;

    strbuf_addc(&at, 0);
    while (rc == 0 && n) {
        struct kv_rows *rows;

        rc = kv_scan(b->kv, t, (struct kv_slice){at.data, at.len}, (struct kv_slice){"", 0},
                     REBUILD_PAGE, REBUILD_BATCH_BYTES, 0, &rows);
        if (rc < 0)
            return rc;
        n = rows->count;
        for (size_t i = 0; rc == 0 && i < n; i++)
            rc = row(b, t, &rows->rows[i]);
        if (n) {
            struct kv_slice last = rows->rows[n - 1].key;

            strbuf_reset(&at);
            strbuf_add(&at, last.data, last.len);
            strbuf_addc(&at, 0);
        }
        kv_rows_free(rows);
        if (rc == 0)
            rc = batch_write(b);
    }
    return rc;
}

static int drop_row(struct rebuild *b, enum kv_table t, const struct kv_row *row)
{
    kv_batch_delete(b->batch, t, row->key);
    return 0;
}

static int empty_all(struct rebuild *b)
{
    int rc = 0;

    for (unsigned t = 0; rc == 0 && t < KV_TABLE_COUNT; t++)
        rc = each_row(b, (enum kv_table)t, drop_row);
    return rc;
}

static int derive_fprint(struct rebuild *b, enum kv_table t, const struct kv_row *row)
{
    struct chunk_row c = {0};

    (void)t;
    if (row->key.len != 8 || chunk_row_decode(row->value.data, row->value.len, &c) < 0)
        return 0; /* the audit will tell */
    kv_batch_put(b->batch, KV_FPRINT, (struct kv_slice){c.fp, CHUNK_FP_KEY}, row->key);
    return 0;
}

/* ---- All ---- */

static int load_all(struct rebuild *b)
{
    int rc = empty_all(b);

    for (uint32_t i = 0; rc == 0 && i < b->form.count; i++)
        rc = load_run(b, &b->form.runs[i]);
    if (rc == 0)
        rc = batch_write(b);
    if (rc == 0)
        rc = each_row(b, KV_CHUNK, derive_fprint);
    if (rc == 0)
        rc = kv_flush(b->kv);
    if (rc == 0)
        rc = partition_mark(b->kv, b->ds, b->form.upto);
    return rc;
}

static void rebuild_free(struct rebuild *b)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&b->chunks, NULL); it; it = next) {
        struct copy_chunk *c = HMAP_ENTRY(it, struct copy_chunk, node);

        next = hmap_walk(&b->chunks, it);
        mem_free(c->places);
        mem_free(c);
    }
    hmap_free(&b->chunks);
    for (it = hmap_walk(&b->wanted, NULL); it; it = next) {
        next = hmap_walk(&b->wanted, it);
        mem_free(it);
    }
    hmap_free(&b->wanted);
    for (unsigned i = 0; i < REBUILD_VARIANTS; i++)
        segments_free(b->variants[i]);
    image_form_free(&b->form);
    strbuf_free(&b->root);
    strbuf_free(&b->rows);
    kv_batch_free(b->batch);
    driveset_close(b->ds);
}

int rebuild_metadata(struct env *env, struct kv *kv, const char *const *drive_paths,
                     unsigned drives, bool partial, struct rebuild_result *ret_result)
{
    struct rebuild b = {.env = env, .kv = kv, .partial = partial};
    bool exists;
    int rc = partition_exists(kv, &exists);

    if (rc == 0 && exists)
        rc = ERR_EXIST;
    if (rc == 0)
        rc = driveset_open(env, drive_paths, drives, &b.ds);
    if (rc < 0)
        return rc;
    hmap_init(&b.chunks);
    hmap_init(&b.wanted);
    b.batch = kv_batch_new();
    rc = read_root(&b);
    if (rc == 0)
        rc = find_segments(&b);
    if (rc == 0)
        rc = load_all(&b);
    b.r.settled = b.form.settled;
    b.r.time = b.form.time;
    *ret_result = b.r;
    rebuild_free(&b);
    return rc;
}

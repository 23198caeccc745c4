/* Making the metadata anew.
 *
 * The last RECORD_IMAGE in the journal is the root: it names the runs of the copy, and the chunks
 * of their indexes, which list all other chunks. A young store has no copy, but all of its journal:
 * then there is nothing to load.
 *
 * Where chunks lie is found by looking: headers of fragments in the slots say where segments lie
 * and which are of the copy, and segments have directories. An id stands for one content for ever,
 * so old places of a chunk that was moved since are as good as new ones, as long as what is read
 * there fits the CRC and the fingerprint. A chunk of the copy can lie elsewhere, where a user had
 * stored the same bytes before: if one is missing, all other segments are looked through too. And
 * a drive that lost a write may show a directory that was there before: then the copy's segments
 * are looked at once more, unit by unit, for all that any k columns say.
 *
 * A segment's number can have been tried twice, when the first try was never journaled: headers
 * that contradict each other are kept apart, and each variant is tried. Headers and stripes of
 * freed segments do no harm.
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

/* A chunk and where it may lie. */
struct copy_place {
    unsigned variant;
    struct segment_entry entry;
};

struct copy_chunk {
    struct hmap_node node;
    uint64_t id;
    struct copy_place *places;
    size_t count;
};

/* A segment to look through. */
struct copy_segment {
    unsigned variant;
    uint64_t id;
    bool copy; /* it is of the copy, or may be */
};

struct rebuild {
    struct env *env;
    struct kv *kv;
    struct driveset *ds;
    bool partial;
    struct strbuf root; /* the body of the last RECORD_IMAGE; empty: none */
    struct image_form form;
    struct hmap chunks;
    struct segments *variants[REBUILD_VARIANTS];
    struct copy_segment *segments;
    size_t segment_count;
    enum { LOOK_AT_COPY, LOOK_ELSEWHERE, LOOK_CLOSELY, LOOKED } look; /* what comes next */
    struct kv_batch *batch;
    size_t batch_bytes;
    struct strbuf rows; /* of a run, not decoded yet */
    struct rebuild_result r;
};

/* ---- The root ---- */

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

static int read_root(struct rebuild *b)
{
    int rc = scan_journal(b, find_root);

    if (rc == 0 && b->root.len == 0) {
        b->form.upto = 1;
        return b->ds->super.replay_lsn == 1 ? 0 : ERR_NOENT;
    }
    if (rc == 0)
        rc = image_form_decode(b->root.data, b->root.len, &b->form);
    if (rc == 0 && b->ds->super.replay_lsn > b->form.upto)
        rc = ERR_NOENT; /* checkpoints went without it since: records that it takes are gone */
    return rc;
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

static void take_fragment(void *arg, const struct format_fragment *f)
{
    struct rebuild *b = arg;

    for (unsigned i = 0; i < REBUILD_VARIANTS; i++) {
        const struct segment *s = segment_get(b->variants[i], f->segment);

        if (s ? !variant_is(s, f) : segment_adopt(b->variants[i], f) < 0)
            continue;
        if (s)
            return;
        b->segments = mem_realloc(b->segments, (b->segment_count + 1) * sizeof(*b->segments));
        b->segments[b->segment_count++] =
            (struct copy_segment){i, f->segment, f->stream == 0 || f->stream == SEGMENT_IMAGE + 1};
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

/* ---- Where chunks lie ---- */

static struct copy_chunk *copy_find(struct rebuild *b, uint64_t id)
{
    struct hmap_node *n = hmap_first(&b->chunks, hmap_mix(id)); /* the mix is one to one */

    return n ? HMAP_ENTRY(n, struct copy_chunk, node) : NULL;
}

static void copy_found(struct rebuild *b, unsigned variant, const struct segment_entry *e)
{
    struct copy_chunk *c = copy_find(b, e->id);

    if (!c) {
        c = mem_zalloc(sizeof(*c));
        c->id = e->id;
        hmap_insert(&b->chunks, &c->node, hmap_mix(e->id));
    }
    c->places = mem_realloc(c->places, (c->count + 1) * sizeof(*c->places));
    c->places[c->count++] = (struct copy_place){variant, *e};
}

/* Suspends. */
static void look_through(struct rebuild *b, const struct copy_segment *s)
{
    struct segments *ss = b->variants[s->variant];
    struct segment_entry *entries;
    uint32_t offset = 0;
    size_t n;

    segment_hold(ss, s->id);
    while (segment_next_stripe(ss, s->id, &offset, &entries, &n) == 0) {
        for (size_t i = 0; i < n; i++)
            copy_found(b, s->variant, &entries[i]);
        mem_free(entries);
    }
    segment_release(ss, s->id);
}

struct close_look {
    struct rebuild *b;
    unsigned variant;
};

static void close_found(void *arg, const struct segment_entry *entries, size_t n)
{
    struct close_look *l = arg;

    for (size_t i = 0; i < n; i++)
        copy_found(l->b, l->variant, &entries[i]);
}

/* Suspends. */
static void look_closely(struct rebuild *b, const struct copy_segment *s)
{
    struct segments *ss = b->variants[s->variant];
    struct close_look l = {b, s->variant};
    uint32_t units = (uint32_t)(b->ds->super.slot_size / FORMAT_UNIT);
    int rc = 0;

    segment_hold(ss, s->id);
    for (uint32_t at = 1; rc == 0 && at < units; at++)
        rc = segment_stripes_at(ss, s->id, at, close_found, &l);
    segment_release(ss, s->id);
}

/* Looks further for chunks; false: there is nowhere left to look. Suspends. */
static bool look(struct rebuild *b)
{
    if (b->look == LOOKED)
        return false;
    for (size_t i = 0; i < b->segment_count; i++) {
        const struct copy_segment *s = &b->segments[i];

        if (b->look == LOOK_CLOSELY && s->copy)
            look_closely(b, s);
        else if (b->look != LOOK_CLOSELY && s->copy == (b->look == LOOK_AT_COPY))
            look_through(b, s);
    }
    b->look++;
    return true;
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

/* Reads it from one place. Suspends. */
static int place_read(struct rebuild *b, const struct copy_place *p, const struct image_chunk *want,
                      struct strbuf *out)
{
    struct segment_read r = {.loc = p->entry.loc};
    MEM_AUTO uint8_t *raw = NULL;
    int rc;

    if (p->entry.raw > CHUNK_MAX ||
        memcmp(p->entry.fingerprint, want->fingerprint, sizeof(want->fingerprint)) != 0)
        return ERR_LOST;
    rc = segment_read(b->variants[p->variant], &r, 1);
    raw = mem_alloc(p->entry.raw);
    if (rc == 0)
        rc = unpack(&p->entry, &r, raw);
    if (rc == 0)
        strbuf_add(out, raw, p->entry.raw);
    buf_unref(r.buf);
    return rc;
}

/* The chunk's bytes, appended. ERR_LOST. Suspends. */
static int copy_read(struct rebuild *b, const struct image_chunk *want, struct strbuf *out)
{
    int rc = ERR_LOST;

    do {
        const struct copy_chunk *c = copy_find(b, want->id);

        for (size_t i = c ? c->count : 0; rc < 0 && i > 0; i--)
            rc = place_read(b, &c->places[i - 1], want, out);
    } while (rc < 0 && look(b));
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

/* Loads the chunks that one chunk of the index lists. *left: how many the run has from there on.
 * Suspends. */
static int load_listed(struct rebuild *b, const struct image_chunk *index, uint64_t *left)
{
    STRBUF_AUTO struct strbuf list = STRBUF_INIT;
    int rc = copy_read(b, index, &list);

    b->r.chunks += rc == 0;
    if (rc == 0 && list.len % IMAGE_CHUNK_SIZE)
        rc = ERR_FORMAT;
    for (size_t at = 0; rc == 0 && at < list.len; at += IMAGE_CHUNK_SIZE) {
        struct image_chunk c;

        image_chunk_decode((const uint8_t *)list.data + at, &c);
        rc = copy_read(b, &c, &b->rows);
        if (rc == 0)
            rc = load_rows(b);
        b->r.chunks += rc == 0;
        *left -= rc == 0 && *left;
    }
    return rc;
}

/* Loads one run. Behind a chunk that is lost it cannot be told where the next row begins, so the
 * rest of the run is lost as well. Suspends. */
static int load_run(struct rebuild *b, const struct image_run *run)
{
    uint64_t left = run->chunks;
    int rc = 0;

    strbuf_reset(&b->rows);
    for (uint32_t i = 0; rc == 0 && i < run->count; i++)
        rc = load_listed(b, &run->index[i], &left);
    if (rc == 0 && (b->rows.len || left))
        rc = ERR_FORMAT;
    if (rc == ERR_LOST)
        b->r.chunks_lost += left;
    return rc == ERR_LOST && b->partial ? 0 : rc;
}

/* Calls `row` for all rows of a table, and writes what it puts into the batch. Suspends. */
static int each_row(struct rebuild *b, enum kv_table t,
                    void (*row)(struct rebuild *b, enum kv_table t, const struct kv_row *row))
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *at;
    int rc;

    kv_walk_init(&w, b->kv, t, (struct kv_slice){"", 1}, (struct kv_slice){"", 0}, REBUILD_PAGE,
                 REBUILD_BATCH_BYTES);
    while ((rc = kv_walk_next(&w, &at)) > 0) {
        row(b, t, at);
        if (kv_batch_count(b->batch) >= REBUILD_PAGE)
            rc = batch_write(b);
        if (rc < 0)
            return rc;
    }
    return rc == 0 ? batch_write(b) : rc;
}

static void drop_row(struct rebuild *b, enum kv_table t, const struct kv_row *row)
{
    kv_batch_delete(b->batch, t, row->key);
}

static int empty_all(struct rebuild *b)
{
    int rc = 0;

    for (unsigned t = 0; rc == 0 && t < KV_TABLE_COUNT; t++)
        rc = each_row(b, (enum kv_table)t, drop_row);
    return rc;
}

static void derive_fprint(struct rebuild *b, enum kv_table t, const struct kv_row *row)
{
    struct chunk_row c = {0};

    (void)t;
    if (row->key.len != 8 || chunk_row_decode(row->value.data, row->value.len, &c) < 0)
        return; /* the audit will tell */
    kv_batch_put(b->batch, KV_FPRINT, (struct kv_slice){c.fp, CHUNK_FP_KEY}, row->key);
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
    mem_free(b->segments);
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

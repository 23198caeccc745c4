/* The deep audit: everything alive is read from the drives, all columns of it, and compared.
 *
 * Chunks are taken in the order in which they lie, stripe by stripe; stripes with nothing alive are
 * nobody's. A table of segments is made for it as the engine would at a start.
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/audit_priv.h"
#include "dedup/chunk_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define DEEP_PROGRESS 64u /* stripes between two reports */

struct deep_chunk {
    uint64_t id, segment;
    uint32_t offset, width, position, stored, crc;
};

struct deep {
    struct audit *a;
    struct segments *segments;
    struct deep_chunk *chunks;
    size_t count, room;
    bool *lost;
    struct segment_loc *locs;
    size_t locs_room;
};

/* ---- Gathering ---- */

static void deep_segments(struct deep *d)
{
    struct hmap *all = &d->a->segments;

    for (struct hmap_node *it = hmap_walk(all, NULL); it; it = hmap_walk(all, it)) {
        const struct segment *s = &HMAP_ENTRY(it, struct audit_segment, node)->row;
        STRBUF_AUTO struct strbuf row = STRBUF_INIT;

        segment_row_encode(s, &row);
        /* What is wrong with one that will not do has been told; its chunks then count as lost. */
        (void)segment_load(d->segments, s->id, row.data, row.len);
    }
}

static void deep_row(struct audit *a, void *arg, const struct kv_row *kv)
{
    struct deep *d = arg;
    struct chunk_row row = {0};
    struct audit_chunk *c;

    if (kv->key.len != 8 || chunk_row_decode(kv->value.data, kv->value.len, &row) < 0)
        return;
    c = audit_chunk_find(a, codec_get_be64(kv->key.data));
    if (!c || c->refs & AUDIT_LOST)
        return;
    if (d->count == d->room) {
        d->room = d->room ? 2 * d->room : 1024;
        d->chunks = mem_realloc(d->chunks, d->room * sizeof(*d->chunks));
    }
    d->chunks[d->count++] = (struct deep_chunk){.id = c->id,
                                                .segment = row.loc.stripe.segment,
                                                .offset = row.loc.stripe.offset,
                                                .width = row.loc.stripe.width,
                                                .position = row.loc.position,
                                                .stored = row.loc.stored,
                                                .crc = row.loc.crc};
}

static int deep_compare(const void *x, const void *y)
{
    const struct deep_chunk *a = x, *b = y;

    if (a->segment != b->segment)
        return a->segment < b->segment ? -1 : 1;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    if (a->width != b->width)
        return a->width < b->width ? -1 : 1;
    return (a->position > b->position) - (a->position < b->position);
}

/* ---- Verifying ---- */

/* Counts columns for the drives that they are on. */
static void deep_count(struct audit_result *r, const struct segment *s, uint32_t bad,
                       uint32_t absent, uint32_t headers)
{
    for (unsigned i = 0; i < s->k + s->m; i++) {
        struct audit_drive *d = &r->drives[s->drive[i]];

        d->bad_columns += bad >> i & 1;
        d->absent_columns += absent >> i & 1;
        d->bad_headers += headers >> i & 1;
    }
}

static void deep_headers(struct deep *d, const struct segment *s)
{
    uint32_t bad, absent;

    if (segment_verify_headers(d->segments, s->id, &bad, &absent) == 0)
        deep_count(&d->a->r, s, 0, 0, bad);
}

static void deep_lost(struct deep *d, size_t first, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct audit_chunk *c = audit_chunk_find(d->a, d->chunks[first + i].id);

        if (!d->lost[i])
            continue;
        c->refs |= AUDIT_LOST;
        d->a->r.lost_chunks++;
        audit_leave(d->a, "chunk-lost",
                    "chunk %llu: its bytes are lost: segment %llu, stripe at %u",
                    (unsigned long long)c->id, (unsigned long long)d->chunks[first + i].segment,
                    d->chunks[first + i].offset);
    }
}

/* One stripe, whose chunks are [first, first + n). */
static void deep_stripe(struct deep *d, size_t first, size_t n)
{
    const struct deep_chunk *c = &d->chunks[first];
    const struct segment *s = segment_get(d->segments, c->segment);
    struct audit_result *r = &d->a->r;
    struct segment_verdict v = {0};
    int rc;

    if (n > d->locs_room) {
        d->locs_room = n;
        d->locs = mem_realloc(d->locs, n * sizeof(*d->locs));
        d->lost = mem_realloc(d->lost, n * sizeof(*d->lost));
    }
    for (size_t i = 0; i < n; i++)
        d->locs[i] = (struct segment_loc){.stripe = {c[i].segment, c[i].offset, c[i].width},
                                          .position = c[i].position,
                                          .stored = c[i].stored,
                                          .crc = c[i].crc};
    rc = s ? segment_verify(d->segments, d->locs, n, d->lost, &v) : ERR_LOST;
    if (rc < 0)
        memset(d->lost, rc != ERR_TIMEDOUT, n * sizeof(*d->lost));
    if (rc == ERR_TIMEDOUT && d->a->rc == 0)
        d->a->rc = rc;
    r->stripes++;
    r->stripes_bad += v.bad || v.torn || v.doubtful;
    r->stripes_thin += v.absent != 0;
    if (s)
        deep_count(r, s, v.bad, v.absent, 0);
    if (v.doubtful)
        audit_leave(d->a, "stripe-doubt",
                    "segment %llu, stripe at %u: its columns do not fit each other, and which of "
                    "them is wrong cannot be told; all that is alive in it is whole",
                    (unsigned long long)c->segment, c->offset);
    deep_lost(d, first, n);
    if (d->a->p->progress && r->stripes % DEEP_PROGRESS == 0)
        d->a->p->progress(d->a->p->arg, "stripes on the drives", r->stripes);
}

static void deep_stripes(struct deep *d)
{
    uint64_t last = 0;
    size_t n;

    for (size_t at = 0; d->a->rc == 0 && at < d->count; at += n) {
        const struct deep_chunk *c = &d->chunks[at];
        const struct segment *s = segment_get(d->segments, c->segment);

        for (n = 1; at + n < d->count && d->chunks[at + n].segment == c->segment &&
                    d->chunks[at + n].offset == c->offset && d->chunks[at + n].width == c->width;)
            n++;
        if (s && c->segment != last)
            deep_headers(d, s);
        last = c->segment;
        deep_stripe(d, at, n);
    }
}

static void deep_tell(struct audit *a)
{
    for (unsigned i = 0; i < a->p->drives->count; i++) {
        const struct audit_drive *dr = &a->r.drives[i];

        if (dr->bad_columns || dr->bad_headers)
            audit_leave(a, "drive-damage",
                        "drive %u (%s): %llu columns of stripes and %llu fragment headers are "
                        "damaged; %s",
                        i, a->p->drives->drives[i].path, (unsigned long long)dr->bad_columns,
                        (unsigned long long)dr->bad_headers,
                        a->r.lost_chunks ? "some of what is on the drives is lost"
                                         : "all they held is readable by parity");
    }
}

void audit_deep(struct audit *a)
{
    struct deep d = {.a = a};

    CHECK(a->p->drives != NULL);
    if (a->rc < 0 || segments_new(a->p->drives, NULL, &d.segments) < 0)
        return;
    deep_segments(&d);
    audit_walk_range(a, KV_CHUNK, (struct kv_slice){"", 1}, (struct kv_slice){"", 0}, deep_row, &d);
    if (d.count)
        qsort(d.chunks, d.count, sizeof(*d.chunks), deep_compare);
    deep_stripes(&d);
    deep_tell(a);
    mem_free(d.locs);
    mem_free(d.lost);
    mem_free(d.chunks);
    segments_free(d.segments);
}

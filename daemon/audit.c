/* The audit's frame: walking tables, telling of findings, segments; see audit.h.
 *
 * The order of the walks matters. Who refers to chunks comes after the chunks, and after the drives
 * where these are read, so that whoever is hit by a chunk that is gone can be named. The chunk
 * table is walked once more after everybody has referred: then the counts are known, and what is
 * left of the table when chunks without references are gone makes the counts of segments.
 */
#include "daemon/audit_priv.h"

#include "daemon/image_form.h"
#include "daemon/partition.h"

#include <stdarg.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define AUDIT_PAGE_BYTES (4u << 20)
#define AUDIT_SLOTS_MAX  (1u << 28) /* as drives have at most */

/* ---- Walking ---- */

void audit_walk_range(struct audit *a, enum kv_table t, struct kv_slice from, struct kv_slice to,
                      void (*row)(struct audit *a, void *arg, const struct kv_row *row), void *arg)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *at;
    int rc = 0;

    kv_walk_init(&w, a->p->kv, t, from, to, AUDIT_PAGE, AUDIT_PAGE_BYTES);
    while (a->rc == 0 && (rc = kv_walk_next(&w, &at)) > 0)
        row(a, arg, at);
    if (a->rc == 0)
        a->rc = rc;
}

struct walk {
    void (*row)(struct audit *a, struct kv_slice key, struct kv_slice value);
    const char *what;
    uint64_t done;
};

static void walk_row(struct audit *a, void *arg, const struct kv_row *row)
{
    struct walk *w = arg;

    if (a->p->progress && w->done % AUDIT_PAGE == 0)
        a->p->progress(a->p->arg, w->what, w->done);
    w->done++;
    w->row(a, row->key, row->value);
}

void audit_walk(struct audit *a, enum kv_table t, const char *what,
                void (*row)(struct audit *a, struct kv_slice key, struct kv_slice value))
{
    struct walk w = {row, what, 0};

    audit_walk_range(a, t, (struct kv_slice){"", 1}, (struct kv_slice){"", 0}, walk_row, &w);
}

void *audit_get(struct audit *a, enum kv_table t, struct kv_slice key, size_t *ret_len)
{
    void *value = NULL;
    int rc = kv_get(a->p->kv, t, key, &value, ret_len);

    if (rc < 0 && rc != ERR_NOENT && a->rc == 0)
        a->rc = rc;
    return rc < 0 ? NULL : value;
}

/* ---- Telling and mending ---- */

static void tell(struct audit *a, const char *kind, enum audit_fate fate, const char *fmt,
                 va_list ap)
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    struct audit_finding f = {.kind = kind, .fate = fate};

    if (a->rc < 0)
        return; /* what is not there may only be unreadable */
    strbuf_addvf(&text, fmt, ap);
    f.text = text.data;
    a->r.found++;
    a->r.mended += fate == AUDIT_MENDED;
    a->r.left += fate == AUDIT_LEFT;
    a->p->found(a->p->arg, &f);
}

void audit_mend(struct audit *a, const char *kind, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tell(a, kind, a->p->repair ? AUDIT_MENDED : AUDIT_MENDABLE, fmt, ap);
    va_end(ap);
}

void audit_leave(struct audit *a, const char *kind, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tell(a, kind, AUDIT_LEFT, fmt, ap);
    va_end(ap);
}

/* What is changed here is in no record: the copy on the drives must begin anew. */
static void write_batch(struct audit *a, struct kv_batch *batch)
{
    static const struct kv_slice mark = {IMAGE_MENDED_KEY, sizeof(IMAGE_MENDED_KEY) - 1};

    kv_batch_put(batch, KV_IMAGE, mark, (struct kv_slice){"", 0});
    if (a->rc == 0)
        a->rc = kv_write(a->p->kv, batch);
    kv_batch_free(batch);
}

void audit_put(struct audit *a, enum kv_table t, struct kv_slice key, struct kv_slice value)
{
    struct kv_batch *batch;

    if (!a->p->repair || a->rc < 0)
        return;
    batch = kv_batch_new();
    kv_batch_put(batch, t, key, value);
    write_batch(a, batch);
}

void audit_delete(struct audit *a, enum kv_table t, struct kv_slice key)
{
    struct kv_batch *batch;

    if (!a->p->repair || a->rc < 0)
        return;
    batch = kv_batch_new();
    kv_batch_delete(batch, t, key);
    write_batch(a, batch);
}

/* ---- Segments ----
 * Which slots are taken follows from the segments alone, so no slot can be lost to nobody; but two
 * segments may claim one, and a segment may claim what its drives do not have. */

/* Takes the slot's bit; false when somebody has it. */
static bool slot_take(struct audit *a, uint32_t drive, uint32_t slot)
{
    uint8_t bit = (uint8_t)(1u << slot % 8);

    if (slot / 8 >= a->slots_room[drive]) {
        uint64_t room = slot / 8 * 2 + 64;

        a->slots[drive] = mem_realloc(a->slots[drive], room);
        memset(a->slots[drive] + a->slots_room[drive], 0, room - a->slots_room[drive]);
        a->slots_room[drive] = room;
    }
    if (a->slots[drive][slot / 8] & bit)
        return false;
    a->slots[drive][slot / 8] |= bit;
    return true;
}

static bool slot_exists(const struct audit *a, uint32_t drive, uint32_t slot)
{
    const struct driveset *ds = a->p->drives;

    if (!ds)
        return drive < FORMAT_DRIVES_MAX && slot < AUDIT_SLOTS_MAX;
    return drive < ds->count && slot < ds->drives[drive].slot_count;
}

static void segment_slots(struct audit *a, const struct segment *s)
{
    uint64_t seen = 0;

    for (unsigned i = 0; i < s->k + s->m; i++) {
        if (!slot_exists(a, s->drive[i], s->slot[i])) {
            audit_leave(a, "segment-slot", "segment %llu: slot %u of drive %u, which is not there",
                        (unsigned long long)s->id, s->slot[i], s->drive[i]);
            continue;
        }
        if (seen >> s->drive[i] & 1)
            audit_leave(a, "segment-slot", "segment %llu: two columns on drive %u",
                        (unsigned long long)s->id, s->drive[i]);
        seen |= 1ull << s->drive[i];
        if (!slot_take(a, s->drive[i], s->slot[i]))
            audit_leave(a, "segment-slot",
                        "segment %llu: slot %u of drive %u is another segment's too",
                        (unsigned long long)s->id, s->slot[i], s->drive[i]);
    }
}

static void row_segment(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    struct audit_segment *s = mem_zalloc(sizeof(*s));

    if (key.len != 8 || segment_row_decode(value.data, value.len, &s->row) < 0 ||
        s->row.id != codec_get_be64(key.data)) {
        audit_leave(a, "segment-row", "a segment's row is broken");
        mem_free(s);
        return;
    }
    a->r.segments++;
    hmap_insert(&a->segments, &s->node, hmap_mix(s->row.id));
    segment_slots(a, &s->row);
    if (s->row.state != SEGMENT_OPEN)
        return;
    if (a->open[s->row.stream])
        a->open[s->row.stream]->reopened = true;
    a->open[s->row.stream] = s;
}

static void segment_put(struct audit *a, const struct segment *row)
{
    STRBUF_AUTO struct strbuf value = STRBUF_INIT;
    uint8_t key[8];

    codec_put_be64(key, row->id);
    segment_row_encode(row, &value);
    audit_put(a, KV_SEGMENT, (struct kv_slice){key, 8}, (struct kv_slice){value.data, value.len});
}

/* Compares a segment's counts with its chunks. Too few in the row, and it could be freed under
 * them; too many, and it never is. */
static void segment_sum(struct audit *a, const struct audit_segment *s)
{
    struct segment row = s->row;
    unsigned long long id = row.id;

    if (row.live != s->live || row.chunks != s->chunks) {
        if (a->chunks_doubtful) {
            audit_leave(a, "segment-count",
                        "segment %llu: %llu chunks of %llu bytes, its row says %llu of %llu; left, "
                        "as chunks with broken rows may be in it",
                        id, (unsigned long long)s->chunks, (unsigned long long)s->live,
                        (unsigned long long)row.chunks, (unsigned long long)row.live);
        } else {
            row.live = s->live;
            row.chunks = s->chunks;
            audit_mend(a, "segment-count",
                       "segment %llu: %llu chunks of %llu bytes, its row says %llu of %llu", id,
                       (unsigned long long)s->chunks, (unsigned long long)s->live,
                       (unsigned long long)s->row.chunks, (unsigned long long)s->row.live);
        }
    }
    if (s->end > row.used) {
        audit_mend(a, "segment-end", "segment %llu: chunks lie behind its end: to %u, not %u", id,
                   s->end, row.used);
        row.used = s->end;
    }
    if (s->reopened) {
        audit_mend(a, "segment-open", "segment %llu: open, as a later one of its stream is", id);
        row.state = SEGMENT_SEALED;
    }
    if (memcmp(&row, &s->row, sizeof(row)) != 0)
        segment_put(a, &row);
}

static void segments_sum(struct audit *a)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&a->segments, NULL); it; it = next) {
        struct audit_segment *s = HMAP_ENTRY(it, struct audit_segment, node);

        next = hmap_walk(&a->segments, it);
        segment_sum(a, s);
        mem_free(s);
    }
    hmap_free(&a->segments);
    for (unsigned i = 0; i < FORMAT_DRIVES_MAX; i++)
        mem_free(a->slots[i]);
}

/* The number of a segment whose row is lost must not be given again: rows of its chunks would be
 * taken for the new one's. */
static void segment_ids(struct audit *a)
{
    static const struct kv_slice key = {PARTITION_SEGMENTS_KEY, sizeof(PARTITION_SEGMENTS_KEY) - 1};
    MEM_AUTO uint8_t *value = NULL;
    uint8_t next[8];
    size_t len = 0;

    if (a->max_segment == 0)
        return;
    value = audit_get(a, KV_META, key, &len);
    if (value && len == 8 && codec_get_le64(value) > a->max_segment)
        return;
    audit_mend(a, "segment-number", "segment %llu is not there, and its number may be given again",
               (unsigned long long)a->max_segment);
    codec_put_le64(next, a->max_segment + 1);
    audit_put(a, KV_META, key, (struct kv_slice){next, sizeof(next)});
}

/* ---- All ---- */

int audit_run(const struct audit_params *params, struct audit_result *ret_result)
{
    struct audit *a = mem_zalloc(sizeof(*a));
    int rc;

    a->p = params;
    hmap_init(&a->segments);
    hmap_init(&a->volumes);
    hmap_init(&a->maps);
    hmap_init(&a->buckets);
    audit_walk(a, KV_SEGMENT, "segments", row_segment);
    audit_walk(a, KV_CHUNK, "chunks", audit_chunk_first);
    if (params->deep)
        audit_deep(a);
    audit_walk(a, KV_VOLUME, "volumes", audit_volume);
    audit_volumes_link(a);
    audit_instances(a); /* before recipes: it mends the index that leads from them to instances */
    audit_buckets(a);   /* before recipes: it knows their names */
    audit_walk(a, KV_MAP, "volume maps", audit_leaf);
    audit_walk(a, KV_RECIPE, "recipes", audit_recipe);
    audit_image(a);
    audit_catalog(a);
    audit_walk(a, KV_FPRINT, "fingerprints", audit_fprint);
    audit_walk(a, KV_CHUNK, "references", audit_chunk_second);
    audit_totals(a);
    audit_scrub(a);
    segments_sum(a);
    segment_ids(a);
    audit_volumes_sum(a);
    audit_buckets_free(a);
    mem_free(a->chunks);
    rc = a->rc;
    if (rc == 0)
        *ret_result = a->r;
    mem_free(a);
    return rc;
}

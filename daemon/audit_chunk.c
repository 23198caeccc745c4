/* The audit of chunks: their rows, whoever refers to them, their fingerprints and totals. */
#include <string.h>

#include "daemon/audit_priv.h"
#include "daemon/catalog.h"
#include "daemon/image_form.h"
#include "daemon/leafmap.h"
#include "daemon/recipe.h"
#include "dedup/chunk_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

struct audit_chunk *audit_chunk_find(struct audit *a, uint64_t id)
{
    size_t low = 0, high = a->chunk_count;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (a->chunks[mid].id < id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < a->chunk_count && a->chunks[low].id == id ? &a->chunks[low] : NULL;
}

/* ---- Rows, before and after everybody has referred to them ---- */

static int chunk_decode(struct kv_slice key, struct kv_slice value, struct chunk_row *row)
{
    if (key.len != 8 || chunk_row_decode(value.data, value.len, row) < 0)
        return ERR_FORMAT;
    row->id = codec_get_be64(key.data);
    return 0;
}

/* Does it lie within its stripe, and that within the slots? */
static bool chunk_placed(const struct audit *a, const struct audit_segment *s,
                         const struct segment_loc *l)
{
    uint64_t end = (uint64_t)l->stripe.offset + l->stripe.width;
    uint64_t slot = a->p->drives ? a->p->drives->super.slot_size : FORMAT_SLOT_MAX;

    return l->stripe.offset >= 1 && end <= slot / FORMAT_UNIT &&
           (uint64_t)l->position + l->stored <= (uint64_t)l->stripe.width * FORMAT_UNIT * s->row.k;
}

void audit_chunk_first(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    struct chunk_row row = {0};
    struct audit_segment *s;
    struct audit_chunk *c;

    if (chunk_decode(key, value, &row) < 0) {
        a->chunks_doubtful = true;
        audit_leave(a, "chunk-row", "the row of chunk %llu is broken",
                    key.len == 8 ? (unsigned long long)codec_get_be64(key.data) : 0);
        return;
    }
    if (a->chunk_count == a->chunk_room) {
        a->chunk_room = a->chunk_room ? 2 * a->chunk_room : 1024;
        a->chunks = mem_realloc(a->chunks, a->chunk_room * sizeof(*a->chunks));
    }
    c = &a->chunks[a->chunk_count++];
    *c = (struct audit_chunk){.id = row.id};
    memcpy(&c->fp, row.fp, sizeof(c->fp));
    s = audit_find(&a->segments, row.loc.stripe.segment);
    if (s && chunk_placed(a, s, &row.loc))
        return;
    c->refs = AUDIT_LOST;
    if (!s && row.loc.stripe.segment > a->max_segment)
        a->max_segment = row.loc.stripe.segment;
    audit_leave(a, "chunk-place", "chunk %llu: lies in segment %llu, %s",
                (unsigned long long)row.id, (unsigned long long)row.loc.stripe.segment,
                s ? "where no chunk can lie" : "which is not there");
}

/* Takes it out of the table, and out of the index where that means this one. */
static void chunk_remove(struct audit *a, const struct chunk_row *row, struct kv_slice key)
{
    struct kv_slice fp = {row->fp, CHUNK_FP_KEY};
    MEM_AUTO uint8_t *value = NULL;
    size_t len;

    if (!a->p->repair)
        return;
    value = audit_get(a, KV_FPRINT, fp, &len);
    if (value && len == 8 && codec_get_be64(value) == row->id)
        audit_delete(a, KV_FPRINT, fp);
    audit_delete(a, KV_CHUNK, key);
}

/* Compares references; false when the chunk is gone now. */
static bool chunk_compare(struct audit *a, struct chunk_row *row, uint64_t refs,
                          struct kv_slice key)
{
    uint8_t value[CHUNK_ROW_SIZE];

    if (refs == row->refs && refs > 0)
        return true;
    if (refs < row->refs + (row->refs == 0) && a->refs_doubtful) {
        audit_leave(a, "chunk-refs",
                    "chunk %llu: %llu references found, its row says %llu; left, as rows that may "
                    "refer to it are broken",
                    (unsigned long long)row->id, (unsigned long long)refs,
                    (unsigned long long)row->refs);
        return true;
    }
    if (refs == 0) {
        audit_mend(a, "chunk-orphan", "chunk %llu: nobody refers to it, its row says %llu",
                   (unsigned long long)row->id, (unsigned long long)row->refs);
        chunk_remove(a, row, key);
        return !a->p->repair;
    }
    audit_mend(a, "chunk-refs", "chunk %llu: %llu references, its row says %llu",
               (unsigned long long)row->id, (unsigned long long)refs,
               (unsigned long long)row->refs);
    if (a->p->repair) {
        row->refs = refs;
        chunk_row_encode(row, value);
        audit_put(a, KV_CHUNK, key, (struct kv_slice){value, sizeof(value)});
    }
    return true;
}

void audit_chunk_second(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    struct chunk_row row = {0};
    struct audit_chunk *c;
    struct audit_segment *s;
    uint32_t end;

    if (chunk_decode(key, value, &row) < 0)
        return;
    if (row.id > a->max_id)
        a->max_id = row.id;
    c = audit_chunk_find(a, row.id);
    if (!c || !chunk_compare(a, &row, c->refs & ~AUDIT_LOST, key))
        return;
    a->r.chunks++;
    a->raw += row.raw;
    a->stored += row.loc.stored;
    a->referenced += row.raw * row.refs;
    s = audit_find(&a->segments, row.loc.stripe.segment);
    if (!s)
        return;
    s->live += row.loc.stored;
    s->chunks++;
    end = row.loc.stripe.offset + row.loc.stripe.width;
    if (end > s->end && chunk_placed(a, s, &row.loc))
        s->end = end;
}

/* ---- Who refers to them ---- */

/* Counts a reference. NULL, or what is wrong with the chunk. */
static const char *refer(struct audit *a, uint64_t id)
{
    struct audit_chunk *c = audit_chunk_find(a, id);

    if (!c) {
        if (id > a->max_id)
            a->max_id = id; /* given to another chunk it would show that one's bytes */
        return "is not there";
    }
    c->refs++;
    return c->refs & AUDIT_LOST ? "cannot be read" : NULL;
}

/* A run of blocks that is hit. */
struct leaf_run {
    uint64_t first, chunk;
    unsigned count;
    const char *what;
};

static void leaf_tell(struct audit *a, const char *who, const struct leaf_run *run)
{
    if (run->count)
        audit_leave(a, "volume-data",
                    "%s: blocks %llu to %llu (bytes %llu to %llu) are lost: chunk %llu %s", who,
                    (unsigned long long)run->first,
                    (unsigned long long)(run->first + run->count - 1),
                    (unsigned long long)(run->first * BLOCK_SIZE),
                    (unsigned long long)((run->first + run->count) * BLOCK_SIZE - 1),
                    (unsigned long long)run->chunk, run->what);
}

/* Goes through the leaf's entries; `m` is the map, or of one that is not there only counts. */
static unsigned leaf_refer(struct audit *a, struct audit_map *m, uint64_t index,
                           const uint8_t *entries)
{
    struct leaf_run run = {0};
    unsigned used = 0;

    for (unsigned i = 0; i < LEAF_BLOCKS; i++) {
        uint64_t entry = codec_get_le64(entries + 8 * i), chunk = LEAF_CHUNK(entry);
        const char *what = entry && entry != LEAF_HOLE ? refer(a, chunk) : NULL;

        used += entry != 0;
        m->mapped += chunk != 0;
        m->holes += entry == LEAF_HOLE;
        if (run.count && what && chunk == run.chunk) {
            run.count++;
            continue;
        }
        if (run.count)
            leaf_tell(a, audit_map_who(a, m), &run);
        run = (struct leaf_run){index * LEAF_BLOCKS + i, chunk, what != NULL, what};
    }
    if (run.count)
        leaf_tell(a, audit_map_who(a, m), &run);
    return used;
}

void audit_leaf(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    uint64_t index = key.len == 16 ? codec_get_be64((const uint8_t *)key.data + 8) : 0;
    struct audit_map nobody = {.row.id = key.len == 16 ? codec_get_be64(key.data) : 0};
    struct audit_map *found = audit_find(&a->maps, nobody.row.id), *m = found ? found : &nobody;
    unsigned used;

    if (key.len != 16 || value.len != LEAF_BLOCKS * 8) {
        a->refs_doubtful = true;
        m->doubtful = true;
        audit_leave(a, "map-row", "%s: a part of its map is broken", audit_map_who(a, m));
    } else {
        used = leaf_refer(a, m, index, value.data);
        if (used == 0) {
            audit_mend(a, "map-empty", "%s: an empty part of a map", audit_map_who(a, m));
            audit_delete(a, KV_MAP, key);
        } else if (!found) {
            audit_leave(
                a, "map-orphan", "map %llu is not there, and a part of it is: %u blocks from %llu",
                (unsigned long long)m->row.id, used, (unsigned long long)index * LEAF_BLOCKS);
        }
    }
    mem_free(nobody.who);
}

/* Is the instance of a recipe in the catalogue? */
static bool recipe_owned(struct audit *a, const char *uid)
{
    MEM_AUTO void *home = NULL, *row = NULL;
    struct catalog_uids uids;
    struct catalog_key k;
    size_t len;

    catalog_key_make(&k, 'U', uid, NULL, NULL);
    home = audit_get(a, KV_INDEX, catalog_key_slice(&k), &len);
    if (!home || catalog_uids_split((struct kv_slice){home, len}, 2, &uids) < 0 ||
        strlen(uids.part[0]) > OBJECT_UID_MAX || strlen(uids.part[1]) > OBJECT_UID_MAX)
        return false;
    catalog_key_make(&k, 'I', uids.part[0], uids.part[1], uid);
    row = audit_get(a, KV_CATALOG, catalog_key_slice(&k), &len);
    return row != NULL;
}

const char *audit_refer(struct audit *a, const struct recipe *r, uint64_t *ret_chunk)
{
    const char *what = NULL;

    for (uint32_t i = 0; i < r->chunk_count; i++) {
        const char *wrong = refer(a, r->chunks[i].id);

        if (wrong && !what) {
            what = wrong;
            *ret_chunk = r->chunks[i].id;
        }
    }
    return what;
}

void audit_recipe(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    char uid[OBJECT_UID_MAX + 1] = "";
    struct recipe recipe;
    const char *what;
    uint64_t chunk;

    if (key.len == 9 && *(const char *)key.data == 'C') {
        audit_object_recipe(a, key, value);
        return;
    }
    if (key.len < 2 || key.len - 1 > OBJECT_UID_MAX) {
        audit_leave(a, "recipe-row", "a recipe is under a key that is no UID");
        a->refs_doubtful = true;
        return;
    }
    memcpy(uid, (const char *)key.data + 1, key.len - 1);
    if (recipe_decode(value.data, value.len, &recipe) < 0) {
        audit_leave(a, "recipe-row", "instance %s: its recipe is broken: it cannot be read", uid);
        a->refs_doubtful = true;
        return;
    }
    what = audit_refer(a, &recipe, &chunk);
    if (what)
        audit_leave(a, "instance-data", "instance %s: part of it is lost: chunk %llu %s", uid,
                    (unsigned long long)chunk, what);
    recipe_free(&recipe);
    if (!recipe_owned(a, uid)) {
        a->catalog_doubtful = true;
        audit_leave(a, "recipe-orphan", "instance %s: has a recipe, and is not in the catalogue",
                    uid);
    }
}

/* ---- The metadata's copy on the drives (image.c) ---- */

/* What the pieces of the runs that are named come to. */
struct image_tally {
    const struct image_form *form;
    struct image_count {
        uint64_t chunks;
        uint32_t pieces;
    } * runs;
};

/* A piece of a run refers to its chunks. Runs that nothing names are on their way out. */
static void audit_piece(struct audit *a, void *arg, const struct kv_row *row)
{
    struct image_tally *tally = arg;
    const struct image_run *run;
    struct image_piece piece;
    bool lost = false;

    if (image_piece_from_row(row, &piece) < 0) {
        audit_leave(a, "copy-row", "a row of the metadata's copy on the drives is broken");
        a->refs_doubtful = true;
        return;
    }
    for (uint32_t i = 0; i < piece.count; i++)
        lost |= refer(a, piece.ids[i]) != NULL;
    if (lost)
        audit_leave(a, "copy-data", "part of the metadata's copy on the drives is lost");
    run = image_form_find(tally->form, piece.number);
    if (run) {
        tally->runs[run - tally->form->runs].pieces++;
        tally->runs[run - tally->form->runs].chunks += piece.count;
    }
    mem_free(piece.ids);
}

/* Has each run that is named all that it is said to have? */
static void audit_runs(struct audit *a, const struct image_form *form)
{
    struct image_tally tally = {form, mem_calloc(form->count, sizeof(*tally.runs))};

    audit_walk_range(a, KV_META, image_pieces_from(), image_pieces_to(), audit_piece, &tally);
    for (uint32_t i = 0; a->rc == 0 && i < form->count; i++)
        if (tally.runs[i].pieces != form->runs[i].pieces ||
            tally.runs[i].chunks != form->runs[i].chunks + form->runs[i].count) {
            audit_leave(a, "copy-row",
                        "run %llu of the metadata's copy on the drives has %u pieces of %u, %llu "
                        "chunks of %llu",
                        (unsigned long long)form->runs[i].number, (unsigned)tally.runs[i].pieces,
                        (unsigned)form->runs[i].pieces, (unsigned long long)tally.runs[i].chunks,
                        (unsigned long long)(form->runs[i].chunks + form->runs[i].count));
            a->refs_doubtful = true;
        }
    mem_free(tally.runs);
}

/* It only says what the copy takes; a start makes do without. */
static void audit_image_sum(struct audit *a)
{
    static const struct kv_slice key = {IMAGE_SUM_KEY, sizeof(IMAGE_SUM_KEY) - 1};
    MEM_AUTO void *value = NULL;
    struct image_sum sum;
    size_t len;

    value = audit_get(a, KV_META, key, &len);
    if (!value || image_sum_decode((struct kv_slice){value, len}, &sum) == 0)
        return;
    audit_mend(a, "copy-row", "the totals of the metadata's copy are broken");
    audit_delete(a, KV_META, key);
}

void audit_image(struct audit *a)
{
    static const struct kv_slice key = {IMAGE_META_KEY, sizeof(IMAGE_META_KEY) - 1};
    struct image_form form = {0};
    MEM_AUTO void *value = NULL;
    size_t len;

    value = audit_get(a, KV_META, key, &len);
    if (value && image_form_decode(value, len, &form) < 0) {
        audit_leave(a, "copy-row", "the row of the metadata's copy on the drives is broken");
        a->refs_doubtful = true;
    }
    audit_runs(a, &form);
    audit_image_sum(a);
    image_form_free(&form);
}

/* ---- The index and the totals ---- */

void audit_fprint(struct audit *a, struct kv_slice key, struct kv_slice value)
{
    uint64_t id = value.len == 8 ? codec_get_be64(value.data) : 0;
    struct audit_chunk *c = audit_chunk_find(a, id);

    if (value.len == 8 && key.len == CHUNK_FP_KEY && c &&
        memcmp(&c->fp, key.data, CHUNK_FP_KEY) == 0)
        return;
    audit_mend(a, "fingerprint", "a fingerprint leads to chunk %llu, which %s",
               (unsigned long long)id, c ? "has another" : "is not there");
    audit_delete(a, KV_FPRINT, key);
}

void audit_totals(struct audit *a)
{
    static const struct kv_slice key = {CHUNK_TOTALS_KEY, sizeof(CHUNK_TOTALS_KEY) - 1};
    struct chunk_totals t = {0}, want;
    uint8_t bytes[CHUNK_TOTALS_SIZE];
    MEM_AUTO void *value = NULL;
    size_t len = 0;

    value = audit_get(a, KV_META, key, &len);
    if (value)
        (void)chunk_totals_decode(value, len, &t); /* a broken one is as good as none */
    want = (struct chunk_totals){t.next_id, a->r.chunks, a->raw, a->stored, a->referenced};
    if (a->max_id && want.next_id <= a->max_id)
        want.next_id = a->max_id + 1;
    if (memcmp(&t, &want, sizeof(t)) == 0)
        return;
    audit_mend(a, "chunk-totals",
               "there are %llu chunks of %llu bytes (%llu stored, %llu referenced), the totals say "
               "%llu of %llu (%llu, %llu)",
               (unsigned long long)want.chunks, (unsigned long long)want.raw,
               (unsigned long long)want.stored, (unsigned long long)want.referenced,
               (unsigned long long)t.chunks, (unsigned long long)t.raw,
               (unsigned long long)t.stored, (unsigned long long)t.referenced);
    chunk_totals_encode(&want, bytes);
    audit_put(a, KV_META, key, (struct kv_slice){bytes, sizeof(bytes)});
}

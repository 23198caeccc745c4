/* Counts everything in the KV store again that the engine keeps counts of: references of chunks
 * from maps and recipes, chunks and bytes of segments, blocks of volumes, studies of patients, the
 * indexes.
 *
 * It reads the tables as they are, with the partition closed, and trusts nothing that it can
 * derive.
 */
#include "tests/sim/run.h"

#include <string.h>

#include "daemon/catalog.h"
#include "daemon/leafmap.h"
#include "daemon/recipe.h"
#include "dedup/chunk_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"

#define RECOUNT_PAGE 512u

struct count_chunk {
    struct hmap_node node;
    struct chunk_row row;
    uint64_t refs; /* counted */
};

struct count_segment {
    struct hmap_node node;
    uint64_t id, live, chunks; /* as its row says */
    uint64_t live_counted, chunks_counted;
    uint32_t used;
};

struct count_map {
    struct hmap_node node;
    uint64_t id, parent, mapped, holes; /* as its row says */
    uint64_t mapped_counted, holes_counted;
};

struct recount {
    struct run *r;
    struct hmap chunks, segments, maps;
    uint64_t instances, recipes, homes, fprints;
    uint64_t raw, stored, referenced;
};

/* ---- Walking ---- */

static void walk(struct recount *c, enum kv_table t,
                 void (*row)(struct recount *c, struct kv_slice key, struct kv_slice value))
{
    uint8_t from[1100] = {0};
    size_t from_len = 1, n;

    do {
        struct kv_rows *rows;
        int rc = kv_scan(c->r->kv, t, (struct kv_slice){from, from_len}, (struct kv_slice){"", 0},
                         RECOUNT_PAGE, 4u << 20, 0, &rows);

        if (rc < 0)
            run_fail(c->r, "recount: scan: %s", err_name(rc));
        n = rows->count;
        for (size_t i = 0; i < n; i++)
            row(c, rows->rows[i].key, rows->rows[i].value);
        if (n) {
            memcpy(from, rows->rows[n - 1].key.data, rows->rows[n - 1].key.len);
            from_len = rows->rows[n - 1].key.len;
            from[from_len++] = 0;
        }
        kv_rows_free(rows);
    } while (n);
}

static void *find(const struct hmap *m, uint64_t id)
{
    return hmap_first(m, hmap_mix(id)); /* the mix is one to one; the node comes first */
}

static uint64_t key_id(struct recount *c, struct kv_slice key)
{
    if (key.len != 8)
        run_fail(c->r, "recount: a key of %zu bytes", key.len);
    return codec_get_be64(key.data);
}

/* ---- Rows ---- */

static void row_segment(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    struct codec_reader r = codec_reader_on(value.data, value.len);
    struct count_segment *s = mem_zalloc(sizeof(*s));

    s->id = key_id(c, key);
    (void)codec_read_le16(&r); /* version, state */
    s->used = codec_read_le32(&r);
    s->live = codec_read_le64(&r);
    s->chunks = codec_read_le64(&r);
    if (!codec_reader_ok(&r))
        run_fail(c->r, "recount: a segment's row is short");
    hmap_insert(&c->segments, &s->node, hmap_mix(s->id));
}

static void row_chunk(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    struct count_chunk *ch = mem_zalloc(sizeof(*ch));
    struct count_segment *s;

    if (chunk_row_decode(value.data, value.len, &ch->row) < 0)
        run_fail(c->r, "recount: a chunk's row is broken");
    ch->row.id = key_id(c, key);
    hmap_insert(&c->chunks, &ch->node, hmap_mix(ch->row.id));
    c->raw += ch->row.raw;
    c->stored += ch->row.loc.stored;
    c->referenced += ch->row.raw * ch->row.refs;
    s = find(&c->segments, ch->row.loc.stripe.segment);
    if (!s)
        run_fail(c->r, "recount: chunk %llu is in segment %llu, which is not there",
                 (unsigned long long)ch->row.id, (unsigned long long)ch->row.loc.stripe.segment);
    s->live_counted += ch->row.loc.stored;
    s->chunks_counted++;
    if (ch->row.loc.stripe.offset + ch->row.loc.stripe.width > s->used)
        run_fail(c->r, "recount: chunk %llu lies behind the end of its segment",
                 (unsigned long long)ch->row.id);
}

static void refer(struct recount *c, uint64_t id)
{
    struct count_chunk *ch = find(&c->chunks, id);

    if (!ch)
        run_fail(c->r, "recount: chunk %llu is referred to and not there", (unsigned long long)id);
    ch->refs++;
}

/* Rows of maps, which are among those of volumes. */
static void row_map(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    const uint8_t *p = value.data;
    struct count_map *m;

    if (key.len == 8)
        return;
    if (key.len != 9 || value.len != 49)
        run_fail(c->r, "recount: a map's row is broken");
    m = mem_zalloc(sizeof(*m));
    m->id = codec_get_be64(key.data);
    m->parent = codec_get_le64(p + 1);
    m->mapped = codec_get_le64(p + 33);
    m->holes = codec_get_le64(p + 41);
    hmap_insert(&c->maps, &m->node, hmap_mix(m->id));
}

/* Each volume and snapshot has a map, and a snapshot's volume is there. */
static void row_volume(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    const uint8_t *p = value.data;
    uint8_t of[8];
    void *row;
    size_t len;

    if (key.len != 8)
        return;
    if (value.len < 37 || !find(&c->maps, codec_get_le64(p + 20)))
        run_fail(c->r, "recount: a volume's row is broken, or its map is not there");
    codec_put_be64(of, codec_get_le64(p + 28));
    if (codec_get_be64(of) == 0)
        return;
    if (kv_get(c->r->kv, KV_VOLUME, (struct kv_slice){of, 8}, &row, &len) < 0)
        run_fail(c->r, "recount: a snapshot is of no volume");
    mem_free(row);
}

static void row_leaf(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    struct count_map *m;
    unsigned used = 0;

    if (key.len != 16 || value.len != LEAF_BLOCKS * 8)
        run_fail(c->r, "recount: a map leaf is broken");
    m = find(&c->maps, codec_get_be64(key.data));
    if (!m)
        run_fail(c->r, "recount: a map leaf belongs to no map");
    for (unsigned i = 0; i < LEAF_BLOCKS; i++) {
        uint64_t entry = codec_get_le64((const uint8_t *)value.data + 8 * i);

        used += entry != 0;
        m->holes_counted += entry == LEAF_HOLE;
        m->mapped_counted += LEAF_CHUNK(entry) != 0;
        if (LEAF_CHUNK(entry))
            refer(c, LEAF_CHUNK(entry));
    }
    if (!used)
        run_fail(c->r, "recount: an empty map leaf");
}

static void row_recipe(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    struct recipe recipe;

    (void)key;
    if (recipe_decode(value.data, value.len, &recipe) < 0)
        run_fail(c->r, "recount: a recipe is broken");
    for (uint32_t i = 0; i < recipe.chunk_count; i++)
        refer(c, recipe.chunks[i].id);
    recipe_free(&recipe);
    c->recipes++;
}

static void row_fprint(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    struct count_chunk *ch;

    if (value.len != 8 || key.len != CHUNK_FP_KEY)
        run_fail(c->r, "recount: a fingerprint's row is broken");
    ch = find(&c->chunks, codec_get_be64(value.data));
    if (!ch || memcmp(ch->row.fp, key.data, CHUNK_FP_KEY) != 0)
        run_fail(c->r, "recount: a fingerprint names chunk %llu, which %s",
                 (unsigned long long)codec_get_be64(value.data),
                 ch ? "has another" : "is not there");
    c->fprints++;
}

/* ---- Patients: rows, index and studies must say the same, each seen from each ---- */

static bool same_key(const struct catalog_key *k, struct kv_slice key)
{
    return k->len == key.len && memcmp(k->bytes, key.data, key.len) == 0;
}

/* A row that `what` demands. The caller frees. */
static void *demand(struct recount *c, enum kv_table t, const struct catalog_key *k,
                    const char *what, struct kv_slice *ret_value)
{
    void *value;
    int rc = kv_get(c->r->kv, t, catalog_key_slice(k), &value, &ret_value->len);

    if (rc < 0)
        run_fail(c->r, "recount: %s: %s", what, err_name(rc));
    ret_value->data = value;
    return value;
}

/* The study of a row of the patients' index. The caller frees both. */
static struct catalog_study *indexed_study(struct recount *c, struct kv_slice key, void **ret_value)
{
    struct catalog_study *s = mem_zalloc(sizeof(*s));
    const char *at = key.data, *nul = memrchr(at, 0, key.len);
    char uid[OBJECT_UID_MAX + 1] = "";
    struct catalog_key k;
    struct kv_slice value;
    size_t n = nul ? (size_t)(at + key.len - nul) - 1 : 0;

    if (n == 0 || n > OBJECT_UID_MAX)
        run_fail(c->r, "recount: a row of the patients' index is broken");
    memcpy(uid, nul + 1, n);
    catalog_key_make(&k, 'T', uid, NULL, NULL);
    *ret_value = demand(c, KV_CATALOG, &k, "a study in the patients' index", &value);
    if (catalog_study_decode(value, s) < 0)
        run_fail(c->r, "recount: a study's row is broken");
    return s;
}

static void row_patient(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    struct catalog_patient *p = mem_zalloc(sizeof(*p));
    struct catalog_key k, from, to;
    struct kv_rows *rows;
    const char *id;
    uint64_t counted = 0;
    int rc;

    if (catalog_patient_decode(value, p) < 0 || !catalog_patient_key(&k, &p->attrs) ||
        !same_key(&k, key))
        run_fail(c->r, "recount: a patient's row is broken, or not its own");
    id = catalog_patient_id(&p->attrs);
    catalog_id_key(&from, id, strlen(id), NULL);
    to = from;
    catalog_key_after(&to);
    rc = kv_scan(c->r->kv, KV_INDEX, catalog_key_slice(&from), catalog_key_slice(&to), RECOUNT_PAGE,
                 4u << 20, 0, &rows);
    if (rc < 0 || rows->count == RECOUNT_PAGE)
        run_fail(c->r, "recount: the studies of a patient: %s", err_name(rc));
    for (size_t i = 0; i < rows->count; i++) {
        void *bytes;
        struct catalog_study *s = indexed_study(c, rows->rows[i].key, &bytes);

        counted += catalog_patient_key(&k, &s->attrs) && same_key(&k, key);
        mem_free(s);
        mem_free(bytes);
    }
    if (p->studies == 0 || p->studies != counted)
        run_fail(c->r, "recount: patient %s has %llu studies, its row says %llu", id,
                 (unsigned long long)counted, (unsigned long long)p->studies);
    kv_rows_free(rows);
    mem_free(p);
}

static void row_study(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    struct catalog_study *s = mem_zalloc(sizeof(*s));
    struct catalog_uids uids;
    struct catalog_key k;
    struct kv_slice other;
    size_t len;

    if (catalog_study_decode(value, s) < 0 ||
        catalog_uids_split((struct kv_slice){(const char *)key.data + 1, key.len - 1}, 1, &uids) <
            0)
        run_fail(c->r, "recount: a study's row is broken");
    for (const char *id = catalog_patient_id(&s->attrs); (id = catalog_id_next(id, &len));
         id += len) {
        catalog_id_key(&k, id, len, uids.part[0]);
        mem_free(demand(c, KV_INDEX, &k, "a study's row in the patients' index", &other));
    }
    if (catalog_patient_key(&k, &s->attrs))
        mem_free(demand(c, KV_CATALOG, &k, "a study's patient", &other));
    mem_free(s);
}

/* Is the study under this key one with such a Patient ID? */
static void row_indexed(struct recount *c, struct kv_slice key)
{
    const char *nul = memrchr(key.data, 0, key.len);
    bool found = false;
    struct catalog_key k;
    size_t len;
    void *bytes;
    struct catalog_study *s = indexed_study(c, key, &bytes);

    for (const char *id = catalog_patient_id(&s->attrs); (id = catalog_id_next(id, &len));
         id += len) {
        catalog_id_key(&k, id, len, NULL);
        found |=
            same_key(&k, (struct kv_slice){key.data, (size_t)(nul + 1 - (const char *)key.data)});
    }
    if (!found)
        run_fail(c->r, "recount: the index finds a study under an ID that is not its");
    mem_free(s);
    mem_free(bytes);
}

static void row_catalog(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    switch (*(const char *)key.data) {
    case 'I':
        c->instances++;
        break;
    case 'T':
        row_study(c, key, value);
        break;
    case 'P':
        row_patient(c, key, value);
        break;
    case 'S':
        break;
    default:
        run_fail(c->r, "recount: an unknown row in the catalogue");
    }
}

static void row_index(struct recount *c, struct kv_slice key, struct kv_slice value)
{
    (void)value;
    c->homes += *(const char *)key.data == 'U';
    if (*(const char *)key.data == 'P')
        row_indexed(c, key);
}

/* ---- Sums ---- */

static void sum_chunks(struct recount *c)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&c->chunks, NULL); it; it = next) {
        struct count_chunk *ch = HMAP_ENTRY(it, struct count_chunk, node);

        next = hmap_walk(&c->chunks, it);
        if (ch->refs != ch->row.refs)
            run_fail(c->r, "recount: chunk %llu has %llu references, its row says %llu",
                     (unsigned long long)ch->row.id, (unsigned long long)ch->refs,
                     (unsigned long long)ch->row.refs);
        mem_free(ch);
    }
    hmap_free(&c->chunks);
}

static void sum_segments(struct recount *c)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&c->segments, NULL); it; it = next) {
        struct count_segment *s = HMAP_ENTRY(it, struct count_segment, node);

        next = hmap_walk(&c->segments, it);
        if (s->live != s->live_counted || s->chunks != s->chunks_counted)
            run_fail(c->r, "recount: segment %llu has %llu chunks, its row says %llu",
                     (unsigned long long)s->id, (unsigned long long)s->chunks_counted,
                     (unsigned long long)s->chunks);
        mem_free(s);
    }
    hmap_free(&c->segments);
}

static void sum_maps(struct recount *c)
{
    struct hmap_node *it, *next;

    for (it = hmap_walk(&c->maps, NULL); it; it = hmap_walk(&c->maps, it)) {
        struct count_map *m = HMAP_ENTRY(it, struct count_map, node);
        uint64_t steps = 0;

        for (uint64_t up = m->parent; up; steps++) {
            const struct count_map *parent = find(&c->maps, up);

            if (!parent || steps > c->maps.count)
                run_fail(c->r, "recount: the parents of map %llu do not end well",
                         (unsigned long long)m->id);
            up = parent->parent;
        }
        if (m->mapped != m->mapped_counted || m->holes != m->holes_counted)
            run_fail(c->r,
                     "recount: map %llu has %llu blocks and %llu holes, its row says %llu "
                     "and %llu",
                     (unsigned long long)m->id, (unsigned long long)m->mapped_counted,
                     (unsigned long long)m->holes_counted, (unsigned long long)m->mapped,
                     (unsigned long long)m->holes);
    }
    for (it = hmap_walk(&c->maps, NULL); it; it = next) {
        next = hmap_walk(&c->maps, it);
        mem_free(HMAP_ENTRY(it, struct count_map, node));
    }
    hmap_free(&c->maps);
}

/* The chunk store's own totals. */
static void check_totals(struct recount *c)
{
    static const struct kv_slice name = {"chunks", 6};
    uint8_t *value;
    size_t len;
    int rc = kv_get(c->r->kv, KV_META, name, (void **)&value, &len);

    if (rc == ERR_NOENT && c->chunks.count == 0)
        return;
    if (rc < 0 || len < 40)
        run_fail(c->r, "recount: the totals of chunks: %s", err_name(rc));
    if (codec_get_le64(value + 8) != c->chunks.count || codec_get_le64(value + 16) != c->raw ||
        codec_get_le64(value + 24) != c->stored || codec_get_le64(value + 32) != c->referenced)
        run_fail(c->r, "recount: the totals of chunks are not their sums");
    mem_free(value);
}

void recount_all(struct run *r)
{
    struct recount c = {.r = r};

    hmap_init(&c.chunks);
    hmap_init(&c.segments);
    hmap_init(&c.maps);
    walk(&c, KV_SEGMENT, row_segment);
    walk(&c, KV_CHUNK, row_chunk);
    walk(&c, KV_VOLUME, row_map);
    walk(&c, KV_VOLUME, row_volume);
    walk(&c, KV_MAP, row_leaf);
    walk(&c, KV_RECIPE, row_recipe);
    walk(&c, KV_FPRINT, row_fprint);
    walk(&c, KV_CATALOG, row_catalog);
    walk(&c, KV_INDEX, row_index);
    if (c.instances != c.recipes || c.instances != c.homes)
        run_fail(r, "recount: %llu instances, %llu recipes, %llu homes",
                 (unsigned long long)c.instances, (unsigned long long)c.recipes,
                 (unsigned long long)c.homes);
    check_totals(&c);
    sum_chunks(&c);
    sum_segments(&c);
    sum_maps(&c);
}

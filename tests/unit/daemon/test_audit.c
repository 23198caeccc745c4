/* daemon/audit*: a store that the engine made has no findings; every kind of damage to a row is
 * found, told in the right words, mended where that is promised and clean afterwards, and what
 * cannot be mended is left as it is. On drives: damage is blamed on the drive that has it, and what
 * is lost is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/audit.h"
#include "daemon/volume_row.h"
#include "dedup/chunk_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "tests/unit/daemon/partition_case.h"

#define EXPLICIT    "1.2.840.10008.1.2.1"
#define CT_CLASS    "1.2.840.10008.5.1.4.1.1.2"
#define VOLUME_SIZE (512u << 10)

static struct partition_case pc;

/* ---- A store with a volume and three instances of two patients ---- */

static void put_text(struct strbuf *s, uint16_t group, uint16_t element, const char *vr,
                     const char *text)
{
    size_t n = strlen(text);
    uint8_t b[8];

    codec_put_le16(b, group);
    codec_put_le16(b + 2, element);
    memcpy(b + 4, vr, 2);
    codec_put_le16(b + 6, (uint16_t)(n + n % 2));
    strbuf_add(s, b, 8);
    strbuf_adds(s, text);
    if (n % 2)
        strbuf_addc(s, strcmp(vr, "UI") ? ' ' : 0);
}

static void store_instance(const char *study, const char *series, const char *uid, const char *id)
{
    static const struct object_put_info info = {0};
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    struct object_put_result r;
    struct object_put *p;

    assert_int_equal(dcm_head_make(CT_CLASS, uid, EXPLICIT, "SENDER", &s), 0);
    put_text(&s, 0x0008, 0x0016, "UI", CT_CLASS);
    put_text(&s, 0x0008, 0x0018, "UI", uid);
    put_text(&s, 0x0008, 0x0060, "CS", "CT");
    put_text(&s, 0x0010, 0x0010, "PN", "Meyer^Anna");
    put_text(&s, 0x0010, 0x0020, "LO", id);
    put_text(&s, 0x0020, 0x000d, "UI", study);
    put_text(&s, 0x0020, 0x000e, "UI", series);
    assert_int_equal(object_put_begin(pc.os, &info, &p), 0);
    assert_int_equal(object_put_append(p, s.data, s.len), 0);
    assert_int_equal(object_put_commit(p, &r), 0);
}

static void volume_bytes(bool write)
{
    uint8_t *want = mem_alloc(VOLUME_SIZE), *got = mem_alloc(VOLUME_SIZE);
    struct block_volume *v;

    sim_case_bytes(7, want, VOLUME_SIZE);
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    if (write) {
        assert_int_equal(block_write(v, 0, want, VOLUME_SIZE, 0), 0);
    } else {
        assert_int_equal(block_read(v, 0, got, VOLUME_SIZE), 0);
        assert_memory_equal(got, want, VOLUME_SIZE);
    }
    block_close(v);
    mem_free(want);
    mem_free(got);
}

static void fill_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_create(pc.bs, "v", 4u << 20, BLOCK_EVERY_WRITE), 0);
    volume_bytes(true);
    store_instance("1.1", "1.1.1", "1.1.1.1", "P1");
    store_instance("1.1", "1.1.1", "1.1.1.2", "P1");
    store_instance("1.2", "1.2.1", "1.2.1.1", "P2");
    assert_int_equal(partition_case_close(&pc), 0);
}

/* And a snapshot of it, "v@s", with a clone; two blocks of v are holes and one is another. */
static void fill_snapshots_main(void *arg)
{
    static const char *const name = "v";
    uint8_t block[4096];
    struct block_volume *v;

    fill_main(arg);
    partition_case_open(&pc);
    assert_int_equal(block_snapshot(pc.bs, &name, 1, "s"), 0);
    assert_int_equal(block_clone(pc.bs, "v", "s", "c"), 0);
    sim_case_bytes(8, block, sizeof(block));
    assert_int_equal(block_open(pc.bs, "v", &v), 0);
    assert_int_equal(block_write(v, 0, block, sizeof(block), 0), 0);
    assert_int_equal(block_zero(v, 65536, 8192, 0), 0);
    block_close(v);
    assert_int_equal(partition_case_close(&pc), 0);
}

/* ---- Rows ---- */

static struct kv *kv;

/* The first row whose key begins with `prefix` (a NUL prefix: any). */
static struct kv_rows *row_of(enum kv_table t, const char *prefix)
{
    size_t n = strlen(prefix);
    struct kv_rows *rows;

    assert_int_equal(kv_scan(kv, t, (struct kv_slice){prefix, n ? n : 1}, (struct kv_slice){"", 0},
                             1, 1u << 20, 0, &rows),
                     0);
    assert_int_equal(rows->count, 1);
    assert_memory_equal(rows->rows[0].key.data, prefix, n);
    return rows;
}

static void put(enum kv_table t, struct kv_slice key, struct kv_slice value)
{
    struct kv_batch *b = kv_batch_new();

    if (value.data)
        kv_batch_put(b, t, key, value);
    else
        kv_batch_delete(b, t, key);
    assert_int_equal(kv_write(kv, b), 0);
    kv_batch_free(b);
}

static void drop(enum kv_table t, const char *prefix)
{
    struct kv_rows *rows = row_of(t, prefix);

    put(t, rows->rows[0].key, (struct kv_slice){NULL, 0});
    kv_rows_free(rows);
}

/* Changes a 64-bit field of a row. */
static void poke(enum kv_table t, const char *prefix, size_t at, uint64_t value)
{
    struct kv_rows *rows = row_of(t, prefix);
    uint8_t *copy = mem_memdup(rows->rows[0].value.data, rows->rows[0].value.len);

    assert_true(at + 8 <= rows->rows[0].value.len);
    codec_put_le64(copy + at, value);
    put(t, rows->rows[0].key, (struct kv_slice){copy, rows->rows[0].value.len});
    mem_free(copy);
    kv_rows_free(rows);
}

static void cut(enum kv_table t, const char *prefix)
{
    struct kv_rows *rows = row_of(t, prefix);

    put(t, rows->rows[0].key, (struct kv_slice){rows->rows[0].value.data, 5});
    kv_rows_free(rows);
}

/* The same row under another number; `inner` is where the value says it too (0: nowhere). */
static void twin(enum kv_table t, uint64_t id, size_t inner)
{
    struct kv_rows *rows = row_of(t, "");
    uint8_t *copy = mem_memdup(rows->rows[0].value.data, rows->rows[0].value.len), key[16];
    size_t n = rows->rows[0].key.len;

    assert_true(n <= sizeof(key));
    memcpy(key, rows->rows[0].key.data, n);
    codec_put_be64(key, id);
    if (inner)
        codec_put_le64(copy + inner, id);
    put(t, (struct kv_slice){key, n}, (struct kv_slice){copy, rows->rows[0].value.len});
    mem_free(copy);
    kv_rows_free(rows);
}

/* ---- Damage ---- */

static void d_refs(void)
{
    poke(KV_CHUNK, "", 36, 77);
}
static void d_orphan(void)
{
    twin(KV_CHUNK, 999, 0);
}
static void d_chunk_gone(void)
{
    drop(KV_CHUNK, "");
}
static void d_chunk_cut(void)
{
    cut(KV_CHUNK, "");
}
static void d_chunk_place(void)
{
    poke(KV_CHUNK, "", 4, 4711);
}
static void d_fprint(void)
{
    put(KV_FPRINT, (struct kv_slice){"12345678", 8}, (struct kv_slice){"\0\0\0\0\0\0\0\1", 8});
}
static void d_fprint_gone(void)
{
    put(KV_FPRINT, (struct kv_slice){"12345678", 8}, (struct kv_slice){"\1\0\0\0\0\0\0\1", 8});
}
static void d_segment_count(void)
{
    poke(KV_SEGMENT, "", 14, 5000);
}
static void d_segment_end(void)
{
    struct kv_rows *rows = row_of(KV_SEGMENT, "");
    uint8_t *copy = mem_memdup(rows->rows[0].value.data, rows->rows[0].value.len);

    codec_put_le32(copy + 2, 1);
    put(KV_SEGMENT, rows->rows[0].key, (struct kv_slice){copy, rows->rows[0].value.len});
    mem_free(copy);
    kv_rows_free(rows);
}
static void d_segment_slot(void)
{
    twin(KV_SEGMENT, 999, 22);
}
static void d_segment_cut(void)
{
    cut(KV_SEGMENT, "");
}

/* The key of the map's row: of the volume's map, or the one that it lies upon. */
static void map_key(bool parent, uint8_t key[VOLUME_MAP_KEY])
{
    struct kv_rows *rows = row_of(KV_VOLUME, "");
    struct volume_row v;
    struct volume_map_row m;
    void *value;
    size_t len;

    assert_int_equal(volume_row_decode(rows->rows[0].key, rows->rows[0].value, &v), 0);
    assert_string_equal(v.info.name, "v");
    kv_rows_free(rows);
    volume_map_key(v.map, key);
    if (!parent)
        return;
    assert_int_equal(kv_get(kv, KV_VOLUME, (struct kv_slice){key, VOLUME_MAP_KEY}, &value, &len),
                     0);
    assert_int_equal(volume_map_row_decode((struct kv_slice){key, VOLUME_MAP_KEY},
                                           (struct kv_slice){value, len}, &m),
                     0);
    mem_free(value);
    volume_map_key(m.parent, key);
}

/* Changes a number in the map's row. */
static void map_poke(bool parent, size_t at, uint64_t number)
{
    uint8_t key[VOLUME_MAP_KEY];
    void *value;
    size_t len;

    map_key(parent, key);
    assert_int_equal(kv_get(kv, KV_VOLUME, (struct kv_slice){key, sizeof(key)}, &value, &len), 0);
    assert_true(at + 8 <= len);
    codec_put_le64((uint8_t *)value + at, number);
    put(KV_VOLUME, (struct kv_slice){key, sizeof(key)}, (struct kv_slice){value, len});
    mem_free(value);
}

static void d_volume_count(void)
{
    map_poke(false, 33, 7);
}
static void d_volume_cut(void)
{
    cut(KV_VOLUME, "");
}
static void d_map_row_cut(void)
{
    uint8_t key[VOLUME_MAP_KEY];

    map_key(false, key);
    put(KV_VOLUME, (struct kv_slice){key, sizeof(key)}, (struct kv_slice){"short", 5});
}
static void d_map_row_gone(void)
{
    uint8_t key[VOLUME_MAP_KEY];

    map_key(false, key);
    put(KV_VOLUME, (struct kv_slice){key, sizeof(key)}, (struct kv_slice){NULL, 0});
}
static void d_parent_gone(void)
{
    uint8_t key[VOLUME_MAP_KEY];

    map_key(true, key);
    put(KV_VOLUME, (struct kv_slice){key, sizeof(key)}, (struct kv_slice){NULL, 0});
}
static void d_parent_strange(void)
{
    map_poke(false, 1, 4711);
}
static void d_parent_self(void)
{
    uint8_t key[VOLUME_MAP_KEY];

    map_key(false, key);
    map_poke(true, 1, codec_get_be64(key));
}
static void d_snapshot_count(void)
{
    map_poke(true, 33, 1);
}
static void d_hole_count(void)
{
    map_poke(false, 41, 3);
}
static void d_map_shared(void)
{
    uint8_t key[VOLUME_MAP_KEY];

    map_key(true, key);
    poke(KV_VOLUME, "", 20, codec_get_be64(key));
}
static void d_volume_gone(void)
{
    drop(KV_VOLUME, "");
}
/* As a version without snapshots left it: the map has no row, its volume's row tells of it. */
static void old_row(uint64_t mapped, const char *name, bool deleting)
{
    struct kv_rows *rows = row_of(KV_VOLUME, "");
    uint8_t row[29] = {1, deleting, 0, 0};

    codec_put_le64(row + 4, 4u << 20);
    codec_put_le64(row + 20, mapped);
    row[28] = (uint8_t)*name;
    d_map_row_gone();
    put(KV_VOLUME, rows->rows[0].key, (struct kv_slice){row, sizeof(row)});
    kv_rows_free(rows);
}
static void d_old_count(void)
{
    old_row(4096, "v", false);
}
static void d_old_deleting(void)
{
    old_row(4096, "v", true);
}
static void d_map_empty(void)
{
    static const uint8_t leaf[512];
    struct kv_rows *rows = row_of(KV_MAP, "");
    uint8_t key[16];

    memcpy(key, rows->rows[0].key.data, 16);
    codec_put_be64(key + 8, 15);
    put(KV_MAP, (struct kv_slice){key, 16}, (struct kv_slice){leaf, sizeof(leaf)});
    kv_rows_free(rows);
}
static void d_map_orphan(void)
{
    twin(KV_MAP, 4242, 0);
}
static void d_map_cut(void)
{
    cut(KV_MAP, "");
}
static void d_chunk_totals(void)
{
    poke(KV_META, "chunks", 8, 1);
}
static void d_next_id(void)
{
    poke(KV_META, "chunks", 0, 1);
}
static void d_catalog_totals(void)
{
    poke(KV_META, "studies", 8, 99);
}
static void d_home_gone(void)
{
    drop(KV_INDEX, "U1.1.1.1");
}
static void d_home_strange(void)
{
    put(KV_INDEX, (struct kv_slice){"U9.9", 4}, (struct kv_slice){"1.1\0001.1.1", 9});
}
static void d_recipe_gone(void)
{
    drop(KV_RECIPE, "R1.1.1.1");
}
static void d_recipe_cut(void)
{
    cut(KV_RECIPE, "R1.1.1.1");
}
static void d_instance_gone(void)
{
    drop(KV_CATALOG, "I1.1");
}
static void d_instance_cut(void)
{
    cut(KV_CATALOG, "I1.1");
}
static void d_instance_size(void)
{
    poke(KV_CATALOG, "I1.1", 1, 3);
}
static void d_series_count(void)
{
    poke(KV_CATALOG, "S1.1", 1, 9);
}
static void d_series_gone(void)
{
    drop(KV_CATALOG, "S1.1");
}
static void d_study_count(void)
{
    poke(KV_CATALOG, "T1.1", 9, 9);
}
static void d_study_series(void)
{
    poke(KV_CATALOG, "T1.1", 1, 9);
}
static void d_study_gone(void)
{
    drop(KV_CATALOG, "T1.1");
}
static void d_patient_count(void)
{
    poke(KV_CATALOG, "PP1", 1, 9);
}
static void d_patient_gone(void)
{
    drop(KV_CATALOG, "PP1");
}
static void d_patient_index(void)
{
    drop(KV_INDEX, "PP1");
}
static void d_patient_strange(void)
{
    put(KV_INDEX, (struct kv_slice){"PP1\0001.2", 7}, (struct kv_slice){"", 0});
}
static void d_unknown(void)
{
    put(KV_CATALOG, (struct kv_slice){"X", 1}, (struct kv_slice){"", 0});
}

static void d_scrub(void)
{
    put(KV_META, (struct kv_slice){"scrub", 5}, (struct kv_slice){"?", 1});
}

static void d_lost_stray(void)
{
    uint8_t key[CHUNK_LOST_KEY];

    chunk_lost_key(123456, key);
    put(KV_META, (struct kv_slice){key, sizeof(key)}, (struct kv_slice){"\1", 1});
}

/* What is done, what is to be said of it, and whether it is mended: all of it, so that nothing is
 * left to find. Where `whole`, the store works as before afterwards. */
static const struct damage {
    void (*apply)(void);
    const char *kind, *words;
    bool mended;
} damages[] = {
    {d_refs, "chunk-refs", "its row says 77", true},
    {d_scrub, "scrub-row", "is broken", true},
    {d_lost_stray, "lost-row", "is said to be lost", true},
    {d_orphan, "chunk-orphan", "chunk 999: nobody refers to it", true},
    {d_chunk_gone, "volume-data", "volume v: blocks ", false},
    {d_chunk_cut, "chunk-row", "is broken", false},
    {d_chunk_place, "chunk-place", "segment 4711, which is not there", false},
    {d_chunk_place, "volume-data", "cannot be read", false},
    {d_fprint, "fingerprint", "which has another", true},
    {d_fprint_gone, "fingerprint", "which is not there", true},
    {d_segment_count, "segment-count", "its row says 5000", true},
    {d_segment_end, "segment-end", "chunks lie behind its end", true},
    {d_segment_slot, "segment-slot", "is another segment's too", false},
    {d_segment_cut, "segment-row", "a segment's row is broken", false},
    {d_volume_count, "volume-count", "volume v: maps 128 blocks and 0 holes, its row says 7", true},
    {d_volume_cut, "volume-row", "a volume's row is broken", false},
    {d_map_row_cut, "volume-row", "a volume map's row is broken", false},
    {d_map_row_gone, "volume-map", "volume v: its map ", false},
    {d_map_row_gone, "map-orphan", "is not there, and a part of it is: 64 blocks from 64", false},
    {d_parent_strange, "volume-map", "lies upon map 4711, which is not there", false},
    {d_old_count, "volume-count", "volume v: maps 128 blocks and 0 holes, its row says 1", true},
    {d_map_empty, "map-empty", "volume v: an empty part", true},
    {d_map_orphan, "map-orphan", "map 4242 is not there, and a part of it is", false},
    {d_map_cut, "map-row", "volume v: a part of its map is broken", false},
    {d_map_cut, "chunk-refs", "left, as rows that may refer to it are broken", false},
    {d_chunk_totals, "chunk-totals", "the totals say 1 of", true},
    {d_next_id, "chunk-totals", "the totals say", true},
    {d_catalog_totals, "catalog-totals", "2 studies, 3 instances", true},
    {d_home_gone, "instance-index", "instance 1.1.1.1: the index does not lead to it", true},
    {d_home_strange, "instance-index", "instance 9.9: in the index, and not there", true},
    {d_recipe_gone, "instance-data", "instance 1.1.1.1: it is lost", false},
    {d_recipe_cut, "recipe-row", "instance 1.1.1.1: its recipe is broken", false},
    {d_instance_gone, "recipe-orphan", "instance 1.1.1.1: has a recipe", false},
    {d_instance_gone, "series-count", "left, as others may be missing", false},
    {d_instance_cut, "instance-row", "an instance's row is broken", false},
    {d_instance_size, "instance-size", "its row says 3", false},
    {d_series_count, "series-count", "series 1.1.1: 2 instances", true},
    {d_series_gone, "series-missing", "series 1.1.1 is not there", false},
    {d_study_count, "study-count", "study 1.1: 2 instances", true},
    {d_study_series, "study-count", "study 1.1: 1 series, its row says 9", true},
    {d_study_gone, "study-missing", "study 1.1 is not there", false},
    {d_patient_count, "patient-count", "patient P1: 1 studies, its row says 9", true},
    {d_patient_gone, "patient-missing", "study 1.1: its patient is not there", true},
    {d_patient_index, "patient-index", "study 1.1: the patients' index does not lead", true},
    {d_patient_strange, "patient-index", "has another Patient ID", true},
    {d_unknown, "catalog-row", "an unknown row", false},
};

/* The same in a store with a snapshot, another volume made of it, and holes upon it. */
static const struct damage snapshot_damages[] = {
    {d_chunk_gone, "volume-data", "volume v@s (and what shares it: ", false},
    {d_snapshot_count, "volume-count", "maps 128 blocks and 0 holes, its row says 1 and 0", true},
    {d_hole_count, "volume-count", "volume v: maps 1 blocks and 2 holes, its row says 1 and 3",
     true},
    {d_map_row_cut, "volume-row", "a volume map's row is broken", false},
    {d_map_row_cut, "volume-map", "volume v: its map ", false},
    {d_parent_gone, "volume-map", "volume v@s: its map ", false},
    {d_parent_gone, "volume-map", "volume c: map ", false},
    {d_parent_self, "volume-map", "lies upon itself", false},
    {d_map_shared, "volume-map", "too", false},
    {d_volume_gone, "volume-map", "volume v@s: a snapshot of volume ", false},
    {d_old_deleting, "volume-map", "volume v@s: a snapshot of volume ", false},
};

/* ---- Auditing ---- */

struct heard {
    const char *kind, *words; /* looked for; NULL: anything */
    enum audit_fate fate;
    bool found;
    unsigned count;
};

static void on_found(void *arg, const struct audit_finding *f)
{
    struct heard *h = arg;

    h->count++;
    if (h->kind && strcmp(f->kind, h->kind) == 0 && strstr(f->text, h->words)) {
        h->found = true;
        h->fate = f->fate;
    } else if (!h->kind) {
        print_message("%s: %s\n", f->kind, f->text);
    }
}

static struct audit_result audit(struct heard *h, bool repair, struct driveset *ds, bool deep)
{
    struct audit_params p = {
        .kv = kv, .repair = repair, .drives = ds, .deep = deep, .found = on_found, .arg = h};
    struct audit_result r;

    h->found = false;
    h->count = 0;
    assert_int_equal(audit_run(&p, &r), 0);
    assert_int_equal(r.found, h->count);
    return r;
}

static void clean_main(void *arg)
{
    struct heard h = {0};
    struct audit_result r;

    (void)arg;
    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    r = audit(&h, false, NULL, false);
    assert_int_equal(r.found, 0);
    assert_int_equal(r.volumes, 1);
    assert_int_equal(r.studies, 2);
    assert_int_equal(r.patients, 2);
    assert_int_equal(r.instances, 3);
    assert_true(r.chunks > 0 && r.segments > 0);
    assert_int_equal(kv_close(kv), 0);
}

static void damage_main(void *arg)
{
    const struct damage *d = arg;
    struct heard h = {.kind = d->kind, .words = d->words}, any = {0};

    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    d->apply();
    (void)audit(&h, false, NULL, false);
    if (!h.found || h.fate != (d->mended ? AUDIT_MENDABLE : AUDIT_LEFT)) {
        print_message("not found: %s: %s\n", d->kind, d->words);
        (void)audit(&any, false, NULL, false);
        fail();
    }
    (void)audit(&h, true, NULL, false); /* only now it is changed */
    assert_true(h.found);
    assert_int_equal(h.fate, d->mended ? AUDIT_MENDED : AUDIT_LEFT);
    (void)audit(&h, true, NULL, false); /* what was mended may have uncovered more */
    if (d->mended) {
        (void)audit(&any, false, NULL, false);
        assert_int_equal(any.count, 0);
    } else {
        assert_true(h.found);
    }
    assert_int_equal(kv_close(kv), 0);
}

/* The store works: it opens, what was there is there, and it can be emptied. */
static void works_main(void *arg)
{
    struct object_delete_result deleted;

    (void)arg;
    partition_case_open(&pc);
    volume_bytes(false);
    assert_int_equal(partition_case_status(&pc).studies.instances, 3);
    assert_int_equal(object_remove(pc.os, "1.1", NULL, NULL, &deleted), 0);
    assert_int_equal(object_remove(pc.os, "1.2", NULL, NULL, &deleted), 0);
    assert_int_equal(block_remove(pc.bs, "v"), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_clean(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, clean_main, NULL);
    partition_case_free(&pc);
}

static void test_damage(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        partition_case_init(&pc, 1);
        sim_case_run(&pc.c, fill_main, NULL);
        sim_case_run(&pc.c, damage_main, (void *)(uintptr_t)&damages[i]);
        if (damages[i].mended)
            sim_case_run(&pc.c, works_main, NULL);
        partition_case_free(&pc);
    }
}

static void clean_snapshots_main(void *arg)
{
    struct heard h = {0};

    (void)arg;
    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    assert_int_equal(audit(&h, false, NULL, false).volumes, 3);
    assert_int_equal(h.count, 0);
    assert_int_equal(kv_close(kv), 0);
}

static void snapshots_work_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(block_rollback(pc.bs, "v", "s"), 0);
    volume_bytes(false);
    assert_int_equal(partition_case_close(&pc), 0);
}

static void test_snapshots(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(snapshot_damages) / sizeof(snapshot_damages[0]); i++) {
        partition_case_init(&pc, 1);
        sim_case_run(&pc.c, fill_snapshots_main, NULL);
        sim_case_run(&pc.c, clean_snapshots_main, NULL);
        sim_case_run(&pc.c, damage_main, (void *)(uintptr_t)&snapshot_damages[i]);
        if (snapshot_damages[i].mended)
            sim_case_run(&pc.c, snapshots_work_main, NULL);
        partition_case_free(&pc);
    }
}

/* ---- Drives ---- */

/* Changes a byte of a stripe of the first segment, on one drive. */
static void spoil(struct driveset *ds, unsigned drive)
{
    struct buf *b = buf_new(FORMAT_UNIT);
    uint64_t off = drive_slot_off(ds, 0) + FORMAT_UNIT;

    assert_int_equal(env_pread(ds->drives[drive].file, b->data, FORMAT_UNIT, off), 0);
    b->data[100] ^= 0x40;
    assert_int_equal(env_pwrite(ds->drives[drive].file, b->data, FORMAT_UNIT, off, true), 0);
    buf_unref(b);
}

static void deep_main(void *arg)
{
    struct heard any = {0}, damage = {.kind = "drive-damage", .words = "readable by parity"},
                 lost = {.kind = "chunk-lost", .words = "its bytes are lost"},
                 named = {.kind = "volume-data", .words = "volume v: "};
    struct audit_result r;
    struct driveset *ds;

    (void)arg;
    assert_int_equal(kv_mem_open(pc.c.env, pc.image, &kv), 0);
    assert_int_equal(driveset_open(pc.c.env, store_case_paths(pc.drives), pc.drives, &ds), 0);
    r = audit(&any, false, ds, true);
    assert_int_equal(r.found, 0);
    assert_true(r.stripes > 0);
    spoil(ds, 1);
    r = audit(&damage, false, ds, true);
    assert_true(damage.found && damage.fate == AUDIT_LEFT);
    assert_true(r.drives[1].bad_columns > 0);
    assert_int_equal(r.drives[0].bad_columns + r.drives[2].bad_columns, 0);
    assert_int_equal(r.lost_chunks, 0);
    spoil(ds, 0);
    r = audit(&lost, false, ds, true);
    assert_true(lost.found && r.lost_chunks > 0);
    (void)audit(&named, true, ds, true);
    assert_true(named.found && named.fate == AUDIT_LEFT);
    driveset_close(ds);
    assert_int_equal(kv_close(kv), 0);
}

static void test_deep(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    sim_case_run(&pc.c, fill_main, NULL);
    sim_case_run(&pc.c, deep_main, NULL);
    partition_case_free(&pc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clean),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_snapshots),
        cmocka_unit_test(test_deep),
    };

    assert_int_equal(dcm_init(), 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* daemon: rows and records as bytes (catalogue, recipes), the overlay, the map's leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/catalog.h"
#include "daemon/leafmap.h"
#include "daemon/overlay.h"
#include "daemon/recipe.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/unit/dedup/lag_kv.h"
#include "tests/unit/store/sim_case.h"

/* ---- Catalogue ---- */

static const struct object_attr sample_attrs[] = {
    {0x00080020, "DA", 8, "20240102"},
    {0x00100010, "PN", 15, "Meyer^J\xc3\xb6rg^^^"},
    {0x00100020, "LO", 0, ""},
    {0x00400275, "SQ", 4, "[{}]"},
};
#define SAMPLE_ATTRS (sizeof(sample_attrs) / sizeof(sample_attrs[0]))

static void fill_attrs(struct catalog_attrs *a)
{
    a->count = SAMPLE_ATTRS;
    memcpy(a->attrs, sample_attrs, sizeof(sample_attrs));
}

static void check_attrs(const struct catalog_attrs *a)
{
    assert_int_equal(a->count, SAMPLE_ATTRS);
    for (size_t i = 0; i < SAMPLE_ATTRS; i++) {
        assert_int_equal(a->attrs[i].tag, sample_attrs[i].tag);
        assert_string_equal(a->attrs[i].vr, sample_attrs[i].vr);
        assert_int_equal(a->attrs[i].len, sample_attrs[i].len);
        assert_string_equal(a->attrs[i].value, sample_attrs[i].value);
    }
    assert_string_equal(catalog_attr_text(a, 0x00100010), sample_attrs[1].value);
    assert_string_equal(catalog_attr_text(a, 0x00100020), "");
    assert_null(catalog_attr_text(a, 0x00100030));
}

static struct kv_slice slice(const struct strbuf *s)
{
    return (struct kv_slice){s->data, s->len};
}

/* Every shorter form of the bytes, in an allocation of its own size, is refused; and whatever byte
 * is changed, decoding gives a row or an error. */
#define DAMAGE(out, type, decode)                                                  \
    do {                                                                           \
        struct type *row_ = calloc(1, sizeof(*row_));                              \
        for (size_t n_ = 0; n_ < (out).len; n_++) {                                \
            uint8_t *p_ = malloc(n_ + 1);                                          \
            memcpy(p_, (out).data, n_);                                            \
            p_[n_] = 0xff;                                                         \
            assert_int_equal(decode((struct kv_slice){p_, n_}, row_), ERR_FORMAT); \
            free(p_);                                                              \
        }                                                                          \
        for (size_t at_ = 0; at_ < (out).len; at_++)                               \
            for (unsigned bit_ = 0; bit_ < 8; bit_++) {                            \
                uint8_t *p_ = malloc((out).len);                                   \
                memcpy(p_, (out).data, (out).len);                                 \
                p_[at_] ^= (uint8_t)(1u << bit_);                                  \
                (void)decode((struct kv_slice){p_, (out).len}, row_);              \
                free(p_);                                                          \
            }                                                                      \
        free(row_);                                                                \
    } while (0)

static void test_study_row(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct catalog_study *s = calloc(1, sizeof(*s)), *got = calloc(1, sizeof(*got));

    (void)state;
    *s = (struct catalog_study){.series = 3,
                                .instances = 1ull << 40,
                                .bytes = UINT64_MAX,
                                .stored_ns = 5,
                                .modality_count = 2};
    strcpy(s->modalities[0].name, "CT");
    s->modalities[0].series = 2;
    memset(s->modalities[1].name, 'X', 16); /* as long as a CS can be */
    s->modalities[1].series = 1;
    fill_attrs(&s->attrs);
    catalog_study_encode(s, &out);
    assert_int_equal(catalog_study_decode(slice(&out), got), 0);
    assert_int_equal(got->series, 3);
    assert_int_equal(got->instances, 1ull << 40);
    assert_int_equal(got->bytes, UINT64_MAX);
    assert_int_equal(got->stored_ns, 5);
    assert_int_equal(got->modality_count, 2);
    assert_memory_equal(got->modalities, s->modalities, 2 * sizeof(s->modalities[0]));
    check_attrs(&got->attrs);
    DAMAGE(out, catalog_study, catalog_study_decode);
    free(s);
    free(got);
}

static void test_patient_row(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct catalog_patient *p = calloc(1, sizeof(*p)), *got = calloc(1, sizeof(*got));

    (void)state;
    p->studies = 1ull << 33;
    fill_attrs(&p->attrs);
    catalog_patient_encode(p, &out);
    assert_int_equal(catalog_patient_decode(slice(&out), got), 0);
    assert_int_equal(got->studies, 1ull << 33);
    check_attrs(&got->attrs);
    DAMAGE(out, catalog_patient, catalog_patient_decode);
    free(p);
    free(got);
}

static void test_series_row(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct catalog_series *s = calloc(1, sizeof(*s)), *got = calloc(1, sizeof(*got));

    (void)state;
    *s = (struct catalog_series){.instances = 7, .bytes = 8, .stored_ns = 9};
    fill_attrs(&s->attrs);
    catalog_series_encode(s, &out);
    assert_int_equal(catalog_series_decode(slice(&out), got), 0);
    assert_int_equal(got->instances, 7);
    assert_int_equal(got->bytes, 8);
    assert_int_equal(got->stored_ns, 9);
    check_attrs(&got->attrs);
    DAMAGE(out, catalog_series, catalog_series_decode);
    free(s);
    free(got);
}

static void test_instance_row(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct catalog_instance *s = calloc(1, sizeof(*s)), *got = calloc(1, sizeof(*got));

    (void)state;
    *s = (struct catalog_instance){.bytes = 70, .dataset_off = 300, .stored_ns = 9};
    sim_case_bytes(1, s->digest, sizeof(s->digest));
    memset(s->sop_class, '1', OBJECT_UID_MAX);
    strcpy(s->transfer_syntax, "1.2.840.10008.1.2");
    fill_attrs(&s->attrs);
    catalog_instance_encode(s, &out);
    assert_int_equal(catalog_instance_decode(slice(&out), got), 0);
    assert_int_equal(got->bytes, 70);
    assert_int_equal(got->dataset_off, 300);
    assert_memory_equal(got->digest, s->digest, sizeof(s->digest));
    assert_string_equal(got->sop_class, s->sop_class);
    assert_string_equal(got->transfer_syntax, s->transfer_syntax);
    check_attrs(&got->attrs);
    DAMAGE(out, catalog_instance, catalog_instance_decode);
    free(s);
    free(got);
}

/* The bounds of what a row may hold, on both sides of them. */
static void test_attr_bounds(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct catalog_attrs *got = calloc(1, sizeof(*got));
    struct object_attr *attrs = calloc(CATALOG_ATTRS_MAX, sizeof(*attrs));
    struct codec_reader r;
    uint8_t count[4];

    (void)state;
    for (unsigned i = 0; i < CATALOG_ATTRS_MAX; i++)
        attrs[i] = (struct object_attr){i, "LO", 1, "x"};
    catalog_attrs_encode(attrs, CATALOG_ATTRS_MAX, &out);
    r = codec_reader_on(out.data, out.len);
    assert_int_equal(catalog_attrs_decode(&r, got), 0);
    assert_int_equal(got->count, CATALOG_ATTRS_MAX);
    assert_int_equal(codec_left(&r), 0);
    codec_put_le32(count, CATALOG_ATTRS_MAX + 1);
    r = codec_reader_on(count, 4);
    assert_int_equal(catalog_attrs_decode(&r, got), ERR_FORMAT);
    codec_put_le32(count, UINT32_MAX);
    r = codec_reader_on(count, 4);
    assert_int_equal(catalog_attrs_decode(&r, got), ERR_FORMAT);
    strbuf_reset(&out);
    catalog_attrs_encode(attrs, 1, &out);
    out.data[out.len - 1] = 'y'; /* a value without its NUL would be read on and on */
    r = codec_reader_on(out.data, out.len);
    assert_int_equal(catalog_attrs_decode(&r, got), ERR_FORMAT);
    codec_put_le32(out.data + 10, UINT32_MAX);
    r = codec_reader_on(out.data, out.len);
    assert_int_equal(catalog_attrs_decode(&r, got), ERR_FORMAT);
    free(got);
    free(attrs);
}

static int key_order(char level, const char *a1, const char *a2, const char *a3, const char *b1,
                     const char *b2, const char *b3)
{
    struct catalog_key a, b;
    size_t n;
    int d;

    catalog_key_make(&a, level, a1, a2, a3);
    catalog_key_make(&b, level, b1, b2, b3);
    n = a.len < b.len ? a.len : b.len;
    d = memcmp(a.bytes, b.bytes, n);
    return d ? d : (a.len > b.len) - (a.len < b.len);
}

static void test_keys(void **state)
{
    char longest[OBJECT_UID_MAX + 1] = {0};
    struct catalog_key k, after;
    struct catalog_uids uids;

    (void)state;
    memset(longest, '9', OBJECT_UID_MAX);
    catalog_key_make(&k, 'I', longest, longest, longest);
    assert_int_equal(k.len, 1 + 3 * OBJECT_UID_MAX + 2);
    assert_int_equal(catalog_uids_split((struct kv_slice){k.bytes + 1, k.len - 1}, 3, &uids), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_string_equal(uids.part[i], longest);
    assert_int_equal(catalog_uids_split((struct kv_slice){k.bytes + 1, k.len - 1}, 2, &uids),
                     ERR_FORMAT);
    assert_int_equal(catalog_uids_split((struct kv_slice){"1.2", 3}, 2, &uids), ERR_FORMAT);
    assert_int_equal(catalog_uids_split((struct kv_slice){"1.2\0", 4}, 2, &uids), 0);
    assert_string_equal(uids.part[1], "");
    assert_int_equal(catalog_uids_split((struct kv_slice){"", 0}, 1, &uids), 0);
    {
        char *big = calloc(1, sizeof(uids.store) + 1);

        memset(big, '1', sizeof(uids.store));
        assert_int_equal(catalog_uids_split((struct kv_slice){big, sizeof(uids.store)}, 1, &uids),
                         ERR_FORMAT);
        free(big);
    }
    /* A study's series come together, and before those of "1.20". */
    assert_true(key_order('S', "1.2", "9", NULL, "1.20", "1", NULL) < 0);
    assert_true(key_order('I', "1.2", "3", "9", "1.2", "30", "1") < 0);
    catalog_key_make(&k, 'S', "1.2", NULL, NULL);
    after = k;
    catalog_key_after(&after);
    assert_int_equal(after.len, k.len);
    assert_true(memcmp(after.bytes, k.bytes, k.len) > 0);
    after = (struct catalog_key){.bytes = {'T', 0xff, 0xff}, .len = 3};
    catalog_key_after(&after);
    assert_int_equal(after.len, 1);
    assert_int_equal(after.bytes[0], 'U');
}

static bool patient_of(struct catalog_key *k, const char *vr, const char *id, const char *issuer)
{
    struct catalog_attrs *a = calloc(1, sizeof(*a));
    bool known;

    if (id)
        a->attrs[a->count++] = (struct object_attr){0x00100020, "", (uint32_t)strlen(id), id};
    if (id)
        memcpy(a->attrs[0].vr, vr, 3);
    if (issuer)
        a->attrs[a->count++] =
            (struct object_attr){0x00100021, "LO", (uint32_t)strlen(issuer), issuer};
    known = catalog_patient_key(k, a);
    free(a);
    return known;
}

static void test_patient_keys(void **state)
{
    char longest[CATALOG_ID_MAX + 2] = {0};
    struct catalog_key k, other;
    const char *id = "\\A\\\\B C\\";
    size_t n;

    (void)state;
    assert_true(patient_of(&k, "LO", "A b", NULL));
    assert_int_equal(k.len, 5);
    assert_memory_equal(k.bytes, "PA b\0", 5);
    assert_true(patient_of(&other, "LO", "A b", ""));
    assert_true(k.len == other.len && memcmp(k.bytes, other.bytes, k.len) == 0);
    assert_true(patient_of(&k, "LO", "A b", "X\\Y"));
    assert_int_equal(k.len, 8);
    assert_memory_equal(k.bytes, "PA b\0X\\Y", 8);
    assert_false(patient_of(&k, "LO", NULL, "X"));
    assert_false(patient_of(&k, "LO", "", "X"));
    assert_false(patient_of(&k, "LO", "A\\B", NULL));
    assert_false(patient_of(&k, "SQ", "A", NULL));
    memset(longest, 'x', CATALOG_ID_MAX);
    assert_true(patient_of(&k, "LO", longest, longest));
    assert_true(k.len < sizeof(k.bytes)); /* and a NUL to go on behind it */
    longest[CATALOG_ID_MAX] = 'x';
    assert_false(patient_of(&other, "LO", longest, NULL));
    assert_true(patient_of(&other, "LO", "A", longest)); /* an issuer is cut */
    catalog_id_key(&k, longest, CATALOG_ID_MAX + 1, "1.2");
    assert_int_equal(k.len, 1 + CATALOG_ID_MAX + 1 + 3);
    assert_memory_equal(k.bytes + k.len - 4,
                        "\0"
                        "1.2",
                        4);
    id = catalog_id_next(id, &n);
    assert_true(n == 1 && *id == 'A');
    id = catalog_id_next(id + n, &n);
    assert_true(n == 3 && strncmp(id, "B C", 3) == 0);
    assert_null(catalog_id_next(id + n, &n));
    assert_null(catalog_id_next("", &n));
}

/* ---- Recipes ---- */

static void test_recipe(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct recipe_chunk chunks[] = {{7, 1000}, {UINT64_MAX, 50}};
    struct recipe_piece pieces[] = {{0, 0, 600, 0}, {1, 0, 50, 0}, {0, 600, 400, 0}, {1, 49, 1, 0}};
    struct recipe r = {chunks, pieces, 2, 4, 1051}, got;
    static const uint64_t at[] = {0, 600, 650, 1050};

    (void)state;
    recipe_encode(&r, &out);
    assert_int_equal(recipe_decode(out.data, out.len, &got), 0);
    assert_int_equal(got.chunk_count, 2);
    assert_int_equal(got.piece_count, 4);
    assert_int_equal(got.size, 1051);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(got.chunks[i].id, chunks[i].id);
        assert_int_equal(got.chunks[i].raw, chunks[i].raw);
    }
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(got.pieces[i].chunk, pieces[i].chunk);
        assert_int_equal(got.pieces[i].off, pieces[i].off);
        assert_int_equal(got.pieces[i].len, pieces[i].len);
        assert_int_equal(got.pieces[i].at, at[i]);
    }
    for (uint64_t byte = 0; byte < 1051; byte++) {
        uint32_t i = recipe_find(&got, byte);

        assert_true(got.pieces[i].at <= byte && byte < got.pieces[i].at + got.pieces[i].len);
    }
    recipe_free(&got);
    recipe_free(&got); /* twice is fine */
}

static void refuse_recipe(struct recipe_chunk ch, struct recipe_piece pc)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct recipe r = {&ch, &pc, 1, 1, 0}, got;

    recipe_encode(&r, &out);
    assert_int_equal(recipe_decode(out.data, out.len, &got), ERR_FORMAT);
}

static void test_bad_recipes(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    struct recipe_chunk ch = {7, 1000};
    struct recipe_piece pc = {0, 0, 1000, 0};
    struct recipe r = {&ch, &pc, 1, 1, 0}, got;

    (void)state;
    refuse_recipe(ch, (struct recipe_piece){1, 0, 10, 0});   /* no such chunk */
    refuse_recipe(ch, (struct recipe_piece){0, 1, 1000, 0}); /* past its end */
    refuse_recipe(ch, (struct recipe_piece){0, 1001, 1, 0});
    refuse_recipe(ch, (struct recipe_piece){0, UINT32_MAX, 2, 0});
    refuse_recipe(ch, (struct recipe_piece){0, 1, UINT32_MAX, 0});
    refuse_recipe(ch, (struct recipe_piece){0, 5, 0, 0}); /* empty */
    recipe_encode(&r, &out);
    for (size_t n = 0; n < out.len; n++)
        assert_int_equal(recipe_decode(out.data, n, &got), ERR_FORMAT);
    strbuf_addc(&out, 0);
    assert_int_equal(recipe_decode(out.data, out.len, &got), ERR_FORMAT);
    out.data[0] = 9;
    assert_int_equal(recipe_decode(out.data, out.len - 1, &got), ERR_FORMAT);
    out.data[0] = 1;
    memset(out.data + 1, 0xff, 8); /* counts that would be 96 GiB */
    assert_int_equal(recipe_decode(out.data, out.len - 1, &got), ERR_FORMAT);
}

/* ---- Overlay ---- */

static const uint8_t *block_of(uint8_t value)
{
    static uint8_t bytes[BLOCK_SIZE];

    memset(bytes, value, sizeof(bytes));
    return bytes;
}

static int overlay_value(const struct overlay *o, uint64_t volume, uint64_t block)
{
    const struct overlay_entry *e = overlay_find(o, volume, block);

    return e ? e->data->bytes[BLOCK_SIZE - 1] : -1;
}

static void test_overlay(void **state)
{
    struct overlay o;
    struct overlay_data *held;

    (void)state;
    overlay_init(&o);
    assert_int_equal(overlay_oldest(&o), UINT64_MAX);
    overlay_put(&o, 1, 5, 10, block_of(1), NULL);
    overlay_put(&o, 1, 6, 11, block_of(2), NULL);
    overlay_put(&o, 2, 5, 12, block_of(3), NULL);
    assert_int_equal(o.count, 3);
    assert_int_equal(overlay_oldest(&o), 10);
    held = overlay_data_ref(overlay_find(&o, 1, 5)->data);
    overlay_put(&o, 1, 5, 13, block_of(4),
                NULL); /* newer: the old one is nobody's oldest any more */
    assert_int_equal(o.count, 3);
    assert_int_equal(overlay_oldest(&o), 11);
    assert_int_equal(overlay_find(&o, 1, 5)->lsn, 13);
    assert_int_equal(overlay_value(&o, 1, 5), 4);
    assert_int_equal(held->bytes[0], 1); /* a reader keeps what it has */
    overlay_data_unref(held);
    assert_int_equal(overlay_value(&o, 2, 5), 3);
    assert_int_equal(overlay_value(&o, 2, 6), -1);
    assert_int_equal(overlay_value(&o, 3, 5), -1);
    overlay_remove(&o, overlay_find(&o, 1, 6));
    assert_int_equal(overlay_oldest(&o), 12);
    overlay_free(&o);
}

static void test_overlay_ranges(void **state)
{
    (void)state;
    /* A range shorter than the overlay is looked up block by block, a longer one walks the overlay.
     */
    for (unsigned longer = 0; longer < 2; longer++) {
        struct overlay o;

        overlay_init(&o);
        for (uint64_t b = 0; b < 20; b++) {
            overlay_put(&o, 1, b, 100 + b, block_of(1), NULL);
            overlay_put(&o, 2, b, 100 + b, block_of(2), NULL);
        }
        overlay_remove_range(&o, 1, 5, longer ? 50 : 5);
        for (uint64_t b = 0; b < 20; b++) {
            assert_int_equal(overlay_value(&o, 1, b), b >= 5 && (longer || b < 10) ? -1 : 1);
            assert_int_equal(overlay_value(&o, 2, b), 2);
        }
        overlay_remove_range(&o, 2, 0, UINT64_MAX);
        assert_int_equal(o.count, longer ? 5 : 15);
        overlay_remove_range(&o, 1, UINT64_MAX - 3, 3);
        overlay_remove_range(&o, 1, 0, 0);
        assert_int_equal(o.count, longer ? 5 : 15);
        overlay_free(&o);
    }
}

/* ---- Leaves ---- */

#define LEAVES 40u

static struct sim_case c;
static struct {
    struct kv_mem_image *image;
    struct kv *kv;
    struct leafmap lm;
    uint64_t lag_ns;
    uint64_t want[LEAVES][4]; /* the entries of each leaf at the spots */
    unsigned busy;
} t;

static const unsigned spots[] = {0, 1, LEAF_BLOCKS / 2, LEAF_BLOCKS - 1};

static void leaves_open(size_t max)
{
    struct kv *kv;

    assert_int_equal(kv_mem_open(c.env, t.image, &kv), 0);
    t.kv = lag_kv_new(c.env, kv, &t.lag_ns);
    leafmap_init(&t.lm, t.kv, max);
}

static void leaves_close(void)
{
    leafmap_free(&t.lm);
    assert_int_equal(kv_close(t.kv), 0);
}

static void leaf_set(uint64_t index, unsigned spot, uint64_t entry)
{
    struct kv_batch *b = kv_batch_new();
    struct leaf *l;

    assert_int_equal(leafmap_get(&t.lm, 7, index, &l), 0);
    t.want[index][spot] = entry;
    leafmap_set(&t.lm, l, spots[spot], entry);
    leafmap_flush(&t.lm, l, b);
    leafmap_put(&t.lm, l);
    assert_int_equal(kv_write(t.kv, b), 0);
    leafmap_written(&t.lm);
    kv_batch_free(b);
}

/* What the leaf holds now is what was set last, whoever has waited for what meanwhile. */
static void leaf_check(uint64_t index)
{
    struct leaf *l;
    unsigned used = 0;

    assert_int_equal(leafmap_get(&t.lm, 7, index, &l), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(l->entries[spots[i]], t.want[index][i]);
        used += t.want[index][i] != 0;
    }
    assert_int_equal(l->used, used);
    leafmap_put(&t.lm, l);
}

static void leaves_main(void *arg)
{
    uint64_t index = 99, list[3];
    struct leaf *l;
    struct kv_rows *rows;
    size_t n;

    (void)arg;
    leaves_open(2);
    assert_int_equal(leafmap_next(&t.lm, 7, 0, &index), ERR_NOENT);
    leaf_check(3); /* all holes */
    leaf_set(3, 0, LEAF_ENTRY(5, 1));
    leaf_set(3, 3, LEAF_ENTRY(6, 255));
    leaf_set(9, 2, LEAF_ENTRY(UINT64_MAX >> 8, 0));
    assert_int_equal(LEAF_CHUNK(t.want[9][2]), UINT64_MAX >> 8);
    assert_int_equal(LEAF_SUB(t.want[3][3]), 255);
    assert_int_equal(leafmap_next(&t.lm, 7, 0, &index), 0);
    assert_int_equal(index, 3);
    assert_int_equal(leafmap_next(&t.lm, 7, 4, &index), 0);
    assert_int_equal(index, 9);
    assert_int_equal(leafmap_next(&t.lm, 7, 10, &index), ERR_NOENT);
    for (size_t max = 1; max <= 3; max++) {
        assert_int_equal(leafmap_list(&t.lm, 7, 0, list, max, &n), 0);
        assert_int_equal(n, max < 2 ? max : 2);
        assert_true(list[0] == 3 && (n == 1 || list[1] == 9));
    }
    assert_int_equal(leafmap_next(&t.lm, 6, 0, &index), ERR_NOENT); /* another volume's */
    assert_int_equal(leafmap_next(&t.lm, 8, 0, &index), ERR_NOENT);
    for (uint64_t i = 20; i < 30; i++)
        leaf_check(i);
    assert_true(t.lm.count <= 2);
    assert_null(leafmap_peek(&t.lm, 7, 3));
    leaf_check(3);
    l = leafmap_peek(&t.lm, 7, 3);
    assert_non_null(l);
    for (uint64_t i = 20; i < 30; i++)
        leaf_check(i);
    assert_ptr_equal(leafmap_peek(&t.lm, 7, 3), l); /* a pin keeps it */
    leafmap_put(&t.lm, l);
    leafmap_put(&t.lm, l);
    leafmap_put(&t.lm, NULL);
    leaf_set(3, 0, 0);
    leaf_set(3, 3, 0); /* nothing left: the row goes */
    assert_int_equal(leafmap_next(&t.lm, 7, 0, &index), 0);
    assert_int_equal(index, 9);
    assert_int_equal(kv_scan(t.kv, KV_MAP, (struct kv_slice){"\0", 1}, (struct kv_slice){"", 0}, 9,
                             1u << 20, 0, &rows),
                     0);
    assert_int_equal(rows->count, 1);
    kv_rows_free(rows);
    leaves_close();
    leaves_open(2);
    leaf_check(3);
    leaf_check(9);
    leaves_close();
}

static int setup(void **state)
{
    (void)state;
    sim_case_init(&c, 1);
    memset(&t, 0, sizeof(t));
    t.image = kv_mem_image_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sim_case_free(&c);
    kv_mem_image_free(t.image);
    return 0;
}

static void test_leaves(void **state)
{
    (void)state;
    sim_case_run(&c, leaves_main, NULL);
}

/* One changes, several read, with a cache of two leaves and a slow store. */
static void leaf_reader(void *arg)
{
    (void)arg;
    while (t.busy)
        leaf_check(sim_random(c.sim, LEAVES));
}

static void leaf_race_main(void *arg)
{
    t.lag_ns = *(uint64_t *)arg;
    leaves_open(2);
    t.busy = 1;
    for (unsigned i = 0; i < 4; i++)
        fiber_spawn(c.env, "reader", leaf_reader, NULL);
    for (unsigned i = 0; i < 1500; i++)
        leaf_set(sim_random(c.sim, LEAVES), (unsigned)sim_random(c.sim, 4),
                 sim_random(c.sim, 3) ? LEAF_ENTRY(1 + i, 0) : 0);
    t.busy = 0;
    env_sleep(c.env, ENV_NS_PER_S);
    assert_true(t.lm.count <= 2);
    for (uint64_t i = 0; i < LEAVES; i++)
        leaf_check(i);
    leaves_close();
}

static void test_leaf_races(void **state)
{
    static const uint64_t lags[] = {0, 30000, 1000000};

    for (uint64_t i = 0; i < 6; i++) {
        uint64_t lag = lags[i % 3];

        teardown(state);
        setup(state);
        sim_case_free(&c);
        sim_case_init(&c, i + 1);
        sim_case_run(&c, leaf_race_main, &lag);
    }
}

/* A leaf is mapped before its row can be seen in the store: a walk must not pass it over. */
static void next_fiber(void *arg)
{
    uint64_t index = 0, list[3];
    size_t n;

    (void)arg;
    env_sleep(c.env, 10 * ENV_NS_PER_MS);
    assert_int_equal(leafmap_next(&t.lm, 7, 0, &index), 0);
    assert_int_equal(index, 5);
    assert_int_equal(leafmap_next(&t.lm, 7, 6, &index), 0);
    assert_int_equal(index, 8);
    assert_int_equal(leafmap_list(&t.lm, 7, 0, list, 3, &n), 0);
    assert_true(n == 2 && list[0] == 5 && list[1] == 8);
    t.busy = 0;
}

static void next_main(void *arg)
{
    (void)arg;
    leaves_open(2);
    leaf_set(8, 0, LEAF_ENTRY(1, 0));
    t.busy = 1;
    t.lag_ns = ENV_NS_PER_S;
    fiber_spawn(c.env, "next", next_fiber, NULL);
    leaf_set(5, 0, LEAF_ENTRY(2, 0));
    assert_int_equal(t.busy, 0);
    leaves_close();
}

static void test_next_sees_unwritten(void **state)
{
    (void)state;
    sim_case_run(&c, next_main, NULL);
}

static void bad_leaf_main(void *arg)
{
    struct kv_batch *b = kv_batch_new();
    uint8_t key[16];
    struct leaf *l;

    (void)arg;
    leaves_open(2);
    codec_put_be64(key, 7);
    codec_put_be64(key + 8, 1);
    kv_batch_put(b, KV_MAP, (struct kv_slice){key, 16}, (struct kv_slice){"short", 5});
    assert_int_equal(kv_write(t.kv, b), 0);
    kv_batch_free(b);
    assert_int_equal(leafmap_get(&t.lm, 7, 1, &l), ERR_FORMAT);
    assert_int_equal(t.lm.count, 0);
    leaf_check(2);
    leaves_close();
}

static void test_bad_leaf(void **state)
{
    (void)state;
    sim_case_run(&c, bad_leaf_main, NULL);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_study_row),
        cmocka_unit_test(test_series_row),
        cmocka_unit_test(test_instance_row),
        cmocka_unit_test(test_attr_bounds),
        cmocka_unit_test(test_patient_row),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_patient_keys),
        cmocka_unit_test(test_recipe),
        cmocka_unit_test(test_bad_recipes),
        cmocka_unit_test(test_overlay),
        cmocka_unit_test(test_overlay_ranges),
        CASE(test_leaves),
        CASE(test_leaf_races),
        CASE(test_next_sees_unwritten),
        CASE(test_bad_leaf),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* daemon/study*: an instance comes out byte for byte as it went in, is in the catalogue when it was
 * acknowledged and not before, and what else may happen to it has a name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/partition_priv.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "lib/dicom/dcm.h"
#include "lib/rt/sync.h"
#include "tests/unit/daemon/partition_case.h"

#define EXPLICIT "1.2.840.10008.1.2.1"
#define CT_CLASS "1.2.840.10008.5.1.4.1.1.2"

static struct partition_case pc;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

static void close_ok(void)
{
    assert_int_equal(partition_case_close(&pc), 0);
}

/* ---- Instances ---- */

/* What a data set says; NULL leaves an attribute out. */
struct sample {
    const char *study, *series, *instance, *name, *modality, *sender;
    uint64_t pixels; /* seed of the frames */
    unsigned frames; /* of 200 x 300 samples of 16 bits */
    const char *id, *issuer;
};

static const struct sample usual = {"1.1",    "1.1.1", "1.1.1.1", "Meyer^Anna", "CT",
                                    "SENDER", 1,       2,         "P1",         NULL};

struct stream {
    uint8_t *p;
    size_t n;
};

static void put(struct stream *s, const void *p, size_t n)
{
    s->p = mem_realloc(s->p, s->n + n + 1);
    if (n)
        memcpy(s->p + s->n, p, n);
    s->n += n;
}

static void put_head(struct stream *s, uint32_t tag, const char *vr, size_t n)
{
    uint8_t b[8];

    codec_put_le16(b, (uint16_t)(tag >> 16));
    codec_put_le16(b + 2, (uint16_t)tag);
    memcpy(b + 4, vr, 2);
    codec_put_le16(b + 6, (uint16_t)n);
    put(s, b, 8);
}

static void put_text(struct stream *s, uint32_t tag, const char *vr, const char *text)
{
    size_t n;

    if (!text)
        return;
    n = strlen(text);
    put_head(s, tag, vr, n + n % 2);
    put(s, text, n);
    if (n % 2)
        put(s, strcmp(vr, "UI") ? " " : "", 1);
}

static void put_us(struct stream *s, uint32_t tag, uint16_t v)
{
    uint8_t b[2];

    codec_put_le16(b, v);
    put_head(s, tag, "US", 2);
    put(s, b, 2);
}

static void put_pixels(struct stream *s, uint64_t seed, unsigned frames)
{
    uint8_t len[4], *p = mem_alloc(120000 + 8);

    put_head(s, 0x7fe00010, "OW", 0);
    codec_put_le32(len, frames * 120000);
    put(s, len, 4);
    for (unsigned i = 0; i < frames; i++) {
        sim_case_bytes(seed + i, p, 120000);
        put(s, p, 120000);
    }
    mem_free(p);
}

static void put_dataset(struct stream *s, const struct sample *m)
{
    put_text(s, 0x00080016, "UI", CT_CLASS);
    put_text(s, 0x00080018, "UI", m->instance);
    put_text(s, 0x00080020, "DA", "20240101");
    put_text(s, 0x00080060, "CS", m->modality);
    put_text(s, 0x00100010, "PN", m->name);
    put_text(s, 0x00100020, "LO", m->id);
    put_text(s, 0x00100021, "LO", m->issuer);
    put_text(s, 0x0020000d, "UI", m->study);
    put_text(s, 0x0020000e, "UI", m->series);
    put_us(s, 0x00280002, 1);
    put_us(s, 0x00280010, 200);
    put_us(s, 0x00280011, 300);
    put_us(s, 0x00280100, 16);
    if (m->frames)
        put_pixels(s, m->pixels, m->frames);
}

static struct stream make(const struct sample *m)
{
    STRBUF_AUTO struct strbuf head = STRBUF_INIT;
    struct stream s = {0};

    assert_int_equal(
        dcm_head_make(CT_CLASS, m->instance ? m->instance : "1", EXPLICIT, m->sender, &head), 0);
    put(&s, head.data, head.len);
    put_dataset(&s, m);
    return s;
}

/* ---- Calls ---- */

static int store_stream(const struct stream *s, size_t step, const struct object_put_info *info,
                        struct object_put_result *ret)
{
    static const struct object_put_info none = {0};
    struct object_put *p;
    int rc = object_put_begin(pc.os, info ? info : &none, &p);

    if (rc < 0)
        return rc;
    for (size_t at = 0; at < s->n && rc == 0;) {
        size_t n = step ? step : 1 + (size_t)sim_random(pc.c.sim, 70000);

        if (n > s->n - at)
            n = s->n - at;
        rc = object_put_append(p, s->p + at, n);
        at += n;
    }
    if (rc < 0) {
        object_put_abort(p);
        return rc;
    }
    return object_put_commit(p, ret);
}

/* Stores a sample; the outcome, or an error. */
static int store(const struct sample *m)
{
    struct object_put_result r = {0};
    struct stream s = make(m);
    int rc = store_stream(&s, 0, NULL, &r);

    mem_free(s.p);
    if (rc < 0)
        return rc;
    assert_string_equal(r.study_uid, m->study);
    assert_string_equal(r.series_uid, m->series);
    assert_string_equal(r.instance_uid, m->instance);
    assert_string_equal(r.sop_class_uid, CT_CLASS);
    return (int)r.outcome;
}

static void expect_bytes(struct object *o, const struct stream *s, uint64_t off, size_t len)
{
    uint8_t *got = mem_alloc(len + 1);
    size_t n = 99, want = off >= s->n ? 0 : len < s->n - off ? len : (size_t)(s->n - off);

    assert_int_equal(object_read(o, off, got, len, &n), 0);
    assert_int_equal(n, want);
    if (n)
        assert_memory_equal(got, s->p + off, n);
    mem_free(got);
}

/* The stored instance is this sample, whole and in ranges. */
static void expect_stored(const struct sample *m)
{
    struct stream s = make(m);
    struct object *o;
    const struct object_row *row;

    assert_int_equal(object_open(pc.os, m->study, m->series, m->instance, &o), 0);
    row = object_get_row(o);
    assert_int_equal(row->bytes, s.n);
    assert_string_equal(row->study_uid, m->study);
    assert_string_equal(row->instance_uid, m->instance);
    assert_string_equal(row->transfer_syntax_uid, EXPLICIT);
    assert_string_equal(row->sop_class_uid, CT_CLASS);
    expect_bytes(o, &s, 0, s.n);
    expect_bytes(o, &s, 0, s.n + 100);
    expect_bytes(o, &s, s.n, 10);
    expect_bytes(o, &s, UINT64_MAX, 10);
    expect_bytes(o, &s, row->dataset_off, 4000);
    expect_bytes(o, &s, 5, 0);
    for (unsigned i = 0; i < 20; i++)
        expect_bytes(o, &s, sim_random(pc.c.sim, s.n), (size_t)sim_random(pc.c.sim, 100000));
    object_close(o);
    mem_free(s.p);
}

static void expect_none(const char *instance)
{
    struct object *o;

    assert_int_equal(object_open(pc.os, NULL, NULL, instance, &o), ERR_NOENT);
}

static struct partition_study_counts counts(void)
{
    return partition_case_status(&pc).studies;
}

static size_t rows_at(enum object_level level)
{
    struct object_query q = {.level = level};
    struct object_rows *rows;
    size_t n;

    assert_int_equal(object_query(pc.os, &q, &rows), 0);
    n = rows->count;
    mem_free(rows);
    return n;
}

static const char *text_of(const struct object_row *r, uint32_t tag)
{
    for (size_t i = 0; i < r->attr_count; i++)
        if (r->attrs[i].tag == tag)
            return r->attrs[i].value;
    return "";
}

/* All rows of a level, or those with a Patient ID; the caller frees. */
static struct object_rows *rows_of(enum object_level level, const char *id)
{
    struct object_match m = {0x00100020, OBJECT_MATCH_EXACT, id ? id : ""};
    struct object_query q = {.level = level, .matches = &m, .match_count = 1};
    struct object_rows *rows;

    assert_int_equal(object_query(pc.os, &q, &rows), 0);
    return rows;
}

/* What the index finds under an ID is what the walk over all studies finds. */
static void expect_index(const struct object_rows *studies, const char *id)
{
    struct object_rows *found = rows_of(OBJECT_STUDY, id);
    size_t n = 0;

    for (size_t i = 0; i < studies->count; i++)
        if (strcmp(text_of(&studies->rows[i], 0x00100020), id) == 0) {
            assert_true(n < found->count);
            assert_string_equal(found->rows[n++].study_uid, studies->rows[i].study_uid);
        }
    assert_int_equal(found->count, n);
    mem_free(found);
}

/* Patients have the studies that there are, and those without an ID have none. */
static void expect_patients_sound(void)
{
    struct object_rows *patients = rows_of(OBJECT_PATIENT, NULL);
    struct object_rows *studies = rows_of(OBJECT_STUDY, NULL);
    size_t owned = 0;

    for (size_t i = 0; i < patients->count; i++) {
        const struct object_row *p = &patients->rows[i];
        char want[20];
        size_t n = 0;

        for (size_t k = 0; k < studies->count; k++)
            n += strcmp(text_of(p, 0x00100020), text_of(&studies->rows[k], 0x00100020)) == 0 &&
                 strcmp(text_of(p, 0x00100021), text_of(&studies->rows[k], 0x00100021)) == 0;
        snprintf(want, sizeof(want), "%zu", n);
        assert_true(n > 0);
        assert_string_equal(text_of(p, 0x00201200), want);
        owned += n;
        expect_index(studies, text_of(p, 0x00100020));
    }
    for (size_t k = 0; k < studies->count; k++)
        owned += text_of(&studies->rows[k], 0x00100020)[0] == 0;
    assert_int_equal(owned, studies->count);
    mem_free(patients);
    mem_free(studies);
}

static size_t rows_in(enum kv_table t)
{
    static const struct kv_slice all = {"", 0};
    struct kv_rows *rows;
    size_t n;

    assert_int_equal(kv_scan(pc.kv, t, all, all, 1000, 1u << 20, 0, &rows), 0);
    n = rows->count;
    kv_rows_free(rows);
    return n;
}

/* What was deleted left nothing behind, not even what no query would show. */
static void expect_bare(void)
{
    assert_int_equal(rows_in(KV_CATALOG), 0);
    assert_int_equal(rows_in(KV_INDEX), 0);
    assert_int_equal(rows_in(KV_RECIPE), 0);
}

static void expect_counts(uint64_t studies, uint64_t series, uint64_t instances)
{
    assert_int_equal(counts().studies, studies);
    assert_int_equal(counts().instances, instances);
    assert_int_equal(rows_at(OBJECT_STUDY), studies);
    assert_int_equal(rows_at(OBJECT_SERIES), series);
    assert_int_equal(rows_at(OBJECT_INSTANCE), instances);
    expect_patients_sound();
    if (instances == 0)
        expect_bare();
}

static uint64_t stored_bytes(void)
{
    return partition_case_status(&pc).stored;
}

/* ---- In and out ---- */

static void in_out_main(void *arg)
{
    static const unsigned frames[] = {0, 1, 2, 12};
    struct sample m = usual;
    char uid[20];

    (void)arg;
    partition_case_open(&pc);
    expect_none("1.1.1.1");
    for (unsigned i = 0; i < 4; i++) {
        snprintf(uid, sizeof(uid), "1.1.1.%u", i);
        m.instance = uid;
        m.frames = frames[i];
        m.pixels = 100 * i;
        assert_int_equal(store(&m), OBJECT_STORED);
        expect_stored(&m);
    }
    expect_counts(1, 1, 4);
    assert_int_equal(counts().stored, 4);
    close_ok();
    partition_case_open(&pc);
    for (unsigned i = 0; i < 4; i++) {
        snprintf(uid, sizeof(uid), "1.1.1.%u", i);
        m.instance = uid;
        m.frames = frames[i];
        m.pixels = 100 * i;
        expect_stored(&m);
    }
    expect_counts(1, 1, 4);
    close_ok();
}

static void test_in_and_out(void **state)
{
    (void)state;
    sim_case_run(&pc.c, in_out_main, NULL);
}

/* However the stream comes in pieces, it is the same instance. */
static void steps_main(void *arg)
{
    static const size_t steps[] = {1, 7, 131, 132, 133, 4096, 1u << 20};
    struct sample m = usual;
    struct object_put_result r;
    struct stream s;

    (void)arg;
    m.frames = 1;
    s = make(&m);
    partition_case_open(&pc);
    assert_int_equal(store(&m), OBJECT_STORED);
    for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        assert_int_equal(store_stream(&s, steps[i], NULL, &r), 0);
        assert_int_equal(r.outcome, OBJECT_IDENTICAL);
    }
    assert_int_equal(counts().identical, sizeof(steps) / sizeof(steps[0]));
    expect_stored(&m);
    expect_counts(1, 1, 1);
    mem_free(s.p);
    close_ok();
}

static void test_steps(void **state)
{
    (void)state;
    sim_case_run(&pc.c, steps_main, NULL);
}

static void find_main(void *arg)
{
    struct object *o;
    char longest[OBJECT_UID_MAX + 2] = {0};

    (void)arg;
    memset(longest, '1', OBJECT_UID_MAX + 1);
    partition_case_open(&pc);
    assert_int_equal(store(&usual), OBJECT_STORED);
    assert_int_equal(object_open(pc.os, NULL, NULL, "1.1.1.1", &o), 0);
    object_close(o);
    assert_int_equal(object_open(pc.os, "1.1", NULL, "1.1.1.1", &o), 0);
    object_close(o);
    assert_int_equal(object_open(pc.os, "1.2", NULL, "1.1.1.1", &o), ERR_NOENT);
    assert_int_equal(object_open(pc.os, "1.1", "1.1.2", "1.1.1.1", &o), ERR_NOENT);
    assert_int_equal(object_open(pc.os, "1.1", "1.1.1", "1.1.1", &o), ERR_NOENT);
    assert_int_equal(object_open(pc.os, NULL, NULL, longest, &o), ERR_NOENT);
    assert_int_equal(object_open(pc.os, NULL, NULL, "", &o), ERR_NOENT);
    object_close(NULL);
    close_ok();
}

static void test_find(void **state)
{
    (void)state;
    sim_case_run(&pc.c, find_main, NULL);
}

/* ---- The same again, and other content ---- */

static void identical_main(void *arg)
{
    struct sample other_head = usual;
    uint64_t before;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store(&usual), OBJECT_STORED);
    before = stored_bytes();
    assert_int_equal(store(&usual), OBJECT_IDENTICAL);
    other_head.sender = "SOMEBODY_ELSE"; /* in the Part 10 head alone */
    assert_int_equal(store(&other_head), OBJECT_IDENTICAL);
    expect_stored(&usual); /* the first one stays */
    assert_int_equal(counts().identical, 2);
    assert_int_equal(counts().stored, 1);
    assert_int_equal(stored_bytes(), before);
    expect_counts(1, 1, 1);
    close_ok();
}

static void test_identical(void **state)
{
    (void)state;
    sim_case_run(&pc.c, identical_main, NULL);
}

static void refuse_main(void *arg)
{
    struct sample other = usual;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store(&usual), OBJECT_STORED);
    other.pixels = 7;
    assert_int_equal(store(&other), ERR_CONFLICT);
    other = usual;
    other.name = "Meyer^Anne";
    assert_int_equal(store(&other), ERR_CONFLICT);
    other = usual;
    other.study = "9.9"; /* the UID is taken, wherever it is */
    assert_int_equal(store(&other), ERR_CONFLICT);
    expect_stored(&usual);
    assert_int_equal(counts().refused, 3);
    expect_counts(1, 1, 1);
    close_ok();
}

static void test_conflict_refused(void **state)
{
    (void)state;
    sim_case_run(&pc.c, refuse_main, NULL);
}

/* What a row above says of the number of instances in it. */
static void expect_related(enum object_level level, uint32_t tag, const char *study,
                           const char *series, const char *want)
{
    struct object_query q = {.level = level, .study_uid = study, .series_uid = series};
    struct object_rows *rows;
    const char *got = NULL;

    assert_int_equal(object_query(pc.os, &q, &rows), 0);
    assert_int_equal(rows->count, 1);
    for (size_t i = 0; i < rows->rows[0].attr_count; i++)
        if (rows->rows[0].attrs[i].tag == tag)
            got = rows->rows[0].attrs[i].value;
    assert_non_null(got);
    assert_string_equal(got, want);
    mem_free(rows);
}

static void replace_main(void *arg)
{
    struct sample other = usual, second = usual;
    struct object *old;
    struct stream s = make(&usual);
    struct partition_study_counts n;

    (void)arg;
    partition_case_open(&pc);
    second.instance = "1.1.1.2";
    assert_int_equal(store(&usual), OBJECT_STORED);
    assert_int_equal(object_open(pc.os, NULL, NULL, usual.instance, &old), 0);
    other.pixels = 7;
    other.frames = 3;
    assert_int_equal(store(&other), OBJECT_REPLACED);
    expect_stored(&other);
    expect_bytes(old, &s, 0, s.n); /* who has it open reads on */
    object_close(old);
    expect_counts(1, 1, 1);
    assert_int_equal(store(&second), OBJECT_STORED);
    expect_related(OBJECT_STUDY, 0x00201208, "1.1", NULL, "2");
    expect_related(OBJECT_SERIES, 0x00201209, "1.1", "1.1.1", "2");
    other.study = "2.2"; /* it moves: the first study keeps the second instance */
    other.series = "2.2.1";
    other.modality = "MR";
    assert_int_equal(store(&other), OBJECT_REPLACED);
    expect_stored(&other);
    expect_stored(&second);
    expect_counts(2, 2, 2);
    other.series = "2.2.2";
    assert_int_equal(store(&other), OBJECT_REPLACED);
    expect_counts(2, 2, 2);
    second.study = "2.2";
    second.series = "2.2.2";
    assert_int_equal(store(&second), OBJECT_REPLACED);
    expect_counts(1, 1, 2); /* nothing is left of the first study */
    assert_int_equal(counts().replaced, 4);
    n = counts();
    close_ok();
    partition_case_open(&pc);
    expect_stored(&other);
    expect_stored(&second);
    expect_counts(1, 1, 2);
    assert_int_equal(counts().bytes, n.bytes);
    mem_free(s.p);
    close_ok();
}

static void test_conflict_replaced(void **state)
{
    (void)state;
    pc.options.on_conflict = PARTITION_REPLACE;
    sim_case_run(&pc.c, replace_main, NULL);
}

/* Two senders of one UID at the same time: one is first, and the other is told the truth. */
static struct fiber_group senders;

struct sender {
    struct sample m;
    int result;
};

static void sender_fiber(void *arg)
{
    struct sender *s = arg;

    s->result = store(&s->m);
    fiber_group_done(&senders);
}

static void race_main(void *arg)
{
    bool other = *(bool *)arg;
    struct sender s[3];
    unsigned first = 0, told = 0;

    partition_case_open(&pc);
    fiber_group_init(&senders);
    fiber_group_add(&senders, 3);
    for (unsigned i = 0; i < 3; i++) {
        s[i] = (struct sender){usual, 99};
        s[i].m.pixels += other ? i * 10 : 0;
        fiber_spawn(pc.c.env, "sender", sender_fiber, &s[i]);
    }
    fiber_group_wait(&senders);
    for (unsigned i = 0; i < 3; i++) {
        if (s[i].result == OBJECT_STORED) {
            first++;
            expect_stored(&s[i].m);
        } else {
            told += s[i].result == (other ? (int)ERR_CONFLICT : (int)OBJECT_IDENTICAL);
        }
    }
    assert_int_equal(first, 1);
    assert_int_equal(told, 2);
    expect_counts(1, 1, 1);
    assert_int_equal(partition_case_status(&pc).chunks.referenced_bytes, counts().bytes);
    close_ok();
}

static void test_sender_race(void **state)
{
    for (int i = 0; i < 2; i++) {
        bool other = i;

        teardown(state);
        setup(state);
        sim_case_run(&pc.c, race_main, &other);
    }
}

/* The same pixels under another header cost their header. */
static void reheader_main(void *arg)
{
    struct sample m = usual;
    uint64_t before;

    (void)arg;
    m.frames = 10;
    partition_case_open(&pc);
    assert_int_equal(store(&m), OBJECT_STORED);
    before = stored_bytes();
    assert_true(before > 1000000);
    m.instance = "1.1.1.9";
    m.name = "A much longer name^for the same pixels";
    assert_int_equal(store(&m), OBJECT_STORED);
    assert_true(stored_bytes() - before < 2000);
    expect_stored(&m);
    close_ok();
}

static void test_reheader(void **state)
{
    (void)state;
    sim_case_run(&pc.c, reheader_main, NULL);
}

/* ---- Puts that come to nothing ---- */

static void abort_main(void *arg)
{
    static const struct object_put_info none = {0};
    struct stream s = make(&usual);

    (void)arg;
    partition_case_open(&pc);
    for (size_t len = 0; len <= s.n; len = len * 3 + 50) {
        struct object_put *p;

        assert_int_equal(object_put_begin(pc.os, &none, &p), 0);
        assert_int_equal(object_put_append(p, s.p, len < s.n ? len : s.n), 0);
        object_put_abort(p);
    }
    object_put_abort(NULL);
    expect_none(usual.instance);
    expect_counts(0, 0, 0);
    assert_int_equal(stored_bytes(), 0);
    assert_int_equal(store(&usual), OBJECT_STORED);
    mem_free(s.p);
    close_ok();
}

static void test_abort(void **state)
{
    (void)state;
    sim_case_run(&pc.c, abort_main, NULL);
}

static int store_bytes(const void *p, size_t n)
{
    struct stream s = {(uint8_t *)(uintptr_t)p, n};
    struct object_put_result r;

    return store_stream(&s, 0, NULL, &r);
}

static int store_changed(const char *study, const char *series, const char *instance)
{
    struct sample m = usual;
    struct stream s;
    int rc;

    m.study = study;
    m.series = series;
    m.instance = instance;
    s = make(&m);
    rc = store_bytes(s.p, s.n);
    mem_free(s.p);
    return rc;
}

static void malformed_main(void *arg)
{
    struct stream s = make(&usual);
    uint8_t *zero = mem_zalloc(2u << 20);

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store_bytes("", 0), ERR_DICOM);
    assert_int_equal(store_bytes("x", 1), ERR_DICOM);
    assert_int_equal(store_bytes(s.p, 132), ERR_DICOM);
    assert_int_equal(store_bytes(s.p, 200), ERR_DICOM);       /* within the head */
    assert_int_equal(store_bytes(zero, 2u << 20), ERR_DICOM); /* no "DICM" */
    memcpy(zero + 128, "DICM", 4);
    assert_int_equal(store_bytes(zero, 2u << 20), ERR_DICOM);
    assert_int_equal(store_changed(NULL, "1.1.1", "1.1.1.1"), ERR_DICOM_NO_UID);
    assert_int_equal(store_changed("1.1", NULL, "1.1.1.1"), ERR_DICOM_NO_UID);
    assert_int_equal(store_changed("1.1", "1.1.1", NULL), ERR_DICOM_NO_UID);
    assert_int_equal(store_changed("", "1.1.1", "1.1.1.1"), ERR_DICOM_NO_UID);
    assert_int_equal(store_changed("1..1", "1.1.1", "1.1.1.1"), ERR_DICOM_UID);
    assert_int_equal(store_changed("1.1", "1.1.a", "1.1.1.1"), ERR_DICOM_UID);
    expect_counts(0, 0, 0);
    assert_int_equal(stored_bytes(), 0);
    /* Cut short in its pixels it is an odd instance, but one: kept as it is. */
    assert_int_equal(store_bytes(s.p, s.n - 100), 0);
    expect_counts(1, 1, 1);
    mem_free(zero);
    mem_free(s.p);
    close_ok();
}

static void test_malformed(void **state)
{
    (void)state;
    sim_case_run(&pc.c, malformed_main, NULL);
}

static int store_expecting(const char *class_, const char *instance, const char *study)
{
    struct object_put_info info = {
        .expect_sop_class = class_, .expect_sop_instance = instance, .expect_study = study};
    struct object_put_result r;
    struct stream s = make(&usual);
    int rc = store_stream(&s, 0, &info, &r);

    mem_free(s.p);
    return rc;
}

static void expect_main(void *arg)
{
    static const struct object_put_info huge = {.size_hint = OBJECT_INSTANCE_MAX + 1};
    struct object_put *p;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store_expecting("1.2.3", NULL, NULL), ERR_DICOM_MISMATCH);
    assert_int_equal(store_expecting(CT_CLASS, "1.1.1.2", NULL), ERR_DICOM_MISMATCH);
    assert_int_equal(store_expecting(CT_CLASS, "1.1.1.1", "1.2"), ERR_DICOM_MISMATCH);
    expect_counts(0, 0, 0);
    assert_int_equal(store_expecting(CT_CLASS, "1.1.1.1", "1.1"), 0);
    expect_counts(1, 1, 1);
    assert_true(object_put_begin(pc.os, &huge, &p) < 0);
    close_ok();
}

static void test_expectations(void **state)
{
    (void)state;
    sim_case_run(&pc.c, expect_main, NULL);
}

/* The budget: as many at once as it allows, the others wait their turn, too many are refused. */
static unsigned begun;

static void begin_fiber(void *arg)
{
    static const struct object_put_info none = {0};
    struct object_put *p;

    (void)arg;
    assert_int_equal(object_put_begin(pc.os, &none, &p), 0);
    begun++;
    env_sleep(pc.c.env, ENV_NS_PER_S / 10);
    object_put_abort(p);
    fiber_group_done(&senders);
}

static void budget_main(void *arg)
{
    static const struct object_put_info none = {0};
    struct object_put *p;

    (void)arg;
    begun = 0;
    partition_case_open(&pc);
    fiber_group_init(&senders);
    fiber_group_add(&senders, 260);
    for (unsigned i = 0; i < 260; i++)
        fiber_spawn(pc.c.env, "begin", begin_fiber, NULL);
    env_sleep(pc.c.env, ENV_NS_PER_MS);
    assert_int_equal(begun, 4); /* of 32 MiB, 8 each */
    assert_int_equal(object_put_begin(pc.os, &none, &p), ERR_OVERLOAD);
    fiber_group_wait(&senders);
    assert_int_equal(begun, 260);
    assert_int_equal(store(&usual), OBJECT_STORED);
    close_ok();
}

static void test_budget(void **state)
{
    (void)state;
    sim_case_run(&pc.c, budget_main, NULL);
}

/* Streams of known size take as much of the budget as they may need, and nobody waits for ever. */
#define SMALL      (512u << 10)
#define AT_ONCE    64u /* of 32 MiB */
#define PATIENCE_S 30u

static struct object_put *begin_of(uint64_t size, int want)
{
    struct object_put_info info = {.size_hint = size};
    struct object_put *p = NULL;

    assert_int_equal(object_put_begin(pc.os, &info, &p), want);
    return p;
}

static uint64_t seconds(void)
{
    return env_now(pc.c.env) / ENV_NS_PER_S;
}

/* Wants little, but stands behind one who wants much. */
static void behind_fiber(void *arg)
{
    (void)arg;
    env_sleep(pc.c.env, ENV_NS_PER_S);
    object_put_abort(begin_of(SMALL, 0));
    fiber_group_done(&senders);
}

static void share_main(void *arg)
{
    struct object_put *p[AT_ONCE];
    struct sample m = usual;
    struct stream s;
    uint64_t start;

    (void)arg;
    partition_case_open(&pc);
    start = seconds();
    for (unsigned i = 0; i < AT_ONCE; i++)
        p[i] = begin_of(SMALL, 0);
    assert_int_equal(seconds(), start); /* nobody has waited */
    (void)begin_of(1, ERR_OVERLOAD);
    assert_int_equal(seconds(), start + PATIENCE_S);
    object_put_abort(p[0]);
    fiber_group_init(&senders);
    fiber_group_add(&senders, 1);
    fiber_spawn(pc.c.env, "behind", behind_fiber, NULL);
    (void)begin_of(0, ERR_OVERLOAD);
    fiber_group_wait(&senders);
    assert_int_equal(seconds(), start + 2 * PATIENCE_S);
    m.frames = 40;
    m.pixels = 30000;
    s = make(&m);
    assert_true(s.n > SMALL);
    assert_int_equal(object_put_append(p[1], s.p, s.n), ERR_OVERLOAD); /* more than announced */
    for (unsigned i = 1; i < AT_ONCE; i++)
        object_put_abort(p[i]);
    p[0] = begin_of(SMALL, 0);
    assert_int_equal(object_put_append(p[0], s.p, s.n), 0);
    object_put_abort(p[0]);
    p[0] = begin_of(1, 0);
    p[1] = begin_of(32u << 20, 0);
    object_put_abort(p[0]);
    object_put_abort(p[1]);
    mem_free(s.p);
    close_ok();
}

static void test_share(void **state)
{
    (void)state;
    sim_case_run(&pc.c, share_main, NULL);
}

/* ---- Deleting ---- */

static void store_tree(void)
{
    struct sample m = usual;
    char study[20], series[20], instance[30];

    for (unsigned i = 0; i < 12; i++) {
        snprintf(study, sizeof(study), "1.%u", i / 6);
        snprintf(series, sizeof(series), "1.%u.%u", i / 6, i / 3 % 2);
        snprintf(instance, sizeof(instance), "1.%u.%u.%u", i / 6, i / 3 % 2, i % 3);
        m = (struct sample){study, series, instance, "A^B", i / 3 % 2 ? "MR" : "CT",
                            "S",   10 * i, 1,        "P1",  NULL};
        assert_int_equal(store(&m), OBJECT_STORED);
    }
    expect_counts(2, 4, 12);
}

static int delete (const char *study, const char *series, const char *instance, uint64_t want)
{
    struct object_delete_result r = {0};
    uint64_t bytes = counts().bytes;
    int rc = object_remove(pc.os, study, series, instance, &r);

    assert_int_equal(r.instances, want);
    assert_int_equal(bytes - counts().bytes, r.bytes);
    return rc;
}

static void expect_modalities(const char *study, const char *want)
{
    expect_related(OBJECT_STUDY, 0x00080061, study, NULL, want);
}

static void delete_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    store_tree();
    assert_int_equal(delete ("1.5", NULL, NULL, 0), ERR_NOENT);
    assert_int_equal(delete ("1.0", "1.1.0", NULL, 0), ERR_NOENT);
    assert_int_equal(delete ("1.0", "1.0.0", "1.0.0.9", 0), ERR_NOENT);
    expect_modalities("1.0", "CT\\MR");
    assert_int_equal(delete ("1.0", "1.0.0", "1.0.0.1", 1), 0);
    expect_none("1.0.0.1");
    expect_counts(2, 4, 11);
    assert_int_equal(delete ("1.0", "1.0.0", "1.0.0.1", 0), ERR_NOENT);
    assert_int_equal(delete ("1.0", "1.0.0", NULL, 2), 0);
    expect_counts(2, 3, 9);
    expect_modalities("1.0", "MR");
    assert_int_equal(delete ("1.1", NULL, NULL, 6), 0);
    expect_counts(1, 1, 3);
    close_ok();
    partition_case_open(&pc);
    expect_counts(1, 1, 3);
    assert_int_equal(delete ("1.0", NULL, NULL, 3), 0);
    expect_counts(0, 0, 0);
    assert_int_equal(counts().bytes, 0);
    assert_int_equal(stored_bytes(), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    close_ok();
}

static void test_delete(void **state)
{
    (void)state;
    sim_case_run(&pc.c, delete_main, NULL);
}

/* Who has it open reads on, though it is deleted and its space is wanted. */
static void open_deleted_main(void *arg)
{
    struct stream s = make(&usual);
    struct sample m = usual;
    struct object *o;
    char uid[20];

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store(&usual), OBJECT_STORED);
    assert_int_equal(object_open(pc.os, NULL, NULL, usual.instance, &o), 0);
    assert_int_equal(delete (usual.study, NULL, NULL, 1), 0);
    for (unsigned i = 0; i < 60; i++) { /* more than a segment */
        snprintf(uid, sizeof(uid), "7.%u", i);
        m.instance = uid;
        m.pixels = 1000 + 2 * i;
        assert_int_equal(store(&m), OBJECT_STORED);
    }
    assert_int_equal(delete (usual.study, NULL, NULL, 60), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    expect_bytes(o, &s, 0, s.n);
    object_close(o);
    assert_int_equal(stored_bytes(), 0);
    mem_free(s.p);
    close_ok();
}

static void test_open_while_deleted(void **state)
{
    (void)state;
    sim_case_run(&pc.c, open_deleted_main, NULL);
}

/* ---- Patients ---- */

/* "ID/issuer name studies, ..." */
static void expect_patients(const char *want)
{
    struct object_rows *rows = rows_of(OBJECT_PATIENT, NULL);
    STRBUF_AUTO struct strbuf got = STRBUF_INIT;

    strbuf_adds(&got, "");
    for (size_t i = 0; i < rows->count; i++) {
        const struct object_row *r = &rows->rows[i];

        strbuf_addf(&got, "%s%s/%s %s %s", i ? ", " : "", text_of(r, 0x00100020),
                    text_of(r, 0x00100021), text_of(r, 0x00100010), text_of(r, 0x00201200));
    }
    assert_string_equal(got.data, want);
    mem_free(rows);
    expect_patients_sound();
}

static int store_for(const char *study, const char *instance, const char *id, const char *issuer,
                     const char *name)
{
    struct sample m = {study, study, instance, name, "CT", "S", 1, 0, id, issuer};

    return store(&m);
}

static void patients_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    expect_patients("");
    assert_int_equal(store_for("1.1", "1", "P1", NULL, "Doe^J"), OBJECT_STORED);
    assert_int_equal(store_for("1.1", "2", "P9", NULL, "Other"), OBJECT_STORED); /* as the study */
    expect_patients("P1/ Doe^J 1");
    assert_int_equal(store_for("1.2", "3", " P1 ", "", "Doe^Jane"), OBJECT_STORED); /* padded */
    assert_int_equal(store_for("1.3", "4", "P1", "H", "Roe^R"), OBJECT_STORED);
    assert_int_equal(store_for("1.4", "5", "", NULL, "Nobody"), OBJECT_STORED);
    assert_int_equal(store_for("1.5", "6", NULL, NULL, "Nobody"), OBJECT_STORED);
    assert_int_equal(store_for("1.6", "7", "P2", NULL, "Two"), OBJECT_STORED);
    expect_patients("P1/ Doe^J 2, P1/H Roe^R 1, P2/ Two 1");
    assert_int_equal(delete ("1.1", "1.1", "1", 1), 0);
    expect_patients("P1/ Doe^J 2, P1/H Roe^R 1, P2/ Two 1"); /* the study has another */
    assert_int_equal(delete ("1.1", NULL, NULL, 1), 0);
    expect_patients("P1/ Doe^J 1, P1/H Roe^R 1, P2/ Two 1"); /* what the first study said stays */
    close_ok();
    partition_case_open(&pc);
    expect_patients("P1/ Doe^J 1, P1/H Roe^R 1, P2/ Two 1");
    assert_int_equal(delete ("1.2", NULL, NULL, 1), 0);
    assert_int_equal(delete ("1.4", NULL, NULL, 1), 0);
    expect_patients("P1/H Roe^R 1, P2/ Two 1");
    assert_int_equal(delete ("1.3", NULL, NULL, 1), 0);
    assert_int_equal(delete ("1.6", NULL, NULL, 1), 0);
    expect_patients("");
    assert_int_equal(delete ("1.5", NULL, NULL, 1), 0);
    expect_counts(0, 0, 0);
    close_ok();
}

static void test_patients(void **state)
{
    (void)state;
    sim_case_run(&pc.c, patients_main, NULL);
}

/* A replacement takes a study away and brings one in one record: of the same patient or another. */
static void patients_replaced_main(void *arg)
{
    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store_for("1.1", "1", "P1", NULL, "A"), OBJECT_STORED);
    assert_int_equal(store_for("1.1", "1", "P1", NULL, "B"), OBJECT_REPLACED);
    expect_patients("P1/ B 1"); /* the study went, and so did what it said */
    assert_int_equal(store_for("1.1", "1", "P2", NULL, "C"), OBJECT_REPLACED);
    expect_patients("P2/ C 1");
    assert_int_equal(store_for("1.2", "1", "P2", NULL, "D"), OBJECT_REPLACED);
    expect_patients("P2/ D 1");
    assert_int_equal(store_for("1.2", "2", "P2", NULL, "D"), OBJECT_STORED);
    assert_int_equal(store_for("1.3", "1", "P2", NULL, "E"), OBJECT_REPLACED);
    expect_patients("P2/ D 2"); /* one study stays, one comes */
    assert_int_equal(store_for("1.4", "1", "P2", NULL, "F"), OBJECT_REPLACED);
    expect_patients("P2/ D 2"); /* one goes, one comes, one stays */
    assert_int_equal(store_for("1.2", "1", "P3", NULL, "G"), OBJECT_REPLACED);
    expect_patients("P2/ D 1"); /* into a study that is there, whatever it says */
    assert_int_equal(store_for("1.5", "2", "P4", "H", "H"), OBJECT_REPLACED);
    expect_patients("P2/ D 1, P4/H H 1");
    assert_int_equal(store_for("1.6", "2", "", NULL, "I"), OBJECT_REPLACED);
    expect_patients("P2/ D 1");
    assert_int_equal(store_for("1.6", "2", "P5", NULL, "J"), OBJECT_REPLACED);
    expect_patients("P2/ D 1, P5/ J 1");
    expect_counts(2, 2, 2);
    close_ok();
    partition_case_open(&pc);
    expect_patients("P2/ D 1, P5/ J 1");
    close_ok();
}

static void test_patients_replaced(void **state)
{
    (void)state;
    pc.options.on_conflict = PARTITION_REPLACE;
    sim_case_run(&pc.c, patients_replaced_main, NULL);
}

/* ---- Full, broken, killed ---- */

static void full_main(void *arg)
{
    struct sample m = usual;
    char uid[20];
    unsigned n = 0;
    int rc;

    (void)arg;
    m.frames = 8;
    partition_case_open(&pc);
    for (;; n++) {
        snprintf(uid, sizeof(uid), "1.1.1.%u", n);
        m.instance = uid;
        m.pixels = 100 + n * 8;
        rc = store(&m);
        if (rc < 0)
            break;
    }
    assert_int_equal(rc, ERR_NOSPC);
    assert_true(n > 10);
    expect_counts(1, 1, n);
    assert_int_equal(delete ("1.1", "1.1.1", "1.1.1.3", 1), 0); /* deleting works on a full store */
    snprintf(uid, sizeof(uid), "1.1.1.5");
    m.pixels = 140;
    expect_stored(&m);
    assert_int_equal(delete ("1.1", NULL, NULL, n - 1), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    assert_int_equal(store(&m), OBJECT_STORED);
    expect_stored(&m);
    close_ok();
}

static void test_full(void **state)
{
    (void)state;
    pc.slots = 8;
    sim_case_run(&pc.c, full_main, NULL);
}

static struct sample numbered(unsigned i, char uid[20])
{
    struct sample m = usual;

    snprintf(uid, 20, "1.1.1.%u", i);
    m.instance = uid;
    m.pixels = 10 * i;
    m.frames = i % 3;
    return m;
}

/* The end of the daemon does not wait for a large study to be deleted; the rest goes later. */
static void ending_fiber(void *arg)
{
    uint64_t all = *(uint64_t *)arg;

    while (partition_case_status(&pc).studies.instances > all - 5)
        env_sleep(pc.c.env, 10000);
    partition_end_soon(pc.p);
}

static void ending_main(void *arg)
{
    struct object_delete_result result = {0};
    uint64_t n = 0, left;
    char uid[20];

    (void)arg;
    partition_case_open(&pc);
    for (; n < 40; n++) {
        struct sample m = numbered((unsigned)n, uid);

        assert_int_equal(store(&m), OBJECT_STORED);
    }
    fiber_spawn(pc.c.env, "ending", ending_fiber, &n);
    assert_int_equal(object_remove(pc.os, "1.1", NULL, NULL, &result), ERR_SHUTDOWN);
    left = partition_case_status(&pc).studies.instances;
    assert_true(left > 20 && left < n);
    close_ok();
    partition_case_open(&pc);
    assert_int_equal(object_remove(pc.os, "1.1", NULL, NULL, &result), 0);
    assert_int_equal(result.instances, left);
    close_ok();
}

static void test_ending(void **state)
{
    (void)state;
    sim_case_run(&pc.c, ending_main, NULL);
}

/* Killed at any moment: what was acknowledged is there, whole; the rest is there, whole, or not. */
static unsigned acknowledged;

static void killer_fiber(void *arg)
{
    env_sleep(pc.c.env, *(uint64_t *)arg);
    sim_pause(pc.c.sim);
}

static void kill_main(void *arg)
{
    char uid[20];

    partition_case_open(&pc);
    fiber_spawn(pc.c.env, "killer", killer_fiber, arg);
    for (unsigned i = 0;; i++) {
        struct sample m = numbered(i, uid);

        assert_int_equal(store(&m), OBJECT_STORED);
        acknowledged = i + 1;
    }
}

static void after_kill_main(void *arg)
{
    unsigned there = acknowledged;
    struct object *o;
    char uid[20];

    (void)arg;
    partition_case_open(&pc);
    for (unsigned i = 0; i < acknowledged; i++) {
        struct sample m = numbered(i, uid);

        expect_stored(&m);
    }
    (void)numbered(acknowledged, uid);
    if (object_open(pc.os, NULL, NULL, uid, &o) == 0) {
        struct sample m;

        object_close(o);
        m = numbered(acknowledged, uid);
        expect_stored(&m);
        there++;
    }
    expect_counts(there > 0, there > 0, there);
    assert_int_equal(partition_case_status(&pc).chunks.referenced_bytes, counts().bytes);
    close_ok();
}

static void test_kill(void **state)
{
    unsigned most = 0;

    for (uint64_t seed = 1; seed <= 40; seed++) {
        uint64_t after = seed * 700000; /* ns */

        teardown(state);
        partition_case_init(&pc, seed);
        acknowledged = 0;
        sim_case_run_and_kill(&pc.c, kill_main, &after, seed % 4 != 0);
        most = acknowledged > most ? acknowledged : most;
        sim_case_run(&pc.c, after_kill_main, NULL);
    }
    assert_true(most > 5);
}

/* Where on the only drive the largest chunk of an instance lies, a frame's, or the smallest: the
 * head. */
static uint64_t some_place(bool head)
{
    struct segments *ss = pc.p->segments;
    struct segment_entry *entries;
    uint64_t *ids, off = 0;
    uint32_t most = head ? UINT32_MAX : 0;
    size_t segments = segments_list(ss, 0, UINT64_MAX, &ids), n;

    for (size_t i = 0; i < segments; i++) {
        const struct segment *s = segment_get(ss, ids[i]);
        uint32_t at = 0;

        segment_hold(ss, ids[i]);
        while (s->stream == SEGMENT_STUDIES &&
               segment_next_stripe(ss, ids[i], &at, &entries, &n) == 0) {
            for (size_t j = 0; j < n; j++) {
                const struct segment_loc *l = &entries[j].loc;

                if (head ? l->stored >= most : l->stored <= most)
                    continue;
                most = l->stored;
                off = drive_slot_off(pc.p->ds, s->slot[0]) +
                      (uint64_t)l->stripe.offset * FORMAT_UNIT + l->position;
            }
            mem_free(entries);
        }
        segment_release(ss, ids[i]);
    }
    mem_free(ids);
    assert_true(off > 0 && (head || most > 1000));
    return off;
}

/* Every byte read is checked: a damaged medium without redundancy gives an error, not other bytes.
 */
static void damaged_main(void *arg)
{
    struct object *o;
    uint8_t *got = mem_alloc(300000);
    struct stream s = make(&usual);
    size_t n = 77;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store(&usual), OBJECT_STORED);
    assert_int_equal(object_open(pc.os, NULL, NULL, usual.instance, &o), 0);
    sim_file_corrupt(pc.c.sim, "d0", some_place(false), 16);
    assert_int_equal(object_read(o, 0, got, 300000, &n), ERR_LOST);
    assert_int_equal(n, 77);
    expect_bytes(o, &s, 0, 300); /* its header is whole */
    object_close(o);
    mem_free(got);
    mem_free(s.p);
    close_ok();
}

static void test_damaged_medium(void **state)
{
    (void)state;
    pc.drives = 1;
    pc.m = 0;
    sim_case_run(&pc.c, damaged_main, NULL);
}

static int read_whole(void)
{
    uint8_t *got = mem_alloc(300000);
    struct object *o;
    size_t n;
    int rc;

    assert_int_equal(object_open(pc.os, NULL, NULL, usual.instance, &o), 0);
    rc = object_read(o, 0, got, 300000, &n);
    object_close(o);
    mem_free(got);
    return rc;
}

/* What cannot be read any more is stored when it comes again, though it is the same. */
static void sent_again_main(void *arg)
{
    struct sample other_head = usual;

    (void)arg;
    partition_case_open(&pc);
    assert_int_equal(store(&usual), OBJECT_STORED);
    sim_file_corrupt(pc.c.sim, "d0", some_place(false), 16);
    assert_int_equal(read_whole(), ERR_LOST);
    assert_int_equal(store(&usual), OBJECT_IDENTICAL);
    expect_stored(&usual);
    /* Of the head there is no other copy, and it is not part of what is the same: the new one is
     * taken instead. */
    sim_file_corrupt(pc.c.sim, "d0", some_place(true), 16);
    assert_int_equal(read_whole(), ERR_LOST);
    other_head.sender = "SOMEBODY_ELSE";
    assert_int_equal(store(&other_head), OBJECT_IDENTICAL);
    expect_stored(&other_head);
    assert_int_equal(counts().stored, 1);
    assert_int_equal(counts().identical, 2);
    expect_counts(1, 1, 1);
    close_ok();
}

static void test_sent_again(void **state)
{
    (void)state;
    pc.drives = 1;
    pc.m = 0;
    sim_case_run(&pc.c, sent_again_main, NULL);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_in_and_out),
        CASE(test_steps),
        CASE(test_find),
        CASE(test_identical),
        CASE(test_conflict_refused),
        CASE(test_conflict_replaced),
        CASE(test_sender_race),
        CASE(test_reheader),
        CASE(test_abort),
        CASE(test_malformed),
        CASE(test_expectations),
        CASE(test_budget),
        CASE(test_share),
        CASE(test_delete),
        CASE(test_open_while_deleted),
        CASE(test_patients),
        CASE(test_patients_replaced),
        CASE(test_full),
        CASE(test_ending),
        CASE(test_kill),
        CASE(test_damaged_medium),
        CASE(test_sent_again),
    };

    if (dcm_init() < 0) {
        print_error("no DICOM dictionary: install dcmtk-data (%s)\n", dcm_dictionary_path());
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

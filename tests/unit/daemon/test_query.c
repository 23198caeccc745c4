/* daemon/study_query: what matches what (PS3.4 section C.2.2.2), joined levels, paging, patients
 * and their index. The rows
 * are written straight into a KV store. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/study_priv.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/unit/store/sim_case.h"

#define DATE       0x00080020u
#define TIME       0x00080030u
#define ACCESSION  0x00080050u
#define MODALITY   0x00080060u
#define MODALITIES 0x00080061u
#define NAME       0x00100010u
#define ID         0x00100020u
#define STUDY_UID  0x0020000du
#define NUMBER     0x00200013u
#define REQUEST    0x00400275u
#define SYNTAX     0x00083002u

static struct sim_case c;
static struct partition p;
static struct studies ss;
static struct kv_batch *batch;
static struct study_patient patient;

/* ---- Rows ---- */

static struct object_attr attr(uint32_t tag, const char *vr, const char *value)
{
    struct object_attr a = {.tag = tag, .len = (uint32_t)strlen(value), .value = value};

    memcpy(a.vr, vr, 3);
    return a;
}

static void put_row(const struct catalog_key *k, const struct strbuf *row)
{
    kv_batch_put(batch, KV_CATALOG, catalog_key_slice(k), (struct kv_slice){row->data, row->len});
}

static void put_study(const char *uid, const char *name, const char *id, const char *date,
                      const char *time)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct catalog_study *s = mem_zalloc(sizeof(*s));
    struct catalog_key k;

    *s = (struct catalog_study){.series = 2, .instances = 3, .bytes = 1000, .modality_count = 2};
    strcpy(s->modalities[0].name, "CT");
    strcpy(s->modalities[1].name, "SR");
    s->attrs.attrs[s->attrs.count++] = attr(DATE, "DA", date);
    s->attrs.attrs[s->attrs.count++] = attr(TIME, "TM", time);
    s->attrs.attrs[s->attrs.count++] = attr(NAME, "PN", name);
    if (id)
        s->attrs.attrs[s->attrs.count++] = attr(ID, "LO", id);
    s->attrs.attrs[s->attrs.count++] = attr(STUDY_UID, "UI", uid);
    s->attrs.attrs[s->attrs.count++] = attr(REQUEST, "SQ", "[{\"00400007\":{}}]");
    catalog_study_encode(s, &row);
    catalog_key_make(&k, 'T', uid, NULL, NULL);
    put_row(&k, &row);
    patient = (struct study_patient){0};
    assert_int_equal(study_patient_load(&ss, &s->attrs, &patient), 0);
    study_patient_add(&patient, &s->attrs, uid, batch);
    mem_free(patient.value);
    mem_free(s);
}

static void put_series(const char *study, const char *uid, const char *modality)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct catalog_series *s = mem_zalloc(sizeof(*s));
    struct catalog_key k;

    *s = (struct catalog_series){.instances = 2, .bytes = 500};
    s->attrs.attrs[s->attrs.count++] = attr(MODALITY, "CS", modality);
    s->attrs.attrs[s->attrs.count++] = attr(0x0020000e, "UI", uid);
    catalog_series_encode(s, &row);
    catalog_key_make(&k, 'S', study, uid, NULL);
    put_row(&k, &row);
    mem_free(s);
}

static void put_instance(const char *study, const char *series, const char *uid, const char *number)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct catalog_instance *s = mem_zalloc(sizeof(*s));
    struct catalog_key k;

    *s = (struct catalog_instance){.bytes = 250, .dataset_off = 132, .stored_ns = 77};
    strcpy(s->sop_class, "1.2.840.10008.5.1.4.1.1.2");
    strcpy(s->transfer_syntax, "1.2.840.10008.1.2.1");
    s->attrs.attrs[s->attrs.count++] = attr(0x00080018, "UI", uid);
    s->attrs.attrs[s->attrs.count++] = attr(NUMBER, "IS", number);
    catalog_instance_encode(s, &row);
    catalog_key_make(&k, 'I', study, series, uid);
    put_row(&k, &row);
    mem_free(s);
}

static void put_rows(void)
{
    put_study("1.1", "Meyer^Anna=\xe9\xba\xa6^\xe5\xae\x89=Maier^A", "P1", "20240101", "101500");
    put_series("1.1", "1.1.1", "CT");
    put_instance("1.1", "1.1.1", "1.1.1.1", "1");
    put_instance("1.1", "1.1.1", "1.1.1.2", "2");
    put_series("1.1", "1.1.2", "SR");
    put_instance("1.1", "1.1.2", "1.1.2.1", "1");
    put_study("1.10", "MEYERS^Bert", "P10", "20240215", "235959.123");
    put_series("1.10", "1.10.1", "CT");
    put_instance("1.10", "1.10.1", "1.10.1.1", "7");
    put_study("1.2", "[a]^b\\Alias^Second", "P[2]*", "", "");
    put_series("1.2", "1.2.1", "MG");
    put_instance("1.2", "1.2.1", "1.2.1.1", "0");
    put_study("1.3", "Nobody", NULL, "20231231", "0715");
    put_series("1.3", "1.3.1", "US");
}

/* ---- Asking ---- */

static const char *text_of(const struct object_row *r, uint32_t tag)
{
    for (size_t i = 0; i < r->attr_count; i++)
        if (r->attrs[i].tag == tag) {
            assert_int_equal(r->attrs[i].len, strlen(r->attrs[i].value));
            return r->attrs[i].value;
        }
    return NULL;
}

static const char *uid_of(const struct object_row *r)
{
    return r->level == OBJECT_PATIENT  ? text_of(r, ID)
           : r->level == OBJECT_STUDY  ? r->study_uid
           : r->level == OBJECT_SERIES ? r->series_uid
                                       : r->instance_uid;
}

/* The UIDs found, in order, with a '+' when there are more. */
static void expect_query(const struct object_query *q, const char *want)
{
    char got[1000] = "";
    struct object_rows *rows;

    assert_int_equal(study_query(&ss.face, q, &rows), 0);
    for (size_t i = 0; i < rows->count; i++) {
        assert_int_equal(rows->rows[i].level, q->level);
        snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%s", i ? " " : "",
                 uid_of(&rows->rows[i]));
        for (size_t k = 1; k < rows->rows[i].attr_count; k++) /* in tag order, none twice */
            assert_true(rows->rows[i].attrs[k - 1].tag < rows->rows[i].attrs[k].tag);
    }
    if (rows->more)
        strcat(got, "+");
    assert_string_equal(got, want);
    mem_free(rows);
}

static void expect(enum object_level level, uint32_t tag, enum object_match_kind kind,
                   const char *value, const char *want)
{
    struct object_match m = {tag, kind, value};
    struct object_query q = {.level = level, .matches = &m, .match_count = 1};

    expect_query(&q, want);
}

static void studies_by(uint32_t tag, enum object_match_kind kind, const char *value,
                       const char *want)
{
    expect(OBJECT_STUDY, tag, kind, value, want);
}

#define ALL_STUDIES "1.1 1.10 1.2 1.3"

static void exact_main(void *arg)
{
    (void)arg;
    studies_by(ID, OBJECT_MATCH_EXACT, "P1", "1.1");
    studies_by(ID, OBJECT_MATCH_EXACT, "p1", ""); /* only names are case-insensitive */
    studies_by(ID, OBJECT_MATCH_EXACT, "P", "");
    studies_by(ID, OBJECT_MATCH_EXACT, "P10x", "");
    studies_by(ID, OBJECT_MATCH_EXACT, "P[2]*", "1.2");
    studies_by(NAME, OBJECT_MATCH_EXACT, "Nobody", "1.3");
    studies_by(NAME, OBJECT_MATCH_EXACT, "NOBODY", "1.3");
    studies_by(NAME, OBJECT_MATCH_EXACT, "nobod", "");
    studies_by(NAME, OBJECT_MATCH_EXACT, "alias^second", "1.2"); /* any value */
    studies_by(NAME, OBJECT_MATCH_EXACT, "[a]^b\\Alias^Second", "");
    studies_by(NAME, OBJECT_MATCH_EXACT, "meyer^anna", "1.1"); /* any group of a name */
    studies_by(NAME, OBJECT_MATCH_EXACT, "\xe9\xba\xa6^\xe5\xae\x89", "1.1");
    studies_by(NAME, OBJECT_MATCH_EXACT, "Maier^A", "1.1");
    studies_by(MODALITIES, OBJECT_MATCH_EXACT, "SR", ALL_STUDIES);
    studies_by(MODALITIES, OBJECT_MATCH_EXACT, "CT\\SR", "");
    studies_by(ACCESSION, OBJECT_MATCH_EXACT, "x", ""); /* an attribute that nobody has */
    studies_by(REQUEST, OBJECT_MATCH_EXACT, "[{\"00400007\":{}}]",
               ""); /* sequences match nothing */
}

static void universal_main(void *arg)
{
    (void)arg;
    studies_by(ID, OBJECT_MATCH_EXACT, "", ALL_STUDIES); /* present or not */
    studies_by(ID, OBJECT_MATCH_WILDCARD, "*", ALL_STUDIES);
    studies_by(ACCESSION, OBJECT_MATCH_WILDCARD, "*", ALL_STUDIES);
    studies_by(DATE, OBJECT_MATCH_RANGE, "", ALL_STUDIES);
    studies_by(ID, OBJECT_MATCH_WILDCARD, "**",
               "1.1 1.10 1.2"); /* any value, but one there must be */
}

static void wildcard_main(void *arg)
{
    char many[400];

    (void)arg;
    studies_by(ID, OBJECT_MATCH_WILDCARD, "P*", "1.1 1.10 1.2");
    studies_by(ID, OBJECT_MATCH_WILDCARD, "P?", "1.1");
    studies_by(ID, OBJECT_MATCH_WILDCARD, "P??", "1.10");
    studies_by(ID, OBJECT_MATCH_WILDCARD, "*0", "1.10");
    studies_by(ID, OBJECT_MATCH_WILDCARD, "*1*", "1.1 1.10");
    studies_by(ID, OBJECT_MATCH_WILDCARD, "?1?*", "1.10");
    studies_by(ID, OBJECT_MATCH_WILDCARD, "P[2]", ""); /* brackets are themselves */
    studies_by(ID, OBJECT_MATCH_WILDCARD, "p*", "");
    studies_by(NAME, OBJECT_MATCH_WILDCARD, "meyer*", "1.1 1.10");
    studies_by(NAME, OBJECT_MATCH_WILDCARD, "MEYER?^*", "1.10");
    studies_by(NAME, OBJECT_MATCH_WILDCARD, "*^a", "1.1");
    studies_by(NAME, OBJECT_MATCH_WILDCARD, "a*d", "1.2");
    studies_by(NAME, OBJECT_MATCH_WILDCARD, "\xe9\xba\xa6*", "1.1");
    studies_by(MODALITIES, OBJECT_MATCH_WILDCARD, "?R", ALL_STUDIES);
    studies_by(DATE, OBJECT_MATCH_WILDCARD, "2024*", "1.1 1.10");
    /* A pattern that costs much if it is walked without thought. */
    for (unsigned i = 0; i < sizeof(many) - 2; i += 2)
        memcpy(many + i, "*e", 2);
    strcpy(many + sizeof(many) - 2, "!");
    studies_by(NAME, OBJECT_MATCH_WILDCARD, many, "");
}

static void range_main(void *arg)
{
    (void)arg;
    studies_by(DATE, OBJECT_MATCH_RANGE, "20240101-20240131", "1.1");
    studies_by(DATE, OBJECT_MATCH_RANGE, "20240101-20240101", "1.1");
    studies_by(DATE, OBJECT_MATCH_RANGE, "20240102-", "1.10");
    studies_by(DATE, OBJECT_MATCH_RANGE, "20240101-", "1.1 1.10");
    studies_by(DATE, OBJECT_MATCH_RANGE, "-20231231", "1.3");
    studies_by(DATE, OBJECT_MATCH_RANGE, "-20240101", "1.1 1.3");
    studies_by(DATE, OBJECT_MATCH_RANGE, "20250101-20241231", "");
    studies_by(DATE, OBJECT_MATCH_RANGE, "20240215", "1.10");
    studies_by(DATE, OBJECT_MATCH_RANGE, "-", "1.1 1.10 1.3"); /* any that there is */
    studies_by(TIME, OBJECT_MATCH_RANGE, "1000-1030", "1.1");
    studies_by(TIME, OBJECT_MATCH_RANGE, "101500-", "1.1 1.10");
    studies_by(TIME, OBJECT_MATCH_RANGE, "101501-", "1.10");
    studies_by(TIME, OBJECT_MATCH_RANGE, "-0715", "1.3");
    studies_by(TIME, OBJECT_MATCH_RANGE, "-071459", "");
    studies_by(TIME, OBJECT_MATCH_RANGE, "-071500", "1.3"); /* as far as both tell */
    studies_by(TIME, OBJECT_MATCH_RANGE, "23-24", "1.10");
    studies_by(TIME, OBJECT_MATCH_RANGE, "235959.2-", "");
    studies_by(TIME, OBJECT_MATCH_RANGE, "235959.1-235959.2", "1.10");
}

static void list_main(void *arg)
{
    (void)arg;
    studies_by(STUDY_UID, OBJECT_MATCH_LIST, "1.1\\1.3", "1.1 1.3");
    studies_by(STUDY_UID, OBJECT_MATCH_LIST, "1.10", "1.10");
    studies_by(STUDY_UID, OBJECT_MATCH_LIST, "1.\\1\\1.100", "");
    studies_by(STUDY_UID, OBJECT_MATCH_LIST, "9\\\\1.2\\", "1.2");
}

static void levels_main(void *arg)
{
    (void)arg;
    expect(OBJECT_SERIES, MODALITY, OBJECT_MATCH_EXACT, "CT", "1.1.1 1.10.1");
    expect(OBJECT_SERIES, ID, OBJECT_MATCH_EXACT, "P1", "1.1.1 1.1.2"); /* of the study above */
    expect(OBJECT_INSTANCE, MODALITY, OBJECT_MATCH_EXACT, "CT", "1.1.1.1 1.1.1.2 1.10.1.1");
    expect(OBJECT_INSTANCE, NUMBER, OBJECT_MATCH_EXACT, "1", "1.1.1.1 1.1.2.1");
    expect(OBJECT_INSTANCE, NAME, OBJECT_MATCH_WILDCARD, "meyer*",
           "1.1.1.1 1.1.1.2 1.1.2.1 1.10.1.1");
    expect(OBJECT_INSTANCE, SYNTAX, OBJECT_MATCH_EXACT, "1.2.840.10008.1.2.1",
           "1.1.1.1 1.1.1.2 1.1.2.1 1.10.1.1 1.2.1.1");
    studies_by(MODALITY, OBJECT_MATCH_EXACT, "CT", ""); /* a study has no modality of its own */
}

static void under(enum object_level level, const char *study, const char *series,
                  const char *instance, const char *want)
{
    struct object_query q = {
        .level = level, .study_uid = study, .series_uid = series, .instance_uid = instance};

    expect_query(&q, want);
}

static void under_main(void *arg)
{
    char longest[OBJECT_UID_MAX + 2];

    (void)arg;
    under(OBJECT_STUDY, NULL, NULL, NULL, ALL_STUDIES);
    under(OBJECT_STUDY, "1.1", NULL, NULL, "1.1"); /* not 1.10, which begins like it */
    under(OBJECT_SERIES, "1.1", NULL, NULL, "1.1.1 1.1.2");
    under(OBJECT_SERIES, "1.1", "1.1.2", NULL, "1.1.2");
    under(OBJECT_SERIES, NULL, "1.10.1", NULL, "1.10.1"); /* without its study */
    under(OBJECT_INSTANCE, "1.1", NULL, NULL, "1.1.1.1 1.1.1.2 1.1.2.1");
    under(OBJECT_INSTANCE, "1.1", "1.1.1", NULL, "1.1.1.1 1.1.1.2");
    under(OBJECT_INSTANCE, "1.1", "1.1.1", "1.1.1.2", "1.1.1.2");
    under(OBJECT_INSTANCE, NULL, NULL, "1.10.1.1", "1.10.1.1");
    under(OBJECT_INSTANCE, "1.1", NULL, "1.1.2.1", "1.1.2.1");
    under(OBJECT_INSTANCE, "1.2", "1.1.1", NULL, "");
    under(OBJECT_INSTANCE, "1", NULL, NULL, "");
    under(OBJECT_INSTANCE, "", NULL, NULL, "");
    memset(longest, '1', sizeof(longest));
    longest[OBJECT_UID_MAX + 1] = 0;
    under(OBJECT_STUDY, longest, NULL, NULL, ""); /* none of that length can be stored */
    under(OBJECT_INSTANCE, NULL, NULL, longest, "");
}

static void page(uint64_t offset, uint64_t limit, const char *want)
{
    struct object_query q = {.level = OBJECT_STUDY, .offset = offset, .limit = limit};

    expect_query(&q, want);
}

static void paging_main(void *arg)
{
    struct object_match m = {NAME, OBJECT_MATCH_WILDCARD, "meyer*"};
    struct object_query q = {.level = OBJECT_INSTANCE, .matches = &m, .match_count = 1, .limit = 3};

    (void)arg;
    page(0, 4, ALL_STUDIES);
    page(0, 3, "1.1 1.10 1.2+");
    page(1, 2, "1.10 1.2+");
    page(2, 2, "1.2 1.3");
    page(3, 9, "1.3");
    page(4, 9, "");
    page(UINT64_MAX, 1, "");
    page(0, UINT64_MAX, ALL_STUDIES);
    expect_query(&q, "1.1.1.1 1.1.1.2 1.1.2.1+"); /* of those that match */
    q.offset = 3;
    expect_query(&q, "1.10.1.1");
}

static void anded_main(void *arg)
{
    struct object_match ms[] = {{NAME, OBJECT_MATCH_WILDCARD, "meyer*"},
                                {DATE, OBJECT_MATCH_RANGE, "20240201-"},
                                {ID, OBJECT_MATCH_EXACT, ""}};
    struct object_query q = {.level = OBJECT_STUDY, .matches = ms, .match_count = 3};

    (void)arg;
    expect_query(&q, "1.10");
    q.study_uid = "1.1";
    expect_query(&q, "");
}

/* An instance's row carries all that is above it, and what is computed. */
static void row_main(void *arg)
{
    struct object_rows *rows;
    const struct object_row *r;

    (void)arg;
    assert_int_equal(study_instance_row(&ss, "1.1", "1.1.1", "1.1.1.2", &rows), 0);
    r = &rows->rows[0];
    assert_string_equal(r->study_uid, "1.1");
    assert_string_equal(r->series_uid, "1.1.1");
    assert_string_equal(r->instance_uid, "1.1.1.2");
    assert_string_equal(r->sop_class_uid, "1.2.840.10008.5.1.4.1.1.2");
    assert_string_equal(r->transfer_syntax_uid, "1.2.840.10008.1.2.1");
    assert_int_equal(r->bytes, 250);
    assert_int_equal(r->dataset_off, 132);
    assert_int_equal(r->stored_ns, 77);
    assert_string_equal(text_of(r, ID), "P1");
    assert_string_equal(text_of(r, MODALITY), "CT");
    assert_string_equal(text_of(r, NUMBER), "2");
    assert_string_equal(text_of(r, MODALITIES), "CT\\SR");
    assert_string_equal(text_of(r, 0x00201206), "2");
    assert_string_equal(text_of(r, 0x00201208), "3");
    assert_string_equal(text_of(r, 0x00201209), "2");
    assert_string_equal(text_of(r, SYNTAX), "1.2.840.10008.1.2.1");
    assert_null(text_of(r, ACCESSION));
    mem_free(rows);
    assert_int_equal(study_instance_row(&ss, "1.1", "1.1.2", "1.1.1.2", &rows), ERR_NOENT);
    assert_int_equal(
        study_query(&ss.face, &(struct object_query){.level = (enum object_level)3}, &rows),
        ERR_INVAL);
    assert_int_equal(
        study_query(&ss.face, &(struct object_query){.level = (enum object_level) - 2}, &rows),
        ERR_INVAL);
    assert_int_equal(
        study_query(&ss.face, &(struct object_query){.level = OBJECT_PATIENT, .study_uid = "1.1"},
                    &rows),
        ERR_INVAL);
}

/* More rows than a page of the store holds. */
static void many_main(void *arg)
{
    struct object_query q = {.level = OBJECT_INSTANCE, .study_uid = "5"};
    struct object_rows *rows;

    (void)arg;
    batch = kv_batch_new();
    put_study("5", "Many", "M", "20240101", "");
    put_series("5", "5.1", "CT");
    for (unsigned i = 0; i < 1000; i++) {
        char uid[20];

        snprintf(uid, sizeof(uid), "5.1.%04u", i);
        put_instance("5", "5.1", uid, "1");
    }
    assert_int_equal(kv_write(p.kv, batch), 0);
    kv_batch_free(batch);
    assert_int_equal(study_query(&ss.face, &q, &rows), 0);
    assert_int_equal(rows->count, 1000);
    for (unsigned i = 1; i < 1000; i++)
        assert_true(strcmp(rows->rows[i - 1].instance_uid, rows->rows[i].instance_uid) < 0);
    mem_free(rows);
    q.offset = 250;
    q.limit = 500;
    assert_int_equal(study_query(&ss.face, &q, &rows), 0);
    assert_int_equal(rows->count, 500);
    assert_true(rows->more);
    assert_string_equal(rows->rows[0].instance_uid, "5.1.0250");
    assert_string_equal(rows->rows[499].instance_uid, "5.1.0749");
    mem_free(rows);
}

/* ---- Patients ---- */

#define ISSUER  0x00100021u
#define STUDIES 0x00201200u

static void write_row(enum kv_table t, const struct catalog_key *k, const char *value)
{
    batch = kv_batch_new();
    if (value)
        kv_batch_put(batch, t, catalog_key_slice(k), (struct kv_slice){value, strlen(value)});
    else
        kv_batch_delete(batch, t, catalog_key_slice(k));
    assert_int_equal(kv_write(p.kv, batch), 0);
    kv_batch_free(batch);
}

/* A study with a series and an instance, in a batch of its own. NULL leaves an attribute out. */
static void put_study_of(const char *uid, const char *vr, const char *id, const char *issuer)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct catalog_study *s = mem_zalloc(sizeof(*s));
    struct catalog_key k;
    char series[OBJECT_UID_MAX + 1], instance[OBJECT_UID_MAX + 1];

    snprintf(series, sizeof(series), "%.50s.1", uid);
    snprintf(instance, sizeof(instance), "%.50s.1.1", uid);
    batch = kv_batch_new();
    s->series = s->instances = 1;
    s->attrs.attrs[s->attrs.count++] = attr(NAME, "PN", uid);
    if (id)
        s->attrs.attrs[s->attrs.count++] = attr(ID, vr, id);
    if (issuer)
        s->attrs.attrs[s->attrs.count++] = attr(ISSUER, "LO", issuer);
    catalog_study_encode(s, &row);
    catalog_key_make(&k, 'T', uid, NULL, NULL);
    put_row(&k, &row);
    put_series(uid, series, "CT");
    put_instance(uid, series, instance, "1");
    patient = (struct study_patient){0};
    assert_int_equal(study_patient_load(&ss, &s->attrs, &patient), 0);
    study_patient_add(&patient, &s->attrs, uid, batch);
    mem_free(patient.value);
    assert_int_equal(kv_write(p.kv, batch), 0);
    kv_batch_free(batch);
    mem_free(s);
}

static char cut[CATALOG_ID_MAX + 1], over[CATALOG_ID_MAX + 50], longer[CATALOG_ID_MAX + 50];

static void put_patients(void)
{
    memset(cut, 'x', CATALOG_ID_MAX);
    memset(over, 'x', sizeof(over) - 1);
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 2] = 'y';
    put_study_of("6.2", "LO", "Q", NULL);
    put_study_of("6.10", "LO", "Q", "");
    put_study_of("6.1", "LO", "Q", "H2");
    put_study_of("6.3", "LO", "A\\\\Q\\Q", NULL); /* whose? */
    put_study_of("6.4", "LO", over, NULL);
    put_study_of("6.5", "LO", longer, NULL); /* the same key as that one's */
    put_study_of("6.6", "LO", cut, NULL);
    put_study_of("6.7", "LO", "", "H2");
    put_study_of("6.8", "LO", NULL, "H2");
    put_study_of("6.9", "PN", "q=Q", NULL); /* not what it is taken for */
    put_study_of("6.11", "SQ", "Q", NULL);
    put_study_of("6.12", "LO", "QQ", "");
}

/* The same UIDs in the same order. */
static void expect_same(const struct object_query *a, const struct object_query *b)
{
    struct object_rows *x, *y;

    assert_int_equal(study_query(&ss.face, a, &x), 0);
    assert_int_equal(study_query(&ss.face, b, &y), 0);
    assert_int_equal(x->count, y->count);
    assert_int_equal(x->more, y->more);
    for (size_t i = 0; i < x->count; i++) {
        assert_string_equal(uid_of(&x->rows[i]), uid_of(&y->rows[i]));
        assert_int_equal(x->rows[i].attr_count, y->rows[i].attr_count);
    }
    mem_free(x);
    mem_free(y);
}

/* A wildcard without '*' and '?' means what an exact value means, and knows no index. */
static void expect_as_walked(const char *id)
{
    for (int level = OBJECT_PATIENT; level <= OBJECT_INSTANCE; level++)
        for (unsigned offset = 0; offset < 4; offset++)
            for (unsigned limit = 0; limit < 4; limit++) {
                struct object_match by_index = {ID, OBJECT_MATCH_EXACT, id};
                struct object_match walked = {ID, OBJECT_MATCH_WILDCARD, id};
                struct object_query a = {.level = (enum object_level)level,
                                         .matches = &by_index,
                                         .match_count = 1,
                                         .offset = offset,
                                         .limit = limit};
                struct object_query b = a;

                b.matches = &walked;
                expect_same(&a, &b);
                if (level != OBJECT_PATIENT) {
                    a.instance_uid = b.instance_uid = "6.10.1.1";
                    expect_same(&a, &b);
                    a.study_uid = b.study_uid = "6.10";
                    expect_same(&a, &b);
                }
            }
}

static void index_main(void *arg)
{
    static const char *const ids[] = {"P1", "P", "Q", "q", "A", "A\\Q", "q=Q", "QQ", "none"};

    (void)arg;
    put_patients();
    studies_by(ID, OBJECT_MATCH_EXACT, "Q",
               "6.1 6.10 6.2 6.3"); /* not in the order of their coming */
    studies_by(ID, OBJECT_MATCH_EXACT, "A", "6.3");
    studies_by(ID, OBJECT_MATCH_EXACT, "q=Q", "6.9");
    studies_by(ID, OBJECT_MATCH_EXACT, over, "6.4");
    studies_by(ID, OBJECT_MATCH_EXACT, longer, "6.5");
    studies_by(ID, OBJECT_MATCH_EXACT, cut, "6.6");
    expect(OBJECT_INSTANCE, ID, OBJECT_MATCH_EXACT, "Q", "6.1.1.1 6.10.1.1 6.2.1.1 6.3.1.1");
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
        expect_as_walked(ids[i]);
    expect_as_walked(over);
    expect_as_walked(longer);
    expect_as_walked(cut);
}

static void patients_main(void *arg)
{
    struct object_match issued[] = {{ID, OBJECT_MATCH_EXACT, "Q"},
                                    {ISSUER, OBJECT_MATCH_EXACT, "H2"}};
    struct object_query q = {.level = OBJECT_PATIENT, .matches = issued, .match_count = 1};
    struct object_rows *rows;
    char want[CATALOG_ID_MAX + 100];

    (void)arg;
    put_patients();
    snprintf(want, sizeof(want), "P1 P10 P[2]* Q Q QQ q=Q %s", cut);
    expect(OBJECT_PATIENT, ID, OBJECT_MATCH_EXACT, "", want);
    expect(OBJECT_PATIENT, ID, OBJECT_MATCH_EXACT, "*", want);
    expect(OBJECT_PATIENT, NAME, OBJECT_MATCH_WILDCARD, "meyer*", "P1 P10");
    expect(OBJECT_PATIENT, STUDIES, OBJECT_MATCH_EXACT, "2", "Q");
    assert_int_equal(study_query(&ss.face, &q, &rows), 0);
    assert_int_equal(rows->count, 2);
    assert_int_equal(rows->rows[0].level, OBJECT_PATIENT);
    assert_string_equal(text_of(&rows->rows[0], NAME), "6.2"); /* as the first study said */
    assert_string_equal(text_of(&rows->rows[0], STUDIES), "2");
    assert_null(text_of(&rows->rows[0], ISSUER));
    assert_string_equal(text_of(&rows->rows[1], ISSUER), "H2");
    assert_string_equal(text_of(&rows->rows[1], STUDIES), "1");
    assert_string_equal(rows->rows[0].study_uid, "");
    assert_int_equal(rows->rows[0].bytes, 0);
    mem_free(rows);
    q.match_count = 2;
    expect_query(&q, "Q");
    q.match_count = 0;
    q.offset = 3;
    q.limit = 2;
    expect_query(&q, "Q Q+");
}

/* What other patients have is not even looked at: here it could not be read. */
static void only_own_main(void *arg)
{
    struct object_match m = {ID, OBJECT_MATCH_EXACT, "P10"};
    struct object_query q = {.level = OBJECT_STUDY, .matches = &m, .match_count = 1};
    struct object_rows *rows;
    struct catalog_key k;

    (void)arg;
    for (unsigned i = 0; i < 3; i++) {
        static const char levels[] = "TSI";

        catalog_key_make(&k, levels[i], "1.11", i ? "1.11.1" : NULL, i > 1 ? "1.11.1.1" : NULL);
        write_row(KV_CATALOG, &k, "damaged");
    }
    catalog_id_key(&k, "P11", 3, NULL);
    write_row(KV_CATALOG, &k, "damaged");
    for (int level = OBJECT_PATIENT; level <= OBJECT_INSTANCE; level++) {
        q.level = (enum object_level)level;
        m.kind = OBJECT_MATCH_EXACT;
        assert_int_equal(study_query(&ss.face, &q, &rows), 0);
        assert_int_equal(rows->count, 1);
        mem_free(rows);
        m.kind = OBJECT_MATCH_WILDCARD;
        assert_int_equal(study_query(&ss.face, &q, &rows), ERR_FORMAT);
    }
}

/* More studies of a patient than a page of the index holds. */
static void many_studies_main(void *arg)
{
    struct object_match m = {ID, OBJECT_MATCH_EXACT, "R"},
                        walked = {ID, OBJECT_MATCH_WILDCARD, "R"};
    struct object_query a = {.level = OBJECT_STUDY, .matches = &m, .match_count = 1}, b = a;
    struct object_rows *rows;
    char uid[20];

    (void)arg;
    for (unsigned i = 0; i < 1200; i++) {
        snprintf(uid, sizeof(uid), "7.%u", i);
        put_study_of(uid, "LO", i % 2 ? "R" : "S", NULL);
    }
    b.matches = &walked;
    for (int level = OBJECT_PATIENT; level <= OBJECT_INSTANCE; level++) {
        a.level = b.level = (enum object_level)level;
        a.offset = b.offset = a.limit = b.limit = 0;
        expect_same(&a, &b);
        a.offset = b.offset = 250;
        a.limit = b.limit = 300;
        expect_same(&a, &b);
    }
    a.level = OBJECT_STUDY;
    assert_int_equal(study_query(&ss.face, &a, &rows), 0);
    assert_int_equal(rows->count, 300);
    assert_true(rows->more);
    mem_free(rows);
    expect(OBJECT_PATIENT, STUDIES, OBJECT_MATCH_EXACT, "600", "R S");
}

static void damaged_patient_main(void *arg)
{
    struct object_match m = {ID, OBJECT_MATCH_EXACT, "P1"};
    struct object_query q = {.level = OBJECT_STUDY, .matches = &m, .match_count = 1};
    struct catalog_attrs *attrs = mem_zalloc(sizeof(*attrs));
    struct object_rows *rows;
    struct catalog_key k;
    char longest[OBJECT_UID_MAX + 2];

    (void)arg;
    catalog_id_key(&k, "P1", 2, "1.0"); /* a study that went while the walk was under way */
    write_row(KV_INDEX, &k, "");
    catalog_id_key(&k, "P1", 2, "1.3"); /* ... or is somebody else's by now */
    write_row(KV_INDEX, &k, "");
    expect_query(&q, "1.1");
    q.level = OBJECT_SERIES;
    expect_query(&q, "1.1.1 1.1.2");
    memset(longest, '1', OBJECT_UID_MAX + 1);
    longest[OBJECT_UID_MAX + 1] = 0;
    catalog_id_key(&k, "P1", 2, NULL);
    memcpy(k.bytes + k.len, longest, OBJECT_UID_MAX + 1);
    k.len += OBJECT_UID_MAX + 1;
    write_row(KV_INDEX, &k, "");
    assert_int_equal(study_query(&ss.face, &q, &rows), ERR_FORMAT);
    q.level = OBJECT_STUDY;
    assert_int_equal(study_query(&ss.face, &q, &rows), ERR_FORMAT);
    attrs->attrs[attrs->count++] = attr(ID, "LO", "P1");
    assert_int_equal(study_patient_load(&ss, attrs, &patient), 0);
    mem_free(patient.value);
    assert_true(catalog_patient_key(&k, attrs));
    write_row(KV_CATALOG, &k, "damaged");
    patient = (struct study_patient){0};
    assert_int_equal(study_patient_load(&ss, attrs, &patient), ERR_FORMAT);
    mem_free(patient.value);
    q.level = OBJECT_PATIENT;
    assert_int_equal(study_query(&ss.face, &q, &rows), ERR_FORMAT);
    write_row(KV_CATALOG, &k, NULL);
    patient = (struct study_patient){0};
    assert_int_equal(study_patient_load(&ss, attrs, &patient), 0);
    assert_false(patient.exists);
    mem_free(attrs);
}

static void damaged_main(void *arg)
{
    struct object_query q = {.level = OBJECT_SERIES};
    struct object_rows *rows;
    struct catalog_key k;

    (void)arg;
    batch = kv_batch_new();
    catalog_key_make(&k, 'S', "1.2", "1.2.5", NULL);
    kv_batch_put(batch, KV_CATALOG, catalog_key_slice(&k), (struct kv_slice){"damaged", 7});
    assert_int_equal(kv_write(p.kv, batch), 0);
    assert_int_equal(study_query(&ss.face, &q, &rows), ERR_FORMAT);
    kv_batch_clear(batch);
    kv_batch_delete(batch, KV_CATALOG, catalog_key_slice(&k));
    catalog_key_make(&k, 'T', "1.2", NULL, NULL);
    kv_batch_delete(batch, KV_CATALOG,
                    catalog_key_slice(&k)); /* went while the walk was under way */
    assert_int_equal(kv_write(p.kv, batch), 0);
    kv_batch_free(batch);
    expect_query(&q, "1.1.1 1.1.2 1.10.1 1.3.1");
}

/* ---- Running ---- */

static void stage_main(void *arg)
{
    p = (struct partition){.env = c.env};
    ss = (struct studies){.p = &p};
    assert_int_equal(kv_mem_open(c.env, NULL, &p.kv), 0);
    batch = kv_batch_new();
    put_rows();
    assert_int_equal(kv_write(p.kv, batch), 0);
    kv_batch_free(batch);
    ((void (*)(void *))arg)(NULL);
    assert_int_equal(kv_close(p.kv), 0);
}

static void test_stage(void **state)
{
    sim_case_init(&c, 1);
    sim_case_run(&c, stage_main, *state);
    sim_case_free(&c);
}

#define CASE(name)                                         \
    {                                                      \
#name, test_stage, NULL, NULL, (void *)name##_main \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(exact),        CASE(universal),       CASE(wildcard), CASE(range),    CASE(list),
        CASE(levels),       CASE(under),           CASE(paging),   CASE(anded),    CASE(row),
        CASE(many),         CASE(damaged),         CASE(index),    CASE(only_own), CASE(patients),
        CASE(many_studies), CASE(damaged_patient),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

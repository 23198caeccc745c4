/* The pure parts of DICOMweb: media types, multipart, paths, searches, reports, frames. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "proto/dicomweb/frames.h"
#include "proto/dicomweb/mime.h"
#include "proto/dicomweb/multipart.h"
#include "proto/dicomweb/qido.h"
#include "proto/dicomweb/report.h"
#include "proto/dicomweb/route.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- Media types ----------------------------------------------------------------------------- */

static void test_mime_parse(void **state)
{
    static const char *const bad[] = {"",     "a",       "a/",    "/b",         "a/b/c",
                                      "a/b;", "a/b; =x", "a/b x", "a/b; x=\"y", "a/b; x=y z"};
    struct mime m;

    (void)state;
    assert_int_equal(
        mime_parse("Multipart/Related; type=\"application/dicom\"; boundary=\"a b\\\"c\"", &m), 0);
    assert_string_equal(m.type, "multipart/related");
    assert_string_equal(mime_param(&m, "type"), "application/dicom");
    assert_string_equal(mime_param(&m, "boundary"), "a b\"c");
    assert_null(mime_param(&m, "charset"));
    assert_int_equal(mime_parse("multipart/related;type=application/dicom;;Boundary=--x", &m), 0);
    assert_string_equal(mime_param(&m, "type"), "application/dicom");
    assert_string_equal(mime_param(&m, "boundary"), "--x");
    for (size_t i = 0; i < COUNT(bad); i++)
        if (strcmp(bad[i], "a/b;") != 0)
            assert_int_equal(mime_parse(bad[i], &m), ERR_INVAL);
}

static int choose(const char *accept, const struct mime_offer *offers, size_t n)
{
    struct mime_accept a = {0};

    if (accept && mime_accept_add(&a, accept) < 0)
        return -2;
    return mime_choose(&a, offers, n);
}

static void test_accept(void **state)
{
    static const char *const stored[] = {"1.2.840.10008.1.2.4.80"};
    static const struct mime_offer o[] = {
        {"application/dicom", false, stored, 1, false},
        {"application/dicom", true, stored, 1, false},
    };
    static const struct {
        const char *accept;
        int want;
    } cases[] = {
        {NULL, 0},
        {"*/*", 0},
        {"application/*", 0},
        {"application/dicom", 0},
        {"multipart/*", 1},
        {"multipart/related", 1},
        {"multipart/related; type=\"application/dicom\"", 1},
        {"multipart/related; type=application/dicom", 1},
        {"multipart/related; type=\"application/dicom\"; transfer-syntax=*", 1},
        {"multipart/related; type=\"application/dicom\"; transfer-syntax=\"*\"", 1},
        {"multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2.4.80", 1},
        {"multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2.1", -1},
        {"application/dicom; transfer-syntax=1.2.840.10008.1.2.1, */*;q=0.1", 0},
        {"multipart/related; type=\"image/jpeg\"", -1},
        {"application/dicom+json", -1},
        {"text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", 0},
        {"application/dicom;q=0.3, multipart/related;type=application/dicom;q=0.8", 1},
        {"application/dicom;q=0, */*", 1},
        {"*/*;q=0", -1},
        {"multipart/related;type=application/dicom, application/dicom", 1},
        {", ,application/dicom,", 0},
        {"application/dicom;q=1.001", -2},
        {"application/dicom;q=x", -2},
        {"application", -2},
        {"application/dicom \x01", -2},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++)
        if (choose(cases[i].accept, o, 2) != cases[i].want)
            fail_msg("%s: %d", cases[i].accept, choose(cases[i].accept, o, 2));
}

/* Many syntaxes in one answer: all have to be accepted. */
static void test_accept_syntaxes(void **state)
{
    static const char *const two[] = {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"};
    static const struct mime_offer o[] = {{"application/dicom", true, two, 2, false}};
    static const char *const jp2[] = {"1.2.840.10008.1.2.4.90"};
    static const struct mime_offer frames[] = {{"image/jp2", true, jp2, 1, false},
                                               {"application/octet-stream", true, jp2, 1, true}};

    (void)state;
    assert_int_equal(choose("multipart/related;type=application/dicom;"
                            "transfer-syntax=1.2.840.10008.1.2.1",
                            o, 1),
                     -1);
    assert_int_equal(choose("multipart/related;type=application/dicom;transfer-syntax=*", o, 1), 0);
    assert_int_equal(choose("multipart/related; type=application/octet-stream", frames, 2), -1);
    assert_int_equal(
        choose("multipart/related; type=application/octet-stream; transfer-syntax=*", frames, 2),
        1);
    assert_int_equal(choose("multipart/related; type=image/jp2", frames, 2), 0);
    assert_int_equal(choose("multipart/related; type=\"image/jp2\";"
                            "transfer-syntax=1.2.840.10008.1.2.4.90",
                            frames, 2),
                     0);
    assert_int_equal(choose("*/*", frames, 2), 0);
}

static void test_accept_arg(void **state)
{
    static const struct mime_offer o[] = {{.type = "application/dicom+json"}};
    struct mime_accept a = {0};
    struct strbuf many = STRBUF_INIT;

    (void)state;
    assert_int_equal(mime_accept_add_arg(&a, "application/dicom json"), 0);
    assert_int_equal(mime_choose(&a, o, 1), 0);
    for (int i = 0; i <= MIME_ACCEPT_MAX; i++)
        strbuf_adds(&many, "a/b,");
    a.count = 0;
    assert_int_equal(mime_accept_add(&a, many.data), ERR_TOOBIG);
    strbuf_free(&many);
}

/* ---- Multipart ------------------------------------------------------------------------------- */

struct seen {
    struct strbuf log;
};

static int see_part(void *arg, const struct multipart_part *part)
{
    struct seen *s = arg;

    strbuf_addf(&s->log, "<%s%s", part->content_type ? part->content_type : "-",
                part->encoded ? " encoded" : "");
    if (part->content_length != UINT64_MAX)
        strbuf_addf(&s->log, " %llu", (unsigned long long)part->content_length);
    strbuf_adds(&s->log, ">");
    return 0;
}

static int see_data(void *arg, const void *data, size_t len)
{
    struct seen *s = arg;

    assert_true(len > 0);
    strbuf_add(&s->log, data, len);
    return 0;
}

static int see_end(void *arg)
{
    struct seen *s = arg;

    strbuf_adds(&s->log, "</>");
    return 0;
}

static const struct multipart_ops see = {see_part, see_data, see_end};

/* Parses `body` in pieces of `step` bytes. */
static int parse(const char *boundary, const char *body, size_t len, size_t step, struct seen *s)
{
    struct multipart *m = mem_alloc(sizeof(*m));
    int r = multipart_init(m, boundary, &see, s);

    strbuf_reset(&s->log);
    for (size_t i = 0; i < len && r == 0; i += step)
        r = multipart_push(m, body + i, step < len - i ? step : len - i);
    if (r == 0)
        r = multipart_finish(m);
    mem_free(m);
    return r;
}

static void expect(const char *boundary, const char *body, int want, const char *log)
{
    struct seen s = {STRBUF_INIT};

    for (size_t step = 1; step <= strlen(body) + 1; step++) {
        assert_int_equal(parse(boundary, body, strlen(body), step, &s), want);
        strbuf_adds(&s.log, "");
        if (log && strcmp(s.log.data ? s.log.data : "", log) != 0)
            fail_msg("in steps of %zu: %s", step, s.log.data);
    }
    strbuf_free(&s.log);
}

static void test_multipart(void **state)
{
    (void)state;
    expect("b", "--b\r\nContent-Type: application/dicom\r\nContent-Length: 3\r\n\r\nabc\r\n--b--",
           0, "<application/dicom 3>abc</>");
    expect("b",
           "pre\r\nface\r\n--b\r\n\r\none\r\n--b \t\r\n\r\ntwo\r\n--b--\r\nepi\r\n--b\r\nlogue", 0,
           "<->one</><->two</>");
    /* Data that looks like a boundary, nearly. */
    expect("bnd", "--bnd\r\n\r\n\r\r\n\r\n-\r\n--bn\r\n--bndx\r\n--bnd-x\r\n--bnd \r\r\n--bnd--", 0,
           "<->\r\r\n\r\n-\r\n--bn\r\n--bndx\r\n--bnd-x\r\n--bnd \r</>");
    expect("bnd", "--bnd\r\n\r\na--bnd--\r\n--bnd--", 0, "<->a--bnd--</>");
    /* Empty parts, with and without the blank line's own CR LF. */
    expect("b", "--b\r\n\r\n\r\n--b\r\n\r\n--b--", 0, "<-></><-></>");
    expect("b", "--b\r\n\r\n--\r\n--b--", 0, "<->--</>");
    expect("b", "--b--", 0, "");
    expect("a b", "--a b\r\nX: y\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--a b--", 0,
           "<- encoded>x</>");
}

static void test_multipart_broken(void **state)
{
    struct seen s = {STRBUF_INIT};
    struct strbuf big = STRBUF_INIT;
    struct multipart m;

    (void)state;
    expect("b", "", ERR_TRUNCATED, "");
    expect("b", "--b\r\n\r\nabc", ERR_TRUNCATED, "<->abc");
    expect("b", "--b\r\n\r\nabc\r\n--b", ERR_TRUNCATED, "<->abc");
    expect("b", "--b\r\n\r\nabc\r\n--b-", ERR_TRUNCATED, "<->abc");
    expect("b", "no boundary at all", ERR_TRUNCATED, "");
    expect("b", "--b\r\nno colon\r\n\r\nabc\r\n--b--", ERR_PROTO, "");
    expect("b", "--b\r\nbare: lf\n\r\nabc\r\n--b--", ERR_PROTO, "");
    expect("b", "--b\r\nContent-Type: a/b\r\ncontent-type: a/c\r\n\r\n\r\n--b--", ERR_PROTO, "");
    strbuf_adds(&big, "--b\r\n");
    for (int i = 0; i < 1000; i++)
        strbuf_addf(&big, "X-%d: 0123456789\r\n", i);
    assert_int_equal(parse("b", big.data, big.len, 100, &s), ERR_TOOBIG);
    strbuf_free(&big);
    strbuf_free(&s.log);
    assert_int_equal(multipart_init(&m, "", &see, NULL), ERR_INVAL);
    assert_int_equal(multipart_init(&m, "x ", &see, NULL), ERR_INVAL);
    assert_int_equal(multipart_init(&m, "x\r\n", &see, NULL), ERR_INVAL);
    assert_int_equal(multipart_init(&m,
                                    "01234567890123456789012345678901234567890123456789012345678901"
                                    "234567890",
                                    &see, NULL),
                     ERR_INVAL);
}

/* ---- Paths ----------------------------------------------------------------------------------- */

static int route_of(const char *path, struct route *ret)
{
    static char copy[2000];
    static const char *seg[64];
    size_t n = 0;

    snprintf(copy, sizeof(copy), "%s", path);
    for (char *p = copy; *p;) {
        size_t len = strcspn(p, "/");
        bool last = !p[len];

        p[len] = 0;
        seg[n++] = p;
        p += last ? len : len + 1;
    }
    return route_parse(seg, n, ret);
}

static void test_routes(void **state)
{
    static const char *const no[] = {"",
                                     "nothing",
                                     "studies/1/x",
                                     "series/1",
                                     "instances/1",
                                     "studies/1/series/2/x",
                                     "studies/1/series/2/instances/3/frames",
                                     "studies/1/series/2/instances/3/frames/1/2",
                                     "studies/1/series/2/instances/3/metadata/x",
                                     "studies/1/instances/3"};
    struct route r;

    (void)state;
    assert_int_equal(route_of("studies", &r), 0);
    assert_int_equal(r.kind, ROUTE_STUDIES);
    assert_int_equal(route_of("studies/1.2/series", &r), 0);
    assert_int_equal(r.kind, ROUTE_SERIES);
    assert_string_equal(r.study, "1.2");
    assert_int_equal(route_of("studies/1/instances", &r), 0);
    assert_int_equal(r.kind, ROUTE_INSTANCES);
    assert_null(r.series);
    assert_int_equal(route_of("studies/1/series/2/instances/3", &r), 0);
    assert_int_equal(r.kind, ROUTE_RETRIEVE);
    assert_string_equal(r.instance, "3");
    assert_string_equal(route_methods(&r), "GET, HEAD, DELETE");
    assert_int_equal(route_of("studies/1/series/2/metadata", &r), 0);
    assert_int_equal(r.kind, ROUTE_METADATA);
    assert_int_equal(route_of("studies/1/series/2/instances/3/frames/1,2", &r), 0);
    assert_int_equal(r.kind, ROUTE_FRAMES);
    assert_string_equal(r.rest[0], "1,2");
    assert_int_equal(route_of("studies/1/series/2/instances/3/bulkdata/54000100/1/54001010", &r),
                     0);
    assert_int_equal(r.rest_count, 3);
    for (size_t i = 0; i < COUNT(no); i++)
        assert_int_equal(route_of(no[i], &r), ERR_NOENT);
    assert_int_equal(route_of("studies/a", &r), ERR_DICOM_UID);
    assert_int_equal(route_of("studies/1/series/1..2", &r), ERR_DICOM_UID);
}

static void test_frame_numbers(void **state)
{
    static const char *const bad[] = {"",     "0",  "1,",         ",1", "a",
                                      "1,,2", "-1", "4294967296", "1 ", "99999999999999999999999"};
    uint32_t *f = mem_calloc(ROUTE_FRAMES_MAX, sizeof(*f));
    struct strbuf many = STRBUF_INIT;
    size_t n;

    (void)state;
    assert_int_equal(route_frames("3,1,4294967295", f, &n), 0);
    assert_int_equal(n, 3);
    assert_int_equal(f[2], 4294967295u);
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_int_equal(route_frames(bad[i], f, &n), ERR_INVAL);
    for (int i = 0; i < ROUTE_FRAMES_MAX; i++)
        strbuf_adds(&many, "1,");
    strbuf_adds(&many, "1");
    assert_int_equal(route_frames(many.data, f, &n), ERR_TOOBIG);
    strbuf_free(&many);
    mem_free(f);
}

/* ---- Searches -------------------------------------------------------------------------------- */

static int search(enum object_level level, const char *name, const char *value, struct qido *q)
{
    struct qido_arg arg = {name, value};

    return qido_parse(level, false, false, &arg, 1, "accept", q);
}

static void test_qido_restrict(void **state)
{
    struct object_query query = {.level = OBJECT_SERIES};
    struct qido q;

    (void)state;
    assert_int_equal(search(OBJECT_SERIES, "StudyInstanceUID", "1.2", &q), 0);
    qido_restrict(&q, &query);
    assert_string_equal(query.study_uid, "1.2");
    assert_null(query.series_uid);
    query.study_uid = "1.3"; /* of the path: what is matched has to be met as well */
    qido_restrict(&q, &query);
    assert_string_equal(query.study_uid, "1.3");
    qido_free(&q);

    query = (struct object_query){.level = OBJECT_INSTANCE};
    assert_int_equal(search(OBJECT_INSTANCE, "SeriesInstanceUID", "1.2,1.3", &q), 0);
    qido_restrict(&q, &query);
    assert_null(query.series_uid);
    qido_free(&q);
    assert_int_equal(search(OBJECT_INSTANCE, "SOPInstanceUID", "1.4", &q), 0);
    qido_restrict(&q, &query);
    assert_string_equal(query.instance_uid, "1.4");
    assert_null(query.study_uid);
    qido_free(&q);
}

static void expect_match(const char *name, const char *value, uint32_t tag,
                         enum object_match_kind kind, const char *want)
{
    struct qido q;

    if (search(OBJECT_INSTANCE, name, value, &q) < 0)
        fail_msg("%s=%s: %s", name, value, q.error);
    assert_int_equal(q.match_count, 1);
    assert_int_equal(q.matches[0].tag, tag);
    assert_int_equal(q.matches[0].kind, kind);
    assert_string_equal(q.matches[0].value, want);
    qido_free(&q);
}

static void test_qido_matches(void **state)
{
    (void)state;
    expect_match("PatientName", "Doe^J*", 0x00100010, OBJECT_MATCH_WILDCARD, "Doe^J*");
    expect_match("00100010", "Doe", 0x00100010, OBJECT_MATCH_EXACT, "Doe");
    expect_match("PatientID", "?1", 0x00100020, OBJECT_MATCH_WILDCARD, "?1");
    expect_match("StudyDate", "20200101", 0x00080020, OBJECT_MATCH_EXACT, "20200101");
    expect_match("StudyDate", "20200101-20201231", 0x00080020, OBJECT_MATCH_RANGE,
                 "20200101-20201231");
    expect_match("StudyDate", "-20201231", 0x00080020, OBJECT_MATCH_RANGE, "-20201231");
    expect_match("StudyDate", "20200101-", 0x00080020, OBJECT_MATCH_RANGE, "20200101-");
    expect_match("StudyTime", "10-1130", 0x00080030, OBJECT_MATCH_RANGE, "10-1130");
    expect_match("StudyTime", "101112.5", 0x00080030, OBJECT_MATCH_EXACT, "101112.5");
    expect_match("StudyInstanceUID", "1.2,1.3", 0x0020000d, OBJECT_MATCH_LIST, "1.2\\1.3");
    expect_match("StudyInstanceUID", "1.2\\1.3", 0x0020000d, OBJECT_MATCH_LIST, "1.2\\1.3");
    expect_match("0020000D", "1.2", 0x0020000d, OBJECT_MATCH_EXACT, "1.2");
    expect_match("ModalitiesInStudy", "CT,MR", 0x00080061, OBJECT_MATCH_LIST, "CT\\MR");
    expect_match("InstanceNumber", "5", 0x00200013, OBJECT_MATCH_EXACT, "5");
}

static void test_qido_refused(void **state)
{
    static const char *const bad[][2] = {
        {"NoSuchAttribute", "1"},
        {"limit", "x"},
        {"limit", ""},
        {"limit", "-1"},
        {"offset", "1e9"},
        {"limit", "9999999999999999"},
        {"StudyDate", "yesterday"},
        {"StudyDate", "2020-01-01"},
        {"StudyDate", "-"},
        {"StudyDate", "2020010"},
        {"StudyTime", "123"},
        {"StudyTime", "10111.5"},
        {"StudyInstanceUID", "1.2.x"},
        {"StudyInstanceUID", ",1"},
        {"SOPClassUID", "*1"},
        {"fuzzymatching", "maybe"},
        {"includefield", "Nonsense"},
        {"includefield", "a.b"},
        {"RequestAttributesSequence", "x"},
        {"RequestAttributesSequence.StudyID", "x"},
        {"PixelData", "x"},
        {"PatientName", "\xff\xfe"},
        {"PatientName", "a\nb"},
        {"PatientName", "\xc3"},
        {"PatientName", "\xed\xa0\x80"},
        {"", "x"},
    };
    struct qido q;

    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        if (search(OBJECT_INSTANCE, bad[i][0], bad[i][1], &q) != ERR_INVAL)
            fail_msg("%s=%s was taken", bad[i][0], bad[i][1]);
        assert_true(strlen(q.error) > 10);
        qido_free(&q);
    }
    /* A study has no SOP Instance UID: dropping the match would give all studies. */
    assert_int_equal(search(OBJECT_STUDY, "SOPInstanceUID", "1.2", &q), ERR_INVAL);
    qido_free(&q);
    assert_int_equal(search(OBJECT_SERIES, "InstanceNumber", "1", &q), ERR_INVAL);
    qido_free(&q);
}

static void test_qido_args(void **state)
{
    static const struct qido_arg args[] = {
        {"limit", "101"},
        {"offset", "7"},
        {"fuzzymatching", "true"},
        {"includefield", "00081030,StudyID,,PatientAge"},
        {"includefield", "00081030"},
        {"accept", "text/html"},
        {"PatientID", ""},
        {"PatientName", "**"},
    };
    struct qido q;

    (void)state;
    assert_int_equal(qido_parse(OBJECT_STUDY, false, false, args, COUNT(args), "accept", &q), 0);
    assert_int_equal(q.limit, 101);
    assert_true(q.limited);
    assert_int_equal(q.offset, 7);
    assert_non_null(strstr(q.warning, "299 "));
    assert_int_equal(q.match_count, 0);
    assert_int_equal(q.include_count, 5);
    qido_free(&q);
    assert_int_equal(search(OBJECT_STUDY, "limit", "999999", &q), 0);
    assert_int_equal(q.limit, QIDO_LIMIT_MAX);
    assert_false(q.limited);
    assert_int_equal(search(OBJECT_STUDY, "includefield", "all", &q), 0);
    assert_true(q.include_all);
}

#define ATTR(t, v, s)                                       \
    {                                                       \
        .tag = t, .vr = v, .len = sizeof(s) - 1, .value = s \
    }

static void test_qido_row(void **state)
{
    static const struct object_attr attrs[] = {
        ATTR(0x00080005, "CS", "ISO_IR 100"), ATTR(0x00080020, "DA", "20200101"),
        ATTR(0x00081030, "LO", "Head"),       ATTR(0x00100010, "PN", "Doe^\"J\""),
        ATTR(0x00101010, "AS", "040Y"),       ATTR(0x0020000d, "UI", "1.2"),
        ATTR(0x00201208, "IS", "3"),
    };
    static const struct object_row row = {.level = OBJECT_STUDY,
                                          .study_uid = "1.2",
                                          .series_uid = "",
                                          .instance_uid = "",
                                          .sop_class_uid = "",
                                          .transfer_syntax_uid = "",
                                          .attrs = attrs,
                                          .attr_count = COUNT(attrs)};
    struct strbuf out = STRBUF_INIT;
    struct qido q;
    uint32_t last = 0;
    size_t n = 0;

    (void)state;
    assert_int_equal(qido_parse(OBJECT_STUDY, false, false, NULL, 0, NULL, &q), 0);
    qido_row_json(&q, &row, "http://h/dicom-web", &out);
    assert_non_null(strstr(out.data, "\"00081190\":{\"vr\":\"UR\",\"Value\":[\"http://h/dicom-web/"
                                     "studies/1.2\"]}"));
    assert_non_null(strstr(out.data, "\"00080056\":{\"vr\":\"CS\",\"Value\":[\"ONLINE\"]}"));
    assert_non_null(strstr(out.data, "\"0020000D\":{\"vr\":\"UI\",\"Value\":[\"1.2\"]}"));
    assert_non_null(strstr(out.data, "\"00100040\":{\"vr\":\"CS\"}")); /* required, unknown */
    assert_null(strstr(out.data, "00101010"));                         /* not asked for */
    assert_non_null(strstr(out.data, "ISO_IR 192"));                   /* JSON is UTF-8 */
    assert_null(strstr(out.data, "ISO_IR 100"));
    /* Each once, in tag order. */
    for (const char *p = out.data; (p = strstr(p, "\":{\"vr\"")) != NULL; p++) {
        uint32_t tag = (uint32_t)strtoul(p - 8, NULL, 16);

        assert_true(tag > last);
        last = tag;
        n++;
    }
    assert_true(n > 12);
    strbuf_reset(&out);
    assert_int_equal(search(OBJECT_STUDY, "includefield", "PatientAge", &q), 0);
    qido_row_json(&q, &row, "http://h/dicom-web", &out);
    assert_non_null(strstr(out.data, "\"00101010\":{\"vr\":\"AS\",\"Value\":[\"040Y\"]}"));
    strbuf_free(&out);
}

/* ---- Reports --------------------------------------------------------------------------------- */

static void test_report(void **state)
{
    static const struct object_put_result ok = {
        .study_uid = "1.1", .series_uid = "1.2", .instance_uid = "1.3", .sop_class_uid = "1.4"};
    struct report rep = {0};
    struct strbuf out = STRBUF_INIT;

    (void)state;
    assert_int_equal(report_status(&rep), 400);
    report_stored(&rep, "http://h/d", &ok);
    assert_int_equal(report_status(&rep), 200);
    report_json(&rep, "http://h/d", &out);
    assert_string_equal(out.data,
                        "{\"00081190\":{\"vr\":\"UR\",\"Value\":[\"http://h/d/studies/1.1\"]},"
                        "\"00081199\":{\"vr\":\"SQ\",\"Value\":[{"
                        "\"00081150\":{\"vr\":\"UI\",\"Value\":[\"1.4\"]},"
                        "\"00081155\":{\"vr\":\"UI\",\"Value\":[\"1.3\"]},"
                        "\"00081190\":{\"vr\":\"UR\",\"Value\":[\"http://h/d/studies/1.1/series/1.2"
                        "/instances/1.3\"]}}]}}");
    strbuf_reset(&out);
    report_failed(&rep, "1.4", "1.5", ERR_CONFLICT);
    report_failed(&rep, "", "", ERR_DICOM);
    assert_int_equal(report_status(&rep), 202);
    report_json(&rep, "http://h/d", &out);
    assert_non_null(strstr(out.data, "\"00081198\":{\"vr\":\"SQ\",\"Value\":[{\"00081150\":{\"vr\":"
                                     "\"UI\",\"Value\":[\"1.4\"]},\"00081155\":{\"vr\":\"UI\","
                                     "\"Value\":[\"1.5\"]},\"00081197\":{\"vr\":\"US\",\"Value\":"
                                     "[273]}}]}"));
    assert_non_null(strstr(out.data, "\"0008119A\":{\"vr\":\"SQ\",\"Value\":[{\"00081197\":{\"vr\":"
                                     "\"US\",\"Value\":[49152]}}]}"));
    report_free(&rep);
    rep = (struct report){0};
    report_failed(&rep, "1.4", "1.5", ERR_NOSPC);
    assert_int_equal(report_status(&rep), 507);
    report_failed(&rep, "1.4", "1.6", ERR_DICOM_MISMATCH);
    assert_int_equal(report_status(&rep), 409);
    report_free(&rep);
    rep = (struct report){0};
    report_failed(&rep, "1.4", "1.5", ERR_OVERLOAD);
    assert_int_equal(report_status(&rep), 503);
    report_free(&rep);
    strbuf_free(&out);
    assert_int_equal(report_reason(ERR_NOSPC), 42752);
    assert_int_equal(report_reason(ERR_DICOM_MISMATCH), 43264);
    assert_int_equal(report_reason(ERR_DICOM), 49152);
    assert_int_equal(report_reason(ERR_IO), 272);
}

/* ---- Frames ---------------------------------------------------------------------------------- */

static int read_mem(void *arg, uint64_t off, void *buf, size_t len)
{
    memcpy(buf, (const char *)arg + off, len);
    return 0;
}

/* An encapsulated value: table entries (none: empty), then fragments of the lengths given. */
static size_t encapsulate(uint8_t *p, const uint32_t *table, size_t entries, const uint32_t *lens,
                          size_t count)
{
    struct codec_writer w = codec_writer_on(p, 4096);

    codec_write_le32(&w, 0xe000fffe);
    codec_write_le32(&w, (uint32_t)(4 * entries));
    for (size_t i = 0; i < entries; i++)
        codec_write_le32(&w, table[i]);
    for (size_t i = 0; i < count; i++) {
        codec_write_le32(&w, 0xe000fffe);
        codec_write_le32(&w, lens[i]);
        memset(codec_write_room(&w, lens[i]), (int)i, lens[i]);
    }
    codec_write_le32(&w, 0xe0ddfffe);
    codec_write_le32(&w, 0);
    assert_true(codec_writer_ok(&w));
    return codec_written(&w);
}

static void test_frames_encapsulated(void **state)
{
    static const uint32_t lens[] = {10, 20, 30, 40}, table[] = {0, 46, 84};
    static const uint32_t want2[] = {2}, want31[] = {3, 1}, want4[] = {4};
    uint8_t bytes[4096];
    struct frame_source src = {.read = read_mem, .arg = bytes, .encapsulated = true, .frames = 3};
    struct frame_list l;

    (void)state;
    /* Frame 1 is fragments 1 and 2, by the table. */
    src.bytes = encapsulate(bytes, table, 3, lens, 4);
    assert_int_equal(frames_find(&src, want31, 2, &l), 0);
    assert_int_equal(l.count, 3);
    assert_int_equal(l.segments[0].len, 40);
    assert_int_equal(l.segments[0].frame, 3);
    assert_int_equal(l.segments[1].len, 10);
    assert_int_equal(l.segments[2].len, 20);
    assert_int_equal(bytes[l.segments[2].off], 1);
    frame_list_free(&l);
    assert_int_equal(frames_find(&src, NULL, 0, &l), 0);
    assert_int_equal(l.count, 4);
    frame_list_free(&l);
    assert_int_equal(frames_find(&src, want4, 1, &l), ERR_NOENT);
    /* No table: one each, or not at all; a single frame takes all. */
    src.bytes = encapsulate(bytes, NULL, 0, lens, 3);
    assert_int_equal(frames_find(&src, want2, 1, &l), 0);
    assert_int_equal(l.count, 1);
    assert_int_equal(l.segments[0].len, 20);
    frame_list_free(&l);
    src.bytes = encapsulate(bytes, NULL, 0, lens, 4);
    assert_int_equal(frames_find(&src, want2, 1, &l), ERR_UNSUPPORTED);
    memcpy(bytes + 16, "\xff\xd8\xff\xe0", 4); /* the 1st and the 3rd fragment begin a JPEG */
    memcpy(bytes + 16 + 18 + 28, "\xff\xd8\xff\xdb", 4);
    src.frames = 2;
    assert_int_equal(frames_find(&src, want2, 1, &l), 0);
    assert_int_equal(l.count, 2);
    assert_int_equal(l.segments[0].len, 30);
    assert_int_equal(l.segments[1].len, 40);
    frame_list_free(&l);
    src.frames = 3;
    assert_int_equal(frames_find(&src, want2, 1, &l), ERR_UNSUPPORTED);
    src.frames = 5;
    assert_int_equal(frames_find(&src, want2, 1, &l), ERR_FORMAT);
    src.frames = 0;
    assert_int_equal(frames_find(&src, NULL, 0, &l), 0);
    assert_int_equal(l.count, 4);
    assert_int_equal(l.segments[3].part, 0);
    frame_list_free(&l);
    for (uint64_t n = src.bytes - 1; n > 0; n--) {
        src.bytes = n; /* cut short anywhere */
        assert_int_equal(frames_find(&src, NULL, 0, &l), ERR_FORMAT);
    }
}

static void test_frames_native(void **state)
{
    static const uint32_t want[] = {2}, want3[] = {3};
    struct frame_source src = {.bytes = 1000,
                               .pixel_off = 100,
                               .pixel_len = 600,
                               .rows = 10,
                               .columns = 10,
                               .samples = 3,
                               .bits_allocated = 8,
                               .frames = 2};
    struct frame_list l;

    (void)state;
    assert_int_equal(frames_find(&src, want, 1, &l), 0);
    assert_int_equal(l.segments[0].off, 400);
    assert_int_equal(l.segments[0].len, 300);
    frame_list_free(&l);
    assert_int_equal(frames_find(&src, want3, 1, &l), ERR_NOENT);
    src.pixel_len = 400; /* YBR_FULL_422 */
    assert_int_equal(frames_find(&src, want, 1, &l), 0);
    assert_int_equal(l.segments[0].len, 200);
    frame_list_free(&l);
    src.pixel_len = 399;
    assert_int_equal(frames_find(&src, want, 1, &l), ERR_FORMAT);
    src.pixel_len = 901;
    assert_int_equal(frames_find(&src, want, 1, &l), ERR_FORMAT);
    src.pixel_len = 600;
    src.samples = 1;
    src.bits_allocated = 1;
    assert_int_equal(frames_find(&src, want, 1, &l), ERR_UNSUPPORTED);
    src.rows = 0;
    assert_int_equal(frames_find(&src, want, 1, &l), ERR_FORMAT);
    src.rows = src.columns = UINT32_MAX;
    src.bits_allocated = 64;
    src.samples = 16;
    assert_int_equal(frames_find(&src, want, 1, &l), ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mime_parse),
        cmocka_unit_test(test_accept),
        cmocka_unit_test(test_accept_syntaxes),
        cmocka_unit_test(test_accept_arg),
        cmocka_unit_test(test_multipart),
        cmocka_unit_test(test_multipart_broken),
        cmocka_unit_test(test_routes),
        cmocka_unit_test(test_frame_numbers),
        cmocka_unit_test(test_qido_restrict),
        cmocka_unit_test(test_qido_matches),
        cmocka_unit_test(test_qido_refused),
        cmocka_unit_test(test_qido_args),
        cmocka_unit_test(test_qido_row),
        cmocka_unit_test(test_report),
        cmocka_unit_test(test_frames_encapsulated),
        cmocka_unit_test(test_frames_native),
    };

    if (dcm_init() < 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

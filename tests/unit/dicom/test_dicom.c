/* lib/dicom over data sets made here byte by byte, and over real files where they are at hand
 * (FILMROOM_DICOM_DATA). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "lib/dicom/impl.h"

#define IMPLICIT "1.2.840.10008.1.2"
#define EXPLICIT "1.2.840.10008.1.2.1"
#define DEFLATED "1.2.840.10008.1.2.1.99"
#define BIG      "1.2.840.10008.1.2.2"
#define RLE      "1.2.840.10008.1.2.5"

/* ---- Data sets -------------------------------------------------------------------------- */

struct maker {
    struct strbuf out;
    bool implicit_vr, big;
};

static void put16(struct maker *m, unsigned v)
{
    uint8_t b[2];

    if (m->big)
        codec_put_be16(b, (uint16_t)v);
    else
        codec_put_le16(b, (uint16_t)v);
    strbuf_add(&m->out, b, 2);
}

static void put32(struct maker *m, uint32_t v)
{
    uint8_t b[4];

    if (m->big)
        codec_put_be32(b, v);
    else
        codec_put_le32(b, v);
    strbuf_add(&m->out, b, 4);
}

static void put_head(struct maker *m, uint32_t tag, const char *vr, uint32_t len)
{
    put16(m, tag >> 16);
    put16(m, tag & 0xffff);
    if (m->implicit_vr || tag >> 16 == 0xfffe) {
        put32(m, len);
    } else if (strstr("OB OD OF OL OV OW SQ SV UC UN UR UT UV", vr)) {
        strbuf_add(&m->out, vr, 2);
        put16(m, 0);
        put32(m, len);
    } else {
        strbuf_add(&m->out, vr, 2);
        put16(m, len);
    }
}

static void put_bytes(struct maker *m, uint32_t tag, const char *vr, const void *p, size_t n)
{
    put_head(m, tag, vr, (uint32_t)n);
    strbuf_add(&m->out, p, n);
}

/* A string, padded to even length. */
static void put_text(struct maker *m, uint32_t tag, const char *vr, const char *text)
{
    size_t n = strlen(text);

    put_head(m, tag, vr, (uint32_t)(n + (n & 1)));
    strbuf_add(&m->out, text, n);
    if (n & 1)
        strbuf_addc(&m->out, strcmp(vr, "UI") == 0 ? 0 : ' ');
}

static void put_us(struct maker *m, uint32_t tag, unsigned v)
{
    put_head(m, tag, "US", 2);
    put16(m, v);
}

static void put_marks(struct maker *m, uint32_t tag, uint32_t len)
{
    put_head(m, tag, "", len);
}

/* An image's header with every way of nesting, up to Pixel Data's head. */
static void put_image(struct maker *m, bool encapsulated)
{
    bool implicit_vr = m->implicit_vr, big = m->big;

    put_text(m, 0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.2");
    put_text(m, 0x00080018, "UI", "1.2.3.4");
    put_text(m, 0x00080060, "CS", "CT");
    put_head(m, 0x00081140, "SQ", DCM_UNDEFINED);
    put_marks(m, DCM_TAG_ITEM, DCM_UNDEFINED);
    put_text(m, 0x00081150, "UI", "1.2.3");
    put_head(m, 0x00081199, "SQ", DCM_UNDEFINED);
    put_marks(m, DCM_TAG_ITEM, 10);
    strbuf_add(&m->out, "\xe0\x7f\x10\x00\xff\xff\xff\xff\xff\xff", 10); /* opaque here */
    put_marks(m, DCM_TAG_SEQUENCE_END, 0);
    put_marks(m, DCM_TAG_ITEM_END, 0);
    put_marks(m, DCM_TAG_SEQUENCE_END, 0);
    put_head(m, 0x00091010, "UN", DCM_UNDEFINED);
    m->implicit_vr = true;
    m->big = false;
    put_marks(m, DCM_TAG_ITEM, DCM_UNDEFINED);
    put_text(m, 0x00100010, "PN", "Hidden");
    put_marks(m, DCM_TAG_ITEM_END, 0);
    put_marks(m, DCM_TAG_SEQUENCE_END, 0);
    m->implicit_vr = implicit_vr;
    m->big = big;
    put_us(m, 0x00280002, 1);
    put_text(m, 0x00280008, "IS", "3");
    put_us(m, 0x00280010, 512);
    put_us(m, 0x00280011, 256);
    put_us(m, 0x00280100, 16);
    put_head(m, DCM_TAG_PIXELS, encapsulated ? "OB" : "OW", encapsulated ? DCM_UNDEFINED : 786432);
}

/* ---- UIDs and heads --------------------------------------------------------------------- */

static void test_uid(void **state)
{
    static const char *const good[] = {"1", "1.2.840.10008.1.2", "0.0", "1.02.3"};
    static const char *const bad[] = {"", ".", "1.", ".1", "1..2", "1.2a", " 1.2", "1.2 "};
    char uid[66];

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_true(dcm_uid_valid(good[i]));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(dcm_uid_valid(bad[i]));
    memset(uid, '1', sizeof(uid));
    uid[65] = 0;
    assert_false(dcm_uid_valid(uid));
    uid[64] = 0;
    assert_true(dcm_uid_valid(uid));
}

static void test_head_round_trip(void **state)
{
    STRBUF_AUTO struct strbuf a = STRBUF_INIT, b = STRBUF_INIT;
    struct dcm_head h;
    size_t n;

    (void)state;
    assert_int_equal(dcm_head_make("1.2.3", "1.2.3.4", IMPLICIT, " MODALITY ", &a), 0);
    assert_int_equal(dcm_head_make("1.2.3", "1.2.3.4", IMPLICIT, " MODALITY ", &b), 0);
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    n = a.len;
    strbuf_add(&a, "\x08\x00\x05\x00 some data", 14);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(dcm_head_parse(a.data, i, &h), ERR_AGAIN);
    for (size_t i = n; i < a.len; i++) {
        assert_int_equal(dcm_head_parse(a.data, i, &h), 0);
        assert_int_equal(h.dataset_off, n);
        assert_string_equal(h.transfer_syntax, IMPLICIT);
        assert_string_equal(h.sop_class, "1.2.3");
        assert_string_equal(h.sop_instance, "1.2.3.4");
    }
    assert_int_equal(dcm_head_make("1.2.", "1.2.3.4", IMPLICIT, "A", &b), ERR_DICOM_UID);
    assert_int_equal(dcm_head_make("1.2", "", IMPLICIT, "A", &b), ERR_DICOM_UID);
    assert_int_equal(dcm_head_make("1.2", "1", "x", "A", &b), ERR_DICOM_UID);
}

/* A head with the group length given (or without one), then `rest`. */
static void make_head(struct maker *m, bool with_length, uint32_t length, const char *syntax,
                      const char *rest, size_t rest_len)
{
    strbuf_reset(&m->out);
    memset(strbuf_room(&m->out, 128), 'x', 128);
    strbuf_adds(&m->out, "DICM");
    if (with_length) {
        put_head(m, 0x00020000, "UL", 4);
        put32(m, length);
    }
    put_text(m, 0x00020002, "UI", "1.2.3");
    if (syntax)
        put_text(m, 0x00020010, "UI", syntax);
    put_text(m, 0x00020013, "SH", "TEST");
    strbuf_add(&m->out, rest, rest_len);
}

static void test_head_odd(void **state)
{
    static const char rest[] = "\x08\x00\x05\x00"
                               "CS\x00\x00";
    struct maker m = {0};
    struct dcm_head h;
    size_t end;

    (void)state;
    make_head(&m, false, 0, EXPLICIT, "", 0);
    end = m.out.len;
    assert_int_equal(dcm_head_parse(m.out.data, m.out.len, &h), ERR_AGAIN);
    make_head(&m, false, 0, EXPLICIT, rest, 8);
    assert_int_equal(dcm_head_parse(m.out.data, m.out.len, &h), 0);
    assert_int_equal(h.dataset_off, end);
    for (uint32_t length = 0; length < 300; length++) {
        make_head(&m, true, length, EXPLICIT, rest, 8);
        assert_int_equal(dcm_head_parse(m.out.data, m.out.len, &h), 0);
        /* Right, or at the border before the last element; else found by the group. */
        assert_true(h.dataset_off == end + 12 || (h.dataset_off == end && length == end - 144));
    }
    make_head(&m, true, 26, NULL, rest, 8);
    assert_int_equal(dcm_head_parse(m.out.data, m.out.len, &h), ERR_DICOM);
    make_head(&m, true, 26, "1.2.x", rest, 8);
    assert_int_equal(dcm_head_parse(m.out.data, m.out.len, &h), ERR_DICOM);
    make_head(&m, true, 0, EXPLICIT, rest, 8);
    m.out.data[130] = 'X';
    assert_int_equal(dcm_head_parse(m.out.data, 131, &h), ERR_DICOM);
    assert_int_equal(dcm_head_parse(m.out.data, 130, &h), ERR_AGAIN);
    strbuf_free(&m.out);
}

/* ---- The scan --------------------------------------------------------------------------- */

static void check_scan(const struct dcm_scan *s, const struct maker *m, size_t consumed,
                       bool encapsulated)
{
    assert_true(s->found);
    assert_int_equal(consumed, m->out.len);
    assert_int_equal(s->pos, m->out.len);
    assert_int_equal(s->pixel_off, m->out.len);
    assert_int_equal(s->encapsulated, encapsulated);
    assert_true(s->pixel_len == (encapsulated ? UINT64_MAX : 786432));
    assert_int_equal(s->samples, 1);
    assert_int_equal(s->frames, 3);
    assert_int_equal(s->rows, 512);
    assert_int_equal(s->columns, 256);
    assert_int_equal(s->bits_allocated, 16);
}

/* Every split of the stream into two pushes, and bytes one by one. */
static void scan_all_splits(const char *syntax, bool implicit_vr, bool big, bool encapsulated)
{
    struct maker m = {.implicit_vr = implicit_vr, .big = big};
    struct dcm_scan s;
    size_t n = 0;

    put_image(&m, encapsulated);
    for (size_t cut = 0; cut <= m.out.len; cut++) {
        dcm_scan_init(&s, syntax);
        n = dcm_scan_push(&s, m.out.data, cut);
        n += dcm_scan_push(&s, m.out.data + cut, m.out.len - cut);
        check_scan(&s, &m, n, encapsulated);
        assert_int_equal(dcm_scan_push(&s, "more", 4), 0);
    }
    dcm_scan_init(&s, syntax);
    n = 0;
    for (size_t i = 0; i < m.out.len; i++)
        n += dcm_scan_push(&s, m.out.data + i, 1);
    check_scan(&s, &m, n, encapsulated);
    strbuf_free(&m.out);
}

static void test_scan(void **state)
{
    (void)state;
    scan_all_splits(EXPLICIT, false, false, false);
    scan_all_splits(IMPLICIT, true, false, false);
    scan_all_splits(BIG, false, true, false);
    scan_all_splits(RLE, false, false, true);
    /* A sender that says one thing and does another; a private syntax. */
    scan_all_splits(IMPLICIT, false, false, false);
    scan_all_splits(EXPLICIT, true, false, false);
    scan_all_splits("1.2.840.113619.5.2", true, false, false);
}

static void test_scan_ends(void **state)
{
    struct maker m = {0};
    struct dcm_scan s;

    (void)state;
    dcm_scan_init(&s, DEFLATED);
    assert_true(s.end_of_use);
    assert_int_equal(dcm_scan_push(&s, "abc", 3), 0);

    put_text(&m, 0x00100010, "PN", "No Pixels");
    put_bytes(&m, 0xfffcfffc, "OB", "pad", 4);
    dcm_scan_init(&s, EXPLICIT);
    dcm_scan_push(&s, m.out.data, m.out.len);
    assert_true(s.end_of_use && !s.found);

    strbuf_reset(&m.out);
    for (int i = 0; i < 10000; i++) {
        put_head(&m, 0x00081140, "SQ", DCM_UNDEFINED);
        put_marks(&m, DCM_TAG_ITEM, DCM_UNDEFINED);
    }
    dcm_scan_init(&s, EXPLICIT);
    dcm_scan_push(&s, m.out.data, m.out.len);
    assert_true(s.end_of_use && !s.found);

    strbuf_reset(&m.out);
    put_bytes(&m, 0x7fe00008, "OF", "1234", 4);
    dcm_scan_init(&s, EXPLICIT);
    assert_int_equal(dcm_scan_push(&s, m.out.data, m.out.len), 12);
    assert_true(s.found && s.pixel_len == 4);
    strbuf_free(&m.out);
}

/* ---- Headers ---------------------------------------------------------------------------- */

static void assert_text(const struct dcm_header *h, uint32_t tag, const char *vr, const char *want)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    char got_vr[3];

    assert_true(dcm_header_get(h, tag, &out, got_vr));
    assert_string_equal(got_vr, vr);
    assert_string_equal(out.data, want);
}

static json_t *header_json(const struct dcm_header *h, bool pixels)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    json_error_t error;
    json_t *j;

    assert_int_equal(dcm_header_json(h, "/bulk", pixels, &out), 0);
    j = json_loadb(out.data, out.len, JSON_REJECT_DUPLICATES, &error);
    if (!j)
        print_error("%s at %d: %.200s\n", error.text, error.position, out.data);
    assert_non_null(j);
    return j;
}

/* The attribute's JSON is `want`, compactly written. */
static void assert_json(const json_t *j, const char *tag, const char *want)
{
    char got[1024];
    size_t n = json_dumpb(json_object_get(j, tag), got, sizeof(got) - 1,
                          JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(15));

    assert_in_range(n, 1, sizeof(got) - 1);
    got[n] = 0;
    if (strcmp(got, want) != 0)
        print_error("%s: %s\nwanted %s\n", tag, got, want);
    assert_string_equal(got, want);
}

static void put_values(struct maker *m)
{
    static const double fd[] = {1.5, NAN, -INFINITY, 0.1};
    uint8_t number[32];

    put_text(m, 0x00080005, "CS", "ISO_IR 100");
    put_text(m, 0x00080008, "CS", "ORIGINAL\\\\AXIAL ");
    put_text(m, 0x00080060, "CS", "MR");
    put_text(m, 0x00080090, "PN", "");
    put_head(m, 0x00081140, "SQ", DCM_UNDEFINED);
    put_marks(m, DCM_TAG_ITEM, 0);
    put_marks(m, DCM_TAG_ITEM, DCM_UNDEFINED);
    put_text(m, 0x00081150, "UI", "1.2.3");
    put_marks(m, DCM_TAG_ITEM_END, 0);
    put_marks(m, DCM_TAG_SEQUENCE_END, 0);
    put_text(m, 0x00090010, "LO", "TEST CREATOR");
    put_bytes(m, 0x00091001, "UN", "\x01\x02\x03\x04", 4);
    put_text(m, 0x00100010, "PN", "M\xfcller^Jos\xe9=I^I=P\\Second");
    put_text(m, 0x00100020, "LO", " id\"\\x ");
    put_text(m, 0x00104000, "LT", " keep\\this \n ");
    put_text(m, 0x00180050, "DS", "+1.50 \\ 007\\.5\\1.\\abc\\1e999\\\\-0");
    for (size_t i = 0; i < 4; i++) {
        uint64_t bits;

        memcpy(&bits, &fd[i], 8);
        codec_put_le64(number + 8 * i, bits);
    }
    put_bytes(m, 0x00189087, "FD", number, 32);
    put_text(m, 0x00200013, "IS", "42");
    put_head(m, 0x00280009, "AT", 4);
    put16(m, 0x0018);
    put16(m, 0x1063);
    put_us(m, 0x00280010, 65535);
}

static void test_json(void **state)
{
    struct maker m = {0};
    struct dcm_header *h;
    json_t *j;

    (void)state;
    put_values(&m);
    assert_int_equal(dcm_header_parse(m.out.data, m.out.len, EXPLICIT, &h), 0);
    j = header_json(h, true);
    assert_json(j, "00080005", "{\"vr\":\"CS\",\"Value\":[\"ISO_IR 192\"]}");
    assert_json(j, "00080008", "{\"vr\":\"CS\",\"Value\":[\"ORIGINAL\",null,\"AXIAL\"]}");
    assert_json(j, "00080090", "{\"vr\":\"PN\"}");
    assert_json(j, "00081140",
                "{\"vr\":\"SQ\",\"Value\":[{},{\"00081150\":{\"vr\":\"UI\","
                "\"Value\":[\"1.2.3\"]}}]}");
    assert_json(j, "00083002", "{\"vr\":\"UI\",\"Value\":[\"1.2.840.10008.1.2.1\"]}");
    assert_json(j, "00091001", "{\"vr\":\"UN\",\"InlineBinary\":\"AQIDBA==\"}");
    assert_json(j, "00100010",
                "{\"vr\":\"PN\",\"Value\":[{\"Alphabetic\":\"Müller^José\",\"Ideographic\":\"I^I\","
                "\"Phonetic\":\"P\"},{\"Alphabetic\":\"Second\"}]}");
    assert_json(j, "00100020", "{\"vr\":\"LO\",\"Value\":[\"id\\\"\",\"x\"]}");
    assert_json(j, "00104000", "{\"vr\":\"LT\",\"Value\":[\" keep\\\\this \\n\"]}");
    assert_json(j, "00180050", "{\"vr\":\"DS\",\"Value\":[1.5,7,0.5,1,\"abc\",\"1e999\",null,0]}");
    assert_json(j, "00189087", "{\"vr\":\"FD\",\"Value\":[1.5,\"NaN\",\"-inf\",0.1]}");
    assert_json(j, "00200013", "{\"vr\":\"IS\",\"Value\":[42]}");
    assert_json(j, "00280009", "{\"vr\":\"AT\",\"Value\":[\"00181063\"]}");
    assert_json(j, "00280010", "{\"vr\":\"US\",\"Value\":[65535]}");
    assert_json(j, "7FE00010", "{\"vr\":\"OW\",\"BulkDataURI\":\"/bulk/7FE00010\"}");
    json_decref(j);
    assert_text(h, 0x00100010, "PN", "Müller^José=I^I=P\\Second");
    assert_text(h, 0x00080090, "PN", "");
    assert_text(h, 0x00081140, "SQ", "[{},{\"00081150\":{\"vr\":\"UI\",\"Value\":[\"1.2.3\"]}}]");
    dcm_header_free(h);
    strbuf_free(&m.out);
}

static void test_bulk(void **state)
{
    struct maker m = {0};
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    char *big = mem_zalloc(4000), vr[3];
    struct dcm_header *h;
    json_t *j;

    (void)state;
    big[3999] = 'e';
    put_head(&m, 0x54000100, "SQ", DCM_UNDEFINED);
    put_marks(&m, DCM_TAG_ITEM, 0);
    put_marks(&m, DCM_TAG_ITEM, DCM_UNDEFINED);
    put_bytes(&m, 0x54001010, "OW", big, 4000);
    put_marks(&m, DCM_TAG_ITEM_END, 0);
    put_marks(&m, DCM_TAG_SEQUENCE_END, 0);
    put_bytes(&m, 0x60003000, "OB", big, 4000);
    assert_int_equal(dcm_header_parse(m.out.data, m.out.len, EXPLICIT, &h), 0);
    j = header_json(h, false);
    assert_json(j, "54000100",
                "{\"vr\":\"SQ\",\"Value\":[{},{\"54001010\":{\"vr\":\"OW\",\"BulkDataURI\":"
                "\"/bulk/54000100/2/54001010\"}}]}");
    assert_json(j, "60003000", "{\"vr\":\"OB\",\"BulkDataURI\":\"/bulk/60003000\"}");
    json_decref(j);
    assert_true(dcm_header_bulk(h, "54000100/2/54001010", &out, vr));
    assert_string_equal(vr, "OW");
    assert_int_equal(out.len, 4000);
    assert_memory_equal(out.data, big, 4000);
    assert_false(dcm_header_bulk(h, "54000100/3/54001010", &out, vr));
    assert_false(dcm_header_bulk(h, "54000100/0/54001010", &out, vr));
    assert_false(dcm_header_bulk(h, "54000100", &out, vr));
    assert_false(dcm_header_bulk(h, "60003000/1/54001010", &out, vr));
    assert_false(dcm_header_bulk(h, "6000300", &out, vr));
    assert_false(dcm_header_bulk(h, "", &out, vr));
    dcm_header_free(h);
    mem_free(big);
    strbuf_free(&m.out);
}

static void test_catalog(void **state)
{
    struct maker m = {0};
    char *longest = mem_zalloc(9001);
    struct object_attr *attrs;
    struct dcm_header *h;
    size_t count;

    (void)state;
    memset(longest, 'x', 9000);
    put_text(&m, 0x00080060, "CS", "CT");
    put_text(&m, 0x0008103e, "LO", "Series \\ two");
    put_text(&m, 0x00100010, "PN", "Name");
    put_text(&m, 0x00104000, "LT", longest);
    put_text(&m, 0x0020000d, "UI", "1.2.3");
    assert_int_equal(dcm_header_parse(m.out.data, m.out.len, EXPLICIT, &h), 0);
    assert_int_equal(dcm_header_catalog(h, OBJECT_STUDY, &attrs, &count), 0);
    assert_int_equal(count, 3);
    assert_int_equal(attrs[0].tag, 0x00100010);
    assert_string_equal(attrs[0].vr, "PN");
    assert_string_equal(attrs[0].value, "Name");
    assert_int_equal(attrs[1].len, 4096);
    assert_string_equal(attrs[2].value, "1.2.3");
    mem_free(attrs);
    assert_int_equal(dcm_header_catalog(h, OBJECT_SERIES, &attrs, &count), 0);
    assert_int_equal(count, 2);
    assert_string_equal(attrs[0].value, "CT");
    assert_string_equal(attrs[1].value, "Series\\two");
    mem_free(attrs);
    assert_int_equal(dcm_header_catalog(h, OBJECT_INSTANCE, &attrs, &count), 0);
    assert_int_equal(count, 0);
    mem_free(attrs);
    dcm_header_free(h);
    mem_free(longest);
    strbuf_free(&m.out);
    for (int l = 0; l < 3; l++) {
        for (const uint32_t *t = dcm_catalog_tags((enum object_level)l); t[1]; t++)
            assert_true(t[0] < t[1]);
    }
}

static void test_lookup(void **state)
{
    uint32_t tag;
    char vr[3];

    (void)state;
    assert_true(dcm_tag_lookup("PatientName", &tag, vr));
    assert_int_equal(tag, 0x00100010);
    assert_string_equal(vr, "PN");
    assert_true(dcm_tag_lookup("0020000d", &tag, vr));
    assert_int_equal(tag, 0x0020000d);
    assert_string_equal(vr, "UI");
    assert_true(dcm_tag_lookup("00091234", &tag, vr));
    assert_string_equal(vr, "UN");
    assert_true(dcm_tag_lookup("SmallestImagePixelValue", &tag, vr));
    assert_string_equal(vr, "US");
    assert_false(dcm_tag_lookup("PatientNam", &tag, vr));
    assert_false(dcm_tag_lookup("", &tag, vr));
    assert_false(dcm_tag_lookup("0020000g", &tag, vr));
}

/* What an implicit VR stream does not say: VRs from the dictionaries, signs from the pixels. */
static void test_implicit(void **state)
{
    struct maker m = {.implicit_vr = true};
    struct dcm_header *h;
    json_t *j;

    (void)state;
    put_text(&m, 0x00090010, "", "GEMS_IDEN_01");
    put_text(&m, 0x00091001, "", "GE_GENESIS_FF ");
    put_text(&m, 0x00100010, "", "Name");
    put_us(&m, 0x00280103, 1);
    put_us(&m, 0x00280106, 0xfffe);
    assert_int_equal(dcm_header_parse(m.out.data, m.out.len, IMPLICIT, &h), 0);
    assert_text(h, 0x00100010, "PN", "Name");
    assert_text(h, 0x00280106, "SS", "-2");
    j = header_json(h, false);
    assert_json(j, "00090010", "{\"vr\":\"LO\",\"Value\":[\"GEMS_IDEN_01\"]}");
    assert_json(j, "00091001", "{\"vr\":\"LO\",\"Value\":[\"GE_GENESIS_FF\"]}");
    json_decref(j);
    dcm_header_free(h);
    strbuf_free(&m.out);
}

/* However the bytes end: all whole elements before the end are there. */
static void test_truncated(void **state)
{
    struct maker m = {0};
    struct dcm_header *h;
    size_t before = 0, after;

    (void)state;
    put_values(&m);
    after = m.out.len;
    put_text(&m, 0x00281055, "LO", "last");
    for (size_t n = 0; n <= m.out.len; n++) {
        STRBUF_AUTO struct strbuf out = STRBUF_INIT;
        char *exact = mem_memdup(m.out.data, n), vr[3];

        if (dcm_header_parse(exact, n, EXPLICIT, &h) == 0) {
            if (n >= after)
                assert_text(h, 0x00280010, "US", "65535");
            assert_true(dcm_header_get(h, 0x00281055, &out, vr) == (n == m.out.len));
            json_decref(header_json(h, false));
            dcm_header_free(h);
            before++;
        }
        mem_free(exact);
    }
    assert_true(before > after / 2);
    strbuf_free(&m.out);
}

static void nest(struct maker *m, int levels, bool defined)
{
    for (int i = 0; i < levels; i++) {
        uint32_t left = (uint32_t)(levels - i) * (m->implicit_vr ? 16 : 20);

        put_head(m, 0x00081140, "SQ", defined ? left - (m->implicit_vr ? 8 : 12) : DCM_UNDEFINED);
        put_marks(m, DCM_TAG_ITEM, defined ? left - (m->implicit_vr ? 16 : 20) : DCM_UNDEFINED);
    }
}

/* What must not reach DCMTK: depth, lengths beyond the end, a list written backwards. */
static void test_hostile(void **state)
{
    struct dcm_header *h;

    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        struct maker m = {.implicit_vr = kind & 1};

        put_text(&m, 0x00080060, "CS", "CT");
        nest(&m, 200000, kind & 2);
        assert_int_equal(
            dcm_header_parse(m.out.data, m.out.len, kind & 1 ? IMPLICIT : EXPLICIT, &h), 0);
        assert_text(h, 0x00080060, "CS", "CT");
        dcm_header_free(h);
        strbuf_reset(&m.out);
        nest(&m, 20, kind & 2);
        put_text(&m, 0x00100010, "PN", "after");
        if (dcm_header_parse(m.out.data, m.out.len, kind & 1 ? IMPLICIT : EXPLICIT, &h) == 0) {
            json_decref(header_json(h, false));
            dcm_header_free(h);
        }
        strbuf_free(&m.out);
    }
    struct maker m = {0};

    put_head(&m, 0x00080018, "UT", 0x7fffffff);
    strbuf_adds(&m.out, "short");
    assert_int_equal(dcm_header_parse(m.out.data, m.out.len, EXPLICIT, &h), ERR_DICOM);
    strbuf_reset(&m.out);
    for (unsigned i = 300000; i > 0; i--)
        put_text(&m, 0x00090000 + i, "LO", "");
    assert_int_equal(dcm_header_parse(m.out.data, m.out.len, EXPLICIT, &h), 0);
    dcm_header_free(h);
    assert_int_equal(dcm_header_parse("", 0, EXPLICIT, &h), ERR_DICOM);
    assert_int_equal(dcm_header_parse("garbage!garbage!", 16, DEFLATED, &h), ERR_DICOM);
    assert_int_equal(dcm_header_parse("x", 1, "no uid", &h), ERR_DICOM_UID);
    strbuf_free(&m.out);
}

/* ---- Text ------------------------------------------------------------------------------- */

static void test_charsets(void **state)
{
    static const struct {
        const char *terms, *vr, *bytes, *want;
    } cases[] = {
        {"ISO_IR 100", "PN",
         "\xc4neas^R\xfc"
         "diger",
         "Äneas^Rüdiger"},
        {"ISO_IR 144", "PN", "\xbb\xee\xda", "Люк"},
        {"ISO_IR 166", "LO", "\xb9\xd2", "นา"},
        {"ISO_IR 13", "PN", "\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"},
        {"ISO_IR 13", "LT", "a\\b", "a¥b"},
        {"ISO_IR 13", "LO", "a\\b", "a\\b"},
        {"\\ISO 2022 IR 87", "PN",
         "Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B",
         "Yamada^Tarou=山田^太郎=やまだ"},
        {"\\ISO 2022 IR 149", "PN", "Hong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong=洪^吉洞"},
        {"\\ISO 2022 IR 58", "LO", "\x1b$)A\xcd\xf5", "王"},
        {"ISO 2022 IR 100\\ISO 2022 IR 126", "LO", "\xe4\x1b-F\xe4\\\xe4", "äδ\\ä"},
        {"GB18030", "PN", "Wang=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang=王^小东"},
        {"GBK", "LO", "\x81\x5c\\a", "乗\\a"}, /* a second byte that is a backslash */
        {"ISO-IR 100", "LO", "\xe9", "é"},
        {"nonsense", "LO", "\xc3\xa9\xff", "é\xef\xbf\xbd"},
        {"", "LO", "caf\xc3\xa9 \xe9", "café \xef\xbf\xbd"},
        {"\\ISO 2022 IR 87", "LO", "\x1b$B;", "\xef\xbf\xbd"},
        {"\\ISO 2022 IR 87", "LO", "\x1bZ", "\xef\xbf\xbdZ"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct dcm_charset *cs = dcm_charset_new(cases[i].terms);
        STRBUF_AUTO struct strbuf raw = STRBUF_INIT, out = STRBUF_INIT;

        dcm_charset_convert(cs, cases[i].vr, cases[i].bytes, strlen(cases[i].bytes), &raw);
        dcm_text_strings(cases[i].vr, raw.data, raw.len, &out);
        if (strcmp(out.data, cases[i].want) != 0)
            print_error("case %zu: %s, wanted %s\n", i, out.data, cases[i].want);
        assert_string_equal(out.data, cases[i].want);
        dcm_charset_free(cs);
    }
}

static void test_json_string(void **state)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;

    (void)state;
    dcm_json_string("a\"b\\c\n\x01\xff\xed\xa0\x80z\0y", 14, &out);
    assert_string_equal(out.data, "\"a\\\"b\\\\c\\u000a\\u0001\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                                  "\xef\xbf\xbdz\\u0000y\"");
}

/* ---- Real files ------------------------------------------------------------------------- */

static const char *data_root(void)
{
    const char *root = getenv("FILMROOM_DICOM_DATA");

    return root ? root : FILMROOM_DICOM_DEFAULT;
}

static char *read_file(const char *path, size_t *ret_len)
{
    FILE *f = fopen(path, "rb");
    struct strbuf s = STRBUF_INIT;
    char piece[65536];
    size_t n;

    if (!f)
        return NULL;
    while ((n = fread(piece, 1, sizeof(piece), f)) > 0)
        strbuf_add(&s, piece, n);
    fclose(f);
    *ret_len = s.len;
    return strbuf_take(&s);
}

/* The element head before pixel_off, and a length that fits the image: an answer from the bytes
 * alone. */
static void check_pixels(const uint8_t *ds, size_t n, const struct dcm_scan *s)
{
    static const uint8_t le[] = {0xe0, 0x7f, 0x10, 0x00}, be[] = {0x7f, 0xe0, 0x00, 0x10};
    const uint8_t *tag = s->big_endian ? be : le;
    const uint8_t *at = ds + s->pixel_off - (s->implicit_vr ? 8 : 12);
    uint64_t bits = (uint64_t)s->rows * s->columns * (s->samples ? s->samples : 1) *
                    s->bits_allocated * (s->frames ? s->frames : 1);

    assert_true(s->pixel_off <= n);
    assert_memory_equal(at, tag, 4);
    if (s->encapsulated)
        assert_memory_equal(ds + s->pixel_off, "\xfe\xff\x00\xe0", 4);
    else if (s->rows && s->columns && s->bits_allocated)
        assert_true(s->pixel_len >= bits / 8 * 2 / 3); /* YBR_FULL_422 has two of three samples */
    /* Nothing of top-level Pixel Data comes before: the header holds no such element. */
}

static unsigned check_file(const char *path)
{
    size_t n;
    char *bytes = read_file(path, &n), vr[3];
    struct dcm_head head;
    struct dcm_header *h;
    struct dcm_scan s;
    STRBUF_AUTO struct strbuf text = STRBUF_INIT, made = STRBUF_INIT;

    assert_non_null(bytes);
    if (dcm_head_parse(bytes, n, &head) < 0) {
        mem_free(bytes);
        return 0;
    }
    dcm_scan_init(&s, head.transfer_syntax);
    dcm_scan_push(&s, bytes + head.dataset_off, n - head.dataset_off);
    if (s.found && n > 1000)
        check_pixels((const uint8_t *)bytes + head.dataset_off, n - head.dataset_off, &s);
    assert_int_equal(dcm_header_parse(bytes + head.dataset_off,
                                      s.found ? (size_t)s.pixel_off : n - head.dataset_off,
                                      head.transfer_syntax, &h),
                     0);
    json_decref(header_json(h, s.found));
    if (head.sop_instance[0] && dcm_header_get(h, 0x00080018, &text, vr)) {
        if (strstr(path, "/ct/") || strstr(path, "/mr/")) /* others contradict themselves */
            assert_string_equal(text.data, head.sop_instance);
        assert_int_equal(
            dcm_head_make(head.sop_class, head.sop_instance, head.transfer_syntax, "TEST", &made),
            0);
    }
    dcm_header_free(h);
    mem_free(bytes);
    return 1;
}

static void test_files(void **state)
{
    static const char *const folders[] = {"charset", "codecs", "ct", "enhanced", "mr", "odd"};
    unsigned files = 0, parsed = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        char path[1024];
        const struct dirent *e;
        DIR *dir;

        snprintf(path, sizeof(path), "%s/%s", data_root(), folders[i]);
        dir = opendir(path);
        if (!dir) {
            print_message("SKIP: no test data in %s (set FILMROOM_DICOM_DATA)\n", path);
            skip();
        }
        while ((e = readdir(dir)) != NULL) {
            if (e->d_name[0] == '.')
                continue;
            snprintf(path, sizeof(path), "%s/%s/%s", data_root(), folders[i], e->d_name);
            files++;
            parsed += check_file(path);
        }
        closedir(dir);
    }
    print_message("%u of %u files have a Part 10 head\n", parsed, files);
    assert_true(parsed + 8 >= files);
}

static void test_files_names(void **state)
{
    static const struct {
        const char *file, *name;
    } cases[] = {
        {"chrArab.dcm", "قباني^لنزار"},
        {"chrFren.dcm", "Buc^Jérôme"},
        {"chrFrenMulti.dcm", "Buc^Jérôme"},
        {"chrGerm.dcm", "Äneas^Rüdiger"},
        {"chrGreek.dcm", "Διονυσιος"},
        {"chrH31.dcm", "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        {"chrH32.dcm", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"},
        {"chrHbrw.dcm", "שרון^דבורה"},
        {"chrI2.dcm", "Hong^Gildong=洪^吉洞=홍^길동"},
        {"chrJapMulti.dcm", "やまだ^たろう"},
        {"chrKoreanMulti.dcm", "김희중"},
        {"chrRuss.dcm", "Люкceмбypг"},
        {"chrX1.dcm", "Wang^XiaoDong=王^小東="},
        {"chrX2.dcm", "Wang^XiaoDong=王^小东="},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char path[1024], *bytes;
        struct dcm_head head;
        struct dcm_header *h;
        size_t n;

        snprintf(path, sizeof(path), "%s/charset/%s", data_root(), cases[i].file);
        bytes = read_file(path, &n);
        if (!bytes) {
            print_message("SKIP: no %s (set FILMROOM_DICOM_DATA)\n", path);
            skip();
        }
        assert_int_equal(dcm_head_parse(bytes, n, &head), 0);
        assert_int_equal(dcm_header_parse(bytes + head.dataset_off, n - head.dataset_off,
                                          head.transfer_syntax, &h),
                         0);
        assert_text(h, 0x00100010, "PN", cases[i].name);
        dcm_header_free(h);
        mem_free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uid),       cmocka_unit_test(test_head_round_trip),
        cmocka_unit_test(test_head_odd),  cmocka_unit_test(test_scan),
        cmocka_unit_test(test_scan_ends), cmocka_unit_test(test_json),
        cmocka_unit_test(test_bulk),      cmocka_unit_test(test_catalog),
        cmocka_unit_test(test_lookup),    cmocka_unit_test(test_implicit),
        cmocka_unit_test(test_truncated), cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_charsets),  cmocka_unit_test(test_json_string),
        cmocka_unit_test(test_files),     cmocka_unit_test(test_files_names),
    };

    if (dcm_init() < 0) {
        fprintf(stderr, "no data dictionary at %s\n", dcm_dictionary_path());
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* dedup/cutter: every byte of a stream belongs to the header or to one chunk of pixels, whatever
 * the sizes in which the stream comes; and pixels are cut the same under any header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "dedup/cutter.h"
#include "lib/base/codec.h"
#include "lib/rt/env_sim.h"
#include "tests/unit/store/sim_case.h"

#define PIECE_MAX (256u * 1024)
#define EXPLICIT  "1.2.840.10008.1.2.1"
#define IMPLICIT  "1.2.840.10008.1.2"
#define BIG       "1.2.840.10008.1.2.2"
#define DEFLATED  "1.2.840.10008.1.2.1.99"
#define JPEG      "1.2.840.10008.1.2.4.70"

static struct sim *dice;

/* ---- Data sets, explicit VR little endian (PS3.5 section 7.1) ---- */

struct dataset {
    uint8_t *p;
    size_t n, pixels; /* where the value of Pixel Data begins */
};

static void put(struct dataset *d, const void *p, size_t n)
{
    d->p = realloc(d->p, d->n + n + 1);
    if (n)
        memcpy(d->p + d->n, p, n);
    d->n += n;
}

static void put16(struct dataset *d, unsigned v)
{
    uint8_t b[2];

    codec_put_le16(b, (uint16_t)v);
    put(d, b, 2);
}

static void put32(struct dataset *d, uint32_t v)
{
    put16(d, v & 0xffff);
    put16(d, v >> 16);
}

static void put_tag(struct dataset *d, uint32_t tag)
{
    put16(d, tag >> 16);
    put16(d, tag & 0xffff);
}

static void put_text(struct dataset *d, uint32_t tag, const char *vr, const char *text)
{
    size_t n = strlen(text);

    put_tag(d, tag);
    put(d, vr, 2);
    put16(d, (unsigned)(n + n % 2));
    put(d, text, n);
    if (n % 2)
        put(d, " ", 1);
}

static void put_us(struct dataset *d, uint32_t tag, unsigned v)
{
    put_tag(d, tag);
    put(d, "US", 2);
    put16(d, 2);
    put16(d, v);
}

static void put_header(struct dataset *d, const char *patient, unsigned rows, unsigned columns,
                       unsigned samples, unsigned bits)
{
    put_text(d, 0x00080018, "UI", "1.2.3.4");
    put_text(d, 0x00100010, "PN", patient);
    put_us(d, 0x00280002, samples);
    put_us(d, 0x00280010, rows);
    put_us(d, 0x00280011, columns);
    put_us(d, 0x00280100, bits);
}

static void put_noise(struct dataset *d, uint64_t seed, size_t n)
{
    uint8_t *p = malloc(n + 8);

    sim_case_bytes(seed, p, n);
    put(d, p, n);
    free(p);
}

/* Pixel Data of n bytes, and an element behind it. */
static void put_native(struct dataset *d, uint64_t seed, size_t n)
{
    put_tag(d, 0x7fe00010);
    put(d, "OW", 2);
    put16(d, 0);
    put32(d, (uint32_t)n);
    d->pixels = d->n;
    put_noise(d, seed, n);
    put_text(d, 0xfffcfffc, "OB", "");
}

static void put_item(struct dataset *d, uint32_t tag, uint64_t seed, uint32_t n)
{
    put_tag(d, tag);
    put32(d, n);
    put_noise(d, seed, n);
}

static void put_encapsulated(struct dataset *d, uint64_t seed, const uint32_t *fragments, size_t n)
{
    put_tag(d, 0x7fe00010);
    put(d, "OB", 2);
    put16(d, 0);
    put32(d, UINT32_MAX);
    d->pixels = d->n;
    put_item(d, 0xfffee000, 0, 0); /* an empty offset table */
    for (size_t i = 0; i < n; i++)
        put_item(d, 0xfffee000, seed + i, fragments[i]);
    put_item(d, 0xfffee0dd, 0, 0);
    put_text(d, 0xfffcfffc, "OB", "tail");
}

/* ---- Cuts, byte by byte ---- */

#define AT_HEADER 0
#define AT_FRAME  1
#define AT_BEGIN  2

struct cuts {
    uint8_t *kind; /* of each byte */
    bool opaque;
};

/* Shows the stream to the cutter in pieces of up to `step` bytes; 0: pieces of any size. */
static struct cuts cut_stream(const uint8_t *p, size_t n, const char *syntax, size_t step)
{
    struct cuts c = {malloc(n + 1), false};
    struct cutter cutter;
    size_t shown = 0, done = 0;

    cutter_init(&cutter, syntax, PIECE_MAX);
    while (done < n) {
        struct cut cut = {.len = SIZE_MAX};

        if (shown == done) {
            size_t more =
                step ? step : 1 + (size_t)sim_random(dice, sim_random(dice, 2) ? 20 : 90000);

            shown += more < n - done ? more : n - done;
        }
        cutter_next(&cutter, p + done, shown - done, &cut);
        assert_true(cut.len >= 1 && cut.len <= shown - done);
        memset(c.kind + done, cut.kind == CUTTER_FRAME ? AT_FRAME : AT_HEADER, cut.len);
        if (cut.kind == CUTTER_FRAME && cut.begins)
            c.kind[done] = AT_BEGIN;
        done += cut.len;
    }
    c.opaque = cutter.opaque;
    return c;
}

/* Chunks are bounded and have a beginning. */
static void check_chunks(const struct cuts *c, size_t n)
{
    size_t len = 0;
    bool begun = false;

    for (size_t i = 0; i < n; i++) {
        if (c->kind[i] == AT_HEADER)
            continue;
        if (c->kind[i] == AT_BEGIN) {
            len = 0;
            begun = true;
        }
        assert_true(begun && ++len <= PIECE_MAX);
    }
}

/* Whatever the steps, the cuts are the same; returns those. */
static struct cuts check_steps(const uint8_t *p, size_t n, const char *syntax)
{
    static const size_t steps[] = {1, 2, 7, 4096, 0, 0, 0};
    struct cuts whole = cut_stream(p, n, syntax, n ? n : 1);

    check_chunks(&whole, n);
    for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct cuts c;

        if (steps[i] && n / steps[i] > 600000)
            continue;
        c = cut_stream(p, n, syntax, steps[i]);
        assert_memory_equal(c.kind, whole.kind, n);
        assert_int_equal(c.opaque, whole.opaque);
        free(c.kind);
    }
    return whole;
}

/* All pixel bytes, and only they, are frame bytes; chunks begin exactly at the n offsets `begins`,
 * as seen from the first pixel byte. */
static void expect_cuts(const struct dataset *d, const char *syntax, size_t pixel_bytes,
                        const size_t *begins, size_t n)
{
    struct cuts c = check_steps(d->p, d->n, syntax);
    size_t next = 0;

    for (size_t i = 0; i < d->n; i++) {
        bool pixel = i >= d->pixels && i < d->pixels + pixel_bytes;

        assert_int_equal(c.kind[i] != AT_HEADER, pixel);
        if (c.kind[i] == AT_BEGIN) {
            assert_true(next < n);
            assert_int_equal(i - d->pixels, begins[next++]);
        }
    }
    assert_int_equal(next, n);
    free(c.kind);
}

static struct dataset native(unsigned rows, unsigned columns, unsigned samples, unsigned bits,
                             size_t bytes)
{
    struct dataset d = {0};

    put_header(&d, "Someone^Else", rows, columns, samples, bits);
    put_native(&d, 1, bytes);
    return d;
}

/* ---- Native pixels ---- */

static void test_one_frame(void **state)
{
    struct dataset d = native(200, 300, 1, 16, 120000);
    size_t begins[] = {0};

    (void)state;
    expect_cuts(&d, EXPLICIT, 120000, begins, 1);
    free(d.p);
}

static void test_frames(void **state)
{
    struct dataset d = native(100, 200, 1, 16, 5 * 40000);
    size_t begins[] = {0, 40000, 80000, 120000, 160000};

    (void)state;
    expect_cuts(&d, EXPLICIT, 5 * 40000, begins, 5);
    free(d.p);
}

/* Small frames go together until a chunk is worth its row. */
static void test_small_frames(void **state)
{
    struct dataset d = native(10, 100, 1, 8, 100 * 1000);
    size_t begins[] = {0, 33000, 66000, 99000};

    (void)state;
    expect_cuts(&d, EXPLICIT, 100 * 1000, begins, 4);
    free(d.p);
}

/* Frames over the limit are cut at its multiples, counted from each frame's own start. */
static void test_large_frames(void **state)
{
    struct dataset d = native(500, 300, 1, 16, 3 * 300000);
    size_t begins[] = {0, PIECE_MAX, 300000, 300000 + PIECE_MAX, 600000, 600000 + PIECE_MAX};

    (void)state;
    expect_cuts(&d, EXPLICIT, 3 * 300000, begins, 6);
    free(d.p);
}

static void test_exact_multiple(void **state)
{
    struct dataset d = native(512, 512, 1, 16, 2 * 524288);
    size_t begins[] = {0, PIECE_MAX, 2 * PIECE_MAX, 3 * PIECE_MAX};

    (void)state;
    expect_cuts(&d, EXPLICIT, 2 * 524288, begins, 4);
    free(d.p);
}

/* Where the header's numbers make no sense pixels are one long run. */
static void test_senseless_frames(void **state)
{
    struct dataset few = native(1000, 1000, 1, 16, 1000); /* more than there is */
    struct dataset none = native(0, 0, 0, 0, 300000);
    struct dataset odd = native(200, 300, 1, 16, 130000); /* a rest of a frame */
    size_t begins[] = {0, PIECE_MAX}, with_rest[] = {0, 120000};

    (void)state;
    expect_cuts(&few, EXPLICIT, 1000, begins, 1);
    expect_cuts(&none, EXPLICIT, 300000, begins, 2);
    expect_cuts(&odd, EXPLICIT, 130000, with_rest, 2);
    free(few.p);
    free(none.p);
    free(odd.p);
}

static void test_no_pixels(void **state)
{
    struct dataset empty = native(10, 10, 1, 8, 0), none = {0};

    (void)state;
    expect_cuts(&empty, EXPLICIT, 0, NULL, 0);
    put_header(&none, "A^B", 10, 10, 1, 8);
    expect_cuts(&none, EXPLICIT, 0, NULL, 0);
    expect_cuts(&(struct dataset){empty.p, 0, 0}, EXPLICIT, 0, NULL, 0);
    free(empty.p);
    free(none.p);
}

/* The stream ends within Pixel Data. */
static void test_cut_short(void **state)
{
    struct dataset d = native(200, 300, 1, 16, 240000);
    size_t begins[] = {0, 120000};

    (void)state;
    d.n = d.pixels + 130000;
    expect_cuts(&d, EXPLICIT, 130000, begins, 2);
    free(d.p);
}

/* ---- Encapsulated pixels ---- */

static void test_fragments(void **state)
{
    static const uint32_t fragments[] = {1000, 0, 2, 50000, 300000};
    struct dataset d = {0};
    size_t at, begins = 0;
    struct cuts c;

    (void)state;
    put_header(&d, "A^B", 100, 100, 1, 16);
    put_encapsulated(&d, 5, fragments, 5);
    c = check_steps(d.p, d.n, JPEG);
    assert_true(c.opaque);
    at = d.pixels + 8; /* behind the offset table */
    for (unsigned i = 0; i < 5; i++) {
        for (size_t k = 0; k < 8; k++)
            assert_int_equal(c.kind[at++], AT_HEADER);
        for (size_t k = 0; k < fragments[i]; k++, at++)
            assert_int_equal(c.kind[at], k % PIECE_MAX == 0 ? AT_BEGIN : AT_FRAME);
    }
    while (at < d.n)
        assert_int_equal(c.kind[at++], AT_HEADER);
    for (size_t i = 0; i < d.n; i++)
        begins += c.kind[i] == AT_BEGIN;
    assert_int_equal(begins, 5);
    free(c.kind);
    free(d.p);
}

/* What follows is no item: the rest is header, whatever it is. */
static void test_broken_items(void **state)
{
    struct dataset d = {0};
    uint32_t fragments[] = {100};
    struct cuts c;

    (void)state;
    put_header(&d, "A^B", 100, 100, 1, 16);
    put_encapsulated(&d, 5, fragments, 1);
    codec_put_le32(d.p + d.pixels + 8, 0x12345678);
    c = check_steps(d.p, d.n, JPEG);
    for (size_t i = 0; i < d.n; i++)
        assert_int_equal(c.kind[i], AT_HEADER);
    free(c.kind);
    /* An item of undefined length has none. */
    codec_put_le32(d.p + d.pixels + 8, 0xe000fffe);
    codec_put_le32(d.p + d.pixels + 12, UINT32_MAX);
    c = check_steps(d.p, d.n, JPEG);
    for (size_t i = 0; i < d.n; i++)
        assert_int_equal(c.kind[i], AT_HEADER);
    free(c.kind);
    free(d.p);
}

static void test_deflated(void **state)
{
    struct dataset d = {0};
    size_t begins[] = {0, PIECE_MAX};

    (void)state;
    put_noise(&d, 9, 300000);
    expect_cuts(&d, DEFLATED, 300000, begins, 2);
    free(d.p);
}

/* ---- The same pixels under other headers ---- */

struct chunks {
    size_t count;
    struct {
        const uint8_t *p;
        size_t n;
    } at[64];
};

static struct chunks frame_chunks(const struct dataset *d, const struct cuts *c)
{
    struct chunks out = {0};

    for (size_t i = 0; i < d->n; i++) {
        if (c->kind[i] == AT_HEADER)
            continue;
        if (c->kind[i] == AT_BEGIN) {
            assert_true(out.count < 64);
            out.at[out.count].p = d->p + i;
            out.at[out.count++].n = 0;
        }
        out.at[out.count - 1].n++;
    }
    return out;
}

static void same_chunks(const struct dataset *a, const struct dataset *b, const char *syntax)
{
    struct cuts ca = check_steps(a->p, a->n, syntax), cb = check_steps(b->p, b->n, syntax);
    struct chunks fa = frame_chunks(a, &ca), fb = frame_chunks(b, &cb);

    assert_true(fa.count > 1);
    assert_int_equal(fa.count, fb.count);
    for (size_t i = 0; i < fa.count; i++) {
        assert_int_equal(fa.at[i].n, fb.at[i].n);
        assert_memory_equal(fa.at[i].p, fb.at[i].p, fa.at[i].n);
    }
    free(ca.kind);
    free(cb.kind);
}

static void test_other_header(void **state)
{
    static const uint32_t fragments[] = {70001, 30000, 300001};

    (void)state;
    for (unsigned encapsulated = 0; encapsulated < 2; encapsulated++) {
        struct dataset a = {0}, b = {0};

        put_header(&a, "A", 500, 300, 1, 16);
        put_header(&b, "A much longer name^of somebody else, with a comment", 500, 300, 1, 16);
        put_text(&b, 0x00281050, "DS", "40\\80");
        if (encapsulated) {
            put_encapsulated(&a, 7, fragments, 3);
            put_encapsulated(&b, 7, fragments, 3);
        } else {
            put_native(&a, 7, 900000);
            put_native(&b, 7, 900000);
        }
        same_chunks(&a, &b, encapsulated ? JPEG : EXPLICIT);
        free(a.p);
        free(b.p);
    }
}

/* One frame more in front: the frames behind it are cut as before. */
static void test_frame_more(void **state)
{
    struct dataset a = {0}, b = {0};
    uint8_t *pixels = malloc(4 * 120000);
    struct cuts ca, cb;
    struct chunks fa, fb;

    (void)state;
    sim_case_bytes(3, pixels, 4 * 120000);
    put_header(&a, "A", 200, 300, 1, 16);
    put_native(&a, 0, 3 * 120000);
    memcpy(a.p + a.pixels, pixels + 120000, 3 * 120000);
    put_header(&b, "A", 200, 300, 1, 16);
    put_native(&b, 0, 4 * 120000);
    memcpy(b.p + b.pixels, pixels, 4 * 120000);
    ca = check_steps(a.p, a.n, EXPLICIT);
    cb = check_steps(b.p, b.n, EXPLICIT);
    fa = frame_chunks(&a, &ca);
    fb = frame_chunks(&b, &cb);
    assert_int_equal(fa.count, 3);
    assert_int_equal(fb.count, 4);
    for (size_t i = 0; i < 3; i++)
        assert_memory_equal(fa.at[i].p, fb.at[i + 1].p, fa.at[i].n);
    free(ca.kind);
    free(cb.kind);
    free(pixels);
    free(a.p);
    free(b.p);
}

/* ---- Anything at all ---- */

static void test_garbage(void **state)
{
    static const char *const syntaxes[] = {EXPLICIT, IMPLICIT, BIG, DEFLATED, JPEG, "", "nonsense"};

    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        size_t n = 1 + sim_random(dice, 3000);
        uint8_t *p = malloc(n + 8);

        sim_case_bytes(seed, p, n);
        free(check_steps(p, n, syntaxes[seed % 7]).kind);
        free(p);
    }
}

/* Sound data sets with a few bytes changed reach deeper than noise does. */
static void test_mutated(void **state)
{
    static const uint32_t fragments[] = {100, 40, 6};

    (void)state;
    for (unsigned round = 0; round < 600; round++) {
        struct dataset d = {0};
        unsigned changes = 1 + (unsigned)sim_random(dice, 4);

        put_header(&d, "A^B", 7, 9, 1 + round % 3, 8);
        if (round % 2)
            put_encapsulated(&d, round, fragments, 3);
        else
            put_native(&d, round, 700);
        while (changes--)
            d.p[sim_random(dice, d.n)] = (uint8_t)sim_random(dice, 256);
        free(check_steps(d.p, d.n, round % 2 ? JPEG : EXPLICIT).kind);
        free(d.p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_frame),      cmocka_unit_test(test_frames),
        cmocka_unit_test(test_small_frames),   cmocka_unit_test(test_large_frames),
        cmocka_unit_test(test_exact_multiple), cmocka_unit_test(test_senseless_frames),
        cmocka_unit_test(test_no_pixels),      cmocka_unit_test(test_cut_short),
        cmocka_unit_test(test_fragments),      cmocka_unit_test(test_broken_items),
        cmocka_unit_test(test_deflated),       cmocka_unit_test(test_other_header),
        cmocka_unit_test(test_frame_more),     cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_mutated),
    };
    int rc;

    dice = sim_new(1);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    sim_free(dice);
    return rc;
}

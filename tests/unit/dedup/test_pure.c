/* dedup/fingerprint and dedup/compress: functions of bytes alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "dedup/compress.h"
#include "dedup/fingerprint.h"
#include "lib/base/err.h"
#include "tests/unit/store/sim_case.h"

/* ---- Fingerprints ---- */

/* The examples of FIPS 180-4's SHA-256, as NIST publishes them. */
static const struct {
    const char *text;
    size_t times;
    uint8_t digest[FINGERPRINT_SIZE];
} vectors[] = {
    {"", 0, {0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4,
             0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b,
             0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55}},
    {"abc", 1, {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
                0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
                0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad}},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     1,
     {0x24, 0x8d, 0x6a, 0x61, 0xd2, 0x06, 0x38, 0xb8, 0xe5, 0xc0, 0x26,
      0x93, 0x0c, 0x3e, 0x60, 0x39, 0xa3, 0x3c, 0xe4, 0x59, 0x64, 0xff,
      0x21, 0x67, 0xf6, 0xec, 0xed, 0xd4, 0x19, 0xdb, 0x06, 0xc1}},
    {"a", 1000000, {0xcd, 0xc7, 0x6e, 0x5c, 0x99, 0x14, 0xfb, 0x92, 0x81, 0xa1, 0xc7,
                    0xe2, 0x84, 0xd7, 0x3e, 0x67, 0xf1, 0x80, 0x9a, 0x48, 0xa4, 0x97,
                    0x20, 0x0e, 0x04, 0x6d, 0x39, 0xcc, 0xc7, 0x11, 0x2c, 0xd0}},
};

static uint8_t *repeat(const char *text, size_t times, size_t *ret_n)
{
    size_t one = strlen(text);
    uint8_t *p = malloc(one * times + 1);

    for (size_t i = 0; i < times; i++)
        memcpy(p + i * one, text, one);
    *ret_n = one * times;
    return p;
}

static void test_fingerprint_vectors(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        uint8_t out[FINGERPRINT_SIZE];
        size_t n;
        uint8_t *p = repeat(vectors[i].text, vectors[i].times, &n);

        fingerprint_make(p, n, out);
        assert_memory_equal(out, vectors[i].digest, FINGERPRINT_SIZE);
        for (size_t step = 1; step < 100000; step = step * 7 + 1) {
            struct fingerprint_stream *s = fingerprint_stream_new();

            for (size_t at = 0; at < n; at += step)
                fingerprint_stream_add(s, p + at, n - at < step ? n - at : step);
            memset(out, 0, sizeof(out));
            fingerprint_stream_end(s, out);
            assert_memory_equal(out, vectors[i].digest, FINGERPRINT_SIZE);
        }
        free(p);
    }
    fingerprint_stream_end(fingerprint_stream_new(), NULL);
    fingerprint_stream_end(NULL, NULL);
}

/* ---- Compression ---- */

static const size_t sizes[] = {1, 63, 64, 65, 1000, 4096, 32767, 32768, 65536, 262144};

/* Samples of a smooth image: what frames look like. */
static void smooth(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(i % 2 ? (i / 512) % 4 : 100 + (i / 64) % 16);
}

static void round_trip(const uint8_t *p, size_t n, int want_codec)
{
    uint8_t *packed = malloc(n), *back = malloc(n);
    enum compress_codec codec;
    size_t stored = compress_pack(p, n, packed, &codec);

    assert_true(stored > 0 && stored <= n);
    if (want_codec == COMPRESS_ZSTD)
        assert_int_not_equal(codec, COMPRESS_RAW); /* with or without a filter */
    else if (want_codec >= 0)
        assert_int_equal(codec, want_codec);
    if (codec == COMPRESS_RAW) {
        assert_int_equal(stored, n);
        memcpy(packed, p, n);
    } else {
        assert_true(stored <= n - n / 8);
        assert_int_equal(compress_unpack(codec, packed, stored, back, n - 1), ERR_CODEC);
        assert_int_equal(compress_unpack(codec, packed, stored - 1, back, n), ERR_CODEC);
    }
    assert_int_equal(compress_unpack(codec, packed, stored, back, n), 0);
    assert_memory_equal(back, p, n);
    free(packed);
    free(back);
}

static void test_compress_round_trips(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t n = sizes[i];
        uint8_t *p = malloc(n);

        memset(p, 0, n);
        round_trip(p, n, n < 64 ? COMPRESS_RAW : COMPRESS_ZSTD);
        smooth(p, n);
        round_trip(p, n, n < 1000 ? -1 : COMPRESS_ZSTD);
        sim_case_bytes(i, p, n);
        round_trip(p, n, COMPRESS_RAW); /* noise is not worth it, whoever finds out */
        memset(p, 7, n / 2);            /* half and half: it is */
        round_trip(p, n, n < 1000 ? -1 : COMPRESS_ZSTD);
        free(p);
    }
}

/* Noise with a few bytes that repeat: near the border, either answer is fine, wrong bytes are not.
 */
static void test_compress_border(void **state)
{
    enum { N = 65536 };
    uint8_t *p = malloc(N);

    (void)state;
    for (unsigned share = 0; share <= 100; share += 5) {
        sim_case_bytes(share, p, N);
        for (size_t i = 0; i < N; i++)
            if (p[i] * 100 / 256 < share)
                p[i] = 0;
        round_trip(p, N, share == 0 ? (int)COMPRESS_RAW : share >= 50 ? (int)COMPRESS_ZSTD : -1);
    }
    free(p);
}

/* Rows of 16-bit samples that wander, signed or not, in pieces of odd and even lengths and phases.
 */
static void test_compress_samples(void **state)
{
    enum { N = 262144 };
    uint8_t *p = malloc(N + 1), *packed = malloc(N + 1);
    enum compress_codec codec;
    uint64_t seed = 1;
    int16_t sample = -300;

    (void)state;
    for (size_t i = 0; i < N / 2; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        sample = (int16_t)(sample + (int16_t)(seed >> 60) - 8 + (i % 512 ? 0 : 40));
        p[2 * i] = (uint8_t)sample;
        p[2 * i + 1] = (uint8_t)((uint16_t)sample >> 8);
    }
    p[N] = 99;
    for (size_t n = 16384; n <= N; n = n * 2 - 1) {
        round_trip(p, n, COMPRESS_DELTA16_ZSTD);
        round_trip(p + 1, n, -1); /* out of phase: whatever pays, but exact */
    }
    round_trip(p, N + 1, COMPRESS_DELTA16_ZSTD);
    assert_true(compress_pack(p, N, packed, &codec) < N / 3); /* zstd alone: hardly half */
    free(p);
    free(packed);
}

/* Differences over the whole range of 16 bits, where folding and wrapping must be exact. */
static void test_compress_extremes(void **state)
{
    static const uint16_t edges[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { N = 32768 };
    uint8_t *p = malloc(N), *packed = malloc(N), *back = malloc(N);
    enum compress_codec codec;
    size_t stored;

    (void)state;
    for (size_t i = 0; i < N / 2; i++) {
        /* Runs of a value, then each edge after each. */
        uint16_t v = i < 8192 ? (uint16_t)(i / 3) : edges[(i + i / 6) % 6];

        p[2 * i] = (uint8_t)v;
        p[2 * i + 1] = (uint8_t)(v >> 8);
    }
    stored = compress_pack(p, N, packed, &codec);
    assert_int_equal(codec, COMPRESS_DELTA16_ZSTD);
    assert_int_equal(compress_unpack(codec, packed, stored, back, N), 0);
    assert_memory_equal(back, p, N);
    free(p);
    free(packed);
    free(back);
}

static void test_unpack_refuses(void **state)
{
    uint8_t in[100], out[1000];
    enum compress_codec codec;
    uint8_t packed[1000], plain[1000] = {0};
    size_t stored;

    (void)state;
    memset(in, 1, sizeof(in));
    assert_int_equal(compress_unpack(COMPRESS_RAW, in, 99, out, 100), ERR_CODEC);
    assert_int_equal(compress_unpack(COMPRESS_ZSTD, in, 100, out, 1000), ERR_CODEC);
    assert_int_equal(compress_unpack((enum compress_codec)9, in, 100, out, 100), ERR_FORMAT);
    stored = compress_pack(plain, sizeof(plain), packed, &codec);
    assert_int_equal(codec, COMPRESS_ZSTD);
    for (size_t i = 0; i < stored; i++) {
        uint8_t bad[1000];

        memcpy(bad, packed, stored);
        bad[i] ^= 0x55;
        (void)compress_unpack(codec, bad, stored, out, sizeof(out)); /* any answer, no crash */
    }
}

static void test_is_zero(void **state)
{
    uint8_t p[4096] = {0};

    (void)state;
    assert_true(compress_is_zero(p, 0));
    assert_true(compress_is_zero(p, 1));
    assert_true(compress_is_zero(p, sizeof(p)));
    for (size_t i = 0; i < sizeof(p); i += 63) {
        p[i] = 1;
        assert_false(compress_is_zero(p, sizeof(p)));
        p[i] = 0;
    }
    p[4095] = 1;
    assert_false(compress_is_zero(p, sizeof(p)));
    assert_true(compress_is_zero(p, 4095));
    memset(p, 5, sizeof(p));
    assert_false(compress_is_zero(p, sizeof(p)));
    assert_false(compress_is_zero(p, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fingerprint_vectors),
        cmocka_unit_test(test_compress_round_trips),
        cmocka_unit_test(test_compress_border),
        cmocka_unit_test(test_compress_samples),
        cmocka_unit_test(test_compress_extremes),
        cmocka_unit_test(test_unpack_refuses),
        cmocka_unit_test(test_is_zero),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* zstd with contexts kept for reuse, and a cheap probe that spares incompressible data the attempt.
 *
 * The probe estimates the entropy of sampled bytes. Encrypted or compressed data has nearly 8 bits
 * a byte; trying zstd on it would cost ten times what the probe does. Data with evenly spread bytes
 * and long repeats is misjudged and stored raw: rare, and deduplication finds most of it.
 */
#include "dedup/compress.h"

#include <string.h>
#include <zstd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/slots.h"

#define COMPRESS_LEVEL   1
#define COMPRESS_SAMPLES 1024u
/* Bits per byte, in 1/1024, above which saving an eighth is out of reach. Random bytes give
 * about 7.8 in a sample of this size. */
#define COMPRESS_RANDOM (7u * 1024 + 256)

static size_t compress_try(const void *p, size_t n, void *out, size_t room)
{
    static struct slots contexts;
    ZSTD_CCtx *ctx = slots_take(&contexts);
    size_t got;

    if (!ctx)
        ctx = ZSTD_createCCtx();
    CHECK(ctx != NULL);
    got = ZSTD_compressCCtx(ctx, out, room, p, n, COMPRESS_LEVEL);
    ZSTD_freeCCtx(slots_put(&contexts, ctx));
    return ZSTD_isError(got) ? 0 : got; /* the only error here is: it does not fit in room */
}

static size_t compress_worth(size_t n)
{
    return n - n / 8;
}

/* log2 in 1/1024, for 1 <= n < 2^20, the mantissa taken as linear (at most 0.09 too low). */
static uint32_t compress_log2(uint32_t n)
{
    uint32_t whole = 31u - (uint32_t)__builtin_clz(n);

    return whole * 1024 + ((n << 10) >> whole) - 1024;
}

static bool compress_looks_random(const uint8_t *p, size_t n)
{
    size_t stride = n / COMPRESS_SAMPLES | 1; /* odd: no fixed phase in wider samples */
    uint16_t counts[256] = {0};
    uint32_t sum = 0; /* of count x log2(count) */

    if (n < COMPRESS_SAMPLES)
        return false;
    for (size_t i = 0, at = 0; i < COMPRESS_SAMPLES; i++) {
        counts[p[at]]++;
        at += stride;
        if (at >= n)
            at -= n;
    }
    for (unsigned i = 0; i < 256; i++)
        if (counts[i])
            sum += counts[i] * compress_log2(counts[i]);
    return compress_log2(COMPRESS_SAMPLES) - sum / COMPRESS_SAMPLES > COMPRESS_RANDOM;
}

size_t compress_pack(const void *p, size_t n, void *out, enum compress_codec *ret_codec)
{
    size_t got;

    *ret_codec = COMPRESS_RAW;
    if (n < 64)
        return n;
    if (compress_looks_random(p, n))
        return n;
    got = compress_try(p, n, out, compress_worth(n));
    if (got == 0)
        return n;
    *ret_codec = COMPRESS_ZSTD;
    return got;
}

int compress_unpack(enum compress_codec codec, const void *p, size_t stored, void *out, size_t raw)
{
    static struct slots contexts;
    ZSTD_DCtx *ctx;
    size_t got;

    if (codec == COMPRESS_RAW) {
        if (stored != raw)
            return ERR_CODEC;
        memcpy(out, p, raw);
        return 0;
    }
    if (codec != COMPRESS_ZSTD)
        return ERR_FORMAT;
    ctx = slots_take(&contexts);
    if (!ctx)
        ctx = ZSTD_createDCtx();
    CHECK(ctx != NULL);
    got = ZSTD_decompressDCtx(ctx, out, raw, p, stored);
    ZSTD_freeDCtx(slots_put(&contexts, ctx));
    return got == raw ? 0 : ERR_CODEC;
}

bool compress_is_zero(const void *p, size_t n)
{
    const unsigned char *b = p;

    /* All bytes equal their neighbour and the first is zero. */
    return n == 0 || (b[0] == 0 && memcmp(b, b + 1, n - 1) == 0);
}

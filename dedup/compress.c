/* zstd with contexts kept for reuse, and a cheap probe that spares incompressible data the attempt.
 *
 * The probe counts the values of sampled bytes. Encrypted or compressed data uses all 256 about equally
 * often; trying zstd on it would cost thirty times what the probe does. Data with evenly spread
 * bytes and long repeats is misjudged and stored raw: rare, and deduplication finds most of it.
 */
#include "dedup/compress.h"

#include <string.h>
#include <zstd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/slots.h"

#define COMPRESS_LEVEL   1
#define COMPRESS_SAMPLES 1024u
/* Sum of the squared counts: samples + samples^2 / values used. Random bytes give 5120; half of the
 * values used equally, which is what saving an eighth takes at least, give 9216. */
#define COMPRESS_RANDOM 7680u

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

static bool compress_looks_random(const uint8_t *p, size_t n)
{
    size_t stride = n / COMPRESS_SAMPLES | 1; /* odd: no fixed phase in wider samples */
    uint16_t counts[256] = {0};
    uint32_t sum = 0;

    if (n < COMPRESS_SAMPLES)
        return false;
    for (size_t i = 0, at = 0; i < COMPRESS_SAMPLES; i++) {
        counts[p[at]]++;
        at += stride;
        if (at >= n)
            at -= n;
    }
    for (unsigned i = 0; i < 256; i++)
        sum += (uint32_t)counts[i] * counts[i];
    return sum < COMPRESS_RANDOM;
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

/* zstd with a context per thread, and a cheap probe that spares incompressible data the attempt.
 *
 * The probe compresses 4 KiB from the middle of a large chunk. Encrypted disks and compressed
 * images are turned away by it at a small part of the price of trying.
 */
#include "dedup/compress.h"

#include <string.h>
#include <zstd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"

#define COMPRESS_LEVEL     1
#define COMPRESS_PROBE     4096u
#define COMPRESS_PROBE_MIN 32768u /* smaller chunks are simply tried */

static size_t compress_try(const void *p, size_t n, void *out, size_t room)
{
    static _Thread_local ZSTD_CCtx *ctx;
    size_t got;

    if (!ctx)
        ctx = ZSTD_createCCtx();
    CHECK(ctx != NULL);
    got = ZSTD_compressCCtx(ctx, out, room, p, n, COMPRESS_LEVEL);
    return ZSTD_isError(got) ? 0 : got; /* the only error here is: it does not fit in room */
}

static size_t compress_worth(size_t n)
{
    return n - n / 8;
}

size_t compress_pack(const void *p, size_t n, void *out, enum compress_codec *ret_codec)
{
    size_t got;

    *ret_codec = COMPRESS_RAW;
    if (n < 64)
        return n;
    if (n >= COMPRESS_PROBE_MIN &&
        compress_try((const char *)p + n / 2, COMPRESS_PROBE, out, compress_worth(COMPRESS_PROBE)) ==
            0)
        return n;
    got = compress_try(p, n, out, compress_worth(n));
    if (got == 0)
        return n;
    *ret_codec = COMPRESS_ZSTD;
    return got;
}

int compress_unpack(enum compress_codec codec, const void *p, size_t stored, void *out, size_t raw)
{
    static _Thread_local ZSTD_DCtx *ctx;

    if (codec == COMPRESS_RAW) {
        if (stored != raw)
            return ERR_CODEC;
        memcpy(out, p, raw);
        return 0;
    }
    if (codec != COMPRESS_ZSTD)
        return ERR_FORMAT;
    if (!ctx)
        ctx = ZSTD_createDCtx();
    CHECK(ctx != NULL);
    return ZSTD_decompressDCtx(ctx, out, raw, p, stored) == raw ? 0 : ERR_CODEC;
}

bool compress_is_zero(const void *p, size_t n)
{
    const unsigned char *b = p;

    /* All bytes equal their neighbour and the first is zero. */
    return n == 0 || (b[0] == 0 && memcmp(b, b + 1, n - 1) == 0);
}

/* Compression of chunks: zstd, by itself or behind a filter for 16-bit samples, or raw where
 * neither would pay. The codec's id is stored with each chunk.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum compress_codec { /* on media */
                      COMPRESS_RAW = 0,
                      COMPRESS_ZSTD = 1,
                      /* zstd of: for each little-endian 16-bit sample its difference to the one
                       * before (the first: to zero), modulo 2^16, folded (0, -1, 1, -2 ... as 0, 1,
                       * 2, 3 ...): first all low bytes, then all high bytes, then the odd byte left
                       * over, if there is one. */
                      COMPRESS_DELTA16_ZSTD = 2,
                      COMPRESS_CODECS
};

/* Compresses n bytes into out (room for n). Returns the stored size and sets the codec;
 * COMPRESS_RAW (nothing written to out) when a probe of the data, or the result, shows less than
 * 1/8 saved. Burns CPU: 300 to 600 MB/s. Any thread. */
size_t compress_pack(const void *p, size_t n, void *out, enum compress_codec *ret_codec);

/* Restores raw bytes exactly; ERR_CODEC when the data does not decompress to exactly `raw`. */
int compress_unpack(enum compress_codec codec, const void *p, size_t stored, void *out, size_t raw);

/* Are all n bytes zero? */
bool compress_is_zero(const void *p, size_t n);

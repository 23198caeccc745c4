/* Compression of chunks: zstd, or raw where it would not pay. The codec's id is stored with each.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum compress_codec { COMPRESS_RAW = 0, COMPRESS_ZSTD = 1 }; /* on media */

/* Compresses n bytes into out (room for n). Returns the stored size and sets the codec;
 * COMPRESS_RAW (nothing written to out) when a probe of the data, or the result, shows less than
 * 1/8 saved. Burns CPU: about 400 MB/s. Any thread. */
size_t compress_pack(const void *p, size_t n, void *out, enum compress_codec *ret_codec);

/* Restores raw bytes exactly; ERR_CODEC when the data does not decompress to exactly `raw`. */
int compress_unpack(enum compress_codec codec, const void *p, size_t stored, void *out, size_t raw);

/* Are all n bytes zero? */
bool compress_is_zero(const void *p, size_t n);

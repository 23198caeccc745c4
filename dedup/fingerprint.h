/* Fingerprints: what a chunk is found again by. The algorithm's id is stored with each. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FINGERPRINT_SIZE   32
#define FINGERPRINT_SHA256 1u /* FIPS 180-4, by OpenSSL */

/* The fingerprint of n bytes by the present algorithm (FINGERPRINT_SHA256). Burns CPU: about 1.5
 * GB/s. Any thread. */
void fingerprint_make(const void *p, size_t n, uint8_t out[FINGERPRINT_SIZE]);

/* A running fingerprint over pieces. */
struct fingerprint_stream;
struct fingerprint_stream *fingerprint_stream_new(void);
void fingerprint_stream_add(struct fingerprint_stream *s, const void *p, size_t n);
/* Ends and frees it; `out` may be NULL. NULL stream is fine. */
void fingerprint_stream_end(struct fingerprint_stream *s, uint8_t out[FINGERPRINT_SIZE]);

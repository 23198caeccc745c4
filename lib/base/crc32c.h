/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), by ISA-L. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* The checksum of n bytes, continuing from `crc` (0 to begin). */
uint32_t crc32c(uint32_t crc, const void *p, size_t n);

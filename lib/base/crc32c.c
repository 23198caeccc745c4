/* CRC-32C by ISA-L, which takes an int length: long ranges go in pieces. */
#include "lib/base/crc32c.h"

#include <isa-l/crc.h>

uint32_t crc32c(uint32_t crc, const void *p, size_t n)
{
    const uint8_t *b = p;
    uint32_t c = ~crc;

    while (n) {
        size_t take = n < ((size_t)1 << 30) ? n : (size_t)1 << 30;

        /* ISA-L's prototype lacks const; it only reads. */
        c = crc32_iscsi((unsigned char *)(uintptr_t)b, (int)take, c);
        b += take;
        n -= take;
    }
    return ~c;
}

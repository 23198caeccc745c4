/* The first byte of an input chooses the transfer syntax. */
#pragma once

#include <stdint.h>

static inline const char *fuzz_dcm_syntax(uint8_t byte)
{
    static const char *const list[] = {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2",
                                       "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
                                       "1.2.840.10008.1.2.5", "1.2.3.4"};

    return list[byte % (sizeof(list) / sizeof(list[0]))];
}

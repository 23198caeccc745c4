/* Sizes as text: parsing with binary units, and two ways of showing them; see size.h. */
#include "lib/base/size.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "lib/base/err.h"

static const char size_units[] = "BKMGTPE";

/* The unit's power of 1024, or -1. */
static int size_unit(const char *text)
{
    const char *at;
    char letter = *text;

    if (letter == 0)
        return 0;
    if (letter >= 'a' && letter <= 'z')
        letter = (char)(letter - 'a' + 'A');
    at = strchr(size_units, letter);
    if (!at || (text[1] && (letter == 'B' || strcasecmp(text + 1, "iB") != 0)))
        return -1;
    return (int)(at - size_units);
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
    uint64_t n = 0;
    const char *p = text;
    int power;

    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(n, 10u, &n) ||
            __builtin_add_overflow(n, (uint64_t)(*p - '0'), &n))
            return ERR_RANGE;
    if (p == text)
        return ERR_INVAL;
    if (*p == ' ' && p[1])
        p++;
    power = size_unit(p);
    if (power < 0)
        return ERR_INVAL;
    for (; power > 0; power--)
        if (__builtin_mul_overflow(n, 1024u, &n))
            return ERR_RANGE;
    if (n > INT64_MAX)
        return ERR_RANGE;
    *ret_bytes = n;
    return 0;
}

const char *size_format(uint64_t bytes, char buf[SIZE_TEXT_MAX])
{
    unsigned power = 0, decimals;
    uint64_t unit = 1, whole, rest;

    if (bytes < 10240) {
        snprintf(buf, SIZE_TEXT_MAX, "%u B", (unsigned)bytes);
        return buf;
    }
    while (bytes / unit >= 1024) {
        unit *= 1024;
        power++;
    }
    whole = bytes / unit;
    rest = bytes % unit;
    decimals = rest == 0 || whole >= 100 ? 0 : whole >= 10 ? 1 : 2;
    if (decimals == 0)
        snprintf(buf, SIZE_TEXT_MAX, "%u %ciB", (unsigned)whole, size_units[power]);
    else
        snprintf(buf, SIZE_TEXT_MAX, "%u.%0*u %ciB", (unsigned)whole, (int)decimals,
                 (unsigned)(rest / (unit / 1024) * (decimals == 1 ? 10 : 100) / 1024),
                 size_units[power]);
    return buf;
}

const char *size_format_exact(uint64_t bytes, char buf[SIZE_TEXT_MAX])
{
    unsigned power = 0;

    while (bytes >= 1024 && bytes % 1024 == 0 && power + 2 < sizeof(size_units)) {
        bytes /= 1024;
        power++;
    }
    if (power == 0)
        snprintf(buf, SIZE_TEXT_MAX, "%llu", (unsigned long long)bytes);
    else
        snprintf(buf, SIZE_TEXT_MAX, "%llu%c", (unsigned long long)bytes, size_units[power]);
    return buf;
}

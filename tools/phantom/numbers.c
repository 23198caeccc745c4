/* Numbers from a seed; see phantom.h. Nothing here depends on the machine, the time or the order in
 * which slices are made. */
#include "tools/phantom/phantom.h"

#include <string.h>

#include "lib/base/check.h"

uint64_t hash_bytes(uint64_t h, const void *p, size_t n)
{
    const uint8_t *b = p;

    for (size_t i = 0; i < n; i++)
        h = (h ^ b[i]) * 0x100000001b3ull;
    return h;
}

struct rng rng_for(uint64_t seed, const char *topic, uint64_t index)
{
    uint64_t h = hash_bytes(HASH_START, topic, strlen(topic));
    struct rng r = {h ^ seed * 0x9e3779b97f4a7c15ull};

    /* One step between the two keeps (seed, index) and (index, seed) apart. */
    r.state = rng_next(&r) ^ index * 0xd1342543de82ef95ull;
    return r;
}

uint64_t rng_next(struct rng *r) /* splitmix64 */
{
    uint64_t z = (r->state += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

double rng_unit(struct rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}

void rng_uid(struct rng *r, char ret_uid[PHANTOM_UID_MAX + 1])
{
    uint64_t high = rng_next(r), low = rng_next(r);
    unsigned __int128 v = (unsigned __int128)high << 64 | low;
    char digits[40];
    size_t n = 0;

    do {
        digits[n++] = (char)('0' + (int)(v % 10));
        v /= 10;
    } while (v);
    CHECK(n < sizeof(digits)); /* 2^128 has 39 digits */
    memcpy(ret_uid, "2.25.", 5);
    for (size_t i = 0; i < n; i++)
        ret_uid[5 + i] = digits[n - 1 - i];
    ret_uid[5 + n] = '\0';
}

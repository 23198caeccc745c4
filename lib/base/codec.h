/* The checked codec: every integer from a wire or a medium passes through here.
 *
 * A reader or writer walks a byte range and never leaves it. The first step outside sets `bad` and
 * every later step is a no-op that yields zero, so that a parser reads all its fields and tests
 * codec_reader_ok() once. The plain get/put functions are for ranges the caller has checked.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CODEC_DEFINE_(bits, order, swap)                                  \
    static inline uint##bits##_t codec_get_##order##bits(const void *p)   \
    {                                                                     \
        uint##bits##_t v;                                                 \
        memcpy(&v, p, sizeof(v));                                         \
        return (uint##bits##_t)swap(v);                                   \
    }                                                                     \
    static inline void codec_put_##order##bits(void *p, uint##bits##_t v) \
    {                                                                     \
        v = (uint##bits##_t)swap(v);                                      \
        memcpy(p, &v, sizeof(v));                                         \
    }

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the hosts we run on");
#define CODEC_SAME_(v) (v)
CODEC_DEFINE_(16, le, CODEC_SAME_)
CODEC_DEFINE_(32, le, CODEC_SAME_)
CODEC_DEFINE_(64, le, CODEC_SAME_)
CODEC_DEFINE_(16, be, __builtin_bswap16)
CODEC_DEFINE_(32, be, __builtin_bswap32)
CODEC_DEFINE_(64, be, __builtin_bswap64)
#undef CODEC_DEFINE_
#undef CODEC_SAME_

struct codec_reader {
    const uint8_t *p, *end;
    bool bad;
};

static inline struct codec_reader codec_reader_on(const void *p, size_t n)
{
    return (struct codec_reader){p, (const uint8_t *)p + n, false};
}

static inline size_t codec_left(const struct codec_reader *r)
{
    return (size_t)(r->end - r->p);
}

/* True when every step so far stayed inside. */
static inline bool codec_reader_ok(const struct codec_reader *r)
{
    return !r->bad;
}

/* Takes n bytes; NULL (and bad) when fewer are left. n = 0 gives a valid pointer. */
static inline const uint8_t *codec_read_bytes(struct codec_reader *r, size_t n)
{
    const uint8_t *p = r->p;

    if (r->bad || n > codec_left(r)) {
        r->bad = true;
        return NULL;
    }
    r->p += n;
    return p;
}

#define CODEC_READ_(bits, order)                                                  \
    static inline uint##bits##_t codec_read_##order##bits(struct codec_reader *r) \
    {                                                                             \
        const uint8_t *p = codec_read_bytes(r, bits / 8);                         \
        return p ? codec_get_##order##bits(p) : (uint##bits##_t)0;                \
    }
CODEC_READ_(16, le)
CODEC_READ_(32, le)
CODEC_READ_(64, le)
CODEC_READ_(16, be)
CODEC_READ_(32, be)
CODEC_READ_(64, be)
#undef CODEC_READ_

static inline uint8_t codec_read_u8(struct codec_reader *r)
{
    const uint8_t *p = codec_read_bytes(r, 1);

    return p ? *p : 0;
}

struct codec_writer {
    uint8_t *start, *p, *end;
    bool bad;
};

static inline struct codec_writer codec_writer_on(void *p, size_t n)
{
    return (struct codec_writer){p, p, (uint8_t *)p + n, false};
}

static inline bool codec_writer_ok(const struct codec_writer *w)
{
    return !w->bad;
}

static inline size_t codec_written(const struct codec_writer *w)
{
    return (size_t)(w->p - w->start);
}

/* Room for n bytes, to be filled by the caller; NULL (and bad) when there is less. */
static inline uint8_t *codec_write_room(struct codec_writer *w, size_t n)
{
    uint8_t *p = w->p;

    if (w->bad || n > (size_t)(w->end - w->p)) {
        w->bad = true;
        return NULL;
    }
    w->p += n;
    return p;
}

static inline void codec_write_bytes(struct codec_writer *w, const void *src, size_t n)
{
    uint8_t *p = codec_write_room(w, n);

    if (p && n)
        memcpy(p, src, n);
}

#define CODEC_WRITE_(bits, order)                                                          \
    static inline void codec_write_##order##bits(struct codec_writer *w, uint##bits##_t v) \
    {                                                                                      \
        uint8_t *p = codec_write_room(w, bits / 8);                                        \
        if (p)                                                                             \
            codec_put_##order##bits(p, v);                                                 \
    }
CODEC_WRITE_(16, le)
CODEC_WRITE_(32, le)
CODEC_WRITE_(64, le)
CODEC_WRITE_(16, be)
CODEC_WRITE_(32, be)
CODEC_WRITE_(64, be)
#undef CODEC_WRITE_

static inline void codec_write_u8(struct codec_writer *w, uint8_t v)
{
    uint8_t *p = codec_write_room(w, 1);

    if (p)
        *p = v;
}

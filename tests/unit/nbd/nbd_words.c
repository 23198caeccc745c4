/* nbd_words: NBD byte streams written in words, for tests. See nbd_words.h. */
#include "tests/unit/nbd/nbd_words.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void put_be(struct strbuf *s, uint64_t v, unsigned bytes)
{
    uint8_t raw[8];

    codec_put_be64(raw, v);
    strbuf_add(s, raw + 8 - bytes, bytes);
}

static void put_fill(struct strbuf *s, size_t n, int byte)
{
    memset(strbuf_room(s, n), byte, n);
}

static void put_word(struct strbuf *s, const char *w, size_t n)
{
    static const struct {
        const char *word;
        uint64_t magic;
        unsigned bytes;
    } magics[] = {
        {"OPT", 0x49484156454f5054, 8}, {"REP", 0x3e889045565a9, 8}, {"REQ", 0x25609513, 4},
        {"OK", 0x6744669800000000, 8},  {"BAD", 0x67446698, 4},      {"CHUNK", 0x668e33ef, 4},
    };

    for (size_t i = 0; i < sizeof(magics) / sizeof(magics[0]); i++) {
        if (n == strlen(magics[i].word) && memcmp(w, magics[i].word, n) == 0) {
            put_be(s, magics[i].magic, magics[i].bytes);
            return;
        }
    }
    if (w[0] == '\'')
        strbuf_add(s, w + 1, n - 2);
    else if (w[1] == ':')
        put_fill(s, strtoull(w + 2, NULL, 0), w[0] == 'f' ? 0x5a : 0);
    else
        put_be(s, strtoull(w + 1, NULL, 0), w[0] == 'q' ? 8 : w[0] == 'd' ? 4 : 2);
}

static const char *next_word(const char **p, size_t *ret_n)
{
    const char *w;

    while (**p == ' ')
        (*p)++;
    w = *p;
    if (!*w)
        return NULL;
    if (*w == '\'')
        *p = strchr(w + 1, '\'') + 1;
    else
        while (**p && **p != ' ')
            (*p)++;
    *ret_n = (size_t)(*p - w);
    return w;
}

void nbd_words_build(struct strbuf *s, const char *words)
{
    const char *w;
    size_t n;

    while ((w = next_word(&words, &n)))
        put_word(s, w, n);
}

/* Takes an option error or an error chunk off `r`, whatever its text. */
static void match_error(struct codec_reader *r, bool option, uint64_t a, uint64_t b)
{
    if (option) {
        assert_true(codec_read_be64(r) == 0x3e889045565a9);
        assert_int_equal(codec_read_be32(r), a);
        assert_int_equal(codec_read_be32(r), 0x80000000u + b);
        assert_non_null(codec_read_bytes(r, codec_read_be32(r)));
    } else {
        uint32_t len;

        assert_int_equal(codec_read_be32(r), 0x668e33ef);
        assert_int_equal(codec_read_be16(r), 1);
        assert_int_equal(codec_read_be16(r), 0x8001);
        assert_true(codec_read_be64(r) == a);
        len = codec_read_be32(r);
        assert_int_equal(codec_read_be32(r), b);
        assert_int_equal(codec_read_be16(r), len - 6);
        assert_non_null(codec_read_bytes(r, len - 6));
    }
    assert_true(codec_reader_ok(r));
}

void nbd_words_match(struct codec_reader *r, const char *words)
{
    const char *w;
    size_t n;

    while ((w = next_word(&words, &n))) {
        if (n >= 3 && memcmp(w, "ERR", 3) == 0) {
            bool option = n == 3;
            uint64_t a = strtoull(next_word(&words, &n), NULL, 0);

            match_error(r, option, a, strtoull(next_word(&words, &n), NULL, 0));
        } else {
            struct strbuf want = STRBUF_INIT;
            const uint8_t *got;

            put_word(&want, w, n);
            got = codec_read_bytes(r, want.len);
            assert_non_null(got);
            assert_memory_equal(got, want.data, want.len);
            strbuf_free(&want);
        }
    }
}

void nbd_words_match_all(const struct strbuf *out, const char *words)
{
    struct codec_reader r = codec_reader_on(out->data, out->len);

    nbd_words_match(&r, words);
    assert_int_equal(codec_left(&r), 0);
}

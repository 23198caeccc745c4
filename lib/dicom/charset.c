/* Text in the data set's character set to UTF-8 (PS3.3 section C.12.1.1.2, PS3.5 section 6.1.2).
 *
 * DCMTK converts too, but Debian's build does it with glibc's iconv and asks that for the bare
 * Japanese sets, which it does not have: no Japanese name could be read. Here ISO 2022 is taken
 * apart first and iconv gets pieces in encodings that it has: JIS X 0208 and 0212 as EUC-JP, KS X
 * 1001 as EUC-KR, GB 2312 as EUC-CN, the Latin and other right halves as their ISO 8859. JIS X 0201
 * is small enough to be done by hand.
 *
 * Code extensions have a left half G0 (bytes below 80 hex) and a right half G1, which escape
 * sequences switch; line ends and value delimiters set both back to what the first value of
 * Specific Character Set says. A backslash, caret or equals sign is a delimiter only while G0 has
 * one byte to a character. GB18030 and GBK know no escapes; their second bytes may be any of these,
 * so text in them is converted whole.
 *
 * No text is refused: what cannot be converted becomes U+FFFD, bytes without any character set
 * count as UTF-8 where they are (dcm_text_strings decides that, later).
 */
#include "lib/dicom/impl.h"

#include <errno.h>
#include <iconv.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

enum dcm_set {
    DCM_SET_NONE,
    DCM_SET_ASCII,
    DCM_SET_ROMAJI,   /* JIS X 0201, left half */
    DCM_SET_KATAKANA, /* ... right half */
    DCM_SET_JISX0208,
    DCM_SET_JISX0212,
    DCM_SET_KSX1001,
    DCM_SET_GB2312,
    DCM_SET_LATIN1, /* from here on: single-byte right halves */
    DCM_SET_LATIN2,
    DCM_SET_LATIN3,
    DCM_SET_LATIN4,
    DCM_SET_CYRILLIC,
    DCM_SET_ARABIC,
    DCM_SET_GREEK,
    DCM_SET_HEBREW,
    DCM_SET_LATIN5,
    DCM_SET_LATIN9,
    DCM_SET_THAI,
    DCM_SET_GB18030, /* whole encodings */
    DCM_SET_GBK,
    DCM_SET_COUNT,
};

static const char *const dcm_set_iconv[DCM_SET_COUNT] = {
    [DCM_SET_JISX0208] = "EUC-JP",
    [DCM_SET_JISX0212] = "EUC-JP",
    [DCM_SET_KSX1001] = "EUC-KR",
    [DCM_SET_GB2312] = "EUC-CN",
    [DCM_SET_LATIN1] = "ISO-8859-1",
    [DCM_SET_LATIN2] = "ISO-8859-2",
    [DCM_SET_LATIN3] = "ISO-8859-3",
    [DCM_SET_LATIN4] = "ISO-8859-4",
    [DCM_SET_CYRILLIC] = "ISO-8859-5",
    [DCM_SET_ARABIC] = "ISO-8859-6",
    [DCM_SET_GREEK] = "ISO-8859-7",
    [DCM_SET_HEBREW] = "ISO-8859-8",
    [DCM_SET_LATIN5] = "ISO-8859-9",
    [DCM_SET_LATIN9] = "ISO-8859-15",
    [DCM_SET_THAI] = "TIS-620",
    [DCM_SET_GB18030] = "GB18030",
    [DCM_SET_GBK] = "GBK",
};

/* Registration numbers of the defined terms, and escape sequences (without the ESC). */
static const struct dcm_set_row {
    unsigned ir;
    enum dcm_set set;
    bool right; /* designates G1 */
    char escape[4];
} dcm_set_rows[] = {
    {6, DCM_SET_ASCII, false, "(B"},       {13, DCM_SET_ROMAJI, false, "(J"},
    {13, DCM_SET_KATAKANA, true, ")I"},    {100, DCM_SET_LATIN1, true, "-A"},
    {101, DCM_SET_LATIN2, true, "-B"},     {109, DCM_SET_LATIN3, true, "-C"},
    {110, DCM_SET_LATIN4, true, "-D"},     {144, DCM_SET_CYRILLIC, true, "-L"},
    {127, DCM_SET_ARABIC, true, "-G"},     {126, DCM_SET_GREEK, true, "-F"},
    {138, DCM_SET_HEBREW, true, "-H"},     {148, DCM_SET_LATIN5, true, "-M"},
    {203, DCM_SET_LATIN9, true, "-b"},     {166, DCM_SET_THAI, true, "-T"},
    {87, DCM_SET_JISX0208, false, "$B"},   {0, DCM_SET_JISX0208, false, "$@"},
    {159, DCM_SET_JISX0212, false, "$(D"}, {149, DCM_SET_KSX1001, true, "$)C"},
    {58, DCM_SET_GB2312, true, "$)A"},
};
#define DCM_SET_ROWS (sizeof(dcm_set_rows) / sizeof(dcm_set_rows[0]))

struct dcm_charset {
    enum dcm_set whole;  /* GB18030 or GBK, else NONE */
    enum dcm_set g0, g1; /* to begin with */
    bool open[DCM_SET_COUNT];
    iconv_t iconv[DCM_SET_COUNT];
};

/* ---- Specific Character Set ------------------------------------------------------------- */

/* "ISO_IR 100", "ISO 2022 IR 100" and what senders make of them: the number after "IR". */
static unsigned dcm_charset_ir(const char *value, size_t n)
{
    for (size_t i = 0; i + 2 < n; i++) {
        if ((value[i] == 'I' || value[i] == 'i') && (value[i + 1] == 'R' || value[i + 1] == 'r') &&
            (value[i + 2] == ' ' || value[i + 2] == '_' || value[i + 2] == '-'))
            return (unsigned)strtoul(value + i + 3, NULL, 10);
    }
    return 6;
}

static void dcm_charset_value(struct dcm_charset *cs, const char *value, size_t n, bool first)
{
    unsigned ir = dcm_charset_ir(value, n);

    if (first && n == 7 && memcmp(value, "GB18030", 7) == 0)
        cs->whole = DCM_SET_GB18030;
    if (first && n == 3 && memcmp(value, "GBK", 3) == 0)
        cs->whole = DCM_SET_GBK;
    for (size_t i = 0; i < DCM_SET_ROWS; i++) {
        const struct dcm_set_row *r = &dcm_set_rows[i];

        if (r->ir != ir)
            continue;
        /* A right half of a later value serves those who forget its escape sequence. */
        if (r->right && cs->g1 == DCM_SET_NONE)
            cs->g1 = r->set;
        else if (!r->right && first)
            cs->g0 = r->set;
    }
}

struct dcm_charset *dcm_charset_new(const char *terms)
{
    struct dcm_charset *cs = mem_zalloc(sizeof(*cs));

    cs->g0 = DCM_SET_ASCII;
    for (const char *at = terms;; at++) {
        size_t n = strcspn(at, "\\");

        dcm_charset_value(cs, at, n, at == terms);
        at += n;
        if (!*at)
            return cs;
    }
}

void dcm_charset_free(struct dcm_charset *cs)
{
    if (!cs)
        return;
    for (int i = 0; i < DCM_SET_COUNT; i++) {
        if (cs->open[i])
            iconv_close(cs->iconv[i]);
    }
    mem_free(cs);
}

/* ---- Pieces ----------------------------------------------------------------------------- */

static void dcm_charset_bad(struct strbuf *out)
{
    strbuf_adds(out, "\xef\xbf\xbd");
}

static bool dcm_charset_open(struct dcm_charset *cs, enum dcm_set set)
{
    iconv_t cd;

    if (cs->open[set])
        return true;
    cd = iconv_open("UTF-8", dcm_set_iconv[set]);
    if (cd == (iconv_t)-1)
        return false;
    cs->iconv[set] = cd;
    cs->open[set] = true;
    return true;
}

/* n bytes in the set's iconv encoding, whole characters of it as far as they are valid. */
static void dcm_charset_iconv(struct dcm_charset *cs, enum dcm_set set, char *p, size_t n,
                              struct strbuf *out)
{
    char piece[256];

    if (!dcm_charset_open(cs, set)) {
        dcm_charset_bad(out);
        return;
    }
    (void)iconv(cs->iconv[set], NULL, NULL, NULL, NULL);
    while (n > 0) {
        char *to = piece;
        size_t room = sizeof(piece);
        size_t r = iconv(cs->iconv[set], &p, &n, &to, &room);

        strbuf_add(out, piece, (size_t)(to - piece));
        if (r == (size_t)-1 && errno != E2BIG) {
            dcm_charset_bad(out);
            p++;
            n--;
        }
    }
}

/* One character of a set with two bytes each, as EUC; U+FFFD when the bytes cannot be one. */
static size_t dcm_charset_pair(struct dcm_charset *cs, enum dcm_set set, const uint8_t *p, size_t n,
                               struct strbuf *out)
{
    char euc[3] = {(char)0x8f, 0, 0};
    bool three = set == DCM_SET_JISX0212;

    if (n < 2 || ((p[0] ^ p[1]) & 0x80) || (p[1] & 0x7f) < 0x21 || (p[1] & 0x7f) == 0x7f) {
        dcm_charset_bad(out);
        return 1;
    }
    euc[1] = (char)(p[0] | 0x80);
    euc[2] = (char)(p[1] | 0x80);
    dcm_charset_iconv(cs, set, three ? euc : euc + 1, three ? 3 : 2, out);
    return 2;
}

static void dcm_charset_katakana(uint8_t c, struct strbuf *out)
{
    unsigned u = 0xff61u + (c - 0xa1u);

    if (c < 0xa1 || c > 0xdf) {
        dcm_charset_bad(out);
        return;
    }
    strbuf_addc(out, (char)0xef);
    strbuf_addc(out, (char)(0x80 | (u >> 6 & 63)));
    strbuf_addc(out, (char)(0x80 | (u & 63)));
}

/* ---- Code extensions -------------------------------------------------------------------- */

struct dcm_charset_state {
    struct dcm_charset *cs;
    const char *delimiters;
    enum dcm_set g0, g1;
};

static void dcm_charset_reset(struct dcm_charset_state *s)
{
    s->g0 = s->cs->g0;
    s->g1 = s->cs->g1;
}

/* An escape sequence at p (after the ESC): its length; 0 when it is none. */
static size_t dcm_charset_escape(struct dcm_charset_state *s, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < DCM_SET_ROWS; i++) {
        const struct dcm_set_row *r = &dcm_set_rows[i];
        size_t len = strlen(r->escape);

        if (len > n || memcmp(p, r->escape, len) != 0)
            continue;
        if (r->right)
            s->g1 = r->set;
        else
            s->g0 = r->set;
        return len;
    }
    return 0;
}

static size_t dcm_charset_left(struct dcm_charset_state *s, const uint8_t *p, size_t n,
                               struct strbuf *out)
{
    bool pairs = s->g0 == DCM_SET_JISX0208 || s->g0 == DCM_SET_JISX0212;

    if (*p == 0x1b) {
        size_t len = dcm_charset_escape(s, p + 1, n - 1);

        if (!len)
            dcm_charset_bad(out);
        return 1 + len;
    }
    if (pairs && *p > 0x20 && *p < 0x7f)
        return dcm_charset_pair(s->cs, s->g0, p, n, out);
    if ((*p && strchr(s->delimiters, *p)) || (*p >= '\t' && *p <= '\r')) {
        strbuf_addc(out, (char)*p);
        dcm_charset_reset(s);
    } else if (s->g0 == DCM_SET_ROMAJI && *p == '\\') {
        strbuf_adds(out, "\xc2\xa5"); /* yen */
    } else if (s->g0 == DCM_SET_ROMAJI && *p == '~') {
        strbuf_adds(out, "\xe2\x80\xbe"); /* overline */
    } else {
        strbuf_addc(out, (char)*p);
    }
    return 1;
}

static size_t dcm_charset_right(struct dcm_charset_state *s, const uint8_t *p, size_t n,
                                struct strbuf *out)
{
    char one = (char)*p;

    if (s->g1 == DCM_SET_KSX1001 || s->g1 == DCM_SET_GB2312)
        return dcm_charset_pair(s->cs, s->g1, p, n, out);
    if (s->g1 == DCM_SET_KATAKANA)
        dcm_charset_katakana(*p, out);
    else if (s->g1 >= DCM_SET_LATIN1)
        dcm_charset_iconv(s->cs, s->g1, &one, 1, out);
    else
        strbuf_addc(out, one); /* no set was announced: perhaps it is UTF-8 */
    return 1;
}

void dcm_charset_convert(struct dcm_charset *cs, const char *vr, const char *p, size_t n,
                         struct strbuf *out)
{
    const uint8_t *u = (const uint8_t *)p;
    struct dcm_charset_state s = {.cs = cs};

    if (cs->whole) {
        char *copy = mem_memdup(p, n);

        dcm_charset_iconv(cs, cs->whole, copy, n, out);
        mem_free(copy);
        return;
    }
    s.delimiters = dcm_vr_kind(vr) == DCM_VR_TEXT ? "" : strcmp(vr, "PN") == 0 ? "\\^=" : "\\";
    dcm_charset_reset(&s);
    for (size_t i = 0; i < n;)
        i += u[i] < 0x80 ? dcm_charset_left(&s, u + i, n - i, out)
                         : dcm_charset_right(&s, u + i, n - i, out);
}

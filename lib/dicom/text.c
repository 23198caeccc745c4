/* A value's bytes as the text of an attribute (struct object_attr): numbers in decimal, strings
 * without their padding and in valid UTF-8. */
#include "lib/dicom/impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/codec.h"

#define DCM_VR2(a, b) ((unsigned)(a) << 8 | (unsigned)(b))

enum dcm_vr_kind dcm_vr_kind(const char *vr)
{
    switch (DCM_VR2((unsigned char)vr[0], (unsigned char)vr[1])) {
    case DCM_VR2('A', 'T'):
    case DCM_VR2('F', 'D'):
    case DCM_VR2('F', 'L'):
    case DCM_VR2('S', 'L'):
    case DCM_VR2('S', 'S'):
    case DCM_VR2('S', 'V'):
    case DCM_VR2('U', 'L'):
    case DCM_VR2('U', 'S'):
    case DCM_VR2('U', 'V'):
        return DCM_VR_NUMBER;
    case DCM_VR2('A', 'E'):
    case DCM_VR2('A', 'S'):
    case DCM_VR2('C', 'S'):
    case DCM_VR2('D', 'A'):
    case DCM_VR2('D', 'S'):
    case DCM_VR2('D', 'T'):
    case DCM_VR2('I', 'S'):
    case DCM_VR2('T', 'M'):
    case DCM_VR2('U', 'I'):
        return DCM_VR_STRINGS;
    case DCM_VR2('L', 'O'):
    case DCM_VR2('P', 'N'):
    case DCM_VR2('S', 'H'):
    case DCM_VR2('U', 'C'):
        return DCM_VR_LOCAL;
    case DCM_VR2('L', 'T'):
    case DCM_VR2('S', 'T'):
    case DCM_VR2('U', 'R'):
    case DCM_VR2('U', 'T'):
        return DCM_VR_TEXT;
    case DCM_VR2('S', 'Q'):
        return DCM_VR_SEQUENCE;
    default:
        return DCM_VR_BINARY;
    }
}

/* ---- Numbers ---------------------------------------------------------------------------- */

/* The shortest decimal that reads back as the same double, also for FL: readers of JSON compare
 * doubles. NaN and the infinities have no JSON
 * number; their names go out as strings (json.c). The process keeps the C locale. */
static void dcm_text_float(double v, struct strbuf *out)
{
    char text[40];

    if (v == 0) {
        strbuf_adds(out, signbit(v) ? "-0" : "0");
        return;
    }
    if (isnan(v)) {
        strbuf_adds(out, "NaN");
        return;
    }
    if (isinf(v)) {
        strbuf_adds(out, v < 0 ? "-inf" : "inf");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    strbuf_adds(out, text);
}

static void dcm_text_number(const char *vr, const uint8_t *p, struct strbuf *out)
{
    switch (DCM_VR2((unsigned char)vr[0], (unsigned char)vr[1])) {
    case DCM_VR2('A', 'T'):
        strbuf_addf(out, "%04X%04X", codec_get_le16(p), codec_get_le16(p + 2));
        break;
    case DCM_VR2('F', 'D'): {
        uint64_t bits = codec_get_le64(p);
        double v;

        memcpy(&v, &bits, sizeof(v));
        dcm_text_float(v, out);
        break;
    }
    case DCM_VR2('F', 'L'): {
        uint32_t bits = codec_get_le32(p);
        float v;

        memcpy(&v, &bits, sizeof(v));
        dcm_text_float((double)v, out);
        break;
    }
    case DCM_VR2('S', 'L'):
        strbuf_addf(out, "%d", (int)(int32_t)codec_get_le32(p));
        break;
    case DCM_VR2('S', 'S'):
        strbuf_addf(out, "%d", (int)(int16_t)codec_get_le16(p));
        break;
    case DCM_VR2('S', 'V'):
        strbuf_addf(out, "%lld", (long long)codec_get_le64(p));
        break;
    case DCM_VR2('U', 'L'):
        strbuf_addf(out, "%u", codec_get_le32(p));
        break;
    case DCM_VR2('U', 'S'):
        strbuf_addf(out, "%u", codec_get_le16(p));
        break;
    default:
        strbuf_addf(out, "%llu", (unsigned long long)codec_get_le64(p));
        break;
    }
}

static size_t dcm_text_width(const char *vr)
{
    if (vr[1] == 'S')
        return 2;
    return vr[1] == 'D' || vr[1] == 'V' ? 8 : 4;
}

void dcm_text_numbers(const char *vr, const uint8_t *p, size_t n, struct strbuf *out)
{
    size_t width = dcm_text_width(vr);

    for (size_t i = 0; i + width <= n; i += width) {
        if (i)
            strbuf_addc(out, '\\');
        dcm_text_number(vr, p + i, out);
    }
}

/* ---- Strings ---------------------------------------------------------------------------- */

size_t dcm_text_utf8(const uint8_t *p, size_t n)
{
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;

    if (len == 0 || p[0] > 0xf4 || len > n)
        return 0;
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

void dcm_text_clean(const char *p, size_t n, struct strbuf *out)
{
    const uint8_t *u = (const uint8_t *)p;

    for (size_t i = 0; i < n;) {
        size_t len = dcm_text_utf8(u + i, n - i);

        if (len && u[i])
            strbuf_add(out, u + i, len);
        else
            strbuf_adds(out, "\xef\xbf\xbd");
        i += len ? len : 1;
    }
}

void dcm_text_strings(const char *vr, const char *p, size_t n, struct strbuf *out)
{
    enum dcm_vr_kind kind = dcm_vr_kind(vr);
    bool several = kind != DCM_VR_TEXT;

    strbuf_room(out, 0);
    if (n == 0)
        return;
    for (size_t at = 0;; at++) {
        const char *end = several ? memchr(p + at, '\\', n - at) : NULL;
        size_t stop = end ? (size_t)(end - p) : n, last = stop;

        while (last > at && (p[last - 1] == ' ' || p[last - 1] == 0))
            last--;
        while (several && at < last && p[at] == ' ')
            at++;
        dcm_text_clean(p + at, last - at, out);
        if (!end)
            break;
        strbuf_addc(out, '\\');
        at = stop;
    }
}

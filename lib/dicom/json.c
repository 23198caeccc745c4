/* DICOM JSON (PS3.18 annex F) from the text of attributes.
 *
 * Numbers stay the digits that were sent where JSON's grammar allows ("1.50" stays so), lose a plus
 * sign and leading zeroes where it does not, and become strings where they are no numbers or would
 * not survive a reader with 64-bit integers and doubles: section F.2.3 allows a string for DS, IS,
 * SV and UV. FL and FD know NaN and the infinities, JSON does not: strings as well.
 */
#include "lib/dicom/dcm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/dicom/impl.h"

void dcm_json_string(const char *s, size_t n, struct strbuf *out)
{
    const uint8_t *u = (const uint8_t *)s;
    size_t done = 0, len;

    strbuf_addc(out, '"');
    for (size_t i = 0; i < n; i += len ? len : 1) {
        len = dcm_text_utf8(u + i, n - i);
        if (len && u[i] >= 0x20 && u[i] != '"' && u[i] != '\\' && u[i] != 0x7f)
            continue;
        strbuf_add(out, s + done, i - done);
        done = i + 1;
        if (!len)
            strbuf_adds(out, "\xef\xbf\xbd");
        else if (u[i] == '"' || u[i] == '\\')
            strbuf_addf(out, "\\%c", s[i]);
        else
            strbuf_addf(out, "\\u%04x", u[i]);
    }
    strbuf_add(out, s + done, n - done);
    strbuf_addc(out, '"');
}

void dcm_json_base64(const uint8_t *p, size_t n, struct strbuf *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < n; i += 3) {
        size_t have = n - i < 3 ? n - i : 3;
        uint32_t v = (uint32_t)p[i] << 16 | (have > 1 ? (uint32_t)p[i + 1] << 8 : 0) |
                     (have > 2 ? p[i + 2] : 0);
        char *q = strbuf_room(out, 4);

        if (!q)
            return;
        q[0] = digits[v >> 18];
        q[1] = digits[v >> 12 & 63];
        q[2] = have > 1 ? digits[v >> 6 & 63] : '=';
        q[3] = have > 2 ? digits[v & 63] : '=';
    }
}

void dcm_json_name(uint32_t tag, const char *vr, struct strbuf *out)
{
    strbuf_addf(out, "\"%08X\":{\"vr\":\"%s\"", tag, vr);
}

/* ---- Numbers ---------------------------------------------------------------------------- */

static size_t dcm_json_digits(const char *s, size_t n, size_t at)
{
    size_t start = at;

    while (at < n && s[at] >= '0' && s[at] <= '9')
        at++;
    return at - start;
}

/* A number's text in JSON's grammar (RFC 8259 section 6) in out[size]; false when it is none. */
static bool dcm_json_grammar(const char *s, size_t n, char *out, size_t size, bool *ret_whole)
{
    size_t at = 0, k = 0, len;

    if (n + 4 > size)
        return false;
    if (at < n && (s[at] == '+' || s[at] == '-')) {
        if (s[at++] == '-')
            out[k++] = '-';
    }
    len = dcm_json_digits(s, n, at);
    if (len == 0 && !(at + 1 < n && s[at] == '.' && dcm_json_digits(s, n, at + 1)))
        return false;
    for (; len > 1 && s[at] == '0'; len--)
        at++;
    if (len == 0)
        out[k++] = '0';
    memcpy(out + k, s + at, len);
    k += len;
    at += len;
    *ret_whole = at == n;
    if (at < n && s[at] == '.') {
        len = dcm_json_digits(s, n, at + 1);
        if (len) {
            memcpy(out + k, s + at, len + 1);
            k += len + 1;
        }
        at += len + 1;
    }
    if (at < n && (s[at] == 'e' || s[at] == 'E')) {
        out[k++] = s[at++];
        if (at < n && (s[at] == '+' || s[at] == '-'))
            out[k++] = s[at++];
        len = dcm_json_digits(s, n, at);
        if (len == 0)
            return false;
        memcpy(out + k, s + at, len);
        k += len;
        at += len;
    }
    out[k] = 0;
    return at == n;
}

static void dcm_json_number(const char *s, size_t n, struct strbuf *out)
{
    char text[64];
    bool whole;

    if (dcm_json_grammar(s, n, text, sizeof(text), &whole)) {
        double v = strtod(text, NULL);

        if (isfinite(v) && (!whole || fabs(v) <= 9007199254740992.0)) {
            strbuf_adds(out, text);
            return;
        }
    }
    dcm_json_string(s, n, out);
}

/* ---- Values ----------------------------------------------------------------------------- */

/* A person name: its component groups (PS3.18 section F.2.2), those that are not empty. */
static void dcm_json_name_groups(const char *s, size_t n, struct strbuf *out)
{
    static const char *const groups[] = {"Alphabetic", "Ideographic", "Phonetic"};
    size_t at = 0;
    char sep = '{';

    for (size_t g = 0; g < 3 && at <= n; g++) {
        const char *eq = g < 2 ? memchr(s + at, '=', n - at) : NULL;
        size_t end = eq ? (size_t)(eq - s) : n;

        if (end > at) {
            strbuf_addc(out, sep);
            strbuf_addf(out, "\"%s\":", groups[g]);
            dcm_json_string(s + at, end - at, out);
            sep = ',';
        }
        at = end + 1;
    }
    if (sep == '{')
        strbuf_adds(out, "null");
    else
        strbuf_addc(out, '}');
}

static bool dcm_json_is_number(const char *vr)
{
    return (dcm_vr_kind(vr) == DCM_VR_NUMBER && strcmp(vr, "AT") != 0) || strcmp(vr, "DS") == 0 ||
           strcmp(vr, "IS") == 0;
}

static void dcm_json_value(const char *vr, const char *s, size_t n, struct strbuf *out)
{
    if (n == 0)
        strbuf_adds(out, "null");
    else if (strcmp(vr, "PN") == 0)
        dcm_json_name_groups(s, n, out);
    else if (dcm_json_is_number(vr))
        dcm_json_number(s, n, out);
    else
        dcm_json_string(s, n, out);
}

static void dcm_json_values(const struct object_attr *a, struct strbuf *out)
{
    bool several = dcm_vr_kind(a->vr) != DCM_VR_TEXT;
    size_t at = 0;

    for (;;) {
        const char *sep = several ? memchr(a->value + at, '\\', a->len - at) : NULL;
        size_t end = sep ? (size_t)(sep - a->value) : a->len;

        dcm_json_value(a->vr, a->value + at, end - at, out);
        if (!sep)
            return;
        strbuf_addc(out, ',');
        at = end + 1;
    }
}

void dcm_attr_json(const struct object_attr *a, struct strbuf *out)
{
    enum dcm_vr_kind kind = dcm_vr_kind(a->vr);

    dcm_json_name(a->tag, a->vr, out);
    if (a->len > 0 && kind == DCM_VR_SEQUENCE) {
        strbuf_adds(out, ",\"Value\":");
        strbuf_add(out, a->value, a->len);
    } else if (a->len > 0 && kind != DCM_VR_BINARY) {
        strbuf_adds(out, ",\"Value\":[");
        dcm_json_values(a, out);
        strbuf_addc(out, ']');
    }
    strbuf_addc(out, '}');
}

/* Finds the top-level Pixel Data of a data set as its bytes go by.
 *
 * The machine knows three things to do with the next byte: gather an element head (8 or 12 bytes),
 * gather a small value it was asked for (Rows and the like), or skip. Elements and sequences of
 * defined length are skipped whole, so only those of undefined length are entered. Entering needs
 * no stack: sequences hold items only and items hold elements only, so the two alternate and the
 * parity of `depth` says which one we are in (odd: in a sequence, even: in an item or at the top).
 * One thing more is remembered: a sequence hidden in an UN of undefined length is in implicit VR
 * little endian down to its end, whatever the data set's syntax (PS3.5 section 6.2.2, note 4);
 * `un_depth` is where that began.
 *
 * Senders err. An encoding that is not what the transfer syntax says is noticed at the first
 * element (letters of a known VR where a length would be absurd, or the other way round); private
 * transfer syntaxes profit as well. Stray delimiters are skipped, a missing one is implied. What
 * makes no sense at all ends the scan: the stream is then cut without knowledge, its bytes are kept
 * anyway.
 */
#include "lib/dicom/dcm.h"

#include <string.h>

#include "lib/base/codec.h"
#include "lib/dicom/impl.h"

#define DCM_SCAN_DEPTH_MAX 4096u

#define DCM_TAG_SAMPLES        0x00280002u
#define DCM_TAG_FRAMES         0x00280008u
#define DCM_TAG_ROWS           0x00280010u
#define DCM_TAG_COLUMNS        0x00280011u
#define DCM_TAG_BITS_ALLOCATED 0x00280100u
#define DCM_TAG_FLOAT_PIXELS   0x7fe00008u
#define DCM_TAG_DOUBLE_PIXELS  0x7fe00009u

enum { DCM_SCAN_FIRST, DCM_SCAN_HEAD, DCM_SCAN_VALUE };

static const char dcm_scan_short_vrs[] =
    "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US ";
static const char dcm_scan_long_vrs[] = "OB OD OF OL OV OW SQ SV UC UN UR UT UV ";

static bool dcm_scan_vr_in(const char *list, const uint8_t vr[2])
{
    for (; *list; list += 3) {
        if (memcmp(list, vr, 2) == 0)
            return true;
    }
    return false;
}

void dcm_scan_init(struct dcm_scan *s, const char *transfer_syntax)
{
    memset(s, 0, sizeof(*s));
    s->implicit_vr = strcmp(transfer_syntax, "1.2.840.10008.1.2") == 0;
    s->big_endian = strcmp(transfer_syntax, "1.2.840.10008.1.2.2") == 0;
    s->deflated =
        strcmp(transfer_syntax, "1.2.840.10008.1.2.1.99") == 0 ||
        strcmp(transfer_syntax, "1.2.840.10008.1.2.4.95") == 0 || /* JPIP Referenced Deflate */
        strcmp(transfer_syntax, "1.2.840.10008.1.2.4.205") == 0;  /* JPIP HTJ2K Ref. Deflate */
    s->end_of_use = s->deflated;
}

static bool dcm_scan_is_big(const struct dcm_scan *s)
{
    return s->big_endian && !s->un_depth;
}

static uint32_t dcm_scan_u16(const struct dcm_scan *s, const uint8_t *p)
{
    return dcm_scan_is_big(s) ? codec_get_be16(p) : codec_get_le16(p);
}

struct dcm_element dcm_element_read(const uint8_t *c, size_t have, bool implicit_vr,
                                    bool big_endian)
{
    uint32_t group = big_endian ? codec_get_be16(c) : codec_get_le16(c);
    uint32_t element = big_endian ? codec_get_be16(c + 2) : codec_get_le16(c + 2);
    struct dcm_element e = {.tag = group << 16 | element, .head_len = 8};

    if (implicit_vr || group == 0xfffe) {
        e.len = big_endian ? codec_get_be32(c + 4) : codec_get_le32(c + 4);
        return e;
    }
    memcpy(e.vr, c + 4, 2);
    /* As DCMTK does: letters that are no known VR are a future one, which has a long length; other
     * bytes are a broken short form. */
    if (!dcm_scan_vr_in(dcm_scan_short_vrs, c + 4) && c[4] >= 'A' && c[4] <= 'Z' && c[5] >= 'A' &&
        c[5] <= 'Z') {
        e.head_len = 12;
        if (have >= 12)
            e.len = big_endian ? codec_get_be32(c + 8) : codec_get_le32(c + 8);
    } else {
        e.len = big_endian ? codec_get_be16(c + 6) : codec_get_le16(c + 6);
    }
    return e;
}

bool dcm_element_implicit(const uint8_t *first, bool implicit_vr, bool big_endian)
{
    bool known = dcm_scan_vr_in(dcm_scan_short_vrs, first + 4) ||
                 dcm_scan_vr_in(dcm_scan_long_vrs, first + 4);

    if (big_endian)
        return implicit_vr;
    if (known)
        return false;
    return implicit_vr || codec_get_le32(first + 4) < (1u << 16);
}

bool dcm_tag_is_pixels(uint32_t tag)
{
    return tag == DCM_TAG_PIXELS || tag == DCM_TAG_FLOAT_PIXELS || tag == DCM_TAG_DOUBLE_PIXELS;
}

static void dcm_scan_leave(struct dcm_scan *s, uint32_t levels)
{
    s->depth -= levels < s->depth ? levels : s->depth;
    if (s->depth < s->un_depth)
        s->un_depth = 0;
}

static void dcm_scan_enter(struct dcm_scan *s, bool un)
{
    s->depth++;
    if (un && !s->un_depth)
        s->un_depth = s->depth;
    if (s->depth > DCM_SCAN_DEPTH_MAX)
        s->end_of_use = true;
}

static void dcm_scan_delimiter(struct dcm_scan *s, const struct dcm_element *e)
{
    bool in_sequence = s->depth & 1;

    if (e->tag == DCM_TAG_ITEM_END) {
        if (!in_sequence && s->depth)
            dcm_scan_leave(s, 1);
    } else if (e->tag == DCM_TAG_SEQUENCE_END) {
        dcm_scan_leave(s, in_sequence ? 1 : 2);
    } else if (e->tag == DCM_TAG_ITEM && s->depth) {
        if (!in_sequence) /* the item before lacks its delimiter */
            dcm_scan_leave(s, 1);
        if (e->len == DCM_UNDEFINED)
            dcm_scan_enter(s, false);
        else
            s->skip = e->len;
        return;
    } else {
        s->end_of_use = true;
    }
    if (e->len)
        s->end_of_use = true;
}

static bool dcm_scan_wanted(const struct dcm_scan *s, const struct dcm_element *e)
{
    if (s->depth || e->len == 0 || e->len > sizeof(s->carry))
        return false;
    return e->tag == DCM_TAG_SAMPLES || e->tag == DCM_TAG_FRAMES || e->tag == DCM_TAG_ROWS ||
           e->tag == DCM_TAG_COLUMNS || e->tag == DCM_TAG_BITS_ALLOCATED;
}

/* A whole head was gathered: decides what comes next. */
static void dcm_scan_act(struct dcm_scan *s, const struct dcm_element *e)
{
    s->carry_len = 0;
    if (e->tag >> 16 == 0xfffe) {
        dcm_scan_delimiter(s, e);
    } else if (s->depth & 1) {
        s->end_of_use = true; /* an element between items */
    } else if (s->depth == 0 && dcm_tag_is_pixels(e->tag)) {
        s->found = true;
        s->encapsulated = e->len == DCM_UNDEFINED;
        s->pixel_off = s->pos;
        s->pixel_len = s->encapsulated ? UINT64_MAX : e->len;
    } else if (s->depth == 0 && e->tag > DCM_TAG_PIXELS) {
        s->end_of_use = true; /* elements come in tag order */
    } else if (e->len == DCM_UNDEFINED) {
        dcm_scan_enter(s, strcmp(e->vr, "UN") == 0);
    } else if (dcm_scan_wanted(s, e)) {
        s->state = DCM_SCAN_VALUE;
        s->tag = e->tag;
        s->skip = e->len;
    } else {
        s->skip = e->len;
    }
}

static uint32_t dcm_scan_decimal(const uint8_t *p, size_t n)
{
    uint32_t v = 0;

    for (size_t i = 0; i < n && v < 100000000; i++) {
        if (p[i] >= '0' && p[i] <= '9')
            v = v * 10 + (uint32_t)(p[i] - '0');
        else if (p[i] != ' ' || v)
            break;
    }
    return v;
}

static void dcm_scan_value(struct dcm_scan *s)
{
    uint32_t v = s->carry_len >= 2 ? dcm_scan_u16(s, s->carry) : 0;

    if (s->tag == DCM_TAG_FRAMES)
        s->frames = dcm_scan_decimal(s->carry, s->carry_len);
    else if (s->tag == DCM_TAG_ROWS)
        s->rows = v;
    else if (s->tag == DCM_TAG_COLUMNS)
        s->columns = v;
    else if (s->tag == DCM_TAG_SAMPLES)
        s->samples = v;
    else
        s->bits_allocated = v;
    s->carry_len = 0;
    s->state = DCM_SCAN_HEAD;
}

/* Moves bytes to carry until `want` are there; true when they are. */
static bool dcm_scan_gather(struct dcm_scan *s, const uint8_t **p, size_t *left, uint32_t want)
{
    size_t n = want - s->carry_len;

    if (n > *left)
        n = *left;
    memcpy(s->carry + s->carry_len, *p, n);
    s->carry_len += (uint32_t)n;
    s->pos += n;
    *p += n;
    *left -= n;
    return s->carry_len == want;
}

static struct dcm_element dcm_scan_element(const struct dcm_scan *s)
{
    return dcm_element_read(s->carry, s->carry_len, s->implicit_vr || s->un_depth,
                            dcm_scan_is_big(s));
}

static void dcm_scan_head(struct dcm_scan *s, const uint8_t **p, size_t *left)
{
    struct dcm_element e;

    if (s->carry_len < 8 && !dcm_scan_gather(s, p, left, 8))
        return;
    if (s->state == DCM_SCAN_FIRST)
        s->implicit_vr = dcm_element_implicit(s->carry, s->implicit_vr, s->big_endian);
    s->state = DCM_SCAN_HEAD;
    e = dcm_scan_element(s);
    if (s->carry_len < e.head_len && !dcm_scan_gather(s, p, left, e.head_len))
        return;
    e = dcm_scan_element(s);
    dcm_scan_act(s, &e);
}

size_t dcm_scan_push(struct dcm_scan *s, const void *p, size_t n)
{
    const uint8_t *at = p;
    size_t left = n;

    while (left > 0 && !s->found && !s->end_of_use) {
        if (s->state == DCM_SCAN_VALUE) {
            if (dcm_scan_gather(s, &at, &left, (uint32_t)s->skip)) {
                s->skip = 0;
                dcm_scan_value(s);
            }
        } else if (s->skip > 0) {
            size_t step = s->skip < left ? (size_t)s->skip : left;

            s->skip -= step;
            s->pos += step;
            at += step;
            left -= step;
        } else {
            dcm_scan_head(s, &at, &left);
        }
    }
    return n - left;
}

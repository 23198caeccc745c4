/* The head of a Part 10 stream: read from any sender, written for bare data sets.
 *
 * PS3.10 section 7.1: 128 bytes of preamble, "DICM", then the elements of group 2 in explicit VR
 * little endian whatever the data set's own syntax is. It is read before anything else is known of
 * a stream, so it is plain C over the checked codec and takes no memory.
 *
 * Where the head ends. (0002,0000) says so, but writers get it wrong and some leave it out. It is
 * believed when it ends at a border between two elements (DCMTK believes it too); otherwise the
 * head ends before the first element of another group. The border matters for deflated data sets,
 * whose first bytes may look like anything. A length that ends before the transfer syntax was
 * seen is not believed either: a head without one is of no use.
 */
#include "lib/dicom/dcm.h"

#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/dicom/impl.h"

#define DCM_HEAD_PREAMBLE 128u
#define DCM_HEAD_PREFIX   132u
/* Real heads are under 1 KiB; (0002,0102) Private Information may make them longer. */
#define DCM_HEAD_MAX ((size_t)1 << 20)

bool dcm_uid_valid(const char *uid)
{
    size_t n = 0;
    bool digit = false;

    for (; uid[n]; n++) {
        if (n == DCM_UID_MAX)
            return false;
        if (uid[n] == '.') {
            if (!digit)
                return false;
            digit = false;
        } else if (uid[n] >= '0' && uid[n] <= '9') {
            digit = true;
        } else {
            return false;
        }
    }
    return digit;
}

/* ---- Reading ---------------------------------------------------------------------------- */

/* One element of group 2. ERR_AGAIN: it is not there in full. */
struct dcm_head_element {
    uint16_t group, element;
    const uint8_t *value;
    uint32_t len;
};

static bool dcm_head_long_vr(const uint8_t vr[2])
{
    static const char list[][3] = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ",
                                   "SV", "UC", "UN", "UR", "UT", "UV"};

    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        if (memcmp(list[i], vr, 2) == 0)
            return true;
    }
    return false;
}

static int dcm_head_element_read(struct codec_reader *r, struct dcm_head_element *ret_e)
{
    struct dcm_head_element e = {0};
    const uint8_t *vr;

    e.group = codec_read_le16(r);
    e.element = codec_read_le16(r);
    vr = codec_read_bytes(r, 2);
    if (!codec_reader_ok(r))
        return ERR_AGAIN;
    if (vr[0] < 'A' || vr[0] > 'Z' || vr[1] < 'A' || vr[1] > 'Z')
        return ERR_DICOM;
    if (dcm_head_long_vr(vr)) {
        codec_read_le16(r);
        e.len = codec_read_le32(r);
    } else {
        e.len = codec_read_le16(r);
    }
    if (codec_reader_ok(r) && e.len > DCM_HEAD_MAX)
        return ERR_DICOM;
    e.value = codec_read_bytes(r, e.len);
    if (!codec_reader_ok(r))
        return ERR_AGAIN;
    *ret_e = e;
    return 0;
}

/* A UID without its padding; "" when it is none. */
static void dcm_head_uid(const struct dcm_head_element *e, char out[DCM_UID_MAX + 1])
{
    size_t n = e->len;

    while (n > 0 && (e->value[n - 1] == 0 || e->value[n - 1] == ' '))
        n--;
    out[0] = 0;
    if (n > DCM_UID_MAX)
        return;
    memcpy(out, e->value, n);
    out[n] = 0;
    if (strlen(out) != n || !dcm_uid_valid(out))
        out[0] = 0;
}

static void dcm_head_take(struct dcm_head *h, const struct dcm_head_element *e)
{
    if (e->element == 0x0002)
        dcm_head_uid(e, h->sop_class);
    else if (e->element == 0x0003)
        dcm_head_uid(e, h->sop_instance);
    else if (e->element == 0x0010)
        dcm_head_uid(e, h->transfer_syntax);
}

static int dcm_head_more(size_t off)
{
    return off > DCM_HEAD_MAX ? ERR_DICOM : ERR_AGAIN;
}

int dcm_head_parse(const void *p, size_t n, struct dcm_head *ret_head)
{
    static const uint8_t group2[2] = {0x02, 0x00};
    const uint8_t *bytes = p;
    struct dcm_head h = {.dataset_off = DCM_HEAD_PREFIX};
    struct dcm_head_element e;
    uint64_t end = UINT64_MAX; /* what the group length says */

    if (n > DCM_HEAD_PREAMBLE &&
        memcmp(bytes + DCM_HEAD_PREAMBLE, "DICM", n < DCM_HEAD_PREFIX ? n - DCM_HEAD_PREAMBLE : 4))
        return ERR_DICOM;
    if (n < DCM_HEAD_PREFIX)
        return ERR_AGAIN;
    while (h.dataset_off != end || !h.transfer_syntax[0]) {
        struct codec_reader r = codec_reader_on(bytes + h.dataset_off, n - h.dataset_off);
        int rc;

        if (codec_left(&r) < sizeof(group2))
            return dcm_head_more(h.dataset_off);
        if (memcmp(r.p, group2, sizeof(group2)))
            break;
        rc = dcm_head_element_read(&r, &e);
        if (rc == ERR_AGAIN)
            return dcm_head_more(h.dataset_off);
        if (rc < 0)
            return rc;
        h.dataset_off = (size_t)(r.p - bytes);
        if (h.dataset_off > DCM_HEAD_MAX)
            return ERR_DICOM;
        if (e.element == 0 && e.len == 4 && end == UINT64_MAX)
            end = (uint64_t)h.dataset_off + codec_get_le32(e.value);
        dcm_head_take(&h, &e);
    }
    if (!h.transfer_syntax[0])
        return ERR_DICOM;
    *ret_head = h;
    return 0;
}

/* ---- Writing ---------------------------------------------------------------------------- */

/* A text element: short form, padded to even length. */
static void dcm_head_text(struct codec_writer *w, uint16_t element, const char *vr,
                          const char *text, char pad)
{
    size_t n = strlen(text);

    codec_write_le16(w, 0x0002);
    codec_write_le16(w, element);
    codec_write_bytes(w, vr, 2);
    codec_write_le16(w, (uint16_t)(n + (n & 1)));
    codec_write_bytes(w, text, n);
    if (n & 1)
        codec_write_u8(w, (uint8_t)pad);
}

/* The sender's title: at most 16 characters, without the padding and without control bytes. */
static void dcm_head_title(const char *aet, char out[17])
{
    size_t n = 0;

    while (*aet == ' ')
        aet++;
    for (; *aet && n < 16; aet++) {
        if ((unsigned char)*aet >= 0x20 && (unsigned char)*aet < 0x7f && *aet != '\\')
            out[n++] = *aet;
    }
    while (n > 0 && out[n - 1] == ' ')
        n--;
    out[n] = 0;
}

int dcm_head_make(const char *sop_class, const char *sop_instance, const char *transfer_syntax,
                  const char *sender_aet, struct strbuf *out)
{
    uint8_t meta[512];
    struct codec_writer w = codec_writer_on(meta, sizeof(meta));
    uint8_t *preamble;
    char title[17] = "";

    if (!dcm_uid_valid(sop_class) || !dcm_uid_valid(sop_instance) ||
        !dcm_uid_valid(transfer_syntax))
        return ERR_DICOM_UID;
    if (sender_aet)
        dcm_head_title(sender_aet, title);
    codec_write_bytes(&w, "\x02\x00\x00\x00UL\x04\x00\0\0\0\0", 12);
    codec_write_bytes(&w, "\x02\x00\x01\x00OB\0\0\x02\0\0\0\0\x01", 14);
    dcm_head_text(&w, 0x0002, "UI", sop_class, 0);
    dcm_head_text(&w, 0x0003, "UI", sop_instance, 0);
    dcm_head_text(&w, 0x0010, "UI", transfer_syntax, 0);
    dcm_head_text(&w, 0x0012, "UI", DCM_IMPLEMENTATION_UID, 0);
    dcm_head_text(&w, 0x0013, "SH", DCM_IMPLEMENTATION_VERSION, ' ');
    if (title[0])
        dcm_head_text(&w, 0x0016, "AE", title, ' ');
    if (!codec_writer_ok(&w)) /* cannot be: every text above is bounded */
        return ERR_DICOM;
    codec_put_le32(meta + 8, (uint32_t)codec_written(&w) - 12);
    preamble = strbuf_room(out, DCM_HEAD_PREAMBLE);
    if (preamble)
        memset(preamble, 0, DCM_HEAD_PREAMBLE);
    strbuf_adds(out, "DICM");
    strbuf_add(out, meta, codec_written(&w));
    return out->overflow ? ERR_TOOBIG : 0;
}

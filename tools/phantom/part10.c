/* Writes Part 10 files (PS3.10 section 7) in explicit VR little endian; see phantom.h. The elements
 * are those of the CT and MR Image IODs (PS3.3 annexes A.3 and A.4) that receivers look at. */
#include "tools/phantom/phantom.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"

#define CT_IMAGE_STORAGE   "1.2.840.10008.5.1.4.1.1.2"
#define MR_IMAGE_STORAGE   "1.2.840.10008.5.1.4.1.1.4"
#define EXPLICIT_VR_LITTLE "1.2.840.10008.1.2.1"
#define IMPLEMENTATION_UID "2.25.151364170562180413371265024517046938243"

static bool long_form(const char vr[2])
{
    static const char names[] = "OB OW OF OD OL OV SQ UC UR UT UN SV UV ";

    for (const char *p = names; *p; p += 3) {
        if (memcmp(p, vr, 2) == 0)
            return true;
    }
    return false;
}

void part10_element(struct strbuf *out, uint32_t tag, const char vr[2], const void *value, size_t n)
{
    uint8_t head[12];
    struct codec_writer w = codec_writer_on(head, sizeof(head));
    bool pad = n & 1;

    codec_write_le16(&w, (uint16_t)(tag >> 16));
    codec_write_le16(&w, (uint16_t)tag);
    codec_write_bytes(&w, vr, 2);
    if (long_form(vr)) {
        codec_write_le16(&w, 0);
        codec_write_le32(&w, (uint32_t)(n + pad));
    } else {
        CHECK(n + pad <= UINT16_MAX);
        codec_write_le16(&w, (uint16_t)(n + pad));
    }
    strbuf_add(out, head, codec_written(&w));
    if (n)
        strbuf_add(out, value, n);
    if (pad) /* UIDs and bytes end in a NUL, texts in a space (PS3.5 section 6.2) */
        strbuf_addc(out, vr[0] == 'O' || memcmp(vr, "UI", 2) == 0 ? '\0' : ' ');
}

static void text(struct strbuf *out, uint32_t tag, const char vr[2], const char *value)
{
    part10_element(out, tag, vr, value, strlen(value));
}

static void number(struct strbuf *out, uint32_t tag, uint16_t value)
{
    uint8_t raw[2];

    codec_put_le16(raw, value);
    part10_element(out, tag, "US", raw, sizeof(raw));
}

static void __attribute__((format(printf, 4, 5)))
format(struct strbuf *out, uint32_t tag, const char vr[2], const char *fmt, ...)
{
    char value[128];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(value, sizeof(value), fmt, ap);
    va_end(ap);
    CHECK(n >= 0 && (size_t)n < sizeof(value));
    text(out, tag, vr, value);
}

void part10_head(struct strbuf *out, const char *sop_class, const char *instance_uid)
{
    struct strbuf meta = STRBUF_INIT;
    uint8_t preamble[128] = {0}, length[4];

    part10_element(&meta, 0x00020001, "OB", "\0\1", 2);
    text(&meta, 0x00020002, "UI", sop_class);
    text(&meta, 0x00020003, "UI", instance_uid);
    text(&meta, 0x00020010, "UI", EXPLICIT_VR_LITTLE);
    text(&meta, 0x00020012, "UI", IMPLEMENTATION_UID);
    text(&meta, 0x00020013, "SH", PHANTOM_MAKER);

    strbuf_add(out, preamble, sizeof(preamble));
    strbuf_adds(out, "DICM");
    codec_put_le32(length, (uint32_t)meta.len);
    part10_element(out, 0x00020000, "UL", length, sizeof(length));
    strbuf_add(out, meta.data, meta.len);
    strbuf_free(&meta);
}

static void identity(const struct slice *s, struct strbuf *out)
{
    bool ct = s->image->modality == MODALITY_CT;

    text(out, 0x00080005, "CS", "ISO_IR 100");
    text(out, 0x00080008, "CS", ct ? "ORIGINAL\\PRIMARY\\AXIAL" : "ORIGINAL\\PRIMARY\\M");
    text(out, 0x00080016, "UI", ct ? CT_IMAGE_STORAGE : MR_IMAGE_STORAGE);
    text(out, 0x00080018, "UI", s->instance_uid);
    text(out, 0x00080020, "DA", s->study_date);
    text(out, 0x00080021, "DA", s->study_date);
    text(out, 0x00080022, "DA", s->study_date);
    text(out, 0x00080023, "DA", s->study_date);
    text(out, 0x00080030, "TM", s->study_time);
    text(out, 0x00080031, "TM", s->study_time);
    text(out, 0x00080032, "TM", s->study_time);
    text(out, 0x00080033, "TM", s->study_time);
    text(out, 0x00080050, "SH", s->accession);
    text(out, 0x00080060, "CS", ct ? "CT" : "MR");
    text(out, 0x00080070, "LO", "Filmroom");
    text(out, 0x00080080, "LO", "Phantom Hospital");
    text(out, 0x00080090, "PN", "Referring^Doctor");
    text(out, 0x00081030, "LO", ct ? "CT thorax" : "MR head");
    text(out, 0x0008103e, "LO", ct ? "Thorax 1.0 soft" : "T1 axial");
    text(out, 0x00081090, "LO", "filmroom-phantom");
    text(out, 0x00100010, "PN", s->patient_name);
    text(out, 0x00100020, "LO", s->patient_id);
    text(out, 0x00100030, "DA", "19600101");
    text(out, 0x00100040, "CS", "O");
}

static void acquisition(const struct slice *s, struct strbuf *out)
{
    bool ct = s->image->modality == MODALITY_CT;

    text(out, 0x00180015, "CS", ct ? "CHEST" : "HEAD");
    if (!ct) {
        text(out, 0x00180020, "CS", "GR");
        text(out, 0x00180021, "CS", "SP");
        text(out, 0x00180022, "CS", "");
        text(out, 0x00180023, "CS", "3D");
    }
    text(out, 0x00180050, "DS", "1.0");
    if (ct) {
        text(out, 0x00180060, "DS", "120");
    } else {
        text(out, 0x00180080, "DS", "2300");
        text(out, 0x00180081, "DS", "2.98");
        text(out, 0x00180091, "IS", "1");
    }
    text(out, 0x00181020, "LO", FILMROOM_VERSION);
    if (ct) {
        format(out, 0x00181151, "IS", "%u", 180 + s->index % 40);
        text(out, 0x00181210, "SH", "B30f");
    }
    text(out, 0x00185100, "CS", ct ? "FFS" : "HFS");
    text(out, 0x0020000d, "UI", s->study_uid);
    text(out, 0x0020000e, "UI", s->series_uid);
    text(out, 0x00200010, "SH", "1");
    text(out, 0x00200011, "IS", "2");
    text(out, 0x00200012, "IS", "1");
    format(out, 0x00200013, "IS", "%u", s->index + 1);
    format(out, 0x00200032, "DS", "-180.0\\-180.0\\%.1f", -200.0 + s->index);
    text(out, 0x00200037, "DS", "1\\0\\0\\0\\1\\0");
    text(out, 0x00200052, "UI", s->frame_uid);
    text(out, 0x00201040, "LO", "");
    format(out, 0x00201041, "DS", "%.1f", -200.0 + s->index);
}

static void picture(const struct slice *s, const uint16_t *pixels, struct strbuf *out)
{
    bool ct = s->image->modality == MODALITY_CT;
    size_t count = (size_t)s->image->rows * s->image->columns;

    number(out, 0x00280002, 1);
    text(out, 0x00280004, "CS", "MONOCHROME2");
    number(out, 0x00280010, (uint16_t)s->image->rows);
    number(out, 0x00280011, (uint16_t)s->image->columns);
    text(out, 0x00280030, "DS", "0.703125\\0.703125");
    number(out, 0x00280100, 16);
    number(out, 0x00280101, 12);
    number(out, 0x00280102, 11);
    number(out, 0x00280103, 0);
    text(out, 0x00281050, "DS", ct ? "50" : "300");
    text(out, 0x00281051, "DS", ct ? "350" : "600");
    if (ct) {
        text(out, 0x00281052, "DS", "-1024");
        text(out, 0x00281053, "DS", "1");
        text(out, 0x00281054, "LO", "HU");
    }
    /* The samples are little endian in memory as well: codec.h asserts it. */
    part10_element(out, 0x7fe00010, "OW", pixels, count * sizeof(*pixels));
}

void part10_write(const struct slice *s, const uint16_t *pixels, struct strbuf *out)
{
    bool ct = s->image->modality == MODALITY_CT;

    part10_head(out, ct ? CT_IMAGE_STORAGE : MR_IMAGE_STORAGE, s->instance_uid);
    identity(s, out);
    acquisition(s, out);
    picture(s, pixels, out);
    CHECK(!out->overflow);
}

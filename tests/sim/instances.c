/* Made-up DICOM instances; see instances.h. Elements are explicit VR little endian (PS3.5 section
 * 7.1.2). */
#include "tests/sim/instances.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/hmap.h"
#include "lib/dicom/dcm.h"

#define SYNTAX    "1.2.840.10008.1.2.1"
#define SOP_CLASS "1.2.840.10008.5.1.4.1.1.7.4" /* Multi-frame True Color Secondary Capture */
#define ROOT      "2.25.4242"

void instance_study_uid(unsigned study, char ret_uid[OBJECT_UID_MAX + 1])
{
    (void)snprintf(ret_uid, OBJECT_UID_MAX + 1, ROOT ".%u", study + 1);
}

void instance_series_uid(unsigned study, unsigned series, char ret_uid[OBJECT_UID_MAX + 1])
{
    (void)snprintf(ret_uid, OBJECT_UID_MAX + 1, ROOT ".%u.%u", study + 1, series + 1);
}

void instance_uid(unsigned index, char ret_uid[OBJECT_UID_MAX + 1])
{
    (void)snprintf(ret_uid, OBJECT_UID_MAX + 1, ROOT ".9.%u", index + 1);
}

bool instance_same(int a, int b)
{
    return (a - 1) / INSTANCE_HEADS == (b - 1) / INSTANCE_HEADS;
}

/* ---- Elements ---- */

static void add_short(struct strbuf *out, uint32_t tag, const char *vr, const void *p, size_t n)
{
    uint8_t head[8];

    codec_put_le16(head, (uint16_t)(tag >> 16));
    codec_put_le16(head + 2, (uint16_t)tag);
    memcpy(head + 4, vr, 2);
    codec_put_le16(head + 6, (uint16_t)(n + n % 2));
    strbuf_add(out, head, sizeof(head));
    strbuf_add(out, p, n);
    if (n % 2)
        strbuf_addc(out, strcmp(vr, "UI") == 0 ? 0 : ' ');
}

static void add_text(struct strbuf *out, uint32_t tag, const char *vr, const char *text)
{
    add_short(out, tag, vr, text, strlen(text));
}

static void add_number(struct strbuf *out, uint32_t tag, uint16_t value)
{
    uint8_t bytes[2];

    codec_put_le16(bytes, value);
    add_short(out, tag, "US", bytes, sizeof(bytes));
}

static void add_pixels_head(struct strbuf *out, uint32_t len)
{
    uint8_t head[12] = {0xe0, 0x7f, 0x10, 0x00, 'O', 'W'};

    codec_put_le32(head + 8, len);
    strbuf_add(out, head, sizeof(head));
}

/* ---- Pixels ---- */

struct shape {
    unsigned side, frames;
};

static struct shape shape_of(unsigned index)
{
    static const unsigned sides[] = {32, 64, 64, 128, 96, 64, 400, 0};
    unsigned side = sides[hmap_mix(index + 77) % 8];

    return (struct shape){side, side == 0 ? 0 : side == 400 ? 1 : 1 + index % 5};
}

/* Frame `number` of the pool: even ones smooth, odd ones noise. */
static void add_frame(struct strbuf *out, unsigned side, uint64_t number)
{
    uint64_t x = hmap_mix(number * 1000 + side + 1);

    for (unsigned i = 0; i < side * side; i += 4) {
        uint8_t bytes[8];

        if (number % 2)
            x = x * 6364136223846793005u + 1442695040888963407u;
        else if (i % 64 == 0)
            x += 0x0001000100010001u;
        codec_put_le64(bytes, x);
        strbuf_add(out, bytes, sizeof(bytes));
    }
}

static void add_pixels(struct strbuf *out, unsigned index, int variant)
{
    struct shape s = shape_of(index);

    if (s.frames == 0)
        return;
    add_pixels_head(out, s.side * s.side * 2 * s.frames);
    /* Variant 1 has the pixels of variant 0; neighbours share frames. */
    for (unsigned f = 0; f < s.frames; f++)
        add_frame(out, s.side, (index / 2 + f) % 6 + (variant == 2 ? 100 : 0));
}

/* ---- Streams ---- */

static void add_dataset(struct strbuf *out, unsigned index, int variant, const char *uid)
{
    char text[OBJECT_UID_MAX + 1];
    unsigned study = instance_study_of(index), series = instance_series_of(index);
    struct shape s = shape_of(index);

    add_text(out, 0x00080016, "UI", SOP_CLASS);
    if (uid)
        add_text(out, 0x00080018, "UI", uid);
    add_text(out, 0x00080020, "DA", study ? "20240229" : "20231105");
    add_text(out, 0x00080060, "CS", series ? "MR" : "CT");
    add_text(out, 0x00100010, "PN", study ? "Doe^Jane" : "Roe^Richard");
    /* Whose the second study is depends on which of its instances came first. */
    add_text(out, 0x00100020, "LO", study && variant != 2 ? "P-2" : "P-1");
    instance_study_uid(study, text);
    add_text(out, 0x0020000d, "UI", text);
    instance_series_uid(study, series, text);
    add_text(out, 0x0020000e, "UI", text);
    (void)snprintf(text, sizeof(text), "%u", index + 1);
    add_text(out, 0x00200013, "IS", text);
    (void)snprintf(text, sizeof(text), "variant %d", variant);
    add_text(out, 0x00204000, "LT", text);
    if (s.frames == 0)
        return;
    add_number(out, 0x00280002, 1);
    add_text(out, 0x00280004, "CS", "MONOCHROME2");
    (void)snprintf(text, sizeof(text), "%u", s.frames);
    add_text(out, 0x00280008, "IS", text);
    add_number(out, 0x00280010, (uint16_t)s.side);
    add_number(out, 0x00280011, (uint16_t)s.side);
    add_number(out, 0x00280100, 16);
    add_number(out, 0x00280101, 16);
    add_number(out, 0x00280102, 15);
    add_number(out, 0x00280103, 0);
    add_pixels(out, index, variant);
}

void instance_make(unsigned index, int content, struct strbuf *out)
{
    char uid[OBJECT_UID_MAX + 1];
    int variant = (content - 1) / INSTANCE_HEADS, head = (content - 1) % INSTANCE_HEADS;

    instance_uid(index, uid);
    CHECK(dcm_head_make(SOP_CLASS, uid, SYNTAX, head ? "OTHER" : "SIM", out) == 0);
    add_dataset(out, index, variant, uid);
}

void instance_make_bad(unsigned index, unsigned kind, struct strbuf *out)
{
    char uid[OBJECT_UID_MAX + 1];
    size_t head;

    instance_uid(index, uid);
    CHECK(dcm_head_make(SOP_CLASS, uid, SYNTAX, "SIM", out) == 0);
    head = out->len;
    switch (kind) {
    case 0: /* not Part 10 at all */
        out->data[129] = 'X';
        break;
    case 1: /* ends within the head */
        out->len = head / 2 + 40;
        return;
    case 2: /* no SOP Instance UID */
        add_dataset(out, index, 0, NULL);
        return;
    case 3: /* a UID that is none */
        add_dataset(out, index, 0, "1.2.three");
        return;
    default: /* nothing behind the head */
        return;
    }
    add_dataset(out, index, 0, uid);
}

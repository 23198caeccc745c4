/* The same pixels under other names; see phantom.h.
 *
 * A second storing of one study with other headers is what every hospital has: studies come back
 * from other archives, are anonymised for research, get their identifiers corrected. Only top-level
 * elements are rewritten; sequences are copied whole, so the walk must know where they end, defined
 * length or not (PS3.5 section 7.5).
 */
#include "tools/phantom/phantom.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/codec.h"

#define TAG_ITEM     0xfffee000u
#define TAG_ITEM_END 0xfffee00du
#define TAG_SEQ_END  0xfffee0ddu
#define UNDEFINED    0xffffffffu
#define NESTING_MAX  16

struct element {
    uint32_t tag, length;
    char vr[2];
    const uint8_t *start, *value;
};

static uint32_t read_tag(struct codec_reader *r)
{
    uint32_t group = codec_read_le16(r);

    return group << 16 | codec_read_le16(r);
}

/* Reads an element's head, of explicit VR; item tags have no VR. */
static bool read_head(struct codec_reader *r, struct element *e)
{
    const uint8_t *vr;

    e->start = r->p;
    e->tag = read_tag(r);
    memset(e->vr, 0, sizeof(e->vr));
    if (e->tag == TAG_ITEM || e->tag == TAG_ITEM_END || e->tag == TAG_SEQ_END) {
        e->length = codec_read_le32(r);
    } else {
        vr = codec_read_bytes(r, 2);
        if (!vr || vr[0] < 'A' || vr[0] > 'Z' || vr[1] < 'A' || vr[1] > 'Z')
            return false;
        memcpy(e->vr, vr, 2);
        e->length = codec_read_le16(r);
        /* The forms with 32-bit lengths have 16 reserved zero bits where the others have theirs. */
        if (strstr("OB OW OF OD OL OV SQ UC UR UT UN SV UV", (char[]){e->vr[0], e->vr[1], 0}))
            e->length = codec_read_le32(r);
    }
    e->value = r->p;
    return codec_reader_ok(r);
}

/* Steps over a value, through nested items where the length is undefined. */
static bool skip_value(struct codec_reader *r, const struct element *e, unsigned depth)
{
    struct element inner;

    if (e->length != UNDEFINED)
        return codec_read_bytes(r, e->length) != NULL;
    if (depth == NESTING_MAX)
        return false;
    while (read_head(r, &inner)) {
        if (inner.tag == TAG_SEQ_END || inner.tag == TAG_ITEM_END)
            return true;
        if (!skip_value(r, &inner, depth + 1))
            return false;
    }
    return false;
}

/* A new UID for an old one. */
static void map_uid(const struct element *e, uint64_t salt, char ret_uid[PHANTOM_UID_MAX + 1])
{
    size_t n = e->length;
    struct rng r;

    while (n && (e->value[n - 1] == 0 || e->value[n - 1] == ' '))
        n--;
    r = rng_for(hash_bytes(HASH_START, e->value, n), "reheader", salt);
    rng_uid(&r, ret_uid);
}

static void rewrite(const struct element *e, const uint8_t *end, const char *patient_id,
                    uint64_t salt, struct strbuf *out)
{
    char text[PHANTOM_UID_MAX + 1];

    switch (e->tag) {
    case 0x00100010: /* Patient's Name */
    case 0x00100020: /* Patient ID */
        part10_element(out, e->tag, e->vr, patient_id, strlen(patient_id));
        return;
    case 0x00080050: /* Accession Number: short string, 16 characters */
        snprintf(text, sizeof(text), "R%llu", (unsigned long long)(salt % 1000000000));
        part10_element(out, e->tag, e->vr, text, strlen(text));
        return;
    case 0x00080018: /* SOP Instance UID */
    case 0x0020000d: /* Study Instance UID */
    case 0x0020000e: /* Series Instance UID */
    case 0x00200052: /* Frame of Reference UID */
        map_uid(e, salt, text);
        part10_element(out, e->tag, e->vr, text, strlen(text));
        return;
    default:
        if ((e->tag & 0xffff) != 0) /* group lengths would be wrong now; they are retired */
            strbuf_add(out, e->start, (size_t)(end - e->start));
    }
}

/* Reads group 2: leaves r at the data set. False when it is not explicit VR little endian. */
static bool read_meta(struct codec_reader *r, char sop_class[PHANTOM_UID_MAX + 1])
{
    static const char wanted[] = "1.2.840.10008.1.2.1"; /* ends in a NUL, padding included */
    const uint8_t *prefix;
    struct element e;
    bool fits = false;

    codec_read_bytes(r, 128);
    prefix = codec_read_bytes(r, 4);
    if (!prefix || memcmp(prefix, "DICM", 4) != 0)
        return false;
    while (codec_left(r) >= 2 && codec_get_le16(r->p) == 2) {
        if (!read_head(r, &e) || !skip_value(r, &e, 0))
            return false;
        if (e.tag == 0x00020010)
            fits = e.length == sizeof(wanted) && memcmp(e.value, wanted, sizeof(wanted)) == 0;
        if (e.tag == 0x00020002 && e.length <= PHANTOM_UID_MAX) {
            memcpy(sop_class, e.value, e.length);
            sop_class[e.length] = '\0';
        }
    }
    return fits && sop_class[0];
}

bool reheader(const uint8_t *in, size_t n, const char *patient_id, uint64_t salt,
              struct strbuf *out, char ret_instance_uid[PHANTOM_UID_MAX + 1])
{
    struct codec_reader r = codec_reader_on(in, n);
    char sop_class[PHANTOM_UID_MAX + 1] = "", instance_uid[PHANTOM_UID_MAX + 1] = "";
    struct strbuf body = STRBUF_INIT;
    struct element e;
    bool ok = read_meta(&r, sop_class);

    while (ok && codec_left(&r)) {
        ok = read_head(&r, &e) && skip_value(&r, &e, 0);
        if (!ok)
            break;
        if (e.tag == 0x00080018)
            map_uid(&e, salt, instance_uid);
        rewrite(&e, r.p, patient_id, salt, &body);
    }
    ok = ok && instance_uid[0];
    if (ok) {
        part10_head(out, sop_class, instance_uid);
        strbuf_add(out, body.data, body.len);
        memcpy(ret_instance_uid, instance_uid, sizeof(instance_uid));
    }
    strbuf_free(&body);
    return ok && !out->overflow;
}

/* Command sets (PS3.7 section 6.3): elements of group 0000 in implicit VR little endian.
 *
 * A handful of them is all that C-ECHO and C-STORE need. DCMTK would make a data set of whatever
 * comes, allocate by lengths that nothing bounds, and stumble over a UID that is none when it
 * answers; here the caller has bounded the bytes and nothing is allocated.
 */
#include "lib/dicom/impl.h"

#include <string.h>

#include "lib/base/codec.h"
#include "lib/dicom/dcm.h"

static bool dcm_command_number(const uint8_t *p, uint32_t len, uint16_t *out)
{
    if (len != 2)
        return false;
    *out = codec_get_le16(p);
    return true;
}

static bool dcm_command_uid(const uint8_t *p, uint32_t len, char out[DCM_COMMAND_UID_MAX + 1])
{
    while (len > 0 && (p[len - 1] == 0 || p[len - 1] == ' '))
        len--;
    if (len > DCM_COMMAND_UID_MAX || memchr(p, 0, len))
        return false;
    memcpy(out, p, len);
    out[len] = 0;
    return true;
}

static bool dcm_command_take(struct dcm_command *c, uint16_t element, const uint8_t *p,
                             uint32_t len)
{
    switch (element) {
    case 0x0002: /* Affected SOP Class UID */
        return dcm_command_uid(p, len, c->sop_class);
    case 0x0100:
        return dcm_command_number(p, len, &c->field);
    case 0x0110:
        return dcm_command_number(p, len, &c->message_id);
    case 0x0800: /* Command Data Set Type: 0101 hex says that there is none */
        return dcm_command_number(p, len, &c->data_set_type);
    case 0x1000: /* Affected SOP Instance UID */
        return dcm_command_uid(p, len, c->sop_instance);
    default:
        return true;
    }
}

bool dcm_command_parse(const uint8_t *p, size_t n, struct dcm_command *ret_command)
{
    struct codec_reader r = codec_reader_on(p, n);
    struct dcm_command c = {.data_set_type = DCM_COMMAND_NO_DATA_SET};

    while (codec_left(&r) > 0) {
        uint16_t group = codec_read_le16(&r), element = codec_read_le16(&r);
        uint32_t len = codec_read_le32(&r);
        const uint8_t *value = codec_read_bytes(&r, len);

        if (!value || group != 0 || !dcm_command_take(&c, element, value, len))
            return false;
    }
    if (!c.field)
        return false;
    *ret_command = c;
    return true;
}

static void dcm_command_put(struct strbuf *out, uint16_t element, const void *value, size_t n,
                            char pad)
{
    uint8_t head[8] = {0};

    codec_put_le16(head + 2, element);
    codec_put_le32(head + 4, (uint32_t)(n + (n & 1)));
    strbuf_add(out, head, sizeof(head));
    strbuf_add(out, value, n);
    if (n & 1)
        strbuf_addc(out, pad);
}

static void dcm_command_put_number(struct strbuf *out, uint16_t element, uint16_t v)
{
    uint8_t b[2];

    codec_put_le16(b, v);
    dcm_command_put(out, element, b, sizeof(b), 0);
}

/* A UID that is none is not sent back. */
static void dcm_command_put_uid(struct strbuf *out, uint16_t element, const char *uid)
{
    if (dcm_uid_valid(uid))
        dcm_command_put(out, element, uid, strlen(uid), 0);
}

void dcm_command_respond(const struct dcm_command *request, uint16_t status, const char *comment,
                         struct strbuf *out)
{
    STRBUF_AUTO struct strbuf rest = STRBUF_INIT;
    uint8_t length[4];

    dcm_command_put_uid(&rest, 0x0002, request->sop_class);
    dcm_command_put_number(&rest, 0x0100, request->field | 0x8000);
    dcm_command_put_number(&rest, 0x0120, request->message_id);
    dcm_command_put_number(&rest, 0x0800, DCM_COMMAND_NO_DATA_SET);
    dcm_command_put_number(&rest, 0x0900, status);
    if (comment[0])
        dcm_command_put(&rest, 0x0902, comment, strlen(comment), ' ');
    dcm_command_put_uid(&rest, 0x1000, request->sop_instance);
    codec_put_le32(length, (uint32_t)rest.len);
    dcm_command_put(out, 0x0000, length, sizeof(length), 0);
    strbuf_add(out, rest.data, rest.len);
}

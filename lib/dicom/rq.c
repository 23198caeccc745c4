/* Association requests (A-ASSOCIATE-RQ: PS3.8 section 9.3.2, PS3.7 annex D.3.3), made safe for
 * DCMTK.
 *
 * DCMTK parses them too, but when it finds an error on the way it forgets what it has allocated so
 * far: whoever sends broken requests again and again eats the daemon's memory. So each request is
 * checked here first, by a walk that allocates nothing, and DCMTK sees only those that it will get
 * through.
 *
 * What we would not answer anyway is cut out on the way: roles, asynchronous operations, extended
 * negotiations, user identity, and items of unknown types. Their absence from the answer means the
 * defaults, which are what we want: the peer sends, one message at a time.
 */
#include "lib/dicom/impl.h"

#include <string.h>

#include "lib/base/codec.h"

#define DCM_RQ_FIXED    74  /* bytes before the items */
#define DCM_RQ_CONTEXTS 128 /* odd ids in a byte */
#define DCM_RQ_SYNTAXES 50  /* DCMTK's bound for one context */

struct dcm_rq_item {
    uint8_t type;
    const uint8_t *start; /* its head, 4 bytes */
    struct codec_reader body;
};

static bool dcm_rq_next(struct codec_reader *r, struct dcm_rq_item *ret_item)
{
    uint16_t len;
    const uint8_t *p;

    ret_item->start = r->p;
    ret_item->type = codec_read_u8(r);
    codec_read_u8(r);
    len = codec_read_be16(r);
    p = codec_read_bytes(r, len);
    if (!p)
        return false;
    ret_item->body = codec_reader_on(p, len);
    return true;
}

/* Room for a UID; what is in it is looked at later. No NUL inside: DCMTK would cut it there. */
static bool dcm_rq_uid(const struct codec_reader *r)
{
    size_t n = codec_left(r);

    while (n > 0 && r->p[n - 1] == 0)
        n--;
    return n > 0 && codec_left(r) <= 64 && !memchr(r->p, 0, n);
}

/* An AE title (PS3.5 section 6.2): not blank, no control bytes. DCMTK could not send others back.
 */
static bool dcm_rq_title(const uint8_t *p)
{
    bool blank = true;

    for (int i = 0; i < 16; i++) {
        if (p[i] < 0x20 || p[i] == 0x7f)
            return false;
        blank = blank && p[i] == ' ';
    }
    return !blank;
}

static bool dcm_rq_context(struct codec_reader r, bool seen[256])
{
    uint8_t id = codec_read_u8(&r);
    unsigned abstract = 0, syntaxes = 0;
    struct dcm_rq_item item;

    codec_read_bytes(&r, 3);
    if (!codec_reader_ok(&r) || !(id & 1) || seen[id])
        return false;
    seen[id] = true;
    while (codec_left(&r) > 0) {
        if (!dcm_rq_next(&r, &item) || !dcm_rq_uid(&item.body))
            return false;
        if (item.type == 0x30)
            abstract++;
        else if (item.type == 0x40)
            syntaxes++;
        else
            return false;
    }
    return abstract == 1 && syntaxes > 0 && syntaxes <= DCM_RQ_SYNTAXES;
}

/* Which user information items are kept, and are they sound? */
static bool dcm_rq_user_item(const struct dcm_rq_item *item, bool *ret_keep)
{
    size_t len = codec_left(&item->body);

    *ret_keep = true;
    switch (item->type) {
    case 0x51: /* maximum length */
        return len == 4;
    case 0x52: /* implementation class UID */
        return dcm_rq_uid(&item->body);
    case 0x55: /* implementation version name */
        return len > 0 && len <= 16 && !memchr(item->body.p, 0, len);
    default:
        *ret_keep = false;
        return true;
    }
}

/* Moves the item's bytes down to `to`; returns the end. */
static uint8_t *dcm_rq_move(uint8_t *to, const struct dcm_rq_item *item)
{
    size_t n = 4 + codec_left(&item->body);

    memmove(to, item->start, n);
    return to + n;
}

/* The user information, with what is kept of it moved to `to`; NULL when it is not sound. */
static uint8_t *dcm_rq_user(const struct dcm_rq_item *user, uint8_t *to)
{
    struct codec_reader r = user->body;
    uint8_t *head = to, head_bytes[4];
    unsigned seen[256] = {0};
    struct dcm_rq_item item;
    bool keep;

    memcpy(head_bytes, user->start, 4);
    to += 4;
    while (codec_left(&r) > 0) {
        if (!dcm_rq_next(&r, &item) || !dcm_rq_user_item(&item, &keep) ||
            (keep && seen[item.type]++))
            return NULL;
        if (keep)
            to = dcm_rq_move(to, &item);
    }
    memcpy(head, head_bytes, 2);
    codec_put_be16(head + 2, (uint16_t)(to - head - 4));
    return seen[0x51] ? to : NULL;
}

size_t dcm_rq_clean(uint8_t *p, size_t n)
{
    struct codec_reader r = codec_reader_on(p, n);
    unsigned names = 0, contexts = 0, users = 0;
    bool seen[256] = {false};
    struct dcm_rq_item item;
    uint8_t *to = p + DCM_RQ_FIXED;

    if (n < DCM_RQ_FIXED || codec_get_be32(p + 2) != n - 6 || !(codec_get_be16(p + 6) & 1) ||
        !dcm_rq_title(p + 10) || !dcm_rq_title(p + 26))
        return 0;
    codec_read_bytes(&r, DCM_RQ_FIXED);
    while (codec_left(&r) > 0) {
        if (!dcm_rq_next(&r, &item))
            return 0;
        if (item.type == 0x10) {
            if (names++ || !dcm_rq_uid(&item.body))
                return 0;
            to = dcm_rq_move(to, &item);
        } else if (item.type == 0x20) {
            if (++contexts > DCM_RQ_CONTEXTS || !dcm_rq_context(item.body, seen))
                return 0;
            to = dcm_rq_move(to, &item);
        } else if (item.type == 0x50) {
            if (users++ || !(to = dcm_rq_user(&item, to)))
                return 0;
        }
    }
    codec_put_be32(p + 2, (uint32_t)(to - p - 6));
    return names == 1 && contexts > 0 && users == 1 ? (size_t)(to - p) : 0;
}

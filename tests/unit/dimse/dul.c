/* A DICOM client for tests; see dul.h. */
#include "tests/unit/dimse/dul.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/codec.h"
#include "lib/base/err.h"

void dul_init(struct dul *d, struct env *env)
{
    memset(d, 0, sizeof(*d));
    d->env = env;
    d->called_aet = "FILMROOM";
    d->fragment = 16000;
}

int dul_connect(struct dul *d, uint16_t port)
{
    struct env_addr addr;

    snprintf(addr.text, sizeof(addr.text), "tcp:127.0.0.1:%u", port);
    return env_connect(d->env, &addr, &d->sock);
}

void dul_close(struct dul *d)
{
    env_sock_close(d->sock);
    d->sock = NULL;
    strbuf_free(&d->pdu);
}

int dul_send(struct dul *d, const void *p, size_t n)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)p, .iov_len = n};

    return env_send(d->sock, &iov, 1);
}

static int dul_recv_all(struct dul *d, size_t n)
{
    while (n > 0) {
        char piece[4096];
        int64_t got = env_recv(d->sock, piece, n < sizeof(piece) ? n : sizeof(piece));

        if (got <= 0)
            return got == 0 ? ERR_CLOSED : (int)got;
        strbuf_add(&d->pdu, piece, (size_t)got);
        n -= (size_t)got;
    }
    return 0;
}

int dul_recv(struct dul *d)
{
    strbuf_reset(&d->pdu);
    if (dul_recv_all(d, 6) < 0 || dul_recv_all(d, codec_get_be32(d->pdu.data + 2)) < 0)
        return 0;
    return (uint8_t)d->pdu.data[0];
}

/* ---- Association ------------------------------------------------------------------------ */

static void dul_be16(struct strbuf *s, size_t v)
{
    uint8_t b[2];

    codec_put_be16(b, (uint16_t)v);
    strbuf_add(s, b, 2);
}

static void dul_item(struct strbuf *s, int type, const void *p, size_t n)
{
    strbuf_addc(s, (char)type);
    strbuf_addc(s, 0);
    dul_be16(s, n);
    strbuf_add(s, p, n);
}

static int dul_send_pdu(struct dul *d, int type, const struct strbuf *body)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    uint8_t len[4];

    strbuf_addc(&out, (char)type);
    strbuf_addc(&out, 0);
    codec_put_be32(len, (uint32_t)body->len);
    strbuf_add(&out, len, 4);
    strbuf_add(&out, body->data, body->len);
    return dul_send(d, out.data, out.len);
}

static void dul_title(struct strbuf *s, const char *title)
{
    char text[17];

    snprintf(text, sizeof(text), "%-16s", title);
    strbuf_add(s, text, 16);
}

static void dul_context_item(struct strbuf *body, const struct dul_context *c, size_t id)
{
    STRBUF_AUTO struct strbuf item = STRBUF_INIT;

    strbuf_addc(&item, (char)id);
    strbuf_add(&item, "\0\0\0", 3);
    dul_item(&item, 0x30, c->abstract_syntax, strlen(c->abstract_syntax));
    for (size_t i = 0; i < 4 && c->syntaxes[i]; i++)
        dul_item(&item, 0x40, c->syntaxes[i], strlen(c->syntaxes[i]));
    dul_item(body, 0x20, item.data, item.len);
}

static void dul_read_accept(struct dul *d)
{
    struct codec_reader r = codec_reader_on(d->pdu.data, d->pdu.len);

    codec_read_bytes(&r, 74);
    while (codec_left(&r) >= 4) {
        uint8_t type = codec_read_u8(&r), skipped = codec_read_u8(&r);
        uint16_t len = codec_read_be16(&r);
        const uint8_t *p = codec_read_bytes(&r, len);

        (void)skipped;
        if (type == 0x21 && p && len >= 8) {
            uint16_t n = codec_get_be16(p + 6);

            d->results[p[0]] = p[2];
            if (n <= 64 && n + 8 <= len)
                memcpy(d->syntaxes[p[0]], p + 8, n);
        }
    }
}

int dul_associate(struct dul *d, const struct dul_context *contexts, size_t count)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT, user = STRBUF_INIT;
    static const char zeroes[32];
    int rc, type;

    memset(d->results, 255, sizeof(d->results));
    memset(d->syntaxes, 0, sizeof(d->syntaxes));
    strbuf_add(&body, "\0\1\0\0", 4);
    dul_title(&body, d->called_aet);
    dul_title(&body, "DUL_TEST");
    strbuf_add(&body, zeroes, 32);
    dul_item(&body, 0x10, "1.2.840.10008.3.1.1.1", 21);
    for (size_t i = 0; i < count; i++)
        dul_context_item(&body, &contexts[i], 2 * i + 1);
    dul_item(&user, 0x51, "\0\0\x40\0", 4);
    dul_item(&user, 0x52, "1.2.3.4", 7);
    dul_item(&body, 0x50, user.data, user.len);
    rc = dul_send_pdu(d, 1, &body);
    if (rc < 0)
        return rc;
    type = dul_recv(d);
    if (type == 2)
        dul_read_accept(d);
    return type ? type : ERR_CLOSED;
}

int dul_release(struct dul *d)
{
    int rc = dul_send(d, "\5\0\0\0\0\4\0\0\0\0", 10);

    if (rc < 0)
        return rc;
    return dul_recv(d) == 6 ? 0 : ERR_PROTO;
}

/* ---- Messages --------------------------------------------------------------------------- */

static void dul_element(struct strbuf *s, unsigned element, const void *p, size_t n)
{
    uint8_t head[8];

    codec_put_le16(head, 0);
    codec_put_le16(head + 2, (uint16_t)element);
    codec_put_le32(head + 4, (uint32_t)(n + (n & 1)));
    strbuf_add(s, head, 8);
    strbuf_add(s, p, n);
    if (n & 1)
        strbuf_addc(s, 0);
}

static void dul_number(struct strbuf *s, unsigned element, unsigned v)
{
    uint8_t b[2];

    codec_put_le16(b, (uint16_t)v);
    dul_element(s, element, b, 2);
}

static int dul_pdv(struct dul *d, uint8_t id, int control, const void *p, size_t n)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    uint8_t len[4];

    codec_put_be32(len, (uint32_t)n + 2);
    strbuf_add(&body, len, 4);
    strbuf_addc(&body, (char)id);
    strbuf_addc(&body, (char)control);
    strbuf_add(&body, p, n);
    return dul_send_pdu(d, 4, &body);
}

static int dul_command(struct dul *d, uint8_t id, const struct strbuf *elements)
{
    STRBUF_AUTO struct strbuf all = STRBUF_INIT;
    uint8_t len[4];

    codec_put_le32(len, (uint32_t)elements->len);
    dul_element(&all, 0, len, 4);
    strbuf_add(&all, elements->data, elements->len);
    return dul_pdv(d, id, 3, all.data, all.len);
}

int dul_data(struct dul *d, uint8_t id, const void *p, size_t n, bool last)
{
    const char *at = p;
    int rc;

    do {
        size_t step = n < d->fragment ? n : d->fragment;

        rc = dul_pdv(d, id, last && step == n ? 2 : 0, at, step);
        at += step;
        n -= step;
    } while (rc >= 0 && n > 0);
    return rc;
}

int dul_response(struct dul *d)
{
    struct codec_reader r;

    if (dul_recv(d) != 4)
        return ERR_PROTO;
    r = codec_reader_on(d->pdu.data, d->pdu.len);
    codec_read_bytes(&r, 12);
    d->comment[0] = 0;
    while (codec_left(&r) >= 8) {
        unsigned group = codec_read_le16(&r), element = codec_read_le16(&r);
        uint32_t len = codec_read_le32(&r);
        const uint8_t *p = codec_read_bytes(&r, len);

        if (group != 0 || !p)
            return ERR_PROTO;
        if (element == 0x0900 && len == 2)
            d->status = codec_get_le16(p);
        if (element == 0x0902)
            snprintf(d->comment, sizeof(d->comment), "%.*s", (int)len, (const char *)p);
    }
    return 0;
}

int dul_echo(struct dul *d, uint8_t id)
{
    STRBUF_AUTO struct strbuf c = STRBUF_INIT;
    int rc;

    dul_element(&c, 0x0002, DUL_VERIFICATION, strlen(DUL_VERIFICATION));
    dul_number(&c, 0x0100, 0x0030);
    dul_number(&c, 0x0110, 1);
    dul_number(&c, 0x0800, 0x0101);
    rc = dul_command(d, id, &c);
    return rc < 0 ? rc : dul_response(d);
}

int dul_store_command(struct dul *d, uint8_t id, const char *sop_class, const char *sop_instance)
{
    STRBUF_AUTO struct strbuf c = STRBUF_INIT;

    dul_element(&c, 0x0002, sop_class, strlen(sop_class));
    dul_number(&c, 0x0100, 0x0001);
    dul_number(&c, 0x0110, 1);
    dul_number(&c, 0x0700, 0);
    dul_number(&c, 0x0800, 0);
    dul_element(&c, 0x1000, sop_instance, strlen(sop_instance));
    return dul_command(d, id, &c);
}

int dul_store(struct dul *d, uint8_t id, const char *sop_class, const char *sop_instance,
              const void *data_set, size_t n)
{
    int rc = dul_store_command(d, id, sop_class, sop_instance);

    if (rc >= 0)
        rc = dul_data(d, id, data_set, n, true);
    return rc < 0 ? rc : dul_response(d);
}

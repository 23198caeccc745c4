/* WADO-RS: instances as they are stored, singly or as parts; metadata as DICOM JSON.
 *
 * An answer is a sequence of texts (part headers) and instances' bytes of known lengths, so its own
 * length is known before the first byte is read. Each read of the connection's thread becomes one
 * env_call that fills the whole buffer, over the border of parts where need be. The first PREFETCH
 * bytes are read before the answer begins: data that cannot be served is then a clear 500, and a
 * small answer needs no stream at all. Later failures cut the connection; a client sees that by the
 * Content-Length.
 */
#include "proto/dicomweb/web.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "proto/dicomweb/qido.h"

#define PREFETCH (1u << 20)

struct retrieve {
    struct dicomweb *w;
    struct web_list list;
    bool multipart;
    char boundary[40];
    struct strbuf base;

    /* Where the output stands. */
    size_t next;        /* item that comes next */
    struct strbuf text; /* a part's header, or the end */
    size_t text_given;
    struct object *o; /* the instance being sent; on the loop */
    uint64_t o_off, o_len;
    bool ended;

    char *ahead; /* the first bytes */
    size_t ahead_len;
};

/* ---- The pieces ------------------------------------------------------------------------------ */

static void part_header(struct retrieve *v, const struct web_item *it, struct strbuf *out)
{
    strbuf_addf(out,
                "\r\n--%s\r\nContent-Type: application/dicom; transfer-syntax=%s\r\n"
                "Content-Length: %llu\r\nContent-Location: ",
                v->boundary, it->syntax, (unsigned long long)it->bytes);
    qido_url(out, v->base.data, it->study, it->series, it->instance);
    strbuf_adds(out, "\r\n\r\n");
}

static void part_trailer(struct retrieve *v, struct strbuf *out)
{
    strbuf_addf(out, "\r\n--%s--\r\n", v->boundary);
}

static uint64_t total_length(struct retrieve *v)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    uint64_t n = 0;

    for (size_t i = 0; i < v->list.count; i++) {
        strbuf_reset(&s);
        if (v->multipart)
            part_header(v, &v->list.items[i], &s);
        n += s.len + v->list.items[i].bytes;
    }
    strbuf_reset(&s);
    if (v->multipart)
        part_trailer(v, &s);
    return n + s.len;
}

/* ---- On the loop ----------------------------------------------------------------------------- */

struct fill {
    struct retrieve *v;
    uint8_t *buf;
    size_t len, done;
    int err;
};

static void fill_text(struct fill *f)
{
    struct retrieve *v = f->v;
    size_t n = v->text.len - v->text_given;

    if (n > f->len - f->done)
        n = f->len - f->done;
    memcpy(f->buf + f->done, v->text.data + v->text_given, n);
    v->text_given += n;
    f->done += n;
}

static int fill_object(struct fill *f)
{
    struct retrieve *v = f->v;
    size_t want = f->len - f->done, got;
    int r;

    if (want > v->o_len - v->o_off)
        want = (size_t)(v->o_len - v->o_off);
    r = object_read(v->o, v->o_off, f->buf + f->done, want, &got);
    if (r < 0)
        return r;
    if (got == 0 || got > want)
        return ERR_LOST; /* shorter than its row says */
    v->o_off += got;
    f->done += got;
    if (v->o_off == v->o_len) {
        object_close(v->o);
        v->o = NULL;
    }
    return 0;
}

static int next_piece(struct retrieve *v)
{
    const struct web_item *it;
    int r;

    strbuf_reset(&v->text);
    v->text_given = 0;
    if (v->next == v->list.count) {
        if (v->multipart)
            part_trailer(v, &v->text);
        v->ended = true;
        return 0;
    }
    it = &v->list.items[v->next++];
    if (v->multipart)
        part_header(v, it, &v->text);
    r = object_open(v->w->os, it->study, it->series, it->instance, &v->o);
    if (r < 0)
        return r;
    v->o_off = 0;
    v->o_len = it->bytes;
    /* Replaced since it was listed: the announced length would be wrong. */
    return object_get_row(v->o)->bytes == it->bytes ? 0 : ERR_BUSY;
}

static void fill_fiber(void *arg)
{
    struct fill *f = arg;
    struct retrieve *v = f->v;

    while (f->done < f->len && f->err == 0) {
        if (v->text_given < v->text.len)
            fill_text(f);
        else if (v->o)
            f->err = fill_object(f);
        else if (v->ended)
            break;
        else
            f->err = next_piece(v);
    }
}

static void close_fiber(void *arg)
{
    struct retrieve *v = arg;

    object_close(v->o);
    v->o = NULL;
}

/* ---- On the connection's thread -------------------------------------------------------------- */

static int64_t retrieve_fill(struct retrieve *v, void *buf, size_t len)
{
    struct fill f = {.v = v, .buf = buf, .len = len};
    int r = env_call(v->w->env, "web-read", fill_fiber, &f);

    if (r == 0)
        r = f.err;
    return r < 0 ? r : (int64_t)f.done;
}

static int64_t retrieve_read(void *arg, uint64_t off, void *buf, size_t len)
{
    struct retrieve *v = arg;
    int64_t n;

    if (off < v->ahead_len) {
        if (len > v->ahead_len - off)
            len = (size_t)(v->ahead_len - off);
        memcpy(buf, v->ahead + off, len);
        return (int64_t)len;
    }
    mem_free(v->ahead);
    v->ahead = NULL;
    v->ahead_len = 0;
    n = retrieve_fill(v, buf, len);
    if (n < 0)
        log_warn("dicomweb", "retrieve cut short instance=%s error=%s text=%s",
                 v->next ? v->list.items[v->next - 1].instance : "-", err_name((int)n),
                 log_q(err_text((int)n)));
    return n;
}

static void retrieve_close(void *arg)
{
    struct retrieve *v = arg;

    if (v->o)
        env_call(v->w->env, "web-close", close_fiber, v);
    web_list_free(&v->list);
    strbuf_free(&v->base);
    strbuf_free(&v->text);
    mem_free(v->ahead);
    mem_free(v);
}

static void boundary_fiber(void *arg)
{
    struct retrieve *v = arg;
    uint8_t raw[16];

    env_random(v->w->env, raw, sizeof(raw));
    for (size_t i = 0; i < sizeof(raw); i++)
        snprintf(v->boundary + 2 * i, 3, "%02x", raw[i]);
}

/* Reads the first bytes, answers, and hands over or frees v. */
static void retrieve_send(struct retrieve *v, struct httpd_req *r, const char *type)
{
    static const struct httpd_stream stream = {retrieve_read, retrieve_close};
    uint64_t total = total_length(v);
    int64_t n;

    if (strcmp(httpd_method(r), "HEAD") == 0) {
        httpd_reply_stream(r, 200, type, total, &stream, v);
        return;
    }
    v->ahead_len = total < PREFETCH ? (size_t)total : PREFETCH;
    v->ahead = mem_alloc(v->ahead_len);
    n = retrieve_fill(v, v->ahead, v->ahead_len);
    if (n == (int64_t)v->ahead_len && v->ahead_len < total) {
        httpd_reply_stream(r, 200, type, total, &stream, v);
        return;
    }
    if (n == (int64_t)v->ahead_len) {
        httpd_reply(r, 200, type, v->ahead, v->ahead_len);
        v->ahead = NULL;
    } else {
        web_fail(r, n < 0 ? (int)n : ERR_LOST);
    }
    retrieve_close(v);
}

void retrieve_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route)
{
    struct retrieve *v = mem_zalloc(sizeof(*v));
    STRBUF_AUTO struct strbuf type = STRBUF_INIT;
    int err, chosen;

    v->w = w;
    web_base(r, &v->base);
    err = web_list_get(w, route, &v->list);
    if (err < 0) {
        web_fail(r, err);
        retrieve_close(v);
        return;
    }
    struct mime_offer offers[] = {
        {"application/dicom", true, v->list.syntaxes, v->list.syntax_count, false},
        {"application/dicom", false, v->list.syntaxes, v->list.syntax_count, false},
    };
    /* Many instances have no form but multipart; a single one is plain by default. */
    if (route->instance)
        offers[0].multipart = false, offers[1].multipart = true;
    chosen = web_choose(r, offers, route->instance ? 2 : 1);
    if (chosen < 0) {
        retrieve_close(v);
        return;
    }
    v->multipart = offers[chosen].multipart;
    if (v->multipart) {
        err = env_call(w->env, "web-boundary", boundary_fiber, v);
        strbuf_addf(&type, "multipart/related; type=\"application/dicom\"; boundary=%s",
                    v->boundary);
    } else {
        strbuf_addf(&type, "application/dicom; transfer-syntax=%s", v->list.items[0].syntax);
    }
    if (err < 0) {
        web_fail(r, err);
        retrieve_close(v);
        return;
    }
    retrieve_send(v, r, type.data);
}

/* ---- Metadata -------------------------------------------------------------------------------- */

/* Heads are fetched WEB_HEADS_MAX at a time. */
struct metadata {
    struct dicomweb *w;
    struct web_list list;
    size_t next, fetched;
    struct strbuf base;
    struct web_head heads[WEB_HEADS_MAX]; /* of the items fetched - count .. fetched - 1 */
    int errs[WEB_HEADS_MAX];
    size_t first; /* the item of heads[0] */
};

/* DCMTK's parsing needs a thread's stack, and its time is not the loop's. */
static int head_json(const struct web_head *h, const char *bulk_base, struct strbuf *out)
{
    STRBUF_AUTO struct strbuf rows = STRBUF_INIT;
    struct dcm_header *header;
    bool pixels = h->has_pixels;
    char vr[3];
    int r = dcm_header_parse(h->bytes + h->dataset_off, h->header_len, h->syntax, &header);

    if (r < 0)
        return r;
    /* The scan does not look into deflated data: an image has rows. */
    if (h->deflated)
        pixels = dcm_header_get(header, 0x00280010, &rows, vr);
    r = dcm_header_json(header, bulk_base, pixels, out);
    dcm_header_free(header);
    return r;
}

static void metadata_fetch(struct metadata *m)
{
    size_t n = m->list.count - m->fetched;

    if (n > WEB_HEADS_MAX)
        n = WEB_HEADS_MAX;
    m->first = m->fetched;
    web_heads_get(m->w, m->list.items + m->first, n, m->heads, m->errs);
    m->fetched += n;
}

static int metadata_next(void *arg, struct strbuf *out)
{
    struct metadata *m = arg;
    STRBUF_AUTO struct strbuf bulk = STRBUF_INIT;
    const struct web_item *it;
    struct web_head *h;
    int r;

    if (m->next == m->list.count)
        return 0;
    if (m->next == m->fetched)
        metadata_fetch(m);
    it = &m->list.items[m->next];
    h = &m->heads[m->next - m->first];
    r = m->errs[m->next - m->first];
    m->next++;
    if (r == ERR_AGAIN)
        r = web_head_get(m->w, it, NULL, NULL, h);
    if (r < 0)
        return r;
    qido_url(&bulk, m->base.data, it->study, it->series, it->instance);
    strbuf_adds(&bulk, "/bulkdata");
    r = head_json(h, bulk.data, out);
    web_head_free(m->w, h);
    return r < 0 ? r : 1;
}

static void metadata_free(void *arg)
{
    struct metadata *m = arg;

    for (size_t i = m->next - m->first; i < m->fetched - m->first; i++)
        web_head_free(m->w, &m->heads[i]);
    web_list_free(&m->list);
    strbuf_free(&m->base);
    mem_free(m);
}

void metadata_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route)
{
    static const struct web_items items = {metadata_next, metadata_free};
    const char *type = web_choose_json(r);
    struct metadata *m;
    int err;

    if (!type)
        return;
    m = mem_zalloc(sizeof(*m));
    m->w = w;
    web_base(r, &m->base);
    err = web_list_get(w, route, &m->list);
    if (err < 0) {
        web_fail(r, err);
        metadata_free(m);
        return;
    }
    web_reply_items(r, type, false, &items, m);
}

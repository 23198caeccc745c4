/* WADO-RS: instances as they are stored, singly or as parts; metadata as DICOM JSON.
 *
 * An answer is a sequence of texts (part headers) and instances' bytes of known lengths, so its own
 * length is known before the first byte is read. It is read AHEAD bytes at a time, in one env_call
 * each: instances that lie wholly in that window are read side by side, one that reaches over its
 * end stays open until it is sent, so that its bytes are all of one version. The first window is
 * read before the answer begins: data that cannot be served is then a clear 500, and a small answer
 * needs no stream at all. Later failures cut the connection; a client sees that by the
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

#define AHEAD      (2u << 20)
#define AHEAD_JOBS 32 /* instances read side by side */

struct retrieve {
    struct dicomweb *w;
    struct web_list list;
    bool multipart;
    char boundary[40];
    struct strbuf base;

    /* Where the output stands. */
    uint64_t total;
    size_t next;        /* item that comes next */
    struct strbuf text; /* a part's header, or the end */
    size_t text_given;
    struct object *o; /* the instance being sent; on the loop */
    uint64_t o_off, o_len;
    bool ended;

    char *ahead; /* the window: bytes ahead_off .. ahead_off + ahead_len - 1 of the answer */
    size_t ahead_len;
    uint64_t ahead_off;
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

/* A whole instance, read into its place in the window. */
struct fill_job {
    struct dicomweb *w;
    const struct web_item *item;
    uint8_t *dst;
    int err;
    struct fiber_group *group;
};

struct fill {
    struct retrieve *v;
    uint8_t *buf;
    size_t len, done;
    int err;
    struct fiber_group group;
    size_t job_count;
    struct fill_job jobs[AHEAD_JOBS];
};

/* Opens an instance of the list; ERR_BUSY when it was replaced since: its announced length would be
 * wrong. */
static int open_item(struct dicomweb *w, const struct web_item *it, struct object **ret_object)
{
    struct object *o;
    int r = object_open(w->os, it->study, it->series, it->instance, &o);

    if (r < 0)
        return r;
    if (object_get_row(o)->bytes != it->bytes) {
        object_close(o);
        return ERR_BUSY;
    }
    *ret_object = o;
    return 0;
}

static void job_fiber(void *arg)
{
    struct fill_job *j = arg;
    struct object *o;
    size_t got;

    j->err = open_item(j->w, j->item, &o);
    if (j->err == 0) {
        j->err = object_read(o, 0, j->dst, (size_t)j->item->bytes, &got);
        if (j->err == 0 && got != j->item->bytes)
            j->err = ERR_LOST;
        object_close(o);
    }
    fiber_group_done(j->group);
}

static void start_job(struct fill *f, const struct web_item *it)
{
    struct fill_job *j = &f->jobs[f->job_count++];

    *j = (struct fill_job){f->v->w, it, f->buf + f->done, 0, &f->group};
    f->done += (size_t)it->bytes;
    fiber_group_add(&f->group, 1);
    fiber_spawn(f->v->w->env, "web-read", job_fiber, j);
}

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

static int next_piece(struct fill *f)
{
    struct retrieve *v = f->v;
    const struct web_item *it;
    size_t left = f->len - f->done;

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
    if (f->job_count < AHEAD_JOBS && v->text.len <= left && it->bytes <= left - v->text.len) {
        if (v->text.len)
            fill_text(f);
        start_job(f, it);
        return 0;
    }
    v->o_off = 0;
    v->o_len = it->bytes;
    return open_item(v->w, it, &v->o);
}

static void fill_fiber(void *arg)
{
    struct fill *f = arg;
    struct retrieve *v = f->v;

    fiber_group_init(&f->group);
    while (f->done < f->len && f->err == 0) {
        if (v->text_given < v->text.len)
            fill_text(f);
        else if (v->o)
            f->err = fill_object(f);
        else if (v->ended)
            break;
        else
            f->err = next_piece(f);
    }
    fiber_group_wait(&f->group);
    for (size_t i = 0; i < f->job_count && f->err == 0; i++)
        f->err = f->jobs[i].err;
}

static void close_fiber(void *arg)
{
    struct retrieve *v = arg;

    object_close(v->o);
    v->o = NULL;
}

/* ---- On the connection's thread -------------------------------------------------------------- */

/* Reads the window at off. */
static int retrieve_fill(struct retrieve *v, uint64_t off)
{
    struct fill f = {.v = v, .buf = (uint8_t *)v->ahead, .len = AHEAD};
    int r;

    if (f.len > v->total - off)
        f.len = (size_t)(v->total - off);
    r = env_call(v->w->env, "web-retrieve", fill_fiber, &f);
    if (r == 0)
        r = f.err;
    if (r == 0 && f.done != f.len)
        r = ERR_LOST;
    v->ahead_off = off;
    v->ahead_len = r < 0 ? 0 : f.len;
    return r;
}

static int64_t retrieve_read(void *arg, uint64_t off, void *buf, size_t len)
{
    struct retrieve *v = arg;
    uint64_t end = v->ahead_off + v->ahead_len;
    int r;

    if (off == v->total)
        return 0;
    if (off == end) {
        r = retrieve_fill(v, off);
        if (r < 0) {
            log_warn("dicomweb", "retrieve cut short instance=%s error=%s text=%s",
                     v->next ? v->list.items[v->next - 1].instance : "-", err_name(r),
                     log_q(err_text(r)));
            return r;
        }
        end = off + v->ahead_len;
    }
    CHECK(off >= v->ahead_off && off < end);
    if (len > end - off)
        len = (size_t)(end - off);
    memcpy(buf, v->ahead + (off - v->ahead_off), len);
    return (int64_t)len;
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

/* Reads the first window, answers, and hands over or frees v. */
static void retrieve_send(struct retrieve *v, struct httpd_req *r, const char *type)
{
    static const struct httpd_stream stream = {retrieve_read, retrieve_close};
    int err;

    v->total = total_length(v);
    if (strcmp(httpd_method(r), "HEAD") == 0) {
        httpd_reply_stream(r, 200, type, v->total, &stream, v);
        return;
    }
    v->ahead = mem_alloc(v->total < AHEAD ? (size_t)v->total : AHEAD);
    err = retrieve_fill(v, 0);
    if (err == 0 && v->ahead_len < v->total) {
        httpd_reply_stream(r, 200, type, v->total, &stream, v);
        return;
    }
    if (err == 0) {
        httpd_reply(r, 200, type, v->ahead, v->ahead_len);
        v->ahead = NULL;
    } else {
        web_fail(r, err);
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

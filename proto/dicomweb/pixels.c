/* WADO-RS frames and bulk data: pieces of a stored instance, each frame a part.
 *
 * Like a retrieve, the answer is a sequence of texts and ranges of the instance, of known length.
 * Frames go out as they are stored: native ones as little-endian octets, encapsulated ones as their
 * bitstreams under the media type of the transfer syntax. Big-endian and deflated data sets, where
 * that would need a conversion, are refused.
 */
#include "proto/dicomweb/web.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "proto/dicomweb/frames.h"
#include "proto/dicomweb/qido.h"

#define SYNTAX_LITTLE "1.2.840.10008.1.2.1"
#define SYNTAX_BIG    "1.2.840.10008.1.2.2"
#define SMALL         (1u << 20) /* bytes of an answer that is made before it is sent */
#define YIELD_EVERY   64         /* fragment heads read before others get a turn */

/* A text of `text`, or a range of the instance. */
struct piece {
    bool text;
    uint64_t off, len;
};

struct pixels {
    struct dicomweb *w;
    const struct route *route; /* until the answer was made */
    struct web_head head;
    struct strbuf base, text;
    char boundary[40];
    struct frame_list list;
    size_t piece_count, next;
    struct piece *pieces;
    uint64_t piece_off, total;
    struct object *o; /* on the loop */
    uint32_t *wanted;
    size_t wanted_count, reads;
    bool bulk;  /* Pixel Data as bulk data */
    bool whole; /* native, as one value and not by frames */
    int err;
};

static void close_fiber(void *arg)
{
    struct pixels *p = arg;

    object_close(p->o);
    p->o = NULL;
}

static void pixels_close(void *arg)
{
    struct pixels *p = arg;

    if (p->o)
        env_call(p->w->env, "web-close", close_fiber, p);
    web_head_free(p->w, &p->head);
    frame_list_free(&p->list);
    strbuf_free(&p->base);
    strbuf_free(&p->text);
    mem_free(p->pieces);
    mem_free(p->wanted);
    mem_free(p);
}

/* ---- On the loop ----------------------------------------------------------------------------- */

static int read_all(void *arg, uint64_t off, void *buf, size_t len)
{
    struct pixels *p = arg;
    size_t got;
    int r = object_read(p->o, off, buf, len, &got);

    if (++p->reads % YIELD_EVERY == 0)
        fiber_yield();
    return r < 0 ? r : got == len ? 0 : ERR_LOST;
}

static int find_frames(struct pixels *p, const struct web_head *h)
{
    struct frame_source src = {
        .read = read_all,
        .arg = p,
        .bytes = h->bytes_total,
        .pixel_off = h->pixel_off,
        .pixel_len = h->pixel_len,
        .encapsulated = h->encapsulated,
        .rows = h->rows,
        .columns = h->columns,
        .samples = h->samples ? h->samples : 1,
        .bits_allocated = h->bits_allocated,
        .frames = h->frames,
    };

    return frames_find(&src, p->wanted, p->wanted_count, &p->list);
}

static int find_whole(struct pixels *p, const struct web_head *h)
{
    if (h->pixel_off > h->bytes_total || h->pixel_len > h->bytes_total - h->pixel_off)
        return ERR_FORMAT;
    p->list.segments = mem_zalloc(sizeof(p->list.segments[0]));
    p->list.segments[0] = (struct frame_segment){.off = h->pixel_off, .len = h->pixel_len};
    p->list.count = p->list.cap = 1;
    return 0;
}

/* Goes on with the head that was read: where are the frames? What it finds, or that it finds
 * nothing, goes to p->err; the instance stays open for reading them. */
static int find(void *arg, struct object *o, const struct web_head *h)
{
    struct pixels *p = arg;
    uint8_t raw[16];

    env_random(p->w->env, raw, sizeof(raw));
    for (size_t i = 0; i < sizeof(raw); i++)
        snprintf(p->boundary + 2 * i, 3, "%02x", raw[i]);
    p->o = o;
    p->whole = p->bulk && !h->encapsulated;
    if (h->has_pixels && strcmp(h->syntax, SYNTAX_BIG) != 0)
        p->err = p->whole ? find_whole(p, h) : find_frames(p, h);
    return 0;
}

struct fill {
    struct pixels *p;
    uint8_t *buf;
    size_t len, done;
    bool last; /* there will be no other fill: close the instance */
    int err;
};

static void fill(struct fill *f)
{
    struct pixels *p = f->p;

    while (f->done < f->len && p->next < p->piece_count) {
        const struct piece *at = &p->pieces[p->next];
        size_t n = f->len - f->done;

        if (n > at->len - p->piece_off)
            n = (size_t)(at->len - p->piece_off);
        if (n && at->text)
            memcpy(f->buf + f->done, p->text.data + at->off + p->piece_off, n);
        else if (n)
            f->err = read_all(p, at->off + p->piece_off, f->buf + f->done, n);
        if (f->err < 0)
            return;
        f->done += n;
        p->piece_off += n;
        if (p->piece_off == at->len) {
            p->next++;
            p->piece_off = 0;
        }
    }
}

static void fill_fiber(void *arg)
{
    struct fill *f = arg;

    fill(f);
    if (f->last)
        close_fiber(f->p);
}

static int64_t pixels_fill(struct pixels *p, void *buf, size_t len, bool last)
{
    struct fill f = {.p = p, .buf = buf, .len = len, .last = last};
    int r = env_call(p->w->env, "web-frames", fill_fiber, &f);

    if (r == 0)
        r = f.err;
    return r < 0 ? r : (int64_t)f.done;
}

static int64_t pixels_read(void *arg, uint64_t off, void *buf, size_t len)
{
    int64_t n = pixels_fill(arg, buf, len, false);

    (void)off;
    if (n < 0)
        log_warn("dicomweb", "frames cut short error=%s text=%s", err_name((int)n),
                 log_q(err_text((int)n)));
    return n;
}

/* ---- The answer ------------------------------------------------------------------------------ */

static void add_piece(struct pixels *p, bool text, uint64_t off, uint64_t len)
{
    p->pieces[p->piece_count++] = (struct piece){text, off, len};
    p->total += len;
}

static void part_header(struct pixels *p, const char *type, const char *syntax,
                        const struct frame_segment *seg)
{
    const struct route *t = p->route;
    size_t start = p->text.len;

    strbuf_addf(&p->text, "\r\n--%s\r\nContent-Type: %s; transfer-syntax=%s\r\nContent-Location: ",
                p->boundary, type, syntax);
    qido_url(&p->text, p->base.data, t->study, t->series, t->instance);
    if (p->whole)
        strbuf_adds(&p->text, "/bulkdata/7FE00010\r\n\r\n");
    else
        strbuf_addf(&p->text, "/frames/%u\r\n\r\n", seg->frame);
    add_piece(p, true, start, p->text.len - start);
}

/* Lays the segments out; a new part begins where the frame asked for changes. */
static void lay_out(struct pixels *p, bool multipart, const char *type, const char *syntax)
{
    size_t start;

    p->pieces = mem_calloc(2 * p->list.count + 2, sizeof(p->pieces[0]));
    for (size_t i = 0; i < p->list.count; i++) {
        const struct frame_segment *s = &p->list.segments[i];
        bool first = i == 0 || s->part != s[-1].part;

        if (multipart && first)
            part_header(p, type, syntax, s);
        add_piece(p, false, s->off, s->len);
    }
    if (!multipart)
        return;
    start = p->text.len;
    strbuf_addf(&p->text, "\r\n--%s--\r\n", p->boundary);
    add_piece(p, true, start, p->text.len - start);
}

/* What frames can be answered as. */
static size_t make_offers(const char *type, const char *const *syntax, bool native, bool one,
                          struct mime_offer offers[4])
{
    size_t n = 0;

    offers[n++] = (struct mime_offer){type, true, syntax, 1, false};
    if (one)
        offers[n++] = (struct mime_offer){type, false, syntax, 1, false};
    if (!native && strcmp(type, "application/octet-stream") != 0) {
        offers[n++] = (struct mime_offer){"application/octet-stream", true, syntax, 1, true};
        if (one)
            offers[n++] = (struct mime_offer){"application/octet-stream", false, syntax, 1, true};
    }
    return n;
}

static void send_frames(struct pixels *p, struct httpd_req *r)
{
    static const struct httpd_stream stream = {pixels_read, pixels_close};
    STRBUF_AUTO struct strbuf type = STRBUF_INIT;
    bool native = !p->head.encapsulated;
    const char *syntax = native ? SYNTAX_LITTLE : p->head.syntax;
    const char *media = native ? "application/octet-stream" : frames_media_type(p->head.syntax);
    bool one = p->whole || p->wanted_count == 1 || (p->wanted_count == 0 && p->head.frames <= 1);
    struct mime_offer offers[4];
    size_t count = make_offers(media, &syntax, native, one, offers);
    int chosen = web_choose(r, offers, count);
    char *buf;
    int64_t n;

    if (chosen < 0) {
        pixels_close(p);
        return;
    }
    lay_out(p, offers[chosen].multipart, offers[chosen].type, syntax);
    if (offers[chosen].multipart)
        strbuf_addf(&type, "multipart/related; type=\"%s\"; boundary=%s", offers[chosen].type,
                    p->boundary);
    else
        strbuf_addf(&type, "%s; transfer-syntax=%s", offers[chosen].type, syntax);
    if (p->total > SMALL || strcmp(httpd_method(r), "HEAD") == 0) {
        httpd_reply_stream(r, 200, type.data, p->total, &stream, p);
        return;
    }
    buf = mem_alloc((size_t)p->total);
    n = pixels_fill(p, buf, (size_t)p->total, true);
    if (n == (int64_t)p->total) {
        httpd_reply(r, 200, type.data, buf, (size_t)n);
        buf = NULL;
    } else {
        web_fail(r, n < 0 ? (int)n : ERR_LOST);
    }
    mem_free(buf);
    pixels_close(p);
}

/* Answers with the frames that were found; takes p over. */
static void pixels_reply(struct pixels *p, struct httpd_req *r)
{
    web_head_free(p->w, &p->head); /* its bytes: a slow client shall not hold them */
    if (!p->head.has_pixels && !p->head.deflated)
        httpd_reply_text(r, 404, "The instance has no Pixel Data.");
    else if (p->head.deflated || strcmp(p->head.syntax, SYNTAX_BIG) == 0)
        httpd_reply_text(r, 406,
                         "Frames of transfer syntax %s are not converted: retrieve the instance "
                         "as application/dicom.",
                         p->head.syntax);
    else if (p->err == ERR_NOENT)
        httpd_reply_text(r, 404, "There is no such frame.");
    else if (p->err == ERR_UNSUPPORTED)
        httpd_reply_text(r, 406,
                         "The frames cannot be told apart: retrieve the instance as "
                         "application/dicom.");
    else if (p->err < 0)
        web_fail(r, p->err);
    else {
        send_frames(p, r);
        return;
    }
    pixels_close(p);
}

/* Reads the head, and goes on by `then`; NULL when it has answered. Takes `wanted` over. */
static struct pixels *pixels_new(struct dicomweb *w, struct httpd_req *r, const struct route *route,
                                 web_head_then then, bool bulk, uint32_t *wanted, size_t count)
{
    struct web_item item = {route->study, route->series, route->instance, NULL, 0};
    struct pixels *p = mem_zalloc(sizeof(*p));
    int err;

    p->w = w;
    p->route = route;
    p->bulk = bulk;
    p->wanted = wanted;
    p->wanted_count = count;
    web_base(r, &p->base);
    err = web_head_get(w, &item, then, p, &p->head);
    if (err == 0)
        return p;
    web_fail(r, err);
    pixels_close(p);
    return NULL;
}

void frames_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route)
{
    uint32_t *frames = mem_calloc(ROUTE_FRAMES_MAX, sizeof(frames[0]));
    struct pixels *p;
    size_t count;

    if (route_frames(route->rest[0], frames, &count) < 0) {
        mem_free(frames);
        httpd_reply_text(r, 400, "Frames are numbers from 1, joined by commas, at most %d.",
                         ROUTE_FRAMES_MAX);
        return;
    }
    p = pixels_new(w, r, route, find, false, frames, count);
    if (p)
        pixels_reply(p, r);
}

/* ---- Other bulk data ------------------------------------------------------------------------- */

static bool is_pixel_data(const struct route *route)
{
    return route->rest_count == 1 && strcasecmp(route->rest[0], "7FE00010") == 0;
}

/* A value out of the header, by the path that the metadata's BulkDataURI gave. */
static void value_reply(struct pixels *p, struct httpd_req *r)
{
    static const struct mime_offer offer = {.type = "application/octet-stream"};
    STRBUF_AUTO struct strbuf path = STRBUF_INIT;
    struct strbuf value = STRBUF_INIT;
    struct dcm_header *header;
    size_t len;
    char vr[3];
    int err = dcm_header_parse(p->head.bytes + p->head.dataset_off, p->head.header_len,
                               p->head.syntax, &header);

    if (err < 0) {
        web_fail(r, err);
        return;
    }
    for (size_t i = 0; i < p->route->rest_count; i++)
        strbuf_addf(&path, "%s%s", i ? "/" : "", p->route->rest[i]);
    if (!dcm_header_bulk(header, path.data, &value, vr)) {
        httpd_reply_text(r, 404, "The instance has no such bulk data.");
    } else if (web_choose(r, &offer, 1) == 0) {
        len = value.len;
        httpd_reply(r, 200, offer.type, strbuf_take(&value), len);
    }
    strbuf_free(&value);
    dcm_header_free(header);
}

void bulkdata_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route)
{
    bool pixels = is_pixel_data(route);
    struct pixels *p = pixels_new(w, r, route, pixels ? find : NULL, true, NULL, 0);

    if (!p)
        return;
    if (pixels) {
        pixels_reply(p, r);
        return;
    }
    value_reply(p, r);
    pixels_close(p);
}

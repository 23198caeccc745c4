/* A Part 10 stream cut into content; see study_cut.h. */
#include "daemon/study_cut.h"

#include "lib/base/check.h"
#include "lib/base/err.h"

#define CUT_PARSE_MAX (16u << 20)
#define CUT_HEAD_MAX  (1u << 20) /* a Part 10 head longer than this is not one */
#define CUT_SPARE     64u        /* pieces kept for chunks that are not full */

void study_cut_init(struct study_cut *c, struct content_put *to, bool parsed, uint64_t fits)
{
    *c = (struct study_cut){.to = to, .parsed = parsed, .fits = fits, .header = -1, .frame = -1};
}

static void keep_for_parse(struct study_cut *c, const uint8_t *p, size_t n)
{
    size_t room = CUT_PARSE_MAX - c->parse.len;

    if (c->parse_ended || !c->parsed)
        return;
    strbuf_add(&c->parse, p, n < room ? n : room);
    if (n >= room)
        c->parse_ended = true;
}

/* Would what may still come fit into the recipe only in full chunks? Asked where a frame begins, so
 * that the same bytes are always cut in the same places, however they arrive. */
static bool cut_is_long(const struct study_cut *c)
{
    return c->fits > c->at &&
           content_put_pieces_left(c->to) < (c->fits - c->at) / CHUNK_MAX + CUT_SPARE;
}

static int put_frame(struct study_cut *c, const uint8_t *p, const struct cut *cut)
{
    if (c->cutter.scan.deflated)
        keep_for_parse(c, p, cut->len);
    else
        c->parse_ended = true;
    if (cut->begins)
        content_put_end_chunk(c->to, &c->frame);
    return content_put_bytes(c->to, &c->frame, c->cutter.opaque ? CONTENT_OPAQUE : 0, p, cut->len);
}

static int put_dataset(struct study_cut *c, const uint8_t *p, size_t n)
{
    int rc = 0;

    while (rc == 0 && n) {
        struct cut cut;

        if (c->plain)
            return content_put_bytes(c->to, &c->frame, 0, p, n);
        cutter_next(&c->cutter, p, n, &cut);
        CHECK(cut.len >= 1 && cut.len <= n);
        c->plain = cut.kind == CUTTER_FRAME && cut.begins && cut_is_long(c);
        if (cut.kind == CUTTER_FRAME) {
            rc = put_frame(c, p, &cut);
        } else {
            keep_for_parse(c, p, cut.len);
            rc = content_put_bytes(c->to, &c->header, 0, p, cut.len);
        }
        c->at += cut.len;
        p += cut.len;
        n -= cut.len;
    }
    return rc;
}

/* Collects the stream's start until the Part 10 head is whole; then the rest is data set. */
static int put_start(struct study_cut *c, const uint8_t *p, size_t n)
{
    int64_t chunk = -1;
    size_t off;
    int rc;

    strbuf_add(&c->start, p, n);
    rc = dcm_head_parse(c->start.data, c->start.len, &c->head);
    if (rc == ERR_AGAIN)
        return c->start.len > CUT_HEAD_MAX ? ERR_DICOM : 0;
    if (rc < 0)
        return rc;
    off = c->head.dataset_off;
    if (off > c->start.len)
        return ERR_DICOM;
    c->headed = true;
    c->at = off;
    cutter_init(&c->cutter, c->head.transfer_syntax, CHUNK_MAX);
    rc = content_put_bytes(c->to, &chunk, c->parsed ? CONTENT_UNDIGESTED : 0, c->start.data, off);
    content_put_end_chunk(c->to, &chunk);
    if (rc == 0)
        rc = put_dataset(c, (const uint8_t *)c->start.data + off, c->start.len - off);
    strbuf_free(&c->start);
    return rc;
}

int study_cut_append(struct study_cut *c, const void *p, size_t n)
{
    return c->headed ? put_dataset(c, p, n) : put_start(c, p, n);
}

void study_cut_end(struct study_cut *c)
{
    content_put_end_chunk(c->to, &c->frame);
    content_put_end_chunk(c->to, &c->header);
}

void study_cut_free(struct study_cut *c)
{
    strbuf_free(&c->start);
    strbuf_free(&c->parse);
}

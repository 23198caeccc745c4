/* Decides how much of a data set is fit for DCMTK.
 *
 * DCMTK reads data sets by recursion, one stack frame or more for each sequence and item, and
 * believes lengths enough to allocate by them. So the bytes are walked first, by a loop with a
 * small stack of its own: nothing nests deeper than DCM_WALK_DEPTH_MAX, every length lies inside
 * what holds it, only sequences have an undefined length, and elements (which DCMTK blows up from 8
 * bytes to some 250) are counted. What DCMTK gets to see is the run of whole top-level elements
 * that passed.
 *
 * For that the walk must enter every value that DCMTK would enter. In explicit VR the stream says
 * which; in implicit VR the data dictionary does, which is why it is asked here too, and why
 * dcm_init keeps private dictionaries out of DCMTK: their entries depend on more than the tag.
 *
 * DCMTK sorts elements by insertion, from the end: free for elements in order, as the standard
 * wants them, quadratic for a data set written backwards. A few strays are let through.
 */
#include "lib/dicom/impl.h"

#include <string.h>

struct dcm_walk_frame {
    uint32_t last;  /* the tag before */
    size_t end;     /* the contents end here at the latest */
    bool defined;   /* they end exactly there */
    bool fragments; /* of encapsulated Pixel Data: its items are opaque */
    bool foreign;   /* in an UN of undefined length: implicit VR little endian */
};

/* Frames alternate: 1, 3, ... are sequences, 2, 4, ... their items. */
struct dcm_walk_state {
    struct dcm_walk *w;
    const uint8_t *p;
    size_t pos;
    unsigned depth, strays;
    struct dcm_walk_frame frames[DCM_WALK_DEPTH_MAX + 1]; /* [0]: the data set */
};

static bool dcm_walk_enter(struct dcm_walk_state *s, uint32_t len, bool fragments, bool foreign)
{
    const struct dcm_walk_frame *up = &s->frames[s->depth];
    struct dcm_walk_frame f = {.end = up->end,
                               .defined = len != DCM_UNDEFINED,
                               .fragments = fragments,
                               .foreign = foreign || up->foreign};

    if (s->depth == DCM_WALK_DEPTH_MAX)
        return false;
    if (f.defined) {
        if (len > up->end - s->pos)
            return false;
        f.end = s->pos + len;
    }
    s->frames[++s->depth] = f;
    return true;
}

static bool dcm_walk_skip(struct dcm_walk_state *s, uint32_t len)
{
    if (len > s->frames[s->depth].end - s->pos)
        return false;
    s->pos += len;
    return true;
}

/* In a sequence: an item or the delimiter. */
static bool dcm_walk_in_sequence(struct dcm_walk_state *s, const struct dcm_element *e)
{
    const struct dcm_walk_frame *f = &s->frames[s->depth];

    if (e->tag == DCM_TAG_SEQUENCE_END && !f->defined && e->len == 0) {
        s->depth--;
        return true;
    }
    if (e->tag != DCM_TAG_ITEM)
        return false;
    if (f->fragments)
        return dcm_walk_skip(s, e->len);
    return dcm_walk_enter(s, e->len, false, false);
}

/* Has the element items inside, as DCMTK sees it? */
static bool dcm_walk_is_sequence(const struct dcm_walk_state *s, const struct dcm_element *e,
                                 bool *ret_foreign)
{
    bool undefined = e->len == DCM_UNDEFINED;
    char kind;

    *ret_foreign = false;
    if (e->vr[0]) {
        *ret_foreign = undefined && strcmp(e->vr, "UN") == 0;
        return strcmp(e->vr, "SQ") == 0 || *ret_foreign;
    }
    kind = s->w->dictionary(e->tag);
    return kind == 'S' || (kind == 'U' && undefined);
}

/* In the data set or an item: an element or the item's delimiter. */
static bool dcm_walk_in_item(struct dcm_walk_state *s, const struct dcm_element *e)
{
    struct dcm_walk_frame *f = &s->frames[s->depth];
    bool foreign;

    if (e->tag == DCM_TAG_ITEM_END && s->depth > 0 && !f->defined && e->len == 0) {
        s->depth--;
        return true;
    }
    if (e->tag >> 16 == 0xfffe || (e->tag <= f->last && ++s->strays > DCM_WALK_STRAYS_MAX))
        return false;
    f->last = e->tag;
    if (dcm_walk_is_sequence(s, e, &foreign))
        return dcm_walk_enter(s, e->len, false, foreign);
    if (e->len == DCM_UNDEFINED)
        return e->tag == DCM_TAG_PIXELS && e->vr[0] == 'O' &&
               dcm_walk_enter(s, e->len, true, false);
    return dcm_walk_skip(s, e->len);
}

/* Leaves frames of defined length that end here. False at the end of the bytes. */
static bool dcm_walk_settle(struct dcm_walk_state *s)
{
    while (s->depth > 0 && s->frames[s->depth].defined && s->pos == s->frames[s->depth].end)
        s->depth--;
    if (s->depth == 0)
        s->w->good = s->pos;
    return s->frames[s->depth].end - s->pos >= 8;
}

/* DCMTK knows VRs of its own making ("ox", "px") by name, even when a stream says them. */
static bool dcm_walk_internal(const char *vr)
{
    return (vr[0] >= 'a' && vr[0] <= 'z') || (vr[0] && vr[1] >= 'a' && vr[1] <= 'z');
}

static bool dcm_walk_step(struct dcm_walk_state *s)
{
    const struct dcm_walk_frame *f = &s->frames[s->depth];
    bool implicit_vr = s->w->implicit_vr || f->foreign;
    bool big_endian = s->w->big_endian && !f->foreign;
    size_t have = f->end - s->pos;
    struct dcm_element e = dcm_element_read(s->p + s->pos, have, implicit_vr, big_endian);

    if (e.head_len > have || dcm_walk_internal(e.vr) ||
        (s->depth == 0 && dcm_tag_is_pixels(e.tag)) || ++s->w->count > DCM_WALK_ELEMENTS_MAX)
        return false;
    s->pos += e.head_len;
    return s->depth & 1 ? dcm_walk_in_sequence(s, &e) : dcm_walk_in_item(s, &e);
}

void dcm_walk_run(struct dcm_walk *w, const uint8_t *p, size_t n)
{
    struct dcm_walk_state s = {.w = w, .p = p};

    w->good = 0;
    w->count = 0;
    s.frames[0].end = n;
    s.frames[0].defined = true;
    if (n >= 8)
        w->implicit_vr = dcm_element_implicit(p, w->implicit_vr, w->big_endian);
    while (dcm_walk_settle(&s) && dcm_walk_step(&s))
        continue;
}

/* What retrieves begin with: which instances there are, and the head of one of them.
 *
 * Both run as one fiber for one env_call: a round trip between a connection's thread and the loop
 * costs more than what is done there. Memory on the loop is bounded by two semaphores: `queries`
 * for catalogue rows, which are turned into a compact list at once, and `large_heads` for the rare
 * headers over a megabyte.
 */
#include "proto/dicomweb/web.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"

/* ---- Lists ----------------------------------------------------------------------------------- */

/* An item while `text` still grows: offsets instead of pointers. */
struct raw_item {
    size_t study, series, instance, syntax;
    uint64_t bytes;
};

struct list_call {
    struct dicomweb *w;
    const struct route *route;
    struct strbuf text;
    struct raw_item *items;
    size_t count, cap, syntax_count;
    size_t syntaxes[MIME_OFFERS_MAX];
    int err;
};

static size_t add_text(struct list_call *c, const char *s)
{
    size_t at = c->text.len;

    strbuf_add(&c->text, s, strlen(s) + 1);
    return at;
}

/* The text where it is the same as before, else a new one: rows of a series follow each other. */
static size_t same_or_new(struct list_call *c, size_t before, const char *s)
{
    if (c->count > 0 && strcmp(c->text.data + before, s) == 0)
        return before;
    return add_text(c, s);
}

static int syntax_text(struct list_call *c, const char *s, size_t *ret)
{
    for (size_t i = 0; i < c->syntax_count; i++)
        if (strcmp(c->text.data + c->syntaxes[i], s) == 0) {
            *ret = c->syntaxes[i];
            return 0;
        }
    if (c->syntax_count == MIME_OFFERS_MAX)
        return ERR_TOOBIG;
    *ret = c->syntaxes[c->syntax_count++] = add_text(c, s);
    return 0;
}

static int add_row(struct list_call *c, const struct object_row *row)
{
    struct raw_item item = {.bytes = row->bytes}, *last;
    int r;

    if (c->count == WEB_LIST_MAX)
        return ERR_TOOBIG;
    if (c->count == c->cap) {
        c->cap = c->cap ? c->cap * 2 : 16;
        c->items = mem_realloc(c->items, c->cap * sizeof(c->items[0]));
    }
    last = c->count ? &c->items[c->count - 1] : &item;
    item.study = same_or_new(c, last->study, row->study_uid);
    item.series = same_or_new(c, last->series, row->series_uid);
    item.instance = add_text(c, row->instance_uid);
    r = syntax_text(c, row->transfer_syntax_uid, &item.syntax);
    if (r < 0)
        return r;
    c->items[c->count++] = item;
    return 0;
}

static int list_rows(struct list_call *c)
{
    struct object_query q = {
        .level = OBJECT_INSTANCE,
        .study_uid = c->route->study,
        .series_uid = c->route->series,
        .instance_uid = c->route->instance,
    };
    bool more = true;

    while (more) {
        struct object_rows *rows;
        int r;

        q.offset = c->count;
        r = object_query(c->w->os, &q, &rows);
        if (r < 0)
            return r;
        for (size_t i = 0; i < rows->count && r == 0; i++)
            r = add_row(c, &rows->rows[i]);
        more = rows->more && rows->count > 0;
        mem_free(rows);
        if (r < 0)
            return r;
    }
    return c->count ? 0 : ERR_NOENT;
}

static void list_fiber(void *arg)
{
    struct list_call *c = arg;

    fiber_sem_take(&c->w->queries, 1);
    c->err = list_rows(c);
    fiber_sem_give(&c->w->queries, 1);
}

static void list_finish(struct list_call *c, struct web_list *ret)
{
    struct web_list l = {.count = c->count, .syntax_count = c->syntax_count};

    l.text = strbuf_take(&c->text);
    l.items = mem_calloc(c->count, sizeof(l.items[0]));
    for (size_t i = 0; i < c->count; i++)
        l.items[i] = (struct web_item){
            .study = l.text + c->items[i].study,
            .series = l.text + c->items[i].series,
            .instance = l.text + c->items[i].instance,
            .syntax = l.text + c->items[i].syntax,
            .bytes = c->items[i].bytes,
        };
    for (size_t i = 0; i < c->syntax_count; i++)
        l.syntaxes[i] = l.text + c->syntaxes[i];
    *ret = l;
}

int web_list_get(struct dicomweb *w, const struct route *route, struct web_list *ret_list)
{
    struct list_call c = {.w = w, .route = route};
    int r = env_call(w->env, "web-list", list_fiber, &c);

    if (r == 0)
        r = c.err;
    if (r == 0)
        list_finish(&c, ret_list);
    strbuf_free(&c.text);
    mem_free(c.items);
    return r;
}

void web_list_free(struct web_list *l)
{
    mem_free(l->items);
    mem_free(l->text);
    *l = (struct web_list){0};
}

/* ---- Heads ----------------------------------------------------------------------------------- */

#define HEAD_FIRST (16u << 10) /* most headers fit */
#define HEAD_SMALL (1u << 20)  /* beyond it, one of large_heads is held */

struct head_call {
    struct dicomweb *w;
    const struct web_item *item;
    web_head_then then;
    void *arg;
    struct web_head h;
    struct object *o;
    struct dcm_head head;
    struct dcm_scan scan;
    bool head_done;
    int err;
    struct fiber_group *group; /* of a batch */
};

/* Looks at what is there so far: 1 when it is enough, 0 when more is needed. */
static int head_look(struct head_call *c)
{
    struct web_head *h = &c->h;
    size_t at;
    int r;

    if (!c->head_done) {
        r = dcm_head_parse(h->bytes, h->len, &c->head);
        if (r == ERR_AGAIN && h->len < h->bytes_total)
            return 0;
        if (r < 0)
            return r == ERR_AGAIN ? ERR_DICOM : r;
        c->head_done = true;
        dcm_scan_init(&c->scan, c->head.transfer_syntax);
    }
    if (c->scan.deflated)
        return h->len == h->bytes_total; /* no cutting what is compressed as a whole */
    at = c->head.dataset_off + (size_t)c->scan.pos;
    if (at < h->len)
        dcm_scan_push(&c->scan, h->bytes + at, h->len - at);
    return c->scan.found || c->scan.end_of_use || h->len == h->bytes_total;
}

static int head_grow(struct head_call *c, size_t want)
{
    struct web_head *h = &c->h;
    size_t got;
    int r;

    if (want > h->bytes_total)
        want = (size_t)h->bytes_total;
    if (want > OBJECT_HEADER_MAX)
        return ERR_TOOBIG;
    if (want > HEAD_SMALL && c->group)
        return ERR_AGAIN;
    if (want > HEAD_SMALL && !h->large) {
        fiber_sem_take(&c->w->large_heads, 1);
        h->large = true;
    }
    h->bytes = mem_realloc(h->bytes, want);
    r = object_read(c->o, h->len, h->bytes + h->len, want - h->len, &got);
    if (r < 0)
        return r;
    if (got != want - h->len)
        return ERR_LOST;
    h->len = want;
    return 0;
}

static int head_read(struct head_call *c)
{
    const struct object_row *row = object_get_row(c->o);
    size_t want = HEAD_FIRST;
    int r;

    c->h.bytes_total = row->bytes;
    if (row->header_hint > 0 && row->header_hint < HEAD_SMALL)
        want = (size_t)row->header_hint;
    for (;; want *= 4) {
        r = head_grow(c, want);
        if (r == 0)
            r = head_look(c);
        if (r != 0)
            return r < 0 ? r : 0;
    }
}

static void head_finish(struct head_call *c)
{
    struct web_head *h = &c->h;
    const struct dcm_scan *s = &c->scan;

    h->dataset_off = c->head.dataset_off;
    h->header_len = s->found ? (size_t)s->pixel_off : h->len - h->dataset_off;
    h->has_pixels = s->found;
    h->encapsulated = s->encapsulated;
    h->deflated = s->deflated;
    h->pixel_off = h->dataset_off + s->pixel_off;
    h->pixel_len = s->pixel_len;
    h->rows = s->rows;
    h->columns = s->columns;
    h->samples = s->samples;
    h->bits_allocated = s->bits_allocated;
    h->frames = s->frames;
    memcpy(h->syntax, c->head.transfer_syntax, sizeof(h->syntax));
}

/* Of a head that came to nothing. */
static void head_drop(struct head_call *c)
{
    mem_free(c->h.bytes);
    if (c->h.large)
        fiber_sem_give(&c->w->large_heads, 1);
    c->h = (struct web_head){0};
}

static void head_fiber(void *arg)
{
    struct head_call *c = arg;
    const struct web_item *it = c->item;
    bool taken = false;

    c->err = object_open(c->w->os, it->study, it->series, it->instance, &c->o);
    if (c->err == 0)
        c->err = head_read(c);
    if (c->err == 0) {
        head_finish(c);
        if (c->then)
            c->err = c->then(c->arg, c->o, &c->h);
        taken = c->then && c->err == 0;
    }
    if (!taken)
        object_close(c->o);
    if (c->err < 0)
        head_drop(c);
    if (c->group)
        fiber_group_done(c->group);
}

int web_head_get(struct dicomweb *w, const struct web_item *item, web_head_then then, void *arg,
                 struct web_head *ret_head)
{
    struct head_call c = {.w = w, .item = item, .then = then, .arg = arg};
    int r = env_call(w->env, "web-head", head_fiber, &c);

    if (r == 0)
        r = c.err;
    if (r == 0)
        *ret_head = c.h;
    return r;
}

struct heads_call {
    struct head_call *calls;
    size_t n;
};

static void heads_fiber(void *arg)
{
    struct heads_call *b = arg;
    struct fiber_group group;

    fiber_group_init(&group);
    fiber_group_add(&group, b->n);
    for (size_t i = 0; i < b->n; i++) {
        b->calls[i].group = &group;
        fiber_spawn(b->calls[i].w->env, "web-head", head_fiber, &b->calls[i]);
    }
    fiber_group_wait(&group);
}

void web_heads_get(struct dicomweb *w, const struct web_item *items, size_t n,
                   struct web_head *ret_heads, int *ret_errs)
{
    struct heads_call b = {.calls = mem_calloc(n, sizeof(b.calls[0])), .n = n};
    int r;

    for (size_t i = 0; i < n; i++) {
        b.calls[i].w = w;
        b.calls[i].item = &items[i];
    }
    r = env_call(w->env, "web-heads", heads_fiber, &b);
    for (size_t i = 0; i < n; i++) {
        ret_errs[i] = r < 0 ? r : b.calls[i].err;
        ret_heads[i] = b.calls[i].h;
    }
    mem_free(b.calls);
}

static void head_give(void *arg)
{
    struct dicomweb *w = arg;

    fiber_sem_give(&w->large_heads, 1);
}

void web_head_free(struct dicomweb *w, struct web_head *h)
{
    mem_free(h->bytes);
    h->bytes = NULL;
    if (h->large)
        env_call(w->env, "web-head-give", head_give, w);
    h->large = false;
}

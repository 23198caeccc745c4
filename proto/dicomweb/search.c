/* QIDO-RS: catalogue rows, turned into JSON as they are sent.
 *
 * Rows stay in memory for as long as the client takes to read them, so what a client gets of that
 * is bounded. A few answers at a time may have all their rows (10000 are some 20 MiB); the others
 * have a page of them, and ask for the next when it is sent. The catalogue finds a page by walking
 * to it, so pages cost the loop more, and what is stored or deleted between two of them may show a
 * row twice or not at all. Hence an answer that has begun in pages gets the rest at once when
 * another one has ended.
 */
#include "proto/dicomweb/web.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "proto/dicomweb/qido.h"

#define SEARCH_PAGE 500u /* rows; some 1 MiB */

struct search {
    struct dicomweb *w;
    struct qido q;
    struct object_query query;
    /* UIDs of the path, kept: the answer outlives its request. */
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1];
    struct object_rows *rows; /* the page */
    size_t next;              /* of its rows */
    uint64_t before;          /* rows of earlier pages */
    bool whole;               /* holds one of whole_searches */
    bool truncated;           /* there are rows beyond the server's own limit */
    struct strbuf base;
    int err;
};

/* On the loop. */
static void search_drop(void *arg)
{
    struct search *s = arg;

    mem_free(s->rows);
    s->rows = NULL;
    if (s->whole)
        fiber_sem_give(&s->w->whole_searches, 1);
    s->whole = false;
}

/* What the headers say is known before the first page is sent: are there rows behind the last? */
static int search_look_beyond(struct search *s)
{
    struct object_query q = s->query;
    struct object_rows *rows;
    int r;

    if (s->before > 0 || s->q.limited || !s->rows->more)
        return 0;
    q.offset = s->q.offset + s->q.limit;
    q.limit = 1;
    s->truncated = s->query.limit == s->q.limit;
    if (s->truncated)
        return 0;
    r = object_query(s->w->os, &q, &rows);
    if (r < 0)
        return r;
    s->truncated = rows->count > 0;
    mem_free(rows);
    return 0;
}

static int search_query(struct search *s)
{
    int r = object_query(s->w->os, &s->query, &s->rows);

    return r < 0 ? r : search_look_beyond(s);
}

/* The next rows, in place of those that were sent. */
static void search_fiber(void *arg)
{
    struct search *s = arg;
    uint64_t rest;

    s->before += s->next;
    s->next = 0;
    search_drop(s);
    rest = s->q.limit - s->before;
    s->whole = rest > SEARCH_PAGE && fiber_sem_try(&s->w->whole_searches, 1);
    s->query.offset = s->q.offset + s->before;
    s->query.limit = s->whole || rest < SEARCH_PAGE ? rest : SEARCH_PAGE;
    fiber_sem_take(&s->w->queries, 1);
    s->err = search_query(s);
    fiber_sem_give(&s->w->queries, 1);
    if (s->whole && s->rows && s->rows->count <= SEARCH_PAGE) {
        fiber_sem_give(&s->w->whole_searches, 1);
        s->whole = false;
    }
}

static int search_page(struct search *s)
{
    int r = env_call(s->w->env, "web-search", search_fiber, s);

    return r < 0 ? r : s->err;
}

static bool search_page_ended(const struct search *s)
{
    return s->rows && s->next == s->rows->count && s->rows->more &&
           s->before + s->next < s->q.limit;
}

static int search_next(void *arg, struct strbuf *out)
{
    struct search *s = arg;
    int r = search_page_ended(s) ? search_page(s) : 0;

    if (r < 0)
        return r;
    if (!s->rows || s->next == s->rows->count)
        return 0;
    qido_row_json(&s->q, &s->rows->rows[s->next++], s->base.data, out);
    return 1;
}

static void search_free(void *arg)
{
    struct search *s = arg;

    if (s->whole)
        env_call(s->w->env, "web-search-drop", search_drop, s);
    qido_free(&s->q);
    mem_free(s->rows);
    strbuf_free(&s->base);
    mem_free(s);
}

static enum object_level level_of(const struct route *route)
{
    return route->kind == ROUTE_STUDIES  ? OBJECT_STUDY
           : route->kind == ROUTE_SERIES ? OBJECT_SERIES
                                         : OBJECT_INSTANCE;
}

/* Reads the arguments; false when it has answered. */
static bool search_parse(struct search *s, struct httpd_req *r, const struct route *route)
{
    size_t count = httpd_arg_count(r);
    struct qido_arg *args = mem_calloc(count, sizeof(args[0]));
    int err;

    for (size_t i = 0; i < count; i++)
        args[i] = (struct qido_arg){httpd_arg_name(r, i), httpd_arg_value(r, i)};
    err = qido_parse(level_of(route), route->study != NULL, route->series != NULL, args, count,
                     "accept", &s->q);
    mem_free(args);
    if (err < 0)
        httpd_reply_text(r, 400, "%s", s->q.error);
    return err == 0;
}

/* A UID of the path, kept; NULL: not named. */
static const char *keep_uid(char kept[OBJECT_UID_MAX + 1], const char *uid)
{
    if (!uid)
        return NULL;
    snprintf(kept, OBJECT_UID_MAX + 1, "%s", uid);
    return kept;
}

static int search_run(struct search *s, const struct route *route)
{
    s->query = (struct object_query){
        .level = s->q.level,
        .study_uid = keep_uid(s->study, route->study),
        .series_uid = keep_uid(s->series, route->series),
        .matches = s->q.matches,
        .match_count = s->q.match_count,
    };
    qido_restrict(&s->q, &s->query);
    if (s->q.limit == 0)
        return 0; /* none asked for; to the store it would mean all */
    return search_page(s);
}

void search_reply(struct dicomweb *w, struct httpd_req *r, const struct route *route)
{
    static const struct web_items items = {search_next, search_free};
    const char *type = web_choose_json(r);
    struct search *s;
    int err;

    if (!type)
        return;
    s = mem_zalloc(sizeof(*s));
    s->w = w;
    web_base(r, &s->base);
    if (!search_parse(s, r, route)) {
        search_free(s);
        return;
    }
    err = search_run(s, route);
    if (err < 0) {
        web_fail(r, err);
        search_free(s);
        return;
    }
    if (s->q.warning)
        httpd_reply_header(r, "Warning", s->q.warning);
    if (s->truncated)
        httpd_reply_header(r, "Warning",
                           "299 filmroom \"The number of results exceeded the maximum supported by "
                           "the server. Additional results can be requested.\"");
    web_reply_items(r, type, true, &items, s);
}

/* QIDO-RS: one catalogue query, rows turned into JSON as they are sent. */
#include "proto/dicomweb/web.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "proto/dicomweb/qido.h"

struct search {
    struct dicomweb *w;
    struct qido q;
    struct object_query query;
    struct object_rows *rows;
    size_t next;
    struct strbuf base;
    int err;
};

static void search_fiber(void *arg)
{
    struct search *s = arg;

    fiber_sem_take(&s->w->queries, 1);
    s->err = object_query(s->w->os, &s->query, &s->rows);
    fiber_sem_give(&s->w->queries, 1);
}

static int search_next(void *arg, struct strbuf *out)
{
    struct search *s = arg;

    if (!s->rows || s->next == s->rows->count)
        return 0;
    qido_row_json(&s->q, &s->rows->rows[s->next++], s->base.data, out);
    return 1;
}

static void search_free(void *arg)
{
    struct search *s = arg;

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

static int search_run(struct search *s, const struct route *route)
{
    int r;

    s->query = (struct object_query){
        .level = s->q.level,
        .study_uid = route->study,
        .series_uid = route->series,
        .matches = s->q.matches,
        .match_count = s->q.match_count,
        .offset = s->q.offset,
        .limit = s->q.limit,
    };
    if (s->q.limit == 0)
        return 0; /* none asked for; to the store it would mean all */
    r = env_call(s->w->env, "web-search", search_fiber, s);
    return r < 0 ? r : s->err;
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
    if (s->rows && s->rows->more && !s->q.limited)
        httpd_reply_header(r, "Warning",
                           "299 filmroom \"The number of results exceeded the maximum supported by "
                           "the server. Additional results can be requested.\"");
    web_reply_items(r, type, true, &items, s);
}

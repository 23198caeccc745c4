/* Paths of DICOMweb resources. */
#include "proto/dicomweb/route.h"

#include <stdbool.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/dicom/dcm.h"

/* What follows an instance: nothing, or one of its parts. */
static int instance_rest(const char *const *seg, size_t n, struct route *r)
{
    if (n == 0)
        r->kind = ROUTE_RETRIEVE;
    else if (n == 1 && strcmp(seg[0], "metadata") == 0)
        r->kind = ROUTE_METADATA;
    else if (n == 2 && strcmp(seg[0], "frames") == 0)
        r->kind = ROUTE_FRAMES;
    else if (n >= 2 && strcmp(seg[0], "bulkdata") == 0)
        r->kind = ROUTE_BULKDATA;
    else
        return ERR_NOENT;
    r->rest = seg + 1;
    r->rest_count = n >= 2 ? n - 1 : 0;
    return 0;
}

static int series_rest(const char *const *seg, size_t n, struct route *r)
{
    if (n == 0)
        r->kind = ROUTE_RETRIEVE;
    else if (n == 1 && strcmp(seg[0], "metadata") == 0)
        r->kind = ROUTE_METADATA;
    else if (n == 1 && strcmp(seg[0], "instances") == 0)
        r->kind = ROUTE_INSTANCES;
    else if (n >= 2 && strcmp(seg[0], "instances") == 0) {
        r->instance = seg[1];
        return instance_rest(seg + 2, n - 2, r);
    } else
        return ERR_NOENT;
    return 0;
}

static int study_rest(const char *const *seg, size_t n, struct route *r)
{
    if (n == 0)
        r->kind = ROUTE_RETRIEVE;
    else if (n == 1 && strcmp(seg[0], "metadata") == 0)
        r->kind = ROUTE_METADATA;
    else if (n == 1 && strcmp(seg[0], "series") == 0)
        r->kind = ROUTE_SERIES;
    else if (n == 1 && strcmp(seg[0], "instances") == 0)
        r->kind = ROUTE_INSTANCES;
    else if (n >= 2 && strcmp(seg[0], "series") == 0) {
        r->series = seg[1];
        return series_rest(seg + 2, n - 2, r);
    } else
        return ERR_NOENT;
    return 0;
}

static bool uid_ok(const char *uid)
{
    return !uid || dcm_uid_valid(uid);
}

int route_parse(const char *const *segments, size_t count, struct route *ret_route)
{
    struct route r = {0};
    int err = 0;

    if (count == 1 && strcmp(segments[0], "studies") == 0)
        r.kind = ROUTE_STUDIES;
    else if (count == 1 && strcmp(segments[0], "series") == 0)
        r.kind = ROUTE_SERIES;
    else if (count == 1 && strcmp(segments[0], "instances") == 0)
        r.kind = ROUTE_INSTANCES;
    else if (count >= 2 && strcmp(segments[0], "studies") == 0) {
        r.study = segments[1];
        err = study_rest(segments + 2, count - 2, &r);
    } else
        err = ERR_NOENT;
    if (err < 0)
        return err;
    if (!uid_ok(r.study) || !uid_ok(r.series) || !uid_ok(r.instance))
        return ERR_DICOM_UID;
    *ret_route = r;
    return 0;
}

const char *route_methods(const struct route *route)
{
    if (route->kind == ROUTE_STUDIES)
        return "GET, HEAD, POST";
    if (route->kind != ROUTE_RETRIEVE)
        return "GET, HEAD";
    return route->series ? "GET, HEAD, DELETE" : "GET, HEAD, POST, DELETE";
}

int route_frames(const char *text, uint32_t frames[ROUTE_FRAMES_MAX], size_t *ret_count)
{
    size_t n = 0;

    for (const char *p = text;; p++) {
        uint64_t v = 0;
        const char *start = p;

        for (; *p >= '0' && *p <= '9' && v <= UINT32_MAX; p++)
            v = v * 10 + (uint64_t)(*p - '0');
        if (p == start || v == 0 || v > UINT32_MAX || (*p && *p != ','))
            return ERR_INVAL;
        if (n == ROUTE_FRAMES_MAX)
            return ERR_TOOBIG;
        frames[n++] = (uint32_t)v;
        if (!*p)
            break;
    }
    *ret_count = n;
    return 0;
}

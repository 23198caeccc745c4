/* DICOMweb resources: from a path to what it names (PS3.18 section 10.1). Pure. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define ROUTE_FRAMES_MAX 4096 /* frames of one request */

enum route_kind {
    ROUTE_STUDIES,   /* search; store */
    ROUTE_SERIES,    /* search; of a study or of all */
    ROUTE_INSTANCES, /* search; of a series, of a study, or of all */
    ROUTE_RETRIEVE,  /* a study, series or instance */
    ROUTE_METADATA,  /* of a study, series or instance */
    ROUTE_FRAMES,    /* of an instance */
    ROUTE_BULKDATA,  /* of an instance */
};

/* Texts point into the segments. */
struct route {
    enum route_kind kind;
    const char *study, *series, *instance; /* NULL: not named */
    const char *const *rest;               /* the frame list, or the path of the bulk data */
    size_t rest_count;
};

/* Segments are those after the prefix. ERR_NOENT: no such resource; ERR_DICOM_UID: a UID is not
 * one. */
int route_parse(const char *const *segments, size_t count, struct route *ret_route);

/* Methods for an Allow header. */
const char *route_methods(const struct route *route);

/* A frame list, "1,3,2": numbers from 1. ERR_INVAL, ERR_TOOBIG. */
int route_frames(const char *text, uint32_t frames[ROUTE_FRAMES_MAX], size_t *ret_count);

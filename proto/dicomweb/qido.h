/* QIDO-RS (PS3.18 sections 8.3.4 and 10.6): query arguments in, catalogue queries out; catalogue
 * rows in, DICOM JSON out. Pure.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/api/object.h"
#include "lib/base/strbuf.h"

#define QIDO_MATCHES_MAX  32
#define QIDO_INCLUDES_MAX 128
#define QIDO_LIMIT_MAX    10000 /* rows of one answer; the object store's own maximum */

struct qido_arg {
    const char *name, *value; /* decoded */
};

struct qido {
    enum object_level level;
    bool all_studies,
        all_series; /* the resource spans studies (series): rows carry their attributes */
    size_t match_count;
    struct object_match matches[QIDO_MATCHES_MAX]; /* values are owned */
    bool include_all;
    size_t include_count;
    uint32_t includes[QIDO_INCLUDES_MAX]; /* named by includefield, or matched on */
    uint64_t offset, limit;
    bool limited;        /* the client set the limit */
    const char *warning; /* value of a Warning header, constant; NULL: none */
    char error[200];     /* a sentence, when qido_parse failed */
};

/* Reads the arguments for a search of `level`. study and series tell whether the path names one.
 * ERR_INVAL, with the sentence in ret_qido->error; always leaves something for qido_free. The
 * arguments named `skip` (may be NULL) are another's. */
int qido_parse(enum object_level level, bool study, bool series, const struct qido_arg *args,
               size_t count, const char *skip, struct qido *ret_qido);
void qido_free(struct qido *q);

/* Restricts a query, where it names no UIDs itself, to those that the matches ask for, one each:
 * it then looks there only, and not through the whole catalogue. They stay the qido's. */
void qido_restrict(const struct qido *q, struct object_query *query);

/* One row as a DICOM JSON object. base: "http://host/dicom-web". */
void qido_row_json(const struct qido *q, const struct object_row *row, const char *base,
                   struct strbuf *out);

/* Appends the retrieve URL of a study, series (series not "") or instance. */
void qido_url(struct strbuf *out, const char *base, const char *study, const char *series,
              const char *instance);

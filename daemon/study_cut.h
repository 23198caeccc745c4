/* Cuts a Part 10 stream (PS3.10 section 7) into content: head, the rest of the header with whatever
 * follows Pixel Data, and each frame or piece of one become chunks of their own. So a data set sent
 * again in another wrapping, or the same pixels under another header, are found again.
 *
 * Instances are cut so, and objects that turn out to be Part 10: the same bytes then cost nothing
 * the second time, whichever door they came through.
 */
#pragma once

#include "daemon/content.h"
#include "dedup/cutter.h"
#include "lib/dicom/dcm.h"

struct study_cut {
    struct content_put *to;
    struct strbuf start; /* until the head is parsed */
    bool headed;
    struct dcm_head head;
    struct cutter cutter;
    bool parsed;         /* the header is to be parsed: keep its bytes */
    bool parse_ended;    /* Pixel Data was reached, or enough was seen */
    struct strbuf parse; /* the data set's first bytes */
    /* Where not 0, the stream may get so long, whatever its frames: once its recipe could not hold
     * the rest otherwise, that is cut into full chunks. */
    uint64_t fits;
    uint64_t at;           /* bytes put */
    bool plain;            /* from here on in full chunks */
    int64_t header, frame; /* the chunks being filled; -1: none */
};

/* `parsed`: keeps the header's first bytes in `parse`, and leaves the head out of the digest, which
 * is then the data set's. */
void study_cut_init(struct study_cut *c, struct content_put *to, bool parsed, uint64_t fits);
/* The next bytes. An error of dcm_head_parse (ERR_DICOM ...) where the stream is no Part 10; what
 * came so far is in `start` then, and nothing of it was put. Else as content_put_bytes. Suspends.
 */
int study_cut_append(struct study_cut *c, const void *p, size_t n);
void study_cut_end(struct study_cut *c); /* the stream's end: ends the chunks */
void study_cut_free(struct study_cut *c);

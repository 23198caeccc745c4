/* Made-up DICOM instances for the simulator: small Part 10 streams, each a function of numbers.
 *
 * An instance has a place (study, series, its number) and contents: variants of its data set, under
 * the same UIDs, and each under two heads. Frames come from a small pool, so that instances share
 * some; sizes go from a header alone to frames that are split.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/api/object.h"
#include "lib/base/strbuf.h"

#define INSTANCES         16u
#define INSTANCE_SIZE_MAX (512u << 10)
#define INSTANCE_STUDIES  2u
#define INSTANCE_SERIES   2u /* per study */
#define INSTANCE_VARIANTS 3
#define INSTANCE_HEADS    2
#define INSTANCE_CONTENTS (INSTANCE_VARIANTS * INSTANCE_HEADS) /* numbered from 1 */

static inline unsigned instance_series_of(unsigned index)
{
    return index / INSTANCE_STUDIES % INSTANCE_SERIES;
}

static inline unsigned instance_study_of(unsigned index)
{
    return index % INSTANCE_STUDIES;
}

void instance_study_uid(unsigned study, char ret_uid[OBJECT_UID_MAX + 1]);
void instance_series_uid(unsigned study, unsigned series, char ret_uid[OBJECT_UID_MAX + 1]);
void instance_uid(unsigned index, char ret_uid[OBJECT_UID_MAX + 1]);

/* Are two contents the same data set? */
bool instance_same(int a, int b);

/* Appends the stream of a content (1..INSTANCE_CONTENTS). */
void instance_make(unsigned index, int content, struct strbuf *out);

/* Appends a stream that no store may take; which of the kinds, 0..INSTANCE_BAD_KINDS-1. */
#define INSTANCE_BAD_KINDS 5u
void instance_make_bad(unsigned index, unsigned kind, struct strbuf *out);

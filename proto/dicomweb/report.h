/* The answer to a STOW-RS request: the Store Instances Response Module (PS3.18 section 10.5.3,
 * annex I). Pure.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "lib/api/object.h"
#include "lib/base/strbuf.h"

/* Failure Reason (0008,1197), PS3.18 table I.2-2, and PS3.7 annex C for the general ones. */
#define REPORT_NO_RESOURCES 0xA700u
#define REPORT_MISMATCH     0xA900u
#define REPORT_NOT_DICOM    0xC000u
#define REPORT_DUPLICATE    0x0111u
#define REPORT_FAILED       0x0110u

struct report {
    struct strbuf stored, failed, other; /* JSON items */
    size_t stored_count, failed_count;   /* failed: `other` included */
    size_t nospc, overload;              /* of the failed: why */
    const char *warning;                 /* the first, constant text; NULL: none */
    char study_uid[OBJECT_UID_MAX + 1];  /* of what was stored; "*" when of several studies */
};

void report_free(struct report *rep);

void report_stored(struct report *rep, const char *base, const struct object_put_result *result);

/* class and instance as far as they are known; "" both: the instance goes to Other Failures. */
void report_failed(struct report *rep, const char *class_uid, const char *instance_uid, int err);

/* The failure reason for an error code. */
unsigned report_reason(int err);

/* 200 all stored, 202 some, 409 none, 400 nothing that was DICOM, 507 and 503 when all failed for
 * lack of space or budget. */
unsigned report_status(const struct report *rep);

/* The whole as DICOM JSON. */
void report_json(const struct report *rep, const char *base, struct strbuf *out);

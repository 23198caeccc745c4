/* Store Instances Response Module as DICOM JSON. Items are written when they are known; attributes
 * are in tag order. An instance whose UIDs could not be read has no place in Failed SOP Sequence,
 * which requires them: it is an item of Other Failures Sequence (0008,119A).
 */
#include "proto/dicomweb/report.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/dicom/dcm.h"
#include "proto/dicomweb/qido.h"

void report_free(struct report *rep)
{
    strbuf_free(&rep->stored);
    strbuf_free(&rep->failed);
    strbuf_free(&rep->other);
}

unsigned report_reason(int err)
{
    switch (err) {
    case ERR_NOSPC:
    case ERR_NOMEM:
    case ERR_OVERLOAD:
    case ERR_AGAIN:
        return REPORT_NO_RESOURCES;
    case ERR_DICOM_MISMATCH:
        return REPORT_MISMATCH;
    case ERR_DICOM:
    case ERR_DICOM_UID:
    case ERR_DICOM_NO_UID:
    case ERR_TRUNCATED:
    case ERR_UNSUPPORTED:
        return REPORT_NOT_DICOM;
    case ERR_CONFLICT:
        return REPORT_DUPLICATE;
    default:
        return REPORT_FAILED;
    }
}

static void add_references(struct strbuf *out, const char *class_uid, const char *instance_uid)
{
    strbuf_adds(out, "\"00081150\":{\"vr\":\"UI\",\"Value\":[");
    dcm_json_string(class_uid, strlen(class_uid), out);
    strbuf_adds(out, "]},\"00081155\":{\"vr\":\"UI\",\"Value\":[");
    dcm_json_string(instance_uid, strlen(instance_uid), out);
    strbuf_adds(out, "]}");
}

static void add_url(struct strbuf *out, const char *base, const char *study, const char *series,
                    const char *instance)
{
    STRBUF_AUTO struct strbuf url = STRBUF_INIT;

    qido_url(&url, base, study, series, instance);
    strbuf_adds(out, "\"00081190\":{\"vr\":\"UR\",\"Value\":[");
    dcm_json_string(url.data, url.len, out);
    strbuf_adds(out, "]}");
}

void report_stored(struct report *rep, const char *base, const struct object_put_result *result)
{
    struct strbuf *out = &rep->stored;

    strbuf_adds(out, rep->stored_count++ ? ",{" : "{");
    add_references(out, result->sop_class_uid, result->instance_uid);
    strbuf_addc(out, ',');
    add_url(out, base, result->study_uid, result->series_uid, result->instance_uid);
    strbuf_addc(out, '}');
    if (!rep->study_uid[0])
        memcpy(rep->study_uid, result->study_uid, sizeof(rep->study_uid));
    else if (strcmp(rep->study_uid, result->study_uid) != 0)
        memcpy(rep->study_uid, "*", 2);
    if (!rep->warning)
        rep->warning = result->warning;
}

void report_failed(struct report *rep, const char *class_uid, const char *instance_uid, int err)
{
    struct strbuf *out = instance_uid[0] ? &rep->failed : &rep->other;

    strbuf_adds(out, out->len ? ",{" : "{");
    if (instance_uid[0]) {
        add_references(out, class_uid, instance_uid);
        strbuf_addc(out, ',');
    }
    strbuf_addf(out, "\"00081197\":{\"vr\":\"US\",\"Value\":[%u]}}", report_reason(err));
    rep->failed_count++;
    rep->nospc += err == ERR_NOSPC;
    rep->overload += err == ERR_OVERLOAD || err == ERR_SHUTDOWN || err == ERR_AGAIN;
}

unsigned report_status(const struct report *rep)
{
    if (rep->failed_count == 0)
        return rep->stored_count ? 200 : 400;
    if (rep->stored_count)
        return 202;
    if (rep->nospc == rep->failed_count)
        return 507;
    if (rep->overload == rep->failed_count)
        return 503;
    return 409;
}

static void add_sequence(struct strbuf *out, bool *first, const char *tag,
                         const struct strbuf *items)
{
    if (items->len == 0)
        return;
    strbuf_addf(out, "%s\"%s\":{\"vr\":\"SQ\",\"Value\":[", *first ? "" : ",", tag);
    strbuf_add(out, items->data, items->len);
    strbuf_adds(out, "]}");
    *first = false;
}

void report_json(const struct report *rep, const char *base, struct strbuf *out)
{
    bool first = true;

    strbuf_addc(out, '{');
    if (rep->study_uid[0] && rep->study_uid[0] != '*') {
        add_url(out, base, rep->study_uid, "", "");
        first = false;
    }
    add_sequence(out, &first, "00081198", &rep->failed);
    add_sequence(out, &first, "00081199", &rep->stored);
    add_sequence(out, &first, "0008119A", &rep->other);
    strbuf_addc(out, '}');
}

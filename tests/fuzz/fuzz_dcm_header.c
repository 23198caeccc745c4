/* Headers from nowhere, through the walk, DCMTK, the catalogue and DICOM JSON, which must be JSON.
 * Input: a byte for the transfer syntax, then the data set. */
#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "tests/fuzz/fuzz_dcm_syntax.h"

/* A BulkDataURI must lead to a value. */
static void follow(const struct dcm_header *h, const json_t *j)
{
    const char *key;
    const json_t *value;
    size_t i;

    if (json_is_array(j)) {
        json_array_foreach(j, i, value) follow(h, value);
    } else if (json_is_object(j)) {
        json_object_foreach((json_t *)(uintptr_t)j, key, value)
        {
            if (strcmp(key, "BulkDataURI") == 0) {
                STRBUF_AUTO struct strbuf out = STRBUF_INIT;
                char vr[3];

                CHECK(dcm_header_bulk(h, json_string_value(value) + 2, &out, vr) && out.len > 0);
            } else {
                follow(h, value);
            }
        }
    }
}

static void check_json(const struct dcm_header *h)
{
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;
    json_error_t error;
    json_t *j;

    CHECK_OK(dcm_header_json(h, "b", false, &out));
    j = json_loadb(out.data, out.len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!j)
        fprintf(stderr, "%s at %d: %.400s\n", error.text, error.position, out.data);
    CHECK(j != NULL);
    follow(h, j);
    json_decref(j);
    strbuf_reset(&out);
    CHECK_OK(dcm_header_json(h, "b", true, &out));
    j = json_loadb(out.data, out.len, JSON_ALLOW_NUL, &error);
    CHECK(j != NULL);
    json_decref(j);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int ready = 1;
    struct dcm_header *h;

    if (ready == 1)
        CHECK_OK(ready = dcm_init());
    if (size < 1 || dcm_header_parse(data + 1, size - 1, fuzz_dcm_syntax(data[0]), &h) < 0)
        return 0;
    check_json(h);
    for (int level = 0; level < 3; level++) {
        struct object_attr *attrs;
        size_t count;

        CHECK_OK(dcm_header_catalog(h, (enum object_level)level, &attrs, &count));
        for (size_t i = 0; i < count; i++) {
            STRBUF_AUTO struct strbuf out = STRBUF_INIT;

            CHECK(strlen(attrs[i].value) == attrs[i].len && attrs[i].len <= 16384);
            dcm_attr_json(&attrs[i], &out);
        }
        mem_free(attrs);
    }
    dcm_header_free(h);
    return 0;
}

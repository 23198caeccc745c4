/* Part 10 heads from nowhere. What is found must not depend on how much follows, and a head that
 * was made from what was found must be found again. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/dicom/dcm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dcm_head h, again;
    int rc = dcm_head_parse(data, size, &h);

    CHECK(rc == 0 || rc == ERR_AGAIN || rc == ERR_DICOM);
    if (rc < 0)
        return 0;
    CHECK(h.dataset_off <= size && dcm_uid_valid(h.transfer_syntax));
    for (size_t n = h.dataset_off; n <= size && n < h.dataset_off + 16; n++) {
        rc = dcm_head_parse(data, n, &again);
        CHECK(rc == ERR_AGAIN || (rc == 0 && again.dataset_off == h.dataset_off));
    }
    if (h.sop_class[0] && h.sop_instance[0]) {
        STRBUF_AUTO struct strbuf made = STRBUF_INIT;

        CHECK_OK(dcm_head_make(h.sop_class, h.sop_instance, h.transfer_syntax, "FUZZ", &made));
        CHECK_OK(dcm_head_parse(made.data, made.len, &again));
        CHECK(again.dataset_off == made.len);
        CHECK(strcmp(again.transfer_syntax, h.transfer_syntax) == 0);
        CHECK(strcmp(again.sop_instance, h.sop_instance) == 0);
    }
    return 0;
}

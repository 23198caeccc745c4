/* The scan for Pixel Data, fed whole and in pieces: both must end in the same state. Input: a byte
 * for the transfer syntax, a byte for the size of the pieces, the data set. */
#include <stddef.h>
#include <stdint.h>

#include "lib/base/check.h"
#include "lib/dicom/dcm.h"
#include "tests/fuzz/fuzz_dcm_syntax.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dcm_scan whole, pieces;
    size_t used = 0, step;

    if (size < 2)
        return 0;
    dcm_scan_init(&whole, fuzz_dcm_syntax(data[0]));
    dcm_scan_init(&pieces, fuzz_dcm_syntax(data[0]));
    step = data[1] % 24u + 1;
    data += 2;
    size -= 2;
    CHECK(dcm_scan_push(&whole, data, size) == whole.pos);
    CHECK(whole.pos <= size && (whole.pos == size || whole.found || whole.end_of_use));
    while (used < size && !pieces.found && !pieces.end_of_use)
        used += dcm_scan_push(&pieces, data + used, size - used < step ? size - used : step);
    CHECK(used == pieces.pos && pieces.pos == whole.pos);
    CHECK(pieces.found == whole.found && pieces.end_of_use == whole.end_of_use);
    CHECK(!whole.found ||
          (pieces.pixel_off == whole.pixel_off && pieces.pixel_len == whole.pixel_len &&
           pieces.rows == whole.rows && pieces.frames == whole.frames));
    return 0;
}

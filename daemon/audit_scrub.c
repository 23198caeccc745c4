/* The audit of what scrub has noted of itself. Nothing else depends on it: a broken note is taken
 * away, and scrub begins anew. */
#include <string.h>

#include "daemon/audit_priv.h"
#include "daemon/scrubber.h"
#include "lib/base/mem.h"

void audit_scrub(struct audit *a)
{
    const struct kv_slice key = {SCRUB_KEY, strlen(SCRUB_KEY)};
    MEM_AUTO void *value = NULL;
    struct scrub_state st;
    size_t len;

    value = audit_get(a, KV_META, key, &len);
    if (!value || scrub_state_decode(value, len, &st) == 0)
        return;
    audit_mend(a, "scrub-row", "the note of where scrub is, is broken");
    audit_delete(a, KV_META, key);
}

/* Counts everything in the KV store again that the engine keeps counts of, with the engine's own
 * audit: nothing may be found. The partition is closed.
 */
#include "tests/sim/run.h"

#include "daemon/audit.h"
#include "lib/base/err.h"

static void recount_found(void *arg, const struct audit_finding *f)
{
    run_fail(arg, "recount: %s: %s", f->kind, f->text);
}

void recount_all(struct run *r)
{
    struct audit_params params = {.kv = r->kv, .found = recount_found, .arg = r};
    struct audit_result result;
    int rc = audit_run(&params, &result);

    if (rc < 0)
        run_fail(r, "recount: %s", err_name(rc));
}

/* The loss of the KV store between two lives: it is made anew from the drives, by the code that
 * filmroom-fsck --rebuild uses. The life after it must find everything as after any other crash.
 */
#include "daemon/rebuild.h"
#include "lib/base/err.h"
#include "tests/sim/run.h"

void rebuild_main(void *arg)
{
    struct run *r = arg;
    struct rebuild_result result = {0};
    int rc = kv_mem_open(r->env, r->image, &r->kv), closed;

    r->phase = "rebuilding the metadata";
    if (rc == 0)
        rc = rebuild_metadata(r->env, r->kv, r->places, r->place_count, false, &result);
    if (rc == ERR_EXIST)
        rc = 0; /* a former try was killed when it had just finished */
    closed = kv_close(r->kv);
    if (rc == 0)
        rc = closed;
    run_trace(r, "rebuild: %s, %llu rows in %llu chunks up to record %llu, %llu chunks lost",
              err_name(rc), (unsigned long long)result.rows, (unsigned long long)result.chunks,
              (unsigned long long)result.settled, (unsigned long long)result.chunks_lost);
    /* A store that is young or full may have no copy at the moment. */
    if (rc < 0 && rc != ERR_NOENT)
        run_fail(r, "rebuild: %s", err_name(rc));
    r->rebuilt = rc == 0;
    r->opened = true;
}

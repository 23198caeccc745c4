/* The loss of the KV store between two lives: it is made anew from the drives, by the code that
 * filmroom-fsck --rebuild uses. The life after it must find everything as after any other crash.
 */
#include "daemon/rebuild.h"
#include "lib/base/err.h"
#include "tests/sim/run.h"

/* ---- Is there a copy? ----
 *
 * There is one, or all of the journal, unless a checkpoint had to go without: that is counted. What
 * is not seen of the count (while the store opens, and in its last checkpoint) may only be blamed
 * on a lack of room.
 */

void copy_look(struct run *r)
{
    struct partition_status s;

    if (!r->opened || !r->p || sim_process_ended(r->env))
        return;
    partition_get_status(r->p, &s);
    if (s.copy_failures != r->copy_failures)
        r->copy_lacks = true;
    else if (s.copy_lsn != r->copy_lsn)
        r->copy_lacks = false;
    r->copy_failures = s.copy_failures;
    r->copy_lsn = s.copy_lsn;
    r->tight = r->host_was_full || s.free < 2 * r->slot_size * r->k;
}

void copy_life_over(struct run *r)
{
    if (!r->opened || !r->p)
        r->copy_lacks |= r->tight || r->host_was_full;
    r->copy_failures = 0;
}

/* ---- Making it anew ---- */

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
    if (rc == ERR_NOENT && !r->copy_lacks)
        run_fail(r, "rebuild: there is no copy of the metadata, and no checkpoint went without");
    if (rc < 0 && rc != ERR_NOENT && !(r->beyond && rc == ERR_LOST))
        run_fail(r, "rebuild: %s", err_name(rc));
    r->rebuilt = rc == 0;
    r->opened = true;
}

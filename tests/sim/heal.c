/* Faults of what drives lie on (file systems that are full, drives put back from an old copy), and
 * the proof that a store heals: once faults have ended it must become whole by itself.
 */
#include <string.h>

#include "daemon/audit.h"
#include "lib/base/err.h"
#include "tests/sim/run.h"

#define CONVERGE_MAX_NS (600 * ENV_NS_PER_S)

/* ---- A full file system under the drives ---- */

void host_set_full(struct run *r, bool full)
{
    struct sim_faults faults = {.io_max_ns = r->slow_io_ns};

    if (full == r->host_full)
        return;
    run_trace(r, full ? "the file systems under the drives are full" : "there is space again");
    r->host_full = full;
    r->host_was_full |= full;
    if (full) {
        faults.nospc = run_chance(r, 70) ? 1000000 : 200000;
        faults.no_reserve = r->host_no_reserve;
    }
    sim_set_faults(r->sim, &faults);
}

/* No drive is to blame for that. Where nothing else happens to drives, all of them stay. */
void host_check(struct run *r)
{
    struct driveset *ds;

    if (!r->host_fills || r->damaged || !r->p || sim_process_ended(r->env))
        return;
    ds = partition_drives(r->p);
    if (driveset_healthy(ds) < driveset_members(ds))
        run_fail(r, "a drive was put out though only its file system was full");
}

/* ---- Old copies ---- */

void stale_keep(struct run *r)
{
    for (unsigned d = 0; d < RUN_DRIVES_MAX; d++)
        if (run_chance(r, 30))
            (void)sim_file_keep(r->sim, r->paths[d]);
}

bool stale_restore(struct run *r, unsigned drive)
{
    if (r->env || sim_file_restore(r->sim, r->paths[drive]) < 0)
        return false;
    run_trace(r, "%s is what it was some lives ago", r->paths[drive]);
    return true;
}

/* ---- Healing ----
 *
 * All faults are off; drives that are gone stay gone, others are back. In time every stripe with
 * something alive must have all the parity that the drives allow: drives that are out are given up
 * soon here. What lies on a drive that lied, rotted or was put back from a copy may still be wrong,
 * and only there.
 */

static bool converged(struct run *r, unsigned usable)
{
    struct partition_status s;

    if (usable <= r->m)
        return true; /* too few drives for the profile's parity */
    partition_get_status(r->p, &s);
    return s.thin_segments == 0;
}

/* How many drives new data may be put on: not those that leave. */
static unsigned drives_taking(const struct run *r)
{
    const struct driveset *ds = partition_drives(r->p);
    unsigned n = 0;

    for (unsigned i = 0; i < ds->count; i++)
        n += drive_takes(&ds->drives[i]);
    return n;
}

static void await_converged(struct run *r)
{
    unsigned usable = drives_taking(r);
    uint64_t end = env_now(r->env) + CONVERGE_MAX_NS;
    struct partition_status s;

    while (!converged(r, usable) && env_now(r->env) < end) {
        if (client_tight(r))
            return; /* a rebuild takes room */
        env_sleep(r->env, 200 * ENV_NS_PER_MS);
    }
    partition_get_status(r->p, &s);
    if (!converged(r, usable))
        run_fail(r, "%llu segments lack parity and nobody mends them, with %u drives",
                 (unsigned long long)s.thin_segments, usable);
    r->is_whole = usable > r->m;
}

static void deep_found(void *arg, const struct audit_finding *f)
{
    if (!scrub_may_find(arg, f))
        run_fail(arg, "%s: %s", f->kind, f->text);
}

static void deep_drive(struct run *r, const struct driveset *ds, const struct audit_result *a,
                       unsigned d)
{
    const struct audit_drive *of = &a->drives[d];
    const char *path = ds->drives[d].path;
    bool there = drive_usable(&ds->drives[d]);

    if ((of->bad_columns || of->bad_headers) && !members_of(r, &ds->drives[d], r->spoilt))
        run_fail(r, "%s, which never lied, has %llu bad columns and %llu bad headers", path,
                 (unsigned long long)of->bad_columns, (unsigned long long)of->bad_headers);
    if (of->absent_columns && (there || r->is_whole))
        run_fail(r, "%llu columns of what is alive are missing on %s",
                 (unsigned long long)of->absent_columns, path);
}

/* Reads every stripe that is alive. The partition is closed. */
static void deep_check(struct run *r)
{
    struct audit_params params = {.kv = r->kv, .deep = true, .found = deep_found, .arg = r};
    struct audit_result result;
    int rc = driveset_open(r->env, r->places, r->place_count, &params.drives);

    if (rc == 0)
        rc = audit_run(&params, &result);
    if (rc < 0)
        run_fail(r, "deep audit: %s", err_name(rc));
    for (unsigned d = 0; d < params.drives->count; d++)
        deep_drive(r, params.drives, &result, d);
    driveset_close(params.drives);
}

void heal_work(struct run *r)
{
    r->phase = "healing";
    r->is_whole = false;
    await_converged(r);
}

void heal_check(struct run *r)
{
    r->phase = "reading all drives";
    deep_check(r);
}

/* Scrub in a run: as something that clients ask for, as what makes spoilt drives whole again so
 * that others may be spoilt in their place, and at the end, when it has to leave nothing to be
 * found. */
#include "tests/sim/run.h"

#include <string.h>

#include "daemon/audit.h"
#include "daemon/scrubber.h"
#include "lib/base/err.h"

void scrub_choose(struct run *r)
{
    struct partition_options *o = &r->partition;

    o->scrub_settle_ns = 1 + run_random(r, 50 * ENV_NS_PER_MS);
    o->scrub_every_ns = run_chance(r, 50) ? 0 : 1 + run_random(r, 2 * ENV_NS_PER_S);
    o->scrub_rate = run_chance(r, 50) ? 0 : (1u << 20) + run_random(r, 512u << 20);
}

/* Nothing may be lost while no more drives are spoilt than the profile bears, and what nobody
 * spoilt is right. */
static void expect_nothing_lost(struct run *r)
{
    const struct driveset *ds = partition_drives(r->p);
    struct scrub_status st;

    for (unsigned d = 0; d < ds->count; d++)
        if (!members_of(r, &ds->drives[d], r->ever_damaged) && ds->drives[d].scrub.bad)
            run_fail(r, "scrub found wrong places on drive %u, which is sound", d);
    partition_scrub_status(r->p, &st);
    if ((st.state.now.lost || st.state.last.lost) && !r->beyond)
        run_fail(r, "scrub lost %llu chunks", (unsigned long long)st.lost);
}

void scrub_op(struct run *r)
{
    uint64_t dice = run_random(r, 4);
    int rc = dice == 0 ? partition_scrub_stop(r->p) : partition_scrub_start(r->p);

    run_trace(r, "scrub %s: %s", dice == 0 ? "stop" : "start", err_name(rc));
    if (rc < 0 && !r->beyond)
        run_fail(r, "scrub: %s", err_name(rc));
    if (dice > 2)
        partition_scrub_wait(r->p);
    expect_nothing_lost(r);
}

/* A whole pass; false when there was none, or it left something. */
static bool scrub_pass(struct run *r, struct scrub_pass *ret_pass)
{
    struct scrub_status st;
    int rc = partition_scrub_start(r->p); /* maybe only the rest of one: */

    partition_scrub_wait(r->p);
    if (rc == 0)
        rc = partition_scrub_start(r->p);
    partition_scrub_wait(r->p);
    partition_scrub_status(r->p, &st);
    run_trace(r, "scrub: %s, found %llu, mended %llu, lost %llu, skipped %llu", err_name(rc),
              (unsigned long long)st.state.last.found, (unsigned long long)st.state.last.mended,
              (unsigned long long)st.state.last.lost, (unsigned long long)st.state.last.skipped);
    if (rc < 0 && !r->beyond)
        run_fail(r, "scrub: %s", err_name(rc));
    expect_nothing_lost(r);
    *ret_pass = st.state.last;
    return rc == 0 && st.state.phase == SCRUB_IDLE && !st.state.last.skipped &&
           st.state.last.found == st.state.last.mended;
}

static bool disk_usable(struct run *r, unsigned disk)
{
    const struct driveset *ds = partition_drives(r->p);

    for (unsigned d = 0; d < ds->count; d++)
        if (drive_usable(&ds->drives[d]) && members_disk(r, ds->drives[d].path) == disk)
            return true;
    return false;
}

/* Drives that were only spoilt, all of it before this life began (what was in flight then, and what
 * was in the journal, is in no stripe that is not looked at), are whole after a pass and a
 * checkpoint. */
void scrub_heal(struct run *r)
{
    uint32_t spoilt = r->damaged & ~r->deleted & ~r->faulty_in_life & ~r->passing;
    unsigned done = r->damages;
    struct scrub_pass pass;
    struct partition_status status;

    /* Storms are there to find journals that were not trimmed for long. */
    if (!spoilt || r->storm || r->damage_life == r->life || r->beyond || !run_chance(r, 40))
        return;
    if (partition_settle(r->p) < 0 || !scrub_pass(r, &pass) || partition_settle(r->p) < 0)
        return;
    partition_get_status(r->p, &status);
    for (unsigned d = 0; d < RUN_DRIVES_MAX; d++)
        if (!disk_usable(r, d))
            spoilt &= ~(1u << d);
    if (r->damages != done || status.thin_segments)
        return;
    run_trace(r, "scrub made drives whole: %#x of %#x", spoilt, r->damaged);
    r->damaged &= ~spoilt;
}

static void converge_settle(struct run *r)
{
    int rc = partition_settle(r->p);

    if (rc < 0 && !client_space_failed(r, rc)) /* else some is still in the overlay */
        run_fail(r, "settle: %s", err_name(rc));
}

void scrub_converge(struct run *r)
{
    struct driveset *ds = partition_drives(r->p);
    uint64_t bad[FORMAT_DRIVES_MAX];
    struct scrub_pass pass;

    if (r->beyond)
        return;
    converge_settle(r);
    /* What fits together no more and is whole all the same is not mended in place, but written
     * anew: then less is mended than was found. */
    (void)scrub_pass(r, &pass);
    if (pass.skipped || !pass.end_ns)
        run_fail(r, "a pass of scrub without faults skipped %llu segments",
                 (unsigned long long)pass.skipped);
    converge_settle(r);
    for (unsigned d = 0; d < ds->count; d++)
        bad[d] = ds->drives[d].scrub.bad;
    (void)scrub_pass(r, &pass); /* the next may have begun by itself */
    /* What is out may be read, and not mended. */
    if ((pass.found && driveset_healthy(ds) == driveset_members(ds)) || pass.skipped)
        run_fail(r, "a second pass of scrub found %llu wrong places, and skipped %llu segments",
                 (unsigned long long)pass.found, (unsigned long long)pass.skipped);
    for (unsigned d = 0; d < ds->count; d++)
        if (drive_usable(&ds->drives[d]) && ds->drives[d].scrub.bad != bad[d])
            run_fail(r, "a second pass of scrub found %llu wrong places on drive %u",
                     (unsigned long long)(ds->drives[d].scrub.bad - bad[d]), d);
}

bool scrub_may_find(const struct run *r, const struct audit_finding *f)
{
    return strcmp(f->kind, "drive-damage") == 0 ||
           (strcmp(f->kind, "stripe-doubt") == 0 && r->spoilt);
}

/* What is on drives that are out is looked at drive by drive, below. */
static void audit_found(void *arg, const struct audit_finding *f)
{
    run_trace(arg, "deep audit: %s: %s", f->kind, f->text);
    if (!scrub_may_find(arg, f))
        run_fail(arg, "deep audit after scrub: %s: %s", f->kind, f->text);
}

/* What scrub says is whole, the audit finds whole. The partition is closed. */
void scrub_audit(struct run *r)
{
    struct audit_params params = {.kv = r->kv, .deep = true, .found = audit_found, .arg = r};
    struct audit_result result;
    int rc;

    if (r->beyond)
        return;
    rc = driveset_open(r->env, r->places, r->place_count, &params.drives);
    if (rc == 0)
        rc = audit_run(&params, &result);
    if (rc < 0)
        run_fail(r, "deep audit: %s", err_name(rc));
    if (result.lost_chunks)
        run_fail(r, "deep audit: %llu chunks are lost", (unsigned long long)result.lost_chunks);
    for (unsigned d = 0; d < params.drives->count; d++)
        if (drive_usable(&params.drives->drives[d]) &&
            (result.drives[d].bad_columns || result.drives[d].bad_headers))
            run_fail(r, "deep audit: %llu columns, %llu headers of drive %u are wrong after scrub",
                     (unsigned long long)result.drives[d].bad_columns,
                     (unsigned long long)result.drives[d].bad_headers, d);
    driveset_close(params.drives);
}

/* The partition's compactor: a fiber that has the chunk store empty segments, as much as there is
 * need for it, gives way to other work meanwhile, and tells the writes that wait for room what came
 * of it. What to empty, and how, is dedup/compact.c's. */
#include "daemon/partition_priv.h"
#include "lib/base/err.h"
#include "lib/base/log.h"

#define COMPACTOR_TICK     (100 * ENV_NS_PER_MS) /* it looks around this often */
#define COMPACTOR_QUIET    8u /* records between two steps that count as other work */
#define COMPACTOR_RETRY    (100 * ENV_NS_PER_MS)
#define COMPACTOR_MOMENT   (5 * ENV_NS_PER_MS)
#define COMPACTOR_STEP     (100 * ENV_NS_PER_MS) /* longer ones waited rather than worked */
#define COMPACTOR_PATIENCE 100u                  /* such moments */
#define COMPACTOR_FAILURE  5u                    /* moments that a round which failed counts for */

/* Between two steps: gives way to others, the more the less the space is needed. A tenth of the
 * time is for compaction while there is other work, half when there is none. A step in which a
 * drive hung counts as a usual one: whoever wants to compact at once waits for this pause. */
static bool compactor_pause(void *arg, uint64_t took)
{
    struct partition *p = arg;
    enum compact_need need = chunkstore_compact_need(p->chunks);
    bool busy = p->processed_lsn > p->compactor_lsn + COMPACTOR_QUIET;
    unsigned factor = need == COMPACT_NOW ? 0 : need == COMPACT_IDLE && busy ? 9 : 1;

    if (took > COMPACTOR_STEP)
        took = COMPACTOR_STEP;
    p->compactor_lsn = p->processed_lsn;
    if (factor)
        chunkstore_wait_wanted(p->chunks, env_now(p->env) + factor * took);
    return !p->stopping && !p->broken;
}

/* Tells the writes that wait for room what came of a round. `wanted`: some did when it began; who
 * came later has not been looked for yet. A segment that has only to be freed may have somebody at
 * it for a moment; and where a round failed for one segment's sake, another may be next. */
static void compactor_tell(struct partition *p, bool wanted, bool nothing, bool failed, bool freed)
{
    if (freed || !wanted || !nothing)
        p->compactor_vain = 0;
    if (freed) {
        chunkstore_room_changed(p->chunks, true);
    } else if (wanted && nothing && (failed || segment_sweep_due(p->segments)) &&
               p->compactor_vain < COMPACTOR_PATIENCE) {
        p->compactor_vain += failed ? COMPACTOR_FAILURE : 1;
        env_sleep(p->env, COMPACTOR_MOMENT);
    } else if (wanted && nothing) {
        chunkstore_room_changed(p->chunks, false);
    }
}

/* Each takes a segment's room, and gives some only after what was in the old one was moved too. */
static bool compactor_renew(struct partition *p)
{
    bool renewed = false;

    for (unsigned i = 0; i < SEGMENT_STREAMS && segment_renew_due(p->segments); i++) {
        if (!chunkstore_moves_have_room(p->chunks, true) || segment_renew_thin(p->segments) < 0)
            break;
        renewed = true;
    }
    return renewed;
}

static int compactor_round(struct partition *p)
{
    uint64_t before = p->segments_freed;
    bool wanted = chunkstore_room_wanted(p->chunks), nothing, failed, renewed;
    enum compact_need need = chunkstore_compact_need(p->chunks);
    int rc;

    renewed = compactor_renew(p);
    rc = need == COMPACT_NOTHING ? 0 : chunkstore_compact(p->chunks, need, compactor_pause, p);
    if (rc == 0 || rc == ERR_NOENT)
        rc = partition_reclaim(p);
    else if (rc == ERR_NOSPC)
        (void)partition_reclaim(p); /* there may be room the next time */
    /* What was open and is not any more may be emptied the next time. Without room for that now,
     * later. */
    nothing = (need == COMPACT_NOTHING || rc < 0) && !renewed;
    failed = rc < 0 && rc != ERR_NOENT && rc != ERR_NOSPC && !p->broken;
    compactor_tell(p, wanted, nothing, failed, p->segments_freed > before);
    return rc;
}

void compactor_main(void *arg)
{
    struct partition *p = arg;

    while (!p->stopping) {
        enum compact_need need = chunkstore_compact_need(p->chunks);
        int rc = 0;

        if (p->broken || need == COMPACT_NOTHING)
            chunkstore_wait_wanted(p->chunks, env_now(p->env) + COMPACTOR_TICK);
        if (p->stopping)
            break;
        if (!p->broken && chunkstore_lost_news(p->chunks))
            (void)chunkstore_tell_lost(p->chunks); /* or the next time */
        if (!p->broken)
            rc = compactor_round(p);
        else
            chunkstore_room_changed(p->chunks, false);
        if (rc < 0 || p->broken) {
            if (!p->broken && rc != ERR_SHUTDOWN)
                log_warn("partition", "compaction failed, will try again error=%s", err_name(rc));
            env_sleep(p->env, COMPACTOR_RETRY);
        }
    }
    fiber_group_done(&p->fibers);
}

int partition_compact(struct partition *p)
{
    struct segment_space space;
    int rc = 0;

    /* Each segment at most twice: what was moved once lies densely. */
    segment_get_space(p->segments, &space);
    for (uint64_t i = 0; rc == 0 && i < 2 * space.segments && !p->stopping; i++) {
        rc = chunkstore_compact(p->chunks, COMPACT_NOW, NULL, NULL);
        if (rc == 0)
            rc = partition_reclaim(p);
    }
    return rc == ERR_NOENT ? partition_reclaim(p) : rc;
}

int compactor_settle(struct partition *p)
{
    uint64_t freed;
    int rc, rc2;

    do {
        freed = p->segments_freed;
        do
            rc = chunkstore_compact(p->chunks, COMPACT_IDLE, NULL, NULL);
        while (rc == 0);
        rc2 = partition_reclaim(p);
    } while (rc == ERR_NOSPC && rc2 == 0 && p->segments_freed > freed);
    return rc == ERR_NOENT ? rc2 : rc;
}

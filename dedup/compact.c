/* Compaction: moving what is alive out of segments with much that is dead, and out of such as have
 * less parity than they should: written while drives were missing, or with a column on a drive that
 * is given up. The latter is how a lost drive's data is rebuilt, in the space that the others have.
 * In the same way segments are emptied that have a column on a drive that is leaving, or on one
 * that has more than its fair share.
 *
 * For each stripe of the victim its directory tells which chunks were written there; the chunk
 * table tells which of them are alive and still lie there. These are read (verified), written as
 * stripes of the stream of survivors, and the new stripes are read again, verified: only then a
 * record switches the rows, one record per new stripe. When nothing alive is left in the victim,
 * the sweep frees it as any empty segment, so there is one place only that frees.
 *
 *   RECORD_CHUNK_MOVE: to segment u64, to offset u32, to width u32, count u32, reserved u32, then
 *   count x (id u64, segment u64, offset u32, width u32, position u32, to position u32)
 *
 * What may happen meanwhile, and why it is right:
 * - A chunk is freed, or was moved by another record: applying compares the row with the place the
 *   bytes were copied from, and leaves the row alone unless it is the same. The copy is then dead.
 * - A reader has the old place: it has the row pinned, and a pinned row holds every segment it has
 *   lain in since (chunk_row_relocate).
 * - A record on its way lists the chunk at its old place, and brings it back there after it was
 *   freed: the batch that wrote the list has the row pinned, the same way. The victim then has
 *   something alive again, and is picked again.
 * - A crash: before the record the copy is dead space behind the last named stripe, or in a stripe
 *   with nothing alive; after it the rows point to the copy, which was durable before the
 *   record was. Replay compares as applying did, and comes to the same result, since it is
 *   decided by rows alone.
 *
 * A chunk that cannot be read stays where it is, and so does its segment, which is then left alone
 * until the next start: a drive that comes back may yet have it. So is, after a few tries, a
 * segment of which the metadata cannot be read.
 *
 * The directories may be those of older stripes, where a drive lost writes. When a run has left
 * something, and there is no such reason for it, the next asks the whole chunk table what else
 * lies there (gather.c).
 */
#include <string.h>

#include "dedup/chunk_priv.h"
#include "dedup/chunkstore.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/base/strbuf.h"
#include "lib/rt/env.h"

#define COMPACT_CHUNKS_MAX SEGMENT_MOVE_MAX /* in one step, and so in one record */
#define COMPACT_HEAD       24u
#define COMPACT_ENTRY      32u
#define COMPACT_LOW        16u /* less than this part of all space is left: compact more */

/* Chunks on their way from one segment to a new stripe. */
struct compact_step {
    struct chunkstore *cs;
    enum segment_stream stream;
    size_t count, bytes;
    bool gains; /* its slots are worth more than what it takes: segment_write_moved */
    struct chunk_row *rows[COMPACT_CHUNKS_MAX]; /* pinned */
    struct segment_loc from[COMPACT_CHUNKS_MAX];
    struct segment_read reads[COMPACT_CHUNKS_MAX];
    struct segment_chunk chunks[COMPACT_CHUNKS_MAX];
    bool lost; /* something could not be read */
};

/* Why a segment is emptied. */
enum compact_why { COMPACT_SPARSE, COMPACT_THIN, COMPACT_LEAVING, COMPACT_UNEVEN };

struct compact_run {
    struct compact_step *step;
    uint64_t segment;
    enum compact_why why;
    bool (*pause)(void *arg, uint64_t took_ns);
    void *arg;
    bool stopped;
    bool sick; /* the segment's directories, or the rows of what they list, cannot be read */
};

/* ---- Choosing ---- */

static unsigned compact_fill(enum compact_need need)
{
    return need == COMPACT_NOW    ? COMPACT_FILL_MAX
           : need == COMPACT_SOON ? COMPACT_FILL_SOON
                                  : COMPACT_FILL_IDLE;
}

/* What lacks parity, else what is on a drive that leaves. Asked in this order since the second sees
 * to it that the segments are on the right lists. */
static bool pick_unsafe(const struct chunkstore *cs, uint64_t *ret_segment,
                        enum compact_why *ret_why)
{
    bool leaves = segment_pick_leaving(cs->segments, ret_segment);

    *ret_why = segment_pick_thin(cs->segments, ret_segment) ? COMPACT_THIN : COMPACT_LEAVING;
    return leaves || *ret_why == COMPACT_THIN;
}

static enum segment_stream survivors_of(enum segment_stream stream)
{
    if (stream == SEGMENT_IMAGE)
        return SEGMENT_IMAGE;
    return stream == SEGMENT_STUDIES || stream == SEGMENT_STUDIES_KEPT ? SEGMENT_STUDIES_KEPT
                                                                       : SEGMENT_VOLUMES_KEPT;
}

/* Is it only moved into room that was taken before? */
static bool unsafe_opens_none(const struct chunkstore *cs, uint64_t segment)
{
    const struct segment *s = segment_get(cs->segments, segment);

    return s && segment_move_opens_none(cs->segments, segment, survivors_of(s->stream));
}

/* Does moving it leave at least as much room? Then the last segment may be opened for that. */
static bool unsafe_gains(const struct chunkstore *cs, uint64_t segment)
{
    return chunkstore_moves_have_room(cs, true) && segment_move_keeps_free(cs->segments, segment);
}

/* May such a segment be begun with? Moving it takes more than it gives, mostly, and a store that is
 * out of room cannot even gain any: so it waits while there is no more than what is kept. What does
 * not lessen the room is moved all the same: else a new drive in a full store would help nobody,
 * and a store so small that what is kept is most of it would never let a drive go. */
static bool unsafe_fits(const struct chunkstore *cs, uint64_t segment)
{
    return chunkstore_moves_have_room(cs, false) || unsafe_opens_none(cs, segment) ||
           unsafe_gains(cs, segment);
}

/* What lacks parity comes first, then what is on a drive that leaves, unless writes wait for space:
 * moving these to where they are as safe as the rest takes some. Where there is not enough of it
 * for them, all is emptied that gives any. Evenness comes last; where all drives but a new one are
 * full it is what makes room, too. */
static bool compact_pick(const struct chunkstore *cs, enum compact_need need, uint64_t *ret_segment,
                         enum compact_why *ret_why)
{
    struct segments *ss = cs->segments;
    unsigned below = compact_fill(need);

    if (pick_unsafe(cs, ret_segment, ret_why) && cs->room_waiters == 0) {
        if (unsafe_fits(cs, *ret_segment))
            return true;
        below = COMPACT_FILL_MAX;
    }
    *ret_why = COMPACT_SPARSE;
    if (segment_pick_sparse(ss, below, ret_segment))
        return true;
    *ret_why = COMPACT_UNEVEN;
    return segment_pick_uneven(ss, ret_segment);
}

static bool space_is_low(const struct chunkstore *cs)
{
    struct segment_space sp;

    segment_get_space(cs->segments, &sp);
    return sp.free < chunkstore_kept(cs) + cs->reserved + sp.total / COMPACT_LOW;
}

enum compact_need chunkstore_compact_need(const struct chunkstore *cs)
{
    uint64_t segment;
    enum compact_why why;
    enum compact_need need = COMPACT_IDLE;

    if (cs->room_waiters || cs->paced)
        need = COMPACT_NOW;
    else if (space_is_low(cs) || pick_unsafe(cs, &segment, &why))
        need = COMPACT_SOON;
    return compact_pick(cs, need, &segment, &why) ? need : COMPACT_NOTHING;
}

bool chunkstore_moves_wait(const struct chunkstore *cs)
{
    uint64_t segment;
    enum compact_why why;

    if (pick_unsafe(cs, &segment, &why))
        return !unsafe_fits(cs, segment);
    return segment_renew_due(cs->segments) && !chunkstore_moves_have_room(cs, true);
}

/* ---- One step: read, write, verify, switch ---- */

static bool same_place(const struct segment_loc *a, const struct segment_loc *b)
{
    return a->stripe.segment == b->stripe.segment && a->stripe.offset == b->stripe.offset &&
           a->position == b->position;
}

/* Reads what the step has gathered; what cannot be read is left out. Suspends. */
static void step_read(struct compact_step *st)
{
    size_t good = 0;

    for (size_t i = 0; i < st->count; i++)
        st->reads[i] = (struct segment_read){.loc = st->from[i]};
    (void)segment_read(st->cs->segments, st->reads, st->count); /* results are looked at singly */
    for (size_t i = 0; i < st->count; i++) {
        struct chunk_row *r = st->rows[i];

        if (st->reads[i].result < 0) {
            st->lost = true;
            chunk_row_unpin(st->cs, r);
            continue;
        }
        st->chunks[good] = chunk_row_stored(r, st->reads[i].data);
        st->rows[good] = r;
        st->from[good] = st->from[i];
        st->reads[good] = st->reads[i];
        good++;
    }
    st->count = good;
}

/* Are all chunks readable where they were written? Suspends. */
static int step_verify(struct compact_step *st, const struct segment_stripe *where)
{
    struct segment_read *again = mem_calloc(st->count, sizeof(*again));
    int rc;

    for (size_t i = 0; i < st->count; i++)
        again[i].loc = (struct segment_loc){*where, st->chunks[i].position, st->chunks[i].stored,
                                            st->chunks[i].crc};
    rc = segment_read(st->cs->segments, again, st->count);
    for (size_t i = 0; i < st->count; i++)
        buf_unref(again[i].buf);
    mem_free(again);
    return rc;
}

/* Journals the switch. Not from the journal's reserve: that is for what frees the journal, and
 * moves come fast enough to use it up, while the drainer then waits for its share of it. Suspends.
 */
static int step_switch(struct compact_step *st, const struct segment_stripe *where)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    uint8_t *p = strbuf_room(&body, COMPACT_HEAD + st->count * COMPACT_ENTRY);
    struct iovec iov = {p, body.len};

    codec_put_le64(p, where->segment);
    codec_put_le32(p + 8, where->offset);
    codec_put_le32(p + 12, where->width);
    codec_put_le32(p + 16, (uint32_t)st->count);
    codec_put_le32(p + 20, 0);
    p += COMPACT_HEAD;
    for (size_t i = 0; i < st->count; i++, p += COMPACT_ENTRY) {
        codec_put_le64(p, st->rows[i]->id);
        codec_put_le64(p + 8, st->from[i].stripe.segment);
        codec_put_le32(p + 16, st->from[i].stripe.offset);
        codec_put_le32(p + 20, st->from[i].stripe.width);
        codec_put_le32(p + 24, st->from[i].position);
        codec_put_le32(p + 28, st->chunks[i].position);
    }
    return record_submit(st->cs->log, RECORD_CHUNK_MOVE, &iov, 1, 0, NULL);
}

/* Suspends. */
static int step_write(struct compact_step *st)
{
    struct segment_stripe where;
    int rc =
        segment_write_moved(st->cs->segments, st->stream, st->gains, st->chunks, st->count, &where);

    if (rc < 0)
        return rc;
    rc = step_verify(st, &where);
    if (rc == 0)
        rc = step_switch(st, &where);
    segment_release(st->cs->segments, where.segment);
    return rc;
}

/* Moves what is gathered; the step is empty afterwards. Suspends. */
static int step_move(struct compact_step *st)
{
    int rc = 0;

    if (st->count == 0)
        return 0;
    step_read(st);
    if (st->count)
        rc = step_write(st);
    if (rc == 0 && st->count) {
        st->cs->stats.moved_bytes += st->bytes;
        metric_add(&st->cs->moved_chunks, st->count);
    }
    for (size_t i = 0; i < st->count; i++) {
        buf_unref(st->reads[i].buf);
        chunk_row_unpin(st->cs, st->rows[i]);
    }
    st->count = st->bytes = 0;
    return rc;
}

/* ---- A segment ---- */

/* What was begun may use what is kept for the streams, but for the last of it: it gives its slots
 * back only when all of it was moved, and others may have taken room meanwhile. */
static bool run_has_room(const struct compact_run *run)
{
    return run->why == COMPACT_SPARSE || run->why == COMPACT_UNEVEN ||
           chunkstore_moves_have_room(run->step->cs, true) ||
           unsafe_opens_none(run->step->cs, run->segment);
}

static int run_step(struct compact_run *run)
{
    struct compact_step *st = run->step;
    uint64_t start = env_now(st->cs->env), took;
    size_t gathered = st->count;
    int rc = step_move(st);

    took = env_now(st->cs->env) - start;
    if (gathered)
        metric_record(&st->cs->move_time, took);
    if (rc == 0 && ((run->pause && !run->pause(run->arg, took)) || !run_has_room(run)))
        run->stopped = true;
    return rc;
}

/* Adds a chunk, whose row it takes over, to the step; moves what there was if that is enough.
 * Suspends. */
static int run_take(struct compact_run *run, struct chunk_row *r)
{
    struct compact_step *st = run->step;
    int rc = 0;

    if (st->count == COMPACT_CHUNKS_MAX ||
        (st->count && st->bytes + r->loc.stored > segment_stripe_good(st->cs->segments)))
        rc = run_step(run);
    st->rows[st->count] = r;
    st->from[st->count++] = r->loc;
    st->bytes += r->loc.stored;
    return rc;
}

/* Gathers what is alive of a stripe's chunks. Suspends. */
static int run_stripe(struct compact_run *run, const struct segment_entry *entries, size_t n)
{
    struct compact_step *st = run->step;
    struct chunk_row **rows = mem_calloc(n, sizeof(struct chunk_row *));
    uint64_t *ids = mem_calloc(n, sizeof(*ids));
    int rc;

    for (size_t i = 0; i < n; i++)
        ids[i] = entries[i].id;
    rc = chunk_rows_get(st->cs, ids, n, rows);
    run->sick = rc < 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        struct chunk_row *r = rows[i];

        if (!r || !same_place(&r->loc, &entries[i].loc) || run->stopped) {
            chunk_row_unpin(st->cs, r);
            rows[i] = NULL;
            continue;
        }
        rc = run_take(run, r);
        rows[i] = NULL;
    }
    for (size_t i = 0; rc < 0 && i < n; i++)
        chunk_row_unpin(st->cs, rows[i]);
    mem_free(rows);
    mem_free(ids);
    return rc;
}

static int run_segment(struct compact_run *run)
{
    struct segments *ss = run->step->cs->segments;
    uint32_t offset = 0;
    int rc = 0;

    while (rc == 0 && !run->stopped) {
        struct segment_entry *entries;
        size_t n;

        rc = segment_next_stripe(ss, run->segment, &offset, &entries, &n);
        run->sick = rc < 0 && rc != ERR_NOENT && rc != ERR_TIMEDOUT;
        if (rc < 0)
            break;
        rc = run_stripe(run, entries, n);
        mem_free(entries);
    }
    if (rc == ERR_NOENT)
        rc = 0;
    if (rc == 0 && !run->stopped)
        rc = run_step(run);
    return rc;
}

static bool run_goes_on(void *arg)
{
    struct compact_run *run = arg;

    run->stopped = run->stopped || (run->pause && !run->pause(run->arg, 0));
    return !run->stopped;
}

/* What the directories did not tell of. Suspends. */
static int run_rest(struct compact_run *run)
{
    struct chunkstore *cs = run->step->cs;
    struct chunk_place *places;
    size_t n;
    int rc = chunkstore_gather(cs, run->segment, run_goes_on, run, &places, &n);

    if (rc == ERR_CANCELED)
        return 0;
    run->sick = rc < 0;
    if (rc < 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < n && !run->stopped; i++) {
        struct chunk_row *r = NULL;

        rc = chunk_rows_get(cs, &places[i].id, 1, &r);
        run->sick = rc < 0;
        if (rc == 0 && r && same_place(&r->loc, &places[i].loc))
            rc = run_take(run, r);
        else
            chunk_row_unpin(cs, r);
    }
    mem_free(places);
    return rc == 0 && !run->stopped ? run_step(run) : rc;
}

/* All of it, and the second time really all. Suspends. */
static int run_whole(struct compact_run *run, const struct segment *s)
{
    struct segments *ss = run->step->cs->segments;
    bool again = s->tries > 0;
    int rc = run_segment(run);

    if (rc == 0 && again && s->chunks && !run->stopped && !run->step->lost &&
        !segment_is_out_of_reach(ss, s->id))
        rc = run_rest(run);
    return rc;
}

static void step_drop(struct compact_step *st)
{
    for (size_t i = 0; i < st->count; i++)
        chunk_row_unpin(st->cs, st->rows[i]);
    mem_free(st);
}

int chunk_rewrite(struct chunkstore *cs, struct chunk_row *r, const uint8_t *stored)
{
    const struct segment *s = segment_get(cs->segments, r->loc.stripe.segment);
    struct compact_step *st;
    int rc;

    if (!s)
        return ERR_FORMAT;
    st = mem_zalloc(sizeof(*st));
    st->cs = cs;
    st->stream = survivors_of(s->stream);
    st->rows[0] = r;
    st->from[0] = r->loc;
    st->chunks[0] = chunk_row_stored(r, stored);
    st->count = 1;
    rc = step_write(st);
    mem_free(st);
    return rc;
}

int chunkstore_compact(struct chunkstore *cs, enum compact_need need,
                       bool (*pause)(void *arg, uint64_t took_ns), void *arg)
{
    struct compact_run run = {.pause = pause, .arg = arg};
    uint64_t left, moved = cs->stats.moved_bytes;
    const struct segment *victim;
    int rc;

    fiber_mutex_lock(&cs->compacting);
    if (!compact_pick(cs, need, &run.segment, &run.why)) {
        fiber_mutex_unlock(&cs->compacting);
        return ERR_NOENT;
    }
    segment_hold(cs->segments, run.segment);
    run.step = mem_zalloc(sizeof(*run.step));
    run.step->cs = cs;
    victim = segment_get(cs->segments, run.segment); /* it is held */
    run.step->stream = survivors_of(victim->stream);
    run.step->gains = run.why == COMPACT_SPARSE || unsafe_gains(cs, run.segment);
    rc = run_whole(&run, victim);
    left = victim->chunks;
    /* What is left was unreadable; or it came, or came back, behind the run's back. An error of
     * where it was to go would meet any segment, and goes by; one of its own does not, and would
     * keep all others from being emptied. */
    if (run.sick || (rc == 0 && !run.stopped && left))
        segment_compact_failed(cs->segments, run.segment, run.step->lost);
    if (run.step->lost)
        log_warn("compact", "segment has chunks that cannot be read segment=%llu",
                 (unsigned long long)run.segment);
    cs->stats.compacted += rc == 0 && left == 0;
    if (run.why != COMPACT_SPARSE)
        cs->stats.rehomed_bytes += cs->stats.moved_bytes - moved;
    if (run.why == COMPACT_UNEVEN && !run.stopped)
        segment_moved_uneven(cs->segments, rc < 0);
    step_drop(run.step);
    segment_release(cs->segments, run.segment);
    fiber_mutex_unlock(&cs->compacting);
    return rc;
}

/* ---- Applying ---- */

struct compact_entry {
    uint64_t id;
    struct segment_loc from, to;
};

static int move_decode(const uint8_t *body, size_t len, struct compact_entry **ret_entries,
                       size_t *ret_count)
{
    struct codec_reader r = codec_reader_on(body, len);
    struct segment_stripe to = {.segment = codec_read_le64(&r)};
    struct compact_entry *entries;
    uint32_t n;

    to.offset = codec_read_le32(&r);
    to.width = codec_read_le32(&r);
    n = codec_read_le32(&r);
    (void)codec_read_le32(&r);
    if (!codec_reader_ok(&r) || n > COMPACT_CHUNKS_MAX || codec_left(&r) != n * COMPACT_ENTRY)
        return ERR_FORMAT;
    entries = mem_calloc(n, sizeof(*entries));
    for (uint32_t i = 0; i < n; i++) {
        struct compact_entry *e = &entries[i];

        e->id = codec_read_le64(&r);
        e->from.stripe.segment = codec_read_le64(&r);
        e->from.stripe.offset = codec_read_le32(&r);
        e->from.stripe.width = codec_read_le32(&r);
        e->from.position = codec_read_le32(&r);
        e->to.stripe = to;
        e->to.position = codec_read_le32(&r);
    }
    *ret_entries = entries;
    *ret_count = n;
    return 0;
}

/* Does not suspend. */
static void move_row(struct chunkstore *cs, struct chunk_row *r, const struct compact_entry *e,
                     struct kv_batch *batch)
{
    if (!same_place(&r->loc, &e->from))
        return;
    if (!PLANTED(MOVE_COUNTED_TWICE))
        segment_account(cs->segments, &r->loc, false);
    chunk_row_relocate(cs, r, &e->to);
    segment_account(cs->segments, &r->loc, true);
    chunk_lost_drop(cs, r->id, batch); /* it could be read */
    chunk_row_put(cs, r, batch);
}

int chunkstore_apply_move(struct chunkstore *cs, const uint8_t *body, size_t len,
                          struct kv_batch *batch)
{
    struct compact_entry *entries;
    struct chunk_row **rows;
    uint64_t *ids;
    size_t n;
    int rc = move_decode(body, len, &entries, &n);

    if (rc < 0)
        return rc;
    rows = mem_calloc(n, sizeof(struct chunk_row *));
    ids = mem_calloc(n, sizeof(*ids));
    for (size_t i = 0; i < n; i++)
        ids[i] = entries[i].id;
    rc = chunk_rows_all(cs, ids, n, rows);
    if (rc == 0) {
        chunk_rows_writing(cs);
        for (size_t i = 0; i < n; i++)
            if (rows[i])
                move_row(cs, rows[i], &entries[i], batch);
        for (size_t i = 0; i < n; i++)
            chunk_row_unpin(cs, rows[i]);
    }
    mem_free(ids);
    mem_free(rows);
    mem_free(entries);
    return rc;
}

/* Scrub: a pass walks all segments in the order of their ids.
 *
 * Drives forget. What nobody reads rots unseen, until a second and a third drive have rotted in the
 * same stripe. So, now and then, everything alive is read from all drives, and what is wrong is
 * made right while there are columns enough to do it (lib/store/segment_mend.c says how, and why
 * writing in place is safe). A pass verifies
 * - both superblocks of each drive that counts,
 * - the fragment headers of each segment with something alive,
 * - all columns of each stripe with something alive, in open segments too, as far as records name
 * it. Segments that were opened after a pass began are the next one's.
 *
 * A segment is held while it is looked at: then it is not freed, its slots stay its own, and what
 * dies or moves meanwhile has its bytes there still. Once nothing in it is alive it is let go, for
 * writes may wait for its room, and a pass that is slow looks at one segment for minutes. What no
 * columns give is lost: that is counted and told (filmroom-fsck --deep names the owners); the chunk
 * stays in the table, for a drive that comes back may have it. A segment that has fewer drives than
 * it takes to decode anything is left out: nothing can be said of it.
 *
 * Scrub gives way: after each stripe it pauses nine times as long as that took while there is other
 * work (as compaction does), as long as it took otherwise, and longer where it would exceed its
 * rate.
 *
 * Where it is, is journaled (RECORD_SCRUB) every few segments, when it is told to start or stop,
 * and at the end; a restart goes on from there. What was counted since the last note is then
 * counted again, or not at all: repairs are idempotent, and counters are there to be looked at.
 *
 * The schedule is kept by the monotonic clock. The wall clock only says, at a start, how long ago
 * the last pass began; whatever it says, nobody waits for longer than one interval. A store that
 * has not seen a pass gets one after an hour.
 */
#include "daemon/scrubber.h"

#include <string.h>

#include "daemon/partition_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

#define SCRUB_ROW_VERSION 1u
#define SCRUB_FIRST       (3600 * ENV_NS_PER_S) /* uptime after which a first pass is due */
#define SCRUB_SETTLE      (10 * ENV_NS_PER_S)   /* after a start, before going on */
#define SCRUB_RETRY       (10 * ENV_NS_PER_S)   /* after an error */
#define SCRUB_TRIES       3u                    /* of one segment */
#define SCRUB_SAVE        16u                   /* segments between two notes */
#define SCRUB_QUIET       8u                    /* records between two stripes: other work */
#define SCRUB_LOOK        (10 * ENV_NS_PER_MS)  /* in a pause: is the segment still in use? */
#define SCRUB_TOLD        32u                   /* findings logged singly, per pass */

struct scrubber {
    struct partition *p;
    struct scrub_state state;
    struct fiber_mutex save_lock;
    struct fiber_cond wake, changed;
    struct fiber_group fibers;
    bool started, stopping;
    bool fresh; /* begin by looking which segments there are */
    uint64_t *ids;
    size_t count, at;                /* of ids; the next one */
    unsigned tries;                  /* of that one, that failed */
    uint64_t unsaved;                /* segments since the last note */
    uint64_t due;                    /* monotonic: when the next pass is; ENV_FOREVER: never */
    uint64_t resumed, resumed_bytes; /* when it went on, and what it had verified by then */
    uint64_t resumed_walked, lap;    /* likewise; until when the pass's time is counted */
    uint64_t lsn;                    /* last record when it last looked */
    const struct segment *held;      /* the one being looked at */
    unsigned told;
    uint64_t passes; /* finished since start */
};

/* ---- The row: version u8, phase u8, next u64, end u64, walked u64, then of this pass and the last
 * one the fields of struct scrub_pass in order ---- */

static void pass_encode(const struct scrub_pass *sp, struct codec_writer *w)
{
    codec_write_le64(w, sp->start_ns);
    codec_write_le64(w, sp->end_ns);
    codec_write_le64(w, sp->took_ns);
    codec_write_le64(w, sp->bytes);
    codec_write_le64(w, sp->found);
    codec_write_le64(w, sp->mended);
    codec_write_le64(w, sp->lost);
    codec_write_le64(w, sp->skipped);
}

static struct scrub_pass pass_decode(struct codec_reader *r)
{
    struct scrub_pass sp;

    sp.start_ns = codec_read_le64(r);
    sp.end_ns = codec_read_le64(r);
    sp.took_ns = codec_read_le64(r);
    sp.bytes = codec_read_le64(r);
    sp.found = codec_read_le64(r);
    sp.mended = codec_read_le64(r);
    sp.lost = codec_read_le64(r);
    sp.skipped = codec_read_le64(r);
    return sp;
}

void scrub_state_encode(const struct scrub_state *st, struct strbuf *out)
{
    uint8_t bytes[2 + 3 * 8 + 2 * 64];
    struct codec_writer w = codec_writer_on(bytes, sizeof(bytes));

    codec_write_u8(&w, SCRUB_ROW_VERSION);
    codec_write_u8(&w, (uint8_t)st->phase);
    codec_write_le64(&w, st->next);
    codec_write_le64(&w, st->end);
    codec_write_le64(&w, st->walked);
    pass_encode(&st->now, &w);
    pass_encode(&st->last, &w);
    CHECK(codec_writer_ok(&w) && codec_written(&w) == sizeof(bytes));
    strbuf_add(out, bytes, sizeof(bytes));
}

int scrub_state_decode(const void *p, size_t len, struct scrub_state *ret_state)
{
    struct codec_reader r = codec_reader_on(p, len);
    uint8_t version = codec_read_u8(&r), phase = codec_read_u8(&r);
    struct scrub_state st = {.phase = (enum scrub_phase)phase};

    st.next = codec_read_le64(&r);
    st.end = codec_read_le64(&r);
    st.walked = codec_read_le64(&r);
    st.now = pass_decode(&r);
    st.last = pass_decode(&r);
    if (!codec_reader_ok(&r) || codec_left(&r) || version != SCRUB_ROW_VERSION ||
        phase > SCRUB_STOPPED)
        return ERR_FORMAT;
    *ret_state = st;
    return 0;
}

/* The scrubber's own state is ahead of what it journals; only replay takes it from there. */
int scrubber_apply(struct scrubber *s, const struct apply *a)
{
    struct scrub_state st;
    int rc = scrub_state_decode(a->body, a->length, &st);

    if (rc < 0)
        return rc;
    if (!a->context)
        s->state = st;
    if (a->kv)
        kv_batch_put(a->kv, KV_META, (struct kv_slice){SCRUB_KEY, strlen(SCRUB_KEY)},
                     (struct kv_slice){a->body, a->length});
    return 0;
}

static int scrub_save(struct scrubber *s)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct iovec iov;
    int rc;

    fiber_mutex_lock(&s->save_lock); /* notes are journaled in the order in which they are taken */
    scrub_state_encode(&s->state, &body);
    iov = (struct iovec){body.data, body.len};
    s->unsaved = 0;
    rc = record_submit(&s->p->log, RECORD_SCRUB, &iov, 1, JOURNAL_INTERNAL, s);
    fiber_mutex_unlock(&s->save_lock);
    return rc;
}

/* ---- Beginning and ending ---- */

static bool scrub_going(const struct scrubber *s)
{
    return s->state.phase == SCRUB_RUNNING && !s->stopping && !s->p->broken;
}

static void scrub_resume(struct scrubber *s)
{
    s->fresh = true;
    s->lap = s->resumed = env_now(s->p->env);
    s->resumed_bytes = s->state.now.bytes;
    s->resumed_walked = s->state.walked;
}

static int scrub_begin(struct scrubber *s)
{
    uint64_t *ids;
    size_t n;

    if (s->p->broken || s->stopping)
        return s->p->broken ? s->p->broken : ERR_SHUTDOWN;
    if (s->state.phase == SCRUB_RUNNING)
        return 0;
    if (s->state.phase == SCRUB_IDLE) {
        n = segments_list(s->p->segments, 0, UINT64_MAX, &ids);
        s->state.next = 0;
        s->state.end = n ? ids[n - 1] : 0;
        s->state.walked = 0;
        s->state.now = (struct scrub_pass){.start_ns = env_wallclock(s->p->env)};
        s->told = 0;
        mem_free(ids);
    }
    log_info("scrub", "%s", s->state.next ? "pass goes on" : "pass begins");
    s->state.phase = SCRUB_RUNNING;
    if (s->p->options.scrub_every_ns)
        s->due = env_now(s->p->env) + s->p->options.scrub_every_ns;
    scrub_resume(s);
    fiber_cond_broadcast(&s->wake);
    return scrub_save(s);
}

/* Counts the time that has passed for the pass under way. */
static void scrub_lap(struct scrubber *s)
{
    uint64_t now = env_now(s->p->env);

    s->state.now.took_ns += now - s->lap;
    s->lap = now;
}

static void scrub_finish(struct scrubber *s)
{
    const struct scrub_pass *l = &s->state.last;

    s->state.now.end_ns = env_wallclock(s->p->env);
    s->state.last = s->state.now;
    s->state.phase = SCRUB_IDLE;
    s->passes++;
    (void)scrub_save(s); /* broken: the next life does what is left of the pass once more */
    log_info("scrub",
             "pass ended ms=%llu bytes=%llu found=%llu repaired=%llu lost=%llu skipped=%llu",
             (unsigned long long)(l->took_ns / ENV_NS_PER_MS), (unsigned long long)l->bytes,
             (unsigned long long)l->found, (unsigned long long)l->mended,
             (unsigned long long)l->lost, (unsigned long long)l->skipped);
    fiber_cond_broadcast(&s->changed);
}

/* ---- A segment ---- */

/* Is there a reason to go on with the segment? One with nothing alive is to be freed: writes may
 * wait for its room. */
static bool scrub_wanted(void *arg)
{
    const struct scrubber *s = arg;

    return scrub_going(s) && s->held->chunks > 0;
}

static void scrub_pause(struct scrubber *s, uint64_t bytes, uint64_t took)
{
    uint64_t rate = s->p->options.scrub_rate, until = env_now(s->p->env);
    bool busy = s->p->processed_lsn > s->lsn + SCRUB_QUIET;

    s->lsn = s->p->processed_lsn;
    scrub_lap(s);
    if (!rate)
        return;
    if (bytes / rate < 3600 && bytes * ENV_NS_PER_S / rate > took)
        until += bytes * ENV_NS_PER_S / rate - took;
    if (until < env_now(s->p->env) + took * (busy ? 9 : 1))
        until = env_now(s->p->env) + took * (busy ? 9 : 1);
    while (scrub_wanted(s) && env_now(s->p->env) < until) {
        uint64_t look = env_now(s->p->env) + SCRUB_LOOK;

        (void)fiber_cond_wait_until(s->p->env, &s->wake, look < until ? look : until);
    }
    scrub_lap(s);
}

static void scrub_count(struct scrubber *s, const struct segment *at, uint32_t offset,
                        const struct segment_verdict *v, struct scrub_pass *sum)
{
    sum->found += (unsigned)__builtin_popcount(v->bad);
    sum->mended += (unsigned)__builtin_popcount(v->mended);
    if ((v->bad || v->torn || v->doubtful) && s->told++ < SCRUB_TOLD)
        log_warn("scrub", "%s segment=%llu stripe=%u bad_columns=%#x repaired=%#x",
                 v->bad == v->mended && v->bad ? "damage found and repaired"
                 : v->torn || v->doubtful
                     ? "damage that does not fit together, what can be read is "
                       "written again elsewhere"
                     : "damage found that cannot be repaired now",
                 (unsigned long long)at->id, offset, v->bad, v->mended);
}

/* What was noted of a chunk, in a time when drives were missing, may not be so any more. */
static void scrub_chunk(struct scrubber *s, const struct chunk_place *place, bool lost,
                        struct scrub_pass *sum)
{
    if (!lost)
        chunkstore_note_back(s->p->chunks, place->id);
    if (!lost || !chunkstore_lies_at(s->p->chunks, place))
        return; /* it went or moved meanwhile */
    chunkstore_note_lost(s->p->chunks, place->id);
    sum->lost++;
    if (s->told++ < SCRUB_TOLD)
        log_error(
            "scrub",
            "a chunk is lost, filmroom-fsck --deep tells whose it was chunk=%llu segment=%llu "
            "stripe=%u",
            (unsigned long long)place->id, (unsigned long long)place->loc.stripe.segment,
            place->loc.stripe.offset);
}

/* The stripe of the n chunks. */
static int scrub_stripe(struct scrubber *s, const struct segment *at,
                        const struct chunk_place *places, size_t n, struct scrub_pass *sum)
{
    uint64_t start = env_now(s->p->env), bytes;
    struct segment_loc *locs = mem_calloc(n, sizeof(*locs));
    bool *lost = mem_calloc(n, sizeof(*lost));
    struct segment_verdict v = {0};
    int rc;

    for (size_t i = 0; i < n; i++)
        locs[i] = places[i].loc;
    rc = segment_mend(s->p->segments, locs, n, lost, &v);
    if (rc == 0) {
        bytes = (uint64_t)locs[0].stripe.width * FORMAT_UNIT *
                (at->k + at->m - (unsigned)__builtin_popcount(v.absent));
        sum->bytes += bytes;
        scrub_count(s, at, locs[0].stripe.offset, &v, sum);
        for (size_t i = 0; i < n; i++)
            scrub_chunk(s, &places[i], lost[i], sum);
        scrub_pause(s, bytes, env_now(s->p->env) - start);
    }
    if (rc == ERR_FORMAT) { /* a chunk whose row has it where none can be: filmroom-fsck tells */
        sum->skipped++;
        rc = 0;
    }
    mem_free(locs);
    mem_free(lost);
    return rc;
}

static int scrub_stripes(struct scrubber *s, const struct segment *at,
                         const struct chunk_place *places, size_t count, struct scrub_pass *sum)
{
    int rc = 0;

    for (size_t i = 0, n; rc == 0 && i < count && scrub_wanted(s); i += n) {
        for (n = 1; i + n < count &&
                    places[i + n].loc.stripe.offset == places[i].loc.stripe.offset &&
                    places[i + n].loc.stripe.width == places[i].loc.stripe.width;)
            n++;
        rc = scrub_stripe(s, at, &places[i], n, sum);
    }
    return rc;
}

static bool scrub_decodable(const struct scrubber *s, const struct segment *at)
{
    unsigned n = 0;

    for (unsigned i = 0; i < at->k + at->m; i++)
        n += drive_readable(&s->p->ds->drives[at->drive[i]]);
    return n >= at->k;
}

/* Looks at one segment; the caller holds it. */
static int scrub_segment(struct scrubber *s, const struct segment *at, struct scrub_pass *sum)
{
    struct segments *ss = s->p->segments;
    struct segment copy = *at;
    struct segment_verdict v;
    struct chunk_place *places;
    size_t count;
    int rc;

    if (!scrub_decodable(s, at)) {
        sum->skipped++;
        return 0;
    }
    rc = segment_mend_headers(ss, copy.id, &v);
    if (rc < 0)
        return rc;
    scrub_count(s, &copy, 0, &v, sum);
    rc = chunkstore_gather(s->p->chunks, copy.id, scrub_wanted, s, &places, &count);
    if (rc < 0)
        return rc == ERR_CANCELED ? 0 : rc;
    rc = scrub_stripes(s, &copy, places, count, sum);
    mem_free(places);
    return rc;
}

/* One segment that cannot be looked at, now or ever, does not keep the others from it: its rows
 * cannot be read, or a drive does not answer. */
static bool scrub_skips(struct scrubber *s, int rc)
{
    if (rc != ERR_KV && rc != ERR_FORMAT && rc != ERR_TIMEDOUT)
        return false;
    return ++s->tries >= SCRUB_TRIES;
}

/* The next segment of the pass, if it is still there and has something alive. */
static int scrub_next(struct scrubber *s)
{
    const struct segment *at = segment_get(s->p->segments, s->ids[s->at]);
    struct scrub_pass sum = {0}, *now = &s->state.now;
    int rc = 0;

    if (at && at->chunks && !at->freeing) {
        uint64_t id = at->id;

        segment_hold(s->p->segments, id);
        s->held = at;
        rc = scrub_segment(s, at, &sum);
        segment_release(s->p->segments, id);
        if (scrub_skips(s, rc)) {
            log_warn("scrub", "a segment cannot be looked at and is skipped segment=%llu error=%s",
                     (unsigned long long)id, err_name(rc));
            sum.skipped++;
            rc = 0;
        }
    }
    now->bytes += sum.bytes;
    now->mended += sum.mended;
    if (rc < 0 || !scrub_going(s)) { /* it is looked at once more */
        now->found += sum.mended;
        return rc;
    }
    now->found += sum.found;
    now->lost += sum.lost;
    now->skipped += sum.skipped;
    s->tries = 0;
    at = segment_get(s->p->segments, s->ids[s->at]);
    s->state.walked += at ? segment_columns_bytes(at) : 0;
    s->state.next = s->ids[s->at++] + 1;
    return ++s->unsaved >= SCRUB_SAVE ? scrub_save(s) : 0;
}

/* ---- The fiber ---- */

static int scrub_supers(struct scrubber *s)
{
    struct scrub_pass *now = &s->state.now;
    bool failed = false;

    driveset_mend_supers(s->p->ds, &now->found, &now->mended, &failed);
    return failed ? driveset_tell(s->p->ds) : 0;
}

static int scrub_step(struct scrubber *s)
{
    if (s->fresh) {
        mem_free(s->ids);
        s->fresh = false;
        s->at = 0;
        s->tries = 0;
        s->count = segments_list(s->p->segments, s->state.next, s->state.end, &s->ids);
        return scrub_supers(s);
    }
    if (s->at < s->count)
        return scrub_next(s);
    scrub_lap(s);
    scrub_finish(s);
    return 0;
}

static void scrub_wait(struct scrubber *s, uint64_t until)
{
    while (!s->stopping && fiber_cond_wait_until(s->p->env, &s->wake, until))
        ;
}

static void scrubber_main(void *arg)
{
    struct scrubber *s = arg;
    bool told = false;

    if (s->state.phase == SCRUB_RUNNING) {
        scrub_wait(s, env_now(s->p->env) + s->p->options.scrub_settle_ns);
        scrub_resume(s);
    }
    while (!s->stopping) {
        int rc = 0;

        if (s->p->broken) {
            fiber_cond_broadcast(&s->changed);
            scrub_wait(s, ENV_FOREVER);
        } else if (s->state.phase == SCRUB_RUNNING)
            rc = scrub_step(s);
        else if (env_now(s->p->env) >= s->due)
            rc = scrub_begin(s);
        else
            (void)fiber_cond_wait_until(s->p->env, &s->wake, s->due);
        if (rc < 0 && !s->p->broken) {
            if (!told && rc != ERR_SHUTDOWN)
                log_warn("scrub", "scrub cannot go on, will try again error=%s", err_name(rc));
            told = true;
            scrub_wait(s, env_now(s->p->env) + SCRUB_RETRY);
            scrub_lap(s);
        }
    }
    fiber_group_done(&s->fibers);
}

/* ---- For administrators ---- */

int partition_scrub_start(struct partition *p)
{
    return scrub_begin(p->scrubber);
}

int partition_scrub_stop(struct partition *p)
{
    struct scrubber *s = p->scrubber;

    if (s->state.phase != SCRUB_RUNNING)
        return 0;
    s->state.phase = SCRUB_STOPPED;
    log_info("scrub", "pass stopped");
    fiber_cond_broadcast(&s->wake);
    fiber_cond_broadcast(&s->changed);
    return scrub_save(s);
}

void partition_scrub_wait(struct partition *p)
{
    const struct scrubber *s = p->scrubber;
    uint64_t passes = s->passes; /* the next one may begin before this fiber sees the end */

    while (scrub_going(s) && s->passes == passes)
        fiber_cond_wait(&p->scrubber->changed);
}

void partition_scrub_status(const struct partition *p, struct scrub_status *ret_status)
{
    const struct scrubber *s = p->scrubber;
    struct scrub_status st = {.state = s->state};
    struct chunkstore_stats chunks;
    uint64_t now = env_now(p->env), ran = now - s->resumed;
    bool running = s->state.phase == SCRUB_RUNNING;

    if (s->state.phase != SCRUB_IDLE)
        st.left = segments_columns_bytes(p->segments, s->state.next, s->state.end);
    if (running && !s->fresh && ran > 0) {
        uint64_t walked = s->state.walked - s->resumed_walked;

        st.rate = (uint64_t)((double)(s->state.now.bytes - s->resumed_bytes) * 1e9 / (double)ran);
        if (walked)
            st.eta_ns = (uint64_t)((double)ran * (double)st.left / (double)walked);
    }
    if (running)
        st.state.now.took_ns += now - s->lap;
    else if (s->due != ENV_FOREVER)
        st.due_ns = env_wallclock(p->env) + (s->due > now ? s->due - now : 0);
    st.lost = s->state.phase != SCRUB_IDLE && s->state.now.lost > s->state.last.lost
                  ? s->state.now.lost
                  : s->state.last.lost;
    chunkstore_get_stats(p->chunks, &chunks);
    st.known_lost = st.lost > chunks.lost ? st.lost : chunks.lost;
    *ret_status = st;
}

/* ---- Life ---- */

struct scrubber *scrubber_new(struct partition *p)
{
    struct scrubber *s = mem_zalloc(sizeof(*s));

    s->p = p;
    s->due = ENV_FOREVER;
    fiber_mutex_init(&s->save_lock);
    fiber_cond_init(&s->wake);
    fiber_cond_init(&s->changed);
    fiber_group_init(&s->fibers);
    return s;
}

int scrubber_load(struct scrubber *s)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    int rc =
        kv_get(s->p->kv, KV_META, (struct kv_slice){SCRUB_KEY, strlen(SCRUB_KEY)}, &value, &len);

    if (rc < 0)
        return rc == ERR_NOENT ? 0 : rc;
    if (scrub_state_decode(value, len, &s->state) < 0)
        log_warn("scrub", "the note of where scrub was is broken, it begins anew");
    return 0;
}

static uint64_t scrub_first_due(const struct scrubber *s)
{
    const struct scrub_pass *of = s->state.phase == SCRUB_IDLE ? &s->state.last : &s->state.now;
    uint64_t every = s->p->options.scrub_every_ns, wall = env_wallclock(s->p->env);
    uint64_t age = wall > of->start_ns ? wall - of->start_ns : 0, wait;

    if (!every)
        return ENV_FOREVER;
    if (of->start_ns)
        wait = age < every ? every - age : 0;
    else
        wait = every < SCRUB_FIRST ? every : SCRUB_FIRST;
    if (wait < s->p->options.scrub_settle_ns)
        wait = s->p->options.scrub_settle_ns;
    return env_now(s->p->env) + wait;
}

void scrubber_start(struct scrubber *s)
{
    if (!s->p->options.scrub_settle_ns)
        s->p->options.scrub_settle_ns = SCRUB_SETTLE;
    s->due = scrub_first_due(s);
    s->lap = s->resumed = env_now(s->p->env);
    s->fresh = true;
    s->started = true;
    fiber_group_add(&s->fibers, 1);
    fiber_spawn(s->p->env, "scrub", scrubber_main, s);
}

void scrubber_stop(struct scrubber *s)
{
    if (!s || !s->started)
        return;
    s->stopping = true;
    fiber_cond_broadcast(&s->wake);
    fiber_cond_broadcast(&s->changed);
    fiber_group_wait(&s->fibers);
    s->started = false;
    if (s->unsaved)
        (void)scrub_save(s); /* else the next life does a few segments once more */
}

void scrubber_free(struct scrubber *s)
{
    if (!s)
        return;
    mem_free(s->ids);
    mem_free(s);
}

void scrubber_observe(struct scrubber *s, struct metrics *m)
{
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_scrub_passes_total",
                      "Passes of scrub that were finished", NULL, &s->passes);
}

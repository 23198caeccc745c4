/* The journal's mirrors: which drives, and how one more becomes one.
 *
 * A mirror that fails is replaced before the next batch counts: somebody waits for that. So the
 * live batches go over in large pieces, several at once, and only what they do not cover is zeroed.
 *
 * Where the mirrors are safe and others would only be better (one is leaving, a faster drive has
 * come), nobody is to wait. A fiber zeroes the new one's area and copies while the writer goes on,
 * a step at a time, until it has caught up; then the writer, between two batches, copies the few
 * that came since and commits. Batches go over in the order of their numbers, so what was copied is
 * always: everything live below some number (`ready`).
 *
 * The fiber's steps and the writer's changes take turns (`mirror_lock`): a mirror may fail at any
 * time, and then the writer takes the drive it needs, with nothing left of what was prepared.
 */
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/drive_io.h"
#include "lib/store/journal_priv.h"

#define COPY_PIECE (1u << 20)
#define COPY_DEPTH 4u         /* pieces at once */
#define WIPE_STEP  (8u << 20) /* zeroed at once while others may wait */

/* ---- Which drives ---- */

/* How good a drive is as a mirror: one that leaves only where there is no other, fast ones first.
 * 0: not at all. */
static unsigned journal_rank(const struct drive *d)
{
    if (!drive_usable(d) || d->transit)
        return 0;
    return d->leaving ? 1 : 2 + (d->class_ != 0);
}

static unsigned journal_mirrors_wanted(const struct journal *j)
{
    unsigned want = j->ds->super.parity_columns + 1u, have = 0;

    for (unsigned i = 0; i < j->ds->count; i++)
        have += journal_rank(&j->ds->drives[i]) > 0;
    return want < have ? want : have;
}

/* The drives that should be mirrors: the best, of equals those that are, and then the first. */
static uint64_t journal_best_mirrors(const struct journal *j)
{
    unsigned want = journal_mirrors_wanted(j);
    uint64_t best = 0;

    while (want-- > 0) {
        unsigned top = 0, at = 0;

        for (unsigned i = 0; i < j->ds->count; i++) {
            unsigned rank = 2 * journal_rank(&j->ds->drives[i]);

            if (rank && (j->mirrors >> i & 1))
                rank++;
            if (!(best >> i & 1) && rank > top) {
                top = rank;
                at = i;
            }
        }
        if (top)
            best |= 1ull << at;
    }
    return best;
}

bool journal_mirrors_safe(const struct journal *j)
{
    unsigned good = 0;

    for (unsigned i = 0; i < j->ds->count; i++)
        if (j->mirrors >> i & 1) {
            if (!drive_usable(&j->ds->drives[i]))
                return false;
            good++;
        }
    return good > 0 && good >= journal_mirrors_wanted(j);
}

bool journal_mirrors_whole(const struct journal *j)
{
    uint64_t best = journal_best_mirrors(j);

    return journal_mirrors_safe(j) && (j->mirrors == best || j->stay == best);
}

/* ---- Copying ---- */

/* A live batch, whole, from a mirror, or from whatever other drive happens to have it. Suspends. */
static int journal_fetch(struct journal *j, const struct journal_extent *e, struct buf **b)
{
    for (int mirror = 1; mirror >= 0; mirror--) {
        for (unsigned i = 0; i < j->ds->count; i++) {
            struct drive *d = &j->ds->drives[i];

            if (!drive_readable(d) || (int)(j->mirrors >> i & 1) != mirror ||
                (d->leaving && !mirror)) /* it may be on its way out (member_let_go) */
                continue;
            if (drive_pread(d, b, e->span, j->ds->super.journal_off + e->off) == 0 &&
                journal_batch_whole(j, (*b)->data, e->span, e->seq))
                return 0;
        }
    }
    return ERR_LOST;
}

/* Live batches that lie behind one another. */
struct copy_piece {
    const struct journal_extent *first;
    unsigned count;
    uint64_t off;
    size_t span;
    struct buf *buf;
};

/* Takes the next live batches from number `from` on; returns the number behind them. */
static uint64_t copy_plan(const struct journal *j, uint64_t from, struct copy_piece *p,
                          unsigned *ret_n)
{
    unsigned n = 0;

    list_for_each (it, &j->extents) {
        const struct journal_extent *e = LIST_ENTRY(it, struct journal_extent, link);
        struct copy_piece *last = n ? &p[n - 1] : NULL;

        if (e->seq < from)
            continue;
        if (last && e->off == last->off + last->span && last->span + e->span <= COPY_PIECE) {
            last->span += e->span;
            last->count++;
        } else if (n < COPY_DEPTH) {
            p[n++] = (struct copy_piece){.first = e, .count = 1, .off = e->off, .span = e->span};
        } else {
            break;
        }
        from = e->seq + 1;
    }
    *ret_n = n;
    return from;
}

/* How many pieces there are still to copy; COPY_DEPTH: or more. */
static unsigned copy_left(const struct journal *j, uint64_t from)
{
    struct copy_piece p[COPY_DEPTH];
    unsigned n;

    (void)copy_plan(j, from, p, &n);
    return n;
}

/* Verifies a piece that was read, batch by batch; what is not whole is had from elsewhere. */
static int copy_check(struct journal *j, struct copy_piece *p, bool read)
{
    const struct list *it = &p->first->link;
    size_t at = 0;
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < p->count; i++, it = it->next) {
        const struct journal_extent *e = LIST_ENTRY(it, struct journal_extent, link);

        if (!read || !journal_batch_whole(j, p->buf->data + at, e->span, e->seq)) {
            struct buf *b = buf_new(e->span);

            rc = journal_fetch(j, e, &b);
            if (rc == 0)
                memcpy(p->buf->data + at, b->data, e->span);
            buf_unref(b);
        }
        at += e->span;
    }
    return rc;
}

static struct drive *copy_source(const struct journal *j)
{
    for (unsigned i = 0; i < j->ds->count; i++)
        if ((j->mirrors >> i & 1) && drive_usable(&j->ds->drives[i]) &&
            drive_readable(&j->ds->drives[i]))
            return &j->ds->drives[i];
    return NULL;
}

/* Fills the pieces: from a mirror at one go, and what that does not give singly. */
static int copy_read(struct journal *j, struct copy_piece *p, unsigned n)
{
    struct drive *from = copy_source(j);
    struct drive_io ios[COPY_DEPTH];
    int rc = 0;

    for (unsigned i = 0; i < n; i++) {
        p[i].buf = buf_new(p[i].span);
        if (from)
            drive_io_prepare(from, &ios[i], ENV_READ, p[i].buf, p[i].buf->data, p[i].span,
                             j->ds->super.journal_off + p[i].off);
    }
    if (from)
        drive_io_run(ios, n);
    for (unsigned i = 0; rc == 0 && i < n; i++) {
        bool read = from && ios[i].result == (int64_t)p[i].span;

        if (!read) { /* it may be written to at any time */
            buf_unref(p[i].buf);
            p[i].buf = buf_new(p[i].span);
        }
        rc = copy_check(j, &p[i], read);
    }
    return rc;
}

static int copy_write(struct journal *j, struct drive *to, const struct copy_piece *p, unsigned n)
{
    struct drive_io ios[COPY_DEPTH];
    int rc = 0;

    for (unsigned i = 0; i < n; i++) {
        drive_io_prepare(to, &ios[i], ENV_WRITE, p[i].buf, p[i].buf->data, p[i].span,
                         j->ds->super.journal_off + p[i].off);
        ios[i].dsync = false;
    }
    drive_io_run(ios, n);
    for (unsigned i = 0; i < n; i++)
        if (rc == 0 && ios[i].result < 0)
            rc = (int)ios[i].result;
    return rc;
}

/* Copies the next few live batches from *seq on to a drive's area; *seq is the next one then, and
 * stays when there is none. trim_lock is held. Suspends. */
static int journal_copy_step(struct journal *j, struct drive *to, uint64_t *seq,
                             bool *ret_target_failed)
{
    struct copy_piece p[COPY_DEPTH] = {0};
    unsigned n;
    uint64_t next = copy_plan(j, *seq, p, &n);
    int rc;

    *ret_target_failed = false;
    if (n == 0)
        return 0;
    rc = copy_read(j, p, n);
    if (rc == 0 && !drive_usable(to))
        rc = ERR_IO; /* it was put out meanwhile, and is not written any more */
    else if (rc == 0) {
        rc = copy_write(j, to, p, n);
        *ret_target_failed = rc < 0;
    }
    for (unsigned i = 0; i < n; i++)
        buf_unref(p[i].buf);
    if (rc == 0)
        *seq = next;
    return rc;
}

/* Zeroes what no live batch covers. trim_lock is held. Suspends. */
static int journal_wipe_rest(struct journal *j, struct drive *to)
{
    uint64_t base = j->ds->super.journal_off, end, first;
    int rc = 0;

    if (list_empty(&j->extents))
        return drive_wipe(to, base, j->cap);
    first = LIST_ENTRY(j->extents.next, struct journal_extent, link)->off;
    end = first;
    list_for_each (it, &j->extents) {
        const struct journal_extent *e = LIST_ENTRY(it, struct journal_extent, link);

        if (rc == 0 && e->off < end) /* it did not fit behind its predecessor (F4) */
            rc = drive_wipe(to, base + end, j->cap - end);
        end = e->off + e->span;
    }
    if (rc == 0 && end <= first) /* they go around the end */
        return drive_wipe(to, base + end, first - end);
    if (rc == 0)
        rc = drive_wipe(to, base + end, j->cap - end);
    return rc == 0 ? drive_wipe(to, base, first) : rc;
}

/* Gives a drive all live batches: those from `ready` on, or, when nothing is prepared, all of them
 * and zeroes around. Suspends. */
static int journal_fill(struct journal *j, struct drive *to, bool *ret_target_failed)
{
    uint64_t seq = j->ready[to->index], before;
    int rc = 0;

    fiber_mutex_lock(&j->trim_lock);
    *ret_target_failed = true;
    if (!seq)
        rc = journal_wipe_rest(j, to);
    do {
        before = seq;
        if (rc == 0 && !PLANTED(MIRROR_NOT_COPIED))
            rc = journal_copy_step(j, to, &seq, ret_target_failed);
    } while (rc == 0 && seq != before);
    fiber_mutex_unlock(&j->trim_lock);
    return rc;
}

/* ---- One more ---- */

/* Nothing is prepared any more. */
static void journal_unready(struct journal *j)
{
    memset(j->ready, 0, sizeof(j->ready));
    j->making = 0;
    j->moves++;
}

/* Brings one more drive in as a mirror; puts it out when it fails. ERR_LOST when a live batch
 * cannot be had from anywhere: to go on would mean fewer copies than promised. Suspends. */
static int journal_add_mirror(struct journal *j, unsigned i, struct buf *extra, size_t extra_span,
                              uint64_t extra_off)
{
    struct drive *to = &j->ds->drives[i];
    bool target_failed = true;
    int rc;

    j->making |= 1ull << i;
    rc = journal_fill(j, to, &target_failed);
    if (rc < 0 && !target_failed && drive_usable(to)) {
        j->making &= ~(1ull << i);
        return rc;
    }
    if (rc == 0 && !drive_usable(to))
        rc = ERR_IO;
    if (rc == 0 && extra)
        rc = drive_pwrite(to, extra, extra_span, j->ds->super.journal_off + extra_off, true);
    if (rc == 0)
        rc = drive_sync(to);
    j->making &= ~(1ull << i);
    if (rc == 0)
        j->mirrors |= 1ull << i;
    else
        driveset_put_out(j->ds, i, "could not take a copy of the journal");
    return 0;
}

static void journal_set_mirrors(struct format_super *super, void *arg)
{
    const struct journal *j = arg;

    super->journal_mirrors = j->mirrors;
    super->clean = 0;
    if (j->running)
        return;
    super->fence_seq = j->head_seq; /* F7 */
    super->fence_epoch = super->epoch + 1;
}

/* Brings those in that should be mirrors and are not. One that fails is put out. Suspends. */
static int journal_add_mirrors(struct journal *j, uint64_t best, struct buf *extra,
                               size_t extra_span, uint64_t extra_off)
{
    int rc = 0;

    /* While one is filled another may begin to leave, and then it must not become one any more. */
    for (unsigned i = 0; rc == 0 && i < j->ds->count; i++)
        if ((best >> i & 1) && !(j->mirrors >> i & 1) && journal_rank(&j->ds->drives[i]) > 0)
            rc = journal_add_mirror(j, i, extra, extra_span, extra_off);
    return rc;
}

static int journal_remirror_locked(struct journal *j, struct buf *extra, size_t extra_span,
                                   uint64_t extra_off)
{
    j->stay = 0;
    for (;;) {
        uint64_t best;
        int rc;

        for (unsigned i = 0; i < j->ds->count; i++)
            if (!drive_usable(&j->ds->drives[i]))
                j->mirrors &= ~(1ull << i);
        best = journal_best_mirrors(j);
        rc = journal_add_mirrors(j, best, extra, extra_span, extra_off);
        if (rc == 0 && best == journal_best_mirrors(j))
            j->mirrors = best; /* all are in; others are not needed any more */
        else if (rc < 0 && journal_mirrors_safe(j))
            j->stay = best; /* it was only a wish: stay with what is right */
        else if (rc < 0)
            return rc;
        rc = driveset_commit(j->ds, true, journal_set_mirrors, j);
        if (rc < 0 || journal_mirrors_whole(j))
            return rc;
    }
}

int journal_remirror(struct journal *j, struct buf *extra, size_t extra_span, uint64_t extra_off)
{
    int rc;

    fiber_mutex_lock(&j->mirror_lock);
    rc = journal_remirror_locked(j, extra, extra_span, extra_off);
    journal_unready(j);
    fiber_mutex_unlock(&j->mirror_lock);
    return rc;
}

/* ---- Wishes ---- */

/* The drives that are to be mirrors and are not. */
static uint64_t journal_wanted(const struct journal *j)
{
    return journal_best_mirrors(j) & ~j->mirrors;
}

bool journal_mirrors_ready(const struct journal *j)
{
    uint64_t wanted = journal_wanted(j);

    for (unsigned i = 0; i < j->ds->count; i++)
        if ((wanted >> i & 1) && !j->ready[i])
            return false;
    return true;
}

/* The next step of preparing drive i: some of its area is zeroed, up to *wiped, or the next batches
 * are copied; *ret_even when what is left to copy is little. mirror_lock is held. Suspends. */
static int move_step(struct journal *j, unsigned i, uint64_t *wiped, uint64_t *seq, bool *ret_even)
{
    struct drive *to = &j->ds->drives[i];
    uint64_t left = j->cap - *wiped, before = *seq;
    bool target_failed = true;
    int rc;

    *ret_even = false;
    if (left) {
        left = left < WIPE_STEP ? left : WIPE_STEP;
        rc = drive_wipe(to, j->ds->super.journal_off + *wiped, left);
        *wiped += left;
    } else {
        fiber_mutex_lock(&j->trim_lock);
        rc = PLANTED(MIRROR_NOT_COPIED) ? 0 : journal_copy_step(j, to, seq, &target_failed);
        fiber_mutex_unlock(&j->trim_lock);
        *ret_even = rc == 0 && (*seq == before || copy_left(j, *seq) < COPY_DEPTH);
    }
    if (rc < 0 && target_failed)
        driveset_put_out(j->ds, i, "could not take a copy of the journal");
    else if (rc < 0 && drive_usable(to))
        j->stay = journal_best_mirrors(j); /* a batch cannot be had: stay with what is right */
    return rc;
}

/* Prepares a drive, unless the mirrors change meanwhile; true when it is as far as the others. */
static bool move_prepare(struct journal *j, unsigned i, uint64_t moves)
{
    uint64_t wiped = j->ready[i] ? j->cap : 0, seq = j->ready[i];
    bool even = false;
    int rc = 0;

    while (rc == 0 && !even && !j->stopping && !j->broken) {
        fiber_mutex_lock(&j->mirror_lock);
        if (j->moves != moves || !(journal_wanted(j) >> i & 1) ||
            j->stay == journal_best_mirrors(j))
            rc = ERR_BUSY;
        else
            rc = move_step(j, i, &wiped, &seq, &even);
        if (rc == 0 && even)
            j->ready[i] = seq ? seq : j->head_seq; /* no batch is alive */
        fiber_mutex_unlock(&j->mirror_lock);
    }
    return rc == 0 && even;
}

static void journal_mover(void *arg)
{
    struct journal *j = arg;
    uint64_t wanted, moves;
    bool good = true;

    fiber_mutex_lock(&j->mirror_lock);
    journal_unready(j);
    moves = j->moves;
    wanted = journal_mirrors_safe(j) ? journal_wanted(j) : 0;
    j->making = wanted;
    fiber_mutex_unlock(&j->mirror_lock);
    /* Twice: while the last one was filled the first ones fell behind. */
    for (unsigned i = 0; good && i < 2 * j->ds->count; i++)
        if (wanted >> (i % j->ds->count) & 1)
            good = move_prepare(j, i % j->ds->count, moves);
    if (!good && j->moves == moves)
        journal_unready(j);
    j->moving = false;
    j->level = true; /* even where nothing came of it: the writer looks for itself */
    fiber_cond_signal(&j->work);
    fiber_group_done(&j->writer);
}

void journal_level(struct journal *j)
{
    if (!j->running || j->stopping || j->broken || j->moving)
        return;
    if (journal_mirrors_whole(j)) {
        if (j->making && !j->level)
            journal_unready(j); /* what was prepared is not wanted any more */
        return;
    }
    if (!journal_mirrors_safe(j)) {
        j->level = true;
        fiber_cond_signal(&j->work);
        return;
    }
    j->moving = true;
    fiber_group_add(&j->writer, 1);
    fiber_spawn(j->ds->env, "journal-mirror", journal_mover, j);
}

/* The journal's writer: appending, group commit, mirrors, trimming. See journal.h and format.h. */
#include "lib/store/journal.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/drive_io.h"
#include "lib/store/journal_priv.h"

#define JOURNAL_CRAMPED    (60 * ENV_NS_PER_S)
#define JOURNAL_SOFT_BATCH (1u << 20) /* a pending batch does not grow over this (or batch_max) */

static size_t journal_record_span(size_t body)
{
    return sizeof(struct format_record) + ((body + 7) & ~(size_t)7);
}

uint64_t journal_store_id(const struct journal *j)
{
    return codec_get_le64(j->ds->super.store_uuid);
}

int journal_open(struct driveset *ds, const struct journal_ops *ops, void *arg,
                 struct journal **ret_journal)
{
    struct journal *j = mem_zalloc(sizeof(*j));

    j->ds = ds;
    j->ops = ops;
    j->arg = arg;
    j->cap = ds->super.journal_len;
    j->batch_max = j->cap / 8 < FORMAT_BATCH_MAX ? j->cap / 8 : FORMAT_BATCH_MAX;
    j->batch_max &= ~(uint64_t)(FORMAT_UNIT - 1);
    j->batch_soft = j->batch_max < JOURNAL_SOFT_BATCH ? (size_t)j->batch_max : JOURNAL_SOFT_BATCH;
    j->mirrors = ds->super.journal_mirrors;
    j->head_off = ds->super.replay_off;
    j->head_seq = ds->super.replay_seq;
    j->next_lsn = j->head_lsn = ds->super.replay_lsn;
    j->keep_lsn = UINT64_MAX;
    list_init(&j->extents);
    fiber_cond_init(&j->work);
    fiber_cond_init(&j->space);
    fiber_mutex_init(&j->trim_lock);
    fiber_group_init(&j->writer);
    metric_hist_init(&j->commit_time, METRIC_TIME);
    metric_hist_init(&j->write_time, METRIC_TIME);
    *ret_journal = j;
    return 0;
}

/* ---- The ring ---- */

uint64_t journal_used(const struct journal *j)
{
    const struct journal_extent *first;

    if (list_empty(&j->extents))
        return 0;
    first = LIST_ENTRY(j->extents.next, struct journal_extent, link);
    return j->head_off > first->off ? j->head_off - first->off : j->cap - first->off + j->head_off;
}

bool journal_place(const struct journal *j, size_t span, uint64_t *ret_off)
{
    const struct journal_extent *first;
    bool at_end = span <= j->cap - j->head_off;

    if (list_empty(&j->extents)) {
        *ret_off = at_end ? j->head_off : 0;
        return true;
    }
    first = LIST_ENTRY(j->extents.next, struct journal_extent, link);
    if (j->head_off > first->off) {
        if (!at_end && span >= first->off)
            return false;
        *ret_off = at_end ? j->head_off : 0;
        return true;
    }
    /* Wrapped already: what lies between head and the oldest is free. Full when they meet. */
    if (span >= first->off - j->head_off)
        return false;
    *ret_off = j->head_off;
    return true;
}

void journal_push_extent(struct journal *j, uint64_t first_lsn, uint32_t records, uint64_t off,
                         size_t span)
{
    struct journal_extent *e = mem_alloc(sizeof(*e));

    CHECK(first_lsn == j->head_lsn);
    *e = (struct journal_extent){
        .seq = j->head_seq, .first_lsn = first_lsn, .off = off, .span = span};
    list_push_back(&j->extents, &e->link);
    j->head_off = off + span;
    j->head_seq++;
    j->head_lsn += records;
}

/* ---- Appending ---- */

size_t journal_record_max(const struct journal *j)
{
    return (size_t)j->batch_max - sizeof(struct format_batch) - sizeof(struct format_record) - 8;
}

uint64_t journal_next_lsn(const struct journal *j)
{
    return j->next_lsn;
}

bool journal_is_tight(const struct journal *j)
{
    return journal_used(j) + j->writing_len + j->pending_len > j->cap - j->batch_max;
}

static bool ring_has_room(const struct journal *j, size_t span, unsigned flags)
{
    uint64_t load = journal_used(j) + j->writing_len + j->pending_len + span;

    if (flags == JOURNAL_DRAIN) /* few and small against what is kept for them */
        return true;
    if (flags == JOURNAL_LAST)
        return !journal_is_tight(j);
    return load <= j->cap - (flags & JOURNAL_INTERNAL ? 2 : 3) * j->batch_max;
}

static bool journal_has_room(const struct journal *j, size_t span, unsigned flags)
{
    return !(j->pending && j->pending_len + span > j->batch_soft) && ring_has_room(j, span, flags);
}

bool journal_has_room_for(const struct journal *j, size_t body, unsigned flags)
{
    return journal_has_room(j, journal_record_span(body), flags);
}

/* Why a record is not to wait for room that there is not; 0: it may. */
static int journal_turns_away(const struct journal *j, size_t span, unsigned flags)
{
    if (j->given_up)
        return j->given_up;
    if (ring_has_room(j, span, flags))
        return 0;
    return flags == JOURNAL_LAST ? ERR_NOSPC : j->refused[flags & JOURNAL_INTERNAL];
}

void journal_refuse(struct journal *j, unsigned flags, int error)
{
    j->refused[flags & JOURNAL_INTERNAL] = error;
    if (error)
        fiber_cond_broadcast(&j->space);
}

void journal_give_up(struct journal *j, int error)
{
    j->given_up = error;
    fiber_cond_broadcast(&j->space);
    fiber_cond_broadcast(&j->work);
}

static struct buf *journal_take_buf(struct journal *j, size_t need)
{
    if (need <= JOURNAL_SOFT_BATCH) {
        for (unsigned i = 0; i < JOURNAL_SPARE_BUFS; i++) {
            struct buf *b = j->spare[i];

            if (b) {
                j->spare[i] = NULL;
                return b;
            }
        }
        need = JOURNAL_SOFT_BATCH;
    }
    return buf_new(journal_span(need));
}

static void journal_put_record(struct journal *j, const struct format_record *head,
                               const struct iovec *iov, unsigned n)
{
    uint8_t *at = j->pending->data + j->pending_len;
    struct format_record r = *head;
    uint8_t *p = at + sizeof(r);

    for (unsigned i = 0; i < n; i++) {
        memcpy(p, iov[i].iov_base, iov[i].iov_len);
        p += iov[i].iov_len;
    }
    r.crc = crc32c(crc32c(0, &r, sizeof(r)), at + sizeof(r), r.length);
    memcpy(at, &r, sizeof(r));
    j->pending_len += journal_record_span(r.length);
    memset(p, 0, (size_t)(j->pending->data + j->pending_len - p));
    j->pending_records++;
}

int journal_append(struct journal *j, uint16_t type, uint16_t version, const struct iovec *iov,
                   unsigned n, unsigned flags, uint64_t *ret_lsn)
{
    size_t body = 0, span;

    for (unsigned i = 0; i < n; i++) {
        if (iov[i].iov_len > journal_record_max(j) - body)
            return ERR_TOOBIG;
        body += iov[i].iov_len;
    }
    span = journal_record_span(body);
    while (!j->broken && !j->stopping && !journal_has_room(j, span, flags)) {
        int rc = journal_turns_away(j, span, flags);

        if (rc < 0)
            return rc;
        fiber_cond_wait(&j->space);
    }
    if (j->broken)
        return j->broken;
    if (j->stopping)
        return ERR_SHUTDOWN;
    if (!j->pending) {
        j->pending = journal_take_buf(j, sizeof(struct format_batch) + span);
        j->pending_len = sizeof(struct format_batch);
        j->pending_records = 0;
        j->pending_first = j->next_lsn;
        j->pending_since = env_now(j->ds->env);
    }
    *ret_lsn = j->next_lsn++;
    journal_put_record(j,
                       &(struct format_record){.length = (uint32_t)body,
                                               .type = type,
                                               .version = version,
                                               .lsn = *ret_lsn,
                                               .epoch = j->ds->super.epoch},
                       iov, n);
    fiber_cond_signal(&j->work);
    return 0;
}

/* ---- Writing ---- */

static void journal_sign(struct journal *j, struct buf *b, size_t length)
{
    struct format_batch h = {.magic = FORMAT_BATCH_MAGIC,
                             .version = FORMAT_VERSION,
                             .seq = j->head_seq,
                             .epoch = j->ds->super.epoch,
                             .store_id = journal_store_id(j),
                             .first_lsn = j->pending_first,
                             .length = (uint32_t)length,
                             .records = j->pending_records};

    h.payload_crc = crc32c(0, b->data + sizeof(h), length - sizeof(h));
    h.crc = crc32c(0, &h, sizeof(h));
    memcpy(b->data, &h, sizeof(h));
    memset(b->data + length, 0, journal_span(length) - length);
}

/* The write of one batch to one mirror. */
struct journal_target {
    struct drive *drive;
    bool shared; /* lies behind one cache with another target: one flush serves both */
    bool good;
};

static unsigned journal_targets(struct journal *j, struct journal_target *t)
{
    unsigned n = 0;

    for (unsigned i = 0; i < j->ds->count; i++)
        if ((j->mirrors >> i & 1) && drive_usable(&j->ds->drives[i]))
            t[n++] = (struct journal_target){.drive = &j->ds->drives[i]};
    for (unsigned i = 0; i < n; i++)
        for (unsigned k = 0; k < n; k++)
            t[i].shared |= k != i && t[i].drive->cache && t[i].drive->cache == t[k].drive->cache;
    return n;
}

static void journal_target_done(struct journal *j, struct journal_target *t,
                                const struct drive_io *io)
{
    t->good = io->result >= 0;
    if (!t->good)
        driveset_put_out(j->ds, t->drive->index, "journal write failed");
}

/* Flushes each cache that several targets share, once. Their space was written long ago
 * (drive_wipe_journal), so that there is nothing else to be made durable. */
static void journal_flush_shared(struct journal *j, struct journal_target *t, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct drive_io io;

        if (!t[i].shared || !t[i].good)
            continue;
        drive_io_prepare(t[i].drive, &io, ENV_SYNC, NULL, NULL, 0, 0);
        drive_io_run(&io, 1);
        journal_target_done(j, &t[i], &io);
        for (unsigned k = i + 1; t[i].good && k < n; k++)
            if (t[k].drive->cache == t[i].drive->cache)
                t[k].shared = false; /* served */
    }
}

/* Writes a batch to every mirror, durable; puts out those that fail. */
static void journal_write_mirrors(struct journal *j, struct buf *b, size_t span, uint64_t off)
{
    struct drive_io ios[FORMAT_DRIVES_MAX];
    struct journal_target t[FORMAT_DRIVES_MAX];
    unsigned n = journal_targets(j, t);

    for (unsigned i = 0; i < n; i++) {
        drive_io_prepare(t[i].drive, &ios[i], ENV_WRITE, b, b->data, span,
                         j->ds->super.journal_off + off);
        ios[i].dsync = !t[i].shared && !PLANTED(JOURNAL_NOT_SYNCED);
    }
    drive_io_run(ios, n);
    for (unsigned i = 0; i < n; i++)
        journal_target_done(j, &t[i], &ios[i]);
    journal_flush_shared(j, t, n);
}

/* How good a drive is as a mirror: one that leaves only where there is no other, fast ones first.
 * 0: not at all. */
static unsigned journal_rank(const struct drive *d)
{
    if (!drive_usable(d) || d->transit || env_now(d->set->env) < d->cramped_till)
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

/* Enough of them, all in service: the promise holds, whether or not others would be better. */
static bool journal_mirrors_safe(const struct journal *j)
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

static bool journal_mirrors_whole(const struct journal *j)
{
    uint64_t best = journal_best_mirrors(j);

    return journal_mirrors_safe(j) && (j->mirrors == best || j->stay == best);
}

/* Live batches that lie one behind the other. */
struct journal_run {
    const struct journal_extent *first, *last;
    size_t len;
};

/* Those from `e` on, as many as a buffer of a batch takes. */
static struct journal_run journal_run_from(const struct journal *j, const struct journal_extent *e)
{
    struct journal_run r = {e, e, e->span};

    for (const struct list *it = e->link.next; it != &j->extents; it = it->next) {
        const struct journal_extent *next = LIST_ENTRY(it, const struct journal_extent, link);

        if (next->off != e->off + r.len || r.len + next->span > j->batch_max)
            break;
        r.last = next;
        r.len += next->span;
    }
    return r;
}

static bool journal_run_whole(const struct journal *j, const struct journal_run *r,
                              const uint8_t *bytes)
{
    for (const struct journal_extent *e = r->first;;
         e = LIST_ENTRY(e->link.next, const struct journal_extent, link)) {
        if (!journal_batch_whole(j, bytes + (e->off - r->first->off), e->span, e->seq))
            return false;
        if (e == r->last)
            return true;
    }
}

/* All of them, whole, from one mirror, or from whatever other drive happens to have them. Suspends.
 */
static int journal_fetch(struct journal *j, const struct journal_run *r, struct buf **b)
{
    for (int mirror = 1; mirror >= 0; mirror--) {
        for (unsigned i = 0; i < j->ds->count; i++) {
            struct drive *d = &j->ds->drives[i];

            if (!drive_readable(d) || (int)(j->mirrors >> i & 1) != mirror ||
                (d->leaving && !mirror)) /* it may be on its way out (member_let_go) */
                continue;
            if (drive_pread(d, b, r->len, j->ds->super.journal_off + r->first->off) == 0 &&
                journal_run_whole(j, r, (*b)->data))
                return 0;
        }
    }
    return ERR_LOST;
}

/* Writes to a drive that is to become a mirror, and may have been put out for something else
 * meanwhile: then it is left alone (drive_io.h). */
static int journal_write_new(struct journal *j, struct drive *to, struct buf *b, size_t span,
                             uint64_t off, bool dsync)
{
    return drive_usable(to) ? drive_pwrite(to, b, span, j->ds->super.journal_off + off, dsync)
                            : ERR_IO;
}

/* Copies all live batches to a drive's area: others wait for it, so many at a time, and one by one
 * where they are not whole together. The extents must not be trimmed away under it. Suspends. */
static int journal_copy(struct journal *j, struct drive *to, bool *ret_target_failed)
{
    struct buf *b = buf_new((size_t)j->batch_max);
    const struct journal_extent *apart = NULL; /* up to this one */
    int rc = 0;

    fiber_mutex_lock(&j->trim_lock);
    for (const struct list *it = j->extents.next; rc == 0 && it != &j->extents;) {
        const struct journal_extent *e = LIST_ENTRY(it, const struct journal_extent, link);
        struct journal_run r = apart ? (struct journal_run){e, e, e->span} : journal_run_from(j, e);

        rc = journal_fetch(j, &r, &b);
        if (rc < 0 && r.last != r.first) {
            apart = r.last;
            rc = 0;
            continue;
        }
        if (rc == 0) {
            rc = journal_write_new(j, to, b, r.len, e->off, false);
            *ret_target_failed = rc < 0;
        }
        if (r.last == apart)
            apart = NULL;
        it = r.last->link.next;
    }
    fiber_mutex_unlock(&j->trim_lock);
    buf_unref(b);
    return rc;
}

/* Brings one more drive in as a mirror; puts it out when it fails. ERR_LOST when a live batch
 * cannot be had from anywhere: to go on would mean fewer copies than promised. Suspends. */
static int journal_add_mirror(struct journal *j, unsigned i, struct buf *extra, size_t extra_span,
                              uint64_t extra_off)
{
    struct drive *to = &j->ds->drives[i];
    bool target_failed = true;
    int rc;

    j->making = 1ull << i;
    rc = drive_wipe_journal(j->ds, to);

    if (rc == 0 && !PLANTED(MIRROR_NOT_COPIED)) {
        target_failed = false;
        rc = journal_copy(j, to, &target_failed);
    }
    if (rc < 0 && !target_failed) {
        j->making = 0;
        return rc;
    }
    if (rc == 0 && extra)
        rc = journal_write_new(j, to, extra, extra_span, extra_off, true);
    if (rc == 0)
        rc = drive_sync(to);
    if (rc == 0 && !drive_usable(to))
        rc = ERR_IO;
    j->making = 0;
    if (rc == 0)
        j->mirrors |= 1ull << i;
    else if (rc == ERR_NOSPC) /* nobody's fault: others are taken, or there are fewer for a while */
        j->cramped |= 1ull << i;
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
    super->epoch++;                 /* F2 */
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

/* The while begins anew until all is done: two drives, of which each takes longer than that to find
 * no space, would else be tried in turn for ever. */
static void journal_keep_cramped(struct journal *j)
{
    for (unsigned i = 0; i < j->ds->count; i++)
        if (j->cramped >> i & 1)
            j->ds->drives[i].cramped_till = env_now(j->ds->env) + JOURNAL_CRAMPED;
}

int journal_remirror(struct journal *j, struct buf *extra, size_t extra_span, uint64_t extra_off)
{
    j->stay = 0;
    j->cramped = 0;
    for (;;) {
        uint64_t best;
        int rc;

        for (unsigned i = 0; i < j->ds->count; i++)
            if (!drive_usable(&j->ds->drives[i]))
                j->mirrors &= ~(1ull << i);
        best = journal_best_mirrors(j);
        rc = journal_add_mirrors(j, best, extra, extra_span, extra_off);
        journal_keep_cramped(j);
        if (rc == 0 && best == journal_best_mirrors(j) && (best & ~j->mirrors) == 0)
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

static int journal_write_batch(struct journal *j, struct buf *b, size_t length, uint64_t off)
{
    size_t span = journal_span(length);

    if (!journal_mirrors_whole(j)) {
        /* A drive was put out elsewhere: level the mirrors first. */
        int rc = journal_remirror(j, NULL, 0, 0);

        if (rc < 0)
            return rc;
    }
    journal_write_mirrors(j, b, span, off);
    if (!journal_mirrors_whole(j))
        return journal_remirror(j, b, span, off);
    return 0;
}

static void journal_break(struct journal *j, int error)
{
    j->broken = error;
    fiber_cond_broadcast(&j->space);
    j->ops->on_broken(j->arg, error);
}

static void journal_hand_on(struct journal *j, struct buf *b, size_t length, uint32_t records,
                            uint64_t first_lsn)
{
    struct journal_batch *batch = mem_alloc(sizeof(*batch));

    *batch = (struct journal_batch){
        .buf = b, .length = length, .records = records, .first_lsn = first_lsn, .journal_ = j};
    list_init(&batch->link);
    j->stat_batches++;
    j->stat_records += records;
    j->stat_bytes += length;
    j->ops->on_durable(j->arg, batch);
}

/* A batch is durable that was begun at `since` and written from `start` on. */
static void journal_measure(struct journal *j, uint64_t since, uint64_t start, size_t length,
                            uint32_t records)
{
    uint64_t now = env_now(j->ds->env);

    metric_record(&j->commit_time, now - since);
    metric_record(&j->write_time, now - start);
    metric_record(&j->batch_records, records);
    metric_record(&j->batch_bytes, length);
    if (slow_is(j->slow, now - since))
        slow_note(j->slow, now, "journal.commit", now - since,
                  "records=%u bytes=%zu waited_us=%llu write_us=%llu", (unsigned)records, length,
                  (unsigned long long)((start - since) / 1000),
                  (unsigned long long)((now - start) / 1000));
}

/* Takes the pending batch and makes it durable. */
static void journal_commit_pending(struct journal *j)
{
    struct buf *b;
    size_t length;
    uint32_t records;
    uint64_t first, off, since = j->pending_since, start;
    int rc;

    /* While it waits for room the batch goes on growing. Nobody was told that it is durable. */
    while (!journal_place(j, journal_span(j->pending_len), &off)) {
        if (j->stopping || j->given_up) {
            journal_break(j, j->given_up ? j->given_up : ERR_SHUTDOWN);
            return;
        }
        fiber_cond_wait(&j->space);
    }
    b = j->pending;
    length = j->pending_len;
    records = j->pending_records;
    first = j->pending_first;
    journal_sign(j, b, length);
    j->pending = NULL;
    j->pending_len = 0;
    j->writing_len = length;
    fiber_cond_broadcast(&j->space); /* the next batch may fill */
    start = env_now(j->ds->env);
    rc = journal_write_batch(j, b, length, off);
    j->writing_len = 0;
    if (rc < 0) {
        buf_unref(b);
        journal_break(j, rc);
        return;
    }
    journal_measure(j, since, start, length, records);
    journal_push_extent(j, first, records, off, journal_span(length));
    journal_hand_on(j, b, length, records, first);
}

static void journal_level_now(struct journal *j)
{
    int rc;

    j->level = false;
    if (journal_mirrors_whole(j))
        return;
    rc = journal_remirror(j, NULL, 0, 0);
    if (rc < 0)
        journal_break(j, rc);
}

void journal_level(struct journal *j)
{
    if (!j->running || journal_mirrors_whole(j))
        return;
    j->level = true;
    fiber_cond_signal(&j->work);
}

bool journal_on_drive(const struct journal *j, unsigned drive)
{
    return (j->mirrors | j->making | j->ds->super.journal_mirrors) >> drive & 1;
}

static void journal_writer(void *arg)
{
    struct journal *j = arg;

    while (!j->broken) {
        if (j->pending)
            journal_commit_pending(j);
        else if (j->stopping)
            break;
        else if (j->level)
            journal_level_now(j);
        else
            fiber_cond_wait(&j->work);
    }
    fiber_group_done(&j->writer);
}

int journal_start(struct journal *j)
{
    int rc = journal_remirror(j, NULL, 0, 0);

    if (rc < 0)
        return rc;
    j->running = true;
    fiber_group_add(&j->writer, 1);
    fiber_spawn(j->ds->env, "journal", journal_writer, j);
    return 0;
}

/* ---- Trimming and the end ---- */

struct journal_replay_point {
    uint64_t seq, off, lsn;
    bool clean;
    uint64_t end_seq, end_off, end_lsn; /* of a clean stop; else 0 */
};

static void journal_set_replay(struct format_super *super, void *arg)
{
    const struct journal_replay_point *p = arg;

    super->replay_seq = p->seq;
    super->replay_off = p->off;
    super->replay_lsn = p->lsn;
    super->clean = p->clean;
    super->clean_seq = p->end_seq;
    super->clean_off = p->end_off;
    super->clean_lsn = p->end_lsn;
}

/* Where replay must begin when it no longer needs any record below lsn. */
static struct journal_replay_point journal_point(const struct journal *j, uint64_t lsn)
{
    list_for_each (it, &j->extents) {
        const struct journal_extent *e = LIST_ENTRY(it, struct journal_extent, link);
        const struct journal_extent *next = LIST_ENTRY(it->next, struct journal_extent, link);
        uint64_t end = it->next == &j->extents ? j->head_lsn : next->first_lsn;

        if (end > lsn)
            return (struct journal_replay_point){.seq = e->seq, .off = e->off, .lsn = e->first_lsn};
    }
    return (struct journal_replay_point){
        .seq = j->head_seq, .off = j->head_off, .lsn = j->head_lsn};
}

int journal_trim(struct journal *j, uint64_t lsn)
{
    struct journal_replay_point p;
    int rc = 0;

    fiber_mutex_lock(&j->trim_lock);
    p = journal_point(j, lsn);
    if (p.seq != j->ds->super.replay_seq)
        rc = driveset_commit(j->ds, false, journal_set_replay, &p);
    while (rc == 0 && !list_empty(&j->extents)) {
        struct journal_extent *e = LIST_ENTRY(j->extents.next, struct journal_extent, link);

        if (e->seq >= p.seq)
            break;
        list_del(&e->link);
        mem_free(e);
        j->stay =
            0; /* the batch that could not be had may be gone: better mirrors are tried again */
    }
    fiber_mutex_unlock(&j->trim_lock);
    fiber_cond_broadcast(&j->space);
    return rc;
}

void journal_keep(struct journal *j, uint64_t lsn)
{
    j->keep_lsn = lsn;
}

int journal_stop(struct journal *j, bool clean)
{
    j->stopping = true;
    fiber_cond_broadcast(&j->space);
    fiber_cond_broadcast(&j->work);
    fiber_group_wait(&j->writer);
    j->running = false;
    if (j->broken)
        return j->broken;
    if (clean) {
        struct journal_replay_point p = journal_point(j, j->keep_lsn);

        p.clean = true;
        p.end_seq = j->head_seq;
        p.end_off = j->head_off;
        p.end_lsn = j->head_lsn;
        return driveset_commit(j->ds, false, journal_set_replay, &p);
    }
    return 0;
}

void journal_free(struct journal *j)
{
    if (!j)
        return;
    CHECK(!j->running);
    for (struct list *it = list_pop_front(&j->extents); it; it = list_pop_front(&j->extents))
        mem_free(LIST_ENTRY(it, struct journal_extent, link));
    buf_unref(j->pending);
    for (unsigned i = 0; i < JOURNAL_SPARE_BUFS; i++)
        buf_unref(j->spare[i]);
    mem_free(j);
}

bool journal_batch_next(const struct journal_batch *b, size_t *pos,
                        struct journal_record *ret_record)
{
    struct format_record r;

    if (*pos == 0)
        *pos = sizeof(struct format_batch);
    if (*pos >= b->length)
        return false;
    memcpy(&r, b->buf->data + *pos, sizeof(r));
    *ret_record = (struct journal_record){.lsn = r.lsn,
                                          .type = r.type,
                                          .version = r.version,
                                          .body = b->buf->data + *pos + sizeof(r),
                                          .length = r.length};
    *pos += journal_record_span(r.length);
    CHECK(*pos <= b->length);
    return true;
}

void journal_batch_free(struct journal_batch *b)
{
    struct journal *j = b->journal_;

    if (b->buf->size == JOURNAL_SOFT_BATCH && b->buf->refs_ == 1) {
        for (unsigned i = 0; i < JOURNAL_SPARE_BUFS; i++) {
            if (!j->spare[i]) {
                j->spare[i] = b->buf;
                b->buf = NULL;
                break;
            }
        }
    }
    buf_unref(b->buf);
    mem_free(b);
}

void journal_get_stats(const struct journal *j, struct journal_stats *ret_stats)
{
    unsigned mirrors = 0;

    for (unsigned i = 0; i < j->ds->count; i++)
        mirrors += (j->mirrors >> i & 1) && drive_usable(&j->ds->drives[i]);
    *ret_stats = (struct journal_stats){.size = j->cap,
                                        .used = journal_used(j),
                                        .batches = j->stat_batches,
                                        .records = j->stat_records,
                                        .bytes = j->stat_bytes,
                                        .next_lsn = j->next_lsn,
                                        .mirrors = mirrors,
                                        .mirrors_wanted = j->ds->super.parity_columns + 1u};
}

void journal_observe(struct journal *j, struct metrics *m, struct slow_log *slow)
{
    j->slow = slow;
    metrics_add_hist(m, "filmroom_journal_commit_seconds",
                     "Time from a batch's first record until the batch is durable on all mirrors",
                     NULL, &j->commit_time);
    metrics_add_hist(m, "filmroom_journal_write_seconds",
                     "Time to write one batch to all mirrors, durable", NULL, &j->write_time);
    metrics_add_hist(m, "filmroom_journal_batch_records", "Records in one batch of the journal",
                     NULL, &j->batch_records);
    metrics_add_hist(m, "filmroom_journal_batch_bytes", "Bytes of one batch of the journal", NULL,
                     &j->batch_bytes);
}

unsigned journal_pressure(const struct journal *j)
{
    return (unsigned)((journal_used(j) + j->pending_len + j->writing_len) * 100 / j->cap);
}

unsigned journal_trimmable(const struct journal *j, uint64_t lsn)
{
    struct journal_replay_point p = journal_point(j, lsn);
    uint64_t kept = p.off < j->head_off ? j->head_off - p.off : j->cap - p.off + j->head_off;

    if (p.seq == j->head_seq)
        kept = 0;
    return (unsigned)((journal_used(j) - kept) * 100 / j->cap);
}

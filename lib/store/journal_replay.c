/* The journal's recovery: what is in the ring, and the proof that it is all.
 *
 * From the replay point on, each position is looked at on every mirror that can be read; a batch is
 * accepted when one of them has it whole with the sequence number that comes next. A mirror without
 * it gets it written again, so that afterwards every mirror holds everything, whichever is lost
 * next.
 *
 * A process that was killed may have left writes that can be read and are not durable: to go on
 * from such a batch and lose it in a power cut would leave a hole. So every mirror is synced before
 * anything is read. Where mirrors differ, the batch of the youngest epoch counts (F7).
 *
 * The first number that no mirror has is the end. By F3 nothing with a higher number can exist
 * then, unless a batch in the middle was damaged on all mirrors: so the whole area of every mirror
 * is searched for a later batch, and finding one is ERR_JOURNAL. Acknowledged data would be
 * missing, and to go on quietly would hide it. What cannot be read says nothing of that kind: some
 * mirror must have been read where the next batch would be, or the end is not known.
 */
#include "lib/store/journal.h"

#include <string.h>

#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"
#include "lib/store/drive_io.h"
#include "lib/store/journal_priv.h"

#define REPLAY_WINDOW (1u << 20)

struct replay_window {
    struct buf *buf;
    uint64_t off; /* of its first byte in the area */
    size_t len;   /* valid bytes */
};

/* The next batch is looked for in two places (F4), each through a window of its own: one would be
 * read anew for every batch. */
enum replay_place { REPLAY_BEHIND, REPLAY_FRONT, REPLAY_PLACES };

/* One mirror's area. */
struct replay_mirror {
    struct drive *drive;
    struct replay_window windows[REPLAY_PLACES];
    bool known; /* its superblock says that it is one, or a batch that is there */
    bool repaired;
    bool unread; /* since this was last cleared: something could not be read */
};

/* The next batch, copied out, and which mirrors have it. */
struct replay_found {
    struct buf *batch;
    struct format_batch head;
    uint64_t off;
    uint8_t has[FORMAT_DRIVES_MAX];
};

struct replay {
    struct journal *j;
    struct replay_mirror mirrors[FORMAT_DRIVES_MAX];
    unsigned count;
};

/* Reads on to the window's end, or no more than what is needed where that fails. Suspends. */
static bool replay_read(struct replay *r, struct replay_mirror *m, struct replay_window *w,
                        size_t want, size_t len)
{
    uint64_t at = r->j->ds->super.journal_off + w->off;

    if (drive_pread(m->drive, &w->buf, want, at) < 0) {
        want = len;
        if (drive_pread(m->drive, &w->buf, want, at) < 0) {
            m->unread = true;
            return false;
        }
    }
    w->len = want;
    return true;
}

/* The bytes [off, off+len) of a mirror's area; NULL when they cannot be read. Valid until the next
 * call for that mirror and place. Suspends. */
static const uint8_t *replay_fetch(struct replay *r, struct replay_mirror *m,
                                   enum replay_place place, uint64_t off, size_t len)
{
    struct replay_window *w = &m->windows[place];
    size_t want = len < REPLAY_WINDOW ? REPLAY_WINDOW : len;

    if (w->buf && off >= w->off && off + len <= w->off + w->len)
        return w->buf->data + (off - w->off);
    if (want > r->j->cap - off)
        want = (size_t)(r->j->cap - off);
    if (want < len)
        return NULL;
    if (!w->buf || w->buf->size < want) {
        buf_unref(w->buf);
        w->buf = buf_new(want);
    }
    w->off = off;
    w->len = 0;
    return replay_read(r, m, w, want, len) ? w->buf->data : NULL;
}

/* The area was written: what was read of it may be old. */
static void replay_forget(struct replay_mirror *m)
{
    for (unsigned i = 0; i < REPLAY_PLACES; i++)
        m->windows[i].len = 0;
}

bool journal_head_valid(const struct journal *j, const uint8_t *p, struct format_batch *ret_head)
{
    struct format_batch h;
    uint32_t crc;

    memcpy(&h, p, sizeof(h));
    if (h.magic != FORMAT_BATCH_MAGIC || h.version != FORMAT_VERSION ||
        h.store_id != journal_store_id(j))
        return false;
    crc = h.crc;
    h.crc = 0;
    if (crc32c(0, &h, sizeof(h)) != crc)
        return false;
    if (h.length < sizeof(h) || h.length > j->batch_max || h.records == 0)
        return false;
    if (h.seq >= j->ds->super.fence_seq && h.epoch < j->ds->super.fence_epoch)
        return false; /* F7 */
    *ret_head = h;
    return true;
}

/* Every record of a batch whose payload CRC fits must fit as well; anything else is damage. */
static bool batch_records_valid(const uint8_t *p, const struct format_batch *h)
{
    size_t pos = sizeof(*h);

    for (uint32_t i = 0; i < h->records; i++) {
        struct format_record r;
        uint32_t crc;

        if (h->length - pos < sizeof(r))
            return false;
        memcpy(&r, p + pos, sizeof(r));
        crc = r.crc;
        r.crc = 0;
        if (r.length > h->length - pos - sizeof(r) || r.lsn != h->first_lsn + i ||
            crc32c(crc32c(0, &r, sizeof(r)), p + pos + sizeof(r), r.length) != crc)
            return false;
        pos += sizeof(r) + ((r.length + 7u) & ~(size_t)7);
        if (pos > h->length)
            return false;
    }
    return pos == h->length;
}

bool journal_batch_whole(const struct journal *j, const uint8_t *p, size_t span, uint64_t seq)
{
    struct format_batch h;

    return journal_head_valid(j, p, &h) && h.seq == seq && journal_span(h.length) == span &&
           crc32c(0, p + sizeof(h), h.length - sizeof(h)) == h.payload_crc &&
           batch_records_valid(p, &h);
}

/* The batch that comes next, at `off` of one mirror; NULL when it is not there, whole. */
static const uint8_t *replay_batch_at(struct replay *r, struct replay_mirror *m,
                                      enum replay_place place, uint64_t off,
                                      struct format_batch *ret_head)
{
    struct format_batch h;
    const uint8_t *p;

    if (off + FORMAT_UNIT > r->j->cap)
        return NULL;
    p = replay_fetch(r, m, place, off, FORMAT_UNIT);
    if (!p || !journal_head_valid(r->j, p, &h) || h.seq != r->j->head_seq ||
        h.first_lsn != r->j->head_lsn || journal_span(h.length) > r->j->cap - off)
        return NULL;
    p = replay_fetch(r, m, place, off, journal_span(h.length));
    if (!p || crc32c(0, p + sizeof(h), h.length - sizeof(h)) != h.payload_crc ||
        !batch_records_valid(p, &h))
        return NULL;
    *ret_head = h;
    return p;
}

/* Writes the accepted batch to the mirrors that lack it. */
static void replay_repair(struct replay *r, const uint8_t *has, struct buf *batch, uint64_t off,
                          size_t span)
{
    for (unsigned i = 0; i < r->count; i++) {
        struct replay_mirror *m = &r->mirrors[i];

        if (has[i] || !drive_usable(m->drive) || PLANTED(REPLAY_NOT_REPAIRED))
            continue;
        m->repaired = true;
        replay_forget(m);
        if (drive_pwrite(m->drive, batch, span, r->j->ds->super.journal_off + off, true) < 0)
            driveset_put_out(r->j->ds, m->drive->index, "journal repair failed");
    }
}

/* Looks for the next batch at one offset of a mirror. One of a younger epoch than what was found so
 * far takes its place. */
static void replay_look(struct replay *r, unsigned i, enum replay_place place,
                        struct replay_found *f)
{
    struct format_batch h;
    uint64_t off = place == REPLAY_FRONT ? 0 : r->j->head_off;
    const uint8_t *p = replay_batch_at(r, &r->mirrors[i], place, off, &h);

    if (!p || (f->batch && h.epoch < f->head.epoch))
        return;
    if (!f->batch || h.epoch > f->head.epoch) {
        buf_unref(f->batch);
        memset(f->has, 0, sizeof(f->has));
        f->batch = buf_new(journal_span(h.length));
        memcpy(f->batch->data, p, f->batch->size);
        f->head = h;
        f->off = off;
    }
    f->has[i] |= f->off == off;
}

/* Has some mirror been read wherever the next batch would be? */
static bool replay_has_looked(const struct replay *r)
{
    for (unsigned i = 0; i < r->count; i++)
        if (r->mirrors[i].known && !r->mirrors[i].unread)
            return true;
    return false;
}

/* Finds the next batch on any mirror: 1, or 0 at the end, or ERR_IO. */
static int replay_next(struct replay *r, struct replay_found *ret_found)
{
    struct journal *j = r->j;
    struct replay_found f = {0};

    for (unsigned i = 0; i < r->count; i++)
        r->mirrors[i].unread = false;
    for (unsigned i = 0; i < r->count; i++)
        replay_look(r, i, REPLAY_BEHIND, &f);
    for (unsigned i = 0; j->head_off && i < r->count; i++)
        replay_look(r, i, REPLAY_FRONT, &f);
    if (!f.batch)
        return replay_has_looked(r) ? 0 : ERR_IO;
    replay_repair(r, f.has, f.batch, f.off, f.batch->size);
    *ret_found = f;
    return 1;
}

/* Is there any batch from this number on in a mirror's area? */
static bool replay_has_from(struct replay *r, struct replay_mirror *m, uint64_t seq)
{
    struct journal *j = r->j;

    for (uint64_t off = 0; off + FORMAT_UNIT <= j->cap; off += FORMAT_UNIT) {
        const uint8_t *p = replay_fetch(r, m, REPLAY_BEHIND, off, FORMAT_UNIT);
        struct format_batch h;

        if (p && journal_head_valid(j, p, &h) && h.seq >= seq)
            return true;
    }
    return false;
}

/* Is there a later one anywhere? Called at the end (see the head of this file). */
static bool replay_finds_later(struct replay *r)
{
    for (unsigned i = 0; i < r->count; i++)
        if (replay_has_from(r, &r->mirrors[i], r->j->head_seq + 1))
            return true;
    return false;
}

/* What lies where a mirror was and has no superblock may be the mirror with that damaged, or an
 * empty disk in its place: then that it has no next batch proves nothing. */
static bool replay_knows(struct replay *r)
{
    bool any = false;

    for (unsigned i = 0; i < r->count; i++) {
        struct replay_mirror *m = &r->mirrors[i];

        m->known = drive_usable(m->drive) || replay_has_from(r, m, 0);
        any |= m->known;
    }
    return any;
}

static int replay_apply(struct replay *r, struct buf *b, const struct format_batch *h,
                        int (*apply)(void *arg, const struct journal_record *rec), void *arg)
{
    struct journal_batch batch = {.buf = b,
                                  .length = h->length,
                                  .records = h->records,
                                  .first_lsn = h->first_lsn,
                                  .journal_ = r->j};
    struct journal_record rec;
    size_t pos = 0;
    int rc = 0;

    while (rc >= 0 && journal_batch_next(&batch, &pos, &rec))
        rc = apply(arg, &rec);
    return rc < 0 ? rc : 0;
}

static int replay_all(struct replay *r, int (*apply)(void *arg, const struct journal_record *rec),
                      void *arg, struct journal_replay_stats *stats)
{
    struct journal *j = r->j;
    struct replay_found f;
    int rc = 0;

    while (rc == 0 && (rc = replay_next(r, &f)) > 0) {
        rc = replay_apply(r, f.batch, &f.head, apply, arg);
        journal_push_extent(j, f.head.first_lsn, f.head.records, f.off, f.batch->size);
        j->next_lsn = j->head_lsn;
        stats->batches++;
        stats->records += f.head.records;
        stats->bytes += f.head.length;
        buf_unref(f.batch);
    }
    if (rc == 0 && replay_finds_later(r))
        rc = ERR_JOURNAL;
    return rc;
}

/* Makes durable what a killed process may have left half way; a drive that cannot is put out. */
static void replay_sync(struct replay *r)
{
    for (unsigned i = 0; i < r->count && !PLANTED(REPLAY_NOT_SYNCED); i++)
        if (drive_sync(r->mirrors[i].drive) < 0)
            driveset_put_out(r->j->ds, r->mirrors[i].drive->index, "journal sync failed");
}

/* No mirror is left. After a clean stop that does not matter: the journal goes on at its end. */
static int replay_nothing(struct journal *j)
{
    struct format_super *s = &j->ds->super;

    if (!s->clean)
        return ERR_JOURNAL;
    if (s->clean_lsn) {
        s->replay_seq = j->head_seq = s->clean_seq;
        s->replay_off = j->head_off = s->clean_off;
        s->replay_lsn = j->head_lsn = j->next_lsn = s->clean_lsn;
    }
    return 0;
}

int journal_replay(struct journal *j, int (*apply)(void *arg, const struct journal_record *r),
                   void *arg, struct journal_replay_stats *ret_stats)
{
    struct journal_replay_stats stats = {0};
    uint64_t start = env_now(j->ds->env);
    struct replay *r = mem_zalloc(sizeof(*r));
    int rc;

    r->j = j;
    for (unsigned i = 0; i < j->ds->count; i++)
        if ((j->mirrors >> i & 1) && drive_readable(&j->ds->drives[i]))
            r->mirrors[r->count++].drive = &j->ds->drives[i];
    replay_sync(r);
    if (!replay_knows(r))
        rc = replay_nothing(j);
    else
        rc = replay_all(r, apply, arg, &stats);
    for (unsigned i = 0; i < r->count; i++) {
        stats.mirrors_repaired += r->mirrors[i].repaired;
        for (unsigned k = 0; k < REPLAY_PLACES; k++)
            buf_unref(r->mirrors[i].windows[k].buf);
    }
    mem_free(r);
    if (rc < 0)
        return rc;
    stats.ns = env_now(j->ds->env) - start;
    *ret_stats = stats;
    return 0;
}

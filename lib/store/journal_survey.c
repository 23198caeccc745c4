/* What is in the journal's ring, for people: every whole batch, also those that no replay would
 * want any more. Nothing is written and nothing is concluded; that is journal_replay.c's.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/store/drive_io.h"
#include "lib/store/journal_priv.h"

#define SURVEY_WINDOW (1u << 20)

struct survey {
    struct journal *j;
    struct journal_seen *seen;
    size_t count, room;
};

/* Reads the batch at `off` of a mirror if it is whole; NULL otherwise. */
static struct buf *survey_fetch(struct journal *j, struct drive *d, uint64_t off,
                                const struct format_batch *h)
{
    size_t span = journal_span(h->length);
    struct buf *b;

    if (off > j->cap || span > j->cap - off)
        return NULL;
    b = buf_new(span);
    if (drive_pread(d, &b, span, j->ds->super.journal_off + off) == 0 &&
        journal_batch_whole(j, b->data, span, h->seq))
        return b;
    buf_unref(b);
    return NULL;
}

static void survey_note(struct survey *s, const struct drive *d, uint64_t off,
                        const struct format_batch *h)
{
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 256; /* at most one for each unit of each mirror */
        s->seen = mem_realloc(s->seen, s->room * sizeof(*s->seen));
    }
    s->seen[s->count++] = (struct journal_seen){.seq = h->seq,
                                                .epoch = h->epoch,
                                                .first_lsn = h->first_lsn,
                                                .off = off,
                                                .length = h->length,
                                                .records = h->records,
                                                .mirrors = 1ull << d->index};
}

static void survey_mirror(struct survey *s, struct drive *d)
{
    struct journal *j = s->j;
    struct buf *window = buf_new(SURVEY_WINDOW);
    uint64_t skip = 0;

    for (uint64_t at = 0; at < j->cap; at += SURVEY_WINDOW) {
        size_t len = j->cap - at < SURVEY_WINDOW ? (size_t)(j->cap - at) : SURVEY_WINDOW;

        if (drive_pread(d, &window, len, j->ds->super.journal_off + at) < 0)
            continue; /* unreadable parts hold nothing to tell of */
        for (size_t i = 0; i + FORMAT_UNIT <= len; i += FORMAT_UNIT) {
            struct format_batch h;
            struct buf *b;

            if (at + i < skip || !journal_head_valid(j, window->data + i, &h))
                continue;
            b = survey_fetch(j, d, at + i, &h);
            if (!b)
                continue;
            survey_note(s, d, at + i, &h);
            skip = at + i + journal_span(h.length); /* what it contains is not the journal's */
            buf_unref(b);
        }
    }
    buf_unref(window);
}

static int seen_compare(const void *a, const void *b)
{
    const struct journal_seen *x = a, *y = b;

    if (x->seq != y->seq)
        return x->seq < y->seq ? -1 : 1;
    if (x->epoch != y->epoch)
        return x->epoch < y->epoch ? -1 : 1;
    return (x->off > y->off) - (x->off < y->off);
}

int journal_survey(struct journal *j, struct journal_seen **ret_seen, size_t *ret_count)
{
    struct survey s = {.j = j};
    unsigned mirrors = 0;
    size_t n = 0;

    for (unsigned i = 0; i < j->ds->count; i++) {
        if (!(j->mirrors >> i & 1) || !drive_readable(&j->ds->drives[i]))
            continue;
        mirrors++;
        survey_mirror(&s, &j->ds->drives[i]);
    }
    if (mirrors == 0)
        return ERR_LOST;
    if (s.count)
        qsort(s.seen, s.count, sizeof(*s.seen), seen_compare);
    for (size_t i = 0; i < s.count; i++) {
        if (n && seen_compare(&s.seen[n - 1], &s.seen[i]) == 0)
            s.seen[n - 1].mirrors |= s.seen[i].mirrors;
        else
            s.seen[n++] = s.seen[i];
    }
    *ret_seen = s.seen;
    *ret_count = n;
    return 0;
}

int journal_survey_read(struct journal *j, const struct journal_seen *seen,
                        struct journal_batch **ret_batch)
{
    struct format_batch h = {.seq = seen->seq, .length = seen->length};

    for (unsigned i = 0; i < j->ds->count; i++) {
        struct journal_batch *batch;
        struct buf *b = NULL;

        if (seen->mirrors >> i & 1)
            b = survey_fetch(j, &j->ds->drives[i], seen->off, &h);
        if (!b)
            continue;
        batch = mem_zalloc(sizeof(*batch));
        *batch = (struct journal_batch){.buf = b,
                                        .length = seen->length,
                                        .records = seen->records,
                                        .first_lsn = seen->first_lsn,
                                        .journal_ = j};
        *ret_batch = batch;
        return 0;
    }
    return ERR_LOST;
}

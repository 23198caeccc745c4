/* The copy of the metadata on the drives.
 *
 * All mutable metadata is in the KV store, which is on one file system. Here a copy of it is kept
 * in stripes like any data, so that the loss of the KV store costs time and nothing else:
 *
 *   the copy  +  the journal from `upto` on  =  the exact state
 *
 * Runs. The copy is a base and increments. An increment has every row that changed between two
 * checkpoints, with the value that it had at the second one, deletions too: changed rows are
 * gathered in memory as records are applied, and at a checkpoint the set is frozen, in the same
 * step in which its LSN (`settled`) and `upto` are settled. So an increment is of one moment
 * though others go on while it is written. A base has all rows, read from the KV store while
 * others write: each is as old as the start of the reading, or newer. What changed meanwhile is in
 * later increments, so base and later increments together are exact again: it is named with the
 * first increment that was frozen after it was ready. That needs no snapshot of the KV store, and
 * no merging of runs: when increments outgrow the base, a new base takes the place of all of them.
 * It is written by a fiber of its own, with rests, while checkpoints go on. Runs are cut into
 * chunks where keys say so, not sizes; what did not change is found again by the chunk store, and a
 * new base costs hardly more writes than its changes.
 *
 * Pieces. A run may be of any size; nothing that has to do with it is. It is written in pieces of a
 * few MiB, each with a record (RECORD_IMAGE_PIECE) that brings its chunks into the table and refers
 * to them from a row of KV_META. The chunks of a run are listed in its index, which is chunks too,
 * so that the root is small. Runs that are not part of the copy any more, or never came to be, are
 * dropped piece by piece (RECORD_IMAGE_DROP). Compaction, rebuilding of lost drives, and the audit
 * need to know no more than that there are chunks and references.
 *
 * The root. RECORD_IMAGE names all runs, with the chunks of their indexes. It is journaled after
 * they are durable, its LSN is above `settled`, and the journal is trimmed up to `upto` <=
 * `settled` + 1 only after it is durable: so the journal always has the record of the newest copy.
 * A clean stop leaves it there too (journal_keep). Where chunks lie is not in it: they may be moved
 * at any time. Segments describe themselves, those of the copy are marked as such, and an id stands
 * for one content for ever: so whatever is found under an id, and is whole, is right.
 *
 * After a start. The KV store is ahead of the copy; the sets that were in memory are gone. So each
 * batch in the KV store carries a list of the keys that it changes (KV_IMAGE); at start the rows of
 * all lists are gathered anew. Rows too many do no harm: a row that did not change since has the
 * same value in the copy. The lists up to `settled` are deleted after each checkpoint. Runs that
 * were written and not named are dropped.
 *
 * Derived rows are not in the copy: the fingerprint index, the lists, and of KV_META what belongs
 * to one KV store ("store", "trim").
 *
 * Losing it. When the set of changed rows grows too large, because copies fail, it is given up, and
 * the next copy begins with a new base. The KV store gets a mark, so that a restart knows. Until
 * there is a base to build upon no lists are needed, but from the start of its writing they are:
 * the record that names it may be one that is replayed.
 *
 * Room. A base, increments as large, and a new base that has all of both: at most the copy takes
 * four times its base. What it does not take yet of that is kept from users (image_keep), so that
 * it is the same for them whether a copy has just been written or is about to be. Should one fail
 * to be written in spite of that, the checkpoint goes on without: serving comes before the second
 * copy, and a journal that cannot be trimmed would stop everything. Nothing is forgotten then, the
 * next copy takes it in; until then a lost KV store cannot be made anew, and that is logged and in
 * the metrics.
 */
#include "daemon/image.h"

#include <string.h>

#include "daemon/image_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define IMAGE_GROW_MIN   (256u * 1024)
#define IMAGE_RUNS_MAX   48u
#define IMAGE_REST_PART  8u
#define IMAGE_PAGE       1024u
#define IMAGE_PAGE_BYTES (512u * 1024)
#define IMAGE_RETRY      (10 * ENV_NS_PER_S)
#define IMAGE_RETRY_MAX  (600 * ENV_NS_PER_S)
#define IMAGE_TICK       ENV_NS_PER_S
#define IMAGE_LOCK_WAIT  (2 * ENV_NS_PER_S)

const struct kv_slice image_meta_key = {IMAGE_META_KEY, sizeof(IMAGE_META_KEY) - 1};
const struct kv_slice image_mended_key = {IMAGE_MENDED_KEY, sizeof(IMAGE_MENDED_KEY) - 1};
const struct kv_slice image_sum_key = {IMAGE_SUM_KEY, sizeof(IMAGE_SUM_KEY) - 1};

void image_new(struct partition *p, struct image **ret_image)
{
    struct image *im = mem_zalloc(sizeof(*im));

    im->p = p;
    im->lost = im->replaying = true;
    im->active = kv_changes_new(IMAGE_TABLES_OUT);
    fiber_mutex_init(&im->base_lock);
    fiber_cond_init(&im->work);
    *ret_image = im;
}

void image_free(struct image *im)
{
    if (!im)
        return;
    mem_free(im->base.index);
    for (uint32_t i = 0; i < im->waiting_count; i++)
        mem_free(im->waiting[i].index);
    mem_free(im->waiting);
    mem_free(im->leaving);
    kv_changes_free(im->active);
    kv_changes_free(im->frozen);
    image_form_free(&im->named);
    mem_free(im);
}

/* ---- What changes ---- */

/* Is there a base, or about to be one, that what changes has to be added to? */
static bool gathers(const struct image *im)
{
    return !im->lost || im->building || im->base_ready || im->naming || im->replaying;
}

static void note_key(void *arg, enum kv_table t, struct kv_slice key)
{
    uint64_t number;
    uint32_t piece;

    /* The few rows of KV_META are always taken along, but pieces may be many; and it has to be
     * known which ones are gone. */
    if (!(IMAGE_TABLES_OUT >> t & 1) &&
        (t != KV_META || image_piece_is(key, &number, &piece) || chunk_lost_id(key, &number)))
        image_row_encode(arg, t, key, NULL);
}

static void changed_key(uint64_t lsn, uint8_t key[9])
{
    key[0] = IMAGE_CHANGED_KEY;
    codec_put_be64(key + 1, lsn);
}

void image_note(struct image *im, struct kv_batch *batch, uint64_t lsn)
{
    STRBUF_AUTO struct strbuf keys = STRBUF_INIT;
    uint8_t key[9];

    if (im->unmarked)
        kv_batch_put(batch, KV_IMAGE, image_mended_key, (struct kv_slice){"", 0});
    im->unmarked = false;
    if (!gathers(im))
        return;
    kv_batch_keys(batch, note_key, &keys);
    changed_key(lsn, key);
    if (keys.len)
        kv_batch_put(batch, KV_IMAGE, (struct kv_slice){key, sizeof(key)},
                     (struct kv_slice){keys.data, keys.len});
}

void image_take(struct image *im, const struct kv_batch *batch)
{
    if (!gathers(im))
        return;
    kv_changes_add(im->active, batch);
    if (kv_changes_bytes(im->active) > IMAGE_SET_MOST && !im->naming)
        image_lose(im);
}

static void drop_waiting(struct image *im)
{
    for (uint32_t i = 0; i < im->waiting_count; i++)
        image_leave(im, &im->waiting[i]);
    im->waiting_count = 0;
}

void image_lose(struct image *im)
{
    kv_changes_free(im->active);
    im->active = kv_changes_new(IMAGE_TABLES_OUT);
    im->lost = im->unmarked = true;
    im->spoilt |= im->building || im->replaying;
    if (im->base_ready)
        image_leave(im, &im->base);
    im->base_ready = im->base_settled = false;
    drop_waiting(im);
}

void image_put_off(struct image *im)
{
    im->retry_wait = im->retry_wait ? 2 * im->retry_wait : IMAGE_RETRY;
    if (im->retry_wait > IMAGE_RETRY_MAX)
        im->retry_wait = IMAGE_RETRY_MAX;
    im->retry_at = env_now(im->p->env) + im->retry_wait;
}

static bool may_try(const struct image *im)
{
    return env_now(im->p->env) >= im->retry_at && !im->p->broken;
}

bool image_due(const struct image *im)
{
    return may_try(im) &&
           ((im->lost && im->base_ready) || kv_changes_bytes(im->active) > IMAGE_SET_MAX);
}

uint64_t image_upto(const struct image *im)
{
    return im->named.lsn ? im->named.upto : UINT64_MAX;
}

void image_sizes(const struct image *im, uint64_t *ret_base, uint64_t *ret_rest)
{
    uint64_t base = 0, rest = 0;

    for (uint32_t i = 0; i < im->named.count; i++)
        *(im->named.runs[i].base ? &base : &rest) += im->named.runs[i].bytes;
    *ret_base = base;
    *ret_rest = rest;
}

void image_keep(struct image *im)
{
    uint64_t base, rest, most, taken;

    image_sizes(im, &base, &rest);
    most = rest < base ? 4 * base : 2 * (base + rest);
    taken = base + rest + im->unnamed;
    if (im->sum.raw)
        im->shrink = (double)im->sum.stored / (double)im->sum.raw;
    chunkstore_keep(im->p->chunks,
                    most > taken ? (uint64_t)((double)(most - taken) * im->shrink) : 0);
}

/* ---- At start ---- */

int image_walk(struct image *im, enum kv_table t, struct kv_slice from, struct kv_slice to,
               int (*row)(void *arg, enum kv_table t, const struct kv_row *row), void *arg)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *at;
    int rc;

    kv_walk_init(&w, im->p->kv, t, from, to, IMAGE_PAGE, IMAGE_PAGE_BYTES);
    while ((rc = kv_walk_next(&w, &at)) > 0) {
        rc = row(arg, t, at);
        if (rc < 0)
            return rc;
    }
    return rc;
}

/* Takes a row as it is now. */
static int take_now(struct image *im, enum kv_table t, struct kv_slice key)
{
    MEM_AUTO void *value = NULL;
    struct kv_slice now;
    size_t len;
    int rc = kv_get(im->p->kv, t, key, &value, &len);

    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    now = (struct kv_slice){value, len};
    kv_changes_set(im->active, t, key, rc == 0 ? &now : NULL);
    if (kv_changes_bytes(im->active) > IMAGE_SET_MOST)
        image_lose(im);
    return 0;
}

static int take_list(void *arg, enum kv_table t, const struct kv_row *row)
{
    struct image *im = arg;
    const uint8_t *p = row->value.data;
    size_t left = row->value.len, used;
    struct kv_change change;
    int rc = 0;

    (void)t;
    while (rc == 0 && left && !im->spoilt) {
        if (image_row_decode(p, left, &change, &used) < 0) {
            log_warn("image", "a list of changes is broken: the metadata's copy is made anew");
            image_lose(im);
            return 0;
        }
        rc = take_now(im, change.table, change.key);
        p += used;
        left -= used;
    }
    return rc;
}

bool image_meta_is_local(struct kv_slice key)
{
    return (key.len == 5 && memcmp(key.data, "store", 5) == 0) ||
           (key.len == 4 && memcmp(key.data, "trim", 4) == 0);
}

static int take_meta(void *arg, enum kv_table t, const struct kv_row *row)
{
    struct image *im = arg;

    if (!image_meta_is_local(row->key))
        kv_changes_set(im->active, t, row->key, &row->value);
    return 0;
}

/* All of KV_META but the pieces. */
static int take_metas(struct image *im)
{
    struct kv_slice first = {"", 1}, last = {"", 0};
    int rc = image_walk(im, KV_META, first, image_pieces_from(), take_meta, im);

    return rc == 0 ? image_walk(im, KV_META, image_pieces_to(), last, take_meta, im) : rc;
}

static int load_sum(struct image *im)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    int rc = kv_get(im->p->kv, KV_META, image_sum_key, &value, &len);

    if (rc < 0)
        return rc == ERR_NOENT ? 0 : rc;
    (void)image_sum_decode((struct kv_slice){value, len}, &im->sum); /* or begin at zero */
    return 0;
}

static int load_form(struct image *im)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    int rc = kv_get(im->p->kv, KV_META, image_meta_key, &value, &len);

    if (rc < 0)
        return rc == ERR_NOENT ? 0 : rc;
    rc = image_form_decode(value, len, &im->named);
    if (rc < 0) {
        log_warn("image", "the row of the metadata's copy is broken: it is made anew");
        im->unmarked = true;
        return 0;
    }
    mem_free(value);
    value = NULL;
    rc = kv_get(im->p->kv, KV_IMAGE, image_mended_key, &value, &len);
    im->lost = rc == 0;
    return rc == ERR_NOENT ? 0 : rc;
}

int image_load(struct image *im)
{
    static const uint8_t from[] = {IMAGE_CHANGED_KEY}, to[] = {IMAGE_CHANGED_KEY + 1};
    int rc = load_form(im);

    if (rc == 0)
        rc = load_sum(im);
    if (rc < 0 || PLANTED(IMAGE_FORGETS))
        return rc;
    rc = take_metas(im);
    if (rc == 0)
        rc = image_walk(im, KV_IMAGE, (struct kv_slice){from, sizeof(from)},
                        (struct kv_slice){to, sizeof(to)}, take_list, im);
    return rc;
}

int image_begin(struct image *im)
{
    int rc = image_find_left(im);

    im->replaying = im->spoilt = false;
    if (im->lost) {
        kv_changes_free(im->active);
        im->active = kv_changes_new(IMAGE_TABLES_OUT);
    }
    image_keep(im);
    return rc;
}

/* ---- In the background ---- */

/* There are many runs. A base in their place is as much work as all the metadata: it has to be
 * worth that, or the record that names them is on its way to be too long. */
static bool list_is_long(const struct image *im, uint64_t base, uint64_t rest)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;

    if (im->named.count <= IMAGE_RUNS_MAX)
        return false;
    if (rest > base / IMAGE_REST_PART || im->named.count > IMAGE_FORM_RUNS / 4)
        return true;
    image_form_encode(&im->named, &body);
    return body.len > journal_record_max(im->p->journal) / 4;
}

/* Is a new base wanted: the first (the first one ever is written by the first checkpoint), or one
 * in the place of all that has gathered? */
static bool base_wanted(const struct image *im)
{
    uint64_t base, rest;

    if (im->base_ready || !may_try(im))
        return false;
    if (im->lost)
        return im->p->ds->super.replay_lsn > 1;
    image_sizes(im, &base, &rest);
    return rest > base + IMAGE_GROW_MIN || list_is_long(im, base, rest);
}

void image_run(struct image *im)
{
    while (!im->p->stopping) {
        if (base_wanted(im)) {
            fiber_mutex_lock(&im->base_lock);
            if (base_wanted(im))
                image_write_base(im, false);
            fiber_mutex_unlock(&im->base_lock);
        }
        if (!im->p->stopping && !im->p->broken)
            (void)image_drop_left(im); /* or the next time */
        if (!im->p->stopping)
            (void)fiber_cond_wait_until(im->p->env, &im->work, env_now(im->p->env) + IMAGE_TICK);
    }
}

void image_stop(struct image *im)
{
    fiber_cond_broadcast(&im->work);
}

/* ---- At a checkpoint ---- */

void image_freeze(struct image *im)
{
    CHECK(!im->frozen);
    im->frozen = im->active;
    im->active = kv_changes_new(IMAGE_TABLES_OUT);
    im->frozen_at = im->p->processed_lsn;
    im->base_settled = im->base_ready;
}

/* Who is at a base already does not rest any more and takes what is kept of the journal for
 * checkpoints, as we would: it is done in a moment, or at a stop ends at once. */
static bool base_lock_soon(struct image *im)
{
    uint64_t end = env_now(im->p->env) + IMAGE_LOCK_WAIT;
    bool locked;

    im->base_hurry = true;
    while (!(locked = fiber_mutex_try(&im->base_lock)) && env_now(im->p->env) < end)
        env_sleep(im->p->env, ENV_NS_PER_MS);
    im->base_hurry = false;
    return locked;
}

void image_prepare(struct image *im)
{
    struct chunkstore_stats s;

    chunkstore_get_stats(im->p->chunks, &s);
    if (!im->lost || im->base_ready || !may_try(im) ||
        (im->p->ds->super.replay_lsn > 1 && s.chunks > im->p->options.copy_at_once))
        return;
    if (!base_lock_soon(im))
        return;
    if (im->lost && !im->base_ready && may_try(im))
        image_write_base(im, true);
    fiber_mutex_unlock(&im->base_lock);
}

/* Does the run go into the next record? */
static bool run_stays(const struct image *im, const struct image_run *r)
{
    return !im->base_settled || (!r->base && r->order > im->base.order);
}

/* The runs that the next record names: shallow copies, but for the list itself. */
static struct image_form form_next(const struct image *im)
{
    struct image_form f = {
        .runs = mem_calloc(im->named.count + im->waiting_count + 1, sizeof(*f.runs))};

    if (im->base_settled)
        f.runs[f.count++] = im->base;
    for (uint32_t i = 0; i < im->named.count; i++)
        if (run_stays(im, &im->named.runs[i]))
            f.runs[f.count++] = im->named.runs[i];
    for (uint32_t i = 0; i < im->waiting_count; i++)
        if (run_stays(im, &im->waiting[i]))
            f.runs[f.count++] = im->waiting[i];
    return f;
}

/* They are named now, or superseded: applying the record has sorted that out for those named. */
static void runs_named(struct image *im)
{
    for (uint32_t i = 0; i < im->waiting_count; i++) {
        im->unnamed -= im->waiting[i].bytes;
        mem_free(im->waiting[i].index);
    }
    im->waiting_count = 0;
    if (!im->base_settled)
        return;
    im->unnamed -= im->base.bytes;
    mem_free(im->base.index);
    im->base = (struct image_run){0};
    im->base_ready = im->base_settled = false;
}

static int image_name(struct image *im, uint64_t settled, uint64_t upto)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct image_form next = form_next(im);
    struct iovec iov;
    int rc;

    next.settled = settled;
    next.upto = upto;
    next.time = env_wallclock(im->p->env);
    image_form_encode(&next, &body);
    iov = (struct iovec){body.data, body.len};
    rc = next.count > IMAGE_FORM_RUNS || body.len > journal_record_max(im->p->journal) ? ERR_TOOBIG
                                                                                       : 0;
    mem_free(next.runs);
    im->naming = true;
    if (rc == 0 && journal_is_tight(im->p->journal))
        rc = ERR_AGAIN; /* see piece_await_room */
    if (rc == 0)
        rc = record_submit(&im->p->log, RECORD_IMAGE, &iov, 1, JOURNAL_LAST, NULL);
    if (rc == 0)
        runs_named(im);
    im->naming = false;
    return rc;
}

/* A copy could not be written. At a stop that is no failure, and nothing is put off: the checkpoint
 * has to end there, and so has the next one. */
static void copy_failed(struct image *im, int error)
{
    if (error == ERR_SHUTDOWN)
        return;
    image_put_off(im);
    im->stats.failures++;
}

/* It did not come to be: the next copy has to have what was frozen. That may be a million rows;
 * what has changed since is little. */
static void thaw(struct image *im)
{
    kv_changes_add_newer(im->frozen, im->active);
    kv_changes_free(im->active);
    im->active = im->frozen;
    im->frozen = NULL;
    if (kv_changes_bytes(im->active) > IMAGE_SET_MOST)
        image_lose(im);
}

/* The increment is written, and waits to be named. */
static void increment_waits(struct image *im, struct image_run *run)
{
    im->waiting = mem_realloc(im->waiting, (im->waiting_count + 1) * sizeof(*im->waiting));
    im->waiting[im->waiting_count++] = *run;
}

int image_write(struct image *im, uint64_t settled, uint64_t upto)
{
    struct image_run run = {0};
    bool some = kv_changes_count(im->frozen) > 0;
    int rc = 0;

    if (im->lost && !im->building && !im->base_ready) {
        im->stats.failures += im->p->ds->super.replay_lsn > 1 || !may_try(im);
        rc = ERR_AGAIN; /* a base will have it */
    } else if (!may_try(im) || PLANTED(IMAGE_SKIPPED)) {
        thaw(im);
        im->stats.failures += !PLANTED(IMAGE_SKIPPED);
        rc = ERR_AGAIN;
    } else if (some && (rc = image_write_increment(im, &run)) < 0) {
        image_leave(im, &run);
        thaw(im);
        copy_failed(im, rc);
    } else if (some && im->lost && !im->building && !im->base_ready) {
        image_leave(im, &run); /* the copy was lost meanwhile */
        rc = ERR_AGAIN;
    } else if (some) {
        increment_waits(im, &run);
    }
    kv_changes_free(im->frozen);
    im->frozen = NULL;
    if (rc == 0 && im->lost && !im->base_settled) {
        im->stats.failures++;
        rc = ERR_AGAIN; /* named with the base that is being written */
    }
    if (rc == 0) {
        rc = image_name(im, settled, upto);
        if (rc == 0)
            im->retry_wait = 0;
        else
            copy_failed(im, rc);
        if (rc == ERR_TOOBIG)
            image_lose(im); /* nothing would make it shorter */
    }
    image_keep(im);
    return rc;
}

/* Deletes the lists of what is in the copy, some at a time, since others want to write as well.
 * Suspends. */
static int drop_lists(struct image *im)
{
    KV_WALK_AUTO struct kv_walk w;
    struct kv_batch *batch = kv_batch_new();
    const struct kv_row *row;
    uint8_t from[9], to[9];
    int rc;

    changed_key(0, from);
    changed_key(im->named.settled + 1, to);
    kv_walk_init(&w, im->p->kv, KV_IMAGE, (struct kv_slice){from, sizeof(from)},
                 (struct kv_slice){to, sizeof(to)}, IMAGE_PAGE, IMAGE_PAGE_BYTES);
    while ((rc = kv_walk_next(&w, &row)) > 0) {
        kv_batch_delete(batch, KV_IMAGE, row->key);
        if (kv_batch_count(batch) < IMAGE_PAGE)
            continue;
        rc = kv_write(im->p->kv, batch);
        if (rc < 0)
            break;
        kv_batch_clear(batch);
        fiber_yield();
    }
    if (rc == 0)
        rc = kv_write(im->p->kv, batch);
    kv_batch_free(batch);
    return rc;
}

void image_tidy(struct image *im)
{
    if (!im->lost && !im->p->broken)
        (void)drop_lists(im); /* an error of the KV store will be met by who writes next */
    fiber_cond_broadcast(&im->work);
}

/* ---- Applying ---- */

/* The record is applied: what it names is the copy. */
static int form_take(struct image *im, const struct apply *a)
{
    STRBUF_AUTO struct strbuf row = STRBUF_INIT;
    struct image_form next;
    int rc = image_form_decode(a->body, a->length, &next);

    if (rc < 0)
        return rc;
    next.lsn = a->lsn;
    if (next.count && next.runs[0].base && !image_form_find(&im->named, next.runs[0].number)) {
        im->lost = im->replaying && im->spoilt;
        im->unmarked = im->lost && im->unmarked; /* what is lost still is to be marked */
        if (!im->lost)
            kv_batch_delete(a->kv, KV_IMAGE, image_mended_key);
    }
    for (uint32_t i = 0; i < im->named.count; i++)
        if (!image_form_find(&next, im->named.runs[i].number))
            image_leave(im, &im->named.runs[i]);
    for (uint32_t i = 0; i < im->waiting_count; i++)
        if (!image_form_find(&next, im->waiting[i].number))
            image_leave(im, &im->waiting[i]);
    image_form_encode(&next, &row);
    kv_batch_put(a->kv, KV_META, image_meta_key, (struct kv_slice){row.data, row.len});
    image_form_free(&im->named);
    im->named = next;
    return 0;
}

static void sum_take(struct image *im, const struct chunkstore_stats *before,
                     struct kv_batch *batch)
{
    struct chunkstore_stats now;
    uint8_t row[IMAGE_SUM_SIZE];

    chunkstore_get_stats(im->p->chunks, &now);
    im->sum.chunks += now.chunks - before->chunks;
    im->sum.raw += now.raw_bytes - before->raw_bytes;
    im->sum.stored += now.stored_bytes - before->stored_bytes;
    im->sum.referenced += now.referenced_bytes - before->referenced_bytes;
    image_sum_encode(&im->sum, row);
    kv_batch_put(batch, KV_META, image_sum_key, (struct kv_slice){row, sizeof(row)});
}

/* A piece of a run refers to its chunks, or does not any more. */
static int piece_take(struct image *im, const struct apply *a, bool add)
{
    struct chunk_txn *t = chunk_txn_begin(im->p->chunks);
    struct image_piece piece = {0};
    struct chunkstore_stats before;
    uint8_t key[IMAGE_PIECE_LEN];
    size_t used = 0;
    int rc = add ? chunk_txn_take(t, a->body, a->length, &used) : 0;

    if (rc == 0)
        rc = image_piece_decode(a->body + used, a->length - used, &piece);
    for (uint32_t i = 0; rc == 0 && i < piece.count; i++)
        (add ? chunk_txn_require : chunk_txn_need)(t, piece.ids[i]);
    if (rc == 0)
        rc = chunk_txn_load(t);
    if (rc < 0) {
        chunk_txn_abort(t);
        mem_free(piece.ids);
        return rc;
    }
    chunkstore_get_stats(im->p->chunks, &before);
    for (uint32_t i = 0; i < piece.count; i++)
        chunk_txn_ref(t, piece.ids[i], add ? 1 : -1);
    chunk_txn_commit(t, a->kv);
    sum_take(im, &before, a->kv);
    image_piece_key(piece.number, piece.piece, key);
    if (add)
        kv_batch_put(a->kv, KV_META, (struct kv_slice){key, sizeof(key)},
                     (struct kv_slice){a->body + used + 16, 8 * (size_t)piece.count});
    else
        kv_batch_delete(a->kv, KV_META, (struct kv_slice){key, sizeof(key)});
    mem_free(piece.ids);
    return 0;
}

int image_apply(struct image *im, uint16_t type, const struct apply *a)
{
    if (!a->kv)
        return 0;
    return type == RECORD_IMAGE ? form_take(im, a) : piece_take(im, a, type == RECORD_IMAGE_PIECE);
}

/* ---- Looking ---- */

void image_get_stats(const struct image *im, struct image_stats *ret_stats)
{
    *ret_stats = im->stats;
    ret_stats->chunks = im->sum.chunks;
    ret_stats->raw = im->sum.raw;
    ret_stats->stored = im->sum.stored;
    ret_stats->referenced = im->sum.referenced;
    ret_stats->settled = im->named.lsn ? im->named.settled : 0;
    ret_stats->time = im->named.lsn ? im->named.time : 0;
}

void image_observe(struct image *im, struct metrics *m)
{
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_metadata_copy_written_bytes_total",
                      "Rows written to the metadata's copy on the drives, before compression", NULL,
                      &im->stats.written);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_metadata_copy_failures_total",
                      "Checkpoints that had to go without the metadata's copy", NULL,
                      &im->stats.failures);
}

/* The partition's state machine: submit, apply, checkpoint, open, close. See partition.h. */
#include "daemon/partition.h"

#include <string.h>

#include "daemon/content.h"
#include "daemon/image.h"
#include "daemon/partition_priv.h"
#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/plant.h"

#define PARTITION_TICK          (100 * ENV_NS_PER_MS) /* background work looks around this often */
#define PARTITION_PRESSURE      40u /* percent of the journal used at which a checkpoint is made */
#define PARTITION_TRIM_LEAST    6u  /* percent of the journal that one has to let go of */
#define PARTITION_RETRY         (2 * ENV_NS_PER_S) /* after a checkpoint that failed */
#define PARTITION_REBUILD_DELAY (600 * ENV_NS_PER_S)
#define PARTITION_MADE_UP       (10 * ENV_NS_PER_S)
#define PARTITION_SEGMENT_PAGE  4096u
#define PARTITION_CACHE         (96u << 20)
#define PARTITION_COPY_AT_ONCE  100000u
#define PARTITION_OVERLAY       (48u << 20)
#define PARTITION_INGEST        (128u << 20)

static const struct kv_slice partition_lsn_key = {"lsn", 3};
static const struct kv_slice partition_trim_key = {"trim", 4};
static const struct kv_slice partition_store_key = {"store", 5};
static const struct kv_slice partition_segments_key = {PARTITION_SEGMENTS_KEY,
                                                       sizeof(PARTITION_SEGMENTS_KEY) - 1};

/* ---- Submitting ---- */

struct waiter {
    struct hmap_node node;
    uint64_t lsn;
    void *context;
    struct fiber *fiber;
    int result;
    bool done;
};

static int partition_submit(struct record_log *log, enum record_type type, const struct iovec *iov,
                            unsigned n, unsigned flags, void *context)
{
    struct partition *p = (struct partition *)log;
    struct waiter w = {.context = context, .fiber = fiber_self()};
    int rc;

    if (p->broken)
        return p->broken;
    rc = journal_append(p->journal, (uint16_t)type, 1, iov, n, flags, &w.lsn);
    if (rc == 0)
        rc = p->broken; /* it broke while the append waited for room */
    if (rc < 0)
        return rc;
    hmap_insert(&p->waiters, &w.node, hmap_mix(w.lsn));
    while (!w.done)
        fiber_suspend("record to be applied");
    return w.result;
}

static struct waiter *waiter_find(struct partition *p, uint64_t lsn)
{
    struct hmap_node *n = hmap_first(&p->waiters, hmap_mix(lsn)); /* the mix is one to one */

    return n ? HMAP_ENTRY(n, struct waiter, node) : NULL;
}

static void waiter_finish(struct partition *p, struct waiter *w, int result)
{
    hmap_remove(&p->waiters, &w->node);
    w->result = result;
    w->done = true;
    fiber_wake(w->fiber);
}

/* ---- Applying ---- */

static void apply_segment_row(void *arg, uint64_t segment, const struct strbuf *value)
{
    struct kv_batch *batch = arg;
    uint8_t key[8];

    codec_put_be64(key, segment);
    kv_batch_put(batch, KV_SEGMENT, (struct kv_slice){key, 8},
                 (struct kv_slice){value->data, value->len});
}

static void apply_segment_gone(void *arg, uint64_t segment)
{
    struct kv_batch *batch = arg;
    uint8_t key[8];

    codec_put_be64(key, segment);
    kv_batch_delete(batch, KV_SEGMENT, (struct kv_slice){key, 8});
}

/* Hands the record to the module that owns its type. */
static int apply_dispatch(struct partition *p, uint16_t type, const struct apply *a)
{
    switch ((enum record_type)type) {
    case RECORD_SEGMENT_OPEN:
        return a->kv ? segment_apply_open(p->segments, a->body, a->length, a->context) : 0;
    case RECORD_SEGMENT_FREE:
        return a->kv
                   ? segment_apply_free(p->segments, a->body, a->length, apply_segment_gone, a->kv)
                   : 0;
    case RECORD_SCRUB:
        return scrubber_apply(p->scrubber, a);
    case RECORD_CHUNK_MOVE:
        return a->kv ? chunkstore_apply_move(p->chunks, a->body, a->length, a->kv) : 0;
    case RECORD_CHUNK_LOST:
        return a->kv ? chunkstore_apply_lost(p->chunks, a->body, a->length, !a->context, a->kv) : 0;
    case RECORD_VOLUME_CREATE:
    case RECORD_VOLUME_RESIZE:
    case RECORD_VOLUME_DELETE:
    case RECORD_VOLUME_REAP:
    case RECORD_VOLUME_WRITE:
    case RECORD_VOLUME_MAP:
    case RECORD_VOLUME_ZERO:
    case RECORD_VOLUME_SNAPSHOT:
    case RECORD_VOLUME_SNAPSHOT_DELETE:
    case RECORD_VOLUME_CLONE:
    case RECORD_VOLUME_ROLLBACK:
    case RECORD_VOLUME_MERGE:
        return volumes_apply(p->volumes, type, a);
    case RECORD_OBJECT_PUT:
    case RECORD_OBJECT_DELETE:
        return a->kv ? studies_apply(p->studies, type, a) : 0;
    case RECORD_BUCKET_CREATE:
    case RECORD_BUCKET_DELETE:
    case RECORD_BUCKET_PUT:
    case RECORD_BUCKET_REMOVE:
    case RECORD_BUCKET_REAP:
        return a->kv ? buckets_apply(p->buckets, type, a) : 0;
    case RECORD_IMAGE:
    case RECORD_IMAGE_PIECE:
    case RECORD_IMAGE_DROP:
        return image_apply(p->image, type, a);
    }
    return ERR_FORMAT; /* a journal of a later version */
}

/* Writes the record's changes with its LSN. An error here leaves memory ahead of the KV store. */
static int apply_write(struct partition *p, struct kv_batch *batch, uint64_t lsn)
{
    uint8_t value[8];
    int rc;

    segment_take_dirty(p->segments, apply_segment_row, batch);
    if (kv_batch_count(batch) == 0)
        return 0;
    codec_put_le64(value, lsn);
    kv_batch_put(batch, KV_META, partition_lsn_key, (struct kv_slice){value, 8});
    image_note(p->image, batch, lsn);
    rc = kv_write(p->kv, batch);
    if (rc < 0)
        return rc;
    image_take(p->image, batch);
    p->applied_lsn = lsn;
    chunkstore_written(p->chunks);
    volumes_written(p->volumes);
    return 0;
}

/* Applies one record. *ret_fatal is set when state may be inconsistent: nothing may follow. */
static int apply_record(struct partition *p, const struct journal_record *r, void *context,
                        int *ret_fatal)
{
    bool in_kv = r->lsn <= p->applied_lsn && !PLANTED(REPLAY_TWICE);
    struct kv_batch *batch = in_kv ? NULL : kv_batch_new();
    struct apply a = {.p = p,
                      .lsn = r->lsn,
                      .body = r->body,
                      .length = r->length,
                      .context = context,
                      .kv = batch};
    int rc = apply_dispatch(p, r->type, &a), wrote = 0;

    if (batch)
        wrote = apply_write(p, batch, r->lsn);
    kv_batch_free(batch);
    p->processed_lsn = r->lsn;
    if (rc == ERR_FORMAT || rc == ERR_KV)
        *ret_fatal = rc;
    if (wrote < 0)
        *ret_fatal = wrote;
    return rc;
}

void partition_break(struct partition *p, int error)
{
    struct hmap_node *it, *next;

    if (!p->broken && error != ERR_SHUTDOWN)
        log_error("partition",
                  "writes stopped, restart the daemon once the cause is mended error=%s",
                  err_name(error));
    p->broken = error;
    for (it = hmap_walk(&p->waiters, NULL); it; it = next) {
        struct waiter *w = HMAP_ENTRY(it, struct waiter, node);

        next = hmap_walk(&p->waiters, it);
        if (w->lsn != p->applying_lsn) /* its context is in use: it is told when that has ended */
            waiter_finish(p, w, error);
    }
    journal_give_up(p->journal, error);
    volumes_hurry(p->volumes, p->processed_lsn); /* the drainer tells those who wait for it */
}

static void partition_on_broken(void *arg, int error)
{
    partition_break(arg, error);
}

static void partition_on_durable(void *arg, struct journal_batch *batch)
{
    struct partition *p = arg;

    list_push_back(&p->apply_queue, &batch->link);
    fiber_cond_signal(&p->apply_work);
}

static void apply_batch(struct partition *p, struct journal_batch *b)
{
    struct journal_record r;
    uint64_t at = env_now(p->env);
    size_t pos = 0;
    int fatal = 0;

    while (!p->broken && journal_batch_next(b, &pos, &r)) {
        struct waiter *w = waiter_find(p, r.lsn);
        int rc;

        p->applying_lsn = r.lsn;
        fiber_mutex_lock(&p->applying);
        rc = p->broken; /* it may have broken while this waited */
        if (rc == 0)
            rc = apply_record(p, &r, w ? w->context : NULL, &fatal);
        fiber_mutex_unlock(&p->applying);
        p->applying_lsn = 0;
        at = metric_lap(&p->apply_time, at, env_now(p->env));
        if (fatal)
            partition_break(p, fatal);
        else if (w)
            waiter_finish(p, w, rc);
    }
    journal_batch_free(b);
}

static void partition_applier(void *arg)
{
    struct partition *p = arg;

    for (;;) {
        struct list *it = list_pop_front(&p->apply_queue);

        if (it)
            apply_batch(p, LIST_ENTRY(it, struct journal_batch, link));
        else if (p->apply_stop)
            break;
        else
            fiber_cond_wait(&p->apply_work);
    }
    fiber_group_done(&p->fibers);
}

/* ---- Background work ---- */

/* Brings the metadata's copy on the drives up to what was just frozen. Without room for it the
 * journal is trimmed all the same; see image.c. But not at the end of a stop, when no record is
 * taken any more (ERR_SHUTDOWN): the copy's last record is in the journal, and is to stay there. */
static int partition_copy(struct partition *p, uint64_t settled, uint64_t upto)
{
    int rc = image_write(p->image, settled, upto);

    if (rc < 0 && rc != ERR_AGAIN && rc != ERR_SHUTDOWN && !p->broken)
        log_warn(
            "partition",
            "the metadata's copy on the drives could not be renewed: until it is, keep kv/ safe "
            "error=%s",
            err_name(rc));
    return rc == ERR_SHUTDOWN ? rc : 0;
}

/* How much of the journal the state in memory needs no longer, once the KV store is flushed. */
static uint64_t partition_settled(const struct partition *p)
{
    uint64_t oldest = volumes_oldest_lsn(p->volumes);

    return oldest <= p->processed_lsn ? oldest : p->processed_lsn + 1;
}

/* Makes the state durable and lets go of the journal before it.
 *
 * How far is settled before the flush, the overlay's oldest write included. A write that is drained
 * while the flush runs leaves the overlay, but its mapping may have come too late for the flush:
 * the mapping's record is then replayed, and takes effect only if the write is replayed before it.
 * So it is settled between two records, not in the midst of one, which may have taken writes out of
 * the overlay and be waiting for the KV store yet.
 *
 * Not every record leaves a trace in the KV store (writes to the overlay do not), so the last LSN
 * found there does not tell how much of the journal may be missing: the note does. */
int partition_checkpoint(struct partition *p)
{
    struct kv_batch *note = kv_batch_new();
    uint64_t upto, settled, took, start = env_now(p->env);
    uint8_t value[8];
    int rc;

    fiber_mutex_lock(&p->checkpoint_lock);
    image_prepare(p->image);
    fiber_mutex_lock(&p->applying);
    upto = p->processed_lsn + 1;
    if (!PLANTED(TRIM_TOO_EARLY) && !PLANTED(TRIM_RACES_FLUSH))
        upto = partition_settled(p);
    image_freeze(p->image);
    settled = p->processed_lsn;
    fiber_mutex_unlock(&p->applying);
    rc = partition_copy(p, settled, upto);
    if (PLANTED(IMAGE_TRIMMED_PAST))
        upto = volumes_oldest_lsn(p->volumes) < p->processed_lsn ? volumes_oldest_lsn(p->volumes)
                                                                 : p->processed_lsn;
    codec_put_le64(value, upto);
    kv_batch_put(note, KV_META, partition_trim_key, (struct kv_slice){value, 8});
    if (rc == 0)
        rc = kv_write(p->kv, note);
    if (rc == 0 && !PLANTED(TRIM_UNFLUSHED))
        rc = kv_flush(p->kv);
    if (PLANTED(TRIM_RACES_FLUSH) && volumes_oldest_lsn(p->volumes) < upto)
        upto = volumes_oldest_lsn(p->volumes);
    if (rc == 0)
        rc = journal_trim(p->journal, upto);
    if (rc == 0)
        image_tidy(p->image);
    took = env_now(p->env) - start;
    metric_record(&p->checkpoint_time, took);
    log_debug("partition", "checkpoint lsn=%llu us=%llu", (unsigned long long)upto,
              (unsigned long long)(took / 1000));
    fiber_mutex_unlock(&p->checkpoint_lock);
    kv_batch_free(note);
    return rc;
}

int partition_reclaim(struct partition *p)
{
    unsigned freed = 1;
    int rc = 0;

    while (rc == 0 && freed && segment_sweep_due(p->segments) && !p->broken) {
        rc = segment_sweep(p->segments, &freed);
        p->segments_freed += rc == 0 ? freed : 0;
    }
    return rc;
}

/* Tells of drives that were put out or are suspect, has the others know of those put out for their
 * health, and finds out when what drives had that are out has been written anew, now or before this
 * start, or was never there: from then on as many more can be spared. */
static void partition_watch_health(struct partition *p)
{
    uint64_t now = env_now(p->env);

    drive_watch_tell(&p->drive_watch, p->ds);
    if (p->ds->uncommitted)
        (void)driveset_tell(p->ds); /* or whoever writes next */
    if (driveset_healthy(p->ds) == driveset_members(p->ds) ||
        now - p->made_up_at < PARTITION_MADE_UP)
        return;
    p->made_up_at = now;
    if (segment_count_thin(p->segments) == 0)
        for (unsigned i = 0; i < p->ds->count; i++)
            if (!drive_usable(&p->ds->drives[i]))
                p->ds->made_up |= 1ull << i;
}

/* A checkpoint's own records are journaled. Where it lets go of less than that - the oldest write
 * cannot be drained, for there is no room - one after the other would fill the journal up, and with
 * what is kept for draining. */
static bool partition_checkpoint_due(const struct partition *p)
{
    return env_now(p->env) >= p->checkpoint_again &&
           (image_due(p->image) ||
            (journal_pressure(p->journal) >= PARTITION_PRESSURE &&
             journal_trimmable(p->journal, partition_settled(p)) >= PARTITION_TRIM_LEAST));
}

static void partition_maintain(void *arg)
{
    struct partition *p = arg;

    while (!p->stopping) {
        int rc = 0;

        (void)fiber_cond_wait_until(p->env, &p->maintain_work, env_now(p->env) + PARTITION_TICK);
        if (p->stopping || p->broken)
            continue;
        partition_watch_health(p);
        membership_watch(p);
        if (journal_pressure(p->journal) >= PARTITION_PRESSURE)
            volumes_hurry(p->volumes, p->processed_lsn);
        if (partition_checkpoint_due(p)) {
            rc = partition_checkpoint(p);
            p->checkpoint_again = rc < 0 ? env_now(p->env) + PARTITION_RETRY : 0;
        }
        if (rc == 0)
            rc = partition_reclaim(p);
        if (rc < 0 && rc != ERR_SHUTDOWN && !p->broken)
            log_warn("partition", "background work failed, will try again error=%s", err_name(rc));
    }
    fiber_group_done(&p->fibers);
}

static void partition_copier(void *arg)
{
    struct partition *p = arg;

    image_run(p->image);
    fiber_group_done(&p->fibers);
}

int partition_settle(struct partition *p)
{
    int rc = volumes_drain_all(p->volumes);

    if (rc == 0)
        rc = compactor_settle(p);
    if (rc == 0)
        rc = partition_checkpoint(p);
    return rc;
}

/* ---- Making ---- */

int partition_exists(struct kv *kv, bool *ret_exists)
{
    void *value;
    size_t len;
    int rc = kv_get(kv, KV_META, partition_store_key, &value, &len);

    if (rc < 0 && rc != ERR_NOENT)
        return rc;
    if (rc == 0)
        mem_free(value);
    *ret_exists = rc == 0;
    return 0;
}

int partition_format(struct env *env, struct kv *kv, const struct driveset_params *params)
{
    struct driveset *ds;
    struct kv_batch *batch;
    bool exists;
    int rc = partition_exists(kv, &exists);

    if (rc == 0 && exists)
        rc = ERR_EXIST;
    if (rc == 0)
        rc = driveset_format(env, params);
    if (rc == 0)
        rc = driveset_open(env, params->paths, params->count, &ds);
    if (rc < 0)
        return rc;
    batch = kv_batch_new();
    kv_batch_put(batch, KV_META, partition_store_key, (struct kv_slice){ds->super.store_uuid, 16});
    driveset_close(ds);
    rc = kv_write(kv, batch);
    kv_batch_free(batch);
    return rc == 0 ? kv_flush(kv) : rc;
}

int partition_mark(struct kv *kv, struct driveset *ds, uint64_t upto)
{
    struct kv_batch *batch = kv_batch_new();
    uint8_t trim[8];
    int rc;

    codec_put_le64(trim, upto);
    kv_batch_put(batch, KV_META, partition_trim_key, (struct kv_slice){trim, 8});
    kv_batch_put(batch, KV_META, partition_store_key, (struct kv_slice){ds->super.store_uuid, 16});
    rc = kv_write(kv, batch);
    kv_batch_free(batch);
    return rc == 0 ? kv_flush(kv) : rc;
}

/* ---- Opening ---- */

static int load_number(struct partition *p, struct kv_slice key, uint64_t *number)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    int rc = kv_get(p->kv, KV_META, key, &value, &len);

    if (rc == ERR_NOENT)
        return 0;
    if (rc == 0 && len == 8)
        *number = codec_get_le64(value);
    return rc;
}

static int load_identity(struct partition *p)
{
    MEM_AUTO void *value = NULL;
    size_t len;
    int rc = kv_get(p->kv, KV_META, partition_store_key, &value, &len);

    if (rc < 0)
        return rc == ERR_NOENT ? ERR_KV : rc;
    if (len != 16 || memcmp(value, p->ds->super.store_uuid, 16) != 0)
        return ERR_KV; /* the KV store belongs to other drives */
    rc = load_number(p, partition_lsn_key, &p->applied_lsn);
    if (rc == 0)
        rc = load_number(p, partition_trim_key, &p->trim_lsn);
    return rc;
}

/* Does the KV store reach up to where the journal begins? */
static int check_reach(const struct partition *p)
{
    return p->ds->super.replay_lsn > p->applied_lsn + 1 && p->ds->super.replay_lsn > p->trim_lsn
               ? ERR_KV /* it lacks records that the journal no longer has */
               : 0;
}

int partition_match(struct kv *kv, struct driveset *ds)
{
    struct partition p = {.kv = kv, .ds = ds};
    int rc = load_identity(&p);

    return rc == 0 ? check_reach(&p) : rc;
}

static int load_segments(struct partition *p)
{
    KV_WALK_AUTO struct kv_walk w;
    const struct kv_row *row;
    int rc;

    kv_walk_init(&w, p->kv, KV_SEGMENT, (struct kv_slice){"", 1}, (struct kv_slice){"", 0},
                 PARTITION_SEGMENT_PAGE, PARTITION_SEGMENT_PAGE * 512);
    while ((rc = kv_walk_next(&w, &row)) > 0) {
        rc = row->key.len == 8 ? segment_load(p->segments, codec_get_be64(row->key.data),
                                              row->value.data, row->value.len)
                               : ERR_FORMAT;
        if (rc < 0)
            return rc;
    }
    return rc;
}

/* Where rows of segments were lost, the audit has left word of which numbers they may have had. */
static int load_segment_ids(struct partition *p)
{
    uint64_t next = 0;
    int rc = load_number(p, partition_segments_key, &next);

    segment_skip_ids(p->segments, next);
    return rc;
}

static int replay_record(void *arg, const struct journal_record *r)
{
    struct partition *p = arg;
    int fatal = 0;

    (void)apply_record(p, r, NULL, &fatal); /* its result went to a submitter of another life */
    return fatal;
}

static int partition_replay(struct partition *p, struct partition_start *start)
{
    int rc = check_reach(p);

    if (rc < 0)
        return rc;
    rc = journal_replay(p->journal, replay_record, p, &start->replay);
    if (rc == 0 && journal_next_lsn(p->journal) <= p->applied_lsn)
        rc = ERR_JOURNAL; /* the KV store knows of records that the journal lost */
    p->processed_lsn = journal_next_lsn(p->journal) - 1;
    return rc;
}

static void partition_spawn(struct partition *p, const char *name, fiber_fn fn)
{
    fiber_group_add(&p->fibers, 1);
    fiber_spawn(p->env, name, fn, p);
}

/* A small store must not promise all of itself to the overlay. Kept for internal writes: what the
 * overlay may need when drained, what compaction writes before it can free, and a segment of slack
 * for each stream. */
void partition_fit_space(struct partition *p)
{
    uint64_t overlay = p->options.overlay_bytes;
    struct segment_space space;

    segment_get_space(p->segments, &space);
    if (overlay > space.total / 8)
        overlay = space.total / 8;
    if (overlay < 64 * BLOCK_SIZE)
        overlay = 64 * BLOCK_SIZE;
    volumes_set_overlay(p->volumes, overlay);
    chunkstore_set_kept(p->chunks,
                        overlay + overlay / 4 +
                            SEGMENT_STREAMS * (uint64_t)space.k * p->ds->super.slot_size);
}

static int partition_make_parts(struct partition *p)
{
    static const struct journal_ops journal_ops = {partition_on_durable, partition_on_broken};
    struct chunkstore_options copts = {0};
    int rc = journal_open(p->ds, &journal_ops, p, &p->journal);

    if (rc == 0)
        rc = segments_new(p->ds, &p->log, &p->segments);
    if (rc < 0)
        return rc;
    copts.cache_rows = p->options.cache_bytes / 2 / 200;
    rc = chunkstore_new(p->env, p->kv, p->segments, &p->log, &copts, &p->chunks);
    if (rc == 0)
        rc = volumes_new(p, &p->volumes);
    if (rc == 0)
        rc = contents_new(p, &p->contents);
    if (rc == 0)
        rc = studies_new(p, &p->studies);
    if (rc == 0)
        rc = buckets_new(p, &p->buckets);
    p->scrubber = scrubber_new(p);
    if (rc == 0)
        image_new(p, &p->image);
    if (rc == 0)
        partition_fit_space(p);
    return rc;
}

static int partition_load(struct partition *p, struct partition_start *start)
{
    int rc = load_identity(p);

    if (rc == 0)
        rc = load_segments(p);
    if (rc == 0)
        rc = load_segment_ids(p);
    if (rc == 0)
        rc = chunkstore_load(p->chunks);
    if (rc == 0)
        rc = volumes_load(p->volumes);
    if (rc == 0)
        rc = studies_load(p->studies);
    if (rc == 0)
        rc = buckets_load(p->buckets);
    if (rc == 0)
        rc = scrubber_load(p->scrubber);
    if (rc == 0)
        rc = image_load(p->image);
    if (rc == 0)
        rc = partition_replay(p, start);
    if (rc == 0)
        rc = image_begin(p->image);
    if (rc == 0)
        rc = journal_start(p->journal);
    return rc;
}

static void partition_free(struct partition *p)
{
    image_free(p->image);
    scrubber_free(p->scrubber);
    buckets_free(p->buckets);
    studies_free(p->studies);
    contents_free(p->contents);
    volumes_free(p->volumes);
    chunkstore_free(p->chunks);
    segments_free(p->segments);
    journal_free(p->journal);
    driveset_close(p->ds);
    hmap_free(&p->waiters);
    mem_free(p);
}

static struct partition *partition_alloc(struct env *env, struct kv *kv,
                                         const struct partition_options *options)
{
    struct partition *p = mem_zalloc(sizeof(*p));

    p->log.submit = partition_submit;
    p->env = env;
    p->kv = kv;
    p->options = *options;
    if (!p->options.rebuild_delay_ns)
        p->options.rebuild_delay_ns = PARTITION_REBUILD_DELAY;
    if (!p->options.cache_bytes)
        p->options.cache_bytes = PARTITION_CACHE;
    if (!p->options.overlay_bytes)
        p->options.overlay_bytes = PARTITION_OVERLAY;
    if (!p->options.copy_at_once)
        p->options.copy_at_once = PARTITION_COPY_AT_ONCE;
    if (!p->options.ingest_bytes)
        p->options.ingest_bytes = PARTITION_INGEST;
    list_init(&p->apply_queue);
    hmap_init(&p->waiters);
    fiber_cond_init(&p->apply_work);
    fiber_cond_init(&p->maintain_work);
    fiber_group_init(&p->fibers);
    fiber_mutex_init(&p->checkpoint_lock);
    fiber_mutex_init(&p->applying);
    fiber_mutex_init(&p->membership.lock);
    metric_hist_init(&p->apply_time, METRIC_TIME);
    metric_hist_init(&p->checkpoint_time, METRIC_TIME);
    return p;
}

int partition_open(struct env *env, struct kv *kv, const char *const *drive_paths, unsigned drives,
                   const struct partition_options *options, struct partition_start *ret_start,
                   struct partition **ret_partition)
{
    struct partition *p = partition_alloc(env, kv, options);
    struct partition_start start = {.total_ns = env_now(env)};
    int rc = driveset_open(env, drive_paths, drives, &p->ds);

    if (rc == 0)
        rc = partition_make_parts(p);
    if (rc == 0)
        rc = partition_load(p, &start);
    if (rc < 0) {
        partition_free(p);
        return rc;
    }
    drive_watch_init(&p->drive_watch, p->ds);
    partition_spawn(p, "applier", partition_applier);
    partition_spawn(p, "maintenance", partition_maintain);
    partition_spawn(p, "compactor", compactor_main);
    partition_spawn(p, "copier", partition_copier);
    buckets_start(p->buckets);
    scrubber_start(p->scrubber);
    rc = volumes_start(p->volumes);
    start.total_ns = env_now(env) - start.total_ns;
    p->start = start;
    *ret_start = start;
    *ret_partition = p;
    return rc;
}

/* ---- Closing ---- */

void partition_end_soon(struct partition *p)
{
    p->ending = true;
    journal_refuse(p->journal, 0, ERR_SHUTDOWN);
    journal_refuse(p->journal, JOURNAL_INTERNAL, ERR_SHUTDOWN);
}

int partition_close(struct partition *p)
{
    int rc, stopped;

    if (!p)
        return 0;
    partition_end_soon(p);
    scrubber_stop(p->scrubber);
    rc = p->broken ? p->broken : volumes_drain_all(p->volumes);
    volumes_stop(p->volumes);
    buckets_stop(p->buckets);
    p->stopping = true;
    fiber_cond_broadcast(&p->maintain_work);
    image_stop(p->image);
    chunkstore_stop(p->chunks);
    if (rc == 0)
        rc = partition_checkpoint(p);
    if (rc == 0)
        journal_keep(p->journal, image_upto(p->image));
    /* Whatever background fibers still submit gets its answer before the applier goes. */
    stopped = journal_stop(p->journal, false);
    p->apply_stop = true;
    fiber_cond_broadcast(&p->apply_work);
    fiber_group_wait(&p->fibers);
    if (rc == 0)
        rc = stopped;
    if (rc == 0)
        rc = kv_flush(p->kv);
    if (rc == 0 && !p->broken && volumes_oldest_lsn(p->volumes) == UINT64_MAX)
        rc = journal_stop(p->journal, true); /* everything is in the KV store: clean */
    partition_free(p);
    return rc;
}

/* ---- Looking ---- */

struct block_store *partition_blocks(struct partition *p)
{
    return volumes_blocks(p->volumes);
}

struct object_store *partition_objects(struct partition *p)
{
    return studies_objects(p->studies);
}

struct bucket_store *partition_buckets(struct partition *p)
{
    return buckets_store(p->buckets);
}

struct driveset *partition_drives(struct partition *p)
{
    return p->ds;
}

uint64_t partition_drive_used(const struct partition *p, unsigned drive)
{
    return segment_drive_used(p->segments, drive);
}

void partition_observe(struct partition *p, struct metrics *m, struct slow_log *slow)
{
    p->slow = slow;
    metrics_add_hist(m, "filmroom_apply_seconds", "Time to apply one record of the journal", NULL,
                     &p->apply_time);
    metrics_add_hist(m, "filmroom_checkpoint_seconds",
                     "Time to make the metadata durable and trim the journal", NULL,
                     &p->checkpoint_time);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_segments_freed_total",
                      "Segments given back", NULL, &p->segments_freed);
    journal_observe(p->journal, m, slow);
    segments_observe(p->segments, m);
    driveset_observe(p->ds, m);
    chunkstore_observe(p->chunks, m);
    volumes_observe(p->volumes, m);
    contents_observe(p->contents, m);
    studies_observe(p->studies, m);
    buckets_observe(p->buckets, m);
    scrubber_observe(p->scrubber, m);
    image_observe(p->image, m);
}

static uint64_t without(uint64_t all, uint64_t part)
{
    return all > part ? all - part : 0; /* a record may be applied and not yet counted */
}

/* The metadata's copy is chunks as well, but nobody's data. */
static void status_of_copy(const struct partition *p, struct partition_status *s)
{
    struct image_stats copy;

    image_get_stats(p->image, &copy);
    s->chunks.chunks = without(s->chunks.chunks, copy.chunks);
    s->chunks.raw_bytes = without(s->chunks.raw_bytes, copy.raw);
    s->chunks.stored_bytes = without(s->chunks.stored_bytes, copy.stored);
    s->chunks.referenced_bytes = without(s->chunks.referenced_bytes, copy.referenced);
    s->copy_bytes = copy.stored;
    s->copy_lsn = copy.settled;
    s->copy_failures = copy.failures;
}

void partition_get_status(struct partition *p, struct partition_status *ret_status)
{
    struct partition_status s = {
        .broken = p->broken, .k = p->ds->super.data_columns, .m = p->ds->super.parity_columns};
    struct segment_space space;
    uint64_t mapped, written, kept;

    segment_get_space(p->segments, &space);
    chunkstore_get_stats(p->chunks, &s.chunks);
    status_of_copy(p, &s);
    journal_get_stats(p->journal, &s.journal);
    volumes_get_counts(p->volumes, &s.volumes, &mapped, &s.overlay_bytes, &written);
    studies_get_counts(p->studies, &s.studies);
    buckets_get_counts(p->buckets, &s.buckets);
    s.client_bytes = written + s.studies.put_bytes + s.buckets.put_bytes;
    for (unsigned i = 0; i < p->ds->count; i++)
        s.drive_bytes += p->ds->drives[i].write_bytes;
    s.start = p->start;
    kept = chunkstore_kept(p->chunks);
    s.capacity = space.total > kept ? space.total - kept : 0;
    s.free = space.free > kept ? space.free - kept : 0;
    s.logical = mapped + s.studies.bytes + s.buckets.bytes;
    s.unique = s.chunks.raw_bytes;
    s.stored = s.chunks.stored_bytes;
    s.physical = space.physical;
    s.reclaimable = space.dead;
    s.current_k = space.k;
    s.current_m = space.m;
    s.thin_segments = segment_count_thin(p->segments);
    membership_get_progress(p, &s.moves);
    *ret_status = s;
}

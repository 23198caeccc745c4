/* Ingest of an instance: cut the stream, store chunks while it arrives, journal the recipe at the
 * end.
 *
 * The Part 10 head, the rest of the header, and each frame (or piece of one) become chunks of their
 * own: a data set sent again in another wrapping, or the same pixels under another header, are
 * found again. The digest that tells identical from conflicting data sets is made of the
 * fingerprints of the data set's chunks and of how they are laid out; the head does not count.
 *
 * Memory of a put is bounded: PUT_IN_FLIGHT bytes of chunks being worked on, and the first
 * PUT_PARSE_MAX bytes of the data set, from which the catalogue's attributes are read.
 */
#include <string.h>

#include "daemon/study_priv.h"
#include "dedup/cutter.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"

#define PUT_BUDGET      (8u << 20) /* taken from the ingest budget by each put */
#define PUT_IN_FLIGHT   (4u << 20)
#define PUT_PARSE_MAX   (16u << 20)
#define PUT_HEAD_MAX    (1u << 20) /* a Part 10 head longer than this is not one */
#define PUT_WAITERS     256u
#define PUT_FIRST_PIECE 4096u

/* A chunk of the instance, from its first byte until the put ends. */
struct put_chunk {
    struct study_put *put;
    struct chunk_item item;
    uint8_t *data; /* gone once stored */
    size_t cap;
    bool head; /* part of the Part 10 head: not in the digest */
};

struct study_put {
    struct object_put face; /* first */
    struct studies *ss;
    char expect_class[DCM_UID_MAX + 1], expect_instance[DCM_UID_MAX + 1];
    char expect_study[DCM_UID_MAX + 1];
    int error;
    struct strbuf start; /* until the head is parsed */
    bool headed;
    struct dcm_head head;
    struct cutter cutter;
    struct strbuf parse; /* the data set's first bytes */
    bool parse_ended;    /* Pixel Data was reached, or enough was seen */
    struct chunk_batch *batch;
    struct put_chunk **chunks;
    uint32_t chunk_count, chunk_room;
    struct recipe_piece *pieces;
    uint32_t piece_count, piece_room;
    int64_t header, frame; /* index of the chunk being filled; -1: none */
    uint64_t size, in_flight, reserved;
    struct fiber_cond landed;
};

/* ---- Chunks and pieces ---- */

static void put_chunk_done(void *owner)
{
    struct put_chunk *c = owner;

    c->put->in_flight -= c->item.len;
    mem_free(c->data);
    c->data = NULL;
    fiber_cond_broadcast(&c->put->landed);
}

/* Sends a full chunk on its way. */
static void put_dispatch(struct study_put *sp, int64_t *index)
{
    struct put_chunk *c;

    if (*index < 0)
        return;
    c = sp->chunks[*index];
    *index = -1;
    c->item.data = c->data;
    sp->in_flight += c->item.len;
    chunk_batch_add(sp->batch, &c->item, 1, put_chunk_done, c);
}

static int put_new_chunk(struct study_put *sp, bool opaque, bool head, int64_t *ret_index)
{
    struct put_chunk *c;

    if (sp->chunk_count == RECIPE_PIECES_MAX)
        return ERR_TOOBIG;
    if (sp->chunk_count == sp->chunk_room) {
        sp->chunk_room = sp->chunk_room ? sp->chunk_room * 2 : 16;
        sp->chunks = mem_realloc(sp->chunks, sp->chunk_room * sizeof(struct put_chunk *));
    }
    c = mem_zalloc(sizeof(*c));
    c->put = sp;
    c->item.opaque = opaque;
    c->head = head;
    *ret_index = sp->chunk_count;
    sp->chunks[sp->chunk_count++] = c;
    return 0;
}

static void put_chunk_grow(struct put_chunk *c, size_t need)
{
    if (c->cap >= need)
        return;
    c->cap = c->cap ? c->cap : PUT_FIRST_PIECE;
    while (c->cap < need)
        c->cap *= 2;
    if (c->cap > CHUNK_MAX)
        c->cap = CHUNK_MAX;
    c->data = mem_realloc(c->data, c->cap);
}

/* Notes that `len` bytes at `off` of a chunk come next in the stream. */
static int put_piece(struct study_put *sp, uint32_t chunk, uint32_t off, uint32_t len)
{
    struct recipe_piece *last = sp->piece_count ? &sp->pieces[sp->piece_count - 1] : NULL;

    if (last && last->chunk == chunk && last->off + last->len == off) {
        last->len += len;
        return 0;
    }
    if (sp->piece_count == RECIPE_PIECES_MAX)
        return ERR_TOOBIG;
    if (sp->piece_count == sp->piece_room) {
        sp->piece_room = sp->piece_room ? sp->piece_room * 2 : 16;
        sp->pieces = mem_realloc(sp->pieces, sp->piece_room * sizeof(*sp->pieces));
    }
    sp->pieces[sp->piece_count++] = (struct recipe_piece){.chunk = chunk, .off = off, .len = len};
    return 0;
}

/* Appends bytes to the chunk at *index (begun if there is none), full ones are sent on. */
static int put_bytes(struct study_put *sp, int64_t *index, bool opaque, bool head, const uint8_t *p,
                     size_t n)
{
    int rc = 0;

    while (rc == 0 && n) {
        struct put_chunk *c;
        size_t take;

        if (*index < 0)
            rc = put_new_chunk(sp, opaque, head, index);
        if (rc < 0)
            break;
        c = sp->chunks[*index];
        take = CHUNK_MAX - c->item.len < n ? CHUNK_MAX - c->item.len : n;
        put_chunk_grow(c, c->item.len + take);
        memcpy(c->data + c->item.len, p, take);
        rc = put_piece(sp, (uint32_t)*index, (uint32_t)c->item.len, (uint32_t)take);
        c->item.len += take;
        p += take;
        n -= take;
        if (c->item.len == CHUNK_MAX)
            put_dispatch(sp, index);
    }
    return rc;
}

/* ---- The stream ---- */

static void put_keep_for_parse(struct study_put *sp, const uint8_t *p, size_t n)
{
    size_t room = PUT_PARSE_MAX - sp->parse.len;

    if (sp->parse_ended)
        return;
    strbuf_add(&sp->parse, p, n < room ? n : room);
    if (n >= room)
        sp->parse_ended = true;
}

static int put_dataset(struct study_put *sp, const uint8_t *p, size_t n)
{
    int rc = 0;

    while (rc == 0 && n) {
        struct cut cut;

        cutter_next(&sp->cutter, p, n, &cut);
        CHECK(cut.len >= 1 && cut.len <= n);
        if (cut.kind == CUTTER_FRAME) {
            if (sp->cutter.scan.deflated)
                put_keep_for_parse(sp, p, cut.len);
            else
                sp->parse_ended = true;
            if (cut.begins)
                put_dispatch(sp, &sp->frame);
            rc = put_bytes(sp, &sp->frame, sp->cutter.opaque, false, p, cut.len);
        } else {
            put_keep_for_parse(sp, p, cut.len);
            rc = put_bytes(sp, &sp->header, false, false, p, cut.len);
        }
        p += cut.len;
        n -= cut.len;
    }
    while (rc == 0 && sp->in_flight > PUT_IN_FLIGHT)
        fiber_cond_wait(&sp->landed);
    return rc;
}

/* Collects the stream's start until the Part 10 head is whole; then the rest is data set. */
static int put_start(struct study_put *sp, const uint8_t *p, size_t n)
{
    int64_t index = -1;
    size_t off;
    int rc;

    strbuf_add(&sp->start, p, n);
    rc = dcm_head_parse(sp->start.data, sp->start.len, &sp->head);
    if (rc == ERR_AGAIN)
        return sp->start.len > PUT_HEAD_MAX ? ERR_DICOM : 0;
    if (rc < 0)
        return rc;
    off = sp->head.dataset_off;
    if (off > sp->start.len)
        return ERR_DICOM;
    sp->headed = true;
    cutter_init(&sp->cutter, sp->head.transfer_syntax, CHUNK_MAX);
    rc = put_bytes(sp, &index, false, true, (const uint8_t *)sp->start.data, off);
    put_dispatch(sp, &index);
    if (rc == 0)
        rc = put_dataset(sp, (const uint8_t *)sp->start.data + off, sp->start.len - off);
    strbuf_free(&sp->start);
    return rc;
}

/* ---- object_ops ---- */

int study_put_begin(struct object_store *os, const struct object_put_info *info,
                    struct object_put **ret_put)
{
    struct studies *ss = (struct studies *)os;
    struct study_put *sp;
    uint64_t start;
    int rc = ss->p->broken;

    if (rc == 0 && info->size_hint > OBJECT_INSTANCE_MAX)
        rc = ERR_TOOBIG;
    if (rc == 0 && ss->waiting >= PUT_WAITERS)
        rc = ERR_OVERLOAD;
    if (rc < 0)
        return rc;
    start = env_now(ss->p->env);
    ss->waiting++;
    fiber_sem_take(&ss->ingest, PUT_BUDGET);
    ss->waiting--;
    metric_record(&ss->put_wait, env_now(ss->p->env) - start);
    rc = chunkstore_await_room(ss->p->chunks, info->size_hint);
    if (rc < 0) {
        fiber_sem_give(&ss->ingest, PUT_BUDGET);
        return rc;
    }
    sp = mem_zalloc(sizeof(*sp));
    sp->face.ops = os->ops;
    sp->ss = ss;
    sp->header = sp->frame = -1;
    if (info->expect_sop_class)
        study_copy_uid(sp->expect_class, info->expect_sop_class);
    if (info->expect_sop_instance)
        study_copy_uid(sp->expect_instance, info->expect_sop_instance);
    if (info->expect_study)
        study_copy_uid(sp->expect_study, info->expect_study);
    sp->batch = chunk_batch_new(ss->p->chunks, SEGMENT_STUDIES);
    fiber_cond_init(&sp->landed);
    *ret_put = &sp->face;
    return 0;
}

/* Keeps room for what may be in flight: all of a small instance, the budget of a large one. */
static int put_reserve(struct study_put *sp, size_t len)
{
    uint64_t want = sp->size + len < PUT_BUDGET ? sp->size + len : PUT_BUDGET;
    int rc = chunkstore_reserve(sp->ss->p->chunks, want - sp->reserved);

    if (rc == 0)
        sp->reserved = want;
    return rc;
}

int study_put_append(struct object_put *op, const void *data, size_t len)
{
    struct study_put *sp = (struct study_put *)op;

    if (sp->error == 0 && len > OBJECT_INSTANCE_MAX - sp->size)
        sp->error = ERR_TOOBIG;
    if (sp->error == 0)
        sp->error = put_reserve(sp, len);
    if (sp->error == 0) {
        sp->size += len;
        sp->error = sp->headed ? put_dataset(sp, data, len) : put_start(sp, data, len);
    }
    return sp->error;
}

void study_put_abort(struct object_put *op)
{
    struct study_put *sp = (struct study_put *)op;

    chunk_batch_free(sp->batch); /* waits for what is being worked on */
    for (uint32_t i = 0; i < sp->chunk_count; i++) {
        mem_free(sp->chunks[i]->data);
        mem_free(sp->chunks[i]);
    }
    mem_free(sp->chunks);
    mem_free(sp->pieces);
    strbuf_free(&sp->start);
    strbuf_free(&sp->parse);
    chunkstore_unreserve(sp->ss->p->chunks, sp->reserved);
    fiber_sem_give(&sp->ss->ingest, PUT_BUDGET);
    mem_free(sp);
}

/* ---- Commit ---- */

/* Reading the attributes is DCMTK's work, on the cpu lane. */
struct put_parse {
    const struct study_put *sp;
    int result;
    struct object_attr *attrs[3];
    size_t counts[3];
    struct fiber_group done;
};

static void put_parse_run(void *arg)
{
    struct put_parse *pp = arg;
    struct dcm_header *h;

    pp->result =
        dcm_header_parse(pp->sp->parse.data, pp->sp->parse.len, pp->sp->head.transfer_syntax, &h);
    if (pp->result < 0)
        return;
    for (int level = OBJECT_STUDY; level <= OBJECT_INSTANCE && pp->result == 0; level++)
        pp->result =
            dcm_header_catalog(h, (enum object_level)level, &pp->attrs[level], &pp->counts[level]);
    dcm_header_free(h);
}

static void put_parse_done(void *arg)
{
    struct put_parse *pp = arg;

    fiber_group_done(&pp->done);
}

static int take_attrs(const struct put_parse *pp, enum object_level level,
                      struct catalog_attrs *ret_attrs)
{
    if (pp->counts[level] > CATALOG_ATTRS_MAX)
        return ERR_DICOM;
    ret_attrs->count = pp->counts[level];
    if (pp->counts[level])
        memcpy(ret_attrs->attrs, pp->attrs[level], pp->counts[level] * sizeof(struct object_attr));
    return 0;
}

static int take_uid(const struct catalog_attrs *a, uint32_t tag, const char **ret_uid)
{
    const char *uid = catalog_attr_text(a, tag);

    if (!uid || !*uid)
        return ERR_DICOM_NO_UID;
    if (!dcm_uid_valid(uid))
        return ERR_DICOM_UID;
    *ret_uid = uid;
    return 0;
}

static bool matches(const char *expected, const char *found)
{
    return *expected == 0 || strcmp(expected, found) == 0;
}

/* Fills the record's identity from the attributes and checks it against what was announced. */
static int put_identify(const struct study_put *sp, const struct put_parse *pp,
                        struct study_put_record *rec)
{
    const char *sop_class = NULL;
    int rc = take_attrs(pp, OBJECT_STUDY, &rec->study);

    if (rc == 0)
        rc = take_attrs(pp, OBJECT_SERIES, &rec->series);
    if (rc == 0)
        rc = take_attrs(pp, OBJECT_INSTANCE, &rec->instance.attrs);
    if (rc == 0)
        rc = take_uid(&rec->study, 0x0020000d, &rec->study_uid);
    if (rc == 0)
        rc = take_uid(&rec->series, 0x0020000e, &rec->series_uid);
    if (rc == 0)
        rc = take_uid(&rec->instance.attrs, 0x00080018, &rec->instance_uid);
    if (rc < 0)
        return rc;
    sop_class = catalog_attr_text(&rec->instance.attrs, 0x00080016);
    if (!sop_class || !dcm_uid_valid(sop_class))
        sop_class = dcm_uid_valid(sp->head.sop_class) ? sp->head.sop_class : "";
    if (!matches(sp->expect_class, sop_class) || !matches(sp->expect_instance, rec->instance_uid) ||
        !matches(sp->expect_study, rec->study_uid))
        return ERR_DICOM_MISMATCH;
    study_copy_uid(rec->instance.sop_class, sop_class);
    study_copy_uid(rec->instance.transfer_syntax, sp->head.transfer_syntax);
    return 0;
}

/* The data set's digest: its chunks' fingerprints and its layout, the head left out. */
static void put_digest(const struct study_put *sp, uint8_t digest[CATALOG_DIGEST])
{
    struct fingerprint_stream *f = fingerprint_stream_new();

    for (uint32_t i = 0; i < sp->piece_count; i++) {
        const struct recipe_piece *pc = &sp->pieces[i];
        const struct put_chunk *c = sp->chunks[pc->chunk];
        uint8_t layout[8];

        if (c->head)
            continue;
        codec_put_le32(layout, pc->off);
        codec_put_le32(layout + 4, pc->len);
        fingerprint_stream_add(f, layout, sizeof(layout));
        fingerprint_stream_add(f, c->item.fingerprint, FINGERPRINT_SIZE);
    }
    fingerprint_stream_end(f, digest);
}

/* Identical data is a cheap success: found before anything is journaled. True: the answer is in
 * *rc. */
static bool put_known(struct study_put *sp, const struct study_put_record *rec, int *rc)
{
    struct studies *ss = sp->ss;
    struct catalog_instance *known = mem_zalloc(sizeof(*known));
    struct catalog_uids uids;
    void *value;
    bool answered = true;
    int found = study_find(ss, rec->instance_uid, &uids, known, &value);

    if (found == ERR_NOENT) {
        answered = false;
    } else if (found < 0) {
        *rc = found;
    } else {
        bool same = memcmp(known->digest, rec->instance.digest, CATALOG_DIGEST) == 0;

        mem_free(value);
        *rc = same ? OBJECT_IDENTICAL : ERR_CONFLICT;
        answered = same || !rec->replace;
    }
    mem_free(known);
    return answered;
}

static int put_journal(struct study_put *sp, struct study_put_record *rec,
                       struct object_put_result *result)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct study_apply_result applied = {0};
    struct recipe_chunk *chunks = mem_calloc(sp->chunk_count, sizeof(*chunks));
    struct iovec iov;
    int rc;

    for (uint32_t i = 0; i < sp->chunk_count; i++)
        chunks[i] =
            (struct recipe_chunk){sp->chunks[i]->item.id, (uint32_t)sp->chunks[i]->item.len};
    rec->recipe = (struct recipe){chunks, sp->pieces, sp->chunk_count, sp->piece_count, sp->size};
    chunk_batch_encode(sp->batch, &body);
    study_put_encode(rec, &body);
    iov = (struct iovec){body.data, body.len};
    rc = record_submit(&sp->ss->p->log, RECORD_OBJECT_PUT, &iov, 1, 0, &applied);
    mem_free(chunks);
    if (rc == 0)
        result->outcome = applied.outcome;
    return rc;
}

static void put_result_uids(const struct study_put_record *rec, struct object_put_result *result)
{
    study_copy_uid(result->study_uid, rec->study_uid);
    study_copy_uid(result->series_uid, rec->series_uid);
    study_copy_uid(result->instance_uid, rec->instance_uid);
    study_copy_uid(result->sop_class_uid, rec->instance.sop_class);
}

/* Nothing is silently dropped: what did not become a new instance is counted, conflicts are logged.
 */
static void put_count(const struct study_put *sp, int rc, const struct study_put_record *rec,
                      enum object_put_outcome outcome)
{
    struct studies *ss = sp->ss;

    if (rc == ERR_CONFLICT) {
        ss->refused++;
        log_warn("studies",
                 "refused an instance: other content is stored under its UID sop_instance=%s",
                 log_q(rec->instance_uid));
    }
    if (rc < 0)
        return;
    ss->stored += outcome == OBJECT_STORED;
    ss->identical += outcome == OBJECT_IDENTICAL;
    if (outcome == OBJECT_REPLACED) {
        ss->replaced++;
        log_warn("studies", "replaced an instance by other content sop_instance=%s",
                 log_q(rec->instance_uid));
    }
}

/* Everything is stored and parsed: decide and journal. */
static int put_conclude(struct study_put *sp, const struct put_parse *pp,
                        struct object_put_result *result)
{
    struct study_put_record *rec = mem_zalloc(sizeof(*rec));
    int rc = put_identify(sp, pp, rec), answer = 0;

    if (rc == 0) {
        rec->replace = sp->ss->p->options.on_conflict == PARTITION_REPLACE;
        rec->instance.bytes = sp->size;
        rec->instance.dataset_off = sp->head.dataset_off;
        rec->instance.stored_ns = env_wallclock(sp->ss->p->env);
        put_digest(sp, rec->instance.digest);
        put_result_uids(rec, result);
        if (put_known(sp, rec, &answer)) {
            rc = answer < 0 ? answer : 0;
            result->outcome = OBJECT_IDENTICAL;
        } else {
            rc = put_journal(sp, rec, result);
        }
    }
    put_count(sp, rc, rec, result->outcome);
    mem_free(rec);
    return rc;
}

/* A commit is over that began at `start` and had all chunks stored and the header parsed at
 * `stored`. Not timed from the put's begin: how fast bytes come is the client's doing. */
static void put_measure(const struct study_put *sp, uint64_t start, uint64_t stored, int rc)
{
    struct studies *ss = sp->ss;
    uint64_t now = env_now(ss->p->env);

    metric_record(&ss->put_time, now - start);
    if (rc == 0)
        metric_add(&ss->put_bytes, sp->size);
    if (slow_is(ss->p->slow, now - start))
        slow_note(ss->p->slow, now, "object.put", now - start,
                  "bytes=%llu chunks=%u chunks_us=%llu commit_us=%llu result=%s",
                  (unsigned long long)sp->size, sp->chunk_count,
                  (unsigned long long)((stored - start) / 1000),
                  (unsigned long long)((now - stored) / 1000), rc < 0 ? err_name(rc) : "ok");
}

int study_put_commit(struct object_put *op, struct object_put_result *ret_result)
{
    struct study_put *sp = (struct study_put *)op;
    struct put_parse pp = {.sp = sp};
    struct object_put_result result = {0};
    uint64_t start = env_now(sp->ss->p->env), stored = start;
    int rc = sp->error;

    if (rc == 0 && !sp->headed)
        rc = ERR_DICOM; /* the stream ended within the head, or was none */
    if (rc == 0) {
        fiber_group_init(&pp.done);
        fiber_group_add(&pp.done, 1);
        env_offload_start(sp->ss->p->env, ENV_LANE_CPU, put_parse_run, put_parse_done, &pp);
        put_dispatch(sp, &sp->frame);
        put_dispatch(sp, &sp->header);
        rc = chunk_batch_finish(sp->batch);
        fiber_group_wait(&pp.done);
        stored = env_now(sp->ss->p->env);
        if (rc == 0)
            rc = pp.result;
        if (rc == 0)
            rc = put_conclude(sp, &pp, &result);
        for (int i = 0; i < 3; i++)
            mem_free(pp.attrs[i]);
    }
    put_measure(sp, start, stored, rc);
    study_put_abort(op); /* frees; what was journaled stays */
    if (rc == 0)
        *ret_result = result;
    return rc;
}

/* Ingest of an instance: its stream is cut into content while it arrives (study_cut.c, content.c),
 * its header parsed, and the recipe journaled at the end.
 *
 * The digest that tells identical from conflicting data sets is that of the content, the Part 10
 * head left out.
 */
#include <string.h>

#include "daemon/study_cut.h"
#include "daemon/study_priv.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

struct study_put {
    struct object_put face; /* first */
    struct studies *ss;
    char expect_class[DCM_UID_MAX + 1], expect_instance[DCM_UID_MAX + 1];
    char expect_study[DCM_UID_MAX + 1];
    int error;
    struct content_put *content;
    struct study_cut cut;
};

/* ---- object_ops ---- */

int study_put_begin(struct object_store *os, const struct object_put_info *info,
                    struct object_put **ret_put)
{
    struct studies *ss = (struct studies *)os;
    struct content_put *content;
    struct study_put *sp;
    int rc = info->size_hint > OBJECT_INSTANCE_MAX
                 ? ERR_TOOBIG
                 : content_put_begin(ss->p->contents, info->size_hint, &content);

    if (rc < 0)
        return rc;
    sp = mem_zalloc(sizeof(*sp));
    sp->face.ops = os->ops;
    sp->ss = ss;
    sp->content = content;
    study_cut_init(&sp->cut, content, true, 0);
    if (info->expect_sop_class)
        study_copy_uid(sp->expect_class, info->expect_sop_class);
    if (info->expect_sop_instance)
        study_copy_uid(sp->expect_instance, info->expect_sop_instance);
    if (info->expect_study)
        study_copy_uid(sp->expect_study, info->expect_study);
    *ret_put = &sp->face;
    return 0;
}

int study_put_append(struct object_put *op, const void *data, size_t len)
{
    struct study_put *sp = (struct study_put *)op;

    if (sp->error == 0)
        sp->error = content_put_room(sp->content, len, OBJECT_INSTANCE_MAX);
    if (sp->error == 0)
        sp->error = study_cut_append(&sp->cut, data, len);
    return sp->error;
}

void study_put_abort(struct object_put *op)
{
    struct study_put *sp = (struct study_put *)op;

    content_put_free(sp->content);
    study_cut_free(&sp->cut);
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
    const struct study_cut *cut = &pp->sp->cut;
    struct dcm_header *h;

    pp->result = dcm_header_parse(cut->parse.data, cut->parse.len, cut->head.transfer_syntax, &h);
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
        sop_class = dcm_uid_valid(sp->cut.head.sop_class) ? sp->cut.head.sop_class : "";
    if (!matches(sp->expect_class, sop_class) || !matches(sp->expect_instance, rec->instance_uid) ||
        !matches(sp->expect_study, rec->study_uid))
        return ERR_DICOM_MISMATCH;
    study_copy_uid(rec->instance.sop_class, sop_class);
    study_copy_uid(rec->instance.transfer_syntax, sp->cut.head.transfer_syntax);
    return 0;
}

/* The same is stored. It is a success only if it can be read: else the new takes its place, and the
 * success is no cheap one. True: the answer is in *rc. */
static bool put_known_same(struct study_put *sp, const struct catalog_uids *home,
                           struct study_put_record *rec, int *rc)
{
    int lost = study_look_for_lost(sp->ss, home, rec->instance_uid);

    *rc = lost == 0 ? (int)OBJECT_IDENTICAL : lost;
    if (lost != ERR_LOST)
        return true;
    rec->replace |= STUDY_REPLACE_SAME;
    log_info("studies", "an instance that could not be read any more came again sop_instance=%s",
             log_q(rec->instance_uid));
    return false;
}

/* Identical data is a cheap success: found before anything is journaled. True: the answer is in
 * *rc. */
static bool put_known(struct study_put *sp, struct study_put_record *rec, int *rc)
{
    struct studies *ss = sp->ss;
    struct catalog_instance *known = mem_zalloc(sizeof(*known));
    struct catalog_uids uids;
    void *value;
    bool answered = true;
    int found = study_find(ss, rec->instance_uid, &uids, known, &value);

    if (found == ERR_NOENT || found == ERR_LOST) {
        answered = false; /* what was lost may be sent again */
    } else if (found < 0) {
        *rc = found;
    } else {
        bool same = memcmp(known->digest, rec->instance.digest, CATALOG_DIGEST) == 0;

        mem_free(value);
        *rc = ERR_CONFLICT;
        answered = same ? put_known_same(sp, &uids, rec, rc) : !rec->replace;
        if (!answered)
            *rc = study_warm(ss, rec->instance_uid); /* it will be taken out */
        answered |= *rc < 0;
    }
    mem_free(known);
    return answered;
}

static int put_journal(const struct study_put *sp, struct study_put_record *rec,
                       struct object_put_result *result)
{
    STRBUF_AUTO struct strbuf body = STRBUF_INIT;
    struct study_apply_result applied = {0};
    struct iovec iov;
    int rc;

    content_put_list(sp->content, &body);
    study_put_encode(rec, &body);
    content_put_recipe(sp->content, &body);
    rc = study_warm_upper(sp->ss, rec);
    if (rc < 0)
        return rc;
    iov = (struct iovec){body.data, body.len};
    rc = record_submit(&sp->ss->p->log, RECORD_OBJECT_PUT, &iov, 1, 0, &applied);
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
        if (sp->ss->p->options.on_conflict == PARTITION_REPLACE)
            rec->replace = STUDY_REPLACE_OTHER;
        rec->instance.bytes = content_put_size(sp->content);
        rec->instance.dataset_off = sp->cut.head.dataset_off;
        rec->instance.stored_ns = env_wallclock(sp->ss->p->env);
        content_put_digest(sp->content, rec->instance.digest);
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
        metric_add(&ss->put_bytes, content_put_size(sp->content));
    if (slow_is(ss->p->slow, now - start))
        slow_note(ss->p->slow, now, "object.put", now - start,
                  "bytes=%llu chunks=%u chunks_us=%llu commit_us=%llu result=%s",
                  (unsigned long long)content_put_size(sp->content),
                  content_put_chunks(sp->content), (unsigned long long)((stored - start) / 1000),
                  (unsigned long long)((now - stored) / 1000), rc < 0 ? err_name(rc) : "ok");
}

int study_put_commit(struct object_put *op, struct object_put_result *ret_result)
{
    struct study_put *sp = (struct study_put *)op;
    struct put_parse pp = {.sp = sp};
    struct object_put_result result = {0};
    uint64_t start = env_now(sp->ss->p->env), stored = start;
    int rc = sp->error;

    if (rc == 0 && !sp->cut.headed)
        rc = ERR_DICOM; /* the stream ended within the head, or was none */
    if (rc == 0) {
        fiber_group_init(&pp.done);
        fiber_group_add(&pp.done, 1);
        env_offload_start(sp->ss->p->env, ENV_LANE_CPU, put_parse_run, put_parse_done, &pp);
        study_cut_end(&sp->cut);
        rc = content_put_finish(sp->content);
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

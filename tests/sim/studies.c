/* What clients do with DICOM instances: store, store badly, read, delete, query. */
#include "tests/sim/run.h"

#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"

static bool is_refusal(int rc)
{
    return rc == ERR_DICOM || rc == ERR_DICOM_NO_UID || rc == ERR_DICOM_UID ||
           rc == ERR_DICOM_MISMATCH;
}

/* Sends the stream in random pieces; the put is ended with an error where one came. */
static int put_stream(struct run *r, const struct strbuf *s, size_t len,
                      struct object_put **ret_put)
{
    struct object_put_info info = {.size_hint = run_chance(r, 50) ? len : 0};
    struct object_put *put;
    size_t at = 0;
    int rc = object_put_begin(partition_objects(r->p), &info, &put);

    while (rc == 0 && at < len) {
        size_t n = 1 + (size_t)run_random(r, run_chance(r, 50) ? 64 * 1024 : 300);

        n = n < len - at ? n : len - at;
        rc = object_put_append(put, s->data + at, n);
        at += n;
        if (rc < 0)
            object_put_abort(put);
    }
    if (rc == 0)
        *ret_put = put;
    return rc;
}

static enum model_put_result put_result_of(int rc, const struct object_put_result *result)
{
    if (rc == ERR_CONFLICT)
        return MODEL_PUT_REFUSED;
    switch (result->outcome) {
    case OBJECT_STORED:
        return MODEL_PUT_STORED;
    case OBJECT_IDENTICAL:
        return MODEL_PUT_SAME;
    case OBJECT_REPLACED:
        return MODEL_PUT_REPLACED;
    }
    return MODEL_PUT_NONE;
}

static void op_put(struct run *r)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    unsigned index = (unsigned)run_random(r, INSTANCES);
    int content = run_chance(r, 70) ? 1 : 1 + (int)run_random(r, INSTANCE_CONTENTS);
    struct object_put_result result;
    struct object_put *put;
    int slot = model_instance_begin(&r->instances[index], content, &r->contents), rc;
    bool fits;

    if (slot < 0)
        return;
    instance_make(index, content, &s);
    rc = put_stream(r, &s, s.len, &put);
    if (rc == 0)
        rc = object_put_commit(put, &result);
    run_trace(r, "put of instance %u, content %d: %s", index, content, err_name(rc));
    if (rc == ERR_NOSPC && client_full_enough(r, s.len)) {
        r->nospc++;
        fits = model_instance_end(&r->instances[index], slot, MODEL_PUT_NONE, MODEL_NOT);
    } else if (client_lost(r, rc)) {
        return;
    } else if (rc == 0 || rc == ERR_CONFLICT) {
        fits =
            model_instance_end(&r->instances[index], slot, put_result_of(rc, &result), MODEL_DONE);
    } else {
        run_fail(r, "put of instance %u, content %d: %s", index, content, err_name(rc));
    }
    if (!fits)
        run_fail(r, "put of instance %u, content %d: %s does not fit what was stored", index,
                 content,
                 rc < 0                               ? err_name(rc)
                 : result.outcome == OBJECT_STORED    ? "stored"
                 : result.outcome == OBJECT_IDENTICAL ? "identical"
                                                      : "replaced");
}

static void op_put_bad(struct run *r)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    unsigned kind = (unsigned)run_random(r, INSTANCE_BAD_KINDS);
    struct object_put_result result;
    struct object_put *put;
    int rc;

    instance_make_bad((unsigned)run_random(r, INSTANCES), kind, &s);
    rc = put_stream(r, &s, s.len, &put);
    if (rc == 0)
        rc = object_put_commit(put, &result);
    if (!is_refusal(rc) && !(rc == ERR_NOSPC && client_full_enough(r, s.len)) &&
        !client_lost(r, rc))
        run_fail(r, "put of a bad stream, kind %u: %s", kind, err_name(rc));
}

static void op_put_abort(struct run *r)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    struct object_put *put;
    int rc;

    instance_make((unsigned)run_random(r, INSTANCES), 1, &s);
    rc = put_stream(r, &s, (size_t)run_random(r, s.len), &put);
    if (rc == 0)
        object_put_abort(put);
    else if (!(rc == ERR_NOSPC && client_full_enough(r, s.len)) && !client_lost(r, rc))
        run_fail(r, "put to be aborted: %s", err_name(rc));
}

/* Which content the bytes are; ABSENT for none. */
static int content_of(unsigned index, const uint8_t *bytes, size_t len)
{
    for (int c = 1; c <= INSTANCE_CONTENTS; c++) {
        STRBUF_AUTO struct strbuf s = STRBUF_INIT;

        instance_make(index, c, &s);
        if (s.len == len && memcmp(s.data, bytes, len) == 0)
            return c;
    }
    return MODEL_INSTANCE_ABSENT;
}

/* Reads the whole, in pieces, through an open object. */
static int object_whole(struct run *r, struct object *o, uint8_t *buf, size_t len)
{
    size_t at = 0, got;

    while (at < len) {
        size_t n = 1 + (size_t)run_random(r, 200 * 1024);
        int rc = object_read(o, at, buf + at, n < len - at ? n : len - at, &got);

        if (rc < 0)
            return rc;
        if (got == 0)
            return ERR_TRUNCATED;
        at += got;
    }
    return object_read(o, len, buf, 1, &got) == 0 && got == 0 ? 0 : ERR_TOOBIG;
}

int client_read_instance(struct run *r, unsigned index, int *ret_content)
{
    char uid[OBJECT_UID_MAX + 1], study[OBJECT_UID_MAX + 1];
    struct object *o;
    uint8_t *buf;
    size_t len;
    int rc;

    instance_uid(index, uid);
    instance_study_uid(instance_study_of(index), study);
    rc = object_open(partition_objects(r->p), run_chance(r, 50) ? study : NULL, NULL, uid, &o);
    if (rc == ERR_NOENT) {
        *ret_content = MODEL_INSTANCE_ABSENT;
        return 0;
    }
    if (rc < 0)
        return rc;
    len = (size_t)object_get_row(o)->bytes;
    if (strcmp(object_get_row(o)->instance_uid, uid) != 0 || len > (64u << 20))
        run_fail(r, "the row of instance %u is not its own", index);
    buf = mem_alloc(len + 1);
    rc = object_whole(r, o, buf, len);
    if (rc == 0 && run_chance(r, 20)) {
        env_sleep(r->env, run_random(r, 50 * ENV_NS_PER_MS)); /* it stays readable while open */
        rc = object_whole(r, o, buf, len);
    }
    object_close(o);
    if (rc == 0) {
        *ret_content = content_of(index, buf, len);
        if (*ret_content == MODEL_INSTANCE_ABSENT)
            run_fail(r, "wrong bytes of instance %u", index);
    }
    mem_free(buf);
    return rc;
}

static void op_object_read(struct run *r)
{
    unsigned index = (unsigned)run_random(r, INSTANCES);
    int content, rc;

    model_instance_read_begin(&r->instances[index]);
    rc = client_read_instance(r, index, &content);
    if (rc < 0) {
        if (!client_lost(r, rc))
            run_fail(r, "read of instance %u: %s", index, err_name(rc));
        r->instances[index].readers--;
        return;
    }
    run_trace(r, "read of instance %u: content %d", index, content);
    if (!model_instance_read_end(&r->instances[index], content))
        run_fail(r, "instance %u has content %d, which it cannot have", index, content);
}

/* Deletes instances by their level; the model sees a delete of each. */
static void op_delete(struct run *r)
{
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1], uid[OBJECT_UID_MAX + 1];
    unsigned index = (unsigned)run_random(r, INSTANCES);
    uint64_t level = run_chance(r, 60) ? 2 : run_random(r, 3);
    struct object_delete_result result;
    int slots[INSTANCES], rc;
    bool busy = false;

    for (unsigned i = 0; i < INSTANCES; i++) {
        bool in = level == 2
                      ? i == index
                      : instance_study_of(i) == instance_study_of(index) &&
                            (level == 0 || instance_series_of(i) == instance_series_of(index));

        slots[i] =
            in ? model_instance_begin(&r->instances[i], MODEL_INSTANCE_ABSENT, &r->contents) : -1;
        busy |= in && slots[i] < 0;
    }
    instance_study_uid(instance_study_of(index), study);
    instance_series_uid(instance_study_of(index), instance_series_of(index), series);
    instance_uid(index, uid);
    if (busy) { /* too much at once for the model */
        for (unsigned i = 0; i < INSTANCES; i++)
            if (slots[i] >= 0)
                (void)model_instance_end(&r->instances[i], slots[i], MODEL_PUT_NONE, MODEL_NOT);
        return;
    }
    rc = object_remove(partition_objects(r->p), study, level >= 1 ? series : NULL,
                       level >= 2 ? uid : NULL, &result);
    run_trace(r, "delete of instance %u, level %llu: %s", index, (unsigned long long)level,
              err_name(rc));
    if (client_lost(r, rc))
        return;
    if (rc < 0 && rc != ERR_NOENT)
        run_fail(r, "delete at level %llu: %s", (unsigned long long)level, err_name(rc));
    for (unsigned i = 0; i < INSTANCES; i++) {
        enum model_put_result what = MODEL_PUT_NONE;

        if (slots[i] < 0)
            continue;
        if (rc == ERR_NOENT)
            what = MODEL_DELETED_NOTHING;
        else if (level == 2)
            what = MODEL_DELETED;
        if (!model_instance_end(&r->instances[i], slots[i], what, MODEL_DONE))
            run_fail(r, "delete of instance %u: it cannot have been %s", i,
                     rc == 0 ? "there" : "missing");
    }
}

static int find_instance(const char *uid)
{
    char text[OBJECT_UID_MAX + 1];

    for (unsigned i = 0; i < INSTANCES; i++) {
        instance_uid(i, text);
        if (strcmp(text, uid) == 0)
            return (int)i;
    }
    return -1;
}

static void op_query(struct run *r)
{
    char study[OBJECT_UID_MAX + 1];
    unsigned of = (unsigned)run_random(r, INSTANCE_STUDIES);
    struct object_query q = {.level = OBJECT_INSTANCE, .study_uid = study};
    struct object_rows *rows;
    bool sure[INSTANCES], found[INSTANCES] = {0};
    int rc;

    instance_study_uid(of, study);
    for (unsigned i = 0; i < INSTANCES; i++) {
        model_instance_read_begin(&r->instances[i]);
        sure[i] = instance_study_of(i) == of && model_instance_surely_present(&r->instances[i]);
    }
    rc = object_query(partition_objects(r->p), &q, &rows);
    if (rc < 0)
        run_fail(r, "query: %s", err_name(rc));
    for (size_t i = 0; i < rows->count; i++) {
        int at = find_instance(rows->rows[i].instance_uid);

        if (at < 0 || found[at] || instance_study_of((unsigned)at) != of)
            run_fail(r, "query found %s", rows->rows[i].instance_uid);
        found[at] = true;
    }
    mem_free(rows);
    for (unsigned i = 0; i < INSTANCES; i++) {
        struct model_instance *in = &r->instances[i];

        if (found[i] && !(in->ghosts << 1 >> 2))
            run_fail(r, "query found instance %u, which is not there", i);
        if (sure[i] && !found[i] && !(in->ghosts & 1))
            run_fail(r, "query did not find instance %u", i);
        in->readers--;
    }
}

bool studies_step(struct run *r, enum op_kind kind)
{
    switch (kind) {
    case OP_PUT:
        op_put(r);
        return true;
    case OP_PUT_BAD:
        op_put_bad(r);
        return true;
    case OP_PUT_ABORT:
        op_put_abort(r);
        return true;
    case OP_OBJECT_READ:
        op_object_read(r);
        return true;
    case OP_DELETE:
        op_delete(r);
        return true;
    case OP_QUERY:
        op_query(r);
        return true;
    default:
        return false;
    }
}

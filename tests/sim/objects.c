/* Buckets and objects in the simulator; see objects.h.
 *
 * Each name is an instance of the model: puts replace, deletes delete. Deleting a bucket is a
 * delete of each of its objects, and one that is refused unless the bucket is empty tells, where it
 * succeeds, that each was missing. Names with odd numbers are put on the condition that nobody is
 * there, which is the model's policy of refusing; others now and then on that of an etag.
 */
#include "tests/sim/objects.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tests/sim/run.h"

static bool never_same(int a, int b)
{
    (void)a;
    (void)b;
    return false;
}

static const struct model_contents replacing = {.same = never_same, .replace = true};
static const struct model_contents refusing = {.same = never_same, .replace = false};

static bool wants_absent(unsigned name)
{
    return name % 2 == 1;
}

static const struct model_contents *contents_of(unsigned name)
{
    return wants_absent(name) ? &refusing : &replacing;
}

void objects_init(struct model_bucket *buckets)
{
    for (unsigned b = 0; b < OBJECT_BUCKETS; b++) {
        memset(&buckets[b], 0, sizeof(buckets[b]));
        (void)snprintf(buckets[b].name, sizeof(buckets[b].name), "bu%u", b);
        for (unsigned i = 0; i < OBJECT_NAMES; i++)
            model_instance_init(&buckets[b].objects[i]);
    }
}

void objects_free(struct model_bucket *buckets)
{
    for (unsigned b = 0; b < OBJECT_BUCKETS; b++)
        for (unsigned i = 0; i < OBJECT_NAMES; i++)
            model_instance_free(&buckets[b].objects[i]);
}

void objects_crash(struct model_bucket *buckets)
{
    for (unsigned b = 0; b < OBJECT_BUCKETS; b++) {
        buckets[b].admin = false;
        buckets[b].committing = 0;
        for (unsigned i = 0; i < OBJECT_NAMES; i++)
            model_instance_crash(&buckets[b].objects[i]);
    }
}

/* ---- Contents ---- */

static void add_noise(struct strbuf *out, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i += 8) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        strbuf_add(out, &seed, n - i < 8 ? n - i : 8);
    }
}

/* Content 1 is an instance, byte for byte; 2 begins as one; neighbours share much of 5. */
static void make_content(unsigned name, int content, struct strbuf *out)
{
    switch (content) {
    case 1:
        instance_make(name, 1, out);
        break;
    case 2:
        instance_make(name, 1, out);
        out->len = out->len * 2 / 3;
        break;
    case 3: /* nothing */
        break;
    case 4:
        strbuf_addf(out, "object %u", name);
        break;
    case 5:
        add_noise(out, 300000, name / 4);
        strbuf_addf(out, "%u", name);
        break;
    default:
        add_noise(out, 5000 + name, name);
        break;
    }
}

/* Which it is; -1: none. */
static int content_of(unsigned name, const uint8_t *bytes, size_t len)
{
    for (int c = 1; c <= OBJECT_CONTENTS; c++) {
        STRBUF_AUTO struct strbuf s = STRBUF_INIT;

        make_content(name, c, &s);
        if (s.len == len && (len == 0 || memcmp(s.data, bytes, len) == 0))
            return c;
    }
    return -1;
}

/* ---- What is told beside the bytes: it follows from name and content ---- */

void object_labels_make(unsigned name, int content, struct object_labels *l)
{
    unsigned c = (unsigned)content;

    memset(l, 0, sizeof(*l));
    if ((name + c) % 3)
        (void)snprintf(l->type, sizeof(l->type), "sim/content-%u-%u", name, c);
    l->count = (name + 2 * c) % (OBJECT_PAIRS_MAX + 1);
    for (unsigned i = 0; i < l->count; i++) {
        (void)snprintf(l->names[i], sizeof(l->names[i]), "p%u", i);
        (void)snprintf(l->values[i], sizeof(l->values[i]), "of %u, %u", name, c);
        l->pairs[i] = (struct bucket_pair){l->names[i], l->values[i]};
    }
}

static void check_labels(struct run *r, const struct bucket_entry *e, unsigned name, int content)
{
    struct object_labels l;
    size_t found = 0;

    object_labels_make(name, content, &l);
    for (size_t i = 0; i < l.count; i++)
        for (size_t j = 0; j < e->pair_count; j++)
            found += strcmp(l.names[i], e->pairs[j].name) == 0 &&
                     strcmp(l.values[i], e->pairs[j].value) == 0;
    if (strcmp(e->type, l.type) != 0 || e->pair_count != l.count || found != l.count)
        run_fail(r, "object %u, content %d: type %s and %zu pairs are not its own", name, content,
                 e->type, e->pair_count);
}

static void check_etag(struct run *r, const uint8_t *etag, unsigned name, int content)
{
    struct model_etag *e = &r->etags[name][content];

    if (e->known && memcmp(e->etag, etag, BUCKET_ETAG) != 0)
        run_fail(r, "object %u, content %d: the same bytes have another etag", name, content);
    for (int c = 1; c <= OBJECT_CONTENTS; c++)
        if (c != content && r->etags[name][c].known &&
            memcmp(r->etags[name][c].etag, etag, BUCKET_ETAG) == 0)
            run_fail(r, "object %u: contents %d and %d have one etag", name, c, content);
    e->known = true;
    memcpy(e->etag, etag, BUCKET_ETAG);
}

/* Folders, so that lists have something to tell as one. */
static void name_of(unsigned i, char name[24])
{
    (void)snprintf(name, 24, "%s%u", i < 3 ? "" : i < 5 ? "a/" : "b/c/", i);
}

/* ---- Operations ---- */

static struct model_bucket *pick(struct run *r)
{
    return &r->buckets[run_random(r, OBJECT_BUCKETS)];
}

static void bucket_make(struct run *r, struct model_bucket *b)
{
    int rc;

    b->exists = MODEL_UNSURE;
    b->changes++;
    rc = bucket_create(partition_buckets(r->p), b->name);
    if (client_lost(r, rc))
        return;
    if (rc < 0)
        run_fail(r, "create bucket %s: %s", b->name, err_name(rc));
    b->exists = MODEL_PRESENT;
    b->changes++;
    run_trace(r, "created bucket %s", b->name);
    if (bucket_create(partition_buckets(r->p), b->name) != ERR_EXIST)
        run_fail(r, "bucket %s was created twice", b->name);
}

/* What the delete told of an object. */
static void bucket_deleted(struct run *r, struct model_bucket *b, int slots[OBJECT_NAMES],
                           bool force, int rc)
{
    for (unsigned i = 0; i < OBJECT_NAMES; i++)
        if (!model_instance_end(&b->objects[i], slots[i],
                                rc == 0 && !force ? MODEL_DELETED_NOTHING : MODEL_PUT_NONE,
                                rc == 0 ? MODEL_DONE : MODEL_NOT))
            run_fail(r, "bucket %s was deleted, and object %u cannot have been missing", b->name,
                     i);
}

static void bucket_delete(struct run *r, struct model_bucket *b, bool force)
{
    int slots[OBJECT_NAMES], rc;

    for (unsigned i = 0; i < OBJECT_NAMES; i++) {
        slots[i] = model_instance_begin(&b->objects[i], MODEL_INSTANCE_ABSENT, contents_of(i));
        if (slots[i] >= 0)
            continue;
        while (i-- > 0) /* too much at once for the model */
            (void)model_instance_end(&b->objects[i], slots[i], MODEL_PUT_NONE, MODEL_NOT);
        return;
    }
    b->exists = MODEL_UNSURE;
    b->changes++;
    rc = bucket_remove(partition_buckets(r->p), b->name, force);
    if (client_lost(r, rc))
        return;
    if (rc < 0 && (rc != ERR_NOTEMPTY || force))
        run_fail(r, "delete bucket %s: %s", b->name, err_name(rc));
    b->exists = rc == 0 ? MODEL_ABSENT : MODEL_PRESENT;
    b->changes++;
    run_trace(r, "delete bucket %s, force %d: %s", b->name, force, err_name(rc));
    bucket_deleted(r, b, slots, force, rc);
}

/* Has a put been sent, and is to be stored any moment? */
static bool put_is_near_its_end(const struct model_bucket *b)
{
    return b->committing > 0;
}

static void op_bucket(struct run *r)
{
    struct model_bucket *b = pick(r);

    if (b->admin)
        return;
    b->admin = true;
    if (b->exists == MODEL_ABSENT) {
        bucket_make(r, b);
        /* Deleted again as empty, just when the first put comes. */
        for (unsigned i = 0; i < 20 && run_chance(r, 90) && b->exists == MODEL_PRESENT; i++) {
            if (!put_is_near_its_end(b))
                env_sleep(r->env, 1 + run_random(r, ENV_NS_PER_MS));
            else
                bucket_delete(r, b, false);
        }
    } else {
        bucket_delete(r, b, run_chance(r, 50));
    }
    b->admin = false;
}

static int send(struct run *r, struct model_bucket *b, const struct bucket_put_info *info,
                const struct strbuf *s, struct bucket_put_result *ret_result)
{
    struct bucket_put *put;
    size_t at = 0;
    int rc = bucket_put_begin(partition_buckets(r->p), info, &put);

    if (rc < 0)
        return rc;
    while (at < s->len) {
        size_t n = 1 + (size_t)run_random(r, run_chance(r, 50) ? 100 * 1024 : 2000);

        n = n < s->len - at ? n : s->len - at;
        rc = bucket_put_append(put, s->data + at, n);
        at += n;
        if (rc < 0 || run_chance(r, 1)) {
            bucket_put_abort(put);
            return rc < 0 ? rc : ERR_CANCELED;
        }
    }
    b->committing++;
    rc = bucket_put_commit(put, ret_result);
    b->committing--;
    return rc;
}

/* Now and then a put wants to replace a certain content. Which; 0: it does not. */
static int pick_wanted(struct run *r, unsigned name, struct bucket_put_info *info)
{
    int content = 1 + (int)run_random(r, OBJECT_CONTENTS);

    if (wants_absent(name) || !r->etags[name][content].known || !run_chance(r, 40))
        return 0;
    info->condition = BUCKET_IF_ETAG;
    memcpy(info->etag, r->etags[name][content].etag, BUCKET_ETAG);
    return content;
}

static void op_bucket_put(struct run *r)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT;
    struct model_bucket *b = pick(r);
    unsigned i = (unsigned)run_random(r, OBJECT_NAMES);
    int content = 1 + (int)run_random(r, OBJECT_CONTENTS), slot, rc;
    uint64_t changes = b->changes;
    bool present = b->exists == MODEL_PRESENT, fits;
    struct bucket_put_result result = {0};
    enum model_put_result what;
    char name[24];
    struct bucket_put_info info = {.bucket = b->name,
                                   .name = name,
                                   .condition = wants_absent(i) ? BUCKET_IF_ABSENT : BUCKET_ALWAYS};
    int wants = pick_wanted(r, i, &info);
    struct object_labels labels;

    slot = model_instance_begin_if(&b->objects[i], content, contents_of(i), wants);
    if (slot < 0)
        return;
    object_labels_make(i, content, &labels);
    info.type = labels.type[0] ? labels.type : NULL;
    info.pairs = labels.pairs;
    info.pair_count = labels.count;
    name_of(i, name);
    make_content(i, content, &s);
    info.size_hint = run_chance(r, 50) ? s.len : 0;
    rc = send(r, b, &info, &s, &result);
    run_trace(r, "put %s/%s, content %d: %s", b->name, name, content, err_name(rc));
    if (rc == ERR_NOENT && present && b->changes == changes)
        run_fail(r, "put %s/%s: the bucket is there, and is not found", b->name, name);
    if (rc == ERR_NOSPC && !client_full_enough(r, s.len) && !r->beyond)
        run_fail(r, "put %s/%s: no space, and there is some", b->name, name);
    r->nospc += rc == ERR_NOSPC;
    what = rc == ERR_CONDITION ? MODEL_PUT_REFUSED
           : result.replaced   ? MODEL_PUT_REPLACED
                               : MODEL_PUT_STORED;
    if (rc == 0 || rc == ERR_CONDITION)
        fits = model_instance_end(&b->objects[i], slot, what, MODEL_DONE);
    else if (rc == ERR_NOENT || rc == ERR_CANCELED || rc == ERR_NOSPC)
        fits = model_instance_end(&b->objects[i], slot, MODEL_PUT_NONE, MODEL_NOT);
    else if (client_lost(r, rc))
        return;
    else
        run_fail(r, "put %s/%s: %s", b->name, name, err_name(rc));
    if (rc == 0)
        check_etag(r, result.etag, i, content);
    if (!fits)
        run_fail(r, "put %s/%s: %s does not fit what was there", b->name, name,
                 rc < 0            ? err_name(rc)
                 : result.replaced ? "replaced"
                                   : "stored");
}

/* Reads through an open object, in pieces, perhaps twice. */
static int read_whole(struct run *r, struct bucket_object *o, uint8_t *buf, size_t len)
{
    size_t at = 0, got;

    while (at < len) {
        size_t n = 1 + (size_t)run_random(r, 200 * 1024);
        int rc = bucket_read(o, at, buf + at, n < len - at ? n : len - at, &got);

        if (rc < 0)
            return rc;
        if (got == 0)
            return ERR_TRUNCATED;
        at += got;
    }
    return 0;
}

/* Which content an object has; ABSENT when there is none. */
static int read_object(struct run *r, struct model_bucket *b, unsigned i, int *ret_content)
{
    struct bucket_object *o;
    char name[24];
    uint8_t *buf;
    size_t len;
    int rc;

    name_of(i, name);
    rc = bucket_open(partition_buckets(r->p), b->name, name, &o);
    if (rc < 0) {
        *ret_content = MODEL_INSTANCE_ABSENT;
        return rc == ERR_NOENT ? 0 : rc;
    }
    len = (size_t)bucket_get_entry(o)->size;
    buf = mem_alloc(len + 1);
    rc = read_whole(r, o, buf, len);
    if (rc == 0 && run_chance(r, 20)) {
        env_sleep(r->env, run_random(r, 50 * ENV_NS_PER_MS)); /* it stays readable while open */
        rc = read_whole(r, o, buf, len);
    }
    *ret_content = content_of(i, buf, len);
    if (rc == 0 && *ret_content < 0)
        run_fail(r, "wrong bytes of %s/%s", b->name, name);
    if (rc == 0) {
        check_labels(r, bucket_get_entry(o), i, *ret_content);
        check_etag(r, bucket_get_entry(o)->etag, i, *ret_content);
    }
    bucket_close(o);
    mem_free(buf);
    return rc;
}

static void check_object(struct run *r, struct model_bucket *b, unsigned i)
{
    int content, rc;

    model_instance_read_begin(&b->objects[i]);
    rc = read_object(r, b, i, &content);
    if (rc < 0) {
        if (!client_lost(r, rc))
            run_fail(r, "read of %s, object %u: %s", b->name, i, err_name(rc));
        b->objects[i].readers--;
    } else if (!model_instance_read_end(&b->objects[i], content)) {
        run_fail(r, "%s, object %u has content %d, which it cannot have", b->name, i, content);
    }
}

static void op_bucket_read(struct run *r)
{
    check_object(r, pick(r), (unsigned)run_random(r, OBJECT_NAMES));
}

static void op_bucket_remove(struct run *r)
{
    struct model_bucket *b = pick(r);
    unsigned i = (unsigned)run_random(r, OBJECT_NAMES);
    int slot = model_instance_begin(&b->objects[i], MODEL_INSTANCE_ABSENT, contents_of(i)), rc;
    char name[24];

    if (slot < 0)
        return;
    name_of(i, name);
    rc = bucket_object_remove(partition_buckets(r->p), b->name, name);
    run_trace(r, "delete %s/%s: %s", b->name, name, err_name(rc));
    if (client_lost(r, rc))
        return;
    if (rc < 0 && rc != ERR_NOENT)
        run_fail(r, "delete %s/%s: %s", b->name, name, err_name(rc));
    if (!model_instance_end(&b->objects[i], slot, rc == 0 ? MODEL_DELETED : MODEL_DELETED_NOTHING,
                            MODEL_DONE))
        run_fail(r, "delete %s/%s: it cannot have been %s", b->name, name,
                 rc == 0 ? "there" : "missing");
}

/* ---- Lists ---- */

/* Marks what pages of `limit` entries show. */
static int list_all(struct run *r, struct model_bucket *b, size_t limit, bool found[OBJECT_NAMES])
{
    struct bucket_query q = {.bucket = b->name, .limit = limit};
    char after[24] = "", name[24];
    bool more = true;

    while (more) {
        struct bucket_page *page;
        int rc = bucket_objects(partition_buckets(r->p), &q, &page);

        if (rc < 0)
            return rc;
        for (size_t e = 0; e < page->count; e++) {
            unsigned i = 0;

            for (; i < OBJECT_NAMES; i++) {
                name_of(i, name);
                if (strcmp(name, page->entries[e].name) == 0)
                    break;
            }
            if (i == OBJECT_NAMES || found[i] || strcmp(page->entries[e].name, after) <= 0)
                run_fail(r, "list of %s shows %s", b->name, page->entries[e].name);
            found[i] = true;
            (void)snprintf(after, sizeof(after), "%s", page->entries[e].name);
        }
        more = page->more && page->count;
        q.after = after;
        mem_free(page);
    }
    return 0;
}

static void op_bucket_list(struct run *r)
{
    struct model_bucket *b = pick(r);
    bool sure[OBJECT_NAMES], found[OBJECT_NAMES] = {0};
    int rc;

    for (unsigned i = 0; i < OBJECT_NAMES; i++) {
        model_instance_read_begin(&b->objects[i]);
        sure[i] = model_instance_surely_present(&b->objects[i]);
    }
    rc = list_all(r, b, 1 + (size_t)run_random(r, 10), found);
    if (rc < 0 && rc != ERR_NOENT)
        run_fail(r, "list of %s: %s", b->name, err_name(rc));
    for (unsigned i = 0; i < OBJECT_NAMES; i++) {
        struct model_instance *o = &b->objects[i];

        if (found[i] && !(o->ghosts << 1 >> 2))
            run_fail(r, "list of %s shows object %u, which is not there", b->name, i);
        if (sure[i] && !found[i] && !(o->ghosts & 1))
            run_fail(r, "list of %s does not show object %u", b->name, i);
        o->readers--;
    }
}

void objects_step(struct run *r, unsigned kind)
{
    switch (kind) {
    case OP_BUCKET:
        op_bucket(r);
        break;
    case OP_BUCKET_PUT:
        op_bucket_put(r);
        break;
    case OP_BUCKET_READ:
        op_bucket_read(r);
        break;
    case OP_BUCKET_REMOVE:
        op_bucket_remove(r);
        break;
    case OP_BUCKET_LIST:
        op_bucket_list(r);
        break;
    default:
        break;
    }
}

/* ---- The whole ---- */

static void settle_bucket(struct run *r, struct model_bucket *b)
{
    struct bucket_info info;
    int rc = bucket_stat(partition_buckets(r->p), b->name, &info);

    if (rc < 0 && rc != ERR_NOENT)
        run_fail(r, "verify: bucket %s: %s", b->name, err_name(rc));
    if (b->exists == (rc == 0 ? MODEL_ABSENT : MODEL_PRESENT))
        run_fail(r, "verify: bucket %s is %s", b->name, rc == 0 ? "back" : "gone");
    b->exists = rc == 0 ? MODEL_PRESENT : MODEL_ABSENT;
}

void objects_verify(struct run *r)
{
    for (unsigned n = 0; n < OBJECT_BUCKETS; n++) {
        struct model_bucket *b = &r->buckets[n];
        bool found[OBJECT_NAMES] = {0};
        struct bucket_info info;
        uint64_t objects = 0;

        settle_bucket(r, b);
        for (unsigned i = 0; i < OBJECT_NAMES; i++)
            check_object(r, b, i);
        if (b->exists != MODEL_PRESENT || r->beyond)
            continue;
        if (list_all(r, b, 3, found) < 0 ||
            bucket_stat(partition_buckets(r->p), b->name, &info) < 0)
            run_fail(r, "verify: bucket %s cannot be listed", b->name);
        for (unsigned i = 0; i < OBJECT_NAMES; i++) {
            if (found[i] != model_instance_surely_present(&b->objects[i]))
                run_fail(r, "verify: the list of %s is wrong about object %u", b->name, i);
            objects += found[i];
        }
        if (info.objects != objects)
            run_fail(r, "verify: bucket %s counts %llu objects, not %llu", b->name,
                     (unsigned long long)info.objects, (unsigned long long)objects);
    }
}

bool objects_delete_all(struct run *r)
{
    for (unsigned n = 0; n < OBJECT_BUCKETS; n++) {
        struct model_bucket *b = &r->buckets[n];
        int rc = bucket_remove(partition_buckets(r->p), b->name, true);

        if (client_lost(r, rc))
            return false;
        if (rc != (b->exists == MODEL_PRESENT ? 0 : ERR_NOENT))
            run_fail(r, "delete of bucket %s at the end: %s", b->name, err_name(rc));
    }
    return true;
}

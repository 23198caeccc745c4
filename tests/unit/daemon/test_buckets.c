/* daemon/bucket*: objects come out as they went in, under their conditions, and what is deleted
 * gives back all that it took. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/audit.h"
#include "daemon/bucket_row.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "lib/rt/sync.h"
#include "tests/sim/instances.h"
#include "tests/unit/daemon/partition_case.h"

static struct partition_case pc;
static struct bucket_store *bs;

static int setup(void **state)
{
    (void)state;
    partition_case_init(&pc, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    partition_case_free(&pc);
    return 0;
}

static void open_ok(void)
{
    partition_case_open(&pc);
    bs = partition_buckets(pc.p);
}

static void on_finding(void *arg, const struct audit_finding *f)
{
    (void)arg;
    fail_msg("audit: %s: %s", f->kind, f->text);
}

static void close_ok(void)
{
    struct audit_params params = {.kv = pc.kv, .found = on_finding};
    struct audit_result result;

    assert_int_equal(partition_close(pc.p), 0);
    assert_int_equal(audit_run(&params, &result), 0);
    CHECK_OK(kv_close(pc.kv));
}

/* ---- Objects ---- */

static uint8_t *bytes_of(size_t n, uint64_t seed)
{
    uint8_t *p = mem_alloc(n + 8);

    for (size_t i = 0; i < n; i += 8) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        memcpy(p + i, &seed, 8);
        p[i] ^= (uint8_t)(seed >> 50);
    }
    return p;
}

static int put_pieces(const struct bucket_put_info *info, const uint8_t *p, size_t n, size_t piece,
                      struct bucket_put_result *ret_result)
{
    struct bucket_put *put;
    int rc = bucket_put_begin(bs, info, &put);

    if (rc < 0)
        return rc;
    for (size_t at = 0; at < n; at += piece) {
        rc = bucket_put_append(put, p + at, n - at < piece ? n - at : piece);
        if (rc < 0) {
            bucket_put_abort(put);
            return rc;
        }
    }
    return bucket_put_commit(put, ret_result);
}

static int put_bytes(const char *bucket, const char *name, const uint8_t *p, size_t n)
{
    struct bucket_put_info info = {.bucket = bucket, .name = name};
    struct bucket_put_result result;

    return put_pieces(&info, p, n, 100000, &result);
}

static int put_text(const char *bucket, const char *name, const char *text)
{
    return put_bytes(bucket, name, (const uint8_t *)text, strlen(text));
}

static void check_open(struct bucket_object *o, const uint8_t *p, size_t n)
{
    uint8_t *buf = mem_alloc(n + 10);
    size_t got;

    assert_int_equal(bucket_get_entry(o)->size, n);
    assert_int_equal(bucket_read(o, 0, buf, n + 10, &got), 0);
    assert_int_equal(got, n);
    assert_memory_equal(buf, p, n);
    for (size_t off = 1; off < n; off = off * 3 + 1) {
        assert_int_equal(bucket_read(o, off, buf, 777, &got), 0);
        assert_int_equal(got, n - off < 777 ? n - off : 777);
        assert_memory_equal(buf, p + off, got);
    }
    assert_int_equal(bucket_read(o, n + 5, buf, 10, &got), 0);
    assert_int_equal(got, 0);
    mem_free(buf);
}

static void check_bytes(const char *bucket, const char *name, const uint8_t *p, size_t n)
{
    struct bucket_object *o;

    assert_int_equal(bucket_open(bs, bucket, name, &o), 0);
    assert_string_equal(bucket_get_entry(o)->name, name);
    check_open(o, p, n);
    bucket_close(o);
}

static void check_text(const char *bucket, const char *name, const char *text)
{
    check_bytes(bucket, name, (const uint8_t *)text, strlen(text));
}

static bool is_there(const char *bucket, const char *name)
{
    struct bucket_object *o;
    int rc = bucket_open(bs, bucket, name, &o);

    if (rc == 0)
        bucket_close(o);
    else
        assert_int_equal(rc, ERR_NOENT);
    return rc == 0;
}

static void check_empty(void)
{
    struct partition_status s;

    for (unsigned i = 0; i < 100; i++) {
        s = partition_case_status(&pc);
        if (s.buckets.objects == 0)
            break;
        env_sleep(pc.c.env, ENV_NS_PER_MS);
    }
    assert_int_equal(s.buckets.objects, 0);
    assert_int_equal(s.logical, 0);
    assert_int_equal(s.chunks.chunks, 0);
}

/* ---- Tests ---- */

static void sizes_main(void *arg)
{
    static const size_t sizes[] = {0, 1, 131, 132, 4096, 262144, 262145, 3000000};

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    for (size_t i = 0; i < 8; i++) {
        char name[20];
        uint8_t *p = bytes_of(sizes[i], i + 1);

        (void)snprintf(name, sizeof(name), "size/%zu", sizes[i]);
        assert_int_equal(put_bytes("b", name, p, sizes[i]), 0);
        check_bytes("b", name, p, sizes[i]);
        mem_free(p);
    }
    close_ok();
    open_ok();
    for (size_t i = 0; i < 8; i++) {
        char name[20];
        uint8_t *p = bytes_of(sizes[i], i + 1);

        (void)snprintf(name, sizeof(name), "size/%zu", sizes[i]);
        check_bytes("b", name, p, sizes[i]);
        assert_int_equal(bucket_object_remove(bs, "b", name), 0);
        assert_int_equal(bucket_object_remove(bs, "b", name), ERR_NOENT);
        mem_free(p);
    }
    check_empty();
    assert_int_equal(bucket_remove(bs, "b", false), 0);
    close_ok();
}

static void test_sizes(void **state)
{
    (void)state;
    sim_case_run(&pc.c, sizes_main, NULL);
}

static void names_main(void *arg)
{
    static const char *const bad[] = {"",     "a\nb",         "\x7f",    "a\xc2\x85",
                                      "\xff", "\xed\xa0\x80", "\xc0\xaf"};
    static const char *const good[] = {
        "a", "/", "//x/", ".", "..", " ", "\xc3\xa9/\xf0\x9f\xa9\xbb"};
    char longest[BUCKET_KEY_MAX + 2];
    struct bucket_info info;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "-b"), ERR_NAME);
    assert_int_equal(bucket_create(bs, "a/b"), ERR_NAME);
    assert_int_equal(bucket_create(bs, ""), ERR_NAME);
    assert_int_equal(bucket_create(bs, "dicom"), ERR_EXIST);
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(bucket_create(bs, "b"), ERR_EXIST);
    for (size_t i = 0; i < 7; i++) {
        assert_int_equal(put_text("b", bad[i], "x"), ERR_INVAL);
        assert_false(is_there("b", bad[i]));
        assert_int_equal(put_text("b", good[i], good[i]), 0);
    }
    for (size_t i = 0; i < 7; i++)
        check_text("b", good[i], good[i]);
    memset(longest, 'k', sizeof(longest));
    longest[BUCKET_KEY_MAX + 1] = 0;
    assert_int_equal(put_text("b", longest, "x"), ERR_INVAL);
    longest[BUCKET_KEY_MAX] = 0;
    assert_int_equal(put_text("b", longest, "long"), 0);
    check_text("b", longest, "long");
    assert_int_equal(put_text("c", "a", "x"), ERR_NOENT);
    assert_int_equal(bucket_stat(bs, "c", &info), ERR_NOENT);
    assert_int_equal(bucket_stat(bs, "b", &info), 0);
    assert_int_equal(info.objects, 8);
    assert_int_equal(bucket_remove(bs, "b", false), ERR_NOTEMPTY);
    assert_int_equal(bucket_remove(bs, "b", true), 0);
    assert_int_equal(bucket_remove(bs, "b", true), ERR_NOENT);
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_false(is_there("b", "a"));
    check_empty();
    close_ok();
}

static void test_names(void **state)
{
    (void)state;
    sim_case_run(&pc.c, names_main, NULL);
}

static void conditions_main(void *arg)
{
    struct bucket_put_info info = {.bucket = "b", .name = "n", .condition = BUCKET_IF_ETAG};
    struct bucket_put_result first, second, other;
    struct bucket_put *put;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(put_pieces(&info, (const uint8_t *)"1", 1, 1, &first), ERR_CONDITION);
    info.condition = BUCKET_IF_ABSENT;
    assert_int_equal(put_pieces(&info, (const uint8_t *)"1", 1, 1, &first), 0);
    assert_false(first.replaced);
    assert_int_equal(put_pieces(&info, (const uint8_t *)"2", 1, 1, &second), ERR_CONDITION);
    info.condition = BUCKET_IF_ETAG;
    memcpy(info.etag, first.etag, BUCKET_ETAG);
    assert_int_equal(bucket_put_begin(bs, &info, &put), 0); /* still holds ... */
    assert_int_equal(put_pieces(&info, (const uint8_t *)"2", 1, 1, &second), 0);
    assert_true(second.replaced);
    assert_int_equal(bucket_put_append(put, "3", 1), 0);
    assert_int_equal(bucket_put_commit(put, &other), ERR_CONDITION); /* ... and not any more */
    check_text("b", "n", "2");
    assert_memory_not_equal(first.etag, second.etag, BUCKET_ETAG);
    /* The same bytes have the same etag, however they come and wherever they are. */
    info = (struct bucket_put_info){.bucket = "b", .name = "m"};
    assert_int_equal(put_pieces(&info, (const uint8_t *)"2", 1, 1, &other), 0);
    assert_memory_equal(other.etag, second.etag, BUCKET_ETAG);
    /* A put whose bucket goes. */
    assert_int_equal(bucket_put_begin(bs, &info, &put), 0);
    assert_int_equal(bucket_put_append(put, "3", 1), 0);
    assert_int_equal(bucket_remove(bs, "b", true), 0);
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(bucket_put_commit(put, &other), ERR_NOENT);
    assert_false(is_there("b", "m"));
    check_empty();
    close_ok();
}

static void test_conditions(void **state)
{
    (void)state;
    sim_case_run(&pc.c, conditions_main, NULL);
}

/* A put ends while its bucket is being emptied: it must not be told that it was stored. */
static void going_main(void *arg)
{
    struct bucket_put_info info = {.bucket = "b", .name = "late"};
    struct bucket_put_result result;
    struct bucket_put *put;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    for (unsigned i = 0; i < 1000; i++) {
        char name[10];

        (void)snprintf(name, sizeof(name), "%u", i);
        assert_int_equal(put_text("b", name, ""), 0);
    }
    assert_int_equal(bucket_put_begin(bs, &info, &put), 0);
    assert_int_equal(bucket_remove(bs, "b", true), 0);
    assert_int_equal(bucket_put_commit(put, &result), ERR_NOENT);
    assert_true(partition_case_status(&pc).buckets.objects > 0); /* it was being emptied */
    assert_int_equal(partition_case_status(&pc).buckets.buckets, 0);
    check_empty();
    close_ok();
}

static void test_going(void **state)
{
    (void)state;
    sim_case_run(&pc.c, going_main, NULL);
}

static void metadata_main(void *arg)
{
    struct bucket_pair pairs[BUCKET_PAIRS_MAX + 1] = {{"owner", "J\xc3\xb6rg"}, {"empty", ""}};
    struct bucket_put_info info = {
        .bucket = "b", .name = "n", .type = "text/plain", .pairs = pairs, .pair_count = 2};
    struct bucket_put_result result;
    struct bucket_object *o;
    static char big[BUCKET_METADATA_MAX];

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(put_pieces(&info, (const uint8_t *)"1", 1, 1, &result), 0);
    assert_int_equal(bucket_open(bs, "b", "n", &o), 0);
    assert_string_equal(bucket_get_entry(o)->type, "text/plain");
    assert_int_equal(bucket_get_entry(o)->pair_count, 2);
    assert_string_equal(bucket_get_entry(o)->pairs[0].name, "owner");
    assert_string_equal(bucket_get_entry(o)->pairs[0].value, "J\xc3\xb6rg");
    assert_string_equal(bucket_get_entry(o)->pairs[1].value, "");
    bucket_close(o);
    pairs[1].name = "owner";
    assert_int_equal(put_pieces(&info, NULL, 0, 1, &result), ERR_INVAL);
    pairs[1].name = "Upper";
    assert_int_equal(put_pieces(&info, NULL, 0, 1, &result), ERR_INVAL);
    pairs[1] = (struct bucket_pair){"x", "a\nb"};
    assert_int_equal(put_pieces(&info, NULL, 0, 1, &result), ERR_INVAL);
    memset(big, 'x', sizeof(big) - 1);
    pairs[1] = (struct bucket_pair){"x", big};
    assert_int_equal(put_pieces(&info, NULL, 0, 1, &result), ERR_TOOBIG);
    info.pair_count = BUCKET_PAIRS_MAX + 1;
    assert_int_equal(put_pieces(&info, NULL, 0, 1, &result), ERR_TOOBIG);
    info.pair_count = 0;
    info.type = "t\x01";
    assert_int_equal(put_pieces(&info, NULL, 0, 1, &result), ERR_INVAL);
    close_ok();
}

static void test_metadata(void **state)
{
    (void)state;
    sim_case_run(&pc.c, metadata_main, NULL);
}

/* Who has an object open goes on reading it. */
static void open_main(void *arg)
{
    uint8_t *p = bytes_of(900000, 1), *q = bytes_of(900000, 2);
    struct bucket_object *a, *b;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(put_bytes("b", "n", p, 900000), 0);
    assert_int_equal(bucket_open(bs, "b", "n", &a), 0);
    assert_int_equal(put_bytes("b", "n", q, 900000), 0);
    assert_int_equal(bucket_open(bs, "b", "n", &b), 0);
    assert_int_equal(bucket_remove(bs, "b", true), 0);
    assert_int_equal(partition_settle(pc.p), 0);
    check_open(a, p, 900000);
    check_open(b, q, 900000);
    bucket_close(a);
    bucket_close(b);
    check_empty();
    mem_free(p);
    mem_free(q);
    close_ok();
}

static void test_open(void **state)
{
    (void)state;
    sim_case_run(&pc.c, open_main, NULL);
}

/* ---- Lists ---- */

/* "a b/ c" and a '+' where there is more. */
static void check_list(const char *bucket, const char *prefix, const char *delimiter,
                       const char *after, size_t limit, const char *want)
{
    struct bucket_query q = {
        .bucket = bucket, .prefix = prefix, .delimiter = delimiter, .after = after, .limit = limit};
    STRBUF_AUTO struct strbuf got = STRBUF_INIT;
    struct bucket_page *page;

    assert_int_equal(bucket_objects(bs, &q, &page), 0);
    strbuf_adds(&got, "");
    for (size_t i = 0; i < page->count; i++) {
        strbuf_addf(&got, "%s%s", i ? " " : "", page->entries[i].name);
        if (!page->entries[i].prefix)
            assert_int_equal(page->entries[i].size, strlen(page->entries[i].name));
    }
    if (page->more)
        strbuf_adds(&got, " +");
    assert_string_equal(got.data, want);
    mem_free(page);
}

static void list_main(void *arg)
{
    static const char *const names[] = {"b", "a/1", "a/2", "a/2/x", "a", "a//", "c/1", "c"};
    struct bucket_query q = {.bucket = "b"};
    struct bucket_page *page;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(bucket_create(bs, "c"), 0); /* a neighbour in the table */
    assert_int_equal(put_text("c", "z", "z"), 0);
    check_list("b", NULL, NULL, NULL, 0, "");
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(put_text("b", names[i], names[i]), 0);
    check_list("b", NULL, NULL, NULL, 0, "a a// a/1 a/2 a/2/x b c c/1");
    check_list("b", NULL, "/", NULL, 0, "a a/ b c c/");
    check_list("b", "a/", "/", NULL, 0, "a// a/1 a/2 a/2/");
    check_list("b", "a/2", NULL, NULL, 0, "a/2 a/2/x");
    check_list("b", NULL, "/", NULL, 2, "a a/ +");
    check_list("b", NULL, "/", "a/", 2, "b c +");
    check_list("b", NULL, "/", "a/1", 2, "b c +"); /* within what was told as one */
    check_list("b", NULL, "/", "c", 0, "c/");
    check_list("b", NULL, NULL, "a/2", 2, "a/2/x b +");
    check_list("b", NULL, NULL, "c/1", 0, "");
    check_list("b", "b", NULL, "a", 0, "b");
    check_list("b", "a/", NULL, "b", 0, "");
    check_list("b", "x", NULL, NULL, 0, "");
    check_list("c", NULL, NULL, NULL, 0, "z");
    q.delimiter = "ab";
    assert_int_equal(bucket_objects(bs, &q, &page), ERR_INVAL);
    q = (struct bucket_query){.bucket = "b", .limit = BUCKET_PAGE_MAX + 1};
    assert_int_equal(bucket_objects(bs, &q, &page), ERR_INVAL);
    q = (struct bucket_query){.bucket = "nope"};
    assert_int_equal(bucket_objects(bs, &q, &page), ERR_NOENT);
    close_ok();
}

static void test_list(void **state)
{
    (void)state;
    sim_case_run(&pc.c, list_main, NULL);
}

/* More than a page of the table, told folder by folder. */
static void long_list_main(void *arg)
{
    char name[40], after[40] = "";
    size_t seen = 0;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    for (unsigned i = 0; i < 700; i++) {
        (void)snprintf(name, sizeof(name), "%02u/%03u", i / 300, i);
        assert_int_equal(put_text("b", name, ""), 0);
    }
    for (bool more = true; more;) {
        struct bucket_query q = {.bucket = "b", .after = after, .limit = 97};
        struct bucket_page *page;

        assert_int_equal(bucket_objects(bs, &q, &page), 0);
        assert_true(page->count > 0);
        seen += page->count;
        more = page->more;
        (void)snprintf(after, sizeof(after), "%s", page->entries[page->count - 1].name);
        mem_free(page);
    }
    assert_int_equal(seen, 700);
    assert_int_equal(bucket_object_remove(bs, "b", "00/000"), 0);
    check_list("b", NULL, "/", NULL, 0, "00/ 01/ 02/");
    assert_int_equal(bucket_remove(bs, "b", true), 0);
    check_empty();
    close_ok();
}

static void test_long_list(void **state)
{
    (void)state;
    sim_case_run(&pc.c, long_list_main, NULL);
}

/* ---- Instances ---- */

static void store_instance(unsigned index, const struct strbuf *s)
{
    struct object_put_info info = {.size_hint = s->len};
    struct object_put_result result;
    struct object_put *put;

    (void)index;
    assert_int_equal(object_put_begin(pc.os, &info, &put), 0);
    assert_int_equal(object_put_append(put, s->data, s->len), 0);
    assert_int_equal(object_put_commit(put, &result), 0);
}

static void dicom_main(void *arg)
{
    char study[OBJECT_UID_MAX + 1], series[OBJECT_UID_MAX + 1], uid[OBJECT_UID_MAX + 1];
    STRBUF_AUTO struct strbuf s = STRBUF_INIT, name = STRBUF_INIT, folder = STRBUF_INIT;
    struct bucket_query q = {.bucket = "dicom", .delimiter = "/"};
    struct bucket_put_info info = {.bucket = "dicom", .name = "x"};
    struct bucket_page *page;
    struct bucket_object *o;
    struct bucket_put *put;
    struct bucket_info b;

    (void)arg;
    open_ok();
    instance_make(6, 1, &s);
    store_instance(6, &s);
    instance_study_uid(instance_study_of(6), study);
    instance_series_uid(instance_study_of(6), instance_series_of(6), series);
    instance_uid(6, uid);
    strbuf_addf(&name, "%s/%s/%s", study, series, uid);
    strbuf_addf(&folder, "%s/", study);
    check_bytes("dicom", name.data, (const uint8_t *)s.data, s.len);
    assert_false(is_there("dicom", study));
    assert_false(is_there("dicom", "a/b/c/d"));
    assert_int_equal(bucket_put_begin(bs, &info, &put), ERR_READONLY);
    assert_int_equal(bucket_remove(bs, "dicom", true), ERR_READONLY);
    assert_int_equal(bucket_stat(bs, "dicom", &b), 0);
    assert_true(b.readonly && b.objects == 1 && b.bytes == s.len);
    assert_int_equal(bucket_objects(bs, &q, &page), 0);
    assert_int_equal(page->count, 1);
    assert_true(page->entries[0].prefix);
    assert_string_equal(page->entries[0].name, folder.data);
    mem_free(page);
    q.after = folder.data;
    assert_int_equal(bucket_objects(bs, &q, &page), 0);
    assert_int_equal(page->count, 0);
    mem_free(page);
    q = (struct bucket_query){.bucket = "dicom", .prefix = folder.data};
    assert_int_equal(bucket_objects(bs, &q, &page), 0);
    assert_int_equal(page->count, 1);
    assert_string_equal(page->entries[0].name, name.data);
    assert_int_equal(page->entries[0].size, s.len);
    assert_string_equal(page->entries[0].type, "application/dicom");
    assert_int_equal(bucket_open(bs, "dicom", name.data, &o), 0);
    assert_memory_equal(bucket_get_entry(o)->etag, page->entries[0].etag, BUCKET_ETAG);
    bucket_close(o);
    mem_free(page);
    assert_int_equal(bucket_object_remove(bs, "dicom", name.data), 0);
    assert_int_equal(bucket_object_remove(bs, "dicom", name.data), ERR_NOENT);
    check_empty();
    close_ok();
}

static void test_dicom(void **state)
{
    (void)state;
    sim_case_run(&pc.c, dicom_main, NULL);
}

/* An instance's bytes as an object share its chunks, in whatever pieces they come; two heads before
 * one data set make two etags. */
static void shared_main(void *arg)
{
    STRBUF_AUTO struct strbuf s = STRBUF_INIT, other = STRBUF_INIT;
    struct bucket_put_info info = {.bucket = "b", .name = "n"};
    struct bucket_put_result first, again;
    struct partition_status before, after;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    instance_make(3, 1, &s);
    instance_make(3, 2, &other);
    store_instance(3, &s);
    before = partition_case_status(&pc);
    assert_int_equal(put_pieces(&info, (const uint8_t *)s.data, s.len, 97, &first), 0);
    after = partition_case_status(&pc);
    assert_int_equal(before.chunks.chunks, after.chunks.chunks);
    assert_int_equal(after.logical, 2 * s.len);
    check_bytes("b", "n", (const uint8_t *)s.data, s.len);
    assert_int_equal(put_pieces(&info, (const uint8_t *)s.data, s.len, s.len, &again), 0);
    assert_memory_equal(first.etag, again.etag, BUCKET_ETAG);
    assert_int_equal(put_pieces(&info, (const uint8_t *)other.data, other.len, 5000, &again), 0);
    assert_memory_not_equal(first.etag, again.etag, BUCKET_ETAG);
    check_bytes("b", "n", (const uint8_t *)other.data, other.len);
    /* Cut off within the head, and within the pixels. */
    assert_int_equal(put_bytes("b", "head", (const uint8_t *)s.data, 200), 0);
    check_bytes("b", "head", (const uint8_t *)s.data, 200);
    assert_int_equal(put_bytes("b", "part", (const uint8_t *)s.data, s.len - 999), 0);
    check_bytes("b", "part", (const uint8_t *)s.data, s.len - 999);
    close_ok();
}

static void test_shared(void **state)
{
    (void)state;
    sim_case_run(&pc.c, shared_main, NULL);
}

/* ---- Crashes ---- */

/* The longest name that there may be. */
static const char *longest_name(void)
{
    static char name[BUCKET_KEY_MAX + 1];

    memset(name, 'k', BUCKET_KEY_MAX);
    return name;
}

static void before_crash(void *arg)
{
    uint8_t *p = bytes_of(700000, 9);
    struct bucket_put_info info = {.bucket = "b", .name = "half"};
    struct bucket_put *put;

    (void)arg;
    open_ok();
    assert_int_equal(partition_settle(pc.p), 0); /* there is a copy of the metadata from now on */
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(bucket_create(bs, "gone"), 0);
    for (unsigned i = 0; i < 100; i++) {
        char name[10];

        (void)snprintf(name, sizeof(name), "%u", i);
        assert_int_equal(put_text("gone", name, name), 0);
    }
    assert_int_equal(put_bytes("b", "n", p, 700000), 0);
    assert_int_equal(put_text("b", longest_name(), "long"), 0);
    assert_int_equal(kv_flush(pc.kv), 0); /* by itself, as it does when it has much in memory */
    assert_int_equal(bucket_put_begin(bs, &info, &put), 0);
    assert_int_equal(bucket_put_append(put, p, 700000), 0);
    assert_int_equal(bucket_remove(bs, "gone", true), 0);
    mem_free(p);
    sim_pause(pc.c.sim);
    for (;;)
        env_sleep(pc.c.env, ENV_NS_PER_S);
}

static void after_crash(void *arg)
{
    uint8_t *p = bytes_of(700000, 9);

    (void)arg;
    open_ok();
    check_bytes("b", "n", p, 700000);
    check_text("b", longest_name(), "long");
    assert_false(is_there("b", "half"));
    assert_false(is_there("gone", "1"));
    assert_int_equal(bucket_create(bs, "gone"), 0);
    assert_int_equal(bucket_remove(bs, "b", true), 0);
    check_empty();
    mem_free(p);
    close_ok();
}

static void test_crash(void **state)
{
    (void)state;
    sim_case_run_and_kill(&pc.c, before_crash, NULL, true);
    sim_case_run(&pc.c, after_crash, NULL);
}

/* ---- The audit ---- */

static char kinds[500];

static void note_finding(void *arg, const struct audit_finding *f)
{
    (void)arg;
    (void)snprintf(kinds + strlen(kinds), sizeof(kinds) - strlen(kinds), "%s%s", *kinds ? " " : "",
                   f->kind);
}

static void check_audit(bool repair, const char *want)
{
    struct audit_params params = {.kv = pc.kv, .repair = repair, .found = note_finding};
    struct audit_result result;

    kinds[0] = 0;
    assert_int_equal(audit_run(&params, &result), 0);
    assert_string_equal(kinds, want);
}

/* Deletes a row (value NULL) or writes it. */
static void poke(enum kv_table t, struct kv_slice key, const struct kv_slice *value)
{
    struct kv_batch *batch = kv_batch_new();

    if (value)
        kv_batch_put(batch, t, key, *value);
    else
        kv_batch_delete(batch, t, key);
    CHECK_OK(kv_write(pc.kv, batch));
    kv_batch_free(batch);
}

/* The first row of a table from a key on: the caller frees the page. */
static struct kv_rows *row_at(enum kv_table t, const char *from)
{
    struct kv_rows *rows;

    CHECK_OK(kv_scan(pc.kv, t, (struct kv_slice){from, 1}, (struct kv_slice){"", 0}, 1, 1 << 20, 0,
                     &rows));
    assert_int_equal(rows->count, 1);
    return rows;
}

/* Takes a row away, and puts it back. */
static void check_without(enum kv_table t, const char *from, const char *want)
{
    struct kv_rows *rows = row_at(t, from);

    poke(t, rows->rows[0].key, NULL);
    check_audit(false, want);
    poke(t, rows->rows[0].key, &rows->rows[0].value);
    kv_rows_free(rows);
}

static void check_spoilt(enum kv_table t, const char *from, const char *want)
{
    struct kv_rows *rows = row_at(t, from);
    struct kv_slice bad = {rows->rows[0].value.data, rows->rows[0].value.len - 1};

    poke(t, rows->rows[0].key, &bad);
    check_audit(false, want);
    poke(t, rows->rows[0].key, &rows->rows[0].value);
    kv_rows_free(rows);
}

static void audit_main(void *arg)
{
    STRBUF_AUTO struct strbuf value = STRBUF_INIT;
    struct bucket_row row;
    struct kv_slice changed;
    struct kv_rows *rows;

    (void)arg;
    open_ok();
    assert_int_equal(bucket_create(bs, "b"), 0);
    assert_int_equal(put_text("b", "n", "bytes"), 0);
    assert_int_equal(partition_close(pc.p), 0);
    check_audit(false, "");
    check_without(KV_BUCKET, "B", "object-orphan");
    check_without(KV_BUCKET, "O", "bucket-count recipe-orphan");
    check_without(KV_RECIPE, "C", "object-data chunk-orphan");
    check_without(KV_CHUNK, "\0", "object-data fingerprint chunk-totals segment-count");
    check_spoilt(KV_BUCKET, "B", "bucket-row object-orphan");
    check_spoilt(KV_BUCKET, "O", "object-row bucket-count");
    check_spoilt(KV_RECIPE, "C", "recipe-row chunk-refs");
    rows = row_at(KV_BUCKET, "B");
    CHECK_OK(bucket_row_decode(rows->rows[0].value, &row));
    row.objects = 7;
    bucket_row_encode(&row, &value);
    changed = (struct kv_slice){value.data, value.len};
    poke(KV_BUCKET, rows->rows[0].key, &changed);
    kv_rows_free(rows);
    check_audit(false, "bucket-count");
    check_audit(true, "bucket-count");
    check_audit(false, "");
    CHECK_OK(kv_close(pc.kv));
}

static void test_audit(void **state)
{
    (void)state;
    sim_case_run(&pc.c, audit_main, NULL);
}

/* ---- Announced ---- */

static int begin_announced(const char *name, uint64_t size, struct bucket_put **ret_put)
{
    struct bucket_put_info info = {.bucket = "b", .name = name, .size_hint = size};
    uint64_t at = env_now(pc.c.env);
    int rc = bucket_put_begin(bs, &info, ret_put);

    assert_true(env_now(pc.c.env) - at < ENV_NS_PER_MS);
    return rc;
}

/* A large object is announced for which there would be room once compaction has made some: that
 * keeps neither it nor others waiting. For what never fits, it is refused at once. */
static void announced_main(void *arg)
{
    enum { OBJECTS = 64, LENGTH = 512 * 1024 };
    struct partition_status st;
    struct bucket_put *put;
    char name[20];

    (void)arg;
    open_ok();
    CHECK_OK(bucket_create(bs, "b"));
    for (unsigned i = 0; i < OBJECTS; i++) {
        uint8_t *p = bytes_of(LENGTH, i);

        snprintf(name, sizeof(name), "o%u", i);
        assert_int_equal(put_bytes("b", name, p, LENGTH), 0);
        mem_free(p);
    }
    for (unsigned i = 0; i < OBJECTS; i++) {
        snprintf(name, sizeof(name), "o%u", i);
        if (i % 4)
            assert_int_equal(bucket_object_remove(bs, "b", name), 0);
    }
    partition_get_status(pc.p, &st);
    assert_true(st.reclaimable > 8u << 20);
    assert_int_equal(begin_announced("big", st.free + (4u << 20), &put), 0);
    assert_int_equal(put_text("b", "small", "small"), 0);
    assert_int_equal(bucket_put_append(put, "big", 3), 0);
    assert_int_equal(bucket_put_commit(put, &(struct bucket_put_result){0}), 0);
    assert_int_equal(begin_announced("never", st.capacity, &put), ERR_NOSPC);
    close_ok();
}

static void test_announced(void **state)
{
    (void)state;
    sim_case_run(&pc.c, announced_main, NULL);
}

/* ---- Rows ---- */

static void test_rows(void **state)
{
    struct bucket_row row = {.created_ns = 5, .objects = 6, .bytes = 7, .name = "b"}, again;
    struct bucket_object_row object = {
        .content = 9, .size = 10, .stored_ns = 11, .type = "t/t", .pair_count = 1};
    struct bucket_object_row decoded;
    STRBUF_AUTO struct strbuf out = STRBUF_INIT;

    (void)state;
    bucket_row_encode(&row, &out);
    assert_int_equal(bucket_row_decode((struct kv_slice){out.data, out.len}, &again), 0);
    assert_memory_equal(&row, &again, sizeof(row));
    for (size_t n = 0; n < out.len; n++) {
        uint8_t *cut = mem_memdup(out.data, n);

        assert_int_equal(bucket_row_decode((struct kv_slice){cut, n}, &again), ERR_FORMAT);
        mem_free(cut);
    }
    strbuf_reset(&out);
    object.pairs[0] = (struct bucket_pair){"k", "v"};
    bucket_object_encode(&object, &out);
    assert_int_equal(bucket_object_decode((struct kv_slice){out.data, out.len}, &decoded), 0);
    assert_string_equal(decoded.pairs[0].value, "v");
    for (size_t n = 0; n < out.len; n++) {
        uint8_t *cut = mem_memdup(out.data, n);

        assert_int_equal(bucket_object_decode((struct kv_slice){cut, n}, &decoded), ERR_FORMAT);
        mem_free(cut);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test_setup_teardown(test_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_conditions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_going, setup, teardown),
        cmocka_unit_test_setup_teardown(test_metadata, setup, teardown),
        cmocka_unit_test_setup_teardown(test_open, setup, teardown),
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dicom, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shared, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crash, setup, teardown),
        cmocka_unit_test_setup_teardown(test_audit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_announced, setup, teardown),
    };

    return cmocka_run_group_tests_name("daemon-buckets", tests, NULL, NULL);
}

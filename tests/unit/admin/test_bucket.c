/* The admin API's buckets: what requests mean, and what is answered. The bytes of objects, which
 * want a server, are in test_cli.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "proto/admin/admin_impl.h"
#include "tests/unit/admin/fake.h"

static struct fake fake;

/* A path of segments that need no decoding, a query, one header. */
static struct admin_call *call_of(const char *method, const char *target, const char *body,
                                  const char *header, const char *value)
{
    static char copy[4096];
    const char *segments[16];
    struct admin_arg args[4], headers[] = {{"Host", "x"}, {header, value}};
    struct admin_request r = {.method = method,
                              .segments = segments,
                              .args = args,
                              .headers = headers,
                              .header_count = header ? 2 : 1,
                              .body = body,
                              .body_len = body ? strlen(body) : 0};
    char *query, *rest = copy, *piece;

    snprintf(copy, sizeof(copy), "%s", target + 1);
    query = strchr(copy, '?');
    if (query)
        *query++ = 0;
    while ((piece = strsep(&rest, "/")) != NULL)
        segments[r.segment_count++] = piece;
    while (query && (piece = strsep(&query, "&")) != NULL) {
        char *equals = strchr(piece, '=');

        *equals++ = 0;
        args[r.arg_count++] = (struct admin_arg){piece, equals};
    }
    return admin_call_new(&r);
}

static char *ask(const char *method, const char *target, const char *body, unsigned status)
{
    struct admin_call *c = call_of(method, target, body, NULL, NULL);
    struct admin_backend backend = fake_backend(&fake);
    const char *allow;
    char *text;
    size_t len;

    admin_call_run(c, &backend);
    assert_int_equal(admin_call_answer(c, &text, &len, &allow), status);
    admin_call_free(c);
    return text;
}

static void expect(const char *method, const char *target, const char *body, unsigned status,
                   const char *words)
{
    char *text = ask(method, target, body, status);

    if (!strstr(text, words))
        fail_msg("\"%s\" not in: %s", words, text);
    mem_free(text);
}

static void put_object(const char *name, const char *bytes)
{
    struct bucket_pair pair = {"k", "v"};
    struct bucket_put_info info = {
        .bucket = "b", .name = name, .type = "t/t", .pairs = &pair, .pair_count = 1};
    struct bucket_put_result result;
    struct bucket_put *put;

    assert_int_equal(bucket_put_begin(&fake.buckets.face, &info, &put), 0);
    assert_int_equal(bucket_put_append(put, bytes, strlen(bytes)), 0);
    assert_int_equal(bucket_put_commit(put, &result), 0);
}

static int setup(void **state)
{
    (void)state;
    fake_init(&fake);
    return 0;
}

static void test_buckets(void **state)
{
    (void)state;
    expect("POST", "/v1/buckets", "{\"name\": \"c\"}", 201, "\"readonly\":false");
    expect("POST", "/v1/buckets", "{\"name\": \"c\"}", 409, "a bucket \\\"c\\\" exists already");
    expect("POST", "/v1/buckets", "{\"name\": \"x/y\"}", 400, "NAME");
    expect("POST", "/v1/buckets", "{}", 400, "\\\"name\\\" is missing");
    expect("POST", "/v1/buckets", "{\"name\": \"d\", \"x\": 1}", 400, "not known");
    expect("GET", "/v1/buckets", NULL, 200, "\"name\":\"dicom\"");
    expect("GET", "/v1/buckets/c", NULL, 200, "\"objects\":0");
    expect("DELETE", "/v1/buckets/c", NULL, 200, "\"bucket\":\"c\"");
    expect("GET", "/v1/buckets/c", NULL, 404, "no bucket \\\"c\\\"");
    expect("DELETE", "/v1/buckets/dicom", NULL, 403, "is always there");
    put_object("n", "1");
    expect("DELETE", "/v1/buckets/b?objects=no", NULL, 400, "true or false");
    expect("DELETE", "/v1/buckets/b?x=no", NULL, 400, "not known");
    expect("DELETE", "/v1/buckets/b", NULL, 409, "NOTEMPTY");
    expect("DELETE", "/v1/buckets/b?objects=true", NULL, 200, "deleted");
    expect("GET", "/v1/buckets?x=1", NULL, 400, "not known");
    expect("PUT", "/v1/buckets", NULL, 405, "GET, POST");
}

static void test_objects(void **state)
{
    (void)state;
    put_object("a/b", "hello");
    put_object("c", "x");
    expect("GET", "/v1/buckets/b/objects/a/b?info=true", NULL, 200, "\"metadata\":{\"k\":\"v\"}");
    expect("GET", "/v1/buckets/b/objects/a/b?info=true", NULL, 200,
           "\"etag\":\"68686868686868686868686868686868686868686868686868686868686868");
    expect("GET", "/v1/buckets/b/objects/a/b?info=yes", NULL, 400, "not known");
    expect("GET", "/v1/buckets/b/objects", NULL, 200, "\"name\":\"a/b\"");
    expect("GET", "/v1/buckets/b/objects?limit=1", NULL, 200, "\"more\":true");
    expect("GET", "/v1/buckets/b/objects?limit=1&after=a/b", NULL, 200, "\"name\":\"c\"");
    expect("GET", "/v1/buckets/b/objects?prefix=z", NULL, 200, "\"objects\":[]");
    expect("GET", "/v1/buckets/b/objects?limit=1001", NULL, 400, "limit");
    expect("GET", "/v1/buckets/b/objects?limit=0", NULL, 400, "limit");
    expect("GET", "/v1/buckets/b/objects?delimiter=", NULL, 400, "delimiter");
    expect("GET", "/v1/buckets/b/objects?colour=red", NULL, 400, "colour");
    expect("GET", "/v1/buckets/z/objects", NULL, 404, "no bucket \\\"z\\\"");
    expect("DELETE", "/v1/buckets/b/objects/a/b", NULL, 200, "\"object\":\"a/b\"");
    expect("DELETE", "/v1/buckets/b/objects/a/b", NULL, 404, "no object \\\"a/b\\\" in the bucket");
    expect("POST", "/v1/buckets/b/objects/a/b", NULL, 405, "PUT, GET, DELETE");
}

/* What a PUT says in its headers. */
static const char *put_error(const char *header, const char *value)
{
    static char text[500];
    struct admin_call *c = call_of("PUT", "/v1/buckets/b/objects/n", NULL, header, value);

    assert_true(admin_call_streams(c));
    snprintf(text, sizeof(text), "%s", c->error ? c->message.data : "");
    admin_call_free(c);
    return text;
}

static void test_put_headers(void **state)
{
    struct admin_call *c =
        call_of("PUT", "/v1/buckets/b/objects/x/y", NULL, "x-filmroom-META-Owner", "Ann");

    (void)state;
    assert_true(admin_call_streams(c));
    assert_string_equal(c->object->name, "x/y");
    assert_int_equal(c->object->pair_count, 1);
    assert_string_equal(c->object->pairs[0].name, "owner");
    assert_string_equal(c->object->pairs[0].value, "Ann");
    admin_call_free(c);
    c = call_of("PUT", "/v1/buckets/b/objects/x", NULL, "content-type", "a/b");
    assert_string_equal(c->object->type, "a/b");
    admin_call_free(c);
    c = call_of("PUT", "/v1/buckets/b/objects/x", NULL, "If-Match",
                "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"");
    assert_int_equal(c->object->condition, BUCKET_IF_ETAG);
    assert_int_equal(c->object->etag[15], 0xff);
    admin_call_free(c);
    assert_string_equal(put_error("If-None-Match", "*"), "");
    assert_non_null(strstr(put_error("If-None-Match", "\"x\""), "must be *"));
    assert_non_null(strstr(put_error("If-Match", "*"), "ETag"));
    assert_non_null(strstr(put_error("If-Match", "\"0\""), "ETag"));
    assert_non_null(strstr(put_error("Content-Range", "bytes 0-1/5"), "as a whole"));
}

/* Who is refused for a length is told which it is, and what it may be. */
static void test_put_lengths(void **state)
{
    char value[2100];

    (void)state;
    memset(value, 'v', sizeof(value));
    value[2047] = 0;
    assert_string_equal(put_error("X-Filmroom-Meta-k", value), "");
    value[2047] = 'v';
    value[2048] = 0;
    assert_non_null(strstr(put_error("X-Filmroom-Meta-k", value), "2049 bytes, and at most 2048"));
    value[127] = 0;
    assert_string_equal(put_error("Content-Type", value), "");
    value[127] = 'v';
    value[128] = 0;
    assert_non_null(strstr(put_error("Content-Type", value), "at most 127 bytes"));
    assert_non_null(strstr(put_error("X-Filmroom-Meta-"
                                     "0123456789012345678901234567890123456789012345678901234567890"
                                     "1234",
                                     "v"),
                           "at most 64 bytes"));
}

static void check_range(const char *value, uint64_t size, bool want, uint64_t off, uint64_t len)
{
    struct admin_call *c = call_of("GET", "/v1/buckets/b/objects/n", NULL, "Range", value);
    uint64_t got_off, got_len;

    assert_true(admin_call_streams(c) && !c->error);
    assert_int_equal(admin_object_range(c->object, size, &got_off, &got_len), want);
    if (want) {
        assert_int_equal(got_off, off);
        assert_int_equal(got_len, len);
    }
    admin_call_free(c);
}

static void test_ranges(void **state)
{
    (void)state;
    check_range("bytes=0-0", 10, true, 0, 1);
    check_range("bytes=2-", 10, true, 2, 8);
    check_range("bytes=2-99", 10, true, 2, 8);
    check_range("bytes=-3", 10, true, 7, 3);
    check_range("bytes=-30", 10, true, 0, 10);
    check_range("bytes=10-", 10, false, 0, 0);
    check_range("bytes=-0", 10, false, 0, 0);
    check_range("bytes=0-", 0, false, 0, 0);
    check_range("bytes=3-2", 10, true, 0, 10); /* not ranges: all of it */
    check_range("bytes=a-2", 10, true, 0, 10);
    check_range("bytes=1-2,4-5", 10, true, 0, 10);
    check_range("bytes=-", 10, true, 0, 10);
    check_range("items=1-2", 10, true, 0, 10);
    check_range("bytes=99999999999999999999-", 10, true, 0, 10);
}

static void test_long_names(void **state)
{
    char path[1200];

    (void)state;
    memset(path, 'n', sizeof(path));
    memcpy(path, "/v1/buckets/b/objects/", 22);
    path[22 + 1025] = 0;
    expect("DELETE", path, NULL, 400, "at most 1024 bytes");
    path[22 + 500] = '/'; /* which counts as one */
    expect("DELETE", path, NULL, 400, "at most 1024 bytes");
    path[22 + 1024] = 0;
    expect("DELETE", path, NULL, 404, "no object");
    path[22 + 500] = 'n';
    expect("DELETE", path, NULL, 404, "no object");
    memset(path + 12, 'b', 201);
    path[12 + 201] = 0;
    expect("GET", path, NULL, 400, "NAME");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_buckets, setup),
        cmocka_unit_test_setup(test_objects, setup),
        cmocka_unit_test(test_put_headers),
        cmocka_unit_test(test_put_lengths),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test_setup(test_long_names, setup),
    };

    return cmocka_run_group_tests_name("admin-bucket", tests, NULL, NULL);
}

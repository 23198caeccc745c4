/* The admin API's core: requests in, engine calls on the fake, answers out. */
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
#include "tests/unit/admin/fake.h"

static struct fake fake;

/* Path and query as the HTTP side would have taken them apart (nothing here needs decoding). */
static struct admin_call *test_call(const char *method, const char *target, const char *body)
{
    static char copy[1024];
    const char *segments[16];
    struct admin_arg args[16];
    struct admin_request r = {.method = method,
                              .segments = segments,
                              .args = args,
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
        char *value = strchr(piece, '=');

        *value++ = 0;
        args[r.arg_count++] = (struct admin_arg){piece, value};
    }
    return admin_call_new(&r);
}

/* The answer as JSON, which the caller drops. */
static json_t *test_ask(const char *method, const char *target, const char *body, unsigned status)
{
    struct admin_call *c = test_call(method, target, body);
    struct admin_backend backend = fake_backend(&fake);
    const char *allow;
    char *text;
    size_t len;
    json_t *json;

    admin_call_run(c, &backend);
    assert_int_equal(admin_call_answer(c, &text, &len, &allow), status);
    assert_true(len > 0 && text[len - 1] == '\n' && strlen(text) == len);
    assert_int_equal(allow != NULL, status == 405);
    json = json_loads(text, 0, NULL);
    assert_non_null(json);
    mem_free(text);
    admin_call_free(c);
    return json;
}

static void test_refused(const char *method, const char *target, const char *body, unsigned status,
                         const char *code, const char *words)
{
    json_t *json = test_ask(method, target, body, status), *error = json_object_get(json, "error");

    assert_string_equal(json_string_value(json_object_get(error, "code")), code);
    if (!strstr(json_string_value(json_object_get(error, "message")), words))
        fail_msg("\"%s\" not in: %s", words, json_string_value(json_object_get(error, "message")));
    json_decref(json);
}

static const char *text_of(json_t *json, const char *name)
{
    const char *text = json_string_value(json_object_get(json, name));

    assert_non_null(text);
    return text;
}

static uint64_t number_of(json_t *json, const char *name)
{
    json_t *v = json_object_get(json, name);

    assert_true(json_is_integer(v));
    return (uint64_t)json_integer_value(v);
}

static int setup(void **state)
{
    (void)state;
    fake_init(&fake);
    return 0;
}

static void test_status(void **state)
{
    json_t *json = test_ask("GET", "/v1/status", NULL, 200), *capacity, *listener, *part;

    (void)state;
    part = json_array_get(json_object_get(json, "partitions"), 0);
    capacity = json_object_get(json, "capacity");
    listener = json_array_get(json_object_get(json, "listeners"), 1);
    assert_string_equal(text_of(json, "version"), "9.8.7");
    assert_string_equal(text_of(json, "state"), "degraded");
    assert_string_equal(text_of(json, "profile"), "4+2");
    assert_int_equal(number_of(json, "uptime_seconds"), 93784);
    assert_int_equal(json_array_size(json_object_get(json, "reasons")), 1);
    assert_int_equal(number_of(capacity, "limit"), 64ull << 30);
    assert_int_equal(number_of(capacity, "physical"), 3ull << 30);
    assert_int_equal(number_of(capacity, "reclaimable"), 1ull << 30);
    assert_int_equal(json_array_size(json_object_get(json, "partitions")), 2);
    assert_int_equal(number_of(part, "logical"), 10ull << 30);
    assert_int_equal(number_of(part, "free"), 40ull << 30);
    assert_int_equal(number_of(part, "drive_bytes"), 4500);
    assert_int_equal(number_of(listener, "port"), 11112);
    assert_int_equal(number_of(json_object_get(json, "counters"), "refused_conflicts"), 3);
    assert_int_equal(number_of(json_object_get(json, "counters"), "drive_bytes"), 4500);
    assert_int_equal(number_of(json_object_get(json, "start"), "milliseconds"), 1500);
    assert_int_equal(number_of(json_object_get(json, "start"), "replayed_records"), 77);
    json_decref(json);
}

static void test_drives(void **state)
{
    json_t *json = test_ask("HEAD", "/v1/drives", NULL, 200), *array, *scrub;

    (void)state;
    array = json_object_get(json, "drives");
    assert_int_equal(json_array_size(array), 3);
    assert_string_equal(text_of(json_array_get(array, 1), "state"), "missing");
    assert_int_equal(number_of(json_array_get(array, 1), "read_errors"), 7);
    scrub = json_object_get(json_array_get(array, 1), "scrub");
    assert_int_equal(number_of(scrub, "bytes"), 1u << 20);
    assert_int_equal(number_of(scrub, "found"), 4);
    assert_int_equal(number_of(scrub, "repaired"), 3);
    assert_int_equal(number_of(scrub, "unrepaired"), 1);
    assert_string_equal(text_of(json_array_get(array, 2), "state"), "suspect");
    assert_string_equal(text_of(json_array_get(array, 2), "reason"), "does not answer");
    assert_int_equal(number_of(json_array_get(array, 2), "timeouts"), 5);
    assert_false(json_is_true(json_object_get(json_array_get(array, 1), "leaving")));
    assert_true(json_is_true(json_object_get(json_array_get(array, 2), "leaving")));
    assert_int_equal(number_of(json_object_get(json_array_get(array, 2), "work"), "eta_seconds"),
                     250);
    json_decref(json);
    json = test_ask("GET", "/v1/status", NULL, 200);
    array = json_object_get(json, "work");
    assert_int_equal(number_of(array, "rate"), 12u << 20);
    assert_int_equal(number_of(json_object_get(array, "rebuild"), "eta_seconds"), 0);
    assert_int_equal(number_of(json_object_get(array, "leaving"), "bytes"), 3ull << 30);
    assert_true(json_is_null(json_object_get(json_object_get(array, "rebalance"), "eta_seconds")));
    json_decref(json);
}

static void order(const char *method, const char *path, const char *body, unsigned status,
                  int64_t drive)
{
    json_t *json = test_ask(method, path, body, status);

    assert_int_equal(number_of(json, "drive"), drive);
    json_decref(json);
}

static void test_drive_orders(void **state)
{
    (void)state;
    order("POST", "/v1/drives", "{\"path\": \"/dev/x\", \"class\": \"nvme\", \"size\": 8192}", 201,
          3);
    assert_int_equal(fake.order.verb, ADMIN_DRIVE_ADD);
    assert_string_equal(fake.order.path, "/dev/x");
    assert_true(fake.order.nvme && !fake.order.force);
    assert_int_equal(fake.order.size, 8192);
    order("POST", "/v1/drives/1/replace", "{\"path\": \"/y\", \"force\": true}", 201, 3);
    assert_int_equal(fake.order.verb, ADMIN_DRIVE_REPLACE);
    assert_int_equal(fake.order.index, 1);
    assert_true(fake.order.force && !fake.order.nvme && fake.order.size == 0);
    order("POST", "/v1/drives/1/remove", NULL, 200, 1);
    order("POST", "/v1/drives/2/keep", NULL, 200, 2);
    assert_int_equal(fake.order.verb, ADMIN_DRIVE_KEEP);
    order("POST", "/v1/drives/2/rebuild", NULL, 200, 2);
    assert_int_equal(fake.order.verb, ADMIN_DRIVE_REBUILD);
    order("PATCH", "/v1/drives/0", "{\"class\": \"nvme\"}", 200, 0);
    assert_int_equal(fake.order.verb, ADMIN_DRIVE_SET_CLASS);
    test_refused("POST", "/v1/drives/0/remove", NULL, 403, "PERM", "add one first");
    test_refused("POST", "/v1/drives/9/remove", NULL, 404, "NOENT", "");
    test_refused("POST", "/v1/drives/x/remove", NULL, 400, "INVAL", "number of a drive");
    test_refused("POST", "/v1/drives/1/sell", NULL, 404, "NOENT", "remove, keep");
    test_refused("POST", "/v1/drives", "{\"path\": \"dev/x\"}", 400, "INVAL", "absolute");
    test_refused("POST", "/v1/drives", "{\"path\": \"/x\", \"class\": 1}", 400, "INVAL", "nvme");
    test_refused("POST", "/v1/drives", "{\"path\": \"/x\", \"size\": 0}", 400, "INVAL", "above 0");
    test_refused("POST", "/v1/drives", "{\"path\": \"/x\", \"size\": 100}", 400, "INVAL",
                 "multiple of 4096");
    test_refused("POST", "/v1/drives", "{\"path\": \"/x\", \"forced\": true}", 400, "INVAL",
                 "forced");
    test_refused("PATCH", "/v1/drives/0", "{}", 400, "INVAL", "nvme");
    test_refused("PATCH", "/v1/drives/0", "{\"class\": \"disk\", \"path\": \"/x\"}", 400, "INVAL",
                 "path");
}

static void test_scrub(void **state)
{
    json_t *json = test_ask("GET", "/v1/scrub", NULL, 200), *last;

    (void)state;
    assert_string_equal(text_of(json, "state"), "idle");
    assert_true(json_is_null(json_object_get(json, "pass")));
    assert_true(json_is_null(json_object_get(json, "percent")));
    assert_true(json_is_null(json_object_get(json, "last")));
    assert_string_equal(text_of(json, "next"), "2023-11-21T22:13:20Z");
    json_decref(json);
    json = test_ask("POST", "/v1/scrub/start", NULL, 200);
    assert_string_equal(text_of(json, "state"), "running");
    assert_int_equal(number_of(json, "percent"), 40);
    assert_int_equal(number_of(json, "rate"), 32u << 20);
    assert_int_equal(number_of(json, "seconds_left"), 3700);
    assert_int_equal(number_of(json_object_get(json, "pass"), "seconds"), 75);
    last = json_object_get(json, "last");
    assert_string_equal(text_of(last, "ended"), "2023-11-14T22:13:20Z");
    assert_int_equal(number_of(last, "found"), 5);
    assert_int_equal(number_of(last, "repaired"), 3);
    assert_int_equal(number_of(last, "lost_chunks"), 2);
    assert_int_equal(number_of(last, "skipped_segments"), 1);
    json_decref(json);
    json = test_ask("POST", "/v1/scrub/stop", NULL, 200);
    assert_string_equal(text_of(json, "state"), "stopped");
    json_decref(json);
    test_refused("POST", "/v1/scrub", NULL, 405, "METHOD", "GET");
}

static void test_volumes(void **state)
{
    json_t *json;

    (void)state;
    json = test_ask("POST", "/v1/volumes",
                    "{\"name\": \"vm2\", \"size\": 8192, \"durability\": \"on-flush\"}", 201);
    assert_string_equal(text_of(json, "name"), "vm2");
    assert_int_equal(number_of(json, "size"), 8192);
    assert_string_equal(text_of(json, "durability"), "on-flush");
    assert_string_equal(text_of(json, "created"), "2023-11-14T22:13:20Z");
    json_decref(json);
    json = test_ask("GET", "/v1/volumes", NULL, 200);
    assert_int_equal(json_array_size(json_object_get(json, "volumes")), 3);
    json_decref(json);
    json = test_ask("PATCH", "/v1/volumes/vm2", "{\"size\": 16384}", 200);
    assert_int_equal(number_of(json, "size"), 16384);
    json_decref(json);
    test_refused("PATCH", "/v1/volumes/vm2", "{\"size\": 4096}", 403, "PERM", "allow_shrink");
    json = test_ask("PATCH", "/v1/volumes/vm2", "{\"size\": 4096, \"allow_shrink\": true}", 200);
    assert_int_equal(number_of(json, "size"), 4096);
    json_decref(json);
    json = test_ask("DELETE", "/v1/volumes/vm2", NULL, 200);
    assert_string_equal(text_of(json_object_get(json, "deleted"), "name"), "vm2");
    json_decref(json);
    test_refused("GET", "/v1/volumes/vm2", NULL, 404, "NOENT", "no volume \"vm2\"");
}

static void test_snapshots(void **state)
{
    json_t *json, *array;

    (void)state;
    json = test_ask("POST", "/v1/snapshots", "{\"volumes\": [\"vm1\", \"busy\"], \"name\": \"a\"}",
                    201);
    array = json_object_get(json, "snapshots");
    assert_string_equal(json_string_value(json_array_get(array, 1)), "busy@a");
    json_decref(json);
    json = test_ask("GET", "/v1/volumes/vm1/snapshots", NULL, 200);
    array = json_object_get(json, "snapshots");
    assert_int_equal(json_array_size(array), 1);
    assert_string_equal(text_of(json_array_get(array, 0), "name"), "vm1@a");
    json_decref(json);
    json = test_ask("POST", "/v1/volumes/vm1/snapshots/a/clone", "{\"name\": \"vm3\"}", 201);
    assert_string_equal(text_of(json, "name"), "vm3");
    json_decref(json);
    json = test_ask("POST", "/v1/volumes/vm1/snapshots/a/rollback", NULL, 200);
    assert_string_equal(text_of(json, "name"), "vm1");
    json_decref(json);
    test_refused("DELETE", "/v1/volumes/vm1", NULL, 409, "SNAPSHOTS", "delete them first");
    test_refused("POST", "/v1/volumes/busy/snapshots/a/rollback", NULL, 409, "BUSY", "disconnect");
    test_refused("POST", "/v1/volumes/vm1/snapshots/b/rollback", NULL, 404, "NOENT",
                 "no snapshot \"b\" of a volume \"vm1\"");
    test_refused("POST", "/v1/volumes/vm1/snapshots/a/clone", "{\"name\": \"vm1\"}", 409, "EXIST",
                 "a volume \"vm1\" exists");
    test_refused("POST", "/v1/volumes/vm1/snapshots/a/clone", "{}", 400, "INVAL", "name");
    test_refused("POST", "/v1/snapshots", "{\"volumes\": [\"vm1\"], \"name\": \"a\"}", 409, "EXIST",
                 "exists already");
    test_refused("POST", "/v1/snapshots", "{\"volumes\": [\"x\"], \"name\": \"b\"}", 404, "NOENT",
                 "no snapshot was taken");
    test_refused("POST", "/v1/snapshots", "{\"volumes\": [\"vm1\", \"vm1\"], \"name\": \"b\"}", 400,
                 "INVAL", "twice");
    test_refused("POST", "/v1/snapshots", "{\"volumes\": [], \"name\": \"b\"}", 400, "INVAL",
                 "1 to");
    test_refused("POST", "/v1/snapshots", "{\"volumes\": [5], \"name\": \"b\"}", 400, "NAME",
                 "name");
    test_refused("GET", "/v1/volumes/none/snapshots", NULL, 404, "NOENT", "no volume");
    test_refused("PATCH", "/v1/volumes/vm1/snapshots/a", "{}", 405, "METHOD", "DELETE");
    json = test_ask("DELETE", "/v1/volumes/vm1/snapshots/a", NULL, 200);
    assert_string_equal(text_of(json_object_get(json, "deleted"), "snapshot"), "a");
    json_decref(json);
    test_refused("DELETE", "/v1/volumes/vm1/snapshots/a", NULL, 404, "NOENT", "no snapshot");
}

static void test_volume_errors(void **state)
{
    char name[300];

    (void)state;
    test_refused("DELETE", "/v1/volumes/busy", NULL, 409, "BUSY", "disconnect its clients");
    test_refused("DELETE", "/v1/volumes/none", NULL, 404, "NOENT", "no volume");
    test_refused("PATCH", "/v1/volumes/none", "{\"size\": 4096}", 404, "NOENT", "no volume");
    test_refused("POST", "/v1/volumes", "{\"name\": \"vm1\", \"size\": 4096}", 409, "EXIST", "vm1");
    test_refused("POST", "/v1/volumes", "{\"name\": \"a/b\", \"size\": 4096}", 400, "NAME", "name");
    test_refused("POST", "/v1/volumes", "{\"name\": \"\", \"size\": 4096}", 400, "NAME", "name");
    test_refused("POST", "/v1/volumes", "{\"name\": 5, \"size\": 4096}", 400, "INVAL", "name");
    test_refused("POST", "/v1/volumes", "{\"size\": 4096}", 400, "INVAL", "name");
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\"}", 400, "INVAL", "size");
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\", \"size\": 4097}", 400, "RANGE", "4096");
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\", \"size\": 4503599627370496}", 400,
                 "RANGE", "at most");
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\", \"size\": -4096}", 400, "INVAL", "size");
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\", \"size\": 4096.5}", 400, "INVAL",
                 "size");
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\", \"size\": 99999999999999999999}", 400,
                 "INVAL", "JSON");
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\", \"size\": 4096, \"sizze\": 1}", 400,
                 "INVAL", "sizze");
    test_refused("POST", "/v1/volumes",
                 "{\"name\": \"x\", \"size\": 4096, \"durability\": \"maybe\"}", 400, "INVAL",
                 "durability");
    test_refused("POST", "/v1/volumes", "[1]", 400, "INVAL", "object");
    test_refused("POST", "/v1/volumes", "{", 400, "INVAL", "not JSON");
    test_refused("POST", "/v1/volumes", NULL, 400, "INVAL", "not JSON");
    test_refused("PATCH", "/v1/volumes/vm1", "{\"size\": 4096, \"allow_shrink\": 1}", 400, "INVAL",
                 "allow_shrink");
    memset(name, 'x', sizeof(name));
    memcpy(name, "/v1/volumes/", 12);
    name[12 + BLOCK_NAME_MAX + 1] = 0;
    test_refused("GET", name, NULL, 400, "NAME", "at most 200");
    fake.fail = (unsigned)-ERR_NOSPC;
    test_refused("POST", "/v1/volumes", "{\"name\": \"x\", \"size\": 4096}", 507, "NOSPC", "space");
    fake.fail = (unsigned)-ERR_IO;
    test_refused("GET", "/v1/volumes", NULL, 500, "IO", "I/O");
    test_refused("GET", "/v1/status", NULL, 500, "IO", "I/O");
}

static void test_studies(void **state)
{
    json_t *json = test_ask("GET", "/v1/studies?patient=P1&limit=5", NULL, 200), *study;

    (void)state;
    assert_int_equal(json_array_size(json_object_get(json, "studies")), 1);
    study = json_array_get(json_object_get(json, "studies"), 0);
    assert_string_equal(text_of(study, "study_uid"), "1.2.3");
    assert_string_equal(text_of(study, "patient_name"), "Doe^Jane");
    assert_int_equal(number_of(study, "instances"), 8);
    assert_int_equal(json_array_size(json_object_get(study, "modalities")), 2);
    assert_true(json_is_false(json_object_get(json, "more")));
    assert_int_equal(fake.last.limit, 5);
    json_decref(json);

    json = test_ask("GET", "/v1/studies?limit=1", NULL, 200);
    assert_true(json_is_true(json_object_get(json, "more")));
    json_decref(json);
    json = test_ask("GET", "/v1/studies?offset=1", NULL, 200);
    study = json_array_get(json_object_get(json, "studies"), 0);
    assert_string_equal(text_of(study, "patient_name"), "M?ller");
    assert_int_equal(fake.last.limit, ADMIN_STUDIES_DEFAULT);
    json_decref(json);
}

static void test_study_filters(void **state)
{
    static const struct {
        const char *query, *value;
        uint32_t tag;
        enum object_match_kind kind;
    } cases[] = {
        {"patient=P1", "P1", 0x00100020, OBJECT_MATCH_EXACT},
        {"patient=P*", "P*", 0x00100020, OBJECT_MATCH_WILDCARD},
        {"name=Doe?", "Doe?", 0x00100010, OBJECT_MATCH_WILDCARD},
        {"date=20240101", "20240101", 0x00080020, OBJECT_MATCH_EXACT},
        {"date=20240101-", "20240101-", 0x00080020, OBJECT_MATCH_RANGE},
        {"modality=MR", "MR", 0x00080061, OBJECT_MATCH_EXACT},
        {"accession=7", "7", 0x00080050, OBJECT_MATCH_EXACT},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char target[100];

        snprintf(target, sizeof(target), "/v1/studies?%s", cases[i].query);
        json_decref(test_ask("GET", target, NULL, 200));
        assert_int_equal(fake.last.match_count, 1);
        assert_int_equal(fake.last_match.tag, cases[i].tag);
        assert_int_equal(fake.last_match.kind, cases[i].kind);
        assert_string_equal(fake.last_value, cases[i].value);
    }
    test_refused("GET", "/v1/studies?limit=0", NULL, 400, "INVAL", "limit");
    test_refused("GET", "/v1/studies?limit=10001", NULL, 400, "INVAL", "limit");
    test_refused("GET", "/v1/studies?limit=99999999999999999999999", NULL, 400, "INVAL", "limit");
    test_refused("GET", "/v1/studies?limit=", NULL, 400, "INVAL", "limit");
    test_refused("GET", "/v1/studies?offset=-1", NULL, 400, "INVAL", "offset");
    test_refused("GET", "/v1/studies?pat=1", NULL, 400, "INVAL", "pat");
    test_refused("GET", "/v1/status?x=1", NULL, 400, "INVAL", "\"x\"");
    test_refused("GET",
                 "/v1/studies?name=1&name=1&name=1&name=1&name=1&name=1&name=1&name=1&name=1", NULL,
                 400, "INVAL", "too many");
}

static void test_study_show_delete(void **state)
{
    json_t *json = test_ask("GET", "/v1/studies/1.2.3", NULL, 200), *series;

    (void)state;
    series = json_array_get(json_object_get(json, "series_list"), 0);
    assert_int_equal(number_of(json, "series"), 2);
    assert_int_equal(json_array_size(json_object_get(json, "series_list")), 2);
    assert_string_equal(text_of(series, "modality"), "CT");
    assert_int_equal(number_of(series, "instances"), 7);
    json_decref(json);
    json = test_ask("DELETE", "/v1/studies/1.2.3/series/1.2.3.1", NULL, 200);
    assert_int_equal(number_of(json_object_get(json, "deleted"), "instances"), 7);
    json_decref(json);
    test_refused("DELETE", "/v1/studies/1.2.3/series/1.2.3.1", NULL, 404, "NOENT",
                 "no series 1.2.3.1");
    json = test_ask("DELETE", "/v1/studies/1.2.3", NULL, 200);
    assert_int_equal(number_of(json_object_get(json, "deleted"), "instances"), 1);
    json_decref(json);
    test_refused("DELETE", "/v1/studies/1.2.3", NULL, 404, "NOENT", "no study 1.2.3");
    test_refused("GET", "/v1/studies/1.2.3", NULL, 404, "NOENT", "no study 1.2.3");
    test_refused("GET", "/v1/studies/1.2.x", NULL, 400, "INVAL", "not a DICOM UID");
    test_refused("DELETE", "/v1/studies/1.2.3/series/", NULL, 400, "INVAL", "not a DICOM UID");
}

static void test_patients(void **state)
{
    json_t *json = test_ask("GET", "/v1/patients?patient=P*&name=D*&limit=1", NULL, 200), *one;

    (void)state;
    assert_int_equal(fake.last.level, OBJECT_PATIENT);
    assert_int_equal(fake.last.match_count, 2);
    assert_int_equal(fake.last_match.kind, OBJECT_MATCH_WILDCARD);
    assert_int_equal(json_array_size(json_object_get(json, "patients")), 1);
    assert_true(json_is_true(json_object_get(json, "more")));
    one = json_array_get(json_object_get(json, "patients"), 0);
    assert_string_equal(text_of(one, "patient_id"), "P1");
    assert_string_equal(text_of(one, "issuer"), "HOSPITAL");
    assert_string_equal(text_of(one, "patient_name"), "Doe^Jane");
    assert_string_equal(text_of(one, "birth_date"), "19700131");
    assert_string_equal(text_of(one, "sex"), "F");
    assert_int_equal(number_of(one, "studies"), 1);
    json_decref(json);
    json = test_ask("GET", "/v1/patients/P2", NULL, 200);
    assert_int_equal(fake.last_match.tag, 0x00100020);
    assert_int_equal(fake.last_match.kind, OBJECT_MATCH_EXACT);
    assert_int_equal(json_array_size(json_object_get(json, "patients")), 1);
    one = json_array_get(json_object_get(json, "studies"), 0);
    assert_string_equal(text_of(one, "study_uid"), "1.2.4");
    assert_true(json_is_false(json_object_get(json, "studies_more")));
    json_decref(json);
    test_refused("GET", "/v1/patients/P3", NULL, 404, "NOENT", "no patient has the ID \"P3\"");
    test_refused("GET", "/v1/patients/P*", NULL, 404, "NOENT", "P*"); /* an ID, no wildcard */
    assert_int_equal(fake.last_match.kind, OBJECT_MATCH_EXACT);
    test_refused("GET", "/v1/patients/*", NULL, 400, "INVAL", "not a Patient ID");
    test_refused("GET", "/v1/patients/P1?limit=1", NULL, 400, "INVAL", "limit");
    test_refused("GET", "/v1/patients?modality=CT", NULL, 400, "INVAL", "modality");
    test_refused("GET", "/v1/patients?limit=0", NULL, 400, "INVAL", "limit");
    test_refused("DELETE", "/v1/patients/P1", NULL, 405, "METHOD", "GET only");
    fake.fail = (unsigned)-ERR_IO;
    test_refused("GET", "/v1/patients", NULL, 500, "IO", "I/O");
    test_refused("GET", "/v1/patients/P1", NULL, 500, "IO", "I/O");
}

static void test_metrics(void **state)
{
    struct admin_call *c = test_call("GET", "/metrics", NULL);
    struct admin_backend backend;
    json_t *json, *series;
    const char *allow;
    char *text;
    size_t len;

    (void)state;
    test_refused("GET", "/v1/stats", NULL, 404, "NOENT", "");
    test_refused("GET", "/metrics", NULL, 404, "NOENT", "");
    test_refused("GET", "/metrics?x=1", NULL, 400, "INVAL", "x");
    fake_metrics(&fake);
    backend = fake_backend(&fake);
    admin_call_run(c, &backend);
    assert_int_equal(admin_call_answer(c, &text, &len, &allow), 200);
    assert_string_equal(admin_call_type(c), METRICS_TEXT_TYPE);
    assert_non_null(strstr(text, "\nfilmroom_block_seconds_count{op=\"read\"} 100\n"));
    assert_int_equal(strlen(text), len);
    mem_free(text);
    admin_call_free(c);

    json = test_ask("GET", "/v1/stats", NULL, 200);
    series = json_array_get(json_object_get(json, "metrics"), 0);
    assert_string_equal(text_of(series, "name"), "filmroom_block_seconds");
    assert_string_equal(text_of(series, "kind"), "histogram");
    assert_string_equal(text_of(series, "unit"), "ns");
    assert_string_equal(text_of(json_object_get(series, "labels"), "op"), "read");
    assert_int_equal(number_of(series, "count"), 100);
    assert_int_equal(number_of(series, "sum"), 5050000000);
    assert_int_equal(number_of(series, "max"), 100000000);
    assert_in_range(number_of(series, "p50"), 50000000, 53200000);
    json_decref(json);
    test_refused("POST", "/v1/stats", NULL, 405, "METHOD", "GET");
    metrics_free(fake.metrics);
}

static void test_routes(void **state)
{
    struct admin_call *c = test_call("PUT", "/v1/volumes/vm1", NULL);
    const char *allow;
    char *text;
    size_t len;

    (void)state;
    assert_int_equal(admin_call_answer(c, &text, &len, &allow), 405);
    assert_string_equal(allow, "GET, PATCH, DELETE");
    mem_free(text);
    admin_call_free(c);
    test_refused("GET", "/", NULL, 404, "NOENT", "no such resource");
    test_refused("GET", "/v1", NULL, 404, "NOENT", "no such resource");
    test_refused("GET", "/v1/nothing", NULL, 404, "NOENT", "no such resource");
    test_refused("GET", "/v1/volumes/a/b", NULL, 404, "NOENT", "no such resource");
    test_refused("POST", "/v1/status", "{}", 405, "METHOD", "GET only");
    test_refused("get", "/v1/status", NULL, 405, "METHOD", "GET only");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_status, setup),
        cmocka_unit_test_setup(test_drives, setup),
        cmocka_unit_test_setup(test_scrub, setup),
        cmocka_unit_test_setup(test_drive_orders, setup),
        cmocka_unit_test_setup(test_volumes, setup),
        cmocka_unit_test_setup(test_snapshots, setup),
        cmocka_unit_test_setup(test_volume_errors, setup),
        cmocka_unit_test_setup(test_studies, setup),
        cmocka_unit_test_setup(test_study_filters, setup),
        cmocka_unit_test_setup(test_study_show_delete, setup),
        cmocka_unit_test_setup(test_patients, setup),
        cmocka_unit_test_setup(test_routes, setup),
        cmocka_unit_test_setup(test_metrics, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The DICOMweb server over an object store in memory, as libcurl sees it: what goes in comes out
 * byte for byte, every answer has the status that the standard gives it, and nothing that a client
 * sends takes the server away from the others.
 *
 * The loop runs on the main thread; the client is an env_thread. Real DICOM files come from
 * FILMROOM_DICOM_DATA; without them a made one serves for most of it.
 */
#include <curl/curl.h>
#include <dirent.h>
#include <jansson.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/codec.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "lib/dicom/dcm.h"
#include "lib/rt/env_uring.h"
#include "proto/dicomweb/dicomweb.h"
#include "proto/dicomweb/multipart.h"
#include "tests/unit/dimse/mem_object.h"

#define COUNT(a)   (sizeof(a) / sizeof((a)[0]))
#define STUDY_TAG  0x0020000du
#define SERIES_TAG 0x0020000eu

static struct env *env;
static struct object_store *store;
static struct dicomweb *web;
static unsigned port;
static int failures;

#define EXPECT(cond, ...)                                              \
    do {                                                               \
        if (!(cond)) {                                                 \
            failures++;                                                \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond); \
            fprintf(stderr, " " __VA_ARGS__);                          \
            fprintf(stderr, "\n");                                     \
        }                                                              \
    } while (0)

/* ---- A client -------------------------------------------------------------------------------- */

struct answer {
    long status;
    struct strbuf body, headers;
    CURLcode code;
    char type[300];
    double length; /* Content-Length; -1: none */
};

static size_t take(char *p, size_t size, size_t n, void *to)
{
    strbuf_add(to, p, size * n);
    return size * n;
}

static void answer_free(struct answer *a)
{
    strbuf_free(&a->body);
    strbuf_free(&a->headers);
}

static struct answer ask(const char *method, const char *path, const char *accept, const char *type,
                         const void *body, size_t len)
{
    static CURL *c;
    struct answer a = {0};
    struct curl_slist *h = NULL;
    char url[4000], line[1000], *got = NULL;
    curl_off_t cl;

    if (!c)
        c = curl_easy_init();
    curl_easy_reset(c);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u/dicom-web%s", port, path);
    snprintf(line, sizeof(line), "Accept:%s%s", accept ? " " : "", accept ? accept : "");
    h = curl_slist_append(h, line);
    snprintf(line, sizeof(line), "Content-Type: %s", type ? type : "");
    h = curl_slist_append(h, line);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, h);
    curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(c, CURLOPT_NOBODY, strcmp(method, "HEAD") == 0);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &a.body);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, &a.headers);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 30L);
    if (body) {
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len);
    }
    a.code = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &a.status);
    curl_easy_getinfo(c, CURLINFO_CONTENT_TYPE, &got);
    snprintf(a.type, sizeof(a.type), "%s", got ? got : "");
    curl_easy_getinfo(c, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &cl);
    a.length = (double)cl;
    curl_slist_free_all(h);
    strbuf_add(&a.body, "", 0);
    strbuf_adds(&a.headers, "");
    if (!a.body.data)
        strbuf_room(&a.body, 0);
    return a;
}

static struct answer get(const char *path, const char *accept)
{
    return ask("GET", path, accept, NULL, NULL, 0);
}

static void expect_get(const char *path, const char *accept, long status)
{
    struct answer a = get(path, accept);

    EXPECT(a.status == status, "%s (%s): %ld %.200s", path, accept ? accept : "-", a.status,
           a.body.len ? a.body.data : "");
    if (status >= 400)
        EXPECT(a.body.len > 10, "%s: no sentence", path);
    answer_free(&a);
}

/* ---- Files ----------------------------------------------------------------------------------- */

struct file {
    char path[600];
    struct strbuf bytes;
    char study[65], series[65], instance[65];
};

/* Reads a file's UIDs; false when it is not one that a store could take. */
static bool file_uids(struct file *f)
{
    struct strbuf s = STRBUF_INIT;
    struct dcm_header *h;
    struct dcm_head head;
    char vr[3];
    bool ok;

    if (dcm_head_parse(f->bytes.data, f->bytes.len, &head) < 0 ||
        dcm_header_parse(f->bytes.data + head.dataset_off, f->bytes.len - head.dataset_off,
                         head.transfer_syntax, &h) < 0)
        return false;
    ok = dcm_header_get(h, STUDY_TAG, &s, vr) && s.len > 0;
    snprintf(f->study, sizeof(f->study), "%s", s.data ? s.data : "");
    strbuf_reset(&s);
    ok = ok && dcm_header_get(h, SERIES_TAG, &s, vr) && s.len > 0;
    snprintf(f->series, sizeof(f->series), "%s", s.data ? s.data : "");
    strbuf_reset(&s);
    ok = ok && dcm_header_get(h, 0x00080018, &s, vr) && s.len > 0;
    snprintf(f->instance, sizeof(f->instance), "%s", s.data ? s.data : "");
    strbuf_free(&s);
    dcm_header_free(h);
    return ok;
}

static bool file_load(struct file *f, const char *path)
{
    FILE *in = fopen(path, "rb");
    char buf[65536];
    size_t n;

    *f = (struct file){.bytes = STRBUF_INIT};
    snprintf(f->path, sizeof(f->path), "%s", path);
    if (!in)
        return false;
    while ((n = fread(buf, 1, sizeof(buf), in)) > 0)
        strbuf_add(&f->bytes, buf, n);
    fclose(in);
    return f->bytes.len > 0 && file_uids(f);
}

static void put_element(struct strbuf *s, uint32_t tag, const char *vr, const char *value)
{
    size_t n = strlen(value);
    uint8_t head[8];

    codec_put_le16(head, (uint16_t)(tag >> 16));
    codec_put_le16(head + 2, (uint16_t)tag);
    memcpy(head + 4, vr, 2);
    codec_put_le16(head + 6, (uint16_t)(n + n % 2));
    strbuf_add(s, head, 8);
    strbuf_add(s, value, n);
    if (n % 2)
        strbuf_addc(s, vr[0] == 'U' ? 0 : ' ');
}

static void put_us(struct strbuf *s, uint32_t tag, uint16_t v)
{
    uint8_t e[10];

    codec_put_le16(e, (uint16_t)(tag >> 16));
    codec_put_le16(e + 2, (uint16_t)tag);
    memcpy(e + 4, "US", 2);
    codec_put_le16(e + 6, 2);
    codec_put_le16(e + 8, v);
    strbuf_add(s, e, 10);
}

/* An instance of `frames` frames of 64 x 64 x 16 bits. */
static struct file file_make(const char *study, const char *series, const char *instance,
                             const char *name, unsigned frames)
{
    static const uint8_t pixel_head[] = {0xe0, 0x7f, 0x10, 0, 'O', 'W', 0, 0};
    struct file f = {.bytes = STRBUF_INIT};
    struct strbuf *s = &f.bytes;
    char text[20];
    uint8_t len[4];
    uint8_t *p;

    CHECK_OK(
        dcm_head_make("1.2.840.10008.5.1.4.1.1.7", instance, "1.2.840.10008.1.2.1", "TEST", s));
    put_element(s, 0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.7");
    put_element(s, 0x00080018, "UI", instance);
    put_element(s, 0x00080020, "DA", "20200102");
    put_element(s, 0x00080060, "CS", "OT");
    put_element(s, 0x00100010, "PN", name);
    put_element(s, 0x00100020, "LO", "ID1");
    put_element(s, 0x0020000d, "UI", study);
    put_element(s, 0x0020000e, "UI", series);
    put_element(s, 0x00200013, "IS", "1");
    put_us(s, 0x00280002, 1);
    snprintf(text, sizeof(text), "%u", frames);
    put_element(s, 0x00280008, "IS", text);
    put_us(s, 0x00280010, 64);
    put_us(s, 0x00280011, 64);
    put_us(s, 0x00280100, 16);
    strbuf_add(s, pixel_head, sizeof(pixel_head));
    codec_put_le32(len, frames * 8192);
    strbuf_add(s, len, 4);
    p = strbuf_room(s, frames * 8192);
    for (unsigned i = 0; i < frames * 8192; i++)
        p[i] = (uint8_t)(i * 7 + i / 8192);
    snprintf(f.study, sizeof(f.study), "%s", study);
    snprintf(f.series, sizeof(f.series), "%s", series);
    snprintf(f.instance, sizeof(f.instance), "%s", instance);
    snprintf(f.path, sizeof(f.path), "made %s", instance);
    return f;
}

static void file_free(struct file *f)
{
    strbuf_free(&f->bytes);
}

static const char *path_of(const struct file *f, int level, const char *rest)
{
    static char path[4][2600];
    static unsigned next;
    char *p = path[next++ % 4];

    snprintf(p, sizeof(path[0]), "/studies/%s", f->study);
    if (level > 0)
        snprintf(p + strlen(p), sizeof(path[0]) - strlen(p), "/series/%s", f->series);
    if (level > 1)
        snprintf(p + strlen(p), sizeof(path[0]) - strlen(p), "/instances/%s", f->instance);
    snprintf(p + strlen(p), sizeof(path[0]) - strlen(p), "%s", rest);
    return p;
}

/* ---- Storing and getting back ---------------------------------------------------------------- */

#define MULTI "multipart/related; type=\"application/dicom\"; boundary=\"frontier x\""

static void add_part(struct strbuf *body, const void *p, size_t n)
{
    strbuf_adds(body, "\r\n--frontier x\r\nContent-Type: application/dicom\r\n\r\n");
    strbuf_add(body, p, n);
}

static struct answer stow(const char *path, const struct file *const *files, size_t count)
{
    struct strbuf body = STRBUF_INIT;
    struct answer a;

    for (size_t i = 0; i < count; i++)
        add_part(&body, files[i]->bytes.data, files[i]->bytes.len);
    strbuf_adds(&body, "\r\n--frontier x--\r\n");
    a = ask("POST", path, "application/dicom+json", MULTI, body.data, body.len);
    strbuf_free(&body);
    return a;
}

static size_t json_count(const struct answer *a, const char *tag)
{
    json_t *j = json_loads(a->body.data, 0, NULL);
    size_t n;

    EXPECT(j != NULL, "not JSON: %.200s", a->body.data);
    n = json_array_size(json_object_get(json_object_get(j, tag), "Value"));
    json_decref(j);
    return n;
}

static void expect_stow(const char *path, const struct file *f, long status, size_t stored,
                        size_t failed)
{
    struct answer a = stow(path, &f, 1);

    EXPECT(a.status == status, "%s: %ld %.300s", f->path, a.status, a.body.data);
    EXPECT(json_count(&a, "00081199") == stored, "%s: %.300s", f->path, a.body.data);
    EXPECT(json_count(&a, "00081198") + json_count(&a, "0008119A") == failed, "%s", a.body.data);
    answer_free(&a);
}

static int part_count;
static struct strbuf part_bytes;

static int see_part(void *arg, const struct multipart_part *part)
{
    (void)arg;
    EXPECT(part->content_type && strncmp(part->content_type, "application/dicom", 17) == 0);
    EXPECT(part->content_location && strstr(part->content_location, "/instances/"));
    strbuf_reset(&part_bytes);
    return 0;
}

static int see_data(void *arg, const void *data, size_t len)
{
    (void)arg;
    strbuf_add(&part_bytes, data, len);
    return 0;
}

static int see_end(void *arg)
{
    const struct file *const *files = arg;
    bool found = false;

    part_count++;
    for (size_t i = 0; files[i]; i++)
        found |= files[i]->bytes.len == part_bytes.len &&
                 memcmp(files[i]->bytes.data, part_bytes.data, part_bytes.len) == 0;
    EXPECT(found, "a part of %zu bytes is none of the files", part_bytes.len);
    return 0;
}

/* The answer's parts are instances of `files`, `want` of them. */
static void expect_parts(const char *path, const struct file **files, int want)
{
    static const struct multipart_ops ops = {see_part, see_data, see_end};
    struct answer a = get(path, "multipart/related; type=\"application/dicom\"; transfer-syntax=*");
    struct multipart *m = mem_alloc(sizeof(*m));
    const char *boundary = strstr(a.type, "boundary=");

    EXPECT(a.status == 200 && a.code == CURLE_OK && boundary, "%s: %ld", path, a.status);
    EXPECT(a.length == (double)a.body.len, "%s: no Content-Length", path);
    part_count = 0;
    if (boundary) {
        CHECK_OK(multipart_init(m, boundary + 9, &ops, files));
        EXPECT(multipart_push(m, a.body.data, a.body.len) == 0 && multipart_finish(m) == 0);
    }
    EXPECT(part_count == want, "%s: %d parts", path, part_count);
    mem_free(m);
    answer_free(&a);
}

static void expect_same(const struct file *f)
{
    struct answer a = get(path_of(f, 2, ""), "application/dicom; transfer-syntax=*"), h;
    const struct file *only[] = {f, NULL};

    EXPECT(a.status == 200 && a.code == CURLE_OK, "%s: %ld", f->path, a.status);
    EXPECT(strncmp(a.type, "application/dicom;", 18) == 0, "%s", a.type);
    EXPECT(a.body.len == f->bytes.len && memcmp(a.body.data, f->bytes.data, a.body.len) == 0,
           "%s came back otherwise: %zu for %zu bytes", f->path, a.body.len, f->bytes.len);
    h = ask("HEAD", path_of(f, 2, ""), NULL, NULL, NULL, 0);
    EXPECT(h.status == 200 && h.length == (double)f->bytes.len, "HEAD: %ld %f", h.status, h.length);
    expect_parts(path_of(f, 2, ""), only, 1);
    answer_free(&a);
    answer_free(&h);
}

static void expect_metadata(const struct file *f, int level, size_t want)
{
    struct answer a = get(path_of(f, level, "/metadata"), "application/dicom+json");
    json_t *j = json_loads(a.body.data, 0, NULL), *uid;

    EXPECT(a.status == 200 && json_is_array(j) && json_array_size(j) == want, "%s: %ld %.100s",
           f->path, a.status, a.body.data);
    uid = json_object_get(json_object_get(json_array_get(j, 0), "0020000D"), "Value");
    EXPECT(uid && strcmp(json_string_value(json_array_get(uid, 0)), f->study) == 0);
    json_decref(j);
    answer_free(&a);
}

static void delete (const char *path, long status)
{
    struct answer a = ask("DELETE", path, NULL, NULL, NULL, 0);

    EXPECT(a.status == status, "DELETE %s: %ld", path, a.status);
    answer_free(&a);
}

/* Every file by itself: in by both ways, out by both ways, described, deleted. */
static void try_file(const struct file *f)
{
    struct answer a;

    expect_stow("/studies", f, 200, 1, 0);
    expect_same(f);
    expect_metadata(f, 2, 1);
    delete (path_of(f, 2, ""), 204);
    expect_get(path_of(f, 2, ""), NULL, 404);
    a = ask("POST", path_of(f, 0, ""), NULL, "application/dicom", f->bytes.data, f->bytes.len);
    EXPECT(a.status == 200, "%s: %ld %.200s", f->path, a.status, a.body.data);
    answer_free(&a);
    expect_same(f);
    delete (path_of(f, 0, ""), 204);
}

static void test_folder(const char *data, const char *folder, int max)
{
    char path[600];
    struct dirent *e;
    DIR *d;
    int n = 0;

    snprintf(path, sizeof(path), "%s/%s", data, folder);
    d = opendir(path);
    while (d && n < max && (e = readdir(d)) != NULL) {
        struct file f;

        snprintf(path, sizeof(path), "%s/%s/%s", data, folder, e->d_name);
        if (e->d_name[0] != '.' && file_load(&f, path)) {
            try_file(&f);
            n++;
        }
        if (e->d_name[0] != '.')
            file_free(&f);
    }
    if (d)
        closedir(d);
    printf("%s: %d files in and out\n", folder, n);
}

/* ---- Series, searches ------------------------------------------------------------------------ */

static size_t search(const char *path)
{
    struct answer a = get(path, "application/json");
    json_t *j = json_loads(a.body.data, 0, NULL);
    size_t n = json_array_size(j);

    EXPECT(a.status == (n ? 200 : 204), "%s: %ld %.200s", path, a.status, a.body.data);
    EXPECT(a.status == 204 || strcmp(a.type, "application/json") == 0, "%s", a.type);
    json_decref(j);
    answer_free(&a);
    return n;
}

static void test_searches(void)
{
    static const struct {
        const char *path;
        size_t want;
    } cases[] = {
        {"/studies", 2},
        {"/studies?limit=1", 1},
        {"/studies?limit=1&offset=2", 0},
        {"/studies?limit=0", 0},
        {"/studies?PatientName=Doe%5EJane", 1},
        {"/studies?PatientName=doe%5Ejane", 1},
        {"/studies?PatientName=*Jane", 1},
        {"/studies?PatientName=Nobody", 0},
        {"/studies?00100010=Doe*", 2},
        {"/studies?StudyDate=20200101-20200103", 2},
        {"/studies?StudyDate=20200103-", 0},
        {"/studies?StudyInstanceUID=1.9.1,1.9.2,1.9.3", 2},
        {"/studies?ModalitiesInStudy=CT,OT&fuzzymatching=false&includefield=all", 2},
        {"/series", 3},
        {"/studies?StudyInstanceUID=1.9.2", 1},
        {"/studies?StudyInstanceUID=1.9.7", 0},
        {"/series?StudyInstanceUID=1.9.1", 2},
        {"/series?SeriesInstanceUID=1.9.1.1", 1},
        {"/series?StudyInstanceUID=1.9.2&SeriesInstanceUID=1.9.1.1", 0},
        {"/instances?StudyInstanceUID=1.9.1&SeriesInstanceUID=1.9.1.1", 2},
        {"/instances?SOPInstanceUID=1.9.1.1.2", 1},
        {"/studies/1.9.1/series?StudyInstanceUID=1.9.2", 0},
        {"/studies/1.9.1/series", 2},
        {"/studies/1.9.7/series", 0},
        {"/instances", 4},
        {"/studies/1.9.1/instances", 3},
        {"/studies/1.9.1/series/1.9.1.1/instances", 2},
        {"/studies/1.9.1/series/1.9.1.1/instances?SOPInstanceUID=1.9.1.1.2", 1},
        {"/instances?PatientID=ID1&InstanceNumber=1&limit=3", 3},
        {"/studies/?accept=application/json", 2},
    };
    struct answer a;

    for (size_t i = 0; i < COUNT(cases); i++) {
        size_t n = search(cases[i].path);

        EXPECT(n == cases[i].want, "%s: %zu", cases[i].path, n);
    }
    a = get("/studies?fuzzymatching=true", "*/*");
    EXPECT(a.status == 200 && strstr(a.headers.data, "Warning: 299"), "%s", a.headers.data);
    EXPECT(strcmp(a.type, "application/dicom+json") == 0, "%s", a.type);
    answer_free(&a);
}

/* ---- Answers of many rows -------------------------------------------------------------------- */

#define MANY     1300 /* more than two pages of search.c */
#define READERS  7    /* more than may have all their rows in memory */
#define ALL_ROWS "/instances?includefield=all"

/* MANY instances whose rows are large: their JSON is more than sockets take. */
static void store_many(void)
{
    char *name = mem_zalloc(8001);
    struct strbuf body = STRBUF_INIT;
    struct answer a;

    memset(name, 'n', 8000);
    for (int i = 0; i < MANY; i++) {
        char study[20], series[24], instance[40];
        struct file f;

        snprintf(study, sizeof(study), "1.10.%d", i / 10);
        snprintf(series, sizeof(series), "%s.1", study);
        snprintf(instance, sizeof(instance), "%s.%d", series, i);
        f = file_make(study, series, instance, name, 1);
        add_part(&body, f.bytes.data, f.bytes.len);
        file_free(&f);
    }
    strbuf_adds(&body, "\r\n--frontier x--\r\n");
    a = ask("POST", "/studies", "application/dicom+json", MULTI, body.data, body.len);
    EXPECT(a.status == 200 && json_count(&a, "00081199") == MANY, "%ld", a.status);
    answer_free(&a);
    strbuf_free(&body);
    mem_free(name);
}

/* The rows of an answer are the stored instances from `first` on, in their order. */
static void expect_rows(const char *body, int first, int count)
{
    json_t *j = json_loads(body, 0, NULL);

    EXPECT(json_is_array(j) && json_array_size(j) == (size_t)count, "%zu rows for %d",
           json_array_size(j), count);
    for (int i = 0; i < count; i++) {
        json_t *uid =
            json_object_get(json_object_get(json_array_get(j, (size_t)i), "00080018"), "Value");
        const char *is = json_string_value(json_array_get(uid, 0));
        char want[40];

        snprintf(want, sizeof(want), "1.10.%d.1.%d", (first + i) / 10, first + i);
        EXPECT(is && strcmp(is, want) == 0, "row %d is %s", i, is ? is : "none");
        if (!is || strcmp(is, want) != 0)
            break;
    }
    json_decref(j);
}

static void expect_found(const char *path, int first, int count)
{
    struct answer a = get(path, "application/json");

    EXPECT(a.status == 200 && a.code == CURLE_OK, "%s: %ld", path, a.status);
    EXPECT(!strstr(a.headers.data, "Warning:"), "%s: %s", path, a.headers.data);
    expect_rows(a.body.data, first, count);
    answer_free(&a);
}

/* Begins an answer and reads its status line. HTTP/1.0: it is not chunked, and ends with the
 * connection. */
static int reader_begin(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), small = 16384;
    char line[] = "GET /dicom-web" ALL_ROWS " HTTP/1.0\r\n\r\n", got[16];

    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    CHECK_OK(connect(fd, (struct sockaddr *)&a, sizeof(a)));
    CHECK_OK(send(fd, line, strlen(line), MSG_NOSIGNAL));
    EXPECT(recv(fd, got, 12, MSG_WAITALL) == 12 && memcmp(got + 8, " 200", 4) == 0, "%.12s", got);
    return fd;
}

static void reader_end(int fd)
{
    struct strbuf s = STRBUF_INIT;
    char buf[65536];
    const char *body;
    ssize_t n;

    while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
        strbuf_add(&s, buf, (size_t)n);
    strbuf_addc(&s, 0);
    body = strstr(s.data, "\r\n\r\n");
    EXPECT(n == 0 && body != NULL);
    if (body)
        expect_rows(body + 4, 0, MANY);
    strbuf_free(&s);
    close(fd);
}

/* While clients that do not read have begun more answers than may be in memory, others get theirs
 * page by page; and so do these, once they read. */
static void test_many(void)
{
    int readers[READERS];

    store_many();
    expect_found(ALL_ROWS, 0, MANY);
    for (int i = 0; i < READERS; i++)
        readers[i] = reader_begin();
    expect_found(ALL_ROWS, 0, MANY);
    expect_found("/instances", 0, MANY);
    expect_found("/instances?limit=1200&offset=7", 7, 1200);
    expect_found("/instances?limit=1000", 0, 1000); /* whole pages */
    expect_found("/instances?limit=501&offset=798", 798, 501);
    expect_found("/instances?limit=501&offset=1299", 1299, 1);
    expect_found("/studies/1.10.3/series/1.10.3.1/instances", 30, 10);
    EXPECT(search("/instances?limit=1000&offset=1300") == 0);
    close(readers[0]); /* in the midst of it */
    for (int i = READERS - 1; i > 0; i--)
        reader_end(readers[i]);
    expect_found(ALL_ROWS, 0, MANY);
    for (int i = 0; i < MANY / 10; i++) {
        char path[40];

        snprintf(path, sizeof(path), "/studies/1.10.%d", i);
        delete (path, 204);
    }
}

static void test_study(void)
{
    struct file f[4] = {file_make("1.9.1", "1.9.1.1", "1.9.1.1.1", "Doe^John", 1),
                        file_make("1.9.1", "1.9.1.1", "1.9.1.1.2", "Doe^John", 300),
                        file_make("1.9.1", "1.9.1.2", "1.9.1.2.1", "Doe^John", 3),
                        file_make("1.9.2", "1.9.2.1", "1.9.2.1.1", "Doe^Jane", 2)};
    const struct file *all[] = {&f[0], &f[1], &f[2], &f[3], NULL};
    struct answer a = stow("/studies", all, 4);

    EXPECT(a.status == 200 && json_count(&a, "00081199") == 4, "%s", a.body.data);
    answer_free(&a);
    expect_parts("/studies/1.9.1", all, 3);
    expect_parts("/studies/1.9.1/series/1.9.1.1", all, 2);
    expect_metadata(&f[0], 0, 3);
    expect_metadata(&f[0], 1, 2);
    test_searches();
    expect_get("/studies/1.9.1", "application/dicom", 406);
    expect_get("/studies/1.9.1/series/1.9.2.1", NULL, 404);
    expect_get("/studies/1.9.2/series/1.9.1.1/instances/1.9.1.1.1", NULL, 404);
    expect_get("/studies/1.9.2/series/1.9.2.1/instances/1.9.2.1.1",
               "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90", 406);
    expect_get("/studies/1.9.2/series/1.9.2.1/instances/1.9.2.1.1",
               "application/dicom; transfer-syntax=1.2.840.10008.1.2.1", 200);
    delete ("/studies/1.9.1/series/1.9.1.1", 204);
    expect_get("/studies/1.9.1/series/1.9.1.1/metadata", NULL, 404);
    delete ("/studies/1.9.1", 204);
    delete ("/studies/1.9.1", 404);
    delete ("/studies/1.9.2", 204);
    for (size_t i = 0; i < COUNT(f); i++)
        file_free(&f[i]);
}

/* Frames and bulk data of more than is made in memory before it is sent. */
static void test_long_frames(void)
{
    struct file f = file_make("1.3", "1.3.1", "1.3.1.3", "Long", 300);
    const char *pixels = f.bytes.data + f.bytes.len - 300 * 8192;
    struct strbuf list = STRBUF_INIT;
    struct answer a;

    expect_stow("/studies", &f, 200, 1, 0);
    a = get(path_of(&f, 2, "/bulkdata/7FE00010"), "application/octet-stream");
    EXPECT(a.body.len == 300 * 8192 && memcmp(a.body.data, pixels, a.body.len) == 0);
    answer_free(&a);
    strbuf_adds(&list, "/frames/300");
    for (int i = 299; i > 0; i--)
        strbuf_addf(&list, ",%d", i);
    a = get(path_of(&f, 2, list.data), "multipart/related; type=\"application/octet-stream\"");
    EXPECT(a.status == 200 && a.length == (double)a.body.len, "%ld", a.status);
    for (int i = 300, at = 0; i > 0 && a.status == 200; i--) {
        const char *p = strstr(a.body.data + at, "\r\n\r\n");

        EXPECT(p && memcmp(p + 4, pixels + (i - 1) * 8192, 8192) == 0, "frame %d", i);
        at = (int)(p + 4 + 8192 - a.body.data);
    }
    answer_free(&a);
    strbuf_free(&list);
    delete ("/studies/1.3", 204);
    file_free(&f);
}

/* A part's header that lies across the border of two reads: a window is 2 MiB. */
static void test_border(void)
{
    size_t want = (2u << 20) - 117 - 235; /* the second header, of some 235 bytes, is then cut */
    struct file probe = file_make("1.3", "1.3.1", "1.3.1.1", "", 255), f[2];
    char *name = mem_zalloc(want - probe.bytes.len + 1);
    const struct file *all[] = {&f[0], &f[1], NULL};
    struct answer a;

    memset(name, 'n', (want - probe.bytes.len) & ~(size_t)1);
    f[0] = file_make("1.3", "1.3.1", "1.3.1.1", name, 255);
    f[1] = file_make("1.3", "1.3.1", "1.3.1.2", "Border", 300);
    a = stow("/studies", all, 2);
    EXPECT(a.status == 200, "%ld", a.status);
    expect_parts("/studies/1.3", all, 2);
    delete ("/studies/1.3", 204);
    answer_free(&a);
    mem_free(name);
    file_free(&probe);
    file_free(&f[0]);
    file_free(&f[1]);
}

/* ---- Frames ---------------------------------------------------------------------------------- */

static void test_frames(void)
{
    struct file f = file_make("1.8", "1.8.1", "1.8.1.1", "Frames", 5);
    const char *pixels = f.bytes.data + f.bytes.len - 5 * 8192;
    struct answer a;

    expect_stow("/studies", &f, 200, 1, 0);
    a = get(path_of(&f, 2, "/frames/3"), "application/octet-stream");
    EXPECT(a.status == 200 && a.body.len == 8192 &&
               memcmp(a.body.data, pixels + 2 * 8192, 8192) == 0,
           "%ld %zu", a.status, a.body.len);
    answer_free(&a);
    a = get(path_of(&f, 2, "/frames/5,1"), "multipart/related; type=application/octet-stream");
    EXPECT(a.status == 200 && memmem(a.body.data, a.body.len, pixels + 4 * 8192, 8192) &&
               memmem(a.body.data, a.body.len, pixels, 8192),
           "%ld", a.status);
    EXPECT(memmem(a.body.data, a.body.len, "transfer-syntax=1.2.840.10008.1.2.1\r\n", 37));
    answer_free(&a);
    a = get(path_of(&f, 2, "/bulkdata/7FE00010"), "application/octet-stream");
    EXPECT(a.status == 200 && a.body.len == 5 * 8192 && memcmp(a.body.data, pixels, 5 * 8192) == 0);
    answer_free(&a);
    expect_get(path_of(&f, 2, "/frames/6"), NULL, 404);
    expect_get(path_of(&f, 2, "/frames/0"), NULL, 400);
    expect_get(path_of(&f, 2, "/frames/1,x"), NULL, 400);
    expect_get(path_of(&f, 2, "/frames/1"), "image/jpeg", 406);
    expect_get(path_of(&f, 2, "/frames/1,2"), "application/octet-stream", 406);
    expect_get(path_of(&f, 2, "/bulkdata/00420011"), NULL, 404);
    delete (path_of(&f, 0, ""), 204);
    file_free(&f);
}

/* ---- What goes wrong ------------------------------------------------------------------------- */

static void test_stow_failures(void)
{
    struct file a = file_make("1.7", "1.7.1", "1.7.1.1", "One", 1);
    struct file b = file_make("1.7", "1.7.1", "1.7.1.1", "Other", 1); /* same UID, other bytes */
    struct file c = file_make("1.6", "1.6.1", "1.6.1.1", "Else", 1);
    struct file junk = {.path = "junk", .bytes = STRBUF_INIT};
    const struct file *mixed[] = {&a, &junk, &b};
    struct answer r;

    for (int i = 0; i < 3000; i++)
        strbuf_adds(&junk.bytes, "not DICOM at all ");
    expect_stow("/studies", &junk, 409, 0, 1);
    expect_stow("/studies/1.5", &a, 409, 0, 1); /* announced as another study */
    expect_stow("/studies/1.7", &a, 200, 1, 0);
    expect_stow("/studies", &a, 200, 1, 0); /* again, the same */
    expect_stow("/studies", &b, 409, 0, 1);
    r = stow("/studies", mixed, 3);
    EXPECT(r.status == 202 && json_count(&r, "00081199") == 1, "%ld %s", r.status, r.body.data);
    EXPECT(json_count(&r, "00081198") == 1 && strstr(r.body.data, "[273]"), "%s", r.body.data);
    EXPECT(json_count(&r, "0008119A") == 1 && strstr(r.body.data, "[49152]"), "%s", r.body.data);
    answer_free(&r);
    for (int k = 0; k < 3; k++) {
        struct mem_object_faults none = {0}, f = {.begin = k == 0 ? ERR_NOSPC : 0,
                                                  .append = k == 1 ? ERR_NOSPC : 0,
                                                  .commit = k == 2 ? ERR_OVERLOAD : 0};

        mem_object_set_faults(store, &f);
        expect_stow("/studies", &c, k == 2 ? 503 : 507, 0, 1);
        mem_object_set_faults(store, &none);
    }
    EXPECT(mem_object_count(store) == 1);
    delete ("/studies/1.7", 204);
    file_free(&a);
    file_free(&b);
    file_free(&c);
    file_free(&junk);
}

/* Bodies that end early or are broken: what was whole is stored, the rest is not. */
static void test_stow_broken(void)
{
    struct file a = file_make("1.7", "1.7.1", "1.7.1.1", "One", 1);
    struct file b = file_make("1.7", "1.7.1", "1.7.1.2", "Two", 1);
    struct strbuf body = STRBUF_INIT;
    struct answer r;

    add_part(&body, a.bytes.data, a.bytes.len);
    add_part(&body, b.bytes.data, b.bytes.len);
    r = ask("POST", "/studies", NULL, MULTI, body.data, body.len);
    EXPECT(r.status == 202 && json_count(&r, "00081199") == 1 && json_count(&r, "00081198") == 1,
           "%ld %s", r.status, r.body.data);
    answer_free(&r);
    EXPECT(mem_object_count(store) == 1);
    delete ("/studies/1.7", 204);
    r = ask("POST", "/studies", NULL, MULTI, body.data, 3000);
    EXPECT(r.status == 400, "%ld", r.status);
    answer_free(&r);
    r = ask("POST", "/studies", NULL, MULTI, "", 0);
    EXPECT(r.status == 400, "%ld", r.status);
    answer_free(&r);
    r = ask("POST", "/studies", NULL, MULTI, "--frontier x\r\nbroken\r\n\r\n", 24);
    EXPECT(r.status == 400, "%ld", r.status);
    answer_free(&r);
    r = ask("POST", "/studies", NULL, MULTI, "--frontier x--", 14);
    EXPECT(r.status == 400, "%ld", r.status);
    answer_free(&r);
    EXPECT(mem_object_count(store) == 0);
    strbuf_free(&body);
    file_free(&a);
    file_free(&b);
}

static void expect_ask(const char *method, const char *path, const char *accept, const char *type,
                       const char *body, long status)
{
    struct answer a = ask(method, path, accept, type, body, body ? strlen(body) : 0);

    EXPECT(a.status == status, "%s %s: %ld for %ld", method, path, a.status, status);
    if (status == 405)
        EXPECT(strstr(a.headers.data, "Allow: GET, HEAD") != NULL, "%s", a.headers.data);
    answer_free(&a);
}

static void test_wrong(void)
{
    expect_get("/", NULL, 404);
    expect_get("/nothing", NULL, 404);
    expect_get("/studies/abc", NULL, 400);
    expect_get("/studies/1..2/series", NULL, 400);
    expect_get("/studies/1.2.3", NULL, 404);
    expect_get("/studies/1.2.3/metadata", NULL, 404);
    expect_get("/studies/1.2/series/1.3/instances/1.4/frames/1", NULL, 404);
    expect_get("/studies/1.2/series/1.3/instances/1.4/rendered", NULL, 404);
    expect_get("/studies?NoSuch=1", NULL, 400);
    expect_get("/studies?limit=x", NULL, 400);
    expect_get("/studies?StudyDate=x", NULL, 400);
    expect_get("/studies?PatientName=%ff", NULL, 400);
    expect_get("/studies?PatientName=%zz", NULL, 400);
    expect_get("/studies", "application/dicom+xml", 406);
    expect_get("/studies", "garbage", 400);
    expect_get("/studies?accept=text/html", "application/json", 406);
    expect_ask("PUT", "/studies", NULL, "application/dicom", "x", 405);
    expect_ask("POST", "/series", NULL, "application/dicom", "x", 405);
    expect_ask("DELETE", "/studies", NULL, NULL, NULL, 405);
    expect_ask("DELETE", "/studies/1/series/2/instances/3/metadata", NULL, NULL, NULL, 405);
    expect_ask("OST", "/studies", NULL, NULL, NULL, 405);
    expect_ask("POST", "/studies", NULL, NULL, "x", 415);
    expect_ask("POST", "/studies", NULL, "text/plain", "x", 415);
    expect_ask("POST", "/studies", NULL, "multipart/related; type=application/dicom", "x", 415);
    expect_ask("POST", "/studies", NULL, "multipart/form-data; boundary=x", "x", 415);
    expect_ask("POST", "/studies", NULL,
               "multipart/related; type=\"application/dicom+json\"; boundary=x", "x", 415);
    expect_ask("POST", "/studies", "text/html", "application/dicom", "x", 406);
    expect_ask("POST", "/studies", NULL, "application/dicom", "x", 409);
}

/* A client that goes away in the middle of an instance leaves no put open; others are served. */
static void test_gone(void)
{
    struct file f = file_make("1.4", "1.4.1", "1.4.1.1", "Gone", 200);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char head[300];

    for (int i = 0; i < 8; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        CHECK_OK(connect(fd, (struct sockaddr *)&a, sizeof(a)));
        snprintf(head, sizeof(head),
                 "POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\n"
                 "Content-Type: application/dicom\r\nContent-Length: %zu\r\n\r\n",
                 f.bytes.len);
        CHECK_OK(send(fd, head, strlen(head), MSG_NOSIGNAL));
        CHECK_OK(send(fd, f.bytes.data, f.bytes.len / 2, MSG_NOSIGNAL));
        expect_get("/studies/1.4", NULL, 404);
        close(fd);
    }
    expect_stow("/studies", &f, 200, 1, 0);
    for (int i = 0; i < 8; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        CHECK_OK(connect(fd, (struct sockaddr *)&a, sizeof(a)));
        snprintf(head, sizeof(head), "GET /dicom-web%s HTTP/1.1\r\nHost: x\r\n\r\n",
                 path_of(&f, 0, ""));
        CHECK_OK(send(fd, head, strlen(head), MSG_NOSIGNAL));
        CHECK_OK(recv(fd, head, sizeof(head), 0));
        close(fd);
    }
    expect_same(&f);
    delete (path_of(&f, 0, ""), 204);
    file_free(&f);
}

/* ---- The whole ------------------------------------------------------------------------------- */

static bool client_done;
static struct fiber *client_waiter;

static void client_finished(void *arg)
{
    (void)arg;
    client_done = true;
    fiber_wake(client_waiter);
}

static void client(void *arg)
{
    const char *data = arg;

    test_study();
    test_border();
    test_many();
    test_long_frames();
    test_frames();
    test_stow_failures();
    test_stow_broken();
    test_wrong();
    test_gone();
    if (data && access(data, R_OK) == 0) {
        test_folder(data, "ct", 5);
        test_folder(data, "mr", 5);
        test_folder(data, "codecs", 100);
        test_folder(data, "enhanced", 100);
        test_folder(data, "odd", 100);
        test_folder(data, "charset", 100);
    } else {
        printf("SKIP real files: set FILMROOM_DICOM_DATA\n");
    }
    CHECK_OK(env_post(env, "client-finished", client_finished, NULL));
}

static void loop_main(void *arg)
{
    /* test_many's readers wait long in slow builds */
    struct dicomweb_config cfg = {.addr = {"tcp:127.0.0.1:0"}, .idle_timeout_s = 600};

    store = mem_object_new(env);
    CHECK_OK(dicomweb_start(env, store, &cfg, &web));
    port = dicomweb_port(web);
    client_waiter = fiber_self();
    CHECK_OK(env_thread(env, "client", client, arg));
    while (!client_done)
        fiber_suspend("client");
    dicomweb_stop(web);
    mem_object_free(store); /* checks that no put and no object is open */
}

int main(void)
{
    struct env_uring_options options = {0};
    const char *data = getenv("FILMROOM_DICOM_DATA");

    log_set_level(LOG_ERROR);
    CHECK_OK(dcm_init());
    curl_global_init(CURL_GLOBAL_DEFAULT);
    CHECK_OK(env_uring_new(&options, &env));
    env_run(env, loop_main, (void *)(uintptr_t)(data ? data : DICOM_DATA_DEFAULT));
    env_free(env);
    strbuf_free(&part_bytes);
    printf("%d failures\n", failures);
    return failures ? 1 : 0;
}

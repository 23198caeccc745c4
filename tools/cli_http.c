/* Requests to the daemon: HTTP by libcurl over DIR/admin.sock, JSON by jansson. See cli.h.
 *
 * The daemon's errors are sentences for people already; what is added here is what only the
 * client's side can know: that nobody listens, or that the socket may not be opened.
 */
#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "lib/api/bucket.h"
#include "lib/base/check.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

#define CLI_ANSWER_MAX      (256u << 20) /* bytes */
#define CLI_CONNECT_SECONDS 5L
#define CLI_READ_SECONDS    60L /* of a GET; what changes things may take as long as it takes */

static size_t cli_take(char *data, size_t size, size_t n, void *arg)
{
    struct strbuf *s = arg;

    strbuf_add(s, data, size * n);
    return s->overflow ? 0 : size * n;
}

/* Whether "DIR/admin.sock" fits a socket's address. */
static bool cli_socket_path(const struct cli *cli, struct strbuf *path)
{
    strbuf_addf(path, "%s/admin.sock", cli->data);
    return path->len < sizeof(((struct sockaddr_un *)NULL)->sun_path);
}

static int cli_no_daemon(const struct cli *cli, CURL *curl, CURLcode code)
{
    const char *dir = cli_safe(cli->data);
    long no = 0;

    curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &no);
    if (code == CURLE_OPERATION_TIMEDOUT)
        return cli_fail("the daemon on %s does not answer: see its log", dir);
    if (code == CURLE_WRITE_ERROR)
        return cli_fail("the daemon's answer is too long: ask for less, as with --limit");
    if (code != CURLE_COULDNT_CONNECT)
        return cli_fail("the daemon on %s broke off: %s: see its log", dir,
                        curl_easy_strerror(code));
    if (no == EACCES || no == EPERM)
        return cli_fail("not allowed to open %s/admin.sock: become the user that runs filmroomd",
                        dir);
    return cli_fail("no daemon on %s: start it with filmroomd --data %s", dir, dir);
}

/* A handle that will talk to the daemon about the path; NULL when there can be none, which was
 * said.
 */
static CURL *cli_session(const struct cli *cli, const char *method, const char *path)
{
    struct strbuf socket = STRBUF_INIT, url = STRBUF_INIT;
    CURL *curl;

    if (!cli_socket_path(cli, &socket)) {
        strbuf_free(&socket);
        cli_fail("the path of the data directory is too long for a unix socket: use a shorter one, "
                 "or a relative one");
        return NULL;
    }
    strbuf_addf(&url, "http://filmroom%s", path);
    curl = curl_easy_init();
    CHECK(curl != NULL);
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket.data);
    curl_easy_setopt(curl, CURLOPT_URL, url.data);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CLI_CONNECT_SECONDS);
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    strbuf_free(&socket);
    strbuf_free(&url);
    return curl;
}

static void cli_prepare(CURL *curl, const struct cli_request *r, const char *body,
                        struct strbuf *answer)
{
    bool get = strcmp(r->method, "GET") == 0;

    curl_easy_setopt(curl, CURLOPT_TIMEOUT, get ? CLI_READ_SECONDS : 0L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, cli_take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    if (body)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
}

/* What answer came, if one did. */
static void cli_note_answer(CURL *curl, struct cli_request *r)
{
    const char *type = NULL;
    long status = 0;

    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(curl, CURLINFO_CONTENT_TYPE, &type);
    r->status = (unsigned)status;
    r->plain = type && strncmp(type, "text/plain", 10) == 0;
}

/* The exchange itself. CLI_OK when some answer came. */
static int cli_exchange(const struct cli *cli, struct cli_request *r, const char *body,
                        struct strbuf *answer)
{
    CURL *curl = cli_session(cli, r->method, r->path);
    struct curl_slist *headers = NULL;
    int verdict = CLI_OK;
    CURLcode code;

    if (!curl)
        return CLI_FAILED;
    cli_prepare(curl, r, body, answer);
    if (body)
        headers = curl_slist_append(NULL, "Content-Type: application/json");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    code = curl_easy_perform(curl);
    if (code != CURLE_OK)
        verdict = cli_no_daemon(cli, curl, code);
    cli_note_answer(curl, r);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return verdict;
}

/* What the daemon said is wrong. Its HTTP server speaks for itself, in a line of plain text, where
 * no request came as far as the admin API. */
static int cli_refused(const struct cli *cli, const struct cli_request *r, const json_t *json,
                       struct strbuf *text)
{
    const char *message = cli_text(json_object_get(json, "error"), "message");

    if (r->status == 404 && r->quiet_if_missing)
        return CLI_FAILED;
    if (json && cli_given(cli, CLI_JSON))
        cli_print_json(json);
    if (*message)
        return cli_fail("%s", cli_safe(message));
    if (r->status == 503)
        return cli_fail("the daemon has as many clients as it takes at once, or is stopping: try "
                        "again in a moment");
    if (r->plain && text->len) {
        text->data[strcspn(text->data, "\r\n")] = 0;
        return cli_fail("%s", cli_safe(text->data));
    }
    return cli_fail("the daemon answered with HTTP status %u: are client and daemon of the same "
                    "version?",
                    r->status);
}

static int cli_dump_piece(const char *data, size_t n, void *arg)
{
    strbuf_add(arg, data, n);
    return 0;
}

int cli_ask(const struct cli *cli, struct cli_request *r)
{
    struct strbuf answer = {.max = CLI_ANSWER_MAX}, body = STRBUF_INIT;
    json_t *json = NULL;
    int verdict;

    if (r->body)
        CHECK(json_dump_callback(r->body, cli_dump_piece, &body, JSON_COMPACT) == 0);
    verdict = cli_exchange(cli, r, body.data, &answer);

    if (verdict == CLI_OK && answer.len)
        json = json_loadb(answer.data, answer.len, 0, NULL);
    if (verdict == CLI_OK && (r->status < 200 || r->status > 299 || !json))
        verdict = cli_refused(cli, r, json, &answer);
    if (verdict == CLI_OK)
        r->answer = json;
    else
        json_decref(json);
    strbuf_free(&body);
    strbuf_free(&answer);
    return verdict;
}

json_t *cli_get(const struct cli *cli, const char *path)
{
    struct cli_request r = {.method = "GET", .path = path};

    return cli_ask(cli, &r) == CLI_OK ? r.answer : NULL;
}

int cli_show(const struct cli *cli, const char *path, void (*print)(const json_t *json))
{
    json_t *json = cli_get(cli, path);

    if (!json)
        return CLI_FAILED;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(json);
    else
        print(json);
    json_decref(json);
    return CLI_OK;
}

/* ---- Bytes from and to files ---------------------------------------------------------------- */

struct cli_flow {
    struct cli_stream *s;
    CURL *curl;
    struct strbuf text; /* an answer that is not for the file */
    uint64_t sent;      /* bytes of the input taken */
    const char *broken; /* the file: what could not be done */
};

static size_t cli_flow_out(char *buf, size_t size, size_t n, void *arg)
{
    struct cli_flow *f = arg;
    size_t got = fread(buf, 1, size * n, f->s->from);

    if (got == 0 && ferror(f->s->from)) {
        f->broken = "the input could not be read";
        return CURL_READFUNC_ABORT;
    }
    f->sent += got;
    return got;
}

/* Is that the answer that was wanted? */
static bool cli_flow_success(const struct cli_flow *f, long status)
{
    return f->s->partial ? status == 206 : status >= 200 && status <= 299;
}

static size_t cli_flow_in(char *data, size_t size, size_t n, void *arg)
{
    struct cli_flow *f = arg;
    long status = 0;

    curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &status);
    if (f->s->partial && status == 200) /* all of it, which nobody wants */
        return 0;
    if (!f->s->to || !cli_flow_success(f, status))
        return cli_take(data, size, n, &f->text);
    if (fwrite(data, 1, size * n, f->s->to) != size * n) {
        f->broken = "the output could not be written";
        return 0;
    }
    f->s->received += size * n;
    return size * n;
}

static struct curl_slist *cli_flow_prepare(struct cli_flow *f)
{
    struct cli_stream *s = f->s;
    struct curl_slist *headers = NULL;

    for (size_t i = 0; i < s->header_count; i++)
        headers = curl_slist_append(headers, s->headers[i]);
    curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(f->curl, CURLOPT_WRITEFUNCTION, cli_flow_in);
    curl_easy_setopt(f->curl, CURLOPT_WRITEDATA, f);
    if (s->from) {
        curl_easy_setopt(f->curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(f->curl, CURLOPT_READFUNCTION, cli_flow_out);
        curl_easy_setopt(f->curl, CURLOPT_READDATA, f);
        curl_easy_setopt(f->curl, CURLOPT_INFILESIZE_LARGE,
                         s->from_size == UINT64_MAX ? (curl_off_t)-1 : (curl_off_t)s->from_size);
    }
    return headers;
}

/* Refused in the middle; HTTP has no way to say why before all has been sent. */
static int cli_flow_cut(const struct cli_flow *f)
{
    if (f->sent > BUCKET_OBJECT_MAX)
        return cli_fail("nothing was stored: the input is longer than an object may be, 8 GiB");
    return cli_fail("the daemon did not take all of it and nothing was stored: the store is full "
                    "(filmroom status), or the input stood still for 5 minutes. Its log says more");
}

/* What became of it. CLI_OK or CLI_FAILED, and that was said. */
static int cli_flow_verdict(const struct cli *cli, struct cli_flow *f, const struct cli_request *r,
                            CURLcode code, const json_t *json)
{
    const struct cli_stream *s = f->s;

    if (f->broken)
        return cli_fail("%s: %m", f->broken);
    if (s->from && (code == CURLE_SEND_ERROR || code == CURLE_RECV_ERROR) && r->status < 200)
        return cli_flow_cut(f);
    if (s->partial && r->status == 200)
        return cli_fail("the daemon sent all of the object and not the range: are client and "
                        "daemon of the same version?");
    if (code != CURLE_OK && r->status < 300) /* an early refusal ends the sending */
        return cli_no_daemon(cli, f->curl, code);
    if (!cli_flow_success(f, (long)r->status) || (!s->to && !json))
        return cli_refused(cli, r, json, &f->text);
    return CLI_OK;
}

int cli_transfer(const struct cli *cli, struct cli_stream *s)
{
    struct cli_flow f = {.s = s, .curl = cli_session(cli, s->method, s->path)};
    struct cli_request r = {.method = s->method};
    struct curl_slist *headers;
    json_t *json = NULL;
    CURLcode code;
    int verdict;

    if (!f.curl)
        return CLI_FAILED;
    f.text.max = CLI_ANSWER_MAX;
    headers = cli_flow_prepare(&f);
    code = curl_easy_perform(f.curl);
    cli_note_answer(f.curl, &r);
    if (f.text.len)
        json = json_loadb(f.text.data, f.text.len, 0, NULL);
    verdict = cli_flow_verdict(cli, &f, &r, code, json);
    curl_slist_free_all(headers);
    curl_easy_cleanup(f.curl);
    strbuf_free(&f.text);
    if (verdict == CLI_OK && !s->to)
        s->answer = json;
    else
        json_decref(json);
    return verdict;
}

/* ---- Texts ---------------------------------------------------------------------------------- */

void cli_add_encoded(struct strbuf *path, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if ((*p >= '0' && *p <= '9') || (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z') ||
            *p == '-' || *p == '_' || *p == '.')
            strbuf_addc(path, (char)*p);
        else
            strbuf_addf(path, "%%%02X", *p);
}

int cli_print_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2));
    fputc('\n', stdout);
    return CLI_OK;
}

const char *cli_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text ? text : "";
}

const char *cli_partition(const json_t *object, const char *name)
{
    const char *text = cli_text(object, name);

    return *text ? text : "(first)";
}

uint64_t cli_number(const json_t *object, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

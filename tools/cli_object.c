/* filmroom object ...: store, read, list, show and delete objects in buckets.
 *
 * Bytes go through in pieces, whatever their number. What is read into a file goes to FILE.part
 * first: FILE is the whole object or is not touched.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/api/bucket.h"
#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

/* The path of BUCKET/NAME with a query (or ""); NULL when it is no such thing, which was said. */
static char *cli_object_path(const struct cli *cli, const char *query)
{
    const char *arg = cli->args[0], *slash = strchr(arg, '/');
    struct strbuf path = STRBUF_INIT;
    char *bucket;

    if (!slash || slash == arg || !slash[1]) {
        cli_usage(cli, "\"%s\" is not BUCKET/NAME", cli_safe(arg));
        return NULL;
    }
    bucket = mem_strdup(arg);
    bucket[slash - arg] = 0;
    strbuf_adds(&path, "/v1/buckets/");
    cli_add_encoded(&path, bucket);
    strbuf_adds(&path, "/objects/");
    cli_add_encoded(&path, slash + 1);
    strbuf_adds(&path, query);
    mem_free(bucket);
    return strbuf_take(&path);
}

/* ---- put ------------------------------------------------------------------------------------ */

struct cli_headers {
    char *lines[CLI_METAS_MAX + 2];
    size_t count;
};

static void cli_add_header(struct cli_headers *h, const char *name, size_t len, const char *value)
{
    struct strbuf line = STRBUF_INIT;

    strbuf_addf(&line, "%.*s", (int)len, name);
    /* For curl, a header without a value is one to be left out; with ';' it is sent empty. */
    strbuf_addf(&line, *value ? ": %s" : ";", value);
    h->lines[h->count++] = strbuf_take(&line);
}

/* What stands in a header's line must not end it. */
static bool cli_one_line(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return false;
    return true;
}

static int cli_put_headers(const struct cli *cli, struct cli_headers *h)
{
    if (cli_given(cli, CLI_TYPE) && !cli_one_line(cli->values[CLI_TYPE]))
        return cli_usage(cli, "--type \"%s\": a content type has no control characters",
                         cli_safe(cli->values[CLI_TYPE]));
    if (cli_given(cli, CLI_TYPE))
        cli_add_header(h, "Content-Type", 12, cli->values[CLI_TYPE]);
    if (cli_given(cli, CLI_IF_ABSENT))
        cli_add_header(h, "If-None-Match", 13, "*");
    for (unsigned i = 0; i < cli->meta_count; i++) {
        const char *equals = strchr(cli->metas[i], '=');
        struct strbuf name = STRBUF_INIT;
        size_t len;

        if (!equals || equals == cli->metas[i])
            return cli_usage(cli, "--meta \"%s\" is not NAME=VALUE", cli_safe(cli->metas[i]));
        len = (size_t)(equals - cli->metas[i]);
        if (!cli_one_line(equals))
            return cli_usage(cli, "--meta \"%s\": a value has no control characters",
                             cli_safe(cli->metas[i]));
        if (strspn(cli->metas[i], "abcdefghijklmnopqrstuvwxyz0123456789._-") != len)
            return cli_usage(cli, "--meta \"%s\": names are lower-case letters, digits, . _ -",
                             cli_safe(cli->metas[i]));
        strbuf_addf(&name, "X-Filmroom-Meta-%.*s", (int)len, cli->metas[i]);
        cli_add_header(h, name.data, name.len, equals + 1);
        strbuf_free(&name);
    }
    return CLI_OK;
}

/* Standard input, or the file; its size where it is known. */
static FILE *cli_put_open(const struct cli *cli, uint64_t *ret_size)
{
    const char *name = cli->args[1];
    FILE *f = name && strcmp(name, "-") != 0 ? fopen(name, "rb") : stdin;
    struct stat st;

    *ret_size = UINT64_MAX;
    if (!f) {
        cli_fail("%s cannot be read: %m", cli_safe(name));
    } else if (fstat(fileno(f), &st) == 0 && S_ISREG(st.st_mode) && f != stdin) {
        *ret_size = (uint64_t)st.st_size;
        if (*ret_size > BUCKET_OBJECT_MAX) {
            cli_fail("%s has %llu bytes, and an object at most %llu (8 GiB)", cli_safe(name),
                     (unsigned long long)*ret_size, (unsigned long long)BUCKET_OBJECT_MAX);
            fclose(f);
            f = NULL;
        }
    } else if (fstat(fileno(f), &st) == 0 && S_ISDIR(st.st_mode)) {
        cli_fail("%s is a directory", cli_safe(name ? name : "-"));
        fclose(f);
        f = NULL;
    }
    return f;
}

static int cli_put_send(struct cli *cli, const char *path, const struct cli_headers *h)
{
    struct cli_stream s = {.method = "PUT",
                           .path = path,
                           .headers = (const char *const *)h->lines,
                           .header_count = h->count};
    int verdict;

    s.from = cli_put_open(cli, &s.from_size);
    if (!s.from)
        return CLI_FAILED;
    verdict = cli_transfer(cli, &s);
    if (s.from != stdin)
        fclose(s.from);
    if (verdict != CLI_OK)
        return verdict;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(s.answer);
    else
        printf("%s %s, %llu bytes\n",
               json_is_true(json_object_get(s.answer, "replaced")) ? "replaced" : "stored",
               cli_safe(cli->args[0]), (unsigned long long)cli_number(s.answer, "size"));
    json_decref(s.answer);
    return CLI_OK;
}

int cli_object_put(struct cli *cli)
{
    struct cli_headers h = {.count = 0};
    char *path = cli_object_path(cli, "");
    int verdict = CLI_USAGE;

    if (path)
        verdict = cli_put_headers(cli, &h);
    if (verdict == CLI_OK)
        verdict = cli_put_send(cli, path, &h);
    for (size_t i = 0; i < h.count; i++)
        mem_free(h.lines[i]);
    mem_free(path);
    return verdict;
}

/* ---- get ------------------------------------------------------------------------------------ */

static bool cli_range_valid(const char *text)
{
    size_t first = strspn(text, "0123456789"), last;

    if (text[first] != '-')
        return false;
    last = strspn(text + first + 1, "0123456789");
    if (text[first + 1 + last] != 0 || first + last == 0 || first >= 19 || last >= 19)
        return false;
    return first == 0 || last == 0 ||
           strtoull(text, NULL, 10) <= strtoull(text + first + 1, NULL, 10);
}

/* Something that is not a file, as /dev/null or a pipe, is written as it is. */
static bool cli_is_special(const char *name)
{
    struct stat st;

    return stat(name, &st) == 0 && !S_ISREG(st.st_mode);
}

static int cli_get_to_file(const struct cli *cli, struct cli_stream *s)
{
    const char *name = cli->values[CLI_OUTPUT];
    bool special = cli_is_special(name);
    struct strbuf part = STRBUF_INIT;
    int verdict;

    strbuf_addf(&part, "%s%s", name, special ? "" : ".part");
    s->to = fopen(part.data, "wb");
    if (!s->to) {
        verdict = cli_fail("%s cannot be written: %m", cli_safe(part.data));
    } else {
        verdict = cli_transfer(cli, s);
        if (fclose(s->to) != 0 && verdict == CLI_OK)
            verdict = cli_fail("%s could not be written: %m", cli_safe(part.data));
        if (!special && verdict == CLI_OK && rename(part.data, name) != 0)
            verdict = cli_fail("%s cannot be made: %m", cli_safe(name));
        if (!special && verdict != CLI_OK)
            (void)unlink(part.data);
    }
    strbuf_free(&part);
    return verdict;
}

int cli_object_get(struct cli *cli)
{
    const char *range = cli->values[CLI_RANGE], *output = cli->values[CLI_OUTPUT];
    struct strbuf line = STRBUF_INIT;
    const char *headers[1];
    struct cli_stream s = {.method = "GET", .headers = headers, .to = stdout};
    char *path;
    int verdict;

    if (range && !cli_range_valid(range))
        return cli_usage(cli, "\"%s\" is not a range: write 0-99, 100- or -20", cli_safe(range));
    path = cli_object_path(cli, "");
    if (!path)
        return CLI_USAGE;
    s.path = path;
    if (range) {
        strbuf_addf(&line, "Range: bytes=%s", range);
        headers[s.header_count++] = line.data;
        s.partial = true;
    }
    verdict = output && strcmp(output, "-") != 0 ? cli_get_to_file(cli, &s) : cli_transfer(cli, &s);
    strbuf_free(&line);
    mem_free(path);
    return verdict;
}

/* ---- list ----------------------------------------------------------------------------------- */

struct cli_listing {
    json_t *all; /* the answer, with the objects of all pages */
    uint64_t limit;
    struct strbuf after;
    bool more;
};

static char *cli_page_path(const struct cli *cli, const struct cli_listing *l, uint64_t left)
{
    const char *arg = cli->args[0], *slash = strchr(arg, '/');
    char *bucket = mem_strdup(arg);
    struct strbuf path = STRBUF_INIT;

    if (slash)
        bucket[slash - arg] = 0;
    strbuf_adds(&path, "/v1/buckets/");
    cli_add_encoded(&path, bucket);
    strbuf_addf(&path, "/objects?limit=%llu", (unsigned long long)(left < 1000 ? left : 1000));
    if (slash && slash[1]) {
        strbuf_adds(&path, "&prefix=");
        cli_add_encoded(&path, slash + 1);
    }
    if (l->after.len) {
        strbuf_adds(&path, "&after=");
        cli_add_encoded(&path, l->after.data);
    }
    if (cli_given(cli, CLI_FOLDERS))
        strbuf_adds(&path, "&delimiter=%2F");
    mem_free(bucket);
    return strbuf_take(&path);
}

/* Takes the next page. CLI_OK or CLI_FAILED. */
static int cli_take_page(const struct cli *cli, struct cli_listing *l)
{
    json_t *objects = json_object_get(l->all, "objects"), *page, *rows;
    char *path = cli_page_path(cli, l, l->limit - json_array_size(objects));

    page = cli_get(cli, path);
    mem_free(path);
    if (!page)
        return CLI_FAILED;
    rows = json_object_get(page, "objects");
    l->more = json_is_true(json_object_get(page, "more")) && json_array_size(rows) > 0;
    if (json_array_size(rows)) {
        strbuf_reset(&l->after);
        strbuf_adds(&l->after, cli_text(json_array_get(rows, json_array_size(rows) - 1), "name"));
    }
    if (l->all) {
        json_array_extend(objects, rows);
        json_object_set(l->all, "more", json_object_get(page, "more"));
        json_decref(page);
    } else {
        l->all = page;
    }
    return CLI_OK;
}

static void cli_print_objects(const json_t *json)
{
    static const char *const headings[] = {">SIZE", "STORED (UTC)", "TYPE", "NAME"};
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_t *o;
    size_t i;

    json_array_foreach(json_object_get(json, "objects"), i, o)
    {
        bool folder = json_is_true(json_object_get(o, "prefix"));

        if (folder)
            cli_table_cell(t, "");
        else
            cli_table_size(t, cli_number(o, "size"));
        cli_table_cell(t, cli_text(o, "stored"));
        cli_table_cell(t, folder ? "folder" : cli_text(o, "type"));
        cli_table_cell(t, cli_text(o, "name"));
    }
    cli_table_print(t);
    cli_table_free(t);
}

int cli_object_list(struct cli *cli)
{
    struct cli_listing l = {.limit = UINT64_MAX};
    int verdict = CLI_OK;

    if (cli_given(cli, CLI_LIMIT)) {
        char *end;

        l.limit = strtoull(cli->values[CLI_LIMIT], &end, 10);
        if (*end || l.limit == 0 || cli->values[CLI_LIMIT][0] == '-')
            return cli_usage(cli, "--limit must be a number above 0");
    }
    if (cli_given(cli, CLI_AFTER))
        strbuf_adds(&l.after, cli->values[CLI_AFTER]);
    do
        verdict = cli_take_page(cli, &l);
    while (verdict == CLI_OK && l.more &&
           json_array_size(json_object_get(l.all, "objects")) < l.limit);
    if (verdict == CLI_OK && cli_given(cli, CLI_JSON)) {
        cli_print_json(l.all);
    } else if (verdict == CLI_OK) {
        cli_print_objects(l.all);
        if (l.more)
            fprintf(stderr, "There are more: go on with --after '%s'\n", cli_safe(l.after.data));
    }
    json_decref(l.all);
    strbuf_free(&l.after);
    return verdict;
}

/* ---- show, rm ------------------------------------------------------------------------------- */

static void cli_print_object(const json_t *o)
{
    const char *name;
    json_t *value;

    cli_print_field("Name", cli_text(o, "name"));
    cli_print_size("Size", cli_number(o, "size"));
    cli_print_field("Type", cli_text(o, "type"));
    cli_print_field("Stored", cli_text(o, "stored"));
    cli_print_field("ETag", cli_text(o, "etag"));
    json_object_foreach(json_object_get(o, "metadata"), name, value)
    {
        printf("%-14s%s = %s\n", "Metadata", cli_safe(name), cli_safe(json_string_value(value)));
    }
}

int cli_object_show(struct cli *cli)
{
    char *path = cli_object_path(cli, "?info=true");
    int verdict = path ? cli_show(cli, path, cli_print_object) : CLI_USAGE;

    mem_free(path);
    return verdict;
}

/* Instances are patients' data, and may lie in other programs' lists: they are not deleted as
 * easily as objects are. */
static int cli_rm_confirm(const struct cli *cli)
{
    struct strbuf question = STRBUF_INIT;
    int verdict;

    if (strncmp(cli->args[0], BUCKET_DICOM "/", sizeof(BUCKET_DICOM)) != 0 ||
        cli_given(cli, CLI_FORCE))
        return CLI_OK;
    strbuf_addf(&question, "Delete the DICOM instance %s? This cannot be undone.",
                cli_safe(cli->args[0] + sizeof(BUCKET_DICOM)));
    verdict = cli_confirm(cli, "--force", question.data);
    strbuf_free(&question);
    return verdict;
}

int cli_object_rm(struct cli *cli)
{
    char *path = cli_object_path(cli, "");
    struct cli_request r = {.method = "DELETE", .path = path};
    int verdict = path ? cli_rm_confirm(cli) : CLI_USAGE;

    if (verdict == CLI_OK)
        verdict = cli_ask(cli, &r);
    mem_free(path);
    if (verdict != CLI_OK)
        return verdict;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(r.answer);
    else
        printf("deleted %s\n", cli_safe(cli->args[0]));
    json_decref(r.answer);
    return CLI_OK;
}

/* filmroom bucket ...: make, list and delete buckets. */
#include <stdio.h>

#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

static char *cli_bucket_path(const char *name)
{
    struct strbuf path = STRBUF_INIT;

    strbuf_adds(&path, "/v1/buckets/");
    cli_add_encoded(&path, name);
    return strbuf_take(&path);
}

static void cli_print_buckets(const json_t *json)
{
    static const char *const headings[] = {"NAME", ">OBJECTS", ">SIZE", "CREATED (UTC)"};
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_t *b;
    size_t i;

    json_array_foreach(json_object_get(json, "buckets"), i, b)
    {
        cli_table_cell(t, cli_text(b, "name"));
        cli_table_number(t, cli_number(b, "objects"));
        cli_table_size(t, cli_number(b, "bytes"));
        cli_table_cell(t, cli_text(b, "created"));
    }
    cli_table_print(t);
    cli_table_free(t);
}

int cli_bucket_list(struct cli *cli)
{
    return cli_show(cli, "/v1/buckets", cli_print_buckets);
}

/* Sends the request and says what was done. */
static int cli_change_bucket(const struct cli *cli, struct cli_request *r, const char *done)
{
    int verdict = cli_ask(cli, r);

    if (verdict != CLI_OK)
        return verdict;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(r->answer);
    else
        printf("%s bucket %s\n", done, cli_safe(cli->args[0]));
    json_decref(r->answer);
    return CLI_OK;
}

int cli_bucket_create(struct cli *cli)
{
    json_t *body = json_pack("{s:s}", "name", cli->args[0]);
    int verdict;

    if (!body)
        return cli_usage(cli, "the name is not valid: use letters, digits, '.', '_' and '-'");
    verdict = cli_change_bucket(
        cli, &(struct cli_request){.method = "POST", .path = "/v1/buckets", .body = body},
        "created");
    json_decref(body);
    return verdict;
}

/* Says what would be lost and asks. */
static int cli_bucket_confirm(const struct cli *cli, const char *path)
{
    struct strbuf question = STRBUF_INIT;
    char size[SIZE_TEXT_MAX];
    json_t *b = cli_get(cli, path);
    int verdict;

    if (!b)
        return CLI_FAILED;
    strbuf_addf(&question, "Delete bucket %s and %llu objects, %s, in it? This cannot be undone.",
                cli_safe(cli->args[0]), (unsigned long long)cli_number(b, "objects"),
                size_format(cli_number(b, "bytes"), size));
    verdict = cli_confirm(cli, "--force", question.data);
    strbuf_free(&question);
    json_decref(b);
    return verdict;
}

int cli_bucket_delete(struct cli *cli)
{
    char *path = cli_bucket_path(cli->args[0]);
    struct strbuf full = STRBUF_INIT;
    int verdict = CLI_OK;

    strbuf_addf(&full, "%s%s", path, cli_given(cli, CLI_OBJECTS) ? "?objects=true" : "");
    if (cli_given(cli, CLI_OBJECTS) && !cli_given(cli, CLI_FORCE))
        verdict = cli_bucket_confirm(cli, path);
    if (verdict == CLI_OK)
        verdict = cli_change_bucket(
            cli, &(struct cli_request){.method = "DELETE", .path = full.data}, "deleted");
    strbuf_free(&full);
    mem_free(path);
    return verdict;
}

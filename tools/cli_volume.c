/* filmroom volume ...: create, list, show, resize and delete VM disks. */
#include <stdio.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

static char *cli_volume_path(const char *name)
{
    struct strbuf path = STRBUF_INIT;

    strbuf_adds(&path, "/v1/volumes/");
    cli_add_encoded(&path, name);
    return strbuf_take(&path);
}

/* "2024-01-31T08:15:00Z" as "2024-01-31 08:15". */
static const char *cli_time(const json_t *object, const char *name, char buf[20])
{
    const char *text = cli_text(object, name);

    if (strlen(text) < 16 || text[10] != 'T')
        return "-";
    snprintf(buf, 20, "%.10s %.5s", text, text + 11);
    return buf;
}

static void cli_print_volume(const json_t *v)
{
    char buf[20], clients[24], size[SIZE_TEXT_MAX];
    struct strbuf text = STRBUF_INIT;

    snprintf(clients, sizeof(clients), "%llu", (unsigned long long)cli_number(v, "openers"));
    strbuf_addf(&text, "%s (%llu bytes)", size_format(cli_number(v, "size"), size),
                (unsigned long long)cli_number(v, "size"));
    cli_print_field("Name", cli_text(v, "name"));
    cli_print_field("Size", text.data);
    cli_print_size("Mapped", cli_number(v, "mapped"));
    cli_print_field("Durability", cli_text(v, "durability"));
    cli_print_field("Clients", clients);
    if (json_object_get(v, "partition"))
        cli_print_field("Partition", cli_partition(v, "partition"));
    cli_print_field("Created (UTC)", cli_time(v, "created", buf));
    strbuf_free(&text);
}

/* A request that answers with the volume: prints `done` (a format for name and size), or JSON. */
static int cli_change_volume(const struct cli *cli, struct cli_request *r, const char *done)
{
    char size[SIZE_TEXT_MAX];
    int verdict = cli_ask(cli, r);

    if (verdict != CLI_OK)
        return verdict;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(r->answer);
    else
        printf("%s volume %s, %s\n", done, cli_safe(cli_text(r->answer, "name")),
               size_format(cli_number(r->answer, "size"), size));
    json_decref(r->answer);
    return CLI_OK;
}

int cli_volume_create(struct cli *cli)
{
    uint64_t size;
    json_t *body;
    int verdict = cli_size_arg(cli, cli->args[1], &size);

    if (verdict != CLI_OK)
        return verdict;
    body = json_pack("{s:s, s:I}", "name", cli->args[0], "size", (json_int_t)size);
    if (!body)
        return cli_usage(cli, "the name is not valid: use letters, digits, '.', '_' and '-'");
    if (cli_given(cli, CLI_DURABILITY))
        json_object_set_new(body, "durability", json_string(cli->values[CLI_DURABILITY]));
    verdict = cli_change_volume(
        cli, &(struct cli_request){.method = "POST", .path = "/v1/volumes", .body = body},
        "created");
    json_decref(body);
    return verdict;
}

int cli_volume_resize(struct cli *cli)
{
    char *path;
    uint64_t size;
    json_t *body;
    int verdict = cli_size_arg(cli, cli->args[1], &size);

    if (verdict != CLI_OK)
        return verdict;
    path = cli_volume_path(cli->args[0]);
    body = json_pack("{s:I}", "size", (json_int_t)size);
    if (cli_given(cli, CLI_SHRINK))
        json_object_set_new(body, "allow_shrink", json_true());
    verdict = cli_change_volume(
        cli, &(struct cli_request){.method = "PATCH", .path = path, .body = body}, "resized");
    json_decref(body);
    mem_free(path);
    return verdict;
}

static void cli_print_volumes(const json_t *json)
{
    static const char *const headings[] = {"NAME",     ">SIZE",         ">MAPPED",  "DURABILITY",
                                           ">CLIENTS", "CREATED (UTC)", "PARTITION"};
    json_t *volumes = json_object_get(json, "volumes"), *v;
    /* Volumes name their partition where there are several. */
    bool partitions = json_object_get(json_array_get(volumes, 0), "partition") != NULL;
    struct cli_table *t =
        cli_table_new(headings, sizeof(headings) / sizeof(headings[0]) - !partitions);
    size_t i;

    json_array_foreach(volumes, i, v)
    {
        char buf[20];

        cli_table_cell(t, cli_text(v, "name"));
        cli_table_size(t, cli_number(v, "size"));
        cli_table_size(t, cli_number(v, "mapped"));
        cli_table_cell(t, cli_text(v, "durability"));
        cli_table_number(t, cli_number(v, "openers"));
        cli_table_cell(t, cli_time(v, "created", buf));
        if (partitions)
            cli_table_cell(t, cli_partition(v, "partition"));
    }
    cli_table_print(t);
    cli_table_free(t);
}

int cli_volume_list(struct cli *cli)
{
    return cli_show(cli, "/v1/volumes", cli_print_volumes);
}

int cli_volume_show(struct cli *cli)
{
    char *path = cli_volume_path(cli->args[0]);
    int verdict = cli_show(cli, path, cli_print_volume);

    mem_free(path);
    return verdict;
}

/* Says what would be lost and asks. */
static int cli_volume_confirm(const struct cli *cli, const char *path)
{
    struct strbuf question = STRBUF_INIT;
    char mapped[SIZE_TEXT_MAX];
    json_t *v = cli_get(cli, path);
    int verdict;

    if (!v)
        return CLI_FAILED;
    strbuf_addf(&question, "Delete volume %s and the %s in it? This cannot be undone.",
                cli_safe(cli->args[0]), size_format(cli_number(v, "mapped"), mapped));
    verdict = cli_confirm(cli, "--force", question.data);
    strbuf_free(&question);
    json_decref(v);
    return verdict;
}

int cli_volume_delete(struct cli *cli)
{
    char *path = cli_volume_path(cli->args[0]);
    struct cli_request r = {.method = "DELETE", .path = path};
    int verdict = CLI_OK;

    if (!cli_given(cli, CLI_FORCE))
        verdict = cli_volume_confirm(cli, path);
    if (verdict == CLI_OK)
        verdict = cli_ask(cli, &r);
    mem_free(path);
    if (verdict != CLI_OK)
        return verdict;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(r.answer);
    else
        printf("deleted volume %s\n", cli_safe(cli->args[0]));
    json_decref(r.answer);
    return CLI_OK;
}

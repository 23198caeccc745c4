/* filmroom volume snapshot, snapshots, snapshot-delete, clone, rollback. */
#include <stdio.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

/* "/v1/volumes/NAME/snapshots", "/SNAP" and "/ACTION" as given. The caller's (mem_free). */
static char *cli_snapshot_path(const char *name, const char *snapshot, const char *action)
{
    struct strbuf path = STRBUF_INIT;

    strbuf_adds(&path, "/v1/volumes/");
    cli_add_encoded(&path, name);
    strbuf_adds(&path, "/snapshots");
    if (snapshot) {
        strbuf_adds(&path, "/");
        cli_add_encoded(&path, snapshot);
    }
    if (action)
        strbuf_addf(&path, "/%s", action);
    return strbuf_take(&path);
}

/* Asks, and prints the answer: as JSON, or what `say` makes of it. */
static int cli_snapshot_ask(struct cli *cli, struct cli_request *r,
                            void (*say)(const struct cli *cli, const json_t *answer))
{
    int verdict = cli_ask(cli, r);

    if (verdict != CLI_OK)
        return verdict;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(r->answer);
    else
        say(cli, r->answer);
    json_decref(r->answer);
    return CLI_OK;
}

/* "a,b" as a list of names. */
static json_t *cli_names(const char *text)
{
    json_t *names = json_array();

    for (;;) {
        size_t n = strcspn(text, ",");

        if (json_array_append_new(names, json_stringn(text, n)) < 0) {
            json_decref(names);
            return NULL; /* not UTF-8 */
        }
        if (!text[n])
            return names;
        text += n + 1;
    }
}

static void say_taken(const struct cli *cli, const json_t *answer)
{
    json_t *name;
    size_t i;

    (void)cli;
    json_array_foreach(json_object_get(answer, "snapshots"), i, name)
        printf("took snapshot %s\n", cli_safe(json_string_value(name)));
}

int cli_volume_snapshot(struct cli *cli)
{
    json_t *names = cli_names(cli->args[0]), *body = NULL;
    struct cli_request r = {.method = "POST", .path = "/v1/snapshots"};
    int verdict;

    if (names)
        body = json_pack("{s:o, s:s}", "volumes", names, "name", cli->args[1]);
    if (!body)
        return cli_usage(cli, "a name is not valid: use letters, digits, '.', '_' and '-'");
    r.body = body;
    verdict = cli_snapshot_ask(cli, &r, say_taken);
    json_decref(body);
    return verdict;
}

int cli_volume_snapshots(struct cli *cli)
{
    static const char *const headings[] = {"SNAPSHOT", ">SIZE", ">MAPPED", ">CLIENTS",
                                           "CREATED (UTC)"};
    char *path = cli_snapshot_path(cli->args[0], NULL, NULL);
    json_t *json = cli_get(cli, path), *v;
    struct cli_table *t;
    size_t i;

    mem_free(path);
    if (!json)
        return CLI_FAILED;
    if (cli_given(cli, CLI_JSON)) {
        cli_print_json(json);
        json_decref(json);
        return CLI_OK;
    }
    t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_array_foreach(json_object_get(json, "snapshots"), i, v)
    {
        const char *created = cli_text(v, "created");
        char when[20] = "-";

        if (strlen(created) >= 16 && created[10] == 'T')
            snprintf(when, sizeof(when), "%.10s %.5s", created, created + 11);
        cli_table_cell(t, cli_text(v, "name"));
        cli_table_size(t, cli_number(v, "size"));
        cli_table_size(t, cli_number(v, "mapped"));
        cli_table_number(t, cli_number(v, "openers"));
        cli_table_cell(t, when);
    }
    cli_table_print(t);
    cli_table_free(t);
    json_decref(json);
    return CLI_OK;
}

static int cli_snapshot_confirm(const struct cli *cli, const char *fmt)
{
    struct strbuf question = STRBUF_INIT;
    int verdict = CLI_OK;

    if (!cli_given(cli, CLI_FORCE)) {
        strbuf_addf(&question, "%s %s@", fmt, cli_safe(cli->args[0]));
        strbuf_addf(&question, "%s? This cannot be undone.", cli_safe(cli->args[1]));
        verdict = cli_confirm(cli, "--force", question.data);
    }
    strbuf_free(&question);
    return verdict;
}

static void say_deleted(const struct cli *cli, const json_t *answer)
{
    (void)answer;
    printf("deleted snapshot %s@", cli_safe(cli->args[0]));
    printf("%s\n", cli_safe(cli->args[1]));
}

int cli_volume_snapshot_delete(struct cli *cli)
{
    char *path = cli_snapshot_path(cli->args[0], cli->args[1], NULL);
    int verdict = cli_snapshot_confirm(cli, "Delete snapshot");

    if (verdict == CLI_OK)
        verdict = cli_snapshot_ask(cli, &(struct cli_request){.method = "DELETE", .path = path},
                                   say_deleted);
    mem_free(path);
    return verdict;
}

static void say_volume(const struct cli *cli, const json_t *answer)
{
    char size[SIZE_TEXT_MAX];

    (void)cli;
    printf("volume %s, %s\n", cli_safe(cli_text(answer, "name")),
           size_format(cli_number(answer, "size"), size));
}

static void say_cloned(const struct cli *cli, const json_t *answer)
{
    fputs("created ", stdout);
    say_volume(cli, answer);
}

int cli_volume_clone(struct cli *cli)
{
    const char *at = strchr(cli->args[0], '@');
    struct strbuf name = STRBUF_INIT;
    json_t *body;
    char *path;
    int verdict;

    if (!at)
        return cli_usage(cli, "\"%s\" is no snapshot: write NAME@SNAP", cli_safe(cli->args[0]));
    body = json_pack("{s:s}", "name", cli->args[1]);
    if (!body)
        return cli_usage(cli, "the name is not valid: use letters, digits, '.', '_' and '-'");
    strbuf_add(&name, cli->args[0], (size_t)(at - cli->args[0]));
    path = cli_snapshot_path(name.len ? name.data : "", at + 1, "clone");
    verdict = cli_snapshot_ask(
        cli, &(struct cli_request){.method = "POST", .path = path, .body = body}, say_cloned);
    json_decref(body);
    mem_free(path);
    strbuf_free(&name);
    return verdict;
}

static void say_rolled(const struct cli *cli, const json_t *answer)
{
    fputs("rolled back ", stdout);
    say_volume(cli, answer);
}

int cli_volume_rollback(struct cli *cli)
{
    char *path = cli_snapshot_path(cli->args[0], cli->args[1], "rollback");
    int verdict = cli_snapshot_confirm(cli, "Lose what was written since, and go back to");

    if (verdict == CLI_OK)
        verdict = cli_snapshot_ask(cli, &(struct cli_request){.method = "POST", .path = path},
                                   say_rolled);
    mem_free(path);
    return verdict;
}

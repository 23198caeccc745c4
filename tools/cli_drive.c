/* filmroom drive add, remove, keep, replace, rebuild, set-class. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

/* The daemon has a working directory of its own. Links are left as they are: the names below
 * /dev/disk stay right when others change. The caller's (mem_free); NULL after a message. */
static char *absolute(const char *path)
{
    struct strbuf s = STRBUF_INIT;
    char here[4096];

    if (path[0] != '/') {
        if (!getcwd(here, sizeof(here))) {
            (void)cli_fail("cannot tell the current directory: give an absolute path");
            return NULL;
        }
        strbuf_addf(&s, "%s/", here);
    }
    strbuf_adds(&s, path);
    return strbuf_take(&s);
}

#define DRIVE_REF 48 /* bytes of NUMBER or PARTITION:NUMBER with the NUL */

static bool is_reference(const char *text)
{
    const char *colon = strchr(text, ':'), *n = colon ? colon + 1 : text;

    return *n && strspn(n, "0123456789") == strlen(n) && strlen(n) < 8 &&
           strlen(text) < DRIVE_REF &&
           (!colon ||
            strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-_") == (size_t)(colon - text));
}

/* The drive that is meant: by its number, or the path that it has. CLI_OK or a verdict. */
static int find_drive(const struct cli *cli, const char *text, char ref[DRIVE_REF])
{
    json_t *json, *drive;
    char *path;
    bool found = false;
    size_t i;

    if (is_reference(text)) {
        (void)snprintf(ref, DRIVE_REF, "%s", text);
        return CLI_OK;
    }
    json = cli_get(cli, "/v1/drives");
    if (!json)
        return CLI_FAILED;
    path = absolute(text);
    json_array_foreach(json_object_get(json, "drives"), i, drive)
    {
        const char *has = cli_text(drive, "path"), *partition = cli_text(drive, "partition");

        if (!found && path && (strcmp(has, path) == 0 || strcmp(has, text) == 0)) {
            (void)snprintf(ref, DRIVE_REF, "%.32s%s%u", partition, *partition ? ":" : "",
                           (unsigned)cli_number(drive, "index"));
            found = true;
        }
    }
    mem_free(path);
    json_decref(json);
    return found ? CLI_OK
                 : cli_fail("no drive has the path %s: see filmroom drive list", cli_safe(text));
}

/* Sets a text of the command line, which JSON takes as UTF-8 only. CLI_OK or CLI_USAGE. */
static int set_text(const struct cli *cli, json_t *body, const char *name, const char *text)
{
    json_t *value = text ? json_string(text) : NULL;

    if (text && !value)
        return cli_usage(cli, "the %s \"%s\" is not UTF-8", name, cli_safe(text));
    if (value)
        (void)json_object_set_new(body, name, value);
    return CLI_OK;
}

/* What is to be said of a new drive. NULL after a message; *ret_verdict. */
static json_t *new_drive(const struct cli *cli, const char *path, int *ret_verdict)
{
    char *full = absolute(path);
    json_t *body = json_object();
    uint64_t size;

    *ret_verdict = full ? set_text(cli, body, "path", full) : CLI_FAILED;
    mem_free(full);
    if (*ret_verdict == CLI_OK && cli_given(cli, CLI_SIZE))
        *ret_verdict = cli_size_arg(cli, cli->values[CLI_SIZE], &size);
    if (*ret_verdict == CLI_OK && cli_given(cli, CLI_SIZE))
        (void)json_object_set_new(body, "size", json_integer((json_int_t)size));
    if (*ret_verdict == CLI_OK)
        *ret_verdict = set_text(cli, body, "partition", cli->values[CLI_PARTITION]);
    if (*ret_verdict == CLI_OK)
        *ret_verdict = set_text(cli, body, "class", cli->values[CLI_CLASS]);
    if (cli_given(cli, CLI_FORCE))
        (void)json_object_set_new(body, "force", json_true());
    if (*ret_verdict != CLI_OK) {
        json_decref(body);
        return NULL;
    }
    return body;
}

/* Takes the body. */
static int order(const struct cli *cli, const char *method, const char *path, json_t *body,
                 unsigned *ret_index)
{
    struct cli_request r = {.method = method, .path = path, .body = body};
    int verdict = cli_ask(cli, &r);

    json_decref(body);
    if (verdict != CLI_OK)
        return verdict;
    *ret_index = (unsigned)cli_number(r.answer, "drive");
    if (cli_given(cli, CLI_JSON))
        cli_print_json(r.answer);
    json_decref(r.answer);
    return CLI_OK;
}

/* POST /v1/drives/N/VERB. */
static int order_drive(const struct cli *cli, const char *text, const char *verb, json_t *body,
                       unsigned *ret_index)
{
    struct strbuf path = STRBUF_INIT;
    char ref[DRIVE_REF];
    int verdict = find_drive(cli, text, ref);

    if (verdict != CLI_OK) {
        json_decref(body);
        return verdict;
    }
    strbuf_addf(&path, "/v1/drives/%s%s%s", ref, *verb ? "/" : "", verb);
    verdict = order(cli, *verb ? "POST" : "PATCH", path.data, body, ret_index);
    strbuf_free(&path);
    return verdict;
}

static int said(const struct cli *cli, int verdict, const char *fmt, unsigned index)
    __attribute__((format(printf, 3, 0)));

static int said(const struct cli *cli, int verdict, const char *fmt, unsigned index)
{
    if (verdict == CLI_OK && !cli_given(cli, CLI_JSON)) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        printf(fmt, index);
#pragma GCC diagnostic pop
    }
    return verdict;
}

int cli_drive_add(struct cli *cli)
{
    int verdict;
    unsigned index = 0;
    json_t *body = new_drive(cli, cli->args[0], &verdict);

    if (!body)
        return verdict;
    verdict = order(cli, "POST", "/v1/drives", body, &index);
    return said(cli, verdict, "added drive %u; data is spread to it in the background\n", index);
}

int cli_drive_remove(struct cli *cli)
{
    unsigned index = 0;
    int verdict = order_drive(cli, cli->args[0], "remove", NULL, &index);

    return said(
        cli, verdict,
        "drive %u is leaving: it goes once its data is elsewhere, see filmroom drive list\n",
        index);
}

int cli_drive_keep(struct cli *cli)
{
    unsigned index = 0;
    int verdict = order_drive(cli, cli->args[0], "keep", NULL, &index);

    return said(cli, verdict, "drive %u stays\n", index);
}

int cli_drive_rebuild(struct cli *cli)
{
    unsigned index = 0;
    int verdict = order_drive(cli, cli->args[0], "rebuild", NULL, &index);

    return said(cli, verdict, "drive %u is given up: its data is written again to the others\n",
                index);
}

int cli_drive_replace(struct cli *cli)
{
    int verdict;
    unsigned index = 0;
    json_t *body = new_drive(cli, cli->args[1], &verdict);

    if (!body)
        return verdict;
    verdict = order_drive(cli, cli->args[0], "replace", body, &index);
    return said(cli, verdict,
                "added drive %u; the old one goes once its data is elsewhere, see filmroom drive "
                "list\n",
                index);
}

int cli_drive_set_class(struct cli *cli)
{
    unsigned index = 0;
    json_t *body = json_pack("{s:s}", "class", cli->args[1]);
    int verdict = body ? order_drive(cli, cli->args[0], "", body, &index)
                       : cli_usage(cli, "the class is nvme or disk");

    return said(cli, verdict, "drive %u has another class\n", index);
}

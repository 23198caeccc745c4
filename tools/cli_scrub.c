/* filmroom scrub start, stop, status. */
#include <stdio.h>
#include <string.h>

#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

static void add_duration(struct strbuf *s, uint64_t seconds)
{
    if (seconds >= 86400)
        strbuf_addf(s, "%llu d ", (unsigned long long)(seconds / 86400));
    if (seconds >= 3600)
        strbuf_addf(s, "%u h ", (unsigned)(seconds / 3600 % 24));
    if (seconds >= 60)
        strbuf_addf(s, "%u min", (unsigned)(seconds / 60 % 60));
    else
        strbuf_addf(s, "%u s", (unsigned)seconds);
}

/* "2024-01-31T08:15:00Z" as "2024-01-31 08:15 UTC". */
static void add_time(struct strbuf *s, const char *text)
{
    if (strlen(text) >= 16)
        strbuf_addf(s, "%.10s %.5s UTC", text, text + 11);
}

static void print_pass(const char *name, const json_t *pass)
{
    struct strbuf s = STRBUF_INIT;
    char size[SIZE_TEXT_MAX];
    uint64_t lost = cli_number(pass, "lost_chunks"), skipped = cli_number(pass, "skipped_segments");

    add_time(&s, cli_text(pass, "started"));
    strbuf_adds(&s, ", ");
    add_duration(&s, cli_number(pass, "seconds"));
    strbuf_addf(&s, ", %s verified", size_format(cli_number(pass, "bytes"), size));
    cli_print_field(name, s.data);
    strbuf_reset(&s);
    strbuf_addf(&s, "%llu wrong places found, %llu repaired, %llu chunks lost",
                (unsigned long long)cli_number(pass, "found"),
                (unsigned long long)cli_number(pass, "repaired"), (unsigned long long)lost);
    cli_print_field("", s.data);
    if (lost)
        cli_print_field("", "filmroom-fsck --deep tells what the lost chunks belong to");
    strbuf_reset(&s);
    strbuf_addf(&s, "%llu segments left out: too many of their drives are out",
                (unsigned long long)skipped);
    if (skipped)
        cli_print_field("", s.data);
    strbuf_free(&s);
}

static void print_progress(const json_t *json)
{
    struct strbuf s = STRBUF_INIT;
    char size[SIZE_TEXT_MAX];

    strbuf_addf(&s, "%llu %%", (unsigned long long)cli_number(json, "percent"));
    if (cli_number(json, "rate"))
        strbuf_addf(&s, ", %s/s", size_format(cli_number(json, "rate"), size));
    if (json_is_integer(json_object_get(json, "seconds_left"))) {
        strbuf_adds(&s, ", some ");
        add_duration(&s, cli_number(json, "seconds_left"));
        strbuf_adds(&s, " left");
    }
    cli_print_field("Progress", s.data);
    strbuf_free(&s);
}

static void print_status(const json_t *json)
{
    const json_t *pass = json_object_get(json, "pass"), *last = json_object_get(json, "last");
    struct strbuf s = STRBUF_INIT;

    cli_print_field("Scrub", cli_text(json, "state"));
    if (json_is_object(pass)) {
        print_progress(json);
        print_pass("This pass", pass);
    }
    if (json_is_object(last))
        print_pass("Last pass", last);
    else
        cli_print_field("Last pass", "none was finished yet");
    add_time(&s, cli_text(json, "next"));
    if (s.len)
        cli_print_field("Next pass", s.data);
    strbuf_free(&s);
}

/* The daemon is content with either, whatever was before; a person wants to know what that was. */
static int cli_scrub_order(const struct cli *cli, const char *path, const char *if_ran,
                           const char *if_not)
{
    struct cli_request r = {.method = "POST", .path = path};
    json_t *before = cli_get(cli, "/v1/scrub");
    bool ran = strcmp(cli_text(before, "state"), "running") == 0;
    int verdict = before ? cli_ask(cli, &r) : CLI_FAILED;

    json_decref(before);
    if (verdict != CLI_OK)
        return verdict;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(r.answer);
    else
        puts(ran ? if_ran : if_not);
    json_decref(r.answer);
    return CLI_OK;
}

int cli_scrub_start(struct cli *cli)
{
    return cli_scrub_order(cli, "/v1/scrub/start", "scrub is running already", "scrub is running");
}

int cli_scrub_stop(struct cli *cli)
{
    return cli_scrub_order(cli, "/v1/scrub/stop", "scrub is stopped; start goes on from there",
                           "scrub was not running");
}

int cli_scrub_status(struct cli *cli)
{
    json_t *json = cli_get(cli, "/v1/scrub");

    if (!json)
        return CLI_FAILED;
    if (cli_given(cli, CLI_JSON))
        cli_print_json(json);
    else
        print_status(json);
    json_decref(json);
    return CLI_OK;
}

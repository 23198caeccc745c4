/* filmroom study ...: list, show and delete DICOM studies.
 *
 * Deleting a large study takes a while, so it is done series by series with a line of progress, and
 * at the end the study itself, which also takes what arrived meanwhile. Interrupted, it leaves
 * whole series; the same command goes on from there.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

static char *cli_study_path(const char *study, const char *series)
{
    struct strbuf path = STRBUF_INIT;

    strbuf_adds(&path, "/v1/studies/");
    cli_add_encoded(&path, study);
    if (series) {
        strbuf_adds(&path, "/series/");
        cli_add_encoded(&path, series);
    }
    return strbuf_take(&path);
}

/* "CT,SR". The caller frees. */
static char *cli_joined(const json_t *array)
{
    struct strbuf s = STRBUF_INIT;
    json_t *v;
    size_t i;

    strbuf_adds(&s, "");
    json_array_foreach((json_t *)(uintptr_t)array, i, v)
    {
        strbuf_adds(&s, i ? "," : "");
        strbuf_adds(&s, json_string_value(v) ? json_string_value(v) : "");
    }
    return strbuf_take(&s);
}

/* ---- list ----------------------------------------------------------------------------------- */

/* The path of a list with the options that narrow it. The caller frees. */
static char *cli_list_path(const struct cli *cli, const char *resource)
{
    static const struct {
        enum cli_option option;
        const char *name;
    } args[] = {{CLI_PATIENT, "patient"},   {CLI_NAME, "name"},           {CLI_DATE, "date"},
                {CLI_MODALITY, "modality"}, {CLI_ACCESSION, "accession"}, {CLI_LIMIT, "limit"},
                {CLI_OFFSET, "offset"}};
    struct strbuf path = STRBUF_INIT;
    char sep = '?';

    strbuf_adds(&path, resource);
    for (size_t i = 0; i < sizeof(args) / sizeof(args[0]); i++)
        if (cli_given(cli, args[i].option)) {
            strbuf_addf(&path, "%c%s=", sep, args[i].name);
            cli_add_encoded(&path, cli->values[args[i].option]);
            sep = '&';
        }
    return strbuf_take(&path);
}

/* A list that was cut: how to go on, on stderr. */
static void cli_tell_more(const json_t *json, const char *list)
{
    if (json_is_true(json_object_get(json, "more")))
        fprintf(stderr, "There are more: go on with --offset %llu\n",
                (unsigned long long)(cli_number(json, "offset") +
                                     json_array_size(json_object_get(json, list))));
}

int cli_list(const struct cli *cli, const char *resource, const char *list,
             void (*print)(const json_t *json))
{
    char *path = cli_list_path(cli, resource);
    json_t *json = cli_get(cli, path);

    mem_free(path);
    if (!json)
        return CLI_FAILED;
    if (cli_given(cli, CLI_JSON)) {
        cli_print_json(json);
    } else {
        print(json);
        cli_tell_more(json, list);
    }
    json_decref(json);
    return CLI_OK;
}

void cli_print_studies(const json_t *json)
{
    static const char *const headings[] = {"PATIENT ID", "NAME",        "DATE",
                                           "MODALITY",   ">SERIES",     ">INSTANCES",
                                           ">SIZE",      "DESCRIPTION", "STUDY UID"};
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_t *study;
    size_t i;

    json_array_foreach(json_object_get(json, "studies"), i, study)
    {
        char *modalities = cli_joined(json_object_get(study, "modalities")), buf[12];

        cli_table_cell(t, cli_text(study, "patient_id"));
        cli_table_cell(t, cli_text(study, "patient_name"));
        cli_table_cell(t, cli_date(cli_text(study, "date"), buf));
        cli_table_cell(t, modalities);
        cli_table_number(t, cli_number(study, "series"));
        cli_table_number(t, cli_number(study, "instances"));
        cli_table_size(t, cli_number(study, "bytes"));
        cli_table_cell(t, cli_text(study, "description"));
        cli_table_cell(t, cli_text(study, "study_uid"));
        mem_free(modalities);
    }
    cli_table_print(t);
    cli_table_free(t);
}

int cli_study_list(struct cli *cli)
{
    return cli_list(cli, "/v1/studies", "studies", cli_print_studies);
}

/* ---- show ----------------------------------------------------------------------------------- */

static void cli_print_series(const json_t *study)
{
    static const char *const headings[] = {">NUMBER", "MODALITY",    ">INSTANCES",
                                           ">SIZE",   "DESCRIPTION", "SERIES UID"};
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_t *series;
    size_t i;

    json_array_foreach(json_object_get(study, "series_list"), i, series)
    {
        cli_table_cell(t, cli_text(series, "number"));
        cli_table_cell(t, cli_text(series, "modality"));
        cli_table_number(t, cli_number(series, "instances"));
        cli_table_size(t, cli_number(series, "bytes"));
        cli_table_cell(t, cli_text(series, "description"));
        cli_table_cell(t, cli_text(series, "series_uid"));
    }
    cli_table_print(t);
    cli_table_free(t);
}

static void cli_print_study(const json_t *study)
{
    char *modalities = cli_joined(json_object_get(study, "modalities")), buf[12];

    cli_print_field("Study UID", cli_text(study, "study_uid"));
    cli_print_field("Patient ID", cli_text(study, "patient_id"));
    cli_print_field("Patient name", cli_text(study, "patient_name"));
    cli_print_field("Date", cli_date(cli_text(study, "date"), buf));
    cli_print_field("Accession", cli_text(study, "accession"));
    cli_print_field("Description", cli_text(study, "description"));
    cli_print_field("Modalities", modalities);
    printf("%-14s%llu\n", "Instances", (unsigned long long)cli_number(study, "instances"));
    cli_print_size("Size", cli_number(study, "bytes"));
    cli_print_field("Last stored", cli_text(study, "stored"));
    fputc('\n', stdout);
    cli_print_series(study);
    mem_free(modalities);
}

static json_t *cli_study_get(const struct cli *cli)
{
    char *path = cli_study_path(cli->args[0], NULL);
    json_t *study = cli_get(cli, path);

    mem_free(path);
    return study;
}

int cli_study_show(struct cli *cli)
{
    char *path = cli_study_path(cli->args[0], NULL);
    int verdict = cli_show(cli, path, cli_print_study);

    mem_free(path);
    return verdict;
}

/* ---- delete --------------------------------------------------------------------------------- */

struct cli_deletion {
    uint64_t total, instances, bytes;
    bool show; /* progress, on a terminal */
};

static void cli_show_progress(const struct cli_deletion *d)
{
    if (d->show)
        fprintf(stderr, "\rdeleting: %llu of %llu instances", (unsigned long long)d->instances,
                (unsigned long long)d->total);
}

/* A series or (series NULL) the rest of the study. That it is gone already is fine. */
static int cli_delete_part(const struct cli *cli, struct cli_deletion *d, const char *series)
{
    char *path = cli_study_path(cli->args[0], series);
    struct cli_request r = {.method = "DELETE", .path = path, .quiet_if_missing = true};
    int verdict = cli_ask(cli, &r);

    mem_free(path);
    if (verdict == CLI_OK) {
        const json_t *deleted = json_object_get(r.answer, "deleted");

        d->instances += cli_number(deleted, "instances");
        d->bytes += cli_number(deleted, "bytes");
        json_decref(r.answer);
    } else if (r.status == 404) {
        verdict = CLI_OK;
    }
    cli_show_progress(d);
    return verdict;
}

static int cli_delete_all(const struct cli *cli, const json_t *study, struct cli_deletion *d)
{
    const json_t *list = json_object_get(study, "series_list");
    int verdict = CLI_OK;

    cli_show_progress(d);
    if (json_array_size(list) > 1)
        for (size_t i = 0; i < json_array_size(list) && verdict == CLI_OK; i++)
            verdict = cli_delete_part(cli, d, cli_text(json_array_get(list, i), "series_uid"));
    if (verdict == CLI_OK)
        verdict = cli_delete_part(cli, d, NULL);
    if (d->show)
        fputc('\n', stderr);
    if (verdict != CLI_OK && d->instances)
        fprintf(stderr,
                "%llu instances were deleted before that: give the command again to go on\n",
                (unsigned long long)d->instances);
    return verdict;
}

static int cli_study_confirm(const struct cli *cli, const json_t *study)
{
    struct strbuf question = STRBUF_INIT;
    char size[SIZE_TEXT_MAX];
    int verdict;

    strbuf_addf(&question,
                "Delete study %s of patient %s (%s): %llu instances, %s? This cannot be undone.",
                cli_safe(cli_text(study, "study_uid")), cli_safe(cli_text(study, "patient_id")),
                cli_safe(cli_text(study, "patient_name")),
                (unsigned long long)cli_number(study, "instances"),
                size_format(cli_number(study, "bytes"), size));
    verdict = cli_confirm(cli, "--force", question.data);
    strbuf_free(&question);
    return verdict;
}

static void cli_print_deletion(const struct cli *cli, const struct cli_deletion *d)
{
    char size[SIZE_TEXT_MAX];
    json_t *json;

    if (!cli_given(cli, CLI_JSON)) {
        printf("deleted study %s: %llu instances, %s\n", cli_safe(cli->args[0]),
               (unsigned long long)d->instances, size_format(d->bytes, size));
        return;
    }
    json = json_pack("{s:{s:s, s:I, s:I}}", "deleted", "study_uid", cli->args[0], "instances",
                     (json_int_t)d->instances, "bytes", (json_int_t)d->bytes);
    cli_print_json(json);
    json_decref(json);
}

int cli_study_delete(struct cli *cli)
{
    json_t *study = cli_study_get(cli);
    struct cli_deletion d = {.show = isatty(STDERR_FILENO) != 0};
    int verdict = CLI_OK;

    if (!study)
        return CLI_FAILED;
    d.total = cli_number(study, "instances");
    if (!cli_given(cli, CLI_FORCE))
        verdict = cli_study_confirm(cli, study);
    if (verdict == CLI_OK)
        verdict = cli_delete_all(cli, study, &d);
    if (verdict == CLI_OK)
        cli_print_deletion(cli, &d);
    json_decref(study);
    return verdict;
}

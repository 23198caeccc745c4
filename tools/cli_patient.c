/* filmroom patient ...: list and show patients, as the studies make them. A patient comes with its
 * first study and goes with its last; one Patient ID of two issuers is two patients, so showing an
 * ID shows whoever has it.
 */
#include <stdio.h>

#include "lib/base/strbuf.h"
#include "tools/cli.h"

static void cli_print_patients(const json_t *json)
{
    static const char *const headings[] = {"PATIENT ID", "ISSUER", "NAME",
                                           "BIRTH DATE", "SEX",    ">STUDIES"};
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_t *patient;
    char buf[12];
    size_t i;

    json_array_foreach(json_object_get(json, "patients"), i, patient)
    {
        cli_table_cell(t, cli_text(patient, "patient_id"));
        cli_table_cell(t, cli_text(patient, "issuer"));
        cli_table_cell(t, cli_text(patient, "patient_name"));
        cli_table_cell(t, cli_date(cli_text(patient, "birth_date"), buf));
        cli_table_cell(t, cli_text(patient, "sex"));
        cli_table_number(t, cli_number(patient, "studies"));
    }
    cli_table_print(t);
    cli_table_free(t);
}

int cli_patient_list(struct cli *cli)
{
    return cli_list(cli, "/v1/patients", "patients", cli_print_patients);
}

static void cli_print_shown(const json_t *json)
{
    cli_print_patients(json);
    fputc('\n', stdout);
    cli_print_studies(json);
    if (json_is_true(json_object_get(json, "studies_more")))
        fprintf(stderr, "There are more studies: go on with study list --patient ID --offset %zu\n",
                json_array_size(json_object_get(json, "studies")));
}

int cli_patient_show(struct cli *cli)
{
    struct strbuf path = STRBUF_INIT;
    int verdict;

    strbuf_adds(&path, "/v1/patients/");
    cli_add_encoded(&path, cli->args[0]);
    verdict = cli_show(cli, path.data, cli_print_shown);
    strbuf_free(&path);
    return verdict;
}

/* filmroom stats: the latencies and counters of the daemon, from /v1/stats (proto/admin). */
#include <stdio.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

#define STATS_PREFIX "filmroom_"

static bool stats_ends(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* "filmroom_block_seconds" with op="read" as "block read". */
static char *stats_name(const json_t *series)
{
    static const char *const ends[] = {"_seconds", "_total"};
    const char *name = cli_text(series, "name"), *key;
    struct strbuf s = STRBUF_INIT;
    json_t *value;

    if (strncmp(name, STATS_PREFIX, strlen(STATS_PREFIX)) == 0)
        name += strlen(STATS_PREFIX);
    strbuf_adds(&s, name);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        if (stats_ends(s.data, ends[i])) {
            s.len -= strlen(ends[i]);
            s.data[s.len] = 0;
        }
    json_object_foreach(json_object_get(series, "labels"), key, value)
    {
        const char *text = json_string_value(value);

        if (strcmp(key, "drive") == 0)
            strbuf_adds(&s, " of drive");
        strbuf_addf(&s, " %s", text ? text : "");
    }
    for (char *p = s.data; *p; p++)
        if (*p == '_')
            *p = ' ';
    return strbuf_take(&s);
}

/* Three figures: "12 us", "3.46 ms", "1.20 s". */
static void stats_duration(struct cli_table *t, uint64_t ns)
{
    static const struct {
        uint64_t ns;
        const char *name;
    } units[] = {{1000000000, "s"}, {1000000, "ms"}, {1000, "us"}};
    struct strbuf s = STRBUF_INIT;
    size_t i = 0;
    double n;

    while (i < 2 && ns < units[i].ns)
        i++;
    n = (double)ns / (double)units[i].ns;
    strbuf_addf(&s, "%.*f %s", n >= 99.95 ? 0 : n >= 9.995 ? 1 : 2, n, units[i].name);
    cli_table_cell(t, s.data);
    strbuf_free(&s);
}

static void stats_amount(struct cli_table *t, const json_t *series, const char *field)
{
    uint64_t n = cli_number(series, field);
    const char *name = cli_text(series, "name");

    if (strcmp(cli_text(series, "unit"), "ns") == 0)
        stats_duration(t, n);
    else if (stats_ends(name, "_bytes") || stats_ends(name, "_bytes_total"))
        cli_table_size(t, n);
    else
        cli_table_number(t, n);
}

/* Histograms in which there is something; times, or (`times` false) the rest. */
static void stats_histograms(const json_t *metrics, bool times)
{
    static const char *const fields[] = {"p50", "p90", "p99", "max"};
    const char *headings[] = {times ? "TIME" : "SIZE", ">COUNT", ">P50", ">P90", ">P99", ">MAX"};
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_t *series;
    size_t i, rows = 0;

    json_array_foreach((json_t *)(uintptr_t)metrics, i, series)
    {
        bool is_time = strcmp(cli_text(series, "unit"), "ns") == 0;
        char *name;

        if (strcmp(cli_text(series, "kind"), "histogram") != 0 || is_time != times ||
            cli_number(series, "count") == 0)
            continue;
        rows++;
        name = stats_name(series);
        cli_table_cell(t, name);
        mem_free(name);
        cli_table_number(t, cli_number(series, "count"));
        for (size_t f = 0; f < sizeof(fields) / sizeof(fields[0]); f++)
            stats_amount(t, series, fields[f]);
    }
    if (rows) {
        cli_table_print(t);
        putchar('\n');
    }
    cli_table_free(t);
}

/* Counters that are not 0. */
static void stats_counters(const json_t *metrics)
{
    static const char *const headings[] = {"COUNTER", ">SINCE START"};
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_t *series;
    size_t i;

    json_array_foreach((json_t *)(uintptr_t)metrics, i, series)
    {
        char *name;

        if (strcmp(cli_text(series, "kind"), "counter") != 0 || cli_number(series, "value") == 0)
            continue;
        name = stats_name(series);
        cli_table_cell(t, name);
        mem_free(name);
        stats_amount(t, series, "value");
    }
    cli_table_print(t);
    cli_table_free(t);
}

int cli_stats(struct cli *cli)
{
    json_t *json = cli_get(cli, "/v1/stats");
    const json_t *metrics;

    if (!json)
        return CLI_FAILED;
    if (cli_given(cli, CLI_JSON)) {
        cli_print_json(json);
        json_decref(json);
        return CLI_OK;
    }
    metrics = json_object_get(json, "metrics");
    stats_histograms(metrics, true);
    stats_histograms(metrics, false);
    stats_counters(metrics);
    json_decref(json);
    return CLI_OK;
}

/* filmroom status, filmroom df and filmroom drive list: how the store and its drives are. */
#include <stdio.h>
#include <string.h>

#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

static void cli_print_uptime(const json_t *status)
{
    uint64_t seconds = cli_number(status, "uptime_seconds");
    const json_t *start = json_object_get(status, "start");
    struct strbuf s = STRBUF_INIT;

    if (seconds >= 86400)
        strbuf_addf(&s, "%llu d ", (unsigned long long)(seconds / 86400));
    if (seconds >= 3600)
        strbuf_addf(&s, "%u h ", (unsigned)(seconds / 3600 % 24));
    strbuf_addf(&s, "%u min", (unsigned)(seconds / 60 % 60));
    if (seconds < 3600)
        strbuf_addf(&s, " %u s", (unsigned)(seconds % 60));
    strbuf_addf(&s, ", started in %.1f s", (double)cli_number(start, "milliseconds") / 1000);
    if (cli_number(start, "replayed_records"))
        strbuf_addf(&s, " (%llu records replayed)",
                    (unsigned long long)cli_number(start, "replayed_records"));
    cli_print_field("Up for", s.data);
    strbuf_free(&s);
}

static void cli_print_state(const json_t *status)
{
    const json_t *reasons = json_object_get(status, "reasons"), *reason;
    struct strbuf profile = STRBUF_INIT;
    size_t i;

    cli_print_field("State", cli_text(status, "state"));
    json_array_foreach((json_t *)(uintptr_t)reasons, i, reason)
        cli_print_field("", json_string_value(reason) ? json_string_value(reason) : "");
    strbuf_addf(&profile, "%s, %llu of %llu drives in service", cli_text(status, "profile"),
                (unsigned long long)cli_number(status, "drives_ok"),
                (unsigned long long)cli_number(status, "drives"));
    cli_print_field("Profile", profile.data);
    strbuf_free(&profile);
}

static void cli_print_listeners(const json_t *status)
{
    const json_t *listeners = json_object_get(status, "listeners"), *l;
    size_t i;

    json_array_foreach((json_t *)(uintptr_t)listeners, i, l)
    {
        const char *addr = cli_text(l, "addr");

        printf("%-14s%-6s %s\n", i == 0 ? "Serves" : "", cli_safe(cli_text(l, "name")),
               cli_safe(strncmp(addr, "tcp:", 4) == 0 ? addr + 4 : addr));
    }
}

/* a/b as "2.13x", "-" when there is nothing. */
static void cli_add_ratio(struct strbuf *s, const char *what, uint64_t a, uint64_t b)
{
    if (a && b)
        strbuf_addf(s, " (%s %.2fx)", what, (double)a / (double)b);
}

/* The capacity is one of bytes as they are stored: `of` it, where it is not 0. */
static void cli_print_amount(const char *name, uint64_t bytes, const char *what, uint64_t before,
                             uint64_t of)
{
    char text[SIZE_TEXT_MAX];
    struct strbuf s = STRBUF_INIT;

    strbuf_adds(&s, size_format(bytes, text));
    cli_add_ratio(&s, what, before, bytes);
    if (of)
        strbuf_addf(&s, ", %.1f%% of %s", 100.0 * (double)bytes / (double)of,
                    size_format(of, text));
    cli_print_field(name, s.data);
    strbuf_free(&s);
}

static void cli_print_share(const char *name, uint64_t used, uint64_t size)
{
    char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];
    struct strbuf s = STRBUF_INIT;

    strbuf_addf(&s, "%s of %s", size_format(used, a), size_format(size, b));
    if (size)
        strbuf_addf(&s, " (%.1f%%)", 100.0 * (double)used / (double)size);
    cli_print_field(name, s.data);
    strbuf_free(&s);
}

static void cli_print_capacity(const json_t *status)
{
    const json_t *c = json_object_get(status, "capacity"), *j = json_object_get(status, "journal");
    uint64_t logical = cli_number(c, "logical"), deduped = cli_number(c, "deduped"),
             stored = cli_number(c, "stored");

    cli_print_size("Used", logical);
    cli_print_amount("Deduplicated", deduped, "dedup", logical, 0);
    cli_print_amount("Compressed", stored, "compression", deduped, cli_number(c, "limit"));
    cli_print_size("With parity", cli_number(c, "physical"));
    cli_print_size("Reclaimable", cli_number(c, "reclaimable"));
    cli_print_size("Drives free", cli_number(c, "free"));
    cli_print_share("Journal", cli_number(j, "used"), cli_number(j, "size"));
}

/* Where there are several: how full each is, since a volume lies in one of them. */
static void cli_print_partitions(const json_t *status)
{
    const json_t *partitions = json_object_get(status, "partitions"), *p;
    struct strbuf s = STRBUF_INIT;
    char text[SIZE_TEXT_MAX];
    size_t i;

    json_array_foreach((json_t *)(uintptr_t)partitions, i, p)
    {
        if (json_array_size(partitions) == 1)
            break;
        strbuf_reset(&s);
        strbuf_addf(&s, "%s: %s", cli_partition(p, "name"),
                    size_format(cli_number(p, "stored"), text));
        strbuf_addf(&s, " of %s,", size_format(cli_number(p, "limit"), text));
        strbuf_addf(&s, " %s free", size_format(cli_number(p, "free"), text));
        cli_print_field(i ? "" : "Partitions", s.data);
    }
    strbuf_free(&s);
}

/* How many bytes went to the drives for each that clients wrote, since the start. */
static void cli_print_amplification(const json_t *counters)
{
    uint64_t client = cli_number(counters, "client_bytes"),
             drive = cli_number(counters, "drive_bytes");
    char a[SIZE_TEXT_MAX], b[SIZE_TEXT_MAX];
    struct strbuf s = STRBUF_INIT;

    if (client == 0)
        return;
    strbuf_addf(&s, "%s by clients, %s to drives (%.1f to one)", size_format(client, a),
                size_format(drive, b), (double)drive / (double)client);
    cli_print_field("Written", s.data);
    strbuf_free(&s);
}

/* "3 GiB to go, 4 min", empty when there is nothing to do. */
static void cli_add_work(struct strbuf *s, const json_t *work)
{
    uint64_t eta = cli_number(work, "eta_seconds");
    char text[SIZE_TEXT_MAX];

    if (cli_number(work, "bytes") == 0)
        return;
    strbuf_addf(s, "%s to go", size_format(cli_number(work, "bytes"), text));
    if (eta >= 7200)
        strbuf_addf(s, ", %llu h", (unsigned long long)(eta / 3600));
    else if (eta >= 120)
        strbuf_addf(s, ", %llu min", (unsigned long long)(eta / 60));
    else if (eta)
        strbuf_addf(s, ", %llu s", (unsigned long long)eta);
}

static void cli_print_work(const json_t *status)
{
    static const struct {
        const char *json, *name;
    } rows[] = {{"rebuild", "Rebuild"}, {"leaving", "Leaving"}, {"rebalance", "Rebalance"}};
    const json_t *works = json_object_get(status, "work");
    uint64_t rate = cli_number(works, "rate");
    char text[SIZE_TEXT_MAX];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct strbuf s = STRBUF_INIT;

        cli_add_work(&s, json_object_get(works, rows[i].json));
        if (s.len && rate)
            strbuf_addf(&s, ", at %s/s", size_format(rate, text));
        if (s.len)
            cli_print_field(rows[i].name, s.data);
        strbuf_free(&s);
    }
}

static void cli_print_counters(const json_t *status)
{
    static const struct {
        const char *json, *text;
    } rows[] = {{"identical_instances", "identical instances sent again"},
                {"replaced_instances", "instances replaced by other content"},
                {"refused_conflicts", "instances refused: stored with other content"},
                {"repaired", "corruptions repaired"}};
    const json_t *counters = json_object_get(status, "counters");
    bool first = true;

    cli_print_amplification(counters);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint64_t n = cli_number(counters, rows[i].json);

        if (n == 0)
            continue;
        printf("%-14s%llu %s\n", first ? "Since start" : "", (unsigned long long)n, rows[i].text);
        first = false;
    }
}

int cli_status(struct cli *cli)
{
    json_t *status = cli_get(cli, "/v1/status");
    struct strbuf contents = STRBUF_INIT;

    if (!status)
        return CLI_FAILED;
    if (cli_given(cli, CLI_JSON)) {
        cli_print_json(status);
        json_decref(status);
        return CLI_OK;
    }
    cli_print_field("Filmroom", cli_text(status, "version"));
    cli_print_uptime(status);
    cli_print_state(status);
    cli_print_listeners(status);
    strbuf_addf(&contents, "%llu volumes, %llu studies, %llu instances, %llu objects",
                (unsigned long long)cli_number(status, "volumes"),
                (unsigned long long)cli_number(status, "studies"),
                (unsigned long long)cli_number(status, "instances"),
                (unsigned long long)cli_number(status, "objects"));
    cli_print_field("Holds", contents.data);
    cli_print_capacity(status);
    cli_print_partitions(status);
    cli_print_work(status);
    cli_print_counters(status);
    strbuf_free(&contents);
    json_decref(status);
    return CLI_OK;
}

/* a/b with the unit behind it, "-" when there is no b. */
static void cli_df_ratio(struct cli_table *t, double a, double b, const char *unit)
{
    char text[32] = "-";

    if (b > 0)
        snprintf(text, sizeof(text), "%.1f%s", a / b, unit);
    cli_table_cell(t, text);
}

static void cli_df_row(struct cli_table *t, const char *name, const json_t *capacity,
                       const json_t *counters)
{
    static const char *const sizes[] = {"logical",  "deduped",     "stored",
                                        "physical", "reclaimable", "limit"};

    cli_table_cell(t, name);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        cli_table_size(t, cli_number(capacity, sizes[i]));
    cli_df_ratio(t, 100.0 * (double)cli_number(capacity, "stored"),
                 (double)cli_number(capacity, "limit"), "%");
    cli_table_size(t, cli_number(capacity, "free"));
    cli_df_ratio(t, (double)cli_number(counters, "drive_bytes"),
                 (double)cli_number(counters, "client_bytes"), "");
}

static void cli_print_df(const json_t *status)
{
    static const char *const headings[] = {
        "PARTITION",    ">USED",     ">DEDUPLICATED", ">COMPRESSED",  ">WITH PARITY",
        ">RECLAIMABLE", ">CAPACITY", ">USE%",         ">DRIVES FREE", ">AMPLIFICATION"};
    const json_t *partitions = json_object_get(status, "partitions"), *p;
    struct cli_table *t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    size_t i;

    json_array_foreach((json_t *)(uintptr_t)partitions, i, p)
        cli_df_row(t, cli_partition(p, "name"), p, p);
    if (json_array_size(partitions) > 1)
        cli_df_row(t, "total", json_object_get(status, "capacity"),
                   json_object_get(status, "counters"));
    cli_table_print(t);
    cli_table_free(t);
}

int cli_df(struct cli *cli)
{
    return cli_show(cli, "/v1/status", cli_print_df);
}

/* The index, in another partition than the first as NAME:INDEX. */
static void cli_drive_name(struct cli_table *t, json_t *drive)
{
    const char *partition = cli_text(drive, "partition");
    struct strbuf name = STRBUF_INIT;

    strbuf_addf(&name, "%s%s%llu", partition, *partition ? ":" : "",
                (unsigned long long)cli_number(drive, "index"));
    cli_table_cell(t, name.data);
    strbuf_free(&name);
}

int cli_drive_list(struct cli *cli)
{
    static const char *const headings[] = {
        ">DRIVE",       "STATE",         "CLASS",     ">SIZE",     ">USED",
        ">READ ERRORS", ">WRITE ERRORS", ">TIMEOUTS", ">REPAIRED", ">SCRUB FOUND",
        ">UNREPAIRED",  "LEAVES",        "REASON",    "PATH"};
    json_t *json = cli_get(cli, "/v1/drives"), *drive;
    struct strbuf leaves = STRBUF_INIT;
    struct cli_table *t;
    size_t i;

    if (!json)
        return CLI_FAILED;
    if (cli_given(cli, CLI_JSON)) {
        cli_print_json(json);
        json_decref(json);
        return CLI_OK;
    }
    t = cli_table_new(headings, sizeof(headings) / sizeof(headings[0]));
    json_array_foreach(json_object_get(json, "drives"), i, drive)
    {
        bool leaving = json_is_true(json_object_get(drive, "leaving"));

        cli_drive_name(t, drive);
        cli_table_cell(t, leaving && strcmp(cli_text(drive, "state"), "ok") == 0
                              ? "leaving"
                              : cli_text(drive, "state"));
        cli_table_cell(t, cli_text(drive, "class"));
        cli_table_size(t, cli_number(drive, "size"));
        cli_table_size(t, cli_number(drive, "used"));
        cli_table_number(t, cli_number(drive, "read_errors"));
        cli_table_number(t, cli_number(drive, "write_errors"));
        cli_table_number(t, cli_number(drive, "timeouts"));
        cli_table_number(t, cli_number(drive, "repaired"));
        cli_table_number(t, cli_number(json_object_get(drive, "scrub"), "found"));
        cli_table_number(t, cli_number(json_object_get(drive, "scrub"), "unrepaired"));
        strbuf_reset(&leaves);
        cli_add_work(&leaves, json_object_get(drive, "work"));
        if (leaving && !leaves.len)
            strbuf_adds(&leaves, "soon");
        cli_table_cell(t, leaves.len ? leaves.data : "-");
        cli_table_cell(t, *cli_text(drive, "reason") ? cli_text(drive, "reason") : "-");
        cli_table_cell(t, cli_text(drive, "path"));
    }
    cli_table_print(t);
    cli_table_free(t);
    strbuf_free(&leaves);
    json_decref(json);
    return CLI_OK;
}

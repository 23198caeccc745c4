/* filmroom: the command for the people who run the store. It talks to the daemon over the unix
 * socket in its data directory; see docs/man/filmroom.1.
 *
 * Here: the table of commands, the command line, the help. A command is one or two words; options
 * may stand anywhere. Exit codes: 0 done, 1 failed, 2 the command line is wrong.
 */
#include <curl/curl.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/err.h"
#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

#define CLI_WORDS_MAX 8u

static const struct {
    const char *name;
    bool has_value;
} cli_option_table[CLI_OPTIONS] = {
    [CLI_DATA] = {"data", true},
    [CLI_JSON] = {"json", false},
    [CLI_HELP] = {"help", false},
    [CLI_VERSION] = {"version", false},
    [CLI_FORCE] = {"force", false},
    [CLI_SHRINK] = {"shrink", false},
    [CLI_DURABILITY] = {"durability", true},
    [CLI_PATIENT] = {"patient", true},
    [CLI_NAME] = {"name", true},
    [CLI_DATE] = {"date", true},
    [CLI_MODALITY] = {"modality", true},
    [CLI_ACCESSION] = {"accession", true},
    [CLI_LIMIT] = {"limit", true},
    [CLI_OFFSET] = {"offset", true},
    [CLI_META] = {"meta", true},
    [CLI_TYPE] = {"type", true},
    [CLI_OUTPUT] = {"output", true},
    [CLI_RANGE] = {"range", true},
    [CLI_IF_ABSENT] = {"if-absent", false},
    [CLI_OBJECTS] = {"objects", false},
    [CLI_FOLDERS] = {"folders", false},
    [CLI_AFTER] = {"after", true},
    [CLI_CLASS] = {"class", true},
    [CLI_SIZE] = {"size", true},
    [CLI_PARTITION] = {"partition", true},
};

#define CLI_COMMON \
    (CLI_MASK(CLI_DATA) | CLI_MASK(CLI_JSON) | CLI_MASK(CLI_HELP) | CLI_MASK(CLI_VERSION))

static const char cli_size_help[] =
    "SIZE is a whole number of bytes or, with K, M, G, T, P behind it, of 1024, 1024^2 ...\n"
    "bytes: 10G, 512M, 4096. It must be a multiple of 4096.\n";

static const struct cli_command cli_commands[] = {
    {"status", "", "how the store is: state, addresses, space, counters", NULL, 0, 0, cli_status},
    {"df", "", "how full the store is: space before and after each saving, write amplification",
     "A row for each partition, and their sum where there are several. COMPRESSED is what counts "
     "for\nCAPACITY and USE%. AMPLIFICATION: bytes written to the drives, for whatever reason, for "
     "each that\nclients wrote since the daemon's start.\n",
     0, 0, cli_df},
    {"stats", "", "how long things take, and counters, since the daemon's start",
     "Times: how many were measured, and which time half, 90 % and 99 % of them did not exceed.\n"
     "docs/METRICS.md says what each row means. Prometheus gets the same from /metrics.\n",
     0, 0, cli_stats},
    {"drive list", "", "the drives with their state, space and errors", NULL, 0, 0, cli_drive_list},
    {"scrub start", "", "verify everything on the drives, and repair it",
     "Reads everything alive from all drives, verifies it, and repairs what parity can. Goes on "
     "with "
     "a\npass that was stopped. It does so by itself every scrub_every days, and gives way to "
     "other "
     "work:\nsee filmroomd(8).\n",
     0, 0, cli_scrub_start},
    {"scrub stop", "", "stop verifying; start goes on from there", NULL, 0, 0, cli_scrub_stop},
    {"scrub status", "", "how far scrub is, and what it found", NULL, 0, 0, cli_scrub_status},
    {"drive add", "PATH [--class nvme|disk] [--size SIZE] [--partition NAME] [--force]",
     "use one more drive",
     "PATH is a block device or a file. New data goes to the drive at once, and data that is "
     "there\n"
     "is spread to it in the background.\n\n"
     "  --class nvme|disk   what it is; the journal is kept on nvme drives (default: disk)\n"
     "  --size SIZE         use so much of it; a file is made, or grown to this\n"
     "  --partition NAME    of this partition; otherwise of the first\n"
     "  --force             also where something is on it: all of that is lost\n\n",
     1, CLI_MASK(CLI_CLASS) | CLI_MASK(CLI_SIZE) | CLI_MASK(CLI_PARTITION) | CLI_MASK(CLI_FORCE),
     cli_drive_add},
    {"drive remove", "DRIVE", "empty a drive, and do without it",
     "DRIVE is the drive's number or path. It is read until its data is elsewhere, and let go "
     "then;\n"
     "drive list shows how far that is. Refused when the others cannot hold the data. A drive "
     "that\n"
     "is out may be removed too: its data is written again from the others'.\n",
     1, 0, cli_drive_remove},
    {"drive keep", "DRIVE", "take the removal of a drive back", NULL, 1, 0, cli_drive_keep},
    {"drive replace", "DRIVE PATH [--class nvme|disk] [--size SIZE] [--force]",
     "put a new drive in another one's place",
     "As drive add PATH and drive remove DRIVE in one. A drive that is out is not waited for.\n\n"
     "  --class nvme|disk   what the new drive is (default: disk)\n"
     "  --size SIZE         use so much of it; a file is made, or grown to this\n"
     "  --force             also where something is on it: all of that is lost\n\n",
     2, CLI_MASK(CLI_CLASS) | CLI_MASK(CLI_SIZE) | CLI_MASK(CLI_FORCE), cli_drive_replace},
    {"drive rebuild", "DRIVE", "do not wait any longer for a drive that is out",
     "Its data is written again to the other drives now, and not after rebuild_after. It may come\n"
     "back all the same.\n",
     1, 0, cli_drive_rebuild},
    {"drive set-class", "DRIVE nvme|disk", "say what a drive is",
     "The journal is kept on drives of class nvme, where there are any.\n", 2, 0,
     cli_drive_set_class},
    {"volume create", "NAME SIZE [--durability every-write|on-flush]", "make a VM disk",
     "The volume is thin: it takes space as it is written.\n\n"
     "  --durability every-write   every acknowledged write is durable (the default)\n"
     "  --durability on-flush      durable at the client's flushes, as a disk with a cache\n\n",
     2, CLI_MASK(CLI_DURABILITY), cli_volume_create},
    {"volume list", "", "all VM disks", NULL, 0, 0, cli_volume_list},
    {"volume show", "NAME", "one VM disk", NULL, 1, 0, cli_volume_show},
    {"volume resize", "NAME SIZE [--shrink]", "give a VM disk another size",
     "  --shrink   allow a smaller size: what lies beyond it is lost\n\n", 2, CLI_MASK(CLI_SHRINK),
     cli_volume_resize},
    {"volume delete", "NAME [--force]", "delete a VM disk and its data",
     "  --force   do not ask\n\nA volume that a client has open, or that has snapshots, is not "
     "deleted.\n",
     1, CLI_MASK(CLI_FORCE), cli_volume_delete},
    {"volume snapshot", "NAME[,NAME...] SNAP", "keep what VM disks hold at this moment",
     "Several volumes are taken at one moment, all or none. Takes no time and no space, whatever\n"
     "they hold. NAME@SNAP is exported over NBD, read-only.\n",
     2, 0, cli_volume_snapshot},
    {"volume snapshots", "NAME", "the snapshots of a VM disk, oldest first", NULL, 1, 0,
     cli_volume_snapshots},
    {"volume snapshot-delete", "NAME SNAP [--force]", "delete a snapshot of a VM disk",
     "  --force   do not ask\n\nSnapshots may go in any order; clones of them stay.\n", 2,
     CLI_MASK(CLI_FORCE), cli_volume_snapshot_delete},
    {"volume clone", "NAME@SNAP NEW", "make a VM disk that begins as a snapshot", NULL, 2, 0,
     cli_volume_clone},
    {"volume rollback", "NAME SNAP [--force]", "make a VM disk again what a snapshot holds",
     "  --force   do not ask\n\nWhat was written since is lost, unless another snapshot holds it. "
     "No client may have\nthe volume open.\n",
     2, CLI_MASK(CLI_FORCE), cli_volume_rollback},
    {"patient list", "[--patient ID] [--name NAME] [--limit N] [--offset N]",
     "patients, by Patient ID and its issuer",
     "  --patient ID     Patient ID; * and ? stand for any text and any character\n"
     "  --name NAME      patient's name, as in 'DOE*'\n"
     "  --limit N        at most N patients (default 100, at most 10000)\n"
     "  --offset N       skip the first N\n\n"
     "Studies without a Patient ID are of no patient: see study list.\n",
     0, CLI_MASK(CLI_PATIENT) | CLI_MASK(CLI_NAME) | CLI_MASK(CLI_LIMIT) | CLI_MASK(CLI_OFFSET),
     cli_patient_list},
    {"patient show", "ID", "whoever has this Patient ID, with the studies", NULL, 1, 0,
     cli_patient_show},
    {"study list",
     "[--patient ID] [--name NAME] [--date DATE] [--modality M]\n"
     "                           [--accession N] [--limit N] [--offset N]",
     "DICOM studies",
     "  --patient ID     Patient ID; * and ? stand for any text and any character\n"
     "  --name NAME      patient's name, as in 'DOE*'\n"
     "  --date DATE      20240131, or a range: 20240101-20240131, 20240101-\n"
     "  --modality M     a modality in the study, as in CT\n"
     "  --accession N    accession number\n"
     "  --limit N        at most N studies (default 100, at most 10000)\n"
     "  --offset N       skip the first N\n",
     0,
     CLI_MASK(CLI_PATIENT) | CLI_MASK(CLI_NAME) | CLI_MASK(CLI_DATE) | CLI_MASK(CLI_MODALITY) |
         CLI_MASK(CLI_ACCESSION) | CLI_MASK(CLI_LIMIT) | CLI_MASK(CLI_OFFSET),
     cli_study_list},
    {"study show", "UID", "one study with its series", NULL, 1, 0, cli_study_show},
    {"study delete", "UID [--force]", "delete a study with all its instances",
     "  --force   do not ask\n", 1, CLI_MASK(CLI_FORCE), cli_study_delete},
    {"bucket create", "NAME", "make a bucket for objects", NULL, 1, 0, cli_bucket_create},
    {"bucket list", "", "all buckets",
     "The bucket dicom is always there and shows the stored instances. They can be listed, read "
     "and\ndeleted there; they come by C-STORE and STOW-RS only.\n",
     0, 0, cli_bucket_list},
    {"bucket delete", "NAME [--objects] [--force]", "delete a bucket",
     "  --objects   with the objects in it; without, only an empty bucket is deleted\n"
     "  --force     do not ask\n",
     1, CLI_MASK(CLI_OBJECTS) | CLI_MASK(CLI_FORCE), cli_bucket_delete},
    {"object put", "BUCKET/NAME [FILE] [--type T] [--meta K=V]... [--if-absent]", "store an object",
     "Takes FILE, or standard input without it or for -. What is there under the name is\n"
     "replaced, once all has arrived. An object has at most 8 GiB.\n\n"
     "  --type T      content type, as in text/plain\n"
     "  --meta K=V    metadata, may be given often; K of lower-case letters, digits, . _ -\n"
     "  --if-absent   only if there is no object of this name\n",
     1, CLI_MASK(CLI_TYPE) | CLI_MASK(CLI_META) | CLI_MASK(CLI_IF_ABSENT), cli_object_put, 1},
    {"object get", "BUCKET/NAME [-o FILE] [--range FROM-TO]", "read an object",
     "  -o FILE, --output FILE   into a file; otherwise to standard output\n"
     "  --range FROM-TO          bytes from FROM to TO, both included and counted from 0;\n"
     "                           FROM-: to the end; -N: the last N\n",
     1, CLI_MASK(CLI_OUTPUT) | CLI_MASK(CLI_RANGE), cli_object_get},
    {"object list", "BUCKET[/PREFIX] [--folders] [--limit N] [--after NAME]",
     "the objects of a bucket, by name",
     "  --folders      one level only: what has a / behind the prefix is shown as a folder\n"
     "  --limit N      at most N (default: all)\n"
     "  --after NAME   begin behind this name\n",
     1, CLI_MASK(CLI_FOLDERS) | CLI_MASK(CLI_LIMIT) | CLI_MASK(CLI_AFTER), cli_object_list},
    {"object show", "BUCKET/NAME", "what is known of an object", NULL, 1, 0, cli_object_show},
    {"object rm", "BUCKET/NAME [--force]", "delete an object",
     "  --force   do not ask; only for instances in the bucket dicom it is asked\n", 1,
     CLI_MASK(CLI_FORCE), cli_object_rm},
};
#define CLI_COMMANDS (sizeof(cli_commands) / sizeof(cli_commands[0]))

/* ---- Messages ------------------------------------------------------------------------------- */

int cli_fail(const char *fmt, ...)
{
    va_list ap;

    fputs("filmroom: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return CLI_FAILED;
}

int cli_usage(const struct cli *cli, const char *fmt, ...)
{
    va_list ap;

    fputs("filmroom: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nSee filmroom %s%s--help\n", cli->command ? cli->command->words : "",
            cli->command ? " " : "");
    return CLI_USAGE;
}

int cli_confirm(const struct cli *cli, const char *option, const char *question)
{
    char answer[8] = "";
    size_t n = 0;
    int c;

    if (!isatty(STDIN_FILENO))
        return cli_usage(cli, "nobody to ask: add %s to %s", option, cli->command->words);
    fprintf(stderr, "%s\nType yes to go on: ", question);
    while ((c = getchar()) != EOF && c != '\n')
        if (n < sizeof(answer) - 1)
            answer[n++] = (char)c;
    if (strcmp(answer, "yes") == 0)
        return CLI_OK;
    return cli_fail("nothing was changed");
}

int cli_size_arg(const struct cli *cli, const char *text, uint64_t *ret_bytes)
{
    uint64_t bytes;

    if (size_parse(text, &bytes) < 0)
        return cli_usage(cli, "\"%s\" is not a size: write 10G, 512M, 1T or 4096", cli_safe(text));
    if (bytes == 0 || bytes % 4096 != 0)
        return cli_usage(cli, "\"%s\" will not do: a size must be a multiple of 4096, above 0",
                         cli_safe(text));
    *ret_bytes = bytes;
    return CLI_OK;
}

/* ---- Help ----------------------------------------------------------------------------------- */

static void cli_help_all(FILE *out)
{
    fputs("Usage: filmroom [--data DIR] [--json] COMMAND ...\n\n", out);
    for (size_t i = 0; i < CLI_COMMANDS; i++)
        fprintf(out, "  %-23s %s\n", cli_commands[i].words, cli_commands[i].summary);
    fputs("\n"
          "  --data DIR   the daemon's data directory\n"
          "               (default: $FILMROOM_DATA, or ./filmroom-data)\n"
          "  --json       print the daemon's answer as JSON\n"
          "  --help       this text, or that of a command: filmroom volume create --help\n"
          "  --version\n",
          out);
}

static void cli_help(const struct cli_command *c)
{
    printf("Usage: filmroom [--data DIR] [--json] %s %s\n\nPurpose: %s.\n", c->words, c->usage,
           c->summary);
    if (c->help)
        printf("\n%s", c->help);
    if (strstr(c->usage, "SIZE"))
        fputs(cli_size_help, stdout);
}

/* ---- The command line ----------------------------------------------------------------------- */

struct cli_words {
    const char *words[CLI_WORDS_MAX];
    unsigned count;
};

/* argv[*i] is an option: notes it. CLI_OK or CLI_USAGE. */
static int cli_take_option(struct cli *cli, int argc, char **argv, int *i)
{
    const char *arg = argv[*i] + 2, *equals = strchr(arg, '=');
    size_t n = equals ? (size_t)(equals - arg) : strlen(arg);

    for (unsigned o = 0; o < CLI_OPTIONS; o++) {
        if (strlen(cli_option_table[o].name) != n || strncmp(cli_option_table[o].name, arg, n) != 0)
            continue;
        if (!cli_option_table[o].has_value && equals)
            return cli_usage(cli, "--%s takes no value", cli_option_table[o].name);
        if (!cli_option_table[o].has_value)
            cli->values[o] = "";
        else if (equals)
            cli->values[o] = equals + 1;
        else if (*i + 1 < argc)
            cli->values[o] = argv[++*i];
        else
            return cli_usage(cli, "--%s: a value is missing", cli_option_table[o].name);
        if (o == CLI_META && cli->meta_count == CLI_METAS_MAX)
            return cli_usage(cli, "--meta: at most %u times", CLI_METAS_MAX);
        if (o == CLI_META)
            cli->metas[cli->meta_count++] = cli->values[o];
        return CLI_OK;
    }
    return cli_usage(cli, "%s: no such option", cli_safe(argv[*i]));
}

static int cli_take_args(struct cli *cli, int argc, char **argv, struct cli_words *w)
{
    bool options = true;

    for (int i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && strcmp(argv[i], "-h") == 0) {
            cli->values[CLI_HELP] = "";
        } else if (options && strcmp(argv[i], "-o") == 0) {
            if (i + 1 == argc)
                return cli_usage(cli, "-o: a value is missing");
            cli->values[CLI_OUTPUT] = argv[++i];
        } else if (options && strncmp(argv[i], "--", 2) == 0) {
            int verdict = cli_take_option(cli, argc, argv, &i);

            if (verdict != CLI_OK)
                return verdict;
        } else if (w->count == CLI_WORDS_MAX) {
            return cli_usage(cli, "too many arguments");
        } else {
            w->words[w->count++] = argv[i];
        }
    }
    return CLI_OK;
}

/* How many words of `c` are said at the beginning of w; 0 when it is another command. */
static unsigned cli_matches(const struct cli_command *c, const struct cli_words *w)
{
    const char *p = c->words;
    unsigned n = 0;

    while (n < w->count) {
        size_t len = strcspn(p, " ");

        if (strlen(w->words[n]) != len || strncmp(w->words[n], p, len) != 0)
            return 0;
        n++;
        p += len;
        if (!*p)
            return n;
        p++;
    }
    return 0;
}

/* "volume" alone, or with something else behind it: says what could follow. */
static int cli_unknown(const struct cli *cli, const struct cli_words *w)
{
    const char *first = w->words[0];
    struct strbuf follow = STRBUF_INIT;
    int verdict;

    for (size_t i = 0; i < CLI_COMMANDS; i++) {
        const char *words = cli_commands[i].words;
        size_t n = strlen(first);

        if (strncmp(words, first, n) == 0 && words[n] == ' ')
            strbuf_addf(&follow, "%s%s", follow.len ? ", " : "", words + n + 1);
    }
    if (follow.len && cli_given(cli, CLI_HELP)) {
        cli_help_all(stdout);
        verdict = CLI_OK;
    } else if (follow.len && w->count > 1) {
        verdict =
            cli_usage(cli, "%s has no \"%s\", but: %s", first, cli_safe(w->words[1]), follow.data);
    } else if (follow.len) {
        verdict = cli_usage(cli, "%s what? One of: %s", first, follow.data);
    } else {
        verdict = cli_usage(cli, "no such command: %s", cli_safe(first));
    }
    strbuf_free(&follow);
    return verdict;
}

static int cli_check_options(const struct cli *cli)
{
    unsigned allowed = CLI_COMMON | cli->command->options;

    for (unsigned o = 0; o < CLI_OPTIONS; o++)
        if (cli->values[o] && !(allowed & CLI_MASK(o)))
            return cli_usage(cli, "%s has no option --%s", cli->command->words,
                             cli_option_table[o].name);
    return CLI_OK;
}

static int cli_run_command(struct cli *cli, const struct cli_words *w, unsigned used)
{
    const struct cli_command *c = cli->command;
    int verdict;

    if (cli_given(cli, CLI_HELP)) {
        cli_help(c);
        return CLI_OK;
    }
    verdict = cli_check_options(cli);
    if (verdict != CLI_OK)
        return verdict;
    if (w->count - used < c->args || w->count - used > c->args + c->more)
        return cli_usage(cli, "%s arguments: %s %s",
                         w->count - used < c->args ? "missing" : "too many", c->words, c->usage);
    for (unsigned i = 0; i < w->count - used; i++) {
        cli->args[i] = w->words[used + i];
        if (!*cli->args[i])
            return cli_usage(cli, "an argument is empty: %s %s", c->words, c->usage);
    }
    return c->run(cli);
}

static int cli_dispatch(struct cli *cli, const struct cli_words *w)
{
    if (cli_given(cli, CLI_VERSION)) {
        puts("filmroom " FILMROOM_VERSION);
        return CLI_OK;
    }
    if (w->count == 0) {
        cli_help_all(cli_given(cli, CLI_HELP) ? stdout : stderr);
        return cli_given(cli, CLI_HELP) ? CLI_OK : CLI_USAGE;
    }
    for (size_t i = 0; i < CLI_COMMANDS; i++) {
        unsigned used = cli_matches(&cli_commands[i], w);

        if (used == 0)
            continue;
        cli->command = &cli_commands[i];
        return cli_run_command(cli, w, used);
    }
    return cli_unknown(cli, w);
}

static const char *cli_data_dir(const struct cli *cli)
{
    const char *env = getenv("FILMROOM_DATA");

    if (cli_given(cli, CLI_DATA))
        return cli->values[CLI_DATA];
    return env && *env ? env : "./filmroom-data";
}

int main(int argc, char **argv)
{
    struct cli cli = {.data = NULL};
    struct cli_words w = {.count = 0};
    int verdict;

    setlocale(LC_CTYPE, "");
    curl_global_init(CURL_GLOBAL_NOTHING);
    verdict = cli_take_args(&cli, argc, argv, &w);
    if (verdict == CLI_OK) {
        cli.data = cli_data_dir(&cli);
        verdict = cli_dispatch(&cli, &w);
    }
    curl_global_cleanup();
    if (fflush(stdout) != 0 || ferror(stdout))
        return cli_fail("the output could not be written: %m");
    return verdict;
}

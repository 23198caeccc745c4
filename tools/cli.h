/* What the parts of the `filmroom` command share: its options, the requests to the daemon, tables.
 * The commands are cli_status.c, cli_stats.c, cli_scrub.c, cli_volume.c, cli_patient.c,
 * cli_study.c, cli_bucket.c and cli_object.c; filmroom.c finds and runs them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

/* Exit codes. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

enum cli_option {
    CLI_DATA,
    CLI_JSON,
    CLI_HELP,
    CLI_VERSION,
    CLI_FORCE,
    CLI_SHRINK,
    CLI_DURABILITY,
    CLI_PATIENT,
    CLI_NAME,
    CLI_DATE,
    CLI_MODALITY,
    CLI_ACCESSION,
    CLI_LIMIT,
    CLI_OFFSET,
    CLI_META,
    CLI_TYPE,
    CLI_OUTPUT,
    CLI_RANGE,
    CLI_IF_ABSENT,
    CLI_OBJECTS,
    CLI_FOLDERS,
    CLI_AFTER,
    CLI_CLASS,
    CLI_SIZE,
    CLI_PARTITION,
    CLI_OPTIONS
};
#define CLI_METAS_MAX    32u
#define CLI_MASK(option) (1u << (option))

struct cli {
    const char *values[CLI_OPTIONS];  /* NULL: not given; "" for options without a value */
    const char *args[4];              /* after the command's words */
    const char *data;                 /* the data directory */
    const char *metas[CLI_METAS_MAX]; /* values of --meta */
    unsigned meta_count;
    const struct cli_command *command;
};

struct cli_command {
    const char *words;   /* "volume create" */
    const char *usage;   /* arguments and options, "NAME SIZE" */
    const char *summary; /* one line */
    const char *help;    /* what else there is to know, or NULL */
    unsigned args;       /* how many are required */
    unsigned options;    /* CLI_MASK of its own ones */
    int (*run)(struct cli *cli);
    unsigned more; /* arguments that may follow the required ones */
};

int cli_status(struct cli *cli);
int cli_df(struct cli *cli);
int cli_stats(struct cli *cli);
int cli_drive_list(struct cli *cli);
int cli_scrub_start(struct cli *cli);
int cli_scrub_stop(struct cli *cli);
int cli_scrub_status(struct cli *cli);
int cli_drive_add(struct cli *cli);
int cli_drive_remove(struct cli *cli);
int cli_drive_keep(struct cli *cli);
int cli_drive_replace(struct cli *cli);
int cli_drive_rebuild(struct cli *cli);
int cli_drive_set_class(struct cli *cli);
int cli_volume_create(struct cli *cli);
int cli_volume_list(struct cli *cli);
int cli_volume_show(struct cli *cli);
int cli_volume_resize(struct cli *cli);
int cli_volume_delete(struct cli *cli);
int cli_volume_snapshot(struct cli *cli);
int cli_volume_snapshots(struct cli *cli);
int cli_volume_snapshot_delete(struct cli *cli);
int cli_volume_clone(struct cli *cli);
int cli_volume_rollback(struct cli *cli);
int cli_patient_list(struct cli *cli);
int cli_patient_show(struct cli *cli);
int cli_study_list(struct cli *cli);
int cli_study_show(struct cli *cli);
int cli_study_delete(struct cli *cli);
int cli_bucket_create(struct cli *cli);
int cli_bucket_list(struct cli *cli);
int cli_bucket_delete(struct cli *cli);
int cli_object_put(struct cli *cli);
int cli_object_get(struct cli *cli);
int cli_object_list(struct cli *cli);
int cli_object_show(struct cli *cli);
int cli_object_rm(struct cli *cli);

static inline bool cli_given(const struct cli *cli, enum cli_option option)
{
    return cli->values[option] != NULL;
}

/* ---- Messages (filmroom.c) ------------------------------------------------------------------ */

/* "filmroom: ..." on stderr; returns CLI_FAILED. */
int cli_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same with a hint at the command's help; returns CLI_USAGE. */
int cli_usage(const struct cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Asks "... Type yes to go on: ". CLI_OK when the answer is yes; CLI_USAGE when nobody can be
 * asked, naming the option that answers beforehand. */
int cli_confirm(const struct cli *cli, const char *option, const char *question);

/* A size argument. CLI_OK or CLI_USAGE. */
int cli_size_arg(const struct cli *cli, const char *text, uint64_t *ret_bytes);

/* ---- Requests (cli_http.c) ------------------------------------------------------------------ */

struct cli_request {
    const char *method;
    const char *path;      /* encoded, with the query */
    const json_t *body;    /* or NULL */
    bool quiet_if_missing; /* a 404 is left to the caller: CLI_FAILED without a message */
    unsigned status;       /* HTTP status of the answer; 0: none came */
    bool plain;            /* the answer is plain text, a sentence of the server's */
    json_t *answer;        /* when CLI_OK: the caller's reference */
};

/* Sends a request to the daemon and takes its answer. On failure everything has been said on stderr
 * (and, with --json, the daemon's error was printed). Returns CLI_OK or CLI_FAILED. */
int cli_ask(const struct cli *cli, struct cli_request *r);

/* GET, all at once: NULL after a failure. */
json_t *cli_get(const struct cli *cli, const char *path);

/* GET, and prints what came: as it is for --json, else by `print`. The exit code. */
int cli_show(const struct cli *cli, const char *path, void (*print)(const json_t *json));

/* An exchange in which bytes go from or to a file as they come. */
struct cli_stream {
    const char *method;
    const char *path;
    const char *const *headers; /* "Name: value" */
    size_t header_count;
    FILE *from;         /* the request's body; NULL: none */
    uint64_t from_size; /* UINT64_MAX: until its end */
    bool partial;       /* a range is asked for: anything but 206 is no success */
    FILE *to;           /* takes the answer's body when it is a success; NULL: it is JSON */
    uint64_t received;  /* bytes that went there */
    json_t *answer;     /* when CLI_OK and without `to`: the caller's reference */
};

/* As cli_ask. A file that cannot be read or written fails it too. */
int cli_transfer(const struct cli *cli, struct cli_stream *s);

struct strbuf;
/* Appends text as part of a path or query, percent-encoded. */
void cli_add_encoded(struct strbuf *path, const char *text);

/* Prints the answer as it came, for --json. Returns CLI_OK. */
int cli_print_json(const json_t *json);

/* ---- JSON fields: "" and 0 where they are missing ------------------------------------------- */

const char *cli_text(const json_t *object, const char *name);
/* The partition's name under `name`; the first one has none, and is "(first)". */
const char *cli_partition(const json_t *object, const char *name);
uint64_t cli_number(const json_t *object, const char *name);

/* ---- Tables (cli_table.c) ------------------------------------------------------------------- */

/* Rows of cells, printed with columns as wide as their widest cell. A heading that begins with '>'
 * makes its column right-aligned. Control characters in cells are shown as '?', so that what a
 * modality sent cannot steer the terminal. */
struct cli_table;

struct cli_table *cli_table_new(const char *const *headings, size_t columns);
/* Copies. Cells are added in order, row by row. */
void cli_table_cell(struct cli_table *t, const char *text);
void cli_table_number(struct cli_table *t, uint64_t n);
void cli_table_size(struct cli_table *t, uint64_t bytes);
void cli_table_print(const struct cli_table *t);
void cli_table_free(struct cli_table *t);

/* DA "20240131" as "2024-01-31"; anything else as it is. */
const char *cli_date(const char *text, char buf[12]);

/* ---- Lists (cli_study.c) -------------------------------------------------------------------- */

/* Asks for a list with the options that narrow it and prints it; where it was cut, says how to go
 * on. `list`: the field of the answer with the rows. The exit code. */
int cli_list(const struct cli *cli, const char *resource, const char *list,
             void (*print)(const json_t *json));
/* The table of an answer's "studies". */
void cli_print_studies(const json_t *json);

/* ---- Fields (cli_table.c) ------------------------------------------------------------------- */

/* "Name:     value" lines. */
void cli_print_field(const char *name, const char *value);
void cli_print_size(const char *name, uint64_t bytes);
/* Text made safe for a terminal; valid until the eighth call after. At most 500 bytes. */
const char *cli_safe(const char *text);

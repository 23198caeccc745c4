/* The daemon's settings: defaults, then the configuration file, then the command line.
 *
 * The file is in the form of systemd's units: [sections] of `name = value` lines, comments with '#'
 * or ';'. docs/man/filmroomd.8 describes every setting. Each setting is a row of one table in
 * config.c, which the file, the command line's options and the messages share.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/log.h"
#include "lib/base/strbuf.h"

#define CONFIG_PATH_MAX           4096 /* bytes with the NUL */
#define CONFIG_LISTEN_MAX         64
#define CONFIG_AET_MAX            16 /* PS3.5 table 6.2-1, AE */
#define CONFIG_DRIVES_MAX         32 /* as many as the format numbers (place.c compares) */
#define CONFIG_PARTITIONS_MAX     8  /* with the first */
#define CONFIG_PARTITION_NAME_MAX 32
#define CONFIG_ASSOCIATIONS_MAX   256  /* as many as the DICOM server takes (node.c compares) */
#define CONFIG_SOCKET_MAX         107  /* bytes of a unix socket's path: sun_path */
#define CONFIG_LINE_MAX           5000 /* bytes of a line of the file */
#define CONFIG_FILE_MAX           (1u << 20)

enum config_conflict { CONFIG_REFUSE, CONFIG_REPLACE };

struct config_listen {
    char host[CONFIG_LISTEN_MAX]; /* numeric; IPv6 without brackets */
    unsigned port;                /* 0: a free one is picked */
};

/* What one partition is made of. */
struct config_store {
    char data[CONFIG_PATH_MAX];            /* the data directory: state, and the drives' files */
    uint64_t capacity;                     /* limit of logical bytes */
    unsigned drives;                       /* number of drives */
    char (*paths)[CONFIG_PATH_MAX];        /* `drives` of them; NULL: files in `data` */
    unsigned data_columns, parity_columns; /* 0 and 0: by the number of drives */
    uint64_t journal_size, cache_size;     /* bytes */
    unsigned scrub_every;   /* days from the start of one pass of scrub to the next; 0: never */
    uint64_t scrub_rate;    /* bytes per second that scrub may verify */
    unsigned rebuild_after; /* seconds that a drive may be out before it is given up */
};

/* A partition beside the first: [partition NAME]. Its data lie in partitions/NAME of the first
 * one's. */
struct config_partition {
    char name[CONFIG_PARTITION_NAME_MAX + 1];
    struct config_store store;
};

struct config {
    char file[CONFIG_PATH_MAX]; /* the configuration file read; "" when none */

    struct config_store store; /* the first partition: [store] */
    struct config_partition *partitions;
    unsigned partition_count; /* of the others */

    struct {
        struct config_listen listen;
        char socket[CONFIG_SOCKET_MAX + 1]; /* a unix socket too; "": nbd.sock in `data` */
        unsigned max_connections;
    } nbd;

    struct {
        struct config_listen listen;
        char aet[CONFIG_AET_MAX + 1];
        unsigned max_associations;
        unsigned max_pdu; /* bytes */
    } dicom;

    struct {
        struct config_listen listen;
        unsigned max_connections;
    } http;

    enum config_conflict on_conflict; /* same SOP Instance UID, other content */
    enum log_level log_level;
    unsigned slow_ms;     /* operations that take longer are logged; 0: none */
    unsigned watchdog_ms; /* steps of the loop that take longer are logged; 0: not watched */
};

enum config_verdict {
    CONFIG_RUN,
    CONFIG_TELL, /* --help or --version: print the message to stdout and end well */
};

/* Settings from a command line (argv[0] is skipped) and the file it names, or the defaults. Returns
 * a config_verdict, or ERR_CONFIG with a message of one line that names the option or file:line.
 * The config is then not to be used, and needs no free. Reads the file; before there is an env. */
int config_load(int argc, char *const argv[], struct config *ret_config, struct strbuf *message);

/* As config_load does with a file's text. `name` is for messages. */
void config_defaults(struct config *c);
int config_parse(struct config *c, const char *name, const char *text, size_t len,
                 struct strbuf *message);

/* What concerns several settings at once. */
int config_check(const struct config *c, struct strbuf *message);

/* Descriptors that the process may have open at once with these settings: every connection that
 * they allow, and what the partitions take. An upper bound. */
unsigned config_descriptors(const struct config *c);

/* The settings with partition `i` in the place of `store`: 0 is the first, i is partitions[i - 1].
 * Shares all pointers with `c`: not to be freed, and not to outlive it. */
void config_for_partition(const struct config *c, unsigned i, struct config *ret_config);

void config_free(struct config *c);

/* Settings of the daemon from defaults, file and command line; see config.h.
 *
 * A setting is a row of config_settings: its section and name in the file, its option if it has
 * one, the field that it sets, its parser and its bounds. The message of a bad value is made in one
 * place and says where the value stands, what it was and what is wanted.
 *
 * inih gives the handler no line numbers, and cuts lines that are longer than its buffer. So lines
 * reach it through a reader of our own that counts them and refuses long ones; leading blanks are
 * dropped, since inih would take an indented line for the continuation of the one before.
 */
#include "daemon/config.h"

#include <arpa/inet.h>
#include <ini.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/size.h"

/* The loop is watched where people look for what keeps it: in builds that are not optimised. */
#ifdef __OPTIMIZE__
#define CONFIG_WATCHDOG_MS 0
#else
#define CONFIG_WATCHDOG_MS 5
#endif

/* ---- Values --------------------------------------------------------------------------------- */

struct config_setting {
    const char *section, *name;
    const char *option; /* without the dashes; NULL: file only */
    size_t offset;      /* of the field in struct config */
    bool (*parse)(const struct config_setting *s, void *field, const char *value);
    const char *want; /* what a good value is, for messages */
    uint64_t min, max;
};

static bool config_parse_text(const struct config_setting *s, void *field, const char *value)
{
    size_t n = strlen(value);

    if (n < s->min || n > s->max)
        return false;
    memcpy(field, value, n + 1);
    return true;
}

static bool config_parse_number(const struct config_setting *s, void *field, const char *value)
{
    uint64_t n = 0;
    unsigned v;

    if (!*value)
        return false;
    for (const char *p = value; *p; p++) {
        if (*p < '0' || *p > '9' || n > s->max)
            return false;
        n = n * 10 + (uint64_t)(*p - '0');
    }
    if (n < s->min || n > s->max)
        return false;
    v = (unsigned)n;
    memcpy(field, &v, sizeof(v));
    return true;
}

static bool config_parse_size(const struct config_setting *s, void *field, const char *value)
{
    uint64_t n;

    if (size_parse(value, &n) < 0 || n % 4096 != 0 || n < s->min || n > s->max)
        return false;
    memcpy(field, &n, sizeof(n));
    return true;
}

/* A numeric address: names would be resolved at an hour when the resolver may not be up. */
static bool config_parse_host(const struct config_setting *s, void *field, const char *value)
{
    char addr[sizeof(struct in6_addr)];

    if (inet_pton(AF_INET, value, addr) != 1 && inet_pton(AF_INET6, value, addr) != 1)
        return false;
    return config_parse_text(s, field, value);
}

/* PS3.5 section 6.2, AE: printable ASCII without backslash; blanks at the ends do not count, so we
 * refuse them. */
static bool config_parse_aet(const struct config_setting *s, void *field, const char *value)
{
    size_t n = strlen(value);

    for (size_t i = 0; i < n; i++)
        if (value[i] < ' ' || value[i] > '~' || value[i] == '\\')
            return false;
    if (n == 0 || value[0] == ' ' || value[n - 1] == ' ')
        return false;
    return config_parse_text(s, field, value);
}

/* "4+2", or "auto". */
static bool config_parse_profile(const struct config_setting *s, void *field, const char *value)
{
    unsigned columns[2] = {0, 0};

    (void)s;
    if (strcmp(value, "auto") != 0) {
        if (value[0] < '1' || value[0] > '9' || value[1] != '+' || value[2] < '0' ||
            value[2] > '4' || value[3])
            return false;
        columns[0] = (unsigned)(value[0] - '0');
        columns[1] = (unsigned)(value[2] - '0');
    }
    memcpy(field, columns, sizeof(columns));
    return true;
}

static bool config_parse_conflict(const struct config_setting *s, void *field, const char *value)
{
    enum config_conflict c = strcmp(value, "replace") == 0 ? CONFIG_REPLACE : CONFIG_REFUSE;

    (void)s;
    if (c == CONFIG_REFUSE && strcmp(value, "refuse") != 0)
        return false;
    memcpy(field, &c, sizeof(c));
    return true;
}

static bool config_parse_level(const struct config_setting *s, void *field, const char *value)
{
    enum log_level level;

    (void)s;
    if (log_level_parse(value, &level) < 0)
        return false;
    memcpy(field, &level, sizeof(level));
    return true;
}

#define CONFIG_AT(field) offsetof(struct config, field)
#define CONFIG_PORT_(section, opt, field)                                 \
    {                                                                     \
        section, "port", opt, CONFIG_AT(field.port), config_parse_number, \
            "a number from 0 (any free port) to 65535", 0, 65535          \
    }
#define CONFIG_LISTEN_(section, field)                                     \
    {                                                                      \
        section, "listen", NULL, CONFIG_AT(field.host), config_parse_host, \
            "a numeric IPv4 or IPv6 address", 1, CONFIG_LISTEN_MAX - 1     \
    }
#define CONFIG_COUNT_(section, name, field, lo, hi, want)                        \
    {                                                                            \
        section, name, NULL, CONFIG_AT(field), config_parse_number, want, lo, hi \
    }
#define CONFIG_SIZE_(name, opt, field, lo, hi, want)                          \
    {                                                                         \
        "store", name, opt, CONFIG_AT(field), config_parse_size, want, lo, hi \
    }

static const struct config_setting config_settings[] = {
    {"store", "data", "data", CONFIG_AT(store.data), config_parse_text, "a directory", 1,
     CONFIG_PATH_MAX - 1},
    CONFIG_SIZE_("capacity", "capacity", store.capacity, 64u << 20, 1ull << 60,
                 "a size from 64M to 1E, a multiple of 4096, as in 64G"),
    CONFIG_COUNT_("store", "drives", store.drives, 1, CONFIG_DRIVES_MAX, "a number from 1 to 32"),
    {"store", "profile", NULL, CONFIG_AT(store.data_columns), config_parse_profile,
     "auto, or data+parity columns as in 4+2", 0, 0},
    CONFIG_SIZE_("journal_size", NULL, store.journal_size, 16u << 20, 1ull << 30,
                 "a size from 16M to 1G, a multiple of 4096"),
    CONFIG_SIZE_("cache_size", NULL, store.cache_size, 16u << 20, 1ull << 40,
                 "a size from 16M to 1T, a multiple of 4096"),

    CONFIG_COUNT_("store", "rebuild_after", store.rebuild_after, 1, 30 * 86400,
                  "a number of seconds from 1 to 2592000"),
    CONFIG_COUNT_("store", "scrub_every", store.scrub_every, 0, 365,
                  "a number of days from 1 to 365, or 0 for never"),
    CONFIG_SIZE_("scrub_rate", NULL, store.scrub_rate, 1u << 20, 1ull << 40,
                 "a size per second from 1M to 1T, a multiple of 4096"),

    CONFIG_LISTEN_("nbd", nbd.listen),
    CONFIG_PORT_("nbd", "nbd-port", nbd.listen),
    {"nbd", "socket", NULL, CONFIG_AT(nbd.socket), config_parse_text,
     "a path of at most 107 bytes for a unix socket", 1, CONFIG_SOCKET_MAX},
    CONFIG_COUNT_("nbd", "max_connections", nbd.max_connections, 1, 4096,
                  "a number from 1 to 4096"),

    CONFIG_LISTEN_("dicom", dicom.listen),
    CONFIG_PORT_("dicom", "dicom-port", dicom.listen),
    {"dicom", "aet", "aet", CONFIG_AT(dicom.aet), config_parse_aet,
     "an AE title: 1 to 16 printable ASCII characters, no backslash, no blank at the ends", 1,
     CONFIG_AET_MAX},
    CONFIG_COUNT_("dicom", "max_associations", dicom.max_associations, 1, CONFIG_ASSOCIATIONS_MAX,
                  "a number from 1 to 256"),
    /* DCMTK's bounds. */
    CONFIG_COUNT_("dicom", "max_pdu", dicom.max_pdu, 4096, 131072, "a number from 4096 to 131072"),

    CONFIG_LISTEN_("http", http.listen),
    CONFIG_PORT_("http", "http-port", http.listen),
    CONFIG_COUNT_("http", "max_connections", http.max_connections, 1, 4096,
                  "a number from 1 to 4096"),

    {"studies", "on_conflict", NULL, CONFIG_AT(on_conflict), config_parse_conflict,
     "refuse or replace", 0, 0},
    {"log", "level", NULL, CONFIG_AT(log_level), config_parse_level, "debug, info, warn or error",
     0, 0},
    CONFIG_COUNT_("log", "slow_ms", slow_ms, 0, 3600000,
                  "a number of milliseconds up to 3600000, or 0 for none"),
    CONFIG_COUNT_("log", "watchdog_ms", watchdog_ms, 0, 60000,
                  "a number of milliseconds up to 60000, or 0 for none"),
};
_Static_assert(CONFIG_ASSOCIATIONS_MAX == 256 && CONFIG_SOCKET_MAX == 107, "as the texts say");
#define CONFIG_SETTINGS (sizeof(config_settings) / sizeof(config_settings[0]))

static void config_store_defaults(struct config_store *s)
{
    s->capacity = 64ull << 30;
    s->drives = 6;
    s->journal_size = 64u << 20;
    s->cache_size = 256u << 20;
    s->rebuild_after = 600;
    s->scrub_every = 7;
    s->scrub_rate = 32u << 20;
}

void config_defaults(struct config *c)
{
    static const char loopback[] = "127.0.0.1";

    memset(c, 0, sizeof(*c));
    config_store_defaults(&c->store);
    memcpy(c->nbd.listen.host, loopback, sizeof(loopback));
    c->nbd.listen.port = 10809;
    c->nbd.max_connections = 64;
    memcpy(c->dicom.listen.host, loopback, sizeof(loopback));
    c->dicom.listen.port = 11112;
    memcpy(c->dicom.aet, "FILMROOM", 9);
    c->dicom.max_associations = 32;
    c->dicom.max_pdu = 131072;
    memcpy(c->http.listen.host, loopback, sizeof(loopback));
    c->http.listen.port = 8042;
    c->http.max_connections = 128;
    c->on_conflict = CONFIG_REFUSE;
    c->log_level = LOG_INFO;
    c->slow_ms = 1000;
    c->watchdog_ms = CONFIG_WATCHDOG_MS;
}

void config_free(struct config *c)
{
    mem_free(c->store.paths);
    c->store.paths = NULL;
    for (unsigned i = 0; i < c->partition_count; i++)
        mem_free(c->partitions[i].store.paths);
    mem_free(c->partitions);
    c->partitions = NULL;
    c->partition_count = 0;
}

void config_for_partition(const struct config *c, unsigned i, struct config *ret_config)
{
    CHECK(i <= c->partition_count);
    *ret_config = *c;
    if (i > 0)
        ret_config->store = c->partitions[i - 1].store;
}

static void config_set(const struct config_setting *s, void *field, const char *value,
                       const char *where, struct strbuf *message)
{
    if (!s->parse(s, field, value))
        strbuf_addf(message, "%s: \"%.100s\" will not do: give %s", where, value, s->want);
}

/* ---- The file ------------------------------------------------------------------------------- */

/* What was met so far: of all sections and the first partition, or of another partition. */
struct config_seen {
    unsigned lines[CONFIG_SETTINGS]; /* of each setting, 0: not met */
    unsigned drives;                 /* how many `drive = ` there were */
};

struct config_file {
    struct config *config;
    const char *name, *p, *end;
    unsigned line; /* of what the handler is called for */
    struct config_seen seen[CONFIG_PARTITIONS_MAX];
    struct strbuf *message;
};

static void config_file_error(struct config_file *f, const char *what, const char *text)
{
    strbuf_addf(f->message, "%s:%u: %s", f->name, f->line, what);
    if (text)
        strbuf_addf(f->message, " \"%.100s\"", text);
}

static bool config_section_known(const char *section)
{
    for (size_t i = 0; i < CONFIG_SETTINGS; i++)
        if (strcmp(config_settings[i].section, section) == 0)
            return true;
    return false;
}

static bool config_partition_name_fits(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789-_";
    size_t n = strlen(name);

    return n > 0 && n <= CONFIG_PARTITION_NAME_MAX && name[0] != '-' && strspn(name, letters) == n;
}

/* The index of [partition NAME], which is begun when it is new; 0 when it will not do. */
static unsigned config_partition(struct config_file *f, const char *name)
{
    struct config *c = f->config;
    struct config_partition *p;

    for (unsigned i = 0; i < c->partition_count; i++)
        if (strcmp(c->partitions[i].name, name) == 0)
            return i + 1;
    if (!config_partition_name_fits(name)) {
        config_file_error(
            f, "a partition's name has 1 to 32 of a-z, 0-9, '-', '_', and no '-' in front, not",
            name);
        return 0;
    }
    if (c->partition_count + 1 == CONFIG_PARTITIONS_MAX) {
        config_file_error(f, "too many partitions, at most 8 with [store]", NULL);
        return 0;
    }
    c->partitions = mem_realloc(c->partitions, (c->partition_count + 1) * sizeof(*c->partitions));
    p = &c->partitions[c->partition_count++];
    memset(p, 0, sizeof(*p));
    memcpy(p->name, name, strlen(name) + 1);
    config_store_defaults(&p->store);
    return c->partition_count;
}

static const char config_partition_word[] = "partition ";

/* The name of the partition that the section is for; NULL: it is another section. */
static const char *config_partition_of(const char *section)
{
    size_t n = sizeof(config_partition_word) - 1;

    return strncmp(section, config_partition_word, n) == 0 ? section + n : NULL;
}

/* inih tells of a section with its first setting only; one without any counts too. A partition's
 * is begun, with the defaults. */
static void config_look_at_section(struct config_file *f, const char *line)
{
    STRBUF_AUTO struct strbuf name = STRBUF_INIT;
    const char *end = *line == '[' ? strchr(line, ']') : NULL, *partition;

    if (!end) /* inih will say what it is */
        return;
    strbuf_add(&name, line + 1, (size_t)(end - line - 1));
    strbuf_adds(&name, "");
    partition = config_partition_of(name.data);
    if (partition)
        (void)config_partition(f, partition);
    else if (!config_section_known(name.data))
        config_file_error(f, "no such section:", name.data);
}

/* inih asks for the next line, as fgets would. After an error there are no more lines. */
static char *config_next_line(char *str, int num, void *stream)
{
    struct config_file *f = stream;
    const char *eol;
    size_t n;

    if (f->message->len || f->p == f->end)
        return NULL;
    f->line++;
    eol = memchr(f->p, '\n', (size_t)(f->end - f->p));
    if (!eol)
        eol = f->end;
    if (f->line == 1 && eol - f->p >= 3 && memcmp(f->p, "\xef\xbb\xbf", 3) == 0)
        f->p += 3; /* a byte order mark */
    while (f->p < eol && (*f->p == ' ' || *f->p == '\t'))
        f->p++;
    n = (size_t)(eol - f->p);
    if (n + 3 > (size_t)num) {
        config_file_error(f, "the line is too long", NULL);
        return NULL;
    }
    if (memchr(f->p, 0, n)) {
        config_file_error(f, "the line has a zero byte: this is not a text file", NULL);
        return NULL;
    }
    memcpy(str, f->p, n);
    str[n] = '\n';
    str[n + 1] = 0;
    f->p = eol < f->end ? eol + 1 : eol;
    config_look_at_section(f, str);
    return f->message->len ? NULL : str;
}

static struct config_store *config_store_of(struct config *c, unsigned part)
{
    return part ? &c->partitions[part - 1].store : &c->store;
}

/* `drive = PATH` may be given several times: each adds one. */
static void config_add_drive(struct config_file *f, unsigned part, const char *value)
{
    struct config_store *s = config_store_of(f->config, part);
    struct config_seen *seen = &f->seen[part];

    if (seen->drives == CONFIG_DRIVES_MAX) {
        config_file_error(f, "too many drives, at most 32", NULL);
        return;
    }
    if (!*value || strlen(value) >= CONFIG_PATH_MAX) {
        config_file_error(f, "drive: give the path of a block device or file, not", value);
        return;
    }
    s->paths = mem_realloc(s->paths, (seen->drives + 1) * sizeof(*s->paths));
    memcpy(s->paths[seen->drives], value, strlen(value) + 1);
    s->drives = ++seen->drives;
}

static void config_file_setting(struct config_file *f, unsigned part, size_t i, const char *value)
{
    const struct config_setting *s = &config_settings[i];
    unsigned *line = &f->seen[part].lines[i];
    char *field = part ? (char *)config_store_of(f->config, part) + s->offset - CONFIG_AT(store)
                       : (char *)f->config + s->offset;
    char where[CONFIG_PATH_MAX + 64];

    if (*line) {
        strbuf_addf(f->message, "%s:%u: %s is given twice, first on line %u", f->name, f->line,
                    s->name, *line);
        return;
    }
    *line = f->line;
    snprintf(where, sizeof(where), "%s:%u: %s", f->name, f->line, s->name);
    config_set(s, field, value, where, f->message);
}

/* Sets what the section's setting of that name is; false when there is none. `data` is where all
 * partitions lie. */
static bool config_take(struct config_file *f, unsigned part, const char *section, const char *name,
                        const char *value)
{
    if (strcmp(section, "store") == 0 && strcmp(name, "drive") == 0) {
        config_add_drive(f, part, value);
        return true;
    }
    for (size_t i = 0; i < CONFIG_SETTINGS; i++)
        if (strcmp(config_settings[i].section, section) == 0 &&
            strcmp(config_settings[i].name, name) == 0 && !(part && strcmp(name, "data") == 0)) {
            config_file_setting(f, part, i, value);
            return true;
        }
    return false;
}

/* Zero ends the parsing. */
static int config_handler(void *user, const char *section, const char *name, const char *value)
{
    const char *partition = config_partition_of(section);
    struct config_file *f = user;
    unsigned part = partition ? config_partition(f, partition) : 0;

    if (f->message->len || config_take(f, part, partition ? "store" : section, name, value))
        return !f->message->len;
    if (!*section)
        config_file_error(f, "a setting before the first [section]:", name);
    else
        strbuf_addf(f->message, "%s:%u: [%s] has no setting \"%.100s\"", f->name, f->line, section,
                    name);
    return !f->message->len;
}

/* `drives` and `drive` both say how many there are. */
static void config_file_check(struct config_file *f)
{
    for (unsigned part = 0; part <= f->config->partition_count; part++)
        for (size_t i = 0; i < CONFIG_SETTINGS; i++)
            if (strcmp(config_settings[i].name, "drives") == 0 && f->seen[part].lines[i] &&
                f->seen[part].drives)
                strbuf_addf(f->message,
                            "%s:%u: give either drives (a number of files) or drive (paths), not "
                            "both",
                            f->name, f->seen[part].lines[i]);
}

int config_parse(struct config *c, const char *name, const char *text, size_t len,
                 struct strbuf *message)
{
    struct config_file f = {
        .config = c, .name = name, .p = text, .end = text + len, .message = message};
    int r;

    /* Settings of the library, the same for every caller. */
    ini_allow_multiline = false;
    ini_use_stack = false;
    ini_initial_alloc = ini_max_line = CONFIG_LINE_MAX;
    ini_stop_on_first_error = true;
    r = ini_parse_stream(config_next_line, &f, config_handler, &f);
    CHECK(r != -2); /* out of memory */
    if (!message->len && r > 0)
        strbuf_addf(message, "%s:%d: neither [section] nor name = value", name, r);
    if (!message->len)
        config_file_check(&f);
    return message->len ? ERR_CONFIG : 0;
}

/* The text, mem_alloc. A FIFO or device is as good as a file. */
static char *config_read(const char *path, size_t *ret_len, struct strbuf *message)
{
    FILE *file = fopen(path, "re");
    char *text;
    size_t n;

    if (!file) {
        strbuf_addf(message, "--config %s: cannot be read: %m", path);
        return NULL;
    }
    text = mem_alloc(CONFIG_FILE_MAX + 1);
    n = fread(text, 1, CONFIG_FILE_MAX + 1, file);
    if (ferror(file))
        strbuf_addf(message, "--config %s: cannot be read: %m", path);
    else if (n > CONFIG_FILE_MAX)
        strbuf_addf(message, "--config %s: larger than 1 MiB: not a configuration", path);
    fclose(file);
    if (message->len) {
        mem_free(text);
        return NULL;
    }
    *ret_len = n;
    return text;
}

static void config_load_file(struct config *c, const char *path, struct strbuf *message)
{
    size_t len;
    char *text;

    if (strlen(path) >= CONFIG_PATH_MAX) {
        strbuf_addf(message, "--config: the path is too long");
        return;
    }
    memcpy(c->file, path, strlen(path) + 1);
    text = config_read(path, &len, message);
    if (!text)
        return;
    config_parse(c, path, text, len, message);
    mem_free(text);
}

/* ---- The command line ----------------------------------------------------------------------- */

static const char config_help[] =
    "Usage: filmroomd --data DIR [options]\n"
    "\n"
    "Keeps VM disks and DICOM studies in the directory DIR and serves them by NBD, DICOM\n"
    "and DICOMweb. Runs in the foreground until SIGTERM or SIGINT.\n"
    "\n"
    "  --data DIR         the data directory, made if missing\n"
    "  --capacity SIZE    room for data as stored, as in 500G (default 64G)\n"
    "  --nbd-port N       NBD port (default 10809)\n"
    "  --dicom-port N     DICOM port (default 11112)\n"
    "  --http-port N      DICOMweb port (default 8042)\n"
    "                     0 picks a free port; filmroom status tells which\n"
    "  --aet TITLE        our DICOM AE title (default FILMROOM)\n"
    "  --config FILE      settings from FILE; options here go before it\n"
    "  --help, --version\n"
    "\n"
    "Everything listens on 127.0.0.1 unless the file says otherwise. See filmroomd(8).\n";

struct config_args {
    int argc;
    char *const *argv;
    const char *file;
    const char *values[CONFIG_SETTINGS]; /* of options given, by setting */
};

/* "--name value" or "--name=value" at argv[*i]; NULL when it is another option. */
static const char *config_option(struct config_args *a, int *i, const char *name,
                                 struct strbuf *message)
{
    const char *arg = a->argv[*i] + 2;
    size_t n = strlen(name);

    if (strncmp(arg, name, n) != 0 || (arg[n] && arg[n] != '='))
        return NULL;
    if (arg[n] == '=')
        return arg + n + 1;
    if (*i + 1 < a->argc)
        return a->argv[++*i];
    strbuf_addf(message, "--%s: a value is missing", name);
    return "";
}

static void config_take_option(struct config_args *a, int *i, struct strbuf *message)
{
    const char *arg = a->argv[*i], *value = config_option(a, i, "config", message);

    if (value) {
        a->file = value;
        return;
    }
    for (size_t s = 0; s < CONFIG_SETTINGS; s++) {
        const char *option = config_settings[s].option;

        value = option ? config_option(a, i, option, message) : NULL;
        if (!value)
            continue;
        if (a->values[s] && !message->len)
            strbuf_addf(message, "--%s is given twice", option);
        a->values[s] = value;
        return;
    }
    strbuf_addf(message, "%.100s: no such option: see filmroomd --help", arg);
}

static int config_take_args(struct config_args *a, struct strbuf *message)
{
    for (int i = 1; i < a->argc && !message->len; i++) {
        const char *arg = a->argv[i];

        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            strbuf_adds(message, config_help);
            return CONFIG_TELL;
        }
        if (strcmp(arg, "--version") == 0) {
            strbuf_adds(message, "filmroomd " FILMROOM_VERSION "\n");
            return CONFIG_TELL;
        }
        if (strncmp(arg, "--", 2) != 0)
            strbuf_addf(message, "%.100s: not an option: see filmroomd --help", arg);
        else
            config_take_option(a, &i, message);
    }
    return message->len ? ERR_CONFIG : CONFIG_RUN;
}

static void config_store_check(const struct config_store *s, const char *where,
                               struct strbuf *message)
{
    unsigned columns = s->data_columns + s->parity_columns;

    if (!message->len && columns > s->drives)
        strbuf_addf(message, "%sprofile %u+%u needs %u drives, there are %u", where,
                    s->data_columns, s->parity_columns, columns, s->drives);
}

int config_check(const struct config *c, struct strbuf *message)
{
    if (!c->store.data[0])
        strbuf_addf(message, "no data directory: give --data DIR, or data = DIR in [store] of the "
                             "file given with --config");
    config_store_check(&c->store, "", message);
    for (unsigned i = 0; i < c->partition_count; i++) {
        char where[64];

        snprintf(where, sizeof(where), "[partition %s]: ", c->partitions[i].name);
        config_store_check(&c->partitions[i].store, where, message);
    }
    return message->len ? ERR_CONFIG : 0;
}

/* Of a partition: what RocksDB may have open (KV_ROCKS_OPEN_FILES in lib/kv, and a few); drives, of
 * which more may be added, and every path where one may be is looked at; the loop's own. */
#define CONFIG_PARTITION_FILES (256u + 16 + 2 * CONFIG_DRIVES_MAX + 8)
/* Connections beyond a limit, for as long as it takes to say so; and the admin socket's. */
#define CONFIG_SPARE_CONNECTIONS 160u
/* Listeners, the log, and what libraries have open for themselves. */
#define CONFIG_OTHER_FILES 32u

unsigned config_descriptors(const struct config *c)
{
    /* An association is a socket and a copy of it (lib/dicom/scp.cc). */
    return c->nbd.max_connections + 2 * c->dicom.max_associations + c->http.max_connections +
           (c->partition_count + 1) * CONFIG_PARTITION_FILES + CONFIG_SPARE_CONNECTIONS +
           CONFIG_OTHER_FILES;
}

/* Where the other partitions lie, now that it is known where the first does. */
static void config_place_partitions(struct config *c, struct strbuf *message)
{
    for (unsigned i = 0; i < c->partition_count; i++) {
        struct config_partition *p = &c->partitions[i];
        int n = snprintf(p->store.data, sizeof(p->store.data), "%s/partitions/%s", c->store.data,
                         p->name);

        if ((n < 0 || (size_t)n >= sizeof(p->store.data)) && !message->len)
            strbuf_addf(message, "[partition %s]: the path of its data directory is too long",
                        p->name);
    }
}

/* Paths as they are to be read by whoever runs elsewhere, and noted in DIR/drive-paths: absolute,
 * but for what is named by the data directory, which is moved and copied with it. */
static void config_place_drives(struct config_store *s, const char *here, struct strbuf *message)
{
    size_t n = strlen(s->data);

    for (unsigned i = 0; s->paths && i < s->drives; i++) {
        MEM_AUTO char *path = mem_strdup(s->paths[i]);
        int len;

        if (path[0] == '/' || (strncmp(path, s->data, n) == 0 && path[n] == '/'))
            continue;
        len = here ? snprintf(s->paths[i], sizeof(s->paths[i]), "%s/%s", here, path) : -1;
        if ((len < 0 || (size_t)len >= sizeof(s->paths[i])) && !message->len)
            strbuf_addf(message,
                        "drive = %.100s: give an absolute path: that of the current "
                        "directory is too long or not known",
                        path);
    }
}

static void config_place_all_drives(struct config *c, struct strbuf *message)
{
    char buf[CONFIG_PATH_MAX];
    const char *here = getcwd(buf, sizeof(buf));

    config_place_drives(&c->store, here, message);
    for (unsigned i = 0; i < c->partition_count; i++)
        config_place_drives(&c->partitions[i].store, here, message);
}

/* Were it left to the start, the drive's own lock would be taken for another daemon's. */
static void config_check_drives(struct config *c, struct strbuf *message)
{
    const char *seen[CONFIG_PARTITIONS_MAX * CONFIG_DRIVES_MAX];
    unsigned n = 0;

    for (unsigned part = 0; part <= c->partition_count; part++) {
        const struct config_store *s = config_store_of(c, part);

        for (unsigned i = 0; s->paths && i < s->drives; i++)
            seen[n++] = s->paths[i];
    }
    for (unsigned i = 1; i < n && !message->len; i++)
        for (unsigned j = 0; j < i && !message->len; j++)
            if (strcmp(seen[i], seen[j]) == 0)
                strbuf_addf(message, "drive = %.100s is given twice: each drive has its own path",
                            seen[i]);
}

int config_load(int argc, char *const argv[], struct config *ret_config, struct strbuf *message)
{
    struct config_args a = {.argc = argc, .argv = argv};
    struct config *c = ret_config;
    int r = config_take_args(&a, message);

    if (r != CONFIG_RUN)
        return r;
    config_defaults(c);
    if (a.file)
        config_load_file(c, a.file, message);
    for (size_t s = 0; s < CONFIG_SETTINGS && !message->len; s++)
        if (a.values[s]) {
            char where[40];

            snprintf(where, sizeof(where), "--%s", config_settings[s].option);
            config_set(&config_settings[s], (char *)c + config_settings[s].offset, a.values[s],
                       where, message);
        }
    if (!message->len)
        config_check(c, message);
    if (!message->len)
        config_place_partitions(c, message);
    if (!message->len)
        config_place_all_drives(c, message);
    if (!message->len)
        config_check_drives(c, message);
    if (!message->len)
        return CONFIG_RUN;
    config_free(c);
    return ERR_CONFIG;
}

/* filmroom-dump: shows what a store at rest holds, as it lies on drives and in the metadata; see
 * docs/man/filmroom-dump.8. Nothing is changed.
 *
 * Each subcommand makes a JSON value. As text the same value is shown in lines, so that the two say
 * the same.
 */
#include "tools/dump.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/base/size.h"

/* ---- Values ---- */

void dump_set(json_t *o, const char *name, uint64_t value)
{
    (void)json_object_set_new(o, name, json_integer((json_int_t)value));
}

void dump_set_text(json_t *o, const char *name, const char *text, size_t len)
{
    json_t *s = json_stringn(text, len);
    MEM_AUTO char *safe = NULL;

    if (!s) {
        safe = mem_memdup(text, len);
        for (size_t i = 0; i < len; i++)
            if ((unsigned char)safe[i] >= 0x80)
                safe[i] = '?';
        s = json_stringn(safe, len);
    }
    (void)json_object_set_new(o, name, s);
}

void dump_set_hex(json_t *o, const char *name, const uint8_t *p, size_t n)
{
    STRBUF_AUTO struct strbuf hex = STRBUF_INIT;

    for (size_t i = 0; i < n; i++)
        strbuf_addf(&hex, "%02x", p[i]);
    (void)json_object_set_new(o, name, json_string(hex.data));
}

void *dump_get(struct dump *d, enum kv_table t, struct kv_slice key, size_t *ret_len)
{
    void *value = NULL;
    int rc = kv_get(d->o.kv, t, key, &value, ret_len);

    if (rc < 0 && rc != ERR_NOENT)
        dump_fail(d, "the metadata cannot be read: %s", err_text(rc));
    return rc < 0 ? NULL : value;
}

void dump_fail(struct dump *d, const char *fmt, ...)
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    va_list ap;

    va_start(ap, fmt);
    strbuf_addvf(&text, fmt, ap);
    va_end(ap);
    offline_say(&d->o, "%s", text.data);
    d->code = DUMP_FAILED;
}

/* ---- Text: an object's fields in lines, an array's objects in one line each ---- */

static void text_scalar(const json_t *v)
{
    if (json_is_integer(v))
        printf("%llu", (unsigned long long)json_integer_value(v));
    else if (json_is_string(v))
        for (const char *s = json_string_value(v); *s; s++)
            putchar((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s);
    else
        fputs(json_is_true(v) ? "yes" : json_is_false(v) ? "no" : "-", stdout);
}

static bool is_flat(const json_t *v)
{
    return !json_is_object(v) && (!json_is_array(v) || !json_is_object(json_array_get(v, 0)));
}

static void text_flat(const json_t *v)
{
    if (!json_is_array(v)) {
        text_scalar(v);
        return;
    }
    for (size_t i = 0; i < json_array_size(v); i++) {
        if (i)
            putchar(',');
        text_scalar(json_array_get(v, i));
    }
}

/* The flat fields of a row in one line, and what is nested in lines below: an object as one row, an
 * array as one for each element. */
static void text_row(json_t *row, unsigned depth)
{
    const char *name, *space = "";
    json_t *v;

    printf("%*s", (int)(2 * depth), "");
    json_object_foreach(row, name, v)
    {
        if (!is_flat(v))
            continue;
        printf("%s%s=", space, name);
        text_flat(v);
        space = " ";
    }
    putchar('\n');
    json_object_foreach(row, name, v)
    {
        if (is_flat(v))
            continue;
        printf("%*s%s:\n", (int)(2 * depth + 2), "", name);
        if (json_is_object(v))
            text_row(v, depth + 2);
        for (size_t i = 0; i < json_array_size(v); i++)
            text_row(json_array_get(v, i), depth + 2);
    }
}

static void text_object(json_t *o, unsigned depth)
{
    const char *name;
    json_t *v;

    json_object_foreach(o, name, v)
    {
        if (is_flat(v)) {
            printf("%*s%s: ", (int)(2 * depth), "", name);
            text_flat(v);
            putchar('\n');
            continue;
        }
        if (json_is_object(v)) {
            printf("%*s%s:\n", (int)(2 * depth), "", name);
            text_object(v, depth + 1);
            continue;
        }
        printf("%*s%s: %zu\n", (int)(2 * depth), "", name, json_array_size(v));
        for (size_t i = 0; i < json_array_size(v); i++)
            text_row(json_array_get(v, i), depth + 1);
    }
}

/* ---- Subcommands ---- */

enum need { NEED_NOTHING, NEED_DRIVES, NEED_DRIVES_MAYBE_KV, NEED_KV };

struct subcommand {
    const char *name;
    unsigned min, max; /* arguments */
    enum need need;
    bool number; /* the first argument is one */
    void (*run)(struct dump *d);
};

static const struct subcommand subcommands[] = {
    {"superblock", 0, 1, NEED_NOTHING, true, dump_superblock},
    {"journal", 0, 0, NEED_DRIVES, false, dump_journal},
    {"segments", 0, 0, NEED_DRIVES_MAYBE_KV, false, dump_segments},
    {"segment", 1, 1, NEED_DRIVES_MAYBE_KV, true, dump_segment},
    {"chunk", 1, 1, NEED_KV, true, dump_chunk},
    {"scrub", 0, 0, NEED_KV, false, dump_scrub},
    {"instance", 1, 1, NEED_KV, false, dump_instance},
    {"volume", 1, 2, NEED_KV, false, dump_volume},
    {"buckets", 0, 0, NEED_KV, false, dump_buckets},
    {"object", 1, 1, NEED_KV, false, dump_object},
};

struct dump_call {
    struct dump d;
    const struct subcommand *sub;
};

/* Without a KV store what is on drives is still shown. */
static void open_maybe_kv(struct dump *d)
{
    if (place_open_kv(d->o.env, &d->o.config, &d->o.place, PLACE_EXTANT, &d->o.kv) < 0)
        d->o.kv = NULL;
}

static void dump_main(void *arg)
{
    struct dump_call *c = arg;
    struct dump *d = &c->d;
    int rc = c->sub->need == NEED_NOTHING ? 0 : offline_open_drives(&d->o);

    if (rc == 0 && c->sub->need == NEED_KV)
        rc = offline_open_kv(&d->o);
    else if (rc == 0 && c->sub->need == NEED_DRIVES_MAYBE_KV)
        open_maybe_kv(d);
    if (rc < 0)
        d->code = DUMP_FAILED;
    else
        c->sub->run(d);
    if (offline_close(&d->o) < 0)
        d->code = DUMP_FAILED;
}

/* ---- The command line ---- */

static const char usage[] =
    "Usage: filmroom-dump --data DIR [--config FILE] [--partition NAME] [--json] SUBCOMMAND\n"
    "\n"
    "Shows what a store holds while no daemon runs on it.\n"
    "\n"
    "  superblock [DRIVE]      both superblocks of all drives, or of one\n"
    "  journal [--from LSN]    what the journal's ring holds\n"
    "  segments                segments, as drives and metadata know them\n"
    "  segment ID              one segment: its stripes and the chunks in them\n"
    "  chunk ID                one chunk: where it lies, who it is\n"
    "  scrub                   where scrub is, and what it found\n"
    "  instance UID            one instance: its row and what it is made of\n"
    "  volume NAME [FROM-TO]   one volume: what it maps, in a range of bytes\n"
    "  buckets                 the buckets\n"
    "  object BUCKET/NAME      one object: its row and what it is made of\n"
    "\n"
    "superblock, journal, segments and segment need the drives alone.\n"
    "\n"
    "  --data DIR     the data directory\n"
    "  --config FILE  the daemon's settings, where it has a file\n"
    "  --partition NAME\n"
    "                 another partition than the first\n"
    "  --json         tell in JSON\n"
    "  --help, --version\n";

static bool parse_number(const char *text, uint64_t *ret)
{
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return errno == 0 && *end == 0;
}

/* "FROM-TO", each a size. */
static bool parse_range(const char *text, uint64_t *ret_from, uint64_t *ret_to)
{
    const char *dash = strchr(text, '-');
    MEM_AUTO char *from = NULL;

    if (!dash)
        return false;
    from = mem_strdup(text);
    from[dash - text] = 0;
    return size_parse(from, ret_from) == 0 && size_parse(dash + 1, ret_to) == 0 &&
           *ret_from < *ret_to;
}

/* What is wrong with the arguments; NULL: nothing. */
static const char *wrong_args(struct dump_call *c, unsigned n)
{
    struct dump *d = &c->d;

    if (n < c->sub->min)
        return "an argument is missing";
    if (n > c->sub->max)
        return "too many arguments";
    if (c->sub->number && n && !parse_number(d->args[0], &d->number))
        return "the argument must be a number";
    if (c->sub->run == dump_volume && n == 2 && !parse_range(d->args[1], &d->from, &d->to))
        return "the range must be FROM-TO, two sizes as in 0-1M, the second one greater";
    return NULL;
}

static bool take_args(struct dump_call *c, const char *name, unsigned n)
{
    const char *wrong;
    struct dump *d = &c->d;

    for (size_t i = 0; name && i < sizeof(subcommands) / sizeof(subcommands[0]); i++)
        if (strcmp(subcommands[i].name, name) == 0)
            c->sub = &subcommands[i];
    if (!c->sub) {
        offline_say(&d->o, "%.100s%s: see filmroom-dump --help", name ? name : "",
                    name ? ": no such subcommand" : "a subcommand is missing");
        return false;
    }
    wrong = wrong_args(c, n);
    if (wrong)
        offline_say(&d->o, "%s: %s: see filmroom-dump --help", name, wrong);
    return !wrong;
}

/* Options and words; returns -1 to go on. */
static int parse(struct dump_call *c, int argc, char **argv, struct offline_args *args)
{
    struct dump *d = &c->d;
    const char *value, *name = NULL;
    unsigned n = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return DUMP_OK;
        }
        if (strcmp(argv[i], "--version") == 0) {
            puts("filmroom-dump " FILMROOM_VERSION);
            return DUMP_OK;
        }
        if (offline_take(args, argc, argv, &i))
            continue;
        if (strcmp(argv[i], "--json") == 0)
            d->json = true;
        else if ((value = offline_option(argc, argv, &i, "from"))) {
            if (!parse_number(value, &d->from)) {
                offline_say(&d->o, "--from: an LSN is a number");
                return DUMP_USAGE;
            }
        } else if (argv[i][0] == '-' || n == 3) {
            offline_say(&d->o, "%.100s: not expected: see filmroom-dump --help", argv[i]);
            return DUMP_USAGE;
        } else if (!name)
            name = argv[i];
        else
            d->args[n++] = argv[i];
    }
    return take_args(c, name, n) ? -1 : DUMP_USAGE;
}

int main(int argc, char **argv)
{
    struct dump_call c = {.d = {.o.tool = "filmroom-dump", .to = UINT64_MAX}};
    struct offline_args args = {0};
    struct dump *d = &c.d;
    int rc = parse(&c, argc, argv, &args);

    if (rc >= 0)
        return rc;
    if (!offline_settings(&d->o, &args))
        return DUMP_USAGE;
    if (!offline_run(&d->o, dump_main, &c)) {
        d->code = DUMP_FAILED;
    }
    if (d->out && (d->anyway || d->code == DUMP_OK)) {
        if (d->json) {
            (void)json_dumpf(d->out, stdout, JSON_INDENT(2));
            putchar('\n');
        } else {
            text_object(d->out, 0);
        }
    }
    json_decref(d->out);
    offline_free(&d->o);
    return d->code;
}

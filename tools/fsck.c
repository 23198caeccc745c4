/* filmroom-fsck: checks a store on which no daemon runs, and mends what follows from the rest; see
 * docs/man/filmroom-fsck.8.
 *
 * A journal that is not clean is replayed first, as a start of the daemon would. But the engine
 * trusts the state that it starts from, so that state is audited before: every state between two
 * records is whole, and one that is not is no ground to replay on.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "daemon/audit.h"
#include "daemon/partition.h"
#include "daemon/rebuild.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "tools/offline.h"

/* Exit codes, as of fsck(8); 1 and 4 add up. */
enum { FSCK_MENDED = 1, FSCK_LEFT = 4, FSCK_FAILED = 8, FSCK_USAGE = 16 };

#define FSCK_PASSES   4u     /* what was mended may uncover more */
#define FSCK_JSON_MAX 10000u /* findings listed */

struct fsck {
    struct offline o;
    bool deep, json, repair, rebuild, terminal;
    int code;
    bool clean;            /* the journal was, when we came */
    bool was_replayed;     /* it was not, and is now */
    uint64_t replayed;     /* records */
    bool quiet_left;       /* findings that stay were told in the pass before */
    uint64_t mended, open; /* findings of the audit: mended; still there */
    uint64_t own;          /* findings beside the audit's, which stay */
    struct audit_result result;
    struct rebuild_result rebuilt;
    json_t *findings;
};

/* ---- Telling ---- */

static void progress_clear(const struct fsck *f)
{
    if (f->terminal)
        fputs("\r\033[K", stderr);
}

static void on_progress(void *arg, const char *what, uint64_t done)
{
    struct fsck *f = arg;

    if (f->terminal)
        fprintf(stderr, "\r\033[K%s: %llu", what, (unsigned long long)done);
}

/* What comes from names in the store must not steer the terminal. */
static void print_safe(const char *text)
{
    for (; *text; text++)
        putchar((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
}

static void tell(struct fsck *f, const char *kind, const char *text, enum audit_fate fate)
{
    static const char *const words[] = {"mended", "mendable", "left"};
    static const char *const said[] = {"mended", "--repair would mend it", "cannot be mended"};

    if (f->json) {
        json_t *string = json_string(text);

        if (!string)
            string = json_string("(what there is to say has names that are not UTF-8)");
        if (json_array_size(f->findings) < FSCK_JSON_MAX)
            (void)json_array_append_new(
                f->findings,
                json_pack("{s:s, s:s, s:O}", "kind", kind, "fate", words[fate], "text", string));
        json_decref(string);
        return;
    }
    progress_clear(f);
    printf("%s: ", kind);
    print_safe(text);
    printf(" (%s)\n", said[fate]);
}

/* A finding that is not the audit's. It stays. */
static void tell_own(struct fsck *f, const char *kind, const char *text, enum audit_fate fate)
{
    f->own++;
    f->code |= FSCK_LEFT;
    tell(f, kind, text, fate);
}

static uint64_t left(const struct fsck *f)
{
    return f->open + f->own;
}

static void on_found(void *arg, const struct audit_finding *finding)
{
    struct fsck *f = arg;

    if (finding->fate == AUDIT_LEFT && f->quiet_left)
        return;
    tell(f, finding->kind, finding->text, finding->fate);
}

/* ---- Checking ---- */

/* Audits until nothing more is mended. */
static int fsck_audit(struct fsck *f, bool deep)
{
    struct audit_params p = {.kv = f->o.kv,
                             .repair = f->repair,
                             .drives = f->o.drives,
                             .deep = deep,
                             .found = on_found,
                             .progress = on_progress,
                             .arg = f};
    int rc = 0;

    f->quiet_left = false;
    for (unsigned i = 0; rc == 0 && i < FSCK_PASSES; i++) {
        rc = audit_run(&p, &f->result);
        if (rc < 0)
            break;
        f->mended += f->result.mended;
        f->open = f->result.found - f->result.mended;
        f->quiet_left = true;
        if (f->result.mended == 0)
            break;
        rc = kv_flush(f->o.kv);
    }
    progress_clear(f);
    if (rc < 0) {
        offline_say(&f->o,
                    rc == ERR_TIMEDOUT ? "a drive cannot be read: %s"
                                       : "the metadata cannot be read or written: %s",
                    err_text(rc));
        f->code |= FSCK_FAILED;
    }
    return rc;
}

static void rebuild_failed(const struct fsck *f, int rc)
{
    const struct offline *o = &f->o;

    if (rc == ERR_EXIST)
        offline_say(o,
                    "there is metadata in %s: check it without --rebuild; if it is not to be "
                    "used, move that directory away first",
                    o->place.kv);
    else if (rc == ERR_NOENT)
        offline_say(o, "the drives hold no copy of the metadata: bring %s back", o->place.kv);
    else if (rc == ERR_LOST && f->rebuilt.chunks_lost)
        offline_say(o,
                    "%llu of %llu parts of the metadata's copy cannot be read from any drive: "
                    "bring a missing drive back; or give --rebuild --repair, which brings back "
                    "what the others have",
                    (unsigned long long)f->rebuilt.chunks_lost,
                    (unsigned long long)(f->rebuilt.chunks_lost + f->rebuilt.chunks));
    else
        offline_advise(o, "cannot make the metadata anew in", o->place.kv, rc);
}

/* Makes the metadata anew. Suspends. */
static int fsck_rebuild(struct fsck *f)
{
    int rc = place_open_kv(f->o.env, &f->o.config, &f->o.place, PLACE_MAKE, &f->o.kv);

    if (rc < 0) {
        f->o.kv = NULL;
        offline_say(&f->o, "cannot open the metadata in %s: move that directory away first: %s",
                    f->o.place.kv, err_text(rc));
        return rc;
    }
    driveset_close(f->o.drives);
    f->o.drives = NULL;
    rc = rebuild_metadata(f->o.env, f->o.kv, (const char *const *)f->o.place.drives,
                          f->o.place.count, f->repair, &f->rebuilt);
    if (rc < 0) {
        rebuild_failed(f, rc);
        return rc;
    }
    f->code |= FSCK_MENDED;
    if (f->rebuilt.chunks_lost)
        tell_own(f, "copy-lost", "parts of the metadata's copy are lost: what they had is missing",
                 AUDIT_LEFT);
    return offline_open_drives(&f->o);
}

static int fsck_open(struct fsck *f)
{
    int rc = offline_open_drives(&f->o);

    if (rc == 0)
        rc = f->rebuild ? fsck_rebuild(f) : offline_open_kv(&f->o);
    if (rc == 0) {
        rc = partition_match(f->o.kv, f->o.drives);
        if (rc < 0)
            offline_advise(&f->o, "cannot check", f->o.config.store.data, rc);
    }
    if (rc < 0)
        f->code |= FSCK_FAILED;
    return rc;
}

/* A start and a clean stop. A failure is a finding: it is what a start would meet. */
static int fsck_replay(struct fsck *f)
{
    struct partition_options options = {.cache_bytes = f->o.config.store.cache_size / 2};
    struct partition_start start;
    struct partition *p;
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    int rc;

    driveset_close(f->o.drives); /* the partition opens them itself */
    f->o.drives = NULL;
    rc = partition_open(f->o.env, f->o.kv, (const char *const *)f->o.place.drives, f->o.place.count,
                        &options, &start, &p);
    if (rc == 0) {
        f->replayed = start.replay.records;
        rc = partition_close(p);
    }
    f->was_replayed = rc == 0;
    if (rc < 0) {
        MEM_AUTO char *advice = place_advice(&f->o.place, rc);

        strbuf_addf(&text, "the journal could not be replayed: %s", advice);
        tell_own(f, "journal", text.data, AUDIT_LEFT);
    }
    return offline_open_drives(&f->o);
}

/* What readers and scrub had found: to look who has them takes reading everything. */
static void tell_known_lost(struct fsck *f)
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;

    strbuf_addf(&text, "%llu chunks were found that no drives give: --deep tells whose they are",
                (unsigned long long)f->result.known_lost);
    tell_own(f, "lost", text.data, AUDIT_LEFT);
}

static void fsck_check(struct fsck *f)
{
    /* A clean stop's metadata may be gone, what was made anew wants the journal. */
    f->clean = f->o.drives->super.clean && !f->rebuild;
    if (!f->clean) {
        if (fsck_audit(f, false) < 0)
            return;
        if (f->open) {
            tell_own(f, "journal", "it was not replayed, as the state it would change is damaged",
                     f->repair ? AUDIT_LEFT : AUDIT_MENDABLE);
        } else if (fsck_replay(f) < 0) {
            f->code |= FSCK_FAILED;
            return;
        }
    }
    /* What was found on the way to a replay that was not made is known already. */
    if (f->clean || f->deep || !f->open)
        (void)fsck_audit(f, f->deep);
    if (!f->deep && f->result.known_lost)
        tell_known_lost(f);
    if (f->mended)
        f->code |= FSCK_MENDED;
    if (f->open)
        f->code |= FSCK_LEFT;
}

/* ---- Summing up ---- */

static void print_rebuilt(const struct fsck *f)
{
    time_t when = (time_t)(f->rebuilt.time / ENV_NS_PER_S);
    struct tm tm;
    char text[32] = "";

    if (!f->rebuild)
        return;
    if (f->rebuilt.time && gmtime_r(&when, &tm))
        (void)strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &tm);
    if (*text)
        printf("the metadata was made anew: %llu rows from the copy of %s, and the journal\n",
               (unsigned long long)f->rebuilt.rows, text);
    else
        printf("the metadata was made anew from the journal, which has all of it\n");
}

static json_t *sum_rebuilt(const struct fsck *f)
{
    if (!f->rebuild)
        return json_null();
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "rows", (json_int_t)f->rebuilt.rows, "time",
                     (json_int_t)(f->rebuilt.time / ENV_NS_PER_S), "record",
                     (json_int_t)f->rebuilt.settled, "chunks", (json_int_t)f->rebuilt.chunks,
                     "chunks_lost", (json_int_t)f->rebuilt.chunks_lost);
}

static const char *drive_word(const struct drive *d)
{
    return d->state == DRIVE_OK        ? "ok"
           : d->state == DRIVE_MISSING ? "missing"
           : d->state == DRIVE_NONE    ? "none"
                                       : "failed";
}

static void print_sum(const struct fsck *f)
{
    const struct audit_result *r = &f->result;

    for (unsigned i = 0; i < f->o.drives->count; i++) {
        const struct drive *d = &f->o.drives->drives[i];

        if (d->state != DRIVE_OK && d->state != DRIVE_NONE)
            printf("note: drive %u (%s) is %s: %s\n", i, d->path, drive_word(d), d->reason);
        if (r->drives[i].absent_columns)
            printf("note: drive %u: %llu columns of stripes could not be read\n", i,
                   (unsigned long long)r->drives[i].absent_columns);
    }
    print_rebuilt(f);
    if (!f->clean && f->was_replayed)
        printf("the journal was not clean: %llu records replayed\n",
               (unsigned long long)f->replayed);
    else if (!f->clean)
        printf("the journal was not clean: not replayed\n");
    printf("%llu volumes, %llu studies, %llu instances, %llu objects, %llu chunks in %llu segments",
           (unsigned long long)r->volumes, (unsigned long long)r->studies,
           (unsigned long long)r->instances, (unsigned long long)r->objects,
           (unsigned long long)r->chunks, (unsigned long long)r->segments);
    if (f->deep)
        printf("; %llu stripes read", (unsigned long long)r->stripes);
    printf("\n%s: %llu mended, %llu left\n", f->code ? "findings" : "clean",
           (unsigned long long)f->mended, (unsigned long long)left(f));
}

static json_t *sum_drives(const struct fsck *f)
{
    json_t *rows = json_array();

    for (unsigned i = 0; i < f->o.drives->count; i++) {
        const struct drive *d = &f->o.drives->drives[i];
        const struct audit_drive *a = &f->result.drives[i];

        if (d->state == DRIVE_NONE)
            continue;
        (void)json_array_append_new(rows, json_pack("{s:i, s:s, s:s, s:s, s:I, s:I, s:I}", "index",
                                                    (int)i, "path", d->path, "state", drive_word(d),
                                                    "reason", d->reason, "bad_columns",
                                                    (json_int_t)a->bad_columns, "absent_columns",
                                                    (json_int_t)a->absent_columns, "bad_headers",
                                                    (json_int_t)a->bad_headers));
    }
    return rows;
}

static void print_json(struct fsck *f)
{
    const struct audit_result *r = &f->result;
    json_t *checked =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "volumes",
                  (json_int_t)r->volumes, "buckets", (json_int_t)r->buckets, "objects",
                  (json_int_t)r->objects, "patients", (json_int_t)r->patients, "studies",
                  (json_int_t)r->studies, "instances", (json_int_t)r->instances, "chunks",
                  (json_int_t)r->chunks, "segments", (json_int_t)r->segments, "stripes",
                  (json_int_t)r->stripes, "lost_chunks", (json_int_t)r->lost_chunks);
    json_t *sum = json_pack("{s:b, s:I, s:b, s:o, s:I, s:I, s:i, s:o, s:o, s:O}", "journal_clean",
                            f->clean, "replayed_records", (json_int_t)f->replayed, "deep", f->deep,
                            "rebuilt", sum_rebuilt(f), "mended", (json_int_t)f->mended, "left",
                            (json_int_t)left(f), "exit_code", f->code, "checked", checked, "drives",
                            sum_drives(f), "findings", f->findings);

    (void)json_dumpf(sum, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(sum);
}

static void fsck_main(void *arg)
{
    struct fsck *f = arg;

    if (fsck_open(f) == 0)
        fsck_check(f);
    if (f->o.drives && !(f->code & FSCK_FAILED)) {
        if (f->json)
            print_json(f);
        else
            print_sum(f);
    }
    if (offline_close(&f->o) < 0)
        f->code |= FSCK_FAILED;
}

/* ---- The command line ---- */

static const char usage[] =
    "Usage: filmroom-fsck --data DIR [--config FILE] [--partition NAME] [--deep] [--repair]\n"
    "                     [--rebuild] [--json]\n"
    "\n"
    "Checks a store while no daemon runs on it.\n"
    "\n"
    "  --data DIR     the data directory\n"
    "  --config FILE  the daemon's settings, where it has a file\n"
    "  --partition NAME\n"
    "                 another partition than the first\n"
    "  --deep         read everything from the drives and verify it\n"
    "  --repair       mend what follows from the rest\n"
    "  --rebuild      first make lost metadata (DIR/kv) anew from the drives\n"
    "  --json         tell in JSON\n"
    "  --help, --version\n"
    "\n"
    "Exit codes: 0 clean, 1 findings were mended, 4 findings are left, 8 failed, 16 usage.\n";

static bool take_flag(struct fsck *f, const char *arg)
{
    if (strcmp(arg, "--deep") == 0)
        f->deep = true;
    else if (strcmp(arg, "--repair") == 0)
        f->repair = true;
    else if (strcmp(arg, "--rebuild") == 0)
        f->rebuild = true;
    else if (strcmp(arg, "--json") == 0)
        f->json = true;
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    struct fsck f = {.o.tool = "filmroom-fsck"};
    struct offline_args args = {0};

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
        if (strcmp(argv[i], "--version") == 0) {
            puts("filmroom-fsck " FILMROOM_VERSION);
            return 0;
        }
        if (!offline_take(&args, argc, argv, &i) && !take_flag(&f, argv[i])) {
            offline_say(&f.o, "%.100s: no such option: see filmroom-fsck --help", argv[i]);
            return FSCK_USAGE;
        }
    }
    if (!offline_settings(&f.o, &args))
        return FSCK_USAGE;
    f.terminal = isatty(2);
    f.findings = json_array();
    if (!offline_run(&f.o, fsck_main, &f))
        f.code = FSCK_FAILED;
    json_decref(f.findings);
    offline_free(&f.o);
    return f.code;
}

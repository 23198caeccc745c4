/* crash-engine: every crash point of small workloads (crash.h).
 *
 *   crash-engine [--workload NAME] [--drives N] [--jobs N] [--share N] [--full] [--one-cache]
 *                [--plant NAME]
 *   crash-engine --workload NAME --state N [--trace] ...   one state again
 *   crash-engine --list
 *   crash-engine --plants      plants each bug (lib/base/plant.h) in turn and tells what finds it
 *
 * For each workload: moments, states, how many of them are distinct, how many recoveries were tried
 * and failed. A failure is followed by the command that shows it again.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/audit.h"
#include "daemon/rebuild.h"
#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/dicom/dcm.h"
#include "tests/crash/crash.h"
#include "tests/sim/child.h"
#include "tests/sim/plants.h"
#include "tests/sim/tuned.h"

#define LIFE_MAX_NS (3600 * ENV_NS_PER_S)
#define SEED        1u

static const char *const drive_paths[CRASH_DRIVES_MAX] = {
    "drive-0", "drive-1", "drive-2", "drive-3", "drive-4", "drive-5", "drive-6"};

static const char *const variant_texts[CRASH_VARIANTS] = {
    "opened again", "opened again with drives gone", "opened again, cut again, and drives gone",
    "opened again with the KV store made anew"};

const char *crash_disk_path(unsigned i)
{
    return drive_paths[i];
}

/* ---- Failing ---- */

static void print_again(const struct crash *c)
{
    const struct crash_settings *s = c->settings;

    fprintf(stderr, "  again: %s --workload %s --drives %u --state %llu --trace%s%s%s%s\n",
            s->program, c->workload->name, s->drives, (unsigned long long)c->state,
            s->full ? " --full" : "", s->one_cache ? " --one-cache" : "",
            plant_active ? " --plant " : "", plant_active ? plant_names[plant_active] : "");
}

void run_fail(struct run *r, const char *fmt, ...)
{
    const struct crash *c = (const struct crash *)r;
    va_list ap;

    fprintf(stderr, "%s, %u drives, ", c->workload->name, c->disks.count);
    if (c->crashed)
        fprintf(stderr, "state %llu, %s: ", (unsigned long long)c->state,
                variant_texts[c->variant]);
    else
        fprintf(stderr, "no crash yet: ");
    fprintf(stderr, "%s: ", r->phase);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    if (c->crashed)
        print_again(c);
    fflush(stderr);
    _exit(1);
}

void run_trace(struct run *r, const char *fmt, ...)
{
    va_list ap;

    if (!r->options.trace)
        return;
    fprintf(stderr, "[%12.3f ms] ", (double)sim_now(r->sim) / 1e6);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
}

/* A failed check in a child: tell which one before the process ends by the signal. */
static struct crash *current;

static void on_abort(int signal)
{
    (void)signal;
    if (current && current->crashed)
        print_again(current);
    _exit(1);
}

/* ---- What engine processes do ---- */

/* One UUID, so that a format goes on where one was cut short. */
static void format_params(const struct crash *c, struct driveset_params *p)
{
    static const uint8_t uuid[16] = "the crashed one";
    const struct run *r = &c->run;

    *p = (struct driveset_params){.count = r->drives,
                                  .paths = r->paths,
                                  .k = r->k,
                                  .m = r->m,
                                  .slot_count = r->slot_count,
                                  .slot_size = r->slot_size,
                                  .journal_len = r->journal_len,
                                  .uuid = uuid};
}

static int open_store(struct crash *c)
{
    struct run *r = &c->run;
    struct driveset_params params;
    struct partition_start start;
    bool exists = false;
    int rc = crash_meta_open(&c->meta, r->env, &r->kv);

    if (rc == 0)
        rc = partition_exists(r->kv, &exists);
    if (rc == 0 && c->formatted && !exists)
        run_fail(r, "the store that was made is gone");
    if (rc == 0 && !exists) {
        format_params(c, &params);
        rc = partition_format(r->env, r->kv, &params);
        c->formatted = rc == 0;
    }
    if (rc == 0)
        rc = partition_open(r->env, r->kv, r->places, r->place_count, &r->partition, &start, &r->p);
    if (rc == 0)
        run_trace(r, "open, replayed %llu records", (unsigned long long)start.replay.records);
    return rc;
}

void crash_watch(struct crash *c, bool on)
{
    if (!on && crash_point(c))
        fiber_suspend("the power was cut");
    c->watching = on && !c->crashed;
}

void crash_end_life(struct crash *c)
{
    c->over = true;
    sim_pause(c->run.sim);
    for (;;)
        fiber_suspend("the process is killed");
}

static void format_main(void *arg)
{
    struct crash *c = arg;
    struct run *r = &c->run;
    struct driveset_params params;
    int rc;

    format_params(c, &params);
    r->phase = "formatting";
    c->watching = c->workload->watch_format;
    rc = crash_meta_open(&c->meta, r->env, &r->kv);
    if (rc == 0)
        rc = partition_format(r->env, r->kv, &params);
    if (rc < 0)
        run_fail(r, "%s", err_name(rc));
    c->formatted = true;
    c->version++;
    crash_watch(c, false);
    rc = kv_close(r->kv);
    if (rc < 0)
        run_fail(r, "kv_close: %s", err_name(rc));
}

static void close_store(struct crash *c)
{
    struct run *r = &c->run;
    int rc;

    r->phase = "closing";
    rc = partition_close(r->p);
    r->p = NULL;
    if (rc < 0)
        run_fail(r, "%s", err_name(rc));
}

static void work_main(void *arg)
{
    struct crash *c = arg;
    struct run *r = &c->run;
    const struct crash_life *l = &c->workload->lives[c->life];
    int rc;

    r->phase = "opening";
    c->watching = l->watch_open;
    rc = open_store(c);
    if (rc < 0)
        run_fail(r, "%s", err_name(rc));
    crash_watch(c, false);
    r->phase = "working";
    if (l->work)
        l->work(c);
    if (l->end != CRASH_END_CLOSE)
        crash_end_life(c);
    c->watching = l->watch_close;
    close_store(c);
    crash_watch(c, false);
    rc = kv_close(r->kv);
    if (rc < 0)
        run_fail(r, "kv_close: %s", err_name(rc));
}

/* ---- After the crash ---- */

static void found(void *arg, const struct audit_finding *f)
{
    run_fail(arg, "%s: %s", f->kind, f->text);
}

/* Every column of every stripe that is alive. */
static void audit_drives(struct crash *c)
{
    struct run *r = &c->run;
    struct audit_params params = {.kv = r->kv, .deep = true, .found = found, .arg = r};
    struct audit_result result;
    int rc = driveset_open(r->env, r->places, r->place_count, &params.drives);

    if (rc == 0)
        rc = audit_run(&params, &result);
    driveset_close(params.drives);
    if (rc < 0)
        run_fail(r, "%s", err_name(rc));
    if (result.stripes_bad || result.stripes_thin)
        run_fail(r, "of %llu stripes %llu are bad and %llu lack columns",
                 (unsigned long long)result.stripes, (unsigned long long)result.stripes_bad,
                 (unsigned long long)result.stripes_thin);
}

static bool drives_whole(const struct crash *c)
{
    for (unsigned i = 0; i < c->disks.count; i++)
        if (c->disks.disk[i].failing)
            return false;
    return !c->damaged;
}

/* What was ordered of a disk, and acknowledged, has become of it. */
static void verify_member(struct crash *c, unsigned disk)
{
    const struct driveset *ds = partition_drives(c->run.p);
    const struct drive *found = NULL;

    for (unsigned i = 0; i < ds->count; i++)
        if (ds->drives[i].state != DRIVE_NONE && strcmp(ds->drives[i].path, drive_paths[disk]) == 0)
            found = &ds->drives[i];
    if ((c->members.joined >> disk & 1) && !(found && drive_usable(found)))
        run_fail(&c->run, "disk %u is no drive of the store", disk);
    if (!found)
        return;
    if ((found->leaving ? c->members.stay : c->members.leave) >> disk & 1)
        run_fail(&c->run, "disk %u is %sleaving", disk, found->leaving ? "" : "not ");
    if (c->members.class[found->class_ ? 0 : 1] >> disk & 1)
        run_fail(&c->run, "disk %u is of class %u", disk, found->class_);
}

/* The KV store is empty: it is made anew from the drives. A young store may have no copy of it and
 * yet not all of its journal; once there is a copy, there always is one. */
static void rebuild_kv_main(void *arg)
{
    struct crash *c = arg;
    struct run *r = &c->run;
    struct rebuild_result result = {0};
    int rc, closed;

    r->phase = "making the KV store anew";
    rc = crash_meta_open(&c->meta, r->env, &r->kv);
    if (rc == 0)
        rc = rebuild_metadata(r->env, r->kv, r->places, r->place_count, false, &result);
    closed = kv_close(r->kv);
    run_trace(r, "rebuild: %s, %llu rows in %llu chunks up to record %llu, %llu chunks lost",
              err_name(rc), (unsigned long long)result.rows, (unsigned long long)result.chunks,
              (unsigned long long)result.settled, (unsigned long long)result.chunks_lost);
    if (rc == ERR_NOENT && !c->copied)
        child_exit(0);
    if (rc < 0 || closed < 0)
        run_fail(r, "%s, %s", err_name(rc), err_name(closed));
}

static void recover_main(void *arg)
{
    struct crash *c = arg;
    struct run *r = &c->run;
    int rc;

    r->phase = "opening";
    rc = open_store(c);
    if (rc < 0)
        run_fail(r, "%s", err_name(rc));
    r->phase = "verifying";
    verify_all(r);
    for (unsigned i = 0; i < c->disks.count && drives_whole(c); i++)
        verify_member(c, i);
    if (c->stay)
        crash_end_life(c);
    close_store(c);
    r->phase = "recounting";
    recount_all(r);
    if (drives_whole(c))
        audit_drives(c);
    rc = kv_close(r->kv);
    if (rc < 0)
        run_fail(r, "kv_close: %s", err_name(rc));
}

static void hangs(void *arg, const char *name, const char *why)
{
    (void)arg;
    fprintf(stderr, "  fiber %s: %s\n", name, why ? why : "running");
}

static void run_process(struct crash *c, const char *name, fiber_fn fn)
{
    struct run *r = &c->run;

    r->p = NULL;
    r->env = sim_process(r->sim, name, fn, c);
    crash_disks_attach(&c->disks, r->env);
    (void)sim_run(r->sim, sim_now(r->sim) + LIFE_MAX_NS);
    if (sim_process_ended(r->env) || c->over || c->cut)
        return;
    fiber_list(r->env, hangs, NULL);
    run_fail(r, "it hangs");
}

/* Before the process is killed: is there a copy of the metadata, as far as it knows? */
static void look_for_copy(struct crash *c)
{
    struct partition_status s;

    if (!c->run.p || strcmp(c->run.phase, "working") != 0)
        return;
    partition_get_status(c->run.p, &s);
    c->copied = c->copied || s.copy_lsn;
}

static void kill_process(struct crash *c)
{
    sim_kill(c->run.env, false);
    c->run.env = NULL;
    model_crash(&c->run.model);
    for (unsigned i = 0; i < INSTANCES; i++)
        model_instance_crash(&c->run.instances[i]);
    objects_crash(c->run.buckets);
    c->version++;
}

/* As many drives as the profile bears, those that failed before among them. */
static void lose_drives(struct crash *c)
{
    unsigned n = 0, first = (unsigned)(c->state % c->disks.count);

    for (unsigned i = 0; i < c->disks.count && n < c->run.m; i++)
        if (c->damaged >> i & 1) {
            c->disks.disk[i].failing = true;
            n++;
        }
    for (unsigned i = 0; i < c->disks.count && n < c->run.m; i++) {
        struct crash_disk *d = &c->disks.disk[(first + i) % c->disks.count];

        if (!d->failing && d->now.size) {
            d->failing = true;
            n++;
        }
    }
}

/* In the child: the metadata is lost with the power, every other time with drives. */
static void lose_kv(struct crash *c)
{
    crash_meta_lose(&c->meta);
    if (c->state / CRASH_VARIANTS % 2)
        lose_drives(c);
    run_process(c, "rebuild", rebuild_kv_main);
    kill_process(c);
}

/* In the child: the process ends with status 0 when all is well. */
static void crash_check(struct crash *c)
{
    look_for_copy(c);
    kill_process(c);
    c->over = c->cut = false;
    for (unsigned i = 0; i < c->disks.count; i++)
        c->disks.disk[i].failing = false; /* a drive that failed is back */
    if (c->variant == CRASH_LESS)
        lose_drives(c);
    if (c->variant == CRASH_AGAIN) {
        c->stay = true;
        run_process(c, "recovery", recover_main);
        kill_process(c);
        crash_disks_cut(&c->disks, true);
        crash_meta_cut(&c->meta, c->meta.flushed);
        lose_drives(c);
        c->stay = c->over = false;
    }
    if (c->variant == CRASH_KV_LOST)
        lose_kv(c);
    run_process(c, "recovery", recover_main);
    kill_process(c);
    child_exit(0);
}

static void *check_main(void *arg)
{
    crash_check(arg);
    return NULL;
}

/* On a thread of its own: its memory is then not from what the parent has touched, page by page,
 * but new and in large pages (tests/sim/tuned.h). That halves the time of a recovery. */
static void check_apart(struct crash *c)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, check_main, c) != 0)
        run_fail(&c->run, "cannot start a thread");
    (void)pthread_join(thread, NULL);
}

/* ---- A workload ---- */

static unsigned pending(struct crash *c)
{
    unsigned n = 0;

    for (unsigned i = 0; i < c->disks.count; i++)
        list_for_each (it, &c->disks.disk[i].changes)
            n++;
    return n;
}

static void end_life(struct crash *c, enum crash_end end)
{
    struct crash_state kept = {.count = 0};
    uint64_t n = 0;

    look_for_copy(c);
    kill_process(c);
    c->over = false;
    run_trace(&c->run, "life %u ends, %u changes pending", c->life, pending(c));
    if (end == CRASH_END_KILL) {
        crash_disks_orphan(&c->disks, true);
        crash_meta_cut(&c->meta, c->meta.flushed);
    } else if (end == CRASH_END_POWER) {
        for (unsigned i = 0; i < c->disks.count; i++)
            list_for_each (it, &c->disks.disk[i].changes) {
                struct crash_change *ch = LIST_ENTRY(it, struct crash_change, link);

                if (n++ % 2 == 0 && kept.count < CRASH_PARTS_MAX)
                    kept.parts[kept.count++] = (struct crash_part){ch, 0, crash_change_sectors(ch)};
            }
        crash_disks_keep(kept.parts, kept.count);
        crash_disks_cut(&c->disks, false);
        crash_meta_cut(&c->meta, c->meta.written);
    }
}

static void life(struct crash *c, const char *name, fiber_fn fn, enum crash_end end)
{
    if (c->stop)
        return;
    run_process(c, name, fn);
    if (c->crashed)
        check_apart(c);
    end_life(c, end);
}

static void crash_init(struct crash *c, const struct crash_workload *w,
                       const struct crash_settings *s)
{
    struct run *r = &c->run;

    memset(c, 0, sizeof(*c));
    c->workload = w;
    c->settings = s;
    r->options.trace = s->trace;
    r->phase = "starting";
    r->sim = sim_new(SEED);
    model_init(&r->model);
    for (unsigned i = 0; i < INSTANCES; i++)
        model_instance_init(&r->instances[i]);
    objects_init(r->buckets);
    r->drives = s->drives;
    driveset_profile(r->drives, &r->k, &r->m);
    memcpy(r->paths, drive_paths, sizeof(drive_paths));
    for (unsigned i = CRASH_DRIVES_MAX; i < RUN_DRIVES_MAX; i++)
        r->paths[i] = "none";
    memcpy(r->places, drive_paths, sizeof(drive_paths));
    r->place_count = r->drives + w->spares;
    r->member = (1u << r->drives) - 1;
    c->members =
        (struct crash_members){.joined = r->member, .stay = r->member, .class = {[0] = r->member}};
    r->slot_size = FORMAT_SLOT_MIN;
    r->slot_count = w->slots ? w->slots : 16;
    r->journal_len = w->journal ? w->journal : FORMAT_JOURNAL_MIN;
    r->partition.cache_bytes = 60000;
    r->partition.overlay_bytes = w->overlay;
    r->partition.ingest_bytes = 16u << 20;
    r->partition.on_conflict = PARTITION_REPLACE;
    r->partition.rebuild_delay_ns = w->rebuild_delay_ns;
    r->partition.scrub_settle_ns = 1;
    r->contents = (struct model_contents){.same = instance_same, .replace = true};
    crash_disks_init(&c->disks, r->place_count);
    c->disks.one_cache = s->one_cache;
    c->disks.on_durable = c->meta.on_durable = crash_point;
    crash_meta_init(&c->meta);
    c->meta.on_durable = crash_point;
    c->disks.arg = c->meta.arg = c;
}

static void crash_free(struct crash *c)
{
    sim_free(c->run.sim);
    crash_disks_free(&c->disks);
    crash_meta_free(&c->meta);
    for (unsigned i = 0; i < INSTANCES; i++)
        model_instance_free(&c->run.instances[i]);
    objects_free(c->run.buckets);
    model_free(&c->run.model);
    mem_free(c->seen);
    mem_free(c);
}

void crash_run(const struct crash_workload *w, const struct crash_settings *s,
               struct crash_counts *ret_counts)
{
    struct crash *c = mem_alloc(sizeof(*c));

    crash_init(c, w, s);
    current = c;
    life(c, "format", format_main, CRASH_END_CLOSE);
    for (c->life = 0; c->life < w->life_count; c->life++)
        life(c, "engine", work_main, w->lives[c->life].end);
    crash_wait(c, 0);
    *ret_counts = c->counts;
    current = NULL;
    crash_free(c);
}

/* ---- The program ---- */

static void usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [--workload NAME] [--drives N] [--jobs N] [--share N] [--full] "
            "[--one-cache]\n"
            "       %s --workload NAME --state N [--trace] ...\n"
            "       %s --list | --plants | --plant NAME ...\n",
            program, program, program);
    exit(2);
}

static void list_workloads(void)
{
    for (unsigned i = 0; i < crash_workload_count; i++)
        printf("%-12s %s\n", crash_workloads[i].name, crash_workloads[i].text);
}

/* Each workload in a process of its own: a recording that fails ends only that. */
static bool run_workload(const struct crash_workload *w, const struct crash_settings *s, bool quiet,
                         struct crash_counts *sum)
{
    struct crash_counts counts = {0};
    int fds[2], status = -1;
    pid_t pid;

    fflush(NULL);
    if (pipe(fds) < 0 || (pid = fork()) < 0)
        return false;
    if (pid == 0) {
        crash_run(w, s, &counts);
        child_exit(write(fds[1], &counts, sizeof(counts)) == (ssize_t)sizeof(counts) ? 0 : 2);
    }
    (void)close(fds[1]);
    if (read(fds[0], &counts, sizeof(counts)) != (ssize_t)sizeof(counts))
        counts.failed = 1;
    (void)close(fds[0]);
    if (waitpid(pid, &status, 0) < 0 || status != 0)
        counts.failed = 1;
    if (!quiet)
        printf("%-12s %u drives %5llu moments %7llu states %6llu distinct %6llu recoveries "
               "%llu failed\n",
               w->name, s->drives, (unsigned long long)counts.points,
               (unsigned long long)counts.states, (unsigned long long)counts.distinct,
               (unsigned long long)counts.tried, (unsigned long long)counts.failed);
    fflush(stdout);
    sum->distinct += counts.distinct;
    sum->tried += counts.tried;
    return counts.failed == 0;
}

/* Runs the chosen workloads; the name of the first that fails, or NULL. It is a failure that no
 * state was tried at all: there is no such workload, or no state of that number. With too few
 * drives for the workload there is nothing to try, and that is said. */
static const char *run_workloads(const struct crash_settings *s, const char *name, bool quiet)
{
    const char *failed = NULL;
    struct crash_counts sum = {0};
    bool too_few = false;

    for (unsigned i = 0; i < crash_workload_count; i++) {
        const struct crash_workload *w = &crash_workloads[i];

        if (name && strcmp(name, w->name) != 0)
            continue;
        if (s->drives < w->drives_min) {
            too_few = true;
            continue;
        }
        if (!run_workload(w, s, quiet, &sum) && !failed)
            failed = w->name;
        if (failed && s->stop)
            break;
    }
    if (!failed && sum.tried == 0 && !too_few)
        failed = "nothing was tried";
    if (!quiet)
        printf("%llu distinct states, %llu recoveries, %s\n", (unsigned long long)sum.distinct,
               (unsigned long long)sum.tried,
               sum.tried == 0 ? too_few ? "too few drives for it" : "nothing was tried"
               : failed       ? "with failures"
                              : "all right");
    return failed;
}

static int run_plants(struct crash_settings *s)
{
    int null = dup(STDERR_FILENO);
    unsigned caught = 0;

    s->stop = true;
    if (null < 0 || !freopen("/dev/null", "w", stderr))
        return 2;
    for (plant_active = 1; plant_active < PLANT_COUNT; plant_active++) {
        const char *by = run_workloads(s, NULL, true);

        caught += by != NULL;
        printf("  %-24s %s%s\n", plant_names[plant_active], by ? "caught by " : "not caught",
               by ? by : "");
        fflush(stdout);
    }
    printf("%u of %u planted bugs caught\n", caught, PLANT_COUNT - 1);
    return 0;
}

static void parse_plant(const char *program, const char *name)
{
    plant_active = plant_named(name);
    if (plant_active == PLANT_COUNT)
        usage(program);
}

struct choice {
    const char *workload;
    bool list, plants;
};

/* An option without a value; false when it is none. */
static bool parse_flag(struct crash_settings *s, struct choice *choice, const char *a)
{
    bool *flag = strcmp(a, "--full") == 0        ? &s->full
                 : strcmp(a, "--one-cache") == 0 ? &s->one_cache
                 : strcmp(a, "--trace") == 0     ? &s->trace
                 : strcmp(a, "--stop") == 0      ? &s->stop
                 : strcmp(a, "--list") == 0      ? &choice->list
                 : strcmp(a, "--plants") == 0    ? &choice->plants
                                                 : NULL;

    if (flag)
        *flag = true;
    return flag != NULL;
}

static void parse(struct crash_settings *s, struct choice *choice, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];

        if (parse_flag(s, choice, a))
            continue;
        if (++i == argc)
            usage(s->program);
        if (strcmp(a, "--workload") == 0)
            choice->workload = argv[i];
        else if (strcmp(a, "--drives") == 0)
            s->drives = (unsigned)atoi(argv[i]);
        else if (strcmp(a, "--jobs") == 0)
            s->jobs = (unsigned)atoi(argv[i]);
        else if (strcmp(a, "--share") == 0)
            s->share = (unsigned)atoi(argv[i]);
        else if (strcmp(a, "--state") == 0)
            s->only = strtoull(argv[i], NULL, 10);
        else if (strcmp(a, "--plant") == 0)
            parse_plant(s->program, argv[i]);
        else
            usage(s->program);
    }
    if (s->drives < 1 || s->drives >= CRASH_DRIVES_MAX || s->jobs < 1 || s->jobs > 64 ||
        s->share < 1)
        usage(s->program);
}

int main(int argc, char **argv)
{
    struct crash_settings s = {.program = argv[0], .drives = 3, .jobs = 1, .share = 1};
    struct choice choice = {0};

    tuned_start(argv);
    parse(&s, &choice, argc, argv);
    if (choice.list) {
        list_workloads();
        return 0;
    }
    if (!s.trace)
        log_set_level((enum log_level)(LOG_ERROR + 1));
    (void)signal(SIGABRT, on_abort);
    if (dcm_init() < 0) {
        fprintf(stderr, "cannot load DCMTK's dictionary %s\n", dcm_dictionary_path());
        return 2;
    }
    if (choice.plants)
        return run_plants(&s);
    return run_workloads(&s, choice.workload, false) ? 1 : 0;
}

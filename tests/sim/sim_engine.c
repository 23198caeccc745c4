/* sim-engine: the engine in the simulator, seed by seed.
 *
 *   sim-engine [--seeds FROM-TO] [--jobs N] [--seconds N] [--lost]
 *   sim-engine --seeds N [--trace]
 *   sim-engine --digest N
 *   sim-engine --twice FROM-TO     each seed twice: the digests must agree
 *   sim-engine --plants            plants each bug in turn: some seed must catch it
 *   sim-engine --plant NAME ...    runs seeds with a planted bug (lib/base/plant.h)
 *
 * Each seed is a process of its own, so that a failed check in one is just one failure. A failure
 * prints the seed, what was wrong and the command that shows it again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/plant.h"
#include "lib/dicom/dcm.h"
#include "tests/sim/child.h"
#include "tests/sim/life.h"

#define JOBS_MAX     64
#define FAILURES_MAX 10

struct settings {
    const char *program;
    struct run_options run;
    uint64_t from, to; /* both included */
    unsigned jobs, seconds;
    bool digest, twice, plants;
};

enum plant plant_active;

static const char *const plant_names[] = {"none",
#define PLANT_ROW_(name, text) #name,
                                          PLANT_TABLE(PLANT_ROW_)
#undef PLANT_ROW_
};

static void silence(void)
{
    log_set_level((enum log_level)(LOG_ERROR + 1));
}

/* Runs the seed in a child that writes the digest to `fd`. */
static pid_t start_seed(const struct settings *s, uint64_t seed, int fd)
{
    pid_t pid = fork();
    uint64_t digest;

    if (pid)
        return pid;
    digest = run_seed(seed, &s->run);
    child_exit(fd < 0 || write(fd, &digest, sizeof(digest)) == (ssize_t)sizeof(digest) ? 0 : 2);
}

static void report(const struct settings *s, uint64_t seed, int status)
{
    if (WIFSIGNALED(status))
        fprintf(stderr, "seed %llu: ended by signal %d (%s)\n", (unsigned long long)seed,
                WTERMSIG(status), strsignal(WTERMSIG(status)));
    fprintf(stderr, "  again: %s --seeds %llu --trace%s%s%s\n", s->program,
            (unsigned long long)seed, s->run.lost ? " --lost" : "", plant_active ? " --plant " : "",
            plant_active ? plant_names[plant_active] : "");
}

struct job {
    pid_t pid;
    uint64_t seed;
};

static struct job *job_of(struct job *jobs, unsigned n, pid_t pid)
{
    for (unsigned i = 0; i < n; i++)
        if (jobs[i].pid == pid)
            return &jobs[i];
    return NULL;
}

/* Runs all seeds, several at a time. Returns the number that failed. */
static unsigned run_range(const struct settings *s, uint64_t *ret_done)
{
    struct job jobs[JOBS_MAX] = {0};
    time_t start = time(NULL);
    uint64_t next = s->from, done = 0;
    unsigned busy = 0, failed = 0;

    for (;;) {
        bool more = next <= s->to && failed < FAILURES_MAX &&
                    (!s->seconds || time(NULL) - start < (time_t)s->seconds);
        struct job *j;
        int status;

        if (more && busy < s->jobs) {
            j = job_of(jobs, s->jobs, 0);
            j->seed = next++;
            j->pid = start_seed(s, j->seed, -1);
            busy += j->pid > 0;
            continue;
        }
        if (!busy)
            break;
        j = job_of(jobs, s->jobs, wait(&status));
        if (!j)
            continue;
        if (status != 0) {
            report(s, j->seed, status);
            failed++;
        }
        j->pid = 0;
        busy--;
        done++;
    }
    *ret_done = done;
    return failed;
}

/* The digest of a seed, from a fresh process. */
static bool digest_of(const struct settings *s, uint64_t seed, uint64_t *ret_digest)
{
    int fds[2], status = -1;
    ssize_t n;
    pid_t pid;

    if (pipe(fds) < 0)
        return false;
    pid = start_seed(s, seed, fds[1]);
    (void)close(fds[1]);
    n = read(fds[0], ret_digest, sizeof(*ret_digest));
    (void)close(fds[0]);
    if (waitpid(pid, &status, 0) < 0 || status != 0 || n != (ssize_t)sizeof(*ret_digest)) {
        report(s, seed, status);
        return false;
    }
    return true;
}

static int run_twice(const struct settings *s)
{
    for (uint64_t seed = s->from; seed <= s->to; seed++) {
        uint64_t a, b;

        if (!digest_of(s, seed, &a) || !digest_of(s, seed, &b))
            return 1;
        if (a != b) {
            fprintf(stderr, "seed %llu does not repeat itself: %016llx, then %016llx\n",
                    (unsigned long long)seed, (unsigned long long)a, (unsigned long long)b);
            return 1;
        }
    }
    printf("seeds %llu-%llu repeat themselves\n", (unsigned long long)s->from,
           (unsigned long long)s->to);
    return 0;
}

/* ---- Planted bugs ---- */

/* What a seed said when it failed, in one line. */
static void print_last_words(int fd)
{
    char text[4096], *start, *end;
    ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

    text[n > 0 ? n : 0] = 0;
    start = strstr(text, " failed in ");
    if (!start)
        start = strstr(text, "check failed at ");
    if (!start)
        start = text;
    end = strchr(start, '\n');
    if (end)
        *end = 0;
    printf("    %s\n", start);
}

/* Seeds until one fails, in order; 0 when none does. What children say goes to a file. */
static uint64_t seeds_until_caught(const struct settings *s)
{
    FILE *words = tmpfile();
    uint64_t caught = 0;
    int out = dup(STDERR_FILENO);

    if (!words || out < 0 || dup2(fileno(words), STDERR_FILENO) < 0)
        return 0;
    for (uint64_t seed = s->from; seed <= s->to && !caught; seed += s->jobs) {
        pid_t pids[JOBS_MAX];
        int status[JOBS_MAX];

        for (unsigned i = 0; i < s->jobs; i++)
            pids[i] = start_seed(s, seed + i, -1);
        for (unsigned i = 0; i < s->jobs; i++)
            (void)waitpid(pids[i], &status[i], 0);
        for (unsigned i = 0; i < s->jobs && !caught; i++)
            if (status[i] != 0)
                caught = seed + i;
    }
    (void)dup2(out, STDERR_FILENO);
    (void)close(out);
    if (caught) {
        printf("  %-24s caught by seed %llu\n", plant_names[plant_active],
               (unsigned long long)caught);
        print_last_words(fileno(words));
    }
    (void)fclose(words);
    return caught;
}

static int run_plants(const struct settings *s)
{
    unsigned missed = 0;

    for (plant_active = 1; plant_active < PLANT_COUNT; plant_active++) {
        if (seeds_until_caught(s) == 0) {
            printf("  %-24s NOT caught by seeds %llu-%llu\n", plant_names[plant_active],
                   (unsigned long long)s->from, (unsigned long long)s->to);
            missed++;
        }
        fflush(stdout);
    }
    printf("%d planted bugs, %u not caught\n", PLANT_COUNT - 1, missed);
    return missed ? 1 : 0;
}

static void usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [--seeds FROM-TO] [--jobs N] [--seconds N] [--lost] [--trace]\n"
            "       %s --digest SEED\n"
            "       %s --twice FROM-TO\n"
            "       %s --plants [--seeds FROM-TO] [--jobs N]\n"
            "       %s --plant NAME ...\n",
            program, program, program, program, program);
    exit(2);
}

static void parse_plant(const char *program, const char *name)
{
    for (plant_active = 1; plant_active < PLANT_COUNT; plant_active++)
        if (strcmp(plant_names[plant_active], name) == 0)
            return;
    usage(program);
}

static void parse_seeds(struct settings *s, const char *text)
{
    char *end;

    s->from = s->to = strtoull(text, &end, 10);
    if (*end == '-')
        s->to = strtoull(end + 1, &end, 10);
    if (*end || s->to < s->from)
        usage(s->program);
}

static void parse(struct settings *s, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(a, "--trace") == 0) {
            s->run.trace = true;
            continue;
        }
        if (strcmp(a, "--lost") == 0) {
            s->run.lost = true;
            continue;
        }
        if (strcmp(a, "--plants") == 0) {
            s->plants = true;
            continue;
        }
        if (!value)
            usage(s->program);
        i++;
        if (strcmp(a, "--seeds") == 0)
            parse_seeds(s, value);
        else if (strcmp(a, "--jobs") == 0)
            s->jobs = (unsigned)atoi(value);
        else if (strcmp(a, "--seconds") == 0)
            s->seconds = (unsigned)atoi(value);
        else if (strcmp(a, "--plant") == 0)
            parse_plant(s->program, value);
        else if (strcmp(a, "--digest") == 0)
            parse_seeds(s, value), s->digest = true;
        else if (strcmp(a, "--twice") == 0)
            parse_seeds(s, value), s->twice = true;
        else
            usage(s->program);
    }
    if (s->jobs < 1 || s->jobs > JOBS_MAX)
        usage(s->program);
}

int main(int argc, char **argv)
{
    struct settings s = {.program = argv[0], .from = 1, .to = 100, .jobs = 2};
    uint64_t done, digest;
    unsigned failed;

    parse(&s, argc, argv);
    if (!s.run.trace)
        silence();
    if (dcm_init() < 0) {
        fprintf(stderr, "cannot load DCMTK's dictionary %s\n", dcm_dictionary_path());
        return 2;
    }
    if (s.digest) {
        if (!digest_of(&s, s.from, &digest))
            return 1;
        printf("%016llx\n", (unsigned long long)digest);
        return 0;
    }
    if (s.twice)
        return run_twice(&s);
    if (s.plants)
        return run_plants(&s);
    failed = run_range(&s, &done);
    printf("%llu seeds run, %u failed\n", (unsigned long long)done, failed);
    return failed ? 1 : 0;
}

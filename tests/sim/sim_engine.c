/* sim-engine: the engine in the simulator, seed by seed.
 *
 *   sim-engine [--seeds FROM-TO] [--jobs N] [--seconds N] [--lost]
 *   sim-engine --seeds N [--trace]
 *   sim-engine --digest N
 *   sim-engine --twice FROM-TO     each seed twice: the digests must agree
 *   sim-engine --plants [...]      plants each bug in turn: some seed must catch it
 *   sim-engine --plant NAME ...    runs seeds with a planted bug (lib/base/plant.h)
 *
 * With --known FILE, whose lines are "NAME SEED" or a comment behind #, the seed that caught a bug
 * before is tried first.
 *
 * Each seed is a process of its own, so that a failed check in one is just one failure. A failure
 * prints the seed, what was wrong and the command that shows it again.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/dicom/dcm.h"
#include "tests/sim/child.h"
#include "tests/sim/plants.h"
#include "tests/sim/tuned.h"
#include "tests/sim/life.h"

#define JOBS_MAX     64
#define FAILURES_MAX 10
#define PROGRESS     1000u /* seeds, between two lines that say how far a campaign is */
#define CHILD_BEYOND \
    3 /* exit status: all is well, and more drives were lost than the profile bears */

struct settings {
    const char *program;
    struct run_options run;
    uint64_t from, to; /* both included */
    unsigned jobs, seconds;
    bool digest, twice, plants;
    uint64_t known[PLANT_COUNT]; /* 0: no seed is known */
};

static void silence(void)
{
    log_set_level((enum log_level)(LOG_ERROR + 1));
}

/* Runs the seed in a child that writes the digest to `fd`. */
static pid_t start_seed(const struct settings *s, uint64_t seed, int fd)
{
    struct run_options options = s->run;
    pid_t pid = fork();
    bool beyond = false;
    uint64_t digest;

    if (pid < 0) {
        fprintf(stderr, "seed %llu: cannot fork: %s\n", (unsigned long long)seed, strerror(errno));
        exit(2);
    }
    if (pid)
        return pid;
    options.ret_beyond = &beyond;
    digest = run_seed(seed, &options);
    if (fd >= 0 && write(fd, &digest, sizeof(digest)) != (ssize_t)sizeof(digest))
        child_exit(2);
    child_exit(beyond ? CHILD_BEYOND : 0);
}

static bool ended_well(int status)
{
    return WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CHILD_BEYOND);
}

/* Did the seed fail, by what the simulator (exit 1) or a CHECK of the engine (abort) found? A bug
 * that was planted may also make it use what is gone. All else says nothing of the engine: a
 * process that the system ended, a bug in the test. */
static bool found_fault(int status)
{
    return (WIFEXITED(status) && WEXITSTATUS(status) == 1) ||
           (WIFSIGNALED(status) &&
            (WTERMSIG(status) == SIGABRT || (plant_active && WTERMSIG(status) == SIGSEGV)));
}

static int wait_for(pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) {
            fprintf(stderr, "cannot wait for a seed: %s\n", strerror(errno));
            exit(2);
        }
    return status;
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
static unsigned run_range(const struct settings *s, uint64_t *ret_done, uint64_t *ret_beyond)
{
    struct job jobs[JOBS_MAX] = {0};
    time_t start = time(NULL);
    uint64_t next = s->from, done = 0, beyond = 0;
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
            busy++;
            continue;
        }
        if (!busy)
            break;
        j = job_of(jobs, s->jobs, wait(&status));
        if (!j)
            continue;
        if (!ended_well(status)) {
            report(s, j->seed, status);
            failed++;
        }
        beyond += ended_well(status) && WEXITSTATUS(status) == CHILD_BEYOND;
        j->pid = 0;
        busy--;
        if (++done % PROGRESS == 0) {
            printf("%llu seeds run, %u failed, so far\n", (unsigned long long)done, failed);
            fflush(stdout);
        }
    }
    *ret_done = done;
    *ret_beyond = beyond;
    return failed;
}

/* The digest of a seed, from a fresh process. */
static bool digest_of(const struct settings *s, uint64_t seed, uint64_t *ret_digest)
{
    int fds[2], status;
    ssize_t n;
    pid_t pid;

    if (pipe(fds) < 0)
        return false;
    pid = start_seed(s, seed, fds[1]);
    (void)close(fds[1]);
    n = read(fds[0], ret_digest, sizeof(*ret_digest));
    (void)close(fds[0]);
    status = wait_for(pid);
    if (!ended_well(status) || n != (ssize_t)sizeof(*ret_digest)) {
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

/* The seed without the bug: what fails then too was not caught. */
static bool fails_unplanted(const struct settings *s, uint64_t seed)
{
    enum plant plant = plant_active;
    int status;

    plant_active = PLANT_NONE;
    status = wait_for(start_seed(s, seed, -1));
    plant_active = plant;
    return !ended_well(status);
}

/* Runs n seeds from this one on at the same time. The first that found the bug; 0: none. */
static uint64_t catch_some(const struct settings *s, uint64_t seed, unsigned n)
{
    pid_t pids[JOBS_MAX];
    uint64_t caught = 0;

    for (unsigned i = 0; i < n; i++)
        pids[i] = start_seed(s, seed + i, -1);
    for (unsigned i = 0; i < n; i++) {
        int status = wait_for(pids[i]);

        if (!ended_well(status) && !found_fault(status)) {
            printf("  %-24s seed %llu ended by itself: status %#x\n", plant_names[plant_active],
                   (unsigned long long)(seed + i), (unsigned)status);
            exit(2);
        }
        if (!caught && found_fault(status))
            caught = seed + i;
    }
    return caught;
}

/* Seeds until one fails, the known one first, then in order; 0 when none does. What children say
 * goes to a file. */
static uint64_t seeds_until_caught(const struct settings *s)
{
    FILE *words = tmpfile();
    uint64_t caught = 0;
    int out = dup(STDERR_FILENO);

    if (!words || out < 0 || dup2(fileno(words), STDERR_FILENO) < 0) {
        printf("no file for what seeds say: %s\n", strerror(errno));
        exit(2);
    }
    if (s->known[plant_active] >= s->from && s->known[plant_active] <= s->to)
        caught = catch_some(s, s->known[plant_active], 1);
    for (uint64_t seed = s->from; seed <= s->to && !caught; seed += s->jobs)
        caught = catch_some(s, seed, s->jobs);
    (void)dup2(out, STDERR_FILENO);
    (void)close(out);
    if (caught) {
        printf("  %-24s caught by seed %llu\n", plant_names[plant_active],
               (unsigned long long)caught);
        print_last_words(fileno(words));
        if (fails_unplanted(s, caught)) {
            printf("    but seed %llu fails without the bug too\n", (unsigned long long)caught);
            caught = 0;
        }
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
            "       %s --plants [--known FILE] [--seeds FROM-TO] [--jobs N]\n"
            "       %s --plant NAME ...\n",
            program, program, program, program, program);
    exit(2);
}

static void parse_plant(const char *program, const char *name)
{
    plant_active = plant_named(name);
    if (plant_active == PLANT_COUNT)
        usage(program);
}

static void read_known(struct settings *s, const char *path)
{
    FILE *f = fopen(path, "re");
    char line[256];

    if (!f) {
        fprintf(stderr, "cannot read %s: %s\n", path, strerror(errno));
        exit(2);
    }
    while (fgets(line, sizeof(line), f)) {
        char *seed = line + strcspn(line, " "), *end;
        enum plant plant;

        if (*line == '#')
            continue;
        if (*seed)
            *seed++ = 0;
        plant = plant_named(line);
        if (plant == PLANT_COUNT || strtoull(seed, &end, 10) == 0 || *end != '\n') {
            fprintf(stderr, "%s: no planted bug and its seed: %s %s\n", path, line, seed);
            exit(2);
        }
        s->known[plant] = strtoull(seed, NULL, 10);
    }
    (void)fclose(f);
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
        else if (strcmp(a, "--known") == 0)
            read_known(s, value);
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
    uint64_t done, beyond, digest;
    unsigned failed;

    parse(&s, argc, argv);
    tuned_start(argv);
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
    failed = run_range(&s, &done, &beyond);
    printf("%llu seeds run, %u failed\n", (unsigned long long)done, failed);
    if (s.run.lost)
        printf("%llu of them lost more drives than the profile bears\n",
               (unsigned long long)beyond);
    if (s.run.lost && !beyond) {
        fprintf(stderr, "no seed lost more drives than the profile bears\n");
        return 1;
    }
    if (!s.seconds && !failed && done != s.to - s.from + 1) {
        fprintf(stderr, "not all seeds were run\n");
        return 1;
    }
    return failed ? 1 : 0;
}

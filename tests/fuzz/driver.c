/* A plain main() for any LLVMFuzzerTestOneInput, so that every fuzz target is also an ordinary
 * test.
 *
 * It feeds the corpus files it is given as they are, then inputs made from them by mutation, or
 * from nothing. Input number N of a seed depends on the seed, N and the corpus alone, never on the
 * inputs before it, so a failure is replayed by itself: --seed S --first N --runs 1. There is no
 * coverage feedback here; tools/fuzz-campaign builds the same targets with libFuzzer for the long
 * runs.
 *
 * Each input is handed over in an allocation of exactly its size, which lets ASan see a read one
 * byte too far. A target that spends over ten seconds in one input is stopped and counts as failed.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CORPUS_MAX   4096
#define HANG_SECONDS 10

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));
void __sanitizer_set_death_callback(void (*fn)(void)) __attribute__((weak));

struct input {
    uint8_t *data;
    size_t size;
};

struct options {
    uint64_t runs, seed, first;
    double seconds;
    size_t max_len;
};

static struct input corpus[CORPUS_MAX];
static size_t corpus_count;

/* What is being fed now, for the report of a crash or a hang. */
static volatile uint64_t now_run;
static volatile uint64_t calls;
static const char *volatile now_file;
static uint64_t now_seed;

/* ---- Reports from a dying process: only async-signal-safe calls -------------------------------
 */

static void put_text(const char *s)
{
    ssize_t n = write(STDERR_FILENO, s, strlen(s));

    (void)n;
}

static void put_number(uint64_t v)
{
    char text[21];
    size_t at = sizeof(text) - 1;

    text[at] = '\0';
    do {
        text[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    put_text(text + at);
}

static void report_death(void)
{
    put_text("fuzz: died in ");
    if (now_file) {
        put_text(now_file);
        put_text("\n");
        return;
    }
    put_text("run ");
    put_number(now_run);
    put_text("; replay with --seed ");
    put_number(now_seed);
    put_text(" --first ");
    put_number(now_run);
    put_text(" --runs 1 and the same corpus\n");
}

static void on_fatal(int sig)
{
    report_death();
    signal(sig, SIG_DFL);
    raise(sig);
}

static void on_tick(int sig)
{
    static uint64_t last;
    static unsigned still;

    (void)sig;
    if (calls != last) {
        last = calls;
        still = 0;
    } else if (++still >= HANG_SECONDS) {
        put_text("fuzz: one input takes too long\n");
        abort();
    }
}

static void watch(void)
{
    static const int fatal[] = {SIGABRT, SIGFPE, SIGILL};
    struct itimerval every_second = {.it_interval = {1, 0}, .it_value = {1, 0}};

    for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
        signal(fatal[i], on_fatal);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(report_death); /* the sanitizer keeps SIGSEGV and SIGBUS */
    else {
        signal(SIGSEGV, on_fatal);
        signal(SIGBUS, on_fatal);
    }
    signal(SIGALRM, on_tick);
    setitimer(ITIMER_REAL, &every_second, NULL);
}

/* ---- The corpus ---------------------------------------------------------------------------------
 */

static void add_file(const char *path, size_t max_len)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(max_len + 1);
    size_t n;

    if (!f || !data) {
        fprintf(stderr, "fuzz: cannot read %s: %s\n", path, strerror(errno));
        exit(2);
    }
    n = fread(data, 1, max_len, f);
    fclose(f);
    if (corpus_count < CORPUS_MAX)
        corpus[corpus_count++] = (struct input){data, n};
    else
        free(data);
}

/* A folder's files in name order, so that the same corpus gives the same inputs everywhere. */
static void add_path(const char *path, size_t max_len)
{
    struct dirent **names;
    struct stat st;
    int n;

    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)) {
        add_file(path, max_len);
        return;
    }
    n = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char full[4096];

        snprintf(full, sizeof(full), "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.' && stat(full, &st) == 0 && S_ISREG(st.st_mode))
            add_file(full, max_len);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
}

/* ---- Making inputs ------------------------------------------------------------------------------
 */

static uint64_t rng_state;

static uint64_t rng(void) /* splitmix64 */
{
    uint64_t z = (rng_state += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static size_t below(size_t n)
{
    return n ? (size_t)(rng() % n) : 0;
}

/* Overwrites up to 8 bytes with a number that sits on an edge, in either byte order. */
static void put_edge(uint8_t *buf, size_t size)
{
    static const uint64_t edges[] = {
        0,      1,      0x7f,       0x80,       0xff,       0x7fff,     0x8000,
        0xffff, 0xfffe, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe, 1ull << 32,
        4096,   4095,   4097,       1ull << 63, UINT64_MAX, INT64_MAX,  UINT64_MAX - 1};
    size_t width = (size_t)1 << below(4);
    uint64_t v = edges[below(sizeof(edges) / sizeof(edges[0]))];
    bool big = rng() & 1;
    size_t at;

    if (size < width)
        return;
    at = below(size - width + 1);
    for (size_t i = 0; i < width; i++)
        buf[at + (big ? width - 1 - i : i)] = (uint8_t)(v >> (8 * i));
}

static void put_random(uint8_t *buf, size_t n)
{
    for (size_t i = 0; i < n; i++)
        buf[i] = (uint8_t)rng();
}

/* Opens a gap of n bytes at a random place; returns where, or NULL when there is no room. */
static uint8_t *open_gap(uint8_t *buf, size_t *size, size_t max, size_t n)
{
    size_t at = below(*size + 1);

    if (n == 0 || n > max - *size)
        return NULL;
    memmove(buf + at + n, buf + at, *size - at);
    *size += n;
    return buf + at;
}

static void mutate_once(uint8_t *buf, size_t *size, size_t max)
{
    size_t n, at;
    uint8_t *gap;

    switch (*size ? below(8) : 4) {
    case 0:
        buf[below(*size)] ^= (uint8_t)(1u << below(8));
        break;
    case 1:
        buf[below(*size)] = (uint8_t)rng();
        break;
    case 2:
        put_edge(buf, *size);
        break;
    case 3: /* cut a piece out */
        n = 1 + below(*size < 64 ? *size : 64);
        at = below(*size - n + 1);
        memmove(buf + at, buf + at + n, *size - at - n);
        *size -= n;
        break;
    case 4: /* insert noise */
        n = 1 + below(32);
        gap = open_gap(buf, size, max, n);
        if (gap)
            put_random(gap, n);
        break;
    case 5: /* say something twice */
        n = 1 + below(*size < 64 ? *size : 64);
        at = below(*size - n + 1);
        if (n <= max - *size) {
            memmove(buf + at + n, buf + at, *size - at);
            *size += n;
        }
        break;
    case 6:
        *size = below(*size + 1);
        break;
    default: /* a piece of another input over this one */
        if (corpus_count) {
            const struct input *other = &corpus[below(corpus_count)];
            size_t from = below(other->size);

            at = below(*size);
            n = 1 + below(256);
            n = n < other->size - from ? n : other->size - from;
            n = n < *size - at ? n : *size - at;
            if (n)
                memcpy(buf + at, other->data + from, n);
        }
    }
}

static size_t make_input(const struct options *o, uint64_t run, uint8_t *buf)
{
    size_t size, changes;

    rng_state = o->seed * 0x2545f4914f6cdd1dull ^ run;
    if (corpus_count && below(16)) {
        const struct input *base = &corpus[below(corpus_count)];

        size = base->size < o->max_len ? base->size : o->max_len;
        if (size)
            memcpy(buf, base->data, size);
    } else {
        size = below(1 + below(o->max_len < 1024 ? o->max_len + 1 : 1024));
        put_random(buf, size);
    }
    changes = 1 + below((size_t)1 << below(5));
    for (size_t i = 0; i < changes; i++)
        mutate_once(buf, &size, o->max_len);
    return size;
}

static void feed(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1);

    if (!exact)
        abort();
    if (size)
        memcpy(exact, data, size);
    calls++;
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

/* ---- Command line -------------------------------------------------------------------------------
 */

static _Noreturn void usage(void)
{
    fprintf(stderr, "usage: fuzzer [--runs N] [--seed S] [--first N] [--seconds T] [--max-len L]"
                    " [corpus file or folder]...\n");
    exit(2);
}

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void parse_options(int argc, char **argv, struct options *o)
{
    for (int i = 1; i < argc; i++) {
        char *end = NULL;
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strncmp(argv[i], "--", 2) != 0)
            continue;
        if (!value)
            usage();
        if (!strcmp(argv[i], "--runs"))
            o->runs = strtoull(value, &end, 10);
        else if (!strcmp(argv[i], "--seed"))
            o->seed = strtoull(value, &end, 10);
        else if (!strcmp(argv[i], "--first"))
            o->first = strtoull(value, &end, 10);
        else if (!strcmp(argv[i], "--seconds"))
            o->seconds = strtod(value, &end);
        else if (!strcmp(argv[i], "--max-len"))
            o->max_len = (size_t)strtoull(value, &end, 10);
        if (!end || *end)
            usage();
        i++;
    }
}

int main(int argc, char **argv)
{
    struct options o = {.runs = UINT64_MAX, .seed = 1, .seconds = 3.0, .max_len = 65536};
    double end;
    uint8_t *buf;
    uint64_t run;

    parse_options(argc, argv, &o);
    if (LLVMFuzzerInitialize)
        LLVMFuzzerInitialize(&argc, &argv);
    now_seed = o.seed;
    watch();
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0)
            i++;
        else
            add_path(argv[i], o.max_len);
    }
    now_file = "the corpus as given";
    for (size_t i = 0; i < corpus_count; i++)
        feed(corpus[i].data, corpus[i].size);
    now_file = NULL;

    buf = malloc(o.max_len + 1);
    if (!buf)
        abort();
    end = seconds_now() + o.seconds;
    for (run = o.first; run - o.first < o.runs && seconds_now() < end; run++) {
        now_run = run;
        feed(buf, make_input(&o, run, buf));
    }
    printf("fuzz: %zu corpus inputs and %llu made ones, seed %llu\n", corpus_count,
           (unsigned long long)(run - o.first), (unsigned long long)o.seed);
    free(buf);
    for (size_t i = 0; i < corpus_count; i++)
        free(corpus[i].data);
    return 0;
}

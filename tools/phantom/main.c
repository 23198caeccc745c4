/* filmroom-phantom's command line; what it makes is told in phantom.h.
 *
 * It runs by itself and does nothing but write files, so it uses stdio where the rest of the
 * project goes through an env.
 */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/base/mem.h"
#include "tools/phantom/phantom.h"

#define SLICES_MAX     1000000
#define STUDIES_MAX    1000000
#define INPUT_FILE_MAX ((size_t)256 << 20)

struct options {
    const char *out, *patient, *name, *accession, *study_uid, *series_uid, *reheader;
    struct image_spec image;
    uint64_t studies;
};

static const char usage_text[] =
    "usage: filmroom-phantom --out DIR [options]\n"
    "       filmroom-phantom --out DIR --reheader IN_DIR --patient ID [--seed S]\n"
    "\n"
    "Makes a DICOM series that looks and compresses like a real one, or re-issues the files of\n"
    "IN_DIR (explicit VR little endian) as another patient's with the same pixels.\n"
    "\n"
    "  --slices N         images in the series (default 40)\n"
    "  --rows N, --cols N size of an image (default 512)\n"
    "  --modality CT|MR   (default CT)\n"
    "  --seed S           other seeds give other bodies, noise and UIDs (default 1)\n"
    "  --patient ID, --name NAME, --accession A\n"
    "  --study-uid UID, --series-uid UID\n"
    "  --studies N        N studies of one series each, in folders of DIR; seeds S, S+1, ...\n";

static _Noreturn void __attribute__((format(printf, 1, 2))) die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("filmroom-phantom: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

static void make_folder(const char *path)
{
    if (mkdir(path, 0777) < 0 && errno != EEXIST)
        die("cannot make the folder %s: %s", path, strerror(errno));
}

static void write_file(const char *folder, const char *name, const struct strbuf *data)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    f = fopen(path, "wb");
    if (!f || fwrite(data->data, 1, data->len, f) != data->len || fclose(f) != 0)
        die("cannot write %s: %s", path, strerror(errno));
}

/* ---- Making -------------------------------------------------------------------------------------
 */

static void set_uid(char uid[PHANTOM_UID_MAX + 1], const char *given, uint64_t seed,
                    const char *topic, uint64_t index)
{
    struct rng r = rng_for(seed, topic, index);

    if (given)
        snprintf(uid, PHANTOM_UID_MAX + 1, "%s", given);
    else
        rng_uid(&r, uid);
}

static void make_series(const struct options *o, uint64_t seed, const char *folder)
{
    struct image_spec image = o->image;
    char patient[65], name[65], accession[17], file[PHANTOM_UID_MAX + 8];
    struct slice s = {
        .image = &image, .patient_id = patient, .patient_name = name, .accession = accession};
    struct rng when = rng_for(seed, "when", 0);
    uint16_t *pixels = mem_calloc((size_t)image.rows * image.columns, sizeof(*pixels));
    struct strbuf out = STRBUF_INIT;

    image.seed = seed;
    snprintf(patient, sizeof(patient), "PHANTOM-%06llu", (unsigned long long)seed);
    snprintf(name, sizeof(name), "Phantom^No %llu", (unsigned long long)seed);
    snprintf(accession, sizeof(accession), "A%llu", (unsigned long long)seed % 1000000000000ull);
    if (o->patient)
        snprintf(patient, sizeof(patient), "%s", o->patient);
    if (o->name)
        snprintf(name, sizeof(name), "%s", o->name);
    if (o->accession)
        snprintf(accession, sizeof(accession), "%s", o->accession);
    snprintf(s.study_date, sizeof(s.study_date), "20%02u%02u%02u",
             15 + (unsigned)(rng_next(&when) % 10), 1 + (unsigned)(rng_next(&when) % 12),
             1 + (unsigned)(rng_next(&when) % 28));
    snprintf(s.study_time, sizeof(s.study_time), "%02u%02u%02u", (unsigned)(rng_next(&when) % 24),
             (unsigned)(rng_next(&when) % 60), (unsigned)(rng_next(&when) % 60));
    set_uid(s.study_uid, o->study_uid, seed, "study", 0);
    set_uid(s.series_uid, o->series_uid, seed, "series", 0);
    set_uid(s.frame_uid, NULL, seed, "frame", 0);

    for (s.index = 0; s.index < image.slices; s.index++) {
        /* Modality is in the topic: a CT and an MR of one seed are different instances. */
        set_uid(s.instance_uid, NULL, seed, image.modality == MODALITY_CT ? "CT" : "MR", s.index);
        image_draw(&image, s.index, pixels);
        strbuf_reset(&out);
        part10_write(&s, pixels, &out);
        snprintf(file, sizeof(file), "%06u.dcm", s.index + 1);
        write_file(folder, file, &out);
    }
    strbuf_free(&out);
    mem_free(pixels);
}

static void make_studies(const struct options *o)
{
    for (uint64_t i = 0; i < o->studies; i++) {
        char folder[4096];

        snprintf(folder, sizeof(folder), "%s/%06llu", o->out, (unsigned long long)i + 1);
        make_folder(folder);
        make_series(o, o->image.seed + i, folder);
    }
}

/* ---- Re-issuing ---------------------------------------------------------------------------------
 */

/* The whole file, in a buffer that the caller frees. */
static uint8_t *read_file(const char *path, size_t *ret_size)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    uint8_t *data;

    if (!f || fstat(fileno(f), &st) < 0)
        die("cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) || (size_t)st.st_size > INPUT_FILE_MAX)
        die("%s is no file of at most %zu bytes", path, INPUT_FILE_MAX);
    data = mem_alloc((size_t)st.st_size);
    if (fread(data, 1, (size_t)st.st_size, f) != (size_t)st.st_size)
        die("cannot read %s: %s", path, strerror(errno));
    fclose(f);
    *ret_size = (size_t)st.st_size;
    return data;
}

static void reissue(const struct options *o)
{
    struct dirent **names;
    int count = scandir(o->reheader, &names, NULL, alphasort);

    if (count < 0)
        die("cannot list %s: %s", o->reheader, strerror(errno));
    for (int i = 0; i < count; i++) {
        char path[4096], uid[PHANTOM_UID_MAX + 1];
        struct strbuf out = STRBUF_INIT;
        uint8_t *data;
        size_t n;

        if (names[i]->d_name[0] != '.') {
            snprintf(path, sizeof(path), "%s/%s", o->reheader, names[i]->d_name);
            data = read_file(path, &n);
            if (!reheader(data, n, o->patient, o->image.seed, &out, uid))
                die("%s is not a Part 10 file in explicit VR little endian", path);
            write_file(o->out, names[i]->d_name, &out);
            mem_free(data);
        }
        strbuf_free(&out);
        free(names[i]);
    }
    free(names);
}

/* ---- Options ------------------------------------------------------------------------------------
 */

static uint64_t number(const char *name, const char *text, uint64_t max)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno || *end || text[0] < '0' || text[0] > '9' || v > max)
        die("--%s: want a number up to %llu, not '%s'", name, (unsigned long long)max, text);
    return v;
}

static const char *short_text(const char *name, const char *text, size_t max)
{
    if (strlen(text) > max || strchr(text, '\\'))
        die("--%s: want at most %zu characters without a backslash", name, max);
    return text;
}

static const char *uid(const char *name, const char *text)
{
    if (!*text || strlen(text) > PHANTOM_UID_MAX || strspn(text, "0123456789.") != strlen(text))
        die("--%s: '%s' is no UID", name, text);
    return text;
}

static enum modality modality(const char *text)
{
    if (strcmp(text, "CT") != 0 && strcmp(text, "MR") != 0)
        die("--modality: want CT or MR, not '%s'", text);
    return text[0] == 'C' ? MODALITY_CT : MODALITY_MR;
}

static void parse(int argc, char **argv, struct options *o)
{
    static const struct option table[] = {
        {"out", 1, 0, 'o'},       {"slices", 1, 0, 'n'},     {"rows", 1, 0, 'r'},
        {"cols", 1, 0, 'c'},      {"seed", 1, 0, 's'},       {"modality", 1, 0, 'm'},
        {"patient", 1, 0, 'p'},   {"name", 1, 0, 'N'},       {"accession", 1, 0, 'a'},
        {"study-uid", 1, 0, 'u'}, {"series-uid", 1, 0, 'e'}, {"studies", 1, 0, 'S'},
        {"reheader", 1, 0, 'R'},  {"help", 0, 0, 'h'},       {0}};
    int c, which = 0;

    while ((c = getopt_long(argc, argv, "", table, &which)) != -1) {
        const char *name = table[which].name;

        switch (c) {
        case 'o':
            o->out = optarg;
            break;
        case 'n':
            o->image.slices = (uint32_t)number(name, optarg, SLICES_MAX);
            break;
        case 'r':
            o->image.rows = (uint32_t)number(name, optarg, PHANTOM_SIDE_MAX);
            break;
        case 'c':
            o->image.columns = (uint32_t)number(name, optarg, PHANTOM_SIDE_MAX);
            break;
        case 's':
            o->image.seed = number(name, optarg, UINT64_MAX);
            break;
        case 'm':
            o->image.modality = modality(optarg);
            break;
        case 'p':
            o->patient = short_text(name, optarg, 64);
            break;
        case 'N':
            o->name = short_text(name, optarg, 64);
            break;
        case 'a':
            o->accession = short_text(name, optarg, 16);
            break;
        case 'u':
            o->study_uid = uid(name, optarg);
            break;
        case 'e':
            o->series_uid = uid(name, optarg);
            break;
        case 'S':
            o->studies = number(name, optarg, STUDIES_MAX);
            break;
        case 'R':
            o->reheader = optarg;
            break;
        case 'h':
            fputs(usage_text, stdout);
            exit(0);
        default:
            fputs(usage_text, stderr);
            exit(2);
        }
    }
    if (optind != argc || !o->out || (o->reheader && !o->patient) || !o->image.slices ||
        !o->image.rows || !o->image.columns) {
        fputs(usage_text, stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct options o = {.image = {MODALITY_CT, 512, 512, 40, 1}};

    parse(argc, argv, &o);
    make_folder(o.out);
    if (o.reheader)
        reissue(&o);
    else if (o.studies)
        make_studies(&o);
    else
        make_series(&o, o.image.seed, o.out);
    return 0;
}

/* Where a store lies; see place.h.
 *
 * The list of paths is written to a second file that is then renamed, so it is always whole.
 *
 * Names of devices change hands between boots: when a disk is missing, the next one may have its
 * name, and be back under its own later. So a path stays in the list when its drive was found
 * elsewhere, for as long as the drive is one of the store's, if no other drive is under it: as one
 * more line of that drive's, behind the lines of where drives are, the latest first.
 */
#include "daemon/place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/kv/kv.h"
#include "lib/rt/env.h"

#define PLACE_LOCK_TRIES 50u
#define PLACE_LOCK_WAIT  (100 * ENV_NS_PER_MS)
#define PLACE_LIST_MAX   (512u << 10)  /* bytes: more than all paths can have */
#define PLACE_NONE       "drives/none" /* looked under for a drive that nothing is known of */

/* Paths from here on are former ones: behind those of all drives and of one about to be added. */
#define PLACE_FORMER     (FORMAT_DRIVES_MAX + 1)
#define PLACE_FORMER_MAX (DRIVESET_PATHS_MAX - PLACE_FORMER)

_Static_assert(CONFIG_DRIVES_MAX == FORMAT_DRIVES_MAX,
               "the settings allow as many drives as the format has numbers for");

char *place_path(const struct config *config, const char *name)
{
    struct strbuf s = STRBUF_INIT;

    strbuf_addf(&s, "%s/%s", config->store.data, name);
    return strbuf_take(&s);
}

void place_init(struct place *p, const struct config *config)
{
    *p = (struct place){.count = config->store.drives, .kv = place_path(config, "kv")};
    if (p->count > FORMAT_DRIVES_MAX)
        p->count = FORMAT_DRIVES_MAX;
    for (unsigned i = 0; i < p->count; i++) {
        char name[32];

        (void)snprintf(name, sizeof(name), "drives/drive-%u", i);
        p->drives[i] =
            config->store.paths ? mem_strdup(config->store.paths[i]) : place_path(config, name);
    }
}

void place_free(struct place *p)
{
    for (unsigned i = 0; i < p->count; i++)
        mem_free(p->drives[i]);
    mem_free(p->kv);
}

static int place_make(struct env *env, const struct config *config)
{
    MEM_AUTO char *drives = place_path(config, "drives");
    int rc = env_mkdir(env, config->store.data);

    if (rc == 0 && !config->store.paths)
        rc = env_mkdir(env, drives);
    return rc;
}

/* RocksDB would make a store where there is none: it has this file from its first moment on. */
static int place_look(struct env *env, const struct place *p)
{
    STRBUF_AUTO struct strbuf path = STRBUF_INIT;
    struct env_file *f;
    int rc;

    strbuf_addf(&path, "%s/CURRENT", p->kv);
    rc = env_open(env, path.data, ENV_OPEN_RDONLY, &f);
    if (rc == 0)
        env_close(f);
    return rc;
}

int place_await_lock(struct env *env, int (*attempt)(void *arg), void *arg)
{
    int rc = attempt(arg);

    for (unsigned i = 0; rc == ERR_LOCKED && i < PLACE_LOCK_TRIES; i++) {
        env_sleep(env, PLACE_LOCK_WAIT);
        rc = attempt(arg);
    }
    return rc;
}

struct kv_opening {
    struct env *env;
    const struct place *p;
    struct kv_rocks_options options;
    struct kv *kv;
};

static int kv_opening_try(void *arg)
{
    struct kv_opening *o = arg;

    return kv_rocks_open(o->env, o->p->kv, &o->options, &o->kv);
}

int place_open_kv(struct env *env, const struct config *config, const struct place *p,
                  enum place_use use, struct kv **ret_kv)
{
    struct kv_opening o = {
        .env = env,
        .p = p,
        .options = {.cache_bytes = config->store.cache_size / 4, .buffer_bytes = 64u << 20}};
    int rc = use == PLACE_MAKE ? place_make(env, config) : place_look(env, p);

    if (rc == 0)
        rc = use == PLACE_MAKE ? place_await_lock(env, kv_opening_try, &o) : kv_opening_try(&o);
    if (rc == 0)
        *ret_kv = kv_front_new(env, o.kv, 0);
    return rc;
}

/* ---- The list of paths ---- */

static bool place_has(const struct place *p, const char *path)
{
    for (unsigned i = 0; i < p->count; i++)
        if (p->drives[i] && strcmp(p->drives[i], path) == 0)
            return true;
    return false;
}

char *place_text(struct env *env, const struct config *config, const char *name)
{
    MEM_AUTO char *path = place_path(config, name);
    struct env_file *f;
    char *text = NULL;
    uint64_t size;

    if (env_open(env, path, ENV_OPEN_RDONLY, &f) < 0)
        return NULL;
    if (env_file_size(f, &size) == 0 && size <= PLACE_LIST_MAX) {
        text = mem_zalloc((size_t)size + 1);
        if (env_pread(f, text, (size_t)size, 0) < 0) {
            mem_free(text);
            text = NULL;
        }
    }
    env_close(f);
    return text;
}

/* Reads "NUMBER PATH"; NULL for anything else. The caller frees the path. */
static char *list_read(const struct config *config, const char *line, unsigned *ret_index)
{
    char *end;
    unsigned long index = strtoul(line, &end, 10);

    if (end == line || *end != ' ' || end[1] == 0 || index >= DRIVESET_PATHS_MAX)
        return NULL;
    *ret_index = (unsigned)index;
    return end[1] == '/' ? mem_strdup(end + 1) : place_path(config, end + 1);
}

/* Puts a path in place `at` of p, or the first free one. */
static void place_put(struct place *p, unsigned at, char *path)
{
    while (at < DRIVESET_PATHS_MAX && p->drives[at])
        at++;
    if (at == DRIVESET_PATHS_MAX) {
        mem_free(path);
        return;
    }
    p->drives[at] = path;
    if (p->count <= at)
        p->count = at + 1;
}

/* As place_put, unless it is there already. */
static void place_add(struct place *p, unsigned at, char *path)
{
    if (place_has(p, path))
        mem_free(path);
    else
        place_put(p, at, path);
}

/* Takes a line: as where its drive is, or as a former path when that is known already. */
static void list_take(const struct config *config, struct place *now, struct place *former,
                      const char *line)
{
    unsigned index;
    char *path = list_read(config, line, &index);

    if (path && !now->drives[index])
        place_add(now, index, path);
    else if (path)
        place_add(former, 0, path);
}

void place_load_paths(struct env *env, const struct config *config, struct place *p)
{
    char *text = place_text(env, config, "drive-paths"), *rest = text;
    struct place both = {.kv = p->kv}, former = {0};

    if (!text)
        return;
    for (char *line = strsep(&rest, "\n"); line; line = strsep(&rest, "\n"))
        list_take(config, &both, &former, line);
    mem_free(text);
    for (unsigned i = 0; i < p->count; i++)
        place_add(&both, i, p->drives[i]);
    for (unsigned i = 0; i < former.count; i++)
        place_add(&both, PLACE_FORMER, former.drives[i]);
    /* Without holes: a path that nobody looks under is as good as one where nothing is. */
    for (unsigned i = 0; i < both.count; i++)
        if (!both.drives[i])
            both.drives[i] = place_path(config, PLACE_NONE);
    *p = both;
}

/* What lies in the data directory is named from there: a copy of the directory has its own. */
static void list_add(const struct config *config, unsigned index, const char *path,
                     struct strbuf *out)
{
    size_t n = strlen(config->store.data);

    if (strncmp(path, config->store.data, n) == 0 && path[n] == '/' && path[n + 1] != '/')
        path += n + 1;
    if (*path && !strchr(path, '\n') && strcmp(path, PLACE_NONE) != 0)
        strbuf_addf(out, "%u %s\n", index, path);
}

/* Is this one of the drives' paths, or the one to be added? */
static bool path_in_use(const struct driveset *ds, const char *extra, const char *path)
{
    for (unsigned i = 0; i < ds->count; i++)
        if (strcmp(ds->drives[i].path, path) == 0)
            return true;
    return extra && strcmp(extra, path) == 0;
}

/* Where members were before, from the list as it was; see the top. */
static void list_add_former(const struct config *config, const struct driveset *ds,
                            const char *extra, char *before, struct strbuf *out)
{
    struct place former = {0};

    for (char *line = strsep(&before, "\n"); line; line = strsep(&before, "\n")) {
        unsigned index, count = former.count;
        char *path = list_read(config, line, &index);

        if (path && index < ds->count && ds->drives[index].state != DRIVE_NONE &&
            count < PLACE_FORMER_MAX && !path_in_use(ds, extra, path))
            place_add(&former, 0, path);
        else
            mem_free(path);
        if (former.count > count)
            list_add(config, index, path, out);
    }
    place_free(&former);
}

static void list_write(const struct config *config, const struct driveset *ds, const char *extra,
                       const char *before, struct strbuf *out)
{
    MEM_AUTO char *old = before ? mem_strdup(before) : NULL;

    strbuf_adds(
        out, "# Where Filmroom's drives were last seen: a line \"NUMBER PATH\" for each, and\n"
             "# more of them for where it was before. The daemon writes this file. When a drive\n"
             "# has moved while no daemon runs, its path may be corrected here; which drive is\n"
             "# which is on the drives themselves. Paths without a '/' in front begin in this\n"
             "# directory.\n");
    for (unsigned i = 0; i < ds->count; i++)
        list_add(config, i, ds->drives[i].path, out);
    if (extra)
        list_add(config, FORMAT_DRIVES_MAX, extra, out);
    list_add_former(config, ds, extra, old, out);
}

int place_save_text(struct env *env, const char *path, const struct strbuf *text)
{
    struct env_file *f;
    int rc = env_open(env, path, ENV_OPEN_CREATE, &f);

    if (rc < 0)
        return rc;
    rc = env_resize(f, 0);
    if (rc == 0)
        rc = env_pwrite(f, text->data, text->len, 0, true);
    if (rc == 0)
        rc = env_sync(f);
    env_close(f);
    return rc;
}

int place_save_paths(struct env *env, const struct config *config, const struct driveset *ds,
                     const char *extra)
{
    MEM_AUTO char *path = place_path(config, "drive-paths");
    MEM_AUTO char *fresh = place_path(config, "drive-paths.new");
    MEM_AUTO char *before = place_text(env, config, "drive-paths");
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    int rc;

    list_write(config, ds, extra, before, &text);
    if (before && strcmp(before, text.data) == 0)
        return 0;
    rc = place_save_text(env, fresh, &text);
    return rc == 0 ? env_rename(env, fresh, path) : rc;
}

static char *advice_on_kv(const char *before, const char *kv, const char *after)
{
    struct strbuf s = STRBUF_INIT;

    strbuf_addf(&s, "%s%s%s: filmroom-fsck --rebuild, with the settings of the daemon", before, kv,
                after);
    return strbuf_take(&s);
}

static const char *advice_on(int error)
{
    switch (error) {
    case ERR_LOCKED:
        return "another daemon uses this store: stop it first";
    case ERR_NOTEMPTY:
        return "a drive that the settings name is not blank: name another, or, if nothing on it is "
               "wanted, clear it (blkdiscard, or wipefs and zeroes at both ends)";
    case ERR_NOENT:
        return "a device that the settings name is not there: check their paths";
    case ERR_JOURNAL:
        return "all drives with the journal are missing or damaged: bring one of them back";
    case ERR_LOST:
        return "no drive of the store can be read: check the drives' paths";
    case ERR_CONFIG:
        return "the drives are of different stores, as many of one as of another: check their "
               "paths";
    default:
        return err_text(error);
    }
}

char *place_advice(const struct place *p, int error)
{
    if (error == ERR_EXIST)
        return advice_on_kv(
            "a drive that the settings name is of a store already. If it is another "
            "one's, correct the path; if this one's, its metadata directory ",
            p->kv, " is gone: bring it back, or have it made anew");
    if (error == ERR_KV)
        return advice_on_kv("these drives are not those of the metadata in ", p->kv,
                            ", or it is damaged or too old: move that directory away and have it "
                            "made anew");
    return mem_strdup(advice_on(error));
}

/* What the tools on a store at rest share; see offline.h. */
#include "tools/offline.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/rt/env_uring.h"

void offline_say(const struct offline *o, const char *fmt, ...)
{
    STRBUF_AUTO struct strbuf text = STRBUF_INIT;
    va_list ap;

    va_start(ap, fmt);
    strbuf_addvf(&text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s: %s\n", o->tool, text.data);
}

const char *offline_option(int argc, char **argv, int *i, const char *name)
{
    const char *arg = argv[*i];
    size_t n = strlen(name);

    if (strncmp(arg, "--", 2) != 0 || strncmp(arg + 2, name, n) != 0)
        return NULL;
    arg += 2 + n;
    if (*arg == '=')
        return arg + 1;
    if (*arg)
        return NULL;
    return *i + 1 < argc ? argv[++*i] : "";
}

bool offline_take(struct offline_args *a, int argc, char **argv, int *i)
{
    const char *value;

    if ((value = offline_option(argc, argv, i, "data")))
        a->data = value;
    else if ((value = offline_option(argc, argv, i, "config")))
        a->config = value;
    else if ((value = offline_option(argc, argv, i, "partition")))
        a->partition = value;
    return value != NULL;
}

/* The partition asked for. Who asks for none is told what there is beside the first. */
static bool offline_partition(struct offline *o, const char *name)
{
    const struct config *c = &o->loaded;
    unsigned index = 0;

    for (unsigned i = 0; i < c->partition_count; i++) {
        if (name && strcmp(name, c->partitions[i].name) == 0)
            index = i + 1;
        if (!name)
            offline_say(o, "this is the first partition; for another one: --partition %s",
                        c->partitions[i].name);
    }
    config_for_partition(c, index, &o->config);
    if (!name || index)
        return true;
    offline_say(o, "%.100s: the settings have no such partition", name);
    return false;
}

bool offline_settings(struct offline *o, const struct offline_args *a)
{
    char *argv[6] = {(char *)(uintptr_t)o->tool};
    STRBUF_AUTO struct strbuf message = STRBUF_INIT;
    int argc = 1;

    if (a->config) {
        argv[argc++] = (char *)(uintptr_t) "--config";
        argv[argc++] = (char *)(uintptr_t)a->config;
    }
    if (a->data) {
        argv[argc++] = (char *)(uintptr_t) "--data";
        argv[argc++] = (char *)(uintptr_t)a->data;
    }
    if (config_load(argc, argv, &o->loaded, &message) != CONFIG_RUN) {
        offline_say(o, "%s", message.data);
        return false;
    }
    if (!offline_partition(o, a->partition)) {
        config_free(&o->loaded);
        return false;
    }
    place_init(&o->place, &o->config);
    return true;
}

struct offline_main {
    struct offline *o;
    fiber_fn main;
    void *arg;
};

static void offline_main(void *arg)
{
    struct offline_main *m = arg;

    place_load_paths(m->o->env, &m->o->config, &m->o->place);
    m->main(m->arg);
}

bool offline_run(struct offline *o, fiber_fn main, void *arg)
{
    struct env_uring_options options = {.keep_signals = true};
    struct offline_main m = {o, main, arg};
    int rc = env_uring_new(&options, &o->env);

    if (rc < 0) {
        offline_say(o, "io_uring is not to be had: Linux 5.15 or newer is needed, and "
                       "kernel.io_uring_disabled must be 0");
        return false;
    }
    log_set_level(LOG_ERROR);
    env_run(o->env, offline_main, &m);
    env_free(o->env);
    return true;
}

void offline_free(struct offline *o)
{
    place_free(&o->place);
    config_free(&o->loaded);
}

void offline_advise(const struct offline *o, const char *what, const char *thing, int rc)
{
    MEM_AUTO char *advice = place_advice(&o->place, rc);

    offline_say(o, "%s %s: %s", what, thing,
                rc == ERR_LOCKED ? "the store is in use: stop the daemon (or other tool) first"
                                 : advice);
}

static int open_drives_try(void *arg)
{
    struct offline *o = arg;

    return driveset_open(o->env, (const char *const *)o->place.drives, o->place.count, &o->drives);
}

int offline_open_drives(struct offline *o)
{
    /* Files of a process that was just killed stay locked for a moment, as in the daemon. */
    int rc = place_await_lock(o->env, open_drives_try, o);

    if (rc < 0) {
        o->drives = NULL;
        offline_advise(o, "cannot open the drives of", o->config.store.data, rc);
    }
    return rc;
}

int offline_open_kv(struct offline *o)
{
    int rc = place_open_kv(o->env, &o->config, &o->place, PLACE_EXTANT, &o->kv);

    if (rc == ERR_NOENT)
        offline_say(o,
                    "there is no metadata in %s: bring that directory back, or give --rebuild to "
                    "filmroom-fsck",
                    o->place.kv);
    else if (rc < 0)
        offline_advise(o, "cannot open the metadata in", o->place.kv, rc);
    if (rc < 0)
        o->kv = NULL;
    return rc;
}

int offline_close(struct offline *o)
{
    int rc = o->kv ? kv_close(o->kv) : 0;

    driveset_close(o->drives);
    o->drives = NULL;
    o->kv = NULL;
    if (rc < 0)
        offline_advise(o, "cannot close the metadata in", o->place.kv, rc);
    return rc;
}

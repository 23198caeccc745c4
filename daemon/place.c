/* Where a store lies; see place.h. */
#include "daemon/place.h"

#include <stdio.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/kv/kv.h"
#include "lib/rt/env.h"

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

int place_open_kv(struct env *env, const struct config *config, const struct place *p,
                  enum place_use use, struct kv **ret_kv)
{
    struct kv_rocks_options options = {.cache_bytes = config->store.cache_size / 4,
                                       .buffer_bytes = 64u << 20};
    struct kv *kv;
    int rc = use == PLACE_MAKE ? place_make(env, config) : place_look(env, p);

    for (unsigned i = 0; rc == 0; i++) {
        rc = kv_rocks_open(env, p->kv, &options, &kv);
        if (rc != ERR_LOCKED || use != PLACE_MAKE || i == PLACE_LOCK_TRIES)
            break;
        env_sleep(env, PLACE_LOCK_WAIT);
        rc = 0;
    }
    if (rc == 0)
        *ret_kv = kv_front_new(env, kv, 0);
    return rc;
}

const char *place_advice(int error)
{
    switch (error) {
    case ERR_LOCKED:
        return "another daemon uses this store: stop it first";
    case ERR_EXIST:
        return "the drives hold a store whose metadata directory DIR/kv is gone: bring it back, or "
               "have it made anew: filmroom-fsck --data DIR --rebuild";
    case ERR_JOURNAL:
        return "all drives with the journal are missing or damaged: bring one of them back";
    case ERR_LOST:
        return "no drive of the store can be read: check the drives' paths";
    case ERR_KV:
        return "the metadata in DIR/kv does not belong to these drives, or is damaged or too old: "
               "move DIR/kv away and have it made anew: filmroom-fsck --data DIR --rebuild";
    case ERR_CONFIG:
        return "the number of drives is not the store's";
    default:
        return err_text(error);
    }
}

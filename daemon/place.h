/* Where a store lies: the paths and the metadata that settings stand for. Shared by the daemon and
 * the tools that look after a store while no daemon runs on it.
 *
 *   DIR/drives/drive-N   the default drives, where the settings name none
 *   DIR/kv/              the metadata state (RocksDB)
 */
#pragma once

#include <stdbool.h>

#include "daemon/config.h"
#include "lib/store/format.h"

struct env;
struct kv;

struct place {
    char *drives[FORMAT_DRIVES_MAX]; /* `count` paths */
    unsigned count;
    char *kv;
};

void place_init(struct place *p, const struct config *config);
void place_free(struct place *p);

/* A path in the data directory; the caller frees. */
char *place_path(const struct config *config, const char *name);

enum place_use {
    PLACE_MAKE,  /* made where there is none; waits a while for an earlier daemon that is ending */
    PLACE_EXTANT /* ERR_NOENT where there is none; does not wait */
};

/* Opens the KV store with its write-behind. ERR_LOCKED. Suspends. */
int place_open_kv(struct env *env, const struct config *config, const struct place *p,
                  enum place_use use, struct kv **ret_kv);

/* What a person should do about a failure to open the store. */
const char *place_advice(int error);

#define PLACE_LOCK_TRIES 50u /* an earlier daemon may still be ending: wait up to 5 s */
#define PLACE_LOCK_WAIT  (100 * ENV_NS_PER_MS)

/* Where a store lies: the paths and the metadata that settings stand for. Shared by the daemon and
 * the tools that look after a store while no daemon runs on it.
 *
 *   DIR/drives/drive-N   the default drives, where the settings name none
 *   DIR/drive-paths      where the drives were last seen; see below
 *   DIR/kv/              the metadata state (RocksDB)
 */
#pragma once

#include <stdbool.h>

#include "daemon/config.h"
#include "lib/base/strbuf.h"
#include "lib/store/drive.h"

struct kv;

struct place {
    char *drives[DRIVESET_PATHS_MAX]; /* `count` paths: where drives may be */
    unsigned count;
    char *kv;
};

/* The paths that the settings name: those of a store to be made. */
void place_init(struct place *p, const struct config *config);
void place_free(struct place *p);

/* Drives may be added that the settings know nothing of, so the daemon keeps a list of where they
 * are: a line "NUMBER PATH" for each, which a person may correct when a drive has moved. Further
 * lines of a number are where its drive was before. The list only says where to look: which drive
 * is which, and whether it is one of the store's, is in the superblocks. A list that is missing or
 * damaged costs no more than that.
 *
 * Adds the list's paths to those of the settings, so that a drive of number N is looked for under
 * path N first; former paths come last, from FORMAT_DRIVES_MAX + 1 on. Suspends. */
void place_load_paths(struct env *env, const struct config *config, struct place *p);

/* Writes the list: where the drives of the set are, and `extra` (NULL: none), a drive that is about
 * to be added; in place of the old one, durable. Former paths of members are kept, as many as
 * driveset_open takes. Nothing is written when nothing has changed.
 * Suspends. */
int place_save_paths(struct env *env, const struct config *config, const struct driveset *ds,
                     const char *extra);

/* A small file of the data directory as text, the caller's; NULL when there is none. Suspends. */
char *place_text(struct env *env, const struct config *config, const char *name);
/* Writes such a file whole, durable. Suspends. */
int place_save_text(struct env *env, const char *path, const struct strbuf *text);

/* A path in the data directory; the caller frees. */
char *place_path(const struct config *config, const char *name);

enum place_use {
    PLACE_MAKE,  /* made where there is none; waits a while for an earlier daemon that is ending */
    PLACE_EXTANT /* ERR_NOENT where there is none; does not wait */
};

/* Opens the KV store with its write-behind. ERR_LOCKED. Suspends. */
int place_open_kv(struct env *env, const struct config *config, const struct place *p,
                  enum place_use use, struct kv **ret_kv);

/* What a person should do about a failure to open the store; the caller frees. */
char *place_advice(const struct place *p, int error);

/* Calls attempt(arg) again while it says ERR_LOCKED, for up to five seconds: an earlier daemon, or
 * one that was killed, may still be ending. Suspends. */
int place_await_lock(struct env *env, int (*attempt)(void *arg), void *arg);

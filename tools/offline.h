/* What the tools on a store at rest share: finding it as the daemon would, and running on it. */
#pragma once

#include <stdbool.h>

#include "daemon/config.h"
#include "daemon/place.h"
#include "lib/kv/kv.h"
#include "lib/rt/env.h"
#include "lib/store/drive.h"

struct offline {
    const char *tool;             /* its name, for messages */
    struct config loaded, config; /* as it was read; with the partition that is looked at */
    struct place place;
    struct env *env;
    /* Opened by the tool: */
    struct driveset *drives;
    struct kv *kv;
};

/* An option with a value, "--name VALUE" or "--name=VALUE", at argv[*i]: its value, or NULL when it
 * is another one. A value that is missing gives "". */
const char *offline_option(int argc, char **argv, int *i, const char *name);

/* What all tools are told. */
struct offline_args {
    const char *data, *config, *partition; /* NULL: not given */
};
/* One of --data, --config and --partition, at argv[*i]; false when it is another option. */
bool offline_take(struct offline_args *a, int argc, char **argv, int *i);

/* Settings as they say. False: the message was printed. */
bool offline_settings(struct offline *o, const struct offline_args *a);

/* Runs `main` with `arg` on a loop of its own, once the drives' paths are known. False: there is no
 * io_uring, and that was said. */
bool offline_run(struct offline *o, fiber_fn main, void *arg);
void offline_free(struct offline *o);

/* "TOOL: ..." on stderr. */
void offline_say(const struct offline *o, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The same of what could not be done with the thing, "cannot open the drives of" and a path, and
 * what to do about it. */
void offline_advise(const struct offline *o, const char *what, const char *thing, int rc);

/* Opens the drives (locked) or the KV store; says what is wrong. Suspends. */
int offline_open_drives(struct offline *o);
int offline_open_kv(struct offline *o);
/* Closes what is open; returns the first error, said. Suspends. */
int offline_close(struct offline *o);

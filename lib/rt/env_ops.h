/* The vtables behind files, sockets and listeners, for those who stack one on another.
 *
 * Ordinary code uses env.h. A fault injector, a recorder or another kind of medium embeds one of
 * the structs below as its first member, fills in `ops` and `env`, and forwards what it does not
 * care for to the object under it.
 */
#pragma once

#include "lib/rt/env.h"

struct env_file_ops {
    /* Starts one operation. io->done is called on the loop, outside any fiber, and never before
     * start has returned. A wrapper passes a struct env_io of its own to the file under it. */
    void (*start)(struct env_file *f, struct env_io *io);
    int (*size)(struct env_file *f, uint64_t *ret_size);
    void (*close)(struct env_file *f);
    void (*forsake)(
        struct env_file *f); /* see env_forsake; NULL: never called with any in flight */
    uint64_t (*cache)(struct env_file *f); /* see env_file_cache; NULL: 0 */
};

struct env_file {
    const struct env_file_ops *ops;
    struct env *env;
};

struct env_sock_ops {
    int64_t (*recv)(struct env_sock *s, void *buf, size_t len);
    int (*send)(struct env_sock *s, struct iovec *iov, unsigned n);
    void (*shutdown)(struct env_sock *s);
    void (*close)(struct env_sock *s);
    int (*peer)(struct env_sock *s, struct env_addr *ret_addr); /* may be NULL */
};

struct env_sock {
    const struct env_sock_ops *ops;
    struct env *env;
};

struct env_listener_ops {
    int (*addr)(struct env_listener *l, struct env_addr *ret_addr);
    int (*accept)(struct env_listener *l, struct env_sock **ret_sock);
    void (*close)(struct env_listener *l);
};

struct env_listener {
    const struct env_listener_ops *ops;
    struct env *env;
};

/* From now on every file that env_open opens is passed through `wrap`, which gives it back or gives
 * a file stacked on it (and then owns it). NULL ends it. For tests that break or watch the I/O of
 * code which opens its files itself. */
void env_wrap_files(struct env *env,
                    struct env_file *(*wrap)(void *arg, const char *path, struct env_file *file),
                    void *arg);

/* The stage of the engine's unit tests; see sim_case.h. */
#include "tests/unit/store/sim_case.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/hmap.h"
#include "lib/base/mem.h"
#include "lib/rt/env_ops.h"

/* ---- A file that asks the hook ---- */

struct hooked_file {
    struct env_file base;
    struct env_file *under;
    struct sim_case *c;
    char *path;
    unsigned in_flight;
    bool forsaken;
};

struct hooked_io {
    struct env_io inner;
    struct env_io *outer;
    int error;
};

static void hooked_free(struct hooked_file *f)
{
    mem_free(f->path);
    mem_free(f);
}

static void hooked_done(struct env_io *inner)
{
    struct hooked_io *h = inner->owner;
    struct env_io *outer = h->outer;
    struct hooked_file *f = (struct hooked_file *)outer->file;
    bool last = --f->in_flight == 0 && f->forsaken;

    outer->result = h->error ? h->error : inner->result;
    mem_free(h);
    outer->done(outer);
    if (last)
        hooked_free(f);
}

static void hooked_start(struct env_file *file, struct env_io *io)
{
    struct hooked_file *f = (struct hooked_file *)file;
    struct hooked_io *h = mem_zalloc(sizeof(*h));

    f->in_flight++;
    h->outer = io;
    h->error = f->c->hook ? f->c->hook(f->c->hook_arg, f->path, io) : 0;
    h->inner = *io;
    if (h->error) { /* something harmless that takes its time */
        h->inner.kind = ENV_READ;
        h->inner.dsync = false;
        h->inner.len = 0;
        h->inner.off = 0;
    }
    h->inner.file = f->under;
    h->inner.done = hooked_done;
    h->inner.owner = h;
    f->under->ops->start(f->under, &h->inner);
}

static int hooked_size(struct env_file *file, uint64_t *ret_size)
{
    struct hooked_file *f = (struct hooked_file *)file;

    return f->under->ops->size(f->under, ret_size);
}

static void hooked_close(struct env_file *file)
{
    struct hooked_file *f = (struct hooked_file *)file;

    f->under->ops->close(f->under);
    hooked_free(f);
}

static void hooked_forsake(struct env_file *file)
{
    struct hooked_file *f = (struct hooked_file *)file;

    f->under->ops->forsake(f->under);
    if (f->in_flight)
        f->forsaken = true;
    else
        hooked_free(f);
}

static uint64_t hooked_cache(struct env_file *file)
{
    return ((struct hooked_file *)file)->c->cache;
}

static const struct env_file_ops hooked_ops = {
    .start = hooked_start,
    .size = hooked_size,
    .close = hooked_close,
    .forsake = hooked_forsake,
    .cache = hooked_cache,
};

static struct env_file *sim_case_wrap(void *arg, const char *path, struct env_file *under)
{
    struct sim_case *c = arg;
    struct hooked_file *f = mem_zalloc(sizeof(*f));

    f->base.ops = &hooked_ops;
    f->base.env = c->env;
    f->under = under;
    f->c = c;
    f->path = mem_strdup(path);
    return &f->base;
}

/* ---- Processes ---- */

void sim_case_init(struct sim_case *c, uint64_t seed)
{
    *c = (struct sim_case){.sim = sim_new(seed)};
}

void sim_case_free(struct sim_case *c)
{
    if (!c->running) /* a test that failed inside a fiber leaves it all as it is */
        sim_free(c->sim);
    c->sim = NULL;
}

void sim_case_run(struct sim_case *c, fiber_fn fn, void *arg)
{
    c->env = sim_process(c->sim, "test", fn, arg);
    env_wrap_files(c->env, sim_case_wrap, c);
    c->running = true;
    CHECK(sim_run(c->sim, ENV_FOREVER));
    CHECK(sim_process_ended(c->env));
    c->running = false;
    sim_kill(c->env, false); /* ended: checks that nothing is left */
    c->env = NULL;
}

void sim_case_run_and_kill(struct sim_case *c, fiber_fn fn, void *arg, bool power)
{
    c->env = sim_process(c->sim, "test", fn, arg);
    env_wrap_files(c->env, sim_case_wrap, c);
    c->running = true;
    CHECK(!sim_run(c->sim, ENV_FOREVER));
    CHECK(!sim_process_ended(c->env));
    c->running = false;
    sim_kill(c->env, power);
    c->env = NULL;
}

void sim_case_bytes(uint64_t seed, void *out, size_t n)
{
    uint8_t *p = out;

    for (size_t i = 0; i < n; i += 8) {
        uint64_t x = hmap_mix(seed * 0x9e3779b97f4a7c15u + i);

        memcpy(p + i, &x, n - i < 8 ? n - i : 8);
    }
}

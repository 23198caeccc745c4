/* Reading the superblocks of files that may not answer; see drive_priv.h.
 *
 * Drives that start slowly do so together: those that answer late set the time that is given to the
 * others. An operation that is left stays with the env, and frees itself when it is answered.
 */
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/sync.h"
#include "lib/store/drive_priv.h"

#define PROBE_WAIT (3 * ENV_NS_PER_S)  /* for drives that others can do without */
#define PROBE_MAX  (60 * ENV_NS_PER_S) /* for any */

struct probing {
    struct env *env;
    struct drive_probe *probes;
    unsigned n, pending;
    uint64_t start, last; /* when we began, when a drive answered last */
    struct fiber_cond answered;
};

struct probe_op {
    struct env_io io;
    struct buf *buf;
    struct probing *of; /* NULL: nobody waits */
    unsigned probe;
    bool done;
};

static void probe_op_free(struct probe_op *op)
{
    buf_unref(op->buf);
    mem_free(op);
}

static void probe_done(struct env_io *io)
{
    struct probe_op *op = io->owner;
    struct probing *p = op->of;

    if (!p) {
        probe_op_free(op);
        return;
    }
    op->done = true;
    p->pending--;
    p->last = env_now(p->env);
    if (io->result == (int64_t)FORMAT_UNIT)
        drive_super_take(op->buf->data, &p->probes[op->probe].super);
    fiber_cond_signal(&p->answered);
}

static struct probe_op *probe_start(struct probing *p, unsigned probe, uint64_t off)
{
    struct probe_op *op = mem_zalloc(sizeof(*op));

    op->buf = buf_new(FORMAT_UNIT);
    op->of = p;
    op->probe = probe;
    op->io = (struct env_io){.kind = ENV_READ,
                             .file = p->probes[probe].file,
                             .buf = op->buf->data,
                             .len = FORMAT_UNIT,
                             .off = off,
                             .done = probe_done,
                             .owner = op};
    p->pending++;
    env_io_start(&op->io, 1);
    return op;
}

/* Can the store that these are of do without those that have not answered? */
static bool probed_enough(struct probing *p, struct probe_op *const *ops, unsigned n)
{
    unsigned silent = 0, most = 0;

    for (unsigned i = 0; i < p->n; i++) {
        p->probes[i].silent = false;
        if (p->probes[i].super.magic && p->probes[i].super.parity_columns > most)
            most = p->probes[i].super.parity_columns;
    }
    for (unsigned i = 0; i < n; i++)
        p->probes[ops[i]->probe].silent |= !ops[i]->done;
    for (unsigned i = 0; i < p->n; i++)
        silent += p->probes[i].silent;
    return silent <= most;
}

static void probe_wait(struct probing *p, struct probe_op *const *ops, unsigned n)
{
    while (p->pending) {
        uint64_t took = 2 * (p->last - p->start), now;
        uint64_t until = p->start + (took > PROBE_WAIT ? took : PROBE_WAIT);

        if (env_now(p->env) >= until)
            until = p->start + PROBE_MAX;
        (void)fiber_cond_wait_until(p->env, &p->answered, until);
        now = env_now(p->env);
        if (now >= p->start + PROBE_MAX || (now >= until && probed_enough(p, ops, n)))
            break;
    }
    (void)probed_enough(p, ops, n); /* says who is silent */
}

void drive_probe(struct env *env, struct drive_probe *probes, unsigned n)
{
    struct probing p = {.env = env, .probes = probes, .n = n, .start = env_now(env)};
    struct probe_op **ops = mem_calloc(2 * (size_t)n, sizeof(*ops));
    unsigned count = 0;

    p.last = p.start;
    fiber_cond_init(&p.answered);
    for (unsigned i = 0; i < n; i++) {
        memset(&probes[i].super, 0, sizeof(probes[i].super));
        if (!probes[i].file)
            continue;
        ops[count++] = probe_start(&p, i, FORMAT_SUPER_OFF_A);
        ops[count++] = probe_start(&p, i, FORMAT_SUPER_OFF_B);
    }
    probe_wait(&p, ops, count);
    for (unsigned i = 0; i < count; i++) {
        if (ops[i]->done)
            probe_op_free(ops[i]);
        else
            ops[i]->of = NULL;
    }
    mem_free(ops);
}

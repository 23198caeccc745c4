/* I/O on a file that may not answer and is no drive of the set; see lone_io.h. */
#include "lib/store/lone_io.h"

#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/sync.h"

/* Belongs to who waits until it is answered or left; then to its answer. */
struct lone_op {
    struct env_io io;
    struct buf *buf;
    struct fiber_cond *waiter; /* NULL: nobody waits */
    bool done;
};

static void op_free(struct lone_op *op)
{
    buf_unref(op->buf);
    mem_free(op);
}

static void op_answered(struct env_io *io)
{
    struct lone_op *op = io->owner;

    op->done = true;
    if (op->waiter)
        fiber_cond_signal(op->waiter);
    else
        op_free(op);
}

static int op_result(const struct lone_op *op)
{
    if (op->io.result < 0)
        return (int)op->io.result;
    return op->io.kind == ENV_READ && (uint64_t)op->io.result < op->io.len ? ERR_TRUNCATED : 0;
}

int lone_io_run(struct lone_file *f, enum env_io_kind kind, struct buf *b, size_t len, uint64_t off)
{
    uint64_t until = env_now(f->env) + f->patience;
    struct fiber_cond answered;
    struct lone_op *op;
    int rc;

    if (f->silent)
        return ERR_TIMEDOUT;
    fiber_cond_init(&answered);
    op = mem_zalloc(sizeof(*op));
    op->buf = b ? buf_ref(b) : NULL;
    op->waiter = &answered;
    op->io = (struct env_io){.kind = kind,
                             .dsync = kind == ENV_WRITE,
                             .file = f->file,
                             .buf = b ? b->data : NULL,
                             .len = len,
                             .off = off,
                             .done = op_answered,
                             .owner = op};
    env_io_start(&op->io, 1);
    while (!op->done && env_now(f->env) < until)
        (void)fiber_cond_wait_until(f->env, &answered, until);
    if (!op->done) {
        op->waiter = NULL;
        f->silent = true;
        return ERR_TIMEDOUT;
    }
    rc = op_result(op);
    op_free(op);
    return rc;
}

void lone_io_close(struct lone_file *f)
{
    if (f->silent)
        env_forsake(f->file);
    else
        env_close(f->file);
    f->file = NULL;
}

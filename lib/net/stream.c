/* stream: buffered reading and gathered writing over a socket. See stream.h.
 *
 * The buffer is linear: what is left of a message is moved to its front before a receive that would
 * not fit behind. With messages that are small against the buffer that moves few bytes, and the
 * reader always sees a message in one piece.
 *
 * A send that stalls, or a reader's deadline, is ended by a timer that shuts the socket down; the
 * suspended fibers then come back with an error by themselves, which is the one way an operation on
 * a socket can be cut short.
 */
#include "lib/net/stream.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/mem.h"
#include "lib/rt/sync.h"

#define BUFFER_DEFAULT (64u << 10)
#define BATCH_IOV      256u
#define BATCH_BYTES    (1u << 20)

struct stream {
    struct env *env;
    struct env_sock *sock;
    uint64_t stall_ns;
    /* reading */
    uint8_t *buf;
    size_t size, head, tail; /* buffered: [head, tail) */
    uint64_t deadline;
    struct env_timer recv_timer;
    bool timed_out;
    /* writing */
    struct list queue;
    struct fiber *sender;
    bool sender_idle, stopping, ended;
    int send_err;
    struct env_timer send_timer;
    struct fiber_cond drained; /* the queue ran empty, or the sender ended */
    struct iovec batch[BATCH_IOV];
};

static void time_is_up(void *arg)
{
    struct stream *s = arg;

    s->timed_out = true;
    env_sock_shutdown(s->sock);
}

static uint64_t later(struct stream *s, uint64_t ns)
{
    uint64_t now = env_now(s->env);

    return ns > ENV_FOREVER - now ? ENV_FOREVER : now + ns;
}

/* ---- Reading -------------------------------------------------------------------------------- */

void stream_set_deadline(struct stream *s, uint64_t deadline)
{
    s->deadline = deadline;
}

const uint8_t *stream_data(const struct stream *s, size_t *ret_n)
{
    *ret_n = s->tail - s->head;
    return s->buf + s->head;
}

void stream_consume(struct stream *s, size_t n)
{
    CHECK(n <= s->tail - s->head);
    s->head += n;
    if (s->head == s->tail)
        s->head = s->tail = 0;
}

/* Receives up to n bytes; `body`: the peer owes them now. Returns their number or an error. */
static int64_t receive(struct stream *s, void *buf, size_t n, bool body)
{
    uint64_t deadline = s->deadline;
    int64_t got;

    if (body && s->stall_ns) {
        uint64_t stall = later(s, s->stall_ns);

        deadline = stall < deadline ? stall : deadline;
    }
    if (deadline != ENV_FOREVER)
        env_timer_arm(s->env, &s->recv_timer, deadline);
    got = env_recv(s->sock, buf, n);
    env_timer_disarm(s->env, &s->recv_timer);
    if (got > 0)
        return got;
    if (s->timed_out)
        return ERR_TIMEDOUT;
    return got == 0 ? ERR_CLOSED : got;
}

static int64_t receive_more(struct stream *s, bool body)
{
    int64_t got;

    if (s->head > 0) {
        memmove(s->buf, s->buf + s->head, s->tail - s->head);
        s->tail -= s->head;
        s->head = 0;
    }
    CHECK(s->tail < s->size);
    got = receive(s, s->buf + s->tail, s->size - s->tail, body);
    if (got > 0)
        s->tail += (size_t)got;
    return got;
}

int stream_fill(struct stream *s, size_t want)
{
    CHECK(want <= s->size);
    while (s->tail - s->head < want) {
        int64_t got = receive_more(s, false);

        if (got < 0)
            return got == ERR_CLOSED && s->tail > s->head ? ERR_TRUNCATED : (int)got;
    }
    return 0;
}

/* Moves what is buffered, at most n bytes, to the caller. */
static size_t take_buffered(struct stream *s, uint8_t *to, size_t n)
{
    size_t have = s->tail - s->head;

    if (n > have)
        n = have;
    if (n)
        memcpy(to, s->buf + s->head, n);
    stream_consume(s, n);
    return n;
}

int stream_read(struct stream *s, void *buf, size_t n)
{
    uint8_t *to = buf;

    for (;;) {
        size_t took = take_buffered(s, to, n);
        int64_t got;

        to += took;
        n -= took;
        if (n == 0)
            return 0;
        /* The buffer is empty. A small rest is received with what follows it; a large one goes
         * straight to its place. */
        if (n < s->size / 2) {
            got = receive_more(s, true);
        } else {
            got = receive(s, to, n, true);
            if (got > 0) {
                to += got;
                n -= (size_t)got;
            }
        }
        if (got < 0)
            return got == ERR_CLOSED ? ERR_TRUNCATED : (int)got;
    }
}

/* ---- Writing -------------------------------------------------------------------------------- */

/* Fills s->batch from the front of the queue. Large parts are cut, so that a batch is a measure of
 * progress. Returns the number of parts; their bytes in *ret_bytes. */
static unsigned gather(struct stream *s, size_t *ret_bytes)
{
    unsigned n = 0;
    size_t bytes = 0;

    list_for_each (it, &s->queue) {
        const struct stream_out *o = LIST_ENTRY(it, struct stream_out, link);

        for (unsigned i = 0; i < o->iov_count; i++) {
            size_t left = BATCH_BYTES - bytes;

            if (n == BATCH_IOV || left == 0) {
                *ret_bytes = bytes;
                return n;
            }
            s->batch[n] = o->iov[i];
            if (s->batch[n].iov_len > left)
                s->batch[n].iov_len = left;
            bytes += s->batch[n++].iov_len;
        }
    }
    *ret_bytes = bytes;
    return n;
}

static void finish_first(struct stream *s, int err)
{
    struct stream_out *o = LIST_ENTRY(list_pop_front(&s->queue), struct stream_out, link);

    o->done(o, err);
}

/* Takes `bytes` and `parts` that were sent off the front of the queue; the counted parts tell how
 * far to go where parts are empty. */
static void finish_sent(struct stream *s, size_t bytes, unsigned parts)
{
    while (parts > 0) {
        struct stream_out *o = LIST_ENTRY(s->queue.next, struct stream_out, link);

        while (o->iov_count > 0 && parts > 0 && o->iov->iov_len <= bytes) {
            bytes -= o->iov->iov_len;
            o->iov++;
            o->iov_count--;
            parts--;
        }
        if (o->iov_count > 0) { /* cut in the middle, or not in this batch */
            o->iov->iov_base = (uint8_t *)o->iov->iov_base + bytes;
            o->iov->iov_len -= bytes;
            return;
        }
        finish_first(s, 0);
    }
}

static void send_batch(struct stream *s)
{
    size_t bytes;
    unsigned parts = gather(s, &bytes);
    int err;

    if (s->stall_ns)
        env_timer_arm(s->env, &s->send_timer, later(s, s->stall_ns));
    err = env_send(s->sock, s->batch, parts);
    env_timer_disarm(s->env, &s->send_timer);
    if (err == 0) {
        finish_sent(s, bytes, parts);
        return;
    }
    s->send_err = s->timed_out ? ERR_TIMEDOUT : err;
    env_sock_shutdown(s->sock); /* the reader shall know */
}

static void sender_main(void *arg)
{
    struct stream *s = arg;

    s->sender = fiber_self();
    for (;;) {
        while (s->send_err < 0 && !list_empty(&s->queue))
            finish_first(s, s->send_err);
        if (list_empty(&s->queue)) {
            fiber_cond_broadcast(&s->drained);
            if (s->stopping)
                break;
            s->sender_idle = true;
            fiber_suspend("send queue");
            s->sender_idle = false;
        } else {
            send_batch(s);
        }
    }
    s->ended = true;
    fiber_cond_broadcast(&s->drained);
}

static void wake_sender(struct stream *s)
{
    if (!s->sender_idle)
        return;
    s->sender_idle = false;
    fiber_wake(s->sender);
}

void stream_queue(struct stream *s, struct stream_out *o)
{
    CHECK(!s->stopping && o->iov_count > 0);
    list_push_back(&s->queue, &o->link);
    wake_sender(s);
}

struct write_wait {
    struct stream_out out;
    struct fiber_cond cond;
    bool done;
    int err;
};

static void write_done(struct stream_out *o, int err)
{
    struct write_wait *w = LIST_ENTRY(o, struct write_wait, out);

    w->done = true;
    w->err = err;
    fiber_cond_signal(&w->cond);
}

int stream_write(struct stream *s, const void *buf, size_t n)
{
    struct iovec iov = {(void *)(uintptr_t)buf, n};
    struct write_wait w = {.out = {.iov = &iov, .iov_count = 1, .done = write_done}};

    fiber_cond_init(&w.cond);
    stream_queue(s, &w.out);
    while (!w.done)
        fiber_cond_wait(&w.cond);
    return w.err;
}

int stream_drain(struct stream *s)
{
    while (!list_empty(&s->queue))
        fiber_cond_wait(&s->drained);
    return s->send_err;
}

/* ---- Life ----------------------------------------------------------------------------------- */

struct stream *stream_new(struct env *env, struct env_sock *sock,
                          const struct stream_options *options)
{
    struct stream *s = mem_zalloc(sizeof(*s));

    s->env = env;
    s->sock = sock;
    s->stall_ns = options->stall_ns;
    s->size = options->buffer ? options->buffer : BUFFER_DEFAULT;
    s->buf = mem_alloc(s->size);
    s->deadline = ENV_FOREVER;
    s->recv_timer = (struct env_timer){.fn = time_is_up, .arg = s};
    s->send_timer = (struct env_timer){.fn = time_is_up, .arg = s};
    list_init(&s->queue);
    fiber_cond_init(&s->drained);
    fiber_spawn(env, "stream sender", sender_main, s);
    return s;
}

void stream_shutdown(struct stream *s)
{
    env_sock_shutdown(s->sock);
}

void stream_free(struct stream *s)
{
    if (!s)
        return;
    env_sock_shutdown(s->sock);
    if (!s->send_err)
        s->send_err = ERR_CLOSED;
    s->stopping = true;
    wake_sender(s);
    while (!s->ended)
        fiber_cond_wait(&s->drained);
    env_sock_close(s->sock);
    mem_free(s->buf);
    mem_free(s);
}

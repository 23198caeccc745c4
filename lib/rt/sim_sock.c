/* Sockets of the simulator: streams in memory, with delay, a window, and endings.
 *
 * A connection has two ends and a pipe in each direction. What is sent travels as chunks, which are
 * events of no process (they arrive although their sender has died) and keep their order. A sender
 * waits while WINDOW bytes are on the way or unread. A receiver now and then gets less than there
 * is, as from a real network.
 *
 * An end that is closed or killed sends the end of the stream behind its data, or a reset if it
 * leaves something unread. What reaches an end that is gone is answered with a reset. A cut breaks
 * the connection here at once and there after a delay; what was on the way is lost.
 */
#include <netinet/in.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/err.h"
#include "lib/rt/env_priv.h"
#include "lib/rt/env_sim.h"

#define WINDOW    (256u * 1024)
#define CHUNK_MAX (64u * 1024)

struct sim_pipe {
    uint8_t *bytes; /* arrived and unread, WINDOW of room */
    size_t head, unread, travelling;
    uint64_t last_arrival;
    bool ended, reset;               /* as the receiver sees it */
    bool broken;                     /* as the sender sees it */
    bool receiver_gone;              /* as it is */
    struct fiber *receiver, *sender; /* those that wait */
};

struct sim_conn {
    struct sim *sim;
    struct list link; /* in its listener until it is accepted */
    uint32_t id;
    unsigned refs; /* ends and chunks */
    bool cut;
    struct sim_pipe pipes[2]; /* [i] is sent into by end i */
};

enum chunk_kind { CHUNK_DATA, CHUNK_END, CHUNK_RESET };

struct sim_chunk {
    struct sim_event event;
    struct sim_conn *conn;
    int dir;
    enum chunk_kind kind;
    size_t len;
    uint8_t bytes[];
};

struct sim_sock {
    struct env_sock base;
    struct sim_conn *conn;
    int end;
    bool shut;
    struct list link;
};

struct sim_listener {
    struct env_listener base;
    struct env_addr addr;
    unsigned backlog, waiting, accepting;
    bool closed;
    struct list conns; /* that wait to be accepted */
    struct list in_sim, in_process;
    struct fiber_cond more; /* its waiters are on stacks of the same process */
};

/* ---- Connections
 * ---------------------------------------------------------------------------------- */

static struct sim_conn *conn_new(struct sim *sim)
{
    struct sim_conn *c = mem_zalloc(sizeof(*c));

    c->sim = sim;
    c->id = ++sim->next_conn;
    c->refs = 2;
    for (int i = 0; i < 2; i++)
        c->pipes[i].bytes = mem_alloc(WINDOW);
    list_init(&c->link);
    return c;
}

static void conn_unref(struct sim_conn *c)
{
    if (--c->refs)
        return;
    mem_free(c->pipes[0].bytes);
    mem_free(c->pipes[1].bytes);
    mem_free(c);
}

static void wake_and_forget(struct fiber **f)
{
    struct fiber *waiting = *f;

    *f = NULL;
    if (waiting)
        fiber_wake(waiting);
}

static void pipe_wake(struct sim_pipe *p)
{
    wake_and_forget(&p->receiver);
    wake_and_forget(&p->sender);
}

/* Both directions are broken for the end that learns of it. */
static void conn_reset_seen_by(struct sim_conn *c, int end)
{
    c->pipes[1 - end].reset = true; /* what it receives */
    c->pipes[1 - end].unread = 0;
    c->pipes[end].broken = true; /* what it sends */
    pipe_wake(&c->pipes[0]);
    pipe_wake(&c->pipes[1]);
}

static void chunk_send(struct sim_conn *c, int dir, enum chunk_kind kind, const void *bytes,
                       size_t len);

static void pipe_arrive(struct sim_conn *c, const struct sim_chunk *k)
{
    struct sim_pipe *p = &c->pipes[k->dir];
    size_t at = (p->head + p->unread) % WINDOW, first = WINDOW - at;

    p->travelling -= k->len;
    if (c->cut)
        return;
    if (p->receiver_gone) {
        chunk_send(c, 1 - k->dir, CHUNK_RESET, NULL, 0);
        return;
    }
    if (first > k->len)
        first = k->len;
    memcpy(p->bytes + at, k->bytes, first);
    memcpy(p->bytes, k->bytes + first, k->len - first);
    p->unread += k->len;
}

static void chunk_arrives(struct sim_event *e)
{
    struct sim_chunk *k = (struct sim_chunk *)e;
    struct sim_conn *c = k->conn;

    sim_digest_add(c->sim, (uint64_t)c->id << 32 | (uint64_t)k->kind << 1 | (uint64_t)k->dir);
    sim_digest_add(c->sim, crc32c(0, k->bytes, k->len));
    switch (k->kind) {
    case CHUNK_DATA:
        pipe_arrive(c, k);
        break;
    case CHUNK_END:
        c->pipes[k->dir].ended = !c->cut;
        break;
    case CHUNK_RESET:
        conn_reset_seen_by(c, 1 - k->dir);
        break;
    }
    wake_and_forget(&c->pipes[k->dir].receiver);
    mem_free(k);
    conn_unref(c);
}

static void chunk_dropped(struct sim_event *e)
{
    struct sim_chunk *k = (struct sim_chunk *)e;

    conn_unref(k->conn);
    mem_free(k);
}

static void chunk_send(struct sim_conn *c, int dir, enum chunk_kind kind, const void *bytes,
                       size_t len)
{
    struct mem_domain *before = env_outside_enter();
    struct sim_pipe *p = &c->pipes[dir];
    struct sim_chunk *k = mem_alloc(sizeof(*k) + len);
    const struct sim_faults *faults = &c->sim->faults;
    uint64_t at = c->sim->now + sim_between(c->sim, faults->net_min_ns, faults->net_max_ns);

    *k = (struct sim_chunk){.conn = c, .dir = dir, .kind = kind, .len = len};
    k->event.fn = chunk_arrives;
    k->event.drop = chunk_dropped;
    if (len)
        memcpy(k->bytes, bytes, len);
    if (at < p->last_arrival)
        at = p->last_arrival;
    p->last_arrival = at;
    p->travelling += len;
    c->refs++;
    sim_schedule(c->sim, &k->event, at);
    env_outside_leave(before);
}

/* The end sends nothing more and reads nothing more. */
static void conn_leave(struct sim_conn *c, int end)
{
    struct sim_pipe *in = &c->pipes[1 - end];
    bool reset = in->unread > 0;

    if (in->receiver_gone)
        return;
    in->receiver_gone = true;
    in->unread = 0;
    if (!c->cut && !in->reset)
        chunk_send(c, end, reset ? CHUNK_RESET : CHUNK_END, NULL, 0);
}

/* ---- Sockets
 * -------------------------------------------------------------------------------------- */

static size_t pipe_take(struct sim *sim, struct sim_pipe *p, uint8_t *buf, size_t len)
{
    size_t first = WINDOW - p->head;

    if (len > p->unread)
        len = p->unread;
    if (len > 1 && sim_random(sim, 4) == 0)
        len = 1 + (size_t)sim_random(sim, len);
    if (first > len)
        first = len;
    memcpy(buf, p->bytes + p->head, first);
    memcpy(buf + first, p->bytes, len - first);
    p->head = (p->head + len) % WINDOW;
    p->unread -= len;
    wake_and_forget(&p->sender);
    return len;
}

static int64_t sock_recv(struct env_sock *sock, void *buf, size_t len)
{
    struct sim_sock *s = (struct sim_sock *)sock;
    struct sim_pipe *p = &s->conn->pipes[1 - s->end];

    CHECK(!p->receiver);
    for (;;) {
        if (p->unread)
            return (int64_t)pipe_take(s->conn->sim, p, buf, len);
        if (s->shut)
            return 0;
        if (p->reset)
            return ERR_CLOSED;
        if (p->ended)
            return 0;
        p->receiver = fiber_self();
        fiber_suspend("receive");
        if (p->receiver == fiber_self())
            p->receiver = NULL; /* a wake from elsewhere */
    }
}

static void sock_cut(struct sim_sock *s)
{
    struct sim_conn *c = s->conn;

    chunk_send(c, s->end, CHUNK_RESET, NULL, 0);
    c->cut = true;
    conn_reset_seen_by(c, s->end);
}

static int sock_send_bytes(struct sim_sock *s, const uint8_t *bytes, size_t len)
{
    struct sim_pipe *p = &s->conn->pipes[s->end];

    while (len) {
        size_t n = WINDOW - p->unread - p->travelling;

        if (s->shut || p->broken)
            return ERR_CLOSED;
        if (n == 0) {
            p->sender = fiber_self();
            fiber_suspend("send");
            p->sender = NULL;
            continue;
        }
        if (n > len)
            n = len;
        if (n > CHUNK_MAX)
            n = CHUNK_MAX;
        chunk_send(s->conn, s->end, CHUNK_DATA, bytes, n);
        bytes += n;
        len -= n;
    }
    return 0;
}

static int sock_send(struct env_sock *sock, struct iovec *iov, unsigned n)
{
    struct sim_sock *s = (struct sim_sock *)sock;
    int r = 0;

    CHECK(!s->conn->pipes[s->end].sender);
    if (!s->conn->cut && sim_chance(s->conn->sim, s->conn->sim->faults.sock_cut))
        sock_cut(s);
    for (unsigned i = 0; r == 0 && i < n; i++)
        r = sock_send_bytes(s, iov[i].iov_base, iov[i].iov_len);
    return r;
}

static void sock_shutdown(struct env_sock *sock)
{
    struct sim_sock *s = (struct sim_sock *)sock;

    if (s->shut)
        return;
    s->shut = true;
    conn_leave(s->conn, s->end);
    wake_and_forget(&s->conn->pipes[1 - s->end].receiver);
    wake_and_forget(&s->conn->pipes[s->end].sender);
}

static void sock_detach(struct sim_sock *s)
{
    struct mem_domain *before = env_outside_enter();

    list_del(&s->link);
    s->conn->pipes[1 - s->end].receiver = NULL;
    s->conn->pipes[s->end].sender = NULL;
    conn_leave(s->conn, s->end);
    conn_unref(s->conn);
    env_outside_leave(before);
}

static void sock_close(struct env_sock *sock)
{
    struct sim_sock *s = (struct sim_sock *)sock;

    CHECK(!s->conn->pipes[1 - s->end].receiver && !s->conn->pipes[s->end].sender);
    sock_detach(s);
    mem_free(s);
}

static const struct env_sock_ops sock_ops = {
    .recv = sock_recv, .send = sock_send, .shutdown = sock_shutdown, .close = sock_close};

static struct env_sock *sock_new(struct env *env, struct sim_conn *c, int end)
{
    struct sim_sock *s = mem_zalloc(sizeof(*s)); /* the process's, as files are */

    s->base = (struct env_sock){.ops = &sock_ops, .env = env};
    s->conn = c;
    s->end = end;
    list_push_back(&sim_env_of(env)->socks, &s->link);
    return &s->base;
}

/* ---- Listeners
 * ------------------------------------------------------------------------------------ */

static const char *addr_port(const struct env_addr *a)
{
    return strrchr(a->text, ':');
}

static bool addr_reaches(const struct env_addr *listening, const struct env_addr *to)
{
    if (strcmp(listening->text, to->text) == 0)
        return true;
    if (strncmp(to->text, "tcp:", 4) != 0)
        return false;
    if (strncmp(listening->text, "tcp:0.0.0.0:", 12) != 0 &&
        strncmp(listening->text, "tcp:[::]:", 9) != 0)
        return false;
    return strcmp(addr_port(listening), addr_port(to)) == 0;
}

static struct sim_listener *listener_find(struct sim *sim, const struct env_addr *to)
{
    list_for_each (it, &sim->listeners) {
        struct sim_listener *l = LIST_ENTRY(it, struct sim_listener, in_sim);

        if (addr_reaches(&l->addr, to))
            return l;
    }
    return NULL;
}

static int listener_addr(struct env_listener *listener, struct env_addr *ret_addr)
{
    *ret_addr = ((struct sim_listener *)listener)->addr;
    return 0;
}

static int listener_accept(struct env_listener *listener, struct env_sock **ret_sock)
{
    struct sim_listener *l = (struct sim_listener *)listener;
    struct list *it;
    int r = ERR_CANCELED;

    l->accepting++;
    while (!l->closed && list_empty(&l->conns))
        fiber_cond_wait(&l->more);
    l->accepting--;
    if (!l->closed) {
        it = list_pop_front(&l->conns);
        l->waiting--;
        *ret_sock = sock_new(listener->env, LIST_ENTRY(it, struct sim_conn, link), 1);
        r = 0;
    } else if (!l->accepting) {
        mem_free(l);
    }
    return r;
}

/* Its name is free again; who waits to be accepted is refused. */
static void listener_detach(struct sim_listener *l)
{
    struct mem_domain *before = env_outside_enter();
    struct list *it;

    list_del(&l->in_sim);
    list_del(&l->in_process);
    while ((it = list_pop_front(&l->conns)) != NULL) {
        struct sim_conn *c = LIST_ENTRY(it, struct sim_conn, link);

        chunk_send(c, 1, CHUNK_RESET, NULL, 0);
        c->pipes[0].receiver_gone = true;
        conn_unref(c);
    }
    env_outside_leave(before);
}

static void listener_close(struct env_listener *listener)
{
    struct sim_listener *l = (struct sim_listener *)listener;

    CHECK(!l->closed);
    l->closed = true;
    listener_detach(l);
    if (l->accepting)
        fiber_cond_broadcast(&l->more); /* the last of them frees it */
    else
        mem_free(l);
}

static const struct env_listener_ops listener_ops = {
    .addr = listener_addr, .accept = listener_accept, .close = listener_close};

static void addr_give_port(struct sim *sim, struct env_addr *a)
{
    struct addr_parsed parsed;

    CHECK_OK(addr_parse(a, &parsed));
    do {
        uint16_t port = sim->next_port++;
        struct sockaddr_in *in = (struct sockaddr_in *)&parsed.sa.storage;
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&parsed.sa.storage;

        CHECK(port != 0);
        if (parsed.sa.any.sa_family == AF_INET)
            in->sin_port = htons(port);
        else
            in6->sin6_port = htons(port);
        CHECK_OK(addr_format(&parsed.sa.any, a));
    } while (listener_find(sim, a));
}

int sim_listen(struct env *env, const struct env_addr *addr, unsigned backlog,
               struct env_listener **ret_listener)
{
    struct sim_env *p = sim_env_of(env);
    struct addr_parsed parsed;
    struct sim_listener *l;
    int r = addr_parse(addr, &parsed);

    if (r < 0)
        return r;
    if (listener_find(p->sim, addr))
        return ERR_ADDR;
    l = mem_zalloc(sizeof(*l));
    l->base = (struct env_listener){.ops = &listener_ops, .env = env};
    l->addr = *addr;
    if (parsed.sa.any.sa_family != AF_UNIX && strcmp(addr_port(addr), ":0") == 0)
        addr_give_port(p->sim, &l->addr);
    l->backlog = backlog ? backlog : 1;
    list_init(&l->conns);
    fiber_cond_init(&l->more);
    list_push_back(&p->sim->listeners, &l->in_sim);
    list_push_back(&p->listeners, &l->in_process);
    *ret_listener = &l->base;
    return 0;
}

int sim_connect(struct env *env, const struct env_addr *addr, struct env_sock **ret_sock)
{
    struct sim *sim = sim_env_of(env)->sim;
    struct addr_parsed parsed;
    struct mem_domain *before;
    struct sim_listener *l;
    struct sim_conn *c;
    int r = addr_parse(addr, &parsed);

    if (r < 0)
        return r;
    env_sleep(env, sim_between(sim, sim->faults.net_min_ns, sim->faults.net_max_ns));
    l = listener_find(sim, addr);
    if (!l || l->waiting >= l->backlog)
        return ERR_CLOSED;
    before = env_outside_enter();
    c = conn_new(sim);
    list_push_back(&l->conns, &c->link);
    l->waiting++;
    fiber_cond_signal(&l->more);
    env_outside_leave(before);
    *ret_sock = sock_new(env, c, 0);
    return 0;
}

/* ---- The kill
 * ------------------------------------------------------------------------------------- */

void sim_socks_kill(struct sim_env *p, bool power)
{
    list_for_each_safe (it, &p->socks) {
        struct sim_sock *s = LIST_ENTRY(it, struct sim_sock, link);

        if (power && !s->shut)
            sock_cut(s); /* nobody is left to send the end of the stream */
        sock_detach(s);
    }
    list_for_each_safe (it, &p->listeners) {
        struct sim_listener *l = LIST_ENTRY(it, struct sim_listener, in_process);

        if (!l->closed)
            listener_detach(l);
    }
}

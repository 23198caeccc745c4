/* Sockets of the io_uring env: every wait is an operation on the waiting fiber's stack.
 *
 * A listener that is closed while fibers wait in accept cancels their operations; the last of them
 * to leave frees it.
 */
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/rt/env_priv.h"

#define SOCK_IOV_MAX 1024u

struct uring_sock {
    struct env_sock base;
    struct uring *uring;
    int fd;
    bool receiving, sending;
};

struct sock_op {
    struct uring_op op;
    struct list link; /* accept: in the listener */
    struct fiber *fiber;
    int fd, res;
    bool done;
    void *buf;
    unsigned len;
    struct msghdr *msg;
    const struct addr_parsed *addr;
};

static struct sock_op *sock_op_of(struct uring_op *op)
{
    return LIST_ENTRY(op, struct sock_op, op);
}

static void sock_op_done(struct uring_op *op, int res)
{
    struct sock_op *s = sock_op_of(op);

    s->res = res;
    s->done = true;
    fiber_wake(s->fiber);
}

static int sock_op_run(struct uring *u, struct sock_op *s, const char *why)
{
    s->op.fn = sock_op_done;
    s->fiber = fiber_self();
    s->done = false;
    uring_submit(u, &s->op);
    while (!s->done)
        fiber_suspend(why);
    return s->res;
}

/* A peer or a system that is out of something is not an I/O error. */
static int sock_error(int no)
{
    switch (no) {
    case ECONNREFUSED:
    case ESHUTDOWN:
        return ERR_CLOSED;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        return ERR_OVERLOAD;
    default:
        return err_from_errno(no);
    }
}

/* ---- Connected sockets --------------------------------------------------------------------------
 */

static void recv_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct sock_op *s = sock_op_of(op);

    io_uring_prep_recv(sqe, s->fd, s->buf, s->len, 0);
}

static int64_t sock_recv(struct env_sock *sock, void *buf, size_t len)
{
    struct uring_sock *s = (struct uring_sock *)sock;
    struct sock_op op = {.op.prep = recv_prep, .fd = s->fd, .buf = buf};
    int n;

    CHECK(!s->receiving);
    s->receiving = true;
    op.len = len > INT_MAX ? INT_MAX : (unsigned)len;
    do
        n = sock_op_run(s->uring, &op, "receive");
    while (n == -EINTR || n == -EAGAIN);
    s->receiving = false;
    return n < 0 ? sock_error(-n) : n;
}

static void send_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct sock_op *s = sock_op_of(op);

    io_uring_prep_sendmsg(sqe, s->fd, s->msg, MSG_NOSIGNAL | MSG_WAITALL);
}

/* Drops n sent bytes from the front of the vector. */
static void sock_advance(struct msghdr *msg, size_t *left, size_t n)
{
    while (*left && n >= msg->msg_iov->iov_len) {
        n -= msg->msg_iov->iov_len;
        msg->msg_iov++;
        (*left)--;
    }
    if (*left) {
        msg->msg_iov->iov_base = (char *)msg->msg_iov->iov_base + n;
        msg->msg_iov->iov_len -= n;
    }
}

static int sock_send(struct env_sock *sock, struct iovec *iov, unsigned n)
{
    struct uring_sock *s = (struct uring_sock *)sock;
    struct msghdr msg = {.msg_iov = iov};
    struct sock_op op = {.op.prep = send_prep, .fd = s->fd, .msg = &msg};
    size_t left = n;
    int r = 0;

    CHECK(!s->sending);
    s->sending = true;
    sock_advance(&msg, &left, 0); /* empty parts */
    while (left) {
        msg.msg_iovlen = left > SOCK_IOV_MAX ? SOCK_IOV_MAX : left;
        r = sock_op_run(s->uring, &op, "send");
        if (r == -EINTR || r == -EAGAIN)
            continue;
        if (r < 0)
            break;
        sock_advance(&msg, &left, (size_t)r);
    }
    s->sending = false;
    return r < 0 && left ? sock_error(-r) : 0;
}

static void sock_shutdown(struct env_sock *sock)
{
    shutdown(((struct uring_sock *)sock)->fd, SHUT_RDWR);
}

static void sock_close(struct env_sock *sock)
{
    struct uring_sock *s = (struct uring_sock *)sock;

    CHECK(!s->receiving && !s->sending);
    close(s->fd);
    mem_free(s);
}

/* Unix clients have no address; the system knows who connected. */
static int sock_peer_unix(int fd, struct env_addr *ret_addr)
{
    struct ucred who;
    socklen_t len = sizeof(who);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
        return sock_error(errno);
    snprintf(ret_addr->text, sizeof(ret_addr->text), "unix:pid=%d,uid=%u", who.pid, who.uid);
    return 0;
}

static int sock_peer(struct env_sock *sock, struct env_addr *ret_addr)
{
    struct uring_sock *s = (struct uring_sock *)sock;
    struct sockaddr_storage peer;
    socklen_t len = sizeof(peer);

    if (getpeername(s->fd, (struct sockaddr *)&peer, &len) < 0)
        return sock_error(errno);
    if (peer.ss_family == AF_UNIX)
        return sock_peer_unix(s->fd, ret_addr);
    return addr_format((struct sockaddr *)&peer, ret_addr);
}

static const struct env_sock_ops sock_ops = {.recv = sock_recv,
                                             .send = sock_send,
                                             .shutdown = sock_shutdown,
                                             .close = sock_close,
                                             .peer = sock_peer};

static struct env_sock *sock_new(struct env *env, int fd, bool tcp)
{
    struct uring_sock *s = mem_zalloc(sizeof(*s));
    int one = 1;

    if (tcp) {
        /* Without NODELAY small replies wait for the peer's delayed ack; KEEPALIVE finds peers that
         * vanished without a word. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    }
    s->base = (struct env_sock){.ops = &sock_ops, .env = env};
    s->uring = uring_of(env);
    s->fd = fd;
    return &s->base;
}

static void connect_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    struct sock_op *s = sock_op_of(op);

    io_uring_prep_connect(sqe, s->fd, &s->addr->sa.any, s->addr->len);
}

int uring_connect(struct env *env, const struct env_addr *addr, struct env_sock **ret_sock)
{
    struct addr_parsed parsed;
    struct sock_op op = {.op.prep = connect_prep, .addr = &parsed};
    int r = addr_parse(addr, &parsed);

    if (r < 0)
        return r;
    op.fd = socket(parsed.sa.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (op.fd < 0)
        return sock_error(errno);
    r = sock_op_run(uring_of(env), &op, "connect");
    if (r < 0) {
        close(op.fd);
        return sock_error(-r);
    }
    *ret_sock = sock_new(env, op.fd, parsed.sa.any.sa_family != AF_UNIX);
    return 0;
}

/* ---- Listeners ----------------------------------------------------------------------------------
 */

struct uring_listener {
    struct env_listener base;
    int fd;
    bool tcp, closed;
    struct list accepting;
    char *path; /* of a unix socket */
    struct env_addr addr;
};

static void listener_free(struct uring_listener *l)
{
    close(l->fd);
    mem_free(l->path);
    mem_free(l);
}

static int listener_addr(struct env_listener *listener, struct env_addr *ret_addr)
{
    *ret_addr = ((struct uring_listener *)listener)->addr;
    return 0;
}

static void accept_prep(struct uring_op *op, struct io_uring_sqe *sqe)
{
    io_uring_prep_accept(sqe, sock_op_of(op)->fd, NULL, NULL, SOCK_CLOEXEC);
}

static int listener_accept(struct env_listener *listener, struct env_sock **ret_sock)
{
    struct uring_listener *l = (struct uring_listener *)listener;
    struct sock_op op = {.op.prep = accept_prep, .fd = l->fd};
    struct env *env = listener->env;
    int fd, r = 0;

    list_push_back(&l->accepting, &op.link);
    do
        fd = sock_op_run(uring_of(env), &op, "accept");
    while (!l->closed && (fd == -ECONNABORTED || fd == -EINTR || fd == -EAGAIN));
    list_del(&op.link);
    if (l->closed) {
        if (fd >= 0)
            close(fd);
        r = ERR_CANCELED;
    } else if (fd < 0) {
        r = sock_error(-fd);
    } else {
        *ret_sock = sock_new(env, fd, l->tcp);
    }
    if (l->closed && list_empty(&l->accepting))
        listener_free(l);
    return r;
}

static void listener_close(struct env_listener *listener)
{
    struct uring_listener *l = (struct uring_listener *)listener;

    CHECK(!l->closed);
    l->closed = true;
    if (l->path)
        unlink(l->path);
    if (list_empty(&l->accepting)) {
        listener_free(l);
        return;
    }
    list_for_each (it, &l->accepting)
        uring_cancel(uring_of(listener->env), &LIST_ENTRY(it, struct sock_op, link)->op);
}

static const struct env_listener_ops listener_ops = {
    .addr = listener_addr, .accept = listener_accept, .close = listener_close};

/* A socket file whose owner has died refuses connections; it may be replaced. */
static bool listen_is_stale(const struct addr_parsed *a)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool stale;

    if (fd < 0)
        return false;
    stale = connect(fd, &a->sa.any, a->len) < 0 && errno == ECONNREFUSED;
    close(fd);
    return stale;
}

static int listen_bind(int fd, const struct addr_parsed *a, const char *path)
{
    int one = 1;

    if (!path)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, &a->sa.any, a->len) == 0)
        return 0;
    if (path && errno == EADDRINUSE && listen_is_stale(a) && unlink(path) == 0 &&
        bind(fd, &a->sa.any, a->len) == 0)
        return 0;
    return sock_error(errno);
}

int uring_listen(struct env *env, const struct env_addr *addr, unsigned backlog,
                 struct env_listener **ret_listener)
{
    struct addr_parsed parsed;
    const char *path = NULL;
    struct uring_listener *l;
    int fd, r = addr_parse(addr, &parsed);

    if (r < 0)
        return r;
    if (parsed.sa.any.sa_family == AF_UNIX)
        path = addr->text + strlen("unix:");
    fd = socket(parsed.sa.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return sock_error(errno);
    r = listen_bind(fd, &parsed, path);
    if (r == 0 && listen(fd, backlog > INT_MAX ? INT_MAX : (int)backlog) < 0)
        r = sock_error(errno);
    if (r == 0 && !path && getsockname(fd, &parsed.sa.any, &parsed.len) < 0)
        r = sock_error(errno);
    if (r < 0) {
        close(fd);
        return r;
    }
    l = mem_zalloc(sizeof(*l));
    l->base = (struct env_listener){.ops = &listener_ops, .env = env};
    l->fd = fd;
    l->tcp = !path;
    l->path = path ? mem_strdup(path) : NULL;
    l->addr = *addr;
    if (!path)
        CHECK_OK(addr_format(&parsed.sa.any, &l->addr));
    list_init(&l->accepting);
    *ret_listener = &l->base;
    return 0;
}

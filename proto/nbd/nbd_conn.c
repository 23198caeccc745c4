/* nbd_conn: one NBD connection: the fiber that receives, and the life of its requests.
 *
 * The receiving fiber feeds the core from the stream's buffer, so one receive may yield many
 * requests. For each it takes what the request will use (a place in flight, bytes of the
 * connection's and the server's budgets) before anything is allocated; when a budget is used up it
 * simply waits, and the client is slowed down by its full socket. Then a worker runs the request
 * and queues the reply.
 *
 * A request is in flight until its reply has been handed to the system or the connection is broken;
 * only then does the connection let go of the volume.
 */
#include <inttypes.h>
#include <string.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/rt/fiber.h"
#include "proto/nbd/nbd_impl.h"

/* Receives: room for many small requests; at least NBD_NEED_MAX. */
#define RECEIVE_BUFFER (256u << 10)

/* Jobs kept for reuse. */
#define FREE_JOBS_MAX 1024u

/* How long a client may take to hear that it is one too many. */
#define REFUSE_NS (5 * ENV_NS_PER_S)

_Static_assert(RECEIVE_BUFFER >= NBD_NEED_MAX, "the core can be fed");

/* ---- Jobs ----------------------------------------------------------------------------------- */

static struct nbd_job *job_new(struct nbd_conn *c, const struct nbd_request *r)
{
    struct nbd_server *s = c->server;
    struct list *it = list_pop_front(&s->free_requests);
    struct nbd_job *job;

    if (it) {
        job = LIST_ENTRY(it, struct nbd_job, link);
        s->free_request_count--;
    } else {
        job = mem_alloc(sizeof(*job));
        list_init(&job->link);
    }
    job->conn = c;
    job->request = *r;
    job->buf = NULL;
    job->size = job->shared = 0;
    c->in_flight++;
    return job;
}

/* Waits for room in the budgets, then takes the buffer. Suspends. */
static void job_take_buffer(struct nbd_job *job)
{
    struct nbd_conn *c = job->conn;
    size_t size = nbd_pool_size(nbd_answer_room(&job->request)), own;

    if (size == 0)
        return;
    fiber_sem_take(&c->bytes, size);
    own = size < c->reserve ? size : c->reserve;
    c->reserve -= own;
    if (size > own) /* else not even a place in the queue of those who wait for the others */
        fiber_sem_take(&c->server->bytes, size - own);
    job->size = size;
    job->shared = size - own;
    job->buf = nbd_pool_get(&c->server->pool, size);
}

static void job_drop_buffer(struct nbd_job *job)
{
    struct nbd_conn *c = job->conn;

    if (!job->buf)
        return;
    nbd_pool_put(&c->server->pool, job->buf, job->size);
    job->buf = NULL;
    if (job->shared)
        fiber_sem_give(&c->server->bytes, job->shared);
    c->reserve += job->size - job->shared;
    fiber_sem_give(&c->bytes, job->size);
}

static void job_end(struct nbd_job *job)
{
    struct nbd_conn *c = job->conn;
    struct nbd_server *s = c->server;

    job_drop_buffer(job);
    if (s->free_request_count < FREE_JOBS_MAX) {
        list_push_front(&s->free_requests, &job->link);
        s->free_request_count++;
    } else {
        mem_free(job);
    }
    fiber_sem_give(&c->requests, 1);
    if (--c->in_flight > 0)
        return;
    if (s->stopping)
        stream_shutdown(c->stream);
    fiber_cond_broadcast(&c->idle);
}

static void job_sent(struct stream_out *o, int err)
{
    (void)err; /* the receiver learns of it */
    job_end(LIST_ENTRY(o, struct nbd_job, out));
}

/* `err`: what the store said. The first of a connection is logged, the rest are counted: a broken
 * drive fails every request. */
static void job_count(struct nbd_job *job, int err)
{
    struct nbd_conn *c = job->conn;
    struct nbd_server *s = c->server;
    const struct nbd_request *r = &job->request;

    s->stats.requests++;
    c->served++;
    if (err < 0 && c->failed++ == 0)
        log_warn("nbd",
                 "request failed conn=%" PRIu64 " volume=%s command=%u offset=%" PRIu64
                 " length=%" PRIu32 " error=%s",
                 c->id, log_q(c->name), r->type, r->offset, r->length, err_name(err));
    if (r->error || err < 0)
        s->stats.failed++;
    else if (r->type == NBD_CMD_READ)
        s->stats.read_bytes += r->length;
    else if (r->type == NBD_CMD_WRITE)
        s->stats.written_bytes += r->length;
}

static enum nbd_timed job_timed(const struct nbd_job *job)
{
    switch (job->request.type) {
    case NBD_CMD_READ:
        return NBD_TIMED_READ;
    case NBD_CMD_WRITE:
        return NBD_TIMED_WRITE;
    case NBD_CMD_FLUSH:
        return NBD_TIMED_FLUSH;
    case NBD_CMD_TRIM:
        return NBD_TIMED_TRIM;
    case NBD_CMD_WRITE_ZEROES:
        return NBD_TIMED_ZEROES;
    default:
        return NBD_TIMED_OTHER;
    }
}

void nbd_job_run(struct nbd_job *job)
{
    struct nbd_conn *c = job->conn;

    job_count(job, nbd_answer_request(&c->core, c->volume, &job->request, job->buf, &job->answer));
    metric_record(&c->server->request_time[job_timed(job)], env_now(c->server->env) - job->start);
    if (job->request.type == NBD_CMD_WRITE) /* a client that takes no replies shall not hold it */
        job_drop_buffer(job);
    job->out.iov = job->answer.iov;
    job->out.iov_count = job->answer.iov_count;
    job->out.done = job_sent;
    stream_queue(c->stream, &job->out);
}

/* ---- Receiving ------------------------------------------------------------------------------ */

/* Sends what the core has to say in negotiation. Suspends. */
static int send_out(void *arg)
{
    struct nbd_conn *c = arg;
    int err = 0;

    if (c->core.out.len)
        err = stream_write(c->stream, c->core.out.data, c->core.out.len);
    strbuf_reset(&c->core.out);
    return err;
}

static int on_request(struct nbd_conn *c, struct nbd_request *r)
{
    bool payload = r->type == NBD_CMD_WRITE && !r->error && r->length > 0;
    struct nbd_job *job;
    int err = 0;

    fiber_sem_take(&c->requests, 1);
    job = job_new(c, r);
    job_take_buffer(job);
    if (payload) {
        err = stream_read(c->stream, job->buf, r->length);
        if (err < 0) {
            job_end(job);
            return err;
        }
        nbd_core_payload_taken(&c->core);
    }
    job->start = env_now(c->server->env);
    if (c->server->stopping && !r->error) {
        job->request.error = NBD_ESHUTDOWN;
        job->request.message = "the server is stopping";
    }
    if (job->request.error)
        nbd_job_run(job);
    else
        nbd_work_start(c->server, job);
    return 0;
}

static int on_lookup(struct nbd_conn *c, const struct nbd_step *step)
{
    int err = nbd_answer_lookup(&c->core, c->server->store, step, &c->volume);
    struct block_info info;

    if (err < 0) {
        log_info("nbd", "export refused conn=%" PRIu64 " export=%s error=%s", c->id,
                 log_q(step->name), err_name(err));
        return send_out(c);
    }
    if (!c->volume)
        return send_out(c);
    block_get_info(c->volume, &info);
    memcpy(c->name, info.name, sizeof(c->name));
    stream_set_deadline(c->stream, ENV_FOREVER);
    log_info("nbd", "export opened conn=%" PRIu64 " peer=%s volume=%s", c->id, c->peer.text,
             log_q(c->name));
    return send_out(c);
}

/* One step of the protocol. Returns 1 to go on, 0 at the connection's regular end, or an error. */
static int one_step(struct nbd_conn *c, const char **ret_reason)
{
    struct nbd_step step;
    size_t n, used;
    const uint8_t *bytes = stream_data(c->stream, &n);
    int err = 0;

    used = nbd_core_feed(&c->core, bytes, n, &step);
    stream_consume(c->stream, used);
    switch (step.kind) {
    case NBD_STEP_REQUEST:
        err = on_request(c, &step.request);
        break;
    case NBD_STEP_MORE:
        if (c->core.out.len)
            err = send_out(c);
        if (err == 0 && used == 0)
            err = stream_fill(c->stream, nbd_core_need(&c->core));
        break;
    case NBD_STEP_LIST:
        err = nbd_answer_list(&c->core, c->server->store, send_out, c);
        if (err == 0)
            err = send_out(c);
        break;
    case NBD_STEP_LOOKUP:
        err = on_lookup(c, &step);
        break;
    case NBD_STEP_CLOSE:
        send_out(c);
        *ret_reason = step.reason;
        return step.reason ? ERR_PROTO : 0;
    }
    return err < 0 ? err : 1;
}

static void log_end(struct nbd_conn *c, int err, const char *reason)
{
    const char *volume = c->volume ? log_q(c->name) : "-";

    if (err == ERR_PROTO || (err == ERR_TRUNCATED && !c->server->stopping)) {
        c->server->stats.protocol_errors++;
        log_warn("nbd", "client broke the protocol conn=%" PRIu64 " peer=%s volume=%s reason=%s",
                 c->id, c->peer.text, volume, log_q(reason ? reason : err_text(err)));
    } else if (err == ERR_TIMEDOUT) {
        log_warn("nbd", "client too slow conn=%" PRIu64 " peer=%s volume=%s", c->id, c->peer.text,
                 volume);
    } else if (c->volume) {
        log_info("nbd",
                 "disconnected conn=%" PRIu64 " volume=%s requests=%" PRIu64 " failed=%" PRIu64
                 " end=%s",
                 c->id, volume, c->served, c->failed,
                 c->server->stopping ? "server-stop"
                 : err < 0           ? err_name(err)
                                     : "client");
    } else {
        log_debug("nbd", "disconnected conn=%" PRIu64 " end=%s", c->id, err_name(err));
    }
}

static void conn_free(struct nbd_conn *c)
{
    struct nbd_server *s = c->server;

    list_del(&c->link); /* first: whoever walks the list uses the stream */
    stream_free(c->stream);
    block_close(c->volume);
    nbd_core_free(&c->core);
    if (c->refused)
        s->refusing--;
    else
        s->stats.connections--;
    mem_free(c);
    fiber_cond_broadcast(&s->conn_ended);
    fiber_group_done(&s->alive);
}

static void conn_main(void *arg)
{
    struct nbd_conn *c = arg;
    const char *reason = NULL;
    int err;

    stream_set_deadline(c->stream, env_now(c->server->env) +
                                       (c->refused ? REFUSE_NS : c->server->options.handshake_ns));
    err = send_out(c); /* the greeting */
    if (err == 0)
        err = 1;
    while (err > 0)
        err = one_step(c, &reason);
    while (c->in_flight > 0)
        fiber_cond_wait(&c->idle);
    log_end(c, err, reason);
    conn_free(c);
}

void nbd_conn_start(struct nbd_server *s, struct env_sock *sock, const struct env_addr *via,
                    bool refused)
{
    struct nbd_conn *c = mem_zalloc(sizeof(*c));
    struct stream_options options = {.buffer = RECEIVE_BUFFER, .stall_ns = s->options.stall_ns};

    c->server = s;
    if (env_sock_peer(sock, &c->peer) < 0)
        c->peer = *via;
    c->id = ++s->next_conn;
    c->refused = refused;
    c->reserve = NBD_RESERVE;
    fiber_cond_init(&c->idle);
    fiber_sem_init(&c->requests, s->options.max_requests);
    fiber_sem_init(&c->bytes, s->options.max_connection_bytes);
    nbd_core_init(&c->core);
    if (refused)
        nbd_core_deny(&c->core, NBD_REP_ERR_POLICY,
                      "too many connections: close some, or raise the server's limit");
    c->stream = stream_new(s->env, sock, &options);
    list_push_back(&s->conns, &c->link);
    if (refused)
        s->refusing++;
    else
        s->stats.connections++;
    log_debug("nbd", "connected conn=%" PRIu64 " peer=%s", c->id, via->text);
    fiber_group_add(&s->alive, 1);
    fiber_spawn(s->env, "nbd connection", conn_main, c);
}

void nbd_conn_stop(struct nbd_conn *c)
{
    nbd_core_deny(&c->core, NBD_REP_ERR_SHUTDOWN, "the server is stopping");
    if (c->in_flight == 0)
        stream_shutdown(c->stream);
}

/* nbd_server: the doors, and the beginning and end of the whole. See nbd_server.h.
 *
 * Too many connections: standing silent would look like a hang, and closing like a crash. So a few
 * surplus connections are let into the negotiation, where every option is answered with an error
 * that says why; what comes beyond those is closed at once.
 *
 * The stop: doors close first; idle connections are cut; the others are cut when their last reply
 * is out, or when stop_ns is over. Requests that already run in the store are always waited for:
 * they use the volume and its buffers.
 */
#include "proto/nbd/nbd_server.h"

#include <inttypes.h>

#include "lib/base/check.h"
#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/rt/fiber.h"
#include "proto/nbd/nbd_impl.h"

#define REFUSING_MAX 16u
#define BACKLOG      128u
#define ACCEPT_PAUSE (100 * ENV_NS_PER_MS)

/* ---- Doors ---------------------------------------------------------------------------------- */

static void on_accept(struct nbd_server *s, struct env_sock *sock, const struct env_addr *via)
{
    bool full = s->stats.connections >= s->options.max_connections;

    s->stats.accepted++;
    if (full) {
        s->stats.refused++;
        if (!s->full_logged)
            log_warn("nbd", "refusing connections: the limit is reached max_connections=%u via=%s",
                     s->options.max_connections, via->text);
        if (s->refusing >= REFUSING_MAX) {
            env_sock_close(sock);
            return;
        }
    }
    s->full_logged = full;
    nbd_conn_start(s, sock, via, full);
}

static void door_main(void *arg)
{
    struct nbd_door *d = arg;
    struct nbd_server *s = d->server;
    bool logged = false;

    while (!s->stopping) {
        struct env_sock *sock;
        int err = env_accept(d->listener, &sock);

        if (err == 0) {
            logged = false;
            on_accept(s, sock, &d->addr);
        } else if (err != ERR_CANCELED) {
            /* Out of descriptors or memory: what is connected goes on, newcomers wait. */
            if (!logged)
                log_error("nbd", "cannot accept connections via=%s error=%s", d->addr.text,
                          err_name(err));
            logged = true;
            env_sleep(s->env, ACCEPT_PAUSE);
        }
    }
    fiber_group_done(&s->alive);
}

static int doors_open(struct nbd_server *s)
{
    for (unsigned i = 0; i < s->options.listen_count; i++) {
        struct nbd_door *d = &s->doors[i];
        int err = env_listen(s->env, &s->options.listen[i], BACKLOG, &d->listener);

        if (err < 0)
            return err;
        s->door_count++;
        d->server = s;
        err = env_listener_addr(d->listener, &d->addr);
        if (err < 0)
            return err;
    }
    return 0;
}

static void doors_close(struct nbd_server *s)
{
    for (unsigned i = 0; i < s->door_count; i++)
        env_listener_close(s->doors[i].listener);
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int take_options(struct nbd_server *s, const struct nbd_server_options *options)
{
    struct nbd_server_options *o = &s->options;

    *o = *options;
    o->max_connections = o->max_connections ? o->max_connections : 256;
    o->max_requests = o->max_requests ? o->max_requests : 128;
    o->max_connection_bytes = o->max_connection_bytes ? o->max_connection_bytes : 64u << 20;
    o->max_bytes = o->max_bytes ? o->max_bytes : 256u << 20;
    o->handshake_ns = o->handshake_ns ? o->handshake_ns : 30 * ENV_NS_PER_S;
    o->stall_ns = o->stall_ns ? o->stall_ns : 60 * ENV_NS_PER_S;
    o->stop_ns = o->stop_ns ? o->stop_ns : 10 * ENV_NS_PER_S;
    if (o->listen_count == 0 || o->listen_count > NBD_LISTEN_MAX ||
        o->max_connection_bytes < NBD_PAYLOAD_MAX || o->max_bytes < NBD_PAYLOAD_MAX)
        return ERR_CONFIG;
    return 0;
}

int nbd_server_start(const struct nbd_server_options *options, struct nbd_server **ret_server)
{
    struct nbd_server *s = mem_zalloc(sizeof(*s));
    int err = take_options(s, options);

    s->env = options->env;
    s->store = options->store;
    list_init(&s->conns);
    list_init(&s->free_requests);
    list_init(&s->idle_workers);
    list_init(&s->todo);
    fiber_group_init(&s->alive);
    fiber_cond_init(&s->conn_ended);
    fiber_sem_init(&s->bytes, s->options.max_bytes);
    for (unsigned i = 0; i < NBD_TIMED; i++)
        metric_hist_init(&s->request_time[i], METRIC_TIME);
    if (err == 0)
        err = doors_open(s);
    if (err < 0) {
        doors_close(s);
        mem_free(s);
        return err;
    }
    for (unsigned i = 0; i < s->door_count; i++) {
        fiber_group_add(&s->alive, 1);
        fiber_spawn(s->env, "nbd accept", door_main, &s->doors[i]);
    }
    *ret_server = s;
    return 0;
}

int nbd_server_addr(struct nbd_server *s, unsigned i, struct env_addr *ret_addr)
{
    if (i >= s->door_count)
        return ERR_INVAL;
    *ret_addr = s->doors[i].addr;
    return 0;
}

void nbd_server_get_stats(const struct nbd_server *s, struct nbd_server_stats *ret_stats)
{
    *ret_stats = s->stats;
}

void nbd_server_observe(struct nbd_server *s, struct metrics *m)
{
    static const char *const ops[] = {"read", "write", "flush", "trim", "zeroes", "other"};
    const struct {
        const char *name, *help;
        const uint64_t *value;
    } rows[] = {
        {"filmroom_nbd_connections_total", "NBD connections accepted", &s->stats.accepted},
        {"filmroom_nbd_refused_total", "NBD connections refused, being one too many",
         &s->stats.refused},
        {"filmroom_nbd_protocol_errors_total", "NBD connections that broke the protocol",
         &s->stats.protocol_errors},
        {"filmroom_nbd_failed_requests_total", "NBD requests answered with an error",
         &s->stats.failed},
    };

    for (unsigned i = 0; i < NBD_TIMED; i++)
        metrics_add_hist(m, "filmroom_nbd_request_seconds",
                         "Time from an NBD request's last byte until its answer is ready",
                         METRIC_LABELS("op", ops[i]), &s->request_time[i]);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, rows[i].name, rows[i].help, NULL,
                          rows[i].value);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_door_received_bytes_total",
                      "Bytes of content received from clients", METRIC_LABELS("door", "nbd"),
                      &s->stats.written_bytes);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_door_sent_bytes_total",
                      "Bytes of content sent to clients", METRIC_LABELS("door", "nbd"),
                      &s->stats.read_bytes);
}

static void stop_is_late(void *arg)
{
    struct nbd_server *s = arg;

    list_for_each (it, &s->conns)
        stream_shutdown(LIST_ENTRY(it, struct nbd_conn, link)->stream);
}

static void free_all(struct nbd_server *s)
{
    struct list *it;

    CHECK(list_empty(&s->conns) && s->bytes.free == s->bytes.total);
    while ((it = list_pop_front(&s->free_requests)) != NULL)
        mem_free(LIST_ENTRY(it, struct nbd_job, link));
    nbd_pool_free(&s->pool);
    mem_free(s);
}

void nbd_server_stop(struct nbd_server *s)
{
    if (!s)
        return;
    s->stopping = true;
    doors_close(s);
    s->stop_timer = (struct env_timer){.fn = stop_is_late, .arg = s};
    env_timer_arm(s->env, &s->stop_timer, env_now(s->env) + s->options.stop_ns);
    list_for_each (it, &s->conns)
        nbd_conn_stop(LIST_ENTRY(it, struct nbd_conn, link));
    while (!list_empty(&s->conns))
        fiber_cond_wait(&s->conn_ended);
    env_timer_disarm(s->env, &s->stop_timer);
    nbd_work_stop(s);
    fiber_group_wait(&s->alive);
    free_all(s);
}

/* The DICOM front door's server: listening, the cap, counters, the end.
 *
 * The acceptor is a thread that does nothing but accept and hop to the loop, where the new
 * connection is counted and gets its thread. Past the cap a connection still gets one, to be
 * rejected as the standard says ("local limit exceeded", so that the sender tries again), as long
 * as there are few of those; past that it is closed at once.
 *
 * The end: `stopping` makes every thread leave after the message it is in. Threads that wait for
 * a message are woken by ending the reading side of their socket (an abort can still be sent);
 * threads inside a C-STORE have the grace, then both sides are cut.
 */
#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/dimse/core.h"
#include "proto/dimse/impl.h"

#define DIMSE_GRACE      (5 * ENV_NS_PER_S)
#define DIMSE_REJECTING  8u /* threads beyond the cap that only reject */
#define DIMSE_ACCEPT_NAP (100 * ENV_NS_PER_MS)

/* ---- Accepting -------------------------------------------------------------------------- */

struct dimse_arrival {
    struct dimse_server *server;
    int fd;
    char address[64];
};

static void dimse_on_arrival(void *arg)
{
    struct dimse_arrival *in = arg;
    struct dimse_server *s = in->server;
    bool over_limit = s->stats.active >= s->o.max_associations;
    struct dimse_association *a;

    s->stats.associations++;
    if (atomic_load(&s->stopping) ||
        s->threads > (uint64_t)s->o.max_associations + DIMSE_REJECTING) {
        s->stats.rejected++;
        scp_close(in->fd);
        return;
    }
    a = mem_zalloc(sizeof(*a));
    a->server = s;
    a->fd = in->fd;
    a->over_limit = over_limit;
    a->started_ns = env_now(s->o.env);
    memcpy(a->address, in->address, sizeof(a->address));
    if (env_thread(s->o.env, "dimse assoc", dimse_association_main, a) < 0) {
        log_error("dimse", "no thread for an association peer=%s", a->address);
        s->stats.rejected++;
        scp_close(a->fd);
        mem_free(a);
        return;
    }
    s->threads++;
    s->stats.active += !over_limit;
    list_push_back(&s->associations, &a->node);
}

static void dimse_on_nap(void *arg)
{
    struct dimse_arrival *in = arg;

    env_sleep(in->server->o.env, DIMSE_ACCEPT_NAP);
}

static void dimse_on_acceptor_end(void *arg)
{
    struct dimse_server *s = arg;

    s->threads--;
    fiber_cond_broadcast(&s->ended);
}

static void dimse_acceptor_main(void *arg)
{
    struct dimse_arrival in = {.server = arg};
    struct env *env = in.server->o.env;
    int rc;

    while ((rc = scp_accept(in.server->listen_fd, &in.fd, in.address)) != ERR_CLOSED) {
        if (rc == 0 && env_call(env, "dimse accept", dimse_on_arrival, &in) < 0)
            scp_close(in.fd);
        if (rc < 0)
            (void)env_call(env, "dimse nap", dimse_on_nap, &in);
    }
    (void)env_call(env, "dimse end", dimse_on_acceptor_end,
                   arg); /* the env waits for its threads */
}

/* ---- Start ------------------------------------------------------------------------------ */

static unsigned dimse_default(unsigned value, unsigned otherwise)
{
    return value ? value : otherwise;
}

/* The options with defaults filled in; ERR_INVAL. */
static int dimse_options_fill(struct dimse_options *o)
{
    o->address = o->address ? o->address : "127.0.0.1";
    o->aet = o->aet && o->aet[0] ? o->aet : "FILMROOM";
    o->max_associations = dimse_default(o->max_associations, 32);
    o->max_pdu = dimse_default(o->max_pdu, SCP_PDU_MAX);
    o->acse_timeout_s = dimse_default(o->acse_timeout_s, 30);
    o->dimse_timeout_s = dimse_default(o->dimse_timeout_s, 60);
    o->idle_timeout_s = dimse_default(o->idle_timeout_s, 600);
    if (!o->env || !o->store || strlen(o->aet) > SCP_AET_MAX || o->max_pdu < SCP_PDU_MIN ||
        o->max_pdu > SCP_PDU_MAX || o->max_associations > DIMSE_ASSOCIATIONS_MAX ||
        o->acse_timeout_s > 86400 || o->dimse_timeout_s > 86400 || o->idle_timeout_s > 86400)
        return ERR_INVAL;
    return 0;
}

int dimse_server_start(const struct dimse_options *options, struct dimse_server **ret_server)
{
    struct dimse_server *s = mem_zalloc(sizeof(*s));
    int rc;

    s->o = *options;
    rc = dimse_options_fill(&s->o);
    if (rc == 0)
        rc = scp_listen(s->o.address, s->o.port, &s->listen_fd, &s->port);
    if (rc < 0) {
        mem_free(s);
        return rc;
    }
    snprintf(s->aet, sizeof(s->aet), "%s", s->o.aet);
    s->scp = (struct scp_options){.aet = s->aet,
                                  .max_pdu = s->o.max_pdu,
                                  .acse_s = s->o.acse_timeout_s,
                                  .dimse_s = s->o.dimse_timeout_s,
                                  .idle_s = s->o.idle_timeout_s};
    s->o.address = s->o.aet = NULL; /* the caller's */
    list_init(&s->associations);
    fiber_cond_init(&s->ended);
    metric_hist_init(&s->store_time, METRIC_TIME);
    rc = env_thread(s->o.env, "dimse accept", dimse_acceptor_main, s);
    if (rc < 0) {
        scp_close(s->listen_fd);
        mem_free(s);
        return rc;
    }
    s->threads = 1;
    *ret_server = s;
    return 0;
}

uint16_t dimse_server_port(const struct dimse_server *s)
{
    return s->port;
}

void dimse_server_stats(const struct dimse_server *s, struct dimse_stats *ret_stats)
{
    *ret_stats = s->stats;
}

void dimse_server_observe(struct dimse_server *s, struct metrics *m)
{
    const struct {
        const char *name, *help;
        const uint64_t *value;
    } rows[] = {
        {"filmroom_dicom_associations_total", "DICOM connections accepted", &s->stats.associations},
        {"filmroom_dicom_rejected_total", "DICOM associations rejected", &s->stats.rejected},
        {"filmroom_dicom_broken_total",
         "DICOM associations that ended otherwise than by release, abort or rejection",
         &s->stats.broken},
        {"filmroom_dicom_echoes_total", "C-ECHO requests", &s->stats.echoes},
        {"filmroom_dicom_failed_stores_total", "C-STORE requests answered with a failure",
         &s->stats.failed},
    };

    metrics_add_hist(m, "filmroom_dicom_store_seconds",
                     "Time of a C-STORE from its command until its answer, with the time that the "
                     "sender took for the data set",
                     NULL, &s->store_time);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, rows[i].name, rows[i].help, NULL,
                          rows[i].value);
    metrics_add_plain(m, METRIC_GAUGE, METRIC_COUNT, "filmroom_dicom_associations",
                      "DICOM associations at present", NULL, &s->stats.active);
    metrics_add_plain(m, METRIC_COUNTER, METRIC_COUNT, "filmroom_door_received_bytes_total",
                      "Bytes of content received from clients", METRIC_LABELS("door", "dicom"),
                      &s->stats.bytes);
}

/* ---- Stop ------------------------------------------------------------------------------- */

void dimse_server_stop(struct dimse_server *s)
{
    uint64_t deadline;

    if (!s)
        return;
    atomic_store(&s->stopping, true);
    scp_wake(s->listen_fd);
    list_for_each (it, &s->associations) {
        struct dimse_association *a = LIST_ENTRY(it, struct dimse_association, node);

        if (!atomic_load(&a->storing))
            scp_wake(a->fd);
    }
    deadline = env_now(s->o.env) + DIMSE_GRACE;
    while (s->threads > 0 && fiber_cond_wait_until(s->o.env, &s->ended, deadline))
        continue;
    list_for_each (it, &s->associations)
        scp_cut(LIST_ENTRY(it, struct dimse_association, node)->fd);
    while (s->threads > 0)
        fiber_cond_wait(&s->ended);
    scp_close(s->listen_fd);
    mem_free(s);
}

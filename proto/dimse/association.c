/* One association: the callbacks of DCMTK's side (scp.h), on the association's thread.
 *
 * A C-STORE gathers its bytes, the Part 10 head first, in a buffer; each time that is full, and at
 * the end, the thread hops to the loop (env_call) and appends it to the put. So the first hop
 * begins the put, the last one commits it, and an instance that fits the buffer takes one hop in
 * all. A hop suspends for as long as the store's budget makes it: the thread waits, DCMTK does not
 * read, TCP slows the sender down. That is the flow control.
 *
 * The first error of a store is kept, the put aborted at once, the rest of the data set taken off
 * the wire and dropped, and the error answered at its end: DIMSE has no earlier place for it.
 */
#include <stdio.h>
#include <string.h>

#include "lib/base/err.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/dimse/core.h"
#include "proto/dimse/impl.h"

/* ---- Hops: run on the loop while the thread waits --------------------------------------- */

static void dimse_hop(struct dimse_association *a, fiber_fn fn)
{
    int rc = env_call(a->server->o.env, "dimse", fn, a);

    if (rc < 0 && a->rc == 0)
        a->rc = rc;
}

static void dimse_on_drop(void *arg)
{
    struct dimse_association *a = arg;

    object_put_abort(a->put);
    a->put = NULL;
}

static void dimse_on_flush(void *arg)
{
    struct dimse_association *a = arg;
    struct object_put_info info = {.expect_sop_class = a->sop_class,
                                   .expect_sop_instance = a->sop_instance};

    if (!a->put)
        a->rc = object_put_begin(a->server->o.store, &info, &a->put);
    if (a->rc == 0)
        a->rc = object_put_append(a->put, a->gather, a->gathered);
    a->gathered = 0;
    if (a->rc < 0)
        dimse_on_drop(a);
}

static void dimse_count_store(struct dimse_association *a)
{
    struct dimse_stats *st = &a->server->stats;

    st->bytes += a->store_bytes;
    if (a->rc < 0)
        st->failed++;
    else if (a->result.outcome == OBJECT_IDENTICAL)
        st->identical++;
    else if (a->result.outcome == OBJECT_REPLACED)
        st->replaced++;
    else
        st->stored++;
}

static void dimse_on_commit(void *arg)
{
    struct dimse_association *a = arg;

    if (a->rc == 0)
        dimse_on_flush(a);
    if (a->rc == 0) {
        a->rc = object_put_commit(a->put, &a->result);
        a->put = NULL;
    }
    dimse_count_store(a);
}

static void dimse_on_broken(void *arg)
{
    struct dimse_association *a = arg;

    dimse_on_drop(a);
    a->server->stats.bytes += a->store_bytes;
}

static void dimse_on_echo(void *arg)
{
    struct dimse_association *a = arg;

    a->server->stats.echoes++;
}

/* ---- C-STORE ---------------------------------------------------------------------------- */

static void dimse_store_data(void *ctx, const void *p, size_t n)
{
    struct dimse_association *a = ctx;
    const uint8_t *at = p;

    a->store_bytes += n;
    while (n > 0 && a->rc == 0) {
        size_t room = DIMSE_GATHER - a->gathered, step = n < room ? n : room;

        memcpy(a->gather + a->gathered, at, step);
        a->gathered += step;
        at += step;
        n -= step;
        if (a->gathered == DIMSE_GATHER)
            dimse_hop(a, dimse_on_flush);
    }
}

static void dimse_store_begin(void *ctx, const struct scp_store *s)
{
    struct dimse_association *a = ctx;
    STRBUF_AUTO struct strbuf head = STRBUF_INIT;

    atomic_store(&a->storing, true);
    a->store_start = env_now(a->server->o.env);
    a->gathered = 0;
    a->store_bytes = 0;
    snprintf(a->sop_class, sizeof(a->sop_class), "%s", s->sop_class);
    snprintf(a->sop_instance, sizeof(a->sop_instance), "%s", s->sop_instance);
    a->rc = dcm_head_make(s->sop_class, s->sop_instance, s->transfer_syntax, s->calling_aet, &head);
    if (a->rc == 0) {
        dimse_store_data(a, head.data, head.len);
        a->store_bytes = 0;
    }
}

static void dimse_store_end(void *ctx, bool complete, struct scp_status *ret_status)
{
    struct dimse_association *a = ctx;

    if (complete) {
        dimse_hop(a, dimse_on_commit);
        a->stores++;
        a->bytes += a->store_bytes;
        *ret_status = dimse_status(a->rc);
        metric_record(&a->server->store_time, env_now(a->server->o.env) - a->store_start);
    } else {
        dimse_hop(a, dimse_on_broken);
    }
    atomic_store(&a->storing, false);
    if (complete && a->rc < 0) {
        a->failures++;
        log_warn("dimse", "C-STORE refused peer=%s aet=%s instance=%s error=%s status=%04x",
                 a->address, log_q(a->calling_aet), log_q(a->sop_instance), err_name(a->rc),
                 ret_status->code);
    } else if (complete && a->result.warning) {
        log_warn("dimse", "C-STORE peer=%s aet=%s instance=%s warning=%s", a->address,
                 log_q(a->calling_aet), log_q(a->sop_instance), log_q(a->result.warning));
    }
}

/* ---- The rest of the handler ------------------------------------------------------------ */

static enum scp_verdict dimse_associate(void *ctx, const struct scp_peer *peer)
{
    struct dimse_association *a = ctx;
    bool ours = dimse_same_aet(peer->called_aet, a->server->aet);

    memcpy(a->calling_aet, peer->calling_aet, sizeof(a->calling_aet));
    if (a->over_limit)
        return SCP_REJECT_LIMIT;
    if (!ours && a->server->o.strict_aet)
        return SCP_REJECT_CALLED_AET;
    log_info("dimse", "association begins peer=%s aet=%s called=%s implementation=%s", a->address,
             log_q(peer->calling_aet), log_q(peer->called_aet), log_q(peer->implementation));
    return SCP_ACCEPT;
}

static int dimse_choose_syntax(void *ctx, const char *abstract_syntax, const char *const *syntaxes,
                               unsigned count)
{
    const struct dimse_association *a = ctx;

    return dimse_choose(abstract_syntax, syntaxes, count, a->server->o.strict_classes);
}

static void dimse_echo(void *ctx)
{
    dimse_hop(ctx, dimse_on_echo);
}

static bool dimse_stopping(void *ctx)
{
    return atomic_load(&((struct dimse_association *)ctx)->server->stopping);
}

/* ---- Life ------------------------------------------------------------------------------- */

static void dimse_log_end(const struct dimse_association *a, enum scp_end end, const char *detail)
{
    static const char *const words[] = {
        "released", "aborted by the peer", "rejected", "timed out", "stopped", "broken"};
    double seconds = (double)(env_now(a->server->o.env) - a->started_ns) / 1e9;

    if (end == SCP_REJECTED)
        log_warn("dimse", "association rejected peer=%s aet=%s reason=%s", a->address,
                 log_q(a->calling_aet),
                 a->over_limit ? "\"the limit of associations is reached\""
                 : detail[0]   ? log_q(detail)
                               : "\"the called AE title is not ours\"");
    else if (!a->calling_aet[0]) /* a port scan, a load balancer's probe */
        log_info("dimse", "connection without an association peer=%s detail=%s", a->address,
                 log_q(detail));
    else
        log_write(end == SCP_RELEASED ? LOG_INFO : LOG_WARN, "dimse",
                  "association ends peer=%s aet=%s how=%s stores=%llu failed=%llu bytes=%llu "
                  "seconds=%.3f detail=%s",
                  a->address, log_q(a->calling_aet), log_q(words[end]),
                  (unsigned long long)a->stores, (unsigned long long)a->failures,
                  (unsigned long long)a->bytes, seconds, log_q(detail));
}

struct dimse_ending {
    struct dimse_association *a;
    enum scp_end end;
};

static void dimse_on_end(void *arg)
{
    const struct dimse_ending *e = arg;
    struct dimse_server *s = e->a->server;

    if (e->end == SCP_REJECTED)
        s->stats.rejected++;
    else if (e->end != SCP_RELEASED && e->end != SCP_ABORTED)
        s->stats.broken++;
    if (!e->a->over_limit)
        s->stats.active--;
    list_del(&e->a->node);
    scp_close(e->a->fd);
    mem_free(e->a->gather);
    mem_free(e->a);
    s->threads--;
    fiber_cond_broadcast(&s->ended);
}

void dimse_association_main(void *arg)
{
    static const struct scp_handler handler = {
        .associate = dimse_associate,
        .choose = dimse_choose_syntax,
        .echo = dimse_echo,
        .store_begin = dimse_store_begin,
        .store_data = dimse_store_data,
        .store_end = dimse_store_end,
        .stopping = dimse_stopping,
    };
    struct dimse_ending e = {.a = arg};
    struct env *env = e.a->server->o.env;
    char detail[128];

    e.a->gather = mem_alloc(DIMSE_GATHER);
    e.end = scp_serve(e.a->fd, &e.a->server->scp, &handler, e.a, detail);
    dimse_log_end(e.a, e.end, detail);
    (void)env_call(env, "dimse end", dimse_on_end, &e); /* the env waits for its threads */
}

/* nbd_play: an NBD connection without sockets, for tests. See nbd_play.h. */
#include "tests/unit/nbd/nbd_play.h"

#include <string.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"

static void take_out(struct nbd_play *p)
{
    strbuf_add(&p->out, p->core.out.data, p->core.out.len);
    strbuf_reset(&p->core.out);
}

static int flush(void *arg)
{
    take_out(arg);
    return 0;
}

void nbd_play_init(struct nbd_play *p, struct block_store *store)
{
    memset(p, 0, sizeof(*p));
    p->store = store;
    nbd_core_init(&p->core);
    take_out(p);
}

void nbd_play_free(struct nbd_play *p)
{
    nbd_core_free(&p->core);
    block_close(p->volume);
    strbuf_free(&p->in);
    strbuf_free(&p->out);
    mem_free(p->payload);
}

static void answer(struct nbd_play *p, uint8_t *buf)
{
    struct nbd_answer a;

    p->requests++;
    p->refused += p->step.request.error ? 1 : 0;
    nbd_answer_request(&p->core, p->volume, &p->step.request, buf, &a);
    for (unsigned i = 0; i < a.iov_count; i++)
        strbuf_add(&p->out, a.iov[i].iov_base, a.iov[i].iov_len);
}

static void request(struct nbd_play *p)
{
    const struct nbd_request *r = &p->step.request;
    uint8_t *buf = mem_alloc(nbd_answer_room(r));

    if (r->type == NBD_CMD_WRITE && !r->error && r->length) {
        p->payload = buf;
        p->payload_have = 0;
        return;
    }
    answer(p, buf);
    mem_free(buf);
}

/* Takes what there is of the payload; returns the bytes used. */
static size_t payload(struct nbd_play *p, const uint8_t *bytes, size_t n)
{
    size_t want = p->step.request.length - p->payload_have;

    if (n > want)
        n = want;
    memcpy(p->payload + p->payload_have, bytes, n);
    p->payload_have += n;
    if (n == want) {
        nbd_core_payload_taken(&p->core);
        answer(p, p->payload);
        mem_free(p->payload);
        p->payload = NULL;
    }
    return n;
}

static size_t one_step(struct nbd_play *p, const uint8_t *bytes, size_t n, bool *ret_more)
{
    size_t used = nbd_core_feed(&p->core, bytes, n, &p->step);

    CHECK(used <= n);
    CHECK(nbd_core_need(&p->core) >= 1 && nbd_core_need(&p->core) <= NBD_NEED_MAX);
    switch (p->step.kind) {
    case NBD_STEP_MORE:
        CHECK(used > 0 || n < nbd_core_need(&p->core));
        *ret_more = used > 0;
        break;
    case NBD_STEP_LIST:
        CHECK(nbd_answer_list(&p->core, p->store, flush, p) == 0);
        break;
    case NBD_STEP_LOOKUP:
        nbd_answer_lookup(&p->core, p->store, &p->step, &p->volume);
        break;
    case NBD_STEP_REQUEST:
        request(p);
        break;
    case NBD_STEP_CLOSE:
        p->closed = true;
        p->reason = p->step.reason;
        break;
    }
    take_out(p);
    return used;
}

void nbd_play_feed(struct nbd_play *p, const void *bytes, size_t n)
{
    size_t at = 0;
    bool more = true;

    strbuf_add(&p->in, bytes, n);
    while (!p->closed && more) {
        const uint8_t *in = (const uint8_t *)p->in.data + at;
        size_t left = p->in.len - at;

        if (p->payload) {
            at += payload(p, in, left);
            more = !p->payload;
        } else {
            at += one_step(p, in, left, &more);
        }
    }
    if (at > 0) {
        memmove(p->in.data, p->in.data + at, p->in.len - at);
        p->in.len -= at;
    }
}

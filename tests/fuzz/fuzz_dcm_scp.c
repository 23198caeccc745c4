/* What a peer may send to the DICOM port, from A-ASSOCIATE-RQ on, through DCMTK's upper layer and
 * our handler's contract: begin, data, end come in that order and in pairs. Input: the bytes of the
 * peer, who then closes its side. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/check.h"
#include "lib/dicom/dcm.h"
#include "lib/dicom/scp.h"

struct fuzz {
    unsigned begun, ended, associated;
    bool storing;
};

static enum scp_verdict fuzz_associate(void *ctx, const struct scp_peer *peer)
{
    struct fuzz *f = ctx;

    CHECK(strlen(peer->calling_aet) <= SCP_AET_MAX && strlen(peer->called_aet) <= SCP_AET_MAX);
    f->associated++;
    return peer->called_aet[0] == 'L'   ? SCP_REJECT_LIMIT
           : peer->called_aet[0] == 'N' ? SCP_REJECT_CALLED_AET
                                        : SCP_ACCEPT;
}

static int fuzz_choose(void *ctx, const char *abstract_syntax, const char *const *syntaxes,
                       unsigned count)
{
    (void)ctx;
    CHECK(strlen(abstract_syntax) <= DCM_UID_MAX);
    for (unsigned i = 0; i < count; i++)
        CHECK(strlen(syntaxes[i]) <= DCM_UID_MAX);
    return count ? (int)count - 1 : -1;
}

static void fuzz_echo(void *ctx)
{
    CHECK(!((struct fuzz *)ctx)->storing);
}

static void fuzz_store_begin(void *ctx, const struct scp_store *store)
{
    struct fuzz *f = ctx;

    CHECK(f->associated == 1 && !f->storing);
    CHECK(strlen(store->sop_class) <= DCM_UID_MAX && strlen(store->sop_instance) <= DCM_UID_MAX);
    f->storing = true;
    f->begun++;
}

static void fuzz_store_data(void *ctx, const void *p, size_t n)
{
    volatile uint8_t sum = 0;

    CHECK(((struct fuzz *)ctx)->storing && n > 0);
    for (size_t i = 0; i < n; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)p)[i]);
}

static void fuzz_store_end(void *ctx, bool complete, struct scp_status *ret_status)
{
    struct fuzz *f = ctx;

    CHECK(f->storing);
    f->storing = false;
    f->ended++;
    ret_status->code = complete ? 0xa700 : 0;
    strcpy(ret_status->comment, "no");
}

static bool fuzz_stopping(void *ctx)
{
    (void)ctx;
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct scp_handler handler = {fuzz_associate,   fuzz_choose,     fuzz_echo,
                                               fuzz_store_begin, fuzz_store_data, fuzz_store_end,
                                               fuzz_stopping};
    static const struct scp_options options = {
        .aet = "FUZZ", .max_pdu = 16384, .acse_s = 1, .dimse_s = 1, .idle_s = 1};
    static int ready = 1;
    struct fuzz f = {0};
    char detail[128];
    int pair[2], client, fd;

    if (ready == 1)
        CHECK_OK(ready = dcm_init());
    if (size > 65536)
        return 0;
    /* Not TCP: thousands of connections would leave the machine without ports. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    client = pair[0];
    fd = pair[1];
    CHECK(send(client, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size);
    shutdown(client, SHUT_WR);
    (void)scp_serve(fd, &options, &handler, &f, detail);
    CHECK(!f.storing && f.begun == f.ended && f.associated <= 1);
    scp_close(fd);
    close(client);
    return 0;
}

/* What a peer may send to the DICOM port, from A-ASSOCIATE-RQ on, through DCMTK's upper layer and
 * our handler's contract: begin, data, end come in that order and in pairs. Input: the bytes of the
 * peer, who then closes its side. */
#include <arpa/inet.h>
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

/* A connected pair on loopback: DCMTK wants to know its peer's address. Each from another address,
 * for the ports of one would soon all be waiting out their TIME_WAIT. */
static int fuzz_connect(int *ret_client)
{
    static int listener = -1;
    static uint32_t turn;
    static uint16_t port;
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK + turn++ % 60000)};
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger linger = {1, 0}; /* thousands of these: no TIME_WAIT */
    char peer[64];
    int fd;

    if (listener < 0)
        CHECK_OK(scp_listen("127.0.0.1", 0, &listener, &port));
    addr.sin_port = htons(port);
    *ret_client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(*ret_client >= 0);
    setsockopt(*ret_client, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    CHECK_OK(bind(*ret_client, (struct sockaddr *)&from, sizeof(from)));
    if (connect(*ret_client, (struct sockaddr *)&addr, sizeof(addr)) < 0) { /* no port left */
        close(*ret_client);
        return -1;
    }
    CHECK_OK(scp_accept(listener, &fd, peer));
    return fd;
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
    int client, fd;

    if (ready == 1)
        CHECK_OK(ready = dcm_init());
    if (size > 65536)
        return 0;
    fd = fuzz_connect(&client);
    if (fd < 0)
        return 0;
    CHECK(send(client, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size);
    shutdown(client, SHUT_WR);
    (void)scp_serve(fd, &options, &handler, &f, detail);
    CHECK(!f.storing && f.begun == f.ended && f.associated <= 1);
    scp_close(fd);
    close(client);
    return 0;
}

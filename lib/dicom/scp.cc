/* DCMTK's upper layer as an SCP of C-ECHO and C-STORE; see scp.h.
 *
 * Getting a socket into DCMTK. Its network object insists on listening itself, on any address, and
 * its accept reads the whole A-ASSOCIATE-RQ, so that one silent peer would hold up all others. But
 * it takes an accepted socket from the global dcmExternalSocketHandle, meant for servers that fork.
 * Here each association has its thread and its own network object; the global is held, under a
 * lock, only until DCMTK has picked the socket up, which it tells by asking the transport layer for
 * a connection (createConnection). With that global set the network object does not listen at all.
 *
 * Data sets are taken PDV by PDV from the upper layer and never parsed here. (DCMTK's own function
 * for that refuses fragments of odd length. So does the standard, PS3.8 section 9.3.5.1, but
 * senders of deflated and of broken data sets exist.)
 *
 * Transfer syntaxes that DCMTK has not heard of can be carried just as well, but it refuses to send
 * even the response (a command, which is always in implicit VR) in such a context. So once the
 * negotiation is over and its result noted, the contexts of unknown syntaxes are given a known one
 * in DCMTK's own books.
 */
#include <map>
#include <string>
#include <vector>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <dcmtk/config/osconfig.h>
#include <dcmtk/dcmdata/dctk.h>
#include <dcmtk/dcmdata/dcostrma.h>
#include <dcmtk/dcmnet/assoc.h>
#include <dcmtk/dcmnet/cond.h>
#include <dcmtk/dcmnet/dcmlayer.h>
#include <dcmtk/dcmnet/dcmtrans.h>
#include <dcmtk/dcmnet/dimse.h>
#include <dcmtk/ofstd/ofthread.h>

extern "C" {
#include "lib/base/err.h"
#include "lib/dicom/scp.h"
}
#include "lib/dicom/impl.h"

namespace
{

/* ---- Handing the socket over ------------------------------------------------------------ */

OFMutex handover;

class Layer : public DcmTransportLayer
{
  public:
    Layer(int fd, unsigned silence_s) : picked_up(false), silence_s(silence_s)
    {
        handover.lock();
        dcmExternalSocketHandle.set(fd);
    }
    ~Layer() override
    {
        release();
    }
    DcmTransportConnection *createConnection(DcmNativeSocketType fd, OFBool) override
    {
        struct timeval silence = {(time_t)silence_s, 0};
        DcmTCPConnection *connection;

        release();
        connection = new DcmTCPConnection(fd); /* sets the global's 60 s */
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof(silence));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &silence, sizeof(silence));
        return connection;
    }
    bool picked_up; /* DCMTK has the socket and will close it */

  private:
    unsigned silence_s;

    void release()
    {
        if (picked_up)
            return;
        picked_up = true;
        dcmExternalSocketHandle.set(DCMNET_INVALID_SOCKET);
        handover.unlock();
    }
};

/* ---- One association -------------------------------------------------------------------- */

class Association
{
  public:
    Association(int fd, const struct scp_options *o, const struct scp_handler *h, void *c)
        : fd(fd), options(o), handler(h), ctx(c)
    {
    }
    ~Association()
    {
        if (assoc) {
            if (!aborted)
                ASC_dropSCPAssociation(assoc, 1);
            ASC_destroyAssociation(&assoc);
        }
        if (network)
            ASC_dropNetwork(&network);
    }
    enum scp_end serve(int own, bool *ret_taken, std::string &detail);

  private:
    enum scp_end negotiate(std::string &detail);
    enum scp_end reject(T_ASC_RejectParametersResult result, T_ASC_RejectParametersSource source,
                        T_ASC_RejectParametersReason reason);
    void choose(int position);
    void disguise();
    enum scp_end messages(std::string &detail);
    OFCondition message(T_ASC_PresentationContextID id, T_DIMSE_Message &msg);
    OFCondition store(T_ASC_PresentationContextID id, T_DIMSE_C_StoreRQ &request);
    OFCondition data_set(T_ASC_PresentationContextID id);
    enum scp_end end_of(const OFCondition &cond, std::string &detail);
    void abort();

    int fd;               /* the caller's, good to the end; DCMTK closes its own when it likes */
    bool aborted = false; /* by us */
    const struct scp_options *options;
    const struct scp_handler *handler;
    void *ctx;
    T_ASC_Network *network = nullptr;
    T_ASC_Association *assoc = nullptr;
    struct scp_peer peer = {};
    std::map<T_ASC_PresentationContextID, std::string> syntaxes; /* as negotiated */
};

/* An A-ABORT by hand: DCMTK's own waits for as long as the handshake may take until the peer has
 * closed. Here the peer gets a second to take note, then the socket goes. */
void Association::abort()
{
    static const unsigned char pdu[] = {DUL_TYPEABORT, 0, 0, 0, 0, 4, 0, 0, 0, 0};
    char waste[4096];
    struct pollfd p = {fd, POLLIN, 0};

    aborted = true;
    if (send(fd, pdu, sizeof(pdu), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return;
    shutdown(fd, SHUT_WR);
    for (int i = 0; i < 64 && poll(&p, 1, 1000) > 0 && recv(fd, waste, sizeof(waste), 0) > 0; i++)
        continue;
}

enum scp_end Association::reject(T_ASC_RejectParametersResult result,
                                 T_ASC_RejectParametersSource source,
                                 T_ASC_RejectParametersReason reason)
{
    T_ASC_RejectParameters r = {result, source, reason};

    ASC_rejectAssociation(assoc, &r);
    return SCP_REJECTED;
}

void Association::choose(int position)
{
    T_ASC_PresentationContext pc;
    std::vector<const char *> proposed;

    if (ASC_getPresentationContext(assoc->params, position, &pc).bad())
        return;
    for (int i = 0; i < pc.transferSyntaxCount; i++)
        proposed.push_back(pc.proposedTransferSyntaxes[i]);
    int pick = handler->choose(ctx, pc.abstractSyntax, proposed.data(), (unsigned)proposed.size());
    if (pick >= 0 && (size_t)pick < proposed.size()) {
        if (ASC_acceptPresentationContext(assoc->params, pc.presentationContextID, proposed[pick])
                .good())
            syntaxes[pc.presentationContextID] = proposed[pick];
    } else {
        ASC_refusePresentationContext(assoc->params, pc.presentationContextID,
                                      pick == -1 ? ASC_P_TRANSFERSYNTAXESNOTSUPPORTED
                                                 : ASC_P_ABSTRACTSYNTAXNOTSUPPORTED);
    }
}

void Association::disguise()
{
    /* An acceptor looks contexts up in this list, not in that of the accepted ones. */
    LST_HEAD **list = &assoc->params->DULparams.requestedPresentationContext;
    DUL_PRESENTATIONCONTEXT *pc;

    if (!*list)
        return;
    pc = static_cast<DUL_PRESENTATIONCONTEXT *>(LST_Head(list));
    (void)LST_Position(list, pc);
    for (; pc; pc = static_cast<DUL_PRESENTATIONCONTEXT *>(LST_Next(list))) {
        if (DcmXfer(pc->acceptedTransferSyntax).getXfer() == EXS_Unknown)
            OFStandard::strlcpy(pc->acceptedTransferSyntax, UID_LittleEndianImplicitTransferSyntax,
                                sizeof(pc->acceptedTransferSyntax));
    }
}

enum scp_end Association::negotiate(std::string &detail)
{
    char context[128] = "", responding[SCP_AET_MAX + 1] = "";
    T_ASC_Parameters *p = assoc->params;

    ASC_getAPTitles(p, peer.calling_aet, sizeof(peer.calling_aet), peer.called_aet,
                    sizeof(peer.called_aet), responding, sizeof(responding));
    OFStandard::strlcpy(peer.implementation, p->theirImplementationVersionName,
                        sizeof(peer.implementation));
    if (ASC_getApplicationContextName(p, context, sizeof(context)).bad() ||
        strcmp(context, UID_StandardApplicationContext) != 0) {
        detail = "the application context is not DICOM's";
        return reject(ASC_RESULT_REJECTEDPERMANENT, ASC_SOURCE_SERVICEUSER,
                      ASC_REASON_SU_APPCONTEXTNAMENOTSUPPORTED);
    }
    switch (handler->associate(ctx, &peer)) {
    case SCP_ACCEPT:
        break;
    case SCP_REJECT_LIMIT:
        return reject(ASC_RESULT_REJECTEDTRANSIENT, ASC_SOURCE_SERVICEPROVIDER_PRESENTATION_RELATED,
                      ASC_REASON_SP_PRES_LOCALLIMITEXCEEDED);
    case SCP_REJECT_CALLED_AET:
        return reject(ASC_RESULT_REJECTEDPERMANENT, ASC_SOURCE_SERVICEUSER,
                      ASC_REASON_SU_CALLEDAETITLENOTRECOGNIZED);
    }
    OFStandard::strlcpy(p->ourImplementationClassUID, DCM_IMPLEMENTATION_UID,
                        sizeof(p->ourImplementationClassUID));
    OFStandard::strlcpy(p->ourImplementationVersionName, DCM_IMPLEMENTATION_VERSION,
                        sizeof(p->ourImplementationVersionName));
    ASC_setAPTitles(p, nullptr, nullptr, options->aet);
    for (int i = 0; i < ASC_countPresentationContexts(p); i++)
        choose(i);
    OFCondition cond = ASC_acknowledgeAssociation(assoc);
    if (cond.bad())
        return end_of(cond, detail);
    disguise();
    return messages(detail);
}

/* What a failed call means for the association. */
enum scp_end Association::end_of(const OFCondition &cond, std::string &detail)
{
    if (cond == DUL_PEERREQUESTEDRELEASE) {
        ASC_acknowledgeRelease(assoc);
        return SCP_RELEASED;
    }
    if (handler->stopping(ctx)) { /* woken by scp_wake, which looks like the peer's end */
        abort();
        return SCP_STOPPED;
    }
    if (cond == DUL_PEERABORTEDASSOCIATION)
        return SCP_ABORTED;
    detail = cond.text() ? cond.text() : "";
    abort();
    return cond == DIMSE_NODATAAVAILABLE || cond == DUL_READTIMEOUT ? SCP_TIMED_OUT : SCP_BROKEN;
}

enum scp_end Association::messages(std::string &detail)
{
    for (;;) {
        T_ASC_PresentationContextID id = 0;
        T_DIMSE_Message msg = {};

        if (handler->stopping(ctx)) {
            abort();
            return SCP_STOPPED;
        }
        OFCondition cond = DIMSE_receiveCommand(assoc, DIMSE_NONBLOCKING, (int)options->idle_s, &id,
                                                &msg, nullptr);
        if (cond.good())
            cond = message(id, msg);
        if (cond.bad())
            return end_of(cond, detail);
    }
}

OFCondition Association::message(T_ASC_PresentationContextID id, T_DIMSE_Message &msg)
{
    if (msg.CommandField == DIMSE_C_ECHO_RQ) {
        handler->echo(ctx);
        return DIMSE_sendEchoResponse(assoc, id, &msg.msg.CEchoRQ, STATUS_Success, nullptr);
    }
    if (msg.CommandField == DIMSE_C_STORE_RQ)
        return store(id, msg.msg.CStoreRQ);
    return DIMSE_BADCOMMANDTYPE;
}

OFCondition Association::data_set(T_ASC_PresentationContextID id)
{
    for (;;) {
        DUL_PDV pdv = {};

        if (DUL_NextPDV(&assoc->DULassociation, &pdv).bad()) { /* the last PDU has no more */
            OFCondition cond =
                DUL_ReadPDVs(&assoc->DULassociation, nullptr, DUL_NOBLOCK, (int)options->dimse_s);
            if (cond != DUL_PDATAPDUARRIVED)
                return cond.good() ? DIMSE_BADMESSAGE : cond;
            continue;
        }
        if (pdv.presentationContextID != id || pdv.pdvType != DUL_DATASETPDV)
            return DIMSE_UNEXPECTEDPDVTYPE;
        if (pdv.fragmentLength > 0)
            handler->store_data(ctx, pdv.data, pdv.fragmentLength);
        if (pdv.lastPDV)
            return EC_Normal;
    }
}

OFCondition Association::store(T_ASC_PresentationContextID id, T_DIMSE_C_StoreRQ &request)
{
    auto syntax = syntaxes.find(id);
    T_DIMSE_C_StoreRSP response = {};
    struct scp_status status = {};
    DcmDataset comment;
    OFCondition cond;

    if (syntax == syntaxes.end())
        return DIMSE_BADMESSAGE;
    if (request.DataSetType == DIMSE_DATASET_NULL)
        return DIMSE_BADMESSAGE;
    struct scp_store announced = {request.AffectedSOPClassUID, request.AffectedSOPInstanceUID,
                                  syntax->second.c_str(), peer.calling_aet};
    handler->store_begin(ctx, &announced);
    cond = data_set(id);
    handler->store_end(ctx, cond.good(), &status);
    if (cond.bad())
        return cond;
    response.DimseStatus = status.code;
    if (status.comment[0])
        comment.putAndInsertString(DCM_ErrorComment, status.comment);
    return DIMSE_sendStoreResponse(assoc, id, &request, &response,
                                   status.comment[0] ? &comment : nullptr);
}

enum scp_end Association::serve(int own, bool *ret_taken, std::string &detail)
{
    OFCondition cond;
    {
        Layer layer(own, options->dimse_s);

        dcmDisableGethostbyaddr.set(OFTrue); /* no name service in anyone's way */
        cond = ASC_initializeNetwork(NET_ACCEPTOR, 0, (int)options->acse_s, &network);
        if (cond.good())
            cond = ASC_setTransportLayer(network, &layer, 0);
        if (cond.good())
            cond = ASC_receiveAssociation(network, &assoc, (long)options->max_pdu, nullptr, nullptr,
                                          OFFalse, DUL_NOBLOCK, (int)options->acse_s);
        *ret_taken = layer.picked_up;
    }
    if (cond.bad()) {
        detail = cond.text() ? cond.text() : "";
        return SCP_BROKEN;
    }
    return negotiate(detail);
}

/* ---- Sockets ---------------------------------------------------------------------------- */

bool parse_address(const char *address, uint16_t port, struct sockaddr_storage *ret_addr,
                   socklen_t *ret_len)
{
    struct sockaddr_in *v4 = reinterpret_cast<struct sockaddr_in *>(ret_addr);
    struct sockaddr_in6 *v6 = reinterpret_cast<struct sockaddr_in6 *>(ret_addr);

    memset(ret_addr, 0, sizeof(*ret_addr));
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        *ret_len = sizeof(*v4);
        return true;
    }
    if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        *ret_len = sizeof(*v6);
        return true;
    }
    return false;
}

} // namespace

extern "C" {

int scp_listen(const char *address, uint16_t port, int *ret_fd, uint16_t *ret_port)
{
    struct sockaddr_storage addr;
    socklen_t len;
    char service[8];
    int one = 1, fd;

    if (!parse_address(address, port, &addr, &len))
        return ERR_INVAL;
    fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_from_errno(errno);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(fd, reinterpret_cast<struct sockaddr *>(&addr), len) < 0 || listen(fd, 128) < 0 ||
        getsockname(fd, reinterpret_cast<struct sockaddr *>(&addr), &len) < 0 ||
        getnameinfo(reinterpret_cast<struct sockaddr *>(&addr), len, nullptr, 0, service,
                    sizeof(service), NI_NUMERICSERV) != 0) {
        int no = errno;

        close(fd);
        return no == EADDRINUSE || no == EADDRNOTAVAIL ? ERR_ADDR : err_from_errno(no);
    }
    *ret_fd = fd;
    *ret_port = (uint16_t)atoi(service);
    return 0;
}

int scp_accept(int listen_fd, int *ret_fd, char ret_peer[64])
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);
    char host[48] = "?", service[8] = "?";
    int one = 1, fd;

    for (;;) {
        fd = accept4(listen_fd, reinterpret_cast<struct sockaddr *>(&addr), &len, SOCK_CLOEXEC);
        if (fd >= 0)
            break;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            return ERR_AGAIN;
        if (errno == EINVAL || errno == EBADF)
            return ERR_CLOSED;
    }
    /* Without it DCMTK's write-write-read pattern waits 40 ms for a delayed ACK on each file. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    getnameinfo(reinterpret_cast<struct sockaddr *>(&addr), len, host, sizeof(host), service,
                sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(ret_peer, 64, "%s:%s", host, service);
    *ret_fd = fd;
    return 0;
}

void scp_wake(int fd)
{
    shutdown(fd, SHUT_RD);
}

void scp_cut(int fd)
{
    shutdown(fd, SHUT_RDWR);
}

void scp_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

enum scp_end scp_serve(int fd, const struct scp_options *options, const struct scp_handler *handler,
                       void *ctx, char ret_detail[128])
{
    bool taken = false;
    enum scp_end end = SCP_BROKEN;
    std::string detail;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* DCMTK closes its socket */

    try {
        Association association(fd, options, handler, ctx);

        if (own >= 0)
            end = association.serve(own, &taken, detail);
        else
            detail = "out of descriptors";
    } catch (...) {
        detail = "out of memory";
    }
    if (!taken)
        scp_close(own);
    scp_cut(fd);
    snprintf(ret_detail, 128, "%s", detail.c_str());
    return end;
}

} // extern "C"

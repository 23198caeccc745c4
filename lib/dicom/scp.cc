/* DCMTK's upper layer as an SCP of C-ECHO and C-STORE; see scp.h.
 *
 * Getting a socket into DCMTK. Its network object insists on listening itself, on any address, and
 * its accept reads the whole A-ASSOCIATE-RQ, so that one silent peer would hold up all others. But
 * it takes an accepted socket from the global dcmExternalSocketHandle, meant for servers that fork.
 * Here each association has its thread and its own network object; the global is held, under a
 * lock, only until DCMTK has picked the socket up, which it tells by asking the transport layer for
 * a connection (createConnection). With that global set the network object does not listen at all.
 *
 * What DCMTK does is the upper layer: PDUs, negotiation, release. Messages are taken from it PDV by
 * PDV. Commands are parsed and made by command.c, within bounds; DCMTK's own functions would gather
 * and allocate whatever a peer says, and answer in no context whose transfer syntax they have not
 * heard of. Data sets go to the handler as they come and are never parsed. (DCMTK's function for
 * that also refuses fragments of odd length. So does the standard, PS3.8 section 9.3.5.1, but
 * senders of deflated and of broken data sets exist.)
 */
#include <algorithm>
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
#include <dcmtk/dcmnet/assoc.h>
#include <dcmtk/dcmnet/cond.h>
#include <dcmtk/dcmnet/dcmlayer.h>
#include <dcmtk/dcmnet/dcmtrans.h>
#include <dcmtk/dcmnet/dimse.h>
#include <dcmtk/ofstd/ofthread.h>
#include <dcmtk/ofstd/oftimer.h>

extern "C" {
#include "lib/base/err.h"
#include "lib/dicom/scp.h"
}
#include "lib/dicom/impl.h"

namespace
{

/* ---- Handing the socket over ------------------------------------------------------------ */

OFMutex handover;

/* A connection that lets DCMTK see sound PDUs only.
 *
 * The first one is received and checked as a whole (rq.c says why). Of the later ones the heads are
 * read as they go by: DCMTK allocates what a head says before the body has come. What is not sound
 * ends the stream, with the reason in `foul`. */
class Connection : public DcmTCPConnection
{
  public:
    Connection(int fd, const struct scp_options *o, const char **ret_foul)
        : DcmTCPConnection(fd), foul(*ret_foul)
    {
        struct timeval silence = {(time_t)o->dimse_s, 0}; /* instead of the base class's 60 s */

        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof(silence));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &silence, sizeof(silence));
        if (!receive(fd, 6, o->acse_s))
            foul = "nothing came";
        else if (first[0] != DUL_TYPEASSOCIATERQ || length(first.data()) > request_max)
            foul = "what came is not an association request";
        else if (!receive(fd, 6 + length(first.data()), o->acse_s))
            foul = "the association request is cut off";
        else
            first.resize(dcm_rq_clean(first.data(), first.size()));
        if (!foul && first.empty())
            foul = "the association request is malformed";
    }
    ssize_t read(void *p, size_t n) override
    {
        if (foul)
            return 0;
        if (given < first.size()) {
            n = std::min(n, first.size() - given);
            memcpy(p, first.data() + given, n);
            given += n;
            return (ssize_t)n;
        }
        ssize_t got =
            DcmTCPConnection::read(p, body > 0 ? std::min(n, body) : std::min(n, 6 - headed));
        hurry_acknowledgement();
        return got > 0 && !follow(static_cast<const unsigned char *>(p), (size_t)got) ? 0 : got;
    }
    OFBool networkDataAvailable(int timeout) override
    {
        return foul || given < first.size() || DcmTCPConnection::networkDataAvailable(timeout);
    }

  private:
    /* A sender without TCP_NODELAY holds the end of each message back until what went before is
     * acknowledged, and the kernel puts that off for 40 ms, in hope of an answer to send along. The
     * answer is waiting for the end of the message. The kernel forgets this wish: it is told again.
     */
    void hurry_acknowledgement()
    {
        int one = 1;

        setsockopt(getSocket(), IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
    }

    static size_t length(const unsigned char *head)
    {
        return (size_t)head[2] << 24 | (size_t)head[3] << 16 | (size_t)head[4] << 8 | head[5];
    }

    /* Bytes of one head or one body go by. False: they must not. */
    bool follow(const unsigned char *p, size_t n)
    {
        if (body > 0) {
            body -= n;
            return true;
        }
        memcpy(head + headed, p, n);
        headed += n;
        if (headed < 6)
            return true;
        headed = 0;
        body = length(head);
        if (head[0] < DUL_TYPEDATA || head[0] > DUL_TYPEABORT)
            foul = "a PDU of a type that has no place here";
        else if (body > (head[0] == DUL_TYPEDATA ? data_max : 1024))
            foul = "a PDU is too long";
        return !foul;
    }

    /* Until `size` bytes of the first PDU are here; the handshake's time is for all of it. */
    bool receive(int fd, size_t size, unsigned handshake_s)
    {
        while (first.size() < size) {
            double left = handshake_s - timer.getDiff();
            struct pollfd p = {fd, POLLIN, 0};
            unsigned char piece[4096];
            ssize_t n;

            if (left <= 0 || poll(&p, 1, (int)(left * 1000) + 1) <= 0)
                return false;
            n = recv(fd, piece, std::min(sizeof(piece), size - first.size()), 0);
            if (n <= 0)
                return false;
            first.insert(first.end(), piece, piece + n);
        }
        return true;
    }

    static const size_t request_max = 1 << 20;
    static const size_t data_max =
        SCP_PDU_MAX + 4096; /* some overdo what was negotiated a little */
    const char *&foul;
    OFTimer timer;
    std::vector<unsigned char> first;
    size_t given = 0;
    unsigned char head[6];
    size_t headed = 0, body = 0;
};

class Layer : public DcmTransportLayer
{
  public:
    Layer(int fd, const struct scp_options *o, const char **ret_foul)
        : picked_up(false), options(o), foul(ret_foul)
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
        release();
        return new Connection(fd, options, foul);
    }
    bool picked_up; /* DCMTK has the socket and will close it */

  private:
    const struct scp_options *options;
    const char **foul;

    void release()
    {
        if (picked_up)
            return;
        picked_up = true;
        dcmExternalSocketHandle.set(DCMNET_INVALID_SOCKET);
        handover.unlock();
    }
};

/* Text that frees itself, thrown past or not. */
struct Text {
    struct strbuf s = {};
    ~Text()
    {
        strbuf_free(&s);
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
    enum scp_end messages(std::string &detail);
    OFCondition next_pdv(unsigned timeout_s, DUL_PDV *ret_pdv);
    OFCondition receive_command(T_ASC_PresentationContextID *ret_id,
                                struct dcm_command *ret_command);
    OFCondition message(T_ASC_PresentationContextID id, const struct dcm_command &command);
    OFCondition store(T_ASC_PresentationContextID id, const struct dcm_command &command);
    OFCondition data_set(T_ASC_PresentationContextID id);
    OFCondition respond(T_ASC_PresentationContextID id, const struct dcm_command &command,
                        const struct scp_status &status);
    enum scp_end end_of(const OFCondition &cond, std::string &detail);
    void abort();

    static const size_t command_max = 64 * 1024;
    int fd;               /* the caller's, good to the end; DCMTK closes its own when it likes */
    bool aborted = false; /* by us */
    const char *foul = nullptr; /* what Connection found wrong */
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
    if (cond == DUL_PEERABORTEDASSOCIATION && !foul)
        return SCP_ABORTED;
    detail = foul ? foul : cond.text() ? cond.text() : "";
    abort();
    return cond == DIMSE_NODATAAVAILABLE || cond == DUL_READTIMEOUT ? SCP_TIMED_OUT : SCP_BROKEN;
}

enum scp_end Association::messages(std::string &detail)
{
    for (;;) {
        T_ASC_PresentationContextID id = 0;
        struct dcm_command command;

        if (handler->stopping(ctx)) {
            abort();
            return SCP_STOPPED;
        }
        OFCondition cond = receive_command(&id, &command);
        if (cond.good())
            cond = message(id, command);
        if (cond.bad())
            return end_of(cond, detail);
    }
}

/* The next PDV, of whatever message. Its bytes are good until the next call. */
OFCondition Association::next_pdv(unsigned timeout_s, DUL_PDV *ret_pdv)
{
    while (DUL_NextPDV(&assoc->DULassociation, ret_pdv).bad()) { /* the last PDU has no more */
        OFCondition cond =
            DUL_ReadPDVs(&assoc->DULassociation, nullptr, DUL_NOBLOCK, (int)timeout_s);

        if (cond != DUL_PDATAPDUARRIVED)
            return cond.good() ? DIMSE_BADMESSAGE : cond;
    }
    return EC_Normal;
}

OFCondition Association::receive_command(T_ASC_PresentationContextID *ret_id,
                                         struct dcm_command *ret_command)
{
    std::vector<uint8_t> bytes;
    DUL_PDV pdv = {};

    do {
        bool begun = pdv.presentationContextID != 0;
        OFCondition cond = next_pdv(begun ? options->dimse_s : options->idle_s, &pdv);

        if (cond.bad())
            return cond;
        if (pdv.pdvType != DUL_COMMANDPDV || (begun && pdv.presentationContextID != *ret_id))
            return DIMSE_UNEXPECTEDPDVTYPE;
        *ret_id = pdv.presentationContextID;
        if (pdv.fragmentLength > command_max - bytes.size())
            return DIMSE_BADMESSAGE;
        const uint8_t *p = static_cast<const uint8_t *>(pdv.data);
        bytes.insert(bytes.end(), p, p + pdv.fragmentLength);
    } while (!pdv.lastPDV);
    return dcm_command_parse(bytes.data(), bytes.size(), ret_command) ? EC_Normal
                                                                      : DIMSE_BADMESSAGE;
}

OFCondition Association::message(T_ASC_PresentationContextID id, const struct dcm_command &command)
{
    bool has_data = command.data_set_type != DCM_COMMAND_NO_DATA_SET;

    if (command.field == DCM_COMMAND_C_ECHO && !has_data) {
        handler->echo(ctx);
        return respond(id, command, {});
    }
    if (command.field == DCM_COMMAND_C_STORE && has_data)
        return store(id, command);
    return DIMSE_BADCOMMANDTYPE;
}

OFCondition Association::data_set(T_ASC_PresentationContextID id)
{
    DUL_PDV pdv = {};

    do {
        OFCondition cond = next_pdv(options->dimse_s, &pdv);

        if (cond.bad())
            return cond;
        if (pdv.presentationContextID != id || pdv.pdvType != DUL_DATASETPDV)
            return DIMSE_UNEXPECTEDPDVTYPE;
        if (pdv.fragmentLength > 0)
            handler->store_data(ctx, pdv.data, pdv.fragmentLength);
    } while (!pdv.lastPDV);
    return EC_Normal;
}

OFCondition Association::store(T_ASC_PresentationContextID id, const struct dcm_command &command)
{
    auto syntax = syntaxes.find(id);
    struct scp_status status = {};
    OFCondition cond;

    if (syntax == syntaxes.end())
        return DIMSE_BADMESSAGE;
    struct scp_store announced = {command.sop_class, command.sop_instance, syntax->second.c_str(),
                                  peer.calling_aet};
    handler->store_begin(ctx, &announced);
    cond = data_set(id);
    handler->store_end(ctx, cond.good(), &status);
    return cond.good() ? respond(id, command, status) : cond;
}

OFCondition Association::respond(T_ASC_PresentationContextID id, const struct dcm_command &command,
                                 const struct scp_status &status)
{
    Text bytes;
    OFCondition cond = EC_Normal;
    size_t room = std::max<size_t>(assoc->sendPDVLength, 64), n;

    dcm_command_respond(&command, status.code, status.comment, &bytes.s);
    for (size_t at = 0; cond.good() && at < bytes.s.len; at += n) {
        DUL_PDV pdv = {};
        DUL_PDVLIST list = {};

        n = std::min(room, bytes.s.len - at);
        pdv.fragmentLength = n;
        pdv.presentationContextID = id;
        pdv.pdvType = DUL_COMMANDPDV;
        pdv.lastPDV = at + n == bytes.s.len;
        pdv.data = bytes.s.data + at;
        list.count = 1;
        list.pdv = &pdv;
        cond = DUL_WritePDVs(&assoc->DULassociation, &list);
    }
    return cond;
}

enum scp_end Association::serve(int own, bool *ret_taken, std::string &detail)
{
    OFCondition cond;
    {
        Layer layer(own, options, &foul);

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
        detail = foul ? foul : cond.text() ? cond.text() : "";
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
    *ret_port = (uint16_t)strtoul(service, nullptr, 10);
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

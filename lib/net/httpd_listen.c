/* The listening socket of an HTTP server: ours, because libmicrohttpd makes none for unix paths and
 * would not tell a stale socket file from one in use.
 */
#include "lib/net/httpd_impl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/err.h"

#define LISTEN_BACKLOG 256

union any_addr {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
};

void httpd_sockaddr_text(const struct sockaddr *sa, char *buf, size_t size)
{
    char host[INET6_ADDRSTRLEN] = "?";
    union any_addr a;

    if (sa && sa->sa_family == AF_INET) {
        memcpy(&a.in, sa, sizeof(a.in));
        inet_ntop(AF_INET, &a.in.sin_addr, host, sizeof(host));
        snprintf(buf, size, "%s:%u", host, ntohs(a.in.sin_port));
    } else if (sa && sa->sa_family == AF_INET6) {
        memcpy(&a.in6, sa, sizeof(a.in6));
        inet_ntop(AF_INET6, &a.in6.sin6_addr, host, sizeof(host));
        snprintf(buf, size, "[%s]:%u", host, ntohs(a.in6.sin6_port));
    } else {
        snprintf(buf, size, "unix");
    }
}

/* "HOST:PORT" with a numeric host. */
static int parse_tcp(const char *text, union any_addr *ret_addr, socklen_t *ret_len)
{
    const char *colon = strrchr(text, ':');
    char host[64];
    char *end;
    unsigned long port;
    size_t n;

    if (!colon || !colon[1])
        return ERR_CONFIG;
    port = strtoul(colon + 1, &end, 10);
    if (*end || port > 65535)
        return ERR_CONFIG;
    n = (size_t)(colon - text);
    if (n >= 2 && text[0] == '[' && text[n - 1] == ']') {
        text++;
        n -= 2;
    }
    if (n == 0 || n >= sizeof(host))
        return ERR_CONFIG;
    memcpy(host, text, n);
    host[n] = 0;
    if (inet_pton(AF_INET, host, &ret_addr->in.sin_addr) == 1) {
        ret_addr->in.sin_family = AF_INET;
        ret_addr->in.sin_port = htons((uint16_t)port);
        *ret_len = sizeof(ret_addr->in);
    } else if (inet_pton(AF_INET6, host, &ret_addr->in6.sin6_addr) == 1) {
        ret_addr->in6.sin6_family = AF_INET6;
        ret_addr->in6.sin6_port = htons((uint16_t)port);
        *ret_len = sizeof(ret_addr->in6);
    } else {
        return ERR_CONFIG;
    }
    return 0;
}

static int parse_addr(const char *text, union any_addr *ret_addr, socklen_t *ret_len)
{
    memset(ret_addr, 0, sizeof(*ret_addr));
    if (strncmp(text, "tcp:", 4) == 0)
        return parse_tcp(text + 4, ret_addr, ret_len);
    if (strncmp(text, "unix:", 5) != 0 || !text[5] ||
        strlen(text + 5) >= sizeof(ret_addr->un.sun_path))
        return ERR_CONFIG;
    ret_addr->un.sun_family = AF_UNIX;
    memcpy(ret_addr->un.sun_path, text + 5, strlen(text + 5) + 1);
    *ret_len = sizeof(ret_addr->un);
    return 0;
}

/* Removes the socket file when nobody answers on it. */
static void drop_stale(const union any_addr *a, socklen_t len)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    if (connect(fd, &a->sa, len) < 0 && errno == ECONNREFUSED)
        unlink(a->un.sun_path);
    close(fd);
}

static int bind_listen(int fd, const union any_addr *a, socklen_t len)
{
    int one = 1;
    int r;

    if (a->sa.sa_family == AF_UNIX) {
        drop_stale(a, len);
        /* Linux takes the file's mode from the socket's: it is never open to others, not even for
         * a moment, and the process-wide umask stays out of it. */
        if (fchmod(fd, 0600) < 0)
            return err_from_errno(errno);
        r = bind(fd, &a->sa, len);
    } else {
        /* Accepted sockets inherit TCP_NODELAY: an answer never waits for an ACK. */
        if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
            return err_from_errno(errno);
        r = bind(fd, &a->sa, len);
    }
    if (r < 0)
        return err_from_errno(errno);
    return listen(fd, LISTEN_BACKLOG) < 0 ? err_from_errno(errno) : 0;
}

int httpd_listen(const struct env_addr *addr, int *ret_fd, struct env_addr *ret_addr)
{
    union any_addr a;
    socklen_t len = 0;
    int fd, r;

    r = parse_addr(addr->text, &a, &len);
    if (r < 0)
        return r;
    fd = socket(a.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_from_errno(errno);
    r = bind_listen(fd, &a, len);
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_addr = *addr;
    if (a.sa.sa_family != AF_UNIX) {
        len = sizeof(a);
        char text[80];

        if (getsockname(fd, &a.sa, &len) == 0) {
            httpd_sockaddr_text(&a.sa, text, sizeof(text));
            snprintf(ret_addr->text, sizeof(ret_addr->text), "tcp:%s", text);
        }
    }
    *ret_fd = fd;
    return 0;
}

/* Addresses as text, to and from what the socket calls take. Numeric hosts only: a name would need
 * a resolver, which blocks. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "lib/base/err.h"
#include "lib/rt/env_priv.h"

static int addr_parse_unix(const char *path, struct addr_parsed *ret_parsed)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&ret_parsed->sa.storage;
    size_t n = strlen(path);

    if (n == 0 || n >= sizeof(un->sun_path))
        return ERR_INVAL;
    memset(un, 0, sizeof(*un));
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, n + 1);
    ret_parsed->len = sizeof(*un);
    return 0;
}

static int addr_parse_port(const char *text, in_port_t *ret_port)
{
    unsigned port = 0;

    if (!*text)
        return ERR_INVAL;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return ERR_INVAL;
        port = port * 10 + (unsigned)(*text - '0');
        if (port > 65535)
            return ERR_INVAL;
    }
    *ret_port = htons((uint16_t)port);
    return 0;
}

static int addr_parse_tcp(const char *text, struct addr_parsed *ret_parsed)
{
    struct sockaddr_in *in = (struct sockaddr_in *)&ret_parsed->sa.storage;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ret_parsed->sa.storage;
    const char *colon = strrchr(text, ':');
    char host[INET6_ADDRSTRLEN + 2];
    size_t n = colon ? (size_t)(colon - text) : 0;

    if (n == 0 || n >= sizeof(host))
        return ERR_INVAL;
    memcpy(host, text, n);
    host[n] = '\0';
    memset(&ret_parsed->sa, 0, sizeof(ret_parsed->sa));
    if (host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        in6->sin6_family = AF_INET6;
        ret_parsed->len = sizeof(*in6);
        if (inet_pton(AF_INET6, host + 1, &in6->sin6_addr) != 1)
            return ERR_INVAL;
        return addr_parse_port(colon + 1, &in6->sin6_port);
    }
    in->sin_family = AF_INET;
    ret_parsed->len = sizeof(*in);
    if (inet_pton(AF_INET, host, &in->sin_addr) != 1)
        return ERR_INVAL;
    return addr_parse_port(colon + 1, &in->sin_port);
}

int addr_parse(const struct env_addr *addr, struct addr_parsed *ret_parsed)
{
    struct addr_parsed parsed;
    int r = ERR_INVAL;

    if (!memchr(addr->text, '\0', sizeof(addr->text)))
        return ERR_INVAL;
    if (strncmp(addr->text, "unix:", 5) == 0)
        r = addr_parse_unix(addr->text + 5, &parsed);
    else if (strncmp(addr->text, "tcp:", 4) == 0)
        r = addr_parse_tcp(addr->text + 4, &parsed);
    if (r == 0)
        *ret_parsed = parsed;
    return r;
}

int addr_format(const struct sockaddr *sa, struct env_addr *ret_addr)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)sa;
    char host[INET6_ADDRSTRLEN];

    switch (sa->sa_family) {
    case AF_INET:
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        snprintf(ret_addr->text, sizeof(ret_addr->text), "tcp:%s:%u", host, ntohs(in->sin_port));
        return 0;
    case AF_INET6:
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        snprintf(ret_addr->text, sizeof(ret_addr->text), "tcp:[%s]:%u", host,
                 ntohs(in6->sin6_port));
        return 0;
    default:
        return ERR_INVAL;
    }
}

#include "listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG  1024
#define HOST_MAX 256

static const char *advice(int error)
{
    switch (error) {
    case EADDRINUSE: return "another process listens there: stop it, or choose another port with --web.listen-address";
    case EACCES: return "this user may not use that port: choose one above 1023";
    case EADDRNOTAVAIL: return "no interface of this host has that address";
    default: return "check --web.listen-address";
    }
}

static int open_socket(const struct addrinfo *info, bool v6_only, int *ret_fd)
{
    int on = 1, only = v6_only;
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    int failed = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (!failed && info->ai_family == AF_INET6)
        failed = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
    if (!failed)
        failed = bind(fd, info->ai_addr, info->ai_addrlen);
    if (!failed)
        failed = listen(fd, BACKLOG);
    if (failed) {
        int error = -errno;
        (void)close(fd);
        return error;
    }
    *ret_fd = fd;
    return 0;
}

/* This machine does not have the address, or not even its family. */
static bool is_elsewhere(int error)
{
    return error == -EAFNOSUPPORT || error == -EADDRNOTAVAIL || error == -EPROTONOSUPPORT;
}

int listen_first(const struct addrinfo *list, bool v6_only, int *ret_fd)
{
    int result = -EAFNOSUPPORT;

    for (; list && is_elsewhere(result); list = list->ai_next)
        result = open_socket(list, v6_only, ret_fd);
    return result;
}

/* Splits HOST:PORT. The host is empty for all addresses. The C library would take a port modulo 65536. */
static int split(const char *address, char *host, size_t host_size, const char **ret_port)
{
    const char *colon = strrchr(address, ':');
    size_t length = colon ? (size_t)(colon - address) : 0;

    if (!colon || colon[1] == 0 || strspn(colon + 1, "0123456789") != strlen(colon + 1) || strlen(colon + 1) > 5 ||
        atoi(colon + 1) > UINT16_MAX)
        return -EINVAL;
    if (length > 2 && address[0] == '[' && colon[-1] == ']') {
        address++;
        length -= 2;
    } else if (memchr(address, ':', length) || address[0] == '[') {
        return -EINVAL; /* an IPv6 address without brackets, or brackets without one */
    }
    if (length >= host_size)
        return -EINVAL;
    memcpy(host, address, length);
    host[length] = 0;
    *ret_port = colon + 1;
    return 0;
}

bool listen_address_valid(const char *address)
{
    char host[HOST_MAX];
    const char *port;

    return split(address, host, sizeof host, &port) == 0;
}

int listen_open(const char *address, int *ret_fd, char *error, size_t error_size)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found = NULL;
    char host[HOST_MAX];
    const char *port;

    if (split(address, host, sizeof host, &port) != 0) {
        (void)snprintf(error, error_size,
                       "cannot listen on %.200s: give :PORT, HOST:PORT or [IPV6]:PORT with a port up to 65535",
                       address);
        return -EINVAL;
    }
    /* Without a host: IPv6 that takes IPv4 too, else IPv4 where a host has no IPv6. */
    static const int families[] = {AF_INET6, AF_INET};
    int result = -EAFNOSUPPORT;
    const char *reason = NULL;
    for (unsigned i = 0; i < (host[0] ? 1u : 2u) && (i == 0 || is_elsewhere(result)); i++) {
        hints.ai_family = host[0] ? AF_UNSPEC : families[i];
        int failed = getaddrinfo(host[0] ? host : NULL, port, &hints, &found);
        reason = failed ? gai_strerror(failed) : NULL;
        result = failed ? -EAFNOSUPPORT : listen_first(found, host[0] != 0, ret_fd);
        if (!failed)
            freeaddrinfo(found);
        if (result == 0)
            return 0;
    }
    (void)snprintf(error, error_size, "cannot listen on %.200s: %s; %s", address, reason ? reason : strerror(-result),
                   advice(-result));
    return result;
}

void listen_describe(int fd, char *ret, size_t size)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    char host[128] = "?", port[16] = "?";

    if (getsockname(fd, (struct sockaddr *)&address, &length) == 0)
        (void)getnameinfo((struct sockaddr *)&address, length, host, sizeof host, port, sizeof port,
                          NI_NUMERICHOST | NI_NUMERICSERV);
    (void)snprintf(ret, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

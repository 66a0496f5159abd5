#include "listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG     1024
#define HOST_MAX    256
#define UNIX_PREFIX "unix:"
#define MODE_PREFIX "?mode="

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

/* ---- unix sockets ------------------------------------------------------------------------------------------- */

/* Splits unix:PATH[?mode=OCTAL]. */
static int split_unix(const char *address, struct sockaddr_un *ret, mode_t *ret_mode)
{
    const char *path = address + strlen(UNIX_PREFIX), *query = strchr(path, '?');
    const size_t length = query ? (size_t)(query - path) : strlen(path);
    unsigned long mode = LISTEN_UNIX_MODE;

    if (query) {
        const char *digits = query + strlen(MODE_PREFIX);
        if (strncmp(query, MODE_PREFIX, strlen(MODE_PREFIX)) != 0 || *digits == 0 || strlen(digits) > 4 ||
            digits[strspn(digits, "01234567")] != 0)
            return -EINVAL;
        mode = strtoul(digits, NULL, 8);
    }
    if (length == 0 || mode > 0777)
        return -EINVAL;
    if (length >= sizeof ret->sun_path)
        return -ENAMETOOLONG;
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(ret->sun_path, path, length);
    *ret_mode = (mode_t)mode;
    return 0;
}

/* Removes the socket of a process that is gone. One that is listened on, and what is no socket, stays. */
static int remove_stale(const struct sockaddr_un *address)
{
    struct stat status;

    if (lstat(address->sun_path, &status) != 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(status.st_mode))
        return -EEXIST;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int error = connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ? 0 : errno;
    (void)close(fd);
    if (error != ECONNREFUSED) /* a full backlog, for one, is a sign of life */
        return -EADDRINUSE;
    return unlink(address->sun_path) == 0 || errno == ENOENT ? 0 : -errno;
}

static int open_unix(const char *text, int *ret_fd)
{
    struct sockaddr_un address;
    mode_t mode;
    int error = split_unix(text, &address, &mode);

    if (!error)
        error = remove_stale(&address);
    if (error)
        return error;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    /* The file is made with the socket's mode less the umask, so it is never more open than asked for. */
    if (fchmod(fd, mode) != 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        error = -errno;
    } else if (chmod(address.sun_path, mode) != 0 || listen(fd, BACKLOG) != 0) {
        error = -errno;
        (void)unlink(address.sun_path);
    }
    if (error) {
        (void)close(fd);
        return error;
    }
    *ret_fd = fd;
    return 0;
}

static const char *unix_advice(int error)
{
    switch (error) {
    case EADDRINUSE: return "another process listens there: stop it, or choose another path";
    case EEXIST: return "there is a file that is no socket: remove it, or choose another path";
    case EINVAL: return "give unix:PATH or unix:PATH?mode=0660";
    case ENAMETOOLONG: return "choose a path of at most 107 characters";
    default: return "check that the directory exists and that this user may write to it";
    }
}

static bool is_unix(const char *address)
{
    return strncmp(address, UNIX_PREFIX, strlen(UNIX_PREFIX)) == 0;
}

void listen_remove(const char *address)
{
    struct sockaddr_un file;
    mode_t mode;

    if (is_unix(address) && split_unix(address, &file, &mode) == 0)
        (void)unlink(file.sun_path);
}

/* ---- addresses ---------------------------------------------------------------------------------------------- */

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

    if (is_unix(address)) {
        struct sockaddr_un file;
        mode_t mode;
        return split_unix(address, &file, &mode) == 0;
    }
    return split(address, host, sizeof host, &port) == 0;
}

int listen_open(const char *address, int *ret_fd, char *error, size_t error_size)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found = NULL;
    char host[HOST_MAX];
    const char *port;

    if (is_unix(address)) {
        int failed = open_unix(address, ret_fd);
        if (failed)
            (void)snprintf(error, error_size, "cannot listen on %.200s: %s; %s", address, strerror(-failed),
                           unix_advice(-failed));
        return failed;
    }
    if (split(address, host, sizeof host, &port) != 0) {
        (void)snprintf(
            error, error_size,
            "cannot listen on %.200s: give :PORT, HOST:PORT, [IPV6]:PORT with a port up to 65535, or unix:PATH",
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
    union {
        struct sockaddr any;
        struct sockaddr_un local;
        struct sockaddr_storage storage;
    } address = {.storage = {0}};
    socklen_t length = sizeof address;
    char host[128] = "?", port[16] = "?";

    if (getsockname(fd, &address.any, &length) == 0) {
        if (address.any.sa_family == AF_UNIX) {
            (void)snprintf(ret, size, "unix:%.*s", (int)sizeof address.local.sun_path, address.local.sun_path);
            return;
        }
        (void)getnameinfo(&address.any, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    }
    (void)snprintf(ret, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

#include "healthcheck.h"

#include "wideep_shm.h"

#include <arpa/inet.h>
#include <gnutls/gnutls.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define TIMEOUT_NS UINT64_C(3000000000)
#define ANSWER_MAX 4096
#define REASON_MAX 160

struct probe {
    int fd;
    gnutls_session_t tls; /* NULL: plain */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC */
};

/* Waits until the socket can be read or written. Returns 0 or -ETIMEDOUT. */
static int wait_for(const struct probe *probe, short events)
{
    struct pollfd pollfd = {.fd = probe->fd, .events = events};

    for (;;) {
        uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= probe->deadline_ns)
            return -ETIMEDOUT;
        int ready = poll(&pollfd, 1, (int)((probe->deadline_ns - now_ns) / 1000000) + 1);
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
    }
}

/* ---- connecting --------------------------------------------------------------------------------------------- */

static int connect_to(struct probe *probe, const struct sockaddr *address, socklen_t length)
{
    int error = 0;
    socklen_t error_size = sizeof error;

    probe->fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe->fd < 0)
        return -errno;
    if (connect(probe->fd, address, length) == 0)
        return 0;
    if (errno == EINPROGRESS) {
        error = -wait_for(probe, POLLOUT);
        if (error == 0 && getsockopt(probe->fd, SOL_SOCKET, SO_ERROR, &error, &error_size) != 0)
            error = errno;
    } else {
        error = errno;
    }
    if (error == 0)
        return 0;
    (void)close(probe->fd);
    probe->fd = -1;
    return -error;
}

static int connect_unix(struct probe *probe, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strcspn(path, "?"); /* what follows is the file's mode */

    if (length == 0 || length >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, length);
    return connect_to(probe, (const struct sockaddr *)&address, sizeof address);
}

/* A daemon that listens on all addresses of the host is asked over loopback, of the other family too: not every host
 * has both. */
static int connect_inet(struct probe *probe, const char *address)
{
    const struct addrinfo hints = {.ai_flags = AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    const char *colon = strrchr(address, ':'), *hosts[2] = {"127.0.0.1", "::1"};
    char host[256];
    int result = -EINVAL;

    if (!colon || strcmp(colon, ":0") == 0 || (size_t)(colon - address) >= sizeof host)
        return -EINVAL;
    bool brackets = address[0] == '[' && colon > address + 1 && colon[-1] == ']';
    (void)snprintf(host, sizeof host, "%.*s", (int)(colon - address) - 2 * brackets, address + brackets);
    bool all = host[0] == 0 || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
    if (!all)
        hosts[0] = host;
    for (unsigned i = 0; i < (all ? 2u : 1u) && result != 0 && result != -ETIMEDOUT; i++) {
        struct addrinfo *found;
        int failed = getaddrinfo(hosts[i], colon + 1, &hints, &found);
        int error = failed ? -EADDRNOTAVAIL : connect_to(probe, found->ai_addr, found->ai_addrlen);
        if (!failed)
            freeaddrinfo(found);
        /* What is said of the first address matters most. */
        result = i == 0 || error == 0 ? error : result;
    }
    return result;
}

static int connect_address(struct probe *probe, const char *address)
{
    return strncmp(address, "unix:", 5) == 0 ? connect_unix(probe, address + 5) : connect_inet(probe, address);
}

/* ---- talking ------------------------------------------------------------------------------------------------ */

/* Waits for what the TLS library waits for. Returns 0 to try again, or a negative errno. */
static int wait_tls(const struct probe *probe, ssize_t code)
{
    if (code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED)
        return wait_for(probe, gnutls_record_get_direction(probe->tls) ? POLLOUT : POLLIN);
    return gnutls_error_is_fatal((int)code) ? -EPROTO : 0;
}

static int wait_plain(const struct probe *probe, short events)
{
    if (errno == EINTR)
        return 0;
    return errno == EAGAIN ? wait_for(probe, events) : -errno;
}

static int send_all(const struct probe *probe, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = probe->tls ? gnutls_record_send(probe->tls, data, size) : send(probe->fd, data, size, MSG_NOSIGNAL);
        int error = n >= 0 ? 0 : probe->tls ? wait_tls(probe, n) : wait_plain(probe, POLLOUT);
        if (error)
            return error;
        data += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* Reads the status line, or less where the connection ends before. */
static int receive_line(const struct probe *probe, char *ret, size_t size)
{
    size_t used = 0;

    ret[0] = 0;
    while (used < size - 1 && !strchr(ret, '\n')) {
        ssize_t n = probe->tls ? gnutls_record_recv(probe->tls, ret + used, size - 1 - used)
                               : recv(probe->fd, ret + used, size - 1 - used, 0);
        int error = n >= 0 ? 0 : probe->tls ? wait_tls(probe, n) : wait_plain(probe, POLLIN);
        if (error)
            return error;
        if (n == 0)
            break;
        used += n > 0 ? (size_t)n : 0;
        ret[used] = 0;
    }
    return 0;
}

static int open_tls(struct probe *probe, gnutls_certificate_credentials_t credentials)
{
    if (gnutls_init(&probe->tls, GNUTLS_CLIENT | GNUTLS_NONBLOCK) != 0) {
        probe->tls = NULL;
        return -ENOMEM;
    }
    (void)gnutls_set_default_priority(probe->tls);
    (void)gnutls_credentials_set(probe->tls, GNUTLS_CRD_CERTIFICATE, credentials);
    gnutls_transport_set_int(probe->tls, probe->fd);
    for (;;) {
        int code = gnutls_handshake(probe->tls);
        if (code == 0)
            return 0;
        int error = wait_tls(probe, code);
        if (error)
            return error;
    }
}

/* ---- the verdict -------------------------------------------------------------------------------------------- */

/* The code of a status line, 0 for what is none. */
static unsigned status_code(const char *line)
{
    unsigned code = 0;
    char minor, end;

    return sscanf(line, "HTTP/1.%c %3u%c", &minor, &code, &end) == 3 && code >= 100 && strchr(" \r\n", end) ? code : 0;
}

static int judge(const char *line, char *ret, size_t size)
{
    unsigned code = status_code(line);

    if (code == 0) {
        (void)snprintf(ret, size, "what listens there does not speak HTTP");
        return -EPROTO;
    }
    if (code == 200)
        (void)snprintf(ret, size, "healthy");
    else if (code == 401)
        (void)snprintf(ret, size, "alive, and asks for a password");
    else
        (void)snprintf(ret, size, "unhealthy: /-/healthy answers with HTTP status %u", code);
    return code == 200 || code == 401 ? 0 : -EIO;
}

static int ask(struct probe *probe, gnutls_certificate_credentials_t credentials, char *ret, size_t size)
{
    static const char request[] = "GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    char line[ANSWER_MAX] = "";

    int error = credentials ? open_tls(probe, credentials) : 0;
    if (!error)
        error = send_all(probe, request, sizeof request - 1);
    if (!error)
        error = receive_line(probe, line, sizeof line);
    /* Who wants to see a certificate, which a probe has none of, hangs up, during the handshake or after it. */
    if (probe->tls && gnutls_certificate_client_get_request_status(probe->tls) && line[0] == 0 && error != -ETIMEDOUT) {
        (void)snprintf(ret, size, "alive, and asks for a client certificate");
        return 0;
    }
    if (error) {
        (void)snprintf(ret, size, "no answer: %s", error == -EPROTO ? "not TLS as it should be" : strerror(-error));
        return error;
    }
    return judge(line, ret, size);
}

static int attempt(const char *address, uint64_t deadline_ns, gnutls_certificate_credentials_t credentials, char *ret,
                   size_t size)
{
    struct probe probe = {.fd = -1, .deadline_ns = deadline_ns};
    int error = connect_address(&probe, address);

    if (error) {
        (void)snprintf(ret, size, "cannot connect: %s",
                       error == -EINVAL ? "give the daemon's --web.listen-address, with its port" : strerror(-error));
        return error;
    }
    error = ask(&probe, credentials, ret, size);
    if (probe.tls)
        gnutls_deinit(probe.tls);
    (void)close(probe.fd);
    return error;
}

/* By HTTP, where nothing speaks for TLS. A server that does speak it hangs up, or sends what is no HTTP. */
static int ask_plain(const char *address, uint64_t deadline_ns, gnutls_certificate_credentials_t credentials, char *ret,
                     size_t size)
{
    int error = attempt(address, deadline_ns, NULL, ret, size);
    char by_tls[REASON_MAX];

    if (error != -EPROTO && error != -ECONNRESET && error != -EPIPE)
        return error;
    int tls_error = attempt(address, deadline_ns, credentials, by_tls, sizeof by_tls);
    if (tls_error == 0 || tls_error == -EIO)
        (void)snprintf(ret, size, "the port speaks TLS: give --web.config.file");
    return error;
}

/* A web configuration need not ask for TLS. */
static int ask_tls(const char *address, uint64_t deadline_ns, gnutls_certificate_credentials_t credentials, char *ret,
                   size_t size)
{
    int error = attempt(address, deadline_ns, credentials, ret, size);

    return error == -EPROTO ? attempt(address, deadline_ns, NULL, ret, size) : error;
}

int healthcheck(const char *const *addresses, unsigned count, bool may_be_tls, char *ret, size_t size)
{
    const uint64_t end_ns = wideep_i_clock_ns(CLOCK_MONOTONIC) + TIMEOUT_NS;
    gnutls_certificate_credentials_t credentials;
    size_t used = 0;
    int error = -EINVAL;

    if (gnutls_certificate_allocate_credentials(&credentials) != 0) {
        (void)snprintf(ret, size, "%s", strerror(ENOMEM));
        return -ENOMEM;
    }
    for (unsigned i = 0; i < count; i++) {
        char reason[REASON_MAX] = "";
        uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
        uint64_t deadline_ns = now_ns < end_ns ? now_ns + (end_ns - now_ns) / (count - i) : end_ns;
        error = (may_be_tls ? ask_tls : ask_plain)(addresses[i], deadline_ns, credentials, reason, sizeof reason);
        if (!error) {
            (void)snprintf(ret, size, "%s", reason);
            break;
        }
        if (used < size)
            used += (size_t)snprintf(ret + used, size - used, "%s%.200s: %s", i ? "; " : "", addresses[i], reason);
    }
    gnutls_certificate_free_credentials(credentials);
    return error;
}

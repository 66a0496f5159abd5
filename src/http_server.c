#include "acceptor.h"
#include "http_internal.h"
#include "log.h"

#include <assert.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define MS UINT64_C(1000000)
#define S  (1000 * MS)

#define THREADS           4
#define CONNECTIONS_MOST  4096u
#define CONNECTIONS_LEAST 16u
/* Descriptors that are not for connections: shared memory, certificates, the library's own. */
#define DESCRIPTORS_KEPT 256u
/* The request's line and headers. Above 32 KB the library maps it for each connection, and unmaps it when that ends. */
#define REQUEST_MEMORY (48u << 10)
/* What the kernel keeps for a client that does not read, and for one that is not read from. */
#define SEND_BUFFER    (128 << 10) /* the kernel doubles it, for its own bookkeeping, as the next */
#define RECEIVE_BUFFER (32 << 10)

#define REQUEST_NS  (10 * S)
#define RESPONSE_NS (10 * S)
/* Longer than Prometheus keeps an idle connection, so that it is the one to close it. */
#define IDLE_NS (360 * S)

#define TICK_MS       250
#define DRAIN_MS      700 /* the whole end takes less than a second */
#define DRAIN_STEP_MS 10
/* On a connection of a retired server what is under way ends within its deadlines, of which the check of a password has
 * one too, and the rest long before. */
#define RETIRED_NS (REQUEST_NS + 2 * RESPONSE_NS + 5 * S)

#define SETTLED_SECONDS 2
/* For how long a certificate and a key that do not belong together count as being renewed. */
#define RENEWAL_NS (10 * S)

static uint64_t reload_failures;
static bool reload_failed;

void http_stats(struct http_stats *ret)
{
    memset(ret, 0, sizeof *ret);
    http_request_stats(ret);
    ret->connections = connections_open();
    ret->accepted = acceptor_accepted();
    connections_cut_counts(ret->cut);
    ret->out_of_descriptors = acceptor_starved();
    ret->reload_failures = __atomic_load_n(&reload_failures, __ATOMIC_RELAXED);
    ret->reload_successful = !__atomic_load_n(&reload_failed, __ATOMIC_RELAXED);
}

/* ---- web configurations ------------------------------------------------------------------------------------- */

struct web *web_ref(struct web *web)
{
    (void)__atomic_add_fetch(&web->references, 1, __ATOMIC_RELAXED);
    return web;
}

struct web *web_acquire(struct http *http)
{
    (void)pthread_mutex_lock(&http->lock);
    struct web *web = web_ref(http->web);
    (void)pthread_mutex_unlock(&http->lock);
    return web;
}

void web_release(struct web *web)
{
    if (!web || __atomic_sub_fetch(&web->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    web_config_free(web->config);
    free(web);
}

/* Takes the configuration over, which may be NULL. Returns NULL without memory, with it freed. */
static struct web *web_new(struct web_config *config)
{
    struct web *web = calloc(1, sizeof *web);

    if (!web) {
        web_config_free(config);
        return NULL;
    }
    web->config = config;
    web->references = 1;
    return web;
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15) ^ hash >> 29;
}

/* Of what the kernel says of the files, to read them only when it says something new. 0: one was changed so lately that
 * it may be half written, or be changed again without a difference to be seen. Half a file can be a valid one, with no
 * passwords in it. */
static uint64_t files_stamp(const struct http *http)
{
    const struct web_config *config = http->web ? http->web->config : NULL;
    const char *const paths[] = {http->config.web_config_file, config ? config->cert_file : NULL,
                                 config ? config->key_file : NULL, config ? config->client_ca_file : NULL};
    const time_t now = time(NULL);
    uint64_t stamp = 1;

    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct stat status = {0};
        if (paths[i] && stat(paths[i], &status) == 0 && status.st_ctim.tv_sec <= now &&
            now - status.st_ctim.tv_sec < SETTLED_SECONDS)
            return 0;
        stamp = mix(stamp, status.st_ino);
        stamp = mix(stamp, (uint64_t)status.st_size);
        stamp = mix(stamp, (uint64_t)status.st_mtim.tv_sec * S + (uint64_t)status.st_mtim.tv_nsec);
        stamp = mix(stamp, (uint64_t)status.st_ctim.tv_sec * S + (uint64_t)status.st_ctim.tv_nsec);
    }
    return stamp | 1;
}

/* ---- servers ------------------------------------------------------------------------------------------------ */

static void on_log(void *context, const char *format, va_list arguments) __attribute__((format(printf, 2, 0)));

/* What the library refuses before there is a request to hand over, such as a line that is none or headers beyond
 * REQUEST_MEMORY, it answers by itself with a page of its own. Its log alone tells of that, with code and page: 400
 * ('<html>…</html>'). */
static void count_refusal(const char *text)
{
    static const char before[] = "Error processing request (HTTP response code is ";
    char *page;

    if (strncmp(text, before, sizeof before - 1) != 0)
        return;
    const unsigned code = (unsigned)strtoul(text + sizeof before - 1, &page, 10);
    http_count_response("other", code, strncmp(page, " ('", 3) == 0 ? strcspn(page + 3, "'") : 0);
}

/* Clients decide how often this is called, hence the level. */
static void on_log(void *context, const char *format, va_list arguments)
{
    char text[512];

    (void)context;
    (void)vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\n")] = 0;
    count_refusal(text);
    log_debug("http", "detail", text, NULL);
}

static struct MHD_Daemon *start_daemon(struct server *server)
{
    const struct web_config *config = server->web->config;
    struct MHD_OptionItem tls[5];
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ITC | MHD_USE_ERROR_LOG |
                     MHD_ALLOW_SUSPEND_RESUME;
    unsigned n = 0;

    flags |= MHD_is_feature_supported(MHD_FEATURE_EPOLL) == MHD_YES ? (unsigned)MHD_USE_EPOLL : (unsigned)MHD_USE_POLL;
    if (config && config->tls) {
        flags |= MHD_USE_TLS;
        tls[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, config->cert_pem};
        tls[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, config->key_pem};
        tls[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, config->priorities};
        if (config->client_ca_pem)
            tls[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_TRUST, 0, config->client_ca_pem};
    }
    tls[n] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    /* The limit is never reached before that of the table of connections, unless these wait in the library. */
    return MHD_start_daemon(
        flags, 0, NULL, NULL, http_on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_THREAD_POOL_SIZE, (unsigned)THREADS, MHD_OPTION_CONNECTION_LIMIT, 2 * CONNECTIONS_MOST,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)REQUEST_MEMORY, MHD_OPTION_URI_LOG_CALLBACK, http_on_target, NULL,
        MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, server, MHD_OPTION_NOTIFY_CONNECTION, http_on_connection,
        server, MHD_OPTION_UNESCAPE_CALLBACK, http_on_unescape, NULL, MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
}

static int server_new(struct server **ret, struct http *http, struct web *web)
{
    struct server *server = calloc(1, sizeof *server);

    if (!server)
        return -ENOMEM;
    server->http = http;
    server->web = web_ref(web);
    errno = 0;
    server->daemon = start_daemon(server);
    if (!server->daemon) {
        const int error = errno ? -errno : -EIO; /* the library promises none, but leaves that of what failed */
        web_release(server->web);
        free(server);
        return error;
    }
    *ret = server;
    return 0;
}

/* Closes what connections it still has. */
static void server_free(struct server *server)
{
    if (!server)
        return;
    /* The library must not be stopped with a suspended connection. */
    authenticator_drop(server->http->authenticator, &server->passwords);
    MHD_stop_daemon(server->daemon);
    web_release(server->web);
    free(server);
}

/* Whether no connection is left. One that the library dropped before it began with it never ends; then the time limit
 * decides. Acceptor's thread. */
static bool is_drained(const struct server *server)
{
    return __atomic_load_n(&server->ended, __ATOMIC_ACQUIRE) == server->handed;
}

/* ---- the acceptor's thread ---------------------------------------------------------------------------------- */

static bool has_room(void *context)
{
    struct http *http = context;

    if (connections_has_room(http->connections))
        return true;
    connections_make_room(http->connections, wideep_i_clock_ns(CLOCK_MONOTONIC));
    return false;
}

static void on_accepted(void *context, int fd, const struct sockaddr *address, socklen_t length)
{
    static const int send_bytes = SEND_BUFFER, receive_bytes = RECEIVE_BUFFER;
    static const struct sockaddr unnamed = {.sa_family = AF_UNIX};
    struct http *http = context;

    connections_make_room(http->connections, wideep_i_clock_ns(CLOCK_MONOTONIC));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    /* Servers are stopped by this thread alone, so this one lasts. */
    (void)pthread_mutex_lock(&http->lock);
    struct server *server = http->current;
    (void)pthread_mutex_unlock(&http->lock);
    if (address->sa_family == AF_UNIX) {
        address = &unnamed;
        length = sizeof unnamed;
    }
    server->handed++;
    if (MHD_add_connection(server->daemon, fd, address, length) != MHD_YES)
        server->handed--; /* the library has closed it */
}

static void on_starved(void *context)
{
    struct http *http = context;

    connections_evict(http->connections, wideep_i_clock_ns(CLOCK_MONOTONIC));
}

/* Unlinks the oldest retired server that is drained, or has been retired for too long. */
static struct server *take_retired(struct http *http, uint64_t now_ns)
{
    struct server *taken = NULL, **link = NULL;

    (void)pthread_mutex_lock(&http->lock);
    for (struct server **at = &http->retired; *at; at = &(*at)->next)
        if (is_drained(*at) || now_ns >= (*at)->retired_ns + RETIRED_NS)
            link = at;
    if (link) {
        taken = *link;
        *link = taken->next;
    }
    (void)pthread_mutex_unlock(&http->lock);
    return taken;
}

static void on_tick(void *context)
{
    struct http *http = context;
    const uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
    struct server *server;

    connections_reap(http->connections, now_ns);
    while ((server = take_retired(http, now_ns)))
        server_free(server);
}

/* ---- reload ------------------------------------------------------------------------------------------------- */

/* From now on, new connections are the new server's. */
static void swap_server(struct http *http, struct server *server, struct web *web)
{
    (void)pthread_mutex_lock(&http->lock);
    struct server *old = http->current;
    struct web *old_web = http->web;
    http->current = server;
    http->web = web;
    if (old) {
        old->retired_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
        old->next = http->retired;
        http->retired = old;
        __atomic_store_n(&old->retired, true, __ATOMIC_RELAXED);
    }
    (void)pthread_mutex_unlock(&http->lock);
    web_release(old_web);
}

/* Takes the configuration over. */
static int use_config(struct http *http, struct web_config *config)
{
    struct server *server;
    struct web *web = web_new(config);

    if (!web)
        return -ENOMEM;
    int error = server_new(&server, http, web);
    if (error)
        web_release(web);
    else
        swap_server(http, server, web);
    return error;
}

/* Says the same thing once. */
static void complain(struct http *http, const char *text)
{
    if (strcmp(http->complaint, text) == 0)
        return;
    (void)snprintf(http->complaint, sizeof http->complaint, "%s", text);
    log_error(http->current ? "the web configuration is faulty; the one before it stays in use"
                            : "the web configuration is faulty",
              "error", text, NULL);
    (void)__atomic_add_fetch(&reload_failures, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&reload_failed, true, __ATOMIC_RELAXED);
}

/* A file that was emptied, or half written, must not lay open what was protected: less than before takes a restart. */
static const char *what_it_gives_up(const struct web_config *now, const struct web_config *next)
{
    if (now->tls && !next->tls)
        return "TLS";
    if (now->tls && now->client_auth != WEB_CLIENT_NONE && next->client_auth == WEB_CLIENT_NONE)
        return "client certificates";
    return now->user_count > 0 && next->user_count == 0 ? "passwords" : NULL;
}

/* A certificate and its key are two files, which nobody can replace at once. */
static bool is_being_renewed(struct http *http, int error)
{
    const uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);

    if (error != -EKEYREJECTED) {
        http->unpaired_ns = 0;
        return false;
    }
    if (http->unpaired_ns == 0)
        http->unpaired_ns = now_ns;
    return now_ns - http->unpaired_ns < RENEWAL_NS;
}

static void log_config(const struct http *http)
{
    const struct web_config *config = http->web->config;
    char users[16];

    (void)snprintf(users, sizeof users, "%u", config->user_count);
    log_info("web configuration in use", "file", http->config.web_config_file, "tls", config->tls ? "on" : "off",
             "client_certificates", web_client_auth_text(config->client_auth), "users", users, NULL);
}

/* Loads the file and serves with it; unless `always`, one that has nothing new is left alone, and a key that does not
 * belong to the certificate is given time. */
static int load_config(struct http *http, bool always)
{
    char text[WEB_CONFIG_ERROR_MAX] = "";
    struct web_config *config = NULL;

    int error = web_config_load(&config, http->config.web_config_file, text, sizeof text);
    const struct web_config *before = http->web ? http->web->config : NULL;
    const char *lost = !error && before ? what_it_gives_up(before, config) : NULL;
    if (lost) {
        error = -EPERM;
        (void)snprintf(text, sizeof text, "%.400s no longer asks for %s; restart to serve without",
                       http->config.web_config_file, lost);
        web_config_free(config);
    }
    if (!error)
        web_config_warn(config, before, http->config.web_config_file);
    if (!error && before)
        web_config_remember(config, before);
    if (!error && !always && before && config->fingerprint == before->fingerprint) {
        web_config_free(config);
    } else if (!error) {
        error = use_config(http, config);
        if (error)
            (void)snprintf(text, sizeof text, "cannot start a server with it: %s", strerror(-error));
        else
            log_config(http);
    }
    bool wait = is_being_renewed(http, error) && !always;
    if (error) {
        if (wait)
            log_debug("the certificate is being renewed", "problem", text, NULL);
        else
            complain(http, text);
        return error;
    }
    http->files_stamp = files_stamp(http);
    http->complaint[0] = 0;
    __atomic_store_n(&reload_failed, false, __ATOMIC_RELAXED);
    return 0;
}

int http_reload(struct http *http)
{
    if (!http->config.web_config_file)
        return 0;
    http->complaint[0] = 0; /* who asks for it is told again */
    return load_config(http, true);
}

void http_check_files(struct http *http)
{
    if (!http->config.web_config_file)
        return;
    /* After a failure, the files that the new configuration names are not known. */
    uint64_t stamp = files_stamp(http);
    if (stamp != 0 && (http->complaint[0] != 0 || stamp != http->files_stamp))
        (void)load_config(http, false);
}

/* ---- start and stop ----------------------------------------------------------------------------------------- */

static unsigned connections_most(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= CONNECTIONS_MOST + DESCRIPTORS_KEPT)
        return CONNECTIONS_MOST;
    rlim_t most = limit.rlim_cur > 2 * DESCRIPTORS_KEPT ? limit.rlim_cur - DESCRIPTORS_KEPT : limit.rlim_cur / 2;
    return most > CONNECTIONS_LEAST ? (unsigned)most : CONNECTIONS_LEAST;
}

static int start_accepting(struct http *http)
{
    struct acceptor_config config = {.socket_count = http->config.socket_count,
                                     .context = http,
                                     .has_room = has_room,
                                     .accepted = on_accepted,
                                     .starved = on_starved,
                                     .tick = on_tick,
                                     .tick_ms = TICK_MS};

    static_assert(ACCEPTOR_SOCKETS_MAX >= HTTP_SOCKETS_MAX, "the acceptor takes all sockets");
    memcpy(config.sockets, http->config.sockets, sizeof http->config.sockets);
    return acceptor_start(&http->acceptor, &config);
}

int http_start(struct http **ret, const struct http_config *config)
{
    const struct connections_config limits = {
        .most = connections_most(), .request_ns = REQUEST_NS, .response_ns = RESPONSE_NS, .idle_ns = IDLE_NS};
    struct http *http = calloc(1, sizeof *http);

    assert(config->route_count <= HTTP_ROUTES_MAX);
    if (!http) {
        for (unsigned i = 0; i < config->socket_count; i++)
            (void)close(config->sockets[i]);
        return -ENOMEM;
    }
    http->config = *config;
    http->started_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    (void)pthread_mutex_init(&http->lock, NULL);
    http->connections = connections_new(&limits);
    int error = live_make(&http->live, config->telemetry_path, config->version);
    if (!error)
        error = http->connections ? authenticator_start(&http->authenticator) : -ENOMEM;
    if (!error)
        error = config->web_config_file ? load_config(http, true) : use_config(http, NULL);
    if (!error)
        error = start_accepting(http);
    if (error) {
        http_stop(http);
        return error;
    }
    *ret = http;
    return 0;
}

void http_stop(struct http *http)
{
    struct server *server;

    if (!http)
        return;
    acceptor_stop(http->acceptor);
    for (unsigned i = 0; i < http->config.socket_count; i++)
        (void)close(http->config.sockets[i]);
    if (http->current)
        __atomic_store_n(&http->current->retired, true, __ATOMIC_RELAXED);
    /* Stopping a daemon cuts off what is being sent. */
    for (unsigned ms = 0; ms < DRAIN_MS && http_in_flight() > 0; ms += DRAIN_STEP_MS)
        (void)usleep(DRAIN_STEP_MS * 1000);
    server_free(http->current);
    while ((server = http->retired)) {
        http->retired = server->next;
        server_free(server);
    }
    authenticator_stop(http->authenticator);
    web_release(http->web);
    connections_free(http->connections);
    live_free(&http->live);
    (void)pthread_mutex_destroy(&http->lock);
    free(http);
}

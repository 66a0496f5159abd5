#include "http.h"

#include "accept.h"
#include "log.h"
#include "snapshot.h"

#include <microhttpd.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define CONNECTIONS_MAX 512
#define IDLE_SECONDS    30
#define THREADS         2
#define DRAIN_MS        1000
#define DRAIN_STEP_MS   10
#define NAMES_MAX       2048

struct http {
    struct http_config config;
    struct MHD_Daemon *daemons[HTTP_SOCKETS_MAX];
    uint64_t started_ns; /* CLOCK_BOOTTIME */
    char landing[2048];
};

static uint64_t requests[SELF_CODES];
static uint64_t in_flight;

void http_stats(struct http_stats *ret)
{
    for (unsigned i = 0; i < SELF_CODES; i++)
        ret->requests[i] = __atomic_load_n(&requests[i], __ATOMIC_RELAXED);
    ret->in_flight = __atomic_load_n(&in_flight, __ATOMIC_RELAXED);
}

static void count_code(unsigned code)
{
    char text[16];
    unsigned i = 0;

    (void)snprintf(text, sizeof text, "%u", code);
    while (i < SELF_CODES - 1 && strcmp(self_codes[i], text) != 0)
        i++;
    (void)__atomic_add_fetch(&requests[i], 1, __ATOMIC_RELAXED);
}

/* ---- responses ---------------------------------------------------------------------------------------------- */

static enum MHD_Result send_response(struct MHD_Connection *connection, unsigned code, const char *content_type,
                                     struct MHD_Response *response)
{
    if (!response)
        return MHD_NO;
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    count_code(code);
    return result;
}

static enum MHD_Result send_text(struct MHD_Connection *connection, unsigned code, const char *text)
{
    /* The library does not write to it; texts are literals. */
    return send_response(
        connection, code, "text/plain; charset=utf-8",
        MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text, MHD_RESPMEM_PERSISTENT));
}

static void release_snapshot(void *snapshot)
{
    snapshot_release(snapshot);
}

/* What name[] asks for: MHD's strings, which live as long as the request. */
struct wanted_names {
    const char *names[NAMES_MAX];
    unsigned count, given;
};

static enum MHD_Result add_wanted_name(void *context, enum MHD_ValueKind kind, const char *key, const char *value)
{
    struct wanted_names *wanted = context;

    (void)kind;
    if (strcmp(key, "name[]") != 0)
        return MHD_YES;
    wanted->given++;
    if (value && wanted->count < NAMES_MAX)
        wanted->names[wanted->count++] = value;
    return MHD_YES;
}

/* Takes the reference over. NULL when there is no memory, as the next. */
static struct MHD_Response *named_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                                       const struct wanted_names *wanted)
{
    char *page;
    size_t size;
    int error = snapshot_page_of(snapshot, format, encoding, wanted->names, wanted->count, &page, &size);

    snapshot_release(snapshot);
    if (error)
        return NULL;
    struct MHD_Response *response = MHD_create_response_from_buffer(size, page, MHD_RESPMEM_MUST_FREE);
    if (!response)
        free(page);
    return response;
}

/* The response has the reference until it is sent. */
static struct MHD_Response *whole_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding)
{
    const char *page;
    size_t size;
    struct MHD_Response *response = NULL;

    if (snapshot_page(snapshot, format, encoding, &page, &size) == 0)
        response = MHD_create_response_from_buffer_with_free_callback_cls(size, (void *)(uintptr_t)page,
                                                                          release_snapshot, snapshot);
    if (!response)
        snapshot_release(snapshot);
    return response;
}

static enum MHD_Result send_metrics(const struct http *http, struct MHD_Connection *connection)
{
    const enum page_format format =
        accept_format(MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_ACCEPT));
    const enum page_encoding encoding =
        accept_encoding(MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_ACCEPT_ENCODING));
    struct wanted_names wanted = {.count = 0};

    (void)http;
    (void)MHD_get_connection_values(connection, MHD_GET_ARGUMENT_KIND, add_wanted_name, &wanted);
    if (wanted.given > NAMES_MAX)
        return send_text(connection, MHD_HTTP_BAD_REQUEST, "name[] is given too often; ask for the whole page\n");
    struct snapshot *snapshot = wanted.given > 0 ? snapshot_acquire() : snapshot_acquire_page();
    if (!snapshot)
        return send_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "no snapshot has been collected yet\n");
    struct MHD_Response *response =
        wanted.given > 0 ? named_page(snapshot, format, encoding, &wanted) : whole_page(snapshot, format, encoding);
    if (!response)
        return send_text(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory while rendering the page\n");
    if (page_content_encoding(encoding))
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_ENCODING, page_content_encoding(encoding));
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, "Accept, Accept-Encoding");
    return send_response(connection, MHD_HTTP_OK, page_content_type(format), response);
}

static enum MHD_Result send_healthy(const struct http *http, struct MHD_Connection *connection)
{
    struct snapshot *snapshot = snapshot_acquire();
    /* Without a snapshot, the grace of a start. The clock is read last, so that the age is not negative. */
    uint64_t since_ns = snapshot ? snapshot_time_ns(snapshot) : http->started_ns;
    bool stuck = wideep_i_clock_ns(CLOCK_BOOTTIME) - since_ns > http->config.stale_ns;

    snapshot_release(snapshot);
    return stuck ? send_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "the collector is stuck\n")
                 : send_text(connection, MHD_HTTP_OK, "ok\n");
}

static enum MHD_Result send_ready(const struct http *http, struct MHD_Connection *connection)
{
    struct snapshot *snapshot = snapshot_acquire();
    const bool ready = snapshot != NULL;

    (void)http;
    snapshot_release(snapshot);
    return ready ? send_text(connection, MHD_HTTP_OK, "ready\n")
                 : send_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "no snapshot has been collected yet\n");
}

static enum MHD_Result send_landing(const struct http *http, struct MHD_Connection *connection)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(
        strlen(http->landing), (void *)(uintptr_t)http->landing, MHD_RESPMEM_PERSISTENT);

    if (response)
        (void)MHD_add_response_header(response, "Content-Security-Policy",
                                      "default-src 'none'; style-src 'unsafe-inline'");
    return send_response(connection, MHD_HTTP_OK, "text/html; charset=utf-8", response);
}

static enum MHD_Result send_not_allowed(struct MHD_Connection *connection)
{
    static const char text[] = "only GET and HEAD are allowed here\n";
    struct MHD_Response *response =
        MHD_create_response_from_buffer(sizeof text - 1, (void *)(uintptr_t)text, MHD_RESPMEM_PERSISTENT);

    if (response)
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    return send_response(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", response);
}

/* ---- requests ----------------------------------------------------------------------------------------------- */

static const struct {
    const char *path; /* NULL: the telemetry path */
    enum MHD_Result (*send)(const struct http *http, struct MHD_Connection *connection);
} routes[] = {
    {NULL, send_metrics},
    {"/-/healthy", send_healthy},
    {"/-/ready", send_ready},
    {"/", send_landing},
};

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *data_size, void **state)
{
    const struct http *http = context;
    static const char seen;

    (void)version;
    (void)data;
    /* A response queued in the first call closes the connection. */
    if (!*state) {
        *state = (void *)(uintptr_t)&seen;
        (void)__atomic_add_fetch(&in_flight, 1, __ATOMIC_RELAXED);
        return MHD_YES;
    }
    if (*data_size > 0) {
        *data_size = 0; /* a body is of no use to anything here */
        return MHD_YES;
    }
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (strcmp(url, routes[i].path ? routes[i].path : http->config.telemetry_path) != 0)
            continue;
        if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
            return send_not_allowed(connection);
        return routes[i].send(http, connection);
    }
    return send_text(connection, MHD_HTTP_NOT_FOUND, "not found; see / for what there is\n");
}

static void on_completed(void *context, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode code)
{
    (void)context;
    (void)connection;
    (void)code;
    if (*state)
        (void)__atomic_sub_fetch(&in_flight, 1, __ATOMIC_RELAXED);
    *state = NULL;
}

static void on_log(void *context, const char *format, va_list arguments) __attribute__((format(printf, 2, 0)));

static void on_log(void *context, const char *format, va_list arguments)
{
    char text[512];

    (void)context;
    (void)vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\n")] = 0;
    log_debug("http", "detail", text, NULL);
}

/* ---- start and stop ----------------------------------------------------------------------------------------- */

int http_start(struct http **ret, const struct http_config *config)
{
    struct http *http = calloc(1, sizeof *http);
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_ERROR_LOG;

    if (!http) {
        for (unsigned i = 0; i < config->socket_count; i++)
            (void)close(config->sockets[i]);
        return -ENOMEM;
    }
    http->config = *config;
    http->started_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    flags |= MHD_is_feature_supported(MHD_FEATURE_EPOLL) == MHD_YES ? (unsigned)MHD_USE_EPOLL : (unsigned)MHD_USE_POLL;
    (void)snprintf(http->landing, sizeof http->landing,
                   "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>wideep-exporter</title>"
                   "<style>body{font-family:sans-serif;margin:2em;max-width:40em}</style></head>\n"
                   "<body><h1>wideep-exporter</h1>\n"
                   "<p>Load balance and batch overlap of wide expert-parallel engines. Version %s.</p>\n"
                   "<ul><li><a href=\"%s\">Metrics</a></li><li><a href=\"/-/healthy\">Health</a></li>"
                   "<li><a href=\"/-/ready\">Readiness</a></li></ul></body></html>\n",
                   config->version, config->telemetry_path);
    for (unsigned i = 0; i < config->socket_count; i++) {
        http->daemons[i] = MHD_start_daemon(
            flags, 0, NULL, NULL, on_request, http, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET,
            config->sockets[i], MHD_OPTION_THREAD_POOL_SIZE, (unsigned)THREADS, MHD_OPTION_CONNECTION_LIMIT,
            (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS,
            MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_END);
        if (http->daemons[i])
            continue;
        /* Sockets of daemons that did start are theirs, and the library closes that of one that did not: another thread
         * may have been given its number by now. */
        for (unsigned j = i + 1; j < config->socket_count; j++)
            (void)close(config->sockets[j]);
        http->config.socket_count = i;
        http_stop(http);
        return -EIO;
    }
    *ret = http;
    return 0;
}

void http_stop(struct http *http)
{
    if (!http)
        return;
    /* Stopping a daemon cuts off what is being sent, and quiescing one with a thread pool can make the library abort.
     */
    for (unsigned ms = 0; ms < DRAIN_MS && __atomic_load_n(&in_flight, __ATOMIC_RELAXED) > 0; ms += DRAIN_STEP_MS)
        (void)usleep(DRAIN_STEP_MS * 1000);
    for (unsigned i = 0; i < http->config.socket_count; i++)
        MHD_stop_daemon(http->daemons[i]);
    free(http);
}

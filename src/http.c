#include "http.h"

#include "accept.h"
#include "framing.h"
#include "http_internal.h"
#include "log.h"
#include "snapshot.h"

#include <gnutls/gnutls.h>
#include <netdb.h>

/* Bodies are of no use to anything here, but clients may send small ones. A larger one is read to its end, so that the
 * client sees the answer, unless it is larger still. */
#define BODY_MAX         (64u << 10)
#define BODY_MAX_SWALLOW (1u << 20)

/* Of one request; what its memory holds is less. */
#define NAMES_MAX 2048

#define TEXT_PLAIN "text/plain; charset=utf-8"

/* What belongs to a connection; the library's socket context. Each connection is served by one thread. */
struct client {
    struct server *server;
    struct connection *connection;
    bool verified; /* its certificate has been looked at and is good */
    /* of the request under way */
    bool limited;
    bool odd_target;
    const char *target_end; /* in the library's memory, as it was received */
    const char *head_end;   /* likewise; NULL where that could not be seen */
    bool malformed;         /* where it ends is not clear: nothing more is read from its connection */
    bool last;              /* nor from this one, once it is answered */
    bool paid;              /* has passed the rate limit: it comes again when its password is checked */
    uint64_t body_bytes;
    struct auth_task task; /* while its password is checked, for which the connection is suspended */
    struct web *task_web;
    char *task_user, *task_password; /* the library's memory; NULL: none */
    enum auth_verdict verdict;
    struct MHD_Connection *suspended;
};

struct exchange;

struct route {
    const char *path; /* NULL: the telemetry path */
    const char *handler;
    unsigned methods;
    bool limited, probe;
    enum MHD_Result (*send)(struct exchange *exchange); /* NULL: `other` */
    const struct http_route *other;
};

/* A request that is whole, while a handler answers it. */
struct exchange {
    struct http *http;
    struct server *server;
    struct client *client;
    struct MHD_Connection *connection;
    struct web *web;                 /* the newest */
    const struct web_config *config; /* its; NULL: none */
    const struct route *route;       /* to `found`; NULL: there is none */
    struct route found;
    const char *method, *path;
    char *user; /* NULL: none was asked for */
};

static uint64_t requests[SELF_HANDLERS][SELF_CODES];
static uint64_t in_flight, response_bytes;

/* ---- statistics --------------------------------------------------------------------------------------------- */

void http_request_stats(struct http_stats *ret)
{
    for (unsigned handler = 0; handler < SELF_HANDLERS; handler++)
        for (unsigned code = 0; code < SELF_CODES; code++)
            ret->requests[handler][code] = __atomic_load_n(&requests[handler][code], __ATOMIC_RELAXED);
    ret->in_flight = http_in_flight();
    ret->response_bytes = __atomic_load_n(&response_bytes, __ATOMIC_RELAXED);
}

uint64_t http_in_flight(void)
{
    return __atomic_load_n(&in_flight, __ATOMIC_RELAXED);
}

/* The index of a label value, or the last for what is not listed. */
static unsigned index_of(const char *const *values, unsigned count, const char *value)
{
    unsigned i = 0;

    while (i < count - 1 && strcmp(values[i], value) != 0)
        i++;
    return i;
}

void http_count_response(const char *handler, unsigned code, size_t bytes)
{
    char text[16];

    (void)snprintf(text, sizeof text, "%u", code);
    (void)__atomic_add_fetch(
        &requests[index_of(self_handlers, SELF_HANDLERS, handler)][index_of(self_codes, SELF_CODES, text)], 1,
        __ATOMIC_RELAXED);
    (void)__atomic_add_fetch(&response_bytes, bytes, __ATOMIC_RELAXED);
}

/* ---- routes ------------------------------------------------------------------------------------------------- */

static enum MHD_Result send_metrics(struct exchange *exchange);
static enum MHD_Result send_healthy(struct exchange *exchange);
static enum MHD_Result send_ready(struct exchange *exchange);
static enum MHD_Result send_live(struct exchange *exchange);

static const struct route built_in[] = {
    {NULL, "metrics", HTTP_GET, true, false, send_metrics, NULL},
    {"/-/healthy", "healthy", HTTP_GET, false, true, send_healthy, NULL},
    {"/-/ready", "ready", HTTP_GET, false, true, send_ready, NULL},
    {"/", "landing", HTTP_GET, false, false, send_live, NULL},
};

/* Returns false when there is none. */
static bool find_route(const struct http *http, const char *path, struct route *ret)
{
    for (size_t i = 0; i < sizeof built_in / sizeof *built_in; i++)
        if (strcmp(path, built_in[i].path ? built_in[i].path : http->config.telemetry_path) == 0) {
            *ret = built_in[i];
            return true;
        }
    for (unsigned i = 0; i < http->config.route_count; i++) {
        const struct http_route *route = &http->config.routes[i];
        if (route->prefix ? strncmp(path, route->path, strlen(route->path)) != 0 : strcmp(path, route->path) != 0)
            continue;
        *ret = (struct route){route->path, route->handler, route->methods, route->limited, route->probe, NULL, route};
        return true;
    }
    return false;
}

static unsigned method_bit(const char *method)
{
    static const struct {
        const char *name;
        unsigned bit;
    } methods[] = {{"GET", HTTP_GET}, {"HEAD", HTTP_GET}, {"POST", HTTP_POST}, {"DELETE", HTTP_DELETE}};

    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (strcmp(method, methods[i].name) == 0)
            return methods[i].bit;
    return 0;
}

/* ---- responses ---------------------------------------------------------------------------------------------- */

static enum MHD_Result send_response(struct exchange *exchange, unsigned code, const char *content_type,
                                     struct MHD_Response *response, size_t size)
{
    if (!response)
        return MHD_NO;
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    /* Everything here is of its moment: an old answer to a probe would be a wrong one. */
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    for (unsigned i = 0; exchange->config && i < exchange->config->header_count; i++)
        (void)MHD_add_response_header(response, exchange->config->headers[i].name, exchange->config->headers[i].value);
    if (exchange->client->last || __atomic_load_n(&exchange->server->retired, __ATOMIC_RELAXED))
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    connection_answers(exchange->http->connections, exchange->client->connection, wideep_i_clock_ns(CLOCK_MONOTONIC));
    enum MHD_Result result = MHD_queue_response(exchange->connection, code, response);
    MHD_destroy_response(response);
    http_count_response(exchange->route ? exchange->route->handler : "other", code,
                        strcmp(exchange->method, MHD_HTTP_METHOD_HEAD) == 0 ? 0 : size);
    return result;
}

/* One line of literal text, with one more header unless its name is NULL. */
static enum MHD_Result send_text_with(struct exchange *exchange, unsigned code, const char *text, const char *header,
                                      const char *value)
{
    /* The library does not write to it. */
    struct MHD_Response *response =
        MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text, MHD_RESPMEM_PERSISTENT);

    if (response && header)
        (void)MHD_add_response_header(response, header, value);
    return send_response(exchange, code, TEXT_PLAIN, response, strlen(text));
}

static enum MHD_Result send_text(struct exchange *exchange, unsigned code, const char *text)
{
    return send_text_with(exchange, code, text, NULL, NULL);
}

static enum MHD_Result send_busy(struct exchange *exchange, unsigned code, const char *text)
{
    return send_text_with(exchange, code, text, MHD_HTTP_HEADER_RETRY_AFTER, "1");
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

/* A header's lines as one list, which they are (RFC 9110, section 5.3); what is beyond accept.h's limit is cut. */
struct header_lines {
    const char *name;
    bool found;
    size_t length;
    char text[ACCEPT_LENGTH_MAX + 1];
};

static void begin_lines(struct header_lines *lines, const char *name)
{
    lines->name = name;
    lines->found = false;
    lines->length = 0;
    lines->text[0] = 0;
}

static enum MHD_Result join_line(void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct header_lines *lines = context;
    size_t left = sizeof lines->text - lines->length;

    (void)kind;
    if (strcasecmp(name, lines->name) != 0 || !value)
        return MHD_YES;
    int length = snprintf(lines->text + lines->length, left, "%s%s", lines->found ? "," : "", value);
    lines->found = true;
    lines->length += length > 0 && (size_t)length < left ? (size_t)length : left - 1;
    return MHD_YES;
}

/* A page in memory of its own: NULL with the error, as the next. -ENODATA: there is no snapshot yet. */
static struct MHD_Response *small_page(enum page_format format, enum page_encoding encoding,
                                       const struct wanted_names *wanted, size_t *ret_size, int *ret_error)
{
    struct snapshot *snapshot = snapshot_acquire();
    char *page;

    *ret_error = snapshot
                     ? snapshot_small_page(snapshot, format, encoding, wanted->names, wanted->count, &page, ret_size)
                     : -ENODATA;
    snapshot_release(snapshot);
    if (*ret_error)
        return NULL;
    struct MHD_Response *response = MHD_create_response_from_buffer(*ret_size, page, MHD_RESPMEM_MUST_FREE);
    if (!response)
        free(page);
    return response;
}

/* A page of the snapshot's, which is the response's until it is sent. */
static struct MHD_Response *kept_page(enum page_format format, enum page_encoding encoding,
                                      const struct wanted_names *wanted, size_t *ret_size, int *ret_error)
{
    struct snapshot *snapshot = snapshot_acquire_page();
    struct MHD_Response *response = NULL;
    const char *page;

    *ret_error = !snapshot ? -ENODATA
                 : wanted->given > 0
                     ? snapshot_large_page(snapshot, format, encoding, wanted->names, wanted->count, &page, ret_size)
                     : snapshot_page(snapshot, format, encoding, &page, ret_size);
    if (*ret_error == 0)
        response = MHD_create_response_from_buffer_with_free_callback_cls(*ret_size, (void *)(uintptr_t)page,
                                                                          release_snapshot, snapshot);
    if (!response)
        snapshot_release(snapshot);
    return response;
}

static enum MHD_Result send_no_page(struct exchange *exchange, int error)
{
    switch (error) {
    case -ENODATA: return send_text(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "no snapshot has been collected yet\n");
    case -EBUSY:
        return send_busy(exchange, MHD_HTTP_SERVICE_UNAVAILABLE,
                         "too many different large selections of name[] at once; ask for the whole page\n");
    default: return send_text(exchange, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory while rendering the page\n");
    }
}

static enum MHD_Result send_metrics(struct exchange *exchange)
{
    struct header_lines accept, codings; /* large: initialised by hand, not byte by byte */
    struct wanted_names wanted;

    begin_lines(&accept, MHD_HTTP_HEADER_ACCEPT);
    begin_lines(&codings, MHD_HTTP_HEADER_ACCEPT_ENCODING);
    wanted.count = wanted.given = 0;
    (void)MHD_get_connection_values(exchange->connection, MHD_HEADER_KIND, join_line, &accept);
    (void)MHD_get_connection_values(exchange->connection, MHD_HEADER_KIND, join_line, &codings);
    const enum page_format format = accept_format(accept.found ? accept.text : NULL);
    const enum page_encoding encoding = accept_encoding(codings.found ? codings.text : NULL);
    size_t size;
    int error = 0;

    (void)MHD_get_connection_values(exchange->connection, MHD_GET_ARGUMENT_KIND, add_wanted_name, &wanted);
    if (wanted.given > NAMES_MAX)
        return send_text(exchange, MHD_HTTP_BAD_REQUEST, "name[] is given too often; ask for the whole page\n");
    struct MHD_Response *response = NULL;
    if (wanted.given > 0)
        response = small_page(format, encoding, &wanted, &size, &error);
    if (wanted.given == 0 || error == -E2BIG)
        response = kept_page(format, encoding, &wanted, &size, &error);
    if (!response)
        return send_no_page(exchange, error);
    if (page_content_encoding(encoding))
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_ENCODING, page_content_encoding(encoding));
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, "Accept, Accept-Encoding");
    return send_response(exchange, MHD_HTTP_OK, page_content_type(format), response, size);
}

static bool is_stuck(const struct http *http)
{
    struct snapshot *snapshot = snapshot_acquire();
    /* Without a snapshot, the grace of a start. The clock is read last, so that the age is not negative. */
    uint64_t since_ns = snapshot ? snapshot_time_ns(snapshot) : http->started_ns;
    bool stuck = wideep_i_clock_ns(CLOCK_BOOTTIME) - since_ns > http->config.stale_ns;

    snapshot_release(snapshot);
    return stuck;
}

static enum MHD_Result send_healthy(struct exchange *exchange)
{
    return is_stuck(exchange->http) ? send_text(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "the collector is stuck\n")
                                    : send_text(exchange, MHD_HTTP_OK, "ok\n");
}

static enum MHD_Result send_ready(struct exchange *exchange)
{
    struct snapshot *snapshot = snapshot_acquire();
    const bool ready = snapshot != NULL;

    snapshot_release(snapshot);
    return ready ? send_text(exchange, MHD_HTTP_OK, "ready\n")
                 : send_text(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "no snapshot has been collected yet\n");
}

static bool has_header(const struct web_config *config, const char *name)
{
    for (unsigned i = 0; config && i < config->header_count; i++)
        if (strcasecmp(config->headers[i].name, name) == 0)
            return true;
    return false;
}

static enum MHD_Result send_live(struct exchange *exchange)
{
    const struct live *live = &exchange->http->live;
    struct header_lines codings;

    begin_lines(&codings, MHD_HTTP_HEADER_ACCEPT_ENCODING);
    (void)MHD_get_connection_values(exchange->connection, MHD_HEADER_KIND, join_line, &codings);
    const enum page_encoding encoding = accept_encoding(codings.found ? codings.text : NULL);
    const struct buffer *page = encoding == PAGE_GZIP ? &live->gzip : &live->page;
    struct MHD_Response *response = MHD_create_response_from_buffer(page->size, page->data, MHD_RESPMEM_PERSISTENT);

    if (response && page_content_encoding(encoding))
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_ENCODING, page_content_encoding(encoding));
    if (response)
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, MHD_HTTP_HEADER_ACCEPT_ENCODING);
    if (response && !has_header(exchange->config, "Content-Security-Policy"))
        (void)MHD_add_response_header(response, "Content-Security-Policy", live_policy);
    return send_response(exchange, MHD_HTTP_OK, "text/html; charset=utf-8", response, page->size);
}

static enum MHD_Result send_not_allowed(struct exchange *exchange)
{
    const unsigned methods = exchange->route->methods;
    char allow[40];

    (void)snprintf(allow, sizeof allow, "%s%s%s", methods & HTTP_GET ? ", GET, HEAD" : "",
                   methods & HTTP_POST ? ", POST" : "", methods & HTTP_DELETE ? ", DELETE" : "");
    return send_text_with(exchange, MHD_HTTP_METHOD_NOT_ALLOWED,
                          "this method is not allowed here; the header Allow lists those that are\n",
                          MHD_HTTP_HEADER_ALLOW, allow + 2);
}

/* ---- handlers of other modules ------------------------------------------------------------------------------ */

struct argument {
    const char *name;
    const char *value; /* NULL: not found yet */
};

static enum MHD_Result compare_argument(void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct argument *argument = context;

    (void)kind;
    if (strcmp(name, argument->name) != 0)
        return MHD_YES;
    argument->value = value ? value : "";
    return MHD_NO;
}

/* The library's own look-up takes a and A for the same. */
const char *http_argument(const struct http_request *request, const char *name)
{
    struct argument argument = {.name = name};

    (void)MHD_get_connection_values(request->connection, MHD_GET_ARGUMENT_KIND, compare_argument, &argument);
    return argument.value;
}

struct unknown {
    const char *const *known;
    const char *found;
};

static enum MHD_Result compare_known(void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct unknown *unknown = context;

    (void)kind;
    (void)value;
    for (const char *const *known = unknown->known; *known; known++)
        if (strcmp(name, *known) == 0)
            return MHD_YES;
    unknown->found = name;
    return MHD_NO;
}

const char *http_unknown_argument(const struct http_request *request, const char *const *known)
{
    struct unknown unknown = {.known = known};

    (void)MHD_get_connection_values(request->connection, MHD_GET_ARGUMENT_KIND, compare_known, &unknown);
    return unknown.found;
}

const char *http_header(const struct http_request *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

void http_reply_text(struct http_reply *reply, unsigned code, const char *format, ...)
{
    char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    *reply = (struct http_reply){.code = code, .content_type = TEXT_PLAIN};
    if (length >= 0) {
        reply->body = text;
        reply->size = (size_t)length;
    }
}

static const struct sockaddr *address_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);

    return info ? info->client_addr : NULL;
}

static void describe_peer(struct MHD_Connection *connection, char *ret, size_t size)
{
    const struct sockaddr *address = address_of(connection);
    char host[64], port[8];
    socklen_t length = 0;

    if (address && address->sa_family == AF_INET)
        length = sizeof(struct sockaddr_in);
    else if (address && address->sa_family == AF_INET6)
        length = sizeof(struct sockaddr_in6);
    if (length == 0 ||
        getnameinfo(address, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        (void)snprintf(ret, size, "unix");
    else
        (void)snprintf(ret, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static enum MHD_Result send_reply(struct exchange *exchange)
{
    const struct http_route *route = exchange->route->other;
    char peer[80];
    struct http_reply reply = {.code = MHD_HTTP_INTERNAL_SERVER_ERROR, .content_type = TEXT_PLAIN};
    const struct http_request request = {.method = exchange->method,
                                         .path = exchange->path,
                                         .peer = peer,
                                         .user = exchange->user,
                                         .connection = exchange->connection};

    describe_peer(exchange->connection, peer, sizeof peer);
    route->handle(route->context, &request, &reply);
    struct MHD_Response *response = MHD_create_response_from_buffer(
        reply.size, reply.body, reply.constant ? MHD_RESPMEM_PERSISTENT : MHD_RESPMEM_MUST_FREE);
    if (!response && !reply.constant)
        free(reply.body);
    return send_response(exchange, reply.code, reply.content_type, response, reply.size);
}

/* ---- who may ask -------------------------------------------------------------------------------------------- */

/* The library asks for a client's certificate, and serves whoever shows none or a wrong one. */
static bool has_certificate(struct exchange *exchange, char *reason, size_t size)
{
    const struct web_config *config = exchange->server->web->config;

    if (!config || !config->tls || exchange->client->verified)
        return true;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(exchange->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    if (!info || !info->tls_session || !web_config_client_allowed(config, info->tls_session, reason, size)) {
        log_debug("client certificate refused", "reason", reason, NULL);
        return false;
    }
    exchange->client->verified = true;
    return true;
}

static enum MHD_Result send_without_certificate(struct exchange *exchange, const char *reason)
{
    char text[256];

    (void)snprintf(text, sizeof text, "a valid client certificate is needed: %s\n", reason);
    return send_response(exchange, MHD_HTTP_FORBIDDEN, TEXT_PLAIN,
                         MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_COPY), strlen(text));
}

static void forget_password(struct client *client)
{
    if (client->task_password)
        explicit_bzero(client->task_password, strlen(client->task_password));
    MHD_free(client->task_password);
    MHD_free(client->task_user);
    web_release(client->task_web);
    client->task_user = client->task_password = NULL;
    client->task_web = NULL;
}

/* The library calls http_on_request() again, for which it takes a lock after this: the verdict is seen there. */
static void on_verdict(struct auth_task *task, enum auth_verdict verdict)
{
    struct client *client = (void *)((char *)task - offsetof(struct client, task));

    client->verdict = verdict;
    MHD_resume_connection(client->suspended);
}

/* For the authenticator: an IPv4 address, the /64 that one owner of an IPv6 address has as a rule, 0 for local clients.
 */
static uint64_t peer_number(const struct sockaddr *address)
{
    struct sockaddr_in6 six;
    struct sockaddr_in four;
    uint64_t number;

    if (!address || (address->sa_family != AF_INET && address->sa_family != AF_INET6))
        return 0;
    if (address->sa_family == AF_INET) {
        memcpy(&four, address, sizeof four);
        return four.sin_addr.s_addr;
    }
    memcpy(&six, address, sizeof six);
    /* The upper half of an IPv4 address that is mapped is the same for all. */
    memcpy(&number, six.sin6_addr.s6_addr + (IN6_IS_ADDR_V4MAPPED(&six.sin6_addr) ? 8 : 0), sizeof number);
    return number;
}

enum password_check { PASSWORD_GOOD, PASSWORD_WRONG, PASSWORD_BUSY, PASSWORD_PENDING };

/* Hands the client's name and password to the authenticator, with the connection suspended for that long. */
static enum password_check ask_authenticator(struct exchange *exchange)
{
    struct client *client = exchange->client;

    client->suspended = exchange->connection;
    client->task_web = web_ref(exchange->web);
    client->task = (struct auth_task){.config = exchange->config,
                                      .user = client->task_user,
                                      .password = client->task_password,
                                      .peer = peer_number(address_of(exchange->connection)),
                                      .owner = &exchange->server->passwords,
                                      .done = on_verdict};
    connection_answers(exchange->http->connections, client->connection, wideep_i_clock_ns(CLOCK_MONOTONIC));
    /* Before it is asked, since the verdict may come at once. */
    MHD_suspend_connection(exchange->connection);
    if (!authenticator_ask(exchange->http->authenticator, &client->task))
        on_verdict(&client->task, AUTH_DROPPED);
    return PASSWORD_PENDING;
}

/* When it is good, the exchange has the user's name where one is asked for. */
static enum password_check check_password(struct exchange *exchange)
{
    struct client *client = exchange->client;
    enum auth_verdict verdict = client->verdict;

    if (!exchange->config || exchange->config->user_count == 0)
        return PASSWORD_GOOD;
    client->verdict = AUTH_NONE;
    /* Of a configuration that has been replaced meanwhile, a verdict counts for nothing. */
    if (verdict != AUTH_NONE && client->task_web != exchange->web) {
        forget_password(client);
        verdict = AUTH_NONE;
    }
    if (verdict == AUTH_NONE) {
        client->task_user = MHD_basic_auth_get_username_password(exchange->connection, &client->task_password);
        if (!client->task_user || !client->task_password)
            return PASSWORD_WRONG;
        if (!web_config_authenticated_before(exchange->config, client->task_user, client->task_password))
            return ask_authenticator(exchange);
    } else if (verdict == AUTH_DROPPED) {
        return PASSWORD_BUSY;
    } else if (verdict == AUTH_WRONG) {
        return PASSWORD_WRONG;
    }
    exchange->user = client->task_user;
    client->task_user = NULL;
    return PASSWORD_GOOD;
}

/* ---- requests ----------------------------------------------------------------------------------------------- */

/* A slot of a limited request is the client's until its response is sent. */
static bool take_slot(struct exchange *exchange)
{
    struct http *http = exchange->http;

    if (!exchange->route->limited)
        return true;
    exchange->client->limited = true;
    return __atomic_add_fetch(&http->limited, 1, __ATOMIC_RELAXED) <= http->config.max_requests ||
           http->config.max_requests == 0;
}

static void give_slot_back(struct client *client)
{
    if (client->limited)
        (void)__atomic_sub_fetch(&client->server->http->limited, 1, __ATOMIC_RELAXED);
    client->limited = false;
}

/* The rate limit of the configuration as a token bucket, in the form that keeps one number: the time at which what was
 * let through would have come at the even rate (the generic cell rate algorithm of ITU-T I.371). */
static bool is_within_rate(struct exchange *exchange)
{
    const struct web_config *config = exchange->config;
    struct web *web = exchange->web;
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC), next;

    if (!config || config->rate_interval_ns == 0 || exchange->client->paid)
        return true;
    exchange->client->paid = true;
    uint64_t before = __atomic_load_n(&web->rate_ns, __ATOMIC_RELAXED);
    do {
        uint64_t ahead_ns = before > now_ns ? before - now_ns : 0;
        if (ahead_ns / config->rate_interval_ns >= config->rate_burst)
            return false;
        next = now_ns + ahead_ns + config->rate_interval_ns;
    } while (!__atomic_compare_exchange_n(&web->rate_ns, &before, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return true;
}

/* Whoever may not ask learns nothing of what there is. */
static enum MHD_Result answer(struct exchange *exchange)
{
    const struct route *route = find_route(exchange->http, exchange->path, &exchange->found) ? &exchange->found : NULL;

    exchange->route = route;
    if (exchange->client->malformed)
        return send_text_with(exchange, MHD_HTTP_BAD_REQUEST,
                              "the request's line or headers are ambiguous, or lack a Host\n",
                              MHD_HTTP_HEADER_CONNECTION, "close");
    /* Before who asks is known: a probe without a password takes 401 for life, and this tells nobody anything else. */
    if (route && route->send == send_healthy && is_stuck(exchange->http))
        return send_healthy(exchange);
    char reason[200] = "no TLS session";
    if (!has_certificate(exchange, reason, sizeof reason))
        return send_without_certificate(exchange, reason);
    if (!(route && route->probe) && !is_within_rate(exchange))
        return send_busy(exchange, MHD_HTTP_TOO_MANY_REQUESTS, "too many requests; rate_limit is the limit\n");
    enum password_check check = check_password(exchange);
    if (check == PASSWORD_PENDING)
        return MHD_YES;
    forget_password(exchange->client);
    if (check == PASSWORD_BUSY)
        return send_busy(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "too many passwords are being checked\n");
    if (check == PASSWORD_WRONG)
        return send_text_with(exchange, MHD_HTTP_UNAUTHORIZED, "a user name and its password are needed\n",
                              MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Basic realm=\"wideep-exporter\", charset=\"UTF-8\"");
    if (exchange->client->body_bytes > BODY_MAX)
        return send_text(exchange, MHD_HTTP_CONTENT_TOO_LARGE, "no request here needs a body, let alone a large one\n");
    if (!route)
        return send_text(exchange, MHD_HTTP_NOT_FOUND, "not found; see / for what there is\n");
    if ((method_bit(exchange->method) & route->methods) == 0)
        return send_not_allowed(exchange);
    /* What a form sends would else be silently left out of what it changes. */
    if (exchange->client->body_bytes > 0 && method_bit(exchange->method) != HTTP_GET)
        return send_text(exchange, MHD_HTTP_BAD_REQUEST, "arguments go into the query, not into a body\n");
    if (!take_slot(exchange)) {
        give_slot_back(exchange->client);
        return send_busy(exchange, MHD_HTTP_SERVICE_UNAVAILABLE,
                         "too many requests at once; --web.max-requests is the limit\n");
    }
    return route->send ? route->send(exchange) : send_reply(exchange);
}

static struct client *client_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return info ? info->socket_context : NULL;
}

/* The path of an absolute-form target, which servers must accept (RFC 9112, section 3.2.2); any other stays. */
static const char *path_of(const char *target)
{
    const char *authority = strncasecmp(target, "http://", 7) == 0    ? target + 7
                            : strncasecmp(target, "https://", 8) == 0 ? target + 8
                                                                      : NULL;
    const char *path = authority ? strchr(authority, '/') : NULL;

    return authority ? path ? path : "/" : target;
}

/* Before anything is decoded: to the library all up to the last space is the target, to others up to the next. What it
 * returns is the request's first `state`. */
void *http_on_target(void *context, const char *target, struct MHD_Connection *connection)
{
    struct client *client = client_of(connection);

    (void)context;
    if (client) {
        client->odd_target = strchr(target, ' ') != NULL;
        client->target_end = target + strlen(target);
        client->head_end = framing_find_end(client->target_end);
    }
    return NULL;
}

enum MHD_Result http_on_request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                                const char *version, const char *data, size_t *data_size, void **state)
{
    struct server *server = context;
    struct client *client = client_of(connection);

    (void)data;
    if (!client)
        return MHD_NO;
    /* A response queued in the first call closes the connection. */
    if (!*state) {
        *state = client;
        client->body_bytes = 0;
        client->paid = false;
        client->malformed = client->odd_target || !framing_is_sound(connection, client->target_end, client->head_end,
                                                                    method, version, &client->last);
        (void)__atomic_add_fetch(&in_flight, 1, __ATOMIC_RELAXED);
        if (!client->malformed)
            return MHD_YES;
    }
    if (*data_size > 0) {
        client->body_bytes += *data_size;
        *data_size = 0;
        return client->body_bytes > BODY_MAX_SWALLOW ? MHD_NO : MHD_YES;
    }
    struct web *web = web_acquire(server->http);
    struct exchange exchange = {.http = server->http,
                                .server = server,
                                .client = client,
                                .connection = connection,
                                .web = web,
                                .config = web->config,
                                .method = method,
                                .path = path_of(url)};
    enum MHD_Result result = answer(&exchange);
    MHD_free(exchange.user);
    web_release(web);
    return result;
}

void http_on_completed(void *context, struct MHD_Connection *connection, void **state,
                       enum MHD_RequestTerminationCode code)
{
    struct client *client = *state;

    (void)context;
    (void)connection;
    (void)code;
    *state = NULL;
    if (!client)
        return;
    give_slot_back(client);
    forget_password(client);
    client->verdict = AUTH_NONE;
    connection_rests(client->server->http->connections, client->connection, wideep_i_clock_ns(CLOCK_MONOTONIC));
    (void)__atomic_sub_fetch(&in_flight, 1, __ATOMIC_RELAXED);
}

/* What was decoded would end at a NUL, and so be another path than was asked for: such a text stays as it is, and
 * names nothing here. */
size_t http_on_unescape(void *context, struct MHD_Connection *connection, char *text)
{
    (void)context;
    (void)connection;
    return strstr(text, "%00") ? strlen(text) : MHD_http_unescape(text);
}

/* ---- connections -------------------------------------------------------------------------------------------- */

/* Without a certificate that it must have, a client gets no further than the handshake. */
static void ask_for_certificate(const struct web_config *config, struct MHD_Connection *connection)
{
    static const gnutls_certificate_request_t wanted[] = {
        [WEB_CLIENT_NONE] = GNUTLS_CERT_IGNORE,
        [WEB_CLIENT_REQUEST] = GNUTLS_CERT_REQUEST,
        [WEB_CLIENT_REQUIRE_ANY] = GNUTLS_CERT_REQUIRE,
        [WEB_CLIENT_VERIFY_IF_GIVEN] = GNUTLS_CERT_REQUEST,
        [WEB_CLIENT_REQUIRE_AND_VERIFY] = GNUTLS_CERT_REQUIRE,
    };
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);

    if (info && info->tls_session)
        gnutls_certificate_server_set_request(info->tls_session, wanted[config->client_auth]);
}

static struct client *client_new(struct server *server, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct client *client = calloc(1, sizeof *client);

    struct connection *entry = client && info ? connections_add(server->http->connections, info->connect_fd,
                                                                &server->retired, wideep_i_clock_ns(CLOCK_MONOTONIC))
                                              : NULL;
    if (!entry) {
        if (info)
            (void)shutdown(info->connect_fd, SHUT_RDWR);
        free(client);
        return NULL;
    }
    client->server = server;
    client->connection = entry;
    if (server->web->config && server->web->config->tls)
        ask_for_certificate(server->web->config, connection);
    return client;
}

void http_on_connection(void *context, struct MHD_Connection *connection, void **socket_context,
                        enum MHD_ConnectionNotificationCode code)
{
    struct server *server = context;
    struct client *client = *socket_context;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *socket_context = client_new(server, connection);
        return;
    }
    *socket_context = NULL;
    if (client)
        connections_remove(server->http->connections, client->connection);
    free(client);
    /* The last that is done with the server: pairs with the acquire in is_drained(). */
    (void)__atomic_add_fetch(&server->ended, 1, __ATOMIC_RELEASE);
}

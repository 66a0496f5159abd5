/*
 * Requests as they come from a socket, through libmicrohttpd and all of http.c, with its routes, to the answer. An
 * input is what a client sends before it closes its side.
 *
 * A reading of RFC 9112 that is as simple as can be goes along. A request that it finds sound gets exactly one answer,
 * and not the one for ambiguous requests. One that it finds unsound gets at most one, a refusal, and nothing is read
 * after it: what a proxy might take for a body is then nobody's request. In between are those that a server may take
 * or leave; from there on only the form of answers is checked.
 */
#include "fuzz.h"
#include "../../src/http_internal.h"
#include "lb.h"
#include "log.h"
#include "page.h"
#include "snapshot.h"
#include "state.h"
#include "admin.h"

#include <ctype.h>

#define INPUT_MAX     8192
#define HEAD_SEEN_MAX 4000
#define ANSWERS_MAX   (4u << 20)
#define REQUESTS_MAX  64
#define TURNS_MAX     2000
#define AMBIGUOUS     "the request's line or headers are ambiguous"

/* ---- the reading ----------------------------------------------------------------------------------------------- */

enum verdict { SOUND, UNSOUND, EITHER, INCOMPLETE };

struct request {
    enum verdict verdict;
    size_t size; /* with its body */
    bool head;   /* the method */
    bool last;   /* nothing may be read after it */
    bool metrics;
};

struct head {
    unsigned hosts, lengths, encodings;
    uint64_t length;
    bool old; /* HTTP/1.0 */
};

static bool is_token_char(char c)
{
    return isalnum((unsigned char)c) || (c != 0 && strchr("!#$%&'*+-.^_`|~", c));
}

static size_t token_length(const char *at, const char *end)
{
    const char *from = at;

    while (at < end && is_token_char(*at))
        at++;
    return (size_t)(at - from);
}

static bool is_name(const char *at, size_t length, const char *name)
{
    return length == strlen(name) && strncasecmp(at, name, length) == 0;
}

static enum verdict worse(enum verdict a, enum verdict b)
{
    return a == UNSOUND || b == UNSOUND ? UNSOUND : a == SOUND ? b : a;
}

/* method SP target SP version, without its end. */
static enum verdict read_request_line(const char *at, const char *end, struct request *request, struct head *head)
{
    static const char *const methods[] = {"GET", "HEAD", "POST", "DELETE"};
    const size_t method = token_length(at, end);
    bool known = false;

    request->head = is_name(at, method, "HEAD");
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        known = known || (method == strlen(methods[i]) && memcmp(at, methods[i], method) == 0);
    if (!known || end - at < (ptrdiff_t)method + 11 || at[method] != ' ')
        return EITHER;
    const char *target = at + method + 1, *version = end - 8;
    if (memcmp(version, "HTTP/1.", 7) != 0 || (version[7] != '1' && version[7] != '0') || version[-1] != ' ')
        return EITHER;
    head->old = version[7] == '0';
    request->metrics = strncmp(target, "/metrics", 8) == 0;
    if (*target == ' ')
        return EITHER; /* words may be told apart by any white space (section 3) */
    if (memchr(target, ' ', (size_t)(version - 1 - target)))
        return UNSOUND;
    if (*target != '/')
        return EITHER;
    for (; target < version - 1; target++)
        if (*target <= ' ' || *target > '~')
            return EITHER;
    return SOUND;
}

static enum verdict read_host(const char *value, size_t length, struct head *head)
{
    head->hosts++;
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)value[i]) && !strchr(".-_:[]", value[i]))
            return strchr(" \t/@?#\\,", value[i]) ? UNSOUND : EITHER;
    return head->hosts > 1 ? UNSOUND : SOUND;
}

static enum verdict read_length(const char *value, size_t length, struct head *head)
{
    head->lengths++;
    if (length == 0)
        return UNSOUND;
    for (size_t i = 0; i < length; i++) {
        if (!isdigit((unsigned char)value[i]))
            return UNSOUND;
        head->length = head->length > INPUT_MAX ? head->length : 10 * head->length + (uint64_t)(value[i] - '0');
    }
    return SOUND;
}

/* name ":" OWS value OWS, without its end. */
static enum verdict read_field(const char *at, const char *end, struct request *request, struct head *head)
{
    const size_t name = token_length(at, end);

    if (name == 0 || at + name == end || at[name] != ':')
        return UNSOUND;
    const char *value = at + name + 1;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    const size_t length = (size_t)(end - value);
    if (memchr(value, 0, length) || memchr(value, '\r', length))
        return UNSOUND;
    if (is_name(at, name, "Host"))
        return read_host(value, length, head);
    if (is_name(at, name, "Content-Length"))
        return read_length(value, length, head);
    if (is_name(at, name, "Transfer-Encoding")) {
        head->encodings++;
        request->last = true;
        return is_name(value, length, "chunked") ? EITHER : UNSOUND;
    }
    if (is_name(at, name, "Connection") || is_name(at, name, "Expect") || is_name(at, name, "Upgrade"))
        return is_name(value, length, "keep-alive") ? SOUND : EITHER;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)value[i] < ' ' && value[i] != '\t')
            return EITHER;
    return SOUND;
}

static struct request read_request(const char *data, size_t size)
{
    struct request request = {SOUND, 0, false, false, false};
    struct head head = {0, 0, 0, 0, false};
    const char *at = data, *end = data + size;
    bool colon = false;

    for (bool first = true;; first = false) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline) {
            request.verdict = request.verdict == SOUND ? INCOMPLETE : EITHER;
            return request;
        }
        const bool whole = newline > at && newline[-1] == '\r';
        const char *line_end = newline - whole;
        if (!whole)
            request.verdict = worse(request.verdict, EITHER);
        if (line_end == at && !first) {
            at = newline + 1;
            break;
        }
        request.verdict = worse(request.verdict, first ? read_request_line(at, line_end, &request, &head)
                                                       : read_field(at, line_end, &request, &head));
        /* What the library makes of a line that is none is its own. */
        if (first && request.verdict != SOUND)
            return request;
        colon = colon || (!first && line_end - at == 1 && *at == ':');
        at = newline + 1;
    }
    if (head.lengths + head.encodings > 1 || head.hosts > 1 || (head.hosts == 0 && !head.old))
        request.verdict = UNSOUND;
    /* Not told from an empty line then, see framing.h. */
    if (colon && (at - data > HEAD_SEEN_MAX || memchr(data, 0, (size_t)(at - data))))
        request.verdict = EITHER;
    if (head.old && request.verdict == SOUND)
        request.verdict = EITHER;
    if (request.verdict == SOUND && head.length > (uint64_t)(end - at))
        request.verdict = INCOMPLETE;
    request.size = (size_t)(at - data) + head.length;
    return request;
}

/* ---- answers --------------------------------------------------------------------------------------------------- */

struct answer {
    unsigned code;
    const char *body;
    size_t body_size;
    bool close, openmetrics, plain; /* plain: not compressed, not protobuf */
    bool twice;                     /* the head: libmicrohttpd 0.9.75 does so for a Content-Length that is no number */
};

static const char *field_of(const char *head, const char *end, const char *name)
{
    const size_t length = strlen(name);

    for (const char *at = head; at < end; at = strstr(at, "\r\n") + 2)
        if (strncasecmp(at, name, length) == 0 && at[length] == ':')
            return at + length + 2;
    return NULL;
}

/* Returns the size of an answer, which must be whole. */
static size_t read_answer(const char *data, size_t size, bool without_body, struct answer *ret)
{
    fuzz_expect(size > 12 && memcmp(data, "HTTP/1.", 7) == 0 && data[8] == ' ');
    ret->code = (unsigned)strtoul(data + 9, NULL, 10);
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    fuzz_expect(end && ret->code >= 100 && ret->code < 600);
    end += 2;
    const char *length = field_of(data, end, "Content-Length"), *type = field_of(data, end, "Content-Type");
    const char *connection = field_of(data, end, "Connection");
    ret->close = connection && strncasecmp(connection, "close", 5) == 0;
    ret->openmetrics = type && strncmp(type, "application/openmetrics-text", 28) == 0;
    ret->plain = type && !field_of(data, end, "Content-Encoding") &&
                 (ret->openmetrics || strncmp(type, "text/plain; version", 19) == 0);
    ret->body = end + 2;
    ret->body_size = length && !without_body ? strtoul(length, NULL, 10) : 0;
    const size_t head_size = (size_t)(ret->body - data);
    fuzz_expect(ret->code < 200 || length);
    fuzz_expect(ret->body_size <= size - head_size);
    ret->twice = size - head_size >= head_size && memcmp(data, ret->body, head_size) == 0;
    return head_size + ret->body_size;
}

static void check_sound(const struct request *request, const struct answer *answer)
{
    if (answer->body_size >= sizeof AMBIGUOUS && memcmp(answer->body, AMBIGUOUS, sizeof AMBIGUOUS - 1) == 0)
        fuzz_fail("a sound request was taken for ambiguous");
    if (answer->body_size > 6 && memcmp(answer->body, "<html><head>", 12) == 0 && answer->code >= 400)
        fuzz_fail("the library refused a sound request: %u", answer->code);
    fuzz_expect(answer->code != 500);
    if (request->metrics && answer->code == 200 && answer->plain && !request->head)
        (void)page_check(answer->body, answer->body_size, answer->openmetrics);
}

static void check_answers(const char *data, size_t size, const char *answers, size_t answers_size)
{
    for (unsigned i = 0; i < REQUESTS_MAX && size > 0; i++) {
        const struct request request = read_request(data, size);
        struct answer answer;
        if (request.verdict == EITHER)
            return;
        if (answers_size == 0) {
            if (request.verdict == SOUND)
                fuzz_fail("a sound request, number %u, was not answered", i);
            return;
        }
        const size_t answer_size = read_answer(answers, answers_size, request.head, &answer);
        answers += answer_size;
        answers_size -= answer_size;
        if (request.verdict != SOUND) {
            /* A body may follow where the reading has no method. */
            if (answer.code < 400)
                fuzz_fail("a request that is %s was answered with %u",
                          request.verdict == UNSOUND ? "unsound" : "incomplete", answer.code);
            if (answers_size != 0 && !request.head && !answer.twice)
                fuzz_fail("something was answered after a request that is not sound");
            return;
        }
        check_sound(&request, &answer);
        if (answer.close) {
            fuzz_expect(answers_size == 0);
            return;
        }
        data += request.size;
        size -= request.size;
    }
    fuzz_expect(size > 0 || answers_size == 0);
}

/* ---- the server ------------------------------------------------------------------------------------------------ */

static struct http http;
static struct server server;
static struct MHD_Daemon *service;
static struct http_route routes[4];
static struct admin admin;
static char answers[ANSWERS_MAX + 1];

static void quiet(void *context, const char *format, va_list list)
{
    (void)context;
    (void)format;
    (void)list;
}

/* As main.c and http_server.c have it, without threads: the input's connection is served by this one. */
static void start(struct lb *lb, struct state_board *state)
{
    static const struct connections_config limits = {64, UINT64_C(10000000000), UINT64_C(10000000000),
                                                     UINT64_C(60000000000)};
    static struct web web = {.references = 1};

    routes[0] = (struct http_route){"/lb", false, HTTP_GET, "lb", lb_handle, lb, false, true};
    routes[1] = (struct http_route){"/lb/", true, HTTP_GET, "lb_metrics", lb_handle_metrics, lb, false, true};
    routes[2] = (struct http_route){"/api/v1/state", false, HTTP_GET, "state", state_handle, state, true, false};
    routes[3] = (struct http_route){"/-/debug/per-expert",
                                    false,
                                    HTTP_GET | HTTP_POST | HTTP_DELETE,
                                    "debug",
                                    admin_handle_per_expert,
                                    &admin,
                                    false,
                                    false};
    http.config = (struct http_config){
        .telemetry_path = "/metrics", .stale_ns = UINT64_MAX / 2, .version = "1", .routes = routes, .route_count = 4};
    http.connections = connections_new(&limits);
    http.web = &web;
    fuzz_expect(pthread_mutex_init(&http.lock, NULL) == 0);
    server = (struct server){.http = &http, .web = &web};
    service =
        MHD_start_daemon(MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG, 0, NULL, NULL, http_on_request, &server,
                         MHD_OPTION_EXTERNAL_LOGGER, quiet, NULL, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)48 << 10,
                         MHD_OPTION_URI_LOG_CALLBACK, http_on_target, NULL, MHD_OPTION_NOTIFY_COMPLETED,
                         http_on_completed, &server, MHD_OPTION_NOTIFY_CONNECTION, http_on_connection, &server,
                         MHD_OPTION_UNESCAPE_CALLBACK, http_on_unescape, NULL, MHD_OPTION_END);
    fuzz_expect(service && http.connections);
}

/* A snapshot of no segments, which has the exporter's own families. */
static void publish(void)
{
    static const struct aggregate_config config = {1, 1, AGGREGATE_EACH};
    static struct segment_set set;
    static struct self_stats self = {.version = "1", .commit = "fuzz"};
    struct family_sources sources = {NULL, &self};
    struct aggregate *aggregate;
    struct layout *layout;
    struct value *values;
    struct lb *lb;
    struct state_board *state;

    fuzz_expect(aggregate_new(&aggregate, &config, &set) == 0);
    sources.aggregate = aggregate;
    fuzz_expect(layout_new(&layout, &sources, 100000, false) == 0);
    struct snapshot *snapshot = snapshot_new(layout, fuzz_now_ns, &values);
    fuzz_expect(snapshot);
    (void)layout_read_values(layout, &sources, values);
    snapshot_publish(snapshot);
    fuzz_expect(lb_new(&lb, false) == 0 && lb_update(lb, aggregate, fuzz_now_ns) == 0);
    fuzz_expect(state_new(&state) == 0);
    static struct family_sources kept;
    kept = sources;
    state_begin_collection(state);
    state_end_collection(state, &kept, lb);
    start(lb, state);
}

/* Returns the size of what was answered until the connection ended. */
static size_t serve(const char *data, size_t size)
{
    static const struct sockaddr peer = {.sa_family = AF_UNIX};
    int pair[2];
    size_t got = 0;

    fuzz_expect(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    fuzz_expect(send(pair[0], data, size, MSG_NOSIGNAL) == (ssize_t)size);
    fuzz_expect(shutdown(pair[0], SHUT_WR) == 0);
    fuzz_expect(MHD_add_connection(service, pair[1], &peer, sizeof peer) == MHD_YES);
    for (unsigned turn = 0;; turn++) {
        (void)MHD_run(service);
        ssize_t n = recv(pair[0], answers + got, ANSWERS_MAX - got, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            break;
        got += n > 0 ? (size_t)n : 0;
        fuzz_expect(turn < TURNS_MAX && got < ANSWERS_MAX);
    }
    (void)close(pair[0]);
    for (unsigned turn = 0; connections_open() > 0; turn++) {
        fuzz_expect(turn < TURNS_MAX);
        (void)MHD_run(service);
    }
    answers[got] = 0;
    return got;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_setup(LOG_ERROR, LOG_LOGFMT);
    publish();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > INPUT_MAX)
        return -1;
    const size_t got = serve((const char *)data, size);
    fuzz_expect(http_in_flight() == 0 && http.limited == 0);
    check_answers((const char *)data, size, answers, got);
    return 0;
}

/*
 * http: serves snapshots and the handlers of other modules over HTTP with libmicrohttpd.
 *
 *     listen sockets ─► acceptor ─► connections (deadlines, limits) ─► daemon ─► route ─► handler ─► reply
 *
 * A thread of ours accepts and hands each connection to the current daemon of the library, which has a pool of threads
 * that run the handlers. A new web configuration is a new daemon: connections of the old one get their next answer
 * with `Connection: close`, so that no request fails, or are closed once nothing has been asked on them for a while.
 *
 * A request takes a reference to the newest snapshot, which its response holds until it is sent. Handlers touch no
 * shared memory. Statistics are atomics with static storage: http_stats() works before the start and after the stop.
 */
#ifndef WIDEEP_HTTP_H
#define WIDEEP_HTTP_H

#include "family.h"

#define HTTP_SOCKETS_MAX 8
#define HTTP_ROUTES_MAX  16

/* Methods of a route; HEAD goes with GET. */
enum { HTTP_GET = 1, HTTP_POST = 2, HTTP_DELETE = 4 };

/* What a handler is asked. All of it lives until the handler returns. */
struct http_request {
    const char *method; /* "GET", "HEAD", "POST", "DELETE" */
    const char *path;   /* decoded, without the query; begins with / */
    const char *peer;   /* "127.0.0.1:4711", "[::1]:4711" or "unix", for the log */
    const char *user;   /* authenticated by password; NULL where none is asked for */
    void *connection;   /* the library's */
};

/* Value of a query argument; "" when it has none, NULL when it is absent. The first one counts. Handlers only. */
const char *http_argument(const struct http_request *request, const char *name);

/* The first query argument that is none of `known`, which ends with NULL; NULL: there is none. A misspelt one must not
 * pass for one that was left out. Handlers only. */
const char *http_unknown_argument(const struct http_request *request, const char *const *known);

/* Value of a header, its name in any case; NULL when it is absent. The first line of it counts. Handlers only. */
const char *http_header(const struct http_request *request, const char *name);

/* Filled by a handler. A handler that leaves it alone answers 500. */
struct http_reply {
    unsigned code;
    const char *content_type; /* a literal */
    char *body;               /* malloc'd and taken over; with `constant`, neither written to nor freed */
    size_t size;              /* bytes of body */
    bool constant;
};

/* text/plain with a copy of the text; without memory for it, an empty body. */
void http_reply_text(struct http_reply *reply, unsigned code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

struct http_route {
    const char *path;    /* begins with / */
    bool prefix;         /* all that begins with the path */
    unsigned methods;    /* HTTP_GET | HTTP_POST | HTTP_DELETE */
    const char *handler; /* one of self_handlers: the label in the exporter's own metrics */
    void (*handle)(void *context, const struct http_request *request, struct http_reply *reply); /* pool threads */
    void *context;
    bool limited; /* counts against max_requests */
    bool probe;   /* answers also above the rate limit: who is refused would take the engine for dead */
};

struct http_config {
    int sockets[HTTP_SOCKETS_MAX]; /* listening, non-blocking; taken over by http_start() in any case */
    unsigned socket_count;
    const char *telemetry_path; /* begins with /; by reference */
    uint64_t stale_ns;   /* age of the newest snapshot, or time without any, at which the collector counts as stuck */
    const char *version; /* for the page at /; by reference */
    const struct http_route *routes; /* beside the built-in ones, which win; by reference */
    unsigned route_count;            /* at most HTTP_ROUTES_MAX */
    unsigned max_requests;           /* that limited routes answer at once; 0: any number */
    const char *web_config_file;     /* exporter-toolkit's; NULL: plain HTTP without passwords; by reference */
};

struct http;

/* Returns 0 or a negative errno; a web configuration that cannot be used is logged and -EINVAL. Main thread. */
int http_start(struct http **ret, const struct http_config *config);

/* Reads the web configuration again and serves with it from now on. One that cannot be used is logged, and the old one
 * stays. Returns 0 or a negative errno; 0 without a file. Main thread. */
int http_reload(struct http *http);

/* Reloads if the web configuration, or a file that it names, has changed. Reads them all: every few seconds is often
 * enough. Main thread. */
void http_check_files(struct http *http);

/* Waits up to a second for requests under way to end, then closes all connections and the sockets. NULL is fine. Main
 * thread. */
void http_stop(struct http *http);

/* Since the start of the process. Any thread. */
void http_stats(struct http_stats *ret);

#endif

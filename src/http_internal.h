/*
 * What the two halves of the HTTP server share: http_server.c starts, reloads and stops, http.c answers requests.
 */
#ifndef WIDEEP_HTTP_INTERNAL_H
#define WIDEEP_HTTP_INTERNAL_H

#include "authenticator.h"
#include "connections.h"
#include "http.h"
#include "live.h"
#include "web_config.h"

#include <microhttpd.h>
#include <pthread.h>
#include <sys/socket.h>

/* A web configuration with the number of its users: the server that was started with it, and requests. */
struct web {
    struct web_config *config; /* NULL: plain HTTP, no passwords, no headers */
    uint64_t rate_ns;          /* when the requests answered so far are paid for, one an interval; atomic */
    int references;
};

/*
 * A daemon of the library. It is current, and gets all new connections, until another is; then it is retired, and
 * stopped when its last connection has gone. TLS is by the configuration that it was started with.
 */
struct server {
    struct http *http;
    struct MHD_Daemon *daemon;
    struct web *web;
    struct auth_owner passwords; /* being checked for its connections */
    struct server *next;         /* retired: the one that was retired before */
    uint64_t retired_ns;
    bool retired;    /* atomic */
    uint64_t handed; /* connections given to the library, which may drop one; acceptor's thread */
    uint64_t ended;  /* of those, the ones that it has closed; atomic */
};

struct http {
    struct http_config config;
    uint64_t started_ns; /* CLOCK_BOOTTIME */
    struct live live;
    struct connections *connections;
    struct acceptor *acceptor;
    struct authenticator *authenticator;
    unsigned limited;     /* requests of limited routes being answered; atomic */
    pthread_mutex_t lock; /* guards current, retired, web and the links of servers */
    struct server *current, *retired;
    struct web *web;                      /* the newest: passwords and headers are by it, on old connections too */
    uint64_t files_stamp;                 /* of the files of web when they were read; main thread, as the next two */
    uint64_t unpaired_ns;                 /* since when the certificate and the key on disk do not fit; 0: they do */
    char complaint[WEB_CONFIG_ERROR_MAX]; /* why the newest configuration is not in use; empty: it is */
};

/* With a reference for the caller. Any thread. */
struct web *web_acquire(struct http *http);
struct web *web_ref(struct web *web);
void web_release(struct web *web); /* NULL is fine */

/* Callbacks of the library; their context is the server. */
enum MHD_Result http_on_request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                                const char *version, const char *data, size_t *data_size, void **state);
void http_on_completed(void *context, struct MHD_Connection *connection, void **state,
                       enum MHD_RequestTerminationCode code);
void http_on_connection(void *context, struct MHD_Connection *connection, void **socket_context,
                        enum MHD_ConnectionNotificationCode code);
void *http_on_target(void *context, const char *target, struct MHD_Connection *connection);
size_t http_on_unescape(void *context, struct MHD_Connection *connection, char *text);

/* An answer with that many bytes of body. Any thread. */
void http_count_response(const char *handler, unsigned code, size_t bytes);

/* Requests being answered, of all servers. */
uint64_t http_in_flight(void);

/* The part of http_stats() that is about requests. */
void http_request_stats(struct http_stats *ret);

#endif

/*
 * http: serves snapshots over HTTP with libmicrohttpd, one daemon per listening socket.
 *
 * A request takes a reference to the newest snapshot, which its response holds until it is sent. Handlers touch no
 * shared memory. Statistics are atomics with static storage: http_stats() works before the start and after the stop.
 */
#ifndef WIDEEP_HTTP_H
#define WIDEEP_HTTP_H

#include "family.h"

#define HTTP_SOCKETS_MAX 8

struct http_config {
    int sockets[HTTP_SOCKETS_MAX]; /* listening; taken over by http_start() in any case */
    unsigned socket_count;
    const char *telemetry_path; /* begins with /; by reference */
    uint64_t stale_ns;   /* age of the newest snapshot, or time without any, at which the collector counts as stuck */
    const char *version; /* for the landing page; by reference */
};

struct http_stats {
    uint64_t requests[SELF_CODES]; /* by self_codes */
    uint64_t in_flight;
};

struct http;

/* Returns 0 or a negative errno. Main thread. */
int http_start(struct http **ret, const struct http_config *config);

/* Waits up to a second for requests under way to end, then closes all connections and the sockets. NULL is fine. Main
 * thread. */
void http_stop(struct http *http);

/* Any thread. */
void http_stats(struct http_stats *ret);

#endif

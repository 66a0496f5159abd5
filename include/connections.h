/*
 * connections: the table of open connections, with deadlines of our own.
 *
 * The HTTP library's timeout is one of inactivity, which a client evades with a byte a second, and at its limit of
 * connections it leaves new clients without an answer. So this table knows what each connection does:
 *
 *                  ┌──────────────── the next request ────────────────┐
 *                  ▼                                                  │
 *     add ─► RECEIVING ─── connection_answers() ─► ANSWERING ─── connection_rests() ─► RESTING
 *            a request, since it was               a response, since     nothing, since the kernel
 *            begun                                 it was queued         took the last response
 *
 * connections_reap() cuts what is past the deadline of its state, connections_make_room() what waits longest above a
 * high-water mark. To cut is to reset (SO_LINGER 0, or the kernel would keep a stalled reader's bytes) and to shut
 * down; the library then finds the connection dead, calls connections_remove() and closes the descriptor, in this
 * order. Both happen under the table's lock, so that a descriptor is never cut after it was closed and its number given
 * away.
 *
 * Any thread may call any function; a connection's own functions are called by the thread that serves it, one at a
 * time. Times are nanoseconds of one monotonic clock, and given by the caller.
 */
#ifndef WIDEEP_CONNECTIONS_H
#define WIDEEP_CONNECTIONS_H

#include "family.h"

struct connections_config {
    unsigned most;        /* connections that are wanted at most; above 7/8 of it, room is made */
    uint64_t request_ns;  /* to send a request whole, from its first byte or the beginning of the connection */
    uint64_t response_ns; /* to take a response whole */
    uint64_t idle_ns;     /* between a response and the next request */
};

struct connections;
struct connection;

/* NULL without memory. */
struct connections *connections_new(const struct connections_config *config);

/* All connections must have been removed. NULL is fine. */
void connections_free(struct connections *connections);

/* When *retired becomes true, which may be at any time and is read atomically, connections_reap() ends the connection
 * in order once nothing has been asked on it for some seconds. NULL without memory. */
struct connection *connections_add(struct connections *connections, int fd, const bool *retired, uint64_t now_ns);

/* Before the descriptor is closed. NULL is fine. */
void connections_remove(struct connections *connections, struct connection *connection);

void connection_answers(struct connections *connections, struct connection *connection, uint64_t now_ns);
void connection_rests(struct connections *connections, struct connection *connection, uint64_t now_ns);

/* Cuts what is past its deadline. Meant to be called about once a second. */
void connections_reap(struct connections *connections, uint64_t now_ns);

/* Whether there is room for another connection at all. */
bool connections_has_room(struct connections *connections);

/* Above the high-water mark, cuts some that are not being answered: of those that have waited longest, first those that
 * do not send their request, then those that are kept for later. To be called for each connection accepted, and when
 * there is no room. */
void connections_make_room(struct connections *connections, uint64_t now_ns);

/* The same whatever the mark, to free a descriptor. */
void connections_evict(struct connections *connections, uint64_t now_ns);

/* Of all tables: connections open now, and those cut since the start of the process, by cause. */
uint64_t connections_open(void);
void connections_cut_counts(uint64_t ret[HTTP_CUTS]);

#endif

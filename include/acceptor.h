/*
 * acceptor: one thread that owns the listening sockets, accepts, and hands connections over.
 *
 * With no descriptor or memory left it does not spin on a socket that stays readable: it says so, asks for room, and
 * leaves clients in the backlog for some milliseconds.
 */
#ifndef WIDEEP_ACCEPTOR_H
#define WIDEEP_ACCEPTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define ACCEPTOR_SOCKETS_MAX 8

/* All callbacks run in the acceptor's thread. */
struct acceptor_config {
    int sockets[ACCEPTOR_SOCKETS_MAX]; /* listening, non-blocking; the caller closes them after acceptor_stop() */
    unsigned socket_count;
    void *context;
    bool (*has_room)(void *context); /* before each connection: false leaves it in the backlog for now */
    void (*accepted)(void *context, int fd, const struct sockaddr *address, socklen_t length); /* takes fd over */
    void (*starved)(void *context); /* a connection could not be accepted: free a descriptor */
    void (*tick)(void *context);    /* about every tick_ms */
    unsigned tick_ms;
};

struct acceptor;

/* Returns 0 or a negative errno. */
int acceptor_start(struct acceptor **ret, const struct acceptor_config *config);

/* Waits for the thread to end. NULL is fine. */
void acceptor_stop(struct acceptor *acceptor);

/* Those accepted, and the times that one could not be, since the start of the process. Any thread. */
uint64_t acceptor_accepted(void);
uint64_t acceptor_starved(void);

#endif

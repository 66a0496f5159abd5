/*
 * listen: sockets to serve on. Pure functions but for the system calls.
 */
#ifndef WIDEEP_LISTEN_H
#define WIDEEP_LISTEN_H

#include <stddef.h>

/* Opens a bound, listening, non-blocking, close-on-exec socket for :PORT, HOST:PORT or [IPV6]:PORT. :PORT is both IPv6
 * and IPv4, or IPv4 alone where there is no IPv6. Port 0 lets the kernel choose. Returns 0, or a negative errno with
 * one line in `error` that says what to do. */
int listen_open(const char *address, int *ret_fd, char *error, size_t error_size);

/* HOST:PORT that a socket listens on, for messages. */
void listen_describe(int fd, char *ret, size_t size);

#endif

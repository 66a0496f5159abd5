/*
 * listen: sockets to serve on. Pure functions but for the system calls.
 */
#ifndef WIDEEP_LISTEN_H
#define WIDEEP_LISTEN_H

#include <stdbool.h>
#include <stddef.h>

/* Is it :PORT, HOST:PORT or [IPV6]:PORT with a port up to 65535, or unix:PATH[?mode=OCTAL]? Whether there is such a
 * host or directory is not asked. */
bool listen_address_valid(const char *address);

/* Mode of a unix socket's file unless the address says another. */
#define LISTEN_UNIX_MODE 0660

/* Opens a bound, listening, non-blocking, close-on-exec socket for such an address. :PORT is both IPv6 and IPv4, or
 * IPv4 alone where there is no IPv6. A unix socket's file that nobody listens on any more is replaced. Of a host with
 * several addresses it is the first, in the order of the resolver, that this machine can listen on. Port 0 lets the
 * kernel choose. Returns 0, or a negative errno with one line in `error` that says what to do. */
int listen_open(const char *address, int *ret_fd, char *error, size_t error_size);

/* The same for a list of the resolver's: goes on to the next address only where this machine does not have one, so that
 * a port that is taken is an error and not an exporter that listens elsewhere. `v6_only`: an IPv6 socket takes no IPv4.
 * Returns 0, or a negative errno. */
struct addrinfo;
int listen_first(const struct addrinfo *list, bool v6_only, int *ret_fd);

/* Removes the file of an address that listen_open() has opened, if it has one. Call it before the socket is closed:
 * afterwards the path may be another process's. */
void listen_remove(const char *address);

/* HOST:PORT or unix:PATH that a socket listens on, for messages. */
void listen_describe(int fd, char *ret, size_t size);

#endif

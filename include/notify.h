/*
 * notify: what systemd is told of the service, and the sockets that it hands over, with libsystemd.
 *
 * Everything here does nothing when the process was not started by a service manager that wants to know
 * ($NOTIFY_SOCKET, $WATCHDOG_USEC, $LISTEN_FDS). Main thread only.
 */
#ifndef WIDEEP_NOTIFY_H
#define WIDEEP_NOTIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The start, or a reload, is over. */
void notify_ready(void);

/* A reload begins: the manager takes notify_ready() after it for its end. */
void notify_reloading(void);

/* The process is about to end. */
void notify_stopping(void);

/* One line for people, in `systemctl status`. */
void notify_status(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* How often the manager wants a sign of life; 0: never. */
uint64_t notify_watchdog_ns(void);

/* The sign of life. */
void notify_alive(void);

/* Takes over the listening stream sockets that the manager passed to this process: non-blocking, closed on exec.
 * Returns how many, or a negative errno with one line in `error`: -ENOENT when there are none, -E2BIG when there are
 * more than `max`, -EINVAL when one is no listening stream socket. They are closed then. */
int notify_sockets(int *ret_fds, unsigned max, char *error, size_t size);

#endif

#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

void notify_ready(void)
{
    (void)sd_notify(0, "READY=1");
}

void notify_reloading(void)
{
    struct timespec now;

    /* The manager tells by the time which signal of its own this answers. */
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
                     (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000);
}

void notify_stopping(void)
{
    (void)sd_notify(0, "STOPPING=1\nSTATUS=stopping");
}

void notify_status(const char *format, ...)
{
    char text[256];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    (void)sd_notifyf(0, "STATUS=%s", text);
}

uint64_t notify_watchdog_ns(void)
{
    uint64_t usec = 0;

    return sd_watchdog_enabled(0, &usec) > 0 ? usec * 1000 : 0;
}

void notify_alive(void)
{
    (void)sd_notify(0, "WATCHDOG=1");
}

static int take_socket(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0)
        return -EINVAL;
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ? -errno : 0;
}

int notify_sockets(int *ret_fds, unsigned max, char *error, size_t size)
{
    /* Sets close-on-exec on them, and takes the variables out of the environment. */
    int count = sd_listen_fds(1), result = count;

    if (count <= 0) {
        (void)snprintf(error, size,
                       "--web.systemd-socket: systemd passed no socket; start it by its socket unit, or leave the flag "
                       "out");
        return -ENOENT;
    }
    if ((unsigned)count > max) {
        (void)snprintf(error, size, "--web.systemd-socket: systemd passed %d sockets, at most %u are served", count,
                       max);
        result = -E2BIG;
    }
    for (int i = 0; i < count && result > 0; i++)
        if (take_socket(SD_LISTEN_FDS_START + i) != 0) {
            (void)snprintf(error, size,
                           "--web.systemd-socket: descriptor %d is no listening stream socket; use ListenStream= and "
                           "Accept=no",
                           SD_LISTEN_FDS_START + i);
            result = -EINVAL;
        }
    for (int i = 0; i < count; i++)
        if (result > 0)
            ret_fds[i] = SD_LISTEN_FDS_START + i;
        else
            (void)close(SD_LISTEN_FDS_START + i);
    return result;
}

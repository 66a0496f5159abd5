#include "acceptor.h"

#include "log.h"
#include "wideep_shm.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MS               UINT64_C(1000000)
#define PAUSE_MS         20
#define COMPLAIN_NS      (60000 * MS)
#define ACCEPTS_PER_TURN 64 /* of one socket, before the others have theirs */

struct acceptor {
    struct acceptor_config config;
    int stop_fd; /* readable: end */
    pthread_t thread;
    bool paused;
    uint64_t complained_ns; /* 0: never */
};

static uint64_t accepted, starved;

uint64_t acceptor_accepted(void)
{
    return __atomic_load_n(&accepted, __ATOMIC_RELAXED);
}

uint64_t acceptor_starved(void)
{
    return __atomic_load_n(&starved, __ATOMIC_RELAXED);
}

static void starve(struct acceptor *acceptor, int error)
{
    const uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);

    (void)__atomic_add_fetch(&starved, 1, __ATOMIC_RELAXED);
    acceptor->paused = true;
    acceptor->config.starved(acceptor->config.context);
    if (acceptor->complained_ns != 0 && now_ns - acceptor->complained_ns < COMPLAIN_NS)
        return;
    acceptor->complained_ns = now_ns;
    log_warn("cannot accept connections; the oldest idle one is closed for each", "error", strerror(error), "advice",
             "raise the limit of open files (LimitNOFILE=)", NULL);
}

static void accept_some(struct acceptor *acceptor, int listener)
{
    const struct acceptor_config *config = &acceptor->config;

    for (unsigned i = 0; i < ACCEPTS_PER_TURN && !acceptor->paused; i++) {
        struct sockaddr_storage address;
        socklen_t length = sizeof address;
        if (!config->has_room(config->context)) {
            acceptor->paused = true;
            return;
        }
        int fd = accept4(listener, (struct sockaddr *)&address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            (void)__atomic_add_fetch(&accepted, 1, __ATOMIC_RELAXED);
            config->accepted(config->context, fd, (const struct sockaddr *)&address, length);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            starve(acceptor, errno);
        } else if (errno == EAGAIN) {
            return;
        } /* else the connection is gone, which says nothing of the next */
    }
}

static void *acceptor_main(void *argument)
{
    struct acceptor *acceptor = argument;
    const struct acceptor_config *config = &acceptor->config;
    struct pollfd polled[ACCEPTOR_SOCKETS_MAX + 1] = {{.fd = acceptor->stop_fd, .events = POLLIN}};
    uint64_t tick_ns = wideep_i_clock_ns(CLOCK_MONOTONIC) + config->tick_ms * MS;

    for (;;) {
        uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= tick_ns) {
            config->tick(config->context);
            tick_ns = now_ns + config->tick_ms * MS;
        }
        int wait_ms = acceptor->paused ? PAUSE_MS : (int)((tick_ns - now_ns) / MS + 1);
        for (unsigned i = 0; i < config->socket_count; i++)
            polled[i + 1] = (struct pollfd){.fd = acceptor->paused ? -1 : config->sockets[i], .events = POLLIN};
        int ready = poll(polled, config->socket_count + 1, wait_ms);
        acceptor->paused = false;
        if (ready > 0 && polled[0].revents != 0)
            return NULL;
        for (unsigned i = 0; ready > 0 && i < config->socket_count; i++)
            if (polled[i + 1].revents != 0)
                accept_some(acceptor, config->sockets[i]);
    }
}

int acceptor_start(struct acceptor **ret, const struct acceptor_config *config)
{
    struct acceptor *acceptor = calloc(1, sizeof *acceptor);

    if (!acceptor)
        return -ENOMEM;
    acceptor->config = *config;
    acceptor->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = acceptor->stop_fd < 0 ? -errno : -pthread_create(&acceptor->thread, NULL, acceptor_main, acceptor);
    if (error) {
        if (acceptor->stop_fd >= 0)
            (void)close(acceptor->stop_fd);
        free(acceptor);
        return error;
    }
    *ret = acceptor;
    return 0;
}

void acceptor_stop(struct acceptor *acceptor)
{
    if (!acceptor)
        return;
    (void)eventfd_write(acceptor->stop_fd, 1);
    (void)pthread_join(acceptor->thread, NULL);
    (void)close(acceptor->stop_fd);
    free(acceptor);
}

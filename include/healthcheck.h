/*
 * healthcheck: `wideep-exporter --healthcheck`, a probe for containers without a shell or curl.
 *
 * Connects to where a daemon with the same flags listens (its first address; all addresses of the host mean loopback),
 * by HTTP or, where a web configuration is given, by HTTPS, and asks /-/healthy. The certificate is not verified: the
 * question is who answers on this host. A daemon that wants a password or a client's certificate is alive.
 */
#ifndef WIDEEP_HEALTHCHECK_H
#define WIDEEP_HEALTHCHECK_H

#include <stdbool.h>
#include <stddef.h>

/* `address` as given to --web.listen-address; `may_be_tls`: a web configuration was given. Takes 3 s at most. Returns 0
 * when the daemon is alive and healthy, or a negative errno; one line in `ret` says what was found. */
int healthcheck(const char *address, bool may_be_tls, char *ret, size_t size);

#endif

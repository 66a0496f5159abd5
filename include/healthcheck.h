/*
 * healthcheck: `wideep-exporter --healthcheck`, a probe for containers without a shell or curl.
 *
 * Connects to where a daemon with the same flags listens (all addresses of the host mean loopback), by HTTP or, where a
 * web configuration is given, by HTTPS, and asks /-/healthy. The certificate is not verified: the question is who
 * answers on this host. A daemon that wants a password or a client's certificate is alive. Of several addresses, one
 * that gives a good answer is enough, as the daemon is the same behind all.
 */
#ifndef WIDEEP_HEALTHCHECK_H
#define WIDEEP_HEALTHCHECK_H

#include <stdbool.h>
#include <stddef.h>

/* `addresses`, at least one, as given to --web.listen-address; `may_be_tls`: a web configuration was given. Takes 3 s
 * at most, in equal shares. Returns 0 when the daemon is alive and healthy, or the last address's negative errno; one
 * line in `ret` says what was found, at each address unless one is healthy. */
int healthcheck(const char *const *addresses, unsigned count, bool may_be_tls, char *ret, size_t size);

#endif

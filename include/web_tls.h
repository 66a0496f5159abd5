/*
 * web_tls: what the web configuration says about TLS, in GnuTLS' terms.
 *
 * The file uses Go's names of protocols, cipher suites and curves. GnuTLS cannot be given suites: it takes key
 * exchanges, ciphers and MACs apart and allows all their combinations, in TLS 1.3 too. A list that would thereby allow
 * a suite that is not on it is refused, so what is allowed is never more than what was written. Any thread.
 */
#ifndef WIDEEP_WEB_TLS_H
#define WIDEEP_WEB_TLS_H

#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stddef.h>

/* Longest list of cipher suites or curves. */
#define WEB_TLS_LIST_MAX 64

enum web_tls_names { WEB_TLS_VERSIONS, WEB_TLS_SUITES, WEB_TLS_CURVES };

enum web_tls_version { WEB_TLS_10, WEB_TLS_11, WEB_TLS_12, WEB_TLS_13 };

struct web_tls_rules {
    unsigned min_version, max_version; /* enum web_tls_version */
    unsigned suites[WEB_TLS_LIST_MAX]; /* as web_tls_find() numbers them, best first */
    unsigned suite_count;              /* 0: a default, forward-secret suites alone */
    unsigned curves[WEB_TLS_LIST_MAX];
    unsigned curve_count; /* 0: all that are known */
    bool prefer_server;   /* this order wins over the client's */
};

/* Number of a name such as TLS12, or -1. */
int web_tls_find(enum web_tls_names names, const char *name);

/* The `index`th known name, NULL past the last. */
const char *web_tls_name(enum web_tls_names names, unsigned index);

/* Makes the priority string (malloc'd) for a server whose certificate has a key of that kind. Returns 0, or -EINVAL
 * or -ENOMEM with the reason in `error`. */
int web_tls_priorities(const struct web_tls_rules *rules, gnutls_pk_algorithm_t key, char **ret, char *error,
                       size_t size);

/* The parts of a server's identity that can be wrong by themselves. */
enum web_tls_part { WEB_TLS_CERTIFICATE, WEB_TLS_KEY };

/* Whether both PEM texts can be used and belong together. Returns 0 and the kind of key, or -EINVAL, -EKEYREJECTED for
 * two that do not belong together, or -ENOMEM, with the part that is at fault and the reason. */
int web_tls_check_pair(const char *cert_pem, const char *key_pem, gnutls_pk_algorithm_t *ret,
                       enum web_tls_part *ret_part, char *error, size_t size);

/* Whether a PEM text holds certificates of authorities. Returns 0, or -EINVAL or -ENOMEM with the reason. */
int web_tls_check_ca(const char *pem, char *error, size_t size);

#endif

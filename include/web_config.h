/*
 * web_config: the file given with --web.config.file: TLS, clients' certificates, passwords and extra response headers,
 * in the format of the Prometheus exporter-toolkit (https://github.com/prometheus/exporter-toolkit).
 *
 * A configuration is read whole (the file and all that it names) or not at all, and is never changed afterwards, so
 * any number of threads may use one at once. Reloading is loading another and freeing the old one when nobody uses it
 * any more; `fingerprint` says whether anything is new. A file that is empty or holds only comments is valid: no TLS,
 * no passwords.
 *
 * The private key is wiped when the configuration is freed.
 */
#ifndef WIDEEP_WEB_CONFIG_H
#define WIDEEP_WEB_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Long enough for every message of web_config_load(), long paths apart, which are cut. */
#define WEB_CONFIG_ERROR_MAX 1024

enum {
    WEB_CONFIG_USERS_MAX = 1000,
    WEB_CONFIG_SANS_MAX = 1000,
};

/* What is asked of a client that connects with TLS: exporter-toolkit's client_auth_type. */
enum web_client_auth {
    WEB_CLIENT_NONE,              /* no certificate is asked for */
    WEB_CLIENT_REQUEST,           /* asked for, neither required nor verified */
    WEB_CLIENT_REQUIRE_ANY,       /* required, not verified */
    WEB_CLIENT_VERIFY_IF_GIVEN,   /* may be absent; one that is sent must be signed by the client CA */
    WEB_CLIENT_REQUIRE_AND_VERIFY /* required and signed by the client CA */
};

struct web_user {
    char *name;
    char *hash; /* bcrypt, checked to be well-formed */
};

struct web_header {
    char *name;
    char *value; /* printable ASCII, not empty */
};

/* Read-only for all but web_config_load() and web_config_free(). */
struct web_config {
    bool tls; /* whether to serve TLS; without it all that follows up to `priorities` is unset */
    /* As given, relative ones made to begin at the file's directory. NULL: inline, or none. */
    char *cert_file, *key_file, *client_ca_file;
    /* Their contents, NUL-terminated. With `tls` there always are a certificate and a key. */
    char *cert_pem, *key_pem, *client_ca_pem;
    enum web_client_auth client_auth; /* the two that verify come with a client_ca_pem */
    /* One of these must be among the names of a client's certificate. None: any name will do. Not none only where a
     * certificate is required. */
    char **client_sans;
    unsigned client_san_count;
    char *priorities; /* GnuTLS priority string that gnutls_priority_init() has accepted */
    mode_t key_mode;  /* of the file that the private key was read from */

    bool http2;                 /* accepted for compatibility, without effect: HTTP/1.1 only */
    struct web_header *headers; /* for every response; those given empty are left out, which is what empty means */
    unsigned header_count;

    /* One request in so long, and so many at once after a pause (at least 1). 0: no limit. */
    uint64_t rate_interval_ns;
    uint32_t rate_burst;

    struct web_user *users; /* none: no password is asked for */
    unsigned user_count;
    struct web_auth *auth; /* web_config_authenticate()'s own */

    uint64_t fingerprint; /* of the file, certificate, key and client CA as read: differs when one of them changed */
};

/* Reads and checks everything: the file's syntax, keys and values, that certificate and key fit together, that GnuTLS
 * knows the protocols and ciphers. Returns 0, or a negative errno with one line in `error`, "FILE:LINE: what is wrong;
 * what to do", and *ret untouched: -EINVAL for what is written in a file, -EKEYREJECTED for a certificate and a key
 * that do not belong together, which may still be on their way, -EFBIG for a file that is too large, else why a file
 * could not be read. Any thread. */
int web_config_load(struct web_config **ret, const char *path, char *error, size_t size);

/* Logs what is unwise in a configuration that was read from `path`: a key that group or others may read, passwords that
 * take seconds to check. What was the same in `before` (NULL: there was none) has been said already. Any thread. */
void web_config_warn(const struct web_config *config, const struct web_config *before, const char *path);

/* "not asked for", "required and verified", … */
const char *web_client_auth_text(enum web_client_auth asked);

/* NULL is allowed. */
void web_config_free(struct web_config *config);

/* Whether `user` with `password` (both NUL-terminated) is one of config->users. An unknown user takes as long as a
 * known one with a wrong password, so that names cannot be found out by the clock. The first success of a user and
 * password costs one bcrypt computation (70 ms at cost 10), later ones are answered from a cache. Computations take
 * turns, so a caller may wait for those of others; a cached success never waits. Any thread. */
bool web_config_authenticate(const struct web_config *config, const char *user, const char *password);

/* Whether that would be answered from the cache, true if it is a success: never computes, never waits. A server whose
 * threads serve many connections asks this first, and leaves the rest to a thread that may wait. Any thread. */
bool web_config_authenticated_before(const struct web_config *config, const char *user, const char *password);

/* Takes over the remembered successes of users whose password is the same in the configuration that is replaced. Before
 * `config` is used by another thread. */
void web_config_remember(struct web_config *config, const struct web_config *before);

/* Of `users`, the one that this is, from 0; -1: none. Any thread. */
int web_config_user(const struct web_config *config, const char *user);

struct gnutls_session_int; /* gnutls_session_t points to it */

/* Whether the client of an established TLS session has shown the certificate that the configuration asks for: present
 * if it must be, signed by the client CA, valid now and meant for clients if it is to be verified, with an allowed
 * name. The session's credentials must trust client_ca_pem. Asking for a certificate in the handshake makes no client
 * send one, so this must be called before anything is served. On false the reason is in `error`. Any thread. */
bool web_config_client_allowed(const struct web_config *config, struct gnutls_session_int *session, char *error,
                               size_t size);

#endif

#include "web_tls.h"

#include "web_config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/x509.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Room for a priority string of every known name. */
#define PRIORITIES_MAX 1024

static const char *const version_names[] = {"TLS10", "TLS11", "TLS12", "TLS13"};
static const char *const gnutls_versions[] = {"VERS-TLS1.0", "VERS-TLS1.1", "VERS-TLS1.2", "VERS-TLS1.3"};

static const struct {
    const char *name, *group;
} curves[] = {{"X25519", "GROUP-X25519"},
              {"CurveP256", "GROUP-SECP256R1"},
              {"CurveP384", "GROUP-SECP384R1"},
              {"CurveP521", "GROUP-SECP521R1"}};

/* Those that Go calls secure, now or in earlier versions, in the order of the default. */
static const struct suite {
    const char *name;
    gnutls_kx_algorithm_t exchange; /* UNKNOWN: TLS 1.3, which settles it apart */
    gnutls_cipher_algorithm_t cipher;
    gnutls_mac_algorithm_t mac;
} suites[] = {
    {"TLS_AES_128_GCM_SHA256", GNUTLS_KX_UNKNOWN, GNUTLS_CIPHER_AES_128_GCM, GNUTLS_MAC_AEAD},
    {"TLS_AES_256_GCM_SHA384", GNUTLS_KX_UNKNOWN, GNUTLS_CIPHER_AES_256_GCM, GNUTLS_MAC_AEAD},
    {"TLS_CHACHA20_POLY1305_SHA256", GNUTLS_KX_UNKNOWN, GNUTLS_CIPHER_CHACHA20_POLY1305, GNUTLS_MAC_AEAD},
    {"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", GNUTLS_KX_ECDHE_ECDSA, GNUTLS_CIPHER_AES_128_GCM, GNUTLS_MAC_AEAD},
    {"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", GNUTLS_KX_ECDHE_RSA, GNUTLS_CIPHER_AES_128_GCM, GNUTLS_MAC_AEAD},
    {"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", GNUTLS_KX_ECDHE_ECDSA, GNUTLS_CIPHER_AES_256_GCM, GNUTLS_MAC_AEAD},
    {"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", GNUTLS_KX_ECDHE_RSA, GNUTLS_CIPHER_AES_256_GCM, GNUTLS_MAC_AEAD},
    {"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", GNUTLS_KX_ECDHE_ECDSA, GNUTLS_CIPHER_CHACHA20_POLY1305,
     GNUTLS_MAC_AEAD},
    {"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", GNUTLS_KX_ECDHE_RSA, GNUTLS_CIPHER_CHACHA20_POLY1305,
     GNUTLS_MAC_AEAD},
    {"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", GNUTLS_KX_ECDHE_ECDSA, GNUTLS_CIPHER_AES_128_CBC, GNUTLS_MAC_SHA1},
    {"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", GNUTLS_KX_ECDHE_RSA, GNUTLS_CIPHER_AES_128_CBC, GNUTLS_MAC_SHA1},
    {"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", GNUTLS_KX_ECDHE_ECDSA, GNUTLS_CIPHER_AES_256_CBC, GNUTLS_MAC_SHA1},
    {"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", GNUTLS_KX_ECDHE_RSA, GNUTLS_CIPHER_AES_256_CBC, GNUTLS_MAC_SHA1},
    {"TLS_RSA_WITH_AES_128_GCM_SHA256", GNUTLS_KX_RSA, GNUTLS_CIPHER_AES_128_GCM, GNUTLS_MAC_AEAD},
    {"TLS_RSA_WITH_AES_256_GCM_SHA384", GNUTLS_KX_RSA, GNUTLS_CIPHER_AES_256_GCM, GNUTLS_MAC_AEAD},
    {"TLS_RSA_WITH_AES_128_CBC_SHA", GNUTLS_KX_RSA, GNUTLS_CIPHER_AES_128_CBC, GNUTLS_MAC_SHA1},
    {"TLS_RSA_WITH_AES_256_CBC_SHA", GNUTLS_KX_RSA, GNUTLS_CIPHER_AES_256_CBC, GNUTLS_MAC_SHA1},
};

const char *web_tls_name(enum web_tls_names names, unsigned index)
{
    switch (names) {
    case WEB_TLS_VERSIONS: return index < COUNT(version_names) ? version_names[index] : NULL;
    case WEB_TLS_SUITES: return index < COUNT(suites) ? suites[index].name : NULL;
    default: return index < COUNT(curves) ? curves[index].name : NULL;
    }
}

int web_tls_find(enum web_tls_names names, const char *name)
{
    const char *known;

    for (unsigned i = 0; (known = web_tls_name(names, i)) != NULL; i++)
        if (strcmp(known, name) == 0)
            return (int)i;
    return -1;
}

/* GnuTLS' own text, which ends with a full stop in places. */
static const char *reason(int failed, char ret[100])
{
    if (failed == GNUTLS_E_NO_CERTIFICATE_FOUND)
        return "none found";
    (void)snprintf(ret, 100, "%s", gnutls_strerror(failed));
    size_t length = strlen(ret);
    if (length > 0 && ret[length - 1] == '.')
        ret[length - 1] = 0;
    return ret;
}

/* ---- priorities --------------------------------------------------------------------------------------------- */

struct plan {
    const struct suite *suites[WEB_TLS_LIST_MAX]; /* those that the certificate can be used with */
    unsigned suite_count;
    unsigned min_version, max_version;
    char text[PRIORITIES_MAX];
};

static int complain(int result, char *error, size_t size, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int complain(int result, char *error, size_t size, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(error, size, format, arguments);
    va_end(arguments);
    return result;
}

static bool suits_key(const struct suite *suite, gnutls_pk_algorithm_t key)
{
    switch (suite->exchange) {
    case GNUTLS_KX_UNKNOWN: return true;
    case GNUTLS_KX_RSA: return key == GNUTLS_PK_RSA;
    case GNUTLS_KX_ECDHE_RSA: return key == GNUTLS_PK_RSA || key == GNUTLS_PK_RSA_PSS;
    default: return key != GNUTLS_PK_RSA && key != GNUTLS_PK_RSA_PSS;
    }
}

/* Those without a list: forward secrecy, and authenticated encryption where the protocols have it. */
static bool is_default(const struct suite *suite, unsigned min_version)
{
    return suite->exchange != GNUTLS_KX_RSA && (suite->mac == GNUTLS_MAC_AEAD || min_version < WEB_TLS_12);
}

static void plan_suites(struct plan *plan, const struct web_tls_rules *rules, gnutls_pk_algorithm_t key)
{
    for (unsigned i = 0; i < rules->suite_count; i++)
        if (suits_key(&suites[rules->suites[i]], key))
            plan->suites[plan->suite_count++] = &suites[rules->suites[i]];
    for (unsigned i = 0; i < COUNT(suites) && rules->suite_count == 0; i++)
        if (suits_key(&suites[i], key) && is_default(&suites[i], rules->min_version))
            plan->suites[plan->suite_count++] = &suites[i];
}

/* Leaves out a protocol for which no suite is left: GnuTLS would agree on it with a client, and then fail. */
static int plan_versions(struct plan *plan, const struct web_tls_rules *rules, char *error, size_t size)
{
    bool any_13 = false, any_12 = false, any_older = false;

    for (unsigned i = 0; i < plan->suite_count; i++) {
        any_13 |= plan->suites[i]->mac == GNUTLS_MAC_AEAD;
        any_12 |= plan->suites[i]->exchange != GNUTLS_KX_UNKNOWN;
        any_older |= plan->suites[i]->mac != GNUTLS_MAC_AEAD;
    }
    plan->min_version = rules->min_version;
    plan->max_version = rules->max_version;
    if (plan->max_version == WEB_TLS_13 && !any_13)
        plan->max_version = WEB_TLS_12;
    if (plan->min_version < WEB_TLS_12 && !any_older)
        plan->min_version = WEB_TLS_12;
    if (plan->min_version < WEB_TLS_13 && !any_12)
        plan->min_version = WEB_TLS_13;
    if (plan->min_version > plan->max_version)
        return complain(-EINVAL, error, size,
                        "no suite of the list can be used with this certificate and %s to %s; add one that can",
                        version_names[rules->min_version], version_names[rules->max_version]);
    return 0;
}

static void add(struct plan *plan, const char *sign, const char *name)
{
    size_t used = strlen(plan->text);

    (void)snprintf(plan->text + used, sizeof plan->text - used, "%s%s", sign, name);
}

/* Each name once: GnuTLS keeps the place of its first mention. */
static void add_once(struct plan *plan, const char *name)
{
    char item[64];
    size_t length = (size_t)snprintf(item, sizeof item, ":+%s", name);

    for (const char *found = plan->text; (found = strstr(found, item)) != NULL; found += length)
        if (found[length] == 0 || found[length] == ':')
            return;
    add(plan, item, "");
}

static void write_priorities(struct plan *plan, const struct web_tls_rules *rules)
{
    add(plan, "NORMAL:-VERS-ALL:-KX-ALL:-CIPHER-ALL:-MAC-ALL:-GROUP-ALL", "");
    for (unsigned version = plan->max_version + 1; version-- > plan->min_version;)
        add_once(plan, gnutls_versions[version]);
    for (unsigned i = 0; i < plan->suite_count; i++) {
        if (plan->suites[i]->exchange != GNUTLS_KX_UNKNOWN)
            add_once(plan, gnutls_kx_get_name(plan->suites[i]->exchange));
        add_once(plan, gnutls_cipher_get_name(plan->suites[i]->cipher));
        add_once(plan, gnutls_mac_get_name(plan->suites[i]->mac));
    }
    for (unsigned i = 0; i < rules->curve_count; i++)
        add_once(plan, curves[rules->curves[i]].group);
    for (unsigned i = 0; i < COUNT(curves) && rules->curve_count == 0; i++)
        add_once(plan, curves[i].group);
    if (rules->prefer_server)
        add(plan, ":%", "SERVER_PRECEDENCE");
}

static bool is_planned(const struct plan *plan, const struct suite *suite)
{
    for (unsigned i = 0; i < plan->suite_count; i++)
        if (plan->suites[i] == suite)
            return true;
    return false;
}

static const struct suite *find_combination(gnutls_kx_algorithm_t exchange, gnutls_cipher_algorithm_t cipher,
                                            gnutls_mac_algorithm_t mac)
{
    for (unsigned i = 0; i < COUNT(suites); i++)
        if (suites[i].exchange == exchange && suites[i].cipher == cipher && suites[i].mac == mac)
            return &suites[i];
    return NULL;
}

/* Goes through what GnuTLS makes of the string, rather than through what we think that it makes of it. */
static int check_combinations(const struct plan *plan, gnutls_priority_t priorities, char *error, size_t size)
{
    unsigned index;

    for (unsigned i = 0;; i++) {
        gnutls_kx_algorithm_t exchange;
        gnutls_cipher_algorithm_t cipher;
        gnutls_mac_algorithm_t mac;
        gnutls_protocol_t lowest;
        int found = gnutls_priority_get_cipher_suite_index(priorities, i, &index);
        if (found == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
            return 0;
        if (found != 0)
            continue; /* a combination that no protocol has a suite for */
        const char *name = gnutls_cipher_suite_info(index, NULL, &exchange, &cipher, &mac, &lowest);
        if (!name || lowest == GNUTLS_TLS1_3 || plan->min_version == WEB_TLS_13)
            continue;
        const struct suite *suite = find_combination(exchange, cipher, mac);
        if (!suite || !is_planned(plan, suite))
            return complain(-EINVAL, error, size,
                            "GnuTLS takes combinations, so this list would allow %s too; add it, or shorten the list",
                            suite ? suite->name : name);
    }
}

int web_tls_priorities(const struct web_tls_rules *rules, gnutls_pk_algorithm_t key, char **ret, char *error,
                       size_t size)
{
    struct plan plan = {.suite_count = 0};
    gnutls_priority_t priorities;
    const char *position = NULL;
    char text[100];

    plan_suites(&plan, rules, key);
    int result = plan_versions(&plan, rules, error, size);
    if (result != 0)
        return result;
    write_priorities(&plan, rules);
    int failed = gnutls_priority_init2(&priorities, plan.text, &position, 0);
    if (failed != 0)
        return complain(failed == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL, error, size,
                        "GnuTLS refuses it at '%.60s': %s; choose other versions, suites or curves",
                        position ? position : plan.text, reason(failed, text));
    result = check_combinations(&plan, priorities, error, size);
    gnutls_priority_deinit(priorities);
    if (result != 0)
        return result;
    char *copy = strdup(plan.text);
    if (!copy)
        return complain(-ENOMEM, error, size, "not enough memory");
    *ret = copy;
    return 0;
}

/* ---- certificates ------------------------------------------------------------------------------------------- */

static int import_first(const char *pem, gnutls_pk_algorithm_t *ret, char *error, size_t size)
{
    const gnutls_datum_t data = {(unsigned char *)pem, (unsigned)strlen(pem)};
    gnutls_x509_crt_t *list;
    unsigned count;
    char text[100];

    int failed = gnutls_x509_crt_list_import2(&list, &count, &data, GNUTLS_X509_FMT_PEM, 0);
    if (failed < 0)
        return complain(failed == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL, error, size,
                        "no usable certificate: %s; give PEM, beginning with -----BEGIN CERTIFICATE-----",
                        reason(failed, text));
    *ret = (gnutls_pk_algorithm_t)gnutls_x509_crt_get_pk_algorithm(list[0], NULL);
    for (unsigned i = 0; i < count; i++)
        gnutls_x509_crt_deinit(list[i]);
    gnutls_free(list);
    return 0;
}

static int describe_key_failure(int failed, char *error, size_t size)
{
    switch (failed) {
    case GNUTLS_E_CERTIFICATE_KEY_MISMATCH:
        return complain(-EKEYREJECTED, error, size,
                        "it does not belong to the certificate; give the key that it was made with");
    case GNUTLS_E_DECRYPTION_FAILED:
        return complain(-EINVAL, error, size, "it is encrypted; decrypt it with: openssl pkey -in FILE -out NEW");
    case GNUTLS_E_MEMORY_ERROR: return complain(-ENOMEM, error, size, "not enough memory");
    default: /* GnuTLS tries several formats, so what it says last is of no use */
        return complain(-EINVAL, error, size, "no usable private key; give PEM, with -----BEGIN PRIVATE KEY-----");
    }
}

int web_tls_check_pair(const char *cert_pem, const char *key_pem, gnutls_pk_algorithm_t *ret,
                       enum web_tls_part *ret_part, char *error, size_t size)
{
    const gnutls_datum_t cert = {(unsigned char *)cert_pem, (unsigned)strlen(cert_pem)};
    const gnutls_datum_t key = {(unsigned char *)key_pem, (unsigned)strlen(key_pem)};
    gnutls_certificate_credentials_t credentials;

    *ret_part = WEB_TLS_CERTIFICATE;
    int result = import_first(cert_pem, ret, error, size);
    if (result != 0)
        return result;
    if (gnutls_certificate_allocate_credentials(&credentials) != 0)
        return complain(-ENOMEM, error, size, "not enough memory");
    *ret_part = WEB_TLS_KEY;
    int failed = gnutls_certificate_set_x509_key_mem(credentials, &cert, &key, GNUTLS_X509_FMT_PEM);
    gnutls_certificate_free_credentials(credentials);
    return failed < 0 ? describe_key_failure(failed, error, size) : 0;
}

int web_tls_check_ca(const char *pem, char *error, size_t size)
{
    const gnutls_datum_t data = {(unsigned char *)pem, (unsigned)strlen(pem)};
    gnutls_certificate_credentials_t credentials;
    char text[100];

    if (gnutls_certificate_allocate_credentials(&credentials) != 0)
        return complain(-ENOMEM, error, size, "not enough memory");
    int count = gnutls_certificate_set_x509_trust_mem(credentials, &data, GNUTLS_X509_FMT_PEM);
    gnutls_certificate_free_credentials(credentials);
    if (count > 0)
        return 0;
    return complain(count == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL, error, size,
                    "no usable certificate: %s; give PEM, beginning with -----BEGIN CERTIFICATE-----",
                    count == 0 ? "none found" : reason(count, text));
}

/* ---- clients ------------------------------------------------------------------------------------------------ */

static bool verify_chain(gnutls_session_t session, char *error, size_t size)
{
    gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                     .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
    gnutls_datum_t text;
    unsigned status;

    int failed = gnutls_certificate_verify_peers(session, &purpose, 1, &status);
    if (failed == 0 && status == 0)
        return true;
    if (failed == 0 && gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) == 0) {
        (void)complain(0, error, size, "%s", (const char *)text.data);
        gnutls_free(text.data);
        /* Each of its sentences ends with a space. */
        for (size_t length = strlen(error); length > 0 && error[length - 1] == ' ';)
            error[--length] = 0;
    } else {
        (void)complain(0, error, size, "%s", failed ? gnutls_strerror(failed) : "not trusted");
    }
    return false;
}

static bool is_listed(const struct web_config *config, const char *name, size_t length)
{
    for (unsigned i = 0; i < config->client_san_count; i++)
        if (strlen(config->client_sans[i]) == length && memcmp(config->client_sans[i], name, length) == 0)
            return true;
    return false;
}

/* Addresses are bytes in a certificate and text in the file. */
static bool is_address_listed(const struct web_config *config, const void *bytes, size_t length)
{
    char text[INET6_ADDRSTRLEN];

    if (length != sizeof(struct in_addr) && length != sizeof(struct in6_addr))
        return false;
    if (!inet_ntop(length == sizeof(struct in_addr) ? AF_INET : AF_INET6, bytes, text, sizeof text))
        return false;
    return is_listed(config, text, strlen(text));
}

static bool has_listed_name(const struct web_config *config, gnutls_x509_crt_t certificate)
{
    for (unsigned i = 0;; i++) {
        char name[1024];
        size_t length = sizeof name;
        int type = gnutls_x509_crt_get_subject_alt_name(certificate, i, name, &length, NULL);
        if (type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
            return false;
        bool listed = false;
        if (type == GNUTLS_SAN_DNSNAME || type == GNUTLS_SAN_RFC822NAME || type == GNUTLS_SAN_URI)
            listed = is_listed(config, name, length);
        else if (type == GNUTLS_SAN_IPADDRESS)
            listed = is_address_listed(config, name, length);
        else if (type < 0 && type != GNUTLS_E_SHORT_MEMORY_BUFFER)
            return false;
        if (listed)
            return true;
    }
}

static bool check_names(const struct web_config *config, const gnutls_datum_t *peer, char *error, size_t size)
{
    gnutls_x509_crt_t certificate;

    if (gnutls_x509_crt_init(&certificate) != 0)
        return complain(false, error, size, "not enough memory");
    bool listed =
        gnutls_x509_crt_import(certificate, peer, GNUTLS_X509_FMT_DER) == 0 && has_listed_name(config, certificate);
    gnutls_x509_crt_deinit(certificate);
    if (!listed)
        (void)complain(0, error, size, "none of its names is in client_allowed_sans");
    return listed;
}

bool web_config_client_allowed(const struct web_config *config, gnutls_session_t session, char *error, size_t size)
{
    const enum web_client_auth asked = config->client_auth;
    unsigned count = 0;

    if (!config->tls || asked == WEB_CLIENT_NONE)
        return true;
    const gnutls_datum_t *peers = gnutls_certificate_get_peers(session, &count);
    if (!peers || count == 0) {
        (void)complain(0, error, size, "none was sent");
        return asked == WEB_CLIENT_REQUEST || asked == WEB_CLIENT_VERIFY_IF_GIVEN;
    }
    if ((asked == WEB_CLIENT_VERIFY_IF_GIVEN || asked == WEB_CLIENT_REQUIRE_AND_VERIFY) &&
        !verify_chain(session, error, size))
        return false;
    return config->client_san_count == 0 || check_names(config, &peers[0], error, size);
}

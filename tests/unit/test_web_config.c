/* The web configuration: what a file becomes, passwords, and clients' certificates in real handshakes. */
#include "text.h"
#include "web_auth.h"
#include "web_config.h"
#include "suite.h"

#include <crypt.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TLS "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"

static char directory[] = "/tmp/wideep-web-config-XXXXXX";
static char path[100];
static char error[WEB_CONFIG_ERROR_MAX];
static struct web_config *config;

static void run(const char *command)
{
    char line[1000];
    (void)snprintf(line, sizeof line, "cd %s && (%s) >log 2>&1", directory, command);
    ck_assert_msg(system(line) == 0, "%s", line);
}

/* A key and a certificate of it, signed by `ca` or by itself. */
static void certificate(const char *name, const char *ca, const char *extensions, int days)
{
    char line[900];
    (void)snprintf(line, sizeof line,
                   "printf '%s' >%s.ext && openssl ecparam -name prime256v1 -genkey -noout -out %s.key && "
                   "openssl req -new -key %s.key -subj /CN=%s -out %s.csr && "
                   "openssl x509 -req -in %s.csr -days %d -extfile %s.ext -out %s.crt %s%s%s%s%s",
                   extensions, name, name, name, name, name, name, days, name, name, ca ? "-CAcreateserial -CA " : "",
                   ca ? ca : "-signkey ", ca ? ".crt -CAkey " : "", ca ? ca : name, ".key");
    run(line);
    (void)snprintf(line, sizeof line, "chmod 600 %s.key", name);
    run(line);
}

/* Once for all tests: the keys take their time. */
static void make_certificates(void)
{
    ck_assert_ptr_nonnull(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/web.yml", directory);
    certificate("ca", NULL, "basicConstraints=critical,CA:TRUE\\n", 2);
    certificate("other-ca", NULL, "basicConstraints=critical,CA:TRUE\\n", 2);
    certificate("server", "ca", "subjectAltName=DNS:localhost\\n", 2);
    certificate("client", "ca",
                "extendedKeyUsage=clientAuth\\nsubjectAltName=DNS:scraper.example.org,IP:10.0.0.7,IP:fd00::1,"
                "URI:spiffe://x/y,email:a@example.org\\n",
                2);
    certificate("nameless", "ca", "extendedKeyUsage=clientAuth\\n", 2);
    certificate("server-only", "ca", "extendedKeyUsage=serverAuth\\n", 2);
    certificate("stranger", "other-ca", "extendedKeyUsage=clientAuth\\n", 2);
    certificate("self-signed", NULL, "subjectAltName=DNS:scraper.example.org\\n", 2);
    certificate("expired", "ca", "extendedKeyUsage=clientAuth\\n", -1);
}

static void remove_certificates(void)
{
    char line[100];
    (void)snprintf(line, sizeof line, "rm -r %s", directory);
    ck_assert_int_eq(system(line), 0);
}

static void setup(void)
{
    config = NULL;
}

static void teardown(void)
{
    web_config_free(config);
}

static void write_file(const char *name, const char *text)
{
    char full[200];
    (void)snprintf(full, sizeof full, "%s/%s", directory, name);
    FILE *file = fopen(full, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fputs(text, file), 0);
    ck_assert_int_eq(fclose(file), 0);
}

static int load(const char *text)
{
    write_file("web.yml", text);
    web_config_free(config);
    config = NULL;
    return web_config_load(&config, path, error, sizeof error);
}

static void load_good(const char *text)
{
    int result = load(text);
    ck_assert_msg(result == 0, "%s", error);
}

/* ---- the file ------------------------------------------------------------------------------------------------ */

START_TEST(empty)
{
    static const char *const texts[] = {"",
                                        "\n\n",
                                        "# nothing\n",
                                        "---\n",
                                        "~\n",
                                        "tls_server_config:\n",
                                        "basic_auth_users: {}\nhttp_server_config:\n  headers: {}\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        load_good(texts[i]);
        ck_assert(!config->tls && config->http2);
        ck_assert_uint_eq(config->user_count + config->header_count + config->client_san_count, 0);
        ck_assert_ptr_null(config->priorities);
        ck_assert(!web_config_authenticate(config, "", ""));
    }
    web_config_free(NULL);
}
END_TEST

START_TEST(everything)
{
    char expected[200];
    load_good(TLS "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
                  "  client_allowed_sans: [a.example.org, b]\n"
                  "http_server_config: {http2: off, headers: {X-Frame-Options: deny, Content-Security-Policy: x 'y'}}\n"
                  "basic_auth_users:\n"
                  "  alice: $2b$04$abcdefghijklmnopqrstuuXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX\n");
    ck_assert(config->tls && !config->http2);
    (void)snprintf(expected, sizeof expected, "%s/server.crt", directory);
    ck_assert_str_eq(config->cert_file, expected);
    (void)snprintf(expected, sizeof expected, "%s/ca.crt", directory);
    ck_assert_str_eq(config->client_ca_file, expected);
    ck_assert_ptr_nonnull(strstr(config->cert_pem, "-----BEGIN CERTIFICATE-----"));
    ck_assert_ptr_nonnull(strstr(config->key_pem, "PRIVATE KEY-----"));
    ck_assert_ptr_nonnull(strstr(config->client_ca_pem, "-----END CERTIFICATE-----"));
    ck_assert_int_eq(config->client_auth, WEB_CLIENT_REQUIRE_AND_VERIFY);
    ck_assert_uint_eq(config->client_san_count, 2);
    ck_assert_str_eq(config->client_sans[1], "b");
    ck_assert_uint_eq(config->header_count, 2);
    ck_assert_str_eq(config->headers[1].name, "Content-Security-Policy");
    ck_assert_str_eq(config->headers[1].value, "x 'y'");
    ck_assert_uint_eq(config->user_count, 1);
    ck_assert_str_eq(config->users[0].name, "alice");
}
END_TEST

START_TEST(absolute_paths_stay)
{
    char text[500];
    (void)snprintf(text, sizeof text, "tls_server_config: {cert_file: %s/server.crt, key_file: ./server.key}\n",
                   directory);
    load_good(text);
    ck_assert_ptr_eq(strstr(config->cert_file, "/tmp/wideep-web-config-"), config->cert_file);
    ck_assert_ptr_nonnull(strstr(config->key_file, "/./server.key"));
}
END_TEST

START_TEST(failure_leaves_the_result)
{
    struct web_config *untouched = (struct web_config *)&path;
    write_file("web.yml", "nonsense: 1\n");
    ck_assert_int_eq(web_config_load(&untouched, path, error, sizeof error), -EINVAL);
    ck_assert_ptr_eq(untouched, (void *)&path);
    ck_assert_int_eq(web_config_load(&untouched, "/nonexistent/web.yml", error, sizeof error), -ENOENT);
    ck_assert_ptr_eq(untouched, (void *)&path);
    ck_assert_int_eq(load("tls_server_config: {cert_file: none, key_file: none}\n"), -ENOENT);
}
END_TEST

/* One line that begins with the place, however small the room. */
START_TEST(messages_fit)
{
    write_file("web.yml", "\"a\\nb\\eccccccccccc\": 1\n");
    for (size_t size = 1; size < 200; size++) {
        char *small = malloc(size);
        ck_assert_ptr_nonnull(small);
        ck_assert_int_eq(web_config_load(&config, path, small, size), -EINVAL);
        ck_assert_uint_lt(strlen(small), size);
        ck_assert_ptr_null(strpbrk(small, "\n\x1b"));
        free(small);
    }
    ck_assert_int_eq(load("\n\n\"a\\nb\\ec\": 1\n"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "web.yml:3: the file: key 'a?b?c' is unknown; "));
}
END_TEST

/* Noise, and a good file with each of its bytes changed: an error or a configuration, no more. */
START_TEST(noise)
{
    char text[300];
    unsigned seed = 7;
    for (int round = 0; round < 3000; round++) {
        (void)snprintf(text, sizeof text,
                       "http_server_config: {headers: {X-Frame-Options: deny}}\n"
                       "basic_auth_users:\n  a: $2b$04$abcdefghijklmnopqrstuuXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX\n");
        size_t length = strlen(text);
        for (int changes = rand_r(&seed) % 4 + 1; changes > 0; changes--)
            text[(size_t)rand_r(&seed) % length] = "{}[]:,\n\"'&*!|>-? #ax\t"[rand_r(&seed) % 21];
        error[0] = 0;
        if (load(text) != 0)
            ck_assert_msg(strstr(error, "web.yml:") && !strchr(error, '\n'), "%s: %s", text, error);
    }
}
END_TEST

START_TEST(fingerprints)
{
    run("cp ca.crt changing.crt");
    load_good(TLS "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: changing.crt\n");
    const uint64_t first = config->fingerprint;
    load_good(TLS "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: changing.crt\n");
    ck_assert_uint_eq(config->fingerprint, first);
    run("cp other-ca.crt changing.crt");
    load_good(TLS "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: changing.crt\n");
    const uint64_t second = config->fingerprint;
    ck_assert_uint_ne(second, first);
    load_good(TLS "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: changing.crt\n\n");
    ck_assert_uint_ne(config->fingerprint, second);
    run("cp server.crt s.crt && cp server.key s.key");
    load_good("tls_server_config: {cert_file: s.crt, key_file: s.key}\n");
    const uint64_t third = config->fingerprint;
    run("cp client.crt s.crt && cp client.key s.key");
    load_good("tls_server_config: {cert_file: s.crt, key_file: s.key}\n");
    ck_assert_uint_ne(config->fingerprint, third);
}
END_TEST

/* ---- passwords ----------------------------------------------------------------------------------------------- */

/* Appends a user with the password's hash at that cost. */
static void add_user(char *text, size_t size, const char *name, const char *password, const char *prefix)
{
    struct crypt_data *data = calloc(1, sizeof *data);
    char setting[40];
    ck_assert_ptr_nonnull(data);
    (void)snprintf(setting, sizeof setting, "%sabcdefghijklmnopqrstuu", prefix);
    const char *hash = crypt_r(password, setting, data);
    ck_assert_ptr_nonnull(hash);
    size_t used = strlen(text);
    (void)snprintf(text + used, size - used, "  %s: %s\n", name, hash);
    free(data);
}

static void load_users(void)
{
    char text[1000] = "basic_auth_users:\n";
    add_user(text, sizeof text, "alice", "opensesame", "$2y$04$");
    add_user(text, sizeof text, "bob", "", "$2a$05$");
    add_user(text, sizeof text, "'j\xC3\xBCrg e'", "p\xC3\xA4ss:w\xC3\xB6rt", "$2b$04$");
    load_good(text);
}

START_TEST(passwords)
{
    static const struct {
        const char *user, *password;
        bool good;
    } cases[] = {{"alice", "opensesame", true},   {"alice", "opensesame ", false},
                 {"alice", "Opensesame", false},  {"alice", "", false},
                 {"Alice", "opensesame", false},  {"alic", "opensesame", false},
                 {"alice2", "opensesame", false}, {"", "", false},
                 {"", "opensesame", false},       {"bob", "", true},
                 {"bob", "opensesame", false},    {"j\xC3\xBCrg e", "p\xC3\xA4ss:w\xC3\xB6rt", true},
                 {"j\xC3\xBCrg e", "p", false}};
    load_users();
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            ck_assert_int_eq(web_config_authenticate(config, cases[i].user, cases[i].password), cases[i].good);
            ck_assert_int_eq(web_config_authenticated_before(config, cases[i].user, cases[i].password), cases[i].good);
        }
}
END_TEST

START_TEST(nothing_is_remembered_before)
{
    char long_password[2000];
    load_users();
    ck_assert(!web_config_authenticated_before(config, "alice", "opensesame"));
    ck_assert(!web_config_authenticate(config, "alice", "wrong"));
    ck_assert(!web_config_authenticated_before(config, "alice", "wrong"));
    memset(long_password, 'a', sizeof long_password - 1);
    long_password[sizeof long_password - 1] = 0;
    ck_assert(!web_config_authenticate(config, "alice", long_password));
    ck_assert(!web_config_authenticate(config, long_password, "opensesame"));
    /* A new configuration has forgotten. */
    ck_assert(web_config_authenticate(config, "alice", "opensesame"));
    load_users();
    ck_assert(!web_config_authenticated_before(config, "alice", "opensesame"));
}
END_TEST

/* A hash that Go's bcrypt has made. */
START_TEST(hash_of_another_library)
{
    load_good("basic_auth_users: {alice: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi}\n");
    ck_assert(web_config_authenticate(config, "alice", "fakepassword"));
    ck_assert(!web_config_authenticate(config, "alice", "fakepasswore"));
}
END_TEST

/* The last character of a salt has bits without meaning, which crypt_r() clears in what it returns. */
START_TEST(salt_written_otherwise)
{
    char text[200] = "basic_auth_users:\n";
    add_user(text, sizeof text, "alice", "x", "$2b$04$");
    char *last = strstr(text, "$2b$04$") + 7 + 21;
    ck_assert_int_eq(*last, 'u');
    *last = 'v';
    load_good(text);
    ck_assert(web_config_authenticate(config, "alice", "x"));
    ck_assert(!web_config_authenticate(config, "alice", "y"));
}
END_TEST

static uint64_t cpu_ns(void)
{
    struct timespec now;
    ck_assert_int_eq(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now), 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The least of a few, which another load on the machine cannot make smaller. */
static uint64_t cost_ns(const char *user, const char *password)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t start = cpu_ns();
        (void)web_config_authenticate(config, user, password);
        uint64_t spent = cpu_ns() - start;
        least = spent < least ? spent : least;
    }
    return least;
}

START_TEST(unknown_users_cost_as_much)
{
    char text[500] = "basic_auth_users:\n";
    add_user(text, sizeof text, "alice", "opensesame", "$2b$09$");
    load_good(text);
    const uint64_t known = cost_ns("alice", "wrong"), unknown = cost_ns("mallory", "wrong"),
                   lucky = cost_ns("mallory", "opensesame");
    ck_assert_msg(unknown > known / 2 && unknown < known * 2, "%lu %lu", (unsigned long)known, (unsigned long)unknown);
    ck_assert_msg(lucky > known / 2 && lucky < known * 2, "%lu %lu", (unsigned long)known, (unsigned long)lucky);
    ck_assert(web_config_authenticate(config, "alice", "opensesame"));
    ck_assert_uint_lt(cost_ns("alice", "opensesame"), known / 4);
}
END_TEST

static void *guess(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    char text[40];
    for (int i = 0; i < 40; i++) {
        (void)snprintf(text, sizeof text, "guess %d", rand_r(&seed));
        if (web_config_authenticate(config, i % 2 ? "alice" : "nobody", text) ||
            !web_config_authenticate(config, "alice", "opensesame"))
            return (void *)1;
    }
    return NULL;
}

START_TEST(many_threads)
{
    pthread_t threads[8];
    load_users();
    for (uintptr_t i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, guess, (void *)(i + 1)), 0);
    for (int i = 0; i < 8; i++) {
        void *failed;
        ck_assert_int_eq(pthread_join(threads[i], &failed), 0);
        ck_assert_ptr_null(failed);
    }
}
END_TEST

static atomic_bool guessed;

static void *guess_slowly(void *argument)
{
    (void)argument;
    for (int i = 0; i < 4; i++)
        (void)web_config_authenticate(config, "slow", "wrong");
    atomic_store(&guessed, true);
    return NULL;
}

/* While one computes for a second, the other is let in again and again. */
START_TEST(remembered_users_do_not_wait)
{
    char text[500] = "basic_auth_users:\n";
    pthread_t thread;
    unsigned served = 0;
    add_user(text, sizeof text, "quick", "q", "$2b$04$");
    add_user(text, sizeof text, "slow", "s", "$2b$12$");
    load_good(text);
    ck_assert(web_config_authenticate(config, "quick", "q"));
    ck_assert_int_eq(pthread_create(&thread, NULL, guess_slowly, NULL), 0);
    while (!atomic_load(&guessed)) {
        ck_assert(web_config_authenticate(config, "quick", "q"));
        served++;
    }
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_uint_gt(served, 50);
}
END_TEST

START_TEST(hashes)
{
    static const struct {
        const char *hash;
        int cost;
    } cases[] = {{"$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", 10},
                 {"$2a$04$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", 4},
                 {"$2b$31$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", 31},
                 {"$2b$32$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", -1},
                 {"$2b$03$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", -1},
                 {"$2x$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG", -1},
                 {"$2$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zGG", -1},
                 {"$2b$1$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zGG", -1},
                 {"$2b$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7z", -1},
                 {"$2b$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zGG", -1},
                 {"$2b$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7Esimh!7zG", -1},
                 {"$2b$10", -1},
                 {"$2b", -1},
                 {"$2", -1},
                 {"$", -1},
                 {"", -1},
                 {"$1$abc$def", -1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *problem = NULL;
        ck_assert_msg(web_auth_cost(cases[i].hash, &problem) == cases[i].cost, "%s", cases[i].hash);
        ck_assert_int_eq(problem != NULL, cases[i].cost < 0);
    }
}
END_TEST

/* ---- TLS ----------------------------------------------------------------------------------------------------- */

struct client {
    int fd;
    const char *certificate; /* NULL: none */
    const char *priorities;  /* NULL: NORMAL */
    int result;              /* of the handshake */
    gnutls_protocol_t version;
    gnutls_cipher_algorithm_t cipher;
    gnutls_group_t group;
};

static int handshake(gnutls_session_t session)
{
    int result;
    gnutls_handshake_set_timeout(session, 60000);
    do
        result = gnutls_handshake(session);
    while (result < 0 && !gnutls_error_is_fatal(result));
    return result;
}

static void *connect_client(void *argument)
{
    struct client *client = argument;
    gnutls_certificate_credentials_t credentials;
    gnutls_session_t session;
    char cert[200], key[200], byte;

    (void)gnutls_certificate_allocate_credentials(&credentials);
    if (client->certificate) {
        (void)snprintf(cert, sizeof cert, "%s/%s.crt", directory, client->certificate);
        (void)snprintf(key, sizeof key, "%s/%s.key", directory, client->certificate);
        if (gnutls_certificate_set_x509_key_file(credentials, cert, key, GNUTLS_X509_FMT_PEM) < 0)
            abort();
    }
    /* Forced: also when the server names authorities that the certificate is not of. */
    (void)gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_FORCE_CLIENT_CERT);
    if (gnutls_priority_set_direct(session, client->priorities ? client->priorities : "NORMAL", NULL) != 0)
        abort();
    (void)gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
    gnutls_transport_set_int(session, client->fd);
    client->result = handshake(session);
    client->version = gnutls_protocol_get_version(session);
    client->cipher = gnutls_cipher_get(session);
    client->group = gnutls_group_get(session);
    /* Until the server is done with it: it may have read nothing yet. */
    (void)shutdown(client->fd, SHUT_WR);
    while (read(client->fd, &byte, 1) > 0)
        ;
    gnutls_deinit(session);
    gnutls_certificate_free_credentials(credentials);
    return NULL;
}

/* Makes a session as a server would, with a client in a thread. Returns the server's handshake result. */
static int serve(struct client *client, bool *ret_allowed)
{
    const gnutls_datum_t cert = {(unsigned char *)config->cert_pem, (unsigned)strlen(config->cert_pem)};
    const gnutls_datum_t key = {(unsigned char *)config->key_pem, (unsigned)strlen(config->key_pem)};
    gnutls_certificate_credentials_t credentials;
    gnutls_session_t session;
    pthread_t thread;
    int fds[2];

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    client->fd = fds[1];
    ck_assert_int_eq(pthread_create(&thread, NULL, connect_client, client), 0);
    ck_assert_int_eq(gnutls_certificate_allocate_credentials(&credentials), 0);
    ck_assert_int_ge(gnutls_certificate_set_x509_key_mem(credentials, &cert, &key, GNUTLS_X509_FMT_PEM), 0);
    if (config->client_ca_pem) {
        const gnutls_datum_t ca = {(unsigned char *)config->client_ca_pem, (unsigned)strlen(config->client_ca_pem)};
        ck_assert_int_gt(gnutls_certificate_set_x509_trust_mem(credentials, &ca, GNUTLS_X509_FMT_PEM), 0);
    }
    ck_assert_int_eq(gnutls_init(&session, GNUTLS_SERVER), 0);
    ck_assert_int_eq(gnutls_priority_set_direct(session, config->priorities, NULL), 0);
    ck_assert_int_eq(gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials), 0);
    if (config->client_auth != WEB_CLIENT_NONE)
        gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUEST);
    gnutls_transport_set_int(session, fds[0]);
    int result = handshake(session);
    error[0] = 0;
    *ret_allowed = result == 0 && web_config_client_allowed(config, session, error, sizeof error);
    gnutls_deinit(session);
    (void)close(fds[0]);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    (void)close(fds[1]);
    gnutls_certificate_free_credentials(credentials);
    return result;
}

static void check_client(const char *certificate, const char *priorities, bool expected)
{
    struct client client = {.certificate = certificate, .priorities = priorities};
    bool allowed;
    int result = serve(&client, &allowed);
    ck_assert_msg(result == 0, "%s: %s", certificate ? certificate : "none", gnutls_strerror(result));
    ck_assert_msg(allowed == expected, "%s: %s", certificate ? certificate : "none", error);
    ck_assert(expected || error[0] != 0);
}

/* Each kind of client, in both protocols. */
START_TEST(client_certificates)
{
    static const struct {
        const char *type;
        bool ca, none, client, server_only, stranger, self_signed, expired;
    } cases[] = {{"NoClientCert", false, true, true, true, true, true, true},
                 {"RequestClientCert", false, true, true, true, true, true, true},
                 {"RequireAnyClientCert", false, false, true, true, true, true, true},
                 {"RequireClientCert", false, false, true, true, true, true, true},
                 {"VerifyClientCertIfGiven", true, true, true, false, false, false, false},
                 {"RequireAndVerifyClientCert", true, false, true, false, false, false, false}};
    static const char *const versions[] = {"NORMAL:-VERS-ALL:+VERS-TLS1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.3"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[300];
        (void)snprintf(text, sizeof text, TLS "  client_auth_type: %s\n%s", cases[i].type,
                       cases[i].ca ? "  client_ca_file: ca.crt\n" : "");
        load_good(text);
        for (int v = 0; v < 2; v++) {
            check_client(NULL, versions[v], cases[i].none);
            check_client("client", versions[v], cases[i].client);
            check_client("server-only", versions[v], cases[i].server_only);
            check_client("stranger", versions[v], cases[i].stranger);
            check_client("self-signed", versions[v], cases[i].self_signed);
            check_client("expired", versions[v], cases[i].expired);
        }
    }
}
END_TEST

START_TEST(client_names)
{
    static const struct {
        const char *list;
        bool allowed;
    } cases[] = {{"[scraper.example.org]", true},  {"[x, 10.0.0.7]", true},   {"['fd00::1']", true},
                 {"['spiffe://x/y']", true},       {"[a@example.org]", true}, {"[example.org]", false},
                 {"[scraper.example.or]", false},  {"[client]", false},       {"[10.0.0.70, 10.0.0]", false},
                 {"[SCRAPER.example.org]", false}, {"['fd00:0::1']", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[300];
        (void)snprintf(text, sizeof text,
                       TLS "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
                           "  client_allowed_sans: %s\n",
                       cases[i].list);
        load_good(text);
        check_client("client", NULL, cases[i].allowed);
        check_client("nameless", NULL, false);
        check_client(NULL, NULL, false);
    }
    load_good(TLS "  client_auth_type: RequireAnyClientCert\n  client_allowed_sans: [scraper.example.org]\n");
    check_client("self-signed", NULL, true);
    check_client("stranger", NULL, false);
}
END_TEST

static void check_protocol(const char *extra, const char *priorities, gnutls_protocol_t version,
                           gnutls_cipher_algorithm_t cipher)
{
    struct client client = {.priorities = priorities};
    char text[500];
    bool allowed;
    (void)snprintf(text, sizeof text, TLS "%s", extra);
    load_good(text);
    int result = serve(&client, &allowed);
    ck_assert_msg((result == 0) == (version != 0), "%s, %s: %s", extra, priorities, gnutls_strerror(result));
    if (version == 0)
        return;
    ck_assert_int_eq(client.version, version);
    ck_assert_msg(cipher == 0 || client.cipher == cipher, "%s: %s", extra, gnutls_cipher_get_name(client.cipher));
}

#define ONLY(version)   "NORMAL:-VERS-ALL:+VERS-TLS" version
#define LEGACY(version) "LEGACY:-VERS-ALL:+VERS-TLS" version

START_TEST(protocols)
{
    check_protocol("", "NORMAL", GNUTLS_TLS1_3, GNUTLS_CIPHER_AES_128_GCM);
    check_protocol("", ONLY("1.2"), GNUTLS_TLS1_2, GNUTLS_CIPHER_AES_128_GCM);
    check_protocol("", LEGACY("1.1"), 0, 0);
    check_protocol("  min_version: TLS13\n", ONLY("1.2"), 0, 0);
    check_protocol("  max_version: TLS12\n", "NORMAL", GNUTLS_TLS1_2, 0);
    check_protocol("  min_version: TLS10\n", LEGACY("1.1"), GNUTLS_TLS1_1, GNUTLS_CIPHER_AES_128_CBC);
    check_protocol("  min_version: TLS10\n", LEGACY("1.0"), GNUTLS_TLS1_0, 0);
    check_protocol("  min_version: TLS10\n", "NORMAL", GNUTLS_TLS1_3, 0);
    check_protocol("  min_version: TLS10\n  max_version: TLS11\n", "NORMAL", GNUTLS_TLS1_1, 0);
}
END_TEST

#define LIST \
    "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n"

START_TEST(ciphers)
{
    check_protocol(LIST, ONLY("1.2"), GNUTLS_TLS1_2, GNUTLS_CIPHER_CHACHA20_POLY1305);
    check_protocol(LIST, ONLY("1.3"), GNUTLS_TLS1_3, GNUTLS_CIPHER_CHACHA20_POLY1305);
    check_protocol(LIST, "NORMAL:-CHACHA20-POLY1305", GNUTLS_TLS1_3, GNUTLS_CIPHER_AES_256_GCM);
    check_protocol(LIST, "NORMAL:-CHACHA20-POLY1305:-AES-256-GCM", 0, 0);
    /* The client's order, when the server's is not to win. */
    check_protocol(LIST "  prefer_server_cipher_suites: false\n", ONLY("1.2"), GNUTLS_TLS1_2,
                   GNUTLS_CIPHER_AES_256_GCM);
    check_protocol("  cipher_suites: [TLS_AES_256_GCM_SHA384]\n", "NORMAL", GNUTLS_TLS1_3, GNUTLS_CIPHER_AES_256_GCM);
    check_protocol("  cipher_suites: [TLS_AES_256_GCM_SHA384]\n", ONLY("1.2"), 0, 0);
    check_protocol("  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA]\n", "NORMAL", GNUTLS_TLS1_2,
                   GNUTLS_CIPHER_AES_256_CBC);
    check_protocol("  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n", "NORMAL:-AES-256-GCM", 0, 0);
}
END_TEST

START_TEST(curves)
{
    struct client client = {.priorities = NULL};
    bool allowed;
    load_good(TLS "  curve_preferences: [CurveP384, X25519]\n");
    ck_assert_int_eq(serve(&client, &allowed), 0);
    ck_assert(client.group == GNUTLS_GROUP_SECP384R1 || client.group == GNUTLS_GROUP_X25519);
    client = (struct client){.priorities = "NORMAL:-GROUP-ALL:+GROUP-SECP256R1"};
    ck_assert_int_ne(serve(&client, &allowed), 0);
    client = (struct client){.priorities = "NORMAL:-GROUP-ALL:+GROUP-SECP384R1"};
    ck_assert_int_eq(serve(&client, &allowed), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("web_config");
    TCase *tcase = tcase_create("web_config");
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, make_certificates, remove_certificates);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, empty);
    tcase_add_test(tcase, everything);
    tcase_add_test(tcase, absolute_paths_stay);
    tcase_add_test(tcase, failure_leaves_the_result);
    tcase_add_test(tcase, messages_fit);
    tcase_add_test(tcase, noise);
    tcase_add_test(tcase, fingerprints);
    tcase_add_test(tcase, passwords);
    tcase_add_test(tcase, nothing_is_remembered_before);
    tcase_add_test(tcase, hash_of_another_library);
    tcase_add_test(tcase, salt_written_otherwise);
    tcase_add_test(tcase, unknown_users_cost_as_much);
    tcase_add_test(tcase, many_threads);
    tcase_add_test(tcase, remembered_users_do_not_wait);
    tcase_add_test(tcase, hashes);
    tcase_add_test(tcase, client_certificates);
    tcase_add_test(tcase, client_names);
    tcase_add_test(tcase, protocols);
    tcase_add_test(tcase, ciphers);
    tcase_add_test(tcase, curves);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

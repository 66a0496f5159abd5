/*
 * The web configuration: an input is the file. What is read must keep what web_config.h promises of it, and be the same
 * when it is read again; what is refused must say why, with file and line, in one line. Files that it names are absent.
 */
#include "web_config.h"

#include "fuzz.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char path[200];
static int file;

static int load(struct web_config **ret, char *error)
{
    memset(error, 0, WEB_CONFIG_ERROR_MAX);
    return web_config_load(ret, path, error, WEB_CONFIG_ERROR_MAX);
}

static void check_headers(const struct web_config *config)
{
    for (unsigned i = 0; i < config->header_count; i++) {
        const char *value = config->headers[i].value;
        fuzz_expect(config->headers[i].name[0] != 0 && value[0] != 0);
        for (; *value; value++)
            fuzz_expect(*value >= ' ' && *value <= '~');
    }
}

static void check_users(const struct web_config *config)
{
    fuzz_expect(config->user_count <= WEB_CONFIG_USERS_MAX && (config->users != NULL) == (config->user_count > 0));
    for (unsigned i = 0; i < config->user_count; i++) {
        fuzz_expect(strlen(config->users[i].hash) == 60 && strncmp(config->users[i].hash, "$2", 2) == 0);
        fuzz_expect(web_config_user(config, config->users[i].name) == (int)i); /* each name once */
    }
}

static void check_good(const struct web_config *config)
{
    const bool verifies =
        config->client_auth == WEB_CLIENT_VERIFY_IF_GIVEN || config->client_auth == WEB_CLIENT_REQUIRE_AND_VERIFY;

    fuzz_expect(!config->tls || (config->cert_pem && config->key_pem));
    fuzz_expect(config->tls || (!config->cert_pem && !config->key_pem && config->client_auth == WEB_CLIENT_NONE));
    fuzz_expect(!verifies || config->client_ca_pem);
    fuzz_expect(config->client_san_count <= WEB_CONFIG_SANS_MAX);
    fuzz_expect(config->rate_interval_ns == 0 || config->rate_burst >= 1);
    check_headers(config);
    check_users(config);
}

/* "FILE:LINE: what is wrong", or "FILE: …" of the file as a whole. */
static void check_refusal(const char *error)
{
    fuzz_expect(strncmp(error, path, strlen(path)) == 0 && error[strlen(path)] == ':');
    fuzz_expect(strlen(error) > strlen(path) + 3 && strlen(error) < WEB_CONFIG_ERROR_MAX);
    fuzz_expect_message(error);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_setup(LOG_ERROR, LOG_LOGFMT);
    (void)snprintf(path, sizeof path, "%s/web.yml", fuzz_directory());
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    fuzz_expect(file >= 0);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct web_config *config = NULL, *again = NULL;
    char error[WEB_CONFIG_ERROR_MAX], other[WEB_CONFIG_ERROR_MAX];

    fuzz_expect(ftruncate(file, 0) == 0 && pwrite(file, data, size, 0) == (ssize_t)size);
    int failed = load(&config, error);
    fuzz_expect(load(&again, other) == failed && strcmp(error, other) == 0);
    if (failed) {
        fuzz_expect(failed < 0 && !config && !again);
        check_refusal(error);
    } else {
        fuzz_expect(config->fingerprint == again->fingerprint);
        check_good(config);
        web_config_warn(config, NULL, path);
    }
    web_config_free(config);
    web_config_free(again);
    return 0;
}

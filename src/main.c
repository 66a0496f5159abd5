/* wideep-exporter: reads the options, wires the stages together, waits for a signal. */
#include "collector.h"
#include "http.h"
#include "listen.h"
#include "options.h"
#include "version.h"
#include "web_config.h"

#include <signal.h>

enum { EXIT_USAGE = 2 };

static void configure_collector(struct collector_config *config, const struct options *options)
{
    *config = (struct collector_config){
        .segments = {.directory = options->shm_dir,
                     .instance = strcmp(options->shm_instance, "*") == 0 ? NULL : options->shm_instance,
                     .owner_count = options->owner_count},
        .aggregate = {.window_ns = options->eplb_window_ns,
                      .throughput_ns = options->throughput_interval_ns,
                      .engine_label = (enum aggregate_engine_label)options->engine_label},
        .interval_ns = options->collect_interval_ns,
        .series_limit = options->series_limit,
        .debug_ns = options->debug_per_expert ? options->debug_duration_ns : 0,
        .version = WIDEEP_VERSION,
        .commit = WIDEEP_COMMIT,
    };
    memcpy(config->segments.owners, options->owners, sizeof config->segments.owners);
}

/* Opens all sockets, or none with a line on stderr. */
static int open_sockets(struct http_config *http, const struct options *options)
{
    char error[512];

    for (uint32_t i = 0; i < options->address_count; i++) {
        if (listen_open(options->addresses[i], &http->sockets[i], error, sizeof error) == 0) {
            http->socket_count++;
            continue;
        }
        (void)fprintf(stderr, "wideep-exporter: %s\n", error);
        while (http->socket_count > 0)
            (void)close(http->sockets[--http->socket_count]);
        return -EIO;
    }
    return 0;
}

static int serve(const struct options *options, const sigset_t *signals)
{
    const uint64_t stale_ns = 10 * options->collect_interval_ns;
    struct http_config http_config = {.telemetry_path = options->telemetry_path,
                                      .stale_ns = stale_ns > 10000000000u ? stale_ns : 10000000000u,
                                      .version = WIDEEP_VERSION};
    struct collector_config collector_config;
    struct collector *collector = NULL;
    struct http *http = NULL;
    int number = 0;

    configure_collector(&collector_config, options);
    int error = open_sockets(&http_config, options);
    if (error)
        return error;
    for (unsigned i = 0; i < http_config.socket_count; i++) {
        char address[160];
        listen_describe(http_config.sockets[i], address, sizeof address);
        log_info("listening", "address", address, "path", options->telemetry_path, NULL);
    }
    error = collector_start(&collector, &collector_config);
    if (!error)
        error = http_start(&http, &http_config);
    if (error) {
        log_error("cannot start", "error", strerror(-error), NULL);
        collector_stop(collector);
        return error;
    }
    while (sigwait(signals, &number) != 0)
        ;
    log_info("stopping", "signal", strsignal(number), NULL);
    http_stop(http);
    collector_stop(collector);
    return 0;
}

/* For --web.config.check. */
static int check_web_config(const char *path)
{
    char error[WEB_CONFIG_ERROR_MAX];
    struct web_config *config;

    if (web_config_load(&config, path, error, sizeof error) != 0) {
        (void)fprintf(stderr, "wideep-exporter: %s\n", error);
        return EXIT_FAILURE;
    }
    (void)printf("%s is valid: TLS %s, client certificates %s, users: %u, extra headers: %u\n", path,
                 config->tls ? "on" : "off", web_client_auth_text(config->client_auth), config->user_count,
                 config->header_count);
    web_config_free(config);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    struct options options;
    char error[512];
    sigset_t signals;

    if (options_parse(&options, argc, argv, error, sizeof error) != 0) {
        (void)fprintf(stderr, "wideep-exporter: %s\n", error);
        return EXIT_USAGE;
    }
    if (options.help) {
        options_print_help(stdout);
        return EXIT_SUCCESS;
    }
    if (options.version) {
        (void)printf("wideep-exporter %s (commit %s)\n", WIDEEP_VERSION, WIDEEP_COMMIT);
        return EXIT_SUCCESS;
    }
    log_setup((enum log_level)options.log_level, (enum log_format)options.log_format);
    options_warn_misspelt(environ);
    if (options.web_config_check)
        return check_web_config(options.web_config_file);
    /* Before any thread starts, so that they all inherit the mask and sigwait() alone receives these. */
    (void)signal(SIGPIPE, SIG_IGN);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    return serve(&options, &signals) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* wideep-exporter: reads the options, wires the stages together, and watches over them until a signal ends it. */
#include "admin.h"
#include "collector.h"
#include "healthcheck.h"
#include "http.h"
#include "listen.h"
#include "log.h"
#include "notify.h"
#include "options.h"
#include "text.h"
#include "version.h"
#include "web_config.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define SECOND_NS      UINT64_C(1000000000)
#define CHECK_FILES_NS (2 * SECOND_NS)
#define RELOAD_NS      (SECOND_NS / 2)

enum { EXIT_USAGE = 2 };

enum { ROUTES = 4 };

struct service {
    const struct options *options;
    struct lb *lb;
    struct state_board *state;
    struct collector *collector;
    struct admin admin;
    struct http_route routes[ROUTES];
    struct http *http;
};

/* ---- wiring ------------------------------------------------------------------------------------------------- */

static bool all_instances(const struct options *options)
{
    return strcmp(options->shm_instance, "*") == 0;
}

static int start_collector(struct service *service)
{
    const struct options *options = service->options;
    struct collector_config config = {
        .segments = {.directory = options->shm_dir,
                     .instance = all_instances(options) ? NULL : options->shm_instance,
                     .owner_count = options->owner_count},
        .aggregate = {.window_ns = options->eplb_window_ns,
                      .throughput_ns = options->throughput_interval_ns,
                      .engine_label = (enum aggregate_engine_label)options->engine_label},
        .interval_ns = options->collect_interval_ns,
        .series_limit = options->series_limit,
        .advisor_ns = options->advisor_interval_ns,
        .debug_ns = options->debug_per_expert ? options->debug_duration_ns : 0,
        .admin = options->admin_api,
        .version = WIDEEP_VERSION,
        .commit = WIDEEP_COMMIT,
        .lb = service->lb,
        .state = service->state,
    };

    memcpy(config.segments.owners, options->owners, sizeof config.segments.owners);
    return collector_start(&service->collector, &config);
}

static void wire_routes(struct service *service)
{
    const struct options *options = service->options;
    const struct http_route routes[ROUTES] = {
        {"/lb", false, HTTP_GET, "lb", lb_handle, service->lb, false, true},
        {"/lb/", true, HTTP_GET, "lb_metrics", lb_handle_metrics, service->lb, false, true},
        {"/api/v1/state", false, HTTP_GET, "state", state_handle, service->state, true, false},
        {"/-/debug/per-expert", false, HTTP_GET | HTTP_POST | HTTP_DELETE, "debug", admin_handle_per_expert,
         &service->admin, false, false},
    };

    service->admin = (struct admin){.enabled = options->admin_api,
                                    .collector = service->collector,
                                    .duration_ns = options->debug_duration_ns,
                                    .duration_max_ns = options->debug_max_duration_ns};
    memcpy(service->routes, routes, sizeof routes);
}

/* Opens all sockets, or none with a line on stderr. */
static int open_sockets(struct http_config *http, const struct options *options)
{
    char error[512];

    if (options->systemd_socket) {
        int count = notify_sockets(http->sockets, HTTP_SOCKETS_MAX, error, sizeof error);
        if (count < 0)
            (void)fprintf(stderr, "wideep-exporter: %s\n", error);
        else
            log_info("serving on systemd's sockets in place of --web.listen-address", NULL, NULL);
        http->socket_count = count < 0 ? 0 : (unsigned)count;
        return count < 0 ? count : 0;
    }
    for (uint32_t i = 0; i < options->address_count; i++) {
        if (listen_open(options->addresses[i], &http->sockets[i], error, sizeof error) == 0) {
            http->socket_count++;
            continue;
        }
        (void)fprintf(stderr, "wideep-exporter: %s\n", error);
        while (http->socket_count > 0) {
            listen_remove(options->addresses[--http->socket_count]);
            (void)close(http->sockets[http->socket_count]);
        }
        return -EIO;
    }
    return 0;
}

/* The files of unix sockets that are ours and not systemd's. */
static void remove_sockets(const struct options *options)
{
    for (uint32_t i = 0; !options->systemd_socket && i < options->address_count; i++)
        listen_remove(options->addresses[i]);
}

static void log_sockets(const struct http_config *http)
{
    for (unsigned i = 0; i < http->socket_count; i++) {
        char address[160];
        listen_describe(http->sockets[i], address, sizeof address);
        log_info("listening", "address", address, "path", http->telemetry_path, NULL);
    }
}

/* The collector first, so that the first scrape finds a snapshot. Takes the sockets over in any case. */
static int start(struct service *service, struct http_config *http)
{
    int error = lb_new(&service->lb, all_instances(service->options));

    if (!error)
        error = state_new(&service->state);
    if (!error)
        error = start_collector(service);
    if (error) {
        remove_sockets(service->options);
        while (http->socket_count > 0)
            (void)close(http->sockets[--http->socket_count]);
        return error;
    }
    wire_routes(service);
    http->routes = service->routes;
    http->route_count = ROUTES;
    error = http_start(&service->http, http);
    if (error)
        remove_sockets(service->options);
    return error;
}

/* Handlers before what they use. */
static void stop(struct service *service)
{
    http_stop(service->http);
    collector_stop(service->collector);
    state_free(service->state);
    lb_free(service->lb);
}

/* ---- watching over it --------------------------------------------------------------------------------------- */

static void tell_status(const struct service *service, char *told, size_t size)
{
    struct lb_view view;
    char text[160];
    uint32_t ranks = 0, up = 0, engines = 0;

    if (lb_copy(service->lb, NULL, wideep_i_clock_ns(CLOCK_BOOTTIME), &view) != 0)
        return;
    for (uint32_t i = 0; i < view.count; i++) {
        engines += !view.engines[i].closed;
        ranks += view.engines[i].ranks;
        up += view.engines[i].ranks_up;
    }
    free(view.engines);
    (void)snprintf(text, sizeof text, "%s; engines: %" PRIu32 ", ranks up: %" PRIu32 " of %" PRIu32,
                   view.stale ? "the collector stands still" : lb_state_name(view.state), engines, up, ranks);
    if (strcmp(text, told) == 0)
        return;
    (void)snprintf(told, size, "%s", text);
    notify_status("%s", text);
}

static void reload(const struct service *service)
{
    log_info("reading the configuration again", NULL, NULL);
    notify_reloading();
    /* Logs what is wrong by itself, and goes on as before. */
    (void)http_reload(service->http);
    notify_ready();
}

/* Returns the signal, or 0 when the time is up. */
static int wait_signal(const sigset_t *signals, uint64_t timeout_ns)
{
    const struct timespec timeout = {(time_t)(timeout_ns / SECOND_NS), (long)(timeout_ns % SECOND_NS)};
    int number = sigtimedwait(signals, NULL, &timeout);

    return number > 0 ? number : 0;
}

/* Returns the signal that ends the service. Of reloads that are asked for in a burst, the first comes at once and one
 * for all others RELOAD_NS later: each leaves a server behind that lasts until its connections have ended. */
static int watch(const struct service *service, const sigset_t *signals)
{
    const uint64_t watchdog_ns = notify_watchdog_ns() / 2;
    const uint64_t period_ns = watchdog_ns > 0 && watchdog_ns < SECOND_NS ? watchdog_ns : SECOND_NS;
    uint64_t turns = 0, checked_ns = wideep_i_clock_ns(CLOCK_MONOTONIC), reload_ns = 0; /* not before then */
    bool reload_wanted = false;
    char status[160] = "";

    for (;;) {
        uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC), turns_now = collector_turns(service->collector);
        /* This thread alone proves nothing: the collector must have gone round since the last sign of life. */
        if (watchdog_ns > 0 && turns_now != turns)
            notify_alive();
        turns = turns_now;
        tell_status(service, status, sizeof status);
        if (now_ns - checked_ns >= CHECK_FILES_NS) {
            http_check_files(service->http);
            checked_ns = now_ns;
        }
        if (reload_wanted && now_ns >= reload_ns) {
            reload_wanted = false;
            reload(service);
            reload_ns = wideep_i_clock_ns(CLOCK_MONOTONIC) + RELOAD_NS;
        }
        int number =
            wait_signal(signals, reload_wanted && reload_ns - now_ns < period_ns ? reload_ns - now_ns : period_ns);
        if (number == SIGHUP)
            reload_wanted = true;
        else if (number != 0)
            return number;
    }
}

static int serve(const struct options *options, const sigset_t *signals)
{
    const uint64_t stale_ns = 10 * options->collect_interval_ns;
    struct http_config http = {.telemetry_path = options->telemetry_path,
                               .stale_ns = stale_ns > 10 * SECOND_NS ? stale_ns : 10 * SECOND_NS,
                               .version = WIDEEP_VERSION " (commit " WIDEEP_COMMIT ")",
                               .max_requests = (unsigned)options->max_requests,
                               .web_config_file = options->web_config_file[0] ? options->web_config_file : NULL};
    struct service service = {.options = options};

    int error = open_sockets(&http, options);
    if (error)
        return error;
    error = start(&service, &http);
    if (error) {
        log_error("cannot start", "error", strerror(-error), NULL);
    } else {
        log_sockets(&http);
        notify_ready();
        int number = watch(&service, signals);
        log_info("stopping", "signal", strsignal(number), NULL);
        notify_stopping();
        remove_sockets(options);
    }
    stop(&service);
    return error;
}

/* ---- the program -------------------------------------------------------------------------------------------- */

/* A caller may have closed them. Then a connection or a segment would get their numbers, and the log be written to it.
 */
static void open_standard_files(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO)
        (void)close(fd);
}

/* Each connection takes a descriptor. Nothing here uses select(), which is why the limit is low by default. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int probe(const struct options *options)
{
    const char *addresses[OPTIONS_ADDRESSES_MAX];
    char text[1024];

    for (uint32_t i = 0; i < options->address_count; i++)
        addresses[i] = options->addresses[i];
    int error = healthcheck(addresses, options->address_count, options->web_config_file[0] != 0, text, sizeof text);

    (void)fprintf(error ? stderr : stdout, "wideep-exporter: %s\n", text);
    return error ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ", rate limit: 20 requests at once and one every 0.1 s", or nothing. */
static void describe_rate_limit(const struct web_config *config, char *ret, size_t size)
{
    char number[TEXT_NUMBER_MAX];

    ret[0] = 0;
    if (config->rate_interval_ns == 0)
        return;
    (void)snprintf(ret, size, ", rate limit: %" PRIu32 " requests at once and one every %.*s s", config->rate_burst,
                   (int)text_seconds(number, config->rate_interval_ns), number);
}

/* For --web.config.check. */
static int check_web_config(const char *path)
{
    char error[WEB_CONFIG_ERROR_MAX], rate_limit[100];
    struct web_config *config;

    if (web_config_load(&config, path, error, sizeof error) != 0) {
        (void)fprintf(stderr, "wideep-exporter: %s\n", error);
        return EXIT_FAILURE;
    }
    web_config_warn(config, NULL, path);
    describe_rate_limit(config, rate_limit, sizeof rate_limit);
    (void)printf("%s is valid: TLS %s, client certificates %s, users: %u, extra headers: %u%s\n", path,
                 config->tls ? "on" : "off", web_client_auth_text(config->client_auth), config->user_count,
                 config->header_count, rate_limit);
    web_config_free(config);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    struct options options;
    char error[512];
    sigset_t signals;

    open_standard_files();
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
    (void)signal(SIGPIPE, SIG_IGN);
    if (options.healthcheck)
        return probe(&options);
    /* Before any thread starts, so that they all inherit the mask and the main thread alone receives these. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    raise_descriptor_limit();
    /* It runs no other program: nothing that is found in it may gain rights by running one that is set-user-ID. */
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return serve(&options, &signals) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

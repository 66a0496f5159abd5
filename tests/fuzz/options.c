/*
 * Flags and environment: an input is lines, "WIDEEP_…=…" for a variable, all else for an argument. What is accepted
 * must be within its bounds, and the same when it is written out as flags; what is refused must say why in one line and
 * leave the options alone.
 */
#include "options.h"

#include "fuzz.h"


#define LINES_MAX 64
#define TEXT_MAX  8192

extern char **environ;

static char text[TEXT_MAX + 1];
static char *arguments[LINES_MAX + 2], *variables[LINES_MAX + 1];

static int split(const uint8_t *data, size_t size)
{
    static char name[] = "wideep-exporter";
    char *at = text;
    int count = 1, variable_count = 0;

    size = size < TEXT_MAX ? size : TEXT_MAX;
    if (size > 0)
        memcpy(text, data, size);
    text[size] = 0;
    arguments[0] = name;
    for (char *line; count <= LINES_MAX && variable_count < LINES_MAX && (line = strsep(&at, "\n")) != NULL;)
        if (strncmp(line, "WIDEEP_", 7) == 0 && strchr(line, '='))
            variables[variable_count++] = line;
        else
            arguments[count++] = line;
    arguments[count] = NULL;
    variables[variable_count] = NULL;
    return count;
}

static int parse(struct options *ret, int count, char **list, char **environment, char *error, size_t size)
{
    char **before = environ;

    environ = environment;
    int failed = options_parse(ret, count, list, error, size);
    environ = before;
    return failed;
}

static bool is_terminated(const char *field, size_t size)
{
    return memchr(field, 0, size) != NULL;
}

static void check_bounds(const struct options *options)
{
    fuzz_expect(is_terminated(options->shm_dir, sizeof options->shm_dir) && options->shm_dir[0] != 0);
    fuzz_expect(is_terminated(options->shm_instance, sizeof options->shm_instance));
    fuzz_expect(is_terminated(options->telemetry_path, OPTIONS_TEXT_MAX) && options->telemetry_path[0] == '/');
    fuzz_expect(!strpbrk(options->telemetry_path, "<>\"' &?#%"));
    fuzz_expect(is_terminated(options->web_config_file, OPTIONS_TEXT_MAX));
    fuzz_expect(options->owner_count <= SEGMENT_OWNERS_MAX);
    fuzz_expect(options->address_count >= 1 && options->address_count <= OPTIONS_ADDRESSES_MAX);
    for (uint32_t i = 0; i < options->address_count; i++)
        fuzz_expect(is_terminated(options->addresses[i], OPTIONS_TEXT_MAX));
    fuzz_expect(options->collect_interval_ns > 0 && options->eplb_window_ns > 0 && options->throughput_interval_ns > 0);
    fuzz_expect(options->debug_duration_ns <= options->debug_max_duration_ns);
    fuzz_expect(options->engine_label <= AGGREGATE_FIRST && options->log_level <= LOG_ERROR &&
                options->log_format <= LOG_JSON);
    const uint64_t flags[] = {options->web_config_check,
                              options->debug_per_expert,
                              options->systemd_socket,
                              options->admin_api,
                              options->healthcheck,
                              options->version,
                              options->help};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        fuzz_expect(flags[i] <= 1);
}

/* ---- written out ----------------------------------------------------------------------------------------------- */

struct line {
    char text[WIDEEP_MAX_PATH + 64];
};

static struct line lines[LINES_MAX];
static int line_count;

static void add(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void add(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    (void)vsnprintf(lines[line_count++].text, sizeof lines->text, format, list);
    va_end(list);
}

static void add_duration(const char *name, uint64_t ns)
{
    add("--%s=%lluns", name, (unsigned long long)ns);
}

static void write_owners(const struct options *options)
{
    char list[SEGMENT_OWNERS_MAX * 12] = "any";
    size_t length = 0;

    for (uint32_t i = 0; i < options->owner_count; i++)
        length += (size_t)snprintf(list + length, sizeof list - length, "%s%u", i ? "," : "", options->owners[i]);
    add("--shm.owner=%s", list);
}

static void write_out(const struct options *options)
{
    static const char *const boolean[] = {"false", "true"}, *const label[] = {"each", "first"};
    static const char *const level[] = {"debug", "info", "warn", "error"}, *const format[] = {"logfmt", "json"};

    line_count = 0;
    add("--shm.dir=%s", options->shm_dir);
    add("--shm.instance=%s", options->shm_instance);
    write_owners(options);
    for (uint32_t i = 0; i < options->address_count; i++)
        add("--web.listen-address=%s", options->addresses[i]);
    add("--web.telemetry-path=%s", options->telemetry_path);
    if (options->web_config_file[0])
        add("--web.config.file=%s", options->web_config_file);
    add("--web.config.check=%s", boolean[options->web_config_check]);
    add("--web.max-requests=%llu", (unsigned long long)options->max_requests);
    add_duration("collect.interval", options->collect_interval_ns);
    add_duration("eplb.window", options->eplb_window_ns);
    add_duration("throughput.interval", options->throughput_interval_ns);
    add_duration("debug.duration", options->debug_duration_ns);
    add_duration("debug.max-duration", options->debug_max_duration_ns);
    add("--eplb.engine-label=%s", label[options->engine_label]);
    add("--debug.per-expert=%s", boolean[options->debug_per_expert]);
    add("--limit.series=%llu", (unsigned long long)options->series_limit);
    add("--log.level=%s", level[options->log_level]);
    add("--log.format=%s", format[options->log_format]);
    add("--web.systemd-socket=%s", boolean[options->systemd_socket]);
    add("--web.enable-admin-api=%s", boolean[options->admin_api]);
    add("--healthcheck=%s", boolean[options->healthcheck]);
}

static void check_same(const struct options *a, const struct options *b)
{
    fuzz_expect(strcmp(a->shm_dir, b->shm_dir) == 0 && strcmp(a->shm_instance, b->shm_instance) == 0);
    fuzz_expect(strcmp(a->telemetry_path, b->telemetry_path) == 0);
    fuzz_expect(strcmp(a->web_config_file, b->web_config_file) == 0);
    fuzz_expect(a->owner_count == b->owner_count && a->address_count == b->address_count);
    fuzz_expect(memcmp(a->owners, b->owners, a->owner_count * sizeof *a->owners) == 0);
    for (uint32_t i = 0; i < a->address_count; i++)
        fuzz_expect(strcmp(a->addresses[i], b->addresses[i]) == 0);
    fuzz_expect(a->web_config_check == b->web_config_check && a->max_requests == b->max_requests);
    fuzz_expect(a->collect_interval_ns == b->collect_interval_ns && a->eplb_window_ns == b->eplb_window_ns);
    fuzz_expect(a->throughput_interval_ns == b->throughput_interval_ns && a->debug_duration_ns == b->debug_duration_ns);
    fuzz_expect(a->debug_max_duration_ns == b->debug_max_duration_ns && a->engine_label == b->engine_label);
    fuzz_expect(a->debug_per_expert == b->debug_per_expert && a->series_limit == b->series_limit);
    fuzz_expect(a->log_level == b->log_level && a->log_format == b->log_format);
    fuzz_expect(a->systemd_socket == b->systemd_socket && a->admin_api == b->admin_api);
    fuzz_expect(a->healthcheck == b->healthcheck);
}

static void check_round_trip(const struct options *options)
{
    static struct options again;
    char *list[LINES_MAX + 2] = {arguments[0]}, *none[] = {NULL}, error[512] = "";

    write_out(options);
    for (int i = 0; i < line_count; i++)
        list[i + 1] = lines[i].text;
    if (parse(&again, line_count + 1, list, none, error, sizeof error) != 0)
        fuzz_fail("accepted, but not when it is written out: %s", error);
    check_same(options, &again);
}

/* ---- the target ------------------------------------------------------------------------------------------------ */

static void check_refusal(const struct options *options, const char *error)
{
    for (size_t i = 0; i < sizeof *options; i++)
        fuzz_expect(((const uint8_t *)options)[i] == 0xee);
    fuzz_expect_message(error);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_setup(LOG_ERROR, LOG_LOGFMT);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct options options;
    char error[512] = "";
    const int count = split(data, size);

    memset(&options, 0xee, sizeof options);
    int failed = parse(&options, count, arguments, variables, error, sizeof error);
    fuzz_expect(failed == 0 || failed == -EINVAL);
    if (failed) {
        check_refusal(&options, error);
    } else {
        check_bounds(&options);
        check_round_trip(&options);
    }
    options_warn_misspelt(variables);
    return 0;
}

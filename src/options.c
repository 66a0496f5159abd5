#include "options.h"

#include "listen.h"
#include "nearest.h"
#include "text.h"

#include <ctype.h>
#include <inttypes.h>

#define COUNT(array)    (sizeof(array) / sizeof *(array))
#define MS              UINT64_C(1000000)
#define S               (1000 * MS)
#define NAME_MAX_LENGTH 48

enum option_type {
    TYPE_DIRECTORY,
    TYPE_INSTANCE,
    TYPE_PATH,
    TYPE_FILE,
    TYPE_OWNERS,
    TYPE_ADDRESS,
    TYPE_DURATION,
    TYPE_NUMBER,
    TYPE_CHOICE,
    TYPE_FLAG
};

struct option_row {
    const char *name; /* without the dashes */
    enum option_type type;
    size_t offset; /* in struct options */
    const char *initial, *help;
    uint64_t low, high;         /* durations in ns, numbers */
    const char *const *choices; /* NULL-terminated; the value is the index */
};

static const char *const engine_labels[] = {"each", "first", NULL};
static const char *const log_levels[] = {"debug", "info", "warn", "error", NULL};
static const char *const log_formats[] = {"logfmt", "json", NULL};

#define AT(field) offsetof(struct options, field)

static const struct option_row rows[] = {
    {"shm.dir", TYPE_DIRECTORY, AT(shm_dir), "/dev/shm",
     "Directory that the engine's ranks write their segments to. It need not exist yet.", 0, 0, NULL},
    {"shm.instance", TYPE_INSTANCE, AT(shm_instance), "default",
     "Instance to serve; '*' for all, with a label wideep_instance.", 0, 0, NULL},
    {"shm.owner", TYPE_OWNERS, 0, "any",
     "Numeric user ids whose segments are read, separated by commas; 'any' for all.", 0, 0, NULL},
    {"web.listen-address", TYPE_ADDRESS, 0, ":9464",
     "Address to listen on; port 0 lets the kernel choose. May be repeated.", 0, 0, NULL},
    {"web.max-requests", TYPE_NUMBER, AT(max_requests), "40",
     "Scrapes that are answered at once; what is over gets 503. 0 for any number.", 0, 100000, NULL},
    {"web.telemetry-path", TYPE_PATH, AT(telemetry_path), "/metrics", "Path of the metrics page.", 0, 0, NULL},
    {"web.config.file", TYPE_FILE, AT(web_config_file), "",
     "File with TLS, passwords and extra headers, in the format of the Prometheus exporter-toolkit.", 0, 0, NULL},
    {"web.config.check", TYPE_FLAG, AT(web_config_check), "false",
     "Check --web.config.file and what it names, and exit: 0 if all is well, 1 if not.", 0, 0, NULL},
    {"web.systemd-socket", TYPE_FLAG, AT(systemd_socket), "false",
     "Serve on the sockets that systemd passes, in place of --web.listen-address.", 0, 0, NULL},
    {"web.enable-admin-api", TYPE_FLAG, AT(admin_api), "false",
     "Let clients switch the per-expert series on and off at /-/debug/per-expert.", 0, 0, NULL},
    {"collect.interval", TYPE_DURATION, AT(collect_interval_ns), "250ms", "How often shared memory is read.", 10 * MS,
     60 * S, NULL},
    {"eplb.window", TYPE_DURATION, AT(eplb_window_ns), "10s", "Window of joined passes that EPLB gauges are means of.",
     1 * S, 3600 * S, NULL},
    {"eplb.engine-label", TYPE_CHOICE, AT(engine_label), "each",
     "Serve a group's EPLB gauges under each of its engines, or under the first alone.", 0, 0, engine_labels},
    {"throughput.interval", TYPE_DURATION, AT(throughput_interval_ns), "10s",
     "How often the throughput gauges are renewed.", 1 * S, 3600 * S, NULL},
    {"advisor.interval", TYPE_DURATION, AT(advisor_interval_ns), "10s",
     "How often the gain of a rearrangement is worked out, at most; 0s for never.", 0, 3600 * S, NULL},
    {"debug.per-expert", TYPE_FLAG, AT(debug_per_expert), "false",
     "Serve a series per layer and expert for --debug.duration from the start. High cardinality.", 0, 0, NULL},
    {"debug.duration", TYPE_DURATION, AT(debug_duration_ns), "300s", "How long the per-expert series are served.",
     1 * S, 24 * 3600 * S, NULL},
    {"debug.max-duration", TYPE_DURATION, AT(debug_max_duration_ns), "1h", "Longest debug duration that is accepted.",
     1 * S, 24 * 3600 * S, NULL},
    {"limit.series", TYPE_NUMBER, AT(series_limit), "200000",
     "Most series on the page, the exporter's own always there; what is over is dropped and counted.", 100, 10000000,
     NULL},
    {"log.level", TYPE_CHOICE, AT(log_level), "info", "Least important messages to log.", 0, 0, log_levels},
    {"log.format", TYPE_CHOICE, AT(log_format), "logfmt", "Format of log lines.", 0, 0, log_formats},
    {"healthcheck", TYPE_FLAG, AT(healthcheck), "false",
     "Ask the daemon that runs with these flags whether it is healthy, say so in one line, and exit: 0 yes, 1 no.", 0,
     0, NULL},
    {"version", TYPE_FLAG, AT(version), "false", "Print version and commit, and exit.", 0, 0, NULL},
    {"help", TYPE_FLAG, AT(help), "false", "Print this help, and exit.", 0, 0, NULL},
};

/* ---- values ------------------------------------------------------------------------------------------------- */

/* The page stands in a URL and in the landing page's HTML, where other characters would need escapes. It must not take
 * the place of what is served for probes, load balancers and scripts. */
static bool is_telemetry_path(const char *text)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._~:@+-";
    static const char *const taken[] = {"/-", "/lb", "/api"};

    for (size_t i = 0; i < COUNT(taken); i++) {
        const size_t length = strlen(taken[i]);
        if (strncmp(text, taken[i], length) == 0 && (text[length] == 0 || text[length] == '/'))
            return false;
    }
    return text[0] == '/' && text[1] != 0 && text[strspn(text, allowed)] == 0;
}

static bool parse_number(const char *text, uint64_t *ret)
{
    char *end;

    errno = 0;
    if (!isdigit((unsigned char)*text))
        return false;
    *ret = strtoull(text, &end, 10);
    return errno == 0 && *end == 0;
}

static bool parse_owners(const char *text, struct options *options)
{
    options->owner_count = 0;
    if (strcmp(text, "any") == 0)
        return true;
    for (;;) {
        char item[16];
        size_t length = strcspn(text, ",");
        uint64_t uid;
        if (length == 0 || length >= sizeof item || options->owner_count == SEGMENT_OWNERS_MAX)
            return false;
        memcpy(item, text, length);
        item[length] = 0;
        if (!parse_number(item, &uid) || uid >= UINT32_MAX)
            return false;
        options->owners[options->owner_count++] = (uid_t)uid;
        if (text[length] == 0)
            return true;
        text += length + 1;
    }
}

static void describe_duration(char *ret, size_t size, uint64_t ns)
{
    if (ns % (3600 * S) == 0)
        (void)snprintf(ret, size, "%" PRIu64 "h", ns / (3600 * S));
    else if (ns % S == 0)
        (void)snprintf(ret, size, "%" PRIu64 "s", ns / S);
    else
        (void)snprintf(ret, size, "%" PRIu64 "ms", ns / MS);
}

/* What a value may be, for error messages. */
static void describe_allowed(const struct option_row *row, char *ret, size_t size)
{
    char low[24], high[24];

    switch (row->type) {
    case TYPE_DURATION:
        describe_duration(low, sizeof low, row->low);
        describe_duration(high, sizeof high, row->high);
        (void)snprintf(ret, size, "a duration from %s to %s, such as 250ms, 10s or 1m30s", low, high);
        break;
    case TYPE_NUMBER:
        (void)snprintf(ret, size, "a whole number from %" PRIu64 " to %" PRIu64, row->low, row->high);
        break;
    case TYPE_CHOICE:
        ret[0] = 0;
        for (size_t i = 0; row->choices[i]; i++) {
            size_t used = strlen(ret);
            (void)snprintf(ret + used, size - used, "%s%s", i ? " or " : "", row->choices[i]);
        }
        break;
    case TYPE_INSTANCE:
        (void)snprintf(ret, size, "* or 1 to 63 of the characters A-Z a-z 0-9 . _ - without a leading dot");
        break;
    case TYPE_OWNERS:
        (void)snprintf(ret, size, "'any' or up to %d numeric user ids separated by commas", SEGMENT_OWNERS_MAX);
        break;
    case TYPE_PATH:
        (void)snprintf(
            ret, size,
            "a path that begins with /, of A-Z a-z 0-9 / . _ ~ : @ + -; / alone, /-, /lb, /api and what is below these "
            "are other pages");
        break;
    case TYPE_FLAG: (void)snprintf(ret, size, "true or false"); break;
    case TYPE_ADDRESS:
        (void)snprintf(
            ret, size,
            ":PORT, HOST:PORT, [IPV6]:PORT with a port up to 65535, or unix:PATH[?mode=0660], at most %d of them",
            OPTIONS_ADDRESSES_MAX);
        break;
    case TYPE_DIRECTORY: (void)snprintf(ret, size, "a path of 1 to %u bytes", WIDEEP_MAX_PATH); break;
    case TYPE_FILE: (void)snprintf(ret, size, "at most %d characters", OPTIONS_TEXT_MAX - 1); break;
    }
}

static bool set_text(char *field, size_t size, const char *text)
{
    size_t length = strlen(text);

    if (length == 0 || length >= size)
        return false;
    memcpy(field, text, length + 1);
    return true;
}

static bool set_value(struct options *options, const struct option_row *row, const char *text)
{
    void *field = (char *)options + row->offset;
    uint64_t number = 0;

    switch (row->type) {
    case TYPE_DIRECTORY: return set_text(field, sizeof options->shm_dir, text);
    case TYPE_INSTANCE:
        return (strcmp(text, "*") == 0 || wideep_instance_valid(text, strlen(text))) &&
               set_text(field, OPTIONS_TEXT_MAX, text);
    case TYPE_PATH: return is_telemetry_path(text) && set_text(field, OPTIONS_TEXT_MAX, text);
    case TYPE_FILE: *(char *)field = 0; return *text == 0 || set_text(field, OPTIONS_TEXT_MAX, text);
    case TYPE_OWNERS: return parse_owners(text, options);
    case TYPE_ADDRESS:
        return options->address_count < OPTIONS_ADDRESSES_MAX && listen_address_valid(text) &&
               set_text(options->addresses[options->address_count++], OPTIONS_TEXT_MAX, text);
    case TYPE_DURATION:
        if (!text_duration(text, &number) || number < row->low || number > row->high)
            return false;
        break;
    case TYPE_NUMBER:
        if (!parse_number(text, &number) || number < row->low || number > row->high)
            return false;
        break;
    case TYPE_CHOICE:
        while (row->choices[number] && strcmp(row->choices[number], text) != 0)
            number++;
        if (!row->choices[number])
            return false;
        break;
    case TYPE_FLAG:
        number = strcmp(text, "true") == 0 || strcmp(text, "1") == 0;
        if (!number && strcmp(text, "false") != 0 && strcmp(text, "0") != 0)
            return false;
        break;
    }
    memcpy(field, &number, sizeof number);
    return true;
}

/* What the program does instead of serving is said on the command line, not by a container's environment. */
static bool in_environment(const struct option_row *row)
{
    return row->offset != AT(version) && row->offset != AT(help) && row->offset != AT(healthcheck);
}

/* ---- parsing ------------------------------------------------------------------------------------------------ */

static void variable_name(const struct option_row *row, char *ret, size_t size)
{
    (void)snprintf(ret, size, "WIDEEP_%s", row->name);
    for (char *c = ret; *c; c++)
        *c = *c == '.' || *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

static int unknown_flag(const char *name, char *error, size_t error_size)
{
    struct nearest nearest = nearest_to(name);

    for (size_t i = 0; i < COUNT(rows); i++)
        nearest_offer(&nearest, rows[i].name);
    (void)snprintf(error, error_size, "unknown flag --%.60s; %s%s%stry --help", name,
                   nearest.name ? "did you mean --" : "", nearest.name ? nearest.name : "", nearest.name ? "? " : "");
    return -EINVAL;
}

static int bad_value(const struct option_row *row, const char *source, const char *text, char *error, size_t error_size)
{
    char allowed[200];

    describe_allowed(row, allowed, sizeof allowed);
    (void)snprintf(error, error_size, "%s: '%.80s' is not allowed; give %s", source, text, allowed);
    return -EINVAL;
}

static const struct option_row *find_row(const char *name, size_t length)
{
    for (size_t i = 0; i < COUNT(rows); i++)
        if (strlen(rows[i].name) == length && strncmp(rows[i].name, name, length) == 0)
            return &rows[i];
    return NULL;
}

static int parse_environment(struct options *options, char *error, size_t error_size)
{
    for (size_t i = 0; i < COUNT(rows); i++) {
        char name[NAME_MAX_LENGTH + 8], items[OPTIONS_ADDRESSES_MAX * OPTIONS_TEXT_MAX];
        variable_name(&rows[i], name, sizeof name);
        const char *text = getenv(name);
        if (!text || !*text || !in_environment(&rows[i]))
            continue;
        if (rows[i].type != TYPE_ADDRESS) {
            if (!set_value(options, &rows[i], text))
                return bad_value(&rows[i], name, text, error, error_size);
            continue;
        }
        if (strlen(text) >= sizeof items)
            return bad_value(&rows[i], name, text, error, error_size);
        memcpy(items, text, strlen(text) + 1);
        char *rest = items;
        for (char *item; (item = strsep(&rest, ",")) != NULL;)
            if (!set_value(options, &rows[i], item))
                return bad_value(&rows[i], name, item, error, error_size);
    }
    return 0;
}

static int parse_flags(struct options *options, int argc, char *const *argv, char *error, size_t error_size)
{
    bool address_seen = false;

    for (int i = 1; i < argc; i++) {
        char source[NAME_MAX_LENGTH + 4];
        if (strcmp(argv[i], "-h") == 0) {
            options->help = 1;
            continue;
        }
        if (strncmp(argv[i], "--", 2) != 0 || argv[i][2] == 0) {
            (void)snprintf(error, error_size, "unexpected argument '%.80s': flags begin with --; try --help", argv[i]);
            return -EINVAL;
        }
        const char *name = argv[i] + 2;
        size_t length = strcspn(name, "=");
        const struct option_row *row = find_row(name, length);
        if (!row) {
            char unknown[NAME_MAX_LENGTH + 1];
            (void)snprintf(unknown, sizeof unknown, "%.*s", (int)(length < NAME_MAX_LENGTH ? length : NAME_MAX_LENGTH),
                           name);
            return unknown_flag(unknown, error, error_size);
        }
        const char *text = name[length] == '=' ? name + length + 1 : row->type == TYPE_FLAG ? "true" : argv[++i];
        (void)snprintf(source, sizeof source, "--%s", row->name);
        if (!text) {
            (void)snprintf(error, error_size, "%s needs a value; try --help", source);
            return -EINVAL;
        }
        /* The first address on the command line replaces those of the environment. */
        if (row->type == TYPE_ADDRESS && !address_seen) {
            options->address_count = 0;
            address_seen = true;
        }
        if (!set_value(options, row, text))
            return bad_value(row, source, text, error, error_size);
    }
    return 0;
}

static int parse_all(struct options *ret, int argc, char *const *argv, char *error, size_t error_size)
{
    struct options options = {0};

    for (size_t i = 0; i < COUNT(rows); i++)
        if (rows[i].type != TYPE_ADDRESS && !set_value(&options, &rows[i], rows[i].initial))
            return bad_value(&rows[i], rows[i].name, rows[i].initial, error, error_size);
    int failed = parse_environment(&options, error, error_size);
    if (!failed)
        failed = parse_flags(&options, argc, argv, error, error_size);
    if (failed)
        return failed;
    if (options.address_count == 0)
        (void)snprintf(options.addresses[options.address_count++], OPTIONS_TEXT_MAX, ":9464");
    if (options.debug_duration_ns > options.debug_max_duration_ns) {
        (void)snprintf(error, error_size,
                       "--debug.duration is longer than --debug.max-duration; shorten it or raise the "
                       "maximum");
        return -EINVAL;
    }
    if (options.web_config_check && options.web_config_file[0] == 0) {
        (void)snprintf(error, error_size, "--web.config.check has nothing to check; give --web.config.file too");
        return -EINVAL;
    }
    *ret = options;
    return 0;
}

int options_parse(struct options *ret, int argc, char *const *argv, char *error, size_t error_size)
{
    int failed = parse_all(ret, argc, argv, error, error_size);

    /* What the user gave is quoted in it, and must not make it more than one line. */
    for (char *c = error; failed && *c; c++)
        if (iscntrl((unsigned char)*c))
            *c = '?';
    return failed;
}

/* A flag's, or the writers', who may share the environment of a pod. */
static bool is_known_variable(const char *name)
{
    for (size_t i = 0; i < COUNT(rows); i++) {
        char known[NAME_MAX_LENGTH + 8];
        variable_name(&rows[i], known, sizeof known);
        if (strcmp(known, name) == 0)
            return true;
    }
    return strcmp(name, "WIDEEP_INSTANCE") == 0;
}

void options_warn_misspelt(char *const *environment)
{
    static const char prefix[] = "WIDEEP_";
    enum { PREFIX_LENGTH = sizeof prefix - 1 };

    for (; *environment; environment++) {
        char name[NEAREST_LENGTH_MAX + 1], known[COUNT(rows)][NAME_MAX_LENGTH + 8];
        size_t length = strcspn(*environment, "=");
        if (strncmp(*environment, prefix, PREFIX_LENGTH) != 0 || length >= sizeof name)
            continue;
        memcpy(name, *environment, length);
        name[length] = 0;
        if (is_known_variable(name))
            continue;
        /* Without what they all begin with, which would make them all alike. */
        struct nearest nearest = nearest_to(name + PREFIX_LENGTH);
        for (size_t i = 0; i < COUNT(rows); i++) {
            variable_name(&rows[i], known[i], sizeof known[i]);
            nearest_offer(&nearest, known[i] + PREFIX_LENGTH);
        }
        if (nearest.name)
            log_warn("unknown variable", "variable", name, "did_you_mean", nearest.name - PREFIX_LENGTH, NULL);
    }
}

void options_print_help(FILE *file)
{
    (void)fprintf(file,
                  "Usage: wideep-exporter [--FLAG=VALUE | --FLAG VALUE]...\n\n"
                  "Serves the load balance and batch overlap of wide expert-parallel engines to Prometheus, read from\n"
                  "the shared-memory segments that their ranks write. Each flag may be given as the environment\n"
                  "variable under it, where repeated values are separated by commas and an empty value counts as\n"
                  "unset; the flag wins.\n\n");
    for (size_t i = 0; i < COUNT(rows); i++) {
        char name[NAME_MAX_LENGTH + 8], allowed[200];
        const bool flag = rows[i].type == TYPE_FLAG;
        variable_name(&rows[i], name, sizeof name);
        describe_allowed(&rows[i], allowed, sizeof allowed);
        (void)fprintf(file, "  --%s%s%s\n      %s\n", rows[i].name, flag ? "" : "=", flag ? "" : rows[i].initial,
                      rows[i].help);
        if (!flag)
            (void)fprintf(file, "      Allowed: %s.\n", allowed);
        if (in_environment(&rows[i]))
            (void)fprintf(file, "      %s\n", name);
    }
}

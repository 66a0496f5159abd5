/* Flags and environment of the daemon. */
#include "options.h"
#include "suite.h"

#define S UINT64_C(1000000000)

static struct options options;
static char error[512];

static const char *const variables[] = {"SHM_DIR",
                                        "SHM_INSTANCE",
                                        "SHM_OWNER",
                                        "WEB_LISTEN_ADDRESS",
                                        "WEB_TELEMETRY_PATH",
                                        "WEB_CONFIG_FILE",
                                        "WEB_CONFIG_CHECK",
                                        "COLLECT_INTERVAL",
                                        "EPLB_WINDOW",
                                        "EPLB_ENGINE_LABEL",
                                        "THROUGHPUT_INTERVAL",
                                        "DEBUG_PER_EXPERT",
                                        "DEBUG_DURATION",
                                        "DEBUG_MAX_DURATION",
                                        "LIMIT_SERIES",
                                        "LOG_LEVEL",
                                        "LOG_FORMAT",
                                        "WEB_SYSTEMD_SOCKET",
                                        "WEB_ENABLE_ADMIN_API",
                                        "HEALTHCHECK",
                                        "VERSION",
                                        "HELP"};

/* The last of them are no variables: they are said on the command line alone. */
#define COMMANDS 3

static void variable(const char *name, const char *value)
{
    char full[64];
    (void)snprintf(full, sizeof full, "WIDEEP_%s", name);
    ck_assert_int_eq(value ? setenv(full, value, 1) : unsetenv(full), 0);
}

static void setup(void)
{
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        variable(variables[i], NULL);
    memset(&options, 0xEE, sizeof options);
    memset(error, 0, sizeof error);
}

static void teardown(void)
{
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        variable(variables[i], NULL);
}

/* Parses up to four arguments. */
static int parse(const char *a, const char *b, const char *c, const char *d)
{
    char text[5][WIDEEP_MAX_PATH + 100] = {"wideep-exporter"};
    const char *const given[] = {a, b, c, d};
    char *argv[6] = {text[0]};
    int argc = 1;
    for (; argc <= 4 && given[argc - 1]; argc++) {
        (void)snprintf(text[argc], sizeof text[argc], "%s", given[argc - 1]);
        argv[argc] = text[argc];
    }
    return options_parse(&options, argc, argv, error, sizeof error);
}

static int parse1(const char *a)
{
    return parse(a, NULL, NULL, NULL);
}

START_TEST(defaults)
{
    ck_assert_int_eq(parse1(NULL), 0);
    ck_assert_str_eq(options.shm_dir, "/dev/shm");
    ck_assert_str_eq(options.shm_instance, "default");
    ck_assert_uint_eq(options.owner_count, 0);
    ck_assert_uint_eq(options.address_count, 1);
    ck_assert_str_eq(options.addresses[0], ":9464");
    ck_assert_str_eq(options.telemetry_path, "/metrics");
    ck_assert_str_eq(options.web_config_file, "");
    ck_assert_uint_eq(options.web_config_check, 0);
    ck_assert_uint_eq(options.collect_interval_ns, S / 4);
    ck_assert_uint_eq(options.eplb_window_ns, 10 * S);
    ck_assert_uint_eq(options.throughput_interval_ns, 10 * S);
    ck_assert_uint_eq(options.advisor_interval_ns, 10 * S);
    ck_assert_uint_eq(options.engine_label, AGGREGATE_EACH);
    ck_assert_uint_eq(options.debug_per_expert, 0);
    ck_assert_uint_eq(options.debug_duration_ns, 300 * S);
    ck_assert_uint_eq(options.debug_max_duration_ns, 3600 * S);
    ck_assert_uint_eq(options.series_limit, 200000);
    ck_assert_uint_eq(options.log_level, LOG_INFO);
    ck_assert_uint_eq(options.log_format, LOG_LOGFMT);
    ck_assert_uint_eq(options.systemd_socket, 0);
    ck_assert_uint_eq(options.admin_api, 0);
    ck_assert_uint_eq(options.healthcheck, 0);
    ck_assert_uint_eq(options.version, 0);
    ck_assert_uint_eq(options.help, 0);
}
END_TEST

START_TEST(every_flag)
{
    ck_assert_int_eq(parse("--web.systemd-socket", "--web.enable-admin-api=true", "--healthcheck", NULL), 0);
    ck_assert_uint_eq(options.systemd_socket, 1);
    ck_assert_uint_eq(options.admin_api, 1);
    ck_assert_uint_eq(options.healthcheck, 1);
    ck_assert_int_eq(parse("--shm.dir=/run/w", "--shm.instance", "*", "--shm.owner=0,1000"), 0);
    ck_assert_str_eq(options.shm_dir, "/run/w");
    ck_assert_str_eq(options.shm_instance, "*");
    ck_assert_uint_eq(options.owner_count, 2);
    ck_assert_uint_eq(options.owners[0], 0);
    ck_assert_uint_eq(options.owners[1], 1000);
    ck_assert_int_eq(
        parse("--web.telemetry-path=/m", "--collect.interval=10ms", "--eplb.window=1m30s", "--eplb.engine-label=first"),
        0);
    ck_assert_str_eq(options.telemetry_path, "/m");
    ck_assert_uint_eq(options.collect_interval_ns, S / 100);
    ck_assert_uint_eq(options.eplb_window_ns, 90 * S);
    ck_assert_uint_eq(options.engine_label, AGGREGATE_FIRST);
    ck_assert_int_eq(
        parse("--throughput.interval=1h", "--debug.per-expert", "--debug.duration=24h", "--debug.max-duration=24h"), 0);
    ck_assert_uint_eq(options.throughput_interval_ns, 3600 * S);
    ck_assert_uint_eq(options.debug_per_expert, 1);
    ck_assert_uint_eq(options.debug_duration_ns, 24 * 3600 * S);
    ck_assert_uint_eq(options.debug_max_duration_ns, 24 * 3600 * S);
    ck_assert_int_eq(parse("--limit.series=100", "--log.level=debug", "--log.format=json", "--debug.per-expert=false"),
                     0);
    ck_assert_uint_eq(options.series_limit, 100);
    ck_assert_uint_eq(options.log_level, LOG_DEBUG);
    ck_assert_uint_eq(options.log_format, LOG_JSON);
    ck_assert_uint_eq(options.debug_per_expert, 0);
    ck_assert_int_eq(parse("--version", "--help", NULL, NULL), 0);
    ck_assert_uint_eq(options.version, 1);
    ck_assert_uint_eq(options.help, 1);
    /* The later of two wins. */
    ck_assert_int_eq(parse("--shm.instance=a", "--shm.instance=b", NULL, NULL), 0);
    ck_assert_str_eq(options.shm_instance, "b");
}
END_TEST

START_TEST(addresses)
{
    ck_assert_int_eq(parse("--web.listen-address=:1", "--web.listen-address", "[::1]:2", "--web.listen-address=h:3"),
                     0);
    ck_assert_uint_eq(options.address_count, 3);
    ck_assert_str_eq(options.addresses[0], ":1");
    ck_assert_str_eq(options.addresses[1], "[::1]:2");
    ck_assert_str_eq(options.addresses[2], "h:3");
    variable("WEB_LISTEN_ADDRESS", ":7,:8");
    ck_assert_int_eq(parse1(NULL), 0);
    ck_assert_uint_eq(options.address_count, 2);
    ck_assert_str_eq(options.addresses[1], ":8");
    ck_assert_int_eq(parse1("--web.listen-address=:9"), 0); /* the flag's replace the environment's */
    ck_assert_uint_eq(options.address_count, 1);
    ck_assert_str_eq(options.addresses[0], ":9");
    variable("WEB_LISTEN_ADDRESS", ":1,:2,:3,:4,:5,:6,:7,:8");
    ck_assert_int_eq(parse1(NULL), 0);
    ck_assert_uint_eq(options.address_count, OPTIONS_ADDRESSES_MAX);
    variable("WEB_LISTEN_ADDRESS", ":1,:2,:3,:4,:5,:6,:7,:8,:9");
    ck_assert_int_eq(parse1(NULL), -EINVAL);
    variable("WEB_LISTEN_ADDRESS", ":1,,:3");
    ck_assert_int_eq(parse1(NULL), -EINVAL);
    variable("WEB_LISTEN_ADDRESS", NULL);
    ck_assert_int_eq(parse1("--web.listen-address=nowhere"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "--web.listen-address"));
    ck_assert_ptr_nonnull(strstr(error, "nowhere"));
    ck_assert_int_eq(parse1("--web.listen-address=:65536"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "up to 65535"));
    variable("WEB_LISTEN_ADDRESS", ":1,:99999");
    ck_assert_int_eq(parse1(NULL), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "WIDEEP_WEB_LISTEN_ADDRESS: ':99999'"));
}
END_TEST

START_TEST(environment)
{
    variable("SHM_DIR", "/env");
    variable("EPLB_WINDOW", "20s");
    variable("DEBUG_PER_EXPERT", "1");
    variable("LOG_LEVEL", "error");
    variable("SHM_OWNER", "7");
    variable("SHM_INSTANCE", ""); /* empty: as if it were not there */
    variable("VERSION", "1.2.3"); /* somebody else's */
    variable("HELP", "nonsense");
    variable("HEALTHCHECK", "true");
    ck_assert_int_eq(parse("--shm.dir=/flag", "--shm.owner=any", NULL, NULL), 0);
    ck_assert_str_eq(options.shm_dir, "/flag");
    ck_assert_uint_eq(options.owner_count, 0);
    ck_assert_str_eq(options.shm_instance, "default");
    ck_assert_uint_eq(options.eplb_window_ns, 20 * S);
    ck_assert_uint_eq(options.debug_per_expert, 1);
    ck_assert_uint_eq(options.log_level, LOG_ERROR);
    ck_assert_uint_eq(options.version, 0);
    ck_assert_uint_eq(options.help, 0);
    variable("EPLB_WINDOW", "soon");
    ck_assert_int_eq(parse1(NULL), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "WIDEEP_EPLB_WINDOW"));
    ck_assert_ptr_nonnull(strstr(error, "'soon'"));
}
END_TEST

START_TEST(web_config)
{
    char path[OPTIONS_TEXT_MAX + 20] = "--web.config.file=/";
    ck_assert_int_eq(parse("--web.config.file=a/b.yml", "--web.config.check", NULL, NULL), 0);
    ck_assert_str_eq(options.web_config_file, "a/b.yml");
    ck_assert_uint_eq(options.web_config_check, 1);
    ck_assert_int_eq(parse1("--web.config.check"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "give --web.config.file"));
    variable("WEB_CONFIG_FILE", "/env.yml");
    ck_assert_int_eq(parse1("--web.config.check"), 0);
    ck_assert_str_eq(options.web_config_file, "/env.yml");
    ck_assert_int_eq(parse1("--web.config.file="), 0); /* none after all */
    ck_assert_str_eq(options.web_config_file, "");
    memset(path + strlen(path), 'x', OPTIONS_TEXT_MAX - 1);
    path[sizeof path - 1] = 0;
    ck_assert_int_eq(parse1(path), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "at most 255 characters"));
}
END_TEST

START_TEST(bad_values)
{
    static const struct {
        const char *flag, *says;
    } bad[] = {{"--shm.dir=", "--shm.dir"},
               {"--shm.instance=.hidden", "leading dot"},
               {"--shm.instance=a/b", "'a/b'"},
               {"--shm.owner=root", "numeric user ids"},
               {"--shm.owner=1,", "--shm.owner"},
               {"--shm.owner=4294967295", "--shm.owner"},
               {"--shm.owner=-1", "--shm.owner"},
               {"--shm.owner=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "16"},
               {"--web.telemetry-path=metrics", "that begins with /"},
               {"--web.telemetry-path=/", "that begins with /"},
               {"--web.telemetry-path=/a?b", "that begins with /"},
               {"--web.telemetry-path=/a\"><b", "that begins with /"},
               {"--web.telemetry-path=/a%20b", "that begins with /"},
               {"--web.telemetry-path=/-", "'/-' is not allowed; give a path that begins with /"},
               {"--web.telemetry-path=/-/healthy", "/-, /lb, /api and what is below these are other pages"},
               {"--web.telemetry-path=/lb", "are other pages"},
               {"--web.telemetry-path=/lb/", "are other pages"},
               {"--web.telemetry-path=/lb/metrics", "are other pages"},
               {"--web.telemetry-path=/api", "are other pages"},
               {"--web.telemetry-path=/api/v1/state", "are other pages"},
               {"--log.level=two\nlines", "'two?lines'"},
               {"--two\nlines", "--two?lines"},
               {"--collect.interval=9ms", "from 10ms to 60s"},
               {"--collect.interval=61s", "from 10ms to 60s"},
               {"--eplb.window=999ms", "from 1s to 1h"},
               {"--eplb.window=10", "such as"},
               {"--eplb.window=s", "such as"},
               {"--eplb.window=-1s", "such as"},
               {"--eplb.window=1 s", "such as"},
               {"--eplb.window=1e999s", "such as"},
               {"--eplb.window=nan", "such as"},
               {"--eplb.window=0x10s", "such as"},
               {"--eplb.window=1e1s", "such as"},
               {"--eplb.window=1.2.3s", "such as"},
               {"--eplb.window=.5s", "such as"},
               {"--eplb.window=0", "from 1s to 1h"},
               {"--eplb.window=999999999h", "such as"},
               {"--eplb.window=5124095h34m33.709551616s10s", "such as"}, /* 10s, modulo 2^64 ns */
               {"--eplb.window=18446744073709551617s", "such as"},
               {"--eplb.engine-label=both", "each or first"},
               {"--limit.series=99", "from 100 to 10000000"},
               {"--limit.series=100x", "whole number"},
               {"--limit.series=18446744073709551717", "whole number"},
               {"--log.level=loud", "debug or info or warn or error"},
               {"--log.format=xml", "logfmt or json"},
               {"--debug.per-expert=maybe", "true or false"},
               {"--debug.duration=2h", "--debug.max-duration"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(parse1(bad[i].flag) == -EINVAL, "%s", bad[i].flag);
        ck_assert_msg(strstr(error, bad[i].says) != NULL, "%s: %s", bad[i].flag, error);
        ck_assert_ptr_null(strchr(error, '\n'));
    }
    char longer[WIDEEP_MAX_PATH + 50];
    memset(longer, 'a', sizeof longer);
    memcpy(longer, "--shm.dir=", 10);
    longer[10 + WIDEEP_MAX_PATH] = 0;
    ck_assert_int_eq(parse1(longer), 0);
    ck_assert_uint_eq(strlen(options.shm_dir), WIDEEP_MAX_PATH);
    longer[10 + WIDEEP_MAX_PATH] = 'a';
    longer[10 + WIDEEP_MAX_PATH + 1] = 0;
    ck_assert_int_eq(parse1(longer), -EINVAL);
}
END_TEST

START_TEST(unknown_flags)
{
    ck_assert_int_eq(parse1("--shm.dri=/x"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "--shm.dri;"));
    ck_assert_ptr_nonnull(strstr(error, "did you mean --shm.dir?"));
    ck_assert_int_eq(parse1("--eplb-window=10s"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "did you mean --eplb.window?"));
    ck_assert_int_eq(parse1("--something.quite.different"), -EINVAL);
    ck_assert_ptr_null(strstr(error, "did you mean"));
    ck_assert_ptr_nonnull(strstr(error, "--help"));
    ck_assert_int_eq(parse1("--bogus"), -EINVAL); /* as far from --help as from anything */
    ck_assert_ptr_null(strstr(error, "did you mean"));
    ck_assert_int_eq(parse1("--shm.di"), -EINVAL); /* no abbreviations */
    ck_assert_int_eq(parse1("shm.dir=/x"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "unexpected argument 'shm.dir=/x'"));
    ck_assert_int_eq(parse1("--"), -EINVAL);
    ck_assert_int_eq(parse1("-v"), -EINVAL);
    ck_assert_int_eq(parse1("-h"), 0);
    ck_assert_uint_eq(options.help, 1);
    ck_assert_int_eq(parse1("--shm.dir"), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "--shm.dir needs a value"));
    char longer[300];
    memset(longer, '-', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    ck_assert_int_eq(parse1(longer), -EINVAL);
}
END_TEST

/* What is logged about variables of these names. */
static void misspelt(char *ret, size_t size, char *a, char *b)
{
    char *const given[] = {a, b, NULL};
    FILE *file = tmpfile();
    int saved = dup(STDERR_FILENO);

    ck_assert(file && saved >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
    options_warn_misspelt(given);
    ck_assert(dup2(saved, STDERR_FILENO) >= 0);
    (void)close(saved);
    rewind(file);
    ret[fread(ret, 1, size - 1, file)] = 0;
    (void)fclose(file);
}

START_TEST(misspelt_variables)
{
    char text[1000], longer[300] = "WIDEEP_";

    misspelt(text, sizeof text, (char[]){"WIDEEP_LOGLEVEL=debug"}, (char[]){"WIDEEP_SHM_DIR=/x"});
    ck_assert_ptr_nonnull(strstr(text, "level=warn"));
    ck_assert_ptr_nonnull(strstr(text, "variable=WIDEEP_LOGLEVEL did_you_mean=WIDEEP_LOG_LEVEL\n"));
    ck_assert_ptr_null(strstr(text, "SHM_DIR"));
    misspelt(text, sizeof text, (char[]){"WIDEEP_INSTANCE=blue"}, (char[]){"WIDEEP_BUILD=/b"});
    ck_assert_str_eq(text, "");
    /* What Kubernetes sets for a service of that name. */
    misspelt(text, sizeof text, (char[]){"WIDEEP_EXPORTER_SERVICE_PORT=1"},
             (char[]){"WIDEEP_EXPORTER_PORT_9464_TCP=t"});
    ck_assert_str_eq(text, "");
    memset(longer + 7, 'A', sizeof longer - 8);
    misspelt(text, sizeof text, longer, (char[]){"OTHER_LOG_LEVE=x"});
    ck_assert_str_eq(text, "");
}
END_TEST

START_TEST(durations)
{
    static const struct {
        const char *flag;
        uint64_t ns;
    } good[] = {{"--eplb.window=1s", S},
                {"--eplb.window=1500ms", 3 * S / 2},
                {"--eplb.window=1.5s", 3 * S / 2},
                {"--eplb.window=2000000us", 2 * S},
                {"--eplb.window=2s999999999ns", 3 * S - 1},
                {"--eplb.window=1m", 60 * S},
                {"--eplb.window=1m1s1ms", 61 * S + S / 1000},
                {"--eplb.window=0h59m60s", 3600 * S},
                {"--eplb.window=1h", 3600 * S}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        ck_assert_msg(parse1(good[i].flag) == 0, "%s: %s", good[i].flag, error);
        ck_assert_uint_eq(options.eplb_window_ns, good[i].ns);
    }
}
END_TEST

START_TEST(help)
{
    char *text = NULL;
    size_t length = 0;
    FILE *file = open_memstream(&text, &length);
    ck_assert_ptr_nonnull(file);
    options_print_help(file);
    ck_assert_int_eq(fclose(file), 0);
    for (size_t i = 0; i < sizeof variables / sizeof *variables - COMMANDS; i++) {
        char full[64];
        (void)snprintf(full, sizeof full, "WIDEEP_%s\n", variables[i]);
        ck_assert_msg(strstr(text, full) != NULL, "%s", full);
    }
    ck_assert_ptr_nonnull(strstr(text, "--help\n"));
    ck_assert_ptr_nonnull(strstr(text, "at most 8 of them"));
    ck_assert_ptr_nonnull(strstr(text, "up to 16 numeric user ids"));
    ck_assert_ptr_nonnull(strstr(text, "from 10ms to 60s"));
    ck_assert_ptr_nonnull(strstr(text, "Allowed: debug or info or warn or error."));
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("options");
    TCase *tcase = tcase_create("options");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, defaults);
    tcase_add_test(tcase, every_flag);
    tcase_add_test(tcase, addresses);
    tcase_add_test(tcase, environment);
    tcase_add_test(tcase, web_config);
    tcase_add_test(tcase, bad_values);
    tcase_add_test(tcase, unknown_flags);
    tcase_add_test(tcase, misspelt_variables);
    tcase_add_test(tcase, durations);
    tcase_add_test(tcase, help);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

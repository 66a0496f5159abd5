/* wideep-top: the state of wide expert-parallel engines in a terminal, read straight from their segments. */
#include "top.h"

#include "collector.h"
#include "log.h"
#include "options.h"
#include "text.h"
#include "version.h"

#include <fcntl.h>
#include <langinfo.h>
#include <locale.h>
#include <pthread.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

#define SECOND_NS    UINT64_C(1000000000)
#define ONCE_COLUMNS 100
#define ONCE_ROWS    30

enum { EXIT_USAGE = 2 };

struct top {
    struct options options; /* the exporter's, by its own rules */
    uint64_t interval_ns;
    bool once, json;
    struct top_ui ui;

    struct lb *lb;
    struct state_board *board;
    struct collector *collector;
    struct collector_config config;
    struct top_model model;
    struct top_history history;
    bool ascii;
};

/* ---- options ------------------------------------------------------------------------------------------------ */

static const char *value_of(const char *argument, const char *name)
{
    const size_t length = strlen(name);

    return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool parse_view(struct top *top, const char *text)
{
    for (unsigned view = 0; view < TOP_HELP; view++)
        if (strcmp(text, top_view_names[view]) == 0) {
            top->ui.view = (enum top_view)view;
            return true;
        }
    return false;
}

static bool parse_layer(struct top *top, const char *text)
{
    char *end;
    unsigned long layer = strtoul(text, &end, 10);

    top->ui.layer = (uint32_t)layer;
    return *text >= '0' && *text <= '9' && *end == 0 && layer < WIDEEP_MAX_LAYERS;
}

/* One of this program alone: 1, no other's: 0, or -EINVAL. `next`: the argument behind it; *ret_used: it was taken. */
static int parse_own(struct top *top, const char *argument, const char *next, bool *ret_used)
{
    static const struct {
        const char *name, *allowed;
    } valued[] = {{"--interval", "a duration from 100ms to 60s"},
                  {"--view", "engines, groups, layers, ranks or experts"},
                  {"--layer", "the number of a layer"}};

    *ret_used = false;
    top->once = top->once || strcmp(argument, "--once") == 0;
    top->json = top->json || strcmp(argument, "--json") == 0;
    if (strcmp(argument, "--once") == 0 || strcmp(argument, "--json") == 0)
        return 1;
    for (unsigned i = 0; i < 3; i++) {
        *ret_used = strcmp(argument, valued[i].name) == 0;
        const char *text = *ret_used ? next : value_of(argument, valued[i].name);
        if (!text && !*ret_used)
            continue;
        bool good = text && (i == 0 ? text_duration(text, &top->interval_ns) && top->interval_ns >= SECOND_NS / 10 &&
                                          top->interval_ns <= 60 * SECOND_NS
                             : i == 1 ? parse_view(top, text)
                                      : parse_layer(top, text));
        if (!good)
            (void)fprintf(stderr, "wideep-top: %s takes %s; try --help\n", valued[i].name, valued[i].allowed);
        return good ? 1 : -EINVAL;
    }
    return 0;
}

/* What is not this program's own is left to the exporter's parser, which knows the variables too. */
static int parse(struct top *top, int argc, char **argv)
{
    char **rest = calloc((size_t)argc + 1, sizeof *rest), error[512];
    int count = 0, failed = rest ? 0 : -ENOMEM;

    for (int i = 0; i < argc && !failed; i++) {
        bool used = false;
        int own = i == 0 ? 0 : parse_own(top, argv[i], argv[i + 1], &used);
        if (own == 0)
            rest[count++] = argv[i];
        failed = own < 0 ? own : 0;
        i += used;
    }
    if (!failed) {
        failed = options_parse(&top->options, count, rest, error, sizeof error);
        if (failed)
            (void)fprintf(stderr, "wideep-top: %s\n", error);
    }
    free(rest);
    return failed;
}

static void print_help(void)
{
    (void)printf("Usage: wideep-top [--FLAG=VALUE | --FLAG VALUE]...\n"
                 "\n"
                 "Shows in a terminal what wide expert-parallel engines do, what is wrong and what to do. Reads their\n"
                 "shared-memory segments itself: neither a network nor wideep-exporter is needed. ? shows the keys.\n"
                 "\n"
                 "Flags:\n"
                 "  --once              print one frame as text, after watching for --interval, and exit\n"
                 "  --json              the same as one JSON document\n"
                 "  --interval=1s       time between frames, 100ms to 60s\n"
                 "  --view=engines      engines, groups, layers, ranks or experts\n"
                 "  --layer=0           the layer whose experts are shown\n"
                 "  --version, --help\n"
                 "\n"
                 "and those of wideep-exporter, with their WIDEEP_ variables, of which these count here:\n"
                 "  --shm.dir=/dev/shm  --shm.instance=default  --shm.owner=any  --eplb.window=10s\n"
                 "  --advisor.interval=10s\n"
                 "\n"
                 "Exit status: 0; 1 when there is no such terminal, or a failure; 2 for wrong usage.\n");
}

/* ---- reading ------------------------------------------------------------------------------------------------ */

static int start(struct top *top)
{
    const struct options *options = &top->options;
    const bool one_frame = top->once || top->json;

    top->config = (struct collector_config){
        .segments = {.directory = options->shm_dir,
                     .instance = strcmp(options->shm_instance, "*") == 0 ? NULL : options->shm_instance,
                     .owner_count = options->owner_count},
        .aggregate = {.window_ns = options->eplb_window_ns, .throughput_ns = top->interval_ns},
        .interval_ns = top->interval_ns < SECOND_NS / 2 ? top->interval_ns / 2 : SECOND_NS / 4,
        .series_limit = options->series_limit,
        /* A single frame has the advice of what it watched, or none. */
        .advisor_ns =
            one_frame && options->advisor_interval_ns > 0 ? top->interval_ns / 2 : options->advisor_interval_ns,
        .version = WIDEEP_VERSION,
        .commit = WIDEEP_COMMIT,
    };
    memcpy(top->config.segments.owners, options->owners, sizeof top->config.segments.owners);
    int error = lb_new(&top->lb, !top->config.segments.instance);
    if (!error)
        error = state_new(&top->board);
    top->config.lb = top->lb;
    top->config.state = top->board;
    return error ? error : collector_start(&top->collector, &top->config);
}

static void stop(struct top *top)
{
    collector_stop(top->collector);
    state_free(top->board);
    lb_free(top->lb);
    top_model_free(&top->model);
    top_history_free(&top->history);
}

/* Per-expert loads cost copies of whole planes: only for what is shown. */
static void want_experts(struct top *top)
{
    struct collector_debug debug = {.on = top->json || top->ui.view == TOP_EXPERTS, .until_ns = UINT64_MAX};

    debug.layers.words[top->ui.layer / 64] |= UINT64_C(1) << top->ui.layer % 64;
    collector_set_debug(top->collector, &debug);
}

/* What there was stays when nothing newer can be had. */
static void read_model(struct top *top)
{
    want_experts(top);
    (void)top_model_read(&top->model, top->board, &top->config.segments, top->ui.layer, &top->history);
}

/* ---- one frame ---------------------------------------------------------------------------------------------- */

static unsigned number_of_environment(const char *name, unsigned otherwise)
{
    const char *text = getenv(name);
    unsigned long number = text ? strtoul(text, NULL, 10) : 0;

    return number >= 20 && number <= 1000 ? (unsigned)number : otherwise;
}

static int print_frame(struct top *top)
{
    struct top_canvas canvas;
    int error = top_canvas_new(&canvas, number_of_environment("LINES", ONCE_ROWS),
                               number_of_environment("COLUMNS", ONCE_COLUMNS), top->ascii);

    if (error)
        return error;
    top_draw(&canvas, &top->model, &top->ui);
    error = top_canvas_print(&canvas, stdout);
    top_canvas_free(&canvas);
    return error;
}

static int run_once(struct top *top, int signals)
{
    struct pollfd wait = {.fd = signals, .events = POLLIN};

    read_model(top);
    /* A signal ends the program, not the wait alone. */
    if (poll(&wait, 1, (int)(top->interval_ns / 1000000)) > 0)
        return -EINTR;
    read_model(top);
    int error = top->json ? top_json(&top->model, stdout) : print_frame(top);
    return !error && fflush(stdout) != 0 ? -EIO : error;
}

/* ---- the terminal ------------------------------------------------------------------------------------------- */

static int draw(struct top *top)
{
    struct top_canvas canvas;
    unsigned rows, columns;

    top_screen_size(&rows, &columns);
    int error = top_canvas_new(&canvas, rows, columns, top->ascii);
    if (error)
        return error;
    top_draw(&canvas, &top->model, &top->ui);
    top_screen_show(&canvas);
    top_canvas_free(&canvas);
    return 0;
}

/* Leaves the terminal to the shell; goes on here when the shell says so. */
static int suspend(void)
{
    top_screen_end();
    (void)kill(getpid(), SIGSTOP);
    return top_screen_begin();
}

/* Returns 0, 1 to end in order, or a negative errno. */
static int take_signal(int signals)
{
    struct signalfd_siginfo info;

    if (read(signals, &info, sizeof info) != sizeof info)
        return 0;
    switch (info.ssi_signo) {
    case SIGTSTP: return suspend();
    case SIGCONT: top_screen_redraw(); return 0;
    case SIGWINCH: top_screen_resize(); return 0;
    default: return 1;
    }
}

static bool take_keys(struct top *top)
{
    uint32_t key;

    while (top_screen_key(&key))
        (void)top_key(&top->ui, &top->model, key);
    return top->ui.quit;
}

static int run_screen(struct top *top, int signals)
{
    struct pollfd waits[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    uint64_t due_ns = 0;
    int error = 0;

    while (!error) {
        uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= due_ns && !top->ui.paused)
            read_model(top);
        if (now_ns >= due_ns)
            due_ns = now_ns + top->interval_ns;
        error = draw(top);
        if (error || poll(waits, 2, (int)((due_ns - now_ns) / 1000000) + 1) < 0)
            continue;
        if (waits[1].revents)
            error = take_signal(signals);
        if (!error && (waits[0].revents & (POLLHUP | POLLERR)))
            return 0; /* the terminal is gone */
        if (!error && waits[0].revents && take_keys(top))
            return 0;
    }
    return error > 0 ? 0 : error;
}

static int complain_terminal(int error)
{
    const char *term = getenv("TERM");

    if (error == -ENOTTY)
        (void)fputs("wideep-top: standard input and output are no terminal; give --once or --json\n", stderr);
    else if (!term || !*term)
        (void)fputs("wideep-top: TERM is not set; set it (such as TERM=xterm), or give --once\n", stderr);
    else
        (void)fputs("wideep-top: the terminal that TERM names is not known here; try TERM=xterm, or give --once\n",
                    stderr);
    return EXIT_FAILURE;
}

/* Lines of the log would stand in the middle of the frame. A file that they go to gets them. */
static void silence_log(void)
{
    int null = isatty(STDERR_FILENO) ? open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;

    if (null >= 0) {
        (void)dup2(null, STDERR_FILENO);
        (void)close(null);
    }
}

/* ---- the program -------------------------------------------------------------------------------------------- */

/* A container often says nothing of its locale, while the terminals that are attached to it speak UTF-8. */
static bool choose_locale(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    bool said = false;

    for (unsigned i = 0; i < 3; i++)
        said = said || (getenv(names[i]) && *getenv(names[i]));
    (void)setlocale(LC_CTYPE, said ? "" : "C.UTF-8");
    return strcmp(nl_langinfo(CODESET), "UTF-8") != 0;
}

static int run(struct top *top, int signals)
{
    const bool one_frame = top->once || top->json;
    int terminal = one_frame ? 0 : top_screen_begin();

    if (terminal)
        return complain_terminal(terminal);
    int saved = dup(STDERR_FILENO);
    if (!one_frame)
        silence_log();
    int error = start(top);
    if (!error)
        error = one_frame ? run_once(top, signals) : run_screen(top, signals);
    top_screen_end();
    stop(top);
    if (saved >= 0)
        (void)dup2(saved, STDERR_FILENO);
    if (error && error != -EINTR)
        (void)fprintf(stderr, "wideep-top: %s\n", strerror(-error));
    return error ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT, SIGWINCH};
    struct top top = {.interval_ns = SECOND_NS, .ui = {.sort = TOP_WORST_FIRST}};
    sigset_t set;

    if (parse(&top, argc, argv) != 0)
        return EXIT_USAGE;
    if (top.options.help) {
        print_help();
        return EXIT_SUCCESS;
    }
    if (top.options.version) {
        (void)printf("wideep-top %s (commit %s)\n", WIDEEP_VERSION, WIDEEP_COMMIT);
        return EXIT_SUCCESS;
    }
    top.ascii = choose_locale();
    log_setup(LOG_WARN, LOG_LOGFMT);
    (void)signal(SIGPIPE, SIG_IGN);
    /* Before the collector's threads, which inherit the mask: they are all read from one descriptor. */
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        sigaddset(&set, numbers[i]);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    int signals = signalfd(-1, &set, SFD_CLOEXEC);
    if (signals < 0) {
        (void)fprintf(stderr, "wideep-top: %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    return run(&top, signals);
}

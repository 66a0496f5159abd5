/* writer: a rank that does as it is told, one command a line on standard input, one answer a line on standard
 * output. Valid C11 and C++17; writer_cxx.cc builds it as the latter.
 *
 * The tokens that it "routes" follow a formula, which the tests' own reader works out again:
 *     load(model, pass, layer, p) = (31 pass + 7 layer + 13 p + 5 rank + 3 model) mod 97
 *     expert in slot p            = (3 p + layer + pass) mod (logical + 1) - 1
 */
#include "wideep_shm.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static char *writer_argv0;
static struct wideep_writer *writer;
static char text[8192], arguments[8192];
static char *saved;

static const char *word_or(const char *otherwise)
{
    const char *word = strtok_r(NULL, " \n", &saved);
    return word ? word : otherwise;
}

static uint64_t number_or(uint64_t otherwise)
{
    const char *word = strtok_r(NULL, " \n", &saved);
    return word ? strtoull(word, NULL, 0) : otherwise;
}

/* Bytes as hexadecimal, so that a name can hold any. */
static char *unhex(const char *hex)
{
    size_t length = strlen(hex) / 2;
    char *bytes = (char *)calloc(1, length + 1);
    for (size_t i = 0; bytes && i < length; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        bytes[i] = (char)strtoul(pair, NULL, 16);
    }
    return bytes;
}

/* create key=value…; model=HEXNAME:layers:logical:physical may repeat. */
static void writer_create(void)
{
    struct wideep_config config;
    char *kept[WIDEEP_MAX_MODELS + 2];
    unsigned kept_count = 0;
    memset(&config, 0, sizeof config);
    for (char *word; (word = strtok_r(NULL, " \n", &saved)) != NULL;) {
        char *value = strchr(word, '=');
        if (!value)
            continue;
        *value++ = 0;
        uint64_t number = strtoull(value, NULL, 0);
        uint32_t small = (uint32_t)number;
        if (strcmp(word, "dir") == 0)
            config.directory = value;
        else if (strcmp(word, "instance") == 0)
            config.instance = value;
        else if (strcmp(word, "role") == 0)
            config.role = small;
        else if (strcmp(word, "engine") == 0)
            config.engine = small;
        else if (strcmp(word, "rank") == 0)
            config.rank = small;
        else if (strcmp(word, "ep") == 0)
            config.ep_size = small;
        else if (strcmp(word, "tp_rank") == 0)
            config.tp_rank = small;
        else if (strcmp(word, "tp_size") == 0)
            config.tp_size = small;
        else if (strcmp(word, "dp_rank") == 0)
            config.dp_rank = small;
        else if (strcmp(word, "dp_size") == 0)
            config.dp_size = small;
        else if (strcmp(word, "flags") == 0)
            config.flags = small;
        else if (strcmp(word, "group") == 0)
            config.group = number;
        else if (strcmp(word, "interval") == 0)
            config.rearrangement_interval = number;
        else if (strcmp(word, "model") == 0 && config.model_count < WIDEEP_MAX_MODELS) {
            struct wideep_model_config *model = &config.models[config.model_count++];
            char *colon = strchr(value, ':');
            unsigned layers = 0, logical = 0, physical = 0;
            if (colon) {
                *colon = 0;
                if (sscanf(colon + 1, "%u:%u:%u", &layers, &logical, &physical) < 1)
                    layers = 0;
            }
            model->name = kept[kept_count++] = unhex(value);
            model->layers = layers;
            model->logical_experts = logical;
            model->physical_experts = physical;
        }
    }
    struct wideep_writer *fresh = NULL;
    int error = wideep_create(&fresh, &config);
    if (error || !fresh)
        printf("%d\n", error);
    else
        printf("0 %d %" PRIu64 " %" PRIu64 "\n", (int)wideep_origin(fresh), fresh->identity.lineage,
               fresh->identity.instance_id);
    if (!error)
        writer = fresh;
    while (kept_count > 0)
        free(kept[--kept_count]);
}

/* pass MODEL PASS STEP DURATION MAP [COUNT]: COUNT passes with consecutive numbers. MAP 0: none. */
static int writer_pass(void)
{
    struct wideep_pass pass;
    memset(&pass, 0, sizeof pass);
    pass.model = (uint32_t)number_or(0);
    pass.pass = number_or(0);
    pass.step = (uint32_t)number_or(WIDEEP_STEP_UNKNOWN);
    pass.rearrangement_duration_ns = number_or(0);
    int mapped = number_or(1) != 0;
    uint64_t count = number_or(1);
    if (!writer || pass.model >= writer->identity.model_count)
        return -EINVAL;
    const struct wideep_model *model = &writer->identity.models[pass.model];
    size_t size = (size_t)model->layers * model->physical_experts;
    int32_t *loads = (int32_t *)calloc(size + 1, 4), *map = (int32_t *)calloc(size + 1, 4);
    int error = loads && map ? 0 : -ENOMEM;
    for (; !error && count > 0; count--, pass.pass++) {
        for (uint32_t layer = 0; layer < model->layers; layer++)
            for (uint32_t p = 0; p < model->physical_experts; p++) {
                size_t at = (size_t)layer * model->physical_experts + p;
                loads[at] =
                    (int32_t)((31 * pass.pass + 7 * layer + 13 * p + 5 * writer->identity.rank + 3 * pass.model) % 97);
                map[at] = (int32_t)((3 * p + layer + pass.pass) % (model->logical_experts + 1)) - 1;
            }
        error = wideep_record_pass(writer, &pass, loads, mapped ? map : NULL);
        pass.rearrangement_duration_ns = 0;
    }
    free(loads);
    free(map);
    return error;
}

/* eplb MODEL PASS COUNT: layers 0, 2, 4 … with avg 10 + layer, max 20 + 2 layer. */
static int writer_eplb(void)
{
    struct wideep_pass pass;
    struct wideep_eplb_layer layers[WIDEEP_MAX_LAYERS];
    memset(&pass, 0, sizeof pass);
    memset(layers, 0, sizeof layers);
    pass.model = (uint32_t)number_or(0);
    pass.pass = number_or(0);
    pass.step = WIDEEP_STEP_UNKNOWN;
    uint32_t count = (uint32_t)number_or(1);
    for (uint32_t i = 0; i < count && i < WIDEEP_MAX_LAYERS; i++) {
        layers[i].layer = 2 * i;
        layers[i].avg_tokens_per_rank = 10.0 + 2.0 * i;
        layers[i].max_tokens_per_rank = 20.0 + 4.0 * i;
    }
    return wideep_record_eplb(writer, &pass, layers, count);
}

/* dbo PASS PHASE OUTCOME UBATCHES TOKENS… */
static int writer_dbo(void)
{
    struct wideep_dbo_stats stats;
    memset(&stats, 0, sizeof stats);
    stats.pass = number_or(0);
    stats.phase = (uint32_t)number_or(0);
    stats.outcome = (uint32_t)number_or(0);
    stats.ubatches = (uint32_t)number_or(0);
    for (unsigned i = 0; i < WIDEEP_MAX_UBATCHES; i++)
        stats.ubatch_tokens[i] = (uint32_t)number_or(0);
    return wideep_record_dbo(writer, &stats);
}

/* Every function in a forked child that then outlives this process; prints the child's pid and what they
 * returned. */
static void writer_fork(void)
{
    int ends[2];
    char answer[512];
    (void)fflush(stdout);
    if (pipe(ends) != 0) {
        printf("%d\n", -errno);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        struct wideep_pass pass;
        struct wideep_eplb_layer layer;
        struct wideep_dbo_stats stats;
        static int32_t loads[64];
        memset(&pass, 0, sizeof pass);
        memset(&layer, 0, sizeof layer);
        memset(&stats, 0, sizeof stats);
        int a = wideep_record_pass(writer, &pass, loads, NULL), b = wideep_skip_pass(writer, &pass);
        int c = wideep_record_eplb(writer, &pass, &layer, 1), d = wideep_record_dbo(writer, &stats);
        int e = wideep_rearrangement_begin(writer, 0, WIDEEP_SYNC), f = wideep_rearrangement_end(writer, 0, NULL);
        int g = wideep_rearrangement_abort(writer, 0), h = wideep_record_tokens(writer, 1000, 1000);
        int i = wideep_check(writer);
        wideep_close(&writer);
        int n =
            snprintf(answer, sizeof answer, "%d %d %d %d %d %d %d %d %d %d", a, b, c, d, e, f, g, h, i, writer == NULL);
        if (n < 0 || write(ends[1], answer, (size_t)n) != n)
            _exit(1);
        (void)close(ends[1]);
        (void)close(ends[0]);
        (void)close(0);
        (void)close(1);
        (void)close(2);
        for (;;)
            (void)pause();
    }
    (void)close(ends[1]);
    size_t length = 0;
    for (ssize_t n; length < sizeof answer - 1 && (n = read(ends[0], answer + length, sizeof answer - 1 - length)) > 0;)
        length += (size_t)n;
    answer[length] = 0;
    (void)close(ends[0]);
    printf("%d %s\n", (int)child, answer);
}

/* open PATH: maps it as a reader would, then closes it. */
static int writer_open(void)
{
    struct wideep_view view;
    enum wideep_reason reason = WIDEEP_OK;
    int error = wideep_open(&view, word_or(""), &reason);
    if (!error)
        wideep_view_close(&view);
    return error;
}

static int writer_descriptors(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (directory && readdir(directory))
        count++;
    if (directory)
        (void)closedir(directory);
    return count;
}

static int writer_command(const char *command)
{
    if (strcmp(command, "pass") == 0)
        return writer_pass();
    if (strcmp(command, "skip") == 0) {
        struct wideep_pass pass;
        memset(&pass, 0, sizeof pass);
        pass.model = (uint32_t)number_or(0);
        pass.pass = number_or(0);
        pass.step = (uint32_t)number_or(WIDEEP_STEP_UNKNOWN);
        return wideep_skip_pass(writer, &pass);
    }
    if (strcmp(command, "eplb") == 0)
        return writer_eplb();
    if (strcmp(command, "dbo") == 0)
        return writer_dbo();
    if (strcmp(command, "tokens") == 0) {
        uint64_t prompt = number_or(0), generation = number_or(0);
        return wideep_record_tokens(writer, prompt, generation);
    }
    if (strcmp(command, "begin") == 0) {
        uint32_t model = (uint32_t)number_or(0);
        return wideep_rearrangement_begin(writer, model, number_or(0) ? WIDEEP_ASYNC : WIDEEP_SYNC);
    }
    if (strcmp(command, "end") == 0)
        return wideep_rearrangement_end(writer, (uint32_t)number_or(0), NULL);
    if (strcmp(command, "abort") == 0)
        return wideep_rearrangement_abort(writer, (uint32_t)number_or(0));
    if (strcmp(command, "check") == 0)
        return wideep_check(writer);
    if (strcmp(command, "open") == 0)
        return writer_open();
    if (strcmp(command, "descriptors") == 0)
        return writer_descriptors();
    if (strcmp(command, "setuid") == 0) {
        uint32_t id = (uint32_t)number_or(0);
        return setgid(id) == 0 && setuid(id) == 0 ? 0 : -errno;
    }
    if (strcmp(command, "umask") == 0) {
        (void)umask((mode_t)number_or(0));
        return 0;
    }
    if (strcmp(command, "close") == 0) {
        wideep_close(&writer);
        return writer ? -1 : 0;
    }
    if (strcmp(command, "forget") == 0) { /* keep it, and be ready to create another */
        writer = NULL;
        return 0;
    }
    if (strcmp(command, "exec") == 0) {
        (void)execl("/proc/self/exe", writer_argv0, (char *)NULL);
        return -errno;
    }
    return -ENOSYS;
}

int main(int argc, char **argv)
{
    (void)argc;
    writer_argv0 = argv[0];
    /* Unbuffered: what follows a command must be there for the program that `exec` starts. */
    setvbuf(stdin, NULL, _IONBF, 0);
    while (fgets(text, sizeof text, stdin)) {
        memcpy(arguments, text, sizeof text);
        const char *command = strtok_r(arguments, " \n", &saved);
        if (!command)
            continue;
        if (strcmp(command, "quit") == 0)
            break;
        if (strcmp(command, "create") == 0)
            writer_create();
        else if (strcmp(command, "fork") == 0)
            writer_fork();
        else
            printf("%d\n", writer_command(command));
        (void)fflush(stdout);
    }
    return 0;
}

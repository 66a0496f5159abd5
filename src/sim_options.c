/* SPDX-License-Identifier: Apache-2.0 */
/* Command line of wideep-sim. */
#include "sim.h"

#include "nearest.h"
#include "version.h"

#include <math.h>

enum sim_flag {
    SIM_FLAG_SHM_DIR,
    SIM_FLAG_INSTANCE,
    SIM_FLAG_MODEL,
    SIM_FLAG_GROUPS,
    SIM_FLAG_ENGINES,
    SIM_FLAG_RANKS,
    SIM_FLAG_FRONTENDS,
    SIM_FLAG_LAYERS,
    SIM_FLAG_EXPERTS,
    SIM_FLAG_REDUNDANT,
    SIM_FLAG_UBATCHES,
    SIM_FLAG_PACE,
    SIM_FLAG_SECONDS,
    SIM_FLAG_PASSES,
    SIM_FLAG_SCENARIO,
    SIM_FLAG_SEED,
    SIM_FLAG_EXPECT,
    SIM_FLAG_LINGER,
    SIM_FLAG_RESTART,
    SIM_FLAG_REPLICATED,
    SIM_FLAG_VERSION,
    SIM_FLAG_HELP,
    SIM_FLAGS
};

static const struct {
    const char *name, *value, *help;
} sim_flags[SIM_FLAGS] = {
    {"--shm.dir", "DIR", "directory of the segments [$WIDEEP_SHM_DIR, else /dev/shm]"},
    {"--instance", "NAME", "instance name in their file names [$WIDEEP_INSTANCE, else default]"},
    {"--model", "NAME", "served model name; repeat for up to 3 more, NAME or NAME:LAYERS:EXPERTS:REDUNDANT"},
    {"--groups", "N", "groups of engines that run collectives together [1]"},
    {"--engines", "N", "engines of a group [2]"},
    {"--ranks", "N", "EP ranks of an engine [1]"},
    {"--frontends", "N", "front ends of an engine; 0: its first rank counts the tokens [1]"},
    {"--layers", "N", "MoE layers of the first model [4]"},
    {"--experts", "N", "logical experts of a layer [32]"},
    {"--redundant", "N", "redundant experts of a layer [0]"},
    {"--ubatches", "N", "ubatches that DBO cuts a batch into, 2 to 4 [2]"},
    {"--passes-per-second", "X", "forward passes a second; 0: as fast as it can [50]"},
    {"--seconds", "S", "end after S seconds; 0: no limit [10, none with --passes]"},
    {"--passes", "N", "end after N passes; 0: no limit [0]"},
    {"--scenario", "NAME", "what happens, see below [default]"},
    {"--seed", "N", "seed of all that is random [1]"},
    {"--expect", "FILE", "write what was recorded to FILE when the passes are done"},
    {"--linger", "S", "stay alive, idle, for S seconds after that [0]"},
    {"--restart", NULL, "restart a rank or front end that is killed"},
    {"--replicated", NULL, "the ranks of an engine route the same tokens (tensor parallel)"},
    {"--version", NULL, "print version and commit, and exit"},
    {"--help", NULL, "print this help, and exit; also -h"},
};

static const struct {
    const char *name, *help;
} sim_scenarios[SIM_SCENARIOS] = {
    [SIM_DEFAULT] = {"default", "every outcome of DBO, rearrangements of both modes, drifting loads"},
    [SIM_STEADY] = {"steady", "balanced loads, no rearrangements"},
    [SIM_HOT] = {"hot", "one hot expert in each layer, no rearrangements"},
    [SIM_STALL] = {"stall", "synchronous rearrangements that block for 2 s, every 100 passes"},
    [SIM_ASYNC] = {"async", "asynchronous rearrangements over 40 of every 100 passes"},
    [SIM_FALLOUT] = {"fallout", "a storm of empty second ubatches"},
    [SIM_IDLE] = {"idle", "no passes for 3 s after every 100"},
    [SIM_SPARSE] = {"sparse", "only the last 20 of every 60 passes are recorded"},
    [SIM_REDUCED] = {"reduced", "rank 0 records what the engine has reduced, the others nothing"},
    [SIM_REDUCED_ALL] = {"reduced-all", "all ranks record what the engine has reduced"},
    [SIM_MIXED] = {"mixed", "rank 0 records reduced figures in every other pass"},
    [SIM_DEATH] = {"death", "a rank is killed halfway, the others go on"},
};

static int sim_options_help(void)
{
    (void)printf("Usage: wideep-sim [--FLAG=VALUE | --FLAG VALUE]...\n\n"
                 "Simulates the ranks and front ends of a wide expert-parallel engine, one process each, which write\n"
                 "through the ABI of wideep-exporter.\n\nFlags:\n");
    for (unsigned i = 0; i < SIM_FLAGS; i++) {
        char flag[48];
        (void)snprintf(flag, sizeof flag, "%s %s", sim_flags[i].name, sim_flags[i].value ? sim_flags[i].value : "");
        (void)printf("  %-24s %s\n", flag, sim_flags[i].help);
    }
    (void)printf("\nScenarios:\n");
    for (unsigned i = 0; i < SIM_SCENARIOS; i++)
        (void)printf("  %-24s %s\n", sim_scenarios[i].name, sim_scenarios[i].help);
    return 1;
}

static int sim_options_unknown(const char *flag, size_t length)
{
    char name[64];

    (void)snprintf(name, sizeof name, "%.*s", length < 63 ? (int)length : 63, flag);
    if (strncmp(flag, "--", 2) != 0) {
        (void)fprintf(stderr, "wideep-sim: unexpected argument '%s': flags begin with --; try --help\n", name);
        return -EINVAL;
    }
    struct nearest nearest = nearest_to(name + 2);
    for (unsigned i = 0; i < SIM_FLAGS; i++)
        nearest_offer(&nearest, sim_flags[i].name + 2);
    (void)fprintf(stderr, "wideep-sim: unknown flag %s; %s%s%stry --help\n", name,
                  nearest.name ? "did you mean --" : "", nearest.name ? nearest.name : "", nearest.name ? "? " : "");
    return -EINVAL;
}

static int sim_options_bad(enum sim_flag flag, const char *value, const char *want)
{
    (void)fprintf(stderr, "wideep-sim: %s is '%s', it must be %s; try --help\n", sim_flags[flag].name, value, want);
    return -EINVAL;
}

static int sim_options_whole(enum sim_flag flag, const char *value, uint64_t low, uint64_t high, uint64_t *ret)
{
    char *end, want[80];
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || errno || number < low || number > high) {
        (void)snprintf(want, sizeof want, "a whole number from %llu to %llu", (unsigned long long)low,
                       (unsigned long long)high);
        return sim_options_bad(flag, value, want);
    }
    *ret = number;
    return 0;
}

static int sim_options_count(enum sim_flag flag, const char *value, uint32_t low, uint32_t high, uint32_t *ret)
{
    uint64_t number;
    int error = sim_options_whole(flag, value, low, high, &number);
    if (!error)
        *ret = (uint32_t)number;
    return error;
}

static int sim_options_number(enum sim_flag flag, const char *value, double high, double *ret)
{
    char *end, want[80];
    double number = strtod(value, &end);
    if (end == value || *end || !isfinite(number) || number < 0 || number > high) {
        (void)snprintf(want, sizeof want, "a number from 0 to %g", high);
        return sim_options_bad(flag, value, want);
    }
    *ret = number;
    return 0;
}

static int sim_options_model(struct sim_options *options, char *value)
{
    if (options->model_count == WIDEEP_MAX_MODELS) {
        (void)fprintf(stderr, "wideep-sim: more than %u times --model; a segment holds %u models\n", WIDEEP_MAX_MODELS,
                      WIDEEP_MAX_MODELS);
        return -EINVAL;
    }
    struct sim_model *model = &options->models[options->model_count++];
    model->name = value;
    if (options->model_count > 1) {
        model->layers = UINT32_MAX; /* as the first one, see below */
        /* The numbers are the last three parts, because a name may hold colons too. */
        uint32_t *const into[3] = {&model->redundant, &model->experts, &model->layers};
        uint32_t numbers[3];
        char *ends[3], *end = value + strlen(value);
        unsigned found = 0;
        for (; found < 3; found++) {
            char *colon = end;
            while (colon > value && *--colon != ':')
                ;
            if (*colon != ':' || end - colon < 2 || end - colon > 6 ||
                strspn(colon + 1, "0123456789") < (size_t)(end - colon - 1))
                break;
            numbers[found] = (uint32_t)strtoul(colon + 1, NULL, 10);
            ends[found] = end = colon;
        }
        if (found == 3) {
            for (unsigned i = 0; i < 3; i++)
                *into[i] = numbers[i];
            *ends[2] = 0;
        }
    }
    if (!*value)
        return sim_options_bad(SIM_FLAG_MODEL, value, "a name of 1 to 255 bytes");
    if (strlen(value) > WIDEEP_MAX_NAME)
        return sim_options_bad(SIM_FLAG_MODEL, "(too long)", "a name of 1 to 255 bytes");
    return 0;
}

static int sim_options_scenario(struct sim_options *options, const char *value)
{
    for (unsigned i = 0; i < SIM_SCENARIOS; i++)
        if (strcmp(value, sim_scenarios[i].name) == 0) {
            options->scenario = (enum sim_scenario)i;
            return 0;
        }
    (void)fprintf(stderr, "wideep-sim: unknown scenario '%s'; one of:", value);
    for (unsigned i = 0; i < SIM_SCENARIOS; i++)
        (void)fprintf(stderr, " %s", sim_scenarios[i].name);
    (void)fprintf(stderr, "\n");
    return -EINVAL;
}

static int sim_options_set(struct sim_options *o, enum sim_flag flag, char *value)
{
    switch (flag) {
    case SIM_FLAG_SHM_DIR: o->directory = value; return 0;
    case SIM_FLAG_INSTANCE:
        o->instance = value;
        if (!wideep_instance_valid(value, strlen(value)))
            return sim_options_bad(flag, value, "1 to 63 of A-Z a-z 0-9 . _ -, without a leading dot");
        return 0;
    case SIM_FLAG_MODEL: return sim_options_model(o, value);
    case SIM_FLAG_GROUPS: return sim_options_count(flag, value, 1, SIM_MAX_CHILDREN, &o->groups);
    case SIM_FLAG_ENGINES: return sim_options_count(flag, value, 1, WIDEEP_MAX_EP_SIZE, &o->engines);
    case SIM_FLAG_RANKS: return sim_options_count(flag, value, 1, WIDEEP_MAX_EP_SIZE, &o->ranks);
    case SIM_FLAG_FRONTENDS: return sim_options_count(flag, value, 0, SIM_MAX_CHILDREN, &o->frontends);
    case SIM_FLAG_LAYERS: return sim_options_count(flag, value, 0, WIDEEP_MAX_LAYERS, &o->models[0].layers);
    case SIM_FLAG_EXPERTS: return sim_options_count(flag, value, 1, WIDEEP_MAX_LOGICAL_EXPERTS, &o->models[0].experts);
    case SIM_FLAG_REDUNDANT:
        return sim_options_count(flag, value, 0, WIDEEP_MAX_PHYSICAL_EXPERTS, &o->models[0].redundant);
    case SIM_FLAG_UBATCHES: return sim_options_count(flag, value, 2, WIDEEP_MAX_UBATCHES, &o->ubatches);
    case SIM_FLAG_PACE: return sim_options_number(flag, value, 1e6, &o->passes_per_second);
    case SIM_FLAG_SECONDS: return sim_options_number(flag, value, 1e9, &o->seconds);
    case SIM_FLAG_PASSES: return sim_options_whole(flag, value, 0, (uint64_t)1 << 62, &o->passes);
    case SIM_FLAG_SCENARIO: return sim_options_scenario(o, value);
    case SIM_FLAG_SEED: return sim_options_whole(flag, value, 0, UINT64_MAX, &o->seed);
    case SIM_FLAG_EXPECT: o->expect = value; return *value ? 0 : sim_options_bad(flag, value, "a file name");
    case SIM_FLAG_LINGER: return sim_options_number(flag, value, 1e9, &o->linger);
    case SIM_FLAG_RESTART: o->restart = true; return 0;
    case SIM_FLAG_REPLICATED: o->replicated = true; return 0;
    case SIM_FLAG_VERSION: (void)printf("wideep-sim %s (commit %s)\n", WIDEEP_VERSION, WIDEEP_COMMIT); return 1;
    default: return sim_options_help();
    }
}

/* Fills what was left out and checks what belongs together. */
static int sim_options_finish(struct sim_options *o)
{
    static char name[] = "sim";
    const struct sim_model *first = &o->models[0];

    if (o->model_count == 0) {
        o->models[0].name = name;
        o->model_count = 1;
    }
    if (o->seconds < 0)
        o->seconds = o->passes ? 0 : 10;
    if (o->passes == 0)
        o->passes = SIM_UNLIMITED;
    uint64_t ep_size = (uint64_t)o->engines * o->ranks;
    if (ep_size > WIDEEP_MAX_EP_SIZE) {
        (void)fprintf(stderr, "wideep-sim: --engines %u × --ranks %u are %llu EP ranks; a group has at most %u\n",
                      (unsigned)o->engines, (unsigned)o->ranks, (unsigned long long)ep_size, WIDEEP_MAX_EP_SIZE);
        return -EINVAL;
    }
    o->ep_size = (uint32_t)ep_size;
    uint64_t children = (ep_size + (uint64_t)o->engines * o->frontends) * o->groups;
    if (children > SIM_MAX_CHILDREN) {
        (void)fprintf(stderr,
                      "wideep-sim: that would be %llu processes; use fewer --groups, --engines, --ranks or "
                      "--frontends, %u processes at most\n",
                      (unsigned long long)children, SIM_MAX_CHILDREN);
        return -EINVAL;
    }
    for (uint32_t m = 0; m < o->model_count; m++) {
        struct sim_model *model = &o->models[m];
        for (uint32_t other = 0; other < m; other++)
            if (strcmp(model->name, o->models[other].name) == 0) {
                (void)fprintf(stderr, "wideep-sim: --model %s is given twice; names must differ\n", model->name);
                return -EINVAL;
            }
        if (model->layers == UINT32_MAX) {
            /* What a draft model for speculative decoding is like. */
            model->layers = first->layers > 0 ? 1 : 0;
            model->experts = first->experts;
            model->redundant = first->redundant;
        }
        model->physical = model->experts + model->redundant;
        if (model->layers > WIDEEP_MAX_LAYERS ||
            (model->layers > 0 && (model->experts < 1 || model->experts > WIDEEP_MAX_LOGICAL_EXPERTS ||
                                   model->physical > WIDEEP_MAX_PHYSICAL_EXPERTS))) {
            (void)fprintf(stderr,
                          "wideep-sim: model %s: at most %u layers, 1 to %u experts, and %u with the redundant ones\n",
                          model->name, WIDEEP_MAX_LAYERS, WIDEEP_MAX_LOGICAL_EXPERTS, WIDEEP_MAX_PHYSICAL_EXPERTS);
            return -EINVAL;
        }
        if (model->layers > 0 && model->physical % o->ep_size != 0) {
            uint32_t fit = (model->physical / o->ep_size + 1) * o->ep_size - model->experts;
            (void)fprintf(stderr,
                          "wideep-sim: model %s: %u experts + %u redundant ones do not divide by %u EP ranks "
                          "(--engines × --ranks); make it %u redundant (--redundant %u)\n",
                          model->name, (unsigned)model->experts, (unsigned)model->redundant, (unsigned)o->ep_size,
                          (unsigned)fit, (unsigned)fit);
            return -EINVAL;
        }
    }
    return 0;
}

int sim_options_parse(struct sim_options *ret, int argc, char **argv)
{
    struct sim_options o;

    memset(&o, 0, sizeof o);
    o.groups = o.ranks = o.frontends = 1;
    o.engines = o.ubatches = 2;
    o.models[0].layers = 4;
    o.models[0].experts = 32;
    o.passes_per_second = 50;
    o.seconds = -1;
    o.seed = 1;
    for (int i = 1; i < argc; i++) {
        size_t length = strcspn(argv[i], "=");
        unsigned flag = 0;
        while (flag < SIM_FLAGS &&
               (strlen(sim_flags[flag].name) != length || memcmp(sim_flags[flag].name, argv[i], length) != 0))
            flag++;
        if (strcmp(argv[i], "-h") == 0)
            flag = SIM_FLAG_HELP;
        if (flag == SIM_FLAGS)
            return sim_options_unknown(argv[i], length);
        char *value = argv[i][length] ? argv[i] + length + 1 : NULL;
        if (!sim_flags[flag].value && value) {
            (void)fprintf(stderr, "wideep-sim: %s takes no value; try --help\n", sim_flags[flag].name);
            return -EINVAL;
        }
        if (sim_flags[flag].value && !value && ++i < argc)
            value = argv[i];
        if (sim_flags[flag].value && !value) {
            (void)fprintf(stderr, "wideep-sim: %s needs a value: %s %s; try --help\n", sim_flags[flag].name,
                          sim_flags[flag].name, sim_flags[flag].value);
            return -EINVAL;
        }
        if (!value)
            value = argv[i] + length; /* empty: it has none */
        int result = sim_options_set(&o, (enum sim_flag)flag, value);
        if (result)
            return result;
    }
    int error = sim_options_finish(&o);
    if (!error)
        *ret = o;
    return error;
}

#include "bench.h"

#include <stdio.h>

uint64_t bench_now_ns(void)
{
    return wideep_i_clock_ns(CLOCK_MONOTONIC);
}

void bench_fail(const char *what, int error)
{
    (void)fprintf(stderr, "%s: %s\n", what, error < 0 ? strerror(-error) : "failed");
    exit(1);
}

void *bench_allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);

    if (!memory)
        bench_fail("allocation", -ENOMEM);
    return memory;
}

static const char *option_value(int argc, char *const *argv, const char *name)
{
    const size_t length = strlen(name);

    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], "--", 2) == 0 && strncmp(argv[i] + 2, name, length) == 0 &&
            (argv[i][2 + length] == '=' || argv[i][2 + length] == 0))
            return argv[i] + 2 + length;
    return NULL;
}

double bench_option(int argc, char *const *argv, const char *name, double otherwise)
{
    const char *value = option_value(argc, argv, name);

    return value && *value == '=' ? strtod(value + 1, NULL) : otherwise;
}

int bench_flag(int argc, char *const *argv, const char *name)
{
    return option_value(argc, argv, name) != NULL;
}

/* ---- samples ------------------------------------------------------------------------------------------------- */

void bench_sample(struct bench_samples *samples, double ns)
{
    if (samples->count == samples->capacity) {
        size_t capacity = samples->capacity ? 2 * samples->capacity : 1024;
        double *bigger = realloc(samples->ns, capacity * sizeof *bigger);
        if (!bigger)
            bench_fail("samples", -ENOMEM);
        samples->ns = bigger;
        samples->capacity = capacity;
    }
    samples->ns[samples->count++] = ns;
}

void bench_print_samples(const char *name, struct bench_samples *samples)
{
    (void)printf(",\"%s\":[", name);
    for (size_t i = 0; i < samples->count; i++)
        (void)printf("%s%.6g", i ? "," : "", samples->ns[i]);
    (void)printf("]");
    free(samples->ns);
    memset(samples, 0, sizeof *samples);
}

/* ---- loads --------------------------------------------------------------------------------------------------- */

/* The high bits of a linear congruential generator (Knuth's MMIX constants). */
static uint32_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 40);
}

void bench_loads_new(struct bench_loads *ret, const struct bench_shape *shape)
{
    const size_t slots = (size_t)shape->layers * shape->physical;
    uint64_t state = 1;

    ret->loads = bench_allocate(slots + BENCH_SHIFTS, sizeof *ret->loads);
    ret->logical = bench_allocate(slots, sizeof *ret->logical);
    for (size_t i = 0; i < slots + BENCH_SHIFTS; i++)
        ret->loads[i] = (int32_t)(next_random(&state) % 32);
    for (size_t i = 0; i < slots; i++) {
        const uint32_t slot = (uint32_t)(i % shape->physical);
        ret->logical[i] = (int32_t)(slot < shape->logical ? slot : next_random(&state) % shape->logical);
    }
    /* Rearranged experts lie in no order: a shuffle within each layer. */
    for (size_t i = 0; i < slots; i++) {
        const size_t slot = i % shape->physical, other = i - slot + next_random(&state) % (slot + 1);
        const int32_t expert = ret->logical[i];
        ret->logical[i] = ret->logical[other];
        ret->logical[other] = expert;
    }
}

/* ---- a fleet ------------------------------------------------------------------------------------------------- */

void bench_fleet_open(struct bench_fleet *ret, const char *directory, int argc, char *const *argv)
{
    const uint32_t groups = (uint32_t)bench_option(argc, argv, "groups", 1);
    const uint32_t engines = (uint32_t)bench_option(argc, argv, "engines", 1);
    const uint32_t experts = (uint32_t)bench_option(argc, argv, "experts", 256);

    ret->shape = (struct bench_shape){.layers = (uint32_t)bench_option(argc, argv, "layers", 58),
                                      .logical = experts,
                                      .physical = experts + (uint32_t)bench_option(argc, argv, "redundant", 32),
                                      .ep_size = (uint32_t)bench_option(argc, argv, "ep", engines)};
    ret->count = groups * engines;
    ret->pass = 0;
    bench_loads_new(&ret->loads, &ret->shape);
    ret->writers = bench_allocate(ret->count, sizeof(struct wideep_writer *));
    for (uint32_t i = 0; i < ret->count; i++) {
        struct wideep_config config = {.directory = directory,
                                       .engine = i,
                                       .rank = i % engines,
                                       .ep_size = ret->shape.ep_size,
                                       .group = i / engines + 1,
                                       .model_count = 1};
        config.models[0] =
            (struct wideep_model_config){BENCH_MODEL, ret->shape.layers, ret->shape.logical, ret->shape.physical};
        int error = wideep_create(&ret->writers[i], &config);
        if (error)
            bench_fail(wideep_error_text(error), error);
    }
}

void bench_fleet_pass(struct bench_fleet *fleet)
{
    const struct wideep_pass pass = {.pass = fleet->pass, .step = WIDEEP_STEP_UNKNOWN};
    const struct wideep_dbo_stats dbo = {.pass = fleet->pass,
                                         .phase = WIDEEP_DECODE,
                                         .outcome = fleet->pass % 16 ? WIDEEP_ENGAGED : WIDEEP_EMPTY_SECOND_UBATCH,
                                         .ubatches = 2,
                                         .ubatch_tokens = {700, 600}};

    /* Other loads in each pass and for each rank: what does not change is not rendered again. */
    for (uint32_t i = 0; i < fleet->count; i++) {
        const int32_t *loads = fleet->loads.loads + (fleet->pass * 61 + i * 17) % BENCH_SHIFTS;
        int error = wideep_record_pass(fleet->writers[i], &pass, loads, fleet->loads.logical);
        if (!error)
            error = wideep_record_dbo(fleet->writers[i], &dbo);
        if (!error)
            error = wideep_record_tokens(fleet->writers[i], 0, 187);
        if (error)
            bench_fail("record", error);
    }
    fleet->pass++;
}

void bench_fleet_close(struct bench_fleet *fleet)
{
    for (uint32_t i = 0; i < fleet->count; i++)
        wideep_close(&fleet->writers[i]);
    free(fleet->writers);
    free(fleet->loads.loads);
    free(fleet->loads.logical);
}

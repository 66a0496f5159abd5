/* writer: what recording costs, and what copying the same bytes would. Valid C11 and C++17; writer_cxx.cc builds it as
 * the latter.
 *
 *     bench-writer DIRECTORY hot [--ms=MILLISECONDS A CASE] [CASE]…
 *     bench-writer DIRECTORY paced [--ms=MILLISECONDS] [--pace=PASSES PER SECOND] [CASE]…
 *     bench-writer DIRECTORY count [--calls=N] CASE
 *
 * hot: a sample is the mean of a batch of calls, which is long enough for the clock. paced: a sample is one call; each
 * case has its place in the period, so that all find the caches as the pause left them. count: only calls, for an
 * instruction counter. */
#include "bench.h"

#include <stdio.h>

enum { WORK_LAYERS = 60, WORK_EXPERTS = 256, PASS_LAYERS = 58, PASS_SLOTS = 288, EP_SIZE = 32, DBO_KINDS = 16 };
/* Beyond those of a fleet in the same directory. */
enum { FIRST_ENGINE = 100 };

/* A pass that is copied: the sequence word that a reader would look at, and its bytes. */
struct copy_target {
    uint64_t seq;
    unsigned char bytes[1 << 18];
};

static struct {
    struct wideep_writer *work, *pass; /* segments of the two shapes */
    struct bench_loads work_loads, pass_loads;
    struct wideep_eplb_layer layers[WORK_LAYERS];
    struct wideep_dbo_stats dbo[DBO_KINDS];
    struct copy_target *target;
    unsigned char source[sizeof(struct copy_target)];
    uint64_t number; /* of the pass; one for all, as passes may be left out */
} bench;

/* ---- cases --------------------------------------------------------------------------------------------------- */

static struct wideep_pass next_pass(void)
{
    struct wideep_pass pass;
    memset(&pass, 0, sizeof pass);
    pass.pass = bench.number++;
    pass.step = WIDEEP_STEP_UNKNOWN;
    return pass;
}

static void check(int error)
{
    if (error)
        bench_fail(wideep_error_text(error), error);
}

static void record_layers(uint32_t count)
{
    const struct wideep_pass pass = next_pass();
    check(wideep_record_eplb(bench.work, &pass, bench.layers, count));
}

static void run_eplb_one(void)
{
    record_layers(1);
}

static void run_eplb(void)
{
    record_layers(WORK_LAYERS);
}

static void run_dbo(void)
{
    struct wideep_dbo_stats *stats = &bench.dbo[bench.number % DBO_KINDS];
    stats->pass = bench.number++;
    check(wideep_record_dbo(bench.work, stats));
}

static void run_tokens(void)
{
    check(wideep_record_tokens(bench.work, 3, 5));
}

static void run_skip(void)
{
    const struct wideep_pass pass = next_pass();
    check(wideep_skip_pass(bench.work, &pass));
}

static void run_rearrangement(void)
{
    check(wideep_rearrangement_begin(bench.work, 0, WIDEEP_ASYNC));
    check(wideep_rearrangement_end(bench.work, 0, NULL));
}

static void run_work_a(void)
{
    run_eplb();
    run_dbo();
}

static void run_work_b(void)
{
    const struct wideep_pass pass = next_pass();
    check(wideep_record_pass(bench.work, &pass, bench.work_loads.loads, bench.work_loads.logical));
}

static void run_pass(void)
{
    const struct wideep_pass pass = next_pass();
    check(wideep_record_pass(bench.pass, &pass, bench.pass_loads.loads, bench.pass_loads.logical));
}

static void run_pass_without_map(void)
{
    const struct wideep_pass pass = next_pass();
    check(wideep_record_pass(bench.pass, &pass, bench.pass_loads.loads, NULL));
}

static void run_clock(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_BOOTTIME, &now);
}

/* What nobody who publishes these bytes can go below: one copy, under a sequence lock. */
static void copy(size_t size)
{
    const uint64_t seq = bench.target->seq;
    __atomic_store_n(&bench.target->seq, seq + 1, __ATOMIC_RELAXED);
    WIDEEP_FENCE_RELEASE();
    memcpy(bench.target->bytes, bench.source, size);
    __atomic_store_n(&bench.target->seq, seq + 2, __ATOMIC_RELEASE);
}

/* Three doubles a layer and a DBO record. */
static void run_copy_a(void)
{
    copy(WORK_LAYERS * 3 * sizeof(double) + sizeof(struct wideep_dbo_slot));
}

static void run_copy_b_floats(void)
{
    copy(WORK_LAYERS * WORK_EXPERTS * sizeof(float));
}

static void run_copy_b_doubles(void)
{
    copy(WORK_LAYERS * WORK_EXPERTS * sizeof(double));
}

static void run_copy_pass(void)
{
    copy(PASS_LAYERS * PASS_SLOTS * sizeof(int32_t));
}

static const struct bench_case {
    const char *name;
    void (*run)(void);
    unsigned records; /* that a sample is the mean of; 1: the whole call */
} cases[] = {
    {"clock", run_clock, 1},
    {"copy_a", run_copy_a, 1},
    {"copy_b_floats", run_copy_b_floats, 1},
    {"copy_b_doubles", run_copy_b_doubles, 1},
    {"copy_pass", run_copy_pass, 1},
    {"eplb_record", run_eplb, WORK_LAYERS},
    {"eplb_call", run_eplb_one, 1},
    {"dbo", run_dbo, 1},
    {"tokens", run_tokens, 1},
    {"skip", run_skip, 1},
    {"rearrangement", run_rearrangement, 1},
    {"work_a", run_work_a, 1},
    {"work_b", run_work_b, 1},
    {"pass", run_pass, 1},
    {"pass_without_map", run_pass_without_map, 1},
};
enum { CASES = sizeof cases / sizeof *cases };

/* ---- set up -------------------------------------------------------------------------------------------------- */

static struct wideep_writer *open_segment(const char *directory, uint32_t engine, const struct bench_shape *shape)
{
    struct wideep_writer *writer = NULL;
    struct wideep_config config;
    memset(&config, 0, sizeof config);
    config.directory = directory;
    config.engine = engine;
    config.ep_size = shape->ep_size;
    config.model_count = 1;
    config.models[0].name = BENCH_MODEL;
    config.models[0].layers = shape->layers;
    config.models[0].logical_experts = shape->logical;
    config.models[0].physical_experts = shape->physical;
    check(wideep_create(&writer, &config));
    return writer;
}

/* Shared memory like a segment's, in the same file system. */
static struct copy_target *map_target(const char *directory)
{
    char path[WIDEEP_MAX_PATH + 32];
    (void)snprintf(path, sizeof path, "%s/copy-target", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)sizeof(struct copy_target)) != 0)
        bench_fail(path, -errno);
    void *base = mmap(NULL, sizeof(struct copy_target), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (base == MAP_FAILED)
        bench_fail(path, -errno);
    return (struct copy_target *)base;
}

static void prepare(const char *directory)
{
    const struct bench_shape work = {WORK_LAYERS, WORK_EXPERTS, WORK_EXPERTS, EP_SIZE};
    const struct bench_shape pass = {PASS_LAYERS, WORK_EXPERTS, PASS_SLOTS, EP_SIZE};
    bench.work = open_segment(directory, FIRST_ENGINE, &work);
    bench.pass = open_segment(directory, FIRST_ENGINE + 1, &pass);
    bench_loads_new(&bench.work_loads, &work);
    bench_loads_new(&bench.pass_loads, &pass);
    bench.target = map_target(directory);
    memset(bench.source, 1, sizeof bench.source);
    for (uint32_t i = 0; i < WORK_LAYERS; i++) {
        bench.layers[i].layer = i;
        bench.layers[i].avg_tokens_per_rank = 100 + i;
        bench.layers[i].max_tokens_per_rank = 130 + 2 * i;
    }
    for (uint32_t i = 0; i < DBO_KINDS; i++) {
        bench.dbo[i].phase = WIDEEP_DECODE;
        bench.dbo[i].outcome = i ? WIDEEP_ENGAGED : WIDEEP_EMPTY_SECOND_UBATCH;
        bench.dbo[i].ubatches = 2;
        bench.dbo[i].ubatch_tokens[0] = 700 + i;
        bench.dbo[i].ubatch_tokens[1] = 600 - i;
    }
}

/* ---- measuring ----------------------------------------------------------------------------------------------- */

static double batch_ns(const struct bench_case *one, uint64_t calls)
{
    const uint64_t begin_ns = bench_now_ns();
    for (uint64_t i = 0; i < calls; i++)
        one->run();
    return (double)(bench_now_ns() - begin_ns);
}

static void print_case(const struct bench_case *one, struct bench_samples *samples)
{
    (void)printf("{\"case\":\"%s\"", one->name);
    bench_print_samples("ns", samples);
    (void)printf("}\n");
}

static void run_hot(const struct bench_case *const *wanted, unsigned count, double ms)
{
    const double batch_target_ns = 50e3;
    for (unsigned c = 0; c < count; c++) {
        struct bench_samples samples = {NULL, 0, 0};
        uint64_t calls = 1;
        (void)batch_ns(wanted[c], 100); /* pages are there, caches are warm */
        while (batch_ns(wanted[c], calls) < batch_target_ns)
            calls *= 2;
        for (const uint64_t end_ns = bench_now_ns() + (uint64_t)(ms * 1e6); bench_now_ns() < end_ns;)
            bench_sample(&samples, batch_ns(wanted[c], calls) / (double)calls / wanted[c]->records);
        print_case(wanted[c], &samples);
    }
}

static void sleep_until(uint64_t time_ns)
{
    const struct timespec until = {(time_t)(time_ns / 1000000000u), (long)(time_ns % 1000000000u)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void run_paced(const struct bench_case *const *wanted, unsigned count, double ms, double pace)
{
    struct bench_samples samples[CASES];
    const uint64_t step_ns = (uint64_t)(1e9 / pace) / count, begin_ns = bench_now_ns() + step_ns;
    uint64_t steps = (uint64_t)(ms * 1e6) / step_ns;
    steps = steps > count ? steps : count;
    memset(samples, 0, sizeof samples);
    for (uint64_t i = 0; i < steps; i++) {
        const unsigned c = (unsigned)(i % count);
        sleep_until(begin_ns + i * step_ns);
        bench_sample(&samples[c], batch_ns(wanted[c], 1) / wanted[c]->records);
    }
    for (unsigned c = 0; c < count; c++)
        print_case(wanted[c], &samples[c]);
}

static unsigned choose(int argc, char **argv, const struct bench_case **ret)
{
    unsigned count = 0;
    for (int i = 3; i < argc; i++) {
        unsigned c = 0;
        if (argv[i][0] == '-')
            continue;
        while (c < CASES && strcmp(cases[c].name, argv[i]) != 0)
            c++;
        if (c == CASES || count == CASES)
            bench_fail(argv[i], -EINVAL);
        ret[count++] = &cases[c];
    }
    if (count > 0)
        return count;
    while (count < CASES) {
        ret[count] = &cases[count];
        count++;
    }
    return count;
}

int main(int argc, char **argv)
{
    const struct bench_case *wanted[CASES];
    if (argc < 3)
        bench_fail("usage: bench-writer DIRECTORY hot|paced|count [--ms=N] [--pace=N] [--calls=N] [CASE]...", -EINVAL);
    const double ms = bench_option(argc, argv, "ms", 50);
    const unsigned count = choose(argc, argv, wanted);
    prepare(argv[1]);
    if (strcmp(argv[2], "hot") == 0)
        run_hot(wanted, count, ms);
    else if (strcmp(argv[2], "paced") == 0)
        run_paced(wanted, count, ms, bench_option(argc, argv, "pace", 50));
    else
        (void)batch_ns(wanted[0], (uint64_t)bench_option(argc, argv, "calls", 1));
    wideep_close(&bench.work);
    wideep_close(&bench.pass);
    return 0;
}

/* reader: what reading ranks costs, in one process with them and on one core.
 *
 *     bench-reader DIRECTORY collect [--groups=N …] [--debug] [--passes=N] [--ms=MILLISECONDS]
 *     bench-reader DIRECTORY drain [--ms=MILLISECONDS]
 *     bench-reader DIRECTORY count drain|collect|FAMILY [--groups=N …] [--calls=N]
 *
 * collect: samples of a collection that finds so many passes of each rank, of rendering its page, and of compressing
 * that. drain: samples per record. count: only calls, for an instruction counter; `units` says how many records or
 * series each call came to. */
#include "inside.h"

#include "bench.h"

#include <stdio.h>

/* DRAIN_PASSES: what a rank with a ring of 64 writes between two visits. INTERVAL_PASSES: the same at 50 passes/s and
 * the default interval. FIRST_COLLECTIONS attach, lay out, and find no window yet. */
enum { DRAIN_PASSES = 48, INTERVAL_PASSES = 12, FIRST_COLLECTIONS = 3 };

static double elapsed_ns(uint64_t begin_ns)
{
    return (double)(bench_now_ns() - begin_ns);
}

static void record_passes(struct bench_fleet *fleet, unsigned passes)
{
    for (unsigned i = 0; i < passes; i++)
        bench_fleet_pass(fleet);
}

static void collect_passes(struct bench_fleet *fleet, struct inside *inside, unsigned passes)
{
    record_passes(fleet, passes);
    inside_collect(inside);
}

static void run_collect(const char *directory, int argc, char **argv)
{
    struct bench_samples collect = {0}, render = {0}, compress = {0};
    const unsigned passes = (unsigned)bench_option(argc, argv, "passes", INTERVAL_PASSES);
    const double ms = bench_option(argc, argv, "ms", 200);
    struct bench_fleet fleet;
    struct inside *inside;
    size_t size = 0;

    bench_fleet_open(&fleet, directory, argc, argv);
    inside_open(&inside, directory, bench_flag(argc, argv, "debug"));
    for (unsigned i = 0; i < FIRST_COLLECTIONS; i++) {
        collect_passes(&fleet, inside, 1);
        (void)inside_page(PAGE_GZIP);
    }
    /* Until the rings have gone round: a page of theirs that is read for the first time costs a fault. */
    for (unsigned i = 0; i < WIDEEP_RING_PASSES / INTERVAL_PASSES + 3; i++)
        collect_passes(&fleet, inside, INTERVAL_PASSES);
    for (const uint64_t end_ns = bench_now_ns() + (uint64_t)(ms * 1e6); collect.count < 3 || bench_now_ns() < end_ns;) {
        record_passes(&fleet, passes);
        uint64_t begin_ns = bench_now_ns();
        inside_collect(inside);
        bench_sample(&collect, elapsed_ns(begin_ns));
        begin_ns = bench_now_ns();
        size = inside_page(PAGE_IDENTITY);
        bench_sample(&render, elapsed_ns(begin_ns));
        begin_ns = bench_now_ns();
        (void)inside_page(PAGE_GZIP);
        bench_sample(&compress, elapsed_ns(begin_ns));
    }
    (void)printf("{\"bytes\":%zu", size);
    bench_print_samples("collect", &collect);
    bench_print_samples("render", &render);
    bench_print_samples("compress", &compress);
    (void)printf("}\n");
    inside_close(inside);
    bench_fleet_close(&fleet);
}

/* Fills the rings and reads them. Returns the records. */
static uint64_t drain_once(struct bench_fleet *fleet, struct inside *inside, double *ret_ns)
{
    record_passes(fleet, DRAIN_PASSES);
    const uint64_t begin_ns = bench_now_ns(), records = inside_drain(inside);
    *ret_ns = elapsed_ns(begin_ns);
    if (records != (uint64_t)DRAIN_PASSES * fleet->count * fleet->shape.layers)
        bench_fail("records were lost", -EIO);
    return records;
}

static void open_for_drain(struct bench_fleet *fleet, struct inside **inside, const char *directory)
{
    static char ep[] = "--ep=32", *arguments[] = {ep, ep};

    bench_fleet_open(fleet, directory, 2, arguments);
    inside_open(inside, directory, false);
    inside_scan(*inside);
    (void)inside_drain(*inside);
}

static void run_drain(const char *directory, int argc, char **argv)
{
    const double ms = bench_option(argc, argv, "ms", 200);
    struct bench_samples samples = {0};
    struct bench_fleet fleet;
    struct inside *inside;
    double ns;

    open_for_drain(&fleet, &inside, directory);
    for (const uint64_t end_ns = bench_now_ns() + (uint64_t)(ms * 1e6);
         samples.count == 0 || bench_now_ns() < end_ns;) {
        const uint64_t records = drain_once(&fleet, inside, &ns);
        bench_sample(&samples, ns / (double)records);
    }
    (void)printf("{\"case\":\"drain\"");
    bench_print_samples("ns", &samples);
    (void)printf("}\n");
    inside_close(inside);
    bench_fleet_close(&fleet);
}

/* A function of its own, so that the collections before it, which attach and lay out, are not counted. */
static __attribute__((noinline)) void counted_collection(struct inside *inside)
{
    inside_collect(inside);
}

/* The instruction counter looks at inside_drain(), snapshot_small_page() or counted_collection() alone. */
static void run_count(const char *directory, const char *what, int argc, char **argv)
{
    const unsigned calls = (unsigned)bench_option(argc, argv, "calls", 1);
    const bool drain = strcmp(what, "drain") == 0, collect = strcmp(what, "collect") == 0;
    struct bench_fleet fleet;
    struct inside *inside;
    uint64_t units = 1;
    double ns;

    if (drain) {
        open_for_drain(&fleet, &inside, directory);
    } else {
        bench_fleet_open(&fleet, directory, argc, argv);
        inside_open(&inside, directory, false);
        for (unsigned i = 0; i < FIRST_COLLECTIONS; i++)
            collect_passes(&fleet, inside, 1);
    }
    for (unsigned i = 0; i < calls; i++) {
        if (collect) {
            record_passes(&fleet, INTERVAL_PASSES);
            counted_collection(inside);
        } else {
            units = drain ? drain_once(&fleet, inside, &ns) : inside_render_family(what);
        }
    }
    (void)printf("{\"units\":%llu}\n", (unsigned long long)units);
    inside_close(inside);
    bench_fleet_close(&fleet);
}

int main(int argc, char **argv)
{
    if (argc >= 3 && strcmp(argv[2], "collect") == 0)
        run_collect(argv[1], argc, argv);
    else if (argc >= 3 && strcmp(argv[2], "drain") == 0)
        run_drain(argv[1], argc, argv);
    else if (argc >= 4 && strcmp(argv[2], "count") == 0)
        run_count(argv[1], argv[3], argc, argv);
    else
        bench_fail("usage: bench-reader DIRECTORY collect|drain|count ...", -EINVAL);
    return 0;
}

/* feed: live ranks for an exporter to read.
 *
 *     bench-feed DIRECTORY [--groups=N …] [--pace=PASSES PER SECOND]
 *
 * Records one pass before it says so with a line on standard output, then goes on at the given pace until it is killed.
 * The loads are ready made, so that it takes little of a core that others measure on. */
#include "bench.h"

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

int main(int argc, char **argv)
{
    struct bench_fleet fleet;

    if (argc < 2)
        bench_fail("usage: bench-feed DIRECTORY [--pace=N]", -EINVAL);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    bench_fleet_open(&fleet, argv[1], argc, argv);
    const uint64_t period_ns = (uint64_t)(1e9 / bench_option(argc, argv, "pace", 50));
    bench_fleet_pass(&fleet);
    (void)printf("ready\n");
    (void)fflush(stdout);
    for (uint64_t next_ns = bench_now_ns();;) {
        next_ns += period_ns;
        const struct timespec until = {(time_t)(next_ns / 1000000000u), (long)(next_ns % 1000000000u)};
        (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        bench_fleet_pass(&fleet);
    }
}

/*
 * bench: what the benchmark's C programs share: the clock, samples, and a fleet of ranks that record. Valid C11 and
 * C++17. One thread.
 *
 * Each program prints one JSON object a line, with all its samples: figures are made of them by report.py alone, so
 * that the samples of several rounds can be put together.
 */
#ifndef WIDEEP_BENCH_H
#define WIDEEP_BENCH_H

#include "wideep_shm.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BENCH_MODEL "deepseek-ai/DeepSeek-R1-0528"

/* CLOCK_MONOTONIC, which takes some 20 ns to read. */
uint64_t bench_now_ns(void);

/* Prints what went wrong and ends the program with status 1: a benchmark has nothing to clean up but its directory,
 * which is the driver's. */
void bench_fail(const char *what, int error) __attribute__((noreturn));
void *bench_allocate(size_t count, size_t size);

/* An option --NAME=NUMBER of the command line, or `otherwise`. */
double bench_option(int argc, char *const *argv, const char *name, double otherwise);
int bench_flag(int argc, char *const *argv, const char *name);

/* ---- samples ------------------------------------------------------------------------------------------------- */

struct bench_samples {
    double *ns;
    size_t count, capacity;
};

void bench_sample(struct bench_samples *samples, double ns);

/* ,"NAME":[1.5,…] and frees them. */
void bench_print_samples(const char *name, struct bench_samples *samples);

/* ---- loads --------------------------------------------------------------------------------------------------- */

struct bench_shape {
    uint32_t layers, logical, physical, ep_size;
};

/* Loads are followed by as many more, so that a matrix of others begins at each of so many places. */
#define BENCH_SHIFTS 1021

struct bench_loads {
    int32_t *loads;   /* [layers][physical], 0 … 31 tokens */
    int32_t *logical; /* [layers][physical], each expert in one slot at least */
};

/* The same for the same shape in every run. */
void bench_loads_new(struct bench_loads *ret, const struct bench_shape *shape);

/* ---- a fleet ------------------------------------------------------------------------------------------------- */

/* `groups` groups of `engines` engines, each of one EP rank, all written by this process. The ranks are placed in the
 * EP of their group. */
struct bench_fleet {
    struct bench_shape shape;
    struct bench_loads loads;
    struct wideep_writer **writers;
    uint32_t count;
    uint64_t pass; /* the next one's number */
};

/* --groups=1 --engines=1 --ep=ENGINES --layers=58 --experts=256 --redundant=32; --ep: of how many ranks the engines of
 * a group are the first. */
void bench_fleet_open(struct bench_fleet *ret, const char *directory, int argc, char *const *argv);

/* One pass of every rank, with loads, a DBO decision and tokens. */
void bench_fleet_pass(struct bench_fleet *fleet);
void bench_fleet_close(struct bench_fleet *fleet);

#ifdef __cplusplus
}
#endif
#endif

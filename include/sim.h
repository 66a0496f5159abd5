/* SPDX-License-Identifier: Apache-2.0
 *
 * sim: the engine simulator, a program of its own that shares no code with the exporter.
 *
 *     sim.c           parent: forks ranks and front ends, watches them, keeps the joined books, ends the run
 *     sim_options.c   command line
 *     sim_workload.c  what happens in pass p: a pure function of (seed, group, p), so that all processes
 * agree on it without talking to each other sim_loads.c     expert loads and maps, likewise sim_child.c one
 * rank or front end: paces itself, writes through the ABI, keeps its book sim_books.c     the books:
 * arithmetic of what was recorded, independent of ABI and exporter sim_expect.c    the books as series names
 * and numbers
 *
 * Memory shared by parent and children is mapped before the first fork, so pointers into it are good
 * everywhere. Each word of it has one writer at a time and is stored whole; none of it is ever a segment.
 */
#ifndef WIDEEP_SIM_H
#define WIDEEP_SIM_H

#include "wideep_shm.h"

#include <stdbool.h>
#include <sys/types.h>

#define SIM_UNLIMITED       UINT64_MAX
#define SIM_NOBODY          UINT32_MAX
#define SIM_TOP_K           8u         /* experts per token */
#define SIM_LEAD            8u         /* passes that a rank may be ahead of the slowest living one */
#define SIM_LEAD_UNPACED    32u        /* the same when nothing paces them */
#define SIM_START_NS        600000000u /* between the last segment's creation and the first pass */
#define SIM_BALANCE_BUCKETS 12u        /* 0.1 … 0.9, 0.95, 1, +Inf */
#define SIM_MAX_CHILDREN    4096u

enum sim_scenario {
    SIM_DEFAULT,
    SIM_STEADY,
    SIM_HOT,
    SIM_STALL,
    SIM_ASYNC,
    SIM_FALLOUT,
    SIM_IDLE,
    SIM_SPARSE,
    SIM_REDUCED,
    SIM_REDUCED_ALL,
    SIM_MIXED,
    SIM_DEATH,
    SIM_SCENARIOS
};

struct sim_model {
    const char *name;
    uint32_t layers, experts, redundant;
    uint32_t physical; /* experts + redundant, a multiple of ep_size */
};

struct sim_options {
    const char *directory, *instance; /* NULL: the ABI's defaults */
    const char *expect;               /* NULL: none */
    struct sim_model models[WIDEEP_MAX_MODELS];
    uint32_t model_count;
    uint32_t groups, engines, ranks, frontends; /* engines of a group, ranks and front ends of an engine */
    uint32_t ep_size;                           /* engines × ranks */
    uint32_t ubatches;
    double passes_per_second; /* 0: as fast as it can */
    double seconds;           /* 0: no limit */
    double linger;
    uint64_t passes; /* SIM_UNLIMITED: none */
    uint64_t seed;
    enum sim_scenario scenario;
    bool restart, replicated;
};

/* Returns 0; 1 when the text asked for (--help, --version) is printed and all is done; -EINVAL when a line on
 * stderr says what is wrong. */
int sim_options_parse(struct sim_options *ret, int argc, char **argv);

/* ---- what happens in a pass
 * --------------------------------------------------------------------------------- */

struct sim_pass {
    uint64_t pass;
    uint64_t pause_ns; /* the engine is idle for so long before it */
    uint64_t stall_ns; /* a synchronous rearrangement blocks for so long before it; 0: none */
    bool async_begin, async_end;
    uint64_t epoch_start; /* pass before which the newest rearrangement ended; 0 in epoch 0 */
    uint32_t epoch;       /* rearrangements that ended so far: the number of the map */
    uint32_t step;        /* passes since the newest of them */
    uint32_t phase, outcome;
    uint32_t idle_rank; /* EP rank that runs a dummy batch, or SIM_NOBODY */
};

enum sim_record { SIM_RECORD_NONE, SIM_RECORD_PARTIAL, SIM_RECORD_REDUCED };

uint64_t sim_mix(uint64_t a, uint64_t b, uint64_t c);
void sim_workload_pass(const struct sim_options *options, uint32_t group, uint64_t pass, struct sim_pass *ret);
/* Passes between rearrangements, 0: there are none. */
uint64_t sim_workload_interval(const struct sim_options *options);
/* How many passes begin within `seconds` (paced runs). */
uint64_t sim_workload_passes(const struct sim_options *options, double seconds);
/* Nanoseconds from the start to pass p were there no stalls and pauses. */
uint64_t sim_workload_offset_ns(const struct sim_options *options, uint64_t pass);
/* What a rank records of the pass, and what stands for it once the group's records are joined. */
enum sim_record sim_workload_record(const struct sim_options *options, uint64_t pass, uint32_t ep_rank);
enum sim_record sim_workload_joined(const struct sim_options *options, uint64_t pass);
/* Tokens of a rank's batch, and how it is cut up. */
uint32_t sim_workload_batch(const struct sim_options *options, uint32_t group, const struct sim_pass *pass,
                            uint32_t ep_rank);
void sim_workload_dbo(const struct sim_options *options, uint32_t group, const struct sim_pass *pass, uint32_t ep_rank,
                      struct wideep_dbo_stats *ret);
/* Tokens that front end `frontend` (SIM_NOBODY: a rank) of engine `engine` counts. */
void sim_workload_tokens(const struct sim_options *options, uint32_t engine, uint32_t frontend,
                         const struct sim_pass *pass, uint64_t *ret_prompt, uint64_t *ret_generation);

/* ---- expert loads
 * ------------------------------------------------------------------------------------------- */

struct sim_loads; /* of one group and model, private to a process */

int sim_loads_new(struct sim_loads **ret, const struct sim_options *options, uint32_t group, uint32_t model);
void sim_loads_free(struct sim_loads *loads);
/* Brings map and popularity to a pass. */
void sim_loads_seek(struct sim_loads *loads, const struct sim_pass *pass);
/* int32 [layers][physical]: the map of the pass sought, and what `ep_rank` routes in it. The pointers are
 * valid until the next call. */
const int32_t *sim_loads_map(const struct sim_loads *loads);
const int32_t *sim_loads_of(struct sim_loads *loads, const struct sim_pass *pass, uint32_t ep_rank);
/* [layers][ep_size]: tokens to each EP rank from one rank, and from all whose loads count. */
const uint64_t *sim_loads_sums(struct sim_loads *loads, const int32_t *routed);
const uint64_t *sim_loads_group_sums(struct sim_loads *loads, const struct sim_pass *pass);

/* ---- books
 * -------------------------------------------------------------------------------------------------- */

struct sim_model_totals {
    uint64_t rearrangement_sum_ns;
    uint64_t rearrangement_bucket[WIDEEP_MODES][WIDEEP_DURATION_BUCKETS];
};

/* What one child counted, buckets not cumulative. */
struct sim_totals {
    uint64_t prompt, generation;
    uint64_t dbo[WIDEEP_PHASES][WIDEEP_OUTCOMES];
    uint64_t ubatch_sum[WIDEEP_MAX_UBATCHES];
    uint64_t ubatch_bucket[WIDEEP_MAX_UBATCHES][WIDEEP_UBATCH_BUCKETS];
    struct sim_model_totals models[WIDEEP_MAX_MODELS];
};

/* Intended is stored before the call to the ABI, done after it: what is in the segment lies between the two,
 * at whatever instruction the child was killed. */
struct sim_book {
    struct sim_totals intended, done;
    uint64_t *intended_tokens[WIDEEP_MAX_MODELS]; /* [layers][ep_size] */
    uint64_t *done_tokens[WIDEEP_MAX_MODELS];
};

/* Figures of a group and model that only joining its ranks yields. */
struct sim_joined {
    uint32_t layers, ep_size;
    uint64_t *tokens, *max, *passes; /* [layers]; tokens of partial passes over all EP ranks */
    double *reduced_avg;             /* [layers]; tokens per EP rank in reduced passes */
    uint64_t bucket[SIM_BALANCE_BUCKETS];
    double sum;
};

extern const uint32_t sim_duration_bounds_ms[WIDEEP_DURATION_BUCKETS - 1];
extern const double sim_balance_bounds[SIM_BALANCE_BUCKETS - 1];

/* Keeps the compiler from moving book entries across calls into the ABI. */
static inline void sim_books_fence(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

void sim_books_dbo(struct sim_totals *totals, const struct wideep_dbo_stats *stats);
void sim_books_plane(uint64_t *plane, const uint64_t *sums, size_t words);
unsigned sim_books_duration_bucket(uint64_t duration_ns);
int sim_joined_init(struct sim_joined *joined, uint32_t layers, uint32_t ep_size);
void sim_joined_add(struct sim_joined *joined, enum sim_record record, const uint64_t *sums);

/* ---- processes
 * ---------------------------------------------------------------------------------------------- */

enum sim_state { SIM_STARTING, SIM_READY, SIM_FINISHED };

/* A child's place in shared memory; a cache line of its own. */
struct sim_slot {
    uint64_t next;  /* pass that it is about to run or runs */
    uint64_t alive; /* takes part: others wait for it */
    uint64_t state; /* enum sim_state */
    uint64_t error; /* errno it failed with */
    uint64_t reserved[4];
};

struct sim_shared {
    uint64_t start_ns; /* CLOCK_MONOTONIC of the first pass; 0: not yet known */
    uint64_t hold;     /* 1: the parent is choosing the limit; 2: it has */
    uint64_t limit;    /* passes to run */
    uint64_t quit;     /* 1: close and exit */
    uint64_t reserved[4];
};

struct sim_child {
    uint32_t role; /* enum wideep_role */
    uint32_t group, engine, engine_in_group;
    uint32_t ep_rank, tp_rank; /* of a rank */
    uint32_t frontend;         /* of a front end */
    struct sim_slot *slot;     /* shared */
    struct sim_book *book;     /* shared */
    /* The rest is the parent's. */
    pid_t pid; /* 0: gone */
    bool dead; /* it died before its time, at least once */
};

struct sim_run {
    struct sim_options options;
    struct sim_shared *shared;
    struct sim_child *children; /* by group: its ranks in EP order, then its front ends */
    uint32_t child_count, children_per_group;
    pid_t parent;
    bool interrupted;                               /* stopped by a signal before all passes were run */
    struct sim_joined (*joined)[WIDEEP_MAX_MODELS]; /* [groups], the parent's */
};

static inline uint64_t sim_get(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static inline void sim_set(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static inline uint64_t sim_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sim_sleep_until(uint64_t deadline_ns);
/* First pass of a group that no rank of it has begun. */
uint64_t sim_group_front(const struct sim_run *run, uint32_t group);
/* First pass that a living rank of the group has not finished; SIM_UNLIMITED: none lives. */
uint64_t sim_group_rear(const struct sim_run *run, uint32_t group);

/* The whole life of a forked child; returns its exit code. */
int sim_child_run(struct sim_run *run, struct sim_child *child, bool restarted);

/* Writes FILE (and before it FILE.intended, when somebody died) by rename. Returns 0 or a negative errno. */
int sim_expect_write(const struct sim_run *run);

#endif

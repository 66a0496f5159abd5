/* SPDX-License-Identifier: Apache-2.0 */
/* What happens in pass p: rearrangements, pauses, DBO, batches, tokens. Pure functions of options and pass.
 */
#include "sim.h"

/* Of every `period` passes, one rearrangement of each mode whose first pass is not SIM_NEVER. An async one
 * begins before its pass and ends `async_length` passes later. */
#define SIM_NEVER UINT32_MAX
struct sim_cycle {
    uint32_t period, sync_at, async_at, async_length;
    uint32_t interval; /* as an engine would be configured */
    uint32_t stall_min_ms, stall_max_ms;
};

#define SIM_IDLE_PASSES   100u
#define SIM_IDLE_NS       3000000000u
#define SIM_SPARSE_PASSES 60u
#define SIM_SPARSE_FROM   40u
#define SIM_DBO_BLOCK     100u

enum sim_salt {
    SIM_SALT_STALL = 1,
    SIM_SALT_DBO,
    SIM_SALT_PHASE,
    SIM_SALT_IDLE,
    SIM_SALT_BATCH,
    SIM_SALT_CUT,
    SIM_SALT_TOKENS
};

static const struct sim_cycle *sim_workload_cycle(const struct sim_options *options)
{
    /* Any 500 passes hold a whole sync one and a whole async one. */
    static const struct sim_cycle normal = {400, 100, 300, 10, 200, 20, 200};
    static const struct sim_cycle stall = {100, 50, SIM_NEVER, 0, 100, 2000, 2000};
    static const struct sim_cycle async = {100, SIM_NEVER, 50, 40, 100, 0, 0};
    switch (options->scenario) {
    case SIM_STEADY:
    case SIM_HOT: return NULL;
    case SIM_STALL: return &stall;
    case SIM_ASYNC: return &async;
    default: return &normal;
    }
}

uint64_t sim_mix(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xc2b2ae3d27d4eb4fu + c * 0x165667b19e3779f9u;
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t sim_workload_hash(const struct sim_options *options, enum sim_salt salt, uint64_t who, uint64_t pass)
{
    return sim_mix(sim_mix(options->seed, (uint64_t)salt, who), pass, (uint64_t)salt);
}

uint64_t sim_workload_interval(const struct sim_options *options)
{
    const struct sim_cycle *cycle = sim_workload_cycle(options);
    return cycle ? cycle->interval : 0;
}

/* How many of the passes at, at + period, … are not above `pass`; *newest becomes the last of them. */
static uint32_t sim_workload_count(uint64_t pass, uint64_t at, uint64_t period, uint64_t *newest)
{
    if (pass < at)
        return 0;
    uint64_t count = (pass - at) / period;
    uint64_t last = at + count * period;
    *newest = last > *newest ? last : *newest;
    return (uint32_t)(count + 1);
}

static void sim_workload_rearrangements(const struct sim_options *options, struct sim_pass *pass)
{
    const struct sim_cycle *cycle = sim_workload_cycle(options);
    if (cycle) {
        uint64_t in_cycle = pass->pass % cycle->period;
        if (cycle->sync_at != SIM_NEVER) {
            pass->epoch += sim_workload_count(pass->pass, cycle->sync_at, cycle->period, &pass->epoch_start);
            if (in_cycle == cycle->sync_at) {
                uint64_t range = cycle->stall_max_ms - cycle->stall_min_ms + 1;
                uint64_t h = sim_workload_hash(options, SIM_SALT_STALL, 0, pass->pass);
                /* A sleep takes a little longer than asked: keep clear of the promised maximum. */
                pass->stall_ns = (cycle->stall_min_ms + h % range) * 1000000u;
                if (range > 1)
                    pass->stall_ns -= pass->stall_ns / 20;
            }
        }
        if (cycle->async_at != SIM_NEVER) {
            uint64_t end = cycle->async_at + cycle->async_length;
            pass->epoch += sim_workload_count(pass->pass, end, cycle->period, &pass->epoch_start);
            pass->async_begin = in_cycle == cycle->async_at;
            pass->async_end = in_cycle == end;
        }
    }
    pass->step = (uint32_t)(pass->pass - pass->epoch_start);
}

/* In each block of passes every phase meets every outcome but `engaged` once, at places that the seed
 * chooses; in between all is engaged but for the ordinary outcomes. */
static void sim_workload_outcome(const struct sim_options *options, uint32_t group, struct sim_pass *pass)
{
    const uint32_t kinds = WIDEEP_PHASES * (WIDEEP_OUTCOMES - 1);
    uint64_t block = pass->pass / SIM_DBO_BLOCK;
    uint32_t width = SIM_DBO_BLOCK / kinds;
    uint32_t stretch = (uint32_t)(pass->pass % SIM_DBO_BLOCK) / width;
    uint64_t h = sim_workload_hash(options, SIM_SALT_DBO, group, block);
    uint32_t kind = (stretch + (uint32_t)(h % kinds)) % kinds;
    uint64_t place = sim_mix(h, stretch, 7) % width;
    uint64_t p = sim_workload_hash(options, SIM_SALT_PHASE, group, pass->pass);

    pass->phase = p % 4 == 0 ? WIDEEP_PREFILL : WIDEEP_DECODE;
    pass->outcome = WIDEEP_ENGAGED;
    if (pass->pass % width == place) {
        pass->phase = kind % WIDEEP_PHASES;
        pass->outcome = 1 + kind / WIDEEP_PHASES;
    } else if (options->scenario == SIM_FALLOUT) {
        pass->outcome = (p >> 8) % 10 < 8 ? WIDEEP_EMPTY_SECOND_UBATCH : WIDEEP_ENGAGED;
    } else if ((p >> 8) % 16 == 0) {
        pass->outcome = WIDEEP_BELOW_THRESHOLD;
    }
    pass->idle_rank = SIM_NOBODY;
    if (pass->outcome == WIDEEP_IDLE_RANK)
        pass->idle_rank = (uint32_t)(sim_workload_hash(options, SIM_SALT_IDLE, group, pass->pass) % options->ep_size);
}

void sim_workload_pass(const struct sim_options *options, uint32_t group, uint64_t pass, struct sim_pass *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->pass = pass;
    if (options->scenario == SIM_IDLE && pass > 0 && pass % SIM_IDLE_PASSES == 0)
        ret->pause_ns = SIM_IDLE_NS;
    sim_workload_rearrangements(options, ret);
    sim_workload_outcome(options, group, ret);
}

uint64_t sim_workload_offset_ns(const struct sim_options *options, uint64_t pass)
{
    return options->passes_per_second > 0 ? (uint64_t)((double)pass * 1e9 / options->passes_per_second) : 0;
}

uint64_t sim_workload_passes(const struct sim_options *options, double seconds)
{
    uint64_t shift_ns = 0;
    for (uint64_t p = 0;; p++) {
        struct sim_pass pass;
        sim_workload_pass(options, 0, p, &pass);
        shift_ns += pass.pause_ns + pass.stall_ns;
        if ((double)(sim_workload_offset_ns(options, p) + shift_ns) >= seconds * 1e9)
            return p;
    }
}

enum sim_record sim_workload_joined(const struct sim_options *options, uint64_t pass)
{
    switch (options->scenario) {
    case SIM_SPARSE: return pass % SIM_SPARSE_PASSES < SIM_SPARSE_FROM ? SIM_RECORD_NONE : SIM_RECORD_PARTIAL;
    case SIM_REDUCED:
    case SIM_REDUCED_ALL: return SIM_RECORD_REDUCED;
    case SIM_MIXED: return pass % 2 ? SIM_RECORD_REDUCED : SIM_RECORD_PARTIAL;
    default: return SIM_RECORD_PARTIAL;
    }
}

enum sim_record sim_workload_record(const struct sim_options *options, uint64_t pass, uint32_t ep_rank)
{
    enum sim_record joined = sim_workload_joined(options, pass);
    if (joined != SIM_RECORD_REDUCED || ep_rank == 0 || options->scenario == SIM_REDUCED_ALL)
        return joined;
    return options->scenario == SIM_MIXED ? SIM_RECORD_PARTIAL : SIM_RECORD_NONE;
}

uint32_t sim_workload_batch(const struct sim_options *options, uint32_t group, const struct sim_pass *pass,
                            uint32_t ep_rank)
{
    /* Ranks that share their tokens see one batch. */
    uint32_t source = options->replicated ? ep_rank - ep_rank % options->ranks : ep_rank;
    uint32_t idle = options->replicated && pass->idle_rank != SIM_NOBODY
                        ? pass->idle_rank - pass->idle_rank % options->ranks
                        : pass->idle_rank;
    uint64_t h = sim_workload_hash(options, SIM_SALT_BATCH, (uint64_t)group << 32 | source, pass->pass);
    if (source == idle)
        return 0;
    if (pass->outcome == WIDEEP_BELOW_THRESHOLD)
        return 1 + (uint32_t)(h % 16);
    uint32_t base = pass->phase == WIDEEP_PREFILL ? 512u << h % 6 : 32u << h % 4;
    return base + (uint32_t)(h >> 16 & 0xffffff) % base;
}

void sim_workload_dbo(const struct sim_options *options, uint32_t group, const struct sim_pass *pass, uint32_t ep_rank,
                      struct wideep_dbo_stats *ret)
{
    uint32_t left = sim_workload_batch(options, group, pass, ep_rank);

    memset(ret, 0, sizeof *ret);
    ret->pass = pass->pass;
    ret->phase = pass->phase;
    ret->outcome = pass->outcome;
    if (pass->outcome == WIDEEP_EMPTY_SECOND_UBATCH) {
        ret->ubatches = options->ubatches;
        ret->ubatch_tokens[0] = left;
    } else if (pass->outcome == WIDEEP_ENGAGED) {
        uint64_t h = sim_workload_hash(options, SIM_SALT_CUT, (uint64_t)group << 32 | ep_rank, pass->pass);
        ret->ubatches = options->ubatches;
        for (uint32_t i = 0; i + 1 < ret->ubatches; i++) {
            uint32_t even = left / (ret->ubatches - i);
            uint32_t part = even + (uint32_t)(h >> (16 * i) & 0xffff) % (even / 4 + 1);
            ret->ubatch_tokens[i] = part;
            left -= part;
        }
        ret->ubatch_tokens[ret->ubatches - 1] = left;
    } else {
        /* The whole batch went through as one. */
        ret->ubatches = 1;
        ret->ubatch_tokens[0] = left;
    }
}

void sim_workload_tokens(const struct sim_options *options, uint32_t engine, uint32_t frontend,
                         const struct sim_pass *pass, uint64_t *ret_prompt, uint64_t *ret_generation)
{
    uint64_t h = sim_workload_hash(options, SIM_SALT_TOKENS, (uint64_t)engine << 32 | frontend, pass->pass);
    *ret_prompt = pass->phase == WIDEEP_PREFILL ? h % 4096 : 0;
    *ret_generation = pass->phase == WIDEEP_PREFILL ? (h >> 16) % 64 : 16 + (h >> 16) % 240;
}

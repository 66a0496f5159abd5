/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Expert loads. Popularity of the experts of a layer is a Zipf law over places, and which expert has which
 * place drifts from one shuffle to the next over SIM_ERA passes. A rearrangement gives the then most popular
 * experts the redundant slots and spreads all slots greedily over the EP ranks, as EPLB does, so balance is
 * good after it and decays.
 *
 * A rank's loads in a layer: the slots cut the interval [0, 2^32) by their popularity; the cuts are jittered;
 * the batch lies evenly on the interval. So the loads of a layer always add up to batch × top-k, at one
 * multiplication a slot.
 */
#include "sim.h"

#include <math.h>

#define SIM_ERA           800u
#define SIM_DRIFT         25u /* passes between two recomputations of the popularity */
#define SIM_ZIPF_EXPONENT 0.7
#define SIM_WEIGHT_ONE    4194304.0
#define SIM_JITTER_SHIFT  18 /* of a 16-bit number: up to a quarter of a slot's width */

struct sim_slot_load {
    uint32_t weight;
    int32_t expert;
};

struct sim_loads {
    const struct sim_options *options;
    uint64_t seed;
    uint32_t group, layers, experts, physical, ep_size;
    uint64_t era;                /* that `places` is of */
    uint64_t drift;              /* that `bounds` is of */
    uint32_t epoch;              /* that `map` is of */
    uint32_t *zipf;              /* [experts] */
    uint32_t *places[2];         /* [layers][experts], at the begin and the end of the era */
    uint32_t *weights;           /* [layers][experts] */
    uint32_t *replicas;          /* [layers][experts] */
    int32_t *map;                /* [layers][physical] */
    int32_t *routed;             /* [layers][physical] */
    uint64_t *bounds;            /* [layers][physical + 1] */
    uint64_t *sums;              /* [layers][ep_size] of one rank */
    uint64_t *group_sums;        /* [layers][ep_size] of all */
    uint64_t *rank_load;         /* [ep_size], scratch */
    uint32_t *rank_slots;        /* [ep_size], scratch */
    struct sim_slot_load *slots; /* [physical], scratch */
};

void sim_loads_free(struct sim_loads *loads)
{
    if (!loads)
        return;
    free(loads->zipf);
    free(loads->places[0]);
    free(loads->places[1]);
    free(loads->weights);
    free(loads->replicas);
    free(loads->map);
    free(loads->routed);
    free(loads->bounds);
    free(loads->sums);
    free(loads->group_sums);
    free(loads->rank_load);
    free(loads->rank_slots);
    free(loads->slots);
    free(loads);
}

int sim_loads_new(struct sim_loads **ret, const struct sim_options *options, uint32_t group, uint32_t model)
{
    const struct sim_model *m = &options->models[model];
    struct sim_loads *loads = calloc(1, sizeof *loads);
    if (!loads)
        return -ENOMEM;
    loads->options = options;
    loads->seed = sim_mix(options->seed, group, 1000 + model);
    loads->group = group;
    loads->layers = m->layers;
    loads->experts = m->experts;
    loads->physical = m->physical;
    loads->ep_size = options->ep_size;
    loads->era = loads->drift = UINT64_MAX;
    loads->epoch = UINT32_MAX;
    size_t by_expert = (size_t)m->layers * m->experts, by_slot = (size_t)m->layers * m->physical;
    loads->zipf = calloc(m->experts, sizeof *loads->zipf);
    loads->places[0] = calloc(by_expert, sizeof *loads->places[0]);
    loads->places[1] = calloc(by_expert, sizeof *loads->places[1]);
    loads->weights = calloc(by_expert, sizeof *loads->weights);
    loads->replicas = calloc(by_expert, sizeof *loads->replicas);
    loads->map = calloc(by_slot, sizeof *loads->map);
    loads->routed = calloc(by_slot, sizeof *loads->routed);
    loads->bounds = calloc(by_slot + m->layers, sizeof *loads->bounds);
    loads->sums = calloc((size_t)m->layers * options->ep_size, sizeof *loads->sums);
    loads->group_sums = calloc((size_t)m->layers * options->ep_size, sizeof *loads->group_sums);
    loads->rank_load = calloc(options->ep_size, sizeof *loads->rank_load);
    loads->rank_slots = calloc(options->ep_size, sizeof *loads->rank_slots);
    loads->slots = calloc(m->physical, sizeof *loads->slots);
    if (!loads->zipf || !loads->places[0] || !loads->places[1] || !loads->weights || !loads->replicas || !loads->map ||
        !loads->routed || !loads->bounds || !loads->sums || !loads->group_sums || !loads->rank_load ||
        !loads->rank_slots || !loads->slots) {
        sim_loads_free(loads);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < m->experts; i++)
        loads->zipf[i] = (uint32_t)(SIM_WEIGHT_ONE / pow((double)i + 1, SIM_ZIPF_EXPONENT));
    *ret = loads;
    return 0;
}

static void sim_loads_shuffle(struct sim_loads *loads, uint32_t *places, uint64_t era)
{
    for (uint32_t layer = 0; layer < loads->layers; layer++) {
        uint32_t *row = places + (size_t)layer * loads->experts;
        uint64_t h = sim_mix(loads->seed, era, layer);
        for (uint32_t i = 0; i < loads->experts; i++) {
            uint32_t j = (uint32_t)(sim_mix(h, i, 3) % (i + 1));
            row[i] = row[j];
            row[j] = i;
        }
    }
}

/* A hot expert gets as much as three tenths of all others together, wherever the redundant slots begin after
 * it. */
static void sim_loads_weigh_hot(struct sim_loads *loads)
{
    uint32_t redundant = loads->physical - loads->experts;
    uint32_t from = redundant < loads->experts ? redundant : 0;
    for (uint32_t layer = 0; layer < loads->layers; layer++) {
        uint32_t *row = loads->weights + (size_t)layer * loads->experts;
        uint32_t hot = from + (uint32_t)(sim_mix(loads->seed, layer, 5) % (loads->experts - from));
        for (uint32_t i = 0; i < loads->experts; i++)
            row[i] = 8192;
        row[hot] += 8192 * loads->experts * 3 / 10;
    }
}

static void sim_loads_weigh(struct sim_loads *loads, uint64_t pass)
{
    if (loads->options->scenario == SIM_HOT) {
        sim_loads_weigh_hot(loads);
        return;
    }
    uint64_t era = pass / SIM_ERA, at = pass % SIM_ERA / SIM_DRIFT * SIM_DRIFT;
    if (era != loads->era) {
        sim_loads_shuffle(loads, loads->places[0], era);
        sim_loads_shuffle(loads, loads->places[1], era + 1);
        loads->era = era;
    }
    for (size_t i = 0; i < (size_t)loads->layers * loads->experts; i++) {
        uint64_t from = loads->zipf[loads->places[0][i]], to = loads->zipf[loads->places[1][i]];
        loads->weights[i] = (uint32_t)((from * (SIM_ERA - at) + to * at) / SIM_ERA);
    }
}

static int sim_loads_compare(const void *a, const void *b)
{
    const struct sim_slot_load *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight < y->weight ? 1 : -1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

/* One layer: redundant slots to the experts whose replicas carry most, then the heaviest slot left to the EP
 * rank that carries least and has room. */
static void sim_loads_place(struct sim_loads *loads, uint32_t layer)
{
    const uint32_t *weights = loads->weights + (size_t)layer * loads->experts;
    uint32_t *replicas = loads->replicas + (size_t)layer * loads->experts;
    int32_t *map = loads->map + (size_t)layer * loads->physical;
    uint32_t per_rank = loads->physical / loads->ep_size, slot = 0;

    for (uint32_t i = 0; i < loads->experts; i++)
        replicas[i] = 1;
    for (uint32_t r = loads->experts; r < loads->physical; r++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < loads->experts; i++)
            if ((uint64_t)weights[i] * replicas[best] > (uint64_t)weights[best] * replicas[i])
                best = i;
        replicas[best]++;
    }
    for (uint32_t i = 0; i < loads->experts; i++)
        for (uint32_t r = 0; r < replicas[i]; r++)
            loads->slots[slot++] = (struct sim_slot_load){weights[i] / replicas[i], (int32_t)i};
    qsort(loads->slots, loads->physical, sizeof *loads->slots, sim_loads_compare);
    memset(loads->rank_load, 0, loads->ep_size * sizeof *loads->rank_load);
    memset(loads->rank_slots, 0, loads->ep_size * sizeof *loads->rank_slots);
    for (uint32_t i = 0; i < loads->physical; i++) {
        uint32_t best = SIM_NOBODY;
        for (uint32_t rank = 0; rank < loads->ep_size; rank++)
            if (loads->rank_slots[rank] < per_rank &&
                (best == SIM_NOBODY || loads->rank_load[rank] < loads->rank_load[best]))
                best = rank;
        map[best * per_rank + loads->rank_slots[best]++] = loads->slots[i].expert;
        loads->rank_load[best] += loads->slots[i].weight;
    }
}

/* The map that engines begin with: expert after expert, then the redundant slots from the first expert on. */
static void sim_loads_map_initial(struct sim_loads *loads)
{
    memset(loads->replicas, 0, (size_t)loads->layers * loads->experts * sizeof *loads->replicas);
    for (uint32_t layer = 0; layer < loads->layers; layer++)
        for (uint32_t p = 0; p < loads->physical; p++) {
            uint32_t expert = p % loads->experts;
            loads->map[(size_t)layer * loads->physical + p] = (int32_t)expert;
            loads->replicas[(size_t)layer * loads->experts + expert]++;
        }
}

static void sim_loads_cut(struct sim_loads *loads)
{
    for (uint32_t layer = 0; layer < loads->layers; layer++) {
        const int32_t *map = loads->map + (size_t)layer * loads->physical;
        const uint32_t *weights = loads->weights + (size_t)layer * loads->experts;
        const uint32_t *replicas = loads->replicas + (size_t)layer * loads->experts;
        uint64_t *bounds = loads->bounds + (size_t)layer * (loads->physical + 1);
        uint64_t sum = 0;
        for (uint32_t p = 0; p < loads->physical; p++) {
            uint32_t expert = (uint32_t)map[p];
            bounds[p] = sum;
            sum += loads->options->scenario == SIM_STEADY ? 1024 : weights[expert] / replicas[expert];
        }
        bounds[loads->physical] = sum;
        for (uint32_t p = 0; p <= loads->physical; p++)
            bounds[p] = (uint64_t)((double)bounds[p] / (double)sum * 4294967296.0);
    }
}

void sim_loads_seek(struct sim_loads *loads, const struct sim_pass *pass)
{
    uint64_t drift = pass->pass / SIM_DRIFT;
    if (pass->epoch == loads->epoch && drift == loads->drift)
        return;
    if (pass->epoch != loads->epoch) {
        if (pass->epoch == 0) {
            sim_loads_map_initial(loads);
        } else {
            sim_loads_weigh(loads, pass->epoch_start);
            for (uint32_t layer = 0; layer < loads->layers; layer++)
                sim_loads_place(loads, layer);
        }
        loads->epoch = pass->epoch;
    }
    sim_loads_weigh(loads, pass->pass);
    sim_loads_cut(loads);
    loads->drift = drift;
}

const int32_t *sim_loads_map(const struct sim_loads *loads)
{
    return loads->map;
}

const int32_t *sim_loads_of(struct sim_loads *loads, const struct sim_pass *pass, uint32_t ep_rank)
{
    const struct sim_options *options = loads->options;
    uint32_t source = options->replicated ? ep_rank - ep_rank % options->ranks : ep_rank;
    uint32_t top_k = loads->experts < SIM_TOP_K ? loads->experts : SIM_TOP_K;
    uint64_t tokens = (uint64_t)sim_workload_batch(options, loads->group, pass, source) * top_k;

    if (tokens == 0) {
        memset(loads->routed, 0, (size_t)loads->layers * loads->physical * sizeof *loads->routed);
        return loads->routed;
    }
    for (uint32_t layer = 0; layer < loads->layers; layer++) {
        const uint64_t *bounds = loads->bounds + (size_t)layer * (loads->physical + 1);
        int32_t *routed = loads->routed + (size_t)layer * loads->physical;
        uint64_t random = sim_mix(loads->seed + source, pass->pass, layer);
        uint64_t phase = random & 0xffffffff, before = 0;
        for (uint32_t p = 1; p < loads->physical; p++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            uint64_t cut = bounds[p] + ((bounds[p + 1] - bounds[p]) * (random >> 48) >> SIM_JITTER_SHIFT);
            uint64_t until = (cut * tokens + phase) >> 32;
            routed[p - 1] = (int32_t)(until - before);
            before = until;
        }
        routed[loads->physical - 1] = (int32_t)(tokens - before);
    }
    return loads->routed;
}

const uint64_t *sim_loads_sums(struct sim_loads *loads, const int32_t *routed)
{
    uint32_t per_rank = loads->physical / loads->ep_size;
    for (size_t i = 0; i < (size_t)loads->layers * loads->ep_size; i++) {
        int64_t sum = 0;
        for (uint32_t p = 0; p < per_rank; p++)
            sum += *routed++;
        loads->sums[i] = (uint64_t)sum;
    }
    return loads->sums;
}

const uint64_t *sim_loads_group_sums(struct sim_loads *loads, const struct sim_pass *pass)
{
    size_t words = (size_t)loads->layers * loads->ep_size;
    memset(loads->group_sums, 0, words * sizeof *loads->group_sums);
    uint32_t stride = loads->options->replicated ? loads->options->ranks : 1;
    for (uint32_t rank = 0; rank < loads->ep_size; rank += stride) {
        const uint64_t *sums = sim_loads_sums(loads, sim_loads_of(loads, pass, rank));
        for (size_t i = 0; i < words; i++)
            loads->group_sums[i] += sums[i];
    }
    return loads->group_sums;
}

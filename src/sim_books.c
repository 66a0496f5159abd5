/* SPDX-License-Identifier: Apache-2.0 */
/* The books. Bounds are written out here once more on purpose: a wrong one in the ABI must not be right in
 * here. */
#include "sim.h"

const uint32_t sim_duration_bounds_ms[WIDEEP_DURATION_BUCKETS - 1] = {50,   100,   250,   500,   1000,  2500,
                                                                      5000, 10000, 20000, 30000, 60000, 120000};
const double sim_balance_bounds[SIM_BALANCE_BUCKETS - 1] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0};

unsigned sim_books_duration_bucket(uint64_t duration_ns)
{
    unsigned i = 0;
    while (i < WIDEEP_DURATION_BUCKETS - 1 && duration_ns > sim_duration_bounds_ms[i] * (uint64_t)1000000)
        i++;
    return i;
}

void sim_books_dbo(struct sim_totals *totals, const struct wideep_dbo_stats *stats)
{
    totals->dbo[stats->phase][stats->outcome]++;
    if (stats->outcome != WIDEEP_ENGAGED)
        return;
    for (uint32_t i = 0; i < stats->ubatches; i++) {
        unsigned bucket = 0;
        while (bucket < WIDEEP_UBATCH_BUCKETS - 1 && stats->ubatch_tokens[i] > 1u << bucket)
            bucket++;
        totals->ubatch_sum[i] += stats->ubatch_tokens[i];
        totals->ubatch_bucket[i][bucket]++;
    }
}

void sim_books_plane(uint64_t *plane, const uint64_t *sums, size_t words)
{
    for (size_t i = 0; i < words; i++)
        plane[i] += sums[i];
}

int sim_joined_init(struct sim_joined *joined, uint32_t layers, uint32_t ep_size)
{
    memset(joined, 0, sizeof *joined);
    joined->layers = layers;
    joined->ep_size = ep_size;
    joined->tokens = calloc((size_t)layers + 1, sizeof *joined->tokens);
    joined->max = calloc((size_t)layers + 1, sizeof *joined->max);
    joined->passes = calloc((size_t)layers + 1, sizeof *joined->passes);
    joined->reduced_avg = calloc((size_t)layers + 1, sizeof *joined->reduced_avg);
    return joined->tokens && joined->max && joined->passes && joined->reduced_avg ? 0 : -ENOMEM;
}

void sim_joined_add(struct sim_joined *joined, enum sim_record record, const uint64_t *sums)
{
    if (record == SIM_RECORD_NONE)
        return;
    for (uint32_t layer = 0; layer < joined->layers; layer++) {
        uint64_t total = 0, max = 0;
        for (uint32_t rank = 0; rank < joined->ep_size; rank++, sums++) {
            total += *sums;
            max = *sums > max ? *sums : max;
        }
        joined->passes[layer]++;
        joined->max[layer] += max;
        if (record == SIM_RECORD_REDUCED)
            joined->reduced_avg[layer] += (double)total / joined->ep_size;
        else
            joined->tokens[layer] += total;
        if (max == 0)
            continue;
        /* A reduced record holds the average itself. */
        double ratio = record == SIM_RECORD_REDUCED ? (double)total / joined->ep_size / (double)max
                                                    : (double)total / ((double)joined->ep_size * (double)max);
        unsigned bucket = 0;
        while (bucket < SIM_BALANCE_BUCKETS - 1 && ratio > sim_balance_bounds[bucket])
            bucket++;
        joined->bucket[bucket]++;
        joined->sum += ratio;
    }
}

/*
 * rebalance: how even the loads of one layer's EP ranks would be if its experts were rearranged for these loads.
 *
 * The greedy method of DeepSeek's EPLB in its global form (github.com/deepseek-ai/EPLB; vLLM's default policy): the
 * expert with the highest load per replica gets one more replica until every physical slot is used, then the replicas
 * are packed, heaviest first, each onto the least loaded rank that has a free slot. Of two alike the lower number goes
 * first, as there. Both take a heap, so a layer costs O(slots × log(experts + ranks)).
 *
 * A replica is taken to get an equal share of its expert's tokens.
 *
 * One thread at a time per struct.
 */
#ifndef WIDEEP_REBALANCE_H
#define WIDEEP_REBALANCE_H

#include <stdint.h>

struct rebalance;

/* `experts`: logical ones; `slots`: physical ones over all ranks, at least as many, a multiple of `ranks`. All ≥ 1.
 * Returns 0, -EINVAL or -ENOMEM. */
int rebalance_new(struct rebalance **ret, uint32_t experts, uint32_t slots, uint32_t ranks);
void rebalance_free(struct rebalance *rebalance);

/* The load of the most loaded rank after the rearrangement, in the unit of `loads` [experts], which are finite and not
 * negative. The average stays what it was, Σ loads / ranks. */
double rebalance_max(struct rebalance *rebalance, const double *loads);

#endif

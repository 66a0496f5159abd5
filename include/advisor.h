/*
 * advisor: what a rearrangement of the experts would win now, group by group.
 *
 * At most once per interval the collector hands over what was counted since the time before; a thread of low priority
 * plans a rearrangement for these loads (rebalance.h) on copies of its own; a later turn of the collector hangs the
 * results on the groups. No turn waits for the thread: what takes long is only served later.
 *
 * What it knows is the tokens of the interval. What a pass costs beside its experts, what moving them costs, and how
 * unlike single passes are to their sum, it does not: a plan evens out sums, so the balancedness that it promises is an
 * upper bound, and the gain counts what evening out sums wins and leaves what differs from pass to pass.
 */
#ifndef WIDEEP_ADVISOR_H
#define WIDEEP_ADVISOR_H

#include "aggregate.h"

/* On a group; the collector thread's. Not-a-number: not known, for want of tokens or of what to compare with. */
struct advice {
    struct group *group; /* NULL once it is gone: the group's end writes that */
    double *achievable;  /* [layers] balancedness of the interval's tokens after a rearrangement for them */
    double gain;         /* share of the imbalance's cost in the interval that it would win back, 0 … 1 */
    double drift;        /* total variation distance, 0 … 1, mean over layers, of the tokens per logical expert from
                          * those of the interval in which a rearrangement was completed, or of the first one */
};

struct advisor;

/* Starts the thread. Returns 0 or a negative errno. */
int advisor_start(struct advisor **ret, uint64_t interval_ns);

/* Collector thread, once a collection, after aggregate_collect(). Never waits. Returns 0, or -ENOMEM with some groups
 * left without advice. */
int advisor_turn(struct advisor *advisor, const struct aggregate *aggregate, uint64_t now_ns);

/* Ends the thread. The groups are gone or free of advice after it. NULL is fine. */
void advisor_stop(struct advisor *advisor);

#endif

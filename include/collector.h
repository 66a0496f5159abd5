/*
 * collector: the one thread that reads shared memory: scan, drain, aggregate, publish, at a fixed interval.
 *
 * It owns the segment set, the aggregate and the layouts. What others see of its work are the snapshots that it
 * publishes.
 */
#ifndef WIDEEP_COLLECTOR_H
#define WIDEEP_COLLECTOR_H

#include "aggregate.h"

struct collector_config {
    struct segment_config segments;
    struct aggregate_config aggregate;
    uint64_t interval_ns;
    uint64_t series_limit;
    uint64_t debug_ns; /* per-expert series for so long from the start; 0: off */
    const char *version, *commit;
};

struct collector;

/* Makes one collection, so that the first scrape finds a snapshot, then starts the thread. Returns 0 or a negative
 * errno. */
int collector_start(struct collector **ret, const struct collector_config *config);

/* Ends the thread and withdraws the newest snapshot. NULL is fine. */
void collector_stop(struct collector *collector);

#endif

/*
 * collector: the one thread that reads shared memory: scan, drain, aggregate, publish, at a fixed interval. Between
 * collections it copies the live words every COLLECTOR_LIVE_NS for load balancers, and drains rings that would overrun
 * before the next; it sleeps through where there is neither an engine nor such a ring.
 *
 * It owns the segment set, the aggregate and the layouts. What others see of its work is what it publishes: snapshots,
 * the load balancer's board, the state. The other way, the only thing handed to it is struct collector_debug, under a
 * lock; it takes effect at the next collection.
 */
#ifndef WIDEEP_COLLECTOR_H
#define WIDEEP_COLLECTOR_H

#include "advisor.h"
#include "lb.h"
#include "state.h"

#define COLLECTOR_LIVE_NS UINT64_C(25000000)

struct collector_config {
    struct segment_config segments;
    struct aggregate_config aggregate;
    uint64_t interval_ns;
    uint64_t series_limit;
    uint64_t advisor_ns; /* interval of the advisor, 0: none */
    uint64_t debug_ns;   /* per-expert series for so long from the start; 0: off */
    bool admin;          /* per-expert series can be asked for at run time: the state says so */
    const char *version, *commit;
    struct lb *lb;             /* renewed by the collector, borrowed; NULL: none */
    struct state_board *state; /* likewise */
};

/* Per-expert series, switched on for a time. */
struct collector_debug {
    bool on;
    uint64_t until_ns;       /* CLOCK_BOOTTIME */
    struct layer_set layers; /* to serve them for */
    char who[192];           /* asked for it, one line for people */
};

struct collector;

/* Makes one collection, so that the first scrape finds a snapshot, then starts the thread. Returns 0 or a negative
 * errno. */
int collector_start(struct collector **ret, const struct collector_config *config);

/* Switches the per-expert series on, in place of an earlier wish, or off. Any thread. */
void collector_set_debug(struct collector *collector, const struct collector_debug *debug);

/* What is on now. Any thread. */
void collector_get_debug(struct collector *collector, struct collector_debug *ret);

/* How often the thread has gone round, collections and copies of live words alike: stands still when the thread does.
 * Any thread. */
uint64_t collector_turns(const struct collector *collector);

/* Ends the thread and withdraws the newest snapshot. NULL is fine. */
void collector_stop(struct collector *collector);

#endif

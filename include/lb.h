/*
 * lb: what a load balancer asks: may this pod, or one engine of it, be sent requests now?
 *
 * A board holds one row per engine that has ranks. The collector thread renews it from the live words every few
 * milliseconds, also between collections, with lb_update(); HTTP threads copy rows out under a lock that is held for
 * the copy alone. Handlers never touch a mapping.
 *
 *     dead         a rank of the engine died, or all of them closed in order
 *     blocked      a live rank is in a synchronous rearrangement: the engine answers nothing
 *     rebalancing  an asynchronous rearrangement runs; the engine serves
 *     serving      none of these
 *     unknown      no such engine was seen, or the board is LB_STALE_NS old: the collector stands still
 *
 * The state of the whole is the worst of its engines. An engine whose ranks all closed in order, or whose files were
 * deleted, does not count in it: the others serve. When it was the last one, nothing here serves, which is `dead`
 * again; `unknown` is the answer only as long as no engine was ever seen.
 */
#ifndef WIDEEP_LB_H
#define WIDEEP_LB_H

#include "aggregate.h"
#include "http.h"

/* A board this old says nothing any more. */
#define LB_STALE_NS UINT64_C(10000000000)

/* In ascending order of badness. */
enum lb_state { LB_UNKNOWN, LB_SERVING, LB_REBALANCING, LB_BLOCKED, LB_DEAD, LB_STATES };

struct lb_engine {
    char instance[WIDEEP_MAX_INSTANCE + 1];
    uint32_t number;
    enum lb_state state;
    bool closed;                   /* DEAD because all its ranks closed in order */
    uint32_t ranks, ranks_up;      /* those that did not close in order, and the live ones among them */
    uint64_t since_unix_ms;        /* when it came into this state: by the engine's word for rearrangements */
    uint64_t rebalancing_since_ns; /* CLOCK_BOOTTIME; 0: none is under way, or DEAD */
};

/* A private copy of the board. */
struct lb_view {
    struct lb_engine *engines; /* in the order of instance and number; malloc'd, the caller frees it */
    uint32_t count;
    enum lb_state state; /* of all in `engines` together */
    bool stale;
};

struct lb;

/* `name_instances`: rows name their instance, as several are served. Returns 0 or -ENOMEM. */
int lb_new(struct lb **ret, bool name_instances);

/* No handler may be running. NULL is fine. */
void lb_free(struct lb *lb);

/* Renews the board. Returns 0, or -ENOMEM with the board as it was. Collector thread. */
int lb_update(struct lb *lb, const struct aggregate *aggregate, uint64_t now_ns);

/* Copies the rows of engine *number, or of all engines when it is NULL. Returns 0, or -ENOMEM. Any thread. */
int lb_copy(struct lb *lb, const uint32_t *number, uint64_t now_ns, struct lb_view *ret);

const char *lb_state_name(enum lb_state state);

/* Handlers; their context is the struct lb. Any thread.
 * GET /lb[?engine=N][&avoid=rebalancing]: 200 or 503, and why as JSON. */
void lb_handle(void *context, const struct http_request *request, struct http_reply *reply);

/* GET /lb/metrics and GET /lb/N/metrics: always 200 for a number N, always all families. */
void lb_handle_metrics(void *context, const struct http_request *request, struct http_reply *reply);

#endif

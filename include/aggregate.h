/*
 * aggregate: from attached segments to what is served: groups, engines, and their rates.
 *
 * One collection: new segments join their groups; retired ones are drained a last time and leave; every ring is drained
 * into the joins; what the joins can decide is emitted; windows, rates and per-expert loads are renewed. The order
 * matters: the scan asks who is alive before rings are drained, so the last records of a dead rank are read before its
 * death counts.
 *
 * Everything here belongs to the collector thread.
 */
#ifndef WIDEEP_AGGREGATE_H
#define WIDEEP_AGGREGATE_H

#include "group.h"

enum aggregate_engine_label { AGGREGATE_EACH, AGGREGATE_FIRST };

struct aggregate_config {
    uint64_t window_ns;
    uint64_t throughput_ns;
    enum aggregate_engine_label engine_label;
};

/* A model of an engine, as its leading segment has it. */
struct engine_model {
    const char *name;
    uint32_t index; /* in the leading segment */
    struct group *group;
    bool shows_group; /* the group's gauges are served under this engine */
};

/* Where an engine's token counts come from: a front end, or its leading rank where it has none. */
struct engine_source {
    const struct segment *segment;
    bool is_rank;
};

struct engine {
    char instance[WIDEEP_MAX_INSTANCE + 1];
    uint32_t number;
    const char *model; /* of DBO, tokens and throughput */

    /* The segment whose DBO decisions and rearrangements are the engine's: tp_rank 0, the live or the newest. May be
     * NULL: only front ends. */
    const struct segment *lead;
    struct engine_model models[WIDEEP_MAX_MODELS]; /* those with MoE layers */
    uint32_t model_count;
    const struct segment **ranks; /* all its rank segments, in the order of their numbers */
    uint32_t rank_count;
    struct engine_source *sources;
    uint32_t source_count;

    bool rates_known; /* the counts below are of an earlier collection */
    uint64_t rate_since_ns, prompt_tokens, generation_tokens;
    double prompt_rate, generation_rate; /* tokens per second over the last whole interval, 0 before */
    bool wanted;
    struct engine *next;
};

/* A set of MoE layers, bit by bit. */
struct layer_set {
    uint64_t words[WIDEEP_MAX_LAYERS / 64];
};

static inline bool layer_set_has(const struct layer_set *set, uint32_t layer)
{
    return set->words[layer / 64] >> layer % 64 & 1;
}

struct aggregate {
    struct aggregate_config config;
    struct segment_set *set; /* borrowed */
    struct ring_drain *drain;
    struct ring_counts counts;
    struct join_memory join_memory;
    struct group *groups;
    struct engine *engines; /* in the order of instance and number */
    bool experts_wanted;
    struct layer_set expert_layers; /* whose per-expert loads are served, while they are wanted */
    uint64_t now_ns;
    uint64_t generation; /* moves whenever the set of series may have changed */
    uint64_t set_generation;
};

/* Returns 0 or -ENOMEM. */
int aggregate_new(struct aggregate **ret, const struct aggregate_config *config, struct segment_set *set);
void aggregate_free(struct aggregate *aggregate);

/* One collection after segment_set_scan(); reaps what the scan retired. `experts_wanted`: keep per-expert loads.
 * Returns 0, or -ENOMEM with some figures not renewed. */
int aggregate_collect(struct aggregate *aggregate, bool experts_wanted, uint64_t now_ns);

/* Serves per-expert loads of these layers alone from the next collection on; at first it is all of them. */
void aggregate_select_layers(struct aggregate *aggregate, const struct layer_set *layers);

/* The least ring_left_ns() of the segments that are served: when rings have to be drained at the latest. */
uint64_t aggregate_left_ns(struct aggregate *aggregate, uint64_t now_ns);

/* Drains the rings between two collections, where one has to come sooner than the other. What it reads shows with the
 * next collection. `now_ns` as of aggregate_collect(). */
void aggregate_drain(struct aggregate *aggregate, uint64_t now_ns);

/* Is a rearrangement under way on any live rank of the engine? Outputs may be NULL: whether one blocks, and since when
 * (CLOCK_BOOTTIME, 0: none). */
bool engine_rebalancing(const struct engine *engine, const char *model, bool *ret_blocked, uint64_t *ret_since_ns);

/* Does the leading rank live? Then the engine's gauges are served. */
bool engine_live(const struct engine *engine);

#endif

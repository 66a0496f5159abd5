/*
 * group: the ranks that run collectives together for one model, and what only they can know jointly.
 *
 * A group is (instance, group id, model name, shape). It owns the join of its members' passes, the sums and the window
 * over the joined passes, and the per-expert loads while those are wanted. It lives as long as a segment belongs to it.
 *
 * WINDOW. Gauges are means over the newest `window` of joined passes by the records' own time, in GROUP_SLICES slices
 * of equal length that begin at multiples of it: the newest slice, still filling, and the ones before it. So idleness
 * changes nothing, and the figure does not depend on when collections ran.
 *
 * SUMS OVER RANKS. wideep_eplb_rank_tokens_total adds up planes of several segments. When one of them leaves (deleted,
 * or moved to another group), the rest of the sum is not an increase of anything: it becomes the `base`, and the served
 * sum starts again at 0, one clean reset.
 *
 * Collector thread only.
 */
#ifndef WIDEEP_GROUP_H
#define WIDEEP_GROUP_H

#include "join.h"

#define GROUP_SLICES               40
#define GROUP_BALANCEDNESS_BUCKETS 12 /* 0.1 … 0.9, 0.95, 1 and +Inf */
#define GROUP_CHECKPOINTS          5  /* of a member's expert tokens: quarters of the window */

struct group;
struct advice;

/* One model of one attached rank segment. */
struct member {
    struct join_member join;
    struct segment *segment; /* NULL once departed */
    uint32_t model;          /* in the segment */
    struct group *group;
    bool counts;  /* its loads do: not one of several TP ranks that route the same tokens */
    bool joins;   /* so do its passes: they are of this boot, and their times mean something */
    bool counted; /* part of the sums over ranks */
    bool judged;  /* whether it should be was asked at least once */
    struct {
        uint64_t *tokens; /* [layers][experts] cumulative */
        uint64_t passes, time_ns;
    } checkpoint[GROUP_CHECKPOINTS]; /* oldest first */
    uint32_t checkpoints;
};

struct group_layer {
    uint64_t passes;
    uint64_t tokens, max;            /* Σ over partial passes: of all EP ranks together, of the most loaded one */
    double reduced_avg, reduced_max; /* Σ over reduced ones */
};

struct group_slice_layer {
    uint32_t passes;
    double avg, max; /* tokens per EP rank, Σ over passes, scaled to the whole group */
};

struct group {
    char instance[WIDEEP_MAX_INSTANCE + 1];
    uint64_t id;
    uint32_t engine; /* of its first member; the only one where id is 0 */
    char model[SEGMENT_MODEL_MAX];
    uint32_t layers, experts, ep_size;
    uint32_t label; /* lowest engine number of its members */
    bool hidden;    /* another group has the same label and model, and is more alive */
    uint32_t seen;  /* live ranks, those that do not join included */

    struct member **members; /* attached, then departed ones that may still owe a pass */
    uint32_t member_count, member_capacity;
    struct join_member **join_members; /* [joining], of those that join */
    uint32_t joining;

    struct join *join;
    bool blocked; /* join_ready() said no in this round */
    struct group_layer *layer;
    uint64_t incomplete[JOIN_CAUSES];
    uint64_t balancedness_bucket[GROUP_BALANCEDNESS_BUCKETS]; /* not cumulative */
    double balancedness_sum;

    uint64_t slice_ns;
    uint64_t newest_slice; /* 0: none yet */
    uint64_t slice_index[GROUP_SLICES];
    struct group_slice_layer *slice;  /* [GROUP_SLICES][layers] */
    struct group_slice_layer *window; /* [layers], Σ over the slices of the window, of the newest group_settle() */

    uint64_t *rank_tokens; /* [layers][ep_size], Σ over the counted members' planes at the newest group_settle() */
    uint64_t *base;        /* [layers][ep_size], NULL: 0 */
    double *expert_tokens; /* [layers][experts] tokens per pass, NULL while not wanted or not known yet */
    double *expert_spare;  /* as much, for the next ones; NULL while not wanted */
    uint64_t *expert_copy; /* [layers][experts]: of a member's plane; NULL while not wanted */
    struct advice *advice; /* the advisor's, NULL: none */
    struct group *next;
};

/* Upper bounds of the balancedness buckets, without +Inf. */
extern const double group_balancedness_bounds[GROUP_BALANCEDNESS_BUCKETS - 1];

/* `segment` is a rank and its model has layers. Returns 0 or -ENOMEM. */
int group_new(struct group **ret, const struct segment *segment, uint32_t model, uint64_t window_ns,
              struct join_memory *memory);
void group_free(struct group *group);

/* Is this the group of that segment's model? */
bool group_matches(const struct group *group, const struct segment *segment, uint32_t model);

/* Makes a member of the group and of segment->members[model]. Returns 0 or -ENOMEM. */
int group_join(struct group *group, struct segment *segment, uint32_t model);

/* The member's segment is about to go. `stays`: its successor carries the same totals on in this group. Counts what the
 * sums over ranks lose by it. */
void group_leave(struct member *member, uint64_t now_ns, bool stays);

/* Takes the member into the sums over ranks, or out of them. `whole`: all it has counted so far is new to this
 * exporter. */
void group_count_member(struct member *member, bool counted, bool whole);

/* A pass read from a member's ring. Returns false when it came too late. */
bool group_supply(struct member *member, const struct ring_pass *pass);

/* As join_emit(). */
uint32_t group_emit(struct group *group, enum join_emission emission);

/* Ends a collection: sums the window and the planes, lets go of departed members. */
void group_settle(struct group *group);

/* Sum over the counted members' planes at the newest group_settle(), from 0 at the last reset. */
uint64_t group_rank_tokens(const struct group *group, uint32_t layer, uint32_t ep_rank);

/* Copies the member's cumulative tokens per logical expert, [layers][experts], as of one recorded pass, whose count is
 * returned. A writer that never holds still costs one pass of inexactness, not a wait. The member's segment is
 * attached. */
uint64_t group_copy_experts(const struct member *member, uint64_t *ret);

/* Renews the per-expert loads, or forgets all about them. Returns 0 or -ENOMEM. */
int group_experts(struct group *group, bool wanted, uint64_t window_ns);

#endif

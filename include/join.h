/*
 * join: adds up what the ranks of a group routed, pass by pass.
 *
 * A rank knows only the tokens that it routed itself. The load of an EP rank in a pass is the sum over all ranks of
 * what they sent to it, and the pass costs what its slowest EP rank costs. So the partial sums of one pass must be
 * joined before a maximum is taken, and the maximum taken before passes are added up.
 *
 *     rank 0 ring ─┐                        ┌───────────────────────┐
 *     rank 1 ring ─┼─ join_supply() ──────► │ open passes, by number │ ── join_emit() ──► complete: figures per layer
 *     rank 2 ring ─┘ adds into its pass     └───────────────────────┘                └─► incomplete: counted by cause
 *
 * Passes are emitted strictly in order. The lowest open pass is decided when every member that must supply it has, or
 * cannot any more:
 *
 *   supplied                                           nothing to wait for
 *   not attached when it ran (segment is younger)      not asked
 *   attached, its first readable pass is later         the pass is discarded without a trace: we came too late for it
 *   stands at a later pass                             incomplete: lost (after an overrun) or skipped
 *   died before it supplied                            incomplete: dead
 *   otherwise                                          wait; incomplete: late, once the group's newest record is 1 s
 *                                                      younger than the pass, or JOIN_OPEN_MAX passes are open
 *
 * Two steps in one pass make it incomplete: step_mismatch. A record flagged REDUCED stands for its layer: of several,
 * the lowest EP rank's alone; members that never recorded anything are not waited for where all layers are reduced.
 * Nothing depends on the order in which rings are drained, because emission comes after all of them, and time is the
 * records'.
 *
 * Memory is one row of sums per open pass and layer, whatever the number of ranks.
 *
 * A new run: pass numbers begin anew when the group is initialised anew. When a pass arrives that is not above the
 * newest closed one, and every live member's segment was created after the newest record of this run, nobody of the run
 * is left, and the join starts over. Ranks that come back one by one are late until the last of the old ones is gone.
 * It starts over as well when all live members go on below the closed passes with records that are 1 s younger: then a
 * pass number far ahead was somebody's mistake.
 *
 * What no rank could supply because all lost it is counted as lost by the pass numbers in between.
 *
 * Collector thread only.
 */
#ifndef WIDEEP_JOIN_H
#define WIDEEP_JOIN_H

#include "ring.h"

#define JOIN_OPEN_MAX 256
#define JOIN_OPEN_MIN 2 /* whatever the memory */
#define JOIN_DEPTH    4 /* open at first in a collection; JOIN_OPEN_MAX is a power of four times it */
#define JOIN_LATE_NS  1000000000u
#define JOIN_GAPS     4

enum join_cause { JOIN_DEAD, JOIN_SKIPPED, JOIN_LOST, JOIN_LATE, JOIN_STEP_MISMATCH, JOIN_CAUSES };

/* A rank's part in a join; one per segment and model, owned by the caller. */
struct join_member {
    uint32_t ep_rank;
    bool live;
    uint64_t start_ns; /* of its segment, CLOCK_BOOTTIME */
    uint64_t died_ns;  /* 0 while live */
    uint64_t first;    /* first pass it supplied to this run, UINT64_MAX: none */
    uint64_t newest;   /* newest pass it supplied + 1 */
    uint64_t awaited;  /* passes below it were closed before it had supplied anything */
    bool ever;         /* its segment has supplied something, to this run or another */
    bool behind;       /* its newest pass was below the closed ones, but 1 s younger than all that was joined */
    struct {
        uint64_t from, to; /* passes [from, to) that it could not supply because records were lost */
    } gaps[JOIN_GAPS];
    unsigned next_gap;
};

struct join;

/* Figures of one complete pass and layer, tokens per EP rank. */
struct join_layer {
    bool present;
    bool reduced;    /* of the whole group, by the engine; else the sum of the ranks seen here */
    uint64_t tokens; /* partial: sum over all EP ranks */
    uint64_t max;    /* partial: of the most loaded EP rank */
    double reduced_avg, reduced_max;
};

struct join_sink {
    /* A complete pass; `layer` has the model's number of layers. */
    void (*complete)(void *context, uint64_t time_ns, const struct join_layer *layer);
    void (*incomplete)(void *context, enum join_cause cause, uint64_t passes);
    void *context;
};

/* Bytes in open passes, shared by the joins of a process. */
struct join_memory {
    size_t used, limit;
};

/* layers 1 … WIDEEP_MAX_LAYERS, ep_size 1 … WIDEEP_MAX_EP_SIZE; `memory` by reference. Returns 0 or -ENOMEM. */
int join_new(struct join **ret, uint32_t layers, uint32_t ep_size, struct join_memory *memory);
void join_free(struct join *join);

/* Before rings are drained: few passes may be open, so that they stay in the cache while all ranks add to them. */
void join_begin(struct join *join);

/* Lets more passes be open. False when JOIN_OPEN_MAX are allowed already. */
bool join_deepen(struct join *join);

/* May `pass` be supplied, or are as many open as the depth or the memory allows? */
bool join_ready(const struct join *join, uint64_t pass);

/* Adds a member's pass. Returns false when it was too late: the pass is closed and was not whole without it, or the
 * member went backwards. */
bool join_supply(struct join *join, struct join_member *const *members, uint32_t count, struct join_member *member,
                 const struct ring_pass *pass);

enum join_emission {
    JOIN_EMIT_WHOLE,  /* passes that all members supplied: right at any time, whatever else is in the rings */
    JOIN_EMIT,        /* what can be decided: all rings are drained, or as far as join_ready() allowed */
    JOIN_EMIT_FORCED, /* and the oldest open pass whatever is known of it, as it holds up the rings */
};

/* Returns how many passes it closed. */
uint32_t join_emit(struct join *join, struct join_member *const *members, uint32_t count, enum join_emission emission,
                   const struct join_sink *sink);

/* Number of passes waiting; `ret_oldest_ns` (may be NULL) gets the time of the lowest. */
uint32_t join_open(const struct join *join, uint64_t *ret_oldest_ns);

#endif

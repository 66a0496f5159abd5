/*
 * ring: drains the record rings of one attached segment into whole passes.
 *
 * The slot protocol is wideep_shm.h's; this module keeps the position, counts what was lost and by what cause, and
 * hands over a pass only when all its records were read: from the one flagged FIRST to the one flagged LAST, without a
 * gap. What is accepted plus what is lost is what was written, to the record.
 *
 * Scanning thread only.
 */
#ifndef WIDEEP_RING_H
#define WIDEEP_RING_H

#include "segment.h"

enum ring_kind { RING_EPLB, RING_DBO, RING_KINDS };

/* LATE is counted by whoever joins the passes: whole, but of a pass that was already closed. */
enum ring_cause { RING_OVERRUN, RING_TORN, RING_INVALID, RING_LATE, RING_CAUSES };

struct ring_counts {
    uint64_t read[RING_KINDS];
    uint64_t lost[RING_KINDS][RING_CAUSES];
};

/* One pass of one model of one rank. */
struct ring_pass {
    uint32_t model;
    uint32_t step;
    uint64_t pass;
    uint64_t time_ns;
    uint32_t records;
    const struct wideep_eplb_record *record; /* [records], layers strictly increasing */
    const uint32_t *rank_tokens;             /* [records][ep_size] */
    bool after_loss;                         /* records before it were lost since the last pass handed over */
};

struct ring_sink {
    /* May the pass be handed over now? If not, draining stops before it and goes on there next time. */
    bool (*ready)(void *context, struct segment *segment, uint32_t model, uint64_t pass);
    void (*pass)(void *context, struct segment *segment, const struct ring_pass *pass);
    void *context;
};

struct ring_drain;

/* Buffers for the widest pass, shared by all segments. Returns 0 or -ENOMEM. */
int ring_drain_new(struct ring_drain **ret);
void ring_drain_free(struct ring_drain *drain);

/* Marks the end of what ring_drain_eplb() reads until the next mark, so that a collection ends however fast a writer
 * is, and says how much it may read for that: of a ring that wants more, as only one of nonsense does, it leaves the
 * rest to the next mark. */
void ring_mark(struct segment *segment);

/* Hands over what the EPLB ring holds up to the mark. Returns true when it is drained, or has had its share; false when
 * the sink was not ready. */
bool ring_drain_eplb(struct ring_drain *drain, struct segment *segment, const struct ring_sink *sink,
                     struct ring_counts *counts);

/* For how many nanoseconds from now the segment's rings can be left alone before a record is overwritten unread, at the
 * pace of late; UINT64_MAX where none is written, or not yet known. Called again and again, it measures the pace from
 * call to call; a faster one counts at once, a slower one by halves, so that a short pause hides nothing. `now_ns` is
 * of any clock that does not go backwards. Two loads of shared memory. */
uint64_t ring_left_ns(struct segment *segment, uint64_t now_ns);

/* Counts what the DBO ring holds, or its share of that: its totals say the rest. */
void ring_drain_dbo(struct segment *segment, struct ring_counts *counts);

#endif

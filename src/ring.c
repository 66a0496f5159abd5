#include "ring.h"

#define ALL_MODELS ((1u << WIDEEP_MAX_MODELS) - 1)
/* Slots that are fetched ahead: processors do so by themselves, but within a page and once they have seen a few lines
 * of it, and a page holds a dozen slots or two. */
#define SLOTS_AHEAD 6
#define LINE_SIZE   64
/* What a ring may cost between two marks: each of its slots twice, up to so many, or so many records that could not be
 * had. No writer needs more; the rest is for the next mark. Without it, whoever moves a head alone keeps us reading
 * what nobody wrote. */
#define SLOTS_MAX    (UINT32_C(1) << 16)
#define FAILURES_MAX 256
/* More than an hour of records at full speed: a head that leaps further was not moved by a writer. */
#define LEAP_MAX ((uint64_t)1 << 33)

struct ring_drain {
    /* One more than a pass can have: layers ascend, so the record behind the last layer is refused, but first read. */
    struct wideep_eplb_record record[WIDEEP_MAX_LAYERS + 1];
    uint32_t *rank_tokens; /* as many rows, of the widest segment seen */
    size_t token_capacity;
};

int ring_drain_new(struct ring_drain **ret)
{
    struct ring_drain *drain = calloc(1, sizeof *drain);

    if (!drain)
        return -ENOMEM;
    *ret = drain;
    return 0;
}

void ring_drain_free(struct ring_drain *drain)
{
    if (!drain)
        return;
    free(drain->rank_tokens);
    free(drain);
}

static bool drain_reserve(struct ring_drain *drain, const struct wideep_identity *id)
{
    uint32_t layers = 0;

    for (uint32_t m = 0; m < id->model_count; m++)
        layers = id->models[m].layers > layers ? id->models[m].layers : layers;
    size_t tokens = (layers + (size_t)1) * id->ep_size;
    if (drain->token_capacity >= tokens)
        return true;
    uint32_t *bigger = realloc(drain->rank_tokens, tokens * sizeof *bigger);
    if (!bigger)
        return false;
    drain->rank_tokens = bigger;
    drain->token_capacity = tokens;
    return true;
}

/* Moves `*next` to the oldest position that can still be whole, and returns the head. */
static uint64_t ring_window(const struct wideep_ring *ring, uint64_t *next, uint64_t *lost)
{
    uint64_t head = wideep_ring_head(ring);

    /* No writer moves a head backwards or this far: what claims so is garbage, and reading starts over from there. */
    if (head > UINT64_MAX / 4) {
        lost[RING_INVALID]++;
        return *next;
    }
    if (head < *next || head - *next > LEAP_MAX) {
        lost[RING_INVALID]++;
        *next = head;
        return head;
    }
    uint64_t tail = wideep_ring_tail(ring, head);
    if (*next < tail) {
        lost[RING_OVERRUN] += tail - *next;
        *next = tail;
    }
    return head;
}

static uint32_t budget_of(const struct wideep_ring *ring)
{
    return 2 * (ring->count < SLOTS_MAX ? ring->count : SLOTS_MAX);
}

/* What is left of a budget after a read. */
static uint32_t spend(const struct wideep_ring *ring, uint32_t budget, enum wideep_read result)
{
    const uint32_t cost = result == WIDEEP_READ_OK ? 1 : budget_of(ring) / FAILURES_MAX + 1;

    return budget > cost ? budget - cost : 0;
}

void ring_mark(struct segment *segment)
{
    segment->eplb_end = segment->view.eplb.head ? wideep_ring_head(&segment->view.eplb) : 0;
    segment->eplb_budget = budget_of(&segment->view.eplb);
}

static enum ring_cause lost_cause(enum wideep_read result)
{
    return result == WIDEEP_READ_OVERRUN ? RING_OVERRUN : result == WIDEEP_READ_TORN ? RING_TORN : RING_INVALID;
}

/* Does the record continue the pass whose first `have` records are assembled? */
static bool record_continues(const struct wideep_eplb_record *pass, uint32_t have,
                             const struct wideep_eplb_record *record)
{
    return have > 0 && !(record->flags & WIDEEP_FIRST) && record->pass == pass[0].pass &&
           record->model == pass[0].model && record->step == pass[0].step && record->layer > pass[have - 1].layer;
}

static void prefetch_slot(const struct wideep_ring *ring, uint64_t n)
{
    const unsigned char *slot = ring->slots + (n % ring->count) * ring->stride;

    for (uint32_t at = 0; at < ring->stride; at += LINE_SIZE)
        __builtin_prefetch(slot + at);
}

bool ring_drain_eplb(struct ring_drain *drain, struct segment *segment, const struct ring_sink *sink,
                     struct ring_counts *counts)
{
    const struct wideep_ring *ring = &segment->view.eplb;
    const uint32_t ep_size = segment->view.identity.ep_size;
    uint64_t *lost = counts->lost[RING_EPLB];
    uint32_t have = 0; /* records of the pass being assembled */

    if (!ring->head || !drain_reserve(drain, &segment->view.identity))
        return true;
    uint64_t before = segment->eplb_next;
    uint64_t end = ring_window(ring, &segment->eplb_next, lost);
    end = end < segment->eplb_end ? end : segment->eplb_end;
    if (segment->eplb_next != before)
        segment->eplb_loss = ALL_MODELS;
    while (segment->eplb_next < end && segment->eplb_budget > 0) {
        struct wideep_eplb_record *record = &drain->record[have];
        prefetch_slot(ring, segment->eplb_next + SLOTS_AHEAD);
        enum wideep_read result =
            wideep_eplb_read(&segment->view, segment->eplb_next, record, drain->rank_tokens + (size_t)have * ep_size);
        if (result == WIDEEP_READ_OK && have > 0 && !record_continues(drain->record, have, record))
            result = WIDEEP_READ_INVALID;
        segment->eplb_budget = spend(ring, segment->eplb_budget, result);
        if (result == WIDEEP_READ_OK && have == 0) {
            if (!(record->flags & WIDEEP_FIRST)) {
                /* The rest of a pass whose beginning was lost: of no use, and lost by the same cause. */
                lost[segment->eplb_loss ? RING_OVERRUN : RING_INVALID]++;
                segment->eplb_next++;
                segment->eplb_loss = ALL_MODELS;
                continue;
            }
            if (!sink->ready(sink->context, segment, record->model, record->pass))
                return false;
        }
        segment->eplb_next++;
        if (result != WIDEEP_READ_OK) {
            lost[lost_cause(result)] += have + 1;
            have = 0;
            segment->eplb_loss = ALL_MODELS;
            /* The writer lapped us: leap to where whole records begin, rather than lose them one by one. */
            if (result != WIDEEP_READ_INVALID)
                (void)ring_window(ring, &segment->eplb_next, lost);
            continue;
        }
        have++;
        if (!(record->flags & WIDEEP_LAST))
            continue;
        counts->read[RING_EPLB] += have;
        struct ring_pass pass = {.model = drain->record[0].model,
                                 .step = drain->record[0].step,
                                 .pass = drain->record[0].pass,
                                 .time_ns = drain->record[0].time_ns,
                                 .records = have,
                                 .record = drain->record,
                                 .rank_tokens = drain->rank_tokens,
                                 .after_loss = (segment->eplb_loss >> drain->record[0].model & 1) != 0};
        segment->eplb_loss &= ~(1u << pass.model);
        sink->pass(sink->context, segment, &pass);
        have = 0;
    }
    if (segment->eplb_next < end) { /* its first records are read again */
        segment->eplb_next -= have;
        return true;
    }
    /* The head moves by whole calls, so a pass that ends beyond a mark is no writer's. */
    lost[RING_INVALID] += have;
    return true;
}

static void pace_update(struct segment_pace *pace, uint64_t head, uint64_t now_ns)
{
    if (pace->time_ns == 0 || now_ns > pace->time_ns) {
        /* A head that went backwards or leapt is no writer's: ring_window() deals with it. */
        bool sane = pace->time_ns != 0 && head >= pace->head && head - pace->head <= LEAP_MAX;
        double measured = sane ? (double)(head - pace->head) / (double)(now_ns - pace->time_ns) : 0;
        pace->records_per_ns = measured > pace->records_per_ns / 2 ? measured : pace->records_per_ns / 2;
        pace->head = head;
        pace->time_ns = now_ns;
    }
}

static uint64_t left_ns(const struct wideep_ring *ring, struct segment_pace *pace, uint64_t next, uint64_t now_ns)
{
    /* One that a single call overwrites has no record that can still be whole: nobody is in time for it. */
    if (!ring->head || ring->count == ring->batch)
        return UINT64_MAX;
    uint64_t head = wideep_ring_head(ring), depth = ring->count - ring->batch;
    pace_update(pace, head, now_ns);
    uint64_t unread = head > next ? head - next : 0;
    double left = unread < depth ? (double)(depth - unread) / pace->records_per_ns : 0;
    /* A comparison that fails for what no integer holds, and for 0 / 0. */
    return pace->records_per_ns > 0 && left < 1e18 ? (uint64_t)left : UINT64_MAX;
}

uint64_t ring_left_ns(struct segment *segment, uint64_t now_ns)
{
    uint64_t eplb = left_ns(&segment->view.eplb, &segment->eplb_pace, segment->eplb_next, now_ns);
    uint64_t dbo = left_ns(&segment->view.dbo, &segment->dbo_pace, segment->dbo_next, now_ns);

    return eplb < dbo ? eplb : dbo;
}

void ring_drain_dbo(struct segment *segment, struct ring_counts *counts)
{
    const struct wideep_ring *ring = &segment->view.dbo;
    uint64_t *lost = counts->lost[RING_DBO];
    struct wideep_dbo_record record;

    if (!ring->head)
        return;
    uint64_t head = ring_window(ring, &segment->dbo_next, lost);
    for (uint32_t budget = budget_of(ring); segment->dbo_next < head && budget > 0;) {
        enum wideep_read result = wideep_dbo_read(&segment->view, segment->dbo_next++, &record);
        budget = spend(ring, budget, result);
        if (result == WIDEEP_READ_OK) {
            counts->read[RING_DBO]++;
            continue;
        }
        lost[lost_cause(result)]++;
        /* To where whole records begin, but no further than to the head seen first: a writer that outruns us for ever
         * holds nobody up. */
        if (result != WIDEEP_READ_INVALID)
            (void)ring_window(ring, &segment->dbo_next, lost);
    }
}

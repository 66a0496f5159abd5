// SPDX-License-Identifier: Apache-2.0
#include "rebalance.h"

#include <errno.h>
#include <stdlib.h>

/* A place in a heap whose root has the least key and, of those, the least index. */
struct place {
    double key;
    uint32_t index;
};

struct rebalance {
    uint32_t experts, slots, ranks;
    uint32_t *replicas;   /* [experts] */
    uint32_t *free_slots; /* [ranks] */
    struct place *experts_heap, *ranks_heap;
    struct place *order; /* [experts], heaviest replicas first */
};

int rebalance_new(struct rebalance **ret, uint32_t experts, uint32_t slots, uint32_t ranks)
{
    if (experts < 1 || ranks < 1 || slots < experts || slots % ranks != 0)
        return -EINVAL;

    struct rebalance *r = calloc(1, sizeof(*r));
    if (!r)
        return -ENOMEM;
    r->experts = experts;
    r->slots = slots;
    r->ranks = ranks;
    r->replicas = calloc(experts, sizeof(*r->replicas));
    r->free_slots = calloc(ranks, sizeof(*r->free_slots));
    r->experts_heap = calloc(experts, sizeof(*r->experts_heap));
    r->ranks_heap = calloc(ranks, sizeof(*r->ranks_heap));
    r->order = calloc(experts, sizeof(*r->order));
    if (!r->replicas || !r->free_slots || !r->experts_heap || !r->ranks_heap || !r->order) {
        rebalance_free(r);
        return -ENOMEM;
    }
    *ret = r;
    return 0;
}

void rebalance_free(struct rebalance *r)
{
    if (!r)
        return;
    free(r->replicas);
    free(r->free_slots);
    free(r->experts_heap);
    free(r->ranks_heap);
    free(r->order);
    free(r);
}

static int before(const struct place *a, const struct place *b)
{
    return a->key != b->key ? a->key < b->key : a->index < b->index;
}

/* The root's key has grown, or another place was put there. */
static void sift_down(struct place *heap, uint32_t count, uint32_t at)
{
    const struct place moving = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &moving))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Keys are negative loads per replica, so the root is the expert that needs one more replica the most. */
static void replicate(struct rebalance *r, const double *loads)
{
    struct place *heap = r->experts_heap;
    for (uint32_t e = 0; e < r->experts; e++) {
        r->replicas[e] = 1;
        heap[e] = (struct place){.key = -loads[e], .index = e};
    }
    for (uint32_t e = r->experts / 2; e-- > 0;)
        sift_down(heap, r->experts, e);

    for (uint32_t left = r->slots - r->experts; left > 0; left--) {
        const uint32_t e = heap[0].index;
        heap[0].key = -loads[e] / ++r->replicas[e];
        sift_down(heap, r->experts, 0);
    }
}

static int by_place(const void *a, const void *b)
{
    return before(a, b) ? -1 : before(b, a);
}

static double pack(struct rebalance *r, const double *loads)
{
    for (uint32_t e = 0; e < r->experts; e++)
        r->order[e] = (struct place){.key = -loads[e] / r->replicas[e], .index = e};
    qsort(r->order, r->experts, sizeof(*r->order), by_place);

    struct place *heap = r->ranks_heap;
    uint32_t open = r->ranks;
    for (uint32_t rank = 0; rank < r->ranks; rank++) {
        r->free_slots[rank] = r->slots / r->ranks;
        heap[rank] = (struct place){.key = 0, .index = rank}; /* all alike and in order: a heap already */
    }

    double max = 0;
    for (uint32_t i = 0; i < r->experts; i++) {
        for (uint32_t replica = 0; replica < r->replicas[r->order[i].index]; replica++) {
            heap[0].key -= r->order[i].key;
            if (heap[0].key > max)
                max = heap[0].key;
            if (--r->free_slots[heap[0].index] == 0)
                heap[0] = heap[--open];
            sift_down(heap, open, 0);
        }
    }
    return max;
}

double rebalance_max(struct rebalance *r, const double *loads)
{
    replicate(r, loads);
    return pack(r, loads);
}

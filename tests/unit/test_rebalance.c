/* The heaps against the method written down plainly, and against every arrangement there is where those are few. */
#include "rebalance.h"
#include "suite.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MOST_EXPERTS 64
#define MOST_SLOTS   96
#define MOST_RANKS   96

/* The method as it is published: each maximum and minimum searched for, the first of equals taken. */
static double plainly(const double *loads, uint32_t experts, uint32_t slots, uint32_t ranks)
{
    uint32_t replicas[MOST_EXPERTS];
    for (uint32_t e = 0; e < experts; e++)
        replicas[e] = 1;
    for (uint32_t left = slots - experts; left > 0; left--) {
        uint32_t most = 0;
        for (uint32_t e = 1; e < experts; e++)
            if (loads[e] / replicas[e] > loads[most] / replicas[most])
                most = e;
        replicas[most]++;
    }

    double weights[MOST_SLOTS], rank_load[MOST_RANKS] = {0};
    uint32_t weight_count = 0, held[MOST_RANKS] = {0};
    for (uint32_t e = 0; e < experts; e++)
        for (uint32_t i = 0; i < replicas[e]; i++)
            weights[weight_count++] = loads[e] / replicas[e];
    for (uint32_t placed = 0; placed < slots; placed++) {
        uint32_t heaviest = placed;
        for (uint32_t i = placed + 1; i < slots; i++)
            if (weights[i] > weights[heaviest])
                heaviest = i;
        const double weight = weights[heaviest];
        weights[heaviest] = weights[placed];

        uint32_t to = UINT32_MAX;
        for (uint32_t rank = 0; rank < ranks; rank++)
            if (held[rank] < slots / ranks && (to == UINT32_MAX || rank_load[rank] < rank_load[to]))
                to = rank;
        rank_load[to] += weight;
        held[to]++;
    }

    double max = 0;
    for (uint32_t rank = 0; rank < ranks; rank++)
        max = fmax(max, rank_load[rank]);
    return max;
}

static double by_heaps(const double *loads, uint32_t experts, uint32_t slots, uint32_t ranks)
{
    struct rebalance *rebalance;
    ck_assert_int_eq(rebalance_new(&rebalance, experts, slots, ranks), 0);
    const double max = rebalance_max(rebalance, loads);
    /* Nothing is left over from one layer to the next. */
    ck_assert_double_eq(rebalance_max(rebalance, loads), max);
    rebalance_free(rebalance);
    return max;
}

/* The least maximum of all ways to place slots `at`… on ranks, each of which has `per_rank`. */
static double best_packing(const double *weights, uint32_t slots, uint32_t at, uint32_t ranks, uint32_t per_rank,
                           double *rank_load, uint32_t *held)
{
    if (at == slots) {
        double max = 0;
        for (uint32_t rank = 0; rank < ranks; rank++)
            max = fmax(max, rank_load[rank]);
        return max;
    }
    double best = INFINITY;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        if (held[rank] == per_rank)
            continue;
        rank_load[rank] += weights[at];
        held[rank]++;
        best = fmin(best, best_packing(weights, slots, at + 1, ranks, per_rank, rank_load, held));
        held[rank]--;
        rank_load[rank] -= weights[at];
        if (held[rank] == 0)
            break; /* ranks that hold nothing are alike */
    }
    return best;
}

/* The least maximum of all numbers of replicas and all packings. */
static double best_of_all(const double *loads, uint32_t experts, uint32_t slots, uint32_t ranks, uint32_t expert,
                          uint32_t left, double *weights, uint32_t used)
{
    if (expert == experts) {
        double rank_load[MOST_RANKS] = {0};
        uint32_t held[MOST_RANKS] = {0};
        return left > 0 ? (double)INFINITY : best_packing(weights, slots, 0, ranks, slots / ranks, rank_load, held);
    }
    double best = INFINITY;
    for (uint32_t more = 0; more <= left; more++) {
        for (uint32_t i = 0; i <= more; i++)
            weights[used + i] = loads[expert] / (more + 1);
        best = fmin(best, best_of_all(loads, experts, slots, ranks, expert + 1, left - more, weights, used + more + 1));
    }
    return best;
}

enum shape { EVEN, RANDOM, ZIPF, ONE_HOT, EQUALS, HALVES, SHAPES };

static void fill(double *loads, uint32_t experts, enum shape shape)
{
    for (uint32_t e = 0; e < experts; e++) {
        switch (shape) {
        case EVEN: loads[e] = 7; break;
        case RANDOM: loads[e] = (double)(random_word() % 100000); break;
        case ZIPF: loads[e] = 1e6 / (double)(1 + random_word() % experts); break;
        case ONE_HOT: loads[e] = e == 3 % experts ? 1e9 : 0; break;
        case EQUALS: /* where the order among equals decides */ loads[e] = (double)(random_word() % 3 * 12); break;
        case HALVES: /* heavy ones that fill whole ranks, and dust */ loads[e] = e % 2 ? 1000 : 1; break;
        case SHAPES: break;
        }
    }
}

START_TEST(heaps_do_what_is_published)
{
    static const uint32_t shapes[][3] = {{1, 1, 1},   {4, 4, 2},    {4, 8, 2},    {8, 8, 8},    {7, 12, 3},
                                         {16, 18, 6}, {64, 64, 16}, {64, 72, 24}, {64, 96, 96}, {33, 96, 8}};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
        for (int round = 0; round < 200; round++) {
            const uint32_t experts = shapes[i][0], slots = shapes[i][1], ranks = shapes[i][2];
            double loads[MOST_EXPERTS];
            fill(loads, experts, (enum shape)(round % SHAPES));
            const double expected = plainly(loads, experts, slots, ranks);
            const double found = by_heaps(loads, experts, slots, ranks);
            ck_assert_msg(fabs(found - expected) <= 1e-12 * expected,
                          "%u experts, %u slots, %u ranks, shape %d: %g, not %g", experts, slots, ranks, round % SHAPES,
                          found, expected);
        }
    }
}
END_TEST

START_TEST(no_better_than_the_best_and_not_far_from_it)
{
    static const uint32_t shapes[][3] = {{3, 4, 2}, {4, 6, 2}, {4, 6, 3}, {5, 6, 2}, {6, 6, 3}, {5, 8, 4}};
    double worst = 1;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
        for (int round = 0; round < 60; round++) {
            const uint32_t experts = shapes[i][0], slots = shapes[i][1], ranks = shapes[i][2];
            double loads[MOST_EXPERTS], weights[MOST_SLOTS];
            fill(loads, experts, (enum shape)(round % SHAPES));
            const double best = best_of_all(loads, experts, slots, ranks, 0, slots - experts, weights, 0);
            const double found = by_heaps(loads, experts, slots, ranks);
            ck_assert_double_ge(found, best * (1 - 1e-12));
            if (best > 0)
                worst = fmax(worst, found / best);
        }
    }
    /* No bound is published for replicating and packing together; for packing alone Graham's is 4/3. */
    ck_assert_double_le(worst, 1.5);
    ck_assert_double_gt(worst, 1);
}
END_TEST

/* Slots to spare take the load off the heaviest replica, so that the most loaded rank comes closer to the average. The
 * greedy method is not monotonic to the last digit (a further replica moves others), least of all where the packing is
 * nearly perfect already: the sum over many sets of loads may rise by a thousandth, a single maximum by a twentieth. */
START_TEST(more_redundant_experts_make_it_better)
{
    enum { EXPERTS = 64, RANKS = 8, ROUNDS = 300 };
    for (enum shape shape = RANDOM; shape <= ZIPF; shape++) {
        double loads[ROUNDS][EXPERTS], before = INFINITY, without = 0, single_before[ROUNDS];
        for (int round = 0; round < ROUNDS; round++) {
            fill(loads[round], EXPERTS, shape);
            single_before[round] = INFINITY;
        }
        for (uint32_t redundant = 0; redundant <= 32; redundant += RANKS) {
            double sum = 0;
            for (int round = 0; round < ROUNDS; round++) {
                const double max = by_heaps(loads[round], EXPERTS, EXPERTS + redundant, RANKS);
                ck_assert_double_le(max, single_before[round] * 1.05);
                single_before[round] = max;
                sum += max;
            }
            ck_assert_double_le(sum, before * 1.001);
            if (redundant == 0)
                without = sum;
            before = sum;
        }
        ck_assert_double_le(before, without * (shape == ZIPF ? 0.9 : 1.001));
    }
}
END_TEST

START_TEST(what_can_be_said_without_searching)
{
    const double hot[4] = {40, 0, 0, 0};
    ck_assert_double_eq(by_heaps(hot, 4, 4, 2), 40);
    ck_assert_double_eq(by_heaps(hot, 4, 8, 2), 20 + 4); /* five replicas on two ranks of four slots: three and two */
    ck_assert_double_eq(by_heaps(hot, 4, 8, 1), 40);

    const double none[4] = {0};
    ck_assert_double_eq(by_heaps(none, 4, 8, 2), 0);
}
END_TEST

START_TEST(impossible_shapes)
{
    struct rebalance *rebalance;
    ck_assert_int_eq(rebalance_new(&rebalance, 0, 4, 2), -EINVAL);
    ck_assert_int_eq(rebalance_new(&rebalance, 4, 4, 0), -EINVAL);
    ck_assert_int_eq(rebalance_new(&rebalance, 8, 4, 2), -EINVAL);
    ck_assert_int_eq(rebalance_new(&rebalance, 4, 5, 2), -EINVAL);
    rebalance_free(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rebalance");
    TCase *tcase = tcase_create("rebalance");
    tcase_add_test(tcase, heaps_do_what_is_published);
    tcase_add_test(tcase, no_better_than_the_best_and_not_far_from_it);
    tcase_add_test(tcase, more_redundant_experts_make_it_better);
    tcase_add_test(tcase, what_can_be_said_without_searching);
    tcase_add_test(tcase, impossible_shapes);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

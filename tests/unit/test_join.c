/* The join by pass, driven with records made up here: what is closed, with which figures, what is counted as
 * incomplete and why. Times are CLOCK_BOOTTIME nanoseconds of an invented machine. */
#include "join.h"
#include "suite.h"

#define LAYERS  2
#define MEMBERS 4
#define MS      UINT64_C(1000000)
#define START   (10 * MS)
#define PASSES  40

struct tally {
    unsigned complete, incomplete[JOIN_CAUSES];
    uint64_t passes[LAYERS], tokens[LAYERS], max[LAYERS], reduced[LAYERS];
    double reduced_avg[LAYERS], reduced_max[LAYERS];
    uint64_t time_ns; /* of the newest complete pass */
    bool disordered;
};

static struct join *join;
static struct join_member member[MEMBERS];
static struct join_member *members[MEMBERS];
static uint32_t member_count, size;
static struct tally tally;
static struct join_memory memory;

static void on_complete(void *context, uint64_t time_ns, const struct join_layer *layer)
{
    struct tally *to = context;
    to->complete++;
    to->disordered = to->disordered || time_ns < to->time_ns;
    to->time_ns = time_ns;
    for (unsigned l = 0; l < LAYERS; l++) {
        if (!layer[l].present)
            continue;
        to->passes[l]++;
        to->reduced[l] += layer[l].reduced;
        to->tokens[l] += layer[l].tokens;
        to->max[l] += layer[l].max;
        to->reduced_avg[l] += layer[l].reduced_avg;
        to->reduced_max[l] += layer[l].reduced_max;
    }
}

static void on_incomplete(void *context, enum join_cause cause, uint64_t passes)
{
    ((struct tally *)context)->incomplete[cause] += (unsigned)passes;
}

static const struct join_sink sink = {on_complete, on_incomplete, &tally};

static void fresh(uint32_t rank, uint64_t start_ns)
{
    member[rank] = (struct join_member){.ep_rank = rank, .live = true, .start_ns = start_ns, .first = UINT64_MAX};
    members[rank] = &member[rank];
}

static void begin(uint32_t count)
{
    join_free(join);
    join = NULL;
    size = member_count = count;
    memory = (struct join_memory){.limit = (size_t)1 << 30};
    ck_assert_int_eq(join_new(&join, LAYERS, size, &memory), 0);
    for (uint32_t i = 0; i < count; i++)
        fresh(i, START);
    memset(&tally, 0, sizeof tally);
}

static void finish(void)
{
    join_free(join);
    join = NULL;
    ck_assert_uint_eq(memory.used, 0);
}

static uint64_t time_of(uint64_t pass)
{
    return START + (pass + 1) * 10 * MS;
}

static void kill_member(uint32_t rank, uint64_t died_ns)
{
    member[rank].live = false;
    member[rank].died_ns = died_ns;
}

/* What a rank routes to another in a pass, when a test does not care for itself. */
static uint32_t load_of(uint32_t from, uint32_t to, uint32_t layer, uint64_t pass)
{
    return (uint32_t)((from * 7 + to * 13 + layer * 5 + pass * 3) % 29);
}

static bool supply_full(uint32_t rank, uint64_t pass, uint64_t time_ns, uint32_t step, bool after_loss,
                        const uint32_t *tokens)
{
    struct wideep_eplb_record record[LAYERS];
    memset(record, 0, sizeof record);
    for (uint32_t l = 0; l < LAYERS; l++) {
        record[l].pass = pass;
        record[l].layer = l;
        record[l].flags = WIDEEP_PARTIAL;
    }
    const struct ring_pass it = {.step = step,
                                 .pass = pass,
                                 .time_ns = time_ns,
                                 .records = LAYERS,
                                 .record = record,
                                 .rank_tokens = tokens,
                                 .after_loss = after_loss};
    return join_supply(join, members, member_count, &member[rank], &it);
}

static bool supply_at(uint32_t rank, uint64_t pass, uint64_t time_ns)
{
    uint32_t tokens[LAYERS * MEMBERS];
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t to = 0; to < size; to++)
            tokens[l * size + to] = load_of(rank, to, l, pass);
    return supply_full(rank, pass, time_ns, WIDEEP_STEP_UNKNOWN, false, tokens);
}

static bool supply_after_loss(uint32_t rank, uint64_t pass)
{
    uint32_t tokens[LAYERS * MEMBERS];
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t to = 0; to < size; to++)
            tokens[l * size + to] = load_of(rank, to, l, pass);
    return supply_full(rank, pass, time_of(pass), WIDEEP_STEP_UNKNOWN, true, tokens);
}

static bool supply(uint32_t rank, uint64_t pass)
{
    return supply_at(rank, pass, time_of(pass));
}

static bool supply_step(uint32_t rank, uint64_t pass, uint32_t step)
{
    const uint32_t tokens[LAYERS * MEMBERS] = {0};
    return supply_full(rank, pass, time_of(pass), step, false, tokens);
}

/* A pass with reduced figures for `count` layers from `layer` on. */
static bool supply_reduced(uint32_t rank, uint64_t pass, uint32_t layer, uint32_t count, double avg, double max)
{
    static const uint32_t none[LAYERS * MEMBERS];
    struct wideep_eplb_record record[LAYERS];
    memset(record, 0, sizeof record);
    for (uint32_t i = 0; i < count; i++) {
        record[i].pass = pass;
        record[i].layer = layer + i;
        record[i].flags = WIDEEP_REDUCED;
        record[i].avg_tokens_per_rank = avg;
        record[i].max_tokens_per_rank = max;
    }
    const struct ring_pass it = {.step = WIDEEP_STEP_UNKNOWN,
                                 .pass = pass,
                                 .time_ns = time_of(pass),
                                 .records = count,
                                 .record = record,
                                 .rank_tokens = none};
    return join_supply(join, members, member_count, &member[rank], &it);
}

static uint32_t emit(void)
{
    return join_emit(join, members, member_count, JOIN_EMIT, &sink);
}

static unsigned incomplete(void)
{
    unsigned sum = 0;
    for (unsigned cause = 0; cause < JOIN_CAUSES; cause++)
        sum += tally.incomplete[cause];
    return sum;
}

static void expect_loads(uint64_t first, uint64_t last, const uint64_t *but, unsigned but_count)
{
    uint64_t tokens[LAYERS] = {0}, max[LAYERS] = {0};
    for (uint64_t pass = first; pass <= last; pass++) {
        bool left_out = false;
        for (unsigned i = 0; i < but_count; i++)
            left_out = left_out || but[i] == pass;
        for (uint32_t l = 0; !left_out && l < LAYERS; l++) {
            uint64_t highest = 0;
            for (uint32_t to = 0; to < size; to++) {
                uint64_t sum = 0;
                for (uint32_t from = 0; from < size; from++)
                    sum += load_of(from, to, l, pass);
                tokens[l] += sum;
                highest = sum > highest ? sum : highest;
            }
            max[l] += highest;
        }
    }
    for (unsigned l = 0; l < LAYERS; l++) {
        ck_assert_uint_eq(tally.tokens[l], tokens[l]);
        ck_assert_uint_eq(tally.max[l], max[l]);
    }
}

/* ---- figures ------------------------------------------------------------------------------------------------- */

START_TEST(sums_over_ranks_before_max)
{
    /* Rank 0 sends 10 and 0, rank 1 sends 0 and 7: the most loaded has 10, not 17. In layer 1 both send to rank 1. */
    const uint32_t a[] = {10, 0, 1, 5}, b[] = {0, 7, 2, 6};
    begin(2);
    ck_assert(supply_full(0, 0, time_of(0), 3, false, a));
    ck_assert_uint_eq(emit(), 0);
    ck_assert(supply_full(1, 0, time_of(0) + MS, 3, false, b));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 1);
    ck_assert_uint_eq(tally.tokens[0], 17);
    ck_assert_uint_eq(tally.max[0], 10);
    ck_assert_uint_eq(tally.tokens[1], 14);
    ck_assert_uint_eq(tally.max[1], 11);
    ck_assert_uint_eq(tally.time_ns, time_of(0) + MS); /* the newest of its records */
    finish();
}
END_TEST

START_TEST(max_before_sum_over_passes)
{
    /* The slow rank alternates: each pass costs 10, although both ranks end up with 10 in all. */
    const uint32_t none[4] = {0}, left[] = {10, 0, 0, 0}, right[] = {0, 10, 0, 0};
    begin(2);
    ck_assert(supply_full(0, 0, time_of(0), 0, false, left));
    ck_assert(supply_full(0, 1, time_of(1), 0, false, right));
    ck_assert(supply_full(1, 0, time_of(0), 0, false, none));
    ck_assert(supply_full(1, 1, time_of(1), 0, false, none));
    ck_assert_uint_eq(emit(), 2);
    ck_assert_uint_eq(tally.max[0], 20);
    ck_assert_uint_eq(tally.tokens[0], 20);
    ck_assert_uint_eq(tally.passes[1], 2); /* present, though no token was routed */
    ck_assert_uint_eq(tally.max[1], 0);
    finish();
}
END_TEST

START_TEST(large_tokens_do_not_wrap)
{
    const uint32_t most[] = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX};
    begin(2);
    ck_assert(supply_full(0, 0, time_of(0), 0, false, most));
    ck_assert(supply_full(1, 0, time_of(0), 0, false, most));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.max[0], 2 * (uint64_t)UINT32_MAX);
    ck_assert_uint_eq(tally.tokens[1], 4 * (uint64_t)UINT32_MAX);
    finish();
}
END_TEST

/* Whatever of a pass is too large for small sums, the figures are of all of it, and nothing of it is left in the next.
 */
START_TEST(large_and_small_tokens_add_up)
{
    const uint32_t most[] = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX};
    const uint32_t few[] = {1, 2, 3, 4, 5, (1u << 20) - 1}, edge[] = {0, 0, 0, 0, 0, 1u << 20};
    begin(3);
    for (uint64_t pass = 0; pass < 3; pass++) {
        ck_assert(supply_full(0, pass, time_of(pass), 0, false, few));
        ck_assert(supply_full(1, pass, time_of(pass), 0, false, pass == 1 ? few : most));
        ck_assert(supply_full(2, pass, time_of(pass), 0, false, pass == 1 ? few : edge));
        memset(&tally, 0, sizeof tally);
        ck_assert_uint_eq(emit(), 1);
        if (pass == 1) {
            ck_assert_uint_eq(tally.max[0], 9);
            ck_assert_uint_eq(tally.max[1], 3 * (uint64_t)few[5]);
            ck_assert_uint_eq(tally.tokens[1], 3 * (uint64_t)(4 + 5 + few[5]));
        } else {
            ck_assert_uint_eq(tally.max[0], 3 + (uint64_t)UINT32_MAX);
            ck_assert_uint_eq(tally.max[1], few[5] + (uint64_t)UINT32_MAX + edge[5]);
            ck_assert_uint_eq(tally.tokens[1], 4 + 5 + few[5] + 3 * (uint64_t)UINT32_MAX + edge[5]);
        }
    }
    finish();
}
END_TEST

START_TEST(tokens_that_fit_each_but_not_together)
{
    const uint32_t half[] = {0, 0, 0, INT32_MAX, INT32_MAX, INT32_MAX};
    begin(3);
    for (uint32_t rank = 0; rank < 3; rank++)
        ck_assert(supply_full(rank, 0, time_of(0), 0, false, half));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.max[1], 3 * (uint64_t)INT32_MAX);
    finish();
}
END_TEST

/* More segments in a row with one EP rank than a group can have members: their sum is beyond 32 bits all the same. */
START_TEST(many_small_tokens_do_not_wrap)
{
    const uint32_t few[] = {1, (1u << 20) - 1};
    const unsigned times = 5000;
    begin(1);
    for (unsigned i = 0; i < times; i++) {
        fresh(0, START);
        ck_assert(supply_full(0, 0, time_of(0), 0, false, few));
    }
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.max[0], times);
    ck_assert_uint_eq(tally.max[1], times * (uint64_t)few[1]);
    finish();
}
END_TEST

START_TEST(buffers_are_used_again_clean)
{
    begin(3);
    for (uint64_t pass = 0; pass < 1000; pass++) {
        for (uint32_t rank = 0; rank < 3; rank++)
            ck_assert(supply(rank, pass));
        ck_assert_uint_eq(emit(), 1);
    }
    ck_assert_uint_eq(tally.complete, 1000);
    expect_loads(0, 999, NULL, 0);
    finish();
}
END_TEST

/* ---- who is waited for ---------------------------------------------------------------------------------------- */

START_TEST(late_rank)
{
    begin(3);
    ck_assert(supply_at(2, 0, START + MS));
    ck_assert(supply_at(0, 0, START + MS));
    ck_assert(supply_at(1, 0, START + MS));
    ck_assert_uint_eq(emit(), 1);
    ck_assert(supply_at(0, 1, START + 100 * MS));
    ck_assert(supply_at(1, 1, START + 101 * MS)); /* the pass's own time */
    ck_assert(supply_at(0, 2, START + 101 * MS + JOIN_LATE_NS - 1));
    ck_assert_uint_eq(emit(), 0);
    ck_assert_uint_eq(join_open(join, NULL), 2);
    ck_assert(supply_at(0, 3, START + 101 * MS + JOIN_LATE_NS));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.incomplete[JOIN_LATE], 1);
    ck_assert(!supply_at(2, 1, START + 100 * MS)); /* too late */
    ck_assert_uint_eq(incomplete(), 1);
    /* What comes in time after all completes. */
    ck_assert(supply_at(2, 2, START + 101 * MS));
    ck_assert(supply_at(1, 2, START + 101 * MS));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 2);
    ck_assert_uint_eq(incomplete(), 1);
    finish();
}
END_TEST

START_TEST(dies_in_mid_pass)
{
    const uint64_t but[] = {1};
    begin(3);
    for (uint32_t rank = 0; rank < 3; rank++)
        ck_assert(supply(rank, 0));
    ck_assert(supply(0, 1));
    ck_assert(supply(1, 1));
    ck_assert_uint_eq(emit(), 1);
    kill_member(2, time_of(1) + MS);
    ck_assert_uint_eq(emit(), 1); /* no wait for the dead */
    ck_assert_uint_eq(tally.incomplete[JOIN_DEAD], 1);
    expect_loads(0, 1, but, 1);
    for (uint64_t pass = 2; pass < 5; pass++) {
        ck_assert(supply(0, pass));
        ck_assert(supply(1, pass));
    }
    ck_assert_uint_eq(emit(), 3);
    ck_assert_uint_eq(tally.complete, 4);
    ck_assert_uint_eq(incomplete(), 1);
    finish();
}
END_TEST

START_TEST(died_but_had_supplied)
{
    begin(2);
    ck_assert(supply(1, 0));
    kill_member(1, time_of(0) + MS);
    ck_assert(supply(0, 0));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 1);
    ck_assert_uint_eq(incomplete(), 0);
    finish();
}
END_TEST

START_TEST(dead_before_this_run_owes_nothing)
{
    begin(2);
    kill_member(1, time_of(9)); /* found dead only later, never supplied anything */
    ck_assert(supply(0, 0));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 1);
    finish();
}
END_TEST

START_TEST(starts_later)
{
    begin(3);
    fresh(2, time_of(1) + MS);
    for (uint64_t pass = 0; pass < 2; pass++) {
        ck_assert(supply(0, pass));
        ck_assert(supply(1, pass));
    }
    ck_assert_uint_eq(emit(), 2); /* its segment is younger: not asked */
    ck_assert_uint_eq(tally.complete, 2);
    ck_assert(supply(0, 2));
    ck_assert(supply(1, 2));
    ck_assert_uint_eq(emit(), 0); /* now it is */
    ck_assert(supply(2, 2));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 3);
    ck_assert_uint_eq(incomplete(), 0);
    finish();
}
END_TEST

START_TEST(exporter_came_late)
{
    /* Rank 1's ring reaches back to pass 103 alone. */
    begin(2);
    for (uint64_t pass = 100; pass < 106; pass++)
        ck_assert(supply(0, pass));
    for (uint64_t pass = 103; pass < 106; pass++)
        ck_assert(supply(1, pass));
    ck_assert_uint_eq(emit(), 6);
    ck_assert_uint_eq(tally.complete, 3);
    ck_assert_uint_eq(incomplete(), 0);
    expect_loads(103, 105, NULL, 0);
    finish();
}
END_TEST

/* Nobody holds them any more: no open pass stands for them. */
START_TEST(lost_by_all_ranks)
{
    begin(2);
    for (uint32_t rank = 0; rank < 2; rank++) {
        ck_assert(supply(rank, 0));
        ck_assert(supply_after_loss(rank, rank == 0 ? 11 : 13)); /* 1 … 10 by both, 11 and 12 by one alone */
    }
    ck_assert(supply(0, 12));
    ck_assert(supply(0, 13));
    ck_assert_uint_eq(emit(), 4);
    ck_assert_uint_eq(tally.complete, 2);
    ck_assert_uint_eq(tally.incomplete[JOIN_LOST], 12);
    ck_assert_uint_eq(incomplete(), 12);
    finish();
}
END_TEST

/* Numbers that nobody supplied and not all lost were not recorded. */
START_TEST(unrecorded_is_not_lost)
{
    begin(2);
    for (uint32_t rank = 0; rank < 2; rank++) {
        ck_assert(supply(rank, 0));
        ck_assert(rank == 0 ? supply_after_loss(rank, 100) : supply(rank, 100));
    }
    ck_assert_uint_eq(emit(), 2);
    ck_assert_uint_eq(incomplete(), 0);
    finish();
}
END_TEST

START_TEST(stray_pass_number)
{
    begin(2);
    for (uint32_t rank = 0; rank < 2; rank++)
        ck_assert(supply(rank, 0));
    ck_assert(supply_at(1, 1000000, time_of(1)));
    (void)emit();
    uint64_t pass = 2;
    for (; time_of(pass) < time_of(1) + 5000 * MS; pass++) {
        for (uint32_t rank = 0; rank < 2; rank++)
            (void)supply(rank, pass);
        (void)emit();
    }
    unsigned before = tally.complete;
    for (uint64_t end = pass + 50; pass < end; pass++) {
        for (uint32_t rank = 0; rank < 2; rank++)
            ck_assert(supply(rank, pass));
        (void)emit();
    }
    ck_assert_uint_eq(tally.complete, before + 50);
    finish();
}
END_TEST

/* One who lags for a minute is late, and starts nothing over. */
START_TEST(straggler_does_not_start_over)
{
    begin(2);
    ck_assert(supply(0, 0));
    ck_assert(supply(1, 0));
    for (uint64_t pass = 1; pass < 200; pass++)
        ck_assert(supply(0, pass));
    (void)emit();
    unsigned late = tally.incomplete[JOIN_LATE];
    ck_assert_uint_gt(late, 50);
    for (uint64_t pass = 1; pass <= late; pass++)
        ck_assert(!supply_at(1, pass, time_of(pass) + 60000 * MS));
    for (uint64_t pass = late + 1; pass < 200; pass++)
        ck_assert(supply(1, pass));
    (void)emit();
    ck_assert_uint_eq(tally.complete, 200 - late);
    finish();
}
END_TEST

START_TEST(memory_bounds_open_passes)
{
    begin(2);
    memory.limit = (size_t)10 * 1024;
    uint64_t pass = 0;
    while (join_ready(join, pass))
        ck_assert(supply(0, pass++));
    ck_assert_uint_ge(pass, JOIN_OPEN_MIN);
    ck_assert_uint_lt(pass, JOIN_OPEN_MAX);
    ck_assert_uint_le(memory.used, memory.limit);
    ck_assert_uint_eq(join_emit(join, members, member_count, JOIN_EMIT_FORCED, &sink), 1);
    ck_assert(join_ready(join, pass));
    /* Another join of the process finds nothing left, but what it needs to go on. */
    struct join *other;
    memory.limit = memory.used;
    ck_assert_int_eq(join_new(&other, LAYERS, size, &memory), 0);
    ck_assert(join_ready(other, 0));
    join_free(other);
    finish();
}
END_TEST

START_TEST(skipped_or_lost)
{
    begin(2);
    for (uint64_t pass = 0; pass < 12; pass++)
        ck_assert(supply(0, pass));
    ck_assert(supply(1, 0));
    ck_assert(supply(1, 2));            /* left out pass 1: skipped */
    ck_assert(supply_after_loss(1, 6)); /* 3, 4, 5: lost */
    ck_assert(supply_after_loss(1, 7)); /* lost records, but of no pass that is missing */
    ck_assert(supply(1, 10));           /* 8, 9: skipped */
    ck_assert(supply(1, 11));
    ck_assert_uint_eq(emit(), 12);
    ck_assert_uint_eq(tally.complete, 6);
    ck_assert_uint_eq(tally.incomplete[JOIN_SKIPPED], 3);
    ck_assert_uint_eq(tally.incomplete[JOIN_LOST], 3);
    ck_assert_uint_eq(incomplete(), 6);
    finish();
}
END_TEST

START_TEST(lost_before_it_died)
{
    begin(2);
    for (uint64_t pass = 0; pass < 6; pass++)
        ck_assert(supply(0, pass));
    ck_assert(supply(1, 0));
    ck_assert(supply_after_loss(1, 2));
    ck_assert(supply(1, 4));
    kill_member(1, time_of(5));
    ck_assert_uint_eq(emit(), 6);
    ck_assert_uint_eq(tally.complete, 3);
    ck_assert_uint_eq(tally.incomplete[JOIN_LOST], 1);
    ck_assert_uint_eq(tally.incomplete[JOIN_SKIPPED], 1);
    ck_assert_uint_eq(tally.incomplete[JOIN_DEAD], 1);
    finish();
}
END_TEST

START_TEST(full_of_open_passes)
{
    uint64_t oldest_ns = 0;
    begin(2);
    ck_assert(supply_at(0, 0, START + MS));
    ck_assert(supply_at(1, 0, START + MS));
    ck_assert_uint_eq(emit(), 1);
    for (uint64_t pass = 1; pass <= JOIN_OPEN_MAX; pass++) {
        ck_assert(join_ready(join, pass));
        ck_assert(supply_at(0, pass, START + (1 + pass) * MS));
    }
    ck_assert_uint_eq(join_open(join, &oldest_ns), JOIN_OPEN_MAX);
    ck_assert_uint_eq(oldest_ns, START + 2 * MS);
    ck_assert(!join_ready(join, JOIN_OPEN_MAX + 1));
    ck_assert(join_ready(join, JOIN_OPEN_MAX)); /* open already */
    ck_assert(join_ready(join, 0));             /* closed: costs nothing */
    ck_assert_uint_eq(emit(), 0);               /* less than a second: waits if it may */
    ck_assert_uint_eq(join_emit(join, members, member_count, JOIN_EMIT_FORCED, &sink), 1);
    ck_assert_uint_eq(tally.incomplete[JOIN_LATE], 1);
    ck_assert(join_ready(join, JOIN_OPEN_MAX + 1));
    ck_assert(!supply(1, 1));
    ck_assert(supply_at(1, 2, START + 3 * MS));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 2);
    ck_assert_uint_eq(incomplete(), 1);
    finish();
}
END_TEST

/* Few passes are open at first. What one rank has not supplied yet is not emitted, whatever it may turn out to be. */
START_TEST(deeper_when_asked)
{
    uint64_t pass = 0;
    begin(2);
    join_begin(join);
    while (join_ready(join, pass))
        ck_assert(supply(0, pass++));
    ck_assert_uint_eq(pass, JOIN_DEPTH);
    ck_assert(supply(1, 0));
    ck_assert(supply(1, 2));
    ck_assert_uint_eq(join_emit(join, members, member_count, JOIN_EMIT_WHOLE, &sink), 1);
    ck_assert_uint_eq(join_emit(join, members, member_count, JOIN_EMIT_WHOLE, &sink), 0);
    ck_assert_uint_eq(join_open(join, NULL), JOIN_DEPTH - 1);
    ck_assert(join_ready(join, pass));
    ck_assert(supply(0, pass++));
    ck_assert(!join_ready(join, pass));
    ck_assert(join_deepen(join));
    ck_assert(join_ready(join, pass));
    while (join_deepen(join))
        ;
    for (; join_ready(join, pass); pass++)
        ck_assert(supply_at(0, pass, time_of(JOIN_DEPTH)));
    ck_assert_uint_eq(join_open(join, NULL), JOIN_OPEN_MAX);
    ck_assert_uint_eq(emit(), 2); /* 1 was skipped, 2 is whole */
    ck_assert_uint_eq(tally.incomplete[JOIN_SKIPPED], 1);
    ck_assert_uint_eq(tally.complete, 2);
    join_begin(join);
    ck_assert(!join_ready(join, pass));
    finish();
}
END_TEST

START_TEST(idle_emits_nothing)
{
    begin(2);
    ck_assert_uint_eq(emit(), 0);
    ck_assert_uint_eq(join_emit(join, members, member_count, JOIN_EMIT_FORCED, &sink), 0);
    ck_assert(supply(0, 0));
    ck_assert(supply(1, 0));
    ck_assert_uint_eq(emit(), 1);
    for (unsigned i = 0; i < 100; i++)
        ck_assert_uint_eq(emit(), 0);
    ck_assert(supply(0, 1)); /* one is a little ahead when all stops */
    for (unsigned i = 0; i < 100; i++)
        ck_assert_uint_eq(emit(), 0);
    ck_assert_uint_eq(tally.complete, 1);
    ck_assert_uint_eq(incomplete(), 0);
    finish();
}
END_TEST

START_TEST(unrecorded_alike_on_all)
{
    static const uint64_t recorded[] = {0, 1, 2, 500, 501, 10000, UINT64_C(1) << 40};
    begin(3);
    for (unsigned i = 0; i < sizeof recorded / sizeof *recorded; i++)
        for (uint32_t rank = 0; rank < 3; rank++)
            ck_assert(supply_at(rank, recorded[i], START + (i + 1) * MS));
    ck_assert_uint_eq(emit(), 7);
    ck_assert_uint_eq(tally.complete, 7);
    ck_assert_uint_eq(incomplete(), 0);
    finish();
}
END_TEST

START_TEST(backwards_is_too_late)
{
    begin(2);
    ck_assert(supply(0, 5));
    ck_assert(!supply(0, 5)); /* the same once more */
    ck_assert(!supply(0, 4));
    ck_assert(supply(1, 5));
    ck_assert_uint_eq(emit(), 1);
    expect_loads(5, 5, NULL, 0);
    finish();
}
END_TEST

/* ---- steps ---------------------------------------------------------------------------------------------------- */

START_TEST(steps)
{
    begin(3);
    /* alike; one does not know; none knows */
    for (uint32_t rank = 0; rank < 3; rank++) {
        ck_assert(supply_step(rank, 0, 7));
        ck_assert(supply_step(rank, 1, rank == 0 ? WIDEEP_STEP_UNKNOWN : 8));
        ck_assert(supply_step(rank, 2, WIDEEP_STEP_UNKNOWN));
    }
    ck_assert_uint_eq(emit(), 3);
    ck_assert_uint_eq(tally.complete, 3);
    /* one differs; two differ around one that does not know; agreement afterwards */
    for (uint32_t rank = 0; rank < 3; rank++) {
        ck_assert(supply_step(rank, 3, rank == 2 ? 1 : 2));
        ck_assert(supply_step(rank, 4, rank == 1 ? WIDEEP_STEP_UNKNOWN : rank));
        ck_assert(supply_step(rank, 5, 9));
    }
    ck_assert_uint_eq(emit(), 3);
    ck_assert_uint_eq(tally.complete, 4);
    ck_assert_uint_eq(tally.incomplete[JOIN_STEP_MISMATCH], 2);
    ck_assert_uint_eq(incomplete(), 2);
    finish();
}
END_TEST

/* ---- reduced records ------------------------------------------------------------------------------------------ */

START_TEST(reduced_lowest_rank_alone)
{
    for (unsigned order = 0; order < 2; order++) {
        begin(3);
        ck_assert(supply_reduced(order ? 2 : 1, 0, 0, 2, order ? 99 : 5, order ? 99 : 9));
        ck_assert(supply_reduced(order ? 1 : 2, 0, 0, 2, order ? 5 : 99, order ? 9 : 99));
        ck_assert_uint_eq(emit(), 1); /* rank 0 never recorded anything: not waited for */
        for (unsigned l = 0; l < LAYERS; l++) {
            ck_assert_uint_eq(tally.reduced[l], 1);
            ck_assert_double_eq(tally.reduced_avg[l], 5);
            ck_assert_double_eq(tally.reduced_max[l], 9);
        }
        finish();
    }
}
END_TEST

START_TEST(reduced_waits_for_who_records)
{
    begin(3);
    ck_assert(supply_reduced(1, 0, 0, 2, 5, 9));
    ck_assert(supply_reduced(0, 0, 0, 2, 4, 8));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_double_eq(tally.reduced_avg[0], 4);
    ck_assert(supply_reduced(1, 1, 0, 2, 5, 9));
    ck_assert_uint_eq(emit(), 0); /* rank 0 records, rank 2 does not */
    ck_assert(supply_reduced(0, 1, 0, 2, 4, 8));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_double_eq(tally.reduced_avg[0], 8);
    ck_assert_uint_eq(incomplete(), 0);
    finish();
}
END_TEST

/* A pass that was whole without a rank's figures has lost nothing when they come; one that was not, has. */
START_TEST(reduced_of_a_rank_that_was_not_waited_for)
{
    begin(3);
    for (uint64_t pass = 0; pass < 2; pass++)
        ck_assert(supply_reduced(0, pass, 0, 2, 4, 8));
    ck_assert_uint_eq(emit(), 2);
    for (uint64_t pass = 0; pass < 2; pass++)
        ck_assert(supply_reduced(1, pass, 0, 2, 5, 9));
    ck_assert(supply_reduced(0, 2, 0, 2, 4, 8));
    ck_assert(supply_reduced(0, 102, 0, 2, 4, 8));
    ck_assert_uint_eq(emit(), 1); /* pass 2, one second older, and rank 1 is waited for by now */
    ck_assert_uint_eq(incomplete(), 1);
    ck_assert(!supply_reduced(1, 2, 0, 2, 5, 9));
    ck_assert(!supply_reduced(2, 2, 0, 2, 5, 9)); /* not waited for, but the pass is not whole */
    finish();
}
END_TEST

START_TEST(reduced_and_partial)
{
    begin(2);
    /* Layer 0 is reduced by rank 1, layer 1 is left to the partial sums; those of layer 0 do not count. */
    ck_assert(supply(0, 0));
    ck_assert(supply_reduced(1, 0, 0, 1, 3, 6));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 1);
    ck_assert_uint_eq(tally.reduced[0], 1);
    ck_assert_uint_eq(tally.tokens[0], 0);
    ck_assert_double_eq(tally.reduced_max[0], 6);
    ck_assert_uint_eq(tally.reduced[1], 0);
    ck_assert_uint_eq(tally.tokens[1], load_of(0, 0, 1, 0) + load_of(0, 1, 1, 0));
    /* One layer reduced and nobody with partial sums: the other layer is absent. */
    ck_assert(supply_reduced(0, 1, 1, 1, 2, 4));
    ck_assert(supply_reduced(1, 1, 1, 1, 7, 7));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.passes[0], 1);
    ck_assert_uint_eq(tally.passes[1], 2);
    ck_assert_double_eq(tally.reduced_avg[1], 2);
    finish();
}
END_TEST

START_TEST(one_layer_reduced_waits_for_all)
{
    begin(2);
    ck_assert(supply_reduced(0, 0, 0, 1, 3, 6));
    ck_assert_uint_eq(emit(), 0); /* rank 1 may have partial sums of the other layer */
    ck_assert(supply(1, 0));
    ck_assert_uint_eq(emit(), 1);
    ck_assert_uint_eq(tally.complete, 1);
    finish();
}
END_TEST

/* ---- new runs ------------------------------------------------------------------------------------------------- */

START_TEST(new_run)
{
    begin(2);
    for (uint64_t pass = 0; pass < 20; pass++)
        for (uint32_t rank = 0; rank < 2; rank++)
            ck_assert(supply(rank, pass));
    ck_assert_uint_eq(emit(), 20);
    /* Both restart: the old members are departed, the new ones number from 0. */
    struct join_member old[2];
    memcpy(old, member, sizeof old);
    for (uint32_t i = 0; i < 2; i++) {
        old[i].live = false;
        old[i].died_ns = time_of(20);
        fresh(i, time_of(21));
        members[2 + i] = &old[i];
    }
    member_count = 4;
    for (uint64_t pass = 0; pass < 5; pass++)
        for (uint32_t rank = 0; rank < 2; rank++)
            ck_assert(supply_at(rank, pass, time_of(30 + pass)));
    ck_assert_uint_eq(emit(), 5);
    ck_assert_uint_eq(tally.complete, 25);
    ck_assert_uint_eq(incomplete(), 0);
    finish();
}
END_TEST

START_TEST(one_fresh_member_is_no_new_run)
{
    begin(2);
    for (uint64_t pass = 0; pass < 20; pass++)
        for (uint32_t rank = 0; rank < 2; rank++)
            ck_assert(supply(rank, pass));
    ck_assert_uint_eq(emit(), 20);
    fresh(1, time_of(21)); /* rank 0 lives on in the old run */
    ck_assert(!supply_at(1, 0, time_of(22)));
    ck_assert_uint_eq(emit(), 0);
    ck_assert_uint_eq(tally.complete, 20);
    finish();
}
END_TEST

/* ---- order ---------------------------------------------------------------------------------------------------- */

static uint64_t random_state;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % limit;
}

/* Each rank's own list: rank 1 leaves out 7, rank 2 lost 11 to 13, rank 3 can be read from 3 on and died after 35;
 * passes that are multiples of 5 are reduced by ranks 1 and 2. */
static bool has_pass(uint32_t rank, uint64_t pass)
{
    return !(rank == 1 && pass == 7) && !(rank == 2 && pass >= 11 && pass <= 13) &&
           !(rank == 3 && (pass < 3 || pass > 35));
}

static void supply_listed(uint32_t rank, uint64_t pass)
{
    if (pass % 5 == 0 && (rank == 1 || rank == 2))
        ck_assert(supply_reduced(rank, pass, 0, LAYERS, 10 * rank, 20 * rank));
    else if (rank == 2 && pass == 14)
        ck_assert(supply_after_loss(rank, pass));
    else
        ck_assert(supply(rank, pass));
}

/* `early`: emits whole passes in between. */
static void drain_at_random(uint64_t seed, bool early)
{
    uint64_t next[MEMBERS] = {0};
    uint32_t left = MEMBERS, emitted = 0;

    random_state = seed;
    begin(MEMBERS);
    while (left > 0) {
        uint32_t rank = random_below(MEMBERS);
        if (next[rank] >= PASSES)
            continue;
        for (uint32_t burst = 1 + random_below(8); burst > 0 && next[rank] < PASSES; burst--) {
            if (has_pass(rank, next[rank]))
                supply_listed(rank, next[rank]);
            left -= ++next[rank] == PASSES;
        }
        /* What rank 3 came too late for is decided when all have supplied it, or have not. */
        if (early && next[0] > 3 && next[1] > 3 && next[2] > 3 && next[3] > 3)
            emitted += join_emit(join, members, member_count, emitted == 0 ? JOIN_EMIT : JOIN_EMIT_WHOLE, &sink);
    }
    kill_member(3, time_of(37));
    ck_assert(early == (emitted > 0));
    ck_assert_uint_eq(emitted + emit(), PASSES);
    ck_assert_uint_eq(join_open(join, NULL), 0);
    finish();
}

START_TEST(order_of_draining)
{
    drain_at_random(1, false);
    const struct tally first = tally;
    /* 0, 1, 2 discarded; 7 skipped; 11, 12, 13 lost; 36, 37 dead. */
    ck_assert_uint_eq(first.complete, PASSES - 9);
    ck_assert_uint_eq(first.incomplete[JOIN_SKIPPED], 1);
    ck_assert_uint_eq(first.incomplete[JOIN_LOST], 3);
    ck_assert_uint_eq(first.incomplete[JOIN_DEAD], 2);
    ck_assert_uint_eq(first.reduced[0], 7);
    ck_assert_double_eq(first.reduced_max[1], 7 * 20);
    ck_assert(!first.disordered);
    for (uint64_t seed = 2; seed <= 51; seed++) {
        drain_at_random(seed, seed % 2 == 0);
        ck_assert_uint_eq(tally.complete, first.complete);
        ck_assert_uint_eq(tally.time_ns, first.time_ns);
        ck_assert(!tally.disordered);
        for (unsigned cause = 0; cause < JOIN_CAUSES; cause++)
            ck_assert_uint_eq(tally.incomplete[cause], first.incomplete[cause]);
        for (unsigned l = 0; l < LAYERS; l++) {
            ck_assert_uint_eq(tally.passes[l], first.passes[l]);
            ck_assert_uint_eq(tally.tokens[l], first.tokens[l]);
            ck_assert_uint_eq(tally.max[l], first.max[l]);
            ck_assert_uint_eq(tally.reduced[l], first.reduced[l]);
            ck_assert_double_eq(tally.reduced_avg[l], first.reduced_avg[l]);
            ck_assert_double_eq(tally.reduced_max[l], first.reduced_max[l]);
        }
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {sums_over_ranks_before_max,
                                  max_before_sum_over_passes,
                                  large_tokens_do_not_wrap,
                                  large_and_small_tokens_add_up,
                                  tokens_that_fit_each_but_not_together,
                                  many_small_tokens_do_not_wrap,
                                  buffers_are_used_again_clean,
                                  late_rank,
                                  dies_in_mid_pass,
                                  died_but_had_supplied,
                                  dead_before_this_run_owes_nothing,
                                  starts_later,
                                  exporter_came_late,
                                  skipped_or_lost,
                                  lost_by_all_ranks,
                                  unrecorded_is_not_lost,
                                  stray_pass_number,
                                  straggler_does_not_start_over,
                                  memory_bounds_open_passes,
                                  lost_before_it_died,
                                  full_of_open_passes,
                                  deeper_when_asked,
                                  idle_emits_nothing,
                                  unrecorded_alike_on_all,
                                  backwards_is_too_late,
                                  steps,
                                  reduced_lowest_rank_alone,
                                  reduced_waits_for_who_records,
                                  reduced_of_a_rank_that_was_not_waited_for,
                                  reduced_and_partial,
                                  one_layer_reduced_waits_for_all,
                                  new_run,
                                  one_fresh_member_is_no_new_run,
                                  order_of_draining};
    Suite *suite = suite_create("join");
    TCase *tcase = tcase_create("join");
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        tcase_add_test(tcase, tests[i]);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

/* top_verdict: what is wrong, worst first, and what to do. */
#include "top.h"

#include <inttypes.h>
#include <math.h>

/* Share of the expert time that waiting for the slowest rank may take before it is worth a word. */
#define COST_WORTH 0.2
/* Share of that cost that a rearrangement must win back to be worth its own. */
#define GAIN_WORTH 0.25
/* A storm: DBO engages in less than this share of the eligible passes, of which there are enough to tell. */
#define SHARE_BAD      0.75
#define ELIGIBLE_LEAST 20

static const struct top_engine *find(const struct top_model *model, enum lb_state state)
{
    for (uint32_t i = 0; i < model->engine_count; i++)
        if (model->engines[i].state == state && !model->engines[i].closed)
            return &model->engines[i];
    return NULL;
}

static bool say_nobody(const struct top_model *model, char *ret)
{
    if (model->directory_error)
        (void)snprintf(ret, TOP_VERDICT_MAX, "Cannot read the segment directory: %s. Mount the engine's volume here.",
                       strerror(model->directory_error));
    else if (model->engine_count == 0 && model->ignored > 0)
        (void)snprintf(ret, TOP_VERDICT_MAX,
                       "No engine of this instance, but %" PRIu32 " segments of others. Give --shm.instance=NAME or *.",
                       model->ignored);
    else if (model->engine_count == 0)
        (void)snprintf(ret, TOP_VERDICT_MAX, "No engine: no segments. Is it started, and writing to this directory?");
    else
        return false;
    return true;
}

static bool say_state(const struct top_model *model, char *ret)
{
    const struct top_engine *dead = find(model, LB_DEAD), *blocked = find(model, LB_BLOCKED);

    if (dead && dead->first_dead != UINT32_MAX)
        (void)snprintf(ret, TOP_VERDICT_MAX,
                       "Engine %" PRIu32 ": rank %" PRIu32 " died, %" PRIu32 " of %" PRIu32
                       " ranks are up. Take it out of service and restart it.",
                       dead->number, dead->first_dead, dead->ranks_up, dead->ranks);
    else if (dead)
        (void)snprintf(ret, TOP_VERDICT_MAX, "Engine %" PRIu32 " is dead. Take it out of service and restart it.",
                       dead->number);
    else if (blocked)
        (void)snprintf(ret, TOP_VERDICT_MAX,
                       "Engine %" PRIu32 " is blocked by a synchronous rearrangement for %.0f s. It answers nothing: "
                       "send requests elsewhere and wait.",
                       blocked->number, blocked->since);
    else if (model->state == LB_DEAD)
        (void)snprintf(ret, TOP_VERDICT_MAX, "All engines have shut down in order: nothing serves. Start one.");
    else
        return false;
    return true;
}

static bool is_storm(const struct top_engine *engine, unsigned phase)
{
    uint64_t eligible = engine->recent[phase][WIDEEP_ENGAGED];

    for (unsigned o = WIDEEP_FIRST_FALLOUT; o < WIDEEP_OUTCOMES; o++)
        eligible += engine->recent[phase][o];
    return eligible >= ELIGIBLE_LEAST && top_dbo_share(engine, phase) < SHARE_BAD;
}

static const char *main_reason(const struct top_engine *engine, unsigned phase)
{
    unsigned most = WIDEEP_FIRST_FALLOUT;

    for (unsigned o = WIDEEP_FIRST_FALLOUT; o < WIDEEP_OUTCOMES; o++)
        if (engine->recent[phase][o] > engine->recent[phase][most])
            most = o;
    return top_outcome_name(most);
}

static bool say_fallouts(const struct top_model *model, char *ret)
{
    for (uint32_t i = 0; i < model->engine_count; i++)
        for (unsigned phase = 0; phase < WIDEEP_PHASES; phase++) {
            const struct top_engine *engine = &model->engines[i];
            if (!is_storm(engine, phase))
                continue;
            (void)snprintf(ret, TOP_VERDICT_MAX,
                           "Engine %" PRIu32 ": DBO falls out of %.0f%% of its %s passes, mostly %s. Look at the "
                           "engine's log and its DBO thresholds.",
                           engine->number, 100 * (1 - top_dbo_share(engine, phase)),
                           phase == WIDEEP_PREFILL ? "prefill" : "decode", main_reason(engine, phase));
            return true;
        }
    return false;
}

/* "; layer 3, rank 5 at 2.91 of the mean": where the group's balancedness is lowest. */
static void say_where(const struct top_group *group, char *ret, size_t size)
{
    uint32_t layer = UINT32_MAX, rank = 0;

    for (uint32_t l = 0; l < group->layers; l++)
        if (!isnan(group->ratio[l]) && (layer == UINT32_MAX || group->ratio[l] < group->ratio[layer]))
            layer = l;
    ret[0] = 0;
    if (layer == UINT32_MAX)
        return;
    for (uint32_t r = 1; r < group->ep_size; r++)
        if (top_rank_load(group, layer, r) > top_rank_load(group, layer, rank))
            rank = r;
    (void)snprintf(ret, size, " (worst: layer %" PRIu32 ", rank %" PRIu32 " at %.2f of the mean)", layer, rank,
                   top_rank_load(group, layer, rank));
}

static bool say_imbalance(const struct top_model *model, char *ret)
{
    const struct top_group *worst = NULL;
    char where[100], advice[100];

    for (uint32_t i = 0; i < model->group_count; i++)
        if (model->groups[i].cost >= COST_WORTH && (!worst || model->groups[i].cost > worst->cost))
            worst = &model->groups[i];
    if (!worst)
        return false;
    say_where(worst, where, sizeof where);
    if (isnan(worst->gain))
        (void)snprintf(advice, sizeof advice, "What a rearrangement would win is not known yet.");
    else if (worst->gain >= GAIN_WORTH)
        (void)snprintf(advice, sizeof advice, "A rearrangement would win back %.0f%% of it: start one.",
                       100 * worst->gain);
    else
        (void)snprintf(advice, sizeof advice, "A rearrangement would win back %.0f%%: add redundant experts.",
                       100 * worst->gain);
    (void)snprintf(ret, TOP_VERDICT_MAX, "Group %" PRIu32 ": imbalance costs %.0f%% of expert time%s. %s", worst->label,
                   100 * worst->cost, where, advice);
    return true;
}

static bool say_rearrangement(const struct top_model *model, char *ret)
{
    const struct top_engine *busy = find(model, LB_REBALANCING);

    if (busy) {
        (void)snprintf(ret, TOP_VERDICT_MAX,
                       "Engine %" PRIu32 " rearranges its experts asynchronously for %.0f s and serves. Nothing to do.",
                       busy->number, busy->since);
        return true;
    }
    for (uint32_t i = 0; i < model->engine_count; i++)
        if (model->engines[i].overdue > 0) {
            (void)snprintf(ret, TOP_VERDICT_MAX,
                           "Engine %" PRIu32 ": a rearrangement is overdue by %" PRIu64
                           " passes. If that grows, its EPLB hangs: look at the engine's log.",
                           model->engines[i].number, model->engines[i].overdue);
            return true;
        }
    return false;
}

static void say_well(const struct top_model *model, char *ret)
{
    double lowest = TOP_UNKNOWN;

    for (uint32_t i = 0; i < model->group_count; i++)
        lowest = fmin(lowest, model->groups[i].balancedness);
    if (isnan(lowest))
        (void)snprintf(ret, TOP_VERDICT_MAX, "All engines serve. No expert loads were recorded lately. Nothing to do.");
    else
        (void)snprintf(ret, TOP_VERDICT_MAX, "All engines serve, balancedness %.3f. Nothing to do.", lowest);
}

void top_verdict(const struct top_model *model, char ret[TOP_VERDICT_MAX])
{
    if (say_nobody(model, ret) || say_state(model, ret) || say_fallouts(model, ret) || say_imbalance(model, ret) ||
        say_rearrangement(model, ret))
        return;
    say_well(model, ret);
}

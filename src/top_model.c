/* top_model: copies of what a collection found, and what has happened since a while ago. */
#include "top.h"

#include <math.h>

/* "The last seconds" are between one and two of these. */
#define RECENT_SECONDS 5.0

struct reading {
    struct top_model model;
    uint32_t layer;
};

/* ---- engines ------------------------------------------------------------------------------------------------ */

static void copy_totals(struct top_engine *ret, const struct engine *engine)
{
    const struct wideep_totals *totals = engine->lead->view.totals;
    const struct wideep_live *live = engine->lead->view.live;
    const uint64_t interval = wideep_load(&live->rearrangement_interval);
    uint64_t ns = 0;

    ret->has_totals = true;
    for (unsigned p = 0; p < WIDEEP_PHASES; p++)
        for (unsigned o = 0; o < WIDEEP_OUTCOMES; o++)
            ret->dbo[p][o] = wideep_load(&totals->dbo_passes[p][o]);
    for (uint32_t m = 0; m < engine->model_count; m++) {
        const uint32_t index = engine->models[m].index;
        const struct wideep_totals_model *model = &totals->models[index];
        for (unsigned mode = 0; mode < WIDEEP_MODES; mode++)
            for (unsigned b = 0; b < WIDEEP_DURATION_BUCKETS; b++)
                ret->rearrangements[mode] += wideep_load(&model->rearrangement_bucket[mode][b]);
        ns += wideep_load(&model->rearrangement_sum_ns);
        uint64_t since = wideep_load(&live->models[index].since_rearrangement);
        if (engine_live(engine) && interval > 0 && since > interval && since - interval > ret->overdue)
            ret->overdue = since - interval;
    }
    ret->rearrangement_seconds = (double)ns / 1e9;
}

static void copy_row(struct top_engine *ret, const struct lb_view *view, double now)
{
    for (uint32_t i = 0; i < view->count; i++) {
        const struct lb_engine *row = &view->engines[i];
        if (row->number != ret->number || strcmp(row->instance, ret->instance) != 0)
            continue;
        double since = now - (double)row->since_unix_ms / 1000;
        ret->state = row->state;
        ret->closed = row->closed;
        ret->ranks = row->ranks;
        ret->ranks_up = row->ranks_up;
        ret->since = since > 0 ? since : 0;
    }
}

static void copy_engine(struct top_engine *ret, const struct engine *engine, const struct lb_view *view, double now)
{
    bool live = false;

    *ret = (struct top_engine){.number = engine->number, .since = TOP_UNKNOWN, .first_dead = UINT32_MAX};
    (void)snprintf(ret->instance, sizeof ret->instance, "%s", engine->instance);
    (void)snprintf(ret->model, sizeof ret->model, "%s", engine->model);
    copy_row(ret, view, now);
    for (uint32_t i = engine->rank_count; i-- > 0;)
        if (engine->ranks[i]->state == SEGMENT_DEAD)
            ret->first_dead = engine->ranks[i]->view.identity.rank;
    for (uint32_t i = 0; i < engine->source_count; i++)
        live = live || segment_serves_gauges(engine->sources[i].segment);
    ret->prompt_rate = live ? engine->prompt_rate : TOP_UNKNOWN;
    ret->generation_rate = live ? engine->generation_rate : TOP_UNKNOWN;
    if (engine->lead)
        copy_totals(ret, engine);
}

static int copy_engines(struct top_model *model, const struct aggregate *aggregate, const struct lb_view *view)
{
    uint32_t count = 0;

    for (const struct engine *engine = aggregate->engines; engine; engine = engine->next)
        count++;
    model->engines = calloc(count + 1, sizeof *model->engines);
    if (!model->engines)
        return -ENOMEM;
    for (const struct engine *engine = aggregate->engines; engine; engine = engine->next)
        copy_engine(&model->engines[model->engine_count++], engine, view, model->time);
    return 0;
}

/* ---- groups ------------------------------------------------------------------------------------------------- */

static void free_group(struct top_group *group)
{
    free(group->ratio);
    free(group->tokens);
    free(group->recent);
    free(group->expert);
}

/* Gauges of a group without a live rank are gone, as on the exporter's page. */
static void copy_window(struct top_group *ret, const struct group *group)
{
    double avg = 0, max = 0;

    for (uint32_t l = 0; l < group->layers; l++) {
        const struct group_slice_layer *window = &group->window[l];
        const bool known = group->seen > 0 && window->passes > 0;
        avg += window->avg;
        max += window->max;
        ret->ratio[l] = known && window->max > 0 ? window->avg / window->max : TOP_UNKNOWN;
        ret->avg[l] = known ? window->avg / window->passes : TOP_UNKNOWN;
        ret->max[l] = known ? window->max / window->passes : TOP_UNKNOWN;
        ret->achievable[l] = group->seen > 0 && group->advice ? group->advice->achievable[l] : TOP_UNKNOWN;
    }
    ret->balancedness = group->seen > 0 && max > 0 ? avg / max : TOP_UNKNOWN;
    ret->cost = 1 - ret->balancedness;
    ret->gain = group->seen > 0 && group->advice ? group->advice->gain : TOP_UNKNOWN;
    ret->drift = group->seen > 0 && group->advice ? group->advice->drift : TOP_UNKNOWN;
}

static int copy_experts(struct top_group *ret, const struct group *group, uint32_t layer)
{
    if (!group->expert_tokens || group->seen == 0 || group->experts == 0)
        return 0;
    ret->expert_layer = layer < group->layers ? layer : group->layers - 1;
    ret->expert = calloc(group->experts, sizeof *ret->expert);
    if (!ret->expert)
        return -ENOMEM;
    memcpy(ret->expert, group->expert_tokens + (size_t)ret->expert_layer * group->experts,
           group->experts * sizeof *ret->expert);
    return 0;
}

static int copy_group(struct top_group *ret, const struct group *group, uint32_t layer)
{
    const size_t layers = group->layers, cells = layers * group->ep_size;

    *ret = (struct top_group){.label = group->label,
                              .layers = group->layers,
                              .experts = group->experts,
                              .ep_size = group->ep_size,
                              .seen = group->seen};
    (void)snprintf(ret->instance, sizeof ret->instance, "%s", group->instance);
    (void)snprintf(ret->model, sizeof ret->model, "%s", group->model);
    ret->ratio = calloc(4 * layers + 1, sizeof *ret->ratio);
    ret->tokens = calloc(cells + 1, sizeof *ret->tokens);
    ret->recent = calloc(cells + 1, sizeof *ret->recent);
    if (!ret->ratio || !ret->tokens || !ret->recent)
        return -ENOMEM;
    ret->avg = ret->ratio + layers;
    ret->max = ret->avg + layers;
    ret->achievable = ret->max + layers;
    copy_window(ret, group);
    for (uint32_t l = 0; l < group->layers; l++)
        for (uint32_t r = 0; r < group->ep_size; r++)
            ret->tokens[(size_t)l * group->ep_size + r] = group_rank_tokens(group, l, r);
    return copy_experts(ret, group, layer);
}

static int copy_groups(struct top_model *model, const struct aggregate *aggregate, uint32_t layer)
{
    uint32_t count = 0;
    int error = 0;

    for (const struct group *group = aggregate->groups; group; group = group->next)
        count += !group->hidden;
    model->groups = calloc(count + 1, sizeof *model->groups);
    if (!model->groups)
        return -ENOMEM;
    for (const struct group *group = aggregate->groups; group && !error; group = group->next)
        if (!group->hidden)
            error = copy_group(&model->groups[model->group_count++], group, layer);
    return error;
}

/* ---- the last seconds --------------------------------------------------------------------------------------- */

static const struct top_engine *same_engine(const struct top_model *model, const struct top_engine *engine)
{
    for (uint32_t i = 0; i < model->engine_count; i++)
        if (model->engines[i].number == engine->number && strcmp(model->engines[i].instance, engine->instance) == 0)
            return &model->engines[i];
    return NULL;
}

static const struct top_group *same_group(const struct top_model *model, const struct top_group *group)
{
    for (uint32_t i = 0; i < model->group_count; i++) {
        const struct top_group *other = &model->groups[i];
        if (other->label == group->label && other->layers == group->layers && other->ep_size == group->ep_size &&
            strcmp(other->instance, group->instance) == 0 && strcmp(other->model, group->model) == 0)
            return other;
    }
    return NULL;
}

/* A total that went down was reset: all of it is new. */
static uint64_t grown(uint64_t now, uint64_t before)
{
    return now >= before ? now - before : now;
}

static void compare_engine(struct top_engine *engine, const struct top_engine *before)
{
    for (unsigned p = 0; before && p < WIDEEP_PHASES; p++)
        for (unsigned o = 0; o < WIDEEP_OUTCOMES; o++)
            engine->recent[p][o] = grown(engine->dbo[p][o], before->dbo[p][o]);
}

static void compare_group(struct top_group *group, const struct top_group *before)
{
    const size_t cells = (size_t)group->layers * group->ep_size;

    for (size_t i = 0; i < cells; i++) {
        group->recent[i] = before ? grown(group->tokens[i], before->tokens[i]) : 0;
        group->moving = group->moving || group->recent[i] > 0;
    }
    if (!group->moving)
        memcpy(group->recent, group->tokens, cells * sizeof *group->recent);
}

/* The parts that are compared later. */
static int remember(struct top_model *ret, const struct top_model *model)
{
    ret->engines = calloc(model->engine_count + 1u, sizeof *ret->engines);
    ret->groups = calloc(model->group_count + 1u, sizeof *ret->groups);
    if (!ret->engines || !ret->groups)
        return -ENOMEM;
    memcpy(ret->engines, model->engines, model->engine_count * sizeof *ret->engines);
    ret->engine_count = model->engine_count;
    for (; ret->group_count < model->group_count; ret->group_count++) {
        const struct top_group *group = &model->groups[ret->group_count];
        const size_t size = ((size_t)group->layers * group->ep_size + 1) * sizeof *group->tokens;
        struct top_group *copy = &ret->groups[ret->group_count];
        *copy = *group;
        copy->ratio = copy->expert = NULL;
        copy->recent = NULL;
        copy->tokens = malloc(size);
        if (!copy->tokens)
            return -ENOMEM;
        memcpy(copy->tokens, group->tokens, size);
    }
    return 0;
}

static int renew(struct top_history *history, const struct top_model *model)
{
    if (history->next.engines && model->time - history->next_time < RECENT_SECONDS)
        return 0;
    top_model_free(&history->base);
    history->base = history->next;
    history->base_time = history->next_time;
    history->next = (struct top_model){0};
    history->next_time = model->time;
    return remember(&history->next, model);
}

static int compare(struct top_model *model, struct top_history *history)
{
    const struct top_model *before = history->base.engines ? &history->base : &history->next;

    for (uint32_t i = 0; i < model->engine_count; i++)
        compare_engine(&model->engines[i], same_engine(before, &model->engines[i]));
    for (uint32_t i = 0; i < model->group_count; i++)
        compare_group(&model->groups[i], same_group(before, &model->groups[i]));
    return renew(history, model);
}

/* ---- the whole ---------------------------------------------------------------------------------------------- */

static int copy(void *context, const struct family_sources *sources, struct lb *lb)
{
    struct reading *reading = context;
    struct top_model *model = &reading->model;
    const struct segment_set *set = sources->aggregate->set;
    struct lb_view view = {0};

    model->time = (double)sources->self->snapshot_unix_ms / 1000;
    model->directory_error = set->directory_error;
    model->ignored = set->ignored;
    for (unsigned r = 0; r < SEGMENT_REASONS; r++)
        model->rejected += sources->self->segments[SEGMENT_REJECTED][r];
    int error = lb_copy(lb, NULL, wideep_i_clock_ns(CLOCK_BOOTTIME), &view);
    if (error)
        return error;
    model->state = view.state;
    error = copy_engines(model, sources->aggregate, &view);
    if (!error)
        error = copy_groups(model, sources->aggregate, reading->layer);
    free(view.engines);
    return error;
}

int top_model_read(struct top_model *ret, struct state_board *board, const struct segment_config *config,
                   uint32_t layer, struct top_history *history)
{
    struct reading reading = {.layer = layer};

    reading.model.directory = config->directory;
    reading.model.instance = config->instance;
    int error = state_visit(board, copy, &reading);
    if (!error)
        error = compare(&reading.model, history);
    if (error) {
        top_model_free(&reading.model);
        return error;
    }
    top_model_free(ret);
    *ret = reading.model;
    return 0;
}

void top_model_free(struct top_model *model)
{
    for (uint32_t i = 0; i < model->group_count; i++)
        free_group(&model->groups[i]);
    free(model->groups);
    free(model->engines);
    *model = (struct top_model){0};
}

void top_history_free(struct top_history *history)
{
    top_model_free(&history->base);
    top_model_free(&history->next);
}

double top_rank_load(const struct top_group *group, uint32_t layer, uint32_t ep_rank)
{
    const uint32_t first = layer == UINT32_MAX ? 0 : layer, end = layer == UINT32_MAX ? group->layers : layer + 1;
    double own = 0, all = 0;

    for (uint32_t l = first; l < end; l++)
        for (uint32_t r = 0; r < group->ep_size; r++) {
            double tokens = (double)group->recent[(size_t)l * group->ep_size + r];
            all += tokens;
            own += r == ep_rank ? tokens : 0;
        }
    return all > 0 ? own * group->ep_size / all : TOP_UNKNOWN;
}

double top_dbo_share(const struct top_engine *engine, unsigned phase)
{
    uint64_t engaged = engine->recent[phase][WIDEEP_ENGAGED], fallen = 0;

    for (unsigned o = WIDEEP_FIRST_FALLOUT; o < WIDEEP_OUTCOMES; o++)
        fallen += engine->recent[phase][o];
    return engaged + fallen > 0 ? (double)engaged / (double)(engaged + fallen) : TOP_UNKNOWN;
}

const char *top_outcome_name(unsigned outcome)
{
    static const char *const names[WIDEEP_OUTCOMES] = {
        "engaged", "below_threshold", "idle_rank", "empty_second_ubatch", "coordination_failure", "other"};

    return names[outcome];
}

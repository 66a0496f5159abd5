/* top_json: the model for scripts, under the names of /api/v1/state where that has the same figures. */
#include "top.h"

#include <jansson.h>
#include <math.h>

/* New references and NULL without memory, which jansson's setters refuse in their turn: the whole is checked once. */

static json_t *number(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

static json_t *numbers(const double *values, uint32_t count)
{
    json_t *array = json_array();

    for (uint32_t i = 0; i < count; i++)
        (void)json_array_append_new(array, number(values[i]));
    return array;
}

static json_t *outcomes(const uint64_t counts[WIDEEP_OUTCOMES])
{
    json_t *object = json_object();

    for (unsigned o = 0; o < WIDEEP_OUTCOMES; o++)
        (void)json_object_set_new(object, top_outcome_name(o), json_integer((json_int_t)counts[o]));
    return object;
}

static json_t *dbo_json(const struct top_engine *engine)
{
    return json_pack("{s:{s:o, s:o, s:o}, s:{s:o, s:o, s:o}}", "prefill", "passes", outcomes(engine->dbo[0]), "recent",
                     outcomes(engine->recent[0]), "engaged_share", number(top_dbo_share(engine, 0)), "decode", "passes",
                     outcomes(engine->dbo[1]), "recent", outcomes(engine->recent[1]), "engaged_share",
                     number(top_dbo_share(engine, 1)));
}

static json_t *engine_json(const struct top_engine *engine)
{
    json_t *object = json_pack("{s:s, s:i, s:s, s:s, s:o, s:i, s:i, s:o, s:o}", "instance", engine->instance, "engine",
                               (int)engine->number, "model_name", engine->model, "state", lb_state_name(engine->state),
                               "since_seconds", number(engine->since), "ranks", (int)engine->ranks, "ranks_up",
                               (int)engine->ranks_up, "prompt_tokens_per_second", number(engine->prompt_rate),
                               "generation_tokens_per_second", number(engine->generation_rate));

    if (!engine->has_totals)
        return object;
    (void)json_object_set_new(object, "dbo", dbo_json(engine));
    (void)json_object_set_new(object, "rearrangements",
                              json_pack("{s:I, s:I, s:f, s:I}", "sync", (json_int_t)engine->rearrangements[WIDEEP_SYNC],
                                        "async", (json_int_t)engine->rearrangements[WIDEEP_ASYNC], "seconds",
                                        engine->rearrangement_seconds, "passes_overdue", (json_int_t)engine->overdue));
    return object;
}

static json_t *ranks_json(const struct top_group *group)
{
    json_t *layers = json_array();

    for (uint32_t l = 0; l < group->layers; l++) {
        json_t *ranks = json_array();
        for (uint32_t r = 0; r < group->ep_size; r++)
            (void)json_array_append_new(ranks, json_integer((json_int_t)group->tokens[(size_t)l * group->ep_size + r]));
        (void)json_array_append_new(layers, ranks);
    }
    return layers;
}

static json_t *group_json(const struct top_group *group)
{
    json_t *loads = json_array();

    for (uint32_t r = 0; r < group->ep_size; r++)
        (void)json_array_append_new(loads, number(top_rank_load(group, UINT32_MAX, r)));
    json_t *object =
        json_pack("{s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:o}", "instance", group->instance, "group",
                  (int)group->label, "model_name", group->model, "layers", (int)group->layers, "experts",
                  (int)group->experts, "ep_size", (int)group->ep_size, "ranks_seen", (int)group->seen, "balancedness",
                  number(group->balancedness), "imbalance_cost", number(group->cost), "rearrangement_gain",
                  number(group->gain), "drift", number(group->drift));
    (void)json_object_set_new(object, "layer_balancedness", numbers(group->ratio, group->layers));
    (void)json_object_set_new(object, "layer_avg_tokens", numbers(group->avg, group->layers));
    (void)json_object_set_new(object, "layer_max_tokens", numbers(group->max, group->layers));
    (void)json_object_set_new(object, "layer_achievable", numbers(group->achievable, group->layers));
    (void)json_object_set_new(object, "rank_loads", loads);
    (void)json_object_set_new(object, "rank_tokens", ranks_json(group));
    if (group->expert) {
        (void)json_object_set_new(object, "expert_layer", json_integer(group->expert_layer));
        (void)json_object_set_new(object, "expert_tokens", numbers(group->expert, group->experts));
    }
    return object;
}

static json_t *document(const struct top_model *model)
{
    char verdict[TOP_VERDICT_MAX];
    json_t *engines = json_array(), *groups = json_array();

    top_verdict(model, verdict);
    for (uint32_t i = 0; i < model->engine_count; i++)
        (void)json_array_append_new(engines, engine_json(&model->engines[i]));
    for (uint32_t i = 0; i < model->group_count; i++)
        (void)json_array_append_new(groups, group_json(&model->groups[i]));
    return json_pack("{s:f, s:s, s:s, s:i, s:i, s:o, s:o}", "time", model->time, "state", lb_state_name(model->state),
                     "verdict", verdict, "segments_rejected", (int)model->rejected, "segments_ignored",
                     (int)model->ignored, "engines", engines, "groups", groups);
}

int top_json(const struct top_model *model, FILE *out)
{
    json_t *root = document(model);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;

    json_decref(root);
    if (!text)
        return -ENOMEM;
    bool written = fputs(text, out) >= 0 && fputc('\n', out) >= 0;
    free(text);
    return written ? 0 : -EIO;
}

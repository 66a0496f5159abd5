#include "state.h"

#include "reply.h"

#include <pthread.h>

/* A handler gives up on a collector that stands still. A collection takes milliseconds. */
#define WAIT_NS 250000000

struct state_board {
    bool stuck; /* atomic: somebody has waited in vain since the newest collection */

    pthread_mutex_t lock; /* guards what follows: what the sources point to is the collector's while it collects */
    struct family_sources sources; /* without an aggregate before the first collection */
    struct lb *lb;
    char *text; /* of the newest collection; NULL: nobody asked yet */
};

int state_new(struct state_board **ret)
{
    struct state_board *board = calloc(1, sizeof *board);

    if (!board)
        return -ENOMEM;
    (void)pthread_mutex_init(&board->lock, NULL);
    *ret = board;
    return 0;
}

void state_free(struct state_board *board)
{
    if (!board)
        return;
    free(board->text);
    (void)pthread_mutex_destroy(&board->lock);
    free(board);
}

void state_begin_collection(struct state_board *board)
{
    (void)pthread_mutex_lock(&board->lock);
}

void state_end_collection(struct state_board *board, const struct family_sources *sources, struct lb *lb)
{
    board->sources = *sources;
    board->lb = lb;
    free(board->text);
    board->text = NULL;
    __atomic_store_n(&board->stuck, false, __ATOMIC_RELAXED);
    (void)pthread_mutex_unlock(&board->lock);
}

/* ---- gauges ------------------------------------------------------------------------------------------------- */

/* The functions below return new references and NULL without memory, which jansson's setters refuse in their turn: a
 * value that is missing fails nothing but itself, and the whole is checked once, in document(). */

static json_t *value_json(struct value value)
{
    double number;

    switch (value.kind) {
    case VALUE_U64: return json_integer((json_int_t)value.bits);
    case VALUE_SECONDS: return json_real((double)value.bits / 1e9);
    case VALUE_F64: memcpy(&number, &value.bits, sizeof number); return json_real(number);
    default: return NULL;
    }
}

/* A family's gauges at one place: a number, or an object by the value of its label. Absent series are left out. */
static json_t *family_json(const struct family *family, const struct family_sources *sources, struct family_at *at)
{
    if (!family->labels[0].name)
        return value_json(family->get(sources, at));
    json_t *object = json_object();
    for (at->i = 0; at->i < family->labels[0].count; at->i++)
        (void)json_object_set_new(object, family->labels[0].values[at->i], value_json(family->get(sources, at)));
    at->i = 0;
    if (json_object_size(object) > 0)
        return object;
    json_decref(object);
    return NULL;
}

/* Adds the gauges of a scope under their names, as the page has them. */
static void put_gauges(json_t *object, enum family_scope scope, const struct family_sources *sources,
                       struct family_at at)
{
    for (size_t f = 0; f < family_count; f++)
        if (families[f].scope == scope && families[f].type == FAMILY_GAUGE && !families[f].labels[1].name)
            (void)json_object_set_new(object, families[f].name, family_json(&families[f], sources, &at));
}

/* ---- engines ------------------------------------------------------------------------------------------------ */

static json_t *rank_json(const struct family_sources *sources, const struct engine *engine,
                         const struct segment *segment)
{
    json_t *rank = json_pack("{s:i, s:s, s:s}", "rank", (int)segment->view.identity.rank, "state",
                             segment_state_name(segment->state), "file", segment->file);

    put_gauges(rank, SCOPE_RANK, sources, (struct family_at){.engine = engine, .segment = segment});
    return rank;
}

static json_t *model_json(const struct family_sources *sources, const struct engine *engine,
                          const struct engine_model *model)
{
    json_t *object = json_pack("{s:s, s:i}", "model_name", model->name, "group", (int)model->group->label);

    put_gauges(object, SCOPE_ENGINE_MODEL, sources, (struct family_at){.engine = engine, .model = model});
    return object;
}

static const struct lb_engine *row_of(const struct lb_view *view, const struct engine *engine)
{
    for (uint32_t i = 0; i < view->count; i++)
        if (view->engines[i].number == engine->number && strcmp(view->engines[i].instance, engine->instance) == 0)
            return &view->engines[i];
    return NULL;
}

static json_t *engine_json(const struct family_sources *sources, const struct engine *engine,
                           const struct lb_view *view)
{
    const struct lb_engine *row = row_of(view, engine);
    const struct family_at at = {.engine = engine};
    json_t *ranks = json_array(), *models = json_array();
    uint32_t up = 0;

    for (uint32_t i = 0; i < engine->rank_count; i++) {
        up += segment_serves_gauges(engine->ranks[i]);
        (void)json_array_append_new(ranks, rank_json(sources, engine, engine->ranks[i]));
    }
    for (uint32_t m = 0; m < engine->model_count; m++)
        (void)json_array_append_new(models, model_json(sources, engine, &engine->models[m]));
    json_t *object = json_pack("{s:s, s:i, s:s, s:s, s:i}", "instance", engine->instance, "engine", (int)engine->number,
                               "model_name", engine->model, "state", lb_state_name(row ? row->state : LB_UNKNOWN),
                               "ranks_up", (int)up);
    if (row)
        (void)json_object_set_new(object, "since", json_real((double)row->since_unix_ms / 1000));
    if (engine->lead)
        put_gauges(object, SCOPE_ENGINE, sources, at);
    put_gauges(object, SCOPE_ENGINE_RATE, sources, at);
    (void)json_object_set_new(object, "ranks", ranks);
    (void)json_object_set_new(object, "models", models);
    return object;
}

/* ---- groups ------------------------------------------------------------------------------------------------- */

/* Average over maximum in the window by layer, null without tokens; and the layer with the lowest. */
static json_t *balancedness_json(const struct group *group)
{
    json_t *layers = json_array(), *object = json_object();
    double worst = 0, avg = 0, max = 0;
    uint32_t worst_layer = UINT32_MAX;

    for (uint32_t l = 0; l < group->layers; l++) {
        const struct group_slice_layer *window = &group->window[l];
        double ratio = window->max > 0 ? window->avg / window->max : 0;
        (void)json_array_append_new(layers, window->max > 0 ? json_real(ratio) : json_null());
        avg += window->avg;
        max += window->max;
        if (window->max > 0 && (worst_layer == UINT32_MAX || ratio < worst)) {
            worst = ratio;
            worst_layer = l;
        }
    }
    if (worst_layer != UINT32_MAX) {
        (void)json_object_set_new(object, "all_layers", json_real(avg / max));
        (void)json_object_set_new(object, "worst", json_real(worst));
        (void)json_object_set_new(object, "worst_layer", json_integer(worst_layer));
    }
    (void)json_object_set_new(object, "by_layer", layers);
    return object;
}

static json_t *incomplete_json(const struct group *group)
{
    uint64_t sum = 0;

    for (unsigned cause = 0; cause < JOIN_CAUSES; cause++)
        sum += group->incomplete[cause];
    return json_integer((json_int_t)sum);
}

static json_t *group_json(const struct group *group)
{
    uint64_t passes = 0;

    for (uint32_t l = 0; l < group->layers; l++)
        passes = group->layer[l].passes > passes ? group->layer[l].passes : passes;
    return json_pack("{s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:I, s:o, s:o}", "instance", group->instance, "group",
                     (int)group->label, "model_name", group->model, "layers", (int)group->layers, "experts",
                     (int)group->experts, "ep_size", (int)group->ep_size, "ranks_seen", (int)group->seen,
                     "passes_joined", (json_int_t)passes, "passes_incomplete", incomplete_json(group), "balancedness",
                     balancedness_json(group));
}

/* ---- the document ------------------------------------------------------------------------------------------- */

static json_t *segments_json(const struct segment_set *set)
{
    uint32_t counts[SEGMENT_STATES][SEGMENT_REASONS];
    json_t *segments = json_array();

    segment_set_count(set, counts);
    for (unsigned state = 0; state < SEGMENT_STATES; state++)
        for (unsigned reason = 0; reason < SEGMENT_REASONS; reason++)
            if (counts[state][reason] > 0)
                (void)json_array_append_new(
                    segments, json_pack("{s:s, s:s, s:i}", "state", segment_state_name((enum segment_state)state),
                                        "reason", segment_reason_name(reason), "files", (int)counts[state][reason]));
    return segments;
}

static json_t *document(const struct family_sources *sources, const struct lb_view *view)
{
    const struct aggregate *aggregate = sources->aggregate;
    json_t *engines = json_array(), *groups = json_array();

    for (const struct engine *engine = aggregate->engines; engine; engine = engine->next)
        (void)json_array_append_new(engines, engine_json(sources, engine, view));
    for (const struct group *group = aggregate->groups; group; group = group->next)
        if (!group->hidden)
            (void)json_array_append_new(groups, group_json(group));
    return json_pack("{s:s, s:s, s:f, s:s, s:o, s:o, s:o}", "version", sources->self->version, "commit",
                     sources->self->commit, "time", (double)sources->self->snapshot_unix_ms / 1000, "state",
                     lb_state_name(view->state), "engines", engines, "groups", groups, "segments",
                     segments_json(aggregate->set));
}

/* With the lock held. NULL without memory. */
static char *draw(const struct state_board *board)
{
    struct lb_view view = {0};

    if (board->lb && lb_copy(board->lb, NULL, wideep_i_clock_ns(CLOCK_BOOTTIME), &view) != 0)
        return NULL;
    json_t *root = document(&board->sources, &view);
    char *text = reply_text_of(root);
    json_decref(root);
    free(view.engines);
    return text;
}

/* Waits for a collection; for one that stands still only until somebody has done so in vain. */
static bool lock_in_time(struct state_board *board)
{
    uint64_t until_ns = wideep_i_clock_ns(CLOCK_REALTIME) + WAIT_NS;
    const struct timespec until = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};

    if (pthread_mutex_trylock(&board->lock) == 0)
        return true;
    if (__atomic_load_n(&board->stuck, __ATOMIC_RELAXED))
        return false;
    bool locked = pthread_mutex_timedlock(&board->lock, &until) == 0;
    if (!locked)
        __atomic_store_n(&board->stuck, true, __ATOMIC_RELAXED);
    return locked;
}

void state_handle(void *context, const struct http_request *request, struct http_reply *reply)
{
    struct state_board *board = context;
    char *text = NULL;

    (void)request;
    if (!lock_in_time(board)) {
        http_reply_text(reply, 503, "a collection is under way for too long\n");
        return;
    }
    bool collected = board->sources.aggregate != NULL;
    if (collected && !board->text)
        board->text = draw(board);
    if (board->text)
        text = strdup(board->text);
    (void)pthread_mutex_unlock(&board->lock);
    if (text)
        *reply =
            (struct http_reply){.code = 200, .content_type = "application/json", .body = text, .size = strlen(text)};
    else
        http_reply_text(reply, 503, collected ? "out of memory\n" : "no snapshot has been collected yet\n");
}

#include "state.h"

#include "advisor.h"
#include "reply.h"

#include <math.h>

#include <pthread.h>

#define NO_LAYER UINT32_MAX

/* What a request asks for on top: what is large, or large and many. */
struct view {
    bool loads;       /* tokens of each EP rank in each layer */
    uint32_t experts; /* tokens of each expert of this layer; NO_LAYER */
};

/* A handler gives up on a collector that stands still. A collection takes milliseconds. */
#define WAIT_NS 250000000

struct state_board {
    bool stuck; /* atomic: somebody has waited in vain since the newest collection */

    pthread_mutex_t lock; /* guards what follows: what the sources point to is the collector's while it collects */
    struct family_sources sources; /* without an aggregate before the first collection */
    struct lb *lb;
    char *text[2]; /* of the newest collection, without and with loads; NULL: nobody asked yet */
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

static void forget(struct state_board *board)
{
    for (size_t i = 0; i < sizeof board->text / sizeof *board->text; i++) {
        free(board->text[i]);
        board->text[i] = NULL;
    }
}

void state_free(struct state_board *board)
{
    if (!board)
        return;
    forget(board);
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
    forget(board);
    __atomic_store_n(&board->stuck, false, __ATOMIC_RELAXED);
    (void)pthread_mutex_unlock(&board->lock);
}

/* ---- families ----------------------------------------------------------------------------------------------- */

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

/* Of a histogram, what a mean is made of. */
static json_t *histogram_json(const struct family *family, const struct family_sources *sources,
                              const struct family_at *at)
{
    struct family_histogram histogram = {0};
    uint64_t observed = 0;

    if (!family->histogram(sources, at, &histogram))
        return NULL;
    for (unsigned b = 0; b <= family->bound_count; b++)
        observed += histogram.bucket[b];
    return json_pack("{s:I, s:o}", "count", (json_int_t)observed, "sum", value_json(histogram.sum));
}

static json_t *series_json(const struct family *family, const struct family_sources *sources,
                           const struct family_at *at)
{
    return family->type == FAMILY_HISTOGRAM ? histogram_json(family, sources, at)
                                            : value_json(family->get(sources, at));
}

/* What a family has at one place: a value, or an object by its labels from `depth` on. Absent series are left out. */
static json_t *family_json(const struct family *family, const struct family_sources *sources, struct family_at *at,
                           unsigned depth)
{
    uint32_t *index = depth == 0 ? &at->i : &at->j;

    if (depth == 2 || !family->labels[depth].name)
        return series_json(family, sources, at);
    json_t *object = json_object();
    for (*index = 0; *index < family->labels[depth].count; ++*index)
        (void)json_object_set_new(object, family->labels[depth].values[*index],
                                  family_json(family, sources, at, depth + 1));
    *index = 0;
    if (json_object_size(object) > 0)
        return object;
    json_decref(object);
    return NULL;
}

/* Adds the families of a scope under their names, as the page has them. */
static void put_families(json_t *object, enum family_scope scope, const struct family_sources *sources,
                         struct family_at at)
{
    for (size_t f = 0; f < family_count; f++)
        if (families[f].scope == scope && !families[f].facts[0].name)
            (void)json_object_set_new(object, families[f].name, family_json(&families[f], sources, &at, 0));
}

/* ---- engines ------------------------------------------------------------------------------------------------ */

static json_t *rank_json(const struct family_sources *sources, const struct engine *engine,
                         const struct segment *segment)
{
    json_t *rank = json_pack("{s:i, s:s, s:s}", "rank", (int)segment->view.identity.rank, "state",
                             segment_state_name(segment->state), "file", segment->file);

    put_families(rank, SCOPE_RANK, sources, (struct family_at){.engine = engine, .segment = segment});
    return rank;
}

static json_t *model_json(const struct family_sources *sources, const struct engine *engine,
                          const struct engine_model *model)
{
    json_t *object = json_pack("{s:s, s:i}", "model_name", model->name, "group", (int)model->group->label);

    put_families(object, SCOPE_ENGINE_MODEL, sources, (struct family_at){.engine = engine, .model = model});
    return object;
}

static json_t *source_json(const struct family_sources *sources, const struct engine *engine,
                           const struct engine_source *source)
{
    const struct wideep_identity *identity = &source->segment->view.identity;
    json_t *object =
        source->is_rank ? json_pack("{s:s}", "frontend", "rank") : json_pack("{s:i}", "frontend", (int)identity->rank);

    put_families(object, SCOPE_SOURCE, sources, (struct family_at){.engine = engine, .source = source});
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
    json_t *ranks = json_array(), *models = json_array(), *token_sources = json_array();
    uint32_t up = 0;

    for (uint32_t i = 0; i < engine->rank_count; i++) {
        up += segment_serves_gauges(engine->ranks[i]);
        (void)json_array_append_new(ranks, rank_json(sources, engine, engine->ranks[i]));
    }
    for (uint32_t m = 0; m < engine->model_count; m++)
        (void)json_array_append_new(models, model_json(sources, engine, &engine->models[m]));
    for (uint32_t i = 0; i < engine->source_count; i++)
        (void)json_array_append_new(token_sources, source_json(sources, engine, &engine->sources[i]));
    json_t *object = json_pack("{s:s, s:i, s:s, s:s, s:i}", "instance", engine->instance, "engine", (int)engine->number,
                               "model_name", engine->model, "state", lb_state_name(row ? row->state : LB_UNKNOWN),
                               "ranks_up", (int)up);
    if (row)
        (void)json_object_set_new(object, "since", json_real((double)row->since_unix_ms / 1000));
    if (engine->lead)
        put_families(object, SCOPE_ENGINE, sources, at);
    put_families(object, SCOPE_ENGINE_RATE, sources, at);
    (void)json_object_set_new(object, "ranks", ranks);
    (void)json_object_set_new(object, "models", models);
    (void)json_object_set_new(object, "sources", token_sources);
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

static json_t *known_json(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

/* The advisor's, by layer. */
static json_t *achievable_json(const struct group *group)
{
    json_t *layers = json_array();

    for (uint32_t l = 0; l < group->layers; l++)
        (void)json_array_append_new(layers, known_json(group->advice->achievable[l]));
    return layers;
}

/* Tokens per forward pass in the window by layer, of the mean rank and of the most loaded one. */
static json_t *tokens_json(const struct group *group)
{
    json_t *avg = json_array(), *max = json_array();

    for (uint32_t l = 0; l < group->layers; l++) {
        const struct group_slice_layer *window = &group->window[l];
        (void)json_array_append_new(avg, window->passes ? json_real(window->avg / window->passes) : json_null());
        (void)json_array_append_new(max, window->passes ? json_real(window->max / window->passes) : json_null());
    }
    return json_pack("{s:o, s:o}", "avg", avg, "max", max);
}

static json_t *rank_tokens_json(const struct group *group)
{
    json_t *layers = json_array();

    for (uint32_t l = 0; l < group->layers; l++) {
        json_t *ranks = json_array();
        for (uint32_t r = 0; r < group->ep_size; r++)
            (void)json_array_append_new(ranks, json_integer((json_int_t)group_rank_tokens(group, l, r)));
        (void)json_array_append_new(layers, ranks);
    }
    return layers;
}

static json_t *expert_loads_json(const struct group *group, uint32_t layer)
{
    json_t *tokens = json_array();

    for (uint32_t e = 0; e < group->experts; e++)
        (void)json_array_append_new(tokens, json_real(group->expert_tokens[(size_t)layer * group->experts + e]));
    return json_pack("{s:i, s:o}", "layer", (int)layer, "tokens", tokens);
}

static json_t *incomplete_json(const struct group *group)
{
    uint64_t sum = 0;

    for (unsigned cause = 0; cause < JOIN_CAUSES; cause++)
        sum += group->incomplete[cause];
    return json_integer((json_int_t)sum);
}

/* Per-expert loads are kept for all layers while they are wanted, and shown for those that were asked to be served. */
static bool shows_experts(const struct aggregate *aggregate, const struct group *group, uint32_t layer)
{
    return layer < group->layers && group->expert_tokens && group->seen > 0 &&
           layer_set_has(&aggregate->expert_layers, layer);
}

static json_t *group_json(const struct family_sources *sources, const struct group *group, const struct view *view)
{
    uint64_t passes = 0;

    for (uint32_t l = 0; l < group->layers; l++)
        passes = group->layer[l].passes > passes ? group->layer[l].passes : passes;
    json_t *object =
        json_pack("{s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:I, s:o, s:o, s:o}", "instance", group->instance, "group",
                  (int)group->label, "model_name", group->model, "layers", (int)group->layers, "experts",
                  (int)group->experts, "ep_size", (int)group->ep_size, "ranks_seen", (int)group->seen, "passes_joined",
                  (json_int_t)passes, "passes_incomplete", incomplete_json(group), "balancedness",
                  balancedness_json(group), "tokens_per_pass", tokens_json(group));
    put_families(object, SCOPE_GROUP, sources, (struct family_at){.group = group});
    if (group->advice && group->seen > 0)
        (void)json_object_set_new(object, "achievable", achievable_json(group));
    if (view->loads)
        (void)json_object_set_new(object, "rank_tokens", rank_tokens_json(group));
    if (shows_experts(sources->aggregate, group, view->experts))
        (void)json_object_set_new(object, "expert_loads", expert_loads_json(group, view->experts));
    return object;
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

static json_t *debug_json(const struct self_stats *self)
{
    json_t *debug = json_pack("{s:b, s:b}", "enabled", (int)self->admin, "on", (int)(self->debug_until_unix_ms != 0));

    if (self->debug_until_unix_ms != 0)
        (void)json_object_set_new(debug, "until", json_real((double)self->debug_until_unix_ms / 1000));
    return debug;
}

static json_t *document(const struct family_sources *sources, const struct lb_view *lb, const struct view *view)
{
    const struct aggregate *aggregate = sources->aggregate;
    const struct self_stats *self = sources->self;
    json_t *engines = json_array(), *groups = json_array(), *exporter = json_object();

    for (const struct engine *engine = aggregate->engines; engine; engine = engine->next)
        (void)json_array_append_new(engines, engine_json(sources, engine, lb));
    for (const struct group *group = aggregate->groups; group; group = group->next)
        if (!group->hidden)
            (void)json_array_append_new(groups, group_json(sources, group, view));
    put_families(exporter, SCOPE_EXPORTER, sources, (struct family_at){0});
    return json_pack("{s:s, s:s, s:f, s:f, s:s, s:o, s:o, s:o, s:o, s:o}", "version", self->version, "commit",
                     self->commit, "time", (double)self->snapshot_unix_ms / 1000, "collect_interval",
                     (double)self->interval_ns / 1e9, "state", lb_state_name(lb->state), "engines", engines, "groups",
                     groups, "segments", segments_json(aggregate->set), "debug", debug_json(self), "exporter",
                     exporter);
}

/* With the lock held. NULL without memory. */
static char *draw(const struct state_board *board, const struct view *view)
{
    struct lb_view lb = {0};

    if (board->lb && lb_copy(board->lb, NULL, wideep_i_clock_ns(CLOCK_BOOTTIME), &lb) != 0)
        return NULL;
    json_t *root = document(&board->sources, &lb, view);
    char *text = reply_text_of(root);
    json_decref(root);
    free(lb.engines);
    return text;
}

/* With the lock held: drawn once a collection for all, but for those who ask for a layer's experts. */
static char *text_of(struct state_board *board, const struct view *view)
{
    char **kept = &board->text[view->loads];

    if (view->experts != NO_LAYER)
        return draw(board, view);
    if (!*kept)
        *kept = draw(board, view);
    return *kept ? strdup(*kept) : NULL;
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

static bool parse_layer(const char *text, uint32_t *ret)
{
    uint32_t layer = 0;

    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9' || layer >= WIDEEP_MAX_LAYERS)
            return false;
        layer = layer * 10 + (uint32_t)(*c - '0');
    }
    *ret = layer;
    return *text != 0 && layer < WIDEEP_MAX_LAYERS;
}

/* Returns true, or false with the reply that says why not. */
static bool parse_view(const struct http_request *request, struct view *ret, struct http_reply *reply)
{
    static const char *const known[] = {"loads", "experts", NULL};
    const char *experts = http_argument(request, "experts");

    *ret = (struct view){.loads = http_argument(request, "loads") != NULL, .experts = NO_LAYER};
    if (http_unknown_argument(request, known)) {
        http_reply_text(reply, 400, "the arguments here are loads and experts=LAYER\n");
        return false;
    }
    if (experts && !parse_layer(experts, &ret->experts)) {
        http_reply_text(reply, 400, "experts must be the number of a layer\n");
        return false;
    }
    return true;
}

void state_handle(void *context, const struct http_request *request, struct http_reply *reply)
{
    struct state_board *board = context;
    struct view view;
    char *text = NULL;

    if (!parse_view(request, &view, reply))
        return;
    if (!lock_in_time(board)) {
        http_reply_text(reply, 503, "a collection is under way for too long\n");
        return;
    }
    bool collected = board->sources.aggregate != NULL;
    if (collected)
        text = text_of(board, &view);
    (void)pthread_mutex_unlock(&board->lock);
    if (text)
        *reply =
            (struct http_reply){.code = 200, .content_type = "application/json", .body = text, .size = strlen(text)};
    else
        http_reply_text(reply, 503, collected ? "out of memory\n" : "no snapshot has been collected yet\n");
}

int state_visit(struct state_board *board, state_visitor *visit, void *context)
{
    int error = -EAGAIN;

    if (!lock_in_time(board))
        return -EAGAIN;
    if (board->sources.aggregate)
        error = visit(context, &board->sources, board->lb);
    (void)pthread_mutex_unlock(&board->lock);
    return error;
}

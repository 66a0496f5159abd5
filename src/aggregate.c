#include "aggregate.h"

#include <assert.h>

/* 1300 open passes of 72 EP ranks and 58 layers. */
#define JOIN_MEMORY_MAX ((size_t)64 << 20)

/* Rings of our writers are drained in a quarter of these. What others hold beyond that is for the next time: each turn
 * asks all rings. */
#define TURNS_MAX 256

int aggregate_new(struct aggregate **ret, const struct aggregate_config *config, struct segment_set *set)
{
    struct aggregate *aggregate = calloc(1, sizeof *aggregate);

    if (!aggregate)
        return -ENOMEM;
    aggregate->config = *config;
    aggregate->set = set;
    aggregate->set_generation = UINT64_MAX;
    aggregate->join_memory.limit = JOIN_MEMORY_MAX;
    memset(&aggregate->expert_layers, 0xff, sizeof aggregate->expert_layers);
    if (ring_drain_new(&aggregate->drain) != 0) {
        free(aggregate);
        return -ENOMEM;
    }
    *ret = aggregate;
    return 0;
}

static void engine_free(struct engine *engine)
{
    free(engine->ranks);
    free(engine->sources);
    free(engine);
}

void aggregate_free(struct aggregate *aggregate)
{
    if (!aggregate)
        return;
    while (aggregate->groups) {
        struct group *group = aggregate->groups;
        aggregate->groups = group->next;
        group_free(group);
    }
    while (aggregate->engines) {
        struct engine *engine = aggregate->engines;
        aggregate->engines = engine->next;
        engine_free(engine);
    }
    ring_drain_free(aggregate->drain);
    free(aggregate);
}

/* ---- groups ------------------------------------------------------------------------------------------------- */

static bool has_group(const struct segment *segment, uint32_t model)
{
    return segment_is_rank(segment) && segment->model[model][0] != 0 && segment->view.identity.models[model].layers > 0;
}

static struct group *group_of(struct aggregate *aggregate, const struct segment *segment, uint32_t model)
{
    struct group *group = aggregate->groups;

    while (group && !group_matches(group, segment, model))
        group = group->next;
    if (!group && group_new(&group, segment, model, aggregate->config.window_ns, &aggregate->join_memory) == 0) {
        group->next = aggregate->groups;
        aggregate->groups = group;
    }
    return group;
}

static int attach_new(struct aggregate *aggregate)
{
    int error = 0;

    for (uint32_t i = 0; i < aggregate->set->count; i++) {
        struct segment *segment = aggregate->set->segments[i];
        for (uint32_t m = 0; m < segment->view.identity.model_count; m++) {
            if (segment->members[m] || !has_group(segment, m))
                continue;
            struct group *group = group_of(aggregate, segment, m);
            if (!group || group_join(group, segment, m) != 0)
                error = -ENOMEM; /* tried again at the next collection */
        }
    }
    return error;
}

/* ---- draining ----------------------------------------------------------------------------------------------- */

static bool sink_ready(void *context, struct segment *segment, uint32_t model, uint64_t pass)
{
    struct member *member = segment->members[model];

    (void)context;
    if (!member || join_ready(member->group->join, pass))
        return true;
    member->group->blocked = true;
    return false;
}

static void sink_pass(void *context, struct segment *segment, const struct ring_pass *pass)
{
    struct aggregate *aggregate = context;
    struct member *member = segment->members[pass->model];
    struct ring_pass sane = *pass;

    if (!member || !member->joins)
        return;
    /* A time from the future would make every other rank late for ever. */
    if (sane.time_ns > aggregate->now_ns)
        sane.time_ns = aggregate->now_ns;
    if (!group_supply(member, &sane)) {
        aggregate->counts.read[RING_EPLB] -= pass->records;
        aggregate->counts.lost[RING_EPLB][RING_LATE] += pass->records;
    }
}

/* Returns true when it is drained, or refused and so left alone. */
static bool drain_segment(struct aggregate *aggregate, struct segment *segment)
{
    const struct ring_sink sink = {sink_ready, sink_pass, aggregate};

    return segment->refused != 0 || ring_drain_eplb(aggregate->drain, segment, &sink, &aggregate->counts);
}

/* One turn: every ring as far as its joins are ready. Returns true when all are drained up to their marks. */
static bool drain_turn(struct aggregate *aggregate)
{
    bool drained = true;

    for (struct group *group = aggregate->groups; group; group = group->next)
        group->blocked = false;
    for (uint32_t i = 0; i < aggregate->set->retired_count; i++)
        drained = drain_segment(aggregate, aggregate->set->retired[i]) && drained;
    for (uint32_t i = 0; i < aggregate->set->count; i++)
        drained = drain_segment(aggregate, aggregate->set->segments[i]) && drained;
    return drained;
}

static uint32_t emit_all(struct aggregate *aggregate, enum join_emission emission)
{
    uint32_t closed = 0;

    for (struct group *group = aggregate->groups; group; group = group->next)
        if (emission != JOIN_EMIT_FORCED || group->blocked)
            closed += group_emit(group, emission);
    return closed;
}

static bool deepen_blocked(struct aggregate *aggregate)
{
    bool deeper = false;

    for (struct group *group = aggregate->groups; group; group = group->next)
        if (group->blocked)
            deeper = join_deepen(group->join) || deeper;
    return deeper;
}

/* Rings in turns, so that the ranks' records of one pass are added up soon after each other. While rings are not empty,
 * only what nothing in them can change is emitted. A join that is full lets its oldest pass go only when it can become
 * no deeper and a whole turn closed nothing. It is over after so many turns, and so is each ring after so many records,
 * so that nobody who writes nonsense holds up the others. */
static void drain_all(struct aggregate *aggregate)
{
    for (uint32_t i = 0; i < aggregate->set->count; i++)
        ring_mark(aggregate->set->segments[i]);
    for (uint32_t i = 0; i < aggregate->set->retired_count; i++)
        ring_mark(aggregate->set->retired[i]);
    for (struct group *group = aggregate->groups; group; group = group->next)
        join_begin(group->join);
    for (unsigned turn = 0; turn < TURNS_MAX && !drain_turn(aggregate); turn++)
        if (emit_all(aggregate, JOIN_EMIT_WHOLE) == 0 && !deepen_blocked(aggregate) &&
            emit_all(aggregate, JOIN_EMIT) == 0)
            (void)emit_all(aggregate, JOIN_EMIT_FORCED);
    (void)emit_all(aggregate, JOIN_EMIT);
    for (uint32_t i = 0; i < aggregate->set->retired_count; i++)
        if (aggregate->set->retired[i]->refused == 0)
            ring_drain_dbo(aggregate->set->retired[i], &aggregate->counts);
    for (uint32_t i = 0; i < aggregate->set->count; i++)
        if (aggregate->set->segments[i]->refused == 0)
            ring_drain_dbo(aggregate->set->segments[i], &aggregate->counts);
}

void aggregate_drain(struct aggregate *aggregate, uint64_t now_ns)
{
    aggregate->now_ns = now_ns;
    drain_all(aggregate);
}

uint64_t aggregate_left_ns(struct aggregate *aggregate, uint64_t now_ns)
{
    uint64_t least_ns = UINT64_MAX;

    for (uint32_t i = 0; i < aggregate->set->count; i++) {
        struct segment *segment = aggregate->set->segments[i];
        uint64_t left_ns = segment->refused == 0 ? ring_left_ns(segment, now_ns) : UINT64_MAX;
        least_ns = left_ns < least_ns ? left_ns : least_ns;
    }
    return least_ns;
}

static void retire(struct aggregate *aggregate, struct segment *segment)
{
    const struct segment *successor = segment->successor;

    for (uint32_t m = 0; m < WIDEEP_MAX_MODELS; m++) {
        struct member *member = segment->members[m];
        bool stays = false;
        if (!member)
            continue;
        for (uint32_t n = 0; successor && n < WIDEEP_MAX_MODELS; n++) {
            struct member *next = successor->members[n];
            if (!next || successor->view.identity.lineage != segment->view.identity.lineage)
                continue;
            /* Within the group the inherited totals go on; in another they are no increase. */
            stays = stays || next->group == member->group;
        }
        group_leave(member, aggregate->now_ns, stays);
    }
}

/* ---- who counts --------------------------------------------------------------------------------------------- */

static bool is_older(const struct segment *a, const struct segment *b)
{
    const struct wideep_identity *x = &a->view.identity, *y = &b->view.identity;

    return x->start_boottime_ns != y->start_boottime_ns ? x->start_boottime_ns < y->start_boottime_ns
                                                        : x->instance_id < y->instance_id;
}

/* Of two live segments with one EP rank in a group the newer is not served. */
static void refuse_duplicates(struct aggregate *aggregate)
{
    for (uint32_t i = 0; i < aggregate->set->count; i++) {
        struct segment *segment = aggregate->set->segments[i];
        unsigned reason = 0;
        for (uint32_t j = 0; segment->state == SEGMENT_LIVE && segment_is_rank(segment) && j < aggregate->set->count;
             j++) {
            const struct segment *other = aggregate->set->segments[j];
            const struct wideep_identity *x = &segment->view.identity, *y = &other->view.identity;
            if (other != segment && other->state == SEGMENT_LIVE && segment_is_rank(other) && x->rank == y->rank &&
                segment_same_group(x, y) && strcmp(segment->model[0], other->model[0]) == 0 && is_older(other, segment))
                reason = SEGMENT_DUPLICATE_EP_RANK;
        }
        segment_refuse(aggregate->set, segment, reason);
    }
}

/* A member that was refused at an earlier collection has counted before: that is no increase. One inherited from
 * another group neither. Asked of the member and not of its segment, which may be older: for want of memory one joins
 * later than it was found, with all that it has counted. */
static bool is_whole(const struct aggregate *aggregate, const struct member *member)
{
    const struct segment *segment = member->segment;

    if (member->judged)
        return false;
    for (uint32_t i = 0; i < aggregate->set->retired_count; i++) {
        const struct segment *old = aggregate->set->retired[i];
        if (old->successor != segment || old->view.identity.lineage != segment->view.identity.lineage)
            continue;
        for (uint32_t m = 0; m < WIDEEP_MAX_MODELS; m++) {
            const struct member *before = old->members[m];
            if (before && before->group == member->group)
                return true;
        }
        return false;
    }
    return true;
}

static void update_members(struct aggregate *aggregate)
{
    for (struct group *group = aggregate->groups; group; group = group->next) {
        group->seen = 0;
        for (uint32_t i = 0; i < group->member_count; i++) {
            struct member *member = group->members[i];
            if (!member->segment)
                continue;
            bool live = segment_serves_gauges(member->segment);
            if (member->join.live && !live)
                member->join.died_ns = aggregate->now_ns;
            member->join.live = live;
            group->seen += live;
            if (member->counts)
                group_count_member(member, member->segment->refused == 0, is_whole(aggregate, member));
            member->judged = true;
        }
    }
}

/* ---- engines ------------------------------------------------------------------------------------------------ */

static int compare_engine(const struct engine *engine, const char *instance, uint32_t number)
{
    int order = strcmp(engine->instance, instance);
    return order != 0 ? order : engine->number < number ? -1 : engine->number > number;
}

static struct engine *engine_of(struct aggregate *aggregate, const struct wideep_identity *id)
{
    struct engine **at = &aggregate->engines;

    while (*at && compare_engine(*at, id->instance, id->engine) < 0)
        at = &(*at)->next;
    if (*at && compare_engine(*at, id->instance, id->engine) == 0)
        return *at;
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return NULL;
    memcpy(engine->instance, id->instance, sizeof engine->instance);
    engine->number = id->engine;
    engine->next = *at;
    *at = engine;
    return engine;
}

static int by_rank(const void *a, const void *b)
{
    const struct segment *x = *(const struct segment *const *)a, *y = *(const struct segment *const *)b;
    uint32_t m = x->view.identity.rank, n = y->view.identity.rank;
    return m < n ? -1 : m > n;
}

static int by_source(const void *a, const void *b)
{
    const struct segment *x = ((const struct engine_source *)a)->segment;
    const struct segment *y = ((const struct engine_source *)b)->segment;
    return by_rank(&x, &y);
}

static bool leads(const struct segment *segment, const struct segment *lead)
{
    if (segment->view.identity.tp_rank != 0)
        return false;
    if (!lead || (segment->state == SEGMENT_LIVE) != (lead->state == SEGMENT_LIVE))
        return !lead || segment->state == SEGMENT_LIVE;
    return is_older(lead, segment);
}

static int engine_add(struct engine *engine, const struct segment *segment)
{
    if (segment_is_rank(segment)) {
        void *ranks = realloc(engine->ranks, (engine->rank_count + 1) * sizeof *engine->ranks);
        if (!ranks)
            return -ENOMEM;
        engine->ranks = ranks;
        engine->ranks[engine->rank_count++] = segment;
        if (leads(segment, engine->lead))
            engine->lead = segment;
        return 0;
    }
    void *sources = realloc(engine->sources, (engine->source_count + 1) * sizeof *engine->sources);
    if (!sources)
        return -ENOMEM;
    engine->sources = sources;
    engine->sources[engine->source_count++] = (struct engine_source){segment, false};
    return 0;
}

/* Returns 0 or -ENOMEM. */
static int engine_finish(struct engine *engine, enum aggregate_engine_label label)
{
    if (engine->rank_count > 0) /* else there is no array */
        qsort(engine->ranks, engine->rank_count, sizeof *engine->ranks, by_rank);
    if (engine->source_count > 0)
        qsort(engine->sources, engine->source_count, sizeof *engine->sources, by_source);
    engine->model = engine->lead           ? engine->lead->model[0]
                    : engine->source_count ? engine->sources[0].segment->model[0]
                                           : "";
    if (engine->source_count == 0 && engine->lead) {
        engine->sources = malloc(sizeof *engine->sources);
        if (!engine->sources)
            return -ENOMEM;
        engine->sources[engine->source_count++] = (struct engine_source){engine->lead, true};
    }
    for (uint32_t m = 0; engine->lead && m < engine->lead->view.identity.model_count; m++) {
        const struct member *member = engine->lead->members[m];
        if (!member)
            continue;
        engine->models[engine->model_count++] =
            (struct engine_model){engine->lead->model[m], m, member->group,
                                  label == AGGREGATE_EACH || member->group->label == engine->number};
    }
    return 0;
}

static int rebuild_engines(struct aggregate *aggregate)
{
    int error = 0;

    for (struct engine *engine = aggregate->engines; engine; engine = engine->next) {
        free(engine->ranks);
        free(engine->sources);
        engine->ranks = NULL;
        engine->sources = NULL;
        engine->lead = NULL;
        engine->rank_count = engine->source_count = engine->model_count = 0;
        engine->wanted = false;
    }
    for (uint32_t i = 0; i < aggregate->set->count; i++) {
        const struct segment *segment = aggregate->set->segments[i];
        if (segment->refused)
            continue;
        struct engine *engine = engine_of(aggregate, &segment->view.identity);
        if (!engine || engine_add(engine, segment) != 0)
            error = -ENOMEM;
        else
            engine->wanted = true;
    }
    for (struct engine **at = &aggregate->engines; *at;) {
        struct engine *engine = *at;
        if (engine->wanted) {
            if (engine_finish(engine, aggregate->config.engine_label) != 0)
                error = -ENOMEM;
            at = &engine->next;
        } else {
            *at = engine->next;
            engine_free(engine);
        }
    }
    return error;
}

static void label_groups(struct aggregate *aggregate)
{
    for (struct group **at = &aggregate->groups; *at;) {
        struct group *group = *at;
        uint32_t attached = 0;
        for (uint32_t i = 0; i < group->member_count; i++) {
            const struct segment *segment = group->members[i]->segment;
            if (!segment || segment->refused)
                continue;
            group->label = attached++ == 0 || segment->view.identity.engine < group->label
                               ? segment->view.identity.engine
                               : group->label;
        }
        group->hidden = attached == 0;
        if (group->member_count > 0) {
            at = &group->next;
            continue;
        }
        *at = group->next;
        group_free(group);
    }
    /* Two groups of one name, say the remains of a former initialisation: the one with more live ranks is shown. */
    for (struct group *a = aggregate->groups; a; a = a->next)
        for (struct group *b = a->next; b; b = b->next)
            if (a->label == b->label && strcmp(a->model, b->model) == 0 && strcmp(a->instance, b->instance) == 0 &&
                !a->hidden && !b->hidden)
                *(a->seen >= b->seen ? &b->hidden : &a->hidden) = true;
}

bool engine_live(const struct engine *engine)
{
    return engine->lead && segment_serves_gauges(engine->lead);
}

bool engine_rebalancing(const struct engine *engine, const char *model, bool *ret_blocked, uint64_t *ret_since_ns)
{
    bool blocked = false;
    uint64_t oldest_ns = 0;

    for (uint32_t i = 0; i < engine->rank_count; i++) {
        const struct segment *segment = engine->ranks[i];
        if (!segment_serves_gauges(segment))
            continue;
        for (uint32_t m = 0; m < segment->view.identity.model_count; m++) {
            const struct wideep_live_model *live = &segment->view.live->models[m];
            if (strcmp(segment->model[m], model) != 0)
                continue;
            /* Pairs with the release in wideep_rearrangement_begin(): its mode is then there. */
            uint64_t since_ns = wideep_load_acquire(&live->rebalancing_since_ns);
            if (since_ns == 0)
                continue;
            blocked = blocked || wideep_load(&live->rebalancing_mode) == WIDEEP_SYNC;
            oldest_ns = oldest_ns == 0 || since_ns < oldest_ns ? since_ns : oldest_ns;
        }
    }
    if (ret_blocked)
        *ret_blocked = blocked;
    if (ret_since_ns)
        *ret_since_ns = oldest_ns;
    return oldest_ns != 0;
}

static void update_rates(const struct aggregate *aggregate, struct engine *engine)
{
    uint64_t prompt = 0, generation = 0;

    for (uint32_t i = 0; i < engine->source_count; i++) {
        prompt += wideep_load(&engine->sources[i].segment->view.totals->prompt_tokens);
        generation += wideep_load(&engine->sources[i].segment->view.totals->generation_tokens);
    }
    uint64_t elapsed_ns = aggregate->now_ns - engine->rate_since_ns;
    /* A source that left takes its count along: the interval says nothing then. */
    bool shrank = prompt < engine->prompt_tokens || generation < engine->generation_tokens;
    if (engine->rates_known && !shrank && elapsed_ns < aggregate->config.throughput_ns)
        return;
    if (engine->rates_known && !shrank) {
        engine->prompt_rate = (double)(prompt - engine->prompt_tokens) * 1e9 / (double)elapsed_ns;
        engine->generation_rate = (double)(generation - engine->generation_tokens) * 1e9 / (double)elapsed_ns;
    }
    engine->rates_known = true;
    engine->rate_since_ns = aggregate->now_ns;
    engine->prompt_tokens = prompt;
    engine->generation_tokens = generation;
}

void aggregate_select_layers(struct aggregate *aggregate, const struct layer_set *layers)
{
    if (memcmp(&aggregate->expert_layers, layers, sizeof *layers) == 0)
        return;
    aggregate->expert_layers = *layers;
    aggregate->generation++;
}

/* ---- one collection ----------------------------------------------------------------------------------------- */

int aggregate_collect(struct aggregate *aggregate, bool experts_wanted, uint64_t now_ns)
{
    struct segment_set *set = aggregate->set;

    aggregate->now_ns = now_ns;
    int error = attach_new(aggregate);
    if (set->generation != aggregate->set_generation)
        refuse_duplicates(aggregate);
    update_members(aggregate);
    drain_all(aggregate);
    for (uint32_t i = 0; i < set->retired_count; i++)
        retire(aggregate, set->retired[i]);
    segment_set_reap(set);
    for (struct group *group = aggregate->groups; group; group = group->next) {
        group_settle(group);
        if (group_experts(group, experts_wanted, aggregate->config.window_ns) != 0)
            error = -ENOMEM;
    }
    if (set->generation != aggregate->set_generation || experts_wanted != aggregate->experts_wanted) {
        label_groups(aggregate);
        int failed = rebuild_engines(aggregate);
        error = failed ? failed : error;
        /* Without memory the picture is not whole: draw it again next time. */
        aggregate->set_generation = error ? UINT64_MAX : set->generation;
        aggregate->experts_wanted = experts_wanted;
        aggregate->generation++;
    }
    for (struct engine *engine = aggregate->engines; engine; engine = engine->next)
        update_rates(aggregate, engine);
    return error;
}

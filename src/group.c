#include "group.h"

#include "advisor.h"

#include <assert.h>

const double group_balancedness_bounds[GROUP_BALANCEDNESS_BUCKETS - 1] = {0.1, 0.2, 0.3, 0.4,  0.5, 0.6,
                                                                          0.7, 0.8, 0.9, 0.95, 1};

int group_new(struct group **ret, const struct segment *segment, uint32_t model, uint64_t window_ns,
              struct join_memory *memory)
{
    const struct wideep_identity *id = &segment->view.identity;
    struct group *group = calloc(1, sizeof *group);

    if (!group)
        return -ENOMEM;
    memcpy(group->instance, id->instance, sizeof group->instance);
    memcpy(group->model, segment->model[model], sizeof group->model);
    group->id = id->group;
    group->engine = id->engine;
    group->layers = id->models[model].layers;
    group->experts = id->models[model].logical_experts;
    group->ep_size = id->ep_size;
    group->label = id->engine;
    group->slice_ns = window_ns / GROUP_SLICES;
    group->layer = calloc(group->layers, sizeof *group->layer);
    group->slice = calloc((size_t)GROUP_SLICES * group->layers, sizeof *group->slice);
    group->window = calloc(group->layers, sizeof *group->window);
    group->rank_tokens = calloc((size_t)group->layers * group->ep_size, sizeof *group->rank_tokens);
    if (!group->layer || !group->slice || !group->window || !group->rank_tokens ||
        join_new(&group->join, group->layers, group->ep_size, memory) != 0) {
        group_free(group);
        return -ENOMEM;
    }
    *ret = group;
    return 0;
}

static void drop_checkpoints(struct member *member)
{
    for (uint32_t i = 0; i < member->checkpoints; i++)
        free(member->checkpoint[i].tokens);
    member->checkpoints = 0;
}

static void member_free(struct member *member)
{
    drop_checkpoints(member);
    free(member);
}

void group_free(struct group *group)
{
    if (!group)
        return;
    for (uint32_t i = 0; i < group->member_count; i++) {
        if (group->members[i]->segment)
            group->members[i]->segment->members[group->members[i]->model] = NULL;
        member_free(group->members[i]);
    }
    if (group->advice)
        group->advice->group = NULL;
    join_free(group->join);
    free(group->members);
    free(group->join_members);
    free(group->layer);
    free(group->slice);
    free(group->window);
    free(group->rank_tokens);
    free(group->base);
    free(group->expert_tokens);
    free(group->expert_spare);
    free(group->expert_copy);
    free(group);
}

bool group_matches(const struct group *group, const struct segment *segment, uint32_t model)
{
    const struct wideep_identity *id = &segment->view.identity;

    return group->id == id->group && (group->id != 0 || group->engine == id->engine) &&
           group->layers == id->models[model].layers && group->experts == id->models[model].logical_experts &&
           group->ep_size == id->ep_size && strcmp(group->instance, id->instance) == 0 &&
           strcmp(group->model, segment->model[model]) == 0;
}

/* The members whose passes are joined, as the join wants them. */
static void list_joining(struct group *group)
{
    group->joining = 0;
    for (uint32_t i = 0; i < group->member_count; i++)
        if (group->members[i]->joins)
            group->join_members[group->joining++] = &group->members[i]->join;
}

int group_join(struct group *group, struct segment *segment, uint32_t model)
{
    const struct wideep_identity *id = &segment->view.identity;

    if (group->member_count == group->member_capacity) {
        uint32_t capacity = group->member_capacity ? 2 * group->member_capacity : 8;
        void *members = realloc(group->members, capacity * sizeof *group->members);
        if (members)
            group->members = members;
        void *join_members = realloc(group->join_members, capacity * sizeof *group->join_members);
        if (join_members)
            group->join_members = join_members;
        if (!members || !join_members)
            return -ENOMEM;
        group->member_capacity = capacity;
    }
    struct member *member = calloc(1, sizeof *member);
    if (!member)
        return -ENOMEM;
    member->join.ep_rank = id->rank;
    member->join.start_ns = id->start_boottime_ns;
    member->join.first = UINT64_MAX;
    member->segment = segment;
    member->model = model;
    member->group = group;
    member->counts = !(id->flags & WIDEEP_LOADS_REPLICATED) || id->tp_rank == 0;
    member->joins = member->counts && !segment->other_boot;
    group->members[group->member_count++] = member;
    segment->members[model] = member;
    list_joining(group);
    return 0;
}

/* ---- sums over ranks ---------------------------------------------------------------------------------------- */

static const uint64_t *member_plane(const struct member *member, bool experts)
{
    const struct wideep_view *view = &member->segment->view;
    return (experts ? view->expert_tokens : view->rank_tokens) +
           wideep_plane_offset(&view->identity, member->model, experts);
}

static uint64_t plane_sum(const struct group *group, size_t at)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < group->member_count; i++)
        if (group->members[i]->counted)
            sum += wideep_load(member_plane(group->members[i], false) + at);
    return sum;
}

uint64_t group_rank_tokens(const struct group *group, uint32_t layer, uint32_t ep_rank)
{
    size_t at = (size_t)layer * group->ep_size + ep_rank;
    uint64_t sum = group->rank_tokens[at], base = group->base ? group->base[at] : 0;

    return sum > base ? sum - base : 0;
}

/* Plane by plane, as they lie in memory. */
static void sum_planes(struct group *group)
{
    const size_t words = (size_t)group->layers * group->ep_size;

    memset(group->rank_tokens, 0, words * sizeof *group->rank_tokens);
    for (uint32_t i = 0; i < group->member_count; i++) {
        const struct member *member = group->members[i];
        if (!member->segment || !member->counted)
            continue;
        const uint64_t *plane = member_plane(member, false);
        for (size_t w = 0; w < words; w++)
            group->rank_tokens[w] += wideep_load(plane + w);
    }
}

static bool reserve_base(struct group *group)
{
    if (!group->base)
        group->base = calloc((size_t)group->layers * group->ep_size, sizeof *group->base);
    return group->base != NULL;
}

void group_count_member(struct member *member, bool counted, bool whole)
{
    struct group *group = member->group;
    size_t words = (size_t)group->layers * group->ep_size;

    if (member->counted == counted)
        return;
    member->counted = counted;
    if (counted && !whole && reserve_base(group)) {
        for (size_t i = 0; i < words; i++)
            group->base[i] += wideep_load(member_plane(member, false) + i);
    } else if (!counted && reserve_base(group)) {
        for (size_t i = 0; i < words; i++)
            group->base[i] = plane_sum(group, i);
    }
}

void group_leave(struct member *member, uint64_t now_ns, bool stays)
{
    if (stays)
        member->counted = false; /* the successor's planes hold all that this one's did */
    else
        group_count_member(member, false, false);
    if (member->join.live) {
        member->join.live = false;
        member->join.died_ns = now_ns;
    }
    drop_checkpoints(member);
    member->segment->members[member->model] = NULL;
    member->segment = NULL;
}

/* ---- joined passes ------------------------------------------------------------------------------------------ */

bool group_supply(struct member *member, const struct ring_pass *pass)
{
    struct group *group = member->group;

    return join_supply(group->join, group->join_members, group->joining, &member->join, pass);
}

static struct group_slice_layer *slice_at(struct group *group, uint64_t time_ns)
{
    uint64_t index = time_ns / group->slice_ns + 1; /* 0 means empty */
    size_t at = index % GROUP_SLICES;

    if (index + GROUP_SLICES <= group->newest_slice)
        return NULL;
    if (group->slice_index[at] != index) {
        memset(group->slice + at * group->layers, 0, group->layers * sizeof *group->slice);
        group->slice_index[at] = index;
    }
    group->newest_slice = index > group->newest_slice ? index : group->newest_slice;
    return group->slice + at * group->layers;
}

static unsigned balancedness_bucket(double balancedness)
{
    unsigned i = 0;

    while (i < GROUP_BALANCEDNESS_BUCKETS - 1 && balancedness > group_balancedness_bounds[i])
        i++;
    return i;
}

/* Ranks elsewhere route as much as those here: a sample of the group's tokens, scaled up. */
static double sample_scale(const struct group *group)
{
    return group->seen > 0 && group->seen < group->ep_size ? (double)group->ep_size / group->seen : 1;
}

static void on_complete(void *context, uint64_t time_ns, const struct join_layer *figures)
{
    struct group *group = context;
    struct group_slice_layer *slice = slice_at(group, time_ns);
    double scale = sample_scale(group);

    for (uint32_t l = 0; l < group->layers; l++) {
        const struct join_layer *f = &figures[l];
        struct group_layer *total = &group->layer[l];
        double avg, max, balancedness;
        if (!f->present)
            continue;
        total->passes++;
        if (f->reduced) {
            avg = f->reduced_avg;
            max = f->reduced_max;
            balancedness = avg / max;
            total->reduced_avg += avg;
            total->reduced_max += max;
        } else {
            avg = (double)f->tokens / group->ep_size * scale;
            max = (double)f->max * scale;
            balancedness = (double)f->tokens / ((double)group->ep_size * (double)f->max);
            total->tokens += f->tokens;
            total->max += f->max;
        }
        if (max > 0) {
            group->balancedness_bucket[balancedness_bucket(balancedness)]++;
            group->balancedness_sum += balancedness;
        }
        if (slice) {
            slice[l].passes++;
            slice[l].avg += avg;
            slice[l].max += max;
        }
    }
}

static void on_incomplete(void *context, enum join_cause cause, uint64_t passes)
{
    struct group *group = context;
    group->incomplete[cause] += passes;
}

uint32_t group_emit(struct group *group, enum join_emission emission)
{
    const struct join_sink sink = {on_complete, on_incomplete, group};

    return join_emit(group->join, group->join_members, group->joining, emission, &sink);
}

void group_settle(struct group *group)
{
    uint64_t oldest_ns = UINT64_MAX;

    (void)join_open(group->join, &oldest_ns);
    for (uint32_t i = 0; i < group->member_count;) {
        struct member *member = group->members[i];
        if (member->segment || member->join.died_ns >= oldest_ns) {
            i++;
            continue;
        }
        member_free(member);
        group->members[i] = group->members[--group->member_count];
        list_joining(group);
    }
    sum_planes(group);
    memset(group->window, 0, group->layers * sizeof *group->window);
    for (size_t s = 0; s < GROUP_SLICES; s++) {
        if (group->slice_index[s] == 0 || group->slice_index[s] + GROUP_SLICES <= group->newest_slice)
            continue;
        for (uint32_t l = 0; l < group->layers; l++) {
            const struct group_slice_layer *from = &group->slice[s * group->layers + l];
            group->window[l].passes += from->passes;
            group->window[l].avg += from->avg;
            group->window[l].max += from->max;
        }
    }
}

/* ---- per-expert loads --------------------------------------------------------------------------------------- */

/* A plane belongs to one recorded pass when their count is the same before and after. */
uint64_t group_copy_experts(const struct member *member, uint64_t *ret)
{
    const size_t words = (size_t)member->group->layers * member->group->experts;
    const uint64_t *plane = member_plane(member, true);
    const uint64_t *recorded = &member->segment->view.totals->models[member->model].recorded_passes;
    uint64_t passes = 0;

    for (int attempt = 0; attempt < 4; attempt++) {
        passes = wideep_load_acquire(recorded);
        for (size_t i = 0; i < words; i++)
            ret[i] = __atomic_load_n(plane + i, WIDEEP_PAYLOAD_LOAD);
        WIDEEP_FENCE_ACQUIRE();
        if (wideep_load(recorded) == passes)
            break;
    }
    return passes;
}

/* Makes the copied plane a checkpoint when the newest is a quarter of the window old. The oldest of GROUP_CHECKPOINTS
 * gives its buffer for the next copy: by then it is older than the window. */
static int keep_checkpoint(struct member *member, uint64_t passes, uint64_t time_ns, uint64_t window_ns)
{
    struct group *group = member->group;
    uint64_t *spare;

    if (member->checkpoints > 0 &&
        time_ns - member->checkpoint[member->checkpoints - 1].time_ns < window_ns / (GROUP_CHECKPOINTS - 1))
        return 0;
    if (member->checkpoints == GROUP_CHECKPOINTS) {
        spare = member->checkpoint[0].tokens;
        memmove(member->checkpoint, member->checkpoint + 1, --member->checkpoints * sizeof *member->checkpoint);
    } else {
        spare = malloc((size_t)group->layers * group->experts * sizeof *spare);
        if (!spare)
            return -ENOMEM;
    }
    member->checkpoint[member->checkpoints].tokens = group->expert_copy;
    member->checkpoint[member->checkpoints].passes = passes;
    member->checkpoint[member->checkpoints++].time_ns = time_ns;
    group->expert_copy = spare;
    return 0;
}

static void forget_experts(struct group *group)
{
    for (uint32_t i = 0; i < group->member_count; i++)
        drop_checkpoints(group->members[i]);
    free(group->expert_tokens);
    free(group->expert_spare);
    free(group->expert_copy);
    group->expert_tokens = group->expert_spare = NULL;
    group->expert_copy = NULL;
}

static bool reserve_experts(struct group *group)
{
    size_t words = (size_t)group->layers * group->experts;

    if (!group->expert_spare)
        group->expert_spare = malloc(words * sizeof *group->expert_spare);
    if (!group->expert_copy)
        group->expert_copy = malloc(words * sizeof *group->expert_copy);
    return group->expert_spare && group->expert_copy;
}

int group_experts(struct group *group, bool wanted, uint64_t window_ns)
{
    size_t words = (size_t)group->layers * group->experts;
    bool moved = false;

    if (!wanted) {
        forget_experts(group);
        return 0;
    }
    int error = reserve_experts(group) ? 0 : -ENOMEM;
    double *loads = group->expert_spare;
    for (size_t w = 0; !error && w < words; w++)
        loads[w] = 0;
    for (uint32_t i = 0; !error && i < group->member_count; i++) {
        struct member *member = group->members[i];
        if (!member->segment || !member->counts || !member->join.live)
            continue;
        uint64_t time_ns = wideep_load(&member->segment->view.live->models[member->model].recorded_time_ns);
        if (time_ns == 0) /* nothing recorded yet: what is recorded next counts from the start */
            time_ns = member->join.start_ns;
        uint64_t passes = group_copy_experts(member, group->expert_copy);
        /* The oldest checkpoint within the window of the newest recorded pass, whenever that was. */
        uint32_t from = 0;
        while (from + 1 < member->checkpoints && time_ns - member->checkpoint[from].time_ns > window_ns)
            from++;
        if (member->checkpoints > 0 && passes > member->checkpoint[from].passes) {
            double per_pass = 1.0 / (double)(passes - member->checkpoint[from].passes);
            const uint64_t *tokens = group->expert_copy, *before = member->checkpoint[from].tokens;
            moved = true;
            for (size_t w = 0; w < words; w++)
                loads[w] += (double)(tokens[w] - before[w]) * per_pass;
        }
        error = keep_checkpoint(member, passes, time_ns, window_ns);
    }
    /* Where no pass was recorded in between, the last figures stand. */
    if (error || !moved)
        return error;
    double scale = sample_scale(group);
    for (size_t w = 0; w < words; w++)
        loads[w] *= scale;
    group->expert_spare = group->expert_tokens;
    group->expert_tokens = loads;
    return 0;
}

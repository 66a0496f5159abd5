#include "join.h"

#include <assert.h>

#define POOL_MAX 32

/* Sums have 32 bits, as many values as fit a vector register and the first level of the cache: so few members' rows of
 * values below so many tokens cannot overflow them. Whatever might goes to sums of 64 bits. */
#define SMALL_TOKENS (1u << 20)
#define SMALL_ROWS   (1u << 12)

struct open_pass {
    uint64_t pass;
    uint64_t time_ns; /* newest of its records */
    uint32_t step;
    bool step_mismatch;
    bool partial;                               /* somebody supplied partial sums, which cover all layers */
    uint32_t reduced_layers;                    /* layers that a REDUCED record stands for */
    uint64_t supplied[WIDEEP_MAX_EP_SIZE / 64]; /* bit per EP rank */
    uint32_t *reduced_by;                       /* [layers]: 1 + lowest EP rank that reduced it, 0: none */
    double *reduced_avg, *reduced_max;          /* [layers] */
    uint32_t small_rows;                        /* members whose rows are in `sums` */
    uint32_t *sums;                             /* [layers][ep_size] */
    uint64_t *large;                            /* as much, to be added to them; NULL: 0 */
};

struct join {
    uint32_t layers, ep_size;
    struct join_memory *memory;
    size_t pass_size; /* most bytes of an open pass with its arrays */
    uint32_t open_count, pool_count;
    uint32_t depth;                        /* most passes that may be open now */
    struct open_pass *open[JOIN_OPEN_MAX]; /* ascending */
    struct open_pass *pool[POOL_MAX];
    uint64_t closed;     /* passes below it are closed */
    uint64_t incomplete; /* newest pass that was closed incomplete + 1 */
    uint64_t newest_ns;
    struct join_layer *figures; /* [layers] */
};

static size_t cells(const struct join *join)
{
    return (size_t)join->layers * join->ep_size;
}

static void open_pass_free(struct join *join, struct open_pass *pass)
{
    if (!pass)
        return;
    join->memory->used -= join->pass_size;
    free(pass->reduced_by);
    free(pass->reduced_avg);
    free(pass->sums);
    free(pass->large);
    free(pass);
}

static struct open_pass *open_pass_new(struct join *join)
{
    struct open_pass *pass = calloc(1, sizeof *pass);

    if (!pass)
        return NULL;
    join->memory->used += join->pass_size;
    pass->reduced_by = calloc(join->layers, sizeof *pass->reduced_by);
    pass->reduced_avg = calloc((size_t)join->layers * 2, sizeof *pass->reduced_avg);
    pass->sums = calloc(cells(join), sizeof *pass->sums);
    if (!pass->reduced_by || !pass->reduced_avg || !pass->sums) {
        open_pass_free(join, pass);
        return NULL;
    }
    pass->reduced_max = pass->reduced_avg + join->layers;
    return pass;
}

int join_new(struct join **ret, uint32_t layers, uint32_t ep_size, struct join_memory *memory)
{
    assert(layers >= 1 && layers <= WIDEEP_MAX_LAYERS && ep_size >= 1 && ep_size <= WIDEEP_MAX_EP_SIZE);
    struct join *join = calloc(1, sizeof *join);
    if (!join)
        return -ENOMEM;
    join->layers = layers;
    join->ep_size = ep_size;
    join->memory = memory;
    join->depth = JOIN_OPEN_MAX;
    join->pass_size = sizeof(struct open_pass) + layers * (sizeof(uint32_t) + 2 * sizeof(double) +
                                                           ep_size * (sizeof(uint32_t) + sizeof(uint64_t)));
    join->figures = calloc(layers, sizeof *join->figures);
    if (!join->figures) {
        free(join);
        return -ENOMEM;
    }
    *ret = join;
    return 0;
}

void join_free(struct join *join)
{
    if (!join)
        return;
    for (uint32_t i = 0; i < join->open_count; i++)
        open_pass_free(join, join->open[i]);
    for (uint32_t i = 0; i < join->pool_count; i++)
        open_pass_free(join, join->pool[i]);
    free(join->figures);
    free(join);
}

uint32_t join_open(const struct join *join, uint64_t *ret_oldest_ns)
{
    if (ret_oldest_ns && join->open_count > 0)
        *ret_oldest_ns = join->open[0]->time_ns;
    return join->open_count;
}

/* Index of the first open pass that is not below `pass`. */
static uint32_t find_open(const struct join *join, uint64_t pass)
{
    uint32_t low = 0, high = join->open_count;

    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (join->open[middle]->pass < pass)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_open(const struct join *join, uint64_t pass)
{
    uint32_t at = find_open(join, pass);
    return at < join->open_count && join->open[at]->pass == pass;
}

/* Room for one more open pass? */
static bool has_room(const struct join *join)
{
    if (join->open_count >= join->depth)
        return false;
    if (join->open_count < JOIN_OPEN_MIN || join->pool_count > 0)
        return join->open_count < JOIN_OPEN_MAX;
    return join->open_count < JOIN_OPEN_MAX && join->memory->used + join->pass_size <= join->memory->limit;
}

void join_begin(struct join *join)
{
    join->depth = JOIN_DEPTH;
}

bool join_deepen(struct join *join)
{
    if (join->depth >= JOIN_OPEN_MAX)
        return false;
    join->depth *= 4;
    return true;
}

bool join_ready(const struct join *join, uint64_t pass)
{
    return pass < join->closed || is_open(join, pass) || has_room(join);
}

static void recycle(struct join *join, struct open_pass *pass)
{
    free(pass->large);
    pass->large = NULL;
    if (join->pool_count < POOL_MAX && join->memory->used <= join->memory->limit / 2)
        join->pool[join->pool_count++] = pass;
    else
        open_pass_free(join, pass);
}

static void remove_lowest(struct join *join)
{
    recycle(join, join->open[0]);
    memmove(join->open, join->open + 1, --join->open_count * sizeof *join->open);
}

static struct open_pass *open_pass_get(struct join *join, uint64_t number)
{
    uint32_t at = find_open(join, number);

    if (at < join->open_count && join->open[at]->pass == number)
        return join->open[at];
    assert(join->open_count < JOIN_OPEN_MAX);
    struct open_pass *pass = join->pool_count > 0 ? join->pool[--join->pool_count] : open_pass_new(join);
    if (!pass)
        return NULL;
    pass->pass = number;
    pass->time_ns = 0;
    pass->step = WIDEEP_STEP_UNKNOWN;
    pass->step_mismatch = pass->partial = false;
    pass->reduced_layers = pass->small_rows = 0;
    memset(pass->supplied, 0, sizeof pass->supplied);
    memset(pass->reduced_by, 0, join->layers * sizeof *pass->reduced_by);
    memset(pass->sums, 0, cells(join) * sizeof *pass->sums);
    memmove(join->open + at + 1, join->open + at, (join->open_count - at) * sizeof *join->open);
    join->open[at] = pass;
    join->open_count++;
    return pass;
}

static bool has_supplied(const struct open_pass *pass, const struct join_member *member)
{
    return pass->supplied[member->ep_rank / 64] >> member->ep_rank % 64 & 1;
}

static void start_over(struct join *join, struct join_member *const *members, uint32_t count)
{
    while (join->open_count > 0)
        recycle(join, join->open[--join->open_count]);
    join->closed = join->incomplete = 0;
    join->newest_ns = 0;
    for (uint32_t i = 0; i < count; i++) {
        members[i]->first = UINT64_MAX;
        members[i]->newest = members[i]->awaited = 0;
        members[i]->behind = false;
        members[i]->next_gap = 0;
        memset(members[i]->gaps, 0, sizeof members[i]->gaps);
        /* Who is dead has no part in the new run. */
        if (!members[i]->live)
            members[i]->died_ns = members[i]->start_ns;
    }
}

/* All who live began after the newest record of this run: nobody of it is left. */
static bool is_new_run(const struct join *join, struct join_member *const *members, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (members[i]->live && members[i]->start_ns <= join->newest_ns)
            return false;
    return true;
}

/* Notes that the member went on below what is closed, too late to be a straggler. True when all who live did: then it
 * is the closed number that was wrong. */
static bool all_are_behind(const struct join *join, struct join_member *const *members, uint32_t count,
                           struct join_member *member, const struct ring_pass *pass)
{
    member->behind = pass->time_ns > join->newest_ns && pass->time_ns - join->newest_ns > JOIN_LATE_NS;
    for (uint32_t i = 0; i < count; i++)
        if (members[i]->live && members[i]->ever && !members[i]->behind)
            return false;
    return member->behind;
}

/* By fours, here and below, which compilers turn into vectors; a loop of unknown length they would leave as it is at
 * -O2. */
static uint32_t bits_of(const uint32_t *tokens, size_t count)
{
    uint32_t bits[4] = {0};

    for (; count >= 4; count -= 4, tokens += 4)
        for (unsigned i = 0; i < 4; i++)
            bits[i] |= tokens[i];
    for (; count > 0; count--)
        bits[0] |= *tokens++;
    return bits[0] | bits[1] | bits[2] | bits[3];
}

static void add_small(uint32_t *restrict sums, const uint32_t *restrict tokens, uint32_t count)
{
    for (; count >= 4; count -= 4, sums += 4, tokens += 4)
        for (unsigned i = 0; i < 4; i++)
            sums[i] += tokens[i];
    for (; count > 0; count--)
        *sums++ += *tokens++;
}

static void add_large(uint64_t *sums, const uint32_t *tokens, uint32_t count)
{
    for (; count > 0; count--)
        *sums++ += *tokens++;
}

/* False without memory, and nothing added. */
static bool add_partial(const struct join *join, struct open_pass *open, const struct ring_pass *pass)
{
    const bool small = open->small_rows < SMALL_ROWS &&
                       bits_of(pass->rank_tokens, (size_t)pass->records * join->ep_size) < SMALL_TOKENS;

    if (!small && !open->large)
        open->large = calloc(cells(join), sizeof *open->large);
    if (!small && !open->large)
        return false;
    for (uint32_t i = 0; i < pass->records; i++) {
        const size_t row = (size_t)pass->record[i].layer * join->ep_size;
        const uint32_t *tokens = pass->rank_tokens + (size_t)i * join->ep_size;
        if (small)
            add_small(open->sums + row, tokens, join->ep_size);
        else
            add_large(open->large + row, tokens, join->ep_size);
    }
    open->small_rows += small;
    open->partial = true;
    return true;
}

static void add_reduced(struct open_pass *open, const struct join_member *member,
                        const struct wideep_eplb_record *record)
{
    uint32_t layer = record->layer;

    if (open->reduced_by[layer] != 0 && open->reduced_by[layer] <= member->ep_rank + 1)
        return;
    open->reduced_layers += open->reduced_by[layer] == 0;
    open->reduced_by[layer] = member->ep_rank + 1;
    open->reduced_avg[layer] = record->avg_tokens_per_rank;
    open->reduced_max[layer] = record->max_tokens_per_rank;
}

/* Is a closed pass whole without what the member says of it? Reduced figures of all layers, of one who had not recorded
 * any by then, are not waited for. */
static bool is_spare(const struct join *join, const struct join_member *member, const struct ring_pass *pass)
{
    return pass->record[0].flags & WIDEEP_REDUCED && pass->pass < member->awaited && pass->pass >= join->incomplete;
}

bool join_supply(struct join *join, struct join_member *const *members, uint32_t count, struct join_member *member,
                 const struct ring_pass *pass)
{
    if (pass->pass < join->closed &&
        (is_new_run(join, members, count) || all_are_behind(join, members, count, member, pass)))
        start_over(join, members, count);
    if (member->first != UINT64_MAX && pass->pass < member->newest)
        return false;
    struct open_pass *open = pass->pass >= join->closed ? open_pass_get(join, pass->pass) : NULL;
    if (pass->after_loss && member->first != UINT64_MAX && pass->pass > member->newest) {
        member->gaps[member->next_gap % JOIN_GAPS].from = member->newest;
        member->gaps[member->next_gap++ % JOIN_GAPS].to = pass->pass;
    }
    if (member->first == UINT64_MAX)
        member->first = pass->pass;
    member->newest = pass->pass + 1;
    if (!member->ever)
        member->awaited = join->closed;
    member->ever = true;
    if (!open)
        return is_spare(join, member, pass);
    join->newest_ns = pass->time_ns > join->newest_ns ? pass->time_ns : join->newest_ns;
    member->behind = false;

    /* Without memory the pass misses this member, as one that skipped it. */
    if (pass->record[0].flags & WIDEEP_PARTIAL && !add_partial(join, open, pass))
        return false;
    open->supplied[member->ep_rank / 64] |= (uint64_t)1 << member->ep_rank % 64;
    open->time_ns = pass->time_ns > open->time_ns ? pass->time_ns : open->time_ns;
    if (open->step == WIDEEP_STEP_UNKNOWN)
        open->step = pass->step;
    else if (pass->step != WIDEEP_STEP_UNKNOWN && pass->step != open->step)
        open->step_mismatch = true;
    for (uint32_t i = 0; !(pass->record[0].flags & WIDEEP_PARTIAL) && i < pass->records; i++)
        add_reduced(open, member, &pass->record[i]);
    return true;
}

enum verdict { WAIT, DISCARD, COMPLETE, INCOMPLETE };

static bool in_gap(const struct join_member *member, uint64_t pass)
{
    for (unsigned i = 0; i < JOIN_GAPS; i++)
        if (pass >= member->gaps[i].from && pass < member->gaps[i].to)
            return true;
    return false;
}

static enum verdict decide(const struct join *join, const struct open_pass *open, struct join_member *const *members,
                           uint32_t count, bool give_up, enum join_cause *ret_cause)
{
    bool missing[JOIN_CAUSES] = {false};
    bool waiting = false, discard = false;

    for (uint32_t i = 0; i < count; i++) {
        const struct join_member *member = members[i];
        if (has_supplied(open, member) || member->start_ns > open->time_ns)
            continue;
        if (member->first != UINT64_MAX && open->pass < member->first) {
            discard = true;
        } else if (!member->live) {
            /* It owes what ran until it was found dead. One that was never part of this run owes nothing. */
            if (member->first != UINT64_MAX && open->time_ns <= member->died_ns)
                missing[open->pass >= member->newest ? JOIN_DEAD
                        : in_gap(member, open->pass) ? JOIN_LOST
                                                     : JOIN_SKIPPED] = true;
        } else if (member->first != UINT64_MAX && open->pass < member->newest) {
            missing[in_gap(member, open->pass) ? JOIN_LOST : JOIN_SKIPPED] = true;
        } else if (member->ever || open->reduced_layers < join->layers) {
            waiting = true;
        }
    }
    if (discard)
        return DISCARD;
    if (waiting && !give_up && join->newest_ns - open->time_ns < JOIN_LATE_NS)
        return WAIT;
    missing[JOIN_LATE] = waiting;
    missing[JOIN_STEP_MISMATCH] = open->step_mismatch;
    for (unsigned cause = 0; cause < JOIN_CAUSES; cause++)
        if (missing[cause]) {
            *ret_cause = (enum join_cause)cause;
            return INCOMPLETE;
        }
    return COMPLETE;
}

static void reckon(struct join *join, const struct open_pass *open)
{
    for (uint32_t layer = 0; layer < join->layers; layer++) {
        struct join_layer *figures = &join->figures[layer];
        const size_t row = (size_t)layer * join->ep_size;
        memset(figures, 0, sizeof *figures);
        if (open->reduced_by[layer] != 0) {
            figures->present = figures->reduced = true;
            figures->reduced_avg = open->reduced_avg[layer];
            figures->reduced_max = open->reduced_max[layer];
        } else if (open->partial) {
            figures->present = true;
            for (uint32_t rank = 0; rank < join->ep_size; rank++) {
                uint64_t sum = open->sums[row + rank] + (open->large ? open->large[row + rank] : 0);
                figures->tokens += sum;
                figures->max = sum > figures->max ? sum : figures->max;
            }
        }
    }
}

/* Passes between the closed ones and the lowest open one that every rank recorded and lost. */
static uint64_t lost_by_all(const struct join *join, struct join_member *const *members, uint32_t count)
{
    uint64_t from = join->closed, to = join->open[0]->pass;
    bool any = false;

    if (from == 0 || to <= from)
        return 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!members[i]->live || members[i]->first >= to)
            continue;
        if (!in_gap(members[i], from) || !in_gap(members[i], to - 1))
            return 0;
        any = true;
    }
    return any ? to - from : 0;
}

static bool all_supplied(const struct open_pass *open, struct join_member *const *members, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!has_supplied(open, members[i]))
            return false;
    return true;
}

uint32_t join_emit(struct join *join, struct join_member *const *members, uint32_t count, enum join_emission emission,
                   const struct join_sink *sink)
{
    uint32_t closed = 0;

    while (join->open_count > 0) {
        struct open_pass *open = join->open[0];
        enum join_cause cause = JOIN_LATE;
        if (emission == JOIN_EMIT_WHOLE && !all_supplied(open, members, count))
            break;
        enum verdict verdict = decide(join, open, members, count, emission == JOIN_EMIT_FORCED && closed == 0, &cause);
        if (verdict == WAIT)
            break;
        uint64_t lost = lost_by_all(join, members, count);
        if (lost > 0)
            sink->incomplete(sink->context, JOIN_LOST, lost);
        if (verdict == COMPLETE) {
            reckon(join, open);
            sink->complete(sink->context, open->time_ns, join->figures);
        } else if (verdict == INCOMPLETE) {
            sink->incomplete(sink->context, cause, 1);
            join->incomplete = open->pass + 1;
        }
        join->closed = open->pass + 1;
        remove_lowest(join);
        closed++;
    }
    return closed;
}

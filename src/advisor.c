#include "advisor.h"

#include "rebalance.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* Less than a service's own threads get, more than nothing on a busy machine. */
#define NICENESS 10

static const double unknown = NAN;

/* Cumulative counts of a group at one turn. */
struct sample {
    uint64_t *experts;   /* [layers][experts] */
    uint64_t *ranks;     /* [layers][ep_size] */
    double avg, max;     /* Σ over layers and joined passes */
    uint64_t completed;  /* rearrangements, Σ over members */
    uint64_t membership; /* the sum of the members' instance ids: counts of others are no continuation of these */
};

/* A group as the advisor sees it. */
struct subject {
    struct advice advice; /* the collector's */
    uint32_t layers, experts, ranks;
    struct rebalance *plan;
    struct sample before, now; /* the collector's */
    bool sampled;              /* `before` is */

    /* The job: the collector's, the thread's while it works. */
    bool due;
    bool rearranged;   /* in the interval */
    double *loads;     /* [layers][experts] tokens of the interval */
    double *reference; /* likewise, of the interval to compare with */
    bool referenced;   /* `reference` is known */
    double windowed; /* Σ over layers of the most loaded rank's tokens in the interval, by that of the average rank */
    double joined;   /* Σ of the passes' maxima by Σ of their averages; not a number where none was joined */
    double *achievable; /* [layers] */
    double gain, drift;

    struct subject *next;
};

/* Who owns the jobs: the collector but for WORKING. */
enum phase { IDLE, WORKING, DONE };

struct advisor {
    uint64_t interval_ns, due_ns;
    struct subject *subjects;
    uint64_t *scratch; /* of one member's plane */
    size_t scratch_words;
    enum phase phase; /* atomic: release by who hands the jobs over, acquire by who takes them */
    pthread_t thread;
    pthread_mutex_t lock; /* guards `stop`, and the sleep of the thread */
    pthread_cond_t wake;
    bool stop;
};

/* ---- the plan ----------------------------------------------------------------------------------------------- */

static double sum_of(const double *values, uint32_t count)
{
    double sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += values[i];
    return sum;
}

/* Half the sum of what the two distributions differ by. */
static double variation(const double *a, double a_sum, const double *b, double b_sum, uint32_t count)
{
    double sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += fabs(a[i] / a_sum - b[i] / b_sum);
    return sum / 2;
}

/* The share of (joined - 1), what the slowest rank costs beyond the average, that goes with (windowed - planned). */
static double gain(double joined, double windowed, double planned)
{
    if (isnan(joined))
        return NAN;
    if (joined <= 1 || windowed <= planned)
        return 0;
    return fmin(1, (windowed - planned) / (joined - 1));
}

static void advise(struct subject *subject)
{
    double avg = 0, max = 0, drift = 0;
    uint32_t compared = 0;

    for (uint32_t l = 0; l < subject->layers; l++) {
        const double *loads = subject->loads + (size_t)l * subject->experts;
        const double *reference = subject->reference + (size_t)l * subject->experts;
        const double tokens = sum_of(loads, subject->experts);
        subject->achievable[l] = NAN;
        if (tokens <= 0)
            continue;
        const double layer_max = rebalance_max(subject->plan, loads);
        subject->achievable[l] = tokens / subject->ranks / layer_max;
        avg += tokens / subject->ranks;
        max += layer_max;
        const double reference_tokens = subject->referenced ? sum_of(reference, subject->experts) : 0;
        if (reference_tokens > 0) {
            drift += variation(loads, tokens, reference, reference_tokens, subject->experts);
            compared++;
        }
    }
    subject->gain = avg > 0 ? gain(subject->joined, subject->windowed, max / avg) : unknown;
    subject->drift = compared > 0 ? drift / compared : unknown;
    if (avg > 0 && (subject->rearranged || !subject->referenced)) {
        double *loads = subject->loads;
        subject->loads = subject->reference;
        subject->reference = loads;
        subject->referenced = true;
        subject->drift = 0;
    }
}

static void *advisor_main(void *argument)
{
    struct advisor *advisor = argument;

    (void)setpriority(PRIO_PROCESS, 0, NICENESS); /* on Linux, of this thread */
    for (;;) {
        (void)pthread_mutex_lock(&advisor->lock);
        while (!advisor->stop && __atomic_load_n(&advisor->phase, __ATOMIC_ACQUIRE) != WORKING)
            (void)pthread_cond_wait(&advisor->wake, &advisor->lock);
        const bool stop = advisor->stop;
        (void)pthread_mutex_unlock(&advisor->lock);
        if (stop)
            return NULL;
        for (struct subject *subject = advisor->subjects; subject; subject = subject->next)
            if (subject->due)
                advise(subject);
        __atomic_store_n(&advisor->phase, DONE, __ATOMIC_RELEASE);
    }
}

/* ---- subjects ----------------------------------------------------------------------------------------------- */

static void subject_free(struct subject *subject)
{
    if (!subject)
        return;
    if (subject->advice.group)
        subject->advice.group->advice = NULL;
    rebalance_free(subject->plan);
    free(subject->advice.achievable);
    free(subject->before.experts);
    free(subject->before.ranks);
    free(subject->now.experts);
    free(subject->now.ranks);
    free(subject->loads);
    free(subject->reference);
    free(subject->achievable);
    free(subject);
}

/* The member whose segment tells how many physical experts there are. */
static const struct member *any_counting(const struct group *group)
{
    for (uint32_t i = 0; i < group->member_count; i++)
        if (group->members[i]->segment && group->members[i]->counts && group->members[i]->join.live)
            return group->members[i];
    return NULL;
}

static int subject_new(struct subject **ret, struct group *group, const struct member *member)
{
    const size_t experts = (size_t)group->layers * group->experts, ranks = (size_t)group->layers * group->ep_size;
    struct subject *subject = calloc(1, sizeof *subject);

    if (!subject)
        return -ENOMEM;
    subject->layers = group->layers;
    subject->experts = group->experts;
    subject->ranks = group->ep_size;
    subject->advice.gain = subject->advice.drift = NAN;
    subject->advice.achievable = malloc(group->layers * sizeof(double));
    subject->achievable = malloc(group->layers * sizeof(double));
    subject->before.experts = malloc(experts * sizeof(uint64_t));
    subject->before.ranks = malloc(ranks * sizeof(uint64_t));
    subject->now.experts = malloc(experts * sizeof(uint64_t));
    subject->now.ranks = malloc(ranks * sizeof(uint64_t));
    subject->loads = malloc(experts * sizeof(double));
    subject->reference = malloc(experts * sizeof(double));
    const bool memory = subject->advice.achievable && subject->achievable && subject->before.experts &&
                        subject->before.ranks && subject->now.experts && subject->now.ranks && subject->loads &&
                        subject->reference;
    /* A model with fewer physical experts than logical ones gets no plan, and so no advice. */
    const uint32_t slots = member->segment->view.identity.models[member->model].physical_experts;
    const int error = rebalance_new(&subject->plan, group->experts, slots, group->ep_size);
    if (!memory || error == -ENOMEM) {
        subject_free(subject);
        return -ENOMEM;
    }
    for (uint32_t l = 0; l < group->layers; l++)
        subject->advice.achievable[l] = NAN;
    subject->advice.group = group;
    group->advice = &subject->advice;
    *ret = subject;
    return 0;
}

/* Those whose groups are gone; only while the jobs are the collector's. */
static void reap(struct advisor *advisor)
{
    for (struct subject **at = &advisor->subjects; *at;) {
        struct subject *subject = *at;
        if (subject->advice.group) {
            at = &subject->next;
            continue;
        }
        *at = subject->next;
        subject_free(subject);
    }
}

/* ---- handing over ------------------------------------------------------------------------------------------- */

static uint64_t completed_rearrangements(const struct member *member)
{
    const struct wideep_totals_model *totals = &member->segment->view.totals->models[member->model];
    uint64_t sum = 0;

    for (unsigned mode = 0; mode < WIDEEP_MODES; mode++)
        for (unsigned b = 0; b < WIDEEP_DURATION_BUCKETS; b++)
            sum += wideep_load(&totals->rearrangement_bucket[mode][b]);
    return sum;
}

static void take_sample(const struct group *group, struct sample *sample, uint64_t *scratch)
{
    const size_t words = (size_t)group->layers * group->experts;

    memset(sample->experts, 0, words * sizeof *sample->experts);
    sample->completed = sample->membership = 0;
    for (uint32_t i = 0; i < group->member_count; i++) {
        const struct member *member = group->members[i];
        if (!member->segment || !member->counts || !member->join.live)
            continue;
        (void)group_copy_experts(member, scratch);
        for (size_t w = 0; w < words; w++)
            sample->experts[w] += scratch[w];
        sample->completed += completed_rearrangements(member);
        sample->membership += member->segment->view.identity.instance_id;
    }
    sample->avg = sample->max = 0;
    for (uint32_t l = 0; l < group->layers; l++) {
        const struct group_layer *layer = &group->layer[l];
        sample->avg += (double)layer->tokens / group->ep_size + layer->reduced_avg;
        sample->max += (double)layer->max + layer->reduced_max;
        for (uint32_t rank = 0; rank < group->ep_size; rank++)
            sample->ranks[(size_t)l * group->ep_size + rank] = group_rank_tokens(group, l, rank);
    }
}

/* A word that a hostile or restarted writer has set back is no load. */
static double grown(uint64_t now, uint64_t before)
{
    return now > before ? (double)(now - before) : 0;
}

static double windowed_imbalance(const struct subject *subject)
{
    double sum = 0, max = 0;

    for (uint32_t l = 0; l < subject->layers; l++) {
        double layer_max = 0;
        for (uint32_t rank = 0; rank < subject->ranks; rank++) {
            const size_t at = (size_t)l * subject->ranks + rank;
            const double tokens = grown(subject->now.ranks[at], subject->before.ranks[at]);
            sum += tokens;
            layer_max = fmax(layer_max, tokens);
        }
        max += layer_max;
    }
    return sum > 0 ? max * subject->ranks / sum : unknown;
}

/* From two samples of the same members to a job. */
static void prepare(struct subject *subject)
{
    const struct sample *now = &subject->now, *before = &subject->before;
    const size_t words = (size_t)subject->layers * subject->experts;
    double tokens = 0;

    for (size_t w = 0; w < words; w++)
        tokens += subject->loads[w] = grown(now->experts[w], before->experts[w]);
    /* Without tokens there is nothing to say, and what was said last stands. */
    subject->due = tokens > 0;
    subject->rearranged = now->completed != before->completed;
    subject->windowed = windowed_imbalance(subject);
    subject->joined = now->avg > before->avg ? (now->max - before->max) / (now->avg - before->avg) : unknown;
}

static void hand_over(struct subject *subject, uint64_t *scratch)
{
    take_sample(subject->advice.group, &subject->now, scratch);
    subject->due = false;
    if (subject->plan && subject->sampled && subject->now.membership == subject->before.membership)
        prepare(subject);
    const struct sample sample = subject->before;
    subject->before = subject->now;
    subject->now = sample;
    subject->sampled = true;
}

static void take_over(struct subject *subject)
{
    if (!subject->due)
        return;
    memcpy(subject->advice.achievable, subject->achievable, subject->layers * sizeof *subject->achievable);
    subject->advice.gain = subject->gain;
    subject->advice.drift = subject->drift;
}

static bool reserve_scratch(struct advisor *advisor, const struct group *group)
{
    const size_t words = (size_t)group->layers * group->experts;

    if (advisor->scratch_words < words) {
        uint64_t *scratch = realloc(advisor->scratch, words * sizeof *scratch);
        if (!scratch)
            return false;
        advisor->scratch = scratch;
        advisor->scratch_words = words;
    }
    return true;
}

static int add_subjects(struct advisor *advisor, const struct aggregate *aggregate)
{
    for (struct group *group = aggregate->groups; group; group = group->next) {
        const struct member *member = any_counting(group);
        struct subject *subject;
        if (group->advice || !member)
            continue;
        if (!reserve_scratch(advisor, group) || subject_new(&subject, group, member) != 0)
            return -ENOMEM;
        subject->next = advisor->subjects;
        advisor->subjects = subject;
    }
    return 0;
}

int advisor_turn(struct advisor *advisor, const struct aggregate *aggregate, uint64_t now_ns)
{
    const enum phase phase = __atomic_load_n(&advisor->phase, __ATOMIC_ACQUIRE);

    if (phase == WORKING)
        return 0;
    reap(advisor);
    if (phase == DONE) {
        for (struct subject *subject = advisor->subjects; subject; subject = subject->next)
            take_over(subject);
        __atomic_store_n(&advisor->phase, IDLE, __ATOMIC_RELAXED);
    }
    if (now_ns < advisor->due_ns)
        return 0;
    advisor->due_ns = now_ns + advisor->interval_ns;
    const int error = add_subjects(advisor, aggregate);
    for (struct subject *subject = advisor->subjects; subject; subject = subject->next)
        hand_over(subject, advisor->scratch);
    (void)pthread_mutex_lock(&advisor->lock);
    __atomic_store_n(&advisor->phase, WORKING, __ATOMIC_RELEASE);
    (void)pthread_cond_signal(&advisor->wake);
    (void)pthread_mutex_unlock(&advisor->lock);
    return error;
}

/* ---- begin and end ------------------------------------------------------------------------------------------ */

static void advisor_free(struct advisor *advisor)
{
    while (advisor->subjects) {
        struct subject *subject = advisor->subjects;
        advisor->subjects = subject->next;
        subject_free(subject);
    }
    free(advisor->scratch);
    (void)pthread_cond_destroy(&advisor->wake);
    (void)pthread_mutex_destroy(&advisor->lock);
    free(advisor);
}

int advisor_start(struct advisor **ret, uint64_t interval_ns)
{
    struct advisor *advisor = calloc(1, sizeof *advisor);

    if (!advisor)
        return -ENOMEM;
    advisor->interval_ns = interval_ns;
    (void)pthread_mutex_init(&advisor->lock, NULL);
    (void)pthread_cond_init(&advisor->wake, NULL);
    const int error = -pthread_create(&advisor->thread, NULL, advisor_main, advisor);
    if (error) {
        advisor_free(advisor);
        return error;
    }
    (void)pthread_setname_np(advisor->thread, "advisor");
    *ret = advisor;
    return 0;
}

void advisor_stop(struct advisor *advisor)
{
    if (!advisor)
        return;
    (void)pthread_mutex_lock(&advisor->lock);
    advisor->stop = true;
    (void)pthread_cond_signal(&advisor->wake);
    (void)pthread_mutex_unlock(&advisor->lock);
    (void)pthread_join(advisor->thread, NULL);
    advisor_free(advisor);
}

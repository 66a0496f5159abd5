/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rank or front end. It runs pass after pass at instants that all children compute alike; no child talks
 * to another. What keeps them together is that none runs more than SIM_LEAD passes ahead of the slowest
 * living rank of its group.
 */
#include "sim.h"

#include <assert.h>
#include <signal.h>
#include <sys/prctl.h>

#define SIM_CHECK_NS     1000000000u
#define SIM_SLICE_NS     200000000u
#define SIM_POLL_NS      1000000u
#define SIM_CREATE_TRIES 50u

/* What a child needs besides the run; private to it. */
struct sim_self {
    struct sim_run *run;
    const struct sim_options *options;
    struct sim_child *child;
    struct wideep_writer *writer;
    struct sim_loads *loads[WIDEEP_MAX_MODELS];           /* of a rank, NULL: no MoE layers */
    struct wideep_eplb_layer *reduced[WIDEEP_MAX_MODELS]; /* [layers] */
    uint64_t ended_ns[WIDEEP_MAX_MODELS]; /* duration of a rearrangement, until a pass has reported it */
    bool rearranging;
    uint64_t rearranging_since_ns;
    enum wideep_mode rearranging_mode;
    uint64_t shift_ns; /* stalls and pauses of all passes up to this one */
    uint64_t checked_ns, begun_ns;
};

void sim_sleep_until(uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                             .tv_nsec = (long)(deadline_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

uint64_t sim_group_front(const struct sim_run *run, uint32_t group)
{
    uint64_t front = 0;
    const struct sim_child *child = run->children + (size_t)group * run->children_per_group;
    for (uint32_t i = 0; i < run->options.ep_size; i++) {
        uint64_t next = sim_get(&child[i].slot->next);
        front = next > front ? next : front;
    }
    return front + 1;
}

uint64_t sim_group_rear(const struct sim_run *run, uint32_t group)
{
    uint64_t rear = SIM_UNLIMITED;
    const struct sim_child *child = run->children + (size_t)group * run->children_per_group;
    for (uint32_t i = 0; i < run->options.ep_size; i++) {
        if (!sim_get(&child[i].slot->alive))
            continue;
        uint64_t next = sim_get(&child[i].slot->next);
        rear = next < rear ? next : rear;
    }
    return rear;
}

static const char *sim_child_name(const struct sim_child *child, char *ret, size_t size)
{
    if (child->role == WIDEEP_ROLE_RANK)
        (void)snprintf(ret, size, "engine %u rank %u", (unsigned)child->engine, (unsigned)child->ep_rank);
    else
        (void)snprintf(ret, size, "engine %u front end %u", (unsigned)child->engine, (unsigned)child->frontend);
    return ret;
}

static int sim_child_fail(const struct sim_self *self, const char *what, int error)
{
    char name[64];
    (void)fprintf(stderr, "wideep-sim: %s: %s: %s\n", sim_child_name(self->child, name, sizeof name), what,
                  wideep_error_text(error));
    return error;
}

/* Asserts the segment about once a second. */
static int sim_child_check(struct sim_self *self)
{
    uint64_t now_ns = sim_now_ns();
    if (now_ns - self->checked_ns < SIM_CHECK_NS)
        return 0;
    self->checked_ns = now_ns;
    int error = wideep_check(self->writer);
    if (error)
        (void)sim_child_fail(self, "the segment cannot be asserted", error);
    return error == -ESTALE ? error : 0;
}

static int sim_child_wait(struct sim_self *self, uint64_t until_ns)
{
    int error = 0;
    for (uint64_t now_ns; !error && (now_ns = sim_now_ns()) < until_ns;) {
        sim_sleep_until(until_ns - now_ns > SIM_SLICE_NS ? now_ns + SIM_SLICE_NS : until_ns);
        error = sim_child_check(self);
    }
    return error;
}

static int sim_child_create(struct sim_self *self, bool restarted)
{
    const struct sim_options *options = self->options;
    const struct sim_child *child = self->child;
    const bool rank = child->role == WIDEEP_ROLE_RANK;
    struct wideep_config config;

    memset(&config, 0, sizeof config);
    config.directory = options->directory;
    config.instance = options->instance;
    config.role = child->role;
    config.engine = child->engine;
    config.rank = rank ? child->ep_rank : child->frontend;
    config.dp_rank = child->engine_in_group;
    config.dp_size = options->engines;
    config.group = sim_mix(options->seed, child->group, 0x67726f7570);
    config.model_count = options->model_count;
    if (rank) {
        config.ep_size = options->ep_size;
        config.tp_rank = child->tp_rank;
        config.tp_size = options->ranks;
        config.flags = options->replicated ? WIDEEP_LOADS_REPLICATED : 0;
        config.rearrangement_interval = sim_workload_interval(options);
    }
    for (uint32_t m = 0; m < options->model_count; m++) {
        config.models[m].name = options->models[m].name;
        if (!rank)
            continue;
        config.models[m].layers = options->models[m].layers;
        config.models[m].logical_experts = options->models[m].experts;
        config.models[m].physical_experts = options->models[m].physical;
    }
    int error = wideep_create(&self->writer, &config);
    /* A predecessor that was killed may still be on its way out. */
    for (unsigned i = 0; error == -EBUSY && restarted && i < SIM_CREATE_TRIES; i++) {
        sim_sleep_until(sim_now_ns() + 20 * SIM_POLL_NS);
        error = wideep_create(&self->writer, &config);
    }
    assert(error || self->writer);
    return error;
}

static int sim_child_prepare(struct sim_self *self)
{
    if (self->child->role != WIDEEP_ROLE_RANK)
        return 0;
    for (uint32_t m = 0; m < self->options->model_count; m++) {
        uint32_t layers = self->options->models[m].layers;
        if (layers == 0)
            continue;
        self->reduced[m] = calloc(layers, sizeof *self->reduced[m]);
        int error = self->reduced[m] ? sim_loads_new(&self->loads[m], self->options, self->child->group, m) : -ENOMEM;
        if (error)
            return error;
    }
    return 0;
}

static int sim_child_rearrangement_begin(struct sim_self *self, enum wideep_mode mode)
{
    self->rearranging = true;
    self->rearranging_mode = mode;
    self->rearranging_since_ns = sim_now_ns();
    for (uint32_t m = 0; m < self->options->model_count; m++) {
        int error = self->loads[m] ? wideep_rearrangement_begin(self->writer, m, mode) : 0;
        if (error)
            return sim_child_fail(self, "cannot begin a rearrangement", error);
    }
    return 0;
}

/* How long it took is known only afterwards: until then the intended book has it in the lowest bucket, which
 * raises all of them, and with a generous duration. */
static int sim_child_rearrangement_end(struct sim_self *self)
{
    struct sim_book *book = self->child->book;

    if (!self->rearranging)
        return 0; /* restarted in the middle of it */
    self->rearranging = false;
    for (uint32_t m = 0; m < self->options->model_count; m++) {
        if (!self->loads[m])
            continue;
        struct sim_model_totals *intended = &book->intended.models[m], *done = &book->done.models[m];
        uint64_t *intended_bucket = intended->rearrangement_bucket[self->rearranging_mode];
        uint64_t guess_ns = sim_now_ns() - self->rearranging_since_ns + 60 * (uint64_t)1000000000, duration_ns = 0;
        intended->rearrangement_sum_ns += guess_ns;
        intended_bucket[0]++;
        sim_books_fence();
        int error = wideep_rearrangement_end(self->writer, m, &duration_ns);
        sim_books_fence();
        if (error)
            return sim_child_fail(self, "cannot end a rearrangement", error);
        unsigned bucket = sim_books_duration_bucket(duration_ns);
        if (bucket > 0) {
            intended_bucket[bucket]++;
            sim_books_fence();
            intended_bucket[0]--;
        }
        intended->rearrangement_sum_ns -= guess_ns - duration_ns;
        sim_books_fence();
        done->rearrangement_sum_ns += duration_ns;
        done->rearrangement_bucket[self->rearranging_mode][bucket]++;
        sim_books_fence();
        self->ended_ns[m] = duration_ns;
    }
    return 0;
}

static int sim_child_record_partial(struct sim_self *self, uint32_t m, const struct wideep_pass *record,
                                    const struct sim_pass *pass)
{
    struct sim_book *book = self->child->book;
    size_t words = (size_t)self->options->models[m].layers * self->options->ep_size;
    const int32_t *routed = sim_loads_of(self->loads[m], pass, self->child->ep_rank);
    const uint64_t *sums = sim_loads_sums(self->loads[m], routed);

    sim_books_plane(book->intended_tokens[m], sums, words);
    sim_books_fence();
    int error = wideep_record_pass(self->writer, record, routed, sim_loads_map(self->loads[m]));
    sim_books_fence();
    if (!error)
        sim_books_plane(book->done_tokens[m], sums, words);
    return error;
}

static int sim_child_record_reduced(struct sim_self *self, uint32_t m, const struct wideep_pass *record,
                                    const struct sim_pass *pass)
{
    uint32_t layers = self->options->models[m].layers, ep_size = self->options->ep_size;
    const uint64_t *sums = sim_loads_group_sums(self->loads[m], pass);

    for (uint32_t layer = 0; layer < layers; layer++) {
        uint64_t total = 0, max = 0;
        for (uint32_t rank = 0; rank < ep_size; rank++, sums++) {
            total += *sums;
            max = *sums > max ? *sums : max;
        }
        self->reduced[m][layer].layer = layer;
        self->reduced[m][layer].avg_tokens_per_rank = (double)total / ep_size;
        self->reduced[m][layer].max_tokens_per_rank = (double)max;
    }
    return wideep_record_eplb(self->writer, record, self->reduced[m], layers);
}

static int sim_child_record_loads(struct sim_self *self, const struct sim_pass *pass)
{
    enum sim_record kind = sim_workload_record(self->options, pass->pass, self->child->ep_rank);
    for (uint32_t m = 0; m < self->options->model_count; m++) {
        int error = 0;
        struct wideep_pass record = {
            .pass = pass->pass, .model = m, .step = pass->step, .rearrangement_duration_ns = self->ended_ns[m]};
        if (self->loads[m] && kind != SIM_RECORD_NONE) {
            sim_loads_seek(self->loads[m], pass);
            error = kind == SIM_RECORD_REDUCED ? sim_child_record_reduced(self, m, &record, pass)
                                               : sim_child_record_partial(self, m, &record, pass);
            self->ended_ns[m] = 0;
        } else if (self->loads[m]) {
            error = wideep_skip_pass(self->writer, &record);
        }
        if (error)
            return sim_child_fail(self, "cannot record a pass", error);
    }
    return 0;
}

static int sim_child_record_dbo(struct sim_self *self, const struct sim_pass *pass)
{
    struct sim_book *book = self->child->book;
    struct wideep_dbo_stats stats;

    sim_workload_dbo(self->options, self->child->group, pass, self->child->ep_rank, &stats);
    sim_books_dbo(&book->intended, &stats);
    sim_books_fence();
    int error = wideep_record_dbo(self->writer, &stats);
    sim_books_fence();
    if (error)
        return sim_child_fail(self, "cannot record DBO", error);
    sim_books_dbo(&book->done, &stats);
    return 0;
}

static int sim_child_record_tokens(struct sim_self *self, uint32_t frontend, const struct sim_pass *pass)
{
    struct sim_book *book = self->child->book;
    uint64_t prompt, generation;

    sim_workload_tokens(self->options, self->child->engine, frontend, pass, &prompt, &generation);
    book->intended.prompt += prompt;
    book->intended.generation += generation;
    sim_books_fence();
    int error = wideep_record_tokens(self->writer, prompt, generation);
    sim_books_fence();
    if (error)
        return sim_child_fail(self, "cannot record tokens", error);
    book->done.prompt += prompt;
    book->done.generation += generation;
    return 0;
}

/* Waits until the pass may begin: its instant has come, and no living rank is too far behind. */
static int sim_child_pace(struct sim_self *self, const struct sim_pass *pass, bool joined_late)
{
    const struct sim_options *options = self->options;
    const bool rank = self->child->role == WIDEEP_ROLE_RANK, paced = options->passes_per_second > 0;
    uint64_t lead = paced ? SIM_LEAD : SIM_LEAD_UNPACED, until_ns = sim_get(&self->run->shared->start_ns);
    int error = 0;

    if (pass->pause_ns && !paced && !joined_late)
        error = sim_child_wait(self, sim_now_ns() + pass->pause_ns);
    if (paced) {
        /* The instant without the stall, which is slept through below. */
        until_ns += sim_workload_offset_ns(options, pass->pass) + self->shift_ns - pass->stall_ns;
        /* Whoever fell behind catches up at twice the pace, not in a burst. */
        uint64_t apart_ns = (uint64_t)(0.5e9 / options->passes_per_second);
        if (self->begun_ns && self->begun_ns + apart_ns > until_ns)
            until_ns = self->begun_ns + apart_ns;
    }
    if (!error)
        error = sim_child_wait(self, until_ns);
    while (!error) {
        uint64_t rear = sim_group_rear(self->run, self->child->group);
        if (rear == SIM_UNLIMITED || pass->pass <= rear + lead)
            break;
        sim_sleep_until(sim_now_ns() + (paced ? SIM_POLL_NS : SIM_POLL_NS / 10));
        error = sim_child_check(self);
    }
    self->begun_ns = sim_now_ns();
    if (!error && pass->stall_ns) {
        if (rank)
            error = sim_child_rearrangement_begin(self, WIDEEP_SYNC);
        sim_sleep_until(sim_now_ns() + pass->stall_ns);
        if (rank && !error)
            error = sim_child_rearrangement_end(self);
        self->begun_ns = sim_now_ns();
    }
    return error;
}

static int sim_child_pass(struct sim_self *self, const struct sim_pass *pass)
{
    int error = 0;

    if (self->child->role == WIDEEP_ROLE_FRONTEND)
        return sim_child_record_tokens(self, self->child->frontend, pass);
    if (pass->async_begin)
        error = sim_child_rearrangement_begin(self, WIDEEP_ASYNC);
    if (!error && pass->async_end)
        error = sim_child_rearrangement_end(self);
    if (!error)
        error = sim_child_record_dbo(self, pass);
    if (!error)
        error = sim_child_record_loads(self, pass);
    if (!error && self->options->frontends == 0 && self->child->tp_rank == 0)
        error = sim_child_record_tokens(self, SIM_NOBODY, pass);
    return error;
}

/* May pass p run? The caller has stored it in its slot before, so either the parent sees it when it chooses
 * the limit or we see here that it is choosing. */
static bool sim_child_may_run(const struct sim_shared *shared, uint64_t pass)
{
    while (sim_get(&shared->hold) == 1)
        sim_sleep_until(sim_now_ns() + SIM_POLL_NS);
    return pass < sim_get(&shared->limit);
}

static int sim_child_passes(struct sim_self *self, bool restarted)
{
    struct sim_slot *slot = self->child->slot;
    struct sim_pass pass;
    uint64_t next = 0;

    if (restarted) {
        next = sim_group_front(self->run, self->child->group);
        for (uint64_t p = 0; p < next; p++) {
            sim_workload_pass(self->options, self->child->group, p, &pass);
            self->shift_ns += pass.stall_ns + pass.pause_ns;
        }
        /* The others may have gone on meanwhile. */
        uint64_t front = sim_group_front(self->run, self->child->group);
        for (; next < front; next++) {
            sim_workload_pass(self->options, self->child->group, next, &pass);
            self->shift_ns += pass.stall_ns + pass.pause_ns;
        }
    }
    for (const uint64_t first = next;; next++) {
        sim_set(&slot->next, next);
        sim_set(&slot->alive, 1);
        if (!sim_child_may_run(self->run->shared, next))
            return 0;
        sim_workload_pass(self->options, self->child->group, next, &pass);
        self->shift_ns += pass.stall_ns + pass.pause_ns;
        int error = sim_child_pace(self, &pass, restarted && next == first);
        if (!error)
            error = sim_child_pass(self, &pass);
        if (error)
            return error;
    }
}

int sim_child_run(struct sim_run *run, struct sim_child *child, bool restarted)
{
    struct sim_self self;

    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != run->parent)
        return 1;
    memset(&self, 0, sizeof self);
    self.run = run;
    self.options = &run->options;
    self.child = child;
    int error = sim_child_prepare(&self);
    if (!error)
        error = sim_child_create(&self, restarted);
    if (error) {
        sim_set(&child->slot->error, (uint64_t)-error);
        return 1;
    }
    self.checked_ns = sim_now_ns();
    sim_set(&child->slot->state, SIM_READY);
    while (!error && sim_get(&run->shared->start_ns) == 0)
        error = sim_child_wait(&self, sim_now_ns() + SIM_POLL_NS);
    if (!error)
        error = sim_child_passes(&self, restarted);
    if (error) {
        sim_set(&child->slot->error, (uint64_t)-error);
        return 1;
    }
    sim_set(&child->slot->state, SIM_FINISHED);
    while (!error && !sim_get(&run->shared->quit))
        error = sim_child_wait(&self, sim_now_ns() + 20 * SIM_POLL_NS);
    wideep_close(&self.writer);
    return error ? 1 : 0;
}

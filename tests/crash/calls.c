#include "calls.h"

#include <string.h>

#define EP_SIZE         5u
#define LAYERS_MAX      2u
#define PHYSICAL_MAX    20u
#define REARRANGE_EVERY 3000u

static const struct wideep_model_config models[2] = {
    {.name = "pairs", .layers = 2, .logical_experts = 7, .physical_experts = 10},
    {.name = "fours", .layers = 1, .logical_experts = 9, .physical_experts = 20},
};

int calls_create(struct wideep_writer **ret, const char *directory, uint32_t role, uint32_t engine)
{
    struct wideep_config config = {.directory = directory,
                                   .instance = "crash",
                                   .role = role,
                                   .engine = engine,
                                   .ep_size = EP_SIZE,
                                   .model_count = 2,
                                   .rearrangement_interval = REARRANGE_EVERY,
                                   .models = {models[0], models[1]}};
    return wideep_create(ret, &config);
}

static struct wideep_pass pass_of(const struct wideep_writer *w, uint32_t model, uint32_t salt)
{
    return (struct wideep_pass){.pass = wideep_load(&w->live->models[model].passes),
                                .model = model,
                                .step = salt,
                                .rearrangement_duration_ns = salt * 3u};
}

/* What is expected is negative exactly where a load is. */
static int record_pass(struct wideep_writer *w, uint32_t model, uint32_t salt, bool mapped, bool negative)
{
    int32_t loads[LAYERS_MAX * PHYSICAL_MAX], map[LAYERS_MAX * PHYSICAL_MAX];
    const struct wideep_pass pass = pass_of(w, model, salt);
    const uint32_t physical = models[model].physical_experts;

    for (uint32_t i = 0; i < models[model].layers * physical; i++) {
        loads[i] = (int32_t)(1 + (salt * 5 + i * i) % 97);
        map[i] = (int32_t)((i + salt) % models[model].logical_experts);
    }
    if (negative) {
        loads[physical - 1] = -5;
        map[1] = -1;
    }
    int result = wideep_record_pass(w, &pass, loads, mapped ? map : NULL);
    return negative && result == -ERANGE ? 0 : result;
}

static int record_eplb(struct wideep_writer *w, uint32_t salt)
{
    const struct wideep_pass pass = pass_of(w, 0, salt);
    const struct wideep_eplb_layer layers[2] = {
        {.layer = 0, .avg_tokens_per_rank = salt + 1, .max_tokens_per_rank = 2 * salt + 2},
        {.layer = 1, .avg_tokens_per_rank = salt + 2, .max_tokens_per_rank = 3 * salt + 9}};
    return wideep_record_eplb(w, &pass, layers, 2);
}

static int record_dbo(struct wideep_writer *w, uint32_t salt, uint32_t phase, uint32_t outcome)
{
    const struct wideep_dbo_stats stats = {.pass = wideep_load(&w->live->dbo_passes),
                                           .phase = phase,
                                           .outcome = outcome,
                                           .ubatches = 4,
                                           .ubatch_tokens = {salt + 1, salt + 2, 3 * salt + 3, 9 * salt + 4}};
    return wideep_record_dbo(w, &stats);
}

static int rearrange(struct wideep_writer *w, uint32_t model, enum wideep_mode mode)
{
    int error = wideep_rearrangement_begin(w, model, mode);
    return error ? error : wideep_rearrangement_end(w, model, NULL);
}

int calls_everything(struct wideep_writer *w, uint32_t salt)
{
    int error = wideep_record_tokens(w, salt + 1, 2 * salt + 1);

    if (w->identity.role == WIDEEP_ROLE_FRONTEND)
        return error;
    error = error ? error : record_pass(w, 0, salt, true, false);
    error = error ? error : record_pass(w, 1, salt, true, true);
    error = error ? error : record_eplb(w, salt);
    for (uint32_t outcome = 0; outcome < WIDEEP_OUTCOMES; outcome++)
        for (uint32_t phase = 0; phase < WIDEEP_PHASES; phase++)
            error = error ? error : record_dbo(w, salt + outcome, phase, outcome);
    error = error ? error : rearrange(w, 0, WIDEEP_SYNC);
    return error ? error : rearrange(w, 1, WIDEEP_ASYNC);
}

static int run_pass(struct wideep_writer **w)
{
    return record_pass(*w, 0, CALLS_SALT, true, false);
}

static int run_pass_fours(struct wideep_writer **w)
{
    return record_pass(*w, 1, CALLS_SALT, true, false);
}

static int run_pass_negative(struct wideep_writer **w)
{
    return record_pass(*w, 0, CALLS_SALT, true, true);
}

static int run_pass_unmapped(struct wideep_writer **w)
{
    return record_pass(*w, 1, CALLS_SALT, false, false);
}

static int run_skip(struct wideep_writer **w)
{
    const struct wideep_pass pass = pass_of(*w, 0, WIDEEP_STEP_UNKNOWN);
    return wideep_skip_pass(*w, &pass);
}

static int run_eplb(struct wideep_writer **w)
{
    return record_eplb(*w, CALLS_SALT);
}

static int run_dbo(struct wideep_writer **w)
{
    return record_dbo(*w, CALLS_SALT, WIDEEP_DECODE, WIDEEP_ENGAGED);
}

static int run_fallout(struct wideep_writer **w)
{
    return record_dbo(*w, CALLS_SALT, WIDEEP_PREFILL, WIDEEP_COORDINATION_FAILURE);
}

static int run_tokens(struct wideep_writer **w)
{
    return wideep_record_tokens(*w, 3 * CALLS_SALT, 5 * CALLS_SALT);
}

static int begin(struct wideep_writer *w)
{
    return wideep_rearrangement_begin(w, 0, WIDEEP_ASYNC);
}

static int run_begin(struct wideep_writer **w)
{
    return begin(*w);
}

static int run_end(struct wideep_writer **w)
{
    return wideep_rearrangement_end(*w, 0, NULL);
}

static int run_abort(struct wideep_writer **w)
{
    return wideep_rearrangement_abort(*w, 0);
}

static int run_check(struct wideep_writer **w)
{
    return wideep_check(*w);
}

/* So that closing has flags to take down. */
static int begin_and_engage(struct wideep_writer *w)
{
    int error = begin(w);
    return error ? error : record_dbo(w, 0, WIDEEP_DECODE, WIDEEP_ENGAGED);
}

static int run_close(struct wideep_writer **w)
{
    wideep_close(w);
    return 0;
}

const struct call calls[] = {
    {"record_pass", WIDEEP_ROLE_RANK, NULL, run_pass},
    {"record_pass_by_vectors", WIDEEP_ROLE_RANK, NULL, run_pass_fours},
    {"record_pass_negative", WIDEEP_ROLE_RANK, NULL, run_pass_negative},
    {"record_pass_without_map", WIDEEP_ROLE_RANK, NULL, run_pass_unmapped},
    {"record_pass_rebalancing", WIDEEP_ROLE_RANK, begin, run_pass},
    {"skip_pass", WIDEEP_ROLE_RANK, NULL, run_skip},
    {"record_eplb", WIDEEP_ROLE_RANK, NULL, run_eplb},
    {"record_dbo_engaged", WIDEEP_ROLE_RANK, NULL, run_dbo},
    {"record_dbo_fallout", WIDEEP_ROLE_RANK, NULL, run_fallout},
    {"rearrangement_begin", WIDEEP_ROLE_RANK, NULL, run_begin},
    {"rearrangement_end", WIDEEP_ROLE_RANK, begin, run_end},
    {"rearrangement_abort", WIDEEP_ROLE_RANK, begin, run_abort},
    {"record_tokens", WIDEEP_ROLE_RANK, NULL, run_tokens},
    {"record_tokens_of_a_front_end", WIDEEP_ROLE_FRONTEND, NULL, run_tokens},
    {"check", WIDEEP_ROLE_RANK, NULL, run_check},
    {"close", WIDEEP_ROLE_RANK, begin_and_engage, run_close},
    {"close_of_a_front_end", WIDEEP_ROLE_FRONTEND, NULL, run_close},
};

const size_t calls_count = sizeof calls / sizeof calls[0];

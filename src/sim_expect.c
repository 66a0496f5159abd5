/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The expectation file: one JSON object, each key a series as the Prometheus text format writes it, labels
 * sorted by name, each value its number. Nothing in here is read from a segment.
 */
#include "sim.h"

#include <inttypes.h>
#include <stdarg.h>

#define SIM_LABEL_SIZE (WIDEEP_MAX_NAME * 6u + 1) /* three bytes for one, two for a backslash: never both */
#define SIM_KEY_SIZE   (SIM_LABEL_SIZE + 512u)

struct sim_out {
    FILE *file;
    const struct sim_run *run;
    bool intended;                                  /* upper bounds, else what was done */
    bool more;                                      /* a pair was written */
    char value[32];                                 /* scratch */
    char models[WIDEEP_MAX_MODELS][SIM_LABEL_SIZE]; /* label values */
};

static const char *const sim_outcome_names[WIDEEP_OUTCOMES] = {
    "engaged", "below_threshold", "idle_rank", "empty_second_ubatch", "coordination_failure", "other"};
static const char *const sim_phase_names[WIDEEP_PHASES] = {"prefill", "decode"};
static const char *const sim_mode_names[WIDEEP_MODES] = {"sync", "async"};
static const char *const sim_ubatch_names[WIDEEP_MAX_UBATCHES] = {"first", "second", "third", "fourth"};
static const char *const sim_duration_les[WIDEEP_DURATION_BUCKETS] = {
    "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "20.0", "30.0", "60.0", "120.0", "+Inf"};
static const char *const sim_balance_les[SIM_BALANCE_BUCKETS] = {"0.1", "0.2", "0.3", "0.4",  "0.5", "0.6",
                                                                 "0.7", "0.8", "0.9", "0.95", "1.0", "+Inf"};

/* Length of the longest well-formed beginning of a UTF-8 sequence at `s` (the Unicode standard's table 3-7);
 * *ret_whole: it is a whole character. At least 1: a byte that begins nothing is replaced alone. */
static size_t sim_utf8_length(const unsigned char *s, size_t left, bool *ret_whole)
{
    unsigned char lead = s[0], low = 0x80, high = 0xbf;
    size_t need;

    *ret_whole = lead < 0x80;
    if (lead < 0xc2 || lead > 0xf4)
        return 1;
    need = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead == 0xe0)
        low = 0xa0;
    else if (lead == 0xed)
        high = 0x9f;
    else if (lead == 0xf0)
        low = 0x90;
    else if (lead == 0xf4)
        high = 0x8f;
    for (size_t i = 1; i < need; i++) {
        if (i >= left || s[i] < low || s[i] > high)
            return i;
        low = 0x80;
        high = 0xbf;
    }
    *ret_whole = true;
    return need;
}

/* A label value as the text format has it. `ret` holds SIM_LABEL_SIZE bytes. */
static void sim_label(char *ret, const char *name)
{
    const unsigned char *s = (const unsigned char *)name;
    for (size_t left = strlen(name), n; left > 0; s += n, left -= n) {
        bool whole;
        n = sim_utf8_length(s, left, &whole);
        if (!whole) {
            memcpy(ret, "\xef\xbf\xbd", 3);
            ret += 3;
        } else if (*s == '\n' || *s == '\\' || *s == '"') {
            *ret++ = '\\';
            *ret++ = *s == '\n' ? 'n' : (char)*s;
        } else {
            memcpy(ret, s, n);
            ret += n;
        }
    }
    *ret = 0;
}

static const char *sim_count(struct sim_out *out, uint64_t value)
{
    (void)snprintf(out->value, sizeof out->value, "%" PRIu64, value);
    return out->value;
}

static const char *sim_number(struct sim_out *out, double value)
{
    (void)snprintf(out->value, sizeof out->value, "%.17g", value);
    return out->value;
}

/* One pair of the object; the key is the formatted text, made fit for JSON. */
static void __attribute__((format(printf, 3, 4)))
sim_out_pair(struct sim_out *out, const char *value, const char *format, ...)
{
    char key[SIM_KEY_SIZE];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    (void)fputs(out->more ? ",\n\"" : "\n\"", out->file);
    out->more = true;
    for (const char *c = key; *c; c++) {
        if (*c == '"' || *c == '\\')
            (void)fprintf(out->file, "\\%c", *c);
        else if ((unsigned char)*c < 0x20)
            (void)fprintf(out->file, "\\u%04x", (unsigned)*c);
        else
            (void)fputc(*c, out->file);
    }
    (void)fprintf(out->file, "\": %s", value);
}

static const struct sim_totals *sim_out_totals(const struct sim_out *out, const struct sim_child *child)
{
    return out->intended ? &child->book->intended : &child->book->done;
}

static void sim_out_dbo(struct sim_out *out, const struct sim_child *child)
{
    const struct sim_totals *totals = sim_out_totals(out, child);
    const char *model = out->models[0];
    unsigned engine = child->engine;

    for (uint32_t outcome = 0; outcome < WIDEEP_OUTCOMES; outcome++) {
        uint64_t both = 0;
        for (uint32_t phase = 0; phase < WIDEEP_PHASES; phase++) {
            both += totals->dbo[phase][outcome];
            sim_out_pair(out, sim_count(out, totals->dbo[phase][outcome]),
                         "wideep_dbo_passes_total{engine=\"%u\",model_name=\"%s\",outcome=\"%s\",phase=\"%s\"}", engine,
                         model, sim_outcome_names[outcome], sim_phase_names[phase]);
        }
        if (outcome >= WIDEEP_EMPTY_SECOND_UBATCH)
            sim_out_pair(out, sim_count(out, both),
                         "vllm:dbo_fallout_total{engine=\"%u\",model_name=\"%s\",reason=\"%s\"}", engine, model,
                         sim_outcome_names[outcome]);
    }
    for (uint32_t i = 0; i < WIDEEP_MAX_UBATCHES; i++) {
        uint64_t count = 0;
        for (uint32_t b = 0; b < WIDEEP_UBATCH_BUCKETS; b++)
            count += totals->ubatch_bucket[i][b];
        if (i >= 2 && count == 0)
            continue; /* two ubatches are the rule: the engine has no more */
        sim_out_pair(out, sim_count(out, count),
                     "vllm:ubatch_token_count_count{engine=\"%u\",model_name=\"%s\",ubatch_index=\"%s\"}", engine,
                     model, sim_ubatch_names[i]);
        sim_out_pair(out, sim_count(out, totals->ubatch_sum[i]),
                     "vllm:ubatch_token_count_sum{engine=\"%u\",model_name=\"%s\",ubatch_index=\"%s\"}", engine, model,
                     sim_ubatch_names[i]);
        count = 0;
        for (uint32_t b = 0; b < WIDEEP_UBATCH_BUCKETS; b++) {
            char le[16] = "+Inf";
            if (b < WIDEEP_UBATCH_BUCKETS - 1)
                (void)snprintf(le, sizeof le, "%u.0", 1u << b);
            count += totals->ubatch_bucket[i][b];
            sim_out_pair(
                out, sim_count(out, count),
                "vllm:ubatch_token_count_bucket{engine=\"%u\",le=\"%s\",model_name=\"%s\",ubatch_index=\"%s\"}", engine,
                le, model, sim_ubatch_names[i]);
        }
    }
}

static void sim_out_rearrangements(struct sim_out *out, const struct sim_child *child, uint32_t m)
{
    const struct sim_model_totals *totals = &sim_out_totals(out, child)->models[m];
    const char *model = out->models[m];
    unsigned engine = child->engine;
    uint64_t all = 0;

    for (uint32_t mode = 0; mode < WIDEEP_MODES; mode++) {
        uint64_t count = 0;
        for (uint32_t b = 0; b < WIDEEP_DURATION_BUCKETS; b++)
            count += totals->rearrangement_bucket[mode][b];
        all += count;
        sim_out_pair(out, sim_count(out, count),
                     "wideep_eplb_rearrangements_by_mode_total{engine=\"%u\",mode=\"%s\",model_name=\"%s\"}", engine,
                     sim_mode_names[mode], model);
    }
    sim_out_pair(out, sim_count(out, all), "vllm:eplb_rearrangements_total{engine=\"%u\",model_name=\"%s\"}", engine,
                 model);
    sim_out_pair(out, sim_count(out, all),
                 "vllm:eplb_rearrangement_duration_seconds_count{engine=\"%u\",model_name=\"%s\"}", engine, model);
    sim_out_pair(out, sim_number(out, (double)totals->rearrangement_sum_ns / 1e9),
                 "vllm:eplb_rearrangement_duration_seconds_sum{engine=\"%u\",model_name=\"%s\"}", engine, model);
    all = 0;
    for (uint32_t b = 0; b < WIDEEP_DURATION_BUCKETS; b++) {
        for (uint32_t mode = 0; mode < WIDEEP_MODES; mode++)
            all += totals->rearrangement_bucket[mode][b];
        sim_out_pair(out, sim_count(out, all),
                     "vllm:eplb_rearrangement_duration_seconds_bucket{engine=\"%u\",le=\"%s\",model_name=\"%s\"}",
                     engine, sim_duration_les[b], model);
    }
}

static void sim_out_tokens(struct sim_out *out, const struct sim_child *child)
{
    const struct sim_totals *totals = sim_out_totals(out, child);
    char frontend[16] = "rank";

    if (child->role == WIDEEP_ROLE_FRONTEND)
        (void)snprintf(frontend, sizeof frontend, "%u", (unsigned)child->frontend);
    sim_out_pair(out, sim_count(out, totals->prompt),
                 "wideep_prompt_tokens_total{engine=\"%u\",frontend=\"%s\",model_name=\"%s\"}", (unsigned)child->engine,
                 frontend, out->models[0]);
    sim_out_pair(out, sim_count(out, totals->generation),
                 "wideep_generation_tokens_total{engine=\"%u\",frontend=\"%s\",model_name=\"%s\"}",
                 (unsigned)child->engine, frontend, out->models[0]);
}

static void sim_out_rank_tokens(struct sim_out *out, uint32_t group, uint32_t m)
{
    const struct sim_options *options = &out->run->options;
    const struct sim_child *children = out->run->children + (size_t)group * out->run->children_per_group;

    for (uint32_t layer = 0; layer < options->models[m].layers; layer++)
        for (uint32_t to = 0; to < options->ep_size; to++) {
            uint64_t tokens = 0;
            for (uint32_t rank = 0; rank < options->ep_size; rank++) {
                const struct sim_book *book = children[rank].book;
                uint64_t *const *planes = out->intended ? book->intended_tokens : book->done_tokens;
                if (!options->replicated || children[rank].tp_rank == 0)
                    tokens += planes[m][(size_t)layer * options->ep_size + to];
            }
            sim_out_pair(out, sim_count(out, tokens),
                         "wideep_eplb_rank_tokens_total{ep_rank=\"%u\",group=\"%u\",layer=\"%u\",model_name=\"%s\"}",
                         (unsigned)to, (unsigned)(group * options->engines), (unsigned)layer, out->models[m]);
        }
}

static void sim_out_joined(struct sim_out *out, uint32_t group, uint32_t m)
{
    const struct sim_joined *joined = &out->run->joined[group][m];
    const char *model = out->models[m];
    unsigned label = group * out->run->options.engines;
    uint64_t count = 0;

    for (uint32_t layer = 0; layer < joined->layers; layer++) {
        sim_out_pair(out, sim_number(out, (double)joined->tokens[layer] / joined->ep_size + joined->reduced_avg[layer]),
                     "wideep_eplb_avg_tokens_total{group=\"%u\",layer=\"%u\",model_name=\"%s\"}", label,
                     (unsigned)layer, model);
        sim_out_pair(out, sim_count(out, joined->max[layer]),
                     "wideep_eplb_max_tokens_total{group=\"%u\",layer=\"%u\",model_name=\"%s\"}", label,
                     (unsigned)layer, model);
        sim_out_pair(out, sim_count(out, joined->passes[layer]),
                     "wideep_eplb_passes_total{group=\"%u\",layer=\"%u\",model_name=\"%s\"}", label, (unsigned)layer,
                     model);
    }
    for (uint32_t b = 0; b < SIM_BALANCE_BUCKETS; b++) {
        count += joined->bucket[b];
        sim_out_pair(out, sim_count(out, count),
                     "wideep_eplb_pass_balancedness_bucket{group=\"%u\",le=\"%s\",model_name=\"%s\"}", label,
                     sim_balance_les[b], model);
    }
    sim_out_pair(out, sim_count(out, count), "wideep_eplb_pass_balancedness_count{group=\"%u\",model_name=\"%s\"}",
                 label, model);
    sim_out_pair(out, sim_number(out, joined->sum), "wideep_eplb_pass_balancedness_sum{group=\"%u\",model_name=\"%s\"}",
                 label, model);
}

/* Ranks of a group count as dead when one died, whether or not it came back: its passes are not whole. */
static bool sim_out_whole(const struct sim_run *run)
{
    bool whole = !run->interrupted;
    for (uint32_t i = 0; i < run->child_count; i++)
        if (run->children[i].role == WIDEEP_ROLE_RANK && run->children[i].dead)
            whole = false;
    return whole;
}

static void sim_out_all(struct sim_out *out)
{
    const struct sim_run *run = out->run;
    const struct sim_options *options = &run->options;

    for (uint32_t i = 0; i < run->child_count; i++) {
        const struct sim_child *child = &run->children[i];
        if (child->role == WIDEEP_ROLE_FRONTEND) {
            sim_out_tokens(out, child);
            continue;
        }
        if (child->tp_rank != 0)
            continue;
        sim_out_dbo(out, child);
        for (uint32_t m = 0; m < options->model_count; m++)
            if (options->models[m].layers > 0)
                sim_out_rearrangements(out, child, m);
        if (options->frontends == 0)
            sim_out_tokens(out, child);
    }
    for (uint32_t group = 0; group < options->groups; group++)
        for (uint32_t m = 0; m < options->model_count; m++) {
            if (options->models[m].layers == 0)
                continue;
            sim_out_rank_tokens(out, group, m);
            if (sim_out_whole(run))
                sim_out_joined(out, group, m);
        }
}

static int sim_expect_file(const struct sim_run *run, const char *path, bool intended)
{
    char temporary[PATH_MAX];
    int n = snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)run->parent);
    if (n < 0 || (size_t)n >= sizeof temporary)
        return -ENAMETOOLONG;
    struct sim_out *out = calloc(1, sizeof *out);
    if (!out)
        return -ENOMEM;
    out->run = run;
    out->intended = intended;
    for (uint32_t m = 0; m < run->options.model_count; m++)
        sim_label(out->models[m], run->options.models[m].name);
    out->file = fopen(temporary, "we");
    int error = out->file ? 0 : -errno;
    if (!error) {
        (void)fputs("{", out->file);
        sim_out_all(out);
        (void)fputs("\n}\n", out->file);
        error = ferror(out->file) ? -EIO : 0;
        if (fclose(out->file) != 0)
            error = -errno;
        if (!error && rename(temporary, path) != 0)
            error = -errno;
        if (error)
            (void)unlink(temporary);
    }
    free(out);
    return error;
}

int sim_expect_write(const struct sim_run *run)
{
    char path[PATH_MAX];
    bool died = run->interrupted;

    if (!run->options.expect)
        return 0;
    for (uint32_t i = 0; i < run->child_count; i++)
        died |= run->children[i].dead;
    int n = snprintf(path, sizeof path, "%s.intended", run->options.expect);
    if (n < 0 || (size_t)n >= sizeof path)
        return -ENAMETOOLONG;
    int error = died ? sim_expect_file(run, path, true) : 0;
    return error ? error : sim_expect_file(run, run->options.expect, false);
}

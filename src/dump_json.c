/* dump_json: segments as one JSON document. Identifiers of 64 bits are strings of hexadecimal digits, because
 * many readers of JSON have doubles only; counts are numbers. */
#include "dump.h"

#include "text.h"
#include "version.h"

#include <inttypes.h>
#include <math.h>

/* Where the writer stands: how deep, and whether the next value follows another. */
static unsigned json_depth;
static bool json_follows;

static void json_string(FILE *out, const char *bytes, size_t length)
{
    (void)fputc('"', out);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\')
            (void)fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            (void)fprintf(out, "\\u%04x", c);
        else
            (void)fputc(c, out);
    }
    (void)fputc('"', out);
}

/* The comma, the line and the key that a value needs before it; key NULL: an element of an array. */
static void json_next(FILE *out, const char *key)
{
    if (json_follows)
        (void)fputc(',', out);
    if (json_depth > 0)
        (void)fprintf(out, "\n%*s", (int)(2 * json_depth), "");
    if (key) {
        json_string(out, key, strlen(key));
        (void)fputs(": ", out);
    }
    json_follows = true;
}

static void json_open(FILE *out, const char *key, char bracket)
{
    json_next(out, key);
    (void)fputc(bracket, out);
    json_depth++;
    json_follows = false;
}

static void json_close(FILE *out, char bracket)
{
    json_depth--;
    if (json_follows)
        (void)fprintf(out, "\n%*s", (int)(2 * json_depth), "");
    (void)fputc(bracket, out);
    json_follows = true;
}

static void json_u64(FILE *out, const char *key, uint64_t value)
{
    json_next(out, key);
    (void)fprintf(out, "%" PRIu64, value);
}

static void json_id(FILE *out, const char *key, uint64_t value)
{
    json_next(out, key);
    (void)fprintf(out, "\"%016" PRIx64 "\"", value);
}

static void json_bool(FILE *out, const char *key, bool value)
{
    json_next(out, key);
    (void)fputs(value ? "true" : "false", out);
}

static void json_null(FILE *out, const char *key)
{
    json_next(out, key);
    (void)fputs("null", out);
}

static void json_double(FILE *out, const char *key, double value)
{
    char text[TEXT_NUMBER_MAX];
    if (!isfinite(value)) {
        json_null(out, key);
        return;
    }
    json_next(out, key);
    size_t length = text_double(text, value);
    (void)fwrite(text, 1, length, out);
}

/* Valid UTF-8; C1 controls escaped, which JSON does not ask for and a terminal is glad of. */
static void json_valid(FILE *out, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] == 0xc2 && i + 1 < length && (unsigned char)text[i + 1] < 0xa0)
            (void)fprintf(out, "\\u%04x", (unsigned char)text[++i]);
        else
            (void)fputc(text[i], out);
}

/* Bytes from outside, made valid as Python's errors='replace' does. NUL is valid there. */
static void json_bytes(FILE *out, const char *key, const char *bytes, size_t length)
{
    char piece[3 * 64 + 1];
    json_next(out, key);
    (void)fputc('"', out);
    for (size_t at = 0; at < length;) {
        unsigned char first = (unsigned char)bytes[at];
        if (first < 0x20 || first == 0x7f || first == '"' || first == '\\') {
            (void)fprintf(out, first == '"' || first == '\\' ? "\\%c" : "\\u%04x", first);
            at++;
            continue;
        }
        /* Up to the next byte of ASCII, or 64 bytes: cut before the beginning of a character, so that none is
         * cut. */
        size_t size = 1;
        while (at + size < length && size < 60 && (unsigned char)bytes[at + size] >= 0x80)
            size++;
        while (size > 57 && at + size < length && ((unsigned char)bytes[at + size] & 0xc0) == 0x80)
            size--;
        json_valid(out, piece, text_repair(piece, sizeof piece, bytes + at, size));
        at += size;
    }
    (void)fputc('"', out);
}

static void json_text(FILE *out, const char *key, const char *text)
{
    json_bytes(out, key, text, strlen(text));
}

static void json_words(FILE *out, const char *key, const uint64_t *words, unsigned count)
{
    json_next(out, key);
    (void)fputc('[', out);
    for (unsigned i = 0; i < count; i++)
        (void)fprintf(out, "%s%" PRIu64, i ? ", " : "", wideep_load(words + i));
    (void)fputc(']', out);
}

/* A histogram as Prometheus has it: cumulative counts by upper bound, count and sum. */
static void json_histogram(FILE *out, const char *key, const uint64_t *buckets, unsigned count, bool unit_ns)
{
    uint64_t total = 0;
    json_open(out, key, '{');
    for (unsigned i = 0; i < count; i++) {
        char bound[32] = "+Inf";
        total += wideep_load(buckets + i);
        if (i + 1 < count)
            (void)snprintf(bound, sizeof bound, "%g",
                           unit_ns ? (double)wideep_duration_bound_ns(i) / 1e9 : (double)wideep_ubatch_bound(i));
        json_u64(out, bound, total);
    }
    json_close(out, '}');
}

/* ---- the parts of a segment --------------------------------------------------------------------------------- */

static void dump_json_identity(FILE *out, const struct dump_file *file, const struct dump_clock *clock)
{
    const struct wideep_identity *id = &file->view.identity;
    char boot[33];

    json_open(out, "identity", '{');
    json_u64(out, "abi_major", id->abi_major);
    json_u64(out, "abi_minor", id->abi_minor);
    json_u64(out, "total_size", id->total_size);
    json_text(out, "instance", id->instance);
    json_text(out, "role", dump_role_name(id->role));
    json_u64(out, "engine", id->engine);
    json_u64(out, "rank", id->rank);
    json_u64(out, "ep_size", id->ep_size);
    json_u64(out, "tp_rank", id->tp_rank);
    json_u64(out, "tp_size", id->tp_size);
    json_u64(out, "dp_rank", id->dp_rank);
    json_u64(out, "dp_size", id->dp_size);
    json_bool(out, "loads_replicated", id->flags & WIDEEP_LOADS_REPLICATED);
    json_id(out, "group", id->group);
    json_id(out, "instance_id", id->instance_id);
    json_id(out, "lineage", id->lineage);
    for (unsigned i = 0; i < 16; i++)
        (void)snprintf(boot + 2 * i, 3, "%02x", id->boot_id[i]);
    json_text(out, "boot_id", boot);
    json_bool(out, "this_boot", dump_same_boot(file, clock));
    json_u64(out, "start_realtime_ns", id->start_realtime_ns);
    json_u64(out, "start_boottime_ns", id->start_boottime_ns);
    json_u64(out, "pid", id->pid);
    json_u64(out, "pid_namespace", id->pid_namespace);
    json_u64(out, "process_start_ticks", id->process_start_ticks);
    json_close(out, '}');
}

static void dump_json_live(FILE *out, const struct dump_file *file)
{
    const struct wideep_live *live = file->view.live;
    uint64_t active = wideep_load(&live->dbo_active), passes = wideep_load(&live->dbo_passes);

    json_open(out, "live", '{');
    json_u64(out, "activity", wideep_load(&live->activity));
    json_u64(out, "closed_ns", wideep_load(&live->closed_ns));
    json_bool(out, "dbo_prefill_active", active & 1);
    json_bool(out, "dbo_decode_active", active & 2);
    if (passes)
        json_u64(out, "dbo_pass", passes - 1);
    else
        json_null(out, "dbo_pass");
    json_u64(out, "dbo_time_ns", wideep_load(&live->dbo_time_ns));
    json_u64(out, "rearrangement_interval", wideep_load(&live->rearrangement_interval));
    json_close(out, '}');
}

static void dump_json_model(FILE *out, const struct dump_file *file, uint32_t m)
{
    const struct wideep_identity *id = &file->view.identity;
    const struct wideep_model *model = &id->models[m];
    const struct wideep_live_model *live = &file->view.live->models[m];
    const struct wideep_totals_model *totals = &file->view.totals->models[m];
    uint64_t passes = wideep_load(&live->passes);

    json_open(out, NULL, '{');
    json_bytes(out, "name", model->name, model->name_length);
    json_u64(out, "layers", model->layers);
    json_u64(out, "logical_experts", model->logical_experts);
    json_u64(out, "physical_experts", model->physical_experts);
    json_open(out, "live", '{');
    if (passes)
        json_u64(out, "pass", passes - 1);
    else
        json_null(out, "pass");
    json_u64(out, "pass_time_ns", wideep_load(&live->pass_time_ns));
    json_u64(out, "rebalancing_since_ns", wideep_load_acquire(&live->rebalancing_since_ns));
    json_text(out, "rebalancing_mode",
              dump_mode_name(wideep_load(&live->rebalancing_mode) == WIDEEP_SYNC    ? 0
                             : wideep_load(&live->rebalancing_mode) == WIDEEP_ASYNC ? 1
                                                                                    : 2));
    json_u64(out, "since_rearrangement", wideep_load(&live->since_rearrangement));
    json_text(out, "recording", dump_recording_name(wideep_load(&live->recording)));
    json_u64(out, "recorded_time_ns", wideep_load(&live->recorded_time_ns));
    json_close(out, '}');
    json_open(out, "totals", '{');
    json_u64(out, "recorded_passes", wideep_load_acquire(&totals->recorded_passes));
    json_u64(out, "rank_tokens", dump_plane_sum(&file->view, m, 0));
    json_u64(out, "expert_tokens", dump_plane_sum(&file->view, m, 1));
    json_open(out, "rearrangements", '{');
    for (uint32_t mode = 0; mode < WIDEEP_MODES; mode++) {
        uint64_t count = 0;
        for (unsigned i = 0; i < WIDEEP_DURATION_BUCKETS; i++)
            count += wideep_load(&totals->rearrangement_bucket[mode][i]);
        json_u64(out, dump_mode_name(mode), count);
    }
    json_close(out, '}');
    json_u64(out, "rearrangement_sum_ns", wideep_load(&totals->rearrangement_sum_ns));
    json_open(out, "rearrangement_seconds", '{');
    for (uint32_t mode = 0; mode < WIDEEP_MODES; mode++)
        json_histogram(out, dump_mode_name(mode), totals->rearrangement_bucket[mode], WIDEEP_DURATION_BUCKETS, true);
    json_close(out, '}');
    json_close(out, '}');
    json_close(out, '}');
}

static void dump_json_totals(FILE *out, const struct dump_file *file)
{
    const struct wideep_totals *totals = file->view.totals;

    json_open(out, "totals", '{');
    json_u64(out, "prompt_tokens", wideep_load(&totals->prompt_tokens));
    json_u64(out, "generation_tokens", wideep_load(&totals->generation_tokens));
    if (file->view.identity.role == WIDEEP_ROLE_RANK) {
        json_open(out, "dbo_passes", '{');
        for (uint32_t phase = 0; phase < WIDEEP_PHASES; phase++) {
            json_open(out, dump_phase_name(phase), '{');
            for (uint32_t outcome = 0; outcome < WIDEEP_OUTCOMES; outcome++)
                json_u64(out, dump_outcome_name(outcome), wideep_load(&totals->dbo_passes[phase][outcome]));
            json_close(out, '}');
        }
        json_close(out, '}');
        json_open(out, "dbo_fallouts", '{');
        for (uint32_t outcome = WIDEEP_FIRST_FALLOUT; outcome < WIDEEP_OUTCOMES; outcome++)
            json_u64(out, dump_outcome_name(outcome),
                     wideep_load(&totals->dbo_passes[WIDEEP_PREFILL][outcome]) +
                         wideep_load(&totals->dbo_passes[WIDEEP_DECODE][outcome]));
        json_close(out, '}');
        json_words(out, "ubatch_token_sum", totals->ubatch_sum, WIDEEP_MAX_UBATCHES);
        json_open(out, "ubatch_tokens", '{');
        for (uint32_t i = 0; i < WIDEEP_MAX_UBATCHES; i++)
            json_histogram(out, dump_ubatch_name(i), totals->ubatch_bucket[i], WIDEEP_UBATCH_BUCKETS, false);
        json_close(out, '}');
    }
    json_close(out, '}');
}

static void dump_json_lost(FILE *out, uint64_t n, enum wideep_read result)
{
    json_open(out, NULL, '{');
    json_u64(out, "record", n);
    json_text(out, "lost", result == WIDEEP_READ_INVALID ? "invalid" : "overrun");
    json_close(out, '}');
}

static void dump_json_eplb(FILE *out, const struct dump_file *file, const struct dump_config *config)
{
    uint64_t head, first = dump_ring_range(&file->view.eplb, config->records, &head);
    uint32_t tokens[WIDEEP_MAX_EP_SIZE];

    json_open(out, "eplb_ring", '{');
    json_u64(out, "written", head);
    json_u64(out, "slots", file->view.eplb.count);
    json_open(out, "records", '[');
    for (uint64_t n = first; n < head; n++) {
        struct wideep_eplb_record r;
        dump_refresh(file, &file->view.eplb, n);
        enum wideep_read result = wideep_eplb_read(&file->view, n, &r, tokens);
        if (result != WIDEEP_READ_OK) {
            dump_json_lost(out, n, result);
            continue;
        }
        json_open(out, NULL, '{');
        json_u64(out, "record", n);
        json_u64(out, "pass", r.pass);
        json_u64(out, "time_ns", r.time_ns);
        json_u64(out, "model", r.model);
        json_u64(out, "layer", r.layer);
        for (unsigned i = 0; i < 5; i++)
            json_bool(out, dump_flag_name(i), r.flags & 1u << i);
        if (r.step == WIDEEP_STEP_UNKNOWN)
            json_null(out, "step");
        else
            json_u64(out, "step", r.step);
        json_double(out, "avg_tokens_per_rank", r.avg_tokens_per_rank);
        json_double(out, "max_tokens_per_rank", r.max_tokens_per_rank);
        json_double(out, "balancedness", r.balancedness);
        json_u64(out, "rearrangement_duration_ns", r.rearrangement_duration_ns);
        json_next(out, "rank_tokens");
        (void)fputc('[', out);
        for (uint32_t i = 0; i < file->view.identity.ep_size; i++)
            (void)fprintf(out, "%s%u", i ? ", " : "", tokens[i]);
        (void)fputc(']', out);
        json_close(out, '}');
    }
    json_close(out, ']');
    json_close(out, '}');
}

static void dump_json_dbo(FILE *out, const struct dump_file *file, const struct dump_config *config)
{
    uint64_t head, first = dump_ring_range(&file->view.dbo, config->records, &head);

    json_open(out, "dbo_ring", '{');
    json_u64(out, "written", head);
    json_u64(out, "slots", file->view.dbo.count);
    json_open(out, "records", '[');
    for (uint64_t n = first; n < head; n++) {
        struct wideep_dbo_record r;
        dump_refresh(file, &file->view.dbo, n);
        enum wideep_read result = wideep_dbo_read(&file->view, n, &r);
        if (result != WIDEEP_READ_OK) {
            dump_json_lost(out, n, result);
            continue;
        }
        json_open(out, NULL, '{');
        json_u64(out, "record", n);
        json_u64(out, "pass", r.pass);
        json_u64(out, "time_ns", r.time_ns);
        json_text(out, "phase", dump_phase_name(r.phase));
        json_bool(out, "prefill_active", r.prefill_active != 0);
        json_bool(out, "decode_active", r.decode_active != 0);
        json_text(out, "outcome", dump_outcome_name(r.outcome));
        if (r.fallout_reason)
            json_text(out, "fallout_reason", dump_outcome_name(r.fallout_reason));
        else
            json_null(out, "fallout_reason");
        json_next(out, "ubatch_tokens");
        (void)fputc('[', out);
        for (uint32_t i = 0; i < r.ubatches; i++)
            (void)fprintf(out, "%s%u", i ? ", " : "", r.ubatch_tokens[i]);
        (void)fputc(']', out);
        json_close(out, '}');
    }
    json_close(out, ']');
    json_close(out, '}');
}

/* ---- the document ------------------------------------------------------------------------------------------- */

void dump_json_begin(FILE *out, const struct dump_config *config, const struct dump_clock *clock)
{
    json_open(out, NULL, '{');
    json_text(out, "version", WIDEEP_VERSION);
    json_text(out, "commit", WIDEEP_COMMIT);
    json_u64(out, "realtime_ns", clock->realtime_ns);
    json_u64(out, "boottime_ns", clock->boottime_ns);
    if (config->directory)
        json_text(out, "directory", config->directory);
    else
        json_null(out, "directory");
    json_open(out, "segments", '[');
}

void dump_json_file(FILE *out, const struct dump_file *file, const struct dump_config *config,
                    const struct dump_clock *clock)
{
    json_open(out, NULL, '{');
    json_text(out, "file", file->path);
    if (file->error[0]) {
        json_text(out, "error", file->error);
        json_close(out, '}');
        return;
    }
    json_text(out, "state", dump_state_name(file->state));
    json_bool(out, "name_matches", file->name_matches);
    json_u64(out, "owner", file->owner);
    dump_json_identity(out, file, clock);
    dump_json_live(out, file);
    dump_json_totals(out, file);
    json_open(out, "models", '[');
    for (uint32_t m = 0; m < file->view.identity.model_count; m++)
        dump_json_model(out, file, m);
    json_close(out, ']');
    if (file->view.eplb.head)
        dump_json_eplb(out, file, config);
    if (file->view.dbo.head)
        dump_json_dbo(out, file, config);
    json_close(out, '}');
}

void dump_json_end(FILE *out, const char *error)
{
    json_close(out, ']');
    if (error)
        json_text(out, "error", error);
    else
        json_null(out, "error");
    json_close(out, '}');
    (void)fputc('\n', out);
}

#include "family.h"

#include "advisor.h"

#include <math.h>

#define SETTLED_NS   1000000000u
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- values ------------------------------------------------------------------------------------------------- */

static struct value absent(void)
{
    return (struct value){0, VALUE_ABSENT};
}

static struct value count(uint64_t value)
{
    return (struct value){value, VALUE_U64};
}

static struct value seconds(uint64_t ns)
{
    return (struct value){ns, VALUE_SECONDS};
}

static struct value number(double value)
{
    return (struct value){wideep_i_double_bits(value), VALUE_F64};
}

/* ---- label values ------------------------------------------------------------------------------------------- */

static const char *const phases[WIDEEP_PHASES] = {"prefill", "decode"};
static const char *const outcomes[WIDEEP_OUTCOMES] = {
    "engaged", "below_threshold", "idle_rank", "empty_second_ubatch", "coordination_failure", "other"};
static const char *const ubatches[WIDEEP_MAX_UBATCHES] = {"first", "second", "third", "fourth"};
static const char *const modes[WIDEEP_MODES] = {"sync", "async"};
static const char *const incomplete_causes[JOIN_CAUSES] = {"dead", "skipped", "lost", "late", "step_mismatch"};
static const char *const kinds[RING_KINDS] = {"eplb", "dbo"};
static const char *const lost_causes[RING_CAUSES] = {"overrun", "torn", "invalid", "late"};
static const char *const states[SEGMENT_STATES] = {"live", "dead", "closed", "rejected", "ignored"};
static const char *const reasons[SEGMENT_REASONS] = {"ok",
                                                     "empty",
                                                     "truncated",
                                                     "bad_magic",
                                                     "bad_endian",
                                                     "bad_word_size",
                                                     "bad_version",
                                                     "bad_size",
                                                     "bad_limit",
                                                     "bad_name",
                                                     "bad_section",
                                                     "not_regular",
                                                     "unreadable",
                                                     "owner",
                                                     "name_mismatch",
                                                     "duplicate_ep_rank",
                                                     "truncated_mapping",
                                                     "over_limit",
                                                     "other_instance",
                                                     "lock_lost"};
const char *const self_codes[SELF_CODES] = {"200", "400", "401", "403", "404", "405", "413",
                                            "414", "429", "431", "500", "503", "505", "other"};
const char *const self_handlers[SELF_HANDLERS] = {"metrics",    "healthy", "ready", "landing", "lb",
                                                  "lb_metrics", "state",   "debug", "other"};
const char *const self_cuts[HTTP_CUTS] = {"slow_sender", "slow_reader", "idle", "evicted"};

static const char *const ubatch_bounds[] = {"1.0",   "2.0",   "4.0",   "8.0",    "16.0",   "32.0",   "64.0",
                                            "128.0", "256.0", "512.0", "1024.0", "2048.0", "4096.0", "8192.0"};
static const char *const rearrangement_bounds[] = {"0.05", "0.1",  "0.25", "0.5",  "1.0",  "2.5",
                                                   "5.0",  "10.0", "20.0", "30.0", "60.0", "120.0"};
static const char *const balancedness_bounds[] = {"0.1", "0.2", "0.3", "0.4",  "0.5", "0.6",
                                                  "0.7", "0.8", "0.9", "0.95", "1.0"};
static const char *const self_bounds[] = {"0.0001", "0.00025", "0.0005", "0.001", "0.0025",
                                          "0.005",  "0.01",    "0.025",  "0.1",   "1.0"};
const uint64_t self_duration_bounds_ns[SELF_DURATION_BUCKETS - 1] = {
    100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 25000000, 100000000, 1000000000};

void self_duration_observe(struct self_durations *durations, uint64_t duration_ns)
{
    unsigned i = 0;

    while (i < SELF_DURATION_BUCKETS - 1 && duration_ns > self_duration_bounds_ns[i])
        i++;
    durations->bucket[i]++;
    durations->sum_ns += duration_ns;
}

/* ---- DBO ---------------------------------------------------------------------------------------------------- */

static struct value dbo_active(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    if (!engine_live(at->engine))
        return absent();
    return count(wideep_load(&at->engine->lead->view.live->dbo_active) >> at->i & 1);
}

static uint64_t dbo_outcome(const struct engine *engine, unsigned phase, unsigned outcome)
{
    return wideep_load(&engine->lead->view.totals->dbo_passes[phase][outcome]);
}

static struct value dbo_fallout(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(dbo_outcome(at->engine, WIDEEP_PREFILL, WIDEEP_FIRST_FALLOUT + at->i) +
                 dbo_outcome(at->engine, WIDEEP_DECODE, WIDEEP_FIRST_FALLOUT + at->i));
}

static struct value dbo_passes(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(dbo_outcome(at->engine, at->i, at->j));
}

static bool ubatch_tokens(const struct family_sources *s, const struct family_at *at, struct family_histogram *ret)
{
    const struct wideep_totals *totals = at->engine->lead->view.totals;
    uint64_t observed = 0;

    (void)s;
    for (unsigned b = 0; b < WIDEEP_UBATCH_BUCKETS; b++)
        observed += ret->bucket[b] = wideep_load(&totals->ubatch_bucket[at->i][b]);
    ret->sum = count(wideep_load(&totals->ubatch_sum[at->i]));
    /* Two ubatches are the rule: further ones only where the engine has them. */
    return at->i < 2 || observed > 0;
}

/* ---- EPLB of an engine -------------------------------------------------------------------------------------- */

static const struct group_slice_layer *window_of(const struct family_at *at)
{
    if (!engine_live(at->engine) || !at->model->shows_group || at->model->group->window[at->layer].passes == 0)
        return NULL;
    return &at->model->group->window[at->layer];
}

static struct value eplb_balancedness(const struct family_sources *s, const struct family_at *at)
{
    const struct group_slice_layer *window = window_of(at);

    (void)s;
    return window && window->max > 0 ? number(window->avg / window->max) : absent();
}

static struct value eplb_max(const struct family_sources *s, const struct family_at *at)
{
    const struct group_slice_layer *window = window_of(at);

    (void)s;
    return window ? number(window->max / window->passes) : absent();
}

static struct value eplb_avg(const struct family_sources *s, const struct family_at *at)
{
    const struct group_slice_layer *window = window_of(at);

    (void)s;
    return window ? number(window->avg / window->passes) : absent();
}

static struct value eplb_rebalancing(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return engine_live(at->engine) ? count(engine_rebalancing(at->engine, at->model->name, NULL, NULL)) : absent();
}

static struct value eplb_blocked(const struct family_sources *s, const struct family_at *at)
{
    bool blocked;

    (void)s;
    (void)engine_rebalancing(at->engine, at->model->name, &blocked, NULL);
    return engine_live(at->engine) ? count(blocked) : absent();
}

static struct value eplb_rebalancing_seconds(const struct family_sources *s, const struct family_at *at)
{
    uint64_t since_ns, now_ns = s->aggregate->now_ns;

    (void)engine_rebalancing(at->engine, at->model->name, NULL, &since_ns);
    if (!engine_live(at->engine))
        return absent();
    return seconds(since_ns != 0 && since_ns < now_ns ? now_ns - since_ns : 0);
}

static const struct wideep_live_model *live_model(const struct family_at *at)
{
    return engine_live(at->engine) ? &at->engine->lead->view.live->models[at->model->index] : NULL;
}

static struct value eplb_overdue(const struct family_sources *s, const struct family_at *at)
{
    const struct wideep_live_model *live = live_model(at);

    (void)s;
    if (!live)
        return absent();
    uint64_t interval = wideep_load(&at->engine->lead->view.live->rearrangement_interval);
    uint64_t since = wideep_load(&live->since_rearrangement);
    return interval == 0 ? absent() : count(since > interval ? since - interval : 0);
}

static struct value eplb_recording(const struct family_sources *s, const struct family_at *at)
{
    const struct wideep_live_model *live = live_model(at);

    (void)s;
    if (!live || wideep_load(&live->recording) == WIDEEP_RECORDING_UNKNOWN)
        return absent();
    return count(wideep_load(&live->recording) == WIDEEP_RECORDING_YES);
}

static const struct wideep_totals_model *totals_model(const struct family_at *at)
{
    return &at->engine->lead->view.totals->models[at->model->index];
}

static uint64_t rearrangements(const struct family_at *at, unsigned mode)
{
    uint64_t sum = 0;

    for (unsigned b = 0; b < WIDEEP_DURATION_BUCKETS; b++)
        sum += wideep_load(&totals_model(at)->rearrangement_bucket[mode][b]);
    return sum;
}

static struct value eplb_rearrangements(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(rearrangements(at, WIDEEP_SYNC) + rearrangements(at, WIDEEP_ASYNC));
}

static struct value eplb_rearrangements_by_mode(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(rearrangements(at, at->i));
}

static bool eplb_durations(const struct family_sources *s, const struct family_at *at, struct family_histogram *ret)
{
    (void)s;
    for (unsigned b = 0; b < WIDEEP_DURATION_BUCKETS; b++)
        ret->bucket[b] = wideep_load(&totals_model(at)->rearrangement_bucket[WIDEEP_SYNC][b]) +
                         wideep_load(&totals_model(at)->rearrangement_bucket[WIDEEP_ASYNC][b]);
    ret->sum = seconds(wideep_load(&totals_model(at)->rearrangement_sum_ns));
    return true;
}

/* ---- EPLB of a group ---------------------------------------------------------------------------------------- */

static struct value group_avg(const struct family_sources *s, const struct family_at *at)
{
    const struct group_layer *layer = &at->group->layer[at->layer];

    (void)s;
    return number((double)layer->tokens / at->group->ep_size + layer->reduced_avg);
}

static struct value group_max(const struct family_sources *s, const struct family_at *at)
{
    const struct group_layer *layer = &at->group->layer[at->layer];

    (void)s;
    return number((double)layer->max + layer->reduced_max);
}

static struct value group_passes(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(at->group->layer[at->layer].passes);
}

static bool group_balancedness(const struct family_sources *s, const struct family_at *at, struct family_histogram *ret)
{
    (void)s;
    memcpy(ret->bucket, at->group->balancedness_bucket, sizeof at->group->balancedness_bucket);
    ret->sum = number(at->group->balancedness_sum);
    return true;
}

static struct value group_incomplete(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(at->group->incomplete[at->i]);
}

static struct value group_tokens(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(group_rank_tokens(at->group, at->layer, at->ep_rank));
}

static struct value group_cost(const struct family_sources *s, const struct family_at *at)
{
    double avg = 0, max = 0;

    (void)s;
    for (uint32_t l = 0; l < at->group->layers; l++) {
        avg += at->group->window[l].avg;
        max += at->group->window[l].max;
    }
    return at->group->seen > 0 && max > 0 ? number(1 - avg / max) : absent();
}

/* Of a group that lives, where it is known. */
static struct value advised(const struct group *group, double value)
{
    return group->seen == 0 || isnan(value) ? absent() : number(value);
}

static struct value advice_achievable(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return at->group->advice ? advised(at->group, at->group->advice->achievable[at->layer]) : absent();
}

static struct value advice_gain(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return at->group->advice ? advised(at->group, at->group->advice->gain) : absent();
}

static struct value advice_drift(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return at->group->advice ? advised(at->group, at->group->advice->drift) : absent();
}

static struct value group_ep_size(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(at->group->ep_size);
}

static struct value group_seen(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return count(at->group->seen);
}

static struct value expert_tokens(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    if (!at->group->expert_tokens || at->group->seen == 0)
        return absent();
    return number(at->group->expert_tokens[(size_t)at->layer * at->group->experts + at->expert]);
}

/* ---- tokens and ranks --------------------------------------------------------------------------------------- */

static struct value rate(const struct engine *engine, double value)
{
    for (uint32_t i = 0; i < engine->source_count; i++)
        if (segment_serves_gauges(engine->sources[i].segment))
            return number(value);
    return absent();
}

static struct value prompt_rate(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return rate(at->engine, at->engine->prompt_rate);
}

static struct value generation_rate(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return rate(at->engine, at->engine->generation_rate);
}

/* A rank is attached a moment before its engine's front ends may be: until it is clear that there are none, a zero of
 * it would be a series that nobody feeds. */
static struct value source_tokens(const struct family_sources *s, const struct family_at *at, const uint64_t *word)
{
    uint64_t tokens = wideep_load(word);
    bool unsettled = at->source->is_rank && s->aggregate->now_ns - at->source->segment->attached_ns < SETTLED_NS;

    return tokens == 0 && unsettled ? absent() : count(tokens);
}

static struct value prompt_tokens(const struct family_sources *s, const struct family_at *at)
{
    return source_tokens(s, at, &at->source->segment->view.totals->prompt_tokens);
}

static struct value generation_tokens(const struct family_sources *s, const struct family_at *at)
{
    return source_tokens(s, at, &at->source->segment->view.totals->generation_tokens);
}

static struct value rank_up(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    return at->segment->state == SEGMENT_CLOSED ? absent() : count(at->segment->state == SEGMENT_LIVE);
}

static struct value rank_last_pass(const struct family_sources *s, const struct family_at *at)
{
    uint64_t newest_ns = 0;

    if (!segment_serves_gauges(at->segment))
        return absent();
    for (uint32_t m = 0; m < at->segment->view.identity.model_count; m++) {
        uint64_t time_ns = wideep_load(&at->segment->view.live->models[m].pass_time_ns);
        newest_ns = time_ns > newest_ns ? time_ns : newest_ns;
    }
    uint64_t dbo_ns = wideep_load(&at->segment->view.live->dbo_time_ns);
    newest_ns = dbo_ns > newest_ns ? dbo_ns : newest_ns;
    /* Milliseconds: the offset between the clocks is no better known. */
    return newest_ns == 0 ? absent()
                          : number((double)((int64_t)(newest_ns / 1000000) + s->self->realtime_offset_ms) / 1000);
}

/* ---- the exporter itself ------------------------------------------------------------------------------------ */

static struct value self_segments(const struct family_sources *s, const struct family_at *at)
{
    bool possible = at->i == SEGMENT_IGNORED    ? at->j == SEGMENT_OTHER_INSTANCE
                    : at->i == SEGMENT_REJECTED ? at->j != WIDEEP_OK && at->j < SEGMENT_OTHER_INSTANCE
                    : at->i == SEGMENT_LIVE     ? at->j == WIDEEP_OK || at->j == SEGMENT_LOCK_LOST
                                                : at->j == WIDEEP_OK;
    return possible ? count(s->self->segments[at->i][at->j]) : absent();
}

static struct value self_records(const struct family_sources *s, const struct family_at *at)
{
    return count(s->aggregate->counts.read[at->i]);
}

static struct value self_records_lost(const struct family_sources *s, const struct family_at *at)
{
    /* Only what is joined can be late. */
    return at->i == RING_DBO && at->j == RING_LATE ? absent() : count(s->aggregate->counts.lost[at->i][at->j]);
}

static struct value self_directory(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->aggregate->set->directory_error == 0);
}

static struct value self_dropped(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->series_dropped);
}

static bool self_histogram(const struct self_durations *durations, struct family_histogram *ret)
{
    memcpy(ret->bucket, durations->bucket, sizeof durations->bucket);
    ret->sum = seconds(durations->sum_ns);
    return true;
}

static bool self_collect(const struct family_sources *s, const struct family_at *at, struct family_histogram *ret)
{
    (void)at;
    return self_histogram(&s->self->collect, ret);
}

static bool self_render(const struct family_sources *s, const struct family_at *at, struct family_histogram *ret)
{
    return self_histogram(&s->self->render[at->i], ret);
}

static bool self_compress(const struct family_sources *s, const struct family_at *at, struct family_histogram *ret)
{
    (void)at;
    return self_histogram(&s->self->compress, ret);
}

static struct value self_snapshot(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return number((double)s->self->snapshot_unix_ms / 1000);
}

/* Most pairs of handler and code never happen. Those that alerts are made of are there from the start. */
static struct value self_http(const struct family_sources *s, const struct family_at *at)
{
    static const char *const expected[] = {"200", "500", "503"};
    uint64_t requests = s->self->http.requests[at->i][at->j];
    bool serve = requests > 0;

    for (unsigned i = 0; i < COUNT(expected) && at->i == 0; i++)
        serve = serve || strcmp(self_codes[at->j], expected[i]) == 0;
    return serve ? count(requests) : (struct value){0, VALUE_ABSENT};
}

static struct value self_in_flight(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->http.in_flight);
}

static struct value self_response_bytes(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->http.response_bytes);
}

static struct value self_connections(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->http.connections);
}

static struct value self_accepted(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->http.accepted);
}

static struct value self_cut(const struct family_sources *s, const struct family_at *at)
{
    return count(s->self->http.cut[at->i]);
}

static struct value self_out_of_descriptors(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->http.out_of_descriptors);
}

static struct value self_web_config(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->http.reload_successful);
}

static struct value self_web_config_failures(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->http.reload_failures);
}

static struct value self_build(const struct family_sources *s, const struct family_at *at)
{
    (void)s;
    (void)at;
    return count(1);
}

static const char *build_version(const struct family_sources *s)
{
    return s->self->version;
}

static const char *build_commit(const struct family_sources *s)
{
    return s->self->commit;
}

static struct value process_cpu(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return seconds(s->self->cpu_ns);
}

static struct value process_resident(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->resident_bytes);
}

static struct value process_virtual(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->virtual_bytes);
}

static struct value process_virtual_max(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return s->self->virtual_max_bytes == UINT64_MAX ? number((double)UINT64_MAX) : count(s->self->virtual_max_bytes);
}

static struct value process_open_fds(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->open_fds);
}

static struct value process_max_fds(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->max_fds);
}

static struct value process_received(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->received_bytes);
}

static struct value process_transmitted(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return count(s->self->transmitted_bytes);
}

static struct value process_start(const struct family_sources *s, const struct family_at *at)
{
    (void)at;
    return number(s->self->start_time_seconds);
}

/* ---- the table ---------------------------------------------------------------------------------------------- */

#define LABEL(label_name, list)       \
    {                                 \
        label_name, list, COUNT(list) \
    }
#define BOUNDS(list) .bounds = (list), .bound_count = COUNT(list)

/* What must not fall to the limit on series comes first, so the exporter's word on itself; the widest families last. */
const struct family families[] = {
    {"wideep_build_info", FAMILY_GAUGE, SCOPE_EXPORTER, "Always 1; the labels say what was built.",
     .facts = {{"version", build_version}, {"commit", build_commit}}, .get = self_build},
    {"wideep_shm_directory_readable", FAMILY_GAUGE, SCOPE_EXPORTER,
     "Whether the shared-memory directory could be read at the newest scan (1) or not (0).", .get = self_directory},
    {"wideep_segments",
     FAMILY_GAUGE,
     SCOPE_EXPORTER,
     "Segment files by state, and why they are not served.",
     {LABEL("state", states), LABEL("reason", reasons)},
     .get = self_segments},
    {"wideep_records_total",
     FAMILY_COUNTER,
     SCOPE_EXPORTER,
     "Records read from the rings.",
     {LABEL("kind", kinds)},
     .get = self_records},
    {"wideep_records_lost_total",
     FAMILY_COUNTER,
     SCOPE_EXPORTER,
     "Records that could not be used: overwritten before or while they were read, invalid, or of a pass that was already "
     "closed. Totals written by ranks do not suffer from it.",
     {LABEL("kind", kinds), LABEL("cause", lost_causes)},
     .get = self_records_lost},
    {"wideep_series_dropped", FAMILY_GAUGE, SCOPE_EXPORTER,
     "Series over the limit of --limit.series that the collection before this one did not serve.", .get = self_dropped},
    {"wideep_snapshot_timestamp_seconds", FAMILY_GAUGE, SCOPE_EXPORTER,
     "Unix time at which these figures were collected.", .get = self_snapshot},
    {"wideep_collect_duration_seconds", FAMILY_HISTOGRAM, SCOPE_EXPORTER, "Time that a collection took.",
     .histogram = self_collect, BOUNDS(self_bounds)},
    {"wideep_render_duration_seconds",
     FAMILY_HISTOGRAM,
     SCOPE_EXPORTER,
     "Time that rendering a whole page took, once for each collection and format that was asked for.",
     {{"format", page_rendering_names, PAGE_RENDERINGS}},
     .histogram = self_render,
     BOUNDS(self_bounds)},
    {"wideep_compress_duration_seconds", FAMILY_HISTOGRAM, SCOPE_EXPORTER,
     "Time that compressing a whole page took, likewise.", .histogram = self_compress, BOUNDS(self_bounds)},
    {"wideep_http_requests_total",
     FAMILY_COUNTER,
     SCOPE_EXPORTER,
     "HTTP requests by what answered them and the status code.",
     {LABEL("handler", self_handlers), LABEL("code", self_codes)},
     .get = self_http},
    {"wideep_http_requests_in_flight", FAMILY_GAUGE, SCOPE_EXPORTER, "HTTP requests being answered.",
     .get = self_in_flight},
    {"wideep_http_response_bytes_total", FAMILY_COUNTER, SCOPE_EXPORTER,
     "Bytes of the bodies of HTTP responses, as compressed and before encryption.", .get = self_response_bytes},
    {"wideep_http_connections", FAMILY_GAUGE, SCOPE_EXPORTER, "Connections that are open.", .get = self_connections},
    {"wideep_http_connections_accepted_total", FAMILY_COUNTER, SCOPE_EXPORTER, "Connections that were accepted.",
     .get = self_accepted},
    {"wideep_http_connections_cut_total",
     FAMILY_COUNTER,
     SCOPE_EXPORTER,
     "Connections cut off: a request or a response took too long, nothing was asked for long, or others needed the room.",
     {LABEL("cause", self_cuts)},
     .get = self_cut},
    {"wideep_http_out_of_descriptors_total", FAMILY_COUNTER, SCOPE_EXPORTER,
     "Times that no connection could be accepted for want of file descriptors or memory.",
     .get = self_out_of_descriptors},
    {"wideep_web_config_reload_successful", FAMILY_GAUGE, SCOPE_EXPORTER,
     "Whether the newest web configuration is in use (1), or one before it because it is faulty (0).",
     .get = self_web_config},
    {"wideep_web_config_reload_failures_total", FAMILY_COUNTER, SCOPE_EXPORTER,
     "Web configurations that were faulty and not used.", .get = self_web_config_failures},
    {"process_cpu_seconds_total", FAMILY_COUNTER, SCOPE_EXPORTER, "Total user and system CPU time spent in seconds.",
     .get = process_cpu},
    {"process_open_fds", FAMILY_GAUGE, SCOPE_EXPORTER, "Number of open file descriptors.", .get = process_open_fds},
    {"process_max_fds", FAMILY_GAUGE, SCOPE_EXPORTER, "Maximum number of open file descriptors.",
     .get = process_max_fds},
    {"process_virtual_memory_bytes", FAMILY_GAUGE, SCOPE_EXPORTER, "Virtual memory size in bytes.",
     .get = process_virtual},
    {"process_virtual_memory_max_bytes", FAMILY_GAUGE, SCOPE_EXPORTER,
     "Maximum amount of virtual memory available in bytes.", .get = process_virtual_max},
    {"process_resident_memory_bytes", FAMILY_GAUGE, SCOPE_EXPORTER, "Resident memory size in bytes.",
     .get = process_resident},
    {"process_network_receive_bytes_total", FAMILY_COUNTER, SCOPE_EXPORTER,
     "Number of bytes received by the process over the network.", .get = process_received},
    {"process_network_transmit_bytes_total", FAMILY_COUNTER, SCOPE_EXPORTER,
     "Number of bytes sent by the process over the network.", .get = process_transmitted},
    {"process_start_time_seconds", FAMILY_GAUGE, SCOPE_EXPORTER,
     "Start time of the process since unix epoch in seconds.", .get = process_start},
    {"vllm:dbo_active",
     FAMILY_GAUGE,
     SCOPE_ENGINE,
     "Whether the newest Dual Batch Overlap pass had this phase and was engaged (1) or not (0).",
     {LABEL("phase", phases)},
     .get = dbo_active},
    {"vllm:dbo_fallout_total",
     FAMILY_COUNTER,
     SCOPE_ENGINE,
     "Passes in which Dual Batch Overlap dropped out; too few tokens or an idle rank are no fallout.",
     {{"reason", outcomes + WIDEEP_FIRST_FALLOUT, WIDEEP_OUTCOMES - WIDEEP_FIRST_FALLOUT}},
     .get = dbo_fallout},
    {"vllm:ubatch_token_count",
     FAMILY_HISTOGRAM,
     SCOPE_ENGINE,
     "Tokens of the engine's first rank in each micro-batch of the passes with Dual Batch Overlap, padding left out.",
     {LABEL("ubatch_index", ubatches)},
     .histogram = ubatch_tokens,
     BOUNDS(ubatch_bounds)},
    {"vllm:eplb_balancedness_ratio", FAMILY_GAUGE, SCOPE_ENGINE_LAYER,
     "Average over maximum tokens per EP rank: sum of averages over sum of maxima of the passes in the window; absent "
     "without tokens. Of the whole group, repeated under each of its engines.",
     .get = eplb_balancedness},
    {"vllm:eplb_max_tokens_per_rank", FAMILY_GAUGE, SCOPE_ENGINE_LAYER,
     "Tokens per forward pass of the most loaded EP rank, mean over the window; scaled up where this exporter sees only "
     "some ranks of the group.",
     .get = eplb_max},
    {"vllm:eplb_avg_tokens_per_rank", FAMILY_GAUGE, SCOPE_ENGINE_LAYER,
     "Tokens per forward pass and EP rank, mean over the window; scaled up where this exporter sees only some ranks of "
     "the group.",
     .get = eplb_avg},
    {"vllm:eplb_rebalancing", FAMILY_GAUGE, SCOPE_ENGINE_MODEL,
     "Whether an expert rearrangement is under way (1) or not (0) on any live rank of the engine.",
     .get = eplb_rebalancing},
    {"vllm:eplb_rearrangements_total", FAMILY_COUNTER, SCOPE_ENGINE_MODEL,
     "Expert rearrangements that were completed, both modes.", .get = eplb_rearrangements},
    {"vllm:eplb_rearrangement_duration_seconds", FAMILY_HISTOGRAM, SCOPE_ENGINE_MODEL,
     "Duration of completed expert rearrangements, both modes.", .histogram = eplb_durations,
     BOUNDS(rearrangement_bounds)},
    {"vllm:prompt_throughput_toks_per_s", FAMILY_GAUGE, SCOPE_ENGINE_RATE,
     "Prompt tokens per second over the last whole throughput interval; 0 until the first one ends.",
     .get = prompt_rate},
    {"vllm:generation_throughput_toks_per_s", FAMILY_GAUGE, SCOPE_ENGINE_RATE,
     "Generated tokens per second over the last whole throughput interval; 0 until the first one ends.",
     .get = generation_rate},
    {"wideep_dbo_passes_total",
     FAMILY_COUNTER,
     SCOPE_ENGINE,
     "Passes by what became of Dual Batch Overlap in them.",
     {LABEL("phase", phases), LABEL("outcome", outcomes)},
     .get = dbo_passes},
    {"wideep_eplb_rearrangements_by_mode_total",
     FAMILY_COUNTER,
     SCOPE_ENGINE_MODEL,
     "Completed expert rearrangements: a sync one blocks the engine, an async one does not.",
     {LABEL("mode", modes)},
     .get = eplb_rearrangements_by_mode},
    {"wideep_eplb_blocked", FAMILY_GAUGE, SCOPE_ENGINE_MODEL,
     "Whether a synchronous rearrangement blocks the engine now (1) or not (0).", .get = eplb_blocked},
    {"wideep_eplb_rebalancing_seconds", FAMILY_GAUGE, SCOPE_ENGINE_MODEL,
     "How long the rearrangement under way has been running, 0 when there is none.", .get = eplb_rebalancing_seconds},
    {"wideep_eplb_passes_overdue", FAMILY_GAUGE, SCOPE_ENGINE_MODEL,
     "Passes beyond the configured interval without a rearrangement: one that never comes shows here.",
     .get = eplb_overdue},
    {"wideep_eplb_recording", FAMILY_GAUGE, SCOPE_ENGINE_MODEL,
     "Whether the engine recorded the loads of its newest pass (1) or not (0): while it does not, the EPLB gauges stand "
     "still.",
     .get = eplb_recording},
    {"wideep_prompt_tokens_total", FAMILY_COUNTER, SCOPE_SOURCE, "Prompt tokens, by front end of the engine.",
     .get = prompt_tokens},
    {"wideep_generation_tokens_total", FAMILY_COUNTER, SCOPE_SOURCE, "Generated tokens, by front end of the engine.",
     .get = generation_tokens},
    {"wideep_rank_up", FAMILY_GAUGE, SCOPE_RANK,
     "Whether the rank's process lives (1) or died (0); absent once it has closed its segment in order.",
     .get = rank_up},
    {"wideep_rank_last_pass_timestamp_seconds", FAMILY_GAUGE, SCOPE_RANK,
     "Unix time of the rank's newest forward pass.", .get = rank_last_pass},
    {"wideep_ep_size", FAMILY_GAUGE, SCOPE_GROUP, "EP ranks of the group.", .get = group_ep_size},
    {"wideep_ep_ranks_seen", FAMILY_GAUGE, SCOPE_GROUP, "Live EP ranks of the group that this exporter reads.",
     .get = group_seen},
    {"wideep_eplb_pass_balancedness", FAMILY_HISTOGRAM, SCOPE_GROUP,
     "Average over maximum tokens per EP rank of single passes and layers, those with tokens. Counts from the start of "
     "this exporter.",
     .histogram = group_balancedness, BOUNDS(balancedness_bounds)},
    {"wideep_eplb_passes_incomplete_total",
     FAMILY_COUNTER,
     SCOPE_GROUP,
     "Passes that could not be joined over all ranks, by cause; they enter no other figure. Counts from the start of this "
     "exporter.",
     {LABEL("cause", incomplete_causes)},
     .get = group_incomplete},
    {"wideep_eplb_imbalance_cost_ratio", FAMILY_GAUGE, SCOPE_GROUP,
     "Share of expert time lost to the slowest EP rank: 1 - sum of averages / sum of maxima of the passes in the window, "
     "over all layers. Attention, communication and the network are not in it.",
     .get = group_cost},
    {"wideep_eplb_rearrangement_gain_ratio", FAMILY_GAUGE, SCOPE_GROUP,
     "Share of that cost that rearranging the experts now, for the loads of the newest --advisor.interval, would win "
     "back. What differs from pass to pass stays lost, and what the rearrangement itself costs is not in it.",
     .get = advice_gain},
    {"wideep_eplb_drift_ratio", FAMILY_GAUGE, SCOPE_GROUP,
     "How far the tokens per logical expert have moved since the last rearrangement, or since the exporter began to read "
     "the group: total variation distance, mean over layers. Few tokens differ by chance.",
     .get = advice_drift},
    {"wideep_eplb_achievable_balancedness", FAMILY_GAUGE, SCOPE_GROUP_LAYER,
     "Average over maximum tokens per EP rank that a rearrangement for the newest --advisor.interval would reach with as "
     "many physical experts; an upper bound, as it evens out the interval's sums and not single passes.",
     .get = advice_achievable},
    {"wideep_eplb_avg_tokens_total", FAMILY_COUNTER, SCOPE_GROUP_LAYER,
     "Sum over joined passes of the tokens per EP rank. Its rate over that of wideep_eplb_max_tokens_total is the "
     "balancedness of any window. Counts from the start of this exporter.",
     .get = group_avg},
    {"wideep_eplb_max_tokens_total", FAMILY_COUNTER, SCOPE_GROUP_LAYER,
     "Sum over joined passes of the tokens of the most loaded EP rank. Counts from the start of this exporter.",
     .get = group_max},
    {"wideep_eplb_passes_total", FAMILY_COUNTER, SCOPE_GROUP_LAYER,
     "Joined passes. Counts from the start of this exporter.", .get = group_passes},
    {"wideep_eplb_rank_tokens_total", FAMILY_COUNTER, SCOPE_GROUP_RANK,
     "Tokens that the ranks seen by this exporter routed to an EP rank; summable across pods. When one of those ranks is "
     "deleted, the count starts again at 0.",
     .get = group_tokens},
    {"vllm:expert_load_per_expert_tokens_DEBUG", FAMILY_GAUGE, SCOPE_EXPERT,
     "Tokens per forward pass of a logical expert, mean over the window. High cardinality: on request and for a limited "
     "time, under the group's first engine.",
     .get = expert_tokens},
};

const size_t family_count = COUNT(families);

const char *family_type_name(enum family_type type)
{
    static const char *const names[] = {"gauge", "counter", "histogram"};
    return names[type];
}

/* ---- the walk ----------------------------------------------------------------------------------------------- */

/* One object: all combinations of the family's own labels. */
static void walk_labels(const struct family *family, struct family_at *at, family_visit *visit, void *context)
{
    if (!family->labels[1].name) {
        visit(context, family, at, &at->i, family->labels[0].name ? family->labels[0].count : 1);
        at->i = 0;
        return;
    }
    for (at->i = 0; at->i < family->labels[0].count; at->i++)
        visit(context, family, at, &at->j, family->labels[1].count);
    at->i = at->j = 0;
}

/* `count` objects that follow each other by the index: a row of series, unless the family has labels of its own. */
static void walk_row(const struct family *family, struct family_at *at, uint32_t *index, uint32_t count,
                     family_visit *visit, void *context)
{
    if (!family->labels[0].name) {
        visit(context, family, at, index, count);
        return;
    }
    for (*index = 0; *index < count; ++*index)
        walk_labels(family, at, visit, context);
}

static void walk_engine_models(const struct family *family, struct family_at *at, family_visit *visit, void *context)
{
    for (uint32_t m = 0; m < at->engine->model_count; m++) {
        at->model = &at->engine->models[m];
        walk_row(family, at, &at->layer, family->scope == SCOPE_ENGINE_LAYER ? at->model->group->layers : 1, visit,
                 context);
        at->layer = 0;
    }
}

static void walk_engine(const struct family *family, const struct engine *engine, family_visit *visit, void *context)
{
    struct family_at at = {.engine = engine};

    switch (family->scope) {
    case SCOPE_ENGINE:
        if (engine->lead)
            walk_labels(family, &at, visit, context);
        break;
    case SCOPE_ENGINE_RATE: walk_labels(family, &at, visit, context); break;
    case SCOPE_SOURCE:
        for (uint32_t i = 0; i < engine->source_count; i++) {
            at.source = &engine->sources[i];
            walk_labels(family, &at, visit, context);
        }
        break;
    case SCOPE_RANK:
        for (uint32_t i = 0; i < engine->rank_count; i++) {
            at.segment = engine->ranks[i];
            walk_labels(family, &at, visit, context);
        }
        break;
    default: walk_engine_models(family, &at, visit, context);
    }
}

static void walk_group(const struct family *family, const struct aggregate *aggregate, const struct group *group,
                       family_visit *visit, void *context)
{
    struct family_at at = {.group = group};

    switch (family->scope) {
    case SCOPE_GROUP: walk_labels(family, &at, visit, context); break;
    case SCOPE_GROUP_LAYER: walk_row(family, &at, &at.layer, group->layers, visit, context); break;
    case SCOPE_GROUP_RANK:
        for (at.layer = 0; at.layer < group->layers; at.layer++)
            walk_row(family, &at, &at.ep_rank, group->ep_size, visit, context);
        break;
    default:
        for (at.layer = 0; at.layer < group->layers; at.layer++)
            if (layer_set_has(&aggregate->expert_layers, at.layer))
                walk_row(family, &at, &at.expert, group->experts, visit, context);
    }
}

void family_walk(const struct family_sources *sources, family_visit *visit, void *context)
{
    const struct aggregate *aggregate = sources->aggregate;

    for (size_t f = 0; f < family_count; f++) {
        const struct family *family = &families[f];
        if (family->scope == SCOPE_EXPORTER) {
            struct family_at at = {0};
            walk_labels(family, &at, visit, context);
        } else if (family->scope >= SCOPE_GROUP) {
            if (family->scope == SCOPE_EXPERT && !aggregate->experts_wanted)
                continue;
            for (const struct group *group = aggregate->groups; group; group = group->next)
                if (!group->hidden)
                    walk_group(family, aggregate, group, visit, context);
        } else {
            for (const struct engine *engine = aggregate->engines; engine; engine = engine->next)
                walk_engine(family, engine, visit, context);
        }
    }
}

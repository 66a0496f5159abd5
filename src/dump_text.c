/* dump_text: a segment for human eyes. */
#include "dump.h"

#include "text.h"

#include <inttypes.h>

#define DUMP_ROW "  %-13s "

/* Characters that are valid UTF-8 and still no text: C1 controls, and what changes the direction of what
 * follows. */
static bool dump_text_harmful(uint32_t c)
{
    return (c >= 0x80 && c < 0xa0) || c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2066 && c <= 0x2069) || c == 0xfeff || (c >= 0xe0000 && c <= 0xe0fff);
}

void dump_text_escaped(FILE *out, const char *bytes, size_t length)
{
    char piece[3 * 64 + 1];

    for (size_t at = 0; at < length;) {
        unsigned char first = (unsigned char)bytes[at];
        if (first < 0x20 || first == 0x7f || first == '\\' || first == '"') {
            (void)fprintf(out, first == '\\' || first == '"' ? "\\%c" : "\\x%02x", first);
            at++;
            continue;
        }
        if (first < 0x80) {
            (void)fputc(first, out);
            at++;
            continue;
        }
        /* One character, if it is one: else repairing changes it. */
        size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
        if (size > length - at || text_repair(piece, sizeof piece, bytes + at, size) != size ||
            memcmp(piece, bytes + at, size) != 0) {
            (void)fprintf(out, "\\x%02x", first);
            at++;
            continue;
        }
        uint32_t c = first & (0x7fu >> size);
        for (size_t i = 1; i < size; i++)
            c = c << 6 | ((unsigned char)bytes[at + i] & 0x3fu);
        if (dump_text_harmful(c))
            (void)fprintf(out, c > 0xffff ? "\\U%08x" : "\\u%04x", (unsigned)c);
        else
            (void)fwrite(bytes + at, 1, size, out);
        at += size;
    }
}

static void dump_text_duration(FILE *out, uint64_t ns)
{
    double s = (double)ns / 1e9;
    if (s < 1e-3)
        (void)fprintf(out, "%.1f us", s * 1e6);
    else if (s < 1)
        (void)fprintf(out, "%.1f ms", s * 1e3);
    else if (s < 120)
        (void)fprintf(out, "%.2f s", s);
    else if (s < 7200)
        (void)fprintf(out, "%.0f min", s / 60);
    else if (s < 172800)
        (void)fprintf(out, "%.1f h", s / 3600);
    else
        (void)fprintf(out, "%.1f days", s / 86400);
}

/* A CLOCK_BOOTTIME of the segment as a distance from now. */
static void dump_text_ago(FILE *out, const struct dump_file *file, const struct dump_clock *clock, uint64_t ns)
{
    if (!dump_same_boot(file, clock)) {
        (void)fputs("before the host's last start", out);
    } else if (ns > clock->boottime_ns) {
        (void)fputs("just now", out);
    } else {
        dump_text_duration(out, clock->boottime_ns - ns);
        (void)fputs(" ago", out);
    }
}

static void dump_text_model_name(FILE *out, const struct wideep_model *model)
{
    (void)fputc('"', out);
    dump_text_escaped(out, model->name, model->name_length);
    (void)fputc('"', out);
}

static void dump_text_identity(FILE *out, const struct dump_file *file, const struct dump_clock *clock)
{
    const struct wideep_identity *id = &file->view.identity;
    char started[64] = "";
    time_t seconds = (time_t)(id->start_realtime_ns / 1000000000u);
    struct tm tm;

    (void)fprintf(out, DUMP_ROW "%.1f KiB, owner uid %u\n", "size", (double)id->total_size / 1024, file->owner);
    (void)fprintf(out, DUMP_ROW "instance %s, engine %u, %s %u\n", "identity", id->instance, id->engine,
                  id->role == WIDEEP_ROLE_FRONTEND ? "front end" : "EP rank", id->rank);
    if (id->role == WIDEEP_ROLE_RANK)
        (void)fprintf(out, DUMP_ROW "EP %u of %u, TP %u of %u, DP %u of %u, group %016" PRIx64 "%s\n", "parallelism",
                      id->rank, id->ep_size, id->tp_rank, id->tp_size, id->dp_rank, id->dp_size, id->group,
                      id->flags & WIDEEP_LOADS_REPLICATED ? ", loads replicated over TP" : "");
    (void)fprintf(out, DUMP_ROW "lineage %016" PRIx64 ", instance id %016" PRIx64 ", ABI %u.%u\n", "origin",
                  id->lineage, id->instance_id, id->abi_major, id->abi_minor);
    if (gmtime_r(&seconds, &tm))
        (void)strftime(started, sizeof started, "%Y-%m-%d %H:%M:%S UTC", &tm);
    (void)fprintf(out, DUMP_ROW "pid %u in its own PID namespace, created %s (", "writer", id->pid, started);
    dump_text_ago(out, file, clock, id->start_boottime_ns);
    (void)fputs(")\n", out);
    for (uint32_t m = 0; m < id->model_count; m++) {
        const struct wideep_model *model = &id->models[m];
        (void)fprintf(out, "  model %-7u ", m);
        dump_text_model_name(out, model);
        if (model->layers > 0)
            (void)fprintf(out, ": %u MoE layers, %u logical and %u physical experts per layer", model->layers,
                          model->logical_experts, model->physical_experts);
        (void)fputc('\n', out);
    }
}

static void dump_text_live(FILE *out, const struct dump_file *file, const struct dump_clock *clock)
{
    const struct wideep_live *live = file->view.live;
    const struct wideep_identity *id = &file->view.identity;
    uint64_t closed_ns = wideep_load(&live->closed_ns), interval = wideep_load(&live->rearrangement_interval);

    (void)fprintf(out, DUMP_ROW "%" PRIu64 " calls", "activity", wideep_load(&live->activity));
    if (closed_ns) {
        (void)fputs("; closed ", out);
        dump_text_ago(out, file, clock, closed_ns);
    }
    (void)fputc('\n', out);
    if (id->role != WIDEEP_ROLE_RANK)
        return;
    uint64_t active = wideep_load(&live->dbo_active), passes = wideep_load(&live->dbo_passes);
    (void)fprintf(out, DUMP_ROW, "DBO");
    if (passes) {
        (void)fprintf(out, "newest pass %" PRIu64, passes - 1);
        if (!closed_ns) /* closing clears what is active */
            (void)fprintf(out, ", %s", active & 1 ? "prefill engaged" : active & 2 ? "decode engaged" : "not engaged");
        (void)fputs(closed_ns ? " " : ", ", out);
        dump_text_ago(out, file, clock, wideep_load(&live->dbo_time_ns));
        (void)fputc('\n', out);
    } else {
        (void)fputs("no pass yet\n", out);
    }
    for (uint32_t m = 0; m < id->model_count; m++) {
        const struct wideep_live_model *model = &live->models[m];
        (void)fprintf(out, "  model %-7u ", m);
        if (!wideep_load(&model->passes)) {
            (void)fputs("no pass yet", out);
        } else {
            (void)fprintf(out, "newest pass %" PRIu64 " ", wideep_load(&model->passes) - 1);
            dump_text_ago(out, file, clock, wideep_load(&model->pass_time_ns));
            (void)fprintf(out, ", recording %s, %" PRIu64 " passes since the last rearrangement",
                          dump_recording_name(wideep_load(&model->recording)),
                          wideep_load(&model->since_rearrangement));
            if (interval)
                (void)fprintf(out, " (one every %" PRIu64 " is configured)", interval);
        }
        uint64_t since_ns = wideep_load_acquire(&model->rebalancing_since_ns);
        if (since_ns) {
            uint64_t mode = wideep_load(&model->rebalancing_mode);
            (void)fprintf(out, "; REARRANGING (%s), begun ", dump_mode_name(mode > 1 ? 2 : (uint32_t)mode));
            dump_text_ago(out, file, clock, since_ns);
        }
        (void)fputc('\n', out);
    }
}

/* Buckets that hold something, each with its own count: "≤64: 12". `unit_ns`: the bounds are nanoseconds. */
static void dump_text_buckets(FILE *out, const uint64_t *buckets, unsigned count, bool unit_ns)
{
    for (unsigned i = 0; i < count; i++) {
        uint64_t in = wideep_load(buckets + i);
        if (in == 0)
            continue;
        if (i + 1 == count)
            (void)fprintf(out, "  more: %" PRIu64, in);
        else if (unit_ns)
            (void)fprintf(out, "  <=%gs: %" PRIu64, (double)wideep_duration_bound_ns(i) / 1e9, in);
        else
            (void)fprintf(out, "  <=%" PRIu64 ": %" PRIu64, wideep_ubatch_bound(i), in);
    }
    (void)fputc('\n', out);
}

static uint64_t dump_text_sum(const uint64_t *words, unsigned count)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < count; i++)
        sum += wideep_load(words + i);
    return sum;
}

static void dump_text_dbo_totals(FILE *out, const struct wideep_totals *totals)
{
    (void)fputs("  DBO passes            ", out);
    for (uint32_t outcome = 0; outcome < WIDEEP_OUTCOMES; outcome++)
        (void)fprintf(out, " %s", dump_outcome_name(outcome));
    (void)fputc('\n', out);
    for (uint32_t phase = 0; phase < WIDEEP_PHASES; phase++) {
        (void)fprintf(out, "    %-17s ", dump_phase_name(phase));
        for (uint32_t outcome = 0; outcome < WIDEEP_OUTCOMES; outcome++)
            (void)fprintf(out, " %*" PRIu64, (int)strlen(dump_outcome_name(outcome)),
                          wideep_load(&totals->dbo_passes[phase][outcome]));
        (void)fputc('\n', out);
    }
    for (uint32_t i = 0; i < WIDEEP_MAX_UBATCHES; i++) {
        uint64_t count = dump_text_sum(totals->ubatch_bucket[i], WIDEEP_UBATCH_BUCKETS);
        if (count == 0)
            continue;
        (void)fprintf(out, "  %-6s ubatch  %" PRIu64 " with %.1f tokens on average;", dump_ubatch_name(i), count,
                      (double)wideep_load(&totals->ubatch_sum[i]) / (double)count);
        dump_text_buckets(out, totals->ubatch_bucket[i], WIDEEP_UBATCH_BUCKETS, false);
    }
}

static void dump_text_totals(FILE *out, const struct dump_file *file)
{
    const struct wideep_totals *totals = file->view.totals;
    const struct wideep_identity *id = &file->view.identity;

    (void)fprintf(out, DUMP_ROW "%" PRIu64 " prompt, %" PRIu64 " generation\n", "tokens",
                  wideep_load(&totals->prompt_tokens), wideep_load(&totals->generation_tokens));
    if (id->role != WIDEEP_ROLE_RANK)
        return;
    dump_text_dbo_totals(out, totals);
    for (uint32_t m = 0; m < id->model_count; m++) {
        const struct wideep_totals_model *model = &totals->models[m];
        (void)fprintf(out,
                      "  model %-7u %" PRIu64 " recorded passes, %" PRIu64 " tokens routed to ranks, %" PRIu64
                      " to logical experts\n",
                      m, wideep_load_acquire(&model->recorded_passes), dump_plane_sum(&file->view, m, 0),
                      dump_plane_sum(&file->view, m, 1));
        for (uint32_t mode = 0; mode < WIDEEP_MODES; mode++) {
            uint64_t count = dump_text_sum(model->rearrangement_bucket[mode], WIDEEP_DURATION_BUCKETS);
            (void)fprintf(out, "  %-13s %" PRIu64 " %s rearrangements", "", count, dump_mode_name(mode));
            (void)fputs(count ? ";" : "", out);
            dump_text_buckets(out, model->rearrangement_bucket[mode], WIDEEP_DURATION_BUCKETS, true);
        }
        uint64_t sum_ns = wideep_load(&model->rearrangement_sum_ns);
        if (sum_ns) {
            (void)fprintf(out, "  %-13s ", "");
            dump_text_duration(out, sum_ns);
            (void)fputs(" in rearrangements of both modes\n", out);
        }
    }
}

static const char *dump_text_lost(enum wideep_read result)
{
    return result == WIDEEP_READ_INVALID ? "lost (overwritten while it was read, or not valid)" : "lost (overwritten)";
}

static void dump_text_eplb(FILE *out, const struct dump_file *file, const struct dump_config *config,
                           const struct dump_clock *clock)
{
    uint64_t head, first = dump_ring_range(&file->view.eplb, config->records, &head);

    (void)fprintf(out, "  EPLB records: %" PRIu64 " ever written, ring of %u\n", head, file->view.eplb.count);
    if (first < head)
        (void)fprintf(out, "    %12s %12s %5s %5s %10s %12s %12s %8s  %-28s %s\n", "record", "pass", "model", "layer",
                      "step", "avg tokens", "max tokens", "balance", "flags", "when");
    for (uint64_t n = first; n < head; n++) {
        struct wideep_eplb_record r;
        dump_refresh(file, &file->view.eplb, n);
        enum wideep_read result = wideep_eplb_read(&file->view, n, &r, NULL);
        if (result != WIDEEP_READ_OK) {
            (void)fprintf(out, "    %12" PRIu64 " %s\n", n, dump_text_lost(result));
            continue;
        }
        char step[16] = "-", flags[64] = "";
        if (r.step != WIDEEP_STEP_UNKNOWN)
            (void)snprintf(step, sizeof step, "%u", r.step);
        size_t length = 0;
        for (unsigned i = 0; i < 5; i++)
            if (r.flags & 1u << i)
                length += (size_t)snprintf(flags + length, sizeof flags - length, "%s%s", length ? " " : "",
                                           dump_flag_name(i));
        (void)fprintf(out, "    %12" PRIu64 " %12" PRIu64 " %5u %5u %10s %12.1f %12.1f %8.4f  %-28s ", n, r.pass,
                      r.model, r.layer, step, r.avg_tokens_per_rank, r.max_tokens_per_rank, r.balancedness, flags);
        dump_text_ago(out, file, clock, r.time_ns);
        if (r.rearrangement_duration_ns) {
            (void)fputs(", after a rearrangement of ", out);
            dump_text_duration(out, r.rearrangement_duration_ns);
        }
        (void)fputc('\n', out);
    }
}

static void dump_text_dbo(FILE *out, const struct dump_file *file, const struct dump_config *config,
                          const struct dump_clock *clock)
{
    uint64_t head, first = dump_ring_range(&file->view.dbo, config->records, &head);

    (void)fprintf(out, "  DBO records: %" PRIu64 " ever written, ring of %u\n", head, file->view.dbo.count);
    if (first < head)
        (void)fprintf(out, "    %12s %12s %-8s %-20s %-24s %s\n", "record", "pass", "phase", "outcome", "ubatch tokens",
                      "when");
    for (uint64_t n = first; n < head; n++) {
        struct wideep_dbo_record r;
        char tokens[64] = "";
        size_t length = 0;
        dump_refresh(file, &file->view.dbo, n);
        enum wideep_read result = wideep_dbo_read(&file->view, n, &r);
        if (result != WIDEEP_READ_OK) {
            (void)fprintf(out, "    %12" PRIu64 " %s\n", n, dump_text_lost(result));
            continue;
        }
        for (uint32_t i = 0; i < r.ubatches; i++)
            length +=
                (size_t)snprintf(tokens + length, sizeof tokens - length, "%s%u", i ? " " : "", r.ubatch_tokens[i]);
        (void)fprintf(out, "    %12" PRIu64 " %12" PRIu64 " %-8s %-20s %-24s ", n, r.pass, dump_phase_name(r.phase),
                      dump_outcome_name(r.outcome), tokens);
        dump_text_ago(out, file, clock, r.time_ns);
        (void)fputc('\n', out);
    }
}

void dump_text(FILE *out, const struct dump_file *file, const struct dump_config *config,
               const struct dump_clock *clock)
{
    dump_text_escaped(out, file->path, strlen(file->path));
    (void)fprintf(out, ": %s\n", dump_state_name(file->state));
    if (!file->name_matches)
        (void)fputs("  NOTE: the file's name is not that of the identity inside; the exporter refuses such a file\n",
                    out);
    dump_text_identity(out, file, clock);
    (void)fputs(" live state\n", out);
    dump_text_live(out, file, clock);
    (void)fputs(" totals\n", out);
    dump_text_totals(out, file);
    if (config->records > 0 && (file->view.eplb.head || file->view.dbo.head)) {
        (void)fputs(" newest records\n", out);
        if (file->view.eplb.head)
            dump_text_eplb(out, file, config, clock);
        if (file->view.dbo.head)
            dump_text_dbo(out, file, config, clock);
    }
    (void)fputc('\n', out);
}

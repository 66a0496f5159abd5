/* Layouts, pages in each format, and the snapshots that keep them; of made-up groups and engines. */
#include "log.h"
#include "prometheus.pb-c.h"
#include "snapshot.h"
#include "suite.h"

#include <libdeflate.h>
#include <pthread.h>

#define LAYERS 3
#define RANKS  2
#define MODEL  "a\"b\\c\nd{e}=,\xC3\xBC"

/* ---- the fake ----------------------------------------------------------------------------------------------- */

static struct segment_set set;
static struct aggregate aggregate;
static struct self_stats self;
static struct group group;
static struct group_layer layers[LAYERS];
static struct group_slice_layer window[LAYERS];
static uint64_t rank_tokens[LAYERS * RANKS];
static struct engine *engines;
static const struct family_sources sources = {&aggregate, &self};

/* Engines without a segment have two gauges each, both absent. */
static void set_engines(unsigned count)
{
    free(engines);
    engines = calloc(count + 1, sizeof *engines);
    ck_assert_ptr_nonnull(engines);
    for (unsigned i = 0; i < count; i++) {
        engines[i].number = i;
        engines[i].model = MODEL;
        engines[i].next = i + 1 < count ? &engines[i + 1] : NULL;
    }
    aggregate.engines = count > 0 ? engines : NULL;
}

static void setup(void)
{
    aggregate = (struct aggregate){.set = &set, .groups = &group};
    self = (struct self_stats){.version = "1.2.3", .commit = "c\"d", .virtual_max_bytes = UINT64_MAX};
    self.collect.bucket[2] = 3;
    self.collect.sum_ns = UINT64_C(9007199254740993);
    self.start_time_seconds = 0.1;
    group = (struct group){.label = 4,
                           .layers = LAYERS,
                           .ep_size = RANKS,
                           .layer = layers,
                           .window = window,
                           .rank_tokens = rank_tokens,
                           .balancedness_sum = 0.25};
    strcpy(group.model, MODEL);
    memset(layers, 0, sizeof layers);
    for (unsigned i = 0; i < LAYERS; i++)
        layers[i] = (struct group_layer){.passes = 10 + i, .tokens = 21, .max = 17};
    set_engines(1);
}

static void teardown(void)
{
    snapshot_publish(NULL);
    set_engines(0);
}

/* A layout's page with the values of now. Free it. */
static char *render(uint64_t limit, enum page_format format, size_t *ret_size, uint64_t *ret_dropped)
{
    struct layout *layout;
    struct buffer page = {0};

    ck_assert_int_eq(layout_new(&layout, &sources, limit, false), 0);
    struct value *values = calloc(layout_series(layout), sizeof *values);
    ck_assert_ptr_nonnull(values);
    uint64_t dropped = layout_read_values(layout, &sources, values);
    ck_assert_int_eq(exposition_render(&page, layout, values, format, NULL, NULL), 0);
    free(values);
    layout_unref(layout);
    if (ret_dropped)
        *ret_dropped = dropped;
    *ret_size = page.size;
    buffer_add(&page, "", 1);
    ck_assert(!page.failed);
    return page.data;
}

static struct snapshot *make_snapshot(uint64_t time_ns)
{
    struct layout *layout;
    struct value *values;

    ck_assert_int_eq(layout_new(&layout, &sources, 100000, false), 0);
    struct snapshot *snapshot = snapshot_new(layout, time_ns, &values);
    ck_assert_ptr_nonnull(snapshot);
    ck_assert_uint_eq(layout_read_values(layout, &sources, values), 0);
    layout_unref(layout);
    return snapshot;
}

static unsigned count_series(const char *page)
{
    unsigned lines = 0;

    for (const char *at = page; *at; at = strchr(at, '\n') + 1)
        lines += *at != '#';
    return lines;
}

/* ---- formats ------------------------------------------------------------------------------------------------ */

#define LABELS_TEXT "{model_name=\"a\\\"b\\\\c\\nd{e}=,\xC3\xBC\",group=\"4\""

START_TEST(text_page)
{
    size_t size;
    char *page = render(100000, PAGE_TEXT, &size, NULL);

    ck_assert_uint_eq(strlen(page), size);
    ck_assert_ptr_nonnull(strstr(page, "# TYPE wideep_build_info gauge\n"
                                       "wideep_build_info{version=\"1.2.3\",commit=\"c\\\"d\"} 1\n"));
    ck_assert_ptr_nonnull(strstr(page, "# TYPE wideep_eplb_passes_total counter\n"
                                       "wideep_eplb_passes_total" LABELS_TEXT ",layer=\"0\"} 10\n"
                                       "wideep_eplb_passes_total" LABELS_TEXT ",layer=\"1\"} 11\n"));
    ck_assert_ptr_nonnull(strstr(page, "wideep_collect_duration_seconds_sum 9007199.254740993\n"));
    ck_assert_ptr_nonnull(strstr(page, "wideep_render_duration_seconds_bucket{format=\"text\",le=\"0.0001\"}"));
    ck_assert_ptr_null(strstr(page, "throughput"));
    free(page);
}
END_TEST

START_TEST(openmetrics_page)
{
    size_t size;
    char *page = render(100000, PAGE_OPENMETRICS, &size, NULL);

    ck_assert_ptr_nonnull(strstr(page, "# TYPE wideep_eplb_passes counter\n"
                                       "wideep_eplb_passes_total" LABELS_TEXT ",layer=\"0\"} 10\n"));
    ck_assert_ptr_nonnull(strstr(page, "# HELP wideep_eplb_passes Joined passes."));
    ck_assert_ptr_nonnull(strstr(page, "# TYPE wideep_collect_duration_seconds histogram\n"));
    ck_assert_str_eq(page + size - 7, "\n# EOF\n");
    free(page);
    char *older = render(100000, PAGE_OPENMETRICS_0_0_1, &size, NULL);
    ck_assert_str_eq(older + size - 7, "\n# EOF\n");
    free(older);
}
END_TEST

/* Takes the next message off. */
static Prom__MetricFamily *next_family(const uint8_t **at, size_t *left)
{
    uint64_t length = 0;
    unsigned shift = 0;

    do {
        ck_assert_uint_gt(*left, 0);
        length |= (uint64_t)(**at & 0x7F) << shift;
        shift += 7;
        ++*at, --*left;
    } while ((*at)[-1] & 0x80);
    ck_assert_uint_le(length, *left);
    Prom__MetricFamily *family = prom__metric_family__unpack(NULL, length, *at);
    ck_assert_ptr_nonnull(family);
    *at += length;
    *left -= length;
    return family;
}

static void check_labels(const Prom__Metric *metric, const char *const *expected)
{
    size_t n = 0;

    for (; expected[2 * n]; n++) {
        ck_assert_uint_lt(n, metric->n_label);
        ck_assert_str_eq(metric->label[n]->name, expected[2 * n]);
        ck_assert_str_eq(metric->label[n]->value, expected[2 * n + 1]);
    }
    ck_assert_uint_eq(n, metric->n_label);
}

static void check_family(const Prom__MetricFamily *family, unsigned *ret_checked)
{
    ck_assert(family->has_type && family->help && family->n_metric > 0);
    const Prom__Metric *metric = family->metric[0];
    if (strcmp(family->name, "wideep_build_info") == 0) {
        ck_assert_int_eq(family->type, PROM__METRIC_TYPE__GAUGE);
        check_labels(metric, (const char *const[]){"version", "1.2.3", "commit", "c\"d", NULL});
        ck_assert(metric->gauge->has_value && metric->gauge->value == 1);
    } else if (strcmp(family->name, "wideep_eplb_passes_total") == 0) {
        ck_assert_int_eq(family->type, PROM__METRIC_TYPE__COUNTER);
        ck_assert_uint_eq(family->n_metric, LAYERS);
        check_labels(metric, (const char *const[]){"model_name", MODEL, "group", "4", "layer", "0", NULL});
        ck_assert(metric->counter->value == 10);
    } else if (strcmp(family->name, "wideep_collect_duration_seconds") == 0) {
        const Prom__Histogram *histogram = metric->histogram;
        ck_assert_int_eq(family->type, PROM__METRIC_TYPE__HISTOGRAM);
        ck_assert_uint_eq(metric->n_label, 0);
        ck_assert_uint_eq(histogram->n_bucket, SELF_DURATION_BUCKETS - 1);
        ck_assert(histogram->bucket[1]->cumulative_count == 0 && histogram->bucket[1]->upper_bound == 0.00025);
        ck_assert(histogram->bucket[2]->cumulative_count == 3 && histogram->bucket[9]->upper_bound == 1);
        ck_assert(histogram->sample_count == 3 && histogram->sample_sum == 9007199.254740993);
    } else if (strcmp(family->name, "wideep_eplb_pass_balancedness") == 0) {
        check_labels(metric, (const char *const[]){"model_name", MODEL, "group", "4", NULL});
    } else {
        return;
    }
    ++*ret_checked;
}

START_TEST(protobuf_page)
{
    size_t size, families_read = 0;
    unsigned checked = 0;
    char *page = render(100000, PAGE_PROTOBUF, &size, NULL);
    const uint8_t *at = (const uint8_t *)page;

    for (; size > 0; families_read++) {
        Prom__MetricFamily *family = next_family(&at, &size);
        check_family(family, &checked);
        prom__metric_family__free_unpacked(family, NULL);
    }
    ck_assert_uint_eq(checked, 4);
    ck_assert_uint_gt(families_read, 20);
    free(page);
}
END_TEST

/* What the writers of pages rely on. */
START_TEST(table_of_families)
{
    for (size_t i = 0; i < family_count; i++) {
        size_t length = strlen(families[i].name);
        ck_assert_msg(!strpbrk(families[i].help, "\"\\\n"), "%s", families[i].name);
        ck_assert_msg((length > 6 && strcmp(families[i].name + length - 6, "_total") == 0) ==
                          (families[i].type == FAMILY_COUNTER),
                      "%s", families[i].name);
        ck_assert_uint_lt(families[i].bound_count, FAMILY_BUCKETS_MAX);
    }
}
END_TEST

/* ---- the limit ---------------------------------------------------------------------------------------------- */

START_TEST(limit_counts_what_is_shown)
{
    size_t size;
    uint64_t dropped;

    set_engines(0);
    char *page = render(100000, PAGE_TEXT, &size, &dropped);
    unsigned all = count_series(page);
    ck_assert_uint_eq(dropped, 0);
    free(page);
    set_engines(500); /* a thousand series that are absent, before those of the group */
    page = render(all, PAGE_TEXT, &size, &dropped);
    ck_assert_uint_eq(count_series(page), all);
    ck_assert_uint_eq(dropped, 0);
    free(page);
}
END_TEST

START_TEST(limit_keeps_what_fits)
{
    size_t size;
    uint64_t dropped;
    char *page = render(100000, PAGE_TEXT, &size, NULL);
    unsigned all = count_series(page);
    free(page);
    aggregate.groups = NULL;
    page = render(1, PAGE_TEXT, &size, &dropped);
    unsigned own = count_series(page);
    ck_assert_msg(own > 50 && dropped == 0, "the exporter's own are kept whatever the limit");
    free(page);
    aggregate.groups = &group;
    /* Room for two gauges and five more, but not for the histogram between: all of it goes. */
    page = render(own + 7, PAGE_TEXT, &size, &dropped);
    ck_assert_uint_eq(count_series(page), own + 7);
    ck_assert_uint_eq(dropped, all - own - 7);
    ck_assert_ptr_nonnull(strstr(page, "wideep_ep_ranks_seen"));
    ck_assert_ptr_null(strstr(page, "wideep_eplb_pass_balancedness"));
    ck_assert_ptr_nonnull(strstr(page, "wideep_eplb_passes_incomplete_total"));
    ck_assert_ptr_null(strstr(page, "wideep_eplb_avg_tokens_total{"));
    free(page);
    page = render(own, PAGE_TEXT, &size, &dropped);
    ck_assert_uint_eq(count_series(page), own);
    ck_assert_uint_eq(dropped, all - own);
    free(page);
}
END_TEST

/* What is not even laid out is read and counted all the same. */
START_TEST(layout_is_bounded)
{
    struct layout *layout;

    set_engines(LAYOUT_ABSENT_MAX / 2);
    ck_assert_int_eq(layout_new(&layout, &sources, 1, false), 0);
    ck_assert_uint_eq(layout_series(layout), LAYOUT_ABSENT_MAX + 1);
    struct value *values = calloc(layout_series(layout), sizeof *values);
    ck_assert_ptr_nonnull(values);
    ck_assert_uint_gt(layout_read_values(layout, &sources, values), 20);
    free(values);
    layout_unref(layout);
}
END_TEST

/* ---- names -------------------------------------------------------------------------------------------------- */

static char *named(struct snapshot *snapshot, enum page_format format, const char *const *names, unsigned count)
{
    char *page;
    size_t size;

    ck_assert_int_eq(snapshot_small_page(snapshot, format, PAGE_IDENTITY, names, count, &page, &size), 0);
    char *text = strndup(page, size);
    free(page);
    ck_assert_ptr_nonnull(text);
    return text;
}

static bool finds(struct snapshot *snapshot, const char *name, const char *family)
{
    char wanted[128];
    char *page = named(snapshot, PAGE_TEXT, &name, 1);

    (void)snprintf(wanted, sizeof wanted, "# TYPE %s ", family);
    bool there = strstr(page, wanted) != NULL;
    ck_assert(there || page[0] == 0);
    if (there) /* and nothing else */
        ck_assert_ptr_null(strstr(strstr(page, "# TYPE ") + 1, "# TYPE "));
    free(page);
    return there;
}

START_TEST(names)
{
    struct snapshot *snapshot = make_snapshot(1);

    for (size_t i = 0; i < family_count; i++)
        if (families[i].scope == SCOPE_EXPORTER)
            ck_assert_msg(finds(snapshot, families[i].name, families[i].name), "%s", families[i].name);
    ck_assert(finds(snapshot, "wideep_eplb_passes", "wideep_eplb_passes_total"));
    ck_assert(finds(snapshot, "wideep_eplb_pass_balancedness_bucket", "wideep_eplb_pass_balancedness"));
    ck_assert(finds(snapshot, "wideep_eplb_pass_balancedness_sum", "wideep_eplb_pass_balancedness"));
    ck_assert(finds(snapshot, "wideep_eplb_pass_balancedness_count", "wideep_eplb_pass_balancedness"));
    const char *const none[] = {"",
                                "_",
                                "_total",
                                "_bucket",
                                "_sum",
                                "_count",
                                "wideep",
                                "wideep_ep_size_bucket",
                                "wideep_ep_size_total",
                                "wideep_eplb_passes_total_total",
                                "wideep_eplb_passes_count",
                                "Wideep_ep_size",
                                "wideep_ep_size ",
                                "vllm:prompt_throughput_toks_per_s",
                                "zzz"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        ck_assert_msg(!finds(snapshot, none[i], none[i]), "%s", none[i]);
    snapshot_release(snapshot);
}
END_TEST

START_TEST(a_page_of_names)
{
    struct snapshot *snapshot = make_snapshot(1);
    const char *many[2000];

    for (unsigned i = 0; i < 2000; i++)
        many[i] = i % 3 == 0 ? "wideep_ep_size" : i % 3 == 1 ? "wideep_build_info" : "unknown";
    char *page = named(snapshot, PAGE_TEXT, many, 2000);
    ck_assert_uint_eq(count_series(page), 2);
    ck_assert_msg(strstr(page, "wideep_build_info") < strstr(page, "wideep_ep_size"), "in the order of the table");
    free(page);
    page = named(snapshot, PAGE_OPENMETRICS, NULL, 0);
    ck_assert_str_eq(page, "# EOF\n");
    free(page);
    page = named(snapshot, PAGE_TEXT, NULL, 0);
    ck_assert_str_eq(page, "");
    free(page);
    page = named(snapshot, PAGE_PROTOBUF, NULL, 0);
    ck_assert_str_eq(page, "");
    free(page);
    snapshot_release(snapshot);
}
END_TEST

/* Made once for the same names in whatever order, in the snapshot's own memory; a few selections at most. */
START_TEST(large_pages_of_names)
{
    const char *const selected[] = {"wideep_ep_size", "wideep_build_info", "wideep_eplb_passes_total",
                                    "wideep_series_dropped", "process_open_fds"};
    const char *const turned[] = {selected[1], selected[0]};
    struct snapshot *snapshot = make_snapshot(1);
    const char *page, *again;
    size_t size;

    ck_assert_int_eq(snapshot_large_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, selected, 2, &page, &size), 0);
    ck_assert_int_eq(snapshot_large_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, turned, 2, &again, &size), 0);
    ck_assert_ptr_eq(page, again);
    for (unsigned i = 2; i < 5; i++) {
        ck_assert_int_eq(snapshot_large_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, &selected[i], 1, &again, &size), 0);
        ck_assert_ptr_ne(page, again);
    }
    ck_assert_int_eq(snapshot_large_page(snapshot, PAGE_TEXT, PAGE_GZIP, selected, 2, &again, &size), -EBUSY);
    ck_assert_int_eq(snapshot_large_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, selected, 2, &again, &size), 0);
    ck_assert_ptr_eq(page, again);
    snapshot_release(snapshot);
}
END_TEST

START_TEST(a_large_page_is_no_small_one)
{
    const char *const name = "vllm:generation_throughput_toks_per_s";
    char *page;
    size_t size;

    set_engines(3000); /* each has a series of the name, though absent */
    struct snapshot *snapshot = make_snapshot(1);
    ck_assert_int_eq(snapshot_small_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, &name, 1, &page, &size), -E2BIG);
    snapshot_release(snapshot);
}
END_TEST

/* ---- what is kept ------------------------------------------------------------------------------------------- */

/* Whose texts are laid out anew must be as if nothing had been kept. */
START_TEST(a_run_that_has_not_changed_is_copied)
{
    struct layout *layout;
    struct buffer first = {0}, second = {0};

    ck_assert_int_eq(layout_new(&layout, &sources, 100000, false), 0);
    struct value *before = calloc(layout_series(layout), sizeof *before), *after;
    struct exposition_span *spans = calloc(layout->run_count, sizeof *spans), *again;
    after = calloc(layout_series(layout), sizeof *after);
    again = calloc(layout->run_count, sizeof *again);
    ck_assert(before && after && spans && again);
    ck_assert_uint_eq(layout_read_values(layout, &sources, before), 0);
    ck_assert_int_eq(exposition_render(&first, layout, before, PAGE_TEXT, NULL, spans), 0);
    layers[1].passes++;
    ck_assert_uint_eq(layout_read_values(layout, &sources, after), 0);
    buffer_add(&first, "", 1);
    /* Marks that only a copy has. */
    char *changes = strstr(first.data, "layer=\"1\"} 11\n"), *stays = strstr(first.data, "c\\\"d\"} 1\n");
    ck_assert(changes && stays);
    changes[11] = stays[7] = '?';
    const struct exposition_earlier earlier = {first.data, spans, before};
    ck_assert_int_eq(exposition_render(&second, layout, after, PAGE_TEXT, &earlier, again), 0);
    buffer_add(&second, "", 1);
    ck_assert_ptr_nonnull(strstr(second.data, "layer=\"1\"} 12\n"));
    ck_assert_ptr_nonnull(strstr(second.data, "layer=\"0\"} 10\n"));
    ck_assert_ptr_nonnull(strstr(second.data, "c\\\"d\"} ?\n"));
    free(first.data);
    free(second.data);
    free(before);
    free(after);
    free(spans);
    free(again);
    layout_unref(layout);
}
END_TEST

static void ck_same_page(struct snapshot *snapshot, enum page_format format)
{
    const char *page;
    size_t size, fresh_size;
    char *fresh = render(100000, format, &fresh_size, NULL);

    ck_assert_int_eq(snapshot_page(snapshot, format, PAGE_IDENTITY, &page, &size), 0);
    ck_assert_uint_eq(size, fresh_size);
    ck_assert_int_eq(memcmp(page, fresh, size), 0);
    free(fresh);
}

/* Numbers grow longer, series come and go, and a family's header with the first of them. */
START_TEST(pages_from_earlier_ones_are_as_if_made_anew)
{
    struct layout *layout;
    struct value *values;
    unsigned seed = 1;

    ck_assert_int_eq(layout_new(&layout, &sources, 100000, false), 0);
    for (uint64_t i = 1; i <= 300; i++) {
        struct snapshot *snapshot = snapshot_new(layout, i, &values);
        ck_assert_ptr_nonnull(snapshot);
        seed = seed * 1103515245u + 12345u;
        layers[seed >> 16 & 1].passes = seed >> 24;
        self.series_dropped = seed >> 20 & 3;
        self.http.requests[seed >> 12 & 3][1] = seed >> 18 & 1; /* absent while 0 */
        self.http.requests[0][2] = i / 100;
        ck_assert_uint_eq(layout_read_values(layout, &sources, values), 0);
        snapshot_publish(snapshot);
        if (i % 7 != 0) {
            ck_same_page(snapshot, i % 3 == 0 ? PAGE_OPENMETRICS : PAGE_TEXT);
            ck_same_page(snapshot, i % 2 == 0 ? PAGE_OPENMETRICS : PAGE_TEXT);
            ck_same_page(snapshot, i % 5 == 0 ? PAGE_PROTOBUF : PAGE_TEXT);
        }
    }
    layout_unref(layout);
}
END_TEST

static unsigned note(const void **seen, unsigned count, const void *pointer)
{
    for (unsigned i = 0; i < count; i++)
        if (seen[i] == pointer)
            return count;
    ck_assert_uint_lt(count, 100);
    seen[count] = pointer;
    return count + 1;
}

/* In the steady state everything that a collection and its pages need has been there before. */
START_TEST(nothing_is_allocated_anew)
{
    const void *snapshots[100], *pages[100];
    unsigned snapshot_count = 0, page_count = 0;
    struct layout *layout;
    struct value *values;
    const char *page;
    size_t size;

    ck_assert_int_eq(layout_new(&layout, &sources, 100000, false), 0);
    for (uint64_t i = 1; i <= 100; i++) {
        struct snapshot *snapshot = snapshot_new(layout, i, &values);
        ck_assert_ptr_nonnull(snapshot);
        (void)layout_read_values(layout, &sources, values);
        snapshot_publish(snapshot);
        ck_assert_int_eq(snapshot_page(snapshot, PAGE_TEXT, PAGE_GZIP, &page, &size), 0);
        page_count = note(pages, page_count, page);
        ck_assert_int_eq(snapshot_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, &page, &size), 0);
        page_count = note(pages, page_count, page);
        snapshot_count = note(snapshots, snapshot_count, snapshot);
    }
    ck_assert_uint_le(snapshot_count, 3); /* the newest, the one to copy from, the next */
    ck_assert_uint_le(page_count, 4);     /* two of each encoding */
    layout_unref(layout);
}
END_TEST

/* ---- snapshots ---------------------------------------------------------------------------------------------- */

static void *ask_for_all(void *argument)
{
    struct snapshot *snapshot = argument;
    const char *data;
    size_t size;

    for (unsigned i = 0; i < 30; i++)
        ck_assert_int_eq(snapshot_page(snapshot, i % PAGE_FORMATS, i % PAGE_ENCODINGS, &data, &size), 0);
    return NULL;
}

static uint64_t observed(const struct self_durations *durations)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < SELF_DURATION_BUCKETS; i++)
        sum += durations->bucket[i];
    return sum;
}

START_TEST(made_once)
{
    struct self_durations render_before[PAGE_RENDERINGS], render_after[PAGE_RENDERINGS], compress_before,
        compress_after;
    struct snapshot *snapshot = make_snapshot(1);
    pthread_t threads[8];

    snapshot_durations(render_before, &compress_before);
    for (unsigned i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, ask_for_all, snapshot), 0);
    for (unsigned i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    snapshot_durations(render_after, &compress_after);
    for (unsigned i = 0; i < PAGE_RENDERINGS; i++)
        ck_assert_uint_eq(observed(&render_after[i]) - observed(&render_before[i]), 1);
    /* Formats of odd numbers were asked for compressed: OpenMetrics, by both of its versions. */
    ck_assert_uint_eq(observed(&compress_after) - observed(&compress_before), 1);
    snapshot_release(snapshot);
}
END_TEST

START_TEST(compressed)
{
    struct snapshot *snapshot = make_snapshot(1);

    for (unsigned f = 0; f < PAGE_FORMATS; f++) {
        const char *plain, *packed;
        size_t plain_size, packed_size, size;
        ck_assert_int_eq(snapshot_page(snapshot, f, PAGE_GZIP, &packed, &packed_size), 0);
        ck_assert_int_eq(snapshot_page(snapshot, f, PAGE_IDENTITY, &plain, &plain_size), 0);
        char *back = malloc(plain_size + 1);
        ck_assert_ptr_nonnull(back);
        struct libdeflate_decompressor *decompressor = libdeflate_alloc_decompressor();
        ck_assert_int_eq(libdeflate_gzip_decompress(decompressor, packed, packed_size, back, plain_size + 1, &size), 0);
        libdeflate_free_decompressor(decompressor);
        ck_assert_uint_eq(size, plain_size);
        ck_assert_int_eq(memcmp(plain, back, size), 0);
        ck_assert_uint_lt(packed_size, plain_size);
        free(back);
    }
    snapshot_release(snapshot);
}
END_TEST

static void publish(uint64_t time_ns)
{
    snapshot_publish(make_snapshot(time_ns));
}

START_TEST(four_generations)
{
    struct snapshot *held[SNAPSHOT_GENERATIONS_MAX], *other;

    ck_assert_ptr_null(snapshot_acquire_page());
    for (uint64_t i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++) {
        publish(i + 1);
        held[i] = snapshot_acquire_page();
        ck_assert_uint_eq(snapshot_time_ns(held[i]), i + 1);
    }
    for (uint64_t i = 5; i < 9; i++) { /* readers hold four: the newest of these is shared */
        publish(i);
        other = snapshot_acquire_page();
        ck_assert_ptr_eq(other, held[3]);
        snapshot_release(other);
        other = snapshot_acquire(); /* who wants no page gets the newest */
        ck_assert_uint_eq(snapshot_time_ns(other), i);
        snapshot_release(other);
    }
    snapshot_release(held[1]); /* a place is free */
    other = snapshot_acquire_page();
    ck_assert_uint_eq(snapshot_time_ns(other), 8);
    publish(9);
    held[1] = snapshot_acquire_page();
    ck_assert_ptr_eq(held[1], other);
    snapshot_release(other);
    for (unsigned i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++)
        snapshot_release(held[i]);
    other = snapshot_acquire_page();
    ck_assert_uint_eq(snapshot_time_ns(other), 9);
    snapshot_release(other);
}
END_TEST

static bool stop;

/* Holds on to a few, and lets go in another order. */
static void *read_pages(void *argument)
{
    struct snapshot *held[6] = {NULL};
    const char *data;
    size_t size;

    (void)argument;
    for (unsigned i = 0; !__atomic_load_n(&stop, __ATOMIC_ACQUIRE); i++) {
        struct snapshot **slot = &held[i * 5 % 6];
        snapshot_release(*slot);
        *slot = snapshot_acquire_page();
        if (*slot)
            ck_assert_int_eq(snapshot_page(*slot, i % PAGE_FORMATS, i % PAGE_ENCODINGS, &data, &size), 0);
    }
    for (unsigned i = 0; i < 6; i++)
        snapshot_release(held[i]);
    return NULL;
}

START_TEST(readers_and_publisher)
{
    pthread_t threads[3];

    stop = false;
    for (unsigned i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, read_pages, NULL), 0);
    for (uint64_t i = 1; i <= 300; i++)
        publish(i);
    __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < 3; i++)
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    struct snapshot *last = snapshot_acquire_page();
    ck_assert_uint_eq(snapshot_time_ns(last), 300);
    snapshot_release(last);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pages");
    TCase *tcase = tcase_create("pages");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, text_page);
    tcase_add_test(tcase, openmetrics_page);
    tcase_add_test(tcase, protobuf_page);
    tcase_add_test(tcase, table_of_families);
    tcase_add_test(tcase, limit_counts_what_is_shown);
    tcase_add_test(tcase, limit_keeps_what_fits);
    tcase_add_test(tcase, layout_is_bounded);
    tcase_add_test(tcase, names);
    tcase_add_test(tcase, a_page_of_names);
    tcase_add_test(tcase, large_pages_of_names);
    tcase_add_test(tcase, a_large_page_is_no_small_one);
    tcase_add_test(tcase, a_run_that_has_not_changed_is_copied);
    tcase_add_test(tcase, pages_from_earlier_ones_are_as_if_made_anew);
    tcase_add_test(tcase, nothing_is_allocated_anew);
    tcase_add_test(tcase, made_once);
    tcase_add_test(tcase, compressed);
    tcase_add_test(tcase, four_generations);
    tcase_add_test(tcase, readers_and_publisher);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

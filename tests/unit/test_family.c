/* The table of metrics repeats names and bounds as text: they must be those of the modules that count by them. */
#include "family.h"
#include "suite.h"

static const struct family *family_of(const char *name)
{
    for (size_t i = 0; i < family_count; i++)
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    ck_abort_msg("no family %s", name);
    return NULL;
}

static const struct family_label *label_of(const char *family, const char *name)
{
    const struct family_label *labels = family_of(family)->labels;
    for (unsigned i = 0; i < 2; i++)
        if (labels[i].name && strcmp(labels[i].name, name) == 0)
            return &labels[i];
    ck_abort_msg("%s has no label %s", family, name);
    return NULL;
}

START_TEST(segments_by_state_and_reason)
{
    const struct family_label *states = label_of("wideep_segments", "state");
    const struct family_label *reasons = label_of("wideep_segments", "reason");

    ck_assert_uint_eq(states->count, SEGMENT_STATES);
    for (unsigned i = 0; i < SEGMENT_STATES; i++)
        ck_assert_str_eq(states->values[i], segment_state_name((enum segment_state)i));
    ck_assert_uint_eq(reasons->count, SEGMENT_REASONS);
    for (unsigned i = 0; i < SEGMENT_REASONS; i++)
        ck_assert_str_eq(reasons->values[i], segment_reason_name(i));
    for (unsigned i = 0; i < WIDEEP_REASONS; i++)
        ck_assert_str_eq(reasons->values[i], wideep_reason_name((enum wideep_reason)i));
}
END_TEST

START_TEST(labels_by_the_enums_of_the_header)
{
    ck_assert_uint_eq(label_of("wideep_dbo_passes_total", "phase")->count, WIDEEP_PHASES);
    ck_assert_uint_eq(label_of("wideep_dbo_passes_total", "outcome")->count, WIDEEP_OUTCOMES);
    ck_assert_uint_eq(label_of("vllm:dbo_fallout_total", "reason")->count, WIDEEP_OUTCOMES - WIDEEP_FIRST_FALLOUT);
    ck_assert_uint_eq(label_of("vllm:ubatch_token_count", "ubatch_index")->count, WIDEEP_MAX_UBATCHES);
    ck_assert_uint_eq(label_of("wideep_eplb_rearrangements_by_mode_total", "mode")->count, WIDEEP_MODES);
    for (unsigned i = 0; i < WIDEEP_OUTCOMES - WIDEEP_FIRST_FALLOUT; i++)
        ck_assert_str_eq(label_of("vllm:dbo_fallout_total", "reason")->values[i],
                         label_of("wideep_dbo_passes_total", "outcome")->values[WIDEEP_FIRST_FALLOUT + i]);
}
END_TEST

/* As Prometheus reads a bound: the nearest double of its text. */
static double bound_of(const struct family *family, unsigned i)
{
    char *end;
    double bound = strtod(family->bounds[i], &end);
    ck_assert_msg(*end == 0, "%s: %s", family->name, family->bounds[i]);
    return bound;
}

START_TEST(bounds)
{
    const struct family *ubatches = family_of("vllm:ubatch_token_count");
    ck_assert_uint_eq(ubatches->bound_count, WIDEEP_UBATCH_BUCKETS - 1);
    for (unsigned i = 0; i < ubatches->bound_count; i++)
        ck_assert_double_eq(bound_of(ubatches, i), (double)wideep_ubatch_bound(i));

    const struct family *durations = family_of("vllm:eplb_rearrangement_duration_seconds");
    ck_assert_uint_eq(durations->bound_count, WIDEEP_DURATION_BUCKETS - 1);
    for (unsigned i = 0; i < durations->bound_count; i++)
        ck_assert_double_eq(bound_of(durations, i), (double)wideep_duration_bound_ns(i) / 1e9);

    const struct family *balancedness = family_of("wideep_eplb_pass_balancedness");
    ck_assert_uint_eq(balancedness->bound_count, GROUP_BALANCEDNESS_BUCKETS - 1);
    for (unsigned i = 0; i < balancedness->bound_count; i++)
        ck_assert_double_eq(bound_of(balancedness, i), group_balancedness_bounds[i]);

    static const char *const own[] = {"wideep_collect_duration_seconds", "wideep_render_duration_seconds"};
    for (unsigned k = 0; k < 2; k++) {
        const struct family *family = family_of(own[k]);
        ck_assert_uint_eq(family->bound_count, SELF_DURATION_BUCKETS - 1);
        for (unsigned i = 0; i < family->bound_count; i++)
            ck_assert_double_eq(bound_of(family, i), (double)self_duration_bounds_ns[i] / 1e9);
    }
}
END_TEST

START_TEST(every_histogram_has_room_and_rising_bounds)
{
    for (size_t f = 0; f < family_count; f++) {
        const struct family *family = &families[f];
        ck_assert_uint_lt(family->bound_count, FAMILY_BUCKETS_MAX);
        ck_assert_msg((family->bound_count > 0) == (family->type == FAMILY_HISTOGRAM), "%s", family->name);
        for (unsigned i = 1; i < family->bound_count; i++)
            ck_assert_msg(bound_of(family, i - 1) < bound_of(family, i), "%s: %s", family->name, family->bounds[i]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("family");
    TCase *tcase = tcase_create("family");
    tcase_add_test(tcase, segments_by_state_and_reason);
    tcase_add_test(tcase, labels_by_the_enums_of_the_header);
    tcase_add_test(tcase, bounds);
    tcase_add_test(tcase, every_histogram_has_room_and_rising_bounds);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

/* layout: prints the format as the header has it: offset and size of every field, every constant, every enum
 * value. tests/abi/layout.golden holds the text; a difference is a change of the format. */
#include "wideep_shm.h"

#include <inttypes.h>

#define STRUCT(type) printf("struct %s size %zu\n", #type, sizeof(struct type))
#define FIELD(type, field)                                                                   \
    printf("field %s.%s offset %zu size %zu\n", #type, #field, offsetof(struct type, field), \
           sizeof(((struct type *)NULL)->field))
#define NUMBER(name) printf("constant %s %" PRIu64 "\n", #name, (uint64_t)(name))

static void layout_structs(void)
{
    STRUCT(wideep_section);
    FIELD(wideep_section, type);
    FIELD(wideep_section, stride);
    FIELD(wideep_section, offset);
    FIELD(wideep_section, length);
    FIELD(wideep_section, count);
    FIELD(wideep_section, batch);
    STRUCT(wideep_model);
    FIELD(wideep_model, name);
    FIELD(wideep_model, name_length);
    FIELD(wideep_model, layers);
    FIELD(wideep_model, logical_experts);
    FIELD(wideep_model, physical_experts);
    FIELD(wideep_model, ep_ranks);
    FIELD(wideep_model, reserved);
    STRUCT(wideep_identity);
    FIELD(wideep_identity, magic);
    FIELD(wideep_identity, abi_major);
    FIELD(wideep_identity, abi_minor);
    FIELD(wideep_identity, endian);
    FIELD(wideep_identity, word_bits);
    FIELD(wideep_identity, total_size);
    FIELD(wideep_identity, identity_size);
    FIELD(wideep_identity, section_count);
    FIELD(wideep_identity, section_size);
    FIELD(wideep_identity, model_count);
    FIELD(wideep_identity, model_size);
    FIELD(wideep_identity, role);
    FIELD(wideep_identity, engine);
    FIELD(wideep_identity, rank);
    FIELD(wideep_identity, ep_size);
    FIELD(wideep_identity, tp_rank);
    FIELD(wideep_identity, tp_size);
    FIELD(wideep_identity, dp_rank);
    FIELD(wideep_identity, dp_size);
    FIELD(wideep_identity, flags);
    FIELD(wideep_identity, group);
    FIELD(wideep_identity, instance_id);
    FIELD(wideep_identity, lineage);
    FIELD(wideep_identity, boot_id);
    FIELD(wideep_identity, start_realtime_ns);
    FIELD(wideep_identity, start_boottime_ns);
    FIELD(wideep_identity, pid_namespace);
    FIELD(wideep_identity, process_start_ticks);
    FIELD(wideep_identity, pid);
    FIELD(wideep_identity, instance_length);
    FIELD(wideep_identity, instance);
    FIELD(wideep_identity, reserved);
    FIELD(wideep_identity, sections);
    FIELD(wideep_identity, models);
    STRUCT(wideep_live_model);
    FIELD(wideep_live_model, passes);
    FIELD(wideep_live_model, pass_time_ns);
    FIELD(wideep_live_model, rebalancing_since_ns);
    FIELD(wideep_live_model, rebalancing_mode);
    FIELD(wideep_live_model, since_rearrangement);
    FIELD(wideep_live_model, recording);
    FIELD(wideep_live_model, recorded_time_ns);
    FIELD(wideep_live_model, reserved);
    STRUCT(wideep_live);
    FIELD(wideep_live, activity);
    FIELD(wideep_live, closed_ns);
    FIELD(wideep_live, dbo_active);
    FIELD(wideep_live, dbo_passes);
    FIELD(wideep_live, dbo_time_ns);
    FIELD(wideep_live, rearrangement_interval);
    FIELD(wideep_live, reserved);
    FIELD(wideep_live, models);
    STRUCT(wideep_totals_model);
    FIELD(wideep_totals_model, recorded_passes);
    FIELD(wideep_totals_model, rearrangement_sum_ns);
    FIELD(wideep_totals_model, rearrangement_bucket);
    FIELD(wideep_totals_model, reserved);
    STRUCT(wideep_totals);
    FIELD(wideep_totals, prompt_tokens);
    FIELD(wideep_totals, generation_tokens);
    FIELD(wideep_totals, dbo_passes);
    FIELD(wideep_totals, ubatch_sum);
    FIELD(wideep_totals, ubatch_bucket);
    FIELD(wideep_totals, reserved);
    FIELD(wideep_totals, models);
    STRUCT(wideep_eplb_slot);
    FIELD(wideep_eplb_slot, seq);
    FIELD(wideep_eplb_slot, pass);
    FIELD(wideep_eplb_slot, time_ns);
    FIELD(wideep_eplb_slot, tags);
    FIELD(wideep_eplb_slot, avg_tokens_per_rank);
    FIELD(wideep_eplb_slot, max_tokens_per_rank);
    FIELD(wideep_eplb_slot, balancedness);
    FIELD(wideep_eplb_slot, rearrangement_duration_ns);
    STRUCT(wideep_dbo_slot);
    FIELD(wideep_dbo_slot, seq);
    FIELD(wideep_dbo_slot, pass);
    FIELD(wideep_dbo_slot, time_ns);
    FIELD(wideep_dbo_slot, tags);
    FIELD(wideep_dbo_slot, ubatch_tokens01);
    FIELD(wideep_dbo_slot, ubatch_tokens23);
    FIELD(wideep_dbo_slot, reserved);
}

static void layout_constants(void)
{
    printf("constant WIDEEP_MAGIC %s\n", WIDEEP_MAGIC);
    NUMBER(WIDEEP_ABI_MAJOR);
    NUMBER(WIDEEP_ABI_MINOR);
    NUMBER(WIDEEP_ENDIAN_TAG);
    NUMBER(WIDEEP_WORD_BITS);
    NUMBER(WIDEEP_IDENTITY_PAGE);
    NUMBER(WIDEEP_MAX_SECTIONS);
    NUMBER(WIDEEP_MAX_MODELS);
    NUMBER(WIDEEP_MAX_NAME);
    NUMBER(WIDEEP_MAX_INSTANCE);
    NUMBER(WIDEEP_MAX_LAYERS);
    NUMBER(WIDEEP_MAX_LOGICAL_EXPERTS);
    NUMBER(WIDEEP_MAX_PHYSICAL_EXPERTS);
    NUMBER(WIDEEP_MAX_EP_SIZE);
    NUMBER(WIDEEP_MAX_NUMBER);
    NUMBER(WIDEEP_MAX_UBATCHES);
    NUMBER(WIDEEP_MAX_SEGMENT_SIZE);
    NUMBER(WIDEEP_MAX_RING_SIZE);
    NUMBER(WIDEEP_MAX_PASS);
    NUMBER(WIDEEP_MAX_PATH);
    NUMBER(WIDEEP_RING_HEADER);
    NUMBER(WIDEEP_RING_PASSES);
    NUMBER(WIDEEP_RING_MIN_PASSES);
    NUMBER(WIDEEP_RING_MAX_SIZE);
    NUMBER(WIDEEP_DBO_SLOTS);
    NUMBER(WIDEEP_SLOT_HEADER);
    NUMBER(WIDEEP_STEP_UNKNOWN);
    NUMBER(WIDEEP_ROLE_RANK);
    NUMBER(WIDEEP_ROLE_FRONTEND);
    NUMBER(WIDEEP_SECTION_LIVE);
    NUMBER(WIDEEP_SECTION_TOTALS);
    NUMBER(WIDEEP_SECTION_EPLB_RING);
    NUMBER(WIDEEP_SECTION_DBO_RING);
    NUMBER(WIDEEP_SECTION_RANK_TOKENS);
    NUMBER(WIDEEP_SECTION_EXPERT_TOKENS);
    NUMBER(WIDEEP_LOADS_REPLICATED);
    NUMBER(WIDEEP_REDUCED);
    NUMBER(WIDEEP_PARTIAL);
    NUMBER(WIDEEP_REBALANCING);
    NUMBER(WIDEEP_FIRST);
    NUMBER(WIDEEP_LAST);
    NUMBER(WIDEEP_SYNC);
    NUMBER(WIDEEP_ASYNC);
    NUMBER(WIDEEP_MODES);
    NUMBER(WIDEEP_PREFILL);
    NUMBER(WIDEEP_DECODE);
    NUMBER(WIDEEP_PHASES);
    NUMBER(WIDEEP_ENGAGED);
    NUMBER(WIDEEP_BELOW_THRESHOLD);
    NUMBER(WIDEEP_IDLE_RANK);
    NUMBER(WIDEEP_EMPTY_SECOND_UBATCH);
    NUMBER(WIDEEP_COORDINATION_FAILURE);
    NUMBER(WIDEEP_OTHER);
    NUMBER(WIDEEP_OUTCOMES);
    NUMBER(WIDEEP_FIRST_FALLOUT);
    NUMBER(WIDEEP_DURATION_BUCKETS);
    NUMBER(WIDEEP_UBATCH_BUCKETS);
    NUMBER(WIDEEP_RECORDING_UNKNOWN);
    NUMBER(WIDEEP_RECORDING_YES);
    NUMBER(WIDEEP_RECORDING_NO);
    for (unsigned i = 0; i < WIDEEP_DURATION_BUCKETS; i++)
        printf("duration_bound_ns %u %" PRIu64 "\n", i, wideep_duration_bound_ns(i));
    for (unsigned i = 0; i < WIDEEP_UBATCH_BUCKETS; i++)
        printf("ubatch_bound %u %" PRIu64 "\n", i, wideep_ubatch_bound(i));
    for (unsigned i = 0; i < WIDEEP_REASONS; i++)
        printf("reason %u %s\n", i, wideep_reason_name((enum wideep_reason)i));
    printf("read ok %d overrun %d torn %d invalid %d\n", WIDEEP_READ_OK, WIDEEP_READ_OVERRUN, WIDEEP_READ_TORN,
           WIDEEP_READ_INVALID);
    printf("origin fresh %d takeover %d replaced %d\n", WIDEEP_ORIGIN_FRESH, WIDEEP_ORIGIN_TAKEOVER,
           WIDEEP_ORIGIN_REPLACED);
}

int main(void)
{
    layout_structs();
    layout_constants();
    return 0;
}

/* reader: prints what wideep_shm.h reads from the segments named, one value a line, for comparison with other
 * readers. Exit code 1 when a file is not a segment. */
#include "wideep_shm.h"

#include <inttypes.h>

static void reader_planes(const struct wideep_view *view, uint32_t m)
{
    const struct wideep_identity *id = &view->identity;
    const struct wideep_model *model = &id->models[m];
    for (uint32_t layer = 0; layer < model->layers; layer++) {
        const uint64_t *ranks = view->rank_tokens + wideep_plane_offset(id, m, 0) + (uint64_t)layer * id->ep_size;
        const uint64_t *experts =
            view->expert_tokens + wideep_plane_offset(id, m, 1) + (uint64_t)layer * model->logical_experts;
        for (uint32_t r = 0; r < id->ep_size; r++)
            printf("rank_tokens %u %u %u %" PRIu64 "\n", m, layer, r, wideep_load(ranks + r));
        for (uint32_t e = 0; e < model->logical_experts; e++)
            printf("expert_tokens %u %u %u %" PRIu64 "\n", m, layer, e, wideep_load(experts + e));
    }
}

static void reader_words(const char *name, const uint64_t *words, size_t count)
{
    printf("%s", name);
    for (size_t i = 0; i < count; i++)
        printf(" %" PRIu64, wideep_load(words + i));
    printf("\n");
}

static void reader_eplb(const struct wideep_view *view)
{
    uint64_t head = wideep_ring_head(&view->eplb);
    printf("eplb_head %" PRIu64 "\n", head);
    for (uint64_t n = wideep_ring_tail(&view->eplb, head); n < head; n++) {
        struct wideep_eplb_record r;
        uint32_t tokens[WIDEEP_MAX_EP_SIZE];
        enum wideep_read result = wideep_eplb_read(view, n, &r, tokens);
        if (result != WIDEEP_READ_OK) {
            printf("eplb %" PRIu64 " lost %d\n", n, (int)result);
            continue;
        }
        printf("eplb %" PRIu64 " %" PRIu64 " %" PRIu64 " %u %u %u %u %.17g %.17g %.17g %" PRIu64, n, r.pass, r.time_ns,
               r.model, r.layer, r.flags, r.step, r.avg_tokens_per_rank, r.max_tokens_per_rank, r.balancedness,
               r.rearrangement_duration_ns);
        for (uint32_t i = 0; i < view->identity.ep_size; i++)
            printf(" %u", tokens[i]);
        printf("\n");
    }
}

static void reader_dbo(const struct wideep_view *view)
{
    uint64_t head = wideep_ring_head(&view->dbo);
    printf("dbo_head %" PRIu64 "\n", head);
    for (uint64_t n = wideep_ring_tail(&view->dbo, head); n < head; n++) {
        struct wideep_dbo_record r;
        enum wideep_read result = wideep_dbo_read(view, n, &r);
        if (result != WIDEEP_READ_OK)
            printf("dbo %" PRIu64 " lost %d\n", n, (int)result);
        else
            printf("dbo %" PRIu64 " %" PRIu64 " %" PRIu64 " %u %u %u %u %u %u %u %u %u %u\n", n, r.pass, r.time_ns,
                   r.phase, r.prefill_active, r.decode_active, r.outcome, r.fallout_reason, r.ubatches,
                   r.ubatch_tokens[0], r.ubatch_tokens[1], r.ubatch_tokens[2], r.ubatch_tokens[3]);
    }
}

static void reader_print(const struct wideep_view *view)
{
    const struct wideep_identity *id = &view->identity;
    printf("identity %s %u %u %u %u %u %u %u %u %u %u %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", id->instance, id->role,
           id->engine, id->rank, id->ep_size, id->tp_rank, id->tp_size, id->dp_rank, id->dp_size, id->flags,
           id->model_count, id->group, id->instance_id, id->lineage);
    printf("alive %d\n", wideep_writer_alive(view->fd));
    reader_words("live", &view->live->activity, sizeof(struct wideep_live) / 8);
    reader_words("totals", &view->totals->prompt_tokens, sizeof(struct wideep_totals) / 8);
    if (view->eplb.head)
        reader_eplb(view);
    if (view->dbo.head)
        reader_dbo(view);
    for (uint32_t m = 0; m < id->model_count; m++) {
        const struct wideep_model *model = &id->models[m];
        printf("model %u %u %u %u %u ", m, model->layers, model->logical_experts, model->physical_experts,
               model->ep_ranks);
        for (uint32_t i = 0; i < model->name_length; i++)
            printf("%02x", (unsigned char)model->name[i]);
        printf("\n");
        if (view->rank_tokens && view->expert_tokens)
            reader_planes(view, m);
    }
}

int main(int argc, char **argv)
{
    int code = 0;
    for (int i = 1; i < argc; i++) {
        struct wideep_view view;
        enum wideep_reason reason = WIDEEP_OK;
        int error = wideep_open(&view, argv[i], &reason);
        if (error) {
            printf("error %d %s\n", error, wideep_reason_name(reason));
            code = 1;
            continue;
        }
        reader_print(&view);
        wideep_view_close(&view);
    }
    return code;
}

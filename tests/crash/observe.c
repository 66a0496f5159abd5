#include "observe.h"

#include <stdarg.h>

/* Of processor time. A reader that waited for a dead writer would never come back. */
#define COLLECT_LIMIT_NS 2000000000u
#define FAULTS_SHOWN     20u

unsigned observe_faults;
static char about[256];

void observe_about(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    (void)vsnprintf(about, sizeof about, format, list);
    va_end(list);
}

bool observe_check(bool good, const char *format, ...)
{
    if (good || observe_faults++ >= FAULTS_SHOWN)
        return good;
    va_list list;
    va_start(list, format);
    (void)fprintf(stderr, "%s: ", about);
    (void)vfprintf(stderr, format, list);
    (void)fprintf(stderr, "\n");
    va_end(list);
    return false;
}

/* ---- images ------------------------------------------------------------------------------------------------- */

void image_of(struct image *ret, const unsigned char *bytes, uint64_t size)
{
    ret->size = size;
    ret->bytes = aligned_alloc(64, (size_t)wideep_i_round_up(size, 64));
    if (!ret->bytes)
        abort();
    memcpy(ret->bytes, bytes, (size_t)size);
    observe_check(wideep_view_init(&ret->view, ret->bytes, size) == WIDEEP_OK, "the image is no segment");
}

int image_take(struct image *ret, const char *path)
{
    struct wideep_view view;

    memset(ret, 0, sizeof *ret);
    int error = wideep_open(&view, path, NULL);
    if (error)
        return error;
    image_of(ret, view.base, view.size);
    wideep_view_close(&view);
    return 0;
}

void image_free(struct image *image)
{
    free(image->bytes);
    memset(image, 0, sizeof *image);
}

static bool words_equal(const uint64_t *a, const uint64_t *b, const uint64_t *plus, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (a[i] != (b ? b[i] : 0) + (plus ? plus[i] : 0))
            return false;
    return true;
}

bool image_totals_equal(const struct image *a, const struct image *b, const struct image *plus)
{
    const struct wideep_identity *id = &a->view.identity;
#define PART(image, part) ((image) ? (const uint64_t *)(const void *)(image)->view.part : NULL)
    return words_equal(PART(a, totals), PART(b, totals), PART(plus, totals), sizeof(struct wideep_totals) / 8) &&
           words_equal(a->view.rank_tokens, PART(b, rank_tokens), PART(plus, rank_tokens),
                       wideep_plane_offset(id, id->model_count, 0)) &&
           words_equal(a->view.expert_tokens, PART(b, expert_tokens), PART(plus, expert_tokens),
                       wideep_plane_offset(id, id->model_count, 1));
#undef PART
}

/* ---- order -------------------------------------------------------------------------------------------------- */

static uint64_t bucket_sum(const uint64_t *buckets, unsigned count)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < count; i++)
        sum += buckets[i];
    return sum;
}

/* A histogram's sum is stored before its bucket: a bucket that counts the call implies that the sum does. */
static void order_of_histogram(const char *name, const uint64_t *now_buckets, const uint64_t *before_buckets,
                               unsigned count, uint64_t now_sum, uint64_t after_sum)
{
    uint64_t more = bucket_sum(now_buckets, count) - bucket_sum(before_buckets, count);
    observe_check(more <= 1, "%s: %llu more in the buckets of one call", name, (unsigned long long)more);
    observe_check(more == 0 || now_sum == after_sum, "%s: counted before its sum", name);
}

static void order_of_totals(const struct wideep_totals *before, const struct wideep_totals *now,
                            const struct wideep_totals *after)
{
    for (unsigned i = 0; i < WIDEEP_MAX_UBATCHES; i++)
        order_of_histogram("ubatch_token_count", now->ubatch_bucket[i], before->ubatch_bucket[i], WIDEEP_UBATCH_BUCKETS,
                           now->ubatch_sum[i], after->ubatch_sum[i]);
    for (unsigned m = 0; m < WIDEEP_MAX_MODELS; m++)
        order_of_histogram("rearrangement_duration", now->models[m].rearrangement_bucket[0],
                           before->models[m].rearrangement_bucket[0], WIDEEP_MODES * WIDEEP_DURATION_BUCKETS,
                           now->models[m].rearrangement_sum_ns, after->models[m].rearrangement_sum_ns);
}

static uint64_t head_of(const struct wideep_ring *ring)
{
    return ring->head ? wideep_ring_head(ring) : 0;
}

static bool planes_done(const struct image *now, const struct image *after)
{
    const struct wideep_identity *id = &now->view.identity;
    return words_equal(now->view.rank_tokens, after->view.rank_tokens, NULL,
                       wideep_plane_offset(id, id->model_count, 0)) &&
           words_equal(now->view.expert_tokens, after->view.expert_tokens, NULL,
                       wideep_plane_offset(id, id->model_count, 1));
}

void observe_order(const struct image *before, const struct image *now, const struct image *after)
{
    const struct wideep_view *b = &before->view, *n = &now->view, *a = &after->view;

    order_of_totals(b->totals, n->totals, a->totals);
    for (unsigned m = 0; m < n->identity.model_count; m++) {
        observe_check(n->totals->models[m].recorded_passes == b->totals->models[m].recorded_passes ||
                          planes_done(now, after),
                      "recorded_passes counts a pass that the planes do not");
        const struct wideep_live_model *live = &n->live->models[m], *was = &b->live->models[m];
        observe_check(live->rebalancing_since_ns == was->rebalancing_since_ns ||
                          live->rebalancing_mode == a->live->models[m].rebalancing_mode,
                      "the rebalancing flag was set before its mode");
    }
    const bool moved = head_of(&n->eplb) != head_of(&b->eplb) || head_of(&n->dbo) != head_of(&b->dbo);
    observe_check(!moved || image_totals_equal(now, after, NULL), "head moved before the totals did");
    observe_check(n->live->closed_ns == b->live->closed_ns || n->live->dbo_active == 0, "closed with DBO active");
}

/* ---- records ------------------------------------------------------------------------------------------------ */

static bool eplb_equal(const struct image *a, const struct image *b, uint64_t n)
{
    struct wideep_eplb_record x, y;
    uint32_t x_tokens[WIDEEP_MAX_EP_SIZE], y_tokens[WIDEEP_MAX_EP_SIZE];
    return wideep_eplb_read(&a->view, n, &x, x_tokens) == WIDEEP_READ_OK &&
           wideep_eplb_read(&b->view, n, &y, y_tokens) == WIDEEP_READ_OK && memcmp(&x, &y, sizeof x) == 0 &&
           memcmp(x_tokens, y_tokens, 4 * a->view.identity.ep_size) == 0;
}

static bool dbo_equal(const struct image *a, const struct image *b, uint64_t n)
{
    struct wideep_dbo_record x, y;
    return wideep_dbo_read(&a->view, n, &x) == WIDEEP_READ_OK && wideep_dbo_read(&b->view, n, &y) == WIDEEP_READ_OK &&
           memcmp(&x, &y, sizeof x) == 0;
}

static enum wideep_read read_eplb(const struct image *image, uint64_t n)
{
    struct wideep_eplb_record record;
    return wideep_eplb_read(&image->view, n, &record, NULL);
}

static enum wideep_read read_dbo(const struct image *image, uint64_t n)
{
    struct wideep_dbo_record record;
    return wideep_dbo_read(&image->view, n, &record);
}

static void records_of(const char *kind, const struct wideep_ring *ring, const struct image *before,
                       const struct image *now, const struct image *after,
                       enum wideep_read (*read)(const struct image *, uint64_t),
                       bool (*equal)(const struct image *, const struct image *, uint64_t))
{
    if (!ring->head)
        return;
    uint64_t head = wideep_ring_head(ring), tail = wideep_ring_tail(ring, head);
    /* Beyond head as well: a reader may have seen it move just before the writer began anew. */
    for (uint64_t n = head > ring->count ? head - ring->count : 0; n < head + ring->batch; n++) {
        enum wideep_read result = read(now, n);
        observe_check(n < tail || n >= head || result == WIDEEP_READ_OK, "%s record %llu of %llu reads as %d", kind,
                      (unsigned long long)n, (unsigned long long)head, (int)result);
        observe_check(result != WIDEEP_READ_OK || equal(now, before, n) || equal(now, after, n),
                      "%s record %llu of %llu was accepted torn", kind, (unsigned long long)n,
                      (unsigned long long)head);
    }
}

void observe_records(const struct image *before, const struct image *now, const struct image *after)
{
    records_of("EPLB", &now->view.eplb, before, now, after, read_eplb, eplb_equal);
    records_of("DBO", &now->view.dbo, before, now, after, read_dbo, dbo_equal);
}

/* ---- the exporter's reader ---------------------------------------------------------------------------------- */

static bool sink_ready(void *context, struct segment *segment, uint32_t model, uint64_t pass)
{
    (void)context;
    (void)segment;
    (void)model;
    (void)pass;
    return true;
}

static void sink_pass(void *context, struct segment *segment, const struct ring_pass *pass)
{
    struct observer *observer = context;

    observe_check(pass->records == segment->view.identity.models[pass->model].layers, "a pass of %u records",
                  pass->records);
    if (segment->view.identity.instance_id != observer->instance_id) {
        memset(observer->newest, 0, sizeof observer->newest);
        observer->instance_id = segment->view.identity.instance_id;
    }
    observe_check(pass->pass >= observer->newest[pass->model], "a pass came twice");
    observer->newest[pass->model] = pass->pass + 1;
}

void observer_start(struct observer *ret, const char *directory)
{
    const struct segment_config config = {.directory = directory};

    memset(ret, 0, sizeof *ret);
    if (segment_set_new(&ret->set, &config, 0) != 0 || ring_drain_new(&ret->drain) != 0)
        abort();
}

void observer_stop(struct observer *observer)
{
    segment_set_free(observer->set);
    ring_drain_free(observer->drain);
}

static uint64_t cpu_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void observer_collect(struct observer *observer)
{
    const struct ring_sink sink = {.ready = sink_ready, .pass = sink_pass, .context = observer};
    uint64_t begin_ns = cpu_ns();

    segment_set_scan(observer->set, begin_ns);
    segment_set_reap(observer->set);
    for (uint32_t i = 0; i < observer->set->count; i++) {
        struct segment *segment = observer->set->segments[i];
        ring_mark(segment);
        observe_check(ring_drain_eplb(observer->drain, segment, &sink, &observer->counts), "the ring is not drained");
        ring_drain_dbo(segment, &observer->counts);
    }
    observe_check(cpu_ns() - begin_ns < COLLECT_LIMIT_NS, "the reader took %llu ns",
                  (unsigned long long)(cpu_ns() - begin_ns));
}

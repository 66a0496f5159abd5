#include "inside.h"

#include "bench.h"
#include "guard.h"
#include "snapshot.h"

struct inside {
    struct segment_set *set;
    struct aggregate *aggregate;
    struct ring_drain *drain;
    struct layout *layout;
    uint64_t layout_generation;
    bool experts;
    struct self_stats self;
};

void inside_open(struct inside **ret, const char *directory, bool experts)
{
    const struct segment_config segments = {.directory = directory};
    const struct aggregate_config aggregate = {.window_ns = UINT64_C(10000000000),
                                               .throughput_ns = UINT64_C(10000000000)};
    struct inside *inside = bench_allocate(1, sizeof *inside);

    inside->experts = experts;
    inside->self.version = inside->self.commit = "bench";
    int error = guard_install();
    if (!error)
        error = segment_set_new(&inside->set, &segments, wideep_i_clock_ns(CLOCK_BOOTTIME));
    if (!error)
        error = aggregate_new(&inside->aggregate, &aggregate, inside->set);
    if (!error)
        error = ring_drain_new(&inside->drain);
    if (error)
        bench_fail("set up", error);
    *ret = inside;
}

void inside_close(struct inside *inside)
{
    snapshot_publish(NULL);
    layout_unref(inside->layout);
    ring_drain_free(inside->drain);
    aggregate_free(inside->aggregate);
    segment_set_free(inside->set);
    free(inside);
}

/* As the collector publishes. */
void inside_collect(struct inside *inside)
{
    const struct family_sources sources = {inside->aggregate, &inside->self};
    const uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);

    segment_set_scan(inside->set, now_ns);
    int error = aggregate_collect(inside->aggregate, inside->experts, now_ns);
    if (error)
        bench_fail("collection", error);
    if (!inside->layout || inside->layout_generation != inside->aggregate->generation) {
        layout_unref(inside->layout);
        error = layout_new(&inside->layout, &sources, 200000, true);
        if (error)
            bench_fail("layout", error);
        inside->layout_generation = inside->aggregate->generation;
    }
    struct value *values;
    struct snapshot *snapshot = snapshot_new(inside->layout, now_ns, &values);
    if (!snapshot)
        bench_fail("snapshot", -ENOMEM);
    (void)layout_read_values(inside->layout, &sources, values);
    snapshot_publish(snapshot);
}

static bool always_ready(void *context, struct segment *segment, uint32_t model, uint64_t pass)
{
    (void)context, (void)segment, (void)model, (void)pass;
    return true;
}

static void drop_pass(void *context, struct segment *segment, const struct ring_pass *pass)
{
    (void)context, (void)segment, (void)pass;
}

void inside_scan(struct inside *inside)
{
    segment_set_scan(inside->set, wideep_i_clock_ns(CLOCK_BOOTTIME));
}

uint64_t inside_drain(struct inside *inside)
{
    const struct ring_sink sink = {always_ready, drop_pass, NULL};
    struct ring_counts counts = {0};

    for (uint32_t i = 0; i < inside->set->count; i++) {
        ring_mark(inside->set->segments[i]);
        (void)ring_drain_eplb(inside->drain, inside->set->segments[i], &sink, &counts);
    }
    return counts.read[RING_EPLB];
}

size_t inside_page(enum page_encoding encoding)
{
    const char *page;
    size_t size = 0;
    struct snapshot *snapshot = snapshot_acquire_page();

    if (!snapshot || snapshot_page(snapshot, PAGE_TEXT, encoding, &page, &size) != 0)
        bench_fail("page", -ENOMEM);
    snapshot_release(snapshot);
    return size;
}

size_t inside_render_family(const char *name)
{
    char *page;
    size_t size, lines = 0;
    struct snapshot *snapshot = snapshot_acquire();

    if (!snapshot || snapshot_small_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, &name, 1, &page, &size) != 0)
        bench_fail(name, -ENOMEM);
    for (size_t i = 0; i < size; i++)
        lines += page[i] == '\n';
    free(page);
    snapshot_release(snapshot);
    if (lines <= 2)
        bench_fail(name, -ENOENT);
    return lines - 2; /* HELP and TYPE */
}

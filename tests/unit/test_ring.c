/* Rings whose contents no writer made: what they cost is counted, and nothing is written where it should not be. */
#include "ring.h"
#include "suite.h"

#define LAYERS  3
#define EXPERTS 4
#define EP_SIZE 2

static char directory[64];
static struct wideep_writer *writer;
static struct segment segment;
static struct ring_drain *drain;
static struct ring_counts counts;
static unsigned passes;

static bool on_ready(void *context, struct segment *from, uint32_t model, uint64_t pass)
{
    (void)context;
    (void)from;
    (void)model;
    (void)pass;
    return true;
}

static void on_pass(void *context, struct segment *from, const struct ring_pass *pass)
{
    (void)context;
    (void)from;
    ck_assert_uint_le(pass->records, LAYERS);
    passes++;
}

static void setup(void)
{
    struct wideep_config config = {
        .instance = "ring", .ep_size = EP_SIZE, .model_count = 1, .models = {{"m", LAYERS, EXPERTS, 0}}};
    strcpy(directory, "/dev/shm/wideep-ring.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    config.directory = directory;
    ck_assert_int_eq(wideep_create(&writer, &config), 0);
    memset(&segment, 0, sizeof segment);
    memset(&counts, 0, sizeof counts);
    passes = 0;
    ck_assert_int_eq(wideep_view_init(&segment.view, writer->base, writer->identity.total_size), WIDEEP_OK);
    ck_assert_int_eq(ring_drain_new(&drain), 0);
}

static void teardown(void)
{
    char path[600];
    (void)snprintf(path, sizeof path, "%s/%s", directory, writer->name);
    ring_drain_free(drain);
    wideep_close(&writer);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(directory), 0);
}

static void drain_once(void)
{
    const struct ring_sink sink = {on_ready, on_pass, NULL};
    ring_mark(&segment);
    ck_assert(ring_drain_eplb(drain, &segment, &sink, &counts));
    ring_drain_dbo(&segment, &counts);
}

static uint64_t losses(enum ring_kind kind)
{
    uint64_t sum = 0;
    for (unsigned cause = 0; cause < RING_CAUSES; cause++)
        sum += counts.lost[kind][cause];
    return sum;
}

/* Record n with any flags and layer, its sequence number right. */
static void forge(uint64_t n, uint64_t pass, uint32_t layer, uint32_t flags)
{
    const struct wideep_pass it = {.pass = pass, .step = WIDEEP_STEP_UNKNOWN};
    uint64_t *slot = wideep_i_eplb_slot(writer, n);
    wideep_i_ring_begin(slot, n);
    wideep_i_eplb_words(slot, &it, 1, wideep_i_layer_tags(wideep_i_tags(writer, &it, flags), layer, 0, 0), 1, 1, 1);
    for (uint32_t k = 0; k < EP_SIZE / 2; k++)
        wideep_i_payload(slot, 8 + k, UINT64_MAX);
    wideep_i_ring_end(slot, n);
}

static void publish(uint64_t head)
{
    wideep_i_ring_publish(writer->eplb_shared_head, head);
}

static void record(uint64_t pass)
{
    static int32_t map[LAYERS * EXPERTS], loads[LAYERS * EXPERTS];
    for (int i = 0; i < LAYERS * EXPERTS; i++) {
        map[i] = i % EXPERTS;
        loads[i] = i % EXPERTS + 1;
    }
    const struct wideep_pass it = {.pass = pass, .step = WIDEEP_STEP_UNKNOWN};
    ck_assert_int_eq(wideep_record_pass(writer, &it, loads, map), 0);
}

START_TEST(whole_passes)
{
    for (uint64_t pass = 0; pass < 5; pass++)
        record(pass);
    drain_once();
    ck_assert_uint_eq(passes, 5);
    ck_assert_uint_eq(counts.read[RING_EPLB], 5 * LAYERS);
    ck_assert_uint_eq(losses(RING_EPLB), 0);
}
END_TEST

/* As many layers as the model has and one more, none flagged as the last: the buffers hold what is read. */
START_TEST(pass_without_an_end)
{
    for (uint32_t i = 0; i <= LAYERS; i++)
        forge(i, 1, i < LAYERS ? i : LAYERS - 1, WIDEEP_PARTIAL | (i == 0 ? WIDEEP_FIRST : 0));
    publish(LAYERS + 1);
    drain_once();
    ck_assert_uint_eq(passes, 0);
    ck_assert_uint_eq(counts.lost[RING_EPLB][RING_INVALID], LAYERS + 1);
}
END_TEST

START_TEST(layers_that_do_not_ascend)
{
    forge(0, 1, 1, WIDEEP_PARTIAL | WIDEEP_FIRST);
    forge(1, 1, 1, WIDEEP_PARTIAL | WIDEEP_LAST);
    forge(2, 2, 0, WIDEEP_PARTIAL | WIDEEP_FIRST | WIDEEP_LAST);
    publish(3);
    drain_once();
    ck_assert_uint_eq(passes, 1);
    ck_assert_uint_eq(counts.lost[RING_EPLB][RING_INVALID], 2);
}
END_TEST

START_TEST(pass_that_ends_beyond_the_head)
{
    forge(0, 1, 0, WIDEEP_PARTIAL | WIDEEP_FIRST);
    publish(1);
    drain_once();
    drain_once();
    ck_assert_uint_eq(passes, 0);
    ck_assert_uint_eq(losses(RING_EPLB), 1);
}
END_TEST

/* Each costs few invalid records, no loop over what was never written, and reading goes on. */
START_TEST(heads_that_no_writer_makes)
{
    static const uint64_t heads[] = {UINT64_MAX, UINT64_MAX / 2, (uint64_t)1 << 50, 3};
    const unsigned n = sizeof heads / sizeof *heads;
    for (unsigned i = 0; i < n; i++) {
        publish(heads[i]);
        wideep_i_ring_publish(writer->dbo_shared_head, heads[i]);
        drain_once();
    }
    ck_assert_uint_le(losses(RING_EPLB), 2 * n);
    ck_assert_uint_le(losses(RING_DBO), 2 * n);
    ck_assert_uint_eq(segment.eplb_next, 3);
    ck_assert_uint_eq(segment.dbo_next, 3);
}
END_TEST

/* What is written after the mark is the next collection's. */
START_TEST(a_mark_ends_the_drain)
{
    const struct ring_sink sink = {on_ready, on_pass, NULL};
    record(0);
    ring_mark(&segment);
    record(1);
    ck_assert(ring_drain_eplb(drain, &segment, &sink, &counts));
    ck_assert_uint_eq(passes, 1);
    drain_once();
    ck_assert_uint_eq(passes, 2);
}
END_TEST

/* However slowly it is written, it is no reason to drain again and again. */
START_TEST(ring_of_a_single_batch)
{
    segment.view.eplb.batch = segment.view.eplb.count;
    (void)ring_left_ns(&segment, 1000000000);
    record(0);
    ck_assert_uint_eq(ring_left_ns(&segment, 2000000000), UINT64_MAX);
    drain_once();
    ck_assert_uint_eq(passes, 0);
    ck_assert_uint_eq(ring_left_ns(&segment, 3000000000), UINT64_MAX);
}
END_TEST

/* A ring as large as a segment, its head moved by another whole one: what nobody wrote costs few reads, of slots that
 * are empty, and of slots that claim to be newer than any. */
START_TEST(heads_of_rings_that_nobody_fills)
{
    const struct wideep_ring eplb = segment.view.eplb, dbo = segment.view.dbo;
    const uint32_t count = 1u << 19;
    unsigned char *slots = calloc(count, eplb.stride);
    ck_assert_ptr_nonnull(slots);
    segment.view.eplb.slots = segment.view.dbo.slots = slots;
    segment.view.eplb.count = segment.view.dbo.count = count;
    for (unsigned round = 0; round < 4; round++) {
        uint64_t before[] = {losses(RING_EPLB), losses(RING_DBO)};
        publish((round + 1) * (uint64_t)count);
        wideep_i_ring_publish(writer->dbo_shared_head, (round + 1) * (uint64_t)count);
        for (uint32_t i = 0; i < count && round == 2; i++)
            ((uint64_t *)(void *)(slots + (size_t)i * eplb.stride))[0] = 2 * (i + 4 * (uint64_t)count) + 1;
        uint64_t from[] = {segment.eplb_next, segment.dbo_next};
        drain_once();
        ck_assert_uint_lt(losses(RING_EPLB) - before[0], count + 1000);
        ck_assert_uint_lt(losses(RING_DBO) - before[1], count + 1000);
        /* From the oldest that can be whole. */
        ck_assert_uint_lt(segment.eplb_next,
                          (from[0] > round * (uint64_t)count ? from[0] : round * (uint64_t)count) + 1000);
        ck_assert_uint_lt(segment.dbo_next,
                          (from[1] > round * (uint64_t)count ? from[1] : round * (uint64_t)count) + 1000);
    }
    ck_assert_uint_eq(passes, 0);
    segment.view.eplb = eplb;
    segment.view.dbo = dbo;
    free(slots);
}
END_TEST

/* As many records as a ring can hold are read at once: what is left for the next mark is nothing's of a writer. */
START_TEST(full_rings_are_read_at_once)
{
    const uint64_t whole = (segment.view.eplb.count - segment.view.eplb.batch) / LAYERS;
    for (unsigned round = 0; round < 3; round++) {
        for (uint64_t pass = 0; pass < whole; pass++)
            record(round * whole + pass);
        drain_once();
        ck_assert_uint_eq(passes, (round + 1) * whole);
    }
    ck_assert_uint_eq(losses(RING_EPLB), 0);
}
END_TEST

/* The share ends within a pass: it is read again, whole. */
START_TEST(a_share_that_ends_within_a_pass)
{
    const struct ring_sink sink = {on_ready, on_pass, NULL};
    record(0);
    record(1);
    ring_mark(&segment);
    segment.eplb_budget = LAYERS + 1;
    ck_assert(ring_drain_eplb(drain, &segment, &sink, &counts));
    ck_assert_uint_eq(passes, 1);
    ck_assert_uint_eq(segment.eplb_next, LAYERS);
    drain_once();
    ck_assert_uint_eq(passes, 2);
    ck_assert_uint_eq(losses(RING_EPLB), 0);
}
END_TEST

START_TEST(noise)
{
    const struct wideep_ring *ring = &segment.view.eplb;
    const uint64_t words = ring->stride / 8;
    uint64_t state = 88172645463325252u;
    for (unsigned round = 0; round < 100; round++) {
        for (uint64_t word = 0; word < ring->count * words; word++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            /* Sequence numbers and flags that are often right, so that what is behind them is looked at. */
            uint64_t value = state % 4;
            if (word % words == 0 && state % 8 != 0)
                value = 2 * (word / words) + 2;
            else if (word % words == 3)
                value = state & 0x3ff00;
            wideep_i_store((uint64_t *)(uintptr_t)ring->slots + word, value);
        }
        publish(ring->count);
        segment.eplb_next = 0;
        drain_once();
    }
    ck_assert_uint_gt(losses(RING_EPLB), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ring");
    TCase *tcase = tcase_create("ring");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, whole_passes);
    tcase_add_test(tcase, pass_without_an_end);
    tcase_add_test(tcase, layers_that_do_not_ascend);
    tcase_add_test(tcase, pass_that_ends_beyond_the_head);
    tcase_add_test(tcase, heads_that_no_writer_makes);
    tcase_add_test(tcase, a_mark_ends_the_drain);
    tcase_add_test(tcase, ring_of_a_single_batch);
    tcase_add_test(tcase, heads_of_rings_that_nobody_fills);
    tcase_add_test(tcase, full_rings_are_read_at_once);
    tcase_add_test(tcase, a_share_that_ends_within_a_pass);
    tcase_add_test(tcase, noise);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

/* What a collection and its page cost when nothing but time has changed: no allocation, and rings that do not overrun.
 * All writers live in this process, so liveness is said by a function of ours. */
#include "aggregate.h"
#include "guard.h"
#include "log.h"
#include "snapshot.h"
#include "suite.h"

#define LAYERS  3
#define EXPERTS 8
#define RANKS   4
#define S       UINT64_C(1000000000)

/* Counting needs the allocator's entry points for ourselves; a sanitizer has them already. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(WIDEEP_TSAN)
#if defined(__has_feature)
#if !__has_feature(address_sanitizer) && !__has_feature(memory_sanitizer)
#define COUNTING 1
#endif
#else
#define COUNTING 1
#endif
#endif

static bool counting;
static unsigned allocations;

#ifdef COUNTING
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);

void *malloc(size_t size)
{
    allocations += counting;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    allocations += counting;
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    allocations += counting;
    return __libc_realloc(old, size);
}
#endif

static char directory[64];
static struct segment_set *set;
static struct aggregate *aggregate;
static struct layout *layout;
static struct wideep_writer *writer[RANKS];
static uint64_t passes, now_ns;

static int always_alive(int fd)
{
    (void)fd;
    return 1;
}

static void setup(void)
{
    static const struct aggregate_config config = {S / 10, 10 * S, AGGREGATE_EACH};
    log_setup(LOG_ERROR, LOG_LOGFMT);
    strcpy(directory, "/dev/shm/wideep-steady.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    const struct segment_config segments = {.directory = directory, .instance = "default", .alive = always_alive};
    ck_assert_int_eq(guard_install(), 0);
    passes = 0;
    now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    ck_assert_int_eq(segment_set_new(&set, &segments, now_ns), 0);
    ck_assert_int_eq(aggregate_new(&aggregate, &config, set), 0);
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        const struct wideep_config of_rank = {.directory = directory,
                                              .instance = "default",
                                              .engine = rank,
                                              .rank = rank,
                                              .ep_size = RANKS,
                                              .group = 7,
                                              .model_count = 1,
                                              .models = {{"m", LAYERS, EXPERTS, 0}}};
        ck_assert_int_eq(wideep_create(&writer[rank], &of_rank), 0);
    }
}

static void teardown(void)
{
    snapshot_publish(NULL);
    layout_unref(layout);
    layout = NULL;
    aggregate_free(aggregate);
    segment_set_free(set);
    for (unsigned rank = 0; rank < RANKS; rank++)
        wideep_close(&writer[rank]);
    remove_segments(directory);
}

static void record(unsigned rank, uint64_t pass)
{
    static const int32_t loads[LAYERS * EXPERTS] = {1, 2, 3}, map[LAYERS * EXPERTS] = {0, 1, 2};
    const struct wideep_pass it = {.pass = pass, .step = WIDEEP_STEP_UNKNOWN};
    const struct wideep_dbo_stats dbo = {.pass = pass, .outcome = WIDEEP_IDLE_RANK};
    ck_assert_int_eq(wideep_record_pass(writer[rank], &it, loads, map), 0);
    ck_assert_int_eq(wideep_record_dbo(writer[rank], &dbo), 0);
}

static void record_all(unsigned count)
{
    for (; count > 0; count--, passes++)
        for (unsigned rank = 0; rank < RANKS; rank++)
            record(rank, passes);
}

static void collect(void)
{
    now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    counting = true;
    segment_set_scan(set, now_ns);
    int error = aggregate_collect(aggregate, true, now_ns);
    counting = false;
    ck_assert_int_eq(error, 0);
}

/* As the collector publishes, and a scraper that wants it compressed asks. */
static void publish(void)
{
    static struct self_stats self = {.version = "test", .commit = "test"};
    const struct family_sources sources = {aggregate, &self};
    struct value *values;
    const char *page;
    size_t size;

    if (!layout)
        ck_assert_int_eq(layout_new(&layout, &sources, 10000, true), 0);
    counting = true;
    struct snapshot *snapshot = snapshot_new(layout, now_ns, &values);
    if (!snapshot)
        ck_abort_msg("no snapshot"); /* an assertion that holds would allocate */
    (void)layout_read_values(layout, &sources, values);
    snapshot_publish(snapshot);
    snapshot = snapshot_acquire_page();
    int error = snapshot_page(snapshot, PAGE_TEXT, PAGE_GZIP, &page, &size);
    snapshot_release(snapshot);
    counting = false;
    ck_assert_int_eq(error, 0);
}

static uint64_t lost(void)
{
    uint64_t sum = 0;
    for (unsigned cause = 0; cause < RING_CAUSES; cause++)
        sum += aggregate->counts.lost[RING_EPLB][cause] + aggregate->counts.lost[RING_DBO][cause];
    return sum;
}

START_TEST(no_allocation)
{
    const struct timespec tenth_of_the_window = {.tv_nsec = 10000000};
    /* Checkpoints of expert tokens fill up over a window. */
    for (unsigned i = 0; i < 20; i++) {
        record_all(WIDEEP_RING_PASSES);
        collect();
        (void)nanosleep(&tenth_of_the_window, NULL);
    }
    while (aggregate->groups->members[0]->checkpoints < GROUP_CHECKPOINTS) {
        record_all(1);
        collect();
    }
#ifdef COUNTING
    ck_assert_uint_gt(allocations, 0); /* it does count */
#endif
    for (unsigned i = 0; i < 5; i++) { /* as many snapshots as are kept for those to come */
        record_all(1);
        collect();
        publish();
    }
    allocations = 0;
    for (unsigned i = 0; i < 20; i++) {
        record_all(1 + i * 3);
        collect();
        publish();
        (void)nanosleep(&tenth_of_the_window, NULL);
    }
    ck_assert_uint_eq(allocations, 0);
    ck_assert_uint_eq(lost(), 0);
    ck_assert_uint_eq(aggregate->groups->layer[0].passes, passes);
}
END_TEST

/* A rank that skipped half of the passes, found behind full rings: what it skipped is skipped and not late, for all
 * that the rings are drained in turns. */
START_TEST(turns_decide_nothing_too_early)
{
    for (unsigned rank = 0; rank < RANKS; rank++)
        record(rank, 0);
    collect();
    for (uint64_t pass = 1; pass < WIDEEP_RING_PASSES; pass++)
        for (unsigned rank = 0; rank < RANKS; rank++)
            if (rank != 2 || pass >= 40)
                record(rank, pass);
    collect();
    const struct group *group = aggregate->groups;
    ck_assert_uint_eq(group->layer[0].passes, 1 + WIDEEP_RING_PASSES - 40);
    ck_assert_uint_eq(group->incomplete[JOIN_SKIPPED], 39);
    ck_assert_uint_eq(lost(), 0);
}
END_TEST

START_TEST(left_until_overrun)
{
    const uint64_t start_ns = S;
    collect();
    ck_assert_uint_eq(aggregate_left_ns(aggregate, start_ns), UINT64_MAX); /* no pace is known */
    ck_assert_uint_eq(aggregate_left_ns(aggregate, start_ns + S), UINT64_MAX);
    /* 32 of 64 passes in a second: the other half fills in a second. */
    record_all(WIDEEP_RING_PASSES / 2);
    uint64_t left_ns = aggregate_left_ns(aggregate, start_ns + 2 * S);
    ck_assert_uint_ge(left_ns, S - 1000);
    ck_assert_uint_le(left_ns, S + 1000);
    /* At the same moment there is no other pace. */
    ck_assert_uint_eq(aggregate_left_ns(aggregate, start_ns + 2 * S), left_ns);
    /* A second without one: half the pace. Drained, the whole ring is left. */
    left_ns = aggregate_left_ns(aggregate, start_ns + 3 * S);
    ck_assert_uint_ge(left_ns, 2 * S - 1000);
    ck_assert_uint_le(left_ns, 2 * S + 1000);
    aggregate_drain(aggregate, now_ns);
    left_ns = aggregate_left_ns(aggregate, start_ns + 3 * S);
    ck_assert_uint_ge(left_ns, 4 * S - 1000);
    ck_assert_uint_le(left_ns, 4 * S + 1000);
    /* Full: none. */
    record_all(WIDEEP_RING_PASSES);
    ck_assert_uint_eq(aggregate_left_ns(aggregate, start_ns + 4 * S), 0);
    aggregate_drain(aggregate, now_ns);
    ck_assert_uint_eq(lost(), 0);
    /* It fades when all is silent. */
    for (unsigned i = 0; i < 100; i++)
        left_ns = aggregate_left_ns(aggregate, start_ns + (5 + i) * S);
    ck_assert_uint_eq(left_ns, UINT64_MAX);
    ck_assert_uint_eq(aggregate->groups->layer[0].passes, passes);
}
END_TEST

START_TEST(the_ring_that_is_left_least)
{
    collect();
    (void)aggregate_left_ns(aggregate, S);
    for (uint64_t pass = 0; pass < WIDEEP_DBO_SLOTS - 2; pass++) {
        const struct wideep_dbo_stats dbo = {.pass = pass, .outcome = WIDEEP_IDLE_RANK};
        ck_assert_int_eq(wideep_record_dbo(writer[1], &dbo), 0);
    }
    uint64_t left_ns = aggregate_left_ns(aggregate, 2 * S);
    ck_assert_uint_le(left_ns, S / (WIDEEP_DBO_SLOTS - 2) + 1);
    /* What nobody serves needs no haste. */
    for (uint32_t i = 0; i < set->count; i++)
        if (set->segments[i]->view.identity.rank == 1)
            segment_refuse(set, set->segments[i], SEGMENT_DUPLICATE_EP_RANK);
    ck_assert_uint_eq(aggregate_left_ns(aggregate, 3 * S), UINT64_MAX);
}
END_TEST

/* A head that no writer moves so is no pace. */
START_TEST(hostile_heads)
{
    const uint64_t heads[] = {UINT64_MAX, 0, UINT64_MAX / 2, 1, (uint64_t)1 << 40, 0};
    collect();
    for (unsigned i = 0; i < sizeof heads / sizeof *heads; i++) {
        wideep_i_ring_publish(writer[0]->eplb_shared_head, heads[i]);
        uint64_t left_ns = aggregate_left_ns(aggregate, (1 + i) * S);
        ck_assert(left_ns == 0 || left_ns > S);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("steady");
    TCase *steady = tcase_create("steady");
    tcase_add_checked_fixture(steady, setup, teardown);
    tcase_set_timeout(steady, 120);
    tcase_add_test(steady, no_allocation);
    tcase_add_test(steady, turns_decide_nothing_too_early);
    tcase_add_test(steady, left_until_overrun);
    tcase_add_test(steady, the_ring_that_is_left_least);
    tcase_add_test(steady, hostile_heads);
    suite_add_tcase(suite, steady);
    return suite_run(suite);
}

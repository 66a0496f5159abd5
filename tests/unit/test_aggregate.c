/* From segments on disk to figures. All writers live in this process; who is alive is said by a function of ours, as a
 * process does not see its own locks. */
#include "aggregate.h"
#include "guard.h"
#include "log.h"
#include "suite.h"

#include <time.h>

#define LAYERS  2
#define EXPERTS 4
#define WRITERS 4
#define S       UINT64_C(1000000000)

static char directory[64];
static struct segment_set *set;
static struct aggregate *aggregate;
static struct wideep_writer *writer[WRITERS];
static ino_t dead[8];
static unsigned dead_count;

static int relink = -1; /* slot whose file is deleted and linked anew while the scan asks for its lock, -1: none */

static void link_anew(unsigned slot);

static int fake_alive(int fd)
{
    struct stat st;
    if (relink >= 0) {
        unsigned slot = (unsigned)relink;
        relink = -1;
        link_anew(slot);
    }
    if (fstat(fd, &st) != 0)
        return -errno;
    for (unsigned i = 0; i < dead_count; i++)
        if (dead[i] == st.st_ino)
            return 0;
    return 1;
}

static void setup(void)
{
    static const struct aggregate_config config = {10 * S, 10 * S, AGGREGATE_EACH};
    log_setup(LOG_ERROR, LOG_LOGFMT);
    strcpy(directory, "/dev/shm/wideep-aggr.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    const struct segment_config segments = {.directory = directory, .instance = "default", .alive = fake_alive};
    dead_count = 0;
    ck_assert_int_eq(guard_install(), 0);
    ck_assert_int_eq(segment_set_new(&set, &segments, wideep_i_clock_ns(CLOCK_BOOTTIME)), 0);
    ck_assert_int_eq(aggregate_new(&aggregate, &config, set), 0);
}

static void file_path(char *ret, size_t size, const char *name)
{
    (void)snprintf(ret, size, "%s/%s", directory, name);
}

static void teardown(void)
{
    aggregate_free(aggregate);
    segment_set_free(set);
    for (unsigned i = 0; i < WRITERS; i++)
        wideep_close(&writer[i]);
    remove_segments(directory);
}

static struct wideep_config config_of(uint32_t rank, uint32_t ep_size)
{
    struct wideep_config config = {.directory = directory,
                                   .instance = "default",
                                   .engine = rank,
                                   .rank = rank,
                                   .ep_size = ep_size,
                                   .dp_rank = rank,
                                   .dp_size = ep_size,
                                   .model_count = 1,
                                   .group = 77,
                                   .models = {{"m", LAYERS, EXPERTS, 0}}};
    return config;
}

/* As a rank does whose file was deleted; the old inode's lock is then free. */
static void link_anew(unsigned slot)
{
    char path[600];
    struct stat st;
    file_path(path, sizeof path, writer[slot]->name);
    ck_assert_int_eq(stat(path, &st), 0);
    dead[dead_count++] = st.st_ino;
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(wideep_check(writer[slot]), 0);
}

static void create(unsigned slot, const struct wideep_config *config)
{
    int error = wideep_create(&writer[slot], config);
    ck_assert_msg(error == 0, "%s", wideep_error_text(error));
}

static void create_rank(uint32_t rank, uint32_t ep_size)
{
    const struct wideep_config config = config_of(rank, ep_size);
    create(rank, &config);
}

/* Loads of the four experts, the same in both layers. */
static void record(unsigned slot, uint64_t pass, int32_t a, int32_t b, int32_t c, int32_t d)
{
    static int32_t map[LAYERS * EXPERTS], loads[LAYERS * EXPERTS];
    const int32_t of_expert[EXPERTS] = {a, b, c, d};
    for (int i = 0; i < LAYERS * EXPERTS; i++) {
        map[i] = i % EXPERTS;
        loads[i] = of_expert[i % EXPERTS];
    }
    const struct wideep_pass it = {.pass = pass, .step = WIDEEP_STEP_UNKNOWN};
    ck_assert_int_eq(wideep_record_pass(writer[slot], &it, loads, map), 0);
}

static void collect(void)
{
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    segment_set_scan(set, now_ns);
    ck_assert_int_eq(aggregate_collect(aggregate, true, now_ns), 0);
}

static uint32_t rejected(unsigned reason)
{
    uint32_t counts[SEGMENT_STATES][SEGMENT_REASONS];
    segment_set_count(set, counts);
    return counts[SEGMENT_REJECTED][reason];
}

static struct group *only_group(void)
{
    ck_assert_ptr_nonnull(aggregate->groups);
    ck_assert_ptr_null(aggregate->groups->next);
    return aggregate->groups;
}

START_TEST(window_mean)
{
    create_rank(0, 2);
    create_rank(1, 2);
    collect();
    /* EP rank 0 has experts 0 and 1. Pass 0: 10 and 6; pass 1: 4 and 8. */
    record(0, 0, 5, 1, 2, 0);
    record(1, 0, 2, 2, 2, 2);
    record(0, 1, 1, 1, 3, 1);
    record(1, 1, 1, 1, 2, 2);
    collect();
    const struct group *group = only_group();
    for (unsigned l = 0; l < LAYERS; l++) {
        ck_assert_uint_eq(group->window[l].passes, 2);
        ck_assert_double_eq(group->window[l].avg, 14);
        ck_assert_double_eq(group->window[l].max, 18);
        ck_assert_uint_eq(group->layer[l].tokens, 28);
        ck_assert_uint_eq(group->layer[l].max, 18);
    }
    ck_assert_uint_eq(group->seen, 2);
    ck_assert_uint_eq(group_rank_tokens(group, 0, 0), 14);
    ck_assert_uint_eq(group_rank_tokens(group, 1, 1), 14);
    collect(); /* idle: the figures stand */
    ck_assert_double_eq(group->window[0].max, 18);
    ck_assert_uint_eq(aggregate->counts.read[RING_EPLB], 8);
}
END_TEST

START_TEST(no_tokens)
{
    create_rank(0, 1);
    record(0, 0, 0, 0, 0, 0);
    collect();
    const struct group *group = only_group();
    ck_assert_uint_eq(group->window[0].passes, 1);
    ck_assert_double_eq(group->window[0].max, 0);
    ck_assert_double_eq(group->balancedness_sum, 0);
    for (unsigned i = 0; i < GROUP_BALANCEDNESS_BUCKETS; i++)
        ck_assert_uint_eq(group->balancedness_bucket[i], 0);
}
END_TEST

START_TEST(scaled_sample)
{
    create_rank(1, 4); /* one of four */
    record(1, 0, 8, 2, 1, 1);
    collect();
    const struct group *group = only_group();
    ck_assert_uint_eq(group->seen, 1);
    ck_assert_double_eq(group->window[0].avg, 12);
    ck_assert_double_eq(group->window[0].max, 32);
    ck_assert_uint_eq(group->layer[0].tokens, 12); /* totals are not scaled */
    ck_assert_double_eq(group->balancedness_sum, LAYERS * 12.0 / 32);
}
END_TEST

START_TEST(experts)
{
    create_rank(0, 2);
    create_rank(1, 2);
    record(0, 0, 100, 100, 100, 100);
    record(1, 0, 100, 100, 100, 100);
    collect();
    ck_assert_ptr_null(only_group()->expert_tokens);
    record(0, 1, 4, 0, 2, 0);
    record(0, 2, 2, 0, 0, 0);
    record(1, 1, 1, 0, 0, 0);
    record(1, 2, 1, 0, 0, 4);
    collect();
    const double *loads = only_group()->expert_tokens;
    ck_assert_ptr_nonnull(loads);
    ck_assert_double_eq(loads[0], 4);
    ck_assert_double_eq(loads[1], 0);
    ck_assert_double_eq(loads[EXPERTS + 2], 1);
    ck_assert_double_eq(loads[EXPERTS + 3], 2);
}
END_TEST

START_TEST(duplicate_ep_rank)
{
    struct wideep_config config = config_of(0, 1);
    create(0, &config);
    config.engine = 5;
    create(1, &config);
    record(0, 0, 1, 1, 1, 1);
    record(1, 0, 50, 50, 50, 50);
    collect();
    ck_assert_uint_eq(rejected(SEGMENT_DUPLICATE_EP_RANK), 1);
    ck_assert_uint_eq(only_group()->seen, 1);
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 0), 4);
    ck_assert_uint_eq(only_group()->layer[0].tokens, 4);
    ck_assert_uint_eq(only_group()->label, 0);
}
END_TEST

START_TEST(two_groups_of_one_model)
{
    struct wideep_config config = config_of(0, 1);
    create(0, &config);
    config.engine = 3;
    config.group = 78;
    create(1, &config);
    record(0, 0, 1, 1, 1, 1);
    record(1, 0, 5, 5, 5, 5);
    collect();
    const struct group *a = aggregate->groups, *b = a ? a->next : NULL;
    ck_assert_ptr_nonnull(b);
    ck_assert_ptr_null(b->next);
    ck_assert_uint_eq(a->label + b->label, 3);
    ck_assert_uint_eq((a->label == 0 ? a : b)->layer[0].tokens, 4);
    ck_assert_uint_eq((a->label == 3 ? a : b)->layer[0].tokens, 20);
    ck_assert(!a->hidden && !b->hidden);
    ck_assert_uint_eq(rejected(SEGMENT_DUPLICATE_EP_RANK), 0);
}
END_TEST

START_TEST(takeover_keeps_sums)
{
    create_rank(0, 2);
    create_rank(1, 2);
    record(0, 0, 1, 2, 3, 4);
    record(1, 0, 1, 1, 1, 1);
    collect();
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 0), 5);
    record(0, 1, 1, 0, 0, 0); /* read by the last draining alone */
    wideep_close(&writer[0]);
    create_rank(0, 2);
    collect();
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 0), 6);
    record(0, 0, 10, 0, 0, 0);
    collect();
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 0), 16);
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 1), 9);
}
END_TEST

START_TEST(deleted_in_part)
{
    char path[200];
    create_rank(0, 2);
    create_rank(1, 2);
    record(0, 0, 1, 2, 3, 4);
    record(1, 0, 1, 1, 1, 1);
    collect();
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 1), 9);
    wideep_close(&writer[0]);
    file_path(path, sizeof path, "wideep.default.e0.r0");
    ck_assert_int_eq(unlink(path), 0);
    for (unsigned i = 0; i < 3; i++)
        collect();
    ck_assert_uint_eq(set->count, 1);
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 1), 0); /* a clean reset */
    record(1, 1, 0, 0, 2, 1);
    collect();
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 1), 3);
}
END_TEST

START_TEST(loads_of_tp_ranks_count_once)
{
    struct wideep_config config = config_of(0, 2);
    config.tp_size = 2;
    config.flags = WIDEEP_LOADS_REPLICATED;
    create(0, &config);
    config.rank = config.tp_rank = 1;
    create(1, &config);
    for (unsigned slot = 0; slot < 2; slot++)
        record(slot, 0, 1, 2, 3, 4);
    collect();
    ck_assert_uint_eq(only_group()->seen, 2);
    ck_assert_uint_eq(only_group()->layer[0].tokens, 10);
    ck_assert_uint_eq(only_group()->layer[0].max, 7);
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 1), 7);
    ck_assert_double_eq(only_group()->window[0].max, 7);
}
END_TEST

START_TEST(dead_rank)
{
    struct stat st;
    char path[200];
    create_rank(0, 2);
    create_rank(1, 2);
    record(0, 0, 1, 1, 1, 1);
    record(1, 0, 1, 1, 1, 1);
    record(0, 1, 1, 1, 1, 1);
    collect();
    ck_assert_uint_eq(only_group()->layer[0].passes, 1);
    file_path(path, sizeof path, "wideep.default.e1.r1");
    ck_assert_int_eq(stat(path, &st), 0);
    dead[dead_count++] = st.st_ino;
    collect();
    ck_assert_uint_eq(only_group()->incomplete[JOIN_DEAD], 1);
    ck_assert_uint_eq(only_group()->seen, 1);
    record(0, 2, 1, 1, 1, 1);
    collect();
    ck_assert_uint_eq(only_group()->layer[0].passes, 2);
    ck_assert_uint_eq(group_rank_tokens(only_group(), 0, 0), 8);
}
END_TEST

/* The scan has read the directory, and the writer moves to a new inode before its lock is asked for. */
START_TEST(linked_anew_during_a_scan)
{
    create_rank(0, 2);
    create_rank(1, 2);
    collect();
    relink = 1;
    record(0, 0, 1, 1, 1, 1);
    collect();
    const struct group *group = only_group();
    ck_assert_int_eq(relink, -1);
    ck_assert_uint_eq(group->seen, 2);
    record(1, 0, 1, 1, 1, 1);
    record(0, 1, 1, 1, 1, 1);
    record(1, 1, 1, 1, 1, 1);
    collect();
    ck_assert_uint_eq(group->seen, 2);
    ck_assert_uint_eq(set->count, 2);
    ck_assert_uint_eq(group->layer[0].passes, 2);
    for (unsigned cause = 0; cause < JOIN_CAUSES; cause++)
        ck_assert_uint_eq(group->incomplete[cause], 0);
}
END_TEST

static void write_file(const char *name, const void *bytes, size_t length)
{
    char path[200];
    file_path(path, sizeof path, name);
    FILE *file = fopen(path, "we");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, length, file), length);
    ck_assert_int_eq(fclose(file), 0);
}

START_TEST(bad_files)
{
    static char noise[2 * WIDEEP_IDENTITY_PAGE];
    create_rank(0, 1);
    record(0, 0, 1, 1, 1, 1);
    memset(noise, 'x', sizeof noise);
    write_file("wideep.default.e1.r0", noise, 0);
    write_file("wideep.default.e2.r0", noise, 100);
    write_file("wideep.default.e3.r0", noise, sizeof noise);
    write_file("wideep.default.e4.r0", writer[0]->base, WIDEEP_IDENTITY_PAGE); /* says more than it has */
    write_file("wideep.default.e5.r0", writer[0]->base, (size_t)writer[0]->size);
    write_file("wideep.default", noise, 1);
    write_file("wideep.other.e0.r0", noise, 1);
    collect();
    ck_assert_uint_eq(rejected(WIDEEP_BAD_EMPTY), 1);
    ck_assert_uint_eq(rejected(WIDEEP_BAD_TRUNCATED) + rejected(WIDEEP_BAD_SIZE), 2);
    ck_assert_uint_eq(rejected(WIDEEP_BAD_MAGIC), 1);
    ck_assert_uint_eq(rejected(SEGMENT_NAME_MISMATCH), 1);
    ck_assert_uint_eq(rejected(WIDEEP_BAD_NAME), 1);
    ck_assert_uint_eq(set->ignored, 1);
    ck_assert_uint_eq(set->count, 1);
    ck_assert_uint_eq(only_group()->layer[0].tokens, 4); /* the rest is served */
}
END_TEST

/* Written before this boot: its totals are served, its passes are of no time that can be compared. */
START_TEST(segment_of_another_boot)
{
    create_rank(0, 1);
    record(0, 0, 1, 2, 3, 4);
    ((struct wideep_identity *)writer[0]->base)->boot_id[0] ^= 1;
    ((struct wideep_identity *)writer[0]->base)->start_boottime_ns = UINT64_MAX / 2;
    collect();
    const struct group *group = only_group();
    ck_assert_int_eq(set->segments[0]->state, SEGMENT_DEAD);
    ck_assert_uint_eq(group_rank_tokens(group, 0, 0), 10);
    ck_assert_uint_eq(group->layer[0].passes, 0);
    record(0, 1, 1, 2, 3, 4);
    collect();
    ck_assert_uint_eq(group->layer[0].passes, 0);
}
END_TEST

/* Without a group, an engine is one by itself. */
START_TEST(no_group_is_the_engine)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        struct wideep_config config = config_of(0, 1);
        config.engine = engine;
        config.group = 0;
        create(engine, &config);
        record(engine, 0, 1, 0, 0, 0);
    }
    collect();
    ck_assert_uint_eq(rejected(SEGMENT_DUPLICATE_EP_RANK), 0);
    ck_assert_ptr_nonnull(aggregate->groups->next);
    ck_assert_uint_eq(aggregate->groups->layer[0].passes, 1);
    ck_assert_uint_eq(aggregate->groups->next->layer[0].passes, 1);
}
END_TEST

START_TEST(huge_file)
{
    char path[600];
    create_rank(0, 1);
    file_path(path, sizeof path, writer[0]->name);
    ck_assert_int_eq(truncate(path, (off_t)1 << 40), 0);
    collect();
    ck_assert_uint_eq(rejected(WIDEEP_BAD_SIZE), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("aggregate");
    TCase *tcase = tcase_create("aggregate");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, window_mean);
    tcase_add_test(tcase, no_tokens);
    tcase_add_test(tcase, scaled_sample);
    tcase_add_test(tcase, experts);
    tcase_add_test(tcase, duplicate_ep_rank);
    tcase_add_test(tcase, two_groups_of_one_model);
    tcase_add_test(tcase, takeover_keeps_sums);
    tcase_add_test(tcase, deleted_in_part);
    tcase_add_test(tcase, loads_of_tp_ranks_count_once);
    tcase_add_test(tcase, dead_rank);
    tcase_add_test(tcase, linked_anew_during_a_scan);
    tcase_add_test(tcase, bad_files);
    tcase_add_test(tcase, segment_of_another_boot);
    tcase_add_test(tcase, no_group_is_the_engine);
    tcase_add_test(tcase, huge_file);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

/* What load balancers are told, from segments on disk. All writers live in this process; who is alive is said by a
 * function of ours, as a process does not see its own locks. */
#include "guard.h"
#include "lb.h"
#include "log.h"
#include "suite.h"

#define WRITERS 4
#define S       UINT64_C(1000000000)

static char directory[64];
static struct segment_set *set;
static struct aggregate *aggregate;
static struct lb *lb;
static struct wideep_writer *writer[WRITERS];
static ino_t dead[8];
static unsigned dead_count;

static int fake_alive(int fd)
{
    struct stat st;
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
    strcpy(directory, "/dev/shm/wideep-lb.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    const struct segment_config segments = {.directory = directory, .instance = "default", .alive = fake_alive};
    dead_count = 0;
    ck_assert_int_eq(guard_install(), 0);
    ck_assert_int_eq(segment_set_new(&set, &segments, wideep_i_clock_ns(CLOCK_BOOTTIME)), 0);
    ck_assert_int_eq(aggregate_new(&aggregate, &config, set), 0);
    ck_assert_int_eq(lb_new(&lb, false), 0);
}

static void file_path(char *ret, size_t size, const char *name)
{
    (void)snprintf(ret, size, "%s/%s", directory, name);
}

static void teardown(void)
{
    lb_free(lb);
    aggregate_free(aggregate);
    segment_set_free(set);
    for (unsigned i = 0; i < WRITERS; i++)
        wideep_close(&writer[i]);
    remove_segments(directory);
}

static void create(unsigned slot, uint32_t engine)
{
    const struct wideep_config config = {.directory = directory,
                                         .instance = "default",
                                         .engine = engine,
                                         .rank = slot,
                                         .ep_size = WRITERS,
                                         .model_count = 2,
                                         .group = 77,
                                         .models = {{"m", 2, 4, 0}, {"draft", 1, 4, 0}}};
    int error = wideep_create(&writer[slot], &config);
    ck_assert_msg(error == 0, "%s", wideep_error_text(error));
}

static void slot_path(unsigned slot, char *ret, size_t size)
{
    file_path(ret, size, writer[slot]->name);
}

static void kill_writer(unsigned slot)
{
    char path[600];
    struct stat st;
    slot_path(slot, path, sizeof path);
    ck_assert_int_eq(stat(path, &st), 0);
    dead[dead_count++] = st.st_ino;
}

static void update(void)
{
    ck_assert_int_eq(lb_update(lb, aggregate, wideep_i_clock_ns(CLOCK_BOOTTIME)), 0);
}

static void collect(void)
{
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    segment_set_scan(set, now_ns);
    ck_assert_int_eq(aggregate_collect(aggregate, false, now_ns), 0);
    update();
}

static enum lb_state state_of_all(void)
{
    struct lb_view view;
    ck_assert_int_eq(lb_copy(lb, NULL, wideep_i_clock_ns(CLOCK_BOOTTIME), &view), 0);
    free(view.engines);
    return view.state;
}

static struct lb_engine row(uint32_t number)
{
    struct lb_view view;
    ck_assert_int_eq(lb_copy(lb, &number, wideep_i_clock_ns(CLOCK_BOOTTIME), &view), 0);
    struct lb_engine copy = {.state = view.state};
    ck_assert_uint_le(view.count, 1);
    if (view.count == 1)
        copy = view.engines[0];
    ck_assert_int_eq(copy.state, view.state);
    free(view.engines);
    return copy;
}

/* The page of /lb/metrics; the caller frees it. */
static char *page(const char *path)
{
    const struct http_request request = {.method = "GET", .path = path, .peer = "unix"};
    struct http_reply reply = {0};
    lb_handle_metrics(lb, &request, &reply);
    ck_assert_ptr_nonnull(reply.body);
    ck_assert_uint_eq(strlen(reply.body), reply.size);
    ck_assert(!reply.constant);
    ck_assert_uint_eq(reply.code, strstr(path, "/x/") || strstr(path, "other") || strstr(path, "65536") ? 404 : 200);
    return reply.body;
}

static void page_has(const char *path, const char *line)
{
    char *text = page(path);
    ck_assert_msg(strstr(text, line), "%s lacks %s:\n%s", path, line, text);
    free(text);
}

START_TEST(nobody_yet)
{
    ck_assert_int_eq(state_of_all(), LB_UNKNOWN); /* no board yet */
    collect();
    ck_assert_int_eq(state_of_all(), LB_UNKNOWN);
    ck_assert_int_eq(row(0).state, LB_UNKNOWN);
    page_has("/lb/metrics", "\nwideep_lb_ready 1\n");
    page_has("/lb/3/metrics", "\nwideep_lb_ready 0\n");
    page_has("/lb/3/metrics", "\nwideep_lb_up{engine=\"3\"} 0\n");
    page_has("/lb/3/metrics", "\nwideep_lb_state{engine=\"3\",state=\"unknown\"} 1\n");
}
END_TEST

START_TEST(rearrangements)
{
    create(0, 0);
    create(1, 1);
    collect();
    ck_assert_int_eq(state_of_all(), LB_SERVING);
    ck_assert_uint_eq(row(0).ranks_up, 1);
    uint64_t serving_ms = row(0).since_unix_ms;
    wideep_rearrangement_begin(writer[1], 1, WIDEEP_ASYNC);
    update(); /* without a collection */
    ck_assert_int_eq(state_of_all(), LB_REBALANCING);
    ck_assert_int_eq(row(0).state, LB_SERVING);
    ck_assert_uint_eq(row(0).since_unix_ms, serving_ms);
    ck_assert_int_eq(row(1).state, LB_REBALANCING);
    page_has("/lb/metrics", "\nwideep_lb_ready 1\n");
    page_has("/lb/metrics", "\nwideep_lb_blocked 0\n");
    page_has("/lb/metrics", "\nwideep_lb_up{engine=\"1\"} 1\n");
    wideep_rearrangement_begin(writer[1], 0, WIDEEP_SYNC);
    update();
    ck_assert_int_eq(row(1).state, LB_BLOCKED); /* the worse of its two models */
    ck_assert_int_eq(state_of_all(), LB_BLOCKED);
    uint64_t now_ms = wideep_i_clock_ns(CLOCK_REALTIME) / 1000000;
    ck_assert_uint_le(row(1).since_unix_ms, now_ms);
    ck_assert_uint_gt(row(1).since_unix_ms, now_ms - 60000);
    page_has("/lb/metrics", "\nwideep_lb_ready 0\n");
    page_has("/lb/metrics", "\nwideep_lb_blocked 1\n");
    page_has("/lb/0/metrics", "\nwideep_lb_blocked 0\n");
    page_has("/lb/metrics", "\nwideep_lb_up{engine=\"0\"} 1\n");
    page_has("/lb/1/metrics", "\nwideep_lb_up{engine=\"1\"} 0\n");
    page_has("/lb/1/metrics", "\nwideep_lb_state{engine=\"1\",state=\"blocked\"} 1\n");
    wideep_rearrangement_end(writer[1], 0, NULL);
    wideep_rearrangement_end(writer[1], 1, NULL);
    update();
    ck_assert_int_eq(state_of_all(), LB_SERVING);
    ck_assert_uint_eq(row(1).rebalancing_since_ns, 0);
}
END_TEST

START_TEST(death)
{
    create(0, 0);
    create(1, 0);
    create(2, 1);
    collect();
    wideep_rearrangement_begin(writer[1], 0, WIDEEP_SYNC);
    kill_writer(1);
    update(); /* seen between collections */
    ck_assert_int_eq(row(0).state, LB_DEAD);
    ck_assert_uint_eq(row(0).ranks, 2);
    ck_assert_uint_eq(row(0).ranks_up, 1);
    ck_assert(!row(0).closed);
    ck_assert_int_eq(row(1).state, LB_SERVING);
    ck_assert_int_eq(state_of_all(), LB_DEAD);
    page_has("/lb/0/metrics", "\nwideep_lb_rebalancing_seconds{engine=\"0\"} 0.000\n");
    collect();
    ck_assert_int_eq(row(0).state, LB_DEAD);
    ck_assert_int_eq(segment_probe(set, aggregate->engines->ranks[1]), SEGMENT_DEAD);
}
END_TEST

START_TEST(linked_anew)
{
    char path[600];
    create(0, 0);
    collect();
    slot_path(0, path, sizeof path);
    kill_writer(0); /* the lock on the old file goes with the file */
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(wideep_check(writer[0]), 0);
    update();
    ck_assert_int_eq(row(0).state, LB_SERVING);
    collect();
    ck_assert_int_eq(row(0).state, LB_SERVING);
}
END_TEST

START_TEST(closed_in_order)
{
    create(0, 0);
    create(1, 0);
    create(2, 1);
    collect();
    wideep_close(&writer[1]);
    update();
    ck_assert_int_eq(row(0).state, LB_SERVING); /* an engine that shrank */
    ck_assert_uint_eq(row(0).ranks, 1);
    wideep_close(&writer[0]);
    update();
    ck_assert_int_eq(row(0).state, LB_DEAD);
    ck_assert(row(0).closed);
    ck_assert_int_eq(state_of_all(), LB_SERVING);
    page_has("/lb/metrics", "\nwideep_lb_up{engine=\"0\"} 0\n");
    page_has("/lb/metrics", "\nwideep_lb_ready 1\n");
    wideep_close(&writer[2]);
    collect();
    ck_assert_int_eq(state_of_all(), LB_DEAD); /* nothing here serves any more */
    create(2, 1);
    collect();
    ck_assert_int_eq(state_of_all(), LB_SERVING);
}
END_TEST

START_TEST(deleted)
{
    char path[600];
    create(0, 0);
    create(1, 1);
    collect();
    kill_writer(0);
    collect();
    ck_assert_int_eq(state_of_all(), LB_DEAD);
    slot_path(0, path, sizeof path);
    ck_assert_int_eq(unlink(path), 0);
    collect();
    collect();
    ck_assert_int_eq(row(0).state, LB_UNKNOWN);
    ck_assert_int_eq(state_of_all(), LB_SERVING);
    kill_writer(1);
    slot_path(1, path, sizeof path);
    ck_assert_int_eq(unlink(path), 0);
    collect();
    collect();
    ck_assert_int_eq(row(1).state, LB_UNKNOWN);
    ck_assert_int_eq(state_of_all(), LB_DEAD);
}
END_TEST

START_TEST(collector_stands_still)
{
    struct lb_view view;
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    create(0, 0);
    collect();
    ck_assert_int_eq(lb_copy(lb, NULL, now_ns + LB_STALE_NS / 2, &view), 0);
    ck_assert(!view.stale);
    free(view.engines);
    ck_assert_int_eq(lb_copy(lb, NULL, now_ns + LB_STALE_NS + 60 * S, &view), 0);
    ck_assert(view.stale);
    ck_assert_int_eq(view.state, LB_UNKNOWN);
    ck_assert_uint_eq(view.count, 0);
    free(view.engines);
}
END_TEST

START_TEST(paths)
{
    static const char *const bad[] = {"/lb/x/metrics", "/lb/65536/metrics", "/lb/other", "/lb/1/other"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        free(page(bad[i]));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lb");
    TCase *tcase = tcase_create("lb");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, nobody_yet);
    tcase_add_test(tcase, rearrangements);
    tcase_add_test(tcase, death);
    tcase_add_test(tcase, linked_anew);
    tcase_add_test(tcase, closed_in_order);
    tcase_add_test(tcase, deleted);
    tcase_add_test(tcase, collector_stands_still);
    tcase_add_test(tcase, paths);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}

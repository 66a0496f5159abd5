/* Files that change while they are looked at, and lines about those that never stop changing. */
#include "segment.h"
#include "guard.h"
#include "suite.h"

#include <stdarg.h>
#include <sys/syscall.h>

#define SECOND  UINT64_C(1000000000)
#define TURNS   40
#define LINES   4 /* as segment.c has it */
#define NAME    "wideep.unit.e0.r0"
#define LOG_MAX 65536

static char directory[64], path[128], other[128];
static struct segment_set *set;
static struct wideep_writer *writer;
static unsigned char *image;
static uint64_t image_size;
static uint64_t now_ns;
static char lines[LOG_MAX + 1];
static bool swapping;

/* In place of the C library's: between the look at a name and its opening. */
int openat(int at, const char *name, int flags, ...)
{
    if (swapping && strcmp(name, NAME) == 0) {
        swapping = false;
        ck_assert_int_eq(rename(other, path), 0);
    }
    return (int)syscall(SYS_openat, at, name, flags, 0);
}

static void write_file(const char *where, uint64_t size)
{
    FILE *file = fopen(where, "wbe");

    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(image, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
}

static int is_dead(int fd)
{
    (void)fd;
    return 0;
}

static void setup(void)
{
    struct wideep_config config = {.instance = "unit", .ep_size = 1, .model_count = 1, .models = {{"m", 1, 1, 0}}};
    struct segment_config segments = {.directory = directory, .alive = is_dead};

    strcpy(directory, "/dev/shm/wideep-segment.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/%s", directory, NAME);
    (void)snprintf(other, sizeof other, "%s/other", directory);
    config.directory = directory;
    ck_assert_int_eq(wideep_create(&writer, &config), 0);
    image_size = writer->size;
    image = malloc(image_size);
    ck_assert_ptr_nonnull(image);
    memcpy(image, writer->base, image_size);
    /* Not this process' own any more: what it writes stays open. */
    ((struct wideep_identity *)(void *)image)->pid = 1;
    wideep_close(&writer);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(guard_install(), 0);
    now_ns = SECOND;
    ck_assert_int_eq(segment_set_new(&set, &segments, now_ns), 0);
    capture_stderr();
}

static void teardown(void)
{
    release_stderr();
    segment_set_free(set);
    free(image);
    remove_segments(directory);
}

static void scan(void)
{
    now_ns += SECOND / 4;
    segment_set_scan(set, now_ns);
    segment_set_reap(set);
}

/* Number of lines written since that have the text. */
static unsigned count_lines(const char *text)
{
    ssize_t size = read(captured[0], lines, LOG_MAX);
    unsigned count = 0;

    lines[size > 0 ? size : 0] = 0;
    for (const char *at = lines; (at = strstr(at, text)) != NULL; at++)
        count++;
    return count;
}

static uint32_t rejected(unsigned reason)
{
    uint32_t count[SEGMENT_STATES][SEGMENT_REASONS];

    segment_set_count(set, count);
    return count[SEGMENT_REJECTED][reason];
}

START_TEST(replaced_while_attaching)
{
    write_file(path, image_size);
    write_file(other, image_size);
    swapping = true;
    scan();
    ck_assert_msg(!swapping, "the file was not opened by openat()");
    /* What was looked at, its owner say, is not what was opened. */
    ck_assert_uint_eq(set->count, 0);
    ck_assert_uint_eq(rejected(SEGMENT_UNREADABLE), 1);
    scan();
    ck_assert_uint_eq(set->count, 1);
}
END_TEST

START_TEST(lines_about_a_file_are_few)
{
    for (unsigned turn = 0; turn < TURNS; turn++) {
        write_file(path, turn % 2 ? image_size : 0);
        scan(); /* finds that the mapping has lost its file */
        scan(); /* drops it */
        ck_assert_uint_eq(set->count, turn % 2);
    }
    ck_assert_uint_eq(count_lines("\n"), LINES);
    /* Then how many there were not, and what it came to. */
    now_ns += 60 * SECOND;
    scan();
    ck_assert_uint_eq(count_lines("\n"), 1);
    ck_assert_ptr_nonnull(strstr(lines, "segment keeps changing"));
    ck_assert_ptr_nonnull(strstr(lines, "now=attached"));
    now_ns += 60 * SECOND;
    scan();
    ck_assert_uint_eq(count_lines("\n"), 0);
    /* And it is news again. */
    write_file(path, 0);
    scan();
    scan();
    ck_assert_uint_eq(count_lines("segment rejected"), 1);
}
END_TEST

START_TEST(no_more_than_can_be_attached)
{
    char name[200];

    for (unsigned i = 0; i <= SEGMENT_MAX; i++) {
        ((struct wideep_identity *)(void *)image)->engine = i;
        ((struct wideep_identity *)(void *)image)->instance_id = i + 1;
        (void)snprintf(name, sizeof name, "%s/wideep.unit.e%u.r0", directory, i);
        write_file(name, image_size);
    }
    scan();
    ck_assert_uint_eq(set->count, SEGMENT_MAX);
    ck_assert_uint_eq(rejected(SEGMENT_OVER_LIMIT), 1);
    (void)count_lines("\n");
    /* A successor of one of them is no more. */
    const char *taken = set->segments[0]->file;
    ((struct wideep_identity *)(void *)image)->engine = (uint32_t)atoi(strstr(taken, ".e") + 2);
    ((struct wideep_identity *)(void *)image)->instance_id = UINT64_MAX;
    (void)snprintf(name, sizeof name, "%s/%s", directory, taken);
    write_file(other, image_size);
    ck_assert_int_eq(rename(other, name), 0);
    scan();
    ck_assert_uint_eq(set->count, SEGMENT_MAX);
    ck_assert_uint_eq(rejected(SEGMENT_OVER_LIMIT), 1);
    /* Who was refused comes in when there is room. */
    ck_assert_int_eq(unlink(name), 0);
    scan();
    scan();
    scan();
    ck_assert_uint_eq(set->count, SEGMENT_MAX);
    ck_assert_uint_eq(rejected(SEGMENT_OVER_LIMIT), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("segment");
    TCase *tests = tcase_create("segment");

    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, replaced_while_attaching);
    tcase_add_test(tests, lines_about_a_file_are_few);
    tcase_add_test(tests, no_more_than_can_be_attached);
    suite_add_tcase(suite, tests);
    return suite_run(suite);
}

/*
 * Segments that no writer would make, read as the daemon reads them: scan, drain, join, aggregate, render in all forms.
 *
 * Three files are the fuzzer's: two ranks of a group and a front end. A fourth is a rank of a group by itself, which a
 * real writer goes on writing; whatever is in the others, what is served of it must be exact. An input is either an
 * image that takes the place of the second rank's file, or a list of steps: words changed in the mapped files, records
 * by the real writer, records forged, files cut short, removed and put back, ranks that die, time that passes, and
 * collections in between.
 *
 * What the product may read of a mapping is what the identity says that there is: all the rest of each mapped page is
 * poisoned for AddressSanitizer. (The identity itself is not read again either, once it is copied.)
 */
#include "fuzz.h"
#include "guard.h"
#include "lb.h"
#include "log.h"
#include "page.h"
#include "snapshot.h"
#include "state.h"

#include <inttypes.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define LAYERS  2
#define EXPERTS 4
#define EP_SIZE 2
#define MS      UINT64_C(1000000)

#define INSTANCE    "fuzz"
#define GROUP       7
#define GOOD_ENGINE 9
/* In Prometheus' spelling. */
#define GOOD_MODEL   "go\"o\\d\n"
#define GOOD_ESCAPED "go\\\"o\\\\d\\n"

#define STEPS_MAX            200
#define COLLECTIONS_MAX      8
#define COLLECTIONS_PER_PAGE 4
#define FILE_MAX             (UINT64_C(256) << 10)
#define PENDING_MAX          (WIDEEP_RING_PASSES / 2)
#define SERIES_LIMIT         200000

enum { FIRST, SECOND, FRONT, GOOD, FILES };

struct file {
    struct wideep_writer *writer;
    struct wideep_writer handle; /* as it was at first */
    unsigned char *image;        /* likewise */
    uint64_t size;
    char path[200], hidden[200];
    ino_t inode;
    bool alive, away, dirty, cut;
    uint64_t passes;
};

static struct file files[FILES];
static uint8_t boot_id[16]; /* zeros, in the images and in the set: inputs must mean the same on another machine */

/* Of one input. */
static struct segment_set *set;
static struct aggregate *aggregate;
static struct lb *lb;
static struct state_board *state;
static struct layout *layout;
static uint64_t layout_generation;
static bool experts_wanted;
static unsigned collections;

/* Of all. */
static struct self_stats self = {.version = "1", .commit = "fuzz"};

/* ---- mappings ------------------------------------------------------------------------------------------------ */

int __wrap_munmap(void *base, size_t size);
int __real_munmap(void *base, size_t size);

static size_t whole_pages(size_t size)
{
    return (size + 4095) & ~(size_t)4095;
}

/* What is poisoned would stay so for whatever is mapped there next. */
int __wrap_munmap(void *base, size_t size)
{
    __asan_unpoison_memory_region(base, whole_pages(size));
    return __real_munmap(base, size);
}

static void allow(const void *from, uint64_t size)
{
    if (from)
        __asan_unpoison_memory_region(from, size);
}

static void allow_ring(const struct wideep_ring *ring)
{
    if (!ring->head)
        return;
    allow(ring->head, sizeof *ring->head);
    allow(ring->slots, (uint64_t)ring->count * ring->stride);
}

static void poison(const struct segment *segment)
{
    const struct wideep_view *view = &segment->view;
    const struct wideep_identity *id = &view->identity;

    __asan_poison_memory_region(view->base, whole_pages(view->size));
    allow(view->live, sizeof *view->live);
    allow(view->totals, sizeof *view->totals);
    allow_ring(&view->eplb);
    allow_ring(&view->dbo);
    allow(view->rank_tokens, 8 * wideep_plane_offset(id, id->model_count, 0));
    allow(view->expert_tokens, 8 * wideep_plane_offset(id, id->model_count, 1));
}

/* ---- the files ----------------------------------------------------------------------------------------------- */

static int is_alive(int fd)
{
    struct stat st;

    fuzz_expect(fstat(fd, &st) == 0);
    for (unsigned f = 0; f < FILES; f++)
        if (files[f].inode == st.st_ino)
            return files[f].alive;
    return 0;
}

static void make_file(struct file *file, const struct wideep_config *config)
{
    struct stat st;

    fuzz_expect(wideep_create(&file->writer, config) == 0);
    struct wideep_identity *id = (struct wideep_identity *)(void *)file->writer->base;
    /* Not of this process, or the set would keep its descriptors; and nothing that differs from run to run. */
    id->pid = 1;
    id->process_start_ticks = 1;
    id->pid_namespace = 1;
    memcpy(id->boot_id, boot_id, sizeof boot_id);
    file->handle = *file->writer;
    file->size = file->writer->size;
    file->image = malloc(file->size);
    fuzz_expect(file->image);
    memcpy(file->image, file->writer->base, file->size);
    (void)snprintf(file->path, sizeof file->path, "%s/%s", fuzz_directory(), file->writer->name);
    (void)snprintf(file->hidden, sizeof file->hidden, "%s/away.%u", fuzz_directory(), (unsigned)(file - files));
    fuzz_expect(fstat(file->writer->fd, &st) == 0);
    file->inode = st.st_ino;
}

static void make_files(void)
{
    struct wideep_config config = {.directory = fuzz_directory(),
                                   .instance = INSTANCE,
                                   .ep_size = EP_SIZE,
                                   .group = GROUP,
                                   .model_count = 1,
                                   .models = {{"m", LAYERS, EXPERTS, 0}}};

    make_file(&files[FIRST], &config);
    config.engine = config.rank = config.dp_rank = 1;
    config.model_count = 2;
    config.models[1] = (struct wideep_model_config){"n", 1, EXPERTS, 0};
    make_file(&files[SECOND], &config);
    config = (struct wideep_config){.directory = fuzz_directory(),
                                    .instance = INSTANCE,
                                    .role = WIDEEP_ROLE_FRONTEND,
                                    .model_count = 1,
                                    .models = {{"m", 0, 0, 0}}};
    make_file(&files[FRONT], &config);
    config = (struct wideep_config){.directory = fuzz_directory(),
                                    .instance = INSTANCE,
                                    .engine = GOOD_ENGINE,
                                    .ep_size = EP_SIZE,
                                    .model_count = 1,
                                    .models = {{GOOD_MODEL, LAYERS, EXPERTS, 0}}};
    make_file(&files[GOOD], &config);
}

static void restore(struct file *file)
{
    const int fd = file->writer->fd;

    if (file->away)
        fuzz_expect(rename(file->hidden, file->path) == 0);
    if (file->dirty) {
        fuzz_expect(ftruncate(fd, (off_t)file->size) == 0);
        fuzz_expect(pwrite(fd, file->image, file->size, 0) == (ssize_t)file->size);
    }
    *file->writer = file->handle;
    file->alive = true;
    file->away = file->dirty = file->cut = false;
    file->passes = 0;
}

static void resize(struct file *file, uint64_t size)
{
    fuzz_expect(ftruncate(file->writer->fd, (off_t)size) == 0);
    file->dirty = true;
    file->cut = file->cut || size < file->size;
}

static void overwrite(struct file *file, uint64_t offset, const void *data, size_t size)
{
    if (offset + size > FILE_MAX)
        return;
    fuzz_expect(pwrite(file->writer->fd, data, size, (off_t)offset) == (ssize_t)size);
    file->dirty = true;
}

/* ---- collections --------------------------------------------------------------------------------------------- */

static void expect_line(const char *page, size_t size, const char *series, uint64_t value)
{
    char line[300];
    const int length = snprintf(line, sizeof line, "\n%s %" PRIu64 "\n", series, value);

    if (!memmem(page, size, line, (size_t)length)) {
        *strchr(line, ' ') = 0;
        const char *other = memmem(page, size, series, strlen(series));
        fuzz_fail("%s is not %" PRIu64 " but %.*s", series, value,
                  other ? (int)strcspn(other + strlen(series), "\n") : 4, other ? other + strlen(series) : "gone");
    }
}

#define GOOD_LABELS "model_name=\"" GOOD_ESCAPED "\",group=\"9\",layer=\"1\""

/* What the good writer recorded: see record_good(). */
static void check_good(const char *page, size_t size)
{
    const uint64_t passes = files[GOOD].passes;

    expect_line(page, size, "wideep_rank_up{engine=\"9\",rank=\"0\"}", 1);
    expect_line(page, size, "wideep_eplb_passes_total{" GOOD_LABELS "}", passes);
    expect_line(page, size, "wideep_eplb_rank_tokens_total{" GOOD_LABELS ",ep_rank=\"0\"}", 6 * passes);
    expect_line(page, size, "wideep_eplb_rank_tokens_total{" GOOD_LABELS ",ep_rank=\"1\"}", 9 * passes);
    expect_line(page, size,
                "wideep_dbo_passes_total{model_name=\"" GOOD_ESCAPED
                "\",engine=\"9\",phase=\"decode\",outcome=\"idle_rank\"}",
                passes);
}

/* Returns its number of samples. */
static size_t check_text(struct snapshot *snapshot)
{
    const char *page;
    size_t size;

    fuzz_expect(snapshot_page(snapshot, PAGE_TEXT, PAGE_IDENTITY, &page, &size) == 0);
    check_good(page, size);
    return page_check(page, size, false);
}

static void check_other_formats(struct snapshot *snapshot, size_t samples)
{
    const char *page;
    size_t size;

    fuzz_expect(snapshot_page(snapshot, PAGE_OPENMETRICS, PAGE_IDENTITY, &page, &size) == 0);
    fuzz_expect(page_check(page, size, true) == samples);
    fuzz_expect(snapshot_page(snapshot, PAGE_PROTOBUF, PAGE_IDENTITY, &page, &size) == 0);
    fuzz_expect(page_check_protobuf(page, size) == samples);
}

static void check_reply(void (*handle)(void *context, const struct http_request *request, struct http_reply *reply),
                        void *context, const char *path)
{
    const struct http_request request = {.method = "GET", .path = path, .peer = "unix"};
    struct http_reply reply = {0};

    handle(context, &request, &reply);
    fuzz_expect(reply.code == 200 || reply.code == 503);
    if (strstr(reply.content_type, "json"))
        page_check_json(reply.body, reply.size);
    else
        (void)page_check(reply.body, reply.size, false);
    if (!reply.constant)
        free(reply.body);
}

static void publish(const struct family_sources *sources)
{
    struct value *values;

    if (!layout || layout_generation != aggregate->generation) {
        layout_unref(layout);
        layout = NULL;
        fuzz_expect(layout_new(&layout, sources, SERIES_LIMIT, false) == 0);
        layout_generation = aggregate->generation;
    }
    struct snapshot *snapshot = snapshot_new(layout, fuzz_now_ns, &values);
    fuzz_expect(snapshot);
    fuzz_expect(layout_read_values(layout, sources, values) == 0);
    snapshot_publish(snapshot);
}

/* As collector.c does it. Pages cost more than all the rest, so that not every one is looked at, and the last one of an
 * input alone in all forms. */
static void collect(bool last)
{
    const struct family_sources sources = {aggregate, &self};

    if (collections++ >= COLLECTIONS_MAX)
        return;
    state_begin_collection(state);
    segment_set_scan(set, fuzz_now_ns);
    for (uint32_t i = 0; i < set->count; i++)
        poison(set->segments[i]);
    fuzz_expect(aggregate_collect(aggregate, experts_wanted, fuzz_now_ns) == 0);
    segment_set_count(set, self.segments);
    fuzz_expect(lb_update(lb, aggregate, fuzz_now_ns) == 0);
    state_end_collection(state, &sources, lb);
    if (!last && collections % COLLECTIONS_PER_PAGE != 1)
        return;
    publish(&sources);
    struct snapshot *snapshot = snapshot_acquire_page();
    const size_t samples = check_text(snapshot);
    if (last)
        check_other_formats(snapshot, samples);
    snapshot_release(snapshot);
    if (!last)
        return;
    check_reply(state_handle, state, "/api/v1/state");
    check_reply(lb_handle, lb, "/lb");
    check_reply(lb_handle_metrics, lb, "/lb/metrics");
}

/* ---- steps --------------------------------------------------------------------------------------------------- */

static uint64_t take_value(struct fuzz_input *input)
{
    static const uint64_t special[] = {0,
                                       1,
                                       2,
                                       UINT64_MAX,
                                       UINT64_C(1) << 31,
                                       UINT64_C(1) << 32,
                                       UINT64_C(1) << 63,
                                       UINT64_C(0x7ff8000000000000), /* NaN */
                                       UINT64_C(0x7ff0000000000000), /* Inf */
                                       UINT64_C(0xbff0000000000000), /* -1.0 */
                                       UINT64_C(0x43abc16d674ec800), /* 1e18 */
                                       FUZZ_START_NS,
                                       INT64_MAX};
    const uint8_t kind = fuzz_byte(input);

    if (kind < sizeof special / sizeof *special)
        return special[kind];
    return fuzz_word(input, kind % 8 + 1u);
}

static struct file *take_file(struct fuzz_input *input)
{
    return &files[fuzz_byte(input) % GOOD];
}

static void change_word(struct fuzz_input *input, struct file *file)
{
    const uint8_t width = (uint8_t)(1u << fuzz_byte(input) % 4);
    const uint64_t offset = fuzz_word(input, 2) * width % file->size;
    const uint64_t value = take_value(input);

    overwrite(file, offset, &value, width);
}

/* Of a section, by number of its word. */
static void change_section(struct fuzz_input *input, struct file *file)
{
    const struct wideep_identity *id = &file->handle.identity;
    const struct wideep_section *section = &id->sections[fuzz_byte(input) % id->section_count];
    const uint64_t offset = section->offset + 8 * fuzz_word(input, 2) % section->length;
    const uint64_t value = take_value(input);

    overwrite(file, offset, &value, sizeof value);
}

static void record_pass(struct file *file, uint64_t skip)
{
    static int32_t loads[LAYERS * EXPERTS] = {1, 2, 3, 4, 5, 1, 2, 7}, map[] = {0, 1, 2, 3, 0, 1, 2, 3};
    const struct wideep_pass it = {.pass = file->passes + skip, .step = WIDEEP_STEP_UNKNOWN};

    if (file->cut)
        return; /* a writer whose file is cut short has SIGBUS */
    file->passes += skip + 1;
    file->dirty = true;
    (void)wideep_record_pass(file->writer, &it, loads, map);
}

static void record_good(void)
{
    const struct wideep_dbo_stats dbo = {
        .pass = files[GOOD].passes, .phase = WIDEEP_DECODE, .outcome = WIDEEP_IDLE_RANK};

    fuzz_expect(wideep_record_dbo(files[GOOD].writer, &dbo) == 0);
    record_pass(&files[GOOD], 0);
}

static void record_reduced(struct fuzz_input *input, struct file *file)
{
    const struct wideep_pass it = {.pass = file->passes, .step = fuzz_byte(input)};
    const struct wideep_eplb_layer layer = {.layer = fuzz_byte(input) % LAYERS, .max_tokens_per_rank = 5};

    if (file->cut)
        return;
    file->passes++;
    file->dirty = true;
    (void)wideep_record_eplb(file->writer, &it, &layer, 1);
}

static void record_other(struct fuzz_input *input, struct file *file)
{
    const struct wideep_dbo_stats dbo = {.pass = file->passes,
                                         .outcome = fuzz_byte(input) % (unsigned)WIDEEP_OUTCOMES,
                                         .ubatches = 2,
                                         .ubatch_tokens = {fuzz_byte(input), 9}};
    uint64_t duration_ns;

    if (file->cut)
        return;
    file->dirty = true;
    (void)wideep_record_dbo(file->writer, &dbo);
    (void)wideep_record_tokens(file->writer, 3, fuzz_byte(input));
    if (fuzz_byte(input) % 2)
        (void)wideep_rearrangement_begin(file->writer, 0, WIDEEP_SYNC);
    else
        (void)wideep_rearrangement_end(file->writer, 0, &duration_ns);
}

/* A slot of the EPLB ring with its sequence number right, whatever the rest, and a head to go with it. */
static void forge_record(struct fuzz_input *input, struct file *file)
{
    struct wideep_writer *writer = file->writer;
    const uint64_t n = fuzz_byte(input) % 8 ? writer->eplb_head : fuzz_word(input, 2);
    const struct wideep_pass it = {.pass = fuzz_byte(input) % 2 ? file->passes : take_value(input),
                                   .step = WIDEEP_STEP_UNKNOWN};
    const uint32_t flags = fuzz_byte(input), layer = fuzz_byte(input) % 4 ? 0 : (uint32_t)fuzz_word(input, 2);
    const double avg = wideep_i_bits_double(take_value(input)), max = wideep_i_bits_double(take_value(input));

    if (file->cut || !writer->eplb_shared_head)
        return;
    file->dirty = true;
    uint64_t *slot = wideep_i_eplb_slot(writer, n);
    const uint64_t first = flags & WIDEEP_FIRST, last = flags & WIDEEP_LAST;
    wideep_i_ring_begin(slot, n);
    wideep_i_eplb_words(slot, &it, fuzz_now_ns,
                        wideep_i_layer_tags(wideep_i_tags(writer, &it, flags), layer, first != 0, last != 0), avg, max,
                        1);
    wideep_i_payload(slot, 8, take_value(input));
    wideep_i_ring_end(slot, n);
    if (n == writer->eplb_head) {
        writer->eplb_head++;
        wideep_i_ring_publish(writer->eplb_shared_head, writer->eplb_head);
    }
}

static void toggle_name(struct file *file)
{
    fuzz_expect((file->away ? rename(file->hidden, file->path) : rename(file->path, file->hidden)) == 0);
    file->away = !file->away;
}

/* `pending`: passes of the good writer that were not collected yet. */
static void do_step(struct fuzz_input *input, unsigned *pending)
{
    const uint8_t step = fuzz_byte(input) % 16;
    struct file *file = take_file(input);

    switch (step) {
    case 0: change_word(input, file); break;
    case 1:
    case 2: change_section(input, file); break;
    case 3: record_pass(file, 0); break;
    case 4: record_pass(file, fuzz_byte(input)); break;
    case 5: record_reduced(input, file); break;
    case 6: record_other(input, file); break;
    case 7:
    case 8: forge_record(input, file); break;
    case 9: fuzz_now_ns += fuzz_word(input, 2) * MS; break;
    case 10: file->alive = !file->alive; break;
    case 11: toggle_name(file); break;
    case 12: resize(file, fuzz_byte(input) % 2 ? file->size : fuzz_word(input, 2) * 8 % FILE_MAX); break;
    case 13: experts_wanted = !experts_wanted; break;
    case 14: aggregate_drain(aggregate, fuzz_now_ns); break;
    default: *pending = PENDING_MAX; break;
    }
    if (fuzz_byte(input) % 2) {
        record_good();
        ++*pending;
    }
    if (*pending >= PENDING_MAX) {
        collect(false);
        *pending = 0;
    }
}

static void do_steps(struct fuzz_input *input)
{
    unsigned pending = 0;

    for (unsigned step = 0; step < STEPS_MAX && input->left > 0 && collections < COLLECTIONS_MAX; step++)
        do_step(input, &pending);
}

/* In the middle of records of the others. */
static void do_image(struct fuzz_input *input)
{
    struct file *file = &files[SECOND];

    resize(file, input->left);
    overwrite(file, 0, input->at, input->left);
    file->cut = true; /* no writer's any more */
    record_pass(&files[FIRST], 0);
    collect(false);
    record_pass(&files[FIRST], 0);
    record_good();
}

/* ---- the target ---------------------------------------------------------------------------------------------- */

static void begin(void)
{
    static const struct aggregate_config config = {500 * MS, 1000 * MS, AGGREGATE_EACH};
    const struct segment_config segments = {.directory = fuzz_directory(), .instance = INSTANCE, .alive = is_alive};

    fuzz_now_ns = FUZZ_START_NS + 1000 * MS;
    for (unsigned f = 0; f < FILES; f++)
        restore(&files[f]);
    /* Younger segments are read from their first record. */
    fuzz_expect(segment_set_new(&set, &segments, FUZZ_START_NS - MS) == 0);
    memcpy(set->boot_id, boot_id, sizeof boot_id);
    fuzz_expect(aggregate_new(&aggregate, &config, set) == 0);
    fuzz_expect(lb_new(&lb, false) == 0);
    fuzz_expect(state_new(&state) == 0);
    collections = 0;
    experts_wanted = false;
}

static void end(void)
{
    snapshot_publish(NULL);
    layout_unref(layout);
    layout = NULL;
    state_free(state);
    lb_free(lb);
    aggregate_free(aggregate);
    segment_set_free(set);
}

/* The lowest free descriptor moves when one is lost. */
static int lowest_free_fd(void)
{
    int fd = dup(STDERR_FILENO);

    (void)close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    const int fd = lowest_free_fd();

    begin();
    files[GOOD].dirty = true;
    if (fuzz_byte(&input) % 4 == 0)
        do_image(&input);
    else
        do_steps(&input);
    /* Longer than any record waits for others. */
    collections = 0;
    fuzz_now_ns += 1500 * MS;
    collect(true);
    end();
    fuzz_expect(lowest_free_fd() == fd);
    return 0;
}

static void write_seeds(void)
{
    static const uint8_t steps[][40] = {
        {1, 3, 0, 1, 3, 1, 1, 15, 0, 1, 3, 0, 1, 3, 1, 1, 3, 0, 0, 10, 0, 1, 15, 0, 1},
        {1, 7, 0, 1, 1, 3, 1, 8, 8, 2, 1, 1, 15, 0, 1, 5, 0, 1, 1, 1, 15, 0, 1},
        {1, 6, 0, 0, 5, 7, 1, 1, 6, 2, 0, 5, 9, 0, 1, 15, 0, 1, 9, 0, 200, 1, 1, 15, 0, 0},
        {1, 3, 0, 1, 15, 0, 1, 12, 0, 0, 0, 2, 1, 15, 0, 1, 12, 0, 1, 1, 11, 0, 1, 15, 0, 1, 11, 0, 1},
        {1, 13, 0, 1, 3, 0, 1, 3, 1, 1, 9, 0, 0, 2, 1, 15, 0, 1, 1, 0, 2, 0, 0, 3, 1, 15, 0, 1},
    };
    uint8_t *image = calloc(1, files[SECOND].size + 1);

    fuzz_expect(image);
    for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "steps-%u", i);
        fuzz_seed(name, steps[i], sizeof steps[i]);
    }
    for (unsigned i = 0; i < 3; i++)
        record_pass(&files[SECOND], 0);
    memcpy(image + 1, files[SECOND].writer->base, files[SECOND].size);
    fuzz_seed("rank", image, files[SECOND].size + 1);
    memcpy(image + 1, files[FRONT].image, files[FRONT].size);
    fuzz_seed("front-end", image, files[FRONT].size + 1);
    free(image);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    (void)umask(022);
    log_setup(LOG_ERROR, LOG_LOGFMT);
    fuzz_expect(guard_install() == 0);
    make_files();
    if (getenv("WIDEEP_FUZZ_SEEDS")) {
        write_seeds();
        exit(0);
    }
    return 0;
}

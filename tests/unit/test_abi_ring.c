/* The rings: no torn record is ever accepted, and accepted + lost = written, whatever reader and writer do.
 *
 * Every word of a record follows from its position n (pass n / layers, layer n % layers), so that a record
 * put together from two is seen. Threads share one mapping, which is where ThreadSanitizer looks; processes
 * are the real thing. */
#include "wideep_shm.h"
#include "suite.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

enum { LAYERS = 3, RANKS = 6, EXPERTS = 12, PER_RANK = EXPERTS / RANKS };

static char directory[64];

static void setup(void)
{
    strcpy(directory, "/tmp/wideep-ring.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static void teardown(void)
{
    char path[512];
    DIR *entries = opendir(directory);
    ck_assert_ptr_nonnull(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        (void)snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        (void)unlink(path);
    }
    (void)closedir(entries);
    (void)rmdir(directory);
}

static struct wideep_writer *writer_new(void)
{
    struct wideep_writer *w = NULL;
    struct wideep_config config = {
        .directory = directory, .ep_size = RANKS, .model_count = 1, .models = {{"m", LAYERS, EXPERTS, 0}}};
    ck_assert_int_eq(wideep_create(&w, &config), 0);
    return w;
}

static void path_of(const struct wideep_writer *w, char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s/%s", w->directory, w->name);
}

static int32_t load_of(uint64_t pass, uint32_t layer, uint32_t p)
{
    return (int32_t)(pass * 2654435761u % 1000003 + 17 * layer + 3 * p * p);
}

static void write_pass(struct wideep_writer *w, uint64_t number)
{
    int32_t loads[LAYERS * EXPERTS];
    struct wideep_pass pass = {
        .pass = number, .step = (uint32_t)(number % 4096), .rearrangement_duration_ns = number * 3 + 1};
    for (uint32_t i = 0; i < LAYERS * EXPERTS; i++)
        loads[i] = load_of(number, i / EXPERTS, i % EXPERTS);
    if (wideep_record_pass(w, &pass, loads, NULL) != 0)
        abort();
}

/* Is it the record that was written at position n, to the last word? `first`: the position of pass 0. */
static int record_right(const struct wideep_eplb_record *r, const uint32_t *tokens, uint64_t n, uint64_t first)
{
    uint64_t pass = (n - first) / LAYERS, total = 0, max = 0;
    uint32_t layer = (uint32_t)((n - first) % LAYERS);
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        uint64_t sum = 0;
        for (uint32_t p = 0; p < PER_RANK; p++)
            sum += (uint64_t)load_of(pass, layer, rank * PER_RANK + p);
        if (tokens[rank] != sum)
            return 0;
        total += sum;
        max = sum > max ? sum : max;
    }
    uint32_t flags = WIDEEP_PARTIAL | (layer == 0 ? WIDEEP_FIRST : 0) | (layer == LAYERS - 1 ? WIDEEP_LAST : 0);
    double avg = (double)total / RANKS, balancedness = (double)total / ((double)RANKS * (double)max);
    return r->pass == pass && r->layer == layer && r->model == 0 && r->flags == flags && r->step == pass % 4096 &&
           r->rearrangement_duration_ns == pass * 3 + 1 && !(r->avg_tokens_per_rank < avg) &&
           !(r->avg_tokens_per_rank > avg) && !(r->max_tokens_per_rank < (double)max) &&
           !(r->max_tokens_per_rank > (double)max) && !(r->balancedness < balancedness) &&
           !(r->balancedness > balancedness);
}

struct reader {
    const struct wideep_view *view;
    uint64_t first, next, accepted, overrun, torn, invalid, wrong, last_ns;
};

static void reader_drain(struct reader *r)
{
    struct wideep_eplb_record record;
    uint32_t tokens[RANKS];
    uint64_t head = wideep_ring_head(&r->view->eplb), tail = wideep_ring_tail(&r->view->eplb, head);
    if (r->next < tail) {
        r->overrun += tail - r->next;
        r->next = tail;
    }
    for (; r->next < head; r->next++)
        switch (wideep_eplb_read(r->view, r->next, &record, tokens)) {
        case WIDEEP_READ_OK:
            r->accepted++;
            if (!record_right(&record, tokens, r->next, r->first) || record.time_ns < r->last_ns)
                r->wrong++;
            r->last_ns = record.time_ns;
            break;
        case WIDEEP_READ_OVERRUN: r->overrun++; break;
        case WIDEEP_READ_TORN: r->torn++; break;
        case WIDEEP_READ_INVALID:
        default: r->invalid++; break;
        }
}

static void reader_report(const struct reader *r, const char *name)
{
    printf("%s: accepted %llu, overrun %llu, torn %llu\n", name, (unsigned long long)r->accepted,
           (unsigned long long)r->overrun, (unsigned long long)r->torn);
}

static void reader_balance(const struct reader *r, uint64_t written)
{
    ck_assert_uint_eq(r->wrong, 0);
    ck_assert_uint_eq(r->invalid, 0);
    ck_assert_uint_eq(r->accepted + r->overrun + r->torn, written);
}

/* ---- threads, one mapping ---- */

struct race {
    struct wideep_writer *w;
    struct wideep_view view;
    uint64_t first, passes;
    int done;       /* atomic */
    uint64_t wrong; /* of the adversary */
    uint64_t tried, caught;
};

static void *race_write(void *data)
{
    struct race *race = (struct race *)data;
    for (uint64_t k = 0; k < race->passes; k++)
        write_pass(race->w, k);
    __atomic_store_n(&race->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* Reads the very slots that are being written, beyond what wideep_ring_tail() allows. */
static void *race_adversary(void *data)
{
    struct race *race = (struct race *)data;
    struct wideep_eplb_record record;
    uint32_t tokens[RANKS];
    while (!__atomic_load_n(&race->done, __ATOMIC_ACQUIRE)) {
        uint64_t head = wideep_ring_head(&race->view.eplb);
        for (uint64_t i = 0; i < 2 * LAYERS && head >= race->first + race->view.eplb.count; i++) {
            uint64_t n = head - race->view.eplb.count + i;
            race->tried++;
            if (wideep_eplb_read(&race->view, n, &record, tokens) != WIDEEP_READ_OK)
                race->caught++;
            else if (!record_right(&record, tokens, n, race->first))
                race->wrong++;
        }
        sched_yield();
    }
    return NULL;
}

static void race_init(struct race *race, uint64_t first, uint64_t passes)
{
    memset(race, 0, sizeof *race);
    race->w = writer_new();
    race->first = first;
    race->passes = passes;
    race->w->eplb_head = first;
    wideep_i_ring_publish(race->w->eplb_shared_head, first);
    ck_assert_int_eq(wideep_view_init(&race->view, race->w->base, race->w->size), WIDEEP_OK);
}

static void race_run(uint64_t first, int stalled, const char *name)
{
    struct race race;
    pthread_t writer, adversary;
    race_init(&race, first, 100000);
    struct reader r = {.view = &race.view, .first = first, .next = first};
    ck_assert_int_eq(pthread_create(&adversary, NULL, race_adversary, &race), 0);
    ck_assert_int_eq(pthread_create(&writer, NULL, race_write, &race), 0);
    for (int finished = 0; !finished;) {
        finished = __atomic_load_n(&race.done, __ATOMIC_ACQUIRE);
        uint64_t before = r.next, lost = r.overrun, count = race.view.eplb.count;
        if (stalled && !finished && wideep_ring_head(&race.view.eplb) < before + 3 * count) {
            sched_yield();
            continue;
        }
        reader_drain(&r);
        if (stalled && !finished)
            ck_assert_uint_ge(r.overrun - lost, 2 * count);
    }
    ck_assert_int_eq(pthread_join(writer, NULL), 0);
    ck_assert_int_eq(pthread_join(adversary, NULL), 0);
    reader_drain(&r);
    reader_report(&r, name);
    reader_balance(&r, race.passes * LAYERS);
    ck_assert_uint_eq(race.wrong, 0);
    wideep_close(&race.w);
}

START_TEST(threads_at_full_speed)
{
    race_run(0, 0, "full speed");
}
END_TEST

START_TEST(threads_with_a_stalled_reader)
{
    race_run(0, 1, "stalled");
}
END_TEST

START_TEST(threads_across_two_to_the_32)
{
    race_run(((uint64_t)1 << 32) - 150, 0, "2^32, positions");
    race_run(((uint64_t)1 << 31) - 150, 1, "2^32, sequence numbers");
}
END_TEST

/* ---- processes ---- */

/* A writer in a process of its own: `passes` of them, 0 for ever. */
static pid_t spawn_writer(uint64_t passes, uint64_t first, int hold)
{
    int ready[2];
    char byte = 0;
    ck_assert_int_eq(pipe(ready), 0);
    (void)fflush(NULL);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        struct wideep_writer *w = writer_new();
        w->eplb_head = first;
        wideep_i_ring_publish(w->eplb_shared_head, first);
        if (write(ready[1], &byte, 1) != 1)
            _exit(1);
        for (uint64_t k = 0; passes == 0 || k < passes; k++)
            write_pass(w, k);
        while (hold)
            (void)pause();
        _exit(0);
    }
    (void)close(ready[1]);
    ck_assert_int_eq((int)read(ready[0], &byte, 1), 1);
    (void)close(ready[0]);
    return child;
}

static void attach(struct wideep_view *view)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/wideep.default.e0.r0", directory);
    ck_assert_int_eq(wideep_open(view, path, NULL), 0);
}

static void process_run(uint64_t first, int stalled)
{
    const uint64_t passes = 50000;
    struct wideep_view view;
    pid_t child = spawn_writer(passes, first, 0);
    attach(&view);
    struct reader r = {.view = &view, .first = first, .next = first};
    while (wideep_writer_alive(view.fd) > 0) {
        if (stalled && wideep_ring_head(&view.eplb) < r.next + 2 * (uint64_t)view.eplb.count) {
            sched_yield();
            continue;
        }
        reader_drain(&r);
    }
    reader_drain(&r);
    int status;
    ck_assert_int_eq((int)waitpid(child, &status, 0), (int)child);
    ck_assert_int_eq(status, 0);
    reader_report(&r, stalled ? "processes, stalled" : "processes");
    reader_balance(&r, passes * LAYERS);
    wideep_view_close(&view);
}

START_TEST(processes_at_full_speed)
{
    process_run(0, 0);
}
END_TEST

START_TEST(processes_with_a_stalled_reader_across_two_to_the_32)
{
    process_run(((uint64_t)1 << 32) - 77, 1);
}
END_TEST

/* Killed anywhere, also in the middle of a slot: what lies below head is read to the end, without waiting. */
START_TEST(writer_killed_at_any_moment)
{
    for (int round = 0; round < 25; round++) {
        struct wideep_view view;
        pid_t child = spawn_writer(0, 0, 0);
        attach(&view);
        struct reader r = {.view = &view};
        while (wideep_ring_head(&view.eplb) < (uint64_t)view.eplb.count * 2 + (uint64_t)round * 7)
            reader_drain(&r);
        ck_assert_int_eq(kill(child, SIGKILL), 0);
        ck_assert_int_eq((int)waitpid(child, NULL, 0), (int)child);
        ck_assert_int_eq(wideep_writer_alive(view.fd), 0);
        reader_drain(&r);
        reader_balance(&r, wideep_ring_head(&view.eplb));
        wideep_view_close(&view);
        teardown();
        setup();
    }
}
END_TEST

START_TEST(writer_dead_in_mid_slot)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    struct wideep_eplb_record record;
    uint32_t tokens[RANKS];
    uint64_t passes = (uint64_t)w->eplb_count / LAYERS * 2;
    for (uint64_t k = 0; k < passes; k++)
        write_pass(w, k);
    /* What a writer leaves that dies in a pass: two layers whole, the third begun, head not moved. */
    uint64_t head = w->eplb_head;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t *slot = wideep_i_eplb_slot(w, head + layer);
        wideep_i_ring_begin(slot, head + layer);
        wideep_i_payload(slot, 1, 12345);
        if (layer < 2)
            wideep_i_ring_end(slot, head + layer);
    }
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    struct reader r = {.view = &view};
    reader_drain(&r);
    ck_assert_uint_eq(r.accepted, w->eplb_count - LAYERS);
    reader_balance(&r, head);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        ck_assert_int_eq(wideep_eplb_read(&view, head + layer - w->eplb_count, &record, tokens), WIDEEP_READ_OVERRUN);
    wideep_close(&w);
}
END_TEST

START_TEST(sequence_numbers_that_no_writer_makes)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    struct wideep_eplb_record record;
    for (uint64_t k = 0; k < 10; k++)
        write_pass(w, k);
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    const uint64_t n = 4, count = w->eplb_count;
    uint64_t *slot = wideep_i_eplb_slot(w, n);
    const struct {
        uint64_t seq;
        enum wideep_read result;
    } cases[] = {
        {2 * n + 2, WIDEEP_READ_OK},
        {0, WIDEEP_READ_INVALID},
        {1, WIDEEP_READ_INVALID},
        {2 * n + 1, WIDEEP_READ_INVALID},           /* unfinished, although head is past it */
        {2 * n + 3, WIDEEP_READ_INVALID},           /* another slot's */
        {2 * (n + 1) + 2, WIDEEP_READ_INVALID},     /* another slot's */
        {2 * (n + count) + 1, WIDEEP_READ_INVALID}, /* of this slot, but from the future */
        {2 * (n + count) + 2, WIDEEP_READ_INVALID},
        {2 * (n + count * 1000000) + 2, WIDEEP_READ_INVALID},
        {UINT64_MAX, WIDEEP_READ_INVALID},
        {UINT64_MAX - 1, WIDEEP_READ_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wideep_i_store(slot, cases[i].seq);
        ck_assert_msg(wideep_eplb_read(&view, n, &record, NULL) == cases[i].result, "case %u", (unsigned)i);
    }
    wideep_i_store(slot, 2 * n + 2);
    /* Overwritten in truth: once head is near enough to what the slot says. */
    for (uint64_t k = 10; w->eplb_head <= n + count; k++)
        write_pass(w, k);
    ck_assert_int_eq(wideep_eplb_read(&view, n, &record, NULL), WIDEEP_READ_OVERRUN);
    wideep_close(&w);
}
END_TEST

/* A record whose sequence is right and whose content is not must not lead anybody out of an array. */
START_TEST(content_that_no_writer_makes)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    struct wideep_eplb_record record;
    struct wideep_dbo_record dbo;
    struct wideep_dbo_stats stats = {.phase = WIDEEP_DECODE, .outcome = WIDEEP_OTHER, .ubatches = 4};
    write_pass(w, 0);
    ck_assert_int_eq(wideep_record_dbo(w, &stats), 0);
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    uint64_t *slot = wideep_i_eplb_slot(w, 0);
    const uint64_t good = wideep_load(slot + 3);
    const uint64_t bad_tags[] = {good | 1,                                      /* model 1 of 1 */
                                 good | 0xff,                                   /* model 255 */
                                 (good & ~(uint64_t)0xffff0000) | LAYERS << 16, /* layer 3 of 3 */
                                 good | (uint64_t)0xffff << 16,
                                 good | WIDEEP_REDUCED << 8,               /* both */
                                 good & ~((uint64_t)WIDEEP_PARTIAL << 8)}; /* neither */
    for (size_t i = 0; i < sizeof bad_tags / sizeof bad_tags[0]; i++) {
        wideep_i_store(slot + 3, bad_tags[i]);
        ck_assert_msg(wideep_eplb_read(&view, 0, &record, NULL) == WIDEEP_READ_INVALID, "tags %u", (unsigned)i);
    }
    wideep_i_store(slot + 3, good);
    ck_assert_int_eq(wideep_eplb_read(&view, 0, &record, NULL), WIDEEP_READ_OK);
    const uint64_t avg = wideep_load(slot + 4), max = wideep_load(slot + 5);
    const double bad_numbers[] = {-1, (double)__builtin_nanf(""), (double)__builtin_inff(), 1e19};
    for (size_t i = 0; i < sizeof bad_numbers / sizeof bad_numbers[0]; i++)
        for (int word = 4; word <= 5; word++) {
            wideep_i_store(slot + word, wideep_i_double_bits(bad_numbers[i]));
            ck_assert_int_eq(wideep_eplb_read(&view, 0, &record, NULL), WIDEEP_READ_INVALID);
            wideep_i_store(slot + 4, avg);
            wideep_i_store(slot + 5, max);
        }
    const uint64_t balancedness = wideep_load(slot + 6);
    const double bad_ratios[] = {-0.5, 1.5, (double)__builtin_nanf(""), (double)__builtin_inff()};
    for (size_t i = 0; i < sizeof bad_ratios / sizeof bad_ratios[0]; i++) {
        wideep_i_store(slot + 6, wideep_i_double_bits(bad_ratios[i]));
        ck_assert_int_eq(wideep_eplb_read(&view, 0, &record, NULL), WIDEEP_READ_INVALID);
    }
    wideep_i_store(slot + 6, balancedness);
    uint64_t *words = (uint64_t *)(void *)w->dbo_slots;
    /* Pass numbers end where the writer's do. */
    const uint64_t passes[] = {WIDEEP_MAX_PASS, WIDEEP_MAX_PASS + 1, UINT64_MAX};
    for (size_t i = 0; i < sizeof passes / sizeof passes[0]; i++) {
        const enum wideep_read result = i == 0 ? WIDEEP_READ_OK : WIDEEP_READ_INVALID;
        wideep_i_store(slot + 1, passes[i]);
        wideep_i_store(words + 1, passes[i]);
        ck_assert_int_eq(wideep_eplb_read(&view, 0, &record, NULL), result);
        ck_assert_int_eq(wideep_dbo_read(&view, 0, &dbo), result);
    }
    wideep_i_store(slot + 1, 0);
    wideep_i_store(words + 1, 0);
    const uint64_t tags = wideep_load(words + 3);
    ck_assert_int_eq(wideep_dbo_read(&view, 0, &dbo), WIDEEP_READ_OK);
    ck_assert_uint_eq(dbo.fallout_reason, WIDEEP_OTHER);
    const unsigned shift[] = {0, 24, 32, 40};
    for (size_t i = 0; i < sizeof shift / sizeof shift[0]; i++) {
        wideep_i_store(words + 3, tags | (uint64_t)0xff << shift[i]);
        ck_assert_msg(wideep_dbo_read(&view, 0, &dbo) == WIDEEP_READ_INVALID, "byte at %u", shift[i]);
    }
    wideep_close(&w);
}
END_TEST

/* The name is deleted while a reader is behind: the copy that wideep_check() links goes on where the old one
 * was. */
START_TEST(positions_survive_a_deleted_name)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view, again;
    char path[800];
    path_of(w, path, sizeof path);
    for (uint64_t k = 0; k < 5; k++)
        write_pass(w, k);
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    struct reader r = {.view = &view};
    reader_drain(&r);
    write_pass(w, 5);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(wideep_check(w), 0);
    write_pass(w, 6);
    attach(&again);
    ck_assert_int_eq(again.fd, -1);
    r.view = &again;
    reader_drain(&r);
    ck_assert_uint_eq(r.accepted, 7 * LAYERS);
    reader_balance(&r, 7 * LAYERS);
    wideep_view_close(&again);
    wideep_close(&w);
}
END_TEST

/* The DBO ring, by the same rules. */
static void *dbo_write(void *data)
{
    struct race *race = (struct race *)data;
    for (uint64_t k = 0; k < race->passes; k++) {
        struct wideep_dbo_stats stats = {
            .pass = k,
            .phase = (uint32_t)(k % 2),
            .outcome = (uint32_t)(k % 6),
            .ubatches = 4,
            .ubatch_tokens = {(uint32_t)k, (uint32_t)k + 1, (uint32_t)k * 3, ~(uint32_t)k}};
        if (wideep_record_dbo(race->w, &stats) != 0)
            abort();
    }
    __atomic_store_n(&race->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

START_TEST(dbo_ring_under_race)
{
    const uint64_t first = ((uint64_t)1 << 32) - 100;
    struct race race;
    struct wideep_dbo_record r;
    pthread_t writer;
    uint64_t next = first, accepted = 0, lost = 0, wrong = 0;
    race_init(&race, 0, 300000);
    race.w->dbo_head = first;
    wideep_i_ring_publish(race.w->dbo_shared_head, first);
    ck_assert_int_eq(pthread_create(&writer, NULL, dbo_write, &race), 0);
    for (int finished = 0; !finished;) {
        finished = __atomic_load_n(&race.done, __ATOMIC_ACQUIRE);
        uint64_t head = wideep_ring_head(&race.view.dbo), tail = wideep_ring_tail(&race.view.dbo, head);
        if (next < tail) {
            lost += tail - next;
            next = tail;
        }
        for (; next < head; next++) {
            enum wideep_read result = wideep_dbo_read(&race.view, next, &r);
            uint64_t k = next - first;
            uint32_t low = (uint32_t)k;
            if (result != WIDEEP_READ_OK) {
                ck_assert_int_ne(result, WIDEEP_READ_INVALID);
                lost++;
                continue;
            }
            accepted++;
            wrong += r.pass != k || r.phase != k % 2 || r.outcome != k % 6 || r.ubatches != 4 ||
                     r.ubatch_tokens[0] != low || r.ubatch_tokens[1] != low + 1 || r.ubatch_tokens[2] != low * 3 ||
                     r.ubatch_tokens[3] != ~low || r.prefill_active != (k % 6 == 0 && k % 2 == 0) ||
                     r.decode_active != 0 || r.fallout_reason != (k % 6 >= WIDEEP_FIRST_FALLOUT ? k % 6 : 0);
        }
    }
    ck_assert_int_eq(pthread_join(writer, NULL), 0);
    printf("dbo: accepted %llu, lost %llu\n", (unsigned long long)accepted, (unsigned long long)lost);
    ck_assert_uint_eq(wrong, 0);
    ck_assert_uint_eq(accepted + lost, race.passes);
    wideep_close(&race.w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("abi_ring");
    TCase *ring = tcase_create("ring");
    tcase_add_checked_fixture(ring, setup, teardown);
    tcase_set_timeout(ring, 300);
    tcase_add_test(ring, threads_at_full_speed);
    tcase_add_test(ring, threads_with_a_stalled_reader);
    tcase_add_test(ring, threads_across_two_to_the_32);
    tcase_add_test(ring, processes_at_full_speed);
    tcase_add_test(ring, processes_with_a_stalled_reader_across_two_to_the_32);
    tcase_add_test(ring, writer_killed_at_any_moment);
    tcase_add_test(ring, writer_dead_in_mid_slot);
    tcase_add_test(ring, sequence_numbers_that_no_writer_makes);
    tcase_add_test(ring, content_that_no_writer_makes);
    tcase_add_test(ring, positions_survive_a_deleted_name);
    tcase_add_test(ring, dbo_ring_under_race);
    suite_add_tcase(suite, ring);
    return suite_run(suite);
}

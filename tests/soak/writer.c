/* SPDX-License-Identifier: Apache-2.0
 *
 * A rank that keeps books: writer DIRECTORY BOOKS ENGINE, or writer names ENGINE.
 *
 * BOOKS is a file of pairs of 64-bit words, one pair for each of names[], in their order: what was intended and what
 * was done. A pair's first word is raised before the call that records, its second one after it, both in a shared
 * mapping, so that they outlive SIGKILL: whatever instruction it strikes, the segment's total lies between the two.
 * Books that exist are gone on with; whoever deletes a dead writer's segment deletes its books too. SIGUSR1 ends the
 * recording, between two rounds; the writer lives on, idle.
 */
#include "wideep_shm.h"

#include <signal.h>
#include <stdatomic.h>

enum book {
    PREFILL_ENGAGED,
    DECODE_COORDINATION_FAILURE,
    FALLOUT,
    UBATCH_FIRST_COUNT,
    UBATCH_FIRST_SUM,
    UBATCH_SECOND_SUM,
    PROMPT,
    GENERATION,
    REARRANGEMENTS,
    RANK_TOKENS,
    BOOKS
};

/* With labels sorted by name, as the tests name series. %u is the engine. */
static const char *const names[BOOKS] = {
    [PREFILL_ENGAGED] =
        "wideep_dbo_passes_total{engine=\"%u\",model_name=\"soak\",outcome=\"engaged\",phase=\"prefill\"}",
    [DECODE_COORDINATION_FAILURE] =
        "wideep_dbo_passes_total{engine=\"%u\",model_name=\"soak\",outcome=\"coordination_failure\",phase=\"decode\"}",
    [FALLOUT] = "vllm:dbo_fallout_total{engine=\"%u\",model_name=\"soak\",reason=\"coordination_failure\"}",
    [UBATCH_FIRST_COUNT] = "vllm:ubatch_token_count_count{engine=\"%u\",model_name=\"soak\",ubatch_index=\"first\"}",
    [UBATCH_FIRST_SUM] = "vllm:ubatch_token_count_sum{engine=\"%u\",model_name=\"soak\",ubatch_index=\"first\"}",
    [UBATCH_SECOND_SUM] = "vllm:ubatch_token_count_sum{engine=\"%u\",model_name=\"soak\",ubatch_index=\"second\"}",
    [PROMPT] = "wideep_prompt_tokens_total{engine=\"%u\",frontend=\"rank\",model_name=\"soak\"}",
    [GENERATION] = "wideep_generation_tokens_total{engine=\"%u\",frontend=\"rank\",model_name=\"soak\"}",
    [REARRANGEMENTS] = "wideep_eplb_rearrangements_by_mode_total{engine=\"%u\",mode=\"async\",model_name=\"soak\"}",
    [RANK_TOKENS] = "wideep_eplb_rank_tokens_total{ep_rank=\"0\",group=\"%u\",layer=\"0\",model_name=\"soak\"}",
};

enum { EXPERTS = 4, REARRANGE_EVERY = 64, CHECK_EVERY = 16, PAUSE_NS = 20000000 };

struct books {
    struct {
        _Atomic uint64_t intended, done;
    } entry[BOOKS];
};

/* By how much one round raises each entry. */
static void plan(uint64_t round, uint64_t ret[BOOKS])
{
    const uint64_t first = 1 + round % 300, second = 1 + round % 7;

    ret[PREFILL_ENGAGED] = ret[DECODE_COORDINATION_FAILURE] = ret[FALLOUT] = ret[UBATCH_FIRST_COUNT] = 1;
    ret[UBATCH_FIRST_SUM] = first;
    ret[UBATCH_SECOND_SUM] = second;
    ret[PROMPT] = 10 + round % 90;
    ret[GENERATION] = 1 + round % 3;
    ret[REARRANGEMENTS] = round % REARRANGE_EVERY == 0;
    ret[RANK_TOKENS] = (uint64_t)EXPERTS * (1 + round % 50);
}

static int record(struct wideep_writer *w, uint64_t round, const uint64_t amount[BOOKS])
{
    const struct wideep_pass pass = {.pass = round, .step = (uint32_t)round};
    const struct wideep_dbo_stats engaged = {
        .pass = 2 * round,
        .phase = WIDEEP_PREFILL,
        .outcome = WIDEEP_ENGAGED,
        .ubatches = 2,
        .ubatch_tokens = {(uint32_t)amount[UBATCH_FIRST_SUM], (uint32_t)amount[UBATCH_SECOND_SUM]}};
    const struct wideep_dbo_stats failed = {
        .pass = 2 * round + 1, .phase = WIDEEP_DECODE, .outcome = WIDEEP_COORDINATION_FAILURE};
    const int32_t load = (int32_t)(amount[RANK_TOKENS] / EXPERTS), loads[EXPERTS] = {load, load, load, load};
    int error = wideep_record_dbo(w, &engaged);

    error = error ? error : wideep_record_dbo(w, &failed);
    error = error ? error : wideep_record_tokens(w, amount[PROMPT], amount[GENERATION]);
    error = error ? error : wideep_record_pass(w, &pass, loads, NULL);
    if (!error && amount[REARRANGEMENTS]) {
        error = wideep_rearrangement_begin(w, 0, WIDEEP_ASYNC);
        error = error ? error : wideep_rearrangement_end(w, 0, NULL);
    }
    return error;
}

static volatile sig_atomic_t idle;

static void become_idle(int number)
{
    (void)number;
    idle = 1;
}

static int run(struct wideep_writer *w, struct books *books, uint64_t round)
{
    const struct timespec between = {.tv_nsec = PAUSE_NS};
    uint64_t amount[BOOKS];

    for (; !idle; round++) {
        plan(round, amount);
        for (int i = 0; i < BOOKS; i++)
            atomic_fetch_add(&books->entry[i].intended, amount[i]);
        int error = record(w, round, amount);
        if (!error && round % CHECK_EVERY == 0)
            error = wideep_check(w); /* links the file again, if somebody deleted it */
        if (error)
            return error;
        for (int i = 0; i < BOOKS; i++)
            atomic_fetch_add(&books->entry[i].done, amount[i]);
        (void)nanosleep(&between, NULL);
    }
    for (;;)
        (void)pause();
}

static struct books *open_books(const char *path)
{
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(struct books)) != 0)
        return NULL;
    void *map = mmap(NULL, sizeof(struct books), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    return map == MAP_FAILED ? NULL : map;
}

static int print_names(unsigned engine)
{
    for (int i = 0; i < BOOKS; i++) {
        for (const char *at = names[i]; *at; at++)
            if (strncmp(at, "%u", 2) == 0 && at++)
                (void)printf("%u", engine);
            else
                (void)putchar(*at);
        (void)putchar('\n');
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "names") == 0)
        return print_names((unsigned)strtoul(argv[2], NULL, 10));
    if (argc != 4)
        return 2;
    const struct wideep_config config = {.directory = argv[1],
                                         .engine = (uint32_t)strtoul(argv[3], NULL, 10),
                                         .model_count = 1,
                                         .models = {{"soak", 1, EXPERTS, EXPERTS}}};
    (void)signal(SIGUSR1, become_idle);
    struct books *books = open_books(argv[2]);
    struct wideep_writer *writer = NULL;
    int error = books ? wideep_create(&writer, &config) : -errno;

    if (!error) {
        (void)printf("%s\n", wideep_origin(writer) == WIDEEP_ORIGIN_TAKEOVER ? "takeover" : "fresh");
        (void)fflush(stdout);
        error = run(writer, books, atomic_load(&books->entry[PREFILL_ENGAGED].intended));
    }
    (void)fprintf(stderr, "writer: %s\n", wideep_error_text(error));
    return 1;
}

/* Creation, takeover and liveness, with processes of their own wherever a lock is looked at: a process does
 * not see its own with F_GETLK.
 *
 * The races: several processes want one identity at once. Each that gets it adds one token to the total, so
 * the total counts the winners, and a total that is lost or doubled shows. */
#include "wideep_shm.h"
#include "suite.h"

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static char directory[64];
static char path[200];

static void setup(void)
{
    strcpy(directory, "/tmp/wideep-take.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/wideep.default.e0.r0", directory);
}

/* Names in the directory; `remove_them`: and away with them. */
static unsigned names(int remove_them)
{
    char name[512];
    unsigned count = 0;
    DIR *entries = opendir(directory);
    ck_assert_ptr_nonnull(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        count++;
        (void)snprintf(name, sizeof name, "%s/%s", directory, entry->d_name);
        if (remove_them)
            (void)unlink(name);
    }
    (void)closedir(entries);
    return count;
}

static void teardown(void)
{
    (void)names(1);
    (void)rmdir(directory);
}

static struct wideep_config config_of(void)
{
    struct wideep_config config = {.directory = directory, .model_count = 1, .models = {{"m", 1, 2, 0}}};
    return config;
}

static int create(struct wideep_writer **ret)
{
    struct wideep_config config = config_of();
    *ret = NULL;
    return wideep_create(ret, &config);
}

static struct wideep_writer *created(void)
{
    struct wideep_writer *w;
    ck_assert_int_eq(create(&w), 0);
    if (!w) /* for the analyser, which does not know ck_assert */
        abort();
    return w;
}

static void wait_for(pid_t child, int want)
{
    int status = -1;
    ck_assert_int_eq((int)waitpid(child, &status, 0), (int)child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == want, "child ended with status %x", (unsigned)status);
}

static pid_t fork_quietly(void)
{
    (void)fflush(NULL);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    return child;
}

/* As another process sees it. */
static int alive_elsewhere(const char *file)
{
    pid_t child = fork_quietly();
    if (child == 0) {
        int fd = open(file, O_RDONLY | O_CLOEXEC);
        _exit(fd < 0 ? 2 : wideep_writer_alive(fd));
    }
    int status = -1;
    ck_assert_int_eq((int)waitpid(child, &status, 0), (int)child);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int create_elsewhere(void)
{
    pid_t child = fork_quietly();
    if (child == 0) {
        struct wideep_writer *w;
        _exit(-create(&w));
    }
    int status = -1;
    ck_assert_int_eq((int)waitpid(child, &status, 0), (int)child);
    ck_assert(WIFEXITED(status));
    return -WEXITSTATUS(status);
}

/* ---- races ---- */

enum { RACE_LOG = 8192 };

struct tally {
    uint64_t winners;  /* atomic */
    uint64_t at_once;  /* atomic: more than one at a time */
    uint64_t inside;   /* atomic */
    uint64_t other;    /* atomic: neither won nor busy */
    uint64_t wrong;    /* atomic: a total that does not follow from its origin */
    uint64_t resets;   /* atomic: fresh lineages */
    uint64_t go, stop; /* atomic */
    struct {
        uint64_t lineage, total;
    } log[RACE_LOG]; /* of each winner, with its own token counted */
};

static struct tally *tally_new(void)
{
    void *page = mmap(NULL, sizeof(struct tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(page, MAP_FAILED);
    return (struct tally *)page;
}

static uint64_t add(uint64_t *word, uint64_t value)
{
    return __atomic_add_fetch(word, value, __ATOMIC_SEQ_CST);
}

/* One starter: tries once; if it wins it counts, and dies without closing, by a signal when `killed`. */
static void starter(struct tally *tally, uint64_t round, int killed, int deleter)
{
    struct wideep_writer *w;
    while (__atomic_load_n(&tally->go, __ATOMIC_SEQ_CST) < round)
        sched_yield();
    int error = create(&w);
    if (error == -EBUSY)
        _exit(0);
    if (error) {
        add(&tally->other, 1);
        _exit(0);
    }
    if (add(&tally->inside, 1) != 1)
        add(&tally->at_once, 1);
    if (wideep_origin(w) == WIDEEP_ORIGIN_FRESH) {
        add(&tally->resets, 1);
        if (w->totals->prompt_tokens != 0)
            add(&tally->wrong, 1);
    } else if (wideep_origin(w) != WIDEEP_ORIGIN_TAKEOVER || w->totals->prompt_tokens == 0) {
        add(&tally->wrong, 1);
    }
    if (wideep_record_tokens(w, 1, 0) != 0)
        add(&tally->wrong, 1);
    uint64_t place = add(&tally->winners, 1) - 1;
    if (place < RACE_LOG) {
        tally->log[place].lineage = w->identity.lineage;
        tally->log[place].total = w->totals->prompt_tokens;
    }
    /* Without a deleter nobody else can be in here. */
    if (!deleter && wideep_check(w) != 0)
        add(&tally->wrong, 1);
    add(&tally->inside, (uint64_t)-1);
    if (killed)
        (void)kill(getpid(), SIGKILL);
    _exit(0);
}

static uint64_t total_of_file(uint64_t *ret_lineage)
{
    struct wideep_view view;
    ck_assert_int_eq(wideep_open(&view, path, NULL), 0);
    uint64_t total = wideep_load(&view.totals->prompt_tokens);
    *ret_lineage = view.identity.lineage;
    wideep_view_close(&view);
    return total;
}

static void race(struct tally *tally, uint64_t round, int starters, int deleter)
{
    pid_t child[8];
    for (int i = 0; i < starters; i++) {
        child[i] = fork_quietly();
        if (child[i] == 0)
            starter(tally, round, i % 2, deleter);
    }
    __atomic_store_n(&tally->go, round, __ATOMIC_SEQ_CST);
    for (int i = 0; i < starters; i++)
        ck_assert_int_eq((int)waitpid(child[i], NULL, 0), (int)child[i]);
}

START_TEST(three_starters_500_times)
{
    struct tally *tally = tally_new();
    uint64_t lineage = 0, first_lineage = 0;
    for (uint64_t round = 1; round <= 500; round++) {
        race(tally, round, 3, 0);
        ck_assert_uint_eq(tally->other, 0);
        ck_assert_uint_eq(tally->wrong, 0);
        ck_assert_uint_eq(tally->at_once, 0);
        ck_assert_uint_ge(tally->winners, round);
        ck_assert_uint_eq(total_of_file(&lineage), tally->winners);
        if (round == 1)
            first_lineage = lineage;
        ck_assert_uint_eq(lineage, first_lineage);
    }
    ck_assert_uint_eq(tally->resets, 1);
    ck_assert_uint_eq(names(0), 1);
    printf("500 rounds of three starters: %llu winners\n", (unsigned long long)tally->winners);
    (void)munmap(tally, sizeof *tally);
}
END_TEST

static int log_order(const void *a, const void *b)
{
    const uint64_t *left = (const uint64_t *)a, *right = (const uint64_t *)b;
    if (left[0] != right[0])
        return left[0] < right[0] ? -1 : 1;
    return left[1] < right[1] ? -1 : left[1] > right[1];
}

/* The same with somebody who deletes the file whenever he likes. Then a lineage may begin anew, from 0;
 * nothing else: within one, the winners' totals are 1, 2, 3 …, so none was inherited twice, and none was lost
 * by half. */
START_TEST(three_starters_and_a_deleter)
{
    struct tally *tally = tally_new();
    pid_t deleter = fork_quietly();
    if (deleter == 0) {
        for (uint64_t n = 0; !__atomic_load_n(&tally->stop, __ATOMIC_SEQ_CST); n++) {
            for (uint64_t spin = n * 2654435761u % 64; spin > 0; spin--)
                sched_yield();
            (void)unlink(path);
        }
        _exit(0);
    }
    for (uint64_t round = 1; round <= 300; round++) {
        uint64_t winners = tally->winners;
        race(tally, round, 3, 1);
        ck_assert_uint_eq(tally->other, 0);
        ck_assert_uint_eq(tally->wrong, 0);
        ck_assert_uint_gt(tally->winners, winners);
    }
    __atomic_store_n(&tally->stop, 1, __ATOMIC_SEQ_CST);
    wait_for(deleter, 0);
    ck_assert_uint_le(tally->winners, RACE_LOG);
    qsort(tally->log, tally->winners, sizeof tally->log[0], log_order);
    uint64_t lineages = 0;
    for (uint64_t i = 0; i < tally->winners; i++) {
        int same = i > 0 && tally->log[i].lineage == tally->log[i - 1].lineage;
        lineages += !same;
        ck_assert_uint_eq(tally->log[i].total, same ? tally->log[i - 1].total + 1 : 1);
    }
    ck_assert_uint_eq(lineages, tally->resets);
    printf("with a deleter: %llu winners, %llu lineages\n", (unsigned long long)tally->winners,
           (unsigned long long)lineages);
    (void)munmap(tally, sizeof *tally);
}
END_TEST

/* Creators killed at any moment: what they leave behind is swept, and no total goes back. */
START_TEST(creators_killed_at_any_moment)
{
    struct tally *tally = tally_new();
    uint64_t lineage, before = 0, started = 0;
    for (unsigned round = 0; round < 200; round++) {
        int ready[2];
        char byte = 0;
        ck_assert_int_eq(pipe(ready), 0);
        pid_t child = fork_quietly();
        if (child == 0) {
            if (write(ready[1], &byte, 1) != 1)
                _exit(1);
            for (;;) {
                struct wideep_writer *w;
                if (create(&w) != 0)
                    _exit(2);
                if (wideep_record_tokens(w, 1, 0) != 0)
                    _exit(3);
                add(&tally->winners, 1);
                wideep_close(&w);
            }
        }
        ck_assert_int_eq((int)read(ready[0], &byte, 1), 1);
        /* Let it get somewhere else each time. */
        uint64_t until = tally->winners + round % 4;
        while (__atomic_load_n(&tally->winners, __ATOMIC_SEQ_CST) < until)
            sched_yield();
        for (volatile unsigned spin = 0; spin < round % 16 * 10000; spin = spin + 1)
            ;
        ck_assert_int_eq(kill(child, SIGKILL), 0);
        int status;
        ck_assert_int_eq((int)waitpid(child, &status, 0), (int)child);
        ck_assert(WIFSIGNALED(status));
        (void)close(ready[0]);
        (void)close(ready[1]);
        started++;
        if (access(path, F_OK) != 0)
            continue; /* killed before it ever had a name */
        uint64_t total = total_of_file(&lineage);
        /* Each may have died between recording and counting. */
        ck_assert_uint_ge(total, tally->winners);
        ck_assert_uint_le(total, tally->winners + started);
        ck_assert_uint_ge(total, before);
        before = total;
    }
    struct wideep_writer *w = created();
    ck_assert_uint_eq(w->totals->prompt_tokens, before);
    ck_assert_uint_eq(names(0), 1);
    wideep_close(&w);
    (void)munmap(tally, sizeof *tally);
}
END_TEST

START_TEST(leftovers_are_swept)
{
    char leftover[3][300], locked[300];
    (void)snprintf(leftover[0], sizeof leftover[0], "%s/.wideep.default.e0.r0.0123456789abcdef", directory);
    (void)snprintf(leftover[1], sizeof leftover[1], "%s/.wideep.default.e0.r1.0123456789abcdef", directory);
    (void)snprintf(leftover[2], sizeof leftover[2], "%s/.wideep.default.e0.r0.x", directory);
    (void)snprintf(locked, sizeof locked, "%s/.wideep.default.e0.r0.fedcba9876543210", directory);
    for (int i = 0; i < 3; i++)
        (void)close(open(leftover[i], O_CREAT | O_WRONLY, 0600));
    /* One whose maker lives. */
    int ends[2];
    char byte;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t maker = fork_quietly();
    if (maker == 0) {
        int fd = open(locked, O_CREAT | O_RDWR, 0600);
        if (fd < 0 || wideep_i_lock(fd, 0, F_WRLCK) != 0 || write(ends[1], "", 1) != 1)
            _exit(1);
        for (;;)
            (void)pause();
    }
    ck_assert_int_eq((int)read(ends[0], &byte, 1), 1);
    struct wideep_writer *w = created();
    ck_assert_int_ne(access(leftover[0], F_OK), 0);
    ck_assert_int_eq(access(leftover[1], F_OK), 0); /* another identity's */
    ck_assert_int_eq(access(leftover[2], F_OK), 0); /* nothing of ours */
    ck_assert_int_eq(access(locked, F_OK), 0);
    ck_assert_int_eq(kill(maker, SIGKILL), 0);
    ck_assert_int_eq((int)waitpid(maker, NULL, 0), (int)maker);
    wideep_close(&w);
    w = created();
    ck_assert_int_ne(access(locked, F_OK), 0);
    wideep_close(&w);
}
END_TEST

/* ---- takeover ---- */

static void fill(struct wideep_writer *w)
{
    const struct wideep_identity *id = &w->identity;
    for (uint32_t m = 0; m < id->model_count; m++) {
        const struct wideep_model *model = &id->models[m];
        for (uint32_t l = 0; l < model->layers; l++) {
            for (uint32_t r = 0; r < id->ep_size; r++)
                w->rank_tokens[m][l * id->ep_size + r] = 1000000 * (m + 1) + 1000 * l + r;
            for (uint32_t e = 0; e < model->logical_experts; e++)
                w->expert_tokens[m][l * model->logical_experts + e] = 9000000 * (m + 1) + 1000 * l + e;
        }
        w->totals->models[m].recorded_passes = 70 + m;
        w->totals->models[m].rearrangement_sum_ns = 170 + m;
        w->totals->models[m].rearrangement_bucket[1][12] = 270 + m;
        w->totals->models[m].rearrangement_bucket[0][0] = 370 + m;
    }
    w->totals->prompt_tokens = 1;
    w->totals->generation_tokens = 2;
    for (unsigned i = 0; i < WIDEEP_PHASES * WIDEEP_OUTCOMES; i++)
        w->totals->dbo_passes[i / WIDEEP_OUTCOMES][i % WIDEEP_OUTCOMES] = 100 + i;
    for (unsigned i = 0; i < WIDEEP_MAX_UBATCHES; i++)
        w->totals->ubatch_sum[i] = 200 + i;
    for (unsigned i = 0; i < WIDEEP_MAX_UBATCHES * WIDEEP_UBATCH_BUCKETS; i++)
        w->totals->ubatch_bucket[i / WIDEEP_UBATCH_BUCKETS][i % WIDEEP_UBATCH_BUCKETS] = 300 + i;
}

START_TEST(takeover_copies_by_key)
{
    struct wideep_writer *w = NULL;
    struct wideep_config config = {
        .directory = directory, .ep_size = 4, .model_count = 2, .models = {{"target", 3, 8, 0}, {"draft", 2, 4, 8}}};
    ck_assert_int_eq(wideep_create(&w, &config), 0);
    ck_assert_int_eq(wideep_origin(w), WIDEEP_ORIGIN_FRESH);
    const uint64_t lineage = w->identity.lineage, instance_id = w->identity.instance_id;
    ck_assert_uint_ne(lineage, 0);
    fill(w);
    struct wideep_totals totals;
    memcpy(&totals, w->totals, sizeof totals);
    wideep_close(&w);

    /* As it was: everything. */
    ck_assert_int_eq(wideep_create(&w, &config), 0);
    ck_assert_int_eq(wideep_origin(w), WIDEEP_ORIGIN_TAKEOVER);
    ck_assert_uint_eq(w->identity.lineage, lineage);
    ck_assert_uint_ne(w->identity.instance_id, instance_id);
    ck_assert_int_eq(memcmp(&totals, w->totals, sizeof totals), 0);
    ck_assert_uint_eq(w->rank_tokens[1][1 * 4 + 3], 2001003);
    ck_assert_uint_eq(w->expert_tokens[0][2 * 8 + 7], 9002007);
    /* Of this process alone: rings and live state. */
    ck_assert_uint_eq(wideep_load(w->eplb_shared_head), 0);
    ck_assert_uint_eq(w->live->closed_ns, 0);
    wideep_close(&w);

    /* Models change places and shapes, fewer and more ranks, a model goes, another comes. */
    struct wideep_config changed = {.directory = directory,
                                    .ep_size = 2,
                                    .model_count = 3,
                                    .models = {{"draft", 3, 6, 0}, {"new", 1, 2, 0}, {"target", 2, 10, 0}}};
    ck_assert_int_eq(wideep_create(&w, &changed), 0);
    ck_assert_int_eq(wideep_origin(w), WIDEEP_ORIGIN_TAKEOVER);
    ck_assert_uint_eq(w->identity.lineage, lineage);
    for (uint32_t l = 0; l < 3; l++) {
        for (uint32_t r = 0; r < 2; r++)
            ck_assert_uint_eq(w->rank_tokens[0][l * 2 + r], l < 2 ? 2000000 + 1000 * l + r : 0);
        for (uint32_t e = 0; e < 6; e++)
            ck_assert_uint_eq(w->expert_tokens[0][l * 6 + e], l < 2 && e < 4 ? 18000000 + 1000 * l + e : 0);
    }
    for (uint32_t l = 0; l < 2; l++) {
        for (uint32_t r = 0; r < 2; r++)
            ck_assert_uint_eq(w->rank_tokens[2][l * 2 + r], 1000000 + 1000 * l + r);
        for (uint32_t e = 0; e < 10; e++)
            ck_assert_uint_eq(w->expert_tokens[2][l * 10 + e], e < 8 ? 9000000 + 1000 * l + e : 0);
    }
    ck_assert_uint_eq(w->rank_tokens[1][0] | w->expert_tokens[1][0], 0);
    ck_assert_uint_eq(w->totals->models[0].recorded_passes, 71);
    ck_assert_uint_eq(w->totals->models[1].recorded_passes, 0);
    ck_assert_uint_eq(w->totals->models[2].recorded_passes, 70);
    ck_assert_uint_eq(w->totals->models[0].rearrangement_bucket[1][12], 271);
    ck_assert_uint_eq(w->totals->models[2].rearrangement_sum_ns, 170);
    /* DBO and tokens are of the first model, which is another now. */
    ck_assert_uint_eq(w->totals->prompt_tokens | w->totals->generation_tokens | w->totals->ubatch_sum[0], 0);
    ck_assert_uint_eq(w->totals->dbo_passes[1][5], 0);
    wideep_close(&w);
}
END_TEST

START_TEST(front_ends_take_over_tokens)
{
    struct wideep_writer *w = NULL;
    struct wideep_config config = config_of();
    config.role = WIDEEP_ROLE_FRONTEND;
    for (uint64_t round = 0; round < 5; round++) {
        ck_assert_int_eq(wideep_create(&w, &config), 0);
        ck_assert_uint_eq(w->totals->prompt_tokens, round * 3);
        ck_assert_uint_eq(w->totals->generation_tokens, round * 5);
        ck_assert_int_eq(wideep_record_tokens(w, 3, 5), 0);
        wideep_close(&w);
    }
}
END_TEST

/* What cannot be read is replaced, and nothing is inherited from it. */
START_TEST(unreadable_files_are_replaced)
{
    struct wideep_writer *w = created();
    ck_assert_int_eq(wideep_record_tokens(w, 7, 7), 0);
    const size_t size = w->size;
    unsigned char *good = malloc(size);
    ck_assert_ptr_nonnull(good);
    memcpy(good, w->base, size);
    const uint64_t lineage = w->identity.lineage;
    wideep_close(&w);
    for (int what = 0; what < 8; what++) {
        struct wideep_identity *identity = malloc(size);
        ck_assert_ptr_nonnull(identity);
        memcpy(identity, good, size);
        size_t length = size;
        switch (what) {
        case 0: length = 0; break;
        case 1: length = 100; break;
        case 2: length = size - 4096; break;
        case 3: memset(identity, 0xa5, size); break;
        case 4: identity->abi_major = WIDEEP_ABI_MAJOR + 1; break;
        case 5: /* a copy of another rank's file would give its lineage to two */
            identity->rank = 0;
            identity->engine = 7;
            break;
        case 6: identity->lineage = 0; break;
        default: /* and the good one is taken over */ break;
        }
        int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0644);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq((int)write(fd, identity, length), (int)length);
        (void)close(fd);
        free(identity);
        w = created();
        ck_assert_msg(wideep_origin(w) == (what == 7 ? WIDEEP_ORIGIN_TAKEOVER : WIDEEP_ORIGIN_REPLACED), "case %d",
                      what);
        ck_assert_uint_eq(w->totals->prompt_tokens, what == 7 ? 7 : 0);
        ck_assert((w->identity.lineage == lineage) == (what == 7));
        wideep_close(&w);
        ck_assert_uint_eq(names(0), 1);
    }
    free(good);
    /* What is no regular file is left alone. */
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(mkdir(path, 0755), 0);
    ck_assert_int_eq(create(&w), -EEXIST);
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_int_eq(symlink("/dev/null", path), 0);
    ck_assert_int_eq(create(&w), -EEXIST);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(mkfifo(path, 0644), 0);
    ck_assert_int_eq(create(&w), -EEXIST);
    ck_assert_uint_eq(names(0), 1);
}
END_TEST

/* ---- liveness ---- */

START_TEST(double_open_is_refused)
{
    struct wideep_writer *w = created(), *second = NULL;
    unsigned descriptors = 0;
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(create(&second), -EBUSY);
        ck_assert_int_eq(alive_elsewhere(path), 1);
    }
    DIR *entries = opendir("/proc/self/fd");
    while (entries && readdir(entries))
        descriptors++;
    if (entries)
        (void)closedir(entries);
    ck_assert_uint_lt(descriptors, 20); /* and it costs no descriptor */
    ck_assert_int_eq(create_elsewhere(), -EBUSY);
    ck_assert_int_eq(wideep_record_tokens(w, 1, 1), 0);
    wideep_close(&w);
    ck_assert_int_eq(alive_elsewhere(path), 0);
    /* Closed, it may be opened again. */
    w = created();
    ck_assert_uint_eq(w->totals->prompt_tokens, 1);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    wideep_close(&w);
}
END_TEST

START_TEST(reading_ones_own_segment_keeps_the_lock)
{
    struct wideep_writer *w = created();
    for (int i = 0; i < 3; i++) {
        struct wideep_view view;
        ck_assert_int_eq(wideep_open(&view, path, NULL), 0);
        ck_assert_uint_eq(view.identity.instance_id, w->identity.instance_id);
        wideep_view_close(&view);
        ck_assert_int_eq(alive_elsewhere(path), 1);
        ck_assert_int_eq(create_elsewhere(), -EBUSY);
    }
    wideep_close(&w);
}
END_TEST

/* Leaves the process `free_count` descriptors to open, whatever it has open now. */
static struct rlimit descriptors_limit(unsigned free_count)
{
    struct rlimit before, now;
    int next = dup(0);
    ck_assert_int_ge(next, 0);
    (void)close(next);
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    now = before;
    now.rlim_cur = (rlim_t)next + free_count;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &now), 0);
    return before;
}

START_TEST(reading_ones_own_segment_costs_no_descriptor)
{
    struct wideep_writer *w = created();
    struct rlimit before = descriptors_limit(8);
    for (int i = 0; i < 1000; i++) {
        struct wideep_view view;
        ck_assert_int_eq(wideep_open(&view, path, NULL), 0);
        wideep_view_close(&view);
    }
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    wideep_close(&w);
    /* Written no more, it is a file like others: opened, asked, closed. */
    before = descriptors_limit(8);
    for (int i = 0; i < 100; i++) {
        struct wideep_view view;
        ck_assert_int_eq(wideep_open(&view, path, NULL), 0);
        ck_assert_int_eq(wideep_writer_alive(view.fd), 0);
        wideep_view_close(&view);
    }
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
}
END_TEST

/* What a process can learn of itself depends on descriptors that it may not have. */
START_TEST(reading_ones_own_segment_with_few_descriptors)
{
    struct wideep_writer *w = created(), *second = NULL;
    for (unsigned free_count = 0; free_count < 4; free_count++) {
        struct wideep_view view;
        struct rlimit before = descriptors_limit(free_count);
        int error = wideep_open(&view, path, NULL), create_error = create(&second);
        wideep_view_close(&view);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
        ck_assert_int_eq(error, free_count == 0 ? -EMFILE : 0);
        ck_assert_int_eq(create_error, free_count == 0 ? -EMFILE : -EBUSY);
        ck_assert_int_eq(alive_elsewhere(path), 1);
    }
    wideep_close(&w);
}
END_TEST

/* The sanitizers need address space of their own. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(WIDEEP_TSAN)
START_TEST(reading_ones_own_segment_without_memory)
{
    struct wideep_writer *w = created();
    struct rlimit before, now;
    ck_assert_int_eq(getrlimit(RLIMIT_AS, &before), 0);
    now = before;
    now.rlim_cur = 1;
    struct wideep_view view;
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &now), 0);
    int error = wideep_open(&view, path, NULL);
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &before), 0);
    ck_assert_int_lt(error, 0);
    wideep_view_close(&view);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    wideep_close(&w);
}
END_TEST
#endif

/* A file that says it is this process's and that this process cannot be told from: kept open, to be safe. */
START_TEST(an_unknown_origin_counts_as_ones_own)
{
    struct wideep_writer *w = created();
    struct wideep_identity identity = w->identity;
    ck_assert(wideep_i_own(&identity));
    identity.process_start_ticks++;
    ck_assert(!wideep_i_own(&identity));
    identity.process_start_ticks = 0;
    ck_assert(wideep_i_own(&identity));
    identity.pid_namespace++;
    ck_assert(!wideep_i_own(&identity));
    identity.pid_namespace = 0;
    ck_assert(wideep_i_own(&identity));
    identity.pid++;
    ck_assert(!wideep_i_own(&identity));
    wideep_close(&w);
}
END_TEST

/* A forked child holds its parent's descriptor and none of its locks: it may look at the parent like anybody. */
START_TEST(a_forked_child_reads_its_parent)
{
    struct wideep_writer *w = created();
    pid_t child = fork_quietly();
    if (child == 0) {
        struct wideep_view view;
        if (wideep_open(&view, path, NULL) != 0)
            _exit(1);
        int alive = wideep_writer_alive(view.fd);
        wideep_view_close(&view);
        _exit(alive == 1 ? 0 : 2);
    }
    wait_for(child, 0);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    wideep_close(&w);
}
END_TEST

/* What a file holds beyond its segment is nobody's: neither mapped nor a reason to forget the totals. */
START_TEST(a_file_longer_than_its_segment)
{
    struct wideep_writer *w = created();
    const uint64_t size = w->size;
    ck_assert_int_eq(wideep_record_tokens(w, 5, 6), 0);
    wideep_close(&w);
    ck_assert_int_eq(truncate(path, (off_t)1 << 40), 0);
    struct wideep_view view;
    ck_assert_int_eq(wideep_open(&view, path, NULL), 0);
    ck_assert_uint_eq(view.size, size);
    wideep_view_close(&view);
    w = created();
    ck_assert_int_eq(wideep_origin(w), WIDEEP_ORIGIN_TAKEOVER);
    ck_assert_uint_eq(w->totals->prompt_tokens, 5);
    wideep_close(&w);
}
END_TEST

/* Somebody closed a descriptor of the file in this process: the lock is gone until the next check. */
START_TEST(check_asserts_a_lost_lock)
{
    struct wideep_writer *w = created();
    (void)close(open(path, O_RDONLY));
    ck_assert_int_eq(alive_elsewhere(path), 0);
    ck_assert_int_eq(wideep_check(w), 0);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    wideep_close(&w);
}
END_TEST

/* The lock was lost and a successor has taken the totals over: whoever is not in possession must stop. */
START_TEST(check_yields_to_a_successor)
{
    int ends[2];
    char byte;
    struct wideep_writer *w = created();
    ck_assert_int_eq(wideep_record_tokens(w, 5, 0), 0);
    (void)close(open(path, O_RDONLY));
    ck_assert_int_eq(pipe(ends), 0);
    pid_t successor = fork_quietly();
    if (successor == 0) {
        struct wideep_writer *own;
        if (create(&own) != 0 || !own || own->totals->prompt_tokens != 5 || wideep_record_tokens(own, 1, 0) != 0 ||
            write(ends[1], "", 1) != 1)
            _exit(1);
        for (;;)
            (void)pause();
    }
    ck_assert_int_eq((int)read(ends[0], &byte, 1), 1);
    ck_assert_int_eq(wideep_check(w), -ESTALE);
    unsigned char *before = malloc(w->size);
    ck_assert_ptr_nonnull(before);
    memcpy(before, w->base, w->size);
    struct wideep_pass pass = {.pass = 1};
    struct wideep_dbo_stats stats = {.pass = 1};
    struct wideep_eplb_layer layer = {.max_tokens_per_rank = 1};
    static int32_t loads[64];
    ck_assert_int_eq(wideep_record_pass(w, &pass, loads, NULL), -ESTALE);
    ck_assert_int_eq(wideep_skip_pass(w, &pass), -ESTALE);
    ck_assert_int_eq(wideep_record_eplb(w, &pass, &layer, 1), -ESTALE);
    ck_assert_int_eq(wideep_record_dbo(w, &stats), -ESTALE);
    ck_assert_int_eq(wideep_rearrangement_begin(w, 0, WIDEEP_SYNC), -ESTALE);
    ck_assert_int_eq(wideep_rearrangement_end(w, 0, NULL), -ESTALE);
    ck_assert_int_eq(wideep_rearrangement_abort(w, 0), -ESTALE);
    ck_assert_int_eq(wideep_record_tokens(w, 1, 1), -ESTALE);
    ck_assert_int_eq(wideep_check(w), -ESTALE);
    ck_assert_int_eq(memcmp(before, w->base, w->size), 0);
    free(before);
    wideep_close(&w);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    uint64_t lineage;
    ck_assert_uint_eq(total_of_file(&lineage), 6);
    ck_assert_int_eq(kill(successor, SIGKILL), 0);
    ck_assert_int_eq((int)waitpid(successor, NULL, 0), (int)successor);
}
END_TEST

START_TEST(check_links_a_deleted_segment_again)
{
    struct wideep_writer *w = created();
    struct wideep_pass pass = {.pass = 1};
    struct stat before, after;
    int32_t loads[2] = {3, 4}, map[2] = {0, 1};
    ck_assert_int_eq(wideep_record_tokens(w, 5, 6), 0);
    ck_assert_int_eq(wideep_record_pass(w, &pass, loads, map), 0);
    const uint64_t lineage = w->identity.lineage, instance_id = w->identity.instance_id;
    ck_assert_int_eq(stat(path, &before), 0);
    ck_assert_int_eq(unlink(path), 0);
    struct wideep_totals totals;
    memcpy(&totals, w->totals, sizeof totals);
    ck_assert_int_eq(wideep_check(w), 0);
    ck_assert_int_eq(stat(path, &after), 0);
    ck_assert_uint_eq(after.st_mode & 07777, 0644);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    struct wideep_view view;
    ck_assert_int_eq(wideep_open(&view, path, NULL), 0);
    ck_assert_uint_eq(view.identity.lineage, lineage);
    ck_assert_uint_eq(view.identity.instance_id, instance_id);
    ck_assert_ptr_nonnull(view.base);
    ck_assert_int_eq(memcmp(view.base + 4096 + 4096, w->base + 4096 + 4096, w->size - 8192), 0);
    ck_assert_int_eq(memcmp(view.totals, &totals, sizeof totals), 0);
    /* The mapping that it now writes is the one that has the name. */
    ck_assert_int_eq(wideep_record_tokens(w, 1, 1), 0);
    ck_assert_uint_eq(view.totals->prompt_tokens, 6);
    wideep_view_close(&view);
    ck_assert_uint_eq(names(0), 1);
    /* A directory that is gone: the writer goes on, and is there again when the directory is. */
    (void)unlink(path);
    ck_assert_int_eq(rmdir(directory), 0);
    ck_assert_int_eq(wideep_check(w), -ENOENT);
    ck_assert_int_eq(wideep_record_tokens(w, 1, 1), 0);
    ck_assert_int_eq(mkdir(directory, 0755), 0);
    ck_assert_int_eq(wideep_check(w), 0);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    uint64_t same;
    ck_assert_uint_eq(total_of_file(&same), 7);
    ck_assert_uint_eq(same, lineage);
    wideep_close(&w);
}
END_TEST

START_TEST(check_reclaims_from_a_dead_foreigner)
{
    struct wideep_writer *w = created();
    ck_assert_int_eq(wideep_record_tokens(w, 5, 6), 0);
    const uint64_t lineage = w->identity.lineage;
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(create_elsewhere(), 0); /* a fresh one, whose process has ended */
    uint64_t found;
    (void)total_of_file(&found);
    ck_assert_uint_ne(found, lineage);
    ck_assert_int_eq(wideep_check(w), 0);
    ck_assert_uint_eq(total_of_file(&found), 5);
    ck_assert_uint_eq(found, lineage);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    ck_assert_uint_eq(names(0), 1);
    /* What is no regular file is left alone here too. */
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(mkfifo(path, 0644), 0);
    ck_assert_int_eq(wideep_check(w), -EEXIST);
    ck_assert_int_eq(wideep_record_tokens(w, 0, 0), 0);
    /* Nor does an empty file keep us from our name. */
    ck_assert_int_eq(unlink(path), 0);
    (void)close(open(path, O_CREAT | O_WRONLY, 0600));
    ck_assert_int_eq(wideep_check(w), 0);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    wideep_close(&w);
}
END_TEST

/* The lock was lost, a successor took the totals over and died. To put ours back would make counters go down. */
START_TEST(check_yields_to_a_dead_successor)
{
    struct wideep_writer *w = created();
    ck_assert_int_eq(wideep_record_tokens(w, 5, 6), 0);
    (void)close(open(path, O_RDONLY)); /* drops the lock */
    ck_assert_int_eq(alive_elsewhere(path), 0);
    ck_assert_int_eq(create_elsewhere(), 0);
    ck_assert_int_eq(alive_elsewhere(path), 0);
    struct stat before, after;
    ck_assert_int_eq(stat(path, &before), 0);
    uint64_t lineage;
    ck_assert_uint_eq(total_of_file(&lineage), 5);
    ck_assert_uint_eq(lineage, w->identity.lineage);
    ck_assert_int_eq(wideep_check(w), -ESTALE);
    ck_assert_int_eq(wideep_record_tokens(w, 1, 1), -ESTALE);
    ck_assert_int_eq(stat(path, &after), 0);
    ck_assert_uint_eq(after.st_ino, before.st_ino);
    wideep_close(&w);
}
END_TEST

/* Deleted and created anew within one process: the older handle yields, and the younger's lock is not lost by
 * that. */
START_TEST(check_yields_to_a_second_writer_of_this_process)
{
    struct wideep_writer *w = created();
    ck_assert_int_eq(unlink(path), 0);
    struct wideep_writer *second = created();
    ck_assert_int_eq(wideep_check(w), -ESTALE);
    ck_assert_int_eq(wideep_record_tokens(w, 1, 1), -ESTALE);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    ck_assert_int_eq(wideep_check(second), 0);
    wideep_close(&w);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    wideep_close(&second);
}
END_TEST

START_TEST(a_forked_child_does_nothing)
{
    struct wideep_writer *w = created();
    int ends[2];
    char byte;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork_quietly();
    if (child == 0) {
        struct wideep_pass pass = {.pass = 1};
        struct wideep_dbo_stats stats = {.pass = 1};
        struct wideep_eplb_layer layer = {.max_tokens_per_rank = 1};
        static int32_t loads[64];
        if (wideep_record_pass(w, &pass, loads, NULL) != -ECHILD || wideep_skip_pass(w, &pass) != -ECHILD ||
            wideep_record_eplb(w, &pass, &layer, 1) != -ECHILD || wideep_record_dbo(w, &stats) != -ECHILD ||
            wideep_rearrangement_begin(w, 0, WIDEEP_SYNC) != -ECHILD ||
            wideep_rearrangement_end(w, 0, NULL) != -ECHILD || wideep_rearrangement_abort(w, 0) != -ECHILD ||
            wideep_record_tokens(w, 1, 1) != -ECHILD || wideep_check(w) != -ECHILD)
            _exit(1);
        wideep_close(&w);
        if (w)
            _exit(2);
        /* Not even an identity of its own under the parent's name. */
        if (create(&w) != -EBUSY)
            _exit(3);
        if (write(ends[1], "", 1) != 1)
            _exit(4);
        for (;;)
            (void)pause();
    }
    ck_assert_int_eq((int)read(ends[0], &byte, 1), 1);
    ck_assert_int_eq(alive_elsewhere(path), 1);
    ck_assert_uint_eq(w->totals->prompt_tokens + w->live->activity, 0);
    /* The child outlives the rank and does not keep it alive. */
    wideep_close(&w);
    ck_assert_int_eq(alive_elsewhere(path), 0);
    ck_assert_int_eq(kill(child, SIGKILL), 0);
    ck_assert_int_eq((int)waitpid(child, NULL, 0), (int)child);
}
END_TEST

/* A child that inherited the descriptor may still take over when its parent is dead. */
START_TEST(a_forked_child_succeeds_its_dead_parent)
{
    int ends[2], held[2];
    char byte = 0;
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(pipe(held), 0);
    pid_t parent = fork_quietly();
    if (parent == 0) {
        struct wideep_writer *w;
        if (create(&w) != 0 || wideep_record_tokens(w, 9, 0) != 0)
            _exit(1);
        if (fork() == 0) {
            (void)close(held[1]);
            /* Its end of file is the parent's death. */
            if (write(ends[1], "r", 1) != 1 || read(held[0], &byte, 1) != 0)
                _exit(1);
            int error = create(&w);
            byte = error || !w || w->totals->prompt_tokens != 9 ? 'n' : 'y';
            _exit(write(ends[1], &byte, 1) != 1);
        }
        for (;;)
            (void)pause();
    }
    (void)close(ends[1]);
    (void)close(held[1]);
    ck_assert_int_eq((int)read(ends[0], &byte, 1), 1);
    ck_assert_int_eq(byte, 'r');
    ck_assert_int_eq(kill(parent, SIGKILL), 0);
    ck_assert_int_eq((int)waitpid(parent, NULL, 0), (int)parent);
    ck_assert_int_eq((int)read(ends[0], &byte, 1), 1);
    ck_assert_int_eq(byte, 'y');
    (void)close(ends[0]);
    (void)close(held[0]);
}
END_TEST

START_TEST(a_stopped_writer_is_alive)
{
    int ends[2];
    char byte;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork_quietly();
    if (child == 0) {
        struct wideep_writer *w;
        if (create(&w) != 0 || write(ends[1], "", 1) != 1)
            _exit(1);
        for (;;)
            (void)pause();
    }
    ck_assert_int_eq((int)read(ends[0], &byte, 1), 1);
    int status;
    ck_assert_int_eq(kill(child, SIGSTOP), 0);
    ck_assert_int_eq((int)waitpid(child, &status, WUNTRACED), (int)child);
    ck_assert(WIFSTOPPED(status));
    ck_assert_int_eq(alive_elsewhere(path), 1);
    ck_assert_int_eq(create_elsewhere(), -EBUSY);
    ck_assert_int_eq(kill(child, SIGKILL), 0);
    /* A zombie is not: the kernel drops the lock when the process ends, not when it is waited for. */
    siginfo_t info;
    ck_assert_int_eq(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    ck_assert_int_eq(alive_elsewhere(path), 0);
    ck_assert_int_eq((int)waitpid(child, &status, 0), (int)child);
}
END_TEST

START_TEST(mode_is_0644_whatever_the_umask)
{
    struct stat st;
    mode_t mask = umask(077);
    struct wideep_writer *w = created();
    (void)umask(mask);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 07777, 0644);
    wideep_close(&w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("takeover");
    TCase *takeover = tcase_create("takeover");
    tcase_add_checked_fixture(takeover, setup, teardown);
    tcase_set_timeout(takeover, 300);
    tcase_add_test(takeover, three_starters_500_times);
    tcase_add_test(takeover, three_starters_and_a_deleter);
    tcase_add_test(takeover, creators_killed_at_any_moment);
    tcase_add_test(takeover, leftovers_are_swept);
    tcase_add_test(takeover, takeover_copies_by_key);
    tcase_add_test(takeover, front_ends_take_over_tokens);
    tcase_add_test(takeover, unreadable_files_are_replaced);
    tcase_add_test(takeover, double_open_is_refused);
    tcase_add_test(takeover, reading_ones_own_segment_keeps_the_lock);
    tcase_add_test(takeover, reading_ones_own_segment_costs_no_descriptor);
    tcase_add_test(takeover, reading_ones_own_segment_with_few_descriptors);
#if !defined(__SANITIZE_ADDRESS__) && !defined(WIDEEP_TSAN)
    tcase_add_test(takeover, reading_ones_own_segment_without_memory);
#endif
    tcase_add_test(takeover, an_unknown_origin_counts_as_ones_own);
    tcase_add_test(takeover, a_forked_child_reads_its_parent);
    tcase_add_test(takeover, a_file_longer_than_its_segment);
    tcase_add_test(takeover, check_asserts_a_lost_lock);
    tcase_add_test(takeover, check_yields_to_a_successor);
    tcase_add_test(takeover, check_links_a_deleted_segment_again);
    tcase_add_test(takeover, check_reclaims_from_a_dead_foreigner);
    tcase_add_test(takeover, check_yields_to_a_dead_successor);
    tcase_add_test(takeover, check_yields_to_a_second_writer_of_this_process);
    tcase_add_test(takeover, a_forked_child_does_nothing);
    tcase_add_test(takeover, a_forked_child_succeeds_its_dead_parent);
    tcase_add_test(takeover, a_stopped_writer_is_alive);
    tcase_add_test(takeover, mode_is_0644_whatever_the_umask);
    suite_add_tcase(suite, takeover);
    return suite_run(suite);
}

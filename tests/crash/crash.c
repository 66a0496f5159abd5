/*
 * crash: kills a writer at each point at which another process can see something new of it.
 *
 *     crash list                             the runs there are
 *     crash points RUN                       the points of one
 *     crash run RUN                          kills a writer at each of them and judges what is left
 *     crash marks                            is every visible change followed by a point? Exit code 2: cannot tell here
 *     crash die RUN POINT DIRECTORY ENGINE   one death in a directory that others watch; exit code 0 when it died
 *
 * A run is a call of the writer, first of its life (`.1`), second (`.2`) or late enough for its rings to have come
 * around (`.70`); or one of creation, takeover and the linking anew by wideep_check(). A run without a death comes
 * first, and says which word each point stores and how; a death at point N must leave the words as they were with the
 * first N of these stores applied. Then a successor starts in another process and must go on from exactly there.
 */
#include "calls.h"
#include "observe.h"
#include "guard.h"
#include "log.h"

#include <signal.h>
#include <sys/wait.h>

#define CYCLES_LATE 70u /* DBO records: 840 into 512 slots; passes: 3 layers and 2 records 70 times into 194 */
#define CYCLES_OLD  3u  /* of a predecessor */

struct start {
    const char *name;
    /* Before the writer is armed: what has the name, and whether the writer made that itself. */
    enum { NAME_FREE, NAME_LEFTOVER, NAME_DEAD, NAME_GARBAGE, NAME_DELETED, NAME_FOREIGN } before;
    enum point_trouble trouble;
    int expected; /* what the undisturbed call returns */
};

static const struct start starts[] = {
    {"create", NAME_FREE, POINT_NO_TROUBLE, 0},
    {"create_on_full_disk", NAME_FREE, POINT_FULL, -ENOSPC},
    {"create_raced", NAME_FREE, POINT_RACED, 0},
    {"create_after_a_death", NAME_LEFTOVER, POINT_NO_TROUBLE, 0},
    {"takeover", NAME_DEAD, POINT_NO_TROUBLE, 0},
    {"takeover_on_full_disk", NAME_DEAD, POINT_FULL, -ENOSPC},
    {"replace_garbage", NAME_GARBAGE, POINT_NO_TROUBLE, 0},
    {"check_deleted", NAME_DELETED, POINT_NO_TROUBLE, 0},
    {"check_deleted_raced", NAME_DELETED, POINT_RACED, 0},
    {"check_foreign", NAME_FOREIGN, POINT_NO_TROUBLE, 0},
};

#define STARTS (sizeof starts / sizeof starts[0])

static const unsigned cycles_of_calls[] = {0, 1, CYCLES_LATE};

#define REPETITIONS (sizeof cycles_of_calls / sizeof cycles_of_calls[0])

/* One run of the campaign: a call, or a start. */
struct run {
    char name[64];
    const struct call *call;
    unsigned cycles;
    const struct start *start;
    uint32_t role;
    char directory[128], path[256], rival[256];
    struct image once; /* the totals of calls_everything(), called once */
    struct image predecessor, rival_image;
    uint32_t deaths;
};

/* ---- files and processes ------------------------------------------------------------------------------------ */

static void directory_make(char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s", "/dev/shm/wideep-crash-XXXXXX");
    if (!mkdtemp(ret)) {
        perror("/dev/shm");
        exit(1);
    }
}

/* Removes all files but the directory itself; returns how many there were. */
static unsigned directory_clear(const char *path)
{
    unsigned count = 0;
    DIR *directory = opendir(path);

    if (!directory)
        return 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            count += unlinkat(dirfd(directory), entry->d_name, 0) == 0;
    (void)closedir(directory);
    return count;
}

/* By rename, as another process would put it there. */
static void file_put(const char *path, const void *bytes, uint64_t size)
{
    char temporary[300];

    (void)snprintf(temporary, sizeof temporary, "%s.new", path);
    FILE *file = fopen(temporary, "wb");
    if (!file || fwrite(bytes, 1, (size_t)size, file) != size || fclose(file) != 0 || rename(temporary, path) != 0) {
        perror(path);
        exit(1);
    }
}

/* Returns the child's exit code, or 128 + the signal that ended it. */
static int wait_child(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return 1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* A child that the writer is told to go on by, and says that it is ready by. */
struct child {
    pid_t pid;
    int ready, go;
};

static void pass_on(int fd)
{
    char c = 0;
    if (write(fd, &c, 1) != 1)
        _exit(4);
}

static void wait_for(int fd)
{
    char c;
    if (read(fd, &c, 1) != 1)
        _exit(5);
}

/* ---- the writer --------------------------------------------------------------------------------------------- */

static struct wideep_writer *writer_create(const struct run *run, uint32_t engine)
{
    struct wideep_writer *w = NULL;
    int error = calls_create(&w, run->directory, run->role, engine);

    if (error) {
        (void)fprintf(stderr, "%s: create: %d\n", run->name, error);
        _exit(6);
    }
    return w;
}

static void writer_cycles(struct wideep_writer *w, unsigned cycles)
{
    for (unsigned i = 0; i < cycles; i++)
        if (calls_everything(w, i) != 0)
            _exit(7);
}

static int writer_call(const struct run *run, struct wideep_writer *w, uint32_t kill)
{
    point_arm(kill, POINT_NO_TROUBLE, w->base, w->size);
    int error = run->call->run(&w);
    point_disarm();
    return error;
}

static int writer_start(const struct run *run, struct wideep_writer *w, uint32_t kill, uint32_t engine)
{
    point_arm(kill, run->start->trouble, NULL, 0);
    int error = w ? wideep_check(w) : calls_create(&w, run->directory, run->role, engine);
    point_disarm();
    return error == run->start->expected ? 0 : error ? error : -EPROTO;
}

/* Whether writers are watched for changes without a point. */
static bool watched;

/* Does a start begin with a writer that lives already? */
static bool start_checks(const struct start *start)
{
    return start && (start->before == NAME_DELETED || start->before == NAME_FOREIGN);
}

/* The child's life; never returns. `child` (may be NULL) paces it. */
static void writer_live(const struct run *run, uint32_t kill, uint32_t engine, const struct child *child)
{
    struct wideep_writer *w = NULL;

    if (run->call || start_checks(run->start)) {
        w = writer_create(run, engine);
        writer_cycles(w, run->call ? run->cycles : CYCLES_OLD);
        if (run->call && run->call->prepare && run->call->prepare(w) != 0)
            _exit(8);
    }
    if (child) {
        pass_on(child->ready);
        wait_for(child->go);
    }
    if (watched && point_watch() != 0)
        _exit(2);
    int error = run->call ? writer_call(run, w, kill) : writer_start(run, w, kill, engine);
    if (error)
        (void)fprintf(stderr, "%s: %d\n", run->name, error);
    if (watched)
        point_board->changes = point_watched();
    if (child) {
        pass_on(child->ready);
        wait_for(child->go);
    }
    _exit(error ? 9 : 0);
}

static struct child writer_fork(const struct run *run, uint32_t kill)
{
    int ready[2], go[2];

    if (pipe(ready) != 0 || pipe(go) != 0)
        abort();
    struct child child = {.pid = fork(), .ready = ready[0], .go = go[1]};
    if (child.pid == 0) {
        (void)close(ready[0]);
        (void)close(go[1]);
        writer_live(run, kill, 0, &(struct child){.ready = ready[1], .go = go[0]});
    }
    (void)close(ready[1]);
    (void)close(go[0]);
    return child;
}

static int writer_end(struct child *child)
{
    int status = wait_child(child->pid);
    (void)close(child->ready);
    (void)close(child->go);
    return status;
}

/* ---- what is left ------------------------------------------------------------------------------------------- */

/* A successor starts: it must find `left` (NULL: nothing that counts), and one cycle of calls must add exactly what a
 * cycle adds. Leftovers of the dead one are gone afterwards. */
static void judge_successor(struct run *run, const struct image *left, enum wideep_origin origin)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct image now;
        observe_faults = 0;
        struct wideep_writer *w = writer_create(run, 0);
        image_of(&now, w->base, w->size);
        observe_check(wideep_origin(w) == origin, "the successor's origin is %d, not %d", (int)wideep_origin(w),
                      (int)origin);
        observe_check(!left || now.view.identity.lineage == left->view.identity.lineage, "the lineage is lost");
        observe_check(image_totals_equal(&now, left, NULL), "the successor's totals are not those at death");
        observe_check(calls_everything(w, CALLS_SALT) == 0, "the successor cannot record");
        image_free(&now);
        image_of(&now, w->base, w->size);
        observe_check(image_totals_equal(&now, left, &run->once), "the successor's calls add something else");
        _exit(observe_faults ? 1 : 0);
    }
    int status = wait_child(pid);
    observe_faults += status != 0;
    observe_check(status <= 1, "the successor ended with %d", status);
    observe_check(directory_clear(run->directory) == 1, "leftovers were not removed");
}

static const char *point_name(uint32_t number)
{
    return number > 0 && number <= point_board->count ? point_board->points[number - 1].name : "none";
}

static void judge_words(const struct image *before, const struct image *now, const struct point_board *undisturbed,
                        uint32_t kill)
{
    uint64_t *words = malloc((size_t)before->size);

    if (!words)
        abort();
    memcpy(words, before->bytes, (size_t)before->size);
    for (uint32_t i = 0; i < kill; i++) {
        const struct point *point = &undisturbed->points[i];
        if (!point->word)
            continue;
        uint64_t at = (uint64_t)((const unsigned char *)point->word - undisturbed->base) / 8;
        if (observe_check(at < undisturbed->size / 8, "a store outside of the segment"))
            words[at] = point->value;
    }
    for (uint64_t i = WIDEEP_IDENTITY_PAGE / 8; i < before->size / 8; i++)
        if (!observe_check(image_words(now)[i] == words[i], "word %llu is %#llx, not %#llx", (unsigned long long)i,
                           (unsigned long long)image_words(now)[i], (unsigned long long)words[i]))
            break;
    observe_check(memcmp(now->bytes, before->bytes, WIDEEP_IDENTITY_PAGE) == 0, "the identity changed");
    free(words);
}

static void judge_dead(const struct run *run)
{
    int fd = open(run->path, O_RDONLY | O_CLOEXEC);
    observe_check(fd >= 0 && wideep_writer_alive(fd) == 0, "the dead writer holds its lock");
    if (fd >= 0)
        (void)close(fd);
}

/* Of a reader that was there all the time, nothing is lost; of one that comes now, only what was overwritten. */
static void judge_readers(const struct run *run, struct observer *watching, const struct image *now)
{
    struct observer late;

    observer_collect(watching);
    observer_start(&late, run->directory);
    observer_collect(&late);
    for (unsigned kind = 0; kind < RING_KINDS; kind++) {
        const struct wideep_ring *ring = kind == RING_EPLB ? &now->view.eplb : &now->view.dbo;
        uint64_t head = ring->head ? wideep_ring_head(ring) : 0;
        uint64_t overrun = late.counts.lost[kind][RING_OVERRUN];
        observe_check(late.counts.read[kind] + overrun == head, "%llu read and %llu overrun of %llu records",
                      (unsigned long long)late.counts.read[kind], (unsigned long long)overrun,
                      (unsigned long long)head);
        for (unsigned cause = 0; cause < RING_CAUSES; cause++) {
            observe_check(cause == RING_OVERRUN || late.counts.lost[kind][cause] == 0, "records lost by cause %u",
                          cause);
            observe_check(watching->counts.lost[kind][cause] == 0, "the reader that watched lost records by cause %u",
                          cause);
        }
    }
    observe_check(late.set->count == 1 && late.set->segments[0]->linked, "the segment is refused");
    observer_stop(&late);
}

/* ---- calls -------------------------------------------------------------------------------------------------- */

/* Kills the writer at one point, 0: at none. Gives the images around the call. */
static void call_once(struct run *run, uint32_t kill, struct image *ret_before, struct image *ret_now,
                      struct observer *watching)
{
    struct child child = writer_fork(run, kill);

    wait_for(child.ready);
    observer_collect(watching);
    memset(&watching->counts, 0, sizeof watching->counts);
    if (!observe_check(image_take(ret_before, run->path) == 0, "no segment"))
        exit(1);
    pass_on(child.go);
    if (kill == 0) {
        wait_for(child.ready);
        (void)image_take(ret_now, run->path);
        pass_on(child.go);
    }
    int status = writer_end(&child);
    observe_check(status == (kill ? 128 + SIGKILL : 0), "the writer ended with %d", status);
    if (kill && !observe_check(image_take(ret_now, run->path) == 0, "no segment is left"))
        exit(1);
}

static uint64_t records_of(const struct image *image)
{
    const struct wideep_ring *ring = &image->view.eplb;
    return ring->head ? wideep_ring_head(ring) : 0;
}

static void call_judge(struct run *run, uint32_t kill, const struct image *after, const struct point_board *undisturbed)
{
    struct observer watching;
    struct image before, now;

    observe_about("%s, killed at point %u", run->name, kill);
    observer_start(&watching, run->directory);
    call_once(run, kill, &before, &now, &watching);
    observe_about("%s, killed at point %u, %s", run->name, kill, point_name(kill));
    judge_words(&before, &now, undisturbed, kill);
    observe_order(&before, &now, after);
    observe_records(&before, &now, after);
    judge_dead(run);
    judge_readers(run, &watching, &now);
    observe_check(watching.counts.read[RING_EPLB] == records_of(&now) - records_of(&before),
                  "the reader that watched did not get what head says");
    judge_successor(run, &now, WIDEEP_ORIGIN_TAKEOVER);
    observer_stop(&watching);
    image_free(&before);
    image_free(&now);
}

/* The run without a death: learns the points, and that they account for every word that the call changes. */
static void call_learn(struct run *run, struct image *ret_after, struct point_board *ret_undisturbed)
{
    struct observer watching;
    struct image before;

    observe_about("%s, undisturbed", run->name);
    observer_start(&watching, run->directory);
    call_once(run, 0, &before, ret_after, &watching);
    memcpy(ret_undisturbed, point_board, sizeof *ret_undisturbed);
    judge_words(&before, ret_after, ret_undisturbed, ret_undisturbed->count);
    observe_order(&before, ret_after, ret_after);
    observe_records(&before, ret_after, ret_after);
    observer_stop(&watching);
    image_free(&before);
    (void)directory_clear(run->directory);
}

/* ---- creation, takeover, linking anew ----------------------------------------------------------------------- */

/* What the name leads to. `ret_image` is for image_free() in any case. */
static int name_leads_to(const struct run *run, struct image *ret_image)
{
    int error = image_take(ret_image, run->path);

    observe_check(error == 0 || error == -ENOENT || error == -EBADMSG, "the name cannot be read: %d", error);
    return error;
}

static bool same_segment(const struct image *a, const struct image *b)
{
    return a->bytes && b->bytes && a->view.identity.lineage == b->view.identity.lineage &&
           image_totals_equal(a, b, NULL);
}

/* Nothing, garbage or a whole segment: with the lineage and totals of one that was there before, or a fresh one. */
static void judge_name(const struct run *run, int leads_to, const struct image *now, const struct image *own)
{
    const struct start *start = run->start;
    const bool free_before =
        start->before == NAME_FREE || start->before == NAME_LEFTOVER || start->before == NAME_DELETED;

    if (leads_to == -ENOENT)
        observe_check(free_before, "the name is lost");
    else if (leads_to == -EBADMSG)
        observe_check(start->before == NAME_GARBAGE, "the name leads to a half-made segment");
    else
        observe_check(same_segment(now, &run->predecessor) || same_segment(now, own) ||
                          (start->trouble == POINT_RACED && same_segment(now, &run->rival_image)) ||
                          (!run->predecessor.bytes && !own->bytes && image_totals_equal(now, NULL, NULL)),
                      "lineage or totals are lost");
}

/* What had the name before, for a writer that was there before; the caller frees it. */
static void start_arrange(struct run *run, struct image *ret_own)
{
    const struct start *start = run->start;

    memset(ret_own, 0, sizeof *ret_own);
    if (start_checks(start)) {
        observe_check(image_take(ret_own, run->path) == 0, "no segment");
        (void)unlink(run->path);
    }
    if (start->before == NAME_DEAD || start->before == NAME_FOREIGN)
        file_put(run->path, run->predecessor.bytes, run->predecessor.size);
    if (start->before == NAME_LEFTOVER) {
        char path[300];
        (void)snprintf(path, sizeof path, "%s/.%s.0123456789abcdef", run->directory, strrchr(run->path, '/') + 1);
        file_put(path, "half-made", 9);
    }
    if (start->before == NAME_GARBAGE)
        file_put(run->path, "garbage", 7);
}

static void start_once(struct run *run, uint32_t kill)
{
    struct child child;
    struct observer watching;
    struct image own, now;

    observe_about("%s, killed at point %u", run->name, kill);
    if (!start_checks(run->start))
        start_arrange(run, &own);
    observer_start(&watching, run->directory);
    child = writer_fork(run, kill);
    wait_for(child.ready);
    observer_collect(&watching);
    if (start_checks(run->start))
        start_arrange(run, &own);
    pass_on(child.go);
    if (kill == 0) {
        wait_for(child.ready);
        pass_on(child.go);
    }
    int status = writer_end(&child);
    observe_about("%s, killed at point %u, %s", run->name, kill, point_name(kill));
    observe_check(status == (kill ? 128 + SIGKILL : 0), "the writer ended with %d", status);

    int leads_to = name_leads_to(run, &now);
    judge_name(run, leads_to, &now, &own);
    if (leads_to == 0)
        judge_dead(run);
    observer_collect(&watching);
    for (unsigned reason = 0; reason < SEGMENT_REASONS; reason++)
        observe_check(watching.set->rejected[reason] == 0 || leads_to == -EBADMSG, "the reader refuses it: %s",
                      segment_reason_name(reason));
    judge_successor(run, leads_to == 0 ? &now : NULL,
                    leads_to == 0         ? WIDEEP_ORIGIN_TAKEOVER
                    : leads_to == -ENOENT ? WIDEEP_ORIGIN_FRESH
                                          : WIDEEP_ORIGIN_REPLACED);
    observer_stop(&watching);
    image_free(&own);
    image_free(&now);
}

static void start_learn(struct run *run, struct point_board *ret_undisturbed)
{
    start_once(run, 0);
    memcpy(ret_undisturbed, point_board, sizeof *ret_undisturbed);
}

/* ---- runs --------------------------------------------------------------------------------------------------- */

static bool run_by_number(size_t number, struct run *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->role = WIDEEP_ROLE_RANK;
    if (number < calls_count * REPETITIONS) {
        ret->call = &calls[number / REPETITIONS];
        ret->cycles = cycles_of_calls[number % REPETITIONS];
        ret->role = ret->call->role;
        (void)snprintf(ret->name, sizeof ret->name, "%s.%u", ret->call->name, ret->cycles + 1);
        return true;
    }
    number -= calls_count * REPETITIONS;
    if (number >= STARTS)
        return false;
    ret->start = &starts[number];
    (void)snprintf(ret->name, sizeof ret->name, "%s", ret->start->name);
    return true;
}

static bool run_by_name(const char *name, struct run *ret)
{
    for (size_t i = 0; run_by_number(i, ret); i++)
        if (strcmp(ret->name, name) == 0)
            return true;
    return false;
}

static void run_paths(struct run *run, const char *directory, uint32_t engine)
{
    char name[128];

    wideep_segment_name(name, sizeof name, "crash", run->role, engine, 0);
    (void)snprintf(run->directory, sizeof run->directory, "%s", directory);
    (void)snprintf(run->path, sizeof run->path, "%s/%s", directory, name);
}

/* A segment of a writer that died in peace. */
static void run_dead_segment(struct run *run, unsigned cycles, uint32_t salt, struct image *ret)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct wideep_writer *w = writer_create(run, 0);
        writer_cycles(w, cycles);
        _exit(salt ? calls_everything(w, salt) != 0 : 0);
    }
    if (wait_child(pid) != 0 || image_take(ret, run->path) != 0) {
        (void)fprintf(stderr, "%s: no predecessor\n", run->name);
        exit(1);
    }
    (void)directory_clear(run->directory);
}

static void run_prepare(struct run *run, const char *directory)
{
    run_paths(run, directory, 0);
    run_dead_segment(run, 0, CALLS_SALT, &run->once);
    if (!run->start)
        return;
    if (run->start->before == NAME_DEAD || run->start->before == NAME_FOREIGN)
        run_dead_segment(run, CYCLES_OLD, 0, &run->predecessor);
    if (run->start->trouble == POINT_RACED) {
        run_dead_segment(run, CYCLES_OLD + 2, 0, &run->rival_image);
        (void)snprintf(run->rival, sizeof run->rival, "%s.rival", directory);
        file_put(run->rival, run->rival_image.bytes, run->rival_image.size);
        point_rival = run->rival;
    }
}

/* Kills a writer at each point, or (not `deadly`) only learns them. */
static void run_all(struct run *run, bool deadly, struct point_board *ret_undisturbed)
{
    struct image after = {.bytes = NULL};
    char directory[64];

    directory_make(directory, sizeof directory);
    run_prepare(run, directory);
    if (run->call)
        call_learn(run, &after, ret_undisturbed);
    else
        start_learn(run, ret_undisturbed);
    for (uint32_t kill = 1; deadly && kill <= ret_undisturbed->count; kill++, run->deaths++)
        if (run->call)
            call_judge(run, kill, &after, ret_undisturbed);
        else
            start_once(run, kill);
    (void)unlink(run->rival);
    (void)directory_clear(directory);
    (void)rmdir(directory);
    image_free(&after);
    image_free(&run->once);
    image_free(&run->predecessor);
    image_free(&run->rival_image);
}

static void command_list(void)
{
    struct run run;

    for (size_t i = 0; run_by_number(i, &run); i++)
        printf("%s\n", run.name);
}

static void command_points(struct run *run, struct point_board *undisturbed)
{
    run_all(run, false, undisturbed);
    for (uint32_t i = 0; i < undisturbed->count; i++)
        printf("%u %s\n", i + 1, undisturbed->points[i].name);
}

static void command_run(struct run *run, struct point_board *undisturbed)
{
    run_all(run, true, undisturbed);
    printf("%s: %u points, %u deaths, %u faults\n", run->name, undisturbed->count, run->deaths, observe_faults);
}

/* Every run, watched. A writer that finds a fault says so and ends, which the judges see. */
static void command_marks(struct point_board *undisturbed)
{
    struct run run;
    uint64_t changes = 0;

    if (point_watch() != 0)
        exit(2);
    (void)point_watched();
    watched = true;
    for (size_t i = 0; run_by_number(i, &run); i++) {
        run_all(&run, false, undisturbed);
        changes += undisturbed->changes;
    }
    printf("%llu changes, each followed by a point\n", (unsigned long long)changes);
}

static int command_die(struct run *run, uint32_t kill, const char *directory, uint32_t engine)
{
    run_paths(run, directory, engine);
    point_clock_real();
    pid_t pid = fork();
    if (pid == 0)
        writer_live(run, kill, engine, NULL);
    return wait_child(pid) != 128 + SIGKILL;
}

static int usage(void)
{
    (void)fprintf(stderr, "crash list | points RUN | run RUN | marks | die RUN POINT DIRECTORY ENGINE\n");
    return 64;
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";
    struct run run;
    struct point_board *undisturbed = calloc(1, sizeof *undisturbed);

    if (!undisturbed || point_init() != 0 || guard_install() != 0)
        return 1;
    log_setup(LOG_ERROR, LOG_LOGFMT);
    bool named = argc > 2 && run_by_name(argv[2], &run);
    int status = 0;
    if (argc == 2 && strcmp(command, "list") == 0)
        command_list();
    else if (argc == 2 && strcmp(command, "marks") == 0)
        command_marks(undisturbed);
    else if (argc == 3 && named && strcmp(command, "points") == 0)
        command_points(&run, undisturbed);
    else if (argc == 3 && named && strcmp(command, "run") == 0)
        command_run(&run, undisturbed);
    else if (argc == 6 && named && strcmp(command, "die") == 0)
        status = command_die(&run, (uint32_t)strtoul(argv[3], NULL, 10), argv[4], (uint32_t)strtoul(argv[5], NULL, 10));
    else
        status = usage();
    free(undisturbed);
    return status ? status : observe_faults != 0;
}

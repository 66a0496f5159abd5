/* SPDX-License-Identifier: Apache-2.0 */
/* The parent: starts ranks and front ends, keeps the joined books, notices who dies, ends the run. */
#include "sim.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define SIM_TICK_NS       10000000u
#define SIM_JOIN_SLICE_NS 50000000u
#define SIM_QUIT_NS       5000000000u
#define SIM_DEATH_PASS    500u /* where there is no half of the passes */

/* The parent's own things. */
struct sim_parent {
    struct sim_run run;
    sigset_t signals, children_mask;
    struct sim_loads *(*loads)[WIDEEP_MAX_MODELS]; /* [groups] */
    uint64_t *joined_passes;                       /* [groups] */
    bool stopped;                                  /* SIGTERM or SIGINT came */
    bool failed;                                   /* somebody failed rather than being killed */
    bool death_done;
};

static void *sim_share(size_t size)
{
    /* Pages that nobody touches cost nothing. */
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static int sim_prepare_books(struct sim_run *run)
{
    const struct sim_options *options = &run->options;
    size_t words = 0;

    for (uint32_t m = 0; m < options->model_count; m++)
        words += (size_t)options->models[m].layers * options->ep_size;
    run->shared = sim_share(sizeof *run->shared);
    struct sim_slot *slots = sim_share(run->child_count * sizeof *slots);
    struct sim_book *books = sim_share(run->child_count * sizeof *books);
    uint64_t *planes = sim_share(run->child_count * words * 2 * sizeof *planes + 1);
    if (!run->shared || !slots || !books || !planes)
        return -ENOMEM;
    for (uint32_t i = 0; i < run->child_count; i++) {
        run->children[i].slot = &slots[i];
        run->children[i].book = &books[i];
        for (uint32_t m = 0; m < options->model_count; m++) {
            size_t plane = (size_t)options->models[m].layers * options->ep_size;
            books[i].intended_tokens[m] = planes;
            books[i].done_tokens[m] = planes + plane;
            planes += 2 * plane;
        }
    }
    return 0;
}

static int sim_prepare(struct sim_parent *parent)
{
    struct sim_run *run = &parent->run;
    const struct sim_options *options = &run->options;

    run->parent = getpid();
    run->children_per_group = options->ep_size + options->engines * options->frontends;
    run->child_count = run->children_per_group * options->groups;
    run->children = calloc(run->child_count, sizeof *run->children);
    run->joined = calloc(options->groups, sizeof *run->joined);
    parent->loads = calloc(options->groups, sizeof *parent->loads);
    parent->joined_passes = calloc(options->groups, sizeof *parent->joined_passes);
    if (!run->children || !run->joined || !parent->loads || !parent->joined_passes)
        return -ENOMEM;
    struct sim_child *child = run->children;
    for (uint32_t group = 0; group < options->groups; group++) {
        for (uint32_t i = 0; i < run->children_per_group; i++, child++) {
            bool rank = i < options->ep_size;
            uint32_t number = rank ? i : i - options->ep_size, per_engine = rank ? options->ranks : options->frontends;
            child->role = rank ? WIDEEP_ROLE_RANK : WIDEEP_ROLE_FRONTEND;
            child->group = group;
            child->engine_in_group = number / per_engine;
            child->engine = group * options->engines + child->engine_in_group;
            child->ep_rank = number;
            child->tp_rank = number % per_engine;
            child->frontend = number % per_engine;
        }
        for (uint32_t m = 0; m < options->model_count; m++) {
            int error = sim_joined_init(&run->joined[group][m], options->models[m].layers, options->ep_size);
            if (!error && options->models[m].layers > 0)
                error = sim_loads_new(&parent->loads[group][m], options, group, m);
            if (error)
                return error;
        }
    }
    return sim_prepare_books(run);
}

/* Where the files of a run before are still there, whoever waits for this one's must not find them. */
static int sim_prepare_expect(const struct sim_options *options)
{
    char path[PATH_MAX];
    struct stat st;

    if (!options->expect)
        return 0;
    int n = snprintf(path, sizeof path, "%s.intended", options->expect);
    if (n < 0 || (size_t)n >= sizeof path - 32)
        return -ENAMETOOLONG;
    if ((unlink(path) != 0 && errno != ENOENT) || (unlink(options->expect) != 0 && errno != ENOENT))
        return -errno;
    char *slash = strrchr(path, '/');
    if (slash)
        slash[slash == path] = 0;
    const char *directory = slash ? path : ".";
    if (stat(directory, &st) != 0 || access(directory, W_OK) != 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

static int sim_start_child(struct sim_parent *parent, struct sim_child *child, bool restarted)
{
    sim_set(&child->slot->state, SIM_STARTING);
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        /* A terminal's interrupt goes to all; the parent decides what it means. */
        (void)signal(SIGINT, SIG_IGN);
        (void)sigprocmask(SIG_SETMASK, &parent->children_mask, NULL);
        _exit(sim_child_run(&parent->run, child, restarted));
    }
    child->pid = pid;
    return 0;
}

static void sim_print_child(const struct sim_child *child)
{
    if (child->role == WIDEEP_ROLE_RANK)
        (void)printf("rank engine=%u rank=%u pid=%ld\n", (unsigned)child->engine, (unsigned)child->ep_rank,
                     (long)child->pid);
    else
        (void)printf("frontend engine=%u frontend=%u pid=%ld\n", (unsigned)child->engine, (unsigned)child->frontend,
                     (long)child->pid);
    (void)fflush(stdout);
}

static void sim_kill_all(struct sim_parent *parent)
{
    for (uint32_t i = 0; i < parent->run.child_count; i++)
        if (parent->run.children[i].pid > 0)
            (void)kill(parent->run.children[i].pid, SIGKILL);
    for (uint32_t i = 0; i < parent->run.child_count; i++)
        if (parent->run.children[i].pid > 0) {
            while (waitpid(parent->run.children[i].pid, NULL, 0) < 0 && errno == EINTR)
                ;
            parent->run.children[i].pid = 0;
        }
}

static void sim_report_death(const struct sim_child *child, pid_t pid, int status, bool restart)
{
    const bool rank = child->role == WIDEEP_ROLE_RANK;
    uint64_t error = sim_get(&child->slot->error);
    char why[160] = "";

    if (WIFSIGNALED(status))
        (void)snprintf(why, sizeof why, "killed by signal %d", WTERMSIG(status));
    else if (error)
        (void)snprintf(why, sizeof why, "failed: %s", wideep_error_text((int)error));
    else
        (void)snprintf(why, sizeof why, "exited with %d", WEXITSTATUS(status));
    (void)fprintf(stderr, "wideep-sim: engine %u %s %u (pid %ld) %s%s\n", (unsigned)child->engine,
                  rank ? "rank" : "front end", (unsigned)(rank ? child->ep_rank : child->frontend), (long)pid, why,
                  restart ? ", starting it again" : "; the others go on");
}

/* Reaps who died and, where asked to, starts them again. */
static int sim_reap(struct sim_parent *parent)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct sim_child *child = NULL;
        for (uint32_t i = 0; i < parent->run.child_count; i++)
            if (parent->run.children[i].pid == pid)
                child = &parent->run.children[i];
        if (!child)
            continue;
        bool restart = parent->run.options.restart && WIFSIGNALED(status);
        child->pid = 0;
        child->dead = true;
        sim_set(&child->slot->alive, 0);
        sim_report_death(child, pid, status, restart);
        parent->failed |= !WIFSIGNALED(status);
        if (restart) {
            int error = sim_start_child(parent, child, true);
            if (error)
                return error;
            sim_print_child(child);
        }
    }
    return 0;
}

/* Waits for a signal, at most for a tick, and deals with it. */
static int sim_tick(struct sim_parent *parent, uint64_t wait_ns)
{
    struct timespec timeout = {.tv_sec = 0, .tv_nsec = (long)wait_ns};
    siginfo_t info;

    int number = sigtimedwait(&parent->signals, &info, &timeout);
    if (number == SIGTERM || number == SIGINT) {
        parent->stopped = true;
        return 0;
    }
    return sim_reap(parent);
}

static int sim_start(struct sim_parent *parent)
{
    struct sim_run *run = &parent->run;

    for (uint32_t i = 0; i < run->child_count; i++) {
        int error = sim_start_child(parent, &run->children[i], false);
        if (error) {
            (void)fprintf(stderr, "wideep-sim: cannot fork: %s\n", strerror(-error));
            return error;
        }
    }
    for (uint32_t i = 0; i < run->child_count && !parent->stopped;) {
        struct sim_child *child = &run->children[i];
        int status;
        if (sim_get(&child->slot->state) != SIM_STARTING) {
            i++;
            continue;
        }
        if (waitpid(child->pid, &status, WNOHANG) == child->pid) {
            uint64_t error = sim_get(&child->slot->error);
            const char *directory = run->options.directory ? run->options.directory : getenv("WIDEEP_SHM_DIR");
            child->pid = 0;
            (void)fprintf(stderr, "wideep-sim: cannot create the segment of engine %u %s %u in %s: %s\n",
                          (unsigned)child->engine, child->role == WIDEEP_ROLE_RANK ? "rank" : "front end",
                          (unsigned)(child->role == WIDEEP_ROLE_RANK ? child->ep_rank : child->frontend),
                          directory && *directory ? directory : "/dev/shm",
                          error ? wideep_error_text((int)error) : "its process was killed");
            return -ECHILD;
        }
        struct timespec timeout = {.tv_sec = 0, .tv_nsec = 1000000};
        siginfo_t info;
        int number = sigtimedwait(&parent->signals, &info, &timeout);
        parent->stopped = number == SIGTERM || number == SIGINT;
    }
    for (uint32_t i = 0; i < run->child_count; i++)
        sim_print_child(&run->children[i]);
    (void)printf("started\n");
    (void)fflush(stdout);
    sim_set(&run->shared->start_ns, sim_now_ns() + SIM_START_NS);
    return 0;
}

/* Enters passes that all ranks of their group have done into the joined books, for a short time. Returns
 * whether some are left. */
static bool sim_join(struct sim_parent *parent)
{
    struct sim_run *run = &parent->run;
    const struct sim_options *options = &run->options;
    uint64_t until_ns = sim_now_ns() + SIM_JOIN_SLICE_NS;

    if (!options->expect)
        return false;
    for (uint32_t i = 0; i < run->child_count; i++)
        if (run->children[i].role == WIDEEP_ROLE_RANK && run->children[i].dead)
            return false; /* they will be left out */
    for (uint32_t group = 0; group < options->groups; group++) {
        uint64_t rear = sim_group_rear(run, group);
        for (uint64_t *pass = &parent->joined_passes[group]; rear != SIM_UNLIMITED && *pass < rear; (*pass)++) {
            enum sim_record record = sim_workload_joined(options, *pass);
            struct sim_pass happens;
            if (sim_now_ns() > until_ns)
                return true;
            sim_workload_pass(options, group, *pass, &happens);
            for (uint32_t m = 0; m < options->model_count && record != SIM_RECORD_NONE; m++) {
                if (!parent->loads[group][m])
                    continue;
                sim_loads_seek(parent->loads[group][m], &happens);
                sim_joined_add(&run->joined[group][m], record, sim_loads_group_sums(parent->loads[group][m], &happens));
            }
        }
    }
    return false;
}

/* Chooses after how many passes all stop: one more than anybody has begun. See sim_child_may_run(). */
static void sim_limit(struct sim_run *run)
{
    sim_set(&run->shared->hold, 1);
    uint64_t limit = 0;
    for (uint32_t i = 0; i < run->child_count; i++) {
        uint64_t next = sim_get(&run->children[i].slot->next);
        limit = next + 1 > limit ? next + 1 : limit;
    }
    if (limit < sim_get(&run->shared->limit))
        sim_set(&run->shared->limit, limit);
    sim_set(&run->shared->hold, 2);
}

/* Scenario `death`: the first group's last rank, so engines of several ranks keep the one that speaks for
 * them. */
static void sim_death(struct sim_parent *parent)
{
    struct sim_child *victim = &parent->run.children[parent->run.options.ep_size - 1];
    uint64_t limit = sim_get(&parent->run.shared->limit);
    uint64_t at = limit == SIM_UNLIMITED ? SIM_DEATH_PASS : limit / 2;

    if (parent->run.options.scenario != SIM_DEATH || parent->death_done || victim->pid <= 0 ||
        sim_group_front(&parent->run, 0) <= at)
        return;
    parent->death_done = true;
    (void)kill(victim->pid, SIGKILL);
}

static bool sim_finished(const struct sim_run *run)
{
    for (uint32_t i = 0; i < run->child_count; i++)
        if (run->children[i].pid > 0 && sim_get(&run->children[i].slot->state) != SIM_FINISHED)
            return false;
    return true;
}

static uint64_t sim_passes_done(const struct sim_run *run)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < run->child_count; i++) {
        uint64_t next = sim_get(&run->children[i].slot->next);
        most = next > most ? next : most;
    }
    return most;
}

/* Runs until all passes are done or a signal ends it. */
static int sim_watch(struct sim_parent *parent)
{
    struct sim_run *run = &parent->run;
    const struct sim_options *options = &run->options;
    uint64_t end_ns = UINT64_MAX;
    bool busy = false;

    if (options->passes_per_second <= 0 && options->seconds > 0)
        end_ns = sim_get(&run->shared->start_ns) + (uint64_t)(options->seconds * 1e9);
    while (!parent->stopped && (busy || !sim_finished(run))) {
        int error = sim_tick(parent, busy ? 0 : SIM_TICK_NS);
        if (error) {
            (void)fprintf(stderr, "wideep-sim: cannot start a process again: %s\n", strerror(-error));
            return error;
        }
        if (sim_now_ns() >= end_ns) {
            sim_limit(run);
            end_ns = UINT64_MAX;
        }
        sim_death(parent);
        busy = sim_join(parent);
    }
    if (!parent->stopped)
        while (sim_join(parent))
            ;
    return 0;
}

static void sim_linger(struct sim_parent *parent)
{
    uint64_t now_ns = sim_now_ns(), until_ns = now_ns + (uint64_t)(parent->run.options.linger * 1e9);
    while (!parent->stopped && (now_ns = sim_now_ns()) < until_ns)
        if (sim_tick(parent, until_ns - now_ns > SIM_TICK_NS ? SIM_TICK_NS : until_ns - now_ns) != 0)
            return;
}

/* Lets the children close their segments. */
static void sim_quit(struct sim_parent *parent)
{
    struct sim_run *run = &parent->run;
    uint64_t until_ns = sim_now_ns() + SIM_QUIT_NS;
    bool left = true;

    sim_set(&run->shared->quit, 1);
    while (left && !parent->stopped && sim_now_ns() < until_ns) {
        left = false;
        for (uint32_t i = 0; i < run->child_count; i++) {
            struct sim_child *child = &run->children[i];
            if (child->pid > 0 && waitpid(child->pid, NULL, WNOHANG) == child->pid)
                child->pid = 0;
            left |= child->pid > 0;
        }
        struct timespec timeout = {.tv_sec = 0, .tv_nsec = SIM_TICK_NS};
        siginfo_t info;
        int number = left ? sigtimedwait(&parent->signals, &info, &timeout) : 0;
        parent->stopped = number == SIGTERM || number == SIGINT;
    }
}

static int sim_run_all(struct sim_parent *parent)
{
    struct sim_run *run = &parent->run;
    int error = sim_start(parent);

    if (!error)
        error = sim_watch(parent);
    if (error)
        return error;
    if (parent->stopped) {
        run->interrupted = true;
        sim_kill_all(parent);
    }
    error = sim_expect_write(run);
    if (error) {
        (void)fprintf(stderr, "wideep-sim: cannot write %s: %s\n", run->options.expect, strerror(-error));
        return error;
    }
    (void)printf("%s passes=%llu\n", parent->stopped ? "stopped" : "done", (unsigned long long)sim_passes_done(run));
    (void)fflush(stdout);
    if (!parent->stopped)
        sim_linger(parent);
    if (!parent->stopped)
        sim_quit(parent);
    return parent->failed ? -ECHILD : 0;
}

int main(int argc, char **argv)
{
    static struct sim_parent parent;
    struct sim_options *options = &parent.run.options;

    int result = sim_options_parse(options, argc, argv);
    if (result)
        return result < 0 ? 2 : 0;
    int error = sim_prepare_expect(options);
    if (error) {
        (void)fprintf(stderr, "wideep-sim: --expect: cannot write %s: %s\n", options->expect, strerror(-error));
        return 1;
    }
    error = sim_prepare(&parent);
    if (error) {
        (void)fprintf(stderr, "wideep-sim: %s\n", strerror(-error));
        return 1;
    }
    uint64_t limit = options->passes;
    if (options->passes_per_second > 0 && options->seconds > 0) {
        uint64_t fit = sim_workload_passes(options, options->seconds);
        limit = fit < limit ? fit : limit;
    }
    sim_set(&parent.run.shared->limit, limit);

    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigemptyset(&parent.signals);
    (void)sigaddset(&parent.signals, SIGTERM);
    (void)sigaddset(&parent.signals, SIGINT);
    (void)sigaddset(&parent.signals, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &parent.signals, &parent.children_mask);
    error = sim_run_all(&parent);
    sim_kill_all(&parent);
    return error ? 1 : 0;
}

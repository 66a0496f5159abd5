#define POINT_IMPLEMENTATION
#include "point.h"

#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <ucontext.h>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define POINT_STEPS 1
#endif

#define MAPPINGS_MAX 8
#define LOCKED_MAX   64
#define TRAP_FLAG    0x100
#define TICK_NS      1000000u

struct point_board *point_board;
const char *point_rival;

static struct {
    bool armed, watching, real_clock;
    enum point_trouble trouble;
    uint64_t ticks;
    bool locked[LOCKED_MAX]; /* descriptors that hold a lock */
    const char *pending;     /* a change that no point has followed yet */
    uint32_t changes;
    struct mapping {
        unsigned char *base;
        size_t size;
        bool named, writable;
    } mappings[MAPPINGS_MAX];
} state;

int point_init(void)
{
    point_board = mmap(NULL, sizeof *point_board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return point_board == MAP_FAILED ? -errno : 0;
}

void point_arm(uint32_t kill, enum point_trouble trouble, unsigned char *base, uint64_t size)
{
    point_board->count = 0;
    point_board->kill = kill;
    point_board->base = base;
    point_board->size = size;
    state.trouble = trouble;
    state.armed = true;
}

void point_disarm(void)
{
    state.armed = false;
}

void point_clock_real(void)
{
    state.real_clock = true;
}

/* ---- watching: is every change followed by a point? -------------------------------------------------------- */

/* In a signal handler too. */
static void fault(const char *what, const char *then)
{
    char text[200];
    int length = snprintf(text, sizeof text, "no point after \"%s\" and before %s\n", what, then);

    (void)!write(STDERR_FILENO, text, (size_t)length);
    _exit(3);
}

static void change(const char *what)
{
    if (!state.watching)
        return;
    if (state.pending)
        fault(state.pending, what);
    state.pending = what;
    state.changes++;
}

static void protect(struct mapping *mapping, bool writable)
{
    mapping->writable = writable;
    (void)mprotect(mapping->base, mapping->size, writable ? PROT_READ | PROT_WRITE : PROT_READ);
}

static void protect_all(bool writable)
{
    for (struct mapping *m = state.mappings; m < state.mappings + MAPPINGS_MAX; m++)
        if (m->base && m->writable != writable)
            protect(m, writable);
}

static struct mapping *mapping_of(const unsigned char *at)
{
    for (struct mapping *m = state.mappings; m < state.mappings + MAPPINGS_MAX; m++)
        if (m->base && at >= m->base && at < m->base + m->size)
            return m;
    return NULL;
}

#ifdef POINT_STEPS
/* Lets one instruction through where the file has a name, and all of them up to the next point where it has none. */
static void on_store(int number, siginfo_t *info, void *context)
{
    struct mapping *mapping = mapping_of(info->si_addr);

    (void)number;
    if (!mapping || mapping->writable) {
        (void)signal(SIGSEGV, SIG_DFL);
        return;
    }
    if (mapping->named || !state.pending)
        change("a store");
    protect(mapping, true);
    if (mapping->named)
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
    protect_all(false);
}

int point_watch(void)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO, .sa_sigaction = on_store};

    if (sigaction(SIGSEGV, &action, NULL) != 0)
        return -errno;
    action.sa_sigaction = on_step;
    if (sigaction(SIGTRAP, &action, NULL) != 0)
        return -errno;
    state.changes = 0;
    state.pending = NULL;
    state.watching = true;
    protect_all(false);
    return 0;
}
#else
int point_watch(void)
{
    return -ENOTSUP;
}
#endif

uint32_t point_watched(void)
{
    if (state.pending)
        fault(state.pending, "the end");
    protect_all(true);
    state.watching = false;
    return state.changes;
}

/* ---- points ------------------------------------------------------------------------------------------------- */

void point_here(const char *name, uint64_t *word)
{
    if (state.watching) {
        state.pending = NULL;
        protect_all(false);
    }
    if (!state.armed)
        return;
    struct point_board *board = point_board;
    if (board->count == POINTS_MAX)
        abort();
    struct point *point = &board->points[board->count];
    point->name = name;
    point->word = word;
    point->value = word ? __atomic_load_n(word, __ATOMIC_RELAXED) : 0;
    if (++board->count == board->kill)
        (void)raise(SIGKILL);
}

/* ---- the intercepted calls ---------------------------------------------------------------------------------- */

int point_clock(clockid_t clock, struct timespec *ret)
{
    if (state.real_clock)
        return clock_gettime(clock, ret);
    uint64_t now_ns = 1000000000000u + ++state.ticks * TICK_NS;
    ret->tv_sec = (time_t)(now_ns / 1000000000u);
    ret->tv_nsec = (long)(now_ns % 1000000000u);
    return 0;
}

int point_open(const char *path, int flags, ...)
{
    mode_t mode = 0;

    if (flags & O_CREAT) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, mode_t);
        va_end(list);
    }
    int fd = open(path, flags, mode);
    if (fd >= 0 && (flags & O_CREAT))
        change("open() with O_CREAT");
    return fd;
}

/* Visible where it drops a lock. */
int point_close(int fd)
{
    int result = close(fd);

    if (fd >= 0 && fd < LOCKED_MAX && state.locked[fd]) {
        state.locked[fd] = false;
        change("close() of a locked file");
    }
    return result;
}

int point_fcntl(int fd, int command, ...)
{
    va_list list;
    va_start(list, command);
    struct flock *lock = va_arg(list, struct flock *);
    va_end(list);

    if (command == F_GETFL)
        return fcntl(fd, command);
    int result = fcntl(fd, command, lock);
    if (result == 0 && command == F_SETLK && fd < LOCKED_MAX) {
        state.locked[fd] = true;
        change("fcntl() with F_SETLK");
    }
    return result;
}

int point_fchmod(int fd, mode_t mode)
{
    int result = fchmod(fd, mode);

    change("fchmod()");
    return result;
}

int point_fallocate(int fd, off_t offset, off_t length)
{
    if (state.armed && state.trouble == POINT_FULL) {
        state.trouble = POINT_NO_TROUBLE;
        return ENOSPC;
    }
    int result = posix_fallocate(fd, offset, length);
    change("posix_fallocate()");
    return result;
}

/* A file gets a name: what is stored into it can be seen from now on. */
static void named(const char *what)
{
    change(what);
    for (struct mapping *m = state.mappings; m < state.mappings + MAPPINGS_MAX; m++)
        m->named = true;
}

int point_link(const char *from, const char *to)
{
    if (state.armed && state.trouble == POINT_RACED) {
        state.trouble = POINT_NO_TROUBLE;
        (void)!link(point_rival, to);
    }
    int result = link(from, to);
    int error = errno;
    if (result == 0)
        named("link()");
    errno = error;
    return result;
}

int point_rename(const char *from, const char *to)
{
    int result = rename(from, to);

    if (result == 0)
        named("rename()");
    return result;
}

int point_unlink(const char *path)
{
    int result = unlink(path);

    if (result == 0)
        change("unlink()");
    return result;
}

void *point_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    unsigned char *base = mmap(at, size, protection, flags, fd, offset);

    if (base == MAP_FAILED || !(flags & MAP_SHARED) || !(protection & PROT_WRITE))
        return base;
    for (struct mapping *m = state.mappings; m < state.mappings + MAPPINGS_MAX; m++)
        if (!m->base) {
            *m = (struct mapping){.base = base, .size = size, .writable = true};
            if (state.watching)
                protect(m, false);
            return base;
        }
    abort();
}

int point_munmap(void *at, size_t size)
{
    struct mapping *mapping = mapping_of(at);

    if (mapping)
        mapping->base = NULL;
    return munmap(at, size);
}

/* Loaded into a program by LD_PRELOAD: makes calls of the C library fail, stall or lie as the page says that
 * $FAULTS_INJECT names (inject.h). SIGUSR2 is handled by doing nothing, without SA_RESTART, so that it interrupts
 * whatever can be interrupted. Calls before main(), which the dynamic linker and other libraries' constructors make,
 * are not counted; neither are those the C library makes for itself without going by its exported names. */
#include "inject.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The allocator by its other names: asking dlsym() for the true ones allocates. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *block);

static struct inject *page; /* NULL: nothing is injected (yet) */

static bool fails(enum inject_kind kind)
{
    if (!page)
        return false;
    struct inject_window *window = &page->windows[kind];
    const uint64_t call = __atomic_fetch_add(&window->calls, 1, __ATOMIC_SEQ_CST);
    if (call < __atomic_load_n(&window->from, __ATOMIC_SEQ_CST) ||
        call >= __atomic_load_n(&window->until, __ATOMIC_SEQ_CST))
        return false;
    (void)__atomic_add_fetch(&window->failed, 1, __ATOMIC_SEQ_CST);
    return true;
}

static void *counted(void *block)
{
    if (block && page)
        (void)__atomic_add_fetch(&page->blocks, 1, __ATOMIC_SEQ_CST);
    return block;
}

static void *out_of_memory(void)
{
    errno = ENOMEM;
    return NULL;
}

/* ---- memory --------------------------------------------------------------------------------------------------- */

void *malloc(size_t size)
{
    return fails(INJECT_MEMORY) ? out_of_memory() : counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
    return fails(INJECT_MEMORY) ? out_of_memory() : counted(__libc_calloc(count, size));
}

void *realloc(void *block, size_t size)
{
    if (fails(INJECT_MEMORY))
        return out_of_memory();
    void *moved = __libc_realloc(block, size);
    return block ? moved : counted(moved);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails(INJECT_MEMORY) ? out_of_memory() : counted(__libc_memalign(alignment, size));
}

int posix_memalign(void **ret, size_t alignment, size_t size)
{
    void *block = fails(INJECT_MEMORY) ? NULL : counted(__libc_memalign(alignment, size));

    if (!block)
        return ENOMEM;
    *ret = block;
    return 0;
}

void free(void *block)
{
    if (block && page)
        (void)__atomic_sub_fetch(&page->blocks, 1, __ATOMIC_SEQ_CST);
    __libc_free(block);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (fails(INJECT_MEMORY)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}

/* ---- threads, random numbers, clock, directories --------------------------------------------------------------- */

/* Set before main(), so that its uses are plain reads. */
static int (*true_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int pthread_create(pthread_t *restrict ret, const pthread_attr_t *restrict attributes, void *(*run)(void *),
                   void *restrict argument)
{
    return fails(INJECT_THREAD) ? EAGAIN : true_pthread_create(ret, attributes, run, argument);
}

ssize_t getrandom(void *to, size_t size, unsigned flags)
{
    if (fails(INJECT_RANDOM)) {
        errno = ENOSYS;
        return -1;
    }
    return syscall(SYS_getrandom, to, size, flags);
}

int clock_gettime(clockid_t clock, struct timespec *ret)
{
    const int error = (int)syscall(SYS_clock_gettime, clock, ret);

    if (error == 0 && clock == CLOCK_REALTIME && page) {
        ret->tv_sec += __atomic_load_n(&page->realtime_shift_s, __ATOMIC_SEQ_CST);
    }
    return error;
}

static void stall(void)
{
    const uint64_t ms = page ? __atomic_load_n(&page->scan_stall_ms, __ATOMIC_SEQ_CST) : 0;
    const struct timespec wait = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    if (ms == 0)
        return;
    (void)__atomic_add_fetch(&page->stalled_scans, 1, __ATOMIC_SEQ_CST);
    (void)nanosleep(&wait, NULL);
}

ssize_t getdents64(int fd, void *to, size_t size)
{
    stall();
    return syscall(SYS_getdents64, fd, to, size);
}

/* ---- files: the system's table of them is full ------------------------------------------------------------------ */

static bool no_file(void)
{
    const bool failed = fails(INJECT_FILE);

    if (failed)
        errno = ENFILE;
    return failed;
}

int open(const char *path, int flags, ...)
{
    va_list more;

    va_start(more, flags);
    const mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return no_file() ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int openat(int directory, const char *path, int flags, ...)
{
    va_list more;

    va_start(more, flags);
    const mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return no_file() ? -1 : (int)syscall(SYS_openat, directory, path, flags, mode);
}

int accept4(int fd, __SOCKADDR_ARG address, socklen_t *restrict size, int flags)
{
    return no_file() ? -1 : (int)syscall(SYS_accept4, fd, address.__sockaddr__, size, flags);
}

/* ---- interruptions ------------------------------------------------------------------------------------------------
 */

static void interrupted(int number)
{
    (void)number;
    (void)__atomic_add_fetch(&page->interruptions, 1, __ATOMIC_SEQ_CST);
}

__attribute__((constructor)) static void begin(void)
{
    const struct sigaction action = {.sa_handler = interrupted};
    const char *name = getenv("FAULTS_INJECT");

    *(void **)&true_pthread_create = dlsym(RTLD_NEXT, "pthread_create");
    const int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    if (mapped == MAP_FAILED)
        abort();
    (void)sigaction(SIGUSR2, &action, NULL);
    page = mapped;
}

#include "guard.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Only the collector thread fills and clears these. The handler runs on the thread that faulted: that one, or one that
 * reads mappings under a lock that keeps the collector out. So plain order of the program suffices; volatile keeps the
 * compiler from reordering around the access that faults. */
static struct {
    volatile uintptr_t base;
    volatile size_t size;
    volatile sig_atomic_t hit;
} guards[GUARD_MAX];

static long page_size;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;

    (void)context;
    for (size_t i = 0; i < sizeof guards / sizeof *guards; i++) {
        if (guards[i].base == 0 || at < guards[i].base || at - guards[i].base >= guards[i].size)
            continue;
        void *page = (void *)(at & ~((uintptr_t)page_size - 1));
        if (mmap(page, (size_t)page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        guards[i].hit = 1;
        return;
    }
    /* Not ours: fault again with the default action. */
    (void)signal(number, SIG_DFL);
}

int guard_install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};

    page_size = sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) == 0 ? 0 : -errno;
}

int guard_add(const void *base, size_t size)
{
    for (size_t i = 0; i < sizeof guards / sizeof *guards; i++)
        if (guards[i].base == 0) {
            guards[i].hit = 0;
            guards[i].size = size;
            guards[i].base = (uintptr_t)base;
            return (int)i;
        }
    return -1;
}

void guard_remove(int guard)
{
    if (guard >= 0)
        guards[guard].base = 0;
}

bool guard_hit(int guard)
{
    return guards[guard].hit != 0;
}

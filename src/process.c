#include "process.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static uint64_t count_fds(void)
{
    alignas(struct dirent64) char entries[4096];
    uint64_t count = 0;
    ssize_t n;
    int fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    while ((n = getdents64(fd, entries, sizeof entries)) > 0)
        for (ssize_t at = 0; at < n;) {
            const struct dirent64 *entry = (const void *)(entries + at);
            count += entry->d_name[0] != '.';
            at += entry->d_reclen;
        }
    (void)close(fd);
    return count > 0 ? count - 1 : 0; /* the directory's own */
}

/* The beginning of a file, as text; empty when it cannot be read. */
static void read_text(const char *path, char *ret, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret, size - 1);

    ret[n > 0 ? n : 0] = 0;
    if (fd >= 0)
        (void)close(fd);
}

/* The line is behind one per processor and the one of all interrupts, which can be long: read on from part to part,
 * each beginning with the end of the one before. */
static double boot_time_seconds(void)
{
    static const char key[] = "\nbtime ";
    char text[4096];
    size_t kept = 0;
    double boot = 0;
    ssize_t n;
    int fd = open("/proc/stat", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    while (boot == 0 && (n = read(fd, text + kept, sizeof text - 1 - kept)) > 0) {
        kept += (size_t)n;
        text[kept] = 0;
        const char *line = strstr(text, key);
        if (line && strchr(line + 1, '\n')) {
            boot = strtod(line + sizeof key - 1, NULL);
        } else {
            size_t keep = kept < 64 ? kept : 64;
            memmove(text, text + kept - keep, keep);
            kept = keep;
        }
    }
    (void)close(fd);
    return boot;
}

/* Fields of /proc/self/stat from the state (3) on: see proc(5). */
static void read_stat(struct process_stats *stats)
{
    static double boot;
    char text[1024];
    unsigned long long field[25] = {0};

    read_text("/proc/self/stat", text, sizeof text);
    /* The command name may hold anything, brackets too. */
    char *at = strrchr(text, ')');
    if (!at || strlen(at) < 4)
        return;
    at += 3; /* the state letter is no number */
    for (int i = 4; i <= 24 && at; i++)
        field[i] = strtoull(at, &at, 10);
    if (boot == 0)
        boot = boot_time_seconds();
    if (boot > 0)
        stats->start_time_seconds = boot + (double)field[22] / (double)sysconf(_SC_CLK_TCK);
    stats->virtual_bytes = field[23];
    stats->resident_bytes = field[24] * (unsigned long long)sysconf(_SC_PAGESIZE);
}

/* /proc/self/net/netstat has a line of names and one of values for each prefix. */
static void read_network(struct process_stats *stats)
{
    char text[16384], *names_end, *values_end;

    read_text("/proc/self/net/netstat", text, sizeof text);
    char *names = strstr(text, "IpExt: "), *values = names ? strstr(names + 1, "\nIpExt: ") : NULL;
    if (!values)
        return;
    *values++ = 0;
    values[strcspn(values, "\n")] = 0;
    char *name = strtok_r(names, " ", &names_end), *value = strtok_r(values, " ", &values_end);
    for (; name && value; name = strtok_r(NULL, " ", &names_end), value = strtok_r(NULL, " ", &values_end)) {
        if (strcmp(name, "InOctets") == 0)
            stats->received_bytes = strtoull(value, NULL, 10);
        else if (strcmp(name, "OutOctets") == 0)
            stats->transmitted_bytes = strtoull(value, NULL, 10);
    }
}

void process_stats(struct process_stats *ret)
{
    struct timespec cpu;
    struct rlimit limit;

    memset(ret, 0, sizeof *ret);
    read_stat(ret);
    read_network(ret);
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0)
        ret->cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
    ret->open_fds = count_fds();
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        ret->max_fds = limit.rlim_cur;
    ret->virtual_max_bytes = UINT64_MAX;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        ret->virtual_max_bytes = limit.rlim_cur;
}
